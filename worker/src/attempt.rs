//! One call: which way it takes, what it asks, when it may begin, and what is learned from how it ends.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde_json::value::RawValue;
use shelfmill_pipeline::{
    failure::FailureClass,
    job::{Job, OnOverflow},
    message::{Spent, Task},
    metrics::metrics,
    money::Money,
    shutdown::Stopper,
    trace::Span,
};
use tokio::{sync::SemaphorePermit, time::Instant};

use crate::{
    analysis::{Analyst, Services, Verdict, waited},
    answer::Answer,
    conversation::Conversation,
    estimate::Estimate,
    model::{CallFailure, ModelClient, Sent},
    routes::{Choice, Pass, Place, Route, Routes, When, is_outage},
};

/// A task that has waited so long for its turn is given back: its place is for those whose turn comes.
const PATIENCE: Duration = Duration::from_secs(300);
/// Refusals in a row that a product may meet while others have as many answers.
const REFUSED_ALONE: u32 = 20;
/// So many times the tokens that a call can have are not believed, beside some that a server may add to each: they would
/// stop all others, as the limit and the budget see it.
const INCREDIBLE: u64 = 8;
const FREE_TOKENS: u64 = 100_000;
/// The longest way to come back.
const LATER: Duration = Duration::from_secs(600);

/// How a task goes from one way to the model to another.
pub(crate) struct Path<'a> {
    routes: &'a Routes,
    /// The one that has just failed.
    not_this: Option<usize>,
    /// Endpoints whose window is too small for the question.
    too_small: Vec<String>,
    /// Failures that may be taken for the servers', and not for the question's.
    turns_left: usize,
    /// A call that need not be made is none to see with whether a server is there.
    is_beside: bool,
    /// Refusals in a row for the rate, and how many answers others had had when they began.
    refused: Option<(u32, u64)>,
    waits_since: Option<Instant>,
}

impl<'a> Path<'a> {
    pub(crate) const fn new(routes: &'a Routes) -> Self {
        let turns_left = routes.count() - 1;
        Self {
            routes,
            not_this: None,
            too_small: Vec::new(),
            turns_left,
            is_beside: false,
            refused: None,
            waits_since: None,
        }
    }

    /// For a second call beside one that goes this way: by another, where there is one.
    pub(crate) fn beside(routes: &'a Routes, route: &Route) -> Self {
        Self { not_this: Some(route.index), is_beside: true, ..Self::new(routes) }
    }

    /// The server seems to be down: whether the question goes to another one, which costs the product no attempt.
    pub(crate) fn turns_from(&mut self, route: &Route) -> bool {
        self.not_this = Some(route.index);
        let turns = self.turns_left > 0 && self.routes.has_other_than(route.index);
        self.turns_left -= usize::from(turns);
        turns
    }

    /// A call was refused for its rate: whether that goes on and on while others are answered, so that it has to do with the
    /// question. (Whoever hears so begins to count anew.)
    pub(crate) fn is_refused_alone(&mut self, route: &Route) -> bool {
        let answers = route.lane.answers();
        let (times, answers_before) = self.refused.take().unwrap_or((0, answers));
        let is_alone = times + 1 >= REFUSED_ALONE && answers - answers_before >= u64::from(REFUSED_ALONE);
        if !is_alone {
            self.refused = Some((times + 1, answers_before));
        }
        is_alone
    }

    /// The question is too long here: whether it may be asked elsewhere.
    pub(crate) fn leads_on(&mut self, job: &Job, route: &Route) -> bool {
        self.too_small.push(route.server.at().name.clone());
        job.llm.on_overflow == OnOverflow::Fallback
            && self.routes.iter().any(|route| !self.too_small.contains(&route.server.at().name))
    }

    /// Waits for somebody else's sake; what becomes of the task where that takes too long.
    async fn wait_until(&mut self, until: Instant, stopper: &Stopper) -> Option<Verdict> {
        let since = *self.waits_since.get_or_insert_with(Instant::now);
        let wait = until.saturating_duration_since(Instant::now());
        if (since.elapsed() + wait) > PATIENCE {
            return Some(Verdict::Later(wait.min(LATER)));
        }
        (!waited(wait, stopper).await).then_some(Verdict::Later(Duration::ZERO))
    }
}

/// What is asked, and where.
pub(crate) struct Question {
    pub(crate) route: Arc<Route>,
    sent: Sent,
    pass: Pass,
    estimate: Estimate,
    /// Tokens that the prompt has at most.
    most_tokens: u64,
    ceiling: u64,
    request: Bytes,
}

/// What a call came to.
pub(crate) struct Called {
    pub(crate) answer: Result<(Box<RawValue>, String), CallFailure>,
    pub(crate) latency: Duration,
    /// What it is known to have cost.
    pub(crate) bill: Spent,
    /// What it may have cost beside that.
    pub(crate) unseen: Money,
    pub(crate) route: Arc<Route>,
    pub(crate) sent: Sent,
}

/// Why there is nothing to ask.
pub(crate) enum NoQuestion {
    Verdict(Verdict),
    Failure(CallFailure),
}

impl Question {
    /// Tokens the call will probably take, read and written.
    pub(crate) const fn tokens(&self) -> u64 {
        self.estimate.tokens + self.ceiling
    }

    /// What it can cost.
    pub(crate) fn most(&self) -> Money {
        let cost = self.cost(self.most_tokens, self.ceiling);
        Money::from_usd(cost.unwrap_or(0.0))
    }

    fn cost(&self, prompt_tokens: u64, completion_tokens: u64) -> Option<f64> {
        self.route.server.at().prices.map(|prices| prices.cost_usd(prompt_tokens, completion_tokens))
    }
}

impl Analyst {
    /// The question as it stands, for the way that it is to take.
    pub(crate) async fn question(
        &self,
        conversation: &mut Conversation,
        task: &Task,
        path: &mut Path<'_>,
        stopper: &Stopper,
    ) -> Result<Question, NoQuestion> {
        let job = self.job();
        let mut too_long = None;
        loop {
            let suits = |route: &Route| {
                let is_only_to_see = path.is_beside && route.breaker.is_open();
                !is_only_to_see && !path.too_small.contains(&route.server.at().name)
            };
            let (route, pass) = match self.routes.choose(suits, path.not_this) {
                Choice::Go(route, pass) => (route, pass),
                Choice::Closed(halt) => return Err(NoQuestion::Verdict(Verdict::Halted(Some(halt)))),
                Choice::NotBefore(until) => match path.wait_until(until, stopper).await {
                    None => continue,
                    Some(verdict) => return Err(NoQuestion::Verdict(verdict)),
                },
                Choice::NoneSuits => {
                    let nowhere = || {
                        let message = "no endpoint is left that could take it".to_owned();
                        CallFailure::new(FailureClass::ContextTooLong, message)
                    };
                    return Err(NoQuestion::Failure(too_long.unwrap_or_else(nowhere)));
                }
            };
            let server = &route.server;
            let sent = server.endpoint.dialect.sent();
            let window = (server.at().context_window, &server.estimator);
            let estimate = match conversation.fit(job, &self.prompt, task, window, sent.structured) {
                Ok(estimate) => estimate,
                Err(failure)
                    if failure.class == FailureClass::ContextTooLong && path.leads_on(job, &route) =>
                {
                    too_long = Some(failure);
                    continue;
                }
                Err(failure) => return Err(NoQuestion::Failure(failure)),
            };
            let messages = conversation.messages(sent.structured, &job.output.schema);
            let request = server
                .endpoint
                .request(&messages, conversation.ceiling, sent)
                .map_err(|error| CallFailure::new(FailureClass::Unpromptable, error.to_string()))
                .map_err(NoQuestion::Failure)?;
            let ceiling = u64::from(conversation.ceiling);
            let most_tokens = server.estimator.most(&messages, request.len());
            return Ok(Question { route, sent, pass, estimate, most_tokens, ceiling, request });
        }
    }

    /// Waits until the question may be asked: `Err(None)` where it had better take another way by now.
    pub(crate) async fn place<'a>(
        &self,
        question: &Question,
        path: &mut Path<'_>,
        services: Services<'a>,
    ) -> anyhow::Result<Result<(Place, SemaphorePermit<'a>), Option<Verdict>>> {
        let (route, began) = (&question.route, Instant::now());
        loop {
            let (place, turn) = tokio::select! {
                both = async { (route.gate.enter().await, services.calls.acquire().await) } => both,
                () = services.stopper.stopped() => return Ok(Err(Some(Verdict::Later(Duration::ZERO)))),
            };
            let place = (place, turn?);
            if !route.breaker.holds(question.pass, Instant::now()) || route.is_closed() {
                return Ok(Err(None));
            }
            match route.lane.place(question.tokens(), services.ledger).await? {
                When::At(start) => {
                    let wait = start.saturating_duration_since(Instant::now());
                    if !waited(wait, services.stopper).await {
                        return Ok(Err(Some(Verdict::Later(Duration::ZERO))));
                    }
                    path.waits_since = None;
                    metrics().waited(began.elapsed());
                    return Ok(Ok(place));
                }
                When::NotBefore(until) => {
                    drop(place);
                    if self.routes.count() > 1 {
                        return Ok(Err(None));
                    }
                    if let Some(verdict) = path.wait_until(until, services.stopper).await {
                        return Ok(Err(Some(verdict)));
                    }
                }
            }
        }
    }

    /// Asks, and learns.
    pub(crate) async fn call(
        &self,
        question: &Question,
        id: &str,
        number: u32,
        model: &ModelClient,
    ) -> Called {
        let Question { route, request, .. } = question;
        let started = Instant::now();
        let way = (&route.server.endpoint, &route.key);
        let span = Span::call();
        let reply = span.scope(model.call(way, request, id, number, self.job().timeout())).await;
        let latency = started.elapsed();
        route.lane.told(&reply.hints, question.tokens());
        let mut bill = Spent::default();
        let answer = reply.body.and_then(|body| self.check(&mut bill, question, &body));
        learn(route, &answer);
        let failed = answer.as_ref().err().map(|failure| failure.class);
        metrics().call(&self.endpoint_name(route).unwrap_or_default(), failed, latency);
        span.set("gen_ai.request.model", route.server.at().model.clone());
        span.set("gen_ai.usage.input_tokens", i64::try_from(bill.prompt_tokens).unwrap_or(i64::MAX));
        span.set("gen_ai.usage.output_tokens", i64::try_from(bill.completion_tokens).unwrap_or(i64::MAX));
        if let Some(class) = failed {
            span.fail(class);
        }
        metrics().billed(bill.prompt_tokens, bill.completion_tokens, bill.cost_nano_usd);
        if answer.is_ok() {
            route.server.latencies.record(latency);
        }
        let unseen = match &answer {
            Err(failure) if failure.may_be_billed => question.most(),
            _ if bill.has_unpriced => question.most(),
            _ => Money::ZERO,
        };
        Called { answer, latency, bill, unseen, route: Arc::clone(route), sent: question.sent }
    }

    /// The analysis and the model's name, if the answer is one; in any case, what it cost.
    fn check(
        &self,
        bill: &mut Spent,
        question: &Question,
        reply: &[u8],
    ) -> Result<(Box<RawValue>, String), CallFailure> {
        let server = &question.route.server;
        let mut answer = Answer::parse(reply)?;
        let most = (question.most_tokens + question.ceiling).saturating_mul(INCREDIBLE) + FREE_TOKENS;
        answer.usage = answer.usage.filter(|usage| {
            let is_credible = usage.total() <= most;
            if !is_credible {
                tracing::warn!(
                    tokens = usage.total(),
                    most,
                    "the server counts tokens that cannot have been: not believed"
                );
            }
            is_credible
        });
        if let Some(usage) = answer.usage {
            server.estimator.observe(question.estimate, usage.prompt_tokens);
            question.route.lane.settle(question.tokens(), usage.total());
        }
        let usage = answer.usage.unwrap_or_default();
        (bill.prompt_tokens, bill.completion_tokens) = (usage.prompt_tokens, usage.completion_tokens);
        match question.cost(usage.prompt_tokens, usage.completion_tokens) {
            Some(usd) if answer.usage.is_some() => bill.cost_nano_usd = Money::from_usd(usd),
            _ => bill.has_unpriced = true,
        }
        let model = answer.model.clone().unwrap_or_else(|| server.at().model.clone());
        let analysis = answer.analysis(&self.schema)?;
        Ok((analysis, model))
    }
}

/// What a call says of the way it took.
fn learn<T>(route: &Route, answer: &Result<T, CallFailure>) {
    let failure = answer.as_ref().err();
    let class = failure.map(|failure| failure.class);
    match (class, failure) {
        (Some(class), Some(failure)) if is_outage(class) => route.breaker.failed(&failure.message),
        _ => route.breaker.answered(),
    }
    match class {
        Some(FailureClass::RateLimited) => route.gate.refused(),
        Some(FailureClass::Timeout) => route.gate.bad(),
        _ if failure.is_some_and(|failure| failure.is_overload) => route.gate.bad(),
        _ => route.gate.good(),
    }
    if class.is_none() {
        route.answered();
        route.lane.answered();
    }
}
