//! `resume`: goes on with a run that was interrupted.

use dmup_core::plan::Kind;
use dmup_core::report::RunEnd;

use super::{rolling, run, upgrade};
use crate::args::ResumeArgs;
use crate::context::Context;
use crate::failure::Failure;

pub(crate) async fn run(args: &ResumeArgs, context: &Context) -> Result<(), Failure> {
    let known = context.cluster(&args.cluster)?;
    if args.run.is_none()
        && known.unfinished_runs()?.is_empty()
        && let Some((folder, end)) = known.run_that_owes()?
    {
        // It was killed after its last node.
        let _lock = known.lock("resume")?;
        return run::settle(&folder, &end, &known, context);
    }
    let folder = match &args.run {
        Some(id) => known.run_folder(id)?,
        None => known.unfinished_runs()?.pop().map(|run| run.path).ok_or_else(|| {
            Failure::refused(format_args!("no run of {} was interrupted", known.name))
                .hint(format_args!("`dmup runs {}` lists all runs", known.name))
        })?,
    };
    let _lock = known.lock("resume")?;
    let all = known.meta.instances();
    let fleet = known.fleet(context, &all).await?;
    let dm = known.dm(context, &all).await?;
    let work = run::go_on(&folder, run::Onward::Forth, &known, &fleet, &dm, context);
    let (report, plan) = context.with_lease(&known.name, "resume", &fleet, work).await?;
    match &plan.to_version {
        // One that was on its way back has brought nothing.
        Some(to) if plan.kind == Kind::Upgrade && report.end != RunEnd::TakenBack => {
            upgrade::end(&report, &plan, to, &known, context)
        }
        Some(_) | None => rolling::end(&report, &plan, &known, context),
    }
}
