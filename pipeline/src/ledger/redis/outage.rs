//! Whether Redis can be used, told to people: one line when it cannot, one when it can again, however many commands
//! meet it and however often each is tried.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use tokio::time::Instant;

use crate::{health::health, metrics::metrics};

pub(super) struct Outage {
    at: String,
    /// So that nobody takes the lock while all is well.
    lasts: AtomicBool,
    /// Whether it was there before.
    is_known: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    since: Option<Instant>,
    waiting: usize,
}

/// As probes are told.
const REDIS: &str = "Redis";
const UNREACHED: &str = "cannot reach Redis, trying again until it is there";
const LOST: &str = "lost Redis, waiting until it can be used again; nothing is lost";

/// A command that waits for the end of an outage.
pub(super) struct Waiting<'o>(&'o Outage);

impl Outage {
    pub(super) fn of(at: String) -> Self {
        Self { at, lasts: AtomicBool::new(false), is_known: AtomicBool::new(false), state: Mutex::default() }
    }

    /// A command cannot be done now.
    pub(super) fn wait(&self, reason: &str) -> Waiting<'_> {
        let mut state = self.state();
        state.waiting += 1;
        if state.since.is_none() {
            state.since = Some(Instant::now());
            self.lasts.store(true, Ordering::Relaxed);
            health().lost(REDIS);
            let what = if self.is_known.load(Ordering::Relaxed) { LOST } else { UNREACHED };
            tracing::warn!(at = self.at, reason, "{what}");
        }
        Waiting(self)
    }

    /// A command was done; the outage is over when nobody waits any more.
    pub(super) fn answered(&self, waiting: Option<Waiting<'_>>) {
        drop(waiting);
        self.is_known.store(true, Ordering::Relaxed);
        if !self.lasts.load(Ordering::Relaxed) {
            return;
        }
        let mut state = self.state();
        if state.waiting == 0
            && let Some(since) = state.since.take()
        {
            self.lasts.store(false, Ordering::Relaxed);
            health().back(REDIS);
            metrics().reconnected("redis");
            tracing::info!(at = self.at, after_s = since.elapsed().as_secs(), "Redis is back");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Also of a command that was given up, which ends no outage.
impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state().waiting -= 1;
    }
}
