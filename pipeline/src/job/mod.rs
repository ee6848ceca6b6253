//! What is to be done to every product of a catalog.
//!
//! A [`Job`] is complete and checked: its templates compile, its schema is one, its numbers are in range. It is
//! made once, by the command that starts a run, and travels to the workers through the ledger, so a worker
//! needs no file. No secret is part of a job: keys come from the environment of who calls the model.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::identity::fingerprint;

mod base_url;
mod builtin;
mod chat;
mod file;
mod known;
mod limits;
mod llm;
mod prices;
mod prompt;
mod schema;
mod window;

pub use base_url::{BadBaseUrl, check_base_url, is_http2_at_once};
pub use chat::{Image, Message};
pub use file::{JobProblem, JobProblems};
pub use limits::{Limits, NoPercentile, Percentile};
pub use llm::{EndpointSpec, Images, Llm, ModelEndpoint, OnOverflow, Structured};
pub use prices::{PRICES_AS_OF, Prices};
pub use prompt::{Prompt, PromptError};
pub use schema::{AnswerSchema, Violation};

/// Everything a worker must know to analyse a product.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Which model, where, and how it is asked.
    pub llm: Llm,
    /// What it is asked.
    pub prompt: PromptTemplates,
    /// What it must answer.
    pub output: Output,
    /// How fast, how often, and for how much.
    pub limits: Limits,
}

/// The messages of a request, as templates over `product` and `id`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptTemplates {
    /// The system message; `None`: there is none.
    pub system: Option<String>,
    /// The user message.
    pub user: String,
}

/// What the model must answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// The JSON schema of an analysis.
    pub schema: Value,
}

/// Which parts of a job decide what an answer means; equal fingerprints, equal questions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobFingerprint {
    /// Of the templates, and the images that go with them.
    pub prompt: String,
    /// Of the schema.
    pub schema: String,
    /// Of the model or models, their temperature and the extra fields.
    pub model: String,
}

impl JobFingerprint {
    /// The parts in which two jobs differ, named as in the job file.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        [
            ("prompt", self.prompt != other.prompt),
            ("schema", self.schema != other.schema),
            ("model", self.model != other.model),
        ]
        .into_iter()
        .filter_map(|(name, differs)| differs.then_some(name))
        .collect()
    }

    /// Of this job asked about that product.
    #[must_use]
    pub fn with_product(&self, product: &str) -> String {
        fingerprint(&[
            self.prompt.as_bytes(),
            self.schema.as_bytes(),
            self.model.as_bytes(),
            product.as_bytes(),
        ])
    }
}

/// A budget is kept by prices, and there are none.
#[derive(Debug, thiserror::Error)]
#[error(
    "a budget needs prices, and those of {model} are not known; put prices = {{ prompt = 0.40, completion = 1.60 }} \
     (US dollars per million tokens) under [llm], or the endpoint, of the job file (--job)"
)]
pub struct UnpricedBudget {
    model: String,
}

impl Job {
    /// Whether the budget, where there is one, can be kept.
    pub fn check_budget(&self) -> Result<(), UnpricedBudget> {
        let endpoints = self.llm.endpoints();
        match (self.limits.budget, endpoints.iter().find(|endpoint| endpoint.prices.is_none())) {
            (Some(_), Some(endpoint)) => Err(UnpricedBudget { model: endpoint.model.clone() }),
            _ => Ok(()),
        }
    }

    /// The deadline of one call.
    #[must_use]
    pub const fn timeout(&self) -> Duration {
        Duration::from_millis(self.llm.timeout_ms)
    }

    /// What these tokens cost in US dollars; `None` where prices are unknown, or not the same everywhere.
    #[must_use]
    pub fn cost_usd(&self, prompt_tokens: u64, completion_tokens: u64) -> Option<f64> {
        let endpoints = self.llm.endpoints();
        let prices = endpoints.first()?.prices?;
        let is_same = endpoints.iter().all(|endpoint| endpoint.prices == Some(prices));
        is_same.then(|| prices.cost_usd(prompt_tokens, completion_tokens))
    }

    /// What decides the meaning of an answer. Which of several endpoints has a model does not, nor what it costs
    /// or how its answers are checked; images do.
    #[must_use]
    pub fn fingerprint(&self) -> JobFingerprint {
        let Self { llm, prompt, output, limits: _ } = self;
        let part = |value: Value| fingerprint(&[value.to_string().as_bytes()]);
        let model = match llm.models().as_slice() {
            [one] => json!(one),
            several => json!(several),
        };
        JobFingerprint {
            prompt: part(match &llm.images {
                None => json!([prompt.system, prompt.user]),
                Some(images) => json!([prompt.system, prompt.user, images.fields, images.max_images]),
            }),
            schema: part(output.schema.clone()),
            model: part(json!([model, llm.temperature, llm.extra])),
        }
    }
}
