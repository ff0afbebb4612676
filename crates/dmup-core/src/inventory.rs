//! What the hosts and DM reported, at one moment: "is".
//!
//! Collected over a second or so from several machines, so it is never atomic:
//! a plan must hold even if one fact has gone stale, and the executor looks
//! again where it matters (the leader before its turn, the file before its exchange).

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::ids::{HostId, InstanceId, MemberName, SourceId, TaskName};

/// One look at the whole cluster.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Inventory {
    /// By the controller's clock, when the look began.
    pub at: Timestamp,
    /// One answer per host of the cluster; `Err` says why there is none.
    pub hosts: BTreeMap<HostId, Result<HostSeen, String>>,
    /// Per instance, what its host says of its process. None for those on hosts that did not answer.
    pub processes: BTreeMap<InstanceId, ProcessSeen>,
    /// What DM says of itself; `Err` if no master answered.
    pub dm: Result<DmSeen, String>,
}

/// A host, as its agent describes it.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct HostSeen {
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// Changes with every boot.
    pub boot_id: String,
    /// Its clock minus the controller's, in milliseconds, within half a round trip.
    pub clock_skew_ms: i64,
    /// `x86_64` or `aarch64`, as `uname -m` prints it.
    pub arch: String,
    /// Free bytes on the file system of each deploy folder.
    pub free_bytes: BTreeMap<camino::Utf8PathBuf, u64>,
    /// Guards and trees that earlier windows left there.
    #[serde(default)]
    pub leftovers: Vec<Leftover>,
}

/// Something that an earlier window left on a host.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct Leftover {
    /// Whose.
    pub instance: InstanceId,
    /// What it is.
    pub kind: LeftoverKind,
    /// Where it lies.
    pub path: camino::Utf8PathBuf,
    /// Hash of the executable in a tree; none if there is none, or when it was not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<Digest>,
}

/// Kinds of leftovers.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftoverKind {
    /// A guard that waits.
    ArmedGuard,
    /// A guard that has acted: the old build was put back.
    FiredGuard,
    /// A tree that TiUP saved (`bin.old.*`).
    TiupBackup,
    /// A package that TiUP sent and did not take away again: it lies in `bin`.
    TiupUpload,
    /// A tree of ours beside `bin`: one that ran before, or that is ready to.
    Tree,
}

/// A process and its unit, as the host sees them.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct ProcessSeen {
    /// `ActiveState` of the unit.
    pub active: UnitActive,
    /// `SubState`, for people: `running`, `auto-restart`, `dead`.
    pub sub_state: String,
    /// Whether it starts at boot.
    pub enabled: bool,
    /// Main process, if there is one.
    pub pid: Option<u32>,
    /// Restarts that systemd made by itself since the unit was last started by somebody.
    pub restarts: u32,
    /// When the unit became active, in Unix milliseconds.
    pub active_since_ms: Option<i64>,
    /// Hash of `/proc/PID/exe`; none without a process, or when it was not asked for.
    pub running: Option<Digest>,
    /// Hash of the file on disk that the next start would run; none if it is missing or was not asked for.
    pub on_disk: Option<Digest>,
}

/// `ActiveState` of a unit (systemd's words), and "there is no such unit".
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UnitActive {
    /// Runs.
    Active,
    /// Is on its way up (also: waits for its next automatic restart).
    Activating,
    /// Is on its way down.
    Deactivating,
    /// Is stopped.
    Inactive,
    /// Has failed and stays down.
    Failed,
    /// The unit file does not exist.
    Missing,
}

/// What an instance says of its own build.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ReportedBuild {
    /// `ReleaseVersion`, e.g. `v8.1.0`; for monitoring, whatever it says, or nothing.
    pub release: String,
    /// Git hash.
    pub commit: String,
}

/// What DM's masters say.
#[derive(Clone, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
pub struct DmSeen {
    /// All members of the master group, also those that do not answer.
    pub masters: Vec<MasterSeen>,
    /// All registered workers.
    pub workers: Vec<WorkerSeen>,
    /// Every source and the worker that it is bound to.
    pub sources: BTreeMap<SourceId, Option<MemberName>>,
    /// One per task and source.
    pub subtasks: Vec<SubtaskSeen>,
    /// Relay logs, by source, as the worker tells that the source is bound to. Sources without one are missing.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub relays: BTreeMap<SourceId, SideSeen>,
}

/// What runs beside a subtask: a relay log that is pulled, a validator.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct SideSeen {
    /// Where it stands.
    pub stage: SubtaskStage,
    /// DM's own words, each on its own; empty when all is well.
    pub errors: Vec<String>,
}

/// One dm-master.
///
/// Whether somebody told it not to campaign is not among this: DM keeps that in the process's memory and has no way to
/// ask for it. What a run evicted is in its journal.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct MasterSeen {
    /// DM's name of it.
    pub name: MemberName,
    /// Which instance of the topology it is; none if the topology knows none of that name.
    pub instance: Option<InstanceId>,
    /// What the leader says of it.
    pub alive: bool,
    /// Whether this one is the leader, by its own answer or the others'.
    pub leader: bool,
    /// Whom this master itself calls the leader; none if it did not answer or knows none.
    pub calls_leader: Option<MemberName>,
    /// Its etcd answered `/health` with true; none if it was not asked or did not answer.
    pub etcd_healthy: Option<bool>,
    /// `ReleaseVersion` of its `/status`, e.g. `v8.1.0`; none if it did not answer.
    pub release: Option<String>,
}

/// One dm-worker.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct WorkerSeen {
    /// DM's name of it.
    pub name: MemberName,
    /// Which instance of the topology it is.
    pub instance: Option<InstanceId>,
    /// As the masters see it.
    pub stage: WorkerStage,
    /// The source bound to it.
    pub source: Option<SourceId>,
}

/// A worker's stage (DM: dm/master/scheduler/worker.go).
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerStage {
    /// Its lease is gone.
    Offline,
    /// Has no source.
    Free,
    /// Replicates a source.
    Bound,
    /// Only pulls relay log.
    Relay,
}

/// One subtask: one task on one source.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct SubtaskSeen {
    /// Which task.
    pub task: TaskName,
    /// On which source.
    pub source: SourceId,
    /// Who runs it now; none if nobody answered for it.
    pub worker: Option<MemberName>,
    /// Where it stands.
    pub stage: SubtaskStage,
    /// Which part of its life it is in.
    pub unit: SubtaskUnit,
    /// DM's own words, each on its own; empty when all is well.
    pub errors: Vec<String>,
    /// The syncer's `synced`: nothing of the source is left to apply.
    pub synced: bool,
    /// `syncerBinlog`, as text: compared for equality only.
    pub position: Option<String>,
    /// `masterBinlog`, as text: compared for equality only.
    pub source_position: Option<String>,
    /// `secondsBehindMaster`; none when DM does not know.
    pub lag_s: Option<u64>,
    /// DDL locks that wait for it.
    pub blocked_ddls: usize,
    /// Its continuous validator, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validator: Option<SideSeen>,
}

/// Stage of a subtask (DM: dm/pb Stage).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Deserialize, Serialize)]
pub enum SubtaskStage {
    /// Not begun.
    New,
    /// Replicates.
    Running,
    /// Stopped by a person or by an error; goes on when resumed.
    Paused,
    /// Taken off by DM.
    Stopped,
    /// Done for good.
    Finished,
    /// On its way to `Paused`.
    Pausing,
    /// On its way to `Running`.
    Resuming,
    /// On its way to `Stopped`.
    Stopping,
    /// A word that this dmup does not know.
    Unknown,
}

/// Unit of a subtask (DM: dm/pb UnitType).
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub enum SubtaskUnit {
    /// Checks before the start.
    Check,
    /// Exports the full data.
    Dump,
    /// Imports the full data.
    Load,
    /// Follows the binlog.
    Sync,
    /// Nothing yet, or a word that this dmup does not know.
    Unknown,
}
