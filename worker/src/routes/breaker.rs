//! Whether a provider is there: a circuit breaker.
//!
//! After some failures in a row that speak of an outage nobody calls; then one call is let through to see, after longer and
//! longer waits. What answers is there again. As long as no server has ever answered, all are left to their failures: the
//! addresses are probably wrong, and the run ends by saying so.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use shelfmill_pipeline::failure::FailureClass;
use tokio::time::Instant;

/// Failures in a row, where there is another provider to go to.
const OPENS_AFTER: u32 = 5;
/// Where there is none: a faulty server is better than none.
const OPENS_ALONE_AFTER: u32 = 10;
const FIRST_PROBE: Duration = Duration::from_secs(1);
const LAST_PROBE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Breaker {
    name: String,
    is_alone: bool,
    /// Whether any of the servers has answered yet.
    has_any_answered: Arc<AtomicBool>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failures_in_row: u32,
    /// While it is open: when the next call may see, and how long after that another one.
    open: Option<(Instant, Duration)>,
}

/// A call was let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pass {
    is_probe: bool,
}

/// Whether a failure speaks of the server, and not of the question.
pub(crate) const fn is_outage(class: FailureClass) -> bool {
    matches!(class, FailureClass::ServerError | FailureClass::Timeout | FailureClass::Network)
}

impl Breaker {
    pub(crate) fn new(name: String, is_alone: bool, has_any_answered: Arc<AtomicBool>) -> Self {
        Self { name, is_alone, has_any_answered, state: Mutex::default() }
    }

    /// Whether only a call that is to see is let through.
    pub(crate) fn is_open(&self) -> bool {
        self.state().open.is_some()
    }

    /// Until when nobody calls; `None`: now.
    pub(crate) fn opens_at(&self, now: Instant) -> Option<Instant> {
        self.state().open.map(|(until, _)| until).filter(|until| *until > now)
    }

    /// A call is to begin. The first one after the wait is to see; the others wait for it.
    pub(crate) fn begin(&self, now: Instant) -> Option<Pass> {
        let mut state = self.state();
        match &mut state.open {
            None => Some(Pass { is_probe: false }),
            Some((until, wait)) if *until <= now => {
                *wait = (*wait * 2).min(LAST_PROBE);
                *until = now + *wait;
                Some(Pass { is_probe: true })
            }
            Some(_) => None,
        }
    }

    /// Whether a call that was let through and had to wait may still be made.
    pub(crate) fn holds(&self, pass: Pass, now: Instant) -> bool {
        pass.is_probe || self.opens_at(now).is_none()
    }

    /// The server has answered, if only to refuse.
    pub(crate) fn answered(&self) {
        let mut state = self.state();
        state.failures_in_row = 0;
        self.has_any_answered.store(true, Ordering::Relaxed);
        if state.open.take().is_some() {
            tracing::warn!(endpoint = self.name, "the model's server answers again");
        }
    }

    /// It has failed as servers fail that are not there.
    pub(crate) fn failed(&self, reason: &str) {
        let mut state = self.state();
        state.failures_in_row = state.failures_in_row.saturating_add(1);
        let opens_after = if self.is_alone { OPENS_ALONE_AFTER } else { OPENS_AFTER };
        if state.open.is_some()
            || state.failures_in_row < opens_after
            || !self.has_any_answered.load(Ordering::Relaxed)
        {
            return;
        }
        state.open = Some((Instant::now() + FIRST_PROBE, FIRST_PROBE));
        let what = if self.is_alone { "waiting for it" } else { "going on with the others" };
        tracing::warn!(endpoint = self.name, reason, "the model's server seems to be down, {what}");
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker(is_alone: bool, has_any_answered: bool) -> Breaker {
        Breaker::new("one".to_owned(), is_alone, Arc::new(AtomicBool::new(has_any_answered)))
    }

    fn fail(breaker: &Breaker, times: u32) {
        (0..times).for_each(|_| breaker.failed("down"));
    }

    #[tokio::test(start_paused = true)]
    async fn after_failures_in_a_row_one_call_sees_after_longer_and_longer_waits() {
        let breaker = breaker(false, true);
        fail(&breaker, OPENS_AFTER - 1);
        breaker.answered();
        fail(&breaker, OPENS_AFTER - 1);
        assert_eq!(breaker.opens_at(Instant::now()), None);
        fail(&breaker, 100);
        for wait in [1, 2, 4, 8, 16, 30, 30] {
            let until = breaker.opens_at(Instant::now()).unwrap();
            assert_eq!(until - Instant::now(), Duration::from_secs(wait));
            assert_eq!(breaker.begin(Instant::now()), None);
            tokio::time::advance(Duration::from_secs(wait)).await;
            let probe = breaker.begin(Instant::now()).unwrap();
            assert_eq!(breaker.begin(Instant::now()), None, "one at a time");
            assert!(breaker.holds(probe, Instant::now()));
            fail(&breaker, 1);
        }
        breaker.answered();
        let pass = breaker.begin(Instant::now()).unwrap();
        assert!(breaker.holds(pass, Instant::now()));
        fail(&breaker, OPENS_AFTER);
        assert!(!breaker.holds(pass, Instant::now()), "it waited while the server went down");
    }

    #[tokio::test(start_paused = true)]
    async fn servers_are_left_to_their_failures_until_one_has_answered() {
        for (is_alone, opens_after) in [(true, OPENS_ALONE_AFTER), (false, OPENS_AFTER)] {
            let breaker = breaker(is_alone, false);
            fail(&breaker, 100);
            assert_eq!(breaker.opens_at(Instant::now()), None);
            breaker.answered();
            fail(&breaker, opens_after);
            assert!(breaker.opens_at(Instant::now()).is_some());
        }
    }
}
