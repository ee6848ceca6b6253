//! How fast, how often, and for how much.

use std::{fmt, str::FromStr};

use crate::money::Money;
use serde::{Deserialize, Serialize};

/// How fast, how often, and for how much.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Products at once, in each worker.
    pub concurrency: u32,
    /// Requests a minute, all workers together.
    pub requests_per_minute: Option<u32>,
    /// Tokens a minute, all workers together.
    pub tokens_per_minute: Option<u32>,
    /// The least time between the starts of two calls, all workers together.
    pub delay_ms: u64,
    /// Attempts before a product fails.
    pub max_attempts: u32,
    /// US dollars that the run may cost, above 0; `None`: no bound.
    pub budget: Option<f64>,
    /// The share of failed products above which the run stops, 0 to 1; 1 never stops it.
    pub abort_failure_rate: f64,
    /// A call that takes longer than this share of calls is made a second time; `None`: never.
    pub hedge_after: Option<Percentile>,
    /// Whether prompts that are equal are asked once.
    pub dedupe_prompts: bool,
}

/// A percentile of durations, such as `p99` or `p99.9`; in tenths of a percent, from 50 % on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Percentile(u16);

/// What is no percentile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a percentile is written p50 to p99.9, such as \"p99\"")]
pub struct NoPercentile;

impl Percentile {
    const LEAST: u16 = 500;
    const MOST: u16 = 999;

    /// As a share: 0.99 for `p99`.
    #[must_use]
    pub fn share(self) -> f64 {
        f64::from(self.0) / 1000.0
    }
}

impl FromStr for Percentile {
    type Err = NoPercentile;

    fn from_str(text: &str) -> Result<Self, NoPercentile> {
        let number = text.strip_prefix('p').ok_or(NoPercentile)?;
        let (whole, tenths) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |text: &str, count: usize| {
            (text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit()))
                .then(|| text.parse::<u16>().ok())
                .flatten()
        };
        let (Some(whole), Some(tenths)) = (digits(whole, 2), digits(tenths, 1)) else {
            return Err(NoPercentile);
        };
        Some(Self(whole * 10 + tenths))
            .filter(|found| (Self::LEAST..=Self::MOST).contains(&found.0))
            .ok_or(NoPercentile)
    }
}

impl TryFrom<String> for Percentile {
    type Error = NoPercentile;

    fn try_from(text: String) -> Result<Self, NoPercentile> {
        text.parse()
    }
}

impl From<Percentile> for String {
    fn from(percentile: Percentile) -> Self {
        percentile.to_string()
    }
}

impl fmt::Display for Percentile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 / 10, self.0 % 10) {
            (whole, 0) => write!(f, "p{whole}"),
            (whole, tenths) => write!(f, "p{whole}.{tenths}"),
        }
    }
}

impl Limits {
    /// The budget, as it is counted.
    #[must_use]
    pub fn budget_money(&self) -> Option<Money> {
        self.budget.map(Money::from_usd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_read_and_written() {
        for text in ["p50", "p95", "p99", "p99.9"] {
            assert_eq!(text.parse::<Percentile>().unwrap().to_string(), text);
        }
        assert!(("p99.5".parse::<Percentile>().unwrap().share() - 0.995).abs() < 1e-9);
        for text in ["", "p", "99", "pp99", "p100", "p49", "p99.99", "p9", "p+9", "p99.", "P99", "p5٠"] {
            assert_eq!(text.parse::<Percentile>(), Err(NoPercentile), "{text}");
        }
    }
}
