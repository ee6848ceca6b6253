//! Calls to the model. With its parts and `images/fetch.rs`, all that knows reqwest.
//!
//! - One deadline covers a call from its start to the last byte of its answer; a body is read up to a limit, and
//!   nothing is unpacked (no encoding is offered, and one that comes unasked is bytes like any). So a server that
//!   hangs, drips or floods costs one product one attempt.
//! - The key is part of a header marked as sensitive and of nothing else: no error and no log shows it, and a server
//!   that repeats it is not quoted.
//! - No redirect is followed: key and product go where the user sent them, or nowhere.

use std::{
    fmt::Write as _,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{
    Method, Request, Response, StatusCode,
    header::{HeaderName, HeaderValue},
};
use shelfmill_pipeline::{
    failure::FailureClass,
    identity::IdHash,
    record::{MESSAGE_LIMIT_BYTES, RAW_LIMIT_BYTES},
};
use tokio::time::timeout;

mod clients;
mod dialect;
mod endpoint;
mod headers;
mod key;
mod refusal;

use clients::{Clients, Turn};

pub(crate) use clients::Http;
pub(crate) use dialect::{Dialect, Sent};
pub(crate) use endpoint::Endpoint;
pub(crate) use headers::{LimitHints, Rate};
pub(crate) use key::Key;
pub(crate) use refusal::{Unsupported, error_inside, refusal, retry_after};

/// An answer may have 1 MiB; escaped and wrapped it can be larger.
pub(crate) const MAX_BODY_BYTES: usize = 2 * 1024 * 1024;
/// More of an error than that tells nothing new.
const MAX_ERROR_BYTES: usize = 64 * 1024;
/// OpenAI takes request ids of up to 512 characters.
const MAX_REQUEST_ID_BYTES: usize = 500;
const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-client-request-id");

/// Why a call gave no analysis.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CallFailure {
    pub(crate) class: FailureClass,
    pub(crate) message: String,
    pub(crate) raw: Option<String>,
    pub(crate) retry_after: Option<Duration>,
    /// What of the request the server does not know, where that is why.
    pub(crate) unsupported: Option<Unsupported>,
    /// Whether the provider may have worked for it, and nobody knows how much.
    pub(crate) may_be_billed: bool,
    /// Whether the server has more to do than it can.
    pub(crate) is_overload: bool,
}

impl CallFailure {
    pub(crate) fn new(class: FailureClass, mut message: String) -> Self {
        message.truncate(message.floor_char_boundary(MESSAGE_LIMIT_BYTES));
        Self {
            class,
            message,
            raw: None,
            retry_after: None,
            unsupported: None,
            may_be_billed: false,
            is_overload: false,
        }
    }

    /// With what was sent instead of an analysis.
    pub(crate) fn with_raw(self, raw: &str) -> Self {
        let kept = &raw[..raw.floor_char_boundary(RAW_LIMIT_BYTES)];
        Self { raw: (!kept.is_empty()).then(|| kept.to_owned()), ..self }
    }
}

/// Makes a worker's calls.
pub(crate) struct ModelClient {
    clients: RwLock<Arc<Clients>>,
    concurrency: usize,
    calls: AtomicU32,
    recycle_every: u32,
}

/// What a call gave.
#[derive(Debug)]
pub(crate) struct Reply {
    /// The body of a 200, or why there is none.
    pub(crate) body: Result<Vec<u8>, CallFailure>,
    /// What the provider says of its limits.
    pub(crate) hints: LimitHints,
}

impl From<CallFailure> for Reply {
    fn from(failure: CallFailure) -> Self {
        Self { body: Err(failure), hints: LimitHints::default() }
    }
}

impl ModelClient {
    pub(crate) fn new(concurrency: u32, recycle_every: u32) -> anyhow::Result<Self> {
        let concurrency = concurrency as usize;
        let clients = RwLock::new(Clients::new(concurrency)?);
        Ok(Self { clients, concurrency, calls: AtomicU32::new(0), recycle_every })
    }

    /// One call.
    pub(crate) async fn call(
        &self,
        (endpoint, key): (&Endpoint, &Key),
        request: &Bytes,
        id: &str,
        number: u32,
        deadline: Duration,
    ) -> Reply {
        let (_turn, client) = match self.turn().and_then(|turn| Ok((turn.client(endpoint.http())?, turn))) {
            Ok((client, turn)) => (turn, client),
            Err(error) => return CallFailure::new(FailureClass::Network, format!("{error:#}")).into(),
        };
        let mut call = Request::new(Method::POST, endpoint.url());
        call.headers_mut().clone_from(key.headers());
        call.headers_mut().insert(REQUEST_ID_HEADER, request_id(id, number));
        *call.body_mut() = Some(request.clone().into());
        let exchange = async {
            let response = match client.execute(call).await {
                Ok(response) => response,
                Err(error) => return broken(&error).into(),
            };
            let hints = LimitHints::of(response.headers());
            let body = match response.status() {
                StatusCode::OK => match read(response, MAX_BODY_BYTES).await {
                    Ok(Body::Whole(body)) => Ok(key.hide_in(body)),
                    Ok(Body::Beginning(_)) => {
                        let message = format!("the answer is larger than {MAX_BODY_BYTES} bytes");
                        Err(CallFailure::new(FailureClass::Malformed, message))
                    }
                    Err(failure) => Err(failure),
                },
                status => Err(refused(status, response, key).await),
            };
            Reply { body, hints }
        };
        timeout(deadline, exchange).await.unwrap_or_else(|_| {
            let message = format!("no complete answer within {:.0?}", deadline);
            CallFailure { may_be_billed: true, ..CallFailure::new(FailureClass::Timeout, message) }.into()
        })
    }

    /// Calls made by now; beyond 2^32 it begins anew.
    pub(crate) fn calls(&self) -> u32 {
        self.calls.load(Ordering::Relaxed)
    }

    fn turn(&self) -> anyhow::Result<Turn> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        if self.recycle_every > 0 && number > 0 && number.is_multiple_of(self.recycle_every) {
            let fresh = Clients::new(self.concurrency)?;
            *self.clients.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        }
        Ok(Arc::clone(&self.clients.read().unwrap_or_else(PoisonError::into_inner)).turn())
    }
}

async fn refused(status: StatusCode, response: Response, key: &Key) -> CallFailure {
    let headers = response.headers().clone();
    let (Body::Whole(body) | Body::Beginning(body)) =
        read(response, MAX_ERROR_BYTES).await.unwrap_or(Body::Whole(Vec::new()));
    refusal(status, &headers, &key.hide_in(body))
}

/// Names the product and the call, for the provider's support and for the simulator.
fn request_id(id: &str, number: u32) -> HeaderValue {
    let mut name: String = utf8_percent_encode(id, NON_ALPHANUMERIC).collect();
    if name.len() > MAX_REQUEST_ID_BYTES {
        name = format!("{:?}", IdHash::of(&name));
    }
    let _ = write!(name, "/{number}");
    // Letters, digits and `%`: there is nothing that a header cannot have.
    HeaderValue::try_from(name).unwrap_or(HeaderValue::from_static("unnamed"))
}

/// What was read of a body.
enum Body {
    Whole(Vec<u8>),
    /// There was more than the limit.
    Beginning(Vec<u8>),
}

async fn read(mut response: Response, limit_bytes: usize) -> Result<Body, CallFailure> {
    // What a server announces is not what it sends: a little is taken at its word.
    let announced = usize::try_from(response.content_length().unwrap_or(0)).unwrap_or(usize::MAX);
    let mut body = Vec::with_capacity(announced.min(MAX_ERROR_BYTES));
    while let Some(chunk) = response.chunk().await.map_err(|error| broken(&error))? {
        let room = limit_bytes - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if chunk.len() > room {
            return Ok(Body::Beginning(body));
        }
    }
    Ok(Body::Whole(body))
}

fn broken(error: &reqwest::Error) -> CallFailure {
    let class = if error.is_timeout() { FailureClass::Timeout } else { FailureClass::Network };
    // The innermost cause says what happened; the URL around it may hold a key.
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let what = if error.is_connect() {
        "cannot connect to the model's server"
    } else {
        "the connection to the model's server broke"
    };
    let failure = CallFailure::new(class, format!("{what}: {cause}"));
    CallFailure { may_be_billed: !error.is_connect(), ..failure }
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
