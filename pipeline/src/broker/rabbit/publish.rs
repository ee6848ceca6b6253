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

const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);
const REASON_HEADER: &str = "x-shelfmill-reason";

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
        reason: Option<&str>,
    ) -> Result<(), BrokerError> {
        loop {
            let link = self.publisher().await?;
            let trouble = match timeout(CONFIRM_TIMEOUT, publish_once(&link, queue, body, reason)).await {
                Ok(Ok(Confirmation::Ack(None))) => return Ok(()),
                Ok(Ok(Confirmation::Ack(Some(_)))) => format!("no queue {queue}"),
                Ok(Ok(_)) => format!("{queue} takes no message"),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no confirm within {} s", CONFIRM_TIMEOUT.as_secs()),
            };
            let mut publisher = self.publisher.lock().await;
            if publisher.as_ref().is_some_and(|current| Arc::ptr_eq(current, &link)) {
                tracing::warn!(at = self.at, trouble, "lost the connection that publishes");
                *publisher = None;
            }
            drop(publisher);
            tokio::select! {
                () = sleep(Duration::from_millis(rand::random_range(50..250))) => {}
                () = self.stopper.aborted() => return Err(BrokerError::Aborted),
            }
        }
    }

    /// Messages ready in a queue.
    pub(super) async fn depth(&self, queue: &str) -> Result<u64, BrokerError> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        loop {
            let link = self.publisher().await?;
            match link.channel.queue_declare(queue.into(), passive, FieldTable::default()).await {
                Ok(found) => return Ok(u64::from(found.message_count())),
                Err(error) if self.connect == Connect::Once => {
                    return Err(BrokerError::Unreachable { at: self.at.clone(), reason: error.to_string() });
                }
                Err(_) => sleep(Duration::from_millis(200)).await,
            }
        }
    }
}
async fn publish_once(
    link: &Link,
    queue: &str,
    body: &[u8],
    reason: Option<&str>,
) -> lapin::Result<Confirmation> {
    const PERSISTENT: u8 = 2;
    let mut properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
    if let Some(reason) = reason {
        let mut headers = FieldTable::default();
        headers.insert(REASON_HEADER.into(), AMQPValue::LongString(reason.into()));
        properties = properties.with_headers(headers);
    }
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    link.channel.basic_publish("".into(), queue.into(), options, body, properties).await?.await
}
