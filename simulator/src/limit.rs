//! The hard limit on requests per second: a token bucket that all clients share.
//!
//! It holds one second's worth of requests, and never less than one, so that a limit below one a second still lets
//! requests through. A refused request takes nothing from the bucket.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

pub(crate) struct Limit {
    per_second: f64,
    burst: f64,
    bucket: Mutex<Bucket>,
}

struct Bucket {
    tokens: f64,
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
    /// Until there is a token: zero when granted.
    pub(crate) wait: Duration,
}

impl Limit {
    pub(crate) fn new(per_second: f64, now: Instant) -> Self {
        let burst = per_second.floor().max(1.0);
        Self { per_second, burst, bucket: Mutex::new(Bucket { tokens: burst, filled_at: now }) }
    }

    pub(crate) fn take(&self, now: Instant) -> Verdict {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let since = now.saturating_duration_since(bucket.filled_at);
        bucket.tokens = (bucket.tokens + since.as_secs_f64() * self.per_second).min(self.burst);
        bucket.filled_at = bucket.filled_at.max(now);
        let granted = bucket.tokens >= 1.0;
        if granted {
            bucket.tokens -= 1.0;
        }
        let tokens = bucket.tokens;
        drop(bucket);
        Verdict {
            granted,
            limit: self.burst as u64,
            remaining: tokens as u64,
            reset: self.time_for(self.burst - tokens),
            wait: if granted { Duration::ZERO } else { self.time_for(1.0 - tokens) },
        }
    }

    fn time_for(&self, tokens: f64) -> Duration {
        Duration::try_from_secs_f64(tokens / self.per_second).unwrap_or(Duration::MAX)
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
        let limit = Limit::new(5.0, start);
        assert_eq!((0..9).filter(|_| limit.take(start).granted).count(), 5);
        let refused = limit.take(start);
        assert_eq!(refused.wait, Duration::from_millis(200));
        assert_eq!((refused.remaining, refused.retry_after_seconds()), (0, 1));
        assert!(limit.take(start + Duration::from_millis(201)).granted);
        assert!(!limit.take(start + Duration::from_millis(202)).granted);
        let later = start + Duration::from_secs(60);
        assert_eq!((0..9).filter(|_| limit.take(later).granted).count(), 5);
    }

    #[test]
    fn slower_than_one_a_second_still_lets_requests_through() {
        let start = Instant::now();
        let limit = Limit::new(0.1, start);
        assert!(limit.take(start).granted);
        let refused = limit.take(start + Duration::from_secs(1));
        assert!(!refused.granted);
        assert_eq!(refused.retry_after_seconds(), 9);
        assert!(limit.take(start + Duration::from_secs_f64(10.01)).granted);
    }

    #[test]
    fn durations_read_as_the_providers_do() {
        let written = [17, 8_640, 3_000, 360_000].map(Duration::from_millis).map(provider_duration);
        assert_eq!(written, ["17ms", "8.64s", "3s", "6m0s"]);
    }
}
