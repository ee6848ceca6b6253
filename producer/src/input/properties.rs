//! What holds for any input in any format: no bytes make a reader panic or go on for ever, and what is written in a
//! format is read back equal.

use std::io::Cursor;

use proptest::prelude::*;
use serde_json::{Map, Value};

use super::testing::{gzip, outcome, outcome_of};
use super::{Entry, Format, MAX_EXCERPT_CHARS};

const FORMATS: [Format; 4] = [Format::Jsonl, Format::JsonArray, Format::Csv, Format::Tsv];

/// Bytes of which many mean something to one of the formats, so that odd states are reached.
fn troublesome_bytes() -> impl Strategy<Value = Vec<u8>> {
    let token = prop_oneof![
        3 => prop::sample::select(vec![
            "{", "}", "[", "]", "\"", "\\", ",", ":", "\n", "\r\n", "\r", "\t", " ", "\0", "\u{feff}", "id", "\"id\":",
            "{\"id\":1}", "{\"id\":\"a\",\"v\":[", "1", "null", "é", "id,v\n", "\\ud800",
        ])
        .prop_map(|token| token.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ];
    prop::collection::vec(token, 0..60).prop_map(|tokens| tokens.concat())
}

fn check_any_bytes(format: Format, bytes: &[u8]) -> Result<(), TestCaseError> {
    let read = outcome(format, bytes);
    prop_assert!(read.records.len() + read.rejects.len() <= bytes.len() + 1);
    let lines = 1 + bytes.iter().filter(|&&byte| byte == b'\n').count() as u64;
    for (line, id, body) in &read.records {
        prop_assert!((1..=lines).contains(line) && !id.trim().is_empty());
        prop_assert!(serde_json::from_str::<Map<String, Value>>(body).is_ok());
        prop_assert!(!body.contains('\n'));
    }
    for reject in &read.rejects {
        prop_assert!((1..=lines).contains(&reject.line));
        prop_assert!(reject.excerpt.chars().count() <= MAX_EXCERPT_CHARS);
    }
    Ok(())
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((any::<String>(), inner), 0..5)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// Objects with an `id` in some place among other fields.
fn json_objects() -> impl Strategy<Value = Vec<Map<String, Value>>> {
    let fields = || prop::collection::vec((any::<String>(), json_value()), 0..4);
    let object = (fields(), "[^\\s]\\PC{0,20}", fields()).prop_map(|(before, id, after)| {
        let mut object: Map<String, Value> = before.into_iter().collect();
        object.insert("id".into(), id.into());
        object.extend(after.into_iter().filter(|(key, _)| key != "id"));
        object
    });
    prop::collection::vec(object, 0..8)
}

fn check_round_trip(format: Format, text: &str, objects: &[Map<String, Value>]) -> Result<(), TestCaseError> {
    for bytes in [text.as_bytes().to_vec(), gzip(text.as_bytes())] {
        let read = outcome(format, &bytes);
        prop_assert!(read.rejects.is_empty() && read.error.is_none(), "{:?}", read);
        prop_assert_eq!(read.records.len(), objects.len());
        for ((_, id, body), object) in read.records.iter().zip(objects) {
            prop_assert_eq!(Some(&**id), object["id"].as_str());
            prop_assert_eq!(body, &serde_json::to_string(object).expect("a value"));
        }
    }
    Ok(())
}

fn check_table(format: Format, delimiter: u8, rows: &[[String; 3]]) -> Result<(), TestCaseError> {
    let mut writer = csv::WriterBuilder::new().delimiter(delimiter).from_writer(Vec::new());
    writer.write_record(["v", "id", "w"]).expect("memory");
    let mut objects = Vec::new();
    for [v, id, w] in rows {
        writer.write_record([v, id, w]).expect("memory");
        let mut object = Map::new();
        object.insert("v".into(), v.as_str().into());
        object.insert("id".into(), id.as_str().into());
        object.insert("w".into(), w.as_str().into());
        objects.push(object);
    }
    let text = String::from_utf8(writer.into_inner().expect("memory")).expect("UTF-8");
    check_round_trip(format, &text, &objects)
}

fn table() -> impl Strategy<Value = Vec<[String; 3]>> {
    let cell = || prop_oneof![any::<String>(), "[\"\r\n\t, a-z]{0,12}"];
    let row = (cell(), "[^\\s]\\PC{0,20}", cell()).prop_map(|(v, id, w)| [v, id, w]);
    prop::collection::vec(row, 0..8)
}

proptest! {
    #[test]
    fn any_bytes_are_read_to_their_end(bytes in troublesome_bytes()) {
        for format in FORMATS {
            check_any_bytes(format, &bytes)?;
        }
    }

    #[test]
    fn any_bytes_after_a_good_beginning_are_read_to_their_end(bytes in troublesome_bytes()) {
        for (format, beginning) in FORMATS.into_iter().zip(["{\"id\":0}\n", "[{\"id\":0},", "id,v\n", "id\tv\n"]) {
            check_any_bytes(format, &[beginning.as_bytes(), &bytes].concat())?;
        }
    }

    #[test]
    fn a_reader_survives_any_packed_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for format in FORMATS {
            let packed = [&[0x1f, 0x8b, 0x08], &bytes[..]].concat();
            prop_assert!(outcome_of(format, Box::new(Cursor::new(packed))).error.is_some());
        }
    }

    #[test]
    fn jsonl_reads_what_was_written(objects in json_objects(), end in prop::sample::select(vec!["\n", "\r\n", "\n \n"])) {
        let lines: Vec<String> = objects.iter().map(|o| serde_json::to_string(o).expect("a value")).collect();
        check_round_trip(Format::Jsonl, &lines.join(end), &objects)?;
    }

    #[test]
    fn a_json_array_reads_what_was_written(objects in json_objects()) {
        check_round_trip(Format::JsonArray, &serde_json::to_string(&objects).expect("a value"), &objects)?;
        check_round_trip(Format::JsonArray, &serde_json::to_string_pretty(&objects).expect("a value"), &objects)?;
    }

    #[test]
    fn csv_reads_what_was_written(rows in table()) {
        check_table(Format::Csv, b',', &rows)?;
    }

    #[test]
    fn tsv_reads_what_was_written(rows in table()) {
        check_table(Format::Tsv, b'\t', &rows)?;
    }
}

#[test]
fn a_damaged_array_still_gives_the_elements_after_the_damage() {
    let sound: Vec<String> =
        (0..50).map(|n| format!("  {{\"id\":\"p{n}\",\"v\":[\"a\",{{\"b\":\"c\"}}]}}")).collect();
    for damaged in 0..sound[20].len() {
        let mut lines = sound.clone();
        lines[20].remove(damaged);
        let read = outcome(Format::JsonArray, format!("[\n{}\n]", lines.join(",\n")).as_bytes());
        let after = read.ids().iter().filter(|id| **id > "p21" && id.len() == 3).count();
        assert!(after >= 28, "{}: {:?}", lines[20], read.rejects);
    }
}

#[test]
fn an_entry_can_be_sent_to_another_thread() {
    fn is_send<T: Send>() {}
    is_send::<super::Records>();
    is_send::<Entry>();
}
