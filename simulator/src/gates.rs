//! What a call must pass before a model would see it, in the order of a provider: key, quota, places, requests, the
//! request itself, tokens.
//!
//! A call that is refused takes nothing from the gates behind the one that refused it: a wrong request costs no tokens
//! of the limit, and one without a key nothing at all.

use std::sync::Arc;

use hyper::header::{AUTHORIZATION, HeaderMap};
use hyper::{Response, StatusCode};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::body::ReplyBody;
use crate::limit::{Limit, Verdict};
use crate::reply::{self, ApiError};
use crate::request::{ChatRequest, Format};
use crate::stats::{Call, Limited};
use crate::{Config, MODEL, Structured};

const OVERLOADED_RETRY_AFTER_SECONDS: u64 = 1;

pub(crate) struct Gates {
    config: Arc<Config>,
    /// One for each call that may be in flight.
    places: Option<Arc<Semaphore>>,
    requests: Option<Limit>,
    tokens: Option<Limit>,
}

/// What the limits said, for the headers of the response.
#[derive(Default)]
pub(crate) struct Told {
    requests: Option<Verdict>,
    tokens: Option<Verdict>,
}

struct Refusal {
    error: ApiError,
    /// `None` when the request itself is wrong.
    limited: Option<Limited>,
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self { error, limited: None }
    }
}

impl Gates {
    pub(crate) fn new(config: Arc<Config>, now: Instant) -> Self {
        Self {
            places: config
                .overloaded_after
                .map(|places| Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS)))),
            requests: config.max_requests_per_second.map(|limit| Limit::per_second(limit, now)),
            tokens: config.max_tokens_per_minute.map(|limit| Limit::per_minute(limit, now)),
            config,
        }
    }

    /// Counts a refusal; the error is the response.
    pub(crate) fn admit<'a>(
        &self,
        headers: &HeaderMap,
        parsed: Result<ChatRequest<'a>, ApiError>,
        call: &mut Call,
    ) -> (Told, Result<ChatRequest<'a>, ApiError>) {
        let mut told = Told::default();
        let admitted = self.pass(headers, parsed, call, &mut told).map_err(|refusal| {
            match refusal.limited {
                Some(limited) => call.limited(limited),
                None => call.rejected(),
            }
            refusal.error
        });
        if !self.config.limit_headers {
            told = Told::default();
        }
        (told, admitted)
    }

    fn pass<'a>(
        &self,
        headers: &HeaderMap,
        parsed: Result<ChatRequest<'a>, ApiError>,
        call: &mut Call,
        told: &mut Told,
    ) -> Result<ChatRequest<'a>, Refusal> {
        self.check_key(headers)?;
        if self.config.quota_after.is_some_and(|most| call.number() > most) {
            return Err(Refusal { error: out_of_quota(), limited: Some(Limited::OutOfQuota) });
        }
        if let Some(places) = &self.places {
            let Ok(place) = Arc::clone(places).try_acquire_owned() else {
                return Err(Refusal { error: overloaded(), limited: Some(Limited::Overloaded) });
            };
            call.take_place(place);
        }
        if let Some(limit) = &self.requests {
            let verdict = told.requests.insert(limit.take(1, Instant::now()));
            if !verdict.granted {
                let text = "Rate limit reached for simulated on requests per second. Please try again later.";
                let error = ApiError::rate_limited(text).retry_after(verdict.retry_after_seconds());
                return Err(Refusal { error, limited: Some(Limited::OverLimit) });
            }
        }
        let request = parsed?;
        self.check_model(&request)?;
        self.check_format(&request)?;
        self.check_size(&request)?;
        if let Some(limit) = &self.tokens {
            let wanted = request.prompt_tokens.saturating_add(request.ceiling.unwrap_or(0));
            let verdict = told.tokens.insert(limit.take(wanted, Instant::now()));
            if !verdict.granted {
                let error = over_token_limit(verdict, wanted);
                return Err(Refusal { error, limited: Some(Limited::OverTokenLimit) });
            }
        }
        Ok(request)
    }

    pub(crate) fn check_key(&self, headers: &HeaderMap) -> Result<(), ApiError> {
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

    fn check_model(&self, request: &ChatRequest<'_>) -> Result<(), ApiError> {
        match &self.config.unknown_model {
            Some(unknown) if request.asks_for_model(unknown) => {
                let text = format!("The model `{unknown}` does not exist or you do not have access to it.");
                let error = ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", text);
                Err(error.coded("model_not_found"))
            }
            _ => Ok(()),
        }
    }

    fn check_format(&self, request: &ChatRequest<'_>) -> Result<(), ApiError> {
        let (name, more) = match (&request.format, self.config.structured) {
            (Format::Text, _) | (_, Structured::JsonSchema) | (Format::Object, Structured::JsonObject) => {
                return Ok(());
            }
            (Format::Object, Structured::None) => ("json_object", ""),
            (Format::Schema { .. }, Structured::JsonObject | Structured::None) => {
                const GUIDE: &str = " Learn more about supported models at the Structured Outputs guide: \
                                     https://platform.openai.com/docs/guides/structured-outputs";
                ("json_schema", GUIDE)
            }
        };
        let text = format!(
            "Invalid parameter: 'response_format' of type '{name}' is not supported with this model.{more}"
        );
        Err(ApiError::invalid_request(text).about_uncoded("response_format"))
    }

    fn check_size(&self, request: &ChatRequest<'_>) -> Result<(), ApiError> {
        let prompt = request.prompt_tokens;
        let wanted = prompt.saturating_add(request.ceiling.unwrap_or(0));
        let Some(window) = self.config.context_window.filter(|window| wanted > *window) else {
            return Ok(());
        };
        let told = match request.ceiling {
            Some(ceiling) => format!(
                "you requested {wanted} tokens ({prompt} in the messages, {ceiling} in the completion). \
                 Please reduce the length of the messages or completion."
            ),
            None => format!(
                "your messages resulted in {prompt} tokens. Please reduce the length of the messages."
            ),
        };
        let text = format!("This model's maximum context length is {window} tokens. However, {told}");
        Err(ApiError::invalid_request(text).about("messages", "context_length_exceeded"))
    }
}

impl Told {
    pub(crate) fn add_to(&self, response: &mut Response<ReplyBody>) {
        for (names, verdict) in [(reply::REQUEST_LIMIT, &self.requests), (reply::TOKEN_LIMIT, &self.tokens)] {
            if let Some(verdict) = verdict {
                reply::add_limit(response, names, verdict);
            }
        }
    }
}

fn out_of_quota() -> ApiError {
    let text = "You exceeded your current quota, please check your plan and billing details. \
                For more information on this error, read the docs: \
                https://platform.openai.com/docs/guides/error-codes/api-errors.";
    ApiError::new(StatusCode::TOO_MANY_REQUESTS, "insufficient_quota", text).coded("insufficient_quota")
}

fn overloaded() -> ApiError {
    let text = "The engine is currently overloaded, please try again later.";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", text)
        .retry_after(OVERLOADED_RETRY_AFTER_SECONDS)
}

fn over_token_limit(verdict: &Verdict, wanted: u64) -> ApiError {
    let Verdict { limit, remaining, .. } = *verdict;
    let error =
        |text| ApiError::new(StatusCode::TOO_MANY_REQUESTS, "tokens", text).coded("rate_limit_exceeded");
    if wanted > limit {
        return error(format!(
            "Request too large for {MODEL} on tokens per min (TPM): Limit {limit}, Requested {wanted}. \
             The input or output tokens must be reduced in order to run successfully."
        ));
    }
    let (used, seconds) = (limit - remaining, verdict.retry_after_seconds());
    error(format!(
        "Rate limit reached for {MODEL} on tokens per min (TPM): Limit {limit}, Used {used}, \
         Requested {wanted}. Please try again in {seconds}s."
    ))
    .retry_after(seconds)
}
