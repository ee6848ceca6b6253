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
    identity::IdHash,
    job::{AnswerSchema, Job, Prompt},
    ledger::{Call, ClaimToken, Halt, HaltCause, Ledger, Turn},
    message::{Outcome, Task},
    money::Money,
    record::Failure,
    shutdown::Stopper,
    signature::Signature,
};

use crate::{
    NoKey, WorkerConfig,
    answer::Answer,
    conversation::Conversation,
    estimate::{Estimate, Estimator},
    model::{CallFailure, Endpoint, ModelClient},
    refusals::Refusals,
};

mod changed;

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
    /// The run is to pause, or has paused already; the task is to come again.
    Halted(Option<Halt>),
}

/// A job, ready to be done.
#[derive(Debug)]
pub(crate) struct Analyst {
    /// As the ledger has it.
    given: Job,
    /// With the job as it is done here.
    signature: Signature,
    prompt: Prompt,
    schema: AnswerSchema,
    endpoint: Endpoint,
    window: Option<u32>,
    estimator: Estimator,
    refusals: Refusals,
}

/// What was spent on a product that the ledger does not know of yet.
#[derive(Debug)]
pub(crate) struct Account {
    /// Up to here the ledger knows what was spent.
    settled: Money,
    /// The most that the last call can have cost, where nobody knows what it did.
    unseen: Money,
}

impl Account {
    /// As it stands when a product is claimed.
    pub(crate) const fn of(task: &Task) -> Self {
        Self { settled: task.spent.cost_nano_usd, unseen: Money::ZERO }
    }

    /// What the last call has cost.
    pub(crate) const fn unknown_to_ledger(&self, task: &Task) -> Money {
        task.spent.cost_nano_usd.less(self.settled).plus(self.unseen)
    }

    const fn settle(&mut self, task: &Task) {
        *self = Self::of(task);
    }
}

impl Analyst {
    pub(crate) fn new(config: &WorkerConfig, given: Job) -> anyhow::Result<Self> {
        let mut job = given.clone();
        if config.base_url.is_some() {
            // Prices that are publicly known hold where the calls go, not where the job would have sent them.
            job.llm.base_url.clone_from(&config.base_url);
        }
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
        let window = job.llm.endpoints().first().and_then(|endpoint| endpoint.context_window);
        let estimator = Estimator::new(&job.llm.model, endpoint.host(), Some(&job.output.schema));
        let signature = Signature::new(job, config.name.clone());
        let refusals = Refusals::default();
        Ok(Self { given, signature, prompt, schema, endpoint, window, estimator, refusals })
    }

    /// Whether this is the job that is to be done.
    pub(crate) fn is_of(&self, job: &Job) -> bool {
        self.given == *job
    }

    const fn job(&self) -> &Job {
        self.signature.job()
    }

    /// Attempts until there is a verdict; the task keeps count of them, and `account` of what the ledger knows.
    pub(crate) async fn analyse(
        &self,
        task: &mut Task,
        account: &mut Account,
        token: &ClaimToken,
        (model, ledger): (&ModelClient, &dyn Ledger),
        stopper: &Stopper,
    ) -> anyhow::Result<Verdict> {
        let job = self.job();
        let mut conversation = match Conversation::begin(job, &self.prompt, task) {
            Ok(conversation) => conversation,
            Err(failure) => return Ok(Verdict::Outcome(self.failed(task, failure, Duration::ZERO))),
        };
        let mut number = 0;
        loop {
            let sent = self.endpoint.dialect.sent();
            let window = (self.window, &self.estimator);
            let estimate = match conversation.fit(job, &self.prompt, task, window, sent.structured) {
                Ok(estimate) => estimate,
                Err(failure) => return Ok(Verdict::Outcome(self.failed(task, failure, Duration::ZERO))),
            };
            let messages = conversation.messages(sent.structured, &job.output.schema);
            let request = self.endpoint.request(&messages, conversation.ceiling, sent)?;
            let ceiling = u64::from(conversation.ceiling);
            number += 1;
            let call = Call {
                number,
                tokens: estimate.tokens + ceiling,
                // No token is shorter than a byte.
                most: Money::from_usd(job.cost_usd(request.len() as u64, ceiling).unwrap_or(0.0)),
                before: account.unknown_to_ledger(task),
            };
            if let Some(verdict) = self.turn((task.hash(), token), &call, ledger, stopper).await? {
                return Ok(verdict);
            }
            account.settle(task);
            crash::point_of(Point::WorkerCalled, &task.id);
            task.spent.calls += 1;
            let started = tokio::time::Instant::now();
            let reply = model.call(&self.endpoint, &request, &task.id, task.spent.calls, job.timeout());
            let answer = reply.await.and_then(|reply| self.check(task, estimate, &reply));
            crash::point_of(Point::WorkerAnswered, &task.id);
            let latency = started.elapsed();
            let failure = match answer {
                Ok((analysis, model)) => {
                    self.refusals.answered();
                    let shortened = conversation.shortened;
                    let outcome = self.signature.completed(task, analysis, model, latency, shortened);
                    return Ok(Verdict::Outcome(outcome));
                }
                Err(failure) => failure,
            };
            if failure.may_be_billed {
                account.unseen = call.most;
            }
            if failure.unsupported.is_some_and(|what| self.endpoint.dialect.learn(what, sent)) {
                self.endpoint.dialect.tell(ledger).await?;
                continue;
            }
            if let Some(halt) = self.refusals.refused(failure.class, &failure.message) {
                return Ok(Verdict::Halted(Some(halt)));
            }
            let asked = failure.retry_after.map(|asked| asked.min(MAX_RETRY_AFTER));
            let delay = if self.refusals.stop_run(failure.class) {
                backoff(number)
            } else if !failure.class.spends_attempt() {
                let pause = asked.unwrap_or_else(|| backoff(task.spent.calls));
                tracing::warn!(pause_ms = pause.as_millis(), "the provider asks for fewer requests");
                ledger.pause(pause).await?;
                pause
            } else {
                task.attempts += 1;
                let is_last = task.attempts >= job.limits.max_attempts;
                if !is_last && conversation.goes_on_after(&failure, job.llm.output_tokens_limit()) {
                    tracing::debug!(id = ?task.id, class = %failure.class, reason = failure.message, "asks again");
                    continue;
                }
                if is_last || !failure.class.is_retryable() {
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
            conversation.ask_anew(job);
        }
    }

    /// Waits until a call may begin; what becomes of the task where it may not.
    async fn turn(
        &self,
        claim: (IdHash, &ClaimToken),
        call: &Call,
        ledger: &dyn Ledger,
        stopper: &Stopper,
    ) -> anyhow::Result<Option<Verdict>> {
        let limits = &self.job().limits;
        let mut turn = ledger.reserve_call(claim, call, limits).await?;
        while let Turn::After(wait) = turn {
            if !waited(wait, stopper).await {
                return Ok(Some(Verdict::Later(Duration::ZERO)));
            }
            turn = ledger.begin_call(claim, call, limits).await?;
        }
        Ok(match turn {
            Turn::Now | Turn::After(_) => None,
            Turn::Lost => Some(Verdict::Lost),
            Turn::Halted => Some(Verdict::Halted(None)),
            Turn::OverBudget => Some(Verdict::Halted(Some(self.over_budget(call.most)))),
        })
    }

    fn over_budget(&self, most: Money) -> Halt {
        let budget = self.job().limits.budget_money().unwrap_or_default();
        let reason = format!(
            "the budget of {budget} has no room for another call, which may cost {most}; raise it (--budget), then start \
             it again"
        );
        Halt { cause: HaltCause::Budget, reason }
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
    fn check(
        &self,
        task: &mut Task,
        estimate: Estimate,
        reply: &[u8],
    ) -> Result<(Box<RawValue>, String), CallFailure> {
        let answer = Answer::parse(reply)?;
        let usage = answer.usage.unwrap_or_default();
        self.estimator.observe(estimate, usage.prompt_tokens);
        let spent = &mut task.spent;
        spent.prompt_tokens = spent.prompt_tokens.saturating_add(usage.prompt_tokens);
        spent.completion_tokens = spent.completion_tokens.saturating_add(usage.completion_tokens);
        match self.job().cost_usd(usage.prompt_tokens, usage.completion_tokens) {
            Some(usd) if answer.usage.is_some() => {
                spent.cost_nano_usd = spent.cost_nano_usd.plus(Money::from_usd(usd));
            }
            _ => spent.has_unpriced = true,
        }
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
