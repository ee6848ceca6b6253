//! Who has a product, whether a call may begin, and what becomes of its answer.

use std::time::Duration;

use crate::{
    changes::Changes,
    message::{Outcome, Spent},
    money::Money,
};

/// Who claims: unique for every claim, so that a repeated request is told from a second claimant.
pub type ClaimToken = str;

/// What a worker that asks for a product gets.
#[derive(Debug)]
pub enum Claim {
    /// The product is completed or failed.
    Done,
    /// The product was answered; what is left is to say so.
    Answered(Outcome),
    /// Somebody else is at it.
    Busy,
    /// Go on.
    Granted(Grant),
}

/// What became of a product's earlier claims.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Grant {
    /// Claims that ran out after a call was begun, because whoever held them died or was not heard of.
    pub lost_claims: u32,
    /// Calls that were begun under those: they are made again.
    pub lost_calls: u32,
    /// What had been spent on the product when it was last given back, by whichever of its tasks.
    pub spent: Spent,
    /// How it is asked otherwise than the job says, whatever its task says; `None`: the ledger does not know of it having
    /// been put back.
    pub changes: Option<Changes>,
}

/// Whether a call may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Now; the ledger has noted it.
    Now,
    /// Ask again then, with [`Ledger::begin_call`].
    After(Duration),
    /// Not at all: the claim ran out, and the product may be somebody else's.
    Lost,
    /// Not at all: the run has paused by itself.
    Halted,
    /// Not at all: whatever calls under way turn out to cost, this one might exceed the budget.
    OverBudget,
}

/// A call that is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Which one it is under its claim, from 1.
    pub number: u32,
    /// What it can cost at most; held until the next one is asked for, or the claim ends.
    pub most: Money,
    /// What the one before it under this claim has cost.
    pub before: Money,
    /// The one before it is still under way, and keeps what it holds: this one is made beside it.
    pub is_beside: bool,
}

/// What became of an answer.
#[derive(Debug)]
pub enum Kept {
    /// It is kept.
    Yes,
    /// Another was there before: that one is to be told. (A failure is replaced by a result.)
    Earlier(Outcome),
    /// The product has its result already: nobody waits for the answer.
    Done,
    /// Not yet: the claim had run out, and others may have worked on the product since. It is kept when it is put again,
    /// with a line that tells of them, and they have not gone on meanwhile.
    Late {
        /// Calls begun by those whose claims ran out and by who has the product now, and not in `spent`.
        calls: u32,
        /// What had been spent on the product when it was last given back.
        spent: Spent,
    },
}
