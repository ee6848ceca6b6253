//! Images, seen from outside: what the model was shown, what was asked of the images' server, and the lines.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};

use crate::support::{
    catalog::Catalog,
    checker::{Repeats, check},
    fleet::{DEADLINE, Fleet, ended},
    process::{Program, shelfmill},
    rabbitmq, redis,
    simulator::Simulator,
};

/// A PNG of so many bytes, as far as its header goes.
fn png(size_bytes: usize) -> Vec<u8> {
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x02\0\0\0\x02\0\x08\x06\0\0\0".to_vec();
    png.resize(size_bytes, 0);
    png
}

/// A shop's image server; it ends with the test.
struct Shop {
    url: String,
    /// By path.
    asked: Arc<Mutex<HashMap<String, u64>>>,
}

impl Shop {
    fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked: Arc<Mutex<HashMap<String, u64>>> = Arc::default();
        let counts = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let counts = Arc::clone(&counts);
                // The other side is expected to hang up.
                std::thread::spawn(move || serve(stream, &counts));
            }
        });
        Self { url, asked }
    }

    fn asked(&self) -> u64 {
        self.asked.lock().unwrap().values().sum()
    }
}

fn serve(mut stream: TcpStream, counts: &Mutex<HashMap<String, u64>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let headers: Vec<String> = lines
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .map(|l| l.to_ascii_lowercase())
        .collect();
    for secret in ["authorization", "cookie", "referer"] {
        assert!(!headers.iter().any(|header| header.starts_with(secret)), "{headers:?}");
    }
    let path = first.split(' ').nth(1).unwrap_or_default().split('?').next().unwrap_or_default().to_owned();
    let times = {
        let mut counts = counts.lock().unwrap();
        let times = counts.entry(path.clone()).or_default();
        *times += 1;
        *times
    };
    let (status, header, body) = match path.trim_start_matches('/').split('/').next().unwrap_or_default() {
        "good" => ("200 OK", "content-type: text/plain".to_owned(), png(1000)),
        "flaky" if times == 1 => ("503 Busy", "retry-after: 0".to_owned(), Vec::new()),
        "flaky" => ("200 OK", String::new(), png(1000)),
        "moved" => ("302 Found", "location: /good/moved.png".to_owned(), Vec::new()),
        "page" => ("200 OK", "content-type: image/png".to_owned(), b"<html>not here</html>".to_vec()),
        "large" => ("200 OK", String::new(), png(3000)),
        "down" => ("500 Oops", String::new(), Vec::new()),
        _ => ("404 Not Found", String::new(), Vec::new()),
    };
    let header = if header.is_empty() { header } else { format!("{header}\r\n") };
    write!(
        stream,
        "HTTP/1.1 {status}\r\n{header}connection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )?;
    stream.write_all(&body)
}

/// These products instead of those of the catalog.
fn catalog_of(mut catalog: Catalog, products: &[Value]) -> Catalog {
    catalog.ids = products.iter().map(|product| product["id"].as_str().unwrap().to_owned()).collect();
    let lines: String = products.iter().map(|product| format!("{product}\n")).collect();
    fs::write(catalog.input(), lines).unwrap();
    fs::create_dir_all(catalog.input().with_file_name("photos")).unwrap();
    fs::write(catalog.input().with_file_name("photos/front.png"), png(500)).unwrap();
    catalog
}

const JOB: &str = "\
[llm]
prices = { prompt = 1.0, completion = 1.0 }
[llm.images]
fields = [\"photo\", \"more\"]
folder = \"photos\"
max_bytes = 2000
";
const NEVER: &str = "[limits]\nabort_failure_rate = 1.0\nmax_attempts = 2\n";

fn run(catalog: &Catalog, simulator: &Simulator, job: &str) -> Program {
    shelfmill()
        .arg("run")
        .args(catalog.args())
        .args(["--base-url", simulator.url(), "--concurrency", "8"])
        .arg("--job")
        .arg(catalog.file("job.toml", job))
}

/// Every other one has two images, and every fifth one comes with a detour.
fn products(shop: &Shop) -> Vec<Value> {
    (0..20)
        .map(|number| {
            let url = match number % 5 {
                1 => format!("{}/flaky/{number}.png?key=secret", shop.url),
                2 => format!("{}/moved/{number}.png", shop.url),
                _ => format!("{}/good/{number}.png", shop.url),
            };
            let id = format!("P-{number}");
            match number % 2 {
                0 => json!({"id": id, "title": "Mug", "photo": url, "more": ["front.png", null, ""]}),
                _ => json!({"id": id, "title": "Mug", "photo": url}),
            }
        })
        .collect()
}

#[track_caller]
fn were_shown(simulator: &Simulator) {
    let stats = simulator.stats();
    assert_eq!((&stats["images"], &stats["image_bytes"]), (&json!(30), &json!(20 * 1000 + 10 * 500)));
    for number in 0..20 {
        let images = &stats["by_product"][format!("P-{number}")]["images"];
        assert_eq!(images, &json!(if number % 2 == 0 { 2 } else { 1 }), "{number}");
    }
}

#[test]
fn images_from_urls_and_paths_reach_the_model() {
    let shop = Shop::open();
    let (catalog, simulator) = (catalog_of(Catalog::of(0), &products(&shop)), Simulator::start(&[]));
    let job = format!("{JOB}allow_private = true\n");
    ended(run(&catalog, &simulator, &job).run(DEADLINE));
    let results = check(&catalog, &simulator, Repeats::None);
    assert_eq!((results.failures.len(), results.calls()), (0, (20, 0)));
    were_shown(&simulator);
}

#[test]
fn a_fleet_shows_images_too() {
    let shop = Shop::open();
    let mut fleet = Fleet::new("images", 0, &["--schema-violation", "0.2"]);
    fleet.catalog = catalog_of(fleet.catalog, &products(&shop));
    let job = fleet.catalog.file("job.toml", &format!("{JOB}allow_private = true\n"));
    let workers = fleet.workers(2);
    ended(fleet.producer().arg("--job").arg(&job).run(DEADLINE));
    ended(fleet.aggregator().run(DEADLINE));
    let results = fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert!(results.failures.is_empty());
    let stats = fleet.simulator.stats();
    let (calls, images) = (stats["calls"].as_u64().unwrap(), stats["images"].as_u64().unwrap());
    // Whoever is asked again is shown the images again, and nothing is fetched twice for it.
    assert!(calls > 20 && images > 30, "{calls} {images}");
    assert_eq!(shop.asked(), 20 + 4 + 4, "each once, four once more, four from where they have moved to");
    drop(workers);
}

#[test]
fn what_cannot_be_shown_costs_no_call_and_is_told_without_its_secrets() {
    let shop = Shop::open();
    let url = |path: &str| format!("{}{path}?key=secret", shop.url);
    let login = shop.url.replace("http://", "http://user:secret@");
    let cases = [
        (json!(url("/gone.png")), "image_unusable", "404"),
        (json!(url("/page/a.png")), "image_unusable", "not a PNG"),
        (json!(url("/large/a.png")), "image_unusable", "larger than 2000 bytes"),
        (json!(url("/down/a.png")), "server_error", "500"),
        (json!(format!("{login}/good/b.png")), "image_unusable", "holds a login"),
        (json!("http://127.0.0.1:1/x.png?key=secret"), "network", "cannot connect"),
        (json!("../job.toml"), "image_unusable", "leads out of the folder"),
        (json!("/etc/passwd"), "image_unusable", "leads out of the folder"),
        (json!("missing.png"), "image_unusable", "cannot be read"),
        (json!(7), "image_unusable", "a number"),
        (json!(["ftp://host/secret"]), "image_unusable", "only URLs"),
    ];
    let products: Vec<Value> = cases
        .iter()
        .enumerate()
        .map(|(number, (photo, ..))| json!({"id": format!("P-{number:02}"), "photo": photo}))
        .collect();
    let (catalog, simulator) = (catalog_of(Catalog::of(0), &products), Simulator::start(&[]));
    let job = format!("{JOB}allow_private = true\n{NEVER}");
    let finished = run(&catalog, &simulator, &job).run(DEADLINE).expect_code(3);
    let results = check(&catalog, &simulator, Repeats::None);
    assert_eq!(simulator.calls(), 0);
    assert_eq!(results.summary["cost_usd"], 0.0, "{}", results.summary);
    for line in &results.failures {
        let number: usize = line["id"].as_str().unwrap()[2..].parse().unwrap();
        let (_, class, why) = &cases[number];
        let message = line["failure"]["message"].as_str().unwrap();
        assert_eq!(line["failure"]["class"], *class, "{message}");
        assert!(message.contains("'photo'") && message.contains(why), "{message}");
        assert!(!message.contains("secret"), "{message}");
    }
    assert_eq!(results.failures.len(), cases.len());
    assert!(!finished.stderr.contains("secret"), "{}", finished.stderr);
    assert_eq!(shop.asked.lock().unwrap()["/down/a.png"], 2, "as often as the job says");
}

#[test]
fn nothing_private_is_ever_connected_to() {
    let shop = Shop::open();
    let port = shop.url.rsplit(':').next().unwrap();
    let hosts =
        ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0x7f.1", "2130706433", "0", "127.1"];
    let products: Vec<Value> = hosts
        .iter()
        .map(|host| json!({"id": host, "photo": format!("http://{host}:{port}/good/a.png")}))
        .collect();
    let (catalog, simulator) = (catalog_of(Catalog::of(0), &products), Simulator::start(&[]));
    // A proxy would resolve names by itself.
    let run = run(&catalog, &simulator, &format!("{JOB}{NEVER}")).env("HTTP_PROXY", &shop.url);
    run.env("NO_PROXY", "127.0.0.1").run(DEADLINE).expect_code(3);
    let results = check(&catalog, &simulator, Repeats::None);
    assert_eq!((results.failures.len(), simulator.calls(), shop.asked()), (hosts.len(), 0, 0));
    for line in &results.failures {
        let failure = &line["failure"];
        assert_eq!(failure["class"], "image_unusable", "{failure}");
        assert!(failure["message"].as_str().unwrap().contains("private network"), "{failure}");
    }
}

#[test]
fn images_are_held_in_the_budget_by_their_tokens() {
    // In base64 it has 2.7 million bytes: held as tokens, they would cost more than the whole budget.
    let (catalog, simulator) = (Catalog::of(0), Simulator::start(&[]));
    let catalog = catalog_of(catalog, &[json!({"id": "P-0", "title": "Mug", "photo": "large.png"})]);
    fs::write(catalog.input().with_file_name("photos/large.png"), png(2_000_000)).unwrap();
    let job = JOB.replace("2000", "3000000");
    ended(run(&catalog, &simulator, &job).args(["--budget", "0.05"]).run(DEADLINE));
    let results = check(&catalog, &simulator, Repeats::None);
    let tokens = results.journal[0]["meta"]["prompt_tokens"].as_u64().unwrap();
    assert!((765..5_000).contains(&tokens), "{tokens}");
    assert_eq!(simulator.stats()["image_bytes"], 2_000_000);
}

#[test]
fn a_check_tells_of_images_and_fetches_none() {
    let shop = Shop::open();
    let catalog = catalog_of(Catalog::of(0), &products(&shop));
    let check = shelfmill().arg("check").arg(catalog.input()).arg("--job").arg(catalog.file("job.toml", JOB));
    let finished = check.run(DEADLINE).expect_code(0);
    assert!(finished.stdout.contains("Images: 30 "), "{}", finished.stdout);
    assert_eq!(shop.asked(), 0);
}
