//! How far it is, for people who watch: a bar on a terminal, checkpoint lines anywhere.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use shelfmill_aggregator::{Event, Listener, Status, Summary};
use shelfmill_pipeline::ledger::Progress;

use crate::{foreign, page::REPORT_FILE, telemetry::Screen};

/// Checkpoint lines are told at most so often.
const CHECKPOINT_LINES_EVERY: Duration = Duration::from_secs(1);

/// Shows what an aggregator tells.
pub(crate) fn listener(screen: &Screen) -> Listener {
    let watcher = Mutex::new(Watcher {
        screen: screen.clone(),
        bar: screen.bars().map(|bars| bars.add(bar())),
        started: Instant::now(),
        last_line: None,
    });
    Arc::new(move |event| watcher.lock().unwrap_or_else(PoisonError::into_inner).on(&event))
}

struct Watcher {
    screen: Screen,
    bar: Option<ProgressBar>,
    started: Instant,
    last_line: Option<Instant>,
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("Analyzing products: {percent:>3}%|{wide_bar}| {msg}");
    let bar = ProgressBar::new(1);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("█▉▊▋▌▍▎▏ "));
    bar
}

impl Watcher {
    fn on(&mut self, event: &Event) {
        match event {
            Event::StandingBy { holder } => {
                self.screen.say(&format!("Standing by: {holder} writes the results of this run"));
            }
            Event::Progress { progress } => self.draw(progress),
            Event::Checkpoint { progress } => {
                if self.last_line.is_none_or(|last| last.elapsed() >= CHECKPOINT_LINES_EVERY) {
                    self.last_line = Some(Instant::now());
                    self.screen.say(&checkpoint(progress));
                }
                self.draw(progress);
            }
        }
    }

    fn draw(&self, progress: &Progress) {
        let Some(bar) = &self.bar else { return };
        let (completed, failed) = progress.done();
        let done = completed + failed;
        bar.set_length(progress.total().unwrap_or(done + 1).max(done));
        bar.set_position(done);
        bar.set_message(state(progress, self.started.elapsed()));
    }
}

/// `Checkpoint: saved 65 products`
fn checkpoint(progress: &Progress) -> String {
    let saved = format!("Checkpoint: saved {} products", progress.completed);
    match progress.failed {
        0 => saved,
        failed => format!("{saved}, {failed} failed"),
    }
}

/// `65/229 [02:30<05:45] 0.4/s, 2 failed, $0.13`
fn state(progress: &Progress, elapsed: Duration) -> String {
    let (completed, failed) = progress.done();
    let done = completed + failed;
    let vitals = progress.vitals.unwrap_or_default();
    let rate = vitals.products_per_second;
    let total = progress.total().map_or("?".to_owned(), |total| total.to_string());
    let remaining = match progress.total() {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        Some(total) if rate > 0.0 => Duration::try_from_secs_f64(total.saturating_sub(done) as f64 / rate)
            .map_or("?".to_owned(), clock),
        _ => "?".to_owned(),
    };
    let mut text = format!("{done}/{total} [{}<{remaining}] {rate:.1}/s", clock(elapsed));
    if failed > 0 {
        text += &format!(", {failed} failed");
    }
    if let Some(cost) = vitals.cost_usd.filter(|cost| *cost > 0.0) {
        text += &format!(", ${cost:.2}");
    }
    // Where servers do not bear what they were meant to get.
    if let Some(pulse) = progress.pulse.filter(|pulse| pulse.limit < pulse.ceiling) {
        text += &format!(", {} of {} calls at once", pulse.limit, pulse.ceiling);
    }
    text
}

/// `02:30`, `1:02:30`
fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes:02}:{seconds:02}")
    }
}

/// `Completed: 65/229 products (28.4%)` and `Remaining: 164 products`.
pub(crate) fn lines(completed: u64, failed: u64, total: Option<u64>) -> Vec<String> {
    let mut lines = Vec::new();
    match total {
        Some(total) => {
            #[expect(clippy::cast_precision_loss, reason = "a percentage with one digit")]
            let percent = if total == 0 { 100.0 } else { completed as f64 * 100.0 / total as f64 };
            lines.push(format!("Completed: {completed}/{total} products ({percent:.1}%)"));
            lines.push(format!("Remaining: {} products", total.saturating_sub(completed + failed)));
        }
        None => {
            lines.push(format!("Completed: {completed} products (the end of the input is not known yet)"))
        }
    }
    if failed > 0 {
        lines.push(format!("Failed: {failed} products"));
    }
    lines
}

/// What a role knows of its end that the summary does not say.
pub(crate) struct Ending<'a> {
    /// The results' folder.
    pub(crate) out: &'a Path,
    /// What to do to go on.
    pub(crate) again: &'a str,
    /// How other commands are told of this run.
    pub(crate) which: &'a str,
    pub(crate) has_report: bool,
}

/// What is said at the end of a run.
pub(crate) fn conclude(screen: &Screen, summary: &Summary, ending: &Ending<'_>) {
    let Ending { out, again, which, has_report } = *ending;
    use shelfmill_pipeline::record::{FAILURES_FILE, JOURNAL_FILE, REJECTS_FILE, RESULTS_FILE, SUMMARY_FILE};
    screen.finish();
    let counts = &summary.counts;
    let total = counts.input.map(|input| input - counts.rejected);
    for line in lines(counts.completed, counts.failed, total) {
        eprintln!("{line}");
    }
    let classes: Vec<String> =
        summary.failures_by_class.iter().map(|(class, count)| format!("{class} {count}")).collect();
    if !classes.is_empty() {
        eprintln!("          ({})", classes.join(", "));
    }
    if counts.rejected > 0 {
        eprintln!("Rejected: {} records", counts.rejected);
    }
    let cost = summary
        .cost_usd
        .map_or("unknown (no prices are known for the model)".to_owned(), |cost| format!("${cost:.4}"));
    let if_any =
        |count: u64, what: &str| if count == 0 { String::new() } else { format!(", {count} {what}") };
    let repeated = if_any(summary.calls.repeated, "made again after they were cut off");
    let saved = if_any(summary.calls.saved, "saved by equal prompts");
    eprintln!(
        "Calls: {} ({} retries{repeated}{saved}), {} tokens, cost {cost}, {:.1} products/s",
        summary.calls.made, summary.calls.retries, summary.tokens.total, summary.products_per_second
    );
    let file = |name: &str, what: &str| eprintln!("  {:<58} {what}", out.join(name).display());
    eprintln!("Files:");
    file(JOURNAL_FILE, "one result per line, as they came");
    if summary.status != Status::Interrupted {
        file(RESULTS_FILE, "all results in input order");
    }
    file(SUMMARY_FILE, "counts, tokens, cost, latencies");
    if has_report {
        file(REPORT_FILE, "the same as a page, with the run's course");
    }
    if counts.failed > 0 {
        file(FAILURES_FILE, "products without an analysis, and why");
    }
    if counts.rejected > 0 {
        file(REJECTS_FILE, "records that are no product, and why");
    }
    match summary.status {
        Status::Interrupted => eprintln!("Interrupted. Everything above is saved; to go on: {again}"),
        Status::Paused => {
            let reason = summary.paused_because.as_ref().map(ToString::to_string).unwrap_or_default();
            eprintln!("Paused: {}", foreign::line(&reason));
            eprintln!("Everything above is saved; to go on: {again}");
        }
        Status::Complete if counts.failed > 0 => {
            eprintln!("To try the failed products again: shelfmill requeue {which}, then {again}");
        }
        Status::Complete => {}
    }
}

#[cfg(test)]
mod tests {
    use shelfmill_pipeline::ledger::{Pulse, Vitals};

    use super::*;

    #[test]
    fn progress_reads_as_it_always_did() {
        assert_eq!(
            lines(65, 0, Some(229)),
            ["Completed: 65/229 products (28.4%)", "Remaining: 164 products"]
        );
        assert_eq!(lines(3, 2, Some(5))[1..], ["Remaining: 0 products", "Failed: 2 products"]);
    }

    #[test]
    fn the_bar_tells_count_time_rate_failures_and_cost() {
        let vitals = Some(Vitals { products_per_second: 0.5, cost_usd: Some(0.127) });
        let progress =
            Progress { expected: Some(229), completed: 63, failed: 2, vitals, ..Progress::default() };
        assert_eq!(state(&progress, Duration::from_secs(150)), "65/229 [02:30<05:28] 0.5/s, 2 failed, $0.13");
        assert_eq!(clock(Duration::from_secs(3750)), "1:02:30");
        let pulse = Some(Pulse { in_flight: 9, limit: 12, ceiling: 32 });
        let told = state(&Progress { pulse, ..progress }, Duration::from_secs(150));
        assert!(told.ends_with("$0.13, 12 of 32 calls at once"), "{told}");
    }
}
