//! What the embedded ledger holds, and the changes that keep its counts right.

use std::collections::{BTreeMap, HashMap};

use tokio::time::Instant;

use super::{
    inflight::Inflight,
    prompts::Prompts,
    table::{Entry, Table},
};
use crate::{
    changes::Changes,
    failure::FailureClass,
    identity::{ByProduct, IdHash, PromptKey},
    job::Job,
    ledger::{
        Admission, ClaimToken, Dialect, Done, Grant, Halt, JournalMark, PromptTurn, Pulse, ScanCounts, State,
        Vitals, pace::Pace,
    },
    message::{Outcome, Spent},
    money::Money,
};

#[derive(Debug, Default)]
pub(super) struct Inner {
    pub(super) job: Option<Job>,
    pub(super) table: Table,
    pub(super) claims: ByProduct<Held>,
    pub(super) answers: ByProduct<Outcome>,
    pub(super) spent: ByProduct<Spent>,
    pub(super) changes: ByProduct<Changes>,
    pub(super) dialects: HashMap<String, Dialect>,
    pub(super) inflight: Option<(Inflight, String)>,
    pub(super) inflight_told: bool,
    pub(super) prompts: Option<Prompts>,
    /// Prompts that the model is being asked, and for which product; each is in that one's claim, too, and goes with it.
    pub(super) asking: HashMap<PromptKey, IdHash>,
    pub(super) pace: Pace,
    pub(super) pulses: BTreeMap<String, (Pulse, Instant)>,
    pub(super) scan: Option<ScanCounts>,
    pub(super) scans_after: u64,
    pub(super) last_batch: Option<(u64, Vec<Admission>)>,
    pub(super) completed: u64,
    pub(super) failures: BTreeMap<FailureClass, u64>,
    pub(super) expected: Option<u64>,
    pub(super) journal: Option<JournalMark>,
    pub(super) vitals: Option<Vitals>,
    pub(super) halt: Option<Halt>,
    pub(super) money_spent: Money,
    pub(super) money_held: Money,
}

/// A claim.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) token: String,
    pub(super) begun: u32,
    pub(super) hold: Money,
    /// Calls of earlier processes that were cut off, and whose cost is not counted yet.
    pub(super) lost_calls: u32,
    /// The prompt that it asks the model, for all products that have it.
    pub(super) prompt: Option<PromptKey>,
}

impl Inner {
    /// Ends a claim; `cost` is what its last call has cost, where that is known.
    pub(super) fn end_claim(&mut self, product: &IdHash, cost: Option<Money>) {
        let Some(held) = self.claims.remove(product) else { return };
        if let Some(prompt) = held.prompt {
            self.asking.remove(&prompt);
        }
        if held.hold > Money::ZERO {
            self.money_held = self.money_held.less(held.hold);
            self.money_spent = self.money_spent.plus(cost.unwrap_or(held.hold));
        }
    }

    /// Whoever holds no claim may ask: it is told so when it begins its call.
    pub(super) fn ask_prompt(
        &mut self,
        prompt: &PromptKey,
        product: IdHash,
        token: &ClaimToken,
    ) -> PromptTurn {
        let answer = self.prompts.as_mut().and_then(|prompts| prompts.answer(prompt));
        let held = self.claims.get_mut(&product).filter(|held| held.token == token);
        if let Some(answer) = answer {
            // No call is begun that would count what those cut off can have cost.
            for _ in 0..held.map_or(0, |held| std::mem::take(&mut held.lost_calls)) {
                self.money_spent = self.money_spent.plus(answer.most);
            }
            return PromptTurn::Answered(answer);
        }
        if self.asking.get(prompt).is_some_and(|holder| *holder != product) {
            return PromptTurn::Busy;
        }
        if let Some(held) = held {
            if let Some(other) = held.prompt.replace(*prompt) {
                self.asking.remove(&other);
            }
            self.asking.insert(*prompt, product);
        }
        PromptTurn::Ask
    }

    pub(super) fn is_held_by(&self, product: &IdHash, token: &ClaimToken) -> bool {
        self.claims.get(product).is_some_and(|held| held.token == token)
    }

    pub(super) fn note_claim(&mut self, product: IdHash) -> Grant {
        let changes = self.changes.get(&product).cloned();
        let Some((inflight, _)) = &mut self.inflight else { return Grant { changes, ..Grant::default() } };
        let (grant, noted) = inflight.claim(product);
        self.forgive(noted);
        Grant { changes, ..grant }
    }

    /// In the file once [`Self::write_notes`] was called.
    pub(super) fn note_call(&mut self, product: &IdHash, number: u32) {
        if let Some((inflight, _)) = &mut self.inflight {
            inflight.call(product, number);
        }
    }

    /// The product's call has come to an answer. Noted with the next call, or with the product's line.
    pub(super) fn note_answer(&mut self, product: &IdHash) {
        if let Some((inflight, _)) = &mut self.inflight {
            inflight.rest(product);
        }
    }

    /// Nobody is at the product.
    pub(super) fn note_rest(&mut self, product: &IdHash) {
        self.note_answer(product);
        self.write_notes();
    }

    /// Brings what was noted into the file.
    pub(super) fn write_notes(&mut self) {
        let noted = self.inflight.as_mut().map_or(Ok(()), |(inflight, _)| inflight.write());
        self.forgive(noted);
    }

    pub(super) fn note_leave(&mut self, done: &[Done<'_>]) {
        let Some((inflight, _)) = &mut self.inflight else { return };
        for done in done {
            inflight.leave(done.hash());
        }
        let noted = inflight.write();
        self.forgive(noted);
    }

    /// Not worth the calls under way: what is lost with the file is a count.
    pub(super) fn forgive(&mut self, noted: std::io::Result<()>) {
        let (Err(error), Some((_, file))) = (noted, &self.inflight) else { return };
        if !std::mem::replace(&mut self.inflight_told, true) {
            tracing::warn!(
                file,
                %error,
                "cannot note which calls are under way; were this process killed, the summary's count of repeated calls \
                 would be wrong, and nothing else"
            );
        }
    }

    pub(super) fn state(&self, product: &IdHash) -> State {
        self.table.get(product).map_or(State::Open, |entry| entry.state)
    }

    pub(super) fn record(&mut self, done: &Done<'_>) {
        let known = self.table.get(done.hash()).unwrap_or_default();
        let (state, class) = match done {
            Done::Completed(_) => (State::Completed, None),
            Done::Failed { class, .. } => (State::Failed, Some(*class)),
        };
        if known.state == State::Completed || known.state == state {
            return;
        }
        self.table.set(done.hash(), Entry { state, class, ..known });
        if let Some(class) = class {
            *self.failures.entry(class).or_default() += 1;
        }
        if let Some(count) = known.class.and_then(|class| self.failures.get_mut(&class)) {
            *count -= 1;
        }
        self.completed += u64::from(state == State::Completed);
        if let Some(scan) = self.scan.as_mut().filter(|_| known.seen) {
            scan.completed += u64::from(state == State::Completed);
            scan.failed += u64::from(state == State::Failed);
            scan.failed -= u64::from(known.state == State::Failed);
        }
    }
}
