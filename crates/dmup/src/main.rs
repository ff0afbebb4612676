//! `dmup`: a cluster manager for DM (TiDB Data Migration).

use std::process::ExitCode;

fn main() -> ExitCode {
    dmup::run(std::env::args_os().collect(), dmup::surroundings::Surroundings::from_process())
}
