//! The claims this worker holds, so that one request renews them all.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use shelfmill_pipeline::identity::{ByProduct, IdHash};

/// How long a product stays with a worker nobody hears of.
pub(crate) const LEASE: Duration = Duration::from_secs(15);
/// Two renewals may be lost before a claim is.
pub(crate) const RENEW_EVERY: Duration = Duration::from_secs(5);

#[derive(Clone, Default)]
pub(crate) struct Leases {
    held: Arc<Mutex<ByProduct<String>>>,
}

/// A claim that is renewed until it is settled. One that is dropped before was cut off: it stays among those that are
/// held, for whoever ends the worker to give up. One whose task panics runs out: that is evidence against its product.
#[must_use]
pub(crate) struct Held {
    leases: Leases,
    product: IdHash,
    token: String,
}

impl Leases {
    pub(crate) fn keep(&self, product: IdHash, token: String) -> Held {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(product, token.clone());
        Held { leases: self.clone(), product, token }
    }

    pub(crate) fn all(&self) -> Vec<(IdHash, String)> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.iter().map(|(product, token)| (*product, token.clone())).collect()
    }
}

impl Held {
    /// The claim is given back, or its answer is kept, or it is another's.
    pub(crate) fn settled(self) {
        self.forget();
    }

    fn forget(&self) {
        let mut held = self.leases.held.lock().unwrap_or_else(PoisonError::into_inner);
        // Another task of the product may hold it by now.
        if held.get(&self.product) == Some(&self.token) {
            held.remove(&self.product);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.forget();
        }
    }
}
