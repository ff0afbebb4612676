//! The script that a unit starts: it ends by becoming the component, so that systemd watches that.

use camino::Utf8Path;

use super::{Deployment, PlacedFile, exporters, spec_of};
use crate::instance::{Instance, Role};
use crate::topology::{Topology, host_port};

pub(super) fn script(deployment: &Deployment<'_>, instance: &Instance) -> PlacedFile {
    let body = match instance.role {
        Role::DmMaster => master(deployment, instance),
        Role::DmWorker => worker(deployment, instance),
        Role::Prometheus => prometheus(deployment, instance),
        Role::Grafana => grafana(instance),
        Role::Alertmanager => alertmanager(deployment, instance),
        Role::NodeExporter | Role::BlackboxExporter => exporters::body(deployment, instance),
    };
    PlacedFile {
        path: instance.script(),
        mode: 0o755,
        root: false,
        content: format!("{}{body}", head(&instance.deploy_dir)),
        cache_name: if instance.role.is_exporter() {
            format!("run_{}_{}.sh", instance.role, instance.ssh_host)
        } else {
            format!("run_{}_{}_{}.sh", instance.role, instance.host, instance.port)
        },
    }
}

pub(super) fn head(deploy_dir: &Utf8Path) -> String {
    format!(
        "#!/bin/bash\nset -e\n\n# Written by the cluster manager on every change of this instance's configuration:\n\
         # what is changed here by hand is lost.\nDEPLOY_DIR={}\ncd \"${{DEPLOY_DIR}}\" || exit 1\n",
        quote(deploy_dir.as_str())
    )
}

/// One word for bash, whatever is in it.
pub(super) fn quote(word: &str) -> String {
    if !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+@=:".contains(c))
    {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// `exec` and its arguments, one a line; `tail` is redirections.
pub(super) fn exec(numa_node: &str, program: &str, arguments: &[String], tail: &str) -> String {
    let mut text = "exec ".to_owned();
    if !numa_node.is_empty() {
        text += &format!("numactl --cpunodebind={numa_node} --membind={numa_node} ");
    }
    text += program;
    for argument in arguments {
        text += " \\\n    ";
        text += argument;
    }
    text += tail;
    text.push('\n');
    text
}

fn flag(name: &str, value: &str) -> String {
    format!("--{name}={}", quoted_value(value))
}

/// In double quotes, as TiUP writes values; they were checked to hold nothing that bash would act on.
fn quoted_value(value: &str) -> String {
    let escaped = value.chars().fold(String::new(), |mut text, c| {
        if matches!(c, '"' | '\\' | '$' | '`') {
            text.push('\\');
        }
        text.push(c);
        text
    });
    format!("\"{escaped}\"")
}

fn to_files(instance: &Instance) -> String {
    let log = |name: &str| {
        quoted_value(instance.log_dir.join(format!("{}_{name}.log", instance.role)).as_str())
    };
    format!(" >> {} 2>> {}", log("stdout"), log("stderr"))
}

/// Everything that is said goes to a log file and to the journal.
pub(super) fn tee(log_dir: &Utf8Path, component: &str) -> String {
    let log = quoted_value(log_dir.join(format!("{component}.log")).as_str());
    format!("exec > >(tee -i -a {log})\nexec 2>&1\n\n")
}

/// `host:port` of every master, for `--join`.
fn masters(topology: &Topology) -> String {
    topology
        .master_servers
        .iter()
        .map(|spec| host_port(&spec.host, spec.port))
        .collect::<Vec<_>>()
        .join(",")
}

fn master(deployment: &Deployment<'_>, instance: &Instance) -> String {
    let spec = spec_of(&deployment.topology.master_servers, instance, |spec| spec.server(0).id());
    let scheme = deployment.scheme();
    let listen = deployment.listen_host(&spec.host);
    let peer = |host: &str, port: u16| format!("{scheme}://{}", host_port(host, port));
    let mut arguments = Vec::new();
    if deployment.joins.is_none() && !spec.v1_source_path.is_empty() {
        arguments.push(flag("v1-sources-path", &spec.v1_source_path));
    }
    arguments.extend([
        flag("name", &spec.name),
        flag("master-addr", &host_port(&listen, spec.port)),
        flag("advertise-addr", &host_port(&spec.host, spec.port)),
        flag("peer-urls", &peer(&listen, spec.peer_port)),
        flag("advertise-peer-urls", &peer(&spec.host, spec.peer_port)),
        flag("log-file", instance.log_dir.join("dm-master.log").as_str()),
        flag("data-dir", instance.data_dirs.first().map_or("", |dir| dir.as_str())),
    ]);
    arguments.push(match deployment.joins {
        Some(cluster) => flag("join", &masters(cluster)),
        None => {
            let members: Vec<String> = deployment
                .topology
                .master_servers
                .iter()
                .map(|member| format!("{}={}", member.name, peer(&member.host, member.peer_port)))
                .collect();
            flag("initial-cluster", &members.join(","))
        }
    });
    arguments.push(flag("config", "conf/dm-master.toml"));
    exec(&spec.numa_node, "bin/dm-master/dm-master", &arguments, &to_files(instance))
}

fn worker(deployment: &Deployment<'_>, instance: &Instance) -> String {
    let spec = spec_of(&deployment.topology.worker_servers, instance, |spec| spec.server(0).id());
    let arguments = [
        flag("name", &spec.name),
        flag("worker-addr", &host_port(&deployment.listen_host(&spec.host), spec.port)),
        flag("advertise-addr", &host_port(&spec.host, spec.port)),
        flag("log-file", instance.log_dir.join("dm-worker.log").as_str()),
        flag("join", &masters(deployment.joins.unwrap_or(deployment.topology))),
        flag("config", "conf/dm-worker.toml"),
    ];
    exec(&spec.numa_node, "bin/dm-worker/dm-worker", &arguments, &to_files(instance))
}

fn prometheus(deployment: &Deployment<'_>, instance: &Instance) -> String {
    let spec =
        spec_of(&deployment.topology.monitoring_servers, instance, |spec| spec.server(0).id());
    let deploy = &instance.deploy_dir;
    let mut text = tee(&instance.log_dir, instance.role.as_str());
    if spec.ng_port > 0 {
        text += &format!(
            "if [ -x bin/ng-monitoring-server ]; then\n    bin/ng-monitoring-server --config {} > /dev/null 2>&1 &\nfi\n\n",
            quoted_value(deploy.join("conf/ngmonitoring.toml").as_str())
        );
    }
    let mut arguments = vec![
        flag("config.file", deploy.join("conf/prometheus.yml").as_str()),
        flag("web.listen-address", &format!(":{}", spec.port)),
        flag("web.external-url", &format!("http://{}/", host_port(&spec.host, spec.port))),
        "--web.enable-admin-api".to_owned(),
        flag("log.level", "info"),
    ];
    if spec.enable_prom_agent_mode {
        arguments.push(flag("enable-feature", "agent"));
    } else {
        arguments.push(flag(
            "storage.tsdb.path",
            instance.data_dirs.first().map_or("", |dir| dir.as_str()),
        ));
    }
    arguments.extend(spec.additional_args.iter().map(|argument| quote(argument)));
    if !spec.enable_prom_agent_mode {
        let size = &spec.storage_retention_size;
        let time = if spec.storage_retention_time.is_empty() {
            &spec.storage_retention
        } else {
            &spec.storage_retention_time
        };
        if is_amount(size, &["B", "KB", "MB", "GB", "TB", "PB", "EB"]) {
            arguments.push(flag("storage.tsdb.retention.size", size));
        }
        arguments.push(flag(
            "storage.tsdb.retention.time",
            if is_amount(time, &["d"]) { time } else { "30d" },
        ));
    }
    text + &exec(&spec.numa_node, "bin/prometheus/prometheus", &arguments, "")
}

/// A whole number and one of these units, as TiUP takes retention.
fn is_amount(text: &str, units: &[&str]) -> bool {
    units.iter().any(|unit| {
        text.strip_suffix(unit).is_some_and(|number| {
            number.starts_with(|c: char| matches!(c, '1'..='9'))
                && number.bytes().all(|c| c.is_ascii_digit())
        })
    })
}

fn grafana(instance: &Instance) -> String {
    let deploy = &instance.deploy_dir;
    let arguments = [
        flag("homepath", deploy.join("bin").as_str()),
        flag("config", deploy.join("conf/grafana.ini").as_str()),
    ];
    format!("export LANG=en_US.UTF-8\n\n{}", exec("", "bin/bin/grafana-server", &arguments, ""))
}

fn alertmanager(deployment: &Deployment<'_>, instance: &Instance) -> String {
    let all = &deployment.topology.alertmanager_servers;
    let spec = spec_of(all, instance, |spec| spec.server(0).id());
    let listen = if spec.listen_host.is_empty() {
        deployment.listen_host(&spec.host)
    } else {
        spec.listen_host.clone()
    };
    let mut arguments = vec![
        flag("config.file", "conf/alertmanager.yml"),
        flag("storage.path", instance.data_dirs.first().map_or("", |dir| dir.as_str())),
        flag("data.retention", "120h"),
        flag("log.level", "info"),
        flag("web.listen-address", &host_port(&listen, spec.web_port)),
        flag("web.external-url", &format!("http://{}", host_port(&spec.host, spec.web_port))),
    ];
    arguments.extend(
        all.iter().map(|peer| flag("cluster.peer", &host_port(&peer.host, peer.cluster_port))),
    );
    arguments.extend(spec.additional_args.iter().map(|argument| quote(argument)));
    arguments.push(flag("cluster.listen-address", &host_port(&spec.host, spec.cluster_port)));
    tee(&instance.log_dir, instance.role.as_str())
        + &exec(&spec.numa_node, "bin/alertmanager/alertmanager", &arguments, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_bash_are_one_word_each() {
        assert_eq!(quote("--log.format=json"), "--log.format=json");
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("$(x)'y"), r"'$(x)'\''y'");
        assert_eq!(quote(""), "''");
        assert_eq!(quoted_value("a$b`c\"d\\"), r#""a\$b\`c\"d\\""#);
    }

    #[test]
    fn retention_is_an_amount_or_the_default() {
        assert!(is_amount("15d", &["d"]));
        for bad in ["", "d", "015d", "1.5d", "15h"] {
            assert!(!is_amount(bad, &["d"]), "{bad}");
        }
        assert!(is_amount("10GB", &["B", "GB"]));
    }
}
