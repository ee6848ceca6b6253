//! Messages that no role of ours would publish: set aside with their reason, and the work goes on.

use crate::support::{
    amqp,
    fleet::{DEADLINE, Fleet, ended},
    rabbitmq, redis,
    wait::eventually,
};

const MIB: usize = 1024 * 1024;

fn publish(queue: &str, bodies: &[Vec<u8>]) {
    for body in bodies {
        amqp::publish(&rabbitmq::shared().url(), queue, body, &[]);
    }
}

#[test]
fn hostile_messages_are_set_aside_and_the_work_goes_on() {
    let fleet = Fleet::new("messages", 40, &[]);
    ended(fleet.producer().run(DEADLINE));
    let evil = "\u{1b}[2J\nFORGED\u{202e}".repeat(20_000);
    let unknown = serde_json::json!({"v": 1, "m": {evil: 1}}).to_string().into_bytes();
    let bodies = [
        vec![b' '; 20 * MIB],
        unknown,
        [b"{\"v\":1,\"m\":".to_vec(), b"[".repeat(MIB)].concat(),
        b"\x1b[2J\xff\xfe\n".to_vec(),
        // Two lines of results, if it were believed.
        br#"{"v":1,"m":{"id":"x","seq":1,"attempts":0,"spent":{"calls":0,"prompt_tokens":0,"completion_tokens":0,
            "repeated_calls":0},"product":{"id":"x",
            "b":1}}}"#
            .to_vec(),
    ];
    let name = |what: &str| format!("shelfmill.{}.{what}.v1", fleet.run);
    // Before there is any outcome: a run that is complete looks at nothing more.
    publish(&name("outcomes"), &bodies);
    publish(&name("tasks"), &bodies);
    let worker = fleet.worker().start();
    let aggregator = fleet.aggregator().args(["--log-format", "json"]).start();
    let end = ended(aggregator.wait(DEADLINE));
    let dead = name("dead");
    eventually(DEADLINE, "the messages to be set aside", || {
        match rabbitmq::shared().queues().get(&dead).map_or(0, |queue| queue.ready) {
            10 => Ok(()),
            others => Err(others.to_string()),
        }
    });
    rabbitmq::shared().ctl(&["purge_queue", &dead]);
    fleet.assert_done(rabbitmq::shared(), redis::shared());
    for (log, all) in [(worker.stderr(), "the worker's"), (end.stderr, "the aggregator's")] {
        let told: Vec<_> = log.lines().filter(|line| line.contains("went to the dead queue")).collect();
        assert_eq!(told.len(), bodies.len(), "{all}: {log}");
        for expected in ["a message of 20971520 bytes", "not a message of Shelfmill: "] {
            assert!(told.iter().any(|line| line.contains(expected)), "{told:#?}");
        }
        for line in log.lines() {
            assert!(line.len() < 8_000 && !line.chars().any(char::is_control), "{line:?}");
            assert!(!line.starts_with("FORGED"), "{line:?}");
        }
    }
}
