//! How many products a worker has beside those whose calls are under way.
//!
//! Where calls take milliseconds, a product spends most of its time on its way from and to RabbitMQ and Redis, and places stand
//! empty meanwhile. Then more products are taken than there are places for calls: what is asked of Redis and told RabbitMQ at the
//! same time goes there together. What one worker has, another cannot begin: so it is only done where the worker has made
//! as many calls within a tenth of a second.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// For each place so many products more. (With more places than this there is company enough.)
const OF_A_PLACE: u32 = 4;
const MOST: u32 = 256;
/// In which as many calls must have been made.
const SOON: Duration = Duration::from_millis(100);
/// When they have not been made by then, no more are taken.
const LATE: Duration = Duration::from_millis(400);

/// Places for products; those for their calls are counted where they are made.
pub(crate) struct Places {
    free: Arc<Semaphore>,
    /// 0: never.
    most_ahead: u32,
    is_ahead: bool,
    /// Places to be taken back when they become free.
    owed: usize,
    /// Calls that had been made by then.
    calls: u32,
    since: Instant,
}

impl Places {
    pub(crate) fn new(concurrency: u32) -> Self {
        Self {
            free: Arc::new(Semaphore::new(concurrency as usize)),
            most_ahead: if concurrency > MOST { 0 } else { (concurrency * OF_A_PLACE).min(MOST) },
            is_ahead: false,
            owed: 0,
            calls: 0,
            since: Instant::now(),
        }
    }

    /// A place for a product, when there is one. Cancel safe.
    pub(crate) async fn take(&mut self) -> anyhow::Result<OwnedSemaphorePermit> {
        loop {
            let place = Arc::clone(&self.free).acquire_owned().await?;
            if self.owed == 0 {
                return Ok(place);
            }
            place.forget();
            self.owed -= 1;
        }
    }

    /// So many calls have been made; how many products are to be there beside those that have calls, where that has changed.
    pub(crate) fn look(&mut self, calls: u32) -> Option<u32> {
        let is_enough = calls.wrapping_sub(self.calls) >= self.most_ahead;
        let is_late = || self.is_ahead && self.since.elapsed() > LATE;
        if self.most_ahead == 0 || !(is_enough || is_late()) {
            return None;
        }
        let is_quick = self.since.elapsed() <= if self.is_ahead { LATE } else { SOON };
        (self.calls, self.since) = (calls, Instant::now());
        if is_quick == self.is_ahead {
            return None;
        }
        self.is_ahead = is_quick;
        Some(if is_quick { self.most_ahead } else { 0 })
    }

    /// So many places more than for calls, or no more than for calls.
    pub(crate) fn set_ahead(&mut self, ahead: u32) {
        if ahead > 0 {
            self.free.add_permits(ahead as usize);
        } else {
            self.owed += self.most_ahead as usize;
            self.owed -= self.free.forget_permits(self.owed);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    /// Makes so many calls, one in each of these spaces of time.
    async fn call(places: &mut Places, calls: u32, each: Duration) -> Vec<u32> {
        let (mut changes, made) = (Vec::new(), places.calls);
        for call in 1..=calls {
            advance(each).await;
            if let Some(ahead) = places.look(made + call) {
                places.set_ahead(ahead);
                changes.push(ahead);
            }
        }
        changes
    }

    #[tokio::test(start_paused = true)]
    async fn where_calls_are_quick_there_are_more_and_where_not_no_longer() {
        let mut places = Places::new(8);
        let quick = SOON / 40;
        assert_eq!(call(&mut places, 100, quick).await, [32]);
        let mut taken = Vec::new();
        for _ in 0..40 {
            taken.push(places.take().await.unwrap());
        }
        assert!(Arc::clone(&places.free).try_acquire_owned().is_err(), "8, and 32 more");
        assert_eq!(call(&mut places, 5, SOON).await, [0], "without waiting for as many calls again");
        // What is there ends, and of what becomes free only the 8 places of calls are taken again.
        taken.truncate(8);
        for _ in 0..4 {
            assert!(futures_util::poll!(Box::pin(places.take())).is_pending());
        }
        drop(taken.pop());
        assert!(futures_util::poll!(Box::pin(places.take())).is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn slow_calls_change_nothing_nor_do_quick_ones_of_many_places() {
        let mut places = Places::new(64);
        assert!(call(&mut places, 2_000, Duration::from_millis(1)).await.is_empty());
        let mut many = Places::new(MOST + 1);
        assert!(call(&mut many, 2_000, Duration::ZERO).await.is_empty());
    }
}
