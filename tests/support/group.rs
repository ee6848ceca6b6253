//! A child process in a process group of its own, which the watchdog knows before the program's first instruction.
//!
//! Between the start of a child and the watchdog's hearing of it, a killed test process would leave the child behind.
//! So the child begins as a shell that waits for a line on a pipe, and the line is sent once the group is watched. If
//! the test process dies before, the pipe closes and the shell ends. The shell then becomes the program by `exec`:
//! the process id, and what signals reach, is the program's own.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

use super::wait::within;
use super::watchdog;

const AWAIT_GO: &str = r#"read -r go && exec "$@" </dev/null"#;

/// A running or ended process group. Dropping it kills it.
pub(crate) struct Group {
    leader: Child,
}

impl Group {
    /// Starts `program` with the arguments, environment and output that `configure` adds.
    /// A program that cannot be executed ends with the shell's code 126 or 127.
    pub(crate) fn spawn(program: impl AsRef<OsStr>, configure: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", AWAIT_GO, "sh"]).arg(program).process_group(0);
        configure(&mut command);
        let mut leader = command.stdin(Stdio::piped()).spawn().expect("/bin/sh starts");
        watchdog::watch(leader.id());
        let mut go = leader.stdin.take().expect("stdin is a pipe");
        go.write_all(b"go\n").expect("the child waits for its line");
        Self { leader }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.leader.id()
    }

    /// The leader's status if it has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.leader.try_wait().expect("a child can be waited for");
        if status.is_some() {
            watchdog::forget(self.pid());
        }
        status
    }

    /// The leader's status, or nothing if it has not ended within `deadline`.
    pub(crate) fn wait(&mut self, deadline: Duration) -> Option<ExitStatus> {
        within(deadline, || self.ended().ok_or_else(String::new)).ok()
    }

    /// Sends `signal` to every process of the group; nothing happens if the leader has ended.
    pub(crate) fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            let group = Pid::from_child(&self.leader);
            kill_process_group(group, signal).expect("a process group of ours can be signalled");
        }
    }

    /// SIGKILL to every process of the group; returns when the leader is gone.
    pub(crate) fn kill(&mut self) -> ExitStatus {
        self.signal(Signal::KILL);
        watchdog::forget(self.pid());
        self.leader.wait().expect("a child can be waited for")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}
