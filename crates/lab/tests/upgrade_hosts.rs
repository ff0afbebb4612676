//! An upgrade whose dmup is killed: the host alone brings build and files from before back; then the upgrade to its end,
//! with monitoring and exporters, of which one thing after the other goes wrong.
//!
//! Block 28. A line that somebody has put into every run script of dm-worker, and into the alert rules, makes them differ
//! from what the topology and the package say.

use std::path::Path;
use std::time::Duration;

use lab::packages::{Component, Packer};
use lab::scene::{CLUSTER, Scene, Shape, TASK};
use lab::{surroundings, wait_until};
use lookalike::stamp::{Fault, Stamp};

const RULES: &str = "/home/tidb/deploy/prometheus-9090/conf/dm_worker.rules.yml";
const NODE: &str = "node_exporter-9100.service";
const BLACKBOX: &str = "blackbox_exporter-9115.service";
const SCRIPT: &str = "/home/tidb/deploy/dm-worker-8262/scripts/run_dm-worker.sh";

#[test]
#[ignore = "needs root and systemd-nspawn"]
fn a_version_comes_and_goes_with_its_files_whoever_takes_it_back() {
    let shape = Shape { exporters: true, ..Shape::with_monitoring() };
    let scene = Scene::running("upgrade", 28, shape, 30).unwrap();
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
    let heading = "Upgrade of prod from v8.1.0 to v8.5.0, 6 node(s)";
    assert!(plan.stdout.contains(heading), "{plan}");
    // Of monitoring no package is at hand, or the one that it has: told, and left.
    assert!(plan.stderr.contains("stays as it is: prometheus: looked for"), "{plan}");
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

    // One that works, with monitoring: a Prometheus that does not start, an Alertmanager that is down, and an exporter
    // whose unit is somebody else's.
    release(Component::DmWorker, &next);
    for component in [
        Component::Grafana,
        Component::Alertmanager,
        Component::NodeExporter,
        Component::BlackboxExporter,
    ] {
        release(component, &next);
    }
    let bad = Path::new("/usr/bin/promtool");
    official.package_with(Component::Prometheus, "v8.5.0", bad).unwrap();
    scene.hosts.run_on(4, &["sed", "-i", "$ a # by hand", RULES]).unwrap();
    let rules = || scene.hosts.run_on(4, &["cat", RULES]).unwrap();
    let rules_by_hand = rules();
    scene.hosts.run_on(4, &["systemctl", "stop", "alertmanager-9093.service"]).unwrap();
    let theirs = format!("/etc/systemd/system/{BLACKBOX}");
    let second = scene.hosts.host(2).unwrap();
    second
        .put(theirs.as_str().into(), b"[Service]\nExecStart=/bin/sleep infinity\n", "644")
        .unwrap();
    second.must_run(&["systemctl", "daemon-reload"]).unwrap();
    // Prometheus, Grafana, Alertmanager; then the exporters of each host.
    let beside = || -> Vec<Option<String>> {
        let monitoring =
            ["prometheus-9090.service", "grafana-3000.service", "alertmanager-9093.service"];
        let mut units: Vec<(u8, &str)> = monitoring.map(|unit| (4, unit)).to_vec();
        units.extend((1..=4).flat_map(|host| [(host, NODE), (host, BLACKBOX)]));
        let hash = |(host, unit)| scene.running_hash(scene.hosts.host(host).unwrap(), unit);
        units.into_iter().map(hash).collect()
    };
    let before = beside();
    assert_eq!((before.len(), &before[2]), (11, &None));
    let plan = scene.dmup(&["upgrade", CLUSTER, "v8.5.0", "--plan"]).well();
    let heading = "Upgrade of prod from v8.1.0 to v8.5.0, 16 node(s)";
    assert!(plan.stdout.contains(heading), "{plan}");
    assert!(plan.stdout.contains("send the package of node_exporter to"), "{plan}");
    assert!(plan.stdout.contains(":9093 (alertmanager) is down"), "{plan}");
    assert!(plan.stderr.contains("it is not of this cluster (it starts `/bin/sleep"), "{plan}");
    // A pause after Grafana: whoever resumes has the rest of monitoring before them, and what has failed behind.
    let paused = scene.dmup(&[&upgrade[..], &["--pause-after", "7"]].concat()).well();
    assert!(paused.stderr.contains("Paused after 7 node(s)"), "{paused}");
    assert!(meta().contains("dm_version: v8.5.0"), "DM has it: {paused}");
    let resumed = scene.dmup(&["resume", CLUSTER]).with_code(6);
    assert!(resumed.stderr.contains(":9090 was put back"), "{resumed}");
    assert_eq!(scripts(), rendered);
    assert!(meta().contains("dm_version: v8.5.0") && !meta().contains("patched"), "{}", meta());
    let new = scene.running_hashes();
    assert!(new.iter().zip(&old).all(|(new, old)| new.1 != old.1 && new.1 != "down"), "{new:?}");
    let now = beside();
    let same: Vec<usize> = (0..now.len()).filter(|at| now[*at] == before[*at]).collect();
    assert_eq!(same, [0, 6], "Prometheus is back, and so is what is not ours: {now:?}");
    assert!(now.iter().all(Option::is_some), "{now:?}");
    assert_eq!(rules(), rules_by_hand, "with its files");

    // The same once more, with a Prometheus that starts.
    release(Component::Prometheus, &next);
    let said = scene.dmup(&upgrade).well();
    assert!(said.stderr.contains("Done: 1 node(s)"), "{said}");
    assert_ne!(beside()[0], before[0]);
    assert_eq!((beside()[1..].to_vec(), scene.running_hashes()), (now[1..].to_vec(), new));
    assert_ne!(rules(), rules_by_hand);
    assert!(scene.dmup(&upgrade).well().stderr.contains("runs v8.5.0 already"));

    // A week later.
    let back = scene.dmup(&["rollback", CLUSTER, "--yes", "--soak", "0"]).well();
    assert_eq!((scene.running_hashes(), scripts()), (old, by_hand), "{back}");
    assert_eq!(rules(), rules_by_hand);
    let (mut then, mut now) = (before, beside());
    // It was down, and came up with the run.
    assert!(now[2].is_some());
    (then[2], now[2]) = (None, None);
    assert_eq!(now, then, "{back}");
    assert!(meta().contains("dm_version: v8.1.0"), "{}", meta());
    scene.dm.wait_running(TASK, 2, Duration::from_secs(60)).unwrap();
    let flow = scene.flow().expect("rows flow");
    for (source, seen) in flow.witness.settle(&flow.writer, Duration::from_secs(60)) {
        assert!(seen.is_whole(), "{source}: {seen}");
    }
}
