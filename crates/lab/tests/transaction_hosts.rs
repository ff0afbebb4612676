//! A large transaction under way on DM v5.3.0, the manual's own version (reference: dm.md 12.2).
//!
//! Block 12. There a worker that stops gives its lease away while it still writes: restarted blindly, two workers
//! write the same source and the task stands with a duplicate key. The first half shows that the stand-in does that;
//! the second that `dmup patch` ends with every subtask `Running` and every row there once.

use std::time::Duration;

use lab::scene::{CLUSTER, SOURCES, Scene, Shape, TASK};
use lookalike::stamp::Stamp;

/// At [`ROWS_PER_S`] twenty seconds' work: whatever is done meanwhile falls into it.
const ROWS: u64 = 60_000;
const ROWS_PER_S: u32 = 3_000;

#[test]
#[ignore = "needs root and systemd-nspawn"]
fn a_large_transaction_survives_the_hotfix_that_a_blind_restart_breaks() {
    let shape =
        Shape { version: "v5.3.0".to_owned(), rows_per_s: Some(ROWS_PER_S), ..Shape::three() };
    let scene = Scene::running("trans", 12, shape, 20).unwrap();
    let flow = scene.flow().expect("rows flow");

    let bound_worker = || {
        let workers = scene.dm.workers();
        let (name, ..) =
            workers.iter().find(|(_, _, source)| source == SOURCES[0]).expect("one is bound");
        scene
            .hosts
            .hosts()
            .iter()
            .find(|host| name.contains(&host.address.to_string()))
            .expect("its name has its address")
    };
    // Some of the transaction is written, most is not.
    let begin_transaction = || {
        let before = flow.witness.reckon(&flow.writer)[SOURCES[0]].arrived;
        flow.writer.write_transaction(SOURCES[0], ROWS);
        flow.witness
            .wait(&flow.writer, SOURCES[0], Duration::from_secs(60), |it| it.arrived > before + 500)
            .unwrap();
    };

    begin_transaction();
    bound_worker().must_run(&["systemctl", "restart", "dm-worker-8262.service"]).unwrap();
    scene
        .dm
        .wait_until("the task stands", Duration::from_secs(120), |dm| {
            let stages = dm.stages(TASK);
            if stages.iter().any(|(_, stage)| stage == "Paused") {
                Ok(())
            } else {
                Err(format!("{stages:?}"))
            }
        })
        .unwrap();
    scene.dm.resume_task(TASK).unwrap();
    scene.dm.wait_running(TASK, 2, Duration::from_secs(120)).unwrap();
    flow.witness
        .wait(&flow.writer, SOURCES[0], Duration::from_secs(300), |it| {
            it.arrived + 200 > it.written
        })
        .unwrap();

    begin_transaction();
    let hotfix = Stamp::new("v5.3.0-20211230", "ca7070c45013c24d34bd9c1e936071253451d707");
    let package = scene.hotfix("dm-worker-hotfix.tar.gz", &hotfix).unwrap();
    let old = scene.running_hashes();
    let said = scene
        .dmup(&["patch", CLUSTER, package.as_str(), "-R", "dm-worker", "--yes", "--force"])
        .well();
    scene.dm.wait_running(TASK, 2, Duration::from_secs(60)).unwrap();
    let changed = old.iter().zip(scene.running_hashes()).filter(|(old, new)| **old != *new).count();
    assert_eq!(changed, 3, "{said}");
    for (source, seen) in flow.witness.settle(&flow.writer, Duration::from_secs(300)) {
        assert!(seen.is_whole(), "{source}: {seen}\n{said}");
    }
}
