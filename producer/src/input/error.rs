//! Why an input can not be read at all, said so that the reader of the message knows what to do next.
//!
//! What is wrong with a single record is never an error: it is a [`super::Reject`] and reading goes on.

use std::io;

use thiserror::Error;

/// The most field names a message lists.
const MAX_FIELDS_TOLD: usize = 30;
/// The most characters of one field name a message shows.
const MAX_FIELD_CHARS_TOLD: usize = 60;

#[derive(Debug, Error)]
pub enum InputError {
    #[error("{name}: there is no such file")]
    NotFound { name: String },
    #[error("{name} is a directory; name the catalog file in it")]
    Directory { name: String },
    #[error("{name} can not be opened")]
    Open {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("the format of {name} can not be told from its name; say --format jsonl|json|csv|tsv")]
    UnknownFormat { name: String },
    #[error("standard input has no name to tell the format from; say --format jsonl|json|csv|tsv")]
    FormatOfStdin,
    #[error("{name} is {kind}, which can not be read; {advice}")]
    NotText { name: String, kind: &'static str, advice: &'static str },
    #[error("{name} is empty; {expected} was expected")]
    Empty { name: String, expected: &'static str },
    #[error(
        "{name} is not a JSON array: it begins with {found:?}, not with [ or {{; if it is in another format, say --format jsonl|csv|tsv"
    )]
    NotJson { name: String, found: char },
    #[error("the header of {name} can not be read: {problem}")]
    BadHeader { name: String, problem: String },
    #[error(
        "no id field found in {name} (looked for {}); fields found: {}; name it with --id-field{}",
        super::ID_FIELDS.join(", "),
        told(fields),
        separator_hint(fields)
    )]
    NoIdField { name: String, fields: Vec<String> },
    #[error(
        "{name} has no field {id_field:?}; fields found: {}; correct --id-field{}",
        told(fields),
        separator_hint(fields)
    )]
    IdFieldNotFound { name: String, id_field: String, fields: Vec<String> },
    #[error("{name} is damaged or cut off: its gzip stream can not be unpacked; make or download it again")]
    CorruptGzip {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("reading {name} failed")]
    Read {
        name: String,
        #[source]
        source: io::Error,
    },
}

impl InputError {
    /// Whether the input itself, or the way it was named, is at fault, so that the same command can only fail
    /// again (exit code 2); otherwise the machine failed while reading, and a second try may go well (exit code 1).
    pub fn is_usage(&self) -> bool {
        !matches!(self, Self::Read { .. })
    }
}

/// A format name that is not one of the four.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown format {0:?}; it is one of jsonl, json, csv, tsv")]
pub struct UnknownFormatName(pub(super) String);

fn told(fields: &[String]) -> String {
    if fields.is_empty() {
        return "none".to_owned();
    }
    let mut list = fields
        .iter()
        .take(MAX_FIELDS_TOLD)
        .map(|field| field.chars().take(MAX_FIELD_CHARS_TOLD).collect::<String>())
        .collect::<Vec<_>>()
        .join(", ");
    if let Some(more @ 1..) = fields.len().checked_sub(MAX_FIELDS_TOLD) {
        list.push_str(&format!(" and {more} more"));
    }
    list
}

/// A header that is one long name was most likely written with another separator.
fn separator_hint(fields: &[String]) -> &'static str {
    match fields {
        [only] if only.contains(';') => {
            "; the columns look separated by semicolons: export with commas or tabs"
        }
        [only] if only.contains('\t') => "; the columns look separated by tabs: say --format tsv",
        [only] if only.contains(',') => "; the columns look separated by commas: say --format csv",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_id_field(fields: &[&str]) -> String {
        let fields = fields.iter().map(|&field| field.to_owned()).collect();
        InputError::NoIdField { name: "x.csv".into(), fields }.to_string()
    }

    #[test]
    fn the_missing_id_field_is_told_with_what_there_is() {
        assert_eq!(
            no_id_field(&["a", "b"]),
            "no id field found in x.csv (looked for id, sku, product_id, uniq_id, handle); \
             fields found: a, b; name it with --id-field"
        );
        assert!(no_id_field(&[]).contains("fields found: none;"));
        assert!(no_id_field(&["a;b"]).ends_with("export with commas or tabs"));
        assert!(no_id_field(&["a\tb"]).ends_with("say --format tsv"));
    }

    #[test]
    fn a_long_list_of_fields_is_cut() {
        let many: Vec<String> = (0..40).map(|n| format!("{n}{}", "x".repeat(100))).collect();
        let list = told(&many);
        assert!(list.ends_with("and 10 more"));
        assert!(list.len() < MAX_FIELDS_TOLD * (MAX_FIELD_CHARS_TOLD + 2) + 20);
    }

    #[test]
    fn only_trouble_of_the_machine_is_worth_another_try() {
        let trouble = InputError::Read { name: "x".into(), source: io::Error::other("disk") };
        assert!(!trouble.is_usage());
        assert!(InputError::FormatOfStdin.is_usage());
    }
}
