//! Producer, workers and aggregator as processes of their own, over real servers, killed and started again.

use std::time::Duration;

use crate::support::{
    fleet::{DEADLINE, Fleet, ended},
    process::Program,
    rabbitmq::{self, RabbitMq},
    redis::{self, Redis},
    results::{Results, journal_lines},
    simulator::Simulator,
    wait::eventually,
};

#[test]
fn three_workers_do_a_catalog_whichever_starts_first() {
    let fleet = Fleet::new("whole", 1_000, &["--latency", "50ms"]);
    let workers = fleet.workers(3);
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    let end = ended(aggregator.wait(DEADLINE));
    assert!(end.stderr.contains("Completed: 1000/1000 products (100.0%)"), "{end}");
    let results = fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert_eq!((fleet.simulator.calls(), results.calls()), (1_000, (1_000, 0)));
    let names: std::collections::BTreeSet<_> =
        results.journal.iter().map(|line| line["meta"]["worker"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 3, "each worker did some");

    let progress = fleet.progress();
    assert_eq!((&progress["completed"], &progress["total"]), (&1_000.into(), &1_000.into()));

    // The same run again, with everything already done.
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    ended(aggregator.wait(DEADLINE));
    assert_eq!(fleet.simulator.calls(), 1_000);
    for mut worker in workers {
        worker.terminate();
        ended(worker.wait(DEADLINE));
    }
}

#[test]
fn workers_and_aggregator_are_killed_and_nothing_is_lost_or_doubled() {
    let fleet = Fleet::new("killed", 1_000, &["--latency", "50ms"]);
    let mut workers = fleet.workers(3);
    let mut aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    for (kill, lines) in [100, 250, 400, 550].into_iter().enumerate() {
        fleet.wait_for_lines(lines);
        workers.remove(0).kill9();
        workers.push(fleet.worker().start());
        if kill % 2 == 1 {
            aggregator.kill9();
            aggregator = fleet.aggregator().start();
        }
    }
    ended(aggregator.wait(DEADLINE));
    fleet.assert_done_with(rabbitmq::shared(), redis::shared(), fleet.kills(4));
}

#[test]
fn a_killed_producer_is_started_again_and_goes_on() {
    let fleet = Fleet::new("producer", 5_000, &[]);
    let workers = fleet.workers(2);
    let aggregator = fleet.aggregator().start();
    // Held back by its backlog, it is certain to be killed in the middle.
    let producer = fleet.producer().args(["--max-backlog", "50"]).start();
    fleet.wait_for_lines(60);
    producer.kill9();
    let lines = journal_lines(&fleet.catalog.out());
    assert!(lines < 5_000, "the producer was done before it was killed");
    ended(fleet.producer().run(DEADLINE));
    ended(aggregator.wait(DEADLINE));
    fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert_eq!(fleet.simulator.calls(), 5_000);
    drop(workers);
}

#[test]
fn a_backlog_is_bounded() {
    let fleet = Fleet::new("backlog", 2_000, &[]);
    let mut producer = fleet.producer().args(["--max-backlog", "300"]).start();
    let tasks = format!("shelfmill.{}.tasks.v1", fleet.run);
    eventually(DEADLINE, "a full backlog", || {
        let ready = rabbitmq::shared().queues().get(&tasks).map_or(0, |queue| queue.ready);
        if ready >= 300 { Ok(()) } else { Err(ready.to_string()) }
    });
    assert!(producer.is_running());
    let worker = fleet.worker().start();
    let aggregator = fleet.aggregator().start();
    ended(producer.wait(DEADLINE));
    ended(aggregator.wait(DEADLINE));
    fleet.assert_done(rabbitmq::shared(), redis::shared());
    drop(worker);
}

#[test]
fn a_worker_that_is_told_to_stop_finishes_its_calls_and_gives_the_rest_back() {
    let fleet = Fleet::new("graceful", 300, &["--latency", "200ms"]);
    let mut worker = fleet.worker().start();
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    fleet.wait_for_lines(20);
    worker.terminate();
    ended(worker.wait(Duration::from_secs(20)));
    let worker = fleet.worker().start();
    ended(aggregator.wait(DEADLINE));
    let results = fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert_eq!((fleet.simulator.calls(), results.calls()), (300, (300, 0)), "a call was repeated");
    drop(worker);
}

#[test]
fn failed_products_are_put_back_and_succeed() {
    let mut fleet = Fleet::new("requeue", 60, &["--bad-request", "0.3"]);
    let workers = fleet.workers(1);
    ended(fleet.producer().run(DEADLINE));
    fleet.aggregator().run(DEADLINE).expect_code(3);
    drop(workers);
    let failures = Results::read(&fleet.catalog.out()).failures.len();
    assert!(failures > 5, "{failures}");
    assert_eq!(fleet.progress()["failures_by_class"]["model_refused"], failures);

    fleet.simulator = Simulator::start(&[]);
    let workers = fleet.workers(1);
    let said =
        fleet.command("requeue").args(["--class", "model_refused"]).run(DEADLINE).expect_code(0).stdout;
    assert!(said.contains(&format!("Put back {failures} failed products")), "{said}");
    ended(fleet.aggregator().run(DEADLINE));
    let results = fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert!(results.failures.is_empty());
    assert_eq!(fleet.simulator.calls(), failures as u64);
    drop(workers);
}

#[test]
fn products_that_fail_at_once_can_be_put_back_again_and_again() {
    let fleet = Fleet::new("requeue-fast", 150, &["--bad-request", "1"]);
    let workers = fleet.workers(2);
    // All of them fail, which would pause the run.
    ended(fleet.producer().args(["--abort-failure-rate", "1"]).run(DEADLINE));
    let requeue = || fleet.command("requeue").run(DEADLINE).expect_code(0).stdout;
    for _ in 0..3 {
        fleet.aggregator().run(DEADLINE).expect_code(3);
        let aggregator = fleet.aggregator().start();
        let said = requeue();
        assert!(said.contains("Put back 150 failed products"), "{said}");
        drop(aggregator);
    }
    fleet.aggregator().run(DEADLINE).expect_code(3);
    assert_eq!(Results::read(&fleet.catalog.out()).failures.len(), 150);
    drop(workers);
}

#[test]
fn a_ledger_that_was_emptied_learns_again_what_is_on_disk() {
    let (rabbitmq, mut redis) = (rabbitmq::shared(), Redis::start());
    let mut fleet = Fleet::new("flushed", 400, &["--latency", "50ms"]);
    fleet.redis_url = redis.url();
    let workers = fleet.workers(2);
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    fleet.wait_for_lines(100);
    let forgotten = fleet.forgotten_by_an_emptied_ledger(&redis, 2);
    redis.flushall();
    // The job and the total are gone, too: the producer brings them back.
    ended(fleet.producer().run(DEADLINE));
    ended(aggregator.wait(DEADLINE));
    fleet.assert_done_with(rabbitmq, &redis, forgotten);
    drop(workers);
}

#[test]
fn an_interrupted_replay_goes_on_where_it_was() {
    let mut redis = Redis::start();
    let mut fleet = Fleet::new("replay", 6_000, &[]);
    fleet.redis_url = redis.url();
    let workers = fleet.workers(2);
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    ended(aggregator.wait(DEADLINE));
    redis.flushall();
    let told =
        || redis.cli(&["HGET", &format!("shelfmill:{{{}}}:run", fleet.run), "completed"]).trim().to_owned();
    let aggregator = fleet.aggregator().start();
    eventually(DEADLINE, "some lines to be told", || {
        if told().is_empty() { Err("none".to_owned()) } else { Ok(()) }
    });
    aggregator.kill9();
    let aggregator = fleet.aggregator().start();
    eventually(DEADLINE, "all lines to be told", || if told() == "6000" { Ok(()) } else { Err(told()) });
    ended(fleet.producer().run(DEADLINE));
    ended(aggregator.wait(DEADLINE));
    fleet.assert_done(rabbitmq::shared(), &redis);
    assert_eq!(fleet.simulator.calls(), 6_000);
    drop(workers);
}

#[test]
fn rejects_that_wait_keep_their_order_when_the_aggregator_is_stopped() {
    let fleet = Fleet::new("rejects-order", 1_500, &[]);
    let mut text = std::fs::read_to_string(fleet.catalog.input()).unwrap();
    text = "broken\n".repeat(250) + &text;
    std::fs::write(fleet.catalog.input(), text).unwrap();
    for _ in 0..2 {
        // Twice before anybody reads what the first scan found.
        ended(fleet.producer().run(DEADLINE));
    }
    let workers = fleet.workers(2);
    fleet.end_when_answered(1_500, workers);
    let workers = fleet.workers(2);
    let mut aggregator = fleet.aggregator().start();
    fleet.wait_for_lines(1);
    aggregator.terminate();
    aggregator.wait(DEADLINE);
    ended(fleet.aggregator().run(DEADLINE));
    let results = fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert_eq!(results.rejects.len(), 250);
    drop(workers);
}

#[test]
fn rejects_travel_to_the_aggregator() {
    let fleet = Fleet::new("rejects", 20, &[]);
    let mut text = std::fs::read_to_string(fleet.catalog.input()).unwrap();
    text += &"broken\n".repeat(250);
    std::fs::write(fleet.catalog.input(), text).unwrap();
    let workers = fleet.workers(1);
    ended(fleet.producer().run(DEADLINE));
    ended(fleet.aggregator().run(DEADLINE));
    let results = fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert_eq!(results.rejects.len(), 250);
    drop(workers);
}

#[test]
fn a_second_aggregator_stands_by_and_a_folder_without_the_results_is_refused() {
    let fleet = Fleet::new("standby", 200, &["--latency", "1s"]);
    let workers = fleet.workers(1);
    let first = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    fleet.wait_for_lines(10);
    let end = fleet.aggregator().run(DEADLINE).expect_code(1);
    assert!(end.stderr.contains("another process is writing results"), "{end}");

    let elsewhere = fleet.catalog.out().with_file_name("elsewhere");
    let standby = fleet.command("aggregator").arg("--out").arg(&elsewhere).start();
    eventually(DEADLINE, "the second to stand by", || {
        if standby.stderr().contains("Standing by") { Ok(()) } else { Err(standby.stderr()) }
    });
    first.kill9();
    let end = standby.wait(DEADLINE).expect_code(1);
    assert!(end.stderr.contains("does not hold them"), "{end}");
    assert_eq!(journal_lines(&elsewhere), 0);

    ended(fleet.aggregator().run(DEADLINE));
    fleet.assert_done(rabbitmq::shared(), redis::shared());
    drop(workers);
}

#[test]
fn both_servers_are_killed_and_come_back() {
    let (mut rabbitmq, mut redis) = (RabbitMq::start(), Redis::start());
    let mut fleet = Fleet::new("servers", 600, &["--latency", "100ms"]);
    (fleet.amqp_url, fleet.redis_url) = (rabbitmq.url(), redis.url());
    let workers = fleet.workers(2);
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    fleet.wait_for_lines(100);
    rabbitmq.kill();
    rabbitmq.restart();
    fleet.wait_for_lines(250);
    redis.kill();
    redis.restart();
    ended(aggregator.wait(DEADLINE));
    fleet.assert_done_with(&rabbitmq, &redis, fleet.kills(2));
    drop(workers);
}

#[test]
fn a_changed_job_is_refused_until_it_is_accepted() {
    let fleet = Fleet::new("changed", 5, &[]);
    ended(fleet.producer().run(DEADLINE));
    let end = fleet.producer().args(["--model", "another"]).run(DEADLINE).expect_code(2);
    assert!(end.stderr.contains("(model)") && end.stderr.contains("--accept-changed-job"), "{end}");
    ended(fleet.producer().args(["--model", "another", "--accept-changed-job"]).run(DEADLINE));
}

#[test]
fn encrypted_connections_work() {
    let (rabbitmq, redis) = (RabbitMq::builder().tls().start(), Redis::start_with_tls());
    let mut fleet = Fleet::new("tls", 20, &[]);
    (fleet.amqp_url, fleet.redis_url) = (rabbitmq.tls_url(), redis.tls_url());
    let with_ca = |program: Program| program.env("SHELFMILL_TLS_CA", rabbitmq.ca_file());
    assert_eq!(rabbitmq.ca_file(), redis.ca_file());
    let worker = with_ca(fleet.worker()).start();
    ended(with_ca(fleet.producer()).run(DEADLINE));
    ended(with_ca(fleet.aggregator()).run(DEADLINE));
    fleet.assert_done(&rabbitmq, &redis);
    drop(worker);
}

#[test]
fn a_worker_can_end_with_its_run() {
    let fleet = Fleet::new("until-done", 50, &[]);
    let worker = fleet.worker().arg("--until-done").start();
    ended(fleet.producer().run(DEADLINE));
    ended(fleet.aggregator().run(DEADLINE));
    ended(worker.wait(DEADLINE));
}
