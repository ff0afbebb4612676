//! What is done around the product: checks, tests, test hosts, the demo. `cargo xtask --help` lists it.

mod checks;
mod demo;
mod failure;
mod faults;
mod hosts;
mod reference;
mod set_up;
mod tests;

#[cfg(test)]
mod arrows;

use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};

use crate::failure::Failure;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Checks, tests, test hosts and the demo of dmup")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Test hosts: systemd-nspawn machines h1, h2, … with systemd, sshd and sudo (needs root)
    #[command(subcommand)]
    Hosts(hosts::Command),
    /// Run all tests: those that need no hosts, and beside them those on hosts
    Test(tests::Args),
    /// Show the product at work on test hosts (needs root)
    Demo(demo::DemoArgs),
    /// Hotfixes with every fault in every phase, as a table (needs root; hours for all of it)
    Faults(faults::FaultsArgs),
    /// Hotfixes, resumes and rollbacks that are killed at random moments (needs root)
    Soak(faults::SoakArgs),
    /// Write docs/reference.md from the help of every command
    Reference,
    /// Formatting, lints, documentation and the page of commands, as continuous integration checks them
    CiChecks,
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Hosts(command) => hosts::run(command),
        Command::Test(args) => tests::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Faults(args) => faults::faults(&args),
        Command::Soak(args) => faults::soak(&args),
        Command::Reference => reference::write(),
        Command::CiChecks => checks::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say(&format!("error: {failure}"));
            ExitCode::FAILURE
        }
    }
}

/// Tells the person at the terminal; results go the same way, for nobody parses them.
#[expect(clippy::print_stderr, reason = "the one place where xtask prints")]
fn say(line: &str) {
    eprintln!("{line}");
}

/// Runs cargo with these arguments, its output passed through, and says how long it took.
fn cargo(args: &[&str], env: &[(&str, &str)]) -> Result<(), Failure> {
    let words = args.join(" ");
    say(&format!("$ cargo {words}"));
    let begins = Instant::now();
    let status = std::process::Command::new(env!("CARGO"))
        .args(args)
        .envs(env.iter().copied())
        .status()
        .map_err(|error| Failure::new(format!("cannot run cargo: {error}")))?;
    if status.success() {
        say(&format!("`cargo {words}` took {:.0?}", begins.elapsed()));
        Ok(())
    } else {
        Err(Failure::new(format!("`cargo {words}` ended with {status}")))
    }
}
