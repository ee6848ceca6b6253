//! Named places to die at, one between any two steps of the protocol: the tests die at each and start again.
//!
//! Only a build with the feature `crash-points` (which the tests of the command turn on, and nothing else) looks at
//! the environment; in any other build [`point`] is an empty function. `SHELFMILL_CRASH_AT` names where:
//!
//! - `worker.kept`: the first time this place is passed,
//! - `worker.kept#7`: the seventh time,
//! - `worker.called=SM-000042`: whenever it is passed for this product.
//!
//! Dying is `abort`: nothing is dropped, flushed or told, as with `kill -9`.

macro_rules! points {
    ($($(#[$doc:meta])* $point:ident = $name:literal,)*) => {
        /// A place to die at.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Point { $($(#[$doc])* $point),* }

        impl Point {
            /// Every place, in the order a product passes them.
            pub const ALL: &[Self] = &[$(Self::$point),*];

            /// The name in `SHELFMILL_CRASH_AT`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$point => $name),* }
            }
        }
    };
}

points! {
    /// Products are registered in the ledger; none of them is published.
    ProducerAdmitted = "producer.admitted",
    /// A task is confirmed.
    ProducerPublished = "producer.published",
    /// Every task is confirmed; the scan is not sealed.
    ProducerSealing = "producer.sealing",
    /// The scan is sealed.
    ProducerSealed = "producer.sealed",
    /// The claim is granted; no call was made.
    WorkerClaimed = "worker.claimed",
    /// The call is noted in the ledger, and about to be made.
    WorkerCalled = "worker.called",
    /// The model has answered, and nobody else knows.
    WorkerAnswered = "worker.answered",
    /// The ledger has the answer for other products with the same prompt, and not for this one.
    WorkerShared = "worker.shared",
    /// The answer is in the ledger.
    WorkerKept = "worker.kept",
    /// The outcome is confirmed; the task is not acknowledged.
    WorkerTold = "worker.told",
    /// The task is in a delay queue, and not acknowledged where it came from.
    WorkerDelayed = "worker.delayed",
    /// Half of a batch's bytes are written.
    AggregatorTorn = "aggregator.torn",
    /// A batch is written and not fsynced.
    AggregatorAppended = "aggregator.appended",
    /// A batch is on disk, and the ledger does not know.
    AggregatorSynced = "aggregator.synced",
    /// The ledger knows; nothing is acknowledged.
    AggregatorRecorded = "aggregator.recorded",
    /// The batch is acknowledged.
    AggregatorAcked = "aggregator.acked",
    /// Every product is done; there are no final files.
    AggregatorFinalizing = "aggregator.finalizing",
    /// The final JSON is in its place; the summary is not.
    AggregatorRenamed = "aggregator.renamed",
    /// Failed products may be claimed again, and are not published.
    RequeueReopened = "requeue.reopened",
    /// They are published, and their failures not forgotten.
    RequeuePublished = "requeue.published",
}

/// Dies here if the environment says so.
#[inline(always)]
pub fn point(point: Point) {
    if is_due(point, None) {
        now(point);
    }
}

/// Dies here if the environment says so, of this place or of this product.
#[inline(always)]
pub fn point_of(point: Point, product: &str) {
    if is_due(point, Some(product)) {
        now(point);
    }
}

/// Dies.
pub fn now(point: Point) -> ! {
    eprintln!("crash point {} reached", point.name());
    std::process::abort();
}

/// Whether to die here now, for those who have something to break first.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
#[must_use]
pub const fn is_due(_: Point, _: Option<&str>) -> bool {
    false
}

#[cfg(feature = "crash-points")]
pub use armed::is_due;

#[cfg(feature = "crash-points")]
mod armed {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    };

    use super::Point;

    struct Fuse {
        point: String,
        product: Option<String>,
        passes: AtomicU32,
    }

    static FUSE: LazyLock<Option<Fuse>> = LazyLock::new(|| {
        let asked = std::env::var("SHELFMILL_CRASH_AT").ok()?;
        let (point, product, passes) = match (asked.split_once('='), asked.split_once('#')) {
            (Some((point, product)), _) => (point, Some(product.to_owned()), 1),
            (None, Some((point, passes))) => (point, None, passes.parse().expect("a number after '#'")),
            (None, None) => (asked.as_str(), None, 1),
        };
        assert!(Point::ALL.iter().any(|known| known.name() == point), "there is no crash point '{point}'");
        Some(Fuse { point: point.to_owned(), product, passes: AtomicU32::new(passes) })
    });

    /// Whether to die here now, for those who have something to break first.
    #[must_use]
    pub fn is_due(point: Point, product: Option<&str>) -> bool {
        let Some(fuse) = FUSE.as_ref().filter(|fuse| fuse.point == point.name()) else { return false };
        match &fuse.product {
            Some(wanted) => product == Some(wanted),
            None => fuse.passes.fetch_sub(1, Ordering::Relaxed) == 1,
        }
    }
}
