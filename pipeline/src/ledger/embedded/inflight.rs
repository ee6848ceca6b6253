//! Remembers across a `kill -9` which products were under way and how many calls were begun for them, so that the summary
//! can say what was paid twice, and a product that ends each process is found out.
//!
//! A file of 16-byte slots: a product's first call writes its hash into a free one and each call counts itself there, the record
//! of the product's line clears it, together with those of the same batch. A call is in the file before it is made, with
//! those that are begun at the same time; what else has changed goes with the next call or record, or a few seconds later.
//! Nothing is fsynced (a killed process leaves its writes with the kernel; after a power cut the counts may be short), and a
//! torn or foreign file only makes the counts wrong, never the results.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    ops::RangeInclusive,
    os::unix::fs::FileExt,
    path::Path,
};

use crate::{
    identity::{ByProduct, IdHash},
    ledger::Grant,
    message::Spent,
};

const SLOT_BYTES: usize = 16;
const FREE: [u8; SLOT_BYTES] = [0; SLOT_BYTES];

/// What is behind that was not written here: there are never more slots than calls under way at once.
const MAX_BYTES: u64 = 1_000_000 * IdHash::LEN as u64;

/// What has changed among so many slots is written at once. With many calls under way, all of it together would be the whole
/// file.
const BLOCK_SLOTS: usize = 512;

#[derive(Debug)]
pub(super) struct Inflight {
    file: File,
    /// What is in the file, or is to be.
    bytes: Vec<[u8; SLOT_BYTES]>,
    slots: ByProduct<Slot>,
    free: Vec<usize>,
    /// Of each block, slots among which are all that the file has otherwise.
    changed: Vec<Option<RangeInclusive<usize>>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    index: usize,
    /// Processes that ended while they had the product.
    lost_claims: u8,
    /// Calls begun before the claim that is held now.
    calls: u16,
    /// Calls begun under it.
    begun: u8,
    /// Of `calls`, those that the product's task does not know of.
    untold: u16,
}

impl Slot {
    fn from_disk(index: usize, bytes: [u8; 4]) -> Self {
        let [lost_claims, begun, low, high] = bytes;
        // One that had begun no call was waiting, and is no evidence against the product.
        let lost_claims = lost_claims.saturating_add(u8::from(begun > 0));
        let calls = u16::from_le_bytes([low, high]).saturating_add(begun.into());
        Self { index, lost_claims, calls, untold: calls, begun: 0 }
    }

    fn to_disk(self) -> [u8; 4] {
        let [low, high] = self.calls.to_le_bytes();
        [self.lost_claims, self.begun, low, high]
    }
}

impl Inflight {
    /// Opens or makes the file; what it holds was under way, or waited for another try, when the last process ended.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut bytes = Vec::new();
        (&file).take(MAX_BYTES).read_to_end(&mut bytes)?;
        let bytes = bytes.as_chunks::<SLOT_BYTES>().0.to_vec();
        let (mut slots, mut free) = (ByProduct::default(), Vec::new());
        for (index, slot) in bytes.iter().enumerate() {
            if *slot == FREE {
                free.push(index);
                continue;
            }
            let (mut hash, mut counts) = ([0; IdHash::LEN], [0; 4]);
            hash.copy_from_slice(&slot[..IdHash::LEN]);
            counts.copy_from_slice(&slot[IdHash::LEN..]);
            slots.insert(IdHash::from_bytes(hash), Slot::from_disk(index, counts));
        }
        Ok(Self { file, bytes, slots, free, changed: Vec::new() })
    }

    /// What earlier processes lost of a product, which is known even where it cannot be noted that it is told. There is nothing
    /// to note of one without a call.
    pub(super) fn claim(&mut self, product: IdHash) -> (Grant, io::Result<()>) {
        let Some(slot) = self.slots.get(&product).copied() else { return (Grant::default(), Ok(())) };
        let grant = Grant {
            lost_claims: slot.lost_claims.into(),
            lost_calls: slot.untold.into(),
            spent: Spent::default(),
            changes: None,
        };
        self.keep(product, Slot { begun: 0, untold: 0, ..slot });
        (grant, self.write())
    }

    /// Notes that the claim's so manieth call is about to be made, once [`Inflight::write`] has brought it into the file.
    pub(super) fn call(&mut self, product: &IdHash, number: u32) {
        let slot = self.slots.get(product).copied();
        let slot = slot.unwrap_or_else(|| Slot { index: self.free_slot(), ..Slot::default() });
        let begun = slot.begun.max(u8::try_from(number).unwrap_or(u8::MAX));
        self.keep(*product, Slot { begun, ..slot });
    }

    /// Nobody has the product now, and no call is under way: it is answered, or waits for another try, and its calls are known
    /// to its task, which dies with this process. Or the process ends in good order, and the call was cut off. Noted by
    /// [`Inflight::write`].
    pub(super) fn rest(&mut self, product: &IdHash) {
        let Some(slot) = self.slots.get(product).copied() else { return };
        let calls = slot.calls.saturating_add(slot.begun.into());
        if calls == 0 && slot.lost_claims == 0 {
            return self.leave(product);
        }
        self.keep(*product, Slot { calls, begun: 0, ..slot });
    }

    /// The product's line is on disk. Noted by [`Inflight::write`].
    pub(super) fn leave(&mut self, product: &IdHash) {
        let Some(Slot { index, .. }) = self.slots.remove(product) else { return };
        self.free.push(index);
        self.change(index, FREE);
    }

    /// Brings what has changed into the file. What cannot be written is told, and forgotten: the slots themselves count on.
    pub(super) fn write(&mut self) -> io::Result<()> {
        let mut written = Ok(());
        for changed in self.changed.iter_mut().filter_map(Option::take) {
            let offset = changed.start() * SLOT_BYTES;
            written = written.and(self.file.write_all_at(self.bytes[changed].as_flattened(), offset as u64));
        }
        written
    }

    fn free_slot(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.bytes.push(FREE);
            self.bytes.len() - 1
        })
    }

    fn keep(&mut self, product: IdHash, slot: Slot) {
        let mut bytes = FREE;
        bytes[..IdHash::LEN].copy_from_slice(product.as_bytes());
        bytes[IdHash::LEN..].copy_from_slice(&slot.to_disk());
        self.slots.insert(product, slot);
        self.change(slot.index, bytes);
    }

    fn change(&mut self, index: usize, bytes: [u8; SLOT_BYTES]) {
        self.bytes[index] = bytes;
        let block = index / BLOCK_SLOTS;
        if block >= self.changed.len() {
            self.changed.resize(block + 1, None);
        }
        let with = |changed: &RangeInclusive<usize>| index.min(*changed.start())..=index.max(*changed.end());
        self.changed[block] = Some(self.changed[block].as_ref().map_or(index..=index, with));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_claimed_and_not_left_is_known_to_the_next_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("inflight");
        let [a, b, c] = ["a", "b", "c"].map(IdHash::of);
        let none = Grant::default();
        let lost = |lost_claims, lost_calls| Grant { lost_claims, lost_calls, ..Grant::default() };
        let mut first = Inflight::open(&path).unwrap();
        assert_eq!(first.claim(a).0, none);
        assert_eq!(first.claim(b).0, none);
        first.call(&b, 1);
        first.call(&a, 1);
        first.leave(&a);
        first.write().unwrap();
        drop(first);
        let mut second = Inflight::open(&path).unwrap();
        assert_eq!(second.claim(b).0, lost(1, 1));
        assert_eq!(second.claim(a).0, none);
        assert_eq!(second.claim(c).0, none);
        second.call(&b, 1);
        second.call(&b, 2);
        second.call(&c, 1);
        second.write().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 2 * 16, "free slots are used again");
        second.leave(&c);
        second.leave(&a);
        second.write().unwrap();
        drop(second);
        let mut third = Inflight::open(&path).unwrap();
        assert_eq!(third.claim(b).0, lost(2, 3));
        third.leave(&b);
        third.write().unwrap();
        drop(third);
        assert!(Inflight::open(&path).unwrap().slots.is_empty());
    }

    #[test]
    fn calls_of_a_product_that_waits_for_another_try_are_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("inflight");
        let product = IdHash::of("a");
        let mut first = Inflight::open(&path).unwrap();
        for _ in 0..2 {
            assert_eq!(first.claim(product).0, Grant::default(), "its task knows of the call before");
            first.call(&product, 1);
            first.rest(&product);
            first.write().unwrap();
        }
        drop(first);
        let mut second = Inflight::open(&path).unwrap();
        let grant = second.claim(product).0;
        assert_eq!((grant.lost_claims, grant.lost_calls), (0, 2), "nobody had it, and its task is gone");
        second.call(&product, 1);
        second.write().unwrap();
        drop(second);
        let mut third = Inflight::open(&path).unwrap();
        let _ = third.claim(product);
        third.rest(&product);
        assert_eq!(third.claim(product).0.lost_claims, 1, "a wait for another try forgives nothing");
    }

    #[test]
    fn what_was_answered_goes_with_the_next_call_near_or_far() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("inflight");
        let products: Vec<IdHash> = (0..2_000).map(|n: u32| IdHash::of(&n.to_string())).collect();
        let mut first = Inflight::open(&path).unwrap();
        for product in &products {
            first.call(product, 1);
        }
        first.write().unwrap();
        for n in [0, 1_999, 7, 1_000, 1_001] {
            first.rest(&products[n]);
        }
        first.call(&IdHash::of("next"), 1);
        first.write().unwrap();
        drop(first);
        let mut second = Inflight::open(&path).unwrap();
        let lost_claims = |n: usize, second: &mut Inflight| second.claim(products[n]).0.lost_claims;
        assert_eq!([0, 1_999, 7, 1_000, 1_001].map(|n| lost_claims(n, &mut second)), [0; 5]);
        assert_eq!([1, 1_998, 500].map(|n| lost_claims(n, &mut second)), [1; 3]);
        assert_eq!(second.claim(IdHash::of("next")).0.lost_calls, 1);
    }
}
