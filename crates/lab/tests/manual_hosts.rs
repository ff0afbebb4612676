//! The manual's own cluster: everything once, on one host, DM v5.3.0. Its commands (also as `tiup dm`), its tables, and `destroy`.
//!
//! Block 5. One master and one worker: patching them needs consent, which `--yes` gives.

use std::time::Duration;

use lab::packages::{Component, Layout};
use lab::scene::{CLUSTER, Scene, Shape};
use lookalike::stamp::Stamp;

#[test]
#[ignore = "needs root and systemd-nspawn"]
fn the_manual_as_it_is_written() {
    let mut scene = Scene::set("manual", 5, Shape::manual()).unwrap();
    scene.deploy().unwrap();
    let host = scene.hosts.hosts()[0].address;

    // `display` before: the manual's table, byte for byte but for addresses and the header line that TiUP 1.16.5 adds.
    let wait_up = || {
        scene
            .dm
            .wait_until("all is up", Duration::from_secs(60), |_| {
                let said = scene.dmup(&["display", CLUSTER]);
                if said.stdout.contains("  Up")
                    && !said.stdout.contains("Down")
                    && said.stdout.contains("Healthy|L")
                {
                    Ok(())
                } else {
                    Err(said.to_string())
                }
            })
            .unwrap();
        scene.dmup(&["display", CLUSTER]).well()
    };
    let before = wait_up();
    assert_eq!(normal(&before.stdout, &host.to_string()), MANUAL_BEFORE.trim_start(), "{before}");

    // The monitoring accepts what was laid out for it: rules and dashboards of DM's own package among it.
    let of = |component: &str| format!("/home/tidb/dm/deploy/{component}");
    let checked = scene
        .hosts
        .run_on(
            1,
            &[
                &of("prometheus-9090/bin/prometheus/promtool"),
                "check",
                "config",
                &of("prometheus-9090/conf/prometheus.yml"),
            ],
        )
        .unwrap();
    assert!(checked.contains("1 rule files found"), "{checked}");
    scene
        .hosts
        .run_on(
            1,
            &[
                &of("alertmanager-9093/bin/alertmanager/amtool"),
                "check-config",
                &of("alertmanager-9093/conf/alertmanager.yml"),
            ],
        )
        .unwrap();
    let boards = scene.hosts.run_on(1, &["ls", &of("grafana-3000/dashboards")]).unwrap();
    assert!(boards.contains(".json"), "{boards}");

    // Made by hand as in the manual, one package per component; by role and by node.
    let stamp = Stamp {
        build_ts: "2022-01-05 14:19:02".to_owned(),
        ..Stamp::new("v5.3.0-20211230", "ca7070c45013c24d34bd9c1e936071253451d707")
    };
    let package = |component: Component| {
        let name = format!("{}-hotfix-linux-amd64.tar.gz", component.as_str());
        scene.packer.hotfix(&name, &[component], &stamp, Layout::TopFolder).unwrap()
    };
    let (master, worker) = (package(Component::DmMaster), package(Component::DmWorker));
    // Without --yes it asks, and no answer is no.
    let asked = scene.dmup(&["patch", CLUSTER, master.as_str(), "-R", "dm-master"]).with_code(3);
    assert!(asked.stderr.contains("DM can neither schedule nor fail over"), "{asked}");
    // As the manual types it: `tiup dm patch …`, its questions answered by `yes |`.
    let tiup = scene.operator.calling_it("tiup").unwrap();
    let node = format!("{host}:8261");
    let yes = "y\n".repeat(1000);
    let words = ["dm", "patch", CLUSTER, master.as_str(), "-N", &node];
    tiup.run_with_input(&words, &yes).well();
    let words = ["dm", "patch", CLUSTER, worker.as_str(), "-R", "dm-worker", "--overwrite=true"];
    tiup.run_with_input(&words, &yes).well();
    assert_eq!(tiup.run(&["dm", "display", CLUSTER]).well().stdout.matches("(patched)").count(), 2);
    let after = wait_up();
    assert_eq!(normal(&after.stdout, &host.to_string()), MANUAL_AFTER.trim_start(), "{after}");

    // `-V` of what lies in the deploy folder, as the manual checks it.
    let version = scene
        .hosts
        .run_on(1, &["/home/tidb/dm/deploy/dm-master-8261/bin/dm-master/dm-master", "-V"])
        .unwrap();
    assert!(version.contains("Release Version: v5.3.0-20211230"), "{version}");
    assert!(
        version.contains("Git Commit Hash: ca7070c45013c24d34bd9c1e936071253451d707"),
        "{version}"
    );
    let kept = scene.operator.tiup_home().join("storage/dm/clusters/prod/patch/dm-worker.tar.gz");
    assert!(kept.is_file(), "{kept}");

    // Monitoring can be patched, too.
    let grafana = scene
        .packer
        .hotfix("grafana-hotfix.tar.gz", &[Component::Grafana], &stamp, Layout::TopFolder)
        .unwrap();
    scene.dmup(&["patch", CLUSTER, grafana.as_str(), "-R", "grafana", "--yes"]).well();

    // A single worker is patched with rows flowing: they wait, and arrive once.
    scene.replicate(20).unwrap();
    let second = Stamp::new("v5.3.0-20220101", &"3".repeat(40));
    let package = scene.hotfix("second.tar.gz", &second).unwrap();
    scene.dmup(&["patch", CLUSTER, package.as_str(), "--yes"]).well();
    let flow = scene.flow().expect("rows flow");
    for (source, seen) in flow.witness.settle(&flow.writer, Duration::from_secs(90)) {
        assert!(seen.is_whole(), "{source}: {seen}");
    }

    // `--offline`: refused while the cluster runs; with it stopped, only files change.
    let third = Stamp::new("v5.3.0-20220102", &"4".repeat(40));
    let package = scene.hotfix("third.tar.gz", &third).unwrap();
    let refused =
        scene.dmup(&["patch", CLUSTER, package.as_str(), "--offline", "--yes"]).with_code(3);
    assert!(refused.stderr.contains("although the cluster is declared stopped"), "{refused}");
    scene.dmup(&["stop", CLUSTER, "--yes"]).well();
    scene.dmup(&["patch", CLUSTER, package.as_str(), "--offline", "--yes"]).well();
    let host_one = &scene.hosts.hosts()[0];
    assert_eq!(scene.running_hash(host_one, "dm-worker-8262.service"), None);
    scene.dmup(&["start", CLUSTER]).well();
    let version = scene
        .hosts
        .run_on(1, &["/home/tidb/dm/deploy/dm-worker-8262/bin/dm-worker/dm-worker", "-V"])
        .unwrap();
    assert!(version.contains("v5.3.0-20220102"), "{version}");

    // `audit` has all of it; `destroy` leaves nothing on the host.
    let audit = scene.dmup(&["audit"]).well();
    assert!(audit.stdout.contains("patch prod"), "{audit}");
    scene.dmup(&["destroy", CLUSTER, "--yes"]).well();
    for path in [
        "/home/tidb/dm/deploy/dm-master-8261",
        "/home/tidb/dm/data/dm-worker-8262",
        "/home/tidb/.dmup",
    ] {
        let seen = scene.hosts.hosts()[0].run(&["test", "-e", path]).unwrap();
        assert!(!seen.status.success(), "{path} is still there");
    }
    let keys = scene.hosts.run_on(1, &["cat", "/home/tidb/.ssh/authorized_keys"]).unwrap();
    assert!(!keys.contains("ssh-"), "{keys}");
    let units = scene.hosts.run_on(1, &["ls", "/etc/systemd/system"]).unwrap();
    assert!(!units.contains("dm-master"), "{units}");
    let gone = scene.dmup(&["display", CLUSTER]).with_code(3);
    assert!(gone.stderr.contains("not exists"), "{gone}");
}

/// Addresses and column widths differ with the host; everything else must not.
fn normal(table: &str, host: &str) -> String {
    let mut lines = Vec::new();
    for line in table.lines().filter(|line| !line.starts_with("Grafana URL:")) {
        let words: Vec<&str> =
            line.split("  ").map(str::trim).filter(|word| !word.is_empty()).collect();
        let words = words.join("  ").replace(host, "HOST");
        lines.push(words.chars().map(|c| if c == '\t' { ' ' } else { c }).collect::<String>());
    }
    let mut text = lines.join("\n");
    text.push('\n');
    text
}

const MANUAL_BEFORE: &str = "
Cluster type:  dm
Cluster name:  prod
Cluster version:  v5.3.0
Deploy user:  tidb
SSH type:  builtin
ID  Role  Host  Ports  OS/Arch  Status  Data Dir  Deploy Dir
--  ----  ----  -----  -------  ------  --------  ----------
HOST:9093  alertmanager  HOST  9093/9094  linux/x86_64  Up  /home/tidb/dm/data/alertmanager-9093  /home/tidb/dm/deploy/alertmanager-9093
HOST:8261  dm-master  HOST  8261/8291  linux/x86_64  Healthy|L  /home/tidb/dm/data/dm-master-8261  /home/tidb/dm/deploy/dm-master-8261
HOST:8262  dm-worker  HOST  8262  linux/x86_64  Free  /home/tidb/dm/data/dm-worker-8262  /home/tidb/dm/deploy/dm-worker-8262
HOST:3000  grafana  HOST  3000  linux/x86_64  Up  -  /home/tidb/dm/deploy/grafana-3000
HOST:9090  prometheus  HOST  9090  linux/x86_64  Up  /home/tidb/dm/data/prometheus-9090  /home/tidb/dm/deploy/prometheus-9090
Total nodes: 5
";

const MANUAL_AFTER: &str = "
Cluster type:  dm
Cluster name:  prod
Cluster version:  v5.3.0
Deploy user:  tidb
SSH type:  builtin
ID  Role  Host  Ports  OS/Arch  Status  Data Dir  Deploy Dir
--  ----  ----  -----  -------  ------  --------  ----------
HOST:9093  alertmanager  HOST  9093/9094  linux/x86_64  Up  /home/tidb/dm/data/alertmanager-9093  /home/tidb/dm/deploy/alertmanager-9093
HOST:8261  dm-master (patched)  HOST  8261/8291  linux/x86_64  Healthy|L  /home/tidb/dm/data/dm-master-8261  /home/tidb/dm/deploy/dm-master-8261
HOST:8262  dm-worker (patched)  HOST  8262  linux/x86_64  Free  /home/tidb/dm/data/dm-worker-8262  /home/tidb/dm/deploy/dm-worker-8262
HOST:3000  grafana  HOST  3000  linux/x86_64  Up  -  /home/tidb/dm/deploy/grafana-3000
HOST:9090  prometheus  HOST  9090  linux/x86_64  Up  /home/tidb/dm/data/prometheus-9090  /home/tidb/dm/deploy/prometheus-9090
Total nodes: 5
";
