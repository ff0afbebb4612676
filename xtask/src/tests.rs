//! `cargo xtask test`: all tests that need no hosts, and beside them the test programs of `crates/lab/tests/*_hosts.rs` on hosts.
//!
//! Three of these programs run side by side; each has sets and address blocks of its own. What one says is shown whole when it ends.

use std::collections::VecDeque;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use lab::build::Built;
use lab::{hosts, surroundings};

use crate::failure::Failure;
use crate::set_up::{self, Programs};
use crate::{cargo, say};

/// Test programs side by side.
const LANES: usize = 3;
/// Test programs that take minutes, longest first.
const LONGEST: [&str; 9] = [
    "patch_hosts",
    "fault_hosts",
    "user_mode_hosts",
    "guard_hosts",
    "scale_hosts",
    "upgrade_hosts",
    "tls_hosts",
    "manual_hosts",
    "bad_input_hosts",
];
/// The one test on hosts that needs none.
const WITHOUT_HOSTS: &str = "playground_hosts";
/// A program that takes longer hangs. None is expected to take half of it.
const BOUND: Duration = Duration::from_secs(30 * 60);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave the tests on hosts out
    #[arg(long)]
    fast: bool,
    /// Only the tests on hosts, and of these only programs with this in their name
    #[arg(long, value_name = "NAME", conflicts_with = "fast")]
    only: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    // The set-up waits for disks and downloads while cargo compiles.
    let (hosts_possible, built) = thread::scope(|scope| {
        let set_up = scope.spawn(|| set_up(args));
        let built = match args.only {
            Some(_) => Ok(()),
            None => cargo(&["test", "--workspace", "--no-run"], &[]),
        };
        let panicked = |_| Err(Failure::new("the set-up of this machine panicked"));
        (set_up.join().unwrap_or_else(panicked), built)
    });
    built?;
    let on_hosts = || match hosts_possible {
        Ok(()) => on_hosts(args.only.as_deref()),
        Err(_) if args.fast => Ok(()),
        Err(why) if surroundings::in_ci() => Err(why),
        Err(why) => {
            say(&format!("tests on hosts left out, local hosts stand for them: {why}"));
            on_hosts(Some(WITHOUT_HOSTS))
        }
    };
    if args.only.is_some() {
        return on_hosts();
    }
    // Side by side, and more of them than cores: tests wait more than they compute.
    let threads = thread::available_parallelism().map_or(2, |cores| 2 * cores.get()).to_string();
    thread::scope(|scope| {
        let without_hosts =
            scope.spawn(|| cargo(&["test", "--workspace"], &[("RUST_TEST_THREADS", &threads)]));
        let on_hosts = on_hosts();
        let panicked = |_| Err(Failure::new("the tests without hosts panicked"));
        without_hosts.join().unwrap_or_else(panicked).and(on_hosts)
    })
}

/// Brings the machine to where tests can run; fails if those on hosts cannot, or are not wanted.
fn set_up(args: &Args) -> Result<(), Failure> {
    if !args.fast {
        return set_up::machine();
    }
    // Some tests without hosts start real etcd; without it they say so themselves.
    if rustix::process::geteuid().is_root()
        && let Err(why) = set_up::packages()
    {
        say(&format!("not every Debian package is here: {why}"));
    }
    Err(Failure::new("left out by --fast"))
}

fn on_hosts(only: Option<&str>) -> Result<(), Failure> {
    let (programs, mut tests) = set_up::programs_and_tests()?;
    tests.retain(|test| only.is_none_or(|part| test.name.contains(part)));
    if tests.is_empty() {
        return Err(Failure::new("there is no such test program"));
    }
    // The longest first, so that no lane is left alone with one at the end.
    let rank = |test: &Built| LONGEST.iter().position(|name| test.name == *name);
    tests.sort_by_key(|test| (rank(test).unwrap_or(LONGEST.len()), test.name.clone()));
    let before = unheld_sets()?;
    let begins = Instant::now();
    let count = tests.len();
    let queue = Mutex::new(VecDeque::from(tests));
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                while let Some(test) = pop(&queue) {
                    if let Err(failure) = one(&test, &programs) {
                        failed
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(format!("{}: {failure}", test.name));
                    }
                }
            });
        }
    });
    // What a test program that was killed has left.
    for set in unheld_sets()?.iter().filter(|set| !before.contains(set)) {
        hosts::down(set)?;
    }
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    say(&format!("{count} test programs on hosts took {:.0?}", begins.elapsed()));
    if failed.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(format!("tests on hosts failed: {}", failed.join("; "))))
    }
}

fn pop(queue: &Mutex<VecDeque<Built>>) -> Option<Built> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

fn unheld_sets() -> Result<Vec<String>, Failure> {
    let sets = hosts::list()?;
    Ok(sets.iter().filter(|set| !set.held).map(|set| set.name.to_string()).collect())
}

/// Runs one test program to its end and shows what it said.
fn one(test: &Built, programs: &Programs) -> Result<(), Failure> {
    let mut output = tempfile::tempfile()?;
    let begins = Instant::now();
    let mut child = Command::new(&test.path)
        .args(["--ignored", "--test-threads=1"])
        .env(surroundings::DMUP, &programs.dmup)
        .env(surroundings::LOOKALIKE, &programs.lookalike)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .spawn()?;
    let mut status: Option<std::io::Result<ExitStatus>> = None;
    lab::wait_until(BOUND, || {
        status = child.try_wait().transpose();
        status.is_some()
    });
    let verdict = match status {
        Some(Ok(status)) if status.success() => Ok(()),
        Some(Ok(status)) => Err(Failure::new(status.to_string())),
        Some(Err(error)) => Err(error.into()),
        None => {
            child.kill()?;
            child.wait()?;
            Err(Failure::new(format!("did not end within {BOUND:?}")))
        }
    };
    let mut text = Vec::new();
    output.seek(SeekFrom::Start(0))?;
    output.read_to_end(&mut text)?;
    let word = if verdict.is_ok() { "passed" } else { "FAILED" };
    // One call, so that two lanes do not mix.
    say(&format!(
        "== {} {word} after {:.1} s\n{}",
        test.name,
        begins.elapsed().as_secs_f64(),
        String::from_utf8_lossy(&text).trim_end()
    ));
    verdict
}
