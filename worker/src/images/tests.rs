//! Servers that are broken, mean harm, or lead where no product may: what each of them costs is bounded, and nothing
//! that is forbidden is ever connected to.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use url::Url;

use super::*;

const DEADLINE: Duration = Duration::from_millis(700);
/// How much longer than its deadline a fetch may take on a busy machine.
const SLACK: Duration = Duration::from_secs(4);
/// The one address that stands for the Internet here.
const PUBLIC: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x02\0\0\0\x01\0";

/// A server that counts its connections; it ends with the test.
struct Server {
    url: String,
    connections: Arc<AtomicU64>,
}

impl Server {
    fn at(
        address: Ipv4Addr,
        answer: impl Fn(&str, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let connections: Arc<AtomicU64> = Arc::default();
        let (answer, count) = (Arc::new(answer), Arc::clone(&connections));
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::Relaxed);
                let answer = Arc::clone(&answer);
                std::thread::spawn(move || {
                    let mut request = [0; 16 * 1024];
                    let read = stream.read(&mut request).unwrap_or(0);
                    // The other side is expected to hang up.
                    let _ = answer(&String::from_utf8_lossy(&request[..read]), &mut stream);
                });
            }
        });
        Self { url, connections }
    }

    fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

fn web() -> Web {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Web::with(|address| address == IpAddr::V4(PUBLIC), DEADLINE).unwrap()
}

async fn get(url: &str, max_bytes: u64) -> Result<Vec<u8>, Trouble> {
    let started = Instant::now();
    let got = web().get(&Url::parse(url).unwrap(), max_bytes).await;
    assert!(started.elapsed() < DEADLINE + SLACK, "{:?}", started.elapsed());
    assert!(!format!("{got:?}").contains("secret"), "{got:?}");
    got
}

fn reply(stream: &mut TcpStream, head: &str, body: &[u8]) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {head}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len())?;
    stream.write_all(body)
}

#[tokio::test]
async fn no_redirect_leads_to_what_is_forbidden() {
    let inside = Server::at(Ipv4Addr::LOCALHOST, |_, stream| reply(stream, "200 OK", PNG));
    let port = inside.url.rsplit(':').next().unwrap();
    for (location, why) in [
        (inside.url.clone() + "/x?key=secret", "private network"),
        (format!("//localhost:{port}/x"), "private network"),
        (format!("http://[::ffff:7f00:1]:{port}/"), "private network"),
        (format!("http://0:{port}/"), "private network"),
        ("http://169.254.169.254/latest/meta-data/secret".replace("secret", ""), "private network"),
        ("http://[fd00:ec2::254]/".to_owned(), "private network"),
        ("file:///etc/passwd".to_owned(), "only http"),
        ("ftp://127.0.0.2/x".to_owned(), "only http"),
        ("http://user:secret@127.0.0.2/".to_owned(), "holds a login"),
        ("http://[secret".to_owned(), "no URL"),
    ] {
        let head = format!("302 Found\r\nlocation: {location}");
        let outside = Server::at(PUBLIC, move |_, stream| reply(stream, &head, b""));
        let trouble = get(&outside.url, 1_000).await.unwrap_err();
        assert_eq!(trouble.class, FailureClass::ImageUnusable, "{location}: {trouble:?}");
        assert!(trouble.why.contains(why), "{location}: {trouble:?}");
        assert_eq!(outside.connections(), 1);
    }
    assert_eq!(inside.connections(), 0);
}

#[tokio::test]
async fn a_few_redirects_are_followed() {
    let server = Server::at(PUBLIC, |request, stream| {
        let left: u32 = request.split(['/', ' ']).nth(2).and_then(|path| path.parse().ok()).unwrap();
        match left {
            0 => reply(stream, "200 OK", PNG),
            _ => reply(stream, &format!("301 Moved\r\nlocation: /{}", left - 1), b""),
        }
    });
    assert_eq!(get(&format!("{}/3", server.url), 1_000).await.unwrap(), PNG);
    assert_eq!(server.connections(), 4);
    let trouble = get(&format!("{}/4", server.url), 1_000).await.unwrap_err();
    assert_eq!(trouble.why, "it redirects more than 3 times");
    assert_eq!(server.connections(), 8);
}

#[tokio::test]
async fn what_hangs_or_drips_is_given_up() {
    let hangs = Server::at(PUBLIC, |_, stream| stream.read(&mut [0; 16]).map(drop));
    let drips = Server::at(PUBLIC, |_, stream| {
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")?;
        loop {
            stream.write_all(b"x")?;
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    for server in [hangs, drips] {
        let trouble = get(&server.url, 10_000).await.unwrap_err();
        assert_eq!(trouble.class, FailureClass::Timeout, "{trouble:?}");
    }
    let breaks =
        Server::at(PUBLIC, |_, stream| write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx"));
    assert_eq!(get(&breaks.url, 10_000).await.unwrap_err().class, FailureClass::Network);
}

#[tokio::test]
async fn no_more_is_read_than_the_job_allows() {
    let sent: Arc<AtomicU64> = Arc::default();
    let count = Arc::clone(&sent);
    let floods = Server::at(PUBLIC, move |_, stream| {
        write!(stream, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
        for _ in 0..1_000 {
            write!(stream, "10000\r\n")?;
            stream.write_all(&[b'x'; 65_536])?;
            stream.write_all(b"\r\n")?;
            count.fetch_add(65_536, Ordering::Relaxed);
        }
        Ok(())
    });
    let announces =
        Server::at(PUBLIC, |_, stream| write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n"));
    for server in [&floods, &announces] {
        let trouble = get(&server.url, 1_000).await.unwrap_err();
        assert_eq!(trouble, Trouble::too_large(1_000));
    }
    // What is in the sockets' buffers.
    assert!(sent.load(Ordering::Relaxed) < 16 * 1024 * 1024, "{sent:?}");
    let fits = Server::at(PUBLIC, |_, stream| reply(stream, "200 OK", &[b'x'; 1_000]));
    assert_eq!(get(&fits.url, 1_000).await.unwrap().len(), 1_000);
}

#[tokio::test]
async fn what_may_heal_is_told_from_what_does_not() {
    for (head, class, retry_after) in [
        ("404 Not Found", FailureClass::ImageUnusable, None),
        ("403 Forbidden", FailureClass::ImageUnusable, None),
        ("204 No Content", FailureClass::ImageUnusable, None),
        ("302 Found", FailureClass::ImageUnusable, None),
        ("429 Slowly\r\nretry-after: 7", FailureClass::ServerError, Some(Duration::from_secs(7))),
        ("503 Busy", FailureClass::ServerError, None),
        ("408 Late", FailureClass::ServerError, None),
    ] {
        let server = Server::at(PUBLIC, move |_, stream| reply(stream, head, b""));
        let trouble = get(&(server.url + "/a?key=secret"), 1_000).await.unwrap_err();
        assert_eq!((trouble.class, trouble.retry_after), (class, retry_after), "{trouble:?}");
    }
    let gone = Server::at(PUBLIC, |_, _| Ok(())).url;
    let closed = {
        let listener = TcpListener::bind((PUBLIC, 0)).unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    for url in [gone, closed, "http://no-such-host.invalid/?key=secret".to_owned()] {
        let trouble = get(&url, 1_000).await.unwrap_err();
        assert_eq!(trouble.class, FailureClass::Network, "{url}: {trouble:?}");
    }
}

#[tokio::test]
async fn nothing_of_the_worker_goes_along() {
    let server = Server::at(PUBLIC, |request, stream| {
        if request.starts_with("GET /first") {
            return reply(stream, "302 Found\r\nset-cookie: a=secret\r\nlocation: /second", b"");
        }
        reply(stream, "200 OK", request.as_bytes())
    });
    let request =
        String::from_utf8(get(&format!("{}/first?key=1", server.url), 10_000).await.unwrap()).unwrap();
    let mut names: Vec<&str> =
        request.lines().skip(1).filter_map(|line| line.split_once(':')).map(|(name, _)| name).collect();
    names.sort_unstable();
    assert_eq!(names, ["accept", "host", "user-agent"], "{request}");
}

#[test]
fn an_image_is_what_its_first_bytes_say() {
    let webp = b"RIFF\x1a\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\x63\0\0\x31\0\0";
    for (bytes, kind, size) in [
        (PNG, "image/png", Some((512, 256))),
        (b"GIF89a\x0a\0\x05\0\0\0\0;", "image/gif", Some((10, 5))),
        (b"\xff\xd8\xff\xc0\0\x11\x08\0\x10\0\x20\x03", "image/jpeg", Some((32, 16))),
        (b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01", "image/jpeg", None),
        (webp, "image/webp", Some((100, 50))),
    ] {
        let image = encode(bytes).unwrap();
        assert_eq!(image.size, size, "{kind}");
        let data = image.data_url.strip_prefix(&format!("data:{kind};base64,")).unwrap();
        assert_eq!(STANDARD.decode(data).unwrap(), bytes);
    }
    for not_one in [
        &b""[..],
        b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>",
        b"<html>",
        b"%PDF-1.7",
        b"BM",
        b"RIFF1234WAVEfmt ",
        b"\x89PN",
    ] {
        encode(not_one).unwrap_err();
    }
}

/// The only one here that takes room.
#[tokio::test]
async fn products_wait_for_room_and_keep_no_more_than_they_need() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.png"), [PNG, &[0; 5_000]].concat()).unwrap();
    let images = Images {
        fields: vec!["photo".to_owned()],
        // Each product may need more than there is.
        max_bytes: u64::from(MAX_HELD_BYTES),
        folder: Some(folder.path().to_str().unwrap().to_owned()),
        ..Images::default()
    };
    let fetcher = Fetcher::new(&images).unwrap();
    let product = |json: &str| serde_json::from_str::<Box<RawValue>>(json).unwrap();
    let one = product(r#"{"photo": ["a.png", "./a.png"]}"#);
    let fetched = tokio::time::timeout(SLACK, fetcher.fetch(&one)).await.unwrap().unwrap();
    assert_eq!(fetched.images.len(), 2);
    assert_eq!(HELD.available_permits(), UNITS as usize - 10, "what it came to");
    let mut next = Box::pin(fetcher.fetch(&one));
    tokio::time::timeout(Duration::from_millis(100), &mut next)
        .await
        .expect_err("it waits until it is alone");
    drop(fetched);
    drop(tokio::time::timeout(SLACK, next).await.unwrap().unwrap());
    fetcher.fetch(&product(r#"{"photo": "missing.png"}"#)).await.unwrap_err();
    assert_eq!(HELD.available_permits(), UNITS as usize, "all is given back");
    assert!(fetcher.fetch(&product("{}")).await.unwrap().images.is_empty());
}
