//! How many calls a worker has under way at one provider: as many as are good for it, and never more than allowed.
//!
//! It begins with few and doubles quickly, since most servers bear what they were given a ceiling for. From the first sign
//! that one does not, it is additive increase and multiplicative decrease: a third less when calls are refused for their
//! rate, or when more than a tenth of the latest ones timed out or met an overloaded server; one more for each round of good
//! answers that found all places taken.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

/// Places in the beginning.
const FIRST_PLACES: usize = 32;
/// They are doubled so often, as long as nothing speaks against it.
const DOUBLED_EVERY: Duration = Duration::from_millis(25);
/// After a decrease, the calls that were under way tell nothing new for so long.
const SETTLES_IN: Duration = Duration::from_secs(1);
/// Of so many calls one may go wrong.
const BAD_OF: u32 = 10;
/// Fewer calls say nothing, where there are places for so many; of twice the places for them.
const LEAST_CALLS: usize = 20;
/// After so many, earlier ones count half.
const MOST_CALLS: u32 = 100;

pub(crate) struct Gate {
    places: Arc<Semaphore>,
    ceiling: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limit: usize,
    /// Places to be taken back when they become free.
    owed: usize,
    is_starting: bool,
    grown_at: Instant,
    /// Good answers that found all places taken, since the last increase.
    credit: usize,
    good: u32,
    bad: u32,
}

impl State {
    fn fade(&mut self) {
        if self.good + self.bad >= MOST_CALLS {
            (self.good, self.bad) = (self.good / 2, self.bad / 2);
        }
    }
}

/// A call's place; free again when it is dropped.
pub(crate) struct Place(Arc<Gate>);

impl Gate {
    pub(crate) fn new(ceiling: usize) -> Arc<Self> {
        let limit = ceiling.clamp(1, FIRST_PLACES);
        let now = Instant::now();
        let state = State { limit, owed: 0, is_starting: true, grown_at: now, credit: 0, good: 0, bad: 0 };
        Arc::new(Self {
            places: Arc::new(Semaphore::new(limit)),
            ceiling: ceiling.max(1),
            state: Mutex::new(state),
        })
    }

    /// How many calls are under way, and how many may be.
    pub(crate) fn under_way(&self) -> (usize, usize) {
        let state = self.state();
        ((state.limit + state.owed).saturating_sub(self.places.available_permits()), state.limit)
    }

    /// Whether a call need not wait for a place.
    pub(crate) fn has_room(&self) -> bool {
        self.places.available_permits() > 0
    }

    /// A place, when there is one.
    pub(crate) async fn enter(self: &Arc<Self>) -> Place {
        loop {
            let until = self.grows_at();
            let place = match until {
                Some(until) => timeout_at(until, self.places.acquire()).await.ok(),
                None => Some(self.places.acquire().await),
            };
            if let Some(Ok(place)) = place {
                // Given back by hand: it may be one that is taken away.
                place.forget();
                return Place(Arc::clone(self));
            }
            self.double();
        }
    }

    /// When the places are doubled, if they are.
    fn grows_at(&self) -> Option<Instant> {
        let state = self.state();
        (state.is_starting && state.limit < self.ceiling).then(|| state.grown_at + DOUBLED_EVERY)
    }

    fn double(&self) {
        let mut state = self.state();
        if state.is_starting && state.grown_at.elapsed() >= DOUBLED_EVERY {
            state.grown_at = Instant::now();
            let more = state.limit.min(self.ceiling - state.limit);
            state.limit += more;
            self.places.add_permits(more);
        }
    }

    /// The server bore this call.
    pub(crate) fn good(&self) {
        let mut state = self.state();
        state.good += 1;
        state.fade();
        if state.is_starting || state.limit >= self.ceiling || self.has_room() {
            return;
        }
        state.credit += 1;
        if state.credit >= state.limit {
            state.credit = 0;
            state.limit += 1;
            match state.owed {
                0 => self.places.add_permits(1),
                _ => state.owed -= 1,
            }
        }
    }

    /// It timed out, or met an overloaded server.
    pub(crate) fn bad(&self) {
        let mut state = self.state();
        state.bad += 1;
        let all = state.good + state.bad;
        if all as usize >= LEAST_CALLS.min(2 * state.limit) && state.bad * BAD_OF > all {
            self.shrink(&mut state);
        }
        state.fade();
    }

    /// It was refused for its rate.
    pub(crate) fn refused(&self) {
        self.shrink(&mut self.state());
    }

    fn shrink(&self, state: &mut State) {
        let now = Instant::now();
        if !state.is_starting && now.duration_since(state.grown_at) < SETTLES_IN {
            return;
        }
        (state.is_starting, state.grown_at, state.credit) = (false, now, 0);
        (state.good, state.bad) = (0, 0);
        let fewer = state.limit - (state.limit * 2 / 3).max(1);
        state.limit -= fewer;
        state.owed += fewer - self.places.forget_permits(fewer);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.0.state();
        match state.owed {
            0 => self.0.places.add_permits(1),
            _ => state.owed -= 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Gate {
        fn limit(&self) -> usize {
            self.under_way().1
        }
    }

    async fn enter(gate: &Arc<Gate>, count: usize) -> Vec<Place> {
        let mut places = Vec::new();
        for _ in 0..count {
            places.push(gate.enter().await);
        }
        places
    }

    #[tokio::test(start_paused = true)]
    async fn it_begins_with_few_and_is_at_its_ceiling_soon() {
        let gate = Gate::new(500);
        assert_eq!(gate.limit(), 32);
        let began = Instant::now();
        let _places = enter(&gate, 500).await;
        assert!(began.elapsed() <= DOUBLED_EVERY * 5, "{:?}", began.elapsed());
        assert_eq!((gate.limit(), gate.has_room()), (500, false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_takes_a_third_once_a_second_and_answers_give_it_back() {
        let gate = Gate::new(100);
        let mut places = enter(&gate, 100).await;
        for _ in 0..50 {
            gate.refused();
        }
        assert_eq!(gate.limit(), 66);
        places.truncate(66);
        assert_eq!(gate.under_way(), (66, 66));
        assert!(!gate.has_room(), "those that end give their places back for good");
        for (round, limit) in [(66, 67), (67, 68)] {
            (0..round).for_each(|_| gate.good());
            assert_eq!(gate.limit(), limit, "one more for each round");
            places.extend(enter(&gate, 1).await);
        }
        tokio::time::advance(SETTLES_IN * 2).await;
        gate.refused();
        assert_eq!(gate.limit(), 45);
    }

    #[tokio::test(start_paused = true)]
    async fn places_that_nobody_needs_are_not_made() {
        let gate = Gate::new(100);
        gate.refused();
        let limit = gate.limit();
        for _ in 0..1_000 {
            gate.good();
        }
        assert_eq!(gate.limit(), limit);
    }

    #[tokio::test(start_paused = true)]
    async fn how_fast_calls_end_does_not_matter_to_what_they_say() {
        let gate = Gate::new(32);
        for _ in 0..200 {
            for _ in 0..12 {
                gate.good();
                tokio::time::advance(SETTLES_IN).await;
            }
            gate.bad();
        }
        assert_eq!(gate.limit(), 32, "one of thirteen");
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_timeouts_are_no_overload_and_many_are() {
        let gate = Gate::new(32);
        for _ in 0..20 {
            (0..30).for_each(|_| gate.good());
            gate.bad();
        }
        assert_eq!(gate.limit(), 32);
        for _ in 0..200 {
            gate.bad();
        }
        assert!(gate.limit() < 32, "{}", gate.limit());
        for _ in 0..300 {
            tokio::time::advance(SETTLES_IN * 2).await;
            gate.bad();
        }
        assert_eq!(gate.limit(), 1, "and never none");
    }
}
