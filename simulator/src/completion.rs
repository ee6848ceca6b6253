//! From a request to the body of a completion, sound or spoiled on purpose.
//!
//! The content follows from the seed, the product and its prompt alone: asked twice, a product gets the same analysis,
//! and asked again in the same conversation, another one about the same product.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Value, json};

use crate::MODEL;
use crate::contract::Contracts;
use crate::dice::{Dice, digest};
use crate::faults::Fault;
use crate::reply::ApiError;
use crate::request::{BYTES_PER_TOKEN, ChatRequest, Format, tokens};
use crate::stats::Usage;
use crate::words::Subject;

const REFUSAL: &str = "I'm sorry, but I can't help with the analysis of this product.";

/// The call a completion is for.
pub(crate) struct Asked<'a> {
    pub(crate) request: &'a ChatRequest<'a>,
    pub(crate) product: &'a str,
    /// Names the completion.
    pub(crate) id: u64,
    pub(crate) fault: Option<Fault>,
    /// The most tokens the answer may have.
    pub(crate) ceiling: Option<u64>,
}

pub(crate) struct Completed {
    pub(crate) body: Vec<u8>,
    pub(crate) usage: Usage,
    /// There was more to say than the ceiling allowed.
    pub(crate) at_ceiling: bool,
}

#[derive(Serialize)]
struct Completion<'a> {
    id: String,
    object: &'static str,
    created: u64,
    model: &'static str,
    choices: [Choice<'a>; 1],
    usage: Usage,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    message: Message<'a>,
    logprobs: Option<()>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: Option<&'a str>,
    refusal: Option<&'a str>,
}

/// An error means that the request's schema is wrong, or that no instance of it was found.
pub(crate) fn complete(contracts: &Contracts, seed: u64, asked: &Asked<'_>) -> Result<Completed, ApiError> {
    let Asked { request, product, fault, .. } = asked;
    let (contract, name) = match &request.format {
        Format::Text | Format::Object => {
            // Words are no contract: a model that cannot make sense of them says something anyway.
            let told = request.told_schema().and_then(|schema| contracts.of(&schema).ok());
            (told.unwrap_or_else(|| contracts.plain()), None)
        }
        Format::Schema { name, raw } => {
            (contracts.of(raw).map_err(|error| wrong_schema(name, &error))?, Some(name))
        }
    };
    let mut dice = Dice::new(digest(digest(seed, product.as_bytes()), request.prompt.as_bytes()));
    let subject = Subject::in_conversation(&request.prompt, request.earlier(), product, &mut dice);
    let instance = contract.instance(&subject, dice.clone()).ok_or_else(|| {
        let unsatisfied = "the simulator found no instance of it";
        wrong_schema(name.map_or("", |name| name), unsatisfied)
    })?;
    let told = match fault {
        Some(Fault::SchemaViolation) => {
            // What refuses nothing cannot be violated.
            contract.violation(&instance, &mut dice).unwrap_or(instance).to_string()
        }
        Some(Fault::Malformed) => malformed(&instance, &subject, &mut dice),
        Some(Fault::Truncated) => truncated(&instance),
        Some(Fault::Prose) => in_prose(&instance, &subject, &mut dice),
        Some(Fault::ContentFiltered) => String::new(),
        _ => instance.to_string(),
    };
    let finish_reason = match fault {
        Some(Fault::Truncated) => "length",
        Some(Fault::ContentFiltered) => "content_filter",
        _ => "stop",
    };
    let refused = *fault == Some(Fault::Refused);
    Ok(write(asked, (!refused).then_some(&told), refused.then_some(REFUSAL), finish_reason))
}

fn write(
    asked: &Asked<'_>,
    content: Option<&str>,
    refusal: Option<&str>,
    finish_reason: &'static str,
) -> Completed {
    let most_bytes = asked.ceiling.map_or(usize::MAX, |ceiling| {
        usize::try_from(ceiling).unwrap_or(usize::MAX).saturating_mul(BYTES_PER_TOKEN)
    });
    let at_ceiling = content.or(refusal).is_some_and(|told| told.len() > most_bytes);
    let finish_reason = if at_ceiling { "length" } else { finish_reason };
    let [content, refusal] =
        [content, refusal].map(|told| told.map(|told| &told[..told.floor_char_boundary(most_bytes)]));
    let told_bytes = content.or(refusal).map_or(0, str::len);
    let prompt_tokens = asked.request.prompt_tokens;
    let completion_tokens = tokens(told_bytes);
    let usage = Usage { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens };
    let message = Message { role: "assistant", content, refusal };
    let completion = Completion {
        id: format!("chatcmpl-{:016x}", asked.id),
        object: "chat.completion",
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        model: MODEL,
        choices: [Choice { index: 0, message, logprobs: None, finish_reason }],
        usage,
    };
    let mut body = Vec::with_capacity(512 + told_bytes * 5 / 4);
    // Our own types always serialise, and a vector takes all that is written.
    let _ = serde_json::to_writer(&mut body, &completion);
    Completed { body, usage, at_ceiling }
}

/// All of the answer is there, but not alone.
fn in_prose(instance: &Value, subject: &Subject<'_>, dice: &mut Dice) -> String {
    let sentence = subject.sentence(dice);
    match dice.below(4) {
        0 => format!("```json\n{instance:#}\n```"),
        1 => format!("Here is the analysis you asked for:\n\n```json\n{instance:#}\n```\n\n{sentence}"),
        2 => format!("```\n{instance}\n```\nLet me know if you need anything else!"),
        _ => format!("Sure! {sentence}\n\n{instance}\n\nI hope that this helps."),
    }
}

fn malformed(instance: &Value, subject: &Subject<'_>, dice: &mut Dice) -> String {
    let mut text = instance.to_string();
    match dice.below(3) {
        0 => format!("Sure! Here is the analysis you asked for. {}", subject.sentence(dice)),
        1 => {
            text.pop();
            text + ",}"
        }
        _ => format!("{{'analysis': {text}"),
    }
}

fn truncated(instance: &Value) -> String {
    let text = instance.to_string();
    text.chars().take(text.chars().count() / 2).collect()
}

fn wrong_schema(name: &str, error: &str) -> ApiError {
    let text = format!("Invalid schema for response_format '{name}': {error}.");
    ApiError::invalid_request(text).about("response_format", "invalid_json_schema")
}

/// The body of `GET /v1/models`.
pub(crate) fn models() -> Value {
    let model = json!({"id": MODEL, "object": "model", "created": 0, "owned_by": "shelfmill"});
    json!({"object": "list", "data": [model]})
}
