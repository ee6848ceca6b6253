//! Certificates for the servers' TLS ports: an authority made for this test process, and a server certificate by it
//! for `localhost` and 127.0.0.1.
//!
//! A client that verifies needs the full shape (version 3, alternative names, an authority that is one), which is why
//! the server's certificate does not just sign itself. The `openssl` command makes them: OpenSSL is on a machine with
//! RabbitMQ or Redis anyway, and a crate for certificates would be built for two tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use super::watchdog;

/// PEM files, readable for as long as this process runs.
pub(crate) struct Certificates {
    pub(crate) ca: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

const CONFIG: &str = "
[req]
prompt = no
distinguished_name = subject
[subject]
CN = Shelfmill tests
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost, IP:127.0.0.1
";

/// The same for all servers of this process, made at the first call.
pub(crate) fn certificates() -> &'static Certificates {
    static MADE: OnceLock<(Certificates, TempDir)> = OnceLock::new();
    let (certificates, _) = MADE.get_or_init(|| {
        let dir = watchdog::temp_dir("tls");
        (make(dir.path()), dir)
    });
    certificates
}

fn make(dir: &Path) -> Certificates {
    std::fs::write(dir.join("openssl.cnf"), CONFIG).expect("a file can be written");
    let new_key = "req -config openssl.cnf -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(dir, &format!("{new_key} -x509 -extensions authority -days 2 -keyout ca.key -out ca.pem"));
    openssl(dir, &format!("{new_key} -new -keyout server.key -out server.csr"));
    openssl(
        dir,
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
         -extfile openssl.cnf -extensions server -out server.pem",
    );
    Certificates { ca: dir.join("ca.pem"), certificate: dir.join("server.pem"), key: dir.join("server.key") }
}

/// `arguments` are parted by blanks.
fn openssl(dir: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(dir)
        .output()
        .expect("openssl is installed: run tests/install-servers.sh");
    assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Shakes hands with the TLS server on `port`, verifying its certificate for `localhost`; `Err` is what openssl said.
pub(crate) fn shake_hands(port: u16) -> Result<(), String> {
    let output = Command::new("openssl")
        .args(["s_client", "-verify_return_error", "-verify_hostname", "localhost", "-brief"])
        .args(["-connect", &format!("127.0.0.1:{port}")])
        .arg("-CAfile")
        .arg(&certificates().ca)
        .stdin(std::process::Stdio::null())
        .output()
        .expect("openssl is installed: run tests/install-servers.sh");
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}
