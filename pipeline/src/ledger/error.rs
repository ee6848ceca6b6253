//! Why the ledger could not do what it was asked.

/// Why the ledger could not do what it was asked. None of these mends itself.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LedgerError {
    /// The URL cannot be read or the login was refused.
    #[error("Redis at {at} refuses the connection: {reason}; look at the user and password in --redis-url")]
    Refused {
        /// Host and port; never the password.
        at: String,
        /// Redis' words.
        reason: String,
    },
    /// A one-shot command could not reach Redis.
    #[error("cannot reach Redis at {at}: {reason}")]
    Unreachable {
        /// Host and port; never the password.
        at: String,
        /// The system's words.
        reason: String,
    },
    /// A command failed for a reason that time does not heal.
    #[error("Redis at {at} cannot do what Shelfmill needs: {reason}")]
    Failed {
        /// Host and port; never the password.
        at: String,
        /// Redis' words.
        reason: String,
    },
    /// The ledger holds something this build cannot read.
    #[error("the ledger's {what} cannot be read; was it written by another version of Shelfmill?")]
    Unreadable {
        /// Which value.
        what: &'static str,
    },
    /// Another producer has taken over the run, because this one was not heard of for too long.
    #[error(
        "another producer has taken over this run, or Redis was set back to an older state; if there is no other \
         producer, run this one again"
    )]
    ScanLost,
    /// Redis was emptied while the input was read.
    #[error(
        "Redis has lost the run: it was emptied while the input was read. Nothing that is done is lost: run the \
         producer again, with the same input"
    )]
    RunLost,
    /// A file of the embedded ledger cannot be written.
    #[error("cannot keep {file}")]
    File {
        /// The file.
        file: String,
        /// The system's words.
        #[source]
        source: std::sync::Arc<std::io::Error>,
    },
    /// The process is ending and does not wait any longer.
    #[error("stopped while waiting for the ledger")]
    Aborted,
}
