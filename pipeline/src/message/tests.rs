//! The wire and disk formats, as they are in `pipeline/golden`: a change there is a change for every run under
//! way and every user who reads the files.

use jiff::Timestamp;

use super::*;
use crate::record::{Failure, Meta};

fn product() -> Box<RawValue> {
    serde_json::from_str(r#"{"id":"SM-1","title":"Tasse \"Blau\" – groß","price":12.50}"#).unwrap()
}

fn meta() -> Meta {
    Meta {
        model: "gpt-4.1-mini".to_owned(),
        prompt_tokens: 310,
        completion_tokens: 120,
        cost_usd: Some(0.000_316),
        latency_ms: 840,
        attempts: 2,
        endpoint: None,
        shortened: None,
        same_prompt_as: None,
        repeated_calls: 0,
        worker: "host-17-beef".to_owned(),
        fingerprint: "00112233445566ff".to_owned(),
        completed_at: Timestamp::UNIX_EPOCH,
    }
}

fn completed() -> Outcome {
    Outcome::Completed(Line::of_result(&ResultLine {
        id: "SM-1".to_owned(),
        seq: 1,
        product: product(),
        analysis: serde_json::from_str(r#"{"category":"Kitchen"}"#).unwrap(),
        meta: meta(),
    }))
}

fn failed() -> Outcome {
    Outcome::Failed(Line::of_failure(&FailureLine {
        id: "SM-1".to_owned(),
        seq: 1,
        product: product(),
        failure: Failure {
            class: FailureClass::Malformed,
            message: "the answer is not JSON".to_owned(),
            raw: Some("Sure!\n".to_owned()),
        },
        meta: Meta { repeated_calls: 1, cost_usd: None, ..meta() },
    }))
}

fn rejected() -> Outcome {
    let line = RejectLine {
        line: 7,
        id: None,
        reason: "missing_id".to_owned(),
        detail: "the field 'id' is empty".to_owned(),
        excerpt: ",x".to_owned(),
    };
    Outcome::Rejected(Rejects { scan: 3, first: 1, lines: vec![line] })
}

/// Written as the golden file, and read from it.
fn assert_golden<T: Serialize + for<'de> Deserialize<'de>>(message: &T, golden: &str) {
    let golden = golden.trim_end();
    assert_eq!(String::from_utf8(encode(message)).unwrap(), golden);
    let read: T = decode(golden.as_bytes()).unwrap();
    assert_eq!(String::from_utf8(encode(&read)).unwrap(), golden);
}

#[test]
fn messages_look_as_they_did() {
    let spent =
        Spent { calls: 2, prompt_tokens: 620, completion_tokens: 240, repeated_calls: 1, ..Spent::default() };
    let task = Task { attempts: 1, spent, ..Task::new("SM-1".to_owned(), 1, product()) };
    assert_golden(&task, include_str!("../../golden/task.v1.json"));
    assert_golden(&completed(), include_str!("../../golden/completed.v1.json"));
    assert_golden(&failed(), include_str!("../../golden/failed.v1.json"));
    assert_golden(&rejected(), include_str!("../../golden/rejected.v1.json"));
}

#[test]
fn a_line_is_carried_byte_for_byte() {
    let (Outcome::Completed(line), golden) = (completed(), include_str!("../../golden/journal_line.json"))
    else {
        panic!("not completed");
    };
    assert_eq!(line.json(), golden.trim_end());
    let Outcome::Completed(read) = Outcome::decode(&completed().encode()).unwrap() else {
        panic!("not completed")
    };
    assert_eq!(
        (read.json(), read.id(), read.seq(), read.cost_usd()),
        (line.json(), "SM-1", 1, Some(0.000_316))
    );
    let Outcome::Failed(read) = Outcome::decode(&failed().encode()).unwrap() else { panic!("not failed") };
    assert_eq!(read.class(), Some(FailureClass::Malformed));
}

#[test]
fn what_is_no_message_is_told_apart() {
    assert!(matches!(
        Task::decode(br#"{"v":2,"m":{"whatever":[1]}}"#),
        Err(DecodeError::UnknownVersion { found: 2 })
    ));
    for bytes in
        [&b""[..], b"{}", b"null", b"\xff\xff", br#"{"v":1}"#, br#"{"v":1,"m":{"id":7}}"#, b"{\"v\":1,"]
    {
        assert!(matches!(Task::decode(bytes), Err(DecodeError::Malformed(_))), "{bytes:?}");
        assert!(matches!(Outcome::decode(bytes), Err(DecodeError::Malformed(_))), "{bytes:?}");
    }
    // A line break would make two lines of one.
    let broken = encode(&completed());
    let broken = String::from_utf8(broken).unwrap().replace("\"seq\":1,", "\"seq\":1,\n");
    assert!(matches!(Outcome::decode(broken.as_bytes()), Err(DecodeError::Malformed(_))));
}
