//! RabbitMQ gone, half open, slow, cut off, under alarm, or closing channels: the fleet goes on by itself, nothing is
//! lost or doubled, and each process tells of each loss in one line and of its end in one.

use std::time::{Duration, Instant};

use crate::support::{
    fleet::{DEADLINE, Fleet, ended},
    process::Running,
    proxy::Proxy,
    rabbitmq::{self, RabbitMq},
    redis,
    wait::eventually,
};

pub(crate) const LOST: &str =
    "lost RabbitMQ, trying again until it is back; calls in flight go on and nothing is lost";
pub(crate) const BACK: &str = "RabbitMQ is back";
const BLOCKED: &str = "RabbitMQ takes no messages for now, waiting until it does";
const UNBLOCKED: &str = "RabbitMQ takes messages again";

/// Lines of a process that say `what`.
pub(crate) fn told(process: &Running, what: &str) -> usize {
    process.stderr().lines().filter(|line| line.contains(what)).count()
}

/// Waits until each of the processes has said `what`.
#[track_caller]
pub(crate) fn all_tell(processes: &[&Running], what: &str) {
    eventually(DEADLINE, what, || match processes.iter().find(|process| told(process, what) == 0) {
        None => Ok(()),
        Some(silent) => Err(silent.stderr()),
    });
}

/// Every process tells of `times` losses and as many ends, and of nothing else that would worry anybody.
#[track_caller]
fn assert_told(processes: &[&Running], times: usize) {
    for process in processes {
        let said = process.stderr();
        let worries = said.lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")).count();
        assert_eq!((told(process, LOST), told(process, BACK), worries), (times, times, times), "{said}");
    }
}

#[test]
fn a_rabbitmq_that_is_gone_for_a_while_is_told_of_once_and_progress_says_so() {
    let mut rabbitmq = RabbitMq::start();
    let mut fleet = Fleet::new("gone", 400, &["--latency", "300ms"]);
    fleet.amqp_url = rabbitmq.url();
    let workers = fleet.workers(2);
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    fleet.wait_for_lines(60);
    let progress = fleet.progress();
    assert_eq!(progress["broker"], "ok");
    assert!(progress["queues"]["tasks"].as_u64() > Some(0), "{progress}");

    rabbitmq.kill();
    let all = [&workers[0], &workers[1], &aggregator];
    all_tell(&all, LOST);
    let asked = Instant::now();
    let progress = fleet.progress();
    assert!(asked.elapsed() < Duration::from_secs(6), "{:?}", asked.elapsed());
    assert!(progress["completed"].as_u64() >= Some(60) && progress["queues"].is_null(), "{progress}");
    let trouble = progress["broker"].as_str().unwrap();
    assert!(trouble.contains("cannot reach RabbitMQ at 127.0.0.1:"), "{trouble}");
    let said = fleet.command("progress").run(DEADLINE).expect_code(0).stdout;
    assert!(
        said.contains("/400 products") && said.contains("Queues: not known, cannot reach RabbitMQ"),
        "{said}"
    );
    // Long enough for every product in flight to have tried, and for the pauses between attempts to be long.
    let calls = fleet.simulator.calls();
    std::thread::sleep(Duration::from_secs(12));
    assert!(fleet.simulator.calls() <= calls + 2 * fleet.concurrency, "calls for tasks that are not held");

    rabbitmq.restart();
    all_tell(&all, BACK);
    eventually(DEADLINE, "the run to be done", || match fleet.progress()["remaining"].as_u64() {
        Some(0) => Ok(()),
        left => Err(format!("{left:?}")),
    });
    assert_told(&all[..2], 1);
    let aggregator = ended(aggregator.wait(DEADLINE)).stderr;
    assert_eq!((aggregator.matches(LOST).count(), aggregator.matches(BACK).count()), (1, 1), "{aggregator}");
    let results = fleet.assert_done(&rabbitmq, redis::shared());
    assert_eq!((fleet.simulator.calls(), results.calls()), (400, (400, 0)), "a call was repeated");
}

#[test]
fn a_half_open_connection_is_found_out_by_its_heartbeat() {
    let rabbitmq = rabbitmq::shared();
    let proxy = Proxy::to(rabbitmq.port());
    let mut fleet = Fleet::new("half-open", 300, &["--latency", "200ms"]);
    let direct = std::mem::replace(&mut fleet.amqp_url, rabbitmq.url_by(proxy.port()));
    let workers = fleet.workers(2);
    let aggregator = fleet.aggregator().start();
    fleet.amqp_url = direct;
    ended(fleet.producer().run(DEADLINE));
    fleet.wait_for_lines(40);

    proxy.swallow();
    let began = Instant::now();
    let all = [&workers[0], &workers[1], &aggregator];
    all_tell(&all, LOST);
    let noticed = began.elapsed();
    assert!(noticed < Duration::from_secs(32), "{noticed:?}");
    println!("half open: noticed by all after {noticed:.1?}");
    // The attempts to come back meet the same silence.
    std::thread::sleep(Duration::from_secs(20));
    proxy.restore();
    all_tell(&all, BACK);
    println!("half open: back {:.1?} after it began", began.elapsed());
    ended(aggregator.wait(DEADLINE));
    assert_told(&all[..2], 1);
    let results = fleet.assert_done(rabbitmq, redis::shared());
    assert_eq!((fleet.simulator.calls(), results.calls()), (300, (300, 0)), "a call was repeated");
}

#[test]
fn a_slow_connection_that_is_cut_and_reset_loses_nothing_and_repeats_no_call() {
    let rabbitmq = rabbitmq::shared();
    let proxy = Proxy::to(rabbitmq.port());
    let mut fleet = Fleet::new("bad-network", 1_500, &["--latency", "100ms"]);
    fleet.amqp_url = rabbitmq.url_by(proxy.port());
    let workers = fleet.workers(2);
    let aggregator = fleet.aggregator().start();
    let producer = fleet.producer().start();
    proxy.delay(Duration::from_millis(50), Duration::from_millis(150));
    for (round, lines) in [100, 250, 400, 550, 700, 850].into_iter().enumerate() {
        fleet.wait_for_lines(lines);
        if round % 2 == 0 { proxy.cut() } else { proxy.reset() }
    }
    proxy.refuse();
    proxy.cut();
    all_tell(&[&workers[0], &workers[1], &aggregator], LOST);
    std::thread::sleep(Duration::from_secs(2));
    proxy.restore();
    ended(producer.wait(DEADLINE));
    ended(aggregator.wait(DEADLINE));
    for worker in &workers {
        let (lost, back) = (told(worker, LOST), told(worker, BACK));
        assert!((1..=7).contains(&lost) && lost == back, "{}", worker.stderr());
    }
    let results = fleet.assert_done(rabbitmq, redis::shared());
    assert_eq!((fleet.simulator.calls(), results.calls()), (1_500, (1_500, 0)), "a call was repeated");
}
