//! Declaring the queues of a run. Declaring what is there changes nothing; what is there with other arguments is an
//! error that waiting does not mend.

use lapin::{
    Channel, ErrorKind,
    options::QueueDeclareOptions,
    protocol::{AMQPErrorKind, AMQPSoftError},
    types::{AMQPValue, FieldTable},
};

use super::connection::Trouble;
use crate::broker::{
    BrokerError,
    topology::{DELAYS, DELIVERY_LIMIT, Topology},
};

/// For queues whose messages must never be dropped for having come too often. (RabbitMQ 3 takes no -1.)
const NO_DELIVERY_LIMIT: i64 = 1_000_000_000;

/// Declares every queue of the run.
pub(super) async fn declare(channel: &Channel, topology: &Topology) -> Result<(), Trouble> {
    let Topology { tasks, outcomes, dead, retries } = topology;
    queue(channel, dead, &[("x-delivery-limit", int(NO_DELIVERY_LIMIT))]).await?;
    let to = |queue: &str| {
        [
            ("x-dead-letter-exchange", AMQPValue::LongString("".into())),
            ("x-dead-letter-routing-key", AMQPValue::LongString(queue.into())),
            ("x-dead-letter-strategy", AMQPValue::LongString("at-least-once".into())),
            ("x-overflow", AMQPValue::LongString("reject-publish".into())),
        ]
    };
    let [a, b, c, d] = to(dead);
    queue(channel, tasks, &[a, b, c, d, ("x-delivery-limit", int(DELIVERY_LIMIT))]).await?;
    for (retry, (_, delay)) in retries.iter().zip(DELAYS) {
        let [a, b, c, d] = to(tasks);
        let ttl_ms = int(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX));
        queue(channel, retry, &[a, b, c, d, ("x-message-ttl", ttl_ms)]).await?;
    }
    let single = ("x-single-active-consumer", AMQPValue::Boolean(true));
    queue(channel, outcomes, &[single, ("x-delivery-limit", int(NO_DELIVERY_LIMIT))]).await
}

async fn queue(channel: &Channel, name: &str, extra: &[(&'static str, AMQPValue)]) -> Result<(), Trouble> {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    for (argument, value) in extra {
        arguments.insert((*argument).into(), value.clone());
    }
    match channel.queue_declare(name.into(), QueueDeclareOptions::durable(), arguments).await {
        Ok(_) => Ok(()),
        Err(error) => Err(queue_trouble(name, error)),
    }
}

/// What RabbitMQ's answer about a queue means: some answers stay the same however often one asks.
pub(super) fn queue_trouble(queue: &str, error: lapin::Error) -> Trouble {
    let (queue, reason) = match error.kind() {
        ErrorKind::ProtocolError(amqp) => (queue.to_owned(), amqp.get_message().to_string()),
        _ => return Trouble::Passing(error),
    };
    match soft(&error) {
        // Also said of a message that is larger than RabbitMQ takes, which is no fault of the queue.
        Some(AMQPSoftError::PRECONDITIONFAILED) if reason.contains(" arg ") => {
            Trouble::Permanent(BrokerError::Topology { queue, reason })
        }
        Some(AMQPSoftError::ACCESSREFUSED) => Trouble::Permanent(BrokerError::Forbidden { queue, reason }),
        _ => Trouble::Passing(error),
    }
}

/// Whether RabbitMQ says that there is no such queue.
pub(super) fn is_not_found(error: &lapin::Error) -> bool {
    matches!(soft(error), Some(AMQPSoftError::NOTFOUND))
}

fn soft(error: &lapin::Error) -> Option<&AMQPSoftError> {
    match error.kind() {
        ErrorKind::ProtocolError(amqp) => match amqp.kind() {
            AMQPErrorKind::Soft(soft) => Some(soft),
            AMQPErrorKind::Hard(_) => None,
        },
        _ => None,
    }
}

const fn int(value: i64) -> AMQPValue {
    AMQPValue::LongLongInt(value)
}
