//! `cargo xtask reference`: writes `docs/reference.md` from the help of every command.
//!
//! A test of dmup does it, so that xtask need not be built with all of dmup in it.

use crate::cargo;
use crate::failure::Failure;

// One test program of one package. Its units are the same that `cargo test --workspace` compiles, features included.
const TEST: &[&str] =
    &["test", "--quiet", "--package", "dmup", "--locked", "--test", "cli", "--", "reference::"];

pub(crate) fn write() -> Result<(), Failure> {
    cargo(TEST, &[("DMUP_WRITE_REFERENCE", "1")])
}

pub(crate) fn check() -> Result<(), Failure> {
    cargo(TEST, &[])
}
