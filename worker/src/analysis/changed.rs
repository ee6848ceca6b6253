//! What an analyst needs to be one of several: see [`analysts`](crate::analysts).

use std::time::Duration;

use shelfmill_pipeline::{
    changes::Changes,
    failure::FailureClass,
    ledger::{Ledger, LedgerError},
    message::{Outcome, Task},
};

use super::Analyst;
use crate::{WorkerConfig, model::CallFailure, refusals::Whose};

impl Analyst {
    /// The same job, but for products that were put back to be asked otherwise.
    pub(crate) fn changed(&self, config: &WorkerConfig, changes: &Changes) -> anyhow::Result<Self> {
        let whose = if changes.model.is_some() { Whose::OfFew } else { Whose::OfAll };
        Self::of(config, changes.applied_to(&self.given), self.concurrency, whose)
    }

    /// Learns what other workers were told, and tells them what they have not learned.
    pub(crate) async fn follow_dialect(&self, ledger: &dyn Ledger) -> Result<(), LedgerError> {
        for server in self.routes.servers() {
            server.endpoint.dialect.follow(ledger).await?;
        }
        Ok(())
    }

    /// The outcome of a product that was put back for a model whose price nobody knows, where a budget needs it.
    pub(crate) fn unaffordable(&self, task: &Task) -> Option<Outcome> {
        let job = self.job();
        let has_no_price = || job.llm.endpoints().iter().any(|endpoint| endpoint.prices.is_none());
        let is_unknown = job.limits.budget.is_some() && has_no_price();
        let message = || {
            format!(
                "the price of {} is not known, and the run has a budget; put it back once more, with --prices",
                job.llm.model
            )
        };
        is_unknown.then(|| {
            self.failed(task, CallFailure::new(FailureClass::ModelRefused, message()), Duration::ZERO)
        })
    }
}
