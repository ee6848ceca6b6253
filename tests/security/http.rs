//! A server that answers as a test wants it, down to the bytes.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// A listening server; it ends with the test process.
pub(super) struct Server {
    url: String,
    calls: Arc<AtomicU64>,
}

impl Server {
    /// Each request is answered by `answer`, which gets the name of the call (product and number) and its connection.
    pub(super) fn start(
        answer: impl Fn(&str, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
        let calls = Arc::new(AtomicU64::new(0));
        let (answer, counted) = (Arc::new(answer), Arc::clone(&calls));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, counted) = (Arc::clone(&answer), Arc::clone(&counted));
                // Whoever has had enough hangs up, which is no error here.
                std::thread::spawn(move || one_call(stream, &*answer, &counted));
            }
        });
        Self { url, calls }
    }

    /// What `--base-url` takes.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }
}

fn one_call(
    mut stream: TcpStream,
    answer: &dyn Fn(&str, &mut TcpStream) -> std::io::Result<()>,
    calls: &AtomicU64,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut call, mut length, mut line) = (String::new(), 0, String::new());
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            if line == "\r\n" {
                break;
            }
            continue;
        };
        match name {
            "x-client-request-id" => call = value.to_owned(),
            "content-length" => length = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    reader.take(length).read_to_end(&mut Vec::new())?;
    calls.fetch_add(1, Ordering::Relaxed);
    answer(&call, &mut stream)
}

/// A whole answer, after which the connection ends.
pub(super) fn send(stream: &mut TcpStream, status: &str, body: &[u8]) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len())?;
    stream.write_all(body)
}

/// A chat completion that says this.
pub(super) fn completion(content: &str) -> Vec<u8> {
    let message = serde_json::json!({"role": "assistant", "content": content});
    serde_json::json!({"model": "m", "choices": [{"message": message, "finish_reason": "stop"}]})
        .to_string()
        .into_bytes()
}
