//! `cargo xtask hosts`: a set of test hosts to work with by hand.

use std::os::unix::process::CommandExt as _;

use clap::{Args, Subcommand};
use lab::hosts::{self, FoundSet, HostSet};

use crate::failure::Failure;
use crate::{say, set_up};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Boot hosts; those of the set that run already are left alone
    Up {
        #[command(flatten)]
        set: SetArg,
        /// Address block: hosts are at 198.18.BLOCK.11 and up
        #[arg(long, default_value_t = 0)]
        block: u8,
        /// How many
        #[arg(long, default_value_t = 4)]
        count: u8,
    },
    /// Take hosts down with all that belongs to them, also after a killed `up`
    Down {
        #[command(flatten)]
        set: SetArg,
        /// Every set that nobody uses
        #[arg(long, conflicts_with = "set")]
        all: bool,
    },
    /// Log in as root, or run a command
    Ssh {
        #[command(flatten)]
        set: SetArg,
        /// h1, h2, …
        host: String,
        /// A command for the host's shell
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// List all sets of this machine
    List,
}

#[derive(Args)]
pub(crate) struct SetArg {
    /// The set's name
    #[arg(long, default_value = "hosts")]
    set: String,
}

pub(crate) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Up { set, block, count } => {
            set_up::machine()?;
            HostSet::up(&set.set, block, count)?.leave();
            show(&find(&set.set)?);
            Ok(())
        }
        Command::Down { set, all: false } => Ok(hosts::down(&set.set)?),
        Command::Down { set: _, all: true } => {
            for set in hosts::list()?.iter().filter(|set| !set.held) {
                hosts::down(&set.name.to_string())?;
            }
            Ok(())
        }
        Command::Ssh { set, host, command } => ssh(&find(&set.set)?, &host, &command),
        Command::List => {
            hosts::list()?.iter().for_each(show);
            Ok(())
        }
    }
}

fn find(name: &str) -> Result<FoundSet, Failure> {
    hosts::list()?.into_iter().find(|set| set.name.to_string() == name).ok_or_else(|| {
        Failure::new(format!("there is no set `{name}`; `cargo xtask hosts up` makes one"))
    })
}

fn show(set: &FoundSet) {
    let use_of_it = if set.held { ", in use" } else { "" };
    say(&format!("set {}, block {}{use_of_it}", set.name, set.block));
    for host in &set.hosts {
        let state = if host.running { "running" } else { "not running" };
        say(&format!("  {:<4} {:<14} {state}", host.name, host.address));
    }
    say(&format!(
        "  ssh -i {} -o UserKnownHostsFile={} root@ADDRESS",
        set.key_path, set.known_hosts
    ));
}

fn ssh(set: &FoundSet, host: &str, command: &[String]) -> Result<(), Failure> {
    let found = set
        .hosts
        .iter()
        .find(|found| found.name == host)
        .ok_or_else(|| Failure::new(format!("set `{}` has no {host}", set.name)))?;
    let error = hosts::ssh_command(&set.key_path, &set.known_hosts, "root", found.address)
        .args(command)
        .exec();
    Err(Failure::new(format!("cannot run ssh: {error}")))
}
