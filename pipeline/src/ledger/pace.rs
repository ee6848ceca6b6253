//! How fast calls may follow each other, all workers together.
//!
//! Limits are leaky buckets kept as theoretical arrival times (GCRA, ITU-T I.371): places are taken by one addition, and
//! nobody has to poll for them. A worker asks for as many places as it can use soon ([`Ask`]) and gets when they begin; what
//! lies further ahead than [`HORIZON_MS`] is not given away, so that a worker that ends takes little with it, and a pause is
//! soon obeyed by all. What was taken by estimate is settled with the next request (`owed_ms`).
//!
//! A provider whose limit nobody has told is found out by its refusals. Between two of them it let through what it lets
//! through; so the rate after a refusal is a little less than that, and grows from there, slowly first. (In the manner of
//! CUBIC, RFC 9438: near the limit that is known for long, and soon away from one that was a mistake.)
//!
//! `redis/permits.lua` and `redis/refused.lua` do the same on the server's clock.

use std::{collections::HashMap, time::Duration};

/// What is given away lies no further ahead.
pub const HORIZON_MS: f64 = 250.0;
/// Nobody has asked for so long: what was counted before says nothing of now.
const IDLE_MS: f64 = 5_000.0;
/// Whoever waits for a place asks so often, at least.
const ASK_AGAIN_MS: f64 = 2_500.0;
/// A refusal tells what was let through in this time, at least.
const LEAST_INTERVAL_MS: f64 = 1_000.0;
/// Of what was let through before a refusal, so much is tried after it.
const BACK_TO: f64 = 0.95;
/// How a learned rate grows: by the square of the seconds, so that it is 1.05 times as high after 3 s, 1.6 after 10 s.
const GROWTH: f64 = 0.005;
/// A second counts where there were so many calls in it.
const CALLS_PER_SECOND_OF_GROWTH: f64 = 4.0;
/// After so many seconds nothing is left of a learned rate.
const FORGOTTEN_S: f64 = 60.0;

/// A request for places.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ask<'a> {
    /// Whose refusals these calls may meet: a provider and a key.
    pub lane: &'a str,
    /// How many calls are waiting for a place.
    pub calls: u32,
    /// Calls begun since the last request that took no place, because nothing limited them ([`Permits::Free`]).
    pub made: u32,
    /// What limits them; empty: nothing that is known.
    pub buckets: &'a [Bucket],
}

/// One limit, and what a call takes of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bucket {
    /// The same for all who share it.
    pub name: String,
    /// How long the limit needs to let through one of these calls.
    pub call_ms: f64,
    /// What was left unused can be caught up so far.
    pub burst_ms: f64,
    /// What earlier calls took more (or less) than they had a place for.
    pub owed_ms: f64,
}

/// What is given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Permits {
    /// Nothing limits: calls may begin for [`HORIZON_MS`], and are counted with the next request.
    Free,
    /// Places: the first begins in so many milliseconds (below 0: now), each further one `spacing_ms` later.
    Places {
        /// How many.
        count: u32,
        /// Until the first.
        first_ms: f64,
        /// From one to the next.
        spacing_ms: f64,
    },
    /// None yet; ask again then.
    After(Duration),
}

/// The limits of one process.
#[derive(Debug, Default)]
pub(super) struct Pace {
    arrivals_ms: HashMap<String, f64>,
    lanes: HashMap<String, Lane>,
}

/// What is known of a provider and a key.
#[derive(Debug, Default)]
struct Lane {
    paused_until_ms: f64,
    /// Since the last refusal, or since it was asked for after it was idle.
    since_ms: f64,
    asked_ms: f64,
    calls: f64,
    learned: Option<Learned>,
}

/// What a refusal told.
#[derive(Clone, Copy, Debug)]
struct Learned {
    /// Let through in this time.
    calls: f64,
    over_ms: f64,
}

impl Lane {
    /// Calls were begun: before the refusal that all wait after, or since.
    fn count(&mut self, now_ms: f64, calls: f64) {
        match &mut self.learned {
            Some(learned) if now_ms < self.paused_until_ms => learned.calls += calls,
            _ => self.calls += calls,
        }
    }

    /// How long one call takes at the rate that was learned, as it has grown by now.
    fn call_ms(&mut self, now_ms: f64) -> Option<f64> {
        let learned = self.learned?;
        let seconds =
            ((now_ms - self.paused_until_ms) / 1_000.0).min(self.calls / CALLS_PER_SECOND_OF_GROWTH).max(0.0);
        if seconds > FORGOTTEN_S {
            self.learned = None;
            return None;
        }
        let per_ms = BACK_TO * learned.calls.max(0.5) / learned.over_ms * (GROWTH * seconds * seconds).exp();
        Some(1.0 / per_ms)
    }
}

impl Pace {
    pub(super) fn permits(&mut self, now_ms: f64, ask: &Ask<'_>) -> Permits {
        let lane = self.lanes.entry(ask.lane.to_owned()).or_default();
        if now_ms - lane.asked_ms.max(lane.paused_until_ms) > IDLE_MS {
            (lane.since_ms, lane.calls) = (now_ms, 0.0);
        }
        lane.asked_ms = now_ms;
        lane.count(now_ms, f64::from(ask.made));
        for bucket in ask.buckets.iter().filter(|bucket| bucket.owed_ms != 0.0) {
            let arrival_ms = self.arrivals_ms.entry(bucket.name.clone()).or_default();
            *arrival_ms = arrival_ms.max(now_ms - bucket.burst_ms) + bucket.owed_ms;
        }
        if now_ms < lane.paused_until_ms {
            return Permits::After(after(lane.paused_until_ms - now_ms));
        }
        let learned = lane.call_ms(now_ms).map(|call_ms| Bucket {
            name: format!("learned:{}", ask.lane),
            call_ms,
            ..Bucket::default()
        });
        let buckets: Vec<&Bucket> =
            ask.buckets.iter().chain(&learned).filter(|bucket| bucket.call_ms > 0.0).collect();
        if buckets.is_empty() {
            return Permits::Free;
        }
        let mut first_ms = f64::MIN;
        let mut spacing_ms = 0.0_f64;
        for bucket in &buckets {
            let arrival_ms = self.arrivals_ms.entry(bucket.name.clone()).or_default();
            *arrival_ms = arrival_ms.max(now_ms - bucket.burst_ms);
            first_ms = first_ms.max(*arrival_ms);
            spacing_ms = spacing_ms.max(bucket.call_ms);
        }
        let ahead_ms = first_ms - now_ms - HORIZON_MS;
        if ahead_ms > 0.0 {
            return Permits::After(after(ahead_ms.min(ASK_AGAIN_MS)));
        }
        let count = f64::from(ask.calls.max(1)).min((-ahead_ms / spacing_ms).floor() + 1.0);
        for bucket in buckets {
            if let Some(arrival_ms) = self.arrivals_ms.get_mut(&bucket.name) {
                *arrival_ms += count * bucket.call_ms;
            }
        }
        lane.calls += count;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "from 1 to what was asked for"
        )]
        let count = count as u32;
        Permits::Places { count, first_ms: first_ms - now_ms, spacing_ms }
    }

    /// A call was refused: nobody begins one for so long. `made` as in [`Ask`].
    pub(super) fn refused(&mut self, now_ms: f64, lane: &str, wait: Duration, made: u32) {
        let lane = self.lanes.entry(lane.to_owned()).or_default();
        // Those that are refused while all wait already were begun before.
        if lane.learned.is_none() || now_ms >= lane.paused_until_ms {
            let counted_ms = if lane.since_ms > 0.0 { now_ms - lane.since_ms } else { 0.0 };
            let over_ms = counted_ms.max(LEAST_INTERVAL_MS);
            lane.learned = Some(Learned { calls: lane.calls, over_ms });
            (lane.since_ms, lane.calls) = (now_ms, 0.0);
        }
        lane.paused_until_ms = lane.paused_until_ms.max(now_ms + wait.as_secs_f64() * 1_000.0);
        if let Some(learned) = &mut lane.learned {
            learned.calls += f64::from(made) - 1.0;
        }
    }
}

fn after(ms: f64) -> Duration {
    Duration::from_secs_f64(ms.max(1.0) / 1_000.0)
}

#[cfg(test)]
mod tests;
