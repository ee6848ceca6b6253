//! From the bytes of one JSON value to a record or a reject.
//!
//! A record's body is only accepted when it can be parsed into a `serde_json::Value` by anyone, later, also as part
//! of a message around it: escapes, surrogates, number ranges and depth are checked here, once, without building
//! the value. What passed the producer must not fail in a worker.

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use shelfmill_pipeline::{json_text::is_space, record::MAX_NESTING};

use super::compact::compact;
use super::entry::{Entry, MAX_RECORD_BYTES, Record, Refusal, RejectReason};
use super::error::InputError;
use super::identify::{id_field, id_from_json};

/// Reads objects one by one and remembers which field is the id.
pub(super) struct Objects {
    input_name: String,
    wanted: Option<String>,
    /// Known from the first readable object on.
    field: Option<String>,
}

impl Objects {
    pub(super) fn new(input_name: &str, wanted: Option<String>) -> Self {
        Self { input_name: input_name.to_owned(), wanted, field: None }
    }

    /// Reads the value that begins on `line`. The error is the input's: it has no id field.
    pub(super) fn read(&mut self, line: u64, bytes: &[u8]) -> Result<Entry, InputError> {
        match self.record(line, bytes) {
            Ok(record) => Ok(Entry::Record(record)),
            Err(Trouble::Record(refusal)) => Ok(Entry::reject(line, bytes, refusal)),
            Err(Trouble::Input(error)) => Err(error),
        }
    }

    fn record(&mut self, line: u64, bytes: &[u8]) -> Result<Record, Trouble> {
        let text = check_text(bytes)?;
        let field = match &self.field {
            Some(field) => field,
            None => {
                let mut fields = field_names(text)?;
                let place = id_field(&self.input_name, self.wanted.as_deref(), &fields)?;
                self.field.insert(fields.swap_remove(place))
            }
        };
        let mut json = serde_json::Deserializer::from_str(text);
        let id = json
            .deserialize_map(FindId { field })
            .and_then(|id| json.end().map(|()| id))
            .map_err(|error| unreadable(&error))?;
        let id = id_from_json(field, id)?;
        let body = RawValue::from_string(compact(text).into_owned()).map_err(|error| unreadable(&error))?;
        Ok(Record { line, id, body })
    }
}

/// What keeps a value from being a record: something about this one, or about all of them.
#[derive(Debug)]
enum Trouble {
    Record(Refusal),
    Input(InputError),
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Self {
        Self::Record(refusal)
    }
}

impl From<InputError> for Trouble {
    fn from(error: InputError) -> Self {
        Self::Input(error)
    }
}

/// The value as text, if it is small enough, UTF-8, and looks like an object.
fn check_text(bytes: &[u8]) -> Result<&str, Refusal> {
    if bytes.len() > MAX_RECORD_BYTES {
        return Err(Refusal::too_large("the record"));
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|error| Refusal::not_utf8(error.valid_up_to() + 1))?
        .trim_matches(|c: char| u8::try_from(c).is_ok_and(is_space));
    if text.starts_with('{') {
        return Ok(text);
    }
    // Told by serde_json where it is no JSON at all.
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| unreadable(&error))?;
    let kind = match text.as_bytes().first() {
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    };
    Err(Refusal::new(RejectReason::NotAnObject, format!("the record is {kind}, not an object")))
}

fn field_names(text: &str) -> Result<Vec<String>, Refusal> {
    let mut json = serde_json::Deserializer::from_str(text);
    json.deserialize_map(FieldNames)
        .and_then(|names| json.end().map(|()| names))
        .map_err(|error| unreadable(&error))
}

/// serde_json's message, with its place told within the record: the reject knows the line already.
fn unreadable(error: &serde_json::Error) -> Refusal {
    let message = error.to_string();
    let (line, column) = (error.line(), error.column());
    let message = message.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&message);
    let detail = if line > 1 {
        format!("{message}, at line {line} of the record, column {column}")
    } else {
        format!("{message}, at column {column} of the record")
    };
    Refusal::new(RejectReason::Unreadable, detail)
}

/// Goes through an object and returns the value of `field`; the last one where it is given twice, as everywhere.
struct FindId<'f> {
    field: &'f str,
}

impl<'de> Visitor<'de> for FindId<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        let mut id = None;
        while let Some(is_id) = object.next_key_seed(IsField(self.field))? {
            if is_id {
                let value = object.next_value::<&RawValue>()?;
                // The raw value is only skimmed; it has to be as sound as everything else.
                Checked { levels_left: MAX_NESTING - 1 }
                    .deserialize(&mut serde_json::Deserializer::from_str(value.get()))
                    .map_err(A::Error::custom)?;
                id = Some(value);
            } else {
                object.next_value_seed(Checked { levels_left: MAX_NESTING - 1 })?;
            }
        }
        Ok(id)
    }
}

struct FieldNames;

impl<'de> Visitor<'de> for FieldNames {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        let mut names = Vec::new();
        while let Some(name) = object.next_key()? {
            object.next_value_seed(Checked { levels_left: MAX_NESTING - 1 })?;
            names.push(name);
        }
        Ok(names)
    }
}

/// A key, compared without being kept.
struct IsField<'f>(&'f str);

impl<'de> DeserializeSeed<'de> for IsField<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, key: D) -> Result<bool, D::Error> {
        key.deserialize_str(self)
    }
}

impl Visitor<'_> for IsField<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
}

/// Any value, parsed in full and kept nowhere. `IgnoredAny` would be laxer than a later parse is: it lets half
/// surrogates, numbers out of range and any depth pass.
#[derive(Clone, Copy)]
struct Checked {
    levels_left: u8,
}

impl Checked {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        match self.levels_left.checked_sub(1) {
            Some(levels_left) => Ok(Self { levels_left }),
            None => Err(E::custom(format_args!("nested deeper than {MAX_NESTING} levels"))),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Checked {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<(), D::Error> {
        value.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Checked {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<(), A::Error> {
        let deeper = self.deeper()?;
        while array.next_element_seed(deeper)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        let deeper = self.deeper()?;
        while object.next_key::<IgnoredAny>()?.is_some() {
            object.next_value_seed(deeper)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "object_tests.rs"]
mod tests;
