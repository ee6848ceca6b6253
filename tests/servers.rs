//! The tests' own tools keep their word: servers start, die, come back with their data, and leave nothing behind.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::process::{self, program};
use crate::support::rabbitmq::{self, Queue, RabbitMq};
use crate::support::redis::{self, Redis};
use crate::support::wait::eventually;
use crate::support::{ports, tls};

const SOON: Duration = Duration::from_secs(20);
/// Set for the process that is to be killed, so that `--include-ignored` does not make this one wait.
const VICTIM: &str = "TESTS_VICTIM";

#[test]
fn redis_keeps_what_it_answered_through_a_kill() {
    let mut redis = Redis::start();
    assert_eq!(redis.cli(&["SET", "answer", "paid for"]), "OK");

    redis.kill();
    assert!(!connects(&redis.url()), "a killed Redis still answers");
    redis.restart();
    assert_eq!(redis.cli(&["GET", "answer"]), "paid for");

    redis.stop();
    redis.restart();
    assert_eq!(redis.cli(&["GET", "answer"]), "paid for");

    redis.flushall();
    assert_eq!(redis.cli(&["DBSIZE"]), "0");
}

#[test]
fn redis_never_evicts() {
    let setting = redis::shared().cli(&["CONFIG", "GET", "maxmemory-policy"]);
    assert_eq!(setting, "maxmemory-policy\nnoeviction");
}

#[test]
fn a_paused_redis_keeps_connections_and_does_not_answer() {
    let mut redis = Redis::start();
    redis.pause();
    assert!(connects(&redis.url()), "the kernel accepts for a paused server");
    assert!(!answers(&redis.url(), b"PING\r\n"));
    redis.resume();
    eventually(SOON, "an answer after the pause", || {
        if answers(&redis.url(), b"PING\r\n") { Ok(()) } else { Err("no answer".to_owned()) }
    });
}

#[test]
fn redis_shakes_hands_over_tls() {
    let redis = Redis::start_with_tls();
    tls::shake_hands(redis.tls_port()).unwrap();
    assert_eq!(redis.tls_url(), format!("rediss://localhost:{}/0", redis.tls_port()));
    assert!(redis.ca_file().is_file());
}

/// One node for several questions: each start takes seconds.
#[test]
fn rabbitmq_keeps_queues_through_a_kill_and_speaks_tls() {
    let mut rabbitmq = RabbitMq::builder().tls().start();
    assert_eq!(rabbitmq.queues().len(), 0);
    tls::shake_hands(rabbitmq.tls_port()).unwrap();
    assert_eq!(rabbitmq.tls_url(), format!("amqps://guest:guest@localhost:{}/%2f", rabbitmq.tls_port()));
    assert!(rabbitmq.ca_file().is_file());

    let declare = |kind: &str| {
        format!(
            r#"rabbit_amqqueue:declare(rabbit_misc:r(<<"/">>, queue, <<"kept.{kind}">>), true, false,
                [{{<<"x-queue-type">>, longstr, <<"{kind}">>}}], none, <<"tests">>), ok."#
        )
    };
    rabbitmq.ctl(&["eval", &declare("quorum")]);
    rabbitmq.ctl(&["eval", &declare("classic")]);
    // A declaration is in its log within moments; it is killed sooner here.
    rabbitmq.ctl(&["eval", "mnesia:sync_log()."]);
    let before = rabbitmq.queues();
    assert_eq!(
        before["kept.quorum"],
        Queue { ready: 0, unacked: 0, kind: "quorum".to_owned(), consumers: 0 }
    );
    assert_eq!(before["kept.classic"].kind, "classic");

    rabbitmq.kill();
    assert!(!connects(&rabbitmq.url()), "a killed RabbitMQ still answers");
    rabbitmq.restart();
    assert_eq!(rabbitmq.queues(), before);

    rabbitmq.pause();
    assert!(connects(&rabbitmq.url()), "the kernel accepts for a paused server");
    assert!(!answers(&rabbitmq.url(), b"AMQP\0\0\x09\x01"));
    rabbitmq.resume();
    assert_eq!(rabbitmq.queues(), before);

    rabbitmq.stop();
    assert!(!connects(&rabbitmq.url()), "a stopped RabbitMQ still answers");
}

#[test]
fn rabbitmq_is_shared_by_the_tests_that_do_not_kill_it() {
    let [one, other] = [(); 2].map(|()| rabbitmq::shared().url());
    assert_eq!(one, other);
    assert!(rabbitmq::shared().ctl(&["status", "--formatter", "json"]).contains("rabbitmq_version"));
}

#[test]
fn a_process_tells_how_it_ended_and_what_it_took() {
    let finished = program("sh")
        .args(["-c", "echo out; echo err >&2; pwd; echo $GREETING; sleep 0.2; exit 3"])
        .env("GREETING", "hello")
        .current_dir("/")
        .run(SOON)
        .expect_code(3);
    assert_eq!(finished.stdout, "out\n/\nhello\n");
    assert_eq!(finished.stderr, "err\n");
    assert!(finished.elapsed >= Duration::from_millis(200));
    if Path::new("/proc/self/status").exists() {
        assert!(finished.peak_rss_kb.is_some_and(|kb| kb > 100), "{finished:?}");
    }
}

#[test]
fn a_process_obeys_signals() {
    let trap =
        r#"trap "echo term; exit 7" TERM; trap "echo int" INT; echo ready; while :; do sleep 0.01; done"#;
    // Whoever started the tests in the background has made them ignore SIGINT, and children inherit that.
    let mut shell = program("env").args(["--default-signal=INT", "sh", "-c", trap]).start();
    let wrote = |line: &str, text: String| {
        if text.lines().any(|one| one == line) { Ok(()) } else { Err(format!("{text:?}")) }
    };
    eventually(SOON, "the traps", || wrote("ready", shell.stdout()));
    shell.interrupt();
    eventually(SOON, "the first trap", || wrote("int", shell.stdout()));
    shell.pause();
    shell.terminate();
    assert!(shell.is_running(), "a paused process handles no signal");
    assert_eq!(shell.stderr(), "");
    shell.resume();
    shell.wait(SOON).expect_code(7);

    let killed = program("sleep").arg("60").start().kill9();
    assert_eq!((killed.code, killed.signal), (None, Some(9)));
}

#[test]
fn the_binary_under_test_can_be_run() {
    let finished = process::shelfmill().arg("--version").run(SOON);
    assert_eq!(finished.code, Some(0), "{finished}");
}

/// This very test binary is started again, starts servers, and is killed: nothing may survive it.
#[test]
fn a_killed_test_process_leaves_neither_processes_nor_files() {
    let temp = tempfile::tempdir().unwrap();
    let tests = std::env::current_exe().unwrap();
    let victim = program(tests)
        .args(["--exact", "--ignored", "--nocapture", "servers::victim"])
        .env("TMPDIR", temp.path())
        .env(VICTIM, "1")
        .start();
    let (url, sleeper) = eventually(SOON * 5, "the servers of the process to be killed", || {
        let said = victim.stdout();
        let told = said.lines().find_map(|line| line.strip_prefix("victim: ")?.split_once(' '));
        told.map(|(url, pid)| (url.to_owned(), pid.to_owned())).ok_or(said)
    });
    assert!(connects(&url));
    victim.kill9();

    eventually(SOON, "the end of everything it had started", || {
        let files = fs::read_dir(temp.path()).unwrap().count();
        let redis = connects(&url);
        let sleeper = is_alive(&sleeper);
        if files == 0 && !redis && !sleeper {
            return Ok(());
        }
        Err(format!("{files} entries of its directory; Redis: {redis}; process: {sleeper}"))
    });
}

#[test]
#[ignore = "run and killed by the test above"]
fn victim() {
    if std::env::var_os(VICTIM).is_none() {
        return;
    }
    let sleeper = program("sleep").arg("600").start();
    println!("victim: {} {}", redis::shared().url(), sleeper.pid());
    sleeper.wait(Duration::from_secs(600));
}

#[test]
fn ports_are_given_once() {
    let mut given: Vec<u16> = (0..50).map(|_| ports::free()).collect();
    assert!(given.iter().all(|&port| ports::is_free(port)));
    given.sort_unstable();
    given.dedup();
    assert_eq!(given.len(), 50);
}

#[test]
#[should_panic(expected = "still waiting for a miracle; last seen: attempt")]
fn a_wait_that_fails_tells_what_it_saw() {
    let start = Instant::now();
    eventually(Duration::from_millis(50), "a miracle", || {
        Err::<(), _>(format!("attempt after {:?}", start.elapsed()))
    });
}

fn connect(url: &str) -> std::io::Result<TcpStream> {
    let port = url.trim_end_matches(|c| c != '/').trim_end_matches('/').rsplit(':').next();
    let port = port.and_then(|port| port.parse::<u16>().ok()).expect("a URL ends in a port and a path");
    TcpStream::connect((Ipv4Addr::LOCALHOST, port))
}

fn connects(url: &str) -> bool {
    connect(url).is_ok()
}

/// Whether a byte comes back within half a second.
fn answers(url: &str, question: &[u8]) -> bool {
    let mut stream = connect(url).expect("the kernel accepts");
    stream.set_read_timeout(Some(Duration::from_millis(500))).expect("more than nothing");
    stream.write_all(question).expect("the kernel buffers");
    stream.read_exact(&mut [0]).is_ok()
}

/// A zombie that nobody has waited for is not alive. (Told by Linux; elsewhere the answer is no.)
fn is_alive(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|fields| !fields.is_empty() && !fields.starts_with('Z'))
}
