//! One connection to Redis at a time, replaced when it breaks.
//!
//! - A command whose reply is lost may have run: everything sent through here can be sent again. So a passing
//!   trouble (no connection, no reply, loading, failing over, out of memory) is waited out; anything else ends the
//!   role with Redis' own words.
//! - A connection that gave no reply in time, or leads to a replica, is never used again: it may be half-open, or
//!   the name may lead to another server by now.
//! - An outage is told once when the first command meets it, and once when the last command that waited for its end
//!   is through. A read that succeeds while writes are refused ends nothing.

use std::{path::PathBuf, time::Duration};

use backon::{BackoffBuilder, ExponentialBuilder};
use redis::{
    AsyncConnectionConfig, Client, ErrorKind, RedisError, RedisResult, TlsCertificates,
    aio::MultiplexedConnection,
};
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, timeout},
};

use super::outage::Outage;
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
const LAST_WORD_TIMEOUT: Duration = Duration::from_millis(700);
const MAX_BACKOFF: Duration = Duration::from_secs(2);

pub(super) struct Connection {
    client: Client,
    slot: Mutex<Slot>,
    at: String,
    connect: Connect,
    outage: Outage,
    stopper: Stopper,
}

/// The connection in use, if there is one.
#[derive(Default)]
struct Slot {
    connection: Option<MultiplexedConnection>,
    /// How many there were: tells whether the one that broke is still the one in use.
    number: u64,
    failed: Option<(Instant, RedisError)>,
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
            slot: Mutex::default(),
            outage: Outage::of(at.clone()),
            at,
            connect: config.connect,
            stopper,
        })
    }

    /// Runs the command until Redis has answered it.
    pub(super) async fn run<T, F>(
        &self,
        command: impl Fn(MultiplexedConnection) -> F,
    ) -> Result<T, LedgerError>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let mut delays = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(MAX_BACKOFF)
            .with_jitter()
            .without_max_times()
            .build();
        let mut waiting = None;
        loop {
            let reply = tokio::select! {
                biased;
                () = self.stopper.aborted() => return Err(LedgerError::Aborted),
                reply = self.try_once(&command) => reply,
            };
            let error = match reply {
                Ok(value) => {
                    self.outage.answered(waiting);
                    return Ok(value);
                }
                Err(error) => error,
            };
            let (at, reason) = (self.at.clone(), error.to_string());
            match trouble(&error) {
                Trouble::Refused => return Err(LedgerError::Refused { at, reason }),
                Trouble::Permanent => return Err(LedgerError::Failed { at, reason }),
                Trouble::Broken | Trouble::Passing if self.connect == Connect::Once => {
                    return Err(LedgerError::Unreachable { at, reason });
                }
                Trouble::Broken | Trouble::Passing => {}
            }
            if waiting.is_none() {
                waiting = Some(self.outage.wait(&reason));
            }
            tokio::select! {
                () = sleep(delays.next().unwrap_or(MAX_BACKOFF)) => {}
                () = self.stopper.aborted() => return Err(LedgerError::Aborted),
            }
        }
    }

    /// Runs a command of many parts once; `None`: its parts had better be asked one by one, with [`Self::run`].
    pub(super) async fn once<T, F>(&self, command: impl Fn(MultiplexedConnection) -> F) -> Option<T>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let reply = tokio::select! {
            biased;
            () = self.stopper.aborted() => return None,
            reply = self.try_once(&command) => reply,
        };
        match &reply {
            Ok(_) => self.outage.answered(None),
            // Told now: by the next attempt all may be well again.
            Err(error) if matches!(trouble(error), Trouble::Broken) => {
                drop(self.outage.wait(&error.to_string()))
            }
            Err(_) => {}
        }
        reply.ok()
    }

    /// Why nobody answers: this process is ending, or something of it has ended that should not have.
    pub(super) fn gone(&self) -> LedgerError {
        if self.stopper.is_aborted() {
            return LedgerError::Aborted;
        }
        LedgerError::Failed { at: self.at.clone(), reason: "who asks it has ended abnormally".to_owned() }
    }

    /// Runs a command once, in a process that may be ending and does not wait.
    pub(super) async fn last_word<T, F>(
        &self,
        command: impl Fn(MultiplexedConnection) -> F,
    ) -> Result<T, LedgerError>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let unreachable = |reason| LedgerError::Unreachable { at: self.at.clone(), reason };
        match timeout(LAST_WORD_TIMEOUT, self.try_once(&command)).await {
            Ok(reply) => reply.map_err(|error| unreachable(error.to_string())),
            Err(_) => Err(unreachable("no reply".to_owned())),
        }
    }

    async fn try_once<T, F>(&self, command: &impl Fn(MultiplexedConnection) -> F) -> RedisResult<T>
    where
        F: Future<Output = RedisResult<T>>,
    {
        loop {
            let (number, connection) = self.connection().await?;
            let reply = command(connection).await;
            if reply.as_ref().is_err_and(|error| matches!(trouble(error), Trouble::Broken)) {
                let mut slot = self.slot.lock().await;
                if slot.number != number {
                    // It was sent before others found out and connected anew: no news of the connection in use.
                    continue;
                }
                slot.connection = None;
            }
            return reply;
        }
    }

    /// The connection in use, or a new one. Of many who wait for it one connects, and its failure is everybody's.
    async fn connection(&self) -> RedisResult<(u64, MultiplexedConnection)> {
        let asked = Instant::now();
        let mut slot = self.slot.lock().await;
        if let Some(connection) = &slot.connection {
            return Ok((slot.number, connection.clone()));
        }
        if let Some((at, error)) = &slot.failed
            && *at > asked
        {
            return Err(error.clone());
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT));
        match self.client.get_multiplexed_async_connection_with_config(&config).await {
            Ok(connection) => {
                slot.number += 1;
                slot.connection = Some(connection.clone());
                Ok((slot.number, connection))
            }
            Err(error) => {
                slot.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }
}

enum Trouble {
    /// Passing, with another connection.
    Broken,
    Passing,
    Refused,
    Permanent,
}

fn trouble(error: &RedisError) -> Trouble {
    match error.kind() {
        ErrorKind::Io => return Trouble::Broken,
        ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig => return Trouble::Refused,
        _ => {}
    }
    // Of a transaction, the command that was refused tells why, and not the transaction.
    let Some(errors) = error.clone().into_server_errors() else { return Trouble::Permanent };
    let Some((_, first)) = errors.first() else { return Trouble::Permanent };
    match first.code() {
        "READONLY" | "MASTERDOWN" | "CLUSTERDOWN" => Trouble::Broken,
        "LOADING" | "TRYAGAIN" | "OOM" | "BUSY" | "MISCONF" | "NOREPLICAS" | "UNBLOCKED" => Trouble::Passing,
        "NOAUTH" | "WRONGPASS" | "NOPERM" => Trouble::Refused,
        // What a login would have made good: without one, Redis reads no command of many words.
        "ERR" if first.details().is_some_and(|why| why.contains("unauthenticated")) => Trouble::Refused,
        "ERR" if first.details().is_some_and(|why| why.contains("max number of clients")) => Trouble::Broken,
        _ => Trouble::Permanent,
    }
}
