//! The pooled HTTP clients of a worker: one for every hundred calls at once.
//!
//! A client has a single connection to a server that speaks HTTP/2, and such a server takes a hundred calls at once on one, or a
//! few more: what is above that would wait in line. With HTTP/1.1 each call under way has a connection to itself, whichever
//! client made it. Clients are made when they are first needed.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use reqwest::{Client, header::HeaderValue, redirect::Policy};
use rustls::ClientConfig;
use rustls_platform_verifier::BuilderVerifierExt as _;

/// What most servers allow on one connection (`SETTINGS_MAX_CONCURRENT_STREAMS`).
const CALLS_EACH: usize = 100;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that many calls share is asked whether it is alive: else each of them would have to find out by itself, and
/// those that come after them again.
const PING_EVERY: Duration = Duration::from_secs(15);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// What is spoken with a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Http {
    /// HTTP/2 where TLS has agreed upon it, else HTTP/1.1.
    Agreed,
    /// HTTP/2, without asking.
    Two,
}

pub(super) struct Clients {
    agreed: Vec<OnceLock<Client>>,
    two: Vec<OnceLock<Client>>,
    /// Made once: the system's certificates take 10 ms to read, and some memory.
    tls: ClientConfig,
    idle_connections: usize,
    /// The client of each call that may be made; the last one was used last, and its connections are warm.
    free: Mutex<Vec<usize>>,
}

/// A call's place with a client.
pub(super) struct Turn {
    clients: Arc<Clients>,
    /// `None`: beside the places there are, as second calls are.
    place: Option<usize>,
}

impl Clients {
    pub(super) fn new(calls: usize) -> anyhow::Result<Arc<Self>> {
        let count = calls.div_ceil(CALLS_EACH).max(1);
        let clients = Self {
            agreed: vec![OnceLock::new(); count],
            two: vec![OnceLock::new(); count],
            tls: tls().context("cannot read the system's certificates")?,
            idle_connections: calls.min(CALLS_EACH),
            free: Mutex::new((0..calls).rev().map(|call| call / CALLS_EACH).collect()),
        };
        // Whether there can be any is known before the first call.
        clients.client(0, Http::Agreed)?;
        Ok(Arc::new(clients))
    }

    fn client(&self, index: usize, http: Http) -> anyhow::Result<Client> {
        let made = match http {
            Http::Agreed => &self.agreed[index],
            Http::Two => &self.two[index],
        };
        if let Some(client) = made.get() {
            return Ok(client.clone());
        }
        let client = build(http, self.idle_connections, self.tls.clone())?;
        Ok(made.get_or_init(|| client).clone())
    }

    /// A place for a call.
    pub(super) fn turn(self: Arc<Self>) -> Turn {
        let place = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Turn { clients: self, place }
    }
}

impl Turn {
    pub(super) fn client(&self, http: Http) -> anyhow::Result<Client> {
        self.clients.client(self.place.unwrap_or(0), http)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.clients.free.lock().unwrap_or_else(PoisonError::into_inner).push(place);
        }
    }
}

fn tls() -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder().with_platform_verifier()?.with_no_client_auth();
    config.alpn_protocols = [&b"h2"[..], b"http/1.1"].map(<[u8]>::to_vec).to_vec();
    Ok(config)
}

fn build(http: Http, idle_connections: usize, tls: ClientConfig) -> anyhow::Result<Client> {
    let builder = Client::builder()
        .user_agent(HeaderValue::from_static(concat!("shelfmill/", env!("CARGO_PKG_VERSION"))))
        .connect_timeout(CONNECT_TIMEOUT)
        .tls_backend_preconfigured(tls)
        .pool_max_idle_per_host(idle_connections)
        .http2_keep_alive_interval(PING_EVERY)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .redirect(Policy::none());
    let builder = match http {
        Http::Agreed => builder,
        Http::Two => builder.http2_prior_knowledge(),
    };
    builder.build().context("cannot make an HTTP client")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_client_has_more_than_a_hundred_calls_and_places_come_back() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let clients = Clients::new(250).unwrap();
        let turns: Vec<_> = (0..250).map(|_| Arc::clone(&clients).turn()).collect();
        let of = |index| turns.iter().filter(|turn| turn.place == Some(index)).count();
        assert_eq!([of(0), of(1), of(2)], [100, 100, 50]);
        assert_eq!(Arc::clone(&clients).turn().place, None);
        drop(turns);
        assert_eq!(clients.free.lock().unwrap().len(), 250);
        let one = Arc::clone(&clients).turn();
        let warm = one.place;
        drop(one);
        assert_eq!(clients.turn().place, warm, "the one that was used last is used next");
    }
}
