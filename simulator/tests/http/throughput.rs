//! How fast it answers: `cargo test -p shelfmill-simulator --release throughput -- --ignored --nocapture`.
//!
//! Server and client each have one thread; the client only writes bytes and looks for the end of the response.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use shelfmill_simulator::{Config, Simulator};

use crate::client::question;

const CONNECTIONS: usize = 32;
const MEASURED: Duration = Duration::from_secs(3);

#[test]
#[ignore = "a measurement, not a test"]
fn throughput() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let bind = Simulator::bind(([127, 0, 0, 1], 0).into(), Config::default());
    let simulator = runtime.block_on(bind).unwrap();
    let addr = simulator.addr();
    runtime.spawn(simulator.serve(std::future::pending()));
    let mut streams: Vec<_> = (0..CONNECTIONS).map(|_| TcpStream::connect(addr).unwrap()).collect();
    let body = question("sku-1");
    let mut buffer = vec![0; 64 * 1024];
    let (began, mut answers) = (Instant::now(), 0u32);
    while began.elapsed() < MEASURED {
        for stream in &mut streams {
            let length = body.len();
            let head = format!(
                "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-client-request-id: p{answers}/1\r\ncontent-length: {length}\r\n\r\n"
            );
            stream.write_all(&[head.as_bytes(), &body].concat()).unwrap();
        }
        for stream in &mut streams {
            let read = stream.read(&mut buffer).unwrap();
            assert!(buffer[..read].ends_with(b"}") && buffer.starts_with(b"HTTP/1.1 200"));
            answers += 1;
        }
    }
    println!("{:.0} answers a second", f64::from(answers) / began.elapsed().as_secs_f64());
    runtime.shutdown_background();
}
