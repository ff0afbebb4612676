//! Configuration of a Prometheus: what it scrapes, which rules it follows, whom it tells.

use std::collections::BTreeSet;

use super::settings::{BadSettings, Settings};
use super::{Deployment, PlacedFile, spec_of};
use crate::instance::Instance;
use crate::topology::{PrometheusSpec, Value, host_port, yaml_text};
use crate::version::DmVersion;

pub(super) fn configs(
    deployment: &Deployment<'_>,
    instance: &Instance,
) -> Result<Vec<PlacedFile>, BadSettings> {
    let spec =
        spec_of(&deployment.topology.monitoring_servers, instance, |spec| spec.server(0).id());
    let mut files = vec![PlacedFile {
        path: instance.deploy_dir.join("conf/prometheus.yml"),
        mode: 0o644,
        root: false,
        content: format!(
            "# Written by the cluster manager: what is changed here by hand is lost.\n{}",
            yaml_text(&config(deployment, spec))
        ),
        cache_name: format!("prometheus_{}_{}.yml", instance.host, instance.port),
    }];
    if spec.ng_port > 0 {
        files.push(PlacedFile {
            path: instance.deploy_dir.join("conf/ngmonitoring.toml"),
            mode: 0o644,
            root: false,
            content: ng_monitoring(deployment, spec, instance)?,
            cache_name: format!("ngmonitoring_{}_{}.toml", instance.host, instance.port),
        });
    }
    Ok(files)
}

fn map<const N: usize>(entries: [(&str, Value); N]) -> Value {
    Value::Map(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

fn text(value: impl Into<String>) -> Value {
    Value::Text(value.into())
}

fn texts(values: impl IntoIterator<Item = String>) -> Value {
    Value::Seq(values.into_iter().map(Value::Text).collect())
}

fn config(deployment: &Deployment<'_>, spec: &PrometheusSpec) -> Value {
    let topology = deployment.topology;
    let interval = if spec.scrape_interval.is_empty() { "15s" } else { &spec.scrape_interval };
    let mut global =
        vec![("scrape_interval", text(interval)), ("evaluation_interval", text("15s"))];
    if !spec.scrape_timeout.is_empty() {
        global.push(("scrape_timeout", text(&*spec.scrape_timeout)));
    }
    global.push((
        "external_labels",
        map([("cluster", text(deployment.cluster.as_str())), ("monitor", text("prometheus"))]),
    ));
    let own = |entries: Vec<(&str, Value)>| {
        Value::Map(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    };
    let mut config = vec![("global", own(global))];
    // An agent only forwards: it knows no rules and tells nobody.
    if !spec.enable_prom_agent_mode {
        let rules: Vec<String> = if !deployment.rule_files.is_empty() {
            deployment.rule_files.to_vec()
        } else if topology.worker_servers.is_empty() {
            Vec::new()
        } else {
            vec!["dm_worker.rules.yml".to_owned()]
        };
        config.push(("rule_files", texts(rules)));
        let alertmanagers: Vec<String> = topology
            .alertmanager_servers
            .iter()
            .map(|server| host_port(&server.host, server.web_port))
            .chain(
                spec.external_alertmanagers
                    .iter()
                    .map(|server| host_port(&server.host, server.web_port)),
            )
            .collect();
        if !alertmanagers.is_empty() {
            let targets = Value::Seq(vec![map([("targets", texts(alertmanagers))])]);
            config.push((
                "alerting",
                map([("alertmanagers", Value::Seq(vec![map([("static_configs", targets)])]))]),
            ));
        }
    }
    let mut jobs = jobs(deployment, spec);
    for job in &mut jobs {
        if let Value::Map(entries) = job {
            for (key, value) in &spec.additional_scrape_conf.0 {
                entries.retain(|(known, _)| known != key);
                entries.push((key.clone(), value.clone()));
            }
        }
    }
    config.push(("scrape_configs", Value::Seq(jobs)));
    for (key, list) in [
        ("remote_write", &spec.remote_config.remote_write),
        ("remote_read", &spec.remote_config.remote_read),
    ] {
        if !list.is_empty() {
            config.push((key, Value::Seq(list.clone())));
        }
    }
    own(config)
}

fn jobs(deployment: &Deployment<'_>, spec: &PrometheusSpec) -> Vec<Value> {
    let topology = deployment.topology;
    let mut jobs = Vec::new();
    let tls = topology.global.enable_tls.then_some(deployment.version);
    if !spec.pushgateway_addrs.is_empty() {
        jobs.push(job("overwritten-cluster", true, None, spec.pushgateway_addrs.clone()));
    }
    let masters =
        topology.master_servers.iter().map(|server| host_port(&server.host, server.port)).collect();
    jobs.push(job("dm_master", true, tls, masters));
    let workers =
        topology.worker_servers.iter().map(|server| host_port(&server.host, server.port)).collect();
    jobs.push(job("dm_worker", true, tls, workers));
    if spec.ng_port > 0 {
        jobs.push(job("ng-monitoring", true, None, vec![host_port(&spec.host, spec.ng_port)]));
    }
    let Some(monitored) = &topology.monitored else { return jobs };
    // Sorted: the same topology always gives the same file.
    let hosts: BTreeSet<String> =
        topology.servers().iter().map(|server| server.host.to_owned()).collect();
    let at = |port: u16| hosts.iter().map(|host| host_port(host, port)).collect::<Vec<_>>();
    let (nodes, blackboxes) =
        (at(monitored.node_exporter_port), at(monitored.blackbox_exporter_port));
    jobs.push(job("overwritten-nodes", true, None, nodes.clone()));
    let grafanas =
        topology.grafana_servers.iter().map(|server| host_port(&server.host, server.port));
    let alertmanagers =
        topology.alertmanager_servers.iter().map(|server| host_port(&server.host, server.web_port));
    let groups = [
        ("pushgateway", spec.pushgateway_addrs.clone()),
        ("grafana", grafanas.collect()),
        ("alertmanager", alertmanagers.collect()),
        ("node_exporter", nodes),
        ("blackbox_exporter", blackboxes),
    ];
    let groups = groups
        .into_iter()
        .filter(|(_, targets)| !targets.is_empty())
        .map(|(group, targets)| {
            map([("targets", texts(targets)), ("labels", map([("group", text(group))]))])
        })
        .collect();
    // TiUP's labels: who is tried for its port is the `instance`, who is pinged is the `ping` of the machine that pings.
    let prober = host_port(&spec.host, monitored.blackbox_exporter_port);
    jobs.push(probe_job("monitor_port_probe", "30s", "tcp_connect", groups, "instance", &prober));
    for host in &hosts {
        let prober = host_port(host, monitored.blackbox_exporter_port);
        let everyone = vec![map([("targets", texts(hosts.iter().cloned()))])];
        let name = format!("blackbox_exporter_{prober}_icmp");
        jobs.push(probe_job(&name, "6s", "icmp", everyone, "ping", &prober));
    }
    jobs
}

fn job(name: &str, honor_labels: bool, tls: Option<&DmVersion>, targets: Vec<String>) -> Value {
    let mut entries = vec![
        ("job_name".to_owned(), text(name)),
        ("honor_labels".to_owned(), Value::Bool(honor_labels)),
    ];
    if let Some(version) = tls {
        let file = |name: &str| text(format!("../tls/{name}"));
        entries.push(("scheme".to_owned(), text("https")));
        entries.push((
            "tls_config".to_owned(),
            map([
                ("insecure_skip_verify", Value::Bool(false)),
                ("ca_file", file("ca.crt")),
                ("cert_file", file("prometheus.crt")),
                ("key_file", file("prometheus.pem")),
            ]),
        ));
        // dm-worker agrees to HTTP/2 in its handshake, and then answers nothing but gRPC by it (seen with v8.1.0).
        if version.brings_prometheus_with_http2() {
            entries.push(("enable_http2".to_owned(), Value::Bool(false)));
        }
    }
    entries
        .push(("static_configs".to_owned(), Value::Seq(vec![map([("targets", texts(targets))])])));
    Value::Map(entries)
}

/// Asks a blackbox exporter to try each target, whose address becomes that label.
fn probe_job(
    name: &str,
    interval: &str,
    module: &str,
    groups: Vec<Value>,
    label: &str,
    prober: &str,
) -> Value {
    let source = |label: &str| Value::Seq(vec![text(label)]);
    map([
        ("job_name", text(name)),
        ("scrape_interval", text(interval)),
        ("metrics_path", text("/probe")),
        ("params", map([("module", Value::Seq(vec![text(module)]))])),
        ("static_configs", Value::Seq(groups)),
        (
            "relabel_configs",
            Value::Seq(vec![
                map([
                    ("source_labels", source("__address__")),
                    ("target_label", text("__param_target")),
                ]),
                map([("source_labels", source("__param_target")), ("target_label", text(label))]),
                map([("target_label", text("__address__")), ("replacement", text(prober))]),
            ]),
        ),
    ])
}

fn ng_monitoring(
    deployment: &Deployment<'_>,
    spec: &PrometheusSpec,
    instance: &Instance,
) -> Result<String, BadSettings> {
    let bad =
        |why: String| BadSettings { component: format!("ng-monitoring of {}", instance.id), why };
    let data = instance.data_dirs.first().map_or_else(String::new, ToString::to_string);
    let builtin = crate::topology::Table(vec![
        ("address".to_owned(), text(host_port(&deployment.listen_host(&spec.host), spec.ng_port))),
        ("advertise-address".to_owned(), text(host_port(&spec.host, spec.ng_port))),
        (
            "log".to_owned(),
            map([("path", text(instance.log_dir.as_str())), ("level", text("INFO"))]),
        ),
        ("storage".to_owned(), map([("path", text(data))])),
    ]);
    let mut settings = Settings::of(&builtin).map_err(bad)?;
    settings.overlay(Settings::of(&spec.ng_monitoring_config).map_err(bad)?);
    settings.to_text().map_err(bad)
}
