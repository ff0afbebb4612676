//! What is put on hosts, next to what TiUP 1.16.5 put there.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use dmup_core::exporters::Exporters;
use dmup_core::ids::ClusterName;
use dmup_core::instance::Role;
use dmup_core::layout::{
    Deployment, PlacedFile, directories, exporter_directories, exporter_tls_files, files,
    host_directories, sudoers,
};
use dmup_core::topology::{Meta, Monitored, Topology};
use dmup_core::version::DmVersion;

const META: &str = include_str!("fixtures/tiup-1.16.5/meta.yaml");
const HOST_TREE: &str = include_str!("fixtures/tiup-1.16.5/host_tree.txt");

fn cluster() -> ClusterName {
    "prod".parse().unwrap()
}

fn version() -> DmVersion {
    "v8.1.0".parse().unwrap()
}

fn rendered(topology: &Topology, id: &str) -> Vec<PlacedFile> {
    let (cluster, version) = (cluster(), version());
    let instance =
        topology.instances().into_iter().find(|instance| instance.id.as_str() == id).unwrap();
    files(&Deployment::new(&cluster, &version, topology), &instance).unwrap()
}

fn exporter_files(deployment: &Deployment<'_>, pair: &Exporters) -> Vec<PlacedFile> {
    pair.both.iter().flat_map(|it| files(deployment, &it.instance).unwrap()).collect()
}

fn content(files: &[PlacedFile], path_end: &str) -> String {
    files.iter().find(|file| file.path.as_str().ends_with(path_end)).unwrap().content.clone()
}

fn full() -> Topology {
    let mut topology = Topology::parse(include_str!("fixtures/full.yaml")).unwrap();
    topology.expand_dirs();
    topology
}

#[test]
fn every_path_of_a_host_is_one_that_tiup_makes() {
    let topology = Meta::parse(META).unwrap().topology;
    let (cluster, version) = (cluster(), version());
    let deployment = Deployment::new(&cluster, &version, &topology);
    let on_host: Vec<(&str, &str)> = HOST_TREE
        .lines()
        .filter_map(|line| {
            let parts: Vec<&str> = line.split_whitespace().collect();
            Some((*parts.first()?, *parts.iter().find(|part| part.starts_with('/'))?))
        })
        .collect();
    let mut placed: Vec<(String, String)> = Vec::new();
    for instance in topology.instances().iter().filter(|it| it.host.as_str() == "198.18.0.11") {
        placed.extend(
            directories(&deployment, instance)
                .iter()
                .map(|dir| ("d".to_owned() + &bits(dir.mode), dir.path.to_string())),
        );
        placed.extend(
            files(&deployment, instance)
                .unwrap()
                .iter()
                .map(|file| ("-".to_owned() + &bits(file.mode), file.path.to_string())),
        );
    }
    placed.extend(
        host_directories(&deployment)
            .iter()
            .map(|dir| ("d".to_owned() + &bits(dir.mode), dir.path.to_string())),
    );
    for (mode, path) in &placed {
        assert!(on_host.contains(&(mode, path)), "{mode} {path}");
    }
    for (_, path) in on_host.iter().filter(|(_, path)| {
        path.contains("/scripts/run") || path.contains("/conf/dm-") && !path.contains("/bin")
    }) {
        assert!(placed.iter().any(|(_, ours)| ours == path), "missing: {path}");
    }
}

fn bits(mode: u32) -> String {
    (0..9)
        .rev()
        .map(|bit| if mode >> bit & 1 == 1 { ["x", "w", "r"][bit % 3] } else { "-" })
        .collect()
}

#[test]
fn units_are_those_of_tiup() {
    let topology = Meta::parse(META).unwrap().topology;
    let unit = content(&rendered(&topology, "198.18.0.11:8261"), ".service");
    // The size of the recorded file.
    assert_eq!(unit.len(), 320);
    insta::assert_snapshot!(unit);
    let unit = content(&rendered(&topology, "198.18.0.11:8262"), ".service");
    assert_eq!(unit.len(), 320);
    insta::assert_snapshot!(content(&rendered(&full(), "172.19.0.101:8261"), ".service"));
}

#[test]
fn units_of_a_users_systemd_are_that_users_files_and_start_with_it() {
    let mut topology = Meta::parse(META).unwrap().topology;
    topology.global.systemd_mode = "user".to_owned();
    topology.monitored = Some(Monitored::default());
    let folder = "/home/tidb/.config/systemd/user";
    let (cluster, all) = (cluster(), topology.exporters());
    let version = version();
    let deployment = Deployment::new(&cluster, &version, &topology);
    let mut files = rendered(&topology, "198.18.0.11:8261");
    files.extend(exporter_files(&deployment, &all[0]));
    let units: Vec<&PlacedFile> =
        files.iter().filter(|file| file.path.extension() == Some("service")).collect();
    assert_eq!(units.len(), 3);
    for unit in units {
        assert_eq!((unit.path.parent().unwrap().as_str(), unit.root), (folder, false));
        assert!(unit.content.ends_with("[Install]\nWantedBy=default.target\n"), "{unit:?}");
        for of_root in ["User=", "AmbientCapabilities="] {
            assert!(!unit.content.contains(of_root), "{}", unit.content);
        }
    }
    let made = directories(&deployment, &topology.instances()[0]);
    assert!(made.iter().any(|dir| dir.path == folder && dir.owner.as_str() == "tidb"));
    assert!(exporter_directories(&deployment, &all[0]).iter().any(|dir| dir.path == folder));
}

#[test]
fn a_master_starts_with_its_members_or_joins_them() {
    let topology = Meta::parse(META).unwrap().topology;
    insta::assert_snapshot!(content(&rendered(&topology, "198.18.0.11:8261"), "run_dm-master.sh"));
    let new =
        Topology::parse_scale_out("master_servers: [{host: 198.18.0.15}]", &topology).unwrap();
    let merged = topology.merged(&new);
    let (cluster, version) = (cluster(), version());
    let deployment =
        Deployment { joins: Some(&topology), ..Deployment::new(&cluster, &version, &merged) };
    let instance =
        merged.instances().into_iter().find(|it| it.host.as_str() == "198.18.0.15").unwrap();
    insta::assert_snapshot!(content(&files(&deployment, &instance).unwrap(), "run_dm-master.sh"));
}

#[test]
fn a_worker_joins_all_masters() {
    let topology = Meta::parse(META).unwrap().topology;
    insta::assert_snapshot!(content(&rendered(&topology, "198.18.0.12:8262"), "run_dm-worker.sh"));
}

#[test]
fn settings_of_an_instance_win_over_those_of_its_role_and_tls_is_added() {
    insta::assert_snapshot!(content(&rendered(&full(), "172.19.0.101:8261"), "dm-master.toml"));
}

#[test]
fn monitoring_is_wired_together() {
    let mut all = String::new();
    for id in ["172.19.0.103:9090", "172.19.0.103:3000", "172.19.0.103:9093"] {
        for file in rendered(&full(), id) {
            all +=
                &format!("=== {} {:o} {}\n{}", file.path, file.mode, file.cache_name, file.content);
        }
    }
    insta::assert_snapshot!(all);
}

#[test]
fn exporters_come_with_monitored_only() {
    let (cluster, topology) = (cluster(), full());
    let version = version();
    let deployment = Deployment::new(&cluster, &version, &topology);
    let pairs = topology.exporters();
    // The first host says `ignore_exporter`.
    let hosts: Vec<&str> = pairs.iter().map(|it| it.host.as_str()).collect();
    assert_eq!(hosts, ["172.19.0.102", "172.19.0.103"]);
    let mut all = String::new();
    for dir in exporter_directories(&deployment, &pairs[0]) {
        all += &format!("{}/\n", dir.path);
    }
    let mut files = exporter_files(&deployment, &pairs[0]);
    files.extend(exporter_tls_files(&pairs[0], "CA\n", "CERTIFICATE\n", "KEY\n"));
    for file in files {
        all += &format!("=== {} {:o} {}\n{}", file.path, file.mode, file.cache_name, file.content);
    }
    insta::assert_snapshot!(all);
    assert_eq!(Meta::parse(META).unwrap().topology.exporters(), []);
}

/// The order in which TiUP's templates have the lines, and the words in them that somebody may look for.
#[test]
fn exporters_are_started_as_tiup_starts_them() {
    let text =
        "global: {deploy_dir: /d}\nmonitored: {numa_node: '1'}\nmaster_servers: [{host: h1}]\n";
    let mut topology = Topology::parse(text).unwrap();
    topology.expand_dirs();
    let (cluster, version) = (cluster(), version());
    let deployment = Deployment::new(&cluster, &version, &topology);
    let files = exporter_files(&deployment, &topology.exporters()[0]);
    let flags = |name: &str| -> Vec<String> {
        let script = content(&files, name);
        let lines = script.lines().map(str::trim).filter(|line| line.starts_with("--"));
        lines.map(|line| line.trim_end_matches(" \\").to_owned()).collect()
    };
    assert_eq!(
        flags("run_node_exporter.sh"),
        [
            "--web.listen-address=\":9100\"",
            "--collector.tcpstat",
            "--collector.mountstats",
            "--collector.meminfo_numa",
            "--collector.buddyinfo",
            "--collector.vmstat.fields=\"^.*\"",
            "--log.level=\"info\"",
        ]
    );
    assert_eq!(
        flags("run_blackbox_exporter.sh"),
        [
            "--web.listen-address=\":9115\"",
            "--log.level=\"info\"",
            "--config.file=\"conf/blackbox.yml\"",
        ]
    );
    // TiUP binds the first of them alone: its template takes a node for the other, and its code gives none.
    let bound = |name: &str| content(&files, name).contains("exec numactl --cpunodebind=1");
    assert!(bound("run_node_exporter.sh") && bound("run_blackbox_exporter.sh"));
    assert!(!content(&files, "blackbox.yml").contains("tls_connect"));
    for unit in ["node_exporter-9100.service", "blackbox_exporter-9115.service"] {
        let text = content(&files, unit);
        let pings = text.contains("AmbientCapabilities=CAP_NET_RAW\nUser=tidb\n");
        assert_eq!(pings, unit.starts_with("blackbox"), "{text}");
        let (kind, _) = unit.split_once('-').unwrap();
        let start = format!("ExecStart=/bin/bash -c '/d/monitor-9100/scripts/run_{kind}.sh'\n");
        assert!(text.contains(&start), "{text}");
    }
}

#[test]
fn scripts_are_what_bash_accepts_whatever_the_operator_wrote() {
    let topology = Topology::parse(
        "monitoring_servers:\n  - host: h1\n    additional_args: [\"--x=$(touch /tmp/x) `y` 'z'\"]\n\
         master_servers: [{host: 'fd00::1', numa_node: '0,1'}]\n",
    )
    .unwrap();
    let script = content(&rendered(&topology, "h1:9090"), "run_prometheus.sh");
    assert!(script.contains(r"    '--x=$(touch /tmp/x) `y` '\''z'\''' \"), "{script}");
    let script = content(&rendered(&topology, "[fd00::1]:8261"), "run_dm-master.sh");
    assert!(script.contains("--master-addr=\"[::]:8261\""), "{script}");
    assert!(
        script.contains("--initial-cluster=\"dm-fd00::1-8261=http://[fd00::1]:8291\""),
        "{script}"
    );
    assert!(
        script.contains("exec numactl --cpunodebind=0,1 --membind=0,1 bin/dm-master/dm-master"),
        "{script}"
    );
}

#[test]
fn prometheus_leaves_http2_alone_where_it_would_use_it_and_can_be_told() {
    let config = |tls: bool, version: &str, more: &str| {
        let text = format!(
            "global: {{enable_tls: {tls}}}\nmonitoring_servers: [{{host: h1{more}}}]\nworker_servers: [{{host: h1}}]\n"
        );
        let topology = Topology::parse(&text).unwrap();
        let (cluster, version) = (cluster(), version.parse().unwrap());
        let deployment = Deployment::new(&cluster, &version, &topology);
        let instances = topology.instances();
        let prometheus = instances.iter().find(|it| it.role == Role::Prometheus).unwrap();
        content(&files(&deployment, prometheus).unwrap(), "prometheus.yml")
    };
    let off = "  enable_http2: false\n";
    assert_eq!(config(true, "v8.0.0", "").matches(off).count(), 2, "masters and workers");
    assert_eq!(config(true, "nightly", "").matches(off).count(), 2);
    for (tls, version) in [(true, "v7.5.9"), (false, "v8.1.0")] {
        assert!(!config(tls, version, "").contains("http2"), "{version}");
    }
    let own = config(true, "v8.1.0", ", additional_scrape_conf: {enable_http2: true}");
    assert!(own.contains("enable_http2: true") && !own.contains(off), "{own}");
}

#[test]
fn the_sudo_rule_is_tiups() {
    let rule = sudoers("tidb");
    assert_eq!(rule.content, "tidb ALL=(ALL) NOPASSWD:ALL\n");
    assert!(HOST_TREE.contains(rule.content.trim_end()));
    assert_eq!(sudoers("a.b").path, "/etc/sudoers.d/a_b");
}

#[test]
fn tls_paths_are_kept_in_meta_as_tiup_keeps_them() {
    let mut topology = full();
    topology.set_tls_paths();
    let text = topology.render();
    assert!(text.contains("        ssl-ca: /dm-deploy/m1/tls/ca.crt\n        ssl-cert: /dm-deploy/m1/tls/dm-master.crt\n        ssl-key: /dm-deploy/m1/tls/dm-master.pem\n"), "{text}");
    topology.global.enable_tls = false;
    topology.set_tls_paths();
    assert!(!topology.render().contains("ssl-ca"));
}
