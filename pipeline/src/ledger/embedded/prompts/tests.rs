use std::fs;

use super::*;
use crate::money::Money;

fn key(number: usize) -> PromptKey {
    PromptKey::of(&[&number.to_le_bytes()])
}

fn answer(number: usize) -> PromptAnswer {
    PromptAnswer {
        id: format!("SM-{number}"),
        model: "m".to_owned(),
        endpoint: None,
        shortened: None,
        most: Money::ZERO,
        analysis: serde_json::value::to_raw_value(&serde_json::json!({ "line": "one\ntwo" })).unwrap(),
    }
}

fn id(prompts: &mut Prompts, number: usize) -> Option<String> {
    prompts.answer(&key(number)).map(|answer| answer.id)
}

#[test]
fn answers_are_known_to_the_next_process_and_the_first_one_counts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prompts");
    let mut prompts = Prompts::open(&path).unwrap();
    assert!(prompts.answer(&key(1)).is_none());
    prompts.keep(&key(1), &answer(1));
    prompts.keep(&key(1), &answer(9));
    prompts.keep(&key(2), &answer(2));
    for _ in 0..2 {
        assert_eq!(id(&mut prompts, 1).as_deref(), Some("SM-1"));
        assert_eq!(id(&mut prompts, 2).as_deref(), Some("SM-2"));
        prompts = Prompts::open(&path).unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
}

#[test]
fn a_torn_end_is_cut_off_wherever_it_is_torn() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prompts");
    let mut prompts = Prompts::open(&path).unwrap();
    prompts.keep(&key(1), &answer(1));
    let whole = fs::read(&path).unwrap().len();
    prompts.keep(&key(2), &answer(2));
    let both = fs::read(&path).unwrap();
    for length in whole..both.len() {
        fs::write(&path, &both[..length]).unwrap();
        let mut prompts = Prompts::open(&path).unwrap();
        assert_eq!(id(&mut prompts, 1).as_deref(), Some("SM-1"));
        assert_eq!(id(&mut prompts, 2), None, "{length}");
        prompts.keep(&key(3), &answer(3));
        let mut prompts = Prompts::open(&path).unwrap();
        assert_eq!(id(&mut prompts, 1).as_deref(), Some("SM-1"));
        assert_eq!(id(&mut prompts, 3).as_deref(), Some("SM-3"));
    }
}

#[test]
fn what_is_no_record_is_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prompts");
    for foreign in [&[0xa5; 1_001][..], b"\n", &[0; 4_096], b"{}\n"] {
        fs::write(&path, foreign).unwrap();
        let mut prompts = Prompts::open(&path).unwrap();
        prompts.keep(&key(1), &answer(1));
        assert_eq!(id(&mut Prompts::open(&path).unwrap(), 1).as_deref(), Some("SM-1"));
    }
    // A power cut can leave a record whose bytes never came: it is asked again, and that answer is found from then on.
    let mut bytes = fs::read(&path).unwrap();
    let length = bytes.len();
    bytes[HEAD_BYTES..length - 1].fill(0);
    fs::write(&path, &bytes).unwrap();
    let mut prompts = Prompts::open(&path).unwrap();
    assert_eq!(id(&mut prompts, 1), None);
    prompts.keep(&key(1), &answer(7));
    assert_eq!(id(&mut Prompts::open(&path).unwrap(), 1).as_deref(), Some("SM-7"));
}

#[test]
fn a_prompt_takes_at_most_32_bytes_of_memory() {
    let folder = tempfile::tempdir().unwrap();
    let mut prompts = Prompts::open(&folder.path().join("prompts")).unwrap();
    let mut worst = 0;
    for number in 0..200_000 {
        prompts.note(&key(number), number as u64);
        if number >= 10_000 {
            let size: usize = prompts.shards.iter().map(HashTable::allocation_size).sum();
            worst = worst.max(size * 100 / (number + 1));
        }
    }
    for number in 0..200_000 {
        assert_eq!(prompts.place(&key(number)), Some(number as u64));
    }
    assert!(worst <= 3_200, "{worst} hundredths of a byte");
}
