//! A run on disk: what was written is what is read, and only that.

use std::os::unix::fs::PermissionsExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::plan::Plan;
use dmup_core::report::RunEnd;
use dmup_exec::{JournalError, RunError, RunFolder, execute};
use tokio_util::sync::CancellationToken;

use crate::restarts::texts;
use crate::sim::{Sim, digest};
use crate::{SMALL, plan, reach, resume};

fn below(folder: &tempfile::TempDir) -> Utf8PathBuf {
    Utf8PathBuf::from_path_buf(folder.path().join("runs").join("one")).unwrap()
}

fn write_plan(folder: &Utf8Path, plan: &Plan) {
    std::fs::write(folder.join("plan.json"), serde_json::to_vec(plan).unwrap()).unwrap();
}

#[tokio::test]
async fn plan_journal_and_report_are_read_as_they_were_written_and_a_folder_is_begun_once() {
    let scratch = tempfile::tempdir().unwrap();
    let path = below(&scratch);
    let sim = Sim::new(&SMALL, 1);
    let plan = plan(&sim, &SMALL).await;
    let (folder, mut journal) = RunFolder::create(&path, &plan).unwrap();
    assert!(matches!(RunFolder::create(&path, &plan), Err(JournalError::Disk { .. })));
    assert_eq!(RunFolder::at(&path).path(), path);
    assert_eq!(folder.plan().unwrap(), plan);
    assert_eq!(folder.report(), None);
    assert!(journal.is_empty());
    let cancel = CancellationToken::new();
    let report = execute(&plan, reach(&sim), &mut journal, &mut |_| {}, &cancel).await.unwrap();
    folder.write_report(&report).unwrap();
    assert_eq!(folder.report(), Some(report));
    let (mut journal, past) = folder.journal().unwrap();
    assert!(!journal.is_empty());
    let again = resume(&plan, &past, reach(&sim), &mut journal, &mut |_| {}, &cancel).await;
    assert!(matches!(again, Err(RunError::AlreadyEnded)), "{again:?}");
}

#[tokio::test]
async fn a_plan_of_a_later_format_is_refused_and_one_of_an_earlier_format_is_not() {
    let scratch = tempfile::tempdir().unwrap();
    let path = below(&scratch);
    let mut plan = plan(&Sim::new(&SMALL, 1), &SMALL).await;
    let (folder, _) = RunFolder::create(&path, &plan).unwrap();
    plan.format = Plan::FORMAT - 1;
    write_plan(&path, &plan);
    assert_eq!(folder.plan().unwrap(), plan);
    plan.format = Plan::FORMAT + 1;
    write_plan(&path, &plan);
    let refused = folder.plan().unwrap_err();
    assert!(refused.to_string().contains("a later dmup wrote it"), "{refused}");
}

#[tokio::test]
async fn files_that_a_run_keeps_are_their_owners_only_and_refused_once_they_were_altered() {
    let scratch = tempfile::tempdir().unwrap();
    let path = below(&scratch);
    let plan = plan(&Sim::new(&SMALL, 1), &SMALL).await;
    let (folder, _) = RunFolder::create(&path, &plan).unwrap();
    let kept = texts("secret");
    folder.keep_texts(&kept).unwrap();
    let mode = std::fs::metadata(path.join("texts")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    assert_eq!(folder.texts(&kept.digest()).unwrap(), kept);
    assert!(folder.texts(&digest("others")).is_err());
    let other = serde_json::to_vec(&texts("other")).unwrap();
    std::fs::write(path.join("texts").join(kept.digest().as_str()), other).unwrap();
    assert!(matches!(folder.texts(&kept.digest()), Err(JournalError::BadPlan { .. })));
}

#[tokio::test]
async fn a_run_is_not_resumed_with_another_plan_nor_once_it_has_ended() {
    let sim = Sim::new(&SMALL, 1);
    let plan = plan(&sim, &SMALL).await;
    let mut journal = dmup_exec::MemoryJournal::default();
    let report = crate::go(&plan, &sim, &mut journal).await.unwrap();
    assert_eq!(report.end, RunEnd::Done);
    let windows = sim.state.lock().unwrap().windows;
    let entries = journal.entries.len();
    let mut other = plan.clone();
    other.policy.soak_s += 1;
    for (plan, is_refused) in [
        (&plan, (|it| matches!(it, RunError::AlreadyEnded)) as fn(&RunError) -> bool),
        (&other, |it| matches!(it, RunError::NotResumable(_))),
    ] {
        let resumed = crate::go_on(plan, &sim, &mut journal).await.unwrap_err();
        assert!(is_refused(&resumed), "{resumed}");
        let back = crate::back(plan, &sim, &mut journal).await.unwrap_err();
        assert!(is_refused(&back), "{back}");
    }
    assert_eq!(journal.entries.len(), entries);
    assert_eq!(sim.state.lock().unwrap().windows, windows);
}
