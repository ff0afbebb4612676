//! What is asked of an agent, and what it answers.
//!
//! All times are Unix milliseconds by the host's clock, all sizes bytes, all
//! paths absolute. Limits on collections are checked by the agent before it begins.

use std::fmt;

use camino::Utf8PathBuf;
use dmup_core::digest::Digest;
use dmup_core::ids::{ClusterName, InstanceId, UnitName, UserName};
use dmup_core::inventory::ProcessSeen;
pub use dmup_core::inventory::{Leftover, LeftoverKind};
pub use dmup_core::preflight::{DiskSeen, PathKind, PathSeen};
use dmup_core::systemd::SystemdMode;
use serde::{Deserialize, Serialize};

use crate::lease::{LeaseOrder, LeaseSeen};

/// The agent's first word.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct Hello {
    /// [`crate::PROTOCOL`] of the agent.
    pub protocol: u32,
    /// Version of dmup that it was built as.
    pub dmup: String,
    /// `/etc/machine-id`; empty if there is none.
    pub machine_id: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// The host's own name.
    pub hostname: String,
    /// Now.
    pub clock_ms: i64,
    /// `uname -m`: `x86_64`, `aarch64`.
    pub arch: String,
    /// `uname -s` in lower case: `linux`.
    pub os: String,
    /// The number that `systemctl --version` begins with; none without systemd.
    pub systemd: Option<u32>,
    /// Whose systemd it gives orders to.
    pub systemd_mode: SystemdMode,
    /// Who the agent runs as.
    pub user: String,
    /// Its home folder.
    pub home: Utf8PathBuf,
}

/// One thing asked of a host.
///
/// Every request is idempotent: asked twice, it leaves the host as asked once.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Request {
    /// Looks at units, processes, files, ports and disks. Answer: [`Outcome::Probed`].
    Probe(Probe),
    /// Whether the agent has what it needs for windows and guards: `sudo -n` (root has it at once), or a systemd of its user
    /// that runs and goes on without a login. Answer: [`Outcome::Done`], or refused with sudo's words or what is missing.
    CheckRights,
    /// Takes a zstd-compressed tar stream into the store, by digest. Takes a stream unless it has it. Answer: [`Outcome::Staged`].
    Stage(Stage),
    /// Takes a zstd-compressed tar stream and unpacks it into a folder (deploy). Takes a stream. Answer: [`Outcome::Done`].
    Unpack(Unpack),
    /// Builds the tree that a window will exchange for `bin`. Answer: [`Outcome::Prepared`].
    Prepare(Prepare),
    /// Lets a program of the package judge a configuration that is not live yet. Answer: [`Outcome::Checked`], or refused with
    /// that program's words.
    Check(Check),
    /// The window: stop, exchange, start, in one go. Answer: [`Outcome::Switched`].
    Switch(Switch),
    /// Acts on units, one after the other. Answer: [`Outcome::Units`].
    Unit(UnitOrder),
    /// Writes small files, each atomically. Answer: [`Outcome::Done`].
    Put {
        /// In order; at most 256.
        files: Vec<PutFile>,
    },
    /// Reads a small file. Answer: [`Outcome::Got`].
    Get {
        /// Which.
        path: Utf8PathBuf,
        /// Larger ones are refused; at most 512 KiB.
        max_bytes: u32,
    },
    /// Makes folders that are missing, and sets owner and mode. Answer: [`Outcome::Done`].
    MakeDirs {
        /// In order; at most 256.
        dirs: Vec<MakeDir>,
    },
    /// Removes files and whole folders; missing ones are fine. `/`, and anything less than two levels deep, is refused. Answer: [`Outcome::Done`].
    Remove {
        /// In order; at most 256.
        paths: Vec<Utf8PathBuf>,
    },
    /// Makes a user with a login key and sudo rights, as TiUP's deploy does. Answer: [`Outcome::Done`].
    EnsureUser(EnsureUser),
    /// Takes a login key away from a user. Answer: [`Outcome::Done`].
    ForgetKey(ForgetKey),
    /// Forgets a cluster of which nothing is left on the host. Answer: [`Outcome::Done`].
    Leave(Leave),
    /// Gives the operator's own command to a shell. Answer: [`Outcome::Ran`], however the command ends.
    Shell(Shell),
    /// Last lines of a unit's journal, and how its last process ended. Answer: [`Outcome::Journal`].
    JournalTail {
        /// Whose.
        unit: UnitName,
        /// At most 1000.
        lines: u32,
    },
    /// Arms the guard of a window: unless confirmed in time, the host undoes the exchange by itself. Answer: [`Outcome::Done`].
    ArmGuard(Guard),
    /// Puts an armed guard off. Answer: [`Outcome::Done`], refused if it has fired already or none is armed.
    RenewGuard {
        /// Whose.
        instance: InstanceId,
        /// When to act, from now.
        after_s: u32,
    },
    /// The window is good: the guard must never fire any more. Answer: [`Outcome::Done`], refused if it has fired already.
    DisarmGuard {
        /// Whose.
        instance: InstanceId,
    },
    /// Looks at, takes, renews or ends the lease of a cluster on this host. Answer: [`Outcome::Lease`].
    Lease(LeaseOrder),
}

/// What to look at.
#[derive(Clone, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
pub struct Probe {
    /// At most 256.
    pub instances: Vec<ProbeInstance>,
    /// Hash running and on-disk binaries too: seconds for real ones, none of which `display` needs.
    pub hashes: bool,
    /// Folders whose file systems are looked at (the nearest existing parent counts); at most 256.
    pub disks: Vec<Utf8PathBuf>,
    /// TCP ports to look up among the listening ones; at most 256.
    pub ports: Vec<u16>,
    /// Paths to look up; at most 256.
    pub paths: Vec<Utf8PathBuf>,
    /// Users to look up; at most 16.
    pub users: Vec<UserName>,
}

/// One instance to look at.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct ProbeInstance {
    /// Whose.
    pub id: InstanceId,
    /// Its service.
    pub unit: UnitName,
    /// What the next start would run.
    pub binary: Utf8PathBuf,
    /// The folder that windows exchange; beside it leftovers of them are looked for.
    pub live: Utf8PathBuf,
}

/// Content for the store of a host.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct Stage {
    /// SHA-256 of the compressed stream; also its name in the store.
    pub digest: Digest,
    /// Of the compressed stream.
    pub compressed_bytes: u64,
    /// Of all files, unpacked: checked against free space first, and a limit while unpacking.
    pub unpacked_bytes: u64,
    /// The store: one folder per content below it.
    pub store: Utf8PathBuf,
}

/// Content for a folder.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct Unpack {
    /// SHA-256 of the compressed stream.
    pub digest: Digest,
    /// Of the compressed stream.
    pub compressed_bytes: u64,
    /// Of all files, unpacked.
    pub unpacked_bytes: u64,
    /// Made if it is missing; existing files of the same names are replaced.
    pub into: Utf8PathBuf,
    /// Owner and group of all of it; the agent's own user when none.
    pub owner: Option<UserName>,
}

/// How to build the tree for a window.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct Prepare {
    /// Whose.
    pub instance: InstanceId,
    /// `<deploy_dir>/bin`, or an exporter's folder in it: copied first, so that other files of it are carried over.
    pub live: Utf8PathBuf,
    /// The new tree, beside `live` on the same file system; an older one there is replaced.
    pub staged: Utf8PathBuf,
    /// The unpacked package in the store.
    pub from: Utf8PathBuf,
    /// Which of its files go where: path below `from`, path below `staged`; at most 4096.
    pub replace: Vec<(Utf8PathBuf, Utf8PathBuf)>,
    /// The executable below `staged`.
    pub binary: Utf8PathBuf,
    /// What its hash must be.
    pub digest: Digest,
    /// Arguments that make it print its version and end, e.g. `-V`; none: it is not run.
    pub version_arguments: Option<Vec<String>>,
    /// A build whose tree stays, if it lies where the new one goes.
    pub keeps: Option<Digest>,
}

/// A configuration to be judged, beside the one that is live.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct Check {
    /// Whose.
    pub instance: InstanceId,
    /// The folder of the live configuration. What is in it and not among `files` counts as well; nothing in it changes.
    pub folder: Utf8PathBuf,
    /// New files, directly in `folder`; at most 256.
    pub files: Vec<PutFile>,
    /// The program that judges; where there is none nobody does.
    pub program: Utf8PathBuf,
    /// What it is started with, in a folder that has the new files, beside `folder`; at most 16.
    pub arguments: Vec<String>,
}

/// A window.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct Switch {
    /// Whose.
    pub instance: InstanceId,
    /// Its service.
    pub unit: UnitName,
    /// `<deploy_dir>/bin`.
    pub live: Utf8PathBuf,
    /// The tree to exchange it for; afterwards it holds the old build.
    pub staged: Utf8PathBuf,
    /// The executable below either.
    pub binary: Utf8PathBuf,
    /// Hash of the live executable before; anything else is refused before the stop, unless it is already `to`.
    pub from: Digest,
    /// Hash of the staged executable before; the same as `from`: nothing is exchanged, the unit is only stopped and started.
    pub to: Digest,
    /// The main process before. Without an exchange it tells whether this was done already: another one runs, and `texts` lie there.
    pub pid_before: Option<u32>,
    /// Written between stop and start, after the exchange; at most 64. Those without an owner belong to the agent's user.
    pub texts: Vec<PutFile>,
    /// Stop and start the unit around it; false for `--offline`, which refuses while the unit runs unless `even_if_running`.
    pub restart: bool,
    /// Only without `restart`.
    pub even_if_running: bool,
    /// How long the stop may take; systemd's own limit ends it in the end.
    pub stop_within_ms: u64,
    /// After the window an armed guard acts so soon, 1 to 86400 s; while it is open it is put off by the stop's
    /// time more. The host sees to both, since whoever ordered the window may be gone. None: it keeps its time.
    pub guard_s: Option<u32>,
}

/// What a unit can be told.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UnitAction {
    /// `systemctl start`.
    Start,
    /// `systemctl stop`.
    Stop,
    /// `systemctl restart`.
    Restart,
    /// `systemctl enable`.
    Enable,
    /// `systemctl disable`.
    Disable,
}

/// An order to units.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct UnitOrder {
    /// In order; at most 64. For `Enable`, `Disable` and after new unit files systemd is reloaded first.
    pub units: Vec<UnitName>,
    /// What to do.
    pub action: UnitAction,
    /// For each of them.
    pub within_ms: u64,
}

/// A small file. Its content may be a key or have a password in it, and is not part of its debug text.
#[derive(Clone, Eq, PartialEq, Deserialize, Serialize)]
pub struct PutFile {
    /// Where; its folder must exist.
    pub path: Utf8PathBuf,
    /// Permission bits, e.g. `0o644`.
    pub mode: u32,
    /// Written by root, and root's unless `owner` says otherwise.
    pub root: bool,
    /// Owner and group; the writer's own when none.
    pub owner: Option<UserName>,
    /// At most 512 KiB.
    pub content: String,
}

impl fmt::Debug for PutFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PutFile")
            .field("path", &self.path)
            .field("mode", &self.mode)
            .field("root", &self.root)
            .field("owner", &self.owner)
            .finish_non_exhaustive()
    }
}

/// A folder.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct MakeDir {
    /// Where; parents are made as well (owned by `owner` only from the first one that was missing).
    pub path: Utf8PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: Option<UserName>,
}

/// A user to be there.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct EnsureUser {
    /// Login name.
    pub user: UserName,
    /// Its group; made if it is missing.
    pub group: UserName,
    /// One line of `authorized_keys`, added if it is not there.
    pub public_key: String,
    /// Write `/etc/sudoers.d/<user>` with NOPASSWD (checked with visudo first).
    pub sudo: bool,
    /// Let its systemd run without a login (`loginctl enable-linger`).
    pub linger: bool,
}

/// A login key that must not be let in any more.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct ForgetKey {
    /// Login name.
    pub user: UserName,
    /// A line of `authorized_keys`: every line with that key goes, whatever its comment or options.
    pub public_key: String,
}

/// A cluster that has left a host.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct Leave {
    /// Whose lease record goes. Conversations of it have no lease afterwards.
    pub cluster: ClusterName,
    /// Everything of ours in the home of the agent's user. It goes as well, unless another cluster has a lease record there.
    pub folder: Utf8PathBuf,
}

/// A command of the operator's own (`dmup exec`): the one text from outside that a shell is given.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct Shell {
    /// The argument of `-c`, as it was typed; at most 64 KiB.
    pub command: String,
    /// By root.
    pub root: bool,
    /// It is killed with all its children then.
    pub within_ms: u64,
}

/// What a guard does when nobody confirms.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct Guard {
    /// Whose.
    pub instance: InstanceId,
    /// Its service.
    pub unit: UnitName,
    /// `<deploy_dir>/bin`.
    pub live: Utf8PathBuf,
    /// The other tree.
    pub staged: Utf8PathBuf,
    /// The executable below either.
    pub binary: Utf8PathBuf,
    /// The build that must run in the end if nobody confirms.
    pub from: Digest,
    /// The build that is being tried.
    pub to: Digest,
    /// The files that go with `from`; at most 64. Those without an owner belong to the agent's user.
    #[serde(default)]
    pub texts: Vec<PutFile>,
    /// When to act, from now.
    pub after_s: u32,
}

/// Exactly one per request.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// It is so now.
    Held {
        /// What came of it.
        outcome: Outcome,
    },
    /// It was not done, or not wholly; `state` says how things are now.
    Refused(Refusal),
}

/// Why something was not done.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize, thiserror::Error)]
#[error("{attempted}: {observed}")]
pub struct Refusal {
    /// What was tried, as a verb phrase: `start dm-worker-8262.service`.
    pub attempted: String,
    /// What was seen instead, in the system's own words, at most 4 KiB.
    pub observed: String,
    /// Which kind of reason it is.
    pub kind: RefusalKind,
    /// How things are now, if the attempt changed anything.
    pub state: Option<String>,
}

/// Kinds of reasons that callers tell apart.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// The request itself makes no sense here (limits, paths, unknown verb).
    BadRequest,
    /// Not what the caller based it on: another hash, a running unit.
    Precondition,
    /// sudo or file permissions.
    Permission,
    /// Not enough room.
    NoSpace,
    /// The content is not what it should be: hash, archive, `-V`, a configuration.
    Content,
    /// It took longer than allowed.
    TooSlow,
    /// Somebody else has taken the lease since: this controller must not do anything any more.
    Superseded,
    /// Anything else the system said.
    System,
}

/// What came of a request.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// Nothing more to say.
    Done,
    /// Of [`Request::Probe`].
    Probed(Probed),
    /// Of [`Request::Stage`].
    Staged {
        /// The unpacked content: `<store>/<digest>`.
        folder: Utf8PathBuf,
        /// It was there already.
        already: bool,
        /// Regular files, relative to `folder`, sorted.
        files: Vec<StagedFile>,
    },
    /// Of [`Request::Prepare`].
    Prepared {
        /// What the executable printed, at most 4 KiB; none if it was not run.
        version: Option<String>,
    },
    /// Of [`Request::Check`].
    Checked {
        /// A program was there and takes the configuration; else nobody has judged it.
        judged: bool,
    },
    /// Of [`Request::Switch`].
    Switched(Switched),
    /// Of [`Request::Unit`], in the order asked.
    Units {
        /// One per unit.
        units: Vec<UnitDone>,
    },
    /// Of [`Request::Get`]; none if there is no such file.
    Got {
        /// As UTF-8.
        content: Option<String>,
    },
    /// Of [`Request::Shell`].
    Ran(Ran),
    /// Of [`Request::JournalTail`].
    Journal {
        /// Oldest first, each at most 2 KiB; empty if the host keeps no journal we may read.
        lines: Vec<String>,
        /// How the unit's last main process ended, systemd's words: `exited, status=1`; none if it runs or never ran.
        ended: Option<String>,
    },
    /// Of [`Request::Lease`].
    Lease(LeaseSeen),
}

/// How a command ended.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct Ran {
    /// Its exit status; none if a signal ended it.
    pub status: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Beginning of its standard output, at most 256 KiB.
    pub stdout: String,
    /// Beginning of its standard error, at most 256 KiB.
    pub stderr: String,
    /// Bytes of both that are left out.
    pub dropped_bytes: u64,
}

/// What a probe saw.
#[derive(Clone, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
pub struct Probed {
    /// When it began.
    pub clock_ms: i64,
    /// In the order asked.
    pub processes: Vec<(InstanceId, ProcessSeen)>,
    /// In the order asked.
    pub disks: Vec<DiskSeen>,
    /// Those of the ports asked for that somebody listens on.
    pub listening: Vec<u16>,
    /// Those of the paths asked for that exist.
    pub existing: Vec<PathSeen>,
    /// Those of the users asked for that exist.
    pub users: Vec<UserName>,
    /// Guards and trees that earlier windows left.
    pub leftovers: Vec<Leftover>,
}

/// A file of a staged package.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct StagedFile {
    /// Relative to the folder.
    pub path: Utf8PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Its hash.
    pub digest: Digest,
}

/// How a window went.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct Switched {
    /// It had been done before: nothing was touched.
    pub already: bool,
    /// From the order to stop until the unit was down.
    pub stop_ms: u64,
    /// From down to exchanged, in microseconds.
    pub exchange_us: u64,
    /// From the order to start until systemd called the unit active.
    pub start_ms: u64,
    /// From the order to stop until active again.
    pub total_ms: u64,
    /// systemd ended the old process with SIGKILL.
    pub killed: bool,
    /// Main process before.
    pub old_pid: Option<u32>,
    /// Main process after; none without restart.
    pub new_pid: Option<u32>,
}

/// What became of a unit.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct UnitDone {
    /// Which.
    pub unit: UnitName,
    /// systemd's refusal, if it refused, e.g. a job that failed or took too long.
    pub failed: Option<String>,
    /// How long the order took.
    pub took_ms: u64,
}
