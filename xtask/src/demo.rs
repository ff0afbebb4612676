//! `cargo xtask demo`: brings the machine up to it, builds the programs, and shows the product on test hosts.
//!
//! What is shown takes its programs from the environment, as tests do; so this program runs itself again with them in it. Somebody who
//! names other programs there (`LAB_DMUP`, `LAB_LOOKALIKE`), a release for example, sees those.

use std::process::Command;

use camino::Utf8PathBuf;
use lab::{hosts, surroundings};

use crate::failure::Failure;
use crate::{say, set_up};

#[derive(clap::Args)]
pub(crate) struct DemoArgs {
    /// Leave the hosts and the cluster running afterwards
    #[arg(long)]
    keep: bool,
    /// With a real DM: an archive with `dm-master` and `dm-worker` in it. `DMUP_DM_PACKAGE` says the same to all commands and tests
    #[arg(long, value_name = "FILE")]
    dm_package: Option<Utf8PathBuf>,
    /// The hotfix of that DM; without it, the same programs with another hash
    #[arg(long, value_name = "FILE", requires = "dm_package")]
    dm_hotfix: Option<Utf8PathBuf>,
}

pub(crate) fn run(args: &DemoArgs) -> Result<(), Failure> {
    let keep = args.keep;
    if surroundings::dmup_binary().is_some() && surroundings::lookalike_binary().is_some() {
        if hosts::can_boot_hosts().is_err() {
            return Ok(lab::playground::run(&mut |line| say(line))?);
        }
        return Ok(lab::demo::run(keep, &mut |line| say(line))?);
    }
    set_up::packages()?;
    let can_boot = hosts::can_boot_hosts();
    if let Err(missing) = &can_boot {
        if surroundings::in_ci() {
            return Err(Failure::new(missing.to_string()));
        }
        say(&format!("hosts cannot be booted here ({missing}): local hosts stand for them"));
    } else {
        set_up::machine()?;
    }
    let programs = set_up::programs()?;
    let mut again = Command::new(&programs.xtask);
    again
        .arg("demo")
        .args(keep.then_some("--keep"))
        .env(surroundings::DMUP, &programs.dmup)
        .env(surroundings::LOOKALIKE, &programs.lookalike);
    for (variable, file) in
        [(surroundings::DM_PACKAGE, &args.dm_package), (surroundings::DM_HOTFIX, &args.dm_hotfix)]
    {
        if let Some(file) = file {
            again.env(variable, file.canonicalize_utf8()?);
        }
    }
    let status = again.status()?;
    if status.success() {
        Ok(())
    } else {
        Err(Failure::new(format!("the demo ended with {status}")))
    }
}
