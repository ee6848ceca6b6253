//! One JSON array of records, of any size, also on a single line; or objects one after another without an array.
//!
//! Elements are cut out by brackets and quotes alone and only then parsed, so memory is bounded by one record, and a
//! broken element does not end the reading: [`super::json_scan`] says how its end is found. Every byte that is not
//! whitespace or a comma ends in a record or a reject; text after the array ends in one reject.

use shelfmill_pipeline::json_text::is_space;

use super::entry::{EXCERPT_BYTES, Entry, MAX_RECORD_BYTES, Refusal, RejectReason};
use super::error::InputError;
use super::json_scan::{Scan, indent_after};
use super::object::Objects;
use super::source::Text;

pub(super) struct JsonArray {
    text: Text,
    /// The physical line of the next byte, from 1.
    line: u64,
    /// How far in the next byte stands, if it is the first on its line.
    indent: Option<usize>,
    place: Place,
    /// The element at hand, or the beginning of an overlong one.
    element: Vec<u8>,
    objects: Objects,
}

/// What is around the next byte.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Start,
    InArray,
    /// Objects that stand one after another: many a `.json` is JSONL.
    InSequence,
    AfterArray,
    End,
}

impl JsonArray {
    pub(super) fn new(text: Text, id_field: Option<String>) -> Self {
        let objects = Objects::new(text.name(), id_field);
        Self { text, line: 1, indent: Some(0), place: Place::Start, element: Vec::new(), objects }
    }

    fn next_entry(&mut self) -> Result<Option<Entry>, InputError> {
        while self.place != Place::End {
            let Some(byte) = self.next_significant()? else {
                return self.end_of_text();
            };
            match (self.place, byte) {
                // Pages of an export put into one file are several arrays.
                (Place::Start | Place::AfterArray, b'[') => self.pass(Place::InArray),
                (Place::Start | Place::AfterArray, b'{') => self.place = Place::InSequence,
                // The bracket before belonged to a broken element: nobody goes on like this after an array.
                (Place::AfterArray, b',' | b'}' | b']') => self.place = Place::InArray,
                (Place::Start, other) => {
                    return Err(InputError::NotJson {
                        name: self.text.name().to_owned(),
                        found: if other.is_ascii() { char::from(other) } else { char::REPLACEMENT_CHARACTER },
                    });
                }
                (Place::InArray, b']') => self.pass(Place::AfterArray),
                (Place::InArray | Place::InSequence, b',') => self.pass(self.place),
                (Place::InArray | Place::InSequence, _) => return self.element().map(Some),
                (Place::AfterArray, _) => return self.trailing_text().map(Some),
                (Place::End, _) => break,
            }
        }
        Ok(None)
    }

    fn pass(&mut self, place: Place) {
        self.text.consume(1);
        self.indent = None;
        self.place = place;
    }

    /// Goes past whitespace and tells the byte after it without taking it.
    fn next_significant(&mut self) -> Result<Option<u8>, InputError> {
        loop {
            let chunk = self.text.fill()?;
            if chunk.is_empty() {
                return Ok(None);
            }
            let significant = chunk.iter().position(|&byte| !is_space(byte));
            let spaces = significant.unwrap_or(chunk.len());
            let byte = significant.map(|at| chunk[at]);
            self.line += line_feeds(&chunk[..spaces]);
            self.indent = chunk[..spaces].iter().copied().fold(self.indent, indent_after);
            self.text.consume(spaces);
            if byte.is_some() {
                return Ok(byte);
            }
        }
    }

    fn element(&mut self) -> Result<Entry, InputError> {
        let line = self.line;
        let mut scan = Scan::new(self.indent.take());
        let mut is_overlong = false;
        self.element.clear();
        loop {
            let chunk = self.text.fill()?;
            if chunk.is_empty() {
                return Ok(self.cut_off(line));
            }
            let end = scan.advance(chunk);
            let part = &chunk[..end.unwrap_or(chunk.len())];
            let room = MAX_RECORD_BYTES.saturating_sub(self.element.len());
            is_overlong |= part.len() > room;
            self.element.extend_from_slice(&part[..part.len().min(room)]);
            self.line += line_feeds(part);
            let count = part.len();
            self.text.consume(count);
            if end.is_some() {
                break;
            }
        }
        if is_overlong {
            let refusal = Refusal::too_large("the record");
            return Ok(Entry::reject(line, &self.element, refusal));
        }
        self.objects.read(line, &self.element)
    }

    fn cut_off(&mut self, line: u64) -> Entry {
        let detail = if self.place == Place::InArray {
            "the text ends inside this record; the array is not closed"
        } else {
            "the text ends inside this record"
        };
        self.place = Place::End;
        Entry::reject(line, &self.element, Refusal::new(RejectReason::Unreadable, detail))
    }

    fn end_of_text(&mut self) -> Result<Option<Entry>, InputError> {
        let place = std::mem::replace(&mut self.place, Place::End);
        match place {
            Place::Start => {
                Err(InputError::Empty { name: self.text.name().to_owned(), expected: "a JSON array" })
            }
            Place::InArray => {
                let refusal = Refusal::new(RejectReason::Unreadable, "the array is not closed");
                Ok(Some(Entry::reject(self.line, b"", refusal)))
            }
            Place::InSequence | Place::AfterArray | Place::End => Ok(None),
        }
    }

    fn trailing_text(&mut self) -> Result<Entry, InputError> {
        self.place = Place::End;
        self.element.clear();
        while self.element.len() < EXCERPT_BYTES {
            let chunk = self.text.fill()?;
            if chunk.is_empty() {
                break;
            }
            let count = chunk.len().min(EXCERPT_BYTES - self.element.len());
            self.element.extend_from_slice(&chunk[..count]);
            self.text.consume(count);
        }
        let refusal = Refusal::new(
            RejectReason::Unreadable,
            "there is text after the end of the array; it is not read",
        );
        Ok(Entry::reject(self.line, &self.element, refusal))
    }
}

impl Iterator for JsonArray {
    type Item = Result<Entry, InputError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_entry().transpose()
    }
}

fn line_feeds(bytes: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', bytes).count() as u64
}

#[cfg(test)]
#[path = "json_array_tests.rs"]
mod tests;
