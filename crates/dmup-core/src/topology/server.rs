//! What servers of all roles have in common, seen through one shape.

use crate::instance::Role;

use super::spec::{
    AlertmanagerSpec, GrafanaSpec, MasterSpec, PrometheusSpec, ResourceControl, Topology,
    WorkerSpec,
};

/// The common fields of one entry of a `…_servers` list.
#[derive(Clone, Copy, Debug)]
pub struct Server<'a> {
    /// Its role.
    pub role: Role,
    /// Its place in its list, from 0.
    pub index: usize,
    /// `host`.
    pub host: &'a str,
    /// `manage_host`; may be empty.
    pub manage_host: &'a str,
    /// `ssh_port`.
    pub ssh_port: u16,
    /// `patched`.
    pub patched: bool,
    /// `ignore_exporter`.
    pub ignore_exporter: bool,
    /// `name`; none for monitoring.
    pub name: Option<&'a str>,
    /// Keys and values of all ports that count for conflicts, the main one first.
    pub ports: [Option<(&'static str, u16)>; 2],
    /// `deploy_dir`.
    pub deploy_dir: &'a str,
    /// `data_dir`; none for grafana. May list several, with commas.
    pub data_dir: Option<&'a str>,
    /// `log_dir`; none for grafana; may be empty.
    pub log_dir: Option<&'a str>,
    /// `numa_node`; empty if not given.
    pub numa_node: &'a str,
    /// `source`: another package name; empty if not given.
    pub source: &'a str,
    /// `resource_control`.
    pub resource_control: &'a ResourceControl,
    /// `arch`.
    pub arch: &'a str,
    /// `os`.
    pub os: &'a str,
}

impl Server<'_> {
    /// The key of its list.
    pub fn section(&self) -> &'static str {
        section_of(self.role)
    }

    /// Where its sshd is.
    pub fn ssh_host(&self) -> &str {
        if self.manage_host.is_empty() { self.host } else { self.manage_host }
    }

    /// The port that clients use.
    pub fn main_port(&self) -> u16 {
        self.ports[0].map_or(0, |(_, port)| port)
    }

    /// `host:port`, with brackets around an IPv6 address.
    pub fn id(&self) -> String {
        host_port(self.host, self.main_port())
    }
}

/// `host:port`, with brackets around an IPv6 address.
pub(crate) fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

pub(super) fn section_of(role: Role) -> &'static str {
    match role {
        Role::DmMaster => "master_servers",
        Role::DmWorker => "worker_servers",
        Role::Prometheus => "monitoring_servers",
        Role::Grafana => "grafana_servers",
        Role::Alertmanager => "alertmanager_servers",
        Role::NodeExporter | Role::BlackboxExporter => "monitored",
    }
}

/// The same, to fill in.
pub(super) struct ServerMut<'a> {
    pub(super) role: Role,
    pub(super) host: &'a str,
    pub(super) manage_host: &'a str,
    pub(super) ssh_port: &'a mut u16,
    pub(super) patched: &'a mut bool,
    pub(super) name: Option<&'a mut String>,
    /// And its default.
    pub(super) main_port: (&'a mut u16, u16),
    pub(super) second_port: Option<(&'a mut u16, u16)>,
    pub(super) deploy_dir: &'a mut String,
    pub(super) data_dir: Option<&'a mut String>,
    pub(super) log_dir: Option<&'a mut String>,
    pub(super) arch: &'a mut String,
    pub(super) os: &'a mut String,
}

/// One shape for a kind of server: its role, its main port and default, its second port and default,
/// and which of the optional fields it has.
macro_rules! server {
    ($type:ident, $role:ident, $port:ident = $default:literal, second [$($second:ident = $second_default:literal)?],
     name [$($name:ident)?], data [$($data:ident)?], log [$($log:ident)?], numa [$($numa:ident)?], source [$($source:ident)?]) => {
        impl $type {
            /// What it has in common with other servers.
            pub fn server(&self, index: usize) -> Server<'_> {
                Server {
                    role: Role::$role,
                    index,
                    host: &self.host,
                    manage_host: &self.manage_host,
                    ssh_port: self.ssh_port,
                    patched: self.patched,
                    ignore_exporter: self.ignore_exporter,
                    name: None$(.or(Some(self.$name.as_str())))?,
                    ports: [
                        Some((stringify!($port), self.$port)),
                        None$(.or(Some((stringify!($second), self.$second))))?,
                    ],
                    deploy_dir: &self.deploy_dir,
                    data_dir: None$(.or(Some(self.$data.as_str())))?,
                    log_dir: None$(.or(Some(self.$log.as_str())))?,
                    numa_node: None$(.or(Some(self.$numa.as_str())))?.unwrap_or_default(),
                    source: None$(.or(Some(self.$source.as_str())))?.unwrap_or_default(),
                    resource_control: &self.resource_control,
                    arch: &self.arch,
                    os: &self.os,
                }
            }

            fn server_mut(&mut self) -> ServerMut<'_> {
                ServerMut {
                    role: Role::$role,
                    host: &self.host,
                    manage_host: &self.manage_host,
                    ssh_port: &mut self.ssh_port,
                    patched: &mut self.patched,
                    name: None$(.or(Some(&mut self.$name)))?,
                    main_port: (&mut self.$port, $default),
                    second_port: None$(.or(Some((&mut self.$second, $second_default))))?,
                    deploy_dir: &mut self.deploy_dir,
                    data_dir: None$(.or(Some(&mut self.$data)))?,
                    log_dir: None$(.or(Some(&mut self.$log)))?,
                    arch: &mut self.arch,
                    os: &mut self.os,
                }
            }
        }
    };
}

server!(
    MasterSpec,
    DmMaster,
    port = 8261,
    second[peer_port = 8291],
    name[name],
    data[data_dir],
    log[log_dir],
    numa[numa_node],
    source[source]
);
server!(WorkerSpec, DmWorker, port = 8262, second [],
    name [name], data [data_dir], log [log_dir], numa [numa_node], source [source]);
server!(PrometheusSpec, Prometheus, port = 9090, second [],
    name [], data [data_dir], log [log_dir], numa [numa_node], source []);
server!(GrafanaSpec, Grafana, port = 3000, second [],
    name [], data [], log [], numa [], source []);
server!(AlertmanagerSpec, Alertmanager, web_port = 9093, second [cluster_port = 9094],
    name [], data [data_dir], log [log_dir], numa [numa_node], source []);

impl Topology {
    /// Every server, in TiUP's order of starting.
    pub fn servers(&self) -> Vec<Server<'_>> {
        let mut all = Vec::new();
        all.extend(self.master_servers.iter().enumerate().map(|(at, server)| server.server(at)));
        all.extend(self.worker_servers.iter().enumerate().map(|(at, server)| server.server(at)));
        all.extend(
            self.monitoring_servers.iter().enumerate().map(|(at, server)| server.server(at)),
        );
        all.extend(self.grafana_servers.iter().enumerate().map(|(at, server)| server.server(at)));
        all.extend(
            self.alertmanager_servers.iter().enumerate().map(|(at, server)| server.server(at)),
        );
        all
    }

    pub(super) fn servers_mut(&mut self) -> Vec<ServerMut<'_>> {
        let mut all = Vec::new();
        all.extend(self.master_servers.iter_mut().map(MasterSpec::server_mut));
        all.extend(self.worker_servers.iter_mut().map(WorkerSpec::server_mut));
        all.extend(self.monitoring_servers.iter_mut().map(PrometheusSpec::server_mut));
        all.extend(self.grafana_servers.iter_mut().map(GrafanaSpec::server_mut));
        all.extend(self.alertmanager_servers.iter_mut().map(AlertmanagerSpec::server_mut));
        all
    }
}
