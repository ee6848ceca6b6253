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
fn assert_golden<T: Serialize + for<'de> Deserialize<'de>>(message: &T, version: u32, golden: &str) {
    let golden = golden.trim_end();
    assert_eq!(String::from_utf8(encode(message, version)).unwrap(), golden);
    let read: T = decode(golden.as_bytes(), version).unwrap();
    assert_eq!(String::from_utf8(encode(&read, version)).unwrap(), golden);
}

#[test]
fn messages_look_as_they_did() {
    let spent =
        Spent { calls: 2, prompt_tokens: 620, completion_tokens: 240, repeated_calls: 1, ..Spent::default() };
    let task = Task { attempts: 1, spent, ..Task::new("SM-1".to_owned(), 1, product()) };
    assert_golden(&task, 1, include_str!("../../golden/task.v1.json"));
    for (outcome, golden) in [
        (completed(), include_str!("../../golden/completed.v1.json")),
        (failed(), include_str!("../../golden/failed.v1.json")),
        (rejected(), include_str!("../../golden/rejected.v1.json")),
    ] {
        assert_eq!(String::from_utf8(outcome.encode()).unwrap(), golden.trim_end());
    }
    assert_golden(&completed(), 1, include_str!("../../golden/completed.v1.json"));
    assert_golden(&failed(), 1, include_str!("../../golden/failed.v1.json"));
    assert_golden(&rejected(), 1, include_str!("../../golden/rejected.v1.json"));
    let changes = Changes {
        model: Some("gpt-4.1".to_owned()),
        prices: Some(crate::job::Prices { prompt_per_million: 2.0, completion_per_million: 8.0 }),
        max_output_tokens: Some(4096),
        timeout_ms: Some(90_000),
        temperature: Some(crate::changes::Temperature::Of(0.5)),
    };
    let changed = Task { changes, ..task };
    assert_golden(&changed, 2, include_str!("../../golden/task.v2.json"));
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
fn a_task_with_changes_is_none_for_those_who_do_not_know_of_them() {
    let golden = include_str!("../../golden/task.v2.json").trim_end();
    assert_eq!(String::from_utf8(Task::decode(golden.as_bytes()).unwrap().encode()).unwrap(), golden);
    // What a build of version 1 does with it.
    assert!(matches!(
        decode::<Task>(golden.as_bytes(), VERSION),
        Err(DecodeError::UnknownVersion { found: 2 })
    ));
    for (sound, broken) in [
        ("4096", "0"),
        ("gpt-4.1", " "),
        ("90000", "0"),
        ("0.5", "3.5"),
        ("timeout_ms", "timeout_s"),
        ("2.0", "-2.0"),
    ] {
        let task = golden.replace(sound, broken);
        assert!(matches!(Task::decode(task.as_bytes()), Err(DecodeError::Malformed(_))), "{broken}");
    }
}

#[test]
fn what_is_no_message_is_told_apart() {
    assert!(matches!(
        Task::decode(br#"{"v":3,"m":{"whatever":[1]}}"#),
        Err(DecodeError::UnknownVersion { found: 3 })
    ));
    assert!(matches!(
        Outcome::decode(br#"{"v":2,"m":{"whatever":[1]}}"#),
        Err(DecodeError::UnknownVersion { found: 2 })
    ));
    for bytes in
        [&b""[..], b"{}", b"null", b"\xff\xff", br#"{"v":1}"#, br#"{"v":1,"m":{"id":7}}"#, b"{\"v\":1,"]
    {
        assert!(matches!(Task::decode(bytes), Err(DecodeError::Malformed(_))), "{bytes:?}");
        assert!(matches!(Outcome::decode(bytes), Err(DecodeError::Malformed(_))), "{bytes:?}");
    }
    // A line break would make two lines of one.
    let broken = completed().encode();
    let broken = String::from_utf8(broken).unwrap().replace("\"seq\":1,", "\"seq\":1,\n");
    assert!(matches!(Outcome::decode(broken.as_bytes()), Err(DecodeError::Malformed(_))));
}
