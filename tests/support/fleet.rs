//! A fleet's run: its catalog, its model, its processes, and what must hold of it in the end.

use std::time::Duration;

use serde_json::Value;

use super::{
    catalog::Catalog,
    process::{Finished, Program, Running, shelfmill},
    rabbitmq::{self, RabbitMq},
    redis::{self, Redis},
    results::{Results, journal_lines},
    simulator::Simulator,
    wait::eventually,
};

/// Generous: only a test that fails uses it up.
pub(crate) const DEADLINE: Duration = Duration::from_secs(180);

/// A fleet's run: where its processes meet, and what they work on.
pub(crate) struct Fleet {
    pub(crate) run: String,
    pub(crate) amqp_url: String,
    pub(crate) redis_url: String,
    pub(crate) catalog: Catalog,
    pub(crate) simulator: Simulator,
    pub(crate) concurrency: u64,
}

impl Fleet {
    pub(crate) fn new(run: &str, products: usize, simulator: &[&str]) -> Self {
        Self {
            run: format!("{run}-{}", std::process::id()),
            amqp_url: rabbitmq::shared().url(),
            redis_url: redis::shared().url(),
            catalog: Catalog::of(products),
            simulator: Simulator::start(simulator),
            concurrency: 16,
        }
    }

    pub(crate) fn command(&self, name: &str) -> Program {
        shelfmill()
            .arg(name)
            .args(["--run", &self.run])
            .env("SHELFMILL_AMQP_URL", &self.amqp_url)
            .env("SHELFMILL_REDIS_URL", &self.redis_url)
    }

    pub(crate) fn producer(&self) -> Program {
        self.command("producer").arg(self.catalog.input())
    }

    pub(crate) fn worker(&self) -> Program {
        // The model's place is the worker's own business here, as its key would be.
        self.command("worker")
            .env("OPENAI_BASE_URL", self.simulator.url())
            .args(["-c", &self.concurrency.to_string()])
    }

    pub(crate) fn workers(&self, count: usize) -> Vec<Running> {
        (0..count).map(|_| self.worker().start()).collect()
    }

    pub(crate) fn aggregator(&self) -> Program {
        self.command("aggregator").arg("--out").arg(self.catalog.out())
    }

    pub(crate) fn progress(&self) -> Value {
        serde_json::from_str(&self.command("progress").arg("--json").run(DEADLINE).expect_code(0).stdout)
            .unwrap()
    }

    /// Waits until the journal has so many lines.
    pub(crate) fn wait_for_lines(&self, lines: usize) {
        eventually(DEADLINE, "lines in the journal", || match journal_lines(&self.catalog.out()) {
            found if found >= lines => Ok(()),
            found => Err(format!("{found} of {lines}")),
        });
    }

    /// Every product once; nothing left in claims, answers and dead letters; tasks drain while workers live.
    pub(crate) fn assert_done(&self, rabbitmq: &RabbitMq, redis: &Redis) -> Results {
        let results = Results::read(&self.catalog.out());
        results.assert_every_product_once(&self.catalog);
        eventually(DEADLINE, "the queues to be empty", || {
            let queues = rabbitmq.queues();
            let mine =
                queues.iter().filter(|(name, _)| name.starts_with(&format!("shelfmill.{}.", self.run)));
            let left: Vec<_> = mine.filter(|(_, queue)| queue.ready + queue.unacked > 0).collect();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        });
        for what in ["claims", "answers"] {
            let left = redis.cli(&["HLEN", &format!("shelfmill:{{{}}}:{what}", self.run)]);
            assert_eq!(left.trim(), "0", "{what} left behind");
        }
        results
    }
}

/// Ended well.
#[track_caller]
pub(crate) fn ended(finished: Finished) -> Finished {
    finished.expect_code(0)
}
