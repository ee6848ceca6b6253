//! Consuming, across lost connections.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::StreamExt;
use lapin::{
    Acker,
    message::Delivery as LapinDelivery,
    options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    connection::{Link, Shared},
    publish::ANSWER_TIMEOUT,
};
use crate::{
    broker::{BrokerError, Consumer, Delivery, Receipt},
    message::{DecodeError, Outcome, Task},
};

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
type Fetched<M> = (M, RabbitReceipt);

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
            let link = self.open("consume").await?;
            match timeout(ANSWER_TIMEOUT, subscribe_once(&link, queue, prefetch)).await {
                Ok(Ok(stream)) => return Ok((link, stream)),
                Ok(Err(error)) => tracing::debug!(queue, %error, "could not subscribe, trying again"),
                Err(_) => tracing::debug!(queue, "no answer to subscribing, trying again"),
            }
            sleep(Duration::from_millis(200)).await;
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
        loop {
            // A place first: what is taken from the connection can be handed on.
            let place = tokio::select! {
                place = sender.reserve() => place.map_err(|_| BrokerError::Closed)?,
                () = closing.cancelled() => return Ok(Some(live)),
            };
            let next = tokio::select! {
                next = live.1.next() => next,
                () = closing.cancelled() => return Ok(Some(live)),
            };
            let trouble = match next {
                Some(Ok(found)) => {
                    match M::decode(&found.data) {
                        Ok(message) => {
                            let (shared, link) = (Arc::clone(self), Arc::clone(&live.0));
                            place.send(Ok((message, RabbitReceipt { shared, link, acker: found.acker })));
                        }
                        Err(error) => self.dead_letter(queue, &found, &error).await?,
                    }
                    continue;
                }
                Some(Err(error)) => error.to_string(),
                None => "the consumer was cancelled".to_owned(),
            };
            tracing::warn!(at = self.at, queue, trouble, "lost the connection that consumes");
            drop(live);
            live = tokio::select! {
                live = self.subscribe(queue, prefetch) => live?,
                () = closing.cancelled() => return Ok(None),
            };
            tracing::info!(at = self.at, queue, "consuming again");
        }
    }

    /// Puts a message nobody here can read where a person will look.
    async fn dead_letter(
        &self,
        queue: &str,
        found: &LapinDelivery,
        error: &DecodeError,
    ) -> Result<(), BrokerError> {
        let reason = std::error::Error::source(error)
            .map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
        tracing::error!(queue, reason, "a message went to the dead queue");
        self.publish(&self.topology.dead, &found.data, Some(&reason)).await?;
        acknowledge(&found.acker).await;
        Ok(())
    }
}

async fn subscribe_once(link: &Link, queue: &str, prefetch: u16) -> lapin::Result<lapin::Consumer> {
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    link.channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
    link.channel.basic_consume(queue.into(), "".into(), options, arguments).await
}

#[async_trait]
impl<M: Wire> Consumer<M> for RabbitConsumer<M> {
    async fn next(&mut self) -> Result<Delivery<M>, BrokerError> {
        let (message, receipt) = self.fetched.recv().await.ok_or(BrokerError::Closed)??;
        Ok(Delivery::new(message, receipt))
    }

    async fn close(&mut self) -> Result<(), BrokerError> {
        self.closing.cancel();
        let live = (&mut self.pump).await.ok().flatten();
        if !M::GIVEN_BACK_AS_COPY {
            // The broker puts them back in their places when the connection goes with its last receipt.
            self.fetched.close();
            while self.fetched.try_recv().is_ok() {}
            return Ok(());
        }
        while let Ok(fetched) = self.fetched.try_recv() {
            let (message, receipt) = fetched?;
            self.shared.publish(&self.queue, &message.encode(), None).await?;
            acknowledge(&receipt.acker).await;
        }
        let Some((link, mut stream)) = live else { return Ok(()) };
        let cancelled = link.channel.basic_cancel(stream.tag(), BasicCancelOptions::default());
        if !matches!(timeout(ANSWER_TIMEOUT, cancelled).await, Ok(Ok(()))) {
            return Ok(());
        }
        while let Some(Ok(found)) = stream.next().await {
            self.shared.publish(&self.queue, &found.data, None).await?;
            acknowledge(&found.acker).await;
        }
        Ok(())
    }
}
struct RabbitReceipt {
    shared: Arc<Shared>,
    link: Arc<Link>,
    acker: Acker,
}

async fn acknowledge(acker: &Acker) {
    match timeout(ANSWER_TIMEOUT, acker.ack(BasicAckOptions::default())).await {
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
        drop(self.link);
        Ok(())
    }

    async fn retry_later(self: Box<Self>, task: Task, delay: Duration) -> Result<(), BrokerError> {
        self.shared.publish(self.shared.topology.queue_for(delay), &task.encode(), None).await?;
        self.ack().await
    }
}
