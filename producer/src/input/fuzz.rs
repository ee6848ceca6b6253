//! What holds for damaged inputs of every format: they are read to their end, alike in pieces of any size, nothing of
//! them vanishes, and what is taken for a record is one for anybody. See [`super::properties`] for sound ones.

use std::io::Cursor;

use proptest::prelude::*;
use serde_json::{Map, Value};
use shelfmill_pipeline::{json_text::is_space, record::MAX_NESTING};
use shelfmill_testing::nearly;

use super::entry::MAX_EXCERPT_CHARS;
use super::testing::{Outcome, gzip, outcome, outcome_of};
use super::{Format, MAX_ID_BYTES, MAX_RECORD_BYTES, RejectReason};

/// More than that is quoted in no sentence: an escaped field name of a few hundred bytes, twice.
const MAX_DETAIL_BYTES: usize = 4096;

/// A kilobyte of gzip has at most a thousand times as much in it.
const MAX_UNPACKED_BYTES: usize = 4 * 1024 * 1024;

const JSONL: [&str; 4] = [
    "{\"id\":\"a\",\"title\":\"Kettle\"}\n{\"id\":\"b\",\"price\":12.50,\"tags\":[\"x\",{\"y\":null}]}\n{\"id\":3}\n",
    "\u{feff}{\"sku\":\"ä\",\"v\":\"\\u00fc\\n\\\"\"}\r\n\r\n  \t\r\n{\"sku\":\"b\",\"id\":\"c\"}",
    "{\"ID\":1e5}\n[1]\nnull\n\"x\"\n{\"ID\":true}\n{\"ID\":\"\"}\n{}\n{\"ID\":\"z\"",
    "{\"id\":\"a\",\"id\":\"b\",\"deep\":{\"a\":{\"b\":[[[[{\"c\":[]}]]]]}}}\n{\"id\":-0.0}\n",
];
const ARRAYS: [&str; 4] = [
    "[{\"id\":\"a\",\"v\":[1,2]},{\"id\":\"b\"}]",
    "[\n  {\"id\": 1,\n   \"v\": {\"w\": \"]}\"}},\n  {\"id\": 2}\n]\n[{\"id\":3}]",
    "{\"id\":\"a\"}\n{\"id\":\"b\"} {\"id\":\"c\"},",
    "[1,\"x\",null,{\"id\":\"a\"},[{\"id\":\"b\"}]] and more",
];
const TABLES: [&str; 4] = [
    "id,title,price\na,Kettle,1\nb,\"two\nlines, \"\"quoted\"\"\",2\n",
    "\u{feff}title,Id\r\n\"x\",1\r\n\r\ny,2\r\n,3",
    "sku\na\n\n\"\"\n b \n",
    "id,id,,id_2\n1,2,3,4\n1,2\n1,2,3,4,5\n\"open,1\n2,3,4",
];

fn check(read: &Outcome, bytes: &[u8]) -> Result<(), TestCaseError> {
    let lines = 1 + bytes.iter().filter(|&&byte| byte == b'\n').count() as u64;
    let mut last = 0;
    for (line, id, body) in &read.records {
        prop_assert!((1..=lines).contains(line) && *line >= last);
        last = *line;
        prop_assert!(!id.trim().is_empty() && id.len() <= MAX_ID_BYTES && body.len() <= MAX_RECORD_BYTES);
        prop_assert!(!body.contains(['\n', '\r']));
        let value: Value =
            serde_json::from_str(body).map_err(|e| TestCaseError::fail(format!("{e}: {body}")))?;
        prop_assert!(value.is_object());
        // Read again, alone, it is the same record.
        let again = outcome(Format::Jsonl, body.as_bytes());
        // (Where another of its fields is taken for the id, that may be none.)
        let has_other_id = again.error.is_some() || again.reasons() == [(1, RejectReason::MissingId)];
        prop_assert!(has_other_id || &again.records[0].2 == body, "{:?}", again);
        // Nor does it fail within a message around it.
        let around =
            "[".repeat(127 - usize::from(MAX_NESTING)) + body + &"]".repeat(127 - usize::from(MAX_NESTING));
        prop_assert!(serde_json::from_str::<Value>(&around).is_ok());
    }
    for reject in &read.rejects {
        prop_assert!((1..=lines).contains(&reject.line));
        prop_assert!(reject.excerpt.chars().count() <= MAX_EXCERPT_CHARS);
        prop_assert!(reject.detail.len() <= MAX_DETAIL_BYTES);
        prop_assert!(reject.id.as_ref().is_none_or(|id| id.len() <= MAX_ID_BYTES));
    }
    prop_assert!(read.error.as_ref().is_none_or(|error| error.len() <= MAX_DETAIL_BYTES));
    Ok(())
}

/// Lines with more than whitespace, counted without the reader.
fn lines_with_text(bytes: &[u8]) -> usize {
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    bytes.split(|&byte| byte == b'\n').filter(|line| !line.iter().copied().all(is_space)).count()
}

/// Rows below the header, counted by another reader; blank ones do not count.
fn rows(bytes: &[u8], delimiter: u8) -> usize {
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(bytes);
    let columns = reader.byte_headers().map_or(0, csv::ByteRecord::len);
    let is_blank = |row: &csv::ByteRecord| {
        row.len() == 1
            && columns != 1
            && std::str::from_utf8(&row[0]).is_ok_and(|field| field.trim().is_empty())
    };
    reader.byte_records().filter(|row| row.as_ref().is_ok_and(|row| !is_blank(row))).count()
}

fn is_gzip(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x1f, 0x8b])
}

proptest! {
    #[test]
    fn of_damaged_jsonl_every_line_is_a_record_or_a_reject(bytes in nearly(JSONL)) {
        let read = outcome(Format::Jsonl, &bytes);
        check(&read, &bytes)?;
        let entries = read.records.len() + read.rejects.len();
        if read.error.is_none() && !is_gzip(&bytes) {
            prop_assert_eq!(entries, lines_with_text(&bytes), "{:?}", read);
        }
        prop_assert!(is_gzip(&bytes) || entries <= lines_with_text(&bytes));
    }

    #[test]
    fn of_a_damaged_array_no_text_vanishes(bytes in nearly(ARRAYS)) {
        let read = outcome(Format::JsonArray, &bytes);
        check(&read, &bytes)?;
        // An array without text is no record; all other text is something.
        let is_text = |byte: &u8| !is_space(*byte) && !b"[],".contains(byte);
        let has_text = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes).iter().any(is_text);
        let is_something = read.error.is_some() || !read.records.is_empty() || !read.rejects.is_empty();
        prop_assert!(is_something || !has_text, "{:?}", read);
    }

    #[test]
    fn of_a_damaged_table_every_row_is_a_record_or_a_reject(bytes in nearly(TABLES), tabs in any::<bool>()) {
        let (format, delimiter) = if tabs { (Format::Tsv, b'\t') } else { (Format::Csv, b',') };
        let bytes: Vec<u8> =
            bytes.into_iter().map(|byte| if tabs && byte == b',' { b'\t' } else { byte }).collect();
        let read = outcome(format, &bytes);
        check(&read, &bytes)?;
        for (_, _, body) in &read.records {
            prop_assert!(serde_json::from_str::<Map<String, Value>>(body).unwrap().values().all(Value::is_string));
        }
        if read.error.is_none() && !is_gzip(&bytes) {
            // An open quote with nothing in it at the end of the text: only this reader tells.
            let open_quote = usize::from(read.rejects.last().is_some_and(|last| last.detail.contains("is not closed")));
            let (entries, rows) = (read.records.len() + read.rejects.len(), rows(&bytes, delimiter));
            prop_assert!((rows..=rows + open_quote).contains(&entries), "{} of {}: {:?}", entries, rows, read);
        }
    }

    #[test]
    fn damaged_packed_inputs_end(bytes in nearly(JSONL.map(|text| gzip(text.repeat(20).as_bytes())))) {
        for format in [Format::Jsonl, Format::JsonArray, Format::Csv, Format::Tsv] {
            // How much comes before a break depends on the pieces it is read in.
            let read = outcome_of(format, Box::new(Cursor::new(bytes.clone())));
            prop_assert!(read.records.len() + read.rejects.len() <= MAX_UNPACKED_BYTES);
        }
    }
}
