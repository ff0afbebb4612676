//! Packages made here, good ones and every kind of bad one.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::digest::Digest;
use dmup_core::instance::Role;
use proptest::prelude::*;

use super::{
    MakeError, Making, Package, PackageError, Parcel, Refusal, Wanted, component_package,
    component_package_path, open,
};

struct Room {
    _guard: tempfile::TempDir,
    path: Utf8PathBuf,
    scratch: Utf8PathBuf,
}

impl Room {
    fn new() -> Self {
        let guard = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(guard.path().to_owned()).unwrap();
        let scratch = path.join("scratch");
        std::fs::create_dir(&scratch).unwrap();
        Self { _guard: guard, path, scratch }
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Utf8PathBuf {
        let path = self.path.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn open(&self, bytes: &[u8], wanted: &Wanted) -> Result<Package, PackageError> {
        open(&self.put("package", bytes), wanted, &self.scratch)
    }

    fn refusal(&self, bytes: &[u8], wanted: &Wanted) -> Refusal {
        self.open(bytes, wanted).expect_err("it must be refused").refusal
    }

    fn leftovers(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(&self.scratch)
            .unwrap()
            .map(|it| it.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

const X86_64: u16 = 62;
const AARCH64: u16 = 183;

/// A header that a loader would take, and something after it.
fn elf(machine: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    bytes.extend(2_u16.to_le_bytes());
    bytes.extend(machine.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend([0; 24]);
    bytes.extend(0_u32.to_le_bytes());
    for size in [64_u16, 56, 0, 64, 0, 0] {
        bytes.extend(size.to_le_bytes());
    }
    assert_eq!(bytes.len(), 64);
    bytes.extend(body);
    bytes
}

/// An executable with the build record of Go 1.18 and later.
fn go_elf(main_package: &str) -> Vec<u8> {
    let record = format!("0123456789abcdefpath\t{main_package}\nmod\tx\n0123456789abcdef");
    let mut info = b"\xff Go buildinf:\x08\x02".to_vec();
    info.resize(32, 0);
    for text in ["go1.21.0", &record] {
        let mut length = text.len();
        while length > 0x7f {
            info.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
            length >>= 7;
        }
        info.push(u8::try_from(length).unwrap());
        info.extend(text.as_bytes());
    }
    let names = b"\0.go.buildinfo\0.shstrtab\0";
    let (info_at, names_at) = (64_u64, 64 + info.len() as u64);
    let sections_at = names_at + names.len() as u64;
    let section = |name: u32, at: u64, size: u64| {
        let mut bytes = vec![0; 64];
        bytes[0..4].copy_from_slice(&name.to_le_bytes());
        bytes[24..32].copy_from_slice(&at.to_le_bytes());
        bytes[32..40].copy_from_slice(&size.to_le_bytes());
        bytes
    };
    let mut bytes = elf(X86_64, &info);
    bytes.extend(names);
    bytes.extend(section(0, 0, 0));
    bytes.extend(section(1, info_at, info.len() as u64));
    bytes.extend(section(15, names_at, names.len() as u64));
    bytes[40..48].copy_from_slice(&sections_at.to_le_bytes());
    bytes[60..62].copy_from_slice(&3_u16.to_le_bytes());
    bytes[62..64].copy_from_slice(&2_u16.to_le_bytes());
    bytes
}

/// A tar of files: name, mode, content. A name that ends in `/` is a folder.
fn tar_of(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, mode, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(*mode);
        header.set_size(content.len() as u64);
        header.set_mtime(1_700_000_000);
        header.set_uid(1000);
        if name.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
        }
        // Written by hand, for the crate refuses what we want to see refused.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

/// A tar of one odd entry beside a good binary.
fn tar_with(kind: tar::EntryType, name: &str, link: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let binary = elf(X86_64, b"m");
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(binary.len() as u64);
    header.set_path("dm-master/dm-master").unwrap();
    header.set_cksum();
    tar.append(&header, &binary[..]).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(0);
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    tar.append(&header, std::io::empty()).unwrap();
    tar.into_inner().unwrap()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zst(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn want(roles: &[(Role, &str)]) -> Wanted {
    let mut wanted: Wanted = BTreeMap::new();
    for (role, arch) in roles {
        wanted.entry(*role).or_default().insert((*arch).to_owned());
    }
    wanted
}

fn master() -> Wanted {
    want(&[(Role::DmMaster, "amd64")])
}

fn replaced(package: &Package, role: Role) -> Vec<(String, String)> {
    package.components[&role]
        .replace
        .iter()
        .map(|(from, to)| (from.to_string(), to.to_string()))
        .collect()
}

/// What a host would find in the parcel: name, mode, size of the content.
fn unpacked(package: &Package) -> Vec<(String, u32, Vec<u8>)> {
    inside(&package.parcel)
}

fn inside(parcel: &Parcel) -> Vec<(String, u32, Vec<u8>)> {
    let file = std::fs::File::open(&parcel.path).unwrap();
    let mut archive = tar::Archive::new(zstd::Decoder::new(file).unwrap());
    archive
        .entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            assert_eq!(entry.header().mtime().unwrap(), 0);
            assert_eq!(entry.header().uid().unwrap(), 0);
            let name = entry.path().unwrap().to_str().unwrap().to_owned();
            let mode = entry.header().mode().unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (name, mode, content)
        })
        .collect()
}

#[test]
fn the_manuals_package_is_opened_whatever_it_is_compressed_with() {
    let room = Room::new();
    let binary = elf(X86_64, b"hotfix");
    let tar = tar_of(&[
        ("./dm-master/", 0o755, b""),
        ("./dm-master/dm-master", 0o755, &binary),
        ("./dm-master/conf/dm.rules.yml", 0o644, b"groups: []"),
    ]);
    let mut parcels = BTreeSet::new();
    for bytes in [tar.clone(), gz(&tar), zst(&tar)] {
        let package = room.open(&bytes, &master()).unwrap();
        assert_eq!(package.digest, Digest::of(&bytes));
        let component = &package.components[&Role::DmMaster];
        assert_eq!(component.binary, Digest::of(&binary));
        assert_eq!((component.arch.as_str(), component.size), ("amd64", binary.len() as u64));
        assert_eq!(
            replaced(&package, Role::DmMaster),
            [
                ("dm-master/conf/dm.rules.yml".into(), "dm-master/conf/dm.rules.yml".into()),
                ("dm-master/dm-master".into(), "dm-master/dm-master".into()),
            ]
        );
        assert_eq!(
            unpacked(&package),
            [
                ("dm-master/".into(), 0o755, vec![]),
                ("dm-master/conf/".into(), 0o755, vec![]),
                ("dm-master/conf/dm.rules.yml".into(), 0o644, b"groups: []".to_vec()),
                ("dm-master/dm-master".into(), 0o755, binary.clone()),
            ]
        );
        let parcel = std::fs::read(&package.parcel.path).unwrap();
        assert_eq!(package.parcel.digest, Digest::of(&parcel));
        assert_eq!(package.parcel.compressed_bytes, parcel.len() as u64);
        assert_eq!(package.parcel.unpacked_bytes, binary.len() as u64 + 10);
        parcels.insert(package.parcel.digest.clone());
    }
    assert_eq!(parcels.len(), 1, "the same content gives the same bytes");
    assert!(room.leftovers().is_empty(), "nothing is left behind: {:?}", room.leftovers());
}

#[test]
fn order_dates_and_owners_do_not_change_the_parcel() {
    let room = Room::new();
    let binary = elf(X86_64, b"x");
    let one = tar_of(&[("dm-master/a", 0o600, b"a"), ("dm-master/dm-master", 0o700, &binary)]);
    let other = tar_of(&[("dm-master/dm-master", 0o755, &binary), ("./dm-master//a", 0o644, b"a")]);
    let digests = [one, other].map(|it| room.open(&it, &master()).unwrap().parcel.digest.clone());
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn the_layouts_that_people_make_are_understood() {
    let room = Room::new();
    let binary = elf(X86_64, b"x");
    for (entry, to) in [
        ("dm-master/dm-master", "dm-master/dm-master"),
        ("dm-master", "dm-master/dm-master"),
        ("tmp/package/dm-master/dm-master", "dm-master/dm-master"),
        ("dm-linux-amd64/bin/dm-master", "dm-master/dm-master"),
        ("dm-master-v5.3.0-linux-amd64/dm-master", "dm-master/dm-master"),
    ] {
        let tar = tar_of(&[(entry, 0o755, &binary), ("readme", 0o644, b"?")]);
        let package = room.open(&gz(&tar), &master()).unwrap();
        assert_eq!(replaced(&package, Role::DmMaster), [(entry.to_owned(), to.to_owned())]);
    }
}

#[test]
fn one_package_may_bring_several_components_and_only_the_wanted_ones_travel() {
    let room = Room::new();
    let (m, w) = (elf(X86_64, b"m"), elf(X86_64, b"w"));
    let tar = tar_of(&[
        ("dm-linux-amd64/bin/dm-master", 0o755, &m),
        ("dm-linux-amd64/bin/dm-worker", 0o755, &w),
        ("dm-linux-amd64/bin/dmctl", 0o755, &w),
    ]);
    let both = want(&[(Role::DmMaster, "amd64"), (Role::DmWorker, "amd64")]);
    let package = room.open(&gz(&tar), &both).unwrap();
    assert_eq!(package.components.len(), 2);
    assert_eq!(package.components[&Role::DmWorker].binary, Digest::of(&w));
    assert_eq!(package.parcel.unpacked_bytes, (m.len() + w.len()) as u64);
    let package = room.open(&gz(&tar), &want(&[(Role::DmWorker, "amd64")])).unwrap();
    assert_eq!(package.others, [Role::DmMaster]);
    assert_eq!(package.parcel.unpacked_bytes, w.len() as u64);
    assert_eq!(room.open(&gz(&tar), &Wanted::new()).unwrap().components.len(), 2);
}

#[test]
fn monitoring_goes_where_its_scripts_expect_it() {
    let room = Room::new();
    let x = elf(X86_64, b"x");
    let tar = tar_of(&[
        ("grafana-7.5.17/bin/grafana-server", 0o755, &x),
        ("grafana-7.5.17/bin/grafana-cli", 0o755, &x),
        ("grafana-7.5.17/conf/defaults.ini", 0o644, b"c"),
        ("grafana-7.5.17/public/app/plugins/datasource/prometheus", 0o644, b"no binary"),
        ("prometheus-2.49.1.linux-amd64/prometheus", 0o755, &x),
        ("prometheus-2.49.1.linux-amd64/promtool", 0o755, &x),
        ("alertmanager/alertmanager", 0o755, &x),
        ("alertmanager/amtool", 0o755, &x),
        ("prometheus/ignored", 0o644, b""),
    ]);
    let wanted = want(&[(Role::Grafana, "amd64"), (Role::Alertmanager, "amd64")]);
    let package = room.open(&gz(&tar), &wanted).unwrap();
    assert_eq!(
        replaced(&package, Role::Grafana).into_iter().map(|(_, to)| to).collect::<Vec<_>>(),
        ["bin/grafana-cli", "bin/grafana-server", "conf/defaults.ini"],
    );
    assert_eq!(
        replaced(&package, Role::Alertmanager).into_iter().map(|(_, to)| to).collect::<Vec<_>>(),
        ["alertmanager/alertmanager", "alertmanager/amtool"],
    );

    let flat = tar_of(&[
        ("bin/grafana-server", 0o755, &x),
        ("conf/defaults.ini", 0o644, b"c"),
        ("dm-master/dm-master", 0o755, &x),
        ("prometheus/prometheus", 0o755, &x),
        ("prometheus/tidb.rules.yml", 0o644, b"r"),
        ("ng-monitoring-server", 0o755, &x),
    ]);
    let package = room.open(&gz(&flat), &Wanted::new()).unwrap();
    assert_eq!(
        replaced(&package, Role::Prometheus).into_iter().map(|(_, to)| to).collect::<Vec<_>>(),
        ["ng-monitoring-server", "prometheus/prometheus", "prometheus/tidb.rules.yml"],
    );
    let grafana = replaced(&package, Role::Grafana);
    assert!(grafana.iter().all(|(from, to)| from == to && !from.starts_with("dm-master")));
    assert!(grafana.contains(&("conf/defaults.ini".into(), "conf/defaults.ini".into())));
}

#[test]
fn a_bare_executable_is_a_package_too() {
    let room = Room::new();
    let binary = elf(X86_64, b"bare");
    let named = room.put("dm-worker-hotfix", &binary);
    let package = open(&named, &Wanted::new(), &room.scratch).unwrap();
    assert_eq!(
        replaced(&package, Role::DmWorker),
        [("dm-worker/dm-worker".to_owned(), "dm-worker/dm-worker".to_owned())]
    );
    let package = room.open(&gz(&binary), &master()).unwrap();
    assert_eq!(package.components[&Role::DmMaster].binary, Digest::of(&binary));
    let both = want(&[(Role::DmMaster, "amd64"), (Role::DmWorker, "amd64")]);
    assert!(matches!(room.refusal(&binary, &both), Refusal::Nameless));
    let recorded = go_elf("github.com/pingcap/tiflow/cmd/dm-worker");
    assert!(room.open(&recorded, &both).unwrap().components.contains_key(&Role::DmWorker));
}

#[test]
fn a_worker_packed_as_a_master_is_found_out() {
    let room = Room::new();
    let worker = go_elf("github.com/pingcap/tiflow/cmd/dm-worker");
    let refusal = room.refusal(&tar_of(&[("dm-master/dm-master", 0o755, &worker)]), &master());
    assert!(
        matches!(refusal, Refusal::OtherComponent { component: Role::DmMaster, .. }),
        "{refusal}"
    );
    let other = go_elf("example.org/somebody/elses/tool");
    assert!(room.open(&tar_of(&[("dm-master/dm-master", 0o755, &other)]), &master()).is_ok());
}

#[test]
fn what_is_no_package_is_named_for_what_it_is() {
    let room = Room::new();
    let missing = open(&room.path.join("none"), &master(), &room.scratch).unwrap_err();
    assert!(matches!(missing.refusal, Refusal::NotFound));
    assert!(missing.to_string().ends_with("none: no such file"), "{missing}");
    let folder = open(&room.path, &master(), &room.scratch).unwrap_err();
    assert!(matches!(folder.refusal, Refusal::NotAFile));
    assert!(matches!(room.refusal(b"", &master()), Refusal::Empty));
    for (bytes, word) in [
        (&b"<html>404</html>"[..], "web page"),
        (b"PK\x03\x04 zip", "zip"),
        (b"\xfd7zXZ\0", "xz"),
        (b"#!/bin/sh\n", "script"),
        (&[7; 2000], "nothing known"),
    ] {
        let refusal = room.refusal(bytes, &master());
        assert!(matches!(refusal, Refusal::NotAnArchive { .. }), "{refusal}");
        assert!(refusal.to_string().contains(word), "{refusal}");
        assert!(matches!(room.refusal(&gz(bytes), &master()), Refusal::NotAnArchive { .. }));
    }
    for empty in [tar_of(&[]), tar_of(&[("dm-master/", 0o755, b"")])] {
        assert!(matches!(room.refusal(&gz(&empty), &master()), Refusal::Empty));
    }
}

#[test]
fn a_package_that_was_cut_off_is_refused_wherever_it_was_cut() {
    let room = Room::new();
    let binary = elf(X86_64, &[1; 5000]);
    let tar = tar_of(&[("dm-master/dm-master", 0o755, &binary), ("dm-master/z", 0o644, &[2; 600])]);
    for whole in [tar.clone(), gz(&tar), zst(&tar)] {
        // The end mark of a tar is two empty blocks; without the last one nothing is lost.
        let end = if whole == tar { whole.len() - 1024 } else { whole.len() - 1 };
        for cut in (1..end).step_by(97).chain([end - 1, end]) {
            let refusal = room.refusal(&whole[..cut], &master());
            let fits = matches!(
                refusal,
                Refusal::Truncated | Refusal::NotAnArchive { .. } | Refusal::NotInside { .. }
            );
            assert!(fits, "cut at {cut} of {}: {refusal}", whole.len());
            assert!(cut < 512 || matches!(refusal, Refusal::Truncated), "cut at {cut}: {refusal}");
        }
    }
}

#[test]
fn a_damaged_archive_is_refused() {
    let room = Room::new();
    let tar = tar_of(&[("dm-master/dm-master", 0o755, &elf(X86_64, &[1; 5000]))]);
    for mut whole in [gz(&tar), zst(&tar)] {
        let last = whole.len() - 5;
        whole[last] ^= 0xff;
        let refusal = room.refusal(&whole, &master());
        assert!(matches!(refusal, Refusal::Damaged(_) | Refusal::Truncated), "{refusal}");
    }
}

#[test]
fn an_executable_that_was_cut_off_before_packing_is_refused() {
    let room = Room::new();
    let mut whole = go_elf("a/cmd/dm-master");
    whole.truncate(whole.len() - 10);
    let refusal = room.refusal(&tar_of(&[("dm-master/dm-master", 0o755, &whole)]), &master());
    assert!(matches!(refusal, Refusal::CutBinary { .. }), "{refusal}");
}

#[test]
fn names_that_leave_the_package_are_refused() {
    let room = Room::new();
    for (name, absolute) in [
        ("../evil", false),
        ("dm-master/../../evil", false),
        ("dm-master/..", false),
        ("/etc/passwd", true),
        ("//etc/passwd", true),
    ] {
        let tar = tar_of(&[("dm-master/dm-master", 0o755, &elf(X86_64, b"")), (name, 0o644, b"e")]);
        let refusal = room.refusal(&gz(&tar), &master());
        let fits = if absolute {
            matches!(refusal, Refusal::Absolute { .. })
        } else {
            matches!(refusal, Refusal::Traversal { .. })
        };
        assert!(fits, "{name}: {refusal}");
    }
    for name in ["a\nb", "\x1b[31mred"] {
        let refusal = room.refusal(&tar_of(&[(name, 0o644, b"e")]), &master());
        assert!(matches!(refusal, Refusal::BadName { .. }), "{name:?}: {refusal}");
    }
}

#[test]
fn links_are_followed_within_the_package_and_refused_beyond() {
    use tar::EntryType::{Link, Symlink};
    let room = Room::new();
    for (kind, name, target) in [
        (Symlink, "dm-master/alias", "dm-master"),
        (Symlink, "alias", "dm-master/dm-master"),
        (Symlink, "x/y/alias", "../../dm-master/./dm-master"),
        (Link, "x/alias", "dm-master/dm-master"),
    ] {
        room.open(&tar_with(kind, name, target), &master()).unwrap();
    }
    for (kind, name, target) in [
        (Symlink, "dm-master/conf", "/etc"),
        (Symlink, "dm-master/conf", "../../etc"),
        (Link, "dm-master/conf", "../etc/passwd"),
        (Link, "dm-master/conf", "/etc/passwd"),
    ] {
        let refusal = room.refusal(&tar_with(kind, name, target), &master());
        assert!(matches!(refusal, Refusal::LinkLeaves { .. }), "{target}: {refusal}");
    }
    for (kind, name, target) in [
        (Symlink, "dm-master/conf", "nothing"),
        (Symlink, "dm-master/conf", "conf"),
        (Symlink, "folder", "dm-master"),
        (Symlink, "empty", ""),
    ] {
        let refusal = room.refusal(&tar_with(kind, name, target), &master());
        assert!(matches!(refusal, Refusal::LinkToNothing { .. }), "{target}: {refusal}");
    }
    let in_the_way = tar_with(Symlink, "dm-master", "elsewhere");
    assert!(matches!(room.refusal(&in_the_way, &master()), Refusal::LinkToNothing { .. }));
}

#[test]
fn a_link_is_sent_as_the_file_that_it_names() {
    let room = Room::new();
    let tar = tar_with(tar::EntryType::Symlink, "dm-master/alias", "dm-master");
    let package = room.open(&tar, &master()).unwrap();
    let files = unpacked(&package);
    assert_eq!(files[1].0, "dm-master/alias");
    assert_eq!(files[1].2, files[2].2);
}

#[test]
fn devices_and_pipes_are_refused() {
    let room = Room::new();
    for kind in [
        tar::EntryType::Char,
        tar::EntryType::Block,
        tar::EntryType::Fifo,
        tar::EntryType::GNUSparse,
        tar::EntryType::new(b'V'),
    ] {
        let refusal = room.refusal(&tar_with(kind, "dm-master/odd", ""), &master());
        assert!(matches!(refusal, Refusal::Special { .. }), "{kind:?}: {refusal}");
    }
}

#[test]
fn sizes_out_of_reason_are_refused_before_anything_is_written() {
    let room = Room::new();
    let mut header = tar::Header::new_gnu();
    header.set_path("dm-master/dm-master").unwrap();
    header.set_mode(0o755);
    header.set_size(3 << 30);
    header.set_cksum();
    let refusal = room.refusal(&gz(header.as_bytes()), &master());
    assert!(matches!(refusal, Refusal::TooLarge { what: "a file", .. }), "{refusal}");

    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_path("././@LongLink").unwrap();
    header.set_size(1 << 20);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(vec![b'a'; 1 << 20]);
    let refusal = room.refusal(&gz(&bytes), &master());
    assert!(matches!(refusal, Refusal::TooLarge { what: "an extended header", .. }), "{refusal}");

    let many: Vec<(String, u32, &[u8])> =
        (0..50_001).map(|number| (format!("f{number}"), 0o644, &b""[..])).collect();
    let many: Vec<(&str, u32, &[u8])> = many.iter().map(|(n, m, c)| (n.as_str(), *m, *c)).collect();
    let mut header_only = Vec::new();
    for (name, ..) in &many {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_path(name).unwrap();
        header.set_size(0);
        header.set_mode(0o755);
        header.set_cksum();
        header_only.extend(header.as_bytes());
    }
    let refusal = room.refusal(&gz(&header_only), &master());
    assert!(
        matches!(refusal, Refusal::TooLarge { what: "the number of entries", .. }),
        "{refusal}"
    );
}

#[test]
fn two_entries_of_one_name_are_refused() {
    let room = Room::new();
    let binary = elf(X86_64, b"");
    for tar in [
        tar_of(&[("dm-master/dm-master", 0o755, &binary), ("./dm-master/dm-master", 0o755, b"x")]),
        tar_of(&[("dm-master", 0o755, &binary), ("dm-master/conf", 0o644, b"x")]),
        tar_of(&[("dm-master", 0o755, &binary), ("dm-master/", 0o755, b"")]),
        tar_of(&[("dm-master/", 0o755, b""), ("dm-master", 0o755, &binary)]),
    ] {
        let refusal = room.refusal(&tar, &master());
        assert!(matches!(refusal, Refusal::Collides { .. }), "{refusal}");
    }
    let twice = tar_of(&[("a/dm-master", 0o755, &binary), ("b/dm-master", 0o755, &binary)]);
    assert!(matches!(room.refusal(&twice, &master()), Refusal::Ambiguous { .. }));
    let usual =
        tar_of(&[("dm-master/dm-master", 0o755, &binary), ("old/dm-master", 0o755, &binary)]);
    assert_eq!(
        replaced(&room.open(&usual, &master()).unwrap(), Role::DmMaster)[0].0,
        "dm-master/dm-master"
    );
}

#[test]
fn the_executable_itself_is_looked_at() {
    let room = Room::new();
    let arm = elf(AARCH64, b"");
    let package = tar_of(&[("dm-master/dm-master", 0o755, &arm)]);
    let refusal = room.refusal(&package, &master());
    assert!(
        matches!(&refusal, Refusal::OtherArchitecture { arch, .. } if arch == "arm64"),
        "{refusal}"
    );
    assert_eq!(
        refusal.to_string(),
        "`dm-master/dm-master` is built for arm64, but there are targets of amd64"
    );
    assert!(room.open(&package, &want(&[(Role::DmMaster, "arm64")])).is_ok());
    let mixed = want(&[(Role::DmMaster, "arm64"), (Role::DmMaster, "amd64")]);
    assert!(matches!(room.refusal(&package, &mixed), Refusal::OtherArchitecture { .. }));

    let dull = tar_of(&[("dm-master/dm-master", 0o644, &elf(X86_64, b""))]);
    assert!(matches!(room.refusal(&dull, &master()), Refusal::NotExecutable { mode: 0o644, .. }));
    let script = tar_of(&[("dm-master/dm-master", 0o755, b"#!/bin/sh\necho hi\n")]);
    assert!(matches!(room.refusal(&script, &master()), Refusal::NotABinary { .. }));
}

#[test]
fn a_package_without_the_wanted_component_says_what_it_has() {
    let room = Room::new();
    let tar = tar_of(&[("dm-worker/dm-worker", 0o755, &elf(X86_64, b""))]);
    assert_eq!(room.refusal(&tar, &master()).to_string(), "no dm-master in it; it has dm-worker");
    let tar = tar_of(&[("readme.txt", 0o644, b"hello")]);
    assert_eq!(
        room.refusal(&tar, &master()).to_string(),
        "no dm-master in it; it has `readme.txt`"
    );
}

#[test]
fn a_component_package_tells_its_rules_and_dashboards() {
    let room = Room::new();
    let large = vec![b' '; (512 << 10) + 1];
    let tar = tar_of(&[
        ("dm-master/dm-master", 0o755, &elf(X86_64, b"m")),
        ("dm-master/conf/dm_worker.rules.yml", 0o644, b"groups: []"),
        ("dm-master/conf/dm-master.toml", 0o644, b""),
        ("dm-master/scripts/dm.json", 0o644, b"{}"),
        ("dm-master/scripts/binary.json", 0o644, b"\xff"),
        ("dm-master/scripts/large.json", 0o644, &large),
    ]);
    let path = room.put("package", &gz(&tar));
    let package = component_package(&path, Role::DmMaster, "amd64", &room.scratch).unwrap();
    let texts: Vec<(&str, &str)> =
        package.texts.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    assert_eq!(
        texts,
        [("dm-master/conf/dm_worker.rules.yml", "groups: []"), ("dm-master/scripts/dm.json", "{}")]
    );
}

#[test]
fn names_longer_than_a_tar_header_survive() {
    let room = Room::new();
    let deep = format!("dm-master/{}/file", "d".repeat(150));
    let mut tar = tar::Builder::new(Vec::new());
    let binary = elf(X86_64, b"");
    for (name, content) in [("dm-master/dm-master", &binary[..]), (&deep, b"deep")] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content).unwrap();
    }
    let package = room.open(&tar.into_inner().unwrap(), &master()).unwrap();
    assert!(unpacked(&package).iter().any(|(name, ..)| *name == deep));

    let mut tar = tar::Builder::new(Vec::new());
    tar.append_pax_extensions([("path", deep.as_bytes())]).unwrap();
    for (name, content) in [("short", &b"deep"[..]), ("dm-master/dm-master", &binary)] {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o755);
        header.set_size(content.len() as u64);
        header.set_path(name).unwrap();
        header.set_cksum();
        tar.append(&header, content).unwrap();
    }
    let package = room.open(&tar.into_inner().unwrap(), &master()).unwrap();
    assert!(unpacked(&package).iter().any(|(name, ..)| *name == deep));
}

#[test]
fn a_component_package_keeps_its_names_and_must_have_its_executable() {
    let room = Room::new();
    let binary = elf(X86_64, b"official");
    let path = component_package_path(&room.path, "dm-master", "v8.1.0", "linux", "amd64");
    assert!(path.as_str().ends_with("/dm-master-v8.1.0-linux-amd64.tar.gz"));
    let files =
        [("dm-master/dm-master", 0o755, &binary[..]), ("dm-master/scripts/dm.json", 0o644, b"{}")];
    std::fs::write(&path, gz(&tar_of(&files))).unwrap();
    let package = component_package(&path, Role::DmMaster, "amd64", &room.scratch).unwrap();
    assert_eq!(package.binary, Digest::of(&binary));
    assert!(package.files.iter().all(|(from, to)| from == to) && package.files.len() == 2);
    let other = component_package(&path, Role::DmWorker, "amd64", &room.scratch).unwrap_err();
    assert!(matches!(other.refusal, Refusal::NotInside { .. }));
    let arm = component_package(&path, Role::DmMaster, "arm64", &room.scratch).unwrap_err();
    assert!(matches!(arm.refusal, Refusal::OtherArchitecture { .. }));
}

#[test]
fn an_exporters_package_may_have_its_executable_at_the_top_and_must_be_for_the_machine() {
    let room = Room::new();
    let binary = elf(X86_64, b"exporter");
    let node = Role::NodeExporter;
    let open = |name: &str, arch: &str| {
        let tar = tar_of(&[(name, 0o755, &binary[..]), ("LICENSE", 0o644, b"text")]);
        let path = room.put("package", &gz(&tar));
        component_package(&path, node, arch, &room.scratch)
    };
    for name in ["node_exporter/node_exporter", "node_exporter"] {
        let package = open(name, "amd64").unwrap();
        assert_eq!((package.binary, package.files.len()), (Digest::of(&binary), 2), "{name}");
    }
    let refused = open("blackbox_exporter/blackbox_exporter", "amd64").unwrap_err();
    assert!(refused.to_string().contains("no node_exporter in it"), "{refused}");
    let refused = open("node_exporter", "arm64").unwrap_err();
    assert!(matches!(refused.refusal, Refusal::OtherArchitecture { .. }), "{refused}");
}

/// All files of a folder with their contents' hash.
fn snapshot(below: &Utf8Path) -> BTreeMap<Utf8PathBuf, Option<Digest>> {
    let mut all = BTreeMap::new();
    let mut open = vec![below.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in folder.read_dir_utf8().unwrap() {
            let path = entry.unwrap().path().to_owned();
            if path.is_dir() {
                all.insert(path.clone(), None);
                open.push(path);
            } else {
                all.insert(path.clone(), Some(Digest::of(&std::fs::read(&path).unwrap())));
            }
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_mutation_of_a_package_panics_or_leaves_anything_outside(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        header_names in prop::collection::vec(("[./a-z]{1,40}", 0_usize..4), 0..3),
        cut in prop::option::of(any::<prop::sample::Index>()),
        compress in 0..3,
    ) {
        let room = Room::new();
        let binary = go_elf("github.com/pingcap/tiflow/cmd/dm-master");
        let mut bytes = tar_of(&[
            ("dm-master/", 0o755, b""),
            ("dm-master/dm-master", 0o755, &binary),
            ("dm-master/conf/rules.yml", 0o644, b"groups: []"),
            ("bin/grafana-server", 0o755, &binary[..100]),
        ]);
        // Mutations that keep the check sum, so that they reach what is behind it.
        for (name, number) in header_names {
            let headers: Vec<usize> = (0..bytes.len() / 512)
                .map(|block| block * 512)
                .filter(|at| bytes[at + 257..at + 262] == *b"ustar")
                .collect();
            if let Some(at) = headers.get(number) {
                let mut header = tar::Header::new_gnu();
                header.as_mut_bytes().copy_from_slice(&bytes[*at..at + 512]);
                header.as_mut_bytes()[..100].fill(0);
                header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
                header.set_cksum();
                bytes[*at..at + 512].copy_from_slice(header.as_bytes());
            }
        }
        if compress == 1 { bytes = gz(&bytes); }
        if compress == 2 { bytes = zst(&bytes); }
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let path = room.put("package", &bytes);
        let before = snapshot(&room.path);
        let result = open(&path, &master(), &room.scratch);
        if let Ok(package) = &result {
            prop_assert!(package.parcel.path.starts_with(&room.scratch));
            for (name, ..) in unpacked(package) {
                prop_assert!(!name.starts_with('/') && !name.split('/').any(|part| part == ".."));
            }
        }
        drop(result);
        prop_assert_eq!(before, snapshot(&room.path));
    }
}

/// An official package of dm-worker, as a file.
fn official(room: &Room) -> Utf8PathBuf {
    let binary = elf(X86_64, b"official");
    room.put(
        "official.tar.gz",
        &gzip(&tar_of(&[
            ("dm-worker/", 0o755, b""),
            ("dm-worker/dm-worker", 0o775, &binary),
            ("dm-worker/conf/task.yaml", 0o664, b"name: x"),
        ])),
    )
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn making(room: &Room, replace: &[(&str, &Utf8Path)]) -> Result<Making, MakeError> {
    let replace: Vec<_> =
        replace.iter().map(|(path, file)| (Utf8PathBuf::from(*path), (*file).to_owned())).collect();
    Making::begin(&official(room), Role::DmWorker, None, &replace, &room.scratch)
}

#[test]
fn a_package_that_is_made_has_the_new_file_and_all_others_of_the_base() {
    let room = Room::new();
    let new = elf(X86_64, b"the hotfix");
    let file = room.put("built", &new);
    let made = making(&room, &[("dm-worker/dm-worker", &file)]).unwrap();
    let out = room.path.join("out.tar.gz");
    let written = made.write(&out).unwrap();
    assert_eq!(made.binary, Digest::of(&new));
    assert_eq!(written.digest, Digest::of(&std::fs::read(&out).unwrap()));
    let package = open(&out, &Wanted::new(), &room.scratch).unwrap();
    assert_eq!(package.components[&Role::DmWorker].binary, Digest::of(&new));
    let files: Vec<String> = package.components[&Role::DmWorker]
        .replace
        .iter()
        .map(|(path, _)| path.to_string())
        .collect();
    assert_eq!(files, ["dm-worker/conf/task.yaml", "dm-worker/dm-worker"]);
    drop((made, package));
    assert!(room.leftovers().is_empty(), "{:?}", room.leftovers());
}

#[test]
fn the_same_input_makes_the_same_package_whatever_its_dates_and_names() {
    let mut all = Vec::new();
    for name in ["built", "built elsewhere"] {
        let room = Room::new();
        let file = room.put(name, &elf(X86_64, b"the hotfix"));
        std::fs::File::open(&file)
            .unwrap()
            .set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(all.len() as u64))
            .unwrap();
        let out = room.path.join(format!("{name}.tar.gz"));
        making(&room, &[("dm-worker/dm-worker", &file)]).unwrap().write(&out).unwrap();
        all.push(std::fs::read(&out).unwrap());
    }
    assert_eq!(all[0], all[1]);
    assert_eq!(all[0][4..8], [0; 4], "gzip has no date");
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&all[0][..]));
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let header = entry.header();
        let (time, owner) = (header.mtime().unwrap(), header.uid().unwrap());
        assert_eq!((time, owner, header.gid().unwrap()), (0, 0, 0));
        assert!(matches!(header.mode().unwrap(), 0o755 | 0o644));
    }
}

#[test]
fn what_makes_no_package_is_refused_by_name() {
    let room = Room::new();
    let good = room.put("good", &elf(X86_64, b"good"));
    let text = room.put("text", b"#!/bin/sh\n");
    let arm = room.put("arm", &elf(AARCH64, b"arm"));
    let other = room.put("other", &go_elf("github.com/pingcap/tiflow/cmd/dm-master"));
    let none = room.path.join("none");
    let says = |replace: &[(&str, &Utf8Path)]| making(&room, replace).unwrap_err().to_string();
    assert!(
        says(&[("dm-worker", &good)])
            .ends_with("the base has no `dm-worker`; it has `dm-worker/dm-worker`")
    );
    assert!(says(&[("dm-worker/dm-worker", &text)]).contains("no ELF executable"));
    assert!(
        says(&[("dm-worker/dm-worker", &arm)]).contains("built for arm64, what is there for amd64")
    );
    assert!(says(&[("dm-worker/dm-worker", &none)]).contains("no such file"));
    assert!(says(&[("dm-worker/dm-worker", &room.path)]).contains("not a regular file"));
    let twice = [("dm-worker/dm-worker", good.as_path()), ("dm-worker/dm-worker", good.as_path())];
    assert!(says(&twice).contains("replaced twice"));
    let wrong = making(&room, &[("dm-worker/dm-worker", &other)]).unwrap_err();
    assert!(
        matches!(&wrong, MakeError::Result { refusal: Refusal::OtherComponent { .. }, .. }),
        "{wrong}"
    );
    let bare = room.put("bare", &elf(X86_64, b""));
    let bare = Making::begin(&bare, Role::DmWorker, None, &[], &room.scratch).unwrap_err();
    assert!(bare.to_string().contains("a bare executable"), "{bare}");
    let base = official(&room);
    let arm_wanted = Making::begin(&base, Role::DmWorker, Some("arm64"), &[], &room.scratch);
    assert!(arm_wanted.unwrap_err().to_string().contains("there are targets of arm64"));
    let no_master = Making::begin(&base, Role::DmMaster, None, &[], &room.scratch).unwrap_err();
    assert!(no_master.to_string().contains("no dm-master in it"), "{no_master}");
    assert!(room.leftovers().is_empty(), "{:?}", room.leftovers());
}

#[test]
fn a_package_is_never_written_over_another_file() {
    let room = Room::new();
    let file = room.put("built", &elf(X86_64, b"new"));
    let made = making(&room, &[("dm-worker/dm-worker", &file)]).unwrap();
    let out = room.put("out.tar.gz", b"precious");
    assert!(matches!(made.write(&out), Err(MakeError::Exists(_))));
    assert_eq!(std::fs::read(&out).unwrap(), b"precious");
    let nowhere = room.path.join("no/such/folder/out.tar.gz");
    assert!(matches!(made.write(&nowhere), Err(MakeError::Write { .. })));
}
