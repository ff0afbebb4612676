//! A whole deploy onto this machine: `--ssh none`, services not started, every file below a folder of the test.

use std::process::{Command, Output};

use lab::mirror::{MadeMirror, serve_over_tls};

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
    put("node_exporter", "v1.3.1", &[("node_exporter/node_exporter", 0o755, &binary)]);
    // As older packages have it.
    put("blackbox_exporter", "v0.21.1", &[("blackbox_exporter", 0o755, &binary)]);
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

/// In place of promtool: it knows how it must be started, and one mistake.
const JUDGE: &[u8] = b"#!/bin/sh
[ \"$*\" = 'check config prometheus.yml' ] && grep -q mine.rules.yml prometheus.yml || exit 9
if grep -q ELSEWHERE mine.rules.yml; then echo 'FAILED: mine.rules.yml' >&2; exit 1; fi
";

#[test]
fn a_configuration_is_judged_by_the_packages_own_program_before_anything_starts_with_it() {
    let desk = Desk::empty();
    put_packages(&desk);
    let (machine, arch) = this_machine();
    let package = archive_of(&[
        ("prometheus/prometheus", 0o755, &elf(machine, b"x")),
        ("prometheus/promtool", 0o755, JUDGE),
    ]);
    desk.put(&format!("tiup/storage/dm/packages/prometheus-v8.1.0-linux-{arch}.tar.gz"), &package);
    let rules = |word: &str| {
        desk.put("own/mine.rules.yml", RULES.replace("DM_worker_down", word).as_bytes());
    };
    let own = desk.path("own");
    let topology = topology(&desk, &[("monitoring_servers", &format!("rule_dir: {own}"))]);
    rules("ELSEWHERE");
    let output = deploy(&desk, &topology);
    let said = desk.told(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("check the new configuration of 127.0.0.77:4"), "{said}");
    assert!(
        said.contains("promtool check config prometheus.yml: FAILED: mine.rules.yml"),
        "{said}"
    );
    assert!(!std::fs::exists(desk.path("p/bin")).unwrap(), "{said}");

    rules("FINE");
    let output = deploy(&desk, &topology);
    let said = desk.told(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let untold =
        "note: the configuration of 127.0.0.77:6 is not checked: its package has no amtool";
    assert!(said.contains(untold) && !said.contains("127.0.0.77:4 is not checked"), "{said}");

    // What lies there was not judged again: it stays until another text is fine.
    rules("ELSEWHERE");
    let lies = || read(&desk, "p/conf/mine.rules.yml");
    let reload = || {
        let words = ["reload", "prod", "-R", "prometheus", "--skip-restart", "--ssh", "none"];
        let mut command = desk.command(&words);
        command.args(["--yes"]).env("DMUP_SUPERVISED", desk.path("services"));
        command.output().unwrap()
    };
    let output = reload();
    let said = desk.told(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("FAILED: mine.rules.yml") && lies().contains("FINE"), "{said}");
    rules("BETTER");
    let output = reload();
    assert_eq!(output.status.code(), Some(0), "{}", desk.told(&output.stderr));
    assert!(lies().contains("BETTER"));
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
        "hint: put official packages into DESK/tiup/storage/dm/packages, named <component>-"
            .to_owned(),
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
    for folder in ["m", "w", "p", "g", "a", "services/127.0.0.77/units/dm-master-1.service"] {
        assert!(!std::fs::exists(desk.path(folder)).unwrap(), "{folder}");
    }
}

#[test]
fn packages_that_are_not_at_hand_come_from_the_mirror() {
    let desk = Desk::empty();
    let (_, arch) = this_machine();
    let mirror = put_mirror(&desk, arch);
    let file = with_exporters(&desk, "");
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
fn a_mirror_with_a_certificate_of_a_private_authority_is_reached_once_that_is_trusted() {
    let desk = Desk::empty();
    let (_, arch) = this_machine();
    let mirror = put_mirror(&desk, arch);
    let key = rcgen::KeyPair::generate().unwrap();
    let mut of_authority = rcgen::CertificateParams::default();
    of_authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = rcgen::CertifiedIssuer::self_signed(of_authority, key).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(["127.0.0.1".to_owned()])
        .and_then(|params| params.signed_by(&key, &authority))
        .unwrap();
    let files = std::fs::read_dir(mirror).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(path).unwrap())
    });
    let address =
        serve_over_tls(files.collect(), &certificate.pem(), &key.serialize_pem()).unwrap();

    let file = topology(&desk, &[]);
    let mut command = deploy_command(&desk, &file);
    command.env("TIUP_MIRRORS", &address);
    let before = desk.state();
    let output = command.output().unwrap();
    let said = desk.told(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    for part in [
        &address[..],
        "this machine does not trust the authority of its certificate",
        "hint: trust its authority: `SSL_CERT_FILE",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    assert_eq!(desk.state(), before);

    let trusted = desk.put("authority.pem", authority.pem().as_bytes());
    let output = command.env("SSL_CERT_FILE", trusted).output().unwrap();
    let said = desk.told(&output.stderr);
    assert!(output.status.success() && said.contains("+ Downloaded dm-master-v8.1.0"), "{said}");
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
        "does not have what is needed: dm-worker.json: does not list dm-worker v8.1.0 for linux/{arch} (but for linux/{other}) (needed on 127.0.0.77)"
    );
    assert!(said.contains(&named), "{said}");
    for folder in ["m", "w", "p", "g", "a"] {
        assert!(!std::fs::exists(desk.path(folder)).unwrap(), "{folder}");
    }
}

#[test]
fn a_version_that_the_mirror_does_not_have_is_told_with_what_it_has_and_no_other_advice() {
    let desk = Desk::empty();
    let (_, arch) = this_machine();
    let mirror = put_mirror(&desk, arch);
    let file = topology(&desk, &[]);
    let words = ["deploy", "prod", "v9.9.9", &file, "-u", &me(), "--ssh", "none", "--yes"];
    let mut command = desk.command(&words);
    command.env("DMUP_SUPERVISED", desk.path("services")).env("TIUP_MIRRORS", &mirror);
    let output = command.output().unwrap();
    let said = desk.told(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    let named = format!("does not list dm-worker v9.9.9 for linux/{arch} (the newest is v8.1.0)");
    assert!(said.contains(&named), "{said}");
    let lines = said.lines().map(str::trim_start);
    let hints: Vec<&str> = lines.filter(|line| line.starts_with("hint: ")).collect();
    assert_eq!(hints.len(), 1, "{said}");
    assert!(hints[0].starts_with("hint: take a version that the mirror has"), "{said}");
}

#[test]
fn a_node_is_marked_only_if_a_hotfix_was_put_in() {
    let desk = Desk::empty();
    put_packages(&desk);
    let output = deploy(&desk, &topology(&desk, &[]));
    assert!(output.status.success(), "{}", desk.told(&output.stderr));
    let (_, arch) = this_machine();
    let package =
        desk.path(&format!("tiup/storage/dm/packages/dm-worker-v8.1.0-linux-{arch}.tar.gz"));
    let patch = ["patch", "prod", &package, "-R", "dm-worker", "--offline"];
    let meta = || read(&desk, "tiup/storage/dm/clusters/prod/meta.yaml");

    // It runs the official build since its deploy.
    let said = on_playground(&desk, &patch, 0);
    assert!(said.contains("Nothing to do") && !meta().contains("patched"), "{said}\n{}", meta());
    // A `tiup dm patch` that was killed before it wrote its marks: the build from before lies beside.
    desk.put("w/bin.old.v8.1.0/dm-worker/dm-worker", b"the build from before");
    let said = on_playground(&desk, &patch, 0);
    assert!(said.contains("Nothing to do"), "{said}");
    assert_eq!(meta().matches("patched: true").count(), 1, "{}", meta());

    // `--overwrite` is for instances to come, whatever those that are there run.
    on_playground(&desk, &[&patch[..], &["--overwrite"]].concat(), 0);
    let kept = std::fs::read(desk.path("tiup/storage/dm/clusters/prod/patch/dm-worker.tar.gz"));
    assert_eq!(kept.unwrap(), std::fs::read(&package).unwrap());
}

#[test]
fn what_overwrite_owes_after_its_last_node_is_done_by_resume_unless_builds_were_exchanged_since() {
    let desk = Desk::empty();
    put_packages(&desk);
    let output = deploy(&desk, &topology(&desk, &[]));
    assert!(output.status.success(), "{}", desk.told(&output.stderr));
    let cluster = desk.path("tiup/storage/dm/clusters/prod");
    // Its `-V` is run, and must say something.
    let binary = std::fs::read("/usr/bin/echo").unwrap();
    let package = archive_of(&[("dm-worker/dm-worker", 0o755, &binary)]);
    let file = desk.put("fix.tar.gz", &package);
    // Every node has it, and then the disk does not: as good as killed there.
    let patch = format!("{cluster}/patch");
    std::fs::write(&patch, b"in the way").unwrap();
    let words = ["patch", "prod", &file, "-R", "dm-worker", "--offline", "--overwrite"];
    let said = on_playground(&desk, &words, 1);
    for part in ["now: every node of the run has its build", "hint: `dmup resume prod`"] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    assert!(std::fs::read(desk.path("w/bin/dm-worker/dm-worker")).unwrap() == binary, "{said}");
    std::fs::remove_file(&patch).unwrap();
    std::fs::remove_file(&file).unwrap();

    let runs = format!("{cluster}/dmup/runs");
    let owes = std::fs::read_dir(&runs).unwrap().next().unwrap().unwrap().path();
    // A later run of that kind, as it lies there once it has ended.
    let later = std::path::Path::new(&runs).join("29990101T000000000Z");
    let has_ended = |kind: &str| {
        std::fs::create_dir(&later).unwrap();
        let plan = std::fs::read_to_string(owes.join("plan.json")).unwrap();
        let of_kind = plan.replace("\"hotfix\"", &format!("\"{kind}\""));
        assert_ne!(of_kind, plan);
        std::fs::write(later.join("plan.json"), of_kind).unwrap();
        std::fs::copy(owes.join("journal.jsonl"), later.join("journal.jsonl")).unwrap();
    };
    for kind in ["upgrade", "rollback"] {
        has_ended(kind);
        let said = on_playground(&desk, &["resume", "prod"], 3);
        assert!(said.contains("no run of prod was interrupted"), "{kind}: {said}");
        assert!(!std::fs::exists(&patch).unwrap(), "{kind}");
        std::fs::remove_dir_all(&later).unwrap();
    }
    // What exchanges no build leaves the promise as it is.
    has_ended("restart");
    let said = on_playground(&desk, &["resume", "prod"], 0);
    assert!(said.contains("Instances that are added later get this build, too"), "{said}");
    assert!(std::fs::read(format!("{patch}/dm-worker.tar.gz")).unwrap() == package);
    let said = on_playground(&desk, &["resume", "prod"], 3);
    assert!(said.contains("no run of prod was interrupted"), "once: {said}");
}

/// With exporters in a folder of the desk, on ports that nobody has.
fn with_exporters(desk: &Desk, more: &str) -> String {
    let folder = desk.path("x");
    let text = std::fs::read_to_string(topology(desk, &[])).unwrap();
    let own = format!(
        "monitored:\n  node_exporter_port: 8\n  blackbox_exporter_port: 9\n  deploy_dir: {folder}\n  data_dir: {folder}/data\n{more}"
    );
    desk.put("topology.yaml", format!("{text}{own}").as_bytes())
}

/// A command for the cluster of the playground.
fn on_playground(desk: &Desk, words: &[&str], code: i32) -> String {
    let words = [words, &["--ssh", "none", "--yes"]].concat();
    let mut command = desk.command(&words);
    let output = command.env("DMUP_SUPERVISED", desk.path("services")).output().unwrap();
    let said = desk.told(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{words:?}\n{said}");
    said
}

#[test]
fn a_service_that_never_opens_its_port_is_told_and_where_its_log_is() {
    let desk = Desk::empty();
    put_packages(&desk);
    let output = deploy(&desk, &topology(&desk, &[]));
    assert!(output.status.success(), "{}", desk.told(&output.stderr));
    let words = ["start", "prod", "-R", "dm-worker,grafana", "--wait-timeout", "1"];
    for _ in 0..2 {
        let said = on_playground(&desk, &words, 1);
        for part in [
            "error: start dm-worker\n",
            "why: 127.0.0.77:3: port 3 is not open after",
            "dm-worker-3.service is failed (failed)\n",
            // How it ended, and what it said: the binary of this package is none.
            "dm-worker-3.service: exited, status=1",
            "Exec format error",
            "now: started, and not answering: 127.0.0.77:3\n",
            "not started yet: 127.0.0.77:5\n",
            "under log/",
            "hint: `dmup start prod` once the cause is gone",
        ] {
            assert!(said.contains(part), "{part}\n{said}");
        }
    }
}

/// Nothing of the cluster, but folders.
#[track_caller]
fn is_taken_away(desk: &Desk, said: &str) {
    for part in [
        "now: nothing of it is recorded and nothing was started; units and programs are taken away",
        "hint: give the same command again after the cause is gone",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    for folder in ["m", "w", "p", "g", "a", "x"] {
        assert!(!std::fs::exists(desk.path(&format!("{folder}/bin"))).unwrap(), "{folder}\n{said}");
    }
    let units = std::fs::read_dir(desk.path("services/127.0.0.77/units"));
    assert_eq!(units.map_or(0, Iterator::count), 0, "{said}");
    assert!(!std::fs::exists(desk.path("tiup/storage/dm/clusters/prod/meta.yaml")).unwrap());
    assert!(!desk.ok(&["list"]).contains("prod"), "{said}");
}

#[test]
fn a_folder_that_cannot_be_made_leaves_nothing_in_the_way_of_the_same_command() {
    let desk = Desk::empty();
    put_packages(&desk);
    let file = with_exporters(&desk, "");
    desk.put("w/conf", b"somebody's");
    let output = deploy(&desk, &file);
    let said = desk.told(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in [
        "error: lay the instances out",
        "make folder DESK/w/conf: there is something of that name that is no folder",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    is_taken_away(&desk, &said);
    std::fs::remove_file(desk.path("w/conf")).unwrap();
    let output = deploy(&desk, &file);
    assert!(output.status.success(), "{}", desk.told(&output.stderr));
}

#[test]
fn a_unit_that_cannot_be_enabled_leaves_nothing_in_the_way_of_the_same_command() {
    let desk = Desk::empty();
    put_packages(&desk);
    let file = with_exporters(&desk, "");
    // Where the mark of this unit would lie.
    desk.put("services/127.0.0.77/grafana-5.service/enabled/x", b"");
    let output = deploy(&desk, &file);
    let said = desk.told(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["error: enable 127.0.0.77:1, ", "grafana-5.service on 127.0.0.77: enable"] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    assert!(!said.contains("dmup display"), "there is no cluster to show\n{said}");
    is_taken_away(&desk, &said);
    std::fs::remove_dir_all(desk.path("services/127.0.0.77/grafana-5.service")).unwrap();
    let output = deploy(&desk, &file);
    assert!(output.status.success(), "{}", desk.told(&output.stderr));
}

const NODE: &str = "services/127.0.0.77/units/node_exporter-8.service";
const BLACKBOX: &str = "services/127.0.0.77/units/blackbox_exporter-9.service";

#[test]
fn exporters_are_laid_out_once_per_host_and_take_orders_to_all_of_it() {
    let desk = Desk::empty();
    put_packages(&desk);
    let output = deploy(&desk, &with_exporters(&desk, ""));
    assert!(output.status.success(), "{}", desk.told(&output.stderr));
    for file in ["x/bin/node_exporter/node_exporter", "x/bin/blackbox_exporter", "x/log", "x/data"]
    {
        assert!(std::fs::exists(desk.path(file)).unwrap(), "{file}");
    }
    assert!(read(&desk, "x/conf/blackbox.yml").contains("tcp_connect"));
    assert!(read(&desk, "x/scripts/run_node_exporter.sh").contains("--web.listen-address=\":8\""));
    let start =
        format!("ExecStart=/bin/bash -c '{}/x/scripts/run_node_exporter.sh'", desk.path(""));
    assert!(read(&desk, NODE).replace("//", "/").contains(&start.replace("//", "/")));
    promtool_takes(&desk, "p/conf/prometheus.yml");
    let config = read(&desk, "p/conf/prometheus.yml");
    for job in ["overwritten-nodes", "monitor_port_probe", "blackbox_exporter_127.0.0.77:9_icmp"] {
        assert!(config.contains(&format!("job_name: {job}\n")), "{job}\n{config}");
    }
    let shown = desk.ok(&["display", "prod"]);
    assert!(shown.contains("4/9/8") && shown.ends_with("Total nodes: 5\n"), "{shown}");

    let is_enabled = || {
        ["node_exporter-8", "blackbox_exporter-9"].map(|unit| {
            std::fs::exists(desk.path(&format!("services/127.0.0.77/{unit}.service/enabled")))
                .unwrap()
        })
    };
    assert_eq!(is_enabled(), [true, true]);
    // Something else of the host stays enabled, and so do they.
    on_playground(&desk, &["disable", "prod", "-R", "grafana"], 0);
    assert_eq!(is_enabled(), [true, true]);
    on_playground(&desk, &["disable", "prod"], 0);
    assert_eq!(is_enabled(), [false, false]);
}

#[test]
fn a_cluster_of_a_users_systemd_comes_and_goes_on_a_playground_as_well() {
    let desk = Desk::empty();
    put_packages(&desk);
    let path = with_exporters(&desk, "");
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replace("global:\n", "global:\n  systemd_mode: user\n");
    desk.put("topology.yaml", text.as_bytes());
    let output = deploy(&desk, &path);
    assert!(output.status.success(), "{}", desk.told(&output.stderr));
    for unit in [NODE, "services/127.0.0.77/units/dm-master-1.service"] {
        let text = read(&desk, unit);
        assert!(text.contains("WantedBy=default.target") && !text.contains("User="), "{text}");
    }
    on_playground(&desk, &["destroy", "prod"], 0);
    let units = desk.path("services/127.0.0.77/units");
    assert_eq!(std::fs::read_dir(units).unwrap().count(), 0);
}

#[test]
fn units_of_exporters_that_are_missing_or_somebody_elses_are_told_and_left() {
    let desk = Desk::empty();
    put_packages(&desk);
    let output = deploy(&desk, &with_exporters(&desk, ""));
    assert!(output.status.success(), "{}", desk.told(&output.stderr));
    std::fs::remove_file(desk.path(BLACKBOX)).unwrap();
    let theirs = read(&desk, NODE).replace(&desk.path("x"), "/srv/theirs");
    desk.put(NODE, theirs.as_bytes());
    for command in ["disable", "stop"] {
        let said = on_playground(&desk, &[command, "prod"], 0);
        for text in [
            "warning: node_exporter-8.service on 127.0.0.77: it is not of this cluster (it starts `/bin/bash -c '/srv/theirs",
            "warning: blackbox_exporter-9.service on 127.0.0.77: there is none",
        ] {
            assert!(said.contains(text), "{command}: {text}\n{said}");
        }
    }
    assert!(
        std::fs::exists(desk.path("services/127.0.0.77/node_exporter-8.service/enabled")).unwrap()
    );
    assert_eq!(read(&desk, NODE), theirs);
}

#[test]
fn what_is_in_the_way_of_exporters_is_found_before_anything_is_written() {
    let desk = Desk::empty();
    put_packages(&desk);
    desk.put(NODE, b"[Service]\nExecStart=/bin/true\n");
    desk.put("x/bin/something", b"");
    let before = desk.state();
    let output = deploy(&desk, &with_exporters(&desk, ""));
    let said = desk.told(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    for text in [
        "node_exporter-8.service exists already: another cluster has exporters there",
        "ignore_exporter",
        "DESK/x/bin exists already",
        "2 thing(s) are in the way",
    ] {
        assert!(said.contains(text), "{text}\n{said}");
    }
    assert_eq!(desk.state(), before);
    assert!(!std::fs::exists(desk.path("m")).unwrap());

    let output = deploy(&desk, &with_exporters(&desk, "  node_exporter_version: v9.9.9\n"));
    let said = desk.told(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("packages/node_exporter-v9.9.9-linux-"), "{said}");
    let output = deploy(&desk, &with_exporters(&desk, "  node_exporter_version: new\n"));
    let said = desk.told(&output.stderr);
    assert!(said.contains("monitored.node_exporter_version: `new` is no version"), "{said}");

    // Where an instance does not want them, nobody looks.
    let text = read(&desk, "topology.yaml").replace("  node_exporter_version: new\n", "");
    let text = text.replace("    port: 3\n", "    port: 3\n    ignore_exporter: true\n");
    let output = deploy(&desk, &desk.put("topology.yaml", text.as_bytes()));
    assert!(output.status.success(), "{}", desk.told(&output.stderr));
    assert!(!std::fs::exists(desk.path("x/scripts")).unwrap());
}
