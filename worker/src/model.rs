//! Calls to the model. The only file that knows reqwest.
//!
//! - One deadline covers a call from its start to the last byte of its answer; a body is read up to a limit, and
//!   nothing is unpacked (no encoding is offered, and one that comes unasked is bytes like any). So a server that
//!   hangs, drips or floods costs one product one attempt.
//! - The key is part of a header marked as sensitive and of nothing else: no error and no log shows it, and a server
//!   that repeats it is not quoted.
//! - No redirect is followed: key and product go where the user sent them, or nowhere.

use std::{
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use memchr::memmem;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{
    Client, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue},
    redirect::Policy,
};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde_json::{Map, Value, value::RawValue};
use shelfmill_pipeline::{
    failure::FailureClass,
    identity::{IdHash, fingerprint},
    job::{AnswerSchema, Job, JobFingerprint, Message, Structured},
    record::{MESSAGE_LIMIT_BYTES, RAW_LIMIT_BYTES},
};
use tokio::time::timeout;
use url::Url;

use crate::{OPENAI_BASE_URL, check_base_url};

mod dialect;
#[cfg_attr(not(test), expect(dead_code, reason = "for the limiter, which is to come"))]
pub(crate) mod headers;
mod refusal;

pub(crate) use dialect::{Dialect, Sent};
pub(crate) use refusal::{Unsupported, error_inside, refusal};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// An answer may have 1 MiB; escaped and wrapped it can be larger.
pub(crate) const MAX_BODY_BYTES: usize = 2 * 1024 * 1024;
/// More of an error than that tells nothing new.
const MAX_ERROR_BYTES: usize = 64 * 1024;
/// OpenAI takes request ids of up to 512 characters.
const MAX_REQUEST_ID_BYTES: usize = 500;
/// Shorter keys are placeholders for servers that want none ("none", "EMPTY"), and words that answers may have.
const LEAST_KEY_BYTES: usize = 16;
const REQUEST_ID_HEADER: &str = "x-client-request-id";

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
}

impl CallFailure {
    pub(crate) fn new(class: FailureClass, mut message: String) -> Self {
        message.truncate(message.floor_char_boundary(MESSAGE_LIMIT_BYTES));
        Self { class, message, raw: None, retry_after: None, unsupported: None, may_be_billed: false }
    }

    /// With what was sent instead of an analysis.
    pub(crate) fn with_raw(self, raw: &str) -> Self {
        let kept = &raw[..raw.floor_char_boundary(RAW_LIMIT_BYTES)];
        Self { raw: (!kept.is_empty()).then(|| kept.to_owned()), ..self }
    }
}

/// Where requests go, and the parts that are the same in all of them.
#[derive(Debug)]
pub(crate) struct Endpoint {
    url: Url,
    model: String,
    temperature: Option<f64>,
    pub(crate) dialect: Dialect,
    json_schema: Box<RawValue>,
    json_object: Box<RawValue>,
    extra: Map<String, Value>,
}

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    messages: &'a [Message],
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_format: Option<&'a RawValue>,
    #[serde(flatten)]
    extra: &'a Map<String, Value>,
}

impl Endpoint {
    pub(crate) fn new(base_url: Option<&str>, job: &Job) -> anyhow::Result<Self> {
        let base = base_url.or(job.llm.base_url.as_deref()).unwrap_or(OPENAI_BASE_URL);
        let mut url = check_base_url(base)?;
        let path = format!("{}/chat/completions", url.path().trim_end_matches('/'));
        url.set_path(&path);
        let schema = &job.output.schema;
        let json_schema = serde_json::value::to_raw_value(&serde_json::json!({
            "type": "json_schema",
            "json_schema": {"name": "product_analysis", "strict": AnswerSchema::is_strict(schema), "schema": schema}
        }))?;
        let is_openai = url.host_str().is_some_and(|host| host.ends_with("openai.com"));
        Ok(Self {
            dialect: Dialect::new(name_of(&url, job), job.llm.structured, is_openai),
            url,
            model: job.llm.model.clone(),
            temperature: job.llm.temperature,
            json_schema,
            json_object: serde_json::value::to_raw_value(&serde_json::json!({"type": "json_object"}))?,
            extra: job.llm.extra.clone(),
        })
    }

    /// The server's name.
    pub(crate) fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default()
    }

    /// Whether this is OpenAI itself, which answers nobody without a key.
    pub(crate) fn is_openai(&self) -> bool {
        self.url.host_str().is_some_and(|host| host == "openai.com" || host.ends_with(".openai.com"))
    }

    /// The body of a request, for an answer of at most so many tokens.
    pub(crate) fn request(&self, messages: &[Message], ceiling: u32, sent: Sent) -> anyhow::Result<Vec<u8>> {
        let ceiling = Some(ceiling);
        let (max_tokens, max_completion_tokens) =
            if sent.has_new_token_field { (None, ceiling) } else { (ceiling, None) };
        Ok(serde_json::to_vec(&Request {
            model: &self.model,
            messages,
            temperature: self.temperature,
            max_tokens,
            max_completion_tokens,
            response_format: match sent.structured {
                Structured::JsonSchema | Structured::Auto => Some(&self.json_schema),
                Structured::JsonObject => Some(&self.json_object),
                Structured::None => None,
            },
            extra: &self.extra,
        })?)
    }
}

/// The pooled HTTP client of a worker.
pub(crate) struct ModelClient {
    client: RwLock<Client>,
    key: Option<SecretString>,
    connections: usize,
    headers: HeaderMap,
    calls: AtomicU32,
    recycle_every: u32,
}

impl ModelClient {
    pub(crate) fn new(
        concurrency: u32,
        key: Option<SecretString>,
        recycle_every: u32,
    ) -> anyhow::Result<Self> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(key) = &key {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", key.expose_secret().trim()))
                .map_err(|_| anyhow::anyhow!("the API key has characters that no key has"))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let connections = concurrency as usize;
        let client = RwLock::new(build(connections)?);
        Ok(Self { client, key, connections, headers, calls: AtomicU32::new(0), recycle_every })
    }

    /// One call; the body of a 200, or why there is none.
    pub(crate) async fn call(
        &self,
        endpoint: &Endpoint,
        request: &[u8],
        id: &str,
        number: u32,
        deadline: Duration,
    ) -> Result<Vec<u8>, CallFailure> {
        let call = self
            .client()?
            .post(endpoint.url.clone())
            .headers(self.headers.clone())
            .header(REQUEST_ID_HEADER, request_id(id, number))
            .body(request.to_vec());
        let exchange = async {
            let response = call.send().await.map_err(|error| broken(&error))?;
            match response.status() {
                StatusCode::OK => match read(response, MAX_BODY_BYTES).await? {
                    Body::Whole(body) => Ok(self.without_key(body)),
                    Body::Beginning(_) => {
                        let message = format!("the answer is larger than {MAX_BODY_BYTES} bytes");
                        Err(CallFailure::new(FailureClass::Malformed, message))
                    }
                },
                status => Err(self.refused(status, response).await),
            }
        };
        timeout(deadline, exchange).await.unwrap_or_else(|_| {
            let message = format!("no complete answer within {:.0?}", deadline);
            Err(CallFailure { may_be_billed: true, ..CallFailure::new(FailureClass::Timeout, message) })
        })
    }

    async fn refused(&self, status: StatusCode, response: Response) -> CallFailure {
        let headers = response.headers().clone();
        let (Body::Whole(body) | Body::Beginning(body)) =
            read(response, MAX_ERROR_BYTES).await.unwrap_or(Body::Whole(Vec::new()));
        refusal(status, &headers, &self.without_key(body))
    }

    /// What a server sent, without the key it may have repeated: it would be kept in files.
    fn without_key(&self, mut body: Vec<u8>) -> Vec<u8> {
        let key = self.key.as_ref().map_or("", |key| key.expose_secret().trim()).as_bytes();
        if key.len() < LEAST_KEY_BYTES {
            return body;
        }
        let mut from = 0;
        while let Some(at) = memmem::find(&body[from..], key) {
            body[from + at..from + at + key.len()].fill(b'*');
            from += at + key.len();
        }
        body
    }

    fn client(&self) -> Result<Client, CallFailure> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        if self.recycle_every > 0 && number > 0 && number.is_multiple_of(self.recycle_every) {
            let fresh = build(self.connections)
                .map_err(|error| CallFailure::new(FailureClass::Network, format!("{error:#}")))?;
            *self.client.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        }
        Ok(self.client.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn build(connections: usize) -> anyhow::Result<Client> {
    Client::builder()
        .user_agent(concat!("shelfmill/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_max_idle_per_host(connections)
        .redirect(Policy::none())
        .build()
        .context("cannot make an HTTP client")
}

/// What the ledger calls a server that is asked this question: what it refused of another need not hold.
fn name_of(url: &Url, job: &Job) -> String {
    let JobFingerprint { prompt, schema, model } = job.fingerprint();
    let way = format!("{:?}", job.llm.structured);
    let parts = [url.as_str(), &job.llm.model, &way, &prompt, &schema, &model];
    fingerprint(&parts.map(str::as_bytes))
}

/// Names the product and the call, for the provider's support and for the simulator.
fn request_id(id: &str, number: u32) -> String {
    let id = utf8_percent_encode(id, NON_ALPHANUMERIC).to_string();
    if id.len() > MAX_REQUEST_ID_BYTES {
        format!("{:?}/{number}", IdHash::of(&id))
    } else {
        format!("{id}/{number}")
    }
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
