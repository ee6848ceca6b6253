//! Who may work on a product when somebody else was not heard of, and when work comes twice.

use std::time::Duration;

use crate::support::{
    fleet::{DEADLINE, Fleet, ended},
    rabbitmq, redis,
    wait::eventually,
};

fn calls(fleet: &Fleet, expected: u64) {
    eventually(DEADLINE, "calls to the model", || match fleet.simulator.calls() {
        calls if calls >= expected => Ok(()),
        calls => Err(format!("{calls} of {expected}")),
    });
}

#[test]
fn a_call_that_takes_longer_than_a_lease_is_not_made_twice() {
    let mut fleet = Fleet::new("long-call", 8, &["--latency", "25s"]);
    fleet.concurrency = 4;
    let workers = fleet.workers(2);
    let aggregator = fleet.aggregator().start();
    // Every task comes twice, so that each product is asked for again while its call runs.
    for _ in 0..2 {
        ended(fleet.producer().run(DEADLINE));
    }
    ended(aggregator.wait(DEADLINE));
    fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert_eq!(fleet.simulator.calls(), 8);
    drop(workers);
}

#[test]
fn a_late_answer_of_a_paused_worker_is_harmless_and_its_line_tells_of_both_calls() {
    let mut fleet = Fleet::new("late", 4, &["--latency", "8s"]);
    fleet.concurrency = 4;
    let mut paused = fleet.worker().start();
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    calls(&fleet, 4);
    paused.pause();
    let other = fleet.worker().start();
    // RabbitMQ has not given up the paused one yet: the other gets tasks of its own.
    ended(fleet.producer().run(DEADLINE));
    calls(&fleet, 8);
    paused.resume();
    ended(aggregator.wait(DEADLINE));
    let results = fleet.assert_done_with(rabbitmq::shared(), redis::shared(), fleet.kills(1));
    for line in &results.journal {
        assert_eq!(
            (&line["meta"]["attempts"], &line["meta"]["repeated_calls"]),
            (&1.into(), &1.into()),
            "{line}"
        );
    }
    assert_eq!(results.calls(), (8, 4));
    for mut worker in [paused, other] {
        worker.terminate();
        ended(worker.wait(Duration::from_secs(30)));
    }
}

/// Calls that were lost before the paused worker had the product are among those that the ledger tells it of.
#[test]
fn a_late_answer_tells_of_calls_that_were_lost_before_it_once() {
    let mut fleet = Fleet::new("late-after-kill", 4, &["--latency", "8s"]);
    fleet.concurrency = 4;
    let killed = fleet.worker().start();
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    calls(&fleet, 4);
    killed.kill9();
    let mut paused = fleet.worker().start();
    calls(&fleet, 8);
    paused.pause();
    let other = fleet.worker().start();
    ended(fleet.producer().run(DEADLINE));
    calls(&fleet, 12);
    paused.resume();
    ended(aggregator.wait(DEADLINE));
    let results = fleet.assert_done_with(rabbitmq::shared(), redis::shared(), fleet.kills(2));
    for line in &results.journal {
        assert_eq!(
            (&line["meta"]["attempts"], &line["meta"]["repeated_calls"]),
            (&1.into(), &2.into()),
            "{line}"
        );
    }
    assert_eq!(results.calls(), (12, 8));
    for mut worker in [paused, other] {
        worker.terminate();
        ended(worker.wait(Duration::from_secs(30)));
    }
}

#[test]
fn two_producers_of_one_run_at_once_are_harmless() {
    let fleet = Fleet::new("two-producers", 1_500, &[]);
    let workers = fleet.workers(2);
    let aggregator = fleet.aggregator().start();
    let producers = [(); 2].map(|()| fleet.producer().args(["--max-backlog", "200"]).start());
    for producer in producers {
        ended(producer.wait(DEADLINE));
    }
    ended(aggregator.wait(DEADLINE));
    // The second has the right to read only when the first is through, and finds done or published what it reads.
    ended(fleet.aggregator().run(DEADLINE));
    fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert_eq!(fleet.simulator.calls(), 1_500);
    drop(workers);
}
