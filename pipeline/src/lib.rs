//! What the roles agree on: words, wire formats, and the two interfaces everything passes through.
//!
//! The promises of Shelfmill (nothing lost, nothing twice, a paid answer is kept) rest on one rule, *durable
//! first, then told*, and on every step being recognisable when it is done again. The pieces that carry the
//! rule live here: [`ledger`] (who may call the model for a product, and what is already answered or done),
//! [`broker`] (messages that are settled once, publishes that are confirmed), and the formats both move.
//! A role depends on this crate and never on another role.

pub mod broker;
pub mod changes;
pub mod crash;
pub mod failure;
pub mod health;
pub mod identity;
pub mod job;
pub mod json_text;
pub mod ledger;
pub mod message;
pub mod metrics;
pub mod money;
pub mod record;
mod server_url;
pub mod shutdown;
pub mod signature;
pub mod trace;
