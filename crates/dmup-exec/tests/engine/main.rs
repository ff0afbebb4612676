//! The executor against a cluster in memory: good builds, bad builds, kills, lost answers.
#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "the whole crate is a test, its cluster as well"
)]

mod checks;
mod folders;
mod gates;
mod offline;
mod promises;
mod restarts;
mod sim;
mod stories;
mod upgrades;
mod waits;

use std::time::Duration;

use dmup_core::ids::InstanceId;
use dmup_core::instance::Role;
use dmup_core::journal::{Entry, Line, TurnEnd};
use dmup_core::plan::{Decision, Plan, Step, plan_hotfix};
use dmup_core::policy::{BatchSize, OnBusy, OnFailure, Policy};
use dmup_core::report::{InstanceEnd, Report, RunEnd};
use dmup_exec::ports::Clock;
use dmup_exec::{
    Event, Journal as _, MemoryJournal, Reach, RunError, execute, look, resume, take_back,
};
use tokio_util::sync::CancellationToken;

use sim::{Behaviour, Shape, Side, Sim, id, new, old};

fn reach(sim: &Sim) -> Reach<'_> {
    Reach { hosts: sim, dm: sim, clock: sim, records: sim }
}

async fn decide(sim: &Sim, shape: &Shape, policy: &Policy) -> Decision {
    let inventory = look(&sim.instances(), sim, sim, sim, true, true, 4).await;
    plan_hotfix(&sim.request(shape), &inventory, policy)
}

async fn plan(sim: &Sim, shape: &Shape) -> Plan {
    plan_for(sim, shape, Policy::default().on_failure).await
}

async fn plan_for(sim: &Sim, shape: &Shape, on_failure: OnFailure) -> Plan {
    // Simulated seconds cost real milliseconds.
    let policy = Policy { healthy_within_s: 20, on_failure, ..Policy::default() };
    match decide(sim, shape, &policy).await {
        Decision::Go(plan) => *plan,
        other => panic!("{other:?}"),
    }
}

async fn go(plan: &Plan, sim: &Sim, journal: &mut MemoryJournal) -> Result<Report, RunError> {
    let cancel = CancellationToken::new();
    execute(plan, reach(sim), journal, &mut |_| {}, &cancel).await
}

async fn go_on(plan: &Plan, sim: &Sim, journal: &mut MemoryJournal) -> Result<Report, RunError> {
    let past = lines(&journal.entries);
    let cancel = CancellationToken::new();
    resume(plan, &past, reach(sim), journal, &mut |_| {}, &cancel).await
}

/// Runs until dmup dies at that effect; then the cluster can be asked again.
async fn dead_at(plan: &Plan, sim: &Sim, effect: u64, side: Side) -> MemoryJournal {
    sim.state.lock().unwrap().dies_at = Some((effect, side));
    let mut journal = MemoryJournal::default();
    tokio::select! {
        biased;
        () = sim.death() => {}
        _ = go(plan, sim, &mut journal) => panic!("it did not die {side:?} effect {effect}"),
    }
    sim.revive();
    journal
}

fn lines(entries: &[Entry]) -> Vec<Line> {
    let at = jiff::Timestamp::UNIX_EPOCH;
    let line = |(seq, entry): (usize, &Entry)| Line {
        v: 1,
        seq: seq as u64,
        at,
        prev: old(),
        entry: entry.clone(),
    };
    entries.iter().enumerate().map(line).collect()
}

fn all_new(sim: &Sim) -> bool {
    let instances = sim.instances();
    let builds = sim.builds();
    instances.iter().all(|i| builds[&i.id] == (new(i.role), Some(new(i.role))))
}

fn all_old(sim: &Sim) -> bool {
    sim.builds().values().all(|build| *build == (old(), Some(old())))
}

const SMALL: Shape = Shape {
    masters: 3,
    workers: 3,
    sources: 2,
    leader: 0,
    version: "v8.1.0",
    has_monitoring: true,
};

fn old_version() -> Shape {
    Shape { version: "v5.3.0", ..SMALL }
}

#[tokio::test]
async fn a_good_hotfix_ends_with_every_process_on_the_new_build_and_leadership_moved_once() {
    for seed in 0..300 {
        let shape = Shape::any(seed);
        let sim = Sim::new(&shape, seed);
        let plan = plan(&sim, &shape).await;
        let report = go(&plan, &sim, &mut MemoryJournal::default()).await.unwrap();
        assert_eq!(report.end, RunEnd::Done, "{seed} {shape:?}");
        assert_eq!(report.exit_code(), 0);
        assert!(all_new(&sim), "{seed}");
        assert_eq!(sim.is_settled(), Vec::<String>::new(), "{seed} {shape:?}");
        let state = sim.state.lock().unwrap();
        assert_eq!(state.windows, plan.turns.len(), "{seed}");
        assert!(state.elections <= 1, "{seed}: {} elections", state.elections);
        assert_eq!(state.marks.len(), plan.turns.len());
        assert!(state.marks.values().all(|(_, patched)| *patched));
    }
}

#[tokio::test]
async fn a_bad_build_ends_old_on_its_node_and_leaves_the_rest_alone() {
    let bad = [
        Behaviour::ExitsAtStart,
        Behaviour::ExitsAfter(2),
        Behaviour::NeverJoins,
        Behaviour::CallsItselfOther,
        Behaviour::HasOtherCommit,
    ];
    for seed in 0..300 {
        let shape = Shape::any(seed);
        let sim = Sim::new(&shape, seed);
        let behaviour = bad[seed as usize % bad.len()];
        let role = if seed % 2 == 0 { Role::DmMaster } else { Role::DmWorker };
        sim.state.lock().unwrap().behaviours.insert(new(role), behaviour);
        let plan = plan(&sim, &shape).await;
        let report = go(&plan, &sim, &mut MemoryJournal::default()).await.unwrap();
        let context = format!("{seed} {shape:?} {behaviour:?} {role} {:?}", report.end);
        assert!(matches!(report.end, RunEnd::RolledBackNode { .. }), "{context}");
        assert_eq!(sim.is_settled(), Vec::<String>::new(), "{context}");
        if role == Role::DmMaster {
            assert_eq!(report.exit_code(), 5, "{context}");
            assert!(all_old(&sim), "{context}");
        } else {
            assert_eq!(report.exit_code(), 6, "{context}");
            for instance in sim.instances().iter().filter(|i| i.role == Role::DmWorker) {
                assert_eq!(sim.builds()[&instance.id], (old(), Some(old())), "{context}");
            }
        }
        let part = report.instances.iter().find(|(_, p)| p.end == InstanceEnd::RolledBack).unwrap();
        assert!(!part.1.evidence.is_empty());
    }
}

#[tokio::test]
async fn on_request_a_bad_build_takes_all_nodes_of_the_run_back() {
    for seed in 0..100 {
        let shape = Shape::any(seed);
        let sim = Sim::new(&shape, seed);
        sim.state.lock().unwrap().behaviours.insert(new(Role::DmWorker), Behaviour::NeverJoins);
        let policy = Policy { on_failure: OnFailure::RollbackAll, ..Policy::default() };
        let Decision::Go(plan) = decide(&sim, &shape, &policy).await else { panic!() };
        let report = go(&plan, &sim, &mut MemoryJournal::default()).await.unwrap();
        assert!(matches!(report.end, RunEnd::RolledBackAll { .. }), "{seed} {:?}", report.end);
        assert_eq!(report.exit_code(), 5, "{seed}");
        assert!(all_old(&sim), "{seed}");
        assert_eq!(sim.is_settled(), Vec::<String>::new(), "{seed}");
        assert!(sim.state.lock().unwrap().marks.values().all(|(_, patched)| !patched));
    }
}

#[tokio::test]
async fn a_bad_node_is_left_when_that_is_the_policy() {
    let sim = Sim::new(&SMALL, 1);
    sim.state.lock().unwrap().behaviours.insert(new(Role::DmMaster), Behaviour::NeverJoins);
    let policy = Policy { on_failure: OnFailure::Stop, ..Policy::default() };
    let Decision::Go(plan) = decide(&sim, &SMALL, &policy).await else { panic!() };
    let report = go(&plan, &sim, &mut MemoryJournal::default()).await.unwrap();
    assert!(matches!(report.end, RunEnd::Failed { .. }));
    assert_eq!(report.exit_code(), 6);
    sim.pass(Duration::from_secs(600));
    let first = &plan.turns[0].instance;
    assert_eq!(sim.builds()[first].0, new(Role::DmMaster), "the guard must not take it back");
}

fn ends(report: &Report) -> Vec<(String, InstanceEnd)> {
    report.instances.iter().map(|(id, part)| (id.to_string(), part.end)).collect()
}

/// Kills a run at its n-th journal entry, lets some time pass, resumes; for every n.
async fn killed_everywhere(shape: &Shape, seed: u64, absent_s: u64, prepare: fn(&Sim)) {
    killed_everywhere_under(Policy::default().on_failure, shape, seed, absent_s, prepare).await;
}

async fn killed_everywhere_under(
    on_failure: OnFailure,
    shape: &Shape,
    seed: u64,
    absent_s: u64,
    prepare: fn(&Sim),
) {
    let undisturbed = Sim::new(shape, seed);
    prepare(&undisturbed);
    let plan = plan_for(&undisturbed, shape, on_failure).await;
    let mut journal = MemoryJournal::default();
    let report = go(&plan, &undisturbed, &mut journal).await.unwrap();
    for limit in 0..journal.entries.len() {
        let sim = Sim::new(shape, seed);
        prepare(&sim);
        let mut journal = MemoryJournal { killed_at: Some(limit), ..MemoryJournal::default() };
        let error = go(&plan, &sim, &mut journal).await.unwrap_err();
        assert!(matches!(error, RunError::Record(_)), "{error}");
        sim.pass(Duration::from_secs(absent_s));
        journal.killed_at = None;
        let resumed = go_on(&plan, &sim, &mut journal).await.unwrap();
        let context = format!(
            "killed at {limit} of {shape:?}: {:?}",
            &journal.entries[limit.saturating_sub(1)]
        );
        assert_eq!(
            std::mem::discriminant(&resumed.end),
            std::mem::discriminant(&report.end),
            "{context}: {:?}",
            resumed.end
        );
        assert_eq!(resumed.exit_code(), report.exit_code(), "{context}");
        assert_eq!(sim.builds(), undisturbed.builds(), "{context}");
        // Also no other node was tried: a bad build must not get a second chance by a kill.
        assert_eq!(ends(&resumed), ends(&report), "{context}");
        assert_eq!(sim.is_settled(), Vec::<String>::new(), "{context}");
    }
}

#[tokio::test]
async fn a_run_killed_before_or_after_any_effect_resumes_to_the_same_end() {
    for absent_s in [0, 300] {
        killed_everywhere(&SMALL, 3, absent_s, |_| {}).await;
        killed_everywhere(&old_version(), 3, absent_s, |_| {}).await;
        let crowded = Shape { sources: 3, ..old_version() };
        killed_everywhere(&crowded, 3, absent_s, |_| {}).await;
    }
}

#[tokio::test]
async fn a_node_that_has_its_old_build_again_but_cannot_start_keeps_no_guard() {
    let sim = Sim::new(&SMALL, 1);
    {
        let mut state = sim.state.lock().unwrap();
        state.behaviours.insert(new(Role::DmWorker), Behaviour::NeverJoins);
        // As on a full disk: what runs goes on, what was stopped does not come up again.
        state.behaviours.insert(old(), Behaviour::ExitsAtStart);
    }
    let plan = plan(&sim, &SMALL).await;
    let report = go(&plan, &sim, &mut MemoryJournal::default()).await.unwrap();
    assert_eq!(report.exit_code(), 6, "{:?}", report.end);
    let (left, _) =
        report.instances.iter().find(|(_, part)| part.end == InstanceEnd::Left).unwrap();
    assert_eq!(sim.builds()[left], (old(), None));
    assert!(
        sim.is_settled().iter().all(|wrong| !wrong.contains("armed")),
        "{:?}",
        sim.is_settled()
    );
}

#[tokio::test]
async fn a_connection_that_breaks_during_the_first_look_is_made_anew() {
    let sim = Sim::new(&SMALL, 1);
    sim.state.lock().unwrap().breaks_once = Some("h2".into());
    let inventory = look(&sim.instances(), &sim, &sim, &sim, true, true, 4).await;
    assert!(inventory.hosts.values().all(Result::is_ok), "{:?}", inventory.hosts);
    assert_eq!(sim.state.lock().unwrap().breaks_once, None);
}

#[tokio::test]
async fn a_node_whose_controller_died_serves_again_a_guards_time_after_its_window() {
    let guard = Duration::from_secs(Policy::default().guard_s.into());
    let prepared = || {
        let sim = Sim::new(&SMALL, 3);
        sim.state.lock().unwrap().behaviours.insert(new(Role::DmWorker), Behaviour::NeverJoins);
        sim
    };
    let undisturbed = prepared();
    let plan = plan(&undisturbed, &SMALL).await;
    let mut journal = MemoryJournal::default();
    go(&plan, &undisturbed, &mut journal).await.unwrap();
    let mut left = 0;
    for limit in 0..journal.entries.len() {
        let sim = prepared();
        let mut journal = MemoryJournal { killed_at: Some(limit), ..MemoryJournal::default() };
        go(&plan, &sim, &mut journal).await.unwrap_err();
        left += usize::from(!sim.armed().is_empty());
        let stop = sim.state.lock().unwrap().stop_takes.0;
        sim.pass(guard + stop + Duration::from_secs(1));
        for id in sim.armed() {
            assert_eq!(sim.builds()[&id].1, Some(old()), "killed at {limit}: {id}");
        }
    }
    assert!(left > 1, "no kill fell into a window");
}

#[tokio::test]
async fn a_run_with_a_bad_build_killed_anywhere_resumes_to_the_same_end() {
    for absent_s in [0, 300] {
        for shape in [SMALL, old_version(), Shape { sources: 3, ..old_version() }] {
            killed_everywhere(&shape, 5, absent_s, |sim| {
                let mut state = sim.state.lock().unwrap();
                state.behaviours.insert(new(Role::DmWorker), Behaviour::NeverJoins);
            })
            .await;
        }
    }
}

#[tokio::test]
async fn a_way_back_of_all_nodes_killed_anywhere_ends_with_all_of_them_back() {
    for absent_s in [0, 300] {
        killed_everywhere_under(OnFailure::RollbackAll, &SMALL, 5, absent_s, |sim| {
            let mut state = sim.state.lock().unwrap();
            state.behaviours.insert(new(Role::DmWorker), Behaviour::ExitsAtStart);
        })
        .await;
    }
}

#[tokio::test]
async fn a_controller_that_was_frozen_does_and_writes_nothing_once_another_has_taken_over() {
    for shape in [SMALL, old_version()] {
        for behaviour in [Behaviour::Good, Behaviour::NeverJoins] {
            let prepared = || {
                let sim = Sim::new(&shape, 3);
                sim.state.lock().unwrap().behaviours.insert(new(Role::DmWorker), behaviour);
                sim
            };
            let undisturbed = prepared();
            let plan = plan(&undisturbed, &shape).await;
            go(&plan, &undisturbed, &mut MemoryJournal::default()).await.unwrap();
            let effects = undisturbed.state.lock().unwrap().effects;
            for limit in 0..effects {
                let sim = prepared();
                sim.state.lock().unwrap().taken_over_at = Some(limit);
                let mut journal = MemoryJournal::default();
                let error = go(&plan, &sim, &mut journal).await.unwrap_err();
                assert!(matches!(error, RunError::Superseded { .. }), "{limit}: {error}");
                let state = sim.state.lock().unwrap();
                assert_eq!(state.effects, limit);
                assert_eq!(state.violations, Vec::<String>::new(), "{limit} {shape:?}");
                // The run is open, for the other to go on with.
                let ends = |entry: &Entry| matches!(entry, Entry::RunEnds { .. });
                assert!(!journal.entries.iter().any(ends), "{limit}");
            }
        }
    }
}

#[tokio::test]
async fn lost_answers_are_looked_at_and_the_end_is_the_same() {
    for seed in 0..300 {
        let shape = Shape::any(seed);
        let sim = Sim::new(&shape, seed);
        let plan = plan(&sim, &shape).await;
        sim.state.lock().unwrap().lose_one_in = 12;
        let mut journal = MemoryJournal::default();
        let mut report = loop {
            // The look before the first step may be lost as well; nothing was touched then.
            match go(&plan, &sim, &mut journal).await {
                Ok(report) => break report,
                Err(RunError::Look { .. }) => {}
                Err(error) => panic!("{seed}: {error}"),
            }
        };
        for _ in 0..20 {
            if !matches!(report.end, RunEnd::Unknown { .. }) {
                break;
            }
            report = go_on(&plan, &sim, &mut journal).await.unwrap();
        }
        let context = format!("{seed} {shape:?} {:?}", report.end);
        assert_eq!(sim.violations(), Vec::<String>::new(), "{context}");
        assert_eq!(report.end, RunEnd::Done, "{context}");
        assert!(all_new(&sim), "{context}");
        assert_eq!(sim.is_settled(), Vec::<String>::new(), "{context}");
    }
}

#[tokio::test]
async fn a_broken_node_is_cured_first_when_it_is_included() {
    let sim = Sim::new(&SMALL, 1);
    sim.break_node(&id("h3:8261"));
    let policy = Policy::default();
    assert!(matches!(decide(&sim, &SMALL, &policy).await, Decision::Blocked(_)));
    let inventory = look(&sim.instances(), &sim, &sim, &sim, true, true, 4).await;
    let mut request = sim.request(&SMALL);
    request.allow.include_down = true;
    let Decision::Go(plan) = plan_hotfix(&request, &inventory, &policy) else { panic!() };
    assert_eq!(plan.turns[0].instance, id("h3:8261"));
    let report = go(&plan, &sim, &mut MemoryJournal::default()).await.unwrap();
    assert_eq!(report.end, RunEnd::Done);
    assert!(all_new(&sim));
    assert_eq!(sim.is_settled(), Vec::<String>::new());
}

#[tokio::test]
async fn a_stale_plan_is_refused_before_anything_is_touched() {
    let sim = Sim::new(&SMALL, 1);
    let plan = plan(&sim, &SMALL).await;
    sim.break_node(&id("h3:8262"));
    let mut journal = MemoryJournal::default();
    let error = go(&plan, &sim, &mut journal).await.unwrap_err();
    assert!(matches!(&error, RunError::Stale { changes } if !changes.is_empty()), "{error}");
    assert_eq!(error.exit_code(), 3);
    assert!(journal.entries.is_empty());
}

#[tokio::test]
async fn when_leadership_moves_on_the_way_the_leader_still_comes_last() {
    let sim = Sim::new(&SMALL, 1);
    let plan = plan(&sim, &SMALL).await;
    let moved = std::sync::atomic::AtomicBool::new(false);
    let mut order = Vec::new();
    let cancel = CancellationToken::new();
    let mut journal = MemoryJournal::default();
    let report = execute(
        &plan,
        reach(&sim),
        &mut journal,
        &mut |event| {
            if let dmup_exec::Event::TurnBegins { instance, .. } = event {
                if !moved.swap(true, std::sync::atomic::Ordering::SeqCst) {
                    // The planned first follower has its turn; the second takes leadership over.
                    sim.state.lock().unwrap().leader = Some(id("h3:8261"));
                }
                order.push(instance.to_string());
            }
        },
        &cancel,
    )
    .await
    .unwrap();
    assert_eq!(report.end, RunEnd::Done);
    assert_eq!(order[..3], ["h2:8261", "h1:8261", "h3:8261"]);
    assert_eq!(sim.is_settled(), Vec::<String>::new());
    assert_eq!(sim.state.lock().unwrap().elections, 1);
    let differently = |note: &&String| note.contains("is taken differently than planned");
    assert_eq!(report.notes.iter().filter(differently).count(), 2, "{:?}", report.notes);
}

#[tokio::test]
async fn a_run_pauses_where_the_operator_wants_to_look_first_and_then_goes_through() {
    let sim = Sim::new(&SMALL, 1);
    let policy = Policy { pause_after: Some(2), ..Policy::default() };
    let Decision::Go(plan) = decide(&sim, &SMALL, &policy).await else { panic!() };
    let mut journal = MemoryJournal::default();
    let report = go(&plan, &sim, &mut journal).await.unwrap();
    assert_eq!((report.end.clone(), report.exit_code()), (RunEnd::Paused, 0));
    assert_eq!(sim.state.lock().unwrap().windows, 2);
    assert_eq!(sim.is_settled(), Vec::<String>::new());
    let report = go_on(&plan, &sim, &mut journal).await.unwrap();
    assert_eq!(report.end, RunEnd::Done);
    assert!(all_new(&sim));
    assert_eq!(sim.is_settled(), Vec::<String>::new());
}

#[tokio::test]
async fn the_last_node_of_a_batch_is_watched_longer() {
    let sim = Sim::new(&SMALL, 1);
    let batches = vec![BatchSize::Nodes(1), BatchSize::Percent(50)];
    let policy = Policy { batches, batch_soak_s: 77, soak_s: 3, ..Policy::default() };
    let Decision::Go(plan) = decide(&sim, &SMALL, &policy).await else { panic!() };
    let mut soaks = Vec::new();
    let report = go_and(&plan, &sim, |step| {
        if let Step::Soak { soak_s, .. } = step {
            soaks.push(*soak_s);
        }
    })
    .await;
    assert_eq!(report.end, RunEnd::Done);
    assert_eq!(soaks.len(), plan.turns.len());
    let second = 1 + plan.turns.len().div_ceil(2);
    let longer: Vec<usize> =
        (1..).zip(&soaks).filter(|(_, soak)| **soak == 77).map(|(number, _)| number).collect();
    assert_eq!(longer, [1, second]);
}

const MANY: Shape = Shape { workers: 5, sources: 3, has_monitoring: false, ..SMALL };

/// Which turns were under way together at most, and in which order they began and ended.
async fn go_in_batches(sim: &Sim, batches: Vec<BatchSize>) -> (Report, usize, Vec<InstanceId>) {
    let policy = Policy { batches, batch_soak_s: 10, healthy_within_s: 20, ..Policy::default() };
    let Decision::Go(plan) = decide(sim, &MANY, &policy).await else { panic!() };
    let (mut open, mut most, mut begun) = (0_usize, 0, Vec::new());
    let mut watch = |event: Event| match event {
        Event::TurnBegins { instance, .. } => {
            begun.push(instance);
            open += 1;
            most = most.max(open);
        }
        Event::TurnEnds { .. } => open -= 1,
        _ => {}
    };
    let cancel = CancellationToken::new();
    let mut journal = MemoryJournal::default();
    let report = execute(&plan, reach(sim), &mut journal, &mut watch, &cancel).await.unwrap();
    (report, most, begun)
}

#[tokio::test]
async fn workers_of_a_batch_are_watched_together_and_stopped_one_by_one() {
    let sim = Sim::new(&MANY, 1);
    let (report, most, _) = go_in_batches(&sim, Vec::new()).await;
    assert_eq!((report.end, most), (RunEnd::Done, 1));
    let sim = Sim::new(&MANY, 1);
    // Three masters and a worker first; four workers remain.
    let (report, most, _) = go_in_batches(&sim, vec![BatchSize::Nodes(4)]).await;
    assert_eq!((report.end, most), (RunEnd::Done, 4));
    assert!(all_new(&sim));
    // The sim sees to it that never two are down.
    assert_eq!(sim.is_settled(), Vec::<String>::new());
}

#[tokio::test]
async fn a_bad_build_that_shows_late_in_a_batch_leaves_no_worker_with_it() {
    for seed in 0..100 {
        let sim = Sim::new(&MANY, seed);
        {
            let mut state = sim.state.lock().unwrap();
            let behaviour = Behaviour::ExitsAfter(1 + seed % 4);
            state.behaviours.insert(new(Role::DmWorker), behaviour);
            state.may_be_down = MANY.workers;
        }
        let (report, most, begun) = go_in_batches(&sim, vec![BatchSize::Percent(100)]).await;
        let context = format!("{seed}: {:?}, {most} together, begun {begun:?}", report.end);
        assert!(matches!(report.end, RunEnd::RolledBackNode { .. }), "{context}");
        assert_eq!(report.exit_code(), 6, "{context}");
        for instance in sim.instances().iter().filter(|it| it.role == Role::DmWorker) {
            assert_eq!(sim.builds()[&instance.id], (old(), Some(old())), "{context}");
        }
        assert_eq!(sim.is_settled(), Vec::<String>::new(), "{context}");
    }
}

#[tokio::test]
async fn once_a_node_of_a_batch_fails_no_other_window_opens() {
    let sim = Sim::new(&MANY, 3);
    {
        let mut state = sim.state.lock().unwrap();
        state.behaviours.insert(new(Role::DmWorker), Behaviour::ExitsAtStart);
    }
    let (report, _, begun) = go_in_batches(&sim, vec![BatchSize::Percent(100)]).await;
    assert!(matches!(report.end, RunEnd::RolledBackNode { .. }));
    // Three masters; one worker there and back.
    assert_eq!(sim.state.lock().unwrap().windows, 5);
    assert_eq!(begun.len(), 4);
    assert_eq!(sim.is_settled(), Vec::<String>::new());
}

#[tokio::test]
async fn no_window_of_a_batch_opens_once_another_node_is_known_to_be_bad() {
    let mut gave_up = 0;
    for seed in 0..60 {
        let sim = Sim::new(&MANY, seed);
        {
            let mut state = sim.state.lock().unwrap();
            let behaviour = Behaviour::ExitsAfter(1 + seed % 4);
            state.behaviours.insert(new(Role::DmWorker), behaviour);
            state.may_be_down = MANY.workers;
            // So that failures fall between the last look before a window and the window.
            state.looks_take = Duration::from_millis(30 * (1 + seed / 4));
        }
        let batches = vec![BatchSize::Percent(100)];
        let policy = Policy { batches, healthy_within_s: 20, ..Policy::default() };
        let Decision::Go(plan) = decide(&sim, &MANY, &policy).await else { panic!() };
        let (mut journal, cancel) = (MemoryJournal::default(), CancellationToken::new());
        let report = execute(&plan, reach(&sim), &mut journal, &mut |_| {}, &cancel).await.unwrap();
        let context = format!("{seed}: {:?}", report.end);
        assert!(matches!(report.end, RunEnd::RolledBackNode { .. }), "{context}");
        let opens = |entry: &&Entry| matches!(entry, Entry::Started { step: Step::Window { to, .. } } if *to != old());
        let mut later =
            journal.entries.iter().skip_while(|entry| !matches!(entry, Entry::Failed { .. }));
        assert_eq!(later.find(opens), None, "{context}");
        gave_up += report.notes.iter().filter(|note| note.contains("gives its turn up")).count();
        assert_eq!(sim.is_settled(), Vec::<String>::new(), "{context}");
    }
    assert!(gave_up > 0, "no failure came while another one had its turn");
}

/// A batch of all workers, killed when all of it is watched.
async fn killed_in_the_last_soak() -> (Sim, Plan, MemoryJournal) {
    let sim = Sim::new(&MANY, 1);
    // Longer than a guard: whoever waited for the others to be watched would be put back meanwhile.
    let batches = vec![BatchSize::Percent(100)];
    let policy = Policy { batches, soak_s: 45, healthy_within_s: 20, ..Policy::default() };
    let Decision::Go(plan) = decide(&sim, &MANY, &policy).await else { panic!() };
    let last = plan.turns.last().unwrap().instance.clone();
    let mut journal = MemoryJournal::default();
    let cancel = CancellationToken::new();
    let mut watch = |event: Event| {
        if let Event::StepBegins { step: Step::Soak { instance, .. } } = event
            && instance == last
        {
            let mut state = sim.state.lock().unwrap();
            state.dies_at = Some((state.effects, sim::Side::Before));
        }
    };
    tokio::select! {
        () = sim.death() => {}
        ended = execute(&plan, reach(&sim), &mut journal, &mut watch, &cancel) => panic!("{ended:?}"),
    }
    sim.revive();
    (sim, *plan, journal)
}

#[tokio::test]
async fn resume_goes_on_with_all_nodes_of_a_batch_and_restarts_none_again() {
    let (sim, plan, mut journal) = killed_in_the_last_soak().await;
    let begun = Clock::elapsed(&sim);
    let report = go_on(&plan, &sim, &mut journal).await.unwrap();
    assert_eq!(report.end, RunEnd::Done);
    assert!(all_new(&sim));
    assert_eq!(sim.state.lock().unwrap().windows, plan.turns.len());
    let (took, soak) = (Clock::elapsed(&sim) - begun, Duration::from_secs(45));
    assert!(took < 2 * soak, "they are watched together: {took:?}");
    assert_eq!(sim.is_settled(), Vec::<String>::new());
}

#[tokio::test]
async fn a_node_that_another_desk_has_put_back_meanwhile_is_left_as_it_is() {
    let sim = Sim::new(&SMALL, 1);
    let plan = plan(&sim, &SMALL).await;
    let mut journal = MemoryJournal::default();
    let cancel = CancellationToken::new();
    let mut watch = |event: Event| {
        if matches!(event, Event::TurnBegins { number: 3, .. }) {
            cancel.cancel();
        }
    };
    let report = execute(&plan, reach(&sim), &mut journal, &mut watch, &cancel).await.unwrap();
    assert_eq!(report.end, RunEnd::Interrupted);
    let first = &plan.turns[0].instance;
    sim.put_back(first);
    let pid = sim.pid_of(first);
    let past = lines(&journal.entries);
    let cancel = CancellationToken::new();
    let report =
        take_back(&plan, &past, reach(&sim), &mut journal, &mut |_| {}, &cancel).await.unwrap();
    assert_eq!(report.end, RunEnd::TakenBack);
    assert!(all_old(&sim));
    assert_eq!(sim.pid_of(first), pid);
    assert_eq!(sim.is_settled(), Vec::<String>::new());
}

#[tokio::test]
async fn a_soak_that_is_longer_than_the_health_limit_survives_a_lost_answer() {
    let sim = Sim::new(&SMALL, 1);
    let policy = Policy { soak_s: 60, healthy_within_s: 20, ..Policy::default() };
    let Decision::Go(plan) = decide(&sim, &SMALL, &policy).await else { panic!() };
    sim.state.lock().unwrap().lose_one_in = 40;
    let report = go(&plan, &sim, &mut MemoryJournal::default()).await.unwrap();
    assert_eq!(report.end, RunEnd::Done);
}

#[tokio::test]
async fn on_request_a_worker_that_does_not_become_quiet_is_left_alone() {
    let sim = Sim::new(&SMALL, 1);
    let policy = Policy { quiet_within_s: 10, on_busy: OnBusy::Stop, ..Policy::default() };
    let Decision::Go(plan) = decide(&sim, &SMALL, &policy).await else { panic!() };
    sim.state.lock().unwrap().lag_s = 500;
    let report = go(&plan, &sim, &mut MemoryJournal::default()).await.unwrap();
    let RunEnd::Failed { why } = &report.end else { panic!("{:?}", report.end) };
    assert!(why.contains("did not become quiet within 10s"), "{why}");
    assert_eq!(report.exit_code(), 6);
    // Three masters and the free worker; no bound one was touched.
    assert_eq!(sim.state.lock().unwrap().windows, 4);
    assert_eq!(sim.is_settled(), Vec::<String>::new());
}

#[tokio::test]
async fn an_interrupted_run_finishes_the_node_under_way_and_can_be_resumed() {
    let sim = Sim::new(&SMALL, 1);
    let plan = plan(&sim, &SMALL).await;
    let cancel = CancellationToken::new();
    let mut journal = MemoryJournal::default();
    let report = execute(
        &plan,
        reach(&sim),
        &mut journal,
        &mut |event| {
            if matches!(event, dmup_exec::Event::TurnBegins { number: 2, .. }) {
                cancel.cancel();
            }
        },
        &cancel,
    )
    .await
    .unwrap();
    assert_eq!((report.end.clone(), report.exit_code()), (RunEnd::Interrupted, 130));
    assert_eq!(sim.state.lock().unwrap().windows, 2);
    assert_eq!(sim.is_settled(), Vec::<String>::new());
    let report = go_on(&plan, &sim, &mut journal).await.unwrap();
    assert_eq!(report.end, RunEnd::Done);
    assert!(all_new(&sim));
}

/// Writes the journal that `dmup-core/tests/journals.rs` reads for ever; only for a new format.
#[tokio::test]
#[ignore = "writes a fixture"]
async fn write_the_journal_fixture() {
    let folder = camino::Utf8Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(format!("../dmup-core/tests/fixtures/journal-v{}", Line::FORMAT));
    let shape = Shape { has_monitoring: false, ..old_version() };
    for (name, killed) in [("rolled-back", false), ("killed", true)] {
        let sim = Sim::new(&shape, 5);
        if !killed {
            let mut state = sim.state.lock().unwrap();
            state.behaviours.insert(new(Role::DmWorker), Behaviour::ExitsAtStart);
        }
        let plan = plan(&sim, &shape).await;
        let path = folder.join(format!("{name}.jsonl"));
        let mut journal = dmup_exec::FileJournal::create(&path).unwrap();
        let cancel = CancellationToken::new();
        execute(&plan, reach(&sim), &mut journal, &mut |_| {}, &cancel).await.unwrap();
        if killed {
            let text = std::fs::read_to_string(&path).unwrap();
            let at = text.find(r#""started","step":{"step":"pause_subtask""#).unwrap();
            let end = text[at..].find('\n').unwrap() + at + 1;
            // In doubt about the pause, and torn in the line after it.
            std::fs::write(&path, &text[..end + 40]).unwrap();
        }
    }
    // Killed in the middle, taken back, and killed again when the turn under way was back: others are to follow.
    let plan = plan(&Sim::new(&shape, 5), &shape).await;
    let mut journal = MemoryJournal::default();
    go(&plan, &Sim::new(&shape, 5), &mut journal).await.unwrap();
    let (sim, killed_at) = (Sim::new(&shape, 5), Some(journal.entries.len() / 2));
    let mut journal = MemoryJournal { killed_at, ..MemoryJournal::default() };
    go(&plan, &sim, &mut journal).await.unwrap_err();
    journal.killed_at = None;
    back(&plan, &sim, &mut journal).await.unwrap();
    let is_back = |entry: &Entry| matches!(entry, Entry::TurnEnds { end: TurnEnd::RolledBack, .. });
    let first = journal.entries.iter().position(is_back).unwrap();
    let mut file = dmup_exec::FileJournal::create(&folder.join("taken-back.jsonl")).unwrap();
    for entry in &journal.entries[..=first] {
        file.append(sim.now(), entry).unwrap();
    }
}

#[tokio::test]
async fn a_run_killed_before_or_after_any_effect_can_be_taken_back_wholly() {
    for (shape, absent_s) in [(SMALL, 0), (SMALL, 300), (old_version(), 0), (old_version(), 300)] {
        let undisturbed = Sim::new(&shape, 3);
        let plan = plan(&undisturbed, &shape).await;
        let mut journal = MemoryJournal::default();
        go(&plan, &undisturbed, &mut journal).await.unwrap();
        for limit in 1..journal.entries.len() {
            let sim = Sim::new(&shape, 3);
            let mut journal = MemoryJournal { killed_at: Some(limit), ..MemoryJournal::default() };
            go(&plan, &sim, &mut journal).await.unwrap_err();
            sim.pass(Duration::from_secs(absent_s));
            journal.killed_at = None;
            let past = lines(&journal.entries);
            let cancel = CancellationToken::new();
            let back =
                dmup_exec::take_back(&plan, &past, reach(&sim), &mut journal, &mut |_| {}, &cancel)
                    .await
                    .unwrap();
            let context = format!("killed at {limit} of {shape:?}: {:?}", back.end);
            assert_eq!((&back.end, back.exit_code()), (&RunEnd::TakenBack, 0), "{context}");
            assert!(all_old(&sim), "{context}");
            assert_eq!(sim.is_settled(), Vec::<String>::new(), "{context}");
        }
    }
}

/// What `rollback` does with an unfinished run.
async fn back(plan: &Plan, sim: &Sim, journal: &mut MemoryJournal) -> Result<Report, RunError> {
    let past = lines(&journal.entries);
    let cancel = CancellationToken::new();
    dmup_exec::take_back(plan, &past, reach(sim), journal, &mut |_| {}, &cancel).await
}

#[tokio::test]
async fn a_way_back_that_was_killed_anywhere_is_finished_by_the_next_and_by_resume() {
    let undisturbed = Sim::new(&SMALL, 3);
    let plan = plan(&undisturbed, &SMALL).await;
    let mut whole = MemoryJournal::default();
    go(&plan, &undisturbed, &mut whole).await.unwrap();
    // In the middle of a turn, with turns that have ended before it.
    let killed = whole.entries.len() / 2;
    let half_done = async || {
        let sim = Sim::new(&SMALL, 3);
        let mut journal = MemoryJournal { killed_at: Some(killed), ..MemoryJournal::default() };
        go(&plan, &sim, &mut journal).await.unwrap_err();
        journal.killed_at = None;
        (sim, journal)
    };
    let (sim, mut journal) = half_done().await;
    back(&plan, &sim, &mut journal).await.unwrap();
    let decided = journal.entries.iter().position(|it| *it == Entry::TakingBack).unwrap();
    for limit in killed..journal.entries.len() {
        for resumes in [false, true] {
            let (sim, mut journal) = half_done().await;
            journal.killed_at = Some(limit);
            back(&plan, &sim, &mut journal).await.unwrap_err();
            journal.killed_at = None;
            let report = if resumes {
                go_on(&plan, &sim, &mut journal).await.unwrap()
            } else {
                back(&plan, &sim, &mut journal).await.unwrap()
            };
            let context = format!("killed at {limit}, {resumes}: {:?}", report.end);
            // Killed before it was written down, the way back is not known to `resume`.
            let goes_back = !resumes || limit > decided;
            assert!(if goes_back { all_old(&sim) } else { all_new(&sim) }, "{context}");
            let end = if goes_back { RunEnd::TakenBack } else { RunEnd::Done };
            assert_eq!((&report.end, report.exit_code()), (&end, 0), "{context}");
            assert_eq!(sim.is_settled(), Vec::<String>::new(), "{context}");
        }
    }
}

/// Runs a plan and does something to the cluster when a step begins; each kind of step is told once per instance.
async fn go_and(plan: &Plan, sim: &Sim, mut at: impl FnMut(&Step) + Send) -> Report {
    let cancel = CancellationToken::new();
    let mut journal = MemoryJournal::default();
    let mut watch = |event: Event| {
        if let Event::StepBegins { step } = &event {
            at(step);
        }
    };
    execute(plan, reach(sim), &mut journal, &mut watch, &cancel).await.unwrap()
}

fn is_of(step: &Step, wanted: &InstanceId) -> bool {
    match step {
        Step::AwaitHealthy { instance, .. }
        | Step::Soak { instance, .. }
        | Step::DisarmGuard { instance } => instance == wanted,
        _ => false,
    }
}

#[tokio::test]
async fn a_host_that_cannot_be_reached_for_a_while_after_the_window_keeps_the_new_build() {
    let at: [fn(&Step) -> bool; 3] = [
        |step| matches!(step, Step::AwaitHealthy { .. }),
        |step| matches!(step, Step::Soak { .. }),
        |step| matches!(step, Step::DisarmGuard { .. }),
    ];
    for meant in at {
        for away_s in [5, 20, 25] {
            let sim = Sim::new(&SMALL, 1);
            let plan = plan(&sim, &SMALL).await;
            let first = plan.turns[0].instance.clone();
            let host = plan.instance(&first).unwrap().host.clone();
            let report = go_and(&plan, &sim, |step| {
                if meant(step) && is_of(step, &first) {
                    sim.silence(host.as_str(), Duration::from_secs(away_s));
                }
            })
            .await;
            assert_eq!(report.end, RunEnd::Done, "{away_s}");
            assert!(all_new(&sim));
            assert_eq!(sim.is_settled(), Vec::<String>::new());
        }
    }
}

#[tokio::test]
async fn a_host_that_took_itself_back_ends_old_and_the_exit_code_says_what_the_others_have() {
    for (turn, code) in [(0, 5), (1, 6)] {
        for away_s in [45, 100] {
            let sim = Sim::new(&SMALL, 1);
            let plan = plan(&sim, &SMALL).await;
            let meant = plan.turns[turn].instance.clone();
            let host = plan.instance(&meant).unwrap().host.clone();
            for at in [(|step| matches!(step, Step::Soak { .. })) as fn(&Step) -> bool, |step| {
                matches!(step, Step::DisarmGuard { .. })
            }] {
                let sim = Sim::new(&SMALL, 1);
                let report = go_and(&plan, &sim, |step| {
                    if at(step) && is_of(step, &meant) {
                        sim.silence(host.as_str(), Duration::from_secs(away_s));
                    }
                })
                .await;
                let context = format!("{turn} {away_s} {:?}", report.end);
                assert!(matches!(report.end, RunEnd::RolledBackNode { .. }), "{context}");
                assert_eq!(report.exit_code(), code, "{context}");
                assert_eq!(sim.builds()[&meant], (old(), Some(old())), "{context}");
                assert_eq!(sim.is_settled(), Vec::<String>::new(), "{context}");
            }
        }
    }
}

#[tokio::test]
async fn a_node_that_went_back_in_a_cluster_that_is_ill_all_the_same_ends_old_without_a_guard() {
    let sim = Sim::new(&SMALL, 1);
    let plan = plan(&sim, &SMALL).await;
    let first = plan.turns[0].instance.clone();
    let other = plan.turns[1].instance.clone();
    let report = go_and(&plan, &sim, |step| {
        if matches!(step, Step::AwaitHealthy { .. }) && is_of(step, &first) {
            sim.state.lock().unwrap().ill = Some(other.clone());
        }
    })
    .await;
    let RunEnd::RolledBackNode { why, .. } = &report.end else { panic!("{:?}", report.end) };
    assert!(why.contains("etcd of master") && why.contains("runs the build from before"), "{why}");
    assert_eq!(report.exit_code(), 5);
    assert!(all_old(&sim));
    assert_eq!(sim.is_settled(), Vec::<String>::new());
}

#[tokio::test]
async fn a_restart_within_the_soak_begins_it_anew() {
    let sim = Sim::new(&SMALL, 1);
    let policy = Policy { soak_s: 10, healthy_within_s: 20, ..Policy::default() };
    let Decision::Go(plan) = decide(&sim, &SMALL, &policy).await else { panic!() };
    let first = plan.turns[0].instance.clone();
    let (mut begun, mut restarted, mut ended) = (None, None, None);
    let cancel = CancellationToken::new();
    let mut watch = |event: Event| {
        let now = Clock::elapsed(&sim);
        match &event {
            Event::StepBegins { step: step @ Step::Soak { .. } } if is_of(step, &first) => {
                begun = Some(now);
                sim.state.lock().unwrap().restart_at =
                    Some((now + Duration::from_secs(7), first.clone()));
            }
            Event::StepEnds { step: step @ Step::Soak { .. }, .. } if is_of(step, &first) => {
                restarted = Some(sim.state.lock().unwrap().restart_at.is_none());
                ended = Some(now);
            }
            _ => {}
        }
    };
    let mut journal = MemoryJournal::default();
    let report = execute(&plan, reach(&sim), &mut journal, &mut watch, &cancel).await.unwrap();
    assert_eq!((report.end, restarted), (RunEnd::Done, Some(true)));
    assert!(ended.unwrap() - begun.unwrap() >= Duration::from_secs(17));
}

#[tokio::test]
async fn a_slow_stop_is_reported_as_one_and_does_not_count_against_the_time_to_become_healthy() {
    let sim = Sim::new(&SMALL, 1);
    let policy = Policy { healthy_within_s: 5, ..Policy::default() };
    let Decision::Go(plan) = decide(&sim, &SMALL, &policy).await else { panic!() };
    sim.state.lock().unwrap().stop_takes = (Duration::from_secs(20), true);
    let report = go(&plan, &sim, &mut MemoryJournal::default()).await.unwrap();
    assert_eq!(report.end, RunEnd::Done);
    for (_, part) in &report.instances {
        assert_eq!((part.away.stop_ms, part.away.killed), (20_000, true));
        assert!(part.healthy_after_ms < 5_000, "{}", part.healthy_after_ms);
    }
    assert!(report.notes[0].contains("systemd had to kill it after 20 s"), "{:?}", report.notes);
}

#[tokio::test]
async fn a_worker_is_not_stopped_while_the_free_worker_that_waits_for_its_source_is_dead() {
    for shape in [SMALL, old_version()] {
        for at in [(|step| matches!(step, Step::AwaitQuiet { .. })) as fn(&Step) -> bool, |step| {
            matches!(step, Step::ArmGuard { .. })
        }] {
            let sim = Sim::new(&shape, 1);
            let plan = plan(&sim, &shape).await;
            let mut killed = false;
            let report = go_and(&plan, &sim, |step| {
                let free = id("h3:8262");
                let is_busy =
                    !matches!(step, Step::ArmGuard { instance, .. } if *instance != id("h1:8262"));
                if at(step) && is_busy && !killed {
                    killed = true;
                    sim.kill_unnoticed(&free, Duration::from_secs(15));
                }
            })
            .await;
            assert!(killed);
            assert_eq!(report.end, RunEnd::Done, "{:?}", report.end);
            assert_eq!(sim.is_settled(), Vec::<String>::new());
        }
    }
}

#[tokio::test]
async fn a_worker_that_does_not_become_quiet_has_its_turn_all_the_same_and_the_report_says_why() {
    for quiet_within_s in [0, 40] {
        let sim = Sim::new(&SMALL, 1);
        let policy = Policy { quiet_within_s, ..Policy::default() };
        let Decision::Go(plan) = decide(&sim, &SMALL, &policy).await else { panic!() };
        let (mut begun, mut waited) = (Duration::ZERO, Vec::new());
        let cancel = CancellationToken::new();
        let mut watch = |event: Event| match event {
            Event::StepBegins { step: Step::AwaitQuiet { .. } } => {
                sim.state.lock().unwrap().lag_s = 100;
                begun = Clock::elapsed(&sim);
            }
            Event::StepEnds { step: Step::AwaitQuiet { .. }, .. } => {
                sim.state.lock().unwrap().lag_s = 0;
                waited.push(Clock::elapsed(&sim) - begun);
            }
            _ => {}
        };
        let mut journal = MemoryJournal::default();
        let report = execute(&plan, reach(&sim), &mut journal, &mut watch, &cancel).await.unwrap();
        assert_eq!(report.end, RunEnd::Done);
        assert_eq!(waited.len(), 2, "one per worker with a source");
        let bound = Duration::from_secs(quiet_within_s.into());
        assert!(waited.iter().all(|it| *it >= bound && *it < bound + Duration::from_secs(2)));
        assert!(report.notes.iter().any(|note| note.contains("lag 100s")), "{:?}", report.notes);
    }
}

#[tokio::test]
async fn a_node_whose_guard_cannot_be_armed_is_not_touched_and_dm_is_told_to_go_on() {
    // The leader comes last of the masters and is evicted before; the worker has a source that is paused and moved before.
    for (shape, unguarded, code) in
        [(SMALL, "h2:8261", 1), (SMALL, "h1:8261", 6), (old_version(), "h1:8262", 6)]
    {
        let sim = Sim::new(&shape, 1);
        sim.state.lock().unwrap().unguarded = Some(id(unguarded));
        let plan = plan(&sim, &shape).await;
        let report = go(&plan, &sim, &mut MemoryJournal::default()).await.unwrap();
        let context = format!("{unguarded}: {:?}", report.end);
        assert!(matches!(report.end, RunEnd::Failed { .. }), "{context}");
        assert_eq!(report.exit_code(), code, "{context}");
        let (_, part) = report.instances.iter().find(|(it, _)| *it == id(unguarded)).unwrap();
        assert_eq!(part.end, InstanceEnd::Untouched, "{context}");
        assert_eq!(sim.builds()[&id(unguarded)], (old(), Some(old())), "{context}");
        assert_eq!(sim.is_settled(), Vec::<String>::new(), "{context}");
    }
}
