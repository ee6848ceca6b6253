//! Where the JSON is in what a model says: in a code fence, after its reasoning, between sentences.
//!
//! Found are the outermost brackets that are closed, by one scan from the left that knows strings. What is inside of
//! brackets is never taken alone: the first item of a list that breaks off is not the answer. So a bracket that is not
//! closed ends the search. What was closed before it stands, unless it is the last word that breaks off: a draft is not
//! the answer either.

use std::collections::VecDeque;

/// How many pieces of JSON in one answer are tried: the first, and the last ones. Models that quote footnotes ("[1]")
/// have some.
const MAX_CANDIDATES: usize = 64;

/// What comes after `<think>…</think>`. Some templates swallow the opening tag; a text that begins as JSON or a fence has
/// no reasoning before it. `None`: the reasoning does not end.
pub(super) fn without_reasoning(content: &str) -> Option<&str> {
    let content = content.trim();
    if content.starts_with(['{', '[', '"', '`']) {
        return Some(content);
    }
    match content.split_once("</think>") {
        Some((_, answer)) => Some(answer.trim()),
        None if content.starts_with("<think>") => None,
        None => Some(content),
    }
}

/// Without the code fence that many models put around JSON.
pub(super) fn unfenced(content: &str) -> &str {
    let content = content.trim();
    let Some(inner) = content.strip_prefix("```").and_then(|rest| rest.strip_suffix("```")) else {
        return content;
    };
    inner.strip_prefix("json").or_else(|| inner.strip_prefix("JSON")).unwrap_or(inner).trim()
}

/// The outermost closed brackets, from the left.
pub(super) fn candidates(text: &str) -> VecDeque<&str> {
    let mut found = VecDeque::new();
    let mut from = 0;
    while let Some(at) = text[from..].find(['{', '[']) {
        let begin = from + at;
        let Some(bytes) = closed(&text.as_bytes()[begin..]) else {
            if is_json_begun(&text[begin..]) {
                found.clear();
            }
            break;
        };
        from = begin + bytes;
        if found.len() == MAX_CANDIDATES {
            found.remove(1);
        }
        found.push_back(&text[begin..from]);
    }
    found
}

/// Whether this is no bracket of a sentence.
fn is_json_begun(text: &str) -> bool {
    let inside = text[1..].trim_start();
    if text.starts_with('{') { inside.starts_with('"') } else { inside.starts_with(['{', '[', '"']) }
}

/// How many bytes there are up to and with the bracket that closes the first one.
fn closed(bytes: &[u8]) -> Option<usize> {
    let mut depth = 0_usize;
    let mut is_string = false;
    let mut rest = bytes.iter().enumerate();
    while let Some((at, byte)) = rest.next() {
        match byte {
            b'\\' if is_string => drop(rest.next()),
            b'"' => is_string = !is_string,
            b'{' | b'[' if !is_string => depth += 1,
            b'}' | b']' if !is_string => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn found(text: &str) -> Vec<&str> {
        candidates(text).into()
    }

    #[test]
    fn the_outermost_brackets_are_found_and_strings_respected() {
        assert_eq!(
            found(r#"Here: {"a": "}{[\"]"} and [1, {"b": []}]. Done"#),
            [r#"{"a": "}{[\"]"}"#, r#"[1, {"b": []}]"#]
        );
        assert_eq!(found(r#"{"a": "\\"} {"b": 1}"#), [r#"{"a": "\\"}"#, r#"{"b": 1}"#]);
        assert_eq!(found("He said \"no\" to ü {1} }]"), ["{1}"]);
        assert!(found("no JSON \" at all").is_empty());
    }

    #[test]
    fn what_is_not_closed_is_not_looked_into() {
        assert!(found(r#"[{"a": 1}, {"a": 2}"#).is_empty());
        assert!(found(r#"{"a": 1, "b": "{}"#).is_empty());
        for broken in [r#"{"a": 1} {"a": {"b": 2}"#, r#"{"a": 1} [ {"a": 1}, "#] {
            assert!(found(broken).is_empty(), "{broken}");
        }
        assert_eq!(found(r#"{"a": 1} Sorry :[ or {so"#), [r#"{"a": 1}"#]);
    }

    #[test]
    fn of_many_the_first_and_the_last_are_kept() {
        let many: String = (0..1_000).map(|n| format!("[{n}] ")).collect();
        let found = found(&many);
        assert_eq!(
            (found.len(), found[0], found[1], found[MAX_CANDIDATES - 1]),
            (MAX_CANDIDATES, "[0]", "[937]", "[999]")
        );
    }

    #[test]
    fn reasoning_is_passed_over() {
        assert_eq!(without_reasoning(" <think>{\"a\": 0}?</think>\n{\"a\": 1}"), Some("{\"a\": 1}"));
        assert_eq!(without_reasoning("Well, {\"a\": 0}?</think> {\"a\": 1}"), Some("{\"a\": 1}"));
        assert_eq!(without_reasoning("<think>{\"a\": 0}"), None);
        assert_eq!(without_reasoning("{\"a\": \"</think>\"}"), Some("{\"a\": \"</think>\"}"));
        assert_eq!(without_reasoning("Sure: {}"), Some("Sure: {}"));
    }

    #[test]
    fn hostile_texts_take_no_longer_than_others() {
        let started = Instant::now();
        for piece in [
            "[", "{", "[]", "\"", "[\"", "[1,", "{\"a\":", "\\", "[\"\\\"", "]", "<think>", "</think>",
            "```", "{\"}",
        ] {
            let text = piece.repeat(500_000 / piece.len());
            if let Some(text) = without_reasoning(&text) {
                assert!(candidates(unfenced(text)).len() <= MAX_CANDIDATES);
            }
        }
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    }
}
