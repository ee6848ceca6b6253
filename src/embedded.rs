//! The three roles in one process, over channels, with a ledger rebuilt from the journal.
//!
//! A complete run is ended by the aggregator, which sees that it is. After a stop they end from the front: the producer,
//! then the worker when it has finished what it holds, then the aggregator when it has written what the others left.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::{Context as _, anyhow};
use shelfmill_aggregator::{Aggregator, AggregatorConfig, Folder, PutBack, Summary, put_back};
use shelfmill_pipeline::{
    broker::MemoryBroker,
    job::Job,
    ledger::{EmbeddedLedger, Ledger},
    shutdown::Stopper,
};
use shelfmill_producer::ProducerConfig;
use shelfmill_worker::{Ended, WorkerConfig};
use tokio::task::JoinHandle;

use crate::{
    cli::{RunArgs, WhichArgs},
    end::{self, Usage},
    job,
    page::{self, Reporter},
    progress::{self, Ending},
    signals, simulate,
    telemetry::Screen,
};

const DEFAULT_OUT: &str = "output";
const DEFAULT_RUN: &str = "default";
/// Tasks that wait for a worker, at most; it can have as many as it works on at once.
const TASKS_AHEAD: u32 = 1_000;

/// Where a run's results go, unless it is told.
pub(crate) fn out_folder(out: Option<PathBuf>, run: Option<&str>) -> PathBuf {
    out.unwrap_or_else(|| run.map_or(PathBuf::from(DEFAULT_OUT), |run| PathBuf::from(DEFAULT_OUT).join(run)))
}

/// The folder of a run in one process, if that is what is asked about: named by --out, or where `run --run NAME` puts it.
pub(crate) fn local_folder(which: &WhichArgs) -> Option<PathBuf> {
    which.out.clone().or_else(|| {
        let folder = out_folder(None, Some(which.run.as_deref()?));
        Folder::read_record(&folder).ok().flatten().filter(|record| record.job.is_some()).map(|_| folder)
    })
}

/// `shelfmill run`.
pub(crate) async fn run(args: RunArgs, screen: &Screen) -> anyhow::Result<ExitCode> {
    let stopper = signals::stopper(args.process.grace)?;
    let mut job = job::job(&args.job)?;
    let name = args.run.as_deref().unwrap_or(DEFAULT_RUN);
    let live = page::live(&args.process, &args.page, name, job.limits.budget, screen).await?;
    if args.simulate {
        // Under its own name, so that no later run takes simulated answers for a model's.
        shelfmill_simulator::MODEL.clone_into(&mut job.llm.model);
        job.llm.endpoints.clear();
        job.llm.base_url = Some(simulate::start_inside().await?);
        job.check_budget()?;
    } else if !job::names_a_model(&job) {
        return Err(anyhow!(Usage(
            "there is no model to ask. Choose one of:\n  \
             --simulate                    the built-in simulator, to try things out\n  \
             OPENAI_API_KEY=...            OpenAI, with your key in the environment\n  \
             --base-url URL --model NAME   any OpenAI-compatible server (also OPENAI_BASE_URL)"
                .to_owned()
        )));
    }

    let out = out_folder(args.out.clone(), args.run.as_deref());
    let input = job::input(&args.input);
    // What is wrong with input or job is told before there is a folder.
    tokio::task::spawn_blocking({
        let job = job.clone();
        move || {
            shelfmill_producer::check_opens(&input)?;
            job::check_prompt(&job, &input)
        }
    })
    .await??;
    let (folder, ledger) = open(&args, &out, name, &job).await?;

    let config = AggregatorConfig {
        host: crate::fleet::host(),
        checkpoint_every: args.checkpoints.checkpoint_every as usize,
    };
    let has_report = args.checkpoints.report;
    let (reporter, listener) = Reporter::new(&out, progress::listener(screen), has_report);
    let listener = live.iter().fold(listener, |listener, live| live.listener(listener));
    let budget = job.limits.budget;
    let ledger: Arc<dyn Ledger> = Arc::new(ledger);
    // The ledger knows what is done before the producer asks.
    let mut aggregator =
        Aggregator::open(config, folder, Arc::clone(&ledger), stopper.for_the_last(), listener)
            .await?
            .context("the aggregator was stopped before it began")?;
    if let Some(live) = &live {
        live.follow(&mut aggregator, &out);
    }
    let roles = Roles::start(&args, job, Arc::clone(&ledger), aggregator, stopper);
    if let Some(live) = &live {
        live.watch(ledger, roles.broker.clone());
    }
    let summary = roles.finish().await?;
    reporter.write(&summary, budget)?;
    page::end(live.as_ref(), &summary, &out, budget).await;
    let which = format!("--out {}", out.display());
    let again = "run the same command again";
    progress::conclude(screen, &summary, &Ending { out: &out, again, which: &which, has_report });
    Ok(end::of_summary(&summary))
}

/// The folder and a ledger that knows its job, what was under way, and what was put back.
async fn open(
    args: &RunArgs,
    out: &std::path::Path,
    name: &str,
    job: &Job,
) -> anyhow::Result<(Folder, EmbeddedLedger)> {
    if Folder::read_record(out)?.is_some_and(|record| record.run == name && record.job.is_none()) {
        return Err(anyhow!(Usage(format!(
            "{} has the results of a fleet's run; choose another folder with --out",
            out.display()
        ))));
    }
    let mut folder = Folder::open(out, name)?;
    let ledger = EmbeddedLedger::new();
    if let Some(known) = &folder.record().job {
        ledger.begin(known, true).await?;
    }
    job::begin(&ledger, job, name, args.job.accept_changed_job).await?;
    folder.update(|record| record.job = Some(job.clone()))?;
    ledger.number_scans_after(folder.record().rejects_scan);
    ledger.watch_inflight(&folder.state_file("inflight"))?;
    if job.limits.dedupe_prompts {
        ledger.keep_prompts(&folder.state_file("prompts"))?;
    }
    for (product, PutBack { spent, changes }) in put_back(&folder)? {
        ledger.remember_spent(product, spent);
        if !changes.is_empty() {
            ledger.remember_changes(product, changes);
        }
    }
    Ok((folder, ledger))
}

struct Roles {
    producer: JoinHandle<anyhow::Result<()>>,
    worker: JoinHandle<anyhow::Result<Ended>>,
    aggregator: JoinHandle<anyhow::Result<Summary>>,
    stopper: Stopper,
    broker: Arc<MemoryBroker>,
}

impl Roles {
    fn start(
        args: &RunArgs,
        job: Job,
        ledger: Arc<dyn Ledger>,
        aggregator: Aggregator,
        stopper: Stopper,
    ) -> Self {
        let concurrency = args.work.concurrency.unwrap_or(job.limits.concurrency);
        // Enough that a worker never waits for a task, and no more.
        let broker = Arc::new(MemoryBroker::new((concurrency + concurrency.min(TASKS_AHEAD)) as usize + 64));
        // With an end of their own, so that an error of one role ends the others in order.
        let stopper = stopper.child();
        let producer = shelfmill_producer::run(
            ProducerConfig {
                name: crate::fleet::identity(),
                input: job::input(&args.input),
                strict: args.input.strict,
                window: 1,
                max_backlog: None,
            },
            broker.clone(),
            Arc::clone(&ledger),
            stopper.clone(),
        );
        let worker = shelfmill_worker::run(
            WorkerConfig {
                name: crate::fleet::identity(),
                concurrency: Some(concurrency),
                base_url: None,
                find_key: crate::fleet::find_key,
                recycle_client_every: args.work.recycle_client_every,
                until_done: false,
                until_halted: true,
            },
            broker.clone(),
            ledger,
            stopper.clone(),
        );
        Self {
            producer: tokio::spawn({
                let stopper = stopper.clone();
                async move {
                    // In a task of its own, so that a panic ends the other roles, too.
                    let ended = tokio::spawn(producer).await.context("the producer ended abnormally");
                    ended.and_then(|ended| ended.map(drop)).inspect_err(|_| stopper.stop())
                }
            }),
            worker: tokio::spawn(worker),
            aggregator: tokio::spawn({
                let broker = Arc::clone(&broker);
                async move { aggregator.run(broker.as_ref()).await }
            }),
            stopper,
            broker,
        }
    }

    async fn finish(self) -> anyhow::Result<Summary> {
        let Self { producer, mut worker, mut aggregator, stopper, broker } = self;
        let (produced, worked, written) = tokio::select! {
            worked = &mut worker => {
                // Told to stop, or broken: what the others left is written.
                stopper.stop();
                let produced = producer.await;
                broker.end_outcomes();
                (produced, worked, aggregator.await)
            }
            written = &mut aggregator => {
                // Complete: nothing is in flight. Broken: what is in flight cannot be saved.
                stopper.stop();
                if !matches!(written, Ok(Ok(_))) {
                    stopper.abort();
                }
                let worked = worker.await;
                (producer.await, worked, written)
            }
        };
        // From the end to the front: an earlier role's error may only be the consequence of a later one's.
        let summary = written.context("the aggregator ended abnormally")??;
        worked.context("the worker ended abnormally")??;
        produced.context("the producer ended abnormally")??;
        Ok(summary)
    }
}
