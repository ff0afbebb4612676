//! node_exporter and blackbox_exporter: once per host, when the topology has `monitored`.

use camino::Utf8PathBuf;

use super::dirs::owned;
use super::script::{exec, head};
use super::unit::{text, unit_dir};
use super::{Deployment, PlacedDir, PlacedFile};
use crate::topology::Monitored;

/// How the blackbox exporter can try a target.
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
    ssh_banner:
        prober: tcp
        tcp:
            query_response:
                - expect: ^SSH-2.0-
    icmp:
        prober: icmp
        timeout: 5s
        icmp:
            preferred_ip_protocol: ip4
";

/// Units, scripts and configuration of both exporters for the host of this sshd; none without `monitored`.
pub fn exporter_files(deployment: &Deployment<'_>, ssh_host: &str) -> Vec<PlacedFile> {
    let Some(monitored) = &deployment.topology.monitored else { return Vec::new() };
    let deploy = Utf8PathBuf::from(&monitored.deploy_dir);
    let mut files = Vec::new();
    for (component, port) in exporters(monitored) {
        let limits = monitored.resource_control.or(&deployment.topology.global.resource_control);
        let rights = if component == "blackbox_exporter" && !deployment.user_mode() {
            "AmbientCapabilities=CAP_NET_RAW\n"
        } else {
            ""
        };
        files.push(PlacedFile {
            path: unit_dir(deployment).join(format!("{component}-{port}.service")),
            mode: 0o644,
            root: !deployment.user_mode(),
            content: text(deployment, component, deploy.as_str(), &limits, rights, ""),
            cache_name: format!("{component}-{ssh_host}-{port}.service"),
        });
        let mut arguments = vec![format!("--web.listen-address=\":{port}\"")];
        if component == "node_exporter" {
            let collectors = ["tcpstat", "mountstats", "meminfo_numa", "buddyinfo"];
            arguments.extend(collectors.map(|name| format!("--collector.{name}")));
            arguments.push("--collector.vmstat.fields=\"^.*\"".to_owned());
        }
        arguments.push("--log.level=\"info\"".to_owned());
        if component == "blackbox_exporter" {
            arguments.push("--config.file=\"conf/blackbox.yml\"".to_owned());
        }
        let log = format!("{}/{component}.log", monitored.log_dir);
        let body = format!(
            "exec > >(tee -i -a \"{log}\")\nexec 2>&1\n\n\
             EXPORTER=bin/{component}/{component}\nif [ ! -f \"${{EXPORTER}}\" ]; then\n    EXPORTER=bin/{component}\nfi\n\n{}",
            exec(&monitored.numa_node, "\"${EXPORTER}\"", &arguments, "")
        );
        files.push(PlacedFile {
            path: deploy.join(format!("scripts/run_{component}.sh")),
            mode: 0o755,
            root: false,
            content: format!("{}{body}", head(&deploy)),
            cache_name: format!("run_{component}_{ssh_host}.sh"),
        });
    }
    files.push(PlacedFile {
        path: deploy.join("conf/blackbox.yml"),
        mode: 0o644,
        root: false,
        content: MODULES.to_owned(),
        cache_name: format!("blackbox_{ssh_host}.yaml"),
    });
    files
}

/// Folders of both exporters on a host; none without `monitored`.
pub fn exporter_directories(deployment: &Deployment<'_>) -> Vec<PlacedDir> {
    let Some(monitored) = &deployment.topology.monitored else { return Vec::new() };
    let deploy = Utf8PathBuf::from(&monitored.deploy_dir);
    let mut paths = vec![deploy.clone(), Utf8PathBuf::from(&monitored.log_dir)];
    paths.extend(["bin", "conf", "scripts"].map(|name| deploy.join(name)));
    paths.extend(monitored.data_dir.split(',').map(Utf8PathBuf::from));
    owned(deployment, paths)
}

fn exporters(monitored: &Monitored) -> [(&'static str, u16); 2] {
    [
        ("node_exporter", monitored.node_exporter_port),
        ("blackbox_exporter", monitored.blackbox_exporter_port),
    ]
}
