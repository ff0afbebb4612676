//! Topologies as operators and TiUP write them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use dmup_core::instance::Role;
use dmup_core::topology::{Meta, Neighbour, Topology, check_edit};

const META: &str = include_str!("fixtures/tiup-1.16.5/meta.yaml");
const TOPOLOGY: &str = include_str!("fixtures/tiup-1.16.5/topology.yaml");

const FULL: &str = include_str!("fixtures/full.yaml");

fn error_of(text: &str) -> String {
    let error = Topology::parse(text).unwrap_err();
    format!("{error}{}", error.help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default())
}

#[test]
fn a_meta_file_of_tiup_is_written_back_byte_for_byte() {
    assert_eq!(Meta::parse(META).unwrap().render(), META);
}

#[test]
fn a_topology_becomes_the_meta_file_that_tiup_makes_of_it() {
    let mut topology = Topology::parse(TOPOLOGY).unwrap();
    for host in ["198.18.0.11", "198.18.0.12", "198.18.0.13", "198.18.0.14"] {
        topology.set_platform(host, "Linux", "x86_64");
    }
    topology.expand_dirs();
    let ids: Vec<String> = topology
        .instances()
        .iter()
        .filter(|instance| instance.role.is_dm())
        .map(|instance| instance.id.to_string())
        .collect();
    topology.mark_patched(&ids, true);
    let meta = Meta { user: "tidb".parse().unwrap(), version: "v8.1.0".parse().unwrap(), topology };
    assert_eq!(meta.render(), META);
}

#[test]
fn every_key_that_tiup_knows_survives_a_round_trip() {
    let first = Topology::parse(FULL).unwrap().render();
    let second = Topology::parse(&first).unwrap().render();
    assert_eq!(first, second);
    insta::assert_snapshot!(first);
}

#[test]
fn instances_have_absolute_dirs_and_tiups_names() {
    let instances = Topology::parse(TOPOLOGY).unwrap().instances();
    assert_eq!(instances.len(), 7);
    let worker = &instances[3];
    assert_eq!(worker.role, Role::DmWorker);
    assert_eq!(worker.id.as_str(), "198.18.0.11:8262");
    assert_eq!(worker.name.as_str(), "dm-198.18.0.11-8262");
    assert_eq!(worker.unit.as_str(), "dm-worker-8262.service");
    assert_eq!(worker.deploy_dir, "/home/tidb/deploy/dm-worker-8262");
    assert_eq!(worker.data_dirs, ["/home/tidb/deploy/dm-worker-8262/data"]);
    assert_eq!(worker.log_dir, "/home/tidb/deploy/dm-worker-8262/log");
    assert_eq!(worker.binary(), "/home/tidb/deploy/dm-worker-8262/bin/dm-worker/dm-worker");
    assert_eq!(instances[0].ports, [8261, 8291]);
}

#[test]
fn unknown_keys_are_errors_that_name_the_nearest_one() {
    assert_eq!(
        error_of("master_servers:\n  - host: h1\n    deploy_dri: /d\n"),
        "line 3, column 5: unknown key `deploy_dri` in master_servers (did you mean `deploy_dir`?)"
    );
    assert_eq!(
        error_of("master_server:\n  - host: h1\n"),
        "line 1, column 1: unknown key `master_server` in a topology (did you mean `master_servers`?)"
    );
}

#[test]
fn keys_of_another_tiup_in_meta_are_ignored() {
    let text = META.replace("    global:\n", "    global:\n        from_the_future: 1\n");
    assert_eq!(Meta::parse(&text).unwrap().render(), META);
}

#[test]
fn conflicts_are_found_with_both_sides_and_a_line() {
    assert_eq!(
        error_of("master_servers:\n  - host: h1\nworker_servers:\n  - host: h1\n    port: 8291\n"),
        "line 5, column 11: port conflict for '8291' between 'master_servers:h1.peer_port' and 'worker_servers:h1.port'"
    );
    assert_eq!(
        error_of(
            "master_servers:\n  - host: h1\n    deploy_dir: /d\nworker_servers:\n  - host: h1\n    deploy_dir: /d\n"
        ),
        "line 6, column 17: directory conflict for '/d' between 'master_servers:h1.deploy_dir' and 'worker_servers:h1.deploy_dir'"
    );
    assert_eq!(
        error_of(
            "master_servers:\n  - host: h1\n    arch: arm64\nworker_servers:\n  - host: h1\n    arch: amd64\n"
        ),
        "line 6, column 11: platform mismatch for 'h1' between 'master_servers:/arm64' and 'worker_servers:/amd64' (one host has one platform: give it to all of its servers or to none)"
    );
    assert_eq!(
        error_of("master_servers:\n  - host: h1\n    name: a\n  - host: h2\n    name: a\n"),
        "line 5, column 11: name 'a' is given to both h1:8261 and h2:8261"
    );
    assert_eq!(
        error_of("master_servers:\n  - port: 1\n"),
        "line 2, column 5: `master_servers` contains empty host field"
    );
}

#[test]
fn nothing_unsafe_gets_into_a_path_or_a_script() {
    for bad in [
        "global: {user: 'a b'}",
        "global: {deploy_dir: '/d/$(x)'}",
        "global: {deploy_dir: '/d/../x'}",
        "global: {resource_control: {memory_limit: \"1\\nExecStart=/x\"}}",
        "master_servers: [{host: 'h1; x'}]",
        "master_servers: [{host: h1, deploy_dir: '/d e'}]",
        "master_servers: [{host: h1, name: 'a\"b'}]",
        "master_servers: [{host: h1, numa_node: '0 x'}]",
        "monitoring_servers: [{host: h1, additional_args: [\"a\\nb\"]}]",
        "grafana_servers: [{host: h1, password: \"a\\nb\"}]",
    ] {
        let error = Topology::parse(bad).unwrap_err();
        assert!(error.place.is_some(), "{bad}: {error}");
    }
}

#[test]
fn values_of_the_wrong_kind_are_errors_at_their_place() {
    assert_eq!(
        error_of("global:\n  ssh_port: '22'\n"),
        "line 2, column 13: expected a port (a number without quotes), found `22`"
    );
    assert_eq!(error_of("master_servers: x\n"), "line 1, column 17: expected a list, found `x`");
    assert_eq!(
        error_of("global:\n  ssh_port: 70000\n"),
        "line 2, column 13: expected a port from 0 to 65535, found `70000`"
    );
    assert_eq!(
        error_of("global:\n\tuser: a\n").split(':').next().unwrap().split(',').next().unwrap(),
        "line 2"
    );
}

#[test]
fn a_scale_out_inherits_and_is_checked_against_the_cluster() {
    let cluster = Meta::parse(META).unwrap().topology;
    let new =
        Topology::parse_scale_out("worker_servers:\n  - host: 198.18.0.15\n", &cluster).unwrap();
    let mut merged = cluster.merged(&new);
    merged.expand_dirs();
    assert_eq!(merged.worker_servers[3].deploy_dir, "/home/tidb/deploy/dm-worker-8262");
    let error = Topology::parse_scale_out("worker_servers:\n  - host: 198.18.0.13\n", &cluster)
        .unwrap_err();
    assert!(error.message.contains("port conflict for '8262'"), "{error}");
    let error = Topology::parse_scale_out("global: {user: x}\n", &cluster).unwrap_err();
    assert!(error.message.contains("`global`"), "{error}");
    assert_eq!(merged.without(&["198.18.0.15:8262"]), cluster);
}

#[test]
fn a_second_cluster_must_not_share_ports_or_dirs_of_a_machine() {
    let cluster = Meta::parse(META).unwrap().topology;
    let mut new = Topology::parse("master_servers:\n  - host: 198.18.0.11\n").unwrap();
    new.expand_dirs();
    let beside = [Neighbour { cluster: "prod", topology: &cluster }];
    let error = new.check_beside(&beside).unwrap_err();
    assert!(error.message.contains("port conflict for '8261' on 198.18.0.11"), "{error}");
    let mut new = Topology::parse(
        "global: {deploy_dir: /other}\nmaster_servers:\n  - {host: 198.18.0.11, port: 9261, peer_port: 9291}\n",
    )
    .unwrap();
    new.expand_dirs();
    new.check_beside(&beside).unwrap();
}

#[test]
fn edits_may_change_settings_but_not_identities() {
    let old = Meta::parse(META).unwrap().topology;
    let mut new = old.clone();
    new.global.listen_host = "127.0.0.1".to_owned();
    new.master_servers[0].config =
        Topology::parse("master_servers: [{host: h, config: {log-level: debug}}]")
            .unwrap()
            .master_servers[0]
            .config
            .clone();
    check_edit(&old, &new).unwrap();
    new.worker_servers[1].name = "other".to_owned();
    new.worker_servers[0].patched = false;
    let error = check_edit(&old, &new).unwrap_err();
    assert_eq!(
        error.message,
        "immutable field changed: worker_servers.0.patched from true to nothing; \
         worker_servers.1.name from 'dm-198.18.0.12-8262' to 'other'"
    );
}

mod any_text {
    use dmup_core::topology::{Meta, Topology};
    use proptest::prelude::*;

    use super::META;

    /// Runs everything that may be done with a topology; only panics fail.
    fn exercise(text: &str) {
        if let Ok(meta) = Meta::parse(text) {
            let again = Meta::parse(&meta.render()).unwrap();
            assert_eq!(again.render(), meta.render());
            assert_eq!(again.instances(), meta.instances());
        }
        if let Ok(mut topology) = Topology::parse(text) {
            topology.expand_dirs();
            drop(topology.instances());
        }
    }

    proptest! {
        #[test]
        fn a_damaged_file_is_an_error_never_a_crash(
            at in 0..META.len(), length in 0..40_usize, put in "[ -~\n\t]{0,12}",
        ) {
            let end = (at + length).min(META.len());
            exercise(&format!("{}{put}{}", &META[..at], &META[end..]));
        }

        #[test]
        fn any_text_is_an_error_never_a_crash(text in "[ -~\n\t:\\-äπ&*]{0,200}") {
            exercise(&text);
        }
    }
}
