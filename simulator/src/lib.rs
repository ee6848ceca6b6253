//! An OpenAI-compatible server without a model, for demos, tests and benchmarks.
//!
//! What a client may rely on:
//! - **Answers hold the contract.** Whatever JSON Schema a request carries, the answer has been checked against it
//!   by a full validator before it is sent; a schema no instance is found for is refused with a 400, never guessed at.
//!   Only a ceiling (`max_tokens`) cuts it, and is told so by its `finish_reason`.
//! - **Runs replay.** Answers come from the product alone; faults and latencies from the seed, the product and the
//!   number of the call. A product that met a fault can therefore succeed when it is tried again.
//! - **The counters tell the truth.** `GET /stats` counts a call when its request has been received, and an answer
//!   only when a complete and valid one has been handed to the socket; a test can prove with it what was paid for.
//!   Tokens are those of every completion sent, valid or not; what was cut off stands apart, as `unseen_tokens`.
//! - **It is bounded.** Requests, connections, schemas and instances all have a named limit. Only the count by product
//!   grows with the catalog; [`Config::count_by_product`] turns it off.
//!
//! It serves HTTP/1.1, and HTTP/2 to those who begin with it, without TLS and through hyper itself: with nothing to route and nothing to layer, a framework would only
//! cost a benchmark its speed.

mod body;
mod compile;
mod completion;
mod contract;
mod dice;
mod faults;
mod flatten;
mod gates;
mod instance;
mod limit;
mod reply;
mod request;
mod routes;
mod schema;
mod server;
mod stats;
mod text;
mod vocabulary;
mod words;

use std::fmt;
use std::time::Duration;

pub use faults::Faults;
pub use server::Simulator;

/// The only model there is, whatever a request asks for.
pub const MODEL: &str = "simulated";

/// How the simulator behaves.
#[derive(Clone)]
pub struct Config {
    /// How long an answer takes. Rate limits and refused requests are told at once, as a real provider does.
    pub latency: Duration,
    /// Uniform, to both sides of `latency`; an answer never takes less than nothing.
    pub jitter: Duration,
    /// What goes wrong, and how often.
    pub faults: Faults,
    /// Two simulators with the same seed give the same answers and the same faults to the same calls.
    pub seed: u64,
    /// A hard limit over all clients, with a burst of one second's worth (at least one request).
    pub max_requests_per_second: Option<f64>,
    /// A hard limit over all clients, with a burst of one minute's worth. A call takes its prompt and its ceiling
    /// (`max_tokens`), whatever comes of it; nothing is given back. One that would take more than the whole is refused
    /// for good, without `Retry-After`.
    pub max_tokens_per_minute: Option<u64>,
    /// Whether limits are told in `x-ratelimit-*` headers; `Retry-After` is sent in any case.
    pub limit_headers: bool,
    /// After so many calls, counted from the start or the last `POST /reset`, all others get a 429 with the code
    /// `insufficient_quota`.
    pub quota_after: Option<u64>,
    /// More calls at once get a 503 with `Retry-After: 1`; hung ones count too, refused ones do not.
    pub overloaded_after: Option<usize>,
    /// A model that there is not: 404, `model_not_found`.
    pub unknown_model: Option<String>,
    /// What `response_format` may ask for; anything else gets a 400.
    pub structured: Structured,
    /// Prompt and ceiling must fit into so many tokens, or get a 400, `context_length_exceeded`. Without a ceiling, an
    /// answer ends where the window does.
    pub context_window: Option<u64>,
    /// The ids of products whose every call hangs: never answered, and counted as the fault `hung`.
    pub hang_products: Vec<String>,
    /// The ids of products whose every call gets a 403, as from a firewall that does not like their text.
    pub forbid_products: Vec<String>,
    /// Calls with any other bearer token get a 401. `None` lets everybody in.
    pub api_key: Option<String>,
    /// Whether `/stats` tells calls and answers of each product. Costs about 180 bytes and the id, a product.
    pub count_by_product: bool,
}

/// How much of `response_format` is known. Each knows what the next one does, and all know `text`.
///
/// Where a request brings no schema that way, one that its messages tell (an object after `JSON schema:`) is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Structured {
    #[default]
    JsonSchema,
    JsonObject,
    None,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            latency: Duration::ZERO,
            jitter: Duration::ZERO,
            faults: Faults::default(),
            seed: 0,
            max_requests_per_second: None,
            max_tokens_per_minute: None,
            limit_headers: true,
            quota_after: None,
            overloaded_after: None,
            unknown_model: None,
            structured: Structured::default(),
            context_window: None,
            hang_products: Vec::new(),
            forbid_products: Vec::new(),
            api_key: None,
            count_by_product: true,
        }
    }
}

impl Config {
    /// Refuses what could not be simulated; the error names the option.
    pub fn validate(&self) -> anyhow::Result<()> {
        self.faults.validate()?;
        if let Some(limit) = self.max_requests_per_second {
            anyhow::ensure!(
                limit.is_finite() && limit > 0.0,
                "max_requests_per_second is {limit}: it must be a number above 0"
            );
        }
        let least_one =
            [("max_tokens_per_minute", self.max_tokens_per_minute), ("context_window", self.context_window)];
        for (name, given) in least_one {
            anyhow::ensure!(given != Some(0), "{name} is 0: it must be at least 1");
        }
        anyhow::ensure!(self.unknown_model.as_deref() != Some(""), "unknown_model is empty: name a model");
        for (name, ids) in
            [("hang_products", &self.hang_products), ("forbid_products", &self.forbid_products)]
        {
            anyhow::ensure!(
                !ids.iter().any(String::is_empty),
                "{name} has an empty id: write the ids with a comma between them"
            );
        }
        anyhow::ensure!(
            self.api_key.as_deref() != Some(""),
            "api_key is empty: leave it out to let every key in"
        );
        Ok(())
    }
}

/// Never shows the key.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("latency", &self.latency)
            .field("jitter", &self.jitter)
            .field("faults", &self.faults)
            .field("seed", &self.seed)
            .field("max_requests_per_second", &self.max_requests_per_second)
            .field("max_tokens_per_minute", &self.max_tokens_per_minute)
            .field("limit_headers", &self.limit_headers)
            .field("quota_after", &self.quota_after)
            .field("overloaded_after", &self.overloaded_after)
            .field("unknown_model", &self.unknown_model)
            .field("structured", &self.structured)
            .field("context_window", &self.context_window)
            .field("hang_products", &self.hang_products)
            .field("forbid_products", &self.forbid_products)
            .field("api_key", &self.api_key.as_ref().map(|_| "…"))
            .field("count_by_product", &self.count_by_product)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_keeps_the_key_to_itself() {
        let config = Config { api_key: Some("sk-secret".into()), ..Config::default() };
        assert!(!format!("{config:?}").contains("sk-secret"));
    }

    #[test]
    fn impossible_limits_are_refused_by_name() {
        for limit in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let config = Config { max_requests_per_second: Some(limit), ..Config::default() };
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains("max_requests_per_second"), "{error}");
        }
        let config = Config::default;
        for (config, name) in [
            (Config { max_tokens_per_minute: Some(0), ..config() }, "max_tokens_per_minute"),
            (Config { context_window: Some(0), ..config() }, "context_window"),
            (Config { unknown_model: Some(String::new()), ..config() }, "unknown_model"),
            (Config { hang_products: vec!["a".into(), String::new()], ..config() }, "hang_products"),
        ] {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        let none_at_all = Config { quota_after: Some(0), overloaded_after: Some(0), ..config() };
        none_at_all.validate().unwrap();
    }
}
