//! What `edit-config` may change in a deployed cluster.
//!
//! Facts: the marks of TiUP's topology structs and pkg/utils/diff.go: names, addresses, ports, dirs
//! and the number of servers are fixed; settings are free.

use super::error::TopologyError;
use super::field::Field;
use super::spec::Topology;
use super::yaml::Value;

/// Checks that a changed topology differs from the old one only where that is allowed.
///
/// # Errors
///
/// Every fixed field that was changed, in one error.
pub fn check_edit(old: &Topology, new: &Topology) -> Result<(), TopologyError> {
    let mut changed = Vec::new();
    compare(&mut Vec::new(), &old.write(), &new.write(), &mut changed);
    if changed.is_empty() {
        return Ok(());
    }
    Err(TopologyError::new(format!("immutable field changed: {}", changed.join("; ")))
        .help("`scale-out` and `scale-in` add and remove servers; names, addresses, ports and dirs stay as deployed"))
}

fn compare(path: &mut Vec<String>, old: &Value, new: &Value, changed: &mut Vec<String>) {
    if old == new || may_change(path) {
        return;
    }
    match (old, new) {
        (Value::Map(a), Value::Map(b)) => {
            let keys = a.iter().chain(b.iter().filter(|(key, _)| old.entry(key).is_none()));
            for (key, _) in keys {
                path.push(key.clone());
                compare(
                    path,
                    old.entry(key).unwrap_or(&Value::Null),
                    new.entry(key).unwrap_or(&Value::Null),
                    changed,
                );
                path.pop();
            }
        }
        // A section that comes or goes is the sum of its fields.
        (Value::Map(_), Value::Null) => compare(path, old, &Value::Map(Vec::new()), changed),
        (Value::Null, Value::Map(_)) => compare(path, &Value::Map(Vec::new()), new, changed),
        (Value::Seq(a), Value::Seq(b)) if a.len() == b.len() => {
            for (at, (one, other)) in a.iter().zip(b).enumerate() {
                path.push(at.to_string());
                compare(path, one, other, changed);
                path.pop();
            }
        }
        _ => {
            let word = |value: &Value| match value {
                Value::Null => "nothing".to_owned(),
                Value::Seq(items) => format!("{} servers", items.len()),
                Value::Text(text) => format!("'{text}'"),
                Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Map(_) => {
                    super::yaml::to_text(value).trim_end().to_owned()
                }
            };
            changed.push(format!("{} from {} to {}", path.join("."), word(old), word(new)));
        }
    }
}

fn may_change(path: &[String]) -> bool {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    match path.as_slice() {
        ["server_configs", ..]
        | ["global", "ssh_port" | "listen_host" | "resource_control" | "custom" | "pd_mode", ..]
        | ["monitored", "numa_node" | "resource_control", ..] => true,
        [section, _, field, ..] if section.ends_with("_servers") => {
            matches!(
                *field,
                "manage_host"
                    | "ssh_port"
                    | "source"
                    | "numa_node"
                    | "config"
                    | "resource_control"
                    | "listen_host"
                    | "config_file"
            ) || matches!(
                (*section, *field),
                (
                    "monitoring_servers",
                    "ng_port"
                        | "prom_remote_write_to_vm"
                        | "enable_prom_agent_mode"
                        | "remote_config"
                        | "external_alertmanagers"
                        | "pushgateway_addrs"
                        | "storage_retention"
                        | "storage_retention_size"
                        | "storage_retention_time"
                        | "rule_dir"
                        | "additional_scrape_conf"
                        | "scrape_interval"
                        | "scrape_timeout"
                        | "additional_args"
                        | "ng_monitoring_config"
                )
            ) || matches!(
                (*section, *field),
                (
                    "grafana_servers",
                    "dashboard_dir"
                        | "username"
                        | "password"
                        | "anonymous_enable"
                        | "root_url"
                        | "domain"
                        | "default_theme"
                        | "org_name"
                        | "org_role"
                        | "use_vm_as_datasource"
                )
            ) || matches!((*section, *field), ("alertmanager_servers", "additional_args"))
        }
        _ => false,
    }
}
