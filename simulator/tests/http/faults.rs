//! Each fault, as a client meets it. A share of 1 makes every call meet it.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use shelfmill_simulator::{Config, Faults};
use tokio::time::Instant;

use crate::client::{Server, question, schema};

async fn always(name: &str) -> Server {
    let mut faults = Faults::default();
    let share = match name {
        "rate_limited" => &mut faults.rate_limited,
        "server_error" => &mut faults.server_error,
        "malformed" => &mut faults.malformed,
        "truncated" => &mut faults.truncated,
        "hung" => &mut faults.hung,
        "cut_off" => &mut faults.cut_off,
        "refused" => &mut faults.refused,
        "content_filtered" => &mut faults.content_filtered,
        "schema_violation" => &mut faults.schema_violation,
        "bad_request" => &mut faults.bad_request,
        other => panic!("no fault is called {other}"),
    };
    *share = 1.0;
    Server::with_faults(faults).await
}

async fn counted(server: &Server, name: &str, times: u64) {
    let stats = server.until("no call in flight", |stats| stats["in_flight"] == 0).await;
    assert_eq!(stats["faults"][name], times, "{stats}");
    assert_eq!(stats["answers"], 0, "{stats}");
    let all: u64 = stats["faults"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
    assert_eq!(all, times, "{stats}");
}

#[tokio::test]
async fn rate_limited() {
    let server = always("rate_limited").await;
    let response = server.ask("a", 1).await;
    assert_eq!((response.status(), response.header("retry-after")), (429, Some("1")));
    assert_eq!(response.json()["error"]["code"], "rate_limit_exceeded");
    counted(&server, "rate_limited", 1).await;
}

#[tokio::test]
async fn server_error() {
    let server = always("server_error").await;
    let mut seen = BTreeSet::new();
    for number in 0..40 {
        let response = server.ask(&format!("p{number}"), 1).await;
        assert_eq!(response.json()["error"]["type"], "server_error");
        seen.insert(response.status());
    }
    assert_eq!(seen, BTreeSet::from([500, 502, 503]));
    counted(&server, "server_error", 40).await;
}

#[tokio::test]
async fn malformed() {
    let server = always("malformed").await;
    for number in 0..40 {
        let response = server.ask(&format!("p{number}"), 1).await;
        assert_eq!(
            (response.status(), &response.json()["choices"][0]["finish_reason"]),
            (200, &json!("stop"))
        );
        let content = response.content();
        assert!(!content.is_empty() && serde_json::from_str::<Value>(&content).is_err(), "{content}");
    }
    counted(&server, "malformed", 40).await;
}

#[tokio::test]
async fn truncated() {
    let server = always("truncated").await;
    let whole = Server::start(Config::default()).await.ask("ä", 1).await.content();
    let response = server.ask("ä", 1).await;
    assert_eq!((response.status(), &response.json()["choices"][0]["finish_reason"]), (200, &json!("length")));
    let content = response.content();
    assert!(whole.starts_with(&content) && content.len() < whole.len(), "{content}");
    counted(&server, "truncated", 1).await;
}

#[tokio::test]
async fn hung_until_the_client_leaves() {
    let server = always("hung").await;
    let mut client = server.client().await;
    let body = question("a");
    let head =
        format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    client.write(&head, &body).await;
    server.until("the hung call", |stats| stats["in_flight"] == 1).await;
    drop(client);
    counted(&server, "hung", 1).await;
}

#[tokio::test]
async fn hung_until_the_simulator_stops() {
    let mut server = always("hung").await;
    let mut client = server.client().await;
    let idle = server.client().await;
    let asking = tokio::spawn(async move { client.ask("a", 1).await.is_none() });
    server.until("the hung call", |stats| stats["in_flight"] == 1).await;
    let took = server.stop().await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(asking.await.unwrap(), "a hung call was answered");
    drop(idle);
}

#[tokio::test]
async fn cut_off() {
    let server = always("cut_off").await;
    for number in 0..20 {
        let mut client = server.client().await;
        assert!(client.ask(&format!("p{number}"), 1).await.is_none());
        let partial = String::from_utf8_lossy(client.partial());
        let (head, body) = partial.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no headers: {partial}"));
        assert!(head.starts_with("HTTP/1.1 200"));
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        assert_eq!(body.len(), length.parse::<usize>().unwrap() / 2);
    }
    counted(&server, "cut_off", 20).await;
}

#[tokio::test]
async fn refused() {
    let server = always("refused").await;
    let response = server.ask("a", 1).await.json();
    let choice = &response["choices"][0];
    assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!(null), &json!("stop")));
    assert!(choice["message"]["refusal"].as_str().unwrap().contains("can't help"));
    counted(&server, "refused", 1).await;
}

#[tokio::test]
async fn content_filtered() {
    let server = always("content_filtered").await;
    let response = server.ask("a", 1).await;
    assert_eq!(response.json()["choices"][0]["finish_reason"], "content_filter");
    assert_eq!(response.content(), "");
    counted(&server, "content_filtered", 1).await;
}

#[tokio::test]
async fn schema_violation() {
    let server = always("schema_violation").await;
    let validator = jsonschema::validator_for(&schema()).unwrap();
    for number in 0..40 {
        let analysis = server.ask(&format!("p{number}"), 1).await.analysis();
        assert!(!validator.is_valid(&analysis), "{analysis}");
    }
    counted(&server, "schema_violation", 40).await;
}

#[tokio::test]
async fn bad_request() {
    let server = always("bad_request").await;
    let response = server.ask("a", 1).await;
    assert_eq!(
        (response.status(), &response.json()["error"]["type"]),
        (400, &json!("invalid_request_error"))
    );
    counted(&server, "bad_request", 1).await;
}

#[tokio::test]
async fn a_run_replays_and_a_retry_can_succeed() {
    let config =
        Config { faults: Faults { server_error: 0.5, ..Faults::default() }, seed: 7, ..Config::default() };
    let (first, second) = (Server::start(config.clone()).await, Server::start(config).await);
    let mut recovered = 0;
    for number in 0..60 {
        let id = format!("p{number}");
        let mut statuses = Vec::new();
        for call in 1..=6 {
            let status = first.ask(&id, call).await.status();
            assert_eq!(second.ask(&id, call).await.status(), status);
            statuses.push(status);
        }
        recovered += usize::from(statuses[0] != 200 && statuses.contains(&200));
    }
    assert!(recovered > 15, "{recovered} of 60 products failed first and succeeded later");
}

#[tokio::test]
async fn latency_is_kept_and_a_client_that_leaves_is_not_answered() {
    let (latency, jitter) = (Duration::from_millis(120), Duration::from_millis(40));
    let server = Server::start(Config { latency, jitter, ..Config::default() }).await;
    for number in 0..5 {
        let began = Instant::now();
        server.ask(&format!("p{number}"), 1).await;
        let took = began.elapsed();
        assert!(took >= latency - jitter, "{took:?}");
    }
    let mut client = server.client().await;
    let body = question("gone");
    let head =
        format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    client.write(&head, &body).await;
    server.until("the sixth call", |stats| stats["calls"] == 6).await;
    drop(client);
    let stats = server.until("no call in flight", |stats| stats["in_flight"] == 0).await;
    assert_eq!(stats["answers"], 5);
}
