//! The tables, compared byte for byte with what TiUP and the manual print.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use dmup_core::display::{
    ClusterLine, Display, Header, Look, Row, audit_text, is_shown, list_json, list_text,
};
use dmup_core::topology::Meta;

const META: &str = include_str!("fixtures/tiup-1.16.5/meta.yaml");

/// What TiUP printed, without the prompt before and the exit code after.
fn printed(recording: &str) -> String {
    let from =
        if recording.starts_with('$') { recording.find('\n').map_or(0, |at| at + 1) } else { 0 };
    recording[from..].replace("[exit 0]\n", "")
}

fn display(nodes: &[&str], roles: &[&str], uptimes: &[u64]) -> Display {
    let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let meta = Meta::parse(META).unwrap();
    let states = ["Healthy", "Healthy|L", "Healthy", "Bound", "Bound", "Free", "Up"];
    let rows = meta
        .instances()
        .into_iter()
        .zip(states)
        .enumerate()
        .filter(|(_, (instance, _))| is_shown(instance, &own(nodes), &own(roles)))
        .map(|(at, (instance, state))| {
            Row::of(&meta.topology, &instance, state, uptimes.get(at).copied())
        })
        .collect();
    Display { header: Header::of(&"prod".parse().unwrap(), &meta, "/tls"), rows }
}

#[test]
fn the_table_is_tiups_byte_for_byte() {
    let expected = printed(include_str!("fixtures/tiup-1.16.5/display.txt"));
    assert_eq!(display(&[], &[], &[]).text(Look::default()), expected);
}

#[test]
fn a_role_or_nodes_narrow_the_table() {
    let expected = printed(include_str!("fixtures/tiup-1.16.5/display_role.txt"));
    assert_eq!(display(&[], &["dm-master"], &[]).text(Look::default()), expected);
    let expected = printed(include_str!("fixtures/tiup-1.16.5/display_node.txt"));
    let nodes = ["198.18.0.11:8262", "198.18.0.14:9090"];
    assert_eq!(display(&nodes, &[], &[]).text(Look::default()), expected);
    assert!(display(&["h:1"], &[], &[]).text(Look::default()).ends_with(
        "Deploy Dir\n--  ----  ----  -----  -------  ------  --------  ----------\nTotal nodes: 0\n"
    ));
}

#[test]
fn uptimes_get_a_column() {
    let expected = printed(include_str!("fixtures/tiup-1.16.5/display_uptime.txt"));
    let uptimes = [127, 121, 115, 244, 241, 238, 719];
    assert_eq!(
        display(&[], &[], &uptimes).text(Look { uptime: true, builds: false, colour: false }),
        expected
    );
}

#[test]
fn the_json_is_tiups_byte_for_byte() {
    let expected = printed(include_str!("fixtures/tiup-1.16.5/display_json.txt"));
    assert_eq!(display(&[], &[], &[]).json(), expected);
}

#[test]
fn the_manuals_example_after_a_hotfix_comes_out_as_printed() {
    let meta = Meta::parse(
        "user: tidb\ndm_version: v5.3.0\ntopology:\n    global: {user: tidb, deploy_dir: /home/tidb/dm/deploy, data_dir: /home/tidb/dm/data}\n    \
         master_servers:\n        - {host: 198.18.0.101, patched: true, arch: amd64, os: linux}\n    \
         worker_servers:\n        - {host: 198.18.0.101, patched: true, arch: amd64, os: linux}\n    \
         monitoring_servers:\n        - {host: 198.18.0.101, arch: amd64, os: linux}\n    \
         grafana_servers:\n        - {host: 198.18.0.101, arch: amd64, os: linux}\n    \
         alertmanager_servers:\n        - {host: 198.18.0.101, arch: amd64, os: linux}\n",
    )
    .unwrap();
    let states = ["Healthy|L", "Free", "Up", "Down", "Up"];
    let rows = meta
        .instances()
        .into_iter()
        .zip(states)
        .map(|(instance, state)| Row::of(&meta.topology, &instance, state, None))
        .collect();
    let display = Display { header: Header::of(&"dm-test".parse().unwrap(), &meta, "/tls"), rows };
    assert_eq!(
        display.text(Look::default()),
        include_str!("fixtures/tiup-1.16.5/display_manual_example_after.txt")
    );
    assert!(
        display.json().contains("\"grafana_urls\": [\n      \"http://198.18.0.101:3000\"\n    ]")
    );
}

#[test]
fn lists_look_like_tiups() {
    let line = ClusterLine {
        name: "prod".into(),
        user: "tidb".into(),
        version: "v8.1.0".into(),
        path: "/h/clusters/prod".into(),
        private_key: "/h/clusters/prod/ssh/id_rsa".into(),
    };
    assert_eq!(
        list_text(std::slice::from_ref(&line)),
        "Name  User  Version  Path              PrivateKey\n\
         ----  ----  -------  ----              ----------\n\
         prod  tidb  v8.1.0   /h/clusters/prod  /h/clusters/prod/ssh/id_rsa\n"
    );
    assert_eq!(
        list_json(&[line]),
        "{\"clusters\":[{\"name\":\"prod\",\"user\":\"tidb\",\"version\":\"v8.1.0\",\"path\":\"/h/clusters/prod\",\"private_key\":\"/h/clusters/prod/ssh/id_rsa\"}]}\n"
    );
}

#[test]
fn the_audit_table_is_tiups() {
    let expected = printed(include_str!("fixtures/tiup-1.16.5/audit.txt"));
    let entries: Vec<[String; 3]> = expected
        .lines()
        .skip(2)
        .map(|line| {
            let mut parts = line.splitn(3, "  ");
            [(); 3].map(|()| parts.next().unwrap().to_owned())
        })
        .collect();
    assert_eq!(audit_text(&entries), expected);
}
