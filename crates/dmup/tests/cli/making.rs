//! `package make`: what the manual does by hand with `tar`, and what is checked that `tar` does not.

use crate::desk::{Desk, archive_of, elf, this_machine};

/// Says its version with `-V`, as DM's programs do, and is on every Debian.
const SAYS_ITS_VERSION: &str = "/usr/bin/grep";

/// A desk whose cache has dm-worker v8.1.0 for this machine, with no mirror to compare it with.
fn desk() -> Desk {
    let desk = Desk::empty();
    let (machine, arch) = this_machine();
    desk.put(
        &format!("tiup/storage/dm/packages/dm-worker-v8.1.0-linux-{arch}.tar.gz"),
        &archive_of(&[
            ("dm-worker/dm-worker", 0o755, &elf(machine, b"official")),
            ("dm-worker/conf/task.yaml", 0o644, b"name: x"),
        ]),
    );
    desk
}

fn make<'a>(replace: &'a str, out: &'a str) -> Vec<&'a str> {
    vec!["package", "make", "dm-worker", "--base", "v8.1.0", "--replace", replace, "-o", out]
}

#[test]
fn a_hotfix_package_is_made_of_a_version_and_a_binary() {
    let desk = desk();
    let replace = format!("dm-worker/dm-worker={SAYS_ITS_VERSION}");
    let said = desk.ok(&make(&replace, "hotfix.tar.gz"));
    assert!(said.contains("Package: hotfix.tar.gz\nSHA-256: ") && said.contains("grep"), "{said}");

    let text = std::fs::read_to_string(desk.path("hotfix.tar.gz.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
    let (_, arch) = this_machine();
    assert_eq!(manifest["component"], "dm-worker");
    assert_eq!(manifest["arch"], arch);
    assert_eq!(manifest["base"]["name"], format!("dm-worker-v8.1.0-linux-{arch}.tar.gz"));
    assert_eq!(manifest["replaced"][0]["path"], "dm-worker/dm-worker");
    let binary = dmup_core::digest::Digest::of(&std::fs::read(SAYS_ITS_VERSION).unwrap());
    assert_eq!(manifest["build"], binary.as_str());
    assert_eq!(manifest["replaced"][0]["is"], binary.as_str());
    let package = std::fs::read(desk.path("hotfix.tar.gz")).unwrap();
    assert_eq!(manifest["package"]["sha256"], dmup_core::digest::Digest::of(&package).as_str());
    assert!(manifest["version"].as_str().unwrap().contains("grep"));
    assert!(manifest["made_by"].as_str().unwrap().contains('@') && manifest["made_at"].is_string());

    let shown = desk.ok(&["package", "show", "hotfix.tar.gz"]);
    assert!(shown.contains("dm-worker"), "{shown}");

    // Of the package just made, to another name: nothing but the bytes of the input counts.
    let again = [
        "package",
        "make",
        "dm-worker",
        "--base",
        "./hotfix.tar.gz",
        "--replace",
        &replace,
        "-o",
        "again.tar.gz",
    ];
    desk.ok(&again);
    assert_eq!(std::fs::read(desk.path("again.tar.gz")).unwrap(), package);
}

#[test]
fn what_cannot_be_made_is_refused_and_leaves_nothing() {
    let desk = desk();
    let refuses = |replace: &str, code: i32, says: &[&str]| {
        desk.refuses(&make(replace, "hotfix.tar.gz"), code, says);
        for file in ["hotfix.tar.gz", "hotfix.tar.gz.json"] {
            assert!(!std::fs::exists(desk.path(file)).unwrap(), "{file} after {replace}");
        }
    };
    desk.put("text", b"#!/bin/sh\n");
    refuses("dm-worker/dm-worker=text", 3, &["text", "it is no ELF executable"]);
    refuses(
        "dm-worker=/usr/bin/grep",
        3,
        &["the base has no `dm-worker`", "`dm-worker/dm-worker`"],
    );
    refuses("dm-worker/dm-worker=none", 3, &["put none in as", "no such file"]);
    refuses("dm-worker/dm-worker", 2, &["PATH=FILE is needed"]);
    refuses(
        "dm-worker/dm-worker=/usr/bin/false",
        3,
        &["-V: exit status: 1", "nothing was written"],
    );
    // What it says itself is told, under the name that it has in the package.
    refuses(
        "dm-worker/dm-worker=/usr/bin/ls",
        3,
        &["-V: exit status: 2", "dm-worker: invalid option", "nothing was written"],
    );
    refuses("dm-worker/dm-worker=/usr/bin/true", 3, &["-V: it printed nothing"]);
    let other = if this_machine().1 == "amd64" { 183 } else { 62 };
    desk.put("other", &elf(other, b""));
    refuses("dm-worker/dm-worker=other", 3, &["it is built for", "what is there for"]);

    desk.put("hotfix.tar.gz", b"precious");
    desk.refuses(
        &make("dm-worker/dm-worker=/usr/bin/grep", "hotfix.tar.gz"),
        3,
        &["hotfix.tar.gz exists already"],
    );
    assert_eq!(std::fs::read(desk.path("hotfix.tar.gz")).unwrap(), b"precious");
}

#[test]
fn a_base_that_is_not_there_is_named_with_what_to_do() {
    let desk = Desk::empty();
    desk.refuses(
        &make("dm-worker/dm-worker=/usr/bin/grep", "hotfix.tar.gz"),
        3,
        &[
            "the base is not there",
            "dm-worker: looked for DESK/tiup/storage/dm/packages/dm-worker-v8.1.0-linux-",
            "there is no trusted root manifest",
            "`--base` takes a package file as well",
        ],
    );
}
