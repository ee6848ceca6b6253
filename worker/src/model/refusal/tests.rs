use std::{collections::BTreeSet, fs, path::Path};

use reqwest::header::{HeaderName, HeaderValue};
use serde_json::json;
use shelfmill_pipeline::job::AnswerSchema;

use super::*;
use crate::answer::Answer;

fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap()
}

fn refused(code: u16, body: &str) -> CallFailure {
    refusal(status(code), &HeaderMap::new(), body.as_bytes())
}

/// What a server's words come to, whether they are in an error or inside of a 200.
fn failure_of(code: u16, headers: &HeaderMap, body: &[u8]) -> CallFailure {
    if code != 200 {
        return refusal(status(code), headers, body);
    }
    let schema = AnswerSchema::compile(&json!({})).unwrap();
    Answer::parse(body).and_then(|answer| answer.analysis(&schema)).map(|line| line.get().len()).unwrap_err()
}

#[test]
fn what_every_server_says_has_its_class() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let index = fs::read_to_string(fixtures.join("index.txt")).unwrap();
    let mut wrong = Vec::new();
    let mut listed = BTreeSet::new();
    let mut has_source = false;
    for line in index.lines() {
        if line.is_empty() || line.starts_with('#') {
            has_source = line.len() > 2;
            continue;
        }
        assert!(std::mem::take(&mut has_source), "no source: {line}");
        let mut words = line.split(' ');
        let mut word = || words.next().unwrap();
        let (file, code, class) =
            (word(), word().parse::<u16>().unwrap(), word().parse::<FailureClass>().unwrap());
        let (mut headers, mut wait, mut unsupported) = (HeaderMap::new(), None, None);
        for (name, value) in words.map(|word| word.split_once('=').unwrap()) {
            match name {
                "wait_ms" => wait = Some(Duration::from_millis(value.parse().unwrap())),
                "unsupported" => unsupported = Some(value.to_owned()),
                name => drop(
                    headers
                        .insert(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap()),
                ),
            }
        }
        let failure = failure_of(code, &headers, &fs::read(fixtures.join(file)).unwrap());
        let got = (failure.class, failure.retry_after, failure.unsupported.map(|what| format!("{what:?}")));
        if got != (class, wait, unsupported.clone()) {
            wrong.push(format!(
                "{file}: {got:?} rather than {:?} ({})",
                (class, wait, unsupported),
                failure.message
            ));
        }
        assert!(listed.insert(file.to_owned()), "twice: {file}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let mut found = BTreeSet::new();
    for folder in
        fs::read_dir(&fixtures).unwrap().map(|folder| folder.unwrap()).filter(|entry| entry.path().is_dir())
    {
        for file in fs::read_dir(folder.path()).unwrap() {
            let name = |name: std::ffi::OsString| name.into_string().unwrap();
            found.insert(format!("{}/{}", name(folder.file_name()), name(file.unwrap().file_name())));
        }
    }
    assert_eq!(found, listed, "files and index differ");
}

#[test]
fn a_message_says_what_a_person_needs() {
    let upstream =
        json!({"error": {"message": "Provider returned error", "metadata": {"raw": "Param Incorrect"}}});
    assert_eq!(
        refused(400, &upstream.to_string()).message,
        "400 Bad Request: Provider returned error: Param Incorrect"
    );
    assert_eq!(refused(500, "").message, "500 Internal Server Error: the server gives no reason");
    let page = "<html><head><title>502 Bad Gateway</title></head></html>";
    assert_eq!(
        refused(502, page).message,
        "502 Bad Gateway: a web page, not an API's answer: 502 Bad Gateway"
    );
    assert_eq!(refused(404, "nothing").message, "404 Not Found: nothing; is the model's URL right?");
    assert_eq!(
        refused(404, "{\"error\":\"model 'x' not found\"}").message,
        "404 Not Found: model 'x' not found"
    );
    let inside = error_inside("{\"code\":402,\"message\":\"Insufficient credits\"}");
    assert_eq!(inside.message, "the reply is an error: Insufficient credits");
}

#[test]
fn waits_are_read_from_sentences() {
    for (words, ms) in [
        ("please try again in 18.642s. visit", Some(18_642)),
        ("please try again in 6m0s.", Some(360_000)),
        ("please retry after 86400 seconds. please", Some(86_400_000)),
        ("try again in 1 second.", Some(1_000)),
        ("try again in 2 minutes, or", Some(120_000)),
        ("retry after 3 hours", Some(10_800_000)),
        ("retry after in-flight requests settle", None),
        ("try again in a while", None),
        ("try again in 5", None),
        ("try again in ", None),
        ("try again later", None),
    ] {
        assert_eq!(wait_in_words(words), ms.map(Duration::from_millis), "{words}");
    }
}

#[test]
fn only_what_may_go_better_has_a_wait() {
    let body = json!({"error": {"message": "Quota is used up, retry after 9 seconds", "code": "insufficient_quota"}});
    assert_eq!(refused(429, &body.to_string()).retry_after, None);
}

#[test]
fn a_list_of_one_error_is_an_error() {
    let failure = refused(400, "[{\"error\":{\"code\":400,\"message\":\"model not found\"}}]");
    assert_eq!(
        (failure.class, failure.message.as_str()),
        (FailureClass::ModelNotFound, "400 Bad Request: model not found")
    );
}

#[test]
fn what_a_prompt_is_refused_for_is_no_missing_parameter() {
    // The status counts: a 429 about `temperature` is no missing parameter, nor is a value that is out of range.
    let about = |code: u16, message: &str, param: &str| {
        refused(code, &json!({"error": {"message": message, "param": param}}).to_string()).unsupported
    };
    assert_eq!(about(400, "'temperature' is not supported", ""), Some(Unsupported::Temperature));
    assert_eq!(about(429, "'temperature' is not supported", ""), None);
    assert_eq!(about(400, "temperature must be at most 2", "temperature"), None);
    assert_eq!(
        about(400, "max_tokens is too large: 100000. This model supports at most 16384", "max_tokens"),
        None
    );
    assert_eq!(about(400, "'messages' is not supported, nor is temperature", "messages"), None);
}

#[test]
fn one_sign_is_enough() {
    let class = |code: u16, error: Value| refused(code, &json!({"error": error}).to_string()).class;
    for source in [
        "openrouter_credits",
        "openrouter_key_limit",
        "openrouter_guardrail_budget",
        "openrouter_workspace_budget",
    ] {
        assert_eq!(class(403, json!({"metadata": {"limit_source": source}})), FailureClass::QuotaExhausted);
    }
    for metadata in [json!({"reasons": []}), json!({"flagged_input": ""})] {
        assert_eq!(class(403, json!({"metadata": metadata})), FailureClass::ContentFiltered);
    }
    assert_eq!(class(400, json!({"code": "content_filter"})), FailureClass::ContentFiltered);
    assert_eq!(class(400, json!({"code": "invalid_api_key"})), FailureClass::Unauthorized);
    let upstream = json!({"metadata": {"raw": "{\"error\":{\"code\":\"context_length_exceeded\"}}"}});
    assert_eq!(class(400, upstream), FailureClass::ContextTooLong);
    let unsupported = |error: Value| refused(400, &json!({"error": error}).to_string()).unsupported;
    for error in [
        json!({"message": "This model does not support response format `json_schema`."}),
        json!({"message": "This response_format type is unavailable now"}),
        json!({"message": "Invalid schema for response_format 'x': 'required' is missing"}),
    ] {
        assert_eq!(unsupported(error), Some(Unsupported::ResponseFormat));
    }
    for code in ["unsupported_value", "unsupported_parameter", "unknown_parameter"] {
        let error = json!({"message": "no", "param": "temperature", "code": code});
        assert_eq!(unsupported(error), Some(Unsupported::Temperature));
    }
}
