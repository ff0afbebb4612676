//! Runs that go node by node: looked at, planned, agreed to, carried out. `patch`, `upgrade`, `restart` and `reload` say
//! what is to be done; how is here.

use std::time::Duration;

use dmup_core::instance::Instance;
use dmup_core::inventory::Inventory;
use dmup_core::plan::{Allowances, Blocker, Decision, Kind as RunKind, Plan, Warning, render};
use dmup_core::policy::{OnBusy, OnFailure, Policy};
use dmup_core::report::{Report, RunEnd};
use dmup_core::texts::Texts;
use dmup_core::unfinished::in_folder;
use dmup_mirror::package::Parcel;
use dmup_remote::Fleet;

use super::run::{self, Begun, Keeps};
use crate::args::{Format, OnBusyArg, OnFailureArg, Rolling};
use crate::context::{Context, Known};
use crate::failure::Failure;
use crate::kept::Owed;
use crate::progress::Progress;

/// A run that goes node by node.
pub(crate) struct RollOut<'a> {
    /// What it is for.
    pub(crate) kind: RunKind,
    /// What is asked before the nodes are named.
    pub(crate) question: &'a dyn Fn(&Plan) -> String,
    /// Those that are looked at. Others than those that are meant count as well: quorum and spares are theirs, too.
    pub(crate) all: &'a [Instance],
    /// DM plays a part, and is asked how it is.
    pub(crate) with_dm: bool,
    pub(crate) rolling: &'a Rolling,
    /// What is sent.
    pub(crate) parcels: &'a [&'a Parcel],
    /// Files that windows write, by the digests that the plan names.
    pub(crate) texts: &'a [Texts],
    /// Instances to come get the package as well.
    pub(crate) owed: Option<&'a Owed>,
    pub(crate) plan_only: bool,
    /// Agreed to earlier, instead of a new one.
    pub(crate) apply_plan: Option<Plan>,
}

/// What became of it.
pub(crate) enum Rolled {
    /// The plan was printed.
    Shown,
    /// Everything is as it should be.
    NothingToDo,
    /// It ran to an end.
    Ran {
        /// Which.
        report: Box<Report>,
        /// As it was carried out.
        plan: Box<Plan>,
    },
}

impl RollOut<'_> {
    /// Looks, plans, asks, and carries out. Whoever calls has the lock.
    pub(crate) async fn roll(
        self,
        decide: impl Fn(&Inventory) -> Result<Decision, Failure>,
        known: &Known,
        fleet: &Fleet,
        context: &Context,
    ) -> Result<Rolled, Failure> {
        let progress =
            Progress::new(context.global.format, context.surroundings.stderr_is_terminal);
        let members = known.meta.instances();
        let dm = known.dm(context, &members).await?;
        let look_and_decide = || async {
            progress.under_way("look at the cluster");
            let (all, clock, concurrency) = (self.all, &context.clock, context.concurrency());
            let inventory =
                dmup_exec::look(all, fleet, &dm, clock, true, self.with_dm, concurrency).await;
            progress.end();
            decide(&inventory)
        };
        let mut plan = if let Some(plan) = self.apply_plan {
            plan
        } else {
            let decision = match self.rolling.wait {
                Some(seconds) => {
                    let patience = Duration::from_secs(seconds.into());
                    let may_pass = Blocker::is_worth_waiting;
                    run::decide_patiently(look_and_decide, may_pass, patience, context).await?
                }
                None => look_and_decide().await?,
            };
            let mut plan = match decision {
                Decision::NothingToDo => return Ok(Rolled::NothingToDo),
                Decision::Blocked(blockers) => {
                    return Err(run::blocked(self.kind, known, &blockers));
                }
                Decision::Go(plan) => *plan,
            };
            let unfinished = in_folder(&known.cluster.traces(), &members);
            plan.warnings.extend(
                unfinished.iter().map(|half| Warning::Unfinished { what: half.to_string() }),
            );
            plan
        };
        run::refuse_without_rights(fleet, plan.needed()).await?;
        if self.plan_only {
            show(&plan, context);
            return Ok(Rolled::Shown);
        }
        for warning in &plan.warnings {
            context.printer.talk(format_args!("note: {warning}"));
        }
        run::agree(&plan, &(self.question)(&plan), !context.global.yes, context)?;
        // The run must find its parcels again when it is resumed by another process.
        known.keep_parcels(&mut plan, self.parcels)?;

        let keeps = Keeps { texts: self.texts, owed: self.owed };
        let work = async {
            // What was agreed to was agreed to as the cluster was then.
            let report = match run::begin(&plan, &keeps, known, fleet, &dm, context).await? {
                Begun::Ran(report) => report,
                Begun::NotYet(why) => return Err(why),
            };
            if report.end == RunEnd::Done {
                run::clean_stores(&plan, fleet).await;
            }
            Ok::<_, Failure>(report)
        };
        let report = context.with_lease(&known.name, self.kind.command(), fleet, work).await?;
        Ok(Rolled::Ran { report: Box::new(report), plan: Box::new(plan) })
    }
}

/// Prints the report, and who was left out, and turns it into the end of the command.
pub(crate) fn end(
    report: &Report,
    plan: &Plan,
    known: &Known,
    context: &Context,
) -> Result<(), Failure> {
    let ended = run::end(report, plan.kind, known, context);
    for warning in &plan.warnings {
        if let Warning::Deferred { .. } | Warning::MonitoringLeft { .. } = warning {
            context.printer.talk(format_args!("note: {warning}"));
        }
    }
    ended
}

/// What the flags allow.
pub(crate) fn allowances_of(args: &Rolling) -> Allowances {
    Allowances {
        force: args.force,
        include_down: args.include_down,
        adopt: args.adopt,
        force_build: false,
        defer: args.defer,
    }
}

/// The limits that the flags set.
pub(crate) fn policy_of(args: &Rolling, on_failure: OnFailureArg, context: &Context) -> Policy {
    Policy {
        concurrency: context.concurrency(),
        soak_s: args.soak,
        quiet_within_s: args.quiet_timeout,
        on_busy: match args.on_busy {
            OnBusyArg::GoOn => OnBusy::GoOn,
            OnBusyArg::Stop => OnBusy::Stop,
        },
        max_lag_s: args.max_lag,
        batches: args.batch.clone(),
        batch_soak_s: args.batch_soak,
        pause_after: args.pause_after,
        healthy_within_s: u32::try_from(context.global.wait_timeout).unwrap_or(u32::MAX),
        on_failure: match on_failure {
            OnFailureArg::RollbackNode => OnFailure::RollbackNode,
            OnFailureArg::RollbackAll => OnFailure::RollbackAll,
            OnFailureArg::Stop => OnFailure::Stop,
        },
        ..Policy::default()
    }
}

/// Prints the plan: `--plan`.
pub(crate) fn show(plan: &Plan, context: &Context) {
    match context.global.format {
        Format::Default => context.printer.data(render(plan).trim_end_matches('\n')),
        Format::Json => {
            context.printer.data(serde_json::to_string_pretty(plan).expect("text and numbers"));
        }
    }
}
