//! Whole-system tests: the real binary against real servers, killed at every step.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

mod cli;
mod contract;
mod embedded;
mod fleet;
mod protocol;
mod servers;
mod support;
