//! SHA-256 of files, and a memory of what was hashed.
//!
//! Binaries of DM have 180 MB: hashing one takes a third of a second, which must not
//! happen inside a window and need not happen at every look. A file is taken for
//! unchanged while its [`Identity`] is.

use std::collections::HashMap;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};

use camino::Utf8Path;
use dmup_core::digest::Digest;
use fs_err as fs;
use sha2::{Digest as _, Sha256};

/// What tells one content of a file from another without reading it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Identity {
    dev: u64,
    ino: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    fn of(meta: &std::fs::Metadata) -> Self {
        Self {
            dev: meta.dev(),
            ino: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// Of the file that a path leads to now.
    pub(crate) fn at(path: &Utf8Path) -> io::Result<Self> {
        Ok(Self::of(&fs::metadata(path)?))
    }
}

/// Hashes by identity, for as long as the agent lives.
#[derive(Debug, Default)]
pub(crate) struct Hashes {
    known: Mutex<HashMap<Identity, Digest>>,
}

impl Hashes {
    /// The hash of a file, read only if this very content was not read before.
    pub(crate) fn of(&self, path: &Utf8Path) -> io::Result<(Digest, Identity)> {
        let mut file = fs::File::open(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::other(format!("{path} is not a regular file")));
        }
        let before = Identity::of(&meta);
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&before).cloned();
        if let Some(digest) = known {
            return Ok((digest, before));
        }
        let digest = hash(&mut file)?;
        let after = Identity::of(&file.metadata()?);
        if before != after {
            return Err(io::Error::other(format!("{path} changed while it was read")));
        }
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(before, digest.clone());
        Ok((digest, before))
    }

    /// As [`Hashes::of`]; none if there is no such file.
    pub(crate) fn of_existing(&self, path: &Utf8Path) -> io::Result<Option<(Digest, Identity)>> {
        match self.of(path) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn hash(from: &mut impl Read) -> io::Result<Digest> {
    let (mut hasher, mut piece) = (Sha256::new(), vec![0; 256 * 1024]);
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(Digest::from_bytes(hasher.finalize().into())),
            Ok(read) => hasher.update(&piece[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Passes bytes on and hashes them on the way.
#[derive(Debug)]
pub(crate) struct Hashing<R> {
    inner: R,
    hasher: Sha256,
    bytes: u64,
}

impl<R: Read> Hashing<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, hasher: Sha256::new(), bytes: 0 }
    }

    /// How many bytes passed, and their hash.
    pub(crate) fn finish(self) -> (u64, Digest) {
        (self.bytes, Digest::from_bytes(self.hasher.finalize().into()))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(into)?;
        self.hasher.update(&into[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use camino::Utf8PathBuf;

    use super::*;

    #[test]
    fn a_replaced_file_is_hashed_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(folder.path().join("f")).unwrap();
        let hashes = Hashes::default();
        assert!(hashes.of_existing(&path).unwrap().is_none());
        fs::write(&path, "one").unwrap();
        assert_eq!(hashes.of(&path).unwrap().0, Digest::of(b"one"));
        fs::write(path.with_extension("new"), "two").unwrap();
        fs::rename(path.with_extension("new"), &path).unwrap();
        assert_eq!(hashes.of(&path).unwrap().0, Digest::of(b"two"));
    }
}
