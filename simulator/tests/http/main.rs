//! What a client of the simulator can see, over a real socket.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod answers;
mod client;
mod faults;
mod limits;
mod provider;
mod throughput;
mod tokens;
