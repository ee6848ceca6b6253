//! Reads a chat request, borrowing what it can: a benchmark's requests are mostly prompt, and only the last user
//! message is ever decoded.
//!
//! Errors are those OpenAI's API would give, so that a client's handling of them can be tried here.

use std::borrow::Cow;
use std::fmt::Write;

use percent_encoding::percent_decode;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::reply::ApiError;

/// Bytes of the hash that names a product nobody named: 16 hex digits.
const KEY_BYTES: usize = 8;

pub(crate) struct ChatRequest<'a> {
    /// The last user message, decoded.
    pub(crate) prompt: String,
    /// Estimated from all messages and the schema, as they came.
    pub(crate) prompt_tokens: u64,
    /// The most tokens an answer may have: the smaller one of `max_tokens` and `max_completion_tokens`.
    pub(crate) ceiling: Option<u64>,
    pub(crate) format: Format<'a>,
    model: &'a RawValue,
    messages: Vec<WireMessage<'a>>,
}

pub(crate) enum Format<'a> {
    Text,
    /// `json_object`: nothing is said about the answer's members.
    Object,
    Schema {
        name: Cow<'a, str>,
        raw: &'a str,
    },
}

#[derive(Deserialize)]
struct WireRequest<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    messages: Option<Vec<WireMessage<'a>>>,
    stream: Option<bool>,
    #[serde(borrow)]
    max_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    max_completion_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    response_format: Option<WireFormat<'a>>,
}

#[derive(Deserialize)]
struct WireMessage<'a> {
    #[serde(borrow)]
    role: Cow<'a, str>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct WireFormat<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    json_schema: Option<WireSchema<'a>>,
}

#[derive(Deserialize)]
struct WireSchema<'a> {
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    schema: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    text: String,
}

impl<'a> ChatRequest<'a> {
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self, ApiError> {
        let wire: WireRequest<'a> = serde_json::from_slice(body).map_err(|error| {
            let text = format!("We could not parse the JSON body of your request: {error}.");
            ApiError::invalid_request(text)
        })?;
        let model =
            wire.model.ok_or_else(|| ApiError::invalid_request("you must provide a model parameter"))?;
        let messages = wire.messages.ok_or_else(|| missing("messages"))?;
        if messages.is_empty() {
            let text = "Invalid 'messages': empty array. Expected an array with minimum length 1.";
            return Err(ApiError::invalid_request(text).about("messages", "empty_array"));
        }
        if wire.stream == Some(true) {
            let text = "The simulator does not stream: leave out 'stream' or set it to false.";
            return Err(ApiError::invalid_request(text).about("stream", "unsupported_value"));
        }
        let older = wire.max_tokens.map(|raw| ceiling("max_tokens", raw)).transpose()?;
        let newer =
            wire.max_completion_tokens.map(|raw| ceiling("max_completion_tokens", raw)).transpose()?;
        let format = format(wire.response_format)?;
        let contents = messages.iter().filter_map(|message| message.content);
        let mut size_bytes: usize = contents.map(|content| content.get().len()).sum();
        if let Format::Schema { raw, .. } = &format {
            size_bytes += raw.len();
        }
        let last = messages.iter().rev().find(|message| message.is_user()).or(messages.last());
        let prompt = last.and_then(|message| message.content).map_or(Ok(String::new()), content)?;
        let prompt_tokens = tokens(size_bytes);
        let ceiling = older.into_iter().chain(newer).min();
        Ok(Self { prompt, prompt_tokens, ceiling, format, model, messages })
    }

    pub(crate) fn asks_for_model(&self, name: &str) -> bool {
        decode::<Cow<'_, str>>(self.model).is_ok_and(|model| model == name)
    }

    /// The model's name; nothing where it is none.
    pub(crate) fn asked_model(&self) -> Cow<'_, str> {
        decode(self.model).unwrap_or_default()
    }

    /// Answers that are repeated in the request; none when the conversation begins.
    pub(crate) fn turns(&self) -> u64 {
        self.messages.iter().filter(|message| message.role == "assistant").count() as u64
    }

    /// The user messages before the prompt, latest first. A conversation about a product names it there, while its
    /// last message may only tell what was wrong with the answer.
    pub(crate) fn earlier(&self) -> impl Iterator<Item = String> {
        let users = self.messages.iter().rev().filter(|message| message.is_user());
        users.skip(1).filter_map(|message| content(message.content?).ok())
    }

    /// The last JSON Schema that is told in words, after [`SCHEMA_MARKER`], in a system or user message.
    pub(crate) fn told_schema(&self) -> Option<String> {
        let told = self.messages.iter().rev().filter(|message| message.role != "assistant");
        let mut marked = told.filter_map(|message| message.content).filter(|raw| {
            // The marker looks the same in JSON; most messages need not be decoded.
            raw.get().contains(SCHEMA_MARKER)
        });
        marked.find_map(|raw| schema_in(&content(raw).ok()?).map(ToOwned::to_owned))
    }
}

impl WireMessage<'_> {
    fn is_user(&self) -> bool {
        self.role == "user"
    }
}

/// The usual estimate for English text; counts only need to be plausible and repeatable.
pub(crate) const BYTES_PER_TOKEN: usize = 4;

pub(crate) fn tokens(bytes: usize) -> u64 {
    bytes.div_ceil(BYTES_PER_TOKEN) as u64
}

/// What a worker writes before a schema that it can give in words only.
const SCHEMA_MARKER: &str = "JSON schema:";

/// A product's text may hold the marker too; this many are looked at.
const MAX_MARKERS: usize = 8;

fn schema_in(text: &str) -> Option<&str> {
    text.rmatch_indices(SCHEMA_MARKER).take(MAX_MARKERS).find_map(|(at, marker)| {
        let told = text[at + marker.len()..].trim_start();
        let fenced = told.strip_prefix("```json").or_else(|| told.strip_prefix("```"));
        let told = fenced.unwrap_or(told).trim_start();
        let mut values = serde_json::Deserializer::from_str(told).into_iter::<&RawValue>();
        let schema = values.next()?.ok()?.get();
        schema.starts_with('{').then_some(schema)
    })
}

fn ceiling(parameter: &'static str, raw: &RawValue) -> Result<u64, ApiError> {
    let (text, code) = match (decode::<u64>(raw), decode::<i64>(raw)) {
        (Ok(ceiling @ 1..), _) => return Ok(ceiling),
        (Ok(0), _) | (_, Ok(_)) => {
            let least = "integer below minimum value. Expected a value >= 1";
            (format!("Invalid '{parameter}': {least}, but got {raw} instead."), "integer_below_min_value")
        }
        _ => {
            let text = format!("Invalid type for '{parameter}': expected an integer, but got {raw} instead.");
            (text, "invalid_type")
        }
    };
    Err(ApiError::invalid_request(text).about(parameter, code))
}

fn content(raw: &RawValue) -> Result<String, ApiError> {
    let wrong = |error: serde_json::Error| {
        let text = format!("Invalid 'messages': content must be a string or an array of parts ({error}).");
        ApiError::invalid_request(text).about("messages", "invalid_type")
    };
    if raw.get().starts_with('[') {
        let parts: Vec<Part> = decode(raw).map_err(wrong)?;
        return Ok(parts.into_iter().map(|part| part.text).collect::<Vec<_>>().join("\n"));
    }
    decode(raw).map_err(wrong)
}

fn decode<T: DeserializeOwned>(raw: &RawValue) -> serde_json::Result<T> {
    serde_json::from_str(raw.get())
}

fn format(wire: Option<WireFormat<'_>>) -> Result<Format<'_>, ApiError> {
    let Some(wire) = wire else {
        return Ok(Format::Text);
    };
    match &*wire.r#type {
        "text" => Ok(Format::Text),
        "json_object" => Ok(Format::Object),
        "json_schema" => {
            let schema = wire.json_schema.ok_or_else(|| missing("response_format.json_schema"))?;
            let name = schema.name.ok_or_else(|| missing("response_format.json_schema.name"))?;
            let raw = schema.schema.ok_or_else(|| missing("response_format.json_schema.schema"))?;
            Ok(Format::Schema { name, raw: raw.get() })
        }
        other => {
            let text = format!(
                "Invalid value: '{other}'. Supported values are: 'json_object', 'json_schema', and 'text'."
            );
            Err(ApiError::invalid_request(text).about("response_format.type", "invalid_value"))
        }
    }
}

fn missing(parameter: &'static str) -> ApiError {
    let text = format!("Missing required parameter: '{parameter}'.");
    ApiError::invalid_request(text).about(parameter, "missing_required_parameter")
}

/// Who a call is for, from `X-Client-Request-Id: <percent-encoded product id>/<call number>`.
#[derive(Debug, PartialEq)]
pub(crate) struct CallId {
    pub(crate) product: String,
    pub(crate) number: Option<u64>,
}

impl CallId {
    pub(crate) fn from_header(value: &[u8]) -> Self {
        let slash = value.iter().rposition(|byte| *byte == b'/');
        let number = slash.and_then(|slash| std::str::from_utf8(&value[slash + 1..]).ok()?.parse().ok());
        let product = percent_decode(&value[..slash.unwrap_or(value.len())]);
        Self { product: product.decode_utf8_lossy().into_owned(), number }
    }

    /// A stand-in for a client that does not say which product it asks about.
    pub(crate) fn from_prompt(prompt: &[u8]) -> Self {
        let mut product = String::with_capacity(2 * KEY_BYTES);
        for byte in &Sha256::digest(prompt)[..KEY_BYTES] {
            // Writing to a string cannot fail.
            let _ = write!(product, "{byte:02x}");
        }
        Self { product, number: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn refused(body: Value) -> String {
        ChatRequest::parse(body.to_string().as_bytes()).err().unwrap().to_string()
    }

    #[test]
    fn the_last_user_message_is_the_prompt() {
        let body = json!({"model": "gpt-x", "temperature": 0, "messages": [
            {"role": "system", "content": "You analyse."},
            {"role": "user", "content": "first"},
            {"role": "user", "content": [{"type": "text", "text": "a \"mug\""}, {"type": "text", "text": "é"}]},
            {"role": "assistant", "content": null},
        ]});
        assert_eq!(ChatRequest::parse(body.to_string().as_bytes()).unwrap().prompt, "a \"mug\"\né");
    }

    #[test]
    fn the_schema_is_borrowed_as_it_came() {
        let body = br#"{"model":"m","messages":[{"role":"user","content":"x"}],"response_format":
            {"type":"json_schema","json_schema":{"name":"n","strict":true,"schema":{"type": "object" }}}}"#;
        let request = ChatRequest::parse(body).unwrap();
        assert!(matches!(request.format, Format::Schema { raw: r#"{"type": "object" }"#, .. }));
    }

    #[test]
    fn the_smaller_ceiling_holds() {
        let ceiling = |members: Value| {
            let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "x"}]});
            body.as_object_mut().unwrap().append(&mut members.as_object().unwrap().clone());
            ChatRequest::parse(body.to_string().as_bytes())
                .map(|request| request.ceiling)
                .map_err(|error| error.to_string())
        };
        assert_eq!(ceiling(json!({})), Ok(None));
        assert_eq!(ceiling(json!({"max_tokens": null})), Ok(None));
        assert_eq!(ceiling(json!({"max_tokens": 7})), Ok(Some(7)));
        assert_eq!(ceiling(json!({"max_tokens": 7, "max_completion_tokens": 5})), Ok(Some(5)));
        for wrong in [json!(0), json!(-3)] {
            assert!(ceiling(json!({"max_tokens": wrong})).unwrap_err().contains("below minimum"));
        }
        for wrong in [json!("9"), json!(1.5)] {
            let error = ceiling(json!({"max_completion_tokens": wrong})).unwrap_err();
            assert!(error.contains("Invalid type for 'max_completion_tokens'"), "{error}");
        }
    }

    #[test]
    fn schemas_are_found_in_words() {
        for (text, found) in [
            (
                "Answer in JSON.\nJSON schema:\n{\"type\": \"object\"}\nNothing else.",
                Some(r#"{"type": "object"}"#),
            ),
            ("JSON schema: {\"a\":{}} JSON schema:\n\n```json\n{\"b\":\n{}}\n```", Some("{\"b\":\n{}}")),
            ("JSON schema:\n{\"a\":{}}\nTitle: a book on JSON schema: the {basics}", Some(r#"{"a":{}}"#)),
            ("JSON schema:\n[1]", None),
            ("JSON schema:\n{\"a\":", None),
            ("{\"a\": 1}", None),
        ] {
            assert_eq!(schema_in(text), found, "{text}");
        }
        let told = |messages: Value| {
            let body = json!({"model": "m", "messages": messages}).to_string();
            ChatRequest::parse(body.as_bytes()).unwrap().told_schema()
        };
        let system = json!({"role": "system", "content": "JSON schema:\n{\"a\":\"é\"}"});
        let user = json!({"role": "user", "content": "x"});
        let answer = json!({"role": "assistant", "content": "JSON schema:\n{\"wrong\":1}"});
        assert_eq!(told(json!([system, user, answer, user])), Some(r#"{"a":"é"}"#.to_owned()));
        assert_eq!(told(json!([user])), None);
    }

    #[test]
    fn a_conversation_is_known_by_its_answers() {
        let body = json!({"model": "m", "messages": [
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": "{}"},
            {"role": "user", "content": "again"},
        ]})
        .to_string();
        let request = ChatRequest::parse(body.as_bytes()).unwrap();
        assert_eq!((request.prompt.as_str(), request.turns()), ("again", 1));
        assert_eq!(request.earlier().collect::<Vec<_>>(), ["first"]);
    }

    #[test]
    fn wrong_requests_are_told_plainly() {
        let user = json!([{"role": "user", "content": "x"}]);
        assert!(refused(json!({"model": "m"})).contains("Missing required parameter: 'messages'"));
        assert!(refused(json!({"model": "m", "messages": []})).contains("empty array"));
        assert!(refused(json!({"messages": user})).contains("model parameter"));
        assert!(refused(json!({"model": "m", "messages": user, "stream": true})).contains("does not stream"));
        assert!(refused(json!({"model": "m", "messages": "x"})).contains("could not parse"));
        assert!(
            refused(json!({"model": "m", "messages": [{"role": "user", "content": 3}]})).contains("string")
        );
        let format = |format| refused(json!({"model": "m", "messages": user, "response_format": format}));
        assert!(format(json!({"type": "xml"})).contains("'xml'"));
        assert!(format(json!({"type": "json_schema"})).contains("response_format.json_schema"));
    }

    #[test]
    fn calls_are_named_by_the_header() {
        let id = |header: &str| CallId::from_header(header.as_bytes());
        let named = |product: &str, number| CallId { product: product.to_owned(), number };
        assert_eq!(id("sku-1/2"), named("sku-1", Some(2)));
        assert_eq!(id("a%2Fb%20%C3%BC/10"), named("a/b ü", Some(10)));
        assert_eq!(id("a/b/3"), named("a/b", Some(3)));
        assert_eq!(id("no-number"), named("no-number", None));
        assert_eq!(id("sku/x"), named("sku", None));
        // printf '%s' hello | sha256sum
        assert_eq!(CallId::from_prompt(b"hello"), named("2cf24dba5fb0a30e", None));
    }
}
