//! How many tokens models hold.

use super::known::{
    Fact,
    Provider::{self, Anthropic, OpenAi},
    look_up,
};

/// Tokens of prompt and answer together. Of the gpt-5 models it is the most they read: with an answer they hold
/// 400,000, but no prompt above 272,000 is taken.
///
/// Source: as of the prices (`prices.rs`).
const TABLE: [Fact<u32>; 15] = [
    (OpenAi, "gpt-4.1", 1_047_576),
    (OpenAi, "gpt-4.1-mini", 1_047_576),
    (OpenAi, "gpt-4.1-nano", 1_047_576),
    (OpenAi, "gpt-4o", 128_000),
    (OpenAi, "gpt-4o-mini", 128_000),
    (OpenAi, "gpt-5", 272_000),
    (OpenAi, "gpt-5-mini", 272_000),
    (OpenAi, "gpt-5-nano", 272_000),
    (OpenAi, "o3", 200_000),
    (OpenAi, "o4-mini", 200_000),
    (Anthropic, "claude-haiku-4-5", 200_000),
    (Anthropic, "claude-sonnet-4-5", 200_000),
    (Anthropic, "claude-sonnet-4-6", 1_000_000),
    (Anthropic, "claude-sonnet-5", 1_000_000),
    (Anthropic, "claude-sonnet-5-5", 1_000_000),
];

/// What a model holds at its provider; `None`: unknown.
pub(super) fn known_window(base_url: Option<&str>, model: &str) -> Option<u32> {
    look_up(&TABLE, Provider::at(base_url)?, model)
}

#[cfg(test)]
mod tests {
    use crate::job::Llm;

    #[test]
    fn a_known_model_has_its_window_at_its_provider_only() {
        let window = |model: &str, base_url: Option<&str>, own: Option<u32>| {
            let llm = Llm {
                model: model.to_owned(),
                base_url: base_url.map(ToOwned::to_owned),
                context_window: own,
                ..Llm::default()
            };
            llm.endpoints()[0].context_window
        };
        assert_eq!(window("gpt-4o-mini-2024-07-18", None, None), Some(128_000));
        assert_eq!(window("gpt-4o-mini", None, Some(9)), Some(9));
        assert_eq!(window("gpt-4o-mini", Some("http://localhost/v1"), None), None);
        assert_eq!(window("llama", None, None), None);
    }
}
