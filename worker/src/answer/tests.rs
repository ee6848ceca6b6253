use serde_json::json;
use shelfmill_pipeline::record::{MESSAGE_LIMIT_BYTES, RAW_LIMIT_BYTES};

use super::*;

fn class_of(choice: &Value) -> Result<String, FailureClass> {
    let schema = AnswerSchema::compile(&json!({"type": "object", "required": ["a"]})).unwrap();
    let body = json!({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 5}});
    let answer = Answer::parse(body.to_string().as_bytes()).unwrap();
    assert_eq!(answer.usage, Some(Usage { prompt_tokens: 3, completion_tokens: 5 }));
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

fn said(content: &str) -> Result<String, FailureClass> {
    class_of(&json!({"message": {"content": content}, "finish_reason": "stop"}))
}

#[test]
fn why_it_ended_comes_first() {
    let ended = |reason: &str| {
        class_of(&json!({"message": {"content": "{\"a\":1}", "refusal": "No."}, "finish_reason": reason}))
    };
    for reason in ["length", "max_tokens", "MAX_TOKENS", "model_length", "model_context_window_exceeded"] {
        assert_eq!(ended(reason), Err(FailureClass::Truncated), "{reason}");
    }
    for reason in ["content_filter", "SAFETY", "RECITATION", "PROHIBITED_CONTENT", "BLOCKLIST", "refusal"] {
        assert_eq!(ended(reason), Err(FailureClass::ContentFiltered), "{reason}");
    }
    assert_eq!(ended("error"), Err(FailureClass::ServerError));
    for reason in ["stop", "eos", "end_turn", "STOP", "something new"] {
        let choice = json!({"message": {"content": "{\"a\":1}"}, "finish_reason": reason});
        assert_eq!(class_of(&choice), Ok("{\"a\":1}".to_owned()), "{reason}");
    }
}

#[test]
fn an_answer_may_come_in_parts_and_reasoning_is_none() {
    let message = |message: Value| class_of(&json!({"message": message, "finish_reason": "stop"}));
    let parts = json!([{"type": "thinking", "thinking": [{"text": "{\"a\":0}"}]}, {"type": "text", "text": "{\"a\""},
        {"type": "text", "text": ":1}"}]);
    assert_eq!(message(json!({"content": parts})), Ok("{\"a\":1}".to_owned()));
    let refused = json!([{"type": "refusal", "refusal": "No."}]);
    assert_eq!(message(json!({"content": refused})), Err(FailureClass::ContentFiltered));
    let reasoned =
        json!({"content": "{\"a\":1}", "reasoning_content": "{\"a\":0}", "reasoning": "{", "refusal": ""});
    assert_eq!(message(reasoned), Ok("{\"a\":1}".to_owned()));
    for nothing in [json!(null), json!(""), json!(" \n"), json!([]), json!("```json\n```")] {
        let failure =
            failure_with(&json!({}), &json!({"content": nothing, "reasoning_content": "{\"a\":1}"}));
        assert_eq!(
            (failure.class, failure.message.as_str()),
            (FailureClass::Malformed, "the answer is empty")
        );
    }
}

fn failure_with(schema: &Value, message: &Value) -> CallFailure {
    let schema = AnswerSchema::compile(schema).unwrap();
    let body = json!({"choices": [{"message": message}]}).to_string();
    Answer::parse(body.as_bytes()).unwrap().analysis(&schema).map(|line| line.get().len()).unwrap_err()
}

#[test]
fn json_is_found_in_fences_and_prose() {
    for content in [
        "```json\n{\"a\": 1}\n```",
        "```\n{\"a\": 1}```",
        "Here it is:\n```json\n{\"a\": 1}\n```\nAnything else?",
        "Sure! {\"a\": 1} Note: I looked at [see above] and {name}.",
        "As said in [1], [2]: {\"a\": 1}",
        "<think>\nPerhaps {\"a\": 0}.\n</think>\n\n{\"a\": 1}",
        "Perhaps {\"a\": 0}.\n</think>```json\n{\"a\": 1}\n```",
        "A draft: {\"a\": 0}. The last word: {\"a\": 1}",
        "{\"a\": 0}\n{\"a\": 1}",
        "{\"a\": 1} and what does not fit: {\"b\": 2} [3]",
    ] {
        assert_eq!(said(content), Ok("{\"a\":1}".to_owned()), "{content}");
    }
    assert_eq!(said("{\"a\": \"</think> ``` {\"}"), Ok("{\"a\":\"</think> ``` {\"}".to_owned()));
}

#[test]
fn what_is_broken_is_never_mended() {
    for content in [
        "{\"a\": 1",
        "{\"a\": 1,}",
        "{'a': 1}",
        "{\"a\": 1}}",
        "[{\"a\": 1}, {\"a\": 2}",
        "{\"items\": [{\"a\": 1}",
        "{\"items\": [{\"a\": 1}, oops]}",
        "```json\n[{\"a\": 1},\n```",
        "<think>{\"a\": 1}",
        "{\"a\": NaN}",
        "// {a: 1}",
        "A draft: {\"a\": 0}. The last word: {\"a\": ",
    ] {
        let taken = said(content);
        if content == "{\"a\": 1}}" {
            // Whole, with a bracket too much behind it.
            assert_eq!(taken, Ok("{\"a\":1}".to_owned()));
        } else {
            assert_eq!(taken, Err(FailureClass::Malformed), "{content}");
        }
    }
    // A text that is JSON as a whole is the answer; what its strings hold is not.
    assert_eq!(said("\"{\\\"a\\\": 1}\""), Err(FailureClass::SchemaViolation));
    assert_eq!(said("[{\"a\": 1}]"), Err(FailureClass::SchemaViolation));
    let failure = failure_with(&json!({"type": "array"}), &json!({"content": "\"[1]\""}));
    assert_eq!(failure.class, FailureClass::SchemaViolation);
}

#[test]
fn of_many_that_do_not_fit_the_first_is_told() {
    let schema = json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}});
    let told = |content: &str| failure_with(&schema, &json!({"content": content}));
    let failure = told("[see] {\"a\": \"x\"} or {\"b\": 2} or {c}");
    assert_eq!(failure.class, FailureClass::SchemaViolation);
    assert_eq!(failure.message, "the answer breaks the schema: /a: \"x\" is not of type \"integer\"");
    let failure = told("Sure: {\"a\": 1,} or {c}");
    assert_eq!(failure.class, FailureClass::Malformed);
    assert_eq!(failure.message, "the answer is not JSON: trailing comma at line 1 column 9");
    assert_eq!(failure.raw.unwrap(), "Sure: {\"a\": 1,} or {c}");
}

#[test]
fn every_violation_is_told_with_its_place() {
    let schema = json!({"type": "object", "properties": {
        "score": {"type": "number"}, "tags": {"type": "array", "items": {"enum": ["tea"]}}, "text": {"maxLength": 9}
    }});
    let answer = json!({"score": "high", "tags": ["tea", "cup"], "text": "x".repeat(50_000)});
    let failure = failure_with(&schema, &json!({"content": answer.to_string()}));
    for told in
        ["/score: \"high\" is not of type", "/tags/1: \"cup\" is not", "/text: value is longer than 9"]
    {
        assert!(failure.message.contains(told), "{}", failure.message);
    }
}

#[test]
fn what_was_not_counted_is_not_zero() {
    let usage = |body: Value| Answer::parse(body.to_string().as_bytes()).unwrap().usage;
    assert_eq!(usage(json!({"choices": []})), None);
    assert_eq!(usage(json!({"choices": [], "usage": null})), None);
    let some = usage(json!({"usage": {"prompt_tokens": 3, "completion_tokens": null}, "choices": null}));
    assert_eq!(some, Some(Usage { prompt_tokens: 3, completion_tokens: 0 }));
    // Also of a reply that is an error.
    let body = json!({"error": {"code": 502}, "usage": {"prompt_tokens": 3, "completion_tokens": 5}});
    assert_eq!(usage(body), Some(Usage { prompt_tokens: 3, completion_tokens: 5 }));
}

#[test]
fn an_error_inside_of_a_reply_is_told_and_an_empty_one_is_none() {
    let schema = AnswerSchema::compile(&json!({})).unwrap();
    let read = |error: Value| {
        let body = json!({"error": error, "choices": [{"message": {"content": "[1]"}}]}).to_string();
        let answer = Answer::parse(body.as_bytes()).unwrap();
        answer.analysis(&schema).map(|line| line.get().to_owned()).map_err(|failure| failure.class)
    };
    for nothing in [json!(null), json!({}), json!(""), json!(false)] {
        assert_eq!(read(nothing), Ok("[1]".to_owned()));
    }
    assert_eq!(read(json!({"code": 429})), Err(FailureClass::RateLimited));
    assert_eq!(read(json!({"code": "rate_limit_exceeded"})), Err(FailureClass::RateLimited));
    assert_eq!(read(json!("overloaded")), Err(FailureClass::ServerError));
    assert_eq!(read(json!({"message": "x".repeat(MAX_ERROR_BYTES)})), Err(FailureClass::ServerError));
}

#[test]
fn hostile_answers_take_no_longer_than_others() {
    let schema = AnswerSchema::compile(&json!({"type": "object", "required": ["a"]})).unwrap();
    let started = std::time::Instant::now();
    for piece in [
        "{\"b\":1} ",
        "[1,",
        "[[1],",
        "{\"b\":{\"b\":",
        "[\"",
        "{}",
        "</think>",
        "{\"b\":[\"]}\"]}\n",
        "[1] {",
    ] {
        let content = piece.repeat(500_000 / piece.len());
        assert!(extract(&content, &schema).is_err());
    }
    assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
}
