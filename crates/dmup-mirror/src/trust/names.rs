//! Names that come from a mirror and become paths: checked once, here.

use std::fmt;

use super::refusal::ManifestRefusal;

const LONGEST: usize = 200;

/// A component's name on a mirror: `dm-master`, `node_exporter`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ComponentId(String);

impl ComponentId {
    /// Checks a name: letters, digits, `-` and `_`.
    ///
    /// # Errors
    ///
    /// If it could not be one.
    pub fn new(given: &str) -> Result<Self, ManifestRefusal> {
        let fits = !given.is_empty()
            && given.len() <= 64
            && given.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
            && !given.starts_with('-');
        if fits {
            Ok(Self(given.to_owned()))
        } else {
            let why = "letters, digits, `-` and `_`, at most 64, and no `-` at the beginning";
            Err(ManifestRefusal::bad("component name", given, why))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ComponentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The name of a file on a mirror, which is one flat folder. Never a path.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct FileName(String);

impl FileName {
    /// Checks a name: letters, digits and `-_.+`, not beginning with `.` or `-`.
    ///
    /// # Errors
    ///
    /// If it could be anything but a file of that folder.
    pub fn new(given: &str) -> Result<Self, ManifestRefusal> {
        let fits = !given.is_empty()
            && given.len() <= LONGEST
            && given.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+".contains(&b))
            && !given.starts_with(['.', '-']);
        if fits {
            Ok(Self(given.to_owned()))
        } else {
            let why = "letters, digits and `-_.+`, and no folder";
            Err(ManifestRefusal::bad("file name", given, why))
        }
    }

    /// Manifests write their file names as `/name`.
    pub(super) fn from_url(url: &str) -> Result<Self, ManifestRefusal> {
        let Some(name) = url.strip_prefix('/') else {
            return Err(ManifestRefusal::bad("address", url, "it must begin with `/`"));
        };
        Self::new(name)
    }

    /// `snapshot.json`, and `7.index.json`.
    pub(super) fn versioned(&self, version: u64) -> Self {
        Self(format!("{version}.{}", self.0))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
