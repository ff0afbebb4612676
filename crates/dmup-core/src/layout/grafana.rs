//! Configuration of a Grafana: its settings, its data source, its folder of dashboards.

use super::settings::BadSettings;
use super::{Deployment, PlacedFile, spec_of};
use crate::instance::Instance;
use crate::topology::{GrafanaSpec, Texts, Value, host_port, yaml_text};

pub(super) fn configs(
    deployment: &Deployment<'_>,
    instance: &Instance,
) -> Result<Vec<PlacedFile>, BadSettings> {
    let spec = spec_of(&deployment.topology.grafana_servers, instance, |spec| spec.server(0).id());
    let place = |path: &str, mode: u32, content: String, cache_name: String| PlacedFile {
        path: instance.deploy_dir.join(path),
        mode,
        root: false,
        content,
        cache_name,
    };
    let bad = |why: String| BadSettings { component: format!("grafana {}", instance.id), why };
    let mut ini = builtin(spec, instance);
    for texts in [deployment.topology.server_configs.grafana.as_ref(), Some(&spec.config)]
        .into_iter()
        .flatten()
    {
        overlay(&mut ini, texts).map_err(bad)?;
    }
    let datasource = datasource(deployment).ok_or_else(|| {
        bad("no prometheus found in topology, so there is nothing to show".to_owned())
    })?;
    let host = &instance.host;
    Ok(vec![
        // Holds the administrator's password.
        place(
            "conf/grafana.ini",
            0o600,
            ini_text(&ini),
            format!("grafana_{host}_{}.ini", instance.port),
        ),
        place(
            "provisioning/datasources/datasource.yml",
            0o644,
            datasource,
            format!("datasource_{host}.yml"),
        ),
        place(
            "provisioning/dashboards/dashboard.yml",
            0o644,
            dashboards(deployment, instance),
            format!("dashboard_{host}.yml"),
        ),
    ])
}

type Section = (String, Vec<(String, String)>);

fn builtin(spec: &GrafanaSpec, instance: &Instance) -> Vec<Section> {
    let below = |name: &str| instance.deploy_dir.join(name).to_string();
    let domain = if spec.domain.is_empty() { spec.host.clone() } else { spec.domain.clone() };
    let mut server = vec![("http_port", spec.port.to_string()), ("domain", domain)];
    let mut cookie = "grafana_session_".to_owned();
    if !spec.domain.is_empty() {
        cookie += &format!("{}_", spec.domain);
    }
    cookie += &spec.port.to_string();
    if !spec.root_url.is_empty() {
        server.push(("root_url", spec.root_url.clone()));
        server.push(("serve_from_sub_path", "true".to_owned()));
    }
    let mut sections = vec![
        (
            "paths",
            vec![
                ("data", below("data")),
                ("logs", below("log")),
                ("plugins", below("plugins")),
                ("provisioning", below("provisioning")),
            ],
        ),
        ("server", server),
        (
            "analytics",
            vec![
                ("check_for_updates", "false".to_owned()),
                ("reporting_enabled", "false".to_owned()),
            ],
        ),
        (
            "security",
            vec![("admin_user", spec.username.clone()), ("admin_password", quoted(&spec.password))],
        ),
        ("users", vec![]),
        ("auth", vec![("login_cookie_name", cookie)]),
        ("auth.anonymous", vec![]),
        ("log", vec![("mode", "file".to_owned())]),
        ("dashboards.json", vec![("enabled", "false".to_owned()), ("path", below("dashboards"))]),
    ];
    if !spec.default_theme.is_empty() {
        sections[4].1.push(("default_theme", spec.default_theme.clone()));
    }
    if spec.anonymous_enable {
        let or = |given: &str, default: &str| {
            if given.is_empty() { default.to_owned() } else { given.to_owned() }
        };
        sections[6].1.extend([
            ("enabled", "true".to_owned()),
            ("org_name", or(&spec.org_name, "Main Org.")),
            ("org_role", or(&spec.org_role, "Viewer")),
        ]);
    }
    sections
        .into_iter()
        .filter(|(_, entries)| !entries.is_empty())
        .map(|(name, entries)| {
            (
                name.to_owned(),
                entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
            )
        })
        .collect()
}

/// A value that an ini reader must not interpret.
fn quoted(value: &str) -> String {
    if value.contains('`') { format!("\"\"\"{value}\"\"\"") } else { format!("`{value}`") }
}

/// `section.key: value`, split at the last dot; a key without a dot is in no section.
fn overlay(ini: &mut Vec<Section>, texts: &Texts) -> Result<(), String> {
    for (path, value) in &texts.0 {
        let (section, key) = path.rsplit_once('.').unwrap_or(("", path));
        let clean = |text: &str| !text.chars().any(|c| c.is_control() || "[]=".contains(c));
        if key.is_empty() || !clean(section) || !clean(key) || value.chars().any(char::is_control) {
            return Err(format!("`{path}` cannot be written to grafana.ini"));
        }
        let at = ini.iter().position(|(name, _)| name == section).unwrap_or_else(|| {
            let at = if section.is_empty() { 0 } else { ini.len() };
            ini.insert(at, (section.to_owned(), Vec::new()));
            at
        });
        let entries = &mut ini[at].1;
        match entries.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => value.clone_into(old),
            None => entries.push((key.to_owned(), value.clone())),
        }
    }
    Ok(())
}

fn ini_text(ini: &[Section]) -> String {
    let mut text =
        "# Written by the cluster manager: what is changed here by hand is lost.\n".to_owned();
    for (section, entries) in ini {
        text.push('\n');
        if !section.is_empty() {
            text += &format!("[{section}]\n");
        }
        for (key, value) in entries {
            text += &format!("{key} = {value}\n");
        }
    }
    text
}

fn map(entries: &[(&str, Value)]) -> Value {
    Value::Map(entries.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect())
}

fn text(value: impl Into<String>) -> Value {
    Value::Text(value.into())
}

fn datasource(deployment: &Deployment<'_>) -> Option<String> {
    let first = deployment.topology.monitoring_servers.first()?;
    let name = deployment.cluster.as_str();
    Some(yaml_text(&map(&[
        ("apiVersion", Value::Int(1)),
        (
            "deleteDatasources",
            Value::Seq(vec![map(&[("name", text(name)), ("orgId", Value::Int(1))])]),
        ),
        (
            "datasources",
            Value::Seq(vec![map(&[
                ("name", text(name)),
                ("type", text("prometheus")),
                ("access", text("proxy")),
                ("url", text(format!("http://{}", host_port(&first.host, first.port)))),
                ("isDefault", Value::Bool(true)),
                ("editable", Value::Bool(true)),
                ("version", Value::Int(1)),
            ])]),
        ),
    ])))
}

fn dashboards(deployment: &Deployment<'_>, instance: &Instance) -> String {
    let name = deployment.cluster.as_str();
    yaml_text(&map(&[
        ("apiVersion", Value::Int(1)),
        (
            "providers",
            Value::Seq(vec![map(&[
                ("name", text(name)),
                ("folder", text(name)),
                ("type", text("file")),
                ("disableDeletion", Value::Bool(false)),
                ("editable", Value::Bool(true)),
                ("updateIntervalSeconds", Value::Int(30)),
                (
                    "options",
                    map(&[("path", text(instance.deploy_dir.join("dashboards").as_str()))]),
                ),
            ])]),
        ),
    ]))
}
