//! Which builds work together in a fleet: a rolling upgrade has two at a time.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::message::{VERSION, VERSION_WITH_CHANGES};

/// A build, as it tells others of the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Of the package.
    pub version: String,
    /// The newest messages that it reads and writes.
    pub wire: u32,
    /// The oldest messages that it reads.
    pub reads_from: u32,
}

impl Version {
    /// This build's.
    #[must_use]
    pub fn own() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            wire: VERSION_WITH_CHANGES,
            reads_from: VERSION,
        }
    }

    /// Whether there are messages that both read.
    #[must_use]
    pub const fn works_with(&self, other: &Self) -> bool {
        self.wire >= other.reads_from && other.wire >= self.reads_from
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_that_have_no_messages_in_common_do_not_work_together() {
        let build = |reads_from, wire| Version { version: String::new(), wire, reads_from };
        assert!(Version::own().works_with(&Version::own()));
        assert!(build(1, 2).works_with(&build(2, 3)) && build(2, 3).works_with(&build(1, 2)));
        assert!(!build(1, 2).works_with(&build(3, 3)) && !build(3, 3).works_with(&build(1, 2)));
    }
}
