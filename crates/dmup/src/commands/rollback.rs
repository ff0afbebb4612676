//! `rollback`: every patched node back to the build that it ran before, from what lies on its host.

use std::collections::BTreeMap;

use dmup_core::plan::{Decision, RollbackRequest, RollbackTarget, plan_rollback};
use dmup_core::policy::Policy;
use dmup_core::selection::select;

use super::{patch, run};
use crate::args::RollbackArgs;
use crate::ask;
use crate::context::{Context, bad_selection};
use crate::failure::Failure;

pub(crate) async fn run(args: &RollbackArgs, context: &Context) -> Result<(), Failure> {
    let known = context.cluster(&args.cluster)?;
    let all = known.meta.instances();
    let meant = select(&all, &args.selection.nodes, &args.selection.roles)
        .map_err(|bad| bad_selection(&bad))?;
    let named = !args.selection.nodes.is_empty();
    let lock = if args.plan { None } else { Some(known.lock("rollback")?) };
    let fleet = known.fleet(context, &all)?;
    let dm = known.dm(&all)?;
    let with_dm = meant.iter().any(|it| it.role.is_dm());
    let inventory =
        dmup_exec::look(&all, &fleet, &dm, &context.clock, true, with_dm, context.concurrency()).await;
    let mut targets = BTreeMap::new();
    for instance in &meant {
        let before = known.build_before(&instance.id, &inventory)?;
        match before {
            Some((build, patched)) => {
                targets.insert(instance.id.clone(), RollbackTarget { build: Some(build), patched });
            }
            // Named by the operator: say that there is no way back, rather than nothing.
            None if named => {
                targets.insert(instance.id.clone(), RollbackTarget { build: None, patched: false });
            }
            None => {}
        }
    }
    if targets.is_empty() {
        return Err(Failure::refused(format_args!("no node of {} has an earlier build to go back to", known.name))
            .hint(format_args!("`dmup display {} --verify` shows what every node runs", known.name)));
    }
    let request = RollbackRequest {
        cluster: known.name.clone(),
        version: known.meta.version.clone(),
        instances: all.clone(),
        targets,
        offline: false,
        force: true,
        include_down: true,
    };
    let policy = Policy { concurrency: context.concurrency(), soak_s: args.soak, ..Policy::default() };
    let plan = match plan_rollback(&request, &inventory, &policy) {
        Decision::NothingToDo => {
            context.printer.talk("Nothing to do: every selected instance runs its earlier build already");
            known.close_unfinished_runs("rolled back")?;
            return Ok(());
        }
        Decision::Blocked(blockers) => return Err(run::blocked("roll back", &known, &blockers)),
        Decision::Go(plan) => plan,
    };
    if args.plan {
        patch::show(&plan, context);
        return Ok(());
    }
    for consent in &plan.consents {
        context.printer.talk(format_args!("note: {consent}"));
    }
    if !context.global.yes {
        let nodes: Vec<String> = plan.turns.iter().map(|turn| format!("  {}", turn.instance)).collect();
        ask::confirm(&format!(
            "Will put {} node(s) of {} back to their earlier builds:\n{}",
            nodes.len(),
            known.name,
            nodes.join("\n")
        ))?;
    }
    let report = run::begin(&plan, &known, &fleet, &dm, context).await;
    drop(lock);
    let report = report?;
    if report.exit_code() == 0 {
        known.close_unfinished_runs("rolled back")?;
    }
    run::end(&report, &known, context)
}
