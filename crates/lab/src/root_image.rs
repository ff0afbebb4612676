//! The Debian root that all hosts run on: made once by `mmdebstrap`, cached, never changed afterwards.
//!
//! It lies in the cache folder under a name that carries the hash of its recipe, so that a changed recipe makes a new one. Made
//! beside that name and renamed when complete; a lock lets a second process wait for the first. Takes about 40 s and 240 MB.
//! Hosts see it through an overlay, so it must not be changed while one runs.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use sha2::{Digest as _, Sha256};

use crate::command::{self, CommandFailed};
use crate::surroundings;

/// The Debian release. Part of the recipe.
const SUITE: &str = "bookworm";
/// What it carries beside the essential packages. Part of the recipe.
const PACKAGES: &str = "systemd,systemd-sysv,libpam-systemd,dbus,openssh-server,sudo,iproute2,ca-certificates,procps,tar,gzip,curl";
/// Units that only slow a host's start down or wake it up at odd times. Part of the recipe.
const MASKED: &[&str] = &[
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "console-getty.service",
    "getty.target",
    "dev-hugepages.mount",
    "sys-fs-fuse-connections.mount",
    "modprobe@.service",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-firstboot.service",
    "systemd-pcrphase.service",
    "systemd-pcrphase-sysinit.service",
];
/// Part of the recipe. Each host gets its own keys; the two kinds are those that clients prefer.
const SSHD_CONFIG: &str = "UseDNS no
MaxStartups 200:30:400
MaxSessions 200
PermitRootLogin prohibit-password
HostKey /etc/ssh/ssh_host_ed25519_key
HostKey /etc/ssh/ssh_host_ecdsa_key
";
/// Part of the recipe. Tests restart sshd more often than systemd takes for sane.
const SSHD_UNIT: &str = "[Unit]
StartLimitIntervalSec=0
";
/// Debian's alertmanager wants its web files on the host that it runs on.
const ALERTMANAGER_FILES: &str = "/usr/share/prometheus/alertmanager";

/// The root could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RootImageError {
    /// The cache cannot be written.
    #[error("making the hosts' Debian root in {folder}")]
    Files {
        /// The cache folder.
        folder: Utf8PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A tool failed.
    #[error("making the hosts' Debian root")]
    Command(#[from] CommandFailed),
    /// Debian's alertmanager is not installed here.
    #[error(
        "{ALERTMANAGER_FILES} is not on this machine; Debian's prometheus-alertmanager carries it"
    )]
    NoAlertmanager,
}

/// Returns the root's folder, after making it if it is not cached yet; `say` hears about that before it starts.
///
/// # Errors
///
/// [`RootImageError`].
pub fn ensure(mut say: impl FnMut(&str)) -> Result<Utf8PathBuf, RootImageError> {
    let folder = surroundings::cache_folder();
    let files = |source| RootImageError::Files { folder: folder.clone(), source };
    let root = folder.join(format!("debian-root-{}", recipe_hash()));
    if root.is_dir() {
        return Ok(root);
    }
    fs::create_dir_all(&folder).map_err(files)?;
    let lock = fs::File::create(folder.join("debian-root.lock")).map_err(files)?;
    lock.file().lock().map_err(files)?;
    if root.is_dir() {
        return Ok(root);
    }
    if !Utf8Path::new(ALERTMANAGER_FILES).is_dir() {
        return Err(RootImageError::NoAlertmanager);
    }
    say("making the Debian root for test hosts (about a minute, once)");
    let partial = folder.join("debian-root.partial");
    remove_partial(&partial)?;
    command::run(
        "mmdebstrap",
        &[
            "--mode=root",
            "--variant=minbase",
            &format!("--include={PACKAGES}"),
            SUITE,
            partial.as_str(),
        ],
    )?;
    furnish(&partial).map_err(files)?;
    command::run(
        "cp",
        &["-r", ALERTMANAGER_FILES, partial.join("usr/share/prometheus/").as_str()],
    )?;
    fs::rename(&partial, &root).map_err(files)?;
    Ok(root)
}

fn recipe_hash() -> String {
    // The number stands for what `furnish` does.
    let recipe = format!("3 {SUITE} {PACKAGES} {MASKED:?} {SSHD_CONFIG} {SSHD_UNIT}");
    hex::encode(&Sha256::digest(recipe)[..6])
}

/// Removes what a killed `ensure` left; mounts first, for they would be emptied as well.
fn remove_partial(partial: &Utf8Path) -> Result<(), RootImageError> {
    if !partial.exists() {
        return Ok(());
    }
    for mount in crate::hosts::mounts_under(partial) {
        command::run("umount", &["--lazy", mount.as_str()])?;
    }
    // rm stays on one file system, should a mount have been missed.
    command::finish(Command::new("rm").args(["-rf", "--one-file-system", partial.as_str()]))?;
    Ok(())
}

fn furnish(root: &Utf8Path) -> std::io::Result<()> {
    for entry in root.join("etc/ssh").read_dir_utf8()? {
        let entry = entry?;
        if entry.file_name().starts_with("ssh_host_") {
            fs::remove_file(entry.path())?;
        }
    }
    fs::write(root.join("etc/ssh/sshd_config.d/lab.conf"), SSHD_CONFIG)?;
    // Empty means: the host makes its own at its first start.
    fs::write(root.join("etc/machine-id"), "")?;
    fs::write(root.join("etc/resolv.conf"), "")?;
    // Without this each sudo waits for a DNS server that is not there.
    let nsswitch = root.join("etc/nsswitch.conf");
    let text: String = fs::read_to_string(&nsswitch)?
        .lines()
        .map(|line| if line.starts_with("hosts:") { "hosts: files" } else { line })
        .flat_map(|line| [line, "\n"])
        .collect();
    fs::write(&nsswitch, text)?;
    // A user's systemd runs for those that linger; each login would start one for its time, and wait for that.
    let session = root.join("etc/pam.d/common-session");
    let text = fs::read_to_string(&session)?;
    let lines = text.lines().filter(|line| !line.contains("pam_systemd.so"));
    fs::write(&session, lines.flat_map(|line| [line, "\n"]).collect::<String>())?;
    let units = root.join("etc/systemd/system");
    for unit in MASKED {
        let link = units.join(unit);
        if link.is_symlink() {
            fs::remove_file(&link)?;
        }
        symlink("/dev/null", &link)?;
    }
    // Generators read fstab, init.d, the kernel's command line and disks, of which hosts have none, at each daemon-reload.
    let generators = root.join("etc/systemd/system-generators");
    fs::create_dir_all(&generators)?;
    for entry in root.join("lib/systemd/system-generators").read_dir_utf8()? {
        symlink("/dev/null", generators.join(entry?.file_name()))?;
    }
    fs::create_dir_all(units.join("ssh.service.d"))?;
    fs::write(units.join("ssh.service.d/lab.conf"), SSHD_UNIT)?;
    let default = units.join("default.target");
    if default.is_symlink() {
        fs::remove_file(&default)?;
    }
    symlink("/lib/systemd/system/multi-user.target", &default)?;
    fs::create_dir_all(root.join("usr/share/prometheus"))?;
    fs::set_permissions(root, std::fs::Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn furnishing_leaves_no_host_key_no_dns_and_no_systemd_of_each_login_behind() {
        let temp = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(temp.path()).unwrap();
        for folder in [
            "etc/ssh/sshd_config.d",
            "etc/systemd/system",
            "etc/pam.d",
            "lib/systemd/system-generators",
            "usr/share",
        ] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::write(root.join("lib/systemd/system-generators/of-fstab"), "").unwrap();
        fs::write(root.join("etc/ssh/ssh_host_rsa_key"), "secret").unwrap();
        fs::write(root.join("etc/nsswitch.conf"), "passwd: files\nhosts: files dns\n").unwrap();
        let session = "session required pam_unix.so\nsession optional pam_systemd.so\n";
        fs::write(root.join("etc/pam.d/common-session"), session).unwrap();
        furnish(root).unwrap();
        assert!(!root.join("etc/ssh/ssh_host_rsa_key").exists());
        let nsswitch = fs::read_to_string(root.join("etc/nsswitch.conf")).unwrap();
        assert_eq!(nsswitch, "passwd: files\nhosts: files\n");
        let session = fs::read_to_string(root.join("etc/pam.d/common-session")).unwrap();
        assert_eq!(session, "session required pam_unix.so\n");
        for masked in ["system/apt-daily.timer", "system-generators/of-fstab"] {
            let link = fs::read_link(root.join("etc/systemd").join(masked)).unwrap();
            assert_eq!(link.to_str(), Some("/dev/null"));
        }
    }
}
