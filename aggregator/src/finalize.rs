//! The last files of a run: failures without those that succeeded after all, results in input order, summary.
//!
//! Each can be made again from the journal at any time, and each appears whole or not at all. The failures are rewritten only
//! for a ledger that knows all of them, and as a new edition, so that a ledger that is set back is told all of them again.

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
    ledger::{JournalMark, Ledger, Progress, State},
};

use crate::{
    durable,
    folder::Folder,
    index::{counted, index},
    line_file::read_lines,
    order::{Place, Sorter, Window},
    replay::mark_of,
    requeue::forget_spent,
    summary::{Counted, Counts, Frame, Status, Summary, Tally},
};

/// Failures asked about at a time.
const STATES_BATCH: usize = 500;

/// Makes the failures current and writes the summary; writes the results too where the run is complete, or has paused by itself.
pub(crate) async fn finalize(
    folder: &mut Folder,
    ledger: &dyn Ledger,
    rejected: u64,
    status: Status,
) -> anyhow::Result<Summary> {
    let progress = ledger.progress().await?;
    let mut tally = Tally::new();
    keep_current_failures(folder, ledger, &mut tally)
        .await
        .context("cannot bring the failures up to date")?;
    crash::point(Point::AggregatorFinalizing);
    tokio::task::block_in_place(|| {
        let index = index(folder, &mut tally).context("cannot read the journal")?;
        if status != Status::Interrupted {
            write_results(folder, index)
                .with_context(|| format!("cannot write {}", folder.results().display()))?;
            crash::point(Point::AggregatorRenamed);
        }
        if status == Status::Complete {
            forget_spent(folder)?;
        }
        let frame = Frame {
            run: folder.record().run.clone(),
            status,
            halt: progress.halt.clone().filter(|_| status == Status::Paused),
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

/// Rewrites the failures without those that are none any more, and has the ledger's mark follow.
async fn keep_current_failures(
    folder: &mut Folder,
    ledger: &dyn Ledger,
    tally: &mut Tally,
) -> anyhow::Result<()> {
    let size_bytes = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
    let mark =
        |folder: &Folder| mark_of(folder, size_bytes(&folder.journal()), size_bytes(&folder.failures()));
    if size_bytes(&folder.failures()) == 0 {
        return Ok(());
    }
    let before = mark(folder);
    let Some(stale) = stale_failures(folder, ledger, &before).await? else {
        // Emptied or set back a moment ago: the next start tells it again, from the file as it is.
        tracing::warn!("the ledger does not know what it was told, keeping every failure");
        return tokio::task::block_in_place(|| {
            write_current_failures(folder, &HashSet::new(), tally, &mut io::sink())
        });
    };
    tokio::task::block_in_place(|| {
        let path = folder.failures();
        let (prepared, ()) =
            durable::prepare(&path, |file| write_current_failures(folder, &stale, tally, file))?;
        // The edition first: cut off before the file is in its place, the old one is told again, which changes nothing.
        folder.update(|record| record.failures_edition += 1)?;
        anyhow::Ok(prepared.put_in_place()?)
    })?;
    // Refused where the ledger has forgotten something, which the next start finds out.
    ledger.record(&[], Some(&before), &mark(folder)).await?;
    Ok(())
}

/// Failures whose product was put back or has succeeded since; `None` where the ledger has forgotten what it was told.
async fn stale_failures(
    folder: &Folder,
    ledger: &dyn Ledger,
    whole: &JournalMark,
) -> anyhow::Result<Option<HashSet<IdHash>>> {
    let mut failed = Vec::new();
    read_lines::<anyhow::Error>(&folder.failures(), 0, |_, number, line| {
        failed.push(IdHash::of(&counted(&folder.failures(), number, line)?.id));
        Ok(())
    })?;
    let mut stale = HashSet::new();
    for batch in failed.chunks(STATES_BATCH) {
        let (mark, states) = ledger.states(batch).await?;
        if mark.as_ref() != Some(whole) {
            return Ok(None);
        }
        stale
            .extend(batch.iter().zip(states).filter(|(_, state)| *state != State::Failed).map(|(id, _)| *id));
    }
    Ok(Some(stale))
}

/// In input order, each product once.
fn write_current_failures(
    folder: &Folder,
    stale: &HashSet<IdHash>,
    tally: &mut Tally,
    to: &mut dyn Write,
) -> anyhow::Result<()> {
    let path = folder.failures();
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
    let mut keep = |line: &[u8]| -> anyhow::Result<()> {
        tally.add(&serde_json::from_slice(line)?);
        to.write_all(line)?;
        Ok(to.write_all(b"\n")?)
    };
    // A product that failed twice has two lines, next to each other now: the last one counts.
    let mut last: Option<(IdHash, Vec<u8>)> = None;
    while let Some(place) = merged.next()? {
        let line = window.line(place)?.to_vec();
        let id = IdHash::of(&serde_json::from_slice::<Counted<'_>>(&line)?.id);
        if let Some((_, line)) = last.take().filter(|(previous, _)| *previous != id) {
            keep(&line)?;
        }
        last = Some((id, line));
    }
    last.map_or(Ok(()), |(_, line)| keep(&line))
}

fn write_results(folder: &Folder, index: Sorter<'_>) -> io::Result<()> {
    let mut merged = index.finish()?;
    let mut window = Window::new(File::open(folder.journal())?);
    durable::replace(&folder.results(), |file| {
        durable::write_behind(file.get_ref(), |file| {
            let mut separator: &[u8] = b"[\n";
            while let Some(place) = merged.next()? {
                file.write_all(separator)?;
                file.write_all(window.line(place)?)?;
                separator = b",\n";
            }
            file.write_all(if separator == b"[\n" { b"[]\n" } else { b"\n]\n" })
        })
    })
}

#[cfg(test)]
mod tests;
