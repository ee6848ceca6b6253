//! One request to one response.
//!
//! The order of a call is fixed: it is received and counted, then it passes the gates ([`crate::gates`]), then its fault
//! is chosen, then it waits, then it is answered. Refusals come before the wait because a provider does not think about
//! what it refuses.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::body::ReplyBody;
use crate::completion::{Asked, Completed, complete, models};
use crate::contract::Contracts;
use crate::dice::{Dice, digest};
use crate::faults::Fault;
use crate::gates::Gates;
use crate::reply::{self, ApiError, json};
use crate::request::{CallId, ChatRequest};
use crate::stats::{Call, Limited, Stats};

const MAX_REQUEST_BYTES: usize = 32 * 1024 * 1024;

/// Of a request that is too large, this much is read before it is told so: a client that is still sending when the
/// connection closes may never see the answer.
const MAX_DRAINED_BYTES: usize = 64 * 1024 * 1024;

const CLIENT_REQUEST_ID: &str = "x-client-request-id";

/// Kept apart so that the fault of a call says nothing about its latency or its answer.
const FAULT_SALT: u64 = 0xfa;
const LATENCY_SALT: u64 = 0x1a;
const ERROR_SALT: u64 = 0xe5;

pub(crate) struct Service {
    config: Arc<Config>,
    contracts: Contracts,
    gates: Gates,
    hang_products: HashSet<String>,
    forbid_products: HashSet<String>,
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
        let config = Arc::new(config);
        Ok(Self {
            contracts: Contracts::new()?,
            gates: Gates::new(Arc::clone(&config), Instant::now()),
            hang_products: config.hang_products.iter().cloned().collect(),
            forbid_products: config.forbid_products.iter().cloned().collect(),
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
            _ => match self.gates.check_key(request.headers()) {
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
        let first = digest(product, &number.to_le_bytes());
        // Each turn of a conversation meets its own fault, also where the client does not number them apart.
        let id = match parsed.as_ref().map_or(0, ChatRequest::turns) {
            0 => first,
            turns => digest(first, &turns.to_le_bytes()),
        };
        let mut call = self.stats.receive(&call_id.product);
        if let Ok(request) = &parsed {
            call.shows(request.images);
            self.stats.asked_of(&request.asked_model());
        }

        let (told, admitted) = self.gates.admit(&head.headers, parsed, &mut call);
        let mut response = match admitted {
            Ok(request) => self.answer(&request, &call_id.product, id, call).await?,
            Err(error) => hold(error.into_response(), call),
        };
        told.add_to(&mut response);
        Ok((id, response))
    }

    async fn answer(
        &self,
        request: &ChatRequest<'_>,
        product: &str,
        id: u64,
        call: Call,
    ) -> Result<Response<ReplyBody>, HungUp> {
        if self.forbid_products.contains(product) {
            call.rejected();
            let text = "Request blocked by the firewall of the simulator.";
            return Ok(hold(ApiError::new(StatusCode::FORBIDDEN, "forbidden", text).into_response(), call));
        }
        let fault = if self.hang_products.contains(product) {
            Some(Fault::Hung)
        } else {
            self.config.faults.choose(&mut Dice::new(id ^ FAULT_SALT))
        };
        if let Some(fault) = fault {
            call.met(fault);
        }
        match fault {
            Some(Fault::RateLimited) => {
                let text = "Rate limit reached for simulated (a simulated fault). Please try again in 1s.";
                return Ok(hold(ApiError::rate_limited(text).retry_after(1).into_response(), call));
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
        let room = self.config.context_window.map(|window| window.saturating_sub(request.prompt_tokens));
        let ceiling = request.ceiling.into_iter().chain(room).min();
        let asked = Asked { request, product, id, fault, ceiling };
        let Completed { body, usage, at_ceiling } = match complete(&self.contracts, self.config.seed, &asked)
        {
            Ok(completed) => completed,
            Err(error) => {
                call.rejected();
                return Ok(hold(error.into_response(), call));
            }
        };
        let delay = self.delay(id);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let body = Bytes::from(body);
        let body = match fault {
            Some(Fault::ServerError) => return Ok(hold(server_error(id).into_response(), call)),
            Some(Fault::CutOff) => ReplyBody::cut_off(body, usage, call),
            None | Some(Fault::Prose) if at_ceiling => {
                call.limited(Limited::AtCeiling);
                ReplyBody::spoiled(body, usage, call)
            }
            None | Some(Fault::Prose) => ReplyBody::answer(body, usage, call),
            Some(_) => ReplyBody::spoiled(body, usage, call),
        };
        Ok(reply::respond(StatusCode::OK, body))
    }

    fn delay(&self, id: u64) -> Duration {
        let Config { latency, jitter, .. } = *self.config;
        if jitter.is_zero() {
            return latency;
        }
        let share = Dice::new(id ^ LATENCY_SALT).share();
        (latency + jitter.mul_f64(2.0 * share)).saturating_sub(jitter)
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
