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
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), r#type: kind, param: None, code: None }
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

    pub(crate) fn into_response(self) -> Response<ReplyBody> {
        #[derive(Serialize)]
        struct Wrapped {
            error: ApiError,
        }
        json(self.status, &Wrapped { error: self })
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

pub(crate) fn add_retry_after(response: &mut Response<ReplyBody>, seconds: u64) {
    insert(response, RETRY_AFTER, &seconds.to_string());
}

pub(crate) fn add_limit(response: &mut Response<ReplyBody>, verdict: &Verdict) {
    const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit-requests");
    const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining-requests");
    const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset-requests");
    insert(response, LIMIT, &verdict.limit.to_string());
    insert(response, REMAINING, &verdict.remaining.to_string());
    insert(response, RESET, &provider_duration(verdict.reset));
}

fn insert(response: &mut Response<ReplyBody>, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}
