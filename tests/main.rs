//! Whole-system tests: the real binary against real servers, killed at every step.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

mod ahead;
mod broker_faults;
mod cli;
mod contract;
mod conversations;
mod crashes;
mod dead_letters;
mod dialects;
mod disk_faults;
mod embedded;
mod failover;
mod file_faults;
mod fleet;
mod fleet_commands;
mod halts;
mod health;
mod images;
mod leases;
mod limits;
mod metrics;
mod proofs;
mod protocol;
mod proxy;
mod queue_faults;
mod redis_faults;
mod report;
mod requeue;
mod retries;
mod same_prompts;
mod security;
mod servers;
mod shutdown;
mod status_page;
mod storm;
mod support;
mod traces;
