//! A run as a page: one HTML file without any asset, that asks nobody for anything. `--report` leaves it beside the results,
//! with the figures in it; `--listen` serves it while the run goes on, and it gets them from there.
//!
//! Ids and messages come from catalogs and servers: the page gets them as JSON that cannot end its script block, and puts
//! them on the screen as text, never as markup.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use shelfmill_aggregator::{Calls, Latencies, Listener, Status, Summary, Tokens};
use shelfmill_pipeline::{failure::FailureClass, record::FAILURES_FILE};

use crate::{
    cli::{PageArgs, ProcessArgs},
    listen,
    telemetry::Screen,
};
use rate::RateCurve;

use gate::find_token;
pub(crate) use live::Live;
pub(crate) use serve::Site;

mod gate;
mod live;
mod rate;
mod serve;

/// Beside the results.
pub(crate) const REPORT_FILE: &str = "analysis_report.html";
const PAGE: &str = include_str!("page.html");
/// Where the page has the figures.
const NO_SNAPSHOT: &str = ">null</script>";
/// Of each class of failures.
const EXAMPLES: usize = 3;
const EXAMPLE_BYTES: usize = 300;

/// The page of a run that begins, served if an address is given.
pub(crate) async fn live(
    process: &ProcessArgs,
    page: &PageArgs,
    run: &str,
    budget_usd: Option<f64>,
    screen: &Screen,
) -> anyhow::Result<Option<Live>> {
    if process.listen.is_none() {
        return Ok(None);
    }
    let (live, token) = (Live::new(run, budget_usd)?, find_token(page.status_token_file.as_deref())?);
    if let Some(address) = listen::start(process.listen, Some(Site { live: live.clone(), token })).await? {
        screen.say(&format!("Watch the run at http://{address}/"));
    }
    Ok(Some(live))
}

/// Tells those who look that the run has ended. A page that cannot be told does not change how it did.
pub(crate) async fn end(live: Option<&Live>, summary: &Summary, out: &Path, budget_usd: Option<f64>) {
    if let Some(live) = live
        && let Err(error) = live.end(summary, out, budget_usd).await
    {
        tracing::warn!(%error, "the status page was not told of the end");
    }
}

/// What the page shows.
#[derive(Debug, Serialize)]
struct Snapshot<'a> {
    run: &'a str,
    version: &'static str,
    state: State,
    reason: Option<String>,
    updated_at: String,
    elapsed_seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    eta_seconds: Option<f64>,
    products: Products,
    rate: Rate<'a>,
    latency_ms: Option<Latencies>,
    calls: Calls,
    tokens: Tokens,
    cost_usd: Option<f64>,
    budget_usd: Option<f64>,
    failures: Vec<Failures>,
    /// A run that has ended has none.
    workers: &'a [Worker],
    workers_not_shown: usize,
    queues: Option<Queues>,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Starting,
    StandingBy,
    Running,
    Complete,
    Interrupted,
    Paused,
}

impl From<Status> for State {
    fn from(status: Status) -> Self {
        match status {
            Status::Complete => Self::Complete,
            Status::Interrupted => Self::Interrupted,
            Status::Paused => Self::Paused,
        }
    }
}

#[derive(Debug, Serialize)]
struct Worker {
    name: String,
    in_flight: u32,
    limit: u32,
    ceiling: u32,
    /// For so long nothing was heard of it.
    heard_seconds: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Queues {
    tasks: u64,
    retries: u64,
    outcomes: u64,
    dead: u64,
}

#[derive(Debug, Serialize)]
struct Products {
    total: Option<u64>,
    completed: u64,
    failed: u64,
    rejected: u64,
}

#[derive(Debug, Serialize)]
struct Rate<'a> {
    now: f64,
    overall: f64,
    /// Seconds since the start, and products per second then.
    series: &'a [(f64, f64)],
}

/// Those of one class.
#[derive(Debug, Serialize)]
struct Failures {
    class: FailureClass,
    count: u64,
    examples: Vec<Example>,
}

#[derive(Clone, Debug, Serialize)]
struct Example {
    id: String,
    message: String,
}

/// Writes the report when a run has ended.
pub(crate) struct Reporter {
    path: Option<PathBuf>,
    curve: Arc<Mutex<RateCurve>>,
}

impl Reporter {
    /// For results in this folder, if a report `is_wanted`; and a listener that hears for it what `listener` does.
    pub(crate) fn new(out: &Path, listener: Listener, is_wanted: bool) -> (Self, Listener) {
        let curve: Arc<Mutex<RateCurve>> = Arc::default();
        let reporter = Self { path: is_wanted.then(|| out.join(REPORT_FILE)), curve: Arc::clone(&curve) };
        if !is_wanted {
            return (reporter, listener);
        }
        let heard = Arc::clone(&curve);
        let listens: Listener = Arc::new(move |event| {
            if let Some(progress) = event.progress() {
                let (completed, failed) = progress.done();
                heard.lock().unwrap_or_else(PoisonError::into_inner).add(completed + failed);
            }
            listener(event);
        });
        (reporter, listens)
    }

    pub(crate) fn write(&self, summary: &Summary, budget_usd: Option<f64>) -> anyhow::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let curve = self.curve.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = path.with_file_name(FAILURES_FILE);
        let snapshot = Snapshot::of_summary(summary, &failures, &curve, budget_usd)?;
        // Whole or not at all, like its neighbours; it can be made anew, and is not worth an fsync.
        let beside = path.with_extension("html.tmp");
        fs::write(&beside, html(&snapshot)?)
            .and_then(|()| fs::rename(&beside, path))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

impl<'a> Snapshot<'a> {
    /// Of a run that has ended, with examples from its failures.
    fn of_summary(
        summary: &'a Summary,
        failures: &Path,
        curve: &'a RateCurve,
        budget_usd: Option<f64>,
    ) -> anyhow::Result<Self> {
        let failures = examples(summary, failures).with_context(|| format!("cannot read {FAILURES_FILE}"))?;
        let counts = &summary.counts;
        Ok(Self {
            run: &summary.run,
            version: env!("CARGO_PKG_VERSION"),
            state: summary.status.into(),
            reason: summary.paused_because.as_ref().map(ToString::to_string),
            updated_at: summary.finished_at.to_string(),
            elapsed_seconds: summary.elapsed_seconds,
            eta_seconds: None,
            products: Products {
                total: counts.input.map(|input| input.saturating_sub(counts.rejected)),
                completed: counts.completed,
                failed: counts.failed,
                rejected: counts.rejected,
            },
            rate: Rate { now: curve.latest(), overall: summary.products_per_second, series: curve.points() },
            latency_ms: summary.latency_ms,
            calls: summary.calls,
            tokens: summary.tokens,
            cost_usd: summary.cost_usd,
            budget_usd,
            failures,
            workers: &[],
            workers_not_shown: 0,
            queues: None,
        })
    }
}

/// Nothing in it can end a script block that it is in.
fn json(snapshot: &Snapshot<'_>) -> anyhow::Result<String> {
    Ok(serde_json::to_string(snapshot)?.replace('<', "\\u003c"))
}

fn html(snapshot: &Snapshot<'_>) -> anyhow::Result<String> {
    Ok(PAGE.replacen(NO_SNAPSHOT, &format!(">{}</script>", json(snapshot)?), 1))
}

/// The classes of the summary, most frequent first, with some of the lines each.
fn examples(summary: &Summary, failures: &Path) -> io::Result<Vec<Failures>> {
    #[derive(Deserialize)]
    struct Line {
        id: String,
        failure: Why,
    }
    #[derive(Deserialize)]
    struct Why {
        class: FailureClass,
        message: String,
    }
    let mut found: BTreeMap<FailureClass, Vec<Example>> = BTreeMap::new();
    if !summary.failures_by_class.is_empty() {
        let wanted = |found: &BTreeMap<FailureClass, Vec<Example>>| {
            summary
                .failures_by_class
                .keys()
                .any(|class| found.get(class).is_none_or(|some| some.len() < EXAMPLES))
        };
        for line in BufReader::new(File::open(failures)?).split(b'\n') {
            // A summary's classes are those of this file: it is read until there are enough, or it ends.
            let Ok(Line { id, failure }) = serde_json::from_slice(&line?) else { continue };
            let examples = found.entry(failure.class).or_default();
            if examples.len() < EXAMPLES {
                let message = cut(failure.message);
                examples.push(Example { id: cut(id), message });
                if !wanted(&found) {
                    break;
                }
            }
        }
    }
    let mut classes: Vec<Failures> = summary
        .failures_by_class
        .iter()
        .map(|(class, count)| Failures {
            class: *class,
            count: *count,
            examples: found.remove(class).unwrap_or_default(),
        })
        .collect();
    classes.sort_by_key(|failures| std::cmp::Reverse(failures.count));
    Ok(classes)
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(EXAMPLE_BYTES));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_a_place_for_the_figures() {
        assert_eq!(PAGE.matches(NO_SNAPSHOT).count(), 1);
    }

    /// An address in it would be a request to somebody.
    #[test]
    fn the_page_asks_nobody_for_anything() {
        let addresses: Vec<&str> =
            PAGE.match_indices("://").map(|(at, _)| &PAGE[at.saturating_sub(5)..at + 20]).collect();
        assert_eq!(addresses.len(), 1, "only the name of SVG's elements: {addresses:?}");
        for asks in ["src=", "@import", "url(", "fetch(", "XMLHttp"] {
            assert!(!PAGE.contains(asks), "{asks}");
        }
    }
}
