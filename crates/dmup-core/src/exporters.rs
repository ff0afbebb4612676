//! The exporters that `monitored` asks for: once per machine, whatever of the cluster runs there.
//!
//! No `-N` and no `-R` names them, `display` does not show them, and DM knows nothing of them. Their units' names carry only a port, so a unit of that name may be
//! another cluster's: whoever acts on one asks [`Exporter::owner_of`] first.
//!
//! Facts: TiUP 1.16.5, pkg/cluster/manager/builder.go (getMonitorHosts), pkg/cluster/operation/action.go.

use camino::Utf8PathBuf;

use crate::ids::{BadName, HostId, InstanceId, MemberName, UnitName};
use crate::instance::{Instance, Role};
use crate::topology::{Monitored, Server, Topology, absolute_dirs, host_port};

/// Both exporters of a machine. They share their folders.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Exporters {
    /// The machine, by the name that the first of its instances has for it.
    pub host: HostId,
    /// Its sshd: two hosts with the same are one machine.
    pub ssh_host: HostId,
    /// Absolute; `bin`, `conf`, `scripts` of both are below it.
    pub deploy_dir: Utf8PathBuf,
    /// Absolute.
    pub data_dirs: Vec<Utf8PathBuf>,
    /// Absolute.
    pub log_dir: Utf8PathBuf,
    /// Lower case, TiUP's words: `linux`.
    pub os: String,
    /// TiUP's words: `amd64` or `arm64`.
    pub arch: String,
    /// In order of starting.
    pub both: [Exporter; 2],
}

/// One exporter of a machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Exporter {
    /// What a unit and a window make of it. Its id is host and port, as every instance's.
    pub instance: Instance,
    /// Its service's file.
    pub unit_file: Utf8PathBuf,
    /// `monitored.…_version`; empty for the newest.
    pub version: String,
}

/// Whose a unit is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum UnitOwner {
    /// It starts our script.
    Ours,
    /// There is none of that name.
    Nobody,
    /// It starts something else, this.
    SomebodyElse(String),
}

/// An order to instances, as far as it matters to the exporters beside them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reach {
    /// `start`: exporters of every machine that has one of the instances.
    Any,
    /// `stop`, `enable`, `disable`: exporters of machines that have nothing but these instances.
    Whole,
}

impl Exporters {
    /// `<deploy_dir>/bin`.
    pub fn bin_dir(&self) -> Utf8PathBuf {
        self.deploy_dir.join("bin")
    }

    /// Whether an instance runs on the same machine.
    pub fn are_beside(&self, instance: &Instance) -> bool {
        self.ssh_host == instance.ssh_host
    }

    /// Whether an order to `selected` of `all` instances goes to these exporters, too.
    pub fn are_reached(&self, reach: Reach, all: &[Instance], selected: &[Instance]) -> bool {
        let is_selected = |it: &Instance| selected.iter().any(|other| other.id == it.id);
        let mut beside = all.iter().filter(|it| self.are_beside(it));
        match reach {
            Reach::Any => beside.any(is_selected),
            Reach::Whole => beside.all(is_selected),
        }
    }
}

impl Exporter {
    /// What its service starts.
    pub fn script(&self) -> Utf8PathBuf {
        self.instance.script()
    }

    /// Whose the unit of that name is, by its file; none if there is no such file.
    pub fn owner_of(&self, unit_file: Option<&str>) -> UnitOwner {
        let Some(text) = unit_file else { return UnitOwner::Nobody };
        let script = self.script();
        let starts: Vec<&str> =
            text.lines().filter_map(|line| line.trim().strip_prefix("ExecStart=")).collect();
        let is_ours = |command: &&str| {
            command
                .split(|c: char| c.is_whitespace() || c == '\'' || c == '"')
                .any(|word| word == script)
        };
        match starts[..] {
            [one] if is_ours(&one) => UnitOwner::Ours,
            [] => UnitOwner::SomebodyElse("nothing".to_owned()),
            _ => UnitOwner::SomebodyElse(format!("`{}`", starts.join("`, `"))),
        }
    }
}

impl Topology {
    /// The exporters of every machine that is to have them, in the order of the topology: none without
    /// `monitored`, and none where an instance says `ignore_exporter`.
    ///
    /// # Panics
    ///
    /// If a field was set to something that [`Topology::check_names`] refuses, after reading.
    pub fn exporters(&self) -> Vec<Exporters> {
        let Some(monitored) = &self.monitored else { return Vec::new() };
        let servers = self.servers();
        let mut machines: Vec<&Server<'_>> = Vec::new();
        for server in &servers {
            if !machines.iter().any(|known| known.ssh_host() == server.ssh_host()) {
                machines.push(server);
            }
        }
        let is_ignored = |machine: &&Server<'_>| {
            let mut beside = servers.iter().filter(|it| it.ssh_host() == machine.ssh_host());
            beside.any(|it| it.ignore_exporter)
        };
        machines
            .into_iter()
            .filter(|machine| !is_ignored(machine))
            .map(|machine| {
                self.exporters_on(monitored, machine)
                    .expect("names are checked when a topology is read")
            })
            .collect()
    }

    fn exporters_on(
        &self,
        monitored: &Monitored,
        machine: &Server<'_>,
    ) -> Result<Exporters, BadName> {
        let [deploy_dir, data_dir, log_dir] = absolute_dirs(&self.global.user, monitored);
        let (host, ssh_host) = (HostId::new(machine.host)?, HostId::new(machine.ssh_host())?);
        let data_dirs: Vec<Utf8PathBuf> = data_dir.split(',').map(Utf8PathBuf::from).collect();
        let (deploy_dir, log_dir) = (Utf8PathBuf::from(deploy_dir), Utf8PathBuf::from(log_dir));
        let os = if machine.os.is_empty() { &self.global.os } else { machine.os };
        let exporter = |role: Role, port: u16, version: &str| {
            let id = host_port(machine.host, port);
            let unit = UnitName::new(format!("{role}-{port}.service"))?;
            Ok::<_, BadName>(Exporter {
                unit_file: self.unit_path(&unit),
                instance: Instance {
                    id: InstanceId::new(&*id)?,
                    role,
                    name: MemberName::new(id)?,
                    host: host.clone(),
                    ssh_host: ssh_host.clone(),
                    ssh_port: machine.ssh_port,
                    port,
                    ports: vec![port],
                    deploy_dir: deploy_dir.clone(),
                    data_dirs: data_dirs.clone(),
                    log_dir: log_dir.clone(),
                    unit,
                    os: os.to_owned(),
                    arch: machine.arch.to_owned(),
                    patched: false,
                },
                version: version.to_owned(),
            })
        };
        let both = [
            exporter(
                Role::NodeExporter,
                monitored.node_exporter_port,
                &monitored.node_exporter_version,
            )?,
            exporter(
                Role::BlackboxExporter,
                monitored.blackbox_exporter_port,
                &monitored.blackbox_exporter_version,
            )?,
        ];
        let (os, arch) = (os.to_owned(), machine.arch.to_owned());
        Ok(Exporters { host, ssh_host, deploy_dir, data_dirs, log_dir, os, arch, both })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE: &str = "\
monitored: {node_exporter_port: 9101}
global: {user: tidb}
master_servers:
  - {host: 10.0.1.1}
  - {host: 10.0.1.2, manage_host: 10.9.0.2, arch: arm64}
worker_servers:
  - {host: 10.0.1.1}
  - {host: 10.0.1.3, ignore_exporter: true}
monitoring_servers:
  - {host: 10.0.1.3}
  - {host: 10.0.1.22, manage_host: 10.9.0.2}
";

    fn expanded(text: &str) -> Topology {
        let mut topology = Topology::parse(text).unwrap();
        topology.expand_dirs();
        topology
    }

    #[test]
    fn every_machine_has_a_pair_unless_an_instance_on_it_says_no() {
        let topology = expanded(THREE);
        let pairs = topology.exporters();
        let machines: Vec<(&str, &str, &str)> = pairs
            .iter()
            .map(|it| (it.host.as_str(), it.ssh_host.as_str(), it.arch.as_str()))
            .collect();
        assert_eq!(
            machines,
            [("10.0.1.1", "10.0.1.1", ""), ("10.0.1.2", "10.9.0.2", "arm64")],
            "one per sshd, and none on 10.0.1.3"
        );
        let units: Vec<&str> = pairs[0].both.iter().map(|it| it.instance.unit.as_str()).collect();
        assert_eq!(units, ["node_exporter-9101.service", "blackbox_exporter-9115.service"]);
        assert_eq!(pairs[0].deploy_dir, "/home/tidb/deploy/monitor-9101");
        assert_eq!(pairs[0].log_dir, "/home/tidb/deploy/monitor-9101/log");
        let without = expanded("master_servers: [{host: 10.0.1.1}]\n");
        assert_eq!(without.exporters(), []);
    }

    #[test]
    fn a_start_reaches_machines_of_some_and_a_stop_those_of_all() {
        let topology = expanded(THREE);
        let (all, pairs) = (topology.instances(), topology.exporters());
        let reached = |reach: Reach, selected: &[Instance]| -> Vec<&str> {
            let mut hosts = Vec::new();
            for pair in pairs.iter().filter(|it| it.are_reached(reach, &all, selected)) {
                hosts.push(pair.host.as_str());
            }
            hosts
        };
        let first = [all[0].clone()];
        assert_eq!((all[0].host.as_str(), all[2].host.as_str()), ("10.0.1.1", "10.0.1.1"));
        assert_eq!(reached(Reach::Any, &first), ["10.0.1.1"]);
        assert_eq!(reached(Reach::Whole, &first), Vec::<&str>::new(), "its worker goes on");
        let both = [all[0].clone(), all[2].clone()];
        assert_eq!(reached(Reach::Whole, &both), ["10.0.1.1"]);
        assert_eq!(reached(Reach::Whole, &all), ["10.0.1.1", "10.0.1.2"]);
    }

    #[test]
    fn a_unit_is_ours_by_what_it_starts() {
        let pairs = expanded(THREE).exporters();
        let node = &pairs[0].both[0];
        let owner = |command: &str| {
            let text = format!("[Service]\nUser=tidb\n{command}\nRestart=always\n");
            node.owner_of(Some(&text))
        };
        assert_eq!(node.owner_of(None), UnitOwner::Nobody);
        let ours = "/home/tidb/deploy/monitor-9101/scripts/run_node_exporter.sh";
        assert_eq!(owner(&format!("ExecStart=/bin/bash -c '{ours}'")), UnitOwner::Ours);
        for (command, starts) in [
            (
                "ExecStart=/bin/bash -c '/other/monitor-9101/scripts/run_node_exporter.sh'",
                "/other/monitor-9101",
            ),
            // The beginning of a path is not the path, and neither is what follows another.
            (&format!("ExecStart=/bin/bash -c '/x{ours}'"), "/x/home"),
            (&format!("ExecStart=/bin/bash -c '{ours}.bak'"), ".bak"),
            (&format!("ExecStart=/bin/true\nExecStart={ours}"), "/bin/true"),
            ("Description=nothing at all", "nothing"),
        ] {
            let UnitOwner::SomebodyElse(what) = owner(command) else { panic!("{command}") };
            assert!(what.contains(starts), "{what}");
        }
    }
}
