//! The roles as processes of their own, which meet at RabbitMQ and Redis.

use std::{process::ExitCode, sync::Arc};

use anyhow::Context as _;
use secrecy::SecretString;
use shelfmill_aggregator::{Aggregator, AggregatorConfig, Folder};
use shelfmill_pipeline::{
    broker::{Connect, RabbitBroker, RabbitConfig},
    ledger::{Ledger, RedisConfig, RedisLedger, Version},
    shutdown::Stopper,
};
use shelfmill_producer::ProducerConfig;
use shelfmill_worker::{Ended, WorkerConfig, check_base_url};

use crate::{
    cli::{AggregatorArgs, FleetArgs, ProducerArgs, ServerArgs, WorkerArgs},
    end::{self, DONE, INTERRUPTED, PAUSED},
    foreign, job, listen,
    page::{self, Reporter},
    progress::{self, Ending},
    signals,
    telemetry::Screen,
};

/// Tasks published and not confirmed: RabbitMQ confirms quorum queues in batches, and this fills them.
const PUBLISH_WINDOW: usize = 1_024;

/// A key of the model, which comes from the environment and from nowhere else.
pub(crate) fn find_key(variable: &str) -> Option<SecretString> {
    std::env::var(variable).ok().filter(|key| !key.trim().is_empty()).map(SecretString::from)
}

/// Who this process is: unique among all processes of a fleet, and readable.
pub(crate) fn identity() -> String {
    format!("{}-{}-{:04x}", host(), std::process::id(), rand::random::<u16>())
}

/// The machine's name, as others see it.
pub(crate) fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "localhost".to_owned() } else { name.trim().to_owned() }
}

/// The ledger of a run.
pub(crate) fn ledger(
    run: &str,
    servers: &ServerArgs,
    connect: Connect,
    stopper: Stopper,
) -> anyhow::Result<RedisLedger> {
    let config = RedisConfig {
        url: servers.redis_url.clone(),
        run: run.to_owned(),
        ca_file: servers.tls_ca.clone(),
        connect,
    };
    Ok(RedisLedger::new(&config, stopper)?)
}

/// The broker of a run.
pub(crate) fn broker(
    run: &str,
    servers: &ServerArgs,
    role: &str,
    connect: Connect,
    stopper: Stopper,
) -> anyhow::Result<RabbitBroker> {
    let config = RabbitConfig {
        url: servers.amqp_url.clone(),
        run: run.to_owned(),
        client_name: format!("shelfmill {role} {}", identity()),
        ca_file: servers.tls_ca.clone(),
        connect,
    };
    Ok(RabbitBroker::new(config, stopper)?)
}

fn both(
    fleet: &FleetArgs,
    role: &str,
    stopper: &Stopper,
) -> anyhow::Result<(Arc<RabbitBroker>, Arc<RedisLedger>)> {
    Ok((
        Arc::new(broker(&fleet.run, &fleet.servers, role, Connect::Forever, stopper.clone())?),
        Arc::new(ledger(&fleet.run, &fleet.servers, Connect::Forever, stopper.clone())?),
    ))
}

/// Others of which so many are named.
const NAMED: usize = 5;

/// Meets the other roles of the run: one of another build is told, and one that has no messages in common ends this. `false`
/// where it was stopped first.
async fn meet(role: &str, ledger: &RedisLedger, stopper: &Stopper) -> anyhow::Result<bool> {
    let others = tokio::select! {
        others = ledger.meet(role) => others?,
        () = stopper.stopped() => return Ok(false),
    };
    let own = Version::own();
    if let Some((name, other)) = others.iter().find(|(_, other)| !own.works_with(other)) {
        anyhow::bail!(
            "this {role} is Shelfmill {own} and cannot work with the {name}, which is {other}: their messages have no version in \
             common. Finish or purge the run with that version first, or use another --run name"
        );
    }
    let differ: Vec<_> = others
        .iter()
        .filter(|(_, other)| other.version != own.version)
        .map(|(name, other)| format!("{name} {other}"))
        .collect();
    if !differ.is_empty() {
        let named = differ[..differ.len().min(NAMED)].join(", ");
        tracing::warn!(
            own = %own,
            others = named,
            count = differ.len(),
            "roles of other versions are in this run; they work together: finish the upgrade when it suits"
        );
    }
    Ok(true)
}

/// Does a role's work on the runtime's own threads: the main thread would be woken for each message and would wake the others.
async fn on_the_runtime<T: Send + 'static>(
    role: impl Future<Output = anyhow::Result<T>> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::spawn(role).await.context("the role ended abnormally")?
}

/// `shelfmill producer`.
pub(crate) async fn producer(args: ProducerArgs) -> anyhow::Result<ExitCode> {
    let stopper = signals::stopper(args.process.grace)?;
    listen::start(args.process.listen, None).await?;
    let job = job::job(&args.job)?;
    let (broker, ledger) = both(&args.fleet, "producer", &stopper)?;
    tokio::task::spawn_blocking({
        let (job, input) = (job.clone(), job::input(&args.input));
        move || job::check_prompt(&job, &input)
    })
    .await??;
    let run = &args.fleet.run;
    let config = ProducerConfig {
        name: identity(),
        input: job::input(&args.input),
        strict: args.input.strict,
        window: PUBLISH_WINDOW,
        max_backlog: Some(args.max_backlog),
    };
    if !meet("producer", &ledger, &stopper).await? {
        return Ok(ExitCode::from(INTERRUPTED));
    }
    // Nothing is in flight while servers are waited for: a stop need not wait for the grace.
    tokio::select! {
        begun = job::begin(ledger.as_ref(), &job, run, args.job.accept_changed_job) => begun?,
        () = stopper.stopped() => return Ok(ExitCode::from(INTERRUPTED)),
    }
    let report = on_the_runtime(shelfmill_producer::run(config, broker, ledger, stopper)).await?;
    tracing::info!(
        published = report.published,
        already_completed = report.completed,
        already_failed = report.failed,
        rejected = report.rejected,
        "{}",
        if report.sealed { "read the whole input" } else { "stopped; run the same command again to go on" }
    );
    if let Some(halt) = &report.halted {
        eprintln!("Paused: {}", foreign::line(&halt.to_string()));
        return Ok(ExitCode::from(PAUSED));
    }
    Ok(ExitCode::from(if report.sealed { DONE } else { INTERRUPTED }))
}

/// `shelfmill worker`.
pub(crate) async fn worker(args: WorkerArgs) -> anyhow::Result<ExitCode> {
    let stopper = signals::stopper(args.process.grace)?;
    listen::start(args.process.listen, None).await?;
    args.base_url.as_deref().map(check_base_url).transpose()?;
    let (broker, ledger) = both(&args.fleet, "worker", &stopper)?;
    let config = WorkerConfig {
        name: identity(),
        concurrency: args.work.concurrency,
        base_url: args.base_url,
        find_key,
        recycle_client_every: args.work.recycle_client_every,
        until_done: args.until_done,
        until_halted: args.until_done,
    };
    if !meet("worker", &ledger, &stopper).await? {
        return Ok(ExitCode::from(DONE));
    }
    Ok(match on_the_runtime(shelfmill_worker::run(config, broker, ledger, stopper)).await? {
        Ended::InOrder => ExitCode::from(DONE),
        Ended::Halted(halt) => {
            eprintln!("Paused: {}", foreign::line(&halt.to_string()));
            ExitCode::from(PAUSED)
        }
    })
}

/// `shelfmill aggregator`.
pub(crate) async fn aggregator(args: AggregatorArgs, screen: &Screen) -> anyhow::Result<ExitCode> {
    let stopper = signals::stopper(args.process.grace)?;
    let live = page::live(&args.process, &args.page, &args.fleet.run, None, screen).await?;
    let folder = Folder::open(&args.out, &args.fleet.run)?;
    let (broker, ledger) = both(&args.fleet, "aggregator", &stopper)?;
    let config =
        AggregatorConfig { host: host(), checkpoint_every: args.checkpoints.checkpoint_every as usize };
    if !meet("aggregator", &ledger, &stopper).await? {
        return Ok(ExitCode::from(INTERRUPTED));
    }
    let has_report = args.checkpoints.report;
    let (reporter, listener) = Reporter::new(&args.out, progress::listener(screen), has_report);
    let listener = live.iter().fold(listener, |listener, live| live.listener(listener));
    let opened = tokio::select! {
        opened = Aggregator::open(config, folder, ledger.clone(), stopper.clone(), listener) => opened?,
        () = stopper.stopped() => None,
    };
    let Some(mut aggregator) = opened else { return Ok(ExitCode::from(INTERRUPTED)) };
    if let Some(live) = &live {
        live.follow(&mut aggregator, &args.out);
        live.watch(ledger.clone(), broker.clone());
    }
    let summary = {
        let broker = Arc::clone(&broker);
        on_the_runtime(async move { aggregator.run(broker.as_ref()).await }).await?
    };
    if has_report || live.is_some() {
        let budget = ledger.job().await?.and_then(|job| job.limits.budget);
        reporter.write(&summary, budget)?;
        page::end(live.as_ref(), &summary, &args.out, budget).await;
    }
    let (out, again, which) = (&args.out, "start the aggregator again", format!("--run {}", args.fleet.run));
    progress::conclude(screen, &summary, &Ending { out, again, which: &which, has_report });
    Ok(end::of_summary(&summary))
}
