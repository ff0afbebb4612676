//! What gates and waits ask for, whom they ask, and what they say meanwhile.

use std::collections::BTreeSet;
use std::time::Duration;

use dmup_core::ids::{SourceId, TaskName};
use dmup_core::instance::Role;
use dmup_core::plan::{Decision, Step, plan_hotfix};
use dmup_core::policy::{BatchSize, Policy};
use dmup_core::report::RunEnd;
use dmup_exec::ports::Clock;
use dmup_exec::{Event, MemoryJournal, execute, look, resume};
use tokio_util::sync::CancellationToken;

use crate::sim::{Behaviour, Shape, Side, Sim, id, new, old};
use crate::{MANY, SMALL, all_new, decide, go, go_and, lines, plan, reach};

#[tokio::test]
async fn what_a_node_of_a_batch_waits_for_is_told_once_and_with_its_name() {
    let sim = Sim::new(&MANY, 1);
    for role in [Role::DmMaster, Role::DmWorker] {
        sim.state.lock().unwrap().behaviours.insert(new(role), Behaviour::BeginsAsShell(2));
    }
    let policy = Policy { batches: vec![BatchSize::Percent(100)], ..Policy::default() };
    let Decision::Go(plan) = decide(&sim, &MANY, &policy).await else { panic!() };
    let (mut waited, mut said) = (BTreeSet::new(), BTreeSet::new());
    let mut watch = |event: Event| {
        if let Event::Waiting { instance, step, missing } = event {
            assert_eq!(step.instance(), Some(&instance));
            assert!(said.insert((instance.clone(), missing.clone())), "{instance}: {missing:?}");
            waited.insert(instance);
        }
    };
    let (mut journal, cancel) = (MemoryJournal::default(), CancellationToken::new());
    let report = execute(&plan, reach(&sim), &mut journal, &mut watch, &cancel).await.unwrap();
    assert_eq!(report.end, RunEnd::Done);
    let all: BTreeSet<_> = plan.turns.iter().map(|turn| turn.instance.clone()).collect();
    assert_eq!(waited, all);
}

#[tokio::test]
async fn only_a_dm_process_that_is_well_otherwise_is_asked_for_its_build() {
    let sim = Sim::new(&SMALL, 1);
    let plan = plan(&sim, &SMALL).await;
    for role in [Role::DmMaster, Role::DmWorker] {
        sim.state.lock().unwrap().behaviours.insert(new(role), Behaviour::BeginsAsShell(2));
    }
    let report = go(&plan, &sim, &mut MemoryJournal::default()).await.unwrap();
    assert_eq!(report.end, RunEnd::Done);
    let state = sim.state.lock().unwrap();
    let asked: BTreeSet<_> = state.asked.iter().cloned().collect();
    let all_of_dm = sim_nodes(&state).filter(|(_, role)| role.is_dm());
    assert_eq!(asked, all_of_dm.map(|(id, _)| (id, false)).collect());
}

fn sim_nodes(
    state: &crate::sim::State,
) -> impl Iterator<Item = (dmup_core::ids::InstanceId, Role)> {
    state.nodes.values().map(|node| (node.instance.id.clone(), node.instance.role))
}

#[tokio::test]
async fn one_thing_that_is_missing_for_a_moment_begins_the_soak_anew() {
    let sim = Sim::new(&SMALL, 1);
    let policy = Policy { soak_s: 10, ..Policy::default() };
    let Decision::Go(plan) = decide(&sim, &SMALL, &policy).await else { panic!() };
    let (first, other) = (plan.turns[0].instance.clone(), plan.turns[1].instance.clone());
    let (mut begun, mut ended) = (None, None);
    let mut watch = |event: Event| {
        let now = Clock::elapsed(&sim);
        let mut state = sim.state.lock().unwrap();
        match event {
            Event::StepBegins { step: Step::Soak { instance, .. } } if instance == first => {
                begun = Some(now);
                state.ill_at = Some((now + Duration::from_secs(7), other.clone()));
            }
            Event::Waiting { missing, .. } => {
                assert_eq!(missing.len(), 1, "{missing:?}");
                state.ill = None;
            }
            Event::StepEnds { step: Step::Soak { instance, .. }, .. } if instance == first => {
                ended = Some(now);
            }
            _ => {}
        }
    };
    let (mut journal, cancel) = (MemoryJournal::default(), CancellationToken::new());
    let report = execute(&plan, reach(&sim), &mut journal, &mut watch, &cancel).await.unwrap();
    assert_eq!(report.end, RunEnd::Done);
    assert!(ended.unwrap() - begun.unwrap() >= Duration::from_secs(17));
}

#[tokio::test]
async fn a_build_of_another_commit_is_not_the_one_that_was_prepared() {
    let sim = Sim::new(&SMALL, 1);
    let other = Behaviour::HasOtherCommit;
    sim.state.lock().unwrap().behaviours.insert(new(Role::DmMaster), other);
    let plan = plan(&sim, &SMALL).await;
    let report = go(&plan, &sim, &mut MemoryJournal::default()).await.unwrap();
    let RunEnd::RolledBackNode { why, .. } = &report.end else { panic!("{:?}", report.end) };
    assert!(why.contains("calls itself"), "{why}");
}

#[tokio::test]
async fn an_error_before_a_turn_is_compared_with_the_same_task_and_source() {
    let key = |source| (TaskName::new("t1").unwrap(), SourceId::new(source).unwrap());
    let sim = Sim::new(&SMALL, 1);
    sim.state.lock().unwrap().errors.insert(key("s1"), "known before".into());
    let inventory = look(&sim.instances(), &sim, &sim, &sim, true, true, 4).await;
    let mut request = sim.request(&SMALL);
    request.allow.force = true;
    let policy = Policy { soak_s: 0, ..Policy::default() };
    let Decision::Go(plan) = plan_hotfix(&request, &inventory, &policy) else { panic!() };
    let report = go_and(&plan, &sim, |step| {
        if matches!(step, Step::DisarmGuard { .. }) {
            sim.state.lock().unwrap().errors.insert(key("s2"), "Duplicate entry".into());
        }
    })
    .await;
    let RunEnd::Failed { why } = &report.end else { panic!("{:?}", report.end) };
    assert!(why.contains("task t1 on source s2 has an error: Duplicate entry"), "{why}");
    assert!(!why.contains("known before"), "{why}");
    assert_eq!(sim.state.lock().unwrap().windows, 1);
}

#[tokio::test]
async fn the_turn_of_a_master_waits_for_no_worker() {
    let sim = Sim::new(&SMALL, 1);
    let plan = plan(&sim, &SMALL).await;
    let mut waits = Vec::new();
    let mut is_killed = false;
    let mut watch = |event: Event| match event {
        Event::StepBegins { step: Step::ArmGuard { .. } } if !is_killed => {
            is_killed = true;
            sim.kill_unnoticed(&id("h3:8262"), Duration::from_secs(15));
        }
        Event::Waiting { step: step @ Step::Window { .. }, .. } => waits.push(step),
        _ => {}
    };
    let (mut journal, cancel) = (MemoryJournal::default(), CancellationToken::new());
    let report = execute(&plan, reach(&sim), &mut journal, &mut watch, &cancel).await.unwrap();
    assert_eq!(report.end, RunEnd::Done);
    assert!(is_killed && all_new(&sim));
    assert_eq!(waits, []);
}

#[tokio::test]
async fn a_source_whose_spare_dies_while_its_tasks_stand_goes_to_another_one_at_once() {
    let shape = Shape { workers: 4, version: "v5.3.0", ..SMALL };
    let sim = Sim::new(&shape, 1);
    let plan = plan(&sim, &shape).await;
    let source = SourceId::new("s1").unwrap();
    let meant = plan.turns.iter().flat_map(|turn| &turn.steps).find_map(|step| match step {
        Step::Transfer { source: moved, to, .. } if *moved == source => Some(to.clone()),
        _ => None,
    });
    let meant = meant.unwrap();
    let spare = sim.instances().into_iter().find(|instance| instance.name == meant).unwrap().id;
    let (mut waits, mut taken) = (Vec::new(), None);
    let mut watch = |event: Event| match event {
        Event::StepBegins { step: Step::AwaitPaused { source: paused, .. } }
            if paused == source && taken.is_none() =>
        {
            sim.kill_unnoticed(&spare, Duration::from_secs(15));
        }
        Event::Waiting { step: step @ Step::Transfer { .. }, .. } => waits.push(step),
        Event::StepEnds { step: Step::Transfer { source: moved, .. }, note, .. }
            if moved == source =>
        {
            let at = sim.state.lock().unwrap().sources[&source].clone();
            taken.get_or_insert((at, note));
        }
        _ => {}
    };
    let (mut journal, cancel) = (MemoryJournal::default(), CancellationToken::new());
    let report = execute(&plan, reach(&sim), &mut journal, &mut watch, &cancel).await.unwrap();
    assert_eq!(report.end, RunEnd::Done);
    assert!(all_new(&sim));
    assert_eq!(sim.is_settled(), Vec::<String>::new());
    assert_eq!(waits, []);
    let (at, note) = taken.unwrap();
    assert!(at != Some(spare) && at != Some(id("h1:8262")), "{at:?}");
    assert!(note.clone().unwrap().ends_with(&format!("as {meant} is not up")), "{note:?}");
}

#[tokio::test]
async fn a_run_killed_around_a_transfer_to_another_spare_does_not_move_the_source_again() {
    let shape = Shape { workers: 4, version: "v5.3.0", ..SMALL };
    let plan = plan(&Sim::new(&shape, 1), &shape).await;
    let source = SourceId::new("s1").unwrap();
    let is_it =
        |step: &Step| matches!(step, Step::Transfer { source: moved, .. } if *moved == source);
    let sim = Sim::new(&shape, 1);
    let mut journal = MemoryJournal::default();
    let cancel = CancellationToken::new();
    let spare = id("h3:8262");
    let mut watch = |event: Event| {
        if let Event::StepBegins { step } = &event
            && is_it(step)
        {
            sim.kill_unnoticed(&spare, Duration::from_secs(15));
            let mut state = sim.state.lock().unwrap();
            state.dies_at = Some((state.effects + 1, Side::After));
        }
    };
    tokio::select! {
        () = sim.death() => {}
        ended = execute(&plan, reach(&sim), &mut journal, &mut watch, &cancel) => panic!("{ended:?}"),
    }
    sim.revive();
    // The one that was meant is up again.
    sim.pass(Duration::from_secs(60));
    let at = sim.state.lock().unwrap().sources[&source].clone();
    let mut after = None;
    let past = lines(&journal.entries);
    let mut watch = |event: Event| {
        if let Event::StepEnds { step, .. } = &event
            && is_it(step)
        {
            after = sim.state.lock().unwrap().sources[&source].clone();
        }
    };
    let report =
        resume(&plan, &past, reach(&sim), &mut journal, &mut watch, &cancel).await.unwrap();
    assert_eq!(report.end, RunEnd::Done);
    assert!(at.is_some() && at != Some(spare) && at != Some(id("h1:8262")), "{at:?}");
    assert_eq!(after, at);
    assert_eq!(sim.is_settled(), Vec::<String>::new());
}

#[tokio::test]
async fn a_source_goes_to_the_worker_that_is_meant_while_that_is_up() {
    let shape = Shape { workers: 4, version: "v5.3.0", ..SMALL };
    let sim = Sim::new(&shape, 1);
    let plan = plan(&sim, &shape).await;
    let mut moved = 0;
    let mut watch = |event: Event| {
        if let Event::StepEnds { step: Step::Transfer { source, to, .. }, note, .. } = event {
            let state = sim.state.lock().unwrap();
            let at = state.sources[&source].as_ref().map(|id| &state.nodes[id].instance.name);
            assert_eq!((at, note), (Some(&to), None));
            moved += 1;
        }
    };
    let (mut journal, cancel) = (MemoryJournal::default(), CancellationToken::new());
    let report = execute(&plan, reach(&sim), &mut journal, &mut watch, &cancel).await.unwrap();
    assert_eq!((report.end, moved), (RunEnd::Done, 2));
}

#[tokio::test]
async fn a_node_that_was_broken_before_owes_no_health_when_it_goes_back() {
    let sim = Sim::new(&SMALL, 1);
    sim.break_node(&id("h3:8262"));
    let bad = Behaviour::ExitsAtStart;
    sim.state.lock().unwrap().behaviours.insert(new(Role::DmWorker), bad);
    let inventory = look(&sim.instances(), &sim, &sim, &sim, true, true, 4).await;
    let mut request = sim.request(&SMALL);
    request.allow.include_down = true;
    let policy = Policy { healthy_within_s: 20, ..Policy::default() };
    let Decision::Go(plan) = plan_hotfix(&request, &inventory, &policy) else { panic!() };
    let report = go_and(&plan, &sim, |step| {
        if matches!(step, Step::AwaitHealthy { .. }) {
            // As long as this is so, nobody passes a gate.
            sim.state.lock().unwrap().ill = Some(id("h2:8261"));
        }
    })
    .await;
    let RunEnd::RolledBackNode { why, .. } = &report.end else { panic!("{:?}", report.end) };
    assert!(!why.contains("etcd"), "{why}");
    assert_eq!(sim.builds()[&id("h3:8262")], (old(), Some(old())));
}
