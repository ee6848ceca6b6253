//! Makes the outcome of a task: whoever ends a product signs for it, with the job it was done for.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::value::RawValue;

use crate::{
    job::{Job, JobFingerprint},
    message::{Line, Outcome, Task},
    record::{Failure, FailureLine, Meta, ResultLine, Shortened},
};

/// What every line of one process has in common.
#[derive(Debug)]
pub struct Signature {
    job: Job,
    fingerprint: JobFingerprint,
    by: String,
}

/// Who gave an answer.
#[derive(Clone, Debug)]
pub struct AnsweredBy {
    /// The model, by its own name for itself.
    pub model: String,
    /// Where, if the job names several endpoints.
    pub endpoint: Option<String>,
    /// For which other product, if the answer was there already.
    pub same_prompt_as: Option<String>,
}

impl Signature {
    /// For this job, by this process.
    #[must_use]
    pub fn new(job: Job, by: String) -> Self {
        Self { fingerprint: job.fingerprint(), job, by }
    }

    /// The job.
    #[must_use]
    pub const fn job(&self) -> &Job {
        &self.job
    }

    /// The product has its analysis.
    #[must_use]
    pub fn completed(
        &self,
        task: &Task,
        analysis: &RawValue,
        by: AnsweredBy,
        latency: Duration,
        shortened: Option<Shortened>,
    ) -> Outcome {
        Outcome::Completed(Line::of_result(&ResultLine {
            id: task.id.clone(),
            seq: task.seq,
            product: &*task.product,
            analysis,
            meta: Meta {
                endpoint: by.endpoint,
                shortened,
                same_prompt_as: by.same_prompt_as,
                ..self.meta(task, by.model, latency)
            },
        }))
    }

    /// The product will have none.
    #[must_use]
    pub fn failed(&self, task: &Task, failure: Failure, latency: Duration) -> Outcome {
        Outcome::Failed(Line::of_failure(&FailureLine {
            id: task.id.clone(),
            seq: task.seq,
            product: task.product.clone(),
            failure,
            meta: self.meta(task, self.job.llm.model.clone(), latency),
        }))
    }

    fn meta(&self, task: &Task, model: String, latency: Duration) -> Meta {
        let spent = &task.spent;
        Meta {
            model,
            prompt_tokens: spent.prompt_tokens,
            completion_tokens: spent.completion_tokens,
            cost_usd: spent.cost_usd(),
            latency_ms: u64::try_from(latency.as_millis()).unwrap_or(u64::MAX),
            attempts: spent.calls,
            repeated_calls: spent.repeated_calls,
            worker: self.by.clone(),
            fingerprint: self.fingerprint.with_product(task.product.get()),
            completed_at: Timestamp::now(),
            endpoint: None,
            shortened: None,
            same_prompt_as: None,
        }
    }
}
