//! From DM's answers to what the planner reads.

use std::collections::{BTreeMap, BTreeSet};

use dmup_core::ids::{BadName, InstanceId, MemberName, SourceId, TaskName};
use dmup_core::instance::{Instance, Role};
use dmup_core::inventory::{
    DmSeen, MasterSeen, SideSeen, SubtaskSeen, SubtaskStage, SubtaskUnit, WorkerSeen, WorkerStage,
};
use dmup_exec::ports::ReportedBuild;

use super::answers::{MasterMember, Members, ProcessError, SideStatus, SourceReport, WorkerMember};
use super::grpc::DdlLock;
use super::http::beginning;

/// DM's word for the worker of a source that has none (tiflow dm/master/server.go).
const NOT_BOUND: &str = "source not bound";

/// Stands for the tasks of a source whose worker did not answer: their names are not known then.
pub(super) const UNKNOWN_TASK: &str = "?";

/// What one master said of itself.
#[derive(Clone, Debug, Default)]
pub(super) struct OwnView {
    pub(super) calls_leader: Option<MemberName>,
    pub(super) etcd_healthy: Option<bool>,
    pub(super) release: Option<String>,
}

/// Everything that one look collected.
#[derive(Debug, Default)]
pub(super) struct Collected {
    pub(super) members: Members,
    /// By instance of the topology.
    pub(super) views: BTreeMap<InstanceId, OwnView>,
    pub(super) reports: Vec<SourceReport>,
    /// From `show sources`: also those without a worker.
    pub(super) sources: Vec<(String, String)>,
    pub(super) locks: Vec<DdlLock>,
}

/// Puts the answers together.
///
/// # Errors
///
/// A name that no name can be.
pub(super) fn assemble(instances: &[Instance], from: &Collected) -> Result<DmSeen, BadName> {
    let leader = from.members.leader().map(|leader| leader.name.as_str()).unwrap_or_default();
    let mut seen = DmSeen::default();
    for member in from.members.masters().map_or(&[][..], |known| &known.masters) {
        let instance = master_instance(instances, member);
        let view = instance.and_then(|it| from.views.get(&it.id)).cloned().unwrap_or_default();
        seen.masters.push(MasterSeen {
            name: MemberName::new(&member.name)?,
            instance: instance.map(|it| it.id.clone()),
            alive: member.alive,
            leader: !leader.is_empty() && member.name == leader,
            calls_leader: view.calls_leader,
            etcd_healthy: view.etcd_healthy,
            release: view.release,
        });
    }
    for (source, worker) in &from.sources {
        let worker = Some(worker).filter(|it| is_worker(it)).map(MemberName::new).transpose()?;
        seen.sources.insert(SourceId::new(source)?, worker);
    }
    for report in &from.reports {
        if !report.source_status.source.is_empty() {
            seen.sources.entry(SourceId::new(&report.source_status.source)?).or_insert(None);
        }
    }
    let mut bound = BTreeMap::new();
    for member in from.members.workers().map_or(&[][..], |known| &known.workers) {
        let name = MemberName::new(&member.name)?;
        let source = match member.source.as_str() {
            "" => None,
            source => Some(SourceId::new(source)?),
        };
        let stage = worker_stage(&member.stage);
        if let (Some(source), WorkerStage::Bound) = (&source, stage) {
            bound.insert(source.clone(), name.clone());
        }
        seen.workers.push(WorkerSeen {
            instance: worker_instance(instances, member).map(|it| it.id.clone()),
            name,
            stage,
            source,
        });
    }
    // The scheduler's list is the authority on bindings: what else was asked may be a moment older.
    for (source, worker) in &mut seen.sources {
        *worker = bound.remove(source);
    }
    for (source, worker) in bound {
        seen.sources.insert(source, Some(worker));
    }
    seen.subtasks = subtasks(&seen.sources, &from.reports, &from.locks)?;
    seen.relays = relays(&seen.sources, &from.reports)?;
    Ok(seen)
}

/// The relay log of every bound source, as its own worker tells; those of relay-only workers are of no use to its tasks.
fn relays(
    sources: &BTreeMap<SourceId, Option<MemberName>>,
    reports: &[SourceReport],
) -> Result<BTreeMap<SourceId, SideSeen>, BadName> {
    let mut seen = BTreeMap::new();
    for SourceReport { source_status: status, .. } in reports {
        let Some(relay) = &status.relay else { continue };
        let source = SourceId::new(&status.source)?;
        let is_its_worker = |bound: &MemberName| bound.as_str() == status.worker;
        if sources.get(&source).is_some_and(|bound| bound.as_ref().is_some_and(is_its_worker)) {
            seen.insert(source, side(relay));
        }
    }
    Ok(seen)
}

fn side(status: &SideStatus) -> SideSeen {
    SideSeen {
        stage: stage(&status.stage),
        errors: status.result.errors.iter().map(words).collect(),
    }
}

fn is_worker(name: &str) -> bool {
    !name.is_empty() && name != NOT_BOUND
}

/// One entry per task and source. A source that also has relay-only workers is reported once per
/// worker; the report of the worker that it is bound to counts.
fn subtasks(
    sources: &BTreeMap<SourceId, Option<MemberName>>,
    reports: &[SourceReport],
    locks: &[DdlLock],
) -> Result<Vec<SubtaskSeen>, BadName> {
    let mut found: BTreeMap<(TaskName, SourceId), (bool, SubtaskSeen)> = BTreeMap::new();
    let mut answered = BTreeSet::new();
    let mut silent: BTreeMap<SourceId, Vec<String>> = BTreeMap::new();
    for report in reports {
        if report.source_status.source.is_empty() {
            continue;
        }
        let source = SourceId::new(&report.source_status.source)?;
        let worker = Some(report.source_status.worker.as_str())
            .filter(|name| is_worker(name))
            .map(MemberName::new)
            .transpose()?;
        let by_its_worker =
            worker.is_some() && sources.get(&source).is_some_and(|bound| *bound == worker);
        let mut of_source: Vec<String> =
            report.source_status.result.errors.iter().map(words).collect();
        if !report.result && !report.msg.is_empty() {
            of_source.push(beginning(&report.msg));
        } else if worker.is_none() {
            of_source.push("no worker runs it".to_owned());
        }
        if report.result || !report.subtasks.is_empty() {
            answered.insert(source.clone());
        } else {
            silent.entry(source.clone()).or_default().extend(of_source.clone());
        }
        for subtask in &report.subtasks {
            let task = TaskName::new(&subtask.name)?;
            let sync = subtask.sync.clone().unwrap_or_default();
            let mut errors: Vec<String> = subtask.result.errors.iter().map(words).collect();
            errors.extend(of_source.iter().cloned());
            let blocked = sync
                .blocking_ddls
                .len()
                .max(usize::from(!subtask.unresolved_lock.is_empty()))
                .max(locks.iter().filter(|lock| concerns(lock, &task, &source)).count());
            let entry = SubtaskSeen {
                task: task.clone(),
                source: source.clone(),
                worker: worker.clone(),
                stage: stage(&subtask.stage),
                unit: unit(&subtask.unit),
                errors,
                synced: sync.synced,
                position: Some(sync.syncer_binlog).filter(|text| !text.is_empty()),
                source_position: Some(sync.master_binlog).filter(|text| !text.is_empty()),
                lag_s: sync.seconds_behind.and_then(|seconds| u64::try_from(seconds).ok()),
                blocked_ddls: blocked,
                validator: subtask.validation.as_ref().map(side),
            };
            let key = (task, source.clone());
            if by_its_worker || !found.get(&key).is_some_and(|(certain, _)| *certain) {
                found.insert(key, (by_its_worker, entry));
            }
        }
    }
    let mut all: Vec<SubtaskSeen> = found.into_values().map(|(_, entry)| entry).collect();
    for (source, errors) in silent {
        if !answered.contains(&source) && sources.get(&source).is_some_and(Option::is_some) {
            all.push(unanswered(source, errors)?);
        }
    }
    Ok(all)
}

/// A source whose worker did not say what it runs: something is there, nobody knows what.
fn unanswered(source: SourceId, errors: Vec<String>) -> Result<SubtaskSeen, BadName> {
    Ok(SubtaskSeen {
        task: TaskName::new(UNKNOWN_TASK)?,
        source,
        worker: None,
        stage: SubtaskStage::Unknown,
        unit: SubtaskUnit::Unknown,
        errors,
        synced: false,
        position: None,
        source_position: None,
        lag_s: None,
        blocked_ddls: 0,
        validator: None,
    })
}

/// Whether the lock is of that task and waits for that source or has its vote.
fn concerns(lock: &DdlLock, task: &TaskName, source: &SourceId) -> bool {
    let table = format!("{source}-`");
    lock.task == task.as_str()
        && lock
            .synced
            .iter()
            .chain(&lock.unsynced)
            .any(|entry| entry == source.as_str() || entry.starts_with(&table))
}

/// An error as DM's own tools print it.
fn words(error: &ProcessError) -> String {
    let mut text = format!(
        "[code={}:class={}:scope={}:level={}], Message: {}",
        error.code.unwrap_or_default(),
        error.class,
        error.scope,
        error.level,
        error.message
    );
    for (label, part) in [("RawCause", &error.raw_cause), ("Workaround", &error.workaround)] {
        if !part.is_empty() {
            text.push_str(", ");
            text.push_str(label);
            text.push_str(": ");
            text.push_str(part);
        }
    }
    // A statement in it can be as long as a transaction.
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(4000).collect()
}

fn master_instance<'a>(instances: &'a [Instance], member: &MasterMember) -> Option<&'a Instance> {
    let masters = || instances.iter().filter(|it| it.role == Role::DmMaster);
    masters().find(|it| it.name.as_str() == member.name).or_else(|| {
        masters().find(|it| {
            member.client_urls.iter().any(|url| {
                url.split_once("://").map_or(url.as_str(), |(_, rest)| rest).trim_end_matches('/')
                    == it.id.as_str()
            })
        })
    })
}

fn worker_instance<'a>(instances: &'a [Instance], member: &WorkerMember) -> Option<&'a Instance> {
    let workers = || instances.iter().filter(|it| it.role == Role::DmWorker);
    workers()
        .find(|it| it.name.as_str() == member.name)
        .or_else(|| workers().find(|it| it.id.as_str() == member.addr))
}

/// tiflow dm/master/scheduler/worker.go. A word unknown to us must not look free or bound.
fn worker_stage(word: &str) -> WorkerStage {
    match word {
        "free" => WorkerStage::Free,
        "bound" => WorkerStage::Bound,
        "relay" => WorkerStage::Relay,
        _ => WorkerStage::Offline,
    }
}

fn stage(word: &str) -> SubtaskStage {
    match word {
        "New" => SubtaskStage::New,
        "Running" => SubtaskStage::Running,
        "Paused" => SubtaskStage::Paused,
        "Stopped" => SubtaskStage::Stopped,
        "Finished" => SubtaskStage::Finished,
        "Pausing" => SubtaskStage::Pausing,
        "Resuming" => SubtaskStage::Resuming,
        "Stopping" => SubtaskStage::Stopping,
        _ => SubtaskStage::Unknown,
    }
}

fn unit(word: &str) -> SubtaskUnit {
    match word {
        "Check" => SubtaskUnit::Check,
        "Dump" => SubtaskUnit::Dump,
        "Load" => SubtaskUnit::Load,
        "Sync" => SubtaskUnit::Sync,
        _ => SubtaskUnit::Unknown,
    }
}

/// Reads the text of `/status` (the same lines as `-V`).
pub(super) fn build_in_status(text: &str) -> Option<ReportedBuild> {
    let after = |label: &str| {
        text.lines().find_map(|line| line.strip_prefix(label)).map(|rest| beginning(rest.trim()))
    };
    Some(ReportedBuild {
        release: after("Release Version:").filter(|release| !release.is_empty())?,
        commit: after("Git Commit Hash:").unwrap_or_default(),
    })
}

/// Reads etcd's `/health`: `{"health":"true"}`, or a plain boolean in other versions.
pub(super) fn health_in(text: &str) -> Option<bool> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    let health = value.get("health")?;
    health.as_bool().or_else(|| health.as_str().map(|word| word == "true"))
}
