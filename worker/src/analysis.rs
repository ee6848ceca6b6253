//! From a task to a verdict: prompt, pace, call, check, and what to do when that fails.
//!
//! A retry that is due within seconds is waited for in place; a longer wait goes through the broker, so that it
//! does not hold a place. A rate limit is the fleet's, not the product's: it pauses everybody and spends no
//! attempt. A stop gives back what is waiting; a call under way is finished.

use std::time::Duration;

use anyhow::Context as _;
use shelfmill_pipeline::{
    crash::{self, Point},
    failure::FailureClass,
    identity::{IdHash, PromptKey},
    job::{AnswerSchema, Job, Prompt},
    ledger::{Call, ClaimToken, Halt, HaltCause, Ledger, PromptAnswer, Pulse, Turn},
    message::{Outcome, Task},
    metrics::metrics,
    money::Money,
    record::Failure,
    shutdown::Stopper,
    signature::{AnsweredBy, Signature},
    trace::Span,
};
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    WorkerConfig,
    attempt::{Called, NoQuestion, Path},
    conversation::Conversation,
    hedge::Second,
    images::{Fetcher, Shown},
    model::{CallFailure, ModelClient},
    refusals::Whose,
    routes::{Route, Routes, is_outage},
    same_prompt::{self, Shared},
};

mod changed;

/// The longest wait that holds a place.
const WAIT_IN_PLACE: Duration = Duration::from_secs(4);
/// A task that waits longer for money that others hold is given back: it may be a task in the queue that holds it.
const PATIENCE_FOR_MONEY: Duration = Duration::from_secs(30);
const LATER_FOR_MONEY: Duration = Duration::from_secs(5);
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

impl Verdict {
    pub(crate) fn tell(&self, span: &Span) {
        const OUTCOME: &str = "shelfmill.outcome";
        match self {
            Self::Outcome(Outcome::Failed(line)) => {
                span.set(OUTCOME, "failed");
                if let Some(class) = line.class() {
                    span.fail(class);
                }
            }
            Self::Outcome(_) => span.set(OUTCOME, "completed"),
            Self::Later(_) => span.set(OUTCOME, "later"),
            Self::Lost => span.set(OUTCOME, "lost"),
            Self::Halted(_) => span.set(OUTCOME, "paused"),
        }
    }
}

/// What a call taught of the way it took.
pub(crate) enum Lesson {
    None,
    /// The same question may be asked again, otherwise or later: it was not its fault.
    OfTheWay,
    /// It cannot be taken any more.
    Closed(Halt),
}

/// A job, ready to be done.
pub(crate) struct Analyst {
    /// As the ledger has it.
    given: Job,
    concurrency: u32,
    /// With the job as it is done here.
    pub(crate) signature: Signature,
    /// What all questions have in common, where equal ones are asked once.
    pub(crate) question: Option<PromptKey>,
    pub(crate) prompt: Prompt,
    pub(crate) schema: AnswerSchema,
    pub(crate) routes: Routes,
    /// `None`: no images are wanted.
    pub(crate) fetcher: Option<Fetcher>,
    /// Turns for second calls beside slow ones.
    pub(crate) seconds: Semaphore,
}

/// What an analyst works with.
#[derive(Clone, Copy)]
pub(crate) struct Services<'a> {
    pub(crate) model: &'a ModelClient,
    pub(crate) ledger: &'a dyn Ledger,
    pub(crate) stopper: &'a Stopper,
    /// Turns for the calls of the whole worker, whichever ways they take; second ones beside them have their own.
    pub(crate) calls: &'a Semaphore,
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
    pub(crate) fn new(config: &WorkerConfig, given: Job, concurrency: u32) -> anyhow::Result<Self> {
        let analyst = Self::of(config, given, concurrency, Whose::OfAll)?;
        // Where another address has no known price, the producer could not have told.
        analyst.job().check_budget()?;
        Ok(analyst)
    }

    fn of(config: &WorkerConfig, given: Job, concurrency: u32, whose: Whose) -> anyhow::Result<Self> {
        let mut job = given.clone();
        if config.base_url.is_some() {
            anyhow::ensure!(
                job.llm.endpoints.is_empty(),
                "the job lists its endpoints, and --base-url (or OPENAI_BASE_URL) names another: leave one of the two out"
            );
            // Prices that are publicly known hold where the calls go, not where the job would have sent them.
            job.llm.base_url.clone_from(&config.base_url);
        }
        let prompt = Prompt::compile(&job.prompt)
            .map_err(|errors| {
                anyhow::Error::msg(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
            })
            .context("the job's prompt")?;
        let schema = AnswerSchema::compile(&job.output.schema).context("the job's schema")?;
        let routes = Routes::new(config, &job, concurrency as usize, whose)?;
        let fetcher = job.llm.images.as_ref().map(Fetcher::new).transpose()?;
        let question = same_prompt::question_of(&job);
        let signature = Signature::new(job, config.name.clone());
        let seconds = Semaphore::new((concurrency as usize / 10).max(2));
        Ok(Self { given, concurrency, signature, question, prompt, schema, routes, fetcher, seconds })
    }

    /// Whether this is the job that is to be done.
    pub(crate) fn is_of(&self, job: &Job) -> bool {
        self.given == *job
    }

    /// What is under way, of so many calls that may be.
    pub(crate) fn pulse(&self) -> Pulse {
        let (in_flight, limit) = self.routes.under_way();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Pulse {
            // With several ways, some only wait for their turn.
            in_flight: count(in_flight).min(self.concurrency),
            limit: count(limit).min(self.concurrency),
            ceiling: self.concurrency,
        }
    }

    pub(crate) const fn job(&self) -> &Job {
        self.signature.job()
    }

    /// Attempts until there is a verdict; the task keeps count of them, and `account` of what the ledger knows.
    pub(crate) async fn analyse(
        &self,
        task: &mut Task,
        account: &mut Account,
        (product, token): (IdHash, &ClaimToken),
        services: Services<'_>,
    ) -> anyhow::Result<Verdict> {
        let job = self.job();
        let mut conversation = match Conversation::begin(job, &self.prompt, task) {
            Ok(conversation) => conversation,
            Err(failure) => return Ok(Verdict::Outcome(self.failed(task, failure, Duration::ZERO))),
        };
        let prompt = match self.shared(&conversation, task, token, services).await? {
            Shared::Ask(prompt) => prompt,
            Shared::Verdict(verdict) => return Ok(verdict),
        };
        // Before any call is noted: what an image costs, if it cannot be had, is no call.
        let shown = match self.images(task, services.stopper).await {
            Ok(shown) => shown,
            Err(verdict) => return Ok(verdict),
        };
        conversation.images.clone_from(&shown.images);
        let mut path = Path::new(&self.routes);
        let mut number = 0;
        loop {
            let question = match self.question(&mut conversation, task, &mut path, services.stopper).await {
                Ok(question) => question,
                Err(NoQuestion::Verdict(verdict)) => return Ok(verdict),
                Err(NoQuestion::Failure(failure)) => {
                    return Ok(Verdict::Outcome(self.failed(task, failure, Duration::ZERO)));
                }
            };
            let place = match self.place(&question, &mut path, services).await? {
                Ok(place) => place,
                Err(Some(verdict)) => return Ok(verdict),
                Err(None) => continue,
            };
            number += 1;
            let (most, before) = (question.most(), account.unknown_to_ledger(task));
            let call = Call { number, most, before, is_beside: false };
            if let Some(verdict) = self.begin((product, token), &call, &question.route, services).await? {
                return Ok(verdict);
            }
            account.settle(task);
            crash::point_of(Point::WorkerCalled, &task.id);
            task.spent.calls += 1;
            let second = Second { conversation: &conversation, token, number: &mut number };
            let called = self.hedged(&question, task, second, services).await?;
            drop(place);
            crash::point_of(Point::WorkerAnswered, &task.id);
            task.spent.add(&called.bill);
            account.unseen = called.unseen;
            let lesson = self.heed(&called, product, services).await?;
            let Called { answer, latency, route, .. } = called;
            if answer.is_err() && job.limits.budget.is_some() {
                // Others may wait for this money in the place that this product needs next.
                let cost = account.unknown_to_ledger(task);
                services.ledger.end_call((product, token), cost).await?;
                account.settle(task);
            }
            let failure = match answer {
                Ok((analysis, model)) => {
                    let endpoint = self.endpoint_name(&route);
                    let to_share = || PromptAnswer {
                        id: task.id.clone(),
                        model: model.clone(),
                        endpoint: endpoint.clone(),
                        shortened: conversation.shortened.clone(),
                        most,
                        analysis: analysis.clone(),
                    };
                    self.share(prompt.as_ref(), to_share, services).await?;
                    let by = AnsweredBy { model, endpoint, same_prompt_as: None };
                    let outcome =
                        self.signature.completed(task, &analysis, by, latency, conversation.shortened);
                    return Ok(Verdict::Outcome(outcome));
                }
                Err(failure) => failure,
            };
            let class = failure.class;
            match lesson {
                Lesson::Closed(halt) if self.routes.are_closed() => return Ok(Verdict::Halted(Some(halt))),
                Lesson::Closed(_) => continue,
                Lesson::OfTheWay if class != FailureClass::RateLimited => continue,
                Lesson::OfTheWay if !path.is_refused_alone(&route) => continue,
                Lesson::OfTheWay | Lesson::None => {}
            }
            let delay = if class == FailureClass::ContextTooLong && path.leads_on(job, &route) {
                continue;
            } else if is_outage(class) && path.turns_from(&route) {
                tracing::debug!(id = ?task.id, %class, reason = failure.message, "goes to another endpoint");
                continue;
            } else {
                task.attempts += 1;
                let is_last = task.attempts >= job.limits.max_attempts;
                if !is_last && (class.is_retryable() || route.stops_run(class)) {
                    metrics().retries(class);
                }
                if !is_last && conversation.goes_on_after(&failure, job.llm.output_tokens_limit()) {
                    tracing::debug!(id = ?task.id, %class, reason = failure.message, "asks again");
                    continue;
                }
                // What closes a way, and did not: it may have been the way's mood, or the product.
                if is_last || !(class.is_retryable() || route.stops_run(class)) {
                    tracing::warn!(id = ?task.id, %class, reason = failure.message, "failed");
                    return Ok(Verdict::Outcome(self.failed(task, failure, latency)));
                }
                tracing::debug!(id = ?task.id, %class, reason = failure.message, "will try again");
                wait_for(&failure, task.attempts)
            };
            if delay > WAIT_IN_PLACE {
                return Ok(Verdict::Later(delay));
            }
            if !waited(delay, services.stopper).await {
                return Ok(Verdict::Later(Duration::ZERO));
            }
            conversation.ask_anew(job);
        }
    }

    /// Learns from a failed call what concerns its way, whatever becomes of the product.
    pub(crate) async fn heed(
        &self,
        called: &Called,
        product: IdHash,
        services: Services<'_>,
    ) -> anyhow::Result<Lesson> {
        let (Err(failure), route) = (&called.answer, &called.route) else { return Ok(Lesson::None) };
        let dialect = &route.server.endpoint.dialect;
        if failure.unsupported.is_some_and(|what| dialect.learn(what, called.sent)) {
            dialect.tell(services.ledger).await?;
            return Ok(Lesson::OfTheWay);
        }
        if route.stops_run(failure.class) {
            return Ok(route.refused(failure, product).map_or(Lesson::None, Lesson::Closed));
        }
        if failure.class.spends_attempt() {
            return Ok(Lesson::None);
        }
        route.lane.refused(asked_for(failure), called.latency, services.ledger).await?;
        Ok(Lesson::OfTheWay)
    }

    /// The product's images, to be kept while they are used; else what becomes of the task.
    async fn images(&self, task: &mut Task, stopper: &Stopper) -> Result<Shown, Verdict> {
        let Some(fetcher) = &self.fetcher else { return Ok(Shown::default()) };
        loop {
            let fetched = tokio::select! {
                fetched = fetcher.fetch(&task.product) => fetched,
                () = stopper.stopped() => return Err(Verdict::Later(Duration::ZERO)),
            };
            let failure = match fetched {
                Ok(shown) => return Ok(shown),
                Err(failure) => failure,
            };
            task.attempts += 1;
            let class = failure.class;
            if !class.is_retryable() || task.attempts >= self.job().limits.max_attempts {
                tracing::warn!(id = ?task.id, %class, reason = failure.message, "failed");
                return Err(Verdict::Outcome(self.failed(task, failure, Duration::ZERO)));
            }
            tracing::debug!(id = ?task.id, %class, reason = failure.message, "will fetch its images again");
            let delay = wait_for(&failure, task.attempts);
            if delay > WAIT_IN_PLACE {
                return Err(Verdict::Later(delay));
            }
            if !waited(delay, stopper).await {
                return Err(Verdict::Later(Duration::ZERO));
            }
        }
    }

    /// Who answered, where several could have.
    pub(crate) fn endpoint_name(&self, route: &Route) -> Option<String> {
        (!self.job().llm.endpoints.is_empty()).then(|| route.server.at().name.clone())
    }

    /// Notes the call with the ledger; what becomes of the task where it may not be made.
    async fn begin(
        &self,
        claim: (IdHash, &ClaimToken),
        call: &Call,
        route: &Route,
        services: Services<'_>,
    ) -> anyhow::Result<Option<Verdict>> {
        let began = Instant::now();
        let mut has_waited = false;
        loop {
            let verdict = match services.ledger.begin_call(claim, call, &self.job().limits).await? {
                // The provider may have wanted a pause meanwhile.
                Turn::Now => match route.lane.opens_at(Instant::now()).filter(|_| has_waited) {
                    Some(until)
                        if !waited(until.saturating_duration_since(Instant::now()), services.stopper)
                            .await =>
                    {
                        Verdict::Later(Duration::ZERO)
                    }
                    _ => return Ok(None),
                },
                Turn::After(_) if began.elapsed() > PATIENCE_FOR_MONEY => Verdict::Later(LATER_FOR_MONEY),
                Turn::After(wait) if waited(wait, services.stopper).await => {
                    has_waited = true;
                    continue;
                }
                Turn::After(_) => Verdict::Later(Duration::ZERO),
                Turn::Lost => Verdict::Lost,
                Turn::Halted => Verdict::Halted(None),
                Turn::OverBudget => Verdict::Halted(Some(self.over_budget(call.most))),
            };
            return Ok(Some(verdict));
        }
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

    fn failed(&self, task: &Task, failure: CallFailure, latency: Duration) -> Outcome {
        let CallFailure { class, message, raw, .. } = failure;
        self.signature.failed(task, Failure { class, message, raw }, latency)
    }
}

/// How long the server wants to be left alone, if it says so; some say 0.
fn asked_for(failure: &CallFailure) -> Option<Duration> {
    failure.retry_after.filter(|asked| !asked.is_zero()).map(|asked| asked.min(MAX_RETRY_AFTER))
}

fn wait_for(failure: &CallFailure, attempts: u32) -> Duration {
    asked_for(failure).unwrap_or_else(|| backoff(attempts))
}

/// Doubled for each attempt, and between half and all of it, so that those who failed together do not come
/// back together.
pub(crate) fn backoff(attempts: u32) -> Duration {
    let full = FIRST_BACKOFF.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(MAX_BACKOFF);
    full.mul_f64(rand::random_range(0.5..=1.0))
}

/// Whether the wait was over before a stop.
pub(crate) async fn waited(wait: Duration, stopper: &Stopper) -> bool {
    if wait.is_zero() {
        return true;
    }
    tokio::select! {
        () = tokio::time::sleep(wait) => true,
        () = stopper.stopped() => false,
    }
}
