//! One product, from its task to its outcome. The order of the steps is the protocol:
//!
//! 1. Claim the product. Done → acknowledge. Answered → 4. Busy → come again later.
//! 2. Ask the model ([`analysis`]), while the lease is renewed; each call is noted in the claim before it is made.
//! 3. Put the outcome in the ledger: from here on it is never asked for again.
//! 4. Publish the outcome, confirmed.
//! 5. Acknowledge the task.
//!
//! Cut off before 3, the call under way is lost and made again; cut off after it, the task comes again and goes
//! on from 4. An outcome published twice is written once, which is the aggregator's part.
//!
//! Whatever a worker still holds when it ends in good order, it gives up ([`Desk::abandon`]): its calls are lost, but that
//! is no evidence against the products. A product whose claims keep running out may be what ends its workers. From the third on it is worked on alone, so
//! that it takes nothing with it and nothing is blamed for it; after the fifth it has failed, as poisoned.
//!
//! [`analysis`]: crate::analysis

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use shelfmill_pipeline::{
    broker::{Broker, Delivery},
    crash::{self, Point},
    health::{Role, health},
    identity::IdHash,
    job::Job,
    ledger::{Claim, Halt, Kept, Ledger},
    message::{Outcome, Spent, Task},
    metrics::metrics,
    money::Money,
    shutdown::Stopper,
    trace::Span,
};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, OwnedSemaphorePermit, Semaphore};

use crate::{
    WorkerConfig,
    analysis::{Account, Analyst, Services, Verdict},
    analysts::Analysts,
    lease::{LEASE, Leases, RENEW_EVERY},
    model::ModelClient,
};

/// When to look again at a product that somebody else is at.
const BUSY_DELAY: Duration = Duration::from_secs(5);
/// Claims that ran out before a product is worked on alone. (Any kill costs all that was in flight one; two kills in a row
/// must not make everything wait in line.)
const ALONE_AFTER: u32 = 3;
/// Claims that ran out before a product is given up.
const POISONED_AFTER: u32 = 5;

/// An end is not held up by those who only watch.
pub(crate) const FAREWELL: Duration = Duration::from_millis(500);

/// Numbers the claims of this process.
static CLAIMS: AtomicU64 = AtomicU64::new(0);

/// Everything the products of one worker share.
pub(crate) struct Desk {
    config: WorkerConfig,
    concurrency: u32,
    broker: Arc<dyn Broker>,
    ledger: Arc<dyn Ledger>,
    stopper: Stopper,
    leases: Leases,
    run_is_lost: AtomicBool,
    is_halted: AtomicBool,
    model: ModelClient,
    /// There may be more products than calls at once.
    calls: Semaphore,
    analysts: Analysts,
    company: Arc<tokio::sync::RwLock<()>>,
}

/// Who else may be worked on meanwhile.
enum Company {
    Others { _guard: OwnedRwLockReadGuard<()> },
    Nobody { _guard: OwnedRwLockWriteGuard<()> },
}

impl Desk {
    pub(crate) fn new(
        config: WorkerConfig,
        job: Job,
        concurrency: u32,
        broker: Arc<dyn Broker>,
        ledger: Arc<dyn Ledger>,
        stopper: Stopper,
    ) -> anyhow::Result<Self> {
        let model = ModelClient::new(concurrency, config.recycle_client_every)?;
        let analyst = Analyst::new(&config, job, concurrency)?;
        Ok(Self {
            config,
            concurrency,
            broker,
            ledger,
            stopper,
            leases: Leases::default(),
            run_is_lost: AtomicBool::new(false),
            is_halted: AtomicBool::new(false),
            model,
            calls: Semaphore::new(concurrency as usize),
            analysts: Analysts::new(analyst),
            company: Arc::default(),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }

    pub(crate) fn broker(&self) -> &dyn Broker {
        self.broker.as_ref()
    }

    /// Calls made by now.
    pub(crate) fn calls(&self) -> u32 {
        self.model.calls()
    }

    /// Whether the run is over, or has paused by itself.
    pub(crate) async fn run_is_done(&self) -> anyhow::Result<bool> {
        let progress = self.ledger.progress().await?;
        if progress.halt.is_some() {
            self.halt(None).await?;
        }
        Ok(progress.halt.is_some() || progress.scan.is_some_and(|scan| scan.is_complete()))
    }

    /// Renews the leases and notices a changed job, for as long as the worker works.
    pub(crate) async fn upkeep(&self) {
        let mut every = tokio::time::interval(RENEW_EVERY);
        loop {
            every.tick().await;
            health().beat(Role::Worker);
            let held = self.leases.all();
            if !held.is_empty()
                && let Err(error) = self.ledger.renew(&held, LEASE).await
            {
                // What ends the worker is told by the products that meet it, too.
                tracing::debug!(%error, "could not renew claims");
            }
            self.follow_job().await;
            self.follow_dialects().await;
            let pulse = self.analysts.pulse();
            metrics().calls_in_flight.set(pulse.in_flight.into());
            metrics().calls_limit.set(pulse.limit.into());
            metrics().concurrency.set(pulse.ceiling.into());
            let _ = self.ledger.tell_pulse(&self.config.name, Some(&pulse)).await;
            // Those that wait for their turn or for an answer are not told otherwise.
            if matches!(self.ledger.halted().await, Ok(Some(_))) {
                let _ = self.halt(None).await;
            }
        }
    }

    /// The job can be replaced in mid-run (`--accept-changed-job`); products not yet begun get the new one. It is gone
    /// where Redis was emptied: the worker goes on with what it has, and somebody must run the producer.
    async fn follow_job(&self) {
        let Ok(job) = self.ledger.job().await else { return };
        if self.run_is_lost.swap(job.is_none(), Ordering::Relaxed) != job.is_none() {
            match job {
                None => tracing::warn!(
                    "Redis has lost the run: it was emptied. Going on with the tasks there are; run the producer again, \
                     with the same input"
                ),
                Some(_) => tracing::info!("the run has a producer's job again"),
            }
        }
        let Some(job) = job else { return };
        if self.analysts.are_of(&job) {
            return;
        }
        match Analyst::new(&self.config, job, self.concurrency) {
            Ok(analyst) => {
                tracing::info!("the run's job was changed, going on with the new one");
                self.analysts.replace(analyst);
            }
            Err(error) => {
                tracing::error!(%error, "the run's new job cannot be used, going on with the old one")
            }
        }
    }

    /// Takes over what is known of the models' servers.
    pub(crate) async fn begin(&self) {
        if self.ledger.progress().await.is_ok_and(|progress| progress.completed > 0) {
            self.analysts.have_been_answered();
        }
        self.follow_dialects().await;
    }

    /// Keeps up with what others have found out of the models' servers.
    async fn follow_dialects(&self) {
        self.analysts.follow_dialects(self.ledger.as_ref()).await;
    }

    pub(crate) async fn process(
        &self,
        delivery: Delivery<Task>,
        place: OwnedSemaphorePermit,
    ) -> anyhow::Result<()> {
        let span = Span::process(&delivery.message.id, &delivery.trace);
        span.scope(self.see_to_outcome(delivery, place, &span)).await
    }

    async fn see_to_outcome(
        &self,
        mut delivery: Delivery<Task>,
        place: OwnedSemaphorePermit,
        span: &Span,
    ) -> anyhow::Result<()> {
        let product = delivery.message.hash();
        let token = format!("{}#{}", self.config.name, CLAIMS.fetch_add(1, Ordering::Relaxed));

        // 1.
        let grant = match self.ledger.claim(product, &token, LEASE).await? {
            Claim::Done => return Ok(delivery.ack().await?),
            Claim::Busy => return Ok(delivery.retry_later(BUSY_DELAY).await?),
            Claim::Answered(outcome) => return self.tell(delivery, &outcome).await,
            Claim::Granted(grant) => grant,
        };
        crash::point_of(Point::WorkerClaimed, &delivery.message.id);
        let held = self.leases.keep(product, token.clone());
        // Calls that were lost come on top: the ledger goes on counting them until this claim is released.
        let known = delivery.message.spent.or_more(grant.spent);
        let repeated_calls = known.repeated_calls + grant.lost_calls;
        delivery.message.spent = Spent { repeated_calls, ..known };
        if let Some(changes) = grant.changes {
            delivery.message.changes = changes;
        }
        let mut account = Account::of(&delivery.message);

        // 2.
        let company = tokio::select! {
            company = self.company(grant.lost_claims) => Some(company),
            () = self.stopper.stopped() => None,
        };
        // (Where an error ends this, the worker ends: what is still held then is given up by `abandon`.)
        let analyst =
            self.analysts.with(&delivery.message.changes, &self.config, self.ledger.as_ref()).await?;
        let verdict = if company.is_none() {
            Verdict::Later(Duration::ZERO)
        } else if grant.lost_claims >= POISONED_AFTER {
            Verdict::Outcome(analyst.poisoned(&delivery.message, grant.lost_claims))
        } else if let Some(outcome) = self.unaffordable(&analyst, &delivery.message) {
            Verdict::Outcome(outcome)
        } else {
            let services = Services {
                model: &self.model,
                ledger: self.ledger.as_ref(),
                stopper: &self.stopper,
                calls: &self.calls,
            };
            analyst.analyse(&mut delivery.message, &mut account, (product, &token), services).await?
        };
        drop(company);
        let cost = account.unknown_to_ledger(&delivery.message);
        verdict.tell(span);
        match verdict {
            Verdict::Outcome(outcome) => {
                // 3.
                let kept = self.keep(product, &token, outcome, (known, delivery.message.spent), cost).await?;
                held.settled();
                crash::point_of(Point::WorkerKept, &delivery.message.id);
                // What is left costs no call, and the next product need not wait for it where it takes but a moment.
                let _place = (!self.broker.takes_at_once()).then_some(place);
                // 4. and 5.
                match kept {
                    Some(outcome) => self.tell(delivery, &outcome).await,
                    None => Ok(delivery.ack().await?),
                }
            }
            Verdict::Later(delay) => {
                self.give_back(product, &token, &mut delivery.message, known, cost).await?;
                held.settled();
                Ok(delivery.retry_later(delay).await?)
            }
            Verdict::Halted(halt) => {
                self.give_back(product, &token, &mut delivery.message, known, cost).await?;
                held.settled();
                self.halt(halt).await?;
                Ok(delivery.retry_later(Duration::ZERO).await?)
            }
            Verdict::Lost => {
                held.settled();
                delivery.message.spent = without_calls_beyond(known, delivery.message.spent);
                Ok(delivery.retry_later(BUSY_DELAY).await?)
            }
        }
    }

    /// Ends the claim of a product that is put off.
    async fn give_back(
        &self,
        product: IdHash,
        token: &str,
        task: &mut Task,
        known: Spent,
        cost: Money,
    ) -> anyhow::Result<()> {
        if !self.ledger.release(product, token, &task.spent, cost).await? {
            task.spent = without_calls_beyond(known, task.spent);
        }
        Ok(())
    }

    fn unaffordable(&self, analyst: &Analyst, task: &Task) -> Option<Outcome> {
        if task.changes.is_empty() { None } else { analyst.unaffordable(task) }
    }

    async fn company(&self, lost_claims: u32) -> Company {
        let company = Arc::clone(&self.company);
        if lost_claims >= ALONE_AFTER {
            Company::Nobody { _guard: company.write_owned().await }
        } else {
            Company::Others { _guard: company.read_owned().await }
        }
    }

    /// From here on the product is never asked for again. The outcome that is to be told: an earlier one where there is
    /// one, `None` where the product has its line. One that comes after its claim ran out tells of what others did since;
    /// `known` is what was known when the product was granted, without the calls lost by then, and `now` what its line
    /// tells.
    async fn keep(
        &self,
        product: IdHash,
        token: &str,
        outcome: Outcome,
        (known, now): (Spent, Spent),
        cost: Money,
    ) -> anyhow::Result<Option<Outcome>> {
        let (mut told, mut late) = (None, None);
        loop {
            let line = told.as_ref().unwrap_or(&outcome);
            match self.ledger.put_answer(product, token, line, cost, late).await? {
                Kept::Yes => return Ok(Some(told.unwrap_or(outcome))),
                Kept::Earlier(Outcome::Failed(line)) if matches!(outcome, Outcome::Completed(_)) => {
                    // The result was paid for and is worth more. What the failure tells of, it tells of instead.
                    let spent = line.spent()?;
                    told = Some(self.with_others(&outcome, spent, spent.all_calls(), (known, now))?);
                    late = Some(spent.all_calls());
                }
                Kept::Earlier(earlier) => return Ok(Some(earlier)),
                Kept::Done => return Ok(None),
                Kept::Late { calls, spent } => {
                    // All calls there were, less those that the line tells: this one's own and the ones lost before are
                    // among the lost ones that the ledger counts.
                    let all = known.or_more(spent).all_calls() + calls;
                    told = Some(self.with_others(&outcome, spent, all, (known, now))?);
                    late = Some(spent.all_calls() + calls);
                }
            }
        }
    }

    /// The outcome, with a line that tells of all calls there were, and of what others have spent.
    fn with_others(
        &self,
        outcome: &Outcome,
        spent: Spent,
        all_calls: u32,
        (known, now): (Spent, Spent),
    ) -> anyhow::Result<Outcome> {
        let repeated_calls = all_calls.saturating_sub(now.all_calls());
        let others = Spent { calls: 0, repeated_calls, ..spent.beyond(known) };
        Ok(outcome.clone().with_more_spent(&others)?)
    }

    /// Pauses the run, where it has not paused yet, and this worker with it.
    async fn halt(&self, halt: Option<Halt>) -> anyhow::Result<()> {
        if let Some(halt) = &halt {
            self.ledger.halt(halt).await?;
        }
        self.is_halted.store(true, Ordering::Relaxed);
        self.stopper.stop();
        Ok(())
    }

    /// Whether this worker ends because the run has paused by itself.
    pub(crate) fn is_halted(&self) -> bool {
        self.is_halted.load(Ordering::Relaxed)
    }

    /// Gives up what is still held when everything has ended: its calls were cut off.
    pub(crate) async fn abandon(&self) {
        let farewell = self.ledger.tell_pulse(&self.config.name, None);
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
        let held = self.leases.all();
        if !held.is_empty()
            && let Err(error) = self.ledger.abandon(&held).await
        {
            // They run out by themselves, and count as lost then.
            tracing::debug!(%error, "could not give up claims");
        }
    }

    async fn tell(&self, delivery: Delivery<Task>, outcome: &Outcome) -> anyhow::Result<()> {
        self.broker.publish_outcome(outcome).await?;
        match outcome {
            Outcome::Completed(_) => metrics().product(None),
            Outcome::Failed(line) => metrics().product(line.class()),
            Outcome::Rejected(_) => {}
        }
        crash::point_of(Point::WorkerTold, &delivery.message.id);
        Ok(delivery.ack().await?)
    }
}

/// What a task tells that is put off after its claim was lost. The ledger counts the calls of that claim as lost, and tells
/// whoever has the product next; of what they read and wrote it does not know.
const fn without_calls_beyond(known: Spent, now: Spent) -> Spent {
    Spent { calls: known.calls, repeated_calls: known.repeated_calls, ..now }
}
