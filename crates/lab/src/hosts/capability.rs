//! Whether this machine can boot hosts at all, found out by trying each part without leaving anything behind.

use std::process::Command;

use super::names::SetName;
use crate::command;

/// What keeps this machine from booting hosts.
#[derive(Debug, thiserror::Error)]
#[error("this machine cannot boot test hosts: {}", .0.join("; "))]
pub struct Missing(pub Vec<String>);

/// Tries whatever booting hosts needs: root, programs, network namespaces, bridges, overlay mounts.
///
/// # Errors
///
/// [`Missing`] with everything that is missing.
pub fn can_boot_hosts() -> Result<(), Missing> {
    if !rustix::process::geteuid().is_root() {
        return Err(Missing(vec!["not root".into()]));
    }
    let mut missing = Vec::new();
    for program in ["systemd-nspawn", "mmdebstrap", "ip", "unshare", "nsenter", "ssh", "ssh-keygen"]
    {
        if !command::is_installed(program) {
            missing.push(format!("no {program}"));
        }
    }
    let tries: [(&str, &[&str]); 3] = [
        ("network namespaces", &["--net", "true"]),
        ("bridges", &["--net", "ip", "link", "add", "name", "probe", "type", "bridge"]),
        ("cables (veth)", &["--net", "ip", "link", "add", "probe", "type", "veth"]),
    ];
    for (what, args) in tries {
        if let Err(error) = command::run("unshare", args) {
            missing.push(format!("{what}: {error}"));
        }
    }
    if let Err(why) = try_overlay() {
        missing.push(format!("overlay mounts below {}: {why}", SetName::base()));
    }
    if missing.is_empty() { Ok(()) } else { Err(Missing(missing)) }
}

fn try_overlay() -> Result<(), String> {
    let base = SetName::base();
    fs_err::create_dir_all(&base).map_err(|error| error.to_string())?;
    let folder = tempfile::Builder::new()
        .prefix(".probe-")
        .tempdir_in(&base)
        .map_err(|error| error.to_string())?;
    for part in ["lower", "upper", "work", "root"] {
        fs_err::create_dir(folder.path().join(part)).map_err(|error| error.to_string())?;
    }
    let mut mount = Command::new("unshare");
    mount
        .args(["--mount", "mount", "-t", "overlay", "overlay"])
        .args(["-o", "lowerdir=lower,upperdir=upper,workdir=work", "root"])
        .current_dir(folder.path());
    command::finish(&mut mount).map(drop).map_err(|error| error.to_string())
}
