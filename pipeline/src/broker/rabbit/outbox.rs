//! Outcomes on their way to RabbitMQ: those that are told at the same time leave in one message, a line each.
//!
//! Nobody waits for company. An outcome leaves at once when no message is under way; those that come until that one is confirmed
//! leave together after it. Whoever told one hears of it when the message that has it is safe.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::sync::{mpsc, oneshot};

use super::connection::Shared;
use crate::{broker::BrokerError, trace::Parent};

/// What a message has at most, but for its last line; an aggregator holds some hundred messages.
const MESSAGE_BYTES: usize = 32 * 1024;
const MESSAGE_OUTCOMES: usize = 64;
/// Messages under way: more than one when they are full, as where RabbitMQ is far away.
const UNDER_WAY: usize = 32;
/// Outcomes that wait for a message to be begun.
const WAITING: usize = 64;

/// RabbitMQ takes messages at once where it has taken one so lately.
const LATELY: Duration = Duration::from_secs(1);

/// Where outcomes are handed in.
pub(super) struct Outbox {
    letters: mpsc::Sender<Letter>,
    /// When RabbitMQ last had a message safe.
    safe: Arc<Mutex<Option<Instant>>>,
}

/// An outcome, and who is told of it.
pub(super) struct Letter {
    body: Vec<u8>,
    trace: Parent,
    sent: oneshot::Sender<Result<(), BrokerError>>,
}

impl Outbox {
    /// Begins to send what is handed in, until nobody can hand in anything.
    pub(super) fn open(shared: Arc<Shared>) -> Self {
        let (letters, handed_in) = mpsc::channel(WAITING);
        let safe = Arc::default();
        tokio::spawn(send_all(shared, handed_in, Arc::clone(&safe)));
        Self { letters, safe }
    }

    /// Safe when this returns.
    pub(super) async fn send(&self, body: Vec<u8>) -> Result<(), BrokerError> {
        let (sent, is_sent) = oneshot::channel();
        let letter = Letter { body, trace: Parent::current(), sent };
        self.letters.send(letter).await.map_err(|_| BrokerError::Closed)?;
        is_sent.await.map_err(|_| BrokerError::Closed)?
    }

    pub(super) fn is_quick(&self) -> bool {
        lock(&self.safe).is_some_and(|safe| safe.elapsed() < LATELY)
    }
}

fn lock(safe: &Mutex<Option<Instant>>) -> MutexGuard<'_, Option<Instant>> {
    safe.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Default)]
struct Message {
    body: Vec<u8>,
    traces: Vec<Parent>,
    sent: Vec<oneshot::Sender<Result<(), BrokerError>>>,
}

impl Message {
    fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    fn is_full(&self) -> bool {
        self.body.len() >= MESSAGE_BYTES || self.sent.len() >= MESSAGE_OUTCOMES
    }

    fn push(&mut self, letter: Letter) {
        if !self.is_empty() {
            self.body.push(b'\n');
        }
        self.body.extend_from_slice(&letter.body);
        self.traces.push(letter.trace);
        self.sent.push(letter.sent);
    }

    async fn send(self, shared: Arc<Shared>, safe: Arc<Mutex<Option<Instant>>>) {
        let result = shared.publish(&shared.topology.outcomes, &self.body, &self.traces, None).await;
        if result.is_ok() {
            *lock(&safe) = Some(Instant::now());
        }
        for sent in self.sent {
            // Who has been let go of meanwhile does not listen.
            let _ = sent.send(result.clone());
        }
    }
}

async fn send_all(
    shared: Arc<Shared>,
    mut letters: mpsc::Receiver<Letter>,
    safe: Arc<Mutex<Option<Instant>>>,
) {
    let (mut message, mut under_way) = (Message::default(), FuturesUnordered::new());
    let mut is_open = true;
    while is_open || !message.is_empty() || !under_way.is_empty() {
        let may_leave = under_way.is_empty() || (message.is_full() && under_way.len() < UNDER_WAY);
        if may_leave && !message.is_empty() {
            under_way.push(mem::take(&mut message).send(Arc::clone(&shared), Arc::clone(&safe)));
        }
        tokio::select! {
            letter = letters.recv(), if is_open && !message.is_full() => match letter {
                Some(letter) => message.push(letter),
                None => is_open = false,
            },
            Some(()) = under_way.next() => {}
        }
    }
}
