//! The model: our own simulator as a process of its own, so that its counts survive whoever is killed.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use serde_json::Value;

use super::{
    process::{Running, shelfmill},
    wait::eventually,
};

/// A running simulator. Dropping it kills it.
pub(crate) struct Simulator {
    _process: Running,
    url: String,
}

impl Simulator {
    /// With these options of `shelfmill simulate`.
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::start_at(0, options)
    }

    /// The same, on this port.
    pub(crate) fn start_at(port: u16, options: &[&str]) -> Self {
        let process = shelfmill().args(["simulate", "--port", &port.to_string()]).args(options).start();
        let url = eventually(Duration::from_secs(20), "the simulator's address", || {
            let stdout = process.stdout();
            stdout
                .lines()
                .next()
                .filter(|line| line.starts_with("http://"))
                .map(ToOwned::to_owned)
                .ok_or(stdout)
        });
        Self { _process: process, url }
    }

    /// What `--base-url` takes.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Calls received.
    pub(crate) fn calls(&self) -> u64 {
        self.stats()["calls"].as_u64().expect("a count")
    }

    /// `/stats`, whole.
    pub(crate) fn stats(&self) -> Value {
        let address = self.url.trim_start_matches("http://").trim_end_matches("/v1");
        let mut stream = TcpStream::connect(address).expect("the simulator listens");
        write!(stream, "GET /stats HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")
            .expect("a request");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).expect("a reply");
        let body = reply.split_once("\r\n\r\n").expect("a body").1;
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error} in {reply}"))
    }
}
