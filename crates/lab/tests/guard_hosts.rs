//! What happens when dmup dies: `kill -9` in the middle of a hotfix, then the guard, `resume`, `rollback`.
//!
//! Block 8. The build that is tried needs long to become healthy, so that the kill falls into its window.

use std::time::Duration;

use lab::scene::{CLUSTER, Scene, Shape, TASK};
use lab::wait_until;
use lookalike::stamp::{Fault, Stamp};

#[test]
#[ignore = "needs root and systemd-nspawn"]
fn a_host_whose_controller_is_gone_goes_back_by_itself_and_the_run_can_go_on() {
    let scene = Scene::running("guard", 8, Shape::three(), 30).unwrap();
    let old = scene.running_hashes();

    // A build that opens its port but never joins: not healthy, not dead. dmup dies while it waits.
    let stamp = Stamp::new("v8.1.0-stuck", &"5".repeat(40)).with_fault(Fault::NeverJoin);
    let stuck = scene.hotfix("stuck.tar.gz", &stamp).unwrap();
    let words = ["patch", CLUSTER, stuck.as_str(), "-R", "dm-worker", "--yes", "--guard", "10"];
    let mut child = scene.operator.begin(&words).unwrap();
    assert!(
        wait_until(Duration::from_secs(120), || scene.running_hashes() != old),
        "no node ever ran the build"
    );
    child.kill().unwrap();
    child.wait().unwrap();
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

    // A good hotfix whose dmup is killed somewhere is finished by `resume`.
    let mut child = scene.operator.begin(&["patch", CLUSTER, good.as_str(), "--yes"]).unwrap();
    assert!(
        wait_until(Duration::from_secs(120), || scene.running_hashes() != old),
        "no node ever ran the build"
    );
    child.kill().unwrap();
    child.wait().unwrap();
    let said = scene.dmup(&["resume", CLUSTER]).well();
    let new = scene.running_hashes();
    for ((place, before), (_, after)) in old.iter().zip(&new) {
        assert_ne!(before, after, "{place}\n{said}");
    }
    scene.dm.wait_running(TASK, 2, Duration::from_secs(60)).unwrap();
    let again = scene.dmup(&["resume", CLUSTER]).with_code(3);
    assert!(again.stderr.contains("no run of prod was interrupted"), "{again}");

    let flow = scene.flow().expect("rows flow");
    for (source, seen) in flow.witness.settle(&flow.writer, Duration::from_secs(60)) {
        assert!(seen.is_whole(), "{source}: {seen}");
    }
}
