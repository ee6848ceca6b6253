use secrecy::SecretString;
use serde_json::json;
use shelfmill_pipeline::job::{Job, Message, ModelEndpoint, Structured};
use wiremock::{
    Mock, MockServer, ResponseTemplate,
    matchers::{body_partial_json, header, method, path},
};

use super::*;

fn key() -> Key {
    Key::new(SecretString::from("sk-canary")).unwrap()
}

/// The built-in job's way to a server.
pub(super) fn endpoint(url: &str) -> Endpoint {
    let job = Job::default();
    let [at] = <[_; 1]>::try_from(job.llm.endpoints()).unwrap();
    Endpoint::new(ModelEndpoint { base_url: Some(url.to_owned()), ..at }, &job).unwrap()
}

async fn call(server: &MockServer, deadline: Duration) -> Result<Vec<u8>, CallFailure> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = ModelClient::new(4, 0).unwrap();
    let endpoint = endpoint(&server.uri());
    let messages = [Message::new("user", "hello")];
    client
        .call(
            (&endpoint, &key()),
            &endpoint.request(&messages, 1000, endpoint.dialect.sent()).unwrap(),
            "ä/1",
            2,
            deadline,
        )
        .await
        .body
}

async fn answering(template: ResponseTemplate) -> Result<Vec<u8>, CallFailure> {
    let server = MockServer::start().await;
    Mock::given(method("POST")).respond_with(template).mount(&server).await;
    call(&server, Duration::from_secs(5)).await
}

#[tokio::test]
async fn a_request_is_what_openai_takes() {
    let server = MockServer::start().await;
    Mock::given(method("POST"))
        .and(path("/chat/completions"))
        .and(header("authorization", "Bearer sk-canary"))
        .and(header("x-client-request-id", "%C3%A4%2F1/2"))
        .and(body_partial_json(json!({
            "model": "gpt-4.1-mini",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 1000,
            "response_format": {"type": "json_schema", "json_schema": {"strict": true}}
        })))
        .respond_with(ResponseTemplate::new(200).set_body_string("fine"))
        .mount(&server)
        .await;
    assert_eq!(call(&server, Duration::from_secs(5)).await.unwrap(), b"fine");
}

#[tokio::test]
async fn every_refusal_has_its_class() {
    for (status, code, class) in [
        (429, "rate_limit_exceeded", FailureClass::RateLimited),
        (429, "insufficient_quota", FailureClass::QuotaExhausted),
        (401, "invalid_api_key", FailureClass::Unauthorized),
        (403, "", FailureClass::Unauthorized),
        (404, "model_not_found", FailureClass::ModelNotFound),
        (400, "context_length_exceeded", FailureClass::ContextTooLong),
        (400, "invalid_value", FailureClass::ModelRefused),
        (500, "", FailureClass::ServerError),
        (503, "", FailureClass::ServerError),
    ] {
        let body = json!({"error": {"message": "because", "code": code}});
        let failure = answering(ResponseTemplate::new(status).set_body_json(body)).await.unwrap_err();
        assert_eq!(failure.class, class, "{status} {code}");
        assert!(failure.message.contains("because"));
    }
}

#[tokio::test]
async fn retry_after_is_understood_in_all_its_forms() {
    let asked = async |name: &'static str, value: &str| {
        answering(ResponseTemplate::new(429).insert_header(name, value)).await.unwrap_err().retry_after
    };
    assert_eq!(asked("retry-after", "7").await, Some(Duration::from_secs(7)));
    assert_eq!(asked("retry-after-ms", "250").await, Some(Duration::from_millis(250)));
    assert_eq!(asked("retry-after", "soon").await, None);
    let date = "Wed, 21 Oct 2099 07:28:00 GMT";
    assert!(asked("retry-after", date).await.unwrap() > Duration::from_secs(3600));
}

#[tokio::test]
async fn a_server_that_hangs_or_floods_costs_one_attempt() {
    let server = MockServer::start().await;
    let slow = ResponseTemplate::new(200).set_delay(Duration::from_secs(60));
    Mock::given(method("POST")).respond_with(slow).mount(&server).await;
    let failure = call(&server, Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Timeout);

    let flood = ResponseTemplate::new(200).set_body_bytes(vec![b'x'; MAX_BODY_BYTES + 1]);
    assert_eq!(answering(flood).await.unwrap_err().class, FailureClass::Malformed);
}

#[tokio::test]
async fn nobody_at_home_is_a_network_failure_that_does_not_show_the_key() {
    // A port that was free a moment ago; a mock server that is dropped goes back to a pool and still listens.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = ModelClient::new(1, 0).unwrap();
    let url = format!("http://127.0.0.1:{port}");
    let way = (&endpoint(&url), &key());
    let failure =
        client.call(way, &Bytes::from_static(b"{}"), "1", 1, Duration::from_secs(5)).await.body.unwrap_err();
    assert_eq!(failure.class, FailureClass::Network);
    assert!(!format!("{failure:?}").contains("canary"), "{failure:?}");
}

#[test]
fn what_was_learned_of_a_server_holds_for_the_same_question_only() {
    let name = |url: &str, change: fn(&mut Job)| {
        let mut job = Job::default();
        change(&mut job);
        let [at] = <[_; 1]>::try_from(job.llm.endpoints()).unwrap();
        let endpoint = Endpoint::new(ModelEndpoint { base_url: Some(url.to_owned()), ..at }, &job).unwrap();
        endpoint::name_of(&endpoint.url(), endpoint.at(), &job)
    };
    let here = name("http://a/v1", |_| {});
    assert_eq!(here, name("http://a/v1/", |job| job.llm.max_output_tokens = 9), "asked the same way");
    let others = [
        name("http://b/v1", |_| {}),
        name("http://a/v1", |job| job.llm.model = "other".to_owned()),
        name("http://a/v1", |job| job.llm.structured = Structured::JsonObject),
        name("http://a/v1", |job| job.output.schema = json!({"type": "object"})),
    ];
    assert!(others.iter().all(|other| *other != here), "{here} {others:?}");
}
