//! The ledger within one process: in memory, rebuilt from the journal at every start.
//!
//! Nothing of it is written but which calls are under way (see [`inflight`]) and, where equal prompts are asked once, their
//! answers (see [`prompts`]): the journal is the truth, and what is in memory can be had again by reading it. Leases are not kept: whoever claims lives and dies with the ledger.

use std::{
    collections::{BTreeMap, hash_map},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::Instant;

use super::{
    Admission, Begun, Call, Claim, ClaimToken, Dialect, Done, Halt, JournalMark, Kept, Ledger, LedgerError,
    Progress, PromptAnswer, PromptTurn, ScanCounts, State, Turn, Vitals,
    pace::{Ask, Permits, RateRefusal},
    pulse::{Heard, Pulse},
};
use crate::{
    changes::Changes,
    identity::{IdHash, PromptKey},
    job::{Job, Limits},
    message::{Outcome, Spent},
    money::Money,
};
use inflight::Inflight;
use inner::{Held, Inner};
use prompts::Prompts;
use table::Entry;

mod inflight;
mod inner;
mod prompts;
mod table;

/// How soon to ask again for money that others hold.
const BUDGET_POLL: Duration = Duration::from_millis(250);

/// The memory of a run that lives in one process.
#[derive(Debug)]
pub struct EmbeddedLedger {
    inner: Mutex<Inner>,
    started: Instant,
}

impl Default for EmbeddedLedger {
    fn default() -> Self {
        Self::new()
    }
}

impl EmbeddedLedger {
    /// A ledger that knows of no product.
    #[must_use]
    pub fn new() -> Self {
        Self { inner: Mutex::default(), started: Instant::now() }
    }

    /// From now on keeps in this file which calls are under way; what it holds was cut off by a kill.
    pub fn watch_inflight(&self, path: &Path) -> Result<(), LedgerError> {
        let file = path.display().to_string();
        let inflight = Inflight::open(path)
            .map_err(|source| LedgerError::File { file: file.clone(), source: source.into() })?;
        self.lock().inflight = Some((inflight, file));
        Ok(())
    }

    /// From now on keeps the answers to prompts in this file; those that it holds are known.
    pub fn keep_prompts(&self, path: &Path) -> Result<(), LedgerError> {
        let file = path.display().to_string();
        let prompts =
            Prompts::open(path).map_err(|source| LedgerError::File { file, source: source.into() })?;
        self.lock().prompts = Some(prompts);
        Ok(())
    }

    /// Scans are numbered above this one, whatever the clock says.
    pub fn number_scans_after(&self, scan: u64) {
        self.lock().scans_after = scan;
    }

    /// What was spent on a product before it was put back.
    pub fn remember_spent(&self, product: IdHash, spent: Spent) {
        self.lock().spent.insert(product, spent);
    }

    /// A product that was put back is to be asked so.
    pub fn remember_changes(&self, product: IdHash, changes: Changes) {
        self.lock().changes.insert(product, changes);
    }

    /// Whether the call may be made now, and is noted then, but not yet in the file.
    fn take_turn(&self, product: IdHash, token: &ClaimToken, call: &Call, limits: &Limits) -> Turn {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let Some(held) = inner.claims.get_mut(&product).filter(|held| held.token == token) else {
            return Turn::Lost;
        };
        let is_new = held.begun < call.number;
        if is_new && held.hold > Money::ZERO && !call.is_beside {
            // The call before has ended: what it held is free, for this one and for others.
            inner.money_held = inner.money_held.less(held.hold);
            inner.money_spent = inner.money_spent.plus(call.before);
            held.hold = Money::ZERO;
        }
        if inner.halt.is_some() {
            return Turn::Halted;
        }
        if is_new {
            // Nobody knows what the calls that were cut off have cost.
            for _ in 0..std::mem::take(&mut held.lost_calls) {
                inner.money_spent = inner.money_spent.plus(call.most);
            }
            if let Some(budget) = limits.budget_money() {
                if inner.money_spent.plus(call.most) > budget {
                    return Turn::OverBudget;
                }
                if inner.money_spent.plus(inner.money_held).plus(call.most) > budget {
                    return Turn::After(BUDGET_POLL);
                }
            }
            held.begun = call.number;
            held.hold = held.hold.plus(call.most);
            inner.money_held = inner.money_held.plus(call.most);
        }
        inner.note_call(&product, call.number);
        Turn::Now
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> f64 {
        self.started.elapsed().as_secs_f64() * 1_000.0
    }
}

fn now_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(1)
}

#[async_trait]
impl Ledger for EmbeddedLedger {
    async fn job(&self) -> Result<Option<Job>, LedgerError> {
        Ok(self.lock().job.clone())
    }

    async fn begin(&self, job: &Job, accept_changed: bool) -> Result<Begun, LedgerError> {
        let mut inner = self.lock();
        let differences = match &inner.job {
            Some(known) if !accept_changed => known.fingerprint().differences(&job.fingerprint()),
            _ => Vec::new(),
        };
        if !differences.is_empty() {
            return Ok(Begun::Changed { differences });
        }
        inner.job = Some(job.clone());
        let _lifted = inner.halt.take_if(|halt| !halt.is_asked());
        Ok(Begun::Accepted)
    }

    /// One producer in one process reads the input once: `seen` is of this reading. Its number is the time, so
    /// that it is higher than that of any reading by an earlier process.
    async fn begin_scan(&self, _producer: &str) -> Result<Option<u64>, LedgerError> {
        let mut inner = self.lock();
        let after = inner.scans_after;
        let scan = inner
            .scan
            .get_or_insert_with(|| ScanCounts { scan: now_ms().max(after + 1), ..ScanCounts::default() });
        Ok((!scan.sealed).then_some(scan.scan))
    }

    async fn keep_scan(&self, _scan: u64) -> Result<(), LedgerError> {
        Ok(())
    }

    async fn drop_scan(&self, _scan: u64) -> Result<(), LedgerError> {
        Ok(())
    }

    async fn admit(
        &self,
        _scan: u64,
        batch: u64,
        products: &[IdHash],
    ) -> Result<Vec<Admission>, LedgerError> {
        let mut inner = self.lock();
        if let Some((last, reply)) = &inner.last_batch
            && *last == batch
        {
            return Ok(reply.clone());
        }
        let reply: Vec<Admission> = products
            .iter()
            .map(|product| {
                let known = inner.table.get(product);
                if known.is_some_and(|entry| entry.seen) {
                    return Admission::Duplicate;
                }
                let state = known.map_or(State::Open, |entry| entry.state);
                let class = known.and_then(|entry| entry.class);
                inner.table.set(product, Entry { state, seen: true, class });
                let counts = inner.scan.get_or_insert_default();
                counts.total += 1;
                match state {
                    State::Open => Admission::Open { spent: inner.spent.remove(product).unwrap_or_default() },
                    State::Completed => {
                        counts.completed += 1;
                        Admission::Completed
                    }
                    State::Failed => {
                        counts.failed += 1;
                        Admission::Failed
                    }
                }
            })
            .collect();
        inner.last_batch = Some((batch, reply.clone()));
        Ok(reply)
    }

    async fn expect(&self, products: u64) -> Result<(), LedgerError> {
        self.lock().expected = Some(products);
        Ok(())
    }

    async fn seal(&self, _scan: u64, _batches: u64, rejected: u64) -> Result<(), LedgerError> {
        let mut inner = self.lock();
        let counts = inner.scan.get_or_insert_default();
        counts.sealed = true;
        counts.rejected = rejected;
        Ok(())
    }

    async fn claim(
        &self,
        product: IdHash,
        token: &ClaimToken,
        _lease: Duration,
    ) -> Result<Claim, LedgerError> {
        let mut inner = self.lock();
        if inner.state(&product) != State::Open {
            return Ok(Claim::Done);
        }
        if let Some(answer) = inner.answers.get(&product) {
            return Ok(Claim::Answered(answer.clone()));
        }
        match inner.claims.get(&product) {
            Some(held) if held.token != token => Ok(Claim::Busy),
            Some(_) => Ok(Claim::Granted(inner.note_claim(product))),
            None => {
                let grant = inner.note_claim(product);
                let (token, lost_calls) = (token.to_owned(), grant.lost_calls);
                inner.claims.insert(product, Held { token, lost_calls, ..Held::default() });
                Ok(Claim::Granted(grant))
            }
        }
    }

    async fn renew(&self, _claims: &[(IdHash, String)], _lease: Duration) -> Result<(), LedgerError> {
        Ok(())
    }

    /// Each product has one task here, which knows what was spent.
    async fn release(
        &self,
        product: IdHash,
        token: &ClaimToken,
        _: &Spent,
        cost: Money,
    ) -> Result<bool, LedgerError> {
        let mut inner = self.lock();
        let is_held = inner.is_held_by(&product, token);
        if is_held {
            inner.end_claim(&product, Some(cost));
            inner.note_rest(&product);
        }
        Ok(is_held)
    }

    async fn abandon(&self, claims: &[(IdHash, String)]) -> Result<(), LedgerError> {
        let mut inner = self.lock();
        for (product, token) in claims {
            if inner.is_held_by(product, token) {
                inner.end_claim(product, None);
                inner.note_rest(product);
            }
        }
        Ok(())
    }

    async fn halt(&self, halt: &Halt) -> Result<(), LedgerError> {
        self.lock().halt.get_or_insert_with(|| halt.clone());
        Ok(())
    }

    async fn halted(&self) -> Result<Option<Halt>, LedgerError> {
        Ok(self.lock().halt.clone())
    }

    async fn spent_at_least(&self, spent: Money) -> Result<(), LedgerError> {
        let mut inner = self.lock();
        inner.money_spent = inner.money_spent.max(spent);
        Ok(())
    }

    /// No claim runs out here, so that none is late.
    async fn put_answer(
        &self,
        product: IdHash,
        token: &ClaimToken,
        outcome: &Outcome,
        cost: Money,
        late: Option<u32>,
    ) -> Result<Kept, LedgerError> {
        let copy = outcome.clone();
        let mut inner = self.lock();
        let is_held = inner.is_held_by(&product, token);
        if is_held {
            inner.end_claim(&product, Some(cost));
        }
        // No call is under way any more: what ends the process from here on is not the product.
        inner.note_answer(&product);
        // Who holds a claim has an open product: a record ends it.
        let state = if is_held { State::Open } else { inner.state(&product) };
        match state {
            State::Completed => return Ok(Kept::Done),
            State::Failed => {}
            State::Open => {
                if let (Some(Outcome::Failed(_)), Outcome::Completed(_), Some(_)) =
                    (inner.answers.get(&product), outcome, late)
                {
                    inner.answers.remove(&product);
                }
                match inner.answers.entry(product) {
                    hash_map::Entry::Vacant(place) => _ = place.insert(copy),
                    hash_map::Entry::Occupied(kept) if kept.get().encode() == outcome.encode() => {}
                    hash_map::Entry::Occupied(kept) => return Ok(Kept::Earlier(kept.get().clone())),
                }
            }
        }
        Ok(Kept::Yes)
    }

    async fn ask_prompt(
        &self,
        prompt: &PromptKey,
        (product, token): (IdHash, &ClaimToken),
    ) -> Result<PromptTurn, LedgerError> {
        Ok(self.lock().ask_prompt(prompt, product, token))
    }

    async fn keep_prompt_answer(&self, prompt: &PromptKey, answer: &PromptAnswer) -> Result<(), LedgerError> {
        if let Some(prompts) = &mut self.lock().prompts {
            prompts.keep(prompt, answer);
        }
        Ok(())
    }

    async fn claimed(&self) -> Result<u64, LedgerError> {
        Ok(self.lock().claims.len() as u64)
    }

    async fn answered(&self) -> Result<u64, LedgerError> {
        Ok(self.lock().answers.len() as u64)
    }

    async fn begin_call(
        &self,
        (product, token): (IdHash, &ClaimToken),
        call: &Call,
        limits: &Limits,
    ) -> Result<Turn, LedgerError> {
        let turn = self.take_turn(product, token, call, limits);
        if turn == Turn::Now {
            // What is begun at the same time is noted with the same write.
            tokio::task::yield_now().await;
            self.lock().write_notes();
        }
        Ok(turn)
    }

    async fn end_call(
        &self,
        (product, token): (IdHash, &ClaimToken),
        cost: Money,
    ) -> Result<(), LedgerError> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let held = inner.claims.get_mut(&product).filter(|held| held.token == token);
        if let Some(held) = held.filter(|held| held.hold > Money::ZERO) {
            inner.money_held = inner.money_held.less(held.hold);
            inner.money_spent = inner.money_spent.plus(cost);
            held.hold = Money::ZERO;
        }
        Ok(())
    }

    async fn permits(&self, ask: &Ask<'_>) -> Result<Permits, LedgerError> {
        let now_ms = self.now_ms();
        Ok(self.lock().pace.permits(now_ms, ask))
    }

    async fn refused(&self, lane: &str, refusal: &RateRefusal) -> Result<(), LedgerError> {
        let now_ms = self.now_ms();
        self.lock().pace.refused(now_ms, lane, refusal);
        Ok(())
    }

    async fn dialects(&self, servers: &[String]) -> Result<Vec<Dialect>, LedgerError> {
        let inner = self.lock();
        Ok(servers.iter().map(|server| inner.dialects.get(server).copied().unwrap_or_default()).collect())
    }

    async fn keep_dialect(&self, server: &str, dialect: Dialect) -> Result<(), LedgerError> {
        self.lock().dialects.insert(server.to_owned(), dialect);
        Ok(())
    }

    async fn states(&self, products: &[IdHash]) -> Result<(Option<JournalMark>, Vec<State>), LedgerError> {
        let inner = self.lock();
        let states = products.iter().map(|product| inner.state(product)).collect();
        Ok((inner.journal.clone(), states))
    }

    async fn record(
        &self,
        done: &[Done<'_>],
        before: Option<&JournalMark>,
        after: &JournalMark,
    ) -> Result<bool, LedgerError> {
        let mut inner = self.lock();
        if inner.journal.as_ref() != before && inner.journal.as_ref() != Some(after) {
            return Ok(false);
        }
        for done in done {
            inner.record(done);
            inner.answers.remove(done.hash());
            inner.changes.remove(done.hash());
            inner.end_claim(done.hash(), None);
        }
        inner.note_leave(done);
        inner.journal = Some(after.clone());
        Ok(true)
    }

    async fn journal(&self) -> Result<Option<JournalMark>, LedgerError> {
        Ok(self.lock().journal.clone())
    }

    async fn hold_pen(&self, _: &str, _: Duration) -> Result<Result<(), String>, LedgerError> {
        Ok(Ok(()))
    }

    async fn drop_pen(&self, _: &str) -> Result<(), LedgerError> {
        Ok(())
    }

    async fn report(&self, vitals: &Vitals) -> Result<(), LedgerError> {
        self.lock().vitals = Some(*vitals);
        Ok(())
    }

    async fn tell_pulse(&self, worker: &str, pulse: Option<&Pulse>) -> Result<(), LedgerError> {
        let mut inner = self.lock();
        match pulse {
            Some(pulse) => inner.pulses.insert(worker.to_owned(), (*pulse, Instant::now())),
            None => inner.pulses.remove(worker),
        };
        // Where nothing is begun and nothing recorded, as while the disk is full, answers are noted here.
        inner.write_notes();
        Ok(())
    }

    async fn heard(&self) -> Result<BTreeMap<String, Heard>, LedgerError> {
        // Who tells lives and dies with the ledger.
        let (now, inner) = (Instant::now(), self.lock());
        let heard = |(pulse, at): &(Pulse, Instant)| Heard { pulse: *pulse, version: None, ago: now - *at };
        Ok(inner.pulses.iter().map(|(worker, told)| (worker.clone(), heard(told))).collect())
    }

    async fn progress(&self) -> Result<Progress, LedgerError> {
        let inner = self.lock();
        let failures: Vec<_> = inner
            .failures
            .iter()
            .map(|(class, count)| (*class, *count))
            .filter(|(_, count)| *count > 0)
            .collect();
        Ok(Progress {
            begun: inner.job.is_some(),
            read_until_ms: None,
            expected: inner.expected,
            scan: inner.scan,
            completed: inner.completed,
            failed: failures.iter().map(|(_, count)| count).sum(),
            failures,
            vitals: inner.vitals,
            pulse: None,
            halt: inner.halt.clone(),
        })
    }
}
