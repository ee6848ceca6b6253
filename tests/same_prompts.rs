//! `--dedupe-prompts`: products with equal prompts are asked for once, whoever has them, and whoever dies.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::PathBuf,
};

use serde_json::Value;

use crate::support::{
    catalog::Catalog,
    checker::{Repeats, check},
    fleet::{DEADLINE, Fleet, ended},
    process::{Program, shelfmill},
    rabbitmq, redis,
    results::{Results, id, journal_lines},
    simulator::Simulator,
    wait::eventually,
};

const TEXTS: usize = 100;
const SIGABRT: i32 = 6;

const JOB: &str = "[prompt]\nuser = \"Describe {{ product.title }}\"\n[limits]\nabort_failure_rate = 1.0\n";

/// These products get titles of which there are only so many, and a job that shows the model nothing else.
fn with_texts(catalog: &Catalog) -> PathBuf {
    let mut text = String::new();
    for (number, id) in catalog.ids.iter().enumerate() {
        let title = format!("Kettle no. {}", number % TEXTS);
        writeln!(text, "{}", serde_json::json!({ "id": id, "title": title, "price": number })).unwrap();
    }
    catalog.file("products.jsonl", &text);
    catalog.file("job.toml", JOB)
}

fn run(catalog: &Catalog, simulator: &Simulator, job: &PathBuf) -> Program {
    let options = ["--base-url", simulator.url(), "--concurrency", "32", "--dedupe-prompts"];
    shelfmill().arg("run").args(catalog.args()).args(options).arg("--job").arg(job)
}

fn fleet(name: &str, products: usize, simulator: &[&str]) -> (Fleet, PathBuf) {
    let fleet = Fleet { concurrency: 32, ..Fleet::new(name, products, simulator) };
    let job = with_texts(&fleet.catalog);
    (fleet, job)
}

fn producer(fleet: &Fleet, job: &PathBuf) -> Program {
    fleet.producer().arg("--dedupe-prompts").arg("--job").arg(job)
}

fn title(line: &Value) -> &str {
    line["product"]["title"].as_str().expect("a title")
}

/// Every product that was not asked for says whose answer it has, costs nothing, and has that answer; the summary counts
/// them. How many there are.
#[track_caller]
fn saved(results: &Results) -> u64 {
    let lines: BTreeMap<&str, &Value> = results.journal.iter().map(|line| (id(line), line)).collect();
    let mut saved = 0;
    for line in &results.journal {
        let meta = &line["meta"];
        let Some(other) = meta["same_prompt_as"].as_str() else { continue };
        saved += 1;
        assert_eq!(
            (title(lines[other]), &lines[other]["analysis"]),
            (title(line), &line["analysis"]),
            "{line}"
        );
        assert_ne!(other, id(line));
        if meta["attempts"] == 0 {
            let free = ["prompt_tokens", "completion_tokens", "latency_ms"];
            assert!(free.iter().all(|field| meta[field] == 0) && meta["cost_usd"] == 0.0, "{line}");
        }
    }
    assert_eq!(results.summary["calls"]["saved"], saved, "{}", results.summary);
    saved
}

/// What the model was sent is what the lines tell.
#[track_caller]
fn assert_all_calls_told(results: &Results, simulator: &Simulator) {
    let stats = simulator.stats();
    let sum = |field: &str| -> u64 {
        let lines = results.journal.iter().chain(&results.failures);
        lines.map(|line| line["meta"][field].as_u64().unwrap()).sum()
    };
    assert_eq!(stats["calls"], sum("attempts"), "{stats}");
    assert_eq!(stats["prompt_tokens"], sum("prompt_tokens"), "{stats}");
    assert_eq!(stats["completion_tokens"], sum("completion_tokens"), "{stats}");
}

#[test]
fn a_run_in_one_process_asks_for_each_text_once_also_when_it_goes_on() {
    let (catalog, simulator) = (Catalog::of(1_000), Simulator::start(&["--latency", "50ms"]));
    let job = with_texts(&catalog);
    let end = ended(run(&catalog, &simulator, &job).run(DEADLINE));
    assert!(end.stderr.contains("Calls: 100 (0 retries, 900 saved by equal prompts)"), "{end}");
    let results = check(&catalog, &simulator, Repeats::None);
    assert_eq!((simulator.calls(), results.journal.len(), saved(&results)), (100, 1_000, 900));
    assert_all_calls_told(&results, &simulator);
    assert!(results.summary["latency_ms"]["p50"].as_u64().unwrap() >= 50, "{}", results.summary);

    // What was answered is known to the next process, too.
    ended(run(&catalog, &simulator, &job).run(DEADLINE));
    let catalog = catalog.with(0..1_200);
    with_texts(&catalog);
    ended(run(&catalog, &simulator, &job).run(DEADLINE));
    let results = check(&catalog, &simulator, Repeats::None);
    assert_eq!((simulator.calls(), results.journal.len(), saved(&results)), (100, 1_200, 1_100));
}

#[test]
fn a_fleet_asks_for_each_text_once_also_when_it_goes_on() {
    let (fleet, job) = fleet("same-prompts", 1_000, &["--latency", "300ms"]);
    let workers = fleet.workers(3);
    let aggregator = fleet.aggregator().start();
    ended(producer(&fleet, &job).run(DEADLINE));
    ended(aggregator.wait(DEADLINE));
    let results = fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert_eq!((fleet.simulator.calls(), results.journal.len(), saved(&results)), (100, 1_000, 900));
    assert_all_calls_told(&results, &fleet.simulator);
    let workers_of: BTreeSet<_> =
        results.journal.iter().map(|line| line["meta"]["worker"].to_string()).collect();
    assert_eq!(workers_of.len(), 3);

    let fleet = Fleet { catalog: fleet.catalog.with(0..1_200), ..fleet };
    with_texts(&fleet.catalog);
    ended(producer(&fleet, &job).run(DEADLINE));
    ended(fleet.aggregator().run(DEADLINE));
    let results = fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert_eq!((fleet.simulator.calls(), results.journal.len(), saved(&results)), (100, 1_200, 1_100));
    drop(workers);
}

#[test]
fn one_text_for_all_products_holds_nobody_up() {
    // Every place but one is taken by those who wait, for longer than they may.
    let (mut fleet, _) = fleet("one-text", 200, &["--latency", "4s"]);
    let job = fleet.catalog.file("job.toml", "[prompt]\nuser = \"Say something\"\n");
    fleet.concurrency = 8;
    let workers = fleet.workers(2);
    let aggregator = fleet.aggregator().start();
    ended(producer(&fleet, &job).run(DEADLINE));
    ended(aggregator.wait(DEADLINE));
    let results = fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert_eq!((fleet.simulator.calls(), results.summary["calls"]["saved"].as_u64()), (1, Some(199)));
    drop(workers);
}

#[test]
fn a_worker_is_killed_and_its_texts_are_asked_for_by_others() {
    let (fleet, job) = fleet("same-prompts-kill", 1_000, &["--latency", "1s"]);
    let mut workers = fleet.workers(3);
    let aggregator = fleet.aggregator().start();
    ended(producer(&fleet, &job).run(DEADLINE));
    eventually(DEADLINE, "calls under way", || match fleet.simulator.calls() {
        calls if calls >= 40 => Ok(()),
        calls => Err(calls.to_string()),
    });
    assert_eq!(workers.remove(0).kill9().signal, Some(9));
    ended(aggregator.wait(DEADLINE));
    let results = fleet.assert_done_with(rabbitmq::shared(), redis::shared(), fleet.kills(1));
    let (calls, saved) = (fleet.simulator.calls(), saved(&results));
    assert!((100..=100 + fleet.concurrency).contains(&calls), "{calls} calls");
    assert!((900 - fleet.concurrency..=900 + fleet.concurrency).contains(&saved), "{saved} saved");
    assert!(results.calls().0 >= calls, "{:?} told of {calls}", results.calls());
    drop(workers);
}

#[test]
fn a_run_in_one_process_is_killed_and_goes_on() {
    let (catalog, simulator) = (Catalog::of(1_000), Simulator::start(&["--latency", "200ms"]));
    let job = with_texts(&catalog);
    let running = run(&catalog, &simulator, &job).start();
    eventually(DEADLINE, "some progress", || match journal_lines(&catalog.out()) {
        0 => Err("no line".to_owned()),
        _ => Ok(()),
    });
    assert_eq!(running.kill9().signal, Some(9));
    ended(run(&catalog, &simulator, &job).run(DEADLINE));
    let results = check(&catalog, &simulator, Repeats::AtMost(32));
    saved(&results);
    // Answers that were not yet on disk are found among the prompts': only calls under way are made again.
    assert!(simulator.calls() <= 132, "{} calls", simulator.calls());
}

#[test]
fn an_answer_that_is_kept_for_others_only_is_found_by_its_own_product() {
    let (fleet, job) = fleet("same-prompts-crash", 300, &["--latency", "300ms"]);
    let aggregator = fleet.aggregator().start();
    ended(producer(&fleet, &job).run(DEADLINE));
    let end = fleet.worker().env("SHELFMILL_CRASH_AT", "worker.shared#20").run(DEADLINE);
    assert_eq!(end.signal, Some(SIGABRT), "{end}");
    let workers = fleet.workers(2);
    ended(aggregator.wait(DEADLINE));
    let results = fleet.assert_done_with(rabbitmq::shared(), redis::shared(), fleet.kills(1));
    assert_own_answer_found(&results);
    drop(workers);

    let (catalog, simulator) = (Catalog::of(300), Simulator::start(&["--latency", "50ms"]));
    let job = with_texts(&catalog);
    let end = run(&catalog, &simulator, &job).env("SHELFMILL_CRASH_AT", "worker.shared#20").run(DEADLINE);
    assert_eq!(end.signal, Some(SIGABRT), "{end}");
    ended(run(&catalog, &simulator, &job).run(DEADLINE));
    let results = check(&catalog, &simulator, Repeats::AtMost(32));
    assert_own_answer_found(&results);
}

/// The product that was asked for is not one that was saved, and its line tells of the call that was lost.
#[track_caller]
fn assert_own_answer_found(results: &Results) {
    saved(results);
    let found: Vec<_> = results
        .journal
        .iter()
        .filter(|line| line["meta"]["attempts"] == 0 && line["meta"]["same_prompt_as"].is_null())
        .collect();
    assert!(!found.is_empty(), "nobody found its own answer");
    assert!(found.iter().all(|line| line["meta"]["repeated_calls"] == 1), "{found:#?}");
}

/// The next product asks; each one that failed is told.
#[track_caller]
fn assert_failures_are_not_shared(results: &Results, simulator: &Simulator) {
    saved(results);
    assert_all_calls_told(results, simulator);
    assert!(!results.failures.is_empty());
    assert!(results.failures.iter().all(|line| line["meta"]["attempts"].as_u64() > Some(0)));
    let asked: Vec<_> =
        results.journal.iter().filter(|line| line["meta"]["attempts"] != 0).map(title).collect();
    assert_eq!(asked.len(), asked.iter().collect::<BTreeSet<_>>().len(), "a text was answered twice");
    assert_eq!(simulator.stats()["answers"], TEXTS);
}

#[test]
fn a_text_that_failed_is_asked_for_by_the_next_product() {
    let faults = ["--bad-request", "0.3", "--server-error", "0.1", "--latency", "10ms"];
    let (catalog, simulator) = (Catalog::of(1_000), Simulator::start(&faults));
    let job = with_texts(&catalog);
    run(&catalog, &simulator, &job).run(DEADLINE).expect_code(3);
    assert_failures_are_not_shared(&check(&catalog, &simulator, Repeats::None), &simulator);

    let (fleet, job) = fleet("same-prompts-faults", 1_000, &faults);
    let workers = fleet.workers(3);
    let aggregator = fleet.aggregator().start();
    ended(producer(&fleet, &job).run(DEADLINE));
    aggregator.wait(DEADLINE).expect_code(3);
    let results = fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert_failures_are_not_shared(&results, &fleet.simulator);
    drop(workers);
}

#[test]
fn a_rate_limit_is_kept_and_each_text_answered_once() {
    let (fleet, job) = fleet("same-prompts-rate", 1_000, &["--max-requests-per-second", "20"]);
    let workers = fleet.workers(3);
    let aggregator = fleet.aggregator().start();
    ended(producer(&fleet, &job).run(DEADLINE));
    ended(aggregator.wait(DEADLINE));
    let results = fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert_eq!((saved(&results), &fleet.simulator.stats()["answers"]), (900, &100.into()));
    assert_all_calls_told(&results, &fleet.simulator);
    drop(workers);
}

#[test]
fn a_prompt_with_the_id_in_it_is_refused_and_one_that_seems_to_have_it_is_told() {
    let (catalog, simulator) = (Catalog::of(3), Simulator::start(&[]));
    let built_in = shelfmill().arg("run").args(catalog.args()).args(["--base-url", simulator.url()]);
    let end = built_in.arg("--dedupe-prompts").run(DEADLINE).expect_code(2);
    assert!(end.stderr.contains("the built-in one"), "{end}");
    let job = catalog
        .file("whole.toml", "[prompt]\nuser = \"{{ product | tojson }}\"\n[limits]\ndedupe_prompts = true\n");
    let end = ended(run(&catalog, &simulator, &job).run(DEADLINE));
    assert!(end.stderr.contains("saves no call"), "{end}");
    assert_eq!(simulator.calls(), 3);
}

#[test]
fn without_the_option_nothing_is_kept_and_each_product_is_asked_for() {
    let (fleet, job) = fleet("equal-and-asked", 150, &[]);
    let workers = fleet.workers(1);
    ended(fleet.producer().arg("--job").arg(&job).run(DEADLINE));
    ended(fleet.aggregator().run(DEADLINE));
    let results = fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert_eq!((fleet.simulator.calls(), saved(&results)), (150, 0));
    assert_eq!(redis::shared().cli(&["EXISTS", &format!("shelfmill:{{{}}}:prompts", fleet.run)]), "0");
    drop(workers);
}
