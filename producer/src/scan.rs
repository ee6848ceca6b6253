//! One reading of the input: every record becomes a task, a skip or a reject, and the end is sealed.
//!
//! - A product is registered in the ledger before its task is published, and the scan is sealed after the last
//!   confirm: a producer that dies in between leaves products that are open and have no task, and the next scan
//!   publishes them. Publishing one twice is harmless; the ledger tells the second worker.
//! - Memory is bounded by the batch, the window of unconfirmed publishes and the reader's channel, each counted
//!   in records and in bytes.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use futures_util::{StreamExt, stream::FuturesUnordered};
use shelfmill_pipeline::{
    broker::{Broker, BrokerError},
    crash::{self, Point},
    health::{Role, health},
    identity::IdHash,
    ledger::{Admission, Halt, Ledger},
    message::{Outcome, Rejects, Task},
    metrics::metrics,
    record::RejectLine,
    shutdown::Stopper,
    trace::Span,
};
use tokio::sync::mpsc;

use crate::input::{self, Entry, InputError, InputOptions, Record, Reject, RejectReason, Source};

/// Records registered at a time.
const BATCH_RECORDS: usize = 256;
/// A batch of large records is cut short.
const BATCH_BYTES: usize = 1024 * 1024;
/// Batches that the reader is ahead.
const BATCHES_AHEAD: usize = 2;
/// Bytes published and not confirmed.
const WINDOW_BYTES: usize = 16 * 1024 * 1024;
/// Rejects sent in one message.
const REJECTS_PER_MESSAGE: usize = 100;
/// How often the backlog is looked at while there is room, and while there is none.
const BACKLOG_EVERY_TASKS: usize = 1_000;
const BACKLOG_POLL: Duration = Duration::from_millis(500);
/// Two of these may be lost before the right to read is.
const KEEP_EVERY: Duration = Duration::from_secs(5);
/// How often a producer asks for its turn.
const TURN_POLL: Duration = Duration::from_secs(1);

/// What a producer is told.
#[derive(Clone, Debug)]
pub struct ProducerConfig {
    /// Who this is; unique among the producers of a run.
    pub name: String,
    /// What to read.
    pub input: InputOptions,
    /// Whether the first reject ends the scan.
    pub strict: bool,
    /// Tasks published and not confirmed.
    pub window: usize,
    /// Tasks ready for workers above which publishing waits; `None`: the broker sees to that.
    pub max_backlog: Option<u64>,
}

/// How a scan went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanReport {
    /// Tasks published.
    pub published: u64,
    /// Products that had an analysis.
    pub completed: u64,
    /// Products that had failed and were not put back.
    pub failed: u64,
    /// Records that are no product.
    pub rejected: u64,
    /// Whether the end of the input was reached.
    pub sealed: bool,
    /// Why reading ended before, where the run has paused by itself.
    pub halted: Option<Halt>,
}

/// The first reject of a strict scan.
#[derive(Debug, thiserror::Error)]
#[error("line {}: {} ({}); without --strict such records are written to rejected_products.jsonl and skipped", .0.line, .0.detail, .0.reason)]
pub struct StrictReject(pub RejectLine);

/// Whether the input can be read more than once: a regular file, and no pipe or standard input.
#[must_use]
pub fn can_be_read_twice(input: &InputOptions) -> bool {
    match &input.source {
        Source::Stdin => false,
        Source::File(path) => std::fs::metadata(path).is_ok_and(|file| file.is_file()),
    }
}

/// Whether the input can be opened; reads nothing of what can be read only once.
pub fn check_opens(input: &InputOptions) -> Result<(), InputError> {
    match input.source {
        Source::Stdin => input.format.map(drop).ok_or(InputError::FormatOfStdin),
        Source::File(ref path) if path.exists() && !can_be_read_twice(input) && !path.is_dir() => Ok(()),
        Source::File(_) => input::open(input).map(drop),
    }
}

/// Reads the input to its end, or until the stopper stops it.
pub async fn run(
    config: ProducerConfig,
    broker: Arc<dyn Broker>,
    ledger: Arc<dyn Ledger>,
    stopper: Stopper,
) -> anyhow::Result<ScanReport> {
    // Opened first: a bad input is told before anything is changed.
    let records = {
        let options = config.input.clone();
        tokio::task::spawn_blocking(move || input::open(&options)).await??
    };
    health().waits(Role::Producer, "its turn to read");
    let Some(scan) = take_turn(&config.name, ledger.as_ref(), &stopper).await? else {
        return Ok(ScanReport::default());
    };
    let done = Arc::new(AtomicBool::new(false));
    let counting = tokio::spawn(tell_expected(config.input.clone(), Arc::clone(&ledger), Arc::clone(&done)));
    let mut scanner = Scanner {
        config: &config,
        broker: broker.as_ref(),
        ledger: ledger.as_ref(),
        scan,
        batch: 0,
        seq: 0,
        rejects: Vec::new(),
        in_flight: FuturesUnordered::new(),
        in_flight_bytes: 0,
        since_backlog: 0,
        report: ScanReport::default(),
    };
    let mut halted = None;
    let result = tokio::select! {
        kept = keep_turn(scan, ledger.as_ref()) => kept.map(|halt| halted = Some(halt)),
        read = scanner.read(read_ahead(records, Arc::clone(&done))) => match read {
            // The worker of this process heard of the stop, or of the pause, first: no error.
            Err(error) if is_closed(&error) => {
                halted = ledger.halted().await?;
                if stopper.is_stopped() || halted.is_some() { Ok(()) } else { Err(error) }
            }
            read => read,
        },
        () = stopper.stopped() => Ok(()),
    };
    health().ended(Role::Producer);
    let report = ScanReport { halted, ..scanner.report.clone() };
    drop(scanner);
    done.store(true, Ordering::Relaxed);
    if !report.sealed
        && let Err(error) = ledger.drop_scan(scan).await
    {
        tracing::debug!(%error, "could not give back the right to read, its lease runs out");
    }
    result?;
    counting.await?;
    Ok(report)
}

fn is_closed(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(BrokerError::Closed)))
}

async fn take_turn(name: &str, ledger: &dyn Ledger, stopper: &Stopper) -> anyhow::Result<Option<u64>> {
    let mut told = false;
    loop {
        let turn = tokio::select! {
            turn = ledger.begin_scan(name) => turn?,
            () = stopper.stopped() => return Ok(None),
        };
        if turn.is_some() {
            return Ok(turn);
        }
        if !told {
            told = true;
            tracing::info!("another producer is reading for this run, waiting for its end");
        }
        tokio::select! {
            () = tokio::time::sleep(TURN_POLL) => {}
            () = stopper.stopped() => return Ok(None),
        }
    }
}

/// Keeps the right to read, also while RabbitMQ is waited for; ends when it was lost, or the run has paused by itself.
async fn keep_turn(scan: u64, ledger: &dyn Ledger) -> anyhow::Result<Halt> {
    loop {
        tokio::time::sleep(KEEP_EVERY).await;
        ledger.keep_scan(scan).await?;
        // While a person has paused the run, tasks may wait for it to go on.
        if let Some(halt) = ledger.halted().await?.filter(|halt| !halt.is_asked()) {
            return Ok(halt);
        }
    }
}

type Batch = Vec<Entry>;

/// Reads on a blocking thread, a bounded number of batches ahead.
fn read_ahead(
    records: input::Records,
    done: Arc<AtomicBool>,
) -> mpsc::Receiver<Result<Option<Batch>, InputError>> {
    let (sender, receiver) = mpsc::channel(BATCHES_AHEAD);
    tokio::task::spawn_blocking(move || {
        let (mut batch, mut size_bytes) = (Vec::new(), 0);
        for entry in records {
            if done.load(Ordering::Relaxed) {
                return;
            }
            match entry {
                Ok(entry) => {
                    size_bytes += size_of_entry(&entry);
                    batch.push(entry);
                }
                Err(error) => {
                    // Whoever listens gets what came before the error, too.
                    let _ = sender.blocking_send(Ok(Some(std::mem::take(&mut batch))));
                    let _ = sender.blocking_send(Err(error));
                    return;
                }
            }
            if batch.len() >= BATCH_RECORDS || size_bytes >= BATCH_BYTES {
                size_bytes = 0;
                if sender.blocking_send(Ok(Some(std::mem::take(&mut batch)))).is_err() {
                    return;
                }
            }
        }
        let _ = sender.blocking_send(Ok(Some(batch)));
        // The end is said, so that a reader that breaks off is not taken for it.
        let _ = sender.blocking_send(Ok(None));
    });
    receiver
}

fn size_of_entry(entry: &Entry) -> usize {
    match entry {
        Entry::Record(record) => record.body.get().len(),
        Entry::Reject(reject) => reject.excerpt.len(),
    }
}

/// Counts the records beside the scan, so that progress has a total long before a large scan ends.
async fn tell_expected(options: InputOptions, ledger: Arc<dyn Ledger>, done: Arc<AtomicBool>) {
    if !can_be_read_twice(&options) {
        return;
    }
    let count = tokio::task::spawn_blocking(move || input::count(&options, || done.load(Ordering::Relaxed)));
    if let Ok(Some(count)) = count.await
        && let Err(error) = ledger.expect(count).await
    {
        tracing::debug!(%error, "could not tell how many products the input has");
    }
}

type Publish<'s> = Pin<Box<dyn Future<Output = (usize, Result<(), BrokerError>)> + Send + 's>>;

struct Scanner<'s> {
    config: &'s ProducerConfig,
    broker: &'s dyn Broker,
    ledger: &'s dyn Ledger,
    scan: u64,
    batch: u64,
    seq: u64,
    rejects: Vec<RejectLine>,
    in_flight: FuturesUnordered<Publish<'s>>,
    in_flight_bytes: usize,
    since_backlog: usize,
    report: ScanReport,
}

impl Scanner<'_> {
    async fn read(
        &mut self,
        mut batches: mpsc::Receiver<Result<Option<Batch>, InputError>>,
    ) -> anyhow::Result<()> {
        loop {
            health().rests(Role::Producer);
            let batch = batches.recv().await.context("reading the input ended abnormally")??;
            health().beat(Role::Producer);
            let Some(batch) = batch else { break };
            self.take(batch).await?;
        }
        self.send_rejects(0).await?;
        while !self.in_flight.is_empty() {
            self.confirm_one().await?;
        }
        crash::point(Point::ProducerSealing);
        self.ledger.seal(self.scan, self.batch, self.report.rejected).await?;
        crash::point(Point::ProducerSealed);
        self.report.sealed = true;
        Ok(())
    }

    async fn take(&mut self, batch: Batch) -> anyhow::Result<()> {
        let hashes: Vec<IdHash> = batch
            .iter()
            .filter_map(|entry| match entry {
                Entry::Record(record) => Some(IdHash::of(&record.id)),
                Entry::Reject(_) => None,
            })
            .collect();
        let admissions = if hashes.is_empty() {
            Vec::new()
        } else {
            self.batch += 1;
            let admissions = self.ledger.admit(self.scan, self.batch, &hashes).await?;
            crash::point(Point::ProducerAdmitted);
            admissions
        };
        let mut admissions = admissions.into_iter();
        for entry in batch {
            match entry {
                Entry::Reject(reject) => self.reject(reject).await?,
                Entry::Record(record) => {
                    let admission = admissions.next().context("the ledger answered for too few products")?;
                    self.admit(record, admission).await?;
                }
            }
        }
        Ok(())
    }

    async fn admit(&mut self, record: Record, admission: Admission) -> anyhow::Result<()> {
        self.seq += 1;
        match admission {
            Admission::Completed => self.report.completed += 1,
            Admission::Failed => self.report.failed += 1,
            Admission::Duplicate => {
                self.reject(Reject {
                    line: record.line,
                    detail: "the id came before in this input".to_owned(),
                    id: Some(record.id),
                    reason: RejectReason::DuplicateId,
                    excerpt: record.body.get().chars().take(200).collect(),
                })
                .await?;
            }
            Admission::Open { spent } => {
                let task = Task { spent, ..Task::new(record.id, self.seq, record.body) };
                self.publish(task).await?;
                self.report.published += 1;
                metrics().published.inc();
                metrics().progressed();
            }
        }
        Ok(())
    }

    async fn publish(&mut self, task: Task) -> anyhow::Result<()> {
        self.wait_for_backlog().await?;
        let size_bytes = task.product.get().len();
        while self.in_flight.len() >= self.config.window
            || (self.in_flight_bytes + size_bytes > WINDOW_BYTES && !self.in_flight.is_empty())
        {
            self.confirm_one().await?;
        }
        self.in_flight_bytes += size_bytes;
        let broker = self.broker;
        self.in_flight.push(Box::pin(async move {
            let span = Span::publish(&task.id);
            (size_bytes, span.scope(broker.publish_task(task)).await)
        }));
        Ok(())
    }

    async fn confirm_one(&mut self) -> anyhow::Result<()> {
        match self.in_flight.next().await {
            Some(published) => self.confirm(published),
            None => Ok(()),
        }
    }

    fn confirm(&mut self, (size_bytes, result): (usize, Result<(), BrokerError>)) -> anyhow::Result<()> {
        self.in_flight_bytes -= size_bytes;
        result.context("publishing a task")?;
        health().beat(Role::Producer);
        crash::point(Point::ProducerPublished);
        Ok(())
    }

    async fn wait_for_backlog(&mut self) -> anyhow::Result<()> {
        let Some(max_backlog) = self.config.max_backlog else {
            return Ok(());
        };
        self.since_backlog += 1;
        if self.since_backlog < BACKLOG_EVERY_TASKS.min(usize::try_from(max_backlog).unwrap_or(usize::MAX)) {
            return Ok(());
        }
        self.since_backlog = 0;
        while !self.in_flight.is_empty() {
            self.confirm_one().await?;
        }
        while self.broker.depths().await?.tasks >= max_backlog {
            health().beat(Role::Producer);
            tokio::time::sleep(BACKLOG_POLL).await;
        }
        Ok(())
    }

    async fn reject(&mut self, reject: Reject) -> anyhow::Result<()> {
        let Reject { line, id, reason, detail, excerpt } = reject;
        let line = RejectLine { line, id, reason: reason.to_string(), detail, excerpt };
        if self.config.strict {
            return Err(StrictReject(line).into());
        }
        self.report.rejected += 1;
        self.rejects.push(line);
        self.send_rejects(REJECTS_PER_MESSAGE).await
    }

    /// Sends the collected rejects once there are more than `keep`, one message after the other: the
    /// aggregator relies on their order.
    async fn send_rejects(&mut self, keep: usize) -> anyhow::Result<()> {
        if self.rejects.is_empty() || self.rejects.len() < keep {
            return Ok(());
        }
        let lines = std::mem::take(&mut self.rejects);
        let first = self.report.rejected + 1 - lines.len() as u64;
        let rejects = Outcome::Rejected(Rejects { scan: self.scan, first, lines });
        let publish = self.broker.publish_outcome(&rejects);
        tokio::pin!(publish);
        loop {
            // The tasks go on meanwhile: one of them may be making the connection that the rejects wait for.
            tokio::select! {
                published = &mut publish => return published.context("publishing rejects"),
                Some(published) = self.in_flight.next() => self.confirm(published)?,
            }
        }
    }
}
