//! One worker's part in the pace of the fleet: takes places from the ledger, a few at a time, and hands them to its calls.
//!
//! The ledger is asked when a call waits and no place is left, for as many as wait; so it is not asked for each product.
//! What was estimated is settled with the next request, and what a provider says of its limits makes them tighter.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use shelfmill_pipeline::{
    job::{Limits, ModelEndpoint},
    ledger::{Ask, Bucket, HORIZON_MS, Ledger, LedgerError, Permits, RateRefusal},
};
use tokio::time::Instant;

use crate::{
    analysis::backoff,
    model::{LimitHints, Rate},
};

const MINUTE_MS: f64 = 60_000.0;
/// No place lies further ahead.
const HORIZON: Duration = Duration::from_millis(HORIZON_MS as u64);
/// What a delayed request left unused can be caught up. Providers' own buckets are larger.
const BURST_MS: f64 = 100.0;
/// A place that nobody took for so long is given up: the limit has gone on without it.
const STALE: Duration = Duration::from_secs(1);
/// The shortest pause: those that were refused together are told of within it. Providers name less, and none at all.
const LEAST_PAUSE: Duration = Duration::from_millis(250);
/// How much less of the limit may be taken in a response that is to be believed, beside the one believed last: where little
/// is taken, rounding makes rates of nothing.
const AS_GOOD: f64 = 0.9;
/// What was believed counts less with each response.
const FADES: f64 = 0.99;

#[derive(Debug)]
pub(crate) struct Lane {
    name: String,
    limits: Vec<Limit>,
    state: Mutex<State>,
    asking: tokio::sync::Mutex<()>,
    waiting: AtomicU32,
}

/// A limit that the job names.
#[derive(Clone, Debug)]
struct Limit {
    name: String,
    per: Per,
    /// How long it needs to let through one of these.
    ms: f64,
    burst_ms: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Per {
    Request,
    Token,
}

#[derive(Debug, Default)]
struct State {
    left: u32,
    next: Option<Instant>,
    spacing: Duration,
    /// What a place was asked for.
    tokens_each: u64,
    free_until: Option<Instant>,
    not_before: Option<Instant>,
    /// Calls that took no place, since the ledger was asked.
    made: u32,
    /// Tokens that calls took more than they had a place for.
    owed_tokens: i64,
    answers: u64,
    /// Since the last answer, and each pause once.
    refused_in_row: u32,
    told_requests: Told,
    told_tokens: Told,
    is_clamped: bool,
}

/// What a provider says of one of its limits.
#[derive(Debug, Default)]
struct Told {
    per_minute: Option<f64>,
    missing: f64,
}

/// When a call may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    At(Instant),
    /// Not before; ask again then.
    NotBefore(Instant),
}

impl Lane {
    /// For one key of an endpoint. `name` is the lane's own, and limits are shared by their names.
    pub(crate) fn new(name: String, limits: &Limits, at: &ModelEndpoint) -> Self {
        let named = |what: &str| format!("{}:{what}", at.name);
        let limit = |name: String, per, rate: Option<u32>| {
            Some(Limit { name, per, ms: MINUTE_MS / f64::from(rate?.max(1)), burst_ms: BURST_MS })
        };
        #[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
        let delay = (limits.delay_ms > 0).then(|| Limit {
            name: "delay".to_owned(),
            per: Per::Request,
            ms: limits.delay_ms as f64,
            burst_ms: 0.0,
        });
        let limits = [
            limit("requests".to_owned(), Per::Request, limits.requests_per_minute),
            limit("tokens".to_owned(), Per::Token, limits.tokens_per_minute),
            limit(named("requests"), Per::Request, at.requests_per_minute),
            limit(named("tokens"), Per::Token, at.tokens_per_minute),
            delay,
        ];
        Self {
            name,
            limits: limits.into_iter().flatten().collect(),
            state: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
            waiting: AtomicU32::new(0),
        }
    }

    /// Before this, no call begins here, as far as is known; `None`: now.
    pub(crate) fn opens_at(&self, now: Instant) -> Option<Instant> {
        self.state().not_before.filter(|until| *until > now)
    }

    /// A place for a call that will probably take so many tokens.
    pub(crate) async fn place(&self, tokens: u64, ledger: &dyn Ledger) -> Result<When, LedgerError> {
        self.place_within(HORIZON.saturating_mul(2), tokens, ledger).await
    }

    /// The same, if that begins within so long; else no place is taken.
    pub(crate) async fn place_within(
        &self,
        patience: Duration,
        tokens: u64,
        ledger: &dyn Ledger,
    ) -> Result<When, LedgerError> {
        let _waits = Waiting::on(&self.waiting);
        loop {
            if let Some(when) = self.take(patience, tokens) {
                return Ok(when);
            }
            let _turn = self.asking.lock().await;
            // Somebody else may have asked meanwhile.
            if let Some(when) = self.take(patience, tokens) {
                return Ok(when);
            }
            let (made, owed_tokens, buckets) = self.to_ask(tokens);
            let calls = self.waiting.load(Ordering::Relaxed);
            let ask = Ask { lane: &self.name, calls, made, buckets: &buckets };
            let permits = ledger.permits(&ask).await?;
            self.given(permits, tokens, (made, owed_tokens));
        }
    }

    fn take(&self, patience: Duration, tokens: u64) -> Option<When> {
        let now = Instant::now();
        let mut state = self.state();
        if let Some(until) = state.not_before.filter(|until| *until > now) {
            return Some(When::NotBefore(until));
        }
        if state.free_until.is_some_and(|until| now < until) {
            state.made += 1;
            return Some(When::At(now));
        }
        let start = state.next.filter(|_| state.left > 0)?;
        if now.saturating_duration_since(start) > STALE {
            state.left = 0;
            return None;
        }
        if start > now + patience {
            return Some(When::NotBefore(start));
        }
        state.left -= 1;
        state.next = Some(start + state.spacing);
        let owed = signed(tokens) - signed(state.tokens_each);
        state.owed_tokens = state.owed_tokens.saturating_add(owed);
        Some(When::At(start))
    }

    /// What the ledger is to be told, and asked for calls of so many tokens.
    fn to_ask(&self, tokens: u64) -> (u32, i64, Vec<Bucket>) {
        let mut state = self.state();
        let told = |what, per, told: &Told| {
            let per_minute = told.per_minute?;
            let name = format!("{}:told {what}", self.name);
            Some(Limit { name, per, ms: MINUTE_MS / per_minute, burst_ms: BURST_MS })
        };
        let told = [
            told("requests", Per::Request, &state.told_requests),
            told("tokens", Per::Token, &state.told_tokens),
        ];
        let mut largest_ms = 0.0_f64;
        #[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
        let bucket = |limit: Limit| {
            let (amount, owed) = match limit.per {
                Per::Request => (1.0, 0.0),
                Per::Token => (tokens as f64, state.owed_tokens as f64),
            };
            if limit.per == Per::Token {
                largest_ms = largest_ms.max(amount * limit.ms);
            }
            Bucket {
                name: limit.name,
                // More than a minute's worth never comes together.
                call_ms: if limit.per == Per::Token { (amount * limit.ms).min(MINUTE_MS) } else { limit.ms },
                burst_ms: limit.burst_ms,
                owed_ms: owed * limit.ms,
            }
        };
        let buckets = self.limits.iter().cloned().chain(told.into_iter().flatten()).map(bucket).collect();
        let asked = (state.made, state.owed_tokens, buckets);
        if largest_ms > MINUTE_MS && !std::mem::replace(&mut state.is_clamped, true) {
            tracing::warn!(
                tokens,
                "a call takes more tokens than the limit lets through in a minute; it is made all the same, with a minute \
                 to itself"
            );
        }
        asked
    }

    fn given(&self, permits: Permits, tokens: u64, (made, owed_tokens): (u32, i64)) {
        let now = Instant::now();
        let mut state = self.state();
        state.made = state.made.saturating_sub(made);
        state.owed_tokens = state.owed_tokens.saturating_sub(owed_tokens);
        match permits {
            Permits::Free => state.free_until = Some(now + ms(HORIZON_MS)),
            Permits::After(wait) => state.not_before = state.not_before.max(Some(now + wait)),
            Permits::Places { count, first_ms, spacing_ms } => {
                state.left = count;
                let past = ms(-first_ms);
                state.next = Some(now.checked_sub(past).unwrap_or(now) + ms(first_ms));
                (state.spacing, state.tokens_each) = (ms(spacing_ms), tokens);
            }
        }
    }

    /// A call for which so many tokens were expected has taken so many.
    pub(crate) fn settle(&self, expected: u64, taken: u64) {
        if self.limits.iter().any(|limit| limit.per == Per::Token)
            || self.state().told_tokens.per_minute.is_some()
        {
            let mut state = self.state();
            state.owed_tokens = state.owed_tokens.saturating_add(signed(taken) - signed(expected));
        }
    }

    /// What a response says of the provider's limits; a call here takes about so many tokens.
    #[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
    pub(crate) fn told(&self, hints: &LimitHints, tokens: u64) {
        if hints.requests.is_none() && hints.tokens.is_none() {
            return;
        }
        let mut state = self.state();
        state.told_requests.hear(hints.requests);
        state.told_tokens.hear(hints.tokens);
        let waits = [(hints.requests, 1.0), (hints.tokens, tokens as f64)]
            .map(|(rate, amount)| rate.map_or(Duration::ZERO, |rate| rate.wait_for(amount)));
        let wait = waits[0].max(waits[1]);
        if !wait.is_zero() {
            state.not_before = state.not_before.max(Some(Instant::now() + wait));
        }
        if state.told_requests.per_minute.is_some() || state.told_tokens.per_minute.is_some() {
            // From now on places are to be asked for.
            state.free_until = None;
        }
    }

    /// The provider has answered a call.
    pub(crate) fn answered(&self) {
        let mut state = self.state();
        state.answers += 1;
        state.refused_in_row = 0;
    }

    /// How many calls the provider has answered.
    pub(crate) fn answers(&self) -> u64 {
        self.state().answers
    }

    /// The provider has refused a call for its rate, which was begun so long ago: nobody begins one for as long as it asks
    /// for.
    pub(crate) async fn refused(
        &self,
        asked: Option<Duration>,
        age: Duration,
        ledger: &dyn Ledger,
    ) -> Result<(), LedgerError> {
        let (wait, made) = {
            let mut state = self.state();
            let now = Instant::now();
            // Those that are refused together count once.
            if state.not_before.is_none_or(|until| until <= now) {
                state.refused_in_row += 1;
            }
            let wait = asked.unwrap_or_else(|| backoff(state.refused_in_row)).max(LEAST_PAUSE);
            if state.not_before.is_none_or(|until| until <= now) {
                tracing::warn!(
                    endpoint = self.name,
                    pause_ms = wait.as_millis(),
                    "the provider asks for fewer requests"
                );
            }
            state.not_before = state.not_before.max(Some(now + wait));
            (state.left, state.free_until) = (0, None);
            (wait, std::mem::take(&mut state.made))
        };
        ledger.refused(&self.name, &RateRefusal { wait, age, made }).await
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Told {
    fn hear(&mut self, rate: Option<Rate>) {
        let Some((rate, per_minute)) = rate.and_then(|rate| Some((rate, rate.per_minute()?))) else { return };
        if rate.missing() >= self.missing * AS_GOOD {
            *self = Self { per_minute: Some(per_minute), missing: rate.missing() };
        } else {
            // Not for ever: limits change.
            self.missing *= FADES;
        }
    }
}

fn signed(tokens: u64) -> i64 {
    i64::try_from(tokens).unwrap_or(i64::MAX)
}

fn ms(ms: f64) -> Duration {
    Duration::try_from_secs_f64(ms / 1_000.0).unwrap_or_default()
}

/// One who waits, until it is dropped.
struct Waiting<'l>(&'l AtomicU32);

impl<'l> Waiting<'l> {
    fn on(count: &'l AtomicU32) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
