//! What `deploy` and `scale-out` share: logging in, meeting hosts, packages, the look before, and laying instances out.
//!
//! In: a topology whose dirs are absolute, and who may log in. Out: folders, binaries,
//! units, run scripts and configurations on hosts; nothing is started, nothing recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::digest::Digest;
use dmup_core::display::table_text;
use dmup_core::ids::{ClusterName, HostId, UserName};
use dmup_core::instance::{Instance, Role};
use dmup_core::layout::{self, Deployment, PlacedFile};
pub(crate) use dmup_core::preflight::unit_path;
use dmup_core::preflight::{self, Finding, Found, Planned, Weight};
use dmup_core::texts::Texts;
use dmup_core::topology::{Neighbour, Topology};
use dmup_core::version::DmVersion;
use dmup_exec::ports::{Around, Build, EffectError, Hosts, Parcel, WindowOrder};
use dmup_mirror::package::{self, ComponentPackage, Package, Wanted, component_package};
use dmup_remote::hosts::{probe_instance, store};
use dmup_remote::login::needs_passphrase;
use dmup_remote::ssh::ReachError;
use dmup_remote::{AuthMethod, Fleet, HostAddress, Login, Secret};
use dmup_state::Cluster;
use dmup_wire::message::{EnsureUser, MakeDir, Probe, PutFile};
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
    let length = fs_err::metadata(path).map_err(|error| refused(error.to_string()))?.len();
    if length > LONGEST {
        return Err(refused(format!("it has {length} bytes, {LONGEST} are allowed")));
    }
    fs_err::read_to_string(path).map_err(|error| refused(error.to_string()))
}

/// Says hello to every host, and notes its platform in the topology.
pub(crate) async fn meet(
    fleet: &Fleet,
    hosts: &[HostAddress],
    topology: &mut Topology,
) -> Result<(), Failure> {
    let hellos = fleet.connect_all().await;
    let mut silent = Vec::new();
    let mut hints = BTreeSet::new();
    for (host, hello) in &hellos {
        match hello {
            Ok(hello) => topology.set_platform(host.as_str(), &hello.os, &hello.arch),
            Err(error) => {
                hints.extend(hint_of(error));
                silent.push(error.to_string());
            }
        }
    }
    if !silent.is_empty() {
        let failure = Failure::refused("not every host can be reached").because(silent);
        return Err(hints.into_iter().fold(failure, Failure::hint));
    }
    // `manage_host`: the address of sshd is the key of the platform.
    for address in hosts {
        if let Some(Ok(hello)) = hellos.get(&address.id) {
            topology.set_platform(address.ssh_host.as_str(), &hello.os, &hello.arch);
        }
    }
    Ok(())
}

/// What a topology may ask for and `tiup dm` lays out, but we do not yet: better refused by name than left out in silence.
pub(crate) fn refuse_unsupported(
    topology: &Topology,
    path: &Utf8Path,
    has_new_hosts: bool,
) -> Result<(), Failure> {
    let mut asked = Vec::new();
    // Once per host: those that the cluster has already have them.
    if topology.monitored.is_some() && has_new_hosts {
        asked.push(
            "`monitored`: node_exporter and blackbox_exporter are not laid out yet".to_owned(),
        );
    }
    if topology.global.systemd_mode == "user" {
        asked.push("`global.systemd_mode: user`: units of users are not handled yet".to_owned());
    }
    if asked.is_empty() {
        return Ok(());
    }
    Err(Failure::refused(format_args!("{path} asks for what dmup cannot lay out yet"))
        .because(asked)
        .hint("leave it out, or use `tiup dm` for this; what it lays out can be patched here"))
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

/// How the operator proves who they are, in TiUP's order: password if asked for, key file, ssh-agent.
pub(crate) fn login(args: &LoginArgs, context: &Context) -> Result<Login, Failure> {
    let user = checked_user(args.user.as_deref().unwrap_or(&context.surroundings.user))?;
    if args.password {
        let password = ask::secret("Input SSH password: ")?;
        return Ok(Login { user, auth: vec![AuthMethod::Password(Secret::new(password))] });
    }
    let path =
        args.identity_file.clone().unwrap_or_else(|| context.surroundings.home.join(".ssh/id_rsa"));
    let mut auth = Vec::new();
    if args.identity_file.is_some() || path.exists() {
        let encrypted = needs_passphrase(&path)
            .map_err(|why| Failure::refused(format_args!("read the identity file: {why}")))?;
        let passphrase = encrypted
            .then(|| ask::secret(&format!("Passphrase of {path}: ")).map(Secret::new))
            .transpose()?;
        auth.push(AuthMethod::KeyFile { path, passphrase });
    }
    if let Some(socket) = &context.surroundings.ssh_agent {
        auth.push(AuthMethod::Agent { socket: socket.clone() });
    }
    let is_local = context.global.ssh == Some(crate::args::SshKind::None);
    if auth.is_empty() && !is_local {
        return Err(Failure::refused("there is nothing to log in with")
            .hint("name a key with -i, start an ssh-agent, or use -p for a password"));
    }
    Ok(Login { user, auth })
}

fn hint_of(error: &ReachError) -> Option<&'static str> {
    match error {
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

/// One package per component and architecture, all obtained, opened and checked before anything is sent.
pub(crate) async fn open_packages(
    instances: &[Instance],
    version: &DmVersion,
    scratch: &Utf8Path,
    progress: &Progress,
    context: &Context,
) -> Result<Packages, Failure> {
    let mut needed: BTreeMap<(Role, String, String), BTreeSet<&HostId>> = BTreeMap::new();
    for instance in instances {
        let package = (instance.role, instance.os.clone(), instance.arch.clone());
        needed.entry(package).or_default().insert(&instance.host);
    }
    let mut obtaining = Obtaining::new(context);
    let mut packages = Packages::new();
    let mut wrong = Vec::new();
    for ((role, os, arch), hosts) in needed {
        let path = match obtaining.package(role, version, &os, &arch, progress).await {
            Ok(path) => path,
            Err(why) => {
                let hosts: Vec<&str> = hosts.iter().map(|it| it.as_str()).collect();
                wrong.push(format!("{why} (needed on {})", hosts.join(", ")));
                continue;
            }
        };
        match component_package(&path, Some(role), &arch, scratch) {
            Ok(package) => {
                packages.insert((role, arch), package);
            }
            Err(error) => wrong.push(chain(&error)),
        }
    }
    obtaining.say_warnings();
    if wrong.is_empty() {
        return Ok(packages);
    }
    let failure = Failure::refused("not every package is there")
        .because(wrong)
        .hint("put the official packages there, named <component>-<version>-<os>-<arch>.tar.gz");
    Err(obtaining.hints.into_iter().fold(failure, Failure::hint))
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

/// What a look before laying out has to know of the cluster.
#[derive(Clone, Copy)]
pub(crate) struct Site<'a> {
    /// Who the instances will belong to.
    pub(crate) user: &'a UserName,
    /// No systemd is wanted.
    pub(crate) is_playground: bool,
    /// Masters join others that run.
    pub(crate) joins: bool,
}

/// Everything that would be in the way on the hosts, and what should be known. Changes nothing.
pub(crate) async fn look(
    fleet: &Fleet,
    instances: &[Instance],
    packages: &Packages,
    site: Site<'_>,
) -> Vec<Finding> {
    let mut by_host: BTreeMap<HostId, Vec<&Instance>> = BTreeMap::new();
    for instance in instances {
        by_host.entry(instance.host.clone()).or_default().push(instance);
    }
    let in_the_way = |text: String| Finding { weight: Weight::InTheWay, text };
    let looks = by_host.iter().map(|(host, own)| async move {
        let mut findings = Vec::new();
        if let Err(error) = fleet.check_sudo(host).await {
            findings.push(in_the_way(format!(
                "{error}: log in as root, or as somebody with NOPASSWD in /etc/sudoers.d"
            )));
        }
        match found_on(fleet, host, own, packages, site).await {
            Ok(found) => findings.extend(found),
            Err(error) => findings.push(in_the_way(error)),
        }
        findings
    });
    join_all(looks).await.into_iter().flatten().collect()
}

async fn found_on(
    fleet: &Fleet,
    host: &HostId,
    own: &[&Instance],
    packages: &Packages,
    site: Site<'_>,
) -> Result<Vec<Finding>, String> {
    let hello = fleet.hello(host).await.map_err(|error| error.to_string())?;
    // Without systemd nobody can be asked about units; that it is missing is found anyway.
    let has_units = site.is_playground || hello.systemd.is_some();
    let units = own.iter().filter(|_| has_units).map(|it| probe_instance(it)).collect();
    let mut paths: Vec<Utf8PathBuf> = own.iter().flat_map(|it| preflight::paths_of(it)).collect();
    paths.extend([preflight::BOOTED].iter().chain(&preflight::TOOLS).map(Utf8PathBuf::from));
    let probe = Probe {
        instances: units,
        ports: own.iter().flat_map(|it| it.ports.iter().copied()).collect(),
        disks: own.iter().map(|it| it.deploy_dir.clone()).collect(),
        paths,
        users: vec![site.user.clone()],
        ..Probe::default()
    };
    let asked_at_ms = jiff::Timestamp::now().as_millisecond();
    let seen = fleet.probe(host, probe).await.map_err(|error| error.to_string())?;
    let planned: Vec<Planned<'_>> = own
        .iter()
        .map(|instance| Planned {
            instance,
            package_bytes: packages
                .get(&(instance.role, instance.arch.clone()))
                .map_or(0, |it| it.parcel.unpacked_bytes),
            joins: site.joins,
        })
        .collect();
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
        has_user: !seen.users.is_empty(),
    };
    Ok(preflight::judge(&found, &planned, site.user))
}

/// Tells what should be known, and returns what is in the way.
pub(crate) fn in_the_way(findings: Vec<Finding>, context: &Context) -> Vec<String> {
    let (stop, know): (Vec<_>, Vec<_>) =
        findings.into_iter().partition(|it| it.weight == Weight::InTheWay);
    for finding in know {
        context.printer.aside(format_args!("note: {}", finding.text));
    }
    stop.into_iter().map(|it| it.text).collect()
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

/// User, key, sudo rights and the folders that instances share.
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
            sudo: user != login,
        };
        fleet.ensure_user(host, order)
    });
    all_or_failure("prepare the hosts", join_all(work).await)
}

/// What lies on hosts of one instance.
pub(crate) struct Laid {
    instance: Instance,
    dirs: Vec<MakeDir>,
    files: Vec<PutFile>,
    /// The operator's own dashboards, with which DM's are not wanted.
    has_dashboards: bool,
}

impl Laid {
    pub(crate) fn instance(&self) -> &Instance {
        &self.instance
    }

    pub(crate) fn files(&self) -> &[PutFile] {
        &self.files
    }
}

/// Renders everything that will lie on hosts; a setting that makes no sense shows here, before anything is touched.
pub(crate) fn render(
    deployment: &Deployment<'_>,
    instances: &[Instance],
) -> Result<Vec<Laid>, Failure> {
    instances
        .iter()
        .map(|instance| {
            let own = OwnFiles::read(deployment.cluster, deployment.topology, instance)?;
            let rule_names = own.rule_names();
            let deployment = &Deployment {
                rule_files: &rule_names,
                alertmanager_config: own.alertmanager.as_deref(),
                ..*deployment
            };
            let dirs = layout::directories(deployment, instance)
                .into_iter()
                .map(|dir| MakeDir { path: dir.path, mode: dir.mode, owner: Some(dir.owner) })
                .collect();
            let mut files: Vec<PutFile> = layout::files(deployment, instance)
                .map_err(|bad| {
                    Failure::refused(format_args!("render the configuration of {}", instance.id))
                        .because([chain(&bad)])
                })?
                .into_iter()
                .map(put)
                .collect();
            let has_dashboards = own.dashboards.is_some();
            files.extend(
                own.rules.into_iter().map(|(name, text)| {
                    small_file(instance.deploy_dir.join("conf").join(name), text)
                }),
            );
            files.extend(own.dashboards.into_iter().flatten().map(|(name, text)| {
                small_file(instance.deploy_dir.join("dashboards").join(name), text)
            }));
            Ok(Laid { instance: instance.clone(), dirs, files, has_dashboards })
        })
        .collect()
}

/// Adds the alert rules and dashboards that DM's own package brings, as TiUP does.
pub(crate) fn add_monitoring(laid: &mut [Laid], packages: &Packages, cluster: &ClusterName) {
    let Some(package) =
        packages.iter().find_map(|((role, _), it)| (*role == Role::DmMaster).then_some(it))
    else {
        return;
    };
    for part in laid {
        let (below, folder) = match part.instance.role {
            Role::Prometheus => ("dm-master/conf", "conf"),
            Role::Grafana => ("dm-master/scripts", "dashboards"),
            Role::DmMaster | Role::DmWorker | Role::Alertmanager => continue,
        };
        for (entry, text) in &package.texts {
            let (Some(parent), Some(name)) = (entry.parent(), entry.file_name()) else { continue };
            let path = part.instance.deploy_dir.join(folder).join(name);
            // The operator's own come first.
            let is_own = part.has_dashboards || part.files.iter().any(|file| file.path == path);
            if parent != below || is_own {
                continue;
            }
            let content = if part.instance.role == Role::Prometheus {
                layout::rules_for(cluster, text)
            } else {
                layout::dashboard_for(cluster, text)
            };
            part.files.push(small_file(path, content));
        }
    }
}

/// Gives every instance a certificate and a key of its own, signed by the cluster's authority, which is made if there
/// is none yet. A copy stays on the hosts alone.
pub(crate) fn add_certificates(laid: &mut [Laid], cluster: &Cluster) -> Result<(), Failure> {
    let now = jiff::Zoned::now();
    let authority = cluster.ensure_authority(&now).map_err(state_failure)?;
    for part in laid {
        let instance = &part.instance;
        let own = authority
            .sign_for_instance(instance.role.as_str(), instance.host.as_str(), &now)
            .map_err(Failure::failed)?;
        part.files.extend(
            layout::tls_files(instance, authority.certificate(), &own.certificate, &own.key)
                .into_iter()
                .map(put),
        );
    }
    Ok(())
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

/// Folders, binaries, units, run scripts, configs: host by host, all hosts at once. A hotfix goes over the official
/// binary the way `patch --offline` does it. What breaks off is taken away again, so that it can be given anew.
pub(crate) async fn lay_out(
    fleet: &Fleet,
    laid: Vec<Laid>,
    packages: &Packages,
    hotfixes: &Hotfixes,
) -> Result<(), Failure> {
    let mut by_host: BTreeMap<HostId, Vec<Laid>> = BTreeMap::new();
    for instance in laid {
        by_host.entry(instance.instance.host.clone()).or_default().push(instance);
    }
    let begun: Vec<(HostId, Vec<Utf8PathBuf>)> = by_host
        .iter()
        .map(|(host, own)| {
            let paths = own.iter().flat_map(|it| [it.instance.bin_dir(), unit_path(&it.instance)]);
            (host.clone(), paths.collect())
        })
        .collect();
    let work = by_host.into_iter().map(|(host, own)| async move {
        for Laid { instance, dirs, files, .. } in own {
            fleet.make_dirs(&host, dirs).await?;
            let official = packages
                .get(&(instance.role, instance.arch.clone()))
                .expect("one was opened for every instance");
            let parcel = parcel_of(&official.parcel);
            fleet.unpack(&host, &parcel, &instance.bin_dir(), None).await?;
            fleet.put(&host, files).await?;
            if let (Some(hotfix), Some(from)) = (hotfixes.get(&instance.role), &official.binary) {
                put_hotfix_over(fleet, &instance, from, hotfix).await?;
            }
        }
        Ok(())
    });
    let done = all_or_failure("lay the instances out", join_all(work).await);
    if done.is_err() {
        // Nothing of this was there before: `look` saw to that.
        join_all(begun.into_iter().map(|(host, paths)| async move {
            drop(fleet.remove(&host, paths).await);
        }))
        .await;
    }
    done
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
    let build = Build { digest: part.binary.clone(), replace: part.replace.clone() };
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
    Err(Failure::failed(what)
        .because(failed)
        .now("nothing of it is recorded and nothing was started; some files may lie on the hosts")
        .hint("give the same command again after the cause is gone"))
}
