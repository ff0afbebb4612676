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
    settings_are_brought_to_the_nodes(&scene);
    what_the_packages_own_programs_refuse_restarts_nothing(&scene);
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

fn topology_of(scene: &Scene) -> String {
    let meta = scene.operator.tiup_home().join("storage/dm/clusters/prod/meta.yaml");
    let text = std::fs::read_to_string(&meta).expect("a cluster");
    let (_, topology) = text.split_once("topology:\n").expect("a topology");
    topology
        .lines()
        .map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line)))
        .collect()
}

fn edit_config(scene: &Scene, topology: &str) {
    let file = scene.operator.folder().join("edited.yaml");
    std::fs::write(&file, topology).expect("a file");
    let words = ["edit-config", CLUSTER, "--topology-file", file.as_str(), "--yes"];
    scene.dmup(&words).well();
}

/// Alert rules and an Alertmanager's configuration of the operator's own, each with a mistake, then without it.
fn what_the_packages_own_programs_refuse_restarts_nothing(scene: &Scene) {
    let on_host = |words: &[&str]| scene.hosts.run_on(1, words).expect("it runs");
    let pid = |unit: &str| on_host(&["systemctl", "show", "-p", "MainPID", "--value", unit]);
    let pids =
        || ["prometheus-9090", "alertmanager-9093", "dm-master-8261", "dm-worker-8262"].map(pid);
    let of = |component: &str| format!("/home/tidb/dm/deploy/{component}");
    let live = || {
        let conf = |of: &str| {
            on_host(&["ls", "-A", of]) + &on_host(&["cat", &format!("{of}/conf/alertmanager.yml")])
        };
        let of_prometheus = on_host(&["grep", "-r", "", &of("prometheus-9090/conf")]);
        (
            of_prometheus,
            on_host(&["ls", "-A", &of("prometheus-9090")]),
            conf(&of("alertmanager-9093")),
        )
    };
    let put = |name: &str, text: &str| {
        let file = scene.operator.folder().join(name);
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        std::fs::write(&file, text).expect("a file");
        file
    };
    let rules = |expression: &str| {
        let text = format!(
            "groups:\n  - name: own\n    rules:\n      - alert: OfMine\n        expr: {expression}\n"
        );
        put("rules/mine.rules.yml", &text)
    };
    let receivers = |name: &str| {
        put("alerts.yml", &format!("route: {{receiver: mail}}\nreceivers: [{{name: {name}}}]\n"))
    };
    let (folder, file) = (rules("up =="), receivers("post"));
    let folder = folder.parent().expect("a folder");
    let mut topology = String::new();
    let mut section = String::new();
    for line in topology_of(scene).lines() {
        if !line.starts_with(' ') {
            section = line.to_owned();
        }
        topology.push_str(&format!("{line}\n"));
        if line.trim_start().starts_with("- host:") {
            match section.as_str() {
                "monitoring_servers:" => topology.push_str(&format!("      rule_dir: {folder}\n")),
                "alertmanager_servers:" => {
                    topology.push_str(&format!("      config_file: {file}\n"));
                }
                _ => {}
            }
        }
    }
    edit_config(scene, &topology);

    let before = (pids(), live());
    for (role, words) in [
        ("prometheus", ["promtool check config prometheus.yml", "mine.rules.yml"]),
        ("alertmanager", ["amtool check-config alertmanager.yml", "undefined receiver"]),
    ] {
        for how in ["--soak=0", "--skip-restart"] {
            let refused = scene.dmup(&["reload", CLUSTER, "-R", role, how, "--yes"]).with_code(1);
            let has = |word: &&str| refused.stderr.contains(word);
            assert!(words.iter().all(has), "{words:?}: {refused}");
            assert_eq!((pids(), live()), before, "{refused}");
        }
    }
    // A run that is for DM goes on, and tells.
    let said = scene.dmup(&["reload", CLUSTER, "--soak", "0", "--yes"]).with_code(6);
    assert!(
        said.stderr.contains(":9090 stays as it is") && said.stderr.contains("FAILED"),
        "{said}"
    );
    assert_eq!(live(), before.1, "{said}");
    let (then, now) = (&before.0, pids());
    assert!(then[..2] == now[..2] && then[2] != now[2] && then[3] != now[3], "{said}");

    rules("up == 0");
    receivers("mail");
    scene
        .dmup(&["reload", CLUSTER, "-R", "prometheus,alertmanager", "--soak", "0", "--yes"])
        .well();
    let url = format!("http://{}:9090/api/v1/rules", scene.hosts.hosts()[0].address);
    let known = || {
        let page =
            ureq::get(&url).call().ok().and_then(|mut it| it.body_mut().read_to_string().ok());
        page.is_some_and(|page| page.contains("OfMine"))
    };
    assert!(lab::wait_until(Duration::from_secs(60), known), "Prometheus has the rules");
}

/// `edit-config`, `reload` and `restart`, with rows flowing.
fn settings_are_brought_to_the_nodes(scene: &Scene) {
    let worker = &format!("{}:8262", scene.hosts.hosts()[0].address);
    let on_host = |words: &[&str]| scene.hosts.run_on(1, words).expect("it runs");
    let pid = |unit: &str| on_host(&["systemctl", "show", "-p", "MainPID", "--value", unit]);
    let pids = || ["dm-master-8261", "dm-worker-8262", "prometheus-9090"].map(pid);
    let config = "/home/tidb/dm/deploy/dm-worker-8262/conf/dm-worker.toml";
    let marks = scene.dmup(&["display", CLUSTER]).well().stdout.matches("(patched)").count();

    // What was deployed is what the topology says.
    let before = pids();
    let plan = scene.dmup(&["reload", CLUSTER, "--plan"]).well();
    assert!(
        plan.stdout.contains("Reload of prod") && !plan.to_string().contains("differs"),
        "{plan}"
    );

    let edit = |settings: &[&str]| {
        let mut edited = String::from("server_configs:\n    worker:\n");
        edited.extend(settings.iter().map(|setting| format!("        {setting}\n")));
        let mut is_former = false;
        for line in topology_of(scene).lines() {
            is_former = line == "server_configs:" || is_former && line.starts_with(' ');
            if !is_former {
                edited.push_str(line);
                edited.push('\n');
            }
        }
        edit_config(scene, &edited);
    };
    edit(&["log-level: debug"]);
    let plan = scene.dmup(&["reload", CLUSTER, "--plan"]).well();
    assert!(plan.stdout.contains(&format!("differs: {config}")), "{plan}");
    let written = scene.dmup(&["reload", CLUSTER, "-N", worker, "--skip-restart", "--yes"]).well();
    assert!(written.stderr.contains(config), "{written}");
    assert!(on_host(&["cat", config]).contains("log-level = \"debug\""));
    assert_eq!(pids(), before, "nothing was restarted");

    // In the worker's own window; the unit is written by root, and systemd reads it anew.
    edit(&["log-level: warn"]);
    let unit = "/etc/systemd/system/dm-worker-8262.service";
    on_host(&["sed", "-i", "s/^Description=.*/Description=by hand/", unit]);
    let reloaded = scene.dmup(&["reload", CLUSTER, "-N", worker, "--soak", "1", "--yes"]).well();
    assert!(reloaded.stderr.contains("1 node(s) reloaded, all healthy"), "{reloaded}");
    assert!(on_host(&["cat", config]).contains("log-level = \"warn\""));
    assert_eq!(on_host(&["stat", "-c", "%U", config]).trim(), "tidb");
    assert_eq!(on_host(&["stat", "-c", "%U", unit]).trim(), "root");
    let shown =
        on_host(&["systemctl", "show", "-p", "Description,NeedDaemonReload", "dm-worker-8262"]);
    assert!(!shown.contains("by hand") && shown.contains("NeedDaemonReload=no"), "{shown}");
    let after = pids();
    assert!(after[1] != before[1] && after[0] == before[0] && after[2] == before[2]);

    // A setting with which it does not start: it has its files from before again, and runs.
    let good = on_host(&["cat", config]);
    edit(&["log-level: warn", "no-such-setting: 1"]);
    let words = ["reload", CLUSTER, "-N", worker, "--soak", "0", "--wait-timeout", "10", "--yes"];
    let refused = scene.dmup(&words).with_code(5);
    assert!(refused.stderr.contains("with their files from before"), "{refused}");
    assert_eq!(on_host(&["cat", config]), good);
    edit(&["log-level: warn"]);

    // Everything once more, and all at once; no build has changed.
    let before = pids();
    let restarted = scene.dmup(&["restart", CLUSTER, "--soak", "0", "--yes"]).well();
    assert!(restarted.stderr.contains("5 node(s) restarted, all healthy"), "{restarted}");
    let after = pids();
    assert!(before.iter().zip(&after).all(|(before, after)| before != after));
    scene.dmup(&["restart", CLUSTER, "-R", "dm-worker", "--fast", "--yes"]).well();
    assert_ne!(pid("dm-worker-8262"), after[1]);
    let display = scene.dmup(&["display", CLUSTER, "--verify"]).well();
    assert_eq!(display.stdout.matches("(patched)").count(), marks, "{display}");
    let runs = scene.dmup(&["runs", CLUSTER]).well();
    assert!(runs.stdout.contains("restart") && runs.stdout.contains("reload"), "{runs}");
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
