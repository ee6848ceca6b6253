//! What roles tell Prometheus, against what the model and the lines say.

use std::collections::BTreeMap;

use crate::support::{
    fleet::{DEADLINE, Fleet, ended},
    http::{Answer, get},
    process::Running,
    rabbitmq, redis,
    wait::eventually,
};

/// By name and labels; what is told must be text that Prometheus can read.
#[track_caller]
fn told(process: &Running) -> BTreeMap<String, f64> {
    let Answer { code, head, body } = get(process, "/metrics");
    assert!(code == 200 && head.contains("application/openmetrics-text"), "{head}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    assert!(!body.contains("sk-canary"), "a key");
    let lines = body.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with("shelfmill_"), "{line}");
            (name.trim_end_matches("{}").to_owned(), value.parse().unwrap())
        })
        .collect()
}

#[test]
#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn what_is_counted_is_what_the_model_and_the_lines_say() {
    let fleet = Fleet::new(
        "metrics",
        300,
        &["--malformed", "0.1", "--latency", "300ms", "--api-key", "sk-canary-metrics"],
    );
    let job =
        "[llm]\nprices = { prompt = 1.0, completion = 1.0 }\n[limits]\nbudget = 7.5\nmax_attempts = 2\n";
    let job = fleet.catalog.file("job.toml", job);
    let worker =
        fleet.worker().env("OPENAI_API_KEY", "sk-canary-metrics").args(["--listen", "127.0.0.1:0"]).start();
    let producer = fleet.producer().arg("--job").arg(&job).args(["--listen", "127.0.0.1:0"]);
    ended(producer.run(DEADLINE));
    let aggregator = fleet.aggregator().args(["--listen", "127.0.0.1:0"]).start();
    let recorded = |found: &BTreeMap<String, f64>| {
        let count =
            |outcome: &str| found.get(&format!("shelfmill_recorded_products_total{{outcome=\"{outcome}\"}}"));
        count("completed").unwrap_or(&0.0) + count("failed").unwrap_or(&0.0)
    };
    eventually(DEADLINE, "figures of the run", || {
        let at_work = told(&aggregator);
        let is_told = recorded(&at_work) >= 1.0
            && at_work.get("shelfmill_budget_usd") == Some(&7.5)
            && at_work.get("shelfmill_run_products{state=\"expected\"}") == Some(&300.0)
            && at_work["shelfmill_journal_fsync_duration_seconds_count"] > 0.0;
        if is_told { Ok(()) } else { Err(format!("{at_work:?}")) }
    });
    aggregator.wait(DEADLINE);

    let results = fleet.assert_done(rabbitmq::shared(), redis::shared());
    let (stats, worked) = (fleet.simulator.stats(), told(&worker));
    let sum = |name: &str| -> f64 {
        worked.iter().filter(|(key, _)| key.split('{').next() == Some(name)).map(|(_, value)| value).sum()
    };
    let count = |name: &str| stats[name].as_u64().unwrap() as f64;
    assert_eq!(sum("shelfmill_calls_total"), count("calls"));
    assert_eq!(sum("shelfmill_call_duration_seconds_count"), count("calls"));
    assert_eq!(worked["shelfmill_tokens_total{kind=\"prompt\"}"], count("prompt_tokens"));
    assert_eq!(worked["shelfmill_tokens_total{kind=\"completion\"}"], count("completion_tokens"));
    let cost = results.summary["cost_usd"].as_f64().unwrap();
    assert!((worked["shelfmill_cost_usd_total"] - cost).abs() < 1e-6, "{cost}");
    assert_eq!(sum("shelfmill_products_total"), 300.0);
    let failed = results.failures.len() as f64;
    assert!(failed > 0.0, "some fail twice");
    assert_eq!(worked["shelfmill_products_total{outcome=\"failed\",class=\"malformed\"}"], failed);
    assert_eq!(sum("shelfmill_retries_total"), results.summary["calls"]["retries"].as_f64().unwrap());
    assert!(worked["shelfmill_last_progress_timestamp_seconds"] > 1.7e9);
    assert!(worked.keys().any(|key| key.starts_with("shelfmill_build_info{")), "{worked:?}");
}

#[test]
fn an_address_that_is_taken_is_told_before_anything_begins() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let fleet = Fleet::new("taken", 1, &[]);
    let address = taken.local_addr().unwrap().to_string();
    let end = fleet.worker().args(["--listen", &address]).run(DEADLINE).expect_code(1);
    assert!(
        end.stderr.contains(&format!("cannot listen on {address}")) && end.stderr.contains("--listen"),
        "{end}"
    );
}
