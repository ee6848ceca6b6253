//! The command line, and nothing that acts on it.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use secrecy::SecretString;
use shelfmill_pipeline::{failure::FailureClass, job::Percentile};
use shelfmill_producer::input::Format;

mod change;
mod operate;
mod page;

pub(crate) use change::ChangeArgs;
pub(crate) use operate::{HealthArgs, PauseArgs, PurgeArgs};
pub(crate) use page::PageArgs;

const AFTER_HELP: &str = "\
The model's key is read from OPENAI_API_KEY. Progress and logs go to stderr, data to stdout.

Exit codes: 0 all done, 1 error, 2 bad usage, job or input, 3 done with failures, \
4 paused by the run itself (budget, key, quota, model, failures), 130 interrupted.";

/// Runs a language model over every product of a catalog, once.
#[derive(Debug, Parser)]
#[command(version, about, after_help = AFTER_HELP, max_term_width = 100, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct OutputArgs {
    /// No progress bar and no notes: only checkpoints, warnings and the end.
    #[arg(long, short, global = true, env = "SHELFMILL_QUIET", help_heading = "Output")]
    pub(crate) quiet: bool,
    /// How logs are written; RUST_LOG chooses which.
    #[arg(long, global = true, env = "SHELFMILL_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, help_heading = "Output")]
    pub(crate) log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Do everything in one process: nothing to install, nothing to start.
    #[command(after_help = "\
Examples:
  shelfmill run products.csv --simulate             try it, without a model
  shelfmill run products.csv                        with OPENAI_API_KEY set
  shelfmill run products.csv --base-url http://localhost:8000/v1 --model llama-3
  zcat dump.jsonl.gz | shelfmill run - --format jsonl

Run the same command again to go on after any end; what is done is skipped.")]
    Run(RunArgs),
    /// Fleet: read a catalog and publish a task for every product of it.
    Producer(ProducerArgs),
    /// Fleet: take tasks and ask the model; start as many as you like.
    Worker(WorkerArgs),
    /// Fleet: write the results; ends when every product is done.
    Aggregator(AggregatorArgs),
    /// Say how far a run is.
    #[command(after_help = "\
Prints `Completed: 65/229 products (28.4%)` and `Remaining: 164 products`. Give --out for a run in one process, \
--run for a fleet.")]
    Progress(ProgressArgs),
    /// Put failed products back, so that they are tried again, as the job says or otherwise.
    #[command(after_help = change::REQUEUE_HELP)]
    Requeue(RequeueArgs),
    /// Fleet: let nobody begin a call until `resume`; calls under way are finished, and the roles wait.
    Pause(PauseArgs),
    /// Fleet: let a paused run go on.
    Resume(FleetArgs),
    /// Fleet: remove what RabbitMQ and Redis know of a run, after asking; results on disk stay.
    Purge(PurgeArgs),
    /// Ask a role on this machine whether it is well, by its --listen address: 0 if so, 1 and the reason if not.
    Health(HealthArgs),
    /// Tell what a run would do, without a call: products, rejects, the first prompt, estimated tokens and cost.
    Check(CheckArgs),
    /// Serve an OpenAI-compatible API without a model: for demos, tests and benchmarks, with faults on demand.
    Simulate(SimulateArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) input: InputArgs,
    #[command(flatten)]
    pub(crate) job: JobArgs,
    /// The folder for the results [default: output, or output/NAME with --run NAME].
    #[arg(long, value_name = "DIR", env = "SHELFMILL_OUT")]
    pub(crate) out: Option<PathBuf>,
    /// The run's name; results of different runs are kept apart.
    #[arg(long, value_name = "NAME", env = "SHELFMILL_RUN", value_parser = run_name)]
    pub(crate) run: Option<String>,
    /// Answer with the built-in simulator instead of a model; results say `"model": "simulated"`.
    #[arg(long, env = "SHELFMILL_SIMULATE")]
    pub(crate) simulate: bool,
    #[command(flatten)]
    pub(crate) work: WorkArgs,
    #[command(flatten)]
    pub(crate) checkpoints: CheckpointArgs,
    #[command(flatten)]
    pub(crate) page: PageArgs,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ProducerArgs {
    #[command(flatten)]
    pub(crate) input: InputArgs,
    #[command(flatten)]
    pub(crate) job: JobArgs,
    #[command(flatten)]
    pub(crate) fleet: FleetArgs,
    /// Publish no further while so many tasks are ready for workers.
    #[arg(long, value_name = "TASKS", env = "SHELFMILL_MAX_BACKLOG", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) max_backlog: u64,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
}

#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    #[command(flatten)]
    pub(crate) fleet: FleetArgs,
    /// The model's API, if it is another one for this worker than the job says.
    #[arg(long, value_name = "URL", env = "OPENAI_BASE_URL", hide_env_values = true)]
    pub(crate) base_url: Option<String>,
    #[command(flatten)]
    pub(crate) work: WorkArgs,
    /// End when every product of the run is done, rather than waiting for more.
    #[arg(long, env = "SHELFMILL_UNTIL_DONE")]
    pub(crate) until_done: bool,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
}

#[derive(Debug, Args)]
pub(crate) struct AggregatorArgs {
    #[command(flatten)]
    pub(crate) fleet: FleetArgs,
    /// The folder for the results.
    #[arg(long, value_name = "DIR", env = "SHELFMILL_OUT", default_value = "output")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) checkpoints: CheckpointArgs,
    #[command(flatten)]
    pub(crate) page: PageArgs,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ProgressArgs {
    #[command(flatten)]
    pub(crate) which: WhichArgs,
    /// As one JSON object.
    #[arg(long, env = "SHELFMILL_JSON")]
    pub(crate) json: bool,
    /// Again and again, every second, until the run is complete.
    #[arg(long, env = "SHELFMILL_WATCH")]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RequeueArgs {
    #[command(flatten)]
    pub(crate) which: WhichArgs,
    /// Only failures of these classes, separated by commas (rate_limited, timeout, malformed, ...).
    #[arg(long, value_name = "CLASSES", env = "SHELFMILL_CLASS", value_delimiter = ',')]
    pub(crate) class: Vec<FailureClass>,
    /// Only this product; may be given several times.
    #[arg(long, value_name = "ID", env = "SHELFMILL_ID")]
    pub(crate) id: Vec<String>,
    /// Fleet: instead of failed products, the messages that no role could read, back to where they came from.
    #[arg(long, env = "SHELFMILL_DEAD", requires = "run", conflicts_with_all = ["class", "id", "model", "prices", "max_output_tokens", "timeout", "temperature"])]
    pub(crate) dead: bool,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) input: InputArgs,
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

/// The catalog.
#[derive(Clone, Debug, Args)]
pub(crate) struct InputArgs {
    /// JSONL, a JSON array, CSV or TSV, also gzipped; `-` is standard input.
    #[arg(value_name = "INPUT", env = "SHELFMILL_INPUT")]
    pub(crate) input: PathBuf,
    /// What the input is: jsonl, json, csv or tsv [default: by the file's ending].
    #[arg(long, value_name = "FORMAT", env = "SHELFMILL_FORMAT", help_heading = "Input")]
    pub(crate) format: Option<Format>,
    /// The field that names a product [default: the first of id, sku, product_id, uniq_id, handle].
    #[arg(long, value_name = "FIELD", env = "SHELFMILL_ID_FIELD", help_heading = "Input")]
    pub(crate) id_field: Option<String>,
    /// Only the first so many products.
    #[arg(long, value_name = "N", env = "SHELFMILL_LIMIT", help_heading = "Input", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,
    /// Stop at the first record that is no product, instead of setting it aside.
    #[arg(long, env = "SHELFMILL_STRICT", help_heading = "Input")]
    pub(crate) strict: bool,
}

/// What is to be done.
#[derive(Clone, Debug, Args)]
pub(crate) struct JobArgs {
    /// A job file: prompt, output schema, model, limits [default: a built-in product analysis].
    #[arg(long, value_name = "FILE", env = "SHELFMILL_JOB", help_heading = "Job")]
    pub(crate) job: Option<PathBuf>,
    /// The model [default: as the job says].
    #[arg(long, env = "SHELFMILL_MODEL", help_heading = "Job")]
    pub(crate) model: Option<String>,
    /// The root of an OpenAI-compatible API, such as http://localhost:8000/v1 [default: as the job says].
    #[arg(long, value_name = "URL", env = "OPENAI_BASE_URL", hide_env_values = true, help_heading = "Job")]
    pub(crate) base_url: Option<String>,
    /// The least time between the starts of two calls, such as 100ms [default: as the job says].
    #[arg(long, env = "SHELFMILL_DELAY", value_parser = duration, help_heading = "Job")]
    pub(crate) delay: Option<Duration>,
    /// Pause before the model has cost more than so many US dollars; needs prices [default: as the job says, else no limit].
    #[arg(long, value_name = "USD", env = "SHELFMILL_BUDGET", value_parser = budget, help_heading = "Job")]
    pub(crate) budget: Option<f64>,
    /// Pause when more than this share of the latest products (at least 50) failed; 1 never does [default: as the job says, else 0.5].
    #[arg(long, value_name = "SHARE", env = "SHELFMILL_ABORT_FAILURE_RATE", value_parser = share, help_heading = "Job")]
    pub(crate) abort_failure_rate: Option<f64>,
    /// Make a second call beside one that takes longer than this share of calls, such as p99; the first good answer
    /// counts, and both cost [default: as the job says, else never].
    #[arg(long, value_name = "PERCENTILE", env = "SHELFMILL_HEDGE_AFTER", help_heading = "Job")]
    pub(crate) hedge_after: Option<Percentile>,
    /// Ask once where products make equal prompts, and give all of them the answer; the prompt must not have their ids
    /// [default: as the job says].
    #[arg(long, env = "SHELFMILL_DEDUPE_PROMPTS", help_heading = "Job")]
    pub(crate) dedupe_prompts: bool,
    /// Go on with a run although its prompt, schema or model has changed; what is done stays as it is.
    #[arg(long, env = "SHELFMILL_ACCEPT_CHANGED_JOB", help_heading = "Job")]
    pub(crate) accept_changed_job: bool,
}

/// How the model is called.
#[derive(Clone, Debug, Args)]
pub(crate) struct WorkArgs {
    /// Calls at once [default: as the job says, else 32].
    #[arg(long, short, value_name = "N", env = "SHELFMILL_CONCURRENCY", value_parser = clap::value_parser!(u32).range(1..=i64::from(shelfmill_worker::MAX_CONCURRENCY)), help_heading = "Work")]
    pub(crate) concurrency: Option<u32>,
    /// Build the HTTP client anew after so many calls; 0 never does.
    #[arg(
        long,
        value_name = "CALLS",
        env = "SHELFMILL_RECYCLE_CLIENT_EVERY",
        default_value_t = 0,
        help_heading = "Work"
    )]
    pub(crate) recycle_client_every: u32,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct CheckpointArgs {
    /// Save after so many products (or 50 ms, whichever is first).
    #[arg(long, value_name = "PRODUCTS", env = "SHELFMILL_CHECKPOINT_EVERY", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Work")]
    pub(crate) checkpoint_every: u32,
    /// At the end, leave a page with the figures, for a browser, beside the results (analysis_report.html).
    #[arg(long, env = "SHELFMILL_REPORT", help_heading = "Work")]
    pub(crate) report: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ProcessArgs {
    /// Show the run to people at / (run, aggregator), tell Prometheus at /metrics, and probes at /healthz and /readyz;
    /// 127.0.0.1:0 takes a free port and tells which.
    #[arg(long, value_name = "ADDR:PORT", env = "SHELFMILL_LISTEN", help_heading = "Work")]
    pub(crate) listen: Option<std::net::SocketAddr>,
    /// After Ctrl-C or SIGTERM, how long calls in flight may take to finish.
    #[arg(long, env = "SHELFMILL_GRACE", default_value = "30s", value_parser = duration, help_heading = "Work")]
    pub(crate) grace: Duration,
}

/// Where the fleet meets.
#[derive(Clone, Debug, Args)]
pub(crate) struct FleetArgs {
    /// The run's name: every queue and key carries it.
    #[arg(long, value_name = "NAME", env = "SHELFMILL_RUN", value_parser = run_name, help_heading = "Fleet")]
    pub(crate) run: String,
    #[command(flatten)]
    pub(crate) servers: ServerArgs,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ServerArgs {
    /// RabbitMQ: amqp:// or amqps:// (the virtual host / is written %2f).
    #[arg(
        long,
        value_name = "URL",
        env = "SHELFMILL_AMQP_URL",
        default_value = "amqp://guest:guest@127.0.0.1:5672/%2f",
        hide_env_values = true,
        help_heading = "Fleet"
    )]
    pub(crate) amqp_url: SecretString,
    /// Redis: redis:// or rediss://.
    #[arg(
        long,
        value_name = "URL",
        env = "SHELFMILL_REDIS_URL",
        default_value = "redis://127.0.0.1:6379/0",
        hide_env_values = true,
        help_heading = "Fleet"
    )]
    pub(crate) redis_url: SecretString,
    /// Certificates (PEM) to trust for amqps:// and rediss://.
    #[arg(long, value_name = "FILE", env = "SHELFMILL_TLS_CA", help_heading = "Fleet")]
    pub(crate) tls_ca: Option<PathBuf>,
}

/// A run in one process, or a fleet's.
#[derive(Clone, Debug, Args)]
pub(crate) struct WhichArgs {
    /// The output folder of a run in one process [default: output, where no --run is given].
    #[arg(long, value_name = "DIR", env = "SHELFMILL_OUT")]
    pub(crate) out: Option<PathBuf>,
    /// The name of a fleet's run.
    #[arg(long, value_name = "NAME", env = "SHELFMILL_RUN", value_parser = run_name)]
    pub(crate) run: Option<String>,
    #[command(flatten)]
    pub(crate) servers: ServerArgs,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct SimulateArgs {
    /// The port to listen on; 0 takes a free one and says which.
    #[arg(long, env = "SHELFMILL_PORT", default_value_t = 8000)]
    pub(crate) port: u16,
    /// The address to listen on.
    #[arg(long, value_name = "ADDRESS", env = "SHELFMILL_BIND", default_value = "127.0.0.1")]
    pub(crate) bind: IpAddr,
    /// How long an answer takes.
    #[arg(long, env = "SHELFMILL_SIMULATE_LATENCY", default_value = "0s", value_parser = duration)]
    pub(crate) latency: Duration,
    /// By how much an answer may be faster or slower.
    #[arg(long, env = "SHELFMILL_SIMULATE_JITTER", default_value = "0s", value_parser = duration)]
    pub(crate) jitter: Duration,
    /// A hard limit; calls above it are answered with 429.
    #[arg(long, value_name = "N", env = "SHELFMILL_SIMULATE_MAX_REQUESTS_PER_SECOND")]
    pub(crate) max_requests_per_second: Option<f64>,
    /// A hard limit; calls above it are answered with 429. A call takes its prompt and its `max_tokens`, and one that
    /// would take more than N is refused for good.
    #[arg(long, value_name = "N", env = "SHELFMILL_SIMULATE_MAX_TOKENS_PER_MINUTE")]
    pub(crate) max_tokens_per_minute: Option<u64>,
    /// Tell nothing of the limits in `x-ratelimit-*` headers; `Retry-After` is sent all the same.
    #[arg(long, env = "SHELFMILL_SIMULATE_NO_LIMIT_HEADERS")]
    pub(crate) no_limit_headers: bool,
    /// After so many calls, answer all others with 429 and the code `insufficient_quota`.
    #[arg(long, value_name = "CALLS", env = "SHELFMILL_SIMULATE_QUOTA_AFTER")]
    pub(crate) quota_after: Option<u64>,
    /// Answer with 503 and `Retry-After` when there are more than N calls at once.
    #[arg(long, value_name = "N", env = "SHELFMILL_SIMULATE_OVERLOADED_AFTER")]
    pub(crate) overloaded_after: Option<usize>,
    /// A model there is not: calls for it are answered with 404 and the code `model_not_found`.
    #[arg(long, value_name = "NAME", env = "SHELFMILL_SIMULATE_UNKNOWN_MODEL")]
    pub(crate) unknown_model: Option<String>,
    /// The most that `response_format` may ask for; more is answered with 400.
    #[arg(
        long,
        value_enum,
        value_name = "FORMAT",
        env = "SHELFMILL_SIMULATE_STRUCTURED",
        default_value = "json_schema"
    )]
    pub(crate) structured: Structured,
    /// The tokens that prompt and `max_tokens` must fit into; more is answered with 400 and `context_length_exceeded`.
    #[arg(long, value_name = "TOKENS", env = "SHELFMILL_SIMULATE_CONTEXT_WINDOW")]
    pub(crate) context_window: Option<u64>,
    /// Products whose calls are never answered.
    #[arg(long, value_name = "ID,ID", env = "SHELFMILL_SIMULATE_HANG_PRODUCTS", value_delimiter = ',')]
    pub(crate) hang_products: Vec<String>,
    /// Products whose calls are answered with 403, as by a firewall that does not like their text.
    #[arg(long, value_name = "ID,ID", env = "SHELFMILL_SIMULATE_FORBID_PRODUCTS", value_delimiter = ',')]
    pub(crate) forbid_products: Vec<String>,
    /// Only this key is let in.
    #[arg(long, value_name = "KEY", env = "SHELFMILL_SIMULATE_KEY", hide_env_values = true)]
    pub(crate) api_key: Option<SecretString>,
    /// Which calls meet which fault: the same seed, the same faults.
    #[arg(long, env = "SHELFMILL_SIMULATE_SEED", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Keep no counts by product, so that memory does not grow.
    #[arg(long, env = "SHELFMILL_SIMULATE_NO_PRODUCT_COUNTS")]
    pub(crate) no_product_counts: bool,
    #[command(flatten)]
    pub(crate) faults: FaultArgs,
}

/// What a simulated server knows of `response_format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Structured {
    /// All there is.
    JsonSchema,
    /// JSON, but no schema.
    JsonObject,
    /// Text only.
    None,
}

/// Shares of the calls, from 0 to 1, that meet a fault.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Faults, each as a share of the calls from 0 to 1")]
pub(crate) struct FaultArgs {
    /// 429 with `Retry-After`.
    #[arg(long, value_name = "SHARE", env = "SHELFMILL_SIMULATE_RATE_LIMITED", default_value_t = 0.0)]
    pub(crate) rate_limited: f64,
    /// 500, 502 or 503.
    #[arg(long, value_name = "SHARE", env = "SHELFMILL_SIMULATE_SERVER_ERROR", default_value_t = 0.0)]
    pub(crate) server_error: f64,
    /// An answer that is not JSON.
    #[arg(long, value_name = "SHARE", env = "SHELFMILL_SIMULATE_MALFORMED", default_value_t = 0.0)]
    pub(crate) malformed: f64,
    /// An answer cut off at the token ceiling.
    #[arg(long, value_name = "SHARE", env = "SHELFMILL_SIMULATE_TRUNCATED", default_value_t = 0.0)]
    pub(crate) truncated: f64,
    /// No answer at all.
    #[arg(long, value_name = "SHARE", env = "SHELFMILL_SIMULATE_HUNG", default_value_t = 0.0)]
    pub(crate) hung: f64,
    /// A connection that breaks in the middle of the answer.
    #[arg(long, value_name = "SHARE", env = "SHELFMILL_SIMULATE_CUT_OFF", default_value_t = 0.0)]
    pub(crate) cut_off: f64,
    /// The model declines.
    #[arg(long, value_name = "SHARE", env = "SHELFMILL_SIMULATE_REFUSED", default_value_t = 0.0)]
    pub(crate) refused: f64,
    /// The provider withholds the answer.
    #[arg(long, value_name = "SHARE", env = "SHELFMILL_SIMULATE_CONTENT_FILTERED", default_value_t = 0.0)]
    pub(crate) content_filtered: f64,
    /// JSON that breaks the schema.
    #[arg(long, value_name = "SHARE", env = "SHELFMILL_SIMULATE_SCHEMA_VIOLATION", default_value_t = 0.0)]
    pub(crate) schema_violation: f64,
    /// 400.
    #[arg(long, value_name = "SHARE", env = "SHELFMILL_SIMULATE_BAD_REQUEST", default_value_t = 0.0)]
    pub(crate) bad_request: f64,
    /// A sound answer in a code fence, in sentences, or in both.
    #[arg(long, value_name = "SHARE", env = "SHELFMILL_SIMULATE_PROSE", default_value_t = 0.0)]
    pub(crate) prose: f64,
}

/// `500ms`, `30s`, `1m 30s`, or a number of seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let parsed = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        Err(_) => {
            text.parse::<jiff::SignedDuration>().ok().and_then(|duration| Duration::try_from(duration).ok())
        }
    };
    parsed.ok_or_else(|| "a duration is written like 500ms, 30s or 1m 30s".to_owned())
}

/// An amount of US dollars above nothing.
fn budget(text: &str) -> Result<f64, String> {
    let usd = text.trim_start_matches('$').parse::<f64>().ok().filter(|usd| usd.is_finite() && *usd > 0.0);
    usd.ok_or_else(|| "a budget is written like 5.00, in US dollars".to_owned())
}

/// From 0 to 1.
fn share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "a share is written like 0.5, from 0 to 1".to_owned())
}

/// Names become parts of queue names, keys and paths.
fn run_name(text: &str) -> Result<String, String> {
    const MAX_BYTES: usize = 64;
    let fits = (1..=MAX_BYTES).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !text.starts_with('.');
    if fits {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "a run's name has 1 to {MAX_BYTES} letters, digits, '-', '_' or '.', and begins with none of '.'"
        ))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_tree_is_valid() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_option_has_an_environment_variable() {
        for command in Cli::command().get_subcommands() {
            for argument in command.get_arguments().filter(|argument| argument.get_long().is_some()) {
                assert!(argument.get_env().is_some(), "{} {argument}", command.get_name());
            }
        }
    }

    #[test]
    fn durations_and_names() {
        assert_eq!(duration("100ms"), Ok(Duration::from_millis(100)));
        assert_eq!(duration("1.5"), Ok(Duration::from_millis(1500)));
        assert!(duration("soon").is_err());
        assert!(run_name("spring-2026").is_ok());
        assert!(run_name("../x").is_err() && run_name("").is_err() && run_name("a b").is_err());
    }
}
