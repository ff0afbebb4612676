//! Unpacks a zstd-compressed tar stream that nobody vouches for yet.
//!
//! Refused: more bytes or entries than announced or allowed, absolute paths, `..`, anything
//! but files, folders and links, links that leave the tree, paths that go through a link.
//! Modes lose setuid, setgid and write rights of others; owners of the archive are ignored.
//!
//! Why links cannot leave: an entry's parents are real folders (checked), a target has `..`
//! only at its front and no more of them than the link is deep, so every step of following
//! one ends inside, whatever other links it meets.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;

use camino::{Utf8Component, Utf8Path, Utf8PathBuf};
use dmup_core::digest::Digest;
use dmup_wire::message::{Refusal, RefusalKind, StagedFile};
use fs_err as fs;
use sha2::{Digest as _, Sha256};

use crate::files::sync_folder;
use crate::hash::Hashing;
use crate::refuse::{refuse, system};

/// Most entries of an archive.
const ENTRIES: usize = 100_000;

/// Longest path of an entry.
const PATH_BYTES: usize = 1024;

/// What a stream must turn out to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected<'a> {
    pub(crate) digest: &'a Digest,
    pub(crate) compressed_bytes: u64,
    pub(crate) unpacked_bytes: u64,
}

/// Unpacks into a folder that exists. Returns the regular files, sorted. `durable` syncs every file and folder.
///
/// After a refusal the folder holds whatever came before; the caller removes it.
pub(crate) fn unpack(
    stream: &mut dyn Read,
    expected: Expected<'_>,
    into: &Utf8Path,
    durable: bool,
) -> Result<Vec<StagedFile>, Refusal> {
    let attempted = || format!("unpack the stream into {into}");
    let mut raw = Hashing::new(stream.take(expected.compressed_bytes.saturating_add(1)));
    let unpacked = unpack_entries(&mut raw, expected.unpacked_bytes, into, durable);
    // The stream is read to its end in any case where it makes sense, so that a wrong
    // hash is told from an archive that is bad by itself.
    let rest = match &unpacked {
        Ok(_) | Err(Bad::Content(_)) => io::copy(&mut raw, &mut io::sink()).map(drop),
        Err(Bad::System(_)) => Ok(()),
    };
    let (bytes, digest) = raw.finish();
    if let Err(Bad::System(error)) = unpacked {
        return Err(system(attempted(), &error));
    }
    if let Err(error) = rest {
        return Err(system(attempted(), &error));
    }
    let content = |observed: String| refuse(RefusalKind::Content, attempted(), observed);
    if bytes != expected.compressed_bytes {
        let announced = expected.compressed_bytes;
        return Err(content(format!(
            "{announced} bytes were announced, the stream had {}",
            if bytes > announced { "more".to_owned() } else { bytes.to_string() }
        )));
    }
    if digest != *expected.digest {
        return Err(content(format!(
            "the stream has SHA-256 {}, announced was {}",
            digest.as_str(),
            expected.digest.as_str()
        )));
    }
    match unpacked {
        Ok(files) => Ok(files),
        Err(Bad::Content(words)) => Err(content(words)),
        Err(Bad::System(error)) => Err(system(attempted(), &error)),
    }
}

/// Why an entry was not unpacked.
enum Bad {
    Content(String),
    System(io::Error),
}

impl From<io::Error> for Bad {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

fn unpack_entries(
    raw: &mut impl Read,
    limit: u64,
    into: &Utf8Path,
    durable: bool,
) -> Result<Vec<StagedFile>, Bad> {
    // Errors of the decompressor and of tar are the content's fault; a broken stream
    // shows as wrong length afterwards, or as its own error when read on.
    let content = |error: io::Error| {
        if error.kind() == io::ErrorKind::ConnectionAborted {
            Bad::System(error)
        } else {
            Bad::Content(format!("the archive cannot be read: {error}"))
        }
    };
    let decoder = zstd::Decoder::new(raw).map_err(content)?;
    // Headers and padding: tar rounds up to 512 bytes and long names take entries of their own.
    let overhead = (ENTRIES as u64) * 512 * 8;
    let mut archive = tar::Archive::new(decoder.take(limit.saturating_add(overhead)));
    let mut tree = Tree { root: into, left: limit, files: BTreeMap::new(), durable };
    for (number, entry) in archive.entries().map_err(content)?.enumerate() {
        if number >= ENTRIES {
            return Err(Bad::Content(format!("it has more than {ENTRIES} entries")));
        }
        tree.take(&mut entry.map_err(content)?, &content)?;
    }
    // What follows the end of the archive must be read for the hash, and is bounded like the rest.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(content)?;
    if tree.files.is_empty() {
        return Err(Bad::Content("it has no files".to_owned()));
    }
    if durable {
        sync_tree(into)?;
    }
    Ok(tree.files.into_values().collect())
}

struct Tree<'a> {
    root: &'a Utf8Path,
    left: u64,
    files: BTreeMap<Utf8PathBuf, StagedFile>,
    durable: bool,
}

impl Tree<'_> {
    fn take<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        content: &impl Fn(io::Error) -> Bad,
    ) -> Result<(), Bad> {
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            return Ok(());
        }
        let bytes = entry.path_bytes().into_owned();
        let named = String::from_utf8_lossy(&bytes).into_owned();
        let Some(path) = cleaned(&bytes) else {
            return Err(Bad::Content(format!(
                "entry `{named}` would leave the tree, or is no sound path"
            )));
        };
        if path.as_str().is_empty() {
            return Ok(()); // `./`
        }
        self.make_parents(&path)?;
        let place = self.root.join(&path);
        if kind.is_dir() {
            return self.make_folder(&place);
        }
        self.make_way(&place, &path)?;
        let target = |entry: &tar::Entry<'_, R>| -> Result<String, Bad> {
            let target =
                entry.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default();
            String::from_utf8(target).map_err(|_| {
                Bad::Content(format!("link `{named}` leads to a name that is not UTF-8"))
            })
        };
        if kind.is_file() {
            return self.write(entry, path, &place, content);
        }
        if kind.is_symlink() {
            let target = target(entry)?;
            if !stays_inside(&path, &target) {
                return Err(Bad::Content(format!(
                    "link `{named}` leads out of the tree, to `{target}`"
                )));
            }
            fs_err::os::unix::fs::symlink(target, &place)?;
            return Ok(());
        }
        if kind.is_hard_link() {
            let target = target(entry)?;
            let Some(first) =
                cleaned(target.as_bytes()).and_then(|first| self.files.get(&first).cloned())
            else {
                return Err(Bad::Content(format!(
                    "hard link `{named}` leads to `{target}`, which is no earlier file of the archive"
                )));
            };
            fs::hard_link(self.root.join(&first.path), &place)?;
            self.files.insert(path.clone(), StagedFile { path, ..first });
            return Ok(());
        }
        Err(Bad::Content(format!(
            "entry `{named}` is neither file nor folder nor link (type {kind:?})"
        )))
    }

    fn write<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        path: Utf8PathBuf,
        place: &Utf8Path,
        content: &impl Fn(io::Error) -> Bad,
    ) -> Result<(), Bad> {
        let announced = entry.size();
        if announced > self.left {
            return Err(Bad::Content(format!("with `{path}` it has more bytes than announced")));
        }
        let mode = (entry.header().mode().unwrap_or(0o644) & 0o755) | 0o644;
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(place)?;
        let (mut hasher, mut piece, mut bytes) = (Sha256::new(), vec![0; 128 * 1024], 0_u64);
        loop {
            let read = entry.read(&mut piece).map_err(content)?;
            if read == 0 {
                break;
            }
            hasher.update(&piece[..read]);
            file.write_all(&piece[..read])?;
            bytes += read as u64;
        }
        if bytes != announced {
            return Err(Bad::Content(format!("`{path}` ends after {bytes} of {announced} bytes")));
        }
        // The umask of the login took rights that the package gives.
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
        if self.durable {
            file.sync_all()?;
        }
        self.left -= bytes;
        let digest = Digest::from_bytes(hasher.finalize().into());
        self.files.insert(path.clone(), StagedFile { path, bytes, digest });
        Ok(())
    }

    fn make_folder(&self, place: &Utf8Path) -> Result<(), Bad> {
        match fs::symlink_metadata(place) {
            Ok(meta) if meta.is_dir() => Ok(()),
            Ok(_) => Err(Bad::Content(format!(
                "`{place}` is a folder in one entry and something else in another"
            ))),
            Err(_) => Ok(fs::create_dir(place)?),
        }
    }

    fn make_parents(&self, path: &Utf8Path) -> Result<(), Bad> {
        let mut parents: Vec<&Utf8Path> =
            path.ancestors().skip(1).filter(|parent| !parent.as_str().is_empty()).collect();
        parents.reverse();
        parents.into_iter().try_for_each(|parent| {
            let place = self.root.join(parent);
            match fs::symlink_metadata(&place) {
                Ok(meta) if meta.is_dir() => Ok(()),
                Ok(_) => Err(Bad::Content(format!(
                    "`{path}` goes through `{parent}`, which is no folder"
                ))),
                Err(_) => Ok(fs::create_dir(&place)?),
            }
        })
    }

    /// As tar does, a later entry of a name replaces an earlier one.
    fn make_way(&mut self, place: &Utf8Path, path: &Utf8Path) -> Result<(), Bad> {
        match fs::symlink_metadata(place) {
            Ok(meta) if meta.is_dir() => Err(Bad::Content(format!(
                "`{path}` is a folder in one entry and something else in another"
            ))),
            Ok(_) => {
                self.files.remove(path);
                Ok(fs::remove_file(place)?)
            }
            Err(_) => Ok(()),
        }
    }
}

/// The path of an entry without `.`; none if it is not UTF-8, absolute, goes up or is too long.
fn cleaned(bytes: &[u8]) -> Option<Utf8PathBuf> {
    let text = std::str::from_utf8(bytes).ok()?;
    if text.len() > PATH_BYTES || text.contains('\0') {
        return None;
    }
    let mut path = Utf8PathBuf::new();
    for part in Utf8Path::new(text).components() {
        match part {
            Utf8Component::Normal(name) => path.push(name),
            Utf8Component::CurDir => {}
            Utf8Component::RootDir | Utf8Component::ParentDir | Utf8Component::Prefix(_) => {
                return None;
            }
        }
    }
    Some(path)
}

/// Whether a link at `path` with this target stays inside, see the module's head.
fn stays_inside(path: &Utf8Path, target: &str) -> bool {
    if target.is_empty() || target.len() > PATH_BYTES || target.contains('\0') {
        return false;
    }
    let mut room = path.components().count() - 1;
    let mut descends = false;
    for part in Utf8Path::new(target).components() {
        match part {
            Utf8Component::Normal(_) => descends = true,
            Utf8Component::CurDir => {}
            Utf8Component::ParentDir if !descends && room > 0 => room -= 1,
            Utf8Component::ParentDir | Utf8Component::RootDir | Utf8Component::Prefix(_) => {
                return false;
            }
        }
    }
    true
}

fn sync_tree(folder: &Utf8Path) -> io::Result<()> {
    for entry in folder.read_dir_utf8()? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(entry.path())?;
        }
    }
    sync_folder(folder)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One entry of an archive for tests.
    #[derive(Clone, Copy)]
    pub(crate) enum Piece<'a> {
        File(&'a str, u32, &'a [u8]),
        Link(&'a str, &'a str),
        Hard(&'a str, &'a str),
        Odd(&'a str, tar::EntryType),
    }

    /// A stream, as hostile as asked: names are written raw, past the checks of the tar crate.
    pub(crate) fn parcel(pieces: &[Piece<'_>]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for piece in pieces {
            let (name, kind, mode, target, content) = match *piece {
                Piece::File(name, mode, content) => {
                    (name, tar::EntryType::Regular, mode, "", content)
                }
                Piece::Link(name, target) => {
                    (name, tar::EntryType::Symlink, 0o777, target, &b""[..])
                }
                Piece::Hard(name, target) => (name, tar::EntryType::Link, 0o644, target, &b""[..]),
                Piece::Odd(name, kind) => (name, kind, 0o644, "", &b""[..]),
            };
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(content.len() as u64);
            header.set_mode(mode);
            let old = header.as_old_mut();
            old.name[..name.len()].copy_from_slice(name.as_bytes());
            old.linkname[..target.len()].copy_from_slice(target.as_bytes());
            header.set_cksum();
            builder.append(&header, content).unwrap();
        }
        zstd::encode_all(&*builder.into_inner().unwrap(), 1).unwrap()
    }

    fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(folder.path().join("into")).unwrap();
        fs::create_dir(&path).unwrap();
        (folder, path)
    }

    fn unpacked(stream: &[u8], limit: u64, into: &Utf8Path) -> Result<Vec<StagedFile>, Refusal> {
        let digest = Digest::of(stream);
        let expected = Expected {
            digest: &digest,
            compressed_bytes: stream.len() as u64,
            unpacked_bytes: limit,
        };
        unpack(&mut &*stream, expected, into, true)
    }

    #[test]
    fn files_folders_and_inner_links_are_unpacked_with_sane_modes() {
        let (_keep, into) = folder();
        let stream = parcel(&[
            Piece::Odd("./", tar::EntryType::Directory),
            Piece::File("dm-worker/dm-worker", 0o6777, b"ELF"),
            Piece::Link("dm-worker/conf/link", "../dm-worker"),
            Piece::Hard("again", "dm-worker/dm-worker"),
        ]);
        let files = unpacked(&stream, 100, &into).unwrap();
        let names: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(names, ["again", "dm-worker/dm-worker"]);
        assert_eq!(files[1].digest, Digest::of(b"ELF"));
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &fs::metadata(into.join("again")).unwrap().permissions(),
        );
        assert_eq!(mode & 0o7777, 0o755);
        assert_eq!(fs::read(into.join("dm-worker/conf/link")).unwrap(), b"ELF");
    }

    #[test]
    fn hostile_archives_are_refused_and_nothing_appears_outside() {
        let hostile: &[&[Piece<'_>]] = &[
            &[Piece::File("../out", 0o644, b"x")],
            &[Piece::File("/tmp/dmup-hostile", 0o644, b"x")],
            &[Piece::File("a/../../out", 0o644, b"x")],
            &[Piece::Link("a", "/etc/passwd")],
            &[Piece::Link("a", "../out")],
            &[Piece::Link("a/b", "../../out")],
            &[Piece::Link("x", "."), Piece::Link("y", "x/..")],
            &[Piece::Link("d", "."), Piece::File("d/out", 0o644, b"x")],
            &[Piece::Hard("a", "/etc/passwd")],
            &[Piece::Hard("a", "../out")],
            &[Piece::Link("l", "f"), Piece::Hard("a", "l")],
            &[Piece::Odd("dev", tar::EntryType::Char)],
            &[Piece::Odd("pipe", tar::EntryType::Fifo)],
            &[Piece::File("a", 0o644, b"x"), Piece::File("a/b", 0o644, b"x")],
            &[Piece::File("large", 0o644, &[0; 101])],
        ];
        for (number, pieces) in hostile.iter().enumerate() {
            let (keep, into) = folder();
            let refusal = unpacked(&parcel(pieces), 100, &into).unwrap_err();
            assert_eq!(refusal.kind, RefusalKind::Content, "{number}: {refusal}");
            assert_eq!(fs::read_dir(keep.path()).unwrap().count(), 1, "{number}");
        }
        assert!(!Utf8Path::new("/tmp/dmup-hostile").exists());
    }

    #[test]
    fn a_stream_that_is_not_the_announced_one_is_refused() {
        let (_keep, into) = folder();
        let stream = parcel(&[Piece::File("f", 0o644, b"x")]);
        let digest = Digest::of(b"something else");
        let expected =
            Expected { digest: &digest, compressed_bytes: stream.len() as u64, unpacked_bytes: 9 };
        let refusal = unpack(&mut &*stream, expected, &into, false).unwrap_err();
        assert!(refusal.observed.contains("SHA-256"), "{refusal}");
        for bytes in [stream.len() as u64 - 1, stream.len() as u64 + 1] {
            let digest = Digest::of(&stream);
            let expected = Expected { digest: &digest, compressed_bytes: bytes, unpacked_bytes: 9 };
            let (_keep, into) = folder();
            let refusal = unpack(&mut &*stream, expected, &into, false).unwrap_err();
            assert_eq!(refusal.kind, RefusalKind::Content, "{refusal}");
        }
        for garbage in [&b""[..], b"no archive at all", &stream[..stream.len() / 2]] {
            let (_keep, into) = folder();
            assert_eq!(unpacked(garbage, 9, &into).unwrap_err().kind, RefusalKind::Content);
        }
    }

    #[test]
    fn a_bomb_behind_the_end_of_the_archive_is_not_unpacked_without_bound() {
        let mut plain = zstd::decode_all(&*parcel(&[Piece::File("f", 0o644, b"x")])).unwrap();
        plain.resize(plain.len() + 600 * 1024 * 1024, 0);
        let stream = zstd::encode_all(&*plain, 1).unwrap();
        drop(plain);
        let (_keep, into) = folder();
        // Read up to the bound only; then the rest of the stream is hashed compressed.
        assert!(unpacked(&stream, 9, &into).is_ok());
    }

    proptest::proptest! {
        #[test]
        fn garbage_never_panics_and_never_leaves_the_folder(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..2000), compressed in proptest::prelude::any::<bool>()) {
            let (keep, into) = folder();
            let stream = if compressed { zstd::encode_all(&*bytes, 1).unwrap() } else { bytes };
            drop(unpacked(&stream, 1000, &into));
            proptest::prop_assert_eq!(fs::read_dir(keep.path()).unwrap().count(), 1);
        }
    }
}
