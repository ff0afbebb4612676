//! The keys by which DM finds its TLS files; TiUP keeps them in the instances' own settings.

use crate::instance::Role;

use super::field::Table;
use super::load::below;
use super::spec::Topology;
use super::yaml::Value;

const KEYS: [&str; 3] = ["ssl-ca", "ssl-cert", "ssl-key"];

/// `ssl-ca`, `ssl-cert` and `ssl-key` of an instance of this role with this deploy dir.
pub(crate) fn tls_entries(deploy_dir: &str, role: Role) -> Table {
    let files = [
        format!("{deploy_dir}/tls/ca.crt"),
        format!("{deploy_dir}/tls/{role}.crt"),
        format!("{deploy_dir}/tls/{role}.pem"),
    ];
    Table(
        KEYS.iter().zip(files).map(|(key, file)| ((*key).to_owned(), Value::Text(file))).collect(),
    )
}

impl Topology {
    /// Writes the TLS files' paths into the settings of every master and worker, or takes them out
    /// when the cluster has no TLS: what TiUP does before it saves `meta.yaml`.
    pub fn set_tls_paths(&mut self) {
        let (tls, home) = (self.global.enable_tls, format!("/home/{}", self.global.user));
        let set = |config: &mut Table, deploy_dir: &str, role: Role| {
            config.0.retain(|(key, _)| !KEYS.contains(&key.as_str()));
            if tls {
                config.0.extend(tls_entries(&below(&home, deploy_dir), role).0);
                config.0.sort_by(|(a, _), (b, _)| super::yaml::natural_order(a, b));
            }
        };
        for spec in &mut self.master_servers {
            set(&mut spec.config, &spec.deploy_dir, Role::DmMaster);
        }
        for spec in &mut self.worker_servers {
            set(&mut spec.config, &spec.deploy_dir, Role::DmWorker);
        }
    }
}
