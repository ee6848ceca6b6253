//! RabbitMQ gone, half open, slow, cut off, under alarm, or closing channels: the fleet goes on by itself, nothing is
//! lost or doubled, and each process tells of each loss in one line and of its end in one.

use std::time::{Duration, Instant};

use shelfmill_pipeline::{
    broker::{Broker, Connect, RabbitBroker, RabbitConfig},
    message::Task,
    shutdown::Stopper,
};

use crate::support::{
    catalog::Catalog,
    fleet::{DEADLINE, Fleet, ended},
    process::Running,
    proxy::Proxy,
    rabbitmq::{self, RabbitMq},
    redis,
    simulator::Simulator,
    wait::eventually,
};

pub(crate) const LOST: &str =
    "lost RabbitMQ, trying again until it is back; calls in flight go on and nothing is lost";
pub(crate) const BACK: &str = "RabbitMQ is back";
const BLOCKED: &str = "RabbitMQ takes no messages for now, waiting until it does";
const UNBLOCKED: &str = "RabbitMQ takes messages again";

/// A half-open connection takes the longest to be found out.
const TOLD_WITHIN: Duration = Duration::from_secs(60);

/// Lines of a process that say `what`.
pub(crate) fn told(process: &Running, what: &str) -> usize {
    process.stderr().lines().filter(|line| line.contains(what)).count()
}

/// Waits until each of the processes has said `what`.
#[track_caller]
pub(crate) fn all_tell(processes: &[&Running], what: &str) {
    eventually(TOLD_WITHIN, what, || match processes.iter().find(|process| told(process, what) == 0) {
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
    assert_told(&[&workers[0], &workers[1]], 1);
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
    fleet.wait_for_consumers(rabbitmq, 2);
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
    assert_told(&[&workers[0], &workers[1]], 1);
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

#[test]
fn under_a_memory_alarm_acknowledgements_flow_and_publishes_wait() {
    let rabbitmq = RabbitMq::start();
    let mut fleet = Fleet::new("alarm", 100, &["--latency", "100ms"]);
    fleet.amqp_url = rabbitmq.url();
    let mut worker = fleet.worker().start();
    ended(fleet.producer().run(DEADLINE));
    ended(fleet.aggregator().run(DEADLINE));
    worker.terminate();
    ended(worker.wait(DEADLINE));

    // Some new products first, so that the publishing connections are blocked; then tasks of products that are done,
    // which need nothing but their acknowledgement.
    let done = fleet.catalog.ids.clone();
    let catalog = std::mem::replace(&mut fleet.catalog, Catalog::of(0));
    fleet.catalog = catalog.with(0..160);
    ended(fleet.producer().args(["--limit", "108"]).run(DEADLINE));
    publish_again(&fleet, &done);
    ended(fleet.producer().run(DEADLINE));
    let left = || {
        let queue = rabbitmq.queues().remove(&format!("shelfmill.{}.tasks.v1", fleet.run)).expect("a queue");
        queue.ready + queue.unacked
    };
    eventually(DEADLINE, "all tasks to be counted", || {
        if left() == 168 { Ok(()) } else { Err(left().to_string()) }
    });
    rabbitmq.ctl(&["set_vm_memory_high_watermark", "0.0000001"]);

    let workers = fleet.workers(2);
    let aggregator = fleet.aggregator().start();
    all_tell(&[&workers[0], &workers[1]], BLOCKED);
    eventually(DEADLINE, "the tasks of products that are done to be acknowledged", || match left() {
        68 => Ok(()),
        left => Err(left.to_string()),
    });
    // Longer than a publish waits for a confirm where there is no alarm.
    std::thread::sleep(Duration::from_secs(35));
    let calls = fleet.simulator.calls();
    assert!(calls <= 100 + 2 * fleet.concurrency, "{calls}");
    let progress = fleet.progress();
    assert_eq!((&progress["broker"], &progress["completed"]), (&"ok".into(), &100.into()), "{progress}");

    rabbitmq.ctl(&["set_vm_memory_high_watermark", "absolute", "1GB"]);
    ended(aggregator.wait(DEADLINE));
    for worker in &workers {
        let lines = [BLOCKED, UNBLOCKED, LOST].map(|what| told(worker, what));
        assert_eq!(lines, [1, 1, 0], "{}", worker.stderr());
    }
    let results = fleet.assert_done(&rabbitmq, redis::shared());
    assert_eq!((fleet.simulator.calls(), results.calls()), (160, (160, 0)), "a call was repeated");
}

/// Tasks of these products, as somebody would have whose acknowledgements were lost.
fn publish_again(fleet: &Fleet, ids: &[String]) {
    let config = RabbitConfig {
        url: fleet.amqp_url.clone().into(),
        run: fleet.run.clone(),
        client_name: "test".to_owned(),
        ca_file: None,
        connect: Connect::Once,
    };
    let broker = RabbitBroker::new(config, Stopper::new()).unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        for (seq, id) in (1..).zip(ids) {
            let product = serde_json::value::to_raw_value(&serde_json::json!({"id": id})).unwrap();
            broker.publish_task(Task::new(id.clone(), seq, product)).await.unwrap();
        }
    });
}

#[test]
fn a_call_that_outlasts_the_consumer_timeout_is_finished_and_not_repeated() {
    let rabbitmq = RabbitMq::start();
    rabbitmq.ctl(&[
        "eval",
        "application:set_env(rabbit, consumer_timeout, 4000), application:set_env(rabbit, channel_tick_interval, 1000).",
    ]);
    let mut fleet = Fleet::new("consumer-timeout", 48, &["--latency", "8s"]);
    fleet.amqp_url = rabbitmq.url();
    let workers = fleet.workers(2);
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    ended(aggregator.wait(DEADLINE));
    for worker in &workers {
        let (lost, back, said) = (told(worker, LOST), told(worker, BACK), worker.stderr());
        assert!(lost == back && (1..=3).contains(&lost), "{said}");
        assert!(said.contains("delivery acknowledgement on channel 1 timed out"), "{said}");
    }
    let results = fleet.assert_done(&rabbitmq, redis::shared());
    assert_eq!((fleet.simulator.calls(), results.calls()), (48, (48, 0)), "a call was repeated");
}

#[test]
fn progress_says_that_the_provider_asks_for_a_pause() {
    let mut fleet = Fleet::new("paused", 5, &["--rate-limited", "1"]);
    let worker = fleet.worker().start();
    ended(fleet.producer().run(DEADLINE));
    let paused = eventually(DEADLINE, "a pause", || {
        let progress = fleet.progress();
        progress["paused_seconds"].as_f64().ok_or(progress.to_string())
    });
    assert!((0.0..=60.0).contains(&paused), "{paused}");
    eventually(DEADLINE, "a pause, in words", || {
        let said = fleet.command("progress").run(DEADLINE).expect_code(0).stdout;
        if said.contains("Paused: for ") && said.contains("Waiting: ") { Ok(()) } else { Err(said) }
    });
    drop(worker);
    fleet.simulator = Simulator::start(&[]);
    let worker = fleet.worker().start();
    ended(fleet.aggregator().run(DEADLINE));
    fleet.assert_done(rabbitmq::shared(), redis::shared());
    drop(worker);
}
