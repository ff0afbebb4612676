//! One story per seed: any cluster, any build, and whatever goes wrong on the way, until the run has ended.
//!
//! A seed chooses the cluster, how the new builds behave, the policy, which answers get lost, which effects are done twice, when the
//! controller dies (before or after an effect) or is interrupted, which host cannot be reached for a while, whether a person pauses a task, how long nobody is there,
//! and whether the operator goes on or back. Whatever it chose: what must never happen has not, at any step (the sim looks); the exit code says how the cluster
//! is; nothing temporary is left; rows flow.
//!
//! `DMUP_SIM_SEEDS=10000` tells so many stories, `DMUP_SIM_SEED=17` tells that one and prints it.

use std::fmt::Write as _;
use std::ops::Range;
use std::time::Duration;

use dmup_core::instance::Role;
use dmup_core::journal::Entry;
use dmup_core::plan::{Decision, Plan};
use dmup_core::policy::{BatchSize, OnFailure, Policy};
use dmup_core::report::{Report, RunEnd};
use dmup_exec::{
    Event, Journal, JournalError, MemoryJournal, RunError, execute, resume, take_back,
};
use tokio_util::sync::CancellationToken;

use crate::sim::{Behaviour, Dice, Shape, Side, Sim, new, old};
use crate::{all_new, all_old, decide, lines, reach};

/// Told whenever tests run.
const SEEDS: u64 = 1_000;
/// A story of more processes goes in circles.
const MOST_PROCESSES: usize = 40;

/// What a seed chose.
#[derive(Debug)]
struct Story {
    seed: u64,
    shape: Shape,
    bad: Option<(Role, Behaviour)>,
    on_failure: OnFailure,
    batches: Vec<BatchSize>,
    lose_one_in: u64,
    repeat_one_in: u64,
    /// For each process of the run, in order: at which of its effects it dies; later ones live.
    deaths: Vec<Death>,
    /// What else happens, at which of the first process' events.
    aside: Option<(u64, Aside)>,
}

/// What happens beside a run.
#[derive(Clone, Copy, Debug)]
enum Aside {
    /// Ctrl-C.
    Interrupt,
    /// Nobody gets into the host of that number for so many seconds.
    Silence(u64, u64),
    /// Another master leads.
    LeaderMoves,
    /// A person pauses a task.
    Pause,
}

/// How one process of a run ends, and what comes after it.
#[derive(Debug)]
struct Death {
    effect: u64,
    side: Side,
    absent_s: u64,
    then_back: bool,
}

impl Story {
    fn of(seed: u64) -> Self {
        let mut dice = Dice(seed.wrapping_mul(0x5851_f42d_4c95_7f2d) ^ 0x5707);
        let bad = (dice.roll(3) == 0).then(|| {
            let role = [Role::DmMaster, Role::DmWorker][dice.roll(2) as usize];
            let behaviour = [
                Behaviour::ExitsAtStart,
                Behaviour::ExitsAfter(2),
                Behaviour::NeverJoins,
                Behaviour::CallsItselfOther,
            ][dice.roll(4) as usize];
            (role, behaviour)
        });
        let shape = Shape::any(seed);
        // So that most deaths come while there is something to do.
        let most_on_host = shape.masters.max(shape.workers) as u64;
        let effects = 12 * (shape.masters + shape.workers) as u64;
        let deaths = (0..dice.roll(4))
            .map(|_| Death {
                effect: dice.roll(effects),
                side: [Side::Before, Side::After][dice.roll(2) as usize],
                absent_s: [0, 20, 300][dice.roll(3) as usize],
                then_back: dice.roll(3) == 0,
            })
            .collect();
        Self {
            seed,
            shape,
            bad,
            on_failure: [OnFailure::RollbackNode, OnFailure::RollbackAll, OnFailure::Stop]
                [[0, 0, 1, 2][dice.roll(4) as usize]],
            lose_one_in: [0, 0, 12, 40][dice.roll(4) as usize],
            repeat_one_in: [0, 3][dice.roll(2) as usize],
            deaths,
            aside: match dice.roll(8) {
                0 | 1 => Some(Aside::Interrupt),
                2 | 3 => Some(Aside::Silence(
                    1 + dice.roll(most_on_host),
                    [5, 40, 200][dice.roll(3) as usize],
                )),
                4 => Some(Aside::LeaderMoves),
                5 => Some(Aside::Pause),
                _ => None,
            }
            .map(|aside| (dice.roll(80), aside)),
            batches: match dice.roll(4) {
                0 => vec![BatchSize::Nodes(1), BatchSize::Percent(50)],
                1 => vec![BatchSize::Percent(100)],
                _ => Vec::new(),
            },
        }
    }

    fn is_cut_off(&self) -> bool {
        matches!(self.aside, Some((_, Aside::Silence(..))))
    }

    /// Tells it. What happened, line by line, and what was wrong.
    async fn tell(&self) -> (String, Vec<String>) {
        let mut log = format!("{self:?}\n");
        let sim = Sim::new(&self.shape, self.seed);
        if let Some((role, behaviour)) = self.bad {
            sim.state.lock().unwrap().behaviours.insert(new(role), behaviour);
        }
        let policy = Policy {
            healthy_within_s: 20,
            on_failure: self.on_failure,
            batches: self.batches.clone(),
            ..Policy::default()
        };
        if !self.batches.is_empty() && (self.bad.is_some() || self.is_cut_off()) {
            // Nodes of a batch may turn out bad together; how many is what the operator chose.
            sim.state.lock().unwrap().may_be_down = self.shape.workers;
        }
        let plan = match decide(&sim, &self.shape, &policy).await {
            Decision::Go(plan) => plan,
            other => return (log, vec![format!("no plan: {other:?}")]),
        };
        {
            let mut state = sim.state.lock().unwrap();
            (state.lose_one_in, state.repeat_one_in) = (self.lose_one_in, self.repeat_one_in);
        }
        let mut journal = MemoryJournal::default();
        let mut goes_back = false;
        let mut deaths = self.deaths.iter();
        for process in 0..MOST_PROCESSES {
            let death = deaths.next();
            {
                let mut state = sim.state.lock().unwrap();
                state.dies_at = death.map(|it| (state.effects + it.effect, it.side));
            }
            let aside = self.aside.filter(|_| process == 0);
            let ended = one_process(&plan, &sim, &mut journal, goes_back, aside, &mut log).await;
            let lives = sim.state.lock().unwrap().effects;
            match (&ended, death) {
                (None, Some(death)) => {
                    let _ = writeln!(log, "died after {lives} effects");
                    sim.revive();
                    sim.pass(Duration::from_secs(death.absent_s));
                    // Whoever has begun to go back is not asked again.
                    goes_back |= death.then_back;
                }
                (None, None) => return (log, vec!["it died of nothing".to_owned()]),
                (Some(Ok(report)), _) => {
                    let _ = writeln!(log, "ended: {:?}, exit {}", report.end, report.exit_code());
                    if let RunEnd::Unknown { .. } | RunEnd::Interrupted = report.end {
                        sim.pass(Duration::from_secs(60));
                    } else {
                        sim.pass(Duration::from_secs(600));
                        return (log, self.judge(&sim, report, goes_back));
                    }
                }
                // The look before the first step can be lost; nothing was touched then.
                (Some(Err(RunError::Look { .. })), _) if self.lose_one_in > 0 => {}
                (Some(Err(error)), _) => return (log, vec![format!("process {process}: {error}")]),
            }
        }
        (log, vec![format!("{MOST_PROCESSES} processes did not end it")])
    }

    fn judge(&self, sim: &Sim, report: &Report, goes_back: bool) -> Vec<String> {
        let code = report.exit_code();
        let is_left = self.bad.is_some() && self.on_failure == OnFailure::Stop && code == 6;
        let mut wrong = if is_left { sim.violations() } else { sim.is_settled() };
        let mut must = |holds: bool, what: &str| {
            if !holds {
                wrong.push(format!("{what}: exit {code}, {:?}", report.end));
            }
        };
        must(
            match code {
                0 if report.end == RunEnd::TakenBack => all_old(sim),
                0 => all_new(sim),
                1 | 5 => all_old(sim),
                6 => !all_old(sim),
                _ => false,
            },
            "the exit code does not say how the cluster is",
        );
        let is_cut_off = self.is_cut_off();
        match (&report.end, self.bad) {
            (RunEnd::Done, bad) => must(bad.is_none(), "a bad build was taken for a good one"),
            // A host that is away for longer than its guard waits goes back, too.
            (RunEnd::RolledBackAll { .. }, bad) => must(
                (bad.is_some() || is_cut_off) && self.on_failure == OnFailure::RollbackAll,
                "it went back although nobody wanted that",
            ),
            (RunEnd::TakenBack, _) => {
                must(goes_back, "it was taken back although nobody wanted that");
            }
            (RunEnd::RolledBackNode { .. } | RunEnd::Failed { .. }, bad) => {
                must(bad.is_some() || goes_back || is_cut_off, "a good build was not taken");
            }
            (RunEnd::Unknown { .. } | RunEnd::Interrupted | RunEnd::Paused, _) => {
                must(false, "it is open");
            }
        }
        if let Some((role, _)) = self.bad
            && !is_left
        {
            let builds = sim.builds();
            let is_back = |id| builds[id] == (old(), Some(old()));
            must(
                sim.instances().iter().filter(|it| it.role == role).all(|it| is_back(&it.id)),
                "a bad build was left",
            );
        }
        if !is_left {
            let state = sim.state.lock().unwrap();
            for (source, (written, arrived)) in &state.rows {
                must(
                    written == arrived || state.is_paused_by_person(source),
                    &format!("{source}: {arrived} of {written} rows arrived"),
                );
            }
        }
        wrong
    }
}

/// One process of a run, from its start to its end; none: it died.
async fn one_process(
    plan: &Plan,
    sim: &Sim,
    journal: &mut MemoryJournal,
    goes_back: bool,
    aside: Option<(u64, Aside)>,
    log: &mut String,
) -> Option<Result<Report, RunError>> {
    let cancel = CancellationToken::new();
    let past = lines(&journal.entries);
    let mut journal = Mortal { journal, sim };
    let mut said = 0;
    let mut hear = |event: Event| {
        let _ = writeln!(log, "  {event:?}");
        if let Some((at, aside)) = aside
            && at == said
        {
            match aside {
                Aside::Interrupt => cancel.cancel(),
                Aside::Silence(host, span_s) => {
                    sim.silence(&format!("h{host}"), Duration::from_secs(span_s));
                }
                Aside::LeaderMoves => sim.move_leadership(),
                Aside::Pause => {
                    sim.person_pauses("s1");
                }
            }
        }
        said += 1;
    };
    let run = async {
        if past.is_empty() {
            execute(plan, reach(sim), &mut journal, &mut hear, &cancel).await
        } else if goes_back {
            take_back(plan, &past, reach(sim), &mut journal, &mut hear, &cancel).await
        } else {
            resume(plan, &past, reach(sim), &mut journal, &mut hear, &cancel).await
        }
    };
    tokio::select! {
        biased;
        () = sim.death() => None,
        ended = run => Some(ended).filter(|_| !sim.state.lock().unwrap().is_dead),
    }
}

/// A dead process writes nothing down any more.
struct Mortal<'j> {
    journal: &'j mut MemoryJournal,
    sim: &'j Sim,
}

impl Journal for Mortal<'_> {
    fn append(&mut self, at: jiff::Timestamp, entry: &Entry) -> Result<(), JournalError> {
        if self.sim.state.lock().unwrap().is_dead {
            return Err(JournalError::Killed);
        }
        self.journal.append(at, entry)
    }
}

fn told(seed: u64) -> (String, Vec<String>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(Story::of(seed).tell())
}

fn wrong_among(seeds: Range<u64>, step: usize) -> Vec<String> {
    seeds
        .step_by(step)
        .filter_map(|seed| {
            let (log, wrong) = std::panic::catch_unwind(|| told(seed))
                .unwrap_or_else(|_| (String::new(), vec!["it panicked".to_owned()]));
            let story = log.lines().next().unwrap_or_default();
            (!wrong.is_empty()).then(|| format!("{seed}: {}\n    {story}", wrong.join("; ")))
        })
        .collect()
}

#[allow(clippy::disallowed_methods, reason = "whoever tests says how much")]
fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

#[test]
fn whatever_goes_wrong_a_run_ends_well_and_says_so() {
    if let Some(seed) = number_from("DMUP_SIM_SEED") {
        let (log, wrong) = told(seed);
        assert!(wrong.is_empty(), "{log}{}", wrong.join("\n"));
        println!("{log}");
        return;
    }
    let seeds = number_from("DMUP_SIM_SEEDS").unwrap_or(SEEDS);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let each: Vec<_> = (0..threads)
            .map(|first| scope.spawn(move || wrong_among(first as u64..seeds, threads)))
            .collect();
        each.into_iter().flat_map(|it| it.join().unwrap()).collect()
    });
    assert!(
        wrong.is_empty(),
        "{} of {seeds} stories end badly; DMUP_SIM_SEED=… tells one again\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn a_seed_tells_the_same_story_every_time() {
    for seed in 0..40 {
        assert_eq!(told(seed), told(seed), "{seed}");
    }
}
