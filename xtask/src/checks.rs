//! `cargo xtask ci-checks`: formatting, lints, documentation, the page of commands; the first that fails ends it.

use crate::cargo;
use crate::failure::Failure;
use crate::reference;

pub(crate) fn run() -> Result<(), Failure> {
    cargo(&["fmt", "--all", "--check"], &[])?;
    cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"], &[])?;
    cargo(&["doc", "--workspace", "--no-deps", "--locked"], &[("RUSTDOCFLAGS", "-D warnings")])?;
    reference::check()
}
