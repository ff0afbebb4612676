//! The vocabulary of plans.

use serde::{Deserialize, Serialize};

use super::decision::Kind;
use crate::config_check::ConfigTool;
use crate::digest::Digest;
use crate::ids::{HostId, InstanceId, MemberName, SourceId, TaskName};
use crate::instance::{Instance, Role};
use crate::texts::TextsChange;

/// How a window treats the unit.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Around {
    /// Stop before, start after.
    Restart,
    /// The unit must be down and stays down (`--offline`).
    Offline,
    /// As `Offline`, even while the unit runs.
    OfflineEvenIfRunning,
}

/// One thing done to one host or to DM, or waited for.
///
/// Every step is idempotent: applied twice, it leaves the cluster as applied
/// once. Matched without a `_` arm in `describe`, in the checker and in the
/// executor, so a new step does not compile until all know it.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// Brings the package into the host's store.
    Stage {
        /// Where to.
        host: HostId,
        /// The component whose package it is; none: the one package of the run.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        of: Option<Role>,
    },
    /// Builds the instance's next tree beside the live one and runs its `-V`.
    Prepare {
        /// Whose.
        instance: InstanceId,
        /// The build in that tree.
        to: Digest,
        /// The build before the one that runs, if there is one: its tree stays.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        keeps: Option<Digest>,
    },
    /// Lets a program of the instance's package judge a new configuration, beside the live one.
    Check {
        /// Whose.
        instance: InstanceId,
        /// Which program.
        tool: ConfigTool,
        /// The files, by their digest.
        texts: Digest,
    },
    /// Makes the leader give up leadership.
    EvictLeader {
        /// The leader.
        instance: InstanceId,
    },
    /// Waits until all masters agree on another leader.
    AwaitNewLeader {
        /// The one that must not be it any more.
        former: InstanceId,
        /// At most so long.
        within_s: u32,
    },
    /// Waits for a moment without a large transaction under way; goes on without one.
    AwaitQuiet {
        /// Whose sources are meant.
        worker: InstanceId,
        /// At most so long.
        within_s: u32,
    },
    /// Pauses one subtask. Left alone if it does not run.
    PauseSubtask {
        /// Which task.
        task: TaskName,
        /// On which source.
        source: SourceId,
    },
    /// Waits until a subtask that we paused stands.
    AwaitPaused {
        /// Which task.
        task: TaskName,
        /// On which source.
        source: SourceId,
        /// At most so long.
        within_s: u32,
    },
    /// Binds a source to another worker.
    Transfer {
        /// Which source.
        source: SourceId,
        /// Who has it.
        from: MemberName,
        /// Who gets it.
        to: MemberName,
    },
    /// Waits until a source is bound to a worker that is up.
    AwaitBound {
        /// Which source.
        source: SourceId,
        /// At most so long.
        within_s: u32,
    },
    /// Resumes a subtask, if it was us who paused it.
    ResumeSubtask {
        /// Which task.
        task: TaskName,
        /// On which source.
        source: SourceId,
    },
    /// Arms the guard: the host goes back by itself if it hears nothing more.
    ArmGuard {
        /// Whose.
        instance: InstanceId,
        /// What it goes back to.
        from: Digest,
        /// What is tried.
        to: Digest,
        /// When it acts.
        after_s: u32,
    },
    /// Stops, exchanges, starts.
    Window {
        /// Whose.
        instance: InstanceId,
        /// The build before.
        from: Digest,
        /// The build after; the same one: nothing is exchanged.
        to: Digest,
        /// Whether it is stopped and started.
        around: Around,
        /// Files that are written between stop and start, by their digest.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        texts: Option<Digest>,
    },
    /// Waits until the instance and the cluster are as healthy as before.
    AwaitHealthy {
        /// Whose turn it is.
        instance: InstanceId,
        /// What its process must be.
        build: Digest,
        /// At most so long without progress.
        within_s: u32,
    },
    /// Watches that it stays so.
    Soak {
        /// Whose turn it is.
        instance: InstanceId,
        /// What its process must be.
        build: Digest,
        /// So long.
        soak_s: u32,
    },
    /// Disarms the guard: the host keeps what it has.
    DisarmGuard {
        /// Whose.
        instance: InstanceId,
    },
    /// Lets a former leader campaign again.
    CancelEvict {
        /// Which master.
        instance: InstanceId,
    },
    /// Writes down which build the instance has.
    MarkPatched {
        /// Whose.
        instance: InstanceId,
        /// What it runs.
        build: Digest,
        /// Whether that is a hotfix: `patched` in `meta.yaml`.
        patched: bool,
    },
}

/// The step in which a turn's new configuration is judged, if it has one that somebody can judge. What a way back brings was
/// live before: nothing holds it up.
pub(super) fn config_check(
    kind: Kind,
    instance: &Instance,
    texts: Option<&TextsChange>,
) -> Option<Step> {
    match kind {
        Kind::Upgrade | Kind::Reload => {}
        Kind::Hotfix | Kind::Rollback | Kind::Restart => return None,
    }
    let texts = texts?;
    let tool = ConfigTool::for_files(instance, &texts.paths)?;
    Some(Step::Check { instance: instance.id.clone(), tool, texts: texts.after.clone() })
}

impl Step {
    /// One line in the operator's language.
    pub fn describe(&self) -> String {
        match self {
            Self::Stage { host, of: None } => format!("send the package to {host}"),
            Self::Stage { host, of: Some(role) } => format!("send the package of {role} to {host}"),
            Self::Prepare { instance, to, .. } => {
                format!("prepare build {to} beside the live one of {instance} and run its -V")
            }
            Self::Check { instance, tool, .. } => {
                format!("check the new configuration of {instance} with {tool}")
            }
            Self::EvictLeader { instance } => format!("evict the leader {instance}"),
            Self::AwaitNewLeader { former, within_s } => {
                format!(
                    "wait until the masters agree on a leader other than {former} (at most {within_s}s)"
                )
            }
            Self::AwaitQuiet { worker, within_s } => {
                format!("wait for a quiet moment of {worker} (at most {within_s}s)")
            }
            Self::PauseSubtask { task, source } => format!("pause task {task} on source {source}"),
            Self::AwaitPaused { task, source, within_s } => {
                format!("wait until task {task} on source {source} stands (at most {within_s}s)")
            }
            Self::Transfer { source, from, to } => {
                format!("move source {source} from {from} to {to}")
            }
            Self::AwaitBound { source, within_s } => {
                format!("wait until source {source} is bound (at most {within_s}s)")
            }
            Self::ResumeSubtask { task, source } => {
                format!("resume task {task} on source {source}")
            }
            Self::ArmGuard { instance, from, after_s, .. } => {
                format!("arm the guard of {instance}: back to {from} after {after_s}s without us")
            }
            Self::Window { instance, from, to, around: Around::Restart, texts } => {
                let exchange =
                    if from == to { String::new() } else { format!(", exchange {from} for {to}") };
                let write = match texts {
                    Some(texts) => format!(", write its files as of {texts}"),
                    None => String::new(),
                };
                format!("stop {instance}{exchange}{write}, start")
            }
            Self::Window {
                instance,
                from,
                to,
                around: Around::Offline | Around::OfflineEvenIfRunning,
                texts,
            } => {
                let exchange =
                    (from != to).then(|| format!("exchange {from} for {to} of {instance}"));
                let write = texts
                    .as_ref()
                    .map(|texts| format!("write the files of {instance} as of {texts}"));
                let both: Vec<String> = exchange.into_iter().chain(write).collect();
                format!("{}; nothing is started", both.join(", "))
            }
            Self::AwaitHealthy { instance, build, within_s } => {
                format!(
                    "wait until {instance} is healthy on {build} (at most {within_s}s without progress)"
                )
            }
            Self::Soak { instance, soak_s, .. } => format!("watch {instance} for {soak_s}s"),
            Self::DisarmGuard { instance } => format!("disarm the guard of {instance}"),
            Self::CancelEvict { instance } => format!("let {instance} campaign again"),
            Self::MarkPatched { instance, build, patched: true } => {
                format!("record {instance} as patched with {build}")
            }
            Self::MarkPatched { instance, build, patched: false } => {
                format!("record {instance} as unpatched with {build}")
            }
        }
    }

    /// The instance that it acts on, if it acts on one.
    pub fn instance(&self) -> Option<&InstanceId> {
        match self {
            Self::Prepare { instance, .. }
            | Self::Check { instance, .. }
            | Self::EvictLeader { instance }
            | Self::AwaitNewLeader { former: instance, .. }
            | Self::AwaitQuiet { worker: instance, .. }
            | Self::ArmGuard { instance, .. }
            | Self::Window { instance, .. }
            | Self::AwaitHealthy { instance, .. }
            | Self::Soak { instance, .. }
            | Self::DisarmGuard { instance }
            | Self::CancelEvict { instance }
            | Self::MarkPatched { instance, .. } => Some(instance),
            Self::Stage { .. }
            | Self::PauseSubtask { .. }
            | Self::AwaitPaused { .. }
            | Self::Transfer { .. }
            | Self::AwaitBound { .. }
            | Self::ResumeSubtask { .. } => None,
        }
    }

    /// Whether it comes before all turns, and changes nothing that systemd can start.
    pub fn is_preparation(&self) -> bool {
        matches!(self, Self::Stage { .. } | Self::Prepare { .. } | Self::Check { .. })
    }

    /// Whether it only waits: nothing has to be written down before it.
    pub fn is_wait(&self) -> bool {
        match self {
            Self::AwaitNewLeader { .. }
            | Self::AwaitQuiet { .. }
            | Self::AwaitPaused { .. }
            | Self::AwaitBound { .. }
            | Self::AwaitHealthy { .. }
            | Self::Soak { .. } => true,
            Self::Stage { .. }
            | Self::Prepare { .. }
            | Self::Check { .. }
            | Self::EvictLeader { .. }
            | Self::PauseSubtask { .. }
            | Self::Transfer { .. }
            | Self::ResumeSubtask { .. }
            | Self::ArmGuard { .. }
            | Self::Window { .. }
            | Self::DisarmGuard { .. }
            | Self::CancelEvict { .. }
            | Self::MarkPatched { .. } => false,
        }
    }
}
