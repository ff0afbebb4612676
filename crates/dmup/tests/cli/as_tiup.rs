//! Called as `tiup-dm` or `tiup`: what scripts written for TiUP 1.16.5 rely on.

use std::process::Output;

use crate::desk::{Desk, META, SILENT, archive_of, elf, me};

fn tiup_dm(desk: &Desk, words: &[&str]) -> Output {
    desk.called("tiup-dm", words).output().unwrap()
}

/// It ends with 1 and says, as recorded from TiUP: nothing, `Error: ` and this, nothing, where the log lies.
#[track_caller]
fn fails(desk: &Desk, words: &[&str], error: &str) {
    let output = tiup_dm(desk, words);
    let said = desk.told(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{words:?}\n{said}");
    assert!(said.starts_with(&format!("\nError: {error}")), "{words:?}\n{said}");
    let last = said.lines().last().unwrap_or_default();
    let log = last
        .strip_prefix("Verbose debug logs has been written to DESK/")
        .and_then(|rest| rest.strip_suffix('.'))
        .unwrap_or_else(|| panic!("{words:?}\n{said}"));
    assert!(log.starts_with("tiup/logs/tiup-dm-debug-20") && log.ends_with(".log"), "{log}");
    let written = std::fs::read_to_string(desk.path(log)).unwrap();
    assert!(written.contains(&words.join(" ")), "{written}");
}

#[test]
fn a_wrong_number_of_arguments_is_answered_with_help_and_0() {
    let desk = Desk::new();
    for words in [
        &[][..],
        &["patch"],
        &["patch", "prod"],
        &["display"],
        &["start", "prod", "more"],
        &["meta"],
        &["--help"],
    ] {
        let output = tiup_dm(&desk, words);
        let help = desk.told(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{words:?}\n{}", desk.told(&output.stderr));
        let of = words.first().filter(|word| !word.starts_with('-')).copied().unwrap_or_default();
        assert!(help.contains(format!("Usage: tiup-dm {of}").trim_end()), "{words:?}\n{help}");
    }
}

#[test]
fn whatever_goes_wrong_ends_with_1_and_the_lines_that_scripts_look_for() {
    let desk = Desk::new();
    let package =
        desk.put("hotfix.tar.gz", &archive_of(&[("dm-worker/dm-worker", 0o755, &elf(62, b"w"))]));
    fails(&desk, &["display", "nosuch"], "dm cluster `nosuch` not exists");
    fails(&desk, &["frobnicate"], "unknown command \"frobnicate\" for \"tiup-dm\"\n");
    fails(&desk, &["display", "prod", "--frobnicate"], "unexpected argument '--frobnicate'");
    fails(&desk, &["deploy", "prod", "v8.1.0"], "");
    fails(&desk, &["scale-in", "prod"], "");
    fails(&desk, &["meta", "backup"], "");
    fails(
        &desk,
        &["patch", "prod", &package, "--yes"],
        "the flag -R or -N must be specified at least one\n",
    );
    fails(&desk, &["patch", "prod", &package, "-N", "1.2.3.4:1", "--yes"], "");
    fails(&desk, &["exec", "prod", "--command", "rm {{.DataDir}}"], "dmup puts nothing into");
    fails(&desk, &["display", "prod", "--ssh-proxy-host", "a b"], "--ssh-proxy-host: ");

    let output = tiup_dm(&desk, &["display", "nosuch", "--format", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let said: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert!(said["error"].as_str().unwrap().starts_with("dm cluster `nosuch` not exists"));
    assert_eq!(said["exit_code"], 1);
    // The log of commands has it under TiUP's name, with the code that the caller saw.
    let audit = desk.ok(&["audit"]);
    let line = audit.lines().find(|line| line.ends_with("display nosuch")).unwrap();
    assert!(line.contains("/bin/tiup-dm display"), "{line}");
    let text = desk.ok(&["audit", line.split(' ').next().unwrap()]);
    assert!(text.ends_with("ended with 1\n"), "{text}");
}

#[test]
fn tiup_dm_is_two_words_and_tiup_alone_is_nobody() {
    let desk = Desk::with_cluster("prod", SILENT);
    let tiup = |words: &[&str]| desk.called("tiup", words).output().unwrap();
    let output = tiup(&["dm", "display", "prod"]);
    assert_eq!(output.status.code(), Some(0));
    let said = desk.told(&output.stdout);
    assert_eq!(said, desk.ok(&["display", "prod"]));
    assert!(said.contains("dm-worker (patched)") && said.ends_with("Total nodes: 3\n"), "{said}");
    let output = tiup(&["dm:v1.16.5", "list"]);
    assert_eq!(desk.told(&output.stdout), desk.ok(&["list"]));
    for words in [&[][..], &["cluster", "list"], &["--version"]] {
        let output = tiup(words);
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        assert!(desk.told(&output.stderr).contains("type `tiup dm …`"));
    }
}

#[test]
fn yes_from_a_pipe_answers_and_sentences_are_on_standard_output() {
    let desk =
        Desk::with_cluster("prod", &SILENT.replace("user: tidb", &format!("user: {}", me())));
    let topology = desk.profile().open(&"prod".parse().unwrap()).unwrap().1.topology.render();
    let file = desk.put("edited.yaml", topology.replace("ssh_port: 9", "ssh_port: 10").as_bytes());
    let edit = ["edit-config", "prod", "--topology-file", &file];
    let refused = tiup_dm(&desk, &edit);
    assert_eq!(refused.status.code(), Some(1), "nobody answered");
    let agreed = desk.called("tiup-dm", &edit).write_stdin("y\n".repeat(100)).output().unwrap();
    assert_eq!(agreed.status.code(), Some(0), "{}", desk.told(&agreed.stderr));
    assert!(desk.told(&agreed.stdout).contains("reload"), "{}", desk.told(&agreed.stdout));
    // Where the typed answer must be a sentence, yes is not enough, as with TiUP.
    let destroy = ["destroy", "prod", "--ssh", "none"];
    let kept = desk.called("tiup-dm", &destroy).write_stdin("y\n".repeat(100)).output().unwrap();
    assert_eq!(kept.status.code(), Some(1));
}

#[test]
fn a_command_under_tiups_name_does_not_take_itself_for_tiup() {
    let desk =
        Desk::with_cluster("prod", &SILENT.replace("user: tidb", &format!("user: {}", me())));
    let output = tiup_dm(&desk, &["enable", "prod", "-N", "127.0.0.77:3"]);
    let said = desk.told(&output.stderr);
    // The host is not there; what comes before that has passed.
    assert!(said.contains("127.0.0.77:9") && !said.contains("TiUP is at work"), "{said}");
}

#[test]
fn an_entry_of_a_script_is_found_by_its_mark() {
    let desk = Desk::with_cluster("prod", META);
    let list = |mark: &str| desk.command(&["list"]).env("TIUP_AUDIT_ID", mark).output().unwrap();
    assert!(list("job-7").status.success());
    let audit = desk.ok(&["audit"]);
    let line = audit.lines().find(|line| line.contains("_job-7")).unwrap();
    assert!(
        desk.ok(&["audit", line.split(' ').next().unwrap()]).contains("ended with 0"),
        "{line}"
    );
    // One that could lead elsewhere is refused before anything is done.
    let refused = list("../x");
    let said = desk.told(&refused.stderr);
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(2), 0), "{said}");
    assert!(said.contains("TIUP_AUDIT_ID") && said.contains("only letters, digits"), "{said}");
}
