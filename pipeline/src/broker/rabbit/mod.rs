//! The broker between processes: RabbitMQ. The only folder that knows lapin.
//!
//! - Consuming and publishing use connections of their own: RabbitMQ blocks publishing connections under a
//!   memory or disk alarm, and acknowledgements must still flow.
//! - A connection is never repaired, it is replaced: connection, channel, confirm mode, topology, prefetch and
//!   consumer are built again from nothing, so there is one way to be connected and not two.
//! - A publish is done when RabbitMQ confirms it *and* did not return it: a confirmed message that no queue
//!   took is lost. Whatever else happens, it is published again; a repeat is recognised further on.
//! - An acknowledgement on a dead channel tells nobody anything. It is not an error: the message comes again.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use async_trait::async_trait;
use lapin::{tcp::OwnedTLSConfig, uri::AMQPUri};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Mutex;

use super::{Broker, BrokerError, Consumer, DeadLetters, Depths, Prefetch, topology::Topology};
use crate::{
    message::{Outcome, Task},
    server_url,
    shutdown::Stopper,
    trace::Parent,
};
use connection::Shared;
use consumer::{RabbitConsumer, Wire};
use dead::RabbitDeadLetters;
use outage::{Outages, Purpose};
use outbox::Outbox;

mod acks;
mod connection;
mod consumer;
mod dead;
mod declare;
mod outage;
mod outbox;
mod publish;
mod purge;
mod socket;
mod subscription;

/// A silent peer is given up after twice this. Half of it would be too short for a machine that is busy for seconds.
const HEARTBEAT_S: u16 = 10;
/// A message larger than that travels in several. lapin has room for 64 in each connection: of RabbitMQ's own 128 KiB it would
/// be 8 MiB for next to nothing.
const FRAME_BYTES: u32 = 32 * 1024;

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
    outbox: OnceLock<Outbox>,
}

impl RabbitBroker {
    /// Checks the configuration; connects when first used.
    pub fn new(config: RabbitConfig, stopper: Stopper) -> Result<Self, BrokerError> {
        let refused = |reason: String| BrokerError::Refused { at: "the given URL".into(), reason };
        let url = config.url.expose_secret();
        let scheme = server_url::parse(url).map_err(refused)?.scheme().to_owned();
        if !["amqp", "amqps"].contains(&scheme.as_str()) {
            return Err(refused("it must begin with amqp:// or amqps://".to_owned()));
        }
        let mut uri: AMQPUri =
            url.parse().map_err(|_| refused("it is not amqp://user:password@host:port/vhost".to_owned()))?;
        uri.query.heartbeat.get_or_insert(HEARTBEAT_S);
        uri.query.frame_max.get_or_insert(FRAME_BYTES);
        let cert_chain = match &config.ca_file {
            None => None,
            Some(file) => Some(std::fs::read_to_string(file).map_err(|error| BrokerError::Certificates {
                file: file.display().to_string(),
                reason: error.to_string(),
            })?),
        };
        let at = format!("{}:{}/{}", uri.authority.host, uri.authority.port, uri.vhost);
        Ok(Self {
            outbox: OnceLock::new(),
            shared: Arc::new(Shared {
                uri,
                outages: Outages::new(at.clone()),
                at,
                tls: OwnedTLSConfig { identity: None, cert_chain },
                client_name: config.client_name,
                connect: config.connect,
                topology: Topology::of(&config.run),
                stopper,
                publisher: Mutex::new(None),
                looker: Mutex::new(None),
            }),
        })
    }

    async fn consume<M: Wire>(
        &self,
        queue: &str,
        prefetch: Prefetch,
    ) -> Result<Box<dyn Consumer<M>>, BrokerError> {
        Ok(Box::new(RabbitConsumer::start(Arc::clone(&self.shared), queue, prefetch).await?))
    }
}

#[async_trait]
impl Broker for RabbitBroker {
    async fn publish_task(&self, task: Task) -> Result<(), BrokerError> {
        let (trace, body) = ([Parent::current()], task.encode());
        // Not needed while its confirm is waited for, of which a producer has many.
        drop(task);
        self.shared.publish(&self.shared.topology.tasks, &body, &trace, None).await
    }

    async fn publish_outcome(&self, outcome: &Outcome) -> Result<(), BrokerError> {
        let outbox = self.outbox.get_or_init(|| Outbox::open(Arc::clone(&self.shared)));
        outbox.send(outcome.encode()).await
    }

    fn takes_at_once(&self) -> bool {
        self.outbox.get().is_some_and(Outbox::is_quick)
    }

    fn repeats(&self) -> bool {
        true
    }

    async fn tasks(&self, prefetch: Prefetch) -> Result<Box<dyn Consumer<Task>>, BrokerError> {
        self.consume(&self.shared.topology.tasks, prefetch).await
    }

    async fn outcomes(&self, prefetch: u16) -> Result<Box<dyn Consumer<Outcome>>, BrokerError> {
        self.consume(&self.shared.topology.outcomes, prefetch.into()).await
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

    /// Nothing is declared.
    async fn look(&self) -> Result<Depths, BrokerError> {
        self.shared.look().await
    }

    async fn dead_letters(&self) -> Result<Box<dyn DeadLetters>, BrokerError> {
        let link = self.shared.open(Purpose::Dead).await?;
        self.shared.outages.restored(Purpose::Dead);
        Ok(Box::new(RabbitDeadLetters { shared: Arc::clone(&self.shared), link }))
    }
}
