//! How fast calls may follow each other, all workers together.
//!
//! Limits are leaky buckets kept as theoretical arrival times (GCRA, ITU-T I.371): places are taken by one addition, and
//! nobody has to poll for them. A worker asks for as many places as it can use soon ([`Ask`]) and gets when they begin; what
//! lies further ahead than [`HORIZON_MS`] is not given away, so that a worker that ends takes little with it, and a pause is
//! soon obeyed by all. What was taken by estimate is settled with the next request (`owed_ms`).
//!
//! A provider whose limit nobody has told is found out by its refusals. One alone says little: some servers refuse a call now
//! and then whatever the rate. Where several come together, it let through since the last ones what it lets through; so the
//! rate is a little less than that from then on, and grows, slowly first. (In the manner of CUBIC, RFC 9438: near the limit
//! that is known for long, and soon away from one that was a mistake.)
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
/// Of the rate before a refusal, so much at least...
const AT_LEAST: f64 = 0.8;
/// ...and of what it has grown by, no more than that counts: a rate that nobody needed was not tried.
const MOST_GROWTH: f64 = 4.0;
/// A call in ten seconds: a provider that lets through less is waited for.
const LEAST_RATE: f64 = 0.000_1;
/// Refusals with so few calls between them belong together.
const CLOSE_CALLS: f64 = 4.0;
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

/// A call that a provider has refused for its rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateRefusal {
    /// How long it wants to be left alone.
    pub wait: Duration,
    /// How long ago the call was begun.
    pub age: Duration,
    /// As in [`Ask`].
    pub made: u32,
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
    asked_ms: f64,
    /// Calls begun, and since when: since the last refusal that taught, or since it was asked for after it was idle.
    calls: f64,
    since_ms: f64,
    /// Calls begun since the last refusal.
    since_refusal: Option<f64>,
    /// The refusal for which all wait now, or waited last.
    event: Option<Event>,
    /// Calls in a millisecond, as they were when it was learned, and since when they may grow.
    rate: Option<(f64, f64)>,
}

/// What a refusal, and those that came with it, tell.
#[derive(Clone, Copy, Debug)]
struct Event {
    /// Let through in this time.
    calls: f64,
    over_ms: f64,
    /// At least this is tried after it.
    floor: f64,
    teaches: bool,
}

impl Lane {
    /// Calls were begun: before the refusal that all wait after, or since.
    fn count(&mut self, now_ms: f64, calls: f64) {
        match &mut self.event {
            Some(event) if now_ms < self.paused_until_ms => {
                event.calls += calls;
                let from_ms = self.rate.map_or(self.paused_until_ms, |(_, from_ms)| from_ms);
                self.learn(from_ms);
            }
            _ => {
                self.calls += calls;
                self.since_refusal = self.since_refusal.map(|since| since + calls);
            }
        }
    }

    /// A provider that lets nothing through says nothing of its rate.
    fn learn(&mut self, from_ms: f64) {
        if let Some(event) = self.event.filter(|event| event.teaches && event.calls >= 1.0) {
            let rate = (BACK_TO * event.calls / event.over_ms).max(event.floor).max(LEAST_RATE);
            self.rate = Some((rate, from_ms));
        }
    }

    /// Calls in a millisecond, as they have grown by now; forgets what is long ago.
    fn grown_rate(&mut self, now_ms: f64) -> Option<f64> {
        self.growth(now_ms).map(|(rate, growth)| rate * growth)
    }

    fn growth(&mut self, now_ms: f64) -> Option<(f64, f64)> {
        let (rate, from_ms) = self.rate?;
        let seconds = ((now_ms - from_ms) / 1_000.0).min(self.calls / CALLS_PER_SECOND_OF_GROWTH);
        if seconds > FORGOTTEN_S {
            self.rate = None;
        }
        self.rate.map(|_| (rate, (GROWTH * seconds.max(0.0).powi(2)).exp()))
    }

    fn refused(&mut self, now_ms: f64, refusal: &RateRefusal) {
        let made = f64::from(refusal.made);
        let paused_before_ms = self.paused_until_ms;
        self.paused_until_ms = paused_before_ms.max(now_ms + in_ms(refusal.wait));
        if paused_before_ms <= now_ms && now_ms - in_ms(refusal.age) < paused_before_ms {
            // Begun before all waited, and told only now: what there was to learn of it was learned.
            (self.calls, self.since_refusal) =
                (self.calls + made, self.since_refusal.map(|since| since + made));
            return;
        }
        let is_close = self.since_refusal.is_some_and(|since| since + made <= CLOSE_CALLS);
        let event = match &mut self.event {
            // Those that are refused while all wait already were begun before.
            Some(event) if now_ms < paused_before_ms => {
                if !event.teaches {
                    (event.teaches, self.since_ms, self.calls) = (true, now_ms, 0.0);
                }
                event
            }
            _ => {
                let counted_ms = if self.since_ms > 0.0 { now_ms - self.since_ms } else { 0.0 };
                let over_ms = counted_ms.max(LEAST_INTERVAL_MS);
                let floor = self
                    .growth(now_ms)
                    .map_or(0.0, |(rate, growth)| rate * growth.min(MOST_GROWTH) * AT_LEAST);
                let event = Event { calls: self.calls, over_ms, floor, teaches: is_close };
                if is_close {
                    (self.since_ms, self.calls) = (now_ms, 0.0);
                }
                self.event.insert(event)
            }
        };
        event.calls += made - 1.0;
        self.since_refusal = Some(0.0);
        self.learn(self.paused_until_ms);
    }
}

impl Pace {
    pub(super) fn permits(&mut self, now_ms: f64, ask: &Ask<'_>) -> Permits {
        let lane = self.lanes.entry(ask.lane.to_owned()).or_default();
        let idle_ms = now_ms - lane.asked_ms.max(lane.paused_until_ms);
        if idle_ms > IDLE_MS {
            (lane.since_ms, lane.calls) = (now_ms, 0.0);
        }
        if idle_ms > FORGOTTEN_S * 1_000.0 {
            lane.rate = None;
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
        let learned = lane.grown_rate(now_ms).map(|rate| Bucket {
            name: format!("learned:{}", ask.lane),
            call_ms: 1.0 / rate,
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
        lane.count(now_ms, count);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "from 1 to what was asked for"
        )]
        let count = count as u32;
        Permits::Places { count, first_ms: first_ms - now_ms, spacing_ms }
    }

    /// A call was refused: nobody begins one for so long.
    pub(super) fn refused(&mut self, now_ms: f64, lane: &str, refusal: &RateRefusal) {
        self.lanes.entry(lane.to_owned()).or_default().refused(now_ms, refusal);
    }
}

fn in_ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

fn after(ms: f64) -> Duration {
    Duration::from_secs_f64(ms.max(1.0) / 1_000.0)
}

#[cfg(test)]
mod tests;
