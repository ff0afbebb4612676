//! What every command starts from: surroundings, state, and the ways to hosts and DM.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::builds::{Before, RecordedBuild, build_before, lacks_its_mark};
use dmup_core::digest::Digest;
use dmup_core::ids::{BadName, ClusterName, HostId, InstanceId, UserName};
use dmup_core::instance::{Instance, Role};
use dmup_core::inventory::Inventory;
use dmup_core::journal::{Folded, RunState, TurnEnd, fold};
use dmup_core::plan::{Kind as PlanKind, Plan, TargetBuild};
use dmup_core::report::{Report, RunEnd};
use dmup_core::selection::BadSelection;
use dmup_core::systemd::SystemdMode;
use dmup_core::texts::Texts;
use dmup_core::topology::Meta;
use dmup_core::version::DmVersion;
use dmup_exec::RunFolder;
use dmup_exec::ports::{Clock, Records};
use dmup_mirror::package::Parcel;
use dmup_remote::dm_api::{DmClient, Timeouts, Tls};
use dmup_remote::lease::Claim;
use dmup_remote::login::needs_passphrase;
use dmup_remote::ssh::{HostKeys, Jump, NewHostKey, Reach, ReachLimits, Target, UnknownHostKeys};
use dmup_remote::{AuthMethod, Fleet, FleetSettings, HostAddress, Login, Secret};
use dmup_state::{AuditMark, Cluster, ClusterLock, Profile, StateError};
use dmup_wire::lease::Holder;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use crate::args::{Command, Global, SshKind};
use crate::ask;
use crate::commands::laying_out;
use crate::commands::run::how_to_go_on;
use crate::failure::{Failure, Kind, chain};
use crate::manner::Manner;
use crate::printer::Printer;
use crate::surroundings::Surroundings;
use crate::tiup;

/// Of every command.
pub(crate) struct Context {
    pub(crate) surroundings: Surroundings,
    pub(crate) global: Global,
    pub(crate) printer: Printer,
    pub(crate) profile: Profile,
    pub(crate) clock: SystemClock,
    /// The host in between, once it was asked for: one session for all that goes through it.
    jump: OnceLock<Option<Arc<Jump>>>,
    /// Set once that host has let us in.
    entered: OnceCell<()>,
}

impl Context {
    pub(crate) fn new(surroundings: Surroundings, global: Global, printer: Printer) -> Self {
        let profile = Profile::at(surroundings.profile.clone());
        let (jump, entered) = (OnceLock::new(), OnceCell::new());
        let clock = SystemClock(Instant::now());
        Self { surroundings, global, printer, profile, clock, jump, entered }
    }

    /// What this command's entry in the audit log is to end with.
    pub(crate) fn audit_mark(&self) -> Result<Option<AuditMark>, Failure> {
        let mark = self.surroundings.audit_mark.as_deref().map(str::parse).transpose();
        mark.map_err(|bad: BadName| Failure::new(Kind::Usage, format_args!("TIUP_AUDIT_ID: {bad}")))
    }

    pub(crate) fn concurrency(&self) -> usize {
        usize::from(self.global.concurrency)
    }

    /// A cluster by the name that the operator typed.
    pub(crate) fn cluster(&self, name: &str) -> Result<Known, Failure> {
        let name = checked_name(name)?;
        let (cluster, meta) = self.profile.open(&name).map_err(state_failure)?;
        Ok(Known { name, cluster, meta })
    }

    /// A folder for unpacked packages that goes away by itself.
    pub(crate) fn scratch(&self) -> Result<Scratch, Failure> {
        Scratch::new(&self.profile.root().join("dmup-scratch"))
    }

    /// How hosts are reached with this login, and whose systemd is meant there; keys that are met for the first time go to `cluster_keys`.
    pub(crate) async fn fleet(
        &self,
        login: Login,
        ssh: Reach,
        systemd: SystemdMode,
        cluster_keys: &Utf8Path,
        hosts: Vec<HostAddress>,
    ) -> Result<Fleet, Failure> {
        let jump = self.jump(&ssh, cluster_keys)?;
        if let Some(jump) = &jump
            && matches!(ssh, Reach::Russh)
        {
            self.enter(jump).await?;
        }
        let settings = FleetSettings {
            jump,
            reach: ssh,
            login,
            host_keys: self.trusted(cluster_keys),
            limits: ReachLimits {
                connect: Duration::from_secs(self.global.ssh_timeout),
                ..ReachLimits::default()
            },
            concurrency: self.concurrency(),
            agent: self.surroundings.executable.clone(),
            systemd,
        };
        Ok(Fleet::new(settings, hosts))
    }

    /// Which host keys are trusted, and what is done about those that are met for the first time.
    fn trusted(&self, cluster_keys: &Utf8Path) -> HostKeys {
        // TiUP looks at no host key, and its scripts answer no question: the first key is trusted, a changed one is not.
        let is_tiup = self.printer.manner == Manner::TiupDm;
        let unknown = if self.global.accept_new_host_keys || is_tiup {
            UnknownHostKeys::Accept
        } else if self.surroundings.stdin_is_terminal && !self.global.yes {
            UnknownHostKeys::Ask(Arc::new(|key: &NewHostKey| {
                ask::confirm(&format!(
                    "The host {} is met for the first time; its key is {} {}.",
                    key.address(),
                    key.algorithm,
                    key.fingerprint
                ))
                .is_ok()
            }))
        } else {
            UnknownHostKeys::Refuse
        };
        HostKeys::new(Some(&self.surroundings.home), cluster_keys, unknown)
    }

    /// The host in between that the flags name; hosts that are this machine need none.
    fn jump(&self, reach: &Reach, cluster_keys: &Utf8Path) -> Result<Option<Arc<Jump>>, Failure> {
        if matches!(reach, Reach::Local { .. }) {
            return Ok(None);
        }
        if let Some(jump) = self.jump.get() {
            return Ok(jump.clone());
        }
        let proxy = &self.global.proxy;
        let jump = match &proxy.ssh_proxy_host {
            None => None,
            Some(host) => {
                let host = HostId::new(host.clone()).map_err(|bad| {
                    Failure::new(Kind::Usage, format_args!("--ssh-proxy-host: {bad}"))
                })?;
                let by_system = matches!(reach, Reach::SystemSsh { .. });
                if by_system
                    && (proxy.ssh_proxy_use_password || proxy.ssh_proxy_identity_file.is_some())
                {
                    return Err(Failure::new(
                        Kind::Usage,
                        "the system's ssh takes no key and no password for the host in between",
                    )
                    .hint("leave both flags out: `IdentityFile` of that host in ~/.ssh/config, and an ssh-agent, serve it")
                    .hint("or use `--ssh builtin`"));
                }
                let user = proxy.ssh_proxy_user.as_deref().unwrap_or(&self.surroundings.user);
                let login = Login {
                    user: checked_user(user)?,
                    auth: self.proofs(
                        proxy.ssh_proxy_use_password,
                        &format!("SSH password of {host}: "),
                        proxy.ssh_proxy_identity_file.as_deref(),
                    )?,
                };
                let target = Target { host: host.to_string(), port: proxy.ssh_proxy_port, login };
                let limits = ReachLimits {
                    connect: Duration::from_secs(proxy.ssh_proxy_timeout),
                    ..ReachLimits::default()
                };
                Some(Arc::new(Jump::new(target, self.trusted(cluster_keys), limits)))
            }
        };
        Ok(self.jump.get_or_init(|| jump).clone())
    }

    /// Logs in on the host in between, the first time. Whoever needs it asks before anything is changed, and hears at once that
    /// it is of no use: else every host and node would look as if it were down.
    async fn enter(&self, jump: &Jump) -> Result<(), Failure> {
        let entered = self.entered.get_or_try_init(|| jump.open()).await;
        entered
            .map(drop)
            .map_err(|error| Failure::refused(error).hint(laying_out::HOW_TO_GO_THROUGH))
    }

    /// How the operator proves who they are, in TiUP's order: password if asked for, key file, ssh-agent.
    pub(crate) fn proofs(
        &self,
        by_password: bool,
        question: &str,
        identity_file: Option<&Utf8Path>,
    ) -> Result<Vec<AuthMethod>, Failure> {
        if by_password {
            return Ok(vec![AuthMethod::Password(Secret::new(ask::secret(question)?))]);
        }
        let usual = self.surroundings.home.join(".ssh/id_rsa");
        let path = identity_file.unwrap_or(&usual);
        let mut proofs = Vec::new();
        if identity_file.is_some() || path.exists() {
            let encrypted = needs_passphrase(path)
                .map_err(|why| Failure::refused(format_args!("read the identity file: {why}")))?;
            let passphrase = encrypted
                .then(|| ask::secret(&format!("Passphrase of {path}: ")).map(Secret::new))
                .transpose()?;
            proofs.push(AuthMethod::KeyFile { path: path.to_owned(), passphrase });
        }
        if let Some(socket) = &self.surroundings.ssh_agent {
            proofs.push(AuthMethod::Agent { socket: socket.clone() });
        }
        Ok(proofs)
    }

    /// `user@machine`.
    pub(crate) fn who(&self) -> String {
        format!("{}@{}", self.surroundings.user, machine_name())
    }

    /// Works on a cluster with its lease on all hosts of the fleet that can be reached.
    pub(crate) async fn with_lease<T>(
        &self,
        cluster: &ClusterName,
        what: &str,
        fleet: &Fleet,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        // Two of three differ between any two desks, also where containers have no machine-id.
        let machine = fs_err::read_to_string("/etc/machine-id").unwrap_or_default();
        let desk = format!("{}\0{}\0{}", machine.trim(), machine_name(), self.profile.root());
        let holder = Holder {
            desk: Digest::of(desk.as_bytes()).to_string(),
            run: format!("{}-{}", self.clock.now(), std::process::id()),
            who: self.who(),
            what: what.to_owned(),
        };
        let claim = Claim { cluster: cluster.clone(), holder };
        let note = |text: String| self.printer.talk(format_args!("note: {text}"));
        match fleet.with_lease(claim, note, work).await {
            Ok(outcome) => outcome,
            Err(not_ours) => Err(Failure::refused(format_args!(
                "somebody else is at work on {cluster}"
            ))
            .because([not_ours.to_string()])
            .hint(
                "wait until they have ended; a lease that nobody renews expires after two minutes",
            )
            .hint(format_args!("`dmup unlock {cluster}` takes it from them"))),
        }
    }

    /// The way to hosts that flags or the topology ask for.
    pub(crate) fn reach(&self, ssh_type: &str) -> Reach {
        let native = self.global.native_ssh || self.surroundings.native_ssh;
        let kind =
            self.global.ssh.or(native.then_some(SshKind::System)).unwrap_or(match ssh_type {
                "system" => SshKind::System,
                "none" => SshKind::None,
                _ => SshKind::Builtin,
            });
        match kind {
            SshKind::Builtin => Reach::Russh,
            SshKind::System => Reach::SystemSsh {
                program: self.surroundings.ssh_program.clone(),
                given_keys_only: false,
            },
            SshKind::None => Reach::Local { playground: self.surroundings.supervised.clone() },
        }
    }

    /// Records the command as TiUP does, when it has ended.
    pub(crate) fn record(
        &self,
        command: &Command,
        words: &[std::ffi::OsString],
        outcome: &Result<(), Failure>,
    ) -> Result<(), Failure> {
        match command {
            Command::Agent(_)
            | Command::Completion { .. }
            | Command::Package(_)
            | Command::Template(_) => return Ok(()),
            Command::Deploy(_)
            | Command::ScaleOut(_)
            | Command::ScaleIn(_)
            | Command::Prune(_)
            | Command::Start(_)
            | Command::Stop(_)
            | Command::Restart(_)
            | Command::Reload(_)
            | Command::Enable(_)
            | Command::Disable(_)
            | Command::List
            | Command::EditConfig(_)
            | Command::Meta(_)
            | Command::Destroy(_)
            | Command::Audit(_)
            | Command::Display(_)
            | Command::Exec(_)
            | Command::Patch(_)
            | Command::Upgrade(_)
            | Command::Replay(_)
            | Command::Resume(_)
            | Command::Rollback(_)
            | Command::Unlock(_)
            | Command::Rotatessh(_)
            | Command::Runs(_)
            | Command::Versions(_) => {}
        }
        let words: Vec<String> =
            words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        let text = match outcome {
            Ok(()) => "ended with 0\n".to_owned(),
            Err(failure) => {
                format!("{failure}\nended with {}\n", self.printer.exit_code(failure))
            }
        };
        self.profile
            .audit()
            .record(self.clock.now(), self.audit_mark().ok().flatten().as_ref(), &words, &text)
            .map(drop)
            .map_err(|error| Failure::failed(chain(&error)))
    }
}

/// A cluster that exists.
pub(crate) struct Known {
    pub(crate) name: ClusterName,
    pub(crate) cluster: Cluster,
    pub(crate) meta: Meta,
}

/// Our record of builds that were put back, by hash: why.
const BAD_BUILDS: &str = "bad_builds";

#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct BadBuilds {
    builds: BTreeMap<Digest, String>,
}

impl Known {
    /// All hosts of these instances, by the cluster's own user and key.
    pub(crate) async fn fleet(
        &self,
        context: &Context,
        instances: &[Instance],
    ) -> Result<Fleet, Failure> {
        let reach = context.reach(self.meta.topology.global.ssh_type.as_str());
        self.fleet_by(&[self.cluster.private_key_path()], reach, context, instances).await
    }

    /// All hosts of these instances, by the cluster's own user and the first of these keys that is let in.
    pub(crate) async fn fleet_by(
        &self,
        keys: &[Utf8PathBuf],
        reach: Reach,
        context: &Context,
        instances: &[Instance],
    ) -> Result<Fleet, Failure> {
        let login = Login {
            user: self.meta.user.clone(),
            auth: keys.iter().map(AuthMethod::key_file).collect(),
        };
        let hosts = HostAddress::of_instances(instances);
        let systemd = self.meta.topology.systemd_mode();
        context.fleet(login, reach, systemd, &self.host_keys(), hosts).await
    }

    /// Host keys that were accepted for this cluster.
    pub(crate) fn host_keys(&self) -> Utf8PathBuf {
        self.cluster.own_dir().join("known_hosts")
    }

    /// A client of this cluster's DM.
    pub(crate) async fn dm(
        &self,
        context: &Context,
        instances: &[Instance],
    ) -> Result<DmClient, Failure> {
        self.dm_within(context, instances, Timeouts::default()).await
    }

    /// A client of this cluster's DM with other limits; over TLS if the cluster has it.
    pub(crate) async fn dm_within(
        &self,
        context: &Context,
        instances: &[Instance],
        timeouts: Timeouts,
    ) -> Result<DmClient, Failure> {
        let reach = context.reach(self.meta.topology.global.ssh_type.as_str());
        let jump = context.jump(&reach, &self.host_keys())?;
        if let Some(jump) = &jump {
            context.enter(jump).await?;
        }
        if !self.meta.topology.global.enable_tls {
            return Ok(DmClient::new(instances, timeouts).through(jump));
        }
        let folder = self.cluster.tls_dir();
        let file = |name: &str| {
            let path = folder.join(name);
            read_small(&path).map_err(|why| {
                Failure::refused(format_args!(
                    "read {path}, without which DM of {} (enable_tls) lets nobody in: {why}",
                    self.name
                ))
                .hint("it was made when the cluster was deployed; `meta backup` keeps a copy")
            })
        };
        let tls = Tls {
            authority: file("ca.crt")?,
            certificate: file("client.crt")?,
            key: file("client.pem")?,
        };
        let client = DmClient::over_tls(instances, timeouts, &tls).map_err(|error| {
            Failure::refused(format_args!("use the certificates in {folder}: {}", chain(&error)))
        })?;
        Ok(client.through(jump))
    }

    /// One operator at a time: of this machine, and not beside a TiUP that runs here.
    pub(crate) fn lock(&self, what: &str) -> Result<ClusterLock, Failure> {
        let holder =
            format!("`{what}` since {}, process {}", jiff::Zoned::now(), std::process::id());
        let lock = self.cluster.lock(&holder).map_err(|error| {
            let hint = format!("`dmup unlock {}` takes it from a dmup that hangs", self.name);
            state_failure(error).hint(hint)
        })?;
        // `<profile>/clusters/<name>`
        let profile = self.cluster.dir().parent().and_then(Utf8Path::parent);
        match profile.and_then(|profile| tiup::at_work(&self.name, profile)) {
            None => Ok(lock),
            Some((pid, words)) => Err(Failure::refused(format_args!(
                "TiUP is at work on {}: process {pid}, `{words}`",
                self.name
            ))
            .hint("wait until it has ended; neither knows what the other does")),
        }
    }

    pub(crate) fn refuse_unfinished_scale_out(&self, offline: bool) -> Result<(), Failure> {
        if offline {
            return Ok(());
        }
        self.cluster.refuse_pending_scale_out().map_err(state_failure)
    }

    /// Instances that have the build of a package already, by a hotfix of which only the mark is missing.
    pub(crate) fn unmarked(
        &self,
        selected: &[Instance],
        targets: &BTreeMap<Role, TargetBuild>,
        inventory: &Inventory,
    ) -> Result<Unmarked, Failure> {
        let recorded = self.recorded_builds()?;
        Ok(selected
            .iter()
            .filter_map(|it| Some((it, &targets.get(&it.role)?.digest)))
            .filter(|(it, build)| {
                lacks_its_mark(it, &self.meta.version, build, recorded.get(&it.id), inventory)
            })
            .map(|(it, build)| (it.id.clone(), build.clone()))
            .collect())
    }

    /// Marks them.
    pub(crate) fn mark_all(&self, unmarked: &Unmarked) -> Result<(), Failure> {
        let records = self.records();
        unmarked
            .iter()
            .try_for_each(|(id, build)| records.mark(id, build, true).map_err(Failure::failed))
    }

    pub(crate) fn records(&self) -> MetaRecords {
        MetaRecords { cluster: self.cluster.clone(), run: None }
    }

    /// As [`Self::records`], with the files that this run keeps.
    pub(crate) fn records_of(&self, run: &RunFolder) -> MetaRecords {
        MetaRecords { run: Some(run.clone()), ..self.records() }
    }

    /// Builds that were put back before, and why.
    pub(crate) fn bad_builds(&self) -> Result<BTreeMap<Digest, String>, Failure> {
        let record: Option<BadBuilds> =
            self.cluster.read_record(BAD_BUILDS).map_err(state_failure)?;
        Ok(record.unwrap_or_default().builds)
    }

    /// Remembers the build of a node that had to be put back.
    pub(crate) fn note_bad_builds(&self, report: &Report) -> Result<(), Failure> {
        let (RunEnd::RolledBackNode { instance, why } | RunEnd::RolledBackAll { instance, why }) =
            &report.end
        else {
            return Ok(());
        };
        let Some((_, part)) = report.instances.iter().find(|(id, _)| id == instance) else {
            return Ok(());
        };
        if part.from == part.to {
            return Ok(()); // it was its files, or a start
        }
        let mut builds = self.bad_builds()?;
        builds.insert(part.to.clone(), format!("{instance}, {}: {why}", report.ended));
        self.cluster.write_record(BAD_BUILDS, &BadBuilds { builds }).map_err(state_failure)
    }

    /// Records another version of the cluster. After an upgrade no node is marked as patched any more, and no hotfix is kept
    /// for later nodes. Returns whether it was another one.
    pub(crate) fn record_version(
        &self,
        version: &DmVersion,
        is_upgrade: bool,
    ) -> Result<bool, Failure> {
        // The run has marked its nodes meanwhile.
        let now = self.cluster.meta().map_err(state_failure)?;
        let mut topology = now.topology.clone();
        if is_upgrade {
            let dm: Vec<_> = now.instances().into_iter().filter(|it| it.role.is_dm()).collect();
            let ids: Vec<&str> = dm.iter().map(|it| it.id.as_str()).collect();
            topology.mark_patched(&ids, false);
        }
        let is_other = now.version != *version;
        let meta = Meta { version: version.clone(), topology, ..now.clone() };
        if meta.render() != now.render() {
            self.cluster.save_meta(&meta, &jiff::Zoned::now()).map_err(state_failure)?;
        }
        if is_upgrade {
            self.cluster.forget_packages().map_err(state_failure)?;
        }
        Ok(is_other)
    }

    /// Builds before those that run, by what is there: they stay on their hosts while a later one is tried.
    pub(crate) fn ways_back(
        &self,
        selected: &[Instance],
        inventory: &Inventory,
    ) -> Result<BTreeMap<InstanceId, Digest>, Failure> {
        let runs = self.runs()?;
        let before = |it: &Instance| {
            let (_, before) = Self::before(&runs, &it.id, inventory)?;
            Some((it.id.clone(), before.recorded.build))
        };
        Ok(selected.iter().filter_map(before).collect())
    }

    /// Keeps the parcels of a plan where a later `resume` finds them, beside the last two of others.
    pub(crate) fn keep_parcels(&self, plan: &mut Plan, parcels: &[&Parcel]) -> Result<(), Failure> {
        let folder = self.cluster.own_dir().join("parcels");
        let mut keep = || -> std::io::Result<()> {
            let mut of_plan = Vec::new();
            for spec in plan.parcel.iter_mut().chain(&mut plan.parcels) {
                fs_err::create_dir_all(&folder)?;
                let path = folder.join(spec.digest.as_str());
                let parcel = parcels.iter().find(|parcel| parcel.digest == spec.digest);
                if let Some(parcel) = parcel.filter(|_| !path.exists()) {
                    let part = folder.join(format!(".{}.part", std::process::id()));
                    fs_err::copy(&parcel.path, &part)?;
                    fs_err::File::open(&part)?.sync_all()?;
                    fs_err::rename(&part, &path)?;
                }
                spec.path.clone_from(&path);
                of_plan.push(path);
            }
            if of_plan.is_empty() {
                return Ok(());
            }
            let mut kept: Vec<_> = fs_err::read_dir(&folder)?
                .filter_map(|entry| {
                    let entry = entry.ok()?;
                    Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
                })
                .filter(|(_, other)| !of_plan.iter().any(|path| other == path.as_std_path()))
                .collect();
            kept.sort();
            let surplus = kept.len().saturating_sub(2);
            for (_, old) in kept.into_iter().take(surplus) {
                fs_err::remove_file(old)?;
            }
            Ok(())
        };
        keep().map_err(|error| {
            Failure::refused(format_args!("keep the package for a resume: {error}"))
        })
    }

    /// Where a new run is written down. Its name begins with the time, so that names sort by age.
    pub(crate) fn new_run_folder(&self, context: &Context) -> Result<Utf8PathBuf, Failure> {
        let runs = self.cluster.runs_dir();
        fs_err::create_dir_all(&runs).map_err(|error| {
            Failure::refused(format_args!("make a folder for the run: {error}"))
        })?;
        Ok(runs.join(context.clock.now().strftime("%Y%m%dT%H%M%S%3fZ").to_string()))
    }

    /// The folder of a run by its id.
    pub(crate) fn run_folder(&self, id: &str) -> Result<Utf8PathBuf, Failure> {
        let ids = self.cluster.runs().map_err(state_failure)?;
        if ids.iter().any(|known| known == id) {
            return Ok(self.cluster.runs_dir().join(id));
        }
        Err(Failure::refused(format_args!("{} has no run {id}", self.name))
            .hint(format_args!("`dmup runs {}` lists all runs", self.name)))
    }

    /// All runs, oldest first, with what their journals add up to.
    pub(crate) fn runs(&self) -> Result<Vec<PastRun>, Failure> {
        let ids = self.cluster.runs().map_err(state_failure)?;
        Ok(ids
            .into_iter()
            .map(|id| {
                let path = self.cluster.runs_dir().join(&id);
                let read = || -> Result<(Plan, Folded), String> {
                    let folder = RunFolder::at(&path);
                    let plan = folder.plan().map_err(|error| chain(&error))?;
                    let (_, lines) = folder.journal().map_err(|error| chain(&error))?;
                    let folded = fold(lines.iter().map(|line| &line.entry))
                        .map_err(|error| chain(&error))?;
                    Ok((plan, folded))
                };
                PastRun { content: read(), id, path: path.clone() }
            })
            .collect())
    }

    /// Runs that can go on, oldest first.
    pub(crate) fn unfinished_runs(&self) -> Result<Vec<PastRun>, Failure> {
        Ok(self.runs()?.into_iter().filter(PastRun::can_go_on).collect())
    }

    /// A new hotfix must not begin on top of half of another.
    pub(crate) fn refuse_unfinished_runs(&self) -> Result<(), Failure> {
        let Some(run) =
            self.runs()?.into_iter().find(|run| run.can_go_on() && run.touched_a_node())
        else {
            return Ok(());
        };
        let refusal =
            Failure::refused(format_args!("run {} of {} has not ended", run.id, self.name));
        let hints = run.kind().map(|kind| how_to_go_on(kind, &self.name));
        Err(hints.into_iter().fold(refusal, Failure::hint))
    }

    /// The build that the last run left on each instance, as long as the cluster has the version that it had then.
    pub(crate) fn recorded_builds(&self) -> Result<BTreeMap<InstanceId, RecordedBuild>, Failure> {
        let mut latest = BTreeMap::new();
        for run in self.runs()?.iter().rev() {
            let Ok((plan, folded)) = &run.content else { continue };
            for turn in plan.turns.iter().filter(|turn| turn.from != turn.to) {
                let is_open = folded.open.iter().any(|it| it.instance == turn.instance);
                let left = match folded.ended.get(&turn.instance) {
                    _ if is_open => None,
                    Some(TurnEnd::Changed) => Some((&turn.to, turn.patched)),
                    Some(TurnEnd::Left) => None,
                    Some(TurnEnd::RolledBack | TurnEnd::Untouched) | None => continue,
                };
                // The newest run that touched it has the word, also when it cannot say.
                latest.entry(turn.instance.clone()).or_insert_with(|| {
                    left.filter(|_| *plan.version_after() == self.meta.version)
                        .map(|(build, patched)| RecordedBuild { build: build.clone(), patched })
                });
            }
        }
        Ok(latest.into_iter().filter_map(|(id, left)| Some((id, left?))).collect())
    }

    /// What an instance had before its last hotfix or upgrade, and the run that brought what it has now.
    ///
    /// By the runs' journals, and only if what lies on the host is what they say: a tree that
    /// somebody else exchanged since is not ours to put back.
    pub(crate) fn before<'a>(
        runs: &'a [PastRun],
        instance: &InstanceId,
        inventory: &Inventory,
    ) -> Option<(&'a PastRun, Before<'a>)> {
        let on_disk = inventory.processes.get(instance).and_then(|it| it.on_disk.as_ref());
        let newest_first = runs.iter().rev().filter_map(|run| run.content.as_ref().ok());
        let folded = newest_first.map(|(plan, folded)| (plan, folded));
        let before = build_before(folded, instance, on_disk)?;
        let is_it = |run: &&PastRun| {
            run.content.as_ref().is_ok_and(|(plan, _)| std::ptr::eq(plan, before.plan))
        };
        Some((runs.iter().find(is_it)?, before))
    }
}

fn machine_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// A run of the past.
pub(crate) struct PastRun {
    pub(crate) id: String,
    pub(crate) path: Utf8PathBuf,
    pub(crate) content: Result<(Plan, Folded), String>,
}

impl PastRun {
    /// What it is for; none if it cannot be read.
    pub(crate) fn kind(&self) -> Option<PlanKind> {
        self.content.as_ref().ok().map(|(plan, _)| plan.kind)
    }

    pub(crate) fn can_go_on(&self) -> bool {
        match &self.content {
            Ok((_, folded)) => match &folded.state {
                RunState::Ended { end } => end.can_go_on(),
                RunState::Ready | RunState::InDoubt { .. } | RunState::Stopped { .. } => true,
            },
            Err(_) => false,
        }
    }

    /// Whether a node's turn has begun: before that, a run only sent files and is in nobody's way.
    pub(crate) fn touched_a_node(&self) -> bool {
        self.content
            .as_ref()
            .is_ok_and(|(_, folded)| !folded.open.is_empty() || !folded.ended.is_empty())
    }
}

/// Instances that run a hotfix without being marked, and its build.
pub(crate) type Unmarked = Vec<(InstanceId, Digest)>;

/// Writes `patched` into `meta.yaml`.
pub(crate) struct MetaRecords {
    cluster: Cluster,
    run: Option<RunFolder>,
}

impl Records for MetaRecords {
    fn mark(&self, instance: &InstanceId, _build: &Digest, patched: bool) -> Result<(), String> {
        let mut meta = self.cluster.meta().map_err(|error| chain(&error))?;
        let before = meta.render();
        meta.topology.mark_patched(&[instance.as_str()], patched);
        if meta.render() == before {
            return Ok(());
        }
        self.cluster.save_meta(&meta, &jiff::Zoned::now()).map_err(|error| chain(&error))
    }

    fn texts(&self, digest: &Digest) -> Result<Texts, String> {
        let Some(run) = &self.run else {
            return Err(format!("no run keeps the files {digest}"));
        };
        run.texts(digest).map_err(|error| chain(&error))
    }
}

/// The machine's clocks.
pub(crate) struct SystemClock(Instant);

#[async_trait]
impl Clock for SystemClock {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::now()
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    async fn sleep(&self, span: Duration) {
        tokio::time::sleep(span).await;
    }
}

/// A folder that goes away with its owner.
pub(crate) struct Scratch(Utf8PathBuf);

impl Scratch {
    fn new(parent: &Utf8Path) -> Result<Self, Failure> {
        // A command may need several, and each goes away by itself.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("{}-{number}", std::process::id()));
        fs_err::create_dir_all(&path)
            .map_err(|error| Failure::refused(format_args!("make a scratch folder: {error}")))?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Utf8Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs_err::remove_dir_all(&self.0));
        // Only if nobody else works there.
        if let Some(parent) = self.0.parent() {
            drop(fs_err::remove_dir(parent));
        }
    }
}

/// A certificate or a key.
fn read_small(path: &Utf8Path) -> Result<Vec<u8>, std::io::Error> {
    const LONGEST: u64 = 1 << 20;
    let mut bytes = Vec::new();
    let mut file = fs_err::File::open(path)?.take(LONGEST + 1);
    file.read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST {
        return Err(std::io::Error::other(format!("it has more than {LONGEST} bytes")));
    }
    Ok(bytes)
}

pub(crate) fn checked_name(name: &str) -> Result<ClusterName, Failure> {
    ClusterName::new(name).map_err(|bad| Failure::new(Kind::Usage, bad))
}

pub(crate) fn checked_user(name: &str) -> Result<UserName, Failure> {
    UserName::new(name).map_err(|bad| Failure::new(Kind::Usage, bad))
}

/// State that cannot be read or is in the way: nothing was touched.
pub(crate) fn state_failure(error: StateError) -> Failure {
    let failure = Failure::refused(chain(&error));
    match error {
        StateError::BadMeta { path, text, error } => {
            let backups = path.parent().map(|dir| dir.join("backup")).unwrap_or_default();
            crate::pointing::at(&failure.error, path.as_str(), &text, &error)
                .hint(format_args!("earlier records are in {backups}"))
        }
        StateError::ClusterExists { .. } => {
            failure.hint("choose another name, or destroy that cluster first")
        }
        StateError::Locked { .. } => {
            failure.hint("wait for its end; the lock goes away with its process")
        }
        StateError::ScaleOutPending { .. } => failure.hint(
            "finish it with `tiup dm scale-out`, or remove the file and take off with `scale-in` what was never started",
        ),
        StateError::NoCluster { .. } => failure.hint("`dmup list` shows all clusters"),
        StateError::BadFile { .. } | StateError::System { .. } => failure,
    }
}

/// The record could not be written after hosts were changed.
pub(crate) fn unrecorded(error: StateError) -> Failure {
    Failure { kind: Kind::Failed, ..state_failure(error) }
}

pub(crate) fn bad_selection(bad: &BadSelection) -> Failure {
    let failure = Failure::refused(bad);
    match bad {
        BadSelection::UnknownNodes { known, .. } => {
            let known: Vec<&str> = known.iter().map(InstanceId::as_str).collect();
            failure.hint(format_args!("known nodes: {}", known.join(", ")))
        }
        BadSelection::UnknownRoles { .. } | BadSelection::Empty { .. } => failure,
    }
}
