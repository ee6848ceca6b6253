//! A full disk is waited for: somebody makes space, and nothing need be started again.
//!
//! What is not on disk was not acknowledged, so it waits with the broker, and the answer with the ledger; a run in one
//! process keeps what it has paid for in memory, and asks for no more than its channels hold. Any other trouble of a
//! disk (read-only, an I/O error) does not mend itself under a process that has files open: it ends the role.

use std::{io, time::Duration};

use shelfmill_pipeline::{health::health, shutdown::Stopper};
use tokio::time::{Instant, sleep};

const TRY_EVERY: Duration = Duration::from_secs(1);
/// As probes are told.
const SPACE: &str = "space on the disk";
const WAITING: &str = "nothing is lost, and nothing is acknowledged that is not on disk";
/// What the end of a role says about what it leaves.
const LEFT: &str = "nothing was acknowledged that is not on disk, so free or mend the disk and start again";

/// The wait for space: told once when it begins, and once when it is over.
pub(crate) struct Shortage<'s> {
    stopper: &'s Stopper,
    since: Option<Instant>,
}

impl<'s> Shortage<'s> {
    pub(crate) fn new(stopper: &'s Stopper) -> Self {
        Self { stopper, since: None }
    }

    /// Something could not be written: returns when it may be tried again, or gives the error back.
    pub(crate) async fn wait(&mut self, error: anyhow::Error) -> anyhow::Result<()> {
        if !is_full(&error) || self.stopper.is_stopped() {
            return Err(left(error));
        }
        if self.since.is_none() {
            self.since = Some(Instant::now());
            health().lost(SPACE);
            let reason = format!("{error:#}");
            tracing::warn!(reason, "the disk is full, waiting for space; {WAITING}");
        }
        tokio::select! {
            () = sleep(TRY_EVERY) => Ok(()),
            () = self.stopper.stopped() => Err(left(error)),
            () = self.stopper.aborted() => Err(left(error)),
        }
    }

    /// It was written.
    pub(crate) fn over(self) {
        if let Some(since) = self.since {
            health().back(SPACE);
            tracing::warn!(after_s = since.elapsed().as_secs(), "there is space on the disk again, going on");
        }
    }
}

fn is_full(error: &anyhow::Error) -> bool {
    kinds(error).any(|kind| matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
}

/// Damaged lines are no trouble of the disk, and say themselves what to do.
fn left(error: anyhow::Error) -> anyhow::Error {
    let is_disk = kinds(&error).any(|kind| kind != io::ErrorKind::InvalidData);
    if is_disk { error.context(LEFT) } else { error }
}

fn kinds(error: &anyhow::Error) -> impl Iterator<Item = io::ErrorKind> {
    error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind)
}
