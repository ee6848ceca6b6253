//! A fleet that is put back on its feet after every blow.

use std::time::{Duration, Instant};

use super::schedule::{Blow, Fault, Target};
use crate::support::{
    checker::{Evidence, Report, examine, keys_of, money, queues_of},
    fleet::Fleet,
    process::{Program, Running},
    rabbitmq::RabbitMq,
    redis::Redis,
    results::Results,
    wait::{eventually, within},
};

pub(super) const WORKERS: usize = 3;
pub(super) const CONCURRENCY: u64 = 16;
/// What is left to do after the last blow, with two servers that may just have come back.
const CALM: Duration = Duration::from_secs(240);
/// A worker's grace is 30 s by default, and used up only where RabbitMQ stays away for so long.
const GRACE: Duration = Duration::from_secs(45);
const POLL: Duration = Duration::from_millis(20);

/// The model of a storm has its own troubles.
const MODEL: [&str; 12] = [
    "--latency",
    "150ms",
    "--jitter",
    "100ms",
    "--server-error",
    "0.02",
    "--malformed",
    "0.02",
    "--cut-off",
    "0.01",
    "--rate-limited",
    "0.002",
];

/// A process that should be there.
struct Post {
    /// Nothing while it is down.
    process: Option<Running>,
    /// When it is started again, or goes on.
    mended_at: Option<Instant>,
    is_paused: bool,
    /// Told to end, and not yet gone.
    ends_until: Option<Instant>,
}

impl Post {
    fn of(process: Running) -> Self {
        Self { process: Some(process), mended_at: None, is_paused: false, ends_until: None }
    }
}

pub(super) struct Stormy {
    fleet: Fleet,
    rabbitmq: RabbitMq,
    redis: Redis,
    workers: Vec<Post>,
    aggregator: Post,
    producer: Post,
    doubles: Vec<Running>,
    /// When a paused server goes on.
    servers_paused_until: Vec<(Target, Instant)>,
    has_produced: bool,
    has_ended: bool,
}

impl Stormy {
    pub(super) fn start(seed: u64, products: usize) -> Self {
        let (rabbitmq, redis) = (RabbitMq::start(), Redis::start());
        let seed_option = seed.to_string();
        let model: Vec<&str> = MODEL.into_iter().chain(["--seed", &seed_option]).collect();
        let mut fleet = Fleet::new(&format!("storm-{seed}"), products, &model);
        (fleet.amqp_url, fleet.redis_url) = (rabbitmq.url(), redis.url());
        fleet.concurrency = CONCURRENCY;
        let workers = (0..WORKERS).map(|_| Post::of(fleet.worker().start())).collect();
        let aggregator = Post::of(fleet.aggregator().start());
        let producer = Post::of(producer(&fleet).args(["--max-backlog", "1000"]).start());
        Self {
            fleet,
            rabbitmq,
            redis,
            workers,
            aggregator,
            producer,
            doubles: Vec::new(),
            servers_paused_until: Vec::new(),
            has_produced: false,
            has_ended: false,
        }
    }

    pub(super) const fn workers(&self) -> usize {
        WORKERS
    }

    /// Mends what is due, until then.
    pub(super) fn go_on_until(&mut self, end: Instant) {
        while Instant::now() < end {
            self.mend();
            std::thread::sleep(POLL);
        }
    }

    pub(super) fn hit(&mut self, fault: &Fault) {
        let mended_at = Instant::now() + fault.lasts;
        match fault.target {
            Target::RabbitMq | Target::Redis => self.hit_server(fault.target, fault.blow, mended_at),
            Target::Producer if fault.blow == Blow::Double => {
                self.doubles.push(producer(&self.fleet).start())
            }
            Target::Worker(number) => strike(&mut self.workers[number], fault.blow, mended_at),
            Target::Aggregator => strike(&mut self.aggregator, fault.blow, mended_at),
            Target::Producer => strike(&mut self.producer, fault.blow, mended_at),
        }
    }

    fn hit_server(&mut self, target: Target, blow: Blow, mended_at: Instant) {
        self.wake_servers(None);
        match (target, blow) {
            (Target::RabbitMq, Blow::Pause) => self.rabbitmq.pause(),
            (Target::RabbitMq, Blow::Kill) => self.rabbitmq.kill(),
            (Target::RabbitMq, _) => self.rabbitmq.stop(),
            (_, Blow::Pause) => self.redis.pause(),
            (_, Blow::Kill) => self.redis.kill(),
            _ => self.redis.stop(),
        }
        if blow == Blow::Pause {
            self.servers_paused_until.push((target, mended_at));
            return;
        }
        // The fleet has the while to notice; the start of a server takes its own.
        self.go_on_until(mended_at);
        match target {
            Target::RabbitMq => self.rabbitmq.restart(),
            _ => self.redis.restart(),
        }
    }

    fn wake_servers(&mut self, due: Option<Instant>) {
        let (woken, asleep) = std::mem::take(&mut self.servers_paused_until)
            .into_iter()
            .partition(|(_, until)| due.is_none_or(|now| *until <= now));
        self.servers_paused_until = asleep;
        let woken: Vec<(Target, Instant)> = woken;
        for (target, _) in woken {
            match target {
                Target::RabbitMq => self.rabbitmq.resume(),
                _ => self.redis.resume(),
            }
        }
    }

    fn mend(&mut self) {
        let now = Instant::now();
        self.wake_servers(Some(now));
        let Self { fleet, workers, aggregator, producer, has_produced, has_ended, .. } = self;
        for worker in workers {
            if let Some(code) = mend_post(worker, now, || fleet.worker().start()) {
                assert_eq!(code, Some(0), "a worker ended by itself, or not in order");
            }
        }
        if !*has_ended && let Some(code) = mend_post(aggregator, now, || fleet.aggregator().start()) {
            match code {
                Some(0 | 3) => *has_ended = true,
                // Stopped, and to be started again.
                Some(130) => {}
                other => panic!("the aggregator ended with {other:?}"),
            }
        }
        if !*has_produced && let Some(code) = mend_post(producer, now, || self::producer(fleet).start()) {
            match code {
                Some(0) => *has_produced = true,
                Some(1 | 130) => {}
                other => panic!("the producer ended with {other:?}"),
            }
        }
    }

    /// The storm is over: the run ends, and is judged.
    pub(super) fn finish(mut self) -> (Results, Report) {
        eventually(CALM, "the end of the run", || {
            self.mend();
            if self.has_ended && self.has_produced { Ok(()) } else { Err(self.state()) }
        });
        for mut double in std::mem::take(&mut self.doubles) {
            eventually(CALM, "the end of a second producer", || {
                if double.is_running() { Err(double.stderr()) } else { Ok(()) }
            });
        }
        self.wake_servers(None);
        for worker in &mut self.workers {
            worker.mended_at = worker.mended_at.map(|_| Instant::now());
        }
        // What came twice drains while workers live.
        let _ = within(CALM, || {
            self.mend();
            let queues = queues_of(&self.fleet.run, &self.rabbitmq);
            let keys = keys_of(&self.fleet.run, &self.redis);
            let is_empty = queues.values().all(|queue| queue.ready + queue.unacked == 0)
                && keys.values().all(|count| *count == 0);
            if is_empty { Ok(()) } else { Err(String::new()) }
        });
        let results = Results::read(&self.fleet.catalog.out());
        let stats = self.fleet.simulator.stats();
        let tokens = |name: &str| stats[name].as_u64().unwrap_or_else(|| panic!("{name}: {stats}"));
        // A token is a millionth of a dollar here, and a call that nobody saw the end of counts as all that it can cost.
        let billed = (tokens("prompt_tokens") + tokens("completion_tokens")) * 1_000;
        let spent = money(&self.fleet.run, &self.redis, "spent");
        assert!(spent >= billed, "{billed} were billed, and the ledger knows of {spent}");
        let report = examine(&Evidence {
            catalog: &self.fleet.catalog,
            results: &results,
            model: Some(&self.fleet.simulator),
            queues: queues_of(&self.fleet.run, &self.rabbitmq),
            keys: keys_of(&self.fleet.run, &self.redis),
        });
        (results, report)
    }

    fn state(&self) -> String {
        let lines = crate::support::results::journal_lines(&self.fleet.catalog.out());
        format!("{lines} lines, producer done: {}, aggregator done: {}", self.has_produced, self.has_ended)
    }
}

/// With a budget that nobody reaches: what calls hold is noted and given back in every step.
fn producer(fleet: &Fleet) -> Program {
    let job = "[llm]\nprices = { prompt = 1.0, completion = 1.0 }\n[limits]\nbudget = 1000.0\n";
    fleet.producer().arg("--job").arg(fleet.catalog.file("job.toml", job))
}

/// What is down already is left alone.
fn strike(post: &mut Post, blow: Blow, mended_at: Instant) {
    if post.mended_at.is_some() || post.ends_until.is_some() {
        return;
    }
    let Some(process) = &mut post.process else { return };
    if !process.is_running() {
        return;
    }
    match blow {
        Blow::Pause => {
            process.pause();
            post.is_paused = true;
        }
        Blow::Terminate => {
            process.terminate();
            post.ends_until = Some(Instant::now() + GRACE);
        }
        Blow::Kill | Blow::Double => {
            post.process.take().map(Running::kill9);
        }
    }
    post.mended_at = Some(mended_at);
}

/// Starts again what is due; the exit code of what has ended by itself or as it was told to.
fn mend_post(post: &mut Post, now: Instant, start: impl FnOnce() -> Running) -> Option<Option<i32>> {
    let is_due = post.mended_at.is_some_and(|at| at <= now);
    if post.is_paused && is_due {
        post.process.as_mut().expect("paused").resume();
        (post.is_paused, post.mended_at) = (false, None);
        return None;
    }
    let mut ended = None;
    if let Some(process) = post.process.as_mut().filter(|_| !post.is_paused)
        && !process.is_running()
    {
        let end = post.process.take().expect("there").wait(GRACE);
        // A producer that another one followed says so, and is run again.
        let was_followed = end.stderr.contains("another producer has taken over this run");
        let is_bad = !matches!(end.code, Some(0 | 3 | 130)) && !was_followed;
        assert!(!is_bad, "{end}");
        ended = Some(end.code);
        post.ends_until = None;
        post.mended_at.get_or_insert(now);
    }
    assert!(post.ends_until.is_none_or(|until| now < until), "did not end within its grace");
    if post.process.is_none()
        && post.mended_at.is_some_and(|at| at <= now)
        && !matches!(ended, Some(Some(0 | 3)))
    {
        post.process = Some(start());
        post.mended_at = None;
    }
    ended
}
