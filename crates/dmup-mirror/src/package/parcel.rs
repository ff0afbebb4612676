//! The content of a package as it goes to hosts.

use std::collections::BTreeSet;
use std::io::{self, Read, Seek, SeekFrom};

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::digest::Digest;
use fs_err as fs;
use sha2::{Digest as _, Sha256};
use tempfile::TempPath;

use super::unpack::PackedFile;

/// Fast, and within some percent of what higher levels reach on Go binaries.
const ZSTD_LEVEL: i32 = 3;

/// More make no difference: the disk and the tar in front of them are the limit then.
const WORKERS: usize = 8;

/// A zstd-compressed tar in a file of its own, which goes away with this value.
///
/// Sorted, without dates and owners, folders before what is in them, plain
/// files only, modes 0755 or 0644: the same content gives the same bytes.
#[derive(Debug)]
pub struct Parcel {
    /// Where it lies.
    pub path: Utf8PathBuf,
    /// SHA-256 of that file.
    pub digest: Digest,
    /// Its size.
    pub compressed_bytes: u64,
    /// Of all files in it.
    pub unpacked_bytes: u64,
    /// Removes the file when dropped.
    #[expect(dead_code, reason = "held for its Drop")]
    file: TempPath,
}

/// Packs the files, named by their path within the package.
pub(super) fn pack<'a>(
    files: impl IntoIterator<Item = (&'a Utf8Path, &'a PackedFile)>,
    scratch: &Utf8Path,
) -> io::Result<Parcel> {
    let target =
        tempfile::Builder::new().prefix("parcel-").suffix(".tar.zst").tempfile_in(scratch)?;
    let (file, kept) = target.into_parts();
    let mut encoder = zstd::Encoder::new(io::BufWriter::new(file), ZSTD_LEVEL)?;
    encoder.include_checksum(true)?;
    // At least one worker, for without any zstd cuts its blocks differently; how many there are makes no difference.
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    encoder.multithread(u32::try_from(workers.min(WORKERS)).unwrap_or(1))?;
    let mut tar = tar::Builder::new(encoder);
    let unpacked_bytes = append_sorted(&mut tar, files)?;
    let mut file =
        tar.into_inner()?.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.seek(SeekFrom::Start(0))?;
    let mut hasher = Sha256::new();
    let compressed_bytes = io::copy(&mut file, &mut hasher)?;
    let path = Utf8PathBuf::from_path_buf(kept.to_path_buf())
        .map_err(|path| io::Error::other(format!("{} is not UTF-8", path.display())))?;
    Ok(Parcel {
        path,
        digest: Digest::from_bytes(hasher.finalize().into()),
        compressed_bytes,
        unpacked_bytes,
        file: kept,
    })
}

/// Sorted, without dates and owners, folders before what is in them; the bytes of all files.
pub(super) fn append_sorted<'a>(
    tar: &mut tar::Builder<impl io::Write>,
    files: impl IntoIterator<Item = (&'a Utf8Path, &'a PackedFile)>,
) -> io::Result<u64> {
    let mut files: Vec<_> = files.into_iter().collect();
    files.sort_by_key(|(path, _)| *path);
    let folders: BTreeSet<&Utf8Path> = files
        .iter()
        .flat_map(|(path, _)| path.ancestors().skip(1))
        .filter(|above| !above.as_str().is_empty())
        .collect();
    for folder in folders {
        let mut header = plain_header(tar::EntryType::Directory, 0o755, 0);
        tar.append_data(&mut header, format!("{folder}/"), io::empty())?;
    }
    let mut unpacked_bytes = 0;
    for (path, file) in files {
        let mode = if file.mode & 0o111 == 0 { 0o644 } else { 0o755 };
        let mut header = plain_header(tar::EntryType::Regular, mode, file.size);
        tar.append_data(
            &mut header,
            path.as_str(),
            fs::File::open(&file.content)?.take(file.size),
        )?;
        unpacked_bytes += file.size;
    }
    Ok(unpacked_bytes)
}

fn plain_header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}
