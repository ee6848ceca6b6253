//! What was found out of the models' servers: a field of the run for each.

use redis::AsyncCommands;

use super::{RedisLedger, reply::parse};
use crate::ledger::{Dialect, LedgerError};

pub(super) fn field(server: &str) -> String {
    format!("dialect:{server}")
}

impl RedisLedger {
    pub(super) async fn kept_dialects(&self, servers: &[String]) -> Result<Vec<Dialect>, LedgerError> {
        if servers.is_empty() {
            // Redis knows no question about nothing.
            return Ok(Vec::new());
        }
        let fields: Vec<String> = servers.iter().map(|server| field(server)).collect();
        let (key, fields) = (&self.keys.run, &fields);
        let kept: Vec<Option<String>> =
            self.connection.run(|mut manager| async move { manager.hmget(key, fields).await }).await?;
        kept.iter()
            .map(|text| text.as_deref().map_or(Ok(Dialect::default()), |text| parse("dialect", text)))
            .collect()
    }
}
