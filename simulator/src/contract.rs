//! What a request wants its answer to look like, and the promise that it will.
//!
//! An instance is only handed out after the validator has accepted it. The few schemas the generator cannot satisfy
//! (`not` over everything, patterns with look-around) end as an error for the client, never as a wrong answer.
//! Parsing a schema costs a thousand times more than answering with it, so contracts are kept by the very bytes they
//! came in; a job sends the same bytes with every product.

use std::sync::{Arc, PoisonError, RwLock};

use jsonschema::Validator;
use serde_json::{Map, Value, json};

use crate::dice::{Dice, digest};
use crate::instance::{Fullness, Maker};
use crate::schema::{IMPOSSIBLE, Schema};
use crate::words::Subject;

/// What is answered when the request does not bring a schema.
const PLAIN: &str = r#"{
    "type": "object",
    "properties": {
        "summary": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 4}
    },
    "required": ["summary", "tags"],
    "additionalProperties": false
}"#;

/// Nearly every schema is content with the first. What the generator does not look at (`not`, branches of a `oneOf`
/// that overlap) is met by chance: 64 rolls make even one in five near certain.
const MAX_ATTEMPTS: usize = 64;

pub(crate) struct Contract {
    schema: Schema,
    validator: Validator,
}

impl Contract {
    /// The error says what is wrong with the schema.
    pub(crate) fn parse(raw: &str) -> Result<Self, String> {
        let schema: Value = serde_json::from_str(raw).map_err(|error| error.to_string())?;
        if !schema.is_object() {
            return Err("a schema must be a JSON object".to_owned());
        }
        let validator = jsonschema::validator_for(&schema).map_err(|error| error.to_string())?;
        let schema = Schema::compile(&schema)?;
        if schema.height(Schema::ROOT) == IMPOSSIBLE {
            return Err("no JSON value satisfies it".to_owned());
        }
        Ok(Self { schema, validator })
    }

    /// An instance the validator has accepted, or `None` if none was found.
    pub(crate) fn instance(&self, subject: &Subject<'_>, dice: Dice) -> Option<Value> {
        let mut maker = Maker::new(&self.schema, subject, dice);
        let mut attempts = (0..MAX_ATTEMPTS).map(|attempt| {
            maker.make(match attempt % 8 {
                // Optional members that need, or exclude, each other.
                2 => Fullness::Everything,
                3 => Fullness::RequiredOnly,
                _ => Fullness::Usual,
            })
        });
        attempts.find(|instance| self.validator.is_valid(instance))
    }

    /// Valid JSON, near to `instance`, that the validator refuses; `None` for a schema that refuses nothing.
    pub(crate) fn violation(&self, instance: &Value, dice: &mut Dice) -> Option<Value> {
        let mut near = match instance {
            Value::Object(members) => spoiled(members),
            _ => Vec::new(),
        };
        near.retain(|violation| !self.validator.is_valid(violation));
        if let Some(violation) = dice.pick(&near) {
            return Some(violation.clone());
        }
        let far = [json!({"unexpected": true}), json!([]), json!("unexpected"), json!(-1.5), json!(null)];
        far.into_iter().find(|violation| !self.validator.is_valid(violation))
    }
}

/// Each member left out, each member of another type, and a member nobody asked for.
fn spoiled(members: &Map<String, Value>) -> Vec<Value> {
    let mut spoiled = Vec::with_capacity(2 * members.len() + 1);
    for (name, value) in members {
        let mut without = members.clone();
        without.shift_remove(name);
        spoiled.push(Value::Object(without));
        let mut retyped = members.clone();
        let other = if value.is_object() { json!("unexpected") } else { json!({"unexpected": true}) };
        retyped.insert(name.clone(), other);
        spoiled.push(Value::Object(retyped));
    }
    let mut extended = members.clone();
    extended.insert("unexpected".to_owned(), Value::Bool(true));
    spoiled.push(Value::Object(extended));
    spoiled
}

/// Contracts kept; a fleet runs one job, a test suite a few.
const MAX_CONTRACTS: usize = 16;

pub(crate) struct Contracts {
    plain: Arc<Contract>,
    /// Oldest first.
    kept: RwLock<Vec<Kept>>,
}

struct Kept {
    digest: u64,
    raw: Box<str>,
    contract: Arc<Contract>,
}

impl Contracts {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let plain = Contract::parse(PLAIN).map_err(anyhow::Error::msg)?;
        Ok(Self { plain: Arc::new(plain), kept: RwLock::default() })
    }

    pub(crate) fn plain(&self) -> Arc<Contract> {
        Arc::clone(&self.plain)
    }

    pub(crate) fn of(&self, raw: &str) -> Result<Arc<Contract>, String> {
        let digest = digest(0, raw.as_bytes());
        let find = |kept: &[Kept]| {
            let found = kept.iter().find(|kept| kept.digest == digest && *kept.raw == *raw);
            found.map(|kept| Arc::clone(&kept.contract))
        };
        if let Some(contract) = find(&self.kept.read().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(contract);
        }
        let contract = Arc::new(Contract::parse(raw)?);
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(contract) = find(&kept) {
            return Ok(contract);
        }
        if kept.len() == MAX_CONTRACTS {
            kept.remove(0);
        }
        kept.push(Kept { digest, raw: raw.into(), contract: Arc::clone(&contract) });
        Ok(contract)
    }
}

#[cfg(test)]
mod tests;
