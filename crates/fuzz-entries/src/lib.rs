//! What is read from outside, as functions from bytes: what `fuzz/` and the smoke test run. `fuzz/README.md` says what is missing.
//!
//! In: any bytes. Out: nothing; a panic is what is looked for. What a parser accepts must survive what is done with it
//! next: a topology is written and read again and laid out, a plan is checked and shown, a journal is folded.

use std::io::Write as _;

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::ids::ClusterName;
use dmup_core::journal::{self, Line};
use dmup_core::layout::{self, Deployment};
use dmup_core::plan::{self, Plan};
use dmup_core::topology::{Meta, Topology, check_edit};
use dmup_mirror::mirror::address;
use dmup_mirror::package::{self, Wanted};
use dmup_mirror::trust;
use dmup_remote::{dm_api, known_hosts};
use dmup_state::{Cluster, Profile};
use dmup_wire::frame::Decoder;
use dmup_wire::message::{Answer, Hello, Request};
use flate2::Compression;
use flate2::write::GzEncoder;

/// A parser, and the name of its target and of the folder of its corpus.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// `fuzz/fuzz_targets/<name>.rs`, `fuzz/corpus/<name>/`.
    pub name: &'static str,
    /// Reads bytes.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "topology", run: topology },
    Target { name: "meta", run: meta },
    Target { name: "audit", run: audit },
    Target { name: "journal", run: journal },
    Target { name: "plan", run: plan },
    Target { name: "package", run: package },
    Target { name: "backup", run: backup },
    Target { name: "manifests", run: manifests },
    Target { name: "frames", run: frames },
    Target { name: "dm_answers", run: dm_answers },
    Target { name: "known_hosts", run: known_hosts },
    Target { name: "host_words", run: host_words },
    Target { name: "host_records", run: host_records },
    Target { name: "parcel", run: parcel },
    Target { name: "certificates", run: certificates },
    Target { name: "tiup_toml", run: tiup_toml },
];

/// A topology file: what is accepted is written as it was read, and can be laid out.
///
/// # Panics
///
/// A topology that was accepted is written as something else.
pub fn topology(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(mut topology) = Topology::parse(text) else { return };
    let written = topology.render();
    let again = Topology::parse(&written)
        .unwrap_or_else(|error| panic!("what was accepted is written as {written:?}: {error}"));
    assert_eq!(written, again.render(), "of {text:?}");
    drop(Topology::parse_scale_out(text, &again));
    drop(check_edit(&topology, &again));
    topology.expand_dirs();
    topology.set_tls_paths();
    let cluster = ClusterName::new("prod").expect("a good name");
    let version = "v8.1.0".parse().expect("a good version");
    let deployment = Deployment::new(&cluster, &version, &topology);
    layout::host_directories(&deployment);
    for instance in topology.instances() {
        layout::directories(&deployment, &instance);
        drop(layout::files(&deployment, &instance));
    }
    for pair in topology.exporters() {
        layout::exporter_directories(&deployment, &pair);
        for exporter in &pair.both {
            drop(layout::files(&deployment, &exporter.instance));
        }
    }
}

/// `meta.yaml`: what is written can be read.
///
/// # Panics
///
/// It cannot.
pub fn meta(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(meta) = Meta::parse(text) else { return };
    let written = meta.render();
    let again = Meta::parse(&written)
        .unwrap_or_else(|error| panic!("what was accepted is written as {written:?}: {error}"));
    assert_eq!(written, again.render(), "of {text:?}");
    drop(meta.instances());
}

/// An audit log: the bytes are a file in it, and, as far as they can be, its name.
pub fn audit(bytes: &[u8]) {
    let folder = scratch();
    let log = Profile::at(path_of(&folder)).audit();
    let name = String::from_utf8_lossy(&bytes[..bytes.len().min(20)]).replace(['/', '\0'], "_");
    for name in ["4GTb3ZrRvGn", &name] {
        let place = log.dir().join(name);
        let made = fs_err::create_dir_all(log.dir().as_std_path());
        if made.and_then(|()| fs_err::write(place.as_std_path(), bytes)).is_ok() {
            drop(log.entries());
            drop(log.show(name));
        }
    }
}

/// A journal: as a whole, and line by line without the chain that mutated lines break.
pub fn journal(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(lines) = journal::parse(text) {
        drop(journal::fold(lines.iter().map(|line| &line.entry)));
    }
    let lines: Vec<Line> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    drop(journal::fold(lines.iter().map(|line| &line.entry)));
}

/// A plan: `--apply-plan` and run folders.
///
/// # Panics
///
/// A plan that was accepted is written as another.
pub fn plan(bytes: &[u8]) {
    let Ok(plan) = serde_json::from_slice::<Plan>(bytes) else { return };
    plan::check(&plan);
    drop(plan::render(&plan));
    plan.fingerprint();
    let written = serde_json::to_vec(&plan).expect("a plan is plain data");
    let again: Plan = serde_json::from_slice(&written).expect("what we write can be read");
    assert_eq!(plan, again);
}

/// A package archive or a bare executable.
pub fn package(bytes: &[u8]) {
    for bytes in [bytes, &with_good_check_sums(bytes)] {
        let folder = scratch();
        let path = path_of(&folder);
        let file = path.join("package");
        if fs_err::write(file.as_std_path(), bytes).is_ok() {
            drop(package::open(&file, &Wanted::new(), &path));
        }
    }
}

/// An archive for `meta restore`: a tar, packed here, for no change at random survives a packed one's check sum.
pub fn backup(bytes: &[u8]) {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    let written = packed.write_all(&with_good_check_sums(bytes));
    let packed = written.and_then(|()| packed.finish()).expect("memory takes everything");
    for bytes in [bytes, &packed] {
        let folder = scratch();
        let path = path_of(&folder);
        let file = path.join("backup");
        if fs_err::write(file.as_std_path(), bytes).is_ok() {
            drop(Cluster::read_backup(&file, &path));
        }
    }
}

/// A mirror's manifests, one or several after one another.
pub fn manifests(bytes: &[u8]) {
    trust::read_as_every_manifest(bytes);
}

/// What comes over a connection to an agent, from either side, in pieces of any size.
pub fn frames(bytes: &[u8]) {
    let piece = usize::from(bytes.first().copied().unwrap_or(1)).max(1);
    let mut decoder = Decoder::default();
    for piece in bytes.chunks(piece) {
        decoder.feed(piece);
        while let Ok(Some(frame)) = decoder.next_frame() {
            drop(serde_json::from_slice::<Hello>(&frame.body));
            drop(serde_json::from_slice::<Request>(&frame.body));
            drop(serde_json::from_slice::<Answer>(&frame.body));
            drop(frame.encode());
        }
    }
    decoder.is_in_the_middle();
}

/// What dm-master and dm-worker say.
pub fn dm_answers(bytes: &[u8]) {
    dm_api::read_as_every_answer(bytes);
}

/// A `known_hosts` file.
///
/// # Panics
///
/// Never: its key is good.
pub fn known_hosts(bytes: &[u8]) {
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz1HwHReFVvD5obVsALAgJRNarH4TRpNePnAS";
    let key = ssh_key::PublicKey::from_openssh(key).expect("a good key");
    let folder = scratch();
    let file = path_of(&folder).join("known_hosts");
    if fs_err::write(file.as_std_path(), bytes).is_ok() {
        let files = [file];
        for (host, port) in [("198.18.0.11", 22), ("198.18.0.11", 2222), ("::1", 22)] {
            drop(known_hosts::check(&files, host, port, &key));
            drop(known_hosts::known_types(&files, host, port));
        }
    }
}

/// What a host's tools and files tell an agent.
pub fn host_words(bytes: &[u8]) {
    dmup_agent::read_as_every_word(bytes);
}

/// What an agent keeps on its host: leases, guards, sessions, manifests of its store.
///
/// # Panics
///
/// A token of a lease does not rise.
pub fn host_records(bytes: &[u8]) {
    let folder = scratch();
    dmup_agent::read_as_every_record(bytes, &path_of(&folder));
}

/// The archive that a controller sends to a host.
///
/// # Panics
///
/// Something was unpacked to another place.
pub fn parcel(bytes: &[u8]) {
    let folder = scratch();
    dmup_agent::read_as_parcel(&with_good_check_sums(bytes), &path_of(&folder));
}

/// The authority of a cluster with TLS: `ca.crt`, and from the line on that begins a key, `ca.pem`. Then all of it as what
/// DM is asked with.
///
/// # Panics
///
/// An authority that was accepted cannot sign.
pub fn certificates(bytes: &[u8]) {
    const KEY: &[u8] = b"-----BEGIN RSA PRIVATE KEY";
    let at = bytes.windows(KEY.len()).position(|it| it == KEY).unwrap_or(bytes.len());
    let (certificate, key) = bytes.split_at(at);
    let name = ClusterName::new("prod").expect("a good name");
    let folder = scratch();
    let cluster = Profile::at(path_of(&folder)).cluster(&name);
    let dir = cluster.tls_dir();
    let put = |name: &str, bytes: &[u8]| fs_err::write(dir.join(name).as_std_path(), bytes);
    let placed = fs_err::create_dir_all(dir.as_std_path())
        .and_then(|()| put("ca.crt", certificate))
        .and_then(|()| put("ca.pem", key));
    placed.expect("a place for temporary files");
    let now: jiff::Zoned = "2026-11-26T09:08:07+08:00[+08:00]".parse().expect("a good time");
    if let Ok(authority) = cluster.ensure_authority(&now) {
        let signed = authority.sign_for_instance("dm-master", "10.0.1.1", &now);
        signed.expect("what is accepted signs");
    }
    let whole = || bytes.to_vec();
    let tls = dm_api::Tls { authority: whole(), certificate: whole(), key: whole() };
    drop(dm_api::DmClient::over_tls(&[], dm_api::Timeouts::default(), &tls));
}

/// `tiup.toml`.
pub fn tiup_toml(bytes: &[u8]) {
    let folder = scratch();
    let home = path_of(&folder);
    if fs_err::write(home.join("tiup.toml").as_std_path(), bytes).is_ok() {
        drop(address(None, &home));
    }
}

/// Headers of a tar that were changed are believed only if their sum fits: here it is made to.
fn with_good_check_sums(bytes: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 512;
    let mut bytes = bytes.to_vec();
    let mut at = 0;
    while let Some(header) = bytes.get_mut(at..at + BLOCK) {
        if header.iter().any(|byte| *byte != 0) {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let size = String::from_utf8_lossy(&header[124..135]).into_owned();
        let size = usize::from_str_radix(size.trim_matches(['\0', ' ']), 8).unwrap_or(0);
        at += BLOCK + size.next_multiple_of(BLOCK);
    }
    bytes
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().expect("a place for temporary files")
}

fn path_of(folder: &tempfile::TempDir) -> Utf8PathBuf {
    Utf8Path::from_path(folder.path()).expect("a temporary folder is UTF-8").to_owned()
}
