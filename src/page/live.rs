//! The page of a run that goes on: what it shows, gathered from what the run tells anyway.
//!
//! - The work never waits for those who watch: they look at a copy of the figures, and of snapshots there is one, the latest,
//!   however many look and however slowly they read.
//! - Nothing grows with the run or with the catalog: counts, one histogram, a few examples of each class.
//! - Only while somebody looks are snapshots made. The queues are looked at all the time, for `/metrics`.

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use hdrhistogram::Histogram;
use jiff::Timestamp;
use serde::Deserialize;
use shelfmill_aggregator::{Aggregator, Calls, Event, Latencies, Listener, Summary, Tap, Tokens, read_lines};
use shelfmill_pipeline::{
    broker::Broker,
    failure::FailureClass,
    ledger::{Ledger, Progress},
    metrics::metrics,
    record::{FAILURES_FILE, JOURNAL_FILE},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use super::{EXAMPLES, Example, Failures, Products, Queues, Rate, RateCurve, Snapshot, State, Worker, cut};

/// More than look at one run.
const MOST_VIEWERS: usize = 64;
const SHOW_EVERY: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A server that is away must not keep the page from telling what is known.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long those who watch may take to hear of the end.
const FAREWELL: Duration = Duration::from_secs(1);
const MOST_WORKERS: usize = 100;
/// What is slower counts as this.
const SLOWEST_MS: u64 = 3_600_000;

/// One snapshot, as every viewer gets it.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) json: Arc<str>,
    pub(super) is_last: bool,
}

/// The figures of a run that goes on, and those who look at them.
#[derive(Clone)]
pub(crate) struct Live(Arc<Shared>);

struct Shared {
    figures: Mutex<Figures>,
    shown: watch::Sender<Frame>,
    places: Arc<Semaphore>,
}

struct Figures {
    run: String,
    started: Instant,
    state: State,
    holder: Option<String>,
    progress: Progress,
    curve: RateCurve,
    lines: Lines,
    budget_usd: Option<f64>,
    workers: Vec<Worker>,
    queues: Option<Queues>,
}

/// What the lines on disk tell together.
struct Lines {
    calls: Calls,
    tokens: Tokens,
    latencies: Histogram<u32>,
    examples: BTreeMap<FailureClass, VecDeque<Example>>,
}

/// A line of journal or failures, as far as it is shown.
#[derive(Deserialize)]
struct Shown {
    id: String,
    failure: Option<Why>,
    meta: Meta,
}

#[derive(Deserialize)]
struct Why {
    class: FailureClass,
    message: String,
}

#[derive(Deserialize)]
struct Meta {
    prompt_tokens: u64,
    completion_tokens: u64,
    latency_ms: u64,
    attempts: u32,
    #[serde(default)]
    repeated_calls: u32,
    same_prompt_as: Option<String>,
}

impl Lines {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            calls: Calls::default(),
            tokens: Tokens::default(),
            latencies: Histogram::new_with_bounds(1, SLOWEST_MS, 2).context("a histogram")?,
            examples: BTreeMap::new(),
        })
    }

    fn add(&mut self, line: Shown) {
        let Shown { id, failure, meta } = line;
        self.calls.made += u64::from(meta.attempts);
        self.calls.retries += u64::from(meta.attempts.saturating_sub(1));
        self.calls.repeated += u64::from(meta.repeated_calls);
        self.calls.saved += u64::from(meta.same_prompt_as.is_some());
        self.tokens.prompt += meta.prompt_tokens;
        self.tokens.completion += meta.completion_tokens;
        self.tokens.total = self.tokens.prompt + self.tokens.completion;
        match failure {
            Some(Why { class, message }) => {
                let examples = self.examples.entry(class).or_default();
                if examples.len() >= EXAMPLES {
                    examples.pop_front();
                }
                examples.push_back(Example { id: cut(id), message: cut(message) });
            }
            None if meta.same_prompt_as.is_none() => {
                self.latencies.saturating_record(meta.latency_ms.clamp(1, SLOWEST_MS));
            }
            None => {}
        }
    }

    fn latencies(&self) -> Option<Latencies> {
        let within = |share| self.latencies.value_at_quantile(share);
        (!self.latencies.is_empty()).then(|| Latencies {
            p50: within(0.5),
            p95: within(0.95),
            p99: within(0.99),
        })
    }
}

impl Live {
    pub(crate) fn new(run: &str, budget_usd: Option<f64>) -> anyhow::Result<Self> {
        let figures = Figures {
            run: run.to_owned(),
            started: Instant::now(),
            state: State::Starting,
            holder: None,
            progress: Progress::default(),
            curve: RateCurve::default(),
            lines: Lines::new()?,
            budget_usd,
            workers: Vec::new(),
            queues: None,
        };
        let (shown, _) = watch::channel(Frame { json: figures.json()?, is_last: false });
        let places = Arc::new(Semaphore::new(MOST_VIEWERS));
        Ok(Self(Arc::new(Shared { figures: Mutex::new(figures), shown, places })))
    }

    fn figures(&self) -> MutexGuard<'_, Figures> {
        self.0.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A listener that hears for the page what `listener` does.
    pub(crate) fn listener(&self, listener: Listener) -> Listener {
        let live = self.clone();
        Arc::new(move |event| {
            live.figures().hear(&event);
            listener(event);
        })
    }

    /// Sees each line that is written.
    fn tap(&self) -> Tap {
        let live = self.clone();
        Arc::new(move |line| {
            // What cannot be read here is the summary's to tell.
            if let Ok(line) = serde_json::from_str(line) {
                live.figures().lines.add(line);
            }
        })
    }

    /// Counts what earlier sessions have written, beside the work; to be called before anything is written in this one.
    fn count_earlier(&self, out: &Path) {
        for name in [JOURNAL_FILE, FAILURES_FILE] {
            let (path, live) = (out.join(name), self.clone());
            let Ok(known) = std::fs::metadata(&path) else { continue };
            tokio::task::spawn_blocking(move || {
                let counted = read_lines::<anyhow::Error>(&path, 0, |at, _, line| {
                    // From here on the tap has seen it.
                    anyhow::ensure!(at < known.len(), "the end of what was there");
                    if let Ok(line) = serde_json::from_str(line) {
                        live.figures().lines.add(line);
                    }
                    Ok(())
                });
                tracing::debug!(?counted, "earlier lines are counted");
            });
        }
    }

    /// Sees each line that is written, now and before.
    pub(crate) fn follow(&self, aggregator: &mut Aggregator, out: &Path) {
        self.count_earlier(out);
        aggregator.show_lines(self.tap());
    }

    /// Looks at the queues and the workers from now on, until the end.
    pub(crate) fn watch(&self, ledger: Arc<dyn Ledger>, broker: Arc<dyn Broker>) {
        tokio::spawn(self.clone().look_at_queues(Arc::clone(&ledger), broker));
        tokio::spawn(self.clone().show_to_viewers(ledger));
    }

    fn has_ended(&self) -> bool {
        self.0.shown.borrow().is_last
    }

    async fn look_at_queues(self, ledger: Arc<dyn Ledger>, broker: Arc<dyn Broker>) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.has_ended() {
            ticks.tick().await;
            // What cannot be had is not shown; the aggregator tells why.
            let depths = broker.look().await.ok();
            let queues = depths.map(|depths| Queues {
                tasks: depths.tasks,
                retries: depths.retries,
                outcomes: depths.outcomes,
                dead: depths.dead,
            });
            if let Some(Queues { tasks, retries, outcomes, dead }) = queues {
                for (name, depth) in
                    [("tasks", tasks), ("retries", retries), ("outcomes", outcomes), ("dead", dead)]
                {
                    metrics().queue(name, depth);
                }
            }
            let job = timeout(PATIENCE, ledger.job()).await;
            let mut figures = self.figures();
            figures.queues = queues;
            if let Ok(Ok(Some(job))) = job {
                figures.budget_usd = job.limits.budget;
            }
        }
    }

    async fn show_to_viewers(self, ledger: Arc<dyn Ledger>) {
        let mut ticks = interval(SHOW_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.has_ended() {
            ticks.tick().await;
            if self.0.shown.receiver_count() == 0 {
                continue;
            }
            if let Ok(Ok(heard)) = timeout(PATIENCE, ledger.heard()).await {
                self.figures().workers = heard
                    .into_iter()
                    .map(|(name, heard)| Worker {
                        name: cut(name),
                        in_flight: heard.pulse.in_flight,
                        limit: heard.pulse.limit,
                        ceiling: heard.pulse.ceiling,
                        heard_seconds: heard.ago.as_secs_f64(),
                    })
                    .collect();
            }
            self.show();
        }
    }

    /// Gives those who look the figures as they are.
    fn show(&self) {
        let json = self.figures().json();
        match json {
            Ok(json) => {
                self.0.shown.send_if_modified(|frame| {
                    if !frame.is_last {
                        frame.json = json;
                    }
                    !frame.is_last
                });
            }
            Err(error) => tracing::warn!(%error, "the status page cannot be told"),
        }
    }

    /// A place among those who look, while there is one.
    pub(super) fn join(&self) -> Option<(watch::Receiver<Frame>, OwnedSemaphorePermit)> {
        let place = Arc::clone(&self.0.places).try_acquire_owned().ok()?;
        if self.0.shown.receiver_count() == 0 {
            // What was shown last may be hours old.
            self.show();
        }
        Some((self.0.shown.subscribe(), place))
    }

    /// The last snapshot is what the summary says; returns when those who look have it, or do not take it.
    pub(crate) async fn end(
        &self,
        summary: &Summary,
        out: &Path,
        budget_usd: Option<f64>,
    ) -> anyhow::Result<()> {
        let json = {
            let figures = self.figures();
            let last = Snapshot::of_summary(summary, &out.join(FAILURES_FILE), &figures.curve, budget_usd)?;
            json_of(&last)?
        };
        self.0.shown.send_replace(Frame { json, is_last: true });
        let heard = async {
            while self.0.places.available_permits() < MOST_VIEWERS {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let _ = timeout(FAREWELL, heard).await;
        Ok(())
    }
}

impl Figures {
    fn hear(&mut self, event: &Event) {
        match event {
            Event::StandingBy { holder } => {
                self.state = State::StandingBy;
                self.holder = Some(cut(holder.clone()));
            }
            Event::Checkpoint { progress } | Event::Progress { progress } => {
                self.state = if progress.halt.is_some() { State::Paused } else { State::Running };
                self.holder = None;
                let (completed, failed) = progress.done();
                self.curve.add(completed + failed);
                self.progress.clone_from(progress);
            }
        }
    }

    fn json(&self) -> anyhow::Result<Arc<str>> {
        let progress = &self.progress;
        let ((completed, failed), total) = (progress.done(), progress.total());
        let vitals = progress.vitals.unwrap_or_default();
        let elapsed_seconds = self.started.elapsed().as_secs_f64();
        let now = vitals.products_per_second;
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let eta_seconds =
            total.filter(|_| now > 0.0).map(|total| total.saturating_sub(completed + failed) as f64 / now);
        let mut failures: Vec<Failures> = progress
            .failures
            .iter()
            .map(|(class, count)| Failures {
                class: *class,
                count: *count,
                examples: self
                    .lines
                    .examples
                    .get(class)
                    .map(|some| some.iter().cloned().collect())
                    .unwrap_or_default(),
            })
            .collect();
        failures.sort_by_key(|failures| std::cmp::Reverse(failures.count));
        let standing_by =
            self.holder.as_ref().map(|holder| format!("{holder} writes the results of this run"));
        json_of(&Snapshot {
            run: &self.run,
            version: env!("CARGO_PKG_VERSION"),
            state: self.state,
            reason: progress.halt.as_ref().map(ToString::to_string).or(standing_by),
            updated_at: Timestamp::now().to_string(),
            elapsed_seconds,
            eta_seconds,
            products: Products {
                total,
                completed,
                failed,
                rejected: progress.scan.map_or(0, |scan| scan.rejected),
            },
            rate: Rate { now, overall: self.curve.overall(), series: self.curve.points() },
            latency_ms: self.lines.latencies(),
            calls: self.lines.calls,
            tokens: self.lines.tokens,
            cost_usd: vitals.cost_usd,
            budget_usd: self.budget_usd,
            failures,
            workers: &self.workers[..self.workers.len().min(MOST_WORKERS)],
            workers_not_shown: self.workers.len().saturating_sub(MOST_WORKERS),
            queues: self.queues,
        })
    }
}

fn json_of(snapshot: &Snapshot<'_>) -> anyhow::Result<Arc<str>> {
    Ok(super::json(snapshot)?.into())
}
