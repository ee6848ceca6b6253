//! `shelfmill health`: asks a role of this machine whether it is well, for containers that have no other program to ask with.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};

use crate::{cli::HealthArgs, end::DONE, foreign};

const PATIENCE: Duration = Duration::from_secs(3);
const ANSWER_BYTES: u64 = 4096;

pub(crate) fn run(args: &HealthArgs) -> anyhow::Result<ExitCode> {
    let (address, path) = (here(args.listen), if args.ready { "/readyz" } else { "/healthz" });
    let answer = ask(address, path).with_context(|| format!("nobody answers at http://{address}{path}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if head.split(' ').nth(1) != Some("200") {
        bail!("{}", foreign::line(body.trim()));
    }
    println!("{}", foreign::line(body.trim()));
    Ok(ExitCode::from(DONE))
}

/// Who listens everywhere listens here.
fn here(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

fn ask(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES).read_to_string(&mut answer)?;
    Ok(answer)
}
