//! `shelfmill requeue`: failed products are tried again.

use std::{collections::HashSet, process::ExitCode};

use anyhow::anyhow;
use shelfmill_aggregator::Folder;
use shelfmill_pipeline::{
    broker::{Broker, Connect},
    changes::Changes,
    crash::{self, Point},
    failure::FailureClass,
    job::Job,
    ledger::{FailedProduct, Ledger},
    shutdown::Stopper,
};

use crate::{
    cli::{RequeueArgs, WhichArgs},
    embedded::{local_folder, out_folder},
    end::{DONE, Usage},
    fleet, foreign,
};

struct Wanted {
    classes: HashSet<FailureClass>,
    ids: HashSet<String>,
}

impl Wanted {
    fn has(&self, product: &FailedProduct) -> bool {
        (self.classes.is_empty() || self.classes.contains(&product.class))
            && (self.ids.is_empty() || self.ids.contains(&product.task.id))
    }
}

pub(crate) async fn run(args: RequeueArgs) -> anyhow::Result<ExitCode> {
    if let (true, Some(run)) = (args.dead, &args.which.run) {
        return of_dead_queue(run, &args.which).await;
    }
    let wanted =
        Wanted { classes: args.class.iter().copied().collect(), ids: args.id.iter().cloned().collect() };
    let changes = args.change.changes().map_err(Usage)?;
    let local = local_folder(&args.which);
    let (count, then) = match (&args.which.run, &local) {
        (Some(run), None) => (
            of_fleet(run, &args.which, &wanted, &changes).await?,
            "they are with the workers; start the aggregator again if it has ended",
        ),
        (_, out) => {
            let out = out_folder(out.clone(), None);
            let record = Folder::read_record(&out)?;
            let record = record.ok_or_else(|| {
                Usage(format!(
                    "there is no run in {}; name its folder with --out, or a fleet's run with --run",
                    out.display()
                ))
            })?;
            let Some(job) = &record.job else {
                let run = record.run;
                return Err(anyhow!(Usage(format!(
                    "the run in {} is a fleet's; use --run {run}",
                    out.display()
                ))));
            };
            check_can_be_asked(job, &changes)?;
            let mut folder = Folder::open(&out, &record.run)?;
            let count = shelfmill_aggregator::requeue(&folder, |product| wanted.has(product), &changes)?;
            folder.close()?;
            (count, "run `shelfmill run` again, with the same input, to try them")
        }
    };
    match count {
        0 => println!("No failed product matches; nothing was put back"),
        1 => println!("Put back 1 failed product; {then}"),
        _ => println!("Put back {count} failed products; {then}"),
    }
    if count > 0 && !changes.is_empty() {
        let what = if count == 1 { "It is asked" } else { "They are asked" };
        println!("{what} otherwise than the job says: {}", foreign::line(&changes.to_string()));
    }
    Ok(ExitCode::from(DONE))
}

/// Better told now than by every product.
fn check_can_be_asked(job: &Job, changes: &Changes) -> Result<(), Usage> {
    if changes.is_empty() {
        return Ok(());
    }
    let changed = changes.applied_to(job);
    if changed.limits.budget.is_some() && changed.cost_usd(0, 0).is_none() {
        return Err(Usage(format!(
            "the run has a budget, which needs prices, and those of {} are not known; say them with --prices 0.40,1.60 \
             (US dollars per million tokens read and written)",
            changed.llm.model
        )));
    }
    let ceiling = changed.llm.max_output_tokens;
    match changed.llm.endpoints().iter().filter_map(|endpoint| endpoint.context_window).max() {
        Some(window) if window <= ceiling => Err(Usage(format!(
            "the window of {} has {window} tokens: no prompt fits beside an answer of up to {ceiling}; choose a lower \
             --max-output-tokens, or another --model",
            changed.llm.model
        ))),
        _ => Ok(()),
    }
}

/// Each is safe where it came from before it leaves the dead queue.
async fn of_dead_queue(run: &str, which: &WhichArgs) -> anyhow::Result<ExitCode> {
    let broker = fleet::broker(run, &which.servers, "requeue", Connect::Once, Stopper::new())?;
    let mut letters = broker.dead_letters().await?;
    let (mut put_back, mut stay) = (0, 0);
    // No more than there are now: some may be back at once, if nothing was mended.
    for _ in 0..broker.depths().await?.dead {
        let Some(letter) = letters.next().await? else { break };
        if letter.put_back().await? {
            put_back += 1;
        } else {
            stay += 1;
        }
    }
    println!(
        "Put back {put_back} {} from the dead queue",
        if put_back == 1 { "message" } else { "messages" }
    );
    if stay > 0 {
        println!("{stay} stay there: Shelfmill did not put them there, so where they belong is not known");
    }
    Ok(ExitCode::from(DONE))
}

/// Opened, published, forgotten: in this order a product is never without a way to its end.
async fn of_fleet(run: &str, which: &WhichArgs, wanted: &Wanted, changes: &Changes) -> anyhow::Result<u64> {
    let stopper = Stopper::new();
    let ledger = fleet::ledger(run, &which.servers, Connect::Once, stopper.clone())?;
    let job = ledger.job().await?.ok_or_else(|| Usage(format!("there is no run '{run}' in this Redis")))?;
    check_can_be_asked(&job, changes)?;
    let broker = fleet::broker(run, &which.servers, "requeue", Connect::Once, stopper)?;
    let mut count = 0;
    let mut cursor = 0;
    loop {
        let (next, mut products) = ledger.failed_products(cursor).await?;
        products.retain(|product| wanted.has(product));
        let hashes: Vec<_> = products.iter().map(|product| product.task.hash()).collect();
        if !hashes.is_empty() {
            let spent: Vec<_> =
                products.iter().map(|product| (product.task.hash(), product.task.spent)).collect();
            ledger.reopen(&spent, changes).await?;
            crash::point(Point::RequeueReopened);
            for mut product in products {
                product.task.changes.clone_from(changes);
                broker.publish_task(product.task).await?;
            }
            crash::point(Point::RequeuePublished);
            ledger.forget_failures(&hashes).await?;
            count += hashes.len() as u64;
        }
        if next == 0 {
            return Ok(count);
        }
        cursor = next;
    }
}
