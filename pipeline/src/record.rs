//! The lines a run leaves on disk.
//!
//! One line of JSON per product, made once by the worker and carried byte for byte to the file: nothing on the
//! way parses or rewrites a product or an analysis. The formats are public (users read these files) and have
//! golden fixtures; a field is added, never renamed.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{failure::FailureClass, message::Spent};

/// The live results, and the truth about what is done.
pub const JOURNAL_FILE: &str = "enriched_products_incremental.jsonl";
/// All results in input order, written at the end.
pub const RESULTS_FILE: &str = "enriched_products_analysis.json";
/// Counts, tokens, cost, latencies.
pub const SUMMARY_FILE: &str = "analysis_summary.json";
/// Products that could not be analysed.
pub const FAILURES_FILE: &str = "failed_products.jsonl";
/// Input that is no product.
pub const REJECTS_FILE: &str = "rejected_products.jsonl";

/// A line of the journal; `R` is raw JSON, owned or borrowed.
#[derive(Debug, Serialize, Deserialize)]
pub struct ResultLine<R = Box<RawValue>> {
    /// The product's id, unique in its catalog.
    pub id: String,
    /// Its place in the input, from 1.
    pub seq: u64,
    /// The product, as it was read.
    pub product: R,
    /// What the model said, checked against the job's schema.
    pub analysis: R,
    /// How the analysis came about.
    pub meta: Meta,
}

/// A line of the failures.
#[derive(Debug, Serialize, Deserialize)]
pub struct FailureLine {
    /// The product's id, unique in its catalog.
    pub id: String,
    /// Its place in the input, from 1.
    pub seq: u64,
    /// The product, as it was read: enough to put it back.
    pub product: Box<RawValue>,
    /// Why there is no analysis.
    pub failure: Failure,
    /// What was tried.
    pub meta: Meta,
}

/// The reason of a final failure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// Which kind it is.
    pub class: FailureClass,
    /// What happened, in one sentence.
    pub message: String,
    /// What the model or the provider sent, if anything; at most [`RAW_LIMIT_BYTES`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<String>,
}

/// The most that is kept of an answer that could not be used.
pub const RAW_LIMIT_BYTES: usize = 16 * 1024;
/// The most that is kept of what a failure says.
pub const MESSAGE_LIMIT_BYTES: usize = 2 * 1024;
/// The largest analysis: it keeps an outcome far below what a broker takes as one message.
pub const MAX_ANALYSIS_BYTES: usize = 1024 * 1024;
/// How deep a product or an analysis may be nested. Many readers of JSON stop at 128, counting what is around it.
pub const MAX_NESTING: u8 = 100;
/// The longest line of these files: a product and an analysis of 1 MiB each, and room for the rest, twice over.
pub const MAX_LINE_BYTES: usize = 4 * 1024 * 1024;

/// How an outcome came about. Tokens and cost are those of every call made for the product, also of the calls
/// whose answers were of no use.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Meta {
    /// The model that answered, by its own name for itself.
    pub model: String,
    /// Which of the job's endpoints that was, if it names several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Tokens read by the model.
    pub prompt_tokens: u64,
    /// Tokens written by the model.
    pub completion_tokens: u64,
    /// In US dollars; `null` when the job names no prices.
    pub cost_usd: Option<f64>,
    /// How long the last call took.
    pub latency_ms: u64,
    /// Calls made, first to last.
    pub attempts: u32,
    /// Calls among these, or lost before them, that repeat one which a dead worker had under way.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub repeated_calls: u32,
    /// Who called.
    pub worker: String,
    /// Of the job and the product together: same fingerprint, same question.
    pub fingerprint: String,
    /// When the outcome was known.
    pub completed_at: Timestamp,
    /// What of the product the model was not shown, because it did not fit its window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shortened: Option<Shortened>,
    /// The product with the same prompt that the model was asked for: this one has its answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_prompt_as: Option<String>,
}

/// A text of a product that was cut before the model saw it. The line has it whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shortened {
    /// The one that was cut last, such as `description` or `variants.0.text`.
    pub field: String,
    /// How much of the product was cut off, over all texts.
    pub removed_bytes: u64,
}

impl Meta {
    /// Tells of what else was spent on the product.
    pub fn add(&mut self, spent: &Spent) {
        self.attempts += spent.calls;
        self.repeated_calls += spent.repeated_calls;
        self.prompt_tokens += spent.prompt_tokens;
        self.completion_tokens += spent.completion_tokens;
        self.cost_usd = self.cost_usd.zip(spent.cost_usd()).map(|(own, others)| own + others);
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if passes a reference")]
const fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// A line of the rejects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectLine {
    /// Where the record starts in the (decompressed) input, from 1.
    pub line: u64,
    /// The record's id, where it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `duplicate_id`, `unreadable`, ...
    pub reason: String,
    /// What is wrong with it.
    pub detail: String,
    /// How the record begins.
    pub excerpt: String,
}
