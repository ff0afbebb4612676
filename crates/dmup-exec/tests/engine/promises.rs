//! Promises of the executor that the other stories would not miss: what hosts and people did while nobody looked is believed.

use dmup_core::ids::{SourceId, TaskName};
use dmup_core::instance::Role;
use dmup_core::inventory::SubtaskStage;
use dmup_core::journal::Entry;
use dmup_core::plan::{Plan, Step};
use dmup_core::report::{InstanceEnd, Report, RunEnd};
use dmup_exec::{Event, MemoryJournal, execute, resume};
use tokio_util::sync::CancellationToken;

use crate::sim::{Behaviour, Sim, id, old};
use crate::{SMALL, all_new, all_old, go, go_and, go_on, old_version, plan, reach};

/// A run that was killed right after it wrote down that the first such step holds.
async fn killed_after(plan: &Plan, wanted: fn(&Step) -> bool) -> (Sim, MemoryJournal) {
    let undisturbed = Sim::new(&SMALL, 1);
    let mut whole = MemoryJournal::default();
    go(plan, &undisturbed, &mut whole).await.unwrap();
    let is_it = |entry: &Entry| matches!(entry, Entry::Done { step, .. } if wanted(step));
    let at = whole.entries.iter().position(is_it).unwrap();
    let sim = Sim::new(&SMALL, 1);
    let mut journal = MemoryJournal { killed_at: Some(at + 1), ..MemoryJournal::default() };
    go(plan, &sim, &mut journal).await.unwrap_err();
    journal.killed_at = None;
    (sim, journal)
}

#[tokio::test]
async fn a_node_with_the_new_build_whose_guard_cannot_be_armed_again_goes_back() {
    let plan = plan(&Sim::new(&SMALL, 1), &SMALL).await;
    let first = plan.turns[0].instance.clone();
    let (sim, mut journal) = killed_after(&plan, |s| matches!(s, Step::Window { .. })).await;
    assert!(!all_old(&sim));
    sim.state.lock().unwrap().unguarded = Some(first);
    let report = go_on(&plan, &sim, &mut journal).await.unwrap();
    assert!(matches!(report.end, RunEnd::RolledBackNode { .. }), "{:?}", report.end);
    assert_eq!(report.exit_code(), 5);
    assert!(all_old(&sim));
    assert_eq!(sim.is_settled(), Vec::<String>::new());
}

#[tokio::test]
async fn a_node_that_somebody_put_back_after_its_guard_was_disarmed_has_its_turn_again() {
    let plan = plan(&Sim::new(&SMALL, 1), &SMALL).await;
    let first = plan.turns[0].instance.clone();
    let (sim, mut journal) = killed_after(&plan, |s| matches!(s, Step::DisarmGuard { .. })).await;
    {
        let mut state = sim.state.lock().unwrap();
        let node = state.nodes.get_mut(&first).unwrap();
        let new = std::mem::replace(&mut node.live, old());
        (node.staged, node.running, node.pid) = (Some(new), Some(old()), Some(99));
    }
    let report = go_on(&plan, &sim, &mut journal).await.unwrap();
    assert_eq!(report.end, RunEnd::Done);
    assert!(all_new(&sim), "{:?}", sim.builds());
    assert_eq!(sim.is_settled(), Vec::<String>::new());
}

#[tokio::test]
async fn a_task_that_a_person_pauses_right_before_we_would_is_left_to_that_person() {
    let shape = old_version();
    for source in ["s1", "s2"] {
        let sim = Sim::new(&shape, 1);
        let plan = plan(&sim, &shape).await;
        let mut is_paused = false;
        let report = go_and(&plan, &sim, |step| {
            if let Step::PauseSubtask { source: ours, .. } = step
                && ours.as_str() == source
            {
                is_paused = sim.person_pauses(source);
            }
        })
        .await;
        assert!(is_paused, "{:?}", report.end);
        // Also: nobody has resumed it.
        assert_eq!(sim.is_settled(), Vec::<String>::new(), "{source}: {:?}", report.end);
    }
}

#[tokio::test]
async fn a_task_that_a_person_pauses_while_a_node_is_watched_stays_so_and_does_not_count_against_the_build()
 {
    for shape in [SMALL, old_version()] {
        let at: [fn(&Step) -> bool; 3] = [
            |step| matches!(step, Step::AwaitHealthy { .. }),
            |step| matches!(step, Step::Soak { .. }),
            |step| matches!(step, Step::ArmGuard { .. }),
        ];
        for meant in at {
            let sim = Sim::new(&shape, 1);
            let plan = plan(&sim, &shape).await;
            let mut has_paused = false;
            let report = go_and(&plan, &sim, |step| {
                if meant(step) && !has_paused {
                    has_paused = sim.person_pauses("s1");
                }
            })
            .await;
            assert!(has_paused);
            assert_eq!(report.end, RunEnd::Done);
            assert!(all_new(&sim));
            // Also: nobody has resumed it.
            assert_eq!(sim.is_settled(), Vec::<String>::new());
            let said = "task t1 on source s1 was paused by somebody meanwhile: it is left so";
            assert_eq!(report.notes.iter().filter(|note| *note == said).count(), 1);
        }
    }
}

#[tokio::test]
async fn a_task_that_a_person_stops_is_no_longer_asked_for_and_does_not_count_against_the_build() {
    for shape in [SMALL, old_version()] {
        // While it is paused for us: `waits`.
        let at: [fn(&Step) -> bool; 3] = [
            |step| matches!(step, Step::Window { .. }),
            |step| matches!(step, Step::AwaitHealthy { .. }),
            |step| matches!(step, Step::Soak { .. }),
        ];
        for (index, meant) in at.into_iter().enumerate() {
            let sim = Sim::new(&shape, 1);
            let plan = plan(&sim, &shape).await;
            let mut has_stopped = false;
            let report = go_and(&plan, &sim, |step| {
                if meant(step) && !has_stopped {
                    sim.person_stops("s1");
                    has_stopped = true;
                }
            })
            .await;
            assert!(has_stopped);
            assert_eq!(report.end, RunEnd::Done, "{index} {}", shape.version);
            assert!(all_new(&sim));
            assert_eq!(sim.is_settled(), Vec::<String>::new());
        }
    }
}

#[tokio::test]
async fn a_task_that_the_masters_know_and_its_worker_does_not_run_counts_against_the_build() {
    let sim = Sim::new(&SMALL, 1);
    let plan = plan(&sim, &SMALL).await;
    let report = go_and(&plan, &sim, |step| {
        if matches!(step, Step::Soak { .. }) {
            sim.lose_task("s1");
        }
    })
    .await;
    let why = match &report.end {
        RunEnd::RolledBackNode { why, .. } | RunEnd::Failed { why } => why,
        other => panic!("{other:?}"),
    };
    assert!(why.contains("nobody answers for task t1 on source s1"), "{why}");
}

#[tokio::test]
async fn a_task_that_dm_pauses_since_it_has_an_error_counts_against_the_build() {
    let sim = Sim::new(&SMALL, 1);
    let plan = plan(&sim, &SMALL).await;
    let key = (TaskName::new("t1").unwrap(), SourceId::new("s1").unwrap());
    let report = go_and(&plan, &sim, |step| {
        if matches!(step, Step::Soak { .. }) {
            let mut state = sim.state.lock().unwrap();
            state.subtasks.insert(key.clone(), SubtaskStage::Paused);
            state.errors.insert(key.clone(), "Duplicate entry".into());
        }
    })
    .await;
    let RunEnd::RolledBackNode { why, .. } = &report.end else { panic!("{:?}", report.end) };
    assert!(why.contains("is Paused, was Running"), "{why}");
    assert!(all_old(&sim));
    assert_eq!(report.notes, Vec::<String>::new());
}

#[tokio::test]
async fn no_worker_is_stopped_before_what_was_paused_for_it_runs_elsewhere() {
    let shape = old_version();
    let sim = Sim::new(&shape, 1);
    let plan = plan(&sim, &shape).await;
    sim.state.lock().unwrap().resumes = false;
    let report = go(&plan, &sim, &mut MemoryJournal::default()).await.unwrap();
    let RunEnd::Failed { why } = &report.end else { panic!("{:?}", report.end) };
    assert!(why.contains("resume task t1 on source s1: it is Paused"), "{why}");
    assert_eq!(sim.builds()[&id("h1:8262")], (old(), Some(old())));
    assert_eq!(report.notes, Vec::<String>::new());
}

#[tokio::test]
async fn a_process_that_begins_as_the_shell_of_its_run_script_is_looked_at_again() {
    let sim = Sim::new(&SMALL, 1);
    let plan = plan(&sim, &SMALL).await;
    {
        let mut state = sim.state.lock().unwrap();
        for role in [Role::DmMaster, Role::DmWorker, Role::Prometheus] {
            state.behaviours.insert(crate::new(role), Behaviour::BeginsAsShell(2));
        }
    }
    let report = go(&plan, &sim, &mut MemoryJournal::default()).await.unwrap();
    assert_eq!(report.end, RunEnd::Done);
    assert!(all_new(&sim));
    assert_eq!(sim.is_settled(), Vec::<String>::new());
}

#[tokio::test]
async fn a_resumed_run_tells_of_every_node_how_long_it_was_away() {
    let plan = plan(&Sim::new(&SMALL, 1), &SMALL).await;
    let whole = go(&plan, &Sim::new(&SMALL, 1), &mut MemoryJournal::default()).await.unwrap();
    let away = |report: &Report| -> Vec<_> {
        report.instances.iter().map(|(id, part)| (id.clone(), part.away)).collect()
    };
    assert!(away(&whole).iter().all(|(_, away)| away.down_ms > 0));
    let at: [fn(&Step) -> bool; 2] =
        [|s| matches!(s, Step::Window { .. }), |s| matches!(s, Step::DisarmGuard { .. })];
    for meant in at {
        let (sim, mut journal) = killed_after(&plan, meant).await;
        let report = go_on(&plan, &sim, &mut journal).await.unwrap();
        assert_eq!(report.end, RunEnd::Done);
        assert_eq!(away(&report), away(&whole));
    }
}

#[tokio::test]
async fn a_resumed_run_that_is_interrupted_at_once_still_finishes_the_node_under_way() {
    let plan = plan(&Sim::new(&SMALL, 1), &SMALL).await;
    let (sim, mut journal) = killed_after(&plan, |s| matches!(s, Step::Window { .. })).await;
    let past = crate::lines(&journal.entries);
    let cancel = CancellationToken::new();
    cancel.cancel();
    let report =
        resume(&plan, &past, reach(&sim), &mut journal, &mut |_| {}, &cancel).await.unwrap();
    assert_eq!(report.end, RunEnd::Interrupted);
    let ends: Vec<InstanceEnd> = report.instances.iter().map(|(_, part)| part.end).collect();
    assert_eq!(ends[..2], [InstanceEnd::Changed, InstanceEnd::Untouched]);
    assert_eq!(sim.is_settled(), Vec::<String>::new());
}

#[tokio::test]
async fn what_was_done_before_the_guard_is_not_done_again() {
    let plan = plan(&Sim::new(&SMALL, 1), &SMALL).await;
    let (sim, mut journal) =
        killed_after(&plan, |s| matches!(s, Step::AwaitNewLeader { .. })).await;
    let past = crate::lines(&journal.entries);
    let mut again = Vec::new();
    let mut watch = |event: Event| {
        if let Event::StepBegins { step } = event {
            again.push(step);
        }
    };
    let cancel = CancellationToken::new();
    let report =
        resume(&plan, &past, reach(&sim), &mut journal, &mut watch, &cancel).await.unwrap();
    assert_eq!(report.end, RunEnd::Done);
    assert!(matches!(again[0], Step::ArmGuard { .. }), "{:?}", again[0]);
}

#[tokio::test]
async fn a_host_that_refuses_is_not_asked_again() {
    let sim = Sim::new(&SMALL, 1);
    let plan = plan(&sim, &SMALL).await;
    let first = plan.turns[0].instance.clone();
    sim.state.lock().unwrap().unguarded = Some(first);
    let asked = || sim.state.lock().unwrap().effects;
    let (mut before, mut after) = (None, None);
    let mut watch = |event: Event| match event {
        Event::StepBegins { step: Step::ArmGuard { .. } } => before = Some(asked()),
        Event::StepFails { step: Step::ArmGuard { .. }, .. } => after = Some(asked()),
        _ => {}
    };
    let mut journal = MemoryJournal::default();
    let cancel = CancellationToken::new();
    let report: Report =
        execute(&plan, reach(&sim), &mut journal, &mut watch, &cancel).await.unwrap();
    assert!(matches!(report.end, RunEnd::Failed { .. }), "{:?}", report.end);
    assert_eq!(after.unwrap() - before.unwrap(), 1);
}
