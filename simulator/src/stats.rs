//! What the simulator has been asked and what it has answered.
//!
//! A call counts from the moment its request has been received; it becomes an answer at most once, when a complete and
//! valid one is handed to the socket. [`Call`] is the proof of that: it is used up by the answer, and dropping it
//! unanswered (a fault, a client that left) only ends the call. Memory is fixed, but for the count by product.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::faults::Fault;

/// Enough that calls on a few cores hardly ever wait for each other.
const SHARDS: usize = 64;

pub(crate) struct Stats {
    calls: AtomicU64,
    answers: AtomicU64,
    rejected: AtomicU64,
    in_flight: AtomicU64,
    max_in_flight: AtomicU64,
    over_limit: AtomicU64,
    faults: [AtomicU64; Fault::COUNT],
    products: Option<Products>,
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
}

/// A call that has been received and not yet answered.
pub(crate) struct Call {
    stats: Arc<Stats>,
    product: Option<Arc<Tally>>,
    era: u64,
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
            over_limit: AtomicU64::new(0),
            faults: Default::default(),
            products,
            era: AtomicU64::new(0),
        })
    }

    pub(crate) fn receive(self: &Arc<Self>, product: &str) -> Call {
        self.calls.fetch_add(1, Relaxed);
        let in_flight = self.in_flight.fetch_add(1, Relaxed) + 1;
        self.max_in_flight.fetch_max(in_flight, Relaxed);
        let tally = self.products.as_ref().map(|products| products.tally(product));
        if let Some(tally) = &tally {
            tally.calls.fetch_add(1, Relaxed);
        }
        Call { stats: Arc::clone(self), product: tally, era: self.era.load(Relaxed) }
    }

    /// Clears all but the calls in flight: those are a fact, not a count.
    pub(crate) fn reset(&self) {
        self.era.fetch_add(1, Relaxed);
        let counters = [&self.calls, &self.answers, &self.rejected, &self.over_limit];
        for counter in counters.into_iter().chain(&self.faults) {
            counter.store(0, Relaxed);
        }
        self.max_in_flight.store(self.in_flight.load(Relaxed), Relaxed);
        for shard in self.products.iter().flat_map(|products| &products.shards) {
            lock(shard).clear();
        }
    }

    pub(crate) fn report(&self, by_product: bool) -> Report {
        let named = Fault::ALL.map(|fault| (fault.name(), self.faults[fault as usize].load(Relaxed)));
        let mut faults: BTreeMap<_, _> = named.into_iter().collect();
        faults.insert("over_limit", self.over_limit.load(Relaxed));
        Report {
            calls: self.calls.load(Relaxed),
            answers: self.answers.load(Relaxed),
            rejected: self.rejected.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            max_in_flight: self.max_in_flight.load(Relaxed),
            faults,
            products: self.products.as_ref().map(Products::len),
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
                report.insert(product.clone(), ProductReport { calls, answers });
            }
        }
        report
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Call {
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

    pub(crate) fn over_limit(&self) {
        self.stats.over_limit.fetch_add(1, Relaxed);
    }

    /// The request itself was wrong: key, JSON, schema.
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
    faults: BTreeMap<&'static str, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    products: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    by_product: Option<BTreeMap<Box<str>, ProductReport>>,
}

#[derive(Serialize)]
struct ProductReport {
    calls: u64,
    answers: u64,
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
        let by_product = json!({"a": {"calls": 1, "answers": 1}, "b": {"calls": 1, "answers": 0}});
        assert_eq!(told["by_product"], by_product);
        drop(second);
        assert_eq!(report(&stats, false)["in_flight"], 0);
        assert_eq!(report(&stats, false)["products"], 2);
        assert!(report(&stats, false).get("by_product").is_none());
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
    fn products_are_not_kept_unless_asked_for() {
        let stats = Stats::new(false);
        stats.receive("a").answered();
        let told = report(&stats, true);
        assert_eq!(told["answers"], 1);
        assert!(told.get("products").is_none() && told.get("by_product").is_none());
    }
}
