//! What a process counts of its work, for Prometheus. One set for the process, like the subscriber of its logs: whoever does
//! something counts it, and nobody is handed anything for it.
//!
//! Labels are classes, endpoints of the job and the names of servers: none is of a product, so that a run of ten million makes
//! as many series as one of ten. Nothing here can fail, wait or hold up what it counts.

use std::{
    sync::{
        LazyLock, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};

use crate::{failure::FailureClass, money::Money};

/// Jobs list a few; what is beyond is counted together.
const MOST_ENDPOINTS: usize = 64;
const BEYOND: &str = "other";

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// A family of one, that may also be of none.
type NoLabels = [(&'static str, &'static str); 0];
type SecondsGauge = Gauge<f64, AtomicU64>;
type UsdCounter = Counter<f64, AtomicU64>;

/// Everything that is counted. What a role does not do stays at 0.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Products that this worker has seen to their outcome.
    products: Family<ProductLabels, Counter>,
    calls: Family<CallLabels, Counter>,
    call_duration: Family<EndpointLabels, Histogram>,
    tokens: Family<KindLabels, Counter>,
    cost_usd: UsdCounter,
    /// Calls under way, how many may be now, and at most.
    pub calls_in_flight: Gauge,
    /// How many may be under way, as things are.
    pub calls_limit: Gauge,
    /// How many may be under way at most.
    pub concurrency: Gauge,
    limiter_wait: Histogram,
    retries: Family<ClassLabels, Counter>,
    reconnects: Family<ServerLabels, Counter>,
    last_progress: SecondsGauge,
    recorded: Family<OutcomeLabels, Counter>,
    batch_products: Histogram,
    fsync: Histogram,
    run_products: Family<StateLabels, Gauge>,
    queue_messages: Family<QueueLabels, Gauge>,
    /// Dollars that the run has cost, as its lines tell.
    pub spent_usd: SecondsGauge,
    budget_usd: Family<NoLabels, SecondsGauge>,
    /// Workers that were heard of lately.
    pub workers: Gauge,
    /// Tasks published.
    pub published: Counter,
    progressed_ms: AtomicU64,
    usual: Usual,
}

/// What is counted for nearly every product, found once.
#[derive(Debug, Default)]
struct Usual {
    completed: OnceLock<Counter>,
    /// Answered calls of the first endpoint that had any.
    answered: OnceLock<Answered>,
    /// Tokens read and written.
    tokens: OnceLock<[Counter; 2]>,
}

#[derive(Debug)]
struct Answered {
    endpoint: String,
    calls: Counter,
    took: Histogram,
}

macro_rules! labels {
    ($($name:ident { $($field:ident),+ })+) => {
        $(#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
        struct $name { $($field: &'static str),+ })+
    };
}

labels! {
    ProductLabels { outcome, class }
    KindLabels { kind }
    ClassLabels { class }
    ServerLabels { server }
    OutcomeLabels { outcome }
    StateLabels { state }
    QueueLabels { queue }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct EndpointLabels {
    endpoint: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CallLabels {
    endpoint: String,
    result: &'static str,
}

/// This process'.
#[must_use]
pub fn metrics() -> &'static Metrics {
    &METRICS
}

/// 1 ms to 2 minutes.
fn latencies() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 18))
}

impl Metrics {
    fn new() -> Self {
        let mut registry = Registry::with_prefix("shelfmill");
        macro_rules! register {
            ($name:literal, $help:literal, $metric:expr) => {{
                let metric = $metric;
                registry.register($name, $help, metric.clone());
                metric
            }};
            ($name:literal, $help:literal, $unit:expr, $metric:expr) => {{
                let metric = $metric;
                registry.register_with_unit($name, $help, $unit, metric.clone());
                metric
            }};
        }
        // Of an image it is said in its environment, so that another revision of the same code compiles nothing.
        let revision = std::env::var("SHELFMILL_REVISION");
        let build = [
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("revision", revision.unwrap_or_else(|_| "unknown".to_owned())),
        ];
        registry.register("build", "What this process is", Info::new(build));
        Self {
            products: register!("products", "Products that were seen to their outcome", Family::default()),
            calls: register!("calls", "Calls to the model, by how they ended", Family::default()),
            call_duration: register!(
                "call_duration",
                "How long calls to the model took, whatever became of them",
                Unit::Seconds,
                Family::new_with_constructor(latencies as fn() -> Histogram)
            ),
            tokens: register!("tokens", "Tokens that the model has counted", Family::default()),
            cost_usd: register!("cost_usd", "Dollars that calls are known to have cost", Counter::default()),
            calls_in_flight: register!("calls_in_flight", "Calls under way", Gauge::default()),
            calls_limit: register!(
                "calls_limit",
                "Calls that may be under way, as things are",
                Gauge::default()
            ),
            concurrency: register!("concurrency", "Calls that may be under way at most", Gauge::default()),
            limiter_wait: register!(
                "limiter_wait",
                "How long calls waited for their turn",
                Unit::Seconds,
                latencies()
            ),
            retries: register!(
                "retries",
                "Attempts at a product that are to be followed by another",
                Family::default()
            ),
            reconnects: register!("reconnects", "Losses of a server that have ended", Family::default()),
            last_progress: register!(
                "last_progress_timestamp",
                "When something was done last, in seconds since 1970",
                Unit::Seconds,
                Gauge::default()
            ),
            recorded: register!("recorded_products", "Products whose lines are on disk", Family::default()),
            batch_products: register!(
                "batch_products",
                "Products written at once",
                Histogram::new(exponential_buckets(1.0, 2.0, 13))
            ),
            fsync: register!(
                "journal_fsync_duration",
                "How long the disk took to keep what was written",
                Unit::Seconds,
                Histogram::new(exponential_buckets(0.000_1, 2.0, 18))
            ),
            run_products: register!("run_products", "How far the run is", Family::default()),
            queue_messages: register!("queue_messages", "Messages that wait", Family::default()),
            spent_usd: register!(
                "spent_usd",
                "Dollars that the run has cost, as its lines tell",
                Gauge::default()
            ),
            budget_usd: register!("budget_usd", "Dollars that the run may cost", Family::default()),
            workers: register!("workers", "Workers that were heard of lately", Gauge::default()),
            published: register!("published_products", "Tasks published", Counter::default()),
            progressed_ms: AtomicU64::new(0),
            usual: Usual::default(),
            registry,
        }
    }

    /// In the text format of OpenMetrics.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut page = String::new();
        // A String takes whatever is written to it.
        let _ = text::encode(&mut page, &self.registry);
        page
    }

    /// Something was done.
    pub fn progressed(&self) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_progress.set(since.as_secs_f64());
        self.progressed_ms.store(u64::try_from(since.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// A product has its outcome.
    pub fn product(&self, failed: Option<FailureClass>) {
        let found = |outcome, class| self.products.get_or_create_owned(&ProductLabels { outcome, class });
        match failed {
            None => self.usual.completed.get_or_init(|| found("completed", "")).inc(),
            Some(class) => found("failed", class.name()).inc(),
        };
        self.progressed();
    }

    /// A call has ended; `endpoint` is "" where the job lists none.
    pub fn call(&self, endpoint: &str, failed: Option<FailureClass>, took: Duration) {
        let result = failed.map_or("answered", FailureClass::name);
        let find = || self.find(endpoint, result);
        let usual = failed.is_none().then(|| self.usual.answered.get_or_init(find));
        let found;
        let of = match usual.filter(|usual| usual.endpoint == endpoint) {
            Some(usual) => usual,
            None => {
                found = find();
                &found
            }
        };
        of.took.observe(took.as_secs_f64());
        of.calls.inc();
    }

    fn find(&self, endpoint: &str, result: &'static str) -> Answered {
        let endpoint = self.bounded(endpoint);
        Answered {
            took: self.call_duration.get_or_create_owned(&EndpointLabels { endpoint: endpoint.clone() }),
            calls: self.calls.get_or_create_owned(&CallLabels { endpoint: endpoint.clone(), result }),
            endpoint,
        }
    }

    fn bounded(&self, endpoint: &str) -> String {
        static NAMES: LazyLock<std::sync::Mutex<std::collections::BTreeSet<String>>> =
            LazyLock::new(Default::default);
        let mut names = NAMES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !names.contains(endpoint) {
            if names.len() >= MOST_ENDPOINTS {
                return BEYOND.to_owned();
            }
            names.insert(endpoint.to_owned());
        }
        endpoint.to_owned()
    }

    /// What a call is known to have taken.
    pub fn billed(&self, prompt_tokens: u64, completion_tokens: u64, cost: Money) {
        let find = |kind| self.tokens.get_or_create_owned(&KindLabels { kind });
        let [read, written] = self.usual.tokens.get_or_init(|| [find("prompt"), find("completion")]);
        read.inc_by(prompt_tokens);
        written.inc_by(completion_tokens);
        self.cost_usd.inc_by(cost.usd());
    }

    /// A call has had its turn.
    pub fn waited(&self, waited: Duration) {
        self.limiter_wait.observe(waited.as_secs_f64());
    }

    /// An attempt has failed, and another one follows.
    pub fn retries(&self, class: FailureClass) {
        self.retries.get_or_create(&ClassLabels { class: class.name() }).inc();
    }

    /// `rabbitmq` or `redis` was lost, and is back.
    pub fn reconnected(&self, server: &'static str) {
        self.reconnects.get_or_create(&ServerLabels { server }).inc();
    }

    /// So many lines were written at once, and the disk has them.
    pub fn recorded(&self, completed: u64, failed: u64) {
        for (outcome, count) in [("completed", completed), ("failed", failed)] {
            self.recorded.get_or_create(&OutcomeLabels { outcome }).inc_by(count);
        }
        #[expect(clippy::cast_precision_loss, reason = "a batch")]
        self.batch_products.observe((completed + failed) as f64);
        self.progressed();
    }

    /// The disk has kept what was written.
    pub fn synced(&self, took: Duration) {
        self.fsync.observe(took.as_secs_f64());
    }

    /// How far the run is.
    pub fn run(&self, expected: Option<u64>, completed: u64, failed: u64) {
        for (state, count) in
            [("expected", expected), ("completed", Some(completed)), ("failed", Some(failed))]
        {
            let Some(count) = count else { continue };
            self.run_products
                .get_or_create(&StateLabels { state })
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// What waits in a queue.
    pub fn queue(&self, queue: &'static str, messages: u64) {
        self.queue_messages
            .get_or_create(&QueueLabels { queue })
            .set(i64::try_from(messages).unwrap_or(i64::MAX));
    }

    /// What the run may cost, where that has an end.
    pub fn budget(&self, usd: Option<f64>) {
        match usd {
            Some(usd) => drop(self.budget_usd.get_or_create(&[]).set(usd)),
            None => drop(self.budget_usd.remove(&[])),
        }
    }
}
