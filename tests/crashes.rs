//! A process dies at each named step of the protocol, is started again, and the promises hold.

use std::{collections::BTreeSet, thread, time::Duration};

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

const SIGABRT: i32 = 6;

/// Where each role dies: the place, and at which pass, so that it happens in the middle of the work.
const OF_PRODUCER: [(Point, u32); 4] = [
    (Point::ProducerAdmitted, 1),
    (Point::ProducerPublished, 40),
    (Point::ProducerSealing, 1),
    (Point::ProducerSealed, 1),
];
const OF_WORKER: [(Point, u32); 5] = [
    (Point::WorkerClaimed, 20),
    (Point::WorkerCalled, 20),
    (Point::WorkerAnswered, 20),
    (Point::WorkerKept, 20),
    (Point::WorkerTold, 20),
];
/// Only where equal prompts are asked once: `same_prompts` dies there.
const OF_SHARED: [(Point, u32); 1] = [(Point::WorkerShared, 20)];
const OF_DELAY: [(Point, u32); 1] = [(Point::WorkerDelayed, 3)];
const OF_AGGREGATOR: [(Point, u32); 7] = [
    (Point::AggregatorTorn, 3),
    (Point::AggregatorAppended, 3),
    (Point::AggregatorSynced, 3),
    (Point::AggregatorRecorded, 3),
    (Point::AggregatorAcked, 3),
    (Point::AggregatorFinalizing, 1),
    (Point::AggregatorRenamed, 1),
];
const OF_REQUEUE: [(Point, u32); 2] = [(Point::RequeueReopened, 1), (Point::RequeuePublished, 1)];

#[test]
fn no_step_is_left_out() {
    let places = |points: &[(Point, u32)]| points.iter().map(|(point, _)| point.name()).collect::<Vec<_>>();
    let tried: BTreeSet<_> = [
        places(&OF_PRODUCER),
        places(&OF_WORKER),
        places(&OF_SHARED),
        places(&OF_DELAY),
        places(&OF_AGGREGATOR),
        places(&OF_REQUEUE),
    ]
    .concat()
    .into_iter()
    .collect();
    assert_eq!(tried, Point::ALL.iter().map(|point| point.name()).collect());
}

fn dying(program: Program, point: Point, pass: u32) -> Program {
    program.env("SHELFMILL_CRASH_AT", format!("{}#{pass}", point.name()))
}

#[track_caller]
fn died(end: &Finished, point: Point) {
    let said = format!("crash point {} reached", point.name());
    assert!(
        end.signal == Some(SIGABRT) && end.stderr.contains(&said),
        "did not die at {}: {end}",
        point.name()
    );
}

/// Each of the places in a fleet of its own, all at once: most of the time they wait for leases.
fn at_each(
    points: &[(Point, u32)],
    products: usize,
    simulator: &[&str],
    dies: impl Fn(&mut Fleet, Point, u32) + Sync,
) {
    thread::scope(|scope| {
        for (point, pass) in points {
            let dies = &dies;
            let name = format!("crash-{}", point.name());
            let body = move || dies(&mut Fleet::new(&name, products, simulator), *point, *pass);
            thread::Builder::new().name(point.name().to_owned()).spawn_scoped(scope, body).unwrap();
        }
    });
}

#[test]
fn the_producer_dies_at_each_of_its_steps() {
    at_each(&OF_PRODUCER, 150, &[], |fleet, point, pass| {
        let workers = fleet.workers(1);
        let aggregator = fleet.aggregator().start();
        died(&dying(fleet.producer(), point, pass).run(DEADLINE), point);
        ended(fleet.producer().run(DEADLINE));
        ended(aggregator.wait(DEADLINE));
        fleet.assert_done(rabbitmq::shared(), redis::shared());
        drop(workers);
    });
}

#[test]
fn a_worker_dies_at_each_of_its_steps() {
    at_each(&OF_WORKER, 150, &["--latency", "300ms"], |fleet, point, pass| {
        let others = fleet.workers(1);
        let aggregator = fleet.aggregator().start();
        ended(fleet.producer().run(DEADLINE));
        died(&dying(fleet.worker(), point, pass).run(DEADLINE), point);
        let workers = fleet.workers(1);
        ended(aggregator.wait(DEADLINE));
        fleet.assert_done_with(rabbitmq::shared(), redis::shared(), fleet.kills(1));
        drop((others, workers));
    });
}

#[test]
fn a_worker_dies_when_it_has_put_a_task_off() {
    at_each(&OF_DELAY, 10, &["--latency", "5s"], |fleet, point, pass| {
        // Each task twice: the second of each is put off while the first is worked on.
        for _ in 0..2 {
            ended(fleet.producer().run(DEADLINE));
        }
        died(&dying(fleet.worker(), point, pass).run(DEADLINE), point);
        let workers = fleet.workers(1);
        ended(fleet.aggregator().run(DEADLINE));
        fleet.assert_done_with(rabbitmq::shared(), redis::shared(), fleet.kills(1));
        drop(workers);
    });
}

#[test]
fn the_aggregator_dies_at_each_of_its_steps() {
    at_each(&OF_AGGREGATOR, 150, &["--latency", "100ms"], |fleet, point, pass| {
        let workers = fleet.workers(1);
        ended(fleet.producer().run(DEADLINE));
        died(&dying(fleet.aggregator(), point, pass).run(DEADLINE), point);
        ended(fleet.aggregator().run(DEADLINE));
        fleet.assert_done(rabbitmq::shared(), redis::shared());
        drop(workers);
    });
}

#[test]
fn requeue_dies_at_each_of_its_steps() {
    at_each(&OF_REQUEUE, 150, &["--bad-request", "0.3"], |fleet, point, pass| {
        let workers = fleet.workers(1);
        ended(fleet.producer().run(DEADLINE));
        fleet.aggregator().run(DEADLINE).expect_code(3);
        drop(workers);
        fleet.simulator = Simulator::start(&[]);
        died(&dying(fleet.command("requeue"), point, pass).run(DEADLINE), point);
        ended(fleet.command("requeue").run(DEADLINE));
        let workers = fleet.workers(1);
        ended(fleet.aggregator().run(DEADLINE));
        fleet.assert_done(rabbitmq::shared(), redis::shared());
        drop(workers);
    });
}

#[test]
fn a_run_in_one_process_dies_at_each_step() {
    const CONCURRENCY: u64 = 16;
    // A delay within one process is a timer: there is no step to die at.
    for (point, pass) in OF_PRODUCER.into_iter().chain(OF_WORKER).chain(OF_AGGREGATOR) {
        let (catalog, simulator) = (Catalog::of(150), Simulator::start(&["--latency", "5ms"]));
        let run = || {
            let options = ["--base-url", simulator.url(), "--concurrency", &CONCURRENCY.to_string()];
            shelfmill().arg("run").args(catalog.args()).args(options)
        };
        died(&dying(run(), point, pass).run(DEADLINE), point);
        ended(run().run(DEADLINE));
        // In flight, or answered and not yet on disk: a batch is 50 ms old at most.
        check(&catalog, &simulator, Repeats::AtMost(CONCURRENCY * 10));
    }
}

const POISON: &str = "SM-000007";

/// What ends a product that ends its workers.
fn only_the_poison_failed(results: &Results) {
    let failed: Vec<_> =
        results.failures.iter().map(|line| (&line["id"], &line["failure"]["class"])).collect();
    assert_eq!(failed, [(&POISON.into(), &"poisoned".into())], "{:#?}", results.failures);
}

#[test]
fn a_product_that_ends_each_of_its_workers_is_given_up_and_takes_nothing_with_it() {
    let mut fleet = Fleet::new("poison", 60, &["--latency", "500ms"]);
    fleet.concurrency = 8;
    let start = || fleet.worker().env("SHELFMILL_CRASH_AT", format!("worker.called={POISON}")).start();
    let mut workers = [start(), start()];
    let mut aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    let mut deaths = 0;
    eventually(DEADLINE, "the end of the run", || {
        for worker in &mut workers {
            if !worker.is_running() {
                deaths += 1;
                *worker = start();
            }
        }
        if aggregator.is_running() { Err(format!("{deaths} deaths")) } else { Ok(()) }
    });
    aggregator.wait(DEADLINE).expect_code(3);
    assert_eq!(deaths, 5);
    only_the_poison_failed(&fleet.assert_done_with(rabbitmq::shared(), redis::shared(), fleet.kills(deaths)));

    // What ended its workers was mended.
    drop(workers);
    let said = fleet.command("requeue").args(["--class", "poisoned"]).run(DEADLINE).expect_code(0).stdout;
    assert!(said.contains("Put back 1 failed product"), "{said}");
    let worker = fleet.worker().start();
    ended(fleet.aggregator().run(DEADLINE));
    let results = fleet.assert_done_with(rabbitmq::shared(), redis::shared(), fleet.kills(deaths));
    assert_eq!(results.journal.len(), 60);
    drop(worker);
}

#[test]
fn a_product_that_ends_each_run_in_one_process_is_given_up_and_takes_nothing_with_it() {
    let (catalog, simulator) = (Catalog::of(60), Simulator::start(&["--latency", "20ms"]));
    let run = || {
        let options = ["--base-url", simulator.url(), "--concurrency", "8"];
        let run = shelfmill().arg("run").args(catalog.args()).args(options);
        run.env("SHELFMILL_CRASH_AT", format!("worker.called={POISON}")).run(Duration::from_secs(60))
    };
    for _ in 0..5 {
        died(&run(), Point::WorkerCalled);
    }
    run().expect_code(3);
    only_the_poison_failed(&check(&catalog, &simulator, Repeats::AtMost(5 * 80)));
}
