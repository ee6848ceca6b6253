//! Takes the insignificant whitespace out of JSON and changes nothing else.
//!
//! Keys keep their order and numbers their spelling (`1.0`, `1e3`, twenty digits), because the text is never turned
//! into values and back. The input must be valid JSON: only then is everything between two quotes a string.

use std::borrow::Cow;

use shelfmill_pipeline::json_text::{end_of_string, is_space};

/// The same JSON on one line, borrowed when there is nothing to take out.
pub(super) fn compact(json: &str) -> Cow<'_, str> {
    let bytes = json.as_bytes();
    let mut compacted = String::new();
    let mut copied_to = 0;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if byte == b'"' {
            at = end_of_string(bytes, at);
        } else if is_space(byte) {
            if compacted.is_empty() {
                compacted.reserve(json.len());
            }
            compacted.push_str(&json[copied_to..at]);
            while bytes.get(at).copied().is_some_and(is_space) {
                at += 1;
            }
            copied_to = at;
        } else {
            at += 1;
        }
    }
    if copied_to == 0 {
        return Cow::Borrowed(json);
    }
    compacted.push_str(&json[copied_to..]);
    Cow::Owned(compacted)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn whitespace_goes_outside_strings_only() {
        for (loose, tight) in [
            ("{ \"a\" : 1 }", "{\"a\":1}"),
            (
                "\t{\r\n  \"a b\": [ 1.0 , 1e3,\n 12345678901234567890123 ]\n}\n",
                "{\"a b\":[1.0,1e3,12345678901234567890123]}",
            ),
            (r#"{"a": "x \" y \\", "b": " "}"#, r#"{"a":"x \" y \\","b":" "}"#),
            (r#"{"ü": "日 本 😀" , "n": null}"#, r#"{"ü":"日 本 😀","n":null}"#),
            ("  {}  ", "{}"),
            (" ", ""),
        ] {
            assert_eq!(compact(loose), tight);
        }
    }

    #[test]
    fn nothing_is_copied_when_there_is_nothing_to_take_out() {
        for tight in [r#"{"z":"a b","a":[1,2,{"k":"\\"}]}"#, "{}", ""] {
            assert!(matches!(compact(tight), Cow::Borrowed(text) if text == tight));
        }
    }

    proptest! {
        #[test]
        fn the_value_stays_the_same(text in any::<String>(), numbers in prop::collection::vec(any::<i64>(), 0..5)) {
            let value = serde_json::json!({ &text: numbers, "n": { "text": text } });
            let pretty = serde_json::to_string_pretty(&value).expect("a value");
            let tight = compact(&pretty);
            prop_assert_eq!(&*tight, serde_json::to_string(&value).expect("a value"));
            prop_assert_eq!(serde_json::from_str::<Value>(&tight).expect("still JSON"), value);
        }

        #[test]
        fn no_text_makes_it_panic(text in any::<String>()) {
            compact(&text);
        }
    }
}
