//! Why a product could not be analysed, and what follows from it.
//!
//! One table decides whether a failure is tried again and whether it spends one of the product's attempts; nothing else
//! in the code makes that choice.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The class of a failure; its name is what files, metrics and `--class` say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// The provider asked for fewer requests (429).
    RateLimited,
    /// The account has no money left (429 with `insufficient_quota`).
    QuotaExhausted,
    /// The key is wrong or may not use this model (401, 403).
    Unauthorized,
    /// The provider will not take the request, now or ever (400, 422).
    ModelRefused,
    /// There is no such model here, or nothing at this URL (404).
    ModelNotFound,
    /// The provider failed (5xx).
    ServerError,
    /// No complete answer within the deadline.
    Timeout,
    /// The connection could not be made or broke.
    Network,
    /// The answer hit the output ceiling (`finish_reason` "length").
    Truncated,
    /// The answer is not JSON.
    Malformed,
    /// The answer is JSON, but not what the schema asks for.
    SchemaViolation,
    /// The provider withheld the answer, or the model declined to give one.
    ContentFiltered,
    /// The prompt does not fit the model's window.
    ContextTooLong,
    /// The prompt cannot be made from this product (a template error).
    Unpromptable,
    /// The product ended each worker that took it.
    Poisoned,
    /// An image of the product is not there, is no image, is too large, or is where the job does not let anybody look.
    ImageUnusable,
}

impl FailureClass {
    /// Every class, in the order of the enum.
    pub const ALL: [Self; 16] = [
        Self::RateLimited,
        Self::QuotaExhausted,
        Self::Unauthorized,
        Self::ModelRefused,
        Self::ModelNotFound,
        Self::ServerError,
        Self::Timeout,
        Self::Network,
        Self::Truncated,
        Self::Malformed,
        Self::SchemaViolation,
        Self::ContentFiltered,
        Self::ContextTooLong,
        Self::Unpromptable,
        Self::Poisoned,
        Self::ImageUnusable,
    ];

    /// Whether the same question, asked again, may end differently. (A truncated answer is asked for again with more room.)
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        match self {
            Self::RateLimited
            | Self::ServerError
            | Self::Timeout
            | Self::Network
            | Self::Malformed
            | Self::SchemaViolation => true,
            Self::QuotaExhausted
            | Self::Unauthorized
            | Self::ModelRefused
            | Self::ModelNotFound
            | Self::Truncated
            | Self::ContentFiltered
            | Self::ContextTooLong
            | Self::Unpromptable
            | Self::Poisoned
            | Self::ImageUnusable => false,
        }
    }

    /// Whether a failed call counts against the product's allowance: a rate limit is the fleet's, not the product's.
    #[must_use]
    pub const fn spends_attempt(self) -> bool {
        !matches!(self, Self::RateLimited)
    }

    /// Whether every other product will fail the same way, so that going on would only burn the catalog: key, account
    /// or model have to be put right by somebody first.
    #[must_use]
    pub const fn stops_run(self) -> bool {
        matches!(self, Self::Unauthorized | Self::QuotaExhausted | Self::ModelNotFound)
    }

    /// The name in files and options.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RateLimited => "rate_limited",
            Self::QuotaExhausted => "quota_exhausted",
            Self::Unauthorized => "unauthorized",
            Self::ModelRefused => "model_refused",
            Self::ModelNotFound => "model_not_found",
            Self::ServerError => "server_error",
            Self::Timeout => "timeout",
            Self::Network => "network",
            Self::Truncated => "truncated",
            Self::Malformed => "malformed",
            Self::SchemaViolation => "schema_violation",
            Self::ContentFiltered => "content_filtered",
            Self::ContextTooLong => "context_too_long",
            Self::Unpromptable => "unpromptable",
            Self::Poisoned => "poisoned",
            Self::ImageUnusable => "image_unusable",
        }
    }
}

impl fmt::Display for FailureClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A class name nobody knows; the message lists those there are.
#[derive(Debug, thiserror::Error)]
#[error("unknown failure class '{given}' (there are: {})", known())]
pub struct UnknownClass {
    given: String,
}

fn known() -> String {
    FailureClass::ALL.map(FailureClass::name).join(", ")
}

impl FromStr for FailureClass {
    type Err = UnknownClass;

    fn from_str(name: &str) -> Result<Self, UnknownClass> {
        Self::ALL
            .into_iter()
            .find(|class| class.name() == name)
            .ok_or_else(|| UnknownClass { given: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_in_files_and_options() {
        for class in FailureClass::ALL {
            assert_eq!(serde_json::to_string(&class).unwrap(), format!("\"{class}\""));
            assert_eq!(class.name().parse::<FailureClass>().unwrap(), class);
        }
        assert_eq!(
            FailureClass::ALL.iter().collect::<std::collections::BTreeSet<_>>().len(),
            FailureClass::ALL.len()
        );
        assert!("nonsense".parse::<FailureClass>().unwrap_err().to_string().contains("rate_limited"));
    }

    #[test]
    fn what_stops_a_run_is_never_tried_again_and_is_the_fault_of_no_product() {
        let stops: Vec<_> = FailureClass::ALL.into_iter().filter(|class| class.stops_run()).collect();
        assert_eq!(
            stops,
            [FailureClass::QuotaExhausted, FailureClass::Unauthorized, FailureClass::ModelNotFound]
        );
        assert!(stops.iter().all(|class| !class.is_retryable()));
    }
}
