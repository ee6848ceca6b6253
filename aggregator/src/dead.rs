//! Tasks that no worker ever settled: delivered again and again until RabbitMQ gave them up. They end as failures of class
//! `poisoned`, by the same steps as a worker's outcome, so that the run ends and `requeue` can put them back.
//!
//! Messages that could not be read stay where they are: whoever sent them, or a newer Shelfmill, must look at them.

use std::time::Duration;

use shelfmill_pipeline::{
    broker::{Broker, Cause, DeadLetter},
    failure::FailureClass,
    job::Job,
    ledger::{Claim, Kept, Ledger},
    message::Task,
    money::Money,
    record::Failure,
    signature::Signature,
};

/// The rest waits for the next look.
const MESSAGES_PER_LOOK: usize = 10_000;
/// For as long as it takes to put one product's failure in its place.
const LEASE: Duration = Duration::from_secs(15);

/// Looks through the dead queue from time to time.
#[derive(Debug)]
pub(crate) struct Undertaker {
    name: String,
    /// Messages that were left there by the last look.
    left: u64,
}

impl Undertaker {
    pub(crate) fn new(name: String) -> Self {
        Self { name, left: 0 }
    }

    /// Looks where there is something new; `dead` is how many messages there are.
    pub(crate) async fn look(
        &mut self,
        dead: u64,
        broker: &dyn Broker,
        ledger: &dyn Ledger,
    ) -> anyhow::Result<()> {
        if dead <= self.left {
            self.left = dead;
            return Ok(());
        }
        let Some(job) = ledger.job().await? else { return Ok(()) };
        let mut unreadable = 0;
        let mut waiting = 0;
        let mut letters = broker.dead_letters().await?;
        for _ in 0..MESSAGES_PER_LOOK {
            let Some(letter) = letters.next().await? else { break };
            match Task::decode(&letter.body) {
                Ok(task) if letter.cause == Cause::DeliveryLimit => {
                    let buried = self.bury(letter, &task, &job, broker, ledger).await?;
                    waiting += u64::from(!buried);
                }
                _ => unreadable += 1,
            }
        }
        self.left = unreadable;
        if unreadable > 0 {
            tracing::warn!(
                messages = unreadable,
                waiting,
                "messages that could not be read are in the dead queue; when what was wrong is mended, put them back with \
                 `shelfmill requeue --dead`"
            );
        }
        Ok(())
    }

    /// The steps of a worker; `false` where another has the product at this moment.
    async fn bury(
        &self,
        letter: DeadLetter,
        task: &Task,
        job: &Job,
        broker: &dyn Broker,
        ledger: &dyn Ledger,
    ) -> anyhow::Result<bool> {
        let product = task.hash();
        let token = format!("{} dead {product:?}", self.name);
        let outcome = match ledger.claim(product, &token, LEASE).await? {
            Claim::Busy => return Ok(false),
            Claim::Done => {
                letter.ack().await?;
                return Ok(true);
            }
            Claim::Answered(outcome) => outcome,
            Claim::Granted(grant) => {
                tracing::error!(id = ?task.id, "given up: this product's task was delivered again and again, and never settled");
                let mut task = task.clone();
                task.spent = task.spent.or_more(grant.spent);
                task.spent.repeated_calls += grant.lost_calls;
                let changes = grant.changes.as_ref().unwrap_or(&task.changes);
                let signature = Signature::new(changes.applied_to(job), self.name.clone());
                let message = "its task was delivered again and again, and each worker ended before it began with it; their \
                               own logs and the system's (out of memory?) may tell why";
                let failure =
                    Failure { class: FailureClass::Poisoned, message: message.to_owned(), raw: None };
                let outcome = signature.failed(&task, failure, Duration::ZERO);
                match ledger.put_answer(product, &token, &outcome, Money::ZERO, None).await? {
                    Kept::Earlier(earlier) => earlier,
                    // Its lease ran out in between: whoever has it now may do better.
                    Kept::Late { .. } => return Ok(false),
                    Kept::Yes | Kept::Done => outcome,
                }
            }
        };
        broker.publish_outcome(&outcome).await?;
        letter.ack().await?;
        Ok(true)
    }
}
