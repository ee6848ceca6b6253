//! Reads a catalog and asks for every product of it.
//!
//! The producer keeps nothing either: what it has asked for is with the broker, what it has met is in the
//! ledger, and reading the input again finds what is left to do.

pub mod input;
mod scan;

pub use scan::{ProducerConfig, ScanReport, StrictReject, can_be_read_twice, check_opens, run};
