//! Random calls, and what of the scripts only they use.

use proptest::prelude::*;

use crate::protocol::{
    ledger::{CLASSES, Known, Ledger, Standing},
    state::PRODUCTS,
};

#[derive(Clone, Debug)]
pub(super) enum Call {
    BeginScan {
        producer: u8,
    },
    ScanRunsOut,
    /// Of the latest scan or the one before; the batch is the last one again (0), the next (1), or one too far (2).
    Admit {
        latest: bool,
        ahead: u8,
        products: Vec<u8>,
    },
    Seal {
        latest: bool,
        all_batches: bool,
    },
    Claim {
        product: u8,
        token: u8,
    },
    ClaimRunsOut {
        product: u8,
    },
    Renew {
        product: u8,
        token: u8,
    },
    /// With so many calls spent, and so many of them repeated.
    Release {
        product: u8,
        token: u8,
        spent: (u8, u8),
    },
    /// Of claims: product and token of each.
    Abandon {
        claims: Vec<(u8, u8)>,
    },
    /// A place that is free at once, or the call after the wait for one.
    Begin {
        product: u8,
        token: u8,
        number: u8,
    },
    PutAnswer {
        product: u8,
        token: u8,
        number: u8,
        /// With the number of calls that a late answer is to tell of, or another.
        late: Option<bool>,
    },
    /// Products and their classes, from the right mark or a wrong one, to the next mark or again to the last.
    Record {
        lines: Vec<(u8, Option<u8>)>,
        right: bool,
        again: bool,
    },
    Reopen {
        products: Vec<u8>,
    },
    Forget {
        products: Vec<u8>,
    },
    States,
    Empty,
}

/// Sequences of calls; without Redis, of those that one process makes.
pub(super) fn calls(over_redis: bool) -> impl Strategy<Value = Vec<Call>> {
    let product = || 0..PRODUCTS as u8;
    let token = || 0..2_u8;
    let products = || prop::collection::vec(product(), 1..=PRODUCTS);
    let likely = || prop::bool::weighted(0.8);
    // Few results: nothing happens any more to a product that has one.
    let line = (product(), prop::option::weighted(0.8, 0..CLASSES as u8));
    let lines = prop::collection::vec(line, 0..=PRODUCTS);
    let ahead = prop_oneof![1 => Just(0_u8), 4 => Just(1), 1 => Just(2)];
    let within = prop_oneof![
        4 => (product(), token()).prop_map(|(product, token)| Call::Claim { product, token }),
        2 => (product(), token()).prop_map(|(product, token)| Call::Renew { product, token }),
        2 => (product(), token(), (0..3_u8, 0..3_u8))
            .prop_map(|(product, token, spent)| Call::Release { product, token, spent }),
        1 => prop::collection::vec((product(), token()), 0..3).prop_map(|claims| Call::Abandon { claims }),
        4 => (product(), token(), 1..4_u8)
            .prop_map(|(product, token, number)| Call::Begin { product, token, number }),
        2 => (product(), token(), 0..9_u8, prop::option::of(likely()))
            .prop_map(|(product, token, number, late)| Call::PutAnswer { product, token, number, late }),
        2 => (lines, likely(), any::<bool>())
            .prop_map(|(lines, right, again)| Call::Record { lines, right, again }),
        1 => Just(Call::States),
        3 => (likely(), ahead, products()).prop_map(move |(latest, ahead, products)| Call::Admit {
            latest: latest || !over_redis,
            ahead: if over_redis { ahead } else { ahead.min(1) },
            products,
        }),
    ];
    if !over_redis {
        return prop::collection::vec(within, 1..60).boxed();
    }
    let between = prop_oneof![
        3 => (0..2_u8).prop_map(|producer| Call::BeginScan { producer }),
        1 => Just(Call::ScanRunsOut),
        2 => (likely(), likely()).prop_map(|(latest, all_batches)| Call::Seal { latest, all_batches }),
        4 => product().prop_map(|product| Call::ClaimRunsOut { product }),
        3 => products().prop_map(|products| Call::Reopen { products }),
        1 => products().prop_map(|products| Call::Forget { products }),
        1 => Just(Call::Empty),
    ];
    prop::collection::vec(prop_oneof![2 => within, 1 => between], 1..60).boxed()
}

impl Ledger {
    /// `reopen.lua`; how many were failed.
    pub(super) fn reopen(&mut self, products: &[u8]) -> u64 {
        let mut reopened = 0;
        for at in products.iter().map(|product| usize::from(*product)) {
            let Some(known) = self.products[at].filter(|known| known.standing == Standing::Failed) else {
                continue;
            };
            self.products[at] = Some(Known { standing: Standing::Open, ..known });
            self.failed -= 1;
            self.scan_failed -= i8::from(self.scan.is_some_and(|scan| scan.number == known.scan));
            self.uncount(at);
            (self.claims[at], self.answers[at]) = (None, None);
            reopened += 1;
        }
        reopened
    }

    /// `forget.lua`.
    pub(super) fn forget(&mut self, products: &[u8]) {
        for product in products {
            if self.standing(*product) != Standing::Failed {
                self.failures[usize::from(*product)] = None;
            }
        }
    }
}
