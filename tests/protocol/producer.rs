//! The producer, as in `producer/src/scan.rs`: it is run again until its scan is sealed.

use super::{
    ledger::{Admission, Rules},
    moves::{Moves, spend},
    program::ProducerStep,
    state::{PRODUCTS, Producer, Task, World},
};

pub(super) fn moves(world: &World, number: usize, moves: &mut Moves<'_>) {
    let Producer::At { at, scan, open } = world.producers[number] else {
        return start(world, number, moves);
    };
    let mut to = *world;
    if spend(&mut to.left.crashes) {
        to.retire_producer(number);
        moves.chance("is killed", None, to);
    }
    let step = moves.protocol.producer[usize::from(at)];
    let Some((what, product, done, next)) =
        take(world, number, step, (at, scan, open), moves.protocol.ledger)
    else {
        return;
    };
    let mut to = done;
    match next {
        Some(next) if usize::from(at) + 1 < moves.protocol.producer.len() => to.producers[number] = next,
        _ => to.retire_producer(number),
    }
    moves.step(what, product, to);
    let mut to = done;
    if next.is_some() && spend(&mut to.left.lost_replies) {
        moves.chance("does not hear that this was done, and asks again", product, to);
    }
}

/// Whoever starts it sees whether the input was read to its end; a second one at the same time is a mistake.
fn start(world: &World, number: usize, moves: &mut Moves<'_>) {
    if world.ledger.scan.is_some_and(|scan| scan.sealed) {
        return;
    }
    let mut to = *world;
    to.producers[number] = Producer::At { at: 0, scan: 0, open: [false; PRODUCTS] };
    if world.producers.iter().all(|producer| *producer == Producer::Absent) {
        moves.step("starts", None, to);
    } else if world.left.producers > 1 {
        to.left.producers -= 1;
        moves.chance("starts beside another", None, to);
    }
}

/// The step's name, what it leaves, and where the producer then is; `None` of a producer whose scan was lost, and of
/// all where it must wait.
fn take(
    world: &World,
    number: usize,
    step: ProducerStep,
    (at, scan, open): (u8, u8, [bool; PRODUCTS]),
    rules: Rules,
) -> Option<(&'static str, Option<u8>, World, Option<Producer>)> {
    let mut to = *world;
    let on = |scan, open| Some(Producer::At { at: at + 1, scan, open });
    Some(match step {
        ProducerStep::Begin => {
            let scan = to.ledger.begin_scan(number as u8, world.past.scans + 1)?;
            to.past.scans = to.past.scans.max(scan);
            ("begins a scan", None, to, on(scan, open))
        }
        ProducerStep::Admit(product) => match to.ledger.admit(scan, product + 1, &[product], rules) {
            None => ("finds its scan taken over, and ends", None, to, None),
            Some(letters) => {
                let mut open = open;
                open[usize::from(product)] = letters[0] == Some(Admission::Open);
                ("admitted", Some(product), to, on(scan, open))
            }
        },
        ProducerStep::Publish(product) if open[usize::from(product)] => {
            to.tasks.insert(Task { product, ..Task::default() });
            to.past.published[usize::from(product)] = true;
            ("published", Some(product), to, on(scan, open))
        }
        ProducerStep::Publish(product) => ("skips what is not open", Some(product), to, on(scan, open)),
        ProducerStep::Seal => match to.ledger.seal(scan, world.left.products, rules) {
            true => ("sealed the scan", None, to, on(scan, open)),
            false => ("finds its scan taken over, and ends", None, to, None),
        },
    })
}
