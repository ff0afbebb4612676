//! What comes out of planning: a plan, nothing to do, or all that is in the way.

use std::collections::BTreeMap;

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};

use super::basis::Basis;
use super::step::Step;
use crate::digest::Digest;
use crate::ids::{ClusterName, HostId, InstanceId, MemberName, SourceId, TaskName};
use crate::instance::{Instance, Role};
use crate::inventory::{DmSeen, SubtaskUnit};
use crate::policy::Policy;
use crate::texts::TextsChange;
use crate::version::DmVersion;

/// "Not now, and here is why" is neither a plan nor an error.
#[must_use]
#[derive(Clone, Debug)]
pub enum Decision {
    /// Every selected instance runs its target.
    NothingToDo,
    /// This can be done. [`Plan::consents`] has to be agreed to first, if there is any.
    Go(Box<Plan>),
    /// This cannot be done now; all reasons at once.
    Blocked(Vec<Blocker>),
}

/// The content of a package as it crosses the network: a zstd-compressed tar on the controller's disk.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct ParcelSpec {
    /// Where it lies on the controller.
    pub path: Utf8PathBuf,
    /// SHA-256 of that file.
    pub digest: Digest,
    /// Its size.
    pub compressed_bytes: u64,
    /// Of all files, unpacked.
    pub unpacked_bytes: u64,
}

/// What the package brings for one role.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct TargetBuild {
    /// Hash of the executable.
    pub digest: Digest,
    /// Path below the unpacked package, path below the tree that is exchanged.
    pub replace: Vec<(Utf8PathBuf, Utf8PathBuf)>,
    /// Which of [`Plan::parcels`] it is in; none: in [`Plan::parcel`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parcel: Option<Digest>,
}

/// What kind of run it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Puts the builds of a package in.
    Hotfix,
    /// Puts the builds of another version in, with the files that go with it.
    Upgrade,
    /// Puts the trees back that earlier windows took out.
    Rollback,
    /// Stops and starts.
    Restart,
    /// Stops, writes unit, run script and configuration, starts.
    Reload,
}

impl Kind {
    /// The command that makes such a plan.
    pub fn command(self) -> &'static str {
        match self {
            Self::Hotfix => "patch",
            Self::Upgrade => "upgrade",
            Self::Rollback => "rollback",
            Self::Restart => "restart",
            Self::Reload => "reload",
        }
    }

    /// Whether what is in the way of an instance of this role, or goes wrong with it, is told, and no more: DM does not
    /// need its monitoring, and a run that is for DM does not end there. Who patches monitoring wants to know at once.
    pub(super) fn tolerates(self, role: Role, is_for_dm: bool) -> bool {
        !role.is_dm()
            && match self {
                Self::Hotfix => false,
                Self::Upgrade => true,
                Self::Rollback | Self::Restart | Self::Reload => is_for_dm,
            }
    }
}

/// What of a plan has a target.
pub(super) fn parcel_of<'a>(
    target: Option<&TargetBuild>,
    usual: Option<&'a ParcelSpec>,
    further: &'a [ParcelSpec],
) -> Option<&'a ParcelSpec> {
    match &target?.parcel {
        Some(digest) => further.iter().find(|parcel| parcel.digest == *digest),
        None => usual,
    }
}

/// What to do, complete: with it and the hosts alone a run can be begun and resumed.
///
/// `preparation` may overlap in any way and changes nothing that systemd can
/// start; `turns` come one after the other. Any prefix that ends between two
/// turns is a safe place to stop.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Plan {
    /// Format of this structure; rises when an old dmup could misread a new plan. 1: first.
    pub format: u32,
    /// Of which cluster.
    pub cluster: ClusterName,
    /// What kind of run it is.
    pub kind: Kind,
    /// The cluster's version of DM, from which methods follow.
    pub version: DmVersion,
    /// The version that it has when all is done; none: the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_version: Option<DmVersion>,
    /// What it was based on; checked again before the first effect.
    pub based_on: Basis,
    /// DM at that moment; none if DM plays no part (`--offline`, monitoring only).
    pub baseline: Option<DmSeen>,
    /// All instances of the cluster.
    pub instances: Vec<Instance>,
    /// What is sent to every host: a hotfix.
    pub parcel: Option<ParcelSpec>,
    /// What is sent to those hosts that need it: an upgrade has one of each component and architecture.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parcels: Vec<ParcelSpec>,
    /// What they bring per role; empty for a rollback.
    pub targets: BTreeMap<Role, TargetBuild>,
    /// What they bring for single instances instead: those of another architecture than most.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub exceptions: BTreeMap<InstanceId, TargetBuild>,
    /// Limits.
    pub policy: Policy,
    /// Staging and preparing.
    pub preparation: Vec<Step>,
    /// One per instance, in order.
    pub turns: Vec<Turn>,
    /// What has to be agreed to.
    pub consents: Vec<Consent>,
    /// What should be known.
    pub warnings: Vec<Warning>,
}

impl Plan {
    /// Format that this dmup writes.
    pub const FORMAT: u32 = 1;

    /// An instance of the cluster by id.
    pub fn instance(&self, id: &InstanceId) -> Option<&Instance> {
        self.instances.iter().find(|instance| instance.id == *id)
    }

    /// What the package brings for an instance.
    pub fn target(&self, instance: &Instance) -> Option<&TargetBuild> {
        self.exceptions.get(&instance.id).or_else(|| self.targets.get(&instance.role))
    }

    /// What has the build of an instance.
    pub fn parcel_of(&self, instance: &Instance) -> Option<&ParcelSpec> {
        parcel_of(self.target(instance), self.parcel.as_ref(), &self.parcels)
    }

    /// Whether what goes wrong with an instance is told, and no more: DM does without its monitoring, and a run that is for DM
    /// does not end there.
    pub fn tolerates(&self, id: &InstanceId) -> bool {
        let is_dm = |turn: &Turn| self.instance(&turn.instance).is_some_and(|it| it.role.is_dm());
        let role = self.instance(id).map(|it| it.role);
        role.is_some_and(|role| self.kind.tolerates(role, self.turns.iter().any(is_dm)))
    }

    /// The instances that have a turn, without those that the run can do without.
    pub fn needed(&self) -> impl Iterator<Item = &Instance> {
        let needed = self.turns.iter().filter(|turn| !self.tolerates(&turn.instance));
        needed.filter_map(|turn| self.instance(&turn.instance))
    }

    /// The version that the cluster has when all is done.
    pub fn version_after(&self) -> &DmVersion {
        self.to_version.as_ref().unwrap_or(&self.version)
    }

    /// Identity of the plan's content, short enough to print.
    pub fn fingerprint(&self) -> Digest {
        let text = serde_json::to_vec(self).expect("plans are made of text and numbers");
        Digest::of(&text)
    }
}

/// Everything that is done to one instance.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct Turn {
    /// Whose turn.
    pub instance: InstanceId,
    /// The build before.
    pub from: Digest,
    /// The build after; the same one: nothing is exchanged.
    pub to: Digest,
    /// What `patched` in `meta.yaml` becomes.
    pub patched: bool,
    /// Files that are written in its window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub texts: Option<TextsChange>,
    /// It was down or unknown to DM before: it owes no health if it has to go back.
    pub was_broken: bool,
    /// How long it is watched, if not as the policy says: the last of a batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soak_s: Option<u32>,
    /// The next turn begins once this node is healthy, while it is still watched: both are workers of one batch.
    #[serde(default, skip_serializing_if = "is_false")]
    pub overlaps: bool,
    /// In order.
    pub steps: Vec<Step>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(it: &bool) -> bool {
    !*it
}

/// An interruption that the operator has to agree to.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize, thiserror::Error)]
#[serde(tag = "consent", rename_all = "snake_case")]
pub enum Consent {
    /// One or two masters: no quorum while one restarts.
    #[error(
        "while {instance} restarts (about {about_s}s) DM can neither schedule nor fail over: {masters} master(s) have no quorum without it"
    )]
    NoScheduling {
        /// Which master.
        instance: InstanceId,
        /// How many there are.
        masters: usize,
        /// Rough span.
        about_s: u32,
    },
    /// No worker can take the source over.
    #[error(
        "source {source_id} stands still while {instance} restarts (about {about_s}s): no free worker can take it over"
    )]
    SourcePauses {
        /// Which source.
        source_id: SourceId,
        /// Which worker.
        instance: InstanceId,
        /// Rough span.
        about_s: u32,
    },
}

/// Something odd that is no obstacle.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize, thiserror::Error)]
#[serde(tag = "warning", rename_all = "snake_case")]
pub enum Warning {
    /// Logs of different hosts will not line up.
    #[error("the clock of {host} is {skew_s}s off")]
    ClockSkew {
        /// Which.
        host: HostId,
        /// Its clock minus ours.
        skew_s: i64,
    },
    /// The operator overrode it.
    #[error("overridden by {flag}: {blocker}")]
    Overridden {
        /// The flag that did it.
        flag: String,
        /// What it was.
        blocker: String,
    },
    /// Left out of this run: `--defer`.
    #[error(
        "{instance} is left out for now: task {task} on source {source_id} is in its {unit:?} phase; run the same command again later"
    )]
    Deferred {
        /// Which.
        instance: InstanceId,
        /// Which task.
        task: TaskName,
        /// On which source.
        source_id: SourceId,
        /// Which phase.
        unit: SubtaskUnit,
    },
    /// Its guard has acted once.
    #[error("the guard of {instance} has put it back at the end of an earlier run")]
    GuardHasActed {
        /// Which.
        instance: InstanceId,
    },
    /// `tiup dm patch` leaves them for ever.
    #[error("{instance} has a tree that TiUP saved: {path}")]
    TiupBackup {
        /// Which.
        instance: InstanceId,
        /// Where.
        path: Utf8PathBuf,
    },
    /// `tiup dm patch` takes it away when it has unpacked it.
    #[error("{instance} has a package in its bin: {path}; a `tiup dm patch` that did not end")]
    TiupUpload {
        /// Which.
        instance: InstanceId,
        /// Where.
        path: Utf8PathBuf,
    },
    /// TiUP keeps the build before, which is another one, and marked nothing.
    #[error(
        "{path} holds another build than the bin of {instance}, which has no mark of a hotfix: a `tiup dm patch` that did not end; a rollback goes back to what lies in bin now"
    )]
    PatchedUnmarked {
        /// Which.
        instance: InstanceId,
        /// Where the build before lies.
        path: Utf8PathBuf,
    },
    /// A command of TiUP did not end, as the cluster's folder tells.
    #[error("{what}")]
    Unfinished {
        /// Which, and how it is seen.
        what: String,
    },
    /// Monitoring that is down: DM does not need it.
    #[error("{instance} ({role}) is down ({seen}): it is started, and DM does not wait for it")]
    MonitoringDown {
        /// Which.
        instance: InstanceId,
        /// Its role.
        role: Role,
        /// What was seen.
        seen: String,
    },
    /// Monitoring that has no turn: DM does not need it.
    #[error("{instance} ({role}) stays as it is: {why}")]
    MonitoringLeft {
        /// Which.
        instance: InstanceId,
        /// Its role.
        role: Role,
        /// What is in the way.
        why: String,
    },
    /// Its systemd unit is not enabled.
    #[error("{instance} is not enabled at boot")]
    NotEnabled {
        /// Which.
        instance: InstanceId,
    },
}

/// A flag with which the operator goes on in spite of an obstacle.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Override {
    /// Everything that can be overridden, except [`Self::IncludeDown`].
    Force,
    /// Selected instances may be down.
    IncludeDown,
    /// A node may run something else than lies on its disk.
    Adopt,
    /// A build may have failed before.
    ForceBuild,
}

impl Override {
    /// As it is typed.
    pub fn flag(self) -> &'static str {
        match self {
            Self::Force => "--force",
            Self::IncludeDown => "--include-down",
            Self::Adopt => "--adopt",
            Self::ForceBuild => "--force-build",
        }
    }
}

/// When an obstacle goes away without anybody's doing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Passing {
    /// Within a minute or so.
    Soon,
    /// When DM has done what it is doing.
    InItsTime,
    /// Somebody has to do something.
    Never,
}

/// An obstacle. Nothing was touched.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize, thiserror::Error)]
#[serde(tag = "blocker", rename_all = "snake_case")]
pub enum Blocker {
    /// No agent answered there.
    #[error("host {host} cannot be reached: {why}")]
    HostUnreachable {
        /// Which.
        host: HostId,
        /// What was seen.
        why: String,
    },
    /// Its host said nothing of it.
    #[error("nothing is known about the process of {instance}")]
    ProcessUnknown {
        /// Which.
        instance: InstanceId,
    },
    /// systemd knows no such unit.
    #[error("{instance} has no systemd unit")]
    UnitMissing {
        /// Which.
        instance: InstanceId,
    },
    /// Nothing is there to be replaced.
    #[error("{instance} has no executable on disk")]
    BinaryMissing {
        /// Which.
        instance: InstanceId,
    },
    /// The package has nothing for it.
    #[error("the package has no build for {instance} ({role})")]
    NotInPackage {
        /// Which.
        instance: InstanceId,
        /// Its role.
        role: Role,
    },
    /// No record of an earlier build.
    #[error("there is no earlier build to put {instance} back to")]
    NothingToGoBackTo {
        /// Which.
        instance: InstanceId,
    },
    /// The tree is gone.
    #[error("{instance} ran {build} before, but that does not lie on its host any more")]
    WayBackGone {
        /// Which instance.
        instance: InstanceId,
        /// The build that it should go back to.
        build: Digest,
    },
    /// This build failed before.
    #[error("build {build} failed before: {why}")]
    KnownBad {
        /// Which build.
        build: Digest,
        /// What happened.
        why: String,
    },
    /// It is selected and already down.
    #[error("{instance} is down already ({seen})")]
    InstanceDown {
        /// Which.
        instance: InstanceId,
        /// What was seen.
        seen: String,
    },
    /// It is not selected and already down.
    #[error("{instance} ({role}) is down and not selected ({seen}): one more must not go down")]
    AnotherDown {
        /// Which.
        instance: InstanceId,
        /// Its role.
        role: Role,
        /// What was seen.
        seen: String,
    },
    /// It runs at the moment, and not for long, again and again.
    #[error(
        "{instance} keeps crashing: systemd has restarted it {restarts} times, and it is up for {up_s}s"
    )]
    Crashing {
        /// Which.
        instance: InstanceId,
        /// Since it was last started by somebody.
        restarts: u32,
        /// Since the last of them.
        up_s: u64,
        /// It would be restarted itself: that may be its cure.
        has_its_turn: bool,
    },
    /// `--offline`, and it runs.
    #[error("{instance} runs, although the cluster is declared stopped")]
    StillRunning {
        /// Which.
        instance: InstanceId,
    },
    /// No master answered.
    #[error("DM does not answer: {why}")]
    DmSilent {
        /// What was seen.
        why: String,
    },
    /// No leader, or several.
    #[error("the masters do not agree on one leader: {said}")]
    LeaderDisputed {
        /// Who says what.
        said: String,
    },
    /// Its etcd says so.
    #[error("etcd of {master} is not healthy")]
    EtcdUnhealthy {
        /// Which.
        master: MemberName,
    },
    /// One more master down would be one too many.
    #[error("{alive} of {total} masters are up and {needed} are needed: none can be taken down")]
    QuorumAtRisk {
        /// How many are up.
        alive: usize,
        /// How many there are.
        total: usize,
        /// How many are needed.
        needed: usize,
    },
    /// Nobody replicates it.
    #[error("source {source_id} is bound to no worker")]
    SourceUnbound {
        /// Which.
        source_id: SourceId,
    },
    /// It has errors.
    #[error("task {task} on source {source_id} has an error: {error}")]
    SubtaskFailing {
        /// Which task.
        task: TaskName,
        /// On which source.
        source_id: SourceId,
        /// DM's words.
        error: String,
    },
    /// Its relay log is not pulled.
    #[error("the relay log of source {source_id} has an error: {error}")]
    RelayFailing {
        /// Which source.
        source_id: SourceId,
        /// DM's words.
        error: String,
    },
    /// Its validator does not run.
    #[error("the validator of task {task} on source {source_id} has an error: {error}")]
    ValidatorFailing {
        /// Which task.
        task: TaskName,
        /// On which source.
        source_id: SourceId,
        /// DM's words.
        error: String,
    },
    /// A stop would cost a full export or import.
    #[error(
        "task {task} on source {source_id} is in its {unit:?} phase: a restart would begin it again"
    )]
    SubtaskInFullLoad {
        /// Which task.
        task: TaskName,
        /// On which source.
        source_id: SourceId,
        /// Which phase.
        unit: SubtaskUnit,
    },
    /// A DDL is being coordinated.
    #[error("{count} DDL(s) of task {task} on source {source_id} wait for a lock")]
    DdlWaiting {
        /// Which task.
        task: TaskName,
        /// On which source.
        source_id: SourceId,
        /// How many.
        count: usize,
    },
    /// `--max-lag`, and it is further behind.
    #[error("task {task} on source {source_id} is {lag_s}s behind, {max_s}s are allowed")]
    Lagging {
        /// Which task.
        task: TaskName,
        /// On which source.
        source_id: SourceId,
        /// `secondsBehindMaster`.
        lag_s: u64,
        /// What the operator allows.
        max_s: u32,
    },
    /// `--max-lag`, and DM does not say.
    #[error("DM does not say how far task {task} on source {source_id} is behind")]
    LagUnknown {
        /// Which task.
        task: TaskName,
        /// On which source.
        source_id: SourceId,
    },
    /// Guards, leases and logs of different hosts cannot be compared.
    #[error("the clock of {host} is {skew_s}s off")]
    ClockOff {
        /// Which.
        host: HostId,
        /// Its clock minus ours.
        skew_s: i64,
    },
    /// Somebody's window is open there.
    #[error("a guard of {instance} is armed: its host may put it back at any moment")]
    GuardArmed {
        /// Which.
        instance: InstanceId,
    },
    /// Not enough room for the package and the new trees.
    #[error("{host} has {free} bytes free at {path} and needs {needed}")]
    DiskFull {
        /// Which.
        host: HostId,
        /// Where.
        path: Utf8PathBuf,
        /// Bytes.
        free: u64,
        /// Bytes.
        needed: u64,
    },
    /// What runs is not what lies on the disk.
    #[error("{instance} runs build {running}, but {on_disk} lies on its disk")]
    Drift {
        /// Which.
        instance: InstanceId,
        /// What runs.
        running: Digest,
        /// What the next start would run.
        on_disk: Digest,
    },
}

impl Blocker {
    /// A short name that does not change, for scripts.
    pub fn code(&self) -> &'static str {
        match self {
            Self::HostUnreachable { .. } => "host-unreachable",
            Self::ProcessUnknown { .. } => "process-unknown",
            Self::UnitMissing { .. } => "unit-missing",
            Self::BinaryMissing { .. } => "binary-missing",
            Self::NotInPackage { .. } => "not-in-package",
            Self::NothingToGoBackTo { .. } => "nothing-to-go-back-to",
            Self::WayBackGone { .. } => "way-back-gone",
            Self::KnownBad { .. } => "known-bad",
            Self::InstanceDown { .. } => "instance-down",
            Self::AnotherDown { .. } => "another-down",
            Self::Crashing { .. } => "crashing",
            Self::StillRunning { .. } => "still-running",
            Self::DmSilent { .. } => "dm-silent",
            Self::LeaderDisputed { .. } => "leader-disputed",
            Self::EtcdUnhealthy { .. } => "etcd-unhealthy",
            Self::QuorumAtRisk { .. } => "quorum-at-risk",
            Self::SourceUnbound { .. } => "source-unbound",
            Self::SubtaskFailing { .. } => "subtask-failing",
            Self::RelayFailing { .. } => "relay-failing",
            Self::ValidatorFailing { .. } => "validator-failing",
            Self::SubtaskInFullLoad { .. } => "subtask-in-full-load",
            Self::DdlWaiting { .. } => "ddl-waiting",
            Self::Lagging { .. } => "lagging",
            Self::LagUnknown { .. } => "lag-unknown",
            Self::ClockOff { .. } => "clock-off",
            Self::GuardArmed { .. } => "guard-armed",
            Self::DiskFull { .. } => "disk-full",
            Self::Drift { .. } => "drift",
        }
    }

    /// The flag that overrides it, where overriding can be right.
    pub fn overridden_by(&self) -> Option<Override> {
        match self {
            Self::InstanceDown { .. } | Self::Crashing { has_its_turn: true, .. } => {
                Some(Override::IncludeDown)
            }
            Self::KnownBad { .. } => Some(Override::ForceBuild),
            Self::Drift { .. } => Some(Override::Adopt),
            Self::AnotherDown { .. }
            | Self::Crashing { has_its_turn: false, .. }
            | Self::StillRunning { .. }
            | Self::SourceUnbound { .. }
            | Self::SubtaskFailing { .. }
            | Self::RelayFailing { .. }
            | Self::ValidatorFailing { .. }
            | Self::SubtaskInFullLoad { .. }
            | Self::DdlWaiting { .. }
            | Self::Lagging { .. }
            | Self::LagUnknown { .. }
            | Self::ClockOff { .. }
            | Self::GuardArmed { .. } => Some(Override::Force),
            Self::HostUnreachable { .. }
            | Self::ProcessUnknown { .. }
            | Self::UnitMissing { .. }
            | Self::BinaryMissing { .. }
            | Self::NotInPackage { .. }
            | Self::NothingToGoBackTo { .. }
            | Self::WayBackGone { .. }
            | Self::DmSilent { .. }
            | Self::LeaderDisputed { .. }
            | Self::EtcdUnhealthy { .. }
            | Self::QuorumAtRisk { .. }
            | Self::DiskFull { .. } => None,
        }
    }

    /// Whether it may go away by itself within a minute, as after a fault: a host that boots, a leader being elected.
    pub fn may_pass(&self) -> bool {
        self.passing() == Passing::Soon
    }

    /// Whether `--wait` may wait for its end: besides what [may pass](Self::may_pass) soon, work of DM that takes its time.
    pub fn is_worth_waiting(&self) -> bool {
        self.passing() != Passing::Never
    }

    fn passing(&self) -> Passing {
        match self {
            Self::HostUnreachable { .. }
            | Self::ProcessUnknown { .. }
            | Self::InstanceDown { .. }
            | Self::AnotherDown { .. }
            | Self::Crashing { .. }
            | Self::DmSilent { .. }
            | Self::LeaderDisputed { .. }
            | Self::EtcdUnhealthy { .. }
            | Self::QuorumAtRisk { .. }
            | Self::SourceUnbound { .. }
            | Self::GuardArmed { .. } => Passing::Soon,
            Self::SubtaskInFullLoad { .. }
            | Self::DdlWaiting { .. }
            | Self::Lagging { .. }
            | Self::LagUnknown { .. } => Passing::InItsTime,
            Self::UnitMissing { .. }
            | Self::BinaryMissing { .. }
            | Self::NotInPackage { .. }
            | Self::NothingToGoBackTo { .. }
            | Self::WayBackGone { .. }
            | Self::KnownBad { .. }
            | Self::StillRunning { .. }
            | Self::SubtaskFailing { .. }
            | Self::RelayFailing { .. }
            | Self::ValidatorFailing { .. }
            | Self::ClockOff { .. }
            | Self::DiskFull { .. }
            | Self::Drift { .. } => Passing::Never,
        }
    }

    /// What can be done about it, for a command of this kind.
    pub fn hint(&self, kind: Kind) -> Option<&'static str> {
        match self {
            Self::WayBackGone { .. } => Some(
                "`patch` with the package of that build brings it again, `-N` leaves this node out",
            ),
            Self::DmSilent { .. } => Some(match kind {
                Kind::Hotfix => {
                    "start the cluster, or stop it wholly and use `patch --offline`, then start it"
                }
                Kind::Upgrade => {
                    "start the cluster, or stop it wholly and use `upgrade --offline`, then start it"
                }
                Kind::Restart | Kind::Reload | Kind::Rollback => "start the cluster",
            }),
            Self::QuorumAtRisk { .. } => Some(
                "bring the masters up that are down, or select them as well with --include-down",
            ),
            Self::HostUnreachable { .. } => Some(match kind {
                // It takes no -N: half a cluster has no version.
                Kind::Upgrade => "make it reachable",
                Kind::Hotfix | Kind::Rollback | Kind::Restart | Kind::Reload => {
                    "leave its instances out with -N, or make it reachable"
                }
            }),
            Self::SubtaskFailing { .. } | Self::RelayFailing { .. } => {
                Some("look at it with `dmctl query-status`")
            }
            Self::ValidatorFailing { .. } => Some("look at it with `dmctl validation status`"),
            Self::SubtaskInFullLoad { .. } => Some(
                "wait until it is in its Sync phase (--wait=SECONDS), or leave its worker out for now (--defer)",
            ),
            Self::Lagging { .. } | Self::LagUnknown { .. } => {
                Some("wait until it has caught up (--wait=SECONDS), or allow more with --max-lag")
            }
            Self::ClockOff { .. } => Some("set the clocks right: `timedatectl` on the host"),
            Self::GuardArmed { .. } => Some(
                "if nobody works on it, wait until its guard has acted, then look at it with `versions`",
            ),
            Self::Drift { .. } => Some(
                "a `tiup dm patch` that did not end leaves that, and a file that was replaced by hand: `dmup versions` shows which; --adopt makes what lies on the disk the build to go back to",
            ),
            Self::DdlWaiting { .. } => Some("look at it with `dmctl show-ddl-locks`"),
            Self::Crashing { .. } => Some(
                "its log says why; if this run is to cure it, select it with --include-down: it comes first",
            ),
            Self::ProcessUnknown { .. }
            | Self::UnitMissing { .. }
            | Self::BinaryMissing { .. }
            | Self::NotInPackage { .. }
            | Self::NothingToGoBackTo { .. }
            | Self::KnownBad { .. }
            | Self::InstanceDown { .. }
            | Self::AnotherDown { .. }
            | Self::StillRunning { .. }
            | Self::LeaderDisputed { .. }
            | Self::EtcdUnhealthy { .. }
            | Self::SourceUnbound { .. }
            | Self::DiskFull { .. } => None,
        }
    }
}
