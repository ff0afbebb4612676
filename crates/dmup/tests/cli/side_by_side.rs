//! What TiUP 1.16.5 was recorded to print, beside what dmup prints as `tiup-dm` for the same state.
//!
//! `display` and `meta.yaml` are compared in dmup-core, where no cluster has to run. Where the texts differ,
//! `docs/differences.md` says so.

use crate::desk::{Desk, META, archive_of, elf};

/// A recording: the line typed, standard output, the exit code, the first line of standard error that is not empty.
struct Recording {
    words: Vec<String>,
    stdout: String,
    code: i32,
    error: Option<String>,
}

fn read(recording: &str) -> Recording {
    let (typed, rest) = recording.split_once('\n').unwrap();
    let (stdout, rest) = rest.rsplit_once("[exit ").unwrap();
    let (code, stderr) = rest.split_once(']').unwrap();
    let error = stderr.lines().find(|line| line.starts_with("Error: "));
    Recording {
        words: typed.split(' ').skip(2).map(ToOwned::to_owned).collect(),
        stdout: stdout.to_owned(),
        code: code.parse().unwrap(),
        error: error.map(ToOwned::to_owned),
    }
}

/// The desk of the recordings: the cluster `prod`, and the packages that were typed.
fn desk() -> Desk {
    let desk = Desk::with_cluster("prod", META);
    let (master, worker) = (elf(62, b"m"), elf(62, b"w"));
    let worker = ("dm-worker/dm-worker", 0o755, worker.as_slice());
    desk.put("pk/hf-worker.tar.gz", &archive_of(&[worker]));
    let master = ("dm-master/dm-master", 0o755, master.as_slice());
    desk.put("pk/hf-both.tar.gz", &archive_of(&[worker, master]));
    desk
}

fn said(desk: &Desk, recording: &Recording) -> (i32, String, String) {
    let words: Vec<&str> = recording.words.iter().map(String::as_str).collect();
    let output = desk.called("tiup-dm", &words).output().unwrap();
    let home = desk.path("tiup");
    let plain = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&home, "$TIUP_HOME");
    (output.status.code().unwrap(), plain(&output.stdout), plain(&output.stderr))
}

#[test]
fn errors_end_with_the_recorded_code_and_say_what_was_recorded_or_what_is_listed_as_different() {
    // The second is what dmup says instead; none: the same words.
    for (recording, instead) in [
        (include_str!("fixtures/tiup-1.16.5/err_cluster_missing.txt"), None),
        (include_str!("fixtures/tiup-1.16.5/err_unknown_command.txt"), None),
        (include_str!("fixtures/tiup-1.16.5/err_patch_neither.txt"), None),
        (include_str!("fixtures/tiup-1.16.5/err_patch_badrole.txt"), None),
        (
            include_str!("fixtures/tiup-1.16.5/err_patch_badnode.txt"),
            Some("Error: no such node: 1.2.3.4:1"),
        ),
        (
            include_str!("fixtures/tiup-1.16.5/err_patch_nopkg.txt"),
            Some("Error: package /nonexist.tar.gz: no such file"),
        ),
        (
            include_str!("fixtures/tiup-1.16.5/err_patch_wrong_component.txt"),
            Some("Error: package ./pk/hf-worker.tar.gz: "),
        ),
    ] {
        let desk = desk();
        let recorded = read(recording);
        let (code, _, stderr) = said(&desk, &recorded);
        assert_eq!(code, recorded.code, "{recording}\n{stderr}");
        let theirs = recorded.error.unwrap();
        assert!(stderr.contains(instead.unwrap_or(&theirs)), "{recording}\n{stderr}");
        assert_eq!(stderr.contains(&theirs), instead.is_none(), "{recording}\n{stderr}");
        let log = "Verbose debug logs has been written to $TIUP_HOME/logs/tiup-dm-debug-";
        assert!(stderr.contains(log), "{stderr}");
    }
}

#[test]
fn help_instead_of_an_error_has_the_recorded_code() {
    let desk = desk();
    let recorded = read(include_str!("fixtures/tiup-1.16.5/err_patch_noargs.txt"));
    let (code, stdout, stderr) = said(&desk, &recorded);
    assert_eq!((code, stderr.as_str()), (recorded.code, ""), "{stdout}");
    for flag in ["--node", "--role", "--offline", "--overwrite", "--help"] {
        assert!(stdout.contains(flag) && recorded.stdout.contains(flag), "{stdout}");
    }
}

#[test]
fn every_flag_of_tiup_is_taken() {
    let mut command = <dmup::args::Cli as clap::CommandFactory>::command();
    command.build();
    let mut seen = 0;
    for (name, recording) in HELPS {
        let Some(below) = command.find_subcommand(name) else {
            assert_eq!(*name, "reload", "there is no `{name}`");
            continue;
        };
        for line in recording.lines().map(str::trim).filter(|line| line.starts_with('-')) {
            let mut words = line.split([' ', ',']).filter(|word| word.starts_with('-'));
            let long = words.find_map(|word| word.strip_prefix("--")).unwrap();
            let short = line.strip_prefix('-').and_then(|rest| rest.chars().next());
            let ours = below.get_arguments().find(|it| it.get_long() == Some(long));
            let ours = ours.unwrap_or_else(|| panic!("`{name}` has no --{long}"));
            assert!(short == Some('-') || ours.get_short() == short, "`{name}`: {line}");
            seen += 1;
        }
    }
    assert!(seen > 100, "{seen}");
}

/// `tiup-dm COMMAND --help`.
const HELPS: &[(&str, &str)] = &[
    ("audit", include_str!("fixtures/tiup-1.16.5/help_audit.txt")),
    ("deploy", include_str!("fixtures/tiup-1.16.5/help_deploy.txt")),
    ("destroy", include_str!("fixtures/tiup-1.16.5/help_destroy.txt")),
    ("display", include_str!("fixtures/tiup-1.16.5/help_display.txt")),
    ("edit-config", include_str!("fixtures/tiup-1.16.5/help_edit-config.txt")),
    ("enable", include_str!("fixtures/tiup-1.16.5/help_enable.txt")),
    ("exec", include_str!("fixtures/tiup-1.16.5/help_exec.txt")),
    ("meta", include_str!("fixtures/tiup-1.16.5/help_meta.txt")),
    ("patch", include_str!("fixtures/tiup-1.16.5/help_patch.txt")),
    ("prune", include_str!("fixtures/tiup-1.16.5/help_prune.txt")),
    ("reload", include_str!("fixtures/tiup-1.16.5/help_reload.txt")),
    ("replay", include_str!("fixtures/tiup-1.16.5/help_replay.txt")),
    ("scale-in", include_str!("fixtures/tiup-1.16.5/help_scale-in.txt")),
    ("scale-out", include_str!("fixtures/tiup-1.16.5/help_scale-out.txt")),
    ("start", include_str!("fixtures/tiup-1.16.5/help_start.txt")),
    ("stop", include_str!("fixtures/tiup-1.16.5/help_stop.txt")),
    ("template", include_str!("fixtures/tiup-1.16.5/help_template.txt")),
    ("upgrade", include_str!("fixtures/tiup-1.16.5/help_upgrade.txt")),
];

#[test]
fn lists_and_the_log_of_commands_are_what_was_recorded() {
    let desk = desk();
    // Columns are as wide as the paths: words are compared.
    let recorded = read(include_str!("fixtures/tiup-1.16.5/list.txt"));
    let (code, stdout, _) = said(&desk, &recorded);
    let words = |text: &str| text.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>();
    let plain: Vec<String> =
        words(&stdout).into_iter().map(|word| word.trim_start_matches("----").to_owned()).collect();
    let theirs: Vec<String> = words(&recorded.stdout)
        .into_iter()
        .map(|word| word.trim_start_matches("----").to_owned())
        .collect();
    assert_eq!((code, plain), (recorded.code, theirs));

    let desk = Desk::empty();
    let recorded = read(include_str!("fixtures/tiup-1.16.5/audit.txt"));
    for line in recorded.stdout.lines().skip(2) {
        let mut parts = line.splitn(3, "  ");
        let (id, command) = (parts.next().unwrap(), parts.nth(1).unwrap());
        // As TiUP writes them: each word escaped.
        let escaped = command.replace('/', "%2F").replace(',', "%2C").replace(':', "%3A");
        desk.put(&format!("tiup/storage/dm/audit/{id}"), format!("{escaped}\n").as_bytes());
    }
    let (code, stdout, _) = said(&desk, &recorded);
    // Entries of one second come in any order from TiUP, in their own from us.
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
        lines[2..].sort();
        lines
    };
    assert_eq!((code, sorted(&stdout)), (recorded.code, sorted(&recorded.stdout)));
}
