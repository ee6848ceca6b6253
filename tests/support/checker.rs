//! The one judgement of a run: do the promises hold of what it left?
//!
//! It looks at what nobody can argue with: the input, the files, what the model counted on its side, and what is left
//! in the queues and in the ledger. Counts follow RabbitMQ's Jepsen suite: lost, doubled, unexpected.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::{
    catalog::Catalog,
    rabbitmq::{Queue, RabbitMq},
    redis::Redis,
    results::{Results, id},
    simulator::Simulator,
};

/// What a run may have paid twice.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Repeats {
    /// Nothing was killed, and nothing is excused.
    None,
    /// At most so many answers, and the lines tell of each. (Kills times concurrency.)
    AtMost(u64),
    /// At most so many answers, and the lines need not know: the ledger was emptied or set back.
    UntoldAtMost(u64),
}

/// What is known of a run that has ended.
pub(crate) struct Evidence<'a> {
    pub(crate) catalog: &'a Catalog,
    pub(crate) results: &'a Results,
    /// What the model counted; nothing where it went with the process.
    pub(crate) model: Option<&'a Simulator>,
    /// The queues of the run; none in one process.
    pub(crate) queues: BTreeMap<String, Queue>,
    /// What is left under the run's keys, by what it is, and should not be.
    pub(crate) keys: BTreeMap<String, u64>,
}

/// What is wrong with a run: each list is empty when all is well.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Products without a line.
    lost: Vec<String>,
    /// Products with more than one line.
    doubled: Vec<String>,
    /// Lines of products that are not in the input.
    unexpected: Vec<String>,
    /// Lines with another place or another product than the input has, and results out of order.
    out_of_place: Vec<String>,
    /// Failures of products that the model answered, or was never asked for.
    failed_wrongly: Vec<String>,
    /// Answers beyond a product's first.
    pub(crate) paid_twice: u64,
    /// Calls that the product's line does not know of.
    pub(crate) untold: Vec<String>,
    /// Calls that lines tell of and the model was never sent: claims whose holder died between noting a call and making it.
    pub(crate) overtold: u64,
    /// Queues with messages.
    tasks_left: Vec<String>,
    /// Claims and answers of products that are done.
    keys_left: Vec<String>,
    /// Where the summary and the files disagree.
    miscounted: Vec<String>,
}

/// Looks at everything.
pub(crate) fn examine(evidence: &Evidence<'_>) -> Report {
    let Evidence { catalog, results, model, queues, keys } = evidence;
    let mut report = Report::default();
    report.lines(catalog, results);
    report.order(catalog, results);
    report.counts(results);
    if let Some(model) = model {
        report.calls(results, &model.stats()["by_product"]);
    }
    let left = queues.iter().filter(|(_, queue)| queue.ready + queue.unacked > 0);
    report.tasks_left = left.map(|(name, queue)| format!("{name}: {queue:?}")).collect();
    report.keys_left =
        keys.iter().filter(|(_, count)| **count > 0).map(|(what, count)| format!("{count} {what}")).collect();
    report
}

impl Report {
    /// # Panics
    /// When a promise is broken, with everything that was found.
    #[track_caller]
    pub(crate) fn assert_promises_hold(&self, repeats: Repeats) {
        let Self { lost, doubled, unexpected, out_of_place, failed_wrongly, .. } = self;
        let empty =
            [lost, doubled, unexpected, out_of_place, failed_wrongly, &self.tasks_left, &self.keys_left];
        assert!(empty.iter().all(|list| list.is_empty()) && self.miscounted.is_empty(), "{self:#?}");
        let (allowed, may_be_untold) = match repeats {
            Repeats::None => (0, false),
            Repeats::AtMost(calls) => {
                assert!(self.overtold <= calls, "lines tell of calls that nobody made: {self:#?}");
                (calls, false)
            }
            Repeats::UntoldAtMost(calls) => (calls, true),
        };
        assert!(
            self.paid_twice <= allowed,
            "{} answers paid twice, {allowed} explained: {self:#?}",
            self.paid_twice
        );
        assert!(may_be_untold || self.untold.is_empty(), "the lines do not tell of all calls: {self:#?}");
    }

    fn lines(&mut self, catalog: &Catalog, results: &Results) {
        let mut lines: HashMap<&str, Vec<&Value>> = HashMap::new();
        for line in results.journal.iter().chain(&results.failures) {
            lines.entry(id(line)).or_default().push(line);
        }
        let mut last = 0;
        for product in &catalog.ids {
            let found = lines.remove(product.as_str()).unwrap_or_default();
            match found.as_slice() {
                [] => self.lost.push(product.clone()),
                [_] => {}
                _ => self.doubled.push(product.clone()),
            }
            for line in found {
                let seq = line["seq"].as_u64().unwrap_or(0);
                if seq <= last || line["product"]["id"] != **product {
                    self.out_of_place
                        .push(format!("{product} as number {seq}, with {}", line["product"]["id"]));
                }
                last = seq;
            }
        }
        self.unexpected = lines.into_keys().map(ToOwned::to_owned).collect();
    }

    /// The final JSON has the journal's lines in input order.
    fn order(&mut self, catalog: &Catalog, results: &Results) {
        let journal: HashMap<&str, &Value> = results.journal.iter().map(|line| (id(line), line)).collect();
        let expected = catalog.ids.iter().filter_map(|product| journal.get(product.as_str()));
        let mut found = results.results.iter();
        for line in expected {
            match found.next() {
                Some(result) if result == *line => {}
                other => {
                    return self
                        .out_of_place
                        .push(format!("{} in the final JSON, found {other:?}", id(line)));
                }
            }
        }
        self.out_of_place.extend(found.map(|line| format!("{} at the end of the final JSON", id(line))));
    }

    /// Whether the summary agrees with the files.
    pub(crate) fn of_summary(results: &Results) -> Self {
        let mut report = Self::default();
        report.counts(results);
        report
    }

    fn counts(&mut self, results: &Results) {
        let count = |name: &str| results.summary["counts"][name].as_u64();
        let parts =
            ["completed", "failed", "rejected", "remaining"].map(|part| count(part).unwrap_or(u64::MAX / 8));
        let files =
            [("completed", &results.journal), ("failed", &results.failures), ("rejected", &results.rejects)];
        for (name, lines) in files {
            if count(name) != Some(lines.len() as u64) {
                self.miscounted.push(format!(
                    "{name}: {} lines, {:?} in the summary",
                    lines.len(),
                    count(name)
                ));
            }
        }
        if count("input") != Some(parts.iter().sum()) {
            self.miscounted.push(format!("the summary does not add up: {:#}", results.summary["counts"]));
        }
        let of_lines = |field: &str| -> u64 {
            let lines = results.journal.iter().chain(&results.failures);
            lines.filter_map(|line| line["meta"][field].as_u64()).sum()
        };
        let (attempts, repeated) = (of_lines("attempts"), of_lines("repeated_calls"));
        if results.calls() != (attempts + repeated, repeated) {
            self.miscounted
                .push(format!("{:?} calls, but lines tell of {attempts} + {repeated}", results.calls()));
        }
    }

    fn calls(&mut self, results: &Results, by_product: &Value) {
        for line in results.journal.iter().chain(&results.failures) {
            let count = |of: &str| by_product[id(line)][of].as_u64().unwrap_or(0);
            let meta = |field: &str| line["meta"][field].as_u64().unwrap_or(0);
            let (calls, answers, told) =
                (count("calls"), count("answers"), meta("attempts") + meta("repeated_calls"));
            self.paid_twice += answers.saturating_sub(1);
            self.overtold += told.saturating_sub(calls);
            if calls > told {
                self.untold.push(format!("{}: {calls} calls, {told} told", id(line)));
            }
            let class = line["failure"]["class"].as_str();
            // What cannot be asked is not: without its images a product's question is another one.
            let message = line["failure"]["message"].as_str().unwrap_or_default();
            let cannot_be_asked = matches!(class, Some("unpromptable" | "image_unusable"))
                || message.starts_with("the image in field");
            let was_asked = calls > 0 || told > calls || cannot_be_asked;
            if class.is_some() && (answers > 0 || !was_asked) {
                self.failed_wrongly.push(format!(
                    "{}: {calls} calls, {answers} answers, {}",
                    id(line),
                    line["failure"]
                ));
            }
        }
    }
}

/// What a fleet's run has left with RabbitMQ: messages of queues that should be empty.
pub(crate) fn queues_of(run: &str, rabbitmq: &RabbitMq) -> BTreeMap<String, Queue> {
    let prefix = format!("shelfmill.{run}.");
    rabbitmq.queues().into_iter().filter(|(name, _)| name.starts_with(&prefix)).collect()
}

/// What a fleet's run has left with Redis and should not.
pub(crate) fn keys_of(run: &str, redis: &Redis) -> BTreeMap<String, u64> {
    let length = |what: &str| {
        let length = redis.cli(&["HLEN", &format!("shelfmill:{{{run}}}:{what}")]);
        (what.to_owned(), length.parse().expect("a length"))
    };
    let mut keys: BTreeMap<String, u64> = ["claims", "answers", "spent"].map(length).into();
    keys.insert("billionths of a dollar held".to_owned(), money(run, redis, "held"));
    keys
}

/// What the ledger has of a run's money, in billionths of a dollar: `spent` or `held`.
pub(crate) fn money(run: &str, redis: &Redis, what: &str) -> u64 {
    let found = redis.cli(&["HGET", &format!("shelfmill:{{{run}}}:pace"), what]);
    if found.is_empty() { 0 } else { found.parse().unwrap_or_else(|_| panic!("{what} is {found}")) }
}

/// A run in one process, whose model outlived it.
#[track_caller]
pub(crate) fn check(catalog: &Catalog, model: &Simulator, repeats: Repeats) -> Results {
    let results = Results::read(&catalog.out());
    let evidence = Evidence {
        catalog,
        results: &results,
        model: Some(model),
        queues: BTreeMap::new(),
        keys: BTreeMap::new(),
    };
    examine(&evidence).assert_promises_hold(repeats);
    results
}
