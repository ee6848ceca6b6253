//! Prompts that are asked once, whichever ledger keeps their answers.

use std::time::Duration;

use shelfmill_pipeline::{
    identity::{IdHash, PromptKey},
    job::Job,
    ledger::{Call, Claim, EmbeddedLedger, Ledger, PromptAnswer, PromptTurn, Turn},
    message::{Outcome, Rejects, Spent},
    money::Money,
};

use super::{fresh_run, ledgers::in_redis};
use crate::support::watchdog::temp_dir;

const LEASE: Duration = Duration::from_secs(30);

macro_rules! over_both_ledgers {
    ($($test:ident),+ $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                let folder = super::temp_dir("prompts");
                let ledger = super::EmbeddedLedger::new();
                ledger.keep_prompts(&folder.path().join("prompts")).unwrap();
                super::$test(&ledger).await;
            })+
        }
        mod in_redis {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() { super::$test(&super::in_redis(&super::fresh_run(stringify!($test)))).await; })+
        }
    };
}

over_both_ledgers!(
    one_of_many_asks_and_the_others_get_its_answer,
    a_prompt_is_free_when_its_claim_is,
    a_product_asks_one_prompt_at_a_time,
    the_first_answer_counts,
    what_a_claim_lost_is_counted_where_no_call_follows,
);

fn key(text: &str) -> PromptKey {
    PromptKey::of(&[text.as_bytes()])
}

fn answer(id: &str) -> PromptAnswer {
    PromptAnswer {
        id: id.to_owned(),
        model: "m".to_owned(),
        endpoint: Some("e".to_owned()),
        shortened: None,
        most: Money::from_usd(1.0),
        analysis: serde_json::value::to_raw_value(&["größer", "\n"]).unwrap(),
    }
}

async fn claim(ledger: &dyn Ledger, id: &str, token: &str) {
    let claim = ledger.claim(IdHash::of(id), token, LEASE).await.unwrap();
    assert!(matches!(claim, Claim::Granted(_)), "{claim:?}");
}

/// `ask`, `busy`, or whose answer it is.
async fn ask(ledger: &dyn Ledger, prompt: &str, id: &str, token: &str) -> String {
    match ledger.ask_prompt(&key(prompt), (IdHash::of(id), token)).await.unwrap() {
        PromptTurn::Ask => "ask".to_owned(),
        PromptTurn::Busy => "busy".to_owned(),
        PromptTurn::Answered(answer) => answer.id,
    }
}

async fn one_of_many_asks_and_the_others_get_its_answer(ledger: &dyn Ledger) {
    for id in ["a", "b", "c"] {
        claim(ledger, id, id).await;
    }
    for _ in 0..2 {
        assert_eq!(ask(ledger, "p", "a", "a").await, "ask", "a reply may be lost");
        assert_eq!(ask(ledger, "p", "b", "b").await, "busy");
        assert_eq!(ask(ledger, "other", "c", "c").await, "ask", "other prompts are nobody's business");
    }
    ledger.keep_prompt_answer(&key("p"), &answer("a")).await.unwrap();
    for id in ["a", "b", "c"] {
        assert_eq!(ask(ledger, "p", id, id).await, "a");
    }
    let PromptTurn::Answered(found) = ledger.ask_prompt(&key("p"), (IdHash::of("b"), "b")).await.unwrap()
    else {
        panic!("no answer");
    };
    assert_eq!(serde_json::to_string(&found).unwrap(), serde_json::to_string(&answer("a")).unwrap());
}

async fn a_prompt_is_free_when_its_claim_is(ledger: &dyn Ledger) {
    let product = IdHash::of("a");
    claim(ledger, "b", "b").await;
    for token in ["released", "abandoned", "failed"] {
        claim(ledger, "a", token).await;
        assert_eq!(ask(ledger, "p", "a", token).await, "ask", "{token}");
        assert_eq!(ask(ledger, "p", "b", "b").await, "busy", "{token}");
        match token {
            "released" => {
                assert!(ledger.release(product, token, &Spent::default(), Money::ZERO).await.unwrap());
            }
            "abandoned" => ledger.abandon(&[(product, token.to_owned())]).await.unwrap(),
            _ => {
                let failure = Outcome::Rejected(Rejects { scan: 1, first: 1, lines: Vec::new() });
                ledger.put_answer(product, token, &failure, Money::ZERO, None).await.unwrap();
            }
        }
        if token == "abandoned" {
            // The same product, under a claim of its own.
            claim(ledger, "a", "next").await;
            assert_eq!(ask(ledger, "p", "a", "next").await, "ask");
            assert!(ledger.release(product, "next", &Spent::default(), Money::ZERO).await.unwrap());
        }
    }
    assert_eq!(ask(ledger, "p", "b", "b").await, "ask");
    claim(ledger, "c", "c").await;
    assert_eq!(ask(ledger, "p", "c", "c").await, "busy");
}

/// Its job may have changed since.
async fn a_product_asks_one_prompt_at_a_time(ledger: &dyn Ledger) {
    claim(ledger, "a", "a").await;
    claim(ledger, "b", "b").await;
    assert_eq!(ask(ledger, "old", "a", "a").await, "ask");
    assert!(ledger.release(IdHash::of("a"), "a", &Spent::default(), Money::ZERO).await.unwrap());
    claim(ledger, "a", "later").await;
    assert_eq!(ask(ledger, "new", "a", "later").await, "ask");
    assert_eq!(ask(ledger, "old", "b", "b").await, "ask");
}

async fn the_first_answer_counts(ledger: &dyn Ledger) {
    claim(ledger, "a", "a").await;
    for id in ["a", "b", "a"] {
        ledger.keep_prompt_answer(&key("p"), &answer(id)).await.unwrap();
    }
    assert_eq!(ask(ledger, "p", "a", "a").await, "a");
}

/// Of a claim whose call was cut off, the worst case counts against the budget, also where the answer turns out to be there.
async fn what_a_claim_lost_is_counted_where_no_call_follows(ledger: &dyn Ledger) {
    let mut limits = Job::default().limits;
    limits.budget = Some(1.5);
    let product = IdHash::of("a");
    let call = Call { number: 1, most: Money::from_usd(1.0), before: Money::ZERO, is_beside: false };
    claim(ledger, "a", "lost").await;
    assert_eq!(ledger.begin_call((product, "lost"), &call, &limits).await.unwrap(), Turn::Now);
    ledger.keep_prompt_answer(&key("p"), &answer("a")).await.unwrap();
    ledger.abandon(&[(product, "lost".to_owned())]).await.unwrap();
    claim(ledger, "a", "next").await;
    assert_eq!(ask(ledger, "p", "a", "next").await, "a");
    claim(ledger, "b", "b").await;
    let turn = ledger.begin_call((IdHash::of("b"), "b"), &call, &limits).await.unwrap();
    assert_eq!(turn, Turn::OverBudget);
}

/// A claim runs out only in Redis: who claims in one process lives and dies with the ledger.
#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_is_free_when_its_claim_has_run_out() {
    let ledger = in_redis(&fresh_run("prompt-lease"));
    let lease = Duration::from_millis(300);
    let claimed = ledger.claim(IdHash::of("a"), "a", lease).await.unwrap();
    assert!(matches!(claimed, Claim::Granted(_)));
    claim(&ledger, "b", "b").await;
    assert_eq!(ask(&ledger, "p", "a", "a").await, "ask");
    assert_eq!(ask(&ledger, "p", "b", "b").await, "busy");
    tokio::time::timeout(Duration::from_secs(10), async {
        while ask(&ledger, "p", "b", "b").await == "busy" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("free when the claim has run out");
    assert_eq!(ask(&ledger, "p", "a", "a").await, "busy");
}

/// In one process the calls that were cut off are those of processes before.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_process_lost_is_counted_where_no_call_follows() {
    let folder = temp_dir("prompts");
    let open = || {
        let ledger = EmbeddedLedger::new();
        ledger.keep_prompts(&folder.path().join("prompts")).unwrap();
        ledger.watch_inflight(&folder.path().join("inflight")).unwrap();
        ledger
    };
    let mut limits = Job::default().limits;
    limits.budget = Some(1.5);
    let call = Call { number: 1, most: Money::from_usd(1.0), before: Money::ZERO, is_beside: false };
    let killed = open();
    claim(&killed, "a", "a").await;
    assert_eq!(killed.begin_call((IdHash::of("a"), "a"), &call, &limits).await.unwrap(), Turn::Now);
    killed.keep_prompt_answer(&key("p"), &answer("a")).await.unwrap();
    drop(killed);
    let next = open();
    claim(&next, "a", "again").await;
    assert_eq!(ask(&next, "p", "a", "again").await, "a");
    claim(&next, "b", "b").await;
    assert_eq!(next.begin_call((IdHash::of("b"), "b"), &call, &limits).await.unwrap(), Turn::OverBudget);
}
