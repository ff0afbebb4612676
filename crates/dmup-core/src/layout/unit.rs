//! The service that runs an instance.

use super::{Deployment, PlacedFile};
use crate::instance::{Instance, Role};
use crate::systemd::SystemdMode;
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
    PlacedFile {
        path: topology.unit_path(&instance.unit),
        mode: 0o644,
        root: deployment.are_units_of_root(),
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
    // The machine's systemd would run it as root; a user's can run it as nobody else.
    if deployment.systemd_mode() == SystemdMode::System {
        out += &line("User", &deployment.topology.global.user);
    }
    out += &format!("ExecStart=/bin/bash -c '{deploy_dir}/scripts/run_{component}.sh'\n");
    out += reload;
    out += "Restart=always\n\nRestartSec=15s\n";
    out += &line("TimeoutStartSec", &limits.timeout_start_sec);
    out += &line("TimeoutStopSec", &limits.timeout_stop_sec);
    out += &format!("\n[Install]\nWantedBy={}\n", deployment.systemd_mode().boot_target());
    out
}
