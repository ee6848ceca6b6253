//! Servers that mean harm, or are broken enough to look like it: what each of them costs is one attempt, with a class,
//! in bounded time and memory, and never the key.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use secrecy::SecretString;

use super::{tests::endpoint, *};
use crate::answer::Answer;

const KEY: &str = "sk-canary-0123456789abcdef";
const DEADLINE: Duration = Duration::from_millis(700);
/// How much longer than its deadline a call may take on a busy machine.
const SLACK: Duration = Duration::from_secs(4);
const MIB: usize = 1024 * 1024;

/// A server that answers every request by doing this to its connection; it ends with the test.
fn server(answer: impl Fn(&mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || {
                let mut request = [0; 64 * 1024];
                let _ = stream.read(&mut request);
                // The other side is expected to hang up.
                let _ = answer(&mut stream);
            });
        }
    });
    url
}

async fn call(url: &str) -> (Result<Vec<u8>, CallFailure>, Duration) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = ModelClient::new(4, 0).unwrap();
    let way = (&endpoint(url), &Key::new(SecretString::from(KEY)).unwrap());
    let started = Instant::now();
    let ended = client.call(way, &Bytes::from_static(b"{}"), "1", 1, DEADLINE).await.body;
    let elapsed = started.elapsed();
    assert!(elapsed < DEADLINE + SLACK, "{elapsed:?}");
    assert!(!format!("{ended:?}").contains("canary"), "{ended:?}");
    (ended, elapsed)
}

async fn failure(url: &str) -> CallFailure {
    let failure = call(url).await.0.map(|body| String::from_utf8_lossy(&body).into_owned()).unwrap_err();
    assert!(failure.message.len() <= MESSAGE_LIMIT_BYTES);
    assert!(failure.raw.as_ref().is_none_or(|raw| raw.len() <= RAW_LIMIT_BYTES));
    failure
}

fn head(stream: &mut TcpStream, status: &str, headers: &str) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status}\r\n{headers}\r\n\r\n")
}

/// Sends 100 MiB, in chunks where `chunked`; how much got away is added up.
fn flood(stream: &mut TcpStream, status: &str, chunked: bool, sent: &AtomicU64) -> std::io::Result<()> {
    let headers = if chunked { "transfer-encoding: chunked" } else { "content-length: 104857600" };
    head(stream, status, headers)?;
    let block = vec![b'x'; 64 * 1024];
    for _ in 0..100 * MIB / block.len() {
        if chunked {
            write!(stream, "{:x}\r\n", block.len())?;
        }
        stream.write_all(&block)?;
        if chunked {
            stream.write_all(b"\r\n")?;
        }
        sent.fetch_add(block.len() as u64, Ordering::Relaxed);
    }
    Ok(())
}

#[tokio::test]
async fn a_flood_is_cut_off_at_the_limit() {
    for (status, class, limit) in [
        ("200 OK", FailureClass::Malformed, MAX_BODY_BYTES),
        ("500 Oh", FailureClass::ServerError, MAX_ERROR_BYTES),
    ] {
        for chunked in [false, true] {
            let sent = Arc::new(AtomicU64::new(0));
            let url = server({
                let sent = Arc::clone(&sent);
                move |stream| flood(stream, status, chunked, &sent)
            });
            let failure = failure(&url).await;
            assert_eq!(failure.class, class, "{}", failure.message);
            // What was on its way when the connection was closed lies in the system's buffers.
            let sent = sent.load(Ordering::Relaxed);
            assert!(sent < (limit + 16 * MIB) as u64, "{sent} bytes were taken");
            assert_eq!(failure.raw.is_some(), status.starts_with('5'), "the beginning of an error is kept");
        }
    }
}

#[tokio::test]
async fn silence_and_dripping_end_at_the_deadline() {
    let silent = server(|stream| {
        head(stream, "200 OK", "content-length: 10")?;
        stream.read(&mut [0; 1]).map(drop)
    });
    let dripping = server(|stream| {
        head(stream, "200 OK", "content-length: 1000")?;
        loop {
            stream.write_all(b"x")?;
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let dripping_error = server(|stream| {
        head(stream, "500 Oh", "content-length: 1000")?;
        loop {
            stream.write_all(b"x")?;
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let dripping_head = server(|stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n")?;
        loop {
            stream.write_all(b"a")?;
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    for url in [silent, dripping, dripping_error, dripping_head] {
        assert_eq!(failure(&url).await.class, FailureClass::Timeout);
    }
}

#[tokio::test]
async fn an_endless_head_is_a_broken_connection() {
    let one_header = server(|stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nx-endless: ")?;
        loop {
            stream.write_all(&[b'x'; 4096])?;
        }
    });
    let many_headers = server(|stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n")?;
        loop {
            stream.write_all(b"x-more: 1\r\n")?;
        }
    });
    let no_http = server(|stream| stream.write_all(b"\x1b]0;not HTTP\x07 at all\n\n\n"));
    let cut_off = server(|stream| {
        head(stream, "200 OK", "content-length: 1000")?;
        stream.write_all(b"{\"choices\":[")
    });
    for url in [one_header, many_headers, no_http, cut_off] {
        let failure = failure(&url).await;
        assert_eq!(failure.class, FailureClass::Network, "{}", failure.message);
    }
}

#[tokio::test]
async fn nothing_is_unpacked() {
    // A bomb would be a few bytes here and gigabytes unpacked.
    let packed = server(|stream| {
        head(stream, "200 OK", "content-encoding: gzip\r\ncontent-length: 4")?;
        stream.write_all(b"\x1f\x8b\x08\x00")
    });
    let body = call(&packed).await.0.unwrap();
    assert_eq!(body, b"\x1f\x8b\x08\x00");
    assert_eq!(Answer::parse(&body).unwrap_err().class, FailureClass::Malformed);
}

#[tokio::test]
async fn no_redirect_is_followed() {
    let reached = Arc::new(AtomicU64::new(0));
    let elsewhere = server({
        let reached = Arc::clone(&reached);
        move |stream| {
            reached.fetch_add(1, Ordering::Relaxed);
            head(stream, "200 OK", "content-length: 0")
        }
    });
    for status in ["301 Moved", "302 Found", "303 See", "307 Same", "308 Same for ever"] {
        let location = format!("location: {elsewhere}/v1\r\ncontent-length: 0");
        let url = server(move |stream| head(stream, status, &location));
        let failure = failure(&url).await;
        assert_eq!(failure.class, FailureClass::ModelRefused);
        assert!(failure.message.contains("correct the model's URL"), "{}", failure.message);
    }
    assert_eq!(reached.load(Ordering::Relaxed), 0, "key and product went to another server");
}

#[tokio::test]
async fn a_server_that_repeats_the_key_is_not_quoted() {
    for status in ["401 No", "200 OK"] {
        let url = server(move |stream| {
            let body = format!("{{\"error\":{{\"message\":\"Incorrect API key {KEY}{KEY}\"}}}}{KEY}");
            head(stream, status, &format!("content-length: {}", body.len()))?;
            stream.write_all(body.as_bytes())
        });
        // Looked at within: no canary in whatever comes.
        let ended = call(&url).await.0;
        assert_eq!(ended.is_ok(), status.starts_with('2'));
    }
}

#[tokio::test]
async fn waits_that_no_clock_can_hold_are_none() {
    for asked in
        ["1e999", "-1", "NaN", "99999999999999999999999999", "Wed, 99 Foo 2099 07:28:00 GMT", "\u{fffd}"]
    {
        let asked = asked.to_owned();
        let url = server(move |stream| {
            head(stream, "429 Slow", &format!("retry-after: {asked}\r\ncontent-length: 0"))
        });
        let failure = failure(&url).await;
        assert_eq!((failure.class, failure.retry_after), (FailureClass::RateLimited, None));
    }
}
