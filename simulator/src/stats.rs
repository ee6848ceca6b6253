//! What the simulator has been asked and what it has answered.
//!
//! A call counts from the moment its request has been received; it becomes an answer at most once, when a complete and
//! valid one is handed to the socket. [`Call`] is the proof of that: it is used up by the answer, and dropping it
//! unanswered (a fault, a client that left) only ends the call. Tokens count as a provider bills them: for every
//! completion that is handed to the socket, sound or not. Memory is fixed, but for the count by product.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;

use crate::faults::Fault;

/// Calls of models beyond these are not told apart.
const MAX_MODELS: usize = 64;
/// Enough that calls on a few cores hardly ever wait for each other.
const SHARDS: usize = 64;

/// What a completion says it cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
    pub(crate) total_tokens: u64,
}

/// Why a call did not get what it asked for, where neither chance nor the request's form is the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limited {
    OverLimit,
    OverTokenLimit,
    OutOfQuota,
    Overloaded,
    AtCeiling,
}

impl Limited {
    const COUNT: usize = 5;

    const ALL: [Self; Self::COUNT] =
        [Self::OverLimit, Self::OverTokenLimit, Self::OutOfQuota, Self::Overloaded, Self::AtCeiling];

    /// As `/stats` calls it, among the faults.
    fn name(self) -> &'static str {
        match self {
            Self::OverLimit => "over_limit",
            Self::OverTokenLimit => "over_token_limit",
            Self::OutOfQuota => "out_of_quota",
            Self::Overloaded => "overloaded",
            Self::AtCeiling => "at_ceiling",
        }
    }
}

pub(crate) struct Stats {
    calls: AtomicU64,
    answers: AtomicU64,
    rejected: AtomicU64,
    in_flight: AtomicU64,
    max_in_flight: AtomicU64,
    tokens: Tokens,
    limited: [AtomicU64; Limited::COUNT],
    faults: [AtomicU64; Fault::COUNT],
    products: Option<Products>,
    models: Mutex<BTreeMap<Box<str>, u64>>,
    /// Counts the resets: an answer to a call from before one is not an answer of the time after it.
    era: AtomicU64,
}

struct Products {
    shards: [Mutex<HashMap<Box<str>, Arc<Tally>>>; SHARDS],
    hasher: RandomState,
}

#[derive(Default)]
struct Tally {
    calls: AtomicU64,
    answers: AtomicU64,
    tokens: Tokens,
}

#[derive(Default)]
struct Tokens {
    prompt: AtomicU64,
    completion: AtomicU64,
    unseen: AtomicU64,
}

/// A call that has been received and not yet answered.
pub(crate) struct Call {
    stats: Arc<Stats>,
    product: Option<Arc<Tally>>,
    era: u64,
    number: u64,
    /// One of the places there are for calls at once, if they are limited.
    place: Option<OwnedSemaphorePermit>,
}

impl Stats {
    pub(crate) fn new(count_by_product: bool) -> Arc<Self> {
        let products = count_by_product.then(|| Products {
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
        });
        Arc::new(Self {
            calls: AtomicU64::new(0),
            answers: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            max_in_flight: AtomicU64::new(0),
            tokens: Tokens::default(),
            limited: Default::default(),
            faults: Default::default(),
            products,
            models: Mutex::default(),
            era: AtomicU64::new(0),
        })
    }

    pub(crate) fn receive(self: &Arc<Self>, product: &str) -> Call {
        let number = self.calls.fetch_add(1, Relaxed) + 1;
        let in_flight = self.in_flight.fetch_add(1, Relaxed) + 1;
        self.max_in_flight.fetch_max(in_flight, Relaxed);
        let tally = self.products.as_ref().map(|products| products.tally(product));
        if let Some(tally) = &tally {
            tally.calls.fetch_add(1, Relaxed);
        }
        let era = self.era.load(Relaxed);
        Call { stats: Arc::clone(self), product: tally, era, number, place: None }
    }

    /// A call that was received asks for this model. Counted where products are.
    pub(crate) fn asked_of(&self, model: &str) {
        if self.products.is_none() {
            return;
        }
        let mut models = lock(&self.models);
        if let Some(calls) = models.get_mut(model) {
            *calls += 1;
        } else if models.len() < MAX_MODELS {
            models.insert(model.into(), 1);
        }
    }

    /// Clears all but the calls in flight: those are a fact, not a count.
    pub(crate) fn reset(&self) {
        self.era.fetch_add(1, Relaxed);
        let Tokens { prompt, completion, unseen } = &self.tokens;
        let counters = [&self.calls, &self.answers, &self.rejected, prompt, completion, unseen];
        for counter in counters.into_iter().chain(&self.limited).chain(&self.faults) {
            counter.store(0, Relaxed);
        }
        self.max_in_flight.store(self.in_flight.load(Relaxed), Relaxed);
        for shard in self.products.iter().flat_map(|products| &products.shards) {
            lock(shard).clear();
        }
        lock(&self.models).clear();
    }

    pub(crate) fn report(&self, by_product: bool) -> Report {
        let named = Fault::ALL.map(|fault| (fault.name(), self.faults[fault as usize].load(Relaxed)));
        let limited =
            Limited::ALL.map(|limited| (limited.name(), self.limited[limited as usize].load(Relaxed)));
        let faults = named.into_iter().chain(limited).collect();
        Report {
            calls: self.calls.load(Relaxed),
            answers: self.answers.load(Relaxed),
            rejected: self.rejected.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            max_in_flight: self.max_in_flight.load(Relaxed),
            tokens: self.tokens.report(),
            faults,
            products: self.products.as_ref().map(Products::len),
            by_model: self.products.as_ref().map(|_| lock(&self.models).clone()),
            by_product: self.products.as_ref().filter(|_| by_product).map(Products::report),
        }
    }
}

impl Products {
    fn tally(&self, product: &str) -> Arc<Tally> {
        let shard = self.hasher.hash_one(product) as usize % SHARDS;
        let mut shard = lock(&self.shards[shard]);
        match shard.get(product) {
            Some(tally) => Arc::clone(tally),
            None => Arc::clone(shard.entry(product.into()).or_default()),
        }
    }

    fn len(&self) -> u64 {
        self.shards.iter().map(|shard| lock(shard).len() as u64).sum()
    }

    fn report(&self) -> BTreeMap<Box<str>, ProductReport> {
        let mut report = BTreeMap::new();
        for shard in &self.shards {
            for (product, tally) in lock(shard).iter() {
                let (calls, answers) = (tally.calls.load(Relaxed), tally.answers.load(Relaxed));
                let tokens = tally.tokens.report();
                report.insert(product.clone(), ProductReport { calls, answers, tokens });
            }
        }
        report
    }
}

impl Tokens {
    fn add(&self, usage: Usage) {
        self.prompt.fetch_add(usage.prompt_tokens, Relaxed);
        self.completion.fetch_add(usage.completion_tokens, Relaxed);
    }

    fn report(&self) -> TokenReport {
        TokenReport {
            prompt_tokens: self.prompt.load(Relaxed),
            completion_tokens: self.completion.load(Relaxed),
            unseen_tokens: self.unseen.load(Relaxed),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Call {
    /// From 1, since the start or the last reset.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Keeps `place` until the call ends.
    pub(crate) fn take_place(&mut self, place: OwnedSemaphorePermit) {
        self.place = Some(place);
    }

    /// A completion has been handed to the socket, whole.
    pub(crate) fn billed(&self, usage: Usage) {
        for tokens in self.tokens() {
            tokens.add(usage);
        }
    }

    /// A completion is about to be cut off: its client pays for it and never learns how much.
    pub(crate) fn billed_unseen(&self, usage: Usage) {
        for tokens in self.tokens() {
            tokens.unseen.fetch_add(usage.total_tokens, Relaxed);
        }
    }

    fn tokens(&self) -> impl Iterator<Item = &Tokens> {
        let of_this_era = self.era == self.stats.era.load(Relaxed);
        let product = self.product.as_ref().map(|product| &product.tokens);
        of_this_era.then_some(&self.stats.tokens).into_iter().chain(product)
    }

    /// A complete and valid answer has been handed to the socket.
    pub(crate) fn answered(self) {
        if self.era == self.stats.era.load(Relaxed) {
            self.stats.answers.fetch_add(1, Relaxed);
        }
        if let Some(product) = &self.product {
            product.answers.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn met(&self, fault: Fault) {
        self.stats.faults[fault as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn limited(&self, limited: Limited) {
        self.stats.limited[limited as usize].fetch_add(1, Relaxed);
    }

    /// The request itself was wrong: key, JSON, model, response format, size, schema.
    pub(crate) fn rejected(&self) {
        self.stats.rejected.fetch_add(1, Relaxed);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.stats.in_flight.fetch_sub(1, Relaxed);
    }
}

/// The body of `GET /stats`.
#[derive(Serialize)]
pub(crate) struct Report {
    calls: u64,
    answers: u64,
    rejected: u64,
    in_flight: u64,
    max_in_flight: u64,
    #[serde(flatten)]
    tokens: TokenReport,
    faults: BTreeMap<&'static str, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    products: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    by_model: Option<BTreeMap<Box<str>, u64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    by_product: Option<BTreeMap<Box<str>, ProductReport>>,
}

#[derive(Serialize)]
struct ProductReport {
    calls: u64,
    answers: u64,
    #[serde(flatten)]
    tokens: TokenReport,
}

#[derive(Serialize)]
struct TokenReport {
    prompt_tokens: u64,
    completion_tokens: u64,
    unseen_tokens: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn report(stats: &Stats, by_product: bool) -> Value {
        serde_json::to_value(stats.report(by_product)).unwrap()
    }

    #[test]
    fn calls_answers_and_faults_are_told_apart() {
        let stats = Stats::new(true);
        let (first, second) = (stats.receive("a"), stats.receive("b"));
        second.met(Fault::Hung);
        first.answered();
        let told = report(&stats, true);
        assert_eq!(told["calls"], 2);
        assert_eq!(told["answers"], 1);
        assert_eq!((&told["in_flight"], &told["max_in_flight"]), (&json!(1), &json!(2)));
        assert_eq!(told["faults"]["hung"], 1);
        let by_product = &told["by_product"];
        assert_eq!((&by_product["a"]["calls"], &by_product["a"]["answers"]), (&json!(1), &json!(1)));
        assert_eq!((&by_product["b"]["calls"], &by_product["b"]["answers"]), (&json!(1), &json!(0)));
        drop(second);
        assert_eq!(report(&stats, false)["in_flight"], 0);
        assert_eq!(report(&stats, false)["products"], 2);
        assert!(report(&stats, false).get("by_product").is_none());
    }

    #[test]
    fn tokens_add_up_in_all_and_by_product() {
        let usage = |prompt_tokens, completion_tokens| Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
        };
        let stats = Stats::new(true);
        stats.receive("a").billed(usage(100, 10));
        stats.receive("b").billed(usage(200, 20));
        stats.receive("b").billed_unseen(usage(200, 30));
        let old = stats.receive("b");
        let told = report(&stats, true);
        let tokens = |told: &Value| {
            ["prompt_tokens", "completion_tokens", "unseen_tokens"].map(|name| told[name].as_u64().unwrap())
        };
        assert_eq!(tokens(&told), [300, 30, 230]);
        assert_eq!(tokens(&told["by_product"]["a"]), [100, 10, 0]);
        assert_eq!(tokens(&told["by_product"]["b"]), [200, 20, 230]);
        stats.reset();
        old.billed(usage(7, 7));
        assert_eq!(tokens(&report(&stats, true)), [0, 0, 0]);
    }

    #[test]
    fn calls_are_numbered_from_the_last_reset() {
        let stats = Stats::new(false);
        assert_eq!((stats.receive("a").number(), stats.receive("a").number()), (1, 2));
        stats.reset();
        assert_eq!(stats.receive("a").number(), 1);
    }

    #[test]
    fn a_reset_forgets_answers_to_older_calls() {
        let stats = Stats::new(true);
        let old = stats.receive("a");
        stats.reset();
        assert_eq!(report(&stats, true)["max_in_flight"], 1);
        old.answered();
        let told = report(&stats, true);
        assert_eq!((&told["calls"], &told["answers"], &told["in_flight"]), (&json!(0), &json!(0), &json!(0)));
        assert_eq!(told["by_product"], json!({}));
    }

    #[test]
    fn calls_are_counted_by_model() {
        let stats = Stats::new(true);
        for model in ["small", "big", "small"] {
            stats.asked_of(model);
        }
        assert_eq!(report(&stats, false)["by_model"], json!({"big": 1, "small": 2}));
        (0..2 * MAX_MODELS).for_each(|number| stats.asked_of(&number.to_string()));
        assert_eq!(report(&stats, false)["by_model"].as_object().unwrap().len(), MAX_MODELS);
        stats.reset();
        assert_eq!(report(&stats, false)["by_model"], json!({}));
    }

    #[test]
    fn products_are_not_kept_unless_asked_for() {
        let stats = Stats::new(false);
        stats.receive("a").answered();
        let told = report(&stats, true);
        assert_eq!(told["answers"], 1);
        assert!(["products", "by_model", "by_product"].iter().all(|name| told.get(name).is_none()));
    }
}
