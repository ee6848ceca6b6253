//! What docs/reliability.md claims, at full size: run by `make prove`. Smaller ones of the kind run with every test.

use std::time::Duration;

use crate::support::{
    fleet::{Fleet, ended},
    rabbitmq::{self, RabbitMq},
    redis::Redis,
};

const PRODUCTS: usize = 20_000;
const WORKERS: u64 = 4;
const CONCURRENCY: u64 = 50;
const DEADLINE: Duration = Duration::from_secs(900);

fn fleet(name: &str) -> Fleet {
    let mut fleet = Fleet::new(name, PRODUCTS, &["--latency", "500ms", "--jitter", "200ms"]);
    fleet.concurrency = CONCURRENCY;
    fleet
}

#[test]
#[ignore = "full size: run by `make prove`"]
fn rabbitmq_is_killed_three_times_and_redis_twice() {
    let (mut rabbitmq, mut redis) = (RabbitMq::start(), Redis::start());
    let mut fleet = fleet("five-kills");
    (fleet.amqp_url, fleet.redis_url) = (rabbitmq.url(), redis.url());
    let workers = fleet.workers(WORKERS as usize);
    let aggregator = fleet.aggregator().start();
    let producer = fleet.producer().start();
    for (kill, lines) in (1..=5).map(|kill| (kill, kill * PRODUCTS / 6)) {
        fleet.wait_for_lines(lines);
        if kill % 2 == 1 {
            rabbitmq.kill();
            rabbitmq.restart();
        } else {
            redis.kill();
            redis.restart();
        }
    }
    ended(producer.wait(DEADLINE));
    ended(aggregator.wait(DEADLINE));
    let results = fleet.assert_done_with(&rabbitmq, &redis, fleet.kills(5 * WORKERS));
    println!(
        "five kills of servers: {} lines, 0 lost, 0 doubled; the model counted {} calls, the summary {:?} (made, repeated)",
        results.journal.len(),
        fleet.simulator.calls(),
        results.calls()
    );
    assert_eq!(results.calls().0, fleet.simulator.calls(), "the summary's count is right");
    drop(workers);
}

#[test]
#[ignore = "full size: run by `make prove`"]
fn the_ledger_is_emptied_at_half() {
    let mut redis = Redis::start();
    let mut fleet = fleet("emptied");
    fleet.redis_url = redis.url();
    let workers = fleet.workers(WORKERS as usize);
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    fleet.wait_for_lines(PRODUCTS / 2);
    let forgotten = fleet.forgotten_by_an_emptied_ledger(&redis, WORKERS);
    redis.flushall();
    ended(fleet.producer().run(DEADLINE));
    ended(aggregator.wait(DEADLINE));
    let results = fleet.assert_done_with(rabbitmq::shared(), &redis, forgotten);
    println!(
        "emptied at half: {} lines, 0 lost, 0 doubled; {} calls repeated",
        results.journal.len(),
        fleet.simulator.calls() - PRODUCTS as u64
    );
    drop(workers);
}

#[test]
#[ignore = "full size: run by `make prove`"]
fn five_workers_are_replaced_one_after_the_other_under_load() {
    let fleet = fleet("rolling");
    let mut workers = fleet.workers(5);
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    let mut longest = Duration::ZERO;
    for round in 1..=2 {
        for (number, worker) in workers.iter_mut().enumerate() {
            fleet.wait_for_lines((round * 5 + number) * PRODUCTS / 20);
            let fresh = fleet.worker().start();
            let mut old = std::mem::replace(worker, fresh);
            let told = std::time::Instant::now();
            old.terminate();
            ended(old.wait(Duration::from_secs(30)));
            longest = longest.max(told.elapsed());
        }
    }
    ended(aggregator.wait(DEADLINE));
    let results = fleet.assert_done(rabbitmq::shared(), crate::support::redis::shared());
    println!(
        "ten workers replaced: {} lines, {} calls, 0 repeated; the longest farewell took {longest:.1?}",
        results.journal.len(),
        fleet.simulator.calls()
    );
    assert_eq!((fleet.simulator.calls(), results.calls()), (PRODUCTS as u64, (PRODUCTS as u64, 0)));
    drop(workers);
}
