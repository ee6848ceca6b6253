//! A JSON Schema made ready for making instances: looked at once, used for every product of a job.
//!
//! A schema is a graph of nodes, and a node a list of ways to satisfy it. Each way carries its height, the least nesting
//! an instance needs: whoever runs deep can always take the shortest way out.

use regex_syntax::hir::Hir;
use serde_json::Value;

use crate::compile;
use crate::vocabulary::Topic;

/// The height of what nothing satisfies.
pub(crate) const IMPOSSIBLE: u32 = u32::MAX;

pub(crate) type NodeId = usize;

pub(crate) struct Schema {
    nodes: Vec<Vec<Way>>,
}

/// One way to satisfy a node.
pub(crate) struct Way {
    pub(crate) shape: Shape,
    pub(crate) height: u32,
}

pub(crate) enum Shape {
    Given(Vec<Value>),
    Null,
    Boolean,
    Integer(Span),
    Number(Span),
    Text(Text),
    List(List),
    Record(Record),
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Span {
    pub(crate) low: Option<f64>,
    pub(crate) low_open: bool,
    pub(crate) high: Option<f64>,
    pub(crate) high_open: bool,
    pub(crate) step: Option<f64>,
}

pub(crate) struct Text {
    pub(crate) min_chars: usize,
    pub(crate) max_chars: Option<usize>,
    pub(crate) format: Option<String>,
    pub(crate) pattern: Option<Hir>,
}

pub(crate) struct List {
    pub(crate) first: Vec<NodeId>,
    pub(crate) rest: NodeId,
    pub(crate) min_items: usize,
    pub(crate) max_items: Option<usize>,
    pub(crate) unique: bool,
}

pub(crate) struct Record {
    pub(crate) properties: Vec<Property>,
    pub(crate) more: NodeId,
    /// Whether further properties are described, as in a map from names to values.
    pub(crate) is_map: bool,
    pub(crate) min_properties: usize,
    pub(crate) max_properties: Option<usize>,
}

pub(crate) struct Property {
    pub(crate) name: String,
    pub(crate) topic: Topic,
    pub(crate) node: NodeId,
    pub(crate) required: bool,
}

impl Schema {
    pub(crate) const ROOT: NodeId = 0;

    /// The error names what in the schema is wrong or not understood.
    pub(crate) fn compile(root: &Value) -> Result<Self, String> {
        let mut schema = Self { nodes: compile::nodes(root)? };
        schema.measure();
        Ok(schema)
    }

    pub(crate) fn ways(&self, node: NodeId) -> &[Way] {
        &self.nodes[node]
    }

    pub(crate) fn height(&self, node: NodeId) -> u32 {
        self.nodes[node].iter().map(|way| way.height).min().unwrap_or(IMPOSSIBLE)
    }

    /// Heights start as impossible and only ever fall, so this ends; what never falls has no finite instance.
    fn measure(&mut self) {
        loop {
            let mut changed = false;
            for node in 0..self.nodes.len() {
                for way in 0..self.nodes[node].len() {
                    let height = self.height_of(&self.nodes[node][way].shape);
                    changed |= height < self.nodes[node][way].height;
                    self.nodes[node][way].height = height;
                }
            }
            if !changed {
                return;
            }
        }
    }

    fn height_of(&self, shape: &Shape) -> u32 {
        let tallest = |nodes: &mut dyn Iterator<Item = NodeId>| {
            nodes.map(|node| self.height(node)).max().map_or(0, |height| height.saturating_add(1))
        };
        match shape {
            Shape::List(list) => {
                let first = list.first.iter().copied();
                let rest = std::iter::repeat(list.rest);
                tallest(&mut first.chain(rest.take(1)).take(list.min_items))
            }
            Shape::Record(record) => {
                let required = record.properties.iter().filter(|property| property.required);
                tallest(&mut required.map(|property| property.node))
            }
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn height(schema: Value) -> u32 {
        Schema::compile(&schema).unwrap().height(Schema::ROOT)
    }

    #[test]
    fn recursive_schemas_are_finite_graphs() {
        let tree = json!({
            "$ref": "#/$defs/node",
            "$defs": {"node": {
                "type": "object",
                "properties": {
                    "left": {"anyOf": [{"$ref": "#/$defs/node", "description": "deeper"}, {"type": "null"}]},
                    "right": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}
                },
                "required": ["left", "right"]
            }}
        });
        assert!(Schema::compile(&tree).unwrap().nodes.len() < 8);
        assert_eq!(height(tree), 1);
    }

    #[test]
    fn what_has_no_finite_instance_is_impossible() {
        let endless = json!({"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]});
        assert_eq!(height(endless), IMPOSSIBLE);
        assert_eq!(height(json!({"type": "string", "enum": [1, 2]})), IMPOSSIBLE);
        assert_eq!(height(json!(false)), IMPOSSIBLE);
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let error = Schema::compile(&json!({"properties": {"a": {"type": "text"}}})).err().unwrap();
        assert_eq!(error, "'text' is not a JSON Schema type");
    }
}
