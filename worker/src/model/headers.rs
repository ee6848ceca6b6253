//! What a response says of the provider's limits: `x-ratelimit-{limit,remaining,reset}-{requests,tokens}` and how long to
//! wait.
//!
//! Providers agree on the names and not on the units: a reset is `6m0s` (OpenAI), seconds, a unix time, or milliseconds
//! since 1970 (OpenRouter, which leaves `-requests` out). What makes no sense (Azure has sent `-1`) is as good as not
//! said: a wrong limit would slow a whole fleet down, or send it against the wall.

use std::time::Duration;

use reqwest::header::HeaderMap;

use super::refusal::retry_after;

/// The headers of a limit: how much there is, how much is left, and until when.
const REQUESTS: [&str; 3] =
    ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"];
const TOKENS: [&str; 3] =
    ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"];
const BARE: [&str; 3] = ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"];
/// The longest window a limit may have; what is longer is no reset.
const MAX_RESET: Duration = Duration::from_secs(31 * 24 * 60 * 60);
/// Nobody has larger limits.
const MAX_LIMIT: f64 = 1e12;
/// Numbers from here on are unix times in seconds: as a duration they are thirty years.
const FIRST_UNIX_SECONDS: f64 = 1e9;
/// Numbers from here on are unix times in milliseconds.
const FIRST_UNIX_MILLISECONDS: f64 = 1e11;
const MINUTE_SECONDS: f64 = 60.0;

/// The limits a response tells of.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct LimitHints {
    pub(crate) requests: Option<Rate>,
    pub(crate) tokens: Option<Rate>,
    pub(crate) retry_after: Option<Duration>,
}

/// One limit, as it stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rate {
    pub(crate) limit: f64,
    /// At most `limit`.
    pub(crate) remaining: f64,
    /// Until the whole limit is there again; zero where nobody said.
    pub(crate) reset: Duration,
}

impl LimitHints {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        Self {
            requests: Rate::of(headers, REQUESTS).or_else(|| Rate::of(headers, BARE)),
            tokens: Rate::of(headers, TOKENS),
            retry_after: retry_after(headers),
        }
    }
}

impl Rate {
    fn of(headers: &HeaderMap, [limit, remaining, until]: [&'static str; 3]) -> Option<Self> {
        let text = |name: &'static str| headers.get(name)?.to_str().ok();
        let amount = |name| text(name)?.trim().parse::<f64>().ok().filter(|n| (0.0..=MAX_LIMIT).contains(n));
        let limit = amount(limit).filter(|limit| *limit >= 1.0)?;
        let remaining = amount(remaining)?.min(limit);
        let reset = text(until).and_then(reset).unwrap_or_default();
        Some(Self { limit, remaining, reset })
    }

    /// How much there is a minute, where it can be told: what is missing comes back within `reset`, and nobody who resets
    /// within a minute gives less than the limit in one. Of a longer window, or without a reset, nothing is known: the
    /// limit may be for a day, and all of it be there now.
    pub(crate) fn per_minute(&self) -> Option<f64> {
        let is_within_a_minute = !self.reset.is_zero() && self.reset <= Duration::from_secs(60);
        let missing = self.missing();
        (is_within_a_minute && missing > 0.0)
            .then(|| (missing / self.reset.as_secs_f64() * MINUTE_SECONDS).max(self.limit))
    }

    /// How much of the limit is taken now.
    pub(crate) const fn missing(&self) -> f64 {
        self.limit - self.remaining
    }

    /// Until there is so much again; nothing where it is there.
    pub(crate) fn wait_for(&self, amount: f64) -> Duration {
        let short = amount.min(self.limit) - self.remaining;
        match self.per_minute() {
            Some(per_minute) if short > 0.0 => Duration::from_secs_f64(short / per_minute * MINUTE_SECONDS),
            _ => Duration::ZERO,
        }
    }
}

/// How long it is until a reset, in any of the forms providers use.
pub(super) fn reset(said: &str) -> Option<Duration> {
    let said = said.trim();
    let until = if let Ok(number) = said.parse::<f64>() {
        let unix_seconds = match number {
            n if n >= FIRST_UNIX_MILLISECONDS => Some(n / 1_000.0),
            n if n >= FIRST_UNIX_SECONDS => Some(n),
            _ => None,
        };
        let seconds = unix_seconds.map_or(number, |then| (then - now_seconds()).max(0.0));
        Duration::try_from_secs_f64(seconds).ok()
    } else if let Ok(then) = said.parse::<jiff::Timestamp>() {
        Some(Duration::try_from(then.duration_since(jiff::Timestamp::now())).unwrap_or_default())
    } else {
        duration(said)
    };
    until.filter(|until| *until <= MAX_RESET)
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 have 41 bits")]
fn now_seconds() -> f64 {
    jiff::Timestamp::now().as_millisecond() as f64 / 1_000.0
}

/// A duration as OpenAI and Groq write it: `6m0s`, `1h2m3.5s`, `17ms`.
pub(super) fn duration(said: &str) -> Option<Duration> {
    let mut rest = said;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let seconds = match &rest[..letters] {
            "d" => 86_400.0,
            "h" => 3_600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" => 1e-6,
            _ => return None,
        };
        sum = sum.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = &rest[letters..];
    }
    (!said.is_empty()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    fn hints(said: &[(&str, &str)]) -> LimitHints {
        let header = |(name, value): &(&str, &str)| {
            let name: HeaderName = format!("x-ratelimit-{name}").parse().unwrap();
            (name, HeaderValue::from_str(value).unwrap())
        };
        LimitHints::of(&said.iter().map(header).collect())
    }

    fn per_minute(limit: &str, remaining: &str, reset: &str) -> Option<f64> {
        let said = [("limit-tokens", limit), ("remaining-tokens", remaining), ("reset-tokens", reset)];
        let hints = hints(&said);
        assert_eq!(hints.requests, None);
        let rate = hints.tokens?.per_minute()?;
        Some((rate * 1_000.0).round() / 1_000.0)
    }

    #[test]
    fn a_bucket_tells_its_rate() {
        assert_eq!(per_minute("60", "59", "1s"), Some(60.0));
        assert_eq!(per_minute("50", "40", "200ms"), Some(3_000.0), "one second's worth");
        assert_eq!(per_minute("10000", "9999", "6ms"), Some(10_000.0));
        assert_eq!(per_minute("10000", "9999", "1s"), Some(10_000.0), "rounded up");
        assert_eq!(per_minute("150000", "149984", "6ms"), Some(160_000.0));
        assert_eq!(per_minute("6000", "0", "1m0s"), Some(6_000.0));
        assert_eq!(per_minute("30000", "20000", "20"), Some(30_000.0));
    }

    #[test]
    fn a_bucket_that_is_full_or_has_no_reset_or_a_long_one_tells_none() {
        for (limit, remaining, reset) in [
            ("500", "500", "0s"),
            ("500", "12", "soon"),
            ("500", "500", "17ms"),
            ("200", "199", "7m12s"),
            ("1440", "1440", "24h0m0s"),
        ] {
            assert_eq!(per_minute(limit, remaining, reset), None, "{limit} {remaining} {reset}");
        }
        let azure = hints(&[("limit-requests", "8"), ("remaining-requests", "7")]);
        assert_eq!(azure.requests.unwrap().per_minute(), None);
    }

    #[test]
    fn what_is_short_comes_back() {
        let rate = |remaining| Rate { limit: 6_000.0, remaining, reset: Duration::from_secs(60) };
        assert_eq!(rate(0.0).wait_for(100.0), Duration::from_secs(1));
        assert_eq!(rate(100.0).wait_for(100.0), Duration::ZERO);
        assert_eq!(rate(0.0).wait_for(1e9), Duration::from_secs(60), "more than all never comes");
    }

    #[test]
    fn resets_are_understood_in_all_their_forms() {
        for (said, ms) in [
            ("6m0s", 360_000),
            ("1s", 1_000),
            ("17ms", 17),
            ("1h2m3.5s", 3_723_500),
            ("1m26.4s", 86_400),
            ("1d", 86_400_000),
            ("0", 0),
            ("2.5", 2_500),
            ("1000000000", 0),
            ("1741305600000", 0),
            ("2001-01-01T00:00:00Z", 0),
        ] {
            assert_eq!(reset(said), Some(Duration::from_millis(ms)), "{said}");
        }
        let soon = jiff::Timestamp::now().as_millisecond() + 90_000;
        for said in [
            soon.to_string(),
            (soon / 1_000).to_string(),
            (jiff::Timestamp::now() + Duration::from_secs(90)).to_string(),
        ] {
            let until = reset(&said).unwrap();
            assert!(until > Duration::from_secs(80) && until <= Duration::from_secs(90), "{said}: {until:?}");
        }
    }

    #[test]
    fn what_makes_no_sense_was_not_said() {
        for said in [
            "",
            "-1",
            "NaN",
            "inf",
            "1e300",
            "99999999",
            "m",
            "5",
            "5 minutes",
            "6m0",
            "1.2.3s",
            "9999999999999999s",
            "1e20",
        ] {
            assert_eq!(reset(said), (said == "5").then_some(Duration::from_secs(5)), "{said}");
        }
        for (limit, remaining) in
            [("-1", "-1"), ("0", "0"), ("NaN", "1"), ("1e13", "1"), ("100", "-5"), ("100", ""), ("many", "1")]
        {
            assert_eq!(per_minute(limit, remaining, "1s"), None, "{limit} {remaining}");
        }
        // More than all is all.
        assert_eq!(hints(&[("limit", "50"), ("remaining", "70")]).requests.unwrap().remaining, 50.0);
        assert_eq!(hints(&[]), LimitHints::default());
    }

    #[test]
    fn openrouter_names_no_unit_and_its_reset_is_a_time() {
        let midnight = (jiff::Timestamp::now().as_millisecond() + 3_600_000).to_string();
        let hints = hints(&[("limit", "50"), ("remaining", "0"), ("reset", &midnight)]);
        assert_eq!(hints.tokens, None);
        let rate = hints.requests.unwrap();
        assert_eq!((rate.limit, rate.remaining), (50.0, 0.0));
        assert!(rate.reset > Duration::from_secs(3_590), "{rate:?}");
    }

    #[test]
    fn a_wait_is_among_the_hints() {
        let headers = [("retry-after", "7")]
            .map(|(name, wait)| (HeaderName::from_static(name), HeaderValue::from_static(wait)));
        assert_eq!(LimitHints::of(&headers.into_iter().collect()).retry_after, Some(Duration::from_secs(7)));
    }
}
