//! `restart`: node by node, with the order, the checks, the journal and the gates of `patch`; `--fast` as TiUP does it.

use dmup_core::exporters::Reach;
use dmup_core::plan::{Kind as RunKind, Plan, RestartRequest, plan_restart};
use dmup_core::selection::select;

use super::rolling::{self, RollOut, Rolled};
use super::{exporters, units};
use crate::args::{OnFailureArg, RestartArgs};
use crate::context::{Context, Known, bad_selection};
use crate::failure::{Failure, Kind};
use crate::manner::Manner;

pub(crate) async fn run(args: &RestartArgs, context: &Context) -> Result<(), Failure> {
    let known = context.cluster(&args.cluster)?;
    let mut all = known.meta.instances();
    let mut selected = select(&all, &args.selection.nodes, &args.selection.roles)
        .map_err(|bad| bad_selection(&bad))?;
    known.refuse_unfinished_scale_out(false)?;
    // A script for TiUP expects a cluster that is down to be up afterwards, too.
    if args.fast || context.printer.manner == Manner::TiupDm {
        return units::restart(&known, &selected, context).await;
    }
    if !args.plan {
        known.refuse_unfinished_runs()?;
    }
    let _lock = if args.plan { None } else { Some(known.lock("restart")?) };
    let fleet = known.fleet(context, &all).await?;
    // As TiUP: exporters are stopped with all that runs on their host.
    let pairs = exporters::reached(&known.meta.topology, &selected, Reach::Whole);
    let beside = exporters::as_instances(&fleet, &pairs, context).await;
    all.extend(beside.clone());
    selected.extend(beside);
    let request = RestartRequest {
        cluster: known.name.clone(),
        version: known.meta.version.clone(),
        targets: selected.iter().map(|it| (it.id.clone(), None)).collect(),
        instances: all.clone(),
        is_reload: false,
        allow: rolling::allowances_of(&args.rolling),
    };
    let policy = rolling::policy_of(&args.rolling, OnFailureArg::RollbackNode, context);
    let roll_out = RollOut {
        kind: RunKind::Restart,
        question: &|plan| question("restart", plan, &known),
        all: &all,
        with_dm: selected.iter().any(|it| it.role.is_dm()),
        rolling: &args.rolling,
        parcels: &[],
        texts: &[],
        owed: None,
        plan_only: args.plan,
        apply_plan: None,
    };
    let decide = |inventory: &_| Ok(plan_restart(&request, inventory, &policy));
    let rolled = roll_out.roll(decide, &known, &fleet, context).await;
    let ended = rolled.and_then(|rolled| end(&rolled, &known, context));
    ended.map_err(|failure| match failure.kind {
        Kind::Refused => failure.hint(
            "`--fast` stops and starts all that is selected at once, in whatever state it is",
        ),
        Kind::Failed
        | Kind::Usage
        | Kind::RolledBack
        | Kind::Mixed
        | Kind::Unknown
        | Kind::Interrupted => failure,
    })
}

pub(crate) fn question(what: &str, plan: &Plan, known: &Known) -> String {
    format!("Will {what} {} node(s) of {}, one after the other", plan.turns.len(), known.name)
}

/// The end of `restart` and `reload`.
pub(crate) fn end(rolled: &Rolled, known: &Known, context: &Context) -> Result<(), Failure> {
    match rolled {
        Rolled::Shown => Ok(()),
        Rolled::NothingToDo => {
            context.printer.talk("Nothing to do: nothing is selected");
            Ok(())
        }
        Rolled::Ran { report, plan } => rolling::end(report, plan, known, context),
    }
}
