//! JSON as serde_json writes it, on one line or indented, straight from other JSON. Only layout and escapes change: keys keep
//! their order, and numbers their spelling (`12.50`, twenty digits).

use serde::ser::Error as _;
use serde_json::{Error, Result};

use crate::json_text::{end_of_string, is_space};

const INDENT: &str = "  ";
/// About as deep as serde_json reads; products of ours are not.
const MAX_DEPTH: usize = 127;

/// The same value as `json`, which is valid; an error where it is nested too deep, or where a string has half a surrogate pair.
pub(super) fn laid_out(json: &str, is_indented: bool) -> Result<String> {
    // Spaces and line breaks of an object that is not deep.
    let mut out =
        Layout { text: String::with_capacity(json.len() + json.len() / 4 + 64), depth: 0, is_indented };
    let bytes = json.as_bytes();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let begin = at;
        at += 1;
        match byte {
            b'"' => {
                at = end_of_string(bytes, begin);
                out.string(&json[begin..at])?;
            }
            b'{' | b'[' => {
                while bytes.get(at).copied().is_some_and(is_space) {
                    at += 1;
                }
                out.text.push(byte.into());
                match bytes.get(at) {
                    Some(&close @ (b'}' | b']')) => {
                        out.text.push(close.into());
                        at += 1;
                    }
                    _ => out.open()?,
                }
            }
            b'}' | b']' => {
                out.close();
                out.text.push(byte.into());
            }
            b',' => {
                out.text.push(',');
                out.break_line();
            }
            b':' => out.text.push_str(if is_indented { ": " } else { ":" }),
            _ if is_space(byte) => {}
            // A number, or a word.
            _ => {
                while bytes
                    .get(at)
                    .is_some_and(|byte| !matches!(byte, b',' | b']' | b'}') && !is_space(*byte))
                {
                    at += 1;
                }
                out.text.push_str(&json[begin..at]);
            }
        }
    }
    Ok(out.text)
}

struct Layout {
    text: String,
    depth: usize,
    is_indented: bool,
}

impl Layout {
    /// As it is, but for escapes that need not be: `\/`, and most that begin with `\u`.
    fn string(&mut self, quoted: &str) -> Result<()> {
        let bytes = quoted.as_bytes();
        if memchr::memchr_iter(b'\\', bytes).any(|at| matches!(bytes.get(at + 1), Some(b'u' | b'/'))) {
            let value: String = serde_json::from_str(quoted)?;
            self.text.push_str(&serde_json::to_string(&value)?);
        } else {
            self.text.push_str(quoted);
        }
        Ok(())
    }

    fn open(&mut self) -> Result<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Error::custom(format!("nested deeper than {MAX_DEPTH} levels")));
        }
        self.break_line();
        Ok(())
    }

    fn close(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        self.break_line();
    }

    fn break_line(&mut self) {
        if self.is_indented {
            self.text.push('\n');
            for _ in 0..self.depth {
                self.text.push_str(INDENT);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn numbers_keep_their_spelling_and_strings_what_they_say() {
        let json = r#" { "price" : 12.50, "ean":12345678901234567890123, "e" : [ 1E3 , { } , [ ] ] ,"t":"\u00e9\/ \" \\u00e9 \n"}"#;
        assert_eq!(
            laid_out(json, false).unwrap(),
            r#"{"price":12.50,"ean":12345678901234567890123,"e":[1E3,{},[]],"t":"é/ \" \\u00e9 \n"}"#
        );
        let short = r#"{"t":"\b\f\n\r\t \" \\ \u0001 \u001f"}"#;
        assert_eq!(laid_out(short, false).unwrap(), short);
        assert_eq!(
            laid_out(r#"{"a":[1.0,{"b":null}],"c":{}}"#, true).unwrap(),
            "{\n  \"a\": [\n    1.0,\n    {\n      \"b\": null\n    }\n  ],\n  \"c\": {}\n}"
        );
    }

    #[test]
    fn what_is_nested_too_deep_or_no_text_is_an_error() {
        let nested = |levels| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        laid_out(&nested(MAX_DEPTH), true).unwrap();
        laid_out(&nested(MAX_DEPTH + 1), true).unwrap_err();
        laid_out(r#"{"a":"\ud83d"}"#, false).unwrap_err();
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inside| {
            prop_oneof![
                prop::collection::vec(inside.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((any::<String>(), inside), 0..6)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn it_is_what_serde_json_writes(value in values()) {
            let (tight, loose) = (serde_json::to_string(&value).unwrap(), serde_json::to_string_pretty(&value).unwrap());
            for json in [&tight, &loose] {
                prop_assert_eq!(&laid_out(json, false).unwrap(), &tight);
                prop_assert_eq!(&laid_out(json, true).unwrap(), &loose);
            }
        }
    }
}
