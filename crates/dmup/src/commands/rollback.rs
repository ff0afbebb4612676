//! `rollback`: every patched node back to the build that it ran before, from what lies on its host.

use std::cell::RefCell;
use std::collections::BTreeMap;

use dmup_core::builds::{Before, RecordedBuild};
use dmup_core::ids::InstanceId;
use dmup_core::instance::Instance;
use dmup_core::plan::{
    Allowances, Blocker, Decision, Kind, RollbackRequest, RollbackTarget, Warning, plan_rollback,
};
use dmup_core::policy::Policy;
use dmup_core::report::Report;
use dmup_core::selection::select;
use dmup_core::texts::{Texts, TextsChange};
use dmup_core::version::DmVersion;
use dmup_exec::RunFolder;
use dmup_remote::Fleet;
use dmup_remote::dm_api::DmClient;
use dmup_remote::hosts::put_file;
use dmup_wire::message::PutFile;

use super::run::{Begun, Keeps, Onward};
use super::{exporters, reload, rolling, run};
use crate::args::RollbackArgs;
use crate::ask;
use crate::context::{Context, Known, PastRun, bad_selection};
use crate::failure::{Failure, chain};

pub(crate) async fn run(args: &RollbackArgs, context: &Context) -> Result<(), Failure> {
    let known = context.cluster(&args.cluster)?;
    let mut all = known.meta.instances();
    let mut meant = select(&all, &args.selection.nodes, &args.selection.roles)
        .map_err(|bad| bad_selection(&bad))?;
    let named = !args.selection.nodes.is_empty();
    let is_whole = !named && args.selection.roles.is_empty();
    if let Some(unfinished) = known.unfinished_runs()?.pop()
        && !args.plan
    {
        if !is_whole {
            return Err(Failure::refused(format_args!(
                "run {} of {} has not ended: only all of it can be taken back",
                unfinished.id, known.name
            ))
            .hint(format_args!("`dmup rollback {}` without -N and -R", known.name)));
        }
        return take_back(&unfinished, &known, context).await;
    }
    let lock = if args.plan { None } else { Some(known.lock("rollback")?) };
    let fleet = known.fleet(context, &all).await?;
    let dm = known.dm(context, &all).await?;
    if is_whole {
        let pairs = known.meta.topology.exporters();
        let beside = exporters::as_instances(&fleet, &pairs, context).await;
        all.extend(beside.clone());
        meant.extend(beside);
    }
    let policy =
        Policy { concurrency: context.concurrency(), soak_s: args.soak, ..Policy::default() };
    let wanted = Wanted { known: &known, all: &all, meant: &meant, named, policy: &policy };
    if args.plan {
        match wanted.decide(&fleet, &dm, context, &RefCell::default()).await? {
            Decision::NothingToDo => nothing_to_do(context),
            Decision::Blocked(blockers) => {
                return Err(run::blocked(Kind::Rollback, &known, &blockers));
            }
            Decision::Go(plan) => {
                run::refuse_without_rights(&fleet, plan.needed()).await?;
                rolling::show(&plan, context);
            }
        }
        return Ok(());
    }
    let attempt = || wanted.begin(&fleet, &dm, context);
    let say = |why: &Failure| {
        context.printer.talk(format_args!("note: {}; looking again", why.error));
    };
    let ended = run::begin_patiently(attempt, &context.clock, say).await?;
    drop(lock);
    match ended {
        Some((report, kind)) => run::end(&report, kind, &known, context),
        None => {
            nothing_to_do(context);
            Ok(())
        }
    }
}

fn nothing_to_do(context: &Context) {
    context.printer.talk("Nothing to do: every selected instance runs its earlier build already");
}

/// What a decision came upon.
#[derive(Default)]
struct Found {
    /// Files that the plan names.
    texts: Vec<Texts>,
    /// A node has its build from an upgrade to the version that is recorded.
    is_of_upgrade: bool,
}

/// What is to be taken back.
struct Wanted<'a> {
    known: &'a Known,
    all: &'a [Instance],
    meant: &'a [Instance],
    /// The operator named the nodes.
    named: bool,
    policy: &'a Policy,
}

impl Wanted<'_> {
    /// Looks until nothing is in the way, asks, and goes; none: there was nothing to do.
    async fn begin(
        &self,
        fleet: &Fleet,
        dm: &DmClient,
        context: &Context,
    ) -> Result<Begun<Option<(Report, Kind)>>, Failure> {
        let known = self.known;
        let found = RefCell::new(Found::default());
        let decide = || self.decide(fleet, dm, context, &found);
        let decision =
            run::decide_patiently(decide, Blocker::may_pass, run::PATIENCE, context).await?;
        let plan = match decision {
            Decision::NothingToDo => return Ok(Begun::Ran(None)),
            Decision::Blocked(blockers) => {
                return Err(run::blocked(Kind::Rollback, known, &blockers));
            }
            Decision::Go(plan) => plan,
        };
        run::refuse_without_rights(fleet, plan.needed()).await?;
        for warning in &plan.warnings {
            if let Warning::MonitoringLeft { .. } | Warning::MonitoringDown { .. } = warning {
                context.printer.talk(format_args!("note: {warning}"));
            }
        }
        for node in self.born_with_a_hotfix(|id| plan.turns.iter().any(|it| it.instance == *id)) {
            context.printer.talk(format_args!("note: {node}"));
        }
        let question = format!(
            "Will put {} node(s) of {} back to their earlier builds",
            plan.turns.len(),
            known.name
        );
        let Found { texts, is_of_upgrade } = found.into_inner();
        let now = &known.meta.version;
        if let Some(before) = &plan.to_version {
            let words = format_args!("note: {now} is taken back, {before} is recorded again");
            context.printer.talk(words);
        } else if is_of_upgrade {
            context.printer.talk(format_args!(
                "note: {now} stays recorded: not every node of DM goes back to the same version"
            ));
        }
        run::agree(&plan, &question, !context.global.yes, context)?;
        let keeps = Keeps { texts: &texts, owed: None };
        let work = run::begin(&plan, &keeps, known, fleet, dm, context);
        Ok(match context.with_lease(&known.name, "rollback", fleet, work).await? {
            Begun::Ran(report) => Begun::Ran(Some((report, plan.kind))),
            Begun::NotYet(why) => Begun::NotYet(why),
        })
    }

    /// One look, one decision; and the files that the plan names.
    async fn decide(
        &self,
        fleet: &Fleet,
        dm: &DmClient,
        context: &Context,
        found: &RefCell<Found>,
    ) -> Result<Decision, Failure> {
        let Wanted { known, all, meant, named, policy } = self;
        let with_dm = meant.iter().any(|it| it.role.is_dm());
        let concurrency = policy.concurrency;
        let inventory =
            dmup_exec::look(all, fleet, dm, &context.clock, true, with_dm, concurrency).await;
        let runs = known.runs()?;
        let mut targets = BTreeMap::new();
        let mut from_upgrades = BTreeMap::new();
        found.replace(Found::default());
        for instance in *meant {
            match Known::before(&runs, &instance.id, &inventory) {
                Some((run, Before { recorded, plan, turn })) => {
                    let answers = matches!(inventory.hosts.get(&instance.host), Some(Ok(_)));
                    let texts = match &turn.texts {
                        // A silent host is in the way as such.
                        Some(change) if answers => {
                            files_before(run, change, instance, fleet, found).await?
                        }
                        Some(_) | None => None,
                    };
                    if plan.kind == Kind::Upgrade && *plan.version_after() == known.meta.version {
                        from_upgrades.insert(instance.id.clone(), plan.version.clone());
                        found.borrow_mut().is_of_upgrade = true;
                    }
                    let RecordedBuild { build, patched } = recorded;
                    let target = RollbackTarget { build: Some(build), patched, texts };
                    targets.insert(instance.id.clone(), target);
                }
                // Named by the operator: say that there is no way back, rather than nothing.
                None if *named => {
                    let target = RollbackTarget { build: None, patched: false, texts: None };
                    targets.insert(instance.id.clone(), target);
                }
                None => {}
            }
        }
        if targets.is_empty() {
            return Err(Failure::refused(format_args!(
                "no node of {} has an earlier build to go back to",
                known.name
            ))
            .because(self.born_with_a_hotfix(|_| false))
            .hint(format_args!(
                "`dmup display {} --verify` shows what every node runs",
                known.name
            )));
        }
        let request = RollbackRequest {
            cluster: known.name.clone(),
            version: known.meta.version.clone(),
            to_version: version_before(all, &from_upgrades),
            instances: all.to_vec(),
            targets,
            offline: false,
            allow: Allowances { force: true, include_down: true, ..Allowances::default() },
        };
        Ok(plan_rollback(&request, &inventory, policy))
    }

    /// Nodes that are marked as patched and have no earlier build: `scale-out` gave them the hotfix that was kept.
    fn born_with_a_hotfix(&self, has_a_way: impl Fn(&InstanceId) -> bool) -> Vec<String> {
        self.meant
            .iter()
            .filter(|it| it.patched && !has_a_way(&it.id))
            .map(|it| {
                format!(
                    "{} has a hotfix and stays as it is: it was added with it, and no earlier build lies on its host \
                     (`dmup patch {} OFFICIAL-PACKAGE -N {}` puts the official one in)",
                    it.id, self.known.name, it.id
                )
            })
            .collect()
    }
}

/// The files that an upgrade has replaced, where others lie there now.
async fn files_before(
    run: &PastRun,
    change: &TextsChange,
    instance: &Instance,
    fleet: &Fleet,
    found: &RefCell<Found>,
) -> Result<Option<TextsChange>, Failure> {
    let what = || format!("read the files that {} had before run {}", instance.id, run.id);
    let refused = |why: String| Failure::refused(what()).because([why]);
    let before = RunFolder::at(&run.path).texts(&change.before);
    let before = before.map_err(|error| refused(chain(&error)))?;
    let files: Vec<PutFile> = before.0.into_iter().map(put_file).collect();
    let differing = reload::compare(fleet, instance, &files).await.map_err(refused)?;
    let (change, texts) = differing.change();
    if texts[1].0.is_empty() {
        return Ok(None);
    }
    found.borrow_mut().texts.extend(texts);
    Ok(Some(change))
}

/// The version that every node of DM goes back to; none if only some do, or there was no upgrade.
fn version_before(
    all: &[Instance],
    from_upgrades: &BTreeMap<InstanceId, DmVersion>,
) -> Option<DmVersion> {
    let mut of_dm = all.iter().filter(|it| it.role.is_dm());
    let first = from_upgrades.get(&of_dm.next()?.id)?;
    of_dm.all(|it| from_upgrades.get(&it.id) == Some(first)).then(|| first.clone())
}

/// A run that was interrupted goes back as a whole, with everything that it paused or evicted. One that is a way back itself
/// goes on: to take it back would bring the hotfix again.
async fn take_back(run: &PastRun, known: &Known, context: &Context) -> Result<(), Failure> {
    let onward = match run.kind() {
        Some(Kind::Rollback) => Onward::Forth,
        Some(Kind::Hotfix | Kind::Upgrade | Kind::Restart | Kind::Reload) | None => Onward::Back,
    };
    if !context.global.yes {
        let what = match onward {
            Onward::Forth => "It is a way back: will go on with it",
            Onward::Back => "Will put every node that it changed back",
        };
        ask::confirm(&format!("Run {} of {} has not ended. {what}.", run.id, known.name))?;
    }
    let _lock = known.lock("rollback")?;
    let all = known.meta.instances();
    let fleet = known.fleet(context, &all).await?;
    let dm = known.dm(context, &all).await?;
    let work = run::go_on(&run.path, onward, known, &fleet, &dm, context);
    let (report, plan) = context.with_lease(&known.name, "rollback", &fleet, work).await?;
    run::end(&report, plan.kind, known, context)
}
