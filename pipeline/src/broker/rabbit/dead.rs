//! Going through the dead queue, one message at a time.
//!
//! What is looked at and not settled stays unacknowledged until the pass is over, so that no message is met twice in one
//! pass, and is back in the queue when its connection goes.

use std::sync::Arc;

use async_trait::async_trait;
use lapin::{
    Acker,
    message::BasicGetMessage,
    options::{BasicAckOptions, BasicGetOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::time::timeout;

use super::{
    connection::{Link, Shared},
    publish::{ANSWER_TIMEOUT, QUEUE_HEADER, REASON_HEADER},
};
use crate::broker::{BrokerError, Cause, DeadLetter, DeadLetters, DeadReceipt};

pub(super) struct RabbitDeadLetters {
    pub(super) shared: Arc<Shared>,
    pub(super) link: Arc<Link>,
}

#[async_trait]
impl DeadLetters for RabbitDeadLetters {
    async fn next(&mut self) -> Result<Option<DeadLetter>, BrokerError> {
        let queue = &self.shared.topology.dead;
        let asked = self.link.channel.basic_get(queue.as_str().into(), BasicGetOptions::default());
        match timeout(ANSWER_TIMEOUT, asked).await {
            Ok(Ok(found)) => Ok(found.map(|found| self.letter(found))),
            // The rest is for the next pass.
            Ok(Err(error)) => {
                tracing::debug!(%error, "lost the connection while looking through the dead queue");
                Ok(None)
            }
            Err(_) => Ok(None),
        }
    }
}

impl RabbitDeadLetters {
    fn letter(&self, found: BasicGetMessage) -> DeadLetter {
        let BasicGetMessage { delivery, .. } = found;
        let headers = delivery.properties.headers().clone().unwrap_or_default();
        let (cause, origin) = self.history(&headers);
        let receipt = RabbitReceipt {
            shared: Arc::clone(&self.shared),
            link: Arc::clone(&self.link),
            acker: delivery.acker,
            origin,
        };
        DeadLetter::new(cause, delivery.data, receipt)
    }

    /// Why a message is here, and which queue of ours it comes from.
    fn history(&self, headers: &FieldTable) -> (Cause, Option<String>) {
        let topology = &self.shared.topology;
        if let Some(reason) = text(headers, REASON_HEADER) {
            let origin = text(headers, QUEUE_HEADER)
                .filter(|queue| [&topology.tasks, &topology.outcomes].contains(&queue));
            return (Cause::Unreadable(reason), origin);
        }
        let deaths = match headers.inner().get("x-death") {
            Some(AMQPValue::FieldArray(deaths)) => deaths.as_slice(),
            _ => &[],
        };
        // There are older ones, too: of the delays that the task has waited out.
        let is_of_limit = deaths.iter().any(|death| match death {
            AMQPValue::FieldTable(death) => {
                text(death, "reason").is_some_and(|reason| reason == "delivery_limit")
            }
            _ => false,
        });
        if is_of_limit {
            (Cause::DeliveryLimit, Some(topology.tasks.clone()))
        } else {
            (Cause::Unknown, None)
        }
    }
}

fn text(table: &FieldTable, name: &str) -> Option<String> {
    match table.inner().get(name)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

struct RabbitReceipt {
    shared: Arc<Shared>,
    link: Arc<Link>,
    acker: Acker,
    origin: Option<String>,
}

#[async_trait]
impl DeadReceipt for RabbitReceipt {
    async fn ack(self: Box<Self>) -> Result<(), BrokerError> {
        acknowledge(&self.acker, BasicAckOptions::default()).await;
        drop(self.link);
        Ok(())
    }

    async fn put_back(self: Box<Self>, body: &[u8]) -> Result<bool, BrokerError> {
        let Some(origin) = &self.origin else { return Ok(false) };
        self.shared.publish(origin, body, &[], None).await?;
        self.ack().await?;
        Ok(true)
    }
}

async fn acknowledge(acker: &Acker, options: BasicAckOptions) {
    match timeout(ANSWER_TIMEOUT, acker.ack(options)).await {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) => tracing::debug!("not acknowledged, the channel is gone: the message comes again"),
        Ok(Err(error)) => tracing::debug!(%error, "not acknowledged: the message comes again"),
        Err(_) => tracing::debug!("not acknowledged in time: the message comes again"),
    }
}
