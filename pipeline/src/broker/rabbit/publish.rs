//! Publishing until it is certain.

use std::{sync::Arc, time::Duration};

use lapin::{
    BasicProperties, Confirmation,
    options::{BasicPublishOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::time::{sleep, timeout};

use super::{
    Connect,
    connection::{Link, Shared, Trouble},
    declare::{is_not_found, queue_trouble},
    outage::{Loss, Purpose},
};
use crate::{
    broker::{BrokerError, Depths},
    trace::{self, Parent},
};

/// Every wait for RabbitMQ has an end: a connection that died at the wrong moment may never answer. Only where
/// RabbitMQ has said that it takes nothing for now is it waited for, since a new connection would fare no better.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a wait looks whether RabbitMQ takes anything.
const BLOCKED_POLL: Duration = Duration::from_secs(1);
/// People who ask how far it is do not wait long.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);
/// Of messages in the dead queue: why, and from where.
pub(super) const REASON_HEADER: &str = "x-shelfmill-reason";
pub(super) const QUEUE_HEADER: &str = "x-shelfmill-queue";

/// Why a message goes to the dead queue.
#[derive(Clone, Copy)]
pub(super) struct Epitaph<'a> {
    pub(super) reason: &'a str,
    pub(super) queue: &'a str,
}

impl Shared {
    async fn publisher(&self) -> Result<Arc<Link>, BrokerError> {
        let mut publisher = self.publisher.lock().await;
        if let Some(link) = publisher.as_ref().filter(|link| link.is_alive()) {
            return Ok(Arc::clone(link));
        }
        let link = self.open(Purpose::Publish).await?;
        self.outages.restored(Purpose::Publish);
        *publisher = Some(Arc::clone(&link));
        Ok(link)
    }

    /// Publishes until RabbitMQ has the message in the queue.
    pub(super) async fn publish(
        &self,
        queue: &str,
        body: &[u8],
        traces: &[Parent],
        epitaph: Option<Epitaph<'_>>,
    ) -> Result<(), BrokerError> {
        loop {
            let link = self.publisher().await?;
            let published = publish_once(&link, queue, body, traces, epitaph);
            let loss = match self.patiently(&link, CONFIRM_TIMEOUT, published).await? {
                Ok(Ok(Confirmation::Ack(None))) => return Ok(()),
                Ok(Ok(Confirmation::Ack(Some(_)))) => Loss::Queue(queue.to_owned()),
                Ok(Ok(_)) => Loss::Connection(format!("{queue} takes no message")),
                Ok(Err(error)) => match queue_trouble(queue, error) {
                    Trouble::Permanent(error) => return Err(error),
                    Trouble::Passing(error) => Loss::Connection(error.to_string()),
                },
                // The connection is there: RabbitMQ would have to say no.
                Err(_) if link.is_alive() => Loss::Silence(queue.to_owned()),
                Err(loss) => loss,
            };
            self.give_up(&link, &loss).await?;
        }
    }

    /// Messages ready in a queue.
    pub(super) async fn depth(&self, queue: &str) -> Result<u64, BrokerError> {
        let _wanted = self.outages.wanted(Purpose::Publish);
        loop {
            let link = self.publisher().await?;
            let loss = match self.patiently(&link, ANSWER_TIMEOUT, ask_depth(&link, queue)).await? {
                Ok(Ok(ready)) => return Ok(ready),
                Ok(Err(error)) if is_not_found(&error) => Loss::Queue(queue.to_owned()),
                Ok(Err(error)) => Loss::Connection(error.to_string()),
                Err(loss) => loss,
            };
            if self.connect == Connect::Once {
                let reason = match loss {
                    Loss::Connection(reason) | Loss::Unreachable(reason) => reason,
                    Loss::Queue(queue) => format!("there is no queue {queue}"),
                    Loss::Silence(queue) => format!("no answer from the queue {queue}"),
                };
                return Err(BrokerError::Unreachable { at: self.at.clone(), reason });
            }
            self.give_up(&link, &loss).await?;
        }
    }

    /// Waits for RabbitMQ's answer, and longer while it has said that it takes nothing.
    async fn patiently<T>(
        &self,
        link: &Link,
        patience: Duration,
        answer: impl Future<Output = T>,
    ) -> Result<Result<T, Loss>, BrokerError> {
        let mut answer = std::pin::pin!(answer);
        let mut left = patience;
        while !left.is_zero() {
            tokio::select! {
                answer = &mut answer => return Ok(Ok(answer)),
                () = sleep(BLOCKED_POLL.min(left)) => {}
                () = self.stopper.aborted() => return Err(BrokerError::Aborted),
            }
            left = if link.is_blocked() { patience } else { left.saturating_sub(BLOCKED_POLL) };
        }
        Ok(Err(Loss::Connection(format!("no answer within {} s", patience.as_secs()))))
    }

    /// The next attempt gets a new connection, a moment later. Of many who saw it break, one tells.
    async fn give_up(&self, link: &Arc<Link>, loss: &Loss) -> Result<(), BrokerError> {
        let mut publisher = self.publisher.lock().await;
        if publisher.as_ref().is_some_and(|current| Arc::ptr_eq(current, link)) {
            self.outages.lost(Purpose::Publish, Some(link.opened), loss);
            *publisher = None;
        }
        drop(publisher);
        self.breathe().await
    }

    /// A short pause, so that a connection that breaks as soon as it is made does not keep anybody busy.
    pub(super) async fn breathe(&self) -> Result<(), BrokerError> {
        tokio::select! {
            () = sleep(Duration::from_millis(rand::random_range(50..250))) => Ok(()),
            () = self.stopper.aborted() => Err(BrokerError::Aborted),
        }
    }

    /// How much is waiting, for people: within a bounded time, and without declaring anything. A queue that is not
    /// there holds nothing.
    pub(super) async fn look(&self) -> Result<Depths, BrokerError> {
        let unreachable = |reason: String| BrokerError::Unreachable { at: self.at.clone(), reason };
        match timeout(LOOK_TIMEOUT, self.try_look()).await {
            Ok(Ok(depths)) => Ok(depths),
            Ok(Err(Trouble::Permanent(error))) => Err(error),
            Ok(Err(Trouble::Passing(error))) => Err(unreachable(error.to_string())),
            Err(_) => Err(unreachable(format!("no answer within {} s", LOOK_TIMEOUT.as_secs()))),
        }
    }

    async fn try_look(&self) -> Result<Depths, Trouble> {
        let Self { topology, .. } = self;
        let tasks = self.look_at(&topology.tasks).await?;
        let outcomes = self.look_at(&topology.outcomes).await?;
        let dead = self.look_at(&topology.dead).await?;
        let mut retries = 0;
        for queue in &topology.retries {
            retries += self.look_at(queue).await?;
        }
        Ok(Depths { tasks, retries, outcomes, dead })
    }

    async fn look_at(&self, queue: &str) -> Result<u64, Trouble> {
        let _wanted = self.outages.wanted(Purpose::Look);
        let mut looker = self.looker.lock().await;
        let link = match looker.take().filter(|link| link.is_alive()) {
            Some(link) => link,
            None => self.open(Purpose::Look).await.map_err(Trouble::Permanent)?,
        };
        match ask_depth(&link, queue).await {
            Ok(ready) => {
                *looker = Some(link);
                Ok(ready)
            }
            // RabbitMQ has closed the channel for it: the next question gets a new one.
            Err(error) if is_not_found(&error) => Ok(0),
            Err(error) => Err(queue_trouble(queue, error)),
        }
    }
}

async fn ask_depth(link: &Link, queue: &str) -> lapin::Result<u64> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
    let found = link.channel.queue_declare(queue.into(), passive, FieldTable::default()).await?;
    Ok(u64::from(found.message_count()))
}

async fn publish_once(
    link: &Link,
    queue: &str,
    body: &[u8],
    traces: &[Parent],
    epitaph: Option<Epitaph<'_>>,
) -> lapin::Result<Confirmation> {
    const PERSISTENT: u8 = 2;
    let mut properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
    let mut headers = FieldTable::default();
    let text = |trace: &Parent| AMQPValue::LongString(trace.header().unwrap_or_default().into());
    match traces {
        [trace] if trace.header().is_some() => {
            headers.insert(trace::HEADER.into(), text(trace));
        }
        [_, _, ..] if traces.iter().any(|trace| trace.header().is_some()) => {
            let all: Vec<_> = traces.iter().map(text).collect();
            headers.insert(trace::HEADER.into(), AMQPValue::FieldArray(all.into()));
        }
        _ => {}
    }
    if let Some(Epitaph { reason, queue }) = epitaph {
        headers.insert(REASON_HEADER.into(), AMQPValue::LongString(reason.into()));
        headers.insert(QUEUE_HEADER.into(), AMQPValue::LongString(queue.into()));
    }
    if !headers.inner().is_empty() {
        properties = properties.with_headers(headers);
    }
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    link.channel.basic_publish("".into(), queue.into(), options, body, properties).await?.await
}
