//! CSV and TSV: the first row names the columns, every other row is one record of strings.
//!
//! A cell is what it says, never a number, a date or nothing: `007` stays `007` and an empty cell is `""`. A row that
//! does not fit the header is refused, because a value under the wrong name is worse than a missing product.

use std::collections::{HashMap, HashSet};

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::entry::{Entry, MAX_RECORD_BYTES, Record, Refusal, Reject, RejectReason};
use super::error::InputError;
use super::identify::{id_field, id_from_text};
use super::rows::{Fields, Row, RowKind, Rows};
use super::source::Text;

pub(super) struct Table {
    rows: Rows,
    columns: Vec<String>,
    id_column: usize,
}

impl Table {
    /// Reads the header.
    pub(super) fn new(text: Text, delimiter: u8, id_column: Option<&str>) -> Result<Self, InputError> {
        let mut rows = Rows::new(text, delimiter);
        let columns = header(&mut rows)?;
        let id_column = id_field(rows.input_name(), id_column, &columns)?;
        Ok(Self { rows, columns, id_column })
    }

    fn next_entry(&mut self) -> Result<Option<Entry>, InputError> {
        while let Some(row) = self.rows.next()? {
            match self.read(row) {
                Ok(Some(record)) => return Ok(Some(Entry::Record(record))),
                Ok(None) => {}
                Err((id, refusal)) => {
                    return Ok(Some(Entry::Reject(Reject {
                        id,
                        ..Reject::of(row.first_line, self.rows.raw_head(), refusal)
                    })));
                }
            }
        }
        Ok(None)
    }

    /// The row as a record, nothing if it is blank, or why it is refused, with its id where that is known.
    fn read(&self, row: Row) -> Result<Option<Record>, (Option<String>, Refusal)> {
        let anonymous = |refusal| (None, refusal);
        check_kind(row).map_err(anonymous)?;
        let fields = self.rows.fields(row).map_err(|at_byte| anonymous(Refusal::not_utf8(at_byte)))?;
        let columns = self.columns.len();
        if row.field_count != columns {
            if row.field_count == 1 && fields.iter().all(|field| field.trim().is_empty()) {
                return Ok(None);
            }
            return Err(anonymous(Refusal::new(
                RejectReason::Unreadable,
                format!("row has {}, the header has {columns}", count(row.field_count)),
            )));
        }
        let id = fields.iter().nth(self.id_column).unwrap_or_default();
        let id = id_from_text(&self.columns[self.id_column], id.into()).map_err(anonymous)?;
        let object = Object { columns: &self.columns, fields };
        match serde_json::value::to_raw_value(&object) {
            Ok(body) if body.get().len() <= MAX_RECORD_BYTES => {
                Ok(Some(Record { line: row.first_line, id, body }))
            }
            Ok(_) => Err((Some(id), Refusal::too_large("the JSON object of the row"))),
            Err(error) => Err((Some(id), Refusal::new(RejectReason::Unreadable, error.to_string()))),
        }
    }
}

impl Iterator for Table {
    type Item = Result<Entry, InputError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_entry().transpose()
    }
}

fn check_kind(row: Row) -> Result<(), Refusal> {
    match row.kind {
        RowKind::Whole => Ok(()),
        RowKind::Overlong => {
            let mut refusal = Refusal::too_large("the row");
            if row.last_line > row.first_line {
                refusal.detail += &format!("; it ends on line {}: is a quote left open?", row.last_line);
            }
            Err(refusal)
        }
        RowKind::Unclosed => Err(Refusal::new(
            RejectReason::Unreadable,
            format!(
                "a quote opened in this row is not closed; everything from line {} to the end of the text, line {}, is in it",
                row.first_line, row.last_line
            ),
        )),
    }
}

fn count(fields: usize) -> String {
    format!("{fields} field{}", if fields == 1 { "" } else { "s" })
}

/// The names of the columns, trimmed, every one different and none empty.
fn header(rows: &mut Rows) -> Result<Vec<String>, InputError> {
    let Some(row) = rows.next()? else {
        return Err(InputError::Empty { name: rows.input_name().to_owned(), expected: "a header row" });
    };
    check_kind(row)
        .and_then(|()| rows.fields(row).map_err(Refusal::not_utf8))
        .map(|fields| column_names(fields.iter()))
        .map_err(|refusal| InputError::BadHeader {
            name: rows.input_name().to_owned(),
            problem: refusal.detail,
        })
}

/// An empty name becomes `column_3`, a second `name` becomes `name_2`; a name of the header itself is never taken.
fn column_names<'a>(header: impl Iterator<Item = &'a str>) -> Vec<String> {
    let given: Vec<&str> = header.map(str::trim).collect();
    let mut taken: HashSet<String> = given.iter().map(|&name| name.to_owned()).collect();
    let mut next_number: HashMap<&str, usize> = HashMap::new();
    let mut names = Vec::with_capacity(given.len());
    for (place, &name) in (1..).zip(&given) {
        let (stem, first_number) = if name.is_empty() {
            ("column", place)
        } else if let Some(&number) = next_number.get(name) {
            (name, number)
        } else {
            next_number.insert(name, 2);
            names.push(name.to_owned());
            continue;
        };
        let (free, number) = (first_number..)
            .map(|number| (format!("{stem}_{number}"), number))
            .find(|(free, _)| taken.insert(free.clone()))
            .unwrap_or_default();
        next_number.insert(name, number + 1);
        names.push(free);
    }
    names
}

/// A row as a JSON object, written in one pass.
struct Object<'a> {
    columns: &'a [String],
    fields: Fields<'a>,
}

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(Some(self.columns.len()))?;
        for (column, field) in self.columns.iter().zip(self.fields.iter()) {
            object.serialize_entry(column, field)?;
        }
        object.end()
    }
}

#[cfg(test)]
#[path = "delimited_tests.rs"]
mod tests;
