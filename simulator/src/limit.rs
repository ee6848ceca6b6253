//! The hard limits on requests per second and tokens per minute: buckets that all clients share.
//!
//! The one for requests holds one second's worth, and never less than one, so that a limit below one a second still
//! lets requests through; the one for tokens holds a minute's worth, as OpenAI's does. A refused request takes nothing
//! from the bucket that refused it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

pub(crate) struct Limit {
    per_second: f64,
    burst: f64,
    bucket: Mutex<Bucket>,
}

struct Bucket {
    left: f64,
    filled_at: Instant,
}

/// What the bucket said, and what it tells the client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Verdict {
    pub(crate) granted: bool,
    pub(crate) limit: u64,
    pub(crate) remaining: u64,
    /// Until the bucket is full again.
    pub(crate) reset: Duration,
    /// Until there is as much as was asked for: zero when granted. What is more than `limit` never is.
    pub(crate) wait: Duration,
}

impl Limit {
    pub(crate) fn per_second(limit: f64, now: Instant) -> Self {
        Self::new(limit, limit.floor().max(1.0), now)
    }

    pub(crate) fn per_minute(limit: u64, now: Instant) -> Self {
        Self::new(limit as f64 / 60.0, limit as f64, now)
    }

    fn new(per_second: f64, burst: f64, now: Instant) -> Self {
        Self { per_second, burst, bucket: Mutex::new(Bucket { left: burst, filled_at: now }) }
    }

    pub(crate) fn take(&self, amount: u64, now: Instant) -> Verdict {
        let amount = amount as f64;
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let since = now.saturating_duration_since(bucket.filled_at);
        bucket.left = (bucket.left + since.as_secs_f64() * self.per_second).min(self.burst);
        bucket.filled_at = bucket.filled_at.max(now);
        let granted = bucket.left >= amount;
        if granted {
            bucket.left -= amount;
        }
        let left = bucket.left;
        drop(bucket);
        Verdict {
            granted,
            limit: self.burst as u64,
            remaining: left as u64,
            reset: self.time_for(self.burst - left),
            wait: if granted { Duration::ZERO } else { self.time_for(amount - left) },
        }
    }

    fn time_for(&self, amount: f64) -> Duration {
        Duration::try_from_secs_f64(amount / self.per_second).unwrap_or(Duration::MAX)
    }
}

impl Verdict {
    /// `Retry-After` knows whole seconds only; too early would be refused again.
    pub(crate) fn retry_after_seconds(&self) -> u64 {
        self.wait.as_secs() + u64::from(self.wait.subsec_nanos() > 0)
    }
}

/// A duration as OpenAI writes it in its rate-limit headers: `17ms`, `8.64s`, `6m0s`.
pub(crate) fn provider_duration(duration: Duration) -> String {
    let (seconds, millis) = (duration.as_secs(), duration.subsec_millis());
    match (seconds / 60, seconds % 60, millis) {
        (0, 0, millis) => format!("{millis}ms"),
        (0, seconds, 0) => format!("{seconds}s"),
        (0, seconds, millis) => {
            format!("{}s", format!("{seconds}.{millis:03}").trim_end_matches('0'))
        }
        (minutes, seconds, _) => format!("{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holds_its_burst_and_no_more() {
        let start = Instant::now();
        let limit = Limit::per_second(5.0, start);
        assert_eq!((0..9).filter(|_| limit.take(1, start).granted).count(), 5);
        let refused = limit.take(1, start);
        assert_eq!(refused.wait, Duration::from_millis(200));
        assert_eq!((refused.remaining, refused.retry_after_seconds()), (0, 1));
        assert!(limit.take(1, start + Duration::from_millis(201)).granted);
        assert!(!limit.take(1, start + Duration::from_millis(202)).granted);
        let later = start + Duration::from_secs(60);
        assert_eq!((0..9).filter(|_| limit.take(1, later).granted).count(), 5);
    }

    #[test]
    fn slower_than_one_a_second_still_lets_requests_through() {
        let start = Instant::now();
        let limit = Limit::per_second(0.1, start);
        assert!(limit.take(1, start).granted);
        let refused = limit.take(1, start + Duration::from_secs(1));
        assert!(!refused.granted);
        assert_eq!(refused.retry_after_seconds(), 9);
        assert!(limit.take(1, start + Duration::from_secs_f64(10.01)).granted);
    }

    #[test]
    fn a_minute_holds_its_tokens_and_fills_evenly() {
        let start = Instant::now();
        let limit = Limit::per_minute(600, start);
        assert!(limit.take(450, start).granted);
        let refused = limit.take(200, start);
        assert_eq!((refused.granted, refused.limit, refused.remaining), (false, 600, 150));
        assert_eq!((refused.wait, refused.reset), (Duration::from_secs(5), Duration::from_secs(45)));
        assert!(limit.take(150, start).granted);
        assert!(limit.take(200, start + Duration::from_secs(21)).granted);
        assert!(!limit.take(601, start + Duration::from_secs(600)).granted);
        assert!(limit.take(600, start + Duration::from_secs(600)).granted);
    }

    #[test]
    fn durations_read_as_the_providers_do() {
        let written = [17, 8_640, 3_000, 360_000].map(Duration::from_millis).map(provider_duration);
        assert_eq!(written, ["17ms", "8.64s", "3s", "6m0s"]);
    }
}
