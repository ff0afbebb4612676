//! `deploy`: lays a new cluster out on its hosts. Starts nothing.
//!
//! Everything is looked at first, all findings are shown at once, and nothing is
//! touched while there is one. `meta.yaml` is written last, as TiUP does: a
//! deploy that broke off leaves no cluster, and can be given again.

use std::collections::{BTreeMap, BTreeSet};

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::display::table_text;
use dmup_core::ids::{ClusterName, HostId, UserName};
use dmup_core::instance::{Instance, Role};
use dmup_core::layout::{self, Deployment};
use dmup_core::topology::{Meta, Neighbour, Topology};
use dmup_core::version::DmVersion;
use dmup_exec::ports::Parcel;
use dmup_mirror::package::{ComponentPackage, component_package};
use dmup_remote::login::needs_passphrase;
use dmup_remote::ssh::{Reach, ReachError};
use dmup_remote::{AuthMethod, Fleet, HostAddress, Login, Secret};
use dmup_state::Cluster;
use dmup_wire::message::{EnsureUser, MakeDir, Probe, PutFile, UnitAction};
use futures::future::join_all;

use super::units;
use crate::args::DeployArgs;
use crate::ask;
use crate::context::{Context, checked_name, checked_user, state_failure};
use crate::failure::{Failure, Kind, chain};
use crate::pointing;
use crate::progress::Progress;

/// Less free space than this and a deploy is refused: an instance with its logs needs more.
const FREE_BYTES: u64 = 64 << 20;

pub(crate) async fn run(args: &DeployArgs, context: &Context) -> Result<(), Failure> {
    let name = checked_name(&args.cluster)?;
    let version: DmVersion = args.version.parse().map_err(|bad| Failure::new(Kind::Usage, bad))?;
    let cluster = context.profile.cluster(&name);
    cluster.refuse_existing().map_err(state_failure)?;
    let mut topology = read_topology(&args.topology)?;
    topology.expand_dirs();
    refuse_conflicts(&topology, &args.topology, context)?;
    let user = checked_user(topology.global.user.as_str())?;
    let login = login(args, context)?;

    let progress = Progress::new(context.global.format, context.surroundings.stderr_is_terminal);
    progress.under_way("connect to the hosts");
    let instances = topology.instances();
    let hosts = HostAddress::of_instances(&instances);
    let reach = context.reach(topology.global.ssh_type.as_str());
    let keys = cluster.own_dir().join("known_hosts");
    let first = context.fleet(login.clone(), reach.clone(), &keys, hosts.clone());
    let hellos = first.connect_all().await;
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
        forget(&cluster);
        let failure = Failure::refused("not every host can be reached").because(silent);
        return Err(hints.into_iter().fold(failure, Failure::hint));
    }
    // `manage_host`: the address of sshd is the key of the platform.
    for address in &hosts {
        if let Some(Ok(hello)) = hellos.get(&address.id) {
            topology.set_platform(address.ssh_host.as_str(), &hello.os, &hello.arch);
        }
    }
    let instances = topology.instances();

    progress.under_way("open the packages");
    let scratch = context.scratch()?;
    let packages = open_packages(&instances, &version, scratch.path(), context)?;
    progress.under_way("look at the hosts");
    let findings = look(&first, &instances, &packages).await;
    if !findings.is_empty() {
        forget(&cluster);
        return Err(Failure::refused(format_args!(
            "{} thing(s) are in the way of {name}",
            findings.len()
        ))
        .because(findings));
    }
    let laid = render(&name, &topology, &instances)?;
    progress.end();
    agree(&name, &version, &topology, &instances, context)?;

    let _lock = cluster.lock("deploy").map_err(state_failure)?;
    let step = |text: &str| {
        progress.say(&format!("+ {text}"));
        progress.under_way(text);
    };
    step("Generate SSH keys");
    let key = cluster.ensure_keys().map_err(state_failure)?;
    // On this very machine, as the user who is logged in already, there is nobody to make.
    if !(matches!(reach, Reach::Local { .. }) && user == login.user) {
        step("Initialize target hosts");
        prepare_hosts(&first, &topology, &user, &login.user, &key.public).await?;
    }
    first.disconnect().await;

    let own =
        Login { user: user.clone(), auth: vec![AuthMethod::key_file(cluster.private_key_path())] };
    let fleet = context.fleet(own, reach, &keys, hosts);
    step("Deploy DM instances");
    lay_out(&fleet, laid, &packages).await?;
    step("Enable the services at boot");
    let all: Vec<&Instance> = instances.iter().collect();
    units::order(&fleet, &all, UnitAction::Enable, context).await?;

    let meta = Meta { user, version, topology };
    cluster.save_meta(&meta, &jiff::Zoned::now()).map_err(state_failure)?;
    progress.end();
    context.printer.talk(format_args!(
        "Cluster `{name}` deployed successfully, you can start it with command: `dmup start {name}`"
    ));
    Ok(())
}

fn read_topology(path: &Utf8Path) -> Result<Topology, Failure> {
    const LONGEST: u64 = 4 << 20;
    let refused = |why: String| Failure::refused(format_args!("read the topology {path}: {why}"));
    let length = fs_err::metadata(path).map_err(|error| refused(error.to_string()))?.len();
    if length > LONGEST {
        return Err(refused(format!("it has {length} bytes, {LONGEST} are allowed")));
    }
    let text = fs_err::read_to_string(path).map_err(|error| refused(error.to_string()))?;
    Topology::parse(&text)
        .map_err(|error| pointing::at(&format!("{path}: {error}"), path.as_str(), &text, &error))
}

/// Ports and folders of other clusters on the same hosts.
fn refuse_conflicts(
    topology: &Topology,
    path: &Utf8Path,
    context: &Context,
) -> Result<(), Failure> {
    let others = context.profile.clusters().map_err(state_failure)?;
    let neighbours: Vec<Neighbour<'_>> = others
        .iter()
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
fn login(args: &DeployArgs, context: &Context) -> Result<Login, Failure> {
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
        ReachError::UnknownHostKey(_) => {
            Some("compare the fingerprint with the host's own, then give --accept-new-host-keys")
        }
        ReachError::ChangedHostKey { .. } => Some(
            "find out why before anything else: reinstalled, or somebody in between? then take the old line out of the file",
        ),
        ReachError::Auth { .. } => Some("`-u`, `-i` and `-p` say who logs in and how"),
        ReachError::Resolve { .. }
        | ReachError::Connect { .. }
        | ReachError::RevokedHostKey { .. }
        | ReachError::KnownHosts(_)
        | ReachError::Channel { .. }
        | ReachError::SystemSsh { .. }
        | ReachError::Bootstrap { .. } => None,
    }
}

type Packages = BTreeMap<(Role, String), ComponentPackage>;

/// One package per component and architecture, all opened and checked before anything is sent.
fn open_packages(
    instances: &[Instance],
    version: &DmVersion,
    scratch: &Utf8Path,
    context: &Context,
) -> Result<Packages, Failure> {
    let needed: BTreeSet<(Role, String, String)> =
        instances.iter().map(|it| (it.role, it.os.clone(), it.arch.clone())).collect();
    let mut packages = Packages::new();
    let mut wrong = Vec::new();
    for (role, os, arch) in needed {
        let path = match package_path(role, version, &os, &arch, context) {
            Ok(path) => path,
            Err(why) => {
                wrong.push(why);
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
    if wrong.is_empty() {
        Ok(packages)
    } else {
        Err(Failure::refused("not every package is there").because(wrong).hint(
            "put the official packages there, named <component>-<version>-<os>-<arch>.tar.gz",
        ))
    }
}

/// All components have the cluster's version but Alertmanager, whose newest is taken (TiUP's rule).
fn package_path(
    role: Role,
    version: &DmVersion,
    os: &str,
    arch: &str,
    context: &Context,
) -> Result<Utf8PathBuf, String> {
    let exact = context.profile.package_path(role.as_str(), version.as_str(), os, arch);
    if exact.exists() || role != Role::Alertmanager {
        return if exact.exists() { Ok(exact) } else { Err(format!("{role}: looked for {exact}")) };
    }
    let folder = exact.parent().map(Utf8Path::to_owned).unwrap_or_default();
    let ending = format!("-{os}-{arch}.tar.gz");
    let newest = fs_err::read_dir(&folder)
        .map_err(|error| format!("{role}: {error}"))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|file| {
            let text = file.strip_prefix("alertmanager-")?.strip_suffix(&ending)?;
            let version: DmVersion = text.parse().ok()?;
            Some((version.numbers()?, file.clone()))
        })
        .max();
    newest
        .map(|(_, file)| folder.join(file))
        .ok_or_else(|| format!("{role}: looked for {folder}/alertmanager-<version>{ending}"))
}

/// Everything that would be in the way on the hosts.
async fn look(fleet: &Fleet, instances: &[Instance], packages: &Packages) -> Vec<String> {
    let mut by_host: BTreeMap<HostId, Vec<&Instance>> = BTreeMap::new();
    for instance in instances {
        by_host.entry(instance.host.clone()).or_default().push(instance);
    }
    let looks = by_host.iter().map(|(host, own)| async move {
        let mut findings = Vec::new();
        if let Err(error) = fleet.check_sudo(host).await {
            findings.push(error.to_string());
        }
        let probe = Probe {
            ports: own.iter().flat_map(|it| it.ports.iter().copied()).collect(),
            disks: own.iter().map(|it| it.deploy_dir.clone()).collect(),
            paths: own
                .iter()
                .flat_map(|it| {
                    [it.bin_dir(), Utf8PathBuf::from(format!("/etc/systemd/system/{}", it.unit))]
                })
                .collect(),
            ..Probe::default()
        };
        match fleet.probe(host, probe).await {
            Err(error) => findings.push(error.to_string()),
            Ok(seen) => {
                for port in &seen.listening {
                    findings.push(format!("{host}: somebody listens on port {port} already"));
                }
                for path in &seen.existing {
                    findings.push(format!("{host}: {path} exists already"));
                }
                for instance in own {
                    let needed = packages
                        .get(&(instance.role, instance.arch.clone()))
                        .map_or(0, |it| it.parcel.unpacked_bytes)
                        + FREE_BYTES;
                    let free = seen.disks.iter().find(|(path, _)| *path == instance.deploy_dir);
                    if let Some((path, free)) = free
                        && *free < needed
                    {
                        findings.push(format!(
                            "{host}: {path} has {free} bytes free, {} needs {needed}",
                            instance.id
                        ));
                    }
                }
            }
        }
        if let Ok(hello) = fleet.hello(host).await
            && hello.os != "linux"
        {
            findings.push(format!("{host}: runs {}, only linux is supported", hello.os));
        }
        findings
    });
    join_all(looks).await.into_iter().flatten().collect()
}

fn agree(
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
                it.role.to_string(),
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
async fn prepare_hosts(
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
struct Laid {
    instance: Instance,
    dirs: Vec<MakeDir>,
    files: Vec<PutFile>,
}

/// Renders everything that will lie on hosts; a setting that makes no sense shows here, before anything is touched.
fn render(
    name: &ClusterName,
    topology: &Topology,
    instances: &[Instance],
) -> Result<Vec<Laid>, Failure> {
    let deployment = Deployment::new(name, topology);
    instances
        .iter()
        .map(|instance| {
            let dirs = layout::directories(&deployment, instance)
                .into_iter()
                .map(|dir| MakeDir { path: dir.path, mode: dir.mode, owner: Some(dir.owner) })
                .collect();
            let files = layout::files(&deployment, instance)
                .map_err(|bad| {
                    Failure::refused(format_args!("render the configuration of {}", instance.id))
                        .because([chain(&bad)])
                })?
                .into_iter()
                .map(|file| PutFile {
                    path: file.path,
                    mode: file.mode,
                    root: file.root,
                    owner: None,
                    content: file.content,
                })
                .collect();
            Ok(Laid { instance: instance.clone(), dirs, files })
        })
        .collect()
}

/// Folders, binaries, units, run scripts, configs: host by host, all hosts at once.
async fn lay_out(fleet: &Fleet, laid: Vec<Laid>, packages: &Packages) -> Result<(), Failure> {
    let mut by_host: BTreeMap<HostId, Vec<Laid>> = BTreeMap::new();
    for instance in laid {
        by_host.entry(instance.instance.host.clone()).or_default().push(instance);
    }
    let work = by_host.into_iter().map(|(host, own)| async move {
        for Laid { instance, dirs, files } in own {
            fleet.make_dirs(&host, dirs).await?;
            let package = packages
                .get(&(instance.role, instance.arch.clone()))
                .expect("one was opened for every instance");
            let parcel = Parcel {
                path: package.parcel.path.clone(),
                digest: package.parcel.digest.clone(),
                compressed_bytes: package.parcel.compressed_bytes,
                unpacked_bytes: package.parcel.unpacked_bytes,
            };
            fleet.unpack(&host, &parcel, &instance.bin_dir(), None).await?;
            fleet.put(&host, files).await?;
        }
        Ok(())
    });
    all_or_failure("lay the instances out", join_all(work).await)
}

fn all_or_failure(
    what: &str,
    results: Vec<Result<(), dmup_exec::ports::EffectError>>,
) -> Result<(), Failure> {
    let failed: Vec<String> =
        results.into_iter().filter_map(|it| it.err().map(|error| error.to_string())).collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::failed(what)
        .because(failed)
        .now(
            "the cluster is not recorded and nothing was started; files of it may lie on the hosts",
        )
        .hint("give the same command again after the cause is gone"))
}

/// A refused deploy leaves nothing behind but, at most, an empty folder.
fn forget(cluster: &Cluster) {
    if !cluster.exists() && !cluster.private_key_path().exists() {
        drop(fs_err::remove_dir_all(cluster.dir()));
    }
}
