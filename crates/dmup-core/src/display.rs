//! What operators and their scripts read: the tables of `display`, `list` and `audit`, byte for byte as TiUP prints them.
//!
//! In: a cluster's header and one row per instance with its state as a word. Out: text that ends in a
//! line break, or the JSON of `--format json`. Nothing here asks anybody anything.
//! Facts: TiUP 1.16.5 (tests/fixtures), the manual's example.

use std::fmt::Write as _;

use serde::Serialize;

use crate::builds::{BuildSeen, Verdict};
use crate::digest::Digest;
use crate::ids::ClusterName;
use crate::instance::{Instance, Role};
use crate::topology::{Meta, Topology};

/// What stands above the table.
#[derive(Clone, Debug)]
pub struct Header {
    /// The cluster's name.
    pub cluster: ClusterName,
    /// `dm_version`.
    pub version: String,
    /// `global.user`.
    pub deploy_user: String,
    /// `global.ssh_type`.
    pub ssh_type: String,
    /// Set for clusters with TLS.
    pub tls: Option<TlsFiles>,
}

/// Files of a cluster with TLS, on the control machine.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Certificate of the cluster's authority.
    pub ca: String,
    /// Our own key.
    pub client_key: String,
    /// Our own certificate.
    pub client_certificate: String,
}

/// One instance and how it is.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which one.
    pub instance: Instance,
    /// Text of the column `Ports`.
    pub ports: String,
    /// TiUP's word: `Healthy|L`, `Bound`, `Down`.
    pub status: String,
    /// How long it has been up, in seconds, if that was asked for and is known.
    pub up_s: Option<u64>,
    /// For the JSON form alone: set for Prometheus and Alertmanager.
    pub numa_node: String,
    /// What was verified of it, if that was asked for.
    pub build: Option<BuildSeen>,
}

/// A cluster as `display` shows it.
#[derive(Clone, Debug)]
pub struct Display {
    /// What stands above the table.
    pub header: Header,
    /// In any order; printed in TiUP's.
    pub rows: Vec<Row>,
}

/// How the text form is printed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Look {
    /// With the column `Since`.
    pub uptime: bool,
    /// With the columns `Running` and `Verdict`, the last ones: whoever counts columns from the left is not disturbed.
    pub builds: bool,
    /// With colours.
    pub colour: bool,
}

impl Header {
    /// The header of a deployed cluster. `tls_dir`: where the files of a TLS cluster are.
    pub fn of(cluster: &ClusterName, meta: &Meta, tls_dir: &str) -> Self {
        let global = &meta.topology.global;
        Self {
            cluster: cluster.clone(),
            version: meta.version.to_string(),
            deploy_user: global.user.clone(),
            ssh_type: global.ssh_type.clone(),
            tls: global.enable_tls.then(|| TlsFiles {
                ca: format!("{tls_dir}/ca.crt"),
                client_key: format!("{tls_dir}/client.pem"),
                client_certificate: format!("{tls_dir}/client.crt"),
            }),
        }
    }
}

impl Row {
    /// A row for an instance of this cluster.
    pub fn of(
        topology: &Topology,
        instance: &Instance,
        status: impl Into<String>,
        up_s: Option<u64>,
    ) -> Self {
        let numa_node = topology
            .servers()
            .into_iter()
            .find(|server| server.role == instance.role && server.id() == instance.id.as_str())
            .filter(|server| matches!(server.role, Role::Prometheus | Role::Alertmanager))
            .map(|server| server.numa_node.to_owned())
            .unwrap_or_default();
        Self {
            ports: topology.ports_text(instance),
            instance: instance.clone(),
            status: status.into(),
            up_s,
            numa_node,
            build: None,
        }
    }

    fn role_text(&self) -> String {
        if self.instance.patched {
            format!("{} (patched)", self.instance.role)
        } else {
            self.instance.role.to_string()
        }
    }

    fn data_dir(&self) -> String {
        if self.instance.data_dirs.is_empty() {
            return "-".to_owned();
        }
        self.instance.data_dirs.iter().map(|dir| dir.as_str()).collect::<Vec<_>>().join(",")
    }

    fn os_arch(&self) -> String {
        let arch = match self.instance.arch.as_str() {
            "amd64" => "x86_64",
            "arm64" => "aarch64",
            other => other,
        };
        format!("{}/{arch}", self.instance.os)
    }
}

/// Whether `display -R … -N …` shows an instance: unknown words just match nothing.
pub fn is_shown(instance: &Instance, nodes: &[String], roles: &[String]) -> bool {
    (nodes.is_empty() || nodes.iter().any(|node| node.trim() == instance.id.as_str()))
        && (roles.is_empty() || roles.iter().any(|role| role.parse::<Role>() == Ok(instance.role)))
}

impl Display {
    /// Rows in TiUP's order: by the text of the role, then host, then ports.
    fn sorted(&self) -> Vec<&Row> {
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        rows.sort_by_key(|row| (row.role_text(), row.instance.host.to_string(), row.ports.clone()));
        rows
    }

    fn grafana_urls(&self) -> Vec<String> {
        let mut grafanas: Vec<&Row> =
            self.rows.iter().filter(|row| row.instance.role == Role::Grafana).collect();
        grafanas.sort_by_key(|row| row.instance.id.clone());
        grafanas.iter().map(|row| format!("http://{}", row.instance.id)).collect()
    }

    /// The text form.
    pub fn text(&self, look: Look) -> String {
        let rows = self.sorted();
        let mut out = String::new();
        let header = &self.header;
        let mut line = |label: &str, value: &str| {
            let value = if look.colour { paint("36;1", value) } else { value.to_owned() };
            out.push_str(&format!("{label:<20}{value}\n"));
        };
        line("Cluster type:", "dm");
        line("Cluster name:", header.cluster.as_str());
        line("Cluster version:", &header.version);
        line("Deploy user:", &header.deploy_user);
        line("SSH type:", &header.ssh_type);
        if let Some(tls) = &header.tls {
            line("TLS encryption:", "enabled");
            line("CA certificate:", &tls.ca);
            line("Client private key:", &tls.client_key);
            line("Client certificate:", &tls.client_certificate);
        }
        let urls = self.grafana_urls();
        if !urls.is_empty() {
            line("Grafana URL:", &urls.join(","));
        }
        let manage_host = rows.iter().any(|row| row.instance.ssh_host != row.instance.host);
        let mut titles = vec!["ID", "Role", "Host"];
        titles.extend(manage_host.then_some("Manage Host"));
        titles.extend(["Ports", "OS/Arch", "Status"]);
        titles.extend(look.uptime.then_some("Since"));
        titles.extend(["Data Dir", "Deploy Dir"]);
        if look.builds {
            titles.extend(["Running", "Verdict"]);
        }
        let cells: Vec<Vec<Cell>> = rows
            .iter()
            .map(|row| {
                let instance = &row.instance;
                let mut cells = vec![
                    Cell::coloured(instance.id.as_str(), look.colour.then_some("36")),
                    Cell::plain(row.role_text()),
                    Cell::plain(instance.host.as_str()),
                ];
                cells.extend(manage_host.then(|| Cell::plain(instance.ssh_host.as_str())));
                cells.push(Cell::plain(&*row.ports));
                cells.push(Cell::plain(row.os_arch()));
                cells.push(Cell::coloured(
                    &row.status,
                    colour_of(&row.status).filter(|_| look.colour),
                ));
                cells.extend(look.uptime.then(|| Cell::plain(since_text(row.up_s))));
                cells.push(Cell::plain(row.data_dir()));
                cells.push(Cell::plain(instance.deploy_dir.as_str()));
                if look.builds {
                    let build = row.build.as_ref();
                    let running = build.and_then(|it| it.running.as_ref());
                    cells.push(Cell::plain(running.map_or("-".to_owned(), Digest::to_string)));
                    let verdict = build.map_or(Verdict::Unknown, |it| it.verdict);
                    let paint = colour_of_verdict(verdict).filter(|_| look.colour);
                    cells.push(Cell::coloured(verdict.as_str(), paint));
                }
                cells
            })
            .collect();
        out.push_str(&lay_out(&titles, &cells));
        out.push_str(&format!("Total nodes: {}\n", rows.len()));
        out
    }

    /// The form of `--format json`, with TiUP's keys; ends in a line break.
    pub fn json(&self) -> String {
        let header = &self.header;
        let tls = header.tls.as_ref();
        let document = JsonDisplay {
            cluster_meta: JsonMeta {
                cluster_type: "dm",
                cluster_name: header.cluster.as_str(),
                cluster_version: &header.version,
                deploy_user: &header.deploy_user,
                ssh_type: &header.ssh_type,
                tls_enabled: tls.is_some(),
                tls_ca_cert: tls.map(|tls| tls.ca.as_str()),
                tls_client_cert: tls.map(|tls| tls.client_certificate.as_str()),
                tls_client_key: tls.map(|tls| tls.client_key.as_str()),
                grafana_urls: self.grafana_urls(),
            },
            instances: self
                .sorted()
                .into_iter()
                .map(|row| JsonRow::of(row, &header.version))
                .collect(),
        };
        let mut text =
            serde_json::to_string_pretty(&document).expect("texts and numbers always serialise");
        text.push('\n');
        text
    }
}

#[derive(Serialize)]
struct JsonDisplay<'a> {
    cluster_meta: JsonMeta<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    instances: Vec<JsonRow<'a>>,
}

#[derive(Serialize)]
struct JsonMeta<'a> {
    cluster_type: &'static str,
    cluster_name: &'a str,
    cluster_version: &'a str,
    deploy_user: &'a str,
    ssh_type: &'a str,
    tls_enabled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_ca_cert: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_client_cert: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_client_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    grafana_urls: Vec<String>,
}

#[derive(Serialize)]
struct JsonRow<'a> {
    id: &'a str,
    role: String,
    host: &'a str,
    manage_host: &'a str,
    ports: &'a str,
    os_arch: String,
    status: &'a str,
    memory: &'static str,
    memory_limit: &'static str,
    cpu_quota: &'static str,
    since: String,
    data_dir: String,
    deploy_dir: &'a str,
    numa_node: &'a str,
    numa_cores: &'static str,
    version: &'a str,
    #[serde(rename = "ComponentName")]
    component: &'static str,
    #[serde(rename = "Port")]
    port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    build: Option<&'a BuildSeen>,
}

impl<'a> JsonRow<'a> {
    fn of(row: &'a Row, cluster_version: &'a str) -> Self {
        let instance = &row.instance;
        Self {
            id: instance.id.as_str(),
            role: row.role_text(),
            host: instance.host.as_str(),
            manage_host: instance.ssh_host.as_str(),
            ports: &row.ports,
            os_arch: row.os_arch(),
            status: &row.status,
            memory: "-",
            memory_limit: "-",
            cpu_quota: "-",
            since: since_text(row.up_s),
            data_dir: row.data_dir(),
            deploy_dir: instance.deploy_dir.as_str(),
            numa_node: if row.numa_node.is_empty() { "-" } else { &row.numa_node },
            numa_cores: "-",
            // TiUP takes the newest stable Alertmanager, and says so with an empty text.
            version: if instance.role == Role::Alertmanager { "" } else { cluster_version },
            component: instance.role.as_str(),
            port: instance.port,
            build: row.build.as_ref(),
        }
    }
}

/// One cluster in the table of `list`.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct ClusterLine {
    /// The cluster's name.
    pub name: String,
    /// Deploy user.
    pub user: String,
    /// `dm_version`.
    pub version: String,
    /// Its folder on the control machine.
    pub path: String,
    /// The key that opens its hosts.
    pub private_key: String,
}

/// The table of `list`.
pub fn list_text(clusters: &[ClusterLine]) -> String {
    let rows: Vec<Vec<Cell>> = clusters
        .iter()
        .map(|line| {
            [&line.name, &line.user, &line.version, &line.path, &line.private_key]
                .map(Cell::plain)
                .into()
        })
        .collect();
    lay_out(&["Name", "User", "Version", "Path", "PrivateKey"], &rows)
}

/// `list --format json`: on one line, as TiUP has it.
pub fn list_json(clusters: &[ClusterLine]) -> String {
    #[derive(Serialize)]
    struct Clusters<'a> {
        clusters: &'a [ClusterLine],
    }
    let text = serde_json::to_string(&Clusters { clusters }).expect("texts always serialise");
    format!("{text}\n")
}

/// The table of `audit`: id, time (RFC 3339) and command of each entry.
pub fn audit_text(entries: &[[String; 3]]) -> String {
    let rows: Vec<Vec<Cell>> =
        entries.iter().map(|entry| entry.iter().map(Cell::plain).collect()).collect();
    lay_out(&["ID", "Time", "Command"], &rows)
}

/// Any table in the same manner: titles, dashes below them, two spaces between columns.
pub fn table_text(titles: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<Cell>> =
        rows.iter().map(|row| row.iter().map(Cell::plain).collect()).collect();
    lay_out(titles, &rows)
}

/// `1d2h3m4s`, without the parts that are zero.
pub fn uptime_text(seconds: u64) -> String {
    let mut text = String::new();
    for (size, unit) in [(86_400, 'd'), (3_600, 'h'), (60, 'm'), (1, 's')] {
        let count = match unit {
            'd' => seconds / size,
            'h' => seconds % 86_400 / size,
            'm' => seconds % 3_600 / size,
            _ => seconds % 60,
        };
        if count > 0 {
            write!(text, "{count}{unit}").expect("a text takes everything");
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

fn since_text(up_s: Option<u64>) -> String {
    up_s.map_or_else(|| "-".to_owned(), uptime_text)
}

/// TiUP's colours of a state, as the number of an ANSI sequence.
fn colour_of(status: &str) -> Option<&'static str> {
    let word = status.to_lowercase();
    let begins = |starts: &[&str]| starts.iter().any(|start| word.starts_with(start));
    if begins(&["up|l", "healthy|l"]) {
        Some("92")
    } else if begins(&["up", "healthy", "free"]) {
        Some("32")
    } else if begins(&["down", "err", "inactive"]) {
        Some("31")
    } else if begins(&["tombstone", "disconnected", "n/a"]) || word.contains("offline") {
        Some("33")
    } else {
        None
    }
}

fn colour_of_verdict(verdict: Verdict) -> Option<&'static str> {
    match verdict {
        Verdict::AsRecorded => None,
        Verdict::Unknown => Some("33"),
        Verdict::Drifted => Some("31"),
    }
}

fn paint(code: &str, text: &str) -> String {
    format!("\x1b[{code}m{text}\x1b[0m")
}

struct Cell {
    text: String,
    colour: Option<&'static str>,
}

impl Cell {
    fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), colour: None }
    }

    fn coloured(text: impl Into<String>, colour: Option<&'static str>) -> Self {
        Self { text: text.into(), colour }
    }
}

fn lay_out(titles: &[&str], rows: &[Vec<Cell>]) -> String {
    let dashes: Vec<String> = titles.iter().map(|title| "-".repeat(title.len())).collect();
    let mut all: Vec<Vec<Cell>> = vec![
        titles.iter().map(|title| Cell::plain(*title)).collect(),
        dashes.into_iter().map(Cell::plain).collect(),
    ];
    let widths: Vec<usize> = (0..titles.len())
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells
                .map(|cell| cell.text.chars().count())
                .chain([titles[column].len()])
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut out = String::new();
    for row in all.drain(..).chain(rows.iter().map(|row| {
        row.iter().map(|cell| Cell { text: cell.text.clone(), colour: cell.colour }).collect()
    })) {
        let mut line = String::new();
        let mut owed = 0;
        for (cell, width) in row.iter().zip(&widths) {
            line.extend(std::iter::repeat_n(' ', owed));
            match cell.colour {
                Some(code) => line.push_str(&paint(code, &cell.text)),
                None => line.push_str(&cell.text),
            }
            owed = width - cell.text.chars().count() + 2;
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptimes_leave_out_what_is_zero() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (121, "2m1s"), (3_600, "1h"), (93_784, "1d2h3m4s")]
        {
            assert_eq!(uptime_text(seconds), text);
        }
    }

    #[test]
    fn states_have_tiups_colours() {
        assert_eq!(colour_of("Healthy|L"), Some("92"));
        assert_eq!(colour_of("Free"), Some("32"));
        assert_eq!(colour_of("Down"), Some("31"));
        assert_eq!(colour_of("N/A"), Some("33"));
        assert_eq!(colour_of("Bound"), None);
        assert_eq!(colour_of("Unhealthy"), None);
    }

    #[test]
    fn colours_do_not_move_columns() {
        let cells = vec![vec![Cell::coloured("a", Some("31")), Cell::plain("b")]];
        assert_eq!(lay_out(&["ID", "X"], &cells), "ID  X\n--  -\n\x1b[31ma\x1b[0m   b\n");
    }
}
