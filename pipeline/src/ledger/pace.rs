//! How fast calls may follow each other: three leaky buckets kept as theoretical arrival times (GCRA, ITU-T
//! I.371), so that a place is taken by one addition and nobody has to poll. A request larger than a bucket
//! takes the whole bucket and never waits for ever. `redis/reserve.lua` does the same on the server's clock.

use std::time::Duration;

use crate::job::Limits;

/// What one call costs in each bucket, and how much may be taken at once, in milliseconds of that bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Charge {
    pub(super) cost_ms: f64,
    pub(super) burst_ms: f64,
}

/// Of a call whose place is taken already: it waits for the end of a pause, and for nothing else.
pub(super) const FREE: [Charge; 3] = [Charge { cost_ms: 0.0, burst_ms: 0.0 }; 3];

const MINUTE_MS: f64 = 60_000.0;
/// Up to a second's worth may go out at once.
const BURST_MS: f64 = 1_000.0;

/// Requests, tokens, delay; a bucket that does not limit costs nothing.
pub(super) fn charges(limits: &Limits, tokens: u64) -> [Charge; 3] {
    let per_minute = |rate: Option<u32>, amount: f64| match rate {
        None => Charge { cost_ms: 0.0, burst_ms: 0.0 },
        Some(rate) => {
            Charge { cost_ms: (amount * MINUTE_MS / f64::from(rate)).min(MINUTE_MS), burst_ms: BURST_MS }
        }
    };
    #[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
    [
        per_minute(limits.requests_per_minute, 1.0),
        per_minute(limits.tokens_per_minute, tokens as f64),
        Charge { cost_ms: limits.delay_ms as f64, burst_ms: 0.0 },
    ]
}

/// The buckets of one process.
#[derive(Debug, Default)]
pub(super) struct Pace {
    arrivals_ms: [f64; 3],
    paused_until_ms: f64,
}

impl Pace {
    /// Takes a place; the call may start after the duration returned.
    pub(super) fn reserve(&mut self, now_ms: f64, charges: [Charge; 3]) -> Duration {
        let mut start_ms = now_ms.max(self.paused_until_ms);
        for (arrival_ms, charge) in self.arrivals_ms.iter_mut().zip(charges) {
            if charge.cost_ms > 0.0 {
                start_ms = start_ms.max(*arrival_ms - charge.burst_ms);
            }
        }
        for (arrival_ms, charge) in self.arrivals_ms.iter_mut().zip(charges) {
            // From the end of a pause on, so that those who waited for it do not all start at once.
            *arrival_ms = arrival_ms.max(now_ms).max(self.paused_until_ms) + charge.cost_ms;
        }
        Duration::from_secs_f64((start_ms - now_ms).max(0.0) / 1_000.0)
    }

    /// Nobody starts a call before `now_ms + duration`.
    pub(super) fn pause(&mut self, now_ms: f64, duration: Duration) {
        self.paused_until_ms = self.paused_until_ms.max(now_ms + duration.as_secs_f64() * 1_000.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(requests: Option<u32>, tokens: Option<u32>, delay_ms: u64) -> Limits {
        Limits { requests_per_minute: requests, tokens_per_minute: tokens, delay_ms, ..Limits::default() }
    }

    #[test]
    fn a_minute_holds_as_many_requests_as_allowed_and_one_burst() {
        let limits = limits(Some(600), None, 0);
        let mut pace = Pace::default();
        let starts = (0..).map(|_| pace.reserve(0.0, charges(&limits, 0)));
        let within_a_minute = starts.take_while(|start| *start < Duration::from_secs(60)).count();
        assert_eq!(within_a_minute, 600 + 10);
    }

    #[test]
    fn a_request_larger_than_the_bucket_is_not_refused() {
        let limits = limits(None, Some(1_000), 0);
        let mut pace = Pace::default();
        assert_eq!(pace.reserve(0.0, charges(&limits, 50_000)), Duration::ZERO);
        assert_eq!(pace.reserve(0.0, charges(&limits, 1)), Duration::from_secs(59));
    }

    #[test]
    fn a_delay_is_kept_between_any_two_calls_and_a_pause_by_all() {
        let limits = limits(None, None, 100);
        let mut pace = Pace::default();
        assert_eq!(pace.reserve(0.0, charges(&limits, 0)), Duration::ZERO);
        assert_eq!(pace.reserve(0.0, charges(&limits, 0)), Duration::from_millis(100));
        pace.pause(0.0, Duration::from_secs(2));
        assert_eq!(pace.reserve(0.0, charges(&limits, 0)), Duration::from_secs(2));
        assert_eq!(pace.reserve(0.0, charges(&limits, 0)), Duration::from_millis(2100));
    }
}
