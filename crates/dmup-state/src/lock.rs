//! One dmup at a time per cluster and control machine.
//!
//! The lock is the kernel's (`flock`), so it is gone with its holder however that ends; the text in
//! the file is only for people and may be stale when nobody holds the lock.

use std::io::{Read, Seek, Write};

use camino::Utf8Path;
use dmup_core::ids::ClusterName;
use fs_err::os::unix::fs::OpenOptionsExt;
use rustix::fs::{FlockOperation, flock};

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
                let mut text = String::new();
                (&mut file).take(4096).read_to_string(&mut text).map_err(attempt())?;
                let holder =
                    if text.trim().is_empty() { "it says nothing of itself" } else { text.trim() };
                return Err(StateError::Locked {
                    cluster: cluster.to_string(),
                    holder: holder.to_owned(),
                });
            }
            Err(errno) => return Err(attempt()(errno.into())),
        }
        file.set_len(0).map_err(attempt())?;
        file.rewind().map_err(attempt())?;
        file.write_all(format!("{holder}\n").as_bytes()).map_err(attempt())?;
        Ok(Self { _file: file })
    }
}
