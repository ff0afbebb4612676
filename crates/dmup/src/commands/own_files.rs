//! Files of the operator's own that a topology names: alert rules, dashboards, Alertmanager's configuration.
//!
//! In: `rule_dir`, `dashboard_dir`, `config_file`, all on this machine. Out: texts for one instance. What is named
//! and cannot be read is an error before anything is touched; what is read is bounded by what an agent writes as
//! one small file. Facts: TiUP 1.16.5, pkg/cluster/spec/{monitoring,grafana,alertmanager}.go.

use std::io::Read as _;

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::ids::ClusterName;
use dmup_core::instance::{Instance, Role};
use dmup_core::layout;
use dmup_core::topology::Topology;

use crate::failure::Failure;

/// Largest text.
const LONGEST: u64 = 512 << 10;
/// Most files of a folder.
const MOST: usize = 1000;

/// What is the operator's own on one instance.
#[derive(Debug, Default)]
pub(crate) struct OwnFiles {
    /// Name and content of each `*.rules.yml`.
    pub(crate) rules: Vec<(String, String)>,
    /// Name and content of each `*.json`; none if no folder is named.
    pub(crate) dashboards: Option<Vec<(String, String)>>,
    /// Instead of the configuration that tells nobody.
    pub(crate) alertmanager: Option<String>,
}

impl OwnFiles {
    /// Reads what the topology names for this instance.
    pub(crate) fn read(
        cluster: &ClusterName,
        topology: &Topology,
        instance: &Instance,
    ) -> Result<Self, Failure> {
        let is = |host: &str, port: u16| instance.host.as_str() == host && instance.port == port;
        let named = |path: &str| Some(Utf8PathBuf::from(path)).filter(|path| path.as_str() != "");
        let refused = |what: &str, path: &Utf8Path, why: std::io::Error| {
            Failure::refused(format_args!("read the {what} of {} from {path}: {why}", instance.id))
                .hint("the path is one on this machine")
        };
        let mut own = Self::default();
        match instance.role {
            Role::Prometheus => {
                let spec = topology.monitoring_servers.iter().find(|it| is(&it.host, it.port));
                if let Some(folder) = spec.and_then(|spec| named(&spec.rule_dir)) {
                    let files = read_folder(&folder, ".rules.yml")
                        .map_err(|error| refused("rules", &folder, error))?;
                    own.rules = files
                        .into_iter()
                        .map(|(name, text)| (name, relabelled(cluster, &text)))
                        .collect();
                }
            }
            Role::Grafana => {
                let spec = topology.grafana_servers.iter().find(|it| is(&it.host, it.port));
                if let Some(folder) = spec.and_then(|spec| named(&spec.dashboard_dir)) {
                    let files = read_folder(&folder, ".json")
                        .map_err(|error| refused("dashboards", &folder, error))?;
                    own.dashboards = Some(files);
                }
            }
            Role::Alertmanager => {
                let spec =
                    topology.alertmanager_servers.iter().find(|it| is(&it.host, it.web_port));
                if let Some(file) = spec.and_then(|spec| named(&spec.config_file)) {
                    let text =
                        read_text(&file).map_err(|error| refused("configuration", &file, error))?;
                    own.alertmanager = Some(text);
                }
            }
            Role::DmMaster | Role::DmWorker | Role::NodeExporter | Role::BlackboxExporter => {}
        }
        Ok(own)
    }

    /// Names of the rules, as `prometheus.yml` lists them.
    pub(crate) fn rule_names(&self) -> Vec<String> {
        self.rules.iter().map(|(name, _)| name.clone()).collect()
    }
}

fn read_folder(folder: &Utf8Path, ending: &str) -> std::io::Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        if name.ends_with(ending) {
            if files.len() == MOST {
                return Err(std::io::Error::other(format!("it has more than {MOST} files")));
            }
            let text = read_text(&folder.join(&name))?;
            files.push((name, text));
        }
    }
    files.sort();
    Ok(files)
}

fn read_text(path: &Utf8Path) -> std::io::Result<String> {
    let mut text = String::new();
    fs_err::File::open(path)?.take(LONGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LONGEST {
        return Err(std::io::Error::other(format!("{path} has more than {LONGEST} bytes")));
    }
    Ok(text)
}

/// Labels of another cluster become those of this one: `env: …` and `cluster: …,` (TiUP's rule).
fn relabelled(cluster: &ClusterName, text: &str) -> String {
    layout::rules_for(cluster, text)
        .split_inclusive('\n')
        .map(|line| {
            let line = replaced(line, "env:", None, cluster);
            replaced(&line, "cluster:", Some(','), cluster)
        })
        .collect()
}

/// The word behind a key, up to the end of the line or to `until`, which must be there then.
fn replaced(line: &str, key: &str, until: Option<char>, cluster: &ClusterName) -> String {
    let Some(at) = line.find(key) else { return line.to_owned() };
    let begins = at + key.len();
    let is_a_word = line[..at].chars().next_back().is_none_or(|c| !c.is_alphanumeric() && c != '_');
    let rest = &line[begins..];
    let end = match until {
        Some(mark) => rest.find(mark),
        None => Some(rest.trim_end_matches(['\r', '\n']).len()),
    };
    match end {
        Some(end) if is_a_word && rest.starts_with(' ') => {
            format!("{} {cluster}{}", &line[..begins], &rest[end..])
        }
        Some(_) | None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_another_cluster_get_this_ones_labels() {
        let cluster = ClusterName::new("prod").unwrap();
        let text = "labels:\n  env: test\n  my_env: x\nannotations:\n  description: 'cluster: test, instance: {{ $labels.instance }}'\n  cluster: unchanged\n";
        assert_eq!(
            relabelled(&cluster, text),
            "labels:\n  env: prod\n  my_env: x\nannotations:\n  description: 'cluster: prod, instance: {{ $labels.instance }}'\n  cluster: unchanged\n"
        );
    }
}
