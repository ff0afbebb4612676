//! Commands that change what the control machine knows, and no host.

use std::os::unix::fs::PermissionsExt;

use crate::desk::{Desk, META, SILENT};

#[test]
fn a_template_is_a_topology_that_deploy_reads() {
    let desk = Desk::empty();
    for words in
        [&["template"][..], &["template", "--full"], &["template", "--local", "--arch", "arm64"]]
    {
        let text = desk.ok(words);
        dmup_core::topology::Topology::parse(&text)
            .unwrap_or_else(|error| panic!("{words:?}: {error}\n{text}"));
    }
    insta::assert_snapshot!(desk.ok(&[
        "template",
        "--local",
        "--master-servers",
        "h1,h2,h3",
        "--grafana-servers",
        "h9"
    ]));
    desk.refuses(
        &["template", "--local", "--worker-servers", "h1,h2"],
        2,
        &["--worker-servers has 2 host(s), at least 3"],
    );
    desk.refuses(&["template", "--local", "--arch", "sparc"], 2, &["'sparc'", "amd64, arm64"]);
    desk.refuses(&["template", "--local", "--user", "x: [y"], 2, &["these flags make no topology"]);
}

#[test]
fn a_lost_cluster_comes_back_from_its_backup() {
    let desk = Desk::new();
    let before = desk.state();
    let backup = desk.path("prod.tar.gz");
    desk.ok(&["meta", "backup", "prod", "--file", &backup]);
    assert_eq!(std::fs::metadata(&backup).unwrap().permissions().mode() & 0o777, 0o600);
    desk.refuses(
        &["meta", "backup", "prod", "--file", &backup],
        3,
        &["DESK/prod.tar.gz", "exists"],
    );
    desk.ok(&["meta", "backup", "prod"]);
    let named: Vec<String> = std::fs::read_dir(desk.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| {
            name.starts_with("tiup-cluster_prod_metabackup_2") && name.ends_with(".tar.gz")
        })
        .collect();
    assert_eq!(named.len(), 1);

    std::fs::remove_dir_all(desk.path("tiup/storage/dm/clusters/prod")).unwrap();
    desk.ok(&["meta", "restore", "prod", &backup]);
    assert_eq!(desk.state(), before);

    // Over one that is there only after the sentence.
    let meta = desk.put("tiup/storage/dm/clusters/prod/meta.yaml", b"broken");
    desk.refuses(&["meta", "restore", "prod", &backup], 3, &["4 host(s)", "aborted"]);
    let sentence = "Yes, I know my cluster meta will be be overridden.\n";
    let output =
        desk.command(&["meta", "restore", "prod", &backup]).write_stdin(sentence).output().unwrap();
    assert!(output.status.success(), "{}", desk.told(&output.stderr));
    assert_eq!(std::fs::read_to_string(meta).unwrap(), META);

    let broken = desk.put("broken.tar.gz", b"hello");
    desk.refuses(
        &["meta", "restore", "prod", &broken, "--yes"],
        3,
        &["broken.tar.gz: is no backup"],
    );
    desk.refuses(
        &["meta", "restore", "new", &desk.path("none"), "--yes"],
        3,
        &["read the backup DESK/none"],
    );
}

/// The topology as `edit-config` shows it.
fn shown(desk: &Desk) -> String {
    let cluster = desk.profile().cluster(&"prod".parse().unwrap());
    cluster.meta().unwrap().topology.render()
}

#[test]
fn settings_are_edited_by_file() {
    let desk = Desk::with_cluster("prod", SILENT);
    let before = shown(&desk);
    let edited = format!("server_configs:\n  worker:\n    log-level: debug\n{before}");
    let file = desk.put("edited.yaml", edited.as_bytes());
    let output = desk.dmup(&["edit-config", "prod", "--topology-file", &file, "--yes"]);
    let said = desk.told(&output.stderr);
    assert!(
        output.status.success() && said.contains("log-level: debug") && said.contains("reload"),
        "{said}"
    );
    let after = shown(&desk);
    assert!(after.contains("log-level: debug") && after != before, "{after}");
    let backups =
        std::fs::read_dir(desk.path("tiup/storage/dm/clusters/prod/backup")).unwrap().count();
    assert_eq!(backups, 1);

    let again = desk.put("again.yaml", after.as_bytes());
    let output = desk.dmup(&["edit-config", "prod", "--topology-file", &again, "--yes"]);
    assert!(output.status.success() && desk.told(&output.stderr).contains("nothing changed"));

    let refuses = |from: &str, to: &str, says: &[&str]| {
        assert!(after.contains(from), "{after}");
        let file = desk.put("bad.yaml", after.replacen(from, to, 1).as_bytes());
        desk.refuses(&["edit-config", "prod", "--topology-file", &file, "--yes"], 3, says);
    };
    refuses(
        "port: 3\n",
        "port: 33\n",
        &["immutable field changed: worker_servers.0.port from 3 to 33", "scale-out"],
    );
    refuses(
        "patched: true",
        "patched: false",
        &["immutable field changed: worker_servers.0.patched"],
    );
    refuses("log-level: debug", "log-level: [", &["bad.yaml", "line "]);
    refuses("server_configs", "server_config", &["did you mean `server_configs`?"]);
    let missing = desk.path("none");
    desk.refuses(&["edit-config", "prod", "--topology-file", &missing, "--yes"], 3, &["DESK/none"]);
}

#[test]
fn without_a_terminal_no_editor_is_opened_that_needs_one() {
    let desk = Desk::with_cluster("prod", SILENT);
    let before = desk.state();
    let says = ["no terminal", "--topology-file", "EDITOR"];
    desk.refuses(&["edit-config", "prod"], 3, &says);
    desk.refuses(&["edit-config", "prod", "--yes"], 3, &says);
    assert_eq!(desk.state(), before);
}

#[test]
fn settings_are_edited_by_the_editor_of_the_operator() {
    let desk = Desk::with_cluster("prod", SILENT);
    let edit = |editor: &str, words: &[&str]| {
        let all = [&["edit-config", "prod"], words].concat();
        let output = desk.command(&all).env("EDITOR", editor).output().unwrap();
        (output.status.code(), desk.told(&output.stderr))
    };
    let before = desk.state();
    let (code, said) = edit("sed -i s/ssh_port:.9/ssh_port:\\x20\\x2010/", &[]);
    assert_eq!(code, Some(3), "asked, and nobody answered: {said}");
    assert!(said.contains("ssh_port: 10") && said.contains("[y/N]"), "{said}");
    let (code, said) = edit("sed -i s/ssh_type:/sshtype:/", &["--yes"]);
    assert!(
        code == Some(3) && said.contains("unknown key `sshtype`"),
        "nobody can go on editing: {said}"
    );
    let (code, said) = edit("no-such-editor", &["--yes"]);
    assert!(code == Some(3) && said.contains("start the editor `no-such-editor`"), "{said}");
    let (code, said) = edit("false", &["--yes"]);
    assert!(code == Some(3) && said.contains("ended with exit status: 1"), "{said}");
    assert_eq!(desk.state(), before);
    let (code, said) = edit("sed -i s/ssh_port:.9/ssh_port:\\x20\\x2010/", &["--yes"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(shown(&desk).contains("ssh_port: 10"));
}

#[test]
fn old_entries_of_the_log_are_removed_when_that_is_agreed_to() {
    let desk = Desk::empty();
    // 2021-01-21, and long after everything.
    let old = desk.put("tiup/storage/dm/audit/fxgcScKJ2Kd", b"tiup-dm list\n");
    let other = desk.put("tiup/storage/dm/audit/readme", b"no entry");
    let output = desk.dmup(&["audit", "cleanup"]);
    assert_eq!(output.status.code(), Some(3), "nobody agreed");
    assert!(std::fs::exists(&old).unwrap());
    let output = desk.dmup(&["audit", "cleanup", "--yes", "--retain-days", "30"]);
    assert!(output.status.success() && desk.told(&output.stderr).contains("Removed 1 entries"));
    assert!(!std::fs::exists(&old).unwrap() && std::fs::exists(&other).unwrap());
    desk.put("tiup/storage/dm/audit/fxgcScKJ2Kd", b"tiup-dm list\n");
    let json: serde_json::Value =
        serde_json::from_str(&desk.ok(&["audit", "cleanup", "--format", "json"])).unwrap();
    assert_eq!(json["deleted_logs"]["count"], 1);
    assert_eq!(json["deleted_logs"]["size"], 13);
    desk.refuses(&["audit", "cleanup", "--retain-days", "-1"], 2, &["'-1'"]);
}
