//! The ways to the model: each endpoint with each of its keys.
//!
//! A call takes the way whose turn it is, by weight, among those that can take a call now; where none can, it waits for the
//! first that will. A way that is not there (its breaker is open) or may not be used any more (wrong key, no money, no such
//! model) is left out, and the others take its share. Only where every way is closed for good does the run pause.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, atomic::AtomicBool};

use anyhow::Context as _;
use secrecy::SecretString;
use shelfmill_pipeline::{
    failure::FailureClass,
    identity::IdHash,
    job::{Job, Llm, ModelEndpoint},
    ledger::Halt,
};
use tokio::time::Instant;

use crate::{
    NoKey, WorkerConfig,
    estimate::Estimator,
    hedge::Latencies,
    model::{CallFailure, Endpoint, Key},
    refusals::{Refusals, Whose},
};
use breaker::Breaker;
pub(crate) use breaker::{Pass, is_outage};
use gate::Gate;
pub(crate) use gate::Place;
use lane::Lane;
pub(crate) use lane::When;

mod breaker;
mod gate;
mod lane;

/// One endpoint, with one of its keys.
pub(crate) struct Route {
    /// In the list of all.
    pub(crate) index: usize,
    pub(crate) server: Arc<Server>,
    pub(crate) key: Key,
    pub(crate) lane: Lane,
    pub(crate) gate: Arc<Gate>,
    pub(crate) breaker: Breaker,
    refusals: Refusals,
    /// Why it cannot be used any more.
    closed: OnceLock<Halt>,
    weight: f64,
    is_first_key: bool,
}

/// What the keys of an endpoint share.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) endpoint: Endpoint,
    pub(crate) estimator: Estimator,
    pub(crate) latencies: Latencies,
}

impl Server {
    pub(crate) const fn at(&self) -> &ModelEndpoint {
        self.endpoint.at()
    }
}

pub(crate) struct Routes {
    all: Vec<Arc<Route>>,
    /// Smooth weighted round robin: how long each has been owed a turn.
    turns: Mutex<Vec<f64>>,
}

/// Which way a call takes.
pub(crate) enum Choice {
    Go(Arc<Route>, Pass),
    /// None can be taken before.
    NotBefore(Instant),
    /// None at all, ever.
    Closed(Halt),
    /// None of those that suit the call.
    NoneSuits,
}

impl Routes {
    pub(crate) fn new(
        config: &WorkerConfig,
        job: &Job,
        concurrency: usize,
        whose: Whose,
    ) -> anyhow::Result<Self> {
        let endpoints = job.llm.endpoints();
        let has_any_answered = Arc::new(AtomicBool::new(false));
        let mut routes: Vec<Route> = Vec::new();
        for at in endpoints {
            let endpoint = Endpoint::new(at, job)?;
            let at = endpoint.at().clone();
            let estimator = Estimator::new(&at.model, endpoint.host(), Some(&job.output.schema));
            let mut keys = keys(config, &at)?;
            if keys.is_empty() {
                if endpoint.is_openai() {
                    return Err(NoKey.into());
                }
                keys.push(Key::default());
            }
            let share = f64::from(at.weight) / f64::from(u32::try_from(keys.len())?);
            let server =
                Arc::new(Server { endpoint, estimator, latencies: Latencies::new(job.limits.hedge_after)? });
            // Providers have limits for each of their models.
            let of_model = |name| if whose == Whose::OfFew { format!("{name} {}", at.model) } else { name };
            for (number, key) in keys.into_iter().enumerate() {
                let name = if number == 0 { at.name.clone() } else { format!("{}#{}", at.name, number + 1) };
                routes.push(Route {
                    index: routes.len(),
                    server: Arc::clone(&server),
                    key,
                    lane: Lane::new(of_model(name.clone()), &job.limits, &at),
                    gate: Gate::new(concurrency),
                    breaker: Breaker::new(name, false, Arc::clone(&has_any_answered)),
                    refusals: Refusals::of(whose),
                    closed: OnceLock::new(),
                    weight: share,
                    is_first_key: number == 0,
                });
            }
        }
        if let [only] = routes.as_mut_slice() {
            only.breaker = Breaker::new(only.server.at().name.clone(), true, has_any_answered);
        }
        let turns = Mutex::new(vec![0.0; routes.len()]);
        Ok(Self { all: routes.into_iter().map(Arc::new).collect(), turns })
    }

    /// How many there are.
    pub(crate) const fn count(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Route> {
        self.all.iter().map(AsRef::as_ref)
    }

    /// The servers behind them, each once.
    pub(crate) fn servers(&self) -> impl Iterator<Item = &Server> {
        // The keys of one stand side by side, the first of them first.
        self.all.iter().filter(|route| route.is_first_key).map(|route| route.server.as_ref())
    }

    /// Calls under way, and how many may be.
    pub(crate) fn under_way(&self) -> (usize, usize) {
        let gates = self.all.iter().filter(|route| !route.is_closed()).map(|route| route.gate.under_way());
        gates.fold((0, 0), |sum, gate| (sum.0 + gate.0, sum.1 + gate.1))
    }

    /// The way for a call that `suits` some of them, and has just failed on `not_this` one.
    pub(crate) fn choose(&self, suits: impl Fn(&Route) -> bool, not_this: Option<usize>) -> Choice {
        let now = Instant::now();
        let open: Vec<&Arc<Route>> = self.all.iter().filter(|route| !route.is_closed()).collect();
        if open.is_empty() {
            let halt = self.all.iter().find_map(|route| route.closed.get());
            return halt.map_or(Choice::NoneSuits, |halt| Choice::Closed(halt.clone()));
        }
        let suitable: Vec<&Arc<Route>> = open.into_iter().filter(|route| suits(route)).collect();
        if suitable.is_empty() {
            return Choice::NoneSuits;
        }
        let ready: Vec<&Arc<Route>> =
            suitable.iter().copied().filter(|route| route.opens_at(now).is_none()).collect();
        let others = |of: &[&Arc<Route>]| -> Vec<Arc<Route>> {
            of.iter().filter(|route| Some(route.index) != not_this).map(|route| Arc::clone(route)).collect()
        };
        let with_room =
            others(&ready.iter().copied().filter(|route| route.gate.has_room()).collect::<Vec<_>>());
        let candidates = [with_room, others(&ready), ready.iter().map(|route| Arc::clone(route)).collect()]
            .into_iter()
            .find(|candidates| !candidates.is_empty());
        match candidates {
            Some(candidates) => {
                let next = self.whose_turn(&candidates);
                let next =
                    next.and_then(|route| route.breaker.begin(now).map(|pass| Choice::Go(route, pass)));
                next.unwrap_or(Choice::NotBefore(now + PROBE_POLL))
            }
            None => {
                let first = suitable.iter().filter_map(|route| route.opens_at(now)).min();
                Choice::NotBefore(first.unwrap_or(now))
            }
        }
    }

    /// Whether none can be used any more.
    pub(crate) fn are_closed(&self) -> bool {
        self.all.iter().all(|route| route.is_closed())
    }

    /// Whether a call that failed on one has another to go to now.
    pub(crate) fn has_other_than(&self, index: usize) -> bool {
        let now = Instant::now();
        self.all
            .iter()
            .any(|route| route.index != index && !route.is_closed() && route.breaker.opens_at(now).is_none())
    }

    fn whose_turn(&self, candidates: &[Arc<Route>]) -> Option<Arc<Route>> {
        if let [only] = candidates {
            return Some(Arc::clone(only));
        }
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let total: f64 = candidates.iter().map(|route| route.weight).sum();
        for route in candidates {
            turns[route.index] += route.weight;
        }
        let next = candidates.iter().max_by(|a, b| turns[a.index].total_cmp(&turns[b.index]))?;
        turns[next.index] -= total;
        Some(Arc::clone(next))
    }
}

/// How soon to look again where another call sees whether a server is there.
const PROBE_POLL: std::time::Duration = std::time::Duration::from_millis(100);

impl Route {
    /// Before this, no call begins here; `None`: now.
    fn opens_at(&self, now: Instant) -> Option<Instant> {
        self.breaker.opens_at(now).max(self.lane.opens_at(now))
    }

    /// Whether it cannot be used any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.get().is_some()
    }

    /// The provider has answered: the key is good.
    pub(crate) fn answered(&self) {
        self.refusals.answered();
    }

    /// Whether a failure of this class is said of all products that go this way.
    pub(crate) const fn stops_run(&self, class: FailureClass) -> bool {
        self.refusals.stop_run(class)
    }

    /// Whether this refusal of a call for this product closes the way; it stays closed until the worker begins anew.
    pub(crate) fn refused(&self, failure: &CallFailure, product: IdHash) -> Option<Halt> {
        let halt = self.refusals.refused(failure, product)?;
        let name = &self.server.at().name;
        if self.closed.set(halt.clone()).is_ok() {
            tracing::warn!(endpoint = name, reason = %halt, "this way to the model is not taken any more");
        }
        Some(halt)
    }
}

/// The keys of an endpoint, from the environment.
fn keys(config: &WorkerConfig, at: &ModelEndpoint) -> anyhow::Result<Vec<Key>> {
    let default = Llm::default().api_keys;
    let mut keys = Vec::new();
    for variable in &at.api_keys {
        match (config.find_key)(variable) {
            Some(secret) => keys.push(Key::new(secret).with_context(|| format!("the key in {variable}"))?),
            // Local servers want none, and a job that says nothing asks for none.
            None if at.api_keys == default => {}
            None => anyhow::bail!(
                "the job names a key in {variable}, and there is none: set this variable in the environment of each worker, \
                 or take it out of api_keys"
            ),
        }
    }
    Ok(keys)
}

/// How a key is found by the name of its variable.
pub type FindKey = fn(&str) -> Option<SecretString>;

#[cfg(test)]
mod tests;
