//! What probes are told: a role that makes progress or rightly waits is healthy, and one that work should come to is ready.

use std::time::Duration;

use crate::support::{
    amqp,
    checker::Repeats,
    fleet::{DEADLINE, Fleet, ended},
    http::{Answer, address, get},
    process::{Running, shelfmill},
    rabbitmq,
    redis::Redis,
    wait::eventually,
};

/// Until it is told so, with these words.
#[track_caller]
fn is_told(process: &Running, path: &str, code: u16, words: &str) {
    eventually(DEADLINE, words, || {
        let Answer { code: told, body, .. } = get(process, path);
        if told == code && body.contains(words) { Ok(()) } else { Err(format!("{told} {body}")) }
    });
}

#[test]
fn a_worker_is_ready_when_it_can_work_and_well_whatever_it_waits_for() {
    let mut redis = Redis::start();
    let mut fleet = Fleet::new("ready", 200, &["--latency", "200ms"]);
    fleet.redis_url = redis.url();
    fleet.concurrency = 4;
    let mut worker = fleet.worker().args(["--listen", "127.0.0.1:0"]).start();
    is_told(&worker, "/readyz", 503, "waits for the run's job");
    assert_eq!(get(&worker, "/healthz").code, 200);
    ended(fleet.producer().run(DEADLINE));
    is_told(&worker, "/readyz", 200, "ok");
    let listen = address(&worker);
    let health = |args: &[&str]| shelfmill().args(["health", "--listen", &listen]).args(args).run(DEADLINE);
    assert_eq!(ended(health(&[])).stdout, "ok\n");
    assert_eq!(ended(health(&["--ready"])).stdout, "ok\n");

    redis.kill();
    is_told(&worker, "/readyz", 503, "waits for Redis");
    assert_eq!(get(&worker, "/healthz").code, 200, "a new start would not bring Redis back");
    let not_ready = health(&["--ready"]).expect_code(1);
    assert!(not_ready.stderr.contains("waits for Redis"), "{not_ready}");
    redis.restart();
    is_told(&worker, "/readyz", 200, "ok");

    let aggregator = fleet.aggregator().args(["--listen", "127.0.0.1:0"]).start();
    is_told(&aggregator, "/readyz", 200, "ok");
    assert_eq!(get(&aggregator, "/nothing").code, 404);
    ended(aggregator.wait(DEADLINE));
    fleet.assert_done_with(rabbitmq::shared(), &redis, Repeats::None);

    worker.terminate();
    ended(worker.wait(DEADLINE));
    let gone = health(&[]).expect_code(1);
    assert!(gone.stderr.contains("nobody answers at http://127.0.0.1:"), "{gone}");
}

#[test]
fn a_worker_that_stops_is_not_ready_while_its_calls_end() {
    let fleet = Fleet::new("stopping", 1, &["--latency", "5s"]);
    let mut worker = fleet.worker().args(["--listen", "127.0.0.1:0"]).start();
    ended(fleet.producer().run(DEADLINE));
    eventually(
        DEADLINE,
        "a call",
        || {
            if fleet.simulator.calls() > 0 { Ok(()) } else { Err("none".to_owned()) }
        },
    );
    worker.terminate();
    is_told(&worker, "/readyz", 503, "stopping");
    assert_eq!(get(&worker, "/healthz").code, 200);
    ended(worker.wait(DEADLINE));
    ended(fleet.aggregator().run(DEADLINE));
}

#[test]
fn a_consumer_that_has_gone_silent_is_found() {
    let fleet = Fleet::new("silent", 20, &[]);
    ended(fleet.producer().run(DEADLINE));
    let mut worker = fleet.worker().start();
    let outcomes = format!("shelfmill.{}.outcomes.v1", fleet.run);
    // RabbitMQ gives somebody else what is meant for the aggregator, and goes on as if all were well.
    let holder = amqp::hold(&fleet.amqp_url, &outcomes);
    let aggregator = fleet.aggregator().args(["--listen", "127.0.0.1:0"]).start();
    is_told(&aggregator, "/readyz", 200, "ok");
    is_told(&aggregator, "/healthz", 503, "the aggregator gets nothing from RabbitMQ");
    assert_eq!(get(&aggregator, "/readyz").code, 503);
    drop(holder);
    let end = ended(aggregator.wait(DEADLINE + Duration::from_secs(60)));
    assert_eq!(end.stderr.matches("gets nothing from RabbitMQ").count(), 1, "{end}");
    worker.terminate();
    ended(worker.wait(DEADLINE));
}
