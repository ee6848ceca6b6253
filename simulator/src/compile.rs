//! From JSON to the graph of [`crate::schema`].
//!
//! Equal subschemas become one node, which is why a recursive schema becomes a finite graph.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::flatten::{self, Plain, as_list};
use crate::schema::{IMPOSSIBLE, List, NodeId, Property, Record, Shape, Span, Text, Way};
use crate::vocabulary::Topic;

/// Distinct subschemas; far above any schema a provider accepts (OpenAI: 5000 properties in all).
const MAX_NODES: usize = 8_192;

/// The first node is the root's. The error names what in the schema is wrong or not understood.
pub(crate) fn nodes(root: &Value) -> Result<Vec<Vec<Way>>, String> {
    let mut compiler = Compiler { root, nodes: Vec::new(), known: HashMap::new() };
    compiler.node(root)?;
    Ok(compiler.nodes)
}

struct Compiler<'a> {
    root: &'a Value,
    nodes: Vec<Vec<Way>>,
    known: HashMap<String, NodeId>,
}

impl Compiler<'_> {
    fn node(&mut self, schema: &Value) -> Result<NodeId, String> {
        let schema = flatten::bare(schema);
        let key = schema.to_string();
        if let Some(node) = self.known.get(&key) {
            return Ok(*node);
        }
        let node = self.nodes.len();
        if node == MAX_NODES {
            return Err(format!("more than {MAX_NODES} distinct subschemas"));
        }
        self.known.insert(key, node);
        self.nodes.push(Vec::new());
        for plain in flatten::alternatives(self.root, &schema)? {
            for shape in self.shapes(&plain)? {
                self.nodes[node].push(Way { shape, height: IMPOSSIBLE });
            }
        }
        Ok(node)
    }

    fn shapes(&mut self, plain: &Plain) -> Result<Vec<Shape>, String> {
        let types: Vec<&str> = match plain.get("type") {
            Some(types) => as_list(types).iter().filter_map(Value::as_str).collect(),
            None => vec![likely_type(plain)],
        };
        let given = plain.get("const").map(|only| vec![only.clone()]);
        let given = given.or_else(|| plain.get("enum").map(|choices| as_list(choices).to_vec()));
        if let Some(mut given) = given {
            if plain.contains_key("type") {
                given.retain(|choice| types.iter().any(|name| is_of_type(choice, name)));
            }
            return Ok(if given.is_empty() { Vec::new() } else { vec![Shape::Given(given)] });
        }
        types.into_iter().map(|name| self.shape(name, plain)).collect()
    }

    fn shape(&mut self, type_name: &str, plain: &Plain) -> Result<Shape, String> {
        Ok(match type_name {
            "null" => Shape::Null,
            "boolean" => Shape::Boolean,
            "integer" => Shape::Integer(span(plain)),
            "number" => Shape::Number(span(plain)),
            "string" => Shape::Text(Text {
                min_chars: count(plain, "minLength").unwrap_or(0),
                max_chars: count(plain, "maxLength"),
                format: plain.get("format").and_then(Value::as_str).map(str::to_owned),
                // A pattern beyond regex-syntax (look-around) is left to chance, and the chance to the final check.
                pattern: plain
                    .get("pattern")
                    .and_then(Value::as_str)
                    .and_then(|pattern| regex_syntax::parse(pattern).ok()),
            }),
            "array" => Shape::List(self.list(plain)?),
            "object" => Shape::Record(self.record(plain)?),
            other => return Err(format!("'{other}' is not a JSON Schema type")),
        })
    }

    fn list(&mut self, plain: &Plain) -> Result<List, String> {
        let anything = Value::Bool(true);
        // Before 2020-12, an array of schemas in `items` was what `prefixItems` is now.
        let (first, rest) = match plain.get("items") {
            Some(Value::Array(first)) => (first.as_slice(), plain.get("additionalItems")),
            rest => (plain.get("prefixItems").map(as_list).unwrap_or_default(), rest),
        };
        let rest_schema = rest.unwrap_or(&anything);
        let mut min_items = count(plain, "minItems").unwrap_or(0);
        let rest = self.node(rest_schema)?;
        let mut first: Vec<_> = first.iter().map(|schema| self.node(schema)).collect::<Result<_, _>>()?;
        if let (Some(contained), true) = (plain.get("contains"), first.is_empty()) {
            let times = count(plain, "minContains").unwrap_or(1).min(MAX_NODES);
            let contained = self.node(&json!({ "allOf": [rest_schema, contained] }))?;
            first = vec![contained; times];
            min_items = min_items.max(times);
        }
        let unique = plain.get("uniqueItems") == Some(&Value::Bool(true));
        Ok(List { first, rest, min_items, max_items: count(plain, "maxItems"), unique })
    }

    fn record(&mut self, plain: &Plain) -> Result<Record, String> {
        let anything = Value::Bool(true);
        let more_schema = plain.get("additionalProperties").unwrap_or(&anything);
        let more = self.node(more_schema)?;
        let required: Vec<_> =
            plain.get("required").map(as_list).unwrap_or_default().iter().filter_map(Value::as_str).collect();
        let mut properties = Vec::new();
        let described = match plain.get("properties") {
            None => None,
            Some(Value::Object(described)) => Some(described),
            Some(other) => return Err(format!("'properties' must be an object, not {other}")),
        };
        for (name, schema) in described.into_iter().flatten() {
            let required = required.contains(&name.as_str());
            let node = self.node(schema)?;
            properties.push(Property { name: name.clone(), topic: Topic::of(name), node, required });
        }
        for name in required {
            if described.is_none_or(|described| !described.contains_key(name)) {
                let topic = Topic::of(name);
                properties.push(Property { name: name.to_owned(), topic, node: more, required: true });
            }
        }
        name_attributes(&mut properties);
        Ok(Record {
            properties,
            more,
            is_map: described.is_none() && more_schema.is_object(),
            min_properties: count(plain, "minProperties").unwrap_or(0),
            max_properties: count(plain, "maxProperties"),
        })
    }
}

/// A name beside a value is that of an attribute, not of the product.
fn name_attributes(properties: &mut [Property]) {
    let topics = [("name", Topic::AttributeName), ("value", Topic::AttributeValue)];
    if topics.iter().all(|(name, _)| properties.iter().any(|property| property.name == *name)) {
        for property in properties {
            let told = topics.iter().find(|(name, _)| property.name == *name);
            property.topic = told.map_or(property.topic, |(_, topic)| *topic);
        }
    }
}

fn likely_type(plain: &Plain) -> &'static str {
    const TELLING: [(&str, &[&str]); 4] = [
        ("object", &["properties", "required", "additionalProperties", "minProperties"]),
        ("array", &["items", "prefixItems", "minItems", "maxItems", "uniqueItems", "contains"]),
        ("number", &["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"]),
        ("string", &[]),
    ];
    let telling = TELLING.iter().find(|(_, keys)| keys.iter().any(|key| plain.contains_key(*key)));
    telling.map_or("string", |(name, _)| name)
}

fn is_of_type(value: &Value, type_name: &str) -> bool {
    match value {
        Value::Null => type_name == "null",
        Value::Bool(_) => type_name == "boolean",
        Value::Number(number) => {
            type_name == "number"
                || type_name == "integer" && number.as_f64().is_some_and(|n| n.fract() == 0.0)
        }
        Value::String(_) => type_name == "string",
        Value::Array(_) => type_name == "array",
        Value::Object(_) => type_name == "object",
    }
}

fn count(plain: &Plain, key: &str) -> Option<usize> {
    plain.get(key).and_then(Value::as_f64).map(|number| number as usize)
}

fn span(plain: &Plain) -> Span {
    let number = |key| plain.get(key).and_then(Value::as_f64);
    let (low, above) = (number("minimum"), number("exclusiveMinimum"));
    let (high, below) = (number("maximum"), number("exclusiveMaximum"));
    Span {
        low: low.into_iter().chain(above).reduce(f64::max),
        low_open: above.is_some_and(|above| low.is_none_or(|low| above >= low)),
        high: high.into_iter().chain(below).reduce(f64::min),
        high_open: below.is_some_and(|below| high.is_none_or(|high| below <= high)),
        step: number("multipleOf").filter(|step| *step > 0.0),
    }
}
