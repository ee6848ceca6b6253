//! What is to be done to every product of a catalog.
//!
//! A [`Job`] is complete and checked: its templates compile, its schema is one, its numbers are in range. It is
//! made once, by the command that starts a run, and travels to the workers through the ledger, so a worker
//! needs no file. No secret is part of a job: keys come from the environment of who calls the model.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::identity::fingerprint;

mod builtin;
mod file;
mod prompt;
mod schema;

pub use file::{JobProblem, JobProblems};
pub use prompt::{Message, Prompt, PromptError};
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
    /// How fast and how often.
    pub limits: Limits,
}

/// Which model, where, and how it is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Llm {
    /// The root of the API, such as `https://api.openai.com/v1`; `None`: the worker's own choice.
    pub base_url: Option<String>,
    /// The model's name.
    pub model: String,
    /// Sampling temperature; `None`: the provider's default.
    pub temperature: Option<f64>,
    /// The ceiling of an answer.
    pub max_output_tokens: u32,
    /// From the start of a call to the last byte of its answer.
    pub timeout_ms: u64,
    /// US dollars per million tokens read; `None`: unknown.
    pub prompt_price_per_million: Option<f64>,
    /// US dollars per million tokens written; `None`: unknown.
    pub completion_price_per_million: Option<f64>,
    /// Further fields of the request, as they are.
    pub extra: Map<String, Value>,
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

/// How fast and how often.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Products at once in each worker, unless the worker says otherwise.
    pub concurrency: u32,
    /// Requests a minute, all workers together.
    pub requests_per_minute: Option<u32>,
    /// Tokens a minute, all workers together.
    pub tokens_per_minute: Option<u32>,
    /// The least time between the starts of two calls, all workers together.
    pub delay_ms: u64,
    /// Attempts before a product fails.
    pub max_attempts: u32,
}

/// Which parts of a job decide what an answer means; equal fingerprints, equal questions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobFingerprint {
    /// Of the templates.
    pub prompt: String,
    /// Of the schema.
    pub schema: String,
    /// Of the model, its temperature and the extra fields.
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

impl Job {
    /// The deadline of one call.
    #[must_use]
    pub const fn timeout(&self) -> Duration {
        Duration::from_millis(self.llm.timeout_ms)
    }

    /// What these tokens cost in US dollars; `None` where the job names no prices.
    #[must_use]
    pub fn cost_usd(&self, prompt_tokens: u64, completion_tokens: u64) -> Option<f64> {
        const MILLION: f64 = 1e6;
        #[expect(clippy::cast_precision_loss, reason = "exact below 2^53 tokens")]
        Some(
            (prompt_tokens as f64 * self.llm.prompt_price_per_million?
                + completion_tokens as f64 * self.llm.completion_price_per_million?)
                / MILLION,
        )
    }

    /// What decides the meaning of an answer.
    #[must_use]
    pub fn fingerprint(&self) -> JobFingerprint {
        let Self { llm, prompt, output, limits: _ } = self;
        let part = |value: Value| fingerprint(&[value.to_string().as_bytes()]);
        JobFingerprint {
            prompt: part(serde_json::json!([prompt.system, prompt.user])),
            schema: part(output.schema.clone()),
            model: part(serde_json::json!([llm.model, llm.temperature, llm.extra])),
        }
    }
}
