//! On start the ledger learns what the disk knows and it does not.
//!
//! The ledger keeps a mark: up to where it was told of the journal. What lies behind the mark is told again,
//! which changes nothing where it was known. A ledger without a mark (a fresh process, an emptied Redis) is
//! told everything. A mark beyond the end of the journal, or of another journal, means that results are
//! elsewhere; going on here would do products twice or leave lines behind, so it is refused.

use shelfmill_pipeline::{
    ledger::{Done, JournalMark, Ledger},
    message::Line,
};

use crate::{
    folder::Folder,
    line_file::{LineFile, damaged},
};

const BATCH_LINES: usize = 1_000;

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

/// Tells the ledger what it does not know; the cost of what was told, where it is known.
pub(crate) async fn replay(folder: &Folder, journal: &LineFile, ledger: &dyn Ledger) -> anyhow::Result<f64> {
    let mark = ledger.journal().await?;
    let from_bytes = match &mark {
        None => 0,
        Some(mark) if mark.journal != folder.record().journal => {
            return Err(ReplayError::OtherJournal {
                run: folder.record().run.clone(),
                elsewhere: mark.place.clone(),
                here: folder.path().display().to_string(),
            }
            .into());
        }
        Some(mark) if mark.size_bytes > journal.size_bytes() => {
            return Err(ReplayError::Shorter {
                here: journal.path().display().to_string(),
                found_bytes: journal.size_bytes(),
                known_bytes: mark.size_bytes,
            }
            .into());
        }
        Some(mark) => mark.size_bytes,
    };
    let whole = mark_of(folder, journal);
    let mut cost_usd = tell(journal, from_bytes, ledger, &whole).await?;
    if mark.is_none() {
        cost_usd += tell(&LineFile::open(&folder.failures())?, 0, ledger, &whole).await?;
    }
    Ok(cost_usd)
}

/// What the ledger is told of this folder's journal.
pub(crate) fn mark_of(folder: &Folder, journal: &LineFile) -> JournalMark {
    let path = std::path::absolute(folder.path()).unwrap_or_else(|_| folder.path().to_owned());
    JournalMark {
        journal: folder.record().journal.clone(),
        place: path.display().to_string(),
        size_bytes: journal.size_bytes(),
    }
}

async fn tell(
    file: &LineFile,
    from_bytes: u64,
    ledger: &dyn Ledger,
    mark: &JournalMark,
) -> anyhow::Result<f64> {
    // Read ahead on a blocking thread, a bounded number of batches at a time.
    let (sender, mut batches) = tokio::sync::mpsc::channel::<Vec<Line>>(2);
    let path = file.path().to_owned();
    let reader = tokio::task::spawn_blocking(move || {
        let mut batch = Vec::new();
        crate::line_file::read_lines::<anyhow::Error>(&path, from_bytes, |_, number, line| {
            let line = serde_json::value::RawValue::from_string(line.to_owned())
                .and_then(Line::parse)
                .map_err(|error| anyhow::anyhow!(damaged(&path, number, error)))?;
            batch.push(line);
            if batch.len() >= BATCH_LINES {
                sender.blocking_send(std::mem::take(&mut batch))?;
            }
            Ok(())
        })?;
        sender.blocking_send(batch)?;
        anyhow::Ok(())
    });
    let mut cost_usd = 0.0;
    while let Some(batch) = batches.recv().await {
        cost_usd += batch.iter().filter_map(Line::cost_usd).sum::<f64>();
        let done: Vec<Done<'_>> = batch.iter().map(done).collect();
        ledger.record(&done, mark).await?;
    }
    reader.await??;
    Ok(cost_usd)
}

/// What the ledger is told of a line that is on disk.
pub(crate) fn done(line: &Line) -> Done<'_> {
    match line.class() {
        None => Done::Completed(line.hash()),
        Some(class) => Done::Failed { hash: line.hash(), class, line: line.json() },
    }
}
