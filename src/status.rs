//! `shelfmill progress`: how far a run is, for those who ask.

use std::{collections::BTreeMap, path::Path, process::ExitCode, time::Duration};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use shelfmill_aggregator::{Folder, read_lines, recent_rate};
use shelfmill_pipeline::{
    broker::{Broker, Connect, Depths, RabbitBroker},
    failure::FailureClass,
    ledger::{Heard, Ledger, Pulse, RedisLedger},
    record::{FAILURES_FILE, JOURNAL_FILE},
    shutdown::Stopper,
};

use crate::{
    cli::ProgressArgs,
    embedded::{local_folder, out_folder},
    end::{DONE, Usage},
    fleet, foreign, progress,
};

/// Workers that are listed for people.
const SHOWN: usize = 20;
const WATCH_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, PartialEq, Serialize)]
struct Report {
    run: String,
    total: Option<u64>,
    completed: u64,
    failed: u64,
    remaining: Option<u64>,
    percent: Option<f64>,
    failures_by_class: BTreeMap<String, u64>,
    products_per_second: Option<f64>,
    cost_usd: Option<f64>,
    complete: bool,
    /// Messages that wait, by queue; nothing in a run of one process, and where RabbitMQ does not answer.
    queues: Option<Queues>,
    /// `ok`, or why RabbitMQ does not answer; nothing in a run of one process.
    broker: Option<String>,
    /// Workers that were heard of lately, by name; nothing in a run of one process.
    workers: Option<BTreeMap<String, Worker>>,
    /// Which builds the last producer and aggregator of a fleet's run were.
    versions: Option<BTreeMap<String, String>>,
    /// For how much longer the provider has the fleet pause.
    paused_seconds: Option<f64>,
    /// Why nobody calls, where the run has paused by itself.
    paused_because: Option<String>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Worker {
    #[serde(flatten)]
    pulse: Pulse,
    version: Option<String>,
    /// For so long nothing was heard of it.
    heard_seconds: f64,
}

#[derive(Debug, PartialEq, Serialize)]
struct Queues {
    tasks: u64,
    retries: u64,
    outcomes: u64,
    dead: u64,
}

pub(crate) async fn run(args: ProgressArgs) -> anyhow::Result<ExitCode> {
    let local = local_folder(&args.which);
    let fleet = match (&args.which.run, &local) {
        (Some(run), None) => {
            let (servers, stopper) = (&args.which.servers, Stopper::new());
            let ledger = fleet::ledger(run, servers, Connect::Once, stopper.clone())?;
            let broker = fleet::broker(run, servers, "progress", Connect::Once, stopper)?;
            Some((run.clone(), ledger, broker))
        }
        _ => None,
    };
    loop {
        let report = match &fleet {
            Some((run, ledger, broker)) => of_fleet(run, ledger, broker).await?,
            None => of_folder(&local.clone().unwrap_or_else(|| out_folder(None, None)))?,
        };
        tell(&report, args.json)?;
        if !args.watch || report.complete {
            return Ok(ExitCode::from(DONE));
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

fn tell(report: &Report, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string(report)?);
        return Ok(());
    }
    for line in progress::lines(report.completed, report.failed, report.total) {
        println!("{line}");
    }
    for (class, count) in &report.failures_by_class {
        println!("  {class}: {count}");
    }
    if let Some(rate) = report.products_per_second.filter(|_| !report.complete) {
        println!("Rate: {rate:.1} products/s");
    }
    if let Some(Queues { tasks, retries, outcomes, dead }) = &report.queues {
        println!("Waiting: {tasks} tasks, {retries} retries, {outcomes} outcomes, {dead} dead");
    }
    if let (None, Some(trouble)) = (&report.queues, &report.broker) {
        println!("Queues: not known, {trouble}");
    }
    if let Some(workers) = report.workers.as_ref().filter(|_| !report.complete) {
        let Pulse { in_flight, limit, ceiling } = Pulse::sum(workers.values().map(|worker| &worker.pulse));
        let limited = if limit < ceiling {
            format!(" (up to {ceiling}, if the model's servers bear it)")
        } else {
            String::new()
        };
        println!("Workers: {}, with {in_flight} of {limit} calls under way{limited}", workers.len());
        for (name, Worker { pulse, version, heard_seconds }) in workers.iter().take(SHOWN) {
            let (name, version) =
                (foreign::line(name), version.as_deref().unwrap_or("of an unknown version"));
            println!(
                "  {name}  {}  {} of {} calls, heard {heard_seconds:.0} s ago",
                foreign::line(version),
                pulse.in_flight,
                pulse.limit
            );
        }
        if workers.len() > SHOWN {
            println!("  and {} more (all with --json)", workers.len() - SHOWN);
        }
    }
    if let Some(versions) = report.versions.as_ref().filter(|versions| !versions.is_empty()) {
        let told: Vec<_> = versions.iter().map(|(role, version)| format!("{role} {version}")).collect();
        println!("Versions: {}", foreign::line(&told.join(", ")));
    }
    if let Some(reason) = &report.paused_because {
        println!("Paused: {}", foreign::line(reason));
    }
    if let Some(seconds) = report.paused_seconds {
        println!("Paused: for {seconds:.0} s, the provider asks for fewer requests");
    }
    Ok(())
}

async fn of_fleet(run: &str, ledger: &RedisLedger, broker: &RabbitBroker) -> anyhow::Result<Report> {
    ledger
        .job()
        .await?
        .ok_or_else(|| Usage(format!("there is no run '{run}' in this Redis; start its producer first")))?;
    let progress = ledger.progress().await?;
    let (completed, failed) = progress.done();
    let (paused, heard, versions) =
        (ledger.paused_for().await?, ledger.heard().await?, ledger.versions().await?);
    // The ledger alone knows how far the run is: without RabbitMQ there is still something to tell.
    let looked = broker.look().await;
    let report = Report {
        failures_by_class: progress
            .failures
            .iter()
            .map(|(class, count)| (class.to_string(), *count))
            .collect(),
        products_per_second: progress.vitals.map(|vitals| vitals.products_per_second),
        cost_usd: progress.vitals.and_then(|vitals| vitals.cost_usd),
        complete: progress.scan.is_some_and(|scan| scan.is_complete()),
        broker: Some(
            looked.as_ref().map_or_else(|error| foreign::line(&error.to_string()), |_| "ok".to_owned()),
        ),
        queues: looked.ok().map(|Depths { tasks, retries, outcomes, dead }| Queues {
            tasks,
            retries,
            outcomes,
            dead,
        }),
        workers: Some(
            heard
                .into_iter()
                .map(|(name, Heard { pulse, version, ago })| {
                    let version = version.map(|version| version.to_string());
                    (name, Worker { pulse, version, heard_seconds: ago.as_secs_f64() })
                })
                .collect(),
        ),
        versions: Some(versions.into_iter().map(|(role, version)| (role, version.to_string())).collect()),
        paused_seconds: (!paused.is_zero()).then_some(paused.as_secs_f64()),
        paused_because: progress.halt.as_ref().map(ToString::to_string),
        ..report(run, progress.total(), completed, failed)
    };
    Ok(report)
}

/// From the files alone: a run in another process keeps its ledger to itself.
fn of_folder(out: &Path) -> anyhow::Result<Report> {
    let record = Folder::read_record(out)?.ok_or_else(|| {
        Usage(format!(
            "there is no run in {}; name its folder with --out, or a fleet's run with --run",
            out.display()
        ))
    })?;
    let count = |name: &str| count_lines(&out.join(name)).with_context(|| format!("cannot read {name}"));
    let (completed, failed) = (count(JOURNAL_FILE)?, count(FAILURES_FILE)?);
    let total = record.expected.map(|total| total.max(completed + failed));
    Ok(Report {
        failures_by_class: failure_classes(&out.join(FAILURES_FILE))?,
        products_per_second: recent_rate(&out.join(JOURNAL_FILE)),
        complete: total == Some(completed + failed),
        ..report(&record.run, total, completed, failed)
    })
}

#[expect(clippy::cast_precision_loss, reason = "a percentage")]
fn report(run: &str, total: Option<u64>, completed: u64, failed: u64) -> Report {
    Report {
        run: run.to_owned(),
        total,
        completed,
        failed,
        remaining: total.map(|total| total.saturating_sub(completed + failed)),
        percent: total.filter(|total| *total > 0).map(|total| completed as f64 * 100.0 / total as f64),
        failures_by_class: BTreeMap::new(),
        products_per_second: None,
        cost_usd: None,
        complete: false,
        queues: None,
        broker: None,
        workers: None,
        versions: None,
        paused_seconds: None,
        paused_because: None,
    }
}

/// Why products failed, from the file that lists them.
fn failure_classes(path: &Path) -> anyhow::Result<BTreeMap<String, u64>> {
    #[derive(Deserialize)]
    struct Line {
        failure: Class,
    }
    #[derive(Deserialize)]
    struct Class {
        class: FailureClass,
    }
    let mut classes = BTreeMap::new();
    read_lines::<anyhow::Error>(path, 0, |_, _, line| {
        // A damaged one is the run's to tell.
        if let Ok(line) = serde_json::from_str::<Line>(line) {
            *classes.entry(line.failure.class.to_string()).or_default() += 1;
        }
        Ok(())
    })?;
    Ok(classes)
}

fn count_lines(path: &Path) -> std::io::Result<u64> {
    use std::io::Read;
    let mut file = match std::fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        opened => opened?,
    };
    let mut buffer = vec![0; 256 * 1024];
    let mut lines = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(lines),
            read => lines += buffer[..read].iter().filter(|byte| **byte == b'\n').count() as u64,
        }
    }
}
