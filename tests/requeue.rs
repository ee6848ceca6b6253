//! Failed products that are put back to be asked otherwise: only they are, whichever task of theirs a worker gets, until
//! they are done or put back once more.

use serde_json::Value;
use shelfmill_pipeline::crash::Point;

use crate::support::{
    catalog::Catalog,
    checker::{Repeats, check},
    fleet::{DEADLINE, Fleet, ended},
    process::{Finished, Program, shelfmill},
    rabbitmq, redis,
    results::Results,
    simulator::Simulator,
    wait::eventually,
};

const DONE_WITH_FAILURES: i32 = 3;
/// Too short for any answer, also when it is doubled. The built-in job's model is asked.
const SHORT: &str = "[llm]\nmodel = \"small\"\nmax_output_tokens = 20\n[limits]\nabort_failure_rate = 1.0\n";
const OTHERWISE: [&str; 6] = ["--class", "truncated", "--max-output-tokens", "1000", "--model", "big"];

/// Calls that asked for this model.
fn asked_of(simulator: &Simulator, model: &str) -> u64 {
    simulator.stats()["by_model"][model].as_u64().unwrap_or(0)
}

#[track_caller]
fn all_failed(results: &Results, class: &str, products: usize) {
    assert_eq!(results.failures.len(), products);
    assert!(results.failures.iter().all(|line| line["failure"]["class"] == class), "{:?}", results.failures);
}

fn fingerprints(lines: &[Value]) -> Vec<(&Value, &Value)> {
    let mut found: Vec<_> = lines.iter().map(|line| (&line["seq"], &line["meta"]["fingerprint"])).collect();
    found.sort_by_key(|(seq, _)| seq.as_u64());
    found
}

impl Fleet {
    /// Every product has failed as truncated, and no worker is left.
    fn with_truncated(name: &str, products: usize, job: &str) -> Self {
        let fleet = Self::new(name, products, &[]);
        let job = fleet.catalog.file("job.toml", job);
        let workers = fleet.workers(1);
        ended(fleet.producer().arg("--job").arg(job).run(DEADLINE));
        fleet.aggregator().run(DEADLINE).expect_code(DONE_WITH_FAILURES);
        drop(workers);
        all_failed(&Results::read(&fleet.catalog.out()), "truncated", products);
        fleet
    }

    fn put_back(&self, options: &[&str]) -> Finished {
        ended(self.command("requeue").args(options).run(DEADLINE))
    }

    /// The producer reads the input once more, and publishes what is open: without a word of changes.
    fn published_anew(&self) {
        let job = self.catalog.file("job.toml", SHORT);
        ended(self.producer().arg("--job").arg(job).run(DEADLINE));
    }
}

#[test]
fn only_what_was_put_back_is_asked_otherwise_whoever_has_published_it() {
    let fleet = Fleet::with_truncated("otherwise", 40, SHORT);
    let before = Results::read(&fleet.catalog.out());
    let of_small = asked_of(&fleet.simulator, "small");
    let said = fleet.put_back(&OTHERWISE).stdout;
    assert!(said.contains("Put back 40 failed products"), "{said}");
    assert!(said.contains("otherwise than the job says: model big, up to 1000 output tokens"), "{said}");
    // Each product has two tasks now, one of which says nothing.
    fleet.published_anew();
    let workers = fleet.workers(2);
    ended(fleet.aggregator().run(DEADLINE));
    let results = fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert_eq!(results.journal.len(), 40);
    assert_eq!(asked_of(&fleet.simulator, "small"), of_small, "nobody asked as the job says");
    assert_eq!(asked_of(&fleet.simulator, "big"), 40);
    // Another model is another question.
    for (old, new) in fingerprints(&before.failures).iter().zip(fingerprints(&results.journal)) {
        assert!(old.0 == new.0 && old.1 != new.1, "{old:?} {new:?}");
    }
    drop(workers);
}

#[test]
fn requeue_and_a_worker_die_and_what_was_put_back_is_asked_otherwise() {
    for point in [Point::RequeueReopened, Point::RequeuePublished] {
        let fleet = Fleet::with_truncated("otherwise-dies", 20, SHORT);
        let of_small = asked_of(&fleet.simulator, "small");
        let dying = fleet.command("requeue").args(OTHERWISE).env("SHELFMILL_CRASH_AT", point.name());
        let end = dying.run(DEADLINE);
        assert!(end.stderr.contains(&format!("crash point {} reached", point.name())), "{end}");
        // What it has reopened is published by somebody who knows nothing of it.
        fleet.published_anew();
        fleet.put_back(&OTHERWISE);
        // A worker takes some of them with it.
        let end = fleet.worker().env("SHELFMILL_CRASH_AT", "worker.answered#3").run(DEADLINE);
        assert!(end.stderr.contains("crash point"), "{end}");
        let workers = fleet.workers(1);
        ended(fleet.aggregator().run(DEADLINE));
        fleet.assert_done_with(rabbitmq::shared(), redis::shared(), fleet.kills(1));
        assert_eq!(asked_of(&fleet.simulator, "small"), of_small, "{}", point.name());
        let of_big = asked_of(&fleet.simulator, "big");
        assert!((20..=20 + fleet.concurrency).contains(&of_big), "{of_big} at {}", point.name());
        drop(workers);
    }
}

/// Six attempts: the last waits are longer than a worker waits in place.
const PATIENT: &str =
    "[llm]\nmodel = \"small\"\nmax_output_tokens = 20\n[limits]\nmax_attempts = 6\nconcurrency = 1\n";

#[test]
fn changes_survive_a_delay_queue_and_a_failure_ends_them() {
    let mut fleet = Fleet::with_truncated("otherwise-later", 2, PATIENT);
    fleet.simulator = Simulator::start(&["--server-error", "1"]);
    let worker = fleet.worker().start();
    fleet.put_back(&OTHERWISE);
    eventually(DEADLINE, "a task in a delay queue", || {
        let queues = rabbitmq::shared().queues();
        let name = |delay: &str| format!("shelfmill.{}.retry.{delay}.v1", fleet.run);
        let waiting: u64 =
            ["5s", "30s"].iter().filter_map(|delay| queues.get(&name(delay))).map(|queue| queue.ready).sum();
        if waiting > 0 { Ok(()) } else { Err("none".to_owned()) }
    });
    fleet.aggregator().run(DEADLINE).expect_code(DONE_WITH_FAILURES);
    all_failed(&fleet.assert_done(rabbitmq::shared(), redis::shared()), "server_error", 2);
    assert_eq!((asked_of(&fleet.simulator, "big"), asked_of(&fleet.simulator, "small")), (12, 0));
    drop(worker);

    // Put back without options, they are asked as the job says.
    fleet.simulator = Simulator::start(&[]);
    fleet.put_back(&[]);
    let worker = fleet.worker().start();
    fleet.aggregator().run(DEADLINE).expect_code(DONE_WITH_FAILURES);
    all_failed(&Results::read(&fleet.catalog.out()), "truncated", 2);
    assert_eq!((asked_of(&fleet.simulator, "big"), asked_of(&fleet.simulator, "small")), (0, 4));
    drop(worker);
}

#[test]
fn a_model_that_is_not_there_fails_what_was_put_back_and_does_not_stop_the_run() {
    let mut fleet = Fleet::with_truncated("otherwise-typo", 10, SHORT);
    fleet.simulator = Simulator::start(&["--unknown-model", "bigg"]);
    fleet.put_back(&["--model", "bigg"]);
    let workers = fleet.workers(1);
    fleet.aggregator().run(DEADLINE).expect_code(DONE_WITH_FAILURES);
    let results = Results::read(&fleet.catalog.out());
    all_failed(&results, "model_not_found", 10);
    assert!(results.failures.iter().all(|line| line["meta"]["model"] == "bigg"), "{:?}", results.failures);
    assert_eq!(asked_of(&fleet.simulator, "bigg"), 10);
    fleet.put_back(&["--class", "model_not_found", "--max-output-tokens", "1000"]);
    ended(fleet.aggregator().run(DEADLINE));
    assert_eq!(fleet.assert_done(rabbitmq::shared(), redis::shared()).journal.len(), 10);
    drop(workers);
}

fn run(catalog: &Catalog, simulator: &Simulator, job: &str) -> Program {
    let command = shelfmill().arg("run").args(catalog.args());
    command.args(["--base-url", simulator.url()]).arg("--job").arg(catalog.file("job.toml", job))
}

fn put_back(catalog: &Catalog, options: &[&str]) -> Program {
    shelfmill().arg("requeue").arg("--out").arg(catalog.out()).args(options)
}

#[test]
fn it_is_the_same_in_one_process() {
    let (catalog, simulator) = (Catalog::of(30), Simulator::start(&["--latency", "20ms"]));
    let run = || run(&catalog, &simulator, SHORT).args(["--concurrency", "2"]);
    let asked = |model: &str| asked_of(&simulator, model);
    run().run(DEADLINE).expect_code(DONE_WITH_FAILURES);
    let of_small = asked("small");
    // The last word counts, also where there are several.
    let one = ["--id", "SM-000000", "--model"];
    ended(put_back(&catalog, &[&one[..], &["biggest"]].concat()).run(DEADLINE));
    run().run(DEADLINE).expect_code(DONE_WITH_FAILURES);
    assert_eq!(
        (asked("small"), asked("biggest")),
        (of_small, 2),
        "cut off, and once more with twice the room"
    );
    ended(put_back(&catalog, &one[..2]).run(DEADLINE));
    run().run(DEADLINE).expect_code(DONE_WITH_FAILURES);
    assert_eq!((asked("small"), asked("biggest")), (of_small + 2, 2), "without options as the job says");

    // Cut off in the middle, the rest is asked so by the next process.
    ended(put_back(&catalog, &OTHERWISE).run(DEADLINE));
    let dies = run().env("SHELFMILL_CRASH_AT", "aggregator.acked#2").run(DEADLINE);
    assert!(dies.stderr.contains("crash point"), "{dies}");
    let before = asked("big");
    assert!((1..30).contains(&before), "{before}");
    ended(run().run(DEADLINE));
    let results = check(&catalog, &simulator, Repeats::AtMost(20));
    assert_eq!(results.journal.len(), 30);
    assert_eq!((asked("small"), asked("biggest")), (of_small + 2, 2));
    // Done, nothing of it is left behind.
    assert!(!catalog.out().join(".shelfmill/requeued.jsonl").exists());
}

#[test]
fn a_budget_needs_the_price_of_the_other_model() {
    let prices = "[llm]\nmodel = \"small\"\nmax_output_tokens = 20\nprices = { prompt = 1, completion = 1 }\n\
                  [limits]\nabort_failure_rate = 1.0\nbudget = 100\n";
    let (catalog, simulator) = (Catalog::of(5), Simulator::start(&[]));
    let run = |job: &str| run(&catalog, &simulator, job);
    run(prices).run(DEADLINE).expect_code(DONE_WITH_FAILURES);
    let end = put_back(&catalog, &["--model", "big"]).run(DEADLINE).expect_code(2);
    assert!(end.stderr.contains("prices") && end.stderr.contains("--prices 0.40,1.60"), "{end}");
    assert_eq!(Results::read(&catalog.out()).failures.len(), 5, "nothing was put back");
    let priced = ["--id", "SM-000000", "--model", "big", "--max-output-tokens", "1000", "--prices", "10,20"];
    ended(put_back(&catalog, &priced).run(DEADLINE));
    run(prices).run(DEADLINE).expect_code(DONE_WITH_FAILURES);
    let line = &Results::read(&catalog.out()).journal[0];
    let tokens = simulator.stats()["by_product"]["SM-000000"].clone();
    let count = |kind: &str| tokens[kind].as_f64().unwrap();
    let failed = Results::read(&catalog.out()).failures;
    // Two calls at the old price and one at the new; the prompt is the same.
    let prompt = count("prompt_tokens") / 3.0;
    let cost =
        (2.0 * prompt + 20.0 + 40.0 + 10.0 * prompt + 20.0 * (count("completion_tokens") - 60.0)) / 1e6;
    assert!((line["meta"]["cost_usd"].as_f64().unwrap() - cost).abs() < 1e-9, "{line} {tokens}");
    assert_eq!(failed.len(), 4);

    // A budget that comes later: it fails, without a call, rather than being asked for nobody knows how much.
    let without = prices.replace("budget = 100\n", "");
    run(&without).run(DEADLINE).expect_code(DONE_WITH_FAILURES);
    ended(put_back(&catalog, &["--model", "big", "--max-output-tokens", "1000"]).run(DEADLINE));
    let before = simulator.calls();
    run(prices).run(DEADLINE).expect_code(DONE_WITH_FAILURES);
    assert_eq!(simulator.calls(), before);
    let results = Results::read(&catalog.out());
    all_failed(&results, "model_refused", 4);
    assert!(results.failures[0]["failure"]["message"].as_str().unwrap().contains("--prices"), "{results:?}");
    // Where the cost of some calls is not known, neither is the sum.
    run(&without).run(DEADLINE).expect_code(DONE_WITH_FAILURES);
    ended(put_back(&catalog, &["--model", "big", "--max-output-tokens", "1000"]).run(DEADLINE));
    ended(run(&without).run(DEADLINE));
    let results = check(&catalog, &simulator, Repeats::None);
    assert_eq!(results.summary["cost_usd"], Value::Null, "{}", results.summary);
}

#[test]
fn nonsense_is_refused_before_anything_is_changed() {
    let (catalog, simulator) = (Catalog::of(2), Simulator::start(&[]));
    let job = format!("{SHORT}\n").replace("[limits]", "context_window = 8000\n[limits]");
    run(&catalog, &simulator, &job).run(DEADLINE).expect_code(DONE_WITH_FAILURES);
    for (options, said) in [
        (&["--max-output-tokens", "0"][..], "--max-output-tokens"),
        (&["--max-output-tokens", "many"], "--max-output-tokens"),
        (&["--max-output-tokens", "9000"], "--max-output-tokens"),
        (&["--model", ""], "name"),
        (&["--model", "  "], "name"),
        (&["--timeout", "0"], "1 ms"),
        (&["--temperature", "2.5"], "from 0 to 2"),
        (&["--temperature", "hot"], "from 0 to 2"),
        (&["--prices", "1,2"], "--model"),
        (&["--model", "m", "--prices", "1"], "0.40,1.60"),
        (&["--model", "m", "--prices", "1,-2"], "0 or more"),
    ] {
        let end = put_back(&catalog, options).run(DEADLINE).expect_code(2);
        assert!(end.stderr.contains(said), "{options:?}: {end}");
    }
    assert_eq!(Results::read(&catalog.out()).failures.len(), 2);
    // What another command is told by a variable is not meant here.
    let said = ended(put_back(&catalog, &[]).env("SHELFMILL_MODEL", "big").run(DEADLINE)).stdout;
    assert!(!said.contains("otherwise"), "{said}");
    let help = ended(shelfmill().args(["requeue", "--help"]).run(DEADLINE)).stdout;
    assert!(help.contains("shelfmill requeue --class truncated --max-output-tokens 4096"), "{help}");
}
