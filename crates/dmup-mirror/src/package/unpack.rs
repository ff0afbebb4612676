//! From bytes to a [`Tree`]: which files a package has, their contents in numbered files.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Cursor, Read, Write};

use camino::{Utf8Component, Utf8Path, Utf8PathBuf};
use dmup_core::digest::Digest;
use fs_err as fs;
use sha2::{Digest as _, Sha256};
use tar::EntryType;

use super::limits;
use super::refusal::Refusal;

/// Bytes looked at to tell a format: one tar header.
const HEAD_BYTES: usize = 512;

/// A file of a package.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct PackedFile {
    /// Where its content lies on this machine, below the scratch folder.
    pub(super) content: Utf8PathBuf,
    pub(super) size: u64,
    pub(super) mode: u32,
    pub(super) digest: Digest,
}

/// All files of a package by their normalised path; links are files like what they point to.
pub(super) type Tree = BTreeMap<Utf8PathBuf, PackedFile>;

/// What a package turned out to be.
#[derive(Debug)]
pub(super) enum Content {
    Archive(Tree),
    Executable(PackedFile),
}

/// A package that was read to its end.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub(super) content: Content,
    /// Of the file's bytes.
    pub(super) digest: Digest,
    /// Whether they are compressed with gzip.
    pub(super) is_gzip: bool,
}

/// Reads a whole package.
pub(super) fn unpack(file: fs::File, scratch: &Utf8Path) -> Result<Unpacked, Refusal> {
    let mut outer = Hashed { inner: file, hasher: Sha256::new() };
    let head = read_head(&mut outer).map_err(Refusal::Read)?;
    let is_gzip = head.starts_with(&[0x1f, 0x8b]);
    let content = if is_gzip {
        let decoder = flate2::read::MultiGzDecoder::new(io::BufReader::with_capacity(
            1 << 18,
            Cursor::new(head).chain(&mut outer),
        ));
        unpack_plain(decoder, scratch)?
    } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let decoder =
            zstd::Decoder::new(Cursor::new(head).chain(&mut outer)).map_err(Refusal::Scratch)?;
        unpack_plain(decoder, scratch)?
    } else {
        unpack_plain(Cursor::new(head).chain(&mut outer), scratch)?
    };
    io::copy(&mut outer, &mut io::sink()).map_err(Refusal::Read)?;
    let digest = Digest::from_bytes(outer.hasher.finalize().into());
    Ok(Unpacked { content, digest, is_gzip })
}

fn unpack_plain(stream: impl Read, scratch: &Utf8Path) -> Result<Content, Refusal> {
    let mut stream = Metered { inner: stream, count: 0, ended: false, last_block: Vec::new() };
    let head = read_head(&mut stream).map_err(|error| broken(&error, stream.ended))?;
    if head.is_empty() {
        return Err(Refusal::Empty);
    }
    if head.starts_with(b"\x7fELF") {
        let mut whole = Cursor::new(head).chain(&mut stream);
        let file = store(&mut whole, None, 0o755, scratch, 0);
        return file.map(Content::Executable).map_err(|fault| fault.told(stream.ended));
    }
    if !is_tar(&head) {
        return Err(Refusal::NotAnArchive { looks_like: looks_like(&head) });
    }
    let mut archive = tar::Archive::new(Cursor::new(head).chain(&mut stream));
    let tree = read_entries(&mut archive, scratch);
    drop(archive);
    let tree = tree.map_err(|fault| fault.told(stream.ended))?;
    // An archive that was cut between two entries has no end mark.
    if stream.ended && !stream.last_block_is_zero() {
        return Err(Refusal::Truncated);
    }
    // To the end, for what comes last is the check sum over everything.
    io::copy(&mut stream, &mut io::sink()).map_err(|error| broken(&error, stream.ended))?;
    if tree.is_empty() { Err(Refusal::Empty) } else { Ok(Content::Archive(tree)) }
}

pub(super) enum Fault {
    Refused(Refusal),
    Stream(io::Error),
}

impl Fault {
    pub(super) fn told(self, ended: bool) -> Refusal {
        match self {
            Self::Refused(refusal) => refusal,
            Self::Stream(error) => broken(&error, ended),
        }
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Stream(error)
    }
}

/// Names and sizes that extended headers give to the next entry.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
}

/// Reads raw entries: extended headers are read here, for the crate would hold any size of them in memory.
fn read_entries<R: Read>(archive: &mut tar::Archive<R>, scratch: &Utf8Path) -> Result<Tree, Fault> {
    let mut tree = Tree::new();
    let mut folders: BTreeSet<Utf8PathBuf> = BTreeSet::new();
    let mut links: BTreeMap<Utf8PathBuf, Utf8PathBuf> = BTreeMap::new();
    let mut extensions = Extensions::default();
    let mut total = 0_u64;
    for (number, entry) in archive.entries()?.raw(true).enumerate() {
        if number >= limits::ENTRIES {
            return Err(too_large("the number of entries", limits::ENTRIES as u64).into());
        }
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if kind.is_gnu_longname() {
            extensions.path = Some(read_extension(&mut entry)?);
            continue;
        } else if kind.is_gnu_longlink() {
            extensions.link = Some(read_extension(&mut entry)?);
            continue;
        } else if kind.is_pax_local_extensions() {
            let bytes = read_extension(&mut entry)?;
            extend(&mut extensions, &bytes)?;
            continue;
        } else if kind.is_pax_global_extensions() {
            // `git archive` puts a comment there; nothing in it names a file.
            read_extension(&mut entry)?;
            continue;
        }
        let given = std::mem::take(&mut extensions);
        let raw_name = given.path.unwrap_or_else(|| entry.path_bytes().into_owned());
        let shown = String::from_utf8_lossy(&raw_name).into_owned();
        let Some(path) = normalised(&raw_name)? else { continue };
        let size = entry.header().entry_size()?;
        if given.sparse || given.size.is_some_and(|told| told != size) {
            return Err(Refusal::Special { entry: shown, what: "a sparse file" }.into());
        }
        let special = |what| Fault::Refused(Refusal::Special { entry: shown.clone(), what });
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "foreign kinds are refused, whatever they are"
        )]
        match kind {
            EntryType::Directory => {
                if tree.contains_key(&path) || links.contains_key(&path) {
                    return Err(Refusal::Collides { entry: shown }.into());
                }
                folders.insert(path);
            }
            EntryType::Regular | EntryType::Continuous => {
                let taken = tree.contains_key(&path) || links.contains_key(&path);
                if taken || folders.contains(&path) {
                    return Err(Refusal::Collides { entry: shown }.into());
                }
                if size > limits::FILE_BYTES {
                    return Err(too_large("a file", limits::FILE_BYTES).into());
                }
                total += size;
                if total > limits::TOTAL_BYTES {
                    return Err(too_large("the unpacked size", limits::TOTAL_BYTES).into());
                }
                let mode = entry.header().mode()? & 0o777;
                let file = store(&mut entry, Some(size), mode, scratch, tree.len() + 1)?;
                tree.insert(path, file);
            }
            EntryType::Symlink | EntryType::Link => {
                let taken = tree.contains_key(&path) || links.contains_key(&path);
                if taken || folders.contains(&path) {
                    return Err(Refusal::Collides { entry: shown }.into());
                }
                let raw_target = given
                    .link
                    .or_else(|| entry.link_name_bytes().map(std::borrow::Cow::into_owned))
                    .unwrap_or_default();
                let base = if kind == EntryType::Symlink { path.parent() } else { None };
                let target = link_target(base, &raw_target, &shown)?;
                links.insert(path, target);
            }
            EntryType::Char => return Err(special("a character device")),
            EntryType::Block => return Err(special("a block device")),
            EntryType::Fifo => return Err(special("a pipe")),
            EntryType::GNUSparse => return Err(special("a sparse file")),
            // The extended headers, taken above, and kinds that the crate has no name for.
            _ => return Err(special("of a kind that tar files of packages do not have")),
        }
    }
    follow(&mut tree, &links, total)?;
    for path in tree.keys() {
        if path.ancestors().skip(1).any(|above| tree.contains_key(above)) {
            return Err(Refusal::Collides { entry: path.to_string() }.into());
        }
    }
    Ok(tree)
}

/// Makes every link a file of its own.
///
/// `total` is the size of all files so far: a link counts as what it becomes.
fn follow(
    tree: &mut Tree,
    links: &BTreeMap<Utf8PathBuf, Utf8PathBuf>,
    mut total: u64,
) -> Result<(), Refusal> {
    for (link, first) in links {
        let mut target = first;
        for _ in 0..limits::LINKS_IN_A_ROW {
            match links.get(target) {
                Some(next) => target = next,
                None => break,
            }
        }
        let Some(file) = tree.get(target).cloned() else {
            return Err(Refusal::LinkToNothing {
                entry: link.to_string(),
                target: first.to_string(),
            });
        };
        total += file.size;
        if total > limits::TOTAL_BYTES {
            return Err(too_large("the unpacked size", limits::TOTAL_BYTES));
        }
        tree.insert(link.clone(), file);
    }
    Ok(())
}

/// A path with plain names only; none for the package's own folder (`./`).
fn normalised(raw: &[u8]) -> Result<Option<Utf8PathBuf>, Refusal> {
    let shown = || String::from_utf8_lossy(raw).chars().take(200).collect::<String>();
    let bad = |why| Refusal::BadName { entry: shown(), why };
    if raw.len() > limits::PATH_BYTES {
        return Err(bad("too long"));
    }
    let text = std::str::from_utf8(raw).map_err(|_| bad("not UTF-8"))?;
    if text.chars().any(char::is_control) {
        return Err(bad("control characters"));
    }
    if text.is_empty() {
        return Err(bad("empty"));
    }
    let mut path = Utf8PathBuf::new();
    for part in Utf8Path::new(text).components() {
        match part {
            Utf8Component::Normal(name) => path.push(name),
            Utf8Component::CurDir => {}
            Utf8Component::ParentDir => return Err(Refusal::Traversal { entry: shown() }),
            Utf8Component::RootDir | Utf8Component::Prefix(_) => {
                return Err(Refusal::Absolute { entry: shown() });
            }
        }
    }
    if path.components().count() > limits::PATH_DEPTH {
        return Err(bad("too many folders within folders"));
    }
    Ok(Some(path).filter(|path| !path.as_str().is_empty()))
}

/// Where a link points to, from the package's own folder on. `..` is fine as long as it stays inside.
fn link_target(base: Option<&Utf8Path>, raw: &[u8], entry: &str) -> Result<Utf8PathBuf, Refusal> {
    let target = String::from_utf8_lossy(raw).into_owned();
    let leaves = || Refusal::LinkLeaves { entry: entry.to_owned(), target: target.clone() };
    if raw.len() > limits::PATH_BYTES {
        return Err(leaves());
    }
    let mut path = base.map(Utf8Path::to_owned).unwrap_or_default();
    for part in Utf8Path::new(&target).components() {
        match part {
            Utf8Component::Normal(name) => path.push(name),
            Utf8Component::CurDir => {}
            Utf8Component::ParentDir => {
                if !path.pop() {
                    return Err(leaves());
                }
            }
            Utf8Component::RootDir | Utf8Component::Prefix(_) => return Err(leaves()),
        }
    }
    Ok(path)
}

fn read_extension(entry: &mut impl Read) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    entry.take(limits::EXTENSION_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limits::EXTENSION_BYTES {
        return Err(too_large("an extended header", limits::EXTENSION_BYTES).into());
    }
    // GNU long names end in a NUL.
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    Ok(bytes)
}

fn extend(extensions: &mut Extensions, bytes: &[u8]) -> Result<(), Fault> {
    for record in tar::PaxExtensions::new(bytes) {
        let record = record?;
        match record.key_bytes() {
            b"path" => extensions.path = Some(record.value_bytes().to_vec()),
            b"linkpath" => extensions.link = Some(record.value_bytes().to_vec()),
            b"size" => {
                let told = std::str::from_utf8(record.value_bytes()).ok();
                extensions.size = Some(told.and_then(|text| text.parse().ok()).unwrap_or(u64::MAX));
            }
            key if key.starts_with(b"GNU.sparse") => extensions.sparse = true,
            _ => {}
        }
    }
    Ok(())
}

/// Writes a content to its numbered file; `size` is what was announced.
pub(super) fn store(
    from: &mut impl Read,
    size: Option<u64>,
    mode: u32,
    scratch: &Utf8Path,
    number: usize,
) -> Result<PackedFile, Fault> {
    let content = scratch.join(number.to_string());
    let mut file = fs::File::create_new(&content).map_err(Refusal::Scratch)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    let mut written = 0_u64;
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Fault::Stream(error)),
        };
        written += count as u64;
        if written > limits::FILE_BYTES {
            return Err(too_large("a file", limits::FILE_BYTES).into());
        }
        hasher.update(&buffer[..count]);
        file.write_all(&buffer[..count]).map_err(Refusal::Scratch)?;
    }
    if size.is_some_and(|announced| written < announced) {
        return Err(Refusal::Truncated.into());
    }
    Ok(PackedFile {
        content,
        size: written,
        mode,
        digest: Digest::from_bytes(hasher.finalize().into()),
    })
}

fn too_large(what: &'static str, limit: u64) -> Refusal {
    Refusal::TooLarge { what, limit }
}

/// A stream that cannot be read on: it ended too early, or is damaged.
fn broken(error: &io::Error, ended: bool) -> Refusal {
    if ended || error.kind() == io::ErrorKind::UnexpectedEof {
        Refusal::Truncated
    } else {
        Refusal::Damaged(error.to_string())
    }
}

fn read_head(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    from.take(HEAD_BYTES as u64).read_to_end(&mut head)?;
    Ok(head)
}

/// By its check sum, which every tar has; the word `ustar` only newer ones.
fn is_tar(head: &[u8]) -> bool {
    let Ok(block) = <[u8; HEAD_BYTES]>::try_from(head) else { return false };
    if block == [0; HEAD_BYTES] {
        return true;
    }
    let sum: u32 = block[..148].iter().chain(&block[156..]).map(|byte| u32::from(*byte)).sum();
    let mut header = tar::Header::new_old();
    header.as_mut_bytes().copy_from_slice(&block);
    header.cksum().is_ok_and(|told| told == sum + 8 * u32::from(b' '))
}

/// For the error only.
fn looks_like(head: &[u8]) -> &'static str {
    let known: [(&[u8], &str); 7] = [
        (b"PK", "a zip file"),
        (b"\xfd7zXZ", "xz (unpack it, or pack it with gzip or zstd)"),
        (b"BZh", "bzip2 (unpack it, or pack it with gzip or zstd)"),
        (b"#!", "a script"),
        (b"<", "a web page (was a download refused?)"),
        (b"{", "JSON (was a download refused?)"),
        (b"!<arch>", "a Debian package"),
    ];
    known
        .iter()
        .find(|(magic, _)| head.starts_with(magic))
        .map_or("nothing known", |(_, name)| name)
}

/// Hashes what passes.
struct Hashed<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

/// Counts what passes, stops a stream without end, and remembers its last bytes.
struct Metered<R> {
    inner: R,
    count: u64,
    ended: bool,
    last_block: Vec<u8>,
}

impl<R> Metered<R> {
    fn last_block_is_zero(&self) -> bool {
        self.last_block.iter().all(|byte| *byte == 0)
    }
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // Headers and padding come on top of the files.
        let limit = limits::TOTAL_BYTES + limits::ENTRIES as u64 * 2048;
        if self.count > limit {
            return Err(io::Error::other(format!("more than {limit} bytes unpacked")));
        }
        let count = self.inner.read(buffer)?;
        self.count += count as u64;
        self.ended |= count == 0 && !buffer.is_empty();
        if count >= HEAD_BYTES {
            self.last_block.clear();
        }
        let tail = &buffer[count.saturating_sub(HEAD_BYTES)..count];
        self.last_block.extend_from_slice(tail);
        let surplus = self.last_block.len().saturating_sub(HEAD_BYTES);
        self.last_block.drain(..surplus);
        Ok(count)
    }
}
