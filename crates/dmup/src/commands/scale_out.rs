//! `scale-out`: adds instances to a cluster, with the hotfix that the cluster has.
//!
//! In: a topology file with the new servers only. Everything is looked at before
//! anything is touched. New instances get the package that `patch --overwrite`
//! kept, else the official one. They are recorded before they are started, as
//! TiUP does. Running masters and workers are not restarted.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use dmup_core::exporters::Exporters;
use dmup_core::ids::HostId;
use dmup_core::instance::{Instance, Role};
use dmup_core::inventory::DmSeen;
use dmup_core::layout::Deployment;
use dmup_core::plan::{is_up, leader_of};
use dmup_core::preflight::Owner;
use dmup_core::topology::{Meta, Topology};
use dmup_exec::ports::Dm;
use dmup_remote::HostAddress;
use dmup_remote::dm_api::DmClient;
use dmup_remote::ssh::Reach;
use dmup_wire::message::UnitAction;

use super::laying_out::{self, Obstacles, Site, Traces};
use super::obtaining::Obtaining;
use super::refreshing::{POLL, refresh};
use super::{exporters, units};
use crate::args::ScaleOutArgs;
use crate::context::{Context, state_failure, unrecorded};
use crate::failure::Failure;
use crate::pointing;
use crate::progress::Progress;

pub(crate) async fn run(args: &ScaleOutArgs, context: &Context) -> Result<(), Failure> {
    let _lock = context.cluster(&args.cluster)?.lock("scale-out")?;
    // Read under the lock: what is saved in the end must be built on what is there now.
    let known = context.cluster(&args.cluster)?;
    known.refuse_unfinished_scale_out(false)?;
    known.refuse_unfinished_runs()?;
    let old = &known.meta.topology;
    let mut new = read_new(args, old)?;
    laying_out::refuse_conflicts(&old.merged(&new), &args.topology, Some(&known.name), context)?;

    let progress = Progress::new(context.global.format, context.surroundings.stderr_is_terminal);
    progress.under_way("connect to the new hosts");
    let familiar: BTreeSet<HostId> =
        known.meta.instances().into_iter().map(|it| it.ssh_host).collect();
    let is_new = |it: &&Instance| !familiar.contains(&it.ssh_host);
    let instances = new.instances();
    let strange_hosts = HostAddress::of_instances(instances.iter().filter(is_new));
    let reach = context.reach(old.global.ssh_type.as_str());
    let mut obstacles = Obstacles::default();
    let mut silent = BTreeSet::new();
    // Hosts that have the cluster's key already need no other.
    let first = if strange_hosts.is_empty() {
        None
    } else {
        let login = laying_out::login(&args.login, context)?;
        let systemd = laying_out::systemd_mode_of(&login.user, &known.meta.user, old);
        let keys = known.host_keys();
        let fleet = context
            .fleet(login.clone(), reach.clone(), systemd, &keys, strange_hosts.clone())
            .await?;
        silent = laying_out::meet(&fleet, &strange_hosts, &mut new, &mut obstacles).await;
        Some((fleet, login))
    };

    progress.under_way("open the packages");
    let scratch = context.scratch()?;
    let instances = new.instances();
    // Once per machine: those that the cluster has already have theirs.
    let mut pairs = old.merged(&new).exporters();
    pairs.retain(|pair| !familiar.contains(&pair.ssh_host));
    let version = &known.meta.version;
    let packages = laying_out::open_packages(
        &instances,
        &pairs,
        version,
        scratch.path(),
        &progress,
        Obtaining::new(context),
        &mut obstacles,
    )
    .await;
    let hotfixes = laying_out::open_hotfixes(&known.cluster, &instances, scratch.path())?;
    let patched: Vec<&str> = instances
        .iter()
        .filter(|it| hotfixes.contains_key(&it.role))
        .map(|it| it.id.as_str())
        .collect();
    new.mark_patched(&patched, true);
    let instances = new.instances();
    let mut merged = old.merged(&new);
    merged.set_tls_paths();
    let all = merged.instances();

    progress.under_way("look at the hosts");
    let fleet = known.fleet(context, &all).await?;
    let dm = known.dm(context, &all).await?;
    let (strange, own): (Vec<Instance>, Vec<Instance>) =
        instances.iter().cloned().partition(|it| is_new(&it));
    let site = Site {
        owner: Owner { user: &known.meta.user, systemd: old.systemd_mode() },
        is_playground: matches!(&reach, Reach::Local { playground: Some(_) }),
        joins: true,
    };
    let mut looked = laying_out::look(&fleet, &own, &[], &packages, &silent, site).await;
    if let Some((first, _)) = &first {
        looked.extend(laying_out::look(first, &strange, &pairs, &packages, &silent, site).await);
    }
    progress.end();
    obstacles.add_findings(looked.findings, context);
    if instances.iter().any(|it| it.role.is_dm()) {
        match dm.look(&[]).await {
            Ok(seen) => obstacles.add(in_the_way(&instances, &known.meta.instances(), &seen)),
            Err(error) => obstacles.add([error.to_string()]),
        }
    }
    obstacles.refuse(|count| {
        format!("cannot scale {} out now: {count} thing(s) in the way", known.name)
    })?;
    let deployment = Deployment {
        joins: Some(old),
        ..Deployment::new(&known.name, &known.meta.version, &merged)
    };
    let mut laid = laying_out::render(&deployment, &instances, &pairs)?;
    laying_out::add_monitoring(&mut laid, &packages, &known.name);
    progress.end();
    laying_out::agree(&known.name, version, &new, &instances, context)?;

    let step = |text: &str| {
        progress.say(&format!("+ {text}"));
        progress.under_way(text);
    };
    if merged.global.enable_tls {
        step("Generate TLS certificates");
        laying_out::add_certificates(&mut laid, &known.cluster)?;
    }
    let work = async {
        if let Some((first, login)) = &first {
            let user = &known.meta.user;
            if !(matches!(reach, Reach::Local { .. }) && *user == login.user) {
                step("Initialize target hosts");
                let key = known.cluster.ensure_keys().map_err(state_failure)?;
                laying_out::prepare_hosts(first, &merged, user, &login.user, &key.public).await?;
            }
            first.disconnect().await;
        }
        let is_left = |it: &&Exporters| looked.left.contains(&it.host);
        let left: Vec<_> = pairs.iter().filter(is_left).cloned().collect();
        if !left.is_empty() {
            step("Stop the exporters that are left there");
            let stopped = exporters::order(&fleet, &left, UnitAction::Stop, context).await;
            stopped.map_err(|failure| failure.now("nothing was laid out; some may be stopped"))?;
        }
        let traces = Traces::of(&laid, &looked.left);
        let meta = Meta { topology: merged.clone(), ..known.meta.clone() };
        let until_recorded = async {
            step("Deploy the new instances");
            laying_out::lay_out(&fleet, laid, &packages, &hotfixes, context).await?;
            step("Enable the services at boot");
            let refs: Vec<&Instance> = instances.iter().collect();
            units::order(&fleet, &refs, UnitAction::Enable, context).await?;
            exporters::order(&fleet, &pairs, UnitAction::Enable, context).await?;
            known.cluster.save_meta(&meta, &jiff::Zoned::now()).map_err(unrecorded)
        };
        traces.or_take_away(&fleet, until_recorded).await?;

        step("Start the new instances");
        let started = async {
            start(&instances, &fleet, &dm, context).await?;
            exporters::bring_up(&fleet, &pairs, context).await
        };
        started.await.map_err(|failure| {
            failure
                .hint(format_args!("they are part of {0} now: `dmup start {0} -N …`", known.name))
                .hint(format_args!("or take them off again: `dmup scale-in {} -N …`", known.name))
        })?;
        step("Refresh the configuration of the others");
        let before = known.meta.instances();
        for note in refresh(&before, &known.name, &meta, &fleet, context).await {
            context.printer.talk(format_args!("note: {note}"));
        }
        Ok::<_, Failure>(())
    };
    context.with_lease(&known.name, "scale-out", &fleet, work).await?;
    progress.end();
    context.printer.talk(format_args!("Scaled cluster `{}` out successfully", known.name));
    Ok(())
}

/// The new servers, with absolute dirs.
fn read_new(args: &ScaleOutArgs, old: &Topology) -> Result<Topology, Failure> {
    let path = &args.topology;
    let text = laying_out::read_text(path)?;
    let mut new = Topology::parse_scale_out(&text, old)
        .map_err(|error| pointing::at(&format!("{path}: {error}"), path.as_str(), &text, &error))?;
    new.expand_dirs();
    if new.instances().is_empty() {
        return Err(Failure::refused(format_args!("{path} has no servers")));
    }
    Ok(new)
}

/// What keeps DM from taking new members.
fn in_the_way(new: &[Instance], old: &[Instance], dm: &DmSeen) -> Vec<String> {
    let mut findings = Vec::new();
    if leader_of(dm).is_none() {
        findings.push("the masters have no leader: nobody can join".to_owned());
    }
    // A new member counts for the quorum before it has caught up.
    if new.iter().any(|it| it.role == Role::DmMaster) {
        for master in old.iter().filter(|it| it.role == Role::DmMaster) {
            if let Err(why) = is_up(master, None, Some(dm)) {
                findings.push(format!(
                    "{}: {why}; a master can only be added while all others are up",
                    master.id
                ));
            }
        }
    }
    findings
}

/// Masters one by one, each when the one before is a member; then the rest.
async fn start(
    instances: &[Instance],
    fleet: &dmup_remote::Fleet,
    dm: &DmClient,
    context: &Context,
) -> Result<(), Failure> {
    let (masters, others): (Vec<Instance>, Vec<Instance>) =
        instances.iter().cloned().partition(|it| it.role == Role::DmMaster);
    for master in masters {
        units::bring_up(fleet, None, std::slice::from_ref(&master), context).await?;
        await_joined(std::slice::from_ref(&master), dm, context).await?;
    }
    units::bring_up(fleet, None, &others, context).await?;
    await_joined(&others, dm, context).await
}

/// Waits until DM lists the new members as alive.
async fn await_joined(new: &[Instance], dm: &DmClient, context: &Context) -> Result<(), Failure> {
    let members: Vec<&Instance> = new.iter().filter(|it| it.role.is_dm()).collect();
    let began = Instant::now();
    while !members.is_empty() {
        let missing: Vec<String> = match dm.look(&[]).await {
            Ok(seen) => members
                .iter()
                .filter_map(|it| is_up(it, None, Some(&seen)).err().map(|why| (it, why)))
                .map(|(it, why)| format!("{}: {why}", it.id))
                .collect(),
            Err(error) => vec![error.to_string()],
        };
        if missing.is_empty() {
            break;
        }
        if began.elapsed() > Duration::from_secs(context.global.wait_timeout) {
            return Err(Failure::failed("wait until the new instances have joined")
                .because(missing)
                .now("they are recorded and started; the rest of the cluster is as before"));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmup_core::inventory::MasterSeen;

    fn instances(text: &str) -> Vec<Instance> {
        let mut topology = Topology::parse(text).unwrap();
        topology.expand_dirs();
        topology.instances()
    }

    fn seen(master: &Instance, alive: bool) -> MasterSeen {
        MasterSeen {
            name: master.name.clone(),
            instance: Some(master.id.clone()),
            alive,
            leader: alive,
            calls_leader: None,
            etcd_healthy: Some(alive),
            release: None,
        }
    }

    #[test]
    fn a_master_is_added_only_while_all_others_are_up_and_a_worker_needs_a_leader() {
        let old = instances(
            "master_servers:\n  - host: 10.0.1.1\n  - host: 10.0.1.2\nworker_servers:\n  - host: 10.0.1.1\n",
        );
        let dm = DmSeen {
            masters: vec![seen(&old[0], true), seen(&old[1], false)],
            ..DmSeen::default()
        };
        let worker = [old[2].clone()];
        let master = [old[0].clone()];
        assert_eq!(in_the_way(&worker, &old, &dm), Vec::<String>::new());
        assert_eq!(in_the_way(&master, &old, &dm).len(), 1);
        assert_eq!(in_the_way(&worker, &old, &DmSeen::default()).len(), 1);
    }
}
