//! How a process is asked to end.
//!
//! Two stages, each told once and seen by everybody: *stop* (take no new work, finish what is in flight) and
//! *abort* (the grace is over: let go). Waiting on either is cancel safe.

use tokio_util::sync::CancellationToken;

/// A handle on the end of the process; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Stopper {
    stop: CancellationToken,
    abort: CancellationToken,
}

impl Stopper {
    /// A process nobody has asked to end.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A stopper that ends with this one and can be ended without it.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { stop: self.stop.child_token(), abort: self.abort.child_token() }
    }

    /// For who ends last, when the others have ended: is told of the abort and not of the stop.
    #[must_use]
    pub fn for_the_last(&self) -> Self {
        Self { stop: CancellationToken::new(), abort: self.abort.child_token() }
    }

    /// Take no new work.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Let go of what is in flight.
    pub fn abort(&self) {
        self.stop.cancel();
        self.abort.cancel();
    }

    /// Whether what is in flight is to be let go.
    #[must_use]
    pub fn is_aborted(&self) -> bool {
        self.abort.is_cancelled()
    }

    /// Whether the process takes no new work.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Resolves when no new work is to be taken.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Resolves when what is in flight is to be let go.
    pub async fn aborted(&self) {
        self.abort.cancelled().await;
    }
}
