//! Who judges a configuration before a service is started with it: a program of its component's own package.
//!
//! As TiUP, before anything is restarted. Where the package has no such program nobody judges: what the
//! service does not take shows when it starts.

use std::fmt;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::ids::InstanceId;
use crate::instance::{Instance, Role};

/// A program that judges.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ConfigTool {
    /// Prometheus's; it reads the alert rules that the configuration names, too.
    Promtool,
    /// Alertmanager's.
    Amtool,
}

impl ConfigTool {
    /// The one of a component; none: its package has nothing of the kind.
    pub fn of(role: Role) -> Option<Self> {
        match role {
            Role::Prometheus => Some(Self::Promtool),
            Role::Alertmanager => Some(Self::Amtool),
            Role::DmMaster
            | Role::DmWorker
            | Role::Grafana
            | Role::NodeExporter
            | Role::BlackboxExporter => None,
        }
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Promtool => "promtool",
            Self::Amtool => "amtool",
        }
    }

    /// Where it lies below `bin`.
    pub fn below_bin(self) -> &'static str {
        match self {
            Self::Promtool => "prometheus/promtool",
            Self::Amtool => "alertmanager/amtool",
        }
    }

    /// What it is started with, in the folder of the configuration: what that names is relative to it.
    pub fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Promtool => &["check", "config", "prometheus.yml"],
            Self::Amtool => &["check-config", "alertmanager.yml"],
        }
    }

    /// The folder of an instance's configuration.
    pub fn folder(instance: &Instance) -> Utf8PathBuf {
        instance.deploy_dir.join("conf")
    }

    /// Whether it reads a file of the instance: the configuration, or rules.
    pub fn reads(self, instance: &Instance, path: &Utf8Path) -> bool {
        path.parent() == Some(&Self::folder(instance)) && path.extension() == Some("yml")
    }

    /// The one that has to judge before these files of an instance are live.
    pub fn for_files<'a>(
        instance: &Instance,
        paths: impl IntoIterator<Item = &'a Utf8PathBuf>,
    ) -> Option<Self> {
        let tool = Self::of(instance.role)?;
        paths.into_iter().any(|path| tool.reads(instance, path)).then_some(tool)
    }

    /// What is told where a package does not have it.
    pub fn is_missing_for(self, instance: &InstanceId) -> String {
        format!("the configuration of {instance} is not checked: its package has no {self}")
    }
}

impl fmt::Display for ConfigTool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Topology;

    #[test]
    fn a_configuration_and_rules_are_judged_and_no_other_file_is() {
        let text = "\
global: {user: tidb}
monitoring_servers:
  - {host: 10.0.1.1}
grafana_servers:
  - {host: 10.0.1.1}
alertmanager_servers:
  - {host: 10.0.1.1}
";
        let mut topology = Topology::parse(text).unwrap();
        topology.expand_dirs();
        let judged = |file: &str| -> Vec<&str> {
            let instances = topology.instances();
            let tools = instances
                .iter()
                .filter_map(|it| ConfigTool::for_files(it, [&it.deploy_dir.join(file)]));
            tools.map(ConfigTool::as_str).collect()
        };
        // Nobody lays one's files into the other's folder.
        assert_eq!(judged("conf/prometheus.yml"), ["promtool", "amtool"]);
        assert_eq!(judged("conf/mine.rules.yml"), ["promtool", "amtool"]);
        for other in ["conf/grafana.ini", "conf/ngmonitoring.toml", "scripts/run_x.sh", "x.yml"] {
            assert_eq!(judged(other), Vec::<&str>::new(), "{other}");
        }
    }
}
