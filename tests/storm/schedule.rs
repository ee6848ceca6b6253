//! What goes wrong in a storm, and when: drawn from a seed, so that the same seed brings the same storm again.

use std::{fmt, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Faults in one storm.
const FAULTS: usize = 14;
/// Of these, how many may hit a server: each costs seconds of starting it again.
const SERVER_FAULTS: usize = 3;
/// The longest rest between two faults.
const REST_MS: u64 = 1_800;
/// How long something is down or stopped; a worker's lease is 15 s, and every eighth pause of a worker outlasts it.
const DOWN_MS: std::ops::Range<u64> = 50..2_500;
const OUTLASTS_LEASE: Duration = Duration::from_secs(18);

/// Who is hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Worker(usize),
    Aggregator,
    Producer,
    RabbitMq,
    Redis,
}

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blow {
    /// SIGKILL, and started again.
    Kill,
    /// SIGTERM (servers: an orderly stop), and started again.
    Terminate,
    /// SIGSTOP, and SIGCONT.
    Pause,
    /// A second one of it is started beside the first.
    Double,
}

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    /// After the one before it.
    pub(super) after: Duration,
    pub(super) target: Target,
    pub(super) blow: Blow,
    /// How long until it is mended.
    pub(super) lasts: Duration,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "+{:?} {:?} {:?} for {:?}", self.after, self.blow, self.target, self.lasts)
    }
}

/// The storm of this seed.
pub(super) fn of(seed: u64, workers: usize) -> Vec<Fault> {
    let mut dice = StdRng::seed_from_u64(seed);
    let mut server_faults = 0;
    let mut faults = Vec::new();
    while faults.len() < FAULTS {
        let target = match dice.random_range(0..12) {
            0..6 => Target::Worker(dice.random_range(0..workers)),
            6..8 => Target::Aggregator,
            8..10 => Target::Producer,
            10 => Target::RabbitMq,
            _ => Target::Redis,
        };
        if matches!(target, Target::RabbitMq | Target::Redis) {
            server_faults += 1;
            if server_faults > SERVER_FAULTS {
                continue;
            }
        }
        let blow = match (dice.random_range(0..8), target) {
            (0, Target::Producer) => Blow::Double,
            (0..4, _) => Blow::Kill,
            (4..6, _) => Blow::Pause,
            _ => Blow::Terminate,
        };
        let lasts = if blow == Blow::Pause && matches!(target, Target::Worker(_)) && dice.random_ratio(1, 8) {
            OUTLASTS_LEASE
        } else {
            Duration::from_millis(dice.random_range(DOWN_MS))
        };
        let after = Duration::from_millis(dice.random_range(0..REST_MS));
        faults.push(Fault { after, target, blow, lasts });
    }
    faults
}

#[test]
fn a_seed_brings_the_same_storm_again() {
    let told = |seed| of(seed, 3).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(told(7), told(7));
    assert_ne!(told(7), told(8));
    assert!(of(7, 3).iter().any(|fault| fault.blow == Blow::Kill));
}
