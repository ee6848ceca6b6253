//! What a model's reply says: first whether it is whole, then whether it is JSON, then whether it is what was
//! asked for. A reply that is not whole is never looked into: half an analysis can be valid JSON.
//!
//! A reply can be made to hurt. Of its choices only the first is built; an answer is refused by its size before it is
//! parsed and after it is written again (`1e15` becomes 18 bytes), and by its depth, which would keep others from
//! reading the results.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use serde_json::{Value, value::RawValue};
use shelfmill_pipeline::{
    failure::FailureClass,
    job::AnswerSchema,
    record::{MAX_ANALYSIS_BYTES, MAX_NESTING},
};

use crate::model::CallFailure;

/// The longest name of a model; it is in every line and once more in the summary.
const MAX_MODEL_BYTES: usize = 200;

/// A chat completion, as far as it matters here.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) model: Option<String>,
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
    content: Option<String>,
    refusal: Option<String>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Completion {
    model: Option<String>,
    #[serde(default, deserialize_with = "first", rename = "choices")]
    choice: Option<Choice>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    message: Option<Content>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Content {
    content: Option<String>,
    refusal: Option<String>,
}

#[derive(Default, Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
}

impl Answer {
    /// Reads the body of a 200.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, CallFailure> {
        let completion: Completion = serde_json::from_slice(body).map_err(|error| {
            CallFailure::new(FailureClass::Malformed, format!("the reply is not a chat completion: {error}"))
                .with_raw(&String::from_utf8_lossy(body))
        })?;
        let usage = completion.usage.unwrap_or_default();
        let (message, finish_reason) =
            completion.choice.map_or((None, None), |choice| (choice.message, choice.finish_reason));
        let (content, refusal) = message.map_or((None, None), |message| (message.content, message.refusal));
        Ok(Self {
            model: completion.model.map(|mut model| {
                model.truncate(model.floor_char_boundary(MAX_MODEL_BYTES));
                model
            }),
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            content,
            refusal,
            finish_reason,
        })
    }

    /// The analysis, one line of JSON that the schema allows.
    pub(crate) fn analysis(self, schema: &AnswerSchema) -> Result<Box<RawValue>, CallFailure> {
        let content = self.content.unwrap_or_default();
        let fail = |class, message: String| CallFailure::new(class, message).with_raw(&content);
        match self.finish_reason.as_deref() {
            Some("length") => {
                return Err(fail(FailureClass::Truncated, "the answer hit max_output_tokens".into()));
            }
            Some("content_filter") => {
                return Err(fail(FailureClass::ContentFiltered, "the provider withheld the answer".into()));
            }
            _ => {}
        }
        if let Some(refusal) = self.refusal.filter(|refusal| !refusal.is_empty()) {
            return Err(fail(FailureClass::ContentFiltered, format!("the model declined: {refusal}")));
        }
        let too_large =
            || fail(FailureClass::Malformed, format!("the answer is larger than {MAX_ANALYSIS_BYTES} bytes"));
        let text = unfenced(&content);
        if text.len() > MAX_ANALYSIS_BYTES {
            return Err(too_large());
        }
        let analysis: Value = serde_json::from_str(text)
            .map_err(|error| fail(FailureClass::Malformed, format!("the answer is not JSON: {error}")))?;
        if is_deeper(&analysis, MAX_NESTING) {
            let message = format!("the answer is nested deeper than {MAX_NESTING} levels");
            return Err(fail(FailureClass::Malformed, message));
        }
        schema.check(&analysis).map_err(|violation| {
            fail(FailureClass::SchemaViolation, format!("the answer breaks the schema: {violation}"))
        })?;
        let line = serde_json::value::to_raw_value(&analysis)
            .map_err(|error| fail(FailureClass::Malformed, error.to_string()))?;
        if line.get().len() > MAX_ANALYSIS_BYTES {
            return Err(too_large());
        }
        Ok(line)
    }
}

/// The first element of a list; the others are passed over.
fn first<'de, D: Deserializer<'de>>(list: D) -> Result<Option<Choice>, D::Error> {
    struct First;

    impl<'de> Visitor<'de> for First {
        type Value = Option<Choice>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let first = list.next_element()?;
            while list.next_element::<IgnoredAny>()?.is_some() {}
            Ok(first)
        }
    }

    list.deserialize_seq(First)
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

/// Without the code fence that many models put around JSON.
fn unfenced(content: &str) -> &str {
    let content = content.trim();
    let Some(inner) = content.strip_prefix("```").and_then(|rest| rest.strip_suffix("```")) else {
        return content;
    };
    inner.strip_prefix("json").unwrap_or(inner).trim()
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests {
    use serde_json::json;
    use shelfmill_pipeline::record::{MESSAGE_LIMIT_BYTES, RAW_LIMIT_BYTES};

    use super::*;

    fn class_of(choice: &Value) -> Result<String, FailureClass> {
        let schema = AnswerSchema::compile(&json!({"type": "object", "required": ["a"]})).unwrap();
        let body = json!({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 5}});
        let answer = Answer::parse(body.to_string().as_bytes()).unwrap();
        assert_eq!((answer.prompt_tokens, answer.completion_tokens), (3, 5));
        answer.analysis(&schema).map(|raw| raw.get().to_owned()).map_err(|failure| failure.class)
    }

    #[test]
    fn an_answer_is_whole_json_and_what_was_asked_for() {
        let said =
            |content: &str, finish: &str| json!({"message": {"content": content}, "finish_reason": finish});
        assert_eq!(class_of(&said("{\"a\":\n 1}", "stop")), Ok("{\"a\":1}".to_owned()));
        assert_eq!(class_of(&said("```json\n{\"a\":1}\n```", "stop")), Ok("{\"a\":1}".to_owned()));
        assert_eq!(class_of(&said("{\"a\":1}", "length")), Err(FailureClass::Truncated));
        assert_eq!(class_of(&said("", "content_filter")), Err(FailureClass::ContentFiltered));
        assert_eq!(class_of(&said("Sure! Here", "stop")), Err(FailureClass::Malformed));
        assert_eq!(class_of(&said("{\"b\":1}", "stop")), Err(FailureClass::SchemaViolation));
        assert_eq!(class_of(&said(&"[".repeat(100_000), "stop")), Err(FailureClass::Malformed));
        let declined = json!({"message": {"content": null, "refusal": "No."}, "finish_reason": "stop"});
        assert_eq!(class_of(&declined), Err(FailureClass::ContentFiltered));
        assert_eq!(class_of(&json!({})), Err(FailureClass::Malformed));
    }

    #[test]
    fn a_reply_that_is_no_completion_is_malformed() {
        for body in [&b"<html>"[..], b"", b"[1]", b"{\"choices\":7}", b"\xff\xfe"] {
            assert_eq!(Answer::parse(body).unwrap_err().class, FailureClass::Malformed);
        }
    }

    fn failure_of(content: &str) -> CallFailure {
        let schema = AnswerSchema::compile(&json!({})).unwrap();
        let body = json!({"choices": [{"message": {"content": content}}]}).to_string();
        Answer::parse(body.as_bytes()).unwrap().analysis(&schema).map(|raw| raw.get().len()).unwrap_err()
    }

    #[test]
    fn an_answer_that_others_could_not_read_is_malformed() {
        let nested = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        let schema = AnswerSchema::compile(&json!({})).unwrap();
        let body = json!({"choices": [{"message": {"content": nested(MAX_NESTING.into())}}]}).to_string();
        Answer::parse(body.as_bytes()).unwrap().analysis(&schema).unwrap();
        for content in [
            nested(usize::from(MAX_NESTING) + 1),
            nested(200_000),
            "{\"a\":".repeat(200_000),
            "1e999".to_owned(),
            "9".repeat(400),
            format!("[{}]", "1".repeat(1_000)),
            "\"\\ud800\"".to_owned(),
            "1e15,".repeat(200_000),
            format!("[{}1]", "1e15,".repeat(200_000)),
            format!("\"{}\"", "x".repeat(MAX_ANALYSIS_BYTES)),
        ] {
            let failure = failure_of(&content);
            assert_eq!(failure.class, FailureClass::Malformed, "{}", failure.message);
            assert!(failure.message.len() < 200, "{}", failure.message);
        }
    }

    #[test]
    fn a_reply_nested_or_repeated_without_end_is_passed_over() {
        let ok = |body: String| Answer::parse(body.as_bytes()).map(|_| ()).map_err(|failure| failure.class);
        let deep = "[".repeat(500_000) + &"]".repeat(500_000);
        assert_eq!(ok(format!("{{\"other\":{deep},\"choices\":[]}}")), Ok(()));
        assert_eq!(ok(format!("{{\"choices\":[{{}}{}]}}", ",{}".repeat(500_000))), Ok(()));
        for body in [
            format!("{{\"choices\":{deep}}}"),
            "[".repeat(1_000_000),
            "{\"usage\":{\"prompt_tokens\":1e999}}".to_owned(),
            format!("{{\"usage\":{{\"prompt_tokens\":1{}}}}}", "0".repeat(400)),
            "{\"usage\":{\"prompt_tokens\":-1}}".to_owned(),
        ] {
            assert_eq!(ok(body), Err(FailureClass::Malformed));
        }
        let model = json!({"model": "é".repeat(1_000)}).to_string();
        assert_eq!(Answer::parse(model.as_bytes()).unwrap().model.unwrap().len(), MAX_MODEL_BYTES);
    }

    #[test]
    fn what_breaks_the_schema_or_is_refused_is_not_quoted_whole() {
        let schema = AnswerSchema::compile(&json!({"type": "array", "items": {"type": "null"}})).unwrap();
        let long = "x".repeat(100_000);
        let items = json!([long, long, long, long, long, long]).to_string();
        for message in [json!({"content": items}), json!({"content": "", "refusal": long})] {
            let body = json!({"choices": [{"message": message}]}).to_string();
            let failure = Answer::parse(body.as_bytes()).unwrap().analysis(&schema).map(|_| ()).unwrap_err();
            assert!(failure.message.len() <= MESSAGE_LIMIT_BYTES);
            assert!(failure.raw.is_none_or(|raw| raw.len() <= RAW_LIMIT_BYTES));
        }
    }
}
