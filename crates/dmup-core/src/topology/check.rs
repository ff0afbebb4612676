//! What makes a topology impossible or unsafe, found before any host is touched.
//!
//! The rules and their order are TiUP's (pkg/cluster/spec/validate.go); added are: names and dirs
//! must be safe in a path, a unit file and a script, and members' names must differ.

use std::collections::{BTreeMap, HashMap};

use crate::ids::UserName;

use super::error::TopologyError;
use super::server::{Server, host_port, section_of};
use super::spec::Topology;
use super::yaml::Node;

/// What is wrong and the path that leads to it.
pub(super) struct Wrong {
    pub(super) error: TopologyError,
    path: String,
}

impl Wrong {
    fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { error: TopologyError::new(message), path: path.into() }
    }

    fn help(mut self, help: &str) -> Self {
        self.error = self.error.help(help);
        self
    }

    pub(super) fn locate(self, root: &Node) -> TopologyError {
        self.error.at(root.locate(&self.path))
    }
}

impl Topology {
    /// Checks a topology that was changed after it was read.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong; without a place, as there is no text.
    pub fn check_names(&self) -> Result<(), TopologyError> {
        self.check().map_err(|wrong| wrong.error)
    }

    pub(super) fn check(&self) -> Result<(), Wrong> {
        self.check_global()?;
        let servers = self.servers();
        for server in &servers {
            self.check_server(server)?;
        }
        check_platforms(&servers)?;
        self.check_ports(&servers)?;
        self.check_dirs(&servers)?;
        check_members(&servers)?;
        self.check_files()
    }

    fn check_global(&self) -> Result<(), Wrong> {
        let global = &self.global;
        UserName::new(&*global.user).map_err(|bad| Wrong::new("global.user", bad.to_string()))?;
        if !global.group.is_empty() {
            UserName::new(&*global.group)
                .map_err(|bad| Wrong::new("global.group", bad.to_string()))?;
        }
        one_of("global.ssh_type", &global.ssh_type, &["builtin", "system", "none"])?;
        one_of("global.systemd_mode", &global.systemd_mode, &["system", "user"])?;
        safe("global.listen_host", &global.listen_host, ADDRESS)?;
        for (key, dir) in [
            ("deploy_dir", &global.deploy_dir),
            ("data_dir", &global.data_dir),
            ("log_dir", &global.log_dir),
        ] {
            safe_dir(&format!("global.{key}"), dir, false)?;
        }
        for (key, limit) in global.resource_control.entries() {
            safe(&format!("global.resource_control.{key}"), limit, LIMIT)?;
        }
        if let Some(monitored) = &self.monitored {
            for (key, dir) in [
                ("deploy_dir", &monitored.deploy_dir),
                ("data_dir", &monitored.data_dir),
                ("log_dir", &monitored.log_dir),
            ] {
                safe_dir(&format!("monitored.{key}"), dir, false)?;
            }
            for (key, limit) in monitored.resource_control.entries() {
                safe(&format!("monitored.resource_control.{key}"), limit, LIMIT)?;
            }
            safe("monitored.numa_node", &monitored.numa_node, NUMA)?;
        }
        Ok(())
    }

    fn check_server(&self, server: &Server<'_>) -> Result<(), Wrong> {
        let at = |key: &str| format!("{}.{}.{key}", server.section(), server.index);
        if server.host.is_empty() {
            return Err(Wrong::new(
                at("host"),
                format!("`{}` contains empty host field", server.section()),
            ));
        }
        safe_dir(&at("deploy_dir"), server.deploy_dir, false)?;
        safe_dir(&at("data_dir"), server.data_dir.unwrap_or_default(), true)?;
        safe_dir(&at("log_dir"), server.log_dir.unwrap_or_default(), false)?;
        safe(&at("numa_node"), server.numa_node, NUMA)?;
        safe(&at("source"), server.source, WORD)?;
        safe(&at("name"), server.name.unwrap_or_default(), MEMBER)?;
        for (key, limit) in server.resource_control.entries() {
            safe(&at(&format!("resource_control.{key}")), limit, LIMIT)?;
        }
        if !matches!(server.os, "" | "linux") {
            return Err(Wrong::new(at("os"), format!("os `{}` is not supported", server.os))
                .help("`linux` is"));
        }
        one_of(&at("arch"), server.arch, &["", "amd64", "arm64"])?;
        self.instance(server).map_err(|bad| Wrong::new(at("host"), bad.to_string()))?;
        Ok(())
    }

    fn check_ports(&self, servers: &[Server<'_>]) -> Result<(), Wrong> {
        let mut used: HashMap<(&str, u16), (Server<'_>, &str)> = HashMap::new();
        for server in servers {
            for (key, port) in server.ports.iter().flatten() {
                if let Some((other, other_key)) = used.insert((server.host, *port), (*server, key))
                {
                    return Err(conflict(
                        "port",
                        &port.to_string(),
                        (&other, other_key),
                        (server, key),
                    ));
                }
            }
        }
        let Some(monitored) = &self.monitored else { return Ok(()) };
        for (key, port) in [
            ("node_exporter_port", monitored.node_exporter_port),
            ("blackbox_exporter_port", monitored.blackbox_exporter_port),
        ] {
            for server in servers {
                if let Some((other, other_key)) = used.get(&(server.host, port)) {
                    let message = format!(
                        "port conflict for '{port}' between 'monitored.{key}' and '{}:{}.{other_key}'",
                        other.section(),
                        other.host
                    );
                    return Err(Wrong::new(
                        format!("{}.{}.{other_key}", other.section(), other.index),
                        message,
                    ));
                }
            }
        }
        if monitored.node_exporter_port == monitored.blackbox_exporter_port {
            let message = format!(
                "port conflict for '{}' between both exporters",
                monitored.node_exporter_port
            );
            return Err(Wrong::new("monitored.blackbox_exporter_port", message));
        }
        Ok(())
    }

    fn check_dirs(&self, servers: &[Server<'_>]) -> Result<(), Wrong> {
        let mut used: HashMap<(&str, &str), (Server<'_>, &str)> = HashMap::new();
        for server in servers {
            let data = server.data_dir.unwrap_or_default().split(',').map(|dir| ("data_dir", dir));
            for (key, dir) in [("deploy_dir", server.deploy_dir)].into_iter().chain(data) {
                if !dir.starts_with('/') {
                    continue;
                }
                if let Some((other, other_key)) = used.insert((server.host, dir), (*server, key)) {
                    return Err(conflict("directory", dir, (&other, other_key), (server, key)));
                }
            }
        }
        // Two relative ones of the same name below the same home are one dir all the same.
        let mut deploys: HashMap<(&str, String), Server<'_>> = HashMap::new();
        let home = format!("/home/{}", self.global.user);
        for server in servers {
            let dir = super::load::below(&home, server.deploy_dir);
            if let Some(other) = deploys.insert((server.host, dir.clone()), *server) {
                return Err(conflict(
                    "directory",
                    &dir,
                    (&other, "deploy_dir"),
                    (server, "deploy_dir"),
                ));
            }
        }
        Ok(())
    }

    fn check_files(&self) -> Result<(), Wrong> {
        let mut files: Vec<(String, &str)> = Vec::new();
        for (at, server) in self.monitoring_servers.iter().enumerate() {
            files.push((format!("monitoring_servers.{at}.rule_dir"), &server.rule_dir));
            for (key, value) in [
                ("scrape_interval", &server.scrape_interval),
                ("scrape_timeout", &server.scrape_timeout),
            ] {
                safe(&format!("monitoring_servers.{at}.{key}"), value, WORD)?;
            }
            for (key, value) in [
                ("storage_retention", &server.storage_retention),
                ("storage_retention_time", &server.storage_retention_time),
                ("storage_retention_size", &server.storage_retention_size),
            ] {
                safe(&format!("monitoring_servers.{at}.{key}"), value, WORD)?;
            }
            for (index, argument) in server.additional_args.iter().enumerate() {
                one_line(&format!("monitoring_servers.{at}.additional_args.{index}"), argument)?;
            }
        }
        for (at, server) in self.grafana_servers.iter().enumerate() {
            files.push((format!("grafana_servers.{at}.dashboard_dir"), &server.dashboard_dir));
            for (key, value) in [
                ("username", &server.username),
                ("password", &server.password),
                ("root_url", &server.root_url),
                ("domain", &server.domain),
                ("default_theme", &server.default_theme),
                ("org_name", &server.org_name),
                ("org_role", &server.org_role),
            ] {
                one_line(&format!("grafana_servers.{at}.{key}"), value)?;
            }
        }
        for (at, server) in self.alertmanager_servers.iter().enumerate() {
            files.push((format!("alertmanager_servers.{at}.config_file"), &server.config_file));
            safe(&format!("alertmanager_servers.{at}.listen_host"), &server.listen_host, ADDRESS)?;
            for (index, argument) in server.additional_args.iter().enumerate() {
                one_line(&format!("alertmanager_servers.{at}.additional_args.{index}"), argument)?;
            }
        }
        for (at, server) in self.master_servers.iter().enumerate() {
            safe_dir(
                &format!("master_servers.{at}.v1_source_path"),
                &server.v1_source_path,
                false,
            )?;
        }
        for (path, file) in files {
            if !file.is_empty() && !file.starts_with('/') {
                let field = path.rsplit('.').next().unwrap_or_default();
                return Err(Wrong::new(
                    &*path,
                    format!("relative path is not allowed for field {field}: {file}"),
                ));
            }
        }
        Ok(())
    }
}

fn conflict(
    what: &str,
    value: &str,
    one: (&Server<'_>, &str),
    other: (&Server<'_>, &str),
) -> Wrong {
    let name =
        |(server, key): (&Server<'_>, &str)| format!("{}:{}.{key}", server.section(), server.host);
    let message =
        format!("{what} conflict for '{value}' between '{}' and '{}'", name(one), name(other));
    Wrong::new(format!("{}.{}.{}", other.0.section(), other.0.index, other.1), message)
}

fn check_platforms(servers: &[Server<'_>]) -> Result<(), Wrong> {
    let mut seen: BTreeMap<&str, Server<'_>> = BTreeMap::new();
    for server in servers {
        let first = seen.entry(server.host).or_insert(*server);
        if (first.os, first.arch) != (server.os, server.arch) {
            let message = format!(
                "platform mismatch for '{}' between '{}:{}/{}' and '{}:{}/{}'",
                server.host,
                first.section(),
                first.os,
                first.arch,
                server.section(),
                server.os,
                server.arch
            );
            let path = format!("{}.{}.arch", server.section(), server.index);
            return Err(Wrong::new(path, message)
                .help("one host has one platform: give it to all of its servers or to none"));
        }
    }
    Ok(())
}

/// Names are the identities of etcd and DM: two members of one name would fight for one place.
fn check_members(servers: &[Server<'_>]) -> Result<(), Wrong> {
    let mut seen: HashMap<(&str, &str), Server<'_>> = HashMap::new();
    for server in servers {
        let Some(name) = server.name else { continue };
        if let Some(other) = seen.insert((section_of(server.role), name), *server) {
            let message =
                format!("name '{name}' is given to both {} and {}", other.id(), server.id());
            return Err(Wrong::new(format!("{}.{}.name", server.section(), server.index), message));
        }
    }
    Ok(())
}

const ADDRESS: (&str, &str) = (".:-_%[]", "an address or a host name");
const LIMIT: (&str, &str) = (" .%/-_:", "a limit in systemd's words");
const NUMA: (&str, &str) = (",-", "numbers of NUMA nodes");
const WORD: (&str, &str) = (".-_", "letters, digits, `.`, `-` and `_`");
const MEMBER: (&str, &str) = (".-_:@[]", "letters, digits and `.-_:@`");

/// Letters, digits and a few more: what ends up in a unit file or in a script.
fn safe(path: &str, text: &str, (also, what): (&str, &str)) -> Result<(), Wrong> {
    if text.starts_with('-') || !text.chars().all(|c| c.is_ascii_alphanumeric() || also.contains(c))
    {
        let field = path.rsplit('.').next().unwrap_or_default();
        return Err(Wrong::new(path, format!("`{text}` cannot be used as {field}"))
            .help(&format!("use {what}")));
    }
    Ok(())
}

fn safe_dir(path: &str, dir: &str, list: bool) -> Result<(), Wrong> {
    let allowed = |c: char| c.is_alphanumeric() || "/._-+@=~:".contains(c) || (list && c == ',');
    let field = path.rsplit('.').next().unwrap_or_default();
    if dir.starts_with('-') || dir.starts_with('~') || !dir.chars().all(allowed) {
        return Err(Wrong::new(path, format!("`{dir}` cannot be used as {field}")).help(
            "dirs are used in scripts and unit files: letters, digits and `/._-+@=:`, no spaces",
        ));
    }
    if dir.split(['/', ',']).any(|part| part == "..") {
        return Err(Wrong::new(path, format!("`{dir}` leaves its place"))
            .help("write the dir without `..`"));
    }
    if matches!(dir.trim_end_matches('/'), "" if dir.starts_with('/')) {
        return Err(Wrong::new(path, format!("`{dir}` cannot be used as {field}"))
            .help("the root of a file system is no place for it"));
    }
    Ok(())
}

fn one_line(path: &str, text: &str) -> Result<(), Wrong> {
    if text.chars().any(char::is_control) {
        return Err(Wrong::new(path, "line breaks and control characters are not allowed here"));
    }
    Ok(())
}

fn one_of(path: &str, text: &str, words: &[&str]) -> Result<(), Wrong> {
    if words.contains(&text) {
        return Ok(());
    }
    let field = path.rsplit('.').next().unwrap_or_default();
    let known: Vec<&str> = words.iter().copied().filter(|word| !word.is_empty()).collect();
    Err(Wrong::new(path, format!("{field} `{text}` is not known"))
        .help(&format!("one of: {}", known.join(", "))))
}

/// Another cluster that this control machine manages.
#[derive(Clone, Copy, Debug)]
pub struct Neighbour<'a> {
    /// Its name.
    pub cluster: &'a str,
    /// What it consists of.
    pub topology: &'a Topology,
}

impl Topology {
    /// Whether a new topology, with absolute dirs, gets in the way of other clusters or of itself:
    /// ports and dirs of the same machine, and data or log dirs inside of one another.
    ///
    /// # Errors
    ///
    /// The first conflict, with both sides.
    pub fn check_beside(&self, neighbours: &[Neighbour<'_>]) -> Result<(), TopologyError> {
        for neighbour in neighbours {
            let theirs = claims(neighbour.topology);
            for mine in claims(self) {
                if let Some(other) = theirs
                    .iter()
                    .find(|other| other.what == mine.what && !(other.shared && mine.shared))
                {
                    let (kind, value) = mine.what.words();
                    return Err(TopologyError::new(format!(
                        "{kind} conflict for '{value}' on {}: {} of this topology and {} of cluster {}",
                        mine.what.machine(), mine.who, other.who, neighbour.cluster
                    ))
                    .help("change one of them: both clusters share the machine"));
                }
            }
        }
        let own = claims(self);
        for one in &own {
            for other in &own {
                let (Claimed::Dir(machine, dir), Claimed::Dir(other_machine, other_dir)) =
                    (&one.what, &other.what)
                else {
                    continue;
                };
                let inside =
                    dir.strip_prefix(other_dir.as_str()).is_some_and(|rest| rest.starts_with('/'));
                if inside && machine == other_machine && !one.is_deploy && !other.is_deploy {
                    return Err(TopologyError::new(format!(
                        "directory '{dir}' ({}) lies inside of '{other_dir}' ({})",
                        one.who, other.who
                    ))
                    .help("data and log dirs must not contain one another"));
                }
            }
        }
        Ok(())
    }
}

#[derive(Eq, PartialEq)]
enum Claimed {
    Port(String, u16),
    Dir(String, String),
}

impl Claimed {
    fn machine(&self) -> &str {
        match self {
            Self::Port(machine, _) | Self::Dir(machine, _) => machine,
        }
    }

    fn words(&self) -> (&'static str, String) {
        match self {
            Self::Port(_, port) => ("port", port.to_string()),
            Self::Dir(_, dir) => ("directory", dir.clone()),
        }
    }
}

/// A port or dir of a machine and who wants it. `shared`: both may, if neither runs exporters there.
struct Claim {
    what: Claimed,
    who: String,
    shared: bool,
    is_deploy: bool,
}

fn claims(topology: &Topology) -> Vec<Claim> {
    let mut all = Vec::new();
    let mut hosts: BTreeMap<String, bool> = BTreeMap::new();
    for server in topology.servers() {
        let machine = server.ssh_host().to_owned();
        *hosts.entry(machine.clone()).or_default() |= server.ignore_exporter;
        for (key, port) in server.ports.iter().flatten() {
            let who = format!("{key} of {}", server.id());
            all.push(Claim {
                what: Claimed::Port(machine.clone(), *port),
                who,
                shared: false,
                is_deploy: false,
            });
        }
        let data = server.data_dir.unwrap_or_default().split(',').map(|dir| ("data_dir", dir));
        for (key, dir) in [("deploy_dir", server.deploy_dir)].into_iter().chain(data) {
            if dir.starts_with('/') {
                let who = format!("{key} of {}", server.id());
                let what = Claimed::Dir(machine.clone(), dir.to_owned());
                all.push(Claim { what, who, shared: false, is_deploy: key == "deploy_dir" });
            }
        }
    }
    if let Some(monitored) = &topology.monitored {
        for (machine, ignored) in hosts {
            let mut claim = |what: Claimed, key: &str| {
                all.push(Claim {
                    what,
                    who: format!("monitored.{key} on {}", host_port(&machine, 22)),
                    shared: ignored,
                    is_deploy: true,
                });
            };
            claim(
                Claimed::Port(machine.clone(), monitored.node_exporter_port),
                "node_exporter_port",
            );
            claim(
                Claimed::Port(machine.clone(), monitored.blackbox_exporter_port),
                "blackbox_exporter_port",
            );
            if monitored.deploy_dir.starts_with('/') {
                claim(Claimed::Dir(machine.clone(), monitored.deploy_dir.clone()), "deploy_dir");
            }
        }
    }
    all
}
