//! What holds for damaged replies, with or without an answer in them, and for damaged errors.

use proptest::prelude::*;
use reqwest::{
    StatusCode,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use serde_json::json;
use shelfmill_pipeline::record::{MAX_ANALYSIS_BYTES, MAX_NESTING, MESSAGE_LIMIT_BYTES, RAW_LIMIT_BYTES};
use shelfmill_testing::nearly;

use super::*;
use crate::model::{LimitHints, refusal};

const ANALYSIS: &str =
    "{\"category\":\"Kitchen\",\"tags\":[\"tea\",\"ü\"],\"score\":7.5,\"deep\":[[{\"a\":null}]]}";

fn replies() -> Vec<String> {
    let reply = |content: &str, finish: &str| {
        json!({
            "id": "x", "object": "chat.completion", "model": "gpt-4.1-mini",
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish},
                {"index": 1, "message": {"content": null, "refusal": "No."}}
            ],
            "usage": {"prompt_tokens": 310, "completion_tokens": 120, "total_tokens": 430}
        })
        .to_string()
    };
    vec![
        reply(ANALYSIS, "stop"),
        reply(&format!("```json\n{ANALYSIS}\n```"), "stop"),
        reply(&format!("<think>Is {{}} an answer?</think>Here is one:\n{ANALYSIS}\nOr [none]. {{\"tags\":0}}"), "stop"),
        reply("Sure!", "length"),
        json!({"choices": [{"message": {"content": [{"type": "text", "text": ANALYSIS}, {"refusal": null}]}}]})
            .to_string(),
        json!({"error": {"code": 429, "message": "Please try again in 2s", "metadata": {"raw": {}}}}).to_string(),
        json!({"choices": [{"error": {"code": 502}, "finish_reason": "error", "message": {}}]}).to_string(),
        json!({"choices": [{"message": {"refusal": "I cannot.", "content": null}}], "usage": null})
            .to_string(),
        "{}".to_owned(),
    ]
}

const ERRORS: [&str; 8] = [
    "{\"error\":{\"message\":\"Rate limit reached\",\"type\":\"requests\",\"code\":\"rate_limit_exceeded\"}}",
    "{\"error\":{\"message\":\"no\",\"code\":429,\"param\":null}}",
    "{\"error\":{\"code\":\"insufficient_quota\"}}",
    "<html><head><title>502 Bad Gateway</title></head></html>",
    "{\"error\":{\"message\":\"no\",\"code\":402,\"metadata\":{\"headers\":{\"X-RateLimit-Reset\":\"1741305600000\"},\"raw\":\"x\"}}}",
    "{\"object\":\"error\",\"message\":{\"detail\":[{\"loc\":[\"body\",\"max_completion_tokens\"]}]},\"code\":null}",
    "[{\"error\":{\"innererror\":{\"code\":\"ResponsibleAIPolicyViolation\"},\"code\":\"429\"}}]",
    "{\"error\":\"model 'x' not found, please retry after 9 seconds.\"}",
];

fn check_failure(failure: &CallFailure) -> Result<(), TestCaseError> {
    prop_assert!(failure.message.len() <= MESSAGE_LIMIT_BYTES);
    prop_assert!(failure.raw.as_ref().is_none_or(|raw| raw.len() <= RAW_LIMIT_BYTES));
    Ok(())
}

fn check_answer(body: &[u8]) -> Result<(), TestCaseError> {
    let schema = AnswerSchema::compile(&json!({"type": "object", "required": ["tags"]})).unwrap();
    let answer = match Answer::parse(body) {
        Ok(answer) => answer,
        Err(failure) => {
            prop_assert_eq!(failure.class, FailureClass::Malformed);
            return check_failure(&failure);
        }
    };
    prop_assert!(answer.model.as_ref().is_none_or(|model| model.len() <= MAX_MODEL_BYTES));
    let line = match answer.analysis(&schema) {
        Ok(line) => line,
        Err(failure) => return check_failure(&failure),
    };
    let value: Value = serde_json::from_str(line.get()).unwrap();
    prop_assert!(value.get("tags").is_some() && !is_deeper(&value, MAX_NESTING));
    prop_assert!(line.get().len() <= MAX_ANALYSIS_BYTES && !line.get().contains(['\n', '\r']));
    // Said again, it is the same.
    let again = json!({"choices": [{"message": {"content": line.get()}}]}).to_string();
    let again = Answer::parse(again.as_bytes()).unwrap().analysis(&schema).unwrap();
    prop_assert_eq!(again.get(), line.get());
    Ok(())
}

proptest! {
    #[test]
    fn a_damaged_reply_is_an_analysis_or_a_failure(body in nearly(replies())) {
        check_answer(&body)?;
    }

    #[test]
    fn a_damaged_answer_is_an_analysis_or_a_failure(content in nearly([ANALYSIS, "```json\n{\"tags\":[]}\n```"])) {
        let content = String::from_utf8_lossy(&content);
        let reply = json!({"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}).to_string();
        check_answer(reply.as_bytes())?;
    }

    #[test]
    fn an_answer_that_breaks_off_is_never_taken(at in 1..ANALYSIS.len(), before in "[^{\\[\"`<]{0,20}", after in "[^{}\\[\\]]{0,20}") {
        let schema = AnswerSchema::compile(&json!({})).unwrap();
        let cut = ANALYSIS.floor_char_boundary(at);
        let whole = extract(&format!("{before}{ANALYSIS}{after}"), &schema);
        let whole = whole.unwrap();
        prop_assert_eq!(whole.get(), ANALYSIS);
        let failure = extract(&format!("{before}{}{after}", &ANALYSIS[..cut]), &schema).map(|line| line.get().to_owned());
        prop_assert_eq!(failure.unwrap_err().class, FailureClass::Malformed);
    }

    #[test]
    fn a_damaged_error_is_a_failure(body in nearly(ERRORS), status in 300_u16..600) {
        check_failure(&refusal(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), &body))?;
    }

    #[test]
    fn damaged_limits_are_sound_or_none(
        limit in nearly(["500", "30000"]),
        remaining in nearly(["499", "0"]),
        reset in nearly(["6m0s", "17ms", "2.5", "1741305600000", "2026-01-01T00:00:00Z"]),
        wait in nearly(["7", "0.5", "1e3", "Wed, 21 Oct 2099 07:28:00 GMT"]),
    ) {
        let said = [
            ("x-ratelimit-limit-requests", &limit),
            ("x-ratelimit-remaining-requests", &remaining),
            ("x-ratelimit-reset-requests", &reset),
            ("retry-after", &wait),
            ("retry-after-ms", &wait),
        ];
        let header = |(name, value): (&'static str, &Vec<u8>)| {
            Some((HeaderName::from_static(name), HeaderValue::from_bytes(value).ok()?))
        };
        let hints = LimitHints::of(&said.into_iter().filter_map(header).collect());
        if let Some(rate) = hints.requests {
            prop_assert!(rate.limit >= 1.0 && rate.remaining >= 0.0 && rate.remaining <= rate.limit);
            prop_assert!(rate.per_minute().is_none_or(|rate| rate > 0.0 && rate.is_finite()));
        }
    }
}
