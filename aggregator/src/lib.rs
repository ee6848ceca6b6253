//! Writes the results: outcomes become lines on disk, and only then are they said to be done.
//!
//! There is one writer, three times over: the folder's lock within a machine, the ledger's pen among machines,
//! and a single active consumer on the queue. Batches make the fsyncs bearable: one is written when it has
//! `checkpoint_every` outcomes or is 50 ms old, and takes whatever else has arrived by then; where outcomes come faster than
//! 10 ms apart it takes those of 10 ms, so that an fsync and the ledger's answer are shared by many.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use shelfmill_pipeline::{
    broker::{Broker, BrokerError, Consumer, Delivery},
    health::{Role, Silence, health},
    ledger::{Halt, Ledger, Progress, Pulse, Vitals},
    message::{Line, Outcome},
    metrics::metrics,
    shutdown::Stopper,
    trace::Span,
};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout, timeout_at};

mod dead;
mod durable;
mod failing;
mod finalize;
mod folder;
#[cfg(test)]
mod fuzz;
mod index;
mod line_file;
mod order;
mod pen;
mod rate;
mod replay;
mod shortage;
mod standstill;
mod summary;
mod watch;
mod writer;

pub use folder::{Folder, FolderError, RunRecord};
pub use line_file::read_lines;
pub use rate::recent_rate;
pub use replay::ReplayError;
pub use requeue::{PutBack, RequeueError, put_back, requeue};
pub use summary::{Calls, Counts, Latencies, Status, Summary, Tokens};

mod requeue;

use dead::Undertaker;
use failing::Failing;
use finalize::finalize;
use pen::{Pen, pen_of, take_pen};
use rate::Rate;
use shortage::Shortage;
use standstill::Standstill;
use watch::Watch;
use writer::{Writer, Written};

/// The oldest an outcome gets before it is written.
const BATCH_AGE: Duration = Duration::from_millis(50);
/// Batches are no closer than this.
const BATCH_EVERY: Duration = Duration::from_millis(10);
/// What one batch takes at most.
const BATCH_OUTCOMES: usize = 512;
/// Messages fetched and not settled; each has one outcome or several, some 32 KB of them.
const PREFETCH: u16 = 256;
/// How often an idle aggregator looks whether the run is complete.
const TICK: Duration = Duration::from_millis(100);
/// How long a look at what else goes on may keep outcomes waiting; it is done again.
const LOOK_PATIENCE: Duration = Duration::from_secs(3);
/// How long outcomes of a run that has paused may take to arrive.
const REST_PATIENCE: Duration = Duration::from_secs(20);
/// How often others are told how it goes.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// What an aggregator is told.
#[derive(Clone, Debug)]
pub struct AggregatorConfig {
    /// The machine this runs on, as others see it.
    pub host: String,
    /// Outcomes after which a batch is written.
    pub checkpoint_every: usize,
}

/// What an aggregator tells while it works.
#[derive(Clone, Debug)]
pub enum Event {
    /// Another aggregator writes; this one waits for its end.
    StandingBy {
        /// The other's name.
        holder: String,
    },
    /// Outcomes were written.
    Checkpoint {
        /// How far the run is.
        progress: Box<Progress>,
    },
    /// How far the run is, at least once a second.
    Progress {
        /// How far the run is.
        progress: Box<Progress>,
    },
}

impl Event {
    /// How far the run is.
    #[must_use]
    pub fn progress(&self) -> Option<&Progress> {
        match self {
            Self::StandingBy { .. } => None,
            Self::Checkpoint { progress } | Self::Progress { progress } => Some(progress),
        }
    }
}

/// Who is told.
pub type Listener = Arc<dyn Fn(Event) + Send + Sync>;

/// Who sees each line that is written, of journal and failures.
pub type Tap = Arc<dyn Fn(&str) + Send + Sync>;

/// A writer whose ledger knows what its disk knows.
pub struct Aggregator {
    config: AggregatorConfig,
    pen: Pen,
    writer: Writer,
    ledger: Arc<dyn Ledger>,
    stopper: Stopper,
    listener: Listener,
    tap: Option<Tap>,
    rate: Rate,
    cost_usd: Option<f64>,
    reported: Option<Instant>,
    watch: Watch,
    standstill: Standstill,
    failing: Failing,
    abort_failure_rate: Option<f64>,
    pulse: Option<Pulse>,
    next_batch: Instant,
    /// How far the run is, and when the ledger was asked.
    known: Option<(Instant, Progress)>,
    /// Since when nothing has changed in a run that has paused by itself.
    halted: Option<Instant>,
    is_complete: bool,
}

impl Aggregator {
    /// Takes the pen, opens the files and brings the ledger up to date with them; `None` when it was stopped
    /// while it stood by.
    pub async fn open(
        config: AggregatorConfig,
        mut folder: Folder,
        ledger: Arc<dyn Ledger>,
        stopper: Stopper,
        listener: Listener,
    ) -> anyhow::Result<Option<Self>> {
        let pen = pen_of(&config.host, &folder);
        health().waits(Role::Aggregator, "the right to write");
        if !take_pen(&pen, ledger.as_ref(), &stopper, &listener).await? {
            folder.close()?;
            return Ok(None);
        }
        health().waits(Role::Aggregator, "the lines of earlier runs");
        let undertaker = Undertaker::new(config.host.clone());
        let pen = Pen::keep(pen, Arc::clone(&ledger));
        let (writer, told_cost_usd) = match Writer::open(folder, ledger.as_ref(), stopper.clone()).await {
            Ok(opened) => opened,
            Err(error) => {
                pen.give_back().await;
                return Err(error);
            }
        };
        let known_cost_usd = ledger.progress().await?.vitals.and_then(|vitals| vitals.cost_usd);
        Ok(Some(Self {
            config,
            pen,
            writer,
            ledger,
            stopper,
            listener,
            tap: None,
            rate: Rate::default(),
            cost_usd: Some(known_cost_usd.unwrap_or(0.0) + told_cost_usd),
            reported: None,
            watch: Watch::default(),
            standstill: Standstill::new(undertaker),
            failing: Failing::default(),
            abort_failure_rate: None,
            pulse: None,
            next_batch: Instant::now(),
            known: None,
            halted: None,
            is_complete: false,
        }))
    }

    /// Shows this one each line that is written from now on.
    pub fn show_lines(&mut self, tap: Tap) {
        self.tap = Some(tap);
    }

    /// Writes until the run is complete or the stopper stops it; the summary says which.
    pub async fn run(mut self, broker: &dyn Broker) -> anyhow::Result<Summary> {
        let result = self.write(broker).await;
        health().ended(Role::Aggregator);
        self.pen.give_back().await;
        result
    }

    async fn write(&mut self, broker: &dyn Broker) -> anyhow::Result<Summary> {
        let status = self.work(broker).await?;
        health().waits(Role::Aggregator, "the last files");
        let mut shortage = Shortage::new(&self.stopper);
        loop {
            match Self::finish(&mut self.writer, self.ledger.as_ref(), status).await {
                Ok(summary) => {
                    shortage.over();
                    return Ok(summary);
                }
                Err(error) => shortage.wait(error).await?,
            }
        }
    }

    /// The last files; can be done again.
    async fn finish(writer: &mut Writer, ledger: &dyn Ledger, status: Status) -> anyhow::Result<Summary> {
        let (_, rejected) = writer.rejects();
        let summary = finalize(&mut writer.folder, ledger, rejected, status).await?;
        writer.folder.close()?;
        Ok(summary)
    }
}

impl Aggregator {
    async fn work(&mut self, broker: &dyn Broker) -> anyhow::Result<Status> {
        let stopper = self.stopper.clone();
        let mut outcomes = tokio::select! {
            outcomes = broker.outcomes(PREFETCH) => outcomes?,
            () = stopper.stopped() => return Ok(Status::Interrupted),
        };
        let mut silence = Silence::of(Role::Aggregator);
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            health().beat(Role::Aggregator);
            silence.waits();
            let first = tokio::select! {
                first = outcomes.next() => match first {
                    Ok(first) => {
                        silence.ends();
                        Some(first)
                    }
                    // The other roles of this process have ended, and everything they left is written.
                    Err(BrokerError::Closed) => break,
                    Err(error) => return Err(error.into()),
                },
                _ = ticks.tick() => None,
                () = stopper.stopped() => break,
            };
            match first {
                Some(first) => self.checkpoint(first, outcomes.as_mut()).await?,
                None => {
                    let progress = self.look().await?;
                    tokio::select! {
                        looked = self.standstill.look(broker, self.ledger.as_ref(), &progress, self.is_complete) => looked?,
                        // What keeps it (a full Redis, an alarm of RabbitMQ) may be freed by the next batch.
                        () = sleep(LOOK_PATIENCE) => {}
                        () = stopper.stopped() => {}
                    }
                    if silence.is_to_look()
                        && let Ok(depths) = timeout(LOOK_PATIENCE, broker.depths()).await
                    {
                        silence.looked(depths?.outcomes);
                    }
                    if self.has_come_to_rest(broker, &progress).await? {
                        outcomes.close().await?;
                        return Ok(Status::Paused);
                    }
                }
            }
            if self.is_complete {
                if broker.repeats() {
                    self.settle_repeats(broker, outcomes.as_mut()).await?;
                }
                outcomes.close().await?;
                self.look().await?;
                return Ok(Status::Complete);
            }
            if let Some(holder) = self.pen.lost_to() {
                anyhow::bail!(
                    "{holder} writes the results of this run now, because this process was not heard of"
                );
            }
        }
        outcomes.close().await?;
        let progress = self.look().await?;
        Ok(match progress.halt {
            _ if self.is_complete => Status::Complete,
            Some(halt) if !halt.is_asked() => Status::Paused,
            Some(_) | None => Status::Interrupted,
        })
    }

    /// Whether a run that has paused by itself has nothing under way any more, or nothing that comes.
    async fn has_come_to_rest(&mut self, broker: &dyn Broker, progress: &Progress) -> anyhow::Result<bool> {
        if progress.halt.as_ref().is_none_or(Halt::is_asked) {
            self.halted = None;
            return Ok(false);
        }
        let since = *self.halted.get_or_insert_with(Instant::now);
        if self.ledger.claimed().await? > 0 {
            return Ok(false);
        }
        let is_answered = self.ledger.answered().await? == 0 || since.elapsed() > REST_PATIENCE;
        let depths = tokio::select! {
            depths = broker.depths() => depths?,
            () = self.stopper.stopped() => return Ok(false),
        };
        Ok(is_answered && depths.outcomes == 0)
    }

    /// Outcomes that came twice may wait behind the last one that was needed: they are dropped now, rather than left in
    /// the queue for ever.
    async fn settle_repeats(
        &mut self,
        broker: &dyn Broker,
        outcomes: &mut dyn Consumer<Outcome>,
    ) -> anyhow::Result<()> {
        const QUIET: Duration = Duration::from_millis(20);
        loop {
            while let Ok(Ok(first)) = tokio::time::timeout(QUIET, outcomes.next()).await {
                self.checkpoint(first, outcomes).await?;
            }
            let depths = tokio::select! {
                depths = broker.depths() => depths?,
                // What is left is dropped by the next one.
                () = self.stopper.stopped() => return Ok(()),
            };
            if depths.outcomes == 0 {
                return Ok(());
            }
        }
    }

    async fn checkpoint(
        &mut self,
        first: Delivery<Outcome>,
        outcomes: &mut dyn Consumer<Outcome>,
    ) -> anyhow::Result<()> {
        let batch = collect(first, outcomes, self.config.checkpoint_every, self.next_batch).await?;
        self.next_batch = Instant::now() + BATCH_EVERY;
        let spans: Vec<_> = batch.iter().map(span_of).collect();
        let (failing, tap) = (&mut self.failing, &self.tap);
        let mut look = |line: &Line| {
            failing.add(line);
            if let Some(tap) = tap {
                tap(line.json());
            }
        };
        let written = self.writer.write(batch, self.ledger.as_ref(), &mut look).await?;
        drop(spans);
        self.halted = self.halted.map(|_| Instant::now());
        self.cost_usd = self.cost_usd.zip(written.cost_usd).map(|(sum, cost)| sum + cost);
        self.rate.add(written.completed + written.failed);
        metrics().recorded(written.completed, written.failed);
        if let Some(halt) = self.abort_failure_rate.and_then(|rate| self.failing.halt(rate)) {
            self.ledger.halt(&halt).await?;
        }
        let progress = Box::new(self.progress_with(&written).await?);
        (self.listener)(match written.completed + written.failed {
            0 => Event::Progress { progress },
            _ => Event::Checkpoint { progress },
        });
        Ok(())
    }

    /// How far the run is after a batch. The ledger is asked a few times a second, and when this may have been the last one.
    async fn progress_with(&mut self, written: &Written) -> anyhow::Result<Progress> {
        if let Some((asked, known)) = &mut self.known
            && asked.elapsed() < TICK
        {
            known.completed += written.completed;
            known.failed += written.failed;
            if let Some(scan) = &mut known.scan {
                scan.completed += written.completed;
                scan.failed += written.failed;
            }
            let (completed, failed) = known.done();
            if known.total().is_none_or(|total| completed + failed < total) {
                return Ok(known.clone());
            }
        }
        self.progress().await
    }

    /// How far the run is, also while nothing comes.
    async fn look(&mut self) -> anyhow::Result<Progress> {
        self.writer.look_after(self.ledger.as_ref()).await?;
        let progress = self.progress().await?;
        if progress.total().is_some() && progress.total() != self.writer.folder.record().expected {
            // For those who watch; what cannot be written now is written the next time.
            let _ = self.writer.folder.update(|record| record.expected = progress.total());
        }
        (self.listener)(Event::Progress { progress: Box::new(progress.clone()) });
        Ok(progress)
    }

    async fn progress(&mut self) -> anyhow::Result<Progress> {
        let vitals = Vitals { products_per_second: self.rate.per_second(), cost_usd: self.cost_usd };
        if self.reported.is_none_or(|reported| reported.elapsed() >= REPORT_EVERY) {
            self.reported = Some(Instant::now());
            self.ledger.report(&vitals).await?;
            let job = self.ledger.job().await?;
            self.abort_failure_rate = job.as_ref().map(|job| job.limits.abort_failure_rate);
            let pulses = self.ledger.pulses().await?;
            self.pulse = Some(Pulse::sum(pulses.values()));
            metrics().budget(job.and_then(|job| job.limits.budget));
            metrics().workers.set(i64::try_from(pulses.len()).unwrap_or(i64::MAX));
            metrics().spent_usd.set(self.cost_usd.unwrap_or(0.0));
        }
        let progress = Progress { vitals: Some(vitals), pulse: self.pulse, ..self.ledger.progress().await? };
        metrics().run(progress.total(), progress.completed, progress.failed);
        let is_known = self.watch.look(&progress, self.writer.has_lines());
        self.is_complete = match progress.scan {
            Some(scan) if is_known && scan.is_complete() => {
                let (rejects_scan, rejects) = self.writer.rejects();
                if scan.rejected == 0 && scan.scan > rejects_scan {
                    self.writer.forget_rejects(scan.scan).await?;
                }
                scan.rejected == 0
                    || rejects_scan > scan.scan
                    || (rejects_scan == scan.scan && rejects >= scan.rejected)
            }
            _ => false,
        };
        self.known = Some((Instant::now(), progress.clone()));
        Ok(progress)
    }
}

fn span_of(delivery: &Delivery<Outcome>) -> Option<Span> {
    match &delivery.message {
        Outcome::Completed(line) => Some(Span::record(line.id(), &delivery.trace)),
        Outcome::Failed(line) => Some(Span::record(line.id(), &delivery.trace)),
        Outcome::Rejected(_) => None,
    }
}

/// A batch: at least the first, at most [`BATCH_OUTCOMES`], no older than [`BATCH_AGE`], and not whole before `not_before`.
async fn collect(
    first: Delivery<Outcome>,
    outcomes: &mut dyn Consumer<Outcome>,
    checkpoint_every: usize,
    not_before: Instant,
) -> anyhow::Result<Vec<Delivery<Outcome>>> {
    let deadline = tokio::time::Instant::now() + BATCH_AGE;
    let mut batch = vec![first];
    while batch.len() < BATCH_OUTCOMES {
        let next = if batch.len() < checkpoint_every {
            timeout_at(deadline, outcomes.next()).await.ok()
        } else if Instant::now() < not_before {
            match timeout_at(not_before.into(), outcomes.next()).await {
                Ok(next) => Some(next),
                Err(_) => continue,
            }
        } else {
            outcomes.next().now_or_never()
        };
        match next {
            Some(Ok(next)) => batch.push(next),
            // Told again when the next batch is begun.
            Some(Err(BrokerError::Closed)) | None => break,
            Some(Err(error)) => return Err(error.into()),
        }
    }
    Ok(batch)
}
