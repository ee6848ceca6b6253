//! How providers differ, and how they say no.

use std::time::Duration;

use serde_json::{Value, json};
use shelfmill_simulator::{Config, Faults, Structured};

use crate::client::{Client, Response, Server, question, request, schema};

const CHAT: &str = "/v1/chat/completions";

async fn post(server: &Server, id: &str, body: &Value) -> Response {
    let header = format!("x-client-request-id: {id}/1\r\n");
    server.post(CHAT, &header, body.to_string().as_bytes()).await
}

/// Sends a question that is not going to be answered soon.
async fn left_waiting(server: &Server, id: &str) -> Client {
    let (mut client, body) = (server.client().await, question(id));
    let length = body.len();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-client-request-id: {id}/1\r\ncontent-length: {length}\r\n\r\n"
    );
    client.write(&head, &body).await;
    client
}

/// The usual question, with this response format.
fn formatted(format: Value) -> Value {
    let mut body = request("a");
    body["response_format"] = format;
    body
}

/// As a worker asks a server that knows no schemas.
fn told_in_words() -> Value {
    let mut body = formatted(json!(null));
    body["messages"][0]["content"] = json!(format!("You analyse products.\nJSON schema:\n{:#}", schema()));
    body
}

#[tokio::test]
async fn response_formats_it_does_not_know_are_refused_in_openais_words() {
    let object = formatted(json!({"type": "json_object"}));
    let text = formatted(json!({"type": "text"}));
    for (structured, statuses) in [
        (Structured::JsonSchema, [200, 200, 200]),
        (Structured::JsonObject, [400, 200, 200]),
        (Structured::None, [400, 400, 200]),
    ] {
        let server = Server::start(Config { structured, ..Config::default() }).await;
        for (body, status) in [&request("a"), &object, &text].into_iter().zip(statuses) {
            let response = post(&server, "a", body).await;
            assert_eq!(response.status(), status, "{structured:?}");
            if status == 400 {
                let error = &response.json()["error"];
                let kind = &body["response_format"]["type"].as_str().unwrap();
                let told = format!(
                    "Invalid parameter: 'response_format' of type '{kind}' is not supported with this model."
                );
                assert!(error["message"].as_str().unwrap().starts_with(&told), "{error}");
                assert_eq!(error["type"], "invalid_request_error");
                assert_eq!((&error["param"], &error["code"]), (&json!("response_format"), &json!(null)));
            }
        }
        let stats = server.stats().await;
        assert_eq!(stats["rejected"], statuses.iter().filter(|status| **status == 400).count());
    }
}

#[tokio::test]
async fn a_schema_that_is_told_in_words_is_kept() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let server = Server::start(Config { structured: Structured::None, ..Config::default() }).await;
    let words = told_in_words();
    let mut parts = words.clone();
    parts["messages"][0]["content"] = json!([{"type": "text", "text": words["messages"][0]["content"]}]);
    let mut user = request("a");
    user["response_format"] = json!(null);
    let text = format!("{}\nJSON schema:\n{}\n", user["messages"][1]["content"].as_str().unwrap(), schema());
    user["messages"][1]["content"] = json!(text);
    for body in [words, parts, user] {
        let analysis = post(&server, "a", &body).await.analysis();
        assert!(validator.is_valid(&analysis), "{analysis}");
    }
    let mut nonsense = told_in_words();
    nonsense["messages"][0]["content"] = json!("JSON schema:\n{\"type\": \"nonsense\"}");
    let analysis = post(&server, "a", &nonsense).await.analysis();
    assert!(analysis.get("score").is_none() && analysis.get("summary").is_some(), "{analysis}");
}

#[tokio::test]
async fn a_schema_in_words_can_be_violated() {
    let faults = Faults { schema_violation: 1.0, ..Faults::default() };
    let server = Server::with_faults(faults).await;
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let analysis = post(&server, "a", &told_in_words()).await.analysis();
    assert!(!validator.is_valid(&analysis), "{analysis}");
}

#[tokio::test]
async fn prose_has_the_sound_answer_in_it() {
    let sound = Server::start(Config::default()).await;
    let server = Server::with_faults(Faults { prose: 1.0, ..Faults::default() }).await;
    let (mut fenced, mut bare) = (0, 0);
    for number in 0..40 {
        let id = format!("p{number}");
        let response = server.ask(&id, 1).await;
        assert_eq!(response.finish_reason(), "stop");
        let content = response.content();
        assert!(serde_json::from_str::<Value>(&content).is_err(), "{content}");
        let json = &content[content.find('{').unwrap()..=content.rfind('}').unwrap()];
        let analysis: Value = serde_json::from_str(json).unwrap();
        assert_eq!(analysis, sound.ask(&id, 1).await.analysis());
        *(if content.contains("```") { &mut fenced } else { &mut bare }) += 1;
    }
    assert!(fenced > 15 && bare > 3, "{fenced} fenced, {bare} bare");
    let stats = server.stats().await;
    assert_eq!((&stats["faults"]["prose"], &stats["answers"]), (&json!(40), &json!(40)));
}

#[tokio::test]
async fn limits_can_be_kept_secret() {
    let config = Config {
        max_requests_per_second: Some(0.5),
        max_tokens_per_minute: Some(100_000),
        limit_headers: false,
        ..Config::default()
    };
    let server = Server::start(config).await;
    let (granted, refused) = (server.ask("a", 1).await, server.ask("b", 1).await);
    assert_eq!((granted.status(), refused.status()), (200, 429));
    assert_eq!(refused.header("retry-after"), Some("2"));
    for response in [granted, refused] {
        assert!(!response.head.to_lowercase().contains("x-ratelimit"), "{}", response.head);
    }
}

#[tokio::test]
async fn a_quota_ends_for_good() {
    let server = Server::start(Config { quota_after: Some(2), ..Config::default() }).await;
    for (call, status) in [(1, 200), (2, 200), (3, 429), (4, 429)] {
        let response = server.ask("a", call).await;
        assert_eq!(response.status(), status);
        if status == 429 {
            let error = &response.json()["error"];
            assert_eq!(response.header("retry-after"), None);
            assert_eq!(
                (&error["type"], &error["code"]),
                (&json!("insufficient_quota"), &json!("insufficient_quota"))
            );
            assert!(error["message"].as_str().unwrap().starts_with("You exceeded your current quota"));
        }
    }
    let stats = server.stats().await;
    assert_eq!((&stats["answers"], &stats["faults"]["out_of_quota"]), (&json!(2), &json!(2)));
    server.post("/reset", "", b"").await;
    assert_eq!(server.ask("a", 5).await.status(), 200);
}

#[tokio::test]
async fn one_model_may_be_unknown() {
    let unknown_model = Some("gpt-whatever".to_owned());
    let server = Server::start(Config { unknown_model, ..Config::default() }).await;
    let refused = server.ask("a", 1).await;
    let error = &refused.json()["error"];
    assert_eq!((refused.status(), &error["code"]), (404, &json!("model_not_found")));
    assert_eq!(error["message"], "The model `gpt-whatever` does not exist or you do not have access to it.");
    let mut other = request("a");
    other["model"] = json!("gpt-other");
    assert_eq!(post(&server, "a", &other).await.status(), 200);
    assert_eq!(server.stats().await["rejected"], 1);
}

#[tokio::test]
async fn some_products_always_hang() {
    let hang_products = vec!["b".to_owned(), "c/d".to_owned()];
    let server = Server::start(Config { hang_products, ..Config::default() }).await;
    assert_eq!(server.ask("a", 1).await.status(), 200);
    let clients = [left_waiting(&server, "b").await, left_waiting(&server, "c%2Fd").await];
    let stats = server.until("two hung calls", |stats| stats["faults"]["hung"] == 2).await;
    assert_eq!((&stats["in_flight"], &stats["answers"]), (&json!(2), &json!(1)));
    drop(clients);
    server.until("no call in flight", |stats| stats["in_flight"] == 0).await;
    let _again = left_waiting(&server, "b").await;
    server.until("the third", |stats| stats["faults"]["hung"] == 3 && stats["in_flight"] == 1).await;
}

#[tokio::test]
async fn some_products_are_always_refused() {
    let server = Server::start(Config { forbid_products: vec!["b".to_owned()], ..Config::default() }).await;
    assert_eq!(server.ask("a", 1).await.status(), 200);
    assert_eq!([server.ask("b", 1).await.status(), server.ask("b", 2).await.status()], [403, 403]);
    assert_eq!(server.stats().await["rejected"], 2);
}

#[tokio::test]
async fn more_calls_at_once_than_there_are_places_are_told_to_come_back() {
    let hang_products = vec!["hung".to_owned()];
    let config = Config { overloaded_after: Some(2), hang_products, ..Config::default() };
    let server = Server::start(config).await;
    let first = left_waiting(&server, "hung").await;
    server.until("the first", |stats| stats["faults"]["hung"] == 1).await;
    assert_eq!(server.ask("a", 1).await.status(), 200);
    let second = left_waiting(&server, "hung").await;
    server.until("the second", |stats| stats["faults"]["hung"] == 2).await;
    for call in 1..=3 {
        let refused = server.ask("a", call).await;
        assert_eq!((refused.status(), refused.header("retry-after")), (503, Some("1")));
        assert_eq!(refused.json()["error"]["type"], "server_error");
    }
    drop(first);
    server.until("a place", |stats| stats["in_flight"] == 1).await;
    for call in 4..=8 {
        assert_eq!(server.ask("a", call).await.status(), 200, "a place is free again");
    }
    assert_eq!(server.stats().await["faults"]["overloaded"], 3);
    drop(second);
}

#[tokio::test]
async fn none_is_let_in_where_there_are_no_places() {
    let config = Config { overloaded_after: Some(0), latency: Duration::from_secs(60), ..Config::default() };
    let server = Server::start(config).await;
    assert_eq!(server.ask("a", 1).await.status(), 503, "and at once");
}

/// The question, an answer to it, and what was wrong with that.
fn conversation(id: &str, answer: &str) -> Value {
    let mut body = request(id);
    let complaint = "Your answer does not fit: /tags has less than 2 items. Answer again, with JSON alone.";
    let messages = body["messages"].as_array_mut().unwrap();
    messages.push(json!({"role": "assistant", "content": answer}));
    messages.push(json!({"role": "user", "content": complaint}));
    body
}

#[tokio::test]
async fn asked_again_in_the_same_conversation_it_answers_about_the_same_product() {
    let server = Server::start(Config::default()).await;
    let validator = jsonschema::validator_for(&schema()).unwrap();
    for number in 0..20 {
        let id = format!("sku-{number}");
        let first = server.ask(&id, 1).await;
        let again = post(&server, &id, &conversation(&id, &first.content())).await;
        let analysis = again.analysis();
        assert!(validator.is_valid(&analysis), "{analysis}");
        assert!(analysis["summary"].as_str().unwrap().contains(&format!("Mug {id}")), "{analysis}");
        assert_ne!(again.content(), first.content(), "it follows the last message");
        let usage = |response: &Response| response.json()["usage"]["prompt_tokens"].as_u64().unwrap();
        assert!(usage(&again) > usage(&first), "the whole conversation is read");
        assert_eq!(server.stats().await["by_product"][&id]["answers"], 2);
    }
}

#[tokio::test]
async fn each_turn_of_a_conversation_rolls_for_its_own_fault() {
    let faults = Faults { schema_violation: 0.5, ..Faults::default() };
    let (first, second) = (Server::with_faults(faults.clone()).await, Server::with_faults(faults).await);
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let mut mended = 0;
    for number in 0..40 {
        let id = format!("p{number}");
        let answer = first.ask(&id, 1).await;
        let body = conversation(&id, &answer.content());
        // Under the number of the first call: a client may count its turns apart.
        let again = post(&first, &id, &body).await;
        assert_eq!(post(&second, &id, &body).await.content(), again.content());
        let valid = [&answer, &again].map(|response| validator.is_valid(&response.analysis()));
        mended += usize::from(valid == [false, true]);
    }
    assert!((3..=17).contains(&mended), "{mended} of 40 were wrong first and right then");
}

#[tokio::test]
async fn a_schema_in_words_holds_for_the_whole_conversation() {
    let server = Server::start(Config { structured: Structured::None, ..Config::default() }).await;
    let mut body = conversation("a", "{}");
    body["response_format"] = json!(null);
    body["messages"][0] = told_in_words()["messages"][0].take();
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let analysis = post(&server, "a", &body).await.analysis();
    assert!(validator.is_valid(&analysis), "{analysis}");
}
