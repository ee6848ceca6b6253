//! What RabbitMQ and Redis have in common: a directory, a log, a port, and ways to die and come back.
//!
//! A server is ready when it speaks its protocol, not when its port is open. `kill` returns only when its ports can
//! be listened on again, so that a restart on the same ports cannot fail for that.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use super::group::Group;
use super::wait::{eventually, within};
use super::{ports, watchdog};

/// Ten times what a busy machine of two cores needs.
const READY_WITHIN: Duration = Duration::from_secs(90);
const STOPPED_WITHIN: Duration = Duration::from_secs(30);
const PORTS_FREE_WITHIN: Duration = Duration::from_secs(10);
const LOG_LINES_SHOWN: usize = 40;

pub(crate) struct Server {
    name: &'static str,
    ports: Vec<u16>,
    // Before the directory: fields drop in this order, and a server must not outlive its files.
    group: Option<Group>,
    dir: TempDir,
}

impl Server {
    pub(crate) fn new(name: &'static str, ports: Vec<u16>) -> Self {
        Self { name, ports, group: None, dir: watchdog::temp_dir(name) }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file into the server's directory and returns its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir().join(name);
        fs::write(&path, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
        path
    }

    /// Starts `program` and returns once `probe` has answered `Ok`; its `Err` tells what it saw.
    ///
    /// # Panics
    /// With the end of the log, when the program ends by itself or is not ready in time.
    pub(crate) fn launch(
        &mut self,
        program: &Path,
        configure: impl FnOnce(&mut Command),
        mut probe: impl FnMut() -> Result<(), String>,
    ) {
        assert!(self.group.is_none(), "{} runs already", self.name);
        let log = self.open_log();
        let mut group = Group::spawn(program, |command| {
            configure(command);
            command
                .current_dir(self.dir.path())
                .stdout(log.try_clone().expect("a file handle can be cloned"))
                .stderr(log);
        });
        let ready = within(READY_WITHIN, || match group.ended() {
            Some(status) => Ok(Err(format!("it ended with {status}"))),
            None => probe().map(Ok),
        });
        match ready {
            Ok(Ok(())) => self.group = Some(group),
            Ok(Err(why)) | Err(why) => {
                drop(group);
                panic!("{} did not start: {why}\n{}", self.name, self.log_tail());
            }
        }
    }

    /// SIGKILL to all of the server's processes. Does nothing if it is down.
    pub(crate) fn kill(&mut self) {
        if let Some(mut group) = self.group.take() {
            group.kill();
            self.await_ports();
        }
    }

    /// SIGTERM, and the wait for an orderly end. Does nothing if it is down.
    ///
    /// # Panics
    /// With the end of the log, when the server does not end in time.
    pub(crate) fn stop(&mut self) {
        if let Some(mut group) = self.group.take() {
            group.signal(Signal::TERM);
            if group.wait(STOPPED_WITHIN).is_none() {
                panic!("{} did not stop within {STOPPED_WITHIN:?}\n{}", self.name, self.log_tail());
            }
            self.await_ports();
        }
    }

    /// SIGSTOP: connections stay open and nothing answers, as on a machine that hangs.
    pub(crate) fn pause(&mut self) {
        self.running().signal(Signal::STOP);
    }

    pub(crate) fn resume(&mut self) {
        self.running().signal(Signal::CONT);
    }

    /// The last lines the server has logged.
    pub(crate) fn log_tail(&self) -> String {
        let text = fs::read(self.log_file()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
        format!("--- end of the log of {} ---\n{}\n---", self.name, shown.join("\n"))
    }

    fn running(&mut self) -> &mut Group {
        self.group.as_mut().unwrap_or_else(|| panic!("{} is down", self.name))
    }

    fn await_ports(&self) {
        for &port in &self.ports {
            eventually(PORTS_FREE_WITHIN, "the port of a killed server", || {
                if ports::is_free(port) { Ok(()) } else { Err(format!("{port} is taken")) }
            });
        }
    }

    fn open_log(&self) -> File {
        OpenOptions::new().create(true).append(true).open(self.log_file()).expect("the log can be opened")
    }

    fn log_file(&self) -> PathBuf {
        self.dir().join("server.log")
    }
}

/// The first of `directories`, then of `PATH`, that has `program`.
///
/// # Panics
/// When none has it: tests without servers would promise nothing.
pub(crate) fn find_program(program: &str, directories: &[&str]) -> PathBuf {
    try_find_program(program, directories)
        .unwrap_or_else(|| panic!("{program} is not installed: run tests/install-servers.sh"))
}

pub(crate) fn try_find_program(program: &str, directories: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    directories
        .iter()
        .map(PathBuf::from)
        .chain(std::env::split_paths(&path))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}
