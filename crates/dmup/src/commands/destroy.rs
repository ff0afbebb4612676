//! `destroy`: takes a cluster off its hosts, data included.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::ids::HostId;
use dmup_core::instance::{Instance, Role};
use dmup_core::selection::{BadSelection, select};
use dmup_exec::ports::EffectError;
use dmup_remote::Fleet;
use dmup_wire::message::{ForgetKey, UnitAction};
use futures::future::join_all;

use super::{exporters, units};
use crate::args::DestroyArgs;
use crate::ask;
use crate::context::{Context, Known, bad_selection, state_failure};
use crate::failure::{Failure, chain};
use crate::progress::Progress;

/// TiUP's sentence.
const SENTENCE: &str = "Yes, I know my cluster and data will be deleted.";

pub(crate) async fn run(args: &DestroyArgs, context: &Context) -> Result<(), Failure> {
    let known = context.cluster(&args.cluster)?;
    let instances = known.meta.instances();
    let kept_roles =
        select(&instances, &[], &args.retain_role_data).map_err(|bad| bad_selection(&bad))?;
    let kept_roles: Vec<Role> = if args.retain_role_data.is_empty() {
        Vec::new()
    } else {
        kept_roles.iter().map(|it| it.role).collect()
    };
    let is_meant =
        |node: &String, it: &Instance| node == it.id.as_str() || node == it.host.as_str();
    let kept_nodes = &args.retain_node_data;
    let unknown: Vec<String> = kept_nodes
        .iter()
        .filter(|node| !instances.iter().any(|it| is_meant(node, it)))
        .cloned()
        .collect();
    // A slip of the pen must not cost the data that was to be kept.
    if !unknown.is_empty() {
        let known = instances.iter().map(|it| it.id.clone()).collect();
        return Err(bad_selection(&BadSelection::UnknownNodes { unknown, known }));
    }
    let keeps_data = |it: &Instance| {
        kept_roles.contains(&it.role) || kept_nodes.iter().any(|node| is_meant(node, it))
    };
    if !context.global.yes {
        ask::confirm_by_typing(
            &format!(
                "This destroys the cluster {} on {} instance(s){}.",
                known.name,
                instances.len(),
                if instances.iter().any(keeps_data) {
                    "; the data of some is kept as asked"
                } else {
                    " and its data"
                }
            ),
            SENTENCE,
        )?;
    }
    let lock = known.lock("destroy")?;
    let fleet = known.fleet(context, &instances).await?;
    let progress = Progress::new(context.global.format, context.surroundings.stderr_is_terminal);
    progress.under_way("connect to the hosts");
    let silent = fleet.silent().await;
    if !silent.is_empty() && !args.force {
        return Err(Failure::refused("not every host can be reached")
            .because(silent)
            .hint("--force goes on without them; what lies there stays"));
    }
    progress.end();
    let work = async {
        if let Err(failure) = units::bring_down(&fleet, &instances, context).await
            && !args.force
        {
            return Err(failure);
        }
        let all: Vec<&Instance> = instances.iter().collect();
        if let Err(failure) = units::order(&fleet, &all, UnitAction::Disable, context).await
            && !args.force
        {
            return Err(failure);
        }
        let kept: Vec<Instance> = instances.iter().filter(|it| keeps_data(it)).cloned().collect();
        let pairs = known.meta.topology.exporters();
        let mut failed = exporters::take_off(&fleet, &pairs, &kept, context).await;
        failed.extend(remove(&fleet, &instances, &[], &known, keeps_data).await);
        Ok::<_, Failure>(failed)
    };
    let failed = context.with_lease(&known.name, "destroy", &fleet, work).await?;
    if !failed.is_empty() && !args.force {
        return Err(Failure::failed("remove the instances")
            .because(failed)
            .now("the services are stopped; some files are still there")
            .hint(format_args!("`dmup destroy {}` again, or with --force", known.name)));
    }
    for text in failed {
        context.printer.talk(format_args!("note: {text}"));
    }
    // Last: a destroy that is given again must still get in.
    let hosts: Vec<HostId> = fleet.hosts().cloned().collect();
    for text in lock_out(&fleet, hosts, &known).await {
        context.printer.talk(format_args!("note: {text}"));
    }
    known.cluster.remove().map_err(state_failure)?;
    drop(lock);
    context.printer.talk(format_args!("Destroyed cluster `{}` successfully", known.name));
    Ok(())
}

/// Takes the cluster's key away on hosts that it has left; answers with what did not work.
pub(crate) async fn lock_out(fleet: &Fleet, hosts: Vec<HostId>, known: &Known) -> Vec<String> {
    let public_key = match known.cluster.public_key() {
        Ok(Some(key)) => key,
        Ok(None) => return Vec::new(),
        Err(error) => return vec![chain(&error)],
    };
    let work = hosts.iter().map(|host| {
        let (user, public_key) = (known.meta.user.clone(), public_key.clone());
        fleet.forget_key(host, ForgetKey { user, public_key })
    });
    join_all(work)
        .await
        .into_iter()
        .filter_map(|it| it.err().map(|error| error.to_string()))
        .collect()
}

/// Units, deploy, data and log folders; hosts that nothing of the cluster is left on forget it.
/// Folders that instances of `rest` have something in stay.
pub(crate) async fn remove(
    fleet: &Fleet,
    instances: &[Instance],
    rest: &[Instance],
    known: &Known,
    keeps_data: impl Fn(&Instance) -> bool,
) -> Vec<String> {
    let mut by_host: BTreeMap<HostId, Vec<Utf8PathBuf>> = BTreeMap::new();
    for instance in instances {
        let paths = by_host.entry(instance.host.clone()).or_default();
        paths.push(known.meta.topology.unit_path(&instance.unit));
        if keeps_data(instance) {
            let holds_data =
                instance.data_dirs.iter().any(|data| data.starts_with(&instance.deploy_dir));
            if holds_data {
                paths.extend(
                    ["bin", "conf", "scripts", "tls", "bin.dmup"]
                        .map(|it| instance.deploy_dir.join(it)),
                );
                continue;
            }
        } else {
            paths.extend(instance.data_dirs.iter().cloned());
        }
        paths.push(instance.log_dir.clone());
        paths.push(instance.deploy_dir.clone());
    }
    let work = by_host.into_iter().map(|(host, mut paths)| {
        let neighbours: Vec<&Instance> = rest.iter().filter(|it| it.host == host).collect();
        paths.retain(|path| !neighbours.iter().any(|it| has_something_in(it, path)));
        let is_last = neighbours.is_empty();
        async move {
            fleet.remove(&host, paths).await?;
            if is_last
                && let Ok(hello) = fleet.hello(&host).await
                && hello.user == known.meta.user.as_str()
            {
                fleet.leave(&host, &known.name).await?;
            }
            Ok::<_, EffectError>(())
        }
    });
    join_all(work)
        .await
        .into_iter()
        .filter_map(|it| it.err().map(|error| error.to_string()))
        .collect()
}

/// Whether an instance would lose something if a folder went away.
pub(crate) fn has_something_in(instance: &Instance, folder: &Utf8Path) -> bool {
    let dirs = [&instance.deploy_dir, &instance.log_dir];
    dirs.into_iter().chain(&instance.data_dirs).any(|dir| dir.starts_with(folder))
}

#[cfg(test)]
mod tests {
    use dmup_core::topology::Topology;

    use super::*;

    #[test]
    fn a_shared_log_folder_stays_as_long_as_somebody_logs_there() {
        let mut topology = Topology::parse(
            "global:\n  log_dir: /var/log/dm\nmaster_servers:\n  - host: 10.0.1.1\nworker_servers:\n  - host: 10.0.1.1\n",
        )
        .unwrap();
        topology.expand_dirs();
        let all = topology.instances();
        assert!(has_something_in(&all[0], &all[1].log_dir));
        assert!(!has_something_in(&all[0], &all[1].deploy_dir));
    }
}
