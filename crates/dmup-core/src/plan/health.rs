//! Whether a node, and the cluster around it, is as healthy as before.
//!
//! Pure: two looks in, findings out. An open port proves nothing; what counts is which
//! file the process runs, what it says of itself, what the masters say of it, and that
//! every source and subtask stands as it stood, or better (dm.md 5.4).

use std::collections::BTreeSet;

use crate::digest::Digest;
use crate::ids::{MemberName, SourceId, TaskName};
use crate::instance::{Instance, Role};
use crate::inventory::{
    DmSeen, ProcessSeen, SideSeen, SubtaskSeen, SubtaskStage, SubtaskUnit, UnitActive, WorkerStage,
};

use super::turn::{leader_of, master_of, worker_of};

/// Lag in seconds that counts as keeping up, on top of what it was before.
const LAG_ALLOWANCE_S: u64 = 5;

/// What the node must come to.
#[derive(Clone, Debug)]
pub struct Expectation<'a> {
    /// Whose turn it is.
    pub instance: &'a Instance,
    /// What its process must run.
    pub build: &'a Digest,
    /// Its process before the window; a new one must have taken its place.
    pub pid_before: Option<u32>,
    /// DM right before the turn; none if DM plays no part.
    pub baseline: Option<&'a DmSeen>,
    /// Subtasks that we paused and have not resumed: they may stand.
    pub paused_by_us: &'a BTreeSet<(TaskName, SourceId)>,
    /// Subtasks that somebody has stopped: the masters do not know them any more, and nothing is asked of them.
    pub stopped: &'a BTreeSet<(TaskName, SourceId)>,
    /// It was down before.
    pub was_broken: bool,
}

/// A judgement.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Health {
    /// What is still missing, one sentence each; empty: healthy.
    pub missing: Vec<String>,
    /// Why waiting longer is of no use.
    pub hopeless: Option<String>,
    /// What stands because somebody has paused it meanwhile, one sentence each: it says nothing about the node.
    pub paused_by_others: Vec<String>,
    /// Subtasks that nobody answers for: lost by the node, or stopped by somebody. The masters know which.
    pub unanswered: Vec<(TaskName, SourceId)>,
    /// Changes whenever something moves on; compared for equality only.
    pub progress: String,
}

impl Health {
    /// Nothing is missing.
    pub fn is_good(&self) -> bool {
        self.missing.is_empty() && self.hopeless.is_none()
    }
}

/// Judges a node after its window.
pub fn judge(expected: &Expectation<'_>, process: &ProcessSeen, dm: Option<&DmSeen>) -> Health {
    let mut health = Health::default();
    let id = &expected.instance.id;
    match process.active {
        UnitActive::Active => {}
        UnitActive::Activating if process.sub_state == "auto-restart" => {
            health.hopeless = Some(format!("{id} ended and waits for its next automatic restart"));
        }
        UnitActive::Activating | UnitActive::Deactivating => {
            health.missing.push(format!("the unit of {id} is on its way ({})", process.sub_state));
        }
        UnitActive::Failed | UnitActive::Inactive | UnitActive::Missing => {
            health.hopeless = Some(
                format!("the unit of {id} is {:?} ({})", process.active, process.sub_state)
                    .to_lowercase(),
            );
        }
    }
    if process.restarts > 0 {
        health.hopeless = Some(format!("systemd had to restart {id} {} time(s)", process.restarts));
    }
    match process.pid {
        None => health.missing.push(format!("{id} has no process")),
        Some(pid) if Some(pid) == expected.pid_before => {
            health.missing.push(format!("{id} is still the process from before ({pid})"));
        }
        Some(_) => {}
    }
    match &process.running {
        Some(running) if running == expected.build => {}
        Some(running) => {
            health.missing.push(format!("{id} runs build {running}, not {}", expected.build));
        }
        None if process.active == UnitActive::Active => {
            health.missing.push(format!("it is not known which build {id} runs"));
        }
        None => {}
    }
    health.progress = format!("{:?}/{:?}/{:?}", process.active, process.pid, process.running);
    if let Some(baseline) = expected.baseline {
        match dm {
            Some(dm) => {
                let cluster = judge_cluster(expected, baseline, dm);
                health.missing.extend(cluster.missing);
                health.paused_by_others = cluster.paused_by_others;
                health.unanswered = cluster.unanswered;
                health.progress.push_str(&cluster.progress);
            }
            None => health.missing.push("DM does not answer".to_owned()),
        }
    }
    health.progress.push_str(&format!("/{}", health.missing.len()));
    health
}

/// Judges DM as a whole against what it was right before the turn.
pub fn judge_cluster(expected: &Expectation<'_>, baseline: &DmSeen, dm: &DmSeen) -> Health {
    let mut health = Health::default();
    let missing = &mut health.missing;
    judge_masters(expected, baseline, dm, missing);
    judge_workers(expected, baseline, dm, missing);
    for (source, worker) in &baseline.sources {
        if worker.is_some() && !matches!(dm.sources.get(source), Some(Some(_))) {
            missing.push(format!("source {source} is bound to no worker"));
        }
    }
    // Only what this node carried can have been held up by its window.
    let moved: BTreeSet<&SourceId> = worker_of(baseline, &expected.instance.id)
        .map(|worker| {
            let is_here = |bound: &Option<MemberName>| bound.as_ref() == Some(&worker.name);
            baseline.sources.iter().filter(|(_, bound)| is_here(bound)).map(|(s, _)| s).collect()
        })
        .unwrap_or_default();
    for before in &baseline.subtasks {
        let key = (before.task.clone(), before.source.clone());
        if expected.stopped.contains(&key) {
            continue;
        }
        let now = dm.subtasks.iter().find(|now| now.task == key.0 && now.source == key.1);
        let may_stand = expected.paused_by_us.contains(&key);
        match now {
            Some(now) => {
                let lacked = missing.len();
                if !may_stand && is_paused_meanwhile(before.stage, now.stage, &now.errors) {
                    let (task, source) = &key;
                    health.paused_by_others.push(format!("task {task} on source {source}"));
                } else {
                    judge_subtask(before, now, may_stand, moved.contains(&before.source), missing);
                }
                // Rows that flow past a node which hangs are no progress of that node.
                let position = now.position.as_deref().filter(|_| missing.len() > lacked);
                health.progress.push_str(&format!(
                    "|{:?}{:?}{}",
                    now.stage,
                    now.unit,
                    position.unwrap_or("")
                ));
            }
            None if matches!(before.stage, SubtaskStage::Finished | SubtaskStage::Stopped) => {}
            None => {
                missing.push(format!("nobody answers for task {} on source {}", key.0, key.1));
                health.unanswered.push(key.clone());
            }
        }
        if let (Some(before), Some(now)) = (&before.validator, now)
            && now.stage == SubtaskStage::Running
        {
            let what = format!("the validator of task {} on source {}", key.0, key.1);
            judge_side(&what, before, now.validator.as_ref(), missing);
        }
    }
    for (source, before) in &baseline.relays {
        // Another worker has no relay log of it unless somebody wants it there (dm.md 4.11): only its own owes one.
        let same_worker = dm.sources.get(source) == baseline.sources.get(source);
        if same_worker {
            let what = format!("the relay log of source {source}");
            let now = dm.relays.get(source);
            if now.is_some_and(|now| is_paused_meanwhile(before.stage, now.stage, &now.errors)) {
                health.paused_by_others.push(what);
            } else {
                judge_side(&what, before, now, missing);
            }
        }
    }
    health
}

/// DM itself pauses what has an error, and only that (tiflow dm/worker/subtask.go: without one a unit that ends is
/// `Finished`, or `Paused` if it was told to): without one it was told to.
fn is_paused_meanwhile(before: SubtaskStage, now: SubtaskStage, errors: &[String]) -> bool {
    matches!(before, SubtaskStage::Running | SubtaskStage::Resuming)
        && matches!(now, SubtaskStage::Paused | SubtaskStage::Pausing)
        && errors.is_empty()
}

fn judge_side(what: &str, before: &SideSeen, now: Option<&SideSeen>, missing: &mut Vec<String>) {
    if before.stage != SubtaskStage::Running {
        return; // it did not run before: it owes nothing
    }
    match now {
        None => missing.push(format!("{what} is not there")),
        Some(now) if now.stage != SubtaskStage::Running => {
            missing.push(format!("{what} is {:?}, was {:?}", now.stage, before.stage));
        }
        Some(now) => {
            if let (true, Some(error)) = (before.errors.is_empty(), now.errors.first()) {
                missing.push(format!("{what} has an error: {error}"));
            }
        }
    }
}

fn judge_masters(
    expected: &Expectation<'_>,
    baseline: &DmSeen,
    dm: &DmSeen,
    missing: &mut Vec<String>,
) {
    let is_own = expected.instance.role == Role::DmMaster;
    if is_own && master_of(dm, &expected.instance.id).is_none() {
        missing.push(format!("the masters do not list {}", expected.instance.id));
    }
    for before in &baseline.masters {
        let own = before.instance.as_ref() == Some(&expected.instance.id);
        if !before.alive && !own {
            continue;
        }
        let Some(now) = dm.masters.iter().find(|now| now.name == before.name) else {
            missing.push(format!("the masters do not list {}", before.name));
            continue;
        };
        if !now.alive {
            missing.push(format!("master {} is not alive", now.name));
        }
        if now.etcd_healthy != Some(true) && (own || before.etcd_healthy == Some(true)) {
            missing.push(format!("etcd of master {} is not healthy", now.name));
        }
    }
    match leader_of(dm) {
        None => missing.push("the masters have not one leader".to_owned()),
        Some(leader) => {
            for master in dm.masters.iter().filter(|master| master.alive) {
                let had_a_voice = baseline
                    .masters
                    .iter()
                    .any(|before| before.name == master.name && before.calls_leader.is_some());
                let own = master.instance.as_ref() == Some(&expected.instance.id);
                if (own || had_a_voice) && master.calls_leader.as_ref() != Some(&leader.name) {
                    missing.push(format!("master {} does not follow {}", master.name, leader.name));
                }
            }
        }
    }
}

fn judge_workers(
    expected: &Expectation<'_>,
    baseline: &DmSeen,
    dm: &DmSeen,
    missing: &mut Vec<String>,
) {
    if expected.instance.role == Role::DmWorker
        && !worker_of(dm, &expected.instance.id)
            .is_some_and(|worker| worker.stage != WorkerStage::Offline)
    {
        missing.push(format!("DM does not list {} as online", expected.instance.id));
    }
    for before in baseline.workers.iter().filter(|worker| worker.stage != WorkerStage::Offline) {
        if before.instance.as_ref() == Some(&expected.instance.id) {
            continue;
        }
        let is_online = dm
            .workers
            .iter()
            .any(|now| now.name == before.name && now.stage != WorkerStage::Offline);
        if !is_online {
            missing.push(format!("worker {} is offline", before.name));
        }
    }
}

fn judge_subtask(
    before: &SubtaskSeen,
    now: &SubtaskSeen,
    may_stand: bool,
    must_advance: bool,
    missing: &mut Vec<String>,
) {
    let (task, source) = (&now.task, &now.source);
    let stage_is_good = match before.stage {
        SubtaskStage::Running | SubtaskStage::Resuming => {
            matches!(now.stage, SubtaskStage::Running | SubtaskStage::Finished)
        }
        SubtaskStage::Finished => now.stage == SubtaskStage::Finished,
        // It did not run before: it owes nothing but to be there.
        SubtaskStage::New
        | SubtaskStage::Paused
        | SubtaskStage::Pausing
        | SubtaskStage::Stopped
        | SubtaskStage::Stopping
        | SubtaskStage::Unknown => true,
    };
    let stands_for_us =
        may_stand && matches!(now.stage, SubtaskStage::Paused | SubtaskStage::Pausing);
    if !stage_is_good && !stands_for_us {
        missing.push(format!(
            "task {task} on source {source} is {:?}, was {:?}",
            now.stage, before.stage
        ));
    }
    let is_running = now.stage == SubtaskStage::Running;
    if is_running && rank(now.unit) < rank(before.unit) {
        missing.push(format!(
            "task {task} on source {source} is in {:?}, was in {:?}",
            now.unit, before.unit
        ));
    }
    if let (true, Some(error)) = (before.errors.is_empty(), now.errors.first())
        && !stands_for_us
    {
        missing.push(format!("task {task} on source {source} has an error: {error}"));
    }
    if must_advance
        && is_running
        && before.stage == SubtaskStage::Running
        && now.unit == SubtaskUnit::Sync
        && !advances(before, now)
    {
        let lag = now.lag_s.map_or_else(|| "unknown".to_owned(), |lag| format!("{lag}s"));
        missing.push(format!("task {task} on source {source} does not advance (lag {lag})"));
    }
}

/// `synced` alone may never be true, and a lag of 0 alone proves nothing (dm.md, trap 17): any sign of movement counts.
fn advances(before: &SubtaskSeen, now: &SubtaskSeen) -> bool {
    now.synced
        || (now.position.is_some() && now.position == now.source_position)
        || now.position != before.position
        || (now.source_position.is_some() && now.source_position == before.source_position)
        || now.lag_s.is_some_and(|lag| lag <= before.lag_s.unwrap_or(0) + LAG_ALLOWANCE_S)
}

fn rank(unit: SubtaskUnit) -> u8 {
    match unit {
        SubtaskUnit::Unknown | SubtaskUnit::Check => 0,
        SubtaskUnit::Dump => 1,
        SubtaskUnit::Load => 2,
        SubtaskUnit::Sync => 3,
    }
}

/// Whether nothing large is under way on a worker's sources: what runs has caught up.
pub fn is_quiet(dm: &DmSeen, instance: &Instance) -> bool {
    busy(dm, instance).is_empty()
}

/// What keeps a worker from being quiet, one sentence per subtask.
pub fn busy(dm: &DmSeen, instance: &Instance) -> Vec<String> {
    let Some(worker) = worker_of(dm, &instance.id) else { return Vec::new() };
    dm.subtasks
        .iter()
        .filter(|subtask| {
            dm.sources.get(&subtask.source).is_some_and(|b| b.as_ref() == Some(&worker.name))
        })
        .filter(|subtask| subtask.stage == SubtaskStage::Running)
        .filter(|subtask| {
            let has_caught_up = subtask.synced
                || (subtask.position.is_some() && subtask.position == subtask.source_position)
                // Under steady writes the flushed position never equals the source's; the lag grows only behind a large transaction.
                || subtask.lag_s.is_some_and(|lag| lag <= 1);
            !has_caught_up
        })
        .map(|subtask| {
            let lag = subtask.lag_s.map_or_else(|| "unknown".to_owned(), |lag| format!("{lag}s"));
            format!(
                "task {} on source {} is behind (lag {lag}, at {} of {})",
                subtask.task,
                subtask.source,
                subtask.position.as_deref().unwrap_or("?"),
                subtask.source_position.as_deref().unwrap_or("?"),
            )
        })
        .collect()
}

/// Release and git hash out of what `-V` prints (fixtures/dm-v8.1.0/version_worker.txt). None if it is not DM's form.
pub fn reported_by_dash_v(text: &str) -> Option<(String, String)> {
    let field = |name: &str| {
        text.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        })
    };
    Some((field("Release Version")?, field("Git Commit Hash")?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::ids::{HostId, InstanceId, UnitName};
    use crate::inventory::{MasterSeen, WorkerSeen};

    fn instance(role: Role) -> Instance {
        Instance {
            id: InstanceId::new("h1:1").unwrap(),
            role,
            name: MemberName::new("x1").unwrap(),
            host: HostId::new("h1").unwrap(),
            ssh_host: HostId::new("h1").unwrap(),
            ssh_port: 22,
            port: 1,
            ports: vec![1],
            deploy_dir: "/d/x".into(),
            data_dirs: Vec::new(),
            log_dir: "/d/x/log".into(),
            unit: UnitName::new("x-1.service").unwrap(),
            os: "linux".into(),
            arch: "amd64".into(),
            patched: false,
        }
    }

    fn process() -> ProcessSeen {
        ProcessSeen {
            active: UnitActive::Active,
            sub_state: "running".into(),
            enabled: true,
            pid: Some(8),
            restarts: 0,
            active_since_ms: None,
            running: Some(Digest::of(b"new")),
            on_disk: None,
        }
    }

    fn dm() -> DmSeen {
        let name = |text: &str| MemberName::new(text).unwrap();
        let source = SourceId::new("s1").unwrap();
        let master = |text: &str| MasterSeen {
            name: name(text),
            instance: (text == "m1").then(|| InstanceId::new("h1:1").unwrap()),
            alive: true,
            leader: text == "m2",
            calls_leader: Some(name("m2")),
            etcd_healthy: Some(true),
            release: None,
        };
        DmSeen {
            masters: vec![master("m1"), master("m2")],
            workers: vec![WorkerSeen {
                name: name("w1"),
                instance: Some(InstanceId::new("h1:1").unwrap()),
                stage: WorkerStage::Bound,
                source: Some(source.clone()),
            }],
            sources: BTreeMap::from([(source.clone(), Some(name("w1")))]),
            relays: BTreeMap::new(),
            subtasks: vec![SubtaskSeen {
                task: TaskName::new("t1").unwrap(),
                source,
                worker: Some(name("w1")),
                stage: SubtaskStage::Running,
                unit: SubtaskUnit::Sync,
                errors: Vec::new(),
                synced: true,
                position: Some("1".into()),
                source_position: Some("1".into()),
                lag_s: Some(0),
                blocked_ddls: 0,
                validator: None,
            }],
        }
    }

    fn judged(role: Role, bend: impl Fn(&mut ProcessSeen, &mut DmSeen)) -> Health {
        let (mut process, mut now) = (process(), dm());
        bend(&mut process, &mut now);
        let (instance, build, none) = (instance(role), Digest::of(b"new"), BTreeSet::new());
        let baseline = dm();
        let expected = Expectation {
            instance: &instance,
            build: &build,
            pid_before: Some(7),
            baseline: Some(&baseline),
            paused_by_us: &none,
            stopped: &none,
            was_broken: false,
        };
        judge(&expected, &process, Some(&now))
    }

    #[test]
    fn each_sign_of_health_is_needed() {
        assert!(judged(Role::DmWorker, |_, _| ()).is_good());
        assert!(judged(Role::DmMaster, |_, _| ()).is_good());
        let bends: [fn(&mut ProcessSeen, &mut DmSeen); 14] = [
            |p, _| p.active = UnitActive::Activating,
            |p, _| p.pid = Some(7),
            |p, _| p.pid = None,
            |p, _| p.running = Some(Digest::of(b"old")),
            |p, _| p.running = None,
            |_, dm| dm.masters[1].leader = false,
            |_, dm| dm.masters[0].leader = true,
            |_, dm| dm.masters[0].etcd_healthy = None,
            |_, dm| dm.masters[0].calls_leader = None,
            |_, dm| dm.masters[1].alive = false,
            |_, dm| {
                dm.sources.insert(SourceId::new("s1").unwrap(), None);
            },
            |_, dm| dm.subtasks[0].stage = SubtaskStage::Stopped,
            |_, dm| dm.subtasks[0].errors = vec!["Duplicate entry".into()],
            |_, dm| dm.subtasks.clear(),
        ];
        for (index, bend) in bends.into_iter().enumerate() {
            let health = judged(Role::DmMaster, bend);
            assert!(!health.missing.is_empty() && health.hopeless.is_none(), "{index}");
        }
        assert!(
            !judged(Role::DmWorker, |_, dm| dm.workers[0].stage = WorkerStage::Offline).is_good()
        );
        assert!(!judged(Role::DmWorker, |_, dm| dm.subtasks[0].unit = SubtaskUnit::Load).is_good());
    }

    #[test]
    fn a_unit_that_ended_is_not_waited_for() {
        let bends: [fn(&mut ProcessSeen, &mut DmSeen); 4] = [
            |p, _| p.active = UnitActive::Failed,
            |p, _| p.active = UnitActive::Inactive,
            |p, _| p.restarts = 1,
            |p, _| {
                p.active = UnitActive::Activating;
                p.sub_state = "auto-restart".into();
            },
        ];
        for bend in bends {
            assert!(judged(Role::DmWorker, bend).hopeless.is_some());
        }
    }

    #[test]
    fn a_subtask_that_only_says_running_does_not_count_as_advancing() {
        let stuck = judged(Role::DmWorker, |_, dm| {
            let subtask = &mut dm.subtasks[0];
            subtask.synced = false;
            subtask.source_position = Some("9".into());
            subtask.lag_s = Some(100);
        });
        assert_eq!(stuck.missing, ["task t1 on source s1 does not advance (lag 100s)"]);
        let moving = judged(Role::DmWorker, |_, dm| {
            let subtask = &mut dm.subtasks[0];
            subtask.synced = false;
            subtask.position = Some("2".into());
            subtask.source_position = Some("9".into());
            subtask.lag_s = Some(100);
        });
        assert!(moving.is_good(), "{moving:?}");
    }

    #[test]
    fn release_and_commit_are_read_from_what_dash_v_prints() {
        let text = "Release Version: v8.1.0-hotfix1\nGit Commit Hash: lab-1\nGit Branch: lab\n";
        let read = reported_by_dash_v(text);
        assert_eq!(read, Some(("v8.1.0-hotfix1".to_owned(), "lab-1".to_owned())));
        assert_eq!(reported_by_dash_v("prometheus, version 2.49.1"), None);
    }

    #[test]
    fn a_relay_log_that_its_worker_pulled_is_pulled_again_and_a_validator_runs_again() {
        let side = |stage, error: &str| SideSeen {
            stage,
            errors: [error].into_iter().filter(|it| !it.is_empty()).map(str::to_owned).collect(),
        };
        let source = SourceId::new("s1").unwrap();
        let mut before = dm();
        before.relays.insert(source.clone(), side(SubtaskStage::Running, ""));
        before.subtasks[0].validator = Some(side(SubtaskStage::Running, ""));
        let worker = instance(Role::DmWorker);
        let missing = |now: &DmSeen| {
            let expected = Expectation {
                instance: &worker,
                build: &Digest::of(b"new"),
                pid_before: None,
                baseline: Some(&before),
                paused_by_us: &BTreeSet::new(),
                stopped: &BTreeSet::new(),
                was_broken: false,
            };
            judge_cluster(&expected, &before, now).missing
        };
        assert_eq!(missing(&before), Vec::<String>::new());
        let mut now = before.clone();
        now.relays.insert(source.clone(), side(SubtaskStage::Paused, "no such file"));
        now.subtasks[0].validator = Some(side(SubtaskStage::Running, "lost connection"));
        assert_eq!(
            missing(&now),
            [
                "the validator of task t1 on source s1 has an error: lost connection",
                "the relay log of source s1 is Paused, was Running",
            ]
        );
        // Nothing is wrong with it: somebody has paused it.
        let mut by_others = before.clone();
        by_others.relays.insert(source.clone(), side(SubtaskStage::Paused, ""));
        assert_eq!(missing(&by_others), Vec::<String>::new());
        now.relays.clear();
        now.subtasks[0].validator = None;
        assert_eq!(
            missing(&now),
            [
                "the validator of task t1 on source s1 is not there",
                "the relay log of source s1 is not there",
            ]
        );
    }
}
