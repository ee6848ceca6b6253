//! One connection to Redis that outlives its losses.
//!
//! A command whose reply is lost may have run: everything sent through here can be sent again. So a passing
//! trouble (no connection, no reply, loading, failing over, out of memory) is waited out, told once when it
//! begins and once when it ends; anything else ends the role with Redis' own words.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use redis::{
    Client, ErrorKind, RedisError, RedisResult, ServerErrorKind, TlsCertificates,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use secrecy::{ExposeSecret, SecretString};
use tokio::{sync::OnceCell, time::sleep};

use crate::{broker::Connect, ledger::LedgerError, server_url, shutdown::Stopper};

/// How to reach Redis.
#[derive(Clone, Debug)]
pub struct RedisConfig {
    /// `redis://` or `rediss://`, with login and database.
    pub url: SecretString,
    /// The run whose keys these are.
    pub run: String,
    /// PEM certificates to trust instead of the public ones.
    pub ca_file: Option<PathBuf>,
    /// Whether to wait for a Redis that is not there.
    pub connect: Connect,
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_BACKOFF: Duration = Duration::from_secs(2);

pub(super) struct Connection {
    client: Client,
    manager: OnceCell<ConnectionManager>,
    at: String,
    connect: Connect,
    lost: AtomicBool,
    stopper: Stopper,
}

impl Connection {
    pub(super) fn new(config: &RedisConfig, stopper: Stopper) -> Result<Self, LedgerError> {
        let url = config.url.expose_secret();
        let refused = |at: &str, reason: String| LedgerError::Refused { at: at.to_owned(), reason };
        // Nor do redis' errors name the URL.
        let parsed = server_url::parse(url).map_err(|reason| refused("the given URL", reason))?;
        let at = format!("{}:{}", parsed.host_str().unwrap_or("localhost"), parsed.port().unwrap_or(6379));
        let client = match &config.ca_file {
            None => Client::open(url),
            Some(file) => {
                let root_cert = std::fs::read(file)
                    .map_err(|error| refused(&at, format!("{}: {error}", file.display())))?;
                Client::build_with_tls(url, TlsCertificates { client_tls: None, root_cert: Some(root_cert) })
            }
        }
        .map_err(|error| refused(&at, error.to_string()))?;
        Ok(Self {
            client,
            manager: OnceCell::new(),
            at,
            connect: config.connect,
            lost: AtomicBool::new(false),
            stopper,
        })
    }

    /// Runs the command until Redis has answered it.
    pub(super) async fn run<T, F>(&self, command: impl Fn(ConnectionManager) -> F) -> Result<T, LedgerError>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let mut delays = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(MAX_BACKOFF)
            .with_jitter()
            .without_max_times()
            .build();
        loop {
            let reply = match self.manager().await {
                Ok(manager) => command(manager).await,
                Err(error) => Err(error),
            };
            let error = match reply {
                Ok(value) => {
                    if self.lost.load(Ordering::Relaxed) && self.lost.swap(false, Ordering::Relaxed) {
                        tracing::info!(at = self.at, "Redis is back");
                    }
                    return Ok(value);
                }
                Err(error) => error,
            };
            let (at, reason) = (self.at.clone(), error.to_string());
            match trouble(&error) {
                Trouble::Refused => return Err(LedgerError::Refused { at, reason }),
                Trouble::Permanent => return Err(LedgerError::Failed { at, reason }),
                Trouble::Passing if self.connect == Connect::Once => {
                    return Err(LedgerError::Unreachable { at, reason });
                }
                Trouble::Passing => {}
            }
            if !self.lost.swap(true, Ordering::Relaxed) {
                tracing::warn!(at, reason, "cannot use Redis, trying again until it is there");
            }
            tokio::select! {
                () = sleep(delays.next().unwrap_or(MAX_BACKOFF)) => {}
                () = self.stopper.aborted() => return Err(LedgerError::Aborted),
            }
        }
    }

    async fn manager(&self) -> RedisResult<ConnectionManager> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT))
            .set_number_of_retries(1);
        self.manager
            .get_or_try_init(|| ConnectionManager::new_with_config(self.client.clone(), config))
            .await
            .cloned()
    }
}

enum Trouble {
    Passing,
    Refused,
    Permanent,
}

fn trouble(error: &RedisError) -> Trouble {
    if error.is_io_error()
        || error.is_timeout()
        || error.is_connection_dropped()
        || error.is_connection_refusal()
    {
        return Trouble::Passing;
    }
    match error.kind() {
        ErrorKind::AuthenticationFailed
        | ErrorKind::InvalidClientConfig
        | ErrorKind::Server(ServerErrorKind::NoPerm) => Trouble::Refused,
        ErrorKind::Server(
            ServerErrorKind::BusyLoading
            | ServerErrorKind::TryAgain
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ReadOnly,
        ) => Trouble::Passing,
        _ => match error.code() {
            Some("OOM" | "BUSY" | "MISCONF" | "NOREPLICAS" | "UNBLOCKED") => Trouble::Passing,
            Some("NOAUTH" | "WRONGPASS") => Trouble::Refused,
            _ => Trouble::Permanent,
        },
    }
}
