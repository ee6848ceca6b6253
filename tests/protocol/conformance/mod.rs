//! The model's ledger is the real one: the same random calls go to it and to Redis with the real scripts, and to it and
//! to the embedded ledger, and every reply and the final counts agree.
//!
//! Leases run out without waiting: the time in the claim (or scan) is set back in Redis. `PROPTEST_CASES` asks for more
//! cases; a failing one is shrunk, and printed as the calls that lead to it.

mod calls;
mod sides;

use proptest::{prelude::*, test_runner::TestRunner};
use shelfmill_pipeline::ledger::EmbeddedLedger;

use calls::calls;
use sides::{InRedis, Sides};

/// Enough to find a script that forgets one of its conditions nearly each time.
const CASES: u32 = 256;

fn agree(over_redis: bool) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES);
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new(config)
        .run(&calls(over_redis), |calls| {
            let redis = over_redis.then(InRedis::fresh);
            let embedded = EmbeddedLedger::new();
            let mut sides = Sides::new(redis.as_ref(), &embedded);
            runtime.block_on(async {
                for (number, call) in calls.iter().enumerate() {
                    let (real, expected) = sides.make(call).await;
                    prop_assert_eq!(real, expected, "real and model differ after call {}", number + 1);
                }
                let (real, expected) = sides.counts().await;
                prop_assert_eq!(real, expected, "the counts of real and model differ");
                Ok(())
            })
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn redis_does_what_the_model_does() {
    agree(true);
}

#[test]
fn the_embedded_ledger_does_what_the_model_does() {
    agree(false);
}
