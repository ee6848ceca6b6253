//! Responses in OpenAI's form: every one carries a request id and the time it took, every error the same four members.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde::Serialize;

use crate::body::ReplyBody;
use crate::limit::{Verdict, provider_duration};

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// An error as the client sees it.
#[derive(Debug, Serialize)]
pub(crate) struct ApiError {
    #[serde(skip)]
    pub(crate) status: StatusCode,
    message: String,
    r#type: &'static str,
    param: Option<&'static str>,
    code: Option<&'static str>,
    #[serde(skip)]
    retry_after_seconds: Option<u64>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            r#type: kind,
            param: None,
            code: None,
            retry_after_seconds: None,
        }
    }

    pub(crate) fn invalid_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    pub(crate) fn about(self, param: &'static str, code: &'static str) -> Self {
        Self { param: Some(param), ..self.coded(code) }
    }

    pub(crate) fn coded(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    pub(crate) fn rate_limited(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "requests", message).coded("rate_limit_exceeded")
    }

    /// Without a code, as OpenAI tells of parameters a model does not know.
    pub(crate) fn about_uncoded(self, param: &'static str) -> Self {
        Self { param: Some(param), ..self }
    }

    /// Sent as `Retry-After`.
    pub(crate) fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after_seconds: Some(seconds), ..self }
    }

    pub(crate) fn into_response(self) -> Response<ReplyBody> {
        #[derive(Serialize)]
        struct Wrapped {
            error: ApiError,
        }
        let (status, retry_after) = (self.status, self.retry_after_seconds);
        let mut response = json(status, &Wrapped { error: self });
        if let Some(seconds) = retry_after {
            insert(&mut response, RETRY_AFTER, &seconds.to_string());
        }
        response
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.status.as_u16(), self.message)
    }
}

pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> Response<ReplyBody> {
    // Our own types always serialise; an empty body would still carry the status.
    respond(status, ReplyBody::whole(serde_json::to_vec(body).unwrap_or_default().into()))
}

pub(crate) fn text(text: &'static str) -> Response<ReplyBody> {
    let mut response = respond(StatusCode::OK, ReplyBody::whole(Bytes::from_static(text.as_bytes())));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

pub(crate) fn respond(status: StatusCode, body: ReplyBody) -> Response<ReplyBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

pub(crate) fn add_request_id(response: &mut Response<ReplyBody>, id: u64, took: Duration) {
    const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
    const PROCESSING_MS: HeaderName = HeaderName::from_static("openai-processing-ms");
    insert(response, REQUEST_ID, &format!("req_{id:032x}"));
    insert(response, PROCESSING_MS, &took.as_millis().to_string());
}

/// The headers that tell of a limit: its size, what is left of it, and when it is whole again.
pub(crate) const REQUEST_LIMIT: [&str; 3] =
    ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"];
pub(crate) const TOKEN_LIMIT: [&str; 3] =
    ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"];

pub(crate) fn add_limit(response: &mut Response<ReplyBody>, names: [&'static str; 3], verdict: &Verdict) {
    let [limit, remaining, reset] = names.map(HeaderName::from_static);
    insert(response, limit, &verdict.limit.to_string());
    insert(response, remaining, &verdict.remaining.to_string());
    insert(response, reset, &provider_duration(verdict.reset));
}

fn insert(response: &mut Response<ReplyBody>, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}
