//! What happens when dmup dies: `kill -9` in the middle of a hotfix, then the guard, `resume`, `rollback`; and when it
//! only freezes while another desk takes the cluster over.
//!
//! Block 8. The build that is tried needs long to become healthy, so that the kill falls into its window.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use lab::attended::Attended;
use lab::scene::{CLUSTER, Scene, Shape, TASK};
use lab::wait_until;
use lookalike::stamp::{Fault, Stamp};
use rustix::process::Signal;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(120);

#[test]
#[ignore = "needs root and systemd-nspawn"]
fn a_host_whose_controller_is_gone_goes_back_and_one_that_froze_does_nothing_more() {
    let scene = Scene::running("guard", 8, Shape::three(), 30).unwrap();
    let old = scene.running_hashes();

    // A build that opens its port but never joins: not healthy, not dead. dmup dies while it waits.
    let stamp = Stamp::new("v8.1.0-stuck", &"5".repeat(40)).with_fault(Fault::NeverJoin);
    let stuck = scene.hotfix("stuck.tar.gz", &stamp).unwrap();
    let words = ["patch", CLUSTER, stuck.as_str(), "-R", "dm-worker", "--yes", "--guard", "10"];
    killed_once_a_node_runs_it(&scene, &words, &old);
    assert!(
        wait_until(Duration::from_secs(120), || scene.running_hashes() == old),
        "the host did not go back: {:?}",
        scene.running_hashes()
    );
    scene.dm.wait_running(TASK, 2, Duration::from_secs(60)).unwrap();

    // Another hotfix is refused as long as half of this one is open; `rollback` closes it.
    let good = scene.hotfix("good.tar.gz", &scene.fixed()).unwrap();
    let refused = scene.dmup(&["patch", CLUSTER, good.as_str(), "--yes"]).with_code(3);
    assert!(refused.stderr.contains("has not ended"), "{refused}");
    scene.dmup(&["rollback", CLUSTER, "--yes"]).well();
    assert_eq!(scene.running_hashes(), old);

    // A guard that acts, and for long, since the build stops slowly; meanwhile somebody resumes. One comes after the other, and the
    // hotfix goes on from what is there then.
    let id = format!("{}:8262", scene.hosts.host(3).unwrap().address);
    let slow = scene.hotfix("slow.tar.gz", &scene.fixed().with_fault(Fault::StopAfterS(10)));
    let slow = slow.unwrap();
    let words = ["patch", CLUSTER, slow.as_str(), "-N", &id, "--yes", "--soak", "20"];
    let mut attended =
        Attended::begin(&scene.operator, CLUSTER, &[&words[..], &["--guard", "10"]].concat())
            .unwrap();
    let is_healthy =
        |entry: &Value| entry["entry"] == "done" && entry["step"]["step"] == "await_healthy";
    assert!(wait_until(PATIENCE, || attended.entries().iter().any(is_healthy)));
    attended.signal(Signal::KILL);
    let killed = attended.end(PATIENCE).with_code(137);
    let acts = ["sh", "-c", "grep -l '\"did\": null' /var/lib/dmup/guards/*.fired"];
    let third = scene.hosts.host(3).unwrap();
    let is_acting = || third.run(&acts).unwrap().status.success();
    assert!(wait_until(PATIENCE, is_acting), "its guard never acted: {killed}");
    let resumed = scene.dmup(&["resume", CLUSTER]).well();
    let now = scene.running_hashes();
    let changed: Vec<_> = now.iter().zip(&old).filter(|(now, old)| now != old).collect();
    assert!(changed.len() == 1 && changed[0].0.1 != "down", "{changed:?}\n{resumed}");
    assert!(scene.armed_guards().is_empty(), "{:?}\n{resumed}", scene.armed_guards());
    scene.dmup(&["rollback", CLUSTER, "--yes", "--soak", "0"]).well();
    assert_eq!(scene.running_hashes(), old);

    // A good hotfix whose dmup freezes in a turn. Another desk is told who has the cluster, takes it from them, and goes back.
    let twin = scene.operator.folder().join("twin");
    let mut frozen =
        Attended::begin(&scene.operator, CLUSTER, &["patch", CLUSTER, good.as_str(), "--yes"])
            .unwrap();
    await_the_build(&scene, &old);
    frozen.signal(Signal::STOP);
    let other = scene.operator.twin(&twin).unwrap();
    let refused = other.run(&["rollback", CLUSTER, "--yes"]).with_code(3);
    for part in ["somebody else is at work on prod", "`patch` of root@", "dmup unlock prod"] {
        assert!(refused.stderr.contains(part), "{part}: {refused}");
    }
    let unlocked = other.run(&["unlock", CLUSTER, "--yes"]).well();
    assert!(unlocked.stderr.contains("`patch` of root@"), "{unlocked}");
    other.run(&["rollback", CLUSTER, "--yes"]).well();
    assert_eq!(scene.running_hashes(), old);
    // It wakes up: nothing of what it still wanted is done.
    frozen.signal(Signal::CONT);
    let said = frozen.end(Duration::from_secs(120)).with_code(7);
    assert!(said.stderr.contains("taken the cluster over"), "{said}");
    assert_eq!(scene.running_hashes(), old, "{said}");
    scene.dm.wait_running(TASK, 2, Duration::from_secs(60)).unwrap();

    // At the first desk the run is open still: `rollback` looks at the hosts and closes it.
    scene.dmup(&["rollback", CLUSTER, "--yes"]).well();
    assert_eq!(scene.running_hashes(), old);
    let again = scene.dmup(&["resume", CLUSTER]).with_code(3);
    assert!(again.stderr.contains("no run of prod was interrupted"), "{again}");

    // Killed in its first turn and resumed, a hotfix for instances to come as well does that, too. The package that was
    // given is gone by then.
    let bytes = fs_err::read(&good).unwrap();
    let words =
        ["patch", CLUSTER, good.as_str(), "-R", "dm-worker", "--overwrite", "--yes", "--soak", "0"];
    killed_once_a_node_runs_it(&scene, &words, &old);
    fs_err::remove_file(&good).unwrap();
    let kept = scene.operator.tiup_home().join("storage/dm/clusters/prod/patch/dm-worker.tar.gz");
    assert!(!kept.exists(), "only after the last node");
    let resumed = scene.dmup(&["resume", CLUSTER]).well();
    assert_eq!(fs_err::read(&kept).unwrap(), bytes, "{resumed}");

    let flow = scene.flow().expect("rows flow");
    for (source, seen) in flow.witness.settle(&flow.writer, Duration::from_secs(60)) {
        assert!(seen.is_whole(), "{source}: {seen}");
    }
}

/// Until some node runs another build than before.
fn await_the_build(scene: &Scene, old: &[(String, String)]) {
    assert!(
        wait_until(Duration::from_secs(120), || scene.running_hashes() != old),
        "no node ever ran the build"
    );
}

/// A command whose dmup is killed as soon as the first node runs what it brings.
fn killed_once_a_node_runs_it(scene: &Scene, words: &[&str], old: &[(String, String)]) {
    let mut child = scene.operator.begin(words).unwrap();
    await_the_build(scene, old);
    child.kill().unwrap();
    child.wait().unwrap();
}
