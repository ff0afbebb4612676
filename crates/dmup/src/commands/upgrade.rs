//! `upgrade`: another version of DM for the whole cluster, node by node, as one run with the order, gates, journal and way
//! back of `patch`.
//!
//! dm-master first, as TiUP has it: a master of the new version knows how to talk to workers of the old one, and
//! brings what etcd has up to date. Unit, run script and configuration of a node go with its build, in its own
//! window. Monitoring and exporters come after DM, each where its package has another executable than lies there, or a file
//! differs; what is in their way, or goes wrong with them, is told, and DM does not wait for it. The version stands in
//! `meta.yaml` once every node of DM has it; a run that ended before goes on with the same command: what has its
//! build and its files already is left alone.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::exporters::Exporters;
use dmup_core::ids::InstanceId;
use dmup_core::instance::{Instance, Role};
use dmup_core::inventory::Inventory;
use dmup_core::journal::TurnEnd;
use dmup_core::plan::{HotfixRequest, Kind as RunKind, Plan, Purpose, TargetBuild, plan_hotfix};
use dmup_core::report::{Report, RunEnd};
use dmup_core::version::DmVersion;
use dmup_mirror::package::Parcel;

use super::exporters;
use super::laying_out::{Obstacles, Packages, open_packages};
use super::obtaining::Obtaining;
use super::patch::{allowances_of, policy_of, spec_of};
use super::reload::{Compared, compare_all};
use super::rolling::{self, RollOut, Rolled};
use crate::args::UpgradeArgs;
use crate::context::{Context, Known, state_failure};
use crate::failure::{Failure, Kind};
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

    let mut all = known.meta.instances();
    let fleet = known.fleet(context, &all).await?;
    let pairs = known.meta.topology.exporters();
    all.extend(exporters::as_instances(&fleet, &pairs, context).await);
    let scratch = context.scratch()?;
    let packages = obtain(&all, &pairs, &to, scratch.path(), context).await?;
    let Compared { differing, silent } =
        compare_all(&known, &to, &all, &packages, &fleet, context).await?;
    let (mut of_dm, mut of_monitoring) = (Vec::new(), Vec::new());
    for (instance, why) in all.iter().filter_map(|it| Some((it, silent.get(&it.id)?))) {
        let list = if instance.role.is_dm() { &mut of_dm } else { &mut of_monitoring };
        list.push(format!("{} ({}): {why}", instance.id, instance.role));
    }
    if !of_dm.is_empty() {
        return Err(Failure::refused(format_args!("compare the files of {}", known.name))
            .because(of_dm)
            .hint("an upgrade needs every host of DM"));
    }
    for why in of_monitoring {
        context.printer.talk(format_args!("note: monitoring that stays as it is: {why}"));
    }
    let (mut changes, mut texts) = (BTreeMap::new(), Vec::new());
    for it in differing {
        let (change, both) = it.change();
        changes.insert(it.instance.id, change);
        texts.extend(both);
    }
    for line in dropped_hotfixes(&known)? {
        context.printer.talk(line);
    }
    let parcels: Vec<&Parcel> = packages.values().map(|package| &package.parcel).collect();
    let (targets, exceptions) = targets_of(&packages, &all);
    let request = HotfixRequest {
        cluster: known.name.clone(),
        version: from.clone(),
        instances: all.clone(),
        selected: all
            .iter()
            .map(|it| it.id.clone())
            .filter(|id| !silent.contains_key(id))
            .collect(),
        purpose: Purpose::Upgrade { to: to.clone(), texts: changes },
        parcel: None,
        parcels: parcels.iter().map(|parcel| spec_of(parcel)).collect(),
        targets,
        exceptions,
        offline: args.offline,
        allow: allowances_of(&args.rollout),
        known_bad: known.bad_builds()?,
        ways_back: BTreeMap::new(),
    };
    let policy = policy_of(&args.rollout, context);
    let decide = |inventory: &Inventory| {
        let ways_back = known.ways_back(&all, inventory)?;
        Ok(plan_hotfix(&HotfixRequest { ways_back, ..request.clone() }, inventory, &policy))
    };
    let roll_out = RollOut {
        kind: RunKind::Upgrade,
        question: &|plan| {
            let nodes = plan.turns.len();
            format!(
                "Will upgrade {nodes} node(s) of {} from {from} to {to}, one after the other",
                known.name
            )
        },
        all: &all,
        with_dm: !args.offline,
        rolling: &args.rollout.rolling,
        parcels: &parcels,
        texts: &texts,
        owed: None,
        plan_only: args.plan,
        apply_plan: None,
    };
    match roll_out.roll(decide, &known, &fleet, context).await? {
        Rolled::Shown => return Ok(()),
        Rolled::NothingToDo if args.plan => {
            context.printer.talk(format_args!("Nothing to do: every node of DM runs {to} already"));
            return Ok(());
        }
        Rolled::NothingToDo => {
            context.printer.talk(format_args!("every node of DM runs {to} already"));
            known.record_version(&to, true)?;
        }
        Rolled::Ran { report, plan } => return end(&report, &plan, &to, &known, context),
    }
    say_upgraded(&known, context);
    Ok(())
}

fn say_upgraded(known: &Known, context: &Context) {
    context.printer.talk(format_args!("Upgraded cluster `{}` successfully", known.name));
}

/// The end of a run that brings this version, its first one or a resumed one.
pub(crate) fn end(
    report: &Report,
    plan: &Plan,
    to: &DmVersion,
    known: &Known,
    context: &Context,
) -> Result<(), Failure> {
    let ended = rolling::end(report, plan, known, context);
    let again = format!("`dmup upgrade {} {to}`", known.name);
    let recorded = known.cluster.meta().map_err(state_failure)?.version;
    if recorded != *to {
        context.printer.talk(format_args!(
            "Not every node runs {to} yet, so {recorded} stays recorded: {again} goes on"
        ));
        return ended;
    }
    if report.end == RunEnd::Paused {
        return ended;
    }
    ended.map_err(|failure| match failure.kind {
        Kind::Failed | Kind::RolledBack | Kind::Mixed => {
            failure.hint(format_args!("DM itself has {to}; {again} tries its monitoring again"))
        }
        Kind::Usage | Kind::Refused | Kind::Unknown | Kind::Interrupted => failure,
    })?;
    say_upgraded(known, context);
    Ok(())
}

/// All packages that the cluster needs. DM's must be there; what is missing of monitoring is told, and stays as it is.
async fn obtain(
    all: &[Instance],
    pairs: &[Exporters],
    to: &DmVersion,
    scratch: &Utf8Path,
    context: &Context,
) -> Result<Packages, Failure> {
    let progress = Progress::new(context.global.format, context.surroundings.stderr_is_terminal);
    let of = |wanted: fn(Role) -> bool| -> Vec<Instance> {
        all.iter().filter(|it| wanted(it.role)).cloned().collect()
    };
    let (dm, monitoring) = (of(Role::is_dm), of(|role| !role.is_dm() && !role.is_exporter()));
    let is_there = |pair: &&Exporters| {
        pair.both.iter().any(|ours| all.iter().any(|it| it.id == ours.instance.id))
    };
    let pairs: Vec<Exporters> = pairs.iter().filter(is_there).cloned().collect();
    let mut missing = Obstacles::default();
    let mut packages =
        open_packages(&dm, &[], to, scratch, &progress, Obtaining::new(context), &mut missing)
            .await;
    if let Err(failure) = missing.refuse(|_| format!("not every package of {to} is there")) {
        progress.end();
        return Err(failure);
    }
    let mut missing = Obstacles::default();
    let beside = open_packages(
        &monitoring,
        &pairs,
        to,
        scratch,
        &progress,
        Obtaining::latest(context),
        &mut missing,
    )
    .await;
    packages.extend(beside);
    progress.end();
    for why in missing.into_found() {
        context.printer.talk(format_args!("note: monitoring that stays as it is: {why}"));
    }
    Ok(packages)
}

/// What the packages bring: per role, and for instances of another architecture than the first of their role.
fn targets_of(
    packages: &Packages,
    all: &[Instance],
) -> (BTreeMap<Role, TargetBuild>, BTreeMap<InstanceId, TargetBuild>) {
    let (mut targets, mut exceptions) = (BTreeMap::new(), BTreeMap::new());
    for instance in all {
        let package = packages.get(&(instance.role, instance.arch.clone()));
        let Some(package) = package else { continue };
        let place = |(from, to): &(Utf8PathBuf, Utf8PathBuf)| {
            (from.clone(), instance.in_tree(to).to_owned())
        };
        let target = TargetBuild {
            digest: package.binary.clone(),
            replace: package.files.iter().map(place).collect(),
            parcel: Some(package.parcel.digest.clone()),
        };
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
