//! Consuming, across lost connections.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::{StreamExt, future::try_join_all};
use lapin::{
    Acker,
    message::Delivery as LapinDelivery,
    options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::{AMQPValue, DeliveryTag, FieldTable},
};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    connection::{Link, Shared, Trouble},
    declare::queue_trouble,
    outage::{Loss, Purpose},
    publish::{ANSWER_TIMEOUT, Epitaph},
};
use crate::{
    broker::{BrokerError, Consumer, Delivery, Receipt},
    crash::{self, Point},
    message::{DecodeError, Outcome, Task},
    trace::{self, Parent},
};

const MAX_REASON_BYTES: usize = 1024;
/// How long an end waits for messages that are on their way to the dead queue; those that stay behind come again.
const BURIAL_PATIENCE: Duration = Duration::from_secs(5);

/// A message, to the wire and back.
pub(super) trait Wire: Sized + Send + 'static {
    /// Whether what was fetched and not handed out is given back as a copy, which spends none of its deliveries,
    /// rather than in its place, which keeps the order.
    const GIVEN_BACK_AS_COPY: bool;
    /// Messages that wait to be asked for; the others wait in the connection, up to the prefetch.
    const WAITING: usize;
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError>;
    fn encode(&self) -> Vec<u8>;
}

impl Wire for Task {
    const GIVEN_BACK_AS_COPY: bool = true;
    /// No more than needed: one that waits here while the connection breaks is another worker's meanwhile.
    const WAITING: usize = 1;

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        Self::decode(bytes)
    }

    fn encode(&self) -> Vec<u8> {
        self.encode()
    }
}

impl Wire for Outcome {
    const GIVEN_BACK_AS_COPY: bool = false;
    /// A batch takes what has arrived, and what waits in the connection has not.
    const WAITING: usize = 512;

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        Self::decode(bytes)
    }

    fn encode(&self) -> Vec<u8> {
        self.encode()
    }
}
/// A message with its receipt, on its way from the connection to whoever asks for the next one.
type Fetched<M> = (M, Parent, RabbitReceipt);

/// The connection is kept by a task of its own, so that giving up waiting for a message never interrupts the
/// making of a connection.
pub(super) struct RabbitConsumer<M> {
    shared: Arc<Shared>,
    queue: String,
    fetched: mpsc::Receiver<Result<Fetched<M>, BrokerError>>,
    closing: CancellationToken,
    pump: AbortOnDropHandle<Option<Live>>,
}

/// A subscription, and the connection it lives on.
type Live = (Arc<Link>, lapin::Consumer);

impl<M: Wire> RabbitConsumer<M> {
    pub(super) async fn start(shared: Arc<Shared>, queue: &str, prefetch: u16) -> Result<Self, BrokerError> {
        let live = shared.subscribe(queue, prefetch).await?;
        let (sender, fetched) = mpsc::channel(M::WAITING);
        let closing = CancellationToken::new();
        let pump = tokio::spawn({
            let (shared, queue, closing) = (Arc::clone(&shared), queue.to_owned(), closing.clone());
            async move {
                match shared.pump(&queue, prefetch, live, &sender, &closing).await {
                    Ok(live) => live,
                    Err(error) => {
                        let _ = sender.send(Err(error)).await;
                        None
                    }
                }
            }
        });
        Ok(Self { shared, queue: queue.to_owned(), fetched, closing, pump: AbortOnDropHandle::new(pump) })
    }
}

impl Shared {
    async fn subscribe(&self, queue: &str, prefetch: u16) -> Result<Live, BrokerError> {
        loop {
            let link = self.open(Purpose::Consume).await?;
            let loss = match timeout(ANSWER_TIMEOUT, subscribe_once(&link, queue, prefetch)).await {
                Ok(Ok(stream)) => {
                    self.outages.restored(Purpose::Consume);
                    return Ok((link, stream));
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

    /// Fetches until it is closing; then returns the subscription, if there is one.
    async fn pump<M: Wire>(
        self: &Arc<Self>,
        queue: &str,
        prefetch: u16,
        mut live: Live,
        sender: &mpsc::Sender<Result<Fetched<M>, BrokerError>>,
        closing: &CancellationToken,
    ) -> Result<Option<Live>, BrokerError> {
        // On the side: under an alarm of RabbitMQ nothing is published, and reading on may be what ends it. What is not
        // published when this ends is delivered again. There are never more than the prefetch.
        let mut burials = JoinSet::new();
        loop {
            // A place first: what is taken from the connection can be handed on.
            let place = tokio::select! {
                place = sender.reserve() => place.map_err(|_| BrokerError::Closed)?,
                () = closing.cancelled() => return finish(burials).await.map(|()| Some(live)),
            };
            let next = loop {
                tokio::select! {
                    next = live.1.next() => break next,
                    Some(buried) = burials.join_next() => buried.map_err(|_| BrokerError::Closed)??,
                    () = closing.cancelled() => return finish(burials).await.map(|()| Some(live)),
                }
            };
            let loss = match next {
                Some(Ok(found)) => {
                    live.0.taken(found.delivery_tag);
                    match M::decode(&found.data) {
                        Ok(message) => {
                            let (shared, link) = (Arc::clone(self), Arc::clone(&live.0));
                            let trace = parent(&found);
                            let receipt =
                                RabbitReceipt { shared, link, tag: found.delivery_tag, acker: found.acker };
                            place.send(Ok((message, trace, receipt)));
                        }
                        Err(error) => {
                            let (shared, link) = (Arc::clone(self), Arc::clone(&live.0));
                            let queue = queue.to_owned();
                            burials.spawn(async move {
                                shared.dead_letter(&queue, &found, &error).await?;
                                link.settles(&[], found.delivery_tag);
                                Ok(())
                            });
                        }
                    }
                    continue;
                }
                Some(Err(error)) => Loss::Connection(error.to_string()),
                // RabbitMQ cancels a consumer whose queue is gone, and leaves it its connection.
                None if live.0.is_alive() => Loss::Queue(queue.to_owned()),
                None => Loss::Connection("the connection has ended".to_owned()),
            };
            self.outages.lost(Purpose::Consume, Some(live.0.opened), &loss);
            // What came on this connection comes again.
            burials.shutdown().await;
            drop(live);
            let subscribed = async {
                self.breathe().await?;
                self.subscribe(queue, prefetch).await
            };
            live = tokio::select! {
                live = subscribed => live?,
                () = closing.cancelled() => return Ok(None),
            };
        }
    }

    /// Puts a message nobody here can read where a person will look.
    async fn dead_letter(
        &self,
        queue: &str,
        found: &LapinDelivery,
        error: &DecodeError,
    ) -> Result<(), BrokerError> {
        let mut reason = std::error::Error::source(error)
            .map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
        // It quotes the message, and a header must fit into a frame.
        reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
        tracing::error!(queue, reason, "a message went to the dead queue");
        self.publish(&self.topology.dead, &found.data, Some(Epitaph { reason: &reason, queue })).await?;
        acknowledge(&found.acker).await;
        Ok(())
    }
}

/// Sees what was begun to its end, within reason.
async fn finish(mut burials: JoinSet<Result<(), BrokerError>>) -> Result<(), BrokerError> {
    let all = async {
        while let Some(buried) = burials.join_next().await {
            buried.map_err(|_| BrokerError::Closed)??;
        }
        Ok(())
    };
    timeout(BURIAL_PATIENCE, all).await.unwrap_or(Ok(()))
}

async fn subscribe_once(link: &Link, queue: &str, prefetch: u16) -> lapin::Result<lapin::Consumer> {
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    link.channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
    link.channel.basic_consume(queue.into(), "".into(), options, arguments).await
}

#[async_trait]
impl<M: Wire> Consumer<M> for RabbitConsumer<M> {
    async fn next(&mut self) -> Result<Delivery<M>, BrokerError> {
        let (message, trace, receipt) = self.fetched.recv().await.ok_or(BrokerError::Closed)??;
        Ok(Delivery::new(message, trace, receipt))
    }

    async fn close(&mut self) -> Result<(), BrokerError> {
        let stopper = self.shared.stopper.clone();
        tokio::select! {
            closed = self.give_back() => closed,
            // RabbitMQ delivers again what was not given back.
            () = stopper.aborted() => Ok(()),
        }
    }
}

impl<M: Wire> RabbitConsumer<M> {
    async fn give_back(&mut self) -> Result<(), BrokerError> {
        self.closing.cancel();
        let live = (&mut self.pump).await.ok().flatten();
        if !M::GIVEN_BACK_AS_COPY {
            // The broker puts them back in their places when the connection goes with its last receipt.
            self.fetched.close();
            while self.fetched.try_recv().is_ok() {}
            return Ok(());
        }
        // Cancelled first: what is given back must not come here again.
        let mut unbegun = match live {
            Some((link, stream)) => unsubscribe(link, stream).await,
            None => Vec::new(),
        };
        self.fetched.close();
        while let Ok(fetched) = self.fetched.try_recv() {
            let (message, trace, RabbitReceipt { link, acker, .. }) = fetched?;
            unbegun.push(Unbegun { link, body: message.encode(), trace, acker });
        }
        let given_back = unbegun.iter().map(|message| message.give_back(&self.shared, &self.queue));
        try_join_all(given_back).await.map(drop)
    }
}

/// A message that was fetched and not handed out.
struct Unbegun {
    link: Arc<Link>,
    body: Vec<u8>,
    trace: Parent,
    acker: Acker,
}

impl Unbegun {
    /// As a copy, confirmed, before it is acknowledged. Where the connection it came on is lost, or the grace is
    /// over, there is nothing to do: RabbitMQ delivers it again.
    async fn give_back(&self, shared: &Shared, queue: &str) -> Result<(), BrokerError> {
        let published = tokio::select! {
            published = self.trace.scope(shared.publish(queue, &self.body, None)) => published,
            () = self.link.gone() => return Ok(()),
        };
        match published {
            Ok(()) => acknowledge(&self.acker).await,
            Err(BrokerError::Aborted) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// Ends a subscription; what had arrived on it.
async fn unsubscribe(link: Arc<Link>, mut stream: lapin::Consumer) -> Vec<Unbegun> {
    let mut unbegun = Vec::new();
    let cancelled = link.channel.basic_cancel(stream.tag(), BasicCancelOptions::default());
    let cancelled = tokio::select! {
        cancelled = timeout(ANSWER_TIMEOUT, cancelled) => matches!(cancelled, Ok(Ok(()))),
        () = link.gone() => false,
    };
    if cancelled {
        while let Some(Ok(found)) = stream.next().await {
            let trace = parent(&found);
            unbegun.push(Unbegun { link: Arc::clone(&link), body: found.data, trace, acker: found.acker });
        }
    }
    unbegun
}

/// The span that published it, where it tells of one.
fn parent(found: &LapinDelivery) -> Parent {
    let headers = found.properties.headers().as_ref();
    match headers.and_then(|headers| headers.inner().get(trace::HEADER)) {
        Some(AMQPValue::LongString(header)) => {
            std::str::from_utf8(header.as_bytes()).map_or_else(|_| Parent::default(), Parent::read)
        }
        _ => Parent::default(),
    }
}

impl RabbitReceipt {
    fn connection(&self) -> usize {
        Arc::as_ptr(&self.link).addr()
    }
}

struct RabbitReceipt {
    shared: Arc<Shared>,
    link: Arc<Link>,
    tag: DeliveryTag,
    acker: Acker,
}

pub(super) async fn acknowledge(acker: &Acker) {
    acknowledge_with(acker, BasicAckOptions::default()).await;
}

async fn acknowledge_with(acker: &Acker, options: BasicAckOptions) {
    match timeout(ANSWER_TIMEOUT, acker.ack(options)).await {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) => tracing::debug!("not acknowledged, the channel is gone: the message comes again"),
        Ok(Err(error)) => tracing::debug!(%error, "not acknowledged: the message comes again"),
        Err(_) => tracing::debug!("not acknowledged in time: the message comes again"),
    }
}

#[async_trait]
impl Receipt for RabbitReceipt {
    async fn ack(self: Box<Self>) -> Result<(), BrokerError> {
        acknowledge(&self.acker).await;
        self.link.settles(&[], self.tag);
        Ok(())
    }

    /// RabbitMQ takes a word for this and all before on its connection: where all before are among these.
    async fn ack_with(self: Box<Self>, earlier: Vec<Box<dyn Receipt>>) -> Result<(), BrokerError> {
        let here = self.connection();
        let (with_this, others): (Vec<_>, Vec<_>) =
            earlier.into_iter().partition(|receipt| receipt.place().is_some_and(|(place, _)| place == here));
        let tags: Vec<_> =
            with_this.iter().filter_map(|receipt| receipt.place()).map(|(_, tag)| tag).collect();
        if self.link.settles(&tags, self.tag) {
            acknowledge_with(&self.acker, BasicAckOptions { multiple: true }).await;
        } else {
            try_join_all(with_this.into_iter().map(Receipt::ack)).await?;
            self.ack().await?;
        }
        try_join_all(others.into_iter().map(Receipt::ack)).await.map(drop)
    }

    fn place(&self) -> Option<(usize, u64)> {
        Some((self.connection(), self.tag))
    }

    async fn retry_later(self: Box<Self>, task: Task, delay: Duration) -> Result<(), BrokerError> {
        self.shared.publish(self.shared.topology.queue_for(delay), &task.encode(), None).await?;
        crash::point_of(Point::WorkerDelayed, &task.id);
        self.ack().await
    }
}
