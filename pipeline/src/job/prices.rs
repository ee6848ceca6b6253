//! What tokens cost.

use serde::{Deserialize, Serialize};

/// US dollars per million tokens. The names are those that jobs of the first version have in Redis.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prices {
    /// Of tokens read.
    #[serde(rename = "prompt_price_per_million")]
    pub prompt_per_million: f64,
    /// Of tokens written.
    #[serde(rename = "completion_price_per_million")]
    pub completion_per_million: f64,
}

impl Prices {
    /// What these tokens cost in US dollars.
    #[must_use]
    pub fn cost_usd(&self, prompt_tokens: u64, completion_tokens: u64) -> f64 {
        const MILLION: f64 = 1e6;
        #[expect(clippy::cast_precision_loss, reason = "exact below 2^53 tokens")]
        let (prompt, completion) = (prompt_tokens as f64, completion_tokens as f64);
        (prompt * self.prompt_per_million + completion * self.completion_per_million) / MILLION
    }
}
