//! `--offline`: builds are exchanged while nothing runs, and nothing is started.

use std::collections::BTreeSet;

use dmup_core::plan::{Decision, Plan, Step, plan_hotfix};
use dmup_core::policy::Policy;
use dmup_core::report::{InstanceEnd, RunEnd};
use dmup_exec::{MemoryJournal, look};

use crate::sim::{Sim, new, old};
use crate::{SMALL, go, go_and};

async fn stopped() -> (Sim, Plan) {
    let sim = Sim::new(&SMALL, 1);
    {
        let mut state = sim.state.lock().unwrap();
        for node in state.nodes.values_mut() {
            (node.running, node.pid) = (None, None);
        }
        state.leader = None;
    }
    let inventory = look(&sim.instances(), &sim, &sim, &sim, true, false, 4).await;
    let mut request = sim.request(&SMALL);
    request.offline = true;
    match plan_hotfix(&request, &inventory, &Policy::default()) {
        Decision::Go(plan) => (sim, *plan),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn builds_are_exchanged_nothing_is_started_and_nobody_of_dm_is_asked() {
    let (sim, plan) = stopped().await;
    let report = go(&plan, &sim, &mut MemoryJournal::default()).await.unwrap();
    assert_eq!((&report.end, report.exit_code()), (&RunEnd::Done, 0));
    for instance in sim.instances() {
        assert_eq!(sim.builds()[&instance.id], (new(instance.role), None));
    }
    assert_eq!(sim.violations(), Vec::<String>::new());
    let state = sim.state.lock().unwrap();
    assert_eq!((state.asked.len(), state.arms.len()), (0, 0));
    assert!(state.nodes.values().all(|node| node.starts == 0));
}

#[tokio::test]
async fn a_node_that_somebody_has_started_meanwhile_is_not_exchanged() {
    let (sim, plan) = stopped().await;
    let second = plan.turns[1].instance.clone();
    let report = go_and(&plan, &sim, |step| {
        if matches!(step, Step::Window { instance, .. } if *instance == second) {
            let mut state = sim.state.lock().unwrap();
            let node = state.nodes.get_mut(&second).unwrap();
            (node.running, node.pid) = (Some(old()), Some(99));
        }
    })
    .await;
    let RunEnd::Failed { why } = &report.end else { panic!("{:?}", report.end) };
    assert!(why.contains("it runs"), "{why}");
    let ends: Vec<InstanceEnd> = report.instances.iter().map(|(_, part)| part.end).collect();
    assert_eq!(ends[..2], [InstanceEnd::Changed, InstanceEnd::Untouched]);
    let rest: BTreeSet<_> = ends[2..].iter().map(|end| format!("{end:?}")).collect();
    assert_eq!(rest, ["Untouched".to_owned()].into());
    assert_eq!(sim.builds()[&second], (old(), Some(old())));
}

#[tokio::test]
async fn a_node_that_was_exchanged_and_not_recorded_is_said_to_be_left_so() {
    let (sim, plan) = stopped().await;
    sim.state.lock().unwrap().has_no_records = true;
    let report = go(&plan, &sim, &mut MemoryJournal::default()).await.unwrap();
    assert!(matches!(report.end, RunEnd::Failed { .. }), "{:?}", report.end);
    let (first, part) = &report.instances[0];
    assert_eq!(part.end, InstanceEnd::Left);
    let role = plan.instance(first).unwrap().role;
    assert_eq!(sim.builds()[first], (new(role), None));
    assert_eq!(sim.state.lock().unwrap().windows, 1);
}
