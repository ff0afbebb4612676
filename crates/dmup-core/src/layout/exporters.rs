//! node_exporter and blackbox_exporter: what lies on a machine that has them.

use super::dirs::owned;
use super::script::{exec, head, tee};
use super::unit::{text, unit_dir};
use super::{Deployment, PlacedDir, PlacedFile};
use crate::component::ExporterKind;
use crate::exporters::{Exporter, Exporters};

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

/// Units, scripts and configuration of both exporters of a machine.
pub fn exporter_files(deployment: &Deployment<'_>, pair: &Exporters) -> Vec<PlacedFile> {
    let mut files = Vec::new();
    for exporter in &pair.both {
        files.push(unit(deployment, pair, exporter));
        files.push(script(deployment, pair, exporter));
    }
    files.push(PlacedFile {
        path: pair.deploy_dir.join("conf/blackbox.yml"),
        mode: 0o644,
        root: false,
        content: modules(deployment, pair),
        cache_name: format!("blackbox_{}.yaml", pair.ssh_host),
    });
    files
}

/// Folders of both exporters of a machine.
pub fn exporter_directories(deployment: &Deployment<'_>, pair: &Exporters) -> Vec<PlacedDir> {
    let deploy = &pair.deploy_dir;
    let mut paths = vec![deploy.clone(), pair.log_dir.clone()];
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
    let named = format!("{}-{}-{}", blackbox.kind, pair.ssh_host, blackbox.port);
    super::tls::placed(
        &pair.deploy_dir,
        blackbox.kind.as_str(),
        &named,
        authority,
        certificate,
        key,
    )
}

fn unit(deployment: &Deployment<'_>, pair: &Exporters, exporter: &Exporter) -> PlacedFile {
    let topology = deployment.topology;
    let own = topology.monitored.as_ref().map(|it| it.resource_control.clone()).unwrap_or_default();
    let limits = own.or(&topology.global.resource_control);
    let kind = exporter.kind;
    // It sends pings.
    let rights = if kind == ExporterKind::Blackbox && !deployment.user_mode() {
        "AmbientCapabilities=CAP_NET_RAW\n"
    } else {
        ""
    };
    PlacedFile {
        path: unit_dir(deployment).join(exporter.unit.as_str()),
        mode: 0o644,
        root: !deployment.user_mode(),
        content: text(deployment, kind.as_str(), pair.deploy_dir.as_str(), &limits, rights, ""),
        cache_name: format!("{kind}-{}-{}.service", pair.ssh_host, exporter.port),
    }
}

fn script(deployment: &Deployment<'_>, pair: &Exporters, exporter: &Exporter) -> PlacedFile {
    let kind = exporter.kind;
    let mut arguments = vec![format!("--web.listen-address=\":{}\"", exporter.port)];
    match kind {
        ExporterKind::Node => {
            let collectors = ["tcpstat", "mountstats", "meminfo_numa", "buddyinfo"];
            arguments.extend(collectors.map(|name| format!("--collector.{name}")));
            arguments.push("--collector.vmstat.fields=\"^.*\"".to_owned());
            arguments.push("--log.level=\"info\"".to_owned());
        }
        ExporterKind::Blackbox => {
            arguments.push("--log.level=\"info\"".to_owned());
            arguments.push("--config.file=\"conf/blackbox.yml\"".to_owned());
        }
    }
    let numa_node = deployment.topology.monitored.as_ref().map_or("", |it| it.numa_node.as_str());
    let body = format!(
        "{}EXPORTER=bin/{kind}/{kind}\nif [ ! -f \"${{EXPORTER}}\" ]; then\n    EXPORTER=bin/{kind}\nfi\n\n{}",
        tee(&pair.log_dir, kind.as_str()),
        exec(numa_node, "\"${EXPORTER}\"", &arguments, "")
    );
    PlacedFile {
        path: exporter.script.clone(),
        mode: 0o755,
        root: false,
        content: format!("{}{body}", head(&pair.deploy_dir)),
        cache_name: format!("run_{kind}_{}.sh", pair.ssh_host),
    }
}

fn modules(deployment: &Deployment<'_>, pair: &Exporters) -> String {
    if !deployment.topology.global.enable_tls {
        return MODULES.to_owned();
    }
    let file = |name: &str| pair.deploy_dir.join("tls").join(name);
    format!(
        "{MODULES}    tls_connect:\n        prober: tcp\n        tcp:\n            tls: true\n            tls_config:\n                \
         insecure_skip_verify: false\n                ca_file: {}\n                cert_file: {}\n                key_file: {}\n",
        file("ca.crt"),
        file("blackbox_exporter.crt"),
        file("blackbox_exporter.pem"),
    )
}
