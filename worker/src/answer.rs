//! What a model's reply says: first whether it is whole, then whether it is JSON, then whether it is what was
//! asked for. A reply that is not whole is never looked into: half an analysis can be valid JSON. What is broken is never
//! mended; that is for the model to do, when it is asked again.
//!
//! A reply can be made to hurt. Of its choices only the first is built; an answer is refused by its size before it is
//! parsed and after it is written again (`1e15` becomes 18 bytes), and by its depth, which would keep others from
//! reading the results. Each byte is looked at a fixed number of times, whatever it is (see [`json`]).

use serde_json::{Value, value::RawValue};
use shelfmill_pipeline::{
    failure::FailureClass,
    job::AnswerSchema,
    record::{MAX_ANALYSIS_BYTES, MAX_NESTING},
};

use crate::model::{CallFailure, error_inside};

mod json;
mod reply;

pub(crate) use reply::Usage;
use reply::{Completion, Content};

/// The longest name of a model; it is in every line and once more in the summary.
const MAX_MODEL_BYTES: usize = 200;
/// The longest error inside a 200 that is read; more of it tells nothing new.
const MAX_ERROR_BYTES: usize = 64 * 1024;

/// A chat completion, as far as it matters here.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) model: Option<String>,
    /// What the provider counted, if it says so.
    pub(crate) usage: Option<Usage>,
    content: String,
    refusal: Option<String>,
    finish_reason: Option<String>,
    /// What the reply says instead of an answer, or in the middle of one; JSON.
    error: Option<String>,
}

/// Why the model stopped.
enum Finish {
    /// It says that it had said all, or nothing.
    Whole,
    Truncated,
    Withheld,
    Broken,
}

impl Finish {
    /// OpenAI's names, and those that Gemini, Anthropic and Mistral have through compatible APIs.
    fn of(reason: &str) -> Self {
        match reason.to_ascii_lowercase().as_str() {
            "length" | "max_tokens" | "model_length" | "model_context_window_exceeded" => Self::Truncated,
            "content_filter" | "safety" | "recitation" | "prohibited_content" | "blocklist" | "refusal" => {
                Self::Withheld
            }
            "error" => Self::Broken,
            _ => Self::Whole,
        }
    }
}

impl Answer {
    /// Reads the body of a 200. An error in it is told by [`Self::analysis`], so that what was used still counts.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, CallFailure> {
        let completion: Completion<'_> = serde_json::from_slice(body).map_err(|error| {
            let what = if body.trim_ascii_start().starts_with(b"<") { " but a web page" } else { "" };
            let message = format!("the reply is not a chat completion{what}: {error}");
            CallFailure::new(FailureClass::Malformed, message).with_raw(&String::from_utf8_lossy(body))
        })?;
        let (choice_error, finish_reason, message) = completion
            .choice
            .map_or((None, None, None), |choice| (choice.error, choice.finish_reason, choice.message));
        let (Content { text, refusal: in_parts }, refusal) =
            message.map_or((Content::default(), None), |message| (message.content, message.refusal));
        let error = completion.error.or(choice_error).map(|error| error.get().to_owned());
        Ok(Self {
            model: completion.model.map(|mut model| {
                model.truncate(model.floor_char_boundary(MAX_MODEL_BYTES));
                model
            }),
            usage: completion.usage,
            content: text,
            refusal: refusal.or(in_parts).filter(|refusal| !refusal.is_empty()),
            finish_reason,
            error: error.filter(|error| !matches!(error.as_str(), "{}" | "\"\"" | "false")),
        })
    }

    /// The analysis, one line of JSON that the schema allows.
    pub(crate) fn analysis(self, schema: &AnswerSchema) -> Result<Box<RawValue>, CallFailure> {
        let fail = |class, message: String| CallFailure::new(class, message).with_raw(&self.content);
        if let Some(error) = self.error.as_deref() {
            return Err(if error.len() > MAX_ERROR_BYTES {
                fail(FailureClass::ServerError, "the reply is a very long error".into())
            } else {
                error_inside(error)
            });
        }
        match Finish::of(self.finish_reason.as_deref().unwrap_or_default()) {
            Finish::Whole => {}
            Finish::Truncated => {
                return Err(fail(FailureClass::Truncated, "the answer hit max_output_tokens".into()));
            }
            Finish::Withheld => {
                return Err(fail(FailureClass::ContentFiltered, "the provider withheld the answer".into()));
            }
            Finish::Broken => {
                return Err(fail(FailureClass::ServerError, "the provider failed in mid-answer".into()));
            }
        }
        if let Some(refusal) = &self.refusal {
            return Err(fail(FailureClass::ContentFiltered, format!("the model declined: {refusal}")));
        }
        extract(&self.content, schema).map_err(|failure| failure.with_raw(&self.content))
    }
}

/// The last JSON in what a model said that the schema allows, else why the first is none.
fn extract(content: &str, schema: &AnswerSchema) -> Result<Box<RawValue>, CallFailure> {
    let malformed = |message: &str| CallFailure::new(FailureClass::Malformed, message.to_owned());
    let said = json::without_reasoning(content)
        .ok_or_else(|| malformed("the model's reasoning has no end, and no answer after it"))?;
    let text = json::unfenced(said);
    if text.is_empty() {
        return Err(malformed("the answer is empty"));
    }
    let mut failure = match line(text, schema) {
        Ok(line) => return Ok(line),
        Err(failure) => failure,
    };
    // What is JSON as a whole is the answer, wrong as it is.
    if failure.class == FailureClass::SchemaViolation {
        return Err(failure);
    }
    for candidate in json::candidates(said).into_iter().rev().filter(|candidate| *candidate != text) {
        match line(candidate, schema) {
            Ok(line) => return Ok(line),
            // What breaks the schema tells the model more than what is no JSON ("[see above]").
            Err(other)
                if other.class == FailureClass::SchemaViolation
                    || failure.class == FailureClass::Malformed =>
            {
                failure = other;
            }
            Err(_) => {}
        }
    }
    Err(failure)
}

/// A text that is one JSON value which the schema allows, written as one line.
fn line(text: &str, schema: &AnswerSchema) -> Result<Box<RawValue>, CallFailure> {
    let malformed = |message: String| CallFailure::new(FailureClass::Malformed, message);
    let too_large = || malformed(format!("the answer is larger than {MAX_ANALYSIS_BYTES} bytes"));
    if text.len() > MAX_ANALYSIS_BYTES {
        return Err(too_large());
    }
    let analysis: Value =
        serde_json::from_str(text).map_err(|error| malformed(format!("the answer is not JSON: {error}")))?;
    if is_deeper(&analysis, MAX_NESTING) {
        return Err(malformed(format!("the answer is nested deeper than {MAX_NESTING} levels")));
    }
    schema.check(&analysis).map_err(|violation| {
        CallFailure::new(FailureClass::SchemaViolation, format!("the answer breaks the schema: {violation}"))
    })?;
    let line = serde_json::value::to_raw_value(&analysis).map_err(|error| malformed(error.to_string()))?;
    if line.get().len() > MAX_ANALYSIS_BYTES {
        return Err(too_large());
    }
    Ok(line)
}

/// Whether lists and objects are within each other beyond so many levels. serde_json has stopped at 128.
fn is_deeper(value: &Value, levels: u8) -> bool {
    let inside = |value| is_deeper(value, levels - 1);
    match value {
        Value::Array(items) => levels == 0 || items.iter().any(inside),
        Value::Object(fields) => levels == 0 || fields.values().any(inside),
        _ => false,
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
