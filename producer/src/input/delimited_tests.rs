use std::io::{Cursor, Read};

use super::super::Format;
use super::super::testing::{Outcome, gzip, outcome, outcome_of};
use super::*;

fn csv(text: &[u8]) -> Outcome {
    let whole = outcome(Format::Csv, text);
    assert_eq!(whole, outcome(Format::Csv, &gzip(text)));
    whole
}

fn names(header: &[&str]) -> Vec<String> {
    column_names(header.iter().copied())
}

#[test]
fn a_row_becomes_an_object_of_strings_in_header_order() {
    let text = "\u{feff}title,SKU,price\r\n\"a \"\"b\"\",\r\nc\",007,\r\n\r\n  \r\nü\t\\,x,1.0";
    let read = csv(text.as_bytes());
    let record = |line, id: &str, body: &str| (line, id.to_owned(), body.to_owned());
    assert_eq!(
        read.records,
        [
            record(2, "007", r#"{"title":"a \"b\",\r\nc","SKU":"007","price":""}"#),
            record(6, "x", r#"{"title":"ü\t\\","SKU":"x","price":"1.0"}"#),
        ]
    );
    assert!(read.rejects.is_empty() && read.error.is_none());
}

#[test]
fn tabs_separate_when_asked_to() {
    let read = outcome(Format::Tsv, b"id\tv\n1\t\"a\tb\"\n2\tc,d\n");
    assert_eq!(read.records[0].2, r#"{"id":"1","v":"a\tb"}"#);
    assert_eq!(read.records[1].2, r#"{"id":"2","v":"c,d"}"#);
}

#[test]
fn column_names_are_trimmed_never_empty_and_never_twice() {
    assert_eq!(names(&["id", " Title ", "", "id", "id"]), ["id", "Title", "column_3", "id_2", "id_3"]);
    assert_eq!(names(&["a", "a_2", "a", "column_4", " "]), ["a", "a_2", "a_3", "column_4", "column_5"]);
    assert_eq!(names(&["", "column_1"]), ["column_2", "column_1"]);
    let many = names(&vec!["a"; 100_000]);
    assert_eq!(many.last().map(String::as_str), Some("a_100000"));
}

#[test]
fn an_input_without_a_usable_header_is_an_error() {
    let error = |text: &[u8]| csv(text).error.expect("an error");
    assert_eq!(error(b""), "x is empty; a header row was expected");
    assert_eq!(error(b"\r\n\n"), "x is empty; a header row was expected");
    assert!(error(b"name,price\n1,2\n").contains("fields found: name, price;"));
    assert!(error(b"id;name\n1;2\n").contains("separated by semicolons"));
    assert!(error(b"id\tname\n1\t2\n").contains("--format tsv"));
    assert!(error(b"id,\xff\n").contains("byte 3 of the record is not UTF-8"));
    assert!(error(b"id,\"name\n1,2\n").contains("a quote opened in this row is not closed"));
    assert!(error(&b"x".repeat(MAX_RECORD_BYTES + 1)).contains("longer than 1048576 bytes"));
    assert!(csv(b"id,name").error.is_none());
}

#[test]
fn a_named_id_column_has_to_be_there() {
    let open = |id_field| {
        let text = Text::new("x".into(), Box::new(Cursor::new("id,EAN\n1,2\n"))).expect("text");
        Table::new(text, b',', Some(id_field))
    };
    let mut table = open("ean").expect("with other capitals");
    assert!(matches!(table.next(), Some(Ok(Entry::Record(record))) if record.id == "2"));
    let error = open("asin").err().expect("no such column");
    assert_eq!(error.to_string(), "x has no field \"asin\"; fields found: id, EAN; correct --id-field");
}

#[test]
fn a_bad_row_does_not_touch_its_neighbours() {
    let long_id = "i".repeat(513);
    let text = [
        &b"id,a,b\n1,,\n2,x\n3,x,y,z\n4,\xff,\n\xc3,\xa9,\n ,x,y\n"[..],
        long_id.as_bytes(),
        b",,\nonly\n9,\0,\"\"\n",
    ]
    .concat();
    let read = csv(&text);
    assert_eq!(read.ids(), ["1", "9"]);
    assert_eq!(read.records[1], (10, "9".into(), r#"{"id":"9","a":"\u0000","b":""}"#.into()));
    let details: Vec<_> =
        read.rejects.iter().map(|reject| (reject.line, reject.reason, &*reject.detail)).collect();
    use RejectReason::*;
    let not_utf8 = |line, at_byte| (line, NotUtf8, at_byte);
    assert_eq!(
        details,
        [
            (3, Unreadable, "row has 2 fields, the header has 3"),
            (4, Unreadable, "row has 4 fields, the header has 3"),
            not_utf8(5, "byte 2 of the record is not UTF-8; is the input in another encoding?"),
            not_utf8(6, "byte 1 of the record is not UTF-8; is the input in another encoding?"),
            (7, MissingId, "\"id\" is empty"),
            (8, MissingId, "id is longer than 512 bytes"),
            (9, Unreadable, "row has 1 field, the header has 3"),
        ]
    );
    assert_eq!(read.rejects[0].excerpt, "2,x\n");
}

#[test]
fn a_quote_left_open_is_told_with_the_lines_it_swallowed() {
    let read = csv(b"id,a\n1,\"ok\"\n2,\"open\n3,x\n4,y\n");
    assert_eq!(read.ids(), ["1"]);
    assert_eq!(read.reasons(), [(3, RejectReason::Unreadable)]);
    assert!(read.rejects[0].detail.contains("from line 3 to the end of the text, line 5,"));

    let lines = "5,x\n".repeat(MAX_RECORD_BYTES / 2);
    let text = format!("id,a\n1,\"open\n{lines}2,\"\n3,z\n");
    let read = csv(text.as_bytes());
    assert_eq!(read.ids(), ["3"]);
    assert_eq!(read.reasons(), [(2, RejectReason::TooLarge)]);
    assert!(read.rejects[0].detail.ends_with("it ends on line 524291: is a quote left open?"));
}

#[test]
fn a_row_whose_object_is_over_the_limit_is_too_large_and_has_its_id() {
    let swelling = "\u{1}".repeat(MAX_RECORD_BYTES / 4);
    let read = csv(format!("id,a\n1,{swelling}\n2,b\n").as_bytes());
    assert_eq!(read.ids(), ["2"]);
    assert_eq!(read.reasons(), [(2, RejectReason::TooLarge)]);
    assert_eq!(read.rejects[0].id.as_deref(), Some("1"));
}

#[test]
fn an_overlong_row_is_refused_and_passed_over() {
    const LONG_BYTES: u64 = 32 * 1024 * 1024;
    let long = Cursor::new("id,a\n1,\"").chain(std::io::repeat(b'x').take(LONG_BYTES));
    let read = outcome_of(Format::Csv, Box::new(long.chain(Cursor::new("\"\n2,b\n"))));
    assert_eq!(read.ids(), ["2"]);
    assert_eq!(read.reasons(), [(2, RejectReason::TooLarge)]);
    assert_eq!(read.rejects[0].detail, "the row is longer than 1048576 bytes");
}
