//! Plans the exchange of executables, and restarts without one, one instance at a time.

use std::collections::{BTreeMap, BTreeSet};

use super::basis::basis_of;
use super::check::check;
use super::decision::{
    Blocker, Consent, Decision, Kind, Override, ParcelSpec, Plan, TargetBuild, Turn, Warning,
    parcel_of,
};
use super::step::{Around, Step, config_check};
use super::turn::{TurnFacts, is_up, leader_of, master_of, turn_steps, worker_of};
use crate::builds::unmarked_patch;
use crate::digest::Digest;
use crate::ids::{ClusterName, HostId, InstanceId, MemberName};
use crate::instance::{Instance, Role};
use crate::inventory::{
    DmSeen, Inventory, Leftover, LeftoverKind, SubtaskSeen, SubtaskStage, SubtaskUnit, UnitActive,
    WorkerStage,
};
use crate::policy::{BatchSize, Policy};
use crate::texts::TextsChange;
use crate::version::DmVersion;

/// From here on logs do not line up: worth a word.
const SKEW_TO_TELL_MS: i64 = 30_001;
/// From here on times of hosts cannot be compared at all, and certificates may not be valid yet.
const SKEW_TOO_LARGE_MS: i64 = 300_000;

/// There are two on every host, one has its turn after the other, and all that one can do is to end soon after its start.
const EXPORTERS_SOAK_S: u32 = 1;

/// One restart may have been anything.
const RESTARTS_OF_A_LOOP: u32 = 2;
/// Whoever is up for longer has got over it. As long as commands wait for what passes by itself.
const UP_FOR_GOOD_MS: i64 = 60_000;

/// What the operator has seen and goes on with, and what keeps a node out of the run.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Allowances {
    /// `--force`: all obstacles that can be overridden, except that selected instances are down.
    pub force: bool,
    /// `--include-down`: selected instances may be down.
    pub include_down: bool,
    /// `--adopt`: a node may run something else than lies on its disk; what lies there is the build before.
    pub adopt: bool,
    /// `--force-build`: a build may have failed before.
    pub force_build: bool,
    /// `--defer`: workers whose subtasks dump or load are left out, instead of being in the way.
    pub defer: bool,
}

impl Allowances {
    fn cover(&self, needed: Override) -> bool {
        match needed {
            Override::IncludeDown => self.include_down,
            Override::Adopt => self.adopt || self.force,
            Override::ForceBuild => self.force_build || self.force,
            Override::Force => self.force,
        }
    }
}

/// What builds are put in for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Purpose {
    /// The version stays, and nodes are marked as patched.
    Hotfix,
    /// Another version, and no marks. Monitoring of which no package is at hand may get files alone.
    Upgrade {
        /// Which version the cluster has when all is done.
        to: DmVersion,
        /// Files that go with it, written in the windows of their instances.
        texts: BTreeMap<InstanceId, TextsChange>,
    },
}

/// What the operator wants put in.
#[derive(Clone, Debug)]
pub struct HotfixRequest {
    /// Of which cluster.
    pub cluster: ClusterName,
    /// Its version of DM.
    pub version: DmVersion,
    /// All its instances.
    pub instances: Vec<Instance>,
    /// Those that are meant (`-N` and `-R` already applied).
    pub selected: Vec<InstanceId>,
    /// What for.
    pub purpose: Purpose,
    /// The package of a hotfix.
    pub parcel: Option<ParcelSpec>,
    /// Those of an upgrade.
    pub parcels: Vec<ParcelSpec>,
    /// What they bring per role.
    pub targets: BTreeMap<Role, TargetBuild>,
    /// What they bring for single instances instead: those of another architecture than most.
    pub exceptions: BTreeMap<InstanceId, TargetBuild>,
    /// The cluster is declared stopped.
    pub offline: bool,
    /// What does not count as an obstacle.
    pub allow: Allowances,
    /// Builds that failed before, and how.
    pub known_bad: BTreeMap<Digest, String>,
    /// Builds before the one that runs: they stay on their hosts, for a hotfix that fails leaves the one before it in place.
    pub ways_back: BTreeMap<InstanceId, Digest>,
}

/// What the operator wants put back.
#[derive(Clone, Debug)]
pub struct RollbackRequest {
    /// Of which cluster.
    pub cluster: ClusterName,
    /// Its version of DM.
    pub version: DmVersion,
    /// The version that it has when all is done: an upgrade is taken back wholly.
    pub to_version: Option<DmVersion>,
    /// All its instances.
    pub instances: Vec<Instance>,
    /// Where each selected instance goes back to: the build of the tree that the last window took out.
    pub targets: BTreeMap<InstanceId, RollbackTarget>,
    /// The cluster is declared stopped.
    pub offline: bool,
    /// What does not count as an obstacle.
    pub allow: Allowances,
}

/// Where an instance goes back to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RollbackTarget {
    /// The build; none if there is no record of one.
    pub build: Option<Digest>,
    /// Whether that is a hotfix as well.
    pub patched: bool,
    /// The files that go with it, where others lie there now.
    pub texts: Option<TextsChange>,
}

/// Plans a hotfix, or an upgrade.
///
/// Order: nodes that are already broken (the hotfix may be their cure); masters that
/// follow; the leader, so that leadership moves once at most; free workers; relay
/// workers; bound workers, so that each source moves once and to a worker that has
/// had its turn; monitoring, which nothing depends on. An upgrade has all masters before
/// all workers: a master of the new version knows how to talk to workers of the old one.
pub fn plan_hotfix(request: &HotfixRequest, inventory: &Inventory, policy: &Policy) -> Decision {
    let mut goals = BTreeMap::new();
    let mut blockers = Vec::new();
    for id in &request.selected {
        let Some(instance) = request.instances.iter().find(|instance| instance.id == *id) else {
            continue;
        };
        let target = request.exceptions.get(id).or_else(|| request.targets.get(&instance.role));
        let (patched, texts) = match &request.purpose {
            Purpose::Hotfix => (true, None),
            Purpose::Upgrade { texts, .. } => (false, texts.get(id).cloned()),
        };
        match (target, &request.purpose) {
            (Some(target), _) => {
                let goal = Goal::Build { to: target.digest.clone(), patched, texts };
                goals.insert(id.clone(), goal);
            }
            (None, Purpose::Upgrade { .. }) if !instance.role.is_dm() => {
                goals.extend(texts.map(|it| (id.clone(), Goal::Again { texts: Some(it) })));
            }
            (None, Purpose::Hotfix | Purpose::Upgrade { .. }) => {
                blockers.push(Blocker::NotInPackage { instance: id.clone(), role: instance.role });
            }
        }
    }
    let (kind, to_version) = match &request.purpose {
        Purpose::Hotfix => (Kind::Hotfix, None),
        Purpose::Upgrade { to, .. } => (Kind::Upgrade, Some(to)),
    };
    let work = Work {
        cluster: &request.cluster,
        version: &request.version,
        instances: &request.instances,
        goals,
        kind,
        to_version,
        parcel: request.parcel.as_ref(),
        parcels: &request.parcels,
        known_bad: &request.known_bad,
        targets: request.targets.clone(),
        exceptions: request.exceptions.clone(),
        ways_back: request.ways_back.clone(),
        offline: request.offline,
        allow: &request.allow,
    };
    plan_exchange(&work, blockers, inventory, policy)
}

/// Plans the way back: the same order and the same checks, with the trees that lie on the hosts.
pub fn plan_rollback(
    request: &RollbackRequest,
    inventory: &Inventory,
    policy: &Policy,
) -> Decision {
    let mut goals = BTreeMap::new();
    let mut blockers = Vec::new();
    for (id, target) in &request.targets {
        match &target.build {
            Some(build) => {
                let texts = target.texts.clone();
                let goal = Goal::Build { to: build.clone(), patched: target.patched, texts };
                goals.insert(id.clone(), goal);
            }
            None => blockers.push(Blocker::NothingToGoBackTo { instance: id.clone() }),
        }
    }
    let work = Work {
        cluster: &request.cluster,
        version: &request.version,
        instances: &request.instances,
        goals,
        kind: Kind::Rollback,
        to_version: request.to_version.as_ref(),
        parcel: None,
        parcels: &[],
        known_bad: &BTreeMap::new(),
        targets: BTreeMap::new(),
        exceptions: BTreeMap::new(),
        ways_back: BTreeMap::new(),
        offline: request.offline,
        allow: &request.allow,
    };
    plan_exchange(&work, blockers, inventory, policy)
}

/// Whether a build lies neither in `bin` nor beside it. A silent host is told of as such.
fn is_gone(instance: &Instance, build: &Digest, inventory: &Inventory) -> bool {
    let id = &instance.id;
    let Some(Ok(host)) = inventory.hosts.get(&instance.host) else { return false };
    let on_disk = inventory.processes.get(id).and_then(|it| it.on_disk.as_ref());
    let is_it = |it: &&Leftover| it.instance == *id && it.kind == LeftoverKind::Tree;
    let mut trees = host.leftovers.iter().filter(is_it).filter_map(|it| it.build.as_ref());
    on_disk != Some(build) && !trees.any(|it| it == build)
}

/// What the operator wants stopped and started.
#[derive(Clone, Debug)]
pub struct RestartRequest {
    /// Of which cluster.
    pub cluster: ClusterName,
    /// Its version of DM.
    pub version: DmVersion,
    /// All its instances.
    pub instances: Vec<Instance>,
    /// Those that are meant, and the files that are written in their windows (`reload`).
    pub targets: BTreeMap<InstanceId, Option<TextsChange>>,
    /// Whether it is a reload, also of nodes whose files are as they should be.
    pub is_reload: bool,
    /// What does not count as an obstacle.
    pub allow: Allowances,
}

/// Plans a restart or a reload: the order and the checks of a hotfix, and no build changes.
pub fn plan_restart(request: &RestartRequest, inventory: &Inventory, policy: &Policy) -> Decision {
    let goals = request
        .targets
        .iter()
        .map(|(id, texts)| (id.clone(), Goal::Again { texts: texts.clone() }))
        .collect();
    let work = Work {
        cluster: &request.cluster,
        version: &request.version,
        instances: &request.instances,
        goals,
        kind: if request.is_reload { Kind::Reload } else { Kind::Restart },
        to_version: None,
        parcel: None,
        parcels: &[],
        known_bad: &BTreeMap::new(),
        targets: BTreeMap::new(),
        exceptions: BTreeMap::new(),
        ways_back: BTreeMap::new(),
        offline: false,
        allow: &request.allow,
    };
    plan_exchange(&work, Vec::new(), inventory, policy)
}

/// What becomes of an instance.
enum Goal {
    /// It gets a build, and the files that go with it.
    Build { to: Digest, patched: bool, texts: Option<TextsChange> },
    /// It is stopped and started.
    Again { texts: Option<TextsChange> },
}

impl Goal {
    /// The build that it is to have, if that is another one than lies there.
    fn build(&self) -> Option<&Digest> {
        match self {
            Self::Build { to, .. } => Some(to),
            Self::Again { .. } => None,
        }
    }

    /// Files that are written.
    fn texts(&self) -> Option<&TextsChange> {
        match self {
            Self::Build { texts, .. } | Self::Again { texts } => texts.as_ref(),
        }
    }
}

/// A hotfix, an upgrade, a rollback, or a restart.
struct Work<'a> {
    cluster: &'a ClusterName,
    version: &'a DmVersion,
    instances: &'a [Instance],
    goals: BTreeMap<InstanceId, Goal>,
    kind: Kind,
    to_version: Option<&'a DmVersion>,
    parcel: Option<&'a ParcelSpec>,
    parcels: &'a [ParcelSpec],
    known_bad: &'a BTreeMap<Digest, String>,
    targets: BTreeMap<Role, TargetBuild>,
    exceptions: BTreeMap<InstanceId, TargetBuild>,
    ways_back: BTreeMap<InstanceId, Digest>,
    offline: bool,
    allow: &'a Allowances,
}

impl Work<'_> {
    /// What is in the way of it is told, and no more.
    fn tolerates(&self, instance: &Instance) -> bool {
        let is_for_dm =
            self.instances.iter().any(|it| it.role.is_dm() && self.goals.contains_key(&it.id));
        self.kind.tolerates(instance.role, is_for_dm)
    }

    fn target(&self, instance: &Instance) -> Option<&TargetBuild> {
        self.exceptions.get(&instance.id).or_else(|| self.targets.get(&instance.role))
    }

    fn parcel_of(&self, instance: &Instance) -> Option<&ParcelSpec> {
        parcel_of(self.target(instance), self.parcel, self.parcels)
    }
}

/// An instance that has to change.
struct Candidate<'a> {
    instance: &'a Instance,
    goal: &'a Goal,
    from: Digest,
    to: Digest,
    is_broken: bool,
    /// It runs at the moment, but crashes again and again.
    is_crashing: bool,
    /// It runs, so its host answers and its unit is active.
    is_active: bool,
}

fn plan_exchange(
    work: &Work<'_>,
    mut blockers: Vec<Blocker>,
    inventory: &Inventory,
    policy: &Policy,
) -> Decision {
    let wants_dm = !work.offline
        && work.instances.iter().any(|i| i.role.is_dm() && work.goals.contains_key(&i.id));
    let dm = if wants_dm { inventory.dm.as_ref().ok() } else { None };

    // What the plan is about: what it can do without may change meanwhile.
    let selected: Vec<Instance> = work
        .instances
        .iter()
        .filter(|it| work.goals.contains_key(&it.id) && !work.tolerates(it))
        .cloned()
        .collect();
    blockers.extend(unreachable_hosts(&selected, inventory));
    let (mut candidates, mut beside) = (Vec::new(), Vec::new());
    for instance in work.instances {
        let Some(goal) = work.goals.get(&instance.id) else { continue };
        let mut own = Vec::new();
        let found = look_at(work, instance, goal, inventory, dm, &mut own);
        let found = found.filter(|candidate| !candidate.is_done(inventory));
        if work.tolerates(instance) {
            own.extend(unreachable_hosts(std::slice::from_ref(instance), inventory));
            beside.push((instance, found, own));
        } else {
            blockers.extend(own);
            candidates.extend(found);
        }
    }
    let deferred = dm.map(|dm| defer(work, &mut candidates, dm)).unwrap_or_default();
    blockers.splice(0..0, known_bad(work, &selected, inventory));
    blockers.extend(host_obstacles(&candidates, inventory));
    blockers.extend(still_running(work, &candidates));
    let (told, left) = take_along(work, &mut candidates, beside, inventory);
    if candidates.is_empty() && blockers.is_empty() {
        // What is left to do cannot be done: that is worth more than a word.
        return if left.is_empty() { Decision::NothingToDo } else { Decision::Blocked(left) };
    }
    if wants_dm && candidates.iter().any(|candidate| candidate.instance.role.is_dm()) {
        match &inventory.dm {
            Ok(dm) => blockers.extend(dm_obstacles(work, &candidates, inventory, dm, policy)),
            Err(why) => blockers.push(Blocker::DmSilent { why: why.clone() }),
        }
    }
    blockers.extend(full_disks(work, &candidates, inventory));

    let (mut warnings, blockers) = override_some(work, blockers);
    if !blockers.is_empty() {
        return Decision::Blocked(blockers);
    }
    warnings.extend(told);
    warnings.extend(deferred);
    warnings.extend(oddities(work, &candidates, inventory));

    let ordered = in_order(candidates, dm, work.kind);
    let (turns, consents) = take_turns(work, &ordered, dm, policy);
    let is_needed = |parcel: &&ParcelSpec| {
        let mut exchanges = ordered.iter().filter(|it| it.from != it.to);
        exchanges.any(|it| work.parcel_of(it.instance) == Some(*parcel))
    };
    let plan = Plan {
        format: Plan::FORMAT,
        cluster: work.cluster.clone(),
        kind: work.kind,
        version: work.version.clone(),
        to_version: work.to_version.cloned(),
        based_on: basis_of(&selected, inventory, wants_dm, policy),
        baseline: dm.cloned(),
        instances: work.instances.to_vec(),
        parcel: work.parcel.cloned(),
        parcels: work.parcels.iter().filter(|it| is_needed(it)).cloned().collect(),
        targets: work.targets.clone(),
        exceptions: work.exceptions.clone(),
        policy: policy.clone(),
        preparation: prepare(work, &ordered, inventory),
        turns,
        consents,
        warnings,
    };
    let broken = check(&plan);
    assert!(broken.is_empty(), "a plan breaks its own rules: {broken:?}");
    Decision::Go(Box::new(plan))
}

impl Candidate<'_> {
    /// Its disk has the target, it runs nothing else, and no file is to be written.
    fn is_done(&self, inventory: &Inventory) -> bool {
        self.goal.texts().is_none()
            && self.goal.build().is_some_and(|to| {
                inventory.processes.get(&self.instance.id).is_some_and(|process| {
                    process.on_disk.as_ref() == Some(to)
                        && process.running.as_ref().is_none_or(|running| running == to)
                })
            })
    }

    /// Whether the next one may begin while this one is still watched. Masters never do: with one of them unproven,
    /// there is no quorum to spare. Nor do old workers: the one that is watched may have got a source meanwhile, and if its
    /// guard stops it then, two workers write (dm.md 12.2).
    fn overlaps_with(&self, next: &Self, work: &Work<'_>) -> bool {
        let may = |it: &Self| it.instance.role == Role::DmWorker && !it.is_broken;
        !work.offline && work.version.stops_subtasks_before_lease() && may(self) && may(next)
    }

    /// Exchanged before and only not restarted: the other tree is the way back, it must stay.
    fn is_exchanged(&self, inventory: &Inventory) -> bool {
        inventory
            .processes
            .get(&self.instance.id)
            .is_some_and(|process| process.on_disk.as_ref() == Some(&self.to))
    }
}

/// Looks at one selected instance; adds what is in the way.
fn look_at<'a>(
    work: &'a Work<'_>,
    instance: &'a Instance,
    goal: &'a Goal,
    inventory: &Inventory,
    dm: Option<&DmSeen>,
    blockers: &mut Vec<Blocker>,
) -> Option<Candidate<'a>> {
    let id = &instance.id;
    if !matches!(inventory.hosts.get(&instance.host), Some(Ok(_))) {
        return None; // said once per host
    }
    let Some(process) = inventory.processes.get(id) else {
        blockers.push(Blocker::ProcessUnknown { instance: id.clone() });
        return None;
    };
    if process.active == UnitActive::Missing {
        blockers.push(Blocker::UnitMissing { instance: id.clone() });
        return None;
    }
    let Some(on_disk) = &process.on_disk else {
        blockers.push(Blocker::BinaryMissing { instance: id.clone() });
        return None;
    };
    let is_active = matches!(
        process.active,
        UnitActive::Active | UnitActive::Activating | UnitActive::Deactivating
    );
    let mut from = on_disk.clone();
    let mut has_drifted = false;
    if let Some(running) = &process.running
        && running != on_disk
    {
        if goal.build() == Some(on_disk) {
            from = running.clone(); // exchanged before, not restarted: the window will see to that
        } else {
            has_drifted = true;
        }
    }
    let seen = if work.offline { Ok(()) } else { is_up(instance, Some(process), dm) };
    let is_broken = seen.is_err();
    let crashing = if work.offline { None } else { crashing(instance, inventory, true) };
    let is_crashing = crashing.is_some();
    let to = goal.build().unwrap_or(on_disk).clone();
    let candidate = Candidate { instance, goal, from, to, is_broken, is_crashing, is_active };
    if candidate.is_done(inventory) {
        return Some(candidate);
    }
    if let (Kind::Rollback, Some(build)) = (work.kind, goal.build())
        && is_gone(instance, build, inventory)
    {
        blockers.push(Blocker::WayBackGone { instance: id.clone(), build: build.clone() });
    }
    if has_drifted && let Some(running) = &process.running {
        blockers.push(Blocker::Drift {
            instance: id.clone(),
            running: running.clone(),
            on_disk: on_disk.clone(),
        });
    }
    match seen {
        Err(seen) => blockers.push(Blocker::InstanceDown { instance: id.clone(), seen }),
        Ok(()) => blockers.extend(crashing),
    }
    Some(candidate)
}

/// A DM process that is up, but has not been for long, and not for the first time.
fn crashing(instance: &Instance, inventory: &Inventory, has_its_turn: bool) -> Option<Blocker> {
    let process = inventory.processes.get(&instance.id)?;
    let Some(Ok(host)) = inventory.hosts.get(&instance.host) else { return None };
    let now_ms = inventory.at.as_millisecond().saturating_add(host.clock_skew_ms);
    let up_ms = now_ms.saturating_sub(process.active_since_ms?).max(0);
    let is_it = instance.role.is_dm()
        && process.active == UnitActive::Active
        && process.restarts >= RESTARTS_OF_A_LOOP
        && up_ms < UP_FOR_GOOD_MS;
    is_it.then(|| Blocker::Crashing {
        instance: instance.id.clone(),
        restarts: process.restarts,
        up_s: up_ms.unsigned_abs() / 1000,
        has_its_turn,
    })
}

fn unreachable_hosts(selected: &[Instance], inventory: &Inventory) -> Vec<Blocker> {
    let hosts: BTreeSet<&HostId> = selected.iter().map(|instance| &instance.host).collect();
    hosts
        .into_iter()
        .filter_map(|host| {
            let why = match inventory.hosts.get(host) {
                Some(Ok(_)) => return None,
                Some(Err(why)) => why.clone(),
                None => "it was not asked".to_owned(),
            };
            Some(Blocker::HostUnreachable { host: host.clone(), why })
        })
        .collect()
}

fn dm_obstacles(
    work: &Work<'_>,
    candidates: &[Candidate<'_>],
    inventory: &Inventory,
    dm: &DmSeen,
    policy: &Policy,
) -> Vec<Blocker> {
    let mut blockers = Vec::new();
    let down: BTreeMap<&InstanceId, String> = work
        .instances
        .iter()
        .filter(|instance| instance.role.is_dm())
        .filter_map(|instance| {
            let process = inventory.processes.get(&instance.id);
            is_up(instance, process, Some(dm)).err().map(|seen| (&instance.id, seen))
        })
        .collect();

    blockers.extend(leader_dispute(dm, &down));
    for master in &dm.masters {
        let is_down = master.instance.as_ref().is_some_and(|id| down.contains_key(id));
        if master.etcd_healthy == Some(false) && !is_down {
            blockers.push(Blocker::EtcdUnhealthy { master: master.name.clone() });
        }
    }
    for instance in work.instances {
        let another_has_its_turn = candidates.iter().any(|candidate| {
            candidate.instance.role == instance.role && candidate.instance.id != instance.id
        });
        if !another_has_its_turn || candidates.iter().any(|it| it.instance.id == instance.id) {
            continue;
        }
        match down.get(&instance.id) {
            Some(_) if work.goals.contains_key(&instance.id) => {}
            Some(seen) => blockers.push(Blocker::AnotherDown {
                instance: instance.id.clone(),
                role: instance.role,
                seen: seen.clone(),
            }),
            None => blockers.extend(crashing(instance, inventory, false)),
        }
    }
    blockers.extend(quorum_at_risk(candidates, dm));

    for (source, worker) in &dm.sources {
        if worker.is_none() {
            blockers.push(Blocker::SourceUnbound { source_id: source.clone() });
        }
    }
    for (source, relay) in &dm.relays {
        if let Some(error) = relay.errors.first() {
            blockers
                .push(Blocker::RelayFailing { source_id: source.clone(), error: error.clone() });
        }
    }
    for subtask in &dm.subtasks {
        let (task, source_id) = (subtask.task.clone(), subtask.source.clone());
        if let Some(error) = subtask.validator.as_ref().and_then(|it| it.errors.first()) {
            blockers.push(Blocker::ValidatorFailing {
                task: task.clone(),
                source_id: source_id.clone(),
                error: error.clone(),
            });
        }
        if let Some(error) = subtask.errors.first() {
            blockers.push(Blocker::SubtaskFailing {
                task: task.clone(),
                source_id: source_id.clone(),
                error: error.clone(),
            });
        }
        let has_its_turn = candidates.iter().any(|candidate| {
            let worker = worker_of(dm, &candidate.instance.id).map(|worker| &worker.name);
            worker.is_some() && worker == subtask.worker.as_ref()
        });
        if is_loading(subtask) && has_its_turn {
            blockers.push(Blocker::SubtaskInFullLoad {
                task: task.clone(),
                source_id: source_id.clone(),
                unit: subtask.unit,
            });
        }
        if subtask.blocked_ddls > 0 {
            let (task, source_id) = (task.clone(), source_id.clone());
            blockers.push(Blocker::DdlWaiting { task, source_id, count: subtask.blocked_ddls });
        }
        blockers.extend(too_far_behind(policy, subtask));
    }
    blockers
}

/// A subtask that follows its source, but not closely enough for the operator.
pub(super) fn too_far_behind(policy: &Policy, subtask: &SubtaskSeen) -> Option<Blocker> {
    let max_s = policy.max_lag_s?;
    let (task, source_id) = (subtask.task.clone(), subtask.source.clone());
    if subtask.stage != SubtaskStage::Running || subtask.unit != SubtaskUnit::Sync || subtask.synced
    {
        return None;
    }
    match subtask.lag_s {
        None => Some(Blocker::LagUnknown { task, source_id }),
        Some(lag_s) if lag_s > u64::from(max_s) => {
            Some(Blocker::Lagging { task, source_id, lag_s, max_s })
        }
        Some(_) => None,
    }
}

/// Whether a stop would cost a full export or import.
fn is_loading(subtask: &SubtaskSeen) -> bool {
    matches!(subtask.unit, SubtaskUnit::Dump | SubtaskUnit::Load)
        && matches!(subtask.stage, SubtaskStage::Running | SubtaskStage::Resuming)
}

/// Takes the workers out that dump or load, if that is wanted. If nobody remains, all stay: then they are in the way.
fn defer(work: &Work<'_>, candidates: &mut Vec<Candidate<'_>>, dm: &DmSeen) -> Vec<Warning> {
    if !work.allow.defer {
        return Vec::new();
    }
    let mut warnings = Vec::new();
    for candidate in candidates.iter() {
        let Some(worker) = worker_of(dm, &candidate.instance.id) else { continue };
        let of_it = |subtask: &&SubtaskSeen| subtask.worker.as_ref() == Some(&worker.name);
        if let Some(subtask) = dm.subtasks.iter().filter(of_it).find(|it| is_loading(it)) {
            warnings.push(Warning::Deferred {
                instance: candidate.instance.id.clone(),
                task: subtask.task.clone(),
                source_id: subtask.source.clone(),
                unit: subtask.unit,
            });
        }
    }
    if warnings.len() == candidates.len() {
        return Vec::new();
    }
    candidates.retain(|candidate| {
        let is_it = |warning: &Warning| matches!(warning, Warning::Deferred { instance, .. } if *instance == candidate.instance.id);
        !warnings.iter().any(is_it)
    });
    warnings
}

/// Builds that failed before and would be put in, each once; a silent host does not say what lies there.
fn known_bad(work: &Work<'_>, instances: &[Instance], inventory: &Inventory) -> Vec<Blocker> {
    let on_disk = |id: &InstanceId| inventory.processes.get(id).and_then(|it| it.on_disk.as_ref());
    let builds: BTreeSet<&Digest> = instances
        .iter()
        .filter_map(|it| {
            let build = work.goals.get(&it.id)?.build()?;
            (on_disk(&it.id) != Some(build)).then_some(build)
        })
        .collect();
    builds
        .into_iter()
        .filter_map(|build| {
            let why = work.known_bad.get(build)?;
            Some(Blocker::KnownBad { build: build.clone(), why: why.clone() })
        })
        .collect()
}

/// `--offline`, and they run.
fn still_running(work: &Work<'_>, candidates: &[Candidate<'_>]) -> Vec<Blocker> {
    let active = candidates.iter().filter(|candidate| work.offline && candidate.is_active);
    active.map(|it| Blocker::StillRunning { instance: it.instance.id.clone() }).collect()
}

/// What the run can do without gets a turn if nothing is in its way. That it is down is not: the run may be its cure.
/// Returns what has to be told, and what keeps the others from their turn.
fn take_along<'a>(
    work: &Work<'_>,
    candidates: &mut Vec<Candidate<'a>>,
    beside: Vec<(&'a Instance, Option<Candidate<'a>>, Vec<Blocker>)>,
    inventory: &Inventory,
) -> (Vec<Warning>, Vec<Blocker>) {
    let (mut told, mut left) = (Vec::new(), Vec::new());
    for (instance, candidate, mut own) in beside {
        let (id, role) = (&instance.id, instance.role);
        own.retain(|blocker| {
            let Blocker::InstanceDown { seen, .. } = blocker else { return true };
            let (instance, seen) = (id.clone(), seen.clone());
            told.push(Warning::MonitoringDown { instance, role, seen });
            false
        });
        if let Some(candidate) = candidate {
            let one = std::slice::from_ref(&candidate);
            own.extend(known_bad(work, std::slice::from_ref(instance), inventory));
            own.extend(host_obstacles(one, inventory));
            own.extend(still_running(work, one));
            candidates.push(candidate);
            own.extend(full_disks(work, candidates, inventory).into_iter().filter(
                |full| matches!(full, Blocker::DiskFull { host, .. } if *host == instance.host),
            ));
            let (overridden, obstacles) = override_some(work, own);
            told.extend(overridden);
            own = obstacles;
            if own.is_empty() {
                continue;
            }
            candidates.pop();
        }
        if !own.is_empty() {
            let why: Vec<String> = own.iter().map(ToString::to_string).collect();
            let (instance, why) = (id.clone(), why.join("; "));
            told.push(Warning::MonitoringLeft { instance, role, why });
            left.extend(own);
        }
    }
    (told, left)
}

/// What the hosts of the nodes that have a turn say against it, besides their disks.
fn host_obstacles(candidates: &[Candidate<'_>], inventory: &Inventory) -> Vec<Blocker> {
    let mut blockers = Vec::new();
    let hosts: BTreeSet<&HostId> = candidates.iter().map(|it| &it.instance.host).collect();
    for host in hosts {
        let Some(Ok(seen)) = inventory.hosts.get(host) else { continue };
        if seen.clock_skew_ms.abs() > SKEW_TOO_LARGE_MS {
            let skew_s = seen.clock_skew_ms / 1000;
            blockers.push(Blocker::ClockOff { host: host.clone(), skew_s });
        }
        for leftover in &seen.leftovers {
            let has_its_turn = candidates.iter().any(|it| it.instance.id == leftover.instance);
            if has_its_turn && leftover.kind == LeftoverKind::ArmedGuard {
                blockers.push(Blocker::GuardArmed { instance: leftover.instance.clone() });
            }
        }
    }
    blockers
}

fn leader_dispute(dm: &DmSeen, down: &BTreeMap<&InstanceId, String>) -> Option<Blocker> {
    let voices: Vec<_> = dm
        .masters
        .iter()
        .filter(|master| master.alive)
        .filter(|master| !master.instance.as_ref().is_some_and(|id| down.contains_key(id)))
        .collect();
    let said: BTreeSet<Option<&MemberName>> =
        voices.iter().map(|master| master.calls_leader.as_ref()).collect();
    let agreed = said.len() == 1 && !said.contains(&None) && leader_of(dm).is_some();
    (!agreed).then(|| {
        let said: Vec<String> = voices
            .iter()
            .map(|master| {
                let leader = master.calls_leader.as_ref().map_or("nobody", |name| name.as_str());
                format!("{} names {leader}", master.name)
            })
            .collect();
        Blocker::LeaderDisputed { said: said.join(", ") }
    })
}

fn quorum_at_risk(candidates: &[Candidate<'_>], dm: &DmSeen) -> Option<Blocker> {
    let takes_one_down = candidates
        .iter()
        .any(|candidate| candidate.instance.role == Role::DmMaster && !candidate.is_broken);
    let total = dm.masters.len();
    if !takes_one_down || total < 3 {
        return None; // one or two masters: a consent, not an obstacle
    }
    // Broken ones that are selected have their turn before any healthy one.
    let alive = dm
        .masters
        .iter()
        .filter(|master| {
            master.alive
                || candidates.iter().any(|c| Some(&c.instance.id) == master.instance.as_ref())
        })
        .count();
    let needed = total / 2 + 1;
    (alive < needed + 1).then_some(Blocker::QuorumAtRisk { alive, total, needed })
}

fn full_disks(
    work: &Work<'_>,
    candidates: &[Candidate<'_>],
    inventory: &Inventory,
) -> Vec<Blocker> {
    let mut per_host: BTreeMap<&HostId, (BTreeMap<&Digest, u64>, u64)> = BTreeMap::new();
    for candidate in candidates.iter().filter(|it| it.from != it.to) {
        let Some(parcel) = work.parcel_of(candidate.instance) else { continue };
        let (stored, trees) = per_host.entry(&candidate.instance.host).or_default();
        stored.insert(&parcel.digest, parcel.unpacked_bytes);
        *trees = trees.saturating_add(parcel.unpacked_bytes);
    }
    let mut blockers = Vec::new();
    for (host, (stored, trees)) in per_host {
        // The store has each once, and every instance gets a tree of its own.
        let needed = stored.into_values().fold(trees, u64::saturating_add);
        let Some(Ok(seen)) = inventory.hosts.get(host) else { continue };
        let tightest = seen.free_bytes.iter().min_by_key(|(_, free)| **free);
        if let Some((path, free)) = tightest
            && *free < needed
        {
            let (path, free) = (path.clone(), *free);
            blockers.push(Blocker::DiskFull { host: host.clone(), path, free, needed });
        }
    }
    blockers
}

fn override_some(work: &Work<'_>, blockers: Vec<Blocker>) -> (Vec<Warning>, Vec<Blocker>) {
    let mut warnings = Vec::new();
    let mut remaining = Vec::new();
    for blocker in blockers {
        let given = blocker.overridden_by().filter(|needed| work.allow.cover(*needed));
        match given {
            Some(given) => warnings.push(Warning::Overridden {
                flag: given.flag().to_owned(),
                blocker: blocker.to_string(),
            }),
            None => remaining.push(blocker),
        }
    }
    (warnings, remaining)
}

fn oddities(work: &Work<'_>, candidates: &[Candidate<'_>], inventory: &Inventory) -> Vec<Warning> {
    let mut warnings = Vec::new();
    for (host, seen) in &inventory.hosts {
        if let Ok(seen) = seen
            && (SKEW_TO_TELL_MS..=SKEW_TOO_LARGE_MS).contains(&seen.clock_skew_ms.abs())
        {
            warnings
                .push(Warning::ClockSkew { host: host.clone(), skew_s: seen.clock_skew_ms / 1000 });
        }
    }
    for candidate in candidates {
        let instance = &candidate.instance.id;
        let process = inventory.processes.get(instance);
        if process.is_some_and(|process| !process.enabled) {
            warnings.push(Warning::NotEnabled { instance: instance.clone() });
        }
        let Some(Ok(seen)) = inventory.hosts.get(&candidate.instance.host) else { continue };
        let unmarked = process.and_then(|process| {
            unmarked_patch(candidate.instance, work.version, process, &seen.leftovers)
        });
        warnings.extend(
            unmarked.map(|path| Warning::PatchedUnmarked { instance: instance.clone(), path }),
        );
        for leftover in seen.leftovers.iter().filter(|it| it.instance == *instance) {
            let (instance, path) = (instance.clone(), leftover.path.clone());
            match leftover.kind {
                LeftoverKind::ArmedGuard => {} // an obstacle
                LeftoverKind::Tree => {}       // what a way back needs
                LeftoverKind::FiredGuard => warnings.push(Warning::GuardHasActed { instance }),
                LeftoverKind::TiupBackup => warnings.push(Warning::TiupBackup { instance, path }),
                LeftoverKind::TiupUpload => warnings.push(Warning::TiupUpload { instance, path }),
            }
        }
    }
    warnings
}

/// Sorts by what is safest first.
fn in_order<'a>(
    mut candidates: Vec<Candidate<'a>>,
    dm: Option<&DmSeen>,
    kind: Kind,
) -> Vec<Candidate<'a>> {
    // Of all masters, also before workers that are down.
    let is_later = |candidate: &Candidate<'_>| {
        kind == Kind::Upgrade && candidate.instance.role != Role::DmMaster
    };
    let rank = |candidate: &Candidate<'_>| {
        let id = &candidate.instance.id;
        let is_dm = candidate.instance.role.is_dm();
        match (candidate.instance.role, dm) {
            _ if candidate.is_broken && is_dm => 0,
            (Role::DmMaster, Some(dm)) => {
                let leads = master_of(dm, id).is_some_and(|master| master.leader);
                match (leads, candidate.is_crashing) {
                    (true, _) => 2,
                    (false, crashing) => i32::from(!crashing),
                }
            }
            _ if candidate.is_crashing => 0,
            (Role::DmMaster, None) => 1,
            (Role::DmWorker, Some(dm)) => match worker_of(dm, id).map(|worker| worker.stage) {
                Some(WorkerStage::Free) => 3,
                Some(WorkerStage::Relay) => 4,
                Some(WorkerStage::Bound | WorkerStage::Offline) | None => 5,
            },
            (Role::DmWorker, None) => 3,
            (Role::Prometheus, _) => 6,
            (Role::Grafana, _) => 7,
            (Role::Alertmanager, _) => 8,
            (Role::NodeExporter, _) => 9,
            (Role::BlackboxExporter, _) => 10,
        }
    };
    // Stable: within a rank the order of the topology.
    candidates
        .sort_by_key(|candidate| (is_later(candidate), rank(candidate), candidate.instance.role));
    candidates
}

fn prepare(work: &Work<'_>, ordered: &[Candidate<'_>], inventory: &Inventory) -> Vec<Step> {
    let checks =
        ordered.iter().filter_map(|it| config_check(work.kind, it.instance, it.goal.texts()));
    if work.parcel.is_none() && work.parcels.is_empty() {
        return checks.collect();
    }
    let sent: BTreeSet<(&HostId, Option<Role>)> = ordered
        .iter()
        .filter(|c| c.from != c.to)
        .map(|c| {
            let own = work.target(c.instance).filter(|target| target.parcel.is_some());
            (&c.instance.host, own.map(|_| c.instance.role))
        })
        .collect();
    let stages = sent.into_iter().map(|(host, of)| Step::Stage { host: host.clone(), of });
    let prepares = ordered.iter().filter(|candidate| !candidate.is_exchanged(inventory)).map(|c| {
        Step::Prepare {
            instance: c.instance.id.clone(),
            to: c.to.clone(),
            keeps: work.ways_back.get(&c.instance.id).cloned(),
        }
    });
    stages.chain(prepares).chain(checks).collect()
}

/// Goes through the turns with a forecast of DM's state.
fn take_turns(
    work: &Work<'_>,
    ordered: &[Candidate<'_>],
    dm: Option<&DmSeen>,
    policy: &Policy,
) -> (Vec<Turn>, Vec<Consent>) {
    let mut forecast = dm.cloned();
    let mut pending: BTreeSet<InstanceId> =
        ordered.iter().map(|candidate| candidate.instance.id.clone()).collect();
    let (mut turns, mut consents) = (Vec::new(), Vec::new());
    // Exporters come last, and are in no batch.
    let in_batches = ordered.iter().filter(|it| !it.instance.role.is_exporter()).count();
    let batch_ends = batch_ends(&policy.batches, in_batches);
    for (index, candidate) in ordered.iter().enumerate() {
        let id = &candidate.instance.id;
        let soak_s = match batch_ends.contains(&(index + 1)) {
            true => Some(policy.batch_soak_s),
            false if candidate.instance.role.is_exporter() => {
                Some(policy.soak_s.min(EXPORTERS_SOAK_S))
            }
            false => None,
        };
        pending.remove(id);
        let around = match (work.offline, candidate.is_active) {
            (false, _) => Around::Restart,
            (true, false) => Around::Offline,
            (true, true) => Around::OfflineEvenIfRunning,
        };
        let (patched, texts) = match candidate.goal {
            Goal::Build { patched, texts, .. } => (*patched, texts.clone()),
            Goal::Again { texts } => (candidate.instance.patched, texts.clone()),
        };
        let steps = turn_steps(&TurnFacts {
            instance: candidate.instance,
            from: &candidate.from,
            to: &candidate.to,
            texts: texts.as_ref(),
            patched,
            around,
            is_broken: candidate.is_broken,
            dm: forecast.as_ref(),
            version: work.version,
            policy,
            soak_s: soak_s.unwrap_or(policy.soak_s),
            pending: &pending,
        });
        if let Some(forecast) = &mut forecast {
            consents.extend(interruptions(candidate, forecast));
            foresee(candidate, &steps, forecast);
        }
        turns.push(Turn {
            instance: id.clone(),
            from: candidate.from.clone(),
            to: candidate.to.clone(),
            patched,
            texts,
            was_broken: candidate.is_broken,
            soak_s,
            overlaps: soak_s.is_none()
                && !policy.batches.is_empty()
                && ordered.get(index + 1).is_some_and(|next| candidate.overlaps_with(next, work)),
            steps,
        });
    }
    (turns, consents)
}

/// After how many turns a batch ends and another one begins.
fn batch_ends(batches: &[BatchSize], total: usize) -> BTreeSet<usize> {
    let mut ends = BTreeSet::new();
    let mut so_far = 0_usize;
    for batch in batches {
        so_far = so_far.saturating_add(batch.of(total));
        if so_far < total {
            ends.insert(so_far);
        }
    }
    ends
}

fn interruptions(candidate: &Candidate<'_>, dm: &DmSeen) -> Vec<Consent> {
    let id = &candidate.instance.id;
    if candidate.is_broken {
        return Vec::new();
    }
    match candidate.instance.role {
        Role::DmMaster if dm.masters.len() < 3 => vec![Consent::NoScheduling {
            instance: id.clone(),
            masters: dm.masters.len(),
            about_s: 5,
        }],
        Role::DmWorker => {
            let Some(worker) = worker_of(dm, id) else { return Vec::new() };
            let has_spare = dm
                .workers
                .iter()
                .any(|other| other.stage == WorkerStage::Free && other.name != worker.name);
            if has_spare {
                return Vec::new();
            }
            dm.sources
                .iter()
                .filter(|(_, bound)| bound.as_ref() == Some(&worker.name))
                .map(|(source, _)| Consent::SourcePauses {
                    source_id: source.clone(),
                    instance: id.clone(),
                    about_s: 5,
                })
                .collect()
        }
        Role::DmMaster
        | Role::Prometheus
        | Role::Grafana
        | Role::Alertmanager
        | Role::NodeExporter
        | Role::BlackboxExporter => Vec::new(),
    }
}

/// What later turns depend on: who is free, and who has which source. Where DM moves a source by itself does not matter: it
/// takes a free worker, and leaves one. Masters owe no forecast, the leader comes last of them.
fn foresee(candidate: &Candidate<'_>, steps: &[Step], dm: &mut DmSeen) {
    if candidate.is_broken
        && let Some(cured) = worker_of(dm, &candidate.instance.id).map(|worker| worker.name.clone())
    {
        set_stage(dm, &cured, WorkerStage::Free);
    }
    for step in steps {
        if let Step::Transfer { source, from, to } = step {
            set_stage(dm, from, WorkerStage::Free);
            set_stage(dm, to, WorkerStage::Bound);
            dm.sources.insert(source.clone(), Some(to.clone()));
        }
    }
}

fn set_stage(dm: &mut DmSeen, name: &MemberName, stage: WorkerStage) {
    for worker in dm.workers.iter_mut().filter(|worker| worker.name == *name) {
        worker.stage = stage;
    }
}
