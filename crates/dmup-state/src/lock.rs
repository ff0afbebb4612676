//! One dmup at a time per cluster and control machine.
//!
//! The lock is the kernel's (`flock`), so it is gone with its holder however that ends; the text in
//! the file is only for people and may be stale when nobody holds the lock. A lock that is broken (its holder
//! hangs) loses its file: whoever comes next makes a new one.

use std::io::{Read, Seek, Write};

use camino::Utf8Path;
use dmup_core::ids::ClusterName;
use fs_err::os::unix::fs::OpenOptionsExt;
use rustix::fs::{FlockOperation, flock};
use std::os::unix::fs::MetadataExt;

use crate::StateError;
use crate::files::make_dir;

/// The lock, as long as it lives.
#[derive(Debug)]
pub struct ClusterLock {
    _file: fs_err::File,
}

impl ClusterLock {
    pub(crate) fn take(
        cluster: &ClusterName,
        own_dir: &Utf8Path,
        holder: &str,
    ) -> Result<Self, StateError> {
        make_dir(own_dir, 0o700)?;
        let path = own_dir.join("lock");
        let attempt = || StateError::system(format!("lock {path}"));
        let mut options = fs_err::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.mode(0o600);
        let mut file = options.open(path.as_std_path()).map_err(attempt())?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(StateError::Locked {
                    cluster: cluster.to_string(),
                    holder: words_of(&mut file).map_err(attempt())?,
                });
            }
            Err(errno) => return Err(attempt()(errno.into())),
        }
        // Somebody broke the lock between our two steps: what we hold is no lock any more.
        let ours = file.metadata().map_err(attempt())?;
        if fs_err::metadata(&path).ok().is_none_or(|now| now.ino() != ours.ino()) {
            return Err(StateError::Locked {
                cluster: cluster.to_string(),
                holder: "it was broken at this moment; try again".to_owned(),
            });
        }
        file.set_len(0).map_err(attempt())?;
        file.rewind().map_err(attempt())?;
        file.write_all(format!("{holder}\n").as_bytes()).map_err(attempt())?;
        Ok(Self { _file: file })
    }

    /// What the holder says of itself; none if nobody holds the lock.
    pub(crate) fn holder(own_dir: &Utf8Path) -> Result<Option<String>, StateError> {
        let path = own_dir.join("lock");
        let attempt = || StateError::system(format!("look at the lock {path}"));
        let mut file = match fs_err::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(attempt()(error)),
        };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(None),
            Err(rustix::io::Errno::WOULDBLOCK) => words_of(&mut file).map(Some).map_err(attempt()),
            Err(errno) => Err(attempt()(errno.into())),
        }
    }

    /// Takes the lock from whoever holds it.
    pub(crate) fn break_it(own_dir: &Utf8Path) -> Result<(), StateError> {
        let path = own_dir.join("lock");
        match fs_err::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(StateError::system(format!("remove the lock {path}"))(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn words_of(file: &mut fs_err::File) -> std::io::Result<String> {
    let mut text = String::new();
    file.take(4096).read_to_string(&mut text)?;
    let words = if text.trim().is_empty() { "it says nothing of itself" } else { text.trim() };
    Ok(words.to_owned())
}
