//! From a task to a verdict: prompt, pace, call, check, and what to do when that fails.
//!
//! A retry that is due within seconds is waited for in place; a longer wait goes through the broker, so that it
//! does not hold a place. A rate limit is the fleet's, not the product's: it pauses everybody and spends no
//! attempt. A stop gives back what is waiting; a call under way is finished.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::value::RawValue;
use shelfmill_pipeline::{
    crash::{self, Point},
    failure::FailureClass,
    job::{AnswerSchema, Job, Prompt},
    ledger::{ClaimToken, Ledger, Turn},
    message::{Outcome, Task},
    record::Failure,
    shutdown::Stopper,
    signature::Signature,
};

use crate::{
    NoKey, WorkerConfig,
    answer::Answer,
    estimate::estimate_tokens,
    model::{CallFailure, Endpoint, ModelClient},
};

/// The longest wait that holds a place.
const WAIT_IN_PLACE: Duration = Duration::from_secs(4);
/// Before the first retry; doubled for each further one.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// The longest pause between two attempts that nobody asked for.
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// The longest wait a provider can ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);

/// What becomes of a task.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// The product is analysed or has failed for good.
    Outcome(Outcome),
    /// The task, with what it has learned, is to come again.
    Later(Duration),
    /// The claim ran out before a call was made: the product may be somebody else's now.
    Lost,
}

/// A job, ready to be done.
#[derive(Debug)]
pub(crate) struct Analyst {
    signature: Signature,
    prompt: Prompt,
    schema: AnswerSchema,
    endpoint: Endpoint,
}

impl Analyst {
    pub(crate) fn new(config: &WorkerConfig, job: Job) -> anyhow::Result<Self> {
        let prompt = Prompt::compile(&job.prompt)
            .map_err(|errors| {
                anyhow::Error::msg(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
            })
            .context("the job's prompt")?;
        let schema = AnswerSchema::compile(&job.output.schema).context("the job's schema")?;
        let endpoint = Endpoint::new(config.base_url.as_deref(), &job)?;
        if endpoint.is_openai() && config.api_key.is_none() {
            return Err(NoKey.into());
        }
        Ok(Self { signature: Signature::new(job, config.name.clone()), prompt, schema, endpoint })
    }

    pub(crate) const fn job(&self) -> &Job {
        self.signature.job()
    }

    /// Attempts until there is a verdict; the task keeps count of them.
    pub(crate) async fn analyse(
        &self,
        task: &mut Task,
        token: &ClaimToken,
        model: &ModelClient,
        ledger: &dyn Ledger,
        stopper: &Stopper,
    ) -> anyhow::Result<Verdict> {
        let messages = match self.prompt.render(&task.id, &task.product) {
            Ok(messages) => messages,
            Err(error) => {
                let failure = CallFailure::new(FailureClass::Unpromptable, error.to_string());
                return Ok(Verdict::Outcome(self.failed(task, failure, Duration::ZERO)));
            }
        };
        let request = self.endpoint.request(&messages)?;
        let tokens = estimate_tokens(&messages) + u64::from(self.job().llm.max_output_tokens);
        let claim = (task.hash(), token);
        let mut number = 0;
        loop {
            number += 1;
            let mut turn = ledger.reserve_call(claim, number, &self.job().limits, tokens).await?;
            while let Turn::After(wait) = turn {
                if !waited(wait, stopper).await {
                    return Ok(Verdict::Later(Duration::ZERO));
                }
                turn = ledger.begin_call(claim, number).await?;
            }
            if turn == Turn::Lost {
                return Ok(Verdict::Lost);
            }
            crash::point_of(Point::WorkerCalled, &task.id);
            task.spent.calls += 1;
            let started = tokio::time::Instant::now();
            let call = model.call(&self.endpoint, &request, &task.id, task.spent.calls, self.job().timeout());
            let answer = call.await.and_then(|reply| self.check(task, &reply));
            crash::point_of(Point::WorkerAnswered, &task.id);
            let latency = started.elapsed();
            let failure = match answer {
                Ok((analysis, model)) => {
                    return Ok(Verdict::Outcome(self.signature.completed(task, analysis, model, latency)));
                }
                Err(failure) => failure,
            };
            let asked = failure.retry_after.map(|asked| asked.min(MAX_RETRY_AFTER));
            let delay = if !failure.class.spends_attempt() {
                let pause = asked.unwrap_or_else(|| backoff(task.spent.calls));
                tracing::warn!(pause_ms = pause.as_millis(), "the provider asks for fewer requests");
                ledger.pause(pause).await?;
                pause
            } else {
                task.attempts += 1;
                if !failure.class.is_retryable() || task.attempts >= self.job().limits.max_attempts {
                    tracing::warn!(id = ?task.id, class = %failure.class, reason = failure.message, "failed");
                    return Ok(Verdict::Outcome(self.failed(task, failure, latency)));
                }
                tracing::debug!(id = ?task.id, class = %failure.class, reason = failure.message, "will try again");
                asked.unwrap_or_else(|| backoff(task.attempts))
            };
            if delay > WAIT_IN_PLACE {
                return Ok(Verdict::Later(delay));
            }
            if !waited(delay, stopper).await {
                return Ok(Verdict::Later(Duration::ZERO));
            }
        }
    }

    /// The outcome of a product whose workers do not survive it.
    pub(crate) fn poisoned(&self, task: &Task, deaths: u32) -> Outcome {
        tracing::error!(id = ?task.id, deaths, "given up: each worker that took this product ended without an answer");
        let message = format!(
            "{deaths} workers, one after the other, ended without an answer while they had this product; their own logs \
             and the system's (out of memory?) may tell why"
        );
        self.failed(task, CallFailure::new(FailureClass::Poisoned, message), Duration::ZERO)
    }

    /// The analysis and the model's name, if the answer is one.
    fn check(&self, task: &mut Task, reply: &[u8]) -> Result<(Box<RawValue>, String), CallFailure> {
        let answer = Answer::parse(reply)?;
        let usage = answer.usage.unwrap_or_default();
        task.spent.prompt_tokens = task.spent.prompt_tokens.saturating_add(usage.prompt_tokens);
        task.spent.completion_tokens = task.spent.completion_tokens.saturating_add(usage.completion_tokens);
        let model = answer.model.clone().unwrap_or_else(|| self.job().llm.model.clone());
        let analysis = answer.analysis(&self.schema)?;
        Ok((analysis, model))
    }

    fn failed(&self, task: &Task, failure: CallFailure, latency: Duration) -> Outcome {
        let CallFailure { class, message, raw, .. } = failure;
        self.signature.failed(task, Failure { class, message, raw }, latency)
    }
}

/// Doubled for each attempt, and between half and all of it, so that those who failed together do not come
/// back together.
fn backoff(attempts: u32) -> Duration {
    let full = FIRST_BACKOFF.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(MAX_BACKOFF);
    full.mul_f64(rand::random_range(0.5..=1.0))
}

/// Whether the wait was over before a stop.
async fn waited(wait: Duration, stopper: &Stopper) -> bool {
    if wait.is_zero() {
        return true;
    }
    tokio::select! {
        () = tokio::time::sleep(wait) => true,
        () = stopper.stopped() => false,
    }
}
