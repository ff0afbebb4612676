//! Every name and path of a set, from the set's name and its address block alone, so that `down` finds what a killed `up` left.
//!
//! | what | name |
//! |---|---|
//! | folder | `/var/lib/dmup-lab/SET`, with `set.json`, keys, and a folder per host |
//! | network namespace, machine, control group in every hierarchy | `dmup-SET-hN` |
//! | bridge, host's end of the cable | `dmupB`, `dmupB-N` (an interface name has 15 characters at most) |
//! | addresses | `198.18.B.1` on the bridge, `198.18.B.(10+N)` for host N |

use std::fmt;
use std::net::Ipv4Addr;

use camino::Utf8PathBuf;

use super::LabError;

/// Where sets live. One place per machine, as bridges and namespaces are.
const BASE: &str = "/var/lib/dmup-lab";
/// Hosts of a set.
pub(super) const MOST_HOSTS: u8 = 32;
/// Address blocks.
pub(super) const MOST_BLOCK: u8 = 31;

/// A set's name: 1 to 20 lower-case letters, digits or hyphens, starting with a letter.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub struct SetName(String);

impl SetName {
    /// Checks and wraps a name.
    ///
    /// # Errors
    ///
    /// [`LabError::BadName`].
    pub fn new(name: &str) -> Result<Self, LabError> {
        let fits = (1..=20).contains(&name.len())
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if fits { Ok(Self(name.to_owned())) } else { Err(LabError::BadName(name.to_owned())) }
    }

    /// The folder of all sets.
    pub(super) fn base() -> Utf8PathBuf {
        BASE.into()
    }

    /// The set's folder.
    pub(super) fn folder(&self) -> Utf8PathBuf {
        Self::base().join(&self.0)
    }

    /// Locked while somebody makes, holds or removes the set.
    pub(super) fn lock(&self) -> Utf8PathBuf {
        Self::base().join(format!(".{self}.lock"))
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The names and paths of one host.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Place {
    pub(super) set: SetName,
    pub(super) block: u8,
    /// 1 for h1.
    pub(super) number: u8,
}

impl Place {
    pub(super) fn name(&self) -> String {
        format!("h{}", self.number)
    }

    pub(super) fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.block, 10 + self.number)
    }

    pub(super) fn folder(&self) -> Utf8PathBuf {
        self.set.folder().join(self.name())
    }

    /// Where the overlay is mounted; only the host's own processes see the mount.
    pub(super) fn root(&self) -> Utf8PathBuf {
        self.folder().join("root")
    }

    /// What the host changed of the common root.
    pub(super) fn upper(&self) -> Utf8PathBuf {
        self.folder().join("upper")
    }

    pub(super) fn work(&self) -> Utf8PathBuf {
        self.folder().join("work")
    }

    /// What its console said.
    pub(super) fn console(&self) -> Utf8PathBuf {
        self.folder().join("console.log")
    }

    /// Name of the network namespace, of the machine and of the control group.
    pub(super) fn machine(&self) -> String {
        format!("dmup-{}-{}", self.set, self.name())
    }

    pub(super) fn namespace(&self) -> Utf8PathBuf {
        Utf8PathBuf::from("/run/netns").join(self.machine())
    }

    pub(super) fn bridge(&self) -> String {
        bridge(self.block)
    }

    /// The end of the host's cable that is in the bridge.
    pub(super) fn cable(&self) -> String {
        format!("dmup{}-{}", self.block, self.number)
    }

    /// The argument that only this host's `systemd-nspawn` has.
    pub(super) fn directory_argument(&self) -> String {
        format!("--directory={}", self.root())
    }

    /// Name of the control group, below the root of each hierarchy.
    pub(super) fn cgroup(&self) -> String {
        self.machine()
    }
}

/// The bridge of a block.
pub(super) fn bridge(block: u8) -> String {
    format!("dmup{block}")
}

/// This machine's own address in a block.
pub(super) fn gateway(block: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, block, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_names_fit_into_what_the_kernel_allows() {
        let set = SetName::new("a-name-of-twenty-abc").unwrap();
        let place = Place { set, block: MOST_BLOCK, number: MOST_HOSTS };
        assert!(place.cable().len() <= 15 && place.bridge().len() <= 15);
        assert_eq!(place.address().to_string(), "198.18.31.42");
        assert_eq!(place.machine(), "dmup-a-name-of-twenty-abc-h32");
    }

    #[test]
    fn names_that_could_leave_the_folder_are_refused() {
        for bad in ["", "..", "a/b", "-a", "A", "1a", "a-name-of-twenty-one-x", ".x"] {
            assert!(SetName::new(bad).is_err(), "{bad}");
        }
    }
}
