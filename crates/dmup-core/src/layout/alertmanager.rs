//! Configuration of an Alertmanager.

use super::{Deployment, PlacedFile};
use crate::instance::Instance;

/// Takes every alert and tells nobody, until the operator says whom.
const SILENT: &str = "\
# Tells nobody: set `config_file` of alertmanager_servers to a file of your own, then `reload`.
global:
    resolve_timeout: 5m
route:
    receiver: blackhole
    group_by:
        - env
        - instance
        - alertname
    group_wait: 30s
    group_interval: 3m
    repeat_interval: 3m
receivers:
    - name: blackhole
";

pub(super) fn config(deployment: &Deployment<'_>, instance: &Instance) -> PlacedFile {
    PlacedFile {
        path: instance.deploy_dir.join("conf/alertmanager.yml"),
        // An operator's own one holds passwords of mail servers.
        mode: 0o600,
        root: false,
        content: deployment.alertmanager_config.unwrap_or(SILENT).to_owned(),
        cache_name: format!("alertmanager_{}.yml", instance.host),
    }
}
