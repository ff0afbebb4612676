//! Bad input at the command line: each has its own words and exit code, and leaves `TIUP_HOME` as it was.
//!
//! Runs the real program; no host is needed, since all of this is refused before one is asked.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;

use assert_cmd::Command;

/// A recorded cluster of TiUP 1.16.5: three masters, three workers, a Prometheus.
const META: &str = include_str!("fixtures/meta.yaml");

struct Desk {
    folder: tempfile::TempDir,
}

impl Desk {
    /// A desk with the cluster `prod`.
    fn new() -> Self {
        let desk = Self { folder: tempfile::tempdir().unwrap() };
        let cluster = desk.path("tiup/storage/dm/clusters/prod");
        std::fs::create_dir_all(Path::new(&cluster).join("ssh")).unwrap();
        std::fs::write(Path::new(&cluster).join("meta.yaml"), META).unwrap();
        desk
    }

    fn path(&self, below: &str) -> String {
        self.folder.path().join(below).to_str().unwrap().to_owned()
    }

    fn put(&self, name: &str, content: &[u8]) -> String {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn dmup(&self, words: &[&str]) -> Output {
        Command::cargo_bin("dmup")
            .unwrap()
            .args(words)
            .env_clear()
            .env("HOME", self.path("home"))
            .env("TIUP_HOME", self.path("tiup"))
            .env("PATH", "/usr/bin:/bin")
            .output()
            .unwrap()
    }

    /// Everything below `TIUP_HOME` but the audit log, which records refusals as well, and our lock file.
    fn state(&self) -> BTreeMap<String, Vec<u8>> {
        let mut all = BTreeMap::new();
        let mut folders = vec![self.folder.path().join("tiup")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.to_str().unwrap().to_owned();
                if name.contains("/audit") || name.ends_with("/dmup/lock") {
                    continue;
                }
                if path.is_dir() {
                    folders.push(path);
                } else {
                    all.insert(name, std::fs::read(&path).unwrap());
                }
            }
        }
        all
    }

    /// The command ends with this code, says all of these, and changes nothing.
    #[track_caller]
    fn refuses(&self, words: &[&str], code: i32, says: &[&str]) {
        let before = self.state();
        let output = self.dmup(words);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{words:?}\n{text}");
        for part in says {
            assert!(text.contains(part), "{words:?} does not say `{part}`\n{text}");
        }
        assert_eq!(self.state(), before, "{words:?}\n{text}");
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An archive with one entry, made by hand so that it may be hostile.
fn archive(
    name: &str,
    kind: tar::EntryType,
    link: Option<&str>,
    content: &[u8],
    mode: u32,
) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
    if let Some(link) = link {
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
    }
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header, content).unwrap();
    gzip(&builder.into_inner().unwrap())
}

#[test]
fn words_that_make_no_sense_are_usage_errors() {
    let desk = Desk::new();
    desk.refuses(&["frobnicate"], 2, &["frobnicate"]);
    desk.refuses(&["patch", "prod"], 2, &["PACKAGE"]);
    desk.refuses(&["display", "../prod"], 2, &["cluster name"]);
    desk.refuses(&["patch", "prod", "x.tar.gz", "--soak", "soon"], 2, &["--soak"]);
}

#[test]
fn a_cluster_that_does_not_exist_is_named_with_those_that_do() {
    let desk = Desk::new();
    for command in ["display", "start", "enable", "runs", "rollback", "resume"] {
        desk.refuses(
            &[command, "nosuch"],
            3,
            &["dm cluster `nosuch` not exists", "prod", "dmup list"],
        );
    }
}

#[test]
fn a_selection_that_names_nothing_is_refused_with_what_there_is() {
    let desk = Desk::new();
    let package = desk.put("p.tar.gz", b"x");
    desk.refuses(
        &["patch", "prod", &package, "-N", "1.2.3.4:1", "--yes"],
        3,
        &["no such node: 1.2.3.4:1", "known nodes:", "198.18.0.11:8261", "nothing was touched"],
    );
    desk.refuses(&["patch", "prod", &package, "-R", "tikv", "--yes"], 3, &["not valid role: tikv"]);
    desk.refuses(
        &["patch", "prod", &package, "-R", "dm-worker", "-N", "198.18.0.11:8261", "--yes"],
        3,
        &["no instance found on specified role"],
    );
}

#[test]
fn a_package_that_is_none_or_hostile_is_refused_by_name() {
    let desk = Desk::new();
    let regular = tar::EntryType::Regular;
    let cases: [(&str, Vec<u8>, &str); 10] = [
        ("text.tar.gz", b"hello, this is no package at all".to_vec(), "not a package"),
        (
            "cut.tar.gz",
            {
                let whole = archive("dm-worker/dm-worker", regular, None, &[7; 60_000], 0o755);
                whole[..whole.len() / 2].to_vec()
            },
            "cut off",
        ),
        ("empty.tar.gz", gzip(&[0; 1024]), "empty"),
        (
            "up.tar.gz",
            archive("../dm-worker", regular, None, b"x", 0o755),
            "would leave the package's own folder",
        ),
        ("abs.tar.gz", archive("/etc/dm-worker", regular, None, b"x", 0o755), "absolute path"),
        (
            "link.tar.gz",
            archive("dm-worker/dm-worker", tar::EntryType::Symlink, Some("/bin/sh"), b"", 0o777),
            "points out of the package",
        ),
        (
            "hard.tar.gz",
            archive("dm-worker/dm-worker", tar::EntryType::Link, Some("../../x"), b"", 0o777),
            "points out of the package",
        ),
        (
            "device.tar.gz",
            archive("dm-worker/dm-worker", tar::EntryType::Char, None, b"", 0o666),
            "device",
        ),
        ("other.tar.gz", archive("readme.txt", regular, None, b"hello", 0o644), "readme.txt"),
        (
            "script.tar.gz",
            archive("dm-worker/dm-worker", regular, None, b"#!/bin/sh\nexit 0\n", 0o755),
            "dm-worker",
        ),
    ];
    for (name, bytes, says) in cases {
        let package = desk.put(name, &bytes);
        desk.refuses(
            &["patch", "prod", &package, "-R", "dm-worker", "--yes"],
            3,
            &[says, name, "nothing was touched"],
        );
    }
    let missing = desk.path("missing.tar.gz");
    desk.refuses(&["patch", "prod", &missing, "-R", "dm-worker", "--yes"], 3, &["no such file"]);
}

#[test]
fn state_of_tiup_that_is_broken_or_half_done_is_refused() {
    let desk = Desk::new();
    let cluster = desk.path("tiup/storage/dm/clusters/prod");
    let lock = format!("{cluster}/.scale-out.yaml");
    std::fs::write(&lock, "x").unwrap();
    let package = desk.put("p.tar.gz", b"x");
    desk.refuses(
        &["patch", "prod", &package, "-R", "dm-worker", "--yes"],
        3,
        &["unfinished scale-out of TiUP"],
    );
    std::fs::remove_file(&lock).unwrap();
    std::fs::write(
        format!("{cluster}/meta.yaml"),
        META.replace("master_servers:", "master_servers: 7 #"),
    )
    .unwrap();
    desk.refuses(&["display", "prod"], 3, &["meta.yaml", "line "]);
}

#[test]
fn a_topology_with_errors_is_refused_at_its_line() {
    let desk = Desk::new();
    let deploy = |text: &str, says: &[&str]| {
        let topology = desk.put("topology.yaml", text.as_bytes());
        desk.refuses(&["deploy", "new", "v8.1.0", &topology, "--yes"], 3, says);
    };
    deploy(
        "master_servers:\n  - hots: 10.0.0.1\n",
        &["line 2", "unknown key `hots`", "did you mean `host`?"],
    );
    deploy("master_servers: [\n", &["topology.yaml", "line "]);
    let missing = desk.path("nothing.yaml");
    desk.refuses(
        &["deploy", "new", "v8.1.0", &missing, "--yes"],
        3,
        &["nothing.yaml", "No such file"],
    );
    desk.refuses(&["deploy", "new", "eight", &missing, "--yes"], 2, &["`eight` is no version"]);
    desk.refuses(
        &["deploy", "prod", "v8.1.0", &missing, "--yes"],
        3,
        &["cluster name `prod` is taken"],
    );
}

#[test]
fn every_command_has_help_and_those_of_the_main_job_have_examples() {
    let desk = Desk::new();
    for words in
        [&["--help"][..], &["patch", "--help"], &["deploy", "--help"], &["display", "--help"]]
    {
        let output = desk.dmup(words);
        assert!(output.status.success(), "{words:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("Examples:"), "{words:?}");
    }
    let output = desk.dmup(&["completion", "bash"]);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("dmup"));
}

#[test]
fn list_and_audit_show_what_is_there() {
    let desk = Desk::new();
    let list = desk.dmup(&["list"]);
    let text = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(list.status.success() && text.contains("prod  tidb  v8.1.0"), "{text}");
    let audit = desk.dmup(&["audit"]);
    let text = String::from_utf8_lossy(&audit.stdout).into_owned();
    assert!(audit.status.success() && text.contains(" list"), "{text}");
    let json = desk.dmup(&["list", "--format", "json"]);
    assert!(String::from_utf8_lossy(&json.stdout).starts_with("{\"clusters\":["));
}
