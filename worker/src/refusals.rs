//! When what a provider says of one call is said of the whole run: a wrong key, an empty account, a model that is not there.
//!
//! Before the first answer the first such refusal is believed, so that a mistake costs no more than the calls under way. Once
//! there were answers a few in a row are asked for: gateways refuse a good key now and then.

use std::sync::atomic::{AtomicU32, Ordering};

use shelfmill_pipeline::{
    failure::FailureClass,
    ledger::{Halt, HaltCause},
};

/// Refusals in a row that are believed after there were answers.
const BELIEVED_AFTER: u32 = 3;

/// What a worker has met so far.
#[derive(Debug)]
pub(crate) struct Refusals {
    /// Refusals that are still to come until they are believed.
    left: AtomicU32,
    /// Some products are asked of another model than the run's: what is said of it is said of them.
    is_of_few: bool,
}

/// Whom what is said of a model concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// The run's model: all products.
    OfAll,
    /// A model that only products are asked of which were put back.
    OfFew,
}

impl Default for Refusals {
    fn default() -> Self {
        Self::of(Whose::OfAll)
    }
}

impl Refusals {
    pub(crate) fn of(whose: Whose) -> Self {
        Self { left: AtomicU32::new(1), is_of_few: whose == Whose::OfFew }
    }

    /// Whether a refusal of this class is said of the whole run. A wrong name of a model that few products are asked of, or
    /// one that the key may not use, must not pause the rest: they have failed, and can be put back again otherwise.
    pub(crate) const fn stop_run(&self, class: FailureClass) -> bool {
        class.stops_run() && (!self.is_of_few || matches!(class, FailureClass::QuotaExhausted))
    }

    /// The provider has answered: the key is good.
    pub(crate) fn answered(&self) {
        self.left.store(BELIEVED_AFTER, Ordering::Relaxed);
    }

    /// Why the run is to pause, if this refusal says so.
    pub(crate) fn refused(&self, class: FailureClass, message: &str) -> Option<Halt> {
        let cause = HaltCause::of(class).filter(|_| self.stop_run(class))?;
        let left = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        (left.is_err() || left == Ok(1)).then(|| Halt { cause, reason: reason(cause, message) })
    }
}

fn reason(cause: HaltCause, message: &str) -> String {
    let (what, mend) = match cause {
        HaltCause::Key => ("the model's server refuses the key", "set a key that it takes (OPENAI_API_KEY)"),
        HaltCause::Quota => ("the account has no money left", "add to it"),
        _ => ("the model's server has no such model", "correct --model or the job"),
    };
    format!("{what}: {}; {mend}, then start it again", message.trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_refusal_is_believed_and_after_an_answer_the_third_in_a_row() {
        let refusals = Refusals::default();
        let refused = || refusals.refused(FailureClass::Unauthorized, "401: no.").map(|halt| halt.cause);
        assert_eq!(refused(), Some(HaltCause::Key));
        assert_eq!(refused(), Some(HaltCause::Key), "and those that were under way");
        refusals.answered();
        assert_eq!([refused(), refused()], [None, None]);
        refusals.answered();
        assert_eq!([refused(), refused(), refused()], [None, None, Some(HaltCause::Key)]);
        assert_eq!(refusals.refused(FailureClass::Timeout, "slow"), None);
    }

    #[test]
    fn what_is_said_of_the_model_of_few_products_is_not_said_of_the_run() {
        let refusals = Refusals::of(Whose::OfFew);
        for (class, stops) in [
            (FailureClass::Unauthorized, false),
            (FailureClass::ModelNotFound, false),
            (FailureClass::Timeout, false),
            (FailureClass::QuotaExhausted, true),
        ] {
            assert_eq!(refusals.stop_run(class), stops, "{class}");
            assert_eq!(refusals.refused(class, "no").is_some(), stops, "{class}");
        }
    }
}
