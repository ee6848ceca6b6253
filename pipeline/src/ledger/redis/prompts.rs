//! Prompts that are asked once: the hash `:prompts` has for each its answer, or who asks.

use super::{RedisLedger, reply::parse_bytes};
use crate::{
    identity::{IdHash, PromptKey},
    ledger::{ClaimToken, LedgerError, PromptTurn},
};

impl RedisLedger {
    pub(super) async fn turn_of_prompt(
        &self,
        prompt: &PromptKey,
        (product, token): (IdHash, &ClaimToken),
    ) -> Result<PromptTurn, LedgerError> {
        let mut script = self.scripts.ask_prompt.prepare_invoke();
        script.key(&self.keys.prompts).key(&self.keys.claims);
        script.arg(prompt.as_bytes()).arg(product.as_bytes()).arg(token);
        match self.invoke::<Vec<u8>>(&script).await?.as_slice() {
            b"ask" => Ok(PromptTurn::Ask),
            b"busy" => Ok(PromptTurn::Busy),
            answer => parse_bytes("prompt's answer", answer).map(PromptTurn::Answered),
        }
    }
}
