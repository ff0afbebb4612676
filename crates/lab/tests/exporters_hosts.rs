//! Exporters of `monitored` on real hosts: they run, Prometheus sees them, and they come and go with their hosts.
//!
//! Block 27. Everything of a cluster on the first host; the second has an Alertmanager alone, and only later.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use lab::Host;
use lab::hosts::HostSet;
use lab::scene::{CLUSTER, Scene, Shape};

const PATIENCE: Duration = Duration::from_secs(60);
const NODE: &str = "node_exporter-9100.service";
const BLACKBOX: &str = "blackbox_exporter-9115.service";
const FOLDER: &str = "/home/tidb/deploy/monitor-9100";

fn is(host: &Host, question: &str, unit: &str) -> bool {
    host.run(&["systemctl", "--quiet", question, unit]).unwrap().status.success()
}

fn both_are(host: &Host, question: &str) -> [bool; 2] {
    [NODE, BLACKBOX].map(|unit| is(host, question, unit))
}

fn exists(host: &Host, path: &str) -> bool {
    host.run(&["test", "-e", path]).unwrap().status.success()
}

fn unit_file(unit: &str) -> String {
    format!("/etc/systemd/system/{unit}")
}

/// The page that a host shows on a port.
fn page(host: &Host, port: u16, path: &str) -> String {
    let url = format!("http://{}:{port}{path}", host.address);
    ureq::get(&url).call().unwrap().body_mut().read_to_string().unwrap()
}

/// Waits until Prometheus answers a question with that number.
fn prometheus_says(scene: &Scene, query: &str, number: u32) {
    let promtool = "/home/tidb/deploy/prometheus-9090/bin/prometheus/promtool";
    let what = format!("{query} is {number}");
    scene
        .dm
        .wait_until(&what, PATIENCE, |_| {
            let words = [promtool, "query", "instant", "http://127.0.0.1:9090", query];
            let seen = scene.hosts.run_on(1, &words).map_err(|error| error.to_string())?;
            if seen.contains(&format!("=> {number} @")) { Ok(()) } else { Err(seen) }
        })
        .unwrap();
}

#[test]
#[ignore = "needs root and systemd-nspawn"]
fn exporters_run_and_come_and_go_with_their_hosts() {
    let hosts = HostSet::fresh("exporters", 27, 2).unwrap();
    let shape =
        Shape { masters: 1, workers: 1, monitoring: Some(1), exporters: true, ..Shape::three() };
    let scene = Scene::on(hosts, shape).unwrap();
    let (first, second) = (scene.hosts.host(1).unwrap(), scene.hosts.host(2).unwrap());
    // Prometheus's own 15 s are only to be waited for.
    let text = fs_err::read_to_string(scene.topology()).unwrap();
    let often = format!("monitoring_servers:\n  - host: {}\n", first.address);
    assert!(text.contains(&often), "{text}");
    let text = text.replace(&often, &format!("{often}    scrape_interval: 1s\n"));
    fs_err::write(scene.topology(), text).unwrap();
    scene.deploy().unwrap();

    // They run as they were laid out, and answer.
    assert_eq!(
        (both_are(first, "is-enabled"), both_are(first, "is-active")),
        ([true; 2], [true; 2])
    );
    assert!(page(first, 9100, "/metrics").contains("node_uname_info"));
    let probe = page(first, 9115, "/probe?module=tcp_connect&target=127.0.0.1:8261");
    assert!(probe.contains("probe_success 1"), "{probe}");
    let deploy = "/home/tidb/deploy/prometheus-9090";
    let checked = scene.hosts.run_on(
        1,
        &[
            &format!("{deploy}/bin/prometheus/promtool"),
            "check",
            "config",
            &format!("{deploy}/conf/prometheus.yml"),
        ],
    );
    assert!(checked.unwrap().contains("1 rule files found"));
    assert!(page(first, 9090, "/api/v1/rules").contains("DM_master_all_down"));

    // A host that is new gets its own, and Prometheus is told.
    let more = scene.operator.folder().join("more.yaml");
    fs_err::write(&more, format!("alertmanager_servers:\n  - host: {}\n", second.address)).unwrap();
    let key = scene.hosts.key_path();
    let words = ["scale-out", CLUSTER, more.as_str(), "-u", "root", "-i", key.as_str()];
    let said = scene.dmup(&[&words[..], &["--accept-new-host-keys", "--yes"]].concat()).well();
    assert_eq!(both_are(second, "is-active"), [true; 2], "{said}");
    prometheus_says(&scene, "count(up{job=\"overwritten-nodes\"} == 1)", 2);
    // Each pings both: that takes a right that only root has otherwise.
    prometheus_says(&scene, "count(probe_success{ping!=\"\"} == 1)", 4);
    prometheus_says(&scene, "count(up{job=~\"dm_.*\"} == 1)", 2);

    // An order reaches them where it reaches everything.
    scene.dmup(&["stop", CLUSTER, "-R", "alertmanager", "--yes"]).well();
    assert_eq!(
        (both_are(first, "is-active"), both_are(second, "is-active")),
        ([true; 2], [false; 2])
    );
    scene.dmup(&["disable", CLUSTER, "-R", "alertmanager"]).well();
    assert_eq!(
        (both_are(first, "is-enabled"), both_are(second, "is-enabled")),
        ([true; 2], [false; 2])
    );
    scene.dmup(&["start", CLUSTER, "-R", "alertmanager"]).well();
    assert_eq!(both_are(second, "is-active"), [true; 2]);
    scene.dmup(&["enable", CLUSTER, "-R", "alertmanager"]).well();
    assert_eq!(both_are(second, "is-enabled"), [true; 2]);

    // What somebody changed in a script is written anew by a reload, and both start again; with all that runs on a host they
    // are restarted, with a part of it they are not.
    let script = format!("{FOLDER}/scripts/run_node_exporter.sh");
    let read = || scene.hosts.run_on(1, &["cat", &script]).unwrap();
    let pids = || {
        [NODE, BLACKBOX].map(|unit| {
            let words = ["systemctl", "show", "-p", "MainPID", "--value", unit];
            scene.hosts.run_on(1, &words).unwrap()
        })
    };
    let (rendered, mut then) = (read(), pids());
    let mut is_restarted = || {
        let now = pids();
        let all = now.iter().zip(&then).all(|(now, then)| now != then && now.trim() != "0");
        let none = now == then;
        assert!(all || none, "{now:?} {then:?}");
        then = now;
        all
    };
    scene.hosts.run_on(1, &["sed", "-i", "$ a # by hand", &script]).unwrap();
    let plan = scene.dmup(&["reload", CLUSTER, "-R", "dm-worker", "--plan"]).well();
    assert!(plan.stdout.contains(&format!("differs: {script}")), "{plan}");
    let quick = ["--yes", "--soak", "0"];
    scene.dmup(&[&["reload", CLUSTER, "-R", "dm-worker"], &quick[..]].concat()).well();
    assert_eq!(read(), rendered);
    assert!(is_restarted());
    scene.dmup(&[&["restart", CLUSTER, "-R", "dm-worker"], &quick[..]].concat()).well();
    assert!(!is_restarted());
    let said = scene.dmup(&[&["restart", CLUSTER], &quick[..]].concat()).well();
    assert!(is_restarted(), "{said}");
    assert_eq!(
        (both_are(first, "is-active"), both_are(second, "is-active")),
        ([true; 2], [true; 2])
    );

    // The recorded words once more.
    let audit = scene.dmup(&["audit"]).well();
    let id = audit.stdout.lines().find(|line| line.contains(" disable ")).unwrap();
    scene.dmup(&["replay", id.split_whitespace().next().unwrap(), "--yes"]).well();
    assert_eq!(both_are(second, "is-enabled"), [false; 2], "{audit}");

    // What this machine knows of the cluster is lost, and put back.
    let backup = scene.operator.folder().join("backup.tar.gz");
    scene.dmup(&["meta", "backup", CLUSTER, "--file", backup.as_str()]).well();
    let known = scene.operator.tiup_home().join("storage/dm/clusters").join(CLUSTER);
    fs_err::remove_dir_all(&known).unwrap();
    scene.dmup(&["display", CLUSTER]).with_code(3);
    scene.dmup(&["meta", "restore", CLUSTER, backup.as_str(), "--yes"]).well();
    let display = scene.dmup(&["display", CLUSTER, "-R", "dm-master"]).well();
    assert!(display.stdout.contains("Healthy|L"), "{display}");

    // With a host's last instance they go; what bears the name and is somebody else's stays, and runs.
    let theirs = "[Service]\nExecStart=/bin/sleep infinity\n";
    second.put(unit_file(NODE).as_str().into(), theirs.as_bytes(), "644").unwrap();
    second.must_run(&["systemctl", "daemon-reload"]).unwrap();
    second.must_run(&["systemctl", "restart", NODE]).unwrap();
    // And another cluster of that user keeps its lease.
    let lease = |of: &str| format!("/home/tidb/.dmup/leases/{of}.json");
    second.must_run(&["cp", "-p", &lease(CLUSTER), &lease("another")]).unwrap();
    let id = format!("{}:9093", second.address);
    let said = scene.dmup(&["scale-in", CLUSTER, "-N", &id, "--yes"]).well();
    assert!(said.stderr.contains("it is not of this cluster (it starts `/bin/sleep"), "{said}");
    assert_eq!(both_are(second, "is-active"), [true, false], "{said}");
    assert!(exists(second, &unit_file(NODE)) && !exists(second, &unit_file(BLACKBOX)), "{said}");
    assert!(!exists(second, FOLDER), "{said}");
    assert!(exists(second, &lease("another")) && !exists(second, &lease(CLUSTER)), "{said}");
    assert_eq!(both_are(first, "is-active"), [true; 2], "{said}");

    // Somebody else's keeps a new instance out. Where a scale-in of TiUP has left this cluster's own, they are taken over.
    let scale_out = [&words[..], &["--accept-new-host-keys", "--yes"]].concat();
    let refused = scene.dmup(&scale_out).with_code(3);
    assert!(refused.stderr.contains("node_exporter-9100.service exists already"), "{refused}");
    second.must_run(&["systemctl", "stop", NODE]).unwrap();
    second.must_run(&["rm", &unit_file(NODE)]).unwrap();
    second.must_run(&["systemctl", "daemon-reload"]).unwrap();
    scene.dmup(&scale_out).well();
    leave_exporters(&scene, &id);
    let pid = |unit: &str| {
        let words = ["systemctl", "show", "-p", "MainPID", "--value", unit];
        scene.hosts.run_on(2, &words).unwrap()
    };
    let theirs = [NODE, BLACKBOX].map(pid);
    assert!(theirs.iter().all(|pid| pid.trim() != "0"), "{theirs:?}");
    let said = scene.dmup(&scale_out).well();
    assert!(
        said.stderr.contains("exporters of this cluster are left on ports 9100 and 9115"),
        "{said}"
    );
    assert_eq!(both_are(second, "is-active"), [true; 2], "{said}");
    assert_eq!(both_are(second, "is-enabled"), [true; 2], "{said}");
    let now = [NODE, BLACKBOX].map(pid);
    assert!(now.iter().zip(&theirs).all(|(now, then)| now != then), "{now:?} {theirs:?}");
    assert!(page(second, 9100, "/metrics").contains("node_uname_info"));
    scene.dmup(&["scale-in", CLUSTER, "-N", &id, "--yes"]).well();
    assert_eq!(both_are(second, "is-active"), [false; 2]);
    assert!(!exists(second, FOLDER) && !exists(second, &unit_file(NODE)));

    let said = scene.dmup(&["destroy", CLUSTER, "--yes"]).well();
    assert_eq!(both_are(first, "is-active"), [false; 2], "{said}");
    for path in [FOLDER, &unit_file(NODE), &unit_file(BLACKBOX), "/home/tidb/.dmup"] {
        assert!(!exists(first, path), "{path} is still there\n{said}");
    }
}

/// As a `scale-in` of TiUP: the instance goes, what lies of it, and the key; exporters run on.
fn leave_exporters(scene: &Scene, id: &str) {
    let second = scene.hosts.host(2).unwrap();
    let copies = ["/root/units", "/root/monitor"];
    second.must_run(&["mkdir", copies[0]]).unwrap();
    for unit in [NODE, BLACKBOX] {
        second.must_run(&["cp", "-p", &unit_file(unit), copies[0]]).unwrap();
    }
    second.must_run(&["cp", "-pr", FOLDER, copies[1]]).unwrap();
    scene.dmup(&["scale-in", CLUSTER, "-N", id, "--yes"]).well();
    for unit in [NODE, BLACKBOX] {
        second.must_run(&["mv", &format!("{}/{unit}", copies[0]), &unit_file(unit)]).unwrap();
    }
    second.must_run(&["mv", copies[1], FOLDER]).unwrap();
    second.must_run(&["systemctl", "daemon-reload"]).unwrap();
    second.must_run(&["systemctl", "enable", "--now", NODE, BLACKBOX]).unwrap();
    assert_eq!(both_are(second, "is-active"), [true; 2]);
}
