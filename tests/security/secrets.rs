//! Keys and passwords are nowhere but where they were given: every place a secret can be is given a canary, and then
//! everything that was said, logged, sent and stored is searched for it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

use super::http::{Server, send};
use crate::support::{
    catalog::Catalog,
    fleet::{DEADLINE, Fleet, ended},
    process::{Finished, Program, shelfmill},
    rabbitmq::RabbitMq,
    redis::Redis,
    simulator::Simulator,
    wait::eventually,
};

/// Part of every secret here, and of nothing else.
const CANARY: &str = "canary7f3a";
const KEY: &str = "sk-canary7f3a-0123456789";
const WRONG_KEY: &str = "sk-canary7f3a-wrong-9876543210";

fn contains(bytes: &[u8], what: &str) -> bool {
    bytes.windows(what.len()).any(|window| window.eq_ignore_ascii_case(what.as_bytes()))
}

/// "canary7f3a" as it would be in a header of basic authentication, whatever stands before it.
fn encoded() -> [String; 3] {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    [0, 1, 2].map(|shift| {
        let bytes: Vec<u8> = std::iter::repeat_n(0, shift).chain(CANARY.bytes()).collect();
        let mut digits = String::new();
        for three in bytes.as_chunks::<3>().0 {
            let bits = three.iter().fold(0_usize, |bits, byte| bits << 8 | usize::from(*byte));
            digits.extend([18, 12, 6, 0].map(|shift| char::from(DIGITS[bits >> shift & 63])));
        }
        // The first four digits depend on what stands before.
        digits.split_off(if shift == 0 { 0 } else { 4 })
    })
}

#[track_caller]
fn assert_clean(what: &str, bytes: &[u8]) {
    for secret in encoded().iter().map(String::as_str).chain([CANARY]) {
        if contains(bytes, secret) {
            let text = String::from_utf8_lossy(bytes);
            let lines: Vec<_> =
                text.lines().filter(|line| contains(line.as_bytes(), secret)).take(5).collect();
            panic!("a secret is in {what}: {lines:#?}");
        }
    }
}

#[track_caller]
fn clean(end: Finished) -> Finished {
    assert_clean("what was written to stdout", end.stdout.as_bytes());
    assert_clean("what was written to stderr", end.stderr.as_bytes());
    end
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => found.extend(files(&entry.path())),
            _ => found.push(entry.path()),
        }
    }
    found
}

/// No file below has a secret, and one has what is known to be there: the search would have found it.
#[track_caller]
fn assert_clean_folder(folder: &Path, known: &str) {
    let mut has_known = false;
    for file in files(folder) {
        let bytes = fs::read(&file).unwrap_or_default();
        assert_clean(&file.display().to_string(), &bytes);
        assert_clean("a file's name", file.as_os_str().as_encoded_bytes());
        has_known |= contains(&bytes, known);
    }
    assert!(has_known, "'{known}' is in no file of {}", folder.display());
}

/// As talkative as it gets.
fn loud(program: Program) -> Program {
    program.env("RUST_LOG", "trace").env("RUST_BACKTRACE", "1").env("OPENAI_API_KEY", KEY)
}

/// With `RUST_LOG=trace` our own crates tell everything, and libraries nothing of their wires.
#[track_caller]
fn assert_libraries_are_quiet(end: &Finished) {
    let mut heard = 0;
    for line in end.stderr.lines().filter(|line| line.starts_with('{')) {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let is_ours = event["target"].as_str().unwrap().starts_with("shelfmill");
        let is_detail = ["DEBUG", "TRACE"].contains(&event["level"].as_str().unwrap());
        assert!(is_ours || !is_detail, "{line}");
        heard += 1;
    }
    assert!(heard > 0, "{end}");
}

#[test]
fn a_run_in_one_process_keeps_its_key() {
    let simulator = Simulator::start(&["--api-key", KEY]);
    let wrong = Catalog::of(5);
    let right = Catalog::of(30);
    let run = |catalog: &Catalog| loud(shelfmill().arg("run").args(catalog.args()));
    let base = ["--base-url", simulator.url()];
    let end = clean(run(&right).args(base).run(DEADLINE).expect_code(0));
    assert!(end.stderr.contains("DEBUG") || end.stderr.contains("INFO"), "RUST_LOG was heard: {end}");
    clean(
        run(&wrong).args(base).env("OPENAI_API_KEY", WRONG_KEY).args(["--log-format", "json"]).run(DEADLINE),
    );
    for (catalog, there) in [(&right, "SM-000003"), (&wrong, "refuses the key")] {
        assert_clean_folder(&catalog.out(), there);
        for json in [false, true] {
            let progress = loud(shelfmill().arg("progress").arg("--out").arg(catalog.out()));
            clean(progress.args(json.then_some("--json")).run(DEADLINE).expect_code(0));
        }
        clean(loud(shelfmill().arg("requeue").arg("--out").arg(catalog.out())).run(DEADLINE).expect_code(0));
    }
    assert_clean("the simulator's counts", simulator.stats().to_string().as_bytes());
}

#[test]
fn servers_that_repeat_the_key_or_are_behind_a_proxy_with_a_password_are_not_quoted() {
    let catalog = Catalog::of(3);
    let job = catalog.file("job.toml", "[limits]\nmax_attempts = 1\n");
    let echo = Server::start(|call, stream| {
        let body = format!("{{\"error\":{{\"message\":\"no such key: Bearer {KEY}\"}}}}");
        send(stream, if call.contains("000001") { "200 OK" } else { "400 No" }, body.as_bytes())
    });
    let run = || loud(shelfmill().arg("run").args(catalog.args()).arg("--job").arg(&job));
    clean(run().args(["--base-url", echo.url()]).run(DEADLINE).expect_code(3));
    assert_clean_folder(&catalog.out(), "no such key");
    fs::remove_dir_all(catalog.out()).unwrap();
    // Nobody listens on port 1.
    let proxy = format!("http://user:{CANARY}@127.0.0.1:1");
    let end = run().args(["--base-url", "http://model.invalid/v1"]).env("http_proxy", proxy).run(DEADLINE);
    clean(end.expect_code(3));
    assert_clean_folder(&catalog.out(), "cannot connect");
}

#[test]
fn wrong_urls_are_told_without_their_secrets() {
    let catalog = Catalog::of(1);
    let input = catalog.input();
    for url in [
        KEY.to_owned(),
        format!("http://user:{CANARY}@127.0.0.1:1/v1"),
        format!("http://{KEY}@127.0.0.1:1/v1"),
        format!("http://127.0.0.1:1/v1?key={KEY}"),
        format!("http://127.0.0.1:1/v1#{KEY}"),
        format!("htp://user:{CANARY}@127.0.0.1:1"),
        format!("http://user:{CANARY}@127.0.0.1:notaport"),
        format!("http://user:{CANARY}@[::1"),
    ] {
        let run = || loud(shelfmill().arg("run").args(catalog.args()));
        clean(run().args(["--base-url", &url]).run(DEADLINE).expect_code(2));
        clean(run().env("OPENAI_BASE_URL", &url).run(DEADLINE).expect_code(2));
        clean(
            loud(shelfmill().arg("check").arg(&input))
                .args(["--base-url", &url])
                .run(DEADLINE)
                .expect_code(2),
        );
        let worker = loud(shelfmill().args(["worker", "--run", "r"]));
        clean(worker.args(["--base-url", &url]).run(DEADLINE).expect_code(2));
        let job = catalog.file("job.toml", &format!("[llm]\nbase_url = \"{url}\"\n"));
        clean(run().arg("--job").arg(job).run(DEADLINE).expect_code(2));
        assert!(!catalog.out().exists());
    }
    for url in [
        CANARY.to_owned(),
        format!("amqp://user:{CANARY}@127.0.0.1:notaport"),
        format!("http://user:{CANARY}@127.0.0.1"),
        format!("amqp://user:12/{CANARY}@127.0.0.1/%2f"),
        format!("amqp://user:12#{CANARY}@127.0.0.1/%2f"),
        format!("amqp://user:12?{CANARY}@127.0.0.1/%2f"),
        format!("amqp://user:{CANARY}@127.0.0.1:1/%2f?heartbeat={CANARY}"),
        format!("amqp://user:{CANARY}@127.0.0.1:1/%2f?auth_mechanism={CANARY}"),
        format!("amqp://user:{CANARY}@[::1"),
    ] {
        let producer = loud(shelfmill().arg("producer").arg(&input)).args(["--run", "r", "--amqp-url", &url]);
        let end = clean(producer.run(DEADLINE));
        assert!(matches!(end.code, Some(1 | 2)), "{end}");
    }
    for url in [
        CANARY.to_owned(),
        format!("redis://:{CANARY}@127.0.0.1:notaport/0"),
        format!("http://:{CANARY}@127.0.0.1"),
        format!("redis://user:12/{CANARY}@127.0.0.1/0"),
        format!("redis://user:12#{CANARY}@127.0.0.1/0"),
        format!("redis://:{CANARY}@127.0.0.1/notadatabase"),
        format!("redis://:{CANARY}@127.0.0.1:1/0"),
        format!("rediss://:{CANARY}@127.0.0.1:1/0"),
    ] {
        let progress = loud(shelfmill().args(["progress", "--run", "r", "--redis-url", &url]));
        let end = clean(progress.run(DEADLINE));
        assert!(matches!(end.code, Some(1 | 2)), "{end}");
    }
}

#[test]
fn help_does_not_show_what_the_environment_holds() {
    let set = |mut program: Program| {
        for name in ["OPENAI_API_KEY", "OPENAI_BASE_URL", "SHELFMILL_SIMULATE_KEY"] {
            program = program.env(name, KEY);
        }
        for name in ["SHELFMILL_AMQP_URL", "SHELFMILL_REDIS_URL"] {
            program = program.env(name, format!("x://user:{CANARY}@host"));
        }
        program
    };
    for command in ["run", "producer", "worker", "aggregator", "progress", "requeue", "check", "simulate"] {
        for help in ["--help", "-h", "--no-such-option"] {
            let end = clean(set(shelfmill().args([command, help])).run(DEADLINE));
            assert!(end.stdout.contains("OPENAI") || end.stdout.contains("SHELFMILL") || end.code == Some(2));
        }
    }
}

/// Servers with a login of ours, whose passwords are canaries.
fn servers() -> (RabbitMq, Redis) {
    let (rabbitmq, redis) = (RabbitMq::start(), Redis::start());
    let password = format!("{CANARY}-amqp");
    rabbitmq.ctl(&["add_user", "mill", &password]);
    rabbitmq.ctl(&["set_permissions", "mill", ".*", ".*", ".*"]);
    redis.cli(&["ACL", "SETUSER", "mill", "on", &format!(">{CANARY}-redis"), "~*", "&*", "+@all"]);
    (rabbitmq, redis)
}

fn with_login(url: &str, login: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap();
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    format!("{scheme}://{login}@{host}")
}

#[test]
fn a_fleet_keeps_its_key_and_its_passwords() {
    let (rabbitmq, redis) = servers();
    let mut fleet =
        Fleet::new("secrets", 60, &["--api-key", KEY, "--bad-request", "0.2", "--latency", "20ms"]);
    fleet.amqp_url = with_login(&rabbitmq.url(), &format!("mill:{CANARY}-amqp"));
    fleet.redis_url = with_login(&redis.url(), &format!("mill:{CANARY}-redis"));

    // Refused, out of reach, and waiting for it.
    let wrong = |url: &str| with_login(url, &format!("mill:{CANARY}-wrong"));
    let producer = || loud(fleet.producer());
    clean(producer().env("SHELFMILL_AMQP_URL", wrong(&fleet.amqp_url)).run(DEADLINE).expect_code(1));
    clean(producer().env("SHELFMILL_REDIS_URL", wrong(&fleet.redis_url)).run(DEADLINE).expect_code(1));
    for (name, url) in
        [("SHELFMILL_AMQP_URL", "amqp://x@127.0.0.1:1"), ("SHELFMILL_REDIS_URL", "redis://x@127.0.0.1:1")]
    {
        let mut waiting = producer().env(name, wrong(url)).args(["--grace", "1s"]).start();
        eventually(DEADLINE, "a word about the server", || {
            let said = waiting.stderr();
            if said.contains("trying again until it is there") { Ok(()) } else { Err(said) }
        });
        waiting.terminate();
        clean(waiting.wait(DEADLINE));
    }

    clean(ended(producer().args(["--log-format", "json"]).run(DEADLINE)));
    // While the tasks are in the queues, and everything else in Redis.
    let workers: Vec<_> =
        (0..2).map(|_| loud(fleet.worker()).args(["--log-format", "json"]).start()).collect();
    let aggregator = loud(fleet.aggregator()).start();
    for json in [false, true] {
        let progress = loud(fleet.command("progress")).args(json.then_some("--json"));
        clean(progress.run(DEADLINE).expect_code(0));
    }
    clean(aggregator.wait(DEADLINE).expect_code(3));
    clean(loud(fleet.command("requeue")).run(DEADLINE).expect_code(0));
    clean(loud(fleet.aggregator()).run(DEADLINE).expect_code(3));
    fleet.assert_done(&rabbitmq, &redis);
    for mut worker in workers {
        worker.terminate();
        assert_libraries_are_quiet(&clean(ended(worker.wait(Duration::from_secs(60)))));
    }

    assert_clean_folder(&fleet.catalog.out(), "SM-000003");
    // What the servers wrote down: every message that was in a queue, and every command that changed a key.
    let redis_files = redis.cli(&["CONFIG", "GET", "dir"]);
    let appended = Path::new(redis_files.lines().last().unwrap()).join("appendonlydir");
    assert_clean_folder(&appended, "SM-000003");
    let data = rabbitmq.ctl(&["eval", "rabbit_mnesia:dir()."]);
    assert_clean_folder(Path::new(data.trim().trim_matches('"')), "SM-000003");
}
