//! Rows of delimited text, each at most [`MAX_RECORD_BYTES`] long in memory.
//!
//! csv-core parses and this file bounds: a quote that is never closed would swallow the rest of the file into one
//! row. Such a row is still parsed to its end, since only there the next one begins, but nothing of it is kept
//! beyond the bound. Line numbers count line feeds, also those inside quotes and on blank lines.

use csv_core::{ReadRecordResult, Reader, ReaderBuilder};

use super::entry::{EXCERPT_BYTES, MAX_RECORD_BYTES};
use super::error::InputError;
use super::source::Text;

/// The buffers' first sizes; they grow as rows need it, up to the bound.
const FIRST_ROW_BYTES: usize = 16 * 1024;
const FIRST_COLUMNS: usize = 64;

pub(super) struct Rows {
    text: Text,
    parser: Reader,
    /// The physical line of the next byte, from 1.
    line: u64,
    /// The fields of the row, unquoted, one after another, and where each ends.
    fields: Vec<u8>,
    ends: Vec<usize>,
    /// The beginning of the row as it stands in the text.
    raw_head: Vec<u8>,
}

/// What is known of a row besides its fields.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) first_line: u64,
    pub(super) last_line: u64,
    pub(super) field_count: usize,
    pub(super) kind: RowKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowKind {
    Whole,
    /// Longer than the bound; its fields are gone.
    Overlong,
    /// A quote was opened in it and the text ended; its fields are gone.
    Unclosed,
}

impl Rows {
    pub(super) fn new(text: Text, delimiter: u8) -> Self {
        Self {
            text,
            parser: ReaderBuilder::new().delimiter(delimiter).build(),
            line: 1,
            fields: vec![0; FIRST_ROW_BYTES],
            ends: vec![0; FIRST_COLUMNS],
            raw_head: Vec::new(),
        }
    }

    pub(super) fn input_name(&self) -> &str {
        self.text.name()
    }

    /// The next row that is not an empty line.
    pub(super) fn next(&mut self) -> Result<Option<Row>, InputError> {
        if !self.pass_line_ends()? {
            return Ok(None);
        }
        let first_line = self.line;
        let (mut raw_bytes, mut field_bytes, mut field_count) = (0, 0, 0);
        let mut has_ended_line = false;
        self.raw_head.clear();
        loop {
            let chunk = self.text.fill()?;
            let is_end = chunk.is_empty();
            // At the end of the text a line end decides: it ends a row, and inside quotes it is one more character.
            let input = if is_end { b"\n" } else { chunk };
            if raw_bytes > MAX_RECORD_BYTES {
                (field_bytes, field_count) = (0, 0);
            }
            let (result, read, written, ended) = self.parser.read_record(
                input,
                &mut self.fields[field_bytes..],
                &mut self.ends[field_count..],
            );
            field_bytes += written;
            field_count += ended;
            if !is_end {
                let room = EXCERPT_BYTES.saturating_sub(self.raw_head.len()).min(read);
                self.raw_head.extend_from_slice(&input[..room]);
                self.line += memchr::memchr_iter(b'\n', &input[..read]).count() as u64;
                has_ended_line = input[..read].last() == Some(&b'\n');
                raw_bytes += read;
                self.text.consume(read);
            }
            let kind = match result {
                ReadRecordResult::OutputFull => {
                    self.fields.resize(self.fields.len() * 2, 0);
                    continue;
                }
                ReadRecordResult::OutputEndsFull => {
                    self.ends.resize(self.ends.len() * 2, 0);
                    continue;
                }
                ReadRecordResult::InputEmpty if is_end => {
                    self.parser.reset();
                    RowKind::Unclosed
                }
                ReadRecordResult::InputEmpty => continue,
                // The row's own line end does not count.
                _ if raw_bytes > MAX_RECORD_BYTES + usize::from(!is_end) => RowKind::Overlong,
                _ => RowKind::Whole,
            };
            return Ok(Some(Row {
                first_line,
                last_line: self.line - u64::from(has_ended_line),
                field_count,
                kind,
            }));
        }
    }

    /// The fields of a whole row as text, or the first byte, from 1, that is not UTF-8.
    pub(super) fn fields(&self, row: Row) -> Result<Fields<'_>, usize> {
        let ends = &self.ends[..row.field_count];
        let length = ends.last().copied().unwrap_or(0);
        let text = std::str::from_utf8(&self.fields[..length]).map_err(|error| error.valid_up_to() + 1)?;
        match ends.iter().find(|&&end| !text.is_char_boundary(end)) {
            Some(end) => Err(*end),
            None => Ok(Fields { text, ends }),
        }
    }

    pub(super) fn raw_head(&self) -> &[u8] {
        &self.raw_head
    }

    /// Goes past line ends between rows; whether anything follows.
    fn pass_line_ends(&mut self) -> Result<bool, InputError> {
        loop {
            let chunk = self.text.fill()?;
            if chunk.is_empty() {
                return Ok(false);
            }
            let row = chunk.iter().position(|&byte| !matches!(byte, b'\r' | b'\n'));
            let line_ends = row.unwrap_or(chunk.len());
            let is_found = row.is_some();
            self.line += memchr::memchr_iter(b'\n', &chunk[..line_ends]).count() as u64;
            self.text.consume(line_ends);
            if is_found {
                return Ok(true);
            }
        }
    }
}

/// The fields of one row.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    text: &'a str,
    ends: &'a [usize],
}

impl<'a> Fields<'a> {
    pub(super) fn iter(self) -> impl Iterator<Item = &'a str> {
        let Self { text, ends } = self;
        let mut begin = 0;
        ends.iter().map(move |&end| &text[std::mem::replace(&mut begin, end)..end])
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Read};

    use super::super::testing::OneByte;
    use super::*;

    fn rows_of(raw: Box<dyn Read + Send>) -> Rows {
        Rows::new(Text::new("x".into(), raw).expect("text"), b',')
    }

    fn split(text: &str) -> Vec<(u64, u64, RowKind, Vec<String>)> {
        let mut rows = rows_of(Box::new(OneByte::new(text.as_bytes())));
        let mut all = Vec::new();
        while let Some(row) = rows.next().expect("memory can be read") {
            let fields = match row.kind {
                RowKind::Whole => rows.fields(row).expect("UTF-8").iter().map(str::to_owned).collect(),
                _ => Vec::new(),
            };
            all.push((row.first_line, row.last_line, row.kind, fields));
        }
        all
    }

    fn whole(first: u64, last: u64, fields: &[&str]) -> (u64, u64, RowKind, Vec<String>) {
        let fields = fields.iter().map(|&field| field.to_owned()).collect();
        (first, last, RowKind::Whole, fields)
    }

    #[test]
    fn rows_have_their_physical_lines_whatever_ends_them() {
        for end in ["\n", "\r\n"] {
            let text = ["a,b", "", "\"x", "\"\"y\"\"\",", "", "", "1,\"\"", "z"].join(end);
            let inner = format!("x{end}\"y\"");
            assert_eq!(
                split(&text),
                [
                    whole(1, 1, &["a", "b"]),
                    whole(3, 4, &[&inner, ""]),
                    whole(7, 7, &["1", ""]),
                    whole(8, 8, &["z"])
                ]
            );
        }
        assert_eq!(split("\"a\""), [whole(1, 1, &["a"])]);
        assert_eq!(split("a,"), [whole(1, 1, &["a", ""])]);
        assert_eq!(split("a\0b,\u{1f600}\n"), [whole(1, 1, &["a\0b", "\u{1f600}"])]);
        assert!(split("").is_empty() && split("\r\n\n").is_empty());
    }

    #[test]
    fn a_quote_that_is_not_closed_is_known() {
        let rows = split("a,b\n1,\"x\n2,y\n");
        assert_eq!(rows[1], (2, 3, RowKind::Unclosed, vec![]));
        assert_eq!(rows.len(), 2);
        assert_eq!(split("\"")[0].2, RowKind::Unclosed);
    }

    #[test]
    fn a_row_of_exactly_the_limit_is_whole_and_one_more_is_overlong() {
        for (length, end, kind) in [
            (MAX_RECORD_BYTES, "\n", RowKind::Whole),
            (MAX_RECORD_BYTES, "\r\n", RowKind::Whole),
            (MAX_RECORD_BYTES, "", RowKind::Whole),
            (MAX_RECORD_BYTES + 1, "\n", RowKind::Overlong),
            (MAX_RECORD_BYTES + 1, "", RowKind::Overlong),
        ] {
            let mut rows = rows_of(Box::new(Cursor::new(format!("{}{end}", "x".repeat(length)))));
            assert_eq!(rows.next().expect("memory").expect("a row").kind, kind, "{length} {end:?}");
            assert!(rows.next().expect("memory").is_none());
        }
    }

    #[test]
    fn an_overlong_row_costs_no_more_memory_than_a_long_one() {
        const LONG_BYTES: u64 = 32 * 1024 * 1024;
        for filler in [b'x', b',', b'\n'] {
            let long = std::io::repeat(filler).take(LONG_BYTES);
            let (open, close) = if filler == b'\n' { ("\"", "\"\nn,m\n") } else { ("", "\nn,m\n") };
            let mut rows = rows_of(Box::new(Cursor::new(open).chain(long).chain(Cursor::new(close))));
            assert_eq!(rows.next().expect("memory").expect("a row").kind, RowKind::Overlong);
            let next = rows.next().expect("memory").expect("a row");
            assert_eq!(rows.fields(next).expect("UTF-8").iter().collect::<Vec<_>>(), ["n", "m"]);
            assert!(rows.fields.capacity() <= 4 * MAX_RECORD_BYTES);
            assert!(rows.ends.capacity() <= 4 * MAX_RECORD_BYTES);
        }
    }
}
