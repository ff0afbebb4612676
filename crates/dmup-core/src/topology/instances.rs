//! The processes that follow from a topology.

use camino::Utf8PathBuf;

use crate::ids::{BadName, HostId, InstanceId, MemberName, UnitName, UserName};
use crate::instance::{Instance, Role};
use crate::systemd::SystemdMode;

use super::load::{below, below_each};
use super::server::Server;
use super::spec::Topology;

impl Topology {
    /// Every instance, in TiUP's order of starting: masters, workers, Prometheus, Grafana,
    /// Alertmanager; within a role, the order of the topology.
    ///
    /// # Panics
    ///
    /// If a field was set to something that [`Topology::check_names`] refuses, after reading.
    pub fn instances(&self) -> Vec<Instance> {
        self.servers()
            .iter()
            .map(|server| self.instance(server).expect("names are checked when a topology is read"))
            .collect()
    }

    /// Whose systemd runs the services.
    pub fn systemd_mode(&self) -> SystemdMode {
        // Other words are refused when a topology is read; none means TiUP's default.
        self.global.systemd_mode.parse().unwrap_or_default()
    }

    /// The file of a unit of this cluster.
    ///
    /// # Panics
    ///
    /// As [`Topology::instances`].
    pub fn unit_path(&self, unit: &UnitName) -> Utf8PathBuf {
        self.systemd_mode().unit_path(&self.user(), unit)
    }

    pub(crate) fn user(&self) -> UserName {
        UserName::new(&*self.global.user).expect("names are checked when a topology is read")
    }

    pub(super) fn instance(&self, server: &Server<'_>) -> Result<Instance, BadName> {
        let id = server.id();
        let port = server.main_port();
        let deploy_dir = below(&format!("/home/{}", self.global.user), server.deploy_dir);
        let data_dirs = server.data_dir.map(|dirs| below_each(&deploy_dir, dirs));
        let log_dir = match server.log_dir {
            Some(dir) if !dir.is_empty() => below(&deploy_dir, dir),
            _ => below(&deploy_dir, "log"),
        };
        Ok(Instance {
            id: InstanceId::new(&*id)?,
            role: server.role,
            name: MemberName::new(server.name.unwrap_or(&id))?,
            host: HostId::new(server.host)?,
            ssh_host: HostId::new(server.ssh_host())?,
            ssh_port: server.ssh_port,
            port,
            ports: server
                .ports
                .iter()
                .flatten()
                .map(|(_, port)| *port)
                .chain(self.further_port(server))
                .collect(),
            deploy_dir: Utf8PathBuf::from(deploy_dir),
            data_dirs: data_dirs
                .iter()
                .flat_map(|dirs| dirs.split(','))
                .map(Utf8PathBuf::from)
                .collect(),
            log_dir: Utf8PathBuf::from(log_dir),
            unit: UnitName::new(format!("{}-{port}.service", server.role))?,
            os: if server.os.is_empty() { self.global.os.clone() } else { server.os.to_owned() },
            arch: server.arch.to_owned(),
            patched: server.patched,
        })
    }

    /// ng-monitoring beside a Prometheus.
    fn further_port(&self, server: &Server<'_>) -> Option<u16> {
        match server.role {
            Role::Prometheus => self
                .monitoring_servers
                .get(server.index)
                .map(|spec| spec.ng_port)
                .filter(|port| *port > 0),
            Role::DmMaster
            | Role::DmWorker
            | Role::Grafana
            | Role::Alertmanager
            | Role::NodeExporter
            | Role::BlackboxExporter => None,
        }
    }

    /// The text of the `Ports` column of `display`.
    pub fn ports_text(&self, instance: &Instance) -> String {
        let mut ports = vec![instance.port];
        if let (Role::Prometheus, Some(monitored)) = (instance.role, &self.monitored) {
            ports.extend([monitored.blackbox_exporter_port, monitored.node_exporter_port]);
        }
        ports.extend(instance.ports.iter().skip(1));
        ports.iter().map(u16::to_string).collect::<Vec<_>>().join("/")
    }
}
