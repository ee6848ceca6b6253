//! Takes tasks, asks the model, and sees each product to its outcome.
//!
//! A worker keeps nothing: everything it must not forget is with the broker or in the ledger before it goes on
//! (see [`product`] for the steps). So any number of workers may run, and any of them may die at any moment.
//! Memory is bounded by `concurrency`: a task is begun only when a place is free for it ([`ahead`]), and a few more than that are
//! fetched or being told of.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use shelfmill_pipeline::{
    broker::{Broker, BrokerError, Consumer, Delivery, Prefetch},
    health::{Role, Silence, health},
    job::Job,
    ledger::{Halt, Ledger, LedgerError, Pulse},
    message::Task,
    shutdown::Stopper,
};
use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, Interval, MissedTickBehavior, interval, timeout},
};

mod ahead;
mod analysis;
mod analysts;
mod answer;
mod attempt;
mod conversation;
mod estimate;
mod hedge;
mod images;
mod lease;
mod model;
mod product;
mod refusals;
mod routes;
mod same_prompt;

use ahead::Places;
pub use estimate::{Corrector, Estimate, Estimator, estimate_tokens};
pub use images::count_images;
use lease::RENEW_EVERY;
use product::{Desk, FAREWELL};
pub use routes::FindKey;
pub use shelfmill_pipeline::job::{BadBaseUrl, check_base_url};

/// What a worker is told, beside the job.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Who this is, in claims and results; unique among the workers of a run.
    pub name: String,
    /// Products at once; `None`: as the job says.
    pub concurrency: Option<u32>,
    /// The model's API; `None`: as the job says, else OpenAI's.
    pub base_url: Option<String>,
    /// How a key is found by the name of its variable; a local server needs none.
    pub find_key: FindKey,
    /// Build the HTTP client anew after so many calls; 0: never.
    pub recycle_client_every: u32,
    /// End when every product is done, rather than waiting for more.
    pub until_done: bool,
    /// End when the run has paused by itself, rather than waiting until it goes on.
    pub until_halted: bool,
}

/// How a worker ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to, or everything is done.
    InOrder,
    /// The run has paused by itself.
    Halted(Halt),
}

/// OpenAI is to be asked, and there is no key.
#[derive(Debug, thiserror::Error)]
#[error("there is no key for OpenAI: set OPENAI_API_KEY, or name another server with --base-url")]
pub struct NoKey;

/// Where OpenAI answers.
pub const OPENAI_BASE_URL: &str = "https://api.openai.com/v1";
/// The most products one worker may have under way.
pub const MAX_CONCURRENCY: u32 = 50_000;

/// How often a worker looks for a job that is not there yet; in the beginning more often, since roles are started together.
const JOB_POLL: Duration = Duration::from_secs(1);
const FIRST_JOB_POLL: Duration = Duration::from_millis(20);
/// How often a worker that ends with the run asks whether it has ended.
const DONE_POLL: Duration = Duration::from_millis(100);
/// How long a look at the queue may take.
const LOOK_PATIENCE: Duration = Duration::from_secs(3);

/// Works until the stopper stops it (or the run is done, where the configuration says so). Returns an error
/// when something is wrong that time does not heal.
pub async fn run(
    config: WorkerConfig,
    broker: Arc<dyn Broker>,
    ledger: Arc<dyn Ledger>,
    stopper: Stopper,
) -> anyhow::Result<Ended> {
    health().waits(Role::Worker, "the run's job");
    let result = work_sessions(config, broker, ledger, stopper).await;
    health().ended(Role::Worker);
    result
}

async fn work_sessions(
    config: WorkerConfig,
    broker: Arc<dyn Broker>,
    ledger: Arc<dyn Ledger>,
    stopper: Stopper,
) -> anyhow::Result<Ended> {
    loop {
        if let Some(halt) = halt_of_run(ledger.as_ref(), &stopper).await? {
            if config.until_halted && !halt.is_asked() {
                return Ok(Ended::Halted(halt));
            }
            tracing::warn!(reason = %halt, "the run has paused; this worker waits until it goes on");
            health().waits(Role::Worker, "the run, which has paused,");
            until_it_goes_on(&config.name, ledger.as_ref(), &stopper).await?;
        }
        // With an end of its own: a pause of the run ends what this worker does, and not the worker.
        let session = stopper.child();
        let is_halted =
            work_session(config.clone(), Arc::clone(&broker), Arc::clone(&ledger), session).await?;
        if !is_halted || stopper.is_stopped() {
            return Ok(Ended::InOrder);
        }
    }
}

async fn halt_of_run(ledger: &dyn Ledger, stopper: &Stopper) -> anyhow::Result<Option<Halt>> {
    tokio::select! {
        halt = ledger.halted() => Ok(halt?),
        () = stopper.stopped() => Ok(None),
    }
}

/// Waits, and is heard of meanwhile: a worker that waits is there, for those who look, for alerts and for `purge`.
async fn until_it_goes_on(name: &str, ledger: &dyn Ledger, stopper: &Stopper) -> anyhow::Result<()> {
    let mut told: Option<Instant> = None;
    while halt_of_run(ledger, stopper).await?.is_some() {
        if told.is_none_or(|told| told.elapsed() >= RENEW_EVERY) {
            told = Some(Instant::now());
            let _ = timeout(FAREWELL, ledger.tell_pulse(name, Some(&Pulse::default()))).await;
        }
        tokio::select! {
            () = tokio::time::sleep(JOB_POLL) => {}
            () = stopper.stopped() => break,
        }
    }
    let _ = timeout(FAREWELL, ledger.tell_pulse(name, None)).await;
    if !stopper.is_stopped() {
        tracing::info!("the run goes on");
    }
    Ok(())
}

/// Works until the stopper is stopped, by others or because the run has paused: whether that was it.
async fn work_session(
    config: WorkerConfig,
    broker: Arc<dyn Broker>,
    ledger: Arc<dyn Ledger>,
    stopper: Stopper,
) -> anyhow::Result<bool> {
    let Some(job) = job_of_run(ledger.as_ref(), &stopper).await? else { return Ok(false) };
    let concurrency = config.concurrency.unwrap_or(job.limits.concurrency).clamp(1, MAX_CONCURRENCY);
    let until_done = config.until_done;
    let desk = Arc::new(Desk::new(config, job, concurrency, broker, ledger, stopper.clone())?);
    tokio::select! {
        () = desk.begin() => {}
        () = stopper.stopped() => return Ok(false),
    }
    tracing::info!(worker = desk.name(), concurrency, "ready for products");

    // More than can be worked on: the next product is here when a place becomes free, while the broker is still being told of
    // those before it.
    let prefetch = Prefetch::of_places(concurrency);
    let mut tasks = tokio::select! {
        tasks = desk.broker().tasks(prefetch) => tasks?,
        () = stopper.stopped() => return Ok(false),
    };
    health().beat(Role::Worker);
    let upkeep = tokio::spawn({
        let desk = Arc::clone(&desk);
        async move { desk.upkeep().await }
    });
    let places = Places::new(concurrency);
    let result = work(&desk, tasks.as_mut(), (places, prefetch), until_done, &stopper).await;
    upkeep.abort();
    desk.abandon().await;
    tracing::info!(worker = desk.name(), "ended");
    unless_aborted(result)?;
    Ok(desk.is_halted())
}

async fn job_of_run(ledger: &dyn Ledger, stopper: &Stopper) -> anyhow::Result<Option<Job>> {
    let (mut told, mut poll) = (false, FIRST_JOB_POLL);
    loop {
        let job = tokio::select! {
            job = ledger.job() => job?,
            () = stopper.stopped() => return Ok(None),
        };
        if let Some(job) = job {
            return Ok(Some(job));
        }
        if !told {
            told = true;
            tracing::info!("the run has no job yet, waiting for its producer");
        }
        tokio::select! {
            () = tokio::time::sleep(poll) => poll = (poll * 2).min(JOB_POLL),
            () = stopper.stopped() => return Ok(None),
        }
    }
}

async fn work(
    desk: &Arc<Desk>,
    tasks: &mut dyn Consumer<Task>,
    (mut places, prefetch): (Places, Prefetch),
    until_done: bool,
    stopper: &Stopper,
) -> anyhow::Result<()> {
    let mut running = JoinSet::new();
    let mut silence = Silence::of(Role::Worker);
    let mut result = Ok(());
    let stopped = stopper.stopped();
    tokio::pin!(stopped);
    let mut looks = interval(DONE_POLL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // The place first: a task that is fetched can be begun.
        let place = tokio::select! {
            place = places.take() => place?,
            () = &mut stopped => break,
        };
        silence.waits();
        let next = tokio::select! {
            biased;
            () = &mut stopped => break,
            next = next_task(desk, tasks, &mut running, &mut silence, until_done, &mut looks) => next,
        };
        match next {
            Ok(Some(delivery)) => {
                silence.ends();
                let its_desk = Arc::clone(desk);
                // Boxed where it is made: else it is copied on its way to the runtime, all 4 KB of it, more than once.
                running.spawn(Box::pin(async move { its_desk.process(delivery, place).await }));
                if let Some(ahead) = places.look(desk.calls())
                    && tasks.set_prefetch(prefetch.and_ahead(ahead))
                {
                    places.set_ahead(ahead);
                }
            }
            Ok(None) => break,
            Err(error) => {
                result = Err(error);
                break;
            }
        }
    }
    // What was fetched and not begun goes back first, so that others can have it while the rest finishes.
    let closed = tasks.close().await.context("giving back tasks");
    let drained = drain(&mut running, stopper).await;
    let told = tasks.told().await.context("acknowledging tasks");
    result.and(closed).and(drained).and(told)
}

/// The next task; `None` when the run is done.
async fn next_task(
    desk: &Desk,
    tasks: &mut dyn Consumer<Task>,
    running: &mut JoinSet<anyhow::Result<()>>,
    silence: &mut Silence,
    until_done: bool,
    looks: &mut Interval,
) -> anyhow::Result<Option<Delivery<Task>>> {
    let next = tasks.next();
    tokio::pin!(next);
    loop {
        tokio::select! {
            biased;
            Some(ended) = running.join_next() => check(ended)?,
            delivery = &mut next => return Ok(Some(delivery?)),
            _ = looks.tick() => {
                if silence.is_to_look()
                    && let Ok(depths) = timeout(LOOK_PATIENCE, desk.broker().depths()).await
                {
                    silence.looked(depths?.tasks);
                }
                if until_done && running.is_empty() && desk.run_is_done().await? {
                    return Ok(None);
                }
            }
        }
    }
}

async fn drain(running: &mut JoinSet<anyhow::Result<()>>, stopper: &Stopper) -> anyhow::Result<()> {
    let mut result = Ok(());
    loop {
        tokio::select! {
            ended = running.join_next() => match ended {
                Some(ended) => result = result.and(check(ended)),
                None => return result,
            },
            () = stopper.aborted() => {
                tracing::warn!(calls = running.len(), "the grace is over, calls under way are given up");
                running.shutdown().await;
                return result;
            }
        }
    }
}

fn check(ended: Result<anyhow::Result<()>, JoinError>) -> anyhow::Result<()> {
    unless_aborted(ended.context("a product's task ended abnormally")?)
}

/// A product that was let go of at the end of the grace is no error: its task comes again.
fn unless_aborted(result: anyhow::Result<()>) -> anyhow::Result<()> {
    result.or_else(|error| {
        let aborted = error.chain().any(|cause| {
            matches!(cause.downcast_ref(), Some(BrokerError::Aborted))
                || matches!(cause.downcast_ref(), Some(LedgerError::Aborted))
        });
        if aborted { Ok(()) } else { Err(error) }
    })
}
