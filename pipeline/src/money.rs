//! US dollars, counted in billionths, so that sums of millions of small costs are exact and can be kept in Redis.

use std::fmt;

use serde::{Deserialize, Serialize};

const NANOS: f64 = 1e9;

/// An amount of US dollars.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Money(u64);

impl Money {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// To the nearest billionth; what is no amount is nothing.
    #[must_use]
    pub const fn from_usd(usd: f64) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
        Self((usd * NANOS).round() as u64)
    }

    /// In billionths of a dollar.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// In billionths of a dollar.
    #[must_use]
    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// In dollars.
    #[must_use]
    pub const fn usd(self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "exact below nine million dollars")]
        let nanos = self.0 as f64;
        nanos / NANOS
    }

    /// Whether it is nothing.
    #[must_use]
    pub const fn is_zero(&self) -> bool {
        self.0 == 0
    }

    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// What is left; nothing where there is less.
    #[must_use]
    pub const fn less(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

/// Two digits for whole cents, more for what is smaller.
impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = if self.0.is_multiple_of(10_000_000) {
            2
        } else if self.0 >= 10_000_000 {
            4
        } else {
            6
        };
        write!(f, "${:.digits$}", self.usd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_exact_and_amounts_are_readable() {
        let call = Money::from_usd(0.000_000_1);
        let sum = (0..1_000_000).fold(Money::ZERO, |sum, _| sum.plus(call));
        assert_eq!(sum, Money::from_usd(0.1));
        assert_eq!(Money::from_usd(-1.0), Money::ZERO);
        assert_eq!(Money::from_usd(1.0).less(Money::from_usd(2.0)), Money::ZERO);
        let told = [5.0, 0.1234, 0.000_021].map(|usd| Money::from_usd(usd).to_string());
        assert_eq!(told, ["$5.00", "$0.1234", "$0.000021"]);
    }
}
