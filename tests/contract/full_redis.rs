//! What a Redis that is out of memory (`noeviction`) does with each script: refused before its first write, or done
//! whole; and what the aggregator needs to free memory is done.

use std::time::Duration;

use shelfmill_pipeline::{
    broker::Connect,
    changes::Changes,
    failure::FailureClass,
    identity::IdHash,
    job::{Job, Limits},
    ledger::{
        Ask, Call, Claim, Done, JournalMark, Ledger, LedgerError, RateRefusal, RedisConfig, RedisLedger,
        State, Vitals,
    },
    message::{Outcome, Rejects, Spent},
    money::Money,
    shutdown::Stopper,
};

use super::fresh_run;
use crate::support::redis::Redis;

const LEASE: Duration = Duration::from_secs(30);

/// Every key with everything in it; a hash tells its fields in any order.
fn content(redis: &Redis) -> Vec<(String, Vec<String>)> {
    let keys = redis.cli(&["KEYS", "*"]);
    let fields = |key: &str| {
        let all = redis.cli(&["HGETALL", key]);
        let mut fields: Vec<String> = all.lines().map(ToOwned::to_owned).collect();
        fields.sort_unstable();
        fields
    };
    let mut content: Vec<_> = keys.lines().map(|key| (key.to_owned(), fields(key))).collect();
    content.sort_unstable();
    content
}

#[track_caller]
fn refused<T>(what: &str, reply: Result<T, LedgerError>) {
    match reply {
        Err(LedgerError::Unreachable { reason, .. }) if reason.contains("OOM") => {}
        Err(error) => panic!("{what}: {error}"),
        Ok(_) => panic!("{what} was done"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_redis_does_a_script_whole_or_not_at_all() {
    let redis = Redis::start();
    let config = RedisConfig {
        url: redis.url().into(),
        run: fresh_run("full"),
        ca_file: None,
        connect: Connect::Once,
    };
    let ledger = RedisLedger::new(&config, Stopper::new()).unwrap();
    let [open, answered, failed, new] = ["open", "answered", "failed", "new"].map(IdHash::of);
    let outcome = Outcome::Rejected(Rejects { scan: 1, first: 1, lines: Vec::new() });
    let mark = |size_bytes| JournalMark {
        journal: "j".to_owned(),
        place: "/here".to_owned(),
        size_bytes,
        failures_bytes: 0,
        failures_edition: 0,
    };
    let limits = Limits { requests_per_minute: Some(60), ..Limits::default() };

    ledger.begin(&Job::default(), false).await.unwrap();
    let scan = ledger.begin_scan("producer").await.unwrap().unwrap();
    ledger.admit(scan, 1, &[open, answered, failed]).await.unwrap();
    for product in [open, answered] {
        ledger.claim(product, "worker", LEASE).await.unwrap();
    }
    ledger.put_answer(answered, "worker", &outcome, Money::ZERO, None).await.unwrap();
    ledger.hold_pen("aggregator", LEASE).await.unwrap().unwrap();
    let done =
        [Done::Failed { hash: failed, class: FailureClass::Timeout, line: "{}", is_told_again: false }];
    assert!(ledger.record(&done, None, &mark(0)).await.unwrap());

    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let before = content(&redis);
    refused("begin", ledger.begin(&Job::default(), true).await);
    refused("begin_scan", ledger.begin_scan("producer").await);
    refused("keep_scan", ledger.keep_scan(scan).await);
    refused("admit", ledger.admit(scan, 2, &[open, answered, new]).await);
    refused("expect", ledger.expect(7).await);
    refused("seal", ledger.seal(scan, 1, 0).await);
    refused("claim", ledger.claim(new, "worker", LEASE).await);
    refused("put_answer", ledger.put_answer(open, "worker", &outcome, Money::ZERO, None).await);
    refused(
        "begin_call",
        ledger
            .begin_call(
                (open, "worker"),
                &Call { number: 1, most: Money::ZERO, before: Money::ZERO, is_beside: false },
                &limits,
            )
            .await,
    );
    let ask = Ask { lane: "one", calls: 1, made: 1, buckets: &[] };
    refused("permits", ledger.permits(&ask).await);
    refused("refused", ledger.refused("one", &RateRefusal::default()).await);
    refused("reopen", ledger.reopen(&[(failed, Spent::default())], &Changes::default()).await);
    assert_eq!(content(&redis), before, "a script was done in part");

    // What only reads, keeps or frees.
    assert!(matches!(ledger.claim(answered, "another", LEASE).await.unwrap(), Claim::Answered(_)));
    assert_eq!(ledger.states(&[open, failed]).await.unwrap().1, [State::Open, State::Failed]);
    ledger.renew(&[(open, "worker".to_owned())], LEASE).await.unwrap();
    ledger.hold_pen("aggregator", LEASE).await.unwrap().unwrap();
    ledger.report(&Vitals { products_per_second: 1.0, cost_usd: None }).await.unwrap();
    let done = [Done::Completed(answered), Done::Completed(failed)];
    assert!(ledger.record(&done, Some(&mark(0)), &mark(9)).await.unwrap());
    ledger.release(open, "worker", &Spent { calls: 1, ..Spent::default() }, Money::ZERO).await.unwrap();
    let progress = ledger.progress().await.unwrap();
    assert_eq!((progress.completed, progress.failed), (2, 0));
    for what in ["claims", "answers", "failures"] {
        assert_eq!(redis.cli(&["EXISTS", &format!("shelfmill:{{{}}}:{what}", config.run)]), "0", "{what}");
    }
}
