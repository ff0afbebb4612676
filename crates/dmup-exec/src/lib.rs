//! Carries plans out: one step at a time, each written down before it happens.
//!
//! This crate knows hosts and DM only by the [`ports`]; `dmup-remote` implements
//! them over SSH and HTTP, tests implement them in memory.

pub mod ports;
