//! The files that grow while a run runs, and what of an outcome goes into which.
//!
//! The order is the promise: dropped if written before → appended → on disk → told to the ledger → acknowledged.

use std::collections::HashSet;

use anyhow::Context as _;
use shelfmill_pipeline::{
    broker::Delivery,
    crash::{self, Point},
    identity::IdHash,
    ledger::{JournalMark, Ledger, State},
    message::{Line, Outcome, Rejects},
    shutdown::Stopper,
};

use crate::{
    folder::Folder,
    line_file::LineFile,
    replay::{done, mark_of, replay},
    shortage::Shortage,
};

/// The open files of a run.
pub(crate) struct Writer {
    pub(crate) folder: Folder,
    journal: LineFile,
    failures: LineFile,
    rejects: LineFile,
    rejects_count: u64,
    /// What this writer believes the ledger to know.
    told: JournalMark,
    stopper: Stopper,
}

/// What a batch brought.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    pub(crate) cost_usd: Option<f64>,
}

/// Who looks at each line that is written.
pub(crate) type Look<'l> = &'l mut (dyn FnMut(&Line) + Send);

impl Writer {
    /// Opens the files and brings the ledger up to date; the cost of what it was told.
    pub(crate) async fn open(
        folder: Folder,
        ledger: &dyn Ledger,
        stopper: Stopper,
    ) -> anyhow::Result<(Self, f64)> {
        let open = |path: &std::path::Path| {
            LineFile::open(path).with_context(|| format!("cannot open {}", path.display()))
        };
        let journal = open(&folder.journal())?;
        let failures = open(&folder.failures())?;
        let rejects = open(&folder.rejects())?;
        let mut rejects_count = 0;
        rejects.read_from::<std::io::Error>(0, |_, number, _| {
            rejects_count = number;
            Ok(())
        })?;
        let (told, cost_usd) = replay(&folder, &journal, &failures, ledger).await?;
        Ok((Self { folder, journal, failures, rejects, rejects_count, told, stopper }, cost_usd))
    }

    /// Which scan the rejects are of, and how many there are.
    pub(crate) fn rejects(&self) -> (u64, u64) {
        (self.folder.record().rejects_scan, self.rejects_count)
    }

    /// Whether anything was written, in this session or before.
    pub(crate) fn has_lines(&self) -> bool {
        self.journal.size_bytes() + self.failures.size_bytes() > 0
    }

    /// Writes a batch and settles it. When this fails, nothing of the batch was acknowledged.
    pub(crate) async fn write(
        &mut self,
        batch: Vec<Delivery<Outcome>>,
        ledger: &dyn Ledger,
        look: Look<'_>,
    ) -> anyhow::Result<Written> {
        let lines: Vec<&Line> = batch
            .iter()
            .filter_map(|delivery| match &delivery.message {
                Outcome::Completed(line) | Outcome::Failed(line) => Some(line),
                Outcome::Rejected(_) => None,
            })
            .collect();
        let hashes: Vec<IdHash> = lines.iter().map(|line| line.hash()).collect();
        let states = if hashes.is_empty() { Vec::new() } else { self.states(&hashes, ledger).await? };
        let fresh = fresh(&lines, &hashes, &states);

        let mut written = Written { cost_usd: Some(0.0), ..Written::default() };
        for (_, line) in &fresh {
            look(line);
            written.cost_usd = written.cost_usd.zip(line.cost_usd()).map(|(sum, cost)| sum + cost);
            if line.class().is_none() {
                written.completed += 1;
                self.journal.push(line.json());
            } else {
                written.failed += 1;
                self.failures.push(line.json());
            }
        }
        let rejects: Vec<&Rejects> = batch
            .iter()
            .filter_map(|delivery| match &delivery.message {
                Outcome::Rejected(rejects) => Some(rejects),
                Outcome::Completed(_) | Outcome::Failed(_) => None,
            })
            .collect();
        for rejects in rejects {
            self.take_rejects(rejects).await?;
        }
        self.commit().await?;

        crash::point(Point::AggregatorSynced);
        if !fresh.is_empty() {
            let done: Vec<_> =
                fresh.iter().map(|(hash, line)| done(*hash, line.class(), line.json(), false)).collect();
            let mark = mark_of(&self.folder, self.journal.size_bytes(), self.failures.size_bytes());
            if ledger.record(&done, Some(&self.told), &mark).await? {
                self.told = mark;
            } else {
                // What was just written is on disk, so it is among what is told now.
                self.remind(ledger).await?;
            }
        }
        crash::point(Point::AggregatorRecorded);
        Delivery::ack_all(batch).await?;
        crash::point(Point::AggregatorAcked);
        Ok(written)
    }

    /// Brings what was pushed to the disk, under the files' names. Waits while the disk is full.
    async fn commit(&mut self) -> anyhow::Result<()> {
        let stopper = self.stopper.clone();
        let mut shortage = Shortage::new(&stopper);
        loop {
            match tokio::task::block_in_place(|| self.commit_once()) {
                Ok(()) => break,
                Err(error) => shortage.wait(error).await?,
            }
        }
        shortage.over();
        if self.journal.size_bytes() > 0 && !self.folder.record().has_results {
            // Where this fails, the next batch does it.
            let _ = self.folder.update(|record| record.has_results = true);
        }
        Ok(())
    }

    fn commit_once(&mut self) -> anyhow::Result<()> {
        for file in [&mut self.failures, &mut self.rejects, &mut self.journal] {
            file.commit().with_context(|| format!("cannot write {}", file.path().display()))?;
        }
        self.folder.keep()?;
        for file in [&mut self.failures, &mut self.rejects, &mut self.journal] {
            file.keep().with_context(|| format!("cannot keep {}", file.path().display()))?;
        }
        Ok(())
    }

    /// While nothing comes: files that were deleted are written back, and a ledger that has forgotten something is told.
    pub(crate) async fn look_after(&mut self, ledger: &dyn Ledger) -> anyhow::Result<()> {
        self.commit().await?;
        self.states(&[], ledger).await?;
        Ok(())
    }

    /// Where products stand, by a ledger that knows what the disk knows.
    async fn states(&mut self, products: &[IdHash], ledger: &dyn Ledger) -> anyhow::Result<Vec<State>> {
        loop {
            let (mark, states) = ledger.states(products).await?;
            if mark.as_ref() == Some(&self.told) {
                return Ok(states);
            }
            self.remind(ledger).await?;
        }
    }

    /// The ledger has forgotten something: it was emptied, or set back.
    async fn remind(&mut self, ledger: &dyn Ledger) -> anyhow::Result<()> {
        tracing::warn!("the ledger does not know what it was told, telling it what is on disk");
        // What is read now must be there: the mark would cover lines that were not told.
        self.commit().await?;
        (self.told, _) = replay(&self.folder, &self.journal, &self.failures, ledger).await?;
        Ok(())
    }

    /// The input of this scan has no rejects: those of an earlier one go.
    pub(crate) async fn forget_rejects(&mut self, scan: u64) -> anyhow::Result<()> {
        let stopper = self.stopper.clone();
        let mut shortage = Shortage::new(&stopper);
        loop {
            match self.begin_rejects(scan) {
                Ok(()) => break,
                Err(error) => shortage.wait(error).await?,
            }
        }
        shortage.over();
        Ok(())
    }

    /// The record last: cut off before, the rejects come again.
    fn begin_rejects(&mut self, scan: u64) -> anyhow::Result<()> {
        self.rejects.clear().with_context(|| format!("cannot empty {}", self.rejects.path().display()))?;
        self.rejects_count = 0;
        Ok(self.folder.update(|record| record.rejects_scan = scan)?)
    }

    /// A later scan's rejects replace an earlier one's; what comes twice is dropped.
    async fn take_rejects(&mut self, rejects: &Rejects) -> anyhow::Result<()> {
        let scan = self.folder.record().rejects_scan;
        if rejects.scan < scan {
            return Ok(());
        }
        if rejects.scan > scan {
            self.forget_rejects(rejects.scan).await?;
        }
        let known = usize::try_from((self.rejects_count + 1).saturating_sub(rejects.first))?;
        for line in rejects.lines.iter().skip(known) {
            self.rejects.push(&serde_json::to_string(line)?);
            self.rejects_count += 1;
        }
        Ok(())
    }
}

/// The lines that are not yet written: nothing follows a result, and only a result follows a failure.
fn fresh<'l>(lines: &[&'l Line], hashes: &[IdHash], states: &[State]) -> Vec<(IdHash, &'l Line)> {
    let mut taken = HashSet::new();
    let is_fresh = |line: &Line, state: State| match state {
        State::Open => true,
        State::Failed => line.class().is_none(),
        State::Completed => false,
    };
    // Results first: of a result and a failure of one product in one batch, the result counts.
    let mut order: Vec<usize> = (0..lines.len()).collect();
    order.sort_by_key(|index| lines[*index].class().is_some());
    order.retain(|index| is_fresh(lines[*index], states[*index]) && taken.insert(hashes[*index]));
    order.into_iter().map(|index| (hashes[index], lines[index])).collect()
}
