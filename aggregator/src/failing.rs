//! Notices when products fail one after the other, as they do when prompt, schema and model do not go together: the run
//! pauses before the rest of the catalog is burned, and says why.

use std::collections::{BTreeMap, VecDeque};

use serde::Deserialize;
use shelfmill_pipeline::{
    failure::FailureClass,
    ledger::{Halt, HaltCause},
    message::Line,
};

/// Fewer outcomes say nothing.
const LEAST_OUTCOMES: usize = 50;
/// More than that is the past.
const OUTCOMES: usize = 500;
/// How much of an example is told.
const EXAMPLE_CHARS: usize = 160;

/// The latest outcomes of this session.
#[derive(Debug, Default)]
pub(crate) struct Failing {
    latest: VecDeque<Option<FailureClass>>,
    counts: BTreeMap<FailureClass, usize>,
    examples: BTreeMap<FailureClass, String>,
}

#[derive(Deserialize)]
struct FailureOf {
    failure: Told,
}

#[derive(Deserialize)]
struct Told {
    message: String,
}

impl Failing {
    pub(crate) fn add(&mut self, line: &Line) {
        let class = line.class();
        if let Some(class) = class {
            *self.counts.entry(class).or_default() += 1;
            self.examples.entry(class).or_insert_with(|| example(line));
        }
        self.latest.push_back(class);
        if self.latest.len() > OUTCOMES
            && let Some(Some(old)) = self.latest.pop_front()
            && let Some(count) = self.counts.get_mut(&old)
        {
            *count -= 1;
        }
    }

    /// Why the run is to pause, where more than this share of the latest products have failed.
    pub(crate) fn halt(&self, abort_failure_rate: f64) -> Option<Halt> {
        let (all, failed) = (self.latest.len(), self.counts.values().sum::<usize>());
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let is_over = failed as f64 > all as f64 * abort_failure_rate;
        if all < LEAST_OUTCOMES || !is_over {
            return None;
        }
        let mut classes: Vec<_> = self.counts.iter().filter(|(_, count)| **count > 0).collect();
        classes.sort_by_key(|(class, count)| (std::cmp::Reverse(**count), **class));
        let told: Vec<String> = classes
            .into_iter()
            .map(|(class, count)| {
                let example = self.examples.get(class).map_or("", String::as_str);
                format!("{class} {count} (such as {example})")
            })
            .collect();
        let reason = format!(
            "{failed} of the last {all} products failed: {}; mend what is wrong and start it again, or let it go on with \
             --abort-failure-rate 1",
            told.join(", ")
        );
        Some(Halt { cause: HaltCause::Failures, reason })
    }
}

/// Product and message, in one short line.
fn example(line: &Line) -> String {
    let message =
        serde_json::from_str::<FailureOf>(line.json()).map(|line| line.failure.message).unwrap_or_default();
    let short = |text: &str| text.chars().take(EXAMPLE_CHARS).collect::<String>();
    format!("{:?}: {:?}", short(line.id()), short(&message))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(class: Option<&str>) -> Line {
        let mut line =
            json!({"id": "sku-1", "seq": 1, "product": {}, "analysis": {}, "meta": {"cost_usd": null}});
        if let Some(class) = class {
            line["failure"] = json!({"class": class, "message": "not\nJSON"});
        }
        Line::parse(&serde_json::value::to_raw_value(&line).unwrap()).unwrap()
    }

    #[test]
    fn a_run_pauses_when_too_many_of_the_latest_products_failed() {
        let mut failing = Failing::default();
        for _ in 0..49 {
            failing.add(&line(Some("malformed")));
        }
        assert_eq!(failing.halt(0.5), None, "too few to tell");
        failing.add(&line(Some("timeout")));
        let reason = failing.halt(0.5).unwrap().reason;
        let told =
            "50 of the last 50 products failed: malformed 49 (such as \"sku-1\": \"not\\nJSON\"), timeout 1";
        assert!(reason.starts_with(told), "{reason}");
        assert_eq!(failing.halt(1.0), None);
        for _ in 0..50 {
            failing.add(&line(None));
        }
        assert_eq!(failing.halt(0.5), None, "half of them is not more than half");
        for _ in 0..OUTCOMES {
            failing.add(&line(None));
        }
        assert_eq!(failing.halt(0.0), None, "what is past is forgotten");
    }
}
