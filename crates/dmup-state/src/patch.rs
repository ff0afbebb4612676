//! Packages that are kept for instances to come: `patch/<component>-<digest>.tar.gz` and a link to the newest.
//!
//! Facts: tiup pkg/cluster/manager/patch.go (`--overwrite`): the link is relative and named
//! `<component>.tar.gz`; a scale-out unpacks whatever it leads to, with `tar -xzf`.

use std::io::ErrorKind;

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::instance::Role;
use fs_err as fs;

use crate::StateError;
use crate::files::{make_dir, sync_dir};

/// What lies in the folder: names that a scale-out looks for, each with whether a file is behind it, and the packages.
pub(crate) fn entries(dir: &Utf8Path) -> (Vec<(Utf8PathBuf, bool)>, Vec<Utf8PathBuf>) {
    let mut paths: Vec<Utf8PathBuf> = dir
        .read_dir_utf8()
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().ends_with(".tar.gz"))
        .map(camino::Utf8DirEntry::into_path)
        .collect();
    paths.sort();
    let is_looked_for = |path: &Utf8PathBuf| {
        Role::ALL.iter().any(|role| path.file_name() == Some(&format!("{role}.tar.gz")))
    };
    let (links, packages): (Vec<_>, Vec<_>) = paths.into_iter().partition(is_looked_for);
    let links = links.into_iter().map(|path| {
        let leads = path.is_file();
        (path, leads)
    });
    (links.collect(), packages)
}

pub(crate) fn keep(
    dir: &Utf8Path,
    component: &str,
    package: &Utf8Path,
    digest: &str,
) -> Result<Utf8PathBuf, StateError> {
    let attempt = || StateError::system(format!("keep {package} in {dir}"));
    make_dir(dir, 0o755)?;
    let name = format!("{component}-{}.tar.gz", digest.get(..7).unwrap_or(digest));
    let target = dir.join(&name);
    let temporary = dir.join(format!(".{name}.{}.new", std::process::id()));
    fs::copy(package.as_std_path(), temporary.as_std_path()).map_err(attempt())?;
    fs::File::open(temporary.as_std_path()).and_then(|file| file.sync_all()).map_err(attempt())?;
    fs::rename(temporary.as_std_path(), target.as_std_path()).map_err(attempt())?;

    lead(dir, component, &name).map_err(attempt())
}

/// Where the link of a component leads, by its name in the folder; none if there is no link.
pub(crate) fn leads_to(dir: &Utf8Path, component: &str) -> Option<String> {
    let target = dir.join(format!("{component}.tar.gz")).read_link_utf8().ok()?;
    target.file_name().map(str::to_owned)
}

/// Makes the link of a component lead to another package of the folder, or takes it away if that is not there. The
/// package that it led to goes.
pub(crate) fn lead_back(
    dir: &Utf8Path,
    component: &str,
    to: Option<&str>,
) -> Result<bool, StateError> {
    let attempt = || StateError::system(format!("change what {dir} keeps for {component}"));
    let gone = leads_to(dir, component);
    let to = to.filter(|name| dir.join(name).is_file());
    match to {
        Some(name) => drop(lead(dir, component, name).map_err(attempt())?),
        None => fs::remove_file(dir.join(format!("{component}.tar.gz"))).map_err(attempt())?,
    }
    // Without a link it would be told as half of a `patch --overwrite`.
    if let Some(gone) = gone {
        fs::remove_file(dir.join(gone)).map_err(attempt())?;
    }
    sync_dir(dir).map_err(attempt())?;
    Ok(to.is_some())
}

fn lead(dir: &Utf8Path, component: &str, name: &str) -> std::io::Result<Utf8PathBuf> {
    let link = dir.join(format!("{component}.tar.gz"));
    let new_link = dir.join(format!(".{component}.{}.link", std::process::id()));
    match fs::remove_file(new_link.as_std_path()) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    std::os::unix::fs::symlink(name, &new_link)?;
    fs::rename(new_link.as_std_path(), link.as_std_path())?;
    sync_dir(dir)?;
    Ok(link)
}
