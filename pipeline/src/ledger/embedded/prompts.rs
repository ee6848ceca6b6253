//! The answers to prompts that are asked once, in a file: memory has only where each one is.
//!
//! The file is appended to, one record a line: `<key, 32 hex digits> <length of the JSON, 8 hex digits> <JSON>`. Nothing is
//! fsynced: what a power cut loses is asked again. At the start the file is cut where it stops being records. A record
//! whose JSON turns out to be none is as good as none.
//!
//! In memory a prompt takes at most 32 bytes: 7 bytes of its key and 5 of its place, in shards that grow one at a time, as
//! in [`super::table`]. The whole key is compared with the file's, so that no prompt gets another's answer.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader},
    os::unix::fs::FileExt,
    path::Path,
};

use hashbrown::HashTable;

use crate::{identity::PromptKey, ledger::PromptAnswer, record::MAX_LINE_BYTES};

const TAG_BYTES: usize = 7;
const PLACE_BYTES: usize = 5;
const SLOT_BYTES: usize = TAG_BYTES + PLACE_BYTES;
const MAX_FILE_BYTES: u64 = 1 << (8 * PLACE_BYTES);
const SHARDS: usize = 16;

/// `<key> <length> `
const HEAD_BYTES: usize = 2 * PromptKey::LEN + 1 + LENGTH_DIGITS + 1;
const LENGTH_DIGITS: usize = 8;

type Slot = [u8; SLOT_BYTES];

#[derive(Debug)]
pub(super) struct Prompts {
    file: File,
    name: String,
    end: u64,
    shards: [HashTable<Slot>; SHARDS],
    is_trouble_told: bool,
}

impl Prompts {
    /// Opens or makes the file, and learns where each prompt's answer is.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let name = path.display().to_string();
        let mut prompts = Self { file, name, end: 0, shards: Default::default(), is_trouble_told: false };
        let mut reader = BufReader::new(prompts.file.try_clone()?);
        let mut line = Vec::new();
        loop {
            line.clear();
            // One byte more than a record may have: what is longer is none.
            let mut limited = io::Read::take(&mut reader, (HEAD_BYTES + MAX_LINE_BYTES + 2) as u64);
            let size = limited.read_until(b'\n', &mut line)? as u64;
            let Some((prompt, length)) = line.first_chunk().and_then(read_head) else { break };
            if line.len() != HEAD_BYTES + length + 1 || !line.ends_with(b"\n") {
                break;
            }
            prompts.note(&prompt, prompts.end);
            prompts.end += size;
        }
        if prompts.file.metadata()?.len() > prompts.end {
            tracing::debug!(file = prompts.name, at = prompts.end, "cut off what is no answer to a prompt");
            prompts.file.set_len(prompts.end)?;
        }
        Ok(prompts)
    }

    /// The answer to the prompt, where there is one.
    pub(super) fn answer(&mut self, prompt: &PromptKey) -> Option<PromptAnswer> {
        let place = self.place(prompt)?;
        match self.read(prompt, place) {
            Ok(answer) => answer,
            Err(error) => {
                self.forgive(&error);
                None
            }
        }
    }

    /// Keeps the answer, unless there is one.
    pub(super) fn keep(&mut self, prompt: &PromptKey, answer: &PromptAnswer) {
        if self.answer(prompt).is_some() {
            return;
        }
        if let Err(error) = self.append(prompt, answer) {
            self.forgive(&error);
        }
    }

    fn append(&mut self, prompt: &PromptKey, answer: &PromptAnswer) -> io::Result<()> {
        let json = serde_json::to_string(answer)?;
        if json.len() > MAX_LINE_BYTES || self.end >= MAX_FILE_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let line = format!("{prompt:?} {:0LENGTH_DIGITS$x} {json}\n", json.len());
        // Where this fails halfway, the next one is written over it.
        self.file.write_all_at(line.as_bytes(), self.end)?;
        self.note(prompt, self.end);
        self.end += line.len() as u64;
        Ok(())
    }

    fn read(&self, prompt: &PromptKey, place: u64) -> io::Result<Option<PromptAnswer>> {
        let mut head = [0; HEAD_BYTES];
        self.file.read_exact_at(&mut head, place)?;
        let Some((_, length)) = read_head(&head).filter(|(found, _)| found == prompt) else {
            return Ok(None);
        };
        let mut json = vec![0; length];
        self.file.read_exact_at(&mut json, place + HEAD_BYTES as u64)?;
        Ok(serde_json::from_slice(&json).ok())
    }

    fn place(&self, prompt: &PromptKey) -> Option<u64> {
        let tag = tag(prompt);
        let slot = self.shards[shard(prompt)].find(position(&tag), |slot| slot.starts_with(&tag))?;
        let mut place = [0; 8];
        place[..PLACE_BYTES].copy_from_slice(&slot[TAG_BYTES..]);
        Some(u64::from_le_bytes(place))
    }

    /// The latest of a prompt's places counts: the one before held no answer.
    fn note(&mut self, prompt: &PromptKey, place: u64) {
        let tag = tag(prompt);
        let mut slot = [0; SLOT_BYTES];
        slot[..TAG_BYTES].copy_from_slice(&tag);
        slot[TAG_BYTES..].copy_from_slice(&place.to_le_bytes()[..PLACE_BYTES]);
        let shard = &mut self.shards[shard(prompt)];
        match shard.find_mut(position(&tag), |slot| slot.starts_with(&tag)) {
            Some(known) => *known = slot,
            None => {
                shard.insert_unique(position(&tag), slot, |slot| position(slot));
            }
        }
    }

    /// Not worth the run: what is not kept is asked again.
    fn forgive(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.is_trouble_told, true) {
            tracing::warn!(
                file = self.name,
                %error,
                "cannot keep the answers to prompts; equal prompts are asked again, and nothing else is wrong"
            );
        }
    }
}

/// A record's key, and the length of its JSON.
fn read_head(head: &[u8; HEAD_BYTES]) -> Option<(PromptKey, usize)> {
    let (key, rest) = head.split_first_chunk::<{ 2 * PromptKey::LEN }>()?;
    let mut bytes = [0; PromptKey::LEN];
    for (byte, digits) in bytes.iter_mut().zip(key.as_chunks::<2>().0) {
        *byte = u8::try_from(hex(digits)?).ok()?;
    }
    let [b' ', length @ .., b' '] = rest else { return None };
    let length = usize::try_from(hex(length)?).ok().filter(|length| *length <= MAX_LINE_BYTES)?;
    Some((PromptKey::from_bytes(bytes), length))
}

fn hex(digits: &[u8]) -> Option<u64> {
    digits
        .iter()
        .try_fold(0, |value: u64, digit| Some(value << 4 | u64::from(char::from(*digit).to_digit(16)?)))
}

fn tag(prompt: &PromptKey) -> [u8; TAG_BYTES] {
    let mut tag = [0; TAG_BYTES];
    tag.copy_from_slice(&prompt.as_bytes()[..TAG_BYTES]);
    tag
}

/// The key is uniform already. (The table tells entries apart by the highest bits, and places them by the lowest.)
fn position(tag: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    bytes[1..].copy_from_slice(&tag[..TAG_BYTES]);
    bytes[0] = tag[0] ^ tag[TAG_BYTES - 1];
    u64::from_le_bytes(bytes)
}

/// By bits that the tag does not have.
fn shard(prompt: &PromptKey) -> usize {
    usize::from(prompt.as_bytes()[TAG_BYTES]) % SHARDS
}

#[cfg(test)]
mod tests;
