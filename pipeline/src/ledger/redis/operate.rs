//! What people do to a run that goes on: pause it, let it go on, and remove it. And what its roles tell each other of their
//! versions, for people who upgrade a fleet.

use std::collections::BTreeMap;

use redis::AsyncCommands;

use super::{
    HEARD_WITHIN, RedisLedger,
    keys::BUCKETS,
    reply::{json, ms, parse},
};
use crate::ledger::{Halt, Ledger, LedgerError, Version};

/// Keys removed by one command: a Redis that removes millions of entries at once answers nobody meanwhile.
const KEYS_AT_ONCE: usize = 1_000;

/// What became of a person's wish to pause a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Paused {
    /// Nobody begins a call from now on.
    Now,
    /// A person had paused it.
    Before(Halt),
    /// There is no such run.
    NoRun,
}

/// Who is at work for a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AtWork {
    /// Workers that were heard of lately.
    pub workers: usize,
    /// The aggregator that has the right to write.
    pub aggregator: Option<String>,
    /// The producer that has the right to read.
    pub producer: Option<String>,
}

impl RedisLedger {
    /// A person pauses the run.
    pub async fn pause(&self, halt: &Halt) -> Result<Paused, LedgerError> {
        let reply: Vec<String> = self.invoke(self.scripts.pause.key(&self.keys.run).arg(json(halt))).await?;
        match reply.as_slice() {
            [code] if code == "1" => Ok(Paused::Now),
            [code, halt] if code == "2" => Ok(Paused::Before(parse("halt", halt)?)),
            _ => Ok(Paused::NoRun),
        }
    }

    /// The run goes on, whoever paused it; why it was paused.
    pub async fn resume(&self) -> Result<Option<Halt>, LedgerError> {
        let halt = self.halted().await?;
        let key = &self.keys.run;
        let _removed: u64 =
            self.connection.run(|mut manager| async move { manager.hdel(key, "halt").await }).await?;
        Ok(halt)
    }

    /// Tells the version of a role that begins, unless it cannot work with the others, and returns theirs: of `producer` and
    /// `aggregator` the last ones there were, of workers those that were heard of lately.
    pub async fn meet(&self, role: &str) -> Result<BTreeMap<String, Version>, LedgerError> {
        if role != "worker" {
            let own = Version::own();
            let mut meeting = self.scripts.meet.key(&self.keys.roles);
            meeting.key(&self.keys.workers).arg(role).arg(json(&own)).arg(own.wire).arg(own.reads_from);
            let _is_told: bool = self.invoke(meeting.arg(ms(HEARD_WITHIN))).await?;
        }
        let mut versions = self.versions().await?;
        versions.remove(role);
        let workers = self.heard().await?.into_iter();
        versions.extend(workers.filter_map(|(name, heard)| Some((format!("worker {name}"), heard.version?))));
        Ok(versions)
    }

    /// Of the last producer and aggregator there were.
    pub async fn versions(&self) -> Result<BTreeMap<String, Version>, LedgerError> {
        let key = &self.keys.roles;
        let told: BTreeMap<String, String> =
            self.connection.run(|mut manager| async move { manager.hgetall(key).await }).await?;
        told.into_iter().map(|(role, version)| Ok((role, parse("version", &version)?))).collect()
    }

    /// Who is at work for the run.
    pub async fn at_work(&self) -> Result<AtWork, LedgerError> {
        let (facts, workers) = (self.facts().await?, self.heard().await?.len());
        let now_ms = self.now_ms().await?;
        let holder = |who: &str, until: &str| {
            let until_ms: u64 = facts.get(until)?.parse().ok()?;
            (until_ms > now_ms).then(|| facts.get(who).cloned()).flatten()
        };
        Ok(AtWork {
            workers,
            aggregator: holder("pen_by", "pen_until_ms"),
            producer: holder("scan_by", "scan_until_ms").filter(|_| !facts.contains_key("sealed")),
        })
    }

    async fn now_ms(&self) -> Result<u64, LedgerError> {
        let time = redis::cmd("TIME");
        let time = &time;
        let (seconds, micros): (u64, u64) =
            self.connection.run(|mut manager| async move { time.query_async(&mut manager).await }).await?;
        Ok(seconds * 1_000 + micros / 1_000)
    }

    /// Removes every key of the run, a part at a time; how many there were. Can be done again.
    pub async fn purge(&self) -> Result<u64, LedgerError> {
        let mut removed = 0;
        let keys: Vec<String> =
            self.keys.all().into_iter().chain((0..BUCKETS).map(|index| self.keys.bucket_at(index))).collect();
        for keys in keys.chunks(KEYS_AT_ONCE) {
            removed += self
                .connection
                .run(|mut manager| async move { manager.unlink::<_, u64>(keys).await })
                .await?;
        }
        Ok(removed)
    }
}
