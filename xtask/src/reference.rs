//! `cargo xtask reference`: writes `docs/reference.md` from the help of every command.
//!
//! A test of dmup does it, so that xtask need not be built with all of dmup in it.

use crate::cargo;
use crate::failure::Failure;

// All of the workspace, as for every other test: a single package would be compiled with other features once more.
const TEST: &[&str] =
    &["test", "--quiet", "--workspace", "--locked", "--test", "cli", "--", "reference::"];

pub(crate) fn write() -> Result<(), Failure> {
    cargo(TEST, &[("DMUP_WRITE_REFERENCE", "1")])
}

pub(crate) fn check() -> Result<(), Failure> {
    cargo(TEST, &[])
}
