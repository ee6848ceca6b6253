//! What people do to a fleet's run while it goes on: pause it, look at it, upgrade it, and remove it.

use std::time::Duration;

use serde_json::Value;

use crate::support::{
    checker::{keys_of, queues_of},
    fleet::{DEADLINE, Fleet, ended},
    process::Finished,
    rabbitmq,
    redis::{self, Redis},
    wait::{eventually, within},
};

fn command(fleet: &Fleet, name: &str, args: &[&str]) -> Finished {
    fleet.command(name).args(args).run(DEADLINE)
}

fn say(finished: Finished) -> String {
    ended(finished).stdout
}

#[track_caller]
fn calls_stand_still(fleet: &Fleet) -> u64 {
    // Those that are under way end; from then on there is none.
    let mut before = fleet.simulator.calls();
    eventually(DEADLINE, "no call for two seconds", || {
        let last = before;
        let changed = within(Duration::from_secs(2), || {
            before = fleet.simulator.calls();
            if before == last { Err("none".to_owned()) } else { Ok(()) }
        });
        if changed.is_err() { Ok(before) } else { Err(format!("{before} calls")) }
    })
}

#[test]
fn a_person_pauses_a_run_and_lets_it_go_on() {
    let fleet = Fleet::new("pause", 400, &["--latency", "100ms"]);
    ended(fleet.producer().run(DEADLINE));
    let workers = fleet.workers(2);
    let mut aggregator = fleet.aggregator().start();
    fleet.wait_for_lines(40);
    let said = say(command(&fleet, "pause", &["--reason", "the \u{1b}[31mprovider calls"]));
    assert!(said.starts_with("Paused: nobody begins a call"), "{said}");
    let calls = calls_stand_still(&fleet);
    assert!(calls < 400, "{calls}: it was paused in time");
    let progress = say(command(&fleet, "progress", &[]));
    assert!(progress.contains("Paused: paused by a person at 2"), "{progress}");
    assert!(progress.contains("provider calls") && !progress.contains('\u{1b}'), "{progress}");
    let again = say(command(&fleet, "pause", &[]));
    assert!(
        again.starts_with("It was paused by a person at 2") && again.contains("provider calls"),
        "{again}"
    );
    // What was answered is written, and nobody ends; a producer that is started meanwhile lifts nothing.
    eventually(DEADLINE, "what was answered", || {
        let progress = fleet.progress();
        if progress["completed"] == calls { Ok(()) } else { Err(progress.to_string()) }
    });
    ended(fleet.producer().run(DEADLINE));
    assert_eq!(calls_stand_still(&fleet), calls);
    assert!(aggregator.is_running(), "it waits");

    assert_eq!(say(command(&fleet, "resume", &[])), format!("The run '{}' goes on\n", fleet.run));
    ended(aggregator.wait(DEADLINE));
    fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert_eq!(say(command(&fleet, "resume", &[])), format!("The run '{}' is not paused\n", fleet.run));
    for mut worker in workers {
        assert!(worker.is_running(), "it waited");
        worker.terminate();
        ended(worker.wait(DEADLINE));
    }
}

#[test]
fn a_worker_that_ends_with_the_run_waits_for_a_person_too() {
    let fleet = Fleet::new("pause-until-done", 30, &["--latency", "50ms"]);
    ended(fleet.producer().run(DEADLINE));
    say(command(&fleet, "pause", &[]));
    let worker = fleet.worker().arg("--until-done").start();
    eventually(DEADLINE, "a worker that waits", || {
        let said = worker.stderr();
        if said.contains("the run has paused; this worker waits") { Ok(()) } else { Err(said) }
    });
    say(command(&fleet, "resume", &[]));
    ended(fleet.aggregator().run(DEADLINE));
    ended(worker.wait(DEADLINE));
    fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert_eq!(fleet.simulator.calls(), 30);
}

#[test]
fn workers_that_wait_for_a_person_are_heard_of_and_keep_the_run_from_being_removed() {
    let fleet = Fleet::new("pause-heard", 400, &["--latency", "100ms"]);
    ended(fleet.producer().run(DEADLINE));
    let workers = fleet.workers(2);
    eventually(
        DEADLINE,
        "calls",
        || if fleet.simulator.calls() > 20 { Ok(()) } else { Err("none".to_owned()) },
    );
    say(command(&fleet, "pause", &[]));
    calls_stand_still(&fleet);
    eventually(DEADLINE, "two workers that wait", || {
        let progress = fleet.progress();
        let workers = progress["workers"].as_object().unwrap();
        let idle = workers.values().all(|worker| worker["in_flight"] == 0);
        if idle && workers.len() == 2 { Ok(()) } else { Err(progress.to_string()) }
    });
    let end = command(&fleet, "purge", &["--yes"]).expect_code(2);
    assert!(end.stderr.contains("2 workers"), "{end}");
    for mut worker in workers {
        worker.terminate();
        ended(worker.wait(DEADLINE));
    }
    assert_eq!(fleet.progress()["workers"], serde_json::json!({}), "they say when they go");
    say(command(&fleet, "purge", &["--yes"]));
}

#[test]
fn a_full_redis_keeps_no_aggregator_from_its_start_and_nobody_from_pausing() {
    let redis = Redis::start();
    let mut fleet = Fleet::new("full-start", 200, &["--latency", "50ms"]);
    fleet.redis_url = redis.url();
    ended(fleet.producer().run(DEADLINE));
    let worker = fleet.worker().start();
    let answers = format!("shelfmill:{{{}}}:answers", fleet.run);
    let waiting = || redis.cli(&["HLEN", &answers]).parse::<u64>().unwrap();
    eventually(DEADLINE, "answers", || if waiting() > 30 { Ok(()) } else { Err("few".to_owned()) });
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    say(command(&fleet, "pause", &[]));
    // It needs no memory and frees some, whenever it is started.
    let aggregator = fleet.aggregator().start();
    eventually(DEADLINE, "no answer to be left in Redis", || {
        if waiting() == 0 { Ok(()) } else { Err(aggregator.stderr()) }
    });
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    say(command(&fleet, "resume", &[]));
    ended(aggregator.wait(DEADLINE));
    fleet.assert_done(rabbitmq::shared(), &redis);
    drop(worker);
}

#[test]
fn commands_for_a_run_that_is_not_there_say_so() {
    let fleet = Fleet::new("nobody", 1, &[]);
    for name in ["pause", "resume"] {
        let end = command(&fleet, name, &[]).expect_code(2);
        assert!(end.stderr.contains("there is no run") && end.stderr.contains("Ctrl-C"), "{end}");
    }
    let said = say(command(&fleet, "purge", &["--yes"]));
    assert!(said.ends_with("0 messages and 0 keys\n"), "{said}");
}

#[test]
fn progress_lists_workers_with_their_versions_and_the_queues() {
    let fleet = Fleet::new("lists", 2_000, &["--latency", "500ms"]);
    ended(fleet.producer().run(DEADLINE));
    let _workers = fleet.workers(3);
    let _aggregator = fleet.aggregator().start();
    let version = env!("CARGO_PKG_VERSION");
    let progress = eventually(DEADLINE, "three workers at work", || {
        let progress = fleet.progress();
        let workers = progress["workers"].as_object().unwrap();
        let at_work = workers.values().filter(|worker| worker["in_flight"].as_u64() > Some(0)).count();
        if at_work == 3 { Ok(progress) } else { Err(progress.to_string()) }
    });
    for worker in progress["workers"].as_object().unwrap().values() {
        assert_eq!(worker["version"], version, "{worker}");
        assert!(worker["heard_seconds"].as_f64().unwrap() < 20.0, "{worker}");
    }
    assert_eq!(progress["versions"]["producer"], version, "{progress}");
    assert_eq!(progress["versions"]["aggregator"], version, "{progress}");
    assert!(progress["queues"]["tasks"].as_u64() > Some(100), "{progress}");
    let said = say(command(&fleet, "progress", &[]));
    assert!(said.contains("\nWorkers: 3, with ") && said.contains("\nWaiting: "), "{said}");
    assert_eq!(said.lines().filter(|line| line.contains(" calls, heard ")).count(), 3, "{said}");
    assert!(said.contains(&format!("\nVersions: aggregator {version}, producer {version}")), "{said}");
}

#[test]
fn roles_of_other_versions_are_told_and_those_that_do_not_fit_do_not_begin() {
    let fleet = Fleet::new("skew", 5, &[]);
    let roles = format!("shelfmill:{{{}}}:roles", fleet.run);
    let build = |role: &str, version: &str, wire: u32, reads_from: u32| {
        let build = serde_json::json!({"version": version, "wire": wire, "reads_from": reads_from});
        redis::shared().cli(&["HSET", &roles, role, &build.to_string()]);
    };
    build("aggregator", "9.9.0", 3, 2);
    let producer = ended(fleet.producer().run(DEADLINE));
    assert_eq!(producer.stderr.matches("roles of other versions").count(), 1, "{producer}");
    assert!(producer.stderr.contains("aggregator 9.9.0"), "{producer}");
    build("aggregator", "99.0.0", 8, 7);
    redis::shared().cli(&["HDEL", &roles, "producer"]);
    fleet.producer().run(DEADLINE).expect_code(1);
    let left = redis::shared().cli(&["HKEYS", &roles]);
    assert_eq!(left, "aggregator", "who is refused leaves nothing that others are refused for");
    let worker = fleet.worker().run(DEADLINE).expect_code(1);
    assert!(
        worker.stderr.contains("cannot work with the aggregator, which is 99.0.0"),
        "it says what does not fit: {worker}"
    );
    assert_eq!(fleet.simulator.calls(), 0);
    // An older build's worker tells of no version.
    let workers = format!("shelfmill:{{{}}}:workers", fleet.run);
    let heard = format!("{}000 {{\"in_flight\":1,\"limit\":2,\"ceiling\":2}}", u32::MAX);
    redis::shared().cli(&["HSET", &workers, "old", &heard]);
    let said = say(command(&fleet, "progress", &[]));
    assert!(said.contains("  old  of an unknown version  1 of 2 calls"), "{said}");
}

#[test]
fn a_run_is_removed_when_nobody_works_on_it_and_somebody_says_so() {
    let fleet = Fleet::new("purge", 200, &["--latency", "100ms"]);
    ended(fleet.producer().run(DEADLINE));
    let mut worker = fleet.worker().start();
    let mut aggregator = fleet.aggregator().start();
    fleet.wait_for_lines(20);
    let end = command(&fleet, "purge", &["--yes"]).expect_code(2);
    assert!(end.stderr.contains("1 worker, the aggregator "), "{end}");
    worker.terminate();
    ended(worker.wait(DEADLINE));
    aggregator.terminate();
    aggregator.wait(DEADLINE).expect_code(130);
    let end = command(&fleet, "purge", &[]).expect_code(2);
    assert!(end.stderr.contains("--yes"), "nobody is there to ask: {end}");
    assert!(end.stdout.contains("200 products, of which ") && end.stdout.contains(" tasks"), "{end}");
    let lines = fleet.progress()["completed"].clone();
    assert_ne!(lines, Value::from(0));

    let said = say(command(&fleet, "purge", &["--yes"]));
    assert!(said.contains("Removed "), "{said}");
    assert!(queues_of(&fleet.run, rabbitmq::shared()).is_empty());
    let keys = redis::shared().cli(&["KEYS", &format!("shelfmill:{{{}}}*", fleet.run)]);
    assert_eq!(keys.trim(), "", "no key is left");
    assert!(keys_of(&fleet.run, redis::shared()).values().all(|length| *length == 0));
    // The results are there, and it can begin anew: what is on disk is not asked for again.
    let calls = fleet.simulator.calls();
    let _worker = fleet.worker().start();
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    ended(aggregator.wait(DEADLINE));
    let asked_again = fleet.simulator.calls() - calls;
    assert!(asked_again <= 200 - lines.as_u64().unwrap(), "{asked_again} of 200 without {lines}");
}
