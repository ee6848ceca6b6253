//! Tokens: what is counted, what an answer may have, and what fits.

use serde_json::{Value, json};
use shelfmill_simulator::{Config, Faults};

use crate::client::{Response, Server, request, schema};

const CHAT: &str = "/v1/chat/completions";

/// Asks for `id` with these members added to the usual request.
async fn ask_with(server: &Server, id: &str, members: Value) -> Response {
    let mut body = request(id);
    body.as_object_mut().unwrap().append(&mut members.as_object().unwrap().clone());
    let header = format!("x-client-request-id: {id}/1\r\n");
    server.post(CHAT, &header, body.to_string().as_bytes()).await
}

fn counts(of: &Value) -> [u64; 3] {
    ["prompt_tokens", "completion_tokens", "unseen_tokens"].map(|name| of[name].as_u64().unwrap())
}

#[tokio::test]
async fn every_completion_that_is_sent_is_billed() {
    for share in
        ["sound", "malformed", "truncated", "schema_violation", "refused", "content_filtered", "prose"]
    {
        let mut faults = Faults::default();
        match share {
            "malformed" => faults.malformed = 1.0,
            "truncated" => faults.truncated = 1.0,
            "schema_violation" => faults.schema_violation = 1.0,
            "refused" => faults.refused = 1.0,
            "content_filtered" => faults.content_filtered = 1.0,
            "prose" => faults.prose = 1.0,
            _ => {}
        }
        let server = Server::with_faults(faults).await;
        let mut billed = [0; 3];
        for id in ["a", "b", "b"] {
            let usage = server.ask(id, 1).await.json()["usage"].take();
            billed[0] += usage["prompt_tokens"].as_u64().unwrap();
            billed[1] += usage["completion_tokens"].as_u64().unwrap();
        }
        let stats = server.stats().await;
        assert_eq!(counts(&stats), billed, "{share}: {stats}");
        let by_product = &stats["by_product"];
        let (a, b) = (counts(&by_product["a"]), counts(&by_product["b"]));
        assert_eq!([a[0] + b[0], a[1] + b[1], a[2] + b[2]], billed, "{share}: {stats}");
        assert!(a[0] > 0 && b[0] == 2 * a[0], "{share}: {stats}");
    }
}

#[tokio::test]
async fn what_is_cut_off_is_billed_unseen_and_refusals_cost_nothing() {
    let whole = Server::start(Config::default()).await.ask("a", 1).await.json();
    let cut = Server::with_faults(Faults { cut_off: 1.0, ..Faults::default() }).await;
    assert!(cut.client().await.ask("a", 1).await.is_none());
    let stats = cut.until("no call in flight", |stats| stats["in_flight"] == 0).await;
    let unseen = whole["usage"]["total_tokens"].as_u64().unwrap();
    assert_eq!(counts(&stats), [0, 0, unseen], "{stats}");
    assert_eq!(counts(&stats["by_product"]["a"]), [0, 0, unseen], "{stats}");
    for faults in [
        Faults { server_error: 1.0, ..Faults::default() },
        Faults { rate_limited: 1.0, ..Faults::default() },
        Faults { bad_request: 1.0, ..Faults::default() },
    ] {
        let server = Server::with_faults(faults).await;
        server.ask("a", 1).await;
        assert_eq!(counts(&server.stats().await), [0, 0, 0]);
    }
}

#[tokio::test]
async fn an_answer_ends_at_the_ceiling() {
    let server = Server::start(Config::default()).await;
    let whole = server.ask("ä", 1).await;
    let tokens = whole.json()["usage"]["completion_tokens"].as_u64().unwrap();
    for name in ["max_tokens", "max_completion_tokens"] {
        let enough = ask_with(&server, "ä", json!({name: tokens})).await;
        assert_eq!((enough.content(), enough.finish_reason()), (whole.content(), "stop".to_owned()));
        for ceiling in 1..tokens {
            let cut = ask_with(&server, "ä", json!({name: ceiling})).await;
            assert_eq!(cut.finish_reason(), "length");
            assert_eq!(cut.json()["usage"]["completion_tokens"], ceiling);
            assert!(whole.content().starts_with(&cut.content()));
        }
    }
    let stats = server.stats().await;
    assert_eq!((&stats["answers"], &stats["faults"]["at_ceiling"]), (&json!(3), &json!(2 * (tokens - 1))));
    assert_eq!(stats["calls"], 1 + 2 * tokens);
    let wrong = ask_with(&server, "ä", json!({"max_tokens": 0})).await;
    assert_eq!((wrong.status(), &wrong.json()["error"]["param"]), (400, &json!("max_tokens")));
}

#[tokio::test]
async fn a_ceiling_holds_for_what_is_spoiled_too() {
    for faults in [
        Faults { refused: 1.0, ..Faults::default() },
        Faults { malformed: 1.0, ..Faults::default() },
        Faults { prose: 1.0, ..Faults::default() },
    ] {
        let server = Server::with_faults(faults).await;
        let cut = ask_with(&server, "a", json!({"max_tokens": 3})).await;
        assert_eq!(
            (cut.finish_reason(), &cut.json()["usage"]["completion_tokens"]),
            ("length".into(), &json!(3))
        );
        assert_eq!(server.stats().await["answers"], 0);
    }
}

#[tokio::test]
async fn prompts_beyond_the_window_are_refused_in_openais_words() {
    let roomy = Server::start(Config::default()).await;
    let usage = roomy.ask("a", 1).await.json()["usage"].take();
    let (prompt, completion) =
        (usage["prompt_tokens"].as_u64().unwrap(), usage["completion_tokens"].as_u64().unwrap());
    let window = prompt + completion;
    let server = Server::start(Config { context_window: Some(window), ..Config::default() }).await;
    assert_eq!(ask_with(&server, "a", json!({"max_tokens": completion})).await.finish_reason(), "stop");
    let refused = ask_with(&server, "a", json!({"max_tokens": completion + 1})).await;
    let error = &refused.json()["error"];
    assert_eq!((refused.status(), &error["code"]), (400, &json!("context_length_exceeded")));
    assert_eq!((&error["type"], &error["param"]), (&json!("invalid_request_error"), &json!("messages")));
    let told = format!(
        "This model's maximum context length is {window} tokens. However, you requested {} tokens ({prompt} in the \
         messages, {} in the completion). Please reduce the length of the messages or completion.",
        window + 1,
        completion + 1
    );
    assert_eq!(error["message"], told);
    assert_eq!(server.stats().await["rejected"], 1);

    let narrow = |window| Server::start(Config { context_window: Some(window), ..Config::default() });
    let refused = narrow(prompt - 1).await.ask("a", 1).await.json();
    assert!(refused["error"]["message"].as_str().unwrap().contains("your messages resulted in"), "{refused}");
    let cut = narrow(prompt + 2).await.ask("a", 1).await;
    assert_eq!(
        (cut.finish_reason(), &cut.json()["usage"]["completion_tokens"]),
        ("length".into(), &json!(2))
    );
    let huge = ask_with(&server, "a", json!({"max_tokens": u64::MAX})).await;
    assert_eq!(huge.json()["error"]["code"], "context_length_exceeded");
}

#[tokio::test]
async fn tokens_over_the_limit_are_told_when_to_come_back() {
    let server = Server::start(Config { max_tokens_per_minute: Some(1_000), ..Config::default() }).await;
    let granted = ask_with(&server, "a", json!({"max_tokens": 600})).await;
    assert_eq!(granted.status(), 200);
    let wanted = granted.json()["usage"]["prompt_tokens"].as_u64().unwrap() + 600;
    assert_eq!(granted.header("x-ratelimit-limit-tokens"), Some("1000"));
    let remaining: u64 = granted.header("x-ratelimit-remaining-tokens").unwrap().parse().unwrap();
    assert_eq!(remaining, 1_000 - wanted);
    let refused = ask_with(&server, "b", json!({"max_tokens": 600})).await;
    let error = &refused.json()["error"];
    assert_eq!((refused.status(), &error["code"]), (429, &json!("rate_limit_exceeded")));
    assert_eq!(error["type"], "tokens");
    assert!(error["message"].as_str().unwrap().contains("tokens per min (TPM): Limit 1000, Used"), "{error}");
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    let exact = (wanted - remaining) * 60 / 1_000;
    assert!((exact.saturating_sub(1)..=exact + 1).contains(&seconds), "{seconds} for {exact}");
    assert!(refused.header("x-ratelimit-reset-tokens").unwrap().ends_with('s'));
    assert!(refused.header("x-ratelimit-limit-requests").is_none());

    let never = ask_with(&server, "c", json!({"max_tokens": 1_000})).await;
    assert_eq!((never.status(), never.header("retry-after")), (429, None));
    assert!(never.json()["error"]["message"].as_str().unwrap().starts_with("Request too large for"));
    let stats = server.stats().await;
    assert_eq!((&stats["answers"], &stats["faults"]["over_token_limit"]), (&json!(1), &json!(2)));
    assert_eq!(stats["faults"]["over_limit"], 0);
}

#[tokio::test]
async fn the_schema_costs_tokens_like_the_messages() {
    let server = Server::start(Config::default()).await;
    let with = server.ask("a", 1).await.json()["usage"]["prompt_tokens"].as_u64().unwrap();
    let without = ask_with(&server, "a", json!({"response_format": null})).await;
    let without = without.json()["usage"]["prompt_tokens"].as_u64().unwrap();
    let schema = (schema().to_string().len() / 4) as u64;
    assert!((schema..=schema + 1).contains(&(with - without)), "{with} and {without}");
}
