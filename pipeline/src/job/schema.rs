//! The schema of an answer, compiled once.

use std::fmt;

use serde_json::Value;

/// The most violations that are told of one answer.
const VIOLATIONS_TOLD: usize = 5;
/// A violation that is longer is told without the value, so that all of them have room in a message of 2 KiB.
const VIOLATION_BYTES: usize = 350;

/// A compiled JSON schema. References to other documents are refused: a check must not depend on a network.
pub struct AnswerSchema {
    validator: jsonschema::Validator,
}

/// What is wrong with an answer, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(String);

impl AnswerSchema {
    /// Compiles; the error says where the schema is none.
    pub fn compile(schema: &Value) -> Result<Self, Violation> {
        let at = |path: String, what: String| {
            Violation(if path.is_empty() { what } else { format!("at {path}: {what}") })
        };
        if let Err(error) = jsonschema::meta::validate(schema) {
            return Err(at(error.instance_path().to_string(), error.to_string()));
        }
        let validator = jsonschema::validator_for(schema)
            .map_err(|error| at(error.instance_path().to_string(), error.to_string()))?;
        Ok(Self { validator })
    }

    /// Checks an answer; the error lists the first violations with their places.
    pub fn check(&self, answer: &Value) -> Result<(), Violation> {
        if self.validator.is_valid(answer) {
            return Ok(());
        }
        let told: Vec<String> = self
            .validator
            .iter_errors(answer)
            .take(VIOLATIONS_TOLD)
            .map(|error| {
                let mut place = error.instance_path().to_string();
                place.truncate(place.floor_char_boundary(VIOLATION_BYTES / 4));
                let mut what = error.to_string();
                if place.len() + what.len() > VIOLATION_BYTES {
                    what = error.masked().to_string();
                    what.truncate(what.floor_char_boundary(VIOLATION_BYTES - place.len()));
                }
                if place.is_empty() { what } else { format!("{place}: {what}") }
            })
            .collect();
        Err(Violation(told.join("; ")))
    }

    /// Whether the schema keeps to what providers' strict modes take: every object names its properties,
    /// requires them all and allows no others. (OpenAI, "Structured model outputs".)
    #[must_use]
    pub fn is_strict(schema: &Value) -> bool {
        match schema {
            Value::Object(object) => {
                let closed = object.get("properties").is_none_or(|properties| {
                    let names = properties.as_object().map(|names| names.keys().collect::<Vec<_>>());
                    let required = object.get("required").and_then(Value::as_array);
                    object.get("additionalProperties") == Some(&Value::Bool(false))
                        && names.is_some_and(|names| {
                            names
                                .iter()
                                .all(|name| required.is_some_and(|all| all.iter().any(|one| one == *name)))
                        })
                });
                closed && object.values().all(Self::is_strict)
            }
            Value::Array(items) => items.iter().all(Self::is_strict),
            _ => true,
        }
    }
}

impl fmt::Debug for AnswerSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnswerSchema")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::job::Job;

    #[test]
    fn the_built_in_schema_is_strict_and_a_loose_one_is_not() {
        assert!(AnswerSchema::is_strict(&Job::default().output.schema));
        assert!(!AnswerSchema::is_strict(&json!({"type": "object", "properties": {"a": {}}})));
    }

    #[test]
    fn violations_name_their_place() {
        let schema = AnswerSchema::compile(&json!({
            "type": "object", "properties": {"score": {"type": "integer"}}, "required": ["score"]
        }))
        .unwrap();
        assert_eq!(schema.check(&json!({"score": 3})), Ok(()));
        let told = schema.check(&json!({"score": "high"})).unwrap_err().to_string();
        assert!(told.contains("/score") && told.contains("high"), "{told}");
    }

    #[test]
    fn every_violation_told_has_room_in_a_message() {
        let items = json!({"type": "array", "items": {"type": "null"}});
        let schema = AnswerSchema::compile(&items).unwrap();
        let long = "x".repeat(100_000);
        let told = schema.check(&json!([long, long, long, 4, long, long])).unwrap_err().to_string();
        assert!(told.len() < 2_000, "{}", told.len());
        for place in ["/0: value is not of type \"null\"", "/3: 4 is not", "/4: value"] {
            assert!(told.contains(place), "{told}");
        }
    }

    #[test]
    fn what_is_no_schema_is_refused() {
        let told = AnswerSchema::compile(&json!({"type": "objekt"})).unwrap_err().to_string();
        assert!(told.contains("/type"), "{told}");
        AnswerSchema::compile(&json!({"$ref": "https://example.com/other.json"})).unwrap_err();
    }
}
