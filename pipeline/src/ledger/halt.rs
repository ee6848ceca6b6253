//! A run that has paused. By itself, because going on would burn the catalog or the budget: nobody calls until the run is begun
//! again, by whoever has mended what was wrong. Or because a person has asked for it: until a person lets it go on.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::failure::FailureClass;

/// Why a run has paused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Halt {
    /// What it was.
    pub cause: HaltCause,
    /// What happened and what to do, in one line.
    pub reason: String,
}

/// What pauses a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HaltCause {
    /// The next call could exceed the budget.
    Budget,
    /// The provider refuses the key.
    Key,
    /// The account has no money left.
    Quota,
    /// There is no such model.
    Model,
    /// Too many products fail.
    Failures,
    /// A person has asked for it: until a person lets it go on, roles wait and none ends.
    Asked,
}

impl Halt {
    /// Whether the run waits for a person to let it go on, and for nothing else.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.cause == HaltCause::Asked
    }
}

impl HaltCause {
    /// What a failure says of the whole run, where it does.
    #[must_use]
    pub const fn of(class: FailureClass) -> Option<Self> {
        match class {
            FailureClass::Unauthorized => Some(Self::Key),
            FailureClass::QuotaExhausted => Some(Self::Quota),
            FailureClass::ModelNotFound => Some(Self::Model),
            _ => None,
        }
    }
}

impl fmt::Display for Halt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}
