use std::io::{Cursor, Read};

use super::super::Format;
use super::super::testing::{Outcome, gzip, outcome, outcome_of};
use super::*;

fn read(text: &str) -> Outcome {
    let whole = outcome(Format::JsonArray, text.as_bytes());
    assert_eq!(whole, outcome(Format::JsonArray, &gzip(text.as_bytes())));
    whole
}

fn details(outcome: &Outcome) -> Vec<(u64, &str)> {
    let rejects = outcome.rejects.iter();
    rejects.map(|reject| (reject.line, &*reject.detail)).collect()
}

#[test]
fn elements_have_the_line_they_begin_on() {
    let read =
        read("\u{feff}\r\n[\r\n  {\"id\": 1,\r\n   \"v\": [ \"a b\" ]},\n\n {\"id\":2}, {\"id\":3}\n]\n");
    let record = |line, id: &str, body: &str| (line, id.to_owned(), body.to_owned());
    assert_eq!(
        read.records,
        [
            record(3, "1", r#"{"id":1,"v":["a b"]}"#),
            record(6, "2", r#"{"id":2}"#),
            record(6, "3", r#"{"id":3}"#)
        ]
    );
    assert!(read.rejects.is_empty() && read.error.is_none());
}

#[test]
fn objects_without_an_array_are_read_too() {
    let read = read("{\"id\":1}\n{\n \"id\":2}{\"id\":3},{\"id\":4}\n");
    assert_eq!(read.ids(), ["1", "2", "3", "4"]);
    assert_eq!(read.records[1].0, 2);
    assert!(read.rejects.is_empty());
}

#[test]
fn an_empty_array_is_fine_and_an_empty_file_is_not() {
    let empty = read(" [ ] ");
    assert!(empty.records.is_empty() && empty.rejects.is_empty() && empty.error.is_none());
    for text in ["", " \n "] {
        assert_eq!(read(text).error.as_deref(), Some("x is empty; a JSON array was expected"));
    }
    assert!(read("<html>").error.expect("no JSON").contains("begins with '<'"));
    assert!(read("é").error.expect("no JSON").contains("is not a JSON array"));
}

#[test]
fn elements_that_are_no_objects_are_refused_one_by_one() {
    let read = read("[1, \"a,]\", null, [2], {\"id\":5}, , tru]");
    assert_eq!(read.ids(), ["5"]);
    assert_eq!(
        details(&read),
        [
            (1, "the record is a number, not an object"),
            (1, "the record is a string, not an object"),
            (1, "the record is null, not an object"),
            (1, "the record is an array, not an object"),
            (1, "EOF while parsing a value, at column 3 of the record"),
        ]
    );
}

#[test]
fn a_broken_element_is_one_reject_and_the_next_is_read() {
    for broken in [
        "{\"id\":2,\"v\":\"open},",
        "{\"id\":2,\"v\":1,",
        "{\"id\":2,\"v\":[1,2},",
        "{\"id\":2,\"v\":]},",
        "{\"id\":2,\"v\":{\"w\":1},",
        "{\"id\" 2},",
        "{\"id\":2,\"v\":\"\\x\"},",
        "{\"id\":2,\"v\":1]},",
    ] {
        let read = read(&format!("[\n{{\"id\":1}},\n{broken}\n{{\"id\":3}},\n{{\"id\":4}}]"));
        assert_eq!(read.ids(), ["1", "3", "4"], "{broken}");
        assert_eq!(read.reasons(), [(3, RejectReason::Unreadable)], "{broken}");
    }
}

#[test]
fn an_array_that_is_not_closed_is_told() {
    let told = read("[{\"id\":1},\n{\"id\":2}\n");
    assert_eq!(told.ids(), ["1", "2"]);
    assert_eq!(details(&told), [(3, "the array is not closed")]);
    let told = read("[{\"id\":1},\n{\"id\":2,\"v\":\"\n\n");
    assert_eq!(told.ids(), ["1"]);
    assert_eq!(details(&told), [(2, "the text ends inside this record; the array is not closed")]);
    let told = read("{\"id\":1}\n{\"id\"");
    assert_eq!(details(&told), [(2, "the text ends inside this record")]);
}

#[test]
fn several_arrays_are_read_and_other_text_after_the_array_is_told() {
    assert_eq!(read("[{\"id\":1}]\n[{\"id\":2}] {\"id\":3}").ids(), ["1", "2", "3"]);
    let told = read("[{\"id\":1}]\n;{\"id\":2}");
    assert_eq!(told.ids(), ["1"]);
    assert_eq!(details(&told), [(2, "there is text after the end of the array; it is not read")]);
    assert!(told.rejects[0].excerpt.starts_with(';'));
}

#[test]
fn an_overlong_element_costs_no_more_memory_than_a_long_one() {
    const LONG_BYTES: u64 = 32 * 1024 * 1024;
    let text = Cursor::new("[{\"id\":1},{\"id\":\"")
        .chain(std::io::repeat(b'x').take(LONG_BYTES))
        .chain(Cursor::new("\"}\n,{\"id\":3}]"));
    let told = outcome_of(Format::JsonArray, Box::new(text));
    assert_eq!(told.ids(), ["1", "3"]);
    assert_eq!(told.reasons(), [(1, RejectReason::TooLarge)]);
    assert_eq!(told.records[1].0, 2);

    let endless = Cursor::new("[").chain(std::io::repeat(b'[').take(LONG_BYTES));
    let text = Text::new("x".into(), Box::new(endless)).expect("text");
    let mut array = JsonArray::new(text, None);
    assert_eq!(array.by_ref().count(), 1);
    assert!(array.element.capacity() <= 2 * MAX_RECORD_BYTES);
}

#[test]
fn a_bracket_that_closes_too_much_does_not_end_the_array() {
    let read = read("[{\"id\":1},\n{\"id\":2,\"v\":{\"w\":1},{\"id\":3}]},\n{\"id\":4}]");
    assert_eq!(read.ids(), ["1", "3", "4"]);
    assert_eq!(read.reasons(), [(2, RejectReason::Unreadable), (2, RejectReason::Unreadable)]);
    assert_eq!(read.rejects[1].excerpt, "}");
}
