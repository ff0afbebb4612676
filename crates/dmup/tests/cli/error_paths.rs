//! Error paths that TiUP 1.16.5 has and that no other test takes, command by command; no host is needed for them.
//!
//! Where the others are:
//!
//! | command | error path: test |
//! |---|---|
//! | all | words that clap refuses, a cluster that is not there: `refusals`, `as_tiup`; the log beside an error: `as_tiup` |
//! | `deploy` | topology that cannot be read, is none, has conflicts within itself or with another cluster, a name that is taken, no package, hosts that do not answer, a folder that cannot be made, a unit that cannot be enabled: `refusals`, `deploying`, `dmup-core/tests/topology.rs`; what only hosts can tell: `lab/tests/bad_input_hosts.rs` |
//! | `start`, `stop`, `restart` | a unit that does not start, a port that stays closed: `deploying`, `lab/tests/bad_input_hosts.rs`, where somebody else has the port, too; exporters: `deploying`, `lab/tests/exporters_hosts.rs` |
//! | `list`, `display`, `audit`, `audit cleanup`, `template` | `showing`, `state` |
//! | `destroy` | an answer that is no: `refusals`, `as_tiup` |
//! | `exec`, `rotatessh` | `own_commands`; a rotation that was cut off: `lab/tests/scale_hosts.rs` |
//! | `edit-config`, `meta backup`, `meta restore` | `state` |
//! | `replay` | `replaying` |
//! | `reload` | a file with which a node does not start: `lab/tests/manual_hosts.rs` |
//! | `upgrade` | an older version, no package: `refusals`; a version that fails: `lab/tests/upgrade_hosts.rs` |
//! | `patch` | `refusals`, `side_by_side`; what only hosts can tell, `--offline` of a cluster that runs: `lab/tests/bad_input_hosts.rs`, `manual_hosts.rs` |
//! | `scale-out` | ports that are taken: `lab/tests/scale_hosts.rs`; a user or a folder that cannot be made: `lab/tests/bad_input_hosts.rs` |
//! | `scale-in`, `prune` | members that must stay, a host that is gone: `lab/tests/scale_hosts.rs`; members that DM does not let go: `members`, `lab/tests/scale_hosts.rs` |

use crate::desk::{Desk, SILENT};

/// Words of every command that names a cluster, with that name.
fn commands(name: &str) -> Vec<Vec<&str>> {
    let with = |words: &'static [&'static str]| {
        words.iter().map(|word| if *word == "CLUSTER" { name } else { word }).collect()
    };
    [
        &["start", "CLUSTER"][..],
        &["stop", "CLUSTER", "--yes"],
        &["restart", "CLUSTER", "--yes"],
        &["restart", "CLUSTER", "--fast", "--yes"],
        &["destroy", "CLUSTER", "--yes"],
        &["exec", "CLUSTER"],
        &["edit-config", "CLUSTER", "--topology-file", "t.yaml", "--yes"],
        &["display", "CLUSTER"],
        &["prune", "CLUSTER"],
        &["reload", "CLUSTER", "--yes"],
        &["upgrade", "CLUSTER", "v8.5.0", "--yes"],
        &["patch", "CLUSTER", "fix.tar.gz", "-R", "dm-worker", "--yes"],
        &["scale-out", "CLUSTER", "t.yaml", "--yes"],
        &["scale-in", "CLUSTER", "-N", "127.0.0.77:3", "--yes"],
        &["enable", "CLUSTER"],
        &["disable", "CLUSTER"],
        &["meta", "backup", "CLUSTER"],
        &["rotatessh", "CLUSTER", "--yes"],
    ]
    .map(with)
    .into()
}

#[test]
fn a_name_that_no_cluster_can_have_is_refused_by_every_command() {
    let desk = Desk::new();
    for name in ["a/b", "..", "pr od"] {
        let mut all = commands(name);
        all.push(vec!["deploy", name, "v8.1.0", "t.yaml", "--yes"]);
        all.push(vec!["meta", "restore", name, "backup.tar.gz", "--yes"]);
        for words in all {
            desk.refuses(&words, 2, &[&format!("`{name}` is no cluster name")]);
        }
    }
}

#[test]
fn a_cluster_that_is_not_there_is_told_by_every_command() {
    let desk = Desk::with_cluster("prod", SILENT);
    for words in commands("nosuch") {
        desk.refuses(&words, 3, &["dm cluster `nosuch` not exists (there are: prod)"]);
    }
}

#[test]
fn a_node_or_role_that_is_not_there_is_told_by_every_command_that_takes_one() {
    let desk = Desk::with_cluster("prod", SILENT);
    let known = "known nodes: 127.0.0.77:1, 127.0.0.77:3, 127.0.0.77:4";
    for command in ["start", "stop", "restart", "reload", "enable", "disable"] {
        let with = |flag, value| [command, "prod", flag, value, "--yes"];
        desk.refuses(&with("-N", "127.0.0.77:3,x:1"), 3, &["no such node: x:1", known]);
        desk.refuses(
            &with("-R", "tikv"),
            3,
            &["not valid role: tikv, should be one of: [dm-master"],
        );
        desk.refuses(
            &with("-R", "prometheus"),
            3,
            &["no instance found on specified role([prometheus])"],
        );
    }
    desk.refuses(&["scale-in", "prod", "-N", "x:1", "--yes"], 3, &["no such node: x:1", known]);
    desk.refuses(&["destroy", "prod", "--retain-role-data", "tikv", "--yes"], 3, &["tikv"]);
    // What is misspelt would be removed with its data.
    for node in ["127.0.0.78", "127.0.0.77:33"] {
        let words = ["destroy", "prod", "--retain-node-data", node, "--yes", "--force"];
        desk.refuses(&words, 3, &[&format!("no such node: {node}"), known, "nothing was touched"]);
    }
}

#[test]
fn half_of_a_scale_out_of_tiup_is_in_the_way_of_what_tiup_refuses_then_and_more() {
    let desk = Desk::with_cluster("prod", SILENT);
    desk.put("tiup/storage/dm/clusters/prod/.scale-out.yaml", b"{}");
    let says =
        ["locked by an unfinished scale-out of TiUP", ".scale-out.yaml exists", "remove the file"];
    // TiUP lets these go on, too; `edit-config` and `prune`, which it lets go on as well, are refused here.
    let goes_on = ["destroy", "exec", "display", "enable", "disable", "rotatessh"];
    for words in commands("prod").into_iter().filter(|words| !goes_on.contains(&words[0])) {
        desk.refuses(&words, 3, &says);
    }
}

#[test]
fn a_deploy_or_scale_out_that_cannot_log_in_or_is_too_old_says_so() {
    let desk = Desk::with_cluster("prod", SILENT);
    let file = desk.put("t.yaml", b"worker_servers:\n  - host: 127.0.0.78\n");
    for command in [&["deploy", "new", "v8.1.0", &file][..], &["scale-out", "prod", &file]] {
        let with = |more: &[&'static str]| [command, more, &["--yes"]].concat();
        desk.refuses(&with(&[]), 3, &["there is nothing to log in with", "-i", "ssh-agent", "-p"]);
        desk.refuses(&with(&["-i", "nokey"]), 3, &["read the identity file", "nokey"]);
    }
    desk.refuses(
        &["deploy", "new", "v1.0.7", &file, "--yes"],
        3,
        &["v1.0.7", "v2.0.0 is the first"],
    );
    desk.refuses(&["deploy", "new", "latest", &file, "--yes"], 2, &["`latest` is no version"]);
}

#[test]
fn a_scale_out_brings_instances_and_nothing_else() {
    let desk = Desk::with_cluster("prod", SILENT);
    let scale_out = |text: &str, says: &[&str]| {
        let file = desk.put("more.yaml", text.as_bytes());
        desk.refuses(&["scale-out", "prod", &file, "--yes"], 3, says);
    };
    let worker = "worker_servers:\n  - {host: 127.0.0.78}\n";
    for section in [
        "global: {user: other}",
        "monitored: {node_exporter_port: 1}",
        "server_configs: {master: {x: 1}}",
    ] {
        let name = section.split(':').next().unwrap();
        scale_out(
            &format!("{section}\n{worker}"),
            &[&format!("`{name}` cannot be changed by a scale-out"), "edit-config"],
        );
    }
    scale_out("worker_server: []\n", &["unknown key", "did you mean `worker_servers`?"]);
    scale_out(
        "worker_servers:\n  - {host: 127.0.0.77, port: 3}\n",
        &["port conflict for '3'", "127.0.0.77"],
    );
    let taken = "worker_servers:\n  - {host: 127.0.0.77, port: 5, deploy_dir: /nowhere/w}\n";
    scale_out(taken, &["directory conflict for '/nowhere/w'"]);
    desk.refuses(&["scale-out", "prod", "none.yaml", "--yes"], 3, &["read the topology none.yaml"]);
}

#[test]
fn the_last_master_stays_and_what_is_forced_off_takes_a_sentence() {
    let desk = Desk::with_cluster("prod", SILENT);
    for more in [&[][..], &["--force"]] {
        let words =
            [&["scale-in", "prod", "-N", "127.0.0.77:1,127.0.0.77:3", "--yes"], more].concat();
        desk.refuses(&words, 3, &["cannot delete all dm-master servers"]);
    }
    desk.refuses(
        &["scale-in", "prod", "-N", "127.0.0.77:3", "--yes"],
        3,
        &["its host cannot be reached", "DM does not answer", "--force"],
    );
    let before = desk.state();
    let sentence = "Yes, I know my data might be lost.\n";
    for answer in ["y\ny\n".to_owned(), format!("{sentence}n\n"), sentence.to_owned()] {
        let words = ["scale-in", "prod", "-N", "127.0.0.77:3", "--force"];
        let output = desk.command(&words).write_stdin(answer.as_str()).output().unwrap();
        let said = desk.told(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{answer:?}\n{said}");
        assert!(said.contains("aborted by the operator"), "{answer:?}\n{said}");
        assert_eq!(
            said.contains("will delete the 127.0.0.77:3 nodes"),
            answer.starts_with("Yes"),
            "{said}"
        );
    }
    assert_eq!(desk.state(), before);
}

#[test]
fn a_cluster_that_is_silent_is_pruned_of_nobody_and_takes_no_order() {
    let desk = Desk::with_cluster("prod", SILENT);
    desk.refuses(&["prune", "prod"], 3, &["look at DM on every dm-master", "127.0.0.77:1"]);
    desk.refuses(&["destroy", "prod", "--yes"], 3, &["not every host can be reached", "--force"]);
    desk.refuses(&["reload", "prod", "--yes"], 3, &["127.0.0.77"]);
    for (words, says) in [
        (&["start", "prod"][..], "start dm-master-1.service on 127.0.0.77"),
        (&["stop", "prod", "--yes"], "stop grafana-4.service on 127.0.0.77"),
        (&["enable", "prod"], "enable dm-master-1.service, dm-worker-3.service, grafana-4.service"),
        (&["disable", "prod"], "disable dm-master-1.service, dm-worker-3.service"),
    ] {
        desk.refuses(words, 1, &[says, "127.0.0.77:9", "dmup display"]);
    }
    let all_at_once = ["restart", "prod", "--fast", "--yes"];
    desk.refuses(&all_at_once, 3, &["not every host can be worked on", "127.0.0.77:9"]);
}

#[test]
fn what_is_asked_before_nodes_are_touched_takes_no_for_an_answer() {
    let desk = Desk::with_cluster("prod", SILENT);
    for words in [
        &["restart", "prod", "--fast"][..],
        &["stop", "prod", "-R", "grafana"],
        &["rotatessh", "prod"],
    ] {
        desk.refuses(
            words,
            3,
            &["Do you want to continue? [y/N]", "aborted by the operator (answer ``)"],
        );
    }
}
