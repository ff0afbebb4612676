//! The store of a host, and unpacking into folders.
//!
//! ```text
//! <store>/<digest>/       the unpacked content, by SHA-256 of the compressed stream
//! <store>/<digest>.json   its files with sizes and hashes; written last, so it vouches for the folder
//! <store>/.part-<pid>-…   being received; removed when that process is gone
//! ```

use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::digest::Digest;
use dmup_core::instance::Role;
use dmup_wire::message::{DiskSeen, Outcome, Refusal, RefusalKind, Stage, StagedFile, Unpack};
use fs_err as fs;
use rustix::fs::{Access, FlockOperation, StatVfsMountFlags, flock};

use crate::archive::{Expected, unpack};
use crate::files::{Owner, draft_beside, sync_folder, write_atomically};
use crate::refuse::{Reply, When, refuse};

/// More would not fit into the answer.
const STAGED_FILES: usize = 6000;

/// Left free beside what is unpacked: the host's own logs must go on.
const SPARE_BYTES: u64 = 64 * 1024 * 1024;

/// Takes a stream into the store, unless it is there.
pub(crate) fn stage(order: &Stage, stream: &mut dyn Read) -> Reply {
    let attempted = || format!("stage {} in {}", order.digest, order.store);
    let folder = order.store.join(order.digest.as_str());
    if let Some(files) = staged(&order.store, &order.digest) {
        // It is wanted: what comes after it in the same run does not take it away. Best effort, as removing is.
        fs::File::open(&folder)
            .and_then(|it| it.file().set_modified(std::time::SystemTime::now()))
            .ok();
        return Ok(Outcome::Staged { folder, already: true, files });
    }
    fs::create_dir_all(&order.store).when(attempted)?;
    remove_abandoned(&order.store);
    check_space(&order.store, order.unpacked_bytes)?;
    let part = part_in(&order.store);
    fs::create_dir(&part).when(attempted)?;
    let done = receive(order, stream, &part, &folder);
    if done.is_err() {
        fs::remove_dir_all(&part).ok();
    }
    let files = done?;
    let _settling = settling(&order.store).when(attempted)?;
    remove_surplus(&order.store, &order.digest);
    Ok(Outcome::Staged { folder, already: false, files })
}

/// Besides the content that has just come, so many stay: an upgrade may bring every component to one host. Whatever runs
/// came to, the store does not grow for ever.
const KEPT_BESIDES: usize = Role::ALL.len() + Role::EXPORTERS.len() - 1;

/// Removes the oldest contents. Best effort: what stays is only in nobody's way.
fn remove_surplus(store: &Utf8Path, newest: &Digest) {
    let Ok(entries) = store.read_dir_utf8() else { return };
    let mut contents: Vec<_> = entries
        .filter_map(Result::ok)
        .filter(|entry| Digest::new(entry.file_name()).is_ok_and(|it| it != *newest))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.into_path())))
        .collect();
    contents.sort();
    let surplus = contents.len().saturating_sub(KEPT_BESIDES);
    for (_, folder) in contents.into_iter().take(surplus) {
        // The manifest first: without it the folder counts for nothing.
        fs::remove_file(manifest_of(&folder)).ok();
        fs::remove_dir_all(&folder).ok();
    }
}

fn receive(
    order: &Stage,
    stream: &mut dyn Read,
    part: &Utf8Path,
    folder: &Utf8Path,
) -> Result<Vec<StagedFile>, Refusal> {
    let attempted = || format!("stage {} in {}", order.digest, order.store);
    let expected = Expected {
        digest: &order.digest,
        compressed_bytes: order.compressed_bytes,
        unpacked_bytes: order.unpacked_bytes,
    };
    let files = unpack(stream, expected, part, true)?;
    if files.len() > STAGED_FILES {
        let seen = format!("it has {} files, {STAGED_FILES} are allowed", files.len());
        return Err(refuse(RefusalKind::Content, attempted(), seen));
    }
    let _settling = settling(&order.store).when(attempted)?;
    if let Some(files) = staged(&order.store, &order.digest) {
        // Another receiver was quicker with the same content.
        fs::remove_dir_all(part).when(attempted)?;
        return Ok(files);
    }
    // No manifest vouches for it: a crash came between folder and manifest, or somebody cut into it.
    crate::files::remove(folder)?;
    fs::rename(part, folder).when(attempted)?;
    sync_folder(&order.store).when(attempted)?;
    let manifest = serde_json::to_vec(&files).map_err(io::Error::from).when(attempted)?;
    write_atomically(&manifest_of(folder), &manifest, 0o644, None).when(attempted)?;
    Ok(files)
}

/// The right to change what the store has: a machine may be known under two addresses, and get the same content twice at
/// once.
fn settling(store: &Utf8Path) -> io::Result<fs::File> {
    let folder = fs::File::open(store)?;
    flock(&folder, FlockOperation::LockExclusive)?;
    Ok(folder)
}

/// The manifest beside a folder of the store.
fn manifest_of(folder: &Utf8Path) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("{folder}.json"))
}

/// The files that the manifest beside a folder of the store vouches for.
pub(crate) fn manifest(folder: &Utf8Path) -> Option<Vec<StagedFile>> {
    serde_json::from_slice(&fs::read(manifest_of(folder)).ok()?).ok()
}

/// What the store has of a content; none unless the manifest is there and all sizes are right.
fn staged(store: &Utf8Path, digest: &Digest) -> Option<Vec<StagedFile>> {
    let folder = store.join(digest.as_str());
    let files = manifest(&folder)?;
    let whole = files.iter().all(|file| {
        fs::symlink_metadata(folder.join(&file.path))
            .is_ok_and(|meta| meta.is_file() && meta.len() == file.bytes)
    });
    whole.then_some(files)
}

fn part_in(store: &Utf8Path) -> Utf8PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    store.join(format!(".part-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// Removes parts whose receiver is gone: killed agents cannot clean up.
fn remove_abandoned(store: &Utf8Path) {
    let Ok(entries) = store.read_dir_utf8() else { return };
    for entry in entries.filter_map(Result::ok) {
        let pid = entry
            .file_name()
            .strip_prefix(".part-")
            .and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Utf8Path::new(&format!("/proc/{pid}")).exists()) {
            fs::remove_dir_all(entry.path()).ok();
        }
    }
}

/// Bytes that the file system of a path, or of its nearest existing parent, has for us.
pub(crate) fn free_bytes(path: &Utf8Path) -> io::Result<u64> {
    Ok(disk(path)?.free_bytes)
}

/// The file system of a path, or of its nearest parent that exists.
pub(crate) fn disk(path: &Utf8Path) -> io::Result<DiskSeen> {
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Utf8Path::new("/"));
    let stat = rustix::fs::statvfs(existing.as_str())?;
    Ok(DiskSeen {
        path: path.to_owned(),
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        device: fs::metadata(existing)?.dev(),
        no_exec: stat.f_flag.contains(StatVfsMountFlags::NOEXEC),
        read_only: stat.f_flag.contains(StatVfsMountFlags::RDONLY),
        is_closed: rustix::fs::access(existing.as_str(), Access::WRITE_OK | Access::EXEC_OK)
            .is_err(),
    })
}

/// Refuses if so many bytes do not fit.
pub(crate) fn check_space(at: &Utf8Path, bytes: u64) -> Result<(), Refusal> {
    let attempted = || format!("find room for {bytes} bytes in {at}");
    let free = free_bytes(at).when(attempted)?;
    if free < bytes.saturating_add(SPARE_BYTES) {
        return Err(refuse(
            RefusalKind::NoSpace,
            attempted(),
            format!("{free} bytes are free, and {SPARE_BYTES} of them shall stay so"),
        ));
    }
    Ok(())
}

/// Unpacks a stream into a folder; files of the same names are replaced, each in one step.
pub(crate) fn unpack_into(order: &Unpack, owner: Option<Owner>, stream: &mut dyn Read) -> Reply {
    let attempted = || format!("unpack into {}", order.into);
    let new = !order.into.exists();
    fs::create_dir_all(&order.into).when(attempted)?;
    if new && let Some(Owner { uid, gid }) = owner {
        std::os::unix::fs::chown(&order.into, Some(uid), Some(gid)).when(attempted)?;
    }
    check_space(&order.into, order.unpacked_bytes)?;
    // Inside the target, so that moving is renaming.
    let part = draft_beside(&order.into.join("part"));
    fs::create_dir(&part).when(attempted)?;
    let expected = Expected {
        digest: &order.digest,
        compressed_bytes: order.compressed_bytes,
        unpacked_bytes: order.unpacked_bytes,
    };
    let done = unpack(stream, expected, &part, false)
        .and_then(|_| move_into(&part, &order.into, owner).when(attempted));
    fs::remove_dir_all(&part).ok();
    done.map(|()| Outcome::Done)
}

fn move_into(from: &Utf8Path, to: &Utf8Path, owner: Option<Owner>) -> io::Result<()> {
    for entry in from.read_dir_utf8()? {
        let entry = entry?;
        let place = to.join(entry.file_name());
        if let Some(Owner { uid, gid }) = owner {
            std::os::unix::fs::lchown(entry.path(), Some(uid), Some(gid))?;
        }
        if entry.file_type()?.is_dir() {
            match fs::symlink_metadata(&place) {
                Ok(meta) if meta.is_dir() => move_into(entry.path(), &place, owner)?,
                Ok(_) => {
                    return Err(io::Error::other(format!(
                        "{place} is no folder, but the package brings one"
                    )));
                }
                Err(_) => {
                    fs::create_dir(&place)?;
                    if let Some(Owner { uid, gid }) = owner {
                        std::os::unix::fs::lchown(&place, Some(uid), Some(gid))?;
                    }
                    move_into(entry.path(), &place, owner)?;
                }
            }
        } else {
            fs::rename(entry.path(), &place)?;
        }
    }
    sync_folder(to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::tests::{Piece, parcel};

    fn order(stream: &[u8], store: &Utf8Path) -> Stage {
        Stage {
            digest: Digest::of(stream),
            compressed_bytes: stream.len() as u64,
            unpacked_bytes: 1000,
            store: store.to_owned(),
        }
    }

    fn store() -> (tempfile::TempDir, Utf8PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(folder.path().join("a/store")).unwrap();
        (folder, path)
    }

    /// Fails the test if the agent asks for a stream.
    struct Untouched;
    impl Read for Untouched {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            panic!("nobody should have read this");
        }
    }

    #[test]
    fn a_store_keeps_the_last_contents_and_does_not_grow_for_ever() {
        let (_keep, store) = store();
        let contents: Vec<Vec<u8>> = (0..9_u8)
            .map(|number| parcel(&[Piece::File("dm-worker/dm-worker", 0o755, &[number])]))
            .collect();
        for (age, stream) in contents.iter().enumerate() {
            let order = order(stream, &store);
            stage(&order, &mut &**stream).unwrap();
            // One a minute, the first an hour ago: files of the same moment have no order.
            let at = std::time::SystemTime::now()
                - std::time::Duration::from_secs(3600 - 60 * age as u64);
            let folder = fs::File::open(store.join(order.digest.as_str())).unwrap();
            folder.file().set_modified(at).unwrap();
        }
        let again = |number: usize| {
            let stream = &contents[number];
            stage(&order(stream, &store), &mut &**stream).unwrap()
        };
        // One that was there already is wanted again: the next one that comes takes the oldest besides it.
        assert!(matches!(again(2), Outcome::Staged { already: true, .. }));
        assert!(matches!(again(0), Outcome::Staged { already: false, .. }));
        let mut names: Vec<String> = store
            .read_dir_utf8()
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_owned())
            .collect();
        names.sort();
        let mut kept: Vec<String> = [0, 2, 4, 5, 6, 7, 8]
            .map(|number: usize| &contents[number])
            .iter()
            .flat_map(|stream| {
                let digest = Digest::of(stream);
                [digest.as_str().to_owned(), format!("{}.json", digest.as_str())]
            })
            .collect();
        kept.sort();
        assert_eq!(names, kept);
    }

    #[test]
    fn content_is_staged_once_and_then_known_without_reading_the_stream() {
        let (_keep, store) = store();
        let stream = parcel(&[Piece::File("dm-worker/dm-worker", 0o755, b"new")]);
        let order = order(&stream, &store);
        let first = stage(&order, &mut &*stream).unwrap();
        let Outcome::Staged { folder, already: false, files } = first else { panic!("{first:?}") };
        assert_eq!(fs::read(folder.join("dm-worker/dm-worker")).unwrap(), b"new");
        let again = stage(&order, &mut Untouched).unwrap();
        assert_eq!(again, Outcome::Staged { folder: folder.clone(), already: true, files });
        // Cut into by somebody: received again.
        fs::write(folder.join("dm-worker/dm-worker"), "").unwrap();
        assert!(matches!(stage(&order, &mut &*stream), Ok(Outcome::Staged { already: false, .. })));
    }

    #[test]
    fn the_same_content_may_come_by_several_ways_at_once() {
        let content = vec![7; 200_000];
        let stream = parcel(&[Piece::File("dm-worker/dm-worker", 0o755, &content)]);
        for _ in 0..20 {
            let (_keep, store) = store();
            let order = Stage { unpacked_bytes: 300_000, ..order(&stream, &store) };
            std::thread::scope(|scope| {
                let ways: Vec<_> =
                    (0..4).map(|_| scope.spawn(|| stage(&order, &mut &stream[..]))).collect();
                for way in ways {
                    way.join().unwrap().unwrap();
                }
            });
            assert!(staged(&store, &order.digest).is_some());
            assert_eq!(store.read_dir_utf8().unwrap().count(), 2);
        }
    }

    #[test]
    fn a_broken_stream_leaves_no_part_behind() {
        let (_keep, store) = store();
        let stream = parcel(&[Piece::File("f", 0o755, b"new")]);
        let order = order(&stream, &store);
        struct Breaks<'a>(&'a [u8]);
        impl Read for Breaks<'_> {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                match self.0.read(into)? {
                    0 => Err(io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        "the connection ended",
                    )),
                    read => Ok(read),
                }
            }
        }
        let half = &stream[..stream.len() / 2];
        let refusal = stage(&order, &mut Breaks(half)).unwrap_err();
        assert!(refusal.observed.contains("the connection ended"), "{refusal}");
        assert_eq!(fs::read_dir(&store).unwrap().count(), 0);
    }

    #[test]
    fn parts_of_dead_receivers_are_removed_and_those_of_living_ones_kept() {
        let (_keep, store) = store();
        fs::create_dir_all(store.join(".part-4194999-0")).unwrap();
        fs::create_dir_all(store.join(".part-1-0")).unwrap();
        let stream = parcel(&[Piece::File("f", 0o755, b"new")]);
        stage(&order(&stream, &store), &mut &*stream).unwrap();
        assert!(!store.join(".part-4194999-0").exists() && store.join(".part-1-0").exists());
    }

    #[test]
    fn more_than_the_disk_has_is_refused_before_the_stream_is_asked_for() {
        let (_keep, store) = store();
        let order = Stage { unpacked_bytes: u64::MAX / 2, ..order(b"x", &store) };
        assert_eq!(stage(&order, &mut Untouched).unwrap_err().kind, RefusalKind::NoSpace);
    }

    #[test]
    fn unpacking_into_a_folder_replaces_files_and_keeps_others() {
        let (_keep, into) = store();
        fs::create_dir_all(into.join("d")).unwrap();
        fs::write(into.join("d/old"), "old").unwrap();
        fs::write(into.join("d/f"), "old").unwrap();
        let stream =
            parcel(&[Piece::File("d/f", 0o755, b"new"), Piece::File("e/g", 0o644, b"new")]);
        let order = Unpack {
            digest: Digest::of(&stream),
            compressed_bytes: stream.len() as u64,
            unpacked_bytes: 100,
            into: into.clone(),
            owner: None,
        };
        assert_eq!(unpack_into(&order, None, &mut &*stream), Ok(Outcome::Done));
        for (path, content) in [("d/old", "old"), ("d/f", "new"), ("e/g", "new")] {
            assert_eq!(fs::read_to_string(into.join(path)).unwrap(), content, "{path}");
        }
        let wrong = Unpack { digest: Digest::of(b"?"), ..order };
        fs::write(into.join("d/f"), "kept").unwrap();
        assert_eq!(
            unpack_into(&wrong, None, &mut &*stream).unwrap_err().kind,
            RefusalKind::Content
        );
        assert_eq!(fs::read_to_string(into.join("d/f")).unwrap(), "kept");
        assert_eq!(fs::read_dir(&into).unwrap().count(), 2, "no part stays behind");
    }
}
