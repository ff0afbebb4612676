//! `cargo xtask faults` and `cargo xtask soak`: what a hotfix comes to when something goes wrong, on test hosts.
//!
//! The programs come from the environment, as with the demo: this program runs itself again with them in it.

use std::io::Write as _;
use std::process::Command;
use std::time::Instant;

use camino::Utf8PathBuf;
use lab::faults_matrix::{self, Cell, Outcome, render};
use lab::{Lane, hosts, soak, surroundings};

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
    /// So many sets of hosts side by side; a set needs about half a core and 1 GiB
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=6))]
    lanes: u8,
    /// Append what each cell came to to this file, a JSON object a line
    #[arg(long, value_name = "FILE")]
    out: Option<Utf8PathBuf>,
    /// Leave out the cells that are in this file of an earlier `--out`; the table shows them as well. It may be the same file
    #[arg(long, value_name = "FILE")]
    skip_done: Option<Utf8PathBuf>,
}

/// Address blocks of the matrix' lanes: the first that nobody else has.
const FAULTS_BLOCKS: &[u8] = &[10, 14, 15, 17, 18, 19, 20];
/// Those of the soak's.
const SOAK_BLOCKS: &[u8] = &[11, 22, 23, 24, 25, 26];

#[derive(clap::Args)]
pub(crate) struct SoakArgs {
    /// How many kills, in all lanes together
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    kills: u32,
    /// The same seed makes the same choices; each lane after the first has the next one
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// So many sets of hosts side by side, the kills divided among them; a set needs about half a core and 1 GiB
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=6))]
    lanes: u8,
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
        return run_again(&args.words());
    }
    let done = match &args.skip_done {
        Some(file) => faults_matrix::read_outcomes(file)?,
        None => Vec::new(),
    };
    let (known, left): (Vec<Cell>, Vec<Cell>) =
        cells.iter().partition(|cell| done.iter().any(|outcome| outcome.cell == **cell));
    if !known.is_empty() {
        say(&format!("{} of {} cells are done already", known.len(), cells.len()));
    }
    let mut out = match &args.out {
        Some(file) => Some(fs_err::OpenOptions::new().create(true).append(true).open(file)?),
        None => None,
    };
    let mut unwritten = None;
    let lanes = lanes("faults", FAULTS_BLOCKS, args.lanes)?;
    let begun = Instant::now();
    let mut count = known.len();
    let fresh = faults_matrix::run(&lanes, &left, &mut |outcome| {
        count += 1;
        say(&format!("[{count}/{}] {outcome}", cells.len()));
        if let Some(out) = &mut out
            && let Err(error) = append(out, outcome)
        {
            unwritten = Some(error);
        }
    });
    let wanted = done.into_iter().filter(|outcome| known.contains(&outcome.cell));
    let mut outcomes: Vec<Outcome> = wanted.chain(fresh).collect();
    outcomes.sort_by_key(|outcome| cells.iter().position(|cell| *cell == outcome.cell));
    say(&render(&outcomes));
    say(&format!("{} cells in {} lanes took {:.0?}", left.len(), args.lanes, begun.elapsed()));
    if let Some(error) = unwritten {
        return Err(error.into());
    }
    if outcomes.iter().all(Outcome::is_as_it_must_be) {
        Ok(())
    } else {
        Err(Failure::new("some cells are not as they must be"))
    }
}

fn lanes(what: &str, blocks: &[u8], count: u8) -> Result<Vec<Lane>, Failure> {
    let sets = hosts::list()?;
    let lane = |block: u8| Lane { set: format!("{what}-{block}"), block };
    let is_ours = |set: &hosts::FoundSet| set.name.to_string() == lane(set.block).set && !set.held;
    let is_free = |block: u8| sets.iter().all(|set| set.block != block || is_ours(set));
    let free = blocks.iter().copied().filter(|block| is_free(*block));
    let lanes: Vec<Lane> = free.map(lane).take(usize::from(count)).collect();
    if lanes.len() == usize::from(count) {
        Ok(lanes)
    } else {
        Err(Failure::new(format!(
            "of the address blocks {blocks:?} only {} are free; `cargo xtask hosts list` shows who has the others",
            lanes.len()
        )))
    }
}

/// One write, so that an interruption tears one line at most.
fn append(out: &mut fs_err::File, outcome: &Outcome) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(outcome)?;
    line.push(b'\n');
    out.write_all(&line)
}

impl FaultsArgs {
    /// As they were typed.
    fn words(&self) -> Vec<String> {
        let mut words = vec!["faults".to_owned(), "--lanes".to_owned(), self.lanes.to_string()];
        let mut add = |flag: &str, value: Option<String>| {
            words.extend(value.into_iter().flat_map(|value| [flag.to_owned(), value]));
        };
        add("--only", Some(self.only.join(",")).filter(|only| !only.is_empty()));
        add("--out", self.out.as_ref().map(ToString::to_string));
        add("--skip-done", self.skip_done.as_ref().map(ToString::to_string));
        words
    }
}

pub(crate) fn soak(args: &SoakArgs) -> Result<(), Failure> {
    let SoakArgs { kills, seed, lanes: count } = args;
    if !has_programs() {
        let words = format!("soak --kills {kills} --seed {seed} --lanes {count}");
        return run_again(&words.split(' ').map(str::to_owned).collect::<Vec<_>>());
    }
    // A lane without a kill would only boot.
    let count = u8::try_from(*kills).map_or(*count, |kills| kills.min(*count));
    let lanes = lanes("soak", SOAK_BLOCKS, count)?;
    let summary = soak::run(&lanes, *kills, *seed, &mut |line| say(line));
    say(&summary.to_string());
    if summary.is_as_it_must_be() {
        Ok(())
    } else {
        Err(Failure::new("some lanes did not end as they must"))
    }
}

fn has_programs() -> bool {
    surroundings::dmup_binary().is_some() && surroundings::lookalike_binary().is_some()
}

fn run_again(words: &[String]) -> Result<(), Failure> {
    set_up::machine()?;
    let programs = set_up::programs()?;
    let status = Command::new(&programs.xtask)
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
