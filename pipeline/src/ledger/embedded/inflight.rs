//! Remembers across a `kill -9` which products were under way and how many calls were begun for them, so that the summary
//! can say what was paid twice, and a product that ends each process is found out.
//!
//! A file of 16-byte slots: a claim writes the product's hash and what earlier processes lost into a free one, a call
//! counts itself, the record of the product's line clears it. Nothing is fsynced (a killed process leaves its writes with
//! the kernel; after a power cut the counts may be short), and a torn or foreign file only makes the counts wrong, never
//! the results.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::Path,
};

use crate::{identity::IdHash, ledger::Losses};

const SLOT_BYTES: usize = 16;
const FREE: [u8; SLOT_BYTES] = [0; SLOT_BYTES];

#[derive(Debug)]
pub(super) struct Inflight {
    file: File,
    slots: HashMap<IdHash, Slot>,
    free: Vec<u32>,
    next: u32,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    index: u32,
    losses: Losses,
    /// Calls begun under the claim that is held now.
    begun: u32,
}

impl Inflight {
    /// Opens or makes the file; what it holds was under way when the last process ended.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let mut inflight = Self { file, slots: HashMap::new(), free: Vec::new(), next: 0 };
        for slot in bytes.as_chunks::<SLOT_BYTES>().0 {
            let index = inflight.next;
            inflight.next += 1;
            if *slot == FREE {
                inflight.free.push(index);
                continue;
            }
            let mut hash = [0; IdHash::LEN];
            hash.copy_from_slice(&slot[..IdHash::LEN]);
            let [claims, calls, begun] = [0, 1, 2].map(|at| u32::from(slot[IdHash::LEN + at]));
            let losses = Losses { claims: claims + 1, calls: calls + begun };
            inflight.slots.insert(IdHash::from_bytes(hash), Slot { index, losses, begun: 0 });
        }
        Ok(inflight)
    }

    /// Notes that a product is under way; what earlier processes lost of it.
    pub(super) fn claim(&mut self, product: IdHash) -> io::Result<Losses> {
        let slot = match self.slots.get(&product) {
            Some(slot) => *slot,
            None => {
                let index = self.free.pop().unwrap_or_else(|| {
                    self.next += 1;
                    self.next - 1
                });
                Slot { index, losses: Losses::default(), begun: 0 }
            }
        };
        self.keep(product, slot)?;
        Ok(slot.losses)
    }

    /// Notes that the claim's so manieth call is about to be made.
    pub(super) fn call(&mut self, product: &IdHash, number: u32) -> io::Result<()> {
        let Some(slot) = self.slots.get(product) else { return Ok(()) };
        self.keep(*product, Slot { begun: slot.begun.max(number), ..*slot })
    }

    /// The product's line is on disk, or it was given back.
    pub(super) fn leave(&mut self, product: &IdHash) -> io::Result<()> {
        let Some(slot) = self.slots.remove(product) else { return Ok(()) };
        self.free.push(slot.index);
        self.write(slot.index, &FREE)
    }

    fn keep(&mut self, product: IdHash, slot: Slot) -> io::Result<()> {
        let byte = |count: u32| u8::try_from(count).unwrap_or(u8::MAX);
        let mut bytes = FREE;
        bytes[..IdHash::LEN].copy_from_slice(product.as_bytes());
        bytes[IdHash::LEN..IdHash::LEN + 3].copy_from_slice(&[
            byte(slot.losses.claims),
            byte(slot.losses.calls),
            byte(slot.begun),
        ]);
        self.slots.insert(product, slot);
        self.write(slot.index, &bytes)
    }

    fn write(&self, index: u32, bytes: &[u8; SLOT_BYTES]) -> io::Result<()> {
        self.file.write_all_at(bytes, u64::from(index) * SLOT_BYTES as u64)
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
        let none = Losses::default();
        let mut first = Inflight::open(&path).unwrap();
        assert_eq!(first.claim(a).unwrap(), none);
        assert_eq!(first.claim(b).unwrap(), none);
        first.call(&b, 1).unwrap();
        first.leave(&a).unwrap();
        drop(first);
        let mut second = Inflight::open(&path).unwrap();
        assert_eq!(second.claim(b).unwrap(), Losses { claims: 1, calls: 1 });
        assert_eq!(second.claim(a).unwrap(), none);
        assert_eq!(second.claim(c).unwrap(), none);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 3 * 16, "free slots are used again");
        second.call(&b, 1).unwrap();
        second.call(&b, 2).unwrap();
        second.leave(&a).unwrap();
        second.leave(&c).unwrap();
        drop(second);
        let mut third = Inflight::open(&path).unwrap();
        assert_eq!(third.claim(b).unwrap(), Losses { claims: 2, calls: 3 });
        third.leave(&b).unwrap();
        drop(third);
        assert!(Inflight::open(&path).unwrap().slots.is_empty());
    }
}
