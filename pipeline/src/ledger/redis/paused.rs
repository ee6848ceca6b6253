//! Whether the fleet pauses, for people who ask. Reads, and takes no place in the pace.

use std::time::Duration;

use super::RedisLedger;
use crate::ledger::LedgerError;

impl RedisLedger {
    /// For how much longer nobody calls, because the provider asked for it; zero where nothing is paused.
    pub async fn paused_for(&self) -> Result<Duration, LedgerError> {
        let mut pipe = redis::pipe();
        pipe.cmd("TIME").hget(&self.keys.pace, "paused_until_ms");
        let pipe = &pipe;
        let ((seconds, micros), until_ms): ((u64, u64), Option<u64>) =
            self.connection.run(|mut manager| async move { pipe.query_async(&mut manager).await }).await?;
        let now_ms = seconds * 1_000 + micros / 1_000;
        Ok(Duration::from_millis(until_ms.unwrap_or(0).saturating_sub(now_ms)))
    }
}
