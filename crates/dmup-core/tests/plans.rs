//! Which plan comes out of which cluster: the snapshots are the specification.
#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "the whole file is a test, its builders as well"
)]

use std::collections::BTreeMap;

use dmup_core::digest::Digest;
use dmup_core::ids::{ClusterName, HostId, InstanceId, MemberName, SourceId, TaskName, UnitName};
use dmup_core::instance::{Instance, Role};
use dmup_core::inventory::{
    DmSeen, HostSeen, Inventory, Leftover, LeftoverKind, MasterSeen, ProcessSeen, SideSeen,
    SubtaskSeen, SubtaskStage, SubtaskUnit, UnitActive, WorkerSeen, WorkerStage,
};
use dmup_core::plan::{
    Allowances, Around, Blocker, Decision, HotfixRequest, Kind, Override, ParcelSpec, Plan,
    Purpose, RestartRequest, RollbackRequest, RollbackTarget, Step, TargetBuild, Turn, Warning,
    basis_of, check, plan_hotfix, plan_restart, plan_rollback, render,
};
use dmup_core::policy::Policy;
use dmup_core::texts::TextsChange;
use proptest::prelude::*;

/// A cluster to plan for; tests bend it.
#[derive(Clone, Debug)]
struct Cluster {
    request: HotfixRequest,
    inventory: Inventory,
    policy: Policy,
}

fn cluster(
    masters: usize,
    leader: usize,
    workers: usize,
    sources: usize,
    version: &'static str,
) -> Cluster {
    cluster_with(masters, leader, workers, sources, version, false, &[])
}

fn old() -> Digest {
    Digest::of(b"old")
}

fn new(role: Role) -> Digest {
    Digest::of(role.as_str().as_bytes())
}

fn id(text: &str) -> InstanceId {
    InstanceId::new(text).unwrap()
}

fn name(text: &str) -> MemberName {
    MemberName::new(text).unwrap()
}

fn instance(role: Role, number: usize) -> Instance {
    let (letter, port) = match role {
        Role::DmMaster => ("m", 8261),
        Role::DmWorker => ("w", 8262),
        Role::Prometheus => ("p", 9090),
        Role::Grafana => ("g", 3000),
        Role::Alertmanager => ("a", 9093),
        Role::NodeExporter => ("n", 9100),
        Role::BlackboxExporter => ("b", 9115),
    };
    let host = HostId::new(format!("h{number}")).unwrap();
    Instance {
        id: id(&format!("h{number}:{port}")),
        role,
        name: name(&format!("{letter}{number}")),
        host: host.clone(),
        ssh_host: host,
        ssh_port: 22,
        port,
        ports: vec![port],
        deploy_dir: format!("/dm/{role}-{port}").into(),
        data_dirs: Vec::new(),
        log_dir: "/dm/log".into(),
        unit: UnitName::new(format!("{role}-{port}.service")).unwrap(),
        os: "linux".into(),
        arch: "amd64".into(),
        patched: false,
    }
}

fn subtask(number: usize) -> SubtaskSeen {
    SubtaskSeen {
        task: TaskName::new("task").unwrap(),
        source: SourceId::new(format!("s{number}")).unwrap(),
        worker: Some(name(&format!("w{number}"))),
        stage: SubtaskStage::Running,
        unit: SubtaskUnit::Sync,
        errors: Vec::new(),
        synced: true,
        position: None,
        source_position: None,
        lag_s: Some(0),
        blocked_ddls: 0,
        validator: None,
    }
}

fn cluster_with(
    masters: usize,
    leader: usize,
    workers: usize,
    sources: usize,
    version: &'static str,
    has_monitoring: bool,
    down: &[&'static str],
) -> Cluster {
    let mut instances: Vec<Instance> = (1..=masters).map(|n| instance(Role::DmMaster, n)).collect();
    instances.extend((1..=workers).map(|n| instance(Role::DmWorker, n)));
    if has_monitoring {
        let monitoring = [Role::Prometheus, Role::Grafana, Role::Alertmanager];
        instances.extend(monitoring.map(|role| instance(role, 1)));
    }
    let is_down = |instance: &Instance| down.contains(&instance.id.as_str());
    let hosts = instances
        .iter()
        .map(|instance| {
            let seen = HostSeen {
                machine_id: instance.host.to_string(),
                boot_id: "b".into(),
                clock_skew_ms: 0,
                arch: "x86_64".into(),
                free_bytes: [(instance.deploy_dir.clone(), 1 << 40)].into(),
                leftovers: Vec::new(),
            };
            (instance.host.clone(), Ok(seen))
        })
        .collect();
    let processes = instances
        .iter()
        .map(|instance| {
            let up = !is_down(instance);
            let seen = ProcessSeen {
                active: if up { UnitActive::Active } else { UnitActive::Failed },
                sub_state: if up { "running" } else { "failed" }.into(),
                enabled: true,
                pid: up.then_some(7),
                restarts: 0,
                active_since_ms: None,
                running: up.then(old),
                on_disk: Some(old()),
            };
            (instance.id.clone(), seen)
        })
        .collect();
    let leader_name = name(&format!("m{leader}"));
    let masters_seen = instances
        .iter()
        .filter(|i| i.role == Role::DmMaster)
        .map(|i| MasterSeen {
            name: i.name.clone(),
            instance: Some(i.id.clone()),
            alive: !is_down(i),
            leader: i.name == leader_name,
            calls_leader: (!is_down(i)).then(|| leader_name.clone()),
            etcd_healthy: (!is_down(i)).then_some(true),
            release: None,
        })
        .collect();
    let workers_seen = instances
        .iter()
        .filter(|i| i.role == Role::DmWorker)
        .enumerate()
        .map(|(index, i)| WorkerSeen {
            name: i.name.clone(),
            instance: Some(i.id.clone()),
            stage: match (is_down(i), index < sources) {
                (true, _) => WorkerStage::Offline,
                (false, true) => WorkerStage::Bound,
                (false, false) => WorkerStage::Free,
            },
            source: (index < sources).then(|| SourceId::new(format!("s{}", index + 1)).unwrap()),
        })
        .collect();
    let dm = DmSeen {
        masters: masters_seen,
        workers: workers_seen,
        sources: (1..=sources)
            .map(|n| (SourceId::new(format!("s{n}")).unwrap(), Some(name(&format!("w{n}")))))
            .collect(),
        subtasks: (1..=sources).map(subtask).collect(),
        relays: BTreeMap::new(),
    };
    let inventory = Inventory { at: jiff::Timestamp::UNIX_EPOCH, hosts, processes, dm: Ok(dm) };
    let request = HotfixRequest {
        cluster: ClusterName::new("prod").unwrap(),
        version: version.parse().unwrap(),
        selected: instances.iter().map(|i| i.id.clone()).collect(),
        instances,
        purpose: Purpose::Hotfix,
        parcel: Some(ParcelSpec {
            path: "/package".into(),
            digest: Digest::of(b"parcel"),
            compressed_bytes: 100,
            unpacked_bytes: 300,
        }),
        parcels: Vec::new(),
        targets: Role::ALL
            .into_iter()
            .map(|role| {
                (role, TargetBuild { digest: new(role), replace: Vec::new(), parcel: None })
            })
            .collect(),
        exceptions: BTreeMap::new(),
        offline: false,
        allow: Allowances::default(),
        known_bad: BTreeMap::new(),
        ways_back: BTreeMap::new(),
    };
    Cluster { request, inventory, policy: Policy::default() }
}

impl Cluster {
    fn decide(&self) -> Decision {
        plan_hotfix(&self.request, &self.inventory, &self.policy)
    }

    fn plan(&self) -> Plan {
        match self.decide() {
            Decision::Go(plan) => *plan,
            other => panic!("{other:?}"),
        }
    }

    fn blockers(&self) -> Vec<Blocker> {
        match self.decide() {
            Decision::Blocked(blockers) => blockers,
            other => panic!("{other:?}"),
        }
    }

    fn codes(&self) -> Vec<&'static str> {
        self.blockers().iter().map(Blocker::code).collect()
    }

    fn dm(&mut self) -> &mut DmSeen {
        self.inventory.dm.as_mut().unwrap()
    }
}

/// Without what every turn has: guard, window, health, soak, record.
fn transcript(plan: &Plan) -> String {
    let mut text = String::new();
    let line = |text: &mut String, line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    for turn in &plan.turns {
        line(&mut text, turn.instance.to_string());
        for step in &turn.steps {
            match step {
                Step::ArmGuard { .. }
                | Step::AwaitHealthy { .. }
                | Step::Soak { .. }
                | Step::DisarmGuard { .. }
                | Step::MarkPatched { .. } => {}
                Step::Window { .. } => line(&mut text, "  window".to_owned()),
                Step::Stage { .. }
                | Step::Prepare { .. }
                | Step::Check { .. }
                | Step::EvictLeader { .. }
                | Step::AwaitNewLeader { .. }
                | Step::AwaitQuiet { .. }
                | Step::PauseSubtask { .. }
                | Step::AwaitPaused { .. }
                | Step::Transfer { .. }
                | Step::AwaitBound { .. }
                | Step::ResumeSubtask { .. }
                | Step::CancelEvict { .. } => line(&mut text, format!("  {}", step.describe())),
            }
        }
    }
    for consent in &plan.consents {
        line(&mut text, format!("agree: {consent}"));
    }
    text
}

#[test]
fn the_leader_comes_last_of_the_masters_and_free_workers_before_bound_ones() {
    insta::assert_snapshot!(transcript(&cluster(3, 1, 3, 2, "v8.1.0").plan()), @r#"
    h2:8261
      window
    h3:8261
      window
    h1:8261
      evict the leader h1:8261
      wait until the masters agree on a leader other than h1:8261 (at most 60s)
      window
      let h1:8261 campaign again
    h3:8262
      window
    h1:8262
      wait for a quiet moment of h1:8262 (at most 30s)
      window
    h2:8262
      wait for a quiet moment of h2:8262 (at most 30s)
      window
    "#);
}

#[test]
fn one_master_and_one_worker_need_consent_and_nothing_else() {
    insta::assert_snapshot!(transcript(&cluster(1, 1, 1, 1, "v8.1.0").plan()), @r#"
    h1:8261
      window
    h1:8262
      wait for a quiet moment of h1:8262 (at most 30s)
      window
    agree: while h1:8261 restarts (about 5s) DM can neither schedule nor fail over: 1 master(s) have no quorum without it
    agree: source s1 stands still while h1:8262 restarts (about 5s): no free worker can take it over
    "#);
}

#[test]
fn below_6_5_tasks_are_paused_and_sources_move_to_workers_that_had_their_turn() {
    insta::assert_snapshot!(transcript(&cluster(3, 2, 3, 2, "v5.3.0").plan()), @r#"
    h1:8261
      window
    h3:8261
      window
    h2:8261
      evict the leader h2:8261
      wait until the masters agree on a leader other than h2:8261 (at most 60s)
      window
      let h2:8261 campaign again
    h3:8262
      window
    h1:8262
      wait for a quiet moment of h1:8262 (at most 30s)
      pause task task on source s1
      wait until task task on source s1 stands (at most 60s)
      move source s1 from w1 to w3
      wait until source s1 is bound (at most 60s)
      resume task task on source s1
      window
    h2:8262
      wait for a quiet moment of h2:8262 (at most 30s)
      pause task task on source s2
      wait until task task on source s2 stands (at most 60s)
      move source s2 from w2 to w1
      wait until source s2 is bound (at most 60s)
      resume task task on source s2
      window
    "#);
}

#[test]
fn below_6_5_without_a_free_worker_tasks_stand_during_the_window() {
    insta::assert_snapshot!(transcript(&cluster(3, 3, 1, 1, "v6.1.2").plan()), @r#"
    h1:8261
      window
    h2:8261
      window
    h3:8261
      evict the leader h3:8261
      wait until the masters agree on a leader other than h3:8261 (at most 60s)
      window
      let h3:8261 campaign again
    h1:8262
      wait for a quiet moment of h1:8262 (at most 30s)
      pause task task on source s1
      wait until task task on source s1 stands (at most 60s)
      window
      wait until source s1 is bound (at most 60s)
      resume task task on source s1
    agree: source s1 stands still while h1:8262 restarts (about 5s): no free worker can take it over
    "#);
}

#[test]
fn in_a_large_cluster_the_order_is_the_same() {
    insta::assert_snapshot!(transcript(&cluster_with(5, 3, 10, 7, "v8.1.0", true, &[]).plan()), @r#"
    h1:8261
      window
    h2:8261
      window
    h4:8261
      window
    h5:8261
      window
    h3:8261
      evict the leader h3:8261
      wait until the masters agree on a leader other than h3:8261 (at most 60s)
      window
      let h3:8261 campaign again
    h8:8262
      window
    h9:8262
      window
    h10:8262
      window
    h1:8262
      wait for a quiet moment of h1:8262 (at most 30s)
      window
    h2:8262
      wait for a quiet moment of h2:8262 (at most 30s)
      window
    h3:8262
      wait for a quiet moment of h3:8262 (at most 30s)
      window
    h4:8262
      wait for a quiet moment of h4:8262 (at most 30s)
      window
    h5:8262
      wait for a quiet moment of h5:8262 (at most 30s)
      window
    h6:8262
      wait for a quiet moment of h6:8262 (at most 30s)
      window
    h7:8262
      wait for a quiet moment of h7:8262 (at most 30s)
      window
    h1:9090
      window
    h1:3000
      window
    h1:9093
      window
    "#);
}

#[test]
fn what_is_down_has_its_turn_first_when_it_is_included() {
    let mut cluster = cluster_with(3, 1, 3, 2, "v8.1.0", false, &["h3:8261", "h3:8262"]);
    assert_eq!(cluster.codes(), ["instance-down", "instance-down"]);
    assert_eq!(cluster.blockers()[0].overridden_by().map(Override::flag), Some("--include-down"));
    cluster.request.allow.include_down = true;
    insta::assert_snapshot!(transcript(&cluster.plan()), @r#"
    h3:8261
      window
    h3:8262
      window
    h2:8261
      window
    h1:8261
      evict the leader h1:8261
      wait until the masters agree on a leader other than h1:8261 (at most 60s)
      window
      let h1:8261 campaign again
    h1:8262
      wait for a quiet moment of h1:8262 (at most 30s)
      window
    h2:8262
      wait for a quiet moment of h2:8262 (at most 30s)
      window
    "#);
}

#[test]
fn the_whole_plan_is_printed() {
    let mut cluster = cluster(3, 1, 2, 1, "v8.1.0");
    cluster.request.selected = vec![id("h1:8261"), id("h1:8262")];
    let text = dmup_core::plan::render(&cluster.plan());
    let text: String =
        text.lines().map(|line| format!("{}\n", line.split(", plan ").next().unwrap())).collect();
    insta::assert_snapshot!(text, @r#"
    Hotfix of prod (v8.1.0), 2 node(s)
    Before any node is touched:
        send the package to h1
        prepare build 525231024e5b beside the live one of h1:8261 and run its -V
        prepare build 576172dfa89b beside the live one of h1:8262 and run its -V
    1. dm-master h1:8261: cba06b5736fa -> 525231024e5b
        evict the leader h1:8261
        wait until the masters agree on a leader other than h1:8261 (at most 60s)
        arm the guard of h1:8261: back to cba06b5736fa after 120s without us
        stop h1:8261, exchange cba06b5736fa for 525231024e5b, start
        wait until h1:8261 is healthy on 525231024e5b (at most 120s without progress)
        watch h1:8261 for 5s
        disarm the guard of h1:8261
        let h1:8261 campaign again
        record h1:8261 as patched with 525231024e5b
    2. dm-worker h1:8262: cba06b5736fa -> 576172dfa89b
        wait for a quiet moment of h1:8262 (at most 30s)
        arm the guard of h1:8262: back to cba06b5736fa after 120s without us
        stop h1:8262, exchange cba06b5736fa for 576172dfa89b, start
        wait until h1:8262 is healthy on 576172dfa89b (at most 120s without progress)
        watch h1:8262 for 5s
        disarm the guard of h1:8262
        record h1:8262 as patched with 576172dfa89b
    "#);
}

#[test]
fn offline_only_exchanges_and_refuses_what_runs() {
    let mut running = cluster(3, 1, 2, 1, "v8.1.0");
    running.request.offline = true;
    assert!(running.codes().iter().all(|code| *code == "still-running"));
    assert_eq!(running.codes().len(), 5);

    let all = ["h1:8261", "h1:8262"];
    let mut stopped = cluster_with(1, 1, 1, 1, "v8.1.0", false, &all);
    stopped.request.offline = true;
    stopped.inventory.dm = Err("no master answers".into());
    insta::assert_snapshot!(transcript(&stopped.plan()), @r#"
    h1:8261
      window
    h1:8262
      window
    "#);
    assert!(stopped.plan().turns.iter().all(|turn| turn.steps.len() == 2));
    let (old, new) = (old(), new(Role::DmMaster));
    let window = format!("exchange {old} for {new} of h1:8261; nothing is started");
    assert_eq!(stopped.plan().turns[0].steps[0].describe(), window);
}

#[test]
fn what_runs_the_target_is_left_alone() {
    let mut cluster = cluster(3, 1, 2, 1, "v8.1.0");
    for (id, process) in &mut cluster.inventory.processes {
        let role = cluster.request.instances.iter().find(|i| i.id == *id).unwrap().role;
        process.running = Some(new(role));
        process.on_disk = Some(new(role));
    }
    assert!(matches!(cluster.decide(), Decision::NothingToDo));
    let process = cluster.inventory.processes.get_mut(&id("h2:8262")).unwrap();
    process.running = Some(old());
    process.on_disk = Some(old());
    let turns: Vec<_> = cluster.plan().turns.iter().map(|t| t.instance.to_string()).collect();
    assert_eq!(turns, ["h2:8262"]);
}

#[test]
fn an_instance_that_was_exchanged_but_not_restarted_keeps_its_way_back() {
    let mut cluster = cluster(3, 1, 1, 0, "v8.1.0");
    let process = cluster.inventory.processes.get_mut(&id("h1:8262")).unwrap();
    process.on_disk = Some(new(Role::DmWorker));
    cluster.request.selected = vec![id("h1:8262")];
    let plan = cluster.plan();
    assert!(!plan.preparation.iter().any(|step| matches!(step, Step::Prepare { .. })));
    assert_eq!((&plan.turns[0].from, &plan.turns[0].to), (&old(), &new(Role::DmWorker)));
}

#[test]
fn a_master_down_that_is_not_selected_stops_the_others() {
    let mut cluster = cluster_with(3, 1, 2, 1, "v8.1.0", false, &["h3:8261"]);
    cluster.request.selected = vec![id("h1:8261"), id("h2:8261")];
    assert_eq!(cluster.codes(), ["another-down", "quorum-at-risk"]);
    cluster.request.allow.force = true;
    assert_eq!(cluster.codes(), ["quorum-at-risk"]);
    cluster.request.selected = vec![id("h2:8262")];
    assert_eq!(cluster.plan().turns.len(), 1);
}

#[test]
fn every_obstacle_is_named_at_once() {
    let mut cluster = cluster(3, 1, 3, 2, "v8.1.0");
    let host = HostId::new("h2").unwrap();
    cluster.inventory.hosts.insert(host, Err("connect: timed out".into()));
    cluster.inventory.processes.remove(&id("h2:8261"));
    cluster.inventory.processes.remove(&id("h2:8262"));
    let process = cluster.inventory.processes.get_mut(&id("h3:8261")).unwrap();
    process.active = UnitActive::Missing;
    let process = cluster.inventory.processes.get_mut(&id("h3:8262")).unwrap();
    process.on_disk = Some(Digest::of(b"foreign"));
    let dm = cluster.dm();
    dm.masters[1].calls_leader = Some(name("m2"));
    dm.masters[2].etcd_healthy = Some(false);
    dm.subtasks[0].errors = vec!["Duplicate entry".into()];
    dm.subtasks[0].unit = SubtaskUnit::Load;
    dm.subtasks[1].blocked_ddls = 2;
    dm.sources.insert(SourceId::new("s9").unwrap(), None);
    for seen in cluster.inventory.hosts.values_mut().flatten() {
        seen.free_bytes.insert("/tight".into(), 10);
    }
    cluster.request.known_bad.insert(new(Role::DmWorker), "it exited 3 times".into());
    let text: String = cluster.blockers().iter().map(|b| format!("{}: {b}\n", b.code())).collect();
    insta::assert_snapshot!(text, @r#"
    known-bad: build 576172dfa89b failed before: it exited 3 times
    host-unreachable: host h2 cannot be reached: connect: timed out
    unit-missing: h3:8261 has no systemd unit
    drift: h3:8262 runs build cba06b5736fa, but 656771905e1e lies on its disk
    leader-disputed: the masters do not agree on one leader: m1 names m1, m2 names m2
    source-unbound: source s9 is bound to no worker
    subtask-failing: task task on source s1 has an error: Duplicate entry
    subtask-in-full-load: task task on source s1 is in its Load phase: a restart would begin it again
    ddl-waiting: 2 DDL(s) of task task on source s2 wait for a lock
    disk-full: h1 has 10 bytes free at /tight and needs 900
    disk-full: h3 has 10 bytes free at /tight and needs 600
    "#);
}

#[test]
fn each_obstacle_is_overridden_by_its_own_flag_or_by_force() {
    let flags = |allow: Allowances| {
        let mut cluster = cluster(3, 1, 3, 2, "v8.1.0");
        cluster.request.allow = allow;
        cluster.policy.max_lag_s = Some(60);
        let process = cluster.inventory.processes.get_mut(&id("h3:8262")).unwrap();
        process.on_disk = Some(Digest::of(b"foreign"));
        cluster.request.known_bad.insert(new(Role::DmMaster), "it exited 3 times".into());
        let seen =
            cluster.inventory.hosts.get_mut(&HostId::new("h2").unwrap()).unwrap().as_mut().unwrap();
        seen.clock_skew_ms = -400_000;
        let (instance, path) = (id("h2:8262"), "/home/dm/.dmup/guards/x.json".into());
        seen.leftovers =
            vec![Leftover { instance, kind: LeftoverKind::ArmedGuard, path, build: None }];
        let dm = cluster.dm();
        dm.subtasks[0].synced = false;
        dm.subtasks[0].lag_s = Some(120);
        dm.subtasks[1].synced = false;
        dm.subtasks[1].lag_s = None;
        match cluster.decide() {
            Decision::Blocked(blockers) => {
                blockers.iter().map(|b| format!("{}: {b}", b.code())).collect::<Vec<_>>().join("\n")
            }
            Decision::Go(plan) => {
                plan.warnings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
            }
            Decision::NothingToDo => panic!(),
        }
    };
    insta::assert_snapshot!(flags(Allowances::default()), @r"
    known-bad: build 525231024e5b failed before: it exited 3 times
    drift: h3:8262 runs build cba06b5736fa, but 656771905e1e lies on its disk
    clock-off: the clock of h2 is -400s off
    guard-armed: a guard of h2:8262 is armed: its host may put it back at any moment
    lagging: task task on source s1 is 120s behind, 60s are allowed
    lag-unknown: DM does not say how far task task on source s2 is behind
    ");
    let adopting = Allowances { adopt: true, force_build: true, ..Allowances::default() };
    insta::assert_snapshot!(flags(adopting), @r"
    clock-off: the clock of h2 is -400s off
    guard-armed: a guard of h2:8262 is armed: its host may put it back at any moment
    lagging: task task on source s1 is 120s behind, 60s are allowed
    lag-unknown: DM does not say how far task task on source s2 is behind
    ");
    insta::assert_snapshot!(flags(Allowances { force: true, ..Allowances::default() }), @r"
    overridden by --force-build: build 525231024e5b failed before: it exited 3 times
    overridden by --adopt: h3:8262 runs build cba06b5736fa, but 656771905e1e lies on its disk
    overridden by --force: the clock of h2 is -400s off
    overridden by --force: a guard of h2:8262 is armed: its host may put it back at any moment
    overridden by --force: task task on source s1 is 120s behind, 60s are allowed
    overridden by --force: DM does not say how far task task on source s2 is behind
    ");
}

/// Restarted so often by systemd, up for so many seconds by its host's clock, which is off by a minute.
fn crashes(cluster: &mut Cluster, instance: &str, restarts: u32, up_s: i64) {
    let process = cluster.inventory.processes.get_mut(&id(instance)).unwrap();
    (process.restarts, process.active_since_ms) = (restarts, Some(60_000 - up_s * 1000));
    let host = HostId::new(instance.split(':').next().unwrap()).unwrap();
    let seen = cluster.inventory.hosts.get_mut(&host).unwrap().as_mut().unwrap();
    seen.clock_skew_ms = 60_000;
}

#[test]
fn a_node_that_keeps_crashing_is_in_the_way_of_others_and_comes_first_itself() {
    let with = |instance, restarts, up_s| {
        let mut cluster = cluster(3, 1, 3, 2, "v8.1.0");
        crashes(&mut cluster, instance, restarts, up_s);
        cluster
    };
    for (instance, restarts, up_s) in [("h3:8261", 2, 59), ("h2:8262", 7, 0)] {
        let mut cluster = with(instance, restarts, up_s);
        let text: Vec<String> = cluster.blockers().iter().map(ToString::to_string).collect();
        let said = format!(
            "{instance} keeps crashing: systemd has restarted it {restarts} times, and it is up for {up_s}s"
        );
        assert_eq!(text, std::slice::from_ref(&said));
        cluster.request.allow.include_down = true;
        let plan = cluster.plan();
        assert_eq!(plan.turns[0].instance, id(instance));
        // It is up: it hands over what it has.
        assert!(!plan.turns[0].was_broken);
        assert!(
            plan.warnings
                .contains(&Warning::Overridden { flag: "--include-down".into(), blocker: said })
        );
        // Of others it is an obstacle if they have the same role.
        cluster.request.allow = Allowances::default();
        cluster.request.selected.retain(|it| it.as_str() != instance);
        assert_eq!(cluster.codes(), ["crashing"]);
        let [blocker] = &cluster.blockers()[..] else { panic!() };
        assert_eq!(blocker.overridden_by(), Some(Override::Force));
        cluster.request.allow.force = true;
        assert_eq!(cluster.plan().turns.len(), 5);
        cluster.request.allow.force = false;
        let port = &instance[2..];
        cluster.request.selected.retain(|it| !it.as_str().ends_with(port));
        assert_eq!(cluster.plan().turns.len(), 3);
    }
}

#[test]
fn one_restart_or_some_long_ago_are_no_crash_loop() {
    for (instance, restarts, up_s) in [("h3:8261", 1, 0), ("h2:8262", 99, 60)] {
        let mut cluster = cluster(3, 1, 3, 2, "v8.1.0");
        crashes(&mut cluster, instance, restarts, up_s);
        let plan = cluster.plan();
        assert_eq!(plan.turns[0].instance, id("h2:8261"));
        assert!(!plan.warnings.iter().any(|it| matches!(it, Warning::Overridden { .. })));
    }
}

#[test]
fn a_leader_that_keeps_crashing_still_comes_last_of_the_masters() {
    let mut cluster = cluster(3, 1, 3, 2, "v8.1.0");
    crashes(&mut cluster, "h1:8261", 3, 1);
    cluster.request.allow.include_down = true;
    assert_eq!(cluster.plan().turns[2].instance, id("h1:8261"));
}

#[test]
fn a_worker_in_its_full_load_is_left_out_when_that_is_wanted() {
    let mut cluster = cluster(3, 1, 3, 2, "v8.1.0");
    cluster.dm().subtasks[1].unit = SubtaskUnit::Load;
    assert_eq!(cluster.codes(), ["subtask-in-full-load"]);
    cluster.request.allow.defer = true;
    let plan = cluster.plan();
    assert_eq!(plan.turns.len(), 5);
    assert!(!plan.turns.iter().any(|turn| turn.instance == id("h2:8262")));
    let text: Vec<String> = plan.warnings.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(text.join("\n"), @"h2:8262 is left out for now: task task on source s2 is in its Load phase; run the same command again later");
    // Nobody would remain: then it is in the way after all.
    cluster.request.selected = vec![id("h2:8262")];
    assert_eq!(cluster.codes(), ["subtask-in-full-load"]);
}

#[test]
fn what_earlier_windows_left_is_told() {
    let mut cluster = cluster(3, 1, 3, 2, "v8.1.0");
    let seen =
        cluster.inventory.hosts.get_mut(&HostId::new("h2").unwrap()).unwrap().as_mut().unwrap();
    let left = |kind, path: &str| Leftover {
        instance: id("h2:8262"),
        kind,
        path: path.into(),
        build: None,
    };
    seen.leftovers = vec![
        left(LeftoverKind::FiredGuard, "/g/x.json"),
        left(LeftoverKind::TiupBackup, "/dm/dm-worker-8262/bin.old.dm-worker"),
        left(LeftoverKind::TiupUpload, "/dm/dm-worker-8262/bin/fix.tar.gz"),
    ];
    let text: Vec<String> = cluster.plan().warnings.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(text.join("\n"), @r"
    the guard of h2:8262 has put it back at the end of an earlier run
    h2:8262 has a tree that TiUP saved: /dm/dm-worker-8262/bin.old.dm-worker
    h2:8262 has a package in its bin: /dm/dm-worker-8262/bin/fix.tar.gz; a `tiup dm patch` that did not end
    ");
}

#[test]
fn only_what_goes_away_by_itself_is_worth_waiting_for() {
    let load = Blocker::SubtaskInFullLoad {
        task: TaskName::new("task").unwrap(),
        source_id: SourceId::new("s1").unwrap(),
        unit: SubtaskUnit::Dump,
    };
    assert!(load.is_worth_waiting() && !load.may_pass());
    let boots = Blocker::HostUnreachable { host: HostId::new("h1").unwrap(), why: "no".into() };
    assert!(boots.is_worth_waiting() && boots.may_pass());
    let missing = Blocker::UnitMissing { instance: id("h1:8261") };
    assert!(!missing.is_worth_waiting() && !missing.may_pass());
}

#[test]
fn batches_end_with_a_longer_watch() {
    let cluster = cluster(3, 1, 6, 3, "v8.1.0");
    let longer = |batches: &[&str]| {
        let batches = batches.iter().map(|size| size.parse().unwrap()).collect();
        let policy = Policy { batches, batch_soak_s: 300, ..Policy::default() };
        let Decision::Go(plan) = plan_hotfix(&cluster.request, &cluster.inventory, &policy) else {
            panic!()
        };
        assert_eq!(plan.turns.len(), 9);
        let soaks = |turn: &&dmup_core::plan::Turn| {
            turn.steps.iter().any(|step| matches!(step, Step::Soak { soak_s: 300, .. }))
        };
        let numbered = (1..).zip(&plan.turns).filter(|(_, turn)| soaks(turn));
        numbered.map(|(number, _)| number).collect::<Vec<usize>>()
    };
    assert_eq!(longer(&[]), Vec::<usize>::new());
    assert_eq!(longer(&["1", "10%", "50%"]), [1, 2, 7]);
    assert_eq!(longer(&["100%"]), Vec::<usize>::new());
    assert_eq!(longer(&["9"]), Vec::<usize>::new());
    assert_eq!(longer(&["4", "4", "4"]), [4, 8]);
}

#[test]
fn workers_of_a_batch_are_watched_together_and_nobody_else() {
    let overlapping = |version: &'static str, batches: &[&str]| {
        let cluster = cluster(3, 1, 6, 3, version);
        let batches = batches.iter().map(|size| size.parse().unwrap()).collect();
        let policy = Policy { batches, ..Policy::default() };
        let Decision::Go(plan) = plan_hotfix(&cluster.request, &cluster.inventory, &policy) else {
            panic!()
        };
        (1..)
            .zip(&plan.turns)
            .filter(|(_, turn)| turn.overlaps)
            .map(|(number, _)| number)
            .collect::<Vec<usize>>()
    };
    // Three masters, then six workers.
    assert_eq!(overlapping("v8.1.0", &["100%"]), [4, 5, 6, 7, 8]);
    assert_eq!(overlapping("v8.1.0", &["1", "50%"]), [4, 5, 7, 8]);
    assert_eq!(overlapping("v8.1.0", &["4", "1", "1"]), [7, 8]);
    assert_eq!(overlapping("v8.1.0", &[]), Vec::<usize>::new());
    // The one that is watched may get a source: an old worker must not be stopped by its guard while it writes.
    assert_eq!(overlapping("v5.3.0", &["100%"]), Vec::<usize>::new());
}

#[test]
fn a_plan_in_which_others_are_watched_together_is_refused() {
    let mut plan = cluster(3, 1, 3, 2, "v8.1.0").plan();
    assert_eq!(check(&plan), []);
    plan.policy.batches = vec!["100%".parse().unwrap()];
    let rule = "only workers of a batch are watched while the next one has its turn";
    for (number, is_broken) in [(0, true), (2, true), (3, false), (4, false), (5, true)] {
        plan.turns[number].overlaps = true;
        assert_eq!(check(&plan).iter().any(|it| it.rule == rule), is_broken, "{number}");
        plan.turns[number].overlaps = false;
    }
}

#[test]
fn every_fact_that_has_changed_since_the_plan_is_named() {
    let mut then = cluster(3, 1, 3, 2, "v8.1.0");
    then.policy.max_lag_s = Some(60);
    let runs = SideSeen { stage: SubtaskStage::Running, errors: Vec::new() };
    then.dm().subtasks[1].validator = Some(runs);
    let basis = then.plan().based_on;
    let mut now = then.clone();
    let process = now.inventory.processes.get_mut(&id("h3:8262")).unwrap();
    process.running = Some(Digest::of(b"foreign"));
    let process = now.inventory.processes.get_mut(&id("h2:8261")).unwrap();
    process.active = UnitActive::Failed;
    let dm = now.dm();
    dm.masters[0].leader = false;
    dm.masters[2].leader = true;
    dm.masters[1].alive = false;
    dm.workers[2].stage = WorkerStage::Offline;
    dm.sources.insert(SourceId::new("s1").unwrap(), Some(name("w3")));
    dm.subtasks[1].validator.as_mut().unwrap().stage = SubtaskStage::Stopped;
    (dm.subtasks[1].synced, dm.subtasks[1].lag_s) = (false, Some(61));
    dm.subtasks.remove(0);
    let seen = now.inventory.hosts.get_mut(&HostId::new("h2").unwrap()).unwrap();
    seen.as_mut().unwrap().leftovers = [LeftoverKind::ArmedGuard, LeftoverKind::TiupUpload]
        .map(|kind| Leftover { instance: id("h2:8262"), kind, path: "/x".into(), build: None })
        .into();
    let changes =
        basis.changes(&basis_of(&now.request.instances, &now.inventory, true, &now.policy));
    insta::assert_snapshot!(changes.join("\n"), @r"
    a package that TiUP sent of h2:8262: nothing then, /x now
    an armed guard of h2:8262: nothing then, /x now
    instance h2:8261: Active, runs cba06b5736fa, has cba06b5736fa then, Failed, runs cba06b5736fa, has cba06b5736fa now
    instance h3:8262: Active, runs cba06b5736fa, has cba06b5736fa then, Active, runs 656771905e1e, has cba06b5736fa now
    lag of task on s1: at most 60s then, nothing now
    lag of task on s2: at most 60s then, more than 60s now
    leader: m1 then, m3 now
    master m2: alive then, down now
    source s1: w1 then, w3 now
    task task on s1: Running, Sync then, nothing now
    validator of task on s2: Running then, Stopped now
    worker w3: Free then, Offline now
    ");
    let same = basis_of(&then.request.instances, &then.inventory, true, &then.policy);
    assert_eq!(basis.changes(&same), Vec::<String>::new());
    // Without a limit any lag is as good as any other; what lies beside other nodes is nobody's business.
    let mut now = then.clone();
    now.policy.max_lag_s = None;
    let basis = now.plan().based_on;
    (now.dm().subtasks[1].synced, now.dm().subtasks[1].lag_s) = (false, Some(61));
    let seen = now.inventory.hosts.get_mut(&HostId::new("h2").unwrap()).unwrap();
    seen.as_mut().unwrap().leftovers = vec![Leftover {
        instance: id("h2:9999"),
        kind: LeftoverKind::ArmedGuard,
        path: "/x".into(),
        build: None,
    }];
    let same = basis_of(&now.request.instances, &now.inventory, true, &now.policy);
    assert_eq!(basis.changes(&same), Vec::<String>::new());
}

#[test]
fn a_plan_is_about_the_nodes_that_were_selected() {
    let mut cluster = cluster(3, 1, 3, 2, "v8.1.0");
    cluster.request.selected = vec![id("h2:8262")];
    let basis = cluster.plan().based_on;
    assert!(basis.is_about(&id("h2:8262")) && !basis.is_about(&id("h3:8262")));
}

#[test]
fn a_plan_of_an_earlier_version_can_be_read_and_keeps_its_fingerprint() {
    let text = include_str!("fixtures/plan-format-1.json");
    let plan: Plan = serde_json::from_str(text).unwrap();
    assert_eq!(plan.format, 1);
    assert_eq!(check(&plan), []);
    let then: serde_json::Value = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_value(&plan).unwrap(), then);
}

#[test]
fn the_way_back_follows_the_same_rules_and_sends_nothing() {
    let mut cluster = cluster(3, 1, 3, 2, "v8.1.0");
    for instance in cluster.request.instances.clone() {
        let host = cluster.inventory.hosts.get_mut(&instance.host).unwrap().as_mut().unwrap();
        host.leftovers.push(Leftover {
            instance: instance.id,
            kind: LeftoverKind::Tree,
            path: "/deploy/bin.dmup".into(),
            build: Some(Digest::of(b"older")),
        });
    }
    let targets = |build: Option<Digest>| {
        let target = RollbackTarget { build, patched: false, texts: None };
        cluster.request.instances.iter().map(|i| (i.id.clone(), target.clone())).collect()
    };
    let mut request = RollbackRequest {
        cluster: cluster.request.cluster.clone(),
        version: cluster.request.version.clone(),
        to_version: None,
        instances: cluster.request.instances.clone(),
        targets: targets(Some(Digest::of(b"older"))),
        offline: false,
        allow: Allowances::default(),
    };
    let Decision::Go(plan) = plan_rollback(&request, &cluster.inventory, &Policy::default()) else {
        panic!()
    };
    assert!(plan.preparation.is_empty() && plan.parcel.is_none());
    assert_eq!(transcript(&plan), transcript(&cluster.plan()));
    request.targets = targets(None);
    let decision = plan_rollback(&request, &cluster.inventory, &Policy::default());
    assert!(matches!(decision, Decision::Blocked(blockers) if blockers.len() == 6));
}

#[test]
fn a_build_that_does_not_lie_on_its_host_any_more_is_in_the_way_before_anything_is_touched() {
    let mut cluster = cluster(3, 1, 3, 2, "v8.1.0");
    let build = Some(Digest::of(b"older"));
    // What another node has, and what TiUP saved, is no way back of this one.
    let host =
        cluster.inventory.hosts.get_mut(&HostId::new("h2").unwrap()).unwrap().as_mut().unwrap();
    for (instance, kind) in [("h2:8261", LeftoverKind::Tree), ("h2:8262", LeftoverKind::TiupBackup)]
    {
        let (instance, path) = (id(instance), "/deploy/bin.other".into());
        host.leftovers.push(Leftover { instance, kind, path, build: build.clone() });
    }
    let target = RollbackTarget { build, patched: false, texts: None };
    let request = RollbackRequest {
        cluster: cluster.request.cluster.clone(),
        version: cluster.request.version.clone(),
        to_version: None,
        targets: [(id("h2:8262"), target)].into(),
        instances: cluster.request.instances.clone(),
        offline: false,
        allow: Allowances { force: true, ..Allowances::default() },
    };
    let Decision::Blocked(blockers) =
        plan_rollback(&request, &cluster.inventory, &Policy::default())
    else {
        panic!()
    };
    assert_eq!(blockers.iter().map(Blocker::code).collect::<Vec<_>>(), ["way-back-gone"]);
}

#[test]
fn the_build_before_the_one_that_runs_stays_on_its_host() {
    let mut cluster = cluster(3, 1, 3, 2, "v8.1.0");
    cluster.request.ways_back.insert(id("h2:8262"), Digest::of(b"older"));
    let kept = |step: &Step| match step {
        Step::Prepare { instance, keeps: Some(keeps), .. } => {
            Some((instance.clone(), keeps.clone()))
        }
        _ => None,
    };
    let all: Vec<_> = cluster.plan().preparation.iter().filter_map(kept).collect();
    assert_eq!(all, [(id("h2:8262"), Digest::of(b"older"))]);
}

#[test]
fn a_plan_survives_its_text() {
    let mut plan = cluster(3, 1, 3, 2, "v5.3.0").plan();
    plan.turns[3].overlaps = true;
    let text = serde_json::to_string(&plan).unwrap();
    let read: Plan = serde_json::from_str(&text).unwrap();
    assert_eq!(read, plan);
    assert_eq!(read.fingerprint(), plan.fingerprint());
}

#[test]
fn the_checker_finds_what_the_planner_must_not_do() {
    let plan = cluster(3, 1, 3, 2, "v5.3.0").plan();
    assert_eq!(check(&plan), []);
    // Every single step that is taken out of a turn breaks a rule, unless it only waits or only remembers.
    for turn in 0..plan.turns.len() {
        for step in 0..plan.turns[turn].steps.len() {
            let mut maimed = plan.clone();
            let removed = maimed.turns[turn].steps.remove(step);
            let may_go = matches!(removed, Step::AwaitQuiet { .. } | Step::Soak { .. });
            assert_eq!(check(&maimed).is_empty(), may_go, "{removed:?}");
        }
    }
    let mut leader_first = plan.clone();
    leader_first.turns.swap(0, 2);
    assert!(!check(&leader_first).is_empty());
    let mut unstaged = plan.clone();
    unstaged.preparation.clear();
    assert!(!check(&unstaged).is_empty());
    let mut twice = plan;
    let again = twice.turns[0].clone();
    twice.turns.push(again);
    assert!(!check(&twice).is_empty());
}

/// Leaves steps of the first turn out that has such a step.
fn leave_out(plan: &mut Plan, unwanted: fn(&Step) -> bool) {
    let turn = plan.turns.iter_mut().find(|turn| turn.steps.iter().any(unwanted)).unwrap();
    turn.steps.retain(|step| !unwanted(step));
}

/// Moves a step of the first turn that has such a step to another place in that turn.
fn shift(plan: &mut Plan, wanted: fn(&Step) -> bool, to: usize) {
    let turn = plan.turns.iter_mut().find(|turn| turn.steps.iter().any(wanted)).unwrap();
    let from = turn.steps.iter().position(wanted).unwrap();
    let step = turn.steps.remove(from);
    turn.steps.insert(to.min(turn.steps.len()), step);
}

fn repeat(plan: &mut Plan, wanted: fn(&Step) -> bool) {
    let step = plan.turns[0].steps.iter().find(|step| wanted(step)).unwrap().clone();
    plan.turns[0].steps.push(step);
}

type Damage = fn(&mut Plan);

/// One broken plan for each rule of the checker; where the rule is broken several others may be as well.
const BROKEN: [(&str, Damage); 23] = [
    ("it only stages, prepares and checks", |plan| {
        let step = plan.turns[0].steps[0].clone();
        plan.preparation.push(step);
    }),
    ("an instance has one turn", |plan| {
        let again = plan.turns[0].clone();
        plan.turns.push(again);
    }),
    ("the instance is part of the cluster", |plan| {
        let stranger = plan.turns[0].instance.clone();
        plan.instances.retain(|instance| instance.id != stranger);
    }),
    ("its host is staged before any window", |plan| plan.preparation.clear()),
    ("monitoring comes after DM", |plan| plan.turns.reverse()),
    ("the leader comes after all masters that follow", |plan| plan.turns.swap(0, 2)),
    ("the leader of three or more hands over before its window", |plan| {
        leave_out(plan, |s| matches!(s, Step::EvictLeader { .. }));
    }),
    ("a quorum of masters stays up", |plan| {
        let follower = plan.turns[1].instance.clone();
        let masters = &mut plan.baseline.as_mut().unwrap().masters;
        masters.iter_mut().find(|it| it.instance.as_ref() == Some(&follower)).unwrap().alive =
            false;
    }),
    ("a worker of this version is stopped only after its tasks stand", |plan| {
        leave_out(plan, |s| matches!(s, Step::PauseSubtask { .. } | Step::AwaitPaused { .. }));
    }),
    ("a turn touches its own instance only", |plan| {
        let other = plan.turns[1].instance.clone();
        plan.turns[0].steps.push(Step::DisarmGuard { instance: other });
    }),
    ("a turn has one window", |plan| repeat(plan, |s| matches!(s, Step::Window { .. }))),
    ("a window exchanges the turn's builds and writes its files", |plan| {
        plan.turns[0].to = plan.turns[0].from.clone();
    }),
    ("an exchange is recorded after its window, and nothing else is", |plan| {
        shift(plan, |s| matches!(s, Step::MarkPatched { .. }), 0);
    }),
    ("everything is staged before the first turn", |plan| {
        let late = plan.preparation[0].clone();
        plan.turns[0].steps.push(late);
    }),
    ("a new leader is awaited before the window", |plan| {
        leave_out(plan, |s| matches!(s, Step::AwaitNewLeader { .. }));
    }),
    ("an eviction is taken back", |plan| {
        leave_out(plan, |s| matches!(s, Step::CancelEvict { .. }));
    }),
    ("the guard is armed before the window", |plan| {
        shift(plan, |s| matches!(s, Step::ArmGuard { .. }), usize::MAX);
    }),
    ("health is awaited after the window", |plan| {
        shift(plan, |s| matches!(s, Step::AwaitHealthy { .. }), 0);
    }),
    ("the guard is disarmed after health is seen", |plan| {
        shift(plan, |s| matches!(s, Step::DisarmGuard { .. }), 0);
    }),
    ("a task is resumed once its source is bound", |plan| {
        leave_out(plan, |s| matches!(s, Step::AwaitBound { .. }));
    }),
    ("what was paused for a window is resumed elsewhere, or after it", |plan| {
        // Nothing moves, and it runs again before the window.
        let pauses = |s: &Step| matches!(s, Step::PauseSubtask { .. });
        leave_out(plan, |s| matches!(s, Step::Transfer { .. }));
        let turn = plan.turns.iter_mut().find(|turn| turn.steps.iter().any(pauses)).unwrap();
        let resumes = |s: &Step| matches!(s, Step::ResumeSubtask { .. });
        let from = turn.steps.iter().position(resumes).unwrap();
        let step = turn.steps.remove(from);
        let window = turn.steps.iter().position(|s| matches!(s, Step::Window { .. })).unwrap();
        turn.steps.insert(window.min(from), step);
    }),
    ("a pause is awaited", |plan| leave_out(plan, |s| matches!(s, Step::AwaitPaused { .. }))),
    ("what is paused is resumed", |plan| {
        leave_out(plan, |s| matches!(s, Step::ResumeSubtask { .. }));
    }),
];

#[test]
fn each_rule_of_the_checker_catches_a_plan_that_breaks_it() {
    let plan = cluster_with(3, 1, 3, 2, "v5.3.0", true, &[]).plan();
    assert_eq!(check(&plan), []);
    for (rule, damage) in BROKEN {
        let mut broken = plan.clone();
        damage(&mut broken);
        let caught = check(&broken);
        assert!(caught.iter().any(|it| it.rule == rule), "{rule}: {caught:?}");
    }
}

#[test]
fn a_window_does_what_its_kind_of_run_is_for_and_nothing_else() {
    for kind in [Kind::Hotfix, Kind::Rollback, Kind::Upgrade, Kind::Restart, Kind::Reload] {
        for (exchanges, writes) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut plan = cluster(3, 1, 3, 2, "v8.1.0").plan();
            plan.kind = kind;
            let turn = &mut plan.turns[0];
            if !exchanges {
                turn.to = turn.from.clone();
            }
            turn.texts = writes.then(texts);
            let may = match kind {
                Kind::Hotfix => exchanges && !writes,
                Kind::Upgrade | Kind::Rollback => exchanges || writes,
                Kind::Restart => !exchanges && !writes,
                Kind::Reload => !exchanges,
            };
            let first = plan.turns[0].instance.to_string();
            let is_broken = check(&plan).iter().any(|it| {
                it.place == first && it.rule == "a window does what its kind of run is for"
            });
            assert_eq!(is_broken, !may, "{kind:?} {exchanges} {writes}");
        }
    }
}

#[test]
fn a_guard_is_neither_armed_nor_disarmed_where_no_build_changes() {
    let rule = "a guard is armed only where there is a build to go back to";
    for (arms, disarms) in [(true, false), (false, true), (false, false)] {
        let mut plan = cluster(3, 1, 3, 2, "v8.1.0").plan();
        let turn = &mut plan.turns[0];
        turn.to = turn.from.clone();
        turn.steps.retain(|step| match step {
            Step::ArmGuard { .. } => arms,
            Step::DisarmGuard { .. } => disarms,
            _ => true,
        });
        assert_eq!(check(&plan).iter().any(|it| it.rule == rule), arms || disarms);
    }
}

#[test]
fn of_five_masters_three_stay_up() {
    let mut plan = cluster(5, 1, 1, 0, "v8.1.0").plan();
    let masters = &mut plan.baseline.as_mut().unwrap().masters;
    masters[3].alive = false;
    assert_eq!(check(&plan), []);
    plan.baseline.as_mut().unwrap().masters[4].alive = false;
    assert!(check(&plan).iter().any(|it| it.rule == "a quorum of masters stays up"));
    // A worker that has had its turn is no master that stays up.
    plan.turns.rotate_right(1);
    assert!(check(&plan).iter().any(|it| it.rule == "a quorum of masters stays up"));
}

#[test]
fn before_an_old_worker_stops_every_task_of_its_source_stands() {
    let mut cluster = cluster(3, 1, 3, 2, "v5.3.0");
    let other = SubtaskSeen { task: TaskName::new("other").unwrap(), ..subtask(1) };
    cluster.dm().subtasks.push(other.clone());
    let mut plan = cluster.plan();
    leave_out(
        &mut plan,
        |step| matches!(step, Step::PauseSubtask { task, .. } | Step::AwaitPaused { task, .. } | Step::ResumeSubtask { task, .. } if task.as_str() == "other"),
    );
    let caught: Vec<&str> = check(&plan).iter().map(|it| it.rule).collect();
    assert_eq!(caught, ["a worker of this version is stopped only after its tasks stand"]);
}

#[test]
fn a_build_that_failed_before_is_in_the_way_only_where_it_would_be_put_in() {
    let mut cluster = cluster(3, 1, 2, 1, "v8.1.0");
    cluster.request.known_bad.insert(new(Role::DmWorker), "it exited 3 times".into());
    cluster.request.selected = vec![id("h2:8261")];
    assert_eq!(cluster.plan().turns.len(), 1);
    cluster.request.selected = vec![id("h2:8262")];
    assert_eq!(cluster.codes(), ["known-bad"]);
}

#[test]
fn dm_is_part_of_a_plan_only_if_a_running_part_of_it_has_a_turn() {
    let cluster = cluster_with(3, 1, 2, 1, "v8.1.0", true, &[]);
    assert!(cluster.plan().baseline.is_some());

    let mut monitoring = cluster.clone();
    monitoring.request.selected = vec![id("h1:9090")];
    assert_eq!(monitoring.plan().baseline, None);
    monitoring.inventory.dm = Err("no master answers".into());
    assert_eq!(monitoring.plan().turns.len(), 1);

    // DM has its build already: what it says is in nobody's way.
    let mut done = cluster.clone();
    for role in [Role::DmMaster, Role::DmWorker] {
        for instance in cluster.request.instances.iter().filter(|it| it.role == role) {
            let process = done.inventory.processes.get_mut(&instance.id).unwrap();
            (process.running, process.on_disk) = (Some(new(role)), Some(new(role)));
        }
    }
    done.inventory.dm = Err("no master answers".into());
    assert_eq!(done.plan().turns.len(), 3);

    let mut offline = cluster;
    offline.request.offline = true;
    offline.request.allow.force = true;
    assert_eq!(offline.plan().baseline, None);
}

#[test]
fn what_somebody_can_do_about_an_obstacle_is_said_with_it() {
    let silent = Blocker::DmSilent { why: "no master answers".into() };
    let away =
        Blocker::HostUnreachable { host: HostId::new("h1").unwrap(), why: "no route".into() };
    for (kind, named, leaves_out) in [
        (Kind::Hotfix, "`patch --offline`", true),
        (Kind::Upgrade, "`upgrade --offline`", false),
        (Kind::Restart, "start the cluster", true),
        (Kind::Reload, "start the cluster", true),
        (Kind::Rollback, "start the cluster", true),
    ] {
        let hint = silent.hint(kind).unwrap();
        assert!(hint.contains(named), "{kind:?}: {hint}");
        let of_others = [Kind::Hotfix, Kind::Upgrade].into_iter().filter(|it| *it != kind);
        for other in of_others {
            assert!(!hint.contains(other.command()), "{kind:?} names {other:?}: {hint}");
        }
        assert_eq!(away.hint(kind).unwrap().contains("-N"), leaves_out, "{kind:?}");
    }
    let (task, source_id) = (TaskName::new("task").unwrap(), SourceId::new("s1").unwrap());
    let waits = Blocker::DdlWaiting { task, source_id, count: 1 };
    assert!(waits.hint(Kind::Hotfix).unwrap().contains("dmctl show-ddl-locks"));
    assert_eq!(Blocker::UnitMissing { instance: id("h1:8261") }.hint(Kind::Hotfix), None);
}

#[test]
fn a_node_that_is_down_is_in_the_way_only_of_others_of_its_kind() {
    let mut cluster = cluster_with(3, 1, 3, 1, "v8.1.0", false, &["h3:8262"]);
    cluster.request.selected = vec![id("h2:8261")];
    assert_eq!(cluster.plan().turns.len(), 1);
    cluster.request.selected = vec![id("h2:8262")];
    assert_eq!(cluster.codes(), ["another-down"]);
}

#[test]
fn a_task_is_too_far_behind_only_while_it_follows_its_source_and_only_beyond_the_limit() {
    let blocked = |bend: fn(&mut SubtaskSeen)| {
        let mut cluster = cluster(3, 1, 2, 1, "v8.1.0");
        cluster.policy.max_lag_s = Some(60);
        let subtask = &mut cluster.dm().subtasks[0];
        (subtask.synced, subtask.lag_s) = (false, Some(61));
        bend(subtask);
        match cluster.decide() {
            Decision::Blocked(blockers) => blockers.iter().map(Blocker::code).collect(),
            Decision::Go(_) => Vec::new(),
            Decision::NothingToDo => panic!(),
        }
    };
    assert_eq!(blocked(|_| ()), ["lagging"]);
    let fine: [fn(&mut SubtaskSeen); 4] = [
        |it| it.lag_s = Some(60),
        |it| it.synced = true,
        |it| it.stage = SubtaskStage::Paused,
        |it| it.unit = SubtaskUnit::Check,
    ];
    for (index, bend) in fine.into_iter().enumerate() {
        assert_eq!(blocked(bend), Vec::<&str>::new(), "{index}");
    }
}

#[test]
fn a_clock_is_told_of_beyond_30_seconds_and_in_the_way_beyond_5_minutes() {
    let said = |clock_skew_ms| {
        let mut cluster = cluster(3, 1, 1, 0, "v8.1.0");
        let host = HostId::new("h2").unwrap();
        let seen = cluster.inventory.hosts.get_mut(&host).unwrap().as_mut().unwrap();
        seen.clock_skew_ms = clock_skew_ms;
        match cluster.decide() {
            Decision::Blocked(blockers) => {
                blockers.iter().map(|it| format!("{}: {it}", it.code())).collect()
            }
            Decision::Go(plan) => plan.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
            Decision::NothingToDo => panic!(),
        }
    };
    assert_eq!(said(30_000), Vec::<String>::new());
    assert_eq!(said(-30_001), ["the clock of h2 is -30s off"]);
    assert_eq!(said(300_000), ["the clock of h2 is 300s off"]);
    assert_eq!(said(300_001), ["clock-off: the clock of h2 is 300s off"]);
}

#[test]
fn a_guard_of_a_node_that_has_no_turn_is_in_nobodys_way() {
    let mut cluster = cluster(3, 1, 2, 1, "v8.1.0");
    let seen =
        cluster.inventory.hosts.get_mut(&HostId::new("h2").unwrap()).unwrap().as_mut().unwrap();
    let (instance, path) = (id("h2:8262"), "/home/dm/.dmup/guards/x.json".into());
    seen.leftovers = vec![Leftover { instance, kind: LeftoverKind::ArmedGuard, path, build: None }];
    cluster.request.selected = vec![id("h2:8261")];
    assert_eq!(cluster.plan().turns.len(), 1);
    cluster.request.selected = vec![id("h2:8262")];
    assert_eq!(cluster.codes(), ["guard-armed"]);
}

#[test]
fn masters_agree_if_all_that_are_up_name_one_who_says_so_of_itself() {
    let disputed = |bend: fn(&mut DmSeen)| {
        let mut cluster = cluster(3, 1, 1, 0, "v8.1.0");
        bend(cluster.dm());
        match cluster.decide() {
            Decision::Blocked(blockers) => blockers.iter().map(ToString::to_string).collect(),
            Decision::Go(_) => Vec::new(),
            Decision::NothingToDo => panic!(),
        }
    };
    assert_eq!(disputed(|_| ()), Vec::<String>::new());
    assert_eq!(
        disputed(|dm| dm.masters.iter_mut().for_each(|it| it.calls_leader = None)),
        [
            "the masters do not agree on one leader: m1 names nobody, m2 names nobody, m3 names nobody"
        ]
    );
    assert_eq!(
        disputed(|dm| dm.masters[0].leader = false),
        ["the masters do not agree on one leader: m1 names m1, m2 names m1, m3 names m1"]
    );
    assert_eq!(
        disputed(|dm| dm.masters[1].leader = true),
        ["the masters do not agree on one leader: m1 names m1, m2 names m1, m3 names m1"]
    );
}

#[test]
fn of_five_masters_one_may_be_down_besides_the_one_whose_turn_it_is() {
    let decided = |down: &[&'static str]| {
        let mut cluster = cluster_with(5, 1, 1, 0, "v8.1.0", false, down);
        cluster.request.allow.force = true; // another one is down
        cluster.request.selected = vec![id("h2:8261")];
        cluster.decide()
    };
    assert!(matches!(decided(&["h5:8261"]), Decision::Go(_)));
    let Decision::Blocked(blockers) = decided(&["h4:8261", "h5:8261"]) else { panic!() };
    assert_eq!(blockers, [Blocker::QuorumAtRisk { alive: 3, total: 5, needed: 3 }]);
}

#[test]
fn room_for_the_package_and_one_tree_per_node_is_enough() {
    let mut cluster = cluster(1, 1, 1, 0, "v8.1.0");
    let host = HostId::new("h1").unwrap();
    let mut with = |free| {
        let seen = cluster.inventory.hosts.get_mut(&host).unwrap().as_mut().unwrap();
        seen.free_bytes = [("/dm".into(), free)].into();
        cluster.decide()
    };
    assert!(matches!(with(900), Decision::Go(_)));
    let Decision::Blocked(blockers) = with(899) else { panic!() };
    assert!(matches!(blockers[..], [Blocker::DiskFull { free: 899, needed: 900, .. }]));
}

#[test]
fn a_unit_that_does_not_start_at_boot_is_told() {
    let mut cluster = cluster(3, 1, 2, 1, "v8.1.0");
    cluster.inventory.processes.get_mut(&id("h2:8262")).unwrap().enabled = false;
    assert_eq!(cluster.plan().warnings, [Warning::NotEnabled { instance: id("h2:8262") }]);
}

#[test]
fn workers_that_pull_a_relay_log_come_between_free_and_bound_ones_and_broken_monitoring_last() {
    let mut cluster = cluster_with(1, 1, 3, 1, "v8.1.0", true, &["h1:9090"]);
    cluster.request.allow.include_down = true;
    cluster.dm().workers[1].stage = WorkerStage::Relay;
    let order: Vec<_> = cluster.plan().turns.iter().map(|it| it.instance.to_string()).collect();
    assert_eq!(
        order,
        ["h1:8261", "h3:8262", "h2:8262", "h1:8262", "h1:9090", "h1:3000", "h1:9093"]
    );
}

#[test]
fn without_a_free_worker_each_source_that_will_stand_still_is_asked_about() {
    for version in ["v8.1.0", "v5.3.0"] {
        let cluster = cluster(3, 1, 2, 2, version);
        let plan = cluster.plan();
        let asked: Vec<String> = plan.consents.iter().map(ToString::to_string).collect();
        assert_eq!(
            asked,
            [1, 2].map(|n| format!("source s{n} stands still while h{n}:8262 restarts (about 5s): no free worker can take it over"))
        );
        let moves = |step: &Step| matches!(step, Step::Transfer { .. });
        assert!(!plan.turns.iter().any(|turn| turn.steps.iter().any(moves)));
    }
}

#[test]
fn a_node_is_not_watched_if_nobody_wants_that() {
    let cluster = cluster(3, 1, 1, 0, "v8.1.0");
    let policy = Policy { soak_s: 0, ..Policy::default() };
    let Decision::Go(plan) = plan_hotfix(&cluster.request, &cluster.inventory, &policy) else {
        panic!()
    };
    let soaks = |step: &Step| matches!(step, Step::Soak { .. });
    assert!(!plan.turns.iter().any(|turn| turn.steps.iter().any(soaks)));
}

#[test]
fn a_node_that_is_down_has_nothing_taken_off_it() {
    let mut cluster = cluster(3, 1, 3, 1, "v5.3.0");
    cluster.request.allow.include_down = true;
    // DM goes by leases and has not noticed yet.
    for down in ["h1:8261", "h1:8262"] {
        let process = cluster.inventory.processes.get_mut(&id(down)).unwrap();
        (process.active, process.running, process.pid) = (UnitActive::Failed, None, None);
    }
    cluster.request.selected = vec![id("h1:8261"), id("h1:8262")];
    insta::assert_snapshot!(transcript(&cluster.plan()), @r"
    h1:8261
      window
    h1:8262
      window
    ");
}

#[test]
fn no_source_is_moved_to_a_worker_that_has_got_one_on_the_way() {
    let plan = cluster(3, 1, 10, 3, "v5.3.0").plan();
    let moves: Vec<String> = plan
        .turns
        .iter()
        .flat_map(|turn| &turn.steps)
        .filter(|step| matches!(step, Step::Transfer { .. }))
        .map(Step::describe)
        .collect();
    assert_eq!(
        moves,
        [
            "move source s1 from w1 to w10",
            "move source s2 from w2 to w1",
            "move source s3 from w3 to w2"
        ]
    );
}

fn any_cluster() -> impl Strategy<Value = Cluster> {
    let versions = prop::sample::select(vec!["v5.3.0", "v6.1.2", "v6.1.3", "v8.1.0"]);
    (1_usize..6, 0_usize..6, 1_usize..12, 0_usize..12, versions, any::<bool>(), any::<u64>())
        .prop_map(|(masters, leader, workers, sources, version, has_monitoring, chance)| {
            let sources = sources.min(workers);
            let mut cluster = cluster_with(
                masters,
                1 + leader % masters,
                workers,
                sources,
                version,
                has_monitoring,
                &[],
            );
            let bit = |n: u32| chance >> n & 1 == 1;
            cluster.request.allow.force = bit(0);
            cluster.request.allow.include_down = bit(1);
            cluster.request.offline = bit(2) && bit(3) && bit(4);
            cluster.request.allow.defer = bit(40);
            cluster.request.allow.adopt = bit(41);
            cluster.policy.max_lag_s = bit(42).then_some(0);
            if bit(43) && bit(44) {
                let dm = cluster.inventory.dm.as_mut().unwrap();
                for subtask in dm.subtasks.iter_mut().step_by(2) {
                    subtask.unit = SubtaskUnit::Dump;
                }
            }
            if bit(5) {
                let mut n = 6;
                cluster.request.selected.retain(|_| {
                    n += 1;
                    chance >> (n % 60) & 1 == 1
                });
            }
            // Some processes are down, run something else, or have the build already.
            let ids: Vec<InstanceId> =
                cluster.request.instances.iter().map(|i| i.id.clone()).collect();
            for (index, id) in ids.iter().enumerate() {
                let role = cluster.request.instances[index].role;
                let process = cluster.inventory.processes.get_mut(id).unwrap();
                match (chance >> (index % 50)) & 0xf {
                    0 => {
                        process.active = UnitActive::Failed;
                        process.running = None;
                        process.pid = None;
                        let dm = cluster.inventory.dm.as_mut().unwrap();
                        for master in dm
                            .masters
                            .iter_mut()
                            .filter(|m| m.instance.as_ref() == Some(id) && !m.leader)
                        {
                            master.alive = false;
                            master.calls_leader = None;
                            master.etcd_healthy = None;
                        }
                        for worker in
                            dm.workers.iter_mut().filter(|w| w.instance.as_ref() == Some(id))
                        {
                            worker.stage = WorkerStage::Offline;
                        }
                    }
                    1 => process.on_disk = Some(new(role)),
                    2 => process.running = Some(Digest::of(b"foreign")),
                    3 => {
                        process.on_disk = Some(new(role));
                        process.running = Some(new(role));
                    }
                    4 if role == Role::DmWorker => {
                        if let Some(subtask) =
                            cluster.inventory.dm.as_mut().unwrap().subtasks.first_mut()
                        {
                            subtask.stage = SubtaskStage::Paused;
                        }
                    }
                    5 => (process.restarts, process.active_since_ms) = (3, Some(0)),
                    _ => {}
                }
            }
            cluster
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn any_cluster_gets_a_plan_that_keeps_the_rules_or_reasons_why_not(cluster in any_cluster()) {
        match cluster.decide() {
            Decision::Blocked(blockers) => prop_assert!(!blockers.is_empty()),
            Decision::NothingToDo => {
                for id in &cluster.request.selected {
                    let role = cluster.request.instances.iter().find(|i| i.id == *id).unwrap().role;
                    prop_assert_eq!(cluster.inventory.processes[id].on_disk.as_ref(), Some(&new(role)));
                }
            }
            Decision::Go(plan) => {
                prop_assert_eq!(check(&plan), vec![]);
                // Every prefix is a safe place to stop: it is a plan that keeps the rules as well.
                for length in 0..plan.turns.len() {
                    let mut prefix = (*plan).clone();
                    prefix.turns.truncate(length);
                    prop_assert_eq!(check(&prefix), vec![]);
                }
                let mut moves = BTreeMap::new();
                for step in plan.turns.iter().flat_map(|turn| &turn.steps) {
                    if let Step::Transfer { source, .. } = step {
                        *moves.entry(source.clone()).or_insert(0) += 1;
                    }
                }
                // But the source of a worker that keeps crashing leaves it first, whoever can take it.
                let crashes = |turn: &Turn| cluster.inventory.processes[&turn.instance].restarts > 0;
                let once = moves.values().all(|count| *count == 1);
                prop_assert!(once || plan.turns.iter().any(crashes), "{:?}", moves);
                // Every selected instance that has not the build yet has one turn; nobody else has.
                for instance in &plan.instances {
                    let process = &cluster.inventory.processes[&instance.id];
                    let target = new(instance.role);
                    let is_done = process.on_disk.as_ref() == Some(&target)
                        && process.running.as_ref().is_none_or(|running| *running == target);
                    let is_deferred = plan.warnings.iter().any(|warning| matches!(warning, Warning::Deferred { instance: id, .. } if *id == instance.id));
                    let wanted =
                        cluster.request.selected.contains(&instance.id) && !is_done && !is_deferred;
                    let turns = plan.turns.iter().filter(|t| t.instance == instance.id).count();
                    prop_assert_eq!(turns, usize::from(wanted), "{}", instance.id);
                }
            }
        }
    }
}

/// Files of an instance that an upgrade writes.
fn texts() -> TextsChange {
    TextsChange {
        before: Digest::of(b"files before"),
        after: Digest::of(b"files after"),
        paths: vec!["/dm/scripts/run.sh".into()],
    }
}

/// Everything gets v8.5.0, from a package of each component; files of DM differ.
fn upgrade(mut cluster: Cluster) -> Cluster {
    let of_dm = cluster.request.instances.iter().filter(|it| it.role.is_dm());
    cluster.request.purpose = Purpose::Upgrade {
        to: "v8.5.0".parse().unwrap(),
        texts: of_dm.map(|it| (it.id.clone(), texts())).collect(),
    };
    let parcel = cluster.request.parcel.take().unwrap();
    for (role, target) in &mut cluster.request.targets {
        let digest = Digest::of(role.as_str().as_bytes());
        target.parcel = Some(digest.clone());
        cluster.request.parcels.push(ParcelSpec { digest, ..parcel.clone() });
    }
    cluster
}

fn roles(plan: &Plan) -> Vec<Role> {
    plan.turns.iter().map(|turn| plan.instance(&turn.instance).unwrap().role).collect()
}

#[test]
fn an_upgrade_is_one_run_with_masters_before_workers_and_files_in_every_window() {
    let plan = upgrade(cluster_with(3, 1, 3, 2, "v8.1.0", true, &[])).plan();
    let heading = render(&plan);
    assert!(
        heading.starts_with("Upgrade of prod from v8.1.0 to v8.5.0, 9 node(s), plan "),
        "{heading}"
    );
    assert_eq!((plan.kind, plan.version_after().as_str()), (Kind::Upgrade, "v8.5.0"));
    use Role::{Alertmanager, DmMaster as M, DmWorker as W, Grafana, Prometheus};
    assert_eq!(roles(&plan), [M, M, M, W, W, W, Prometheus, Grafana, Alertmanager]);
    let leaders: Vec<usize> = (0..9)
        .filter(|at| plan.turns[*at].steps.iter().any(|it| matches!(it, Step::EvictLeader { .. })))
        .collect();
    assert_eq!(leaders, [2]);
    for turn in &plan.turns {
        let is_dm = plan.instance(&turn.instance).unwrap().role.is_dm();
        let after =
            |it: &Step| matches!(it, Step::Window { texts: Some(it), .. } if *it == texts().after);
        let unmarked = |it: &Step| matches!(it, Step::MarkPatched { patched: false, .. });
        let guarded = |it: &Step| matches!(it, Step::ArmGuard { .. });
        assert!(turn.from != turn.to && !turn.patched, "{}", turn.instance);
        assert_eq!(turn.steps.iter().any(after), is_dm, "{}", turn.instance);
        assert!(turn.steps.iter().any(unmarked) && turn.steps.iter().any(guarded));
    }
    // Every host is sent what runs there, and no more.
    let sent: Vec<(&str, Option<Role>)> = plan
        .preparation
        .iter()
        .filter_map(|it| match it {
            Step::Stage { host, of } => Some((host.as_str(), *of)),
            _ => None,
        })
        .collect();
    let here = [M, W, Prometheus, Grafana, Alertmanager].map(|role| ("h1", Some(role)));
    let there = ["h2", "h3"].map(|host| [(host, Some(M)), (host, Some(W))]);
    assert_eq!(sent, [&here[..], &there[0], &there[1]].concat());
    assert_eq!(plan.preparation.iter().filter(|it| matches!(it, Step::Prepare { .. })).count(), 9);
}

#[test]
fn what_is_in_the_way_of_monitoring_is_told_and_keeps_dm_from_nothing() {
    let mut cluster = upgrade(cluster_with(3, 1, 3, 2, "v8.1.0", true, &["h1:9090"]));
    cluster.inventory.processes.get_mut(&id("h1:3000")).unwrap().on_disk = None;
    cluster.request.known_bad.insert(new(Role::Alertmanager), "it exited".to_owned());
    let plan = cluster.plan();
    // One that is down may be cured.
    assert_eq!(roles(&plan)[6..], [Role::Prometheus]);
    assert!(plan.turns[6].was_broken && plan.tolerates(&id("h1:9090")));
    let told: Vec<String> = plan.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 3, "{told:?}");
    for (word, of) in [
        ("is down", "h1:9090 (prometheus)"),
        ("no executable", "h1:3000 (grafana)"),
        ("failed before", "h1:9093 (alertmanager)"),
    ] {
        assert!(told.iter().any(|it| it.contains(word) && it.starts_with(of)), "{told:?}");
    }
    // What is not needed is not a fact of the plan, either.
    assert!(!plan.based_on.is_about(&id("h1:9090")) && plan.based_on.is_about(&id("h1:8261")));

    // Once DM has it, what is left to do is in the way of nothing but itself.
    for instance in cluster.request.instances.iter().filter(|it| it.role.is_dm()) {
        let process = cluster.inventory.processes.get_mut(&instance.id).unwrap();
        let build = Some(new(instance.role));
        (process.on_disk, process.running) = (build.clone(), build);
    }
    let Purpose::Upgrade { texts, .. } = &mut cluster.request.purpose else { panic!() };
    texts.clear();
    assert_eq!(roles(&cluster.plan()), [Role::Prometheus]);
    cluster.request.selected.retain(|it| *it != id("h1:9090"));
    assert_eq!(cluster.codes(), ["binary-missing", "known-bad"]);
    cluster.request.allow.force_build = true;
    assert_eq!(roles(&cluster.plan()), [Role::Alertmanager]);
}

#[test]
fn a_full_disk_keeps_monitoring_from_its_turn_before_it_keeps_dm_from_its() {
    let mut cluster = upgrade(cluster_with(3, 1, 3, 2, "v8.1.0", true, &[]));
    // Master and worker: each its package and a tree of it.
    let Some(Ok(seen)) = cluster.inventory.hosts.get_mut(&HostId::new("h1").unwrap()) else {
        panic!()
    };
    for free in seen.free_bytes.values_mut() {
        *free = 4 * 300 + 2 * 300;
    }
    let plan = cluster.plan();
    assert_eq!(roles(&plan)[6..], [Role::Prometheus]);
    let left = |it: &&Warning| matches!(it, Warning::MonitoringLeft { .. });
    assert_eq!(plan.warnings.iter().filter(left).count(), 2);
    assert_eq!(plan.parcels.len(), 3, "what nobody is sent is not part of the plan");
}

#[test]
fn monitoring_that_is_down_stops_a_restart_of_it_and_no_restart_of_the_cluster() {
    let cluster = cluster_with(3, 1, 3, 2, "v8.1.0", true, &["h1:9090"]);
    let decide = |wanted: fn(Role) -> bool| {
        let all = cluster.request.instances.iter();
        let request = RestartRequest {
            cluster: cluster.request.cluster.clone(),
            version: cluster.request.version.clone(),
            instances: cluster.request.instances.clone(),
            targets: all.filter(|it| wanted(it.role)).map(|it| (it.id.clone(), None)).collect(),
            is_reload: false,
            allow: Allowances::default(),
        };
        plan_restart(&request, &cluster.inventory, &cluster.policy)
    };
    let Decision::Go(plan) = decide(|_| true) else { panic!() };
    assert_eq!(plan.turns.len(), 9);
    assert!(matches!(plan.warnings[..], [Warning::MonitoringDown { .. }]), "{:?}", plan.warnings);
    let Decision::Blocked(blockers) = decide(|role| role == Role::Prometheus) else { panic!() };
    assert_eq!(blockers.iter().map(Blocker::code).collect::<Vec<_>>(), ["instance-down"]);
}

#[test]
fn an_upgrade_has_masters_before_a_worker_that_is_down() {
    let mut cluster = upgrade(cluster(3, 1, 2, 1, "v8.1.0"));
    cluster.request.allow.include_down = true;
    let down = cluster.inventory.processes.get_mut(&id("h2:8262")).unwrap();
    down.active = UnitActive::Failed;
    let plan = cluster.plan();
    assert_eq!(roles(&plan)[..3], [Role::DmMaster; 3]);
    assert!(plan.turns[3].was_broken);
    let mut other = plan;
    other.turns.swap(2, 3);
    let broken = check(&other);
    assert!(
        broken.iter().any(|it| it.rule.starts_with("masters get another version")),
        "{broken:?}"
    );
}

#[test]
fn a_node_of_an_upgrade_that_has_the_build_gets_its_files_and_one_that_has_both_is_left_alone() {
    let mut cluster = upgrade(cluster(3, 1, 3, 2, "v8.1.0"));
    for node in ["h2:8261", "h3:8261"] {
        let process = cluster.inventory.processes.get_mut(&id(node)).unwrap();
        (process.on_disk, process.running) = (Some(new(Role::DmMaster)), Some(new(Role::DmMaster)));
    }
    let Purpose::Upgrade { texts, .. } = &mut cluster.request.purpose else { panic!() };
    texts.remove(&id("h3:8261"));
    for (offline, around) in [(false, Around::Restart), (true, Around::Offline)] {
        cluster.request.offline = offline;
        if offline {
            for process in cluster.inventory.processes.values_mut() {
                (process.active, process.running) = (UnitActive::Inactive, None);
            }
        }
        let plan = cluster.plan();
        assert!(plan.turns.iter().all(|turn| turn.instance != id("h3:8261")));
        let turn = plan.turns.iter().find(|turn| turn.instance == id("h2:8261")).unwrap();
        assert_eq!(turn.from, turn.to);
        let window = turn.steps.iter().find(|it| matches!(it, Step::Window { .. })).unwrap();
        assert!(matches!(window, Step::Window { around: it, texts: Some(_), .. } if *it == around));
        let is_prepared =
            |it: &Step| matches!(it, Step::Prepare { instance, .. } if *instance == turn.instance);
        assert!(!plan.preparation.iter().any(is_prepared));
    }
}

#[test]
fn a_new_configuration_of_monitoring_is_checked_before_all_turns_and_never_on_the_way_back() {
    let mut cluster = upgrade(cluster_with(3, 1, 3, 2, "v8.1.0", true, &[]));
    let instances = cluster.request.instances.clone();
    let of = |instance: &Instance, file: &str| {
        let paths = vec![instance.deploy_dir.join(file)];
        (instance.id.clone(), TextsChange { paths, ..texts() })
    };
    let checks = |plan: &Plan| -> Vec<String> {
        let is_check = |it: &&Step| matches!(it, Step::Check { .. });
        plan.preparation.iter().filter(is_check).map(Step::describe).collect()
    };
    let both = [
        "check the new configuration of h1:9090 with promtool",
        "check the new configuration of h1:9093 with amtool",
    ];
    for (file, expected) in
        [("conf/any.yml", &both[..]), ("scripts/run.sh", &[]), ("conf/grafana.ini", &[])]
    {
        let texts: BTreeMap<_, _> = instances.iter().map(|it| of(it, file)).collect();
        let to = "v8.5.0".parse().unwrap();
        cluster.request.purpose = Purpose::Upgrade { to, texts: texts.clone() };
        let mut plan = cluster.plan();
        assert_eq!(checks(&plan), expected, "{file}");
        plan.preparation.retain(|it| !matches!(it, Step::Check { .. }));
        let rule = "a new configuration is checked before any window";
        let broken = check(&plan).iter().filter(|it| it.rule == rule).count();
        assert_eq!(broken, expected.len(), "{file}");

        let mut targets = BTreeMap::new();
        targets.extend(texts.into_iter().map(|(id, change)| (id, Some(change))));
        let request = RestartRequest {
            cluster: cluster.request.cluster.clone(),
            version: cluster.request.version.clone(),
            instances: instances.clone(),
            targets,
            is_reload: true,
            allow: Allowances::default(),
        };
        let decision = plan_restart(&request, &cluster.inventory, &cluster.policy);
        let Decision::Go(plan) = decision else { panic!("{decision:?}") };
        assert_eq!(checks(&plan), expected, "{file}");
        plan.preparation.iter().for_each(|it| assert!(it.is_preparation(), "{it:?}"));

        let back = |(id, change): (InstanceId, Option<TextsChange>)| {
            let (build, texts) = (Some(old()), change.map(|it| it.reversed()));
            (id, RollbackTarget { build, patched: false, texts })
        };
        let request = RollbackRequest {
            cluster: request.cluster,
            version: request.version,
            to_version: None,
            instances: request.instances,
            targets: request.targets.into_iter().map(back).collect(),
            offline: false,
            allow: Allowances::default(),
        };
        let decision = plan_rollback(&request, &cluster.inventory, &cluster.policy);
        let Decision::Go(plan) = decision else { panic!("{decision:?}") };
        assert_eq!((plan.turns.len(), checks(&plan)), (instances.len(), Vec::new()), "{file}");
    }
}

#[test]
fn an_upgrade_needs_a_build_for_every_node_of_dm() {
    let mut cluster = upgrade(cluster_with(3, 1, 2, 1, "v8.1.0", true, &[]));
    cluster.request.targets.remove(&Role::DmWorker);
    assert_eq!(cluster.codes(), ["not-in-package"; 2]);
}

#[test]
fn nodes_of_another_architecture_get_their_own_build() {
    let mut cluster = upgrade(cluster(3, 1, 3, 2, "v8.1.0"));
    let arm = TargetBuild { digest: Digest::of(b"arm64"), replace: Vec::new(), parcel: None };
    cluster.request.exceptions.insert(id("h2:8262"), arm.clone());
    let plan = cluster.plan();
    for turn in &plan.turns {
        let instance = plan.instance(&turn.instance).unwrap();
        let is_arm = instance.id == id("h2:8262");
        assert_eq!(turn.to, if is_arm { arm.digest.clone() } else { new(instance.role) });
        assert_eq!(plan.target(instance).map(|it| &it.digest), Some(&turn.to));
    }
    cluster.request.known_bad.insert(arm.digest, "it failed".to_owned());
    assert_eq!(cluster.codes(), ["known-bad"]);
}

#[test]
fn an_upgrade_is_rolled_back_with_its_files_and_its_version() {
    let cluster = cluster(3, 1, 3, 2, "v8.5.0");
    let target = RollbackTarget {
        build: Some(Digest::of(b"older")),
        patched: true,
        texts: Some(texts().reversed()),
    };
    let request = RollbackRequest {
        cluster: cluster.request.cluster.clone(),
        version: cluster.request.version.clone(),
        to_version: Some("v8.1.0".parse().unwrap()),
        instances: cluster.request.instances.clone(),
        targets: cluster.request.selected.iter().map(|id| (id.clone(), target.clone())).collect(),
        offline: false,
        allow: Allowances { force: true, ..Allowances::default() },
    };
    let mut inventory = cluster.inventory.clone();
    let hosts: Vec<HostId> = inventory.hosts.keys().cloned().collect();
    for host in hosts {
        let Some(Ok(seen)) = inventory.hosts.get_mut(&host) else { panic!() };
        for instance in cluster.request.instances.iter().filter(|it| it.host == host) {
            seen.leftovers.push(Leftover {
                instance: instance.id.clone(),
                kind: LeftoverKind::Tree,
                path: "/dm/bin.dmup".into(),
                build: Some(Digest::of(b"older")),
            });
        }
    }
    let decision = plan_rollback(&request, &inventory, &Policy::default());
    let Decision::Go(plan) = decision else { panic!("{decision:?}") };
    assert!(render(&plan).starts_with("Rollback of prod from v8.5.0 to v8.1.0, 6 node(s)"));
    assert_eq!(plan.turns.len(), 6);
    for turn in &plan.turns {
        assert_eq!(turn.texts, Some(texts().reversed()));
        assert!(
            turn.steps.iter().any(
                |it| matches!(it, Step::Window { texts: Some(it), .. } if *it == texts().before)
            )
        );
        assert!(turn.steps.iter().any(|it| matches!(it, Step::MarkPatched { patched: true, .. })));
    }
}
