//! Rules that every plan keeps, whoever made it. Run on each plan before it is shown.

use std::collections::BTreeSet;

use super::decision::{Kind, Plan, Turn};
use super::step::{Around, Step, config_check};
use super::turn::{master_of, worker_of};
use crate::ids::{HostId, InstanceId, SourceId, TaskName};
use crate::instance::Role;
use crate::inventory::SubtaskStage;

/// A rule that a plan breaks: a bug of the planner, or a plan that somebody edited.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{place}: {rule}")]
pub struct BrokenRule {
    /// Which turn, or the preparation.
    pub place: String,
    /// The rule, as a sentence.
    pub rule: &'static str,
}

/// All rules that a plan breaks; none for a good one.
pub fn check(plan: &Plan) -> Vec<BrokenRule> {
    let mut broken = Vec::new();
    let mut rule = |place: &str, holds: bool, rule: &'static str| {
        if !holds {
            broken.push(BrokenRule { place: place.to_owned(), rule });
        }
    };

    let staged: BTreeSet<(&HostId, Option<Role>)> = plan
        .preparation
        .iter()
        .filter_map(
            |step| if let Step::Stage { host, of } = step { Some((host, *of)) } else { None },
        )
        .collect();
    let sends = plan.parcel.is_some() || !plan.parcels.is_empty();
    let only_prepares = plan.preparation.iter().all(Step::is_preparation);
    rule("preparation", only_prepares, "it only stages, prepares and checks");

    let mut seen = BTreeSet::new();
    let mut had_monitoring = false;
    let mut had_worker = false;
    let mut had_leader = false;
    let mut alive = alive_masters(plan);
    for (index, turn) in plan.turns.iter().enumerate() {
        let place = turn.instance.as_str();
        rule(place, seen.insert(&turn.instance), "an instance has one turn");
        let Some(instance) = plan.instance(&turn.instance) else {
            rule(place, false, "the instance is part of the cluster");
            continue;
        };
        for (holds, text) in rules_of_a_turn(turn) {
            rule(place, holds, text);
        }
        let of = plan.target(instance).filter(|it| it.parcel.is_some()).map(|_| instance.role);
        let is_staged = !sends || turn.from == turn.to || staged.contains(&(&instance.host, of));
        rule(place, is_staged, "its host is staged before any window");
        let may_stay = match plan.kind {
            Kind::Hotfix => turn.from != turn.to && turn.texts.is_none(),
            Kind::Upgrade | Kind::Rollback => turn.from != turn.to || turn.texts.is_some(),
            Kind::Restart => turn.from == turn.to && turn.texts.is_none(),
            Kind::Reload => turn.from == turn.to,
        };
        rule(place, may_stay, "a window does what its kind of run is for");
        let judged = config_check(plan.kind, instance, turn.texts.as_ref());
        rule(
            place,
            judged.is_none_or(|step| plan.preparation.contains(&step)),
            "a new configuration is checked before any window",
        );

        rule(place, !(had_monitoring && instance.role.is_dm()), "monitoring comes after DM");
        had_monitoring |= !instance.role.is_dm();
        rule(
            place,
            !(had_worker && instance.role == Role::DmMaster && plan.kind == Kind::Upgrade),
            "masters get another version before workers",
        );
        had_worker |= instance.role == Role::DmWorker;
        if instance.role == Role::DmMaster && !turn.was_broken {
            rule(place, !had_leader, "the leader comes after all masters that follow");
            had_leader |= turn.steps.iter().any(|s| matches!(s, Step::EvictLeader { .. }));
        }
        if let Some((alive, total)) = &mut alive
            && instance.role == Role::DmMaster
        {
            if !turn.was_broken {
                let left = alive.iter().filter(|id| **id != turn.instance).count();
                rule(place, *total < 3 || left > *total / 2, "a quorum of masters stays up");
            }
            alive.insert(turn.instance.clone());
        }
        let next = plan.turns.get(index + 1);
        rule(
            place,
            !turn.overlaps
                || may_overlap(plan, turn) && next.is_some_and(|it| may_overlap(plan, it)),
            "only workers of a batch are watched while the next one has its turn",
        );
        let hands_over = hands_over(plan, turn);
        rule(place, hands_over, "the leader of three or more hands over before its window");
        rule(
            place,
            pauses_old_workers(plan, turn),
            "a worker of this version is stopped only after its tasks stand",
        );
    }
    broken
}

fn alive_masters(plan: &Plan) -> Option<(BTreeSet<InstanceId>, usize)> {
    let dm = plan.baseline.as_ref()?;
    let broken: BTreeSet<&InstanceId> =
        plan.turns.iter().filter(|turn| turn.was_broken).map(|turn| &turn.instance).collect();
    let alive = dm
        .masters
        .iter()
        .filter(|master| master.alive)
        .filter_map(|master| master.instance.clone())
        .filter(|id| !broken.contains(id))
        .collect();
    Some((alive, dm.masters.len()))
}

fn rules_of_a_turn(turn: &Turn) -> Vec<(bool, &'static str)> {
    let at = |wanted: fn(&Step) -> bool| turn.steps.iter().position(wanted);
    let count = |wanted: fn(&Step) -> bool| turn.steps.iter().filter(|step| wanted(step)).count();
    let window = at(|s| matches!(s, Step::Window { .. }));
    let arm = at(|s| matches!(s, Step::ArmGuard { .. }));
    let healthy = at(|s| matches!(s, Step::AwaitHealthy { .. }));
    let disarm = at(|s| matches!(s, Step::DisarmGuard { .. }));
    let mark = at(|s| matches!(s, Step::MarkPatched { .. }));
    let evict = at(|s| matches!(s, Step::EvictLeader { .. }));
    let elected = at(|s| matches!(s, Step::AwaitNewLeader { .. }));
    let cancel = at(|s| matches!(s, Step::CancelEvict { .. }));
    let restarts =
        turn.steps.iter().any(|s| matches!(s, Step::Window { around: Around::Restart, .. }));
    let before = |a: Option<usize>, b: Option<usize>| a.is_some() && b.is_some() && a < b;

    let own = turn.steps.iter().all(|step| step.instance().is_none_or(|id| *id == turn.instance));
    let is_exchange = turn.from != turn.to;
    let after = turn.texts.as_ref().map(|texts| &texts.after);
    let window_of_turn = turn.steps.iter().any(|step| {
        matches!(step, Step::Window { from, to, texts, .. }
            if *from == turn.from && *to == turn.to && texts.as_ref() == after)
    });
    let mut rules = vec![
        (own, "a turn touches its own instance only"),
        (count(|s| matches!(s, Step::Window { .. })) == 1, "a turn has one window"),
        (window_of_turn, "a window exchanges the turn's builds and writes its files"),
        (
            if is_exchange { before(window, mark) } else { mark.is_none() },
            "an exchange is recorded after its window, and nothing else is",
        ),
        (
            !turn.steps.iter().any(Step::is_preparation),
            "everything is staged before the first turn",
        ),
        (
            evict.is_none() || before(evict, elected) && before(elected, window),
            "a new leader is awaited before the window",
        ),
        (evict.is_none() || before(healthy, cancel), "an eviction is taken back"),
    ];
    if restarts {
        rules.push((before(window, healthy), "health is awaited after the window"));
    }
    if restarts && is_exchange {
        rules.extend([
            (before(arm, window), "the guard is armed before the window"),
            (before(healthy, disarm), "the guard is disarmed after health is seen"),
        ]);
    }
    if !is_exchange {
        rules.extend([
            (
                restarts || turn.texts.is_some(),
                "a window without an exchange stops and starts, or writes files",
            ),
            (
                arm.is_none() && disarm.is_none(),
                "a guard is armed only where there is a build to go back to",
            ),
        ]);
    }
    for (index, step) in turn.steps.iter().enumerate() {
        if let Step::PauseSubtask { task, source } = step {
            let after = &turn.steps[index..];
            let stands = after.iter().any(|s| matches!(s, Step::AwaitPaused { task: t, source: o, .. } if t == task && o == source));
            let resumes = after.iter().any(|s| matches!(s, Step::ResumeSubtask { task: t, source: o } if t == task && o == source));
            let moves = after
                .iter()
                .position(|s| matches!(s, Step::Transfer { source: o, .. } if o == source));
            let bound = after
                .iter()
                .position(|s| matches!(s, Step::AwaitBound { source: o, .. } if o == source));
            let resumed = after.iter().position(|s| matches!(s, Step::ResumeSubtask { task: t, source: o } if t == task && o == source));
            let opens = after.iter().position(|s| matches!(s, Step::Window { .. }));
            rules.push((before(bound, resumed), "a task is resumed once its source is bound"));
            rules.push((
                before(moves, resumed) || before(opens, resumed),
                "what was paused for a window is resumed elsewhere, or after it",
            ));
            rules.push((stands, "a pause is awaited"));
            rules.push((resumes, "what is paused is resumed"));
        }
    }
    rules
}

fn may_overlap(plan: &Plan, turn: &Turn) -> bool {
    let is_worker = plan.instance(&turn.instance).is_some_and(|it| it.role == Role::DmWorker);
    is_worker
        && !turn.was_broken
        && !plan.policy.batches.is_empty()
        && plan.version.stops_subtasks_before_lease()
}

fn hands_over(plan: &Plan, turn: &Turn) -> bool {
    let Some(dm) = &plan.baseline else { return true };
    let leads = master_of(dm, &turn.instance).is_some_and(|master| master.leader);
    !leads
        || turn.was_broken
        || dm.masters.len() < 3
        || turn.steps.iter().any(|step| matches!(step, Step::EvictLeader { .. }))
}

fn pauses_old_workers(plan: &Plan, turn: &Turn) -> bool {
    if plan.version.stops_subtasks_before_lease() || turn.was_broken {
        return true;
    }
    let Some(dm) = &plan.baseline else { return true };
    let Some(worker) = worker_of(dm, &turn.instance) else {
        return master_of(dm, &turn.instance).is_some()
            || turn.steps.iter().all(|s| !matches!(s, Step::Transfer { .. }));
    };
    let running = dm.subtasks.iter().filter(|subtask| {
        let is_here =
            dm.sources.get(&subtask.source).is_some_and(|b| b.as_ref() == Some(&worker.name));
        is_here && subtask.stage == SubtaskStage::Running
    });
    let window = turn.steps.iter().position(|s| matches!(s, Step::Window { .. })).unwrap_or(0);
    let before = &turn.steps[..window];
    running.into_iter().all(|subtask| {
        let is_it = |task: &TaskName, source: &SourceId| {
            *task == subtask.task && *source == subtask.source
        };
        let pauses = |step: &Step| matches!(step, Step::PauseSubtask { task, source } if is_it(task, source));
        let awaits = |step: &Step| matches!(step, Step::AwaitPaused { task, source, .. } if is_it(task, source));
        before.iter().any(pauses) && before.iter().any(awaits)
    })
}
