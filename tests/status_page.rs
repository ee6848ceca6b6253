//! The page of a run that goes on: over plain HTTP as a stranger would ask for it, and in a real browser.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::Path,
};

use serde_json::{Value, json};

use crate::support::{
    browser::Browser,
    catalog::Catalog,
    fleet::{DEADLINE, Fleet, ended},
    http::address,
    process::{Program, shelfmill},
    simulator::Simulator,
    wait::eventually,
};

const EVIL: &str = "</script><img src=x onerror=alert(1)><!-- data: {}";

fn ask(address: &str, path: &str, headers: &[&str]) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let host =
        if headers.iter().any(|header| header.starts_with("host:")) { "" } else { "host: localhost\r\n" };
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    write!(stream, "GET {path} HTTP/1.1\r\n{host}{headers}connection: close\r\n\r\n").unwrap();
    stream
}

/// Status line and headers, and the body.
fn get(address: &str, path: &str, headers: &[&str]) -> (String, String) {
    let mut reply = String::new();
    ask(address, path, headers).read_to_string(&mut reply).unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    (head.to_lowercase(), body.to_owned())
}

/// The snapshots that come, to the end of the stream; and whether it was told to be the end.
struct Viewer(BufReader<TcpStream>);

impl Viewer {
    fn join(address: &str, headers: &[&str]) -> Self {
        Self(BufReader::new(ask(address, "/events", headers)))
    }

    fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        while self.0.read_line(&mut line).unwrap() > 0 {
            if let Some(json) = line.strip_prefix("data: ") {
                return Some(serde_json::from_str(json).expect("JSON on one line"));
            }
            line.clear();
        }
        None
    }
}

fn run(catalog: &Catalog, simulator: &Simulator, listen: &str) -> Program {
    let run = shelfmill().arg("run").args(catalog.args());
    run.args(["--base-url", simulator.url(), "--concurrency", "4", "--listen", listen])
}

#[test]
fn viewers_see_the_run_go_on_and_end_whatever_its_products_are_called() {
    let catalog = Catalog::of(120);
    let text = fs::read_to_string(catalog.input()).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    let evil = json!({"id": EVIL, "title": EVIL}).to_string();
    lines.insert(40, &evil);
    fs::write(catalog.input(), lines.join("\n") + "\n").unwrap();
    let simulator = Simulator::start(&["--latency", "150ms", "--forbid-products", EVIL]);
    let job = catalog.file("job.toml", "[limits]\nmax_attempts = 1\n");
    let process = run(&catalog, &simulator, "127.0.0.1:0").arg("--job").arg(job).start();
    let address = address(&process);

    let (head, page) = get(&address, "/", &[]);
    assert!(head.starts_with("http/1.1 200") && page.contains(">null</script>"), "{head}");
    for header in ["default-src 'none'", "nosniff", "no-referrer", "no-store", "connect-src 'self'"] {
        assert!(head.contains(header), "{header}: {head}");
    }
    let mut viewers = [Viewer::join(&address, &[]), Viewer::join(&address, &[])];
    for strange in ["host: evil.example", "host: localhost.evil.example:80"] {
        assert!(get(&address, "/events", &[strange]).0.starts_with("http/1.1 403"), "{strange}");
    }
    let others = ["sec-fetch-site: cross-site"];
    assert!(get(&address, "/events", &others).0.starts_with("http/1.1 403"));
    eventually(DEADLINE, "a figure of the queues", || {
        let told = get(&address, "/metrics", &["host: prometheus"]).1;
        if told.contains("shelfmill_queue_messages{queue=\"tasks\"}") { Ok(()) } else { Err(told) }
    });

    for viewer in &mut viewers {
        let snapshots: Vec<Value> = std::iter::from_fn(|| viewer.next()).collect();
        let done: Vec<u64> =
            snapshots.iter().map(|told| told["products"]["completed"].as_u64().unwrap()).collect();
        assert!(done.is_sorted() && done.first() < done.last() && done.len() >= 4, "{done:?}");
        assert!(snapshots.iter().any(|told| told["state"] == "running" && told["workers"][0]["limit"] == 4));
        let told = snapshots.iter().rfind(|told| told["state"] == "running").unwrap();
        assert_eq!(told["failures"][0]["examples"][0]["id"], EVIL, "{told}");
        assert!(told["latency_ms"]["p50"].as_u64() >= Some(140), "{told}");
        let last = snapshots.last().unwrap();
        assert_eq!((&last["state"], &last["products"]["completed"]), (&json!("complete"), &json!(120)));
    }
    let end = process.wait(DEADLINE).expect_code(3);
    assert!(!end.stderr.contains("panicked"), "{end}");
}

#[test]
fn beyond_this_machine_a_token_is_wanted() {
    const TOKEN: &str = "canary-of-the-status-page";
    let catalog = Catalog::of(400);
    let simulator = Simulator::start(&["--latency", "100ms"]);
    let is_refused = |told: &(String, String)| told.0.starts_with("http/1.1 403");

    let process = run(&catalog, &simulator, "0.0.0.0:0").start();
    let open = address(&process);
    for path in ["/", "/events", "/?token=", "/events?token=x"] {
        let told = get(&open, path, &[]);
        assert!(is_refused(&told) && told.1.contains("SHELFMILL_STATUS_TOKEN"), "{path}: {told:?}");
    }
    assert!(get(&open, "/metrics", &[]).0.starts_with("http/1.1 200"));
    process.kill9();

    let file = catalog.file("token", &format!("{TOKEN}\n"));
    let process = run(&catalog, &simulator, "0.0.0.0:0")
        .arg("--status-token-file")
        .arg(file)
        .env("RUST_LOG", "trace")
        .start();
    let guarded = address(&process);
    for (path, header) in [
        ("/", "a: b"),
        ("/events", "a: b"),
        ("/?token=wrong", "a: b"),
        ("/events?token=wrong", "a: b"),
        ("/", "authorization: Bearer wrong"),
        ("/events", "cookie: shelfmill-status=wrong"),
    ] {
        let told = get(&guarded, path, &[header]);
        assert!(is_refused(&told) && !told.1.contains(TOKEN), "{path} {header}: {told:?}");
    }
    let bearer = format!("authorization: Bearer {TOKEN}");
    assert!(get(&guarded, "/", &[&bearer, "host: any.example"]).0.starts_with("http/1.1 200"));
    let (head, page) = get(&guarded, &format!("/?token={TOKEN}"), &[]);
    assert!(head.starts_with("http/1.1 200") && !page.contains(TOKEN), "{head}");
    let cookie = head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).expect("a cookie");
    assert!(cookie.contains("httponly") && cookie.contains("samesite=strict") && !cookie.contains(TOKEN));
    let cookie = format!("cookie: {}", cookie.split(';').next().unwrap());
    assert!(Viewer::join(&guarded, &[&cookie]).next().is_some_and(|told| told["run"] == "default"));
    assert!(get(&guarded, "/metrics", &[]).0.starts_with("http/1.1 200"));
    let told = process.kill9();
    assert!(!told.stderr.contains(TOKEN) && !told.stdout.contains(TOKEN), "a token");
}

#[test]
fn more_viewers_than_there_are_places_are_told_so() {
    let catalog = Catalog::of(400);
    let simulator = Simulator::start(&["--latency", "500ms"]);
    let process = run(&catalog, &simulator, "127.0.0.1:0").start();
    let address = address(&process);
    let mut viewers: Vec<Viewer> = (0..64).map(|_| Viewer::join(&address, &[])).collect();
    assert!(viewers.iter_mut().all(|viewer| viewer.next().is_some()));
    assert!(get(&address, "/events", &[]).0.starts_with("http/1.1 503"));
    viewers.pop();
    eventually(DEADLINE, "a place that is free again", || {
        Viewer::join(&address, &[]).next().map(drop).ok_or_else(String::new)
    });
}

#[test]
fn a_browser_shows_a_fleets_run_on_every_screen() {
    let fleet =
        Fleet::new("status", 2_400, &["--latency", "400ms", "--malformed", "0.03", "--refused", "0.01"]);
    let job =
        "[llm]\nprices = { prompt = 1.0, completion = 2.0 }\n[limits]\nbudget = 1.5\nmax_attempts = 1\n";
    let job = fleet.catalog.file("job.toml", job);
    let _workers = fleet.workers(3);
    let aggregator = fleet.aggregator().args(["--listen", "127.0.0.1:0"]).start();
    let page = format!("http://{}/", address(&aggregator));
    let mut browser = Browser::start();
    ended(fleet.producer().arg("--job").arg(&job).run(DEADLINE));
    browser.ask("Page.navigate", json!({"url": page}));
    let share = "parseFloat(document.querySelector('#bar .c')?.style.width) || 0";
    let at_least = |browser: &mut Browser, least: f64| {
        eventually(DEADLINE, "the bar", || match browser.evaluate(share).as_f64() {
            Some(share) if share > least => Ok(share),
            share => Err(format!("{share:?}")),
        })
    };
    let before = at_least(&mut browser, 20.0);
    for width in [390, 1100] {
        for scheme in ["light", "dark"] {
            browser.look_as(width, scheme);
            let wide = browser.evaluate("document.documentElement.scrollWidth");
            assert!(wide.as_u64() <= Some(width.into()), "{wide} of {width}: a page that scrolls sideways");
            // Everything may be built in another place.
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(format!("status-page-{width}-{scheme}.png")), browser.screenshot())
                .unwrap();
        }
    }
    let state = browser.evaluate("document.getElementById('state').textContent");
    assert_eq!(state, "running");
    assert_eq!(browser.evaluate("document.querySelectorAll('#workers tr').length"), 4, "three, and the head");
    assert!(at_least(&mut browser, before + 5.0) < 100.0, "seen on the way");
    aggregator.wait(DEADLINE).expect_code(3);
    eventually(DEADLINE, "the end", || {
        match browser.evaluate("document.getElementById('state').textContent") {
            state if state == "complete" => Ok(()),
            state => Err(state.to_string()),
        }
    });
    let (asked, complained) = browser.asked_and_complained();
    assert!(asked.iter().any(|url| url.ends_with("/events")), "{asked:?}");
    assert!(asked.iter().all(|url| url.starts_with(&page) || url.starts_with("data:")), "{asked:?}");
    assert!(complained.is_empty(), "{complained:?}");
}
