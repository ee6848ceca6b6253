//! Retries that wait elsewhere: they hold no place, are mixed with new work, and keep count of their attempts.

use std::time::Duration;

use crate::support::{
    catalog::Catalog,
    checker::{Repeats, check},
    fleet::{DEADLINE, Fleet, ended},
    process::shelfmill,
    rabbitmq, redis,
    results::Results,
    simulator::Simulator,
    wait::eventually,
};

/// Six attempts: the last waits are longer than a worker waits in place.
const JOB: &str =
    "[prompt]\nuser = \"Describe {{ product.title }}\"\n[limits]\nmax_attempts = 6\nconcurrency = 1\n";

fn all_failed_after_six_attempts(results: &Results) {
    for line in &results.failures {
        assert_eq!(
            (&line["failure"]["class"], &line["meta"]["attempts"]),
            (&"server_error".into(), &6.into())
        );
    }
    assert_eq!(results.failures.len(), 3);
}

#[test]
fn a_long_wait_frees_the_place_and_spends_no_extra_attempt() {
    let mut fleet = Fleet::new("backoff", 3, &["--server-error", "1"]);
    fleet.concurrency = 1;
    let job = fleet.catalog.file("job.toml", JOB);
    let worker = fleet.worker().start();
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().arg("--job").arg(job).run(DEADLINE));
    eventually(DEADLINE, "tasks in a delay queue while the only place is taken", || {
        let queues = rabbitmq::shared().queues();
        let waiting: u64 = ["5s", "30s"]
            .map(|delay| {
                queues
                    .get(&format!("shelfmill.{}.retry.{delay}.v1", fleet.run))
                    .map_or(0, |queue| queue.ready)
            })
            .iter()
            .sum();
        // Five attempts of the first, and the second has begun.
        if waiting > 0 && fleet.simulator.calls() > 5 { Ok(()) } else { Err(format!("{waiting} waiting")) }
    });
    aggregator.wait(DEADLINE).expect_code(3);
    all_failed_after_six_attempts(&fleet.assert_done(rabbitmq::shared(), redis::shared()));
    assert_eq!(fleet.simulator.calls(), 18);
    drop(worker);
}

#[test]
fn it_is_the_same_in_one_process() {
    let (catalog, simulator) = (Catalog::of(3), Simulator::start(&["--server-error", "1"]));
    let job = catalog.file("job.toml", JOB);
    let run = shelfmill().arg("run").args(catalog.args()).args(["--base-url", simulator.url()]);
    let end = run.arg("--job").arg(job).run(DEADLINE).expect_code(3);
    all_failed_after_six_attempts(&check(&catalog, &simulator, Repeats::None));
    assert_eq!(simulator.calls(), 18);
    // One after the other in place, three products would wait for at least 3 x (0.25 + 0.5 + 1 + 2 + 4) s.
    assert!(end.elapsed < Duration::from_secs(60), "{end}");
}

#[test]
fn a_rate_limit_pauses_everybody_and_spends_no_attempt() {
    let fleet = Fleet::new("paused", 150, &["--max-requests-per-second", "20", "--no-limit-headers"]);
    let job = fleet
        .catalog
        .file("job.toml", "[prompt]\nuser = \"Describe {{ product.title }}\"\n[limits]\nmax_attempts = 1\n");
    let workers = fleet.workers(2);
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().arg("--job").arg(job).run(DEADLINE));
    // With one attempt for each, a limit that counted would have failed most of them.
    ended(aggregator.wait(DEADLINE));
    fleet.assert_done(rabbitmq::shared(), redis::shared());
    assert!(fleet.simulator.stats()["faults"]["over_limit"].as_u64().unwrap() > 0);
    drop(workers);
}
