//! `exec`: the operator's own command on the cluster's hosts.

use std::collections::BTreeSet;
use std::time::Duration;

use dmup_core::ids::HostId;
use dmup_core::instance::Instance;
use dmup_core::selection::select;
use dmup_exec::ports::{Certainty, EffectError};
use dmup_wire::message::Ran;
use futures::{StreamExt, stream};

use crate::args::{ExecArgs, Format};
use crate::context::{Context, bad_selection};
use crate::failure::{Failure, Kind};
use crate::manner::Manner;

pub(crate) async fn run(args: &ExecArgs, context: &Context) -> Result<(), Failure> {
    if context.printer.manner == Manner::TiupDm && args.command.contains("{{") {
        // TiUP would put a value there: a script that counts on it must not have something else run.
        return Err(Failure::new(
            Kind::Usage,
            "dmup puts nothing into the command where it has `{{`",
        )
        .hint("`dmup exec` gives it to the shell as it is"));
    }
    let known = context.cluster(&args.cluster)?;
    let selected = on_hosts_of(args, &known.meta.instances())?;
    let fleet = known.fleet(context, &selected).await?;
    let silent = fleet.silent().await;
    if !silent.is_empty() {
        return Err(Failure::refused("not every host can be reached")
            .because(silent)
            .hint("-N and -R say which hosts are meant"));
    }
    let within = Duration::from_secs(context.global.wait_timeout);
    let hosts: Vec<HostId> = fleet.hosts().cloned().collect();
    let answers: Vec<(HostId, Result<Ran, EffectError>)> = stream::iter(hosts)
        .map(|host| {
            let fleet = &fleet;
            async move {
                let answer = fleet.shell(&host, &args.command, args.sudo, within).await;
                (host, answer)
            }
        })
        .buffered(context.concurrency())
        .collect()
        .await;
    match context.global.format {
        Format::Default => {
            for (host, answer) in &answers {
                if let Ok(ran) = answer {
                    context.printer.data(text(host, ran).trim_end_matches('\n'));
                }
            }
        }
        Format::Json => {
            let hosts: Vec<_> = answers
                .iter()
                .map(|(host, answer)| match answer {
                    Ok(ran) => serde_json::json!({
                        "host": host, "exit_status": ran.status, "signal": ran.signal,
                        "stdout": ran.stdout, "stderr": ran.stderr,
                        "dropped_bytes": ran.dropped_bytes,
                    }),
                    Err(error) => serde_json::json!({ "host": host, "error": error.to_string() }),
                })
                .collect();
            context.printer.data(serde_json::json!({ "format": 1, "hosts": hosts }));
        }
    }
    verdict(&answers)
}

/// The instances whose hosts are meant. TiUP's `-N` takes hosts here, and nodes everywhere else: we take either.
fn on_hosts_of(args: &ExecArgs, all: &[Instance]) -> Result<Vec<Instance>, Failure> {
    let mut nodes = BTreeSet::new();
    for word in &args.nodes {
        let is_on = |it: &&Instance| it.host.as_str() == word || it.ssh_host.as_str() == word;
        let there: Vec<&Instance> = all.iter().filter(is_on).collect();
        if there.is_empty() {
            nodes.insert(word.clone());
        }
        nodes.extend(there.into_iter().map(|it| it.id.to_string()));
    }
    let nodes: Vec<String> = nodes.into_iter().collect();
    select(all, &nodes, &args.roles).map_err(|bad| bad_selection(&bad))
}

/// What one host said.
fn text(host: &HostId, ran: &Ran) -> String {
    let mut text = format!("{host}: {}\n", ended(ran));
    for (name, said) in [("stdout", &ran.stdout), ("stderr", &ran.stderr)] {
        if !said.is_empty() {
            text.push_str(&format!("{name}:\n{}\n", said.trim_end_matches('\n')));
        }
    }
    if ran.dropped_bytes > 0 {
        text.push_str(&format!("({} more bytes are not shown)\n", ran.dropped_bytes));
    }
    text
}

fn ended(ran: &Ran) -> String {
    match (ran.status, ran.signal) {
        (Some(status), _) => format!("exit status {status}"),
        (None, Some(signal)) => format!("ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

fn verdict(answers: &[(HostId, Result<Ran, EffectError>)]) -> Result<(), Failure> {
    let mut failed = Vec::new();
    let mut is_unknown = false;
    for (host, answer) in answers {
        match answer {
            Ok(ran) if ran.status == Some(0) => {}
            Ok(ran) => failed.push(format!("{host}: {}", ended(ran))),
            Err(error) => {
                is_unknown |= error.certainty == Certainty::Unknown;
                failed.push(error.to_string());
            }
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    let kind = if is_unknown { Kind::Unknown } else { Kind::Failed };
    let count = failed.len();
    Err(Failure::new(kind, format_args!("run the command on {count} of {} host(s)", answers.len()))
        .because(failed)
        .now("dmup does not know what the command did; it was given to every host once"))
}

#[cfg(test)]
mod tests {
    use dmup_core::topology::Topology;

    use super::*;

    #[test]
    fn hosts_and_nodes_mean_the_same_here() {
        let all = Topology::parse(
            "master_servers:\n  - host: a\n    manage_host: z\nworker_servers:\n  - host: a\n  - host: b\n",
        )
        .unwrap()
        .instances();
        let ids = |nodes: &[&str], roles: &[&str]| -> Result<Vec<String>, Failure> {
            let words = |from: &[&str]| from.iter().map(ToString::to_string).collect();
            let args = ExecArgs {
                cluster: "c".to_owned(),
                command: "ls".to_owned(),
                sudo: false,
                nodes: words(nodes),
                roles: words(roles),
            };
            Ok(on_hosts_of(&args, &all)?.iter().map(|it| it.id.to_string()).collect())
        };
        assert_eq!(ids(&[], &[]).unwrap(), ["a:8261", "a:8262", "b:8262"]);
        assert_eq!(ids(&["a"], &[]).unwrap(), ["a:8261", "a:8262"]);
        assert_eq!(ids(&["z"], &[]).unwrap(), ["a:8261"]);
        assert_eq!(ids(&["b:8262", "a"], &["dm-worker"]).unwrap(), ["a:8262", "b:8262"]);
        for (nodes, roles) in [(&["c"][..], &[][..]), (&["a:1"], &[]), (&["b"], &["dm-master"])] {
            assert_eq!(ids(nodes, roles).unwrap_err().kind, Kind::Refused, "{nodes:?} {roles:?}");
        }
    }
}
