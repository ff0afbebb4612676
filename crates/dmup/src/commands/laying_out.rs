//! What `deploy` and `scale-out` share: logging in, meeting hosts, packages, the look before, and laying instances out.
//!
//! In: a topology whose dirs are absolute, and who may log in. Out: folders, binaries,
//! units, run scripts and configurations on hosts; nothing is started, nothing recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::config_check::ConfigTool;
use dmup_core::digest::Digest;
use dmup_core::display::table_text;
use dmup_core::exporters::Exporters;
use dmup_core::ids::{ClusterName, HostId, UnitName, UserName};
use dmup_core::instance::{Instance, Role};
use dmup_core::layout::{self, Deployment, PlacedDir, PlacedFile};
use dmup_core::preflight::{self, Finding, Found, Owner, Planned, Weight};
use dmup_core::systemd::SystemdMode;
use dmup_core::texts::Texts;
use dmup_core::topology::{Neighbour, Topology};
use dmup_core::version::DmVersion;
use dmup_exec::ports::{
    Around, Build, CheckOrder, Checked, EffectError, Hosts, Parcel, Tree, WindowOrder,
};
use dmup_mirror::mirror::Version;
use dmup_mirror::package::{self, ComponentPackage, Package, Wanted, component_package};
use dmup_remote::hosts::{probe_instance, store};
use dmup_remote::ssh::ReachError;
use dmup_remote::{Fleet, HostAddress, Login};
use dmup_state::Cluster;
use dmup_wire::message::{EnsureUser, MakeDir, Probe, PutFile, UnitAction};
use futures::future::join_all;

use super::obtaining::Obtaining;
use super::own_files::OwnFiles;
use crate::args::LoginArgs;
use crate::ask;
use crate::context::{Context, checked_user, state_failure};
use crate::failure::{Failure, chain};
use crate::progress::Progress;

/// A topology file as text.
pub(crate) fn read_text(path: &Utf8Path) -> Result<String, Failure> {
    const LONGEST: u64 = 4 << 20;
    let refused = |why: String| Failure::refused(format_args!("read the topology {path}: {why}"));
    let length = path.metadata().map_err(|error| refused(error.to_string()))?.len();
    if length > LONGEST {
        return Err(refused(format!("it has {length} bytes, {LONGEST} are allowed")));
    }
    fs_err::read_to_string(path).map_err(|error| refused(error.to_string()))
}

/// What keeps hosts from being laid out, gathered until all is looked at, and what helps.
#[derive(Default)]
pub(crate) struct Obstacles {
    found: Vec<String>,
    hints: BTreeSet<String>,
}

impl Obstacles {
    pub(crate) fn add(&mut self, found: impl IntoIterator<Item = String>) {
        self.found.extend(found);
    }

    /// All of them, for whoever can do without what they are about.
    pub(crate) fn into_found(self) -> Vec<String> {
        self.found
    }

    /// Tells what should be known, and keeps what is in the way.
    pub(crate) fn add_findings(&mut self, findings: Vec<Finding>, context: &Context) {
        for finding in findings {
            match finding.weight {
                Weight::InTheWay => self.found.push(finding.text),
                Weight::ToKnow => context.printer.aside(format_args!("note: {}", finding.text)),
            }
        }
    }

    /// Refuses with all of them; `what` is told how many there are.
    pub(crate) fn refuse(self, what: impl FnOnce(usize) -> String) -> Result<(), Failure> {
        if self.found.is_empty() {
            return Ok(());
        }
        let failure = Failure::refused(what(self.found.len())).because(self.found);
        Err(self.hints.into_iter().fold(failure, Failure::hint))
    }
}

/// Says hello to every host, and notes its platform in the topology. Returns those that do not answer.
pub(crate) async fn meet(
    fleet: &Fleet,
    hosts: &[HostAddress],
    topology: &mut Topology,
    obstacles: &mut Obstacles,
) -> BTreeSet<HostId> {
    let hellos = fleet.connect_all().await;
    let mut silent = BTreeSet::new();
    for (host, hello) in &hellos {
        match hello {
            Ok(hello) => topology.set_platform(host.as_str(), &hello.os, &hello.arch),
            Err(error) => {
                obstacles.hints.extend(hint_of(error).map(str::to_owned));
                obstacles.found.push(error.to_string());
                silent.insert(host.clone());
            }
        }
    }
    // `manage_host`: the address of sshd is the key of the platform.
    for address in hosts {
        if let Some(Ok(hello)) = hellos.get(&address.id) {
            topology.set_platform(address.ssh_host.as_str(), &hello.os, &hello.arch);
        }
    }
    silent
}

/// Ports and folders of other clusters on the same hosts.
pub(crate) fn refuse_conflicts(
    topology: &Topology,
    path: &Utf8Path,
    own: Option<&ClusterName>,
    context: &Context,
) -> Result<(), Failure> {
    let others = context.profile.clusters().map_err(state_failure)?;
    let neighbours: Vec<Neighbour<'_>> = others
        .iter()
        .filter(|it| Some(it.cluster.name()) != own)
        .filter_map(|it| {
            let meta = it.meta.as_ref().ok()?;
            Some(Neighbour { cluster: it.cluster.name().as_str(), topology: &meta.topology })
        })
        .collect();
    topology
        .check_beside(&neighbours)
        .map_err(|error| Failure::refused(format_args!("{path}: {error}")))
}

/// Who logs in on new hosts.
pub(crate) fn login(args: &LoginArgs, context: &Context) -> Result<Login, Failure> {
    let user = checked_user(args.user.as_deref().unwrap_or(&context.surroundings.user))?;
    let is_local = context.global.ssh == Some(crate::args::SshKind::None);
    let auth = context.proofs(args.password, "SSH password: ", args.identity_file.as_deref())?;
    if auth.is_empty() && !is_local {
        return Err(Failure::refused("there is nothing to log in with")
            .hint("name a key with -i, start an ssh-agent, or use -p for a password"));
    }
    Ok(Login { user, auth })
}

/// What to look at when the host in between is the problem.
pub(crate) const HOW_TO_GO_THROUGH: &str = "`--ssh-proxy-host`, `-user`, `-port`, `-identity-file` and `-use-password` say how the host in between is entered";

fn hint_of(error: &ReachError) -> Option<&'static str> {
    match error {
        ReachError::Between { .. } => Some(HOW_TO_GO_THROUGH),
        ReachError::ChangedHostKey { .. } => Some(
            "find out why before anything else: reinstalled, or somebody in between? then take the old line out of the file",
        ),
        ReachError::Auth { .. } => Some("`-u`, `-i` and `-p` say who logs in and how"),
        ReachError::UnknownHostKey(_)
        | ReachError::Resolve { .. }
        | ReachError::Connect { .. }
        | ReachError::RevokedHostKey { .. }
        | ReachError::KnownHosts(_)
        | ReachError::Channel { .. }
        | ReachError::SystemSsh { .. }
        | ReachError::Superseded { .. }
        | ReachError::Bootstrap { .. } => None,
    }
}

/// The official packages, by component and architecture.
pub(crate) type Packages = BTreeMap<(Role, String), ComponentPackage>;

/// One package per component and architecture, all obtained, opened and checked before anything is sent. A host that did
/// not answer may have any architecture: what is needed there is left out, unless the topology says.
pub(crate) async fn open_packages(
    instances: &[Instance],
    pairs: &[Exporters],
    version: &DmVersion,
    scratch: &Utf8Path,
    progress: &Progress,
    mut obtaining: Obtaining<'_>,
    obstacles: &mut Obstacles,
) -> Packages {
    let mut needed: BTreeMap<(Role, String, String), (Version, BTreeSet<&HostId>)> =
        BTreeMap::new();
    for instance in instances.iter().filter(|it| !it.arch.is_empty()) {
        let package = (instance.role, instance.os.clone(), instance.arch.clone());
        let wanted = || (Version::Exact(version.clone()), BTreeSet::new());
        needed.entry(package).or_insert_with(wanted).1.insert(&instance.host);
    }
    let mut wrong = BTreeSet::new();
    for pair in pairs.iter().filter(|it| !it.arch.is_empty()) {
        for exporter in &pair.both {
            let version = if exporter.version.is_empty() {
                Version::Newest
            } else {
                match exporter.version.parse() {
                    Ok(version) => Version::Exact(version),
                    Err(bad) => {
                        wrong
                            .insert(format!("monitored.{}_version: {bad}", exporter.instance.role));
                        continue;
                    }
                }
            };
            let package = (exporter.instance.role, pair.os.clone(), pair.arch.clone());
            let wanted = || (version, BTreeSet::new());
            needed.entry(package).or_insert_with(wanted).1.insert(&pair.host);
        }
    }
    let mut packages = Packages::new();
    for ((component, os, arch), (version, hosts)) in needed {
        let path = match obtaining.package(component, version, &os, &arch, progress).await {
            Ok(path) => path,
            Err(why) => {
                let hosts: Vec<&str> = hosts.iter().map(|it| it.as_str()).collect();
                wrong.insert(format!("{why} (needed on {})", hosts.join(", ")));
                continue;
            }
        };
        match component_package(&path, component, &arch, scratch) {
            Ok(package) => {
                packages.insert((component, arch), package);
            }
            Err(error) => {
                wrong.insert(chain(&error));
            }
        }
    }
    obtaining.say_warnings();
    if !wrong.is_empty() {
        obstacles.add(wrong);
        obstacles.hints.append(&mut obtaining.hints);
        // A mirror that has answered is not short of a file: it is asked for what it does not have.
        if obtaining.is_short_of_files {
            obstacles.hints.insert(format!(
                "put official packages into {}, named <component>-<version>-<os>-<arch>.tar.gz",
                obtaining.context.profile.root().join("packages")
            ));
        }
    }
    packages
}

/// What `patch --overwrite` kept for the components of these instances.
pub(crate) type Hotfixes = BTreeMap<Role, Package>;

/// Opens the kept hotfixes that new instances need.
pub(crate) fn open_hotfixes(
    cluster: &Cluster,
    instances: &[Instance],
    scratch: &Utf8Path,
) -> Result<Hotfixes, Failure> {
    let mut wanted: BTreeMap<Role, BTreeSet<String>> = BTreeMap::new();
    for instance in instances {
        wanted.entry(instance.role).or_default().insert(instance.arch.clone());
    }
    let mut hotfixes = Hotfixes::new();
    for (role, arches) in wanted {
        let Some(path) = cluster.kept_package(role.as_str()) else { continue };
        let hotfix = package::open(&path, &Wanted::from([(role, arches)]), scratch)
            .map_err(|error| Failure::refused(chain(&error)).hint("`patch --overwrite` kept it"))?;
        hotfixes.insert(role, hotfix);
    }
    Ok(hotfixes)
}

/// Whose systemd is meant where somebody logs in to lay out: whoever is not the deploy user comes to make one, which is
/// root's work.
pub(crate) fn systemd_mode_of(
    login: &UserName,
    user: &UserName,
    topology: &Topology,
) -> SystemdMode {
    if login == user { topology.systemd_mode() } else { SystemdMode::System }
}

/// What a look before laying out has to know of the cluster.
#[derive(Clone, Copy)]
pub(crate) struct Site<'a> {
    /// Who the instances will belong to.
    pub(crate) owner: Owner<'a>,
    /// No systemd is wanted.
    pub(crate) is_playground: bool,
    /// Masters join others that run, and exporters that the cluster has left on a host are taken over.
    pub(crate) joins: bool,
}

/// What a look before laying out has found.
#[derive(Default)]
pub(crate) struct Looked {
    pub(crate) findings: Vec<Finding>,
    /// Where exporters of this cluster are left.
    pub(crate) left: BTreeSet<HostId>,
}

impl Looked {
    pub(crate) fn extend(&mut self, other: Self) {
        self.findings.extend(other.findings);
        self.left.extend(other.left);
    }
}

/// Everything that would be in the way on the hosts, and what should be known. Changes nothing. Hosts that did not
/// answer have been told already.
pub(crate) async fn look(
    fleet: &Fleet,
    instances: &[Instance],
    pairs: &[Exporters],
    packages: &Packages,
    silent: &BTreeSet<HostId>,
    site: Site<'_>,
) -> Looked {
    let mut by_host: BTreeMap<HostId, Vec<Planned<'_>>> = BTreeMap::new();
    let bytes_of = |component: Role, arch: &str| {
        packages.get(&(component, arch.to_owned())).map_or(0, |it| it.parcel.unpacked_bytes)
    };
    for instance in instances {
        let package_bytes = bytes_of(instance.role, &instance.arch);
        let planned = Planned::Instance { instance, package_bytes, joins: site.joins };
        by_host.entry(instance.host.clone()).or_default().push(planned);
    }
    for pair in pairs {
        let kinds = pair.both.iter().map(|it| it.instance.role);
        let package_bytes = kinds.map(|it| bytes_of(it, &pair.arch)).sum();
        let planned = Planned::Exporters { pair, package_bytes };
        by_host.entry(pair.host.clone()).or_default().push(planned);
    }
    by_host.retain(|host, _| !silent.contains(host));
    let in_the_way = |text: String| Finding { weight: Weight::InTheWay, text };
    let looks = by_host.iter().map(|(host, own)| async move {
        let mut looked = Looked::default();
        let rights = fleet.check_rights(host).await;
        if let Err(error) = &rights {
            looked.findings.push(in_the_way(match fleet.systemd_mode() {
                SystemdMode::System => format!(
                    "{error}: log in as root, or as somebody with NOPASSWD in /etc/sudoers.d"
                ),
                SystemdMode::User => error.to_string(),
            }));
        }
        match found_on(fleet, host, own, site, rights.is_ok()).await {
            Ok(found) => looked.extend(found),
            Err(error) => looked.findings.push(in_the_way(error)),
        }
        looked
    });
    let mut all = Looked::default();
    for looked in join_all(looks).await {
        all.extend(looked);
    }
    all
}

async fn found_on(
    fleet: &Fleet,
    host: &HostId,
    own: &[Planned<'_>],
    site: Site<'_>,
    has_rights: bool,
) -> Result<Looked, String> {
    let Owner { user, systemd } = site.owner;
    let hello = fleet.hello(host).await.map_err(|error| error.to_string())?;
    // Without systemd nobody can be asked about units; that it is missing is found anyway.
    let has_units = match systemd {
        SystemdMode::System => site.is_playground || hello.systemd.is_some(),
        // Nobody else can ask a user's systemd, and it may not run yet.
        SystemdMode::User => hello.systemd_mode == systemd && has_rights,
    };
    let instances = own.iter().flat_map(|it| match it {
        Planned::Instance { instance, .. } => vec![*instance],
        Planned::Exporters { pair, .. } => pair.both.iter().map(|it| &it.instance).collect(),
    });
    // Most of a host have the same folders above them, and a look has room for so many.
    let mut paths: BTreeSet<Utf8PathBuf> = own.iter().flat_map(|it| it.paths(site.owner)).collect();
    paths.extend([preflight::BOOTED].iter().chain(&preflight::TOOLS).map(Utf8PathBuf::from));
    let probe = Probe {
        instances: instances.filter(|_| has_units).map(probe_instance).collect(),
        ports: own.iter().flat_map(Planned::ports).collect(),
        disks: own.iter().flat_map(Planned::disks).collect(),
        paths: paths.into_iter().collect(),
        users: vec![user.clone()],
        ..Probe::default()
    };
    let asked_at_ms = jiff::Timestamp::now().as_millisecond();
    let seen = fleet.probe(host, probe).await.map_err(|error| error.to_string())?;
    let mut pairs = own.iter().filter_map(|it| match it {
        Planned::Exporters { pair, .. } => Some(*pair),
        Planned::Instance { .. } => None,
    });
    // A machine has one.
    let pair = pairs.next().filter(|_| site.joins);
    let mut unit_files = Vec::new();
    for exporter in pair.iter().flat_map(|it| &it.both) {
        let file = &exporter.unit_file;
        let text = fleet.get(host, file).await.map_err(|error| error.to_string())?;
        unit_files.extend(text.map(|text| (file.clone(), text)));
    }
    let found = Found {
        host,
        os: &hello.os,
        systemd: hello.systemd,
        is_playground: site.is_playground,
        clock_skew_ms: seen.clock_ms - asked_at_ms,
        listening: &seen.listening,
        paths: &seen.existing,
        disks: &seen.disks,
        units: &seen.processes,
        unit_files: &unit_files,
        has_user: !seen.users.is_empty(),
        has_root: hello.systemd_mode == SystemdMode::System,
    };
    let is_left = |it: &&Exporters| preflight::are_left(&found, it, site.owner);
    let left = pair.filter(is_left).map(|it| it.host.clone());
    let findings = preflight::judge(&found, own, site.owner);
    Ok(Looked { findings, left: left.into_iter().collect() })
}

/// Shows the new instances and asks.
pub(crate) fn agree(
    name: &ClusterName,
    version: &DmVersion,
    topology: &Topology,
    instances: &[Instance],
    context: &Context,
) -> Result<(), Failure> {
    let rows: Vec<Vec<String>> = instances
        .iter()
        .map(|it| {
            let mut dirs = vec![it.deploy_dir.to_string()];
            dirs.extend(it.data_dirs.iter().map(ToString::to_string));
            vec![
                format!("{}{}", it.role, if it.patched { " (patched)" } else { "" }),
                it.host.to_string(),
                topology.ports_text(it),
                format!("{}/{}", it.os, it.arch),
                dirs.join(","),
            ]
        })
        .collect();
    context.printer.talk("Please confirm your topology:");
    context.printer.talk(format_args!(
        "Cluster type:    dm\nCluster name:    {name}\nCluster version: {version}"
    ));
    context
        .printer
        .talk(table_text(&["Role", "Host", "Ports", "OS/Arch", "Directories"], &rows).trim_end());
    if context.global.yes || context.global.format == crate::args::Format::Json {
        return Ok(());
    }
    ask::confirm("Attention: make sure that no other cluster uses these ports and directories.")
}

/// User, key, and the right to use sudo or to linger.
pub(crate) async fn prepare_hosts(
    fleet: &Fleet,
    topology: &Topology,
    user: &UserName,
    login: &UserName,
    public_key: &str,
) -> Result<(), Failure> {
    let group = Some(topology.global.group.as_str()).filter(|group| !group.is_empty());
    let group = group.map_or_else(|| Ok(user.clone()), checked_user)?;
    let hosts: Vec<HostId> = fleet.hosts().cloned().collect();
    let work = hosts.iter().map(|host| {
        let order = EnsureUser {
            user: user.clone(),
            group: group.clone(),
            public_key: public_key.to_owned(),
            // Who logs in as the deploy user has its rights already (TiUP's rule).
            sudo: user != login && topology.systemd_mode() == SystemdMode::System,
            linger: user != login && topology.systemd_mode() == SystemdMode::User,
        };
        fleet.ensure_user(host, order)
    });
    all_or_failure("prepare the hosts", join_all(work).await).map_err(|failure| {
        let now = format!(
            "nothing is laid out and nothing recorded; on hosts that are not named here {user} has its key, on the others perhaps"
        );
        failure.now(now).hint(AGAIN)
    })
}

/// What is begun anew finds what was made already, and goes on.
const AGAIN: &str = "give the same command again after the cause is gone";

/// What is laid out as one.
enum Part {
    Instance(Box<Instance>),
    Exporters(Box<Exporters>),
}

/// What lies on a host of one part.
pub(crate) struct Laid {
    part: Part,
    unit_files: Vec<Utf8PathBuf>,
    dirs: Vec<MakeDir>,
    files: Vec<PutFile>,
    /// The operator's own dashboards, with which DM's are not wanted.
    has_dashboards: bool,
}

impl Laid {
    /// The instance whose files these are; none for exporters.
    pub(crate) fn instance(&self) -> Option<&Instance> {
        match &self.part {
            Part::Instance(instance) => Some(instance),
            Part::Exporters(_) => None,
        }
    }

    /// All files of it, but for what packages bring.
    pub(crate) fn files(&self) -> &[PutFile] {
        &self.files
    }

    fn host(&self) -> &HostId {
        match &self.part {
            Part::Instance(instance) => &instance.host,
            Part::Exporters(pair) => &pair.host,
        }
    }

    fn units(&self) -> Vec<UnitName> {
        match &self.part {
            Part::Instance(instance) => vec![instance.unit.clone()],
            Part::Exporters(pair) => pair.both.iter().map(|it| it.instance.unit.clone()).collect(),
        }
    }

    fn bin_dir(&self) -> Utf8PathBuf {
        match &self.part {
            Part::Instance(instance) => instance.bin_dir(),
            Part::Exporters(pair) => pair.bin_dir(),
        }
    }

    /// The packages whose files go into `bin`.
    fn packages(&self) -> Vec<(Role, String)> {
        match &self.part {
            Part::Instance(instance) => vec![(instance.role, instance.arch.clone())],
            Part::Exporters(pair) => {
                pair.both.iter().map(|it| (it.instance.role, pair.arch.clone())).collect()
            }
        }
    }
}

/// Renders everything that will lie on hosts; a setting that makes no sense shows here, before anything is touched.
pub(crate) fn render(
    deployment: &Deployment<'_>,
    instances: &[Instance],
    pairs: &[Exporters],
) -> Result<Vec<Laid>, Failure> {
    let mut laid = instances
        .iter()
        .map(|instance| render_instance(deployment, instance))
        .collect::<Result<Vec<_>, _>>()?;
    for pair in pairs {
        let mut files = Vec::new();
        for exporter in &pair.both {
            files.extend(files_of(deployment, &exporter.instance)?);
        }
        let dirs = layout::exporter_directories(deployment, pair).into_iter().map(make).collect();
        laid.push(Laid {
            part: Part::Exporters(Box::new(pair.clone())),
            unit_files: pair.both.iter().map(|it| it.unit_file.clone()).collect(),
            dirs,
            files,
            has_dashboards: false,
        });
    }
    Ok(laid)
}

fn render_instance(deployment: &Deployment<'_>, instance: &Instance) -> Result<Laid, Failure> {
    let own = OwnFiles::read(deployment.cluster, deployment.topology, instance)?;
    let rule_names = own.rule_names();
    let deployment = &Deployment {
        rule_files: &rule_names,
        alertmanager_config: own.alertmanager.as_deref(),
        ..*deployment
    };
    let dirs = layout::directories(deployment, instance).into_iter().map(make).collect();
    let mut files = files_of(deployment, instance)?;
    let has_dashboards = own.dashboards.is_some();
    files.extend(
        own.rules
            .into_iter()
            .map(|(name, text)| small_file(instance.deploy_dir.join("conf").join(name), text)),
    );
    files.extend(
        own.dashboards.into_iter().flatten().map(|(name, text)| {
            small_file(instance.deploy_dir.join("dashboards").join(name), text)
        }),
    );
    let unit_files = vec![deployment.topology.unit_path(&instance.unit)];
    Ok(Laid {
        part: Part::Instance(Box::new(instance.clone())),
        unit_files,
        dirs,
        files,
        has_dashboards,
    })
}

fn files_of(deployment: &Deployment<'_>, instance: &Instance) -> Result<Vec<PutFile>, Failure> {
    let files = layout::files(deployment, instance).map_err(|bad| {
        Failure::refused(format_args!("render the configuration of {}", instance.id))
            .because([chain(&bad)])
    })?;
    Ok(files.into_iter().map(put).collect())
}

/// Adds the alert rules and dashboards that DM's own package brings, as TiUP does.
pub(crate) fn add_monitoring(laid: &mut [Laid], packages: &Packages, cluster: &ClusterName) {
    let Some(package) = packages
        .iter()
        .find_map(|((component, _), it)| (*component == Role::DmMaster).then_some(it))
    else {
        return;
    };
    for part in laid {
        let Part::Instance(instance) = &part.part else { continue };
        let (below, folder) = match instance.role {
            Role::Prometheus => ("dm-master/conf", "conf"),
            Role::Grafana => ("dm-master/scripts", "dashboards"),
            Role::DmMaster
            | Role::DmWorker
            | Role::Alertmanager
            | Role::NodeExporter
            | Role::BlackboxExporter => continue,
        };
        for (entry, text) in &package.texts {
            let (Some(parent), Some(name)) = (entry.parent(), entry.file_name()) else { continue };
            let path = instance.deploy_dir.join(folder).join(name);
            // The operator's own come first.
            let is_own = part.has_dashboards || part.files.iter().any(|file| file.path == path);
            if parent != below || is_own {
                continue;
            }
            let content = if instance.role == Role::Prometheus {
                layout::rules_for(cluster, text)
            } else {
                layout::dashboard_for(cluster, text)
            };
            part.files.push(small_file(path, content));
        }
    }
}

/// Gives every part a certificate and a key of its own, signed by the cluster's authority, which is made if there
/// is none yet. A copy stays on the hosts alone.
pub(crate) fn add_certificates(laid: &mut [Laid], cluster: &Cluster) -> Result<(), Failure> {
    let now = jiff::Zoned::now();
    let authority = cluster.ensure_authority(&now).map_err(state_failure)?;
    let sign = |component: &str, host: &HostId| {
        authority.sign_for_instance(component, host.as_str(), &now).map_err(Failure::failed)
    };
    let root = authority.certificate();
    for part in laid {
        let files = match &part.part {
            Part::Instance(instance) => {
                let own = sign(instance.role.as_str(), &instance.host)?;
                layout::tls_files(instance, root, &own.certificate, &own.key)
            }
            Part::Exporters(pair) => {
                let own = sign(Role::BlackboxExporter.as_str(), &pair.ssh_host)?;
                layout::exporter_tls_files(pair, root, &own.certificate, &own.key)
            }
        };
        part.files.extend(files.into_iter().map(put));
    }
    Ok(())
}

fn make(dir: PlacedDir) -> MakeDir {
    MakeDir { path: dir.path, mode: dir.mode, owner: Some(dir.owner) }
}

fn put(file: PlacedFile) -> PutFile {
    PutFile {
        path: file.path,
        mode: file.mode,
        root: file.root,
        owner: None,
        content: file.content,
    }
}

fn small_file(path: Utf8PathBuf, content: String) -> PutFile {
    PutFile { path, mode: 0o644, root: false, owner: None, content }
}

/// What lies on hosts once something is laid out, and was not there before: `look` saw to that. Exporters that were left there are
/// none of it: they can be taken over again.
pub(crate) struct Traces(BTreeMap<HostId, (Vec<UnitName>, Vec<Utf8PathBuf>)>);

impl Traces {
    pub(crate) fn of(laid: &[Laid], left: &BTreeSet<HostId>) -> Self {
        let mut by_host = BTreeMap::<_, (Vec<_>, Vec<_>)>::new();
        let is_new = |it: &&Laid| it.instance().is_some() || !left.contains(it.host());
        for part in laid.iter().filter(is_new) {
            let (units, paths) = by_host.entry(part.host().clone()).or_default();
            units.extend(part.units());
            paths.push(part.bin_dir());
            paths.extend(part.unit_files.iter().cloned());
        }
        Self(by_host)
    }

    /// Does what is left until it is recorded. If that breaks off, all of it is taken away again, so that the same command
    /// finds nothing in its way.
    pub(crate) async fn or_take_away(
        self,
        fleet: &Fleet,
        work: impl Future<Output = Result<(), Failure>>,
    ) -> Result<(), Failure> {
        let Err(failure) = work.await else { return Ok(()) };
        let within = Duration::from_secs(30);
        let taken = self.0.into_iter().map(|(host, (units, paths))| async move {
            // Of a unit that is not there yet, systemd knows nothing, and that is well.
            drop(fleet.unit(&host, units, UnitAction::Disable, within).await);
            fleet.remove(&host, paths).await
        });
        let left: Vec<String> = join_all(taken)
            .await
            .into_iter()
            .filter_map(|it| Some(it.err()?.to_string()))
            .collect();
        let now = "nothing of it is recorded and nothing was started";
        let now = if left.is_empty() {
            format!("{now}; units and programs are taken away again, folders stay")
        } else {
            format!("{now}; not taken away again:\n{}", left.join("\n"))
        };
        // What helps a cluster that is there helps nobody here.
        let failure = Failure { hints: Vec::new(), ..failure }.now(now);
        Err(if left.is_empty() {
            failure.hint(AGAIN)
        } else {
            failure.hint("remove that where it lies, then give the same command again")
        })
    }
}

/// Has a configuration judged by the program that the live tree has for it, if these files are part of one. The texts are
/// those of them that are not live yet. Returns what the operator should know.
///
/// # Errors
///
/// [`EffectError`] with that program's words.
pub(crate) async fn check_config(
    fleet: &Fleet,
    instance: &Instance,
    paths: &[Utf8PathBuf],
    texts: Texts,
) -> Result<Option<String>, EffectError> {
    let Some(tool) = ConfigTool::for_files(instance, paths) else { return Ok(None) };
    let checked = fleet.check(instance, &CheckOrder { tool, tree: Tree::Live, texts }).await?;
    Ok(match checked {
        Checked::Fine => None,
        Checked::Unjudged => Some(tool.is_missing_for(&instance.id)),
    })
}

/// Folders, binaries, units, run scripts, configs: host by host, all hosts at once. A hotfix goes over the official
/// binary the way `patch --offline` does it. Where exporters are left, whoever calls has stopped them.
pub(crate) async fn lay_out(
    fleet: &Fleet,
    laid: Vec<Laid>,
    packages: &Packages,
    hotfixes: &Hotfixes,
    context: &Context,
) -> Result<(), Failure> {
    let mut by_host: BTreeMap<HostId, Vec<Laid>> = BTreeMap::new();
    for part in laid {
        by_host.entry(part.host().clone()).or_default().push(part);
    }
    let work = by_host.into_iter().map(|(host, own)| async move {
        for part in own {
            let (needed, bin_dir) = (part.packages(), part.bin_dir());
            fleet.make_dirs(&host, part.dirs).await?;
            let mut from = None;
            for package in needed {
                let official = packages.get(&package).expect("one was opened for every part");
                let parcel = parcel_of(&official.parcel);
                fleet.unpack(&host, &parcel, &bin_dir, None).await?;
                from = Some(&official.binary);
            }
            let paths: Vec<Utf8PathBuf> = part.files.iter().map(|it| it.path.clone()).collect();
            fleet.put(&host, part.files).await?;
            let Part::Instance(instance) = &part.part else { continue };
            if let (Some(hotfix), Some(from)) = (hotfixes.get(&instance.role), from) {
                put_hotfix_over(fleet, instance, from, hotfix).await?;
            }
            // All of it lies there, and nothing reads it yet.
            let nothing_new = Texts::default();
            if let Some(note) = check_config(fleet, instance, &paths, nothing_new).await? {
                context.printer.talk(format_args!("note: {note}"));
            }
        }
        Ok(())
    });
    all_or_failure("lay the instances out", join_all(work).await)
}

fn parcel_of(parcel: &package::Parcel) -> Parcel {
    Parcel {
        path: parcel.path.clone(),
        digest: parcel.digest.clone(),
        compressed_bytes: parcel.compressed_bytes,
        unpacked_bytes: parcel.unpacked_bytes,
    }
}

async fn put_hotfix_over(
    fleet: &Fleet,
    instance: &Instance,
    from: &Digest,
    hotfix: &Package,
) -> Result<(), EffectError> {
    let Some(part) = hotfix.components.get(&instance.role) else { return Ok(()) };
    let parcel = parcel_of(&hotfix.parcel);
    fleet.stage(&instance.host, &parcel).await?;
    let build = Build { digest: part.binary.clone(), replace: part.replace.clone(), keeps: None };
    if *from != build.digest {
        fleet.prepare(instance, &parcel, &build).await?;
        let order = WindowOrder {
            from: from.clone(),
            to: build.digest,
            around: Around::Offline,
            stop_within: Duration::from_secs(10),
            guard: None,
            pid_before: None,
            texts: Texts::default(),
        };
        fleet.switch(instance, &order).await?;
    }
    // Best effort: a copy in the store is only in nobody's way.
    if let Ok(hello) = fleet.hello(&instance.host).await {
        let folder = store(&hello.home).join(parcel.digest.as_str());
        let manifest = Utf8PathBuf::from(format!("{folder}.json"));
        drop(fleet.remove(&instance.host, vec![manifest, folder]).await);
    }
    Ok(())
}

fn all_or_failure(what: &str, results: Vec<Result<(), EffectError>>) -> Result<(), Failure> {
    let failed: Vec<String> =
        results.into_iter().filter_map(|it| it.err().map(|error| error.to_string())).collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::failed(what).because(failed))
}
