//! Sound answers, and what is told to requests that are wrong.

use serde_json::json;
use shelfmill_simulator::Config;

use crate::client::{Server, question, request, schema};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn an_answer_is_valid_and_looks_like_openais() {
    let server = Server::start(Config::default()).await;
    let validator = jsonschema::validator_for(&schema()).unwrap();
    for number in 0..100 {
        let id = format!("sku-{number}");
        let response = server.ask(&id, 1).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.header("content-type"), Some("application/json"));
        assert!(response.header("x-request-id").unwrap().starts_with("req_"));
        assert!(response.header("openai-processing-ms").unwrap().parse::<u64>().is_ok());
        assert!(response.header("x-ratelimit-limit-requests").is_none());
        let body = response.json();
        assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
        assert_eq!(body["object"], "chat.completion");
        assert!(body["created"].as_u64().unwrap() > 1_700_000_000);
        assert_eq!(body["model"], "simulated");
        assert_eq!(body["choices"].as_array().unwrap().len(), 1);
        let choice = &body["choices"][0];
        assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(0), &json!("stop")));
        assert_eq!(
            (&choice["message"]["role"], &choice["message"]["refusal"]),
            (&json!("assistant"), &json!(null))
        );
        let analysis = response.analysis();
        assert!(validator.is_valid(&analysis), "{analysis}");
        assert!(analysis["summary"].as_str().unwrap().contains(&format!("Mug {id}")), "{analysis}");
        let usage = &body["usage"];
        let (prompt, completion) = (&usage["prompt_tokens"], &usage["completion_tokens"]);
        assert_eq!(completion.as_u64().unwrap() as usize, response.content().len().div_ceil(4));
        assert!((100..400).contains(&prompt.as_u64().unwrap()));
        assert_eq!(usage["total_tokens"], prompt.as_u64().unwrap() + completion.as_u64().unwrap());
    }
}

#[tokio::test]
async fn the_same_product_gets_the_same_answer_on_one_connection_and_after_a_restart() {
    let first = Server::start(Config::default()).await;
    let second = Server::start(Config::default()).await;
    let mut kept = first.client().await;
    let answer = kept.ask("a", 1).await.unwrap().content();
    assert_eq!(kept.ask("a", 2).await.unwrap().content(), answer);
    assert_eq!(second.ask("a", 7).await.content(), answer);
    assert_ne!(kept.ask("b", 1).await.unwrap().content(), answer);
    let other = Server::start(Config { seed: 1, ..Config::default() }).await;
    assert_ne!(other.ask("a", 1).await.content(), answer);
}

#[tokio::test]
async fn without_a_schema_there_is_a_summary_and_tags() {
    let server = Server::start(Config::default()).await;
    let mut body = request("a");
    for format in [json!({"type": "json_object"}), json!({"type": "text"}), json!(null)] {
        body["response_format"] = format;
        let response = server.post("/chat/completions", "", body.to_string().as_bytes()).await;
        let analysis = response.analysis();
        assert!(analysis["summary"].as_str().unwrap().contains("Mug a"));
        assert!(!analysis["tags"].as_array().unwrap().is_empty());
    }
}

#[tokio::test]
async fn wrong_requests_get_openais_errors() {
    let server = Server::start(Config::default()).await;
    let mut streaming = request("a");
    streaming["stream"] = json!(true);
    let mut unsatisfiable = request("a");
    unsatisfiable["response_format"]["json_schema"]["schema"] = json!({"type": "nonsense"});
    for (body, told) in [
        ("{".to_owned(), "could not parse the JSON body"),
        (r#"{"model":"x"}"#.to_owned(), "Missing required parameter: 'messages'"),
        (streaming.to_string(), "does not stream"),
        (unsatisfiable.to_string(), "Invalid schema for response_format 'analysis'"),
    ] {
        let response = server.post(CHAT, "", body.as_bytes()).await;
        assert_eq!(response.status(), 400);
        let error = &response.json()["error"];
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["message"].as_str().unwrap().contains(told), "{error}");
        assert!(error.get("param").is_some() && error.get("code").is_some());
    }
    let unknown = server.get("/v1/embeddings").await;
    assert_eq!((unknown.status(), &unknown.json()["error"]["type"]), (404, &json!("invalid_request_error")));
    let method = server.get(CHAT).await;
    assert_eq!((method.status(), method.header("allow")), (405, Some("POST")));
    let stats = server.stats().await;
    assert_eq!((&stats["calls"], &stats["rejected"], &stats["answers"]), (&json!(4), &json!(4), &json!(0)));
}

#[tokio::test]
async fn requests_beyond_32_mebibytes_are_told_so() {
    let server = Server::start(Config::default()).await;
    let mut body = request("a");
    body["messages"][1]["content"] = json!("x".repeat(32 * 1024 * 1024 - 4096));
    let body = body.to_string();
    assert_eq!(server.post(CHAT, "", body.as_bytes()).await.status(), 200);
    for more in [8 * 1024, 16 * 1024 * 1024] {
        let padded = body.clone() + &" ".repeat(more);
        let response = server.post(CHAT, "", padded.as_bytes()).await;
        assert_eq!(response.status(), 413);
        assert!(response.json()["error"]["message"].as_str().unwrap().contains("33554432 bytes"));
    }
}

#[tokio::test]
async fn keys_are_checked_if_there_is_one() {
    let server = Server::start(Config { api_key: Some("sk-right".into()), ..Config::default() }).await;
    for header in ["", "authorization: Bearer sk-wrong\r\n"] {
        let response = server.post(CHAT, header, &question("a")).await;
        assert_eq!(response.status(), 401);
        assert_eq!(response.json()["error"]["code"], "invalid_api_key");
        assert!(!String::from_utf8_lossy(&response.body).contains("sk-"));
    }
    assert_eq!(server.get("/v1/models").await.status(), 401);
    assert_eq!(server.get("/healthz").await.status(), 200);
    assert_eq!(server.post(CHAT, "authorization: Bearer sk-right\r\n", &question("a")).await.status(), 200);
}

#[tokio::test]
async fn models_and_health_are_told() {
    let server = Server::start(Config::default()).await;
    assert_eq!(server.get("/v1/models").await.json()["data"][0]["id"], "simulated");
    assert_eq!(server.get("/healthz").await.body, b"ok");
}

#[tokio::test]
async fn calls_are_counted_by_product_until_a_reset() {
    let server = Server::start(Config::default()).await;
    server.ask("a%2Fb", 1).await;
    server.ask("a%2Fb", 2).await;
    server.post(CHAT, "", &question("nameless")).await;
    let stats = server.stats().await;
    assert_eq!((&stats["calls"], &stats["answers"], &stats["products"]), (&json!(3), &json!(3), &json!(2)));
    let product = &stats["by_product"]["a/b"];
    assert_eq!((&product["calls"], &product["answers"]), (&json!(2), &json!(2)));
    let hashed = stats["by_product"].as_object().unwrap().keys().find(|key| *key != "a/b").unwrap();
    assert!(hashed.len() == 16 && hashed.bytes().all(|byte| byte.is_ascii_hexdigit()), "{hashed}");
    assert!(server.get("/stats?by_product=false").await.json().get("by_product").is_none());
    assert_eq!(server.post("/reset", "", b"").await.status(), 200);
    let stats = server.stats().await;
    assert_eq!((&stats["calls"], &stats["by_product"]), (&json!(0), &json!({})));
}
