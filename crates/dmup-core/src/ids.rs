//! Names that must not be mixed up.
//!
//! Every name that reaches a host or a path is checked here, once, at its
//! border; past it the type is the proof.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A name that its type does not allow.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{given}` is no {what}: {why}")]
pub struct BadName {
    /// What was given.
    pub given: String,
    /// What it should have been, as a noun phrase.
    pub what: &'static str,
    /// Which rule it breaks.
    pub why: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Deserialize, Serialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks and wraps a name.
            ///
            /// # Errors
            ///
            /// [`BadName`] with the rule that it breaks.
            pub fn new(name: impl Into<String>) -> Result<Self, BadName> {
                let given = name.into();
                let check: fn(&str) -> Result<(), &'static str> = $check;
                match check(&given) {
                    Ok(()) => Ok(Self(given)),
                    Err(why) => Err(BadName { given, what: $what, why }),
                }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadName;
            fn try_from(text: String) -> Result<Self, BadName> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
    };
}

id!(
    /// A cluster, as the operator calls it; also a folder name under `TIUP_HOME`.
    ///
    /// TiUP's own rule: letters, digits, `-`, `_`, `.` (tiup pkg/cluster/manager: ValidateClusterNameOrError).
    ClusterName, "cluster name", |name| {
        if name.is_empty() || name.len() > 128 {
            return Err("it must have 1 to 128 characters");
        }
        if matches!(name, "." | "..") || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
            return Err("only letters, digits, `-`, `_` and `.` are allowed");
        }
        Ok(())
    }
);
id!(
    /// A machine, by `host:` of the topology: an address or a name.
    HostId, "host", |name| {
        if name.is_empty() || name.len() > 253 {
            return Err("it must have 1 to 253 characters");
        }
        if name.starts_with('-') || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:%".contains(c)) {
            return Err("only an address or a host name is allowed");
        }
        Ok(())
    }
);
id!(
    /// One process of one role on one host: `host:port`, first column of `display`.
    InstanceId, "instance", |name| {
        match name.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                if name.starts_with('-') || name.chars().any(|c| c.is_whitespace() || c.is_control() || "/'\"\\`$;,".contains(c)) {
                    return Err("only an address or a host name and a port are allowed");
                }
                Ok(())
            }
            _ => Err("it must be written host:port"),
        }
    }
);
id!(
    /// A DM member's own name (`--name` of a dm-master or dm-worker).
    MemberName, "member name", checked_text
);
id!(
    /// A DM source (one upstream MySQL), by `source-id`.
    SourceId, "source", checked_text
);
id!(
    /// A DM task, by name.
    TaskName, "task", checked_text
);
id!(
    /// A systemd service, with its suffix: `dm-worker-8262.service`.
    UnitName, "unit name", |name| {
        let Some(stem) = name.strip_suffix(".service") else {
            return Err("it must end in .service");
        };
        if stem.is_empty() || stem.len() > 200 || stem.starts_with('-') || !stem.chars().all(|c| c.is_ascii_alphanumeric() || "-_.@".contains(c)) {
            return Err("only letters, digits, `-`, `_`, `.` and `@` are allowed");
        }
        Ok(())
    }
);
id!(
    /// A user or group of a host (`user:` of the topology).
    UserName, "user name", |name| {
        if name.is_empty() || name.len() > 32 {
            return Err("it must have 1 to 32 characters");
        }
        if name.starts_with('-') || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
            return Err("only letters, digits, `-`, `_` and `.` are allowed");
        }
        Ok(())
    }
);

/// DM itself sets few limits; ours keep a name on one line and out of control characters.
fn checked_text(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > 255 {
        return Err("it must have 1 to 255 characters");
    }
    if name.chars().any(char::is_control) {
        return Err("control characters are not allowed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_place_are_refused() {
        for bad in ["", "..", "a/b", "a b", "a;b", "a\n"] {
            assert!(ClusterName::new(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "a", "a:", ":1", "a:99999", "-o:1", "a b:1", "a'b:1"] {
            assert!(InstanceId::new(bad).is_err(), "{bad:?}");
        }
        for bad in ["x", "-x.service", ".service", "a b.service", "../x.service"] {
            assert!(UnitName::new(bad).is_err(), "{bad:?}");
        }
        assert!(InstanceId::new("172.16.100.21:8262").is_ok());
        assert!(InstanceId::new("[fd00::1]:8262").is_ok());
        assert!(UnitName::new("dm-worker-8262.service").is_ok());
    }
}
