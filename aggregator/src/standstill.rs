//! Notices what keeps a run from its end and nobody else would tell: messages that no worker could take, and products
//! that are open and have no message any more.
//!
//! A product that is open has a task, a claim or an outcome; where all queues are empty, nobody holds a claim and
//! nothing has changed for a while, there is none, as after somebody deleted a queue. Messages that were fetched and
//! not settled are not counted, hence "for a while"; told too early it does no harm, for publishing a product twice
//! does none.

use std::time::{Duration, Instant};

use shelfmill_pipeline::{
    broker::{Broker, Depths},
    ledger::{Ledger, Progress},
};

use crate::dead::Undertaker;

/// How often an idle aggregator looks.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Looks that find nothing under way and nothing changed, until that is told.
const LOOKS_UNTIL_TOLD: u32 = 4;

#[derive(Debug)]
pub(crate) struct Standstill {
    undertaker: Undertaker,
    looked: Option<Instant>,
    done: u64,
    idle: u32,
}

impl Standstill {
    pub(crate) fn new(undertaker: Undertaker) -> Self {
        Self { undertaker, looked: None, done: 0, idle: 0 }
    }

    /// Looks, if it is time to.
    pub(crate) async fn look(
        &mut self,
        broker: &dyn Broker,
        ledger: &dyn Ledger,
        progress: &Progress,
        is_complete: bool,
    ) -> anyhow::Result<()> {
        if self.looked.get_or_insert_with(Instant::now).elapsed() < LOOK_EVERY {
            return Ok(());
        }
        self.looked = Some(Instant::now());
        let depths = broker.depths().await?;
        self.undertaker.look(depths.dead, broker, ledger).await?;
        let is_idle = !is_complete && is_stuck(progress, &depths) && ledger.claimed().await? == 0;
        let told = self.is_told(progress, is_idle);
        if told == Some(0) {
            tracing::warn!(
                "every product has its line, but not every reject, and none is on its way, as after a queue was deleted; run \
                 the producer again to publish them"
            );
        } else if let Some(products) = told {
            tracing::warn!(
                products,
                "products are open and nothing is under way for them, as after a queue was deleted; run the producer \
                 again to publish them"
            );
        }
        Ok(())
    }

    /// How many products are to be told of, if it is time to; once for each standstill.
    fn is_told(&mut self, progress: &Progress, is_idle: bool) -> Option<u64> {
        let (completed, failed) = progress.done();
        let done = completed + failed;
        let is_same = std::mem::replace(&mut self.done, done) == done;
        self.idle = if is_idle && is_same { self.idle.saturating_add(1) } else { 0 };
        (self.idle == LOOKS_UNTIL_TOLD).then(|| progress.total().unwrap_or(done).saturating_sub(done))
    }
}

/// The whole input was published, and no queue has a message.
fn is_stuck(progress: &Progress, depths: &Depths) -> bool {
    let Depths { tasks, retries, outcomes, dead: _ } = depths;
    progress.scan.is_some_and(|scan| scan.sealed) && tasks + retries + outcomes == 0
}

#[cfg(test)]
mod tests {
    use shelfmill_pipeline::ledger::ScanCounts;

    use super::*;

    fn progress(sealed: bool, completed: u64) -> Progress {
        let scan = ScanCounts { scan: 1, sealed, total: 10, completed, failed: 1, rejected: 0 };
        Progress { scan: Some(scan), ..Progress::default() }
    }

    #[test]
    fn a_run_is_stuck_when_it_is_sealed_and_nothing_waits() {
        let empty = Depths { dead: 3, ..Depths::default() };
        assert!(is_stuck(&progress(true, 5), &empty));
        assert!(!is_stuck(&progress(false, 5), &empty), "its producer still reads");
        assert!(!is_stuck(&progress(true, 5), &Depths { retries: 1, ..empty }));
    }

    #[test]
    fn a_standstill_is_told_once_and_again_after_something_was_done() {
        let mut standstill = Standstill::new(Undertaker::new("a test".to_owned()));
        let mut told = |completed, is_idle| standstill.is_told(&progress(true, completed), is_idle);
        let five: Vec<_> = (0..12).map(|_| told(5, true)).collect();
        assert_eq!(five.iter().flatten().collect::<Vec<_>>(), [&4], "of ten, six are done");
        assert_eq!(told(6, true), None);
        assert_eq!([told(6, false), told(6, true), told(6, true), told(6, true)], [None; 4]);
        assert_eq!([told(6, true), told(6, true)], [Some(3), None]);
    }
}
