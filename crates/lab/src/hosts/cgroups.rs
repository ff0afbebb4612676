//! A host's own control groups.
//!
//! `systemd-nspawn --keep-unit` leaves a host in its caller's groups, where the systemds of several hosts would meet in the same
//! `system.slice` and count each other's processes as their own. So every host gets groups of its own first, in every hierarchy
//! that a systemd uses: on version 2 there is one, on version 1 and hybrid there are several below `/sys/fs/cgroup`.

use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::LabError;
use crate::waiting::wait_until;

const MOUNT: &str = "/sys/fs/cgroup";

/// Makes the groups and returns the files that a process writes its PID into to join them.
pub(super) fn ensure(group: &str) -> Result<Vec<Utf8PathBuf>, LabError> {
    hierarchies()
        .into_iter()
        .map(|hierarchy| {
            let folder = hierarchy.join(group);
            fs::create_dir_all(&folder).map_err(LabError::files("making control groups"))?;
            Ok(folder.join("cgroup.procs"))
        })
        .collect()
}

/// Removes the groups and all below them; their processes must have ended.
pub(super) fn remove(group: &str) {
    for hierarchy in hierarchies() {
        // A group of a process that has just ended stays busy for a moment.
        wait_until(Duration::from_secs(10), || remove_tree(&hierarchy.join(group)));
    }
}

/// Stops or continues all processes of the groups at once.
pub(super) fn freeze(group: &str, freeze: bool) -> Result<(), LabError> {
    let mount = Utf8Path::new(MOUNT);
    let (file, text) = if mount.join("freezer").is_dir() {
        let file = mount.join("freezer").join(group).join("freezer.state");
        (file, if freeze { "FROZEN" } else { "THAWED" })
    } else {
        (mount.join(group).join("cgroup.freeze"), if freeze { "1" } else { "0" })
    };
    if !file.exists() {
        return Ok(());
    }
    fs::write(file, text).map_err(LabError::files("freezing control groups"))
}

/// Whether a line of `/proc/PID/cgroup` puts the process into the group.
pub(super) fn line_is_in(line: &str, group: &str) -> bool {
    line.splitn(3, ':')
        .nth(2)
        .and_then(|path| path.strip_prefix('/'))
        .and_then(|path| path.strip_prefix(group))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn hierarchies() -> Vec<Utf8PathBuf> {
    let mount = Utf8Path::new(MOUNT);
    if mount.join("cgroup.procs").exists() {
        return vec![mount.to_owned()];
    }
    let Ok(entries) = mount.read_dir_utf8() else { return Vec::new() };
    entries
        .flatten()
        // A group in `cpuset` takes no process before it is given CPUs and memory nodes; systemd 252 does not use it on version 1.
        .filter(|entry| entry.file_name() != "cpuset" && !entry.path().is_symlink())
        .map(|entry| entry.path().to_owned())
        .filter(|path| path.join("cgroup.procs").exists())
        .collect()
}

fn remove_tree(folder: &Utf8Path) -> bool {
    let Ok(entries) = folder.read_dir_utf8() else { return true };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !remove_tree(entry.path()) {
            return false;
        }
    }
    fs::remove_dir(folder).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_holds_what_is_in_it_and_below_and_no_neighbour() {
        let group = "dmup-a-h1";
        assert!(line_is_in("9:name=systemd:/dmup-a-h1", group));
        assert!(line_is_in("0::/dmup-a-h1/payload/init.scope", group));
        assert!(!line_is_in("0::/dmup-a-h10", group));
        assert!(!line_is_in("0::/", group));
    }
}
