//! When what a provider says of one call is said of the whole run: a wrong key, an empty account, a model that is not there.
//!
//! Before the first answer the first such refusal is believed, so that a mistake costs no more than the calls under way. Once
//! there were answers, in this run or in what was done of it before, a few in a row are asked for, of different products:
//! gateways refuse a good key now and then, and what stands before them refuses a text that it does not like.

use std::sync::{Mutex, MutexGuard, PoisonError};

use shelfmill_pipeline::{
    failure::FailureClass,
    identity::IdHash,
    ledger::{Halt, HaltCause},
};

use crate::model::CallFailure;

/// Refusals in a row that are believed after there were answers.
const BELIEVED_AFTER: usize = 3;

/// What a worker has met so far.
#[derive(Debug)]
pub(crate) struct Refusals {
    state: Mutex<State>,
    /// Some products are asked of another model than the run's: what is said of it is said of them.
    is_of_few: bool,
}

#[derive(Debug)]
struct State {
    believed_after: usize,
    /// Products that were refused since the last answer.
    products: Vec<IdHash>,
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
        let state = Mutex::new(State { believed_after: 1, products: Vec::new() });
        Self { state, is_of_few: whose == Whose::OfFew }
    }

    /// Whether a refusal of this class is said of the whole run. A wrong name of a model that few products are asked of, or
    /// one that the key may not use, must not pause the rest: they have failed, and can be put back again otherwise.
    pub(crate) const fn stop_run(&self, class: FailureClass) -> bool {
        class.stops_run() && (!self.is_of_few || matches!(class, FailureClass::QuotaExhausted))
    }

    /// The provider has answered: the key is good.
    pub(crate) fn answered(&self) {
        let mut state = self.state();
        state.believed_after = BELIEVED_AFTER;
        state.products.clear();
    }

    /// Why the run is to pause, if this refusal of a call for this product says so.
    pub(crate) fn refused(&self, failure: &CallFailure, product: IdHash) -> Option<Halt> {
        let cause = HaltCause::of(failure.class).filter(|_| self.stop_run(failure.class))?;
        let mut state = self.state();
        if state.products.len() < state.believed_after && !state.products.contains(&product) {
            state.products.push(product);
        }
        let is_believed = state.products.len() >= state.believed_after;
        is_believed.then(|| Halt { cause, reason: reason(cause, &failure.message) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn refusal(class: FailureClass) -> CallFailure {
        CallFailure::new(class, "401: no.".to_owned())
    }

    #[test]
    fn the_first_refusal_is_believed_and_after_an_answer_the_third_in_a_row() {
        let refusals = Refusals::default();
        let key = refusal(FailureClass::Unauthorized);
        let refused = |id| refusals.refused(&key, IdHash::of(id)).map(|halt| halt.cause);
        assert_eq!(refused("A"), Some(HaltCause::Key));
        assert_eq!(refused("B"), Some(HaltCause::Key), "and those that were under way");
        refusals.answered();
        assert_eq!([refused("A"), refused("B")], [None, None]);
        refusals.answered();
        assert_eq!([refused("A"), refused("B"), refused("C")], [None, None, Some(HaltCause::Key)]);
        assert_eq!(refused("A"), Some(HaltCause::Key));
        assert_eq!(refusals.refused(&refusal(FailureClass::Timeout), IdHash::of("D")), None);
    }

    #[test]
    fn a_product_that_is_always_refused_says_nothing_of_the_key() {
        let refusals = Refusals::default();
        refusals.answered();
        for _ in 0..10 {
            for id in ["A", "B"] {
                assert_eq!(refusals.refused(&refusal(FailureClass::Unauthorized), IdHash::of(id)), None);
            }
        }
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
            assert_eq!(refusals.refused(&refusal(class), IdHash::of("A")).is_some(), stops, "{class}");
        }
    }
}
