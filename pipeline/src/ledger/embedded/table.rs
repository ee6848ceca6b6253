//! The state of every product in about 13 bytes each, whatever their number.
//!
//! 80 bits of the id's hash tell products apart (among ten million the chance that any two share them is 4·10⁻¹¹). The first 8
//! are known from the bucket, so an entry is 10 bytes without padding: 9 of the hash, and one of state. Entries are in small
//! buckets, which are split one after the other as the table grows (linear hashing): there is never a second copy of it, nor
//! room for twice as many.

use std::mem;

use crate::{failure::FailureClass, identity::IdHash, ledger::State};

/// Entries of a bucket, on average: a look goes through them.
const BUCKET_ENTRIES: usize = 32;
/// A bucket grows by so many.
const ROOM_ENTRIES: usize = 4;
const STATE_BITS: u8 = 0b0000_0011;
const SEEN_BIT: u8 = 0b0000_0100;
const CLASS_SHIFT: u8 = 4;
/// As many as the hash's first byte has values, at the least: whatever a bucket holds begins with the same byte.
const BUCKETS: usize = 1 << u8::BITS;
const STATE: usize = 9;
// Four bits are left for the class.
const _: () = assert!(FailureClass::ALL.len() <= 1 << (u8::BITS - CLASS_SHIFT as u32));

/// What is known of a product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) state: State,
    /// Whether the running scan of the input has met it.
    pub(super) seen: bool,
    /// Why it failed, where it did.
    pub(super) class: Option<FailureClass>,
}

#[derive(Debug)]
pub(super) struct Table {
    buckets: Vec<Vec<Stored>>,
    entries: usize,
}

/// The hash's second to tenth byte, and the state.
type Stored = [u8; STATE + 1];

impl Default for Table {
    fn default() -> Self {
        Self { buckets: vec![Vec::new(); BUCKETS], entries: 0 }
    }
}

impl Table {
    /// What is known of the product; `None`: it was never heard of.
    pub(super) fn get(&self, product: &IdHash) -> Option<Entry> {
        let (first, key) = key(product);
        self.buckets[self.bucket(first, &key)].iter().find(|stored| same(stored, &key)).map(unpack)
    }

    /// Replaces what is known of the product.
    pub(super) fn set(&mut self, product: &IdHash, entry: Entry) {
        let (first, key) = key(product);
        let mut stored = key;
        stored[STATE] = pack(entry);
        let at = self.bucket(first, &key);
        let bucket = &mut self.buckets[at];
        if let Some(known) = bucket.iter_mut().find(|known| same(known, &key)) {
            *known = stored;
            return;
        }
        if bucket.len() == bucket.capacity() {
            bucket.reserve_exact(ROOM_ENTRIES);
        }
        bucket.push(stored);
        self.entries += 1;
        if self.entries > self.buckets.len() * BUCKET_ENTRIES {
            self.split();
        }
    }

    /// The lowest bits of the hash number a bucket: as many bits as the next power of two has, or one less where that bucket is
    /// still to be split off.
    fn bucket(&self, first: u8, key: &Stored) -> usize {
        let count = self.buckets.len();
        let rounded = count.next_power_of_two();
        let wide = (position(key) << u8::BITS | usize::from(first)) & (rounded - 1);
        if wide < count { wide } else { wide & (rounded / 2 - 1) }
    }

    /// Splits the next bucket.
    fn split(&mut self) {
        let new = self.buckets.len();
        let round = 1 << new.ilog2();
        let old = new - round;
        let [first, ..] = old.to_le_bytes();
        self.buckets.push(Vec::new());
        let (stay, leave): (Vec<_>, Vec<_>) = mem::take(&mut self.buckets[old])
            .into_iter()
            .partition(|stored| self.bucket(first, stored) == old);
        self.buckets[old] = tight(&stay);
        self.buckets[new] = tight(&leave);
    }
}

/// With room for a few more.
fn tight(entries: &[Stored]) -> Vec<Stored> {
    let mut bucket = Vec::with_capacity(entries.len() + ROOM_ENTRIES);
    bucket.extend_from_slice(entries);
    bucket
}

/// The first byte of the hash, and what an entry has of it.
fn key(product: &IdHash) -> (u8, Stored) {
    let [first, rest @ ..] = *product.as_bytes();
    let mut key = Stored::default();
    key[..STATE].copy_from_slice(&rest[..STATE]);
    (first, key)
}

/// First what a processor compares at once, and what hardly ever is the same.
fn same(stored: &Stored, key: &Stored) -> bool {
    position(stored) == position(key) && stored[..STATE] == key[..STATE]
}

/// The hash is uniform already.
fn position(stored: &Stored) -> usize {
    stored.first_chunk().map_or(0, |bytes| usize::from_le_bytes(*bytes))
}

fn pack(entry: Entry) -> u8 {
    let state = match entry.state {
        State::Open => 0,
        State::Completed => 1,
        State::Failed => 2,
    };
    let seen = if entry.seen { SEEN_BIT } else { 0 };
    let class = entry.class.and_then(|class| u8::try_from(class as usize).ok()).unwrap_or(0);
    state | seen | class << CLASS_SHIFT
}

fn unpack(stored: &Stored) -> Entry {
    let state = match stored[STATE] & STATE_BITS {
        1 => State::Completed,
        2 => State::Failed,
        _ => State::Open,
    };
    let class = FailureClass::ALL.get(usize::from(stored[STATE] >> CLASS_SHIFT)).copied();
    Entry { state, seen: stored[STATE] & SEEN_BIT != 0, class: class.filter(|_| state == State::Failed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Table {
        fn size_bytes(&self) -> usize {
            let entries: usize = self.buckets.iter().map(Vec::capacity).sum();
            entries * size_of::<Stored>() + self.buckets.capacity() * size_of::<Vec<Stored>>()
        }
    }

    #[test]
    fn keeps_what_it_is_told_in_at_most_14_bytes_a_product() {
        let mut table = Table::default();
        let states = [State::Open, State::Completed, State::Failed];
        let entry = |n: usize| Entry {
            state: states[n % 3],
            seen: n.is_multiple_of(2),
            class: (n % 3 == 2).then_some(FailureClass::ALL[n % FailureClass::ALL.len()]),
        };
        let mut worst = 0;
        for n in 0..300_000 {
            table.set(&IdHash::of(&n.to_string()), entry(n));
            if n >= 10_000 {
                worst = worst.max(table.size_bytes() * 100 / (n + 1));
            }
        }
        for n in 0..300_000 {
            assert_eq!(table.get(&IdHash::of(&n.to_string())), Some(entry(n)));
        }
        assert_eq!(table.get(&IdHash::of("never")), None);
        assert!(worst <= 1_400, "{worst} hundredths of a byte");
    }
}
