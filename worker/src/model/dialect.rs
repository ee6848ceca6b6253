//! What of a request a server understands. Found out by the first call that is refused for it, and remembered for the run: a
//! refusal costs no attempt of a product, and nothing is asked for twice that was refused.
//!
//! What a worker finds out it tells the ledger at once; others take it over when they begin, and every few seconds
//! ([`Dialect::follow`]). The ledger's copy is overwritten by whoever learns: one that lost what another had found out gets
//! it back when that one follows, because ways to ask only grow weaker.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use shelfmill_pipeline::{
    job::Structured,
    ledger::{Dialect as Known, Ledger, LedgerError},
};

use super::refusal::Unsupported;

/// How a server is told what an answer must look like, from the strictest on.
const WAYS: [Structured; 3] = [Structured::JsonSchema, Structured::JsonObject, Structured::None];

/// One server's.
#[derive(Debug)]
pub(crate) struct Dialect {
    /// What the ledger calls it.
    server: String,
    /// Into [`WAYS`].
    way: AtomicU8,
    /// Whether a weaker way may be tried: the job leaves it to us.
    is_auto: bool,
    has_new_token_field: AtomicBool,
    /// Whether that was found out, and is not our guess.
    is_field_known: AtomicBool,
    /// Whether the older name was refused here, and the newer one. Where both were, it is not the name that is refused.
    refused_fields: [AtomicBool; 2],
    /// Whether the ledger is yet to be told of something.
    is_untold: AtomicBool,
}

impl Dialect {
    /// OpenAI's newer models refuse `max_tokens`; other servers know nothing else.
    pub(crate) fn new(server: String, structured: Structured, is_openai: bool) -> Self {
        let way = WAYS.iter().position(|way| *way == structured).unwrap_or(0);
        Self {
            server,
            way: AtomicU8::new(u8::try_from(way).unwrap_or(0)),
            is_auto: structured == Structured::Auto,
            has_new_token_field: AtomicBool::new(is_openai),
            is_field_known: AtomicBool::new(false),
            refused_fields: Default::default(),
            is_untold: AtomicBool::new(false),
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
                    self.is_untold.store(true, Ordering::Relaxed);
                    tracing::info!(
                        refused = ?sent.structured,
                        now = ?self.structured(),
                        "the model's server does not know this way to ask for JSON, going on with another"
                    );
                }
                is_there
            }
            Unsupported::MaxTokens if !sent.has_new_token_field => self.call_field(true),
            Unsupported::MaxCompletionTokens if sent.has_new_token_field => self.call_field(false),
            // A temperature was asked for by the job: leaving it out would be another question.
            _ => false,
        }
    }

    /// Whether the other name may be tried.
    fn call_field(&self, new: bool) -> bool {
        self.refused_fields[usize::from(!new)].store(true, Ordering::Relaxed);
        if self.refused_fields[usize::from(new)].load(Ordering::Relaxed) {
            return false;
        }
        let was = self.has_new_token_field.swap(new, Ordering::Relaxed);
        if !self.is_field_known.swap(true, Ordering::Relaxed) || was != new {
            self.is_untold.store(true, Ordering::Relaxed);
        }
        true
    }

    /// What was found out, here or by others.
    fn known(&self) -> Known {
        let way = self.way.load(Ordering::Relaxed);
        Known {
            structured: (self.is_auto && way > 0).then(|| self.structured()),
            has_new_token_field: self
                .is_field_known
                .load(Ordering::Relaxed)
                .then(|| self.has_new_token_field()),
        }
    }

    /// Takes over what others have found out. What was found out here is not given up for it.
    fn take(&self, known: Known) {
        let way = known.structured.and_then(|structured| WAYS.iter().position(|way| *way == structured));
        if let Some(way) = way.filter(|_| self.is_auto) {
            self.way.fetch_max(u8::try_from(way).unwrap_or(0), Ordering::Relaxed);
        }
        if let Some(new) = known.has_new_token_field
            && !self.is_field_known.swap(true, Ordering::Relaxed)
        {
            self.has_new_token_field.store(new, Ordering::Relaxed);
        }
    }

    /// Tells the ledger what was found out since it was last told.
    pub(crate) async fn tell(&self, ledger: &dyn Ledger) -> Result<(), LedgerError> {
        if self.is_untold.swap(false, Ordering::Relaxed) {
            ledger.keep_dialect(&self.server, self.known()).await?;
        }
        Ok(())
    }

    /// Takes over what others have found out, and tells them what they have not.
    pub(crate) async fn follow(&self, ledger: &dyn Ledger) -> Result<(), LedgerError> {
        let told = ledger.dialects(std::slice::from_ref(&self.server)).await?;
        let told = told.first().copied().unwrap_or_default();
        self.take(told);
        if self.known() != told {
            self.is_untold.store(true, Ordering::Relaxed);
        }
        self.tell(ledger).await
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
    use shelfmill_pipeline::ledger::EmbeddedLedger;

    use super::*;

    fn dialect(structured: Structured, is_openai: bool) -> Dialect {
        Dialect::new("here".to_owned(), structured, is_openai)
    }

    #[tokio::test]
    async fn what_one_found_out_others_begin_with() {
        let ledger = EmbeddedLedger::new();
        let first = dialect(Structured::Auto, true);
        first.follow(&ledger).await.unwrap();
        assert!(first.learn(Unsupported::ResponseFormat, first.sent()));
        assert!(first.learn(Unsupported::MaxCompletionTokens, first.sent()));
        first.tell(&ledger).await.unwrap();
        let second = dialect(Structured::Auto, true);
        second.follow(&ledger).await.unwrap();
        assert_eq!(second.sent(), first.sent());
        assert_eq!((second.structured(), second.has_new_token_field()), (Structured::JsonObject, false));
        // What the job says stays as it is.
        let told = dialect(Structured::JsonSchema, true);
        told.take(second.known());
        assert_eq!((told.structured(), told.has_new_token_field()), (Structured::JsonSchema, false));
        let elsewhere = Dialect::new("elsewhere".to_owned(), Structured::Auto, true);
        elsewhere.follow(&ledger).await.unwrap();
        assert_eq!(elsewhere.structured(), Structured::JsonSchema);
    }

    #[tokio::test]
    async fn what_was_overwritten_is_told_again() {
        let ledger = EmbeddedLedger::new();
        let (one, other) = (dialect(Structured::Auto, false), dialect(Structured::Auto, false));
        assert!(one.learn(Unsupported::ResponseFormat, one.sent()));
        assert!(other.learn(Unsupported::MaxTokens, other.sent()));
        one.tell(&ledger).await.unwrap();
        other.tell(&ledger).await.unwrap();
        for dialect in [&one, &other, &one] {
            dialect.follow(&ledger).await.unwrap();
        }
        assert_eq!(one.sent(), other.sent());
        assert_eq!((one.structured(), one.has_new_token_field()), (Structured::JsonObject, true));
        // A weaker way is never given up for a stricter one, whatever the ledger says.
        ledger.keep_dialect("here", Known::default()).await.unwrap();
        one.follow(&ledger).await.unwrap();
        assert_eq!(one.structured(), Structured::JsonObject);
        assert_eq!(ledger.dialects(&["here".to_owned()]).await.unwrap(), [one.known()]);
    }

    #[test]
    fn the_next_way_is_tried_until_there_is_none() {
        let dialect = dialect(Structured::Auto, false);
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
        let dialect = dialect(Structured::JsonObject, false);
        assert_eq!(dialect.structured(), Structured::JsonObject);
        assert!(!dialect.learn(Unsupported::ResponseFormat, dialect.sent()));
        assert!(!dialect.learn(Unsupported::Temperature, dialect.sent()));
    }

    #[test]
    fn the_ceilings_name_is_exchanged_once_for_those_that_were_sent_together() {
        let dialect = dialect(Structured::Auto, false);
        let sent = dialect.sent();
        assert!(dialect.learn(Unsupported::MaxTokens, sent) && dialect.learn(Unsupported::MaxTokens, sent));
        assert!(dialect.has_new_token_field());
        assert!(!dialect.learn(Unsupported::MaxTokens, dialect.sent()), "that was not sent");
        assert!(!dialect.learn(Unsupported::MaxCompletionTokens, dialect.sent()), "it knows neither");
        assert!(!dialect.learn(Unsupported::MaxTokens, sent), "nor does it later");
        assert!(dialect.has_new_token_field());
    }
}
