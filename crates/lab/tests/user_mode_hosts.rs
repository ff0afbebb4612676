//! `systemd_mode: user`: a cluster whose services the deploy user's own systemd runs, on hosts where that user may nothing.
//!
//! Block 29. Nobody has sudo rights, that user's home is not below `/home`, and the cluster has `enable_tls`. The fourth host is met
//! later, as root, and has that user's home where Debian puts it.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use lab::hosts::HostSet;
use lab::packages::{Component, Packer};
use lab::scene::{CLUSTER, Scene, Shape, TASK, USER_MODE_HOME as HOME};
use lab::{Host, surroundings, wait_until};
use lookalike::stamp::{Fault, Stamp};

const UNITS: &str = "/srv/people/tidb/.config/systemd/user";
const PATIENCE: Duration = Duration::from_secs(120);

/// A user with the key of the set's root and no rights.
fn make_user(host: &Host) {
    host.must_run(&["install", "-d", "/srv/people"]).unwrap();
    host.must_run(&["useradd", "-m", "-d", HOME, "-s", "/bin/bash", "tidb"]).unwrap();
    let keys = format!("{HOME}/.ssh/authorized_keys");
    let folder = format!("{HOME}/.ssh");
    host.must_run(&["install", "-d", "-o", "tidb", "-m", "700", &folder]).unwrap();
    let copy = ["install", "-o", "tidb", "-m", "600", "/root/.ssh/authorized_keys", &keys];
    host.must_run(&copy).unwrap();
}

fn let_linger(host: &Host) {
    host.must_run(&["loginctl", "enable-linger", "tidb"]).unwrap();
}

fn exists(host: &Host, path: &str) -> bool {
    host.run(&["test", "-e", path]).unwrap().status.success()
}

/// Whether the user's systemd says yes to all of it.
fn says(scene: &Scene, host: &Host, question: &str, units: &[&str]) -> bool {
    let words = [&["--quiet", question], units].concat();
    host.run(&scene.systemctl(&words)).unwrap().status.success()
}

/// Until some node runs another build than before; answers with its host.
fn await_the_build<'s>(scene: &'s Scene, old: &[(String, String)]) -> &'s Host {
    let mut changed = None;
    let came = wait_until(PATIENCE, || {
        let now = scene.running_hashes();
        let mut pairs = now.into_iter().zip(old);
        changed = pairs.find(|(now, old)| now.1 != "down" && now.1 != old.1).map(|it| it.0.0);
        changed.is_some()
    });
    assert!(came, "no node ever ran the build");
    let place = changed.unwrap();
    scene.hosts.hosts().iter().find(|host| place.starts_with(&host.name)).unwrap()
}

/// A command whose dmup is killed as soon as the first node runs what it brings; answers with that node's host.
fn killed_in_a_window<'s>(scene: &'s Scene, words: &[&str], old: &[(String, String)]) -> &'s Host {
    let mut child = scene.operator.begin(words).unwrap();
    let host = await_the_build(scene, old);
    child.kill().unwrap();
    child.wait().unwrap();
    host
}

#[test]
#[ignore = "needs root and systemd-nspawn"]
fn a_cluster_of_a_user_without_rights_is_deployed_hotfixed_and_taken_back() {
    let shape = Shape {
        monitoring: Some(1),
        exporters: true,
        user_mode: true,
        tls: true,
        ..Shape::three()
    };
    let mut scene = Scene::on(HostSet::fresh("usermode", 29, 4).unwrap(), shape).unwrap();
    scene.hosts.hosts()[..3].iter().for_each(make_user);

    // Without lingering, services would end with a login: said of every host, and nothing is touched.
    let refused = scene.deploy_as("tidb").with_code(3);
    let hint = "`loginctl enable-linger tidb`";
    assert_eq!(refused.stderr.matches(hint).count(), 3, "{refused}");
    for host in &scene.hosts.hosts()[..3] {
        assert!(!exists(host, &format!("{HOME}/deploy")) && !exists(host, UNITS), "{refused}");
        let_linger(host);
    }

    // Deployed and started, all by that user.
    scene.deploy_as("tidb").well();
    scene.dmup(&["start", CLUSTER]).well();
    let first = scene.hosts.host(1).unwrap();
    let all = [
        "dm-master-8261.service",
        "dm-worker-8262.service",
        "prometheus-9090.service",
        "grafana-3000.service",
        "alertmanager-9093.service",
        "node_exporter-9100.service",
        "blackbox_exporter-9115.service",
    ];
    for question in ["is-active", "is-enabled"] {
        assert!(says(&scene, first, question, &all), "{question}");
    }
    for unit in all {
        assert!(exists(first, &format!("{UNITS}/{unit}")), "{unit}");
        assert!(!exists(first, &format!("/etc/systemd/system/{unit}")), "{unit}");
    }
    let display = scene.dmup(&["display", CLUSTER, "--verify"]).well();
    assert_eq!(display.stdout.matches("Healthy").count(), 3, "{display}");
    scene.replicate(30).unwrap();
    let first = scene.hosts.host(1).unwrap();

    // A hotfix and back, with the guard's units armed and gone again.
    let old = scene.running_hashes();
    let good = scene.hotfix("good.tar.gz", &scene.fixed()).unwrap();
    scene.dmup(&["patch", CLUSTER, good.as_str(), "--yes", "--soak", "0"]).well();
    let new = scene.running_hashes();
    assert!(new.iter().zip(&old).all(|(new, old)| new.1 != old.1 && new.1 != "down"), "{new:?}");
    assert!(scene.armed_guards().is_empty(), "{:?}", scene.armed_guards());
    scene.dmup(&["rollback", CLUSTER, "--yes", "--soak", "0"]).well();
    assert_eq!(scene.running_hashes(), old);

    // dmup dies in a window: the host goes back by itself.
    let stamp = Stamp::new("v8.1.0-stuck", &"5".repeat(40)).with_fault(Fault::NeverJoin);
    let stuck = scene.hotfix("stuck.tar.gz", &stamp).unwrap();
    let words = ["patch", CLUSTER, stuck.as_str(), "-R", "dm-worker", "--yes", "--guard"];
    killed_in_a_window(&scene, &[&words[..], &["10"]].concat(), &old);
    let went_back = || wait_until(PATIENCE, || scene.running_hashes() == old);
    assert!(went_back(), "the host did not go back: {:?}", scene.running_hashes());
    scene.dmup(&["rollback", CLUSTER, "--yes"]).well();

    // So does one that loses its power, long before the guard's time is up: the user's systemd starts without a login. And
    // one whose systemd of that user alone starts again.
    let restart =
        |host: &Host| drop(host.must_run(&["systemctl", "restart", "user@1000"]).unwrap());
    let causes: [&dyn Fn(&Host); 2] = [&|host| host.power_cycle().unwrap(), &restart];
    for cause in causes {
        let host = killed_in_a_window(&scene, &[&words[..], &["3600"]].concat(), &old);
        let armed = scene.armed_guards();
        assert_eq!(armed.len(), 2, "record and timer: {armed:?}");
        cause(host);
        assert!(went_back(), "the host did not go back: {:?}", scene.running_hashes());
        scene.dmup(&["rollback", CLUSTER, "--yes"]).well();
        assert!(scene.armed_guards().is_empty(), "{:?}", scene.armed_guards());
        scene.in_service(PATIENCE).unwrap();
    }

    // An upgrade that is killed as well, and goes on where it stood: units and scripts go with the builds.
    let official =
        Packer::new(&surroundings::lookalike_binary().unwrap(), &scene.operator.packages())
            .unwrap();
    for component in [Component::DmMaster, Component::DmWorker] {
        official.package(component, &Stamp::new("v8.5.0", &"6".repeat(40))).unwrap();
    }
    let unit = format!("{UNITS}/dm-worker-8262.service");
    first.must_run(&["sed", "-i", "s/^Description=.*/Description=by hand/", &unit]).unwrap();
    let described = || {
        let words = scene.systemctl(&["show", "-p", "Description,NeedDaemonReload", all[1]]);
        let owner = first.must_run(&["stat", "-c", "%U", &unit]).unwrap();
        first.must_run(&words).unwrap() + &owner
    };
    killed_in_a_window(&scene, &["upgrade", CLUSTER, "v8.5.0", "--yes", "--soak", "0"], &old);
    scene.dmup(&["resume", CLUSTER]).well();
    let new = scene.running_hashes();
    assert!(new.iter().zip(&old).all(|(new, old)| new.1 != old.1 && new.1 != "down"), "{new:?}");
    assert_eq!(described(), "Description=dm-worker service\nNeedDaemonReload=no\ntidb\n");

    // A host whose services would end with the last login is named before anything is touched.
    // (Told by hand, logind would end them within seconds.)
    first.must_run(&["rm", "/var/lib/systemd/linger/tidb"]).unwrap();
    let refused = scene.dmup(&["rollback", CLUSTER, "--yes"]).with_code(3);
    assert!(refused.stderr.contains(hint), "{refused}");
    let refused = scene.dmup(&["start", CLUSTER, "-R", "grafana"]);
    assert!(refused.code != 0 && refused.stderr.contains(hint), "{refused}");
    let_linger(first);
    scene.dmup(&["rollback", CLUSTER, "--yes", "--soak", "0"]).well();
    assert_eq!(scene.running_hashes(), old);

    assert_eq!(described(), "Description=by hand\nNeedDaemonReload=no\ntidb\n");

    // Windows without a build, and orders to units.
    scene.dmup(&["reload", CLUSTER, "-R", "dm-worker", "--soak", "0", "--yes"]).well();
    assert_eq!(described(), "Description=dm-worker service\nNeedDaemonReload=no\ntidb\n");
    scene.dmup(&["restart", CLUSTER, "--soak", "0", "--yes"]).well();
    scene.dmup(&["stop", CLUSTER, "-R", "grafana", "--yes"]).well();
    assert!(!says(&scene, first, "is-active", &all[3..4]));
    scene.dmup(&["disable", CLUSTER, "-R", "grafana"]).well();
    assert!(!says(&scene, first, "is-enabled", &all[3..4]));
    scene.dmup(&["enable", CLUSTER, "-R", "grafana"]).well();
    scene.dmup(&["start", CLUSTER, "-R", "grafana"]).well();
    for question in ["is-active", "is-enabled"] {
        assert!(says(&scene, first, question, &all), "{question}");
    }

    // A host that knows no such user: root makes it and lets it linger.
    let fourth = scene.hosts.host(4).unwrap();
    let more = scene.operator.folder().join("more.yaml");
    fs_err::write(&more, format!("worker_servers:\n  - host: {}\n", fourth.address)).unwrap();
    let key = scene.hosts.key_path();
    let words = ["scale-out", CLUSTER, more.as_str(), "-u", "root", "-i", key.as_str()];
    let words = [&words[..], &["--accept-new-host-keys", "--yes"]].concat();
    // The cluster's folders are not below that user's home there, and a user without rights makes none where it may not.
    let refused = scene.dmup(&words).with_code(3);
    let seen = "cannot be made by tidb, whose systemd runs it: /srv belongs to root";
    assert!(refused.stderr.contains(seen), "{refused}");
    assert!(fourth.must_run(&["id", "tidb"]).is_err(), "{refused}");
    fourth.must_run(&["install", "-d", "-m", "1777", "/srv/people"]).unwrap();
    scene.dmup(&words).well();
    assert!(says(&scene, fourth, "is-active", &[all[1], all[5], all[6]]));
    assert!(!exists(fourth, "/etc/sudoers.d/tidb"));
    assert!(exists(fourth, "/home/tidb/.config/systemd/user/dm-worker-8262.service"));
    let id = format!("{}:8262", fourth.address);
    scene.dmup(&["scale-in", CLUSTER, "-N", &id, "--yes"]).well();
    scene.dm.wait_running(TASK, 2, PATIENCE).unwrap();

    let flow = scene.flow().expect("rows flow");
    for (source, seen) in flow.witness.settle(&flow.writer, PATIENCE) {
        assert!(seen.is_whole(), "{source}: {seen}");
    }

    // Nothing is left, of any of it.
    scene.dmup(&["destroy", CLUSTER, "--yes"]).well();
    for host in scene.hosts.hosts() {
        let home = host.must_run(&["sh", "-c", "echo ~tidb"]).unwrap();
        let home = home.trim();
        let find = ["find", home, "-mindepth", "1", "-not", "-name", ".bash*", "-type", "f"];
        let files = host.must_run(&find).unwrap();
        let ours = files.lines().filter(|file| !file.ends_with("/.profile"));
        let ours: Vec<&str> = ours.filter(|file| !file.contains("/.ssh/")).collect();
        assert!(ours.is_empty(), "{}: {ours:?}", host.name);
        assert!(!exists(host, &format!("{home}/.dmup")) && !exists(host, "/var/lib/dmup"));
        let services = scene.systemctl(&["list-units", "--all", "--no-legend", "dm*"]);
        assert_eq!(host.must_run(&services).unwrap(), "", "{}", host.name);
    }
}
