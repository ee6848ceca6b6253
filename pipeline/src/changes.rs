//! How products that were put back are asked otherwise than the run's job says.
//!
//! - Nothing is half understood: a field that this build does not know, and a value that no job could have, make the whole
//!   unreadable. To ignore one would be to ask another question than somebody meant to pay for.
//! - What is said of one model does not hold for another: with the model, its prices and its window change to what is said
//!   or publicly known of the new one, else to unknown.
//! - They are few: what helps against a class of failures (truncated, timeout, malformed, refused), and no second job.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::job::{EndpointSpec, Job, Prices};

/// Names of models are much shorter.
const MAX_MODEL_BYTES: usize = 256;

/// What is asked otherwise; nothing, by default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Changes {
    /// Another model, at the same place or places.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What the other model costs; `None`: what the job says of it or is publicly known, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prices: Option<Prices>,
    /// Another ceiling of an answer; one that is cut off there is asked for once more with twice as much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<u32>,
    /// Another deadline of a call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Another temperature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<Temperature>,
}

/// A sampling temperature, or none: some models take no other than their own.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Temperature {
    /// None is sent.
    Default,
    /// From 0 to 2.
    Of(f64),
}

/// What cannot be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadChange {
    /// No name.
    #[error("a model's name has 1 to {MAX_MODEL_BYTES} bytes and no control characters")]
    Model,
    /// Prices of what?
    #[error("prices are those of another model: name it, too")]
    PricesAlone,
    /// Below nothing, or no number.
    #[error("prices are US dollars per million tokens, 0 or more")]
    Prices,
    /// An answer of nothing.
    #[error("an answer has 1 token or more")]
    OutputTokens,
    /// No time at all.
    #[error("a call takes 1 ms or more")]
    Timeout,
    /// Out of range.
    #[error("a temperature is a number from 0 to 2, or \"default\"")]
    Temperature,
}

impl Changes {
    /// Whether everything is asked as the job says.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a job could say the same.
    pub fn check(&self) -> Result<(), BadChange> {
        let is_name = |name: &String| {
            !name.trim().is_empty() && name.len() <= MAX_MODEL_BYTES && !name.contains(char::is_control)
        };
        let is_price = |price: f64| price.is_finite() && price >= 0.0;
        if !self.model.as_ref().is_none_or(is_name) {
            return Err(BadChange::Model);
        }
        if let Some(prices) = self.prices {
            if self.model.is_none() {
                return Err(BadChange::PricesAlone);
            }
            if !is_price(prices.prompt_per_million) || !is_price(prices.completion_per_million) {
                return Err(BadChange::Prices);
            }
        }
        if self.max_output_tokens == Some(0) {
            return Err(BadChange::OutputTokens);
        }
        if self.timeout_ms == Some(0) {
            return Err(BadChange::Timeout);
        }
        match self.temperature {
            Some(Temperature::Of(value)) if !(0.0..=2.0).contains(&value) => Err(BadChange::Temperature),
            _ => Ok(()),
        }
    }

    /// As the ledger keeps them.
    #[must_use]
    pub fn encode(&self) -> String {
        serde_json::to_string(self).expect("changes have string keys and finite numbers")
    }

    /// From what a ledger kept.
    pub fn decode(text: &[u8]) -> Result<Self, serde_json::Error> {
        use serde::de::Error;
        let changes: Self = serde_json::from_slice(text)?;
        changes.check().map_err(serde_json::Error::custom)?;
        Ok(changes)
    }

    /// The job that asks so. Another model is asked at every endpoint, under this one name.
    #[must_use]
    pub fn applied_to(&self, job: &Job) -> Job {
        let mut job = job.clone();
        let llm = &mut job.llm;
        if let Some(model) = &self.model {
            for spec in &mut llm.endpoints {
                let is_same = spec.model.as_ref().unwrap_or(&llm.model) == model;
                *spec = EndpointSpec {
                    model: None,
                    prices: spec.prices.filter(|_| is_same),
                    context_window: spec.context_window.filter(|_| is_same),
                    ..spec.clone()
                };
            }
            if llm.model != *model {
                llm.model.clone_from(model);
                llm.prices = None;
                llm.context_window = None;
            }
        }
        if let Some(prices) = self.prices {
            llm.prices = Some(prices);
            llm.endpoints.iter_mut().for_each(|spec| spec.prices = None);
        }
        if let Some(ceiling) = self.max_output_tokens {
            llm.max_output_tokens = ceiling;
            // The job's own limit may lie below it.
            llm.max_output_tokens_limit = None;
        }
        if let Some(timeout_ms) = self.timeout_ms {
            llm.timeout_ms = timeout_ms;
        }
        match self.temperature {
            Some(Temperature::Default) => llm.temperature = None,
            Some(Temperature::Of(value)) => llm.temperature = Some(value),
            None => {}
        }
        job
    }
}

/// For whoever asked for them.
impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = [
            self.model.as_ref().map(|model| format!("model {model}")),
            self.prices.map(|prices| {
                let Prices { prompt_per_million, completion_per_million } = prices;
                format!("prices {prompt_per_million} and {completion_per_million} USD per million tokens")
            }),
            self.max_output_tokens.map(|tokens| format!("up to {tokens} output tokens")),
            self.timeout_ms.map(|ms| format!("timeout {:?}", std::time::Duration::from_millis(ms))),
            self.temperature.map(|temperature| match temperature {
                Temperature::Default => "the model's own temperature".to_owned(),
                Temperature::Of(value) => format!("temperature {value}"),
            }),
        ];
        f.write_str(&said.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(llm: &str) -> Job {
        Job::parse(&format!("[llm]\n{llm}"), "job.toml", std::path::Path::new("/nonexistent")).unwrap()
    }

    fn model(name: &str) -> Changes {
        Changes { model: Some(name.to_owned()), ..Changes::default() }
    }

    #[test]
    fn they_are_read_as_they_were_written() {
        let all = Changes {
            prices: Some(Prices { prompt_per_million: 1.0, completion_per_million: 2.5 }),
            max_output_tokens: Some(4096),
            timeout_ms: Some(90_000),
            temperature: Some(Temperature::Of(0.5)),
            ..model("bigger")
        };
        for changes in [
            all.clone(),
            Changes::default(),
            Changes { temperature: Some(Temperature::Default), ..Changes::default() },
        ] {
            assert_eq!(Changes::decode(changes.encode().as_bytes()).unwrap(), changes);
        }
        assert_eq!(Changes::default().encode(), "{}");
        assert_eq!(
            all.to_string(),
            "model bigger, prices 1 and 2.5 USD per million tokens, up to 4096 output tokens, timeout 90s, temperature 0.5"
        );
    }

    #[test]
    fn nonsense_and_what_is_not_known_here_is_not_read() {
        let long = format!(r#"{{"model":"{}"}}"#, "m".repeat(MAX_MODEL_BYTES + 1));
        for text in [
            "",
            "null",
            r#"{"model":""}"#,
            r#"{"model":" "}"#,
            r#"{"model":"a\nb"}"#,
            &long,
            r#"{"max_output_tokens":0}"#,
            r#"{"max_output_tokens":-1}"#,
            r#"{"timeout_ms":0}"#,
            r#"{"temperature":{"of":2.1}}"#,
            r#"{"prices":{"prompt_price_per_million":1,"completion_price_per_million":1}}"#,
            r#"{"model":"m","prices":{"prompt_price_per_million":-1,"completion_price_per_million":1}}"#,
            r#"{"reasoning_effort":"high"}"#,
        ] {
            assert!(Changes::decode(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn the_limit_follows_the_ceiling() {
        let changes = Changes { max_output_tokens: Some(4096), ..Changes::default() };
        let changed = changes.applied_to(&job("max_output_tokens = 1000\nmax_output_tokens_limit = 1500"));
        assert_eq!((changed.llm.max_output_tokens, changed.llm.output_tokens_limit()), (4096, 8192));
    }

    #[test]
    fn another_model_has_prices_and_a_window_of_its_own() {
        let own = "model = \"mine\"\ncontext_window = 5000\nprices = { prompt = 1, completion = 1 }\n";
        let known = |changes: &Changes, job: &Job| {
            let job = changes.applied_to(job);
            let window = job.llm.endpoints()[0].context_window;
            (job.cost_usd(1_000_000, 0), window)
        };
        assert_eq!(known(&model("other"), &job(own)), (None, None));
        assert_eq!(known(&model("mine"), &job(own)), (Some(1.0), Some(5000)), "the same one");
        assert_eq!(known(&model("gpt-4.1"), &job(own)), (Some(2.0), Some(1_047_576)));
        let prices = Some(Prices { prompt_per_million: 7.0, completion_per_million: 1.0 });
        assert_eq!(known(&Changes { prices, ..model("other") }, &job(own)), (Some(7.0), None));
        assert_eq!(known(&Changes { prices, ..model("mine") }, &job(own)), (Some(7.0), Some(5000)));
    }

    #[test]
    fn another_model_is_asked_at_every_endpoint_and_makes_another_question() {
        let job = job(
            "[[llm.endpoints]]\nbase_url = \"http://a/v1\"\nmodel = \"x\"\nprices = { prompt = 3, completion = 3 }\n\
                       [[llm.endpoints]]\nbase_url = \"http://b/v1\"\nmodel = \"y\"\ncontext_window = 9000",
        );
        let changed = model("x").applied_to(&job);
        let endpoints = changed.llm.endpoints();
        assert!(endpoints.iter().all(|endpoint| endpoint.model == "x"));
        assert_eq!(endpoints[0].prices.map(|prices| prices.prompt_per_million), Some(3.0));
        assert_eq!((endpoints[1].prices, endpoints[1].context_window), (None, None), "y's were others");
        assert_ne!(changed.fingerprint(), job.fingerprint());
        assert_eq!(Changes::default().applied_to(&job), job);
    }
}
