//! What an input yields, and what it refuses.
//!
//! Every piece of the input that could have been a product comes out as exactly one [`Entry`], readable or not,
//! with the line it begins on: a catalog is long, and "line 48213" is what makes a mistake repairable. A refused
//! piece keeps only a short excerpt, so a reject is small whatever was refused.

use std::fmt;

use serde::Serialize;
use serde_json::value::RawValue;

/// The largest record, in bytes, as it stands in the input and as the JSON object made of it.
/// It keeps a task far below what a broker takes as one message.
pub const MAX_RECORD_BYTES: usize = 1024 * 1024;

/// The most characters of a refused record that are told.
pub const MAX_EXCERPT_CHARS: usize = 200;

/// The bytes that are enough for an excerpt: a UTF-8 character has at most four.
pub(super) const EXCERPT_BYTES: usize = MAX_EXCERPT_CHARS * 4;

/// One piece of the input.
#[derive(Debug, Clone)]
pub enum Entry {
    Record(Record),
    Reject(Reject),
}

/// A product as the input has it. `body` is one JSON object on one line, at most [`MAX_RECORD_BYTES`] long, and
/// any later parse of it into a `serde_json::Value` succeeds.
#[derive(Debug, Clone)]
pub struct Record {
    /// The physical line, from 1, of the decompressed text on which the record begins.
    pub line: u64,
    /// Exactly as the input spells it; never blank, at most [`super::MAX_ID_BYTES`].
    pub id: String,
    pub body: Box<RawValue>,
}

/// A piece of the input that is no product, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reject {
    /// The physical line, from 1, of the decompressed text on which the piece begins.
    pub line: u64,
    pub id: Option<String>,
    pub reason: RejectReason,
    /// One sentence for whoever repairs the input.
    pub detail: String,
    /// The beginning of the piece, at most [`MAX_EXCERPT_CHARS`] characters; bytes that are not UTF-8 are replaced.
    pub excerpt: String,
}

/// Why a piece of the input is no product. The names are part of `rejected_products.jsonl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectReason {
    Unreadable,
    NotUtf8,
    NotAnObject,
    MissingId,
    TooLarge,
    /// Told by whoever sees the whole catalog; a reader of one record at a time can not know.
    DuplicateId,
}

impl RejectReason {
    /// The name under which the reason is written and counted.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::NotUtf8 => "not_utf8",
            Self::NotAnObject => "not_an_object",
            Self::MissingId => "missing_id",
            Self::TooLarge => "too_large",
            Self::DuplicateId => "duplicate_id",
        }
    }
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Entry {
    pub(super) fn reject(line: u64, raw: &[u8], refusal: Refusal) -> Self {
        Self::Reject(Reject::of(line, raw, refusal))
    }
}

impl Reject {
    pub(super) fn of(line: u64, raw: &[u8], refusal: Refusal) -> Self {
        Self { line, id: None, reason: refusal.reason, detail: refusal.detail, excerpt: excerpt(raw) }
    }
}

/// The reason a record is refused, before its place in the input is attached.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) reason: RejectReason,
    pub(super) detail: String,
}

impl Refusal {
    pub(super) fn new(reason: RejectReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }

    pub(super) fn too_large(what: &str) -> Self {
        Self::new(RejectReason::TooLarge, format!("{what} is longer than {MAX_RECORD_BYTES} bytes"))
    }

    pub(super) fn not_utf8(at_byte: usize) -> Self {
        Self::new(
            RejectReason::NotUtf8,
            format!("byte {at_byte} of the record is not UTF-8; is the input in another encoding?"),
        )
    }
}

/// The first characters of `raw`, with replacement characters where it is not UTF-8.
fn excerpt(raw: &[u8]) -> String {
    let head = &raw[..raw.len().min(EXCERPT_BYTES)];
    String::from_utf8_lossy(head).chars().take(MAX_EXCERPT_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_cut_at_characters() {
        assert_eq!(excerpt("é".repeat(500).as_bytes()), "é".repeat(MAX_EXCERPT_CHARS));
        assert_eq!(excerpt("😀".repeat(500).as_bytes()), "😀".repeat(MAX_EXCERPT_CHARS));
        assert_eq!(excerpt(b"a\xffb"), "a\u{fffd}b");
        assert_eq!(excerpt(b""), "");
    }

    #[test]
    fn a_reason_has_one_name() {
        use RejectReason::*;
        for reason in [Unreadable, NotUtf8, NotAnObject, MissingId, TooLarge, DuplicateId] {
            let written = serde_json::to_string(&reason).expect("a plain enum");
            assert_eq!(written, format!("{:?}", reason.as_str()));
        }
    }
}
