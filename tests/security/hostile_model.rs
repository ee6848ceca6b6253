//! A fleet whose model means harm: each product costs one attempt and gets its line, and the worker stays small.

use std::{io::Write, net::TcpStream, time::Duration};

use super::http::{Server, completion, send};
use crate::support::{
    fleet::{DEADLINE, Fleet, ended},
    rabbitmq, redis,
    results::id,
};

/// What is sent, and the class of failure it makes.
const HARMS: [(&str, &str); 10] = [
    ("flood", "malformed"),
    ("flood in chunks", "malformed"),
    ("flood of an error", "server_error"),
    ("nested reply", "malformed"),
    ("nested answer", "malformed"),
    ("huge number", "malformed"),
    ("many values", "schema_violation"),
    ("not UTF-8", "malformed"),
    ("packed", "malformed"),
    ("drip", "timeout"),
];
/// Answers of 2 MiB for 16 calls at once, two of them at a time as a tree of values (72 bytes for `1,`), and the program.
const MAX_PEAK_KB: u64 = 250 * 1024;
const MIB: usize = 1024 * 1024;

fn harm(what: &str, stream: &mut TcpStream) -> std::io::Result<()> {
    let flood = |stream: &mut TcpStream, chunked: bool| {
        let block = vec![b'x'; 64 * 1024];
        for _ in 0..100 * MIB / block.len() {
            if chunked {
                write!(stream, "{:x}\r\n", block.len())?;
            }
            stream.write_all(&block)?;
            if chunked {
                stream.write_all(b"\r\n")?;
            }
        }
        Ok(())
    };
    match what {
        "flood" | "flood of an error" => {
            let status = if what == "flood" { "200 OK" } else { "500 Oh" };
            write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", 100 * MIB)?;
            flood(stream, false)
        }
        "flood in chunks" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
            flood(stream, true)
        }
        "nested reply" => send(stream, "200 OK", "[".repeat(MIB).as_bytes()),
        "nested answer" => send(stream, "200 OK", &completion(&"[{\"a\":".repeat(100_000))),
        "huge number" => send(stream, "200 OK", &completion("{\"a\":1e999}")),
        "many values" => send(stream, "200 OK", &completion(&format!("[{}1]x", "1,".repeat(MIB / 2 - 10)))),
        "not UTF-8" => send(stream, "200 OK", b"{\"choices\":[{\"message\":{\"content\":\"\xff\xfe\"}}]}"),
        "packed" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 6\r\n\r\n")?;
            stream.write_all(b"\x1f\x8b\x08\x00\x00\x00")
        }
        _ => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")?;
            loop {
                stream.write_all(b"x")?;
                std::thread::sleep(Duration::from_millis(200));
            }
        }
    }
}

#[test]
fn each_product_costs_one_attempt_and_the_worker_stays_small() {
    const PRODUCTS: usize = 8 * (HARMS.len() + 1);
    let of = |call: &str| call.split("SM%2D").nth(1).and_then(|rest| rest[..6].parse::<usize>().ok());
    let model = Server::start(move |call, stream| match HARMS.get(of(call).unwrap() % (HARMS.len() + 1)) {
        Some((what, _)) => harm(what, stream),
        None => send(stream, "200 OK", &completion("{\"fine\":true}")),
    });
    let fleet = Fleet::new("hostile", PRODUCTS, &[]);
    let job = fleet.catalog.file(
        "job.toml",
        "[llm]\ntimeout = \"3s\"\n[limits]\nmax_attempts = 1\nabort_failure_rate = 1.0\n[output]\nschema = { type = \"object\" }\n",
    );
    ended(fleet.producer().arg("--job").arg(job).run(DEADLINE));
    let mut worker = fleet.worker().env("OPENAI_BASE_URL", model.url()).start();
    fleet.aggregator().run(DEADLINE).expect_code(3);
    // Told to end rather than ending with the run: its memory is looked at while it is there.
    worker.terminate();
    let end = ended(worker.wait(DEADLINE));
    let results = fleet.assert_done(rabbitmq::shared(), redis::shared());

    assert_eq!(model.calls(), PRODUCTS as u64, "a harm cost more than one attempt");
    assert_eq!(results.calls(), (PRODUCTS as u64, 0));
    assert_eq!(results.journal.len(), 8);
    for failure in &results.failures {
        let number: usize = id(failure)[3..].parse().unwrap();
        let (what, class) = HARMS[number % (HARMS.len() + 1)];
        assert_eq!(failure["failure"]["class"], class, "{what}: {failure}");
    }
    let peak_kb = end.peak_rss_kb.expect("Linux tells it");
    println!("the worker's peak: {peak_kb} kB in {:.1?}", end.elapsed);
    assert!(peak_kb < MAX_PEAK_KB, "the worker took {peak_kb} kB");
}
