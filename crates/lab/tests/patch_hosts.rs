//! `patch` on real hosts while rows flow: the good hotfix, and what a bad one may do.
//!
//! One cluster of three masters and three workers serves all of it (block 3). Every claim is
//! checked from outside: rows by the witness, builds by `/proc/PID/exe`, stages by DM.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use lab::scene::{CLUSTER, Scene, Shape, TASK};
use lookalike::stamp::{Fault, Stamp};

/// Every source whole and every subtask running, or a text that says what is wrong.
fn rows_are_whole(scene: &Scene) {
    let flow = scene.flow().expect("rows flow");
    scene.dm.wait_running(TASK, 2, Duration::from_secs(60)).unwrap();
    for source in flow.writer.sources() {
        let seen = flow
            .witness
            .wait(&flow.writer, &source, Duration::from_secs(60), |it| {
                it.arrived + 100 > it.written
            })
            .unwrap_or_else(|seen| panic!("{source}: {seen}"));
        assert_eq!((seen.lost, seen.doubled), (0, 0), "{source}: {seen}");
    }
}

#[test]
#[ignore = "needs root and systemd-nspawn"]
fn hotfixes_good_and_bad_on_a_cluster_with_rows_flowing() {
    let scene = Scene::running("patch", 3, Shape::three(), 50).unwrap();
    let old = scene.running_hashes();

    // A plan touches nothing.
    let good = scene.hotfix("good.tar.gz", &scene.fixed()).unwrap();
    let plan = scene.dmup(&["patch", CLUSTER, good.as_str(), "--plan"]).well();
    assert!(plan.stdout.contains("evict the leader"), "{plan}");
    assert_eq!(scene.running_hashes(), old);
    let plan = scene.dmup(&["patch", CLUSTER, good.as_str(), "--plan", "--format", "json"]).well();
    let plan_file = scene.operator.folder().join("plan.json");
    fs_err::write(&plan_file, plan.stdout).unwrap();

    // Bad builds, one kind after the other: caught on the first node, which is as before afterwards.
    for (name, fault) in [
        ("exits", Fault::ExitAtStart),
        ("hangs", Fault::HangAtStart),
        ("never-joins", Fault::NeverJoin),
        ("crashes", Fault::CrashAfterS(2)),
        ("says-another-version", Fault::StatusVersion("v9.9.9".to_owned())),
    ] {
        let stamp = Stamp::new("v8.1.0-bad", &hash_of(name)).with_fault(fault);
        let bad = scene.hotfix(&format!("{name}.tar.gz"), &stamp).unwrap();
        let words = [
            "patch",
            CLUSTER,
            bad.as_str(),
            "-R",
            "dm-worker",
            "--yes",
            "--soak",
            "5",
            "--wait-timeout",
            "20",
        ];
        let said = scene.dmup(&words).with_code(5);
        assert!(said.stderr.contains("put back"), "{said}");
        assert_eq!(scene.running_hashes(), old, "{said}");
        rows_are_whole(&scene);
        // The same build is refused the next time.
        let again = scene.dmup(&words).with_code(3);
        assert!(again.stderr.contains("failed before"), "{again}");
    }
    let display = scene.dmup(&["display", CLUSTER]).well();
    assert!(!display.stdout.contains("(patched)"), "{display}");

    // A plan made before is refused for another package, and applied as it is.
    let apply = ["patch", CLUSTER, good.as_str(), "--apply-plan", plan_file.as_str(), "--yes"];
    let other =
        scene.hotfix("other.tar.gz", &Stamp::new("v8.1.0-other", &hash_of("other"))).unwrap();
    let words = ["patch", CLUSTER, other.as_str(), "--apply-plan", plan_file.as_str(), "--yes"];
    let said = scene.dmup(&words).with_code(3);
    assert!(said.stderr.contains("another package"), "{said}");

    // The good one: every process runs it, every row is there once, leadership moved once at most.
    // Bindings moved with the bad builds: the old plan may be stale. Then it says so, and touches nothing.
    let applied = scene.dmup(&apply);
    let said = if applied.code == 3 {
        assert!(applied.stderr.contains("has changed since the plan was made"), "{applied}");
        assert_eq!(scene.running_hashes(), old, "{applied}");
        scene.dmup(&["patch", CLUSTER, good.as_str(), "--yes"]).well()
    } else {
        applied.well()
    };
    let new = scene.running_hashes();
    for ((place, before), (_, after)) in old.iter().zip(&new) {
        assert_ne!(before, after, "{place} still runs the old build\n{said}");
        assert_eq!(after, &new[0].1, "{place}\n{said}");
    }
    rows_are_whole(&scene);
    let display = scene.dmup(&["display", CLUSTER]).well();
    assert_eq!(display.stdout.matches("(patched)").count(), 6, "{display}");
    assert!(display.stdout.contains("Total nodes: 6"), "{display}");

    versions_name_what_is_not_as_recorded(&scene);

    // The cluster is not what that plan was made for any more.
    let stale = scene.dmup(&apply).with_code(3);
    assert!(stale.stderr.contains("has changed since the plan was made"), "{stale}");

    // A bad one on top of it: the node goes back to the good one, and its way back to the official build is still there.
    let stamp = Stamp::new("v8.1.0-worse", &hash_of("worse")).with_fault(Fault::ExitAtStart);
    let worse = scene.hotfix("worse.tar.gz", &stamp).unwrap();
    let said = scene
        .dmup(&["patch", CLUSTER, worse.as_str(), "-R", "dm-worker", "--yes", "--soak", "2"])
        .with_code(5);
    assert_eq!(scene.running_hashes(), new, "{said}");

    // Again: nothing to do. Back: every process runs the old build, without any package.
    let again = scene.dmup(&["patch", CLUSTER, good.as_str(), "--yes"]).well();
    assert!(again.stderr.contains("Nothing to do"), "{again}");
    fs_err::remove_file(&good).unwrap();
    let back = scene.dmup(&["rollback", CLUSTER, "--yes"]).well();
    assert_eq!(scene.running_hashes(), old, "{back}");
    rows_are_whole(&scene);
    let display = scene.dmup(&["display", CLUSTER]).well();
    assert!(!display.stdout.contains("(patched)"), "{display}");

    let flow = scene.flow().expect("rows flow");
    for (source, seen) in flow.witness.settle(&flow.writer, Duration::from_secs(60)) {
        assert!(seen.is_whole(), "{source}: {seen}");
    }
}

/// After a hotfix every node is as recorded; what somebody changes by hand is named, and so is a node that is silent.
fn versions_name_what_is_not_as_recorded(scene: &Scene) {
    let said = scene.dmup(&["versions", CLUSTER]).well();
    assert_eq!(said.stdout.matches(" as-recorded\n").count(), 6, "{said}");
    assert_eq!(said.stdout.matches("v8.1.0-hotfix").count(), 6, "{said}");
    let (_, running) = &scene.running_hashes()[0];
    assert_eq!(said.stdout.matches(&running[..12]).count(), 18, "runs, lies, is recorded: {said}");
    scene.dmup(&["display", CLUSTER, "--verify"]).well();

    let h2 = scene.hosts.host(2).unwrap();
    let id = format!("{}:8262", h2.address);
    let folder = "/home/tidb/deploy/dm-worker-8262/bin/dm-worker";
    let script = format!(
        "cd {folder} && cp -p dm-worker /root/kept && cp -p dm-worker new && echo x >> new && mv new dm-worker"
    );
    h2.must_run(&["sh", "-c", &script]).unwrap();
    for words in [&["versions", CLUSTER][..], &["display", CLUSTER, "--verify"]] {
        let said = scene.dmup(words).with_code(6);
        assert!(said.stderr.contains(&format!("{id}: it runs {}", &running[..12])), "{said}");
        assert_eq!(said.stdout.matches(" drifted\n").count(), 1, "{said}");
        assert_eq!(said.stdout.matches(" as-recorded\n").count(), 5, "{said}");
    }
    let back = format!("mv /root/kept {folder}/dm-worker");
    h2.must_run(&["sh", "-c", &back]).unwrap();

    // What `tiup dm patch` leaves when it is ended while it unpacks.
    let upload = "/home/tidb/deploy/dm-worker-8262/bin/fix.tar.gz";
    h2.must_run(&["touch", upload]).unwrap();
    let said = scene.dmup(&["versions", CLUSTER]).well();
    assert!(said.stderr.contains(&format!("{id} has a package in its bin, {upload}")), "{said}");
    h2.must_run(&["rm", upload]).unwrap();

    // A host that lets nobody in; its nodes serve all the same.
    h2.must_run(&["mv", "/home/tidb/.ssh/authorized_keys", "/home/tidb/.ssh/away"]).unwrap();
    let said = scene.dmup(&["versions", CLUSTER]).with_code(7);
    assert_eq!(said.stdout.matches(" unknown\n").count(), 2, "{said}");
    assert_eq!(said.stdout.matches(" as-recorded\n").count(), 4, "{said}");
    h2.must_run(&["mv", "/home/tidb/.ssh/away", "/home/tidb/.ssh/authorized_keys"]).unwrap();
}

/// Builds must differ in bytes to be different builds.
fn hash_of(name: &str) -> String {
    let mut hash = hex::encode(name);
    hash.push_str(&"0".repeat(40));
    hash.truncate(40);
    hash
}
