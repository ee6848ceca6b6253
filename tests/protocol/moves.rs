//! What can happen next: a step of a role, time passing, or something going wrong.

use std::fmt;

use super::{
    aggregator, producer,
    program::Protocol,
    state::{Bounds, NOBODY, WORKERS, World},
    worker,
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Who {
    Producer(usize),
    Worker(usize),
    Aggregator,
    Broker,
    Redis,
    Time,
}

/// A line of a counterexample.
#[derive(Clone, Copy, Debug)]
pub(super) struct Action {
    pub(super) who: Who,
    pub(super) what: &'static str,
    pub(super) product: Option<u8>,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = match self.who {
            Who::Producer(number) => format!("producer {}", number + 1),
            Who::Worker(number) => format!("worker {}", number + 1),
            Who::Aggregator => "aggregator".to_owned(),
            Who::Broker => "RabbitMQ".to_owned(),
            Who::Redis => "Redis".to_owned(),
            Who::Time => "time".to_owned(),
        };
        write!(f, "{who:<11} {}", self.what)?;
        self.product.map_or(Ok(()), |product| write!(f, " [product {}]", product + 1))
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Move {
    pub(super) action: Action,
    pub(super) to: World,
    /// Whether this is chance, on which nothing may depend to come to an end.
    pub(super) is_chance: bool,
}

/// Collects what can happen in one state.
pub(super) struct Moves<'a> {
    pub(super) protocol: &'a Protocol,
    pub(super) bounds: &'a Bounds,
    pub(super) found: &'a mut Vec<Move>,
    who: Who,
}

impl Moves<'_> {
    pub(super) fn step(&mut self, what: &'static str, product: Option<u8>, to: World) {
        self.add(what, product, to, false);
    }

    pub(super) fn chance(&mut self, what: &'static str, product: Option<u8>, to: World) {
        self.add(what, product, to, true);
    }

    fn add(&mut self, what: &'static str, product: Option<u8>, to: World, is_chance: bool) {
        self.found.push(Move { action: Action { who: self.who, what, product }, to, is_chance });
    }

    /// Whether Redis has lost something since the beginning.
    pub(super) fn has_forgotten(&self, world: &World) -> bool {
        self.used(world, |bounds| bounds.flushes) + self.used(world, |bounds| bounds.rollbacks) > 0
    }

    /// How often something has gone wrong.
    pub(super) fn used(&self, world: &World, count: fn(&Bounds) -> u8) -> u8 {
        count(self.bounds) - count(&world.left)
    }
}

/// Takes one from what can still go wrong, if there is one left.
pub(super) fn spend(left: &mut u8) -> bool {
    let had = *left > 0;
    *left = left.saturating_sub(1);
    had
}

/// Everything that can happen in this state.
pub(super) fn moves(world: &World, protocol: &Protocol, bounds: &Bounds, found: &mut Vec<Move>) {
    found.clear();
    let mut moves = Moves { protocol, bounds, found, who: Who::Time };
    for number in 0..usize::from(bounds.producers) {
        moves.who = Who::Producer(number);
        producer::moves(world, number, &mut moves);
    }
    for number in 0..WORKERS {
        moves.who = Who::Worker(number);
        worker::moves(world, number, &mut moves);
    }
    moves.who = Who::Aggregator;
    aggregator::moves(world, &mut moves);
    moves.who = Who::Broker;
    delayed(world, &mut moves);
    moves.who = Who::Time;
    leases(world, &mut moves);
    moves.who = Who::Redis;
    redis(world, &mut moves);
}

fn delayed(world: &World, moves: &mut Moves<'_>) {
    let mut last = None;
    for (at, task) in world.delayed.iter().enumerate() {
        if last.replace(task) == Some(task) {
            continue;
        }
        let mut to = *world;
        to.delayed.remove(at);
        to.tasks.insert(task);
        moves.step("gives a delayed task back", Some(task.product), to);
    }
}

/// A lease of the dead runs out by itself; one of the living only when they stall.
fn leases(world: &World, moves: &mut Moves<'_>) {
    for product in world.products() {
        let Some(held) = world.ledger.claims[usize::from(product)].filter(|held| held.live) else { continue };
        let mut to = *world;
        to.ledger.run_out(product);
        if held.token == NOBODY {
            moves.step("the lease of a dead worker's claim runs out", Some(product), to);
        } else if spend(&mut to.left.stalls) {
            moves.chance("the lease of a stalled worker's claim runs out", Some(product), to);
        }
    }
    let Some(scan) = world.ledger.scan.filter(|scan| scan.live) else { return };
    let mut to = *world;
    to.ledger.keep_scan(scan.number, false);
    if scan.by == NOBODY {
        moves.step("the lease of a dead producer's scan runs out", None, to);
    } else if spend(&mut to.left.stalls) {
        moves.chance("the lease of a stalled producer's scan runs out", None, to);
    }
}

fn redis(world: &World, moves: &mut Moves<'_>) {
    let mut to = *world;
    if spend(&mut to.left.flushes) {
        to.ledger = Default::default();
        moves.chance("is emptied", None, to);
    }
    let mut to = *world;
    match world.snapshot {
        None if world.left.rollbacks > 0 => {
            to.snapshot = Some(world.ledger);
            moves.chance("is copied", None, to);
        }
        Some(snapshot) if spend(&mut to.left.rollbacks) => {
            (to.ledger, to.snapshot) = (snapshot, None);
            moves.chance("comes back as it was when it was copied", None, to);
        }
        _ => {}
    }
}
