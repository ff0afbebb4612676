//! `upgrade`: another version of DM for the whole cluster, node by node, with the order, gates, journal and way back of `patch`.
//!
//! dm-master first, as TiUP has it: a master of the new version knows how to talk to workers of the old one, and
//! brings what etcd has up to date. Each role and architecture is a run of its own; a run that ended otherwise than well
//! ends the command, and the same command goes on later: what runs the new build already is left alone.

use std::collections::BTreeSet;

use dmup_core::instance::{Instance, Role};
use dmup_core::journal::TurnEnd;
use dmup_core::plan::Warning;
use dmup_core::report::RunEnd;
use dmup_core::topology::Meta;
use dmup_core::version::DmVersion;
use dmup_mirror::mirror::Version;

use super::obtaining::Obtaining;
use super::patch::{Order, Rolled, open_package, roll_out};
use super::run;
use crate::args::UpgradeArgs;
use crate::ask;
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
        known.refuse_unfinished_runs().map_err(|failure| {
            // A run knows nothing of the upgrade that it is a part of.
            failure.hint(format_args!(
                "after `resume`, `dmup upgrade {} {to}` again for what is left",
                known.name
            ))
        })?;
    }
    let _lock = if args.plan { None } else { Some(known.lock("upgrade")?) };

    let all = known.meta.instances();
    let groups: BTreeSet<(Role, &str, &str)> = all
        .iter()
        .filter(|it| it.role.is_dm())
        .map(|it| (it.role, it.os.as_str(), it.arch.as_str()))
        .collect();
    let scratch = context.scratch()?;
    let progress = Progress::new(context.global.format, context.surroundings.stderr_is_terminal);
    let mut obtaining = Obtaining::new(context);
    let (mut parts, mut missing) = (Vec::new(), Vec::new());
    for (role, os, arch) in groups {
        let version = Version::Exact(to.clone());
        match obtaining.package(role.into(), version, os, arch, &progress).await {
            Ok(path) => {
                let selected: Vec<Instance> = all
                    .iter()
                    .filter(|it| (it.role, it.os.as_str(), it.arch.as_str()) == (role, os, arch))
                    .cloned()
                    .collect();
                progress.under_way(&format!("open {path}"));
                let package = open_package(&path, &selected, scratch.path())?;
                parts.push((role, package, selected));
            }
            Err(why) => missing.push(why),
        }
    }
    progress.end();
    obtaining.say_warnings();
    if !missing.is_empty() {
        let failure =
            Failure::refused(format_args!("not every package of {to} is there")).because(missing);
        return Err(obtaining.hints.into_iter().fold(failure, Failure::hint));
    }

    for line in dropped_hotfixes(&known)? {
        context.printer.talk(line);
    }
    if !args.plan && !context.global.yes {
        ask::confirm(&format!(
            "Will upgrade {} from {from} to {to}: dm-master, then dm-worker, node by node.",
            known.name
        ))?;
    }
    for (role, package, selected) in &parts {
        let order = Order {
            what: "upgrade",
            package,
            selected,
            offline: args.offline,
            overwrite: false,
            plan_only: args.plan,
            apply_plan: None,
            rollout: &args.rollout,
            asks: false,
        };
        match roll_out(&order, &known, context).await? {
            Rolled::Shown => {}
            Rolled::NothingToDo { .. } => {
                context.printer.talk(format_args!("every {role} runs {to} already"));
            }
            Rolled::Ran { report, plan, .. } => {
                run::end(&report, plan.kind, &known, context)?;
                let deferred: Vec<String> = plan
                    .warnings
                    .iter()
                    .filter(|it| matches!(it, Warning::Deferred { .. }))
                    .map(Warning::to_string)
                    .collect();
                if report.end != RunEnd::Done || !deferred.is_empty() {
                    for line in deferred {
                        context.printer.talk(format_args!("note: {line}"));
                    }
                    context.printer.talk(format_args!(
                        "Not every node runs {to} yet, so {from} stays recorded: `dmup upgrade {} {to}` goes on",
                        known.name
                    ));
                    return Ok(());
                }
            }
        }
    }
    if args.plan {
        return Ok(());
    }
    record(&known, &to)?;
    context.printer.talk(format_args!("Upgraded cluster `{}` successfully", known.name));
    Ok(())
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

/// The new version stands in `meta.yaml`, no node is marked as patched, and no hotfix is kept for later nodes.
fn record(known: &Known, to: &DmVersion) -> Result<(), Failure> {
    // The runs have marked their nodes meanwhile.
    let now = known.cluster.meta().map_err(state_failure)?;
    let mut topology = now.topology.clone();
    let dm: Vec<_> = now.instances().into_iter().filter(|it| it.role.is_dm()).collect();
    let ids: Vec<&str> = dm.iter().map(|it| it.id.as_str()).collect();
    topology.mark_patched(&ids, false);
    let meta = Meta { version: to.clone(), topology, ..now };
    known.cluster.save_meta(&meta, &jiff::Zoned::now()).map_err(state_failure)?;
    known.cluster.forget_packages().map_err(state_failure)
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
