//! One process that dmup manages: which role, where, under which unit, from which files.
//!
//! Made from the topology by [`crate::topology`]; everything past it (plans,
//! ports, printing) speaks of instances, not of YAML.

use std::fmt;
use std::str::FromStr;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::ids::{BadName, HostId, InstanceId, MemberName, UnitName};

/// What an instance does. The text form is TiUP's: the component whose package has the binary, and of those that a topology
/// lists the second column of `display` and the argument of `-R`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Coordinates; one is the leader.
    DmMaster,
    /// Replicates the source bound to it; free without one.
    DmWorker,
    /// Metrics.
    Prometheus,
    /// Dashboards.
    Grafana,
    /// Alerts.
    Alertmanager,
    /// Tells of the machine itself. Beside whatever runs there, once a machine.
    #[serde(rename = "node_exporter")]
    NodeExporter,
    /// Tries whether others answer. Beside whatever runs there, once a machine.
    #[serde(rename = "blackbox_exporter")]
    BlackboxExporter,
}

impl Role {
    /// Those that a topology lists, in TiUP's order of starting.
    pub const ALL: [Self; 5] =
        [Self::DmMaster, Self::DmWorker, Self::Prometheus, Self::Grafana, Self::Alertmanager];

    /// Those that stand beside them on a machine, in TiUP's order of starting. No `-R` names them, and `display` does not
    /// show them.
    pub const EXPORTERS: [Self; 2] = [Self::NodeExporter, Self::BlackboxExporter];

    /// TiUP's word; also the name of the component whose package has the binary.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DmMaster => "dm-master",
            Self::DmWorker => "dm-worker",
            Self::Prometheus => "prometheus",
            Self::Grafana => "grafana",
            Self::Alertmanager => "alertmanager",
            Self::NodeExporter => "node_exporter",
            Self::BlackboxExporter => "blackbox_exporter",
        }
    }

    /// Whether it is part of DM itself, not of its monitoring.
    pub fn is_dm(self) -> bool {
        match self {
            Self::DmMaster | Self::DmWorker => true,
            Self::Prometheus
            | Self::Grafana
            | Self::Alertmanager
            | Self::NodeExporter
            | Self::BlackboxExporter => false,
        }
    }

    /// Whether it is one of [`Self::EXPORTERS`].
    pub fn is_exporter(self) -> bool {
        Self::EXPORTERS.contains(&self)
    }

    /// The executable under the instance's `bin` folder, as TiUP lays it out.
    pub fn binary(self) -> &'static str {
        match self {
            Self::DmMaster => "dm-master/dm-master",
            Self::DmWorker => "dm-worker/dm-worker",
            Self::Prometheus => "prometheus/prometheus",
            Self::Grafana => "bin/grafana-server",
            Self::Alertmanager => "alertmanager/alertmanager",
            Self::NodeExporter => "node_exporter/node_exporter",
            Self::BlackboxExporter => "blackbox_exporter/blackbox_exporter",
        }
    }

    /// Where the executable may be in its package: the usual place first.
    pub fn places(self) -> Vec<&'static str> {
        match self {
            // Older packages have it at the top.
            Self::NodeExporter | Self::BlackboxExporter => vec![self.binary(), self.as_str()],
            Self::DmMaster
            | Self::DmWorker
            | Self::Prometheus
            | Self::Grafana
            | Self::Alertmanager => vec![self.binary()],
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = BadName;

    /// Takes the second column of `display` as printed, with or without ` (patched)`.
    fn from_str(text: &str) -> Result<Self, BadName> {
        let bare = text.trim().strip_suffix("(patched)").unwrap_or(text).trim();
        Self::ALL.into_iter().find(|role| role.as_str() == bare).ok_or_else(|| BadName {
            given: text.to_owned(),
            what: "role",
            why: "known roles are dm-master, dm-worker, prometheus, grafana and alertmanager",
        })
    }
}

/// One managed process.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct Instance {
    /// `host:port`, as `display` and `-N` have it.
    pub id: InstanceId,
    /// What it does.
    pub role: Role,
    /// DM's name of it (`--name`); for monitoring the same text as the id.
    pub name: MemberName,
    /// The machine, as the topology names it (address of the service).
    pub host: HostId,
    /// Where to reach its sshd: `manage_host` if given, else `host`.
    pub ssh_host: HostId,
    /// Port of sshd.
    pub ssh_port: u16,
    /// The port that clients use: 8261, 8262, 9090, 3000, 9093 by default.
    pub port: u16,
    /// All ports it listens on, `port` first.
    pub ports: Vec<u16>,
    /// Absolute; `bin`, `conf`, `scripts`, `log` are below it.
    pub deploy_dir: Utf8PathBuf,
    /// Absolute; may be none.
    pub data_dirs: Vec<Utf8PathBuf>,
    /// Absolute.
    pub log_dir: Utf8PathBuf,
    /// The service that runs it.
    pub unit: UnitName,
    /// Lower case, TiUP's words: `linux`.
    pub os: String,
    /// TiUP's words: `amd64` or `arm64`.
    pub arch: String,
    /// `patched: true` in `meta.yaml`.
    pub patched: bool,
}

impl Instance {
    /// `<deploy_dir>/bin`: where its package is unpacked.
    pub fn bin_dir(&self) -> Utf8PathBuf {
        self.deploy_dir.join("bin")
    }

    /// `<deploy_dir>/scripts/run_<role>.sh`: what its unit starts.
    pub fn script(&self) -> Utf8PathBuf {
        self.deploy_dir.join(format!("scripts/run_{}.sh", self.role))
    }

    /// The file that systemd starts in the end.
    pub fn binary(&self) -> Utf8PathBuf {
        self.bin_dir().join(self.role.binary())
    }

    /// The folder that a window exchanges: `bin`; of an exporter, which shares that with the other one, its own in it.
    pub fn tree(&self) -> Utf8PathBuf {
        match self.folder_in_bin() {
            Some(folder) => self.bin_dir().join(folder),
            None => self.bin_dir(),
        }
    }

    /// Where in [`Self::tree`] a path below `bin` is.
    pub fn in_tree<'a>(&self, below_bin: &'a Utf8Path) -> &'a Utf8Path {
        self.folder_in_bin()
            .and_then(|folder| below_bin.strip_prefix(folder).ok())
            // An exporter at the top of its package: it has the name of its folder.
            .filter(|rest| !rest.as_str().is_empty())
            .unwrap_or(below_bin)
    }

    /// The folder in `bin` that alone is its own.
    fn folder_in_bin(&self) -> Option<&'static str> {
        self.role.is_exporter().then(|| self.role.as_str())
    }
}
