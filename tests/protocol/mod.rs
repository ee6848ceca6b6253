//! The protocol as a model, and every state it can get into.
//!
//! Crash points and storms (`tests/crashes.rs`, `tests/storm.rs`) try some of the ways in which steps, crashes, lost
//! replies and leases can fall together. Here all of them are tried, over roles whose steps are those of the code: in each
//! state every promise of `ARCHITECTURE.md` is checked, and from each state a way must lead to a good end. What makes that
//! possible is that everything is small: one or two products, two workers, one aggregator, and a bounded number of things
//! that go wrong ([`state::Bounds`]).
//!
//! | file | what it is |
//! | --- | --- |
//! | `program` | the order of every role's steps, as data |
//! | `ledger` | the scripts of Redis |
//! | `state` | queues, ledger, disk, roles, and what can still go wrong |
//! | `producer`, `worker`, `aggregator`, `moves` | what can happen next |
//! | `promises` | what must hold in each state, and what a good end is |
//! | `explorer` | visits every state, the nearest first |
//! | `mutations` | each order and rule broken on purpose, and the promise that falls |
//! | `conformance` | the same random calls to the model's ledger and to the real ones |
//!
//! Not modelled: the delivery limit, rejects, several aggregators (lock, pen), requeueing, bytes of a line, power cuts of
//! the brokers' machines. They have tests of their own.
//!
//! `cargo test --test system -- protocol --nocapture` shows how much was visited, and the shortest way to each broken
//! promise; with `--ignored` the bounds are wider.

mod aggregator;
mod conformance;
mod explorer;
mod ledger;
mod moves;
mod mutations;
mod producer;
mod program;
mod promises;
mod state;
mod worker;

use explorer::explore;
use program::Protocol;
use state::{Bounds, ONE, TWO};

fn holds(name: &str, bounds: Bounds) {
    holds_in(name, bounds, |_| {});
}

fn holds_in(name: &str, bounds: Bounds, change: impl Fn(&mut Protocol)) {
    let began = std::time::Instant::now();
    let mut protocol = Protocol::real(bounds.products);
    change(&mut protocol);
    match explore(&protocol, bounds) {
        Ok(explored) => println!("{name}: {explored}, in {:.1?}", began.elapsed()),
        Err(found) => panic!("{name}, after {} states\n{found}", found.states),
    }
}

macro_rules! hold {
    ($($(#[$attribute:meta])* $test:ident: $bounds:expr;)*) => {
        $(#[test] $(#[$attribute])* fn $test() { holds(stringify!($test), $bounds); })*
    };
}

hold! {
    two_products_and_nothing_goes_wrong: TWO;
    two_crashes: Bounds { crashes: 2, ..ONE };
    a_crash_and_a_power_cut: Bounds { crashes: 1, power_cuts: 1, ..ONE };
    a_crash_among_two_products: Bounds { crashes: 1, ..TWO };
    a_crash_a_retry_and_a_stop: Bounds { crashes: 1, retries: 1, stops: 1, ..ONE };
    two_retries_and_a_stop: Bounds { retries: 2, stops: 1, ..ONE };
    a_worker_is_paused_and_its_task_is_given_to_another: Bounds { stalls: 1, disconnects: 1, crashes: 1, ..ONE };
    a_paused_worker_fails_or_the_other_does: Bounds { stalls: 1, disconnects: 1, failures: 1, ..ONE };
    a_paused_worker_tries_again_and_so_does_the_other: Bounds { stalls: 1, disconnects: 1, retries: 1, ..ONE };
    a_paused_worker_or_the_other_ends_with_its_grace: Bounds { stalls: 1, disconnects: 1, stops: 1, ..ONE };
    a_paused_worker_does_not_hear: Bounds { stalls: 1, disconnects: 1, lost_replies: 1, ..ONE };
    a_delivery_and_a_reply_are_lost: Bounds { disconnects: 1, lost_replies: 1, ..ONE };
    two_replies_are_lost: Bounds { lost_replies: 2, ..ONE };
    a_final_failure_a_crash_and_a_stop: Bounds { failures: 1, crashes: 1, stops: 1, ..ONE };
    redis_is_emptied_and_a_process_dies: Bounds { flushes: 1, crashes: 1, ..ONE };
    redis_is_emptied_while_a_worker_is_paused: Bounds { flushes: 1, stalls: 1, ..ONE };
    redis_is_emptied_and_a_product_fails: Bounds { flushes: 1, failures: 1, stops: 1, ..ONE };
    redis_is_set_back: Bounds { rollbacks: 1, ..ONE };
    redis_is_set_back_and_a_product_fails: Bounds { rollbacks: 1, failures: 1, ..ONE };
    two_producers_at_once: Bounds { producers: 2, stalls: 1, ..ONE };

    #[ignore = "up to half a minute each, and a few gigabytes"]
    wide_crashes: Bounds { crashes: 3, retries: 1, ..ONE };
    #[ignore = "up to half a minute each, and a few gigabytes"]
    wide_producers: Bounds { producers: 2, stalls: 1, crashes: 1, ..ONE };
    #[ignore = "up to half a minute each, and a few gigabytes"]
    wide_flush: Bounds { flushes: 1, stalls: 1, disconnects: 1, ..ONE };
    #[ignore = "up to half a minute each, and a few gigabytes"]
    wide_flush_among_two_products: Bounds { flushes: 1, ..TWO };
    #[ignore = "up to half a minute each, and a few gigabytes"]
    wide_pause: Bounds { stalls: 2, disconnects: 1, crashes: 1, failures: 1, ..ONE };
    #[ignore = "up to half a minute each, and a few gigabytes"]
    wide_pause_and_retries: Bounds { stalls: 2, disconnects: 1, retries: 2, ..ONE };
    #[ignore = "up to half a minute each, and a few gigabytes"]
    wide_pause_and_death: Bounds { stalls: 1, disconnects: 1, retries: 1, crashes: 1, ..ONE };
    #[ignore = "up to half a minute each, and a few gigabytes"]
    wide_pause_and_end: Bounds { stalls: 1, disconnects: 1, retries: 1, stops: 1, ..ONE };
    #[ignore = "up to half a minute each, and a few gigabytes"]
    wide_rollback: Bounds { rollbacks: 1, crashes: 1, ..ONE };
}

/// The code gives up after five; two are enough to see that it ends well.
#[test]
fn a_product_that_ends_its_workers_is_given_up() {
    let bounds = Bounds { crashes: 2, ..ONE };
    holds_in("a_product_that_ends_its_workers_is_given_up", bounds, |it| it.poisoned_after = 2);
}
