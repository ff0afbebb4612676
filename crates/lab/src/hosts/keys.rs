//! Keys of a set: one to log in as root everywhere, and each host's own.
//!
//! Facts: OpenSSH 9.2 (`ssh-keygen`, known_hosts lines of names, kind and key).

use std::fmt::Write as _;

use camino::Utf8Path;
use fs_err as fs;

use super::LabError;
use super::names::{Place, SetName};
use crate::command;

/// The kinds of host key that the hosts' sshd is told to have.
pub(super) const KINDS: [&str; 2] = ["ed25519", "ecdsa"];

pub(super) fn host_key_file(kind: &str) -> String {
    format!("ssh_host_{kind}_key")
}

/// The set's private login key.
pub(super) fn login_key(set: &SetName) -> camino::Utf8PathBuf {
    set.folder().join("login_key")
}

/// The hosts' public keys, as ssh wants to have them.
pub(super) fn known_hosts(set: &SetName) -> camino::Utf8PathBuf {
    set.folder().join("known_hosts")
}

/// Makes a key pair at `path` and `path.pub`, unless both are there.
pub(super) fn ensure_pair(path: &Utf8Path, kind: &str, comment: &str) -> Result<(), LabError> {
    let public = Utf8Path::new(path.as_str())
        .with_file_name(format!("{}.pub", path.file_name().expect("key paths end in a file name")));
    if path.exists() && public.exists() {
        return Ok(());
    }
    for half in [path, &public] {
        if half.exists() {
            fs::remove_file(half).map_err(LabError::files("making keys"))?;
        }
    }
    command::run("ssh-keygen", &["-q", "-t", kind, "-N", "", "-C", comment, "-f", path.as_str()])?;
    Ok(())
}

/// Writes the set's known_hosts from the keys in the hosts' folders.
pub(super) fn write_known_hosts(places: &[Place]) -> Result<(), LabError> {
    let Some(first) = places.first() else { return Ok(()) };
    let mut text = String::new();
    for place in places {
        for kind in KINDS {
            let public = place.upper().join("etc/ssh").join(format!("{}.pub", host_key_file(kind)));
            let line = fs::read_to_string(&public).map_err(LabError::files("reading host keys"))?;
            let mut words = line.split_whitespace();
            let (kind, key) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            writeln!(text, "{},{} {kind} {key}", place.name(), place.address())
                .expect("writing into a string");
        }
    }
    fs::write(known_hosts(&first.set), text).map_err(LabError::files("writing known_hosts"))
}
