//! Failed products, and how they are put back.
//!
//! In two steps around the publish: [`RedisLedger::reopen`] (workers may claim it again), then the task is
//! published, then [`RedisLedger::forget_failures`]. Cut off anywhere, doing it all again makes it whole.

use super::{RedisLedger, reply::spent_text};
use crate::{
    changes::Changes,
    failure::FailureClass,
    identity::IdHash,
    ledger::LedgerError,
    message::{Spent, Task},
    money::Money,
    record::FailureLine,
};

/// A product that could not be analysed.
#[derive(Debug)]
pub struct FailedProduct {
    /// Why.
    pub class: FailureClass,
    /// Asks for it again, remembering what was spent on it.
    pub task: Task,
}

impl FailedProduct {
    /// From a line of the failures.
    #[must_use]
    pub fn of_line(line: FailureLine) -> Self {
        let spent = Spent {
            calls: line.meta.attempts,
            prompt_tokens: line.meta.prompt_tokens,
            completion_tokens: line.meta.completion_tokens,
            repeated_calls: line.meta.repeated_calls,
            cost_nano_usd: Money::from_usd(line.meta.cost_usd.unwrap_or(0.0)),
            has_unpriced: line.meta.cost_usd.is_none(),
        };
        let task = Task { spent, ..Task::new(line.id, line.seq, line.product) };
        Self { class: line.failure.class, task }
    }
}

impl RedisLedger {
    /// Some of the failed products, and where to go on; begin and end at cursor 0.
    pub async fn failed_products(&self, cursor: u64) -> Result<(u64, Vec<FailedProduct>), LedgerError> {
        let key = &self.keys.failures;
        let (next, entries): (u64, Vec<(Vec<u8>, String)>) = self
            .connection
            .run(|mut manager| async move {
                redis::cmd("HSCAN").arg(key).arg(cursor).arg("COUNT").arg(100).query_async(&mut manager).await
            })
            .await?;
        let products = entries
            .into_iter()
            .map(|(_, value)| {
                let (_, line) = value.split_once(' ').ok_or(LedgerError::Unreadable { what: "failure" })?;
                super::parse::<FailureLine>("failure", line).map(FailedProduct::of_line)
            })
            .collect::<Result<_, _>>()?;
        Ok((next, products))
    }

    /// Lets workers claim these failed products again, on which so much was spent, to be asked so; how many of them were
    /// failed.
    pub async fn reopen(&self, products: &[(IdHash, Spent)], changes: &Changes) -> Result<u64, LedgerError> {
        let mut call = self.scripts.reopen.prepare_invoke();
        call.key(&self.keys.run).key(&self.keys.claims).key(&self.keys.answers).key(&self.keys.failures);
        call.key(&self.keys.pace).key(&self.keys.spent);
        call.arg(if changes.is_empty() { String::new() } else { changes.encode() });
        for (product, spent) in products {
            call.key(self.keys.bucket(product)).arg(product.as_bytes()).arg(spent_text(spent));
        }
        self.invoke(&call).await
    }

    /// The tasks of these products are with the broker.
    pub async fn forget_failures(&self, products: &[IdHash]) -> Result<(), LedgerError> {
        let mut call = self.scripts.forget.prepare_invoke();
        call.key(&self.keys.failures);
        for product in products {
            call.key(self.keys.bucket(product)).arg(product.as_bytes());
        }
        self.invoke(&call).await
    }
}
