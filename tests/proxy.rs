//! The tests' bad network is as bad as it says, and good again when it is told to.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use crate::support::{proxy::Proxy, wait::eventually};

const SOON: Duration = Duration::from_secs(10);
const QUIET: Duration = Duration::from_millis(200);

/// Says back what it is told.
fn echo() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
    port
}

fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

fn said_back(mut stream: &TcpStream, text: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_all(text)?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

#[test]
fn a_good_network_carries_everything_and_the_end() {
    let proxy = Proxy::to(echo());
    let mut stream = connect(&proxy);
    let much: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let (mut writer, sent) = (stream.try_clone().unwrap(), much.clone());
    let writing = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    writing.join().unwrap();
    assert!(back == much, "{} of {} bytes", back.len(), much.len());
    eventually(SOON, "the connection to be gone", || match proxy.connections() {
        0 => Ok(()),
        open => Err(open.to_string()),
    });
}

#[test]
fn delays_add_up_and_chunks_travel_side_by_side() {
    let proxy = Proxy::to(echo());
    let stream = connect(&proxy);
    said_back(&stream, b"no delay").unwrap();
    proxy.delay(Duration::from_millis(200), Duration::from_millis(100));
    let started = Instant::now();
    for _ in 0..10 {
        (&stream).write_all(b"x").unwrap();
        thread::sleep(Duration::from_millis(5));
    }
    (&stream).read_exact(&mut [0; 10]).unwrap();
    let took = started.elapsed();
    assert!((Duration::from_millis(300)..Duration::from_secs(2)).contains(&took), "{took:?}");
}

#[test]
fn what_is_swallowed_is_not_answered_and_the_connection_is_reset_when_that_ends() {
    let proxy = Proxy::to(echo());
    let (stream, idle) = (connect(&proxy), connect(&proxy));
    said_back(&stream, b"before").unwrap();
    proxy.swallow();
    stream.set_read_timeout(Some(QUIET)).unwrap();
    let error = said_back(&stream, b"lost").unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
    let fresh = connect(&proxy);
    fresh.set_read_timeout(Some(QUIET)).unwrap();
    said_back(&fresh, b"lost, too").unwrap_err();

    proxy.restore();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let error = (&stream).read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(said_back(&idle, b"nothing lost").unwrap(), b"nothing lost");
    assert_eq!(said_back(&connect(&proxy), b"after").unwrap(), b"after");
}

#[test]
fn connections_are_cut_reset_and_refused() {
    let proxy = Proxy::to(echo());
    let stream = connect(&proxy);
    said_back(&stream, b"before").unwrap();
    proxy.cut();
    assert_eq!((&stream).read(&mut [0]).unwrap(), 0, "an orderly end");

    let stream = connect(&proxy);
    said_back(&stream, b"before").unwrap();
    proxy.reset();
    assert_eq!((&stream).read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);

    let stream = connect(&proxy);
    said_back(&stream, b"before").unwrap();
    proxy.refuse();
    let error = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(said_back(&stream, b"still here").unwrap(), b"still here");
    proxy.restore();
    assert_eq!(said_back(&connect(&proxy), b"after").unwrap(), b"after");
}
