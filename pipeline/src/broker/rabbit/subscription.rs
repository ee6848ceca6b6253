//! A subscription to a queue: made, changed, ended.

use std::{collections::BTreeSet, sync::Arc};

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
    stream: lapin::Consumer,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// No more will arrive; what has is still to be taken.
    Ended,
    Drained,
}

impl Live {
    /// The next message; `None` when no more will come. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<lapin::Result<LapinDelivery>> {
        if self.state == State::Drained {
            return None;
        }
        let next = self.stream.next().await;
        if next.is_none() && self.state == State::Ended {
            self.state = State::Drained;
        }
        next
    }

    pub(super) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Has RabbitMQ send no more; what has arrived can be taken, and is not lost.
    pub(super) async fn end(&mut self, queue: &str) -> Result<(), Loss> {
        if self.is_open() {
            let ended = self.link.channel.basic_cancel(self.stream.tag(), BasicCancelOptions::default());
            self.heard(queue, ended).await?;
            self.state = State::Ended;
        }
        Ok(())
    }

    /// Another one in the place of one that is drained.
    pub(super) async fn renew(&mut self, queue: &str, prefetch: Prefetch) -> Result<(), Loss> {
        self.stream = self.heard(queue, subscribe_once(&self.link, queue, prefetch)).await?;
        self.state = State::Open;
        Ok(())
    }

    /// RabbitMQ's answer. Where it does not come the connection is cut: products that are under way would keep it, and on it what
    /// arrives for a subscription of which nobody here knows.
    async fn heard<T>(&self, queue: &str, answer: impl Future<Output = lapin::Result<T>>) -> Result<T, Loss> {
        match timeout(ANSWER_TIMEOUT, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(Loss::Connection(error.to_string())),
            Err(_) => {
                self.link.cut();
                Err(Loss::Silence(queue.to_owned()))
            }
        }
    }

    /// Ends it for good; what had arrived on it.
    pub(super) async fn close(mut self, queue: &str) -> Vec<Unbegun> {
        let mut unbegun = Vec::new();
        let link = Arc::clone(&self.link);
        let ended = tokio::select! {
            ended = self.end(queue) => ended.is_ok(),
            () = link.gone() => false,
        };
        if ended {
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
                    return Ok(Live { link, stream, state: State::Open });
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
