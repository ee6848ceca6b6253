//! A second call beside one that takes unusually long (`hedge_after`): the first good answer counts.
//!
//! Both calls are noted, held in the budget and counted as made; what the one that is given up may have cost counts at its
//! worst case. A second call shares its product's place. A few at a time are made, and only where the pace has room: a
//! server that is slow because it has too much to do must not get twice as much.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use hdrhistogram::Histogram;
use shelfmill_pipeline::{
    job::Percentile,
    ledger::{Call, ClaimToken, Turn},
    message::Task,
    money::Money,
};
use tokio::{sync::SemaphorePermit, time::Instant};

use crate::{
    analysis::{Analyst, Services},
    attempt::{Called, Path, Question},
    conversation::Conversation,
    routes::When,
};

/// Fewer calls say nothing of a percentile.
const LEAST_CALLS: u64 = 100;
/// After so many, what they say is kept and counted anew: servers change.
const MOST_CALLS: u64 = 2_000;
/// An hour: no call takes longer.
const LONGEST_MICROS: u64 = 3_600_000_000;
/// How soon a call that began before anything was known looks whether it is.
const LOOKS_AGAIN: Duration = Duration::from_millis(100);
/// How long a second call may wait for its place in the pace.
const SOON: Duration = Duration::from_millis(50);

/// How long the answers of a server take.
#[derive(Debug)]
pub(crate) struct Latencies {
    percentile: Option<Percentile>,
    seen: Mutex<(Histogram<u64>, Option<Duration>)>,
}

impl Latencies {
    /// To know this percentile of; `None`: nobody asks.
    pub(crate) fn new(percentile: Option<Percentile>) -> anyhow::Result<Self> {
        let histogram = Histogram::new_with_bounds(1, LONGEST_MICROS, 2)?;
        Ok(Self { percentile, seen: Mutex::new((histogram, None)) })
    }

    pub(crate) fn record(&self, latency: Duration) {
        let Some(percentile) = self.percentile else { return };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (histogram, known) = &mut *seen;
        histogram.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
        if histogram.len().is_multiple_of(LEAST_CALLS) {
            *known = Some(Duration::from_micros(histogram.value_at_quantile(percentile.share())));
        }
        if histogram.len() >= MOST_CALLS {
            histogram.reset();
        }
    }

    /// Returns when a call that began then takes longer than the percentile.
    async fn are_exceeded_since(&self, began: Instant) {
        loop {
            match self.known() {
                Some(usual) if began.elapsed() >= usual => return,
                Some(usual) => tokio::time::sleep_until(began + usual).await,
                None => tokio::time::sleep(LOOKS_AGAIN).await,
            }
        }
    }

    /// The percentile; `None` while it is not known, or nobody asks.
    fn known(&self) -> Option<Duration> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

/// What a second call needs.
pub(crate) struct Second<'a> {
    pub(crate) conversation: &'a Conversation,
    pub(crate) token: &'a ClaimToken,
    /// Of the calls under this claim.
    pub(crate) number: &'a mut u32,
}

/// Whether a second call may be made.
enum Beside<'a> {
    Noted(Question, SemaphorePermit<'a>),
    NotYet,
    No,
}

impl Analyst {
    /// The call, and a second one beside it where it takes long and the job wants that.
    pub(crate) async fn hedged(
        &self,
        question: &Question,
        task: &mut Task,
        second: Second<'_>,
        services: Services<'_>,
    ) -> anyhow::Result<Called> {
        if self.job().limits.hedge_after.is_none() {
            return Ok(self.call(question, &task.id, task.spent.calls, services.model).await);
        }
        // On its own, so that whoever wants no second call has no room for one.
        Box::pin(self.call_twice(question, task, second, services)).await
    }

    async fn call_twice(
        &self,
        question: &Question,
        task: &mut Task,
        second: Second<'_>,
        services: Services<'_>,
    ) -> anyhow::Result<Called> {
        let id = task.id.clone();
        let first = self.call(question, &id, task.spent.calls, services.model);
        tokio::pin!(first);
        let (began, latencies) = (Instant::now(), &question.route.server.latencies);
        tokio::select! {
            called = &mut first => return Ok(called),
            () = latencies.are_exceeded_since(began) => {}
        }
        let (beside, _turn) = loop {
            let (called, beside) = {
                let beside = self.beside(question, task, &second, services);
                tokio::pin!(beside);
                tokio::select! {
                    called = &mut first => (Some(called), beside.await?),
                    beside = &mut beside => (None, beside?),
                }
            };
            if let Some(called) = called {
                // The second one may have been noted already; it is not made.
                *second.number += u32::from(matches!(beside, Beside::Noted(..)));
                return Ok(called);
            }
            match beside {
                Beside::Noted(question, turn) => break (question, turn),
                Beside::No => return Ok(first.await),
                Beside::NotYet => {}
            }
            tokio::select! {
                called = &mut first => return Ok(called),
                () = tokio::time::sleep(LOOKS_AGAIN) => {}
            }
        };
        *second.number += 1;
        task.spent.calls += 1;
        tracing::debug!(?id, "a second call is made beside one that takes long");
        let second = self.call(&beside, &id, task.spent.calls, services.model);
        tokio::pin!(second);
        let (mut called, is_first) = tokio::select! {
            called = &mut first => (called, true),
            called = &mut second => (called, false),
        };
        if called.answer.is_ok() {
            // The other one is given up, and nobody knows what it costs.
            let given_up = if is_first { &beside } else { question };
            called.unseen = called.unseen.plus(given_up.most());
            if !is_first {
                // As long as that at least; else only those that are quick would be known.
                latencies.record(began.elapsed());
            }
            return Ok(called);
        }
        self.heed(&called, task.hash(), services).await?;
        let mut last = if is_first { second.await } else { first.await };
        last.bill.add(&called.bill);
        last.unseen = last.unseen.plus(called.unseen);
        Ok(last)
    }

    /// A second way for the same question, noted with the ledger; none where it would have to wait, or is not affordable.
    async fn beside(
        &self,
        question: &Question,
        task: &Task,
        second: &Second<'_>,
        services: Services<'_>,
    ) -> anyhow::Result<Beside<'_>> {
        let Ok(turn) = self.seconds.try_acquire() else { return Ok(Beside::NotYet) };
        let mut path = Path::beside(&self.routes, &question.route);
        let mut conversation = second.conversation.clone();
        let asked = self.question(&mut conversation, task, &mut path, services.stopper);
        let Ok(Ok(beside)) = tokio::time::timeout(SOON, asked).await else { return Ok(Beside::NotYet) };
        if conversation.shortened != second.conversation.shortened {
            return Ok(Beside::NotYet);
        }
        match beside.route.lane.place_within(SOON, beside.tokens(), services.ledger).await? {
            When::At(start) => tokio::time::sleep_until(start).await,
            When::NotBefore(_) => return Ok(Beside::NotYet),
        }
        let call =
            Call { number: *second.number + 1, most: beside.most(), before: Money::ZERO, is_beside: true };
        let claim = (task.hash(), second.token);
        match services.ledger.begin_call(claim, &call, &self.job().limits).await? {
            Turn::Now => Ok(Beside::Noted(beside, turn)),
            _ => Ok(Beside::No),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_known_after_a_hundred_answers_and_follows_them() {
        let latencies = Latencies::new(Some("p90".parse().unwrap())).unwrap();
        for ms in 1..=100 {
            assert_eq!(latencies.known(), None);
            latencies.record(Duration::from_millis(ms));
        }
        let known = latencies.known().unwrap();
        assert!((89..=92).contains(&known.as_millis()), "{known:?}");
        for _ in 0..2 * MOST_CALLS {
            latencies.record(Duration::from_millis(10));
        }
        assert_eq!(latencies.known().unwrap().as_millis(), 10);
    }
}
