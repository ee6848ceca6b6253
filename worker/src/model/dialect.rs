//! What of a request a server understands. Found out by the first call that is refused for it, and remembered for as long as
//! the worker has this job: a refusal costs no attempt of a product, and nothing is asked for twice that was refused.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use shelfmill_pipeline::job::Structured;

use super::refusal::Unsupported;

/// How a server is told what an answer must look like, from the strictest on.
const WAYS: [Structured; 3] = [Structured::JsonSchema, Structured::JsonObject, Structured::None];

/// One server's.
#[derive(Debug)]
pub(crate) struct Dialect {
    /// Into [`WAYS`].
    way: AtomicU8,
    /// Whether a weaker way may be tried: the job leaves it to us.
    is_auto: bool,
    has_new_token_field: AtomicBool,
}

impl Dialect {
    /// OpenAI's newer models refuse `max_tokens`; other servers know nothing else.
    pub(crate) fn new(structured: Structured, is_openai: bool) -> Self {
        let way = WAYS.iter().position(|way| *way == structured).unwrap_or(0);
        Self {
            way: AtomicU8::new(u8::try_from(way).unwrap_or(0)),
            is_auto: structured == Structured::Auto,
            has_new_token_field: AtomicBool::new(is_openai),
        }
    }

    pub(crate) fn structured(&self) -> Structured {
        let way = usize::from(self.way.load(Ordering::Relaxed));
        WAYS.get(way).copied().unwrap_or(Structured::None)
    }

    pub(crate) fn has_new_token_field(&self) -> bool {
        self.has_new_token_field.load(Ordering::Relaxed)
    }

    /// Learns from a refusal of what was sent like this; whether the same question may be asked in another way now. Of
    /// many calls that were refused together each may ask again, and one teaches.
    pub(crate) fn learn(&self, unsupported: Unsupported, sent: Sent) -> bool {
        match unsupported {
            Unsupported::ResponseFormat if self.is_auto => {
                let next = WAYS.iter().position(|way| *way == sent.structured).unwrap_or(0) + 1;
                let next = u8::try_from(next).unwrap_or(u8::MAX);
                let is_there = usize::from(next) < WAYS.len();
                if is_there && self.way.fetch_max(next, Ordering::Relaxed) < next {
                    tracing::info!(
                        refused = ?sent.structured,
                        now = ?self.structured(),
                        "the model's server does not know this way to ask for JSON, going on with another"
                    );
                }
                is_there
            }
            Unsupported::MaxTokens if !sent.has_new_token_field => {
                self.has_new_token_field.store(true, Ordering::Relaxed);
                true
            }
            Unsupported::MaxCompletionTokens if sent.has_new_token_field => {
                self.has_new_token_field.store(false, Ordering::Relaxed);
                true
            }
            // A temperature was asked for by the job: leaving it out would be another question.
            _ => false,
        }
    }

    /// As the next request is sent.
    pub(crate) fn sent(&self) -> Sent {
        Sent { structured: self.structured(), has_new_token_field: self.has_new_token_field() }
    }
}

/// How a request was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) structured: Structured,
    pub(crate) has_new_token_field: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_way_is_tried_until_there_is_none() {
        let dialect = Dialect::new(Structured::Auto, false);
        let first = dialect.sent();
        assert_eq!(first.structured, Structured::JsonSchema);
        for _ in 0..3 {
            assert!(
                dialect.learn(Unsupported::ResponseFormat, first),
                "all that were sent together ask again"
            );
        }
        assert_eq!(dialect.structured(), Structured::JsonObject, "and teach one thing");
        assert!(dialect.learn(Unsupported::ResponseFormat, dialect.sent()));
        assert_eq!(dialect.structured(), Structured::None);
        assert!(!dialect.learn(Unsupported::ResponseFormat, dialect.sent()));
    }

    #[test]
    fn what_the_job_says_is_not_changed() {
        let dialect = Dialect::new(Structured::JsonObject, false);
        assert_eq!(dialect.structured(), Structured::JsonObject);
        assert!(!dialect.learn(Unsupported::ResponseFormat, dialect.sent()));
        assert!(!dialect.learn(Unsupported::Temperature, dialect.sent()));
    }

    #[test]
    fn the_ceilings_name_is_exchanged_once_for_those_that_were_sent_together() {
        let dialect = Dialect::new(Structured::Auto, false);
        let sent = dialect.sent();
        assert!(dialect.learn(Unsupported::MaxTokens, sent) && dialect.learn(Unsupported::MaxTokens, sent));
        assert!(dialect.has_new_token_field());
        assert!(!dialect.learn(Unsupported::MaxTokens, dialect.sent()), "it knows neither");
        assert!(dialect.learn(Unsupported::MaxCompletionTokens, dialect.sent()));
        assert!(!dialect.has_new_token_field());
    }
}
