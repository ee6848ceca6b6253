//! The ledger between processes: Redis.
//!
//! Every change is one script, so it happens whole or not at all, on the server's clock. All keys of a run
//! share the hash tag `{run}`. Products live in 32 768 hashes by their hash, small enough to stay listpacks up
//! to about 16 million products (some 22 bytes each); a value is a letter (`o` open, `c` completed, `f`
//! failed, `r` failed and put back) and the number of the scan that met the product last.
//!
//! A Redis that is full (`noeviction`) refuses a script before its first write or not at all. Those that the aggregator
//! needs to write lines, and so to free what their answers take, and those that keep what is held, run all the same
//! (`allow-oom`): the fleet pauses, and what was paid for leaves Redis.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use redis::{AsyncCommands, ScriptInvocation};
use serde::{Deserialize, Serialize};

use super::{
    Admission, Begun, Call, Claim, ClaimToken, Dialect, Done, Halt, JournalMark, Kept, Ledger, LedgerError,
    Progress, PromptAnswer, PromptTurn, ScanCounts, State, Turn, Version, Vitals,
    pace::{Ask, Bucket, Permits, RateRefusal},
    pulse::{HEARD_WITHIN, Heard, Pulse},
};
use crate::{
    failure::FailureClass,
    identity::{IdHash, PromptKey},
    job::{Job, JobFingerprint, Limits},
    message::{Outcome, Spent},
    money::Money,
    shutdown::Stopper,
};
use client::Connection;
pub use client::RedisConfig;
pub use failed::FailedProduct;
use keys::{Keys, Scripts};
pub use operate::{AtWork, Paused};
use reply::{json, ms, parse, permits, spent_text};
use steps::Steps;

mod client;
mod dialects;
mod failed;
mod keys;
mod operate;
mod outage;
mod paused;
mod prompts;
mod reply;
mod steps;
mod together;

/// How long a producer may be silent before another may take over.
const SCAN_LEASE: Duration = Duration::from_secs(15);

/// The memory of one run in Redis.
pub struct RedisLedger {
    connection: Arc<Connection>,
    keys: Arc<Keys>,
    scripts: Arc<Scripts>,
    steps: Steps,
}

/// A worker's pulse, and which build it is.
#[derive(Serialize, Deserialize)]
struct Told {
    #[serde(flatten)]
    pulse: Pulse,
    build: Option<Version>,
}

impl RedisLedger {
    /// Checks the configuration; connects when first used.
    pub fn new(config: &RedisConfig, stopper: Stopper) -> Result<Self, LedgerError> {
        Ok(Self {
            connection: Arc::new(Connection::new(config, stopper)?),
            keys: Arc::new(Keys::of(&config.run)),
            scripts: Arc::new(Scripts::new()),
            steps: Steps::default(),
        })
    }

    async fn invoke<T>(&self, script: &ScriptInvocation<'_>) -> Result<T, LedgerError>
    where
        T: redis::FromRedisValue,
    {
        self.connection.run(|mut manager| async move { script.invoke_async(&mut manager).await }).await
    }

    async fn facts(&self) -> Result<HashMap<String, String>, LedgerError> {
        let key = &self.keys.run;
        self.connection.run(|mut manager| async move { manager.hgetall(key).await }).await
    }

    async fn fact(&self, name: &str) -> Result<Option<String>, LedgerError> {
        let key = &self.keys.run;
        self.connection.run(|mut manager| async move { manager.hget(key, name).await }).await
    }

    /// Why the ledger's scan is not the caller's.
    async fn scan_lost(&self) -> Result<LedgerError, LedgerError> {
        Ok(match self.fact("scan").await? {
            Some(_) => LedgerError::ScanLost,
            None => LedgerError::RunLost,
        })
    }

    async fn set_fact(&self, name: &str, value: &str) -> Result<(), LedgerError> {
        let key = &self.keys.run;
        self.connection.run(|mut manager| async move { manager.hset(key, name, value).await }).await
    }
}

#[async_trait]
impl Ledger for RedisLedger {
    async fn job(&self) -> Result<Option<Job>, LedgerError> {
        self.fact("job").await?.map(|text| parse("job", &text)).transpose()
    }

    async fn begin(&self, job: &Job, accept_changed: bool) -> Result<Begun, LedgerError> {
        let own = job.fingerprint();
        let (prompt, schema, model, stored): (String, String, String, bool) = self
            .invoke(
                self.scripts
                    .begin
                    .key(&self.keys.run)
                    .arg(json(job))
                    .arg(&own.prompt)
                    .arg(&own.schema)
                    .arg(&own.model)
                    .arg(if accept_changed { "1" } else { "" })
                    .arg(jiff::Timestamp::now().as_millisecond()),
            )
            .await?;
        if stored {
            return Ok(Begun::Accepted);
        }
        Ok(Begun::Changed { differences: JobFingerprint { prompt, schema, model }.differences(&own) })
    }

    async fn begin_scan(&self, producer: &str) -> Result<Option<u64>, LedgerError> {
        self.invoke(self.scripts.begin_scan.key(&self.keys.run).arg(producer).arg(ms(SCAN_LEASE))).await
    }

    async fn keep_scan(&self, scan: u64) -> Result<(), LedgerError> {
        let kept: bool =
            self.invoke(self.scripts.keep_scan.key(&self.keys.run).arg(scan).arg(ms(SCAN_LEASE))).await?;
        if kept { Ok(()) } else { Err(self.scan_lost().await?) }
    }

    async fn drop_scan(&self, scan: u64) -> Result<(), LedgerError> {
        let _kept: bool = self.invoke(self.scripts.keep_scan.key(&self.keys.run).arg(scan).arg(0)).await?;
        Ok(())
    }

    async fn admit(&self, scan: u64, batch: u64, products: &[IdHash]) -> Result<Vec<Admission>, LedgerError> {
        let mut call = self.scripts.admit.prepare_invoke();
        call.key(&self.keys.run).arg(scan).arg(batch).arg(ms(SCAN_LEASE));
        for product in products {
            call.key(self.keys.bucket(product)).arg(product.as_bytes());
        }
        let letters: Option<String> = self.invoke(&call).await?;
        let Some(letters) = letters else { return Err(self.scan_lost().await?) };
        Ok(letters
            .bytes()
            .map(|letter| match letter {
                b'd' => Admission::Duplicate,
                b'c' => Admission::Completed,
                b'f' => Admission::Failed,
                _ => Admission::Open { spent: Spent::default() },
            })
            .collect())
    }

    async fn expect(&self, products: u64) -> Result<(), LedgerError> {
        self.set_fact("expected", &products.to_string()).await
    }

    async fn seal(&self, scan: u64, batches: u64, rejected: u64) -> Result<(), LedgerError> {
        let sealed: bool =
            self.invoke(self.scripts.seal.key(&self.keys.run).arg(scan).arg(batches).arg(rejected)).await?;
        if sealed { Ok(()) } else { Err(self.scan_lost().await?) }
    }

    async fn claim(
        &self,
        product: IdHash,
        token: &ClaimToken,
        lease: Duration,
    ) -> Result<Claim, LedgerError> {
        self.ask_claim(product, token, lease).await
    }

    async fn renew(&self, claims: &[(IdHash, String)], lease: Duration) -> Result<(), LedgerError> {
        let mut call = self.scripts.renew.prepare_invoke();
        call.key(&self.keys.claims).arg(ms(lease));
        for (product, token) in claims {
            call.arg(product.as_bytes()).arg(token);
        }
        self.invoke(&call).await
    }

    async fn release(
        &self,
        product: IdHash,
        token: &ClaimToken,
        spent: &Spent,
        cost: Money,
    ) -> Result<bool, LedgerError> {
        let mut call = self.scripts.release.prepare_invoke();
        call.key(&self.keys.claims).key(&self.keys.spent).key(&self.keys.pace);
        self.invoke(call.arg(product.as_bytes()).arg(token).arg(spent_text(spent)).arg(cost.nanos())).await
    }

    async fn abandon(&self, claims: &[(IdHash, String)]) -> Result<(), LedgerError> {
        let script = &mut self.scripts.abandon.prepare_invoke();
        script.key(&self.keys.claims).key(&self.keys.pace);
        for (product, token) in claims {
            script.arg(product.as_bytes()).arg(token);
        }
        let script = &*script;
        self.connection.last_word(|mut manager| async move { script.invoke_async(&mut manager).await }).await
    }

    async fn put_answer(
        &self,
        product: IdHash,
        token: &ClaimToken,
        outcome: &Outcome,
        cost: Money,
        late: Option<u32>,
    ) -> Result<Kept, LedgerError> {
        self.keep_answer((product, token), outcome, cost, late).await
    }

    async fn ask_prompt(
        &self,
        prompt: &PromptKey,
        claim: (IdHash, &ClaimToken),
    ) -> Result<PromptTurn, LedgerError> {
        self.turn_of_prompt(prompt, claim).await
    }

    async fn keep_prompt_answer(&self, prompt: &PromptKey, answer: &PromptAnswer) -> Result<(), LedgerError> {
        let mut script = self.scripts.keep_prompt_answer.prepare_invoke();
        script.key(&self.keys.prompts).arg(prompt.as_bytes()).arg(json(answer));
        self.invoke(&script).await
    }

    async fn claimed(&self) -> Result<u64, LedgerError> {
        self.invoke(&self.scripts.claimed.key(&self.keys.claims)).await
    }

    async fn answered(&self) -> Result<u64, LedgerError> {
        let key = &self.keys.answers;
        self.connection.run(|mut manager| async move { manager.hlen(key).await }).await
    }

    async fn begin_call(
        &self,
        claim: (IdHash, &ClaimToken),
        call: &Call,
        limits: &Limits,
    ) -> Result<Turn, LedgerError> {
        self.ask_call(claim, *call, limits.budget_money()).await
    }

    async fn end_call(
        &self,
        (product, token): (IdHash, &ClaimToken),
        cost: Money,
    ) -> Result<(), LedgerError> {
        let mut script = self.scripts.end_call.prepare_invoke();
        script.key(&self.keys.pace).key(&self.keys.claims);
        self.invoke(script.arg(product.as_bytes()).arg(token).arg(cost.nanos())).await
    }

    async fn permits(&self, ask: &Ask<'_>) -> Result<Permits, LedgerError> {
        let mut script = self.scripts.permits.prepare_invoke();
        script.key(&self.keys.pace).arg(ask.lane).arg(ask.calls).arg(ask.made);
        for Bucket { name, call_ms, burst_ms, owed_ms } in ask.buckets {
            script.arg(name).arg(call_ms).arg(burst_ms).arg(owed_ms);
        }
        permits(&self.invoke::<Vec<i64>>(&script).await?)
    }

    async fn refused(&self, lane: &str, refusal: &RateRefusal) -> Result<(), LedgerError> {
        let RateRefusal { wait, age, made } = *refusal;
        let mut script = self.scripts.refused.key(&self.keys.pace);
        self.invoke(script.arg(lane).arg(ms(wait)).arg(made).arg(ms(age))).await
    }

    async fn halt(&self, halt: &Halt) -> Result<(), LedgerError> {
        let (key, text) = (&self.keys.run, json(halt));
        let text = &text;
        self.connection.run(|mut manager| async move { manager.hset_nx(key, "halt", text).await }).await
    }

    async fn halted(&self) -> Result<Option<Halt>, LedgerError> {
        self.fact("halt").await?.map(|text| parse("halt", &text)).transpose()
    }

    async fn spent_at_least(&self, spent: Money) -> Result<(), LedgerError> {
        self.invoke(self.scripts.spent_at_least.key(&self.keys.pace).arg(spent.nanos())).await
    }

    async fn dialects(&self, servers: &[String]) -> Result<Vec<Dialect>, LedgerError> {
        self.kept_dialects(servers).await
    }

    async fn keep_dialect(&self, server: &str, dialect: Dialect) -> Result<(), LedgerError> {
        self.set_fact(&dialects::field(server), &json(&dialect)).await
    }

    async fn states(&self, products: &[IdHash]) -> Result<(Option<JournalMark>, Vec<State>), LedgerError> {
        let mut call = self.scripts.states.prepare_invoke();
        call.key(&self.keys.run);
        for product in products {
            call.key(self.keys.bucket(product)).arg(product.as_bytes());
        }
        let (mark, letters): (String, String) = self.invoke(&call).await?;
        let mark = Some(mark)
            .filter(|mark| !mark.is_empty())
            .map(|text| parse("journal mark", &text))
            .transpose()?;
        let states = letters.bytes().map(|letter| match letter {
            b'c' => State::Completed,
            b'f' => State::Failed,
            _ => State::Open,
        });
        Ok((mark, states.collect()))
    }

    async fn record(
        &self,
        done: &[Done<'_>],
        before: Option<&JournalMark>,
        after: &JournalMark,
    ) -> Result<bool, LedgerError> {
        let mut call = self.scripts.record.prepare_invoke();
        let Keys { run, claims, answers, failures, spent, pace, .. } = &*self.keys;
        call.key(run).key(claims).key(answers).key(failures).key(spent).key(pace);
        call.arg(before.map(json).unwrap_or_default()).arg(json(after));
        for done in done {
            call.key(self.keys.bucket(done.hash())).arg(done.hash().as_bytes());
            match done {
                Done::Completed(_) => call.arg("c").arg("").arg(""),
                Done::Failed { class, line, is_told_again, .. } => {
                    call.arg(if *is_told_again { "a" } else { "f" }).arg(class.name()).arg(*line)
                }
            };
        }
        self.invoke(&call).await
    }

    async fn journal(&self) -> Result<Option<JournalMark>, LedgerError> {
        self.fact("journal").await?.map(|text| parse("journal mark", &text)).transpose()
    }

    async fn hold_pen(&self, aggregator: &str, lease: Duration) -> Result<Result<(), String>, LedgerError> {
        let holder: Option<String> =
            self.invoke(self.scripts.hold_pen.key(&self.keys.run).arg(aggregator).arg(ms(lease))).await?;
        Ok(holder.map_or(Ok(()), Err))
    }

    async fn drop_pen(&self, aggregator: &str) -> Result<(), LedgerError> {
        let _held: Option<String> =
            self.invoke(self.scripts.hold_pen.key(&self.keys.run).arg(aggregator).arg(0)).await?;
        Ok(())
    }

    async fn report(&self, vitals: &Vitals) -> Result<(), LedgerError> {
        self.invoke(self.scripts.report.key(&self.keys.run).arg(json(vitals))).await
    }

    async fn tell_pulse(&self, worker: &str, pulse: Option<&Pulse>) -> Result<(), LedgerError> {
        let told =
            pulse.map(|pulse| json(&Told { pulse: *pulse, build: Some(Version::own()) })).unwrap_or_default();
        self.invoke(self.scripts.pulse.key(&self.keys.workers).arg(worker).arg(told)).await
    }

    async fn heard(&self) -> Result<BTreeMap<String, Heard>, LedgerError> {
        let told: Vec<(String, String, u64)> =
            self.invoke(self.scripts.pulses.key(&self.keys.workers).arg(ms(HEARD_WITHIN))).await?;
        told.into_iter()
            .map(|(worker, pulse, ago_ms)| {
                let Told { pulse, build } = parse("pulse", &pulse)?;
                let heard = Heard { pulse, version: build, ago: Duration::from_millis(ago_ms) };
                Ok((worker, heard))
            })
            .collect()
    }

    async fn progress(&self) -> Result<Progress, LedgerError> {
        let facts = self.facts().await?;
        let count = |name: &str| facts.get(name).and_then(|value| value.parse::<u64>().ok());
        let failures = FailureClass::ALL
            .into_iter()
            .filter_map(|class| Some((class, count(&format!("class_{class}"))?)))
            .filter(|(_, count)| *count > 0)
            .collect();
        Ok(Progress {
            begun: facts.contains_key("job"),
            read_until_ms: count("scan_until_ms"),
            expected: count("expected"),
            scan: count("scan").map(|scan| ScanCounts {
                scan,
                sealed: facts.contains_key("sealed"),
                total: count("scan_total").unwrap_or(0),
                completed: count("scan_completed").unwrap_or(0),
                failed: count("scan_failed").unwrap_or(0),
                rejected: count("rejected").unwrap_or(0),
            }),
            completed: count("completed").unwrap_or(0),
            failed: count("failed").unwrap_or(0),
            failures,
            vitals: facts.get("vitals").map(|text| parse("vitals", text)).transpose()?,
            pulse: None,
            halt: facts.get("halt").map(|text| parse("halt", text)).transpose()?,
        })
    }
}
