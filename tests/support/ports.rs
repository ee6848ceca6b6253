//! Ports for servers that are killed and started again on the same port while clients keep knocking.
//!
//! Asking the kernel for a port (`bind` to 0) gives one from the range it also takes the source ports of outgoing
//! connections from. Such a port may belong to somebody's connection when the server comes back; a client that knocks
//! on it while the server is down may even get connected to itself. So ports are taken from below that range. Each is
//! given once in a test process, and test processes begin at different places, by process id.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

const LOWEST: u32 = 10_000;
/// Neighbouring process ids are common (one test binary after the other), so they begin this far apart.
const PORTS_PER_PROCESS: u32 = 61;

static GIVEN: AtomicU32 = AtomicU32::new(0);

/// A port of 127.0.0.1 on which nobody listens and which this process has not given before.
pub(crate) fn free() -> u16 {
    let span = first_ephemeral() - LOWEST;
    let start = std::process::id().wrapping_mul(PORTS_PER_PROCESS);
    for _ in 0..span {
        let given = GIVEN.fetch_add(1, Ordering::Relaxed);
        assert!(given < span, "this test process has used up all {span} ports");
        let port = LOWEST + start.wrapping_add(given) % span;
        let port = u16::try_from(port).expect("below the ephemeral range");
        if is_free(port) {
            return port;
        }
    }
    panic!("nothing is free between {LOWEST} and {}", LOWEST + span);
}

/// Whether a server could listen on `port` now.
pub(crate) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

fn first_ephemeral() -> u32 {
    fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .filter(|first| (LOWEST + 1_000..=65_535).contains(first))
        .unwrap_or(32_768)
}
