//! Versions of DM, and what follows from them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::BadName;

/// A release of DM as TiUP writes it: `v5.3.0`, `v5.3.0-20211230`, `v8.1.0`, `nightly`.
///
/// Compared by number only; what follows the third number names a build, not an order.
#[derive(Clone, Debug, Eq, Hash, PartialEq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct DmVersion {
    text: String,
    /// `None` for `nightly`, which counts as newer than every number.
    numbers: Option<(u32, u32, u32)>,
}

impl DmVersion {
    /// Major, minor, patch; `None` for `nightly`.
    pub fn numbers(&self) -> Option<(u32, u32, u32)> {
        self.numbers
    }

    /// The text as given, with its `v`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether a stopping worker ends its subtasks before it gives up its lease.
    ///
    /// From v6.5.0, and v6.1.3 in its line. Below that, the next worker starts
    /// while the old one still writes (measured: reference/dm.md 12.2).
    pub fn stops_subtasks_before_lease(&self) -> bool {
        match self.numbers {
            None => true,
            Some((6, 1, patch)) => patch >= 3,
            Some(numbers) => numbers >= (6, 5, 0),
        }
    }

    /// Whether TiUP's mirror brings a Prometheus with it that can be told to leave HTTP/2 alone (`enable_http2`, from 2.36 on).
    ///
    /// 2.49.1 from v8.0.0 on, 2.27.1 before (release notes of `TiDB` v8.0.0). The older one speaks HTTP/1.1 by itself, and does
    /// not start with a key that it does not know.
    pub fn brings_prometheus_with_http2(&self) -> bool {
        self.numbers.is_none_or(|numbers| numbers >= (8, 0, 0))
    }
}

impl FromStr for DmVersion {
    type Err = BadName;

    fn from_str(given: &str) -> Result<Self, BadName> {
        let bad = |why| BadName { given: given.to_owned(), what: "version", why };
        if given == "nightly" {
            return Ok(Self { text: given.to_owned(), numbers: None });
        }
        if given.len() > 64
            || !given.chars().all(|c| c.is_ascii_alphanumeric() || "-.+_".contains(c))
        {
            return Err(bad("only letters, digits, `-`, `.`, `+` and `_` are allowed"));
        }
        let bare = given.strip_prefix('v').unwrap_or(given);
        let core = bare.split(['-', '+']).next().unwrap_or(bare);
        let mut parts = core.split('.').map(str::parse::<u32>);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch)), None) => {
                Ok(Self { text: format!("v{bare}"), numbers: Some((major, minor, patch)) })
            }
            _ => Err(bad("it must look like v8.1.0")),
        }
    }
}

impl fmt::Display for DmVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl TryFrom<String> for DmVersion {
    type Error = BadName;
    fn try_from(text: String) -> Result<Self, BadName> {
        text.parse()
    }
}

impl From<DmVersion> for String {
    fn from(version: DmVersion) -> Self {
        version.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_stopping_follows_the_version() {
        for (version, safe) in [
            ("v5.3.0", false),
            ("v5.3.0-20211230", false),
            ("v6.1.2", false),
            ("v6.1.3", true),
            ("v6.4.0", false),
            ("v6.5.0", true),
            ("8.1.0", true),
            ("nightly", true),
        ] {
            let parsed: DmVersion = version.parse().unwrap();
            assert_eq!(parsed.stops_subtasks_before_lease(), safe, "{version}");
        }
    }

    #[test]
    fn text_that_could_leave_a_path_is_no_version() {
        for bad in ["", "v1", "v1.2", "v1.2.3/../x", "v1.2.3 ", "latest"] {
            assert!(bad.parse::<DmVersion>().is_err(), "{bad:?}");
        }
    }
}
