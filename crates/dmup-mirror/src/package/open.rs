//! Opens packages: somebody's hotfix, or a component of TiUP's mirror.

use std::collections::{BTreeMap, BTreeSet};

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::digest::Digest;
use dmup_core::instance::Role;
use fs_err as fs;

use super::elf;
use super::layout::{Found, executable, find};
use super::limits;
use super::parcel::{Parcel, pack};
use super::refusal::{PackageError, Refusal};
use super::unpack::{Content, PackedFile, Tree, Unpacked, unpack};

/// The components that are wanted, and for each the architectures (TiUP's words) of its targets.
///
/// Empty: whatever is in the package.
pub type Wanted = BTreeMap<Role, BTreeSet<String>>;

/// A hotfix package that was opened and holds what was wanted, or a part of it.
#[derive(Debug)]
pub struct Package {
    /// The file.
    pub path: Utf8PathBuf,
    /// SHA-256 of the file.
    pub digest: Digest,
    /// Whether it is a tar.gz: the one form that TiUP unpacks on hosts.
    pub is_tar_gz: bool,
    /// Its components, as far as they were wanted; at least one.
    pub components: BTreeMap<Role, PackagedComponent>,
    /// Components that it has and nobody wanted.
    pub others: Vec<Role>,
    /// The files of `components`, packed for hosts.
    pub parcel: Parcel,
}

/// One component of a package.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PackagedComponent {
    /// SHA-256 of its executable.
    pub binary: Digest,
    /// TiUP's word: `amd64` or `arm64`.
    pub arch: String,
    /// Of the executable, in bytes.
    pub size: u64,
    /// Every file: path in the package and the parcel, path below the instance's `bin`.
    pub replace: Vec<(Utf8PathBuf, Utf8PathBuf)>,
}

/// A component package of TiUP's mirror: its files go to `bin` under the names that they have.
#[derive(Debug)]
pub struct ComponentPackage {
    /// The file.
    pub path: Utf8PathBuf,
    /// SHA-256 of the file.
    pub digest: Digest,
    /// SHA-256 of the executable.
    pub binary: Digest,
    /// Every file: path in the package and the parcel, path below the instance's `bin`.
    pub files: Vec<(Utf8PathBuf, Utf8PathBuf)>,
    /// Alert rules (`*.rules.yml`) and dashboards (`*.json`) in it, by path: dm-master's package brings them for
    /// the monitoring. What is too large or no text is left out.
    pub texts: BTreeMap<Utf8PathBuf, String>,
    /// All of them, packed for hosts.
    pub parcel: Parcel,
}

/// Opens a hotfix package.
///
/// `scratch` is an existing folder with room for the unpacked package and its
/// parcel; what is put there goes away again, the parcel with the result.
///
/// # Errors
///
/// [`PackageError`] with the first rule that the package breaks.
pub fn open(path: &Utf8Path, wanted: &Wanted, scratch: &Utf8Path) -> Result<Package, PackageError> {
    open_checked(path, wanted, scratch)
        .map_err(|refusal| PackageError { package: path.to_owned(), refusal })
}

fn open_checked(path: &Utf8Path, wanted: &Wanted, scratch: &Utf8Path) -> Result<Package, Refusal> {
    let room = room(scratch)?;
    let room_path = as_utf8(room.path())?;
    let Unpacked { content, digest, is_gzip } = unpack(open_file(path)?, room_path)?;
    let is_tar_gz = is_gzip && matches!(content, Content::Archive(_));
    let tree = match content {
        Content::Archive(tree) => tree,
        Content::Executable(file) => {
            let role = role_of_executable(path, &file, wanted)?;
            Tree::from([(Utf8PathBuf::from(role.binary()), file)])
        }
    };
    let mut components = BTreeMap::new();
    let mut others = Vec::new();
    for role in Role::ALL {
        let is_wanted = wanted.is_empty() || wanted.contains_key(&role);
        match find(&tree, role) {
            Ok(Some(found)) if is_wanted => {
                components.insert(role, check(&tree, role, found, wanted.get(&role))?);
            }
            Ok(Some(_)) => others.push(role),
            Ok(None) => {}
            Err(refusal) if is_wanted => return Err(refusal),
            Err(_) => others.push(role),
        }
    }
    if components.is_empty() {
        let mut has: Vec<String> = others.iter().map(ToString::to_string).collect();
        if has.is_empty() {
            has = tree.keys().take(5).map(|entry| format!("`{entry}`")).collect();
        }
        let wanted =
            if wanted.is_empty() { Role::ALL.to_vec() } else { wanted.keys().copied().collect() };
        return Err(Refusal::NotInside { wanted, has });
    }
    let needed: BTreeSet<&Utf8PathBuf> =
        components.values().flat_map(|it| it.replace.iter().map(|(from, _)| from)).collect();
    let files = tree.iter().filter(|(entry, _)| needed.contains(entry));
    let parcel = pack(files.map(|(entry, file)| (entry.as_path(), file)), scratch)
        .map_err(Refusal::Scratch)?;
    Ok(Package { path: path.to_owned(), digest, is_tar_gz, components, others, parcel })
}

/// Where TiUP keeps the package of a component: `<component>-<version>-<os>-<arch>.tar.gz`.
pub fn component_package_path(
    packages: &Utf8Path,
    component: &str,
    version: &str,
    os: &str,
    arch: &str,
) -> Utf8PathBuf {
    packages.join(format!("{component}-{version}-{os}-{arch}.tar.gz"))
}

/// Opens a component package for deploying, with the same checks as a hotfix.
///
/// It must have the component's executable, for that architecture.
///
/// # Errors
///
/// [`PackageError`] with the first rule that the package breaks.
pub fn component_package(
    path: &Utf8Path,
    component: Role,
    arch: &str,
    scratch: &Utf8Path,
) -> Result<ComponentPackage, PackageError> {
    component_checked(path, component, arch, scratch)
        .map_err(|refusal| PackageError { package: path.to_owned(), refusal })
}

fn component_checked(
    path: &Utf8Path,
    component: Role,
    arch: &str,
    scratch: &Utf8Path,
) -> Result<ComponentPackage, Refusal> {
    let room = room(scratch)?;
    let (tree, digest, checked) = component_tree(path, component, arch, as_utf8(room.path())?)?;
    let binary = checked.binary;
    let parcel = pack(tree.iter().map(|(entry, file)| (entry.as_path(), file)), scratch)
        .map_err(Refusal::Scratch)?;
    let texts = texts_of(&tree);
    let files = tree.into_keys().map(|entry| (entry.clone(), entry)).collect();
    Ok(ComponentPackage { path: path.to_owned(), digest, binary, files, texts, parcel })
}

fn room(scratch: &Utf8Path) -> Result<tempfile::TempDir, Refusal> {
    tempfile::Builder::new().prefix("package-").tempdir_in(scratch).map_err(Refusal::Scratch)
}

/// Unpacks a component package and looks at its executable.
fn component_tree(
    path: &Utf8Path,
    component: Role,
    arch: &str,
    room: &Utf8Path,
) -> Result<(Tree, Digest, PackagedComponent), Refusal> {
    let Unpacked { content, digest, .. } = unpack(open_file(path)?, room)?;
    let Content::Archive(tree) = content else {
        return Err(Refusal::NotAnArchive { looks_like: "a bare executable" });
    };
    let mut places = component.places().into_iter().map(Utf8PathBuf::from);
    let Some(binary) = places.find(|place| tree.contains_key(place)) else {
        let has = tree.keys().take(5).map(|entry| format!("`{entry}`")).collect();
        return Err(Refusal::NotInside { wanted: vec![component], has });
    };
    let found = Found { binary, replace: Vec::new() };
    let arches = BTreeSet::from([arch.to_owned()]);
    let checked = check(&tree, component, found, Some(&arches))?;
    Ok((tree, digest, checked))
}

fn texts_of(tree: &Tree) -> BTreeMap<Utf8PathBuf, String> {
    tree.iter()
        .filter(|(entry, file)| {
            let is_one =
                entry.as_str().ends_with(".rules.yml") || entry.extension() == Some("json");
            is_one && file.size <= limits::TEXT_BYTES
        })
        .filter_map(|(entry, file)| Some((entry.clone(), fs::read_to_string(&file.content).ok()?)))
        .collect()
}

pub(super) fn open_file(path: &Utf8Path) -> Result<fs::File, Refusal> {
    let told = |error: std::io::Error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            Refusal::NotFound
        } else {
            Refusal::Read(error)
        }
    };
    // Asked before opening: to open a pipe would wait for a writer.
    if !fs::metadata(path).map_err(told)?.is_file() {
        return Err(Refusal::NotAFile);
    }
    fs::File::open(path).map_err(told)
}

pub(super) fn as_utf8(path: &std::path::Path) -> Result<&Utf8Path, Refusal> {
    Utf8Path::from_path(path).ok_or_else(|| {
        Refusal::Scratch(std::io::Error::other("the scratch folder's path is not UTF-8"))
    })
}

/// Looks at the executable itself.
pub(super) fn check(
    tree: &Tree,
    component: Role,
    found: Found,
    arches: Option<&BTreeSet<String>>,
) -> Result<PackagedComponent, Refusal> {
    let file = &tree[&found.binary];
    let entry = found.binary.to_string();
    let mut content = fs::File::open(&file.content).map_err(Refusal::Scratch)?;
    let Some(facts) = elf::facts(&mut content).map_err(Refusal::Scratch)? else {
        return Err(Refusal::NotABinary { entry });
    };
    if facts.needs_bytes > file.size {
        return Err(Refusal::CutBinary { entry, needs: facts.needs_bytes, has: file.size });
    }
    // Read and run by its owner, as TiUP asks.
    if file.mode & 0o500 != 0o500 {
        return Err(Refusal::NotExecutable { entry, mode: file.mode });
    }
    if let Some(wanted) = arches.filter(|it| it.iter().any(|arch| *arch != facts.arch)) {
        return Err(Refusal::OtherArchitecture { entry, arch: facts.arch, wanted: wanted.clone() });
    }
    if let Some(built_from) = elf::go_main_package(&mut content).map_err(Refusal::Scratch)? {
        let last = built_from.rsplit('/').next().unwrap_or(&built_from);
        let is_of = |other: Role| Utf8Path::new(other.binary()).file_name() == Some(last);
        let all = Role::ALL.into_iter().chain(Role::EXPORTERS);
        if all.into_iter().any(|other| other != component && is_of(other)) {
            return Err(Refusal::OtherComponent { entry, component, built_from });
        }
    }
    Ok(PackagedComponent {
        binary: file.digest.clone(),
        arch: facts.arch,
        size: file.size,
        replace: found.replace,
    })
}

/// What a bare executable is: by its build record, else by its file name, else what alone is wanted.
fn role_of_executable(
    path: &Utf8Path,
    file: &PackedFile,
    wanted: &Wanted,
) -> Result<Role, Refusal> {
    let mut content = fs::File::open(&file.content).map_err(Refusal::Scratch)?;
    let built_from = elf::go_main_package(&mut content).map_err(Refusal::Scratch)?;
    let by_record = built_from.as_deref().and_then(|main| {
        let last = main.rsplit('/').next().unwrap_or(main);
        Role::ALL.into_iter().find(|role| executable(*role) == last)
    });
    let name = path.file_name().unwrap_or_default();
    let mut by_name = Role::ALL.into_iter().filter(|role| name.contains(executable(*role)));
    let mut alone = wanted.keys().copied();
    match (by_record, by_name.next(), by_name.next()) {
        (Some(role), _, _) | (None, Some(role), None) => Ok(role),
        _ => match (alone.next(), alone.next()) {
            (Some(role), None) => Ok(role),
            _ => Err(Refusal::Nameless),
        },
    }
}
