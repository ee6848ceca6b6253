//! What is written about the job file is what is read from it.

use std::collections::{BTreeMap, BTreeSet};

use super::{super::prices::known_models, *};

/// Models whose names have no family.
const OTHERS: [&str; 2] = ["o3", "o4-mini"];
const DOCS: &str = include_str!("../../../../docs/job.md");

/// The keys of each section, by its heading.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let mut sections = BTreeMap::new();
    let mut keys: Option<&mut BTreeSet<String>> = None;
    for line in DOCS.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            keys = Some(sections.entry(heading.to_owned()).or_default());
        } else if let Some((key, _)) = line.strip_prefix("| `").and_then(|row| row.split_once('`')) {
            assert!(keys.as_mut().is_some_and(|keys| keys.insert(key.to_owned())), "{key} stands twice");
        }
    }
    sections
}

/// The parser lists the keys it knows where it meets one it does not.
fn known(heading: &str) -> BTreeSet<String> {
    let text = match heading {
        "[llm.endpoints.prices]" => "[[llm.endpoints]]\nprices = { nobody = 1 }\n".to_owned(),
        _ => format!("{heading}\nnobody = 1\n"),
    };
    let told = Job::parse(&text, "job.toml", Path::new("/nonexistent")).unwrap_err();
    let path = format!("unknown key '{}.nobody' (there are: ", heading.trim_matches(['[', ']']));
    let list = told.problems.iter().find_map(|problem| problem.what.strip_prefix(&path)?.strip_suffix(')'));
    list.unwrap_or_else(|| panic!("{told}")).split(", ").map(ToOwned::to_owned).collect()
}

#[test]
fn every_key_is_documented_and_every_documented_key_is_read() {
    let documented = documented();
    for (heading, keys) in &documented {
        assert_eq!(*keys, known(heading), "{heading}");
    }
    let told = Job::parse("nobody = 1", "job.toml", Path::new("/nonexistent")).unwrap_err().to_string();
    let headings: Vec<&str> = documented.keys().map(|heading| heading.trim_matches(['[', ']'])).collect();
    let (_, sections) = told.split_once("(there are: ").unwrap();
    for section in sections.trim_end_matches(')').split(", ") {
        assert!(headings.contains(&section), "{section}");
    }
}

#[test]
fn the_defaults_that_are_documented_are_the_defaults() {
    let Job { llm, limits, .. } = Job::default();
    let images = super::super::Images::default();
    let written = |key: &str, default: &dyn std::fmt::Display| {
        let row = format!("| `{key}` | `{default}` |");
        assert!(DOCS.contains(&row), "{row}");
    };
    written("model", &format!("{:?}", llm.model));
    written("api_keys", &format!("{:?}", llm.api_keys));
    written("max_output_tokens", &llm.max_output_tokens);
    written("timeout", &format!("\"{}s\"", llm.timeout_ms / 1000));
    written("reask", &llm.reask);
    written("structured", &serde_json::to_string(&llm.structured).unwrap());
    written("on_overflow", &serde_json::to_string(&llm.on_overflow).unwrap());
    written("max_bytes", &images.max_bytes);
    written("max_images", &images.max_images);
    written("allow_private", &images.allow_private);
    written("concurrency", &limits.concurrency);
    written("delay", &format!("\"{}s\"", limits.delay_ms));
    written("max_attempts", &limits.max_attempts);
    written("abort_failure_rate", &limits.abort_failure_rate);
    written("dedupe_prompts", &limits.dedupe_prompts);
    assert!(DOCS.contains(super::super::PRICES_AS_OF));
}

#[test]
fn the_models_that_are_documented_are_those_with_prices() {
    let (_, list) = DOCS.split_once("by name or by name and date").unwrap();
    let (list, _) = list.split_once("Not at any other address").unwrap();
    let is_name = |word: &&str| {
        ["gpt", "claude"].iter().any(|family| word.starts_with(family)) || OTHERS.contains(word)
    };
    let listed: BTreeSet<&str> = list
        .split([' ', ',', ';', '\n'])
        .map(|word| word.trim_matches(['(', ')', '`', ':']))
        .filter(is_name)
        .collect();
    // Snapshots that cost something else than the model are not in the list; the one there is an example.
    let known: BTreeSet<&str> = known_models().filter(|model| !model.contains("-2024-")).collect();
    let listed: BTreeSet<&str> = listed.into_iter().filter(|model| !model.contains("-2025-")).collect();
    assert_eq!(listed, known);
}
