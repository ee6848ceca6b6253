//! What a model's server does not understand is found out once per run, whoever finds it out.

use std::collections::BTreeSet;

use crate::support::{
    fleet::{DEADLINE, Fleet, ended},
    rabbitmq, redis,
    results::Results,
    wait::eventually,
};

fn refused(fleet: &Fleet) -> u64 {
    fleet.simulator.stats()["rejected"].as_u64().unwrap()
}

#[test]
fn workers_that_start_later_ask_as_the_first_has_learned() {
    let mut fleet = Fleet::new("dialects", 600, &["--structured", "none", "--latency", "100ms"]);
    fleet.concurrency = 4;
    let first = fleet.worker().start();
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    fleet.wait_for_lines(8);
    let of_first = refused(&fleet);
    // Twice for each of those that were sent together: two of the three ways to ask are refused.
    assert!((2..=8).contains(&of_first), "{of_first} refused");
    let workers = || -> BTreeSet<String> {
        let lines = Results::read(&fleet.catalog.out()).journal;
        lines.iter().filter_map(|line| line["meta"]["worker"].as_str().map(ToOwned::to_owned)).collect()
    };
    let mut later = Vec::new();
    for number in 2..=3 {
        later.push(fleet.worker().start());
        eventually(DEADLINE, "results of all workers", || match workers() {
            names if names.len() == number => Ok(()),
            names => Err(format!("{names:?}")),
        });
    }
    ended(aggregator.wait(DEADLINE));
    assert_eq!(refused(&fleet), of_first, "the later ones were refused, too");
    fleet.assert_done(rabbitmq::shared(), redis::shared());
    drop((first, later));
}
