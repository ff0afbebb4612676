//! A whole deploy onto this machine: `--ssh none`, services not started, every file below a folder of the test.

use std::process::{Command, Output};

use lab::mirror::MadeMirror;

use crate::desk::{Desk, archive_of, elf, me, this_machine};

const RULES: &str = r#"groups:
  - name: dm
    rules:
      - alert: DM_worker_down
        expr: up{job="dm_worker"} == 0
        labels:
          env: ENV_LABELS_ENV
        annotations:
          description: "cluster: ENV_LABELS_ENV, instance: {{ $labels.instance }}"
"#;

fn topology(desk: &Desk, more: &[(&str, &str)]) -> String {
    let mut text = format!("global:\n  user: {}\n  ssh_type: none\n", me());
    for (section, port, folder) in [
        ("master_servers", "port: 1\n    peer_port: 2", "m"),
        ("worker_servers", "port: 3", "w"),
        ("monitoring_servers", "port: 4", "p"),
        ("grafana_servers", "port: 5", "g"),
        ("alertmanager_servers", "web_port: 6\n    cluster_port: 7", "a"),
    ] {
        let dir = desk.path(folder);
        text.push_str(&format!(
            "{section}:\n  - host: 127.0.0.77\n    {port}\n    deploy_dir: {dir}\n"
        ));
        for (_, line) in more.iter().filter(|(of, _)| *of == section) {
            text.push_str(&format!("    {line}\n"));
        }
    }
    desk.put("topology.yaml", text.as_bytes())
}

fn put_packages(desk: &Desk) {
    let (_, arch) = this_machine();
    for (component, version, bytes) in official_packages() {
        let name = format!("{component}-{version}-linux-{arch}.tar.gz");
        desk.put(&format!("tiup/storage/dm/packages/{name}"), &bytes);
    }
}

/// Component, version, package.
fn official_packages() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let (machine, _) = this_machine();
    let binary = elf(machine, b"x");
    let mut all = Vec::new();
    let mut put = |component, version, files: &[(&str, u32, &[u8])]| {
        all.push((component, version, archive_of(files)));
    };
    put(
        "dm-master",
        "v8.1.0",
        &[
            ("dm-master/dm-master", 0o755, &binary),
            ("dm-master/conf/dm_worker.rules.yml", 0o644, RULES.as_bytes()),
            ("dm-master/conf/dm-master.toml", 0o644, b""),
            ("dm-master/scripts/dm.json", 0o644, b"{\"title\": \"Test-Cluster-DM\"}"),
        ],
    );
    put("dm-worker", "v8.1.0", &[("dm-worker/dm-worker", 0o755, &binary)]);
    put("prometheus", "v8.1.0", &[("prometheus/prometheus", 0o755, &binary)]);
    put("grafana", "v8.1.0", &[("bin/grafana-server", 0o755, &binary)]);
    put("alertmanager", "v0.26.0", &[("alertmanager/alertmanager", 0o755, &binary)]);
    all
}

/// The same as a mirror in a folder, trusted by `TIUP_HOME`.
fn put_mirror(desk: &Desk, arch: &str) -> String {
    let mut mirror = MadeMirror::default();
    for (component, version, bytes) in official_packages() {
        mirror = mirror.with(component, version, &format!("linux/{arch}"), &bytes);
    }
    let folder = desk.path("mirror");
    mirror.write_to(folder.as_str().into()).unwrap();
    desk.put("tiup/bin/root.json", &mirror.files()["root.json"]);
    folder
}

fn deploy(desk: &Desk, topology: &str) -> Output {
    deploy_command(desk, topology).output().unwrap()
}

fn deploy_command(desk: &Desk, topology: &str) -> assert_cmd::Command {
    let words = ["deploy", "prod", "v8.1.0", topology, "-u", &me(), "--ssh", "none", "--yes"];
    let mut command = desk.command(&words);
    command.env("DMUP_SUPERVISED", desk.path("services"));
    command
}

fn read(desk: &Desk, path: &str) -> String {
    std::fs::read_to_string(desk.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Prometheus's own judgement.
#[track_caller]
fn promtool_takes(desk: &Desk, path: &str) {
    let checked = Command::new("promtool")
        .args(["check", "config", &desk.path(path)])
        .output()
        .expect("`promtool` is needed: `apt-get install prometheus`");
    let said = format!("{}{}", desk.told(&checked.stdout), desk.told(&checked.stderr));
    assert!(checked.status.success(), "{said}\n{}", read(desk, path));
    assert!(said.contains("rules found"), "{said}");
}

#[test]
fn monitoring_gets_the_rules_and_dashboards_of_dms_package() {
    let desk = Desk::empty();
    put_packages(&desk);
    let output = deploy(&desk, &topology(&desk, &[]));
    assert_eq!(output.status.code(), Some(0), "{}", desk.told(&output.stderr));
    promtool_takes(&desk, "p/conf/prometheus.yml");
    assert!(read(&desk, "p/conf/dm_worker.rules.yml").contains("env: prod"));
    assert_eq!(read(&desk, "g/dashboards/dm.json"), "{\"title\": \"prod-DM\"}");
    assert!(read(&desk, "a/conf/alertmanager.yml").contains("blackhole"));
    let shown = desk.ok(&["display", "prod"]);
    assert!(shown.ends_with("Total nodes: 5\n"), "{shown}");

    // The cluster is there, and stopped: what a package lacks of the selection is all that is in the way.
    let worker = archive_of(&[("dm-worker/dm-worker", 0o755, &elf(this_machine().0, b"new"))]);
    let package = desk.put("worker.tar.gz", &worker);
    let before = desk.state();
    let output = desk
        .command(&[
            "patch",
            "prod",
            &package,
            "-R",
            "dm-master,dm-worker",
            "--offline",
            "--ssh",
            "none",
            "--yes",
        ])
        .env("DMUP_SUPERVISED", desk.path("services"))
        .output()
        .unwrap();
    let said = desk.told(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("1 thing(s) in the way"), "{said}");
    assert!(said.contains("the package has no build for 127.0.0.77:1 (dm-master)"), "{said}");
    assert_eq!(desk.state(), before);
}

#[test]
fn files_of_the_operators_own_come_first() {
    let desk = Desk::empty();
    put_packages(&desk);
    desk.put("own/mine.rules.yml", RULES.replace("ENV_LABELS_ENV", "elsewhere").as_bytes());
    desk.put("own/mine.json", b"{\"title\": \"Test-Cluster of mine\"}");
    let mail = desk.put("own/alertmanager.yml", b"route: {receiver: mail}\n");
    let own = desk.path("own");
    let topology = topology(
        &desk,
        &[
            ("monitoring_servers", &format!("rule_dir: {own}")),
            ("grafana_servers", &format!("dashboard_dir: {own}")),
            ("alertmanager_servers", &format!("config_file: {mail}")),
        ],
    );
    let output = deploy(&desk, &topology);
    assert_eq!(output.status.code(), Some(0), "{}", desk.told(&output.stderr));
    promtool_takes(&desk, "p/conf/prometheus.yml");
    assert!(read(&desk, "p/conf/prometheus.yml").contains("mine.rules.yml"));
    let rules = read(&desk, "p/conf/mine.rules.yml");
    assert!(rules.contains("env: prod") && rules.contains("cluster: prod,"), "{rules}");
    assert_eq!(read(&desk, "g/dashboards/mine.json"), "{\"title\": \"Test-Cluster of mine\"}");
    assert!(!std::fs::exists(desk.path("g/dashboards/dm.json")).unwrap());
    assert_eq!(read(&desk, "a/conf/alertmanager.yml"), "route: {receiver: mail}\n");
}

#[test]
fn a_deploy_without_its_packages_or_files_writes_nothing() {
    let desk = Desk::empty();
    let (_, arch) = this_machine();
    let file = topology(&desk, &[]);
    let output = deploy(&desk, &file);
    let said = desk.told(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    for needed in [
        format!(
            "dm-master: looked for DESK/tiup/storage/dm/packages/dm-master-v8.1.0-linux-{arch}.tar.gz"
        ),
        format!("packages/grafana-v8.1.0-linux-{arch}.tar.gz"),
        "alertmanager: ".to_owned(),
        "now: nothing was touched".to_owned(),
        "hint: put the official packages there".to_owned(),
    ] {
        assert!(said.contains(&needed), "no `{needed}` in\n{said}");
    }
    put_packages(&desk);
    let before = desk.state();
    let file = topology(&desk, &[("monitoring_servers", "rule_dir: /no/such/folder")]);
    let output = deploy(&desk, &file);
    let said = desk.told(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("read the rules of 127.0.0.77:4 from /no/such/folder"), "{said}");
    assert_eq!(desk.state(), before);
    for folder in ["m", "w", "p", "g", "a", "services/units"] {
        assert!(!std::fs::exists(desk.path(folder)).unwrap(), "{folder}");
    }
}

#[test]
fn packages_that_are_not_at_hand_come_from_the_mirror() {
    let desk = Desk::empty();
    let (_, arch) = this_machine();
    let mirror = put_mirror(&desk, arch);
    let file = topology(&desk, &[]);
    let output = deploy_command(&desk, &file).env("TIUP_MIRRORS", &mirror).output().unwrap();
    let said = desk.told(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains(&format!("+ Downloaded dm-master-v8.1.0-linux-{arch}.tar.gz (")),
        "{said}"
    );
    assert!(!said.contains("warning"), "{said}");
    for (component, version, bytes) in official_packages() {
        let name = format!("{component}-{version}-linux-{arch}.tar.gz");
        let kept = std::fs::read(desk.path(&format!("tiup/storage/dm/packages/{name}"))).unwrap();
        assert_eq!(kept, bytes, "{name}");
    }
}

#[test]
fn packages_at_hand_do_when_the_mirror_is_away() {
    let desk = Desk::empty();
    let (_, arch) = this_machine();
    let mirror = put_mirror(&desk, arch);
    std::fs::remove_dir_all(&mirror).unwrap();
    put_packages(&desk);
    let file = topology(&desk, &[]);
    let output = deploy_command(&desk, &file).env("TIUP_MIRRORS", &mirror).output().unwrap();
    let said = desk.told(&output.stderr);
    assert!(output.status.success(), "{said}");
    let warnings: Vec<&str> = said.lines().filter(|line| line.starts_with("warning: ")).collect();
    assert_eq!(warnings.len(), 1, "one for all packages:\n{said}");
    assert!(
        warnings[0]
            .contains("used as it is, compared with nothing: fetch 2.root.json from DESK/mirror"),
        "{said}"
    );
}

#[test]
fn an_architecture_that_a_mirror_has_no_package_for_is_named_with_its_hosts() {
    let desk = Desk::empty();
    let (_, arch) = this_machine();
    let other = if arch == "amd64" { "arm64" } else { "amd64" };
    let mirror = put_mirror(&desk, other);
    let file = topology(&desk, &[]);
    let output = deploy_command(&desk, &file).env("TIUP_MIRRORS", &mirror).output().unwrap();
    let said = desk.told(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    let named = format!(
        "does not list dm-worker v8.1.0 for linux/{arch} (but for linux/{other}) (needed on 127.0.0.77)"
    );
    assert!(said.contains(&named), "{said}");
    for folder in ["m", "w", "p", "g", "a"] {
        assert!(!std::fs::exists(desk.path(folder)).unwrap(), "{folder}");
    }
}
