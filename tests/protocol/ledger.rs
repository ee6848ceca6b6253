//! The ledger of the model: what the scripts in `pipeline/src/ledger/redis/*.lua` do, line for line, on small numbers.
//!
//! The explorer runs the roles over it; `conformance` runs the same random calls over it and over the real ledgers, so
//! that what is proven of the one holds for the others.

use super::state::PRODUCTS;

/// How many classes of failures there are.
pub(super) const CLASSES: usize = 2;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) enum Standing {
    #[default]
    Open,
    Completed,
    Failed,
}

/// An entry of a bucket: the standing, and the scan that met the product last (0: none did).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Known {
    pub(super) standing: Standing,
    pub(super) scan: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Held {
    pub(super) token: u8,
    /// Whether the lease has not run out.
    pub(super) live: bool,
    pub(super) lost: Losses,
    /// Calls begun under this claim.
    pub(super) begun: u8,
}

/// Earlier claims that ran out, and the calls begun under them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Losses {
    pub(super) claims: u8,
    pub(super) calls: u8,
}

/// A line, as it travels and is written: whose it is, and what it tells of the calls.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) struct Line {
    pub(super) product: u8,
    /// Why it failed; `None`: it is a result.
    pub(super) class: Option<u8>,
    pub(super) calls: u8,
    pub(super) repeated: u8,
}

/// How many lines of journal and failures the ledger was told of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Mark {
    pub(super) journal: u8,
    pub(super) failures: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Admission {
    Open,
    Duplicate,
    Completed,
    Failed,
}

/// The reply to a batch of at most so many products.
pub(super) type Letters = [Option<Admission>; PRODUCTS];

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Claim {
    Done,
    Answered(Line),
    Busy,
    Granted(Losses),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Kept {
    Yes,
    Late { calls: u8 },
}

/// The fields of the run's hash that belong to a scan.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Scan {
    pub(super) number: u8,
    pub(super) by: u8,
    pub(super) live: bool,
    pub(super) sealed: bool,
    pub(super) batch: Option<(u8, Letters)>,
}

/// Where the rules of the scripts can be broken on purpose.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) claim_looks_for_answers: bool,
    pub(super) first_answer_counts: bool,
    pub(super) mark_is_compared: bool,
    /// A scan that lost a batch it was told of is not gone on with.
    pub(super) scan_is_whole: bool,
}

impl Rules {
    pub(super) const REAL: Self = Self {
        claim_looks_for_answers: true,
        first_answer_counts: true,
        mark_is_compared: true,
        scan_is_whole: true,
    };
}

/// All keys of a run. Emptied Redis is the default.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Ledger {
    pub(super) products: [Option<Known>; PRODUCTS],
    pub(super) claims: [Option<Held>; PRODUCTS],
    pub(super) answers: [Option<Line>; PRODUCTS],
    /// Class of the line that is kept to put the product back.
    pub(super) failures: [Option<u8>; PRODUCTS],
    pub(super) mark: Option<Mark>,
    pub(super) scan: Option<Scan>,
    /// Counts outlive their scan only until the next one begins; a record before any scan counts in none.
    pub(super) scan_total: i8,
    pub(super) scan_completed: i8,
    pub(super) scan_failed: i8,
    pub(super) completed: i8,
    pub(super) failed: i8,
    pub(super) classes: [i8; CLASSES],
}

impl Ledger {
    pub(super) fn standing(&self, product: u8) -> Standing {
        self.products[usize::from(product)].unwrap_or_default().standing
    }

    /// What the aggregator takes for the end of a run.
    pub(super) fn is_complete(&self) -> bool {
        self.scan.is_some_and(|scan| scan.sealed)
            && self.scan_completed.max(0) + self.scan_failed.max(0) >= self.scan_total
    }

    /// `begin_scan.lua`; `clock` stands for the time, which numbers scans.
    pub(super) fn begin_scan(&mut self, producer: u8, clock: u8) -> Option<u8> {
        if let Some(scan) = &mut self.scan {
            if scan.by == producer {
                scan.live = true;
                return Some(scan.number);
            }
            if scan.live {
                return None;
            }
        }
        let number = clock.max(self.scan.map_or(0, |scan| scan.number) + 1);
        self.scan = Some(Scan { number, by: producer, live: true, sealed: false, batch: None });
        (self.scan_total, self.scan_completed, self.scan_failed) = (0, 0, 0);
        Some(number)
    }

    /// `keep_scan.lua`; whether the scan was kept.
    pub(super) fn keep_scan(&mut self, number: u8, live: bool) -> bool {
        let Some(scan) = self.scan.as_mut().filter(|scan| scan.number == number) else { return false };
        scan.live = live;
        true
    }

    /// `admit.lua`; batches are numbered from 1. `None`: the scan was lost.
    pub(super) fn admit(&mut self, number: u8, batch: u8, products: &[u8], rules: Rules) -> Option<Letters> {
        let scan = self.scan.filter(|scan| scan.number == number)?;
        let last = scan.batch.map_or(0, |(last, _)| last);
        if rules.scan_is_whole && batch != last && batch != last + 1 {
            return None;
        }
        if let Some((_, letters)) = scan.batch.filter(|(last, _)| *last == batch) {
            return Some(letters);
        }
        let mut letters = Letters::default();
        for (letter, product) in letters.iter_mut().zip(products) {
            let known = &mut self.products[usize::from(*product)];
            if known.is_some_and(|known| known.scan == number) {
                *letter = Some(Admission::Duplicate);
                continue;
            }
            let standing = known.unwrap_or_default().standing;
            *known = Some(Known { standing, scan: number });
            self.scan_total += 1;
            *letter = Some(match standing {
                Standing::Open => Admission::Open,
                Standing::Completed => {
                    self.scan_completed += 1;
                    Admission::Completed
                }
                Standing::Failed => {
                    self.scan_failed += 1;
                    Admission::Failed
                }
            });
        }
        self.scan = Some(Scan { batch: Some((batch, letters)), live: true, ..scan });
        Some(letters)
    }

    /// `seal.lua`; whether it was this scan's to seal, and whole.
    pub(super) fn seal(&mut self, number: u8, batches: u8, rules: Rules) -> bool {
        let Some(scan) = self.scan.as_mut().filter(|scan| scan.number == number) else { return false };
        if rules.scan_is_whole && scan.batch.map_or(0, |(last, _)| last) != batches {
            return false;
        }
        (scan.sealed, scan.live) = (true, false);
        true
    }

    /// `claim.lua`.
    pub(super) fn claim(&mut self, product: u8, token: u8, rules: Rules) -> Claim {
        if self.standing(product) != Standing::Open {
            return Claim::Done;
        }
        let at = usize::from(product);
        if let Some(answer) = self.answers[at].filter(|_| rules.claim_looks_for_answers) {
            return Claim::Answered(answer);
        }
        let (lost, begun) = match self.claims[at] {
            None => (Losses::default(), 0),
            Some(held) if held.token == token => (held.lost, held.begun),
            Some(held) if held.live => return Claim::Busy,
            Some(Held { lost, begun, .. }) => {
                (Losses { claims: lost.claims + 1, calls: lost.calls + begun }, 0)
            }
        };
        self.claims[at] = Some(Held { token, live: true, lost, begun });
        Claim::Granted(lost)
    }

    /// `reserve.lua` where there is a place; `false`: the claim is somebody else's, or gone.
    pub(super) fn begin_call(&mut self, product: u8, token: u8, number: u8) -> bool {
        let held = self.claims[usize::from(product)].as_mut().filter(|held| held.token == token);
        let Some(held) = held else { return false };
        held.begun = held.begun.max(number);
        true
    }

    /// Time has passed, and nobody renewed.
    pub(super) fn run_out(&mut self, product: u8) {
        if let Some(held) = &mut self.claims[usize::from(product)] {
            held.live = false;
        }
    }

    /// `renew.lua`.
    pub(super) fn renew(&mut self, product: u8, token: u8) {
        if let Some(held) = self.claims[usize::from(product)].as_mut().filter(|held| held.token == token) {
            held.live = true;
        }
    }

    /// `release.lua`.
    pub(super) fn release(&mut self, product: u8, token: u8) {
        self.claims[usize::from(product)].take_if(|held| held.token == token);
    }

    /// `put_answer.lua`.
    pub(super) fn put_answer(
        &mut self,
        product: u8,
        token: u8,
        line: Line,
        late: bool,
        rules: Rules,
    ) -> Kept {
        let at = usize::from(product);
        let is_open = self.standing(product) == Standing::Open;
        if let Some(held) = self.claims[at].filter(|held| held.token != token)
            && is_open
            && !late
            && self.answers[at].is_none()
        {
            return Kept::Late { calls: held.lost.calls + held.begun };
        }
        if is_open && (self.answers[at].is_none() || !rules.first_answer_counts) {
            self.answers[at] = Some(line);
        }
        self.release(product, token);
        Kept::Yes
    }

    /// `record.lua`; whether the mark was where the caller believed it to be.
    pub(super) fn record(&mut self, done: &[Line], before: Option<Mark>, after: Mark, rules: Rules) -> bool {
        if rules.mark_is_compared && self.mark != before && self.mark != Some(after) {
            return false;
        }
        for line in done {
            self.record_one(*line);
        }
        self.mark = Some(after);
        true
    }

    fn record_one(&mut self, line: Line) {
        let at = usize::from(line.product);
        let known = self.products[at].unwrap_or_default();
        let standing = if line.class.is_some() { Standing::Failed } else { Standing::Completed };
        if known.standing != Standing::Completed && known.standing != standing {
            self.products[at] = Some(Known { standing, ..known });
            let here = i8::from(self.scan.is_some_and(|scan| scan.number == known.scan));
            if known.standing == Standing::Failed {
                self.failed -= 1;
                self.scan_failed -= here;
                self.uncount(at);
            }
            self.failures[at] = line.class;
            match line.class {
                None => {
                    self.completed += 1;
                    self.scan_completed += here;
                }
                Some(class) => {
                    self.failed += 1;
                    self.scan_failed += here;
                    self.classes[usize::from(class)] += 1;
                }
            }
        }
        self.claims[at] = None;
        self.answers[at] = None;
    }

    pub(super) fn uncount(&mut self, at: usize) {
        if let Some(class) = self.failures[at] {
            self.classes[usize::from(class)] -= 1;
        }
    }
}
