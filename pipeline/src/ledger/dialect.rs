//! What the run has found out about how its models' servers take requests.
//!
//! Known to all workers, so that each need not be refused for itself. Nothing depends on it but such refusals: it may be
//! behind, or lost, and is found out again.

use serde::{Deserialize, Serialize};

use crate::job::Structured;

/// What refusals have taught of one server; nothing, by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dialect {
    /// The strictest way to ask for JSON that it has not refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub structured: Option<Structured>,
    /// Whether a ceiling is called `max_completion_tokens`, and not `max_tokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub has_new_token_field: Option<bool>,
}
