//! One limit for the fleet: what the provider allows is what all workers together take, whether the job names it or the
//! provider's refusals teach it. The full-size measurements are in `proofs`.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::support::{
    fleet::{DEADLINE, Fleet, ended},
    rabbitmq, redis,
};

/// Workers of each run.
const WORKERS: usize = 4;

/// What a provider with a limit has seen.
#[derive(Debug)]
struct Seen {
    calls: u64,
    refused: u64,
    /// Answers a second, from the tenth second on.
    per_second: f64,
}

/// A run of these products against a provider with a hard limit of so many requests a second.
fn run(name: &str, (products, concurrency): (usize, u64), limit: &str, options: &[&str], job: &str) -> Seen {
    let mut simulator = vec!["--latency", "100ms", "--max-requests-per-second", limit];
    simulator.extend(options);
    let fleet = Fleet { concurrency, ..Fleet::new(name, products, &simulator) };
    let job = fleet.catalog.file("job.toml", job);
    let workers = fleet.workers(WORKERS);
    ended(fleet.producer().arg("--job").arg(&job).run(DEADLINE));
    ended(fleet.aggregator().run(Duration::from_secs(600)));
    let results = fleet.assert_done(rabbitmq::shared(), redis::shared());
    drop(workers);
    let stats = fleet.simulator.stats();
    let count = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("no count in {stats}"));
    let at = |line: &Value| line["meta"]["completed_at"].as_str().unwrap().parse::<Timestamp>().unwrap();
    let mut times: Vec<f64> =
        results.journal.iter().map(|line| at(line).as_millisecond() as f64 / 1_000.0).collect();
    times.sort_unstable_by(f64::total_cmp);
    let (from, last) = (times[0] + 10.0, times[times.len() - 1]);
    let after = times.iter().filter(|time| **time > from).count();
    let seen = Seen {
        calls: count(&stats["calls"]),
        refused: count(&stats["faults"]["over_limit"]),
        per_second: after as f64 / (last - from),
    };
    println!("{name}, {limit} a second: {seen:?}");
    seen
}

const SMALL: (usize, u64) = (1_500, 100);
const NAMED: &str = "[limits]\nrequests_per_minute = 12000\n";

#[test]
fn four_workers_keep_to_a_limit_that_the_job_names() {
    let seen = run("named-limit", SMALL, "200", &["--no-limit-headers"], NAMED);
    assert!(seen.refused * 100 < seen.calls, "{seen:?}");
}

#[test]
fn four_workers_learn_a_limit_from_what_the_provider_says() {
    let seen = run("told-limit", SMALL, "200", &[], "");
    assert!(seen.refused * 5 < seen.calls, "{seen:?}");
}

#[test]
fn four_workers_learn_a_limit_from_refusals_alone() {
    let seen = run("learned-limit", SMALL, "200", &["--no-limit-headers"], "");
    assert!(seen.refused * 4 < seen.calls, "{seen:?}");
}

mod proofs {
    use super::*;

    const FULL: (usize, u64) = (5_000, 200);

    #[test]
    #[ignore = "full size: run by `make prove`"]
    fn a_named_limit_is_used_and_kept() {
        let job = "[limits]\nrequests_per_minute = 3000\n";
        let seen = run("named", FULL, "50", &["--no-limit-headers"], job);
        assert!(seen.refused * 100 < seen.calls && seen.per_second > 45.0, "{seen:?}");
    }

    #[test]
    #[ignore = "full size: run by `make prove`"]
    fn a_limit_that_nobody_named_is_learned_from_refusals() {
        let seen = run("learned", FULL, "50", &["--no-limit-headers"], "");
        assert!(seen.refused * 20 < seen.calls && seen.per_second > 40.0, "{seen:?}");
    }

    #[test]
    #[ignore = "full size: run by `make prove`"]
    fn a_limit_is_learned_from_what_the_provider_says() {
        let seen = run("told", FULL, "50", &[], "");
        assert!(seen.refused * 20 < seen.calls && seen.per_second > 40.0, "{seen:?}");
    }
}
