//! What a model's reply says: first whether it is whole, then whether it is JSON, then whether it is what was
//! asked for. A reply that is not whole is never looked into: half an analysis can be valid JSON.

use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use shelfmill_pipeline::{failure::FailureClass, job::AnswerSchema};

use crate::model::CallFailure;

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
    #[serde(default)]
    choices: Vec<Choice>,
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
        let (message, finish_reason) = match completion.choices.into_iter().next() {
            Some(choice) => (choice.message, choice.finish_reason),
            None => (None, None),
        };
        let (content, refusal) = message.map_or((None, None), |message| (message.content, message.refusal));
        Ok(Self {
            model: completion.model,
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
        let analysis: Value = serde_json::from_str(unfenced(&content))
            .map_err(|error| fail(FailureClass::Malformed, format!("the answer is not JSON: {error}")))?;
        schema.check(&analysis).map_err(|violation| {
            fail(FailureClass::SchemaViolation, format!("the answer breaks the schema: {violation}"))
        })?;
        serde_json::value::to_raw_value(&analysis)
            .map_err(|error| fail(FailureClass::Malformed, error.to_string()))
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
mod tests {
    use serde_json::json;

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
}
