//! Whether instances can be laid out on a host: judged from one look, before anything is changed.
//!
//! In: what a host says of itself. Out: every [`Finding`], each with what to do. Nothing here asks anybody anything.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::exporters::{Exporter, Exporters, UnitOwner};
use crate::ids::{HostId, InstanceId, UnitName, UserName};
use crate::instance::{Instance, Role};
use crate::inventory::{ProcessSeen, UnitActive};
use crate::systemd::SystemdMode;

/// Less free space than this, and an instance with its logs is refused.
const SPARE_BYTES: u64 = 64 << 20;
/// From here on logs do not line up, and new certificates may not be valid yet: worth a word.
const SKEW_TO_TELL_MS: i64 = 30_000;
/// The oldest systemd whose properties and options the agent knows.
const OLDEST_SYSTEMD: u32 = 235;
/// systemd runs this machine: sd_booted(3).
pub const BOOTED: &str = "/run/systemd/system";
/// What makes the deploy user: looked for if there is none yet.
pub const TOOLS: [&str; 2] = ["/usr/sbin/useradd", "/usr/sbin/groupadd"];

/// A path that exists.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct PathSeen {
    /// Which.
    pub path: Utf8PathBuf,
    /// What is there.
    pub kind: PathKind,
    /// Number of the user that it belongs to.
    pub owner: u32,
    /// That user's name; the number if the host knows none.
    pub owner_name: String,
    /// Whether others than that user may write there by its mode. A group or an access list may let in
    /// nobody who matters; it counts all the same.
    pub is_shared: bool,
}

/// What is at a path.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PathKind {
    /// A folder with nothing in it.
    EmptyFolder,
    /// A folder with something in it, or one that cannot be read.
    Folder,
    /// Anything else.
    Other,
}

/// The file system that a path is on, or that it will be on once it is made.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct DiskSeen {
    /// Which path.
    pub path: Utf8PathBuf,
    /// Free bytes for the agent's user.
    pub free_bytes: u64,
    /// Number of the device: paths with the same share their room.
    pub device: u64,
    /// Mounted so that no program can be run from it.
    pub no_exec: bool,
    /// Mounted so that nothing can be written.
    pub read_only: bool,
    /// The agent's user may make nothing there.
    pub is_closed: bool,
}

/// What a host says of itself.
#[derive(Clone, Debug)]
pub struct Found<'a> {
    /// Which.
    pub host: &'a HostId,
    /// `linux`.
    pub os: &'a str,
    /// The version of systemd; none without one.
    pub systemd: Option<u32>,
    /// Units are plain processes there: no systemd is wanted.
    pub is_playground: bool,
    /// Its clock minus ours.
    pub clock_skew_ms: i64,
    /// Ports among those asked for that somebody listens on.
    pub listening: &'a [u16],
    /// Paths among those asked for that exist.
    pub paths: &'a [PathSeen],
    /// The file systems of deploy and data folders.
    pub disks: &'a [DiskSeen],
    /// What systemd says of the units.
    pub units: &'a [(InstanceId, ProcessSeen)],
    /// Unit files of exporters, where those that are left by this cluster may be taken over.
    pub unit_files: &'a [(Utf8PathBuf, String)],
    /// Whether the deploy user exists.
    pub has_user: bool,
    /// Whether whoever looked can do what only root may.
    pub has_root: bool,
}

/// Something that is to be laid out.
#[derive(Clone, Copy, Debug)]
pub enum Planned<'a> {
    /// An instance.
    Instance {
        /// Which.
        instance: &'a Instance,
        /// Its package, unpacked.
        package_bytes: u64,
        /// It joins masters that run: what an earlier member left in its data folder would keep it from that.
        joins: bool,
    },
    /// Both exporters of a machine.
    Exporters {
        /// Which.
        pair: &'a Exporters,
        /// Both packages, unpacked.
        package_bytes: u64,
    },
}

impl<'a> Planned<'a> {
    /// The ports that it listens on.
    pub fn ports(&self) -> Vec<u16> {
        match self {
            Self::Instance { instance, .. } => instance.ports.clone(),
            Self::Exporters { pair, .. } => pair.both.iter().map(|it| it.instance.port).collect(),
        }
    }

    /// Where it is laid out, and its unit files: what is asked about in a look.
    pub fn paths(&self, owner: Owner<'_>) -> Vec<Utf8PathBuf> {
        let mut paths = vec![self.deploy_dir().to_owned(), self.bin_dir()];
        paths.extend(self.units(owner).into_iter().map(|(_, file)| file));
        paths.extend(self.data_dirs().iter().cloned());
        let above = self.folders().flat_map(|folder| folder.ancestors().skip(1));
        paths.extend(above.map(Utf8Path::to_owned));
        if let Self::Instance { instance, .. } = self
            && instance.role == Role::DmMaster
        {
            paths.extend(instance.data_dirs.iter().map(|dir| dir.join("member")));
        }
        paths
    }

    /// Where it needs room, each once: what is asked about in a look.
    pub fn disks(&self) -> Vec<Utf8PathBuf> {
        let mut all = vec![self.deploy_dir().to_owned()];
        for dir in self.data_dirs() {
            if !all.contains(dir) {
                all.push(dir.clone());
            }
        }
        all
    }

    /// Folders that it has to itself.
    fn folders(&self) -> impl Iterator<Item = &'a Utf8Path> + use<'a> {
        let data_dirs = self.data_dirs().iter().map(Utf8PathBuf::as_path);
        std::iter::once(self.deploy_dir()).chain(data_dirs)
    }

    fn deploy_dir(&self) -> &'a Utf8Path {
        match self {
            Self::Instance { instance, .. } => &instance.deploy_dir,
            Self::Exporters { pair, .. } => &pair.deploy_dir,
        }
    }

    fn name(&self) -> &'a str {
        match self {
            Self::Instance { instance, .. } => instance.id.as_str(),
            Self::Exporters { .. } => "monitored",
        }
    }

    fn bin_dir(&self) -> Utf8PathBuf {
        match self {
            Self::Instance { instance, .. } => instance.bin_dir(),
            Self::Exporters { pair, .. } => pair.bin_dir(),
        }
    }

    fn data_dirs(&self) -> &'a [Utf8PathBuf] {
        match self {
            Self::Instance { instance, .. } => &instance.data_dirs,
            Self::Exporters { pair, .. } => &pair.data_dirs,
        }
    }

    fn units(&self, owner: Owner<'_>) -> Vec<(&'a UnitName, Utf8PathBuf)> {
        match self {
            Self::Instance { instance, .. } => {
                vec![(&instance.unit, owner.systemd.unit_path(owner.user, &instance.unit))]
            }
            Self::Exporters { pair, .. } => {
                pair.both.iter().map(|it| (&it.instance.unit, it.unit_file.clone())).collect()
            }
        }
    }

    fn package_bytes(&self) -> u64 {
        match self {
            Self::Instance { package_bytes, .. } | Self::Exporters { package_bytes, .. } => {
                *package_bytes
            }
        }
    }
}

/// How much a finding weighs.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Weight {
    /// Nothing is done.
    InTheWay,
    /// Told before the question; `--yes` goes on.
    ToKnow,
}

/// Something that was found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// How much it weighs.
    pub weight: Weight,
    /// Where, what, and what to do.
    pub text: String,
}

/// Whose the instances will be.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    /// The deploy user.
    pub user: &'a UserName,
    /// Whose systemd runs them.
    pub systemd: SystemdMode,
}

/// Judges one host.
pub fn judge(found: &Found<'_>, planned: &[Planned<'_>], owner: Owner<'_>) -> Vec<Finding> {
    let host = found.host;
    let mut findings = Vec::new();
    let mut add = |weight, text: String| {
        findings.push(Finding { weight, text: format!("{host}: {text}") });
    };
    for (weight, text) in of_system(found, owner.user) {
        add(weight, text);
    }
    for plan in planned {
        for (weight, text) in of_planned(found, plan, owner) {
            add(weight, text);
        }
    }
    for text in of_disks(found, planned) {
        add(Weight::InTheWay, text);
    }
    findings
}

fn of_system(found: &Found<'_>, user: &UserName) -> Vec<(Weight, String)> {
    let mut said = Vec::new();
    let mut bad = |text: String| said.push((Weight::InTheWay, text));
    let has = |path: &str| found.paths.iter().any(|it| it.path == path);
    if found.os != "linux" {
        bad(format!("runs {}, only linux is supported", found.os));
    }
    if !found.is_playground {
        match found.systemd {
            None => bad("has no systemd, which runs the services: install it".to_owned()),
            Some(_) if !has(BOOTED) => bad(
                "systemd is installed and does not run the machine (a container?): start it as the first process"
                    .to_owned(),
            ),
            Some(version) if version < OLDEST_SYSTEMD => bad(format!(
                "has systemd {version}; dmup knows {OLDEST_SYSTEMD} and later: use a newer system"
            )),
            Some(_) => {}
        }
        let missing: Vec<&str> = TOOLS.into_iter().filter(|tool| !has(tool)).collect();
        if !found.has_user && !missing.is_empty() {
            bad(format!(
                "has no user {user}, and without {} none can be made: install it, or make the user",
                missing.join(" and ")
            ));
        }
    }
    if found.clock_skew_ms.abs() >= SKEW_TO_TELL_MS {
        said.push((
            Weight::ToKnow,
            format!(
                "its clock is {}s off: set it right with `timedatectl`, or logs and certificates will not fit; `patch` refuses five minutes",
                found.clock_skew_ms / 1000
            ),
        ));
    }
    said
}

/// Whether exporters of this very cluster are left on the host, as a scale-in of TiUP leaves them: units that start this
/// cluster's scripts as its user, programs that belong to that user, and nobody else on their ports. Anything else is
/// somebody else's, or cannot be told.
pub fn are_left(found: &Found<'_>, pair: &Exporters, owner: Owner<'_>) -> bool {
    let text = |file: &Utf8Path| found.unit_files.iter().find(|(path, _)| path == file);
    let is_ours = |exporter: &Exporter| {
        let instance = &exporter.instance;
        let is_active = found
            .units
            .iter()
            .any(|(of, seen)| *of == instance.id && seen.active == UnitActive::Active);
        let is_free = !found.listening.contains(&instance.port);
        match text(&exporter.unit_file) {
            // Half of a pair that somebody has removed.
            None => is_free && !found.paths.iter().any(|it| it.path == exporter.unit_file),
            Some((_, text)) => {
                exporter.owner_of(Some(text)) == UnitOwner::Ours
                    && runs_as(text, owner)
                    && (is_free || is_active)
            }
        }
    };
    let is_of_user = |folder: &Utf8Path| {
        let seen = found.paths.iter().find(|it| it.path == folder);
        seen.is_some_and(|it| it.kind != PathKind::Other && it.owner_name == owner.user.as_str())
    };
    pair.both.iter().any(|it| text(&it.unit_file).is_some())
        && pair.both.iter().all(is_ours)
        && is_of_user(&pair.deploy_dir)
        && is_of_user(&pair.bin_dir())
}

fn runs_as(unit_file: &str, owner: Owner<'_>) -> bool {
    let mut users = unit_file.lines().filter_map(|line| line.trim().strip_prefix("User="));
    match owner.systemd {
        SystemdMode::System => users.next() == Some(owner.user.as_str()) && users.next().is_none(),
        // A user's systemd runs everything as that user.
        SystemdMode::User => users.next().is_none(),
    }
}

fn of_planned(found: &Found<'_>, plan: &Planned<'_>, owner: Owner<'_>) -> Vec<(Weight, String)> {
    let user = owner.user;
    let name = plan.name();
    let mut said = Vec::new();
    if let Planned::Exporters { pair, .. } = plan
        && are_left(found, pair, owner)
    {
        let ports = pair.both.each_ref().map(|it| it.instance.port.to_string()).join(" and ");
        return vec![(
            Weight::ToKnow,
            format!(
                "exporters of this cluster are left on ports {ports}, as a scale-in of TiUP leaves them: they are stopped, laid out anew and started"
            ),
        )];
    }
    let at = |path: &Utf8Path| found.paths.iter().find(|it| it.path == path);
    for port in plan.ports().iter().filter(|port| found.listening.contains(port)) {
        said.push((
            Weight::InTheWay,
            format!(
                "somebody listens on port {port} already, which {name} needs: stop it (`ss -ltnp` names it), or give another port"
            ),
        ));
    }
    for (unit, file) in plan.units(owner) {
        let text = match plan {
            Planned::Instance { instance, .. } => {
                let known = found.units.iter().find(|(of, _)| *of == instance.id).map(|(_, it)| it);
                let state = known
                    .filter(|it| it.active != UnitActive::Missing)
                    .map_or("not loaded", |it| it.sub_state.as_str());
                let seen = match known.map(|it| it.active) {
                    _ if at(&file).is_some() => format!("{file} exists already, {unit} is {state}"),
                    Some(
                        UnitActive::Active | UnitActive::Activating | UnitActive::Deactivating,
                    ) => {
                        format!("{unit} is {state}, and its file is not {file}")
                    }
                    // TiUP removes unit files, and systemd goes on to know them.
                    Some(UnitActive::Inactive | UnitActive::Failed | UnitActive::Missing)
                    | None => {
                        continue;
                    }
                };
                format!(
                    "{seen}: another cluster has that name there, or a deploy or scale-out broke off; give another port, or remove it with its folder"
                )
            }
            Planned::Exporters { .. } if at(&file).is_some() => format!(
                "{file} exists already: another cluster has exporters there (then `ignore_exporter: true` for the instances of this host, or other ports in `monitored`), or a deploy or scale-out broke off; then stop it, and remove it with its folder"
            ),
            Planned::Exporters { .. } => continue,
        };
        said.push((Weight::InTheWay, text));
    }
    let bin_dir = plan.bin_dir();
    if at(&bin_dir).is_some() {
        said.push((
            Weight::InTheWay,
            format!(
                "{bin_dir} exists already: what is deployed there would be written over; give {name} another deploy_dir, or remove it"
            ),
        ));
    }
    for folder in plan.folders() {
        let mut above = folder.ancestors().skip(1).filter_map(at);
        let is_in_the_way =
            |it: &&PathSeen| it.kind == PathKind::Other && it.path != plan.deploy_dir();
        if let Some(seen) = above.find(is_in_the_way) {
            said.push((
                Weight::InTheWay,
                format!(
                    "{folder} of {name} cannot be made: {} is no folder (a file, or a link that leads nowhere: is its disk mounted?)",
                    seen.path
                ),
            ));
        }
        let Some(seen) = at(folder) else {
            // One of its own folders above is told of itself.
            if let Some(above) = folder.ancestors().skip(1).find_map(at)
                && plan.folders().all(|own| own != above.path)
                && keeps_out(found, above, folder, owner)
            {
                said.push((
                    Weight::InTheWay,
                    format!(
                        "{folder} of {name} cannot be made by {user}, whose systemd runs it: {} belongs to {}; make {folder} there and `chown` it, or give another one",
                        above.path, above.owner_name
                    ),
                ));
            }
            continue;
        };
        let is_foreign = match owner.systemd {
            // Root makes mount points, and belongs to nobody.
            SystemdMode::System => seen.owner != 0 && seen.owner_name != user.as_str(),
            // There is nobody to give them away.
            SystemdMode::User => seen.owner_name != user.as_str(),
        };
        match seen.kind {
            PathKind::Other => said.push((
                Weight::InTheWay,
                format!("{folder} is no folder: give {name} another one, or remove it"),
            )),
            PathKind::Folder | PathKind::EmptyFolder if is_foreign => said.push((
                Weight::InTheWay,
                format!(
                    "{folder} belongs to {}, and {name} would take it over for {user}: give another one, or `chown` it",
                    seen.owner_name
                ),
            )),
            PathKind::Folder => said.push((
                Weight::ToKnow,
                format!(
                    "{folder} exists and is not empty: {name} uses what lies there; empty it if that is not meant"
                ),
            )),
            PathKind::EmptyFolder => {}
        }
    }
    // DM takes a member folder for a restart, and joins nothing (dm.md, section on -join).
    if let Planned::Instance { instance, joins: true, .. } = plan
        && let Some(seen) = found.paths.iter().find(|it| is_member(it, instance))
    {
        said.push((
            Weight::InTheWay,
            format!(
                "{} is of an earlier member: {name} would start as that and not join; remove it",
                seen.path
            ),
        ));
    }
    said
}

/// Whether the deploy user, who lays out without root, can make no folder below the nearest one that is there. Where that
/// user logs in, the host itself has tried ([`DiskSeen::is_closed`]).
fn keeps_out(found: &Found<'_>, above: &PathSeen, folder: &Utf8Path, owner: Owner<'_>) -> bool {
    let is_in_home_to_be =
        !found.has_user && folder.starts_with(Utf8Path::new("/home").join(owner.user.as_str()));
    owner.systemd == SystemdMode::User
        && found.has_root
        && above.kind != PathKind::Other
        && !above.is_shared
        && above.owner_name != owner.user.as_str()
        && !is_in_home_to_be
}

fn is_member(seen: &PathSeen, instance: &Instance) -> bool {
    instance.role == Role::DmMaster
        && instance.data_dirs.iter().any(|dir| dir.join("member") == seen.path)
}

/// Mounts that cannot be used, and what everything on a host needs of each file system together.
fn of_disks(found: &Found<'_>, planned: &[Planned<'_>]) -> Vec<String> {
    let mut said = Vec::new();
    let mut needed: BTreeMap<u64, (&DiskSeen, u64, Vec<&str>)> = BTreeMap::new();
    for plan in planned {
        let name = plan.name();
        let of = |path: &Utf8Path| found.disks.iter().find(|it| it.path == path);
        let own = of(plan.deploy_dir()).map(|it| it.device);
        for path in plan.disks() {
            let Some(disk) = of(&path) else { continue };
            let is_deploy = path == plan.deploy_dir();
            if disk.read_only {
                said.push(format!(
                    "{path} of {name} is on a file system that is mounted read-only: mount it for writing, or give another folder"
                ));
            } else if disk.no_exec && is_deploy {
                said.push(format!(
                    "{path} of {name} is on a file system that is mounted noexec, no program can run from there: mount it with exec, or give another deploy_dir"
                ));
            }
            let is_there = found.paths.iter().any(|it| it.path == path);
            if disk.is_closed && !found.has_root && !is_there && !disk.read_only {
                said.push(format!(
                    "{path} of {name} cannot be made without root: make it and give it to the deploy user, or give another folder"
                ));
            }
            // Data come later, and nobody knows how many: no room at all is too little.
            let bytes = match is_deploy {
                true => plan.package_bytes() + SPARE_BYTES,
                false if own == Some(disk.device) => continue,
                false => SPARE_BYTES,
            };
            let (_, sum, names) = needed.entry(disk.device).or_insert((disk, 0, Vec::new()));
            *sum += bytes;
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    let tight = needed.into_values().filter(|(disk, bytes, _)| disk.free_bytes < *bytes);
    said.extend(tight.map(|(disk, bytes, names)| {
        format!(
            "{} has {} bytes free, {} need {bytes}: make room, or give another folder",
            disk.path,
            disk.free_bytes,
            names.join(", ")
        )
    }));
    said
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Topology;

    fn findings(change: impl FnOnce(&mut Found<'_>), paths: &[PathSeen], joins: bool) -> String {
        findings_of("systemd_mode: system", change, paths, joins)
    }

    fn findings_of(
        mode: &str,
        change: impl FnOnce(&mut Found<'_>),
        paths: &[PathSeen],
        joins: bool,
    ) -> String {
        let text = "global:\n  user: tidb\n  MODE\nmonitored: {}\nmaster_servers:\n  - host: h1\n    deploy_dir: /d/m\n    data_dir: /e/m\nworker_servers:\n  - host: h1\n    deploy_dir: /d/w\n";
        let mut topology = Topology::parse(&text.replace("MODE", mode)).unwrap();
        topology.expand_dirs();
        let (instances, pairs) = (topology.instances(), topology.exporters());
        let host = instances[0].host.clone();
        let disks = ["/d/m", "/d/w"].map(|path| disk(path, 1024, 1));
        let booted = PathSeen {
            path: BOOTED.into(),
            kind: PathKind::Folder,
            owner: 0,
            owner_name: "root".into(),
            is_shared: false,
        };
        let paths: Vec<PathSeen> = paths.iter().cloned().chain([booted]).collect();
        let mut found = Found {
            host: &host,
            os: "linux",
            systemd: Some(252),
            is_playground: false,
            clock_skew_ms: 5,
            listening: &[],
            paths: &paths,
            disks: &disks,
            units: &[],
            unit_files: &[],
            has_user: true,
            has_root: true,
        };
        change(&mut found);
        let planned: Vec<Planned<'_>> = instances
            .iter()
            .map(|instance| Planned::Instance { instance, package_bytes: 100 << 20, joins })
            .chain(pairs.iter().map(|pair| Planned::Exporters { pair, package_bytes: 20 << 20 }))
            .collect();
        let user = UserName::new("tidb").unwrap();
        let owner = Owner { user: &user, systemd: topology.systemd_mode() };
        let lines = judge(&found, &planned, owner);
        let lines = lines.into_iter().map(|it| format!("{:?} {}", it.weight, it.text));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn path(path: &str, kind: PathKind, owner: &str) -> PathSeen {
        let number = u32::from(owner != "root");
        let owner_name = owner.into();
        PathSeen { path: path.into(), kind, owner: number, owner_name, is_shared: false }
    }

    fn disk(path: &str, free_mib: u64, device: u64) -> DiskSeen {
        let free_bytes = free_mib << 20;
        DiskSeen {
            path: path.into(),
            free_bytes,
            device,
            no_exec: false,
            read_only: false,
            is_closed: false,
        }
    }

    #[test]
    fn an_empty_host_is_fine_and_so_are_mount_points_of_root() {
        assert_eq!(findings(|_| {}, &[], false), "");
        let mounts = [
            path("/d/m", PathKind::EmptyFolder, "root"),
            path("/e/m", PathKind::EmptyFolder, "tidb"),
        ];
        assert_eq!(findings(|_| {}, &mounts, true), "");
    }

    #[test]
    fn everything_in_the_way_is_named_at_once() {
        let paths = [
            path("/d/m/bin", PathKind::Folder, "tidb"),
            path("/d/w", PathKind::Folder, "mysql"),
            path("/etc/systemd/system/dm-worker-8262.service", PathKind::Other, "root"),
        ];
        let said = findings(|found| found.listening = &[8291], &paths, false);
        assert_eq!(said.matches("InTheWay h1: ").count(), 4, "{said}");
        for text in ["port 8291", "/d/m/bin exists", "belongs to mysql", "dm-worker-8262.service"] {
            assert!(said.contains(text), "{said}");
        }
    }

    #[test]
    fn data_that_lies_there_is_told_and_keeps_a_joining_master_out() {
        let paths =
            [path("/e/m", PathKind::Folder, "tidb"), path("/e/m/member", PathKind::Folder, "tidb")];
        let said = findings(|_| {}, &paths, false);
        assert!(said.starts_with("ToKnow ") && said.lines().count() == 1, "{said}");
        let said = findings(|_| {}, &paths, true);
        assert!(said.contains("InTheWay h1: /e/m/member is of an earlier member"), "{said}");
    }

    #[test]
    fn a_machine_that_systemd_does_not_run_is_refused_and_a_playground_is_not() {
        assert!(findings(|it| it.systemd = None, &[], false).contains("has no systemd"));
        assert!(findings(|it| it.systemd = Some(219), &[], false).contains("has systemd 219"));
        let said = findings(|it| it.paths = &[], &[], false);
        assert!(said.contains("does not run the machine"), "{said}");
        let playground = |it: &mut Found<'_>| (it.systemd, it.is_playground) = (None, true);
        assert_eq!(findings(playground, &[], false), "");
        let said = findings(|it| it.has_user = false, &[], false);
        assert!(said.contains("no user tidb") && said.contains("useradd"), "{said}");
    }

    #[test]
    fn exporters_of_somebody_else_are_in_the_way_by_port_unit_and_folder() {
        let paths = [
            path("/etc/systemd/system/node_exporter-9100.service", PathKind::Other, "root"),
            path("/home/tidb/deploy/monitor-9100/bin", PathKind::Folder, "tidb"),
        ];
        let said = findings(|found| found.listening = &[9115], &paths, false);
        assert_eq!(said.matches("InTheWay h1: ").count(), 3, "{said}");
        for text in [
            "port 9115 already, which monitored needs",
            "node_exporter-9100.service exists already: another cluster has exporters there",
            "ignore_exporter",
            "/home/tidb/deploy/monitor-9100/bin exists already",
        ] {
            assert!(said.contains(text), "{text}\n{said}");
        }
    }

    /// A host with exporters as a scale-in of TiUP leaves them, its units and paths bent by a test.
    fn left(change: impl FnOnce(&mut Found<'_>, &mut Vec<(Utf8PathBuf, String)>)) -> String {
        let unit = |role: &str, port: u16| {
            let script = format!("/home/tidb/deploy/monitor-9100/scripts/run_{role}.sh");
            let text = format!("[Service]\nUser=tidb\nExecStart=/bin/bash -c '{script}'\n");
            (Utf8PathBuf::from(format!("/etc/systemd/system/{role}-{port}.service")), text)
        };
        let mut files = vec![unit("node_exporter", 9100), unit("blackbox_exporter", 9115)];
        let paths = [
            path("/etc/systemd/system/node_exporter-9100.service", PathKind::Other, "root"),
            path("/home/tidb/deploy/monitor-9100", PathKind::Folder, "tidb"),
            path("/home/tidb/deploy/monitor-9100/bin", PathKind::Folder, "tidb"),
        ];
        let units = [9100, 9115].map(|port| {
            (InstanceId::new(format!("h1:{port}")).unwrap(), unit_that_is(UnitActive::Active))
        });
        let bend = |found: &mut Found<'_>| {
            found.units = Vec::from(units).leak();
            found.listening = &[9100, 9115];
            change(found, &mut files);
            found.unit_files = files.leak();
        };
        findings(bend, &paths, true)
    }

    #[test]
    fn exporters_that_this_cluster_has_left_are_taken_over() {
        let taken = "ToKnow h1: exporters of this cluster are left on ports 9100 and 9115";
        let said = left(|_, _| {});
        assert!(said.starts_with(taken) && said.lines().count() == 1, "{said}");
        // Stopped meanwhile, or one of them removed.
        let said = left(|found, _| (found.units, found.listening) = (&[], &[]));
        assert!(said.starts_with(taken), "{said}");
        let said = left(|found, files| {
            files.pop();
            found.listening = &[9100];
        });
        assert!(said.starts_with(taken), "{said}");
    }

    #[test]
    fn exporters_of_which_it_cannot_be_told_that_this_cluster_left_them_are_in_the_way() {
        let without = |paths: &[PathSeen], end: &str| {
            let rest = paths.iter().filter(|it| !it.path.as_str().ends_with(end));
            &*rest.cloned().collect::<Vec<_>>().leak()
        };
        for (why, said) in [
            ("no unit was read", left(|_, files| files.clear())),
            (
                "another user's",
                left(|_, files| files[1].1 = files[1].1.replace("User=tidb", "User=other")),
            ),
            ("nobody's", left(|_, files| files[0].1 = files[0].1.replace("User=tidb\n", ""))),
            (
                "another cluster's folder",
                left(|_, files| files[0].1 = files[0].1.replace("/deploy/", "/elsewhere/")),
            ),
            ("somebody else listens", left(|found, _| found.units = &found.units[..1])),
            (
                "the file of one that is left is not read",
                left(|found, files| {
                    files.remove(0);
                    found.listening = &[];
                }),
            ),
            ("no programs", left(|found, _| found.paths = without(found.paths, "/bin"))),
        ] {
            let in_the_way = |line: &str| line.starts_with("InTheWay") && line.contains("already");
            assert!(said.lines().any(in_the_way), "{why}: {said}");
            assert!(!said.contains("laid out anew"), "{why}: {said}");
        }
    }

    fn unit_that_is(active: UnitActive) -> ProcessSeen {
        ProcessSeen {
            active,
            sub_state: "so".to_owned(),
            restarts: 0,
            pid: None,
            enabled: true,
            running: None,
            on_disk: None,
            active_since_ms: None,
        }
    }

    #[test]
    fn a_unit_whose_file_is_gone_is_in_the_way_only_while_it_runs() {
        let said = |active| {
            let text = "master_servers:\n  - host: h1\n";
            let id = Topology::parse(text).unwrap().instances()[0].id.clone();
            let units = vec![(id, unit_that_is(active))].leak();
            findings(|found| found.units = units, &[], false)
        };
        for active in [UnitActive::Inactive, UnitActive::Failed, UnitActive::Missing] {
            assert_eq!(said(active), "", "{active:?}");
        }
        let said = said(UnitActive::Activating);
        assert!(said.contains("dm-master-8261.service is so, and its file is not /etc"), "{said}");
    }

    #[test]
    fn what_is_above_a_folder_must_be_a_folder() {
        let said = findings(|_| {}, &[path("/e", PathKind::Other, "root")], false);
        assert!(said.contains("/e/m of h1:8261 cannot be made: /e is no folder"), "{said}");
        assert_eq!(said.matches("InTheWay").count(), 1, "{said}");
        // Of the deploy folder itself it is said once.
        let said = findings(|_| {}, &[path("/d/m", PathKind::Other, "root")], false);
        assert_eq!(said.matches("InTheWay").count(), 1, "{said}");
        assert_eq!(findings(|_| {}, &[path("/e", PathKind::Folder, "root")], false), "");
    }

    #[test]
    fn what_two_instances_need_of_one_disk_is_added_up() {
        let disks = |w: u64| vec![disk("/d/m", 300, 1), disk("/d/w", 300, w)].leak();
        let tight = disks(1);
        let said = findings(|it| it.disks = tight, &[], false);
        assert!(said.contains("/d/m has 314572800 bytes free, h1:8261, h1:8262 need"), "{said}");
        let apart = disks(2);
        assert_eq!(findings(|it| it.disks = apart, &[], false), "");
    }

    #[test]
    fn a_disk_for_data_alone_must_have_some_room() {
        let disks = |e: u64| vec![disk("/d/m", 300, 1), disk("/e/m", e, 2)].leak();
        let full = disks(63);
        let said = findings(|it| it.disks = full, &[], false);
        assert!(said.contains("/e/m has 66060288 bytes free, h1:8261 need 67108864"), "{said}");
        let roomy = disks(64);
        assert_eq!(findings(|it| it.disks = roomy, &[], false), "");
    }

    #[test]
    fn a_mount_that_cannot_be_used_is_refused_for_what_it_is_needed_for() {
        let mut disks = vec![disk("/d/m", 1024, 1), disk("/e/m", 1024, 2), disk("/d/w", 1024, 3)];
        (disks[0].no_exec, disks[1].no_exec, disks[2].read_only) = (true, true, true);
        let disks = disks.leak();
        let said = findings(|it| it.disks = disks, &[], false);
        assert_eq!(said.matches("InTheWay").count(), 2, "data need no exec\n{said}");
        for text in [
            "/d/m of h1:8261 is on a file system that is mounted noexec",
            "/d/w of h1:8262 is on a file system that is mounted read-only",
        ] {
            assert!(said.contains(text), "{said}");
        }
    }

    #[test]
    fn without_root_folders_must_be_the_users_own_or_in_one_that_is() {
        let mut disks = ["/d/m", "/d/w", "/e/m"].map(|path| disk(path, 1024, 1));
        disks.iter_mut().for_each(|it| it.is_closed = true);
        let disks: &[DiskSeen] = Vec::from(disks).leak();
        let look =
            |has_root: bool| move |it: &mut Found<'_>| (it.disks, it.has_root) = (disks, has_root);
        let own = [path("/d/w", PathKind::EmptyFolder, "tidb")];
        assert_eq!(findings(look(true), &own, false), "");
        let said = findings(look(false), &own, false);
        assert_eq!(said.matches("cannot be made without root").count(), 2, "{said}");
        assert!(said.contains("/d/m of h1:8261") && said.contains("/e/m of h1:8261"), "{said}");
        let of_root = [path("/d/w", PathKind::EmptyFolder, "root")];
        let said = findings_of("systemd_mode: user", |_| {}, &of_root, false);
        assert!(said.contains("/d/w belongs to root") && said.lines().count() == 1, "{said}");
        // Who logs in is root, and could make folders; the deploy user could not.
        let by_root = |above: PathSeen| {
            let seen = [path("/home/tidb", PathKind::Folder, "tidb"), above, own[0].clone()];
            findings_of("systemd_mode: user", look(true), &seen, false)
        };
        let said = by_root(path("/", PathKind::Folder, "root"));
        assert_eq!(said.matches("cannot be made by tidb, whose systemd").count(), 2, "{said}");
        assert!(said.contains("/ belongs to root; make /d/m there and `chown` it"), "{said}");
        for above in [
            path("/", PathKind::Folder, "tidb"),
            PathSeen { is_shared: true, ..path("/", PathKind::Folder, "root") },
        ] {
            assert_eq!(by_root(above), "");
        }
    }

    #[test]
    fn a_clock_that_is_off_is_told_and_does_not_refuse() {
        let said = findings(|it| it.clock_skew_ms = -90_000, &[], false);
        assert!(said.starts_with("ToKnow h1: its clock is -90s off"), "{said}");
    }
}
