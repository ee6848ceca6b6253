//! Tasks and outcomes, and how they look on the wire.
//!
//! A message is one JSON object that begins with its version. A version nobody here knows, and bytes that are
//! no message, are told apart, because the first wants a newer Shelfmill and the second a look at who
//! publishes. The line that an outcome carries is the line that will be written: it is embedded as raw JSON
//! and never parsed beyond its id and place.
//!
//! What is decoded here makes one line of a file, whoever has published it, and none that is too long to be read again.

use std::{borrow::Borrow, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    changes::Changes,
    failure::FailureClass,
    identity::IdHash,
    money::Money,
    record::{FailureLine, MAX_LINE_BYTES, Meta, RejectLine, ResultLine},
};

/// The version of messages.
pub const VERSION: u32 = 1;

/// The version of tasks that are to be asked otherwise than the job says. A worker that does not know of changes must not
/// take them: it would ask, and be paid for, the old question. So it sets them aside as unreadable.
pub const VERSION_WITH_CHANGES: u32 = 2;

/// The largest message: a line and what is around it.
pub const MAX_MESSAGE_BYTES: usize = MAX_LINE_BYTES + 64 * 1024;

/// Why bytes are no message.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer (or foreign) producer or worker.
    #[error(
        "message version {found} is not known here (this build reads version {VERSION}, and tasks up to version {VERSION_WITH_CHANGES})"
    )]
    UnknownVersion {
        /// The version the message names.
        found: u64,
    },
    /// Larger than anything that is published here.
    #[error(
        "a message of {size_bytes} bytes is not one of Shelfmill (they have at most {MAX_MESSAGE_BYTES})"
    )]
    TooLarge {
        /// Its size.
        size_bytes: usize,
    },
    /// Not the JSON that a message is.
    #[error("not a message of Shelfmill")]
    Malformed(#[source] serde_json::Error),
}

/// What has been spent on a product so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// Calls made to the model; also the number of the last attempt.
    pub calls: u32,
    /// Tokens read, over all calls.
    pub prompt_tokens: u64,
    /// Tokens written, over all calls.
    pub completion_tokens: u64,
    /// Calls known to repeat one that a dead worker had under way.
    pub repeated_calls: u32,
    /// What these tokens cost, as far as their prices are known.
    #[serde(default, skip_serializing_if = "Money::is_zero")]
    pub cost_nano_usd: Money,
    /// Whether there are tokens among these whose price is not known.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_unpriced: bool,
}

impl Spent {
    /// Of two accounts of one product, the one that knows of more calls.
    #[must_use]
    pub const fn or_more(self, other: Self) -> Self {
        if other.all_calls() > self.all_calls() { other } else { self }
    }

    /// Calls made, and calls that were lost.
    #[must_use]
    pub const fn all_calls(self) -> u32 {
        self.calls.saturating_add(self.repeated_calls)
    }

    /// With what else was spent.
    pub const fn add(&mut self, more: &Self) {
        self.calls = self.calls.saturating_add(more.calls);
        self.prompt_tokens = self.prompt_tokens.saturating_add(more.prompt_tokens);
        self.completion_tokens = self.completion_tokens.saturating_add(more.completion_tokens);
        self.repeated_calls = self.repeated_calls.saturating_add(more.repeated_calls);
        self.cost_nano_usd = self.cost_nano_usd.plus(more.cost_nano_usd);
        self.has_unpriced |= more.has_unpriced;
    }

    /// What was spent in US dollars; `None` where that is not known of all of it.
    #[must_use]
    pub fn cost_usd(&self) -> Option<f64> {
        (!self.has_unpriced).then(|| self.cost_nano_usd.usd())
    }

    /// What this account of a product knows beyond an earlier one.
    #[must_use]
    pub const fn beyond(self, earlier: Self) -> Self {
        Self {
            calls: self.calls.saturating_sub(earlier.calls),
            prompt_tokens: self.prompt_tokens.saturating_sub(earlier.prompt_tokens),
            completion_tokens: self.completion_tokens.saturating_sub(earlier.completion_tokens),
            repeated_calls: self.repeated_calls.saturating_sub(earlier.repeated_calls),
            cost_nano_usd: self.cost_nano_usd.less(earlier.cost_nano_usd),
            has_unpriced: self.has_unpriced,
        }
    }
}

/// Asks for one product.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// The product's id.
    pub id: String,
    /// Its place in the input, from 1.
    pub seq: u64,
    /// Attempts that count against the product's allowance.
    pub attempts: u32,
    /// What earlier attempts cost.
    pub spent: Spent,
    /// How it is asked otherwise than the job says. The ledger may know better: the product may have other tasks.
    #[serde(default, skip_serializing_if = "Changes::is_empty")]
    pub changes: Changes,
    /// The product, one line of JSON.
    pub product: Box<RawValue>,
}

impl Task {
    /// The first task of a product.
    #[must_use]
    pub fn new(id: String, seq: u64, product: Box<RawValue>) -> Self {
        Self { id, seq, attempts: 0, spent: Spent::default(), changes: Changes::default(), product }
    }

    /// The ledger's key of the product.
    #[must_use]
    pub fn hash(&self) -> IdHash {
        IdHash::of(&self.id)
    }

    /// As it travels.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self, if self.changes.is_empty() { VERSION } else { VERSION_WITH_CHANGES })
    }

    /// From the wire.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        use serde::de::Error;
        let task: Self = decode(bytes, VERSION_WITH_CHANGES)?;
        task.changes.check().map_err(|error| DecodeError::Malformed(serde_json::Error::custom(error)))?;
        if task.product.get().contains('\n') {
            let error = serde_json::Error::custom("a product must not contain a line break");
            return Err(DecodeError::Malformed(error));
        }
        Ok(task)
    }
}

/// Answers one task, or reports input that made none.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A line for the journal.
    Completed(Line),
    /// A line for the failures.
    Failed(Line),
    /// Lines for the rejects.
    Rejected(Rejects),
}

/// A finished line, with what the aggregator must know of it.
#[derive(Clone, Debug)]
pub struct Line {
    id: String,
    seq: u64,
    class: Option<FailureClass>,
    cost_usd: Option<f64>,
    json: Arc<str>,
}

/// What the ledger is told of a line. Read in one pass over the line, nothing of which is kept: a journal of millions
/// of lines is read at every start.
#[derive(Debug, Deserialize)]
pub struct LineHead {
    id: String,
    seq: u64,
    failure: Option<FailureHead>,
    meta: MetaHead,
}

#[derive(Debug, Deserialize)]
struct FailureHead {
    class: FailureClass,
}

#[derive(Debug, Deserialize)]
struct MetaHead {
    cost_usd: Option<f64>,
}

impl LineHead {
    /// Of a line as it was written; the whole of it is checked to be JSON.
    pub fn parse(json: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(json)
    }

    /// The ledger's key of the product.
    #[must_use]
    pub fn hash(&self) -> IdHash {
        IdHash::of(&self.id)
    }

    /// Why the product failed, where it did.
    #[must_use]
    pub fn class(&self) -> Option<FailureClass> {
        self.failure.as_ref().map(|failure| failure.class)
    }

    /// What was spent on the product in US dollars, where prices are known.
    #[must_use]
    pub const fn cost_usd(&self) -> Option<f64> {
        self.meta.cost_usd
    }
}

impl Line {
    /// The line of a result.
    #[must_use]
    pub fn of_result<R: Borrow<RawValue> + Serialize>(line: &ResultLine<R>) -> Self {
        let parts = [&line.product, &line.analysis].map(|part| part.borrow().get().len());
        Self {
            id: line.id.clone(),
            seq: line.seq,
            class: None,
            cost_usd: line.meta.cost_usd,
            json: written(line, parts.iter().sum()),
        }
    }

    /// The line of a failure.
    #[must_use]
    pub fn of_failure(line: &FailureLine) -> Self {
        Self {
            id: line.id.clone(),
            seq: line.seq,
            class: Some(line.failure.class),
            cost_usd: line.meta.cost_usd,
            json: written(line, line.product.get().len()),
        }
    }

    /// A line as it was written.
    pub fn parse(json: &RawValue) -> Result<Self, serde_json::Error> {
        use serde::de::Error;
        let LineHead { id, seq, failure, meta } = LineHead::parse(json.get())?;
        if json.get().contains('\n') {
            return Err(serde_json::Error::custom("a line must not contain a line break"));
        }
        Ok(Self {
            id,
            seq,
            class: failure.map(|failure| failure.class),
            cost_usd: meta.cost_usd,
            json: json.get().into(),
        })
    }

    /// The product's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The product's place in the input.
    #[must_use]
    pub const fn seq(&self) -> u64 {
        self.seq
    }

    /// The ledger's key of the product.
    #[must_use]
    pub fn hash(&self) -> IdHash {
        IdHash::of(&self.id)
    }

    /// Why the product failed, where it did.
    #[must_use]
    pub const fn class(&self) -> Option<FailureClass> {
        self.class
    }

    /// What was spent on the product in US dollars, where prices are known.
    #[must_use]
    pub const fn cost_usd(&self) -> Option<f64> {
        self.cost_usd
    }

    /// What was spent on the product, as the line tells it.
    pub fn spent(&self) -> Result<Spent, serde_json::Error> {
        #[derive(Deserialize)]
        struct Told {
            meta: Meta,
        }
        let Told { meta } = serde_json::from_str(self.json())?;
        Ok(Spent {
            calls: meta.attempts,
            prompt_tokens: meta.prompt_tokens,
            completion_tokens: meta.completion_tokens,
            repeated_calls: meta.repeated_calls,
            cost_nano_usd: Money::from_usd(meta.cost_usd.unwrap_or(0.0)),
            has_unpriced: meta.cost_usd.is_none(),
        })
    }

    /// The line as it will be written, without the line break.
    #[must_use]
    pub fn json(&self) -> &str {
        &self.json
    }
}

impl Serialize for Line {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let json: &RawValue = serde_json::from_str(&self.json).map_err(serde::ser::Error::custom)?;
        json.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Line {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(<&RawValue>::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// Some of the rejects of one scan of the input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejects {
    /// Which scan found them; a later scan replaces an earlier one's.
    pub scan: u64,
    /// The number of the first of these lines among all rejects of the scan, from 1.
    pub first: u64,
    /// One for each record that is no product.
    pub lines: Vec<RejectLine>,
}

impl Outcome {
    /// The same, with a line that tells of what else was spent on the product.
    pub fn with_more_spent(self, spent: &Spent) -> Result<Self, serde_json::Error> {
        Ok(match self {
            Self::Completed(line) => {
                let mut line: ResultLine = serde_json::from_str(line.json())?;
                line.meta.add(spent);
                Self::Completed(Line::of_result(&line))
            }
            Self::Failed(line) => {
                let mut line: FailureLine = serde_json::from_str(line.json())?;
                line.meta.add(spent);
                Self::Failed(Line::of_failure(&line))
            }
            Self::Rejected(rejects) => Self::Rejected(rejects),
        })
    }

    /// As it travels.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // A line is JSON already, and is not read again.
        let around =
            |kind: &str, line: &Line| format!(r#"{{"v":{VERSION},"m":{{"{kind}":{}}}}}"#, line.json());
        match self {
            Self::Completed(line) => around("completed", line).into_bytes(),
            Self::Failed(line) => around("failed", line).into_bytes(),
            Self::Rejected(_) => encode(self, VERSION),
        }
    }

    /// From the wire.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode(bytes, VERSION)
    }
}

#[derive(Serialize)]
struct Envelope<'a, T> {
    v: u32,
    m: &'a T,
}

/// A line that has raw JSON of so many bytes, beside what every line has.
fn written<T: Serialize>(line: &T, raw_bytes: usize) -> Arc<str> {
    const USUAL_BYTES: usize = 512;
    let mut json = Vec::with_capacity(raw_bytes + USUAL_BYTES);
    serde_json::to_writer(&mut json, line).expect("lines have string keys and finite numbers");
    String::from_utf8(json).expect("JSON is UTF-8").into()
}

fn encode<T: Serialize>(message: &T, version: u32) -> Vec<u8> {
    serde_json::to_vec(&Envelope { v: version, m: message })
        .expect("messages have string keys and finite numbers")
}

/// The message, where its envelope is byte for byte as [`encode`] makes it: read in one pass. Others are read in two, and told.
fn as_written<T: for<'de> Deserialize<'de>>(bytes: &[u8], version: u32) -> Option<T> {
    let envelope = format!(r#"{{"v":{version},"m":"#);
    serde_json::from_slice(bytes.strip_prefix(envelope.as_bytes())?.strip_suffix(b"}")?).ok()
}

fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8], newest: u32) -> Result<T, DecodeError> {
    #[derive(Deserialize)]
    struct Version {
        v: u64,
    }
    #[derive(Deserialize)]
    struct Message<T> {
        m: T,
    }
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(DecodeError::TooLarge { size_bytes: bytes.len() });
    }
    if let Some(message) = (VERSION..=newest).find_map(|version| as_written(bytes, version)) {
        return Ok(message);
    }
    // The version first, with everything else skipped: a newer message may look like nothing known here.
    let Version { v } = serde_json::from_slice(bytes).map_err(DecodeError::Malformed)?;
    if !(u64::from(VERSION)..=u64::from(newest)).contains(&v) {
        return Err(DecodeError::UnknownVersion { found: v });
    }
    let Message { m } = serde_json::from_slice(bytes).map_err(DecodeError::Malformed)?;
    Ok(m)
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
