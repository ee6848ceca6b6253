//! A fleet's run: its catalog, its model, its processes, and what must hold of it in the end.

use std::time::Duration;

use serde_json::Value;

use super::{
    catalog::Catalog,
    checker::{Evidence, Repeats, examine, keys_of, queues_of},
    process::{Finished, Program, Running, shelfmill},
    rabbitmq::{self, Queue, RabbitMq},
    redis::{self, Redis},
    results::{Results, journal_lines},
    simulator::Simulator,
    wait::{eventually, within},
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
            run: crate::contract::fresh_run(run),
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

    /// Waits until as many workers have tasks, or wait for some.
    pub(crate) fn wait_for_consumers(&self, rabbitmq: &RabbitMq, workers: u64) {
        eventually(DEADLINE, "workers that take tasks", || match self.tasks(rabbitmq).consumers {
            found if found == workers => Ok(()),
            found => Err(format!("{found} of {workers}")),
        });
    }

    /// Waits until so many products are answered that no aggregator has recorded, then ends the workers: all is told.
    pub(crate) fn end_when_answered(&self, products: usize, workers: Vec<Running>) {
        let answers = format!("shelfmill:{{{}}}:answers", self.run);
        eventually(DEADLINE, "answers", || match redis::shared().cli(&["HLEN", &answers]) {
            found if found == products.to_string() => Ok(()),
            found => Err(format!("{found} of {products}")),
        });
        for mut worker in workers {
            worker.terminate();
            ended(worker.wait(DEADLINE));
        }
    }

    /// Empty as long as nobody has declared it.
    pub(crate) fn tasks(&self, rabbitmq: &RabbitMq) -> Queue {
        rabbitmq.queues().remove(&format!("shelfmill.{}.tasks.v1", self.run)).unwrap_or_default()
    }

    /// The promises hold, and nothing was paid twice.
    #[track_caller]
    pub(crate) fn assert_done(&self, rabbitmq: &RabbitMq, redis: &Redis) -> Results {
        self.assert_done_with(rabbitmq, redis, Repeats::None)
    }

    /// The promises hold, where so much may have been paid twice; tasks drain while workers live.
    #[track_caller]
    pub(crate) fn assert_done_with(&self, rabbitmq: &RabbitMq, redis: &Redis, repeats: Repeats) -> Results {
        let results = Results::read(&self.catalog.out());
        let queues = within(DEADLINE, || {
            let queues = queues_of(&self.run, rabbitmq);
            if queues.values().all(|queue| queue.ready + queue.unacked == 0) {
                Ok(queues)
            } else {
                Err(String::new())
            }
        });
        let evidence = Evidence {
            catalog: &self.catalog,
            results: &results,
            model: Some(&self.simulator),
            queues: queues.unwrap_or_else(|_| queues_of(&self.run, rabbitmq)),
            keys: keys_of(&self.run, redis),
        };
        examine(&evidence).assert_promises_hold(repeats);
        results
    }

    /// What is asked for again when the ledger is emptied now: claims are lost, and answers that are not yet on disk.
    pub(crate) fn forgotten_by_an_emptied_ledger(&self, redis: &Redis, workers: u64) -> Repeats {
        let answers = keys_of(&self.run, redis)["answers"];
        Repeats::UntoldAtMost(answers + 2 * workers * self.concurrency)
    }

    /// What so many kills of processes with this concurrency may have paid twice.
    pub(crate) fn kills(&self, kills: u64) -> Repeats {
        Repeats::AtMost(kills * self.concurrency)
    }
}

/// Ended well.
#[track_caller]
pub(crate) fn ended(finished: Finished) -> Finished {
    finished.expect_code(0)
}
