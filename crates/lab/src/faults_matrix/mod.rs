//! Faults × phases: what a hotfix comes to when something goes wrong in the middle of it, on real hosts with rows flowing.
//!
//! In: [`Cell`]s. Each is one `dmup patch` (`kill-controller:window`: killed with -9 when it has asked for the
//! window of the first bound worker), then what an operator types next, going by the exit code alone: `resume` after
//! a kill, an interruption or 7, `rollback` after 6. Out: an [`Outcome`] per cell and [`render`]ed, a table.
//!
//! What must be, checked from outside ([`crate::outside`]) and listed in [`Outcome::wrong`] if it is not: the exit code says
//! what the hosts run; in the end either all nodes that were meant run the new build or none does; everything is in service;
//! every row has arrived once; no guard is armed; `display` marks what is patched; `rollback` brings the old build back.
//!
//! A phase is recognised in the run's journal and, where that says nothing, by the lock and on the host. One cluster
//! serves many cells; after one that went wrong the next gets a fresh one. Sets of hosts ([`Lane`]s) take cells from one queue, side by side.

mod cell;
mod outcome;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use camino::Utf8Path;
use lookalike::stamp::{self, Stamp};
use rustix::process::Signal;
use serde_json::Value;

use self::cell::Ground;
pub use self::cell::{Cell, Fault, Phase, Rules, Turn};
pub use self::outcome::{Outcome, read_outcomes, render};
use crate::Host;
use crate::attended::Attended;
use crate::hosts::UnitSignal;
use crate::lane::Lane;
use crate::operator::Said;
use crate::outside::{Builds, Meant, Watch};
use crate::scene::{CLUSTER, SOURCES, Scene, SceneError, Shape};
use crate::waiting::wait_until;

/// Rows per second and source.
const RATE: u32 = 100;
/// A command that takes longer hangs.
const BOUND: Duration = Duration::from_secs(420);
/// For everything that systemd and DM do by themselves after a fault; a worker's lease alone is 60 s.
const PATIENCE: Duration = Duration::from_secs(150);
/// How long a network is away.
const CUT: Duration = Duration::from_secs(40);
/// How long sshd is away.
const NO_SSHD: Duration = Duration::from_secs(20);
/// Rows of a large transaction.
const LARGE: u64 = 60_000;
/// Free space of a disk that can be filled, for everything that a cell puts there.
const DISK_KIB: u64 = 600 * 1024;
/// What is on that disk.
const DEPLOY: &str = "/home/tidb/deploy";
const BALLAST: &str = "/home/tidb/deploy/ballast";

/// Runs cells, one in each lane at a time; `ended` gets every outcome as soon as it is known. The outcomes, in the order of `cells`.
///
/// A lane keeps its cluster for as long as the cells fit it. A cluster that could not be set up is what its cell came to.
pub fn run(lanes: &[Lane], cells: &[Cell], ended: &mut dyn FnMut(&Outcome)) -> Vec<Outcome> {
    // A build of its own for every cell, whichever lane it is in.
    let queue = Mutex::new((1..).zip(cells.iter().copied()).collect::<VecDeque<_>>());
    let (tell, told) = mpsc::channel();
    let mut outcomes: Vec<Outcome> = thread::scope(|scope| {
        for lane in lanes {
            let (queue, tell) = (&queue, tell.clone());
            scope.spawn(move || drive(lane, queue, &tell));
        }
        drop(tell);
        told.iter().inspect(|outcome| ended(outcome)).collect()
    });
    outcomes.sort_by_key(|outcome| cells.iter().position(|cell| *cell == outcome.cell));
    outcomes
}

fn drive(lane: &Lane, queue: &Mutex<VecDeque<(u32, Cell)>>, tell: &mpsc::Sender<Outcome>) {
    let mut stage: Option<(Scene, Ground)> = None;
    loop {
        let standing = stage.as_ref().map(|(_, ground)| *ground);
        let mut cells = queue.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((number, cell)) = next_cell(&mut cells, standing) else { return };
        drop(cells);
        let ground = cell.ground();
        // The set must be free before it is taken again.
        let kept = stage.take().filter(|(_, of)| *of == ground).map(|(scene, _)| scene);
        let outcome = match kept.map_or_else(|| set_the_scene(lane, cell), Ok) {
            Ok(scene) => {
                let outcome = try_cell(&scene, cell, number);
                if outcome.is_as_it_must_be() {
                    stage = Some((scene, ground));
                }
                outcome
            }
            Err(why) => Outcome::without_a_cluster(cell, &why),
        };
        // Whoever listens has gone only if the whole matrix has ended in a panic.
        if tell.send(outcome).is_err() {
            return;
        }
    }
}

/// The first cell that runs on what stands already, or else the first.
fn next_cell(cells: &mut VecDeque<(u32, Cell)>, standing: Option<Ground>) -> Option<(u32, Cell)> {
    let fits = |(_, cell): &(u32, Cell)| standing.is_some_and(|ground| cell.ground() == ground);
    cells.remove(cells.iter().position(fits).unwrap_or(0))
}

fn set_the_scene(lane: &Lane, cell: Cell) -> Result<Scene, SceneError> {
    let shape = Shape { version: cell.rules.version().to_owned(), ..Shape::three() };
    let mut scene = Scene::set(&lane.set, lane.block, shape)?;
    scene.deploy()?;
    if cell.ground().has_small_disks {
        let well = |said: Said| {
            if said.code == 0 { Ok(()) } else { Err(SceneError(said.to_string())) }
        };
        well(scene.dmup(&["stop", CLUSTER, "--yes"]))?;
        for host in scene.hosts.hosts() {
            host.limit_disk(Utf8Path::new(DEPLOY), DISK_KIB)
                .map_err(|error| SceneError(format!("limit a disk: {error}")))?;
        }
        well(scene.dmup(&["start", CLUSTER]))?;
    }
    scene.replicate(RATE)?;
    Ok(scene)
}

/// A cell under way.
struct Trial<'s> {
    scene: &'s Scene,
    cell: Cell,
    meant: Meant,
    before: Vec<(String, String)>,
    /// Host of the worker that was free at the beginning: later it has the source of the node whose turn it is.
    spare: Option<&'s Host>,
    outcome: Outcome,
}

fn try_cell(scene: &Scene, cell: Cell, number: u32) -> Outcome {
    let meant = match cell.turn {
        Turn::Bound | Turn::Batch => Meant::Workers,
        Turn::Leader => Meant::Masters,
    };
    let before = scene.running_hashes();
    let mut trial = Trial { scene, cell, meant, before, spare: None, outcome: Outcome::of(cell) };
    trial.spare = trial.worker(|stage, _| stage == "free");
    let begun = Instant::now();
    let watch = Arc::new(Watch::default());
    thread::scope(|scope| {
        let shared = Arc::clone(&watch);
        let looking = scope.spawn(move || shared.look(scene));
        if let Err(why) = trial.go(number) {
            trial.outcome.wrong.push(why);
        }
        watch.end();
        match looking.join() {
            Ok(longest) => trial.outcome.out_of_service = longest,
            Err(_) => trial.outcome.wrong.push("the watch ended in a panic".to_owned()),
        }
    });
    if trial.outcome.is_as_it_must_be()
        && let Err(why) = trial.return_to_old()
    {
        trial.outcome.wrong.push(why);
    }
    trial.outcome.took = begun.elapsed();
    trial.outcome
}

/// Where and when the fault comes.
struct Spot<'s> {
    host: &'s Host,
    /// Of a phase within a turn.
    instance: Option<String>,
}

impl Spot<'_> {
    fn unit(&self, turn: Turn) -> &'static str {
        match turn {
            Turn::Bound | Turn::Batch => "dm-worker-8262.service",
            Turn::Leader => "dm-master-8261.service",
        }
    }
}

impl<'s> Trial<'s> {
    fn go(&mut self, number: u32) -> Result<(), String> {
        let scene = self.scene;
        let name = format!("fix-{number}.tar.gz");
        let package =
            scene.hotfix(&name, &self.stamp(number)).map_err(|error| error.to_string())?;
        scene.mark_rows();
        let mut words = vec!["patch", CLUSTER, package.as_str(), "--yes"];
        words.extend(self.meant.flags());
        words.extend(match self.cell.turn {
            Turn::Bound | Turn::Leader => &["--soak", "2"][..],
            // Long enough for one to be watched still when the next one is healthy, on a machine that is busy.
            Turn::Batch => &["--batch", "100%", "--soak", "30"],
        });
        // A bad build is given up sooner than a host that boots.
        let patience = if self.cell.fault.is_a_build() { "20" } else { "90" };
        words.extend(["--wait-timeout", patience]);
        if self.cell.fault == Fault::SlowStop {
            let said = scene.dmup(&words);
            if said.code != 0 {
                return Err(format!("the build that stops slowly did not get in: {said}"));
            }
            words = vec!["rollback", CLUSTER, "--yes", "--soak", "2"];
        }
        let said = self.run_into_the_fault(&words)?;
        self.outcome.exit = said.code;
        self.outcome.said.push(said.to_string());
        if !self.cell.has_met_its_fault(said.code) {
            return Err(format!("exit code {}: the command did not meet its fault", said.code));
        }
        self.compare_with_exit_code(said.code);
        self.settle(said.code)?;
        self.check_the_end()?;
        // Some packages are large, and none is needed twice: a run has kept what it needs.
        drop(fs_err::remove_file(&package));
        Ok(())
    }

    /// A build of its own for every cell: none is staged already, none is known to be bad.
    fn stamp(&self, number: u32) -> Stamp {
        let release = format!("{}-f{number}", self.cell.rules.version());
        let good = Stamp::new(&release, &format!("{number:040x}"));
        match self.cell.fault {
            Fault::Exits => good.with_fault(stamp::Fault::ExitAtStart),
            Fault::Hangs => good.with_fault(stamp::Fault::HangAtStart),
            Fault::Crashes => good.with_fault(stamp::Fault::CrashAfterS(match self.cell.turn {
                Turn::Bound | Turn::Leader => 2,
                Turn::Batch => 8,
            })),
            Fault::NeverJoins => good.with_fault(stamp::Fault::NeverJoin),
            Fault::WrongVersion => {
                good.with_fault(stamp::Fault::StatusVersion("v9.9.9".to_owned()))
            }
            Fault::SlowStop => good.with_fault(stamp::Fault::StopAfterS(20)),
            Fault::KillController
            | Fault::KillControllerBack
            | Fault::Abandon
            | Fault::Interrupt
            | Fault::InterruptTwice
            | Fault::CutHost
            | Fault::CutLeader
            | Fault::StopSshd
            | Fault::DropSessions
            | Fault::PowerCycle
            | Fault::KillSpare
            | Fault::KillNode
            | Fault::FillDisk
            | Fault::LargeTransaction => good,
        }
    }

    /// Types the command, waits for the phase, lets the fault happen, waits for the end of both.
    fn run_into_the_fault(&self, words: &[&str]) -> Result<Said, String> {
        let scene = self.scene;
        let mut run = Attended::begin(&scene.operator, CLUSTER, words)
            .map_err(|error| format!("start dmup: {error}"))?;
        if self.cell.fault.is_a_build() || self.cell.fault == Fault::SlowStop {
            wait_until(BOUND, || run.has_ended());
            let entries = run.entries();
            let said = run.end(Duration::ZERO);
            return match self.broken_promise_of_a_batch(&entries) {
                Some(broken) => Err(format!("{broken}: {said}")),
                None => Ok(said),
            };
        }
        let Some(spot) = self.await_phase(&mut run)? else {
            let said = run.end(BOUND);
            return Err(format!("{} was never seen: {said}", self.cell.phase.as_str()));
        };
        thread::scope(|scope| {
            let lifting = self.inject(&spot, &mut run, scope)?;
            let said = run.end(BOUND);
            if let Some(lifting) = lifting {
                lifting.join().map_err(|_| "lifting the fault ended in a panic".to_owned())??;
            }
            if self.cell.fault == Fault::FillDisk {
                let removed = spot.host.must_run(&["rm", "--force", BALLAST]);
                removed.map_err(|error| format!("empty the disk: {error}"))?;
            }
            if self.cell.fault == Fault::Abandon {
                let gone = wait_until(BOUND, || scene.armed_guards().is_empty());
                if !gone {
                    return Err(format!("a guard never acted: {:?}", scene.armed_guards()));
                }
            }
            Ok(said)
        })
    }

    /// Of a batch in which a build is bad. What its journal says is in the order in which it was done.
    fn broken_promise_of_a_batch(&self, entries: &[Value]) -> Option<String> {
        if self.cell.turn != Turn::Batch {
            return None;
        }
        let late = windows_after_a_failure(entries);
        if !late.is_empty() {
            return Some(format!("the windows of {} opened after a failure", late.join(", ")));
        }
        let is_late = self.cell.phase == Phase::Soak;
        (is_late && nth_turn(entries, 1).is_none())
            .then(|| format!("{} was never seen", self.cell.phase.as_str()))
    }

    /// None: the command ended before.
    fn await_phase(&self, run: &mut Attended) -> Result<Option<Spot<'s>>, String> {
        let mut written = None;
        let mut turn: Option<OneTurn> = None;
        let mut is_first_watched = false;
        let mut is_staging = false;
        let mut pid_before: Option<String> = None;
        let seen = wait_often(BOUND, || {
            let has_ended = run.has_ended();
            let now = run.written();
            if written != Some(now) {
                written = Some(now);
                let entries = run.entries();
                is_staging = entries.iter().any(|it| is_step(it, "started", "stage"));
                turn = nth_turn(&entries, place(self.cell.turn));
                is_first_watched = nth_turn(&entries, 0).is_some_and(|turn| turn.is_watched());
            }
            let reached = match self.cell.phase {
                Phase::Open => true,
                Phase::Look => run.has_lock(),
                Phase::Stage => is_staging,
                Phase::Offline => turn.as_ref().is_some_and(|turn| match self.cell.turn {
                    Turn::Bound | Turn::Batch => true,
                    Turn::Leader => turn.has("started", "evict_leader"),
                }),
                Phase::Window => turn.as_ref().is_some_and(|turn| turn.has("started", "window")),
                Phase::Start => turn.as_ref().is_some_and(|turn| {
                    let pid_now = || self.main_pid(&turn.instance);
                    let before = pid_before.get_or_insert_with(|| turn.pid.to_string());
                    turn.has("started", "window")
                        && pid_now().is_some_and(|pid| pid != "0" && pid != *before)
                }),
                Phase::Healthy => turn.as_ref().is_some_and(|turn| turn.has("done", "window")),
                Phase::Soak => {
                    turn.as_ref().is_some_and(|turn| turn.has("done", "await_healthy"))
                        && (self.cell.turn != Turn::Batch || is_first_watched)
                }
                Phase::Confirm => {
                    turn.as_ref().is_some_and(|turn| turn.has("started", "disarm_guard"))
                }
                Phase::After => turn.as_ref().is_some_and(|turn| turn.has_ended()),
            };
            if reached {
                Some(true)
            } else if has_ended {
                Some(false)
            } else {
                None
            }
        });
        if seen != Some(true) {
            return Ok(None);
        }
        let instance = turn.map(|turn| turn.instance);
        let host = match &instance {
            Some(instance) => self.scene.host_of(instance),
            None => match self.cell.turn {
                Turn::Bound | Turn::Batch => self.worker(|_, source| source == SOURCES[0]),
                Turn::Leader => self.scene.dm.leader().and_then(|it| self.scene.host_of(&it)),
            },
        };
        let host = host.ok_or("nobody knows whose turn it is")?;
        Ok(Some(Spot { host, instance }))
    }

    fn main_pid(&self, instance: &str) -> Option<String> {
        let host = self.scene.host_of(instance)?;
        let unit = Spot { host, instance: None }.unit(self.cell.turn);
        let shown = self.scene.systemctl(&["show", "-p", "MainPID", "--value", unit]);
        let said = host.must_run(&shown).ok()?;
        Some(said.trim().to_owned())
    }

    /// Host of the first worker whose stage and source are as wanted.
    fn worker(&self, wanted: impl Fn(&str, &str) -> bool) -> Option<&'s Host> {
        let workers = self.scene.dm.workers();
        let (name, ..) = workers.iter().find(|(_, stage, source)| wanted(stage, source))?;
        self.scene.host_of(name)
    }

    /// Lets the fault happen. Returns what will end it by itself.
    fn inject<'scope>(
        &self,
        spot: &Spot<'s>,
        run: &mut Attended,
        scope: &'scope Scope<'scope, '_>,
    ) -> Result<Option<Lifting<'scope>>, String>
    where
        's: 'scope,
    {
        let host = spot.host;
        let lab = |result: Result<(), crate::LabError>| {
            result.map_err(|error| format!("{}: {error}", self.cell))
        };
        match self.cell.fault {
            Fault::KillController | Fault::KillControllerBack | Fault::Abandon => {
                run.signal(Signal::KILL);
            }
            Fault::Interrupt => run.signal(Signal::INT),
            Fault::InterruptTwice => {
                run.signal(Signal::INT);
                wait_until(PATIENCE, || {
                    run.has_ended() || run.stderr().contains("once more stops at once")
                });
                run.signal(Signal::INT);
            }
            Fault::CutHost => return lab(host.cut_network()).map(|()| Some(cut(scope, host))),
            Fault::CutLeader => {
                let leader = self.scene.dm.leader().and_then(|it| self.scene.host_of(&it));
                let host = leader.ok_or("there is no leader to cut off")?;
                return lab(host.cut_network()).map(|()| Some(cut(scope, host)));
            }
            Fault::StopSshd => {
                lab(host.stop_sshd())?;
                return Ok(Some(scope.spawn(move || {
                    // The length of the fault, not a wait for anything.
                    thread::sleep(NO_SSHD);
                    host.start_sshd().map_err(|error| format!("start sshd: {error}"))
                })));
            }
            Fault::DropSessions => lab(host.drop_ssh_sessions())?,
            Fault::PowerCycle => lab(host.power_cycle())?,
            Fault::KillSpare => {
                let spare = self.spare.ok_or("there was no spare")?;
                lab(spare.signal_unit("dm-worker-8262.service", UnitSignal::Kill))?;
            }
            Fault::KillNode => {
                // Between two processes there is nothing to kill.
                drop(host.signal_unit(spot.unit(self.cell.turn), UnitSignal::Kill));
            }
            Fault::FillDisk => fill(host)?,
            Fault::LargeTransaction => {
                let workers = self.scene.dm.workers();
                let source = spot.instance.as_ref().and_then(|_| {
                    workers.iter().find(|(name, ..)| {
                        self.scene.host_of(name).is_some_and(|it| it.name == host.name)
                    })
                });
                let source = source
                    .map(|(_, _, source)| source.as_str())
                    .filter(|source| !source.is_empty())
                    .unwrap_or(SOURCES[0]);
                self.scene
                    .write_transaction(source, LARGE)
                    .map_err(|error| format!("write a large transaction: {error}"))?;
            }
            Fault::Exits
            | Fault::Hangs
            | Fault::Crashes
            | Fault::NeverJoins
            | Fault::WrongVersion
            | Fault::SlowStop => {}
        }
        Ok(None)
    }

    /// Does the exit code say what the hosts run?
    fn compare_with_exit_code(&mut self, code: i32) {
        let says_something = matches!(code, 0 | 1 | 3 | 5 | 6);
        let within = if says_something { PATIENCE } else { Duration::ZERO };
        let builds = self.scene.builds(&self.before, self.meant, within);
        let is_true = match code {
            0 if self.cell.fault == Fault::SlowStop => builds == Builds::Old,
            0 => builds == Builds::New,
            1 | 3 | 5 => builds == Builds::Old,
            6 => matches!(builds, Builds::Mixed(_) | Builds::New),
            7 | 130 | 137 => true,
            _ => false,
        };
        if !is_true {
            self.outcome.wrong.push(format!("exit code {code}, but the hosts: {builds}"));
        }
        self.outcome.after_the_fault = builds.to_string();
    }

    /// What an operator types, going by exit codes alone; what is refused because of the cluster is typed again once it has recovered.
    fn settle(&mut self, first: i32) -> Result<(), String> {
        let back: &[&str] = &["rollback", CLUSTER, "--yes", "--soak", "2"];
        let forth: &[&str] = &["resume", CLUSTER];
        let mut code = first;
        let mut words = forth;
        let mut is_refused = false;
        for _ in 0..4 {
            words = match code {
                3 if is_refused => {
                    self.scene.in_service(PATIENCE)?;
                    words
                }
                0 | 1 | 3 | 5 => return Ok(()),
                6 => back,
                7 | 130 | 137 if self.cell.fault == Fault::KillControllerBack => back,
                7 | 130 | 137 => forth,
                other => return Err(format!("nobody knows what to do after exit code {other}")),
            };
            let run = Attended::begin(&self.scene.operator, CLUSTER, words)
                .map_err(|error| format!("start dmup: {error}"))?;
            let said = run.end(BOUND);
            code = said.code;
            is_refused = said.stderr.contains("in the way");
            self.outcome.then.push(format!("{} {code}", words[0]));
            self.outcome.said.push(said.to_string());
        }
        match code {
            0 | 1 | 5 => Ok(()),
            _ => Err(format!("after four more commands the exit code is still {code}")),
        }
    }

    fn check_the_end(&mut self) -> Result<(), String> {
        let scene = self.scene;
        let builds = scene.builds(&self.before, self.meant, PATIENCE);
        self.outcome.end = builds.to_string();
        if !self.may_end(&builds) {
            self.outcome.wrong.push(format!("in the end the hosts run: {builds}"));
        }
        if let Err(why) = scene.in_service(PATIENCE) {
            self.outcome.wrong.push(format!("out of service: {why}"));
        }
        let rows = scene.count_rows(RATE, PATIENCE).map_err(|error| error.to_string())?;
        self.outcome.rows = rows;
        if !rows.is_whole() {
            self.outcome.wrong.push(format!("rows: {rows}"));
        }
        let guards = scene.armed_guards();
        if !guards.is_empty() {
            self.outcome.wrong.push(format!("still armed: {}", guards.join(", ")));
        }
        let display = scene.dmup(&["display", CLUSTER]);
        let patched = display.stdout.matches("(patched)").count();
        let expected = if builds == Builds::New { 3 } else { 0 };
        if patched != expected {
            let text = format!("{patched} nodes are marked as patched, not {expected}: {display}");
            self.outcome.wrong.push(text);
        }
        Ok(())
    }

    fn may_end(&self, builds: &Builds) -> bool {
        // Killed before there was a run: there is nothing to resume.
        let is_early = matches!(self.cell.phase, Phase::Open | Phase::Look);
        match self.cell.fault {
            Fault::KillController | Fault::Abandon | Fault::Interrupt | Fault::InterruptTwice => {
                *builds == Builds::New || (is_early && *builds == Builds::Old)
            }
            Fault::KillSpare | Fault::DropSessions | Fault::LargeTransaction => {
                *builds == Builds::New
            }
            Fault::KillControllerBack
            | Fault::Exits
            | Fault::Hangs
            | Fault::Crashes
            | Fault::NeverJoins
            | Fault::WrongVersion
            | Fault::SlowStop => *builds == Builds::Old,
            Fault::CutHost
            | Fault::CutLeader
            | Fault::StopSshd
            | Fault::PowerCycle
            | Fault::KillNode
            | Fault::FillDisk => matches!(builds, Builds::New | Builds::Old),
        }
    }

    /// Back to the build from before, for the next cell: one more `rollback` that must work.
    fn return_to_old(&mut self) -> Result<(), String> {
        let scene = self.scene;
        if scene.builds(&self.before, self.meant, PATIENCE) != Builds::New {
            return Ok(());
        }
        let said = scene.dmup(&["rollback", CLUSTER, "--yes", "--soak", "1"]);
        if said.code != 0 {
            return Err(format!("the next cell cannot begin: {said}"));
        }
        match scene.builds(&self.before, self.meant, PATIENCE) {
            Builds::Old => scene.in_service(PATIENCE),
            other @ (Builds::New | Builds::Mixed(_) | Builds::Down(_)) => {
                Err(format!("rolled back, but the hosts run: {other}"))
            }
        }
    }
}

/// Ends with the fault.
type Lifting<'scope> = thread::ScopedJoinHandle<'scope, Result<(), String>>;

fn cut<'scope>(scope: &'scope Scope<'scope, '_>, host: &'scope Host) -> Lifting<'scope> {
    scope.spawn(move || {
        // The length of the fault, not a wait for anything.
        thread::sleep(CUT);
        host.restore_network().map_err(|error| format!("restore the network: {error}"))
    })
}

/// Leaves nothing. Written, not allocated: near its limit a file system counts too roughly to be asked for an exact rest.
fn fill(host: &Host) -> Result<(), String> {
    let lab = |error: crate::LabError| format!("fill the disk: {error}");
    let file = format!("of={BALLAST}");
    let written = host.run(&["dd", "if=/dev/zero", &file, "bs=1M"]).map_err(lab)?;
    let said = String::from_utf8_lossy(&written.stderr).into_owned();
    if said.contains("No space left") { Ok(()) } else { Err(format!("fill the disk: {said}")) }
}

/// As [`crate::wait_for`], with looks that follow each other closely: phases are short.
fn wait_often<T>(bound: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + bound;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// What the journal says of one turn.
#[derive(Clone, Debug, Eq, PartialEq)]
struct OneTurn {
    instance: String,
    pid: u64,
    entries: Vec<Value>,
}

/// Which of a run's turns is meant: of workers the free one comes first and then those with sources; of three masters the leader comes last.
fn place(whose: Turn) -> usize {
    match whose {
        Turn::Bound | Turn::Batch => 1,
        Turn::Leader => 2,
    }
}

fn nth_turn(entries: &[Value], nth: usize) -> Option<OneTurn> {
    let begins = |entry: &&Value| entry["entry"] == "turn_begins";
    let begin = entries.iter().filter(begins).nth(nth)?;
    let instance = begin["instance"].as_str()?;
    // In a batch, turns have their entries among those of others.
    let is_own = |entry: &&Value| {
        [&entry["instance"], &entry["step"]["instance"]].iter().any(|it| **it == instance)
    };
    Some(OneTurn {
        instance: instance.to_owned(),
        pid: begin["pid"].as_u64().unwrap_or(0),
        entries: entries.iter().filter(is_own).cloned().collect(),
    })
}

impl OneTurn {
    fn has(&self, word: &str, step: &str) -> bool {
        self.entries.iter().any(|entry| is_step(entry, word, step))
    }

    /// Healthy, and not yet left to itself.
    fn is_watched(&self) -> bool {
        self.has("done", "await_healthy")
            && !self.has("started", "disarm_guard")
            && !self.has_ended()
    }

    fn has_ended(&self) -> bool {
        self.entries.iter().any(|entry| entry["entry"] == "turn_ends")
    }
}

/// Instances that got the new build when another one was known to be bad with it.
fn windows_after_a_failure(entries: &[Value]) -> Vec<&str> {
    let new = entries.iter().find(|it| it["entry"] == "turn_begins").map(|begin| &begin["to"]);
    entries
        .iter()
        .skip_while(|entry| entry["entry"] != "failed")
        .filter(|entry| is_step(entry, "started", "window") && Some(&entry["step"]["to"]) == new)
        .filter_map(|entry| entry["step"]["instance"].as_str())
        .collect()
}

fn is_step(entry: &Value, word: &str, step: &str) -> bool {
    entry["entry"] == word && entry["step"]["step"] == step
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_lane_takes_cells_that_fit_its_cluster_before_it_sets_up_another() {
        let filters = ["exits:start", "fill-disk:open", "abandon:window:v5"].map(str::to_owned);
        let cells = Cell::select(&filters).unwrap();
        let mut queue: VecDeque<(u32, Cell)> = (1..).zip(cells.iter().copied()).collect();
        let old_rules = cells.iter().find(|cell| cell.rules == Rules::V5).unwrap();
        let taken = next_cell(&mut queue, Some(old_rules.ground())).unwrap().1;
        assert_eq!(taken, *old_rules);
        assert_eq!(next_cell(&mut queue, Some(old_rules.ground())), Some((1, cells[0])));
        assert_eq!(next_cell(&mut queue, None).map(|(_, cell)| cell.fault), Some(Fault::FillDisk));
        assert_eq!(next_cell(&mut queue, None), None);
    }

    fn begins(instance: &str) -> Value {
        json!({"entry": "turn_begins", "instance": instance, "to": "new", "pid": 7})
    }

    fn of_step(word: &str, step: &str, instance: &str) -> Value {
        json!({"entry": word, "step": {"step": step, "instance": instance, "to": "new"}})
    }

    #[test]
    fn a_turn_is_found_by_its_place_and_knows_its_steps() {
        let entries = [
            json!({"entry": "run_begins"}),
            begins("a:1"),
            of_step("started", "window", "a:1"),
            json!({"entry": "turn_ends", "instance": "a:1"}),
            begins("b:1"),
            of_step("done", "window", "b:1"),
        ];
        let found = nth_turn(&entries, place(Turn::Bound)).unwrap();
        assert_eq!((found.instance.as_str(), found.pid), ("b:1", 7));
        assert!(found.has("done", "window") && !found.has("started", "window"));
        assert!(!found.has_ended());
        assert_eq!(nth_turn(&entries, place(Turn::Leader)), None);
    }

    #[test]
    fn turns_of_a_batch_are_told_apart_although_their_entries_are_mixed() {
        let mut entries = vec![
            begins("a:1"),
            of_step("done", "await_healthy", "a:1"),
            begins("b:1"),
            of_step("done", "await_healthy", "b:1"),
        ];
        let is_watched =
            |entries: &[Value]| [0, 1].map(|nth| nth_turn(entries, nth).unwrap().is_watched());
        assert_eq!(is_watched(&entries), [true, true]);
        entries.push(of_step("started", "disarm_guard", "a:1"));
        assert_eq!(is_watched(&entries), [false, true]);
    }

    #[test]
    fn a_window_that_opens_after_a_failure_is_seen_and_the_way_back_is_none() {
        let mut back = of_step("started", "window", "a:1");
        back["step"]["to"] = json!("old");
        let mut entries = vec![
            begins("a:1"),
            of_step("started", "window", "a:1"),
            begins("b:1"),
            of_step("started", "window", "b:1"),
            of_step("failed", "soak", "a:1"),
            back,
        ];
        assert!(windows_after_a_failure(&entries).is_empty());
        entries.push(of_step("started", "window", "c:1"));
        assert_eq!(windows_after_a_failure(&entries), ["c:1"]);
    }
}
