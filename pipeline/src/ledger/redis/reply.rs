//! Values on their way to Redis and back.

use std::time::Duration;

use crate::{
    changes::Changes,
    ledger::{LedgerError, Permits},
    message::{Outcome, Spent},
};

pub(super) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("ledger values have string keys and finite numbers")
}

/// A count in a script's reply.
pub(super) fn count(digits: &[u8]) -> Result<u32, LedgerError> {
    let digits = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
    digits.ok_or(LedgerError::Unreadable { what: "claim" })
}

/// What was spent on a product when it was last given back, where it was.
pub(super) fn spent_before(json: &[u8]) -> Result<Spent, LedgerError> {
    if json.is_empty() {
        return Ok(Spent::default());
    }
    serde_json::from_slice(json).map_err(|_| LedgerError::Unreadable { what: "claim" })
}

/// The same on its way there.
pub(super) fn spent_text(spent: &Spent) -> String {
    if *spent == Spent::default() { String::new() } else { json(spent) }
}

/// How a product that was put back is asked otherwise; `None` where none was.
pub(super) fn changes(json: &[u8]) -> Result<Option<Changes>, LedgerError> {
    if json.is_empty() {
        return Ok(None);
    }
    Changes::decode(json).map(Some).map_err(|_| LedgerError::Unreadable { what: "changes" })
}

pub(super) fn answer(bytes: &[u8]) -> Result<Outcome, LedgerError> {
    Outcome::decode(bytes).map_err(|_| LedgerError::Unreadable { what: "answer" })
}

pub(super) fn parse<T: serde::de::DeserializeOwned>(
    what: &'static str,
    text: &str,
) -> Result<T, LedgerError> {
    serde_json::from_str(text).map_err(|_| LedgerError::Unreadable { what })
}

pub(super) fn parse_bytes<T: serde::de::DeserializeOwned>(
    what: &'static str,
    bytes: &[u8],
) -> Result<T, LedgerError> {
    serde_json::from_slice(bytes).map_err(|_| LedgerError::Unreadable { what })
}

/// What `permits.lua` gives; times in microseconds.
#[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
pub(super) fn permits(reply: &[i64]) -> Result<Permits, LedgerError> {
    let unreadable = LedgerError::Unreadable { what: "place" };
    match *reply {
        [0] => Ok(Permits::Free),
        [-1, wait] => u64::try_from(wait)
            .map(|wait| Permits::After(Duration::from_micros(wait)))
            .map_err(|_| unreadable),
        [count, first, spacing] => Ok(Permits::Places {
            count: u32::try_from(count).map_err(|_| unreadable)?,
            first_ms: first as f64 / 1_000.0,
            spacing_ms: spacing as f64 / 1_000.0,
        }),
        _ => Err(unreadable),
    }
}
