//! Remembers across a `kill -9` which products had a call under way, so that the summary can say how many
//! calls were made twice.
//!
//! A file of 12-byte slots: a claim writes the product's hash into a free one, the record of its line clears
//! it. Nothing is fsynced (a killed process leaves its writes with the kernel; after a power cut the count may
//! be short), and a torn or foreign file only makes the count wrong, never the results.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::Path,
};

use crate::identity::IdHash;

const FREE: [u8; IdHash::LEN] = [0; IdHash::LEN];

/// What is behind that was not written here: there are never more slots than calls under way at once.
const MAX_BYTES: u64 = 1_000_000 * IdHash::LEN as u64;

#[derive(Debug)]
pub(super) struct Inflight {
    file: File,
    slots: HashMap<IdHash, u32>,
    free: Vec<u32>,
    next: u32,
}

impl Inflight {
    /// Opens or makes the file; what it holds was under way when the last process ended.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut bytes = Vec::new();
        (&file).take(MAX_BYTES).read_to_end(&mut bytes)?;
        let mut inflight = Self { file, slots: HashMap::new(), free: Vec::new(), next: 0 };
        for slot in bytes.as_chunks::<{ IdHash::LEN }>().0 {
            if *slot == FREE {
                inflight.free.push(inflight.next);
            } else {
                inflight.slots.insert(IdHash::from_bytes(*slot), inflight.next);
            }
            inflight.next += 1;
        }
        Ok(inflight)
    }

    /// Notes that a call is about to be made; whether one had been under way when an earlier process ended.
    pub(super) fn enter(&mut self, product: IdHash) -> io::Result<bool> {
        if self.slots.contains_key(&product) {
            return Ok(true);
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        self.slots.insert(product, slot);
        self.write(slot, product.as_bytes())?;
        Ok(false)
    }

    /// The product's line is on disk, or its call has ended without one.
    pub(super) fn leave(&mut self, product: &IdHash) -> io::Result<()> {
        let Some(slot) = self.slots.remove(product) else { return Ok(()) };
        self.free.push(slot);
        self.write(slot, &FREE)
    }

    fn write(&self, slot: u32, bytes: &[u8; IdHash::LEN]) -> io::Result<()> {
        self.file.write_all_at(bytes, u64::from(slot) * IdHash::LEN as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_entered_and_not_left_is_known_to_the_next_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("inflight");
        let [a, b, c] = ["a", "b", "c"].map(IdHash::of);
        let mut first = Inflight::open(&path).unwrap();
        assert!(!first.enter(a).unwrap());
        assert!(!first.enter(b).unwrap());
        first.leave(&a).unwrap();
        drop(first);
        let mut second = Inflight::open(&path).unwrap();
        assert!(second.enter(b).unwrap());
        assert!(!second.enter(a).unwrap());
        assert!(!second.enter(c).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 3 * 12);
    }
}
