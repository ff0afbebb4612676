//! Builds the tree that a window will exchange for `bin`, and tries its executable.
//!
//! The live tree is copied, so that whatever else lies in it is carried over; the
//! package's files replace theirs. All of it happens beside the live tree and is renamed
//! to its name at the end, so a tree of that name is whole.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::digest::Digest;
use dmup_wire::message::{Outcome, Prepare, Refusal, RefusalKind};
use fs_err as fs;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use sha2::{Digest as _, Sha256};

use crate::files::{check_absolute, check_relative, remove, sync_folder};
use crate::refuse::{Reply, When, bad, refuse};
use crate::stage::{check_space, manifest};
use crate::{program, trees};

/// A version is printed in milliseconds; a cold disk takes longer.
const VERSION_LIMIT: Duration = Duration::from_secs(20);

/// What the wire allows for a version.
const VERSION_BYTES: usize = 4096;

/// Most files and folders of a live tree.
const ENTRIES: usize = 100_000;

/// Checks the order, builds the tree, runs the executable.
pub(crate) fn prepare(order: &Prepare) -> Reply {
    check(order)?;
    let attempted = || format!("prepare {} for {}", order.staged, order.instance);
    let live = match fs::metadata(&order.live) {
        Ok(meta) if meta.is_dir() => meta,
        Ok(_) => {
            return Err(refuse(
                RefusalKind::Precondition,
                attempted(),
                format!("{} is no folder", order.live),
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(refuse(
                RefusalKind::Precondition,
                attempted(),
                format!("there is no {}", order.live),
            ));
        }
        Err(error) => return Err(error).when(attempted),
    };
    let hashes: HashMap<Utf8PathBuf, Digest> = manifest(&order.from)
        .ok_or_else(|| {
            refuse(RefusalKind::Precondition, attempted(), format!("{} is not staged", order.from))
        })?
        .into_iter()
        .map(|file| (file.path, file.digest))
        .collect();
    let part = Utf8PathBuf::from(format!("{}.part", order.staged));
    remove(&part)?;
    let built = build(order, &hashes, &part).and_then(|()| try_executable(order, &part, &live));
    let version = match built {
        Ok(version) => version,
        Err(refusal) => {
            remove(&part).ok();
            return Err(refusal);
        }
    };
    trees::make_room(order)?;
    fs::rename(&part, &order.staged).when(attempted)?;
    if let Some(folder) = order.staged.parent() {
        check_exchange(folder)?;
        sync_folder(folder).when(attempted)?;
    }
    Ok(Outcome::Prepared { version })
}

fn check(order: &Prepare) -> Result<(), Refusal> {
    for path in [&order.live, &order.staged, &order.from] {
        check_absolute(path)?;
    }
    check_relative(&order.binary)?;
    for (from, to) in &order.replace {
        check_relative(from)?;
        check_relative(to)?;
    }
    if order.live == order.staged || order.live.parent() != order.staged.parent() {
        let seen = format!("{} is not beside {}", order.staged, order.live);
        return Err(bad(format!("prepare {}", order.staged), seen));
    }
    Ok(())
}

fn build(
    order: &Prepare,
    hashes: &HashMap<Utf8PathBuf, Digest>,
    part: &Utf8Path,
) -> Result<(), Refusal> {
    let attempted = || format!("copy {} to {part}", order.live);
    let replaced: HashMap<&Utf8Path, &Utf8Path> =
        order.replace.iter().map(|(from, to)| (to.as_path(), from.as_path())).collect();
    let mut bytes = 0;
    let mut entries = 0;
    measure(&order.live, &mut bytes, &mut entries).when(attempted)?;
    for from in replaced.values() {
        bytes += fs::metadata(order.from.join(from)).when(attempted)?.len();
    }
    check_space(part, bytes)?;
    copy_tree(&order.live, part, Utf8Path::new(""), &replaced).when(attempted)?;
    for (from, to) in &order.replace {
        let expected = hashes.get(from).ok_or_else(|| {
            refuse(
                RefusalKind::Precondition,
                attempted(),
                format!("{from} is no file of {}", order.from),
            )
        })?;
        let source = order.from.join(from);
        let seen = bring(&source, part, to, &order.live)
            .when(|| format!("copy {source} to {part}/{to}"))?;
        if seen != *expected {
            let words =
                format!("it has SHA-256 {}, staged was {}", seen.as_str(), expected.as_str());
            return Err(refuse(RefusalKind::Content, format!("copy {source}"), words));
        }
    }
    sync_folders(part).when(attempted)?;
    let binary = part.join(&order.binary);
    let seen =
        crate::hash::Hashes::default().of_existing(&binary).when(|| format!("hash {binary}"))?;
    match seen {
        Some((digest, _)) if digest == order.digest => Ok(()),
        Some((digest, _)) => {
            let words = format!(
                "it has SHA-256 {}, expected was {}",
                digest.as_str(),
                order.digest.as_str()
            );
            Err(refuse(RefusalKind::Content, format!("check {binary}"), words))
        }
        None => {
            Err(refuse(RefusalKind::Content, format!("check {binary}"), "there is no such file"))
        }
    }
}

fn measure(folder: &Utf8Path, bytes: &mut u64, entries: &mut usize) -> io::Result<()> {
    for entry in folder.read_dir_utf8()? {
        let entry = entry?;
        *entries += 1;
        if *entries > ENTRIES {
            return Err(io::Error::other(format!("there are more than {ENTRIES} files in it")));
        }
        let meta = fs::symlink_metadata(entry.path())?;
        if meta.is_dir() {
            measure(entry.path(), bytes, entries)?;
        } else {
            *bytes += meta.len();
        }
    }
    Ok(())
}

/// Copies folders, files and links with modes; owners too where we may. Files that will be replaced are left out.
fn copy_tree(
    from: &Utf8Path,
    to: &Utf8Path,
    below: &Utf8Path,
    replaced: &HashMap<&Utf8Path, &Utf8Path>,
) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in from.read_dir_utf8()? {
        let entry = entry?;
        let (source, place, inner) =
            (entry.path(), to.join(entry.file_name()), below.join(entry.file_name()));
        let meta = fs::symlink_metadata(source)?;
        if meta.is_dir() {
            copy_tree(source, &place, &inner, replaced)?;
            continue;
        }
        if replaced.contains_key(inner.as_path()) {
            continue;
        }
        if meta.is_symlink() {
            fs_err::os::unix::fs::symlink(fs::read_link(source)?, &place)?;
        } else if meta.is_file() {
            // Shares blocks where the file system can (copy_file_range).
            fs::copy(source, &place)?;
            fs::File::open(&place)?.sync_all()?;
        } else {
            return Err(io::Error::other(format!("{source} is neither file nor folder nor link")));
        }
        keep_owner(&place, &meta)?;
    }
    let meta = fs::metadata(from)?;
    keep_owner(to, &meta)?;
    // Last: a folder without write permission could not be filled. Ours must stay removable.
    fs::set_permissions(to, std::fs::Permissions::from_mode((meta.mode() & 0o7777) | 0o700))
}

/// Only root may give files away; anybody else owns copies, which is the same user on a sound host.
fn keep_owner(place: &Utf8Path, like: &std::fs::Metadata) -> io::Result<()> {
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::lchown(place, Some(like.uid()), Some(like.gid()))?;
    }
    Ok(())
}

/// Copies a file of the store into the tree, hashing what is read. New folders and files belong to the live tree's owner.
fn bring(source: &Utf8Path, part: &Utf8Path, to: &Utf8Path, live: &Utf8Path) -> io::Result<Digest> {
    let like = fs::metadata(live)?;
    let mut folder = part.to_owned();
    for name in to.parent().into_iter().flat_map(Utf8Path::components) {
        folder.push(name.as_str());
        match fs::symlink_metadata(&folder) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => {
                return Err(io::Error::other(format!(
                    "{folder} is no folder, but the package has one there"
                )));
            }
            Err(_) => {
                fs::create_dir(&folder)?;
                keep_owner(&folder, &like)?;
            }
        }
    }
    let place = part.join(to);
    if fs::symlink_metadata(&place).is_ok_and(|meta| meta.is_dir()) {
        return Err(io::Error::other(format!(
            "{place} is a folder, but the package has a file there"
        )));
    }
    let mut from = fs::File::open(source)?;
    let mode = from.metadata()?.mode() & 0o777;
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&place)?;
    let (mut hasher, mut piece) = (Sha256::new(), vec![0; 256 * 1024]);
    loop {
        let read = from.read(&mut piece)?;
        if read == 0 {
            break;
        }
        hasher.update(&piece[..read]);
        file.write_all(&piece[..read])?;
    }
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    file.sync_all()?;
    keep_owner(&place, &like)?;
    Ok(Digest::from_bytes(hasher.finalize().into()))
}

fn sync_folders(folder: &Utf8Path) -> io::Result<()> {
    for entry in folder.read_dir_utf8()? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_folders(entry.path())?;
        }
    }
    sync_folder(folder)
}

/// Runs the executable for its version; as the tree's owner if we are root.
fn try_executable(
    order: &Prepare,
    part: &Utf8Path,
    live: &std::fs::Metadata,
) -> Result<Option<String>, Refusal> {
    let Some(arguments) = &order.version_arguments else { return Ok(None) };
    let binary = part.join(&order.binary);
    let attempted = || format!("run {binary} {}", arguments.join(" "));
    let ran = program::run_of_package(&binary, arguments, part, live, VERSION_LIMIT)?;
    if !ran.status.success() {
        return Err(refuse(RefusalKind::Content, attempted(), ran.words()));
    }
    let said = if ran.stdout.trim().is_empty() { &ran.stderr } else { &ran.stdout };
    if said.trim().is_empty() {
        let words = "it ended well and printed nothing".to_owned();
        return Err(refuse(RefusalKind::Content, attempted(), words));
    }
    let end = (0..=said.len().min(VERSION_BYTES))
        .rev()
        .find(|at| said.is_char_boundary(*at))
        .unwrap_or(0);
    Ok(Some(said[..end].to_owned()))
}

/// Whether this file system can exchange two folders in one step: better known now than inside the window.
fn check_exchange(folder: &Utf8Path) -> Result<(), Refusal> {
    let attempted = || format!("exchange two folders in {folder}");
    let (one, two) = (
        crate::files::draft_beside(&folder.join("a")),
        crate::files::draft_beside(&folder.join("b")),
    );
    fs::create_dir(&one).when(attempted)?;
    let exchanged = fs::create_dir(&two).and_then(|()| {
        renameat_with(CWD, one.as_str(), CWD, two.as_str(), RenameFlags::EXCHANGE)
            .map_err(io::Error::from)
    });
    fs::remove_dir(&one).ok();
    fs::remove_dir(&two).ok();
    exchanged.map_err(|error| {
        refuse(RefusalKind::System, attempted(), format!("the file system cannot do it: {error}"))
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use dmup_core::ids::InstanceId;
    use dmup_wire::message::Stage;

    use super::*;
    use crate::archive::tests::{Piece, parcel};

    /// A deploy folder with a live tree and a staged package.
    pub(crate) struct Deployed {
        _keep: tempfile::TempDir,
        pub(crate) dir: Utf8PathBuf,
        pub(crate) order: Prepare,
    }

    pub(crate) fn deployed(new: &str) -> Deployed {
        let keep = tempfile::tempdir().unwrap();
        let dir = Utf8PathBuf::from_path_buf(keep.path().to_owned()).unwrap();
        fs::create_dir_all(dir.join("bin/dm-worker/conf")).unwrap();
        fs::write(dir.join("bin/dm-worker/dm-worker"), "#!/bin/sh\necho old\n").unwrap();
        fs::write(dir.join("bin/dm-worker/conf/kept"), "kept").unwrap();
        fs::set_permissions(
            dir.join("bin/dm-worker/dm-worker"),
            std::fs::Permissions::from_mode(0o755),
        )
        .unwrap();
        fs_err::os::unix::fs::symlink("kept", dir.join("bin/dm-worker/conf/link")).unwrap();
        let stream = parcel(&[Piece::File("dm-worker", 0o755, new.as_bytes())]);
        let digest = Digest::of(&stream);
        let store = dir.join("store");
        let stage = Stage {
            digest: digest.clone(),
            compressed_bytes: stream.len() as u64,
            unpacked_bytes: 1 << 20,
            store: store.clone(),
        };
        crate::stage::stage(&stage, &mut &*stream).unwrap();
        let order = Prepare {
            instance: InstanceId::new("h:1").unwrap(),
            live: dir.join("bin"),
            staged: dir.join("bin.next"),
            from: store.join(digest.as_str()),
            replace: vec![("dm-worker".into(), "dm-worker/dm-worker".into())],
            binary: "dm-worker/dm-worker".into(),
            digest: Digest::of(new.as_bytes()),
            version_arguments: Some(vec!["-V".into()]),
            keeps: None,
        };
        Deployed { _keep: keep, dir, order }
    }

    #[test]
    fn the_tree_has_the_new_executable_and_everything_else_of_the_live_one() {
        let deployed = deployed("#!/bin/sh\necho Release Version: v1 $1\n");
        fs::create_dir_all(deployed.dir.join("bin.next/from an earlier time")).unwrap();
        for _ in 0..2 {
            let done = prepare(&deployed.order).unwrap();
            assert_eq!(
                done,
                Outcome::Prepared { version: Some("Release Version: v1 -V\n".into()) }
            );
        }
        let staged = &deployed.order.staged;
        assert_eq!(fs::read_to_string(staged.join("dm-worker/conf/link")).unwrap(), "kept");
        assert!(fs::symlink_metadata(staged.join("dm-worker/conf/link")).unwrap().is_symlink());
        assert!(!staged.join("from an earlier time").exists());
        let old = fs::read_to_string(deployed.dir.join("bin/dm-worker/dm-worker")).unwrap();
        assert!(old.contains("old"), "the live tree is untouched");
        let mut names: Vec<String> = deployed
            .dir
            .read_dir_utf8()
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_owned())
            .collect();
        names.sort();
        assert_eq!(names, ["bin", "bin.next", "store"]);
    }

    #[test]
    fn an_executable_that_does_not_run_is_refused_with_its_own_words_and_leaves_nothing() {
        for (content, words) in [
            ("#!/bin/sh\necho broken >&2; exit 7\n", "broken (exit status 7)"),
            ("#!/bin/sh\nexit 0\n", "printed nothing"),
            ("\u{7f}ELF\u{2}\u{1}\u{1}         \u{2}\0\u{f3}...", "built for"),
            ("\u{7f}ELF", "neither an ELF program"),
            ("#!/no/such/loader\n", "the loader that it names is not"),
        ] {
            let deployed = deployed(content);
            let refusal = prepare(&deployed.order).unwrap_err();
            assert_eq!(refusal.kind, RefusalKind::Content, "{refusal}");
            assert!(refusal.observed.contains(words), "{refusal}");
            assert!(
                !deployed.dir.join("bin.next").exists()
                    && !deployed.dir.join("bin.next.part").exists()
            );
        }
    }

    #[test]
    fn a_store_that_was_cut_into_and_a_wrong_digest_are_refused() {
        let deployed = deployed("#!/bin/sh\necho new\n");
        let wrong = Prepare { digest: Digest::of(b"?"), ..deployed.order.clone() };
        assert_eq!(prepare(&wrong).unwrap_err().kind, RefusalKind::Content);
        fs::write(deployed.order.from.join("dm-worker"), "#!/bin/sh\necho bad\n").unwrap();
        assert_eq!(prepare(&deployed.order).unwrap_err().kind, RefusalKind::Content);
        let nowhere = Prepare { live: deployed.dir.join("no"), ..deployed.order.clone() };
        assert_eq!(prepare(&nowhere).unwrap_err().kind, RefusalKind::Precondition);
    }

    #[test]
    fn orders_that_reach_elsewhere_make_no_sense() {
        let order = deployed("x").order;
        for order in [
            Prepare { staged: "/elsewhere/bin.next".into(), ..order.clone() },
            Prepare { staged: order.live.clone(), ..order.clone() },
            Prepare { binary: "../x".into(), ..order.clone() },
            Prepare { replace: vec![("dm-worker".into(), "../x".into())], ..order.clone() },
        ] {
            assert_eq!(prepare(&order).unwrap_err().kind, RefusalKind::BadRequest);
        }
    }
}
