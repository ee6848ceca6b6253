//! Turns a schema with references and combinators into plain alternatives.
//!
//! `$ref`, `allOf`, `anyOf`, `oneOf` and `if` are multiplied out, so that whoever makes an instance chooses one
//! alternative and never looks back. This aims at what is likely, not at a proof: an alternative may still break a
//! `oneOf` or a `not`, and the finished instance is checked by a full validator (see [`crate::contract`]).
//! References are followed one level at a time, so a recursive schema stays finite here.

use serde_json::{Map, Value};

/// A schema without references and combinators at its top; its children are still as they were written.
pub(crate) type Plain = Map<String, Value>;

/// Alternatives kept of one schema: the first ones are enough to make an instance.
const MAX_ALTERNATIVES: usize = 64;

/// References and combinators inside each other, before a schema is taken for one that refers to itself.
const MAX_EXPANSIONS: usize = 32;

/// They say nothing about instances, but would make equal schemas look different.
const ANNOTATIONS: [&str; 12] = [
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "$comment",
    "$schema",
    "$id",
    "$defs",
    "definitions",
];

const COMBINATORS: [&str; 7] = ["$ref", "allOf", "anyOf", "oneOf", "if", "then", "else"];

/// A schema without what cannot change its instances.
pub(crate) fn bare(schema: &Value) -> Value {
    match schema {
        Value::Object(map) => Value::Object(without(map, &ANNOTATIONS)),
        other => other.clone(),
    }
}

/// The ways in which an instance can satisfy `schema`; none for a schema that nothing satisfies.
/// An error names what in the schema is wrong or unknown.
pub(crate) fn alternatives(root: &Value, schema: &Value) -> Result<Vec<Plain>, String> {
    Flattener { root }.expand(schema, 0)
}

struct Flattener<'a> {
    root: &'a Value,
}

impl Flattener<'_> {
    fn expand(&self, schema: &Value, depth: usize) -> Result<Vec<Plain>, String> {
        let map = match schema {
            Value::Bool(true) => return Ok(vec![Plain::new()]),
            Value::Bool(false) => return Ok(Vec::new()),
            Value::Object(map) => map,
            other => {
                return Err(format!("a schema must be an object or a boolean, not {other}"));
            }
        };
        if depth > MAX_EXPANSIONS {
            return Ok(Vec::new());
        }
        let mut found = vec![without(&without(map, &ANNOTATIONS), &COMBINATORS)];
        if let Some(reference) = map.get("$ref") {
            found = all_of(&found, &self.expand(self.resolve(reference)?, depth + 1)?);
        }
        for part in list(map, "allOf")? {
            found = all_of(&found, &self.expand(part, depth + 1)?);
        }
        for combinator in ["anyOf", "oneOf"] {
            if map.contains_key(combinator) {
                let mut branches = Vec::new();
                for branch in list(map, combinator)? {
                    branches.extend(self.expand(branch, depth + 1)?);
                }
                found = all_of(&found, &branches);
            }
        }
        if let Some(condition) = map.get("if") {
            let part = |key| self.expand(map.get(key).unwrap_or(&Value::Bool(true)), depth + 1);
            let mut branches = all_of(&self.expand(condition, depth + 1)?, &part("then")?);
            branches.extend(part("else")?);
            found = all_of(&found, &branches);
        }
        Ok(found)
    }

    fn resolve(&self, reference: &Value) -> Result<&Value, String> {
        let target = reference.as_str().and_then(|text| text.strip_prefix('#'));
        target
            .and_then(|pointer| self.root.pointer(pointer))
            .ok_or_else(|| format!("{reference} cannot be resolved: references must point into the schema"))
    }
}

fn without(map: &Plain, keys: &[&str]) -> Plain {
    let kept = map.iter().filter(|(key, _)| !keys.contains(&key.as_str()));
    kept.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn list<'a>(map: &'a Plain, key: &str) -> Result<&'a [Value], String> {
    match map.get(key) {
        None => Ok(&[]),
        Some(Value::Array(parts)) => Ok(parts),
        Some(other) => Err(format!("'{key}' must be an array, not {other}")),
    }
}

/// Every combination of one of `left` with one of `right` that does not contradict itself openly.
fn all_of(left: &[Plain], right: &[Plain]) -> Vec<Plain> {
    let pairs = left.iter().flat_map(|left| right.iter().map(move |right| (left, right)));
    pairs.filter_map(|(left, right)| merge(left, right)).take(MAX_ALTERNATIVES).collect()
}

fn merge(left: &Plain, right: &Plain) -> Option<Plain> {
    let mut merged = left.clone();
    for (key, value) in right {
        let both = match merged.get(key) {
            None => value.clone(),
            Some(present) if present == value => continue,
            Some(present) => merge_keyword(key, present, value)?,
        };
        merged.insert(key.clone(), both);
    }
    Some(merged)
}

fn merge_keyword(key: &str, left: &Value, right: &Value) -> Option<Value> {
    Some(match key {
        "type" => {
            let common: Vec<_> =
                as_list(left).iter().filter_map(|kind| common_type(kind, as_list(right))).collect();
            if common.is_empty() {
                return None;
            }
            Value::Array(common)
        }
        "enum" => {
            let common = as_list(left).iter().filter(|choice| as_list(right).contains(choice));
            let common: Vec<_> = common.cloned().collect();
            if common.is_empty() {
                return None;
            }
            Value::Array(common)
        }
        "const" => return None,
        "required" => {
            let more = as_list(right).iter().filter(|name| !as_list(left).contains(name));
            Value::Array(as_list(left).iter().chain(more).cloned().collect())
        }
        "properties" | "patternProperties" => {
            let mut properties = left.as_object()?.clone();
            for (name, schema) in right.as_object()? {
                let schema = match properties.get(name) {
                    Some(present) if present != schema => both(present, schema),
                    _ => schema.clone(),
                };
                properties.insert(name.clone(), schema);
            }
            Value::Object(properties)
        }
        "items" | "additionalProperties" | "contains" | "not" => both(left, right),
        "minimum" | "exclusiveMinimum" | "minLength" | "minItems" | "minProperties" => {
            if left.as_f64() > right.as_f64() { left.clone() } else { right.clone() }
        }
        "maximum" | "exclusiveMaximum" | "maxLength" | "maxItems" | "maxProperties" => {
            if left.as_f64() < right.as_f64() { left.clone() } else { right.clone() }
        }
        _ => right.clone(),
    })
}

fn both(left: &Value, right: &Value) -> Value {
    serde_json::json!({ "allOf": [left, right] })
}

fn common_type(kind: &Value, others: &[Value]) -> Option<Value> {
    if others.contains(kind) {
        return Some(kind.clone());
    }
    let whole = |kind: &Value| kind == "integer";
    let number = |kind: &Value| kind == "number";
    let narrowed = whole(kind) && others.iter().any(number) || number(kind) && others.iter().any(whole);
    narrowed.then(|| "integer".into())
}

/// Keywords such as `type` take one value or several.
pub(crate) fn as_list(value: &Value) -> &[Value] {
    match value {
        Value::Array(values) => values,
        one => std::slice::from_ref(one),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn flat(schema: Value) -> Value {
        json!(alternatives(&schema, &schema).unwrap())
    }

    #[test]
    fn parts_are_merged_and_branches_multiplied_out() {
        let schema = json!({
            "description": "dropped",
            "allOf": [{"minimum": 1}, {"minimum": 5, "maximum": 9}],
            "anyOf": [{"type": "integer"}, {"type": "number", "multipleOf": 0.5}],
            "type": ["number", "null"],
        });
        let expected = json!([
            {"type": ["integer"], "minimum": 5, "maximum": 9},
            {"type": ["number"], "minimum": 5, "maximum": 9, "multipleOf": 0.5},
        ]);
        assert_eq!(flat(schema), expected);
    }

    #[test]
    fn references_are_followed_and_self_references_end() {
        let schema = json!({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "string"}}});
        assert_eq!(flat(schema), json!([{"type": "string"}]));
        assert_eq!(flat(json!({"$ref": "#"})), json!([]));
        let away = json!({"$ref": "https://example.com/schema.json"});
        assert!(alternatives(&away, &away).unwrap_err().contains("example.com"));
    }

    #[test]
    fn contradictions_leave_nothing() {
        assert_eq!(flat(json!({"allOf": [{"type": "string"}, {"type": "null"}]})), json!([]));
        assert_eq!(flat(json!({"enum": ["a"], "allOf": [{"enum": ["b"]}]})), json!([]));
    }
}
