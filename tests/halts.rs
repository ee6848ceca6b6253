//! Runs that pause by themselves, rather than burn the catalog or the budget: each says why in one line, ends with exit code
//! 4, keeps what is done, and goes on when it is started again.

use std::time::Duration;

use serde_json::Value;

use crate::support::{
    catalog::Catalog,
    checker::{Repeats, check},
    fleet::{DEADLINE, Fleet, ended},
    process::{Finished, Program, shelfmill},
    rabbitmq, redis,
    results::Results,
    simulator::Simulator,
};

const PAUSED: i32 = 4;
/// Prices that make the arithmetic plain: a thousandth of a dollar per thousand tokens, read or written.
const PRICES: &str = "[llm]\nprices = { prompt = 1.0, completion = 1.0 }\nmax_output_tokens = 1000\n";

fn run(catalog: &Catalog, simulator: &Simulator) -> Program {
    shelfmill().arg("run").args(catalog.args()).args(["--base-url", simulator.url(), "--concurrency", "16"])
}

#[track_caller]
fn paused(finished: Finished, why: &str) -> Finished {
    let finished = finished.expect_code(PAUSED);
    let told: Vec<&str> = finished.stderr.lines().filter(|line| line.starts_with("Paused: ")).collect();
    assert!(told.len() == 1 && told[0].contains(why), "{finished}");
    finished
}

fn spent_usd(simulator: &Simulator) -> f64 {
    let stats = simulator.stats();
    let tokens = |name: &str| stats[name].as_u64().unwrap_or_else(|| panic!("{name}: {stats}"));
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let tokens = (tokens("prompt_tokens") + tokens("completion_tokens")) as f64;
    tokens / 1e6
}

#[test]
fn a_wrong_key_stops_the_run_before_it_begins() {
    let catalog = Catalog::of(10_000);
    let simulator = Simulator::start(&["--api-key", "sk-the-right-one-0123456789"]);
    let with_key = |key: &str| run(&catalog, &simulator).env("OPENAI_API_KEY", key);
    paused(with_key("sk-canary-of-a-wrong-key").run(DEADLINE), "refuses the key");
    assert!(simulator.calls() <= 16, "{} calls", simulator.calls());
    let summary: Value =
        serde_json::from_slice(&std::fs::read(catalog.out().join("analysis_summary.json")).unwrap()).unwrap();
    assert_eq!((&summary["status"], &summary["paused_because"]["cause"]), (&"paused".into(), &"key".into()));
    assert_eq!(summary["counts"]["failed"], 0, "{summary}");
    let refused = simulator.calls();
    ended(with_key("sk-the-right-one-0123456789").run(DEADLINE));
    assert_eq!(simulator.calls(), refused + 10_000);
    assert_eq!(Results::read(&catalog.out()).journal.len(), 10_000);
}

#[test]
fn a_product_that_is_always_refused_fails_alone() {
    let catalog = Catalog::of(60);
    let (refused, last) = (&catalog.ids[20], &catalog.ids[59]);
    let forbidden = format!("{refused},{last}");
    let simulator = Simulator::start(&["--forbid-products", &forbidden]);
    // One after the other, so that the last product is refused in a row, with nobody else's answer in between.
    let job = catalog.file("job.toml", "[limits]\nmax_attempts = 2\nconcurrency = 1\n");
    let run = || {
        let run = shelfmill().arg("run").args(catalog.args()).args(["--base-url", simulator.url()]);
        run.arg("--job").arg(&job)
    };
    let told = run().run(DEADLINE).expect_code(3);
    assert!(told.stderr.contains("unauthorized"), "{told}");
    let results = check(&catalog, &simulator, Repeats::None);
    let ids: Vec<&Value> = results.failures.iter().map(|line| &line["id"]).collect();
    assert_eq!(ids, [refused.as_str(), last.as_str()]);
    assert_eq!(results.failures[1]["meta"]["attempts"], 2);
    // Nor does it stop a run that goes on with it alone.
    shelfmill()
        .args(["requeue", "--class", "unauthorized", "--out"])
        .arg(catalog.out())
        .run(DEADLINE)
        .expect_code(0);
    run().run(DEADLINE).expect_code(3);
    assert_eq!(Results::read(&catalog.out()).failures.len(), 2);
}

#[test]
fn a_wrong_key_stops_a_whole_fleet_which_goes_on_with_the_right_one() {
    let fleet = Fleet::new("wrong-key", 2_000, &["--api-key", "sk-the-right-one-0123456789"]);
    let worker = |key: &str| fleet.worker().env("OPENAI_API_KEY", key);
    let wrong: Vec<_> = (0..2).map(|_| worker("sk-canary-of-a-wrong-key").start()).collect();
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    paused(aggregator.wait(DEADLINE), "refuses the key");
    assert!(fleet.simulator.calls() <= 2 * fleet.concurrency, "{} calls", fleet.simulator.calls());
    let progress = fleet.progress();
    assert!(progress["paused_because"].as_str().unwrap().contains("refuses the key"), "{progress}");
    paused(worker("sk-canary-of-a-wrong-key").arg("--until-done").run(DEADLINE), "refuses the key");
    let refused = fleet.simulator.calls();
    drop(wrong);
    let right = worker("sk-the-right-one-0123456789").start();
    let aggregator = fleet.aggregator();
    ended(fleet.producer().run(DEADLINE));
    ended(aggregator.run(DEADLINE));
    assert_eq!(fleet.simulator.calls(), refused + 2_000);
    assert_eq!(fleet.progress()["paused_because"], Value::Null);
    drop(right);
}

#[test]
fn a_run_never_exceeds_its_budget_and_goes_on_when_it_is_raised() {
    let catalog = Catalog::of(400);
    let simulator = Simulator::start(&["--latency", "20ms"]);
    let job = catalog.file("job.toml", PRICES);
    let with_budget = |usd: &str| run(&catalog, &simulator).arg("--job").arg(&job).args(["--budget", usd]);
    let mut before = 0;
    for usd in ["0.05", "0.10"] {
        paused(with_budget(usd).run(DEADLINE), "has no room for another call");
        let (budget, spent) = (usd.parse::<f64>().unwrap(), spent_usd(&simulator));
        assert!(spent <= budget && spent > budget - 0.005, "{spent} of {budget}");
        let results = Results::read(&catalog.out());
        assert!(results.journal.len() > before, "{}", results.journal.len());
        before = results.journal.len();
        assert_eq!(
            results.summary["cost_usd"].as_f64().map(|cost| (cost * 1e6).round()),
            Some((spent * 1e6).round())
        );
    }
    ended(with_budget("5").run(DEADLINE));
    let results = check(&catalog, &simulator, Repeats::None);
    assert_eq!(results.calls(), (400, 0));
}

#[test]
fn four_workers_share_one_budget() {
    let fleet =
        Fleet::new("budget", 600, &["--latency", "50ms", "--server-error", "0.05", "--malformed", "0.05"]);
    let job = fleet.catalog.file("job.toml", PRICES);
    let producer = |usd: &str| fleet.producer().arg("--job").arg(&job).args(["--budget", usd]);
    let workers = fleet.workers(4);
    let aggregator = fleet.aggregator().start();
    ended(producer("0.10").run(DEADLINE));
    paused(aggregator.wait(DEADLINE), "has no room for another call");
    let spent = spent_usd(&fleet.simulator);
    assert!(spent <= 0.10 && spent > 0.095, "{spent}");
    let aggregator = fleet.aggregator().start();
    // It may find the run still paused.
    let first = producer("10").run(DEADLINE);
    ended(first);
    let end = aggregator.wait(DEADLINE);
    if end.code == Some(PAUSED) {
        ended(fleet.aggregator().run(DEADLINE));
    } else {
        end.expect_code(0);
    }
    let results = fleet.assert_done(rabbitmq::shared(), redis::shared());
    let cost = results.summary["cost_usd"].as_f64().unwrap();
    assert!((cost - spent_usd(&fleet.simulator)).abs() < 1e-6, "{cost} {}", spent_usd(&fleet.simulator));
    drop(workers);
}

#[test]
fn a_budget_without_prices_is_refused() {
    let catalog = Catalog::of(1);
    let simulator = Simulator::start(&[]);
    let end = run(&catalog, &simulator).args(["--budget", "5"]).run(DEADLINE).expect_code(2);
    assert!(end.stderr.contains("a budget needs prices"), "{end}");
    // Nor does the simulator cost what the model does that it stands in for.
    let simulated = shelfmill().arg("run").args(catalog.args()).args(["--simulate", "--budget", "5"]);
    let end = simulated.run(DEADLINE).expect_code(2);
    assert!(end.stderr.contains("those of simulated are not known"), "{end}");
}

#[test]
fn a_run_pauses_when_most_products_fail_and_tells_why_with_an_example() {
    let catalog = Catalog::of(3_000);
    let simulator = Simulator::start(&["--bad-request", "0.9", "--latency", "10ms"]);
    let end = paused(run(&catalog, &simulator).run(DEADLINE), "model_refused");
    assert!(end.stderr.contains("products failed: model_refused"), "{end}");
    assert!(end.stderr.contains("such as \"SM-"), "{end}");
    let failed = Results::read(&catalog.out()).failures.len();
    assert!((40..600).contains(&failed), "{failed} failed");
    let end = run(&catalog, &simulator).args(["--abort-failure-rate", "1"]).run(Duration::from_secs(60));
    end.expect_code(3);
}

#[test]
fn a_worker_elsewhere_needs_prices_for_the_budget() {
    let fleet = Fleet::new("unpriced", 3, &[]);
    // Of the built-in model the price is known where its provider answers, and nowhere else.
    ended(fleet.producer().args(["--budget", "5"]).env("OPENAI_API_KEY", "sk-nobodys").run(DEADLINE));
    let worker = fleet.worker().run(DEADLINE).expect_code(2);
    assert!(worker.stderr.contains("a budget needs prices"), "{worker}");
    assert_eq!(fleet.simulator.calls(), 0);
}
