//! Whole-system tests: the real binary against real servers, killed at every step.

mod servers;
mod support;
