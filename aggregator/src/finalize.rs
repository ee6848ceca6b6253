//! The last files of a run: failures without those that succeeded after all, results in input order, summary.
//!
//! Each can be made again from the journal at any time, and each appears whole or not at all.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Write},
    path::Path,
};

use anyhow::Context as _;
use shelfmill_pipeline::{
    crash::{self, Point},
    identity::IdHash,
    ledger::{Ledger, Progress, State},
};

use crate::{
    durable,
    folder::Folder,
    line_file::{damaged, read_lines},
    order::{Place, Sorter, Window},
    replay::mark_of,
    requeue::forget_spent,
    summary::{Counted, Counts, Frame, Status, Summary, Tally},
};

/// Failures asked about at a time.
const STATES_BATCH: usize = 500;

/// Makes the failures current and writes the summary; writes the results too where the run is complete.
pub(crate) async fn finalize(
    folder: &Folder,
    ledger: &dyn Ledger,
    rejected: u64,
    status: Status,
) -> anyhow::Result<Summary> {
    let progress = ledger.progress().await?;
    let stale = stale_failures(folder, ledger).await?;
    let mut tally = Tally::new();
    crash::point(Point::AggregatorFinalizing);
    tokio::task::block_in_place(|| {
        keep_current_failures(folder, &stale, &mut tally).context("cannot bring the failures up to date")?;
        let index = index_journal(folder, &mut tally).context("cannot read the journal")?;
        if status == Status::Complete {
            write_results(folder, index)
                .with_context(|| format!("cannot write {}", folder.results().display()))?;
            crash::point(Point::AggregatorRenamed);
            forget_spent(folder)?;
        }
        let frame = Frame {
            run: folder.record().run.clone(),
            status,
            counts: counts(&progress, &tally, rejected),
            elapsed_seconds: folder.active().as_secs_f64(),
            started_at: folder.record().started_at,
        };
        let summary = tally.summary(frame);
        let text = serde_json::to_string_pretty(&summary)?;
        durable::replace(&folder.summary(), |file| writeln!(file, "{text}"))
            .with_context(|| format!("cannot write {}", folder.summary().display()))?;
        Ok(summary)
    })
}

fn counts(progress: &Progress, tally: &Tally, rejected: u64) -> Counts {
    let written = tally.completed + tally.failed;
    let (completed, failed) = match progress.scan {
        Some(scan) if scan.sealed => (scan.completed, scan.failed),
        _ => (tally.completed, tally.failed),
    };
    let total = progress.total().map(|total| total.max(completed + failed));
    Counts {
        input: total.map(|total| total + rejected),
        completed,
        failed,
        rejected,
        remaining: total.map(|total| total - completed - failed),
        no_longer_in_input: written.saturating_sub(completed + failed),
    }
}

/// Failures whose product was put back or has succeeded since. A ledger that has forgotten what it was told (emptied or
/// set back a moment ago) is not believed: every line is kept, and the next start tells it again.
async fn stale_failures(folder: &Folder, ledger: &dyn Ledger) -> anyhow::Result<HashSet<IdHash>> {
    let mut failed = Vec::new();
    read_lines::<anyhow::Error>(&folder.failures(), 0, |_, number, line| {
        failed.push(IdHash::of(&counted(&folder.failures(), number, line)?.id));
        Ok(())
    })?;
    let size_bytes = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
    let whole = mark_of(folder, size_bytes(&folder.journal()), size_bytes(&folder.failures()));
    let mut stale = HashSet::new();
    for batch in failed.chunks(STATES_BATCH) {
        let (mark, states) = ledger.states(batch).await?;
        if mark.as_ref() != Some(&whole) {
            tracing::warn!("the ledger does not know what it was told, keeping every failure");
            return Ok(HashSet::new());
        }
        stale
            .extend(batch.iter().zip(states).filter(|(_, state)| *state != State::Failed).map(|(id, _)| *id));
    }
    Ok(stale)
}

fn keep_current_failures(folder: &Folder, stale: &HashSet<IdHash>, tally: &mut Tally) -> anyhow::Result<()> {
    let path = folder.failures();
    if !path.exists() {
        return Ok(());
    }
    let mut sorter = Sorter::new(folder.path());
    read_lines::<anyhow::Error>(&path, 0, |at_bytes, number, line| {
        let failure = counted(&path, number, line)?;
        if !stale.contains(&IdHash::of(&failure.id)) {
            sorter.push(Place { seq: failure.seq, at_bytes, size_bytes: line.len() as u64 })?;
        }
        Ok(())
    })?;
    let mut merged = sorter.finish()?;
    let mut window = Window::new(File::open(&path)?);
    // A product that failed twice has two lines, next to each other now: the last one counts.
    let mut last: Option<(Counted, Vec<u8>)> = None;
    durable::replace(&path, |file| {
        let mut keep = |kept: Option<(Counted, Vec<u8>)>| -> io::Result<()> {
            let Some((failure, line)) = kept else { return Ok(()) };
            tally.add(&failure);
            file.write_all(&line)?;
            file.write_all(b"\n")
        };
        while let Some(place) = merged.next()? {
            let line = window.line(place)?.to_vec();
            let failure: Counted = serde_json::from_slice(&line)?;
            let previous = last.take().filter(|(previous, _)| previous.id != failure.id);
            keep(previous)?;
            last = Some((failure, line));
        }
        keep(last.take())
    })?;
    Ok(())
}

fn index_journal<'f>(folder: &'f Folder, tally: &mut Tally) -> anyhow::Result<Sorter<'f>> {
    let path = folder.journal();
    let mut sorter = Sorter::new(folder.path());
    read_lines::<anyhow::Error>(&path, 0, |at_bytes, number, line| {
        let result = counted(&path, number, line)?;
        tally.add(&result);
        Ok(sorter.push(Place { seq: result.seq, at_bytes, size_bytes: line.len() as u64 })?)
    })?;
    Ok(sorter)
}

fn write_results(folder: &Folder, index: Sorter<'_>) -> io::Result<()> {
    let mut merged = index.finish()?;
    let mut window = Window::new(File::open(folder.journal())?);
    durable::replace(&folder.results(), |file| {
        let mut separator: &[u8] = b"[\n";
        while let Some(place) = merged.next()? {
            file.write_all(separator)?;
            file.write_all(window.line(place)?)?;
            separator = b",\n";
        }
        file.write_all(if separator == b"[\n" { b"[]\n" } else { b"\n]\n" })
    })
}

fn counted(path: &Path, number: u64, line: &str) -> anyhow::Result<Counted> {
    serde_json::from_str(line).map_err(|error| anyhow::anyhow!(damaged(path, number, error)))
}

#[cfg(test)]
mod tests;
