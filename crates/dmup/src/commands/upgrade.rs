//! `upgrade`: another version of DM for the whole cluster, node by node, as one run with the order, gates, journal and way
//! back of `patch`.
//!
//! dm-master first, as TiUP has it: a master of the new version knows how to talk to workers of the old one, and
//! brings what etcd has up to date. Unit, run script and configuration of a node of DM go with its build, in its own
//! window. Alert rules and dashboards, which nothing depends on, are written before the first turn, and what reads them
//! starts again after DM. The version stands in `meta.yaml` once every node of DM has it; a run that ended
//! before goes on with the same command: what has its build and its files already is left alone.

use std::collections::{BTreeMap, BTreeSet};

use camino::Utf8PathBuf;
use dmup_core::ids::InstanceId;
use dmup_core::instance::{Instance, Role};
use dmup_core::journal::TurnEnd;
use dmup_core::plan::{Purpose, TargetBuild, Warning};
use dmup_core::version::DmVersion;
use dmup_mirror::mirror::Version;
use dmup_mirror::package::{Release, release};

use super::obtaining::Obtaining;
use super::patch::{Order, Rolled, roll_out, target_of};
use super::reload::{Compared, compare_all};
use super::run;
use crate::args::UpgradeArgs;
use crate::context::{Context, Known, state_failure};
use crate::failure::{Failure, Kind, chain};
use crate::progress::Progress;

pub(crate) async fn run(args: &UpgradeArgs, context: &Context) -> Result<(), Failure> {
    let known = context.cluster(&args.cluster)?;
    known.refuse_unfinished_scale_out(args.offline)?;
    let to: DmVersion = args.version.parse().map_err(|error| {
        Failure::new(Kind::Usage, format_args!("upgrade {}: {error}", known.name))
    })?;
    let from = &known.meta.version;
    if is_older(&to, from) && !args.ignore_version_check {
        return Err(Failure::refused(format_args!("{} has {from}, which is newer than {to}", known.name))
            .hint("--ignore-version-check goes back all the same: DM does not promise that an older version reads its data"));
    }
    if !args.plan {
        known.refuse_unfinished_runs()?;
    }
    let _lock = if args.plan { None } else { Some(known.lock("upgrade")?) };

    let all = known.meta.instances();
    let scratch = context.scratch()?;
    let release = obtain(&all, &to, scratch.path(), context).await?;
    let (targets, exceptions) = targets_of(&release, &all);
    let Compared { differing, silent } =
        compare_all(&known, &all, &to, scratch.path(), context).await?;
    let (mut of_dm, mut of_monitoring) = (Vec::new(), Vec::new());
    for (instance, why) in all.iter().filter_map(|it| Some((it, silent.get(&it.id)?))) {
        let list = if instance.role.is_dm() { &mut of_dm } else { &mut of_monitoring };
        list.push(format!("{}: {why}", instance.id));
    }
    if !of_dm.is_empty() {
        return Err(Failure::refused(format_args!("compare the files of {}", known.name))
            .because(of_dm)
            .hint("an upgrade needs every host of DM"));
    }
    for why in of_monitoring {
        context.printer.talk(format_args!("note: monitoring that stays as it is: {why}"));
    }
    let (mut changes, mut texts, mut before) = (BTreeMap::new(), Vec::new(), Vec::new());
    let mut selected: BTreeSet<InstanceId> = all
        .iter()
        .filter(|it| it.role.is_dm() || reads_dm(it, args.offline || to == *from))
        .filter(|it| !silent.contains_key(&it.id))
        .map(|it| it.id.clone())
        .collect();
    for it in differing {
        if it.instance.role.is_dm() {
            let (change, both) = it.change();
            changes.insert(it.instance.id.clone(), change);
            texts.extend(both);
        } else {
            it.say(context);
            if !args.offline {
                selected.insert(it.instance.id);
            }
            before.push((it.instance.host, it.after));
        }
    }
    for line in dropped_hotfixes(&known)? {
        context.printer.talk(line);
    }
    let selected: Vec<Instance> = all.into_iter().filter(|it| selected.contains(&it.id)).collect();
    let order = Order {
        what: "upgrade",
        with: to.as_str(),
        parcel: &release.parcel,
        targets,
        exceptions,
        purpose: Purpose::Upgrade { to: to.clone(), texts: changes },
        texts: &texts,
        before: &before,
        selected: &selected,
        offline: args.offline,
        owed: None,
        plan_only: args.plan,
        apply_plan: None,
        rollout: &args.rollout,
        asks: !context.global.yes,
    };
    match roll_out(&order, &known, context).await? {
        Rolled::Shown => return Ok(()),
        Rolled::NothingToDo { .. } if args.plan => {
            context.printer.talk(format_args!("Nothing to do: every node of DM runs {to} already"));
            return Ok(());
        }
        Rolled::NothingToDo { .. } => {
            context.printer.talk(format_args!("every node of DM runs {to} already"));
            known.record_version(&to, true)?;
        }
        Rolled::Ran { report, plan, .. } => {
            let ended = run::end(&report, plan.kind, &known, context);
            for warning in &plan.warnings {
                if let Warning::Deferred { .. } = warning {
                    context.printer.talk(format_args!("note: {warning}"));
                }
            }
            if known.cluster.meta().map_err(state_failure)?.version != to {
                context.printer.talk(format_args!(
                    "Not every node runs {to} yet, so {from} stays recorded: `dmup upgrade {} {to}` goes on",
                    known.name
                ));
                return ended;
            }
            ended?;
        }
    }
    context.printer.talk(format_args!("Upgraded cluster `{}` successfully", known.name));
    Ok(())
}

/// Whether an instance reads what DM's package brings for monitoring, so that it starts again with another version.
fn reads_dm(instance: &Instance, stays: bool) -> bool {
    match instance.role {
        Role::Prometheus | Role::Grafana => !stays,
        Role::DmMaster
        | Role::DmWorker
        | Role::Alertmanager
        | Role::NodeExporter
        | Role::BlackboxExporter => false,
    }
}

/// All packages of DM that the cluster needs, as one.
async fn obtain(
    all: &[Instance],
    to: &DmVersion,
    scratch: &camino::Utf8Path,
    context: &Context,
) -> Result<Release, Failure> {
    let needed: BTreeSet<(Role, &str, &str)> = all
        .iter()
        .filter(|it| it.role.is_dm())
        .map(|it| (it.role, it.os.as_str(), it.arch.as_str()))
        .collect();
    let progress = Progress::new(context.global.format, context.surroundings.stderr_is_terminal);
    let mut obtaining = Obtaining::new(context);
    let mut packages: BTreeMap<(Role, String), Utf8PathBuf> = BTreeMap::new();
    let mut missing = Vec::new();
    for (role, os, arch) in needed {
        let version = Version::Exact(to.clone());
        match obtaining.package(role, version, os, arch, &progress).await {
            Ok(path) => {
                packages.insert((role, arch.to_owned()), path);
            }
            Err(why) => missing.push(why),
        }
    }
    obtaining.say_warnings();
    if !missing.is_empty() {
        progress.end();
        let failure =
            Failure::refused(format_args!("not every package of {to} is there")).because(missing);
        return Err(obtaining.hints.into_iter().fold(failure, Failure::hint));
    }
    progress.under_way(&format!("open the packages of {to}"));
    let opened = release(&packages, scratch).map_err(|error| Failure::refused(chain(&error)));
    progress.end();
    opened
}

/// What a release brings: per role, and for instances of another architecture than the first of their role.
fn targets_of(
    release: &Release,
    all: &[Instance],
) -> (BTreeMap<Role, TargetBuild>, BTreeMap<InstanceId, TargetBuild>) {
    let (mut targets, mut exceptions) = (BTreeMap::new(), BTreeMap::new());
    for instance in all {
        let part = release.parts.get(&(instance.role, instance.arch.clone()));
        let Some(target) = part.map(target_of) else { continue };
        let usual = targets.entry(instance.role).or_insert_with(|| target.clone());
        if *usual != target {
            exceptions.insert(instance.id.clone(), target);
        }
    }
    (targets, exceptions)
}

/// By number only; a build's suffix says nothing of age.
fn is_older(to: &DmVersion, from: &DmVersion) -> bool {
    match (to.numbers(), from.numbers()) {
        (Some(to), Some(from)) => to < from,
        (Some(_), None) => true,
        (None, _) => false,
    }
}

/// Nodes that run a hotfix, and since when: an official build takes its place.
fn dropped_hotfixes(known: &Known) -> Result<Vec<String>, Failure> {
    let runs = known.runs()?;
    Ok(known
        .meta
        .instances()
        .iter()
        .filter(|it| it.patched)
        .map(|it| {
            let since = runs.iter().rev().find_map(|run| {
                let (plan, folded) = run.content.as_ref().ok()?;
                let turn = plan.turns.iter().find(|turn| turn.instance == it.id)?;
                // A turn that did not come, or was taken back, put nothing there.
                folded.ended.get(&it.id).filter(|end| **end == TurnEnd::Changed)?;
                Some((run.id.as_str(), turn.to.clone()))
            });
            match since {
                Some((run, build)) => {
                    format!("note: {} drops its hotfix {build}, there since run {run}", it.id)
                }
                None => format!("note: {} drops its hotfix; no run of dmup put it there", it.id),
            }
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_smaller_number_is_older() {
        let older = |to: &str, from: &str| is_older(&to.parse().unwrap(), &from.parse().unwrap());
        assert!(older("v5.3.0", "v8.1.0") && older("v8.1.0", "nightly"));
        assert!(!older("v8.1.0", "v8.1.0") && !older("v8.1.1", "v8.1.0"));
        assert!(!older("v5.3.0-20211230", "v5.3.0") && !older("nightly", "v8.1.0"));
    }
}
