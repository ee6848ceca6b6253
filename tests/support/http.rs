//! What a process that listens answers.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use super::{fleet::DEADLINE, process::Running, wait::eventually};

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

/// Where a process with `--listen` listens, on this machine, as it tells.
#[track_caller]
pub(crate) fn address(process: &Running) -> String {
    eventually(DEADLINE, "an address", || {
        let said = process.stderr();
        let address = ["listening: /metrics, /healthz, /readyz addr=", "Watch the run at http://"]
            .iter()
            .find_map(|told| said.split(told).nth(1))
            .and_then(|rest| rest.split(|letter: char| letter == '/' || letter.is_whitespace()).next())
            .map(|address| address.replace("0.0.0.0", "127.0.0.1"));
        address.ok_or(said)
    })
}

/// Asks it.
#[track_caller]
pub(crate) fn get(process: &Running, path: &str) -> Answer {
    let mut stream = TcpStream::connect(address(process)).expect("it listens");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").expect("it reads");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("it answers");
    let (head, body) = reply.split_once("\r\n\r\n").expect("a head and a body");
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    Answer { code, head: head.to_owned(), body: body.to_owned() }
}
