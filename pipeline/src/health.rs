//! Whether a process makes progress, and whether it should get work: what probes of Kubernetes and Compose ask.
//!
//! One set for the process, like its [metrics](crate::metrics). A role says in which state it is, and while it works gives a
//! sign of life ([`Health::beat`]) again and again. It is unhealthy when
//!
//! - it works and has given no sign for [`PATIENCE`], or
//! - messages were ready for it for that long, while it waited for some and got none ([`Silence`]).
//!
//! Whatever a new start would not mend is healthy, and not ready: a server that is away, a full disk, a run that has paused.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// How long nothing may come, or be heard of a role.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long a consumer waits before somebody looks whether there is something for it, and how often then.
const LOOK_AFTER: Duration = Duration::from_secs(15);

static HEALTH: LazyLock<Health> = LazyLock::new(Health::default);

/// This process'.
#[must_use]
pub fn health() -> &'static Health {
    &HEALTH
}

/// A part of the process that can be well or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Reads the input.
    Producer,
    /// Asks the model.
    Worker,
    /// Writes the results.
    Aggregator,
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Producer => "the producer",
            Self::Worker => "the worker",
            Self::Aggregator => "the aggregator",
        }
    }
}

/// What roles have said of themselves.
#[derive(Debug, Default)]
pub struct Health {
    roles: Mutex<BTreeMap<Role, State>>,
    /// What is away: servers, space on the disk.
    missed: Mutex<BTreeSet<&'static str>>,
    is_stopping: AtomicBool,
}

#[derive(Clone, Debug)]
enum State {
    Waits(&'static str),
    Rests,
    Works { beat: Instant, silence: Option<String> },
}

impl Health {
    /// A role waits for something that it cannot hasten, which `reason` names.
    pub fn waits(&self, role: Role, reason: &'static str) {
        self.roles().insert(role, State::Waits(reason));
    }

    /// A role takes what comes, whenever that is.
    pub fn rests(&self, role: Role) {
        self.roles().insert(role, State::Rests);
    }

    /// A role works, and gives a sign of life.
    pub fn beat(&self, role: Role) {
        let mut roles = self.roles();
        match roles.get_mut(&role) {
            Some(State::Works { beat, .. }) => *beat = Instant::now(),
            _ => drop(roles.insert(role, State::Works { beat: Instant::now(), silence: None })),
        }
    }

    /// A role has nothing more to do.
    pub fn ended(&self, role: Role) {
        self.roles().remove(&role);
    }

    /// Something that all need is away, and is waited for.
    pub fn lost(&self, what: &'static str) {
        self.missed().insert(what);
    }

    /// It is there again; what nobody could do meanwhile is not held against anybody.
    pub fn back(&self, what: &'static str) {
        if !self.missed().remove(what) {
            return;
        }
        for state in self.roles().values_mut() {
            if let State::Works { beat, .. } = state {
                *beat = Instant::now();
            }
        }
    }

    /// The process is to end.
    pub fn stopping(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }

    /// Whether every role makes progress, or rightly waits.
    pub fn is_alive(&self) -> Result<(), String> {
        if !self.missed().is_empty() {
            return Ok(());
        }
        self.roles().iter().try_for_each(|(role, state)| match state {
            State::Works { silence: Some(silence), .. } => Err(silence.clone()),
            State::Works { beat, .. } if beat.elapsed() >= PATIENCE => {
                Err(format!("{} has given no sign of life for {} s", role.name(), beat.elapsed().as_secs()))
            }
            State::Works { .. } | State::Waits(_) | State::Rests => Ok(()),
        })
    }

    /// Whether work should come here.
    pub fn is_ready(&self) -> Result<(), String> {
        if self.is_stopping.load(Ordering::Relaxed) {
            return Err("stopping".to_owned());
        }
        if let Some(what) = self.missed().first() {
            return Err(format!("waits for {what}"));
        }
        let roles = self.roles();
        for (role, state) in roles.iter() {
            if let State::Waits(reason) = state {
                return Err(format!("{} waits for {reason}", role.name()));
            }
        }
        if roles.is_empty() {
            return Err("no role has begun, or all have ended".to_owned());
        }
        drop(roles);
        self.is_alive()
    }

    /// Whether something that all need is away.
    pub fn misses_something(&self) -> bool {
        !self.missed().is_empty()
    }

    fn silent(&self, role: Role, silence: Option<String>) {
        if let Some(State::Works { silence: known, .. }) = self.roles().get_mut(&role) {
            *known = silence;
        }
    }

    fn roles(&self) -> MutexGuard<'_, BTreeMap<Role, State>> {
        self.roles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn missed(&self) -> MutexGuard<'_, BTreeSet<&'static str>> {
        self.missed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches a consumer: one that gets nothing although messages are ready has gone silent, and looks like one of an idle run.
#[derive(Debug)]
pub struct Silence {
    role: Role,
    health: &'static Health,
    waits_since: Option<Instant>,
    looked: Option<Instant>,
    /// Since when every look has found something that did not come.
    suspected: Option<Instant>,
    is_told: bool,
}

impl Silence {
    /// Of the consumer of this role.
    #[must_use]
    pub fn of(role: Role) -> Self {
        Self::told_to(health(), role)
    }

    const fn told_to(health: &'static Health, role: Role) -> Self {
        Self { role, health, waits_since: None, looked: None, suspected: None, is_told: false }
    }

    /// It waits for a message.
    pub fn waits(&mut self) {
        self.waits_since.get_or_insert_with(Instant::now);
    }

    /// It got one.
    pub fn ends(&mut self) {
        (self.waits_since, self.suspected) = (None, None);
        if std::mem::take(&mut self.is_told) {
            self.health.silent(self.role, None);
        }
    }

    /// Whether somebody should look how many messages are ready for it.
    #[must_use]
    pub fn is_to_look(&self) -> bool {
        let long_ago = |since: Instant| since.elapsed() >= LOOK_AFTER;
        self.waits_since.is_some_and(long_ago)
            && self.looked.is_none_or(long_ago)
            && !self.health.misses_something()
    }

    /// Somebody did.
    pub fn looked(&mut self, ready: u64) {
        self.looked = Some(Instant::now());
        if ready == 0 {
            let waits_since = self.waits_since;
            self.ends();
            self.waits_since = waits_since;
            return;
        }
        let since = *self.suspected.get_or_insert_with(Instant::now);
        if since.elapsed() >= PATIENCE && !self.is_told {
            self.is_told = true;
            let silence = format!(
                "{} gets nothing from RabbitMQ although messages are ready for it: {ready} for {} s; start it again",
                self.role.name(),
                since.elapsed().as_secs()
            );
            tracing::warn!("{silence}");
            self.health.silent(self.role, Some(silence));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn own() -> &'static Health {
        Box::leak(Box::default())
    }

    #[tokio::test(start_paused = true)]
    async fn a_role_that_gives_no_sign_while_it_works_is_not_alive() {
        let health = own();
        assert!(health.is_alive().is_ok(), "nothing has begun");
        assert!(health.is_ready().is_err());
        health.waits(Role::Worker, "the run's producer");
        advance(PATIENCE * 10).await;
        assert!(health.is_alive().is_ok(), "it may wait for ever");
        assert_eq!(health.is_ready().unwrap_err(), "the worker waits for the run's producer");

        health.beat(Role::Worker);
        advance(PATIENCE - Duration::from_secs(1)).await;
        assert!(health.is_alive().is_ok() && health.is_ready().is_ok());
        advance(Duration::from_secs(1)).await;
        assert_eq!(health.is_alive().unwrap_err(), "the worker has given no sign of life for 60 s");
        assert!(health.is_ready().is_err());
        health.beat(Role::Worker);
        assert!(health.is_alive().is_ok() && health.is_ready().is_ok());

        health.stopping();
        assert!(health.is_alive().is_ok());
        assert_eq!(health.is_ready().unwrap_err(), "stopping");
        advance(PATIENCE).await;
        assert!(health.is_alive().is_err());
        health.ended(Role::Worker);
        assert!(health.is_alive().is_ok(), "what has ended gives no sign");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_away_is_nobodys_fault_while_it_is_and_just_after() {
        let health = own();
        health.beat(Role::Aggregator);
        health.lost("Redis");
        advance(PATIENCE * 10).await;
        assert!(health.is_alive().is_ok());
        assert_eq!(health.is_ready().unwrap_err(), "waits for Redis");
        health.back("Redis");
        advance(PATIENCE / 2).await;
        assert!(health.is_alive().is_ok() && health.is_ready().is_ok());
        health.back("Redis");
        advance(PATIENCE / 2).await;
        assert!(health.is_alive().is_err(), "that it is there is no sign of life");
    }

    #[tokio::test(start_paused = true)]
    async fn a_consumer_that_gets_nothing_of_what_is_ready_has_gone_silent() {
        let health = own();
        let mut silence = Silence::told_to(health, Role::Worker);
        let look = |silence: &mut Silence, ready| {
            health.beat(Role::Worker);
            silence.waits();
            if silence.is_to_look() {
                silence.looked(ready);
            }
        };
        look(&mut silence, 5);
        for _ in 0..20 {
            advance(Duration::from_secs(5)).await;
            look(&mut silence, 0);
        }
        assert!(health.is_alive().is_ok(), "an idle run");
        for _ in 0..12 {
            advance(Duration::from_secs(5)).await;
            look(&mut silence, 5);
        }
        assert!(health.is_alive().is_ok(), "not for long enough");
        for _ in 0..6 {
            advance(Duration::from_secs(5)).await;
            look(&mut silence, 5);
        }
        let why = health.is_alive().unwrap_err();
        assert!(why.contains("the worker gets nothing") && why.contains("5 for"), "{why}");
        silence.ends();
        assert!(health.is_alive().is_ok(), "it speaks again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_consumer_that_got_something_in_between_has_not() {
        let health = own();
        let mut silence = Silence::told_to(health, Role::Aggregator);
        for second in 0..600 {
            advance(Duration::from_secs(1)).await;
            health.beat(Role::Aggregator);
            silence.waits();
            if silence.is_to_look() {
                silence.looked(1);
            }
            if second % 50 == 49 {
                silence.ends();
            }
        }
        assert!(health.is_alive().is_ok());
    }
}
