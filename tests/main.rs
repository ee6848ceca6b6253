//! Whole-system tests: the real binary against real servers, killed at every step.

mod cli;
mod contract;
mod embedded;
mod fleet;
mod servers;
mod support;
