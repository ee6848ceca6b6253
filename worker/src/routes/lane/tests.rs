use shelfmill_pipeline::{job::Job, ledger::EmbeddedLedger};

use super::*;

fn lane(requests: Option<u32>, tokens: Option<u32>) -> Lane {
    let limits = Limits { requests_per_minute: requests, tokens_per_minute: tokens, ..Limits::default() };
    Lane::new("default".to_owned(), &limits, &Job::default().llm.endpoints()[0])
}

fn rate(limit: f64, remaining: f64, reset_ms: u64) -> Option<Rate> {
    Some(Rate { limit, remaining, reset: Duration::from_millis(reset_ms) })
}

/// When so many calls of so many tokens begin, in milliseconds from now.
async fn starts(lane: &Lane, ledger: &EmbeddedLedger, calls: usize, tokens: u64) -> Vec<u128> {
    let began = Instant::now();
    let mut starts = Vec::new();
    while starts.len() < calls {
        match lane.place(tokens, ledger).await.unwrap() {
            When::At(start) => {
                tokio::time::sleep_until(start).await;
                starts.push(began.elapsed().as_millis());
            }
            When::NotBefore(until) => tokio::time::sleep_until(until).await,
        }
    }
    starts
}

#[tokio::test(start_paused = true)]
async fn calls_follow_each_other_at_the_limit() {
    let ledger = EmbeddedLedger::new();
    let starts = starts(&lane(Some(600), None), &ledger, 21, 1_000).await;
    let last = starts[20];
    assert!((1_900..=2_010).contains(&last), "20 tenths of a second after the first: {starts:?}");
}

#[tokio::test(start_paused = true)]
async fn tokens_are_settled_with_what_was_used() {
    let ledger = EmbeddedLedger::new();
    let lane = lane(None, Some(60_000));
    let mut sum = Duration::ZERO;
    for _ in 0..10 {
        let began = Instant::now();
        starts(&lane, &ledger, 1, 2_000).await;
        lane.settle(2_000, 500);
        sum += began.elapsed();
    }
    // Half a second's worth each, where two seconds' worth was taken.
    assert!(sum < Duration::from_secs(8), "{sum:?}");
}

#[tokio::test(start_paused = true)]
async fn a_call_larger_than_the_limit_gets_a_minute_and_never_waits_for_ever() {
    let ledger = EmbeddedLedger::new();
    let starts = starts(&lane(None, Some(1_000)), &ledger, 3, 50_000).await;
    assert_eq!(starts[0], 0);
    assert!((59_000..=60_100).contains(&starts[1]) && (119_000..=120_100).contains(&starts[2]), "{starts:?}");
}

#[tokio::test(start_paused = true)]
async fn what_a_provider_says_makes_it_tighter() {
    let ledger = EmbeddedLedger::new();
    let lane = lane(None, None);
    assert_eq!(starts(&lane, &ledger, 50, 10).await[49], 0, "nothing is known");
    let said = LimitHints { requests: rate(10.0, 0.0, 1_000), tokens: None, retry_after: None };
    lane.told(&said, 10);
    let starts = starts(&lane, &ledger, 11, 10).await;
    assert!(starts[0] >= 100, "nothing remains: {starts:?}");
    assert!((1_000..=1_200).contains(&starts[10]), "{starts:?}");
    // A day's limit is not spread over the day.
    let day = LimitHints { requests: rate(1_000.0, 900.0, 86_400_000), tokens: None, retry_after: None };
    let other = Lane::new("other".to_owned(), &Limits::default(), &Job::default().llm.endpoints()[0]);
    other.told(&day, 10);
    assert_eq!(super::tests::starts(&other, &ledger, 50, 10).await[49], 0);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_obeyed_here_at_once_and_by_all_who_ask() {
    let ledger = EmbeddedLedger::new();
    let [one, two] = [(); 2].map(|()| lane(None, None));
    starts(&one, &ledger, 1, 10).await;
    one.refused(Some(Duration::from_secs(3)), Duration::ZERO, &ledger).await.unwrap();
    let began = Instant::now();
    assert_eq!(one.place(10, &ledger).await.unwrap(), When::NotBefore(began + Duration::from_secs(3)));
    assert_eq!(one.opens_at(began), Some(began + Duration::from_secs(3)));
    assert!(starts(&two, &ledger, 1, 10).await[0] >= 2_990);
}
