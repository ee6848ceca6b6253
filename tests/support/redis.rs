//! A real Redis, set up as the documentation asks operators to: append-only file, and no eviction.
//!
//! What Redis has answered survives `kill`: with `appendfsync everysec` it writes the log before it answers and only
//! the fsync comes later, which matters to a machine that loses power and not to a process that is killed.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use tempfile::TempDir;

use super::server::{Server, find_program};
use super::tls::{self, Certificates};
use super::{ports, watchdog};

const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// A running or killed Redis. Dropping it kills it and removes its data.
pub(crate) struct Redis {
    server: Server,
    port: u16,
    tls_port: Option<u16>,
}

/// What a Redis had at a moment.
pub(crate) struct Backup(TempDir);

/// The Redis that all tests of this process share; use keys of your own. It cannot be killed, for it is not `mut`.
pub(crate) fn shared() -> &'static Redis {
    static SHARED: OnceLock<Redis> = OnceLock::new();
    SHARED.get_or_init(Redis::start)
}

impl Redis {
    /// Starts a Redis for one test, and returns when it answers.
    pub(crate) fn start() -> Self {
        Self::launch(None)
    }

    /// The same with a second port that speaks TLS.
    pub(crate) fn start_with_tls() -> Self {
        Self::launch(Some(ports::free()))
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// # Panics
    /// Without [`Redis::start_with_tls`].
    pub(crate) fn tls_url(&self) -> String {
        format!("rediss://localhost:{}/0", self.tls_port())
    }

    pub(crate) fn tls_port(&self) -> u16 {
        self.tls_port.expect("started with TLS")
    }

    /// Who signed the server's certificate (PEM).
    pub(crate) fn ca_file(&self) -> &'static Path {
        &tls::certificates().ca
    }

    /// The answer of `redis-cli`, without the line's end.
    ///
    /// # Panics
    /// When Redis answers with an error or not at all.
    pub(crate) fn cli(&self, args: &[&str]) -> String {
        let output = Command::new(find_program("redis-cli", &[]))
            .args(["-e", "-h", "127.0.0.1", "-p", &self.port.to_string()])
            .args(args)
            .output()
            .expect("redis-cli starts");
        let answer = String::from_utf8_lossy(&output.stdout);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "redis-cli {args:?}: {}{}", answer.trim_end(), complaint.trim_end());
        answer.trim_end().to_owned()
    }

    /// Loses everything, as a replaced Redis would have.
    pub(crate) fn flushall(&mut self) {
        self.cli(&["FLUSHALL"]);
    }

    pub(crate) fn kill(&mut self) {
        self.server.kill();
    }

    pub(crate) fn stop(&mut self) {
        self.server.stop();
    }

    /// Starts again on the same port and data; stops it first if it runs.
    pub(crate) fn restart(&mut self) {
        self.server.stop();
        self.run();
    }

    /// Killed, and started again on the same port with nothing in it.
    pub(crate) fn restart_empty(&mut self) {
        self.server.kill();
        fs::remove_dir_all(self.data()).expect("the append-only files");
        self.run();
    }

    /// A copy of the data, as a backup that is taken while Redis runs.
    pub(crate) fn backup(&self) -> Backup {
        let backup = Backup(watchdog::temp_dir("redis-backup"));
        copy_files(&self.data(), backup.0.path());
        backup
    }

    /// Killed, and started again on the same port with what it had when the backup was made.
    pub(crate) fn restart_with(&mut self, backup: &Backup) {
        self.server.kill();
        fs::remove_dir_all(self.data()).expect("the append-only files");
        fs::create_dir(self.data()).expect("a directory of ours");
        copy_files(backup.0.path(), &self.data());
        self.run();
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    fn data(&self) -> PathBuf {
        self.server.dir().join("appendonlydir")
    }

    pub(crate) fn pause(&mut self) {
        self.server.pause();
    }

    pub(crate) fn resume(&mut self) {
        self.server.resume();
    }

    fn launch(tls_port: Option<u16>) -> Self {
        let port = ports::free();
        let server = Server::new("redis", tls_port.into_iter().chain([port]).collect());
        let mut redis = Self { server, port, tls_port };
        redis.run();
        redis
    }

    fn run(&mut self) {
        let mut config = format!(
            "bind 127.0.0.1\nport {}\ndir {}\ndaemonize no\nsave \"\"\nappendonly yes\nappendfsync everysec\n\
             maxmemory-policy noeviction\n",
            self.port,
            self.server.dir().display()
        );
        if let Some(port) = self.tls_port {
            let Certificates { ca, certificate, key } = tls::certificates();
            config += &format!(
                "tls-port {port}\ntls-auth-clients no\ntls-ca-cert-file {}\ntls-cert-file {}\ntls-key-file {}\n",
                ca.display(),
                certificate.display(),
                key.display()
            );
        }
        let config = self.server.write("redis.conf", &config);
        let port = self.port;
        self.server.launch(
            &find_program("redis-server", &[]),
            |command| {
                command.arg(config);
            },
            || answers_ping(port),
        );
    }
}

fn copy_files(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a directory").flatten() {
        fs::copy(entry.path(), to.join(entry.file_name())).expect("a file can be copied");
    }
}

/// A Redis that still reads its log refuses with `-LOADING`.
fn answers_ping(port: u16) -> Result<(), String> {
    let ping = || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
        stream.write_all(b"PING\r\n")?;
        let mut answer = [0; 7];
        stream.read_exact(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    match ping() {
        Ok(answer) if answer == *b"+PONG\r\n" => Ok(()),
        Ok(answer) => Err(format!("PING is answered with {:?}", String::from_utf8_lossy(&answer))),
        Err(error) => Err(format!("PING fails: {error}")),
    }
}
