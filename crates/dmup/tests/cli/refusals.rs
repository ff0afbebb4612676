//! Bad input at the command line: each has its own words and exit code, and leaves `TIUP_HOME` as it was.
//!
//! No host is needed, since all of this is refused before one is asked.

use std::io::Read as _;
use std::net::TcpListener;

use crate::desk::{Desk, META, SILENT, archive, archive_of, elf, gzip};

#[test]
fn words_that_make_no_sense_are_usage_errors() {
    let desk = Desk::new();
    desk.refuses(&["frobnicate"], 2, &["frobnicate"]);
    desk.refuses(&["patch", "prod"], 2, &["PACKAGE"]);
    desk.refuses(&["display", "../prod"], 2, &["cluster name"]);
    desk.refuses(&["patch", "prod", "x.tar.gz", "--soak", "soon"], 2, &["--soak"]);
    for words in [["prod", "x.tar.gz", "--wait", "600"], ["--wait", "600", "prod", "x.tar.gz"]] {
        desk.refuses(&[&["patch"], &words[..]].concat(), 2, &["'--wait=600'"]);
    }
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
fn a_host_in_between_that_is_of_no_use_is_named_before_anything_is_asked() {
    let desk = Desk::with_cluster("prod", SILENT);
    // Nobody listens on the port of a listener that is gone.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let proxy = ["--ssh-proxy-host", "127.0.0.1", "--ssh-proxy-port", &port, "--ssh", "builtin"];
    for command in [
        &["display", "prod"][..],
        &["versions", "prod"],
        &["start", "prod"],
        &["stop", "prod", "--yes"],
        &["restart", "prod", "--yes"],
        &["exec", "prod", "--command", "true"],
        &["prune", "prod"],
        &["destroy", "prod", "--yes"],
    ] {
        let seen = ["go through 127.0.0.1:", "Connection refused", "--ssh-proxy-host", "touched"];
        desk.refuses(&[command, &proxy].concat(), 3, &seen);
    }
    let key = ["--ssh-proxy-identity-file", "id"];
    desk.refuses(
        &[&["display", "prod"], &proxy[..4], &["--ssh", "system"], &key].concat(),
        2,
        &["the system's ssh takes no key", "IdentityFile", "--ssh builtin"],
    );
    desk.refuses(
        &[&["display", "prod"], &proxy[..], &key].concat(),
        3,
        &["read the identity file", "No such file"],
    );
    desk.refuses(&["display", "prod", "--ssh-proxy-host=-oX"], 2, &["--ssh-proxy-host"]);
    desk.refuses(&["display", "prod", "--ssh-proxy-port", "0"], 2, &["--ssh-proxy-port"]);
}

#[test]
fn an_upgrade_to_nothing_that_is_or_back_is_refused() {
    let desk = Desk::with_cluster("prod", SILENT);
    desk.refuses(&["upgrade", "prod"], 2, &["VERSION"]);
    desk.refuses(&["upgrade", "prod", "latest", "--yes"], 2, &["latest", "v8.1.0"]);
    desk.refuses(
        &["upgrade", "prod", "v7.5.0", "--yes"],
        3,
        &["prod has v8.1.0", "newer than v7.5.0", "--ignore-version-check", "nothing was touched"],
    );
    desk.refuses(
        &["upgrade", "prod", "v8.5.0", "--yes"],
        3,
        &["not every package of v8.5.0", "dm-master-v8.5.0", "dm-worker-v8.5.0"],
    );
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
fn a_package_that_new_instances_could_not_unpack_is_not_kept_for_them() {
    let desk = Desk::with_cluster("prod", SILENT);
    let worker = elf(62, b"w");
    let tar_gz = archive_of(&[("dm-worker/dm-worker", 0o755, &worker)]);
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(&tar_gz[..]).read_to_end(&mut tar).unwrap();
    for (name, bytes) in
        [("plain.tar.gz", tar), ("bare.tar.gz", worker.clone()), ("packed.gz", gzip(&worker))]
    {
        let package = desk.put(name, &bytes);
        let words = ["patch", "prod", &package, "-R", "dm-worker", "--yes"];
        let says = [name, "--overwrite", "TiUP unpacks only a tar.gz", "nothing was touched"];
        desk.refuses(&[&words[..], &["--overwrite"]].concat(), 3, &says);
        desk.refuses(&[&words[..], &["--overwrite", "--plan"]].concat(), 3, &says);
        // For those that are there it will do: only the silent host is in the way.
        desk.refuses(&words, 3, &["host 127.0.0.77 cannot be reached"]);
    }
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
fn several_errors_of_a_topology_are_found_one_after_the_other() {
    let desk = Desk::new();
    let deploy = |text: &str, says: &[&str]| {
        let topology = desk.put("topology.yaml", text.as_bytes());
        desk.refuses(&["deploy", "new", "v8.1.0", &topology, "--yes"], 3, says);
    };
    let masters =
        "master_servers:\n  - {host: 10.9.0.1}\n  - {host: 10.9.0.1, port: 8261, name: b}\n";
    deploy(masters, &["line 3", "port conflict for '8261'", "master_servers:10.9.0.1.port"]);
    deploy("worker_server:\n  - host: 10.9.0.1\n", &["line 1", "did you mean `worker_servers`?"]);
    deploy(
        "global:\n  ssh_type: telnet\nmaster_servers:\n  - host: 10.9.0.1\n",
        &["line 2", "ssh_type `telnet` is not known", "one of: builtin, system, none"],
    );
    deploy(
        "master_servers:\n  - host: 10.9.0.1\n    deploy_dir: /x/../etc\n",
        &["line 3", "leaves its place"],
    );
    deploy(
        "global:\n  systemd_mode: root\nmaster_servers:\n  - host: 10.9.0.1\n",
        &["line 2", "systemd_mode `root` is not known", "one of: system, user"],
    );
    // Of another cluster on this desk.
    deploy("master_servers:\n  - host: 198.18.0.11\n", &["topology.yaml", "prod", "198.18.0.11"]);
}

#[test]
fn a_package_for_a_part_of_a_mixed_cluster_names_who_runs_on_what() {
    let worker =
        "  - {host: 127.0.0.78, port: 5, deploy_dir: /nowhere/x, arch: arm64, os: linux}\n";
    let mixed = SILENT.replace("  grafana_servers:", &format!("  {worker}  grafana_servers:"));
    let desk = Desk::with_cluster("mixed", &mixed);
    let package =
        desk.put("p.tar.gz", &archive_of(&[("dm-worker/dm-worker", 0o755, &elf(62, b"w"))]));
    desk.refuses(
        &["patch", "mixed", &package, "-R", "dm-worker", "--yes"],
        3,
        &[
            "is built for amd64, but there are targets of amd64 and arm64",
            "127.0.0.78:5 runs on arm64",
            "one package for each architecture: give this one to `-N 127.0.0.77:3`",
        ],
    );
}

#[test]
fn an_executable_for_another_machine_or_without_its_bit_is_refused() {
    let desk = Desk::new();
    let refuses = |name: &str, bytes: &[u8], says: &[&str]| {
        let package = desk.put(name, bytes);
        desk.refuses(&["patch", "prod", &package, "-R", "dm-worker", "--yes"], 3, says);
    };
    let file = "dm-worker/dm-worker";
    refuses(
        "arm.tar.gz",
        &archive_of(&[(file, 0o755, &elf(183, b"w"))]),
        &["arm.tar.gz", "`dm-worker/dm-worker` is built for arm64", "targets of amd64"],
    );
    refuses(
        "mode.tar.gz",
        &archive_of(&[(file, 0o644, &elf(62, b"w"))]),
        &["is not executable (mode 644)", "chmod 755", "dmup package show"],
    );
    refuses(
        "master.tar.gz",
        &archive_of(&[("dm-master/dm-master", 0o755, &elf(62, b"m"))]),
        &["no dm-worker in it; it has dm-master"],
    );
    refuses(
        "cut.tar.gz",
        &archive_of(&[(file, 0o755, &elf(62, b"w")[..40])]),
        &["`dm-worker/dm-worker` is no ELF executable"],
    );
    refuses("dm-worker", &elf(183, b"w"), &["is built for arm64"]);
}

#[test]
fn hosts_that_do_not_answer_are_all_named_and_nothing_is_written() {
    let desk = Desk::with_cluster("prod", SILENT);
    let topology = desk.put(
        "topology.yaml",
        b"global: {ssh_port: 9}\nmaster_servers:\n  - host: 127.0.0.78\nworker_servers:\n  - host: 127.0.0.79\n",
    );
    let key = desk.path("tiup/storage/dm/clusters/prod/ssh/id_rsa");
    desk.refuses(
        &["deploy", "new", "v8.1.0", &topology, "-u", "root", "-i", &key, "--yes"],
        3,
        &[
            "2 thing(s) are in the way of new",
            "127.0.0.78",
            "127.0.0.79",
            "refused",
            "nothing was touched",
        ],
    );
    assert!(!std::path::Path::new(&desk.path("tiup/storage/dm/clusters/new")).exists());

    let worker = archive_of(&[("dm-worker/dm-worker", 0o755, &elf(62, b"w"))]);
    let package = desk.put("worker.tar.gz", &worker);
    desk.refuses(
        &["patch", "prod", &package, "--yes"],
        3,
        &["cannot patch prod", "host 127.0.0.77 cannot be reached", "nothing was touched"],
    );
    // What the selection names and the package lacks is said at the same time.
    desk.refuses(
        &["patch", "prod", &package, "-R", "dm-master,dm-worker", "--yes"],
        3,
        &[
            "the package has no build for 127.0.0.77:1 (dm-master)",
            "host 127.0.0.77 cannot be reached",
        ],
    );
    desk.refuses(&["rollback", "prod", "--yes"], 3, &["no node of prod has an earlier build"]);
    desk.refuses(&["resume", "prod", "--yes"], 3, &["no run of prod was interrupted"]);
}

#[test]
fn a_topology_without_dm_is_not_deployed() {
    let desk = Desk::empty();
    let monitoring = "monitoring_servers:\n  - host: 127.0.0.77\n";
    for (name, text) in [("empty.yaml", ""), ("monitoring.yaml", monitoring)] {
        let file = desk.put(name, text.as_bytes());
        let words = ["deploy", "prod", "v8.1.0", &file, "-u", "root", "--yes"];
        desk.refuses(&words, 3, &["there is nothing of DM in it to deploy", "dmup template"]);
    }
    assert!(!std::path::Path::new(&desk.path("tiup/storage/dm/clusters/prod")).exists());
    desk.refuses(
        &["deploy", "prod", "v8.1.0", "no.yaml", "-u", "root", "--yes"],
        3,
        &["read the topology no.yaml: No such file or directory"],
    );
}

#[test]
fn a_build_that_failed_before_is_refused_unless_it_is_forced() {
    let desk = Desk::with_cluster("prod", SILENT);
    let binary = elf(62, b"bad");
    let package = desk.put("bad.tar.gz", &archive_of(&[("dm-worker/dm-worker", 0o755, &binary)]));
    let digest = serde_json::to_value(dmup_core::digest::Digest::of(&binary)).unwrap();
    let record = serde_json::json!({ "builds": { digest.as_str().unwrap(): "it never joined" } });
    let cluster = desk.profile().cluster(&"prod".parse().unwrap());
    cluster.write_record("bad_builds", &record).unwrap();
    let refuses = ["patch", "prod", &package, "--yes"];
    let text = desk.refuses(
        &refuses,
        3,
        &["failed before: it never joined (--force-build goes on all the same)"],
    );
    assert!(!text.contains("cannot be reached: (--force"), "hosts cannot be forced:\n{text}");
    let forced =
        desk.refuses(&["patch", "prod", &package, "--yes", "--force"], 3, &["cannot be reached"]);
    assert!(!forced.contains("failed before"), "{forced}");
}

#[test]
fn a_no_is_taken_for_a_no() {
    let desk = Desk::with_cluster("prod", SILENT);
    let before = desk.state();
    for answer in ["n\n", "", "yep\n"] {
        let output = desk.command(&["stop", "prod"]).write_stdin(answer).output().unwrap();
        let text = desk.told(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{text}");
        assert!(
            text.contains("Do you want to continue? [y/N]") && text.contains("aborted"),
            "{text}"
        );
        let output = desk.command(&["destroy", "prod"]).write_stdin(answer).output().unwrap();
        assert_eq!(output.status.code(), Some(3));
    }
    assert_eq!(desk.state(), before);
}

#[test]
fn for_scripts_a_failure_is_one_object() {
    let desk = Desk::new();
    let output = desk.dmup(&["display", "nosuch", "--format", "json"]);
    let value: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(value["exit_code"], 3);
    assert!(value["error"].as_str().unwrap().contains("not exists"));
    assert!(output.stdout.is_empty());
}

#[test]
fn a_cluster_with_tls_needs_its_certificates() {
    let desk = Desk::with_cluster(
        "prod",
        &SILENT.replace("ssh_port: 9}", "ssh_port: 9, enable_tls: true}"),
    );
    desk.refuses(
        &["display", "prod"],
        3,
        &["DESK/tiup/storage/dm/clusters/prod/tls/ca.crt", "enable_tls", "meta backup"],
    );
    let folder = "tiup/storage/dm/clusters/prod/tls";
    for name in ["ca.crt", "client.crt", "client.pem"] {
        desk.put(&format!("{folder}/{name}"), b"hello");
    }
    desk.refuses(&["display", "prod"], 3, &["use the certificates in DESK/"]);
    let made = rcgen::generate_simple_self_signed(["dm".to_owned()]).unwrap();
    desk.put(&format!("{folder}/ca.crt"), made.cert.pem().as_bytes());
    desk.put(&format!("{folder}/client.crt"), made.cert.pem().as_bytes());
    desk.put(&format!("{folder}/client.pem"), made.signing_key.serialize_pem().as_bytes());
    let shown = desk.ok(&["display", "prod"]);
    assert!(shown.contains("TLS encryption:     enabled"), "{shown}");
}
