//! The steps of every product, which workers ask for thousands of times a second: its claim, its calls, its answer. Those of a
//! worker's products that are at the same step are asked together.

use std::{sync::Arc, time::Duration};

use redis::{FromRedisValue, ScriptInvocation, aio::MultiplexedConnection};

use super::{
    RedisLedger,
    client::Connection,
    keys::{Keys, Scripts},
    reply::{answer, changes, count, ms, spent_before},
    together::{Question, Together, Try},
};
use crate::{
    identity::IdHash,
    ledger::{Call, Claim, ClaimToken, Grant, Kept, LedgerError, Turn},
    message::Outcome,
    money::Money,
};

/// What is asked at the same time.
#[derive(Default)]
pub(super) struct Steps {
    claims: Together<ClaimAsked, Claim>,
    calls: Together<CallAsked, Turn>,
    answers: Together<AnswerPut, Kept>,
}

struct ClaimAsked {
    product: IdHash,
    token: String,
    lease: Duration,
}

struct CallAsked {
    product: IdHash,
    token: String,
    call: Call,
    /// Billionths of a dollar.
    budget: String,
}

struct AnswerPut {
    product: IdHash,
    token: String,
    outcome: Vec<u8>,
    late: String,
    cost: Money,
}

impl Question for ClaimAsked {
    fn size_bytes(&self) -> usize {
        self.token.len()
    }
}

impl Question for CallAsked {
    fn size_bytes(&self) -> usize {
        self.token.len()
    }
}

impl Question for AnswerPut {
    fn size_bytes(&self) -> usize {
        self.outcome.len()
    }
}

/// What scripts are run with.
#[derive(Clone)]
struct Tools {
    connection: Arc<Connection>,
    keys: Arc<Keys>,
    scripts: Arc<Scripts>,
}

impl Tools {
    async fn invoke<T: FromRedisValue>(
        &self,
        script: &ScriptInvocation<'_>,
        how: Try,
    ) -> Result<T, LedgerError> {
        let command =
            |mut manager: MultiplexedConnection| async move { script.invoke_async(&mut manager).await };
        match how {
            Try::UntilAnswered => self.connection.run(command).await,
            // Why does not matter: what is in it is asked again, and told then.
            Try::Once => self.connection.once(command).await.ok_or(LedgerError::Aborted),
        }
    }

    async fn claim(self, asked: Arc<Vec<ClaimAsked>>, how: Try) -> Result<Vec<Claim>, LedgerError> {
        let Keys { claims, answers, spent, pace, .. } = &*self.keys;
        let mut script = self.scripts.claim.prepare_invoke();
        script.key(claims).key(answers).key(spent).key(pace);
        // They are all of one worker.
        script.arg(asked.first().map_or(0, |asked| ms(asked.lease)));
        for ClaimAsked { product, token, .. } in &*asked {
            script.key(self.keys.bucket(product)).arg(product.as_bytes()).arg(token);
        }
        self.invoke::<Vec<Vec<Vec<u8>>>>(&script, how).await?.iter().map(|reply| claim(reply)).collect()
    }

    async fn begin(self, asked: Arc<Vec<CallAsked>>, how: Try) -> Result<Vec<Turn>, LedgerError> {
        let Keys { pace, claims, run, .. } = &*self.keys;
        let mut script = self.scripts.begin_call.prepare_invoke();
        script.key(pace).key(claims).key(run);
        for CallAsked { product, token, call, budget } in &*asked {
            script.arg(product.as_bytes()).arg(token).arg(call.number);
            script.arg(call.most.nanos()).arg(call.before.nanos()).arg(budget);
            script.arg(if call.is_beside { "1" } else { "" });
        }
        self.invoke::<Vec<i64>>(&script, how).await?.into_iter().map(turn).collect()
    }

    async fn put(self, put: Arc<Vec<AnswerPut>>, how: Try) -> Result<Vec<Kept>, LedgerError> {
        let Keys { claims, answers, spent, pace, .. } = &*self.keys;
        let mut script = self.scripts.put_answer.prepare_invoke();
        script.key(claims).key(answers).key(spent).key(pace);
        for AnswerPut { product, token, outcome, late, cost } in &*put {
            script.key(self.keys.bucket(product)).arg(product.as_bytes()).arg(token);
            script.arg(outcome.as_slice()).arg(late).arg(cost.nanos());
        }
        self.invoke::<Vec<Vec<Vec<u8>>>>(&script, how).await?.iter().map(|reply| kept(reply)).collect()
    }
}

fn claim(reply: &[Vec<u8>]) -> Result<Claim, LedgerError> {
    match reply.iter().map(Vec::as_slice).collect::<Vec<_>>().as_slice() {
        [b"done"] => Ok(Claim::Done),
        [b"busy"] => Ok(Claim::Busy),
        [b"granted", claims, calls, spent, changed] => Ok(Claim::Granted(Grant {
            lost_claims: count(claims)?,
            lost_calls: count(calls)?,
            spent: spent_before(spent)?,
            changes: changes(changed)?,
        })),
        [b"answered", outcome] => answer(outcome).map(Claim::Answered),
        _ => Err(LedgerError::Unreadable { what: "claim" }),
    }
}

fn turn(reply: i64) -> Result<Turn, LedgerError> {
    match reply {
        0 => Ok(Turn::Now),
        -1 => Ok(Turn::Lost),
        -2 => Ok(Turn::Halted),
        -3 => Ok(Turn::OverBudget),
        wait_ms => u64::try_from(wait_ms)
            .map(|ms| Turn::After(Duration::from_millis(ms)))
            .map_err(|_| LedgerError::Unreadable { what: "call" }),
    }
}

fn kept(reply: &[Vec<u8>]) -> Result<Kept, LedgerError> {
    match reply.iter().map(Vec::as_slice).collect::<Vec<_>>().as_slice() {
        [b"kept"] => Ok(Kept::Yes),
        [b"done"] => Ok(Kept::Done),
        [b"earlier", earlier] => answer(earlier).map(Kept::Earlier),
        [b"late", calls, spent] => Ok(Kept::Late { calls: count(calls)?, spent: spent_before(spent)? }),
        _ => Err(LedgerError::Unreadable { what: "answer" }),
    }
}

impl RedisLedger {
    async fn ask_together<Q, A, Fut>(
        &self,
        together: &Together<Q, A>,
        question: Q,
        script: fn(Tools, Arc<Vec<Q>>, Try) -> Fut,
    ) -> Result<A, LedgerError>
    where
        Q: Question,
        A: Send + 'static,
        Fut: Future<Output = Result<Vec<A>, LedgerError>> + Send + 'static,
    {
        let answer = || {
            let tools = Tools {
                connection: Arc::clone(&self.connection),
                keys: Arc::clone(&self.keys),
                scripts: Arc::clone(&self.scripts),
            };
            move |questions, how| script(tools.clone(), questions, how)
        };
        together.ask(question, answer).await.unwrap_or_else(|| Err(self.connection.gone()))
    }

    pub(super) async fn ask_claim(
        &self,
        product: IdHash,
        token: &ClaimToken,
        lease: Duration,
    ) -> Result<Claim, LedgerError> {
        let asked = ClaimAsked { product, token: token.to_owned(), lease };
        self.ask_together(&self.steps.claims, asked, Tools::claim).await
    }

    pub(super) async fn ask_call(
        &self,
        (product, token): (IdHash, &ClaimToken),
        call: Call,
        budget: Option<Money>,
    ) -> Result<Turn, LedgerError> {
        let budget = budget.map_or(String::new(), |budget| budget.nanos().to_string());
        let asked = CallAsked { product, token: token.to_owned(), call, budget };
        self.ask_together(&self.steps.calls, asked, Tools::begin).await
    }

    pub(super) async fn keep_answer(
        &self,
        (product, token): (IdHash, &ClaimToken),
        outcome: &Outcome,
        cost: Money,
        late: Option<u32>,
    ) -> Result<Kept, LedgerError> {
        let late = late.map(|calls| calls.to_string()).unwrap_or_default();
        let put = AnswerPut { product, token: token.to_owned(), outcome: outcome.encode(), late, cost };
        self.ask_together(&self.steps.answers, put, Tools::put).await
    }
}
