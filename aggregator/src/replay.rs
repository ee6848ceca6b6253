//! The ledger learns what the disk knows and it does not: on start, and whenever it has forgotten something.
//!
//! The ledger keeps a mark: up to where it was told of journal and failures. It moves with every batch that is told,
//! and only from where the teller believes it to be, so a ledger that was emptied or set back (Redis restarted from
//! an older file, a replica promoted) is found out by the next batch and told what it lacks. A mark beyond the end of the journal, or of another journal, means that results are
//! elsewhere; going on here would do products twice or leave lines behind, so it is refused.

use shelfmill_pipeline::{
    failure::FailureClass,
    identity::IdHash,
    ledger::{Done, JournalMark, Ledger},
    message::LineHead,
    money::Money,
};

use crate::{
    folder::Folder,
    line_file::{LineFile, damaged, read_lines},
};

const BATCH_LINES: usize = 1_000;
/// Batches of large lines are cut short.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// Why the journal and the ledger do not belong together.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The ledger knows lines of another journal.
    #[error(
        "the results of run '{run}' are written to {elsewhere}, and {here} does not hold them; start the aggregator \
         there, copy that folder here, or begin anew under another name with --run"
    )]
    OtherJournal {
        /// The run.
        run: String,
        /// Where the ledger's journal is.
        elsewhere: String,
        /// This folder.
        here: String,
    },
    /// The ledger knows lines that the journal no longer has.
    #[error(
        "{here} has {found_bytes} bytes, but {known_bytes} were written and told: results are missing. Restore the file \
         from a copy, or begin anew under another name with --run"
    )]
    Shorter {
        /// The journal.
        here: String,
        /// Its size.
        found_bytes: u64,
        /// What the ledger was told.
        known_bytes: u64,
    },
}

/// Tells the ledger what the disk knows and it does not. Returns the mark it then has, and the cost of what it was
/// told, as far as known. Can be cut off anywhere and done again.
pub(crate) async fn replay(
    folder: &Folder,
    journal: &LineFile,
    failures: &LineFile,
    ledger: &dyn Ledger,
) -> anyhow::Result<(JournalMark, f64)> {
    let mut cost_usd = 0.0;
    loop {
        let known = ledger.journal().await?;
        check(folder, journal, known.as_ref())?;
        let is_new = known.is_none();
        let mut teller = Teller { ledger, known, cost_usd: 0.0 };
        let journal_from = teller.known.as_ref().map_or(0, |mark| mark.size_bytes);
        // A mark in another edition says nothing of this one.
        let failures_from = match &teller.known {
            Some(mark) if mark.failures_edition == folder.record().failures_edition => mark.failures_bytes,
            _ => 0,
        };
        let told = teller.tell(failures, failures_from, |at| mark_of(folder, journal_from, at)).await?
            && teller.tell(journal, journal_from, |at| mark_of(folder, at, failures.size_bytes())).await?;
        cost_usd += teller.cost_usd;
        if is_new {
            // It has forgotten, or never knew, what was spent.
            ledger.spent_at_least(Money::from_usd(cost_usd)).await?;
        }
        let whole = mark_of(folder, journal.size_bytes(), failures.size_bytes());
        if told && ledger.record(&[], teller.known.as_ref(), &whole).await? {
            return Ok((whole, cost_usd));
        }
        tracing::warn!("the ledger has changed while it was told what is on disk, telling it again");
    }
}

fn check(folder: &Folder, journal: &LineFile, mark: Option<&JournalMark>) -> Result<(), ReplayError> {
    match mark {
        Some(mark) if mark.journal != folder.record().journal => Err(ReplayError::OtherJournal {
            run: folder.record().run.clone(),
            elsewhere: mark.place.clone(),
            here: folder.path().display().to_string(),
        }),
        Some(mark) if mark.size_bytes > journal.size_bytes() => Err(ReplayError::Shorter {
            here: journal.path().display().to_string(),
            found_bytes: journal.size_bytes(),
            known_bytes: mark.size_bytes,
        }),
        _ => Ok(()),
    }
}

/// A mark in this folder's files.
pub(crate) fn mark_of(folder: &Folder, size_bytes: u64, failures_bytes: u64) -> JournalMark {
    JournalMark {
        journal: folder.record().journal.clone(),
        place: folder.place(),
        size_bytes,
        failures_bytes,
        failures_edition: folder.record().failures_edition,
    }
}

struct Teller<'l> {
    ledger: &'l dyn Ledger,
    known: Option<JournalMark>,
    cost_usd: f64,
}

struct Batch {
    /// Of a failure with the whole line, from which the ledger can put it back.
    lines: Vec<(LineHead, String)>,
    end_bytes: u64,
}

impl Teller<'_> {
    /// Tells the lines of a file from a place on, moving the mark with every batch; `false` where the ledger's mark
    /// was moved by somebody else.
    async fn tell(
        &mut self,
        file: &LineFile,
        from_bytes: u64,
        mark: impl Fn(u64) -> JournalMark,
    ) -> anyhow::Result<bool> {
        // Read ahead on a blocking thread, a bounded number of batches at a time.
        let (sender, mut batches) = tokio::sync::mpsc::channel::<Batch>(1);
        let path = file.path().to_owned();
        let reader = tokio::task::spawn_blocking(move || read_batches(&path, from_bytes, &sender));
        while let Some(batch) = batches.recv().await {
            self.cost_usd += batch.lines.iter().filter_map(|(head, _)| head.cost_usd()).sum::<f64>();
            let done: Vec<Done<'_>> =
                batch.lines.iter().map(|(head, line)| done(head.hash(), head.class(), line, true)).collect();
            let after = mark(batch.end_bytes);
            if !self.ledger.record(&done, self.known.as_ref(), &after).await? {
                return Ok(false);
            }
            self.known = Some(after);
        }
        reader.await??;
        Ok(true)
    }
}

fn read_batches(
    path: &std::path::Path,
    from_bytes: u64,
    sender: &tokio::sync::mpsc::Sender<Batch>,
) -> anyhow::Result<()> {
    let (mut batch, mut size_bytes) = (Batch { lines: Vec::new(), end_bytes: from_bytes }, 0);
    read_lines::<anyhow::Error>(path, from_bytes, |at_bytes, number, line| {
        let head = LineHead::parse(line).map_err(|error| anyhow::anyhow!(damaged(path, number, error)))?;
        let kept = if head.class().is_some() { line } else { "" };
        batch.lines.push((head, kept.to_owned()));
        batch.end_bytes = at_bytes + line.len() as u64 + 1;
        size_bytes += line.len();
        if batch.lines.len() >= BATCH_LINES || size_bytes >= BATCH_BYTES {
            let next = Batch { lines: Vec::new(), end_bytes: batch.end_bytes };
            sender.blocking_send(std::mem::replace(&mut batch, next))?;
            size_bytes = 0;
        }
        Ok(())
    })?;
    if !batch.lines.is_empty() {
        sender.blocking_send(batch)?;
    }
    Ok(())
}

/// What the ledger is told of a line that is on disk.
pub(crate) fn done<'l>(
    hash: IdHash,
    class: Option<FailureClass>,
    line: &'l str,
    is_told_again: bool,
) -> Done<'l> {
    match class {
        None => Done::Completed(hash),
        Some(class) => Done::Failed { hash, class, line, is_told_again },
    }
}
