//! Images from the web. A URL comes from a product, and with it, perhaps, from somebody who would like a worker to ask
//! what only a worker can reach.
//!
//! - Addresses are checked where the connection is made: those that a name is resolved to are the ones that are
//!   connected to, so that a name that changes its mind gains nothing. A host that is an address itself is checked before,
//!   because nothing resolves it. Each redirect is another URL, checked like the first.
//! - No proxy: it would resolve names by itself. No key, cookie or referrer goes along, and no encoding is offered, so
//!   that nothing is unpacked.
//! - One deadline covers an image from the first hop to its last byte, and a body is read up to its limit.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use reqwest::{
    Client, Response, StatusCode,
    dns::{Addrs, Name, Resolve, Resolving},
    header::{ACCEPT, HeaderValue, LOCATION},
    redirect::Policy,
};
use shelfmill_pipeline::failure::FailureClass;
use tokio::time::timeout;
use url::{Host, Url};

use super::{Trouble, address::is_public, sources::shown};
use crate::model::retry_after;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// From the first hop to the last byte.
const DEADLINE: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: u32 = 3;
/// Shops have few image servers.
const IDLE_CONNECTIONS: usize = 16;
/// What a server announces is not what it sends: that much is taken at its word.
const TRUSTED_BYTES: u64 = 64 * 1024;
const ACCEPTED: HeaderValue = HeaderValue::from_static("image/png, image/jpeg, image/webp, image/gif");
const FORBIDDEN: &str =
    "it leads into a private network or to the worker's own machine (llm.images.allow_private = false)";

/// Which addresses may be connected to.
type Allows = fn(IpAddr) -> bool;

/// Fetches images by their URLs.
#[derive(Debug)]
pub(super) struct Web {
    client: Client,
    allows: Allows,
    deadline: Duration,
}

/// What a hop leads to.
enum Hop {
    Image(Vec<u8>),
    Further(Url),
}

/// A name of which no address may be connected to.
#[derive(Debug, thiserror::Error)]
#[error("{FORBIDDEN}")]
struct Forbidden;

#[derive(Clone, Copy, Debug)]
struct Resolver(Allows);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let Self(allows) = *self;
        Box::pin(async move {
            let (allowed, forbidden): (Vec<SocketAddr>, Vec<SocketAddr>) =
                tokio::net::lookup_host((name.as_str(), 0)).await?.partition(|found| allows(found.ip()));
            if allowed.is_empty() && !forbidden.is_empty() {
                return Err(Forbidden.into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

impl Web {
    pub(super) fn new(allow_private: bool) -> anyhow::Result<Self> {
        Self::with(if allow_private { |_| true } else { is_public }, DEADLINE)
    }

    pub(super) fn with(allows: Allows, deadline: Duration) -> anyhow::Result<Self> {
        let client = Client::builder()
            .user_agent(concat!("shelfmill/", env!("CARGO_PKG_VERSION")))
            .no_proxy()
            .dns_resolver(Resolver(allows))
            .redirect(Policy::none())
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .build()?;
        Ok(Self { client, allows, deadline })
    }

    /// The bytes at this URL, or at that to which it redirects.
    pub(super) async fn get(&self, url: &Url, max_bytes: u64) -> Result<Vec<u8>, Trouble> {
        let follow = async {
            let mut url = url.clone();
            for hops in 0.. {
                let is_first = hops == 0;
                let told = |mut trouble: Trouble| {
                    if !is_first {
                        trouble.why = format!("redirected to {}: {}", shown(&url), trouble.why);
                    }
                    trouble
                };
                match self.hop(&url, max_bytes).await.map_err(told)? {
                    Hop::Image(bytes) => return Ok(bytes),
                    Hop::Further(_) if hops == MAX_REDIRECTS => break,
                    Hop::Further(next) => url = next,
                }
            }
            Err(Trouble::for_good(format!("it redirects more than {MAX_REDIRECTS} times")))
        };
        timeout(self.deadline, follow).await.unwrap_or_else(|_| {
            Err(Trouble::passing_as(
                FailureClass::Timeout,
                format!("it took longer than {:.0?}", self.deadline),
            ))
        })
    }

    async fn hop(&self, url: &Url, max_bytes: u64) -> Result<Hop, Trouble> {
        self.check(url)?;
        let request = self.client.get(url.clone()).header(ACCEPT, ACCEPTED);
        let response = request.send().await.map_err(|error| broken(&error))?;
        let status = response.status();
        match status {
            StatusCode::OK => read(response, max_bytes).await.map(Hop::Image),
            StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT => next(url, &response).map(Hop::Further),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
                Err(not_now(&response))
            }
            status if status.is_server_error() => Err(not_now(&response)),
            status => Err(Trouble::for_good(format!("its server answers {status}"))),
        }
    }

    /// What the resolver does not see.
    fn check(&self, url: &Url) -> Result<(), Trouble> {
        if !["http", "https"].contains(&url.scheme()) {
            return Err(Trouble::for_good("only http:// and https:// are fetched"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Trouble::for_good("its URL holds a login, and none is sent: leave it out"));
        }
        let address = match url.host() {
            Some(Host::Ipv4(address)) => IpAddr::V4(address),
            Some(Host::Ipv6(address)) => IpAddr::V6(address),
            Some(Host::Domain(_)) => return Ok(()),
            None => return Err(Trouble::for_good("it names no host")),
        };
        if (self.allows)(address) { Ok(()) } else { Err(Trouble::for_good(FORBIDDEN)) }
    }
}

fn next(url: &Url, response: &Response) -> Result<Url, Trouble> {
    let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
    let location = location.ok_or_else(|| Trouble::for_good("it redirects to nowhere"))?;
    url.join(location).map_err(|error| Trouble::for_good(format!("it redirects to what is no URL: {error}")))
}

fn not_now(response: &Response) -> Trouble {
    let why = format!("its server answers {}", response.status());
    Trouble {
        retry_after: retry_after(response.headers()),
        ..Trouble::passing_as(FailureClass::ServerError, why)
    }
}

async fn read(mut response: Response, max_bytes: u64) -> Result<Vec<u8>, Trouble> {
    let announced = response.content_length().unwrap_or(0);
    if announced > max_bytes {
        return Err(Trouble::too_large(max_bytes));
    }
    let mut body = Vec::with_capacity(usize::try_from(announced.min(TRUSTED_BYTES)).unwrap_or(0));
    while let Some(chunk) = response.chunk().await.map_err(|error| broken(&error))? {
        if (body.len() + chunk.len()) as u64 > max_bytes {
            return Err(Trouble::too_large(max_bytes));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn broken(error: &reqwest::Error) -> Trouble {
    // The innermost cause says what happened; the URL around it may hold a key.
    let mut cause: &(dyn std::error::Error + 'static) = error;
    loop {
        if cause.is::<Forbidden>() {
            return Trouble::for_good(FORBIDDEN);
        }
        match cause.source() {
            Some(inner) => cause = inner,
            None => break,
        }
    }
    if error.is_builder() {
        return Trouble::for_good("it cannot be asked for");
    }
    let class = if error.is_timeout() { FailureClass::Timeout } else { FailureClass::Network };
    let what = if error.is_connect() { "cannot connect to its server" } else { "the connection broke" };
    Trouble::passing_as(class, format!("{what}: {cause}"))
}
