//! What a run left in its folder, and whether the promises hold of it.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;

use super::{
    catalog::Catalog,
    checker::{Evidence, Repeats, examine},
};

/// The files of an output folder.
#[derive(Debug)]
pub(crate) struct Results {
    pub(crate) journal: Vec<Value>,
    pub(crate) failures: Vec<Value>,
    pub(crate) rejects: Vec<Value>,
    /// The final JSON; empty where there is none.
    pub(crate) results: Vec<Value>,
    /// `null` where there is none.
    pub(crate) summary: Value,
}

impl Results {
    pub(crate) fn read(out: &Path) -> Self {
        let lines = |name: &str| {
            let text = fs::read_to_string(out.join(name)).unwrap_or_default();
            text.lines()
                .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
                .collect()
        };
        let whole = |name: &str| {
            fs::read(out.join(name)).map_or(Value::Null, |b| serde_json::from_slice(&b).unwrap())
        };
        Self {
            journal: lines("enriched_products_incremental.jsonl"),
            failures: lines("failed_products.jsonl"),
            rejects: lines("rejected_products.jsonl"),
            results: whole("enriched_products_analysis.json").as_array().cloned().unwrap_or_default(),
            summary: whole("analysis_summary.json"),
        }
    }

    /// The promises hold of the files; of a run whose model went with its process, and cannot be asked.
    #[track_caller]
    pub(crate) fn assert_every_product_once(&self, catalog: &Catalog) {
        let (queues, keys) = (BTreeMap::new(), BTreeMap::new());
        examine(&Evidence { catalog, results: self, model: None, queues, keys })
            .assert_promises_hold(Repeats::None);
    }

    /// Calls the summary knows of, and how many of them it knows to be repeated.
    pub(crate) fn calls(&self) -> (u64, u64) {
        let calls = &self.summary["calls"];
        (calls["made"].as_u64().unwrap_or(0), calls["repeated"].as_u64().unwrap_or(0))
    }
}

/// The product's id.
pub(crate) fn id(line: &Value) -> &str {
    line["id"].as_str().expect("an id")
}

/// Lines in the journal of a run that may be under way.
pub(crate) fn journal_lines(out: &Path) -> usize {
    fs::read_to_string(out.join("enriched_products_incremental.jsonl")).map_or(0, |text| text.lines().count())
}
