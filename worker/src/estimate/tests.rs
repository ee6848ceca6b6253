use std::time::{Duration, Instant};

use serde_json::json;

use super::*;

const OPENAI: &str = "api.openai.com";

fn prompt(text: &str) -> Vec<Message> {
    vec![Message::new("user", text.to_owned())]
}

#[test]
fn the_tokenizer_is_the_models_where_names_can_be_believed() {
    for (model, host, expected) in [
        ("gpt-4.1-mini", OPENAI, Some(Encoding::O200k)),
        ("gpt-4o-2024-05-13", OPENAI, Some(Encoding::O200k)),
        ("gpt-5-nano", "EU.api.openai.com", Some(Encoding::O200k)),
        ("o4-mini", "me.openai.azure.com", Some(Encoding::O200k)),
        ("openai/gpt-4o", "openrouter.ai", Some(Encoding::O200k)),
        ("gpt-4", OPENAI, Some(Encoding::Cl100k)),
        ("gpt-3.5-turbo", OPENAI, Some(Encoding::Cl100k)),
        ("meta-llama/llama-3", "openrouter.ai", None),
        ("gpt-4o", "localhost", None),
        ("gpt-4o", "notopenai.com", None),
        ("llama", OPENAI, None),
        ("text-davinci-003", OPENAI, None),
    ] {
        assert_eq!(Encoding::of(model, host), expected, "{model} at {host}");
    }
}

/// The counts are those of OpenAI's tiktoken.
#[test]
fn tokens_are_counted_as_the_model_counts_them() {
    let new = Estimator::new("gpt-4o", OPENAI, None);
    let old = Estimator::new("gpt-4", OPENAI, None);
    assert_eq!((new.count("tiktoken is great!"), old.count("tiktoken is great!")), (6, 6));
    assert_eq!((new.count("お誕生日おめでとう"), old.count("お誕生日おめでとう")), (8, 9));
    assert_eq!(new.count(""), 0);
    assert_eq!(Estimator::new("llama", "localhost", None).count("お誕生日おめでとう"), 7);
}

#[test]
fn messages_and_schema_count_beside_their_text() {
    let schema = json!({"type": "object"});
    let plain = Estimator::new("llama", "localhost", None);
    let with_schema = Estimator::new("llama", "localhost", Some(&schema));
    assert_eq!(plain.estimate(&prompt("12345678")), 3 + 4 + 2);
    assert_eq!(with_schema.estimate(&prompt("12345678")), 3 + 4 + 2 + 5);
    let known = Estimator::new("gpt-4o", OPENAI, Some(&schema));
    assert_eq!(known.estimate(&prompt("hello world")), 3 + 4 + 2 + known.count(r#"{"type":"object"}"#));
}

#[test]
fn long_texts_are_estimated_by_a_part_of_them() {
    let known = Estimator::new("gpt-4o", OPENAI, None);
    let text = "The quick brown fox jumps over the lazy dog. ".repeat(20_000);
    // 10 tokens a sentence, by hand: one a word, one for the full stop.
    let (found, right) = (known.count(&text), 200_000_u64);
    assert!(found.abs_diff(right) < right / 50, "{found}");
}

/// Some tokenizers take quadratic time on these, or give up with a panic.
#[test]
fn no_text_takes_long() {
    let known = Estimator::new("gpt-4o", OPENAI, None);
    for text in ["a", " ", "\n", "語", "🧑‍🌾", "aB1!\n ", "\u{301}", "0", "<|endoftext|>"] {
        let text = text.repeat(1_000_000 / text.len());
        let began = Instant::now();
        assert!(known.count(&text) > 0);
        // Milliseconds, on a machine that has nothing else to do.
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
}

#[test]
fn pieces_are_the_whole_text() {
    for text in [String::new(), "語".repeat(5000), "a".repeat(PIECE_BYTES), "a".repeat(PIECE_BYTES + 1)] {
        assert_eq!(pieces(&text).collect::<String>(), text);
        assert!(pieces(&text).all(|piece| piece.len() <= PIECE_BYTES));
    }
}

#[test]
fn what_was_observed_corrects_what_is_expected() {
    let estimator = Estimator::new("llama", "localhost", None);
    let before = estimator.measure(&prompt(&"語".repeat(400)));
    for _ in 0..60 {
        // What is expected is corrected already; what is learned must not be corrected twice.
        let estimate = estimator.measure(&prompt(&"語".repeat(400)));
        estimator.observe(estimate, before.tokens * 2);
    }
    let after = estimator.estimate(&prompt(&"語".repeat(400)));
    assert!(after.abs_diff(before.tokens * 2) <= 2, "{before:?} {after}");
}

#[test]
fn a_correction_has_bounds() {
    let corrector = Corrector::default();
    corrector.observe(100, 0);
    corrector.observe(0, 100);
    assert_eq!(corrector.correct(100), 100);
    for _ in 0..1000 {
        corrector.observe(1, u64::MAX);
    }
    assert!((corrector.ratio() - Corrector::MOST).abs() < 1e-6);
    assert_eq!(corrector.correct(u64::MAX), u64::MAX);
    for _ in 0..1000 {
        corrector.observe(u64::MAX, 1);
    }
    assert!((corrector.ratio() - Corrector::LEAST).abs() < 1e-6);
}
