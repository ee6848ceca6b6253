//! What is promised of every state, whatever led there (`ARCHITECTURE.md`, "The protocol").

use super::{
    ledger::Standing,
    state::{Bounds, Few, Phase, Producer, Worker, World},
};

/// The promise that this state breaks.
pub(super) fn broken(world: &World, bounds: &Bounds) -> Option<&'static str> {
    if let Some(broken) = world.past.broken {
        return Some(broken);
    }
    for product in world.products() {
        let at = usize::from(product);
        if world.disk.journal.of(product) > 1 {
            return Some("a product has two lines in the journal");
        }
        let (result, failure) =
            (world.disk.journal.synced_of(product), world.disk.failures.synced_of(product));
        match world.ledger.standing(product) {
            Standing::Completed if !result => {
                return Some("a product is said to be completed, and its line is not on disk");
            }
            Standing::Failed if !result && !failure => {
                return Some("a product is said to have failed, and its line is not on disk");
            }
            _ => {}
        }
        let is_sealed = world.ledger.scan.is_some_and(|scan| scan.sealed);
        if (world.past.published[at] || is_sealed) && !result && !failure && !is_carried(world, product) {
            return Some("a product is lost: it has no line, and no message asks for it or answers it");
        }
        if world.ledger.is_complete() && !result && !failure {
            return Some("the run is said to be complete, and a product has no line on disk");
        }
    }
    if calls(world) > explained_calls(world, bounds) {
        return Some("more calls were made than crashes, stalls and an emptied ledger explain");
    }
    if is_overflowed(world) {
        return Some("a queue or a file grows without bound");
    }
    None
}

/// Whether the broker has a message of the product that will be seen to: it waits, or its consumer has not settled it.
fn is_carried(world: &World, product: u8) -> bool {
    let held = world.workers.iter().filter_map(|worker| match worker {
        Worker::Idle => None,
        Worker::At(desk) => desk.delivery,
    });
    let writing = world.aggregator.batch.iter().filter(|_| world.aggregator.is_mine);
    world.tasks.iter().chain(world.delayed.iter()).chain(held).any(|task| task.product == product)
        || world.outcomes.iter().chain(writing).any(|line| line.product == product)
}

fn calls(world: &World) -> u8 {
    world.past.calls.iter().sum()
}

/// One for each product, one for each that was asked to be made again, and one for each thing that went wrong; an
/// emptied ledger can cost one for each product.
fn explained_calls(world: &World, bounds: &Bounds) -> u8 {
    let used = |count: fn(&Bounds) -> u8| count(bounds) - count(&world.left);
    let forgotten = used(|bounds| bounds.flushes) + used(|bounds| bounds.rollbacks);
    let faults = used(|bounds| bounds.crashes) + used(|bounds| bounds.stalls) + used(|bounds| bounds.stops);
    bounds.products * (1 + forgotten) + used(|bounds| bounds.retries) + faults
}

fn is_overflowed(world: &World) -> bool {
    let Few { overflowed: tasks, .. } = world.tasks;
    let lines = [world.outcomes, world.disk.journal.lines, world.disk.failures.lines];
    tasks || world.delayed.overflowed || lines.iter().any(|few| few.overflowed)
}

/// Where every run must be able to get to, with nobody's help but that the dead are started again.
pub(super) fn is_good_end(world: &World) -> bool {
    let lines = |product| (world.disk.journal.of(product), world.disk.failures.of(product));
    world.products().all(|product| matches!(lines(product), (1, 0) | (0, 1)))
        && world.tasks.is_empty()
        && world.delayed.is_empty()
        && world.outcomes.is_empty()
        && world.ledger.claims.iter().all(Option::is_none)
        && world.ledger.answers.iter().all(Option::is_none)
        && world.ledger.is_complete()
        && world.producers.iter().all(|producer| *producer == Producer::Absent)
        && world.workers.iter().all(|worker| *worker == Worker::Idle)
        && world.aggregator.phase == Phase::Ended
        && world.disk.results
}
