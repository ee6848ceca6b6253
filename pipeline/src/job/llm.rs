//! Which model is asked, where, and how.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Prices, known::host_of, prices::known_prices, window::known_window};

/// Which model, where, and how it is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Llm {
    /// The root of the API, such as `https://api.openai.com/v1`; `None`: the worker's own choice.
    pub base_url: Option<String>,
    /// The model's name.
    pub model: String,
    /// Sampling temperature; `None`: the provider's default.
    pub temperature: Option<f64>,
    /// The ceiling of an answer.
    pub max_output_tokens: u32,
    /// The ceiling of an answer that was cut off and is asked for again; `None`: twice the first ceiling.
    pub max_output_tokens_limit: Option<u32>,
    /// From the start of a call to the last byte of its answer.
    pub timeout_ms: u64,
    /// What `model` costs; `None`: what is publicly known of it, if anything is.
    #[serde(flatten)]
    pub prices: Option<Prices>,
    /// Further fields of the request, as they are.
    pub extra: Map<String, Value>,
    /// How the model is held to the schema.
    pub structured: Structured,
    /// How often a model is told what is wrong with its answer, and asked again.
    pub reask: u32,
    /// Tokens of prompt and answer that `model` can hold; `None`: what is publicly known of it, if anything is.
    pub context_window: Option<u32>,
    /// What becomes of a prompt that the window does not hold.
    pub on_overflow: OnOverflow,
    /// Environment variables with keys, to be used in turn; none: no key is sent.
    pub api_keys: Vec<String>,
    /// Where to ask instead of `base_url`; empty: there.
    pub endpoints: Vec<EndpointSpec>,
    /// Images of the product that go with the prompt.
    pub images: Option<Images>,
}

/// How a model is held to the schema.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Structured {
    /// The first of those below that the server takes; found out by the first call.
    #[default]
    Auto,
    /// The server has the schema and keeps the model to it.
    JsonSchema,
    /// The server keeps the model to JSON; the prompt has the schema.
    JsonObject,
    /// Only the prompt says it.
    None,
}

/// What becomes of a prompt that the model's window does not hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnOverflow {
    /// The product fails, without a call.
    #[default]
    Fail,
    /// Its longest text is shortened, and its line says so.
    Truncate,
    /// An endpoint with a larger window is asked.
    Fallback,
}

/// One of several places to ask, as the job file names it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndpointSpec {
    /// Unique in the job.
    pub name: String,
    /// The root of the API.
    pub base_url: String,
    /// `None`: `Llm::model`.
    #[serde(default)]
    pub model: Option<String>,
    /// `None`: `Llm::api_keys`.
    #[serde(default)]
    pub api_keys: Option<Vec<String>>,
    /// Its share of the calls, beside the other endpoints' weights; from 1.
    #[serde(default = "one")]
    pub weight: u32,
    /// `None`: `Llm::prices`, if the model is the same.
    #[serde(default)]
    pub prices: Option<Prices>,
    /// Requests a minute, all workers together, beside what holds for the whole run.
    #[serde(default)]
    pub requests_per_minute: Option<u32>,
    /// Tokens a minute, all workers together, beside what holds for the whole run.
    #[serde(default)]
    pub tokens_per_minute: Option<u32>,
    /// `None`: `Llm::context_window`, if the model is the same.
    #[serde(default)]
    pub context_window: Option<u32>,
}

const fn one() -> u32 {
    1
}

/// A place to ask, with everything it inherits.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelEndpoint {
    /// Unique in the job.
    pub name: String,
    /// The root of the API; `None`: the worker's own choice.
    pub base_url: Option<String>,
    /// The model's name there.
    pub model: String,
    /// Environment variables with keys, to be used in turn; none: no key is sent.
    pub api_keys: Vec<String>,
    /// Its share of the calls, beside the other endpoints' weights.
    pub weight: u32,
    /// The job's own, else the provider's public ones; `None`: unknown.
    pub prices: Option<Prices>,
    /// Requests a minute, all workers together, beside what holds for the whole run.
    pub requests_per_minute: Option<u32>,
    /// Tokens a minute, all workers together, beside what holds for the whole run.
    pub tokens_per_minute: Option<u32>,
    /// The job's own, else what the provider tells of it; `None`: unknown.
    pub context_window: Option<u32>,
}

/// Images of a product that go with its prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Images {
    /// Fields of the product with a URL, a path, or a list of these.
    pub fields: Vec<String>,
    /// A larger image is not sent.
    pub max_bytes: u64,
    /// The most images of one product.
    pub max_images: u32,
    /// Whether URLs may lead into private networks and to the worker's own machine.
    pub allow_private: bool,
    /// The only folder that paths may lead to; `None`: no path is read.
    pub folder: Option<String>,
}

/// The name of the one endpoint of a job that lists none.
const ONLY_ENDPOINT: &str = "default";

impl Llm {
    /// Where to ask: the endpoints of the job, or the one that `base_url` and `model` describe.
    #[must_use]
    pub fn endpoints(&self) -> Vec<ModelEndpoint> {
        if self.endpoints.is_empty() {
            let only = EndpointSpec::at(ONLY_ENDPOINT.to_owned(), String::new());
            return vec![self.endpoint(&only, self.base_url.clone())];
        }
        self.endpoints.iter().map(|spec| self.endpoint(spec, Some(spec.base_url.clone()))).collect()
    }

    fn endpoint(&self, spec: &EndpointSpec, base_url: Option<String>) -> ModelEndpoint {
        let model = spec.model.as_ref().unwrap_or(&self.model);
        // What is said of one model does not hold for another.
        let is_same = *model == self.model;
        let own_prices = spec.prices.or(self.prices.filter(|_| is_same));
        let known_prices = || known_prices(base_url.as_deref(), model).filter(|_| self.has_standard_tier());
        let own_window = spec.context_window.or(self.context_window.filter(|_| is_same));
        ModelEndpoint {
            name: spec.name.clone(),
            model: model.clone(),
            api_keys: spec.api_keys.as_ref().unwrap_or(&self.api_keys).clone(),
            weight: spec.weight,
            prices: own_prices.or_else(known_prices),
            requests_per_minute: spec.requests_per_minute,
            tokens_per_minute: spec.tokens_per_minute,
            context_window: own_window.or_else(|| known_window(base_url.as_deref(), model)),
            base_url,
        }
    }

    /// Other tiers (OpenAI's `flex` and `priority`) have other prices.
    fn has_standard_tier(&self) -> bool {
        self.extra.get("service_tier").is_none_or(|tier| tier == "default")
    }

    /// The ceiling of an answer that was cut off and is asked for again.
    #[must_use]
    pub fn output_tokens_limit(&self) -> u32 {
        self.max_output_tokens_limit.unwrap_or(self.max_output_tokens.saturating_mul(2))
    }

    /// The models that may answer, each once, in an order that does not depend on the endpoints'.
    #[must_use]
    pub fn models(&self) -> Vec<&str> {
        let mut models: Vec<&str> = match self.endpoints.as_slice() {
            [] => vec![&self.model],
            specs => specs.iter().map(|spec| spec.model.as_ref().unwrap_or(&self.model).as_str()).collect(),
        };
        models.sort_unstable();
        models.dedup();
        models
    }
}

impl EndpointSpec {
    /// Inherits everything but its place.
    #[must_use]
    pub const fn at(name: String, base_url: String) -> Self {
        Self {
            name,
            base_url,
            model: None,
            api_keys: None,
            weight: one(),
            prices: None,
            requests_per_minute: None,
            tokens_per_minute: None,
            context_window: None,
        }
    }

    /// The name of the endpoint in that place of the list, from 1, if the file gives it none.
    #[must_use]
    pub(super) fn default_name(base_url: &str, place: usize) -> String {
        let host = host_of(base_url).unwrap_or_default();
        format!("{}-{place}", host.trim_matches(['[', ']', ':']).replace(':', "-"))
    }
}

#[cfg(test)]
mod tests;
