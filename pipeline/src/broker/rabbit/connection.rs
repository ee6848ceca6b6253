//! Making a connection, and waiting until one can be made.

use std::{sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBuilder};
use lapin::{
    Channel, Connection, ConnectionProperties, ErrorKind,
    options::ConfirmSelectOptions,
    protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError},
    runtime,
    tcp::OwnedTLSConfig,
    uri::AMQPUri,
};
use tokio::{
    sync::Mutex,
    time::{sleep, timeout},
};

use super::{Connect, declare::declare};
use crate::{
    broker::{BrokerError, topology::Topology},
    shutdown::Stopper,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// What every connection of a process is made from, and the one that publishes.
pub(super) struct Shared {
    pub(super) uri: AMQPUri,
    pub(super) at: String,
    pub(super) tls: OwnedTLSConfig,
    pub(super) client_name: String,
    pub(super) connect: Connect,
    pub(super) topology: Topology,
    pub(super) stopper: Stopper,
    pub(super) publisher: Mutex<Option<Arc<Link>>>,
}

/// A connection with its one channel; both end when the last holder lets go.
pub(super) struct Link {
    pub(super) channel: Channel,
    pub(super) _connection: Connection,
}

impl Shared {
    /// A new connection with the topology declared; waits for RabbitMQ where the configuration says so.
    pub(super) async fn open(&self, purpose: &str) -> Result<Arc<Link>, BrokerError> {
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
        declare(&channel, &self.topology).await?;
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
