//! What people do to a fleet's run that goes on: `pause`, `resume`, and `purge` when it is not wanted any more.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    process::ExitCode,
};

use anyhow::Context as _;
use jiff::Timestamp;
use shelfmill_pipeline::{
    broker::{Broker, Connect, Depths, RabbitBroker},
    ledger::{AtWork, Halt, HaltCause, Ledger, Paused, RedisLedger},
    shutdown::Stopper,
};

use crate::{
    cli::{FleetArgs, PauseArgs, PurgeArgs},
    end::{DONE, Usage},
    fleet, foreign,
};

fn ledger(fleet: &FleetArgs) -> anyhow::Result<RedisLedger> {
    fleet::ledger(&fleet.run, &fleet.servers, Connect::Once, Stopper::new())
}

fn no_run(run: &str) -> anyhow::Error {
    Usage(format!(
        "there is no run '{run}' in this Redis; `shelfmill producer --run {run}` begins one. A run in one process \
         (`shelfmill run`) is paused by Ctrl-C, and goes on when it is started again"
    ))
    .into()
}

/// `shelfmill pause`.
pub(crate) async fn pause(args: PauseArgs) -> anyhow::Result<ExitCode> {
    let run = &args.fleet.run;
    let why = args.reason.map(|reason| format!(" ({})", foreign::line(&reason))).unwrap_or_default();
    let now = Timestamp::now().strftime("%Y-%m-%d %H:%M:%S UTC");
    let reason = format!("paused by a person at {now}{why}; `shelfmill resume --run {run}` lets it go on");
    match ledger(&args.fleet)?.pause(&Halt { cause: HaltCause::Asked, reason }).await? {
        Paused::Now => println!(
            "Paused: nobody begins a call for '{run}' from now on; calls under way are finished, and the roles wait.\n\
             To go on: shelfmill resume --run {run}"
        ),
        Paused::Before(halt) => println!("It was {}", foreign::line(&halt.reason)),
        Paused::NoRun => return Err(no_run(run)),
    }
    Ok(ExitCode::from(DONE))
}

/// `shelfmill resume`.
pub(crate) async fn resume(args: FleetArgs) -> anyhow::Result<ExitCode> {
    let (run, ledger) = (&args.run, ledger(&args)?);
    if ledger.job().await?.is_none() {
        return Err(no_run(run));
    }
    match ledger.resume().await? {
        None => println!("The run '{run}' is not paused"),
        Some(halt) if halt.is_asked() => println!("The run '{run}' goes on"),
        Some(halt) => println!(
            "The run '{run}' goes on. It had paused by itself: {}\n\
             Start its aggregator again, if that has ended",
            foreign::line(&halt.reason)
        ),
    }
    Ok(ExitCode::from(DONE))
}

/// `shelfmill purge`.
pub(crate) async fn purge(args: PurgeArgs) -> anyhow::Result<ExitCode> {
    let FleetArgs { run, servers } = &args.fleet;
    let ledger = ledger(&args.fleet)?;
    let broker = fleet::broker(run, servers, "purge", Connect::Once, Stopper::new())?;
    if !args.force {
        nobody_is_at_work(run, &ledger).await?;
    }
    tell_what_goes(run, &ledger, broker.look().await?).await?;
    if !args.yes {
        confirm(run)?;
        // A person takes a while to answer.
        if !args.force {
            nobody_is_at_work(run, &ledger).await?;
        }
    }
    remove(run, &ledger, &broker).await?;
    Ok(ExitCode::from(DONE))
}

async fn nobody_is_at_work(run: &str, ledger: &RedisLedger) -> anyhow::Result<()> {
    let at_work = ledger.at_work().await?;
    if at_work == AtWork::default() {
        return Ok(());
    }
    Err(Usage(format!(
        "somebody is at work for '{run}': {}. Stop them first (who was killed is forgotten within 20 s), or add --force",
        describe(&at_work)
    ))
    .into())
}

fn describe(AtWork { workers, aggregator, producer }: &AtWork) -> String {
    let mut who = Vec::new();
    if *workers > 0 {
        who.push(format!("{workers} {}", if *workers == 1 { "worker" } else { "workers" }));
    }
    who.extend(aggregator.iter().map(|name| format!("the aggregator {}", foreign::line(name))));
    who.extend(producer.iter().map(|name| format!("the producer {}", foreign::line(name))));
    who.join(", ")
}

async fn tell_what_goes(run: &str, ledger: &RedisLedger, waiting: Depths) -> anyhow::Result<()> {
    let progress = ledger.progress().await?;
    let (completed, failed) = progress.done();
    let total = progress.total().map_or_else(|| "an unknown number of".to_owned(), |total| total.to_string());
    let Depths { tasks, retries, outcomes, dead } = waiting;
    println!(
        "This removes what RabbitMQ and Redis know of the run '{run}':\n  \
         {total} products, of which {completed} are completed and {failed} have failed\n  \
         {tasks} tasks, {retries} retries, {outcomes} outcomes and {dead} dead letters that wait\n\
         Results that are on disk stay there."
    );
    let answered = ledger.answered().await?;
    if answered > 0 {
        println!(
            "{answered} answers are paid for and not on disk: they are lost. An aggregator would write them."
        );
    }
    Ok(())
}

/// A person types the run's name; nobody else can.
fn confirm(run: &str) -> anyhow::Result<()> {
    if !io::stdin().is_terminal() {
        return Err(
            Usage("nobody is there to ask; add --yes to remove it without being asked".to_owned()).into()
        );
    }
    print!("Type the run's name to remove it: ");
    io::stdout().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
    if answer.trim() == run {
        Ok(())
    } else {
        Err(Usage("that is another name; nothing was removed".to_owned()).into())
    }
}

/// The queues first: what they hold makes work only while the keys are there.
async fn remove(run: &str, ledger: &RedisLedger, broker: &RabbitBroker) -> anyhow::Result<()> {
    let messages = broker.purge().await?;
    let keys = ledger.purge().await?;
    println!("Removed '{run}': {messages} messages and {keys} keys");
    Ok(())
}
