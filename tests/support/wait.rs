//! Waiting for a condition, never for a time.
//!
//! A sleep is either too short on a busy machine or too long on an idle one. A deadline may be generous, because it
//! is used up only by a failing test, and that one says what it saw last.

use std::time::{Duration, Instant};

const POLL_EVERY: Duration = Duration::from_millis(20);

/// Asks `condition` until it answers `Ok`, and returns what it answered.
///
/// # Panics
/// When `deadline` has passed: with `what` was waited for and the last state `condition` told as its `Err`.
#[track_caller]
pub(crate) fn eventually<T>(
    deadline: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<T, String>,
) -> T {
    match within(deadline, &mut condition) {
        Ok(value) => value,
        Err(last) => panic!("after {deadline:.1?} still waiting for {what}; last seen: {last}"),
    }
}

/// Like [`eventually`], for a caller that has more to say about a failure: the last state is returned.
pub(crate) fn within<T>(
    deadline: Duration,
    mut condition: impl FnMut() -> Result<T, String>,
) -> Result<T, String> {
    let end = Instant::now() + deadline;
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(last) if Instant::now() >= end => return Err(last),
            Err(_) => std::thread::sleep(POLL_EVERY),
        }
    }
}
