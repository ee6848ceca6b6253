//! The real `shelfmill` binary, as a user, an operator or an orchestrator would treat it.
//!
//! Output goes to files, so that nobody has to read along for the process not to block, and so that a failure can
//! show it. The environment is free of everything that would configure it, whatever the developer's shell has set.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use super::group::Group;
use super::wait::within;
use super::watchdog;

const CLEARED: &[&str] = &["SHELFMILL_", "OPENAI_", "RUST_LOG", "RUST_BACKTRACE", "NO_COLOR", "OTEL_"];
const LINES_SHOWN: usize = 60;

/// A program to be run.
pub(crate) struct Program {
    path: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    dir: Option<PathBuf>,
}

/// The binary under test.
pub(crate) fn shelfmill() -> Program {
    program(env!("CARGO_BIN_EXE_shelfmill"))
}

pub(crate) fn program(path: impl Into<PathBuf>) -> Program {
    Program { path: path.into(), args: Vec::new(), env: Vec::new(), dir: None }
}

impl Program {
    pub(crate) fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub(crate) fn args<T: Into<OsString>>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub(crate) fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// The working directory; a new empty one if not given.
    pub(crate) fn current_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    pub(crate) fn start(self) -> Running {
        let outputs = watchdog::temp_dir("process");
        let file = |name: &str| File::create(outputs.path().join(name)).expect("a directory of ours");
        let work = self.dir.unwrap_or_else(|| outputs.path().join("work"));
        fs::create_dir_all(&work).expect("the working directory");
        let group = Group::spawn(&self.path, |command| {
            for (name, _) in std::env::vars_os() {
                let text = name.to_string_lossy();
                if CLEARED.iter().any(|prefix| text.starts_with(prefix)) {
                    command.env_remove(&name);
                }
            }
            command.args(&self.args).envs(self.env).current_dir(work);
            command.stdout(file("stdout")).stderr(file("stderr"));
        });
        let name = self.path.file_name().unwrap_or(OsStr::new("?")).to_string_lossy();
        let args: Vec<_> = self.args.iter().map(|arg| arg.to_string_lossy()).collect();
        let command = format!("{name} {}", args.join(" "));
        Running { group, outputs, command, started: Instant::now(), peak_rss_kb: None }
    }

    /// Starts it and waits for its end. See [`Running::wait`].
    #[track_caller]
    pub(crate) fn run(self, deadline: Duration) -> Finished {
        self.start().wait(deadline)
    }
}

/// A process that has been started. Dropping it kills it.
pub(crate) struct Running {
    group: Group,
    outputs: TempDir,
    command: String,
    started: Instant,
    peak_rss_kb: Option<u64>,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.group.pid()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.group.ended().is_none()
    }

    /// SIGKILL; returns when the process is gone.
    pub(crate) fn kill9(mut self) -> Finished {
        self.peak_rss_kb = self.read_peak().or(self.peak_rss_kb);
        let status = self.group.kill();
        self.finish(status)
    }

    /// SIGTERM, as an orchestrator sends it.
    pub(crate) fn terminate(&mut self) {
        self.peak_rss_kb = self.read_peak().or(self.peak_rss_kb);
        self.group.signal(Signal::TERM);
    }

    /// SIGINT, as Ctrl-C sends it.
    pub(crate) fn interrupt(&mut self) {
        self.group.signal(Signal::INT);
    }

    /// SIGSTOP: alive, and doing nothing.
    pub(crate) fn pause(&mut self) {
        self.group.signal(Signal::STOP);
    }

    pub(crate) fn resume(&mut self) {
        self.group.signal(Signal::CONT);
    }

    /// What it has written so far.
    pub(crate) fn stdout(&self) -> String {
        read(&self.outputs, "stdout")
    }

    /// What it has written so far.
    pub(crate) fn stderr(&self) -> String {
        read(&self.outputs, "stderr")
    }

    /// Waits for it to end by itself.
    ///
    /// # Panics
    /// When it still runs after `deadline`, with the end of what it wrote.
    #[track_caller]
    pub(crate) fn wait(mut self, deadline: Duration) -> Finished {
        let ended = within(deadline, || {
            self.peak_rss_kb = self.read_peak().or(self.peak_rss_kb);
            self.group.ended().ok_or_else(String::new)
        });
        match ended {
            Ok(status) => self.finish(status),
            Err(_) => panic!("still running after {deadline:?}: {}", self.kill9()),
        }
    }

    /// The kernel's high-water mark of resident memory; nothing once the process has ended, or off Linux.
    fn read_peak(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.trim().trim_end_matches("kB").trim_end().parse().ok()
    }

    fn finish(mut self, status: std::process::ExitStatus) -> Finished {
        Finished {
            code: status.code(),
            signal: status.signal(),
            stdout: self.stdout(),
            stderr: self.stderr(),
            peak_rss_kb: self.peak_rss_kb,
            elapsed: self.started.elapsed(),
            command: std::mem::take(&mut self.command),
        }
    }
}

/// A test that fails shows what its processes had to say.
impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.command.is_empty() {
            let stderr = self.stderr();
            let lines: Vec<&str> = stderr.lines().collect();
            let shown = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
            eprintln!("--- stderr of {} ({}) ---\n{}", self.command, self.pid(), shown.join("\n"));
        }
    }
}

/// A process that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Nothing if a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// As last read while it was waited for: what it took in its last 20 ms may be missing.
    pub(crate) peak_rss_kb: Option<u64>,
    pub(crate) elapsed: Duration,
    command: String,
}

impl Finished {
    /// # Panics
    /// With the end of what it wrote, when it ended with another code or by a signal.
    #[track_caller]
    pub(crate) fn expect_code(self, code: i32) -> Self {
        assert!(self.code == Some(code), "exit code {code} was expected: {self}");
        self
    }
}

/// For a failure's message: the command, how it ended, and the end of its output.
impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { command, code, signal, elapsed, .. } = self;
        writeln!(f, "{command}\ncode {code:?}, signal {signal:?}, after {elapsed:.1?}")?;
        for (name, text) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            let lines: Vec<&str> = text.lines().collect();
            let shown = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
            writeln!(
                f,
                "--- {name}, last {} of {} lines ---\n{}",
                shown.len(),
                lines.len(),
                shown.join("\n")
            )?;
        }
        Ok(())
    }
}

fn read(dir: &TempDir, name: &str) -> String {
    let path: &Path = &dir.path().join(name);
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    String::from_utf8_lossy(&bytes).into_owned()
}
