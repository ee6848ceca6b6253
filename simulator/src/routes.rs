//! One request to one response.
//!
//! The order of a call is fixed: it is received and counted, then the key, the limit and the request are checked, then
//! its fault is chosen, then it waits, then it is answered. Refusals come before the wait because a provider does not
//! think about what it refuses.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{ALLOW, AUTHORIZATION, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::body::ReplyBody;
use crate::completion::{Asked, complete, models};
use crate::contract::Contracts;
use crate::dice::{Dice, digest};
use crate::faults::Fault;
use crate::limit::Limit;
use crate::reply::{self, ApiError, json};
use crate::request::{CallId, ChatRequest};
use crate::stats::{Call, Stats};

const MAX_REQUEST_BYTES: usize = 4 * 1024 * 1024;

/// Of a request that is too large, this much is read before it is told so: a client that is still sending when the
/// connection closes may never see the answer.
const MAX_DRAINED_BYTES: usize = 64 * 1024 * 1024;

const CLIENT_REQUEST_ID: &str = "x-client-request-id";

/// Kept apart so that the fault of a call says nothing about its latency or its answer.
const FAULT_SALT: u64 = 0xfa;
const LATENCY_SALT: u64 = 0x1a;
const ERROR_SALT: u64 = 0xe5;

pub(crate) struct Service {
    config: Config,
    contracts: Contracts,
    limit: Option<Limit>,
    stats: Arc<Stats>,
    /// Numbers the calls whose client does not.
    unnumbered_calls: AtomicU64,
    other_requests: AtomicU64,
    stopping: CancellationToken,
}

/// The connection is to be closed without a response.
#[derive(Debug)]
pub(crate) struct HungUp;

impl std::fmt::Display for HungUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("hung up without an answer")
    }
}

impl std::error::Error for HungUp {}

impl Service {
    pub(crate) fn new(config: Config, stopping: CancellationToken) -> anyhow::Result<Self> {
        Ok(Self {
            contracts: Contracts::new()?,
            limit: config.max_requests_per_second.map(|limit| Limit::new(limit, Instant::now())),
            stats: Stats::new(config.count_by_product),
            unnumbered_calls: AtomicU64::new(0),
            other_requests: AtomicU64::new(0),
            stopping,
            config,
        })
    }

    pub(crate) async fn respond(&self, request: Request<Incoming>) -> Result<Response<ReplyBody>, HungUp> {
        let began = Instant::now();
        let (id, mut response) = match (request.uri().path(), request.method()) {
            ("/v1/chat/completions" | "/chat/completions", &Method::POST) => self.chat(request).await?,
            _ => (self.other_id(), self.other(&request)),
        };
        reply::add_request_id(&mut response, id, began.elapsed());
        Ok(response)
    }

    fn other_id(&self) -> u64 {
        digest(self.config.seed, &self.other_requests.fetch_add(1, Relaxed).to_le_bytes())
    }

    fn other(&self, request: &Request<Incoming>) -> Response<ReplyBody> {
        let (path, method) = (request.uri().path(), request.method());
        let allowed = match path {
            "/v1/models" | "/models" | "/stats" | "/healthz" => Method::GET,
            "/v1/chat/completions" | "/chat/completions" | "/reset" => Method::POST,
            _ => {
                let text = format!("Invalid URL ({method} {path})");
                return ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", text).into_response();
            }
        };
        if *method != allowed {
            return wrong_method(method, path, allowed.as_str());
        }
        match path {
            "/healthz" => reply::text("ok"),
            "/stats" => {
                let query = request.uri().query().unwrap_or_default();
                let brief = query.split('&').any(|option| option == "by_product=false");
                json(StatusCode::OK, &self.stats.report(!brief))
            }
            "/reset" => {
                self.stats.reset();
                json(StatusCode::OK, &self.stats.report(false))
            }
            _ => match self.check_key(request.headers()) {
                Ok(()) => json(StatusCode::OK, &models()),
                Err(error) => error.into_response(),
            },
        }
    }

    async fn chat(&self, request: Request<Incoming>) -> Result<(u64, Response<ReplyBody>), HungUp> {
        let (head, body) = request.into_parts();
        let body = match read(body).await? {
            Ok(body) => body,
            Err(too_large) => return Ok((self.other_id(), too_large.into_response())),
        };
        let parsed = ChatRequest::parse(&body);
        let call_id =
            head.headers.get(CLIENT_REQUEST_ID).map(|header| CallId::from_header(header.as_bytes()));
        let call_id = call_id.unwrap_or_else(|| {
            CallId::from_prompt(parsed.as_ref().map_or(&*body, |request| request.prompt.as_bytes()))
        });
        let number = call_id.number.unwrap_or_else(|| self.unnumbered_calls.fetch_add(1, Relaxed));
        let product = digest(self.config.seed, call_id.product.as_bytes());
        let id = digest(product, &number.to_le_bytes());
        let call = self.stats.receive(&call_id.product);

        let checked = self.check_key(&head.headers);
        let verdict = match &checked {
            Ok(()) => self.limit.as_ref().map(|limit| limit.take(Instant::now())),
            Err(_) => None,
        };
        let mut response = match (checked, verdict.filter(|verdict| !verdict.granted), parsed) {
            (Err(error), _, _) | (Ok(()), None, Err(error)) => {
                call.rejected();
                hold(error.into_response(), call)
            }
            (Ok(()), Some(verdict), _) => {
                call.over_limit();
                let text = "Rate limit reached for simulated on requests per second. Please try again later.";
                let mut response = ApiError::rate_limited(text).into_response();
                reply::add_retry_after(&mut response, verdict.retry_after_seconds());
                hold(response, call)
            }
            (Ok(()), None, Ok(request)) => self.answer(&request, &call_id.product, id, call).await?,
        };
        if let Some(verdict) = verdict {
            reply::add_limit(&mut response, &verdict);
        }
        Ok((id, response))
    }

    async fn answer(
        &self,
        request: &ChatRequest<'_>,
        product: &str,
        id: u64,
        call: Call,
    ) -> Result<Response<ReplyBody>, HungUp> {
        let fault = self.config.faults.choose(&mut Dice::new(id ^ FAULT_SALT));
        if let Some(fault) = fault {
            call.met(fault);
        }
        match fault {
            Some(Fault::RateLimited) => {
                let text = "Rate limit reached for simulated (a simulated fault). Please try again in 1s.";
                let mut response = ApiError::rate_limited(text).into_response();
                reply::add_retry_after(&mut response, 1);
                return Ok(hold(response, call));
            }
            Some(Fault::BadRequest) => {
                let error = ApiError::invalid_request("Invalid value for 'messages' (a simulated fault).");
                return Ok(hold(error.about("messages", "invalid_value").into_response(), call));
            }
            Some(Fault::Hung) => {
                self.stopping.cancelled().await;
                return Err(HungUp);
            }
            _ => {}
        }
        let asked = Asked { request, product, id, fault };
        let body = match complete(&self.contracts, self.config.seed, &asked) {
            Ok(body) => Bytes::from(body),
            Err(error) => {
                call.rejected();
                return Ok(hold(error.into_response(), call));
            }
        };
        let delay = self.delay(id);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        Ok(match fault {
            None => reply::respond(StatusCode::OK, ReplyBody::answer(body, call)),
            Some(Fault::ServerError) => hold(server_error(id).into_response(), call),
            Some(Fault::CutOff) => reply::respond(StatusCode::OK, ReplyBody::cut_off(body, call)),
            Some(_) => hold(reply::respond(StatusCode::OK, ReplyBody::whole(body)), call),
        })
    }

    fn delay(&self, id: u64) -> Duration {
        let Config { latency, jitter, .. } = self.config;
        if jitter.is_zero() {
            return latency;
        }
        let share = Dice::new(id ^ LATENCY_SALT).share();
        (latency + jitter.mul_f64(2.0 * share)).saturating_sub(jitter)
    }

    fn check_key(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(wanted) = &self.config.api_key else {
            return Ok(());
        };
        let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let text = match given {
            Some(given) if given == wanted => return Ok(()),
            Some(_) => "Incorrect API key provided. The simulator was started with another one.",
            None => "You didn't provide an API key: send it as 'Authorization: Bearer <key>'.",
        };
        Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_request_error", text).coded("invalid_api_key"))
    }
}

/// The call stays in flight until the response has been sent.
fn hold(response: Response<ReplyBody>, call: Call) -> Response<ReplyBody> {
    response.map(|body| body.holding(call))
}

fn server_error(id: u64) -> ApiError {
    const ERRORS: [(StatusCode, &str); 3] = [
        (
            StatusCode::INTERNAL_SERVER_ERROR,
            "The server had an error while processing your request. Sorry about that!",
        ),
        (StatusCode::BAD_GATEWAY, "Bad gateway."),
        (StatusCode::SERVICE_UNAVAILABLE, "The engine is currently overloaded, please try again later."),
    ];
    let (status, text) = ERRORS[Dice::new(id ^ ERROR_SALT).below(3) as usize];
    ApiError::new(status, "server_error", text)
}

fn wrong_method(method: &Method, path: &str, allowed: &str) -> Response<ReplyBody> {
    let text = format!("Not allowed to {method} on {path}: use {allowed}.");
    let error = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", text);
    let mut response = error.coded("method_not_supported").into_response();
    if let Ok(allowed) = HeaderValue::from_str(allowed) {
        response.headers_mut().insert(ALLOW, allowed);
    }
    response
}

/// Fails when the client leaves while it is sending; the inner error is for a request beyond the limit.
async fn read(mut body: Incoming) -> Result<Result<Bytes, ApiError>, HungUp> {
    let mut whole = BytesMut::new();
    let mut size_bytes = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| HungUp)?.into_data() else {
            continue;
        };
        size_bytes += data.len();
        if size_bytes > MAX_DRAINED_BYTES {
            break;
        }
        if whole.is_empty() && body.is_end_stream() && size_bytes <= MAX_REQUEST_BYTES {
            // The usual request arrives in one piece and need not be copied.
            return Ok(Ok(data));
        }
        if size_bytes <= MAX_REQUEST_BYTES {
            whole.extend_from_slice(&data);
        }
    }
    if size_bytes > MAX_REQUEST_BYTES {
        let text = format!("The request is larger than the limit of {MAX_REQUEST_BYTES} bytes.");
        return Ok(Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", text)));
    }
    Ok(Ok(whole.freeze()))
}
