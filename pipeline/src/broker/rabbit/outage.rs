//! Tells of a loss once and of its end once, however many connections and waiting products saw it.
//!
//! A process has two connections to RabbitMQ and many products that use them, and each finds out by itself that
//! RabbitMQ is gone. An outage begins with the first that does and ends when every connection that was missed works
//! again; one that nobody wants any more ([`Wanted`]) is not missed. A connection that dies a little later of the same cause is no news: RabbitMQ was lost once.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::HEARTBEAT_S;
use crate::{health::health, metrics::metrics};

/// By then heartbeats have found every connection that died together with the first.
const SAME_OUTAGE: Duration = Duration::from_secs(3 * HEARTBEAT_S as u64);

/// As probes are told.
const RABBITMQ: &str = "RabbitMQ";

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Takes messages and acknowledges them.
    Consume,
    /// Puts messages, and asks for depths.
    Publish,
    /// Asks for depths, for people.
    Look,
    /// Goes through the dead queue.
    Dead,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Consume => "consume",
            Self::Publish => "publish",
            Self::Look => "look",
            Self::Dead => "dead letters",
        })
    }
}

/// What was lost, and why.
#[derive(Clone, Debug)]
pub(super) enum Loss {
    /// The connection, or its channel.
    Connection(String),
    /// There was none to begin with.
    Unreachable(String),
    /// A queue that was there is not there any more.
    Queue(String),
    /// A queue that does not answer, although RabbitMQ does.
    Silence(String),
}

/// The outage a process is in, if it is in one.
pub(super) struct Outages {
    at: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    outage: Option<Outage>,
    /// When the last outage began and ended.
    last: Option<(Instant, Instant)>,
    /// Whether RabbitMQ was there before.
    is_known: bool,
}

struct Outage {
    began: Instant,
    of_queue: bool,
    missed: Vec<Purpose>,
    silence_told: bool,
}

impl Outages {
    pub(super) fn new(at: String) -> Self {
        Self { at, state: Mutex::default() }
    }

    /// A connection that was opened at `opened` (`None`: could not be opened) cannot be used.
    pub(super) fn lost(&self, purpose: Purpose, opened: Option<Instant>, loss: &Loss) {
        tracing::debug!(at = self.at, %purpose, ?loss, "lost");
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(outage) = &mut state.outage {
            if !outage.missed.contains(&purpose) {
                outage.missed.push(purpose);
            }
            // What began as a loss of RabbitMQ goes on as something that does not mend itself.
            if let Loss::Silence(queue) = loss
                && !std::mem::replace(&mut outage.silence_told, true)
            {
                self.tell_silence(queue);
            }
            return;
        }
        let now = Instant::now();
        let died_with_it = |(began, ended): (Instant, Instant)| {
            opened.is_some_and(|opened| opened < began && now < ended + SAME_OUTAGE)
        };
        if state.last.is_some_and(died_with_it) {
            return;
        }
        let of_queue = matches!(loss, Loss::Queue(_));
        let silence_told = matches!(loss, Loss::Silence(_));
        state.outage = Some(Outage { began: now, of_queue, missed: vec![purpose], silence_told });
        let was_there = state.is_known;
        health().lost(RABBITMQ);
        drop(state);
        let at = &self.at;
        match loss {
            Loss::Queue(queue) => tracing::warn!(
                at,
                queue,
                "a queue was deleted, declaring it again; run the producer again to publish what was in it"
            ),
            Loss::Silence(queue) => self.tell_silence(queue),
            Loss::Unreachable(reason) if !was_there => {
                tracing::warn!(at, reason, "cannot reach RabbitMQ, trying again until it is there");
            }
            Loss::Connection(reason) | Loss::Unreachable(reason) => tracing::warn!(
                at,
                reason,
                "lost RabbitMQ, trying again until it is back; calls in flight go on and nothing is lost"
            ),
        }
    }

    fn tell_silence(&self, queue: &str) {
        tracing::warn!(
            at = self.at,
            queue,
            "a queue does not answer, although RabbitMQ does; trying again until it does. Where that does not end, it may \
             have no leader: docs/operations.md says what to do"
        );
    }

    /// Somebody wants a connection, until this is dropped: a question to which the answer is not needed any more is asked by
    /// nobody again, and with it goes what would have told of the connection's return.
    pub(super) const fn wanted(&self, purpose: Purpose) -> Wanted<'_> {
        Wanted { outages: self, purpose }
    }

    /// A connection can be used.
    pub(super) fn restored(&self, purpose: Purpose) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_known = true;
        let Some(outage) = &mut state.outage else { return };
        outage.missed.retain(|missed| *missed != purpose);
        if !outage.missed.is_empty() {
            return;
        }
        let (began, of_queue) = (outage.began, outage.of_queue);
        let after_seconds = began.elapsed().as_secs_f64();
        state.outage = None;
        state.last = Some((began, Instant::now()));
        drop(state);
        health().back(RABBITMQ);
        metrics().reconnected("rabbitmq");
        let (at, after_seconds) = (&self.at, format_args!("{after_seconds:.1}"));
        if of_queue {
            tracing::info!(at, %after_seconds, "the queue is there again");
        } else {
            tracing::info!(at, %after_seconds, "RabbitMQ is back");
        }
    }
}

/// Somebody wants a connection.
pub(super) struct Wanted<'o> {
    outages: &'o Outages,
    purpose: Purpose,
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        let mut state = self.outages.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(outage) = &mut state.outage {
            outage.missed.retain(|missed| *missed != self.purpose);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Outages {
        fn is_out(&self) -> bool {
            self.state.lock().unwrap().outage.is_some()
        }
    }

    #[test]
    fn an_outage_ends_when_all_that_is_missed_and_still_wanted_works_again() {
        let outages = Outages::new("here".to_owned());
        let loss = || Loss::Connection("gone".to_owned());
        let opened = Some(Instant::now());
        outages.lost(Purpose::Consume, opened, &loss());
        outages.lost(Purpose::Publish, opened, &loss());
        outages.restored(Purpose::Consume);
        assert!(outages.is_out(), "nothing can be published");
        outages.restored(Purpose::Publish);
        assert!(!outages.is_out());

        let outages = Outages::new("here".to_owned());
        let asks = outages.wanted(Purpose::Publish);
        outages.lost(Purpose::Publish, opened, &Loss::Queue("q".to_owned()));
        outages.lost(Purpose::Consume, opened, &loss());
        drop(asks);
        assert!(outages.is_out(), "nothing works yet");
        outages.restored(Purpose::Consume);
        assert!(!outages.is_out(), "nobody asks any more");
    }
}
