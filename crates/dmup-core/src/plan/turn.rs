//! One instance's turn, as a pure function of what is known when it begins.
//!
//! The planner calls it with the state that it expects; the executor calls it again with
//! a fresh look right before the turn. If leadership or a source has moved in between,
//! the steps follow the facts, not the forecast.
//!
//! Methods (dm.md 7.0 and 12): a bound worker of v6.5.0 (6.1.3) or later is stopped while
//! a free worker waits, and DM moves its source by itself (gap 0.25 s). Below that a
//! stopping worker gives up its lease while it still writes, so its tasks are paused, the
//! source is moved by order, and they are resumed (0.6 s). Without a free worker the
//! source waits for its own worker to come back.

use std::collections::BTreeSet;

use super::step::{Around, Step};
use crate::digest::Digest;
use crate::ids::{InstanceId, SourceId, TaskName};
use crate::instance::{Instance, Role};
use crate::inventory::{
    DmSeen, MasterSeen, ProcessSeen, SubtaskStage, UnitActive, WorkerSeen, WorkerStage,
};
use crate::policy::Policy;
use crate::texts::TextsChange;
use crate::version::DmVersion;

/// What a turn depends on.
#[derive(Clone, Debug)]
pub struct TurnFacts<'a> {
    /// Whose turn.
    pub instance: &'a Instance,
    /// The build before.
    pub from: &'a Digest,
    /// The build after; the same one: it is only restarted.
    pub to: &'a Digest,
    /// Files that are written in the window.
    pub texts: Option<&'a TextsChange>,
    /// What `patched` becomes.
    pub patched: bool,
    /// Whether it is stopped and started.
    pub around: Around,
    /// It is down or unknown to DM: there is nothing to take off it.
    pub is_broken: bool,
    /// DM now; none if it plays no part.
    pub dm: Option<&'a DmSeen>,
    /// The cluster's version.
    pub version: &'a DmVersion,
    /// Limits.
    pub policy: &'a Policy,
    /// How long it is watched: the policy's word, or that of a batch.
    pub soak_s: u32,
    /// Instances whose turn is still to come: bad places to move a source to.
    pub pending: &'a BTreeSet<InstanceId>,
}

/// The steps of a turn.
pub fn turn_steps(facts: &TurnFacts<'_>) -> Vec<Step> {
    let instance = &facts.instance.id;
    let (from, to) = (facts.from.clone(), facts.to.clone());
    let window = Step::Window {
        instance: instance.clone(),
        from: from.clone(),
        to: to.clone(),
        around: facts.around,
        texts: facts.texts.map(|texts| texts.after.clone()),
    };
    // The guard goes back to another build. Without one, whatever cuts us off, the host starts what it stopped.
    let is_exchange = from != to;
    let mark =
        Step::MarkPatched { instance: instance.clone(), build: to.clone(), patched: facts.patched };
    if facts.around != Around::Restart {
        return if is_exchange { vec![window, mark] } else { vec![window] };
    }
    let Handover { before, after_window, at_the_end } = match (facts.instance.role, facts.dm) {
        (Role::DmMaster, Some(dm)) if !facts.is_broken => hand_leadership_over(facts, dm),
        (Role::DmWorker, Some(dm)) if !facts.is_broken => hand_sources_over(facts, dm),
        (
            Role::DmMaster
            | Role::DmWorker
            | Role::Prometheus
            | Role::Grafana
            | Role::Alertmanager
            | Role::NodeExporter
            | Role::BlackboxExporter,
            _,
        ) => Handover::default(),
    };
    let policy = facts.policy;
    let mut steps = before;
    if is_exchange {
        steps.push(Step::ArmGuard {
            instance: instance.clone(),
            from,
            to: to.clone(),
            // The window itself is inside: a slow stop must not fire it.
            after_s: policy.guard_s.saturating_add(policy.stop_within_s),
        });
    }
    steps.push(window);
    steps.extend(after_window);
    steps.push(Step::AwaitHealthy {
        instance: instance.clone(),
        build: to.clone(),
        within_s: policy.healthy_within_s,
    });
    if facts.soak_s > 0 {
        steps.push(Step::Soak { instance: instance.clone(), build: to, soak_s: facts.soak_s });
    }
    if is_exchange {
        steps.push(Step::DisarmGuard { instance: instance.clone() });
    }
    steps.extend(at_the_end);
    if is_exchange {
        steps.push(mark);
    }
    steps
}

/// What surrounds a window.
#[derive(Default)]
struct Handover {
    before: Vec<Step>,
    after_window: Vec<Step>,
    at_the_end: Vec<Step>,
}

fn hand_leadership_over(facts: &TurnFacts<'_>, dm: &DmSeen) -> Handover {
    let instance = &facts.instance.id;
    let is_leader = master_of(dm, instance).is_some_and(|master| master.leader);
    // One master cannot hand over, and of two the other has no quorum alone (dm.md 7.8).
    if !is_leader || dm.masters.len() < 3 {
        return Handover::default();
    }
    Handover {
        before: vec![
            Step::EvictLeader { instance: instance.clone() },
            Step::AwaitNewLeader {
                former: instance.clone(),
                within_s: facts.policy.settle_within_s,
            },
        ],
        after_window: Vec::new(),
        // The eviction ends with the process; saying so again is harmless and covers what did not restart.
        at_the_end: vec![Step::CancelEvict { instance: instance.clone() }],
    }
}

fn hand_sources_over(facts: &TurnFacts<'_>, dm: &DmSeen) -> Handover {
    let instance = &facts.instance.id;
    let Some(worker) = worker_of(dm, instance) else { return Handover::default() };
    let sources: Vec<&SourceId> = dm
        .sources
        .iter()
        .filter(|(_, bound)| bound.as_ref() == Some(&worker.name))
        .map(|(source, _)| source)
        .collect();
    if sources.is_empty() {
        return Handover::default();
    }
    let settle = facts.policy.settle_within_s;
    let mut handover = Handover {
        before: vec![Step::AwaitQuiet {
            worker: instance.clone(),
            within_s: facts.policy.quiet_within_s,
        }],
        ..Handover::default()
    };
    if facts.version.stops_subtasks_before_lease() {
        return handover;
    }
    let mut spares: Vec<&WorkerSeen> = dm
        .workers
        .iter()
        .filter(|other| other.stage == WorkerStage::Free && other.name != worker.name)
        .collect();
    spares.sort_by_key(|spare| {
        let is_pending = spare.instance.as_ref().is_some_and(|id| facts.pending.contains(id));
        (is_pending, &spare.name)
    });
    let mut spares = spares.into_iter();
    for source in sources {
        let running: Vec<(TaskName, SourceId)> = dm
            .subtasks
            .iter()
            .filter(|subtask| subtask.source == *source)
            .filter(|subtask| {
                matches!(subtask.stage, SubtaskStage::Running | SubtaskStage::Resuming)
            })
            .map(|subtask| (subtask.task.clone(), subtask.source.clone()))
            .collect();
        for (task, source) in &running {
            handover.before.push(Step::PauseSubtask { task: task.clone(), source: source.clone() });
        }
        for (task, source) in &running {
            handover.before.push(Step::AwaitPaused {
                task: task.clone(),
                source: source.clone(),
                within_s: settle,
            });
        }
        let bound = Step::AwaitBound { source: source.clone(), within_s: settle };
        let resumes =
            running.into_iter().map(|(task, source)| Step::ResumeSubtask { task, source });
        if let Some(spare) = spares.next() {
            handover.before.push(Step::Transfer {
                source: source.clone(),
                from: worker.name.clone(),
                to: spare.name.clone(),
            });
            handover.before.push(bound);
            handover.before.extend(resumes);
        } else {
            handover.after_window.push(bound);
            handover.after_window.extend(resumes);
        }
    }
    handover
}

/// The leader, if exactly one master is it.
pub fn leader_of(dm: &DmSeen) -> Option<&MasterSeen> {
    let mut leaders = dm.masters.iter().filter(|master| master.leader);
    leaders.next().filter(|_| leaders.next().is_none())
}

/// DM's entry for a master.
pub fn master_of<'a>(dm: &'a DmSeen, instance: &InstanceId) -> Option<&'a MasterSeen> {
    dm.masters.iter().find(|master| master.instance.as_ref() == Some(instance))
}

/// DM's entry for a worker.
pub fn worker_of<'a>(dm: &'a DmSeen, instance: &InstanceId) -> Option<&'a WorkerSeen> {
    dm.workers.iter().find(|worker| worker.instance.as_ref() == Some(instance))
}

/// Whether an instance is in service, by its host (if known) and by DM (if it is part of it).
///
/// # Errors
///
/// What was seen instead.
pub fn is_up(
    instance: &Instance,
    process: Option<&ProcessSeen>,
    dm: Option<&DmSeen>,
) -> Result<(), String> {
    if let Some(process) = process
        && process.active != UnitActive::Active
    {
        let (active, sub) = (process.active, &process.sub_state);
        return Err(format!("its unit is {active:?} ({sub})").to_lowercase());
    }
    let Some(dm) = dm else { return Ok(()) };
    match instance.role {
        Role::DmMaster => match master_of(dm, &instance.id) {
            Some(master) if master.alive => Ok(()),
            Some(_) => Err("DM lists it as not alive".to_owned()),
            None => Err("DM does not list it".to_owned()),
        },
        Role::DmWorker => match worker_of(dm, &instance.id) {
            Some(worker) if worker.stage != WorkerStage::Offline => Ok(()),
            Some(_) => Err("DM lists it as offline".to_owned()),
            None => Err("DM does not list it".to_owned()),
        },
        Role::Prometheus
        | Role::Grafana
        | Role::Alertmanager
        | Role::NodeExporter
        | Role::BlackboxExporter => Ok(()),
    }
}
