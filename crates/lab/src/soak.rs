//! Kills again and again: hotfixes, resumes and rollbacks that are killed with -9 at random moments, on real hosts with rows flowing.
//!
//! In: how many kills, a seed; the same seed makes the same choices, though not the same moments. Every command that is
//! killed is followed by `resume` or `rollback`, which may be killed as well. In the end the last one is let through, and then
//! nothing is lost, doubled, down or armed, and all nodes run one build.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lookalike::stamp::Stamp;
use rustix::process::Signal;

use crate::attended::Attended;
use crate::operator::Said;
use crate::outside::{Builds, Meant};
use crate::scene::{CLUSTER, Scene, SceneError, Shape};
use crate::waiting::wait_until;

const RATE: u32 = 100;
const BOUND: Duration = Duration::from_secs(600);
const PATIENCE: Duration = Duration::from_secs(150);
/// A whole hotfix of six nodes takes about that long; later kills would come after its end.
const LATEST_KILL_MS: u64 = 60_000;

/// Kills so many times, and checks in the end.
///
/// # Errors
///
/// What is not as it must be, with what was said last; or a cluster that could not be set up.
pub fn run(
    set: &str,
    block: u8,
    kills: u32,
    seed: u64,
    say: &mut dyn FnMut(&str),
) -> Result<(), SceneError> {
    let scene = Scene::running(set, block, Shape::three(), RATE)?;
    let mut soak = Soak {
        old: scene.running_hashes(),
        scene: &scene,
        chance: Chance(seed),
        exits: BTreeMap::new(),
        builds: 0,
    };
    let mut killed = 0;
    let mut next = soak.hotfix()?;
    let begun = Instant::now();
    while killed < kills {
        let after = Duration::from_millis(soak.chance.below(LATEST_KILL_MS));
        let said = soak.run(&next, Some(after))?;
        if said.code == 137 {
            killed += 1;
            say(&format!(
                "kill {killed} of {kills}, after {:.1} s of `{}`",
                after.as_secs_f64(),
                next[0]
            ));
        }
        next = soak.what_next(&said)?;
    }
    // Whatever is open is closed, and this time nobody interferes.
    let mut said = soak.close()?;
    for _ in 0..3 {
        if said.code == 0 {
            break;
        }
        let words = soak.what_next(&said)?;
        said = soak.run(&words, None)?;
    }
    soak.check(&said)?;
    let exits: Vec<String> =
        soak.exits.iter().map(|(what, count)| format!("{count} × {what}")).collect();
    say(&format!("{kills} kills in {:.0} s: {}", begun.elapsed().as_secs_f64(), exits.join(", ")));
    Ok(())
}

struct Soak<'s> {
    scene: &'s Scene,
    old: Vec<(String, String)>,
    chance: Chance,
    /// How often a command ended how.
    exits: BTreeMap<String, u32>,
    builds: u32,
}

impl Soak<'_> {
    /// A new build, and how to put it in.
    fn hotfix(&mut self) -> Result<Vec<String>, SceneError> {
        self.builds += 1;
        let number = self.builds;
        let stamp = Stamp::new(&format!("v8.1.0-s{number}"), &format!("{number:040x}"));
        let package = self.scene.hotfix(&format!("soak-{number}.tar.gz"), &stamp)?;
        Ok(words(&["patch", CLUSTER, package.as_str(), "--yes", "--soak", "1", "--guard", "15"]))
    }

    /// One command, killed after that time.
    fn run(&mut self, line: &[String], kill_after: Option<Duration>) -> Result<Said, SceneError> {
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        let mut run = Attended::begin(&self.scene.operator, CLUSTER, &line)
            .map_err(|error| SceneError(format!("start dmup: {error}")))?;
        if let Some(after) = kill_after {
            wait_until(after, || run.has_ended());
            run.signal(Signal::KILL);
        }
        let said = run.end(BOUND);
        *self.exits.entry(format!("{} {}", line[0], said.code)).or_default() += 1;
        Ok(said)
    }

    fn what_next(&mut self, said: &Said) -> Result<Vec<String>, SceneError> {
        let is_patch = said.line.starts_with("dmup patch");
        match said.code {
            137 | 7 | 130 => Ok(self.resume_or_rollback()),
            6 => Ok(rollback()),
            // A new hotfix beside an open run is refused; so is a resume without one.
            3 if is_patch && said.stderr.contains("has not ended") => Ok(self.resume_or_rollback()),
            0 if is_patch => Ok(rollback()),
            0 | 1 | 3 | 5 => self.hotfix(),
            _ => Err(SceneError(format!("nobody knows what to do after this: {said}"))),
        }
    }

    fn resume_or_rollback(&mut self) -> Vec<String> {
        if self.chance.below(2) == 0 { words(&["resume", CLUSTER]) } else { rollback() }
    }

    fn close(&mut self) -> Result<Said, SceneError> {
        let said = self.run(&words(&["resume", CLUSTER]), None)?;
        // Nothing was open.
        if said.code == 3 { self.run(&rollback(), None) } else { Ok(said) }
    }

    fn check(&self, last: &Said) -> Result<(), SceneError> {
        let mut wrong = Vec::new();
        let builds = self.scene.builds(&self.old, Meant::All, PATIENCE);
        if !matches!(builds, Builds::New | Builds::Old) {
            wrong.push(format!("the hosts run: {builds}"));
        }
        if let Err(why) = self.scene.in_service(PATIENCE) {
            wrong.push(format!("out of service: {why}"));
        }
        let rows = self.scene.count_rows(RATE, PATIENCE)?;
        if !rows.is_whole() {
            wrong.push(format!("rows: {rows}"));
        }
        let guards = self.scene.armed_guards();
        if !guards.is_empty() {
            wrong.push(format!("still armed: {}", guards.join(", ")));
        }
        if wrong.is_empty() {
            Ok(())
        } else {
            Err(SceneError(format!("{}\n{last}", wrong.join("\n"))))
        }
    }
}

fn words(line: &[&str]) -> Vec<String> {
    line.iter().map(|word| (*word).to_owned()).collect()
}

fn rollback() -> Vec<String> {
    words(&["rollback", CLUSTER, "--yes", "--soak", "1"])
}

/// Choices that follow from a seed: splitmix64, which needs no crate.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_choices() {
        let choices = |seed| {
            let mut chance = Chance(seed);
            (0..8).map(|_| chance.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(choices(1), choices(1));
        assert_ne!(choices(1), choices(2));
        assert!(choices(3).iter().all(|choice| *choice < 1000));
    }
}
