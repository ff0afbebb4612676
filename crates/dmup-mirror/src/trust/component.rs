//! Which packages a component has.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use dmup_core::digest::Digest;
use dmup_core::version::DmVersion;
use jiff::Timestamp;
use serde::Deserialize;

use super::chain::sha256;
use super::document::date;
use super::names::{ComponentId, FileName};
use super::refusal::{ManifestError, ManifestRefusal};

/// A component's manifest: its packages by platform and version.
#[derive(Clone, Debug)]
pub struct ComponentManifest {
    id: ComponentId,
    version: u64,
    expires: Timestamp,
    nightly: String,
    platforms: BTreeMap<String, BTreeMap<String, PackageEntry>>,
}

#[derive(Deserialize)]
pub(super) struct ComponentFile {
    id: String,
    version: u64,
    expires: String,
    #[serde(default)]
    nightly: Option<String>,
    platforms: BTreeMap<String, BTreeMap<String, PackageEntry>>,
}

#[derive(Clone, Debug, Deserialize)]
struct PackageEntry {
    url: String,
    #[serde(default)]
    yanked: bool,
    #[serde(default)]
    entry: String,
    hashes: BTreeMap<String, String>,
    #[serde(default)]
    length: u64,
}

/// One package as a manifest lists it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ListedPackage {
    /// Its version, as the manifest writes it.
    pub version: DmVersion,
    /// Its name on the mirror.
    pub file: FileName,
    /// Its SHA-256.
    pub sha256: Digest,
    /// Its length as listed; 0 if it is not.
    pub length: u64,
    /// Withdrawn by its owner: not for what is new.
    pub yanked: bool,
}

impl ComponentFile {
    /// Whose it says it is; nothing of it is checked yet.
    pub(super) fn id(&self) -> &str {
        &self.id
    }
}

impl ComponentManifest {
    pub(super) fn from_file(
        id: &ComponentId,
        content: ComponentFile,
    ) -> Result<Self, ManifestRefusal> {
        if content.id != id.as_str() {
            let found = content.id.chars().filter(|c| !c.is_control()).take(80).collect();
            return Err(ManifestRefusal::OtherComponent { found, wanted: id.to_string() });
        }
        Ok(Self {
            id: id.clone(),
            version: content.version,
            expires: date(&content.expires)?,
            nightly: content.nightly.unwrap_or_default(),
            platforms: content.platforms,
        })
    }

    /// Its number.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Until when it counts.
    pub fn expires(&self) -> Timestamp {
        self.expires
    }

    /// The package of a version; `nightly` is the one that the manifest calls so.
    ///
    /// # Errors
    ///
    /// If there is none for this platform, which the error says, with those there are.
    pub fn package(
        &self,
        version: &DmVersion,
        os: &str,
        arch: &str,
    ) -> Result<ListedPackage, ManifestError> {
        let key =
            if version.numbers().is_none() { self.nightly.as_str() } else { version.as_str() };
        match self.versions(os, arch).find(|(listed, _)| *listed == key) {
            Some((key, entry)) => self.listed(key, entry),
            None => {
                let newest = self.newest(os, arch).ok().map(|it| it.version);
                Err(self.refuse(self.not_there(version.as_str(), os, arch, newest.as_ref())))
            }
        }
    }

    /// The newest release that is not withdrawn; if there is none, the newest prerelease (TiUP's rule).
    ///
    /// # Errors
    ///
    /// If there is nothing for this platform.
    pub fn newest(&self, os: &str, arch: &str) -> Result<ListedPackage, ManifestError> {
        let newest = self
            .versions(os, arch)
            .filter(|(key, entry)| !entry.yanked && *key != self.nightly)
            .filter_map(|(key, entry)| {
                let numbers = key.parse::<DmVersion>().ok()?.numbers()?;
                Some((Reverse(key.contains('-')), numbers, key, entry))
            })
            .max_by(|a, b| (a.0, a.1, a.2).cmp(&(b.0, b.1, b.2)));
        match newest {
            Some((_, _, key, entry)) => self.listed(key, entry),
            None => Err(self.refuse(self.not_there("any version", os, arch, None))),
        }
    }

    /// Platforms that have a version, e.g. `linux/arm64`.
    pub fn platforms_with<'a>(&'a self, version: &'a DmVersion) -> impl Iterator<Item = &'a str> {
        self.platforms
            .iter()
            .filter(|(_, versions)| versions.contains_key(version.as_str()))
            .map(|(platform, _)| platform.as_str())
    }

    /// Entries without an executable's path do not count (TiUP's rule); `any/any` stands in for every platform.
    fn versions(&self, os: &str, arch: &str) -> impl Iterator<Item = (&str, &PackageEntry)> {
        self.platforms
            .get(&format!("{os}/{arch}"))
            .or_else(|| self.platforms.get("any/any"))
            .into_iter()
            .flatten()
            .filter(|(_, entry)| !entry.entry.is_empty())
            .map(|(key, entry)| (key.as_str(), entry))
    }

    fn not_there(
        &self,
        version: &str,
        os: &str,
        arch: &str,
        newest: Option<&DmVersion>,
    ) -> ManifestRefusal {
        let mut text = format!("{} {version} for {os}/{arch}", self.id);
        let parsed: Option<DmVersion> = version.parse().ok();
        let others: Vec<&str> = parsed
            .iter()
            .flat_map(|it| self.platforms_with(it))
            .filter(|it| it.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'/'))
            .take(8)
            .collect();
        if !others.is_empty() {
            text.push_str(&format!(" (but for {})", others.join(", ")));
        } else if let Some(newest) = newest {
            text.push_str(&format!(" (the newest is {newest})"));
        }
        ManifestRefusal::NotListed(text)
    }

    fn listed(&self, key: &str, entry: &PackageEntry) -> Result<ListedPackage, ManifestError> {
        let parse = || {
            let version = key
                .parse()
                .map_err(|_| ManifestRefusal::bad("version", key, "it must look like v8.1.0"))?;
            Ok(ListedPackage {
                version,
                file: FileName::from_url(&entry.url)?,
                sha256: sha256(&entry.hashes)?,
                length: entry.length,
                yanked: entry.yanked,
            })
        };
        parse().map_err(|refusal| self.refuse(refusal))
    }

    fn refuse(&self, refusal: ManifestRefusal) -> ManifestError {
        refusal.in_file(format!("{}.json", self.id))
    }
}
