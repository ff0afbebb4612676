//! What an executable says of itself: machine, completeness, and for Go what it was built from.

use std::io::{self, Read, Seek, SeekFrom};

use fs_err as fs;
use goblin::elf::header::{EM_386, EM_AARCH64, EM_ARM, EM_PPC64, EM_RISCV, EM_S390, EM_X86_64};

/// The facts of an ELF header.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct ElfFacts {
    /// TiUP's word, or a description for what TiUP does not know.
    pub(super) arch: String,
    /// The file must be at least this long.
    pub(super) needs_bytes: u64,
}

/// Reads the header; none if it is no ELF executable.
pub(super) fn facts(file: &mut fs::File) -> io::Result<Option<ElfFacts>> {
    file.seek(SeekFrom::Start(0))?;
    let mut head = Vec::with_capacity(64);
    file.take(64).read_to_end(&mut head)?;
    let Ok(header) = goblin::elf::Elf::parse_header(&head) else { return Ok(None) };
    if !matches!(header.e_type, goblin::elf::header::ET_EXEC | goblin::elf::header::ET_DYN) {
        return Ok(None);
    }
    let arch = match header.e_machine {
        EM_X86_64 => "amd64".to_owned(),
        EM_AARCH64 => "arm64".to_owned(),
        EM_386 => "386".to_owned(),
        EM_ARM => "arm".to_owned(),
        EM_PPC64 => "ppc64".to_owned(),
        EM_S390 => "s390x".to_owned(),
        EM_RISCV => "riscv64".to_owned(),
        other => format!("ELF machine {other}"),
    };
    let table_end = |offset: u64, count: u16, size: u16| {
        if count == 0 { 0 } else { offset.saturating_add(u64::from(count) * u64::from(size)) }
    };
    let needs_bytes = table_end(header.e_shoff, header.e_shnum, header.e_shentsize).max(table_end(
        header.e_phoff,
        header.e_phnum,
        header.e_phentsize,
    ));
    Ok(Some(ElfFacts { arch, needs_bytes }))
}

/// Longest build record that is read.
const RECORD_BYTES: u64 = 1 << 20;

/// The main package of a Go program, e.g. `github.com/pingcap/tiflow/cmd/dm-master`; none for others.
///
/// `-V` of dm-master and dm-worker print the same, so only this tells one that was packed as the other.
/// Format: Go's debug/buildinfo. Up to Go 1.17 the record holds addresses, from 1.18 the text itself.
pub(super) fn go_main_package(file: &mut fs::File) -> io::Result<Option<String>> {
    match read_record(file) {
        Ok(record) => Ok(record.as_deref().and_then(main_package_in)),
        // Offsets that lead nowhere: not Go's, then.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn main_package_in(record: &[u8]) -> Option<String> {
    String::from_utf8_lossy(record)
        .lines()
        // The text begins and ends with 16 marker bytes, so the first line is not clean.
        .find_map(|line| line.split_once("path\t").filter(|(before, _)| !before.contains('\t')))
        .map(|(_, main)| main.chars().filter(|c| c.is_ascii_graphic()).take(200).collect())
}

fn read_record(file: &mut fs::File) -> io::Result<Option<Vec<u8>>> {
    let head = read_at(file, 0, 64)?;
    let Ok(header) = goblin::elf::Elf::parse_header(&head) else { return Ok(None) };
    // All of TiUP's platforms are 64 bit, little endian.
    if header.e_ident[4] != 2 || header.e_ident[5] != 1 || header.e_shentsize != 64 {
        return Ok(None);
    }
    let sections = read_at(file, header.e_shoff, u64::from(header.e_shnum) * 64)?;
    let section = |number: usize| sections.get(number * 64..number * 64 + 64);
    let Some(names) = section(usize::from(header.e_shstrndx)) else { return Ok(None) };
    let (names_at, names_size) = (u64_at(names, 24), u64_at(names, 32));
    if names_size > RECORD_BYTES {
        return Ok(None);
    }
    let names = read_at(file, names_at, names_size)?;
    let found = sections.chunks_exact(64).find(|it| {
        let start = usize::try_from(u32_at(it, 0)).unwrap_or(usize::MAX);
        names.get(start..).is_some_and(|name| name.starts_with(b".go.buildinfo\0"))
    });
    let Some(found) = found else { return Ok(None) };
    let info_at = u64_at(found, 24);
    let info = read_at(file, info_at, 32)?;
    if !info.starts_with(b"\xff Go buildinf:") {
        return Ok(None);
    }
    if info[15] & 2 != 0 {
        // Two texts, each after its length: the Go version, the record.
        let (_, skipped) = counted(file, info_at + 32)?;
        return counted(file, info_at + 32 + skipped).map(|(record, _)| Some(record));
    }
    if info[14] != 8 || info[15] & 1 != 0 {
        return Ok(None);
    }
    let Some(pair_at) = file_offset(file, &header, u64_at(&info, 24))? else { return Ok(None) };
    let pair = read_at(file, pair_at, 16)?;
    let length = u64_at(&pair, 8);
    if length > RECORD_BYTES {
        return Ok(None);
    }
    let Some(text_at) = file_offset(file, &header, u64_at(&pair, 0))? else { return Ok(None) };
    read_at(file, text_at, length).map(Some)
}

/// A text after its length (LEB128), and how many bytes both take.
fn counted(file: &mut fs::File, at: u64) -> io::Result<(Vec<u8>, u64)> {
    let (mut length, mut width) = (0_u64, 0_u64);
    loop {
        let byte = read_at(file, at + width, 1)?[0];
        length |= u64::from(byte & 0x7f) << (7 * width);
        width += 1;
        if byte & 0x80 == 0 {
            break;
        }
        if width > 4 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    if length > RECORD_BYTES {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((read_at(file, at + width, length)?, width + length))
}

/// Where an address of the loaded program lies in the file.
fn file_offset(
    file: &mut fs::File,
    header: &goblin::elf::Header,
    address: u64,
) -> io::Result<Option<u64>> {
    if header.e_phentsize != 56 {
        return Ok(None);
    }
    let segments = read_at(file, header.e_phoff, u64::from(header.e_phnum) * 56)?;
    Ok(segments.chunks_exact(56).find_map(|it| {
        let (offset, start, size) = (u64_at(it, 8), u64_at(it, 16), u64_at(it, 32));
        let within = address.checked_sub(start).filter(|within| *within < size)?;
        (u32_at(it, 0) == goblin::elf::program_header::PT_LOAD).then_some(())?;
        offset.checked_add(within)
    }))
}

fn read_at(file: &mut fs::File, offset: u64, count: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(offset)).map_err(|_| io::ErrorKind::UnexpectedEof)?;
    let mut bytes = Vec::new();
    let read = file.take(count).read_to_end(&mut bytes)?;
    if (read as u64) < count { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(bytes) }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
