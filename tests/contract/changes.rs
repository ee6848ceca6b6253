//! What a ledger says of how a product that was put back is to be asked.

use shelfmill_pipeline::{
    changes::Changes,
    failure::FailureClass,
    identity::IdHash,
    ledger::{Admission, Claim, Done, EmbeddedLedger, Ledger},
    message::Spent,
    money::Money,
};

use super::{
    fresh_run,
    ledgers::{LEASE, failed, hash, in_redis, mark, record, scan},
};

fn with_ceiling(tokens: u32) -> Changes {
    Changes { max_output_tokens: Some(tokens), ..Changes::default() }
}

/// What a claim says of how the product is to be asked.
async fn changes_of(ledger: &dyn Ledger, product: IdHash) -> Option<Changes> {
    match ledger.claim(product, "one", LEASE).await.unwrap() {
        Claim::Granted(grant) => grant.changes,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_product_that_was_put_back_is_asked_as_was_said_last_whoever_asks() {
    let ledger = in_redis(&fresh_run("changes"));
    let product = hash("f");
    let spent = Spent { calls: 2, prompt_tokens: 620, ..Spent::default() };
    assert_eq!(changes_of(&ledger, hash("never failed")).await, None, "its task may know more");
    let fails = async |size| record(&ledger, &[failed("f", FailureClass::Truncated)], &mark(size)).await;
    let release = async || {
        assert!(ledger.release(product, "one", &Spent::default(), Money::ZERO).await.unwrap());
    };
    fails(1).await;
    assert_eq!(ledger.reopen(&[(product, spent)], &with_ceiling(4096)).await.unwrap(), 1);
    // A producer publishes it anew: its task says nothing of changes.
    let scan = scan(&ledger).await;
    let open = Admission::Open { spent: Spent::default() };
    assert_eq!(ledger.admit(scan, 1, &[product]).await.unwrap(), [open]);
    for _ in 0..2 {
        assert_eq!(changes_of(&ledger, product).await, Some(with_ceiling(4096)), "at every claim");
        release().await;
    }
    // Nor does it know what was spent; what a worker has spent since is not forgotten for it.
    let spent_on = async || match ledger.claim(product, "one", LEASE).await.unwrap() {
        Claim::Granted(grant) => grant.spent,
        other => panic!("{other:?}"),
    };
    assert_eq!(spent_on().await, spent);
    let more = Spent { calls: 3, ..spent };
    assert!(ledger.release(product, "one", &more, Money::ZERO).await.unwrap());
    ledger.reopen(&[(product, spent)], &with_ceiling(4096)).await.unwrap();
    assert_eq!(spent_on().await, more);
    release().await;
    // An aggregator tells its files again; requeue died and is done again, the same or otherwise.
    let again =
        Done::Failed { hash: product, class: FailureClass::Truncated, line: "{}", is_told_again: true };
    record(&ledger, &[again], &mark(1)).await;
    for changes in [with_ceiling(4096), with_ceiling(8192), Changes::default(), with_ceiling(2048)] {
        assert_eq!(ledger.reopen(&[(product, spent)], &changes).await.unwrap(), 0);
        assert_eq!(changes_of(&ledger, product).await, Some(changes));
        release().await;
    }
    ledger.forget_failures(&[product]).await.unwrap();
    assert_eq!(changes_of(&ledger, product).await, Some(with_ceiling(2048)));
    // It has failed again, and is put back without changes: whatever an old task of it says, it has none.
    fails(2).await;
    assert_eq!(ledger.reopen(&[(product, spent)], &Changes::default()).await.unwrap(), 1);
    assert_eq!(changes_of(&ledger, product).await, Some(Changes::default()));
    release().await;
    fails(3).await;
    ledger.reopen(&[(product, spent)], &with_ceiling(4096)).await.unwrap();
    record(&ledger, &[Done::Completed(product)], &mark(4)).await;
    assert_eq!(ledger.reopen(&[(product, spent)], &with_ceiling(4096)).await.unwrap(), 0, "it is done");
    assert!(matches!(ledger.claim(product, "one", LEASE).await.unwrap(), Claim::Done));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embedded_ledger_tells_how_a_product_is_asked_until_it_is_done() {
    let ledger = EmbeddedLedger::new();
    ledger.remember_changes(hash("f"), with_ceiling(4096));
    for _ in 0..2 {
        assert_eq!(changes_of(&ledger, hash("f")).await, Some(with_ceiling(4096)));
        assert!(ledger.release(hash("f"), "one", &Spent::default(), Money::ZERO).await.unwrap());
    }
    assert_eq!(changes_of(&ledger, hash("other")).await, None);
    record(&ledger, &[Done::Completed(hash("f"))], &mark(1)).await;
    assert!(matches!(ledger.claim(hash("f"), "one", LEASE).await.unwrap(), Claim::Done));
}
