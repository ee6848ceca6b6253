//! Makes an instance of a schema.
//!
//! It is a good guess, not a proof; [`crate::contract`] checks every instance and asks again. Two things are certain,
//! though: it ends, because below [`MINIMAL_DEPTH`] only what is required is made, by the shortest way, and it stays
//! small, because no instance has more than [`MAX_VALUES`] values.

use serde_json::{Map, Number, Value};

use crate::dice::Dice;
use crate::schema::{IMPOSSIBLE, List, NodeId, Record, Schema, Shape, Span, Way};
use crate::text;
use crate::vocabulary::Topic;
use crate::words::Subject;

/// Objects and arrays inside each other before the shortest way out is taken.
const MINIMAL_DEPTH: u32 = 6;

/// An instance that would be larger is left incomplete, which the final check then tells.
const MAX_VALUES: usize = 20_000;

/// Rolls for an item that is not in a list yet.
const UNIQUE_TRIES: usize = 64;

/// Integers beyond this are not exact as JSON numbers.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// How many of the optional properties are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fullness {
    Usual,
    Everything,
    RequiredOnly,
}

pub(crate) struct Maker<'a> {
    pub(crate) schema: &'a Schema,
    pub(crate) subject: &'a Subject<'a>,
    pub(crate) dice: Dice,
    pub(crate) fullness: Fullness,
    values: usize,
}

impl<'a> Maker<'a> {
    pub(crate) fn new(schema: &'a Schema, subject: &'a Subject<'a>, dice: Dice) -> Self {
        Self { schema, subject, dice, fullness: Fullness::Usual, values: 0 }
    }

    pub(crate) fn make(&mut self, fullness: Fullness) -> Value {
        self.fullness = fullness;
        self.values = 0;
        self.value(Schema::ROOT, Topic::Other, 0)
    }

    fn value(&mut self, node: NodeId, topic: Topic, depth: u32) -> Value {
        self.values += 1;
        let Some(way) = self.choose(node, depth).filter(|_| self.values <= MAX_VALUES) else {
            return Value::Null;
        };
        match &way.shape {
            Shape::Given(choices) => self.dice.pick(choices).cloned().unwrap_or_default(),
            Shape::Null => Value::Null,
            Shape::Boolean => Value::Bool(self.dice.chance(2)),
            Shape::Integer(span) => self.integer(*span, topic),
            Shape::Number(span) => self.number(*span, topic),
            Shape::Text(text) => text::make(text, topic, self.subject, &mut self.dice),
            Shape::List(list) => self.list(list, topic, depth),
            Shape::Record(record) => self.record(record, depth),
        }
    }

    /// `None` when nothing satisfies the node. Null is possible but dull, so it is rarely chosen.
    fn choose(&mut self, node: NodeId, depth: u32) -> Option<&'a Way> {
        let ways = self.schema.ways(node);
        let shortest = ways.iter().min_by_key(|way| way.height).filter(|way| way.height != IMPOSSIBLE)?;
        if ways.len() == 1 || depth >= MINIMAL_DEPTH {
            return Some(shortest);
        }
        let dull = self.dice.chance(8);
        let usable: Vec<_> = ways
            .iter()
            .filter(|way| way.height != IMPOSSIBLE && (dull || !matches!(way.shape, Shape::Null)))
            .collect();
        self.dice.pick(&usable).copied().or(Some(shortest))
    }

    fn integer(&mut self, span: Span, topic: Topic) -> Value {
        let step = span.step.unwrap_or(1.0);
        // The smallest whole multiple of a step such as 0.5 or 2.5.
        let step = (1..=1_000).map(|times| step * f64::from(times)).find(|step| step.fract() == 0.0);
        let usual = match topic {
            Topic::Rating => (1.0, 5.0),
            Topic::Price => (5.0, 250.0),
            _ => (1.0, 10.0),
        };
        let (low, high) = ends(span, usual);
        let number = self.stepped(span, low, high, step.unwrap_or(1.0)).unwrap_or(low);
        Value::from(number as i64)
    }

    fn number(&mut self, span: Span, topic: Topic) -> Value {
        let usual = match topic {
            Topic::Rating => (1.0, 5.0),
            Topic::Price => (5.0, 250.0),
            Topic::Share => (0.0, 1.0),
            _ => (0.0, 100.0),
        };
        let (low, high) = ends(span, usual);
        let step = span.step.unwrap_or(if high - low >= 0.05 { 0.01 } else { (high - low) / 8.0 });
        let number = match self.stepped(span, low, high, step) {
            None => low + (high - low) / 2.0,
            Some(number) => {
                // 7 × 0.01 is 0.07000000000000001; written with the step's own decimals, it is 0.07.
                let decimals = step.to_string().split_once('.').map_or(0, |(_, decimals)| decimals.len());
                format!("{number:.decimals$}").parse().unwrap_or(number)
            }
        };
        Number::from_f64(number).map_or(Value::Null, Value::Number)
    }

    /// A multiple of `step` between the ends, if there is one.
    fn stepped(&mut self, span: Span, low: f64, high: f64, step: f64) -> Option<f64> {
        let mut first = (low / step).ceil();
        let mut last = (high / step).floor();
        if span.low_open && first * step <= low {
            first += 1.0;
        }
        if span.high_open && last * step >= high {
            last -= 1.0;
        }
        if step <= 0.0 || first > last {
            return None;
        }
        let choices = (last - first + 1.0).min(MAX_EXACT);
        Some((first + self.dice.below(choices as u64) as f64) * step)
    }

    fn list(&mut self, list: &List, topic: Topic, depth: u32) -> Value {
        let open_ended = self.schema.height(list.rest) != IMPOSSIBLE;
        let usual = match depth {
            0 | 1 => 2 + self.dice.below(3),
            2 => 1 + self.dice.below(2),
            _ if depth < MINIMAL_DEPTH => self.dice.below(2),
            _ => 0,
        };
        let most =
            list.max_items.unwrap_or(usize::MAX).min(if open_ended { usize::MAX } else { list.first.len() });
        let wanted = list.min_items.max((usual as usize).min(most)).min(MAX_VALUES);
        let mut items = Vec::with_capacity(wanted.min(16));
        while items.len() < wanted && self.values <= MAX_VALUES {
            let node = list.first.get(items.len()).copied().unwrap_or(list.rest);
            let mut item = self.value(node, topic, depth + 1);
            // Tags that repeat are valid, but no model that is worth simulating would say so.
            let distinct = list.unique || topic == Topic::Tag;
            let mut tries = 1;
            while distinct && items.contains(&item) && tries < UNIQUE_TRIES {
                item = self.value(node, topic, depth + 1);
                tries += 1;
            }
            if list.unique && items.contains(&item) {
                break;
            }
            items.push(item);
        }
        Value::Array(items)
    }

    fn record(&mut self, record: &Record, depth: u32) -> Value {
        let required = record.properties.iter().filter(|property| property.required).count();
        let most = record.max_properties.unwrap_or(usize::MAX);
        let mut optional_left = most.saturating_sub(required);
        let mut made = Map::with_capacity(record.properties.len());
        for property in &record.properties {
            let wanted = property.required || optional_left > 0 && self.wants_optional(property.node, depth);
            if wanted {
                optional_left -= usize::from(!property.required).min(optional_left);
                let value = self.value(property.node, property.topic, depth + 1);
                made.insert(property.name.clone(), value);
            }
        }
        for property in &record.properties {
            if made.len() < record.min_properties && !made.contains_key(&property.name) {
                made.insert(property.name.clone(), self.value(property.node, property.topic, depth + 1));
            }
        }
        let entries =
            if record.is_map && depth < MINIMAL_DEPTH { 1 + self.dice.below(2) as usize } else { 0 };
        let wanted = record.min_properties.max(made.len().saturating_add(entries).min(most)).min(MAX_VALUES);
        self.add_entries(&mut made, record.more, wanted, depth);
        Value::Object(made)
    }

    fn wants_optional(&mut self, node: NodeId, depth: u32) -> bool {
        let possible = self.schema.height(node) != IMPOSSIBLE;
        possible
            && match self.fullness {
                _ if depth >= MINIMAL_DEPTH => false,
                Fullness::Usual => !self.dice.chance(4),
                Fullness::Everything => true,
                Fullness::RequiredOnly => false,
            }
    }

    /// Entries under names of their own, as in a map from attributes to values.
    fn add_entries(&mut self, made: &mut Map<String, Value>, node: NodeId, wanted: usize, depth: u32) {
        const NAMES: [&str; 6] = ["material", "color", "size", "weight", "origin", "finish"];
        if self.schema.height(node) == IMPOSSIBLE {
            return;
        }
        for number in 0..MAX_VALUES {
            if made.len() >= wanted || self.values > MAX_VALUES {
                return;
            }
            let name =
                NAMES.get(number).map_or_else(|| format!("attribute_{number}"), |name| (*name).to_owned());
            if !made.contains_key(&name) {
                let topic = Topic::of(&name);
                made.insert(name, self.value(node, topic, depth + 1));
            }
        }
    }
}

/// The ends of a span; an open side is as wide as the usual span, and the usual span is taken where it fits.
fn ends(span: Span, usual: (f64, f64)) -> (f64, f64) {
    let width = (usual.1 - usual.0).max(span.step.unwrap_or(0.0) * 10.0);
    let (low, high) = match (span.low, span.high) {
        (Some(low), Some(high)) => (low, high),
        (Some(low), None) if low < usual.1 => (low, usual.1.max(low + width)),
        (Some(low), None) => (low, low + width),
        (None, Some(high)) if high > usual.0 => (usual.0, high),
        (None, Some(high)) => (high - width, high),
        (None, None) => (usual.0, usual.0 + width),
    };
    (low.clamp(-MAX_EXACT, MAX_EXACT), high.clamp(-MAX_EXACT, MAX_EXACT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn make(schema: &Value, seed: u64, fullness: Fullness) -> Value {
        let compiled = Schema::compile(schema).unwrap();
        let mut dice = Dice::new(seed);
        let subject = Subject::of("{\"title\": \"Blue mug\"}", "sku-1", &mut dice);
        Maker::new(&compiled, &subject, dice).make(fullness)
    }

    #[test]
    fn numbers_are_written_as_people_write_them() {
        let schema = json!({"type": "number", "minimum": 0, "maximum": 1});
        for seed in 0..200 {
            let made = make(&schema, seed, Fullness::Usual).to_string();
            assert!(made.len() <= 4, "{made}");
        }
    }

    #[test]
    fn huge_demands_end_small() {
        let schema = json!({"type": "array", "minItems": 1_000_000_000,
            "items": {"type": "array", "minItems": 1_000_000, "items": {"type": "null"}}});
        let made = make(&schema, 1, Fullness::Everything);
        let size: usize =
            made.as_array().unwrap().iter().map(|item| item.as_array().map_or(1, Vec::len)).sum();
        assert!(size <= MAX_VALUES + 1, "{size}");
    }

    #[test]
    fn recursion_ends_even_when_everything_is_wanted() {
        let schema = json!({
            "type": "object",
            "properties": {"name": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#"}}},
            "required": ["name", "children"]
        });
        for seed in 0..50 {
            assert!(make(&schema, seed, Fullness::Everything).to_string().len() < 60_000);
        }
    }
}
