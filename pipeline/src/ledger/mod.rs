//! Knows of every product whether it is open, claimed, answered, completed or failed.
//!
//! ```text
//!   admit            claim               put_answer             record
//! ────────▶ open ──────────▶ claimed ─────────────▶ answered ─────────▶ completed | failed
//!             ▲                 │ release, or the lease runs out
//!             └─────────────────┘
//! ```
//!
//! What both implementations guarantee, and the contract suite checks of both:
//! - Of many who claim a product one is granted it, until it releases the claim or stops renewing it.
//! - Once an answer is put, no claim on the product is granted again: a claimant gets the answer.
//! - `completed` and `failed` are told only of products whose line is on disk; `completed` never ends.
//! - Every call may be made again with the same arguments after its reply was lost, and changes nothing more.
//!
//! A lost Redis is the ledger's to mend: calls wait, they do not fail, until the stopper aborts.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    failure::FailureClass,
    identity::{IdHash, PromptKey},
    job::{Job, Limits},
    message::{Outcome, Spent},
    money::Money,
};

mod claims;
mod dialect;
mod embedded;
mod error;
mod halt;
mod pace;
mod prompts;
mod pulse;
mod redis;
mod version;

pub use claims::{Call, Claim, ClaimToken, Grant, Kept, Turn};
pub use dialect::Dialect;
pub use embedded::EmbeddedLedger;
pub use error::LedgerError;
pub use halt::{Halt, HaltCause};
pub use pace::{Ask, Bucket, HORIZON_MS, Permits, RateRefusal};
pub use prompts::{PromptAnswer, PromptTurn};
pub use pulse::{Heard, Pulse};
pub use redis::{AtWork, FailedProduct, Paused, RedisConfig, RedisLedger};
pub use version::Version;

/// What the producer is to do with a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Publish a task.
    Open {
        /// What was spent on it before it was put back.
        spent: Spent,
    },
    /// The id came before in this scan.
    Duplicate,
    /// It has its line in the journal.
    Completed,
    /// It has its line in the failures.
    Failed,
}

/// Where a product stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Not known, or on its way.
    #[default]
    Open,
    /// It has its line in the journal.
    Completed,
    /// It has its line in the failures.
    Failed,
}

/// A product whose line is on disk.
#[derive(Clone, Debug)]
pub enum Done<'a> {
    /// In the journal.
    Completed(IdHash),
    /// In the failures.
    Failed {
        /// Which product.
        hash: IdHash,
        /// Why.
        class: FailureClass,
        /// The line of the failures, from which it can be put back.
        line: &'a str,
        /// The line may be an old one: a product that was put back since is left alone.
        is_told_again: bool,
    },
}

impl Done<'_> {
    /// Which product.
    #[must_use]
    pub const fn hash(&self) -> &IdHash {
        match self {
            Self::Completed(hash) | Self::Failed { hash, .. } => hash,
        }
    }
}

/// How a run's job relates to the one it began with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    /// The run is new, or its job asks the same question.
    Accepted,
    /// The job asks another question than the run began with, and that was not accepted. Nothing was stored.
    Changed {
        /// Which parts differ.
        differences: Vec<&'static str>,
    },
}

/// How far a journal was written when the ledger was last told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalMark {
    /// Which journal: the identity its folder was given.
    pub journal: String,
    /// Where it is, for people.
    pub place: String,
    /// Up to here every line of the journal is known to the ledger.
    pub size_bytes: u64,
    /// Up to here every line of the failures is.
    pub failures_bytes: u64,
    /// Of which edition of the failures that is: they are rewritten when a run ends.
    #[serde(default, skip_serializing_if = "is_first")]
    pub failures_edition: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if passes a reference")]
const fn is_first(edition: &u64) -> bool {
    *edition == 0
}

/// Counts of one reading of the input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ScanCounts {
    /// Which scan; later scans have higher numbers.
    pub scan: u64,
    /// Whether the input was read to its end.
    pub sealed: bool,
    /// Products seen in it so far.
    pub total: u64,
    /// Of these, completed.
    pub completed: u64,
    /// Of these, failed.
    pub failed: u64,
    /// Records that are no product; known when sealed.
    pub rejected: u64,
}

impl ScanCounts {
    /// Whether the input was read to its end and every product of it has its line.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.sealed && self.completed + self.failed >= self.total
    }
}

/// How far a run is.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Progress {
    /// Whether the ledger knows the run: a producer has begun it, and it was not emptied since.
    pub begun: bool,
    /// Until when a producer has the right to read, between processes; one that reads renews it all the time.
    pub read_until_ms: Option<u64>,
    /// Products in the input, where known before its end is reached; an estimate until the scan is sealed.
    pub expected: Option<u64>,
    /// The latest reading of the input.
    pub scan: Option<ScanCounts>,
    /// Lines in the journal.
    pub completed: u64,
    /// Lines in the failures.
    pub failed: u64,
    /// Failures by class.
    pub failures: Vec<(FailureClass, u64)>,
    /// What the aggregator said last.
    pub vitals: Option<Vitals>,
    /// What the workers do, all together, where somebody asked.
    pub pulse: Option<Pulse>,
    /// Why nobody calls, where the run has paused by itself.
    pub halt: Option<Halt>,
}

impl Progress {
    /// Products of the input: known when sealed, expected before.
    #[must_use]
    pub fn total(&self) -> Option<u64> {
        match &self.scan {
            Some(scan) if scan.sealed => Some(scan.total),
            _ => self.expected,
        }
    }

    /// Products of the input that are done; before a scan is sealed, all that are done.
    #[must_use]
    pub fn done(&self) -> (u64, u64) {
        match &self.scan {
            Some(scan) if scan.sealed => (scan.completed, scan.failed),
            _ => (self.completed, self.failed),
        }
    }
}

/// What only the aggregator can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Vitals {
    /// Products a second, of late.
    pub products_per_second: f64,
    /// US dollars so far, as far as prices are known.
    pub cost_usd: Option<f64>,
}

/// The memory of one run.
#[async_trait]
pub trait Ledger: Send + Sync {
    /// The job of the run; `None` before a producer has begun it.
    async fn job(&self) -> Result<Option<Job>, LedgerError>;
    /// Gives the run its job, unless it has one that asks another question and `accept_changed` is not set. A run that
    /// has paused by itself goes on; one that a person has paused does not.
    async fn begin(&self, job: &Job, accept_changed: bool) -> Result<Begun, LedgerError>;

    /// The right to read the input, and the number of the reading; `None` while another producer has it.
    async fn begin_scan(&self, producer: &str) -> Result<Option<u64>, LedgerError>;
    /// Keeps the right while nothing is admitted.
    async fn keep_scan(&self, scan: u64) -> Result<(), LedgerError>;
    /// Gives the right back before the end of the input.
    async fn drop_scan(&self, scan: u64) -> Result<(), LedgerError>;
    /// Registers products of the input; `batch` numbers the calls of a scan, from 1. Refused where the ledger does not
    /// know of the batch before: it was set back, and the scan would be sealed with too small a total.
    async fn admit(&self, scan: u64, batch: u64, products: &[IdHash]) -> Result<Vec<Admission>, LedgerError>;
    /// Tells how many products the input seems to have.
    async fn expect(&self, products: u64) -> Result<(), LedgerError>;
    /// The input was read to its end, in so many batches, and every task of it is with the broker.
    async fn seal(&self, scan: u64, batches: u64, rejected: u64) -> Result<(), LedgerError>;

    /// Asks for a product.
    async fn claim(&self, product: IdHash, token: &ClaimToken, lease: Duration)
    -> Result<Claim, LedgerError>;
    /// Keeps claims while their calls run; one that was lost meanwhile is left alone.
    async fn renew(&self, claims: &[(IdHash, String)], lease: Duration) -> Result<(), LedgerError>;
    /// Pauses the run; the first reason counts.
    async fn halt(&self, halt: &Halt) -> Result<(), LedgerError>;
    /// Why the run has paused by itself, where it has.
    async fn halted(&self) -> Result<Option<Halt>, LedgerError>;
    /// What is on disk has cost so much: for a ledger that has forgotten what was spent.
    async fn spent_at_least(&self, spent: Money) -> Result<(), LedgerError>;

    /// Gives a claim up, and remembers what was spent on the product: it may have other tasks than this one. What is
    /// known of earlier claims that ran out stays known. `cost` is what this claim's last call has cost. Returns whether the
    /// claim was held: of one that was lost, the ledger counts the calls already (and of one whose reply was lost, it
    /// remembers them).
    async fn release(
        &self,
        product: IdHash,
        token: &ClaimToken,
        spent: &Spent,
        cost: Money,
    ) -> Result<bool, LedgerError>;
    /// Gives up claims whose calls were cut off by an end in good order: the calls are lost, and are no evidence against
    /// the product. The last word of a role: tried once and for a moment, whether or not the process is ending.
    async fn abandon(&self, claims: &[(IdHash, String)]) -> Result<(), LedgerError>;
    /// Keeps an answer until it is on disk; the first one counts. One whose claim was lost is kept only where its line
    /// tells of what others did: `late` is of how many calls ([`Kept::Late`], both of its numbers) the reply before told. `cost` is what this claim's
    /// last call has cost.
    async fn put_answer(
        &self,
        product: IdHash,
        token: &ClaimToken,
        outcome: &Outcome,
        cost: Money,
        late: Option<u32>,
    ) -> Result<Kept, LedgerError>;
    /// Asks for the answer to a prompt; whoever is to ask the model for it holds the prompt as long as its product's claim.
    async fn ask_prompt(
        &self,
        prompt: &PromptKey,
        claim: (IdHash, &ClaimToken),
    ) -> Result<PromptTurn, LedgerError>;
    /// Keeps the answer to a prompt for all other products that have it; the first one counts.
    async fn keep_prompt_answer(&self, prompt: &PromptKey, answer: &PromptAnswer) -> Result<(), LedgerError>;
    /// How many claims are held now.
    async fn claimed(&self) -> Result<u64, LedgerError>;
    /// How many answers are not on disk yet.
    async fn answered(&self) -> Result<u64, LedgerError>;
    /// A call is about to be made under this claim: notes it, and holds what it can cost.
    async fn begin_call(
        &self,
        claim: (IdHash, &ClaimToken),
        call: &Call,
        limits: &Limits,
    ) -> Result<Turn, LedgerError>;
    /// The last call under this claim has ended and has cost so much, and the product is not done: what the call held is free
    /// for others. (Where the claim ends, too, that is done with it.)
    async fn end_call(&self, claim: (IdHash, &ClaimToken), cost: Money) -> Result<(), LedgerError>;
    /// Takes places in the fleet's pace. (A request whose reply was lost took some that nobody uses.)
    async fn permits(&self, ask: &Ask<'_>) -> Result<Permits, LedgerError>;
    /// The provider has refused a call for its rate, and wants to be left alone for a while: nobody calls there.
    async fn refused(&self, lane: &str, refusal: &RateRefusal) -> Result<(), LedgerError>;
    /// What is known of each of these servers, by the names that [`Ledger::keep_dialect`] was given.
    async fn dialects(&self, servers: &[String]) -> Result<Vec<Dialect>, LedgerError>;
    /// Remembers for the run what was found out about a server.
    async fn keep_dialect(&self, server: &str, dialect: Dialect) -> Result<(), LedgerError>;

    /// Where products stand, and what the ledger knows of the journal at that moment.
    async fn states(&self, products: &[IdHash]) -> Result<(Option<JournalMark>, Vec<State>), LedgerError>;
    /// The lines of these products are on disk, up to the mark `after`. Refused (`false`, and nothing is recorded)
    /// where the ledger's mark is not `before`: it has forgotten something, or somebody else writes.
    async fn record(
        &self,
        done: &[Done<'_>],
        before: Option<&JournalMark>,
        after: &JournalMark,
    ) -> Result<bool, LedgerError>;
    /// What the ledger was last told of a journal.
    async fn journal(&self) -> Result<Option<JournalMark>, LedgerError>;
    /// The right to write the results, for as long as `lease`; `Err(holder)` while another has it.
    async fn hold_pen(&self, aggregator: &str, lease: Duration) -> Result<Result<(), String>, LedgerError>;
    /// Gives the right to write back.
    async fn drop_pen(&self, aggregator: &str) -> Result<(), LedgerError>;
    /// What a worker does, for those who watch; nothing when it ends.
    async fn tell_pulse(&self, worker: &str, pulse: Option<&Pulse>) -> Result<(), LedgerError>;
    /// What each worker does that was heard of lately, and when that was.
    async fn heard(&self) -> Result<BTreeMap<String, Heard>, LedgerError>;
    /// What each worker does that was heard of lately.
    async fn pulses(&self) -> Result<BTreeMap<String, Pulse>, LedgerError> {
        Ok(self.heard().await?.into_iter().map(|(worker, heard)| (worker, heard.pulse)).collect())
    }
    /// For those who watch.
    async fn report(&self, vitals: &Vitals) -> Result<(), LedgerError>;
    /// How far the run is.
    async fn progress(&self) -> Result<Progress, LedgerError>;
}
