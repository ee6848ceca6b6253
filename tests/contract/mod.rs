//! One suite for each interface, over both of its implementations: what a role may rely on, whichever it gets.

mod brokers;
mod changes;
mod full_redis;
mod ledgers;
mod pace;
mod prompts;

use std::sync::atomic::{AtomicU32, Ordering};

/// A run nobody else uses.
pub(crate) fn fresh_run(what: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("{what}-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}
