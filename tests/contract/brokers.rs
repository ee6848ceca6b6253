use std::{collections::BTreeSet, time::Duration};

use shelfmill_pipeline::{
    broker::{
        Broker, Cause, Connect, Consumer, Delivery, MemoryBroker, Prefetch, RabbitBroker, RabbitConfig,
    },
    message::{Outcome, Rejects, Task},
    shutdown::Stopper,
};
use tokio::time::timeout;

use super::fresh_run;
use crate::support::{amqp, rabbitmq};

const DEADLINE: Duration = Duration::from_secs(30);

fn rabbit(run: &str) -> RabbitBroker {
    let config = RabbitConfig {
        url: rabbitmq::shared().url().into(),
        run: run.to_owned(),
        client_name: "contract".to_owned(),
        ca_file: None,
        connect: Connect::Forever,
    };
    RabbitBroker::new(config, Stopper::new()).unwrap()
}

/// Each test runs over both brokers; the name says which one failed.
macro_rules! over_both_brokers {
    ($($test:ident),+ $(,)?) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() { super::$test(&super::MemoryBroker::new(16)).await; })+
        }
        mod rabbit {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() { super::$test(&super::rabbit(&super::fresh_run(stringify!($test)))).await; })+
        }
    };
}

over_both_brokers!(
    what_is_published_is_delivered_whole,
    an_acknowledged_task_does_not_come_again,
    a_task_that_is_retried_comes_again_as_it_now_is,
    a_delay_is_waited_for,
    outcomes_come_in_the_order_they_were_published,
    waiting_for_a_message_can_be_given_up_without_losing_one,
);

fn task(id: &str) -> Task {
    let product =
        serde_json::value::to_raw_value(&serde_json::json!({"id": id, "title": "größer\n"})).unwrap();
    Task::new(id.to_owned(), 7, product)
}

async fn next<M>(consumer: &mut Box<dyn Consumer<M>>) -> Delivery<M> {
    timeout(DEADLINE, consumer.next()).await.expect("a message in time").unwrap()
}

async fn nothing_comes<M>(consumer: &mut Box<dyn Consumer<M>>) {
    // Long enough for a broker on this machine to deliver what it has.
    assert!(timeout(Duration::from_millis(700), consumer.next()).await.is_err(), "a message nobody expects");
}

async fn what_is_published_is_delivered_whole(broker: &dyn Broker) {
    let sent = task("a");
    broker.publish_task(sent.clone()).await.unwrap();
    let mut tasks = broker.tasks(4.into()).await.unwrap();
    let got = next(&mut tasks).await;
    assert_eq!(got.message.encode(), sent.encode());
    got.ack().await.unwrap();
}

async fn an_acknowledged_task_does_not_come_again(broker: &dyn Broker) {
    for id in ["a", "b"] {
        broker.publish_task(task(id)).await.unwrap();
    }
    let mut tasks = broker.tasks(4.into()).await.unwrap();
    for id in ["a", "b"] {
        let got = next(&mut tasks).await;
        assert_eq!(got.message.id, id);
        got.ack().await.unwrap();
    }
    nothing_comes(&mut tasks).await;
    assert_eq!(broker.depths().await.unwrap().tasks, 0);
}

async fn a_task_that_is_retried_comes_again_as_it_now_is(broker: &dyn Broker) {
    broker.publish_task(task("a")).await.unwrap();
    let mut tasks = broker.tasks(4.into()).await.unwrap();
    let mut got = next(&mut tasks).await;
    got.message.attempts = 3;
    got.message.spent.calls = 4;
    got.retry_later(Duration::ZERO).await.unwrap();
    let again = next(&mut tasks).await;
    assert_eq!((again.message.attempts, again.message.spent.calls), (3, 4));
    again.ack().await.unwrap();
    nothing_comes(&mut tasks).await;
}

async fn a_delay_is_waited_for(broker: &dyn Broker) {
    broker.publish_task(task("a")).await.unwrap();
    let mut tasks = broker.tasks(4.into()).await.unwrap();
    let asked = tokio::time::Instant::now();
    next(&mut tasks).await.retry_later(Duration::from_secs(2)).await.unwrap();
    // Others go on meanwhile.
    broker.publish_task(task("b")).await.unwrap();
    let other = next(&mut tasks).await;
    assert_eq!(other.message.id, "b");
    other.ack().await.unwrap();
    let again = next(&mut tasks).await;
    assert_eq!(again.message.id, "a");
    assert!(asked.elapsed() >= Duration::from_secs(2), "{:?}", asked.elapsed());
    again.ack().await.unwrap();
}

async fn outcomes_come_in_the_order_they_were_published(broker: &dyn Broker) {
    let mut outcomes = broker.outcomes(16).await.unwrap();
    for first in 1..=10 {
        let rejects = Rejects { scan: 1, first, lines: Vec::new() };
        broker.publish_outcome(&Outcome::Rejected(rejects)).await.unwrap();
    }
    for expected in 1..=10 {
        let got = next(&mut outcomes).await;
        assert!(matches!(&got.message, Outcome::Rejected(rejects) if rejects.first == expected));
        got.ack().await.unwrap();
    }
}

async fn waiting_for_a_message_can_be_given_up_without_losing_one(broker: &dyn Broker) {
    let mut tasks = broker.tasks(4.into()).await.unwrap();
    for number in 0..5 {
        for _ in 0..20 {
            let _ = timeout(Duration::from_micros(50), tasks.next())
                .await
                .map(|_| panic!("nothing was published"));
        }
        broker.publish_task(task(&number.to_string())).await.unwrap();
        let got = next(&mut tasks).await;
        assert_eq!(got.message.id, number.to_string());
        got.ack().await.unwrap();
    }
}

// What only a broker between processes can promise.

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_consumer_had_comes_again_to_another() {
    let run = fresh_run("dead-consumer");
    let (first, second) = (rabbit(&run), rabbit(&run));
    first.publish_task(task("a")).await.unwrap();
    let mut tasks = first.tasks(4.into()).await.unwrap();
    let held = next(&mut tasks).await;
    let mut others = second.tasks(4.into()).await.unwrap();
    nothing_comes(&mut others).await;
    drop((tasks, held, first));
    let again = next(&mut others).await;
    assert_eq!(again.message.id, "a");
    again.ack().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_consumer_gives_back_what_it_fetched() {
    let run = fresh_run("closed-consumer");
    let broker = rabbit(&run);
    for number in 0..5 {
        broker.publish_task(task(&number.to_string())).await.unwrap();
    }
    let mut tasks = broker.tasks(10.into()).await.unwrap();
    let held = next(&mut tasks).await;
    tasks.close().await.unwrap();
    let mut others = rabbit(&run).tasks(10.into()).await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..4 {
        let got = next(&mut others).await;
        ids.push(got.message.id.clone());
        got.ack().await.unwrap();
    }
    ids.sort();
    assert_eq!(ids, ["1", "2", "3", "4"]);
    // The connection of what is still held is open: it can be settled.
    held.ack().await.unwrap();
    drop(tasks);
    nothing_comes(&mut others).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_aggregators_one_gets_the_outcomes_and_the_other_takes_over() {
    let run = fresh_run("single-active");
    let (first, second) = (rabbit(&run), rabbit(&run));
    let mut active = first.outcomes(4).await.unwrap();
    let mut standby = second.outcomes(4).await.unwrap();
    let outcome = |number| Outcome::Rejected(Rejects { scan: 1, first: number, lines: Vec::new() });
    first.publish_outcome(&outcome(1)).await.unwrap();
    next(&mut active).await.ack().await.unwrap();
    nothing_comes(&mut standby).await;
    drop((active, first));
    second.publish_outcome(&outcome(2)).await.unwrap();
    next(&mut standby).await.ack().await.unwrap();
}

/// Else an aggregator's batches stay small, however many outcomes wait. On one thread, so that nobody fetches while the
/// test takes.
#[tokio::test]
async fn outcomes_that_have_arrived_are_taken_without_waiting_for_each() {
    const OUTCOMES: u64 = 60;
    let broker = rabbit(&fresh_run("at-once"));
    for first in 1..=OUTCOMES {
        let rejects = Rejects { scan: 1, first, lines: Vec::new() };
        broker.publish_outcome(&Outcome::Rejected(rejects)).await.unwrap();
    }
    let mut outcomes = broker.outcomes(64).await.unwrap();
    let (mut taken, mut waits) = (Vec::new(), 0);
    while taken.len() < OUTCOMES as usize {
        let at_once = tokio::select! {
            biased;
            got = outcomes.next() => Some(got.unwrap()),
            () = std::future::ready(()) => None,
        };
        taken.push(match at_once {
            Some(got) => got,
            None => {
                waits += 1;
                let got = next(&mut outcomes).await;
                // As long as a batch takes to be written: more arrives meanwhile.
                tokio::time::sleep(Duration::from_millis(20)).await;
                got
            }
        });
    }
    assert!(waits < OUTCOMES / 3, "waited {waits} times for {OUTCOMES} outcomes");
    for got in taken {
        got.ack().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_publishes_at_once_are_all_confirmed() {
    let broker = std::sync::Arc::new(rabbit(&fresh_run("window")));
    let mut publishes = tokio::task::JoinSet::new();
    for number in 0..3_000 {
        let broker = broker.clone();
        publishes.spawn(async move { broker.publish_task(task(&number.to_string())).await.unwrap() });
    }
    timeout(DEADLINE, publishes.join_all()).await.expect("all confirmed in time");
    let mut tasks = broker.tasks(500.into()).await.unwrap();
    let mut ids = std::collections::HashSet::new();
    for _ in 0..3_000 {
        let got = next(&mut tasks).await;
        ids.insert(got.message.id.clone());
        got.ack().await.unwrap();
    }
    assert_eq!(ids.len(), 3_000);
}

fn outcome(number: u64) -> Outcome {
    Outcome::Rejected(Rejects { scan: 1, first: number, lines: Vec::new() })
}

fn number_of(delivery: &Delivery<Outcome>) -> u64 {
    match &delivery.message {
        Outcome::Rejected(rejects) => rejects.first,
        other => panic!("{other:?}"),
    }
}

async fn take<M>(consumer: &mut Box<dyn Consumer<M>>, count: usize) -> Vec<Delivery<M>> {
    let mut taken = Vec::new();
    while taken.len() < count {
        taken.push(next(consumer).await);
    }
    taken
}

#[tokio::test(flavor = "multi_thread")]
async fn outcomes_that_are_told_together_are_settled_together_and_none_that_is_not_done_with() {
    const OUTCOMES: u64 = 300;
    let run = fresh_run("together");
    let (first, second) = (rabbit(&run), rabbit(&run));
    let published = (1..=OUTCOMES).map(|number| {
        let first = &first;
        async move { first.publish_outcome(&outcome(number)).await }
    });
    futures_util::future::try_join_all(published).await.unwrap();
    let messages = first.depths().await.unwrap().outcomes;
    assert!((5..OUTCOMES / 3).contains(&messages), "{messages} messages for {OUTCOMES} outcomes");

    let mut outcomes = first.outcomes(1_024).await.unwrap();
    let mut taken = take(&mut outcomes, OUTCOMES as usize).await;
    let all: Vec<u64> = taken.iter().map(number_of).collect();
    assert_eq!(BTreeSet::from_iter(all.iter().copied()), BTreeSet::from_iter(1..=OUTCOMES));
    // In the middle of a message, probably: what is of it and done with comes again with the rest.
    let undone = taken.split_off(100);
    Delivery::ack_all(taken).await.unwrap();
    drop((outcomes, undone, first));
    let mut others = second.outcomes(1_024).await.unwrap();
    let mut again = take(&mut others, OUTCOMES as usize - 100).await;
    while let Ok(more) = timeout(Duration::from_millis(300), others.next()).await {
        again.push(more.unwrap());
    }
    let numbers: BTreeSet<u64> = again.iter().map(number_of).collect();
    assert_eq!(numbers.len(), again.len(), "each once");
    assert!(all[100..].iter().all(|number| numbers.contains(number)), "what was not done with");
    assert!(again.len() < OUTCOMES as usize - 100 + 64, "what was done with, but for the rest of a message");
    Delivery::ack_all(again).await.unwrap();
    drop((others, second));
    let mut nobody = rabbit(&run).outcomes(16).await.unwrap();
    nothing_comes(&mut nobody).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_before_and_is_not_done_with_is_not_settled_along() {
    let run = fresh_run("not-along");
    let (first, second) = (rabbit(&run), rabbit(&run));
    for number in 1..=4 {
        first.publish_outcome(&outcome(number)).await.unwrap();
    }
    let mut outcomes = first.outcomes(16).await.unwrap();
    let mut taken = take(&mut outcomes, 4).await;
    let last = taken.split_off(2);
    let (held, done) = (taken.remove(0), taken);
    // 2, 3 and 4, while somebody still works on 1.
    Delivery::ack_all(done.into_iter().chain(last).collect()).await.unwrap();
    drop((outcomes, held, first));
    let mut others = second.outcomes(16).await.unwrap();
    let again = take(&mut others, 1).await;
    assert_eq!(number_of(&again[0]), 1);
    nothing_comes(&mut others).await;
    Delivery::ack_all(again).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn how_far_ahead_is_fetched_can_be_changed_and_nothing_is_lost_or_settled_along() {
    const TASKS: usize = 100;
    let run = fresh_run("prefetch");
    let (first, second) = (rabbit(&run), rabbit(&run));
    for number in 0..TASKS {
        first.publish_task(task(&number.to_string())).await.unwrap();
    }
    let few = Prefetch { messages: 8, told_together: 4 };
    let mut tasks = first.tasks(few).await.unwrap();
    let mut held = take(&mut tasks, 1).await;
    let mut taken = take(&mut tasks, 3).await;
    // While 4 more have arrived and nobody has asked for them.
    assert!(tasks.set_prefetch(Prefetch { messages: 24, told_together: 10 }));
    taken.extend(take(&mut tasks, 4 + 24).await);
    nothing_comes(&mut tasks).await;
    // The last first.
    held.extend(taken.drain(..1));
    for done in taken.drain(..).rev() {
        done.ack().await.unwrap();
    }
    taken.extend(take(&mut tasks, 24).await);
    assert!(tasks.set_prefetch(few));
    assert!(tasks.set_prefetch(Prefetch { messages: 16, told_together: 4 }));
    for done in taken.drain(..) {
        done.ack().await.unwrap();
    }
    let left = TASKS - (1 + 3 + 4 + 24) - 24;
    for _ in 0..left {
        next(&mut tasks).await.ack().await.unwrap();
    }
    nothing_comes(&mut tasks).await;
    tasks.told().await.unwrap();
    let undone: Vec<_> = held.iter().map(|task| task.message.id.clone()).collect();
    drop((tasks, held, first));
    let mut others = second.tasks(few).await.unwrap();
    let again = take(&mut others, undone.len()).await;
    assert_eq!(again.iter().map(|task| task.message.id.clone()).collect::<Vec<_>>(), undone);
    nothing_comes(&mut others).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_cannot_be_read_takes_no_other_with_it() {
    let run = fresh_run("unreadable-line");
    let (first, second) = (rabbit(&run), rabbit(&run));
    let mut outcomes = first.outcomes(16).await.unwrap();
    let lines = [outcome(1).encode(), b"{".to_vec(), outcome(2).encode(), b"no outcome".to_vec()];
    let queue = format!("shelfmill.{run}.outcomes.v1");
    let publish = move || amqp::publish(&rabbitmq::shared().url(), &queue, &lines.join(&b'\n'), &[]);
    tokio::task::spawn_blocking(publish).await.unwrap();

    let taken = take(&mut outcomes, 2).await;
    assert_eq!(taken.iter().map(number_of).collect::<Vec<_>>(), [1, 2]);
    let mut dead = second.dead_letters().await.unwrap();
    let mut buried = None;
    let found = async {
        while buried.is_none() {
            buried = dead.next().await.unwrap();
        }
    };
    timeout(DEADLINE, found).await.expect("what cannot be read, set aside in time");
    let buried = buried.unwrap();
    assert_eq!(buried.body, b"{\nno outcome");
    assert!(matches!(&buried.cause, Cause::Unreadable(reason) if !reason.is_empty()), "{:?}", buried.cause);
    buried.ack().await.unwrap();
    assert!(dead.next().await.unwrap().is_none(), "once");

    // Not settled before the lines that can be read are, and then settled whole.
    drop((outcomes, taken, first));
    let mut outcomes = second.outcomes(16).await.unwrap();
    let again = take(&mut outcomes, 2).await;
    Delivery::ack_all(again).await.unwrap();
    outcomes.close().await.unwrap();
    outcomes.told().await.unwrap();
    drop((outcomes, second));
    let mut nobody = rabbit(&run).outcomes(16).await.unwrap();
    nothing_comes(&mut nobody).await;
}
