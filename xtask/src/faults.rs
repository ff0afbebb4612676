//! `cargo xtask faults` and `cargo xtask soak`: what a hotfix comes to when something goes wrong, on test hosts.
//!
//! The programs come from the environment, as with the demo: this program runs itself again with them in it.

use std::process::Command;

use lab::faults_matrix::{self, Cell, Outcome, render};
use lab::{soak, surroundings};

use crate::failure::Failure;
use crate::{say, set_up};

#[derive(clap::Args)]
pub(crate) struct FaultsArgs {
    /// Only these cells: `cut-host:window`, or words that cells have: `kill-controller`, `window:v5`
    #[arg(long, value_delimiter = ',', value_name = "CELL")]
    only: Vec<String>,
    /// Print the names of the cells, and end
    #[arg(long)]
    list: bool,
}

#[derive(clap::Args)]
pub(crate) struct SoakArgs {
    /// How many kills
    #[arg(long, default_value_t = 20)]
    kills: u32,
    /// The same seed makes the same choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(crate) fn faults(args: &FaultsArgs) -> Result<(), Failure> {
    let cells = Cell::select(&args.only).map_err(|filter| {
        Failure::new(format!("no cell fits `{filter}`; `cargo xtask faults --list` names all"))
    })?;
    if args.list {
        cells.iter().for_each(|cell| say(&cell.to_string()));
        return Ok(());
    }
    if !has_programs() {
        let only = args.only.join(",");
        let mut words = vec!["faults".to_owned()];
        if !only.is_empty() {
            words.extend(["--only".to_owned(), only]);
        }
        return run_again(&words);
    }
    let outcomes = faults_matrix::run("faults", 10, &cells, &mut |line| say(line))?;
    say(&render(&outcomes));
    if outcomes.iter().all(Outcome::is_as_it_must_be) {
        Ok(())
    } else {
        Err(Failure::new("some cells are not as they must be"))
    }
}

pub(crate) fn soak(args: &SoakArgs) -> Result<(), Failure> {
    if !has_programs() {
        let (kills, seed) = (args.kills.to_string(), args.seed.to_string());
        return run_again(&[
            "soak".to_owned(),
            "--kills".to_owned(),
            kills,
            "--seed".to_owned(),
            seed,
        ]);
    }
    Ok(soak::run("soak", 11, args.kills, args.seed, &mut |line| say(line))?)
}

fn has_programs() -> bool {
    surroundings::dmup_binary().is_some() && surroundings::lookalike_binary().is_some()
}

fn run_again(words: &[String]) -> Result<(), Failure> {
    set_up::machine()?;
    let programs = set_up::programs()?;
    let status = Command::new(std::env::current_exe()?)
        .args(words)
        .env(surroundings::DMUP, &programs.dmup)
        .env(surroundings::LOOKALIKE, &programs.lookalike)
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(Failure::new(format!("`{}` ended with {status}", words.join(" "))))
    }
}
