//! Queues deleted by hand, or there with other arguments. What was in a deleted queue is gone from the broker and not
//! from the ledger: the aggregator says that products have no message any more, and the producer, run again, publishes
//! them. What was answered is not asked for again.

use crate::{
    broker_faults::{all_tell, told},
    support::{
        fleet::{DEADLINE, Fleet, ended},
        process::Running,
        rabbitmq::{self, RabbitMq},
        redis,
        wait::eventually,
    },
};

const DELETED: &str =
    "a queue was deleted, declaring it again; run the producer again to publish what was in it";
const THERE_AGAIN: &str = "the queue is there again";
const STANDSTILL: &str = "products are open and nothing is under way for them, as after a queue was deleted; run the \
                          producer again to publish them";
const OTHER_ARGUMENTS: &str = "exists with other arguments than this version of Shelfmill declares";

fn queue(fleet: &Fleet, what: &str) -> String {
    format!("shelfmill.{}.{what}.v1", fleet.run)
}

fn delete(fleet: &Fleet, what: &str) {
    rabbitmq::shared().ctl(&["delete_queue", &queue(fleet, what)]);
}

#[track_caller]
fn wait_for_ready(fleet: &Fleet, what: &str, enough: u64) {
    let name = queue(fleet, what);
    eventually(DEADLINE, &name, || {
        match rabbitmq::shared().queues().get(&name).map_or(0, |queue| queue.ready) {
            ready if ready >= enough => Ok(()),
            ready => Err(format!("{ready} of {enough}")),
        }
    });
}

#[test]
fn tasks_that_were_deleted_are_published_again_by_the_producer() {
    // Enough that most are left when a slow machine has told RabbitMQ to delete their queue.
    let fleet = Fleet::new("no-tasks", 1_200, &["--latency", "300ms"]);
    let workers = fleet.workers(2);
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    fleet.wait_for_lines(60);
    delete(&fleet, "tasks");
    all_tell(&[&workers[0], &workers[1]], DELETED);
    all_tell(&[&workers[0], &workers[1]], THERE_AGAIN);
    all_tell(&[&aggregator], STANDSTILL);
    let progress = fleet.progress();
    assert_eq!((&progress["queues"]["tasks"], &progress["broker"]), (&0.into(), &"ok".into()), "{progress}");
    assert!(progress["remaining"].as_u64() > Some(300), "{progress}");

    ended(fleet.producer().run(DEADLINE));
    let said = ended(aggregator.wait(DEADLINE)).stderr;
    assert_eq!(said.matches(STANDSTILL).count(), 1, "{said}");
    for worker in &workers {
        assert_eq!([DELETED, THERE_AGAIN].map(|what| told(worker, what)), [1, 1], "{}", worker.stderr());
    }
    let results = fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert_eq!((fleet.simulator.calls(), results.calls()), (1_200, (1_200, 0)), "a call was repeated");
}

#[test]
fn answers_whose_outcomes_were_deleted_are_not_asked_for_again() {
    let fleet = Fleet::new("no-outcomes", 120, &["--latency", "50ms"]);
    let workers = fleet.workers(2);
    ended(fleet.producer().run(DEADLINE));
    fleet.end_when_answered(120, workers);
    delete(&fleet, "outcomes");
    let workers = fleet.workers(2);
    let aggregator = fleet.aggregator().start();
    all_tell(&[&aggregator], STANDSTILL);
    ended(fleet.producer().run(DEADLINE));
    ended(aggregator.wait(DEADLINE));
    let results = fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert_eq!((fleet.simulator.calls(), results.calls()), (120, (120, 0)), "an answer was paid for twice");
    drop(workers);
}

#[test]
fn outcomes_deleted_in_mid_run_come_again_and_the_aggregator_comes_back() {
    let fleet = Fleet::new("outcomes-live", 600, &["--latency", "300ms"]);
    let workers = fleet.workers(2);
    let mut aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    fleet.wait_for_lines(60);
    // So that there is something in it.
    aggregator.pause();
    wait_for_unsettled_outcomes(&fleet, 50);
    delete(&fleet, "outcomes");
    aggregator.resume();
    all_tell(&[&aggregator], THERE_AGAIN);
    let said = eventually(DEADLINE, "the end, or the reason why there is none", || {
        if told(&aggregator, STANDSTILL) + usize::from(!aggregator.is_running()) > 0 {
            return Ok(aggregator.stderr());
        }
        Err(aggregator.stderr())
    });
    assert_eq!([DELETED, THERE_AGAIN].map(|what| said.matches(what).count()), [1, 1], "{said}");
    ended(fleet.producer().run(DEADLINE));
    ended(aggregator.wait(DEADLINE));
    let results = fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert_eq!((fleet.simulator.calls(), results.calls()), (600, (600, 0)), "an answer was paid for twice");
    drop(workers);
}

fn wait_for_unsettled_outcomes(fleet: &Fleet, enough: u64) {
    let name = queue(fleet, "outcomes");
    eventually(DEADLINE, "outcomes that are not settled", || {
        let queue = rabbitmq::shared().queues().remove(&name).ok_or("no queue")?;
        if queue.ready + queue.unacked >= enough { Ok(()) } else { Err(format!("{queue:?}")) }
    });
}

#[test]
fn a_deleted_delay_queue_is_declared_again_and_what_was_in_it_is_published_again() {
    // Few, and slow: also on a busy machine what the killed one was at comes to the other before its leases run out.
    let fleet = Fleet::new("no-retry", 150, &["--latency", "2s"]);
    let mut workers = fleet.workers(2);
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    // By then all have published or looked: a connection that is made later would declare the queue, and miss nothing.
    fleet.wait_for_lines(40);
    eventually(DEADLINE, "the aggregator to look at its queues", || {
        let looks = rabbitmq::shared().has_connection(aggregator.pid(), "publish");
        if looks { Ok(()) } else { Err(aggregator.stderr()) }
    });
    delete(&fleet, "retry.5s");
    // What it was at is busy until its leases run out, and the other puts that off.
    workers.remove(0).kill9();
    eventually(DEADLINE, "whoever misses the queue first to declare it", || {
        let said = workers[0].stderr() + &aggregator.stderr();
        if said.contains(DELETED) && said.contains(THERE_AGAIN) { Ok(()) } else { Err(said) }
    });
    wait_for_ready(&fleet, "retry.5s", 5);
    delete(&fleet, "retry.5s");
    all_tell(&[&aggregator], STANDSTILL);
    ended(fleet.producer().run(DEADLINE));
    ended(aggregator.wait(DEADLINE));
    fleet.assert_done_with(rabbitmq::shared(), redis::shared(), fleet.kills(1));
    drop(workers);
}

/// A classic queue of that name, made by somebody else.
fn declare_otherwise(fleet: &Fleet, what: &str) {
    let name = queue(fleet, what);
    rabbitmq::shared().ctl(&[
        "eval",
        &format!(
            "rabbit_amqqueue:declare(rabbit_misc:r(<<\"/\">>, queue, <<\"{name}\">>), true, false, [], none, <<\"guest\">>)."
        ),
    ]);
}

#[track_caller]
fn assert_refuses(process: Running, queue: &str) {
    let end = process.wait(DEADLINE).expect_code(1);
    let errors: Vec<_> = end.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{end}");
    assert!(errors[0].contains(queue) && errors[0].contains(OTHER_ARGUMENTS), "{end}");
}

#[test]
fn a_queue_with_other_arguments_is_an_error_in_every_role() {
    let fleet = Fleet::new("other-arguments", 100, &["--latency", "100ms"]);
    declare_otherwise(&fleet, "tasks");
    let tasks = queue(&fleet, "tasks");
    assert_refuses(fleet.producer().start(), &tasks);
    assert_refuses(fleet.worker().start(), &tasks);
    assert_refuses(fleet.aggregator().start(), &tasks);
    delete(&fleet, "tasks");

    // The same in mid-run.
    let mut workers = fleet.workers(2);
    ended(fleet.producer().run(DEADLINE));
    let mut aggregator = fleet.aggregator().start();
    fleet.wait_for_lines(20);
    workers.iter_mut().for_each(Running::pause);
    aggregator.pause();
    for what in ["tasks", "outcomes"] {
        delete(&fleet, what);
        declare_otherwise(&fleet, what);
    }
    workers.iter_mut().for_each(Running::resume);
    aggregator.resume();
    for worker in workers {
        assert_refuses(worker, "shelfmill.");
    }
    assert_refuses(aggregator, "shelfmill.");

    for what in ["tasks", "outcomes"] {
        delete(&fleet, what);
    }
    let workers = fleet.workers(2);
    ended(fleet.producer().run(DEADLINE));
    ended(fleet.aggregator().run(DEADLINE));
    let results = fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert_eq!((fleet.simulator.calls(), results.calls()), (100, (100, 0)), "a call was repeated");
    drop(workers);
}

#[test]
fn a_queue_that_does_not_answer_is_named_and_used_again_when_it_does() {
    const SILENT: &str = "a queue does not answer, although RabbitMQ does; trying again until it does";
    let mut rabbitmq = RabbitMq::start();
    let mut fleet = Fleet::new("silent-queue", 20, &[]);
    fleet.amqp_url = rabbitmq.url();
    ended(fleet.producer().run(DEADLINE));
    let outcomes = queue(&fleet, "outcomes");
    rabbitmq.hold_queue(&outcomes);
    let aggregator = fleet.aggregator().start();
    all_tell(&[&aggregator], SILENT);
    assert!(aggregator.stderr().contains(&outcomes), "{}", aggregator.stderr());
    rabbitmq.restart();
    let worker = fleet.worker().start();
    let said = ended(aggregator.wait(DEADLINE)).stderr;
    assert_eq!(said.matches(SILENT).count(), 1, "{said}");
    fleet.assert_done(&rabbitmq, redis::shared());
    drop(worker);
}
