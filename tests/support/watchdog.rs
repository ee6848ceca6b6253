//! Ends every process and removes every file of a test process, however that process ends.
//!
//! `Drop` is not enough: statics are never dropped, and nothing is dropped when a test process is killed.
//! `PR_SET_PDEATHSIG` is not either: it fires when the *thread* that started the child ends, and the test harness
//! runs each test in a thread of its own. So a small shell process reads orders from a pipe whose only writing end is
//! in the test process (it is close-on-exec, no child inherits it). When the kernel closes that end, for whatever
//! reason, the shell kills the process groups it still watches and removes the test process's one directory.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use tempfile::TempDir;

/// `$1` is the directory to remove. Own process group and ignored signals: a Ctrl-C is meant for the tests.
const SCRIPT: &str = r#"
trap '' HUP INT TERM
watched=
while read -r order group; do
  case $order in
    watch) watched="$watched $group" ;;
    forget)
      kept=
      for one in $watched; do [ "$one" = "$group" ] || kept="$kept $one"; done
      watched=$kept ;;
  esac
done
for group in $watched; do kill -s KILL -- "-$group"; done
for attempt in 1 2 3 4 5; do rm -rf -- "$1" && break; sleep 0.2; done
"#;

struct Watchdog {
    orders: Mutex<ChildStdin>,
    root: PathBuf,
    /// Outlives this process on purpose, so nobody waits for it.
    _shell: Child,
}

/// From now on the process group `id` dies with this process.
pub(crate) fn watch(id: u32) {
    order("watch", id);
}

/// The process group `id` is about to be gone, so that its number may soon be somebody else's.
pub(crate) fn forget(id: u32) {
    order("forget", id);
}

/// A new directory that is removed on drop, and at the latest when this process has ended.
pub(crate) fn temp_dir(name: &str) -> TempDir {
    tempfile::Builder::new()
        .prefix(&format!("{name}-"))
        .tempdir_in(&watchdog().root)
        .expect("a temporary directory")
}

fn order(verb: &str, id: u32) {
    let mut orders = watchdog().orders.lock().unwrap_or_else(PoisonError::into_inner);
    writeln!(orders, "{verb} {id}").expect("the watchdog of the tests is gone");
}

fn watchdog() -> &'static Watchdog {
    static WATCHDOG: OnceLock<Watchdog> = OnceLock::new();
    WATCHDOG.get_or_init(|| {
        let root = tempfile::Builder::new()
            .prefix("shelfmill-tests-")
            .tempdir()
            .expect("a temporary directory")
            .keep();
        let mut shell = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "shelfmill-tests-watchdog"])
            .arg(&root)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("/bin/sh starts");
        let orders = Mutex::new(shell.stdin.take().expect("stdin is a pipe"));
        Watchdog { orders, root, _shell: shell }
    })
}
