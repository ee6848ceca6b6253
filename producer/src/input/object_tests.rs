use serde_json::Value;

use super::super::entry::Reject;
use super::*;

fn objects() -> Objects {
    Objects::new("x", None)
}

fn accepted(json: &str) -> (String, String) {
    match objects().read(1, json.as_bytes()).expect("an id field") {
        Entry::Record(record) => (record.id, record.body.get().to_owned()),
        Entry::Reject(reject) => panic!("refused: {reject:?}"),
    }
}

fn refused(json: &[u8]) -> Reject {
    match objects().read(7, json).expect("an id field") {
        Entry::Record(record) => panic!("accepted: {record:?}"),
        Entry::Reject(reject) => reject,
    }
}

fn nested(levels: usize) -> String {
    let inner = levels - 1;
    format!(r#"{{"id":1,"v":{}{}}}"#, "[".repeat(inner), "]".repeat(inner))
}

#[test]
fn a_body_is_compact_and_otherwise_as_written() {
    let (id, body) =
        accepted(" {\"z\" : 1.0, \"id\": \"a b\" , \"n\":12345678901234567890123,\n\"x\":[ 1E5 ]}\t");
    assert_eq!(id, "a b");
    assert_eq!(body, r#"{"z":1.0,"id":"a b","n":12345678901234567890123,"x":[1E5]}"#);
}

#[test]
fn the_last_of_two_ids_counts_as_for_any_other_reader() {
    let (id, body) = accepted(r#"{"id":1,"id":"two"}"#);
    assert_eq!(id, "two");
    assert_eq!(serde_json::from_str::<Value>(&body).expect("JSON")["id"], "two");
}

#[test]
fn the_id_field_may_be_spelled_with_escapes() {
    assert_eq!(accepted(r#"{"\u0069d":"A"}"#).0, "A");
}

#[test]
fn every_mistake_has_its_reason_and_place() {
    use RejectReason::*;
    for (json, reason, detail) in [
        (&b"[1,2]"[..], NotAnObject, "the record is an array, not an object"),
        (b"12", NotAnObject, "the record is a number, not an object"),
        (b"\"{}\"", NotAnObject, "the record is a string, not an object"),
        (b"null", NotAnObject, "the record is null, not an object"),
        (b"true", NotAnObject, "the record is a boolean, not an object"),
        (b"hello", Unreadable, "expected value, at column 1 of the record"),
        (b"{\"id\":1", Unreadable, "EOF while parsing an object, at column 7 of the record"),
        (b"{\"id\":1} x", Unreadable, "trailing characters, at column 10 of the record"),
        (b"{\"id\":1,\n \"v\":}", Unreadable, "expected value, at line 2 of the record, column 6"),
        (
            b"{\"id\":1,\"v\":\"\xe4\"}",
            NotUtf8,
            "byte 14 of the record is not UTF-8; is the input in another encoding?",
        ),
        (b"{\"id\":null}", MissingId, "\"id\" is null, not a string or a number"),
        (b"{\"id\":\" \"}", MissingId, "\"id\" is empty"),
        (b"\0\0", Unreadable, "expected value, at column 1 of the record"),
    ] {
        let reject = refused(json);
        assert_eq!((reject.line, reject.reason, &*reject.detail), (7, reason, detail));
        assert_eq!(reject.excerpt, String::from_utf8_lossy(json));
    }
}

#[test]
fn what_a_later_parse_would_refuse_is_refused_now() {
    for json in [
        r#"{"id":1,"v":"\ud800"}"#,
        r#"{"id":1,"\udc00":1}"#,
        r#"{"id":"\ud800x"}"#,
        r#"{"id":1,"v":1e999}"#,
        r#"{"id":1e999}"#,
        "{\"id\":1,\"v\":\"\u{1}\"}",
        &nested(MAX_NESTING as usize + 1),
        &nested(100_000),
    ] {
        assert_eq!(refused(json.as_bytes()).reason, RejectReason::Unreadable, "{json:.80}");
    }
    let (_, body) = accepted(&nested(MAX_NESTING as usize));
    let enveloped = format!(r#"{{"product":[{body}]}}"#);
    assert!(serde_json::from_str::<Value>(&enveloped).is_ok());
}

#[test]
fn the_id_field_of_the_first_readable_object_holds_for_all() {
    let mut objects = objects();
    let mut read = |json: &str| objects.read(1, json.as_bytes());
    assert!(matches!(read("{broken"), Ok(Entry::Reject(_))));
    assert!(matches!(read(r#"{"SKU":"a","handle":"h"}"#), Ok(Entry::Record(r)) if r.id == "a"));
    assert!(matches!(read(r#"{"id":"b","SKU":"c"}"#), Ok(Entry::Record(r)) if r.id == "c"));
    assert!(matches!(read(r#"{"id":"d"}"#), Ok(Entry::Reject(r)) if r.detail == "there is no field \"SKU\""));
}

#[test]
fn an_input_without_an_id_field_is_told_its_fields() {
    let error = objects().read(1, br#"{"name":"a","price":1}"#).expect_err("no id");
    assert!(error.to_string().contains("fields found: name, price;"), "{error}");
    assert!(error.is_usage());
    let mut named = Objects::new("x", Some("ean".into()));
    assert!(matches!(named.read(1, br#"{"id":1}"#), Err(InputError::IdFieldNotFound { .. })));
}

#[test]
fn a_record_over_the_limit_is_too_large() {
    let frame = r#"{"id":1,"v":""}"#.len();
    let of_size = |size: usize| format!(r#"{{"id":1,"v":"{}"}}"#, "x".repeat(size - frame));
    assert_eq!(accepted(&of_size(MAX_RECORD_BYTES)).1.len(), MAX_RECORD_BYTES);
    let reject = refused(of_size(MAX_RECORD_BYTES + 1).as_bytes());
    assert_eq!(reject.reason, RejectReason::TooLarge);
    assert_eq!(reject.detail, "the record is longer than 1048576 bytes");
    assert_eq!(reject.excerpt.len(), 200);
}
