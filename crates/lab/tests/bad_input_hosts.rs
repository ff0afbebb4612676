//! Everything that can be wrong on the way to a patch, on real hosts: each has its own error and exit code, and changes nothing.
//!
//! Block 4. After every refusal the processes, the binaries on disk and `meta.yaml` are compared with before. In the end, what
//! only fails once something was touched: a unit that does not start, a user that cannot be made, a folder in the way.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::process::Command;

use lab::hosts::HostSet;
use lab::packages::{Component, Layout};
use lab::scene::{CLUSTER, Scene, Shape};
use lookalike::stamp::{Fault, Stamp};

/// What must not change: running builds, files of `bin`, `meta.yaml`.
fn fingerprint(scene: &Scene) -> String {
    let mut all = format!("{:?}", scene.running_hashes());
    for number in 1..=3 {
        let files = "find /home/tidb/deploy/*/bin -type f -exec sha256sum {} + | sort";
        all.push_str(&scene.hosts.run_on(number, &["sh", "-c", files]).unwrap());
    }
    all.push_str(
        &fs_err::read_to_string(
            scene.operator.tiup_home().join("storage/dm/clusters/prod/meta.yaml"),
        )
        .unwrap(),
    );
    all
}

#[test]
#[ignore = "needs root and systemd-nspawn"]
fn what_is_wrong_is_named_and_nothing_changes() {
    // The fourth is new to the cluster.
    let hosts = HostSet::fresh("tbad", 4, 4).unwrap();
    let mut scene = Scene::on(hosts, Shape::three()).unwrap();
    scene.deploy().unwrap();
    scene.replicate(10).unwrap();
    let before = fingerprint(&scene);
    let good = scene.hotfix("good.tar.gz", &scene.fixed()).unwrap();
    let refused = |words: &[&str], code: i32, text: &str| {
        let said = scene.dmup(words).with_code(code);
        assert!(said.stderr.contains(text), "expected `{text}`\n{said}");
        assert_eq!(fingerprint(&scene), before, "{said}");
    };
    let patch = |package: &str, code: i32, text: &str| {
        refused(&["patch", CLUSTER, package, "--yes"], code, text);
    };

    // The package, as far as only a host can tell.
    let stamp = Stamp::new("v8.1.0-x", &"6".repeat(40)).with_fault(Fault::ExitAtVersion);
    let bad = scene.hotfix("minus-v.tar.gz", &stamp).unwrap();
    patch(bad.as_str(), 1, "-V");
    let bare = scene
        .packer
        .hotfix("dm-worker", &[Component::DmWorker], &scene.fixed(), Layout::Bare)
        .unwrap();
    refused(&["patch", CLUSTER, bare.as_str(), "-R", "dm-worker", "--plan"], 0, "");

    // A host that is not there, one with another key, one where we may not log in, one where sudo asks.
    let h3 = scene.hosts.host(3).unwrap();
    h3.cut_network().unwrap();
    patch(good.as_str(), 3, &h3.address.to_string());
    h3.restore_network().unwrap();
    assert!(lab::wait_until(std::time::Duration::from_secs(60), || h3.sshd_greets()));
    h3.change_host_key().unwrap();
    patch(good.as_str(), 3, "has changed");
    h3.restore_host_key().unwrap();
    assert!(lab::wait_until(std::time::Duration::from_secs(60), || h3.sshd_greets()));
    h3.must_run(&["mv", "/home/tidb/.ssh/authorized_keys", "/home/tidb/.ssh/away"]).unwrap();
    patch(good.as_str(), 3, "log in to");
    h3.must_run(&["mv", "/home/tidb/.ssh/away", "/home/tidb/.ssh/authorized_keys"]).unwrap();
    h3.must_run(&["mv", "/etc/sudoers.d/tidb", "/root/tidb"]).unwrap();
    patch(good.as_str(), 3, "sudo");
    h3.must_run(&["mv", "/root/tidb", "/etc/sudoers.d/tidb"]).unwrap();

    // An instance that is down already is named, with the flag that includes it.
    h3.must_run(&["systemctl", "stop", "dm-worker-8262.service"]).unwrap();
    let said = scene.dmup(&["patch", CLUSTER, good.as_str(), "--yes"]).with_code(3);
    assert!(said.stderr.contains("--include-down"), "{said}");
    h3.must_run(&["systemctl", "start", "dm-worker-8262.service"]).unwrap();

    // Too small a disk.
    let deploy = camino::Utf8Path::new("/home/tidb/.dmup");
    h3.limit_disk(deploy, 512).unwrap();
    let said = scene.dmup(&["patch", CLUSTER, good.as_str(), "--yes"]);
    assert!(said.code == 3 || said.code == 1, "{said}");
    assert!(said.stderr.to_lowercase().contains("space") || said.stderr.contains("free"), "{said}");
    h3.lift_disk_limit(deploy).unwrap();

    // No room here to write the run down: it does not begin, and leaves nothing that would be in the way of the next one.
    let runs = scene.operator.tiup_home().join("storage/dm/clusters/prod/dmup/runs");
    fs_err::create_dir_all(&runs).unwrap();
    let on_runs = |words: &[&str]| {
        assert!(Command::new(words[0]).args(&words[1..]).arg(&runs).status().unwrap().success());
    };
    on_runs(&["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs"]);
    let said = scene.dmup(&["patch", CLUSTER, good.as_str(), "--yes"]);
    let left = fs_err::read_dir(&runs).unwrap().count();
    on_runs(&["umount"]);
    assert_eq!((said.code, left), (1, 0), "{said}");
    for text in ["No space left", "nothing was touched"] {
        assert!(said.stderr.contains(text), "{text}\n{said}");
    }
    assert_eq!(fingerprint(&scene), before, "{said}");

    // What only the hosts can tell: another desk knows no cluster there. Every finding of every host at once.
    let stranger = tempfile::tempdir().unwrap();
    let stranger =
        scene.operator.twin(camino::Utf8Path::from_path(stranger.path()).unwrap()).unwrap();
    fs_err::remove_dir_all(stranger.tiup_home().join("storage/dm/clusters")).unwrap();
    let (topology, key) = (scene.topology(), scene.hosts.key_path());
    let mut words = vec!["deploy", "other", "v8.1.0", topology.as_str(), "-u", "root", "-i"];
    words.extend([key.as_str(), "--yes", "--accept-new-host-keys"]);
    let said = stranger.run(&words).with_code(3);
    for number in 1..=3 {
        let host = scene.hosts.host(number).unwrap().address;
        for text in [
            "somebody listens on port 8261",
            "/etc/systemd/system/dm-worker-8262.service exists already, dm-worker-8262.service is running",
            "/home/tidb/deploy/dm-master-8261/bin exists already",
        ] {
            assert!(said.stderr.contains(&format!("{host}: {text}")), "{host}: {text}\n{said}");
        }
    }
    assert_eq!(fingerprint(&scene), before, "{said}");

    // A host that does not answer keeps nobody from telling about the others: mounts, and packages that are not there.
    for (folder, options) in [("/srv/noexec", "noexec,size=100m"), ("/srv/full", "size=1m")] {
        h3.must_run(&["mkdir", "-p", folder]).unwrap();
        h3.must_run(&["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]).unwrap();
    }
    let (second, third) = (scene.hosts.host(2).unwrap().address, h3.address);
    let text = format!(
        "global: {{user: tidb}}\nmaster_servers:\n  - host: {third}\n    port: 7261\n    peer_port: 7291\n    \
         deploy_dir: /srv/noexec/m\n    data_dir: /srv/full/m\nworker_servers:\n  - {{host: {second}, ssh_port: 9}}\n"
    );
    let mounted = scene.operator.folder().join("mounted.yaml");
    fs_err::write(&mounted, text).unwrap();
    let mut words = vec!["deploy", "other", "v9.9.9", mounted.as_str(), "-u", "root", "-i"];
    words.extend([key.as_str(), "--yes", "--accept-new-host-keys"]);
    let said = stranger.run(&words).with_code(3);
    for text in [
        "4 thing(s) are in the way of other".to_owned(),
        format!("{second}:9"),
        format!("dm-master-v9.9.9-linux-{}.tar.gz", lab::packages::arch()),
        format!(
            "{third}: /srv/noexec/m of {third}:7261 is on a file system that is mounted noexec"
        ),
        format!("{third}: /srv/full/m has 1048576 bytes free, {third}:7261 need"),
    ] {
        assert!(said.stderr.contains(&text), "{text}\n{said}");
    }
    for folder in ["/srv/noexec", "/srv/full"] {
        h3.must_run(&["umount", folder]).unwrap();
    }
    assert_eq!(fingerprint(&scene), before, "{said}");

    // `deploy` on hosts where the cluster stands: every finding at once.
    let topology = scene.topology();
    let key = scene.hosts.key_path();
    let words =
        ["deploy", "other", "v8.1.0", topology.as_str(), "-u", "root", "-i", key.as_str(), "--yes"];
    let said = scene.dmup(&words).with_code(3);
    assert!(said.stderr.contains("prod"), "{said}");
    let list = scene.dmup(&["list"]).well();
    assert!(!list.stdout.contains("other"), "{list}");

    a_unit_that_does_not_start_is_told_with_its_last_words(&scene);
    a_port_that_somebody_else_has_is_told_before_anything_is_started(&scene);
    a_host_that_cannot_be_laid_out_is_told_and_the_same_command_goes_on(&scene);
}

/// The unit's program ends at once: systemd starts it again and again, and says at first that all is well.
fn a_unit_that_does_not_start_is_told_with_its_last_words(scene: &Scene) {
    let h3 = scene.hosts.host(3).unwrap();
    let node = format!("{}:8262", h3.address);
    let (script, away) = (
        "/home/tidb/deploy/dm-worker-8262/scripts/run_dm-worker.sh",
        "/home/tidb/deploy/dm-worker-8262/scripts/away",
    );
    h3.must_run(&["systemctl", "stop", "dm-worker-8262.service"]).unwrap();
    h3.must_run(&["mv", script, away]).unwrap();
    h3.put(script.into(), b"#!/bin/bash\necho worn out >&2\nexit 7\n", "0755").unwrap();
    let start = ["start", CLUSTER, "-R", "dm-worker"];
    let said = scene.dmup(&[&start[..], &["--wait-timeout", "2"]].concat()).with_code(1);
    let others: Vec<String> =
        scene.hosts.hosts()[..2].iter().map(|host| format!("{}:8262", host.address)).collect();
    for text in [
        "error: start dm-worker\n".to_owned(),
        format!("why: {node}: port 8262 is not open after"),
        "dm-worker-8262.service is activating (auto-restart)".to_owned(),
        "dm-worker-8262.service: exited, status=7".to_owned(),
        "worn out".to_owned(),
        format!("now: up: {}\n", others.join(", ")),
        format!("started, and not answering: {node}\n"),
        "hint: `dmup start prod` once the cause is gone".to_owned(),
    ] {
        assert!(said.stderr.contains(&text), "{text}\n{said}");
    }
    h3.must_run(&["mv", away, script]).unwrap();
    let said = scene.dmup(&start).well();
    assert!(said.stderr.contains("Started cluster"), "{said}");
}

/// It answers on the port, and would be taken for the node.
fn a_port_that_somebody_else_has_is_told_before_anything_is_started(scene: &Scene) {
    let h3 = scene.hosts.host(3).unwrap();
    let pid = |unit| h3.must_run(&["systemctl", "show", "-p", "MainPID", "--value", unit]).unwrap();
    h3.must_run(&["systemctl", "stop", "dm-worker-8262.service"]).unwrap();
    let squat = ["systemd-run", "--unit=squatter", "systemd-socket-activate", "-l", "8262", "cat"];
    h3.must_run(&squat).unwrap();
    let listens = || {
        let shown = h3.must_run(&["cat", "/proc/net/tcp", "/proc/net/tcp6"]).unwrap();
        shown.lines().any(|line| line.contains(":2046 ") && line.contains(" 0A "))
    };
    assert!(lab::wait_until(std::time::Duration::from_secs(60), listens));
    for words in [&["start", CLUSTER][..], &["restart", CLUSTER, "--fast", "--yes"]] {
        let said = scene.dmup(words).with_code(3);
        let why = format!(
            "why: {}:8262: its unit is down, and somebody else listens on port 8262",
            h3.address
        );
        for text in
            [&why[..], "`ss -ltnp`", "now: nothing was touched", "then give the same command"]
        {
            assert!(said.stderr.contains(text), "{text}\n{said}");
        }
        assert_eq!(pid("dm-worker-8262.service").trim(), "0", "{said}");
    }
    h3.must_run(&["systemctl", "stop", "squatter.service"]).unwrap();
    let said = scene.dmup(&["start", CLUSTER]).well();
    assert!(said.stderr.contains("Started cluster"), "{said}");
}

/// `useradd` that fails, wholly and half-way, and a file where a folder shall be: nothing is recorded, and once the cause
/// is gone the same command brings the node.
fn a_host_that_cannot_be_laid_out_is_told_and_the_same_command_goes_on(scene: &Scene) {
    let h4 = scene.hosts.host(4).unwrap();
    let folder = scene.operator.tiup_home().join("storage/dm/clusters").join(CLUSTER);
    let meta = || fs_err::read_to_string(folder.join("meta.yaml")).unwrap();
    let before = meta();
    let more = scene.operator.folder().join("more.yaml");
    let text = format!("worker_servers:\n  - {{host: {}, deploy_dir: /srv/dm/w}}\n", h4.address);
    fs_err::write(&more, text).unwrap();
    let key = scene.hosts.key_path();
    let mut words = vec!["scale-out", CLUSTER, more.as_str(), "-u", "root", "-i", key.as_str()];
    words.extend(["--accept-new-host-keys", "--yes"]);
    let fails = |texts: &[&str]| {
        let said = scene.dmup(&words).with_code(1);
        for text in texts {
            assert!(said.stderr.contains(text), "{text}\n{said}");
        }
        assert_eq!(meta(), before, "{said}");
        let hint = "hint: give the same command again after the cause is gone";
        assert!(said.stderr.contains(hint), "{said}");
        // Whatever has come about of it there, none of it runs or will.
        let left = "ls -d /etc/systemd/system/dm-* /etc/systemd/system/*.wants/dm-* /srv/dm/w/bin 2>/dev/null; true";
        assert_eq!(h4.must_run(&["sh", "-c", left]).unwrap(), "", "{said}");
    };
    let user = || h4.run(&["id", "tidb"]).unwrap().status.success();

    h4.must_run(&["mv", "/usr/sbin/useradd", "/root/useradd"]).unwrap();
    let locked =
        "#!/bin/sh\necho 'useradd: cannot lock /etc/passwd; try again later.' >&2\nexit 1\n";
    h4.put("/usr/sbin/useradd".into(), locked.as_bytes(), "0755").unwrap();
    fails(&[
        "error: prepare the hosts",
        &format!("why: make the user tidb on {}: useradd -m", h4.address),
        "cannot lock /etc/passwd; try again later. (exit status 1)",
        "now: nothing is laid out and nothing recorded",
    ]);
    assert!(!user());
    h4.must_run(&["mv", "/root/useradd", "/usr/sbin/useradd"]).unwrap();

    // Homes are elsewhere, and that is away: the user is made, and has no home.
    h4.must_run(&["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", "/home"]).unwrap();
    fails(&["error: prepare the hosts", "/home/tidb", "now: nothing is laid out"]);
    assert!(user());
    h4.must_run(&["umount", "/home"]).unwrap();
    assert!(!h4.run(&["ls", "/home/tidb"]).unwrap().status.success());

    h4.put("/srv/dm/w/conf".into(), b"somebody's", "0644").unwrap();
    h4.must_run(&["chown", "-R", "tidb", "/srv/dm"]).unwrap();
    fails(&[
        "error: lay the instances out",
        "make folder /srv/dm/w/conf: there is something of that name that is no folder",
        "now: nothing of it is recorded and nothing was started; units and programs are taken away",
    ]);
    h4.must_run(&["rm", "/srv/dm/w/conf"]).unwrap();

    let said = scene.dmup(&words).well();
    assert_eq!(scene.dm.workers().len(), 4, "{said}");
    let owner = h4.must_run(&["stat", "-c", "%U %a", "/home/tidb", "/home/tidb/.ssh"]).unwrap();
    assert_eq!(owner, "tidb 700\ntidb 700\n", "{said}");
}
