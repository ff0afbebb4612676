//! What a node and the cluster around it owe after a window: as much as before, and nothing that was missing before.
#![allow(clippy::unwrap_used, reason = "the whole file is a test, its builders as well")]

use std::collections::{BTreeMap, BTreeSet};

use dmup_core::digest::Digest;
use dmup_core::ids::{HostId, InstanceId, MemberName, SourceId, TaskName, UnitName};
use dmup_core::instance::{Instance, Role};
use dmup_core::inventory::{
    DmSeen, MasterSeen, ProcessSeen, SideSeen, SubtaskSeen, SubtaskStage, SubtaskUnit, UnitActive,
    WorkerSeen, WorkerStage,
};
use dmup_core::plan::{Expectation, Health, busy, is_quiet, is_up, judge, judge_cluster};

/// `m1` or `w1`, on `h1`.
fn instance(name: &str) -> Instance {
    let (role, port) =
        if name.starts_with('m') { (Role::DmMaster, 8261) } else { (Role::DmWorker, 8262) };
    let host = HostId::new(format!("h{}", &name[1..])).unwrap();
    Instance {
        id: InstanceId::new(format!("{host}:{port}")).unwrap(),
        role,
        name: member(name),
        host: host.clone(),
        ssh_host: host,
        ssh_port: 22,
        port,
        ports: vec![port],
        deploy_dir: "/d".into(),
        data_dirs: Vec::new(),
        log_dir: "/d/log".into(),
        unit: UnitName::new(format!("{role}-{port}.service")).unwrap(),
        os: "linux".into(),
        arch: "amd64".into(),
        patched: false,
    }
}

fn member(name: &str) -> MemberName {
    MemberName::new(name).unwrap()
}

fn source(name: &str) -> SourceId {
    SourceId::new(name).unwrap()
}

fn subtask(task: &str, of: &str, worker: &str) -> SubtaskSeen {
    SubtaskSeen {
        task: TaskName::new(task).unwrap(),
        source: source(of),
        worker: Some(member(worker)),
        stage: SubtaskStage::Running,
        unit: SubtaskUnit::Sync,
        errors: Vec::new(),
        synced: true,
        position: Some("1".into()),
        source_position: Some("1".into()),
        lag_s: Some(0),
        blocked_ddls: 0,
        validator: None,
    }
}

/// Three masters of which the second leads, three workers of which the third is free, two tasks on the first source.
fn dm() -> DmSeen {
    let master = |name: &str| MasterSeen {
        name: member(name),
        instance: Some(instance(name).id),
        alive: true,
        leader: name == "m2",
        calls_leader: Some(member("m2")),
        etcd_healthy: Some(true),
        release: None,
    };
    let worker = |name: &str, bound: Option<&str>| WorkerSeen {
        name: member(name),
        instance: Some(instance(name).id),
        stage: if bound.is_some() { WorkerStage::Bound } else { WorkerStage::Free },
        source: bound.map(source),
    };
    DmSeen {
        masters: ["m1", "m2", "m3"].map(master).into(),
        workers: vec![worker("w1", Some("s1")), worker("w2", Some("s2")), worker("w3", None)],
        sources: BTreeMap::from([
            (source("s1"), Some(member("w1"))),
            (source("s2"), Some(member("w2"))),
        ]),
        relays: BTreeMap::new(),
        subtasks: vec![
            subtask("t1", "s1", "w1"),
            subtask("t2", "s1", "w1"),
            subtask("t1", "s2", "w2"),
        ],
    }
}

/// Of a unit that systemd has begun to start.
fn process() -> ProcessSeen {
    ProcessSeen {
        active: UnitActive::Activating,
        sub_state: "start".into(),
        enabled: true,
        pid: None,
        restarts: 0,
        active_since_ms: None,
        running: None,
        on_disk: None,
    }
}

fn cluster_health(turn: &str, before: &DmSeen, now: &DmSeen) -> Health {
    health_with(&BTreeSet::new(), turn, before, now)
}

fn health_with(
    paused_by_us: &BTreeSet<(TaskName, SourceId)>,
    turn: &str,
    before: &DmSeen,
    now: &DmSeen,
) -> Health {
    let (instance, build) = (instance(turn), Digest::of(b"new"));
    let expected = Expectation {
        instance: &instance,
        build: &build,
        pid_before: Some(7),
        baseline: Some(before),
        paused_by_us,
        stopped: &BTreeSet::new(),
        was_broken: false,
    };
    judge_cluster(&expected, before, now)
}

/// What is missing after the turn of a node; `before` bends both looks, `now` the later one.
fn missing(turn: &str, before: impl Fn(&mut DmSeen), now: impl Fn(&mut DmSeen)) -> Vec<String> {
    let mut then = dm();
    before(&mut then);
    let mut later = then.clone();
    now(&mut later);
    cluster_health(turn, &then, &later).missing
}

fn nothing(_: &mut DmSeen) {}

const NONE: [&str; 0] = [];

#[test]
fn a_cluster_as_before_lacks_nothing_whoever_had_its_turn() {
    for turn in ["m1", "m2", "m3", "w1", "w2", "w3"] {
        assert_eq!(missing(turn, nothing, nothing), NONE, "{turn}");
    }
}

#[test]
fn a_process_that_is_not_there_yet_is_not_asked_which_build_it_is() {
    let process = process();
    let (instance, build, none) = (instance("m1"), Digest::of(b"new"), BTreeSet::new());
    let expected = Expectation {
        instance: &instance,
        build: &build,
        pid_before: Some(7),
        baseline: None,
        paused_by_us: &none,
        stopped: &none,
        was_broken: false,
    };
    let health = judge(&expected, &process, None);
    assert_eq!(
        health.missing,
        ["the unit of h1:8261 is on its way (start)", "h1:8261 has no process"]
    );
}

#[test]
fn a_master_that_dm_did_not_know_before_is_known_after_its_turn() {
    let unknown = |dm: &mut DmSeen| drop(dm.masters.remove(0));
    assert_eq!(missing("m1", unknown, nothing), ["the masters do not list h1:8261"]);
    assert_eq!(missing("w1", unknown, nothing), NONE);
}

#[test]
fn the_other_masters_are_as_before() {
    let lost = |dm: &mut DmSeen| drop(dm.masters.remove(2));
    assert_eq!(missing("m1", nothing, lost), ["the masters do not list m3"]);
    let dead = |dm: &mut DmSeen| dm.masters[2].alive = false;
    assert_eq!(missing("m1", nothing, dead), ["master m3 is not alive"]);
    let ill = |dm: &mut DmSeen| dm.masters[2].etcd_healthy = None;
    assert_eq!(missing("m1", nothing, ill), ["etcd of master m3 is not healthy"]);
    let dumb = |dm: &mut DmSeen| dm.masters[2].calls_leader = None;
    assert_eq!(missing("m1", nothing, dumb), ["master m3 does not follow m2"]);
    // And no more than that.
    for before in [lost, dead, ill, dumb] as [fn(&mut DmSeen); 4] {
        assert_eq!(missing("m1", before, nothing), NONE);
    }
}

#[test]
fn a_master_that_was_down_before_owes_everything_after_its_own_turn() {
    let down = |dm: &mut DmSeen| {
        let master = &mut dm.masters[0];
        (master.alive, master.etcd_healthy, master.calls_leader) = (false, None, None);
    };
    assert_eq!(
        missing("m1", down, nothing),
        ["master m1 is not alive", "etcd of master m1 is not healthy"]
    );
    let up = |dm: &mut DmSeen| dm.masters[0].alive = true;
    assert_eq!(
        missing("m1", down, up),
        ["etcd of master m1 is not healthy", "master m1 does not follow m2"]
    );
    assert_eq!(missing("m1", down, |now| *now = dm()), NONE);
}

#[test]
fn the_other_workers_are_as_before() {
    let offline = |dm: &mut DmSeen| dm.workers[2].stage = WorkerStage::Offline;
    assert_eq!(missing("w1", nothing, offline), ["worker w3 is offline"]);
    assert_eq!(missing("m1", nothing, offline), ["worker w3 is offline"]);
    assert_eq!(missing("w1", offline, nothing), NONE);
    assert_eq!(missing("w3", nothing, offline), ["DM does not list h3:8262 as online"]);
}

#[test]
fn each_task_is_compared_with_itself() {
    let stands = |dm: &mut DmSeen| dm.subtasks[1].stage = SubtaskStage::Stopped;
    assert_eq!(missing("w1", nothing, stands), ["task t2 on source s1 is Stopped, was Running"]);
    let elsewhere = |dm: &mut DmSeen| dm.subtasks[2].stage = SubtaskStage::Stopped;
    assert_eq!(missing("w1", nothing, elsewhere), ["task t1 on source s2 is Stopped, was Running"]);
}

#[test]
fn what_is_paused_without_an_error_is_somebodys_doing_and_owes_nothing() {
    let paused = |stage: SubtaskStage, errors: &[&str]| {
        let mut now = dm();
        now.subtasks[0].stage = stage;
        now.subtasks[0].errors = errors.iter().map(|&it| it.to_owned()).collect();
        let health = cluster_health("w1", &dm(), &now);
        (health.missing, health.paused_by_others)
    };
    let by_others = (Vec::new(), vec!["task t1 on source s1".to_owned()]);
    assert_eq!(paused(SubtaskStage::Paused, &[]), by_others);
    assert_eq!(paused(SubtaskStage::Pausing, &[]), by_others);
    let (missing, others) = paused(SubtaskStage::Paused, &["Duplicate entry"]);
    assert_eq!(
        missing,
        [
            "task t1 on source s1 is Paused, was Running",
            "task t1 on source s1 has an error: Duplicate entry"
        ]
    );
    assert_eq!(others, NONE);
}

#[test]
fn a_task_that_had_an_error_before_owes_none_whatever_it_says_now() {
    let ill = |text: &'static str| move |dm: &mut DmSeen| dm.subtasks[0].errors = vec![text.into()];
    assert_eq!(missing("w1", ill("one"), ill("another")), NONE);
    assert_eq!(
        missing("w1", nothing, ill("another")),
        ["task t1 on source s1 has an error: another"]
    );
}

#[test]
fn what_we_paused_ourselves_may_stand_and_have_an_error() {
    let ours = BTreeSet::from([(TaskName::new("t1").unwrap(), source("s1"))]);
    let mut now = dm();
    now.subtasks[0].stage = SubtaskStage::Paused;
    now.subtasks[0].errors = vec!["context canceled".into()];
    assert_eq!(health_with(&ours, "w1", &dm(), &now).missing, NONE);
    // Once it runs again it owes as much as any other.
    now.subtasks[0].stage = SubtaskStage::Running;
    assert_eq!(
        health_with(&ours, "w1", &dm(), &now).missing,
        ["task t1 on source s1 has an error: context canceled"]
    );
}

#[test]
fn the_validator_of_a_task_is_owed_while_the_task_runs() {
    let validated = |dm: &mut DmSeen| {
        let (stage, errors) = (SubtaskStage::Running, Vec::new());
        dm.subtasks[0].validator = Some(SideSeen { stage, errors });
    };
    let gone = |dm: &mut DmSeen| dm.subtasks[0].validator = None;
    assert_eq!(
        missing("w1", validated, gone),
        ["the validator of task t1 on source s1 is not there"]
    );
    let finished = |dm: &mut DmSeen| {
        gone(dm);
        dm.subtasks[0].stage = SubtaskStage::Finished;
    };
    assert_eq!(missing("w1", validated, finished), NONE);
}

#[test]
fn a_task_that_was_finished_stays_so_and_need_not_answer_any_more() {
    let finished = |dm: &mut DmSeen| dm.subtasks[0].stage = SubtaskStage::Finished;
    assert_eq!(missing("w1", finished, nothing), NONE);
    let again = |dm: &mut DmSeen| dm.subtasks[0].stage = SubtaskStage::Running;
    assert_eq!(missing("w1", finished, again), ["task t1 on source s1 is Running, was Finished"]);
    let silent = |dm: &mut DmSeen| drop(dm.subtasks.remove(0));
    assert_eq!(missing("w1", finished, silent), NONE);
    assert_eq!(missing("w1", nothing, silent), ["nobody answers for task t1 on source s1"]);
}

#[test]
fn any_one_sign_of_movement_is_enough_and_none_is_not() {
    let before = |dm: &mut DmSeen| {
        let it = &mut dm.subtasks[0];
        (it.synced, it.lag_s) = (false, Some(100));
        (it.position, it.source_position) = (Some("1".into()), Some("8".into()));
    };
    let hangs = |it: &mut SubtaskSeen| {
        (it.source_position, it.lag_s) = (Some("9".into()), Some(106));
    };
    let with = |sign: fn(&mut SubtaskSeen)| {
        missing("w1", before, |dm| {
            hangs(&mut dm.subtasks[0]);
            sign(&mut dm.subtasks[0]);
        })
    };
    assert_eq!(with(|_| ()), ["task t1 on source s1 does not advance (lag 106s)"]);
    let signs: [fn(&mut SubtaskSeen); 5] = [
        |it| it.synced = true,
        |it| it.source_position = Some("1".into()),
        |it| it.position = Some("2".into()),
        |it| it.source_position = Some("8".into()),
        |it| it.lag_s = Some(105),
    ];
    for (index, sign) in signs.into_iter().enumerate() {
        assert_eq!(with(sign), NONE, "{index}");
    }
    // What this node did not carry cannot have been held up by its window.
    assert_eq!(missing("w2", before, |dm| hangs(&mut dm.subtasks[0])), NONE);
}

#[test]
fn rows_that_flow_past_a_node_that_hangs_are_no_progress_of_it() {
    let progress = |stage: SubtaskStage, position: &str| {
        let mut now = dm();
        (now.subtasks[0].stage, now.subtasks[0].position) = (stage, Some(position.into()));
        cluster_health("w1", &dm(), &now).progress
    };
    let (running, standing) = (SubtaskStage::Running, SubtaskStage::Stopped);
    assert_eq!(progress(running, "1"), progress(running, "2"));
    assert_ne!(progress(standing, "1"), progress(standing, "2"));
}

#[test]
fn a_worker_is_quiet_once_what_runs_on_it_has_caught_up() {
    let busy_with = |bend: fn(&mut SubtaskSeen)| {
        let mut dm = dm();
        let it = &mut dm.subtasks[0];
        (it.synced, it.source_position, it.lag_s) = (false, Some("9".into()), Some(2));
        bend(it);
        let busy = ["w1", "w2", "w3"].map(|name| busy(&dm, &instance(name)));
        let quiet = ["w1", "w2", "w3"].map(|name| is_quiet(&dm, &instance(name)));
        assert_eq!(quiet, busy.each_ref().map(Vec::is_empty));
        assert_eq!(busy[1..], [NONE, NONE]);
        busy[0].clone()
    };
    assert_eq!(busy_with(|_| ()), ["task t1 on source s1 is behind (lag 2s, at 1 of 9)"]);
    assert_eq!(
        busy_with(|it| (it.position, it.source_position, it.lag_s) = (None, None, None)),
        ["task t1 on source s1 is behind (lag unknown, at ? of ?)"]
    );
    let quiet: [fn(&mut SubtaskSeen); 4] = [
        |it| it.synced = true,
        |it| it.position = Some("9".into()),
        |it| it.lag_s = Some(1),
        |it| it.stage = SubtaskStage::Paused,
    ];
    for (index, bend) in quiet.into_iter().enumerate() {
        assert_eq!(busy_with(bend), NONE, "{index}");
    }
}

#[test]
fn a_node_is_up_if_neither_its_host_nor_dm_says_otherwise() {
    let seen = |name: &str, active, bend: fn(&mut DmSeen)| {
        let process = ProcessSeen { active, sub_state: "dead".into(), ..process() };
        let mut dm = dm();
        bend(&mut dm);
        is_up(&instance(name), Some(&process), Some(&dm))
    };
    let lacks = |text: &str| Err(text.to_owned());
    let active = UnitActive::Active;
    for name in ["m1", "w1", "w3"] {
        assert_eq!(seen(name, active, nothing), Ok(()));
        assert_eq!(seen(name, UnitActive::Failed, nothing), lacks("its unit is failed (dead)"));
        let unknown = |dm: &mut DmSeen| (dm.masters, dm.workers) = (Vec::new(), Vec::new());
        assert_eq!(seen(name, active, unknown), lacks("DM does not list it"));
        assert_eq!(is_up(&instance(name), None, None), Ok(()));
    }
    let dead = |dm: &mut DmSeen| dm.masters[0].alive = false;
    assert_eq!(seen("m1", active, dead), lacks("DM lists it as not alive"));
    assert_eq!(seen("m2", active, dead), Ok(()));
    let offline = |dm: &mut DmSeen| dm.workers[0].stage = WorkerStage::Offline;
    assert_eq!(seen("w1", active, offline), lacks("DM lists it as offline"));
    assert_eq!(seen("w2", active, offline), Ok(()));
}
