//! The few things that can be done to a cluster, in its own language.
//!
//! Every effect is idempotent: done twice, it leaves the cluster as done once.
//! An effect has five answers: `Ok` (it holds), [`EffectError`] with
//! [`Certainty::Refused`] (it was not done; the text says how things are),
//! [`Certainty::NotSent`] (nobody was reached, so that it may be tried again), and
//! [`Certainty::Unknown`] (the connection broke after it was sent): the last
//! is looked at, never assumed.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use camino::Utf8PathBuf;
use dmup_core::config_check::ConfigTool;
use dmup_core::digest::Digest;
use dmup_core::ids::{HostId, InstanceId, MemberName, SourceId, TaskName};
use dmup_core::instance::Instance;
pub use dmup_core::inventory::ReportedBuild;
use dmup_core::inventory::{DmSeen, HostSeen, ProcessSeen};
use dmup_core::texts::Texts;

/// Whether an effect that failed may have happened all the same.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Certainty {
    /// It did not happen, or only as far as the text says.
    Refused,
    /// It did not happen: whoever should do it was not reached. A later try may reach it.
    NotSent,
    /// Nobody knows: look.
    Unknown,
    /// It did not happen, and nothing of ours may any more: somebody else has taken the cluster over.
    Superseded,
}

/// An effect that is not known to hold.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{attempted} on {place}: {observed}")]
pub struct EffectError {
    /// The attempt, as a verb phrase: `restart dm-worker-8262.service`.
    pub attempted: String,
    /// Host or instance.
    pub place: String,
    /// What was seen instead, in the system's own words.
    pub observed: String,
    /// What is known of it all the same.
    pub certainty: Certainty,
}

/// A hotfix build of one component, ready to be staged.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Build {
    /// Hash of its executable.
    pub digest: Digest,
    /// Path below the unpacked package, path below `bin`: every file that the package brings for the component.
    pub replace: Vec<(Utf8PathBuf, Utf8PathBuf)>,
    /// The build before the one that runs: its tree is not given up for this one.
    pub keeps: Option<Digest>,
}

/// The content of a package as it crosses the network: a zstd-compressed tar on the controller's disk.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Parcel {
    /// Where it lies on the controller.
    pub path: Utf8PathBuf,
    /// SHA-256 of that file.
    pub digest: Digest,
    /// Its size.
    pub compressed_bytes: u64,
    /// Of all files, unpacked.
    pub unpacked_bytes: u64,
}

/// A window as it was measured on the host.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Window {
    /// The exchange had been done before; nothing was stopped.
    pub already: bool,
    /// From the order to stop until the unit was down.
    pub stop: Duration,
    /// From down to exchanged.
    pub exchange: Duration,
    /// From the order to start until systemd called the unit active.
    pub start: Duration,
    /// From the order to stop until active again.
    pub total: Duration,
    /// systemd ended the old process with SIGKILL.
    pub killed: bool,
}

/// How a window treats the unit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Around {
    /// Stop before, start after.
    Restart,
    /// The unit must be down and stays down (`--offline`).
    Offline,
    /// As `Offline`, even while the unit runs.
    OfflineEvenIfRunning,
}

/// What a window is to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WindowOrder {
    /// The build before.
    pub from: Digest,
    /// The build after; the same one: nothing is exchanged.
    pub to: Digest,
    /// Whether the unit is stopped and started.
    pub around: Around,
    /// How long the stop may take.
    pub stop_within: Duration,
    /// An armed guard waits for the window's end, and acts so long after it, whatever has become of us.
    pub guard: Option<Duration>,
    /// The main process before. Without an exchange nothing else tells whether the window was: with another process, and
    /// `texts` on disk as they are to be, nothing is stopped any more.
    pub pid_before: Option<u32>,
    /// Written between stop and start.
    pub texts: Texts,
}

/// What a guard does if nobody disarms it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GuardOrder {
    /// The build to go back to.
    pub from: Digest,
    /// The build that is tried.
    pub to: Digest,
    /// The files that go with `from`.
    pub texts: Texts,
    /// When it acts, from now.
    pub after: Duration,
}

/// Which of an instance's two trees a program is taken from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Tree {
    /// The one that runs.
    Live,
    /// The one that was prepared beside it.
    Staged,
}

/// A configuration to be judged.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CheckOrder {
    /// By which program.
    pub tool: ConfigTool,
    /// Of which tree.
    pub tree: Tree,
    /// New files of the instance; those that the program does not read are left out.
    pub texts: Texts,
}

/// What came of it. That the program does not take it is no answer, but an error with its words.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Checked {
    /// It is fine.
    Fine,
    /// The tree has no such program.
    Unjudged,
}

/// What the hosts can be asked to do. Implemented with one agent per host.
#[async_trait]
pub trait Hosts: Send + Sync {
    /// Whether nobody has taken the cluster over, asked right before effects that pass the hosts by (DM's own API): hosts
    /// see to it themselves. In tests without another controller: yes.
    async fn still_ours(&self) -> Result<(), EffectError> {
        Ok(())
    }

    /// Looks at a host and the processes of the given instances on it; `hashes` reads the binaries too.
    async fn look(
        &self,
        host: &HostId,
        instances: &[Instance],
        hashes: bool,
    ) -> Result<(HostSeen, Vec<(InstanceId, ProcessSeen)>), EffectError>;

    /// Brings the parcel into the host's store, once per content. Returns bytes sent (0: it was there).
    async fn stage(&self, host: &HostId, parcel: &Parcel) -> Result<u64, EffectError>;

    /// Builds the instance's next `bin` tree beside the live one and runs its `-V`. Returns what that printed.
    async fn prepare(
        &self,
        instance: &Instance,
        parcel: &Parcel,
        build: &Build,
    ) -> Result<Option<String>, EffectError>;

    /// Lets a program of the instance's package judge a new configuration, beside the live one, which stays.
    async fn check(&self, instance: &Instance, order: &CheckOrder) -> Result<Checked, EffectError>;

    /// Stops, exchanges, writes files, starts: one remote program, no round trip within. The builds are checked first.
    async fn switch(&self, instance: &Instance, order: &WindowOrder)
    -> Result<Window, EffectError>;

    /// Arms the guard: the host goes back by itself unless disarmed in time.
    async fn arm_guard(&self, instance: &Instance, order: &GuardOrder) -> Result<(), EffectError>;

    /// Puts an armed guard off: it acts after so long from now. Refused if it has fired, or if there is none.
    async fn renew_guard(&self, instance: &Instance, after: Duration) -> Result<(), EffectError>;

    /// Disarms the guard, over a connection made after the window. Refused if it has fired.
    async fn disarm_guard(&self, instance: &Instance) -> Result<(), EffectError>;

    /// Last lines of the unit's journal and how its process ended, for evidence.
    async fn evidence(&self, instance: &Instance) -> Result<Vec<String>, EffectError>;
}

/// What DM can be asked to do, through any master that answers.
#[async_trait]
pub trait Dm: Send + Sync {
    /// Asks all masters, and no instance of `avoiding` (a node that is stopping must not be polled: dm.md 12).
    async fn look(&self, avoiding: &[InstanceId]) -> Result<DmSeen, EffectError>;

    /// `ReleaseVersion` and git hash of an instance's own `/status`.
    async fn build_of(&self, instance: &Instance) -> Result<ReportedBuild, EffectError>;

    /// The sources that the masters have a configuration of this task for; none: they do not know the task.
    async fn sources_of(&self, task: &TaskName) -> Result<BTreeSet<SourceId>, EffectError>;

    /// Makes a master give up leadership and not campaign until cancelled or restarted.
    async fn evict_leader(&self, master: &Instance) -> Result<(), EffectError>;

    /// Takes the eviction back; fine if there was none.
    async fn cancel_evict(&self, master: &Instance) -> Result<(), EffectError>;

    /// Pauses one subtask; returns when DM has taken the order, not when it stands.
    async fn pause(&self, task: &TaskName, source: &SourceId) -> Result<(), EffectError>;

    /// Resumes one subtask.
    async fn resume(&self, task: &TaskName, source: &SourceId) -> Result<(), EffectError>;

    /// Binds the source to the worker; fine if it is bound there already.
    async fn transfer(&self, source: &SourceId, worker: &MemberName) -> Result<(), EffectError>;
}

/// Time as the executor knows it; tests have their own.
#[async_trait]
pub trait Clock: Send + Sync {
    /// Wall clock, for journals and reports.
    fn now(&self) -> jiff::Timestamp;
    /// Monotonic time since some start, for time limits.
    fn elapsed(&self) -> Duration;
    /// Waits.
    async fn sleep(&self, span: Duration);
}

/// What is written down about instances outside the run: `patched` in `meta.yaml`, and our own record of builds.
pub trait Records: Send + Sync {
    /// The instance has this build now; `patched` says whether that is a hotfix.
    ///
    /// # Errors
    ///
    /// What could not be written, as a sentence.
    fn mark(&self, instance: &InstanceId, build: &Digest, patched: bool) -> Result<(), String>;

    /// Files of an instance that were kept for this run, before and after, by their digest.
    ///
    /// # Errors
    ///
    /// Why they cannot be read, as a sentence.
    fn texts(&self, digest: &Digest) -> Result<Texts, String>;
}
