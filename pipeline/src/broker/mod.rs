//! Carries tasks and outcomes: RabbitMQ between processes, bounded channels within one.
//!
//! What both guarantee, and the contract suite checks of both:
//! - A publish returns only when the message is safe with the broker (RabbitMQ: confirmed and routed).
//! - A delivery is settled once: [`Delivery::ack`] and [`Delivery::retry_later`] take it by value. What is
//!   never settled comes again when its consumer is gone.
//! - What cannot be decoded goes to the dead queue with the reason; no role sees it.
//! - `retry_later` makes the message safe first and acknowledges second; a crash in between repeats it.
//! - A lost connection is the broker's to mend: calls wait, they do not fail, until the [`Stopper`] aborts.
//!
//! [`Stopper`]: crate::shutdown::Stopper

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;

use crate::{
    message::{Outcome, Task},
    trace::Parent,
};

mod memory;
mod rabbit;
mod topology;

pub use memory::MemoryBroker;
pub use rabbit::{Connect, RabbitBroker, RabbitConfig};

/// Why a broker could not do what it was asked. None of these mends itself.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BrokerError {
    /// The URL cannot be read, the login was refused, or the virtual host is not there.
    #[error("RabbitMQ at {at} refuses the connection: {reason}")]
    Refused {
        /// Host, port and virtual host; never the password.
        at: String,
        /// RabbitMQ's words.
        reason: String,
    },
    /// A one-shot command could not reach the broker.
    #[error("cannot reach RabbitMQ at {at}: {reason}")]
    Unreachable {
        /// Host, port and virtual host; never the password.
        at: String,
        /// The system's words.
        reason: String,
    },
    /// A queue of ours exists with other arguments.
    #[error(
        "the queue {queue} exists with other arguments than this version of Shelfmill declares ({reason}); \
         finish or purge the run with the version that made it, or use another --run name"
    )]
    Topology {
        /// The queue.
        queue: String,
        /// RabbitMQ's words.
        reason: String,
    },
    /// The login may not use a queue of ours.
    #[error(
        "the login may not use the queue {queue} ({reason}); grant it configure, write and read on shelfmill.*"
    )]
    Forbidden {
        /// The queue.
        queue: String,
        /// RabbitMQ's words.
        reason: String,
    },
    /// A file of certificates cannot be used.
    #[error("cannot use the certificates in {file}: {reason}")]
    Certificates {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The process is ending and does not wait any longer.
    #[error("stopped while waiting for the broker")]
    Aborted,
    /// The other side of a channel in memory is gone.
    #[error("the other role of this process has ended")]
    Closed,
}

/// What carries tasks and outcomes of one run.
#[async_trait]
pub trait Broker: Send + Sync {
    /// Publishes a task; safe when this returns.
    async fn publish_task(&self, task: Task) -> Result<(), BrokerError>;
    /// Publishes an outcome; safe when this returns.
    async fn publish_outcome(&self, outcome: &Outcome) -> Result<(), BrokerError>;
    /// Whether an outcome that is published now is going to be safe in a moment, since others were a moment ago.
    fn takes_at_once(&self) -> bool;
    /// Whether a message may come more than once.
    fn repeats(&self) -> bool;
    /// Consumes tasks, at most `prefetch` unsettled at a time.
    async fn tasks(&self, prefetch: Prefetch) -> Result<Box<dyn Consumer<Task>>, BrokerError>;
    /// Consumes outcomes; of several consumers one gets them, the others stand by.
    async fn outcomes(&self, prefetch: u16) -> Result<Box<dyn Consumer<Outcome>>, BrokerError>;
    /// How much is waiting.
    async fn depths(&self) -> Result<Depths, BrokerError>;
    /// The same for people: an answer or an error within a few seconds, also while the broker is away.
    async fn look(&self) -> Result<Depths, BrokerError> {
        self.depths().await
    }
    /// Goes through the dead queue.
    async fn dead_letters(&self) -> Result<Box<dyn DeadLetters>, BrokerError>;
}

/// Why a message is in the dead queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A task that was delivered again and again, and never settled.
    DeliveryLimit,
    /// A message no role could read; in the words of the one that tried.
    Unreadable(String),
    /// Nobody here put it there.
    Unknown,
}

/// One pass through the dead queue.
#[async_trait]
pub trait DeadLetters: Send {
    /// The next message; `None` at the end. What is not settled is in the queue again when the pass is dropped.
    async fn next(&mut self) -> Result<Option<DeadLetter>, BrokerError>;
}

/// A message that no role could take.
pub struct DeadLetter {
    /// Why it is here.
    pub cause: Cause,
    /// Its bytes.
    pub body: Vec<u8>,
    receipt: Box<dyn DeadReceipt>,
}

/// A broker's side of a message in the dead queue.
#[async_trait]
pub(crate) trait DeadReceipt: Send {
    async fn ack(self: Box<Self>) -> Result<(), BrokerError>;
    async fn put_back(self: Box<Self>, body: &[u8]) -> Result<bool, BrokerError>;
}

impl DeadLetter {
    pub(crate) fn new(cause: Cause, body: Vec<u8>, receipt: impl DeadReceipt + 'static) -> Self {
        Self { cause, body, receipt: Box::new(receipt) }
    }

    /// It is done with.
    pub async fn ack(self) -> Result<(), BrokerError> {
        self.receipt.ack().await
    }

    /// Makes it safe in the queue it came from, then takes it away here; `false` where that is not known.
    pub async fn put_back(self) -> Result<bool, BrokerError> {
        self.receipt.put_back(&self.body).await
    }
}

/// Messages ready in each queue (those with a consumer and not settled are not counted).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depths {
    /// Tasks ready for a worker.
    pub tasks: u64,
    /// Tasks waiting for another try.
    pub retries: u64,
    /// Outcomes ready for the aggregator.
    pub outcomes: u64,
    /// Messages no role could take.
    pub dead: u64,
}

/// How much is fetched ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefetch {
    /// Messages fetched and not settled, at most.
    pub messages: u16,
    /// Of those, so many that are done with may wait to be told of together.
    pub told_together: u16,
}

impl Prefetch {
    /// Of a worker with so many places: what is worked on, a quarter more that wait for a place, and those that wait to be told
    /// of. RabbitMQ sends as many at once as it is told of, which costs it less than one by one. But what one worker has, another
    /// cannot begin: with few places, which slow calls may fill, few wait.
    #[must_use]
    pub fn of_places(places: u32) -> Self {
        const FEW: u32 = 32;
        const MOST_TOLD_TOGETHER: u32 = 64;
        let told = (places.min(FEW) / 4 + places.saturating_sub(FEW)).clamp(1, MOST_TOLD_TOGETHER);
        let messages = u16::try_from(places + places / 4 + told + 1).unwrap_or(u16::MAX);
        Self { messages, told_together: u16::try_from(told).unwrap_or(u16::MAX) }
    }

    /// The same with so many messages more, and as many that wait to be told of as half of them.
    #[must_use]
    pub fn and_ahead(self, messages: u32) -> Self {
        let messages = u16::try_from(messages).unwrap_or(u16::MAX);
        let told = messages / 2;
        Self {
            messages: self.messages.saturating_add(messages).saturating_add(told),
            told_together: self.told_together.saturating_add(told),
        }
    }
}

impl From<u16> for Prefetch {
    /// So many messages, each told of by itself.
    fn from(messages: u16) -> Self {
        Self { messages, told_together: 1 }
    }
}

/// A stream of deliveries that survives lost connections.
#[async_trait]
pub trait Consumer<M>: Send {
    /// The next delivery; waits as long as there is none. Cancel safe.
    async fn next(&mut self) -> Result<Delivery<M>, BrokerError>;
    /// From now on fetches so far ahead; `false` where nothing is fetched, since all there is is here.
    fn set_prefetch(&mut self, prefetch: Prefetch) -> bool;
    /// Takes no more, and gives back at once what was fetched and not handed out.
    async fn close(&mut self) -> Result<(), BrokerError>;
    /// Returns when the broker was told of all that is done with.
    async fn told(&mut self) -> Result<(), BrokerError>;
}

/// A message that must be settled.
pub struct Delivery<M> {
    /// What came.
    pub message: M,
    /// The span that published it.
    pub trace: Parent,
    receipt: Box<dyn Receipt>,
}

/// A broker's side of an unsettled delivery.
#[async_trait]
pub(crate) trait Receipt: Send + Sync {
    /// Tells the broker that the message is done with. On a dead connection nothing is told, and the message
    /// comes again: what was done for it must be recognisable.
    async fn ack(self: Box<Self>) -> Result<(), BrokerError> {
        match self.done() {
            Some((_, number)) => self.settle(vec![number]).await,
            None => Ok(()),
        }
    }
    /// The message is done with, and nobody was told yet: where the broker is to be, on which connection and with which number.
    fn done(&self) -> Option<(usize, u64)>;
    /// Tells the broker so of all of these on its connection.
    async fn settle(self: Box<Self>, numbers: Vec<u64>) -> Result<(), BrokerError>;
    /// Makes the task safe for delivery after about `delay`, then acknowledges.
    async fn retry_later(self: Box<Self>, task: Task, delay: Duration) -> Result<(), BrokerError>;
}

impl<M> Delivery<M> {
    pub(crate) fn new(message: M, trace: Parent, receipt: impl Receipt + 'static) -> Self {
        Self { message, trace, receipt: Box::new(receipt) }
    }

    /// All of these are done with: told in as few words as their broker knows.
    pub async fn ack_all(deliveries: Vec<Self>) -> Result<(), BrokerError> {
        let mut connections: BTreeMap<usize, (Box<dyn Receipt>, Vec<u64>)> = BTreeMap::new();
        for Self { receipt, .. } in deliveries {
            if let Some((connection, number)) = receipt.done() {
                let (_, numbers) = connections.entry(connection).or_insert_with(|| (receipt, Vec::new()));
                numbers.push(number);
            }
        }
        for (receipt, numbers) in connections.into_values() {
            receipt.settle(numbers).await?;
        }
        Ok(())
    }

    /// The message is done with.
    pub async fn ack(self) -> Result<(), BrokerError> {
        self.receipt.ack().await
    }
}

impl Delivery<Task> {
    /// Comes again, as it now is, after about `delay`; zero gives it back at once.
    pub async fn retry_later(self, delay: Duration) -> Result<(), BrokerError> {
        self.receipt.retry_later(self.message, delay).await
    }
}
