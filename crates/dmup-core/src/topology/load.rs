//! Text to topology and back: reading, defaults, absolute dirs, writing.

use super::error::TopologyError;
use super::field::{Field, Unknown};
use super::server::ServerMut;
use super::spec::{Monitored, Topology};
use super::yaml::{self, Node};

impl Topology {
    /// Reads an operator's topology file: unknown keys are errors, defaults are filled in, and the
    /// whole is checked. Relative dirs stay relative until [`Topology::expand_dirs`].
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, with its place.
    pub fn parse(text: &str) -> Result<Self, TopologyError> {
        Self::from_node(&yaml::parse(text)?, Unknown::Refuse)
    }

    /// Reads the topology file of a scale-out: new servers only, which inherit what `cluster` says
    /// globally. The result has just the new servers and is checked together with those of `cluster`.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, with its place.
    pub fn parse_scale_out(text: &str, cluster: &Self) -> Result<Self, TopologyError> {
        let root = yaml::parse(text)?;
        for section in ["global", "monitored", "server_configs", "component_sources"] {
            if root.entry(section).is_some() {
                let message = format!("`{section}` cannot be changed by a scale-out");
                let help = format!(
                    "leave `{section}` out; the cluster's own applies. `edit-config` changes it"
                );
                return Err(TopologyError::new(message).help(help).at(root.locate(section)));
            }
        }
        let mut new = <Self as Field>::read(&root, Unknown::Refuse)?;
        new.global = cluster.global.clone();
        new.monitored.clone_from(&cluster.monitored);
        new.server_configs = cluster.server_configs.clone();
        new.component_sources = cluster.component_sources.clone();
        new.fill_defaults();
        // A host that is known already has the platform that it has.
        for known in cluster.servers() {
            new.set_platform(known.ssh_host(), known.os, known.arch);
        }
        new.check().map_err(|wrong| wrong.locate(&root))?;
        cluster.merged(&new).check().map_err(|wrong| wrong.error)?;
        Ok(new)
    }

    pub(super) fn from_node(root: &Node, unknown: Unknown) -> Result<Self, TopologyError> {
        let mut topology = <Self as Field>::read(root, unknown)?;
        topology.fill_defaults();
        topology.check().map_err(|wrong| wrong.locate(root))?;
        Ok(topology)
    }

    /// The YAML that TiUP would write of it, as `edit-config` shows it.
    pub fn render(&self) -> String {
        yaml::to_text(&self.write())
    }

    /// This cluster with the servers of another topology added behind its own.
    #[must_use]
    pub fn merged(&self, new: &Self) -> Self {
        let mut all = self.clone();
        all.master_servers.extend(new.master_servers.iter().cloned());
        all.worker_servers.extend(new.worker_servers.iter().cloned());
        all.monitoring_servers.extend(new.monitoring_servers.iter().cloned());
        all.grafana_servers.extend(new.grafana_servers.iter().cloned());
        all.alertmanager_servers.extend(new.alertmanager_servers.iter().cloned());
        all
    }

    /// This cluster without the instances of these ids (`host:port`).
    #[must_use]
    pub fn without(&self, ids: &[impl AsRef<str>]) -> Self {
        let goes = |id: String| ids.iter().any(|gone| gone.as_ref() == id);
        let mut rest = self.clone();
        rest.master_servers.retain(|server| !goes(server.server(0).id()));
        rest.worker_servers.retain(|server| !goes(server.server(0).id()));
        rest.monitoring_servers.retain(|server| !goes(server.server(0).id()));
        rest.grafana_servers.retain(|server| !goes(server.server(0).id()));
        rest.alertmanager_servers.retain(|server| !goes(server.server(0).id()));
        rest
    }

    /// Sets or clears `patched` of the instances of these ids (`host:port`).
    pub fn mark_patched(&mut self, ids: &[impl AsRef<str>], patched: bool) {
        for server in self.servers_mut() {
            let id = super::host_port(server.host, *server.main_port.0);
            if ids.iter().any(|marked| marked.as_ref() == id) {
                *server.patched = patched;
            }
        }
    }

    /// Fills in the platform of the servers of a host (by the address of its sshd) that say none.
    /// Takes what `uname -s` and `uname -m` print, or TiUP's words.
    pub fn set_platform(&mut self, ssh_host: &str, os: &str, arch: &str) {
        for server in self.servers_mut() {
            let own = if server.manage_host.is_empty() { server.host } else { server.manage_host };
            if own == ssh_host {
                if server.arch.is_empty() {
                    *server.arch = arch_word(arch);
                }
                if server.os.is_empty() {
                    *server.os = os.to_lowercase();
                }
            }
        }
    }

    /// Makes every dir absolute, as TiUP does on deploy and scale-out: deploy dirs below `/home/<user>`,
    /// data and log dirs below the deploy dir.
    pub fn expand_dirs(&mut self) {
        let home = format!("/home/{}", self.global.user);
        for server in self.servers_mut() {
            *server.deploy_dir = below(&home, server.deploy_dir);
            if let Some(data_dir) = server.data_dir {
                *data_dir = below_each(server.deploy_dir, data_dir);
            }
            if let Some(log_dir) = server.log_dir
                && !log_dir.is_empty()
            {
                *log_dir = below(server.deploy_dir, log_dir);
            }
        }
        if let Some(monitored) = &mut self.monitored {
            [monitored.deploy_dir, monitored.data_dir, monitored.log_dir] =
                absolute_dirs(&self.global.user, monitored);
        }
    }

    fn fill_defaults(&mut self) {
        let global = &mut self.global;
        fill(&mut global.user, "tidb");
        fill_port(&mut global.ssh_port, 22);
        fill(&mut global.ssh_type, "builtin");
        fill(&mut global.deploy_dir, "deploy");
        fill(&mut global.data_dir, "data");
        fill(&mut global.os, "linux");
        fill(&mut global.systemd_mode, "system");
        let global = self.global.clone();
        if let Some(monitored) = &mut self.monitored {
            fill_monitored(monitored, &global.deploy_dir, &global.data_dir);
        }
        for prometheus in &mut self.monitoring_servers {
            for alertmanager in &mut prometheus.external_alertmanagers {
                fill_port(&mut alertmanager.web_port, 9093);
            }
        }
        for grafana in &mut self.grafana_servers {
            fill(&mut grafana.username, "admin");
            fill(&mut grafana.password, "admin");
        }
        for server in self.servers_mut() {
            fill_server(
                server,
                &global.deploy_dir,
                &global.data_dir,
                &global.log_dir,
                global.ssh_port,
            );
        }
    }
}

fn fill_monitored(monitored: &mut Monitored, deploy_dir: &str, data_dir: &str) {
    fill_port(&mut monitored.node_exporter_port, 9100);
    fill_port(&mut monitored.blackbox_exporter_port, 9115);
    let name = format!("monitor-{}", monitored.node_exporter_port);
    fill(&mut monitored.deploy_dir, &format!("{deploy_dir}/{name}"));
    fill(&mut monitored.data_dir, &format!("{data_dir}/{name}"));
    fill(&mut monitored.log_dir, "log");
}

fn fill_server(
    server: ServerMut<'_>,
    deploy_dir: &str,
    data_dir: &str,
    log_dir: &str,
    ssh_port: u16,
) {
    let (port, default) = server.main_port;
    fill_port(port, default);
    if let Some((second, default)) = server.second_port {
        fill_port(second, default);
    }
    fill_port(server.ssh_port, ssh_port);
    if let Some(name) = server.name {
        fill(name, &format!("dm-{}-{port}", server.host));
    }
    let folder = format!("{}-{port}", server.role);
    fill(server.deploy_dir, &format!("{deploy_dir}/{folder}"));
    if let Some(own) = server.data_dir {
        let inherited = if data_dir.starts_with('/') {
            format!("{data_dir}/{folder}")
        } else {
            data_dir.to_owned()
        };
        fill(own, &inherited);
    }
    if let Some(own) = server.log_dir {
        // Deliberately as TiUP: an absolute one is shared by all instances.
        fill(own, log_dir);
    }
    *server.arch = arch_word(server.arch);
    *server.os = server.os.to_lowercase();
}

fn fill(text: &mut String, default: &str) {
    if text.is_empty() {
        default.clone_into(text);
    }
}

fn fill_port(port: &mut u16, default: u16) {
    if *port == 0 {
        *port = default;
    }
}

/// TiUP's word for an architecture.
pub(super) fn arch_word(text: &str) -> String {
    match text.trim().to_lowercase().as_str() {
        "x86_64" => "amd64".to_owned(),
        "aarch64" => "arm64".to_owned(),
        other => other.to_owned(),
    }
}

/// Deploy, data and log dir of the exporters.
pub(crate) fn absolute_dirs(user: &str, monitored: &Monitored) -> [String; 3] {
    let deploy_dir = below(&format!("/home/{user}"), &monitored.deploy_dir);
    let data_dir = below_each(&deploy_dir, &monitored.data_dir);
    let log_dir = below(&deploy_dir, &monitored.log_dir);
    [deploy_dir, data_dir, log_dir]
}

/// An absolute dir as it is, a relative one below `parent`.
pub(super) fn below(parent: &str, dir: &str) -> String {
    let joined = if dir.starts_with('/') { dir.to_owned() } else { format!("{parent}/{dir}") };
    clean(&joined)
}

/// The same for a list with commas.
pub(super) fn below_each(parent: &str, dirs: &str) -> String {
    dirs.split(',').map(|dir| below(parent, dir.trim())).collect::<Vec<_>>().join(",")
}

/// Without doubled and trailing slashes and `.` parts, as Go's filepath.Join leaves it.
fn clean(path: &str) -> String {
    let parts: Vec<&str> =
        path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    format!("/{}", parts.join("/"))
}
