//! How many tasks a worker takes: more than it may make calls where they take milliseconds, and few more where they do not.

use crate::support::{
    fleet::{DEADLINE, Fleet, ended},
    rabbitmq, redis,
    results::journal_lines,
    wait::eventually,
};

const CONCURRENCY: u64 = 8;
/// What a worker with so many places has, where calls take their time: those, a quarter more, as many that are to be told, and one.
const FEW: u64 = 13;

#[test]
fn where_calls_are_quick_more_tasks_are_taken_and_no_more_calls_made_at_once_by_any_way() {
    let fleet = Fleet { concurrency: CONCURRENCY, ..Fleet::new("ahead", 10_000, &[]) };
    let way = |name: &str| {
        let url = fleet.simulator.url();
        format!("[[llm.endpoints]]\nname = \"{name}\"\nbase_url = \"{url}\"\napi_keys = []\n")
    };
    let job = fleet.catalog.file("job.toml", &(way("one") + &way("other") + &way("third")));
    let worker = fleet.command("worker").args(["-c", &CONCURRENCY.to_string()]).start();
    let aggregator = fleet.aggregator().start();
    let producer = fleet.producer().arg("--job").arg(job).start();
    eventually(DEADLINE, "tasks beyond those that have calls", || {
        match fleet.tasks(rabbitmq::shared()).unacked {
            many if many > 2 * FEW => Ok(()),
            few => Err(few.to_string()),
        }
    });
    ended(producer.wait(DEADLINE));
    ended(aggregator.wait(DEADLINE));
    fleet.assert_done(rabbitmq::shared(), redis::shared());
    let most = fleet.simulator.stats()["max_in_flight"].as_u64().unwrap();
    assert!((2..=CONCURRENCY).contains(&most), "{most} calls at once");
    drop(worker);
}

#[test]
fn where_calls_take_their_time_few_tasks_wait_for_one() {
    let fleet = Fleet { concurrency: CONCURRENCY, ..Fleet::new("not-ahead", 150, &["--latency", "200ms"]) };
    let worker = fleet.worker().start();
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    let mut most = 0;
    eventually(DEADLINE, "most of the lines", || {
        most = most.max(fleet.tasks(rabbitmq::shared()).unacked);
        match journal_lines(&fleet.catalog.out()) {
            100.. => Ok(()),
            lines => Err(lines.to_string()),
        }
    });
    assert!((CONCURRENCY..=FEW).contains(&most), "{most} tasks");
    ended(aggregator.wait(DEADLINE));
    fleet.assert_done(rabbitmq::shared(), redis::shared());
    drop(worker);
}
