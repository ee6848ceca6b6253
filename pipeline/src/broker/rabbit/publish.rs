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
    connection::{Link, Shared},
};
use crate::broker::BrokerError;

/// Every wait for RabbitMQ has an end: a connection that died at the wrong moment may never answer.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
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
        if let Some(link) = publisher.as_ref().filter(|link| link.channel.status().connected()) {
            return Ok(Arc::clone(link));
        }
        let link = self.open("publish").await?;
        *publisher = Some(Arc::clone(&link));
        Ok(link)
    }

    /// Publishes until RabbitMQ has the message in the queue.
    pub(super) async fn publish(
        &self,
        queue: &str,
        body: &[u8],
        epitaph: Option<Epitaph<'_>>,
    ) -> Result<(), BrokerError> {
        loop {
            let link = self.publisher().await?;
            let trouble = match timeout(CONFIRM_TIMEOUT, publish_once(&link, queue, body, epitaph)).await {
                Ok(Ok(Confirmation::Ack(None))) => return Ok(()),
                Ok(Ok(Confirmation::Ack(Some(_)))) => format!("no queue {queue}"),
                Ok(Ok(_)) => format!("{queue} takes no message"),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no confirm within {} s", CONFIRM_TIMEOUT.as_secs()),
            };
            self.give_up(&link, &trouble).await?;
        }
    }

    /// Messages ready in a queue.
    pub(super) async fn depth(&self, queue: &str) -> Result<u64, BrokerError> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        loop {
            let link = self.publisher().await?;
            let asked = link.channel.queue_declare(queue.into(), passive, FieldTable::default());
            let trouble = match timeout(ANSWER_TIMEOUT, asked).await {
                Ok(Ok(found)) => return Ok(u64::from(found.message_count())),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()),
            };
            if self.connect == Connect::Once {
                return Err(BrokerError::Unreachable { at: self.at.clone(), reason: trouble });
            }
            self.give_up(&link, &trouble).await?;
        }
    }

    /// The next attempt gets a new connection, a moment later. Of many who saw it break, one tells.
    async fn give_up(&self, link: &Arc<Link>, trouble: &str) -> Result<(), BrokerError> {
        let mut publisher = self.publisher.lock().await;
        if publisher.as_ref().is_some_and(|current| Arc::ptr_eq(current, link)) {
            tracing::warn!(at = self.at, trouble, "lost the connection that publishes");
            *publisher = None;
        }
        drop(publisher);
        tokio::select! {
            () = sleep(Duration::from_millis(rand::random_range(50..250))) => Ok(()),
            () = self.stopper.aborted() => Err(BrokerError::Aborted),
        }
    }
}

async fn publish_once(
    link: &Link,
    queue: &str,
    body: &[u8],
    epitaph: Option<Epitaph<'_>>,
) -> lapin::Result<Confirmation> {
    const PERSISTENT: u8 = 2;
    let mut properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
    if let Some(Epitaph { reason, queue }) = epitaph {
        let mut headers = FieldTable::default();
        headers.insert(REASON_HEADER.into(), AMQPValue::LongString(reason.into()));
        headers.insert(QUEUE_HEADER.into(), AMQPValue::LongString(queue.into()));
        properties = properties.with_headers(headers);
    }
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    link.channel.basic_publish("".into(), queue.into(), options, body, properties).await?.await
}
