//! Messages that no role can take are set aside with their reason, keep nobody from working, and can be put back.

use std::sync::Arc;

use shelfmill_pipeline::{
    broker::{Broker, Connect, RabbitBroker, RabbitConfig},
    message::Task,
    shutdown::Stopper,
};

use crate::support::{
    amqp,
    checker::{Repeats, check},
    fleet::{DEADLINE, Fleet, ended},
    rabbitmq, redis,
    wait::eventually,
};

const GARBAGE: &[u8] = b"\xff\x00 not a message";
const FROM_THE_FUTURE: &[u8] = br#"{"v":99,"m":{"what":"ever"}}"#;

fn dead(fleet: &Fleet) -> u64 {
    let name = format!("shelfmill.{}.dead.v1", fleet.run);
    rabbitmq::shared().queues().get(&name).map_or(0, |queue| queue.ready)
}

#[track_caller]
fn dead_are(fleet: &Fleet, expected: u64) {
    eventually(DEADLINE, "messages in the dead queue", || match dead(fleet) {
        found if found == expected => Ok(()),
        found => Err(format!("{found} of {expected}")),
    });
}

#[test]
fn what_cannot_be_read_is_set_aside_with_its_reason_and_put_back_on_request() {
    let fleet = Fleet::new("unreadable", 50, &["--latency", "20ms"]);
    let worker = fleet.worker().start();
    let aggregator = fleet.aggregator().start();
    ended(fleet.producer().run(DEADLINE));
    let [tasks, outcomes] = ["tasks", "outcomes"].map(|what| format!("shelfmill.{}.{what}.v1", fleet.run));
    for queue in [&tasks, &outcomes] {
        for message in [GARBAGE, FROM_THE_FUTURE] {
            amqp::publish(&fleet.amqp_url, queue, message, &[]);
        }
    }
    let end = ended(aggregator.wait(DEADLINE));
    check(&fleet.catalog, &fleet.simulator, Repeats::None);
    dead_are(&fleet, 4);
    for said in [&worker.stderr(), &end.stderr] {
        assert!(said.contains("a message went to the dead queue"), "{said}");
        assert!(said.contains("message version 99 is not known here"), "{said}");
        assert!(said.contains("not a message of Shelfmill"), "{said}");
    }

    // Nothing was mended: the worker sets its two aside again, and the others wait for an aggregator.
    let requeue = || fleet.command("requeue").arg("--dead").run(DEADLINE).expect_code(0).stdout;
    assert_eq!(requeue(), "Put back 4 messages from the dead queue\n");
    dead_are(&fleet, 2);

    // What an older worker could not read, and ours can.
    let product = r#"{"id":"SM-000050","title":"Kettle"}"#.to_owned();
    let product = serde_json::value::RawValue::from_string(product).unwrap();
    let task = Task::new("SM-000050".to_owned(), 51, product).encode();
    let dead_queue = format!("shelfmill.{}.dead.v1", fleet.run);
    let epitaph = [
        ("x-shelfmill-reason", "message version 1 is not known here"),
        ("x-shelfmill-queue", tasks.as_str()),
    ];
    amqp::publish(&fleet.amqp_url, &dead_queue, &task, &epitaph);
    dead_are(&fleet, 3);
    assert_eq!(requeue(), "Put back 3 messages from the dead queue\n");
    eventually(DEADLINE, "the product to be answered", || match fleet.simulator.calls() {
        51 => Ok(()),
        calls => Err(calls.to_string()),
    });
    drop(worker);
}

#[test]
fn a_task_that_is_never_settled_ends_as_a_failure() {
    let fleet = Fleet::new("unsettled", 3, &["--latency", "20ms"]);
    ended(fleet.producer().run(DEADLINE));
    // 21 workers take all three and end before they begin, one after the other.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        for _ in 0..21 {
            let config = RabbitConfig {
                url: fleet.amqp_url.clone().into(),
                run: fleet.run.clone(),
                client_name: "a worker that ends".to_owned(),
                ca_file: None,
                connect: Connect::Forever,
            };
            let broker: Arc<dyn Broker> = Arc::new(RabbitBroker::new(config, Stopper::new()).unwrap());
            let mut tasks = broker.tasks(10.into()).await.unwrap();
            let mut held = Vec::new();
            for _ in 0..3 {
                held.push(tasks.next().await.unwrap());
            }
        }
    });
    dead_are(&fleet, 3);
    let end = fleet.aggregator().run(DEADLINE).expect_code(3);
    assert!(end.stderr.contains("delivered again and again, and never settled"), "{end}");
    let progress = fleet.progress();
    assert_eq!(progress["failures_by_class"]["poisoned"], 3, "{progress}");
    dead_are(&fleet, 0);

    ended(fleet.command("requeue").run(DEADLINE));
    let worker = fleet.worker().start();
    ended(fleet.aggregator().run(DEADLINE));
    fleet.assert_done(rabbitmq::shared(), redis::shared());
    drop(worker);
}
