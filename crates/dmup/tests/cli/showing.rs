//! Commands that only show.

use crate::desk::{Desk, SILENT, archive_of, elf};

#[test]
fn clusters_are_listed_as_tiup_lists_them() {
    let desk = Desk::new();
    let list = desk.ok(&["list"]);
    // Columns are as wide as this desk's paths.
    let row: Vec<&str> = list.lines().nth(2).unwrap().split_whitespace().collect();
    let folder = "DESK/tiup/storage/dm/clusters/prod";
    assert_eq!(row, ["prod", "tidb", "v8.1.0", folder, &format!("{folder}/ssh/id_rsa")]);
    assert!(
        desk.ok(&["list", "--format", "json"]).starts_with("{\"clusters\":[{\"name\":\"prod\"")
    );
    let none = Desk::empty();
    insta::assert_snapshot!(none.ok(&["list"]), @r"
    Name  User  Version  Path  PrivateKey
    ----  ----  -------  ----  ----------
    ");
}

#[test]
fn a_cluster_that_cannot_be_read_does_not_hide_the_others() {
    let desk = Desk::new();
    desk.put("tiup/storage/dm/clusters/broken/meta.yaml", b"user: tidb\n");
    let output = desk.dmup(&["list"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(desk.told(&output.stdout).contains("prod"));
    let said = desk.told(&output.stderr);
    assert!(
        said.contains("clusters/broken/meta.yaml") && said.contains("`dm_version` is missing"),
        "{said}"
    );
}

#[test]
fn what_tiup_did_is_in_the_log_of_commands_beside_what_we_did() {
    let desk = Desk::new();
    desk.put("tiup/storage/dm/audit/h49wkF5WXHb", b"tiup-dm list\n2026-11-23\tINFO\tdone\n");
    desk.put(
        "tiup/storage/dm/audit/h49vJQFvyvJ",
        b"tiup-dm patch prod pk%2Fhf-both.tar.gz --yes\n",
    );
    desk.ok(&["list"]);
    let audit = desk.ok(&["audit"]);
    let lines: Vec<&str> = audit.lines().collect();
    assert_eq!(
        lines[..4],
        [
            "ID           Time                  Command",
            "--           ----                  -------",
            "h49vJQFvyvJ  2026-11-23T04:26:53Z  tiup-dm patch prod pk/hf-both.tar.gz --yes",
            "h49wkF5WXHb  2026-11-23T04:36:12Z  tiup-dm list",
        ]
    );
    assert!(lines[4].ends_with("dmup list") && lines.len() == 5, "{audit}");
    let one = desk.ok(&["audit", "h49wkF5WXHb"]);
    assert!(one.starts_with("- OPERATION TIME: 2026-11-23T04:36:12"), "{one}");
    assert!(one.ends_with("tiup-dm list\n2026-11-23\tINFO\tdone\n"), "{one}");
    desk.refuses(&["audit", "../meta"], 3, &["../meta", "there is no such entry"]);

    // A failure is recorded with its words and its code.
    desk.dmup(&["display", "nosuch"]);
    let json: serde_json::Value =
        serde_json::from_str(&desk.ok(&["audit", "--format", "json"])).unwrap();
    let entries = json["entries"].as_array().unwrap();
    let failed = entries
        .iter()
        .find(|entry| entry["command"].as_str().unwrap().ends_with("display nosuch"))
        .unwrap();
    let text = desk.ok(&["audit", failed["id"].as_str().unwrap()]);
    assert!(text.contains("not exists") && text.ends_with("ended with 3\n"), "{text}");
}

#[test]
fn a_cluster_that_does_not_answer_is_displayed_all_the_same() {
    let desk = Desk::with_cluster("prod", SILENT);
    insta::assert_snapshot!(desk.ok(&["display", "prod"]));
    insta::assert_snapshot!("display_json", desk.ok(&["display", "prod", "--format", "json"]));
    assert_eq!(desk.ok(&["display", "prod", "--version"]), "v8.1.0\n");
}

#[test]
fn display_of_what_is_not_there_is_an_empty_table() {
    let desk = Desk::with_cluster("prod", SILENT);
    for words in [["-N", "1.2.3.4:5"], ["-R", "tikv"]] {
        let shown = desk.ok(&["display", "prod", words[0], words[1]]);
        assert!(shown.ends_with("Total nodes: 0\n"), "{shown}");
    }
    let one = desk.ok(&["display", "prod", "-R", "dm-worker", "-N", "127.0.0.77:3"]);
    assert!(one.ends_with("Total nodes: 1\n"), "{one}");
}

#[test]
fn a_host_that_is_silent_costs_its_column_and_is_named() {
    let desk = Desk::with_cluster("prod", SILENT);
    let output = desk.dmup(&["display", "prod", "--uptime"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(desk.told(&output.stdout).contains("Since"));
    let said = desk.told(&output.stderr);
    assert!(said.contains("since when is not known: 127.0.0.77"), "{said}");
    // Whoever asks what really runs must not take silence for an answer.
    let output = desk.dmup(&["display", "prod", "--verify"]);
    assert_eq!(output.status.code(), Some(7));
    let shown = desk.told(&output.stdout);
    assert_eq!(shown.matches(" unknown\n").count(), 3, "{shown}");
    assert!(shown.ends_with("Total nodes: 3\n"), "{shown}");
    let said = desk.told(&output.stderr);
    assert!(said.contains("what 3 of 3 nodes of prod run is not known"), "{said}");
    assert!(said.contains("127.0.0.77:4: its host cannot be reached"), "{said}");
    assert_eq!(said.matches("its host cannot be reached").count(), 1, "{said}");
    // The columns before are those of `display`, byte for byte.
    let plain = desk.ok(&["display", "prod"]);
    for (plain, verified) in plain.lines().zip(shown.lines()) {
        assert!(verified.starts_with(plain), "{verified}");
    }
}

#[test]
fn versions_of_a_silent_cluster_are_unknown_and_never_fine() {
    let desk = Desk::with_cluster("prod", SILENT);
    let output = desk.dmup(&["versions", "prod"]);
    assert_eq!(output.status.code(), Some(7));
    insta::assert_snapshot!(desk.told(&output.stdout), @r"
    ID            Role       Running  On Disk  Says Release  Says Commit  Recorded          Verdict
    --            ----       -------  -------  ------------  -----------  --------          -------
    127.0.0.77:1  dm-master  -        -        -             -            v8.1.0            unknown
    127.0.0.77:3  dm-worker  -        -        -             -            v8.1.0 (patched)  unknown
    127.0.0.77:4  grafana    -        -        -             -            -                 unknown
    ");
    let output = desk.dmup(&["versions", "prod", "-R", "dm-worker", "--format", "json"]);
    assert_eq!(output.status.code(), Some(7));
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&value["format"], &value["version"]), (&1.into(), &"v8.1.0".into()));
    let instances = value["instances"].as_array().unwrap();
    assert_eq!(instances.len(), 1);
    assert_eq!(instances[0]["verdict"], "unknown");
    assert_eq!(instances[0]["patched"], true);
    let codes: Vec<&str> = instances[0]["reasons"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["code"].as_str().unwrap())
        .collect();
    assert_eq!(codes, ["host-silent", "node-silent"]);
    desk.refuses(&["versions", "prod", "-N", "x:1"], 3, &["x:1", "known nodes"]);
}

#[test]
fn halves_that_tiup_left_are_told_beside_the_table() {
    let desk = Desk::with_cluster("prod", SILENT);
    let before = desk.ok(&["display", "prod"]);
    let folder = "tiup/storage/dm/clusters/prod";
    desk.put(&format!("{folder}/.scale-out.yaml"), b"{}");
    desk.put(&format!("{folder}/patch/dm-master-0123456.tar.gz"), b"x");
    desk.put(&format!("{folder}/patch/dm-worker-0123456.tar.gz"), b"x");
    let link = desk.path(&format!("{folder}/patch/dm-worker.tar.gz"));
    std::os::unix::fs::symlink("dm-worker-7654321.tar.gz", &link).unwrap();
    let output = desk.dmup(&["display", "prod"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(desk.told(&output.stdout), before);
    insta::assert_snapshot!(desk.told(&output.stderr), @r"
    note: DESK/tiup/storage/dm/clusters/prod/.scale-out.yaml is there: a scale-out of TiUP has begun and not ended; `meta.yaml` may name nodes that were never started; finish it with `tiup dm scale-out`, or remove the file and take off with `scale-in` what was never started
    note: DESK/tiup/storage/dm/clusters/prod/patch/dm-master-0123456.tar.gz is kept, and no dm-master.tar.gz leads to it: new instances of dm-master get the official package; `patch --overwrite` with the hotfix that new instances shall have makes both anew; without one, remove the file
    note: DESK/tiup/storage/dm/clusters/prod/patch/dm-worker.tar.gz leads to nothing: new instances get the official package, and TiUP says nothing of it; `patch --overwrite` with the hotfix that new instances shall have makes both anew; without one, remove the file
    ");
    // For scripts of TiUP the table is all that there is on standard output.
    let output = desk.called("tiup-dm", &["display", "prod"]).output().unwrap();
    assert_eq!(desk.told(&output.stdout), before);
    assert!(desk.told(&output.stderr).contains(".scale-out.yaml is there"));
    let output = desk.dmup(&["versions", "prod", "--format", "json"]);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let codes: Vec<&str> = value["unfinished"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["code"].as_str().unwrap())
        .collect();
    assert_eq!(codes, ["scale-out", "kept-without-link", "link-without-package"]);
}

#[test]
fn a_cluster_without_runs_has_an_empty_table_of_them() {
    let desk = Desk::new();
    insta::assert_snapshot!(desk.ok(&["runs", "prod"]), @r"
    Run  Kind  Nodes  State
    ---  ----  -----  -----
    ");
    assert_eq!(desk.ok(&["runs", "prod", "--format", "json"]), "{\"format\":1,\"runs\":[]}\n");
    desk.refuses(&["runs", "prod", "x"], 3, &["prod has no run x", "dmup runs prod"]);
    desk.refuses(&["runs", "show", "x"], 3, &["no cluster has a run x", "looked at: prod"]);
}

#[test]
fn a_package_shows_what_it_has() {
    let desk = Desk::empty();
    let package = desk.put(
        "hotfix.tar.gz",
        &archive_of(&[
            ("dm-master/dm-master", 0o755, &elf(62, b"m")),
            ("dm-master/conf/x.toml", 0o644, b"x"),
            ("dm-worker/dm-worker", 0o755, &elf(62, b"w")),
        ]),
    );
    let shown = desk.ok(&["package", "show", &package]);
    let digest = dmup_core::digest::Digest::of(&std::fs::read(&package).unwrap());
    insta::assert_snapshot!(shown.replace(digest.as_str(), "‹of the file›"), @r"
    Package: DESK/hotfix.tar.gz
    SHA-256: ‹of the file›
    Component  Arch   Build         Bytes  Files
    ---------  ----   -----         -----  -----
    dm-master  amd64  0fc3b591245c  65     2
    dm-worker  amd64  ccb555be49c0  65     1
    ");
    let json = desk.ok(&["package", "show", &package, "--format", "json"]);
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["components"]["dm-worker"]["arch"], "amd64");
    assert_eq!(value["components"]["dm-master"]["files"].as_array().unwrap().len(), 2);
    desk.refuses(&["package", "show", &desk.path("none")], 3, &["DESK/none: no such file"]);
}
