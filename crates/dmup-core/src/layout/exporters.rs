//! node_exporter and blackbox_exporter: what lies on a machine that has them.

use super::dirs::{own_unit_dir, owned};
use super::script::{exec, tee};
use super::unit::text;
use super::{Deployment, PlacedDir, PlacedFile, script};
use crate::exporters::Exporters;
use crate::instance::{Instance, Role};

/// How the blackbox exporter can try a target, by TiUP's names; those that DM's dashboards and rules do not know as well.
const MODULES: &str = "\
modules:
    http_2xx:
        prober: http
        http:
            method: GET
    http_post_2xx:
        prober: http
        http:
            method: POST
    tcp_connect:
        prober: tcp
    pop3s_banner:
        prober: tcp
        tcp:
            query_response:
                - expect: ^+OK
            tls: true
            tls_config:
                insecure_skip_verify: false
    ssh_banner:
        prober: tcp
        tcp:
            query_response:
                - expect: ^SSH-2.0-
    irc_banner:
        prober: tcp
        tcp:
            query_response:
                - send: NICK prober
                - send: USER prober prober prober :prober
                - expect: 'PING :([^ ]+)'
                  send: PONG ${1}
                - expect: '^:[^ ]+ 001'
    icmp:
        prober: icmp
        timeout: 5s
        icmp:
            preferred_ip_protocol: ip4
";

/// Unit, script and, where it has one, configuration.
pub(super) fn files(deployment: &Deployment<'_>, exporter: &Instance) -> Vec<PlacedFile> {
    let mut files = vec![unit(deployment, exporter), script::script(deployment, exporter)];
    if exporter.role == Role::BlackboxExporter {
        files.push(PlacedFile {
            path: exporter.deploy_dir.join("conf/blackbox.yml"),
            mode: 0o644,
            root: false,
            content: modules(deployment, exporter),
            cache_name: format!("blackbox_{}.yaml", exporter.ssh_host),
        });
    }
    files
}

/// Folders of both exporters of a machine.
pub fn exporter_directories(deployment: &Deployment<'_>, pair: &Exporters) -> Vec<PlacedDir> {
    let deploy = &pair.deploy_dir;
    let mut paths = vec![deploy.clone(), pair.log_dir.clone()];
    paths.extend(own_unit_dir(deployment));
    paths.extend(["bin", "conf", "scripts"].map(|name| deploy.join(name)));
    if deployment.topology.global.enable_tls {
        paths.push(deploy.join("tls"));
    }
    paths.extend(pair.data_dirs.iter().cloned());
    owned(deployment, paths)
}

/// Where the blackbox exporter of a cluster with TLS finds what it proves itself with: `<deploy dir>/tls/ca.crt`,
/// `blackbox_exporter.crt` and `.pem`.
pub fn exporter_tls_files(
    pair: &Exporters,
    authority: &str,
    certificate: &str,
    key: &str,
) -> Vec<PlacedFile> {
    let [_, blackbox] = &pair.both;
    let (role, port) = (blackbox.instance.role, blackbox.instance.port);
    let named = format!("{role}-{}-{port}", pair.ssh_host);
    super::tls::placed(&pair.deploy_dir, role.as_str(), &named, authority, certificate, key)
}

fn unit(deployment: &Deployment<'_>, exporter: &Instance) -> PlacedFile {
    let topology = deployment.topology;
    let own = topology.monitored.as_ref().map(|it| it.resource_control.clone()).unwrap_or_default();
    let limits = own.or(&topology.global.resource_control);
    let role = exporter.role;
    // It sends pings. A user's systemd has no such right to give.
    let rights = if role == Role::BlackboxExporter && deployment.are_units_of_root() {
        "AmbientCapabilities=CAP_NET_RAW\n"
    } else {
        ""
    };
    PlacedFile {
        path: topology.unit_path(&exporter.unit),
        mode: 0o644,
        root: deployment.are_units_of_root(),
        content: text(deployment, role.as_str(), exporter.deploy_dir.as_str(), &limits, rights, ""),
        cache_name: format!("{role}-{}-{}.service", exporter.ssh_host, exporter.port),
    }
}

/// What its script does after its head.
pub(super) fn body(deployment: &Deployment<'_>, exporter: &Instance) -> String {
    let role = exporter.role;
    let mut arguments = vec![format!("--web.listen-address=\":{}\"", exporter.port)];
    match role {
        Role::NodeExporter => {
            let collectors = ["tcpstat", "mountstats", "meminfo_numa", "buddyinfo"];
            arguments.extend(collectors.map(|name| format!("--collector.{name}")));
            arguments.push("--collector.vmstat.fields=\"^.*\"".to_owned());
            arguments.push("--log.level=\"info\"".to_owned());
        }
        Role::BlackboxExporter => {
            arguments.push("--log.level=\"info\"".to_owned());
            arguments.push("--config.file=\"conf/blackbox.yml\"".to_owned());
        }
        Role::DmMaster | Role::DmWorker | Role::Prometheus | Role::Grafana | Role::Alertmanager => {
        }
    }
    let numa_node = deployment.topology.monitored.as_ref().map_or("", |it| it.numa_node.as_str());
    format!(
        "{}EXPORTER=bin/{role}/{role}\nif [ ! -f \"${{EXPORTER}}\" ]; then\n    EXPORTER=bin/{role}\nfi\n\n{}",
        tee(&exporter.log_dir, role.as_str()),
        exec(numa_node, "\"${EXPORTER}\"", &arguments, "")
    )
}

fn modules(deployment: &Deployment<'_>, exporter: &Instance) -> String {
    if !deployment.topology.global.enable_tls {
        return MODULES.to_owned();
    }
    let file = |name: &str| exporter.deploy_dir.join("tls").join(name);
    format!(
        "{MODULES}    tls_connect:\n        prober: tcp\n        tcp:\n            tls: true\n            tls_config:\n                \
         insecure_skip_verify: false\n                ca_file: {}\n                cert_file: {}\n                key_file: {}\n",
        file("ca.crt"),
        file("blackbox_exporter.crt"),
        file("blackbox_exporter.pem"),
    )
}
