//! What workers tell of themselves now and then, for those who watch.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Version;

/// Who has not been heard of for so long is not counted.
pub(super) const HEARD_WITHIN: Duration = Duration::from_secs(20);

/// How much a worker is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulse {
    /// Calls under way.
    pub in_flight: u32,
    /// How many may be, as things are: the servers' refusals, timeouts and overload lower it.
    pub limit: u32,
    /// How many may be at most.
    pub ceiling: u32,
}

/// What a worker told last, and when.
#[derive(Clone, Debug)]
pub struct Heard {
    /// What it does.
    pub pulse: Pulse,
    /// Which build it is, where it is in another process.
    pub version: Option<Version>,
    /// For so long nothing was heard of it.
    pub ago: Duration,
}

impl Pulse {
    /// Of several workers together.
    #[must_use]
    pub fn sum<'p>(pulses: impl IntoIterator<Item = &'p Self>) -> Self {
        pulses.into_iter().fold(Self::default(), |sum, pulse| Self {
            in_flight: sum.in_flight.saturating_add(pulse.in_flight),
            limit: sum.limit.saturating_add(pulse.limit),
            ceiling: sum.ceiling.saturating_add(pulse.ceiling),
        })
    }
}
