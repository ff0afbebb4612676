//! Restarts and reloads: the order, gates and journal of a hotfix, and no build changes.

use std::collections::BTreeMap;
use std::time::Duration;

use dmup_core::digest::Digest;
use dmup_core::ids::{ClusterName, InstanceId};
use dmup_core::instance::Role;
use dmup_core::journal::Entry;
use dmup_core::plan::{Allowances, Decision, Kind, Plan, RestartRequest, Step, plan_restart};
use dmup_core::policy::{BatchSize, OnFailure, Policy};
use dmup_core::report::{InstanceEnd, RunEnd};
use dmup_core::texts::{Text, Texts, TextsChange};
use dmup_exec::{Event, MemoryJournal, look};

use crate::sim::{Dice, Shape, Side, Sim, id};
use crate::{SMALL, all_old, back, dead_at, go, go_and, go_on, old_version};

pub(crate) fn texts(content: &str) -> Texts {
    let path = "/home/tidb/deploy/scripts/run.sh".into();
    Texts(vec![Text { path, mode: 0o755, root: false, content: content.to_owned() }])
}

/// The sim knows what lies on every node, and keeps what is to lie there.
pub(crate) fn change(sim: &Sim) -> TextsChange {
    let mut state = sim.state.lock().unwrap();
    let (before, after) = (texts("old"), texts("new"));
    for node in state.nodes.values_mut() {
        node.texts = before.digest();
    }
    for texts in [&before, &after] {
        state.texts.insert(texts.digest(), texts.clone());
    }
    let paths = vec![after.0[0].path.clone()];
    TextsChange { before: before.digest(), after: after.digest(), paths }
}

async fn decided(sim: &Sim, shape: &Shape, kind: Kind, policy: &Policy) -> Decision {
    let instances = sim.instances();
    let texts = (kind == Kind::Reload).then(|| change(sim));
    let request = RestartRequest {
        cluster: ClusterName::new("prod").unwrap(),
        version: shape.version.parse().unwrap(),
        targets: instances.iter().map(|it| (it.id.clone(), texts.clone())).collect(),
        instances: instances.clone(),
        is_reload: kind == Kind::Reload,
        allow: Allowances::default(),
    };
    let inventory = look(&instances, sim, sim, sim, true, true, 4).await;
    plan_restart(&request, &inventory, policy)
}

async fn planned(sim: &Sim, shape: &Shape, kind: Kind, policy: &Policy) -> Plan {
    match decided(sim, shape, kind, policy).await {
        Decision::Go(plan) => *plan,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn quick() -> Policy {
    // Simulated seconds cost real milliseconds.
    Policy { healthy_within_s: 20, ..Policy::default() }
}

fn starts(sim: &Sim) -> BTreeMap<InstanceId, usize> {
    let state = sim.state.lock().unwrap();
    state.nodes.iter().map(|(id, node)| (id.clone(), node.starts)).collect()
}

fn texts_of(sim: &Sim) -> Vec<Digest> {
    sim.state.lock().unwrap().nodes.values().map(|node| node.texts.clone()).collect()
}

#[tokio::test]
async fn every_node_is_started_again_once_and_leadership_moves_once() {
    for seed in 0..200 {
        let kind = if seed % 2 == 0 { Kind::Restart } else { Kind::Reload };
        let shape = Shape::any(seed);
        let sim = Sim::new(&shape, seed);
        let plan = planned(&sim, &shape, kind, &quick()).await;
        let report = go(&plan, &sim, &mut MemoryJournal::default()).await.unwrap();
        assert_eq!((&report.end, report.exit_code()), (&RunEnd::Done, 0), "{seed} {shape:?}");
        assert!(starts(&sim).values().all(|starts| *starts == 1), "{seed}: {:?}", starts(&sim));
        assert!(all_old(&sim), "{seed}");
        if kind == Kind::Reload {
            assert!(texts_of(&sim).iter().all(|it| *it == texts("new").digest()), "{seed}");
        }
        assert_eq!(sim.is_settled(), Vec::<String>::new(), "{seed} {shape:?}");
        let state = sim.state.lock().unwrap();
        assert!(state.elections <= 1, "{seed}: {} elections", state.elections);
        assert!(state.marks.is_empty(), "{seed}: no build has changed");
    }
}

#[tokio::test]
async fn killed_at_any_effect_it_is_resumed_and_starts_no_node_twice() {
    for shape in [SMALL, old_version()] {
        for kind in [Kind::Restart, Kind::Reload] {
            let whole = Sim::new(&shape, 1);
            let plan = planned(&whole, &shape, kind, &quick()).await;
            go(&plan, &whole, &mut MemoryJournal::default()).await.unwrap();
            let effects = whole.state.lock().unwrap().effects;
            for effect in 1..effects {
                for side in [Side::Before, Side::After] {
                    let sim = Sim::new(&shape, 1);
                    if kind == Kind::Reload {
                        change(&sim);
                    }
                    let mut journal = dead_at(&plan, &sim, effect, side).await;
                    sim.pass(Duration::from_secs(effect % 3 * 20));
                    let report = go_on(&plan, &sim, &mut journal).await.unwrap();
                    let context = format!("{} {kind:?} {effect} {side:?}", shape.version);
                    assert_eq!(report.end, RunEnd::Done, "{context}");
                    let twice: Vec<_> = starts(&sim).into_iter().filter(|(_, n)| *n != 1).collect();
                    assert!(twice.is_empty(), "{context}: {twice:?}");
                    assert_eq!(sim.is_settled(), Vec::<String>::new(), "{context}");
                }
            }
        }
    }
}

#[tokio::test]
async fn answers_that_are_lost_and_orders_that_come_twice_start_no_node_twice() {
    for seed in 0..200 {
        let kind = if seed % 2 == 0 { Kind::Restart } else { Kind::Reload };
        let shape = Shape::any(seed);
        let sim = Sim::new(&shape, seed);
        let mut dice = Dice(seed);
        let batches = if dice.roll(2) == 0 { vec![BatchSize::Percent(100)] } else { Vec::new() };
        let plan = planned(&sim, &shape, kind, &Policy { batches, ..quick() }).await;
        {
            let mut state = sim.state.lock().unwrap();
            (state.lose_one_in, state.repeat_one_in) = (12, 3);
        }
        let report = match go(&plan, &sim, &mut MemoryJournal::default()).await {
            Ok(report) => report,
            // The look before the first step was lost; nothing was touched.
            Err(dmup_exec::RunError::Look { .. }) => continue,
            Err(error) => panic!("{seed}: {error}"),
        };
        assert_eq!(report.end, RunEnd::Done, "{seed} {shape:?}");
        assert!(starts(&sim).values().all(|starts| *starts == 1), "{seed}: {:?}", starts(&sim));
        assert_eq!(sim.is_settled(), Vec::<String>::new(), "{seed}");
    }
}

#[tokio::test]
async fn files_with_which_a_node_does_not_start_are_taken_back_and_no_other_node_gets_them() {
    for shape in [SMALL, old_version()] {
        let sim = Sim::new(&shape, 1);
        let plan = planned(&sim, &shape, Kind::Reload, &quick()).await;
        sim.state.lock().unwrap().bad_texts = Some(texts("new").digest());
        let report = go(&plan, &sim, &mut MemoryJournal::default()).await.unwrap();
        assert!(matches!(report.end, RunEnd::RolledBackNode { .. }), "{:?}", report.end);
        assert_eq!(report.exit_code(), 5);
        assert!(texts_of(&sim).iter().all(|it| *it == texts("old").digest()));
        let first = &plan.turns[0].instance;
        assert!(starts(&sim).iter().all(|(id, n)| *n == if id == first { 2 } else { 0 }));
        assert_eq!(sim.is_settled(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn files_with_which_a_node_does_not_start_are_left_when_that_is_the_policy() {
    let sim = Sim::new(&SMALL, 1);
    let policy = Policy { on_failure: OnFailure::Stop, ..quick() };
    let plan = planned(&sim, &SMALL, Kind::Reload, &policy).await;
    let first = &plan.turns[0].instance;
    {
        let mut state = sim.state.lock().unwrap();
        state.bad_texts = Some(texts("new").digest());
        // A guard of an earlier run has acted there; this run has none.
        state.nodes.get_mut(first).unwrap().fired = true;
    }
    let report = go(&plan, &sim, &mut MemoryJournal::default()).await.unwrap();
    assert!(matches!(report.end, RunEnd::Failed { .. }), "{:?}", report.end);
    assert_eq!((report.exit_code(), &report.notes), (6, &Vec::new()));
    for (id, node) in &sim.state.lock().unwrap().nodes {
        let (content, starts) = if id == first { ("new", 1) } else { ("old", 0) };
        assert_eq!((&node.texts, node.starts), (&texts(content).digest(), starts), "{id}");
    }
}

#[tokio::test]
async fn a_reload_that_is_taken_back_leaves_the_files_from_before() {
    let whole = Sim::new(&SMALL, 1);
    let plan = planned(&whole, &SMALL, Kind::Reload, &quick()).await;
    let mut undisturbed = MemoryJournal::default();
    go(&plan, &whole, &mut undisturbed).await.unwrap();
    for limit in 1..undisturbed.entries.len() {
        let sim = Sim::new(&SMALL, 1);
        change(&sim);
        let mut journal = MemoryJournal { killed_at: Some(limit), ..MemoryJournal::default() };
        go(&plan, &sim, &mut journal).await.unwrap_err();
        journal.killed_at = None;
        let before = starts(&sim);
        let report = back(&plan, &sim, &mut journal).await.unwrap();
        let context = format!("killed at {limit}: {:?}", report.end);
        assert_eq!((&report.end, report.exit_code()), (&RunEnd::TakenBack, 0), "{context}");
        assert!(texts_of(&sim).iter().all(|it| *it == texts("old").digest()), "{context}");
        // No build tells whether a window that was next had begun; any other node starts again only if it had started.
        let may_have_begun =
            matches!(&undisturbed.entries[limit], Entry::Started { step: Step::Window { .. } });
        for (id, n) in starts(&sim) {
            let may = n == 2 * before[&id] || may_have_begun && n <= 2;
            assert!(may, "{context}: {id} {n}");
        }
        assert_eq!(sim.is_settled(), Vec::<String>::new(), "{context}");
    }
}

#[tokio::test]
async fn a_restart_that_is_taken_back_starts_nothing_more_and_leaves_nothing_paused_or_evicted() {
    let shape = old_version();
    let whole = Sim::new(&shape, 1);
    let plan = planned(&whole, &shape, Kind::Restart, &quick()).await;
    let mut undisturbed = MemoryJournal::default();
    go(&plan, &whole, &mut undisturbed).await.unwrap();
    for limit in 1..undisturbed.entries.len() {
        let sim = Sim::new(&shape, 1);
        let mut journal = MemoryJournal { killed_at: Some(limit), ..MemoryJournal::default() };
        go(&plan, &sim, &mut journal).await.unwrap_err();
        journal.killed_at = None;
        let before = starts(&sim);
        let report = back(&plan, &sim, &mut journal).await.unwrap();
        let context = format!("killed at {limit}: {:?}", report.end);
        assert_eq!((&report.end, report.exit_code()), (&RunEnd::TakenBack, 0), "{context}");
        assert_eq!(starts(&sim), before, "{context}");
        assert_eq!(sim.is_settled(), Vec::<String>::new(), "{context}");
    }
}

#[tokio::test]
async fn a_node_that_does_not_come_back_from_a_restart_is_left_and_no_other_one_is_restarted() {
    for on_failure in [OnFailure::RollbackNode, OnFailure::RollbackAll, OnFailure::Stop] {
        let sim = Sim::new(&SMALL, 1);
        let plan = planned(&sim, &SMALL, Kind::Restart, &Policy { on_failure, ..quick() }).await;
        let bad = id("h2:8262");
        let mut is_open = false;
        let report = go_and(&plan, &sim, |step| {
            if matches!(step, Step::Window { instance, .. } if *instance == bad) {
                is_open = true;
                let mut state = sim.state.lock().unwrap();
                state.bad_texts = Some(state.nodes[&bad].texts.clone());
            }
        })
        .await;
        assert!(is_open);
        assert!(matches!(report.end, RunEnd::Failed { .. }), "{:?}", report.end);
        assert_eq!(report.exit_code(), 6);
        let ends: BTreeMap<_, _> =
            report.instances.iter().map(|(id, part)| (id.clone(), part.end)).collect();
        assert_eq!(ends[&bad], InstanceEnd::Left);
        let after = plan.turns.iter().skip_while(|turn| turn.instance != bad).skip(1);
        for turn in after {
            assert_eq!(ends[&turn.instance], InstanceEnd::Untouched);
        }
        assert_eq!(sim.is_settled(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_node_that_runs_another_build_than_lies_there_is_no_node_to_restart() {
    let sim = Sim::new(&SMALL, 1);
    let first = sim.instances()[0].id.clone();
    sim.state.lock().unwrap().nodes.get_mut(&first).unwrap().live = crate::new(Role::DmMaster);
    let decision = decided(&sim, &SMALL, Kind::Restart, &quick()).await;
    let Decision::Blocked(blockers) = decision else { panic!("{decision:?}") };
    let codes: Vec<_> = blockers.iter().map(|blocker| blocker.code()).collect();
    assert_eq!(codes, ["drift"]);
}

#[tokio::test]
async fn nothing_of_a_restart_arms_a_guard_or_marks_a_node() {
    let sim = Sim::new(&SMALL, 1);
    let plan = planned(&sim, &SMALL, Kind::Restart, &quick()).await;
    let mut journal = MemoryJournal::default();
    go(&plan, &sim, &mut journal).await.unwrap();
    let is_one = |entry: &Entry| {
        let (Entry::Started { step } | Entry::Done { step, .. }) = entry else { return false };
        matches!(step, Step::ArmGuard { .. } | Step::DisarmGuard { .. } | Step::MarkPatched { .. })
    };
    assert!(!journal.entries.iter().any(is_one));
    let mut heard = Vec::new();
    let cancel = tokio_util::sync::CancellationToken::new();
    let again = Sim::new(&SMALL, 1);
    dmup_exec::execute(
        &plan,
        crate::reach(&again),
        &mut MemoryJournal::default(),
        &mut |event| {
            if let Event::StepEnds { step: Step::Window { .. }, note, .. } = event {
                heard.extend(note);
            }
        },
        &cancel,
    )
    .await
    .unwrap();
    assert_eq!(heard.len(), plan.turns.len());
    assert!(heard.iter().all(|note| !note.contains("exchange")), "{heard:?}");
}
