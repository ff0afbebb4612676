//! Makes a hotfix package of another package and some files: the same input gives the same bytes.

use std::collections::BTreeSet;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::digest::Digest;
use dmup_core::instance::Role;
use flate2::{Compression, GzBuilder};
use fs_err as fs;
use sha2::{Digest as _, Sha256};

use super::elf;
use super::layout::find;
use super::limits;
use super::open::{as_utf8, check, open_file};
use super::parcel::append_sorted;
use super::refusal::{PackageError, Refusal};
use super::unpack::{Content, Tree, Unpacked, store, unpack};

/// A package that was put together and checked, and is not written yet.
#[derive(Debug)]
pub struct Making {
    /// SHA-256 of the package that it is made of.
    pub base: Digest,
    /// TiUP's word for what its executable runs on.
    pub arch: String,
    /// SHA-256 of the component's executable, as it will be.
    pub binary: Digest,
    /// What was put in, by path.
    pub replaced: Vec<Replaced>,
    executable: Utf8PathBuf,
    tree: Tree,
    /// Removes what was unpacked when dropped.
    #[expect(dead_code, reason = "held for its Drop")]
    room: tempfile::TempDir,
}

/// One file in the place of another.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Replaced {
    /// Path in the package.
    pub path: Utf8PathBuf,
    /// The file that was put in.
    pub file: Utf8PathBuf,
    /// SHA-256 of what was there.
    pub was: Digest,
    /// SHA-256 of what is there now.
    pub is: Digest,
    /// Its size.
    pub bytes: u64,
}

/// A package that was written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Made {
    /// SHA-256 of the file.
    pub digest: Digest,
    /// Its size.
    pub bytes: u64,
}

/// Why no package is made. Nothing is written then.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The package that it is to be made of is not taken.
    #[error(transparent)]
    Base(#[from] PackageError),
    /// There is nothing to replace.
    #[error("the base has no `{path}`; it has {}", .has.join(", "))]
    NotInBase {
        /// What was asked for.
        path: Utf8PathBuf,
        /// Files of the same name, else the first ones.
        has: Vec<String>,
    },
    /// Two files for one place.
    #[error("`{0}` is replaced twice")]
    Twice(Utf8PathBuf),
    /// The file to put in is not taken.
    #[error("put {file} in as `{path}`: {refusal}")]
    File {
        /// Path in the package.
        path: Utf8PathBuf,
        /// Which file.
        file: Utf8PathBuf,
        /// Which rule it breaks.
        refusal: Refusal,
    },
    /// An executable is replaced by something else.
    #[error("put {file} in as `{path}`: it is no ELF executable, and what is there is one")]
    NotElf {
        /// Path in the package.
        path: Utf8PathBuf,
        /// Which file.
        file: Utf8PathBuf,
    },
    /// For another kind of machine.
    #[error("put {file} in as `{path}`: it is built for {arch}, what is there for {wanted}")]
    OtherArchitecture {
        /// Path in the package.
        path: Utf8PathBuf,
        /// Which file.
        file: Utf8PathBuf,
        /// Of the file.
        arch: String,
        /// Of the base.
        wanted: String,
    },
    /// With the files in it, it is no package of the component.
    #[error("as it would be, it is no package of {role}: {refusal}")]
    Result {
        /// Of which.
        role: Role,
        /// Which rule it breaks.
        refusal: Refusal,
    },
    /// Never written over.
    #[error("{0} exists already")]
    Exists(Utf8PathBuf),
    /// It cannot be written.
    #[error("write {path}: {error}")]
    Write {
        /// Which file.
        path: Utf8PathBuf,
        /// What was seen.
        error: io::Error,
    },
}

impl Making {
    /// Unpacks `base`, puts each file in its place, and checks what comes of it.
    ///
    /// `replacements` are pairs of a path in the package and a file. `arch` says what the base must be built for, if that matters.
    ///
    /// # Errors
    ///
    /// [`MakeError`] with the first rule that is broken.
    pub fn begin(
        base: &Utf8Path,
        role: Role,
        arch: Option<&str>,
        replacements: &[(Utf8PathBuf, Utf8PathBuf)],
        scratch: &Utf8Path,
    ) -> Result<Self, MakeError> {
        let of_base = |refusal| PackageError { package: base.to_owned(), refusal };
        let room = tempfile::Builder::new()
            .prefix("package-")
            .tempdir_in(scratch)
            .map_err(|error| of_base(Refusal::Scratch(error)))?;
        let room_path = as_utf8(room.path()).map_err(of_base)?;
        let file = open_file(base).map_err(of_base)?;
        let Unpacked { content, digest: base_digest, .. } =
            unpack(file, room_path).map_err(of_base)?;
        let Content::Archive(mut tree) = content else {
            return Err(of_base(Refusal::NotAnArchive { looks_like: "a bare executable" }).into());
        };
        let wanted = arch.map(|arch| BTreeSet::from([arch.to_owned()]));
        let found = find(&tree, role).map_err(of_base)?.ok_or_else(|| {
            let has = first_of(tree.keys());
            of_base(Refusal::NotInside { wanted: vec![role], has })
        })?;
        let of_the_base = check(&tree, role, found, wanted.as_ref()).map_err(of_base)?;
        let mut replaced: Vec<Replaced> = Vec::new();
        for (path, file) in replacements {
            if replaced.iter().any(|it| it.path == *path) {
                return Err(MakeError::Twice(path.clone()));
            }
            replaced.push(put_in(&mut tree, path, file, room_path, replaced.len())?);
        }
        let of_result = |refusal| MakeError::Result { role, refusal };
        let found = find(&tree, role).map_err(of_result)?.expect("no file was taken out");
        let unpacked = tree[&found.binary].content.clone();
        // Under its own name, which a program may go by; contents lie in numbered files.
        let executable =
            room_path.join("run").join(found.binary.file_name().unwrap_or(role.as_str()));
        let arches = BTreeSet::from([of_the_base.arch]);
        let now = check(&tree, role, found, Some(&arches)).map_err(of_result)?;
        fs::create_dir(room_path.join("run"))
            .and_then(|()| fs::hard_link(&unpacked, &executable))
            .and_then(|()| fs::set_permissions(&executable, std::fs::Permissions::from_mode(0o700)))
            .map_err(|error| of_result(Refusal::Scratch(error)))?;
        Ok(Self {
            base: base_digest,
            arch: now.arch,
            binary: now.binary,
            replaced,
            executable,
            tree,
            room,
        })
    }

    /// Where the component's executable lies unpacked, to be run.
    pub fn executable(&self) -> &Utf8Path {
        &self.executable
    }

    /// Every file with its SHA-256.
    pub fn files(&self) -> impl Iterator<Item = (&Utf8Path, &Digest)> {
        self.tree.iter().map(|(path, file)| (path.as_path(), &file.digest))
    }

    /// Writes it as `tar.gz`: sorted, no dates, no owners, modes 0755 and 0644. It shows up whole or not at all.
    ///
    /// # Errors
    ///
    /// If `out` exists, or cannot be written.
    pub fn write(&self, out: &Utf8Path) -> Result<Made, MakeError> {
        let failed = |error| MakeError::Write { path: out.to_owned(), error };
        let folder = match out.parent() {
            Some(folder) if !folder.as_str().is_empty() => folder,
            Some(_) | None => Utf8Path::new("."),
        };
        let target =
            tempfile::Builder::new().prefix(".package-").tempfile_in(folder).map_err(failed)?;
        let write = || -> io::Result<Made> {
            let file = target.as_file();
            let gzip =
                GzBuilder::new().mtime(0).write(io::BufWriter::new(file), Compression::default());
            let mut tar = tar::Builder::new(gzip);
            append_sorted(&mut tar, self.tree.iter().map(|(path, it)| (path.as_path(), it)))?;
            let writer = tar.into_inner()?.finish()?;
            let mut file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
            file.sync_all()?;
            file.seek(SeekFrom::Start(0))?;
            let mut hasher = Sha256::new();
            let bytes = io::copy(&mut file, &mut hasher)?;
            Ok(Made { digest: Digest::from_bytes(hasher.finalize().into()), bytes })
        };
        let made = write().map_err(failed)?;
        target.persist_noclobber(out).map_err(|refused| {
            if refused.error.kind() == io::ErrorKind::AlreadyExists {
                MakeError::Exists(out.to_owned())
            } else {
                failed(refused.error)
            }
        })?;
        Ok(made)
    }
}

fn put_in(
    tree: &mut Tree,
    path: &Utf8Path,
    file: &Utf8Path,
    room: &Utf8Path,
    number: usize,
) -> Result<Replaced, MakeError> {
    let Some(old) = tree.get(path).cloned() else {
        let namesakes = first_of(tree.keys().filter(|it| it.file_name() == path.file_name()));
        let has = if namesakes.is_empty() { first_of(tree.keys()) } else { namesakes };
        return Err(MakeError::NotInBase { path: path.to_owned(), has });
    };
    let of_file =
        |refusal| MakeError::File { path: path.to_owned(), file: file.to_owned(), refusal };
    let mut from = open_file(file).map_err(of_file)?;
    // Contents of the base have numbers up to how many files it has.
    let number = limits::ENTRIES + number + 1;
    let new = store(&mut from, None, old.mode, room, number)
        .map_err(|fault| of_file(fault.told(false)))?;
    let facts = |content: &Utf8Path| -> Result<Option<elf::ElfFacts>, MakeError> {
        let read = || elf::facts(&mut fs::File::open(content)?);
        read().map_err(|error| of_file(Refusal::Scratch(error)))
    };
    match (facts(&old.content)?, facts(&new.content)?) {
        (Some(_), None) => {
            return Err(MakeError::NotElf { path: path.to_owned(), file: file.to_owned() });
        }
        (Some(old), Some(new)) if old.arch != new.arch => {
            return Err(MakeError::OtherArchitecture {
                path: path.to_owned(),
                file: file.to_owned(),
                arch: new.arch,
                wanted: old.arch,
            });
        }
        (Some(_), Some(_)) | (None, _) => {}
    }
    let replaced = Replaced {
        path: path.to_owned(),
        file: file.to_owned(),
        was: old.digest,
        is: new.digest.clone(),
        bytes: new.size,
    };
    tree.insert(path.to_owned(), new);
    Ok(replaced)
}

fn first_of<'a>(paths: impl Iterator<Item = &'a Utf8PathBuf>) -> Vec<String> {
    paths.take(5).map(|path| format!("`{path}`")).collect()
}
