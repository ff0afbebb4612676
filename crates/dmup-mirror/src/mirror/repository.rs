//! A wanted package, from the folder of packages if it is right, else from the mirror.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::digest::Digest;
use dmup_core::version::DmVersion;
use fs_err as fs;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::source::{Source, SourceProblem};
use super::store::{ManifestStore, MirrorError};
use crate::package::component_package_path;
use crate::trust::{
    ComponentId, ComponentManifest, FileName, Index, ListedPackage, ManifestError, ManifestRefusal,
    Snapshot, limits,
};

/// Longer than any package of DM, and short enough for every disk that is to hold one.
const PACKAGE_BYTES: u64 = 8 << 30;
/// A root that is rotated more often since somebody last looked is no mirror that people run.
const MOST_ROTATIONS: usize = 1000;

/// Which version of a component.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Version {
    /// This one.
    Exact(DmVersion),
    /// The newest of those at hand; if there is none, the newest that the mirror has.
    Newest,
    /// The newest of those at hand and of those that the mirror has. If that does not say, of those at hand, with a warning.
    Latest,
}

/// A package that is wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Whose.
    pub component: ComponentId,
    /// Which.
    pub version: Version,
    /// E.g. `linux`.
    pub os: String,
    /// TiUP's word.
    pub arch: String,
}

/// A package at hand.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Obtained {
    /// Where it lies.
    pub path: Utf8PathBuf,
    /// How many bytes were fetched for it; 0 if it was there.
    pub fetched_bytes: u64,
    /// What the operator should know of it, each to be read after its name.
    pub warnings: Vec<String>,
}

/// A mirror and everything that is kept of it.
#[derive(Debug)]
pub struct Repository {
    address: Result<Source, Arc<MirrorError>>,
    /// Somebody chose this mirror, so it is worth a word if it is of no use.
    is_chosen: bool,
    store: ManifestStore,
    packages: Utf8PathBuf,
    now: Timestamp,
    /// The mirror is asked once.
    visited: Option<Result<Arc<Edition>, Arc<MirrorError>>>,
}

/// What a mirror says now, verified.
#[derive(Debug)]
struct Edition {
    snapshot: Snapshot,
    index: Index,
}

impl Repository {
    /// The mirror that `TIUP_MIRRORS` (`given`) or `TIUP_HOME` name, and the folder of packages. Nothing is read yet.
    pub fn new(
        given: Option<&str>,
        tiup_home: &Utf8Path,
        packages: &Utf8Path,
        now: Timestamp,
    ) -> Self {
        let address = super::address(given, tiup_home)
            .and_then(|address| Source::at(&address).map_err(MirrorError::from))
            .map_err(Arc::new);
        let store = ManifestStore::at(tiup_home);
        Self {
            address,
            is_chosen: given.is_some() || store.has_root(),
            store,
            packages: packages.to_owned(),
            now,
            visited: None,
        }
    }

    /// Gets a package. `received` is told the file's name, how many bytes there are, and how many there will be (0: unknown).
    ///
    /// # Errors
    ///
    /// If it is neither at hand nor to be had; if the one at hand is another than the mirror signed and cannot be replaced.
    pub async fn obtain(
        &mut self,
        wanted: &Wanted,
        received: &mut (dyn FnMut(&FileName, u64, u64) + Send),
    ) -> Result<Obtained, Arc<MirrorError>> {
        let mut warnings = Vec::new();
        let version = match (&wanted.version, self.newest_at_hand(wanted)) {
            (Version::Exact(version), _) => version.clone(),
            (Version::Newest, Some(at_hand)) => at_hand,
            (Version::Newest | Version::Latest, None) => self.newest_listed(wanted).await?,
            (Version::Latest, Some(at_hand)) => match self.newest_listed(wanted).await {
                Ok(listed) if listed.numbers() > at_hand.numbers() => listed,
                Ok(_) => at_hand,
                Err(error) => {
                    warnings.push(format!("is the newest at hand; of the mirror: {error}"));
                    at_hand
                }
            },
        };
        let path = component_package_path(
            &self.packages,
            wanted.component.as_str(),
            version.as_str(),
            &wanted.os,
            &wanted.arch,
        );
        if path.exists() {
            if self.is_right(wanted, &version, &path, &mut warnings).await? {
                return Ok(Obtained { path, fetched_bytes: 0, warnings });
            }
            warnings.push("was not what the mirror signed, and was fetched again".to_owned());
        }
        let component = self.component(&wanted.component).await?;
        let listed = component
            .package(&version, &wanted.os, &wanted.arch)
            .map_err(|source| self.not_believed(source))?;
        if listed.yanked {
            warnings.push("was withdrawn by its owner".to_owned());
        }
        let fetched_bytes = self.download(&listed, &path, received).await?;
        Ok(Obtained { path, fetched_bytes, warnings })
    }

    /// Whether the package at hand can be used.
    async fn is_right(
        &mut self,
        wanted: &Wanted,
        version: &DmVersion,
        path: &Utf8Path,
        warnings: &mut Vec<String>,
    ) -> Result<bool, Arc<MirrorError>> {
        // A name for a build that changes: never compared (TiUP's rule). And with nobody to trust there is nothing to compare.
        if version.numbers().is_none() || !self.is_chosen {
            return Ok(true);
        }
        let found = hash(path).map_err(Arc::new)?;
        let listed_in = |component: &ComponentManifest| {
            component.package(version, &wanted.os, &wanted.arch).map(|it| it.sha256)
        };
        // What was signed once stays so: the mirror need not be asked.
        let known = self.store.component(&wanted.component).ok().flatten();
        let promised = known.as_ref().and_then(|it| listed_in(&it.manifest).ok());
        if promised.as_ref() == Some(&found) {
            if let Some(known) = known.filter(|it| it.expires <= self.now) {
                warnings
                    .push(format!("compared with a manifest that expired at {}", known.expires));
            }
            return Ok(true);
        }
        match self.component(&wanted.component).await {
            Ok(component) => match listed_in(&component) {
                Ok(promised) => Ok(promised == found),
                Err(_) => {
                    warnings.push("used as it is: the mirror does not list it".to_owned());
                    Ok(true)
                }
            },
            Err(source) if promised.is_some() => {
                Err(Arc::new(MirrorError::Altered { path: path.to_owned(), source }))
            }
            Err(error) => {
                let why = chain(&error);
                warnings.push(format!("used as it is, compared with nothing: {why}"));
                Ok(true)
            }
        }
    }

    async fn newest_listed(&mut self, wanted: &Wanted) -> Result<DmVersion, Arc<MirrorError>> {
        let component = self.component(&wanted.component).await?;
        let newest = component.newest(&wanted.os, &wanted.arch);
        Ok(newest.map_err(|source| self.not_believed(source))?.version)
    }

    fn newest_at_hand(&self, wanted: &Wanted) -> Option<DmVersion> {
        let (start, end) =
            (format!("{}-", wanted.component), format!("-{}-{}.tar.gz", wanted.os, wanted.arch));
        fs::read_dir(&self.packages)
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|file| {
                let version: DmVersion =
                    file.strip_prefix(&start)?.strip_suffix(&end)?.parse().ok()?;
                Some((version.numbers()?, version.as_str().to_owned(), version))
            })
            .max_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)))
            .map(|(_, _, version)| version)
    }

    fn source(&self) -> Result<Source, Arc<MirrorError>> {
        self.address.clone()
    }

    fn not_believed(&self, source: ManifestError) -> Arc<MirrorError> {
        let mirror = self.address.as_ref().map_or_else(|_| "?".to_owned(), ToString::to_string);
        Arc::new(MirrorError::Manifest { mirror, source })
    }

    /// The component's manifest as the mirror has it now.
    async fn component(&mut self, id: &ComponentId) -> Result<ComponentManifest, Arc<MirrorError>> {
        let edition = match &self.visited {
            Some(visited) => visited.clone()?,
            None => {
                let visited = self.visit().await.map(Arc::new);
                self.visited = Some(visited.clone());
                visited?
            }
        };
        let Edition { snapshot, index } = &*edition;
        let kept = self.store.bytes(&format!("{id}.json"))?;
        let known = kept.as_ref().and_then(|bytes| index.known_component(id, bytes).ok());
        let (_, file, limit) =
            index.component_file(id, snapshot).map_err(|error| self.not_believed(error))?;
        let read =
            |bytes: &[u8]| index.next_component(id, bytes, snapshot, known.as_ref(), self.now);
        if let Some(Ok(component)) = kept.as_deref().map(read) {
            return Ok(component);
        }
        let bytes = self.fetch(&file, limit).await?;
        let component = read(&bytes).map_err(|error| self.not_believed(error))?;
        self.store.keep(&format!("{id}.json"), &bytes)?;
        Ok(component)
    }

    async fn fetch(&self, file: &FileName, limit: u64) -> Result<Vec<u8>, Arc<MirrorError>> {
        let fetched = self.source()?.fetch(file, limit).await;
        fetched.map_err(|error| Arc::new(error.into()))
    }

    /// From the trusted root to the index, each kept as soon as it is believed.
    async fn visit(&self) -> Result<Edition, Arc<MirrorError>> {
        let mut root = self.store.root()?;
        let source = self.source()?;
        for rotation in 0.. {
            let file = root.next_file();
            let bytes = match source.fetch(&file, limits::ROOT_BYTES).await {
                Ok(bytes) if rotation < MOST_ROTATIONS => bytes,
                Ok(_) => {
                    let refusal = ManifestRefusal::TooManyRoots(MOST_ROTATIONS);
                    let error = ManifestError { file: file.to_string(), refusal };
                    return Err(self.not_believed(error));
                }
                Err(error) if matches!(error.problem, SourceProblem::NotFound) => break,
                Err(error) => return Err(Arc::new(error.into())),
            };
            root = root.next(&bytes).map_err(|error| self.not_believed(error))?;
            self.store.keep(file.as_str(), &bytes)?;
            self.store.keep("root.json", &bytes)?;
        }

        let kept = self.store.bytes("timestamp.json")?;
        let known = kept.and_then(|bytes| root.known_timestamp(&bytes).ok());
        let timestamp_bytes = self.fetch(&named("timestamp.json"), limits::TIMESTAMP_BYTES).await?;
        let timestamp = root
            .next_timestamp(&timestamp_bytes, known.as_ref(), self.now)
            .map_err(|error| self.not_believed(error))?;

        // What is kept and still fits need not be fetched.
        let kept = self.store.bytes("snapshot.json")?;
        let known = kept.as_ref().and_then(|bytes| root.known_snapshot(bytes).ok());
        let read = |bytes: &[u8]| root.next_snapshot(bytes, &timestamp, known.as_ref(), self.now);
        let snapshot = match kept.as_deref().map(read) {
            Some(Ok(snapshot)) => snapshot,
            Some(Err(_)) | None => {
                let limit = timestamp.snapshot_bytes();
                let bytes = self.fetch(&named("snapshot.json"), limit).await?;
                let snapshot = read(&bytes).map_err(|error| self.not_believed(error))?;
                self.store.keep("snapshot.json", &bytes)?;
                snapshot
            }
        };
        self.store.keep("timestamp.json", &timestamp_bytes)?;

        let kept = self.store.bytes("index.json")?;
        let known = kept.as_ref().and_then(|bytes| root.known_index(bytes).ok());
        let read = |bytes: &[u8]| root.next_index(bytes, &snapshot, known.as_ref(), self.now);
        let index = match kept.as_deref().map(read) {
            Some(Ok(index)) => index,
            Some(Err(_)) | None => {
                let (_, file, limit) =
                    snapshot.index_file().map_err(|error| self.not_believed(error))?;
                let bytes = self.fetch(&file, limit).await?;
                let index = read(&bytes).map_err(|error| self.not_believed(error))?;
                self.store.keep("index.json", &bytes)?;
                index
            }
        };
        Ok(Edition { snapshot, index })
    }

    /// Fetches a package into its place, where it shows up whole and right or not at all.
    async fn download(
        &self,
        listed: &ListedPackage,
        path: &Utf8Path,
        received: &mut (dyn FnMut(&FileName, u64, u64) + Send),
    ) -> Result<u64, Arc<MirrorError>> {
        let failed = |attempt: String| {
            move |error: io::Error| Arc::new(MirrorError::Store { attempt, error })
        };
        fs::create_dir_all(&self.packages).map_err(failed(format!("make {}", self.packages)))?;
        // TiUP's prefix for what is under way.
        let file = tempfile::Builder::new()
            .prefix("download")
            .tempfile_in(&self.packages)
            .map_err(failed(format!("make a file in {}", self.packages)))?;
        let (file, kept) = file.into_parts();
        let mut file = fs::File::from_parts(file, kept.to_path_buf());
        let limit = if listed.length == 0 { PACKAGE_BYTES } else { listed.length };
        let limit = limit.min(PACKAGE_BYTES);
        let mut told = |count| received(&listed.file, count, listed.length);
        self.source()?
            .download(&listed.file, limit, &mut file, &mut told)
            .await
            .map_err(|error| Arc::new(error.into()))?;
        io::Seek::rewind(&mut file).map_err(failed(format!("read {}", listed.file)))?;
        let mut hasher = Sha256::new();
        let count =
            io::copy(&mut file, &mut hasher).map_err(failed(format!("read {}", listed.file)))?;
        let found = Digest::from_bytes(hasher.finalize().into());
        if found != listed.sha256 {
            return Err(self.not_believed(ManifestError {
                file: listed.file.to_string(),
                refusal: ManifestRefusal::OtherHash {
                    by: "the component's manifest",
                    promised: listed.sha256.to_string(),
                    found: found.to_string(),
                },
            }));
        }
        let keep = || -> io::Result<()> {
            file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
            file.sync_all()?;
            kept.persist(path)?;
            Ok(())
        };
        keep().map_err(failed(format!("keep {path}")))?;
        Ok(count)
    }
}

fn named(name: &str) -> FileName {
    FileName::new(name).expect("a file name")
}

fn hash(path: &Utf8Path) -> Result<Digest, MirrorError> {
    let read = || -> io::Result<Digest> {
        if !fs::metadata(path)?.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        let mut hasher = Sha256::new();
        io::copy(&mut fs::File::open(path)?, &mut hasher)?;
        Ok(Digest::from_bytes(hasher.finalize().into()))
    };
    read().map_err(|error| MirrorError::Store { attempt: format!("read {path}"), error })
}

/// An error and its causes in one line.
fn chain(error: &MirrorError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}
