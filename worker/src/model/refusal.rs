//! What an error says: which class it is, how long to wait, and which of the request's parameters the server does not know.
//!
//! OpenAI's shape (`error.message`, `type`, `param`, `code`) is what servers mean to speak, and each speaks it its own way:
//! codes are words or statuses, vLLM has had the fields at the top, Azure nests a second code, OpenRouter puts the error of
//! the provider behind it into `metadata.raw`. So all of it is read into one form, and the rules look at codes first, at
//! the words of a message where there is no code, and at the status last. `worker/fixtures` has an example of each rule.

use std::time::Duration;

use reqwest::{
    StatusCode,
    header::{HeaderMap, RETRY_AFTER},
};
use serde_json::Value;
use shelfmill_pipeline::failure::FailureClass;

use super::{CallFailure, headers};

const RETRY_AFTER_MS_HEADER: &str = "retry-after-ms";
/// How much of what a server or the provider behind it says is put into a message.
const QUOTED_CHARS: usize = 300;

/// A part of the request that this server, or this model, does not take. Without it, it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unsupported {
    /// `response_format` of this type, or with this schema.
    ResponseFormat,
    /// `max_tokens`: it wants `max_completion_tokens`.
    MaxTokens,
    /// `max_completion_tokens`: it wants `max_tokens`.
    MaxCompletionTokens,
    /// Any temperature but the model's own.
    Temperature,
}

/// What an answer with another status than 200 says.
pub(crate) fn refusal(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> CallFailure {
    let text = String::from_utf8_lossy(body);
    let said = Said::of(&text);
    let message = if status.is_redirection() {
        format!("{status}: the server sends calls elsewhere, which is not followed; correct the model's URL")
    } else if status == StatusCode::NOT_FOUND && said.is_no_error {
        format!("{status}: {}; is the model's URL right?", said.told(&text))
    } else {
        format!("{status}: {}", said.told(&text))
    };
    said.failure(status.as_u16(), message, retry_after(headers), &text)
}

/// What an error inside a 200 says: a server had begun to answer when it happened. `error` is JSON.
pub(crate) fn error_inside(error: &str) -> CallFailure {
    let said = Said::of(&format!("{{\"error\":{error}}}"));
    let status = said.status.unwrap_or(StatusCode::BAD_GATEWAY.as_u16());
    let message = format!("the reply is an error: {}", said.told(error));
    said.failure(status, message, None, error)
}

/// An error in one form, whoever sent it.
#[derive(Default)]
struct Said {
    /// The body is not an error of an API: nothing, a page, something else.
    is_no_error: bool,
    message: Option<String>,
    /// The status that the body names.
    status: Option<u16>,
    /// Codes and types.
    codes: Vec<String>,
    param: Option<String>,
    metadata: Value,
    /// The message and what the provider behind it said, in lower case, to look for words in.
    words: String,
}

impl Said {
    fn of(body: &str) -> Self {
        let Ok(mut body) = serde_json::from_str::<Value>(body) else {
            return Self { is_no_error: true, ..Self::default() };
        };
        // Google's servers send a list of one.
        if let Some(first) = body.get_mut(0) {
            body = first.take();
        }
        let error = match body.get("error") {
            Some(error @ (Value::Object(_) | Value::String(_))) => error,
            _ => &body,
        };
        let word = |value: Option<&Value>| match value {
            Some(Value::String(word)) if !word.is_empty() => Some(word.clone()),
            Some(Value::Number(number)) => Some(number.to_string()),
            _ => None,
        };
        let sentence = |value: Option<&Value>| match value {
            None | Some(Value::Null) => None,
            Some(Value::String(sentence)) => Some(sentence.clone()).filter(|sentence| !sentence.is_empty()),
            Some(other) => Some(other.to_string()),
        };
        let inner = error.get("innererror").or_else(|| error.get("inner_error"));
        let metadata = error.get("metadata").cloned().unwrap_or_default();
        let codes: Vec<String> = [
            error.get("code"),
            error.get("type"),
            error.get("statusCode"),
            inner.and_then(|inner| inner.get("code")),
            metadata.get("error_type"),
        ]
        .into_iter()
        .filter_map(word)
        .collect();
        let message = error
            .as_str()
            .map(ToOwned::to_owned)
            .or_else(|| sentence(error.get("message")))
            .or_else(|| sentence(error.get("detail")));
        let upstream = sentence(metadata.get("raw")).unwrap_or_default();
        Self {
            is_no_error: message.is_none() && codes.is_empty(),
            status: codes.iter().find_map(|code| code.parse().ok().filter(|code| (400..600).contains(code))),
            param: word(error.get("param")),
            words: format!("{} {upstream}", message.as_deref().unwrap_or_default()).to_lowercase(),
            message,
            codes,
            metadata,
        }
    }

    fn failure(&self, status: u16, message: String, wait: Option<Duration>, raw: &str) -> CallFailure {
        let (class, unsupported) = self.classify(status);
        let wait = wait.or_else(|| self.wait()).filter(|_| class.is_retryable());
        let failure = CallFailure::new(class, message).with_raw(raw);
        CallFailure { retry_after: wait, unsupported, is_overload: matches!(status, 503 | 529), ..failure }
    }

    fn classify(&self, status: u16) -> (FailureClass, Option<Unsupported>) {
        let class = if self.limit_source() == "openrouter_in_flight_budget" {
            // The account has money, but calls under way have spoken for it.
            FailureClass::RateLimited
        } else if self.is_out_of_money(status) {
            FailureClass::QuotaExhausted
        } else if status == 401 || self.has_code(&["invalid_api_key"]) {
            FailureClass::Unauthorized
        } else if self.is_filtered() {
            FailureClass::ContentFiltered
        } else if self.is_too_long(status) {
            FailureClass::ContextTooLong
        } else if let Some(unsupported) = self.unsupported(status) {
            return (FailureClass::ModelRefused, Some(unsupported));
        } else if self.is_about_no_model(status) {
            FailureClass::ModelNotFound
        } else {
            match status {
                403 => FailureClass::Unauthorized,
                408 => FailureClass::Timeout,
                429 => FailureClass::RateLimited,
                _ if self.has_code(&["rate_limit_exceeded"]) => FailureClass::RateLimited,
                409 | 425 | 500.. => FailureClass::ServerError,
                _ => FailureClass::ModelRefused,
            }
        };
        (class, None)
    }

    fn is_out_of_money(&self, status: u16) -> bool {
        let sources = [
            "openrouter_credits",
            "openrouter_key_limit",
            "openrouter_guardrail_budget",
            "openrouter_workspace_budget",
        ];
        status == 402
            || self.has_code(&["insufficient_quota"])
            || sources.contains(&self.limit_source())
            || self.has_words(&["out of call volume quota"])
    }

    fn is_filtered(&self) -> bool {
        let codes = ["content_filter", "ResponsibleAIPolicyViolation", "content_policy_violation"];
        self.has_code(&codes)
            // OpenAI's reasoning models; the same code is used for prompts that are wrong in form.
            || (self.has_code(&["invalid_prompt"]) && self.has_words(&["usage policy", "safety"]))
            || ["flagged_input", "reasons"].into_iter().any(|key| self.metadata.get(key).is_some())
    }

    fn is_too_long(&self, status: u16) -> bool {
        let words = [
            "maximum context length",
            "context_length_exceeded",
            "exceeds the available context size",
            "exceeds the context length",
            "exceed context window",
            "input tokens exceed the configured limit",
            // vLLM of old: what the prompt leaves of the window for an answer.
            "max_tokens must be at least 1, got -",
        ];
        self.has_code(&["context_length_exceeded", "exceed_context_size_error"])
            || (!matches!(status, 403 | 404) && self.has_words(&words))
            // Larger than all the tokens of a minute: to wait would be to wait for ever.
            || (matches!(status, 413 | 429) && self.has_words(&["request too large"]))
    }

    fn is_about_no_model(&self, status: u16) -> bool {
        let words = ["model not found", "is not a valid model id", "invalid model name"];
        status == 404
            || self.has_code(&["model_not_found"])
            || (matches!(status, 400 | 422) && self.has_words(&words))
    }

    /// What of the request is not known here. A schema that a server cannot work with counts as its format.
    fn unsupported(&self, status: u16) -> Option<Unsupported> {
        if self.has_words(&["no endpoints found that can handle the requested parameters"]) {
            return Some(Unsupported::ResponseFormat);
        }
        let schema = [
            "json schema conversion failed",
            "failed to parse grammar",
            "not supported by xgrammar",
            "invalid schema for response_format",
        ];
        // llama.cpp has called a schema it cannot work with an error of its own.
        if matches!(status, 400 | 422 | 500) && self.has_words(&schema) {
            return Some(Unsupported::ResponseFormat);
        }
        if !matches!(status, 400 | 422) {
            return None;
        }
        let param = self.param.as_deref().unwrap_or_default();
        if param.starts_with("response_format") {
            return Some(Unsupported::ResponseFormat);
        }
        let refusing = [
            "not supported",
            "unsupported",
            "does not support",
            "not permitted",
            "unrecognized request argument",
            "unavailable",
            "enabled only for",
            "'response_format.type' must be",
            "only 1 is allowed",
        ];
        let codes = ["unsupported_parameter", "unsupported_value", "unknown_parameter"];
        if !self.has_code(&codes) && !self.has_words(&refusing) {
            return None;
        }
        let known = [
            ("response_format", Unsupported::ResponseFormat),
            ("response format", Unsupported::ResponseFormat),
            ("max_completion_tokens", Unsupported::MaxCompletionTokens),
            ("max_tokens", Unsupported::MaxTokens),
            ("temperature", Unsupported::Temperature),
        ];
        if !param.is_empty() {
            return known.into_iter().find(|(name, _)| *name == param).map(|(_, unsupported)| unsupported);
        }
        // "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead": the first is meant.
        known
            .into_iter()
            .filter_map(|(name, unsupported)| Some((self.words.find(name)?, unsupported)))
            .min_by_key(|(place, _)| *place)
            .map(|(_, unsupported)| unsupported)
    }

    fn limit_source(&self) -> &str {
        self.metadata.get("limit_source").and_then(Value::as_str).unwrap_or_default()
    }

    fn has_code(&self, codes: &[&str]) -> bool {
        self.codes.iter().any(|said| codes.iter().any(|code| said.eq_ignore_ascii_case(code)))
    }

    fn has_words(&self, words: &[&str]) -> bool {
        words.iter().any(|words| self.words.contains(words))
    }

    /// The wait that the body names: OpenRouter passes headers on in it, OpenAI and Azure write a sentence.
    fn wait(&self) -> Option<Duration> {
        let header = |name: &str| {
            let headers = self.metadata.get("headers")?.as_object()?;
            let value = headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?.1;
            headers::reset(&value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned))
        };
        header("retry-after").or_else(|| header("x-ratelimit-reset")).or_else(|| wait_in_words(&self.words))
    }

    /// What the server said, for people; `body` is for when that is in no form known.
    fn told(&self, body: &str) -> String {
        let quoted = |text: &str| text.trim().chars().take(QUOTED_CHARS).collect::<String>();
        let Some(message) = self.message.as_deref() else {
            return match body.trim() {
                "" => "the server gives no reason".to_owned(),
                page if page.starts_with('<') => match title(page) {
                    Some(title) => format!("a web page, not an API's answer: {}", quoted(title)),
                    None => "a web page, not an API's answer".to_owned(),
                },
                other => quoted(other),
            };
        };
        match self.metadata.get("raw") {
            Some(Value::String(raw)) if !raw.is_empty() => format!("{}: {}", message.trim(), quoted(raw)),
            _ => message.trim().to_owned(),
        }
    }
}

fn title(page: &str) -> Option<&str> {
    let from = page.find("<title>")? + "<title>".len();
    let title = &page[from..];
    Some(&title[..title.find("</title>")?])
}

/// "Please try again in 6m0s.", "Please retry after 9 seconds."
fn wait_in_words(words: &str) -> Option<Duration> {
    let after = ["try again in ", "retry after "]
        .into_iter()
        .find_map(|before| words.find(before).map(|at| &words[at + before.len()..]))?;
    let mut rest = after.split_whitespace();
    let amount = rest.next()?.trim_end_matches(['.', ',']);
    let unit = rest.next().unwrap_or_default();
    let unit = match unit.trim_end_matches(['.', ',', ';']).trim_end_matches('s') {
        "second" => "s",
        "minute" => "m",
        "hour" => "h",
        "day" => "d",
        "millisecond" => "ms",
        _ => "",
    };
    headers::duration(amount).or_else(|| headers::duration(&format!("{amount}{unit}")))
}

/// What the provider asks for: milliseconds, seconds, or a date.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    if let Some(ms) = text(RETRY_AFTER_MS_HEADER).and_then(|ms| ms.parse::<f64>().ok()) {
        return Duration::try_from_secs_f64(ms / 1_000.0).ok();
    }
    let asked = text(RETRY_AFTER.as_str())?;
    if let Ok(seconds) = asked.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let date = jiff::fmt::rfc2822::parse(asked).ok()?.timestamp();
    Duration::try_from(date.duration_since(jiff::Timestamp::now())).ok()
}

#[cfg(test)]
mod tests;
