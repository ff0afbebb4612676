//! From the root that is trusted to the index of components.

use std::collections::BTreeMap;

use dmup_core::digest::Digest;
use jiff::Timestamp;
use serde::Deserialize;

use super::component::{ComponentFile, ComponentManifest};
use super::document::{Document, date, limits, refuse_expired};
use super::keys::{KeyEntry, Signers};
use super::names::{ComponentId, FileName};
use super::refusal::{ManifestError, ManifestRefusal};

const ROOT: &str = "root.json";
const TIMESTAMP: &str = "timestamp.json";
const SNAPSHOT: &str = "snapshot.json";
const INDEX: &str = "index.json";

/// A root manifest that is trusted: it names the keys of all others.
#[derive(Clone, Debug)]
pub struct Root {
    version: u64,
    expires: Timestamp,
    root: Signers,
    timestamp: Signers,
    snapshot: Signers,
    index: Signers,
}

#[derive(Deserialize)]
pub(super) struct RootFile {
    version: u64,
    expires: String,
    roles: BTreeMap<String, RoleEntry>,
}

#[derive(Deserialize)]
struct RoleEntry {
    keys: BTreeMap<String, KeyEntry>,
    threshold: u64,
}

impl Root {
    /// A root that the operator trusts because of where it lies. It must have signed itself.
    ///
    /// # Errors
    ///
    /// If it is not a root or not signed by its own keys. Its date does not count here: a later root can follow.
    pub fn known(bytes: &[u8]) -> Result<Self, ManifestError> {
        Self::parse(bytes, |_| Ok(())).map_err(|refusal| refusal.in_file(ROOT))
    }

    /// The root after this one: signed by this one's keys and by its own.
    ///
    /// # Errors
    ///
    /// If either is missing, or it is not the very next version.
    pub fn next(&self, bytes: &[u8]) -> Result<Self, ManifestError> {
        let file = self.next_file();
        let next = Self::parse(bytes, |document| document.check(&self.root))
            .map_err(|refusal| refusal.in_file(file.as_str()))?;
        let wanted = self.version.saturating_add(1);
        if next.version == wanted {
            Ok(next)
        } else {
            let refusal = ManifestRefusal::RootGap { wanted, offered: next.version };
            Err(refusal.in_file(file.as_str()))
        }
    }

    fn parse(
        bytes: &[u8],
        vouched: impl FnOnce(&Document<'_>) -> Result<(), ManifestRefusal>,
    ) -> Result<Self, ManifestRefusal> {
        let document = Document::parse(bytes, limits::ROOT_BYTES)?;
        vouched(&document)?;
        let root = Self::from_file(document.content("root")?)?;
        document.check(&root.root)?;
        Ok(root)
    }

    pub(super) fn from_file(content: RootFile) -> Result<Self, ManifestRefusal> {
        let signers = |role: &'static str| {
            let entry = content
                .roles
                .get(role)
                .ok_or_else(|| ManifestRefusal::NotListed(format!("the role {role}")))?;
            Signers::new(role, &entry.keys, entry.threshold)
        };
        Ok(Self {
            version: content.version,
            expires: date(&content.expires)?,
            root: signers("root")?,
            timestamp: signers("timestamp")?,
            snapshot: signers("snapshot")?,
            index: signers("index")?,
        })
    }

    /// Its number.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Until when its keys may vouch for what is new.
    pub fn expires(&self) -> Timestamp {
        self.expires
    }

    /// Under which name the root after this one would be on the mirror.
    pub fn next_file(&self) -> FileName {
        FileName::new(ROOT).expect("a file name").versioned(self.version.saturating_add(1))
    }

    fn refuse_old_keys(&self, now: Timestamp) -> Result<(), ManifestRefusal> {
        if self.expires <= now {
            return Err(ManifestRefusal::KeysExpired { by: ROOT, since: self.expires });
        }
        Ok(())
    }

    /// A timestamp that was accepted once.
    ///
    /// # Errors
    ///
    /// If it is none, or the signatures are not good.
    pub fn known_timestamp(&self, bytes: &[u8]) -> Result<TimestampManifest, ManifestError> {
        TimestampManifest::parse(bytes, &self.timestamp)
            .map_err(|refusal| refusal.in_file(TIMESTAMP))
    }

    /// The timestamp that a mirror offers.
    ///
    /// # Errors
    ///
    /// As above; if it or this root expired; if it is older than the known one.
    pub fn next_timestamp(
        &self,
        bytes: &[u8],
        known: Option<&TimestampManifest>,
        now: Timestamp,
    ) -> Result<TimestampManifest, ManifestError> {
        let check = || {
            let next = TimestampManifest::parse(bytes, &self.timestamp)?;
            self.refuse_old_keys(now)?;
            refuse_expired(next.expires, now)?;
            refuse_older(known.map(|it| it.version), next.version)?;
            Ok(next)
        };
        check().map_err(|refusal: ManifestRefusal| refusal.in_file(TIMESTAMP))
    }

    /// A snapshot that was accepted once.
    ///
    /// # Errors
    ///
    /// If it is none, or the signatures are not good.
    pub fn known_snapshot(&self, bytes: &[u8]) -> Result<Snapshot, ManifestError> {
        Snapshot::parse(bytes, &self.snapshot).map_err(|refusal| refusal.in_file(SNAPSHOT))
    }

    /// The snapshot that a timestamp speaks of.
    ///
    /// # Errors
    ///
    /// As above; if the hash is another one; if it or this root expired; if it or anything that it lists is older than known.
    pub fn next_snapshot(
        &self,
        bytes: &[u8],
        timestamp: &TimestampManifest,
        known: Option<&Snapshot>,
        now: Timestamp,
    ) -> Result<Snapshot, ManifestError> {
        let check = || {
            if bytes.len() as u64 > timestamp.snapshot_bytes() {
                return Err(ManifestRefusal::TooLarge { limit: timestamp.snapshot_bytes() });
            }
            let found = Digest::of(bytes);
            if found != timestamp.snapshot {
                return Err(ManifestRefusal::OtherHash {
                    by: TIMESTAMP,
                    promised: timestamp.snapshot.to_string(),
                    found: found.to_string(),
                });
            }
            let next = Snapshot::parse(bytes, &self.snapshot)?;
            self.refuse_old_keys(now)?;
            refuse_expired(next.expires, now)?;
            refuse_older(known.map(|it| it.version), next.version)?;
            for (url, entry) in known.iter().flat_map(|it| &it.files) {
                if let Some(now_listed) = next.files.get(url) {
                    refuse_older(Some(entry.version), now_listed.version)?;
                }
            }
            Ok(next)
        };
        check().map_err(|refusal: ManifestRefusal| refusal.in_file(SNAPSHOT))
    }

    /// An index that was accepted once.
    ///
    /// # Errors
    ///
    /// If it is none, or the signatures are not good.
    pub fn known_index(&self, bytes: &[u8]) -> Result<Index, ManifestError> {
        Index::parse(bytes, limits::MANIFEST_BYTES, &self.index)
            .map_err(|refusal| refusal.in_file(INDEX))
    }

    /// The index that a snapshot speaks of.
    ///
    /// # Errors
    ///
    /// As above; if it is another version, or too long; if it or this root expired; if it is older than known.
    pub fn next_index(
        &self,
        bytes: &[u8],
        snapshot: &Snapshot,
        known: Option<&Index>,
        now: Timestamp,
    ) -> Result<Index, ManifestError> {
        let check = || {
            let promised = snapshot.listed(&format!("/{INDEX}"))?;
            let next = Index::parse(bytes, promised.bytes(), &self.index)?;
            self.refuse_old_keys(now)?;
            refuse_expired(next.expires, now)?;
            refuse_other_version(promised.version, next.version)?;
            refuse_older(known.map(|it| it.version), next.version)?;
            Ok(next)
        };
        let (_, file, _) = snapshot.index_file()?;
        check().map_err(|refusal: ManifestRefusal| refusal.in_file(file.as_str()))
    }
}

fn refuse_older(known: Option<u64>, offered: u64) -> Result<(), ManifestRefusal> {
    match known {
        Some(known) if offered < known => Err(ManifestRefusal::RolledBack { known, offered }),
        Some(_) | None => Ok(()),
    }
}

fn refuse_other_version(promised: u64, found: u64) -> Result<(), ManifestRefusal> {
    if promised == found { Ok(()) } else { Err(ManifestRefusal::OtherVersion { promised, found }) }
}

/// Which snapshot is the newest: the only manifest that is asked for every time.
#[derive(Clone, Debug)]
pub struct TimestampManifest {
    version: u64,
    expires: Timestamp,
    snapshot: Digest,
    length: u64,
}

#[derive(Deserialize)]
pub(super) struct TimestampFile {
    version: u64,
    expires: String,
    meta: BTreeMap<String, HashedEntry>,
}

#[derive(Deserialize)]
struct HashedEntry {
    hashes: BTreeMap<String, String>,
    length: u64,
}

impl TimestampManifest {
    fn parse(bytes: &[u8], signers: &Signers) -> Result<Self, ManifestRefusal> {
        Self::from_file(Document::verified(bytes, limits::TIMESTAMP_BYTES, "timestamp", signers)?)
    }

    pub(super) fn from_file(content: TimestampFile) -> Result<Self, ManifestRefusal> {
        let entry = content
            .meta
            .get("/snapshot.json")
            .ok_or_else(|| ManifestRefusal::NotListed("/snapshot.json".to_owned()))?;
        Ok(Self {
            version: content.version,
            expires: date(&content.expires)?,
            snapshot: sha256(&entry.hashes)?,
            length: entry.length,
        })
    }

    /// Until when it counts.
    pub fn expires(&self) -> Timestamp {
        self.expires
    }

    /// SHA-256 of the snapshot's file.
    pub fn snapshot_hash(&self) -> &Digest {
        &self.snapshot
    }

    /// The snapshot is not longer than this.
    pub fn snapshot_bytes(&self) -> u64 {
        self.length.min(limits::MANIFEST_BYTES)
    }
}

/// The SHA-256 among the hashes of something. Others alone are not enough.
pub(super) fn sha256(hashes: &BTreeMap<String, String>) -> Result<Digest, ManifestRefusal> {
    let text = hashes
        .get("sha256")
        .ok_or_else(|| ManifestRefusal::NotListed("a hash of kind sha256".to_owned()))?;
    Digest::new(text.to_lowercase())
        .map_err(|_| ManifestRefusal::bad("SHA-256", text, "64 hex digits are needed"))
}

/// Which version of each manifest belongs to one edition of the mirror.
#[derive(Clone, Debug)]
pub struct Snapshot {
    version: u64,
    expires: Timestamp,
    files: BTreeMap<String, VersionedEntry>,
}

#[derive(Deserialize)]
pub(super) struct SnapshotFile {
    version: u64,
    expires: String,
    meta: BTreeMap<String, VersionedEntry>,
}

#[derive(Clone, Debug, Deserialize)]
struct VersionedEntry {
    version: u64,
    length: u64,
}

impl VersionedEntry {
    fn bytes(&self) -> u64 {
        self.length.min(limits::MANIFEST_BYTES)
    }
}

impl Snapshot {
    fn parse(bytes: &[u8], signers: &Signers) -> Result<Self, ManifestRefusal> {
        Self::from_file(Document::verified(bytes, limits::MANIFEST_BYTES, "snapshot", signers)?)
    }

    pub(super) fn from_file(content: SnapshotFile) -> Result<Self, ManifestRefusal> {
        Ok(Self { version: content.version, expires: date(&content.expires)?, files: content.meta })
    }

    /// Until when it counts.
    pub fn expires(&self) -> Timestamp {
        self.expires
    }

    fn listed(&self, url: &str) -> Result<&VersionedEntry, ManifestRefusal> {
        self.files.get(url).ok_or_else(|| ManifestRefusal::NotListed(url.to_owned()))
    }

    /// The index of this edition: version, name on the mirror, and how long it is at most.
    ///
    /// # Errors
    ///
    /// If the snapshot does not list one.
    pub fn index_file(&self) -> Result<(u64, FileName, u64), ManifestError> {
        self.file(&FileName::new(INDEX).expect("a file name"))
    }

    fn file(&self, name: &FileName) -> Result<(u64, FileName, u64), ManifestError> {
        let entry =
            self.listed(&format!("/{name}")).map_err(|refusal| refusal.in_file(SNAPSHOT))?;
        Ok((entry.version, name.versioned(entry.version), entry.bytes()))
    }
}

/// Which components there are, and whose keys count for each.
#[derive(Clone, Debug)]
pub struct Index {
    version: u64,
    expires: Timestamp,
    owners: BTreeMap<String, OwnerEntry>,
    components: BTreeMap<String, ComponentEntry>,
}

#[derive(Deserialize)]
pub(super) struct IndexFile {
    version: u64,
    expires: String,
    owners: BTreeMap<String, OwnerEntry>,
    components: BTreeMap<String, ComponentEntry>,
}

#[derive(Clone, Debug, Deserialize)]
struct OwnerEntry {
    keys: BTreeMap<String, KeyEntry>,
    /// Without one nothing is accepted (TiUP's rule): nobody would have to sign.
    #[serde(default)]
    threshold: u64,
}

#[derive(Clone, Debug, Deserialize)]
struct ComponentEntry {
    owner: String,
    url: String,
}

impl Index {
    fn parse(bytes: &[u8], limit: u64, signers: &Signers) -> Result<Self, ManifestRefusal> {
        Self::from_file(Document::verified(bytes, limit, "index", signers)?)
    }

    pub(super) fn from_file(content: IndexFile) -> Result<Self, ManifestRefusal> {
        Ok(Self {
            version: content.version,
            expires: date(&content.expires)?,
            owners: content.owners,
            components: content.components,
        })
    }

    /// Its number.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Until when its keys may vouch for what is new.
    pub fn expires(&self) -> Timestamp {
        self.expires
    }

    fn entry(&self, id: &ComponentId) -> Result<&ComponentEntry, ManifestError> {
        self.components
            .get(id.as_str())
            .ok_or_else(|| ManifestRefusal::NotListed(format!("the component {id}")).in_file(INDEX))
    }

    /// The owner's keys are looked at only now: one of a kind that we do not know spoils its own components only.
    fn signers(&self, id: &ComponentId) -> Result<Signers, ManifestError> {
        let entry = self.entry(id)?;
        let listed = self.owners.get(&entry.owner).ok_or_else(|| {
            ManifestRefusal::NotListed(format!("the owner of {id}")).in_file(INDEX)
        })?;
        let role = format!("{id}'s owner");
        Signers::new(role, &listed.keys, listed.threshold).map_err(|refusal| refusal.in_file(INDEX))
    }

    /// For tests with hostile input: each component's owner, and its file if there is a snapshot.
    pub(super) fn ask_for_everything(&self, snapshot: Option<&Snapshot>) {
        for id in self.components.keys().filter_map(|name| ComponentId::new(name).ok()) {
            drop(self.signers(&id));
            drop(snapshot.map(|it| self.component_file(&id, it)));
        }
    }

    /// A component's manifest in this edition: version, name on the mirror, and how long it is at most.
    ///
    /// # Errors
    ///
    /// If index or snapshot do not list it.
    pub fn component_file(
        &self,
        id: &ComponentId,
        snapshot: &Snapshot,
    ) -> Result<(u64, FileName, u64), ManifestError> {
        let name =
            FileName::from_url(&self.entry(id)?.url).map_err(|refusal| refusal.in_file(INDEX))?;
        snapshot.file(&name)
    }

    /// A component's manifest that was accepted once.
    ///
    /// # Errors
    ///
    /// If it is none, is another component's, or the signatures are not good.
    pub fn known_component(
        &self,
        id: &ComponentId,
        bytes: &[u8],
    ) -> Result<ComponentManifest, ManifestError> {
        let signers = self.signers(id)?;
        read_component(id, bytes, limits::MANIFEST_BYTES, &signers)
            .map_err(|refusal| refusal.in_file(format!("{id}.json")))
    }

    /// The component's manifest that a snapshot speaks of.
    ///
    /// # Errors
    ///
    /// As above; if it is another version, or too long; if it or this index expired; if it is older than known.
    pub fn next_component(
        &self,
        id: &ComponentId,
        bytes: &[u8],
        snapshot: &Snapshot,
        known: Option<&ComponentManifest>,
        now: Timestamp,
    ) -> Result<ComponentManifest, ManifestError> {
        let (promised, file, longest) = self.component_file(id, snapshot)?;
        let signers = self.signers(id)?;
        let check = || {
            let next = read_component(id, bytes, longest, &signers)?;
            if self.expires <= now {
                let since = self.expires;
                return Err(ManifestRefusal::KeysExpired { by: INDEX, since });
            }
            refuse_expired(next.expires(), now)?;
            refuse_other_version(promised, next.version())?;
            refuse_older(known.map(ComponentManifest::version), next.version())?;
            Ok(next)
        };
        check().map_err(|refusal: ManifestRefusal| refusal.in_file(file.as_str()))
    }
}

fn read_component(
    id: &ComponentId,
    bytes: &[u8],
    limit: u64,
    signers: &Signers,
) -> Result<ComponentManifest, ManifestRefusal> {
    let content: ComponentFile = Document::verified(bytes, limit, "component", signers)?;
    ComponentManifest::from_file(id, content)
}
