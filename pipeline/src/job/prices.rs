//! What tokens cost.
//!
//! A price in the job wins over the table here, which holds at the provider's own address only. Where neither says
//! anything the cost is unknown: told as `null`, never as 0.

use serde::{Deserialize, Serialize};

use super::known::{
    Fact,
    Provider::{self, Anthropic, OpenAi},
    look_up,
};

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

/// When the table below was made.
pub const PRICES_AS_OF: &str = "2026-11-22";

const fn usd(prompt_per_million: f64, completion_per_million: f64) -> Prices {
    Prices { prompt_per_million, completion_per_million }
}

/// Prices of text at the standard tier, not of batches and not of cached tokens: what is told is rather too much.
/// Models whose price depends on a prompt's length are left out.
///
/// Source: `model_prices_and_context_window_backup.json` of litellm 1.109.1 (PyPI), which names
/// developers.openai.com/api/docs/pricing and platform.claude.com/docs/en/about-claude/pricing.
const TABLE: [Fact<Prices>; 16] = [
    (OpenAi, "gpt-4.1", usd(2.0, 8.0)),
    (OpenAi, "gpt-4.1-mini", usd(0.4, 1.6)),
    (OpenAi, "gpt-4.1-nano", usd(0.1, 0.4)),
    (OpenAi, "gpt-4o", usd(2.5, 10.0)),
    (OpenAi, "gpt-4o-2024-05-13", usd(5.0, 15.0)),
    (OpenAi, "gpt-4o-mini", usd(0.15, 0.6)),
    (OpenAi, "gpt-5", usd(1.25, 10.0)),
    (OpenAi, "gpt-5-mini", usd(0.25, 2.0)),
    (OpenAi, "gpt-5-nano", usd(0.05, 0.4)),
    (OpenAi, "o3", usd(2.0, 8.0)),
    (OpenAi, "o4-mini", usd(1.1, 4.4)),
    (Anthropic, "claude-haiku-4-5", usd(1.0, 5.0)),
    (Anthropic, "claude-sonnet-4-5", usd(3.0, 15.0)),
    (Anthropic, "claude-sonnet-4-6", usd(3.0, 15.0)),
    (Anthropic, "claude-sonnet-5", usd(2.0, 10.0)),
    (Anthropic, "claude-sonnet-5-5", usd(2.0, 10.0)),
];

/// What a model costs at its provider; `None`: unknown.
pub(super) fn known_prices(base_url: Option<&str>, model: &str) -> Option<Prices> {
    look_up(&TABLE, Provider::at(base_url)?, model)
}

#[cfg(test)]
pub(super) fn known_models() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|(_, model, _)| *model)
}

#[cfg(test)]
mod tests {
    use crate::job::Job;

    fn cost(llm: &str) -> Option<f64> {
        let text = format!("[llm]\n{llm}");
        let job = Job::parse(&text, "job.toml", std::path::Path::new("/nonexistent")).unwrap();
        job.cost_usd(1_000_000, 1_000_000)
    }

    #[test]
    fn a_known_model_has_its_price_at_its_provider_only() {
        assert_eq!(cost("model = \"gpt-4.1-mini\""), Some(2.0));
        assert_eq!(cost("model = \"gpt-4.1-mini-2025-04-14\""), Some(2.0));
        assert_eq!(cost("model = \"gpt-4o-2024-05-13\""), Some(20.0));
        assert_eq!(cost("model = \"gpt-4o\"\nbase_url = \"http://localhost:8000/v1\""), None);
        assert_eq!(cost("model = \"claude-haiku-4-5-20251001\""), None);
        assert_eq!(
            cost("model = \"claude-haiku-4-5-20251001\"\nbase_url = \"https://api.anthropic.com/v1/\""),
            Some(6.0)
        );
        assert_eq!(cost("model = \"gpt-9\""), None);
    }

    #[test]
    fn the_jobs_own_price_wins() {
        assert_eq!(cost("model = \"gpt-4o\"\nprices = { prompt = 0, completion = 0 }"), Some(0.0));
    }

    #[test]
    fn another_tier_has_other_prices() {
        assert_eq!(cost("model = \"gpt-4o\"\nextra = { service_tier = \"priority\" }"), None);
        assert_eq!(cost("model = \"gpt-4o\"\nextra = { service_tier = \"default\" }"), Some(12.5));
    }

    #[test]
    fn endpoints_may_have_different_prices() {
        let two = |second: &str| {
            cost(&format!(
                "model = \"gpt-4o\"\n[[llm.endpoints]]\nbase_url = \"https://api.openai.com/v1\"\n\
                 [[llm.endpoints]]\nbase_url = \"https://api.openai.com/v1\"\n{second}"
            ))
        };
        assert_eq!(two(""), Some(12.5));
        assert_eq!(two("model = \"gpt-4o-mini\""), None);
        assert_eq!(two("prices = { prompt = 2.5, completion = 10 }"), Some(12.5));
    }
}
