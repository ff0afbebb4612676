//! What lies on a host for an instance, and what is in it: folders, unit, start script, configuration.
//!
//! In: the topology with absolute dirs and an instance of it. Out: paths, modes and contents; whoever
//! reaches the host puts them there. Paths, names, units and flags are TiUP's, so that TiUP can go on
//! managing the result; the texts are our own. What goes into a script or a unit was checked when
//! the topology was read, or is quoted here.
//!
//! Facts: TiUP 1.16.5, embed/templates and pkg/cluster/spec; components/dm/spec/logic.go.

mod alertmanager;
mod configs;
mod dirs;
mod exporters;
mod grafana;
mod prometheus;
mod script;
mod settings;
mod tls;
mod unit;

use std::fmt;

use camino::Utf8PathBuf;

use crate::ids::{ClusterName, UserName};
use crate::instance::{Instance, Role};
use crate::systemd::SystemdMode;
use crate::topology::Topology;
use crate::version::DmVersion;

pub use configs::{dashboard_for, rules_for};
pub use dirs::{directories, host_directories};
pub use exporters::{exporter_directories, exporter_tls_files};
pub use settings::BadSettings;
pub use tls::tls_files;

/// A file and where it belongs. Its content may be a key or have a password in it, and is not part of its debug text.
#[derive(Clone, Eq, PartialEq)]
pub struct PlacedFile {
    /// Absolute, on the host.
    pub path: Utf8PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// Only root may write there; else the deploy user does.
    pub root: bool,
    /// Whole content.
    pub content: String,
    /// Name of TiUP's copy in `config-cache` on the control machine.
    pub cache_name: String,
}

impl fmt::Debug for PlacedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlacedFile")
            .field("path", &self.path)
            .field("mode", &self.mode)
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

/// A folder and how it must be. Missing parents are made for the same owner.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PlacedDir {
    /// Absolute, on the host.
    pub path: Utf8PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// Who owns it if it is made.
    pub owner: UserName,
}

/// What a deployment consists of, for rendering.
#[derive(Clone, Copy, Debug)]
pub struct Deployment<'a> {
    /// Its name, which labels metrics.
    pub cluster: &'a ClusterName,
    /// Of DM; monitoring comes with it.
    pub version: &'a DmVersion,
    /// All of it.
    pub topology: &'a Topology,
    /// For instances of a scale-out: the cluster that they join.
    pub joins: Option<&'a Topology>,
    /// For an Alertmanager: the operator's own configuration instead of the built-in one.
    pub alertmanager_config: Option<&'a str>,
    /// For a Prometheus: file names of the operator's own rules; empty for DM's.
    pub rule_files: &'a [String],
}

impl<'a> Deployment<'a> {
    /// A cluster as a whole, with the built-in configurations.
    pub fn new(cluster: &'a ClusterName, version: &'a DmVersion, topology: &'a Topology) -> Self {
        let (joins, alertmanager_config) = (None, None);
        Self { cluster, version, topology, joins, alertmanager_config, rule_files: &[] }
    }

    fn scheme(&self) -> &'static str {
        if self.topology.global.enable_tls { "https" } else { "http" }
    }

    /// The address to bind to on a host.
    fn listen_host(&self, host: &str) -> String {
        match self.topology.global.listen_host.as_str() {
            "" if host.contains(':') => "::".to_owned(),
            "" => "0.0.0.0".to_owned(),
            given => given.trim_start_matches('[').trim_end_matches(']').to_owned(),
        }
    }

    fn systemd_mode(&self) -> SystemdMode {
        self.topology.systemd_mode()
    }

    /// Whether only root may write unit files.
    fn are_units_of_root(&self) -> bool {
        self.systemd_mode() == SystemdMode::System
    }
}

/// Everything of an instance that is rendered: its unit, its start script, its configuration.
///
/// # Errors
///
/// [`BadSettings`] when its settings cannot be written in the form of its component.
pub fn files(
    deployment: &Deployment<'_>,
    instance: &Instance,
) -> Result<Vec<PlacedFile>, BadSettings> {
    let configs = match instance.role {
        Role::DmMaster | Role::DmWorker => vec![configs::dm_config(deployment, instance)?],
        Role::Prometheus => prometheus::configs(deployment, instance)?,
        Role::Grafana => grafana::configs(deployment, instance)?,
        Role::Alertmanager => vec![alertmanager::config(deployment, instance)],
        Role::NodeExporter | Role::BlackboxExporter => {
            return Ok(exporters::files(deployment, instance));
        }
    };
    let mut files = vec![unit::unit(deployment, instance), script::script(deployment, instance)];
    files.extend(configs);
    Ok(files)
}

/// Lets the deploy user act as root without a password, as every later command needs.
pub fn sudoers(user: &str) -> PlacedFile {
    PlacedFile {
        // sudo skips files with a dot in their name.
        path: Utf8PathBuf::from(format!("/etc/sudoers.d/{}", user.replace('.', "_"))),
        mode: 0o440,
        root: true,
        content: format!("{user} ALL=(ALL) NOPASSWD:ALL\n"),
        cache_name: format!("sudoers_{user}"),
    }
}

/// The entry of a topology's list that an instance was made from.
fn spec_of<'a, T>(list: &'a [T], instance: &Instance, id: impl Fn(&T) -> String) -> &'a T {
    list.iter()
        .find(|spec| id(spec) == instance.id.as_str())
        .expect("an instance is made from its topology")
}
