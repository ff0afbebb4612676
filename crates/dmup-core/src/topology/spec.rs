//! The sections of a DM topology, with their keys in the order in which TiUP writes them.
//!
//! Facts: TiUP 1.16.5, components/dm/spec/topology_dm.go and pkg/cluster/spec. Values are kept as
//! they are written; what follows from them is [`Topology::instances`](super::Topology::instances).
//! Ports: 0 means "not given". Dirs may be relative until they are expanded.

use super::error::TopologyError;
use super::field::{Field, Table, Texts, Unknown, entries_of, section};
use super::yaml::{Node, Value};

section! {
    /// `global`: what instances inherit.
    Global, "global" {
        /// Deploys and runs everything.
        user: String, omit;
        /// Primary group for a user that is created.
        group: String, omit;
        /// Port of sshd.
        ssh_port: u16, omit;
        /// `builtin`, `system` or `none`.
        ssh_type: String, omit;
        /// Whether DM speaks TLS.
        enable_tls: bool, omit;
        /// Bind address; empty for all.
        listen_host: String, omit;
        /// Parent of the instances' deploy dirs.
        deploy_dir: String, omit;
        /// Parent of the data dirs when absolute, else a name below each deploy dir.
        data_dir: String, omit;
        /// Taken as it is by every instance.
        log_dir: String, omit;
        /// Limits of systemd.
        resource_control: ResourceControl, omit;
        /// `linux`.
        os: String, omit;
        /// Not inherited; hosts are asked.
        arch: String, omit;
        /// The operator's own notes.
        custom: Value, omit;
        /// `system` or `user`.
        systemd_mode: String, omit;
        /// Means nothing for DM.
        pd_mode: String, omit;
    }
}

section! {
    /// Limits that go into unit files, in systemd's words.
    ResourceControl, "resource_control" {
        /// `MemoryLimit`.
        memory_limit: String, omit;
        /// `CPUQuota`.
        cpu_quota: String, omit;
        /// `IOReadBandwidthMax`.
        io_read_bandwidth_max: String, omit;
        /// `IOWriteBandwidthMax`.
        io_write_bandwidth_max: String, omit;
        /// `LimitCORE`.
        limit_core: String, omit;
        /// `TimeoutStopSec`.
        timeout_stop_sec: String, omit;
        /// `TimeoutStartSec`.
        timeout_start_sec: String, omit;
    }
}

impl ResourceControl {
    /// Own values win over inherited ones.
    #[must_use]
    pub fn or(&self, inherited: &Self) -> Self {
        let pick =
            |own: &String, other: &String| if own.is_empty() { other.clone() } else { own.clone() };
        Self {
            memory_limit: pick(&self.memory_limit, &inherited.memory_limit),
            cpu_quota: pick(&self.cpu_quota, &inherited.cpu_quota),
            io_read_bandwidth_max: pick(
                &self.io_read_bandwidth_max,
                &inherited.io_read_bandwidth_max,
            ),
            io_write_bandwidth_max: pick(
                &self.io_write_bandwidth_max,
                &inherited.io_write_bandwidth_max,
            ),
            limit_core: pick(&self.limit_core, &inherited.limit_core),
            timeout_stop_sec: pick(&self.timeout_stop_sec, &inherited.timeout_stop_sec),
            timeout_start_sec: pick(&self.timeout_start_sec, &inherited.timeout_start_sec),
        }
    }

    /// Keys of the topology and their values, in order.
    pub fn entries(&self) -> [(&'static str, &str); 7] {
        [
            ("memory_limit", &self.memory_limit),
            ("cpu_quota", &self.cpu_quota),
            ("io_read_bandwidth_max", &self.io_read_bandwidth_max),
            ("io_write_bandwidth_max", &self.io_write_bandwidth_max),
            ("limit_core", &self.limit_core),
            ("timeout_stop_sec", &self.timeout_stop_sec),
            ("timeout_start_sec", &self.timeout_start_sec),
        ]
    }
}

section! {
    /// `monitored`: exporters on every host; absent, there are none.
    Monitored, "monitored" {
        /// 9100 if not given.
        node_exporter_port: u16, omit;
        /// 9115 if not given.
        blackbox_exporter_port: u16, omit;
        /// Newest stable one if empty.
        node_exporter_version: String, omit;
        /// Newest stable one if empty.
        blackbox_exporter_version: String, omit;
        /// Both exporters' folder.
        deploy_dir: String, omit;
        /// Their data.
        data_dir: String, omit;
        /// Their logs.
        log_dir: String, omit;
        /// For numactl.
        numa_node: String, omit;
        /// Limits of systemd.
        resource_control: ResourceControl, omit;
    }
}

section! {
    /// `component_sources`: other package names for dm-master and dm-worker.
    ComponentSources, "component_sources" {
        /// Package of dm-master.
        master: String, omit;
        /// Package of dm-worker.
        worker: String, omit;
    }
}

/// `server_configs`: settings for all instances of a role. TiUP writes all three or none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServerConfigs {
    /// Of every dm-master.
    pub master: Option<Table>,
    /// Of every dm-worker.
    pub worker: Option<Table>,
    /// Of every grafana, `section.key`.
    pub grafana: Option<Texts>,
}

impl Field for ServerConfigs {
    fn read(node: &Node, unknown: Unknown) -> Result<Self, TopologyError> {
        let mut configs = Self::default();
        for (key, value) in
            entries_of(node, "server_configs", &["master", "worker", "grafana"], unknown)?
        {
            match key.text() {
                "master" => configs.master = Field::read(value, unknown)?,
                "worker" => configs.worker = Field::read(value, unknown)?,
                "grafana" => configs.grafana = Field::read(value, unknown)?,
                _ => {}
            }
        }
        Ok(configs)
    }

    fn write(&self) -> Value {
        let or_empty =
            |value: Value| if value == Value::Null { Value::Map(Vec::new()) } else { value };
        Value::Map(vec![
            ("master".to_owned(), or_empty(self.master.write())),
            ("worker".to_owned(), or_empty(self.worker.write())),
            ("grafana".to_owned(), or_empty(self.grafana.write())),
        ])
    }

    fn is_empty(&self) -> bool {
        self.master.is_none() && self.worker.is_none() && self.grafana.is_none()
    }
}

section! {
    /// One of `master_servers`.
    MasterSpec, "master_servers" {
        /// Address of the service.
        host: String, omit;
        /// Address of its sshd, if another.
        manage_host: String, omit;
        /// Port of its sshd.
        ssh_port: u16, omit;
        /// Runs a hotfix build.
        patched: bool, omit;
        /// No exporters on this host.
        ignore_exporter: bool, omit;
        /// DM's and etcd's name of it.
        name: String, omit;
        /// For clients.
        port: u16, omit;
        /// For etcd's peers.
        peer_port: u16, omit;
        /// Where `bin`, `conf`, `scripts` are.
        deploy_dir: String, omit;
        /// etcd's data.
        data_dir: String, omit;
        /// Logs; empty for `log` below the deploy dir.
        log_dir: String, omit;
        /// Another package name.
        source: String, omit;
        /// For numactl.
        numa_node: String, omit;
        /// Settings of this instance.
        config: Table, omit;
        /// Limits of systemd.
        resource_control: ResourceControl, omit;
        /// `amd64` or `arm64`.
        arch: String, omit;
        /// `linux`.
        os: String, omit;
        /// Sources of DM 1.0 to import.
        v1_source_path: String, omit;
    }
}

section! {
    /// One of `worker_servers`.
    WorkerSpec, "worker_servers" {
        /// Address of the service.
        host: String, omit;
        /// Address of its sshd, if another.
        manage_host: String, omit;
        /// Port of its sshd.
        ssh_port: u16, omit;
        /// Runs a hotfix build.
        patched: bool, omit;
        /// No exporters on this host.
        ignore_exporter: bool, omit;
        /// DM's name of it.
        name: String, omit;
        /// For clients.
        port: u16, omit;
        /// Where `bin`, `conf`, `scripts` are.
        deploy_dir: String, omit;
        /// Kept by TiUP, not told to dm-worker.
        data_dir: String, omit;
        /// Logs; empty for `log` below the deploy dir.
        log_dir: String, omit;
        /// Another package name.
        source: String, omit;
        /// For numactl.
        numa_node: String, omit;
        /// Settings of this instance.
        config: Table, omit;
        /// Limits of systemd.
        resource_control: ResourceControl, omit;
        /// `amd64` or `arm64`.
        arch: String, omit;
        /// `linux`.
        os: String, omit;
    }
}

section! {
    /// Where Prometheus copies to and reads from.
    RemoteConfig, "remote_config" {
        /// As in prometheus.yml.
        remote_write: Vec<Value>, omit;
        /// As in prometheus.yml.
        remote_read: Vec<Value>, omit;
    }
}

section! {
    /// An alertmanager outside of this cluster.
    ExternalAlertmanager, "external_alertmanagers" {
        /// Its address.
        host: String, omit;
        /// 9093 if not given.
        web_port: u16, omit;
    }
}

section! {
    /// One of `monitoring_servers`: a Prometheus.
    PrometheusSpec, "monitoring_servers" {
        /// Address of the service.
        host: String, omit;
        /// Address of its sshd, if another.
        manage_host: String, omit;
        /// Port of its sshd.
        ssh_port: u16, omit;
        /// Runs a hotfix build.
        patched: bool, omit;
        /// No exporters on this host.
        ignore_exporter: bool, omit;
        /// For clients.
        port: u16, always;
        /// For ng-monitoring; 0 for none.
        ng_port: u16, omit;
        /// Where `bin`, `conf`, `scripts` are.
        deploy_dir: String, omit;
        /// Samples.
        data_dir: String, omit;
        /// Logs; empty for `log` below the deploy dir.
        log_dir: String, omit;
        /// For numactl.
        numa_node: String, omit;
        /// Copies to a VictoriaMetrics beside it.
        prom_remote_write_to_vm: bool, omit;
        /// Forwards only.
        enable_prom_agent_mode: bool, omit;
        /// Copies elsewhere.
        remote_config: RemoteConfig, omit;
        /// Alertmanagers of others.
        external_alertmanagers: Vec<ExternalAlertmanager>, always;
        /// `host:port` of push gateways.
        pushgateway_addrs: Vec<String>, omit;
        /// Old name of `storage_retention_time`.
        storage_retention: String, omit;
        /// Such as `10GB`.
        storage_retention_size: String, omit;
        /// Such as `15d`.
        storage_retention_time: String, omit;
        /// Limits of systemd.
        resource_control: ResourceControl, omit;
        /// `amd64` or `arm64`.
        arch: String, omit;
        /// `linux`.
        os: String, omit;
        /// The operator's own alert rules, on the control machine.
        rule_dir: String, omit;
        /// Merged into every scrape job.
        additional_scrape_conf: Table, omit;
        /// Such as `15s`.
        scrape_interval: String, omit;
        /// Such as `10s`.
        scrape_timeout: String, omit;
        /// Further arguments.
        additional_args: Vec<String>, omit;
        /// Settings of ng-monitoring.
        ng_monitoring_config: Table, omit;
    }
}

section! {
    /// One of `grafana_servers`.
    GrafanaSpec, "grafana_servers" {
        /// Address of the service.
        host: String, omit;
        /// Address of its sshd, if another.
        manage_host: String, omit;
        /// Port of its sshd.
        ssh_port: u16, omit;
        /// Runs a hotfix build.
        patched: bool, omit;
        /// No exporters on this host.
        ignore_exporter: bool, omit;
        /// For browsers.
        port: u16, always;
        /// Where everything of it is.
        deploy_dir: String, omit;
        /// `section.key: value` of grafana.ini.
        config: Texts, omit;
        /// Limits of systemd.
        resource_control: ResourceControl, omit;
        /// `amd64` or `arm64`.
        arch: String, omit;
        /// `linux`.
        os: String, omit;
        /// The operator's own dashboards, on the control machine.
        dashboard_dir: String, omit;
        /// Administrator's name.
        username: String, omit;
        /// Administrator's password.
        password: String, omit;
        /// Whether anybody may look.
        anonymous_enable: bool, always;
        /// Address seen from outside.
        root_url: String, always;
        /// Name seen from outside.
        domain: String, always;
        /// `light` or `dark`.
        default_theme: String, omit;
        /// Of those who look without an account.
        org_name: String, omit;
        /// Of those who look without an account.
        org_role: String, omit;
        /// Reads a VictoriaMetrics first.
        use_vm_as_datasource: bool, omit;
    }
}

section! {
    /// One of `alertmanager_servers`.
    AlertmanagerSpec, "alertmanager_servers" {
        /// Address of the service.
        host: String, omit;
        /// Address of its sshd, if another.
        manage_host: String, omit;
        /// Port of its sshd.
        ssh_port: u16, omit;
        /// Runs a hotfix build.
        patched: bool, omit;
        /// No exporters on this host.
        ignore_exporter: bool, omit;
        /// For clients.
        web_port: u16, always;
        /// For its peers.
        cluster_port: u16, always;
        /// Bind address of this one.
        listen_host: String, omit;
        /// Where `bin`, `conf`, `scripts` are.
        deploy_dir: String, omit;
        /// Silences and notifications.
        data_dir: String, omit;
        /// Logs; empty for `log` below the deploy dir.
        log_dir: String, omit;
        /// For numactl.
        numa_node: String, omit;
        /// Limits of systemd.
        resource_control: ResourceControl, omit;
        /// Further arguments.
        additional_args: Vec<String>, omit;
        /// `amd64` or `arm64`.
        arch: String, omit;
        /// `linux`.
        os: String, omit;
        /// The operator's own configuration, on the control machine.
        config_file: String, omit;
    }
}

section! {
    /// A whole topology.
    Topology, "a topology" {
        /// What instances inherit.
        global: Global, omit;
        /// Exporters, if there are any.
        monitored: Option<Monitored>, omit;
        /// Other package names.
        component_sources: ComponentSources, omit;
        /// Settings for all instances of a role.
        server_configs: ServerConfigs, omit;
        /// Every dm-master.
        master_servers: Vec<MasterSpec>, always;
        /// Every dm-worker.
        worker_servers: Vec<WorkerSpec>, always;
        /// Every Prometheus.
        monitoring_servers: Vec<PrometheusSpec>, always;
        /// Every Grafana.
        grafana_servers: Vec<GrafanaSpec>, omit;
        /// Every Alertmanager.
        alertmanager_servers: Vec<AlertmanagerSpec>, omit;
    }
}
