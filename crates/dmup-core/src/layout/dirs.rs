//! Folders of an instance and of a host.

use camino::Utf8PathBuf;

use super::{Deployment, PlacedDir};
use crate::instance::{Instance, Role};
use crate::systemd::SystemdMode;

/// Folders of an instance, parents before children; all belong to the deploy user.
pub fn directories(deployment: &Deployment<'_>, instance: &Instance) -> Vec<PlacedDir> {
    let deploy = &instance.deploy_dir;
    let mut paths = vec![deploy.clone(), instance.log_dir.clone()];
    paths.extend(own_unit_dir(deployment));
    paths.extend(["bin", "conf", "scripts"].map(|name| deploy.join(name)));
    if deployment.topology.global.enable_tls {
        paths.push(deploy.join("tls"));
    }
    match instance.role {
        Role::Grafana => paths.extend(
            [
                "data",
                "plugins",
                "dashboards",
                "provisioning",
                "provisioning/dashboards",
                "provisioning/datasources",
            ]
            .map(|name| deploy.join(name)),
        ),
        Role::DmMaster
        | Role::DmWorker
        | Role::Prometheus
        | Role::Alertmanager
        | Role::NodeExporter
        | Role::BlackboxExporter => {}
    }
    paths.extend(instance.data_dirs.iter().cloned());
    owned(deployment, paths)
}

/// Folders that every host of the cluster has, whatever runs there.
pub fn host_directories(deployment: &Deployment<'_>) -> Vec<PlacedDir> {
    let global = &deployment.topology.global;
    let home = format!("/home/{}", global.user);
    let absolute = |dir: &str| {
        Utf8PathBuf::from(if dir.starts_with('/') {
            dir.to_owned()
        } else {
            format!("{home}/{dir}")
        })
    };
    let mut paths = vec![absolute(&global.deploy_dir)];
    if global.data_dir.starts_with('/') {
        paths.push(absolute(&global.data_dir));
    }
    if !global.log_dir.is_empty() {
        paths.push(absolute(&global.log_dir));
    }
    paths.extend(own_unit_dir(deployment));
    owned(deployment, paths)
}

/// The folder of unit files, where it is the deploy user's own and may be missing.
pub(super) fn own_unit_dir(deployment: &Deployment<'_>) -> Option<Utf8PathBuf> {
    match deployment.systemd_mode() {
        SystemdMode::System => None,
        SystemdMode::User => Some(SystemdMode::User.unit_dir(&deployment.topology.user())),
    }
}

pub(super) fn owned(deployment: &Deployment<'_>, paths: Vec<Utf8PathBuf>) -> Vec<PlacedDir> {
    let owner = deployment.topology.user();
    paths.into_iter().map(|path| PlacedDir { path, mode: 0o755, owner: owner.clone() }).collect()
}
