//! Prompts that several products share: asked once in a run, by whoever comes first.
//!
//! There is no lease beside the claim's: who asks holds the prompt exactly as long as its product's claim. Whoever fails,
//! gives its product back, or dies leaves the prompt to the next by that alone. Failures are not shared: the next one asks.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{money::Money, record::Shortened};

/// What a worker does about a prompt.
#[derive(Debug)]
pub enum PromptTurn {
    /// Ask the model, and keep its answer.
    Ask,
    /// The model was asked.
    Answered(PromptAnswer),
    /// It is being asked for another product: come again.
    Busy,
}

/// An answer for all products that have the prompt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PromptAnswer {
    /// The product that the model was asked for.
    pub id: String,
    /// The model that answered, by its own name for itself.
    pub model: String,
    /// Which of the job's endpoints that was, if it names several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// What of that product the model was not shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shortened: Option<Shortened>,
    /// What the call can have cost.
    #[serde(default, skip_serializing_if = "Money::is_zero")]
    pub most: Money,
    /// Checked against the job's schema.
    pub analysis: Box<RawValue>,
}
