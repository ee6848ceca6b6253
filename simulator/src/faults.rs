//! What goes wrong, how often, and for which call.
//!
//! A call's fault follows from the seed, the product and the number of the call alone, so that a run can be replayed
//! and a product that failed once is free to succeed the next time.

use crate::dice::Dice;

/// Every fault there is, in the order shares are laid out. The names are those of the options and of `/stats`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    RateLimited,
    ServerError,
    Malformed,
    Truncated,
    Hung,
    CutOff,
    Refused,
    ContentFiltered,
    SchemaViolation,
    BadRequest,
    Prose,
}

impl Fault {
    pub(crate) const COUNT: usize = 11;

    pub(crate) const ALL: [Self; Self::COUNT] = [
        Self::RateLimited,
        Self::ServerError,
        Self::Malformed,
        Self::Truncated,
        Self::Hung,
        Self::CutOff,
        Self::Refused,
        Self::ContentFiltered,
        Self::SchemaViolation,
        Self::BadRequest,
        Self::Prose,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RateLimited => "rate_limited",
            Self::ServerError => "server_error",
            Self::Malformed => "malformed",
            Self::Truncated => "truncated",
            Self::Hung => "hung",
            Self::CutOff => "cut_off",
            Self::Refused => "refused",
            Self::ContentFiltered => "content_filtered",
            Self::SchemaViolation => "schema_violation",
            Self::BadRequest => "bad_request",
            Self::Prose => "prose",
        }
    }
}

/// The share of calls, from 0 to 1, that meets each fault. They exclude each other, so they add up to at most 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    /// 429 with `Retry-After: 1`.
    pub rate_limited: f64,
    /// 500, 502 or 503.
    pub server_error: f64,
    /// A 200 whose content is prose or broken JSON.
    pub malformed: f64,
    /// `finish_reason: "length"`, the content cut in the middle.
    pub truncated: f64,
    /// Never answered: the connection is held until the client leaves or the simulator stops.
    pub hung: f64,
    /// Headers and half of the body, then the connection is dropped.
    pub cut_off: f64,
    /// `message.refusal` instead of content.
    pub refused: f64,
    /// `finish_reason: "content_filter"` and no content.
    pub content_filtered: f64,
    /// Valid JSON that violates the request's schema, if anything does; without a schema, that of the plain answer.
    pub schema_violation: f64,
    /// 400, `invalid_request_error`.
    pub bad_request: f64,
    /// The sound answer in a code fence, in sentences, or in both. Whoever takes the JSON out has all of it, so this
    /// one counts as an answer too.
    pub prose: f64,
}

/// Ten shares of 0.1 add up to a hair more than 1.
const ROUNDING: f64 = 1e-9;

impl Faults {
    /// Each share must lie in 0..=1 and their sum must not exceed 1; the error names the option.
    pub fn validate(&self) -> anyhow::Result<()> {
        for fault in Fault::ALL {
            let (name, share) = (fault.name(), self.share(fault));
            anyhow::ensure!(
                (0.0..=1.0).contains(&share),
                "{name} is {share}: a share of calls lies between 0 and 1"
            );
        }
        let sum: f64 = Fault::ALL.iter().map(|fault| self.share(*fault)).sum();
        if sum > 1.0 + ROUNDING {
            let given = Fault::ALL.iter().filter(|fault| self.share(**fault) > 0.0);
            let given: Vec<_> =
                given.map(|fault| format!("{} {}", fault.name(), self.share(*fault))).collect();
            anyhow::bail!(
                "the shares of faults add up to {sum:.3}, more than all calls: {}",
                given.join(", ")
            );
        }
        Ok(())
    }

    fn share(&self, fault: Fault) -> f64 {
        match fault {
            Fault::RateLimited => self.rate_limited,
            Fault::ServerError => self.server_error,
            Fault::Malformed => self.malformed,
            Fault::Truncated => self.truncated,
            Fault::Hung => self.hung,
            Fault::CutOff => self.cut_off,
            Fault::Refused => self.refused,
            Fault::ContentFiltered => self.content_filtered,
            Fault::SchemaViolation => self.schema_violation,
            Fault::BadRequest => self.bad_request,
            Fault::Prose => self.prose,
        }
    }

    /// One roll decides; `None` lets the call succeed.
    pub(crate) fn choose(&self, dice: &mut Dice) -> Option<Fault> {
        let mut left = dice.share();
        Fault::ALL.into_iter().find(|fault| {
            left -= self.share(*fault);
            left < 0.0
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_option() {
        let error = Faults { cut_off: 1.4, ..Faults::default() }.validate().unwrap_err().to_string();
        assert_eq!(error, "cut_off is 1.4: a share of calls lies between 0 and 1");
        assert!(Faults { hung: f64::NAN, ..Faults::default() }.validate().is_err());
        let both = Faults { refused: 0.7, hung: 0.6, ..Faults::default() };
        let error = both.validate().unwrap_err().to_string();
        assert_eq!(error, "the shares of faults add up to 1.300, more than all calls: hung 0.6, refused 0.7");
    }

    #[test]
    fn shares_are_kept_and_replayed() {
        let faults = Faults { server_error: 0.25, bad_request: 0.05, ..Faults::default() };
        faults.validate().unwrap();
        let choose = |seed| faults.choose(&mut Dice::new(seed));
        let chosen: Vec<_> = (0..20_000).map(choose).collect();
        let count = |fault| chosen.iter().filter(|chosen| **chosen == Some(fault)).count();
        assert!((4_700..5_300).contains(&count(Fault::ServerError)), "{}", count(Fault::ServerError));
        assert!((850..1_150).contains(&count(Fault::BadRequest)), "{}", count(Fault::BadRequest));
        assert_eq!(chosen, (0..20_000).map(choose).collect::<Vec<_>>());
    }

    #[test]
    fn a_share_of_one_is_every_call() {
        let faults = Faults { hung: 1.0, ..Faults::default() };
        assert!((0..1_000).all(|seed| faults.choose(&mut Dice::new(seed)) == Some(Fault::Hung)));
        let tenths = Faults {
            rate_limited: 0.1,
            server_error: 0.1,
            malformed: 0.1,
            truncated: 0.1,
            hung: 0.1,
            cut_off: 0.1,
            refused: 0.1,
            content_filtered: 0.1,
            schema_violation: 0.1,
            bad_request: 0.1,
            prose: 0.0,
        };
        tenths.validate().unwrap();
    }
}
