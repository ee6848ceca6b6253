//! A client that is no more than a socket, so that the tests see every byte and every early end.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use shelfmill_simulator::{Config, Faults, Simulator};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    serving: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Server {
    pub(crate) async fn start(config: Config) -> Self {
        let simulator = Simulator::bind(([127, 0, 0, 1], 0).into(), config).await.unwrap();
        let addr = simulator.addr();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(simulator.serve(async move {
            let _ = stopped.await;
        }));
        Self { addr, stop: Some(stop), serving: Some(serving) }
    }

    pub(crate) async fn with_faults(faults: Faults) -> Self {
        Self::start(Config { faults, ..Config::default() }).await
    }

    /// How long the simulator took to stop.
    pub(crate) async fn stop(&mut self) -> Duration {
        let began = Instant::now();
        self.stop.take().unwrap().send(()).unwrap();
        timeout(PATIENCE, self.serving.take().unwrap()).await.unwrap().unwrap().unwrap();
        began.elapsed()
    }

    pub(crate) async fn client(&self) -> Client {
        Client { stream: TcpStream::connect(self.addr).await.unwrap(), read: Vec::new() }
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.client().await.send(&format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n"), b"").await.unwrap()
    }

    pub(crate) async fn post(&self, path: &str, headers: &str, body: &[u8]) -> Response {
        self.client().await.post(path, headers, body).await.unwrap()
    }

    /// Asks for the product `id` the way Shelfmill's worker does.
    pub(crate) async fn ask(&self, id: &str, call: u32) -> Response {
        self.client().await.ask(id, call).await.unwrap()
    }

    pub(crate) async fn stats(&self) -> Value {
        self.get("/stats").await.json()
    }

    /// Waits until the counters say so.
    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let stats = self.stats().await;
            if holds(&stats) {
                return stats;
            }
            assert!(Instant::now() < deadline, "waited for {what}, last seen: {stats}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

pub(crate) struct Client {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Client {
    pub(crate) async fn ask(&mut self, id: &str, call: u32) -> Option<Response> {
        let header = format!("x-client-request-id: {id}/{call}\r\n");
        self.post("/v1/chat/completions", &header, &question(id)).await
    }

    pub(crate) async fn post(&mut self, path: &str, headers: &str, body: &[u8]) -> Option<Response> {
        let length = body.len();
        self.send(
            &format!("POST {path} HTTP/1.1\r\nhost: x\r\n{headers}content-length: {length}\r\n\r\n"),
            body,
        )
        .await
    }

    /// Sends without waiting for the answer.
    pub(crate) async fn write(&mut self, head: &str, body: &[u8]) {
        self.stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
    }

    /// `None` when the connection ends before a complete response.
    pub(crate) async fn send(&mut self, head: &str, body: &[u8]) -> Option<Response> {
        self.write(head, body).await;
        timeout(PATIENCE, self.response()).await.expect("a response or the end of the connection")
    }

    async fn response(&mut self) -> Option<Response> {
        loop {
            if let Some(end) = self.read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let head = String::from_utf8(self.read[..end].to_vec()).unwrap();
                let length: usize = header(&head, "content-length").unwrap().parse().unwrap();
                let body = end + 4..end + 4 + length;
                if self.read.len() >= body.end {
                    let response = Response { head, body: self.read[body.clone()].to_vec() };
                    self.read.drain(..body.end);
                    return Some(response);
                }
            }
            if self.stream.read_buf(&mut self.read).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// What arrived of a response that never became complete.
    pub(crate) fn partial(&self) -> &[u8] {
        &self.read
    }
}

#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn content(&self) -> String {
        self.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    }

    pub(crate) fn finish_reason(&self) -> String {
        self.json()["choices"][0]["finish_reason"].as_str().unwrap().to_owned()
    }

    pub(crate) fn analysis(&self) -> Value {
        serde_json::from_str(&self.content()).unwrap()
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    lines.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

pub(crate) fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "category": {"type": "string"},
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 5},
            "summary": {"type": "string", "maxLength": 300},
            "score": {"type": "number", "minimum": 0, "maximum": 1}
        },
        "required": ["category", "tags", "summary", "score"],
        "additionalProperties": false
    })
}

pub(crate) fn request(id: &str) -> Value {
    let product = json!({"id": id, "title": format!("Mug {id}"), "price": 12.5});
    json!({
        "model": "gpt-whatever",
        "messages": [
            {"role": "system", "content": "You analyse products."},
            {"role": "user", "content": format!("Analyse this product:\n{product}")}
        ],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "analysis", "strict": true, "schema": schema()}
        }
    })
}

pub(crate) fn question(id: &str) -> Vec<u8> {
    request(id).to_string().into_bytes()
}
