//! One state of the whole system: queues, ledger, disk, every role, and what can still go wrong.
//!
//! It is small and `Copy`, so that hundreds of thousands of states are kept and compared. What a crash forgets is in the
//! roles; what it does not forget is in `tasks`, `delayed`, `outcomes`, `ledger` and `disk`. `past` is not part of the
//! system: it remembers what the promises are about.

use super::ledger::{Ledger, Line, Mark, Spent};

pub(super) const PRODUCTS: usize = 2;
pub(super) const WORKERS: usize = 2;
pub(super) const PRODUCERS: usize = 2;
/// More messages than this in one queue, or lines in one file, break the promise of bounded memory.
pub(super) const ROOM: usize = 6;
/// The token or name of whoever is no longer there; the real ones are unique to each attempt.
pub(super) const NOBODY: u8 = u8::MAX;

/// How often each thing may go wrong, and how large the catalog is: with these the space is finite.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Bounds {
    pub(super) products: u8,
    /// Producers that may be at it at once.
    pub(super) producers: u8,
    /// SIGKILL of any process, at any step.
    pub(super) crashes: u8,
    /// The aggregator's machine loses what was not fsynced.
    pub(super) power_cuts: u8,
    /// A lease of one who lives runs out (SIGSTOP, an overloaded machine, no way to Redis).
    pub(super) stalls: u8,
    /// RabbitMQ takes a consumer's deliveries back, and the consumer lives on.
    pub(super) disconnects: u8,
    /// A script or a publish was done, its reply was lost, and it is asked for again.
    pub(super) lost_replies: u8,
    pub(super) flushes: u8,
    /// Redis comes back as it was at some earlier moment.
    pub(super) rollbacks: u8,
    /// Answers that are final failures.
    pub(super) failures: u8,
    /// Calls after which the product is to be tried again: in place, or later.
    pub(super) retries: u8,
    /// SIGTERM: a worker gives back what it has not begun, and at the end of its grace the rest; an aggregator finishes its
    /// files.
    pub(super) stops: u8,
}

/// One product, one producer, and nothing goes wrong.
pub(super) const ONE: Bounds = Bounds {
    products: 1,
    producers: 1,
    crashes: 0,
    power_cuts: 0,
    stalls: 0,
    disconnects: 0,
    lost_replies: 0,
    flushes: 0,
    rollbacks: 0,
    failures: 0,
    retries: 0,
    stops: 0,
};
/// Two products, which share a batch of the aggregator or do not.
pub(super) const TWO: Bounds = Bounds { products: 2, ..ONE };

/// Asks for a product; remembers the calls of those who had it before.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub(super) struct Task {
    pub(super) product: u8,
    pub(super) spent: Spent,
}

/// Messages of a queue or lines of a file, in order of arrival; queues are kept sorted, because RabbitMQ's order does
/// not survive redelivery and the model may deliver any of them next.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Few<T> {
    items: [Option<T>; ROOM],
    pub(super) overflowed: bool,
}

impl<T: Copy> Default for Few<T> {
    fn default() -> Self {
        Self { items: [None; ROOM], overflowed: false }
    }
}

impl<T: Copy + Ord> Few<T> {
    pub(super) fn iter(&self) -> impl Iterator<Item = T> + Clone + use<T> {
        self.items.into_iter().map_while(|item| item)
    }

    pub(super) fn len(&self) -> usize {
        self.items.iter().position(Option::is_none).unwrap_or(ROOM)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items[0].is_none()
    }

    pub(super) fn push(&mut self, item: T) {
        match self.items.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some(item),
            None => self.overflowed = true,
        }
    }

    pub(super) fn insert(&mut self, item: T) {
        self.push(item);
        let len = self.len();
        self.items[..len].sort_unstable();
    }

    pub(super) fn insert_all(&mut self, items: impl IntoIterator<Item = T>) {
        items.into_iter().for_each(|item| self.insert(item));
    }

    pub(super) fn remove(&mut self, at: usize) -> Option<T> {
        let item = self.items.get_mut(at)?.take();
        self.items[at..].rotate_left(1);
        item
    }

    pub(super) fn truncate(&mut self, len: usize) {
        self.items[len.min(ROOM)..].fill(None);
    }
}

/// A file of lines, and how many of them the disk has for certain.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct File {
    pub(super) lines: Few<Line>,
    pub(super) synced: u8,
}

impl File {
    pub(super) fn len(&self) -> u8 {
        self.lines.len() as u8
    }

    pub(super) fn of(&self, product: u8) -> usize {
        self.lines.iter().filter(|line| line.product == product).count()
    }

    pub(super) fn synced_of(&self, product: u8) -> bool {
        self.lines.iter().take(self.synced.into()).any(|line| line.product == product)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Disk {
    pub(super) journal: File,
    pub(super) failures: File,
    /// The results and the summary of a complete run are there.
    pub(super) results: bool,
}

impl Disk {
    pub(super) fn mark(&self) -> Mark {
        Mark { journal: self.journal.len(), failures: self.failures.len() }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) enum Producer {
    #[default]
    Absent,
    /// Before the step `at` of its program.
    At { at: u8, scan: u8, open: [bool; PRODUCTS] },
}

/// Which of a worker's programs is run.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Path {
    Asked,
    Analysed,
    /// To be tried again, or given back by one that is stopped.
    Later,
    Known,
    Busy,
    Done,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) enum Worker {
    #[default]
    Idle,
    At(Desk),
}

/// A worker at a product.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Desk {
    pub(super) path: Path,
    pub(super) at: u8,
    /// The product, and what this worker knows of its calls.
    pub(super) task: Task,
    /// The delivery as the broker has it, while it is this worker's to acknowledge.
    pub(super) delivery: Option<Task>,
    /// What was known when the product was granted; calls that were lost by then come on top, in the task.
    pub(super) known: Spent,
    pub(super) line: Option<Line>,
    /// Of how many calls of the product the ledger told, because the claim was gone when the answer was put.
    pub(super) late: Option<u8>,
}

impl Desk {
    /// Calls made under this claim.
    pub(super) const fn calls(&self) -> u8 {
        self.task.spent.calls - self.known.calls
    }
}

/// What a replay goes back to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Then {
    Collect,
    Write { at: u8 },
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) enum Phase {
    #[default]
    Down,
    /// The ledger's mark was read (or is about to be: `None`), and it is told what lies behind it.
    Replaying {
        known: Option<Option<Mark>>,
        failures_told: bool,
        then: Then,
    },
    Collecting,
    Writing {
        at: u8,
    },
    Finishing {
        at: u8,
    },
    Ended,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Aggregator {
    pub(super) phase: Phase,
    /// Fetched and not acknowledged.
    pub(super) batch: Few<Line>,
    /// Whether the batch is still this aggregator's to acknowledge.
    pub(super) is_mine: bool,
    /// Which lines of the batch are to be written.
    pub(super) fresh: Few<Line>,
    /// Which products' failures the ledger does not know of.
    pub(super) stale: [bool; PRODUCTS],
    pub(super) told: Option<Mark>,
    /// Whether the run was complete when the last files were begun.
    pub(super) completing: bool,
}

/// What happened, for the promises.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Past {
    /// Calls made for each product.
    pub(super) calls: [u8; PRODUCTS],
    /// Calls noted in a claim: one that was cut off by then may not have been made.
    pub(super) noted: [u8; PRODUCTS],
    /// The broker has confirmed a task of the product.
    pub(super) published: [bool; PRODUCTS],
    pub(super) scans: u8,
    /// What went wrong in the step that led here, and cannot be seen in the state itself.
    pub(super) broken: Option<&'static str>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct World {
    pub(super) producers: [Producer; PRODUCERS],
    pub(super) workers: [Worker; WORKERS],
    pub(super) aggregator: Aggregator,
    pub(super) tasks: Few<Task>,
    pub(super) delayed: Few<Task>,
    pub(super) outcomes: Few<Line>,
    pub(super) ledger: Ledger,
    /// Redis as it may come back.
    pub(super) snapshot: Option<Ledger>,
    pub(super) disk: Disk,
    pub(super) past: Past,
    /// What can still go wrong.
    pub(super) left: Bounds,
}

impl World {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { left: bounds, ..Self::default() }
    }

    pub(super) fn products(&self) -> impl Iterator<Item = u8> + use<> {
        0..self.left.products
    }

    /// The worker is done with its product, or dead: nobody will use the token of its claim again.
    pub(super) fn retire_worker(&mut self, worker: usize) {
        for ledger in [Some(&mut self.ledger), self.snapshot.as_mut()].into_iter().flatten() {
            for held in ledger.claims.iter_mut().flatten().filter(|held| usize::from(held.token) == worker) {
                held.token = NOBODY;
            }
        }
        self.workers[worker] = Worker::Idle;
    }

    /// The same with the two workers in each other's place: nothing tells them apart.
    pub(super) fn mirrored(&self) -> Self {
        let mut to = *self;
        to.workers.reverse();
        for ledger in [Some(&mut to.ledger), to.snapshot.as_mut()].into_iter().flatten() {
            for held in ledger.claims.iter_mut().flatten().filter(|held| held.token != NOBODY) {
                held.token = WORKERS as u8 - 1 - held.token;
            }
        }
        to
    }

    pub(super) fn retire_producer(&mut self, producer: usize) {
        for ledger in [Some(&mut self.ledger), self.snapshot.as_mut()].into_iter().flatten() {
            if let Some(scan) = ledger.scan.as_mut().filter(|scan| usize::from(scan.by) == producer) {
                scan.by = NOBODY;
            }
        }
        self.producers[producer] = Producer::Absent;
    }
}
