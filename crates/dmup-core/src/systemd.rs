//! Whose systemd runs a cluster's services, and where their unit files lie.

use std::fmt;
use std::str::FromStr;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::ids::{UnitName, UserName};

/// Unit files of the machine's own systemd.
pub const OF_SYSTEM: &str = "/etc/systemd/system";
/// Unit files of a user's systemd, below the home folder.
pub const OF_USER: &str = ".config/systemd/user";

/// `global.systemd_mode` of a topology.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SystemdMode {
    /// The machine's own, which takes orders from root alone.
    #[default]
    System,
    /// That of the deploy user. It needs no rights; without lingering it ends when the user logs out.
    User,
}

impl SystemdMode {
    /// The word of the topology.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
        }
    }

    /// What pulls units in that are enabled.
    pub fn boot_target(self) -> &'static str {
        match self {
            Self::System => "multi-user.target",
            // A user's systemd has no other.
            Self::User => "default.target",
        }
    }

    /// The folder of a deploy user's unit files, as TiUP has it: homes are below `/home`.
    pub fn unit_dir(self, user: &UserName) -> Utf8PathBuf {
        match self {
            Self::System => OF_SYSTEM.into(),
            Self::User => Utf8Path::new("/home").join(user.as_str()).join(OF_USER),
        }
    }

    /// The file of a unit.
    pub fn unit_path(self, user: &UserName, unit: &UnitName) -> Utf8PathBuf {
        self.unit_dir(user).join(unit.as_str())
    }

    /// What is left of a path below the folder of unit files, whoever the user is; none for paths elsewhere.
    pub fn below_unit_dir(self, path: &Utf8Path) -> Option<&Utf8Path> {
        match self {
            Self::System => path.strip_prefix(OF_SYSTEM).ok(),
            Self::User => {
                let below_home = path.strip_prefix("/home").ok()?;
                let user = below_home.components().next()?;
                below_home.strip_prefix(user).ok()?.strip_prefix(OF_USER).ok()
            }
        }
    }
}

impl fmt::Display for SystemdMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for SystemdMode {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        [Self::System, Self::User]
            .into_iter()
            .find(|mode| mode.as_str() == word)
            .ok_or_else(|| format!("`{word}` is neither `system` nor `user`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_files_lie_where_tiup_puts_them_and_are_found_again() {
        let user = UserName::new("tidb").unwrap();
        let unit = UnitName::new("dm-master-8261.service").unwrap();
        for (mode, path) in [
            (SystemdMode::System, "/etc/systemd/system/dm-master-8261.service"),
            (SystemdMode::User, "/home/tidb/.config/systemd/user/dm-master-8261.service"),
        ] {
            assert_eq!(mode.unit_path(&user, &unit), path);
            assert_eq!(mode.below_unit_dir(path.into()), Some(unit.as_str().into()));
            assert_eq!(mode.as_str().parse(), Ok(mode));
            for elsewhere in ["/home/tidb/deploy/x", "/home", "/", "/etc/systemd/user/x.service"] {
                assert_eq!(mode.below_unit_dir(elsewhere.into()), None, "{elsewhere}");
            }
        }
        assert!("User".parse::<SystemdMode>().is_err());
    }
}
