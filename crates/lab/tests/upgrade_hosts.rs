//! An upgrade whose dmup is killed: the host alone brings build and files from before back; then the upgrade to its end.
//!
//! Block 28. A line that somebody has put into every run script of dm-worker makes them differ from what the topology says.

use std::time::Duration;

use lab::packages::{Component, Packer};
use lab::scene::{CLUSTER, Scene, Shape, TASK};
use lab::{surroundings, wait_until};
use lookalike::stamp::{Fault, Stamp};

const SCRIPT: &str = "/home/tidb/deploy/dm-worker-8262/scripts/run_dm-worker.sh";

#[test]
#[ignore = "needs root and systemd-nspawn"]
fn a_version_comes_and_goes_with_its_files_whoever_takes_it_back() {
    let scene = Scene::running("upgrade", 28, Shape::with_monitoring(), 30).unwrap();
    let old = scene.running_hashes();
    let lookalike = surroundings::lookalike_binary().unwrap();
    let official = Packer::new(&lookalike, &scene.operator.packages()).unwrap();
    let release = |component: Component, stamp: &Stamp| {
        official.package(component, stamp).unwrap();
    };
    let next = Stamp::new("v8.5.0", &"6".repeat(40));
    let workers = || scene.running_hashes().split_off(3);
    let meta = || {
        let folder = scene.operator.tiup_home().join("storage/dm/clusters").join(CLUSTER);
        std::fs::read_to_string(folder.join("meta.yaml")).unwrap()
    };
    // Content, owner and mode of every script.
    let scripts = || -> Vec<(String, String)> {
        (1..=3)
            .map(|host| {
                let content = scene.hosts.run_on(host, &["cat", SCRIPT]).unwrap();
                let kind = scene.hosts.run_on(host, &["stat", "-c", "%U:%G %a", SCRIPT]).unwrap();
                (content, kind)
            })
            .collect()
    };
    let rendered = scripts();
    for host in 1..=3 {
        scene.hosts.run_on(host, &["sed", "-i", "$ a # by hand", SCRIPT]).unwrap();
    }
    let by_hand = scripts();
    assert_ne!(by_hand, rendered);

    // A version whose workers open their port and never join; dmup dies while it waits for the first one.
    release(Component::DmMaster, &next);
    let stuck = Stamp::new("v8.5.0", &"5".repeat(40)).with_fault(Fault::NeverJoin);
    release(Component::DmWorker, &stuck);
    let upgrade = ["upgrade", CLUSTER, "v8.5.0", "--yes", "--guard", "10", "--soak", "0"];
    let plan = scene.dmup(&["upgrade", CLUSTER, "v8.5.0", "--plan"]).well();
    let heading = "Upgrade of prod from v8.1.0 to v8.5.0, 8 node(s)";
    assert!(plan.stdout.contains(heading), "{plan}");
    let mut child = scene.operator.begin(&upgrade).unwrap();
    assert!(
        wait_until(Duration::from_secs(180), || workers() != old[3..]),
        "no worker ever ran the build: {:?}",
        child.try_wait()
    );
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        wait_until(Duration::from_secs(120), || workers() == old[3..]),
        "the host did not go back: {:?}",
        workers()
    );
    assert_eq!(scripts(), by_hand, "the files from before go with the build from before");
    let refused = scene.dmup(&upgrade).with_code(3);
    assert!(refused.stderr.contains("has not ended"), "{refused}");
    scene.dmup(&["rollback", CLUSTER, "--yes"]).well();
    assert_eq!((scene.running_hashes(), scripts()), (old.clone(), by_hand.clone()));
    assert!(meta().contains("dm_version: v8.1.0"), "{}", meta());

    // One that works. What reads DM's rules and dashboards starts again, the rest of monitoring does not.
    release(Component::DmWorker, &next);
    let pid = |unit: &str| {
        scene.hosts.run_on(4, &["systemctl", "show", "-p", "MainPID", "--value", unit]).unwrap()
    };
    let monitoring = || ["prometheus-9090.service", "grafana-3000.service"].map(pid);
    let (reads, others) = (monitoring(), pid("alertmanager-9093.service"));
    scene.dmup(&upgrade).well();
    assert_eq!(scripts(), rendered);
    assert!(meta().contains("dm_version: v8.5.0") && !meta().contains("patched"), "{}", meta());
    let new = scene.running_hashes();
    assert!(new.iter().zip(&old).all(|(new, old)| new.1 != old.1 && new.1 != "down"), "{new:?}");
    assert!(monitoring().iter().zip(&reads).all(|(now, then)| now != then));
    assert_eq!(pid("alertmanager-9093.service"), others);
    let runs = scene.dmup(&["runs", CLUSTER]).well();
    assert_eq!(runs.stdout.matches("upgrade").count(), 2, "one run each: {runs}");

    // A week later.
    let back = scene.dmup(&["rollback", CLUSTER, "--yes", "--soak", "0"]).well();
    assert_eq!((scene.running_hashes(), scripts()), (old, by_hand), "{back}");
    assert!(meta().contains("dm_version: v8.1.0"), "{}", meta());
    scene.dm.wait_running(TASK, 2, Duration::from_secs(60)).unwrap();
    let flow = scene.flow().expect("rows flow");
    for (source, seen) in flow.witness.settle(&flow.writer, Duration::from_secs(60)) {
        assert!(seen.is_whole(), "{source}: {seen}");
    }
}
