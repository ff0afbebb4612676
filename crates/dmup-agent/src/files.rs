//! Small files and folders: put, get, make, remove.
//!
//! Paths are absolute and have no `..`. A written file appears whole or not at all:
//! a draft in the same folder, synced, then renamed over the old one.

use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::sync::atomic::{AtomicU32, Ordering};

use camino::{Utf8Component, Utf8Path};
use dmup_wire::message::{MakeDir, Outcome, PutFile, Refusal, RefusalKind};
use fs_err as fs;

use crate::accounts::owner_named;
use crate::refuse::{Reply, When, bad, refuse, with_state};

/// Largest file put or got.
pub(crate) const SMALL: u64 = 512 * 1024;

/// Who a file belongs to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Refuses what is not absolute or goes up.
pub(crate) fn check_absolute(path: &Utf8Path) -> Result<(), Refusal> {
    let sound = path.is_absolute()
        && path
            .components()
            .all(|part| matches!(part, Utf8Component::RootDir | Utf8Component::Normal(_)))
        && !path.as_str().contains('\0');
    if sound {
        Ok(())
    } else {
        Err(bad(format!("take path {path}"), "it must be absolute, without `..`"))
    }
}

/// Refuses what is not relative, is empty or goes up.
pub(crate) fn check_relative(path: &Utf8Path) -> Result<(), Refusal> {
    let sound = !path.as_str().is_empty()
        && path.components().all(|part| matches!(part, Utf8Component::Normal(_)))
        && !path.as_str().contains('\0');
    if sound {
        Ok(())
    } else {
        Err(bad(format!("take path {path}"), "it must be relative, without `..`"))
    }
}

/// Makes what a folder lists survive a power cut.
pub(crate) fn sync_folder(folder: &Utf8Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

/// A name beside `path` that nobody else uses.
pub(crate) fn draft_beside(path: &Utf8Path) -> camino::Utf8PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = path.file_name().unwrap_or("file");
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{name}.dmup-{}-{number}", std::process::id()))
}

/// Writes a whole file in one step, synced.
pub(crate) fn write_atomically(
    path: &Utf8Path,
    content: &[u8],
    mode: u32,
    owner: Option<Owner>,
) -> io::Result<()> {
    let draft = draft_beside(path);
    let written = write_draft(&draft, content, mode, owner).and_then(|()| fs::rename(&draft, path));
    if written.is_err() {
        fs::remove_file(&draft).ok();
    }
    written?;
    path.parent().map_or(Ok(()), sync_folder)
}

fn write_draft(
    draft: &Utf8Path,
    content: &[u8],
    mode: u32,
    owner: Option<Owner>,
) -> io::Result<()> {
    // Closed to others until owner and mode are right: the content may be a key.
    let mut file = fs_err::os::unix::fs::OpenOptionsExt::mode(
        fs::OpenOptions::new().write(true).create_new(true),
        0o600,
    )
    .open(draft)?;
    file.write_all(content)?;
    if let Some(Owner { uid, gid }) = owner {
        std::os::unix::fs::fchown(file.file(), Some(uid), Some(gid))?;
    }
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    file.sync_all()
}

/// Puts one file. Asked as the one who shall write it.
pub(crate) fn put(file: &PutFile) -> Result<(), Refusal> {
    let attempted = || format!("write {}", file.path);
    can_put(file)?;
    let owner = file.owner.as_ref().map(owner_named).transpose()?;
    write_atomically(&file.path, file.content.as_bytes(), file.mode, owner).when(attempted)
}

/// What can be known before of whether a file can be written.
pub(crate) fn can_put(file: &PutFile) -> Result<(), Refusal> {
    let attempted = || format!("write {}", file.path);
    file.owner.as_ref().map(owner_named).transpose()?;
    if !file.path.parent().is_some_and(Utf8Path::is_dir) {
        return Err(refuse(RefusalKind::Precondition, attempted(), "its folder does not exist"));
    }
    if file.path.is_dir() {
        return Err(refuse(
            RefusalKind::Precondition,
            attempted(),
            "there is a folder of that name",
        ));
    }
    Ok(())
}

/// Reads a small file; none if it is missing.
pub(crate) fn read_small(path: &Utf8Path) -> Result<Option<String>, Refusal> {
    read(path, SMALL)
}

/// Reads a small file; none if it is missing.
pub(crate) fn get(path: &Utf8Path, max_bytes: u32) -> Reply {
    Ok(Outcome::Got { content: read(path, u64::from(max_bytes).min(SMALL))? })
}

fn read(path: &Utf8Path, limit: u64) -> Result<Option<String>, Refusal> {
    let attempted = || format!("read {path}");
    // Not blocking: a named pipe would hold the agent for ever.
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => return Err(error).when(attempted),
    };
    let meta = file.metadata().when(attempted)?;
    if !meta.is_file() {
        return Err(refuse(RefusalKind::Precondition, attempted(), "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).when(attempted)?;
    if bytes.len() as u64 > limit {
        return Err(refuse(
            RefusalKind::Precondition,
            attempted(),
            format!("it has {} bytes, {limit} are allowed", meta.len().max(bytes.len() as u64)),
        ));
    }
    let content = String::from_utf8(bytes)
        .map_err(|_| refuse(RefusalKind::Content, attempted(), "it is not UTF-8 text"))?;
    Ok(Some(content))
}

/// Makes one folder and its missing parents; owner and mode are set if they differ.
pub(crate) fn make_dir(dir: &MakeDir) -> Result<(), Refusal> {
    let attempted = || format!("make folder {}", dir.path);
    let owner = dir.owner.as_ref().map(owner_named).transpose()?;
    let missing: Vec<&Utf8Path> =
        dir.path.ancestors().take_while(|path| fs::symlink_metadata(path).is_err()).collect();
    for path in missing.iter().rev() {
        match fs::create_dir(path) {
            Ok(()) => settle(path, dir.mode, owner).when(attempted)?,
            // Two instances of a host share parents, and somebody else was quicker.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).when(attempted),
        }
    }
    if !dir.path.is_dir() {
        return Err(refuse(
            RefusalKind::Precondition,
            attempted(),
            "there is something of that name that is no folder",
        ));
    }
    settle(&dir.path, dir.mode, owner).when(attempted)
}

fn settle(path: &Utf8Path, mode: u32, owner: Option<Owner>) -> io::Result<()> {
    let meta = fs::metadata(path)?;
    if let Some(Owner { uid, gid }) = owner
        && (meta.uid(), meta.gid()) != (uid, gid)
    {
        std::os::unix::fs::chown(path, Some(uid), Some(gid))?;
    }
    if meta.mode() & 0o7777 != mode {
        fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Removes a file, a link or a whole folder; fine if it is missing.
pub(crate) fn remove(path: &Utf8Path) -> Result<(), Refusal> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).when(|| format!("remove {path}")),
    };
    let removed = if meta.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error)
            .when(|| format!("remove {path}"))
            .map_err(|refusal| with_state(refusal, "some of it may be gone")),
    }
}

/// Not of one that cannot be read: there may be anything in it.
pub(crate) fn is_empty_folder(path: &Utf8Path) -> bool {
    path.read_dir_utf8().is_ok_and(|mut entries| entries.next().is_none())
}

#[cfg(test)]
mod tests {
    use camino::Utf8PathBuf;

    use super::*;

    fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
        (folder, path)
    }

    fn file(path: Utf8PathBuf, content: &str) -> PutFile {
        PutFile { path, mode: 0o640, root: false, owner: None, content: content.into() }
    }

    #[test]
    fn a_file_is_put_with_its_mode_replaced_and_read_back() {
        let (_keep, at) = folder();
        for content in ["one", "two"] {
            put(&file(at.join("f"), content)).unwrap();
            let got = get(&at.join("f"), 10).unwrap();
            assert_eq!(got, Outcome::Got { content: Some(content.into()) });
        }
        assert_eq!(fs::metadata(at.join("f")).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(fs::read_dir(&at).unwrap().count(), 1, "no draft stays behind");
    }

    #[test]
    fn a_file_in_a_missing_folder_is_refused() {
        let (_keep, at) = folder();
        let refusal = put(&file(at.join("no/f"), "x")).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::Precondition);
    }

    #[test]
    fn what_is_missing_is_none_and_what_is_too_large_is_refused() {
        let (_keep, at) = folder();
        assert_eq!(get(&at.join("f"), 10).unwrap(), Outcome::Got { content: None });
        fs::write(at.join("f"), "12345678901").unwrap();
        assert_eq!(get(&at.join("f"), 10).unwrap_err().kind, RefusalKind::Precondition);
        assert_eq!(get(&at, 10).unwrap_err().kind, RefusalKind::Precondition);
        fs::write(at.join("f"), [0xff]).unwrap();
        assert_eq!(get(&at.join("f"), 10).unwrap_err().kind, RefusalKind::Content);
    }

    #[test]
    fn folders_are_made_with_their_parents_and_twice_is_as_once() {
        let (_keep, at) = folder();
        let dir = MakeDir { path: at.join("a/b/c"), mode: 0o750, owner: None };
        for _ in 0..2 {
            make_dir(&dir).unwrap();
            assert_eq!(fs::metadata(&dir.path).unwrap().mode() & 0o7777, 0o750);
        }
        fs::write(at.join("f"), "").unwrap();
        let dir = MakeDir { path: at.join("f"), mode: 0o750, owner: None };
        assert_eq!(make_dir(&dir).unwrap_err().kind, RefusalKind::Precondition);
    }

    #[test]
    fn a_link_is_removed_but_not_what_it_leads_to() {
        let (_keep, at) = folder();
        fs::create_dir(at.join("kept")).unwrap();
        fs::write(at.join("kept/f"), "").unwrap();
        fs::create_dir(at.join("gone")).unwrap();
        fs_err::os::unix::fs::symlink(at.join("kept"), at.join("gone/link")).unwrap();
        fs_err::os::unix::fs::symlink(at.join("kept"), at.join("link")).unwrap();
        for _ in 0..2 {
            remove(&at.join("gone")).unwrap();
            remove(&at.join("link")).unwrap();
        }
        assert!(
            at.join("kept/f").exists() && !at.join("gone").exists() && !at.join("link").exists()
        );
    }

    #[test]
    fn paths_that_could_leave_their_place_are_refused() {
        for bad in ["", "a", "/a/../b", "../a"] {
            assert!(check_absolute(bad.into()).is_err(), "{bad:?}");
        }
        for bad in ["", "/a", "a/../b", "..", "."] {
            assert!(check_relative(bad.into()).is_err(), "{bad:?}");
        }
    }
}
