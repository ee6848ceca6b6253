//! The order of every role's steps, as data, so that a test can swap two of them and see the promise break.
//!
//! The steps bear the names of the crash points in the code (`pipeline/src/crash.rs`): a crash *at* a point is a crash
//! after the step of that name and before the next.

use super::ledger::Rules;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ProducerStep {
    Begin,
    /// `producer.admitted`
    Admit(u8),
    /// `producer.published`: confirmed.
    Publish(u8),
    /// After `producer.sealing`.
    Seal,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum WorkerStep {
    /// `worker.claimed`
    Claim,
    /// `worker.called`: the call is noted in the claim.
    Begin,
    /// `worker.answered`
    Call,
    /// `worker.kept`: the answer is in the ledger.
    Keep,
    /// The outcome is on its way, and nobody knows whether it arrived.
    Send,
    /// `worker.told`: the outcome is confirmed.
    Tell,
    /// The claim is given up, and the ledger knows what was spent.
    Release,
    /// `worker.delayed`: the task is in a delay queue, confirmed.
    Delay,
    /// The task is acknowledged.
    Ack,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum WriterStep {
    /// Which of the batch are written already.
    Ask,
    /// `aggregator.appended`
    Append,
    /// `aggregator.synced`
    Sync,
    /// `aggregator.recorded`
    Record,
    /// `aggregator.acked`
    Ack,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FinalStep {
    /// `aggregator.finalizing`: which failures are no longer failures.
    Stale,
    /// The failures are rewritten without them.
    Failures,
    /// `aggregator.renamed`: results and summary are there.
    Results,
    /// The mark follows the failures' new length.
    Tell,
}

/// What the roles do, and in which order.
#[derive(Clone, Debug)]
pub(super) struct Protocol {
    /// From the first product to the last.
    pub(super) producer: Vec<ProducerStep>,
    /// Once granted: up to the verdict.
    pub(super) asked: Vec<WorkerStep>,
    /// With an answer or a final failure.
    pub(super) analysed: Vec<WorkerStep>,
    /// With a verdict that asks for another try, or stopped before the call: what was spent is safe in the ledger before
    /// there can be two tasks.
    pub(super) later: Vec<WorkerStep>,
    /// The claim brought an answer.
    pub(super) known: Vec<WorkerStep>,
    /// Somebody else is at it.
    pub(super) busy: Vec<WorkerStep>,
    pub(super) done: Vec<WorkerStep>,
    pub(super) writer: Vec<WriterStep>,
    pub(super) finish: Vec<FinalStep>,
    /// Claims that ran out before a product is given up.
    pub(super) poisoned_after: u8,
    pub(super) ledger: Rules,
    /// Lines that a killed aggregator left are fsynced when its files are opened.
    pub(super) opening_syncs: bool,
    /// Standings are believed only of a ledger whose mark is where the writer left it.
    pub(super) asking_compares_mark: bool,
    /// Lines that are done already are dropped.
    pub(super) asking_drops_done: bool,
    /// So are they when the last files are made.
    pub(super) finishing_compares_mark: bool,
    /// Promises that a result tells every call also where it follows a recorded failure; it does not yet.
    pub(super) counts_are_exact_after_failures: bool,
    /// A late answer takes what was lost before its claim for lost since.
    pub(super) late_answers_tell_losses_twice: bool,
    /// A task whose claim was lost is put off with the calls of that claim, which the ledger counts as lost, too.
    pub(super) lost_claims_keep_calls: bool,
    /// An aggregator without work looks whether the ledger has forgotten something.
    pub(super) idle_compares_mark: bool,
}

impl Protocol {
    /// The order of the code.
    pub(super) fn real(products: u8) -> Self {
        use WorkerStep::{Ack, Begin, Call, Claim, Delay, Keep, Release, Tell};
        let each =
            (0..products).flat_map(|product| [ProducerStep::Admit(product), ProducerStep::Publish(product)]);
        Self {
            producer: [ProducerStep::Begin].into_iter().chain(each).chain([ProducerStep::Seal]).collect(),
            asked: vec![Claim, Begin, Call],
            analysed: vec![Keep, Tell, Ack],
            later: vec![Release, Delay, Ack],
            known: vec![Tell, Ack],
            busy: vec![Delay, Ack],
            done: vec![Ack],
            writer: vec![
                WriterStep::Ask,
                WriterStep::Append,
                WriterStep::Sync,
                WriterStep::Record,
                WriterStep::Ack,
            ],
            finish: vec![FinalStep::Stale, FinalStep::Failures, FinalStep::Results, FinalStep::Tell],
            poisoned_after: 5,
            ledger: Rules::REAL,
            opening_syncs: true,
            asking_compares_mark: true,
            asking_drops_done: true,
            finishing_compares_mark: true,
            counts_are_exact_after_failures: false,
            late_answers_tell_losses_twice: false,
            lost_claims_keep_calls: false,
            idle_compares_mark: true,
        }
    }
}
