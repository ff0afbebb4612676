//! Lets a program of the package judge a configuration before it is live.
//!
//! What a configuration names is relative to its folder, so it is judged in a folder beside the live one: the new
//! files are written there, everything else that the live folder has is there as a link. The live folder is only read.

use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::time::Duration;

use camino::Utf8Path;
use dmup_wire::message::{Check, Outcome, Refusal, RefusalKind};
use fs_err as fs;

use crate::files::{Owner, check_absolute, draft_beside, remove, write_atomically};
use crate::program::run_of_package;
use crate::refuse::{Reply, When, bad, refuse};
use crate::run::{Ran, ended};

/// Rules are read in milliseconds; a cold disk and a busy host take longer.
const LIMIT: Duration = Duration::from_secs(60);

/// Most files and folders of a live folder: as many links are made.
const ENTRIES: usize = 10_000;

/// Lays the folder out, runs the program in it, takes the folder away.
pub(crate) fn check_config(order: &Check) -> Reply {
    check(order)?;
    let attempted = || format!("run {} {}", order.program, order.arguments.join(" "));
    if !order.program.try_exists().when(attempted)? {
        return Ok(Outcome::Checked { judged: false });
    }
    let live = fs::metadata(&order.folder).when(|| format!("look at {}", order.folder))?;
    let scratch = draft_beside(&order.folder);
    let ran = lay_out(order, &scratch, &live)
        .and_then(|()| run_of_package(&order.program, &order.arguments, &scratch, &live, LIMIT));
    // The links go, not what they lead to.
    let removed = remove(&scratch);
    let ran = ran?;
    removed?;
    if !ran.status.success() {
        return Err(refuse(RefusalKind::Content, attempted(), words_of(&ran)));
    }
    Ok(Outcome::Checked { judged: true })
}

/// All that it said, as one line: amtool gives the reason on one output and its verdict on the other.
fn words_of(ran: &Ran) -> String {
    let lines = ran.stdout.lines().chain(ran.stderr.lines()).map(str::trim);
    let said: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    if said.is_empty() {
        ran.words()
    } else {
        format!("{} ({})", said.join("; "), ended(ran.status))
    }
}

fn check(order: &Check) -> Result<(), Refusal> {
    check_absolute(&order.program)?;
    check_absolute(&order.folder)?;
    for file in &order.files {
        if file.path.parent() != Some(&order.folder) || file.path.file_name().is_none() {
            let seen = format!("it is not in {}", order.folder);
            return Err(bad(format!("check {}", file.path), seen));
        }
    }
    Ok(())
}

fn lay_out(order: &Check, scratch: &Utf8Path, live: &std::fs::Metadata) -> Result<(), Refusal> {
    let attempted = || format!("make {scratch}");
    // Only root may give files away; anybody else owns what they make.
    let is_root = rustix::process::geteuid().is_root();
    let owner = is_root.then(|| Owner { uid: live.uid(), gid: live.gid() });
    std::fs::DirBuilder::new().mode(0o700).create(scratch).when(attempted)?;
    for (number, entry) in fs::read_dir(&order.folder).when(attempted)?.enumerate() {
        let name = entry.when(attempted)?.file_name();
        if number == ENTRIES {
            let seen = format!("{} has more than {ENTRIES} files", order.folder);
            return Err(refuse(RefusalKind::Precondition, attempted(), seen));
        }
        let is_new = order
            .files
            .iter()
            .any(|file| file.path.file_name().map(AsRef::as_ref) == Some(name.as_os_str()));
        if !is_new {
            symlink(order.folder.as_std_path().join(&name), scratch.as_std_path().join(&name))
                .when(attempted)?;
        }
    }
    for file in &order.files {
        let place = scratch.join(file.path.file_name().unwrap_or_default());
        write_atomically(&place, file.content.as_bytes(), file.mode, owner)
            .when(|| format!("write {place}"))?;
    }
    if let Some(Owner { uid, gid }) = owner {
        std::os::unix::fs::chown(scratch, Some(uid), Some(gid)).when(attempted)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use camino::Utf8PathBuf;
    use dmup_core::ids::InstanceId;
    use dmup_wire::message::PutFile;

    use super::*;

    /// A deploy folder whose program prints what it reads and ends as its configuration says.
    struct Deployed {
        _keep: tempfile::TempDir,
        dir: Utf8PathBuf,
        order: Check,
    }

    const JUDGE: &str = "#!/bin/sh
cat \"$1\" mine.rules.yml more/inner ../tls/ca.crt >&2 || exit 9
. ./\"$1\"
";

    fn deployed(program: &str, new: &str) -> Deployed {
        let keep = tempfile::tempdir().unwrap();
        let dir = Utf8PathBuf::from_path_buf(keep.path().to_owned()).unwrap();
        for (path, content, mode) in [
            ("bin/judge", program, 0o755),
            ("conf/main.yml", "exit 0 # old", 0o600),
            ("conf/mine.rules.yml", "old rules;", 0o644),
            ("conf/more/inner", "inner;", 0o644),
            ("tls/ca.crt", "certificate;", 0o644),
        ] {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let file = PutFile {
            path: dir.join("conf/main.yml"),
            mode: 0o600,
            root: false,
            owner: None,
            content: new.to_owned(),
        };
        let order = Check {
            instance: InstanceId::new("h:1").unwrap(),
            folder: dir.join("conf"),
            files: vec![file],
            program: dir.join("bin/judge"),
            arguments: vec!["main.yml".to_owned()],
        };
        Deployed { _keep: keep, dir, order }
    }

    fn names(dir: &Utf8Path) -> Vec<String> {
        let mut names: Vec<String> = dir
            .read_dir_utf8()
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn new_files_are_judged_with_the_rest_of_the_live_ones_which_stay() {
        for (new, judged) in [("exit 0 # new", true), ("exit 3 # new", false)] {
            let it = deployed(JUDGE, new);
            match check_config(&it.order) {
                Ok(outcome) => {
                    assert_eq!((outcome, judged), (Outcome::Checked { judged: true }, true));
                }
                Err(refusal) => {
                    assert!(!judged, "{refusal}");
                    assert_eq!(refusal.kind, RefusalKind::Content);
                    assert!(refusal.attempted.ends_with("bin/judge main.yml"), "{refusal}");
                    // The new file, the rules that are live, what lies deeper, and what lies beside the folder.
                    let words = "exit 3 # newold rules;inner;certificate; (exit status 3)";
                    assert_eq!(refusal.observed, words);
                }
            }
            let live = fs::read_to_string(it.dir.join("conf/main.yml")).unwrap();
            assert_eq!(live, "exit 0 # old");
            assert_eq!(names(&it.dir), ["bin", "conf", "tls"]);
            assert_eq!(names(&it.dir.join("conf")), ["main.yml", "mine.rules.yml", "more"]);
            assert_eq!(names(&it.dir.join("conf/more")), ["inner"]);
        }
    }

    #[test]
    fn a_file_that_is_not_there_yet_is_one_of_the_configuration() {
        let mut it = deployed("#!/bin/sh\nexec cat added.yml\n", "new");
        let added = PutFile { path: it.dir.join("conf/added.yml"), ..it.order.files[0].clone() };
        assert_eq!(check_config(&it.order).unwrap_err().kind, RefusalKind::Content);
        it.order.files.push(added);
        assert_eq!(check_config(&it.order), Ok(Outcome::Checked { judged: true }));
        assert_eq!(names(&it.dir.join("conf")), ["main.yml", "mine.rules.yml", "more"]);
    }

    #[test]
    fn where_there_is_no_such_program_nobody_judges_and_one_that_does_not_run_is_told() {
        let it = deployed(JUDGE, "exit 3");
        let none = Check { program: it.dir.join("bin/no"), ..it.order.clone() };
        assert_eq!(check_config(&none), Ok(Outcome::Checked { judged: false }));
        let it = deployed("nothing that runs", "exit 0");
        let refusal = check_config(&it.order).unwrap_err();
        assert!(refusal.observed.contains("neither an ELF program nor a script"), "{refusal}");
        assert_eq!(names(&it.dir), ["bin", "conf", "tls"]);
    }

    #[test]
    fn all_that_a_program_says_is_told() {
        for (says, told) in [
            ("echo ' why '; echo; echo 'no good' >&2", "why; no good (exit status 1)"),
            ("true", "it said nothing (exit status 1)"),
        ] {
            let it = deployed(&format!("#!/bin/sh\n{says}; exit 1\n"), "");
            assert_eq!(check_config(&it.order).unwrap_err().observed, told);
        }
    }

    #[test]
    fn what_a_program_says_is_cut_and_files_elsewhere_make_no_sense() {
        let it = deployed("#!/bin/sh\nhead -c 100000 /dev/zero | tr '\\0' x; exit 1\n", "");
        let refusal = check_config(&it.order).unwrap_err();
        assert!(refusal.observed.len() <= 4096 && refusal.observed.ends_with("(exit status 1)"));
        for path in ["/etc/passwd", "conf/main.yml"] {
            let mut order = it.order.clone();
            order.files[0].path = path.into();
            assert_eq!(check_config(&order).unwrap_err().kind, RefusalKind::BadRequest);
        }
    }
}
