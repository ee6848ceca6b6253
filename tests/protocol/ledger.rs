//! The ledger of the model: what the scripts in `pipeline/src/ledger/redis/*.lua` do, line for line, on small numbers.
//!
//! The explorer runs the roles over it; `conformance` runs the same random calls over it and over the real ledgers, so
//! that what is proven of the one holds for the others.

use super::state::{NOBODY, PRODUCTS};

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

/// Earlier claims that ran out in a call, and the calls begun under them or abandoned.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Losses {
    pub(super) claims: u8,
    pub(super) calls: u8,
}

/// What was spent on a product, as far as it counts calls.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub(super) struct Spent {
    pub(super) calls: u8,
    pub(super) repeated: u8,
}

impl Spent {
    pub(super) const fn total(self) -> u8 {
        self.calls + self.repeated
    }

    pub(super) const fn or_more(self, other: Self) -> Self {
        if other.total() > self.total() { other } else { self }
    }
}

/// A line, as it travels and is written: whose it is, and what it tells of the calls.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) struct Line {
    pub(super) product: u8,
    /// Why it failed; `None`: it is a result.
    pub(super) class: Option<u8>,
    pub(super) spent: Spent,
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
    Granted(Losses, Spent),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Kept {
    Yes,
    Earlier(Line),
    Done,
    Late { calls: u8, spent: Spent },
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
    pub(super) release_remembers_spent: bool,
    pub(super) abandoned_calls_are_lost: bool,
    /// A call is begun by who holds the claim, and by nobody else.
    pub(super) calls_need_the_claim: bool,
    /// An answer whose claim was lost is not kept before its line tells of others.
    pub(super) late_answers_are_told: bool,
    /// Nor where they went on since it was told.
    pub(super) others_are_compared: bool,
    pub(super) late_answers_end_claims: bool,
}

impl Rules {
    pub(super) const REAL: Self = Self {
        claim_looks_for_answers: true,
        first_answer_counts: true,
        mark_is_compared: true,
        scan_is_whole: true,
        release_remembers_spent: true,
        abandoned_calls_are_lost: true,
        calls_need_the_claim: true,
        late_answers_are_told: true,
        others_are_compared: true,
        late_answers_end_claims: true,
    };
}

/// All keys of a run. Emptied Redis is the default.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Ledger {
    pub(super) products: [Option<Known>; PRODUCTS],
    pub(super) claims: [Option<Held>; PRODUCTS],
    pub(super) answers: [Option<Line>; PRODUCTS],
    /// What was spent on a product when it was last given back.
    pub(super) spent: [Spent; PRODUCTS],
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
                // One under which no call was begun was waiting.
                let claims = lost.claims + u8::from(begun > 0);
                (Losses { claims, calls: lost.calls + begun }, 0)
            }
        };
        self.claims[at] = Some(Held { token, live: true, lost, begun });
        Claim::Granted(lost, self.spent[at])
    }

    /// `begin_call.lua`; `false`: the claim is somebody else's, or gone.
    pub(super) fn begin_call(&mut self, product: u8, token: u8, number: u8, rules: Rules) -> bool {
        let held = self.claims[usize::from(product)].as_mut().filter(|held| held.token == token);
        let Some(held) = held else { return !rules.calls_need_the_claim };
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

    /// `release.lua`; whether the claim was held.
    pub(super) fn release(&mut self, product: u8, token: u8, spent: Spent, rules: Rules) -> bool {
        let at = usize::from(product);
        let Some(held) = self.claims[at].take_if(|held| held.token == token) else { return false };
        if held.lost.claims > 0 {
            let lost = Losses { calls: 0, ..held.lost };
            self.claims[at] = Some(Held { token: NOBODY, live: false, lost, begun: 0 });
        }
        if spent != Spent::default() && rules.release_remembers_spent {
            self.spent[at] = spent;
        }
        true
    }

    /// `abandon.lua`.
    pub(super) fn abandon(&mut self, product: u8, token: u8, rules: Rules) {
        let Some(held) = self.claims[usize::from(product)].as_mut().filter(|held| held.token == token) else {
            return;
        };
        let calls = if rules.abandoned_calls_are_lost { held.begun } else { 0 };
        let lost = Losses { calls: held.lost.calls + calls, ..held.lost };
        *held = Held { token: NOBODY, live: false, lost, begun: 0 };
    }

    /// `put_answer.lua`.
    pub(super) fn put_answer(
        &mut self,
        product: u8,
        token: u8,
        line: Line,
        late: Option<u8>,
        rules: Rules,
    ) -> Kept {
        let at = usize::from(product);
        let held = self.claims[at];
        let is_held = held.is_some_and(|held| held.token == token);
        let kept = match (self.standing(product), self.answers[at].filter(|_| rules.first_answer_counts)) {
            (Standing::Completed, _) => Kept::Done,
            // A result may follow a failure that is on disk: that one is told.
            (Standing::Failed, _) => Kept::Yes,
            (Standing::Open, Some(earlier)) if earlier != line => {
                let replaces = earlier.class.is_some() && line.class.is_none();
                if !replaces || late != Some(earlier.spent.total()) {
                    return self.end_claim_of(product, token, late, rules, Kept::Earlier(earlier));
                }
                self.answers[at] = Some(line);
                Kept::Yes
            }
            (Standing::Open, None) if !is_held && rules.late_answers_are_told => {
                let calls = held.map_or(0, |held| held.lost.calls + held.begun);
                let is_told = late == Some(self.spent[at].total() + calls);
                if !is_told && (late.is_none() || rules.others_are_compared) {
                    return Kept::Late { calls, spent: self.spent[at] };
                }
                self.answers[at] = Some(line);
                Kept::Yes
            }
            (Standing::Open, _) => {
                self.answers[at] = Some(line);
                Kept::Yes
            }
        };
        self.end_claim_of(product, token, late, rules, kept)
    }

    fn end_claim_of(&mut self, product: u8, token: u8, late: Option<u8>, rules: Rules, kept: Kept) -> Kept {
        let at = usize::from(product);
        let is_held = self.claims[at].is_some_and(|held| held.token == token);
        let is_late = late.is_some() || !rules.late_answers_are_told;
        if is_held || (is_late && rules.late_answers_end_claims) {
            self.claims[at] = None;
        }
        kept
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
        self.spent[at] = Spent::default();
    }

    pub(super) fn uncount(&mut self, at: usize) {
        if let Some(class) = self.failures[at] {
            self.classes[usize::from(class)] -= 1;
        }
    }
}
