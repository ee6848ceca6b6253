//! One product, from its task to its outcome. The order of the steps is the protocol:
//!
//! 1. Claim the product. Done → acknowledge. Answered → 4. Busy → come again later.
//! 2. Ask the model ([`analysis`]), while the lease is renewed.
//! 3. Put the outcome in the ledger: from here on it is never asked for again.
//! 4. Publish the outcome, confirmed.
//! 5. Acknowledge the task.
//!
//! Cut off before 3, the call under way is lost and made again; cut off after it, the task comes again and goes
//! on from 4. An outcome published twice is written once, which is the aggregator's part.
//!
//! [`analysis`]: crate::analysis

use std::{
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use shelfmill_pipeline::{
    broker::{Broker, Delivery},
    job::Job,
    ledger::{Claim, Ledger},
    message::Task,
    shutdown::Stopper,
};

use crate::{
    WorkerConfig,
    analysis::{Analyst, Verdict},
    lease::{LEASE, Leases, RENEW_EVERY},
    model::ModelClient,
};

/// When to look again at a product that somebody else is at.
const BUSY_DELAY: Duration = Duration::from_secs(5);

/// Everything the products of one worker share.
pub(crate) struct Desk {
    config: WorkerConfig,
    broker: Arc<dyn Broker>,
    ledger: Arc<dyn Ledger>,
    stopper: Stopper,
    leases: Leases,
    claims: AtomicU64,
    run_is_lost: AtomicBool,
    model: ModelClient,
    analyst: RwLock<Arc<Analyst>>,
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
        let model = ModelClient::new(concurrency, config.api_key.clone(), config.recycle_client_every)?;
        let analyst = Analyst::new(&config, job)?;
        Ok(Self {
            config,
            broker,
            ledger,
            stopper,
            leases: Leases::default(),
            claims: AtomicU64::new(0),
            run_is_lost: AtomicBool::new(false),
            model,
            analyst: RwLock::new(Arc::new(analyst)),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }

    pub(crate) fn broker(&self) -> &dyn Broker {
        self.broker.as_ref()
    }

    pub(crate) async fn run_is_done(&self) -> anyhow::Result<bool> {
        Ok(self.ledger.progress().await?.scan.is_some_and(|scan| scan.is_complete()))
    }

    /// Renews the leases and notices a changed job, for as long as the worker works.
    pub(crate) async fn upkeep(&self) {
        let mut every = tokio::time::interval(RENEW_EVERY);
        loop {
            every.tick().await;
            let held = self.leases.all();
            if !held.is_empty()
                && let Err(error) = self.ledger.renew(&held, LEASE).await
            {
                // What ends the worker is told by the products that meet it, too.
                tracing::debug!(%error, "could not renew claims");
            }
            self.follow_job().await;
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
        if *self.analyst().job() == job {
            return;
        }
        match Analyst::new(&self.config, job) {
            Ok(analyst) => {
                tracing::info!("the run's job was changed, going on with the new one");
                *self.analyst.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(analyst);
            }
            Err(error) => {
                tracing::error!(%error, "the run's new job cannot be used, going on with the old one")
            }
        }
    }

    fn analyst(&self) -> Arc<Analyst> {
        Arc::clone(&self.analyst.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) async fn process(&self, mut delivery: Delivery<Task>) -> anyhow::Result<()> {
        let product = delivery.message.hash();
        let token = format!("{}#{}", self.config.name, self.claims.fetch_add(1, Ordering::Relaxed));

        // 1.
        match self.ledger.claim(product, &token, LEASE).await? {
            Claim::Done => return Ok(delivery.ack().await?),
            Claim::Busy => return Ok(delivery.retry_later(BUSY_DELAY).await?),
            Claim::Answered(outcome) => {
                self.broker.publish_outcome(&outcome).await?;
                return Ok(delivery.ack().await?);
            }
            Claim::Granted { repeated } => delivery.message.spent.repeated_calls += u32::from(repeated),
        }

        // 2.
        let held = self.leases.keep(product, token.clone());
        let analyst = self.analyst();
        let verdict =
            analyst.analyse(&mut delivery.message, &self.model, self.ledger.as_ref(), &self.stopper).await?;
        match verdict {
            Verdict::Outcome(outcome) => {
                // 3. to 5.
                self.ledger.put_answer(product, &token, &outcome).await?;
                drop(held);
                self.broker.publish_outcome(&outcome).await?;
                delivery.ack().await?;
            }
            Verdict::Later(delay) => {
                drop(held);
                self.ledger.release(product, &token).await?;
                delivery.retry_later(delay).await?;
            }
        }
        Ok(())
    }
}
