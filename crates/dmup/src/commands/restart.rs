//! `restart`: node by node, with the order, the checks, the journal and the gates of `patch`; `--fast` as TiUP does it.

use std::collections::BTreeMap;
use std::time::Duration;

use dmup_core::ids::{HostId, InstanceId};
use dmup_core::instance::Instance;
use dmup_core::plan::{Blocker, Decision, RestartRequest, Warning, plan_restart};
use dmup_core::policy::Policy;
use dmup_core::selection::select;
use dmup_core::texts::{Texts, TextsChange};
use dmup_remote::Fleet;
use dmup_wire::message::PutFile;
use futures::future::join_all;

use super::run::{self, Begun, Keeps};
use super::{patch, units};
use crate::args::{OnFailureArg, RestartArgs, Rolling};
use crate::context::{Context, Known, bad_selection};
use crate::failure::{Failure, Kind};
use crate::manner::Manner;
use crate::progress::Progress;

pub(crate) async fn run(args: &RestartArgs, context: &Context) -> Result<(), Failure> {
    let known = context.cluster(&args.cluster)?;
    let selected = select(&known.meta.instances(), &args.selection.nodes, &args.selection.roles)
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
    let again = Again {
        is_reload: false,
        selected: &selected,
        changes: BTreeMap::new(),
        texts: Vec::new(),
        before: Vec::new(),
        plan_only: args.plan,
        policy: patch::policy_of(&args.rolling, OnFailureArg::RollbackNode, context),
        rolling: &args.rolling,
    };
    again.roll(&known, context).await.map_err(|failure| match failure.kind {
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

/// Nodes that are to be stopped and started, one after the other.
pub(crate) struct Again<'a> {
    /// Whether files are brought there, too.
    pub(crate) is_reload: bool,
    pub(crate) selected: &'a [Instance],
    /// Files that are written in a node's window.
    pub(crate) changes: BTreeMap<InstanceId, TextsChange>,
    /// What is in them.
    pub(crate) texts: Vec<Texts>,
    /// Files that are written before the first turn, by host: of monitoring, which nothing depends on.
    pub(crate) before: Vec<(HostId, Vec<PutFile>)>,
    pub(crate) plan_only: bool,
    pub(crate) policy: Policy,
    pub(crate) rolling: &'a Rolling,
}

impl Again<'_> {
    /// Looks, plans, asks, and carries out. Whoever calls has the lock.
    pub(crate) async fn roll(&self, known: &Known, context: &Context) -> Result<(), Failure> {
        let Self { selected, rolling, policy, .. } = self;
        let what = if self.is_reload { "reload" } else { "restart" };
        let progress =
            Progress::new(context.global.format, context.surroundings.stderr_is_terminal);
        let all = known.meta.instances();
        let fleet = known.fleet(context, &all)?;
        let dm = known.dm(&all)?;
        let with_dm = selected.iter().any(|it| it.role.is_dm());
        let request = RestartRequest {
            cluster: known.name.clone(),
            version: known.meta.version.clone(),
            instances: all.clone(),
            targets: selected
                .iter()
                .map(|it| (it.id.clone(), self.changes.get(&it.id).cloned()))
                .collect(),
            is_reload: self.is_reload,
            allow: patch::allowances_of(rolling),
        };
        let decide = || async {
            progress.under_way("look at the cluster");
            let concurrency = context.concurrency();
            let inventory =
                dmup_exec::look(&all, &fleet, &dm, &context.clock, true, with_dm, concurrency)
                    .await;
            progress.end();
            Ok(plan_restart(&request, &inventory, policy))
        };
        let decision = match rolling.wait {
            Some(seconds) => {
                let patience = Duration::from_secs(seconds.into());
                run::decide_patiently(decide, Blocker::is_worth_waiting, patience, context).await?
            }
            None => decide().await?,
        };
        let plan = match decision {
            Decision::NothingToDo => {
                context.printer.talk("Nothing to do: nothing is selected");
                return Ok(());
            }
            Decision::Blocked(blockers) => return Err(run::blocked(what, known, &blockers)),
            Decision::Go(plan) => plan,
        };
        run::refuse_without_sudo(&fleet, selected).await?;
        if self.plan_only {
            patch::show(&plan, context);
            return Ok(());
        }
        for warning in &plan.warnings {
            context.printer.talk(format_args!("note: {warning}"));
        }
        let question = format!(
            "Will {what} {} node(s) of {}, one after the other",
            plan.turns.len(),
            known.name
        );
        run::agree(&plan, &question, !context.global.yes, context)?;
        let keeps = Keeps { texts: &self.texts, owed: None };
        let work = async {
            write(&fleet, &self.before).await?;
            match run::begin(&plan, &keeps, known, &fleet, &dm, context).await? {
                Begun::Ran(report) => Ok(report),
                Begun::NotYet(why) if self.before.is_empty() => Err(why),
                Begun::NotYet(why) => {
                    Err(why.now("no node was restarted; the files of monitoring are written"))
                }
            }
        };
        let report = context.with_lease(&known.name, what, &fleet, work).await?;
        let ended = run::end(&report, plan.kind, known, context);
        for warning in &plan.warnings {
            if let Warning::Deferred { .. } = warning {
                context.printer.talk(format_args!("note: {warning}"));
            }
        }
        ended
    }
}

/// Writes files, all hosts at once.
pub(crate) async fn write(fleet: &Fleet, files: &[(HostId, Vec<PutFile>)]) -> Result<(), Failure> {
    let work = files.iter().map(|(host, files)| fleet.put(host, files.clone()));
    let failed: Vec<String> = join_all(work)
        .await
        .into_iter()
        .filter_map(|it| it.err().map(|error| error.to_string()))
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::failed("write the files")
        .because(failed)
        .now("nothing was restarted; some files may be new, and count from the next start on")
        .hint("give the same command again after the cause is gone"))
}
