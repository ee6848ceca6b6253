//! The broker between processes: RabbitMQ. The only file that knows lapin.
//!
//! - Consuming and publishing use connections of their own: RabbitMQ blocks publishing connections under a
//!   memory or disk alarm, and acknowledgements must still flow.
//! - A connection is never repaired, it is replaced: connection, channel, confirm mode, topology, prefetch and
//!   consumer are built again from nothing, so there is one way to be connected and not two.
//! - A publish is done when RabbitMQ confirms it *and* did not return it: a confirmed message that no queue
//!   took is lost. Whatever else happens, it is published again; a repeat is recognised further on.
//! - An acknowledgement on a dead channel tells nobody anything. It is not an error: the message comes again.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use backon::{BackoffBuilder, ExponentialBuilder};
use futures_util::StreamExt;
use lapin::{
    Acker, BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ErrorKind,
    message::Delivery as LapinDelivery,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
        ConfirmSelectOptions, QueueDeclareOptions,
    },
    protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError},
    runtime,
    tcp::OwnedTLSConfig,
    types::{AMQPValue, FieldTable},
    uri::AMQPUri,
};
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    sync::{Mutex, mpsc},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    Broker, BrokerError, Consumer, Delivery, Depths, Receipt,
    topology::{DELAYS, DELIVERY_LIMIT, Topology},
};
use crate::{
    message::{DecodeError, Outcome, Task},
    shutdown::Stopper,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);
/// A silent peer is given up after twice this.
const HEARTBEAT_S: u16 = 15;
/// For queues whose messages must never be dropped for having come too often. (RabbitMQ 3 takes no -1.)
const NO_DELIVERY_LIMIT: i64 = 1_000_000_000;
const REASON_HEADER: &str = "x-shelfmill-reason";

/// Whether to wait for a broker that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    /// Fail at once: for commands that a person waits for.
    Once,
    /// Wait and try again: for roles, which start in any order.
    Forever,
}

/// How to reach RabbitMQ.
#[derive(Clone, Debug)]
pub struct RabbitConfig {
    /// `amqp://` or `amqps://`, with login and virtual host.
    pub url: SecretString,
    /// The run whose queues these are.
    pub run: String,
    /// Shown in RabbitMQ's list of connections.
    pub client_name: String,
    /// PEM certificates to trust beside the public ones.
    pub ca_file: Option<PathBuf>,
    /// Whether to wait for a broker that is not there.
    pub connect: Connect,
}

/// The queues of one run in RabbitMQ.
pub struct RabbitBroker {
    shared: Arc<Shared>,
}

struct Shared {
    uri: AMQPUri,
    at: String,
    tls: OwnedTLSConfig,
    client_name: String,
    connect: Connect,
    topology: Topology,
    stopper: Stopper,
    publisher: Mutex<Option<Arc<Link>>>,
}

/// A connection with its one channel; both end when the last holder lets go.
struct Link {
    channel: Channel,
    _connection: Connection,
}

impl RabbitBroker {
    /// Checks the configuration; connects when first used.
    pub fn new(config: RabbitConfig, stopper: Stopper) -> Result<Self, BrokerError> {
        let mut uri: AMQPUri = config
            .url
            .expose_secret()
            .parse()
            .map_err(|reason: String| BrokerError::Refused { at: "the given URL".into(), reason })?;
        uri.query.heartbeat.get_or_insert(HEARTBEAT_S);
        let cert_chain = match &config.ca_file {
            None => None,
            Some(file) => Some(std::fs::read_to_string(file).map_err(|error| BrokerError::Certificates {
                file: file.display().to_string(),
                reason: error.to_string(),
            })?),
        };
        let at = format!("{}:{}/{}", uri.authority.host, uri.authority.port, uri.vhost);
        Ok(Self {
            shared: Arc::new(Shared {
                uri,
                at,
                tls: OwnedTLSConfig { identity: None, cert_chain },
                client_name: config.client_name,
                connect: config.connect,
                topology: Topology::of(&config.run),
                stopper,
                publisher: Mutex::new(None),
            }),
        })
    }

    async fn consume<M: Wire>(
        &self,
        queue: &str,
        prefetch: u16,
    ) -> Result<Box<dyn Consumer<M>>, BrokerError> {
        Ok(Box::new(RabbitConsumer::start(Arc::clone(&self.shared), queue, prefetch).await?))
    }
}

#[async_trait]
impl Broker for RabbitBroker {
    async fn publish_task(&self, task: &Task) -> Result<(), BrokerError> {
        self.shared.publish(&self.shared.topology.tasks, &task.encode(), None).await
    }

    async fn publish_outcome(&self, outcome: &Outcome) -> Result<(), BrokerError> {
        self.shared.publish(&self.shared.topology.outcomes, &outcome.encode(), None).await
    }

    async fn tasks(&self, prefetch: u16) -> Result<Box<dyn Consumer<Task>>, BrokerError> {
        self.consume(&self.shared.topology.tasks, prefetch).await
    }

    async fn outcomes(&self, prefetch: u16) -> Result<Box<dyn Consumer<Outcome>>, BrokerError> {
        self.consume(&self.shared.topology.outcomes, prefetch).await
    }

    async fn depths(&self) -> Result<Depths, BrokerError> {
        let topology = &self.shared.topology;
        let mut depths = Depths {
            tasks: self.shared.depth(&topology.tasks).await?,
            retries: 0,
            outcomes: self.shared.depth(&topology.outcomes).await?,
            dead: self.shared.depth(&topology.dead).await?,
        };
        for queue in &topology.retries {
            depths.retries += self.shared.depth(queue).await?;
        }
        Ok(depths)
    }
}

impl Shared {
    /// A new connection with the topology declared; waits for RabbitMQ where the configuration says so.
    async fn open(&self, purpose: &str) -> Result<Arc<Link>, BrokerError> {
        let mut delays = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(200))
            .with_max_delay(Duration::from_secs(5))
            .with_jitter()
            .without_max_times()
            .build();
        let mut told = false;
        loop {
            let reason = match timeout(CONNECT_TIMEOUT, self.try_open(purpose)).await {
                Ok(Ok(link)) => {
                    if told {
                        tracing::info!(at = self.at, purpose, "RabbitMQ is there");
                    }
                    return Ok(Arc::new(link));
                }
                Ok(Err(Trouble::Permanent(error))) => return Err(error),
                Ok(Err(Trouble::Passing(error))) => error.to_string(),
                Err(_) => format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
            };
            if self.connect == Connect::Once {
                return Err(BrokerError::Unreachable { at: self.at.clone(), reason });
            }
            if !told {
                told = true;
                tracing::warn!(at = self.at, reason, "cannot reach RabbitMQ, trying again until it is there");
            }
            tokio::select! {
                () = sleep(delays.next().unwrap_or(Duration::from_secs(5))) => {}
                () = self.stopper.aborted() => return Err(BrokerError::Aborted),
            }
        }
    }

    async fn try_open(&self, purpose: &str) -> Result<Link, Trouble> {
        let properties = ConnectionProperties::default()
            .with_connection_name(format!("{} ({purpose})", self.client_name).into());
        let connection = Connection::connect_uri_with_config(
            self.uri.clone(),
            properties,
            self.tls.clone(),
            runtime::default_runtime()?,
        )
        .await
        .map_err(|error| self.connect_trouble(error))?;
        let channel = connection.create_channel().await?;
        self.declare(&channel).await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Link { channel, _connection: connection })
    }

    fn connect_trouble(&self, error: lapin::Error) -> Trouble {
        let ErrorKind::ProtocolError(amqp) = error.kind() else { return Trouble::Passing(error) };
        match amqp.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED)
            | AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => Trouble::Permanent(BrokerError::Refused {
                at: self.at.clone(),
                reason: amqp.get_message().to_string(),
            }),
            _ => Trouble::Passing(error),
        }
    }

    async fn declare(&self, channel: &Channel) -> Result<(), Trouble> {
        let Topology { tasks, outcomes, dead, retries } = &self.topology;
        declare(channel, dead, &[("x-delivery-limit", int(NO_DELIVERY_LIMIT))]).await?;
        let to = |queue: &str| {
            [
                ("x-dead-letter-exchange", AMQPValue::LongString("".into())),
                ("x-dead-letter-routing-key", AMQPValue::LongString(queue.into())),
                ("x-dead-letter-strategy", AMQPValue::LongString("at-least-once".into())),
                ("x-overflow", AMQPValue::LongString("reject-publish".into())),
            ]
        };
        let [a, b, c, d] = to(dead);
        declare(channel, tasks, &[a, b, c, d, ("x-delivery-limit", int(DELIVERY_LIMIT))]).await?;
        for (queue, (_, delay)) in retries.iter().zip(DELAYS) {
            let [a, b, c, d] = to(tasks);
            let ttl_ms = int(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX));
            declare(channel, queue, &[a, b, c, d, ("x-message-ttl", ttl_ms)]).await?;
        }
        let single = ("x-single-active-consumer", AMQPValue::Boolean(true));
        declare(channel, outcomes, &[single, ("x-delivery-limit", int(NO_DELIVERY_LIMIT))]).await
    }

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
    async fn publish(&self, queue: &str, body: &[u8], reason: Option<&str>) -> Result<(), BrokerError> {
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

    async fn depth(&self, queue: &str) -> Result<u64, BrokerError> {
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

async fn declare(channel: &Channel, queue: &str, extra: &[(&'static str, AMQPValue)]) -> Result<(), Trouble> {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    for (name, value) in extra {
        arguments.insert((*name).into(), value.clone());
    }
    match channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments).await {
        Ok(_) => Ok(()),
        Err(error) => match error.kind() {
            ErrorKind::ProtocolError(amqp)
                if matches!(amqp.kind(), AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED)) =>
            {
                Err(Trouble::Permanent(BrokerError::Topology {
                    queue: queue.to_owned(),
                    reason: amqp.get_message().to_string(),
                }))
            }
            _ => Err(Trouble::Passing(error)),
        },
    }
}

const fn int(value: i64) -> AMQPValue {
    AMQPValue::LongLongInt(value)
}

enum Trouble {
    Passing(lapin::Error),
    Permanent(BrokerError),
}

impl From<lapin::Error> for Trouble {
    fn from(error: lapin::Error) -> Self {
        Self::Passing(error)
    }
}

/// A message, to the wire and back.
trait Wire: Sized + Send + 'static {
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError>;
    fn encode(&self) -> Vec<u8>;
}

impl Wire for Task {
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        Self::decode(bytes)
    }

    fn encode(&self) -> Vec<u8> {
        self.encode()
    }
}

impl Wire for Outcome {
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
struct RabbitConsumer<M> {
    shared: Arc<Shared>,
    queue: String,
    fetched: mpsc::Receiver<Result<Fetched<M>, BrokerError>>,
    closing: CancellationToken,
    pump: AbortOnDropHandle<Option<Live>>,
}

/// A subscription, and the connection it lives on.
type Live = (Arc<Link>, lapin::Consumer);

impl<M: Wire> RabbitConsumer<M> {
    async fn start(shared: Arc<Shared>, queue: &str, prefetch: u16) -> Result<Self, BrokerError> {
        let live = shared.subscribe(queue, prefetch).await?;
        // One message waits to be asked for; the others wait in the connection, up to the prefetch.
        let (sender, fetched) = mpsc::channel(1);
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
            match subscribe_once(&link, queue, prefetch).await {
                Ok(stream) => return Ok((link, stream)),
                Err(error) => {
                    tracing::debug!(queue, %error, "could not subscribe, trying again");
                    sleep(Duration::from_millis(200)).await;
                }
            }
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
        // Giving back by `nack` would spend one of the task's deliveries; a copy and an `ack` do not.
        while let Ok(fetched) = self.fetched.try_recv() {
            let (message, receipt) = fetched?;
            self.shared.publish(&self.queue, &message.encode(), None).await?;
            acknowledge(&receipt.acker).await;
        }
        let Some((link, mut stream)) = live else { return Ok(()) };
        if link.channel.basic_cancel(stream.tag(), BasicCancelOptions::default()).await.is_err() {
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
    match acker.ack(BasicAckOptions::default()).await {
        Ok(true) => {}
        Ok(false) => tracing::debug!("not acknowledged, the channel is gone: the message comes again"),
        Err(error) => tracing::debug!(%error, "not acknowledged: the message comes again"),
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
