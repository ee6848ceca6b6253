//! The fleet's pace, over both ledgers: what a worker that asks for places may rely on.

use std::time::Duration;

use shelfmill_pipeline::ledger::{Ask, Bucket, EmbeddedLedger, Ledger, Permits, RateRefusal};
use tokio::time::Instant;

use super::{fresh_run, ledgers::in_redis};

macro_rules! over_both_ledgers {
    ($($test:ident),+ $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() { super::$test(&super::EmbeddedLedger::new()).await; })+
        }
        mod in_redis {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() { super::$test(&super::in_redis(&super::fresh_run(stringify!($test)))).await; })+
        }
    };
}

over_both_ledgers!(
    places_follow_each_other_at_the_limit_whoever_asks,
    what_is_owed_is_taken_from_those_who_come_next,
    a_refusal_pauses_all_and_teaches_the_rate,
);

const SLACK_MS: f64 = 150.0;

fn delay(ms: f64, owed_ms: f64) -> Vec<Bucket> {
    vec![Bucket { name: "delay".to_owned(), call_ms: ms, burst_ms: 0.0, owed_ms }]
}

fn ask<'a>(calls: u32, buckets: &'a [Bucket]) -> Ask<'a> {
    Ask { lane: "one", calls, made: 0, buckets }
}

async fn places_follow_each_other_at_the_limit_whoever_asks(ledger: &dyn Ledger) {
    let buckets = delay(20.0, 0.0);
    let began = Instant::now();
    let mut starts = Vec::new();
    for asks in 0..3 {
        let asked = began.elapsed();
        match ledger.permits(&ask(5, &buckets)).await.unwrap() {
            Permits::Places { count, first_ms, spacing_ms } => {
                assert!(count > 0 && (spacing_ms - 20.0).abs() < 0.1, "{asks}: {count} {spacing_ms}");
                let asked_ms = asked.as_secs_f64() * 1_000.0;
                starts.extend((0..count).map(|n| asked_ms + first_ms + f64::from(n) * spacing_ms));
            }
            Permits::After(wait) => tokio::time::sleep(wait).await,
            Permits::Free => panic!("there is a limit"),
        }
    }
    assert!(starts.len() >= 10, "{starts:?}");
    assert!(starts[0] < SLACK_MS, "{starts:?}");
    for pair in starts.windows(2) {
        // Both are told in the time of who asks, which is a little off.
        assert!(pair[1] - pair[0] > 20.0 - SLACK_MS, "{starts:?}");
    }
    let (first, last) = (starts[0], starts[starts.len() - 1]);
    #[expect(clippy::cast_precision_loss, reason = "a few")]
    let fair = (starts.len() - 1) as f64 * 20.0;
    assert!((last - first - fair).abs() < SLACK_MS, "{starts:?}");
    let further = Ask { calls: 1_000, ..ask(1, &buckets) };
    let Permits::Places { count, .. } = ledger.permits(&further).await.unwrap() else { return };
    assert!(count <= 13, "{count} places lie within a quarter of a second");
}

async fn what_is_owed_is_taken_from_those_who_come_next(ledger: &dyn Ledger) {
    let Permits::Places { count: 1, .. } = ledger.permits(&ask(1, &delay(100.0, 0.0))).await.unwrap() else {
        panic!("nobody was there before")
    };
    let Permits::After(wait) = ledger.permits(&ask(1, &delay(100.0, 2_000.0))).await.unwrap() else {
        panic!("two seconds are owed")
    };
    assert!(wait > Duration::from_millis(1_000) && wait < Duration::from_millis(1_900), "{wait:?}");
    let Permits::Places { .. } = ledger.permits(&ask(1, &delay(100.0, -2_000.0))).await.unwrap() else {
        panic!("it was given back")
    };
}

async fn a_refusal_pauses_all_and_teaches_the_rate(ledger: &dyn Ledger) {
    assert_eq!(ledger.permits(&ask(3, &[])).await.unwrap(), Permits::Free);
    let made = Ask { made: 30, ..ask(3, &[]) };
    assert_eq!(ledger.permits(&made).await.unwrap(), Permits::Free);
    for wait in [300, 100] {
        let made = if wait == 300 { 22 } else { 0 };
        let wait = Duration::from_millis(wait);
        ledger.refused("one", &RateRefusal { wait, made, ..RateRefusal::default() }).await.unwrap();
    }
    let Permits::After(wait) = ledger.permits(&ask(3, &[])).await.unwrap() else { panic!("it is paused") };
    assert!(wait > Duration::from_millis(150) && wait <= Duration::from_millis(300), "{wait:?}");
    let other = Ask { lane: "two", ..ask(3, &[]) };
    assert_eq!(ledger.permits(&other).await.unwrap(), Permits::Free);
    tokio::time::sleep(wait).await;
    let Permits::Places { count, spacing_ms, .. } = ledger.permits(&ask(3, &[])).await.unwrap() else {
        panic!("the pause is over")
    };
    // 52 calls less two that were refused, in a second or a little more; a twentieth less than that.
    assert!(count == 3 && (1_000.0 / 47.5 - 0.5..60.0).contains(&spacing_ms), "{count} {spacing_ms}");
    // Begun before all waited, and told only now.
    let (wait, age) = (Duration::from_millis(200), Duration::from_secs(1));
    ledger.refused("one", &RateRefusal { wait, age, made: 0 }).await.unwrap();
    let Permits::After(left) = ledger.permits(&ask(3, &[])).await.unwrap() else {
        panic!("it is paused again")
    };
    tokio::time::sleep(left).await;
    let Permits::Places { spacing_ms: now, .. } = ledger.permits(&ask(3, &[])).await.unwrap() else {
        panic!("the pause is over")
    };
    assert!((now - spacing_ms).abs() < spacing_ms / 10.0, "it teaches nothing: {spacing_ms} {now}");
}
