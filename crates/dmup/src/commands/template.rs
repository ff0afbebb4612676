//! `template`: a topology to begin with.
//!
//! Facts: flags, defaults and the least numbers of servers are TiUP's (1.16.5, components/dm/command/template.go);
//! the texts are our own.

use std::fmt::Write as _;

use dmup_core::topology::Topology;

use crate::args::TemplateArgs;
use crate::context::Context;
use crate::failure::{Failure, Kind, chain};

const MINIMAL: &str = include_str!("../templates/minimal.yaml");
const FULL: &str = include_str!("../templates/full.yaml");

pub(crate) fn run(args: &TemplateArgs, context: &Context) -> Result<(), Failure> {
    let text = if args.full {
        FULL.to_owned()
    } else if args.local {
        local(args)?
    } else {
        MINIMAL.to_owned()
    };
    context.printer.data(text);
    Ok(())
}

/// A topology of the servers that were named.
fn local(args: &TemplateArgs) -> Result<String, Failure> {
    let enough =
        [("--master-servers", &args.master_servers), ("--worker-servers", &args.worker_servers)];
    for (flag, hosts) in enough {
        if hosts.len() < 3 {
            return Err(Failure::new(
                Kind::Usage,
                format_args!("{flag} has {} host(s), at least 3 are needed", hosts.len()),
            ));
        }
    }
    let mut text = String::from("global:\n");
    for (key, value) in [
        ("user", args.user.as_str()),
        ("group", &args.group),
        ("systemd_mode", &args.systemd_mode),
        ("ssh_port", &args.ssh_port.to_string()),
        ("deploy_dir", &args.deploy_dir),
        ("data_dir", &args.data_dir),
        ("arch", &args.arch),
    ] {
        if !value.is_empty() {
            writeln!(text, "  {key}: {value}").expect("a text takes everything");
        }
    }
    for (section, hosts) in [
        ("master_servers", &args.master_servers),
        ("worker_servers", &args.worker_servers),
        ("monitoring_servers", &args.monitoring_servers),
        ("grafana_servers", &args.grafana_servers),
        ("alertmanager_servers", &args.alertmanager_servers),
    ] {
        if hosts.is_empty() {
            continue;
        }
        writeln!(text, "{section}:").expect("a text takes everything");
        for host in hosts {
            writeln!(text, "  - host: {host}").expect("a text takes everything");
        }
    }
    match Topology::parse(&text) {
        Ok(_) => Ok(text),
        Err(error) => Err(Failure::new(
            Kind::Usage,
            format_args!("these flags make no topology: {}", chain(&error)),
        )
        .because([text.trim_end().to_owned()])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_can_be_deployed() {
        for text in [MINIMAL, FULL] {
            let topology = Topology::parse(text).unwrap();
            assert_eq!(topology.instances().len(), 9);
        }
    }

    #[test]
    fn what_is_commented_out_can_be_deployed_as_well() {
        // Words after a second `#` explain; what is left is YAML.
        let uncommented: String = FULL
            .lines()
            .filter_map(|line| {
                let setting = line.trim_start();
                let Some(rest) = setting.strip_prefix("# ") else {
                    return Some(format!("{line}\n"));
                };
                let indent = &line[..line.len() - setting.len()];
                let is_setting = rest.trim_start().split_once(':').is_some_and(|(key, _)| {
                    !key.is_empty()
                        && key.chars().all(|c| c.is_ascii_lowercase() || "_-.".contains(c))
                });
                is_setting.then(|| format!("{indent}{rest}\n"))
            })
            .collect();
        let topology =
            Topology::parse(&uncommented).unwrap_or_else(|error| panic!("{error}\n{uncommented}"));
        assert!(topology.monitored.is_some());
    }
}
