//! `cargo xtask demo`: brings the machine up to it, builds the programs, and shows the product on test hosts.

use crate::failure::Failure;
use crate::set_up;

pub(crate) fn run(keep: bool) -> Result<(), Failure> {
    set_up::machine()?;
    let programs = set_up::programs()?;
    Err(Failure::new(format!(
        "the machine is ready ({}, {}), but there is nothing to show yet (keep: {keep})",
        programs.dmup, programs.lookalike
    )))
}
