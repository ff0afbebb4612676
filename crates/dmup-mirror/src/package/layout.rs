//! Where the components of a package are, and where their files belong below `bin`.

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::instance::Role;

use super::refusal::Refusal;
use super::unpack::Tree;

/// One component in a package.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Found {
    /// Its executable, by path in the package.
    pub(super) binary: Utf8PathBuf,
    /// All its files: path in the package, path below `bin`.
    pub(super) replace: Vec<(Utf8PathBuf, Utf8PathBuf)>,
}

/// Looks for a component.
///
/// # Errors
///
/// [`Refusal::Ambiguous`] if several files could be its executable.
pub(super) fn find(tree: &Tree, role: Role) -> Result<Option<Found>, Refusal> {
    let mut all: Vec<&Utf8PathBuf> =
        tree.keys().filter(|path| path.file_name() == Some(executable(role))).collect();
    if all.len() > 1 {
        let usual: Vec<_> = all.iter().copied().filter(|path| is_usual_place(path, role)).collect();
        if !usual.is_empty() {
            all = usual;
        }
    }
    match all[..] {
        [] => Ok(None),
        [binary] => {
            Ok(Some(Found { binary: binary.clone(), replace: replace(tree, role, binary) }))
        }
        _ => {
            Err(Refusal::Ambiguous { role, entries: all.iter().map(ToString::to_string).collect() })
        }
    }
}

/// `dm-master`, `grafana-server`.
pub(super) fn executable(role: Role) -> &'static str {
    folder_and_name(role).1
}

/// `dm-master` and `dm-master`; `bin` and `grafana-server`.
fn folder_and_name(role: Role) -> (&'static str, &'static str) {
    role.binary().split_once('/').expect("a binary lies in a folder of its own")
}

fn is_usual_place(path: &Utf8Path, role: Role) -> bool {
    path.parent().and_then(Utf8Path::file_name) == Some(folder_and_name(role).0)
}

/// Other executables that belong to the component where it has no folder of its own.
fn companions(role: Role) -> &'static [&'static str] {
    match role {
        Role::DmMaster | Role::DmWorker => &[],
        Role::Prometheus => &["promtool"],
        Role::Grafana => &["grafana", "grafana-cli"],
        Role::Alertmanager => &["amtool"],
        Role::NodeExporter | Role::BlackboxExporter => &[],
    }
}

fn replace(tree: &Tree, role: Role, binary: &Utf8Path) -> Vec<(Utf8PathBuf, Utf8PathBuf)> {
    let (folder, _) = folder_and_name(role);
    let parent = binary.parent().unwrap_or(Utf8Path::new(""));
    let mut pairs: Vec<(Utf8PathBuf, Utf8PathBuf)> =
        if role == Role::Grafana && is_usual_place(binary, role) {
            // Its home is the folder above `bin`, and becomes the instance's whole `bin`.
            let home = parent.parent().unwrap_or(Utf8Path::new(""));
            below(tree, home)
                .filter(|(path, _)| !belongs_to_another(path, home, role))
                .map(|(path, rest)| (path.to_owned(), rest.to_owned()))
                .collect()
        } else if is_own_folder(tree, parent, role) {
            below(tree, parent)
                .map(|(path, rest)| (path.to_owned(), Utf8Path::new(folder).join(rest)))
                .collect()
        } else {
            std::iter::once(executable(role))
                .chain(companions(role).iter().copied())
                .map(|name| (parent.join(name), Utf8Path::new(folder).join(name)))
                .filter(|(path, _)| tree.contains_key(path))
                .collect()
        };
    if role == Role::Prometheus {
        // TiUP's package has it beside the folder, and its script starts it from `bin`.
        let beside = parent.parent().unwrap_or(Utf8Path::new("")).join("ng-monitoring-server");
        if tree.contains_key(&beside) && is_usual_place(binary, role) {
            pairs.push((beside, Utf8PathBuf::from("ng-monitoring-server")));
        }
    }
    pairs.sort();
    pairs
}

/// `dm-master/`, or `prometheus-2.49.1.linux-amd64/`: everything in it is the component's.
fn is_own_folder(tree: &Tree, folder: &Utf8Path, role: Role) -> bool {
    let Some(name) = folder.file_name() else { return false };
    let named = name == role.as_str()
        || name.strip_prefix(role.as_str()).is_some_and(|rest| rest.starts_with('-'));
    let shared = Role::ALL
        .into_iter()
        .any(|other| other != role && tree.contains_key(&folder.join(executable(other))));
    named && !shared
}

fn belongs_to_another(path: &Utf8Path, home: &Utf8Path, role: Role) -> bool {
    let Ok(rest) = path.strip_prefix(home) else { return false };
    let first = rest.components().next().map(|part| part.as_str());
    Role::ALL.into_iter().filter(|other| *other != role).any(|other| {
        (first == Some(other.as_str()) && rest.components().count() > 1)
            || rest.file_name() == Some(executable(other))
    })
}

/// Files below a folder, with the rest of their path.
fn below<'a>(
    tree: &'a Tree,
    folder: &'a Utf8Path,
) -> impl Iterator<Item = (&'a Utf8Path, &'a Utf8Path)> {
    tree.keys().filter_map(move |path| Some((path.as_path(), path.strip_prefix(folder).ok()?)))
}
