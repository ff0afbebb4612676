//! All hosts of a cluster: one agent each, started when it is first needed.
//!
//! A broken session is replaced at the next request; a request that was under way when
//! it broke is [`Certainty::Unknown`] and is never repeated here.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::ids::{HostId, UnitName};
use dmup_core::instance::Instance;
use dmup_core::systemd::SystemdMode;
use dmup_exec::ports::{Certainty, EffectError, Parcel};
use dmup_wire::message::{
    EnsureUser, ForgetKey, Hello, MakeDir, Outcome, Probe, Probed, PutFile, Ran, RefusalKind,
    Request, Shell, UnitAction, UnitDone, UnitOrder, Unpack,
};
use tokio::sync::{Mutex, OnceCell, Semaphore};

use crate::agent_session::{AgentSession, SessionError};
use crate::bootstrap::{Agents, start_agent};
use crate::lease::Claim;
use crate::login::Login;
use crate::ssh::{Connection, HostKeys, Jump, Reach, ReachError, ReachLimits, Target, dial};

/// TiUP's `--concurrency`.
pub const DEFAULT_CONCURRENCY: usize = 5;

/// How all hosts are reached.
#[derive(Clone, Debug)]
pub struct FleetSettings {
    /// By which kind of transport.
    pub reach: Reach,
    /// The host in between, unless the hosts are this machine.
    pub jump: Option<Arc<Jump>>,
    /// Who logs in, unless a host has its own.
    pub login: Login,
    /// Which host keys are trusted.
    pub host_keys: HostKeys,
    /// Time limits of reaching a host.
    pub limits: ReachLimits,
    /// Hosts connected to, or sent to, at once.
    pub concurrency: usize,
    /// The program that is sent as agent: dmup's own file.
    pub agent: Utf8PathBuf,
    /// Whose systemd runs the services.
    pub systemd: SystemdMode,
}

/// A host and how to reach it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostAddress {
    /// As the topology has it.
    pub id: HostId,
    /// Where its sshd is: `manage_host` if given.
    pub ssh_host: HostId,
    /// Port of sshd.
    pub ssh_port: u16,
    /// Instead of the fleet's.
    pub login: Option<Login>,
    /// Where the agent may be kept if the home folder cannot execute: deploy folders.
    pub places: Vec<Utf8PathBuf>,
}

impl HostAddress {
    /// The hosts of some instances, each once, by name.
    pub fn of_instances<'a>(instances: impl IntoIterator<Item = &'a Instance>) -> Vec<Self> {
        let mut hosts: BTreeMap<HostId, Self> = BTreeMap::new();
        for instance in instances {
            let host = hosts.entry(instance.host.clone()).or_insert_with(|| Self {
                id: instance.host.clone(),
                ssh_host: instance.ssh_host.clone(),
                ssh_port: instance.ssh_port,
                login: None,
                places: Vec::new(),
            });
            host.places.push(instance.deploy_dir.clone());
        }
        hosts.into_values().collect()
    }
}

/// All hosts.
pub struct Fleet {
    settings: FleetSettings,
    pub(crate) hosts: BTreeMap<HostId, Host>,
    permits: Semaphore,
    agents: OnceCell<Agents>,
    /// Every new session takes this lease.
    pub(crate) claim: RwLock<Option<Claim>>,
}

pub(crate) struct Host {
    pub(crate) address: HostAddress,
    pub(crate) session: Mutex<Option<Arc<AgentSession>>>,
    /// Of the lease that we took there; 0: none.
    pub(crate) token: AtomicU64,
}

impl Fleet {
    /// Knows the hosts, connects to none.
    pub fn new(settings: FleetSettings, hosts: impl IntoIterator<Item = HostAddress>) -> Self {
        let permits = Semaphore::new(settings.concurrency.max(1));
        let hosts = hosts
            .into_iter()
            .map(|address| {
                let (session, token) = (Mutex::new(None), AtomicU64::new(0));
                (address.id.clone(), Host { address, session, token })
            })
            .collect();
        Self { settings, hosts, permits, agents: OnceCell::new(), claim: RwLock::new(None) }
    }

    /// All of them, in order.
    pub fn hosts(&self) -> impl Iterator<Item = &HostId> {
        self.hosts.keys()
    }

    /// Connects to all at once, as many at a time as allowed.
    pub async fn connect_all(&self) -> BTreeMap<HostId, Result<Hello, ReachError>> {
        let all = self.hosts.keys().map(|id| async { (id.clone(), self.hello(id).await) });
        futures::future::join_all(all).await.into_iter().collect()
    }

    /// Connects to all, and says why some do not answer.
    pub async fn silent(&self) -> Vec<String> {
        let greeted = self.connect_all().await;
        greeted.into_values().filter_map(|it| it.err().map(|error| error.to_string())).collect()
    }

    /// The host's greeting; connects if needed.
    ///
    /// # Errors
    ///
    /// [`ReachError`].
    pub async fn hello(&self, host: &HostId) -> Result<Hello, ReachError> {
        Ok(self.session(host).await?.hello().clone())
    }

    /// Connects anew, whatever the state of the present session. Requests under way on the old one run to their end.
    ///
    /// # Errors
    ///
    /// [`ReachError`]; the old session is gone then, too.
    pub async fn reconnect(&self, host: &HostId) -> Result<Hello, ReachError> {
        let known = self.host(host)?;
        let mut slot = known.session.lock().await;
        *slot = None;
        let session = self.connect(known).await?;
        let hello = session.hello().clone();
        *slot = Some(session);
        Ok(hello)
    }

    /// Ends all sessions; the agents end when their requests have.
    pub async fn disconnect(&self) {
        for host in self.hosts.values() {
            *host.session.lock().await = None;
        }
    }

    /// Asks a host's agent. `attempted` is a verb phrase for messages: `restart dm-worker-8262.service`.
    ///
    /// # Errors
    ///
    /// [`EffectError`].
    pub async fn request(
        &self,
        host: &HostId,
        attempted: &str,
        request: &Request,
        within: Duration,
    ) -> Result<Outcome, EffectError> {
        self.converse(host, attempted, request, None, within).await.map(|(outcome, _)| outcome)
    }

    /// Asks a host's agent and sends the parcel if it wants it. Returns the bytes sent, too.
    ///
    /// # Errors
    ///
    /// [`EffectError`].
    pub async fn request_with_parcel(
        &self,
        host: &HostId,
        attempted: &str,
        request: &Request,
        parcel: &Utf8Path,
        within: Duration,
    ) -> Result<(Outcome, u64), EffectError> {
        let _permit = self.permits.acquire().await.expect("never closed");
        self.converse(host, attempted, request, Some(parcel), within).await
    }

    async fn converse(
        &self,
        host: &HostId,
        attempted: &str,
        request: &Request,
        parcel: Option<&Utf8Path>,
        within: Duration,
    ) -> Result<(Outcome, u64), EffectError> {
        let failed = |observed: String, certainty| EffectError {
            attempted: attempted.to_owned(),
            place: host.as_str().to_owned(),
            observed,
            certainty,
        };
        let mut last = String::new();
        // A session may break between being found and being used; nothing was sent then.
        for _ in 0..2 {
            let session = self
                .session(host)
                .await
                .map_err(|error| failed(error.to_string(), certainty_of(&error)))?;
            let result = match parcel {
                Some(path) => session.request_with_stream(request, path, within).await,
                None => session.request(request, within).await.map(|outcome| (outcome, 0)),
            };
            match result {
                Ok(done) => return Ok(done),
                Err(SessionError::Refused(refusal)) => {
                    let mut observed = format!("{}: {}", refusal.attempted, refusal.observed);
                    if let Some(state) = refusal.state {
                        observed.push_str("; now: ");
                        observed.push_str(&state);
                    }
                    let certainty = match refusal.kind {
                        RefusalKind::Superseded => Certainty::Superseded,
                        RefusalKind::BadRequest
                        | RefusalKind::Precondition
                        | RefusalKind::Permission
                        | RefusalKind::NoSpace
                        | RefusalKind::Content
                        | RefusalKind::TooSlow
                        | RefusalKind::System => Certainty::Refused,
                    };
                    return Err(failed(observed, certainty));
                }
                Err(SessionError::Unknown(why)) => return Err(failed(why, Certainty::Unknown)),
                Err(SessionError::NotSent(why)) => last = why,
            }
        }
        Err(failed(last, Certainty::NotSent))
    }

    fn host(&self, host: &HostId) -> Result<&Host, ReachError> {
        self.hosts.get(host).ok_or_else(|| ReachError::Resolve {
            host: host.as_str().to_owned(),
            observed: "it is not one of the cluster's hosts".to_owned(),
        })
    }

    async fn session(&self, host: &HostId) -> Result<Arc<AgentSession>, ReachError> {
        let known = self.host(host)?;
        let mut slot = known.session.lock().await;
        if let Some(session) = slot.as_ref().filter(|session| session.why_broken().is_none()) {
            return Ok(session.clone());
        }
        let session = self.connect(known).await?;
        *slot = Some(session.clone());
        Ok(session)
    }

    async fn connect(&self, host: &Host) -> Result<Arc<AgentSession>, ReachError> {
        let address = &host.address;
        let target = Target {
            host: address.ssh_host.as_str().to_owned(),
            port: address.ssh_port,
            login: address.login.as_ref().unwrap_or(&self.settings.login).clone(),
        };
        let agents = self.agents(&target).await?;
        let connection = self.open(&target).await?;
        let session = {
            let _permit = self.permits.acquire().await.expect("never closed");
            let FleetSettings { limits, systemd, .. } = &self.settings;
            let failed = |observed| ReachError::Bootstrap { address: target.address(), observed };
            let stream =
                start_agent(&connection, agents, *systemd, &address.places, limits).await?;
            let session = AgentSession::start(stream, limits.bootstrap)
                .await
                .map_err(|error| failed(error.observed))?;
            let mode = session.hello().systemd_mode;
            if mode != *systemd {
                return Err(failed(format!(
                    "it gives orders to systemd of the {mode}, not {systemd}"
                )));
            }
            session
        };
        self.take_on_new(host, &session).await?;
        Ok(Arc::new(session))
    }

    /// Opens a connection; at first contact decides about the key and opens it again.
    async fn open(&self, target: &Target) -> Result<Connection, ReachError> {
        let FleetSettings { reach, jump, host_keys, limits, .. } = &self.settings;
        let first = {
            let _permit = self.permits.acquire().await.expect("never closed");
            Connection::open(reach, jump.as_ref(), target, host_keys, limits).await
        };
        let Err(ReachError::UnknownHostKey(key)) = first else { return first };
        host_keys.meet(key).await?;
        let _permit = self.permits.acquire().await.expect("never closed");
        Connection::open(reach, jump.as_ref(), target, host_keys, limits).await
    }

    async fn agents(&self, target: &Target) -> Result<&Agents, ReachError> {
        let program = self.settings.agent.clone();
        let load = || async {
            tokio::task::spawn_blocking(move || Agents::load(&program))
                .await
                .map_err(std::io::Error::other)
                .flatten()
        };
        self.agents.get_or_try_init(load).await.map_err(|error| ReachError::Bootstrap {
            address: target.address(),
            observed: format!("the program to send cannot be read: {error}"),
        })
    }
}

/// Small things: one request, answered in a moment.
const SMALL: Duration = Duration::from_secs(60);
/// `groupadd`, `useradd`, `visudo` and what lets a user linger, each of which the agent ends after a minute: who waits for a
/// directory server must be told by the host, not by the clock here.
const TOOLS: Duration = Duration::from_secs(330);
/// A probe that reads whole binaries, several per host.
const HASHING: Duration = Duration::from_secs(180);
/// Orders to systemd have their own limit; this is for the way there and back.
const WAY: Duration = Duration::from_secs(30);

/// What deploy, scale and the like ask of hosts, one call per verb.
impl Fleet {
    /// Looks at units, files, ports, users, disks.
    ///
    /// # Errors
    ///
    /// [`EffectError`].
    pub async fn probe(&self, host: &HostId, probe: Probe) -> Result<Probed, EffectError> {
        let within = if probe.hashes { HASHING } else { SMALL };
        let attempted = "look at the host";
        let outcome = self.request(host, attempted, &Request::Probe(probe), within).await?;
        let Outcome::Probed(probed) = outcome else { return Err(unfitting(attempted, host)) };
        Ok(probed)
    }

    /// Opens a TCP port of a host and closes it again, from this machine or from the host in between.
    ///
    /// # Errors
    ///
    /// Why nobody answers there.
    pub async fn opens(
        &self,
        host: &HostId,
        port: u16,
        within: Duration,
    ) -> Result<(), ReachError> {
        let host = host.as_str().trim_matches(['[', ']']);
        dial(self.settings.jump.as_deref(), host, port, within).await.map(drop)
    }

    /// Whose systemd runs the services.
    pub fn systemd_mode(&self) -> SystemdMode {
        self.settings.systemd
    }

    /// Whether the host lets us do what windows and guards need: `sudo -n`, or a lasting systemd of the deploy user.
    ///
    /// # Errors
    ///
    /// [`EffectError`] with sudo's words, or with what is missing.
    pub async fn check_rights(&self, host: &HostId) -> Result<(), EffectError> {
        let attempted = match self.settings.systemd {
            SystemdMode::System => "use sudo",
            SystemdMode::User => "run services without root",
        };
        self.done(host, attempted, Request::CheckRights, SMALL).await
    }

    /// Writes small files, each atomically.
    ///
    /// # Errors
    ///
    /// [`EffectError`].
    pub async fn put(&self, host: &HostId, files: Vec<PutFile>) -> Result<(), EffectError> {
        let attempted = format!("write {}", named(files.iter().map(|file| &file.path)));
        self.done(host, &attempted, Request::Put { files }, SMALL).await
    }

    /// Reads a small file (512 KiB at most); none if there is no such file.
    ///
    /// # Errors
    ///
    /// [`EffectError`].
    pub async fn get(&self, host: &HostId, path: &Utf8Path) -> Result<Option<String>, EffectError> {
        let attempted = format!("read {path}");
        let request = Request::Get { path: path.to_owned(), max_bytes: 512 << 10 };
        let outcome = self.request(host, &attempted, &request, SMALL).await?;
        let Outcome::Got { content } = outcome else { return Err(unfitting(&attempted, host)) };
        Ok(content)
    }

    /// Makes folders that are missing, and sets owner and mode.
    ///
    /// # Errors
    ///
    /// [`EffectError`].
    pub async fn make_dirs(&self, host: &HostId, dirs: Vec<MakeDir>) -> Result<(), EffectError> {
        let attempted = format!("make {}", named(dirs.iter().map(|dir| &dir.path)));
        self.done(host, &attempted, Request::MakeDirs { dirs }, SMALL).await
    }

    /// Removes files and whole folders; missing ones are fine.
    ///
    /// # Errors
    ///
    /// [`EffectError`].
    pub async fn remove(&self, host: &HostId, paths: Vec<Utf8PathBuf>) -> Result<(), EffectError> {
        let attempted = format!("remove {}", named(paths.iter()));
        // Whole data folders take their time.
        self.done(host, &attempted, Request::Remove { paths }, HASHING).await
    }

    /// Unpacks a parcel into a folder. Returns bytes sent.
    ///
    /// # Errors
    ///
    /// [`EffectError`].
    pub async fn unpack(
        &self,
        host: &HostId,
        parcel: &Parcel,
        into: &Utf8Path,
        owner: Option<&dmup_core::ids::UserName>,
    ) -> Result<u64, EffectError> {
        let attempted = format!("unpack a package into {into}");
        let request = Request::Unpack(Unpack {
            digest: parcel.digest.clone(),
            compressed_bytes: parcel.compressed_bytes,
            unpacked_bytes: parcel.unpacked_bytes,
            into: into.to_owned(),
            owner: owner.cloned(),
        });
        let within = time_to_send(parcel);
        let (_, sent) =
            self.request_with_parcel(host, &attempted, &request, &parcel.path, within).await?;
        Ok(sent)
    }

    /// Makes a user with a login key and sudo rights.
    ///
    /// # Errors
    ///
    /// [`EffectError`].
    pub async fn ensure_user(&self, host: &HostId, user: EnsureUser) -> Result<(), EffectError> {
        let attempted = format!("make the user {}", user.user);
        self.done(host, &attempted, Request::EnsureUser(user), TOOLS).await
    }

    /// Takes a login key away from a user.
    ///
    /// # Errors
    ///
    /// [`EffectError`].
    pub async fn forget_key(&self, host: &HostId, order: ForgetKey) -> Result<(), EffectError> {
        let attempted = format!("take a login key away from {}", order.user);
        self.done(host, &attempted, Request::ForgetKey(order), SMALL).await
    }

    /// Gives the operator's own command to the host's shell; how it ended is in the answer, not an error.
    ///
    /// # Errors
    ///
    /// [`EffectError`].
    pub async fn shell(
        &self,
        host: &HostId,
        command: &str,
        root: bool,
        within: Duration,
    ) -> Result<Ran, EffectError> {
        let attempted = "run the command";
        let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let request = Request::Shell(Shell { command: command.to_owned(), root, within_ms });
        let outcome = self.request(host, attempted, &request, within + WAY).await?;
        let Outcome::Ran(ran) = outcome else { return Err(unfitting(attempted, host)) };
        Ok(ran)
    }

    /// Acts on units, one after the other; `within` is for each of them. A unit that systemd refused is in the answer, not an error.
    ///
    /// # Errors
    ///
    /// [`EffectError`].
    pub async fn unit(
        &self,
        host: &HostId,
        units: Vec<UnitName>,
        action: UnitAction,
        within: Duration,
    ) -> Result<Vec<UnitDone>, EffectError> {
        let attempted = format!("{} {}", word(action), named(units.iter()));
        let limit = within * u32::try_from(units.len()).unwrap_or(u32::MAX) + WAY;
        let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let request = Request::Unit(UnitOrder { units, action, within_ms });
        let outcome = self.request(host, &attempted, &request, limit).await?;
        let Outcome::Units { units } = outcome else { return Err(unfitting(&attempted, host)) };
        Ok(units)
    }

    pub(crate) async fn done(
        &self,
        host: &HostId,
        attempted: &str,
        request: Request,
        within: Duration,
    ) -> Result<(), EffectError> {
        let outcome = self.request(host, attempted, &request, within).await?;
        if outcome == Outcome::Done { Ok(()) } else { Err(unfitting(attempted, host)) }
    }
}

/// Long enough for a slow line (256 KiB/s) and a slow disk; a dead connection is noticed long before.
pub(crate) fn time_to_send(parcel: &Parcel) -> Duration {
    Duration::from_secs(
        120 + parcel.compressed_bytes / (256 << 10) + parcel.unpacked_bytes / (8 << 20),
    )
}

fn word(action: UnitAction) -> &'static str {
    match action {
        UnitAction::Start => "start",
        UnitAction::Stop => "stop",
        UnitAction::Restart => "restart",
        UnitAction::Enable => "enable",
        UnitAction::Disable => "disable",
    }
}

/// The first few of many names.
fn named(names: impl ExactSizeIterator<Item = impl std::fmt::Display>) -> String {
    let count = names.len();
    let mut shown: Vec<String> = names.take(3).map(|name| name.to_string()).collect();
    if count > 3 {
        shown.push(format!("and {} more", count - 3));
    }
    shown.join(", ")
}

/// Whether another try may reach a host that was not reached. Nothing was done on it either way.
pub(crate) fn certainty_of(error: &ReachError) -> Certainty {
    match error {
        ReachError::Resolve { .. }
        | ReachError::Connect { .. }
        | ReachError::Channel { .. }
        | ReachError::SystemSsh { .. }
        | ReachError::Bootstrap { .. } => Certainty::NotSent,
        ReachError::Superseded { .. } => Certainty::Superseded,
        // Keys and logins do not change by waiting.
        ReachError::UnknownHostKey(_)
        | ReachError::ChangedHostKey(_)
        | ReachError::RevokedHostKey { .. }
        | ReachError::KnownHosts(_)
        | ReachError::Auth { .. } => Certainty::Refused,
        ReachError::Between { error, .. } => certainty_of(error),
    }
}

/// Same build on both sides, so only a bug gives such an answer; what it did is not known.
pub(crate) fn unfitting(attempted: &str, host: &HostId) -> EffectError {
    EffectError {
        attempted: attempted.to_owned(),
        place: host.as_str().to_owned(),
        observed: "the agent gave an answer to something else".to_owned(),
        certainty: Certainty::Unknown,
    }
}
