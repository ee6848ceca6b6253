//! How a process ends: its exit code, and what is said about an error.

use std::process::ExitCode;

use shelfmill_aggregator::{FolderError, Status, Summary};
use shelfmill_pipeline::{
    broker::BrokerError,
    job::{JobProblems, UnpricedBudget},
    ledger::LedgerError,
};
use shelfmill_producer::{StrictReject, input::InputError};
use shelfmill_worker::{BadBaseUrl, NoKey};

use crate::foreign;

pub(crate) const DONE: u8 = 0;
pub(crate) const ERROR: u8 = 1;
pub(crate) const USAGE: u8 = 2;
pub(crate) const DONE_WITH_FAILURES: u8 = 3;
pub(crate) const PAUSED: u8 = 4;
pub(crate) const INTERRUPTED: u8 = 130;

/// A mistake of whoever called: told as it is, without a chain.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// Tells an error once, with its causes, and gives the code it ends with.
pub(crate) fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {}", foreign::lines(&format!("{error:#}")));
    ExitCode::from(code_of(error))
}

fn code_of(error: &anyhow::Error) -> u8 {
    let usage = error.chain().any(|cause| {
        cause.is::<Usage>()
            || cause.is::<JobProblems>()
            || cause.is::<StrictReject>()
            || cause.is::<NoKey>()
            || cause.is::<UnpricedBudget>()
            || cause.is::<BadBaseUrl>()
            || matches!(cause.downcast_ref(), Some(FolderError::OtherRun { .. }))
            || cause.downcast_ref::<InputError>().is_some_and(InputError::is_usage)
    });
    let aborted = error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(BrokerError::Aborted))
            || matches!(cause.downcast_ref(), Some(LedgerError::Aborted))
    });
    match (usage, aborted) {
        (true, _) => USAGE,
        // The grace ran out while a server was waited for that is not there.
        (false, true) => INTERRUPTED,
        (false, false) => ERROR,
    }
}

/// How a run that wrote its summary ends.
pub(crate) fn of_summary(summary: &Summary) -> ExitCode {
    ExitCode::from(match summary.status {
        Status::Interrupted => INTERRUPTED,
        Status::Paused => PAUSED,
        Status::Complete if summary.counts.failed > 0 => DONE_WITH_FAILURES,
        Status::Complete => DONE,
    })
}
