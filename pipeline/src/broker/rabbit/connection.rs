//! Making a connection, and waiting until one can be made.

use std::{
    collections::BTreeSet,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use futures_util::{StreamExt, future::join_all};
use lapin::{
    Channel, Connection, ConnectionProperties, ErrorKind, Event,
    options::{BasicAckOptions, ConfirmSelectOptions},
    protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError},
    tcp::OwnedTLSConfig,
    types::DeliveryTag,
    uri::AMQPUri,
};
use tokio::{
    sync::{Mutex, Notify},
    time::{Instant, sleep, timeout},
};

use super::{
    Connect,
    declare::declare,
    outage::{Loss, Outages, Purpose},
    publish::ANSWER_TIMEOUT,
    socket::Socket,
};
use crate::{
    broker::{BrokerError, topology::Topology},
    shutdown::Stopper,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How soon whoever waits for a connection's end sees it.
const GONE_POLL: Duration = Duration::from_millis(100);

/// What every connection of a process is made from, and the ones that are kept.
pub(super) struct Shared {
    pub(super) uri: AMQPUri,
    pub(super) at: String,
    pub(super) tls: OwnedTLSConfig,
    pub(super) client_name: String,
    pub(super) connect: Connect,
    pub(super) topology: Topology,
    pub(super) stopper: Stopper,
    pub(super) outages: Outages,
    pub(super) publisher: Mutex<Option<Arc<Link>>>,
    pub(super) looker: Mutex<Option<Arc<Link>>>,
}

/// A connection with its one channel; both end when the last holder lets go.
pub(super) struct Link {
    pub(super) channel: Channel,
    pub(super) connection: Connection,
    socket: Socket,
    pub(super) opened: Instant,
    /// Deliveries that were taken from it and not settled.
    unsettled: std::sync::Mutex<BTreeSet<DeliveryTag>>,
    has_settled: Notify,
}

impl Link {
    pub(super) fn is_alive(&self) -> bool {
        self.channel.status().connected() && self.connection.status().connected()
    }

    /// RabbitMQ has said that it takes nothing on this connection, and will say when it does again.
    pub(super) fn is_blocked(&self) -> bool {
        self.is_alive() && self.connection.status().blocked()
    }

    pub(super) fn taken(&self, tag: DeliveryTag) {
        self.unsettled().insert(tag);
    }

    /// Tells RabbitMQ what of this is done with: in one word those before which nothing else is open, and each other one that
    /// cannot wait for those before it in its own. Returns what was told. On a dead connection nothing is, and they come again.
    pub(super) async fn acknowledge(
        &self,
        done: &BTreeSet<DeliveryTag>,
        cannot_wait: impl Fn(DeliveryTag) -> bool,
    ) -> BTreeSet<DeliveryTag> {
        let together = self.unsettled().iter().take_while(|tag| done.contains(tag)).last().copied();
        let alone: Vec<_> =
            done.iter().copied().filter(|tag| Some(*tag) > together && cannot_wait(*tag)).collect();
        let words =
            together.map(|last| (last, true)).into_iter().chain(alone.iter().map(|tag| (*tag, false)));
        // At once, so that they leave in few packets.
        let told = join_all(words.map(|(tag, multiple)| {
            timeout(ANSWER_TIMEOUT, self.channel.basic_ack(tag, BasicAckOptions { multiple }))
        }));
        for told in told.await {
            match told {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "not acknowledged: the message comes again"),
                Err(_) => tracing::debug!("not acknowledged in time: the message comes again"),
            }
        }
        let told: BTreeSet<_> =
            done.iter().copied().filter(|tag| Some(*tag) <= together).chain(alone).collect();
        // Not before: nobody else may tell it of them.
        let mut unsettled = self.unsettled();
        for tag in &told {
            unsettled.remove(tag);
        }
        drop(unsettled);
        self.has_settled.notify_waiters();
        told
    }

    /// Resolves when fewer deliveries than that are not settled, or when nobody can settle any.
    pub(super) async fn has_unsettled_below(&self, messages: usize) {
        let mut gone = std::pin::pin!(self.gone());
        loop {
            let settled = self.has_settled.notified();
            if self.unsettled().len() < messages {
                return;
            }
            tokio::select! {
                () = settled => {}
                () = &mut gone => return,
            }
        }
    }

    /// Ends the connection without a word; what was not settled on it comes again.
    pub(super) fn cut(&self) {
        self.socket.end();
    }

    fn unsettled(&self) -> MutexGuard<'_, BTreeSet<DeliveryTag>> {
        self.unsettled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when the connection is lost.
    pub(super) async fn gone(&self) {
        while self.is_alive() {
            sleep(GONE_POLL).await;
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if !self.connection.status().connected() {
            self.socket.end();
        }
    }
}

impl Shared {
    /// A new connection with the topology declared; waits for RabbitMQ where the configuration says so.
    pub(super) async fn open(&self, purpose: Purpose) -> Result<Arc<Link>, BrokerError> {
        let mut delays = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(200))
            .with_max_delay(Duration::from_secs(5))
            .with_jitter()
            .without_max_times()
            .build();
        let mut has_failed = false;
        loop {
            let reason = match timeout(CONNECT_TIMEOUT, self.try_open(purpose)).await {
                Ok(Ok(link)) => return Ok(Arc::new(link)),
                Ok(Err(Trouble::Permanent(error))) => return Err(error),
                Ok(Err(Trouble::Passing(error))) => error.to_string(),
                Err(_) => format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
            };
            if self.connect == Connect::Once {
                return Err(BrokerError::Unreachable { at: self.at.clone(), reason });
            }
            // Once is nothing: RabbitMQ ends a connection with an internal error when many declare a new queue at once.
            if std::mem::replace(&mut has_failed, true) {
                self.outages.lost(purpose, None, &Loss::Unreachable(reason));
            }
            tokio::select! {
                () = sleep(delays.next().unwrap_or(Duration::from_secs(5))) => {}
                () = self.stopper.aborted() => return Err(BrokerError::Aborted),
            }
        }
    }

    async fn try_open(&self, purpose: Purpose) -> Result<Link, Trouble> {
        let properties = ConnectionProperties::default()
            .with_connection_name(format!("{} ({purpose})", self.client_name).into());
        let (connection, mut socket) = Socket::connect(self.uri.clone(), properties, self.tls.clone())
            .await
            .map_err(|error| self.connect_trouble(error))?;
        let channel = connection.create_channel().await?;
        if purpose != Purpose::Look {
            declare(&channel, &self.topology).await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
        }
        if purpose == Purpose::Publish {
            tokio::spawn(tell_when_blocked(self.at.clone(), connection.events_listener()));
        }
        socket.is_connected();
        Ok(Link {
            channel,
            connection,
            socket,
            opened: Instant::now(),
            unsettled: std::sync::Mutex::default(),
            has_settled: Notify::new(),
        })
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
}

/// An alarm of RabbitMQ stops publishing and nothing else: publishes wait, acknowledgements flow. Ends with the
/// connection.
async fn tell_when_blocked(at: String, events: impl futures_util::Stream<Item = Event>) {
    let mut events = std::pin::pin!(events);
    let mut since = Instant::now();
    while let Some(event) = events.next().await {
        match event {
            Event::ConnectionBlocked(reason) => {
                since = Instant::now();
                tracing::warn!(
                    at,
                    reason,
                    "RabbitMQ takes no messages for now, waiting until it does; calls in flight go on and nothing is lost"
                );
            }
            Event::ConnectionUnblocked => {
                let after_seconds = format_args!("{:.1}", since.elapsed().as_secs_f64());
                tracing::info!(at, %after_seconds, "RabbitMQ takes messages again");
            }
            _ => {}
        }
    }
}

/// Whether waiting may help.
pub(super) enum Trouble {
    Passing(lapin::Error),
    Permanent(BrokerError),
}

impl From<lapin::Error> for Trouble {
    fn from(error: lapin::Error) -> Self {
        Self::Passing(error)
    }
}
