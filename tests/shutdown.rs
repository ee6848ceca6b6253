//! Processes that are told to stop end within their grace, whatever is there or not there, and cost nothing: calls in
//! flight are finished, and what was not begun is with others at once, however often it is handed back.

use std::time::{Duration, Instant};

use crate::{
    broker_faults::{LOST, all_tell, told},
    support::{
        catalog::Catalog,
        checker::{Repeats, check},
        fleet::{DEADLINE, Fleet, ended},
        process::{Running, shelfmill},
        proxy::Proxy,
        rabbitmq, redis,
        simulator::Simulator,
        wait::eventually,
    },
};

const INTERRUPTED: i32 = 130;
/// What a process may take beyond the grace of three seconds that it is given.
const SLACK: Duration = Duration::from_secs(4);
const GRACE: [&str; 2] = ["--grace", "3s"];

/// The port of Redis, for a proxy before it.
fn redis_port() -> u16 {
    let url = redis::shared().url();
    url.trim_end_matches("/0").rsplit(':').next().unwrap().parse().unwrap()
}

#[track_caller]
fn ends_soon_with(mut process: Running, code: i32) -> String {
    let asked = Instant::now();
    process.terminate();
    let end = process.wait(DEADLINE).expect_code(code);
    assert!(asked.elapsed() < Duration::from_secs(3) + SLACK, "after {:?}: {end}", asked.elapsed());
    end.stderr
}

#[test]
fn a_rolling_restart_costs_no_repeated_call() {
    const PRODUCTS: usize = 2_200;
    let fleet = Fleet::new("rolling", PRODUCTS, &["--latency", "700ms", "--jitter", "300ms"]);
    let mut workers = fleet.workers(5);
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    let mut slowest = Duration::ZERO;
    for restart in 1..=10 {
        fleet.wait_for_lines(restart * 100);
        let mut worker = workers.remove(0);
        let asked = Instant::now();
        worker.terminate();
        workers.push(fleet.worker().start());
        ended(worker.wait(DEADLINE));
        slowest = slowest.max(asked.elapsed());
    }
    println!("rolling restart: the slowest of ten ended after {slowest:.1?}");
    assert!(slowest < Duration::from_secs(10), "{slowest:?} of a grace of 30 s");
    let lines = fleet.progress()["completed"].as_u64().unwrap();
    assert!(lines < PRODUCTS as u64, "the run was done before the last restart");
    ended(aggregator.wait(DEADLINE));
    let results = fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert_eq!((fleet.simulator.calls(), results.calls()), (PRODUCTS as u64, (PRODUCTS as u64, 0)));
}

#[test]
fn tasks_that_are_handed_back_more_often_than_the_delivery_limit_are_not_dead_letters() {
    const LIMIT: usize = 20;
    let mut fleet = Fleet::new("handed-back", 3, &[]);
    fleet.concurrency = 1;
    // One call a minute: the second product waits for its turn, the third for the second.
    let slow = fleet.catalog.file("slow.toml", "[limits]\nrequests_per_minute = 1\n");
    ended(fleet.producer().arg("--job").arg(&slow).run(DEADLINE));
    let (tasks, dead) =
        (format!("shelfmill.{}.tasks.v1", fleet.run), format!("shelfmill.{}.dead.v1", fleet.run));
    let both_are = |what: &str, counts: (u64, u64)| {
        eventually(DEADLINE, what, || {
            let queue = rabbitmq::shared().queues().remove(&tasks).ok_or("no queue")?;
            if (queue.ready, queue.unacked) == counts { Ok(()) } else { Err(format!("{queue:?}")) }
        });
    };
    for _ in 0..LIMIT + 5 {
        let mut worker = fleet.worker().start();
        both_are("both tasks to be taken", (0, 2));
        worker.terminate();
        ended(worker.wait(DEADLINE));
        both_are("both tasks to be given back", (2, 0));
    }
    assert_eq!(rabbitmq::shared().queues()[&dead].ready, 0, "a task went to the dead queue");
    assert_eq!(fleet.simulator.calls(), 1);
    ended(fleet.producer().run(DEADLINE));
    let worker = fleet.worker().start();
    ended(fleet.aggregator().run(DEADLINE));
    let results = fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert_eq!((fleet.simulator.calls(), results.calls()), (3, (3, 0)));
    drop(worker);
}

#[test]
fn a_process_that_still_waits_for_its_servers_ends_at_once() {
    let mut fleet = Fleet::new("never-there", 5, &[]);
    // The job is there, so that the worker gets as far as to RabbitMQ.
    ended(fleet.producer().run(DEADLINE));
    let (there, nowhere) = (fleet.amqp_url.clone(), "amqp://guest:guest@127.0.0.1:1/%2f".to_owned());
    let silent = Proxy::to(rabbitmq::shared().port());
    silent.swallow();
    for nowhere in [nowhere, rabbitmq::shared().url_by(silent.port())] {
        fleet.amqp_url = nowhere;
        let (worker, aggregator) =
            (fleet.worker().args(GRACE).start(), fleet.aggregator().args(GRACE).start());
        all_tell(&[&worker, &aggregator], "cannot reach RabbitMQ, trying again until it is there");
        ends_soon_with(worker, 0);
        ends_soon_with(aggregator, INTERRUPTED);
        let producer = fleet.producer().args(GRACE).start();
        all_tell(&[&producer], "cannot reach RabbitMQ, trying again until it is there");
        ends_soon_with(producer, INTERRUPTED);
    }
    fleet.amqp_url = there;
    let there = std::mem::replace(&mut fleet.redis_url, "redis://127.0.0.1:1/0".to_owned());
    for (role, code) in
        [(fleet.worker(), 0), (fleet.aggregator(), INTERRUPTED), (fleet.producer(), INTERRUPTED)]
    {
        let process = role.args(GRACE).start();
        all_tell(&[&process], "cannot reach Redis, trying again until it is there");
        ends_soon_with(process, code);
    }
    fleet.redis_url = there;
    let worker = fleet.worker().start();
    ended(fleet.producer().run(DEADLINE));
    ended(fleet.aggregator().run(DEADLINE));
    fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert_eq!(fleet.simulator.calls(), 5);
    drop(worker);
}

#[test]
fn a_worker_and_an_aggregator_whose_rabbitmq_is_gone_end_within_their_grace_and_lose_no_answer() {
    for swallow in [false, true] {
        let proxy = Proxy::to(rabbitmq::shared().port());
        let mut fleet = Fleet::new(&format!("gone-stop-{swallow}"), 200, &["--latency", "1s"]);
        let direct = std::mem::replace(&mut fleet.amqp_url, rabbitmq::shared().url_by(proxy.port()));
        let worker = fleet.worker().args(GRACE).start();
        let aggregator = fleet.aggregator().args(GRACE).start();
        fleet.amqp_url = direct;
        ended(fleet.producer().run(DEADLINE));
        fleet.wait_for_lines(20);
        if swallow {
            proxy.swallow();
        } else {
            proxy.refuse();
            proxy.cut();
            all_tell(&[&worker, &aggregator], LOST);
        }
        let said = ends_soon_with(worker, 0);
        assert!(said.contains("the grace is over, calls under way are given up"), "{said}");
        ends_soon_with(aggregator, INTERRUPTED);
        // What the process had is delivered again when RabbitMQ finds out, too.
        drop(proxy);
        let worker = fleet.worker().start();
        ended(fleet.aggregator().run(DEADLINE));
        let results = fleet.assert_done(rabbitmq::shared(), redis::shared());
        assert_eq!((fleet.simulator.calls(), results.calls()), (200, (200, 0)), "a call was repeated");
        drop(worker);
    }
}

#[test]
fn a_worker_and_an_aggregator_whose_redis_is_gone_end_within_their_grace() {
    let proxy = Proxy::to(redis_port());
    let mut fleet = Fleet::new("no-redis-stop", 200, &["--latency", "500ms"]);
    let direct = std::mem::replace(&mut fleet.redis_url, format!("redis://127.0.0.1:{}/0", proxy.port()));
    let worker = fleet.worker().args(GRACE).start();
    let aggregator = fleet.aggregator().args(GRACE).start();
    fleet.redis_url = direct;
    ended(fleet.producer().run(DEADLINE));
    fleet.wait_for_lines(20);
    proxy.refuse();
    proxy.cut();
    all_tell(&[&worker, &aggregator], "lost Redis, waiting until it can be used again");
    ends_soon_with(worker, 0);
    ends_soon_with(aggregator, INTERRUPTED);
    let worker = fleet.worker().start();
    ended(fleet.aggregator().run(DEADLINE));
    // Its calls were finished, and nobody could be told: as if killed.
    fleet.assert_done_with(rabbitmq::shared(), redis::shared(), fleet.kills(1));
    drop(worker);
}

#[test]
fn a_second_signal_ends_a_process_at_once() {
    let fleet = Fleet::new("second-signal", 20, &["--latency", "5s"]);
    let mut worker = fleet.worker().start();
    ended(fleet.producer().run(DEADLINE));
    eventually(DEADLINE, "calls", || match fleet.simulator.calls() {
        16 => Ok(()),
        calls => Err(calls.to_string()),
    });
    worker.terminate();
    all_tell(&[&worker], "stopping: calls in flight are finished first; a second signal ends at once");
    let asked = Instant::now();
    worker.interrupt();
    worker.wait(DEADLINE).expect_code(INTERRUPTED);
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());

    let worker = fleet.worker().start();
    ended(fleet.aggregator().run(DEADLINE));
    fleet.assert_done_with(rabbitmq::shared(), redis::shared(), fleet.kills(1));
    assert_eq!(told(&worker, " ERROR "), 0);
}

/// Claims that ran out after a call, at which a product has failed as poisoned.
const POISONED_AFTER: u64 = 5;

#[test]
fn a_call_that_is_cut_off_by_the_end_of_the_grace_or_a_second_signal_is_no_evidence_against_its_product() {
    const PRODUCTS: u64 = 3;
    let fleet = Fleet::new("cut-off", 3, &["--latency", "4s"]);
    ended(fleet.producer().run(DEADLINE));
    for round in 1..=POISONED_AFTER + 1 {
        let mut worker = fleet.worker().args(["--grace", "100ms"]).start();
        eventually(DEADLINE, "calls", || match fleet.simulator.calls() {
            calls if calls == round * PRODUCTS => Ok(()),
            calls => Err(calls.to_string()),
        });
        worker.terminate();
        if round % 2 == 0 {
            all_tell(&[&worker], "stopping");
            worker.terminate();
        }
        worker.wait(DEADLINE);
    }
    let worker = fleet.worker().start();
    ended(fleet.aggregator().run(DEADLINE));
    let results =
        fleet.assert_done_with(rabbitmq::shared(), redis::shared(), fleet.kills(POISONED_AFTER + 1));
    let made = (POISONED_AFTER + 2) * PRODUCTS;
    assert_eq!((fleet.simulator.calls(), results.calls()), (made, (made, made - PRODUCTS)));
    drop(worker);
}

#[test]
fn in_one_process_a_call_that_is_cut_off_is_no_evidence_against_its_product() {
    const PRODUCTS: u64 = 3;
    let catalog = Catalog::of(3);
    let simulator = Simulator::start(&["--latency", "4s"]);
    let run =
        || shelfmill().arg("run").args(catalog.args()).args(["--base-url", simulator.url(), "--model", "m"]);
    for round in 1..=POISONED_AFTER + 1 {
        let mut process = run().args(["--grace", "100ms"]).start();
        eventually(DEADLINE, "calls", || match simulator.calls() {
            calls if calls == round * PRODUCTS => Ok(()),
            calls => Err(calls.to_string()),
        });
        process.interrupt();
        if round % 2 == 0 {
            all_tell(&[&process], "stopping");
            process.interrupt();
        }
        process.wait(DEADLINE).expect_code(INTERRUPTED);
    }
    ended(run().run(DEADLINE));
    let results = check(&catalog, &simulator, Repeats::AtMost((POISONED_AFTER + 1) * PRODUCTS));
    let made = (POISONED_AFTER + 2) * PRODUCTS;
    assert_eq!((simulator.calls(), results.calls()), (made, (made, made - PRODUCTS)));
}
