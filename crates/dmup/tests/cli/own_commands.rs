//! `exec` on this machine (`--ssh none`) and on hosts that nobody answers on; refusals of `rotatessh`.

use crate::desk::{Desk, SILENT, me};

/// A cluster of two hosts, both this machine.
fn desk() -> Desk {
    let meta = SILENT.replace("user: tidb", &format!("user: {}", me())).replacen(
        "127.0.0.77",
        "127.0.0.78",
        1,
    );
    Desk::with_cluster("prod", &meta)
}

#[test]
fn a_command_of_the_operator_reaches_the_shell_of_each_host_as_it_was_typed() {
    let desk = desk();
    let run = |words: &[&str]| desk.ok(&[&["exec", "prod", "--ssh", "none"], words].concat());
    let typed = r#"printf '%s\n' "a  b" '$HOME' {{.Port}}; echo aside >&2"#;
    insta::assert_snapshot!(run(&["--command", typed]), @r"
    127.0.0.77: exit status 0
    stdout:
    a  b
    $HOME
    {{.Port}}
    stderr:
    aside
    127.0.0.78: exit status 0
    stdout:
    a  b
    $HOME
    {{.Port}}
    stderr:
    aside
    ");
    let one = run(&["--command", "true", "-N", "127.0.0.77"]);
    assert_eq!(one, "127.0.0.77: exit status 0\n");
    assert_eq!(run(&["--command", "true", "-R", "dm-master"]), "127.0.0.78: exit status 0\n");
    let json = run(&["--command", "echo hello", "-N", "127.0.0.77:3", "--format", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["hosts"][0]["stdout"], "hello\n");
    assert_eq!(json["hosts"].as_array().unwrap().len(), 1);
}

#[test]
fn a_command_that_fails_somewhere_fails() {
    let desk = desk();
    let words = ["exec", "prod", "--ssh", "none", "--command", "echo why; exit 3"];
    let output = desk.dmup(&words);
    assert_eq!(output.status.code(), Some(1));
    assert!(desk.told(&output.stdout).contains("127.0.0.77: exit status 3\nstdout:\nwhy\n"));
    let said = desk.told(&output.stderr);
    assert!(
        said.contains("2 of 2 host(s)") && said.contains("127.0.0.78: exit status 3"),
        "{said}"
    );
    // Longer than the shortest limit that can be typed; it is killed there, nothing waits for the sleep's own end.
    let slow = ["exec", "prod", "--ssh", "none", "--command", "sleep 60", "--wait-timeout", "1"];
    let output = desk.dmup(&slow);
    let said = desk.told(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("after 1 s"), "{said}");
}

#[test]
fn a_command_for_nobody_is_given_to_nobody() {
    let desk = desk();
    let touch = format!("touch {}", desk.path("touched"));
    let refuses = |words: &[&str], says: &[&str]| {
        desk.refuses(&[&["exec", "prod", "--command", &touch], words].concat(), 3, says);
        assert!(!std::fs::exists(desk.path("touched")).unwrap());
    };
    // One of two hosts is not there: the other is left alone, too.
    refuses(&[], &["not every host can be reached", "127.0.0.77:9", "nothing was touched"]);
    refuses(&["--ssh", "none", "-N", "10.9.9.9"], &["10.9.9.9", "known nodes"]);
    refuses(&["--ssh", "none", "-R", "tikv"], &["tikv"]);
}

#[test]
fn no_key_is_made_for_a_cluster_that_cannot_learn_it() {
    let desk = desk();
    desk.refuses(&["rotatessh", "prod"], 3, &["aborted by the operator"]);
    desk.refuses(&["rotatessh", "prod", "--yes"], 3, &["127.0.0.77:9", "nothing was touched"]);
    desk.refuses(&["rotatessh", "prod", "--yes", "--ssh", "none"], 3, &["reached without SSH"]);
}
