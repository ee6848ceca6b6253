//! The state of every product in at most 32 bytes each.
//!
//! An entry is 12 bytes without padding: 88 bits of the id's hash (among ten million products the chance that any
//! two share them is 2·10⁻¹³) and 8 bits of state. The table doubles when
//! it is 7/8 full, so that right after growing an entry takes (12 + 1) / (7/16) < 30 bytes. Sixteen shards grow
//! one at a time, so that the old and the new copy that coexist while growing are a sixteenth of the whole.

use hashbrown::{HashTable, hash_table::Entry as Slot};

use crate::{failure::FailureClass, identity::IdHash, ledger::State};

const SHARDS: usize = 16;
const STATE_BITS: u8 = 0b0000_0011;
const SEEN_BIT: u8 = 0b0000_0100;
const CLASS_SHIFT: u8 = 4;
const LAST: usize = IdHash::LEN - 1;
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

#[derive(Debug, Default)]
pub(super) struct Table {
    shards: [HashTable<[u8; IdHash::LEN]>; SHARDS],
}

impl Table {
    /// What is known of the product; `None`: it was never heard of.
    pub(super) fn get(&self, product: &IdHash) -> Option<Entry> {
        let key = key(product);
        self.shards[shard(&key)].find(position(&key), |stored| same(stored, &key)).map(unpack)
    }

    /// Replaces what is known of the product.
    pub(super) fn set(&mut self, product: &IdHash, entry: Entry) {
        let key = key(product);
        let mut stored = key;
        stored[LAST] |= pack(entry);
        match self.shards[shard(&key)].entry(position(&key), |stored| same(stored, &key), position) {
            Slot::Occupied(mut slot) => *slot.get_mut() = stored,
            Slot::Vacant(slot) => {
                slot.insert(stored);
            }
        }
    }
}

fn key(product: &IdHash) -> [u8; IdHash::LEN] {
    let mut key = *product.as_bytes();
    key[LAST] = 0;
    key
}

fn same(stored: &[u8; IdHash::LEN], key: &[u8; IdHash::LEN]) -> bool {
    stored[..LAST] == key[..LAST]
}

/// The hash is uniform already: its first eight bytes are as good as any hasher's output.
fn position(stored: &[u8; IdHash::LEN]) -> u64 {
    stored.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// By bits that `position` does not use, so that every shard is filled evenly.
fn shard(key: &[u8; IdHash::LEN]) -> usize {
    usize::from(key[LAST - 1]) % SHARDS
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

fn unpack(stored: &[u8; IdHash::LEN]) -> Entry {
    let state = match stored[LAST] & STATE_BITS {
        1 => State::Completed,
        2 => State::Failed,
        _ => State::Open,
    };
    let class = FailureClass::ALL.get(usize::from(stored[LAST] >> CLASS_SHIFT)).copied();
    Entry { state, seen: stored[LAST] & SEEN_BIT != 0, class: class.filter(|_| state == State::Failed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Table {
        fn size_bytes(&self) -> usize {
            self.shards.iter().map(HashTable::allocation_size).sum()
        }
    }

    #[test]
    fn keeps_what_it_is_told_in_at_most_32_bytes_a_product() {
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
        assert!(worst <= 3_200, "{worst} hundredths of a byte");
    }
}
