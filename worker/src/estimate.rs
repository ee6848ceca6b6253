//! How many tokens a text may have, before the model counts them.

use shelfmill_pipeline::job::Message;

/// English text has about four characters a token; other scripts fewer, so that bytes are the safer measure.
const BYTES_PER_TOKEN: u64 = 4;
/// What a message costs beside its text. (OpenAI cookbook, "How to count tokens".)
const TOKENS_PER_MESSAGE: u64 = 4;

/// Tokens that the messages probably have.
#[must_use]
pub fn estimate_tokens(messages: &[Message]) -> u64 {
    messages
        .iter()
        .map(|message| TOKENS_PER_MESSAGE + (message.content.len() as u64).div_ceil(BYTES_PER_TOKEN))
        .sum()
}
