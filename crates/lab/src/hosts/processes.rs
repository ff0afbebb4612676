//! Finding and ending the processes of a host: those, and no other.
//!
//! A process belongs to a host if it is in the host's control groups, in its network namespace, or is the `systemd-nspawn` (or what
//! is about to become it) with the host's own `--directory`. Killing `systemd-nspawn` alone leaves the host running (seen with 252).

use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::names::Place;
use super::{LabError, cgroups};
use crate::waiting::wait_until;

/// The living processes of a host.
pub(super) fn of(place: &Place) -> Vec<Pid> {
    let namespace = identity(&place.namespace());
    all().into_iter().filter(|pid| belongs(*pid, place, namespace)).collect()
}

/// The host's first process, PID 1 as the host sees it. Looked for by the host's network, which each command on a host needs:
/// all that [`of`] looks at would cost more than many of these commands.
pub(super) fn first(place: &Place) -> Option<Pid> {
    let namespace = identity(&place.namespace())?;
    all().into_iter().find(|pid| {
        let folder = proc_folder(*pid);
        identity(&folder.join("ns/net")) == Some(namespace)
            && is_alive(&folder)
            && fs::read_to_string(folder.join("status")).is_ok_and(|status| {
                status.lines().any(|line| {
                    line.strip_prefix("NSpid:").is_some_and(|ids| {
                        let ids: Vec<&str> = ids.split_whitespace().collect();
                        ids.len() > 1 && ids.last() == Some(&"1")
                    })
                })
            })
    })
}

/// Kills all processes of the host and returns once they have ended.
pub(super) fn kill_all(place: &Place) -> Result<(), LabError> {
    // What is frozen does not die on version 1 before it is thawed.
    cgroups::freeze(&place.cgroup(), false)?;
    let gone = wait_until(Duration::from_secs(30), || {
        let namespace = identity(&place.namespace());
        let mut all_gone = true;
        for pid in of(place) {
            all_gone = false;
            // A handle first, then another look: the number could be somebody else's by now.
            if let Ok(handle) = pidfd_open(pid, PidfdFlags::empty())
                && belongs(pid, place, namespace)
            {
                let _ended_already = pidfd_send_signal(handle, Signal::KILL);
            }
        }
        all_gone
    });
    if gone { Ok(()) } else { Err(LabError::StillRunning { machine: place.machine() }) }
}

fn all() -> Vec<Pid> {
    let Ok(entries) = Utf8Path::new("/proc").read_dir_utf8() else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().parse().ok().and_then(Pid::from_raw))
        .collect()
}

fn proc_folder(pid: Pid) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()))
}

fn identity(path: &Utf8Path) -> Option<(u64, u64)> {
    path.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

fn belongs(pid: Pid, place: &Place, namespace: Option<(u64, u64)>) -> bool {
    let folder = proc_folder(pid);
    if !is_alive(&folder) {
        return false;
    }
    let in_namespace = namespace.is_some() && identity(&folder.join("ns/net")) == namespace;
    let in_group = || {
        fs::read_to_string(folder.join("cgroup"))
            .is_ok_and(|text| text.lines().any(|line| cgroups::line_is_in(line, &place.cgroup())))
    };
    let is_nspawn = || {
        let argument = place.directory_argument();
        fs::read(folder.join("cmdline"))
            .is_ok_and(|line| line.split(|byte| *byte == 0).any(|arg| arg == argument.as_bytes()))
    };
    in_namespace || in_group() || is_nspawn()
}

/// Whether it has not ended; one whose parent has not noticed yet has.
fn is_alive(folder: &Utf8Path) -> bool {
    fs::read_to_string(folder.join("stat")).is_ok_and(|stat| {
        // The name before the state is in brackets and may hold anything.
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    })
}
