//! Configuration of dm-master and dm-worker, and the texts that come out of DM's package.

use super::settings::{BadSettings, Settings};
use super::{Deployment, PlacedFile};
use crate::ids::ClusterName;
use crate::instance::{Instance, Role};
use crate::topology::Table;

pub(super) fn dm_config(
    deployment: &Deployment<'_>,
    instance: &Instance,
) -> Result<PlacedFile, BadSettings> {
    let role = instance.role;
    let topology = deployment.topology;
    let id = instance.id.as_str();
    let (key, common, own) = if role == Role::DmMaster {
        let own = topology
            .master_servers
            .iter()
            .find(|spec| spec.server(0).id() == id)
            .map(|spec| &spec.config);
        ("master", &topology.server_configs.master, own)
    } else {
        let own = topology
            .worker_servers
            .iter()
            .find(|spec| spec.server(0).id() == id)
            .map(|spec| &spec.config);
        ("worker", &topology.server_configs.worker, own)
    };
    let bad = |why: String| BadSettings { component: format!("{role} {id}"), why };
    let none = Table::default();
    let mut settings = Settings::of(common.as_ref().unwrap_or(&none)).map_err(bad)?;
    settings.overlay(Settings::of(own.unwrap_or(&none)).map_err(bad)?);
    let tls = topology.global.enable_tls.then(|| tls_settings(instance));
    if let Some(tls) = tls {
        settings.overlay(Settings::of(&tls).map_err(bad)?);
    }
    let text = settings.to_text().map_err(bad)?;
    Ok(PlacedFile {
        path: instance.deploy_dir.join(format!("conf/{role}.toml")),
        mode: 0o644,
        root: false,
        content: format!(
            "# Written by the cluster manager: what is changed here by hand is lost.\n\
             # To change it for good: `edit-config`, then `reload`. For every {role} it is in\n\
             # server_configs:\n#   {key}:\n\
             # and for this one below `config:` of its entry in {key}_servers.\n\n{text}"
        ),
        cache_name: format!("{role}-{}-{}.toml", instance.host, instance.port),
    })
}

/// Keys that name the TLS files of an instance.
fn tls_settings(instance: &Instance) -> Table {
    crate::topology::tls_entries(instance.deploy_dir.as_str(), instance.role)
}

/// A file of alert rules from DM's package, for this cluster.
pub fn rules_for(cluster: &ClusterName, packaged: &str) -> String {
    packaged.replace("ENV_LABELS_ENV", cluster.as_str())
}

/// A dashboard from DM's package, for this cluster.
pub fn dashboard_for(cluster: &ClusterName, packaged: &str) -> String {
    // The names of data sources that DM's dashboards are written with.
    let mut text = packaged.to_owned();
    while let Some(at) = text.find("${DS_") {
        let Some(length) = text[at..].find('}') else { break };
        text.replace_range(at..=at + length, cluster.as_str());
    }
    for name in ["Test-Cluster", "test-cluster", "DS_LIGHTNING"] {
        text = text.replace(name, cluster.as_str());
    }
    replace_inputs(&text, cluster)
}

/// `DS_<something>-CLUSTER`, as a dashboard declares its inputs.
fn replace_inputs(text: &str, cluster: &ClusterName) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("DS_") {
        let word: String = rest[at..]
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || "-_".contains(*c))
            .collect();
        out.push_str(&rest[..at]);
        out.push_str(if word.ends_with("-CLUSTER") { cluster.as_str() } else { &word });
        rest = &rest[at + word.len()..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packaged_texts_get_the_clusters_name() {
        let cluster = ClusterName::new("prod").unwrap();
        assert_eq!(rules_for(&cluster, "env: ENV_LABELS_ENV"), "env: prod");
        assert_eq!(
            dashboard_for(
                &cluster,
                r#"{"a":"${DS_TEST-CLUSTER}","name":"DS_TEST-CLUSTER","t":"Test-Cluster-DM","DS_X":1}"#
            ),
            r#"{"a":"prod","name":"prod","t":"prod-DM","DS_X":1}"#
        );
    }
}
