//! A fleet whose Redis dies, hangs, fills up, forgets or goes back in time, in mid-run with calls under way.
//!
//! Always: no product lost, none doubled, and each process says in one line that Redis is lost and in one that it is
//! back.

use std::time::Duration;

use crate::support::{
    checker::Repeats,
    fleet::{DEADLINE, Fleet, ended},
    process::{Program, Running},
    proxy::Proxy,
    rabbitmq,
    redis::Redis,
    wait::eventually,
};

const LOST: &str = "lost Redis, waiting until it can be used again; nothing is lost";
const BACK: &str = "Redis is back";
const RUN_LOST: &str = "Redis has lost the run";
/// Longer than a reply may take.
const NO_REPLY: Duration = Duration::from_secs(7);

/// A run in its middle.
struct Live {
    fleet: Fleet,
    redis: Redis,
    workers: Vec<Running>,
    aggregator: Running,
}

impl Live {
    fn start(name: &str, products: usize, lines: usize) -> Self {
        Self::start_through(name, products, lines, Redis::start(), None)
    }

    fn start_through(name: &str, products: usize, lines: usize, redis: Redis, proxy: Option<&Proxy>) -> Self {
        let mut fleet = Fleet::new(name, products, &["--latency", "100ms"]);
        fleet.redis_url = proxy.map_or(redis.url(), |proxy| format!("redis://127.0.0.1:{}/0", proxy.port()));
        let workers = fleet.workers(2);
        let aggregator = fleet.aggregator().start();
        ended(fleet.producer().run(DEADLINE));
        fleet.wait_for_lines(lines);
        Self { fleet, redis, workers, aggregator }
    }

    fn all(&self) -> impl Iterator<Item = &Running> {
        self.workers.iter().chain([&self.aggregator])
    }

    /// Every process has noticed.
    fn wait_for_loss(&self) {
        self.wait_for_all(LOST, 1);
    }

    fn wait_for_all(&self, line: &str, times: usize) {
        eventually(DEADLINE, line, || {
            match self.all().find(|process| count(&process.stderr(), line) < times) {
                Some(process) => Err(process.stderr()),
                None => Ok(()),
            }
        });
    }

    /// Ends well, with so many losses of Redis told by each process and at most so many calls made twice.
    fn finish(self, losses: usize, repeats: u64) {
        let Self { fleet, redis, mut workers, aggregator } = self;
        let end = ended(aggregator.wait(DEADLINE));
        let repeats = if repeats == 0 { Repeats::None } else { Repeats::UntoldAtMost(repeats) };
        fleet.assert_done_with(rabbitmq::shared(), &redis, repeats);
        for worker in &mut workers {
            worker.terminate();
        }
        let mut logs = vec![end.stderr];
        logs.extend(workers.into_iter().map(|worker| ended(worker.wait(DEADLINE)).stderr));
        for log in &logs {
            assert_eq!((count(log, LOST), count(log, BACK)), (losses, losses), "{log}");
            let troubles = log.lines().filter(|line| line.contains(" WARN ") || line.contains("ERROR"));
            let others: Vec<_> = troubles
                .filter(|line| {
                    // RabbitMQ 3.10 now and then ends a connection so when several processes declare a new queue at once.
                    let known = [LOST, RUN_LOST, "stopping: ", "does not know", "INTERNAL_ERROR"];
                    !known.iter().any(|known| line.contains(known))
                })
                .collect();
            assert!(others.is_empty(), "{others:#?}");
        }
    }
}

fn count(text: &str, part: &str) -> usize {
    text.matches(part).count()
}

/// How long a fault lasts, where that is what the fault is.
fn lasts(duration: Duration) {
    std::thread::sleep(duration);
}

#[test]
fn a_redis_that_is_gone_for_longer_than_a_lease_is_told_once() {
    let mut live = Live::start("redis-gone", 400, 100);
    live.redis.kill();
    live.wait_for_loss();
    lasts(Duration::from_secs(20));
    live.redis.restart();
    live.finish(1, 0);
}

#[test]
fn a_redis_that_hangs_is_waited_for() {
    let mut live = Live::start("redis-hangs", 400, 100);
    live.redis.pause();
    live.wait_for_loss();
    lasts(NO_REPLY);
    live.redis.resume();
    live.finish(1, 0);
}

#[test]
fn a_slow_redis_is_no_lost_redis() {
    let redis = Redis::start();
    let proxy = Proxy::to(redis.port());
    let live = Live::start_through("redis-slow", 200, 20, redis, Some(&proxy));
    proxy.delay(Duration::from_millis(150), Duration::from_millis(150));
    live.finish(0, 0);
}

#[test]
fn a_half_open_connection_is_found_by_the_reply_that_does_not_come_and_is_replaced() {
    let redis = Redis::start();
    let proxy = Proxy::to(redis.port());
    let live = Live::start_through("redis-half-open", 400, 100, redis, Some(&proxy));
    // What is under way stays under way far longer than this test; connections made later are good.
    proxy.delay(DEADLINE, DEADLINE);
    live.wait_for_loss();
    proxy.delay(Duration::ZERO, Duration::ZERO);
    live.finish(1, 0);
}

#[test]
fn a_silent_network_that_heals_is_told_once() {
    let redis = Redis::start();
    let proxy = Proxy::to(redis.port());
    let live = Live::start_through("redis-silent", 400, 100, redis, Some(&proxy));
    proxy.swallow();
    live.wait_for_loss();
    lasts(NO_REPLY);
    proxy.restore();
    live.finish(1, 0);
}

#[test]
fn connections_that_are_cut_reset_and_refused_are_made_again() {
    let redis = Redis::start();
    let proxy = Proxy::to(redis.port());
    let live = Live::start_through("redis-cut", 600, 100, redis, Some(&proxy));
    proxy.refuse();
    proxy.cut();
    live.wait_for_loss();
    proxy.restore();
    live.wait_for_all(BACK, 1);
    eventually(DEADLINE, "connections", || match proxy.connections() {
        0 => Err("none".to_owned()),
        _ => Ok(()),
    });
    proxy.reset();
    live.wait_for_all(BACK, 2);
    live.finish(2, 0);
}

#[test]
fn a_full_redis_pauses_the_fleet_and_what_is_paid_for_reaches_the_disk() {
    let redis = Redis::start();
    let mut fleet = Fleet::new("redis-full", 1_500, &["--latency", "100ms"]);
    fleet.redis_url = redis.url();
    // The producer is in mid-scan, too.
    let producer = fleet.producer().args(["--max-backlog", "100"]).start();
    let live = Live { workers: fleet.workers(2), aggregator: fleet.aggregator().start(), fleet, redis };
    live.fleet.wait_for_lines(100);
    live.redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    for worker in &live.workers {
        eventually(DEADLINE, "a worker that waits", || {
            if worker.stderr().contains("command not allowed when used memory > 'maxmemory'") {
                Ok(())
            } else {
                Err(worker.stderr())
            }
        });
    }
    // The aggregator needs no memory and frees some: it writes what there is, and is never told of a loss.
    eventually(DEADLINE, "no answer to be left in Redis", || {
        let left = live.redis.cli(&["HLEN", &format!("shelfmill:{{{}}}:answers", live.fleet.run)]);
        if left == "0" { Ok(()) } else { Err(left) }
    });
    let calls = live.fleet.simulator.calls();
    lasts(NO_REPLY);
    assert!(live.fleet.simulator.calls() <= calls + 32, "the fleet goes on calling");
    assert_eq!(count(&live.aggregator.stderr(), LOST), 0);
    live.redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    let end = ended(producer.wait(DEADLINE));
    assert_eq!((count(&end.stderr, LOST), count(&end.stderr, BACK)), (1, 1), "{end}");

    let Live { fleet, redis, mut workers, aggregator } = live;
    ended(aggregator.wait(DEADLINE));
    fleet.assert_done(rabbitmq::shared(), &redis);
    assert_eq!(fleet.simulator.calls(), 1_500, "calls repeated");
    for mut worker in workers.drain(..) {
        worker.terminate();
        let end = ended(worker.wait(DEADLINE));
        assert_eq!((count(&end.stderr, LOST), count(&end.stderr, BACK)), (1, 1), "{end}");
    }
}

#[test]
fn a_redis_that_became_a_replica_is_waited_for() {
    const NOBODY_LISTENS: &str = "1";
    let live = Live::start("redis-replica", 400, 100);
    live.redis.cli(&["REPLICAOF", "127.0.0.1", NOBODY_LISTENS]);
    live.wait_for_loss();
    lasts(NO_REPLY);
    live.redis.cli(&["REPLICAOF", "NO", "ONE"]);
    live.finish(1, 0);
}

#[test]
fn a_changed_password_ends_the_roles_with_a_clear_word_and_the_new_one_goes_on() {
    const PASSWORD: &str = "canary-4711";
    let mut live = Live::start("redis-password", 400, 100);
    live.redis.cli(&["CONFIG", "SET", "requirepass", PASSWORD]);
    let admin = |args: &[&str]| live.redis.cli(&[&["--no-auth-warning", "-a", PASSWORD], args].concat());
    admin(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    let refused = "refuses the connection";
    for process in live.workers.drain(..).chain([live.aggregator]) {
        let end = process.wait(DEADLINE).expect_code(1);
        assert_eq!(count(&end.stderr, "\nerror: "), 1, "{end}");
        assert!(end.stderr.contains(refused) && end.stderr.contains("password"), "{end}");
    }
    // A wrong one is refused, too, and is not shown.
    let mut fleet = live.fleet;
    let at = |password: &str| format!("redis://:{password}@127.0.0.1:{}/0", live.redis.port());
    fleet.redis_url = at("canary-0815");
    let end = fleet.worker().run(DEADLINE).expect_code(1);
    assert!(end.stderr.contains(refused) && !end.stderr.contains("canary"), "{end}");

    fleet.redis_url = at(PASSWORD);
    let workers = fleet.workers(2);
    let aggregator = fleet.aggregator().start();
    let end = ended(aggregator.wait(DEADLINE));
    assert!(!end.stderr.contains("canary"), "{end}");
    admin(&["CONFIG", "SET", "requirepass", ""]);
    // The workers ended with their calls under way, as if killed.
    fleet.assert_done_with(rabbitmq::shared(), &live.redis, fleet.kills(2));
    drop(workers);
}

#[test]
fn a_redis_that_is_emptied_in_mid_run_is_told_and_the_producer_brings_the_run_back() {
    let mut live = Live::start("redis-flushed", 500, 200);
    live.redis.flushall();
    // Whether anything comes or not.
    live.wait_for_all(RUN_LOST, 1);
    ended(live.fleet.producer().run(DEADLINE));
    live.finish(0, 2 * 16);
}

#[test]
fn a_redis_that_comes_back_empty_is_told_and_the_producer_brings_the_run_back() {
    let mut live = Live::start("redis-empty", 500, 200);
    live.redis.restart_empty();
    live.wait_for_all(RUN_LOST, 1);
    ended(live.fleet.producer().run(DEADLINE));
    live.finish(1, 2 * 16);
}

#[test]
fn an_emptied_redis_is_told_what_is_on_disk_also_while_nothing_comes() {
    let mut redis = Redis::start();
    let mut fleet = Fleet::new("redis-idle", 300, &["--latency", "50ms"]);
    fleet.redis_url = redis.url();
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    let mut worker = fleet.worker().start();
    fleet.wait_for_lines(100);
    worker.terminate();
    ended(worker.wait(DEADLINE));
    redis.flushall();
    let lines = crate::support::results::journal_lines(&fleet.catalog.out());
    eventually(DEADLINE, "the ledger to learn of the lines", || {
        let known = redis.cli(&["HGET", &format!("shelfmill:{{{}}}:run", fleet.run), "completed"]);
        if known.parse().is_ok_and(|known: usize| known >= lines) { Ok(()) } else { Err(known) }
    });
    // So the producer publishes only what is open, and no call is made twice.
    ended(fleet.producer().run(DEADLINE));
    let worker = fleet.worker().start();
    ended(aggregator.wait(DEADLINE));
    fleet.assert_done(rabbitmq::shared(), &redis);
    assert_eq!(fleet.simulator.calls(), 300);
    drop(worker);
}

#[test]
fn a_producer_whose_redis_is_emptied_says_so_and_is_run_again() {
    let mut redis = Redis::start();
    let mut fleet = Fleet::new("redis-scan", 3_000, &[]);
    fleet.redis_url = redis.url();
    let workers = fleet.workers(2);
    let aggregator = fleet.aggregator().start();
    let producer = fleet.producer().args(["--max-backlog", "100"]).start();
    fleet.wait_for_lines(200);
    redis.flushall();
    let end = producer.wait(DEADLINE).expect_code(1);
    assert!(end.stderr.contains("Redis has lost the run: it was emptied while the input was read"), "{end}");
    ended(fleet.producer().run(DEADLINE));
    ended(aggregator.wait(DEADLINE));
    fleet.assert_done(rabbitmq::shared(), &redis);
    drop(workers);
}

#[test]
fn a_redis_that_goes_back_in_time_is_told_what_it_has_forgotten() {
    let mut live = Live::start("redis-rollback", 600, 100);
    let backup = live.redis.backup();
    live.fleet.wait_for_lines(350);
    live.redis.restart_with(&backup);
    live.finish(1, 2 * 16);
}

#[test]
fn a_redis_that_goes_back_in_time_while_the_input_is_read_ends_the_reading() {
    let mut redis = Redis::start();
    let mut fleet = Fleet::new("redis-scan-back", 3_000, &["--latency", "20ms"]);
    fleet.redis_url = redis.url();
    let workers = fleet.workers(2);
    let aggregator = fleet.aggregator().start();
    let producer = fleet.producer().args(["--max-backlog", "100"]).start();
    fleet.wait_for_lines(100);
    let backup = redis.backup();
    fleet.wait_for_lines(900);
    redis.restart_with(&backup);
    // Sealed with what is left, the run would end without the products in between.
    let end = producer.wait(DEADLINE).expect_code(1);
    assert!(end.stderr.contains("Redis was set back to an older state"), "{end}");
    eventually(DEADLINE, "the aggregator to miss the producer", || {
        let said = aggregator.stderr();
        if said.contains("no producer was heard of for 30 s") { Ok(()) } else { Err(said) }
    });
    ended(fleet.producer().run(DEADLINE));
    ended(aggregator.wait(DEADLINE));
    fleet.assert_done(rabbitmq::shared(), &redis);
    drop(workers);
}

/// Started once more on an emptied Redis, one after the other.
#[test]
fn a_standby_does_not_take_an_emptied_redis_for_a_new_run() {
    let mut redis = Redis::start();
    let mut fleet = Fleet::new("redis-standby", 100, &["--latency", "300ms"]);
    fleet.redis_url = redis.url();
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    let workers = fleet.workers(1);
    fleet.wait_for_lines(10);
    let elsewhere = fleet.catalog.out().with_file_name("elsewhere");
    let standby = |fleet: &Fleet| -> Program { fleet.command("aggregator").arg("--out").arg(&elsewhere) };
    let waiting = standby(&fleet).start();
    eventually(DEADLINE, "the second to stand by", || {
        if waiting.stderr().contains("Standing by") { Ok(()) } else { Err(waiting.stderr()) }
    });
    let first = aggregator.kill9();
    assert!(first.stderr.contains("Checkpoint"), "{first}");
    let forgotten = fleet.forgotten_by_an_emptied_ledger(&redis, 2);
    redis.flushall();
    let end = waiting.wait(DEADLINE).expect_code(1);
    assert!(end.stderr.contains("Redis was emptied while this process stood by"), "{end}");
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    ended(aggregator.wait(DEADLINE));
    fleet.assert_done_with(rabbitmq::shared(), &redis, forgotten);
    drop(workers);
}
