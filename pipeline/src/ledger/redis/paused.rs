//! Whether the fleet pauses, for people who ask. Reads, and takes no place in the pace.

use std::{collections::HashMap, time::Duration};

use super::RedisLedger;
use crate::ledger::LedgerError;

impl RedisLedger {
    /// For how much longer nobody calls, because providers asked for it; zero where somebody may.
    pub async fn paused_for(&self) -> Result<Duration, LedgerError> {
        let mut pipe = redis::pipe();
        pipe.cmd("TIME").hgetall(&self.keys.pace);
        let pipe = &pipe;
        let ((seconds, micros), facts): ((u64, u64), HashMap<String, String>) =
            self.connection.run(|mut manager| async move { pipe.query_async(&mut manager).await }).await?;
        #[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
        let now_ms = (seconds * 1_000 + micros / 1_000) as f64;
        let fact = |lane: &str, what: &str| facts.get(&format!("{lane}{what}"))?.parse::<f64>().ok();
        // Of a provider that nobody has asked for a while, an old pause says nothing.
        let waits = facts.keys().filter_map(|name| {
            let lane = name.strip_suffix("asked")?;
            Some((fact(lane, "paused").unwrap_or(0.0) - now_ms).max(0.0))
        });
        let least_ms = waits.min_by(f64::total_cmp).unwrap_or(0.0);
        Ok(Duration::try_from_secs_f64(least_ms / 1_000.0).unwrap_or_default())
    }
}
