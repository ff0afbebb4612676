//! What was believed of a mirror before: `TIUP_HOME/manifests`, and the root that the operator trusts.

use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use jiff::Timestamp;

use super::source::SourceError;
use crate::trust::{ComponentId, ComponentManifest, ManifestError, ManifestRefusal, Root, limits};

/// Why a mirror is of no use.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// Nobody said whom to trust.
    #[error("there is no trusted root manifest: looked for {kept} and {anchor}")]
    NoRoot {
        /// TiUP's copy of the newest.
        kept: Utf8PathBuf,
        /// Where TiUP puts the first.
        anchor: Utf8PathBuf,
    },
    /// The root that is to be trusted is none.
    #[error("{path} cannot be trusted")]
    BadRoot {
        /// Which.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// It cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// It says what is not believed, or nothing of what is looked for.
    #[error(
        "the mirror {mirror} {}",
        if matches!(source.refusal, ManifestRefusal::NotListed(_)) { "does not have what is needed" } else { "is not believed" }
    )]
    Manifest {
        /// Its address.
        mirror: String,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// A package at hand is another one than was signed, and there is no other.
    #[error("{path} is not what the mirror signed, and cannot be fetched again")]
    Altered {
        /// Which.
        path: Utf8PathBuf,
        /// Why not.
        #[source]
        source: Arc<Self>,
    },
    /// A file of our own side.
    #[error("{attempt}: {error}")]
    Store {
        /// What was tried.
        attempt: String,
        /// What was seen.
        error: io::Error,
    },
    /// `tiup.toml`.
    #[error("read the mirror's address from {path}: {why}")]
    Settings {
        /// Which.
        path: Utf8PathBuf,
        /// Why.
        why: String,
    },
}

/// The manifests that TiUP and dmup keep.
#[derive(Clone, Debug)]
pub struct ManifestStore {
    folder: Utf8PathBuf,
    anchor: Utf8PathBuf,
}

/// A component's manifest that was believed once.
#[derive(Debug)]
pub(super) struct KnownComponent {
    pub(super) manifest: ComponentManifest,
    /// The first date that is past, of everything that vouches for it.
    pub(super) expires: Timestamp,
}

impl ManifestStore {
    /// Of this `TIUP_HOME`.
    pub fn at(tiup_home: &Utf8Path) -> Self {
        Self { folder: tiup_home.join("manifests"), anchor: tiup_home.join("bin/root.json") }
    }

    /// Whether there is anything to trust.
    pub fn has_root(&self) -> bool {
        self.anchor.exists() || self.folder.join("root.json").exists()
    }

    /// The newest root that was believed, else the operator's anchor.
    ///
    /// # Errors
    ///
    /// If there is none, or the only one has not signed itself.
    pub(super) fn root(&self) -> Result<Root, MirrorError> {
        let kept = self.folder.join("root.json");
        if let Some(bytes) = read(&kept, limits::ROOT_BYTES)?
            && let Ok(root) = Root::known(&bytes)
        {
            return Ok(root);
        }
        let Some(bytes) = read(&self.anchor, limits::ROOT_BYTES)? else {
            return Err(MirrorError::NoRoot { kept, anchor: self.anchor.clone() });
        };
        Root::known(&bytes)
            .map_err(|source| MirrorError::BadRoot { path: self.anchor.clone(), source })
    }

    /// A kept manifest, unread.
    pub(super) fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>, MirrorError> {
        read(&self.folder.join(name), limits::MANIFEST_BYTES)
    }

    /// Keeps a manifest, as it was fetched: TiUP's signatures are over these very bytes.
    pub(super) fn keep(&self, name: &str, bytes: &[u8]) -> Result<(), MirrorError> {
        let path = self.folder.join(name);
        let written = || -> io::Result<()> {
            fs::create_dir_all(&self.folder)?;
            let mut file =
                tempfile::Builder::new().prefix(".manifest-").tempfile_in(&self.folder)?;
            file.write_all(bytes)?;
            file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
            file.persist(&path)?;
            Ok(())
        };
        written().map_err(|error| MirrorError::Store { attempt: format!("keep {path}"), error })
    }

    /// What is known of a component without asking anybody.
    pub(super) fn component(
        &self,
        id: &ComponentId,
    ) -> Result<Option<KnownComponent>, MirrorError> {
        let root = self.root()?;
        let Some(index) = self.bytes("index.json")? else { return Ok(None) };
        let Some(bytes) = self.bytes(&format!("{id}.json"))? else { return Ok(None) };
        // What cannot be verified any more, for instance after a change of keys, is not known.
        let Ok(index) = root.known_index(&index) else { return Ok(None) };
        let Ok(manifest) = index.known_component(id, &bytes) else { return Ok(None) };
        let expires = root.expires().min(index.expires()).min(manifest.expires());
        Ok(Some(KnownComponent { manifest, expires }))
    }
}

/// None if there is no such file.
fn read(path: &Utf8Path, limit: u64) -> Result<Option<Vec<u8>>, MirrorError> {
    let failed = |error| MirrorError::Store { attempt: format!("read {path}"), error };
    match fs::metadata(path) {
        Ok(meta) if meta.is_file() => {}
        Ok(_) => return Err(failed(io::Error::other("it is no regular file"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(failed)?;
    // One more than allowed: who parses it refuses it.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    Ok(Some(bytes))
}
