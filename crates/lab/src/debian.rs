//! Which Debian packages the test hosts, the stand-in for DM and the demo need, and installing those that are missing.
//!
//! Facts: `dpkg-query` and `apt-get` of Debian 12. Installing needs root. The services of freshly installed packages are kept from
//! starting: for the time of the installation a `policy-rc.d` says no, unless the machine has one already.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use fs_err as fs;

use crate::command::{self, CommandFailed};

/// A Debian package and what it is needed for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Package {
    /// Its name.
    pub name: &'static str,
    /// What for.
    pub needed_for: &'static str,
}

/// What booting hosts and running the demo on them needs.
pub const NEEDED: &[Package] = &[
    Package { name: "systemd-container", needed_for: "booting test hosts (systemd-nspawn)" },
    Package { name: "mmdebstrap", needed_for: "making the hosts' Debian root" },
    Package { name: "debian-archive-keyring", needed_for: "checking what that root is made of" },
    Package { name: "iproute2", needed_for: "the hosts' network" },
    Package { name: "util-linux", needed_for: "entering hosts (nsenter, unshare)" },
    Package { name: "openssh-client", needed_for: "keys, and logging in to hosts" },
    Package { name: "etcd-server", needed_for: "membership and election in the stand-in for DM" },
    Package { name: "prometheus", needed_for: "the monitoring part of a cluster" },
    Package { name: "prometheus-alertmanager", needed_for: "the monitoring part of a cluster" },
    Package { name: "prometheus-node-exporter", needed_for: "the exporters of a cluster" },
    Package { name: "prometheus-blackbox-exporter", needed_for: "the exporters of a cluster" },
];

/// Packages could not be looked up or installed.
#[derive(Debug, thiserror::Error)]
pub enum DebianError {
    /// Not a Debian machine.
    #[error("this is not a Debian machine (no dpkg-query); install these yourself: {0}")]
    NotDebian(String),
    /// Not root.
    #[error("installing Debian packages needs root; install these yourself: {0}")]
    NotRoot(String),
    /// A tool failed.
    #[error(transparent)]
    Command(#[from] CommandFailed),
    /// `policy-rc.d` could not be written or removed.
    #[error("keeping services from starting (/usr/sbin/policy-rc.d)")]
    Policy(#[source] std::io::Error),
}

/// Those of the packages that are not installed.
///
/// # Errors
///
/// [`DebianError::NotDebian`].
pub fn missing(packages: &[Package]) -> Result<Vec<Package>, DebianError> {
    if !command::is_installed("dpkg-query") {
        return Err(DebianError::NotDebian(names(packages)));
    }
    // dpkg-query ends with an error when one of the packages is unknown, and lists the others.
    let listed = command::output(
        Command::new("dpkg-query")
            .args(["--show", "--showformat", "${db:Status-Status} ${Package}\n"])
            .args(packages.iter().map(|package| package.name)),
    )?;
    let listed = String::from_utf8_lossy(&listed.stdout);
    let has = |name: &str| {
        listed.lines().any(|line| line.strip_prefix("installed ").is_some_and(|it| it == name))
    };
    Ok(packages.iter().copied().filter(|package| !has(package.name)).collect())
}

/// Installs what is missing; `say` gets a line for each package, before anything is done.
///
/// # Errors
///
/// [`DebianError`].
pub fn install_missing(packages: &[Package], mut say: impl FnMut(&str)) -> Result<(), DebianError> {
    let missing = missing(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    for package in &missing {
        say(&format!("installing Debian package {}: {}", package.name, package.needed_for));
    }
    if !rustix::process::geteuid().is_root() {
        return Err(DebianError::NotRoot(names(&missing)));
    }
    let _policy = NoServices::begin().map_err(DebianError::Policy)?;
    command::finish(apt_get().args(["update", "--quiet"]))?;
    command::finish(
        apt_get()
            .args(["install", "--yes", "--quiet", "--no-install-recommends"])
            .args(missing.iter().map(|package| package.name)),
    )?;
    Ok(())
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn names(packages: &[Package]) -> String {
    packages.iter().map(|package| package.name).collect::<Vec<_>>().join(" ")
}

/// While it lives, Debian's packages do not start their services.
struct NoServices {
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn begin() -> std::io::Result<Self> {
        use std::io::Write as _;
        let file = fs::OpenOptions::new().write(true).create_new(true).open(POLICY);
        match file {
            Ok(mut file) => {
                file.write_all(
                    b"#!/bin/sh\n# Written while dmup's test set-up installs packages.\nexit 101\n",
                )?;
                file.set_permissions(std::fs::Permissions::from_mode(0o755))?;
                Ok(Self { ours: true })
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                Ok(Self { ours: false })
            }
            Err(error) => Err(error),
        }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            let _gone_already = fs::remove_file(POLICY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_package_is_missing_and_a_part_of_every_debian_is_not() {
        if !command::is_installed("dpkg-query") {
            return;
        }
        let unknown = Package { name: "dmup-no-such-package", needed_for: "nothing" };
        let known = Package { name: "base-files", needed_for: "everything" };
        assert_eq!(missing(&[known, unknown]).unwrap(), [unknown]);
    }
}
