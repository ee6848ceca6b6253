//! The limit on requests per second, and the bounds of stopping.

use std::time::Duration;

use serde_json::json;
use shelfmill_simulator::{Config, Faults, Simulator};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use crate::client::Server;

#[tokio::test]
async fn requests_over_the_limit_are_told_when_to_come_back() {
    let server = Server::start(Config { max_requests_per_second: Some(0.5), ..Config::default() }).await;
    let granted = server.ask("a", 1).await;
    assert_eq!(granted.status(), 200);
    let refused = server.ask("b", 1).await;
    assert_eq!((refused.status(), refused.header("retry-after")), (429, Some("2")));
    assert_eq!(refused.json()["error"]["code"], "rate_limit_exceeded");
    for response in [granted, refused] {
        assert_eq!(response.header("x-ratelimit-limit-requests"), Some("1"));
        assert_eq!(response.header("x-ratelimit-remaining-requests"), Some("0"));
        assert!(response.header("x-ratelimit-reset-requests").unwrap().ends_with('s'));
    }
    let stats = server.stats().await;
    assert_eq!((&stats["calls"], &stats["answers"]), (&json!(2), &json!(1)));
    assert_eq!(stats["faults"]["over_limit"], 1);
}

#[tokio::test]
async fn the_limit_holds_for_all_connections_together() {
    let server = Server::start(Config { max_requests_per_second: Some(40.0), ..Config::default() }).await;
    let began = Instant::now();
    let mut granted = 0;
    for number in 0..400 {
        granted += u32::from(server.ask(&format!("p{number}"), 1).await.status() == 200);
    }
    let allowed = 40.0 + 40.0 * began.elapsed().as_secs_f64();
    assert!(granted >= 40 && f64::from(granted) <= allowed, "{granted} granted, {allowed} allowed");
}

#[tokio::test]
async fn stopping_refuses_new_clients_and_cuts_long_answers_short() {
    let mut server = Server::start(Config { latency: Duration::from_secs(60), ..Config::default() }).await;
    let mut client = server.client().await;
    let asking = tokio::spawn(async move { client.ask("a", 1).await.is_none() });
    server.until("the call", |stats| stats["in_flight"] == 1).await;
    let took = server.stop().await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(asking.await.unwrap());
    assert!(tokio::net::TcpStream::connect(server.addr).await.is_err());
}

#[tokio::test]
async fn an_answer_in_flight_is_finished_while_stopping() {
    let mut server = Server::start(Config { latency: Duration::from_millis(200), ..Config::default() }).await;
    let mut client = server.client().await;
    let asking = tokio::spawn(async move { client.ask("a", 1).await.unwrap().status() });
    server.until("the call", |stats| stats["in_flight"] == 1).await;
    server.stop().await;
    assert_eq!(asking.await.unwrap(), 200);
}

#[tokio::test]
async fn dropping_the_server_ends_its_connections() {
    let bound = Simulator::bind(([127, 0, 0, 1], 0).into(), Config::default()).await.unwrap();
    let addr = bound.addr();
    let serving = tokio::spawn(bound.serve(std::future::pending()));
    let mut idle = tokio::net::TcpStream::connect(addr).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert!(idle.read_u8().await.is_ok());
    serving.abort();
    let mut rest = Vec::new();
    timeout(Duration::from_secs(5), idle.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert!(rest.ends_with(b"ok"));
}

#[tokio::test]
async fn impossible_options_are_refused_by_name() {
    let faults = Faults { truncated: 2.0, ..Faults::default() };
    let config = Config { faults, ..Config::default() };
    let error = Simulator::bind(([127, 0, 0, 1], 0).into(), config).await.err().unwrap();
    assert!(format!("{error:#}").contains("truncated is 2"), "{error:#}");
}
