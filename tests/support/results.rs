//! What a run left in its folder, and whether the promises hold of it.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;

use super::catalog::Catalog;

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

    /// Every product of the catalog has one line, in the results or in the failures, and nothing else has; the
    /// final JSON has the results in input order; and the summary adds up.
    #[track_caller]
    pub(crate) fn assert_every_product_once(&self, catalog: &Catalog) {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for line in self.journal.iter().chain(&self.failures) {
            *counts.entry(id(line)).or_default() += 1;
        }
        let lost: Vec<_> = catalog.ids.iter().filter(|id| !counts.contains_key(id.as_str())).collect();
        let doubled: Vec<_> = counts.iter().filter(|(_, count)| **count > 1).collect();
        assert!(lost.is_empty() && doubled.is_empty(), "lost: {lost:?}\ndoubled: {doubled:?}");
        assert_eq!(counts.len(), catalog.ids.len(), "lines of products that are not in the catalog");

        let ordered: Vec<&str> = self.results.iter().map(id).collect();
        let failed: Vec<&str> = self.failures.iter().map(id).collect();
        let expected: Vec<&str> =
            catalog.ids.iter().map(String::as_str).filter(|id| !failed.contains(id)).collect();
        assert_eq!(ordered, expected, "the final JSON is not in input order");
        self.assert_summary_adds_up();
    }

    #[track_caller]
    pub(crate) fn assert_summary_adds_up(&self) {
        let count = |name: &str| self.summary["counts"][name].as_u64();
        let parts =
            ["completed", "failed", "rejected", "remaining"].map(|part| count(part).unwrap_or(u64::MAX / 8));
        assert_eq!(count("input"), Some(parts.iter().sum()), "{:#}", self.summary);
        assert_eq!(count("completed"), Some(self.journal.len() as u64));
        assert_eq!(count("failed"), Some(self.failures.len() as u64));
        assert_eq!(count("rejected"), Some(self.rejects.len() as u64));
    }

    /// Calls the summary knows of, and how many of them it knows to be repeated.
    pub(crate) fn calls(&self) -> (u64, u64) {
        let calls = &self.summary["calls"];
        (calls["made"].as_u64().expect("a count"), calls["repeated"].as_u64().expect("a count"))
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
