//! Visits every state that can be reached, the nearest first, so that a counterexample is as short as can be.
//!
//! Two questions are asked. Of each state: does it break a promise? Of all of them in the end: does a way lead from
//! each to a good end on which nothing happens by chance?

use std::{
    fmt,
    hash::{BuildHasher, BuildHasherDefault, Hasher},
};

use hashbrown::HashTable;

use super::{
    moves::{Action, Move, moves},
    program::Protocol,
    promises::{broken, is_good_end},
    state::{Bounds, World},
};

/// More states than this are a mistake in the bounds.
const MOST_STATES: usize = 5_000_000;

/// What was seen when everything held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Explored {
    pub(super) states: usize,
    pub(super) moves: usize,
    pub(super) depth: usize,
    pub(super) good_ends: usize,
}

impl fmt::Display for Explored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { states, moves, depth, good_ends } = self;
        write!(f, "{states} states, {moves} moves, depth {depth}, {good_ends} good ends")
    }
}

/// The shortest way to a state that breaks a promise.
#[derive(Debug)]
pub(super) struct Counterexample {
    pub(super) promise: &'static str,
    pub(super) way: Vec<Action>,
    pub(super) state: Box<World>,
    /// States that were visited before it was found.
    pub(super) states: usize,
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "broken: {}", self.promise)?;
        for (number, action) in self.way.iter().enumerate() {
            writeln!(f, "{:>4}. {action}", number + 1)?;
        }
        let World { aggregator, ledger, disk, past, .. } = *self.state;
        let lines = |few: super::state::Few<_>| {
            few.iter().map(|line: super::ledger::Line| line.product + 1).collect::<Vec<_>>()
        };
        let who = |product: &u8| usize::from(*product);
        let products: Vec<u8> = self.state.products().collect();
        writeln!(
            f,
            "      journal {:?}, failures {:?}; tasks {}, delayed {}, outcomes {}",
            lines(disk.journal.lines),
            lines(disk.failures.lines),
            self.state.tasks.len(),
            self.state.delayed.len(),
            self.state.outcomes.len(),
        )?;
        for product in &products {
            writeln!(
                f,
                "      product {}: {:?}, claim {:?}, answered {}, calls {}",
                product + 1,
                ledger.standing(*product),
                ledger.claims[who(product)],
                ledger.answers[who(product)].is_some(),
                past.calls[who(product)],
            )?;
        }
        write!(f, "      scan {:?}; aggregator {:?}", ledger.scan, aggregator.phase)
    }
}

/// FNV-like, a word at a time: the states are small and nobody chooses them to collide.
#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u8(*byte));
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(byte.into());
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn write_isize(&mut self, word: isize) {
        self.write_u64(word as u64);
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

fn hash(world: &World) -> u64 {
    BuildHasherDefault::<Mix>::default().hash_one(world)
}

#[derive(Default)]
struct Visited {
    worlds: Vec<World>,
    /// From which state, and how.
    origins: Vec<(u32, Option<Action>)>,
    table: HashTable<(u64, u32)>,
}

impl Visited {
    /// The number of the state, or of the one that differs from it only in which worker is which.
    fn visit(&mut self, world: &World, origin: (u32, Option<Action>)) -> u32 {
        let mirrored = world.mirrored();
        let (own, other) = (hash(world), hash(&mirrored));
        let worlds = &self.worlds;
        let is_same = |(hash, number): &(u64, u32)| {
            let known = &worlds[*number as usize];
            (*hash == own && known == world) || (*hash == other && *known == mirrored)
        };
        for hash in [own, other] {
            if let Some((_, number)) = self.table.find(hash, is_same) {
                return *number;
            }
        }
        let number = self.worlds.len() as u32;
        self.table.insert_unique(own, (own, number), |(hash, _)| *hash);
        self.worlds.push(*world);
        self.origins.push(origin);
        number
    }

    fn way_to(&self, mut number: u32) -> Vec<Action> {
        let mut way = Vec::new();
        while let (from, Some(action)) = self.origins[number as usize] {
            way.push(action);
            number = from;
        }
        way.reverse();
        way
    }

    fn counterexample(&self, promise: &'static str, number: u32) -> Counterexample {
        let state = Box::new(self.worlds[number as usize]);
        Counterexample { promise, way: self.way_to(number), state, states: self.worlds.len() }
    }
}

/// Everything that can happen within the bounds.
pub(super) fn explore(protocol: &Protocol, bounds: Bounds) -> Result<Explored, Counterexample> {
    let mut visited = Visited::default();
    // Moves that are not chance, backwards.
    let mut certain: Vec<(u32, u32)> = Vec::new();
    let (mut all, mut depth) = (0, 0);
    visited.visit(&World::new(bounds), (0, None));
    let mut found: Vec<Move> = Vec::new();
    let (mut number, mut level_end) = (0, 1);
    while number < visited.worlds.len() {
        if number == level_end {
            (depth, level_end) = (depth + 1, visited.worlds.len());
        }
        let from = visited.worlds[number];
        if let Some(promise) = broken(&from, &bounds) {
            return Err(visited.counterexample(promise, number as u32));
        }
        moves(&from, protocol, &bounds, &mut found);
        all += found.len();
        for Move { action, to, is_chance } in &found {
            let reached = visited.visit(to, (number as u32, Some(*action)));
            if !is_chance {
                certain.push((reached, number as u32));
            }
        }
        assert!(visited.worlds.len() < MOST_STATES, "the bounds are too wide: {bounds:?}");
        number += 1;
    }
    let good_ends: Vec<u32> = (0..visited.worlds.len() as u32)
        .filter(|number| is_good_end(&visited.worlds[*number as usize]))
        .collect();
    if let Some(stuck) = first_without(&good_ends, certain, visited.worlds.len()) {
        return Err(visited.counterexample("no way leads to a good end from here", stuck));
    }
    Ok(Explored { states: visited.worlds.len(), moves: all, depth, good_ends: good_ends.len() })
}

/// The first state from which none of the ends can be reached over the edges, which are given backwards.
fn first_without(ends: &[u32], mut edges: Vec<(u32, u32)>, states: usize) -> Option<u32> {
    edges.sort_unstable();
    let mut reaches = vec![false; states];
    let mut todo = ends.to_vec();
    ends.iter().for_each(|end| reaches[*end as usize] = true);
    while let Some(to) = todo.pop() {
        let first = edges.partition_point(|(reached, _)| *reached < to);
        for (_, from) in edges[first..].iter().take_while(|(reached, _)| *reached == to) {
            if !std::mem::replace(&mut reaches[*from as usize], true) {
                todo.push(*from);
            }
        }
    }
    reaches.iter().position(|reaches| !reaches).map(|number| number as u32)
}
