//! The service that runs an instance.

use camino::Utf8PathBuf;

use super::{Deployment, PlacedFile};
use crate::instance::{Instance, Role};
use crate::topology::ResourceControl;

pub(super) fn unit(deployment: &Deployment<'_>, instance: &Instance) -> PlacedFile {
    let topology = deployment.topology;
    let own = topology
        .servers()
        .into_iter()
        .find(|server| server.role == instance.role && server.id() == instance.id.as_str())
        .map(|server| server.resource_control.clone())
        .unwrap_or_default();
    let limits = own.or(&topology.global.resource_control);
    let reload = (instance.role == Role::Prometheus).then(|| {
        format!(
            "ExecReload=/bin/bash -c 'kill -HUP $MAINPID $(pidof {}/bin/ng-monitoring-server)'\n\n",
            instance.deploy_dir
        )
    });
    let name = instance.unit.as_str();
    PlacedFile {
        path: unit_dir(deployment).join(name),
        mode: 0o644,
        root: !deployment.user_mode(),
        content: text(
            deployment,
            instance.role.as_str(),
            instance.deploy_dir.as_str(),
            &limits,
            "",
            &reload.unwrap_or_default(),
        ),
        cache_name: format!("{}-{}-{}.service", instance.role, instance.host, instance.port),
    }
}

/// Where units lie.
pub(super) fn unit_dir(deployment: &Deployment<'_>) -> Utf8PathBuf {
    if deployment.user_mode() {
        Utf8PathBuf::from(format!("/home/{}/.config/systemd/user", deployment.topology.global.user))
    } else {
        Utf8PathBuf::from("/etc/systemd/system")
    }
}

/// The file: `rights` and `reload` are whole lines, or nothing.
pub(super) fn text(
    deployment: &Deployment<'_>,
    component: &str,
    deploy_dir: &str,
    limits: &ResourceControl,
    rights: &str,
    reload: &str,
) -> String {
    let line = |key: &str, value: &str| {
        if value.is_empty() { String::new() } else { format!("{key}={value}\n") }
    };
    let mut out = format!(
        "[Unit]\nDescription={component} service\n\
         After=syslog.target network.target remote-fs.target nss-lookup.target\n\n[Service]\n"
    );
    out += &line("MemoryLimit", &limits.memory_limit);
    out += &line("CPUQuota", &limits.cpu_quota);
    out += &line("IOReadBandwidthMax", &limits.io_read_bandwidth_max);
    out += &line("IOWriteBandwidthMax", &limits.io_write_bandwidth_max);
    out += &line("LimitCORE", &limits.limit_core);
    out += "LimitNOFILE=1000000\nLimitSTACK=10485760\n";
    out += rights;
    if !deployment.user_mode() {
        out += &line("User", &deployment.topology.global.user);
    }
    out += &format!("ExecStart=/bin/bash -c '{deploy_dir}/scripts/run_{component}.sh'\n");
    out += reload;
    out += "Restart=always\n\nRestartSec=15s\n";
    out += &line("TimeoutStartSec", &limits.timeout_start_sec);
    out += &line("TimeoutStopSec", &limits.timeout_stop_sec);
    out += "\n[Install]\nWantedBy=multi-user.target\n";
    out
}
