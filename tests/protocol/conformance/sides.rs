//! The model's ledger on one side, a real one on the other: every call is made to both, and what they say is compared.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use shelfmill_pipeline::{
    broker::Connect,
    changes::Changes,
    failure::FailureClass,
    identity::IdHash,
    job::Limits,
    ledger::{
        Admission as RealAdmission, Call as NthCall, Claim as RealClaim, Done, EmbeddedLedger, Grant,
        JournalMark, Kept as RealKept, RedisConfig, RedisLedger, State, Turn,
    },
    message::{Outcome, Rejects, Spent as RealSpent},
    money::Money,
    shutdown::Stopper,
};

use super::calls::Call;
use crate::{
    protocol::{
        ledger::{
            Admission, CLASSES, Claim, Kept, Ledger, Letters, Line, Losses, Mark, Rules, Spent, Standing,
        },
        state::PRODUCTS,
    },
    support::redis,
};

const LEASE: Duration = Duration::from_secs(600);
/// A call that costs nothing.
fn nth_call(number: u8) -> NthCall {
    NthCall { number: number.into(), most: Money::ZERO, before: Money::ZERO, is_beside: false }
}

const REAL_CLASSES: [FailureClass; CLASSES] = [FailureClass::Timeout, FailureClass::Malformed];

/// A run of its own in the Redis that all tests share.
pub(super) struct InRedis {
    run: String,
    ledger: RedisLedger,
}

impl InRedis {
    pub(super) fn fresh() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let run = format!("conformance-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let url = redis::shared().url().into();
        let config = RedisConfig { url, run: run.clone(), ca_file: None, connect: Connect::Forever };
        Self { run, ledger: RedisLedger::new(&config, Stopper::new()).unwrap() }
    }

    fn eval(&self, script: &str, key: &str, argument: &str) {
        let key = format!("shelfmill:{{{}}}:{key}", self.run);
        redis::shared().cli(&["EVAL", script, "1", &key, argument]);
    }

    /// Sets the leading number of every claim of that token back, whatever follows it.
    fn run_out(&self, token: &str) {
        let script = "for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do \
             local held = redis.call('HGET', KEYS[1], field) \
             if held:sub(-#ARGV[1]) == ARGV[1] then \
             redis.call('HSET', KEYS[1], field, (held:gsub('^%d+', '1', 1))) end end";
        self.eval(script, "claims", token);
    }

    fn kept_failures(&self) -> String {
        redis::shared().cli(&["HLEN", &format!("shelfmill:{{{}}}:failures", self.run)])
    }

    fn empty(&self) {
        let script = "for _, key in ipairs(redis.call('KEYS', ARGV[1])) do redis.call('DEL', key) end";
        self.eval(script, "run", &format!("shelfmill:{{{}}}:*", self.run));
    }
}

pub(super) struct Sides<'s> {
    redis: Option<&'s InRedis>,
    real: &'s dyn shelfmill_pipeline::ledger::Ledger,
    model: Ledger,
    /// The real numbers of the model's scans; none of a scan from before the ledger was emptied, because Redis numbers
    /// scans by the second and may give the number again.
    scans: Vec<Option<u64>>,
}

fn hash(product: u8) -> IdHash {
    IdHash::of(&format!("product {product}"))
}

fn token(product: u8, token: u8) -> String {
    format!("worker-{token}#{product}")
}

fn outcome(number: u64) -> Outcome {
    Outcome::Rejected(Rejects { scan: number, first: 1, lines: Vec::new() })
}

/// Answers are told from each other by a number: here the scan of some rejects, in the model the calls of a line.
fn number_of(outcome: &Outcome) -> u64 {
    match outcome {
        Outcome::Rejected(rejects) => rejects.scan,
        _ => panic!("nobody put {outcome:?}"),
    }
}

const fn numbered(number: u8) -> Spent {
    Spent { calls: number, repeated: 0 }
}

fn real_spent(spent: Spent) -> RealSpent {
    RealSpent { calls: spent.calls.into(), repeated_calls: spent.repeated.into(), ..RealSpent::default() }
}

fn real_mark(mark: Mark) -> JournalMark {
    let (size_bytes, failures_bytes) = (mark.journal.into(), mark.failures.into());
    JournalMark {
        journal: "j".to_owned(),
        place: "/here".to_owned(),
        size_bytes,
        failures_bytes,
        failures_edition: 0,
    }
}

impl<'s> Sides<'s> {
    pub(super) fn new(redis: Option<&'s InRedis>, embedded: &'s EmbeddedLedger) -> Self {
        let real: &dyn shelfmill_pipeline::ledger::Ledger = match redis {
            Some(redis) => &redis.ledger,
            None => embedded,
        };
        Self { redis, real, model: Ledger::default(), scans: Vec::new() }
    }

    /// What the real ledger says, and what the model does.
    pub(super) async fn make(&mut self, call: &Call) -> (String, String) {
        if self.scans.is_empty() && self.redis.is_none() {
            self.begin_scan(0).await;
        }
        let (real, model) = (self.real, &mut self.model);
        match call {
            Call::BeginScan { producer } => return self.begin_scan(*producer).await,
            Call::ScanRunsOut => {
                if let (Some(redis), Some(scan)) = (self.redis, &mut model.scan) {
                    redis.eval("redis.call('HSET', KEYS[1], 'scan_until_ms', ARGV[1])", "run", "1");
                    scan.live = false;
                }
            }
            Call::Admit { latest, ahead, products } => {
                let Some((number, scan)) = self.scan(*latest) else { return Default::default() };
                let last = self.model.scan.and_then(|scan| scan.batch).map_or(0, |(last, _)| last);
                let hashes: Vec<IdHash> = products.iter().map(|product| hash(*product)).collect();
                let batch = (last + ahead).max(1);
                let said = real.admit(scan, batch.into(), &hashes).await;
                let expected = self.model.admit(number, batch, products, Rules::REAL);
                return (admitted(said.ok().as_deref()), letters(expected));
            }
            Call::Seal { latest, all_batches } => {
                let Some((number, scan)) = self.scan(*latest) else { return Default::default() };
                let last = self.model.scan.and_then(|scan| scan.batch).map_or(0, |(last, _)| last);
                let batches = last + u8::from(!all_batches);
                let said = real.seal(scan, batches.into(), 0).await.is_ok();
                return (said.to_string(), self.model.seal(number, batches, Rules::REAL).to_string());
            }
            Call::Claim { product, token: who } => {
                let said = real.claim(hash(*product), &token(*product, *who), LEASE).await.unwrap();
                let mut expected = model.claim(*product, *who, Rules::REAL);
                if let (Claim::Granted(..), None) = (expected, self.redis) {
                    // In one process a product has one task, which knows what was spent.
                    expected = Claim::Granted(Losses::default(), Spent::default());
                }
                return (claimed(said), expected_claim(expected));
            }
            Call::ClaimRunsOut { product } => {
                if let (Some(redis), Some(held)) = (self.redis, model.claims[usize::from(*product)]) {
                    redis.run_out(&token(*product, held.token));
                    model.run_out(*product);
                }
            }
            Call::Renew { product, token: who } => {
                real.renew(&[(hash(*product), token(*product, *who))], LEASE).await.unwrap();
                model.renew(*product, *who);
            }
            Call::Release { product, token: who, spent: (calls, repeated) } => {
                let spent = Spent { calls: *calls, repeated: *repeated };
                let said = real
                    .release(hash(*product), &token(*product, *who), &real_spent(spent), Money::ZERO)
                    .await;
                let expected = model.release(*product, *who, spent, Rules::REAL);
                return (said.unwrap().to_string(), expected.to_string());
            }
            Call::Abandon { claims } => {
                let held: Vec<(IdHash, String)> =
                    claims.iter().map(|(product, who)| (hash(*product), token(*product, *who))).collect();
                real.abandon(&held).await.unwrap();
                claims.iter().for_each(|(product, who)| model.abandon(*product, *who, Rules::REAL));
            }
            Call::Begin { product, token: who, number } => {
                let token = token(*product, *who);
                let claim = (hash(*product), token.as_str());
                let said = real.begin_call(claim, &nth_call(*number), &Limits::default()).await;
                let expected = match model.begin_call(*product, *who, *number, Rules::REAL) {
                    true => Turn::Now,
                    false => Turn::Lost,
                };
                return (format!("{:?}", said.unwrap()), format!("{expected:?}"));
            }
            Call::PutAnswer { product, token: who, number, late } => {
                let held = model.claims[usize::from(*product)];
                if self.redis.is_none() && held.is_some_and(|held| held.token != *who && held.live) {
                    // In one process no claim runs out: nobody answers what another has.
                    return Default::default();
                }
                let calls = model.spent[usize::from(*product)].total()
                    + held.map_or(0, |held| held.lost.calls + held.begun);
                let late = if self.redis.is_some() { *late } else { Some(true) };
                let late = late.map(|right| calls + u8::from(!right));
                let answer = outcome((*number).into());
                let said = real
                    .put_answer(
                        hash(*product),
                        &token(*product, *who),
                        &answer,
                        Money::ZERO,
                        late.map(u32::from),
                    )
                    .await;
                let line = Line { product: *product, class: None, spent: numbered(*number) };
                let expected = model.put_answer(*product, *who, line, late, Rules::REAL);
                return (kept(said.unwrap()), expected_kept(expected));
            }
            Call::Record { lines, right, again } => return self.record(lines, *right, *again).await,
            Call::Reopen { products } => {
                let Some(redis) = self.redis else { return Default::default() };
                let failed: Vec<_> =
                    products.iter().map(|product| (hash(*product), RealSpent::default())).collect();
                let said = redis.ledger.reopen(&failed, &Changes::default()).await.unwrap();
                return (said.to_string(), model.reopen(products).to_string());
            }
            Call::Forget { products } => {
                let Some(redis) = self.redis else { return Default::default() };
                let hashes: Vec<IdHash> = products.iter().map(|product| hash(*product)).collect();
                redis.ledger.forget_failures(&hashes).await.unwrap();
                model.forget(products);
                let kept = model.failures.iter().flatten().count();
                return (redis.kept_failures(), kept.to_string());
            }
            Call::States => {
                let all: Vec<u8> = (0..PRODUCTS as u8).collect();
                let hashes: Vec<IdHash> = all.iter().map(|product| hash(*product)).collect();
                let (mark, states) = real.states(&hashes).await.unwrap();
                let expected: Vec<State> =
                    all.iter().map(|product| state(model.standing(*product))).collect();
                return (
                    format!("{mark:?} {states:?}"),
                    format!("{:?} {expected:?}", model.mark.map(real_mark)),
                );
            }
            Call::Empty => {
                if let Some(redis) = self.redis {
                    redis.empty();
                    self.model = Ledger::default();
                    self.scans.iter_mut().for_each(|scan| *scan = None);
                }
            }
        }
        Default::default()
    }

    async fn begin_scan(&mut self, producer: u8) -> (String, String) {
        let said = self.real.begin_scan(&format!("producer {producer}")).await.unwrap();
        let clock = self.scans.len() as u8 + 1;
        let expected = self.model.begin_scan(producer, clock);
        if expected == Some(clock) {
            let is_later = self.scans.iter().flatten().all(|earlier| said > Some(*earlier));
            self.scans.push(said);
            return (format!("{} later {is_later}", said.is_some()), "true later true".to_owned());
        }
        let known = expected.and_then(|number| self.scans[usize::from(number) - 1]);
        (format!("{said:?}"), format!("{known:?}"))
    }

    /// The latest scan or the one before, by the model's number and the real one.
    fn scan(&self, latest: bool) -> Option<(u8, u64)> {
        let number = self.scans.len().checked_sub(if latest { 0 } else { 1 }).filter(|number| *number > 0)?;
        Some((number as u8, self.scans[number - 1]?))
    }

    async fn record(&mut self, lines: &[(u8, Option<u8>)], right: bool, again: bool) -> (String, String) {
        let before = if right { self.model.mark } else { Some(Mark { journal: 200, failures: 0 }) };
        let known = self.model.mark.unwrap_or_default();
        let after = if again { known } else { Mark { journal: known.journal + 1, ..known } };
        let done: Vec<Done<'_>> = lines
            .iter()
            .map(|(product, class)| match class {
                None => Done::Completed(hash(*product)),
                Some(class) => Done::Failed {
                    hash: hash(*product),
                    class: REAL_CLASSES[usize::from(*class)],
                    line: "{}",
                    is_told_again: false,
                },
            })
            .collect();
        let (real_before, real_after) = (before.map(real_mark), real_mark(after));
        let said = self.real.record(&done, real_before.as_ref(), &real_after).await.unwrap();
        let lines: Vec<Line> = lines
            .iter()
            .map(|(product, class)| Line { product: *product, class: *class, spent: Spent::default() })
            .collect();
        (said.to_string(), self.model.record(&lines, before, after, Rules::REAL).to_string())
    }

    /// What is told of the run in the end.
    pub(super) async fn counts(&self) -> (String, String) {
        let progress = self.real.progress().await.unwrap();
        let scan = progress.scan.map(|scan| (scan.sealed, scan.total, scan.completed, scan.failed));
        let Ledger { scan_total, scan_completed, scan_failed, completed, failed, classes, .. } = self.model;
        let count = |count: i8| u64::try_from(count).unwrap_or(0);
        let counts = (count(scan_total), count(scan_completed), count(scan_failed));
        let expected = self.model.scan.map(|scan| (scan.sealed, counts.0, counts.1, counts.2));
        let of_class = |class: FailureClass| {
            progress.failures.iter().find(|(found, _)| *found == class).map_or(0, |(_, count)| *count)
        };
        (
            format!("{scan:?} {} {} {:?}", progress.completed, progress.failed, REAL_CLASSES.map(of_class)),
            format!("{expected:?} {} {} {:?}", count(completed), count(failed), classes.map(count)),
        )
    }
}

fn state(standing: Standing) -> State {
    match standing {
        Standing::Open => State::Open,
        Standing::Completed => State::Completed,
        Standing::Failed => State::Failed,
    }
}

fn admitted(said: Option<&[RealAdmission]>) -> String {
    said.map_or("scan lost".to_owned(), |said| {
        said.iter()
            .map(|admission| match admission {
                RealAdmission::Open { .. } => 'o',
                RealAdmission::Duplicate => 'd',
                RealAdmission::Completed => 'c',
                RealAdmission::Failed => 'f',
            })
            .collect()
    })
}

fn letters(expected: Option<Letters>) -> String {
    expected.map_or("scan lost".to_owned(), |letters| {
        letters
            .iter()
            .flatten()
            .map(|admission| match admission {
                Admission::Open => 'o',
                Admission::Duplicate => 'd',
                Admission::Completed => 'c',
                Admission::Failed => 'f',
            })
            .collect()
    })
}

fn claimed(said: RealClaim) -> String {
    match said {
        RealClaim::Done => "done".to_owned(),
        RealClaim::Busy => "busy".to_owned(),
        RealClaim::Answered(outcome) => format!("answered {}", number_of(&outcome)),
        // The model knows nothing of changes; the contract suite does.
        RealClaim::Granted(grant) => format!("{:?}", Grant { changes: None, ..grant }),
    }
}

fn expected_claim(claim: Claim) -> String {
    match claim {
        Claim::Done => "done".to_owned(),
        Claim::Busy => "busy".to_owned(),
        Claim::Answered(line) => format!("answered {}", line.spent.calls),
        Claim::Granted(lost, spent) => {
            let (lost_claims, lost_calls) = (lost.claims.into(), lost.calls.into());
            format!("{:?}", Grant { lost_claims, lost_calls, spent: real_spent(spent), changes: None })
        }
    }
}

fn kept(said: RealKept) -> String {
    match said {
        RealKept::Yes => "kept".to_owned(),
        RealKept::Earlier(outcome) => format!("earlier {}", number_of(&outcome)),
        RealKept::Done => "done".to_owned(),
        RealKept::Late { calls, spent } => format!("late {calls} {spent:?}"),
    }
}

fn expected_kept(expected: Kept) -> String {
    match expected {
        Kept::Yes => "kept".to_owned(),
        Kept::Earlier(line) => format!("earlier {}", line.spent.calls),
        Kept::Done => "done".to_owned(),
        Kept::Late { calls, spent } => format!("late {calls} {:?}", real_spent(spent)),
    }
}
