//! A subscription to a queue: made, changed, ended.

use std::{collections::BTreeSet, mem, sync::Arc};

use futures_util::StreamExt;
use lapin::{
    message::Delivery as LapinDelivery,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::{AMQPValue, DeliveryTag, FieldTable},
};
use tokio::time::timeout;

use super::{
    connection::{Link, Shared, Trouble},
    declare::queue_trouble,
    outage::{Loss, Purpose},
    publish::ANSWER_TIMEOUT,
};
use crate::{
    broker::{BrokerError, Prefetch},
    trace::{self, Parent},
};

/// A subscription, and the connection it lives on.
pub(super) struct Live {
    pub(super) link: Arc<Link>,
    /// One that has been ended. What had arrived on it is taken first: deliveries of a connection are acknowledged in its order.
    earlier: Option<lapin::Consumer>,
    stream: lapin::Consumer,
}

impl Live {
    /// The next message; `None` when RabbitMQ sends no more. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<lapin::Result<LapinDelivery>> {
        if let Some(earlier) = &mut self.earlier {
            if let Some(next) = earlier.next().await {
                return Some(next);
            }
            self.earlier = None;
        }
        self.stream.next().await
    }

    /// Whether it can be changed: not before what had arrived on the one before it is taken.
    pub(super) const fn can_change(&self) -> bool {
        self.earlier.is_none()
    }

    /// Another subscription in the place of the one there is, on its connection: one cannot be changed.
    pub(super) async fn change(&mut self, queue: &str, prefetch: Prefetch) -> Result<(), Loss> {
        let changed = async {
            self.link.channel.basic_cancel(self.stream.tag(), BasicCancelOptions::default()).await?;
            subscribe_once(&self.link, queue, prefetch).await
        };
        match timeout(ANSWER_TIMEOUT, changed).await {
            Ok(Ok(stream)) => self.earlier = Some(mem::replace(&mut self.stream, stream)),
            Ok(Err(error)) => return Err(Loss::Connection(error.to_string())),
            Err(_) => return Err(Loss::Silence(queue.to_owned())),
        }
        Ok(())
    }

    /// Ends it; what had arrived on it.
    pub(super) async fn end(mut self) -> Vec<Unbegun> {
        let mut unbegun = Vec::new();
        let link = Arc::clone(&self.link);
        let cancelled = link.channel.basic_cancel(self.stream.tag(), BasicCancelOptions::default());
        let cancelled = tokio::select! {
            cancelled = timeout(ANSWER_TIMEOUT, cancelled) => matches!(cancelled, Ok(Ok(()))),
            () = link.gone() => false,
        };
        if cancelled {
            while let Some(Ok(found)) = self.next().await {
                let trace = parents(&found).pop().unwrap_or_default();
                let tag = found.delivery_tag;
                link.taken(tag);
                unbegun.push(Unbegun { link: Arc::clone(&link), tag, body: found.data, trace });
            }
        }
        unbegun
    }
}

impl Shared {
    pub(super) async fn subscribe(&self, queue: &str, prefetch: Prefetch) -> Result<Live, BrokerError> {
        loop {
            let link = self.open(Purpose::Consume).await?;
            let loss = match timeout(ANSWER_TIMEOUT, subscribe_once(&link, queue, prefetch)).await {
                Ok(Ok(stream)) => {
                    self.outages.restored(Purpose::Consume);
                    return Ok(Live { link, earlier: None, stream });
                }
                Ok(Err(error)) => match queue_trouble(queue, error) {
                    Trouble::Permanent(error) => return Err(error),
                    Trouble::Passing(error) => Loss::Connection(error.to_string()),
                },
                Err(_) => Loss::Silence(queue.to_owned()),
            };
            self.outages.lost(Purpose::Consume, Some(link.opened), &loss);
            self.breathe().await?;
        }
    }
}

async fn subscribe_once(link: &Link, queue: &str, prefetch: Prefetch) -> lapin::Result<lapin::Consumer> {
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    link.channel.basic_qos(prefetch.messages, BasicQosOptions::default()).await?;
    link.channel.basic_consume(queue.into(), "".into(), options, arguments).await
}

/// A message that was fetched and not handed out.
pub(super) struct Unbegun {
    pub(super) link: Arc<Link>,
    pub(super) tag: DeliveryTag,
    pub(super) body: Vec<u8>,
    pub(super) trace: Parent,
}

impl Unbegun {
    /// As a copy, confirmed, before it is acknowledged. Where the connection it came on is lost, or the grace is
    /// over, there is nothing to do: RabbitMQ delivers it again.
    pub(super) async fn give_back(&self, shared: &Shared, queue: &str) -> Result<(), BrokerError> {
        let published = tokio::select! {
            published = shared.publish(queue, &self.body, std::slice::from_ref(&self.trace), None) => published,
            () = self.link.gone() => return Ok(()),
        };
        match published {
            Ok(()) => drop(self.link.acknowledge(&BTreeSet::from([self.tag]), |_| true).await),
            Err(BrokerError::Aborted) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// The spans that published what is in it, in its order, where it tells of them.
pub(super) fn parents(found: &LapinDelivery) -> Vec<Parent> {
    let text = |value: &AMQPValue| match value {
        AMQPValue::LongString(header) => {
            std::str::from_utf8(header.as_bytes()).map_or_else(|_| Parent::default(), Parent::read)
        }
        _ => Parent::default(),
    };
    let headers = found.properties.headers().as_ref();
    match headers.and_then(|headers| headers.inner().get(trace::HEADER)) {
        Some(AMQPValue::FieldArray(headers)) => headers.as_slice().iter().map(text).collect(),
        Some(header) => vec![text(header)],
        None => Vec::new(),
    }
}
