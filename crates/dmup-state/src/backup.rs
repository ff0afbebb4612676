//! Copies of a cluster's folder in one file: `tar.gz` as TiUP makes and takes them, names relative to the folder.
//!
//! A backup holds the key that opens the hosts: it is written for its owner alone. Left out are sockets and other
//! oddities, our lock, and the packages that a `resume` sends (they are large, and the hosts have them). A backup
//! that is read is foreign: only plain files, folders and links within one folder are taken, the amount is bounded,
//! and it has to have a `meta.yaml` that makes sense before it takes the place of anything.
//!
//! Facts: TiUP 1.16.5, pkg/cluster/manager/basic.go, pkg/utils/ioutil.go.

use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};

use camino::{Utf8Component, Utf8Path, Utf8PathBuf};
use dmup_core::topology::Meta;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt;
use tar::EntryType;

use crate::files::{make_dir, sync_dir};
use crate::{Cluster, StateError};

/// Files, folders and links of a backup.
const ENTRIES: usize = 200_000;
/// All of its files; kept hotfixes are most of it.
const BYTES: u64 = 16 << 30;
/// What is not worth keeping, below the cluster's folder.
const LEFT_OUT: [&str; 2] = ["dmup/lock", "dmup/parcels"];

/// A backup that was read and makes sense; it lies unpacked in a scratch folder.
#[derive(Debug)]
pub struct Backup {
    folder: Utf8PathBuf,
    /// Its record.
    pub meta: Meta,
}

impl Cluster {
    /// Writes a backup to a file that must not exist yet.
    ///
    /// # Errors
    ///
    /// The file is gone then, if it was begun.
    pub fn back_up(&self, to: &Utf8Path) -> Result<(), StateError> {
        let mut options = fs_err::OpenOptions::new();
        options.write(true).create_new(true);
        options.mode(0o600);
        let file = options
            .open(to.as_std_path())
            .map_err(StateError::system(format!("write the backup {to}")))?;
        let written = (|| -> io::Result<()> {
            let mut tar = tar::Builder::new(GzEncoder::new(file, flate2::Compression::default()));
            tar.follow_symlinks(false);
            append(&mut tar, self.dir(), Utf8Path::new(""))?;
            tar.into_inner()?.finish()?.sync_all()
        })();
        written.map_err(|error| {
            drop(fs::remove_file(to.as_std_path()));
            StateError::system(format!("write the backup {to}"))(error)
        })
    }

    /// Reads a backup of any cluster into `scratch`, an existing folder on the same file system. Nothing else changes.
    ///
    /// # Errors
    ///
    /// [`StateError::BadFile`] if it is no backup, or not one to be trusted.
    pub fn read_backup(from: &Utf8Path, scratch: &Utf8Path) -> Result<Backup, StateError> {
        let bad = |why: String| StateError::BadFile { path: from.to_owned(), why };
        let file = fs::File::open(from.as_std_path())
            .map_err(StateError::system(format!("read the backup {from}")))?;
        let folder = scratch.join("restored");
        make_dir(&folder, 0o755)?;
        unpack(file, &folder).map_err(|error| bad(format!("is no backup: {error}")))?;
        let meta = Self::at_folder(&folder)
            .map_err(|error| bad(format!("its record makes no sense: {error}")))?
            .ok_or_else(|| bad("is no backup of a cluster: it has no meta.yaml".to_owned()))?;
        Ok(Backup { folder, meta })
    }

    fn at_folder(folder: &Utf8Path) -> Result<Option<Meta>, String> {
        let text = crate::files::read_text(&folder.join("meta.yaml"), 4 << 20)
            .map_err(|error| error.to_string())?;
        text.map(|text| Meta::parse(&text).map_err(|error| error.to_string())).transpose()
    }

    /// Puts a backup in the place of whatever is known of the cluster.
    ///
    /// # Errors
    ///
    /// What was there before is there again then.
    pub fn restore(&self, backup: &Backup, scratch: &Utf8Path) -> Result<(), StateError> {
        let attempt =
            || StateError::system(format!("put the backup in the place of {}", self.dir()));
        let clusters = self.dir().parent().unwrap_or(Utf8Path::new("/"));
        make_dir(clusters, 0o755)?;
        let before = scratch.join("before");
        let had_one = match fs::rename(self.dir().as_std_path(), before.as_std_path()) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(attempt()(error)),
        };
        if let Err(error) = fs::rename(backup.folder.as_std_path(), self.dir().as_std_path()) {
            if had_one {
                fs::rename(before.as_std_path(), self.dir().as_std_path()).map_err(attempt())?;
            }
            return Err(attempt()(error));
        }
        sync_dir(clusters).map_err(attempt())
    }
}

fn append<W: io::Write>(
    tar: &mut tar::Builder<W>,
    root: &Utf8Path,
    below: &Utf8Path,
) -> io::Result<()> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root.join(below).as_std_path())? {
        names.push(
            entry?
                .file_name()
                .into_string()
                .map_err(|name| io::Error::other(format!("{} is not UTF-8", name.display())))?,
        );
    }
    names.sort();
    for name in names {
        let path = below.join(name);
        if LEFT_OUT.contains(&path.as_str()) {
            continue;
        }
        let full = root.join(&path);
        let kind = fs::symlink_metadata(full.as_std_path())?.file_type();
        if kind.is_dir() {
            tar.append_dir(&path, &full)?;
            append(tar, root, &path)?;
        } else if kind.is_file() || kind.is_symlink() {
            tar.append_path_with_name(&full, &path)?;
        }
    }
    Ok(())
}

fn unpack(from: impl Read, folder: &Utf8Path) -> io::Result<()> {
    let refused = |entry: &Utf8Path, why: &str| io::Error::other(format!("entry `{entry}` {why}"));
    let mut tar = tar::Archive::new(GzDecoder::new(from).take(BYTES + (1 << 30)));
    let mut total = 0_u64;
    for (number, entry) in tar.entries()?.enumerate() {
        let mut entry = entry?;
        let given = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let given = Utf8Path::new(&given);
        if number >= ENTRIES {
            return Err(refused(given, "is one too many"));
        }
        let mut path = Utf8PathBuf::new();
        for part in given.components() {
            match part {
                Utf8Component::Normal(name) => path.push(name),
                Utf8Component::CurDir => {}
                Utf8Component::ParentDir | Utf8Component::RootDir | Utf8Component::Prefix(_) => {
                    return Err(refused(given, "would leave the cluster's folder"));
                }
            }
        }
        if path.as_str().is_empty() {
            continue;
        }
        let is_secret = ["ssh", "tls", "dmup"].iter().any(|folder| path.starts_with(folder));
        let target = folder.join(&path);
        // Links that came earlier must not lead anywhere: no parent may be one.
        let parent = target.parent().unwrap_or(folder);
        make_real_dirs(folder, parent)?;
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            make_real_dirs(folder, &target)?;
            let mode = if is_secret { 0o700 } else { 0o755 };
            fs::set_permissions(target.as_std_path(), std::fs::Permissions::from_mode(mode))?;
        } else if kind.is_file() {
            total += entry.size();
            if total > BYTES {
                return Err(refused(given, "makes it too large"));
            }
            let mut options = fs_err::OpenOptions::new();
            options.write(true).create_new(true);
            options.mode(if is_secret { 0o600 } else { 0o644 });
            let mut file = options.open(target.as_std_path())?;
            io::copy(&mut entry, &mut file)?;
            file.sync_all()?;
        } else if kind == EntryType::Symlink {
            let to = entry.link_name_bytes().unwrap_or_default();
            let to = String::from_utf8_lossy(&to).into_owned();
            // Such as `patch/dm-worker.tar.gz`, the only one that TiUP makes.
            if to.is_empty() || to.contains('/') || to == "." || to == ".." {
                return Err(refused(given, "is a link out of its folder"));
            }
            std::os::unix::fs::symlink(&to, &target)?;
        } else {
            return Err(refused(given, "is neither file, folder nor link"));
        }
    }
    Ok(())
}

/// Makes the folders from `root` down to `dir`, and refuses one that is a link or a file.
fn make_real_dirs(root: &Utf8Path, dir: &Utf8Path) -> io::Result<()> {
    let mut path = root.to_owned();
    for part in dir.strip_prefix(root).into_iter().flat_map(Utf8Path::components) {
        path.push(part);
        match fs::symlink_metadata(path.as_std_path()) {
            Ok(seen) if seen.is_dir() => {}
            Ok(_) => return Err(io::Error::other(format!("`{path}` is file and folder at once"))),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                std::fs::DirBuilder::new().mode(0o755).create(&path)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
