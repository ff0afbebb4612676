//! `replay`: a recorded command once more.

use crate::desk::{Desk, SILENT};

/// An entry of this id with these words, as TiUP writes its first line.
fn put(desk: &Desk, id: &str, line: &str) {
    let text = format!("{line}\n2026-11-23T04:36:12\tINFO\tdone\n");
    desk.put(&format!("tiup/storage/dm/audit/{id}"), text.as_bytes());
}

#[test]
fn a_recorded_command_is_given_again_with_its_own_words() {
    let desk = Desk::with_cluster("prod", SILENT);
    let topology = desk.profile().open(&"prod".parse().unwrap()).unwrap().1.topology.render();
    let edited = format!("server_configs:\n  worker:\n    log-level: debug\n{topology}");
    let file = desk.put("my topology+1.yaml", edited.as_bytes());
    desk.ok(&["edit-config", "prod", "--topology-file", &file, "--yes"]);
    let after = desk.state();
    let meta = desk.path("tiup/storage/dm/clusters/prod/meta.yaml");
    std::fs::write(&meta, SILENT).unwrap();
    let audit = desk.ok(&["audit"]);
    let id = audit.lines().last().unwrap().split(' ').next().unwrap();

    let asked = desk.dmup(&["replay", id]);
    let said = desk.told(&asked.stderr);
    assert_eq!(asked.status.code(), Some(3), "nobody answered: {said}");
    let line = "edit-config prod --topology-file DESK/my topology+1.yaml --yes";
    assert!(said.contains(line) && said.contains("[y/N]"), "{said}");
    assert_eq!(std::fs::read_to_string(&meta).unwrap(), SILENT);

    let agreed = desk.command(&["replay", id]).write_stdin("yes\n").output().unwrap();
    assert!(agreed.status.success(), "{}", desk.told(&agreed.stderr));
    assert_eq!(std::fs::read(&meta).unwrap(), after[&meta]);
    // What was done is in the log as what was typed.
    assert!(desk.ok(&["audit"]).contains(&format!("dmup replay {id}\n")));
}

#[test]
fn what_tiup_did_is_replayed_too_and_ends_as_the_command_does() {
    let desk = Desk::new();
    put(&desk, "h49wkF5WXHb", "%2Froot%2F.tiup%2Fcomponents%2Fdm%2Fv1.16.5%2Ftiup-dm list");
    assert_eq!(desk.ok(&["replay", "h49wkF5WXHb", "--yes"]), desk.ok(&["list"]));
    put(&desk, "h49wkDDNxb1", "tiup-dm display nosuch");
    desk.refuses(&["replay", "h49wkDDNxb1", "--yes"], 3, &["dm cluster `nosuch` not exists"]);
}

#[test]
fn what_is_no_command_to_give_again_is_refused() {
    let desk = Desk::new();
    put(&desk, "h49wkF5WXHb", "tiup-dm replay h49wkDDNxb1 --yes");
    put(&desk, "h49wkDDNxb1", "tiup-dm frobnicate");
    put(&desk, "h49wkDdCNBW", "");
    let refuses = |id: &str, says: &[&str]| desk.refuses(&["replay", id, "--yes"], 3, says);
    refuses("h49wkF5WXHb", &["h49wkF5WXHb is a replay itself", "replay what it replayed"]);
    refuses("h49wkDDNxb1", &["`tiup-dm frobnicate` again", "unrecognized subcommand"]);
    refuses("h49wkDdCNBW", &["nothing was touched"]);
    refuses("../../clusters/prod/meta.yaml", &["there is no such entry", "dmup audit"]);
}
