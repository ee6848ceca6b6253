use std::time::Duration;

use shelfmill_pipeline::{
    broker::Connect,
    changes::Changes,
    failure::FailureClass,
    identity::IdHash,
    job::{Job, Limits, Structured},
    ledger::{
        Admission, Begun, Call, Claim, Dialect, Done, EmbeddedLedger, Grant, Halt, HaltCause, JournalMark,
        Kept, Ledger, RedisConfig, RedisLedger, State, Turn,
    },
    message::{Outcome, Rejects, Spent},
    money::Money,
    shutdown::Stopper,
};

use super::fresh_run;
use crate::support::redis;

pub(super) const LEASE: Duration = Duration::from_secs(30);

pub(super) fn in_redis(run: &str) -> RedisLedger {
    let config = RedisConfig {
        url: redis::shared().url().into(),
        run: run.to_owned(),
        ca_file: None,
        connect: Connect::Forever,
    };
    RedisLedger::new(&config, Stopper::new()).unwrap()
}

/// Each test runs over both ledgers; the name says which one failed.
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
    a_run_keeps_the_question_it_began_with,
    a_product_is_admitted_once_per_scan,
    one_of_many_gets_a_product_and_asking_again_changes_nothing,
    a_released_product_is_free_again,
    an_answer_is_handed_out_instead_of_a_claim,
    what_is_recorded_is_done_and_counted_once,
    a_record_from_another_mark_is_refused,
    a_result_follows_a_failure_and_nothing_follows_a_result,
    products_that_were_never_admitted_can_be_recorded,
    what_was_found_out_of_a_server_is_kept_for_the_run,
    nobody_calls_without_a_claim,
    a_run_that_has_paused_lets_nobody_call_until_it_is_begun_again,
    a_run_that_a_person_has_paused_stays_so_when_it_is_begun_again,
    calls_hold_what_they_can_cost_and_never_exceed_the_budget,
    a_call_that_has_ended_holds_nothing,
    a_scan_is_complete_when_it_is_sealed_and_every_product_has_its_line,
);

pub(super) fn hash(id: &str) -> IdHash {
    IdHash::of(id)
}

/// A call that costs nothing.
fn nth_call(number: u32) -> Call {
    Call { number, most: Money::ZERO, before: Money::ZERO, is_beside: false }
}

pub(super) fn mark(size_bytes: u64) -> JournalMark {
    JournalMark {
        journal: "j".to_owned(),
        place: "/here".to_owned(),
        size_bytes,
        failures_bytes: 0,
        failures_edition: 0,
    }
}

/// Records, from whatever the ledger knows.
pub(super) async fn record(ledger: &dyn Ledger, done: &[Done<'_>], after: &JournalMark) {
    let before = ledger.journal().await.unwrap();
    assert!(ledger.record(done, before.as_ref(), after).await.unwrap());
}

pub(super) fn failed(id: &str, class: FailureClass) -> Done<'static> {
    Done::Failed { hash: hash(id), class, line: "{}", is_told_again: false }
}

fn outcome(number: u64) -> Outcome {
    Outcome::Rejected(Rejects { scan: number, first: 1, lines: Vec::new() })
}

pub(super) async fn scan(ledger: &dyn Ledger) -> u64 {
    ledger.begin_scan("producer").await.unwrap().expect("no other producer")
}

async fn a_run_keeps_the_question_it_began_with(ledger: &dyn Ledger) {
    assert_eq!(ledger.job().await.unwrap(), None);
    let job = Job::default();
    assert_eq!(ledger.begin(&job, false).await.unwrap(), Begun::Accepted);
    assert_eq!(ledger.begin(&job, false).await.unwrap(), Begun::Accepted);
    let mut faster = job.clone();
    faster.limits.concurrency = 99;
    assert_eq!(ledger.begin(&faster, false).await.unwrap(), Begun::Accepted);
    assert_eq!(ledger.job().await.unwrap(), Some(faster.clone()));
    let mut other = job.clone();
    other.llm.model = "another".to_owned();
    let refused = Begun::Changed { differences: vec!["model"] };
    assert_eq!(ledger.begin(&other, false).await.unwrap(), refused);
    assert_eq!(ledger.job().await.unwrap(), Some(faster));
    assert_eq!(ledger.begin(&other, true).await.unwrap(), Begun::Accepted);
    assert_eq!(ledger.job().await.unwrap(), Some(other));
}

async fn a_product_is_admitted_once_per_scan(ledger: &dyn Ledger) {
    record(ledger, &[Done::Completed(hash("c")), failed("f", FailureClass::Timeout)], &mark(1)).await;
    let scan = scan(ledger).await;
    let products = ["o", "c", "f", "o"].map(hash);
    let admitted = ledger.admit(scan, 1, &products).await.unwrap();
    let open = Admission::Open { spent: Default::default() };
    assert_eq!(admitted, [open, Admission::Completed, Admission::Failed, Admission::Duplicate]);
    assert_eq!(ledger.admit(scan, 1, &products).await.unwrap(), admitted, "the same call again");
    let later = ledger.admit(scan, 2, &[hash("c"), hash("new")]).await.unwrap();
    assert_eq!(later, [Admission::Duplicate, open]);
    let counts = ledger.progress().await.unwrap().scan.unwrap();
    assert_eq!((counts.total, counts.completed, counts.failed), (4, 1, 1));
}

async fn one_of_many_gets_a_product_and_asking_again_changes_nothing(ledger: &dyn Ledger) {
    let product = hash("a");
    for _ in 0..2 {
        let claim = ledger.claim(product, "one", LEASE).await.unwrap();
        assert!(matches!(claim, Claim::Granted(Grant { lost_claims: 0, lost_calls: 0, .. })), "{claim:?}");
        let claim = ledger.claim(product, "two", LEASE).await.unwrap();
        assert!(matches!(claim, Claim::Busy), "{claim:?}");
    }
    ledger.renew(&[(product, "one".to_owned()), (hash("never"), "one".to_owned())], LEASE).await.unwrap();
    let claim = ledger.claim(hash("never"), "two", LEASE).await.unwrap();
    assert!(matches!(claim, Claim::Granted(_)), "renewing makes no claim: {claim:?}");
}

async fn a_released_product_is_free_again(ledger: &dyn Ledger) {
    let product = hash("a");
    ledger.claim(product, "one", LEASE).await.unwrap();
    ledger.release(product, "two", &Spent::default(), Money::ZERO).await.unwrap();
    assert!(matches!(ledger.claim(product, "two", LEASE).await.unwrap(), Claim::Busy));
    assert_eq!(ledger.claimed().await.unwrap(), 1);
    ledger.release(product, "one", &Spent::default(), Money::ZERO).await.unwrap();
    ledger.release(product, "one", &Spent::default(), Money::ZERO).await.unwrap();
    assert_eq!(ledger.claimed().await.unwrap(), 0);
    let claim = ledger.claim(product, "two", LEASE).await.unwrap();
    assert!(matches!(claim, Claim::Granted(Grant { lost_claims: 0, lost_calls: 0, .. })), "{claim:?}");
}

async fn an_answer_is_handed_out_instead_of_a_claim(ledger: &dyn Ledger) {
    let product = hash("a");
    ledger.claim(product, "one", LEASE).await.unwrap();
    ledger.put_answer(product, "one", &outcome(1), Money::ZERO, None).await.unwrap();
    let kept = ledger.put_answer(product, "one", &outcome(1), Money::ZERO, None).await.unwrap();
    assert!(matches!(kept, Kept::Yes), "the same call again: {kept:?}");
    let kept = ledger.put_answer(product, "late", &outcome(2), Money::ZERO, None).await.unwrap();
    assert!(matches!(&kept, Kept::Earlier(Outcome::Rejected(first)) if first.scan == 1), "{kept:?}");
    let claim = ledger.claim(product, "two", LEASE).await.unwrap();
    assert!(matches!(&claim, Claim::Answered(Outcome::Rejected(first)) if first.scan == 1), "{claim:?}");
    record(ledger, &[Done::Completed(product)], &mark(1)).await;
    let kept = ledger.put_answer(product, "later still", &outcome(3), Money::ZERO, None).await.unwrap();
    assert!(matches!(kept, Kept::Done), "{kept:?}");
    assert!(matches!(ledger.claim(product, "two", LEASE).await.unwrap(), Claim::Done));
}

async fn what_is_recorded_is_done_and_counted_once(ledger: &dyn Ledger) {
    assert_eq!(ledger.journal().await.unwrap(), None);
    let done = [Done::Completed(hash("a")), failed("b", FailureClass::Timeout)];
    for _ in 0..2 {
        record(ledger, &done, &mark(10)).await;
    }
    let (known, states) = ledger.states(&["a", "b", "c"].map(hash)).await.unwrap();
    assert_eq!(known, Some(mark(10)));
    assert_eq!(states, [State::Completed, State::Failed, State::Open]);
    for id in ["a", "b"] {
        assert!(matches!(ledger.claim(hash(id), "one", LEASE).await.unwrap(), Claim::Done));
    }
    let progress = ledger.progress().await.unwrap();
    assert_eq!((progress.completed, progress.failed), (1, 1));
    assert_eq!(progress.failures, [(FailureClass::Timeout, 1)]);
    assert_eq!(ledger.journal().await.unwrap(), Some(mark(10)));
}

async fn a_result_follows_a_failure_and_nothing_follows_a_result(ledger: &dyn Ledger) {
    let scan = scan(ledger).await;
    ledger.admit(scan, 1, &[hash("a")]).await.unwrap();
    record(ledger, &[failed("a", FailureClass::Malformed)], &mark(1)).await;
    record(ledger, &[Done::Completed(hash("a"))], &mark(2)).await;
    record(ledger, &[failed("a", FailureClass::Timeout)], &mark(3)).await;
    let progress = ledger.progress().await.unwrap();
    assert_eq!((progress.completed, progress.failed, progress.failures), (1, 0, vec![]));
    let counts = progress.scan.unwrap();
    assert_eq!((counts.completed, counts.failed), (1, 0));
}

async fn products_that_were_never_admitted_can_be_recorded(ledger: &dyn Ledger) {
    // So is a ledger rebuilt from the journal before the input is read.
    let done: Vec<_> = (0..1_000).map(|number| Done::Completed(hash(&number.to_string()))).collect();
    record(ledger, &done, &mark(1)).await;
    let scan = scan(ledger).await;
    let products: Vec<_> = (990..1_010).map(|number| hash(&number.to_string())).collect();
    let admitted = ledger.admit(scan, 1, &products).await.unwrap();
    assert_eq!(admitted.iter().filter(|admission| **admission == Admission::Completed).count(), 10);
    let counts = ledger.progress().await.unwrap().scan.unwrap();
    assert_eq!((counts.total, counts.completed), (20, 10));
}

async fn nobody_calls_without_a_claim(ledger: &dyn Ledger) {
    let reserve =
        async |token| ledger.begin_call((hash("a"), token), &nth_call(1), &Limits::default()).await.unwrap();
    assert_eq!(reserve("one").await, Turn::Lost);
    ledger.claim(hash("a"), "one", LEASE).await.unwrap();
    assert_eq!(reserve("two").await, Turn::Lost);
    assert_eq!(reserve("one").await, Turn::Now);
    assert_eq!(reserve("one").await, Turn::Now, "the same call again");
}

async fn a_run_that_has_paused_lets_nobody_call_until_it_is_begun_again(ledger: &dyn Ledger) {
    let halt = |reason: &str| Halt { cause: HaltCause::Key, reason: reason.to_owned() };
    ledger.begin(&Job::default(), false).await.unwrap();
    ledger.claim(hash("a"), "one", LEASE).await.unwrap();
    let turn =
        async || ledger.begin_call((hash("a"), "one"), &nth_call(1), &Limits::default()).await.unwrap();
    assert_eq!((ledger.halted().await.unwrap(), turn().await), (None, Turn::Now));
    for reason in ["first", "second"] {
        ledger.halt(&halt(reason)).await.unwrap();
    }
    assert_eq!((ledger.halted().await.unwrap(), turn().await), (Some(halt("first")), Turn::Halted));
    assert_eq!(ledger.progress().await.unwrap().halt, Some(halt("first")));
    ledger.begin(&Job::default(), false).await.unwrap();
    assert_eq!((ledger.halted().await.unwrap(), turn().await), (None, Turn::Now));
}

async fn a_run_that_a_person_has_paused_stays_so_when_it_is_begun_again(ledger: &dyn Ledger) {
    let asked = Halt { cause: HaltCause::Asked, reason: "the provider calls".to_owned() };
    ledger.begin(&Job::default(), false).await.unwrap();
    ledger.halt(&asked).await.unwrap();
    ledger.begin(&Job::default(), false).await.unwrap();
    assert_eq!(ledger.halted().await.unwrap(), Some(asked));
}

async fn calls_hold_what_they_can_cost_and_never_exceed_the_budget(ledger: &dyn Ledger) {
    let limits = Limits { budget: Some(1.0), ..Limits::default() };
    let turn = async |id: &str, number, usd| {
        let call = Call { number, most: Money::from_usd(usd), before: Money::ZERO, is_beside: false };
        ledger.claim(hash(id), "one", LEASE).await.unwrap();
        ledger.begin_call((hash(id), "one"), &call, &limits).await.unwrap()
    };
    for _ in 0..3 {
        assert_eq!(turn("a", 1, 0.4).await, Turn::Now, "asked again, it is held once");
    }
    assert_eq!(turn("b", 1, 0.4).await, Turn::Now);
    assert!(matches!(turn("c", 1, 0.4).await, Turn::After(_)), "what a and b hold may become free");
    for _ in 0..2 {
        ledger.put_answer(hash("a"), "one", &outcome(1), Money::from_usd(0.1), None).await.unwrap();
    }
    assert_eq!(turn("c", 1, 0.4).await, Turn::Now);
    assert_eq!(turn("d", 1, 0.95).await, Turn::OverBudget, "whatever the others cost");
    ledger.release(hash("b"), "one", &Spent::default(), Money::from_usd(0.2)).await.unwrap();
    assert_eq!(turn("d", 1, 0.3).await, Turn::Now, "0.3 are spent, 0.4 held");
    assert!(matches!(turn("c", 1, 0.1).await, Turn::Now), "the call that it has begun");
    ledger.abandon(&[(hash("c"), "one".to_owned())]).await.unwrap();
    assert_eq!(turn("e", 1, 0.4).await, Turn::OverBudget, "what was cut off counts as spent: 0.7");
    ledger.spent_at_least(Money::from_usd(0.5)).await.unwrap();
    assert!(matches!(turn("e", 1, 0.3).await, Turn::After(_)));
    ledger.spent_at_least(Money::from_usd(0.8)).await.unwrap();
    assert_eq!(turn("e", 1, 0.3).await, Turn::OverBudget);
}

async fn a_call_that_has_ended_holds_nothing(ledger: &dyn Ledger) {
    let limits = Limits { budget: Some(1.0), ..Limits::default() };
    let turn = async |id: &str, number, before| {
        let [most, before] = [0.6, before].map(Money::from_usd);
        ledger.claim(hash(id), "one", LEASE).await.unwrap();
        let call = Call { number, most, before, is_beside: false };
        ledger.begin_call((hash(id), "one"), &call, &limits).await.unwrap()
    };
    assert_eq!(turn("a", 1, 0.0).await, Turn::Now);
    assert!(matches!(turn("b", 1, 0.0).await, Turn::After(_)));
    // The first call of a has failed, and cost a little; both ask for another one.
    for _ in 0..2 {
        assert_eq!(turn("a", 2, 0.1).await, Turn::Now, "asked again, it is counted once");
    }
    ledger.release(hash("a"), "one", &Spent::default(), Money::from_usd(0.1)).await.unwrap();
    assert_eq!(turn("b", 1, 0.0).await, Turn::Now, "0.2 are spent");
    assert!(matches!(turn("c", 1, 0.0).await, Turn::After(_)));
    for _ in 0..2 {
        ledger.end_call((hash("b"), "other"), Money::from_usd(9.0)).await.unwrap();
        ledger.end_call((hash("b"), "one"), Money::ZERO).await.unwrap();
    }
    assert_eq!(turn("c", 1, 0.0).await, Turn::Now, "it holds nothing while its product waits");
    ledger.release(hash("c"), "one", &Spent::default(), Money::ZERO).await.unwrap();
    assert_eq!(turn("b", 2, 0.0).await, Turn::Now, "and holds again what its next one may cost");
    ledger.release(hash("b"), "one", &Spent::default(), Money::from_usd(0.3)).await.unwrap();
    assert_eq!(turn("a", 1, 0.0).await, Turn::OverBudget, "0.5 are spent");
}

async fn a_scan_is_complete_when_it_is_sealed_and_every_product_has_its_line(ledger: &dyn Ledger) {
    let scan = scan(ledger).await;
    ledger.admit(scan, 1, &["a", "b"].map(hash)).await.unwrap();
    record(ledger, &[Done::Completed(hash("a")), failed("b", FailureClass::Timeout)], &mark(1)).await;
    assert!(!ledger.progress().await.unwrap().scan.unwrap().is_complete(), "not sealed");
    for _ in 0..2 {
        ledger.seal(scan, 1, 3).await.unwrap();
    }
    let progress = ledger.progress().await.unwrap();
    assert!(progress.scan.unwrap().is_complete());
    assert_eq!((progress.total(), progress.done(), progress.scan.unwrap().rejected), (Some(2), (1, 1), 3));
}

async fn a_record_from_another_mark_is_refused(ledger: &dyn Ledger) {
    assert!(ledger.record(&[Done::Completed(hash("a"))], None, &mark(1)).await.unwrap());
    assert!(
        ledger.record(&[Done::Completed(hash("a"))], None, &mark(1)).await.unwrap(),
        "the same call again"
    );
    for before in [None, Some(&mark(7))] {
        assert!(!ledger.record(&[Done::Completed(hash("b"))], before, &mark(2)).await.unwrap());
    }
    assert!(ledger.record(&[Done::Completed(hash("b"))], Some(&mark(1)), &mark(2)).await.unwrap());
    assert_eq!(ledger.progress().await.unwrap().completed, 2);
}

// What only a ledger between processes can promise.

/// Claims with a lease that is over at once, and waits until the next claimant gets the product.
async fn take_over(ledger: &RedisLedger, product: IdHash, from: &str, by: &str) -> (u32, u32) {
    ledger.renew(&[(product, from.to_owned())], Duration::from_millis(1)).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), async {
        while ledger.claimed().await.unwrap() > 0 {}
        loop {
            match ledger.claim(product, by, LEASE).await.unwrap() {
                Claim::Granted(grant) => return (grant.lost_claims, grant.lost_calls),
                Claim::Busy => {}
                other => panic!("{other:?}"),
            }
        }
    })
    .await
    .expect("the lease runs out")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_ran_out_is_granted_to_another_who_is_told_of_its_calls() {
    let ledger = in_redis(&fresh_run("lease"));
    let product = hash("a");
    let call = async |token, number| {
        ledger.begin_call((product, token), &nth_call(number), &Limits::default()).await.unwrap()
    };
    ledger.claim(product, "one", LEASE).await.unwrap();
    assert_eq!(take_over(&ledger, product, "one", "two").await, (0, 0), "no call yet");
    let again = ledger.claim(product, "two", LEASE).await.unwrap();
    assert!(
        matches!(again, Claim::Granted(Grant { lost_claims: 0, lost_calls: 0, .. })),
        "the same reply again: {again:?}"
    );
    assert_eq!(
        (call("two", 1).await, call("two", 1).await, call("two", 2).await),
        (Turn::Now, Turn::Now, Turn::Now)
    );
    assert_eq!(call("one", 1).await, Turn::Lost);
    assert_eq!(take_over(&ledger, product, "two", "three").await, (1, 2));

    ledger.renew(&[(product, "one".to_owned())], LEASE).await.unwrap();
    ledger.release(product, "one", &Spent::default(), Money::ZERO).await.unwrap();
    assert!(matches!(ledger.claim(product, "four", LEASE).await.unwrap(), Claim::Busy), "still three's");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_late_is_told_of_the_calls_of_others() {
    let ledger = in_redis(&fresh_run("late"));
    let product = hash("a");
    let call =
        async |token| ledger.begin_call((product, token), &nth_call(1), &Limits::default()).await.unwrap();
    ledger.claim(product, "one", LEASE).await.unwrap();
    call("one").await;
    take_over(&ledger, product, "one", "two").await;
    call("two").await;
    let put = async |token, number, late| {
        ledger.put_answer(product, token, &outcome(number), Money::ZERO, late).await.unwrap()
    };
    let kept = put("one", 1, None).await;
    assert!(matches!(kept, Kept::Late { calls: 2, spent } if spent == Spent::default()), "{kept:?}");
    assert!(matches!(ledger.claim(product, "three", LEASE).await.unwrap(), Claim::Busy), "nothing was kept");
    ledger.begin_call((product, "two"), &nth_call(2), &Limits::default()).await.unwrap();
    let kept = put("one", 1, Some(2)).await;
    assert!(matches!(kept, Kept::Late { calls: 3, .. }), "another call was begun meanwhile: {kept:?}");
    for _ in 0..2 {
        assert!(matches!(put("one", 1, Some(3)).await, Kept::Yes));
    }
    assert_eq!(call("two").await, Turn::Lost, "a product that is answered");
    let kept = put("two", 2, None).await;
    assert!(matches!(&kept, Kept::Earlier(Outcome::Rejected(first)) if first.scan == 1), "{kept:?}");
    let claim = ledger.claim(product, "three", LEASE).await.unwrap();
    assert!(matches!(&claim, Claim::Answered(Outcome::Rejected(first)) if first.scan == 1), "{claim:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_late_is_told_of_what_was_spent_by_others_that_have_given_up() {
    let ledger = in_redis(&fresh_run("late-spent"));
    let product = hash("a");
    ledger.claim(product, "one", LEASE).await.unwrap();
    assert_eq!(take_over(&ledger, product, "one", "two").await, (0, 0));
    let spent = Spent { calls: 3, prompt_tokens: 7, ..Spent::default() };
    ledger.release(product, "two", &spent, Money::ZERO).await.unwrap();
    let kept = ledger.put_answer(product, "one", &outcome(1), Money::ZERO, None).await.unwrap();
    assert!(matches!(kept, Kept::Late { calls: 0, spent: found } if found == spent), "{kept:?}");
    let kept = ledger.put_answer(product, "one", &outcome(1), Money::ZERO, Some(3)).await.unwrap();
    assert!(matches!(kept, Kept::Yes), "{kept:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_claim_that_ran_out_had_held_counts_as_spent() {
    let ledger = in_redis(&fresh_run("lost-money"));
    let limits = Limits { budget: Some(1.0), ..Limits::default() };
    let call = |usd| Call { number: 1, most: Money::from_usd(usd), before: Money::ZERO, is_beside: false };
    let (product, other) = (hash("a"), hash("b"));
    ledger.claim(product, "one", LEASE).await.unwrap();
    assert_eq!(ledger.begin_call((product, "one"), &call(0.6), &limits).await.unwrap(), Turn::Now);
    ledger.claim(other, "other", LEASE).await.unwrap();
    let turn = async || ledger.begin_call((other, "other"), &call(0.5), &limits).await.unwrap();
    assert!(matches!(turn().await, Turn::After(_)), "it may cost less");
    ledger.renew(&[(product, "one".to_owned())], Duration::from_millis(1)).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), async {
        while !matches!(ledger.claim(product, "two", LEASE).await.unwrap(), Claim::Granted(_)) {}
    })
    .await
    .expect("the lease runs out");
    assert_eq!(turn().await, Turn::OverBudget);
}

/// Its task may be behind all others in the queue, and those wait for the money.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_claim_that_ran_out_had_held_counts_as_spent_also_where_nobody_claims_the_product() {
    let ledger = in_redis(&fresh_run("unclaimed-money"));
    let limits = Limits { budget: Some(1.0), ..Limits::default() };
    let call = |usd| Call { number: 1, most: Money::from_usd(usd), before: Money::ZERO, is_beside: false };
    for id in ["dead", "alive", "waiting"] {
        ledger.claim(hash(id), id, LEASE).await.unwrap();
    }
    // Multiples of a tenth of a dollar are what some releases of Redis write as powers of ten.
    assert_eq!(ledger.begin_call((hash("dead"), "dead"), &call(0.5), &limits).await.unwrap(), Turn::Now);
    assert_eq!(ledger.begin_call((hash("alive"), "alive"), &call(0.1), &limits).await.unwrap(), Turn::Now);
    ledger.renew(&[(hash("dead"), "dead".to_owned())], Duration::from_millis(1)).await.unwrap();
    let turn = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            match ledger.begin_call((hash("waiting"), "waiting"), &call(0.45), &limits).await.unwrap() {
                Turn::After(wait) => tokio::time::sleep(wait).await,
                turn => return turn,
            }
            // Given back in good order.
            ledger.release(hash("alive"), "alive", &Spent::default(), Money::ZERO).await.unwrap();
        }
    });
    assert_eq!(
        turn.await.expect("the dead one's money is found"),
        Turn::Now,
        "0.5 are spent, 0.45 are there"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_keeps_what_is_known_of_claims_that_ran_out() {
    let ledger = in_redis(&fresh_run("losses"));
    let product = hash("a");
    ledger.claim(product, "one", LEASE).await.unwrap();
    ledger.begin_call((product, "one"), &nth_call(1), &Limits::default()).await.unwrap();
    assert_eq!(take_over(&ledger, product, "one", "two").await, (1, 1));
    for was_held in [true, false] {
        let spent = Spent { repeated_calls: 1, ..Spent::default() };
        assert_eq!(ledger.release(product, "two", &spent, Money::ZERO).await.unwrap(), was_held);
    }
    assert_eq!(ledger.claimed().await.unwrap(), 0);
    let claim = ledger.claim(product, "three", LEASE).await.unwrap();
    let Claim::Granted(grant) = claim else { panic!("{claim:?}") };
    assert_eq!(
        (grant.lost_claims, grant.lost_calls, grant.spent.repeated_calls),
        (1, 0, 1),
        "each told once"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_claim_has_lost_its_calls_and_is_no_evidence_against_its_product() {
    let ledger = in_redis(&fresh_run("abandoned"));
    let (product, kept) = (hash("a"), hash("b"));
    for product in [product, kept] {
        ledger.claim(product, "one", LEASE).await.unwrap();
        ledger.begin_call((product, "one"), &nth_call(1), &Limits::default()).await.unwrap();
    }
    let held = [(product, "one".to_owned()), (kept, "another".to_owned())];
    for _ in 0..2 {
        ledger.abandon(&held).await.unwrap();
    }
    assert!(
        matches!(ledger.claim(kept, "two", LEASE).await.unwrap(), Claim::Busy),
        "it was not the caller's"
    );
    let claim = ledger.claim(product, "two", LEASE).await.unwrap();
    assert!(matches!(claim, Claim::Granted(Grant { lost_claims: 0, lost_calls: 1, .. })), "{claim:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_producer_reads_and_one_aggregator_writes_at_a_time() {
    let ledger = in_redis(&fresh_run("turns"));
    let first = ledger.begin_scan("one").await.unwrap().unwrap();
    assert_eq!(ledger.begin_scan("one").await.unwrap(), Some(first), "the same call again");
    assert_eq!(ledger.begin_scan("two").await.unwrap(), None);
    ledger.drop_scan(first).await.unwrap();
    let second = ledger.begin_scan("two").await.unwrap().unwrap();
    assert!(second > first);
    ledger.admit(first, 1, &[hash("a")]).await.unwrap_err();
    ledger.seal(first, 0, 0).await.unwrap_err();
    ledger.seal(second, 0, 0).await.unwrap();

    assert_eq!(ledger.hold_pen("one", LEASE).await.unwrap(), Ok(()));
    assert_eq!(ledger.hold_pen("two", LEASE).await.unwrap(), Err("one".to_owned()));
    ledger.drop_pen("one").await.unwrap();
    assert_eq!(ledger.hold_pen("two", LEASE).await.unwrap(), Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_whose_batches_were_forgotten_is_not_sealed_with_too_small_a_total() {
    let run = fresh_run("set-back");
    let ledger = in_redis(&run);
    let scan = scan(&ledger).await;
    for (batch, id) in [(1, "a"), (2, "b")] {
        ledger.admit(scan, batch, &[hash(id)]).await.unwrap();
    }
    // As after a failover to a replica that had not yet heard of the second batch.
    redis::shared().cli(&["HSET", &format!("shelfmill:{{{run}}}:run"), "batch", "1"]);
    let told = ledger.admit(scan, 3, &[hash("c")]).await.unwrap_err().to_string();
    assert!(told.contains("Redis was set back to an older state"), "{told}");
    ledger.seal(scan, 2, 0).await.unwrap_err();
    assert!(!ledger.progress().await.unwrap().scan.unwrap().sealed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_tells_of_an_earlier_failures_calls_replaces_it() {
    let ledger = in_redis(&fresh_run("replaced"));
    let golden = |text: &str| Outcome::decode(text.trim_end().as_bytes()).unwrap();
    let failure = golden(include_str!("../../pipeline/golden/failed.v1.json"));
    let result = golden(include_str!("../../pipeline/golden/completed.v1.json"));
    let Outcome::Failed(line) = &failure else { panic!("not failed") };
    let (product, calls) = (line.hash(), line.spent().unwrap().all_calls());
    ledger.claim(product, "one", LEASE).await.unwrap();
    ledger.put_answer(product, "one", &failure, Money::ZERO, None).await.unwrap();
    for late in [None, Some(calls + 1)] {
        let kept = ledger.put_answer(product, "two", &result, Money::ZERO, late).await.unwrap();
        assert!(matches!(&kept, Kept::Earlier(Outcome::Failed(_))), "{kept:?}");
    }
    for _ in 0..2 {
        let kept = ledger.put_answer(product, "two", &result, Money::ZERO, Some(calls)).await.unwrap();
        assert!(matches!(kept, Kept::Yes), "{kept:?}");
    }
    let kept = ledger.put_answer(product, "one", &failure, Money::ZERO, None).await.unwrap();
    assert!(matches!(&kept, Kept::Earlier(Outcome::Completed(_))), "{kept:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_products_can_be_put_back() {
    let ledger = in_redis(&fresh_run("requeue"));
    let scan = scan(&ledger).await;
    ledger.admit(scan, 1, &[hash("SM-1")]).await.unwrap();
    let golden = include_str!("../../pipeline/golden/failed.v1.json");
    let Outcome::Failed(line) = Outcome::decode(golden.trim_end().as_bytes()).unwrap() else {
        panic!("not failed")
    };
    let done = Done::Failed {
        hash: line.hash(),
        class: FailureClass::Malformed,
        line: line.json(),
        is_told_again: false,
    };
    record(&ledger, &[done], &mark(1)).await;

    let (cursor, products) = ledger.failed_products(0).await.unwrap();
    assert_eq!((cursor, products.len()), (0, 1));
    let task = &products[0].task;
    assert_eq!((task.id.as_str(), task.seq, task.attempts, task.spent.calls), ("SM-1", 1, 0, 2));
    for expected in [1, 0] {
        assert_eq!(ledger.reopen(&[(task.hash(), task.spent)], &Changes::default()).await.unwrap(), expected);
    }
    // An aggregator that tells its whole file again does not undo it.
    let (hash, class) = (task.hash(), FailureClass::Malformed);
    ledger.claim(hash, "one", LEASE).await.unwrap();
    let again = Done::Failed { hash, class, line: line.json(), is_told_again: true };
    record(&ledger, &[again], &mark(1)).await;
    assert_eq!(ledger.progress().await.unwrap().failed, 0);
    assert!(matches!(ledger.claim(hash, "two", LEASE).await.unwrap(), Claim::Busy));
    assert_eq!(ledger.failed_products(0).await.unwrap().1.len(), 1, "kept until it is published");
    // Failed again before it was said to be published: the new line stays.
    ledger
        .record(
            &[Done::Failed {
                hash: task.hash(),
                class: FailureClass::Timeout,
                line: line.json(),
                is_told_again: false,
            }],
            Some(&mark(1)),
            &mark(2),
        )
        .await
        .unwrap();
    ledger.forget_failures(&[task.hash()]).await.unwrap();
    assert_eq!(ledger.failed_products(0).await.unwrap().1.len(), 1, "failed again");
    ledger.reopen(&[(task.hash(), task.spent)], &Changes::default()).await.unwrap();
    ledger.forget_failures(&[task.hash()]).await.unwrap();
    assert_eq!(ledger.failed_products(0).await.unwrap().1.len(), 0);
    assert!(matches!(
        ledger.claim(task.hash(), "one", LEASE).await.unwrap(),
        Claim::Granted(Grant { lost_claims: 0, lost_calls: 0, .. })
    ));
    let progress = ledger.progress().await.unwrap();
    assert_eq!((progress.failed, progress.scan.unwrap().failed, progress.failures), (0, 0, vec![]));
}

async fn what_was_found_out_of_a_server_is_kept_for_the_run(ledger: &dyn Ledger) {
    let servers = ["here", "there"].map(ToOwned::to_owned);
    assert_eq!(ledger.dialects(&servers).await.unwrap(), [Dialect::default(); 2]);
    let found = Dialect { structured: Some(Structured::JsonObject), has_new_token_field: Some(true) };
    ledger.keep_dialect("there", Dialect { structured: None, ..found }).await.unwrap();
    ledger.keep_dialect("there", found).await.unwrap();
    assert_eq!(ledger.dialects(&servers).await.unwrap(), [Dialect::default(), found]);
    assert_eq!(ledger.dialects(&[]).await.unwrap(), []);
}
