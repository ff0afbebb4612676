//! Kills again and again: hotfixes, resumes and rollbacks that are killed with -9 at random moments, on real hosts with rows flowing.
//!
//! In: lanes, how many kills, a seed; the same seed and lanes make the same choices, though not the same moments. Every command that is
//! killed is followed by `resume` or `rollback`, which may be killed as well. In the end of each lane the last one is let through, and then
//! nothing is lost, doubled, down or armed, and all nodes run one build. Out: a [`Summary`], with every lane's end.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use lookalike::stamp::Stamp;
use rustix::process::Signal;

use crate::attended::Attended;
use crate::lane::Lane;
use crate::operator::Said;
use crate::outside::{Builds, Meant};
use crate::scene::{CLUSTER, Scene, SceneError, Shape};
use crate::waiting::wait_until;

const RATE: u32 = 100;
const BOUND: Duration = Duration::from_secs(600);
const PATIENCE: Duration = Duration::from_secs(150);
/// A whole hotfix of six nodes takes about that long; later kills would come after its end.
const LATEST_KILL_MS: u64 = 60_000;

/// Kills so many times, divided among the lanes, and checks each lane in its end. `say` gets every kill and every lane's end.
///
/// A lane that fails does not end the others. The hosts are down afterwards, whatever came of it.
pub fn run(lanes: &[Lane], kills: u32, seed: u64, say: &mut dyn FnMut(&str)) -> Summary {
    let begun = Instant::now();
    let (tell, told) = mpsc::channel();
    let ends = thread::scope(|scope| {
        let mut driven = Vec::new();
        for ((lane, kills), seed) in lanes.iter().zip(shares(kills, lanes.len())).zip(seed..) {
            let tell = tell.clone();
            let handle = scope.spawn(move || {
                let end = drive(lane, kills, seed, &mut |line| {
                    // Whoever listens has gone only if the whole soak has ended in a panic.
                    drop(tell.send(format!("{}: {line}", lane.set)));
                });
                drop(tell.send(end.to_string()));
                end
            });
            driven.push((lane, kills, handle));
        }
        drop(tell);
        told.iter().for_each(|line| say(&line));
        let ends = driven.into_iter().map(|(lane, kills, handle)| {
            handle.join().unwrap_or_else(|_| LaneEnd {
                came_to: Err("ended in a panic".to_owned()),
                ..LaneEnd::of(lane, kills)
            })
        });
        ends.collect()
    });
    Summary { ends, took: begun.elapsed() }
}

/// So many in so many parts that differ by one at most.
fn shares(all: u32, parts: usize) -> impl Iterator<Item = u32> {
    let parts = u32::try_from(parts).unwrap_or(u32::MAX);
    (0..parts).map(move |part| all / parts + u32::from(part < all % parts))
}

/// What a soak came to.
#[derive(Debug)]
pub struct Summary {
    ends: Vec<LaneEnd>,
    took: Duration,
}

impl Summary {
    /// Whether every lane ended as it must.
    pub fn is_as_it_must_be(&self) -> bool {
        self.ends.iter().all(|end| end.came_to.is_ok())
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let killed: u32 = self.ends.iter().map(|end| end.killed).sum();
        let in_lanes: Duration = self.ends.iter().map(|end| end.took).sum();
        write!(
            f,
            "{killed} kills in {} lanes took {:.0} s",
            self.ends.len(),
            self.took.as_secs_f64()
        )?;
        if killed > 0 {
            let mean = |took: Duration| took.as_secs_f64() / f64::from(killed);
            write!(f, ", a kill on average {:.1} s in its lane", mean(in_lanes))?;
            write!(f, " and {:.1} s of the whole", mean(self.took))?;
        }
        let mut exits = Exits::new();
        for (how, count) in self.ends.iter().flat_map(|end| &end.exits) {
            *exits.entry(how.clone()).or_default() += count;
        }
        for ((command, code), count) in exits {
            write!(f, "\n  {command:<8} ended with {code:>3}: {count:>4}")?;
        }
        self.ends.iter().try_for_each(|end| write!(f, "\n{end}"))
    }
}

/// How often a command ended with which exit code; 137 is a kill.
type Exits = BTreeMap<(String, i32), u32>;

/// What a lane came to.
#[derive(Debug)]
struct LaneEnd {
    set: String,
    kills: u32,
    killed: u32,
    exits: Exits,
    /// Without the time in which hosts and cluster were set up.
    took: Duration,
    /// How everything stood in the end, or what was not as it must be.
    came_to: Result<String, String>,
}

impl LaneEnd {
    fn of(lane: &Lane, kills: u32) -> Self {
        Self {
            set: lane.set.clone(),
            kills,
            killed: 0,
            exits: Exits::new(),
            took: Duration::ZERO,
            came_to: Err("did not begin".to_owned()),
        }
    }
}

impl fmt::Display for LaneEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { set, kills, killed, took, .. } = self;
        write!(f, "{set}: {killed} of {kills} kills in {:.0} s; ", took.as_secs_f64())?;
        match &self.came_to {
            Ok(stands) => f.write_str(stands),
            Err(wrong) => write!(f, "FAILED: {wrong}"),
        }
    }
}

fn drive(lane: &Lane, kills: u32, seed: u64, say: &mut dyn FnMut(&str)) -> LaneEnd {
    let mut end = LaneEnd::of(lane, kills);
    let scene = match Scene::running(&lane.set, lane.block, Shape::three(), RATE) {
        Ok(scene) => scene,
        Err(why) => {
            end.came_to = Err(why.to_string());
            return end;
        }
    };
    let begun = Instant::now();
    let old = scene.running_hashes();
    let mut soak = Soak { scene: &scene, old, chance: Chance(seed), builds: 0, end };
    let came_to = soak.go(say);
    end = soak.end;
    end.took = begun.elapsed();
    let down = scene.into_hosts().down().map_err(|error| format!("take the hosts down: {error}"));
    end.came_to = match (came_to, down) {
        (Ok(stands), down) => down.map(|()| stands),
        (Err(wrong), Ok(())) => Err(wrong.to_string()),
        (Err(wrong), Err(also)) => Err(format!("{wrong}\n{also}")),
    };
    end
}

struct Soak<'s> {
    scene: &'s Scene,
    old: Vec<(String, String)>,
    chance: Chance,
    builds: u32,
    end: LaneEnd,
}

impl Soak<'_> {
    /// Kills, closes what is open, checks: how everything stands then.
    fn go(&mut self, say: &mut dyn FnMut(&str)) -> Result<String, SceneError> {
        let mut next = self.hotfix()?;
        while self.end.killed < self.end.kills {
            let after = Duration::from_millis(self.chance.below(LATEST_KILL_MS));
            let said = self.run(&next, Some(after))?;
            if said.code == 137 {
                self.end.killed += 1;
                say(&format!(
                    "kill {} of {}, after {:.1} s of `{}`",
                    self.end.killed,
                    self.end.kills,
                    after.as_secs_f64(),
                    next[0]
                ));
            }
            if let 1 | 5 | 6 | 7 = said.code {
                // All builds are good: whoever reads this wants to know why.
                say(&said.to_string());
            }
            next = self.what_next(&said)?;
        }
        // Whatever is open is closed, and this time nobody interferes.
        let mut said = self.close()?;
        for _ in 0..3 {
            if said.code == 0 {
                break;
            }
            let words = self.what_next(&said)?;
            said = self.run(&words, None)?;
        }
        self.check(&said)
    }

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
        *self.end.exits.entry((line[0].to_owned(), said.code)).or_default() += 1;
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

    fn check(&self, last: &Said) -> Result<String, SceneError> {
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
            Ok(format!("all run one build ({builds}), nothing down or armed, rows: {rows}"))
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

    #[test]
    fn kills_are_divided_evenly_and_none_is_left_out() {
        assert_eq!(shares(200, 3).collect::<Vec<_>>(), [67, 67, 66]);
        assert_eq!(shares(2, 3).collect::<Vec<_>>(), [1, 1, 0]);
        assert_eq!(shares(5, 1).collect::<Vec<_>>(), [5]);
    }

    #[test]
    fn one_lane_that_failed_fails_the_soak_and_the_summary_names_it() {
        let end = |block: u8, killed, came_to: Result<&str, &str>| LaneEnd {
            killed,
            exits: Exits::from([(("patch".to_owned(), 137), killed)]),
            took: Duration::from_secs(60),
            came_to: came_to.map(str::to_owned).map_err(str::to_owned),
            ..LaneEnd::of(&Lane { set: format!("soak-{block}"), block }, 3)
        };
        let took = Duration::from_secs(80);
        let well = Summary { ends: vec![end(11, 3, Ok("one build"))], took };
        assert!(well.is_as_it_must_be(), "{well}");
        let summary =
            Summary { ends: vec![end(11, 3, Ok("one build")), end(22, 1, Err("rows"))], took };
        assert!(!summary.is_as_it_must_be());
        let text = summary.to_string();
        assert!(
            text.contains("4 kills in 2 lanes took 80 s, a kill on average 30.0 s in its lane")
        );
        assert!(text.contains("and 20.0 s of the whole\n  patch    ended with 137:    4\n"));
        assert!(text.contains("soak-11: 3 of 3 kills in 60 s; one build\n"));
        assert!(text.ends_with("soak-22: 1 of 3 kills in 60 s; FAILED: rows"), "{text}");
    }
}
