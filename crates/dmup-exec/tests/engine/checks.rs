//! New configurations of monitoring: judged before anything is restarted, and what comes of one that is refused.

use std::time::Duration;

use dmup_core::ids::{ClusterName, InstanceId};
use dmup_core::instance::{Instance, Role};
use dmup_core::plan::{
    Allowances, Decision, ParcelSpec, Plan, Purpose, RestartRequest, plan_hotfix, plan_restart,
};
use dmup_core::report::{InstanceEnd, Report, RunEnd};
use dmup_core::texts::{Text, Texts, TextsChange};
use dmup_exec::ports::Tree;
use dmup_exec::{MemoryJournal, look};

use crate::restarts::quick;
use crate::sim::{Side, Sim, digest, id, new};
use crate::{SMALL, back, dead_at, go, go_on};

const PROMETHEUS: &str = "h1:9090";

fn config(instance: &Instance, content: &str) -> Texts {
    let path = instance.deploy_dir.join(format!("conf/{}.yml", instance.role));
    Texts(vec![Text { path, mode: 0o644, root: false, content: content.to_owned() }])
}

/// Every instance gets another configuration; that of Prometheus is a bad one.
fn changes(sim: &Sim) -> Vec<(InstanceId, TextsChange)> {
    let instances = sim.instances();
    let mut state = sim.state.lock().unwrap();
    let mut changes = Vec::new();
    for instance in &instances {
        let (before, after) = (config(instance, "old"), config(instance, "new"));
        state.nodes.get_mut(&instance.id).unwrap().texts = before.digest();
        let (before, paths) = (before.digest(), vec![after.0[0].path.clone()]);
        if instance.id.as_str() == PROMETHEUS {
            state.bad_texts = Some(after.digest());
        }
        state.texts.insert(before.clone(), config(instance, "old"));
        state.texts.insert(after.digest(), after.clone());
        let change = TextsChange { before, after: after.digest(), paths };
        changes.push((instance.id.clone(), change));
    }
    changes
}

async fn reload(sim: &Sim, is_meant: fn(Role) -> bool) -> Plan {
    let changes = changes(sim);
    let instances = sim.instances();
    let role = |id: &InstanceId| instances.iter().find(|it| it.id == *id).unwrap().role;
    let request = RestartRequest {
        cluster: ClusterName::new("prod").unwrap(),
        version: SMALL.version.parse().unwrap(),
        targets: changes
            .into_iter()
            .filter(|(id, _)| is_meant(role(id)))
            .map(|(id, change)| (id, Some(change)))
            .collect(),
        instances: instances.clone(),
        is_reload: true,
        allow: Allowances::default(),
    };
    let inventory = look(&instances, sim, sim, sim, true, true, 4).await;
    match plan_restart(&request, &inventory, &quick()) {
        Decision::Go(plan) => *plan,
        other => panic!("{other:?}"),
    }
}

async fn upgrade(sim: &Sim) -> Plan {
    let mut request = sim.request(&SMALL);
    let texts = changes(sim).into_iter().collect();
    request.purpose = Purpose::Upgrade { to: "v8.5.0".parse().unwrap(), texts };
    let parcel = request.parcel.take().unwrap();
    for (role, target) in &mut request.targets {
        let digest = digest(role.as_str());
        target.parcel = Some(digest.clone());
        request.parcels.push(ParcelSpec { digest, ..parcel.clone() });
    }
    let inventory = look(&request.instances, sim, sim, sim, true, true, 4).await;
    match plan_hotfix(&request, &inventory, &quick()) {
        Decision::Go(plan) => *plan,
        other => panic!("{other:?}"),
    }
}

/// The instances that do not have their new configuration, and those that were started again.
fn as_before(sim: &Sim) -> (Vec<String>, usize) {
    let state = sim.state.lock().unwrap();
    let has_old = |(id, node): &(&InstanceId, &crate::sim::Node)| {
        (node.texts == config(&node.instance, "old").digest()).then(|| id.to_string())
    };
    let old = state.nodes.iter().filter_map(|it| has_old(&it)).collect();
    (old, state.nodes.values().filter(|node| node.starts > 0).count())
}

fn end_of(report: &Report, id: &str) -> InstanceEnd {
    report.instances.iter().find(|(it, _)| it.as_str() == id).unwrap().1.end
}

fn judged(sim: &Sim) -> Vec<(InstanceId, Tree)> {
    let mut judged = sim.state.lock().unwrap().judged.clone();
    judged.sort_by(|one, other| one.0.cmp(&other.0));
    judged.dedup();
    judged
}

#[tokio::test]
async fn a_refused_configuration_ends_a_reload_of_monitoring_before_anything_is_restarted() {
    let sim = Sim::new(&SMALL, 1);
    let plan = reload(&sim, |role| !role.is_dm()).await;
    let report = go(&plan, &sim, &mut MemoryJournal::default()).await.unwrap();
    let RunEnd::Failed { why } = &report.end else { panic!("{:?}", report.end) };
    assert!(why.contains("promtool: FAILED"), "{why}");
    assert_eq!(report.exit_code(), 1);
    let all = sim.instances().len();
    let (old, started) = as_before(&sim);
    assert_eq!((old.len(), started), (all, 0));
    assert_eq!(judged(&sim), [(id(PROMETHEUS), Tree::Live), (id("h1:9093"), Tree::Live)]);
    assert_eq!(sim.is_settled(), Vec::<String>::new());
}

#[tokio::test]
async fn a_refused_configuration_is_told_where_a_run_is_for_dm_and_that_node_stays_as_it_is() {
    for is_upgrade in [false, true] {
        let sim = Sim::new(&SMALL, 1);
        let plan = if is_upgrade { upgrade(&sim).await } else { reload(&sim, |_| true).await };
        let report = go(&plan, &sim, &mut MemoryJournal::default()).await.unwrap();
        let RunEnd::Failed { why } = &report.end else { panic!("{:?}", report.end) };
        assert!(why.contains("h1:9090 stays as it is: ") && why.contains("FAILED"), "{why}");
        assert_eq!(report.exit_code(), 6);
        assert_eq!(end_of(&report, PROMETHEUS), InstanceEnd::Untouched);
        let all = sim.instances().len();
        assert_eq!(as_before(&sim), (vec![PROMETHEUS.to_owned()], all - 1));
        let builds = sim.builds();
        assert_eq!(builds[&id(PROMETHEUS)].0, crate::old());
        if is_upgrade {
            assert_eq!(builds[&id("h1:9093")].0, new(Role::Alertmanager));
        }
        // By the build that will read it.
        let tree = if is_upgrade { Tree::Staged } else { Tree::Live };
        assert_eq!(judged(&sim), [(id(PROMETHEUS), tree), (id("h1:9093"), tree)]);
        assert_eq!(sim.is_settled(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn where_nobody_can_judge_it_is_told_and_the_window_finds_out() {
    let sim = Sim::new(&SMALL, 1);
    let plan = reload(&sim, |_| true).await;
    sim.state.lock().unwrap().has_no_judges = true;
    let report = go(&plan, &sim, &mut MemoryJournal::default()).await.unwrap();
    let untold = |tool: &str| !report.notes.iter().any(|it| it.ends_with(&format!("no {tool}")));
    assert!(!untold("promtool") && !untold("amtool"), "{:?}", report.notes);
    assert_eq!(end_of(&report, PROMETHEUS), InstanceEnd::RolledBack);
    assert_eq!(as_before(&sim).0, [PROMETHEUS]);
    assert_eq!(sim.is_settled(), Vec::<String>::new());
}

#[tokio::test]
async fn killed_at_any_effect_a_run_whose_configuration_is_refused_comes_to_the_same_end() {
    let whole = Sim::new(&SMALL, 1);
    let plan = upgrade(&whole).await;
    go(&plan, &whole, &mut MemoryJournal::default()).await.unwrap();
    let effects = whole.state.lock().unwrap().effects;
    for effect in 1..effects {
        for side in [Side::Before, Side::After] {
            for is_forth in [true, false] {
                let sim = Sim::new(&SMALL, 1);
                changes(&sim);
                let mut journal = dead_at(&plan, &sim, effect, side).await;
                let context = format!("{effect} {side:?} {is_forth}");
                sim.pass(Duration::from_secs(effect % 3 * 150));
                let all = sim.instances().len();
                if is_forth {
                    let report = go_on(&plan, &sim, &mut journal).await.unwrap();
                    let end = &report.end;
                    assert!(matches!(end, RunEnd::Failed { .. }), "{context}: {end:?}");
                    assert_eq!(report.exit_code(), 6, "{context}");
                    assert_eq!(as_before(&sim).0, [PROMETHEUS], "{context}");
                } else {
                    back(&plan, &sim, &mut journal).await.unwrap();
                    assert_eq!(as_before(&sim).0.len(), all, "{context}");
                }
                assert_eq!(sim.is_settled(), Vec::<String>::new(), "{context}");
            }
        }
    }
}
