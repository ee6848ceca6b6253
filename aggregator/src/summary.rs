//! The summary of a run: everything in it is counted from the lines on disk, in one pass, so it is right
//! whatever happened on the way.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use hdrhistogram::{AdditionError, Histogram};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use shelfmill_pipeline::{failure::FailureClass, ledger::Halt};

/// `analysis_summary.json`.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The run's name.
    pub run: String,
    /// Whether every product is done.
    pub status: Status,
    /// Why the run has paused by itself, where it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused_because: Option<Halt>,
    /// The model that answered, by its own name; several are separated by commas.
    pub model: String,
    /// Products; `input` = `completed` + `failed` + `rejected` + `remaining`.
    pub counts: Counts,
    /// Failed products by class.
    pub failures_by_class: BTreeMap<FailureClass, u64>,
    /// Calls to the model.
    pub calls: Calls,
    /// Tokens over all calls, as counted by the model.
    pub tokens: Tokens,
    /// In US dollars, over all calls; `null` where the job names no prices.
    pub cost_usd: Option<f64>,
    /// Of the calls that gave an analysis; `null` where there are none.
    pub latency_ms: Option<Latencies>,
    /// Outcomes per second of work.
    pub products_per_second: f64,
    /// How long the run was worked on; the time between two sessions is not counted.
    pub elapsed_seconds: f64,
    /// When the run began.
    pub started_at: Timestamp,
    /// When this summary was made.
    pub finished_at: Timestamp,
}

/// How a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Every product has its line.
    Complete,
    /// The run was stopped, or is waiting.
    Interrupted,
    /// The run has paused by itself, and the summary says why.
    Paused,
}

/// Products of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Records in the input; `null` while its end is not known.
    pub input: Option<u64>,
    /// Products with an analysis.
    pub completed: u64,
    /// Products that could not be analysed.
    pub failed: u64,
    /// Records that are no product.
    pub rejected: u64,
    /// Products still to be done; `null` while the end of the input is not known.
    pub remaining: Option<u64>,
    /// Results among the files that are of products no longer in the input; not part of `input`.
    pub no_longer_in_input: u64,
}

/// Calls to the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Calls {
    /// All of them, as far as known.
    pub made: u64,
    /// Of these, further attempts at a product.
    pub retries: u64,
    /// Of these, known to be made again because a process died with the first under way.
    pub repeated: u64,
    /// Not made: products that have the answer of another one with the same prompt.
    pub saved: u64,
}

/// Tokens over all calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tokens {
    /// Read by the model.
    pub prompt: u64,
    /// Written by the model.
    pub completion: u64,
    /// Both.
    pub total: u64,
}

/// Quantiles, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Latencies {
    /// Half of the calls were faster.
    pub p50: u64,
    /// 95 of 100 were faster.
    pub p95: u64,
    /// 99 of 100 were faster.
    pub p99: u64,
}

/// A server can call itself something else in every answer.
const MODELS_TOLD: usize = 20;

/// A line of journal or failures, as far as it is counted. (Of its [`Meta`] what else is there is passed over.)
///
/// [`Meta`]: shelfmill_pipeline::record::Meta
#[derive(Debug, Deserialize)]
pub(crate) struct Counted<'l> {
    #[serde(borrow)]
    pub(crate) id: Cow<'l, str>,
    pub(crate) seq: u64,
    #[serde(borrow)]
    meta: CountedMeta<'l>,
    failure: Option<CountedFailure>,
}

#[derive(Debug, Deserialize)]
struct CountedMeta<'l> {
    #[serde(borrow)]
    model: Cow<'l, str>,
    prompt_tokens: u64,
    completion_tokens: u64,
    cost_usd: Option<f64>,
    latency_ms: u64,
    attempts: u32,
    #[serde(default)]
    repeated_calls: u32,
    same_prompt_as: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
struct CountedFailure {
    class: FailureClass,
}

/// Sums over lines.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    failures_by_class: BTreeMap<FailureClass, u64>,
    models: BTreeSet<String>,
    calls: Calls,
    tokens: Tokens,
    cost_usd: Option<f64>,
    latencies_ms: Histogram<u64>,
}

/// What the lines do not say.
pub(crate) struct Frame {
    pub(crate) run: String,
    pub(crate) status: Status,
    pub(crate) halt: Option<Halt>,
    pub(crate) counts: Counts,
    pub(crate) elapsed_seconds: f64,
    pub(crate) started_at: Timestamp,
}

impl Tally {
    pub(crate) fn new() -> Self {
        const SIGNIFICANT_DIGITS: u8 = 3;
        // A day: no call takes longer.
        const LONGEST_MS: u64 = 24 * 3_600 * 1_000;
        Self {
            completed: 0,
            failed: 0,
            failures_by_class: BTreeMap::new(),
            models: BTreeSet::new(),
            calls: Calls::default(),
            tokens: Tokens::default(),
            cost_usd: Some(0.0),
            latencies_ms: Histogram::new_with_bounds(1, LONGEST_MS, SIGNIFICANT_DIGITS)
                .expect("three digits of a day are within a histogram's range"),
        }
    }

    pub(crate) fn add(&mut self, line: &Counted) {
        let meta = &line.meta;
        match &line.failure {
            None => {
                self.completed += 1;
                if meta.attempts > 0 {
                    self.latencies_ms.saturating_record(meta.latency_ms);
                }
                if self.models.len() < MODELS_TOLD && !self.models.contains(&*meta.model) {
                    self.models.insert(meta.model.clone().into_owned());
                }
            }
            Some(failure) => {
                self.failed += 1;
                *self.failures_by_class.entry(failure.class).or_default() += 1;
            }
        }
        self.calls.made += u64::from(meta.attempts) + u64::from(meta.repeated_calls);
        self.calls.retries += u64::from(meta.attempts.saturating_sub(1));
        self.calls.repeated += u64::from(meta.repeated_calls);
        self.calls.saved += u64::from(meta.same_prompt_as.is_some());
        self.tokens.prompt = self.tokens.prompt.saturating_add(meta.prompt_tokens);
        self.tokens.completion = self.tokens.completion.saturating_add(meta.completion_tokens);
        self.cost_usd = self.cost_usd.zip(meta.cost_usd).map(|(sum, cost)| sum + cost);
    }

    /// With what others have counted in what follows.
    pub(crate) fn merge(&mut self, later: &Self) -> Result<(), AdditionError> {
        self.completed += later.completed;
        self.failed += later.failed;
        for (class, count) in &later.failures_by_class {
            *self.failures_by_class.entry(*class).or_default() += count;
        }
        for model in &later.models {
            if self.models.len() < MODELS_TOLD {
                self.models.insert(model.clone());
            }
        }
        let (own, others) = (&mut self.calls, &later.calls);
        own.made += others.made;
        own.retries += others.retries;
        own.repeated += others.repeated;
        own.saved += others.saved;
        self.tokens.prompt = self.tokens.prompt.saturating_add(later.tokens.prompt);
        self.tokens.completion = self.tokens.completion.saturating_add(later.tokens.completion);
        self.cost_usd = self.cost_usd.zip(later.cost_usd).map(|(sum, cost)| sum + cost);
        self.latencies_ms.add(&later.latencies_ms)
    }

    pub(crate) fn summary(self, frame: Frame) -> Summary {
        let quantile = |q| self.latencies_ms.value_at_quantile(q);
        let done = self.completed + self.failed;
        Summary {
            run: frame.run,
            status: frame.status,
            paused_because: frame.halt,
            model: self.models.into_iter().collect::<Vec<_>>().join(", "),
            counts: frame.counts,
            failures_by_class: self.failures_by_class,
            calls: self.calls,
            tokens: Tokens {
                total: self.tokens.prompt.saturating_add(self.tokens.completion),
                ..self.tokens
            },
            cost_usd: self.cost_usd.filter(|_| done > 0).map(|cost| (cost * 1e6).round() / 1e6),
            latency_ms: (!self.latencies_ms.is_empty()).then(|| Latencies {
                p50: quantile(0.50),
                p95: quantile(0.95),
                p99: quantile(0.99),
            }),
            #[expect(clippy::cast_precision_loss, reason = "exact below 2^53 products")]
            products_per_second: round(done as f64 / frame.elapsed_seconds.max(0.001)),
            elapsed_seconds: round(frame.elapsed_seconds),
            started_at: frame.started_at,
            finished_at: Timestamp::now(),
        }
    }
}

fn round(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_calls_are_told_as_long_as_they_were() {
        let line = |latency_ms: u64| {
            let meta = format!(
                r#"{{"model":"m","prompt_tokens":1,"completion_tokens":1,"cost_usd":null,"latency_ms":{latency_ms},"attempts":1}}"#
            );
            format!(r#"{{"id":"a","seq":1,"meta":{meta}}}"#)
        };
        let mut halves = [Tally::new(), Tally::new()];
        for (n, latency_ms) in [3_000, 3_000, 3_000, 600_000].into_iter().enumerate() {
            halves[n % 2].add(&serde_json::from_str(&line(latency_ms)).unwrap());
        }
        let [mut tally, other] = halves;
        tally.merge(&other).unwrap();
        let near = |quantile: f64, told: u64| {
            let found = tally.latencies_ms.value_at_quantile(quantile);
            assert!(found.abs_diff(told) <= told / 500, "{found} instead of {told}");
        };
        near(0.5, 3_000);
        near(0.99, 600_000);
    }
}
