//! Which field is the id, and what counts as an id.
//!
//! The field is decided once, from the header or from the first readable object, and holds for the whole input: if
//! one record were known by its `id` and the next by its `sku`, two products could meet under one id. An id is kept
//! exactly as it is spelled, spaces and all, since it is what the user joins the results on.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::entry::{Refusal, RejectReason};
use super::error::InputError;

/// The fields that are taken for the id when none is named, the first that is there.
pub const ID_FIELDS: [&str; 5] = ["id", "sku", "product_id", "uniq_id", "handle"];

/// The longest id: it is part of keys and messages.
pub const MAX_ID_BYTES: usize = 512;

/// The place of the id among `fields`: the `wanted` one, or the first of [`ID_FIELDS`]; spelled exactly so if there
/// is such a field, else with other capitals.
pub(super) fn id_field(name: &str, wanted: Option<&str>, fields: &[String]) -> Result<usize, InputError> {
    let place_of = |id_field: &str| {
        let exactly = fields.iter().position(|field| field == id_field);
        exactly.or_else(|| fields.iter().position(|field| field.eq_ignore_ascii_case(id_field)))
    };
    let told = || (name.to_owned(), fields.to_vec());
    match wanted {
        Some(wanted) => place_of(wanted).ok_or_else(|| {
            let (name, fields) = told();
            InputError::IdFieldNotFound { name, id_field: wanted.to_owned(), fields }
        }),
        None => ID_FIELDS.into_iter().find_map(place_of).ok_or_else(|| {
            let (name, fields) = told();
            InputError::NoIdField { name, fields }
        }),
    }
}

/// The text as an id, if it can be one.
pub(super) fn id_from_text(field: &str, text: Cow<'_, str>) -> Result<String, Refusal> {
    if text.trim().is_empty() {
        return Err(missing(format!("{field:?} is empty")));
    }
    if text.len() > MAX_ID_BYTES {
        return Err(missing(format!("id is longer than {MAX_ID_BYTES} bytes")));
    }
    Ok(text.into_owned())
}

/// The value of the id field as an id: a string as it reads, a number as it is spelled.
pub(super) fn id_from_json(field: &str, value: Option<&RawValue>) -> Result<String, Refusal> {
    let Some(json) = value.map(RawValue::get) else {
        return Err(missing(format!("there is no field {field:?}")));
    };
    let kind = match json.as_bytes().first() {
        Some(b'"') => {
            let text = serde_json::from_str::<String>(json)
                .map_err(|error| Refusal::new(RejectReason::Unreadable, format!("{field:?}: {error}")))?;
            return id_from_text(field, text.into());
        }
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => return id_from_text(field, json.into()),
    };
    Err(missing(format!("{field:?} is {kind}, not a string or a number")))
}

fn missing(detail: String) -> Refusal {
    Refusal::new(RejectReason::MissingId, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(wanted: Option<&str>, fields: &[&str]) -> Result<usize, InputError> {
        let fields: Vec<String> = fields.iter().map(|&field| field.to_owned()).collect();
        id_field("x", wanted, &fields)
    }

    #[test]
    fn the_first_known_field_is_the_id() {
        for (fields, expected) in [
            (&["handle", "title", "sku"][..], 2),
            (&["ID", "sku"], 0),
            (&["Id", "id"], 1),
            (&["Uniq_Id", "name"], 0),
        ] {
            assert_eq!(place(None, fields).expect("there is one"), expected, "{fields:?}");
        }
        assert!(matches!(place(None, &["ids"]), Err(InputError::NoIdField { .. })));
        assert!(matches!(place(None, &[]), Err(InputError::NoIdField { .. })));
    }

    #[test]
    fn a_named_field_is_the_only_one() {
        assert_eq!(place(Some("asin"), &["id", "ASIN", "asin"]).expect("exactly"), 2);
        assert_eq!(place(Some("asin"), &["id", "ASIN"]).expect("nearly"), 1);
        let error = place(Some("asin"), &["id", "ean"]).expect_err("none");
        assert_eq!(error.to_string(), "x has no field \"asin\"; fields found: id, ean; correct --id-field");
    }

    fn from_json(json: &str) -> Result<String, (RejectReason, String)> {
        let raw: &RawValue = serde_json::from_str(json).expect("valid JSON");
        id_from_json("id", Some(raw)).map_err(|refusal| (refusal.reason, refusal.detail))
    }

    #[test]
    fn strings_and_numbers_are_ids_as_they_are_spelled() {
        for (json, id) in [
            (r#""A-1""#, "A-1"),
            (r#"" a b ""#, " a b "),
            (r#""\u00fc\t""#, "ü\t"),
            ("12345", "12345"),
            ("1.0", "1.0"),
            ("-1E5", "-1E5"),
            ("12345678901234567890123", "12345678901234567890123"),
        ] {
            assert_eq!(from_json(json).expect("an id"), id);
        }
    }

    #[test]
    fn nothing_else_is_an_id() {
        for json in [r#""""#, r#"" \t ""#, "null", "true", "false", "[1]", r#"{"id":1}"#] {
            assert_eq!(from_json(json).expect_err("no id").0, RejectReason::MissingId, "{json}");
        }
        let longest = "é".repeat(MAX_ID_BYTES / 2);
        assert_eq!(from_json(&format!("{longest:?}")).expect("an id"), longest);
        let (_, detail) = from_json(&format!("\"{longest}x\"")).expect_err("too long");
        assert_eq!(detail, "id is longer than 512 bytes");
        assert_eq!(id_from_json("id", None).expect_err("none").detail, "there is no field \"id\"");
        assert_eq!(from_json(r#""\ud800""#).expect_err("half a character").0, RejectReason::Unreadable);
    }
}
