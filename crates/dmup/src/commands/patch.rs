//! `patch`: replaces the binaries of a running cluster with those of a package, online.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use camino::Utf8Path;
use dmup_core::ids::{HostId, InstanceId};
use dmup_core::instance::{Instance, Role};
use dmup_core::plan::{
    Allowances, Blocker, Decision, HotfixRequest, ParcelSpec, Plan, Purpose, TargetBuild, Warning,
    plan_hotfix, render,
};
use dmup_core::policy::{OnBusy, OnFailure, Policy};
use dmup_core::report::{Report, RunEnd};
use dmup_core::selection::select;
use dmup_core::texts::Texts;
use dmup_core::unfinished::in_folder;
use dmup_mirror::package::{Package, PackagedComponent, Parcel, Refusal, Wanted, open};
use dmup_wire::message::PutFile;

use super::restart::write;
use super::run::{self, Begun, Keeps};
use crate::args::{Format, OnBusyArg, OnFailureArg, PatchArgs, Rolling, Rollout};
use crate::context::{Context, Known, Unmarked, bad_selection};
use crate::failure::{Failure, chain};
use crate::kept::{self, Owed};
use crate::progress::Progress;

pub(crate) async fn run(args: &PatchArgs, context: &Context) -> Result<(), Failure> {
    let known = context.cluster(&args.cluster)?;
    known.refuse_unfinished_scale_out(args.offline)?;
    let all = known.meta.instances();
    let meant = select(&all, &args.selection.nodes, &args.selection.roles)
        .map_err(|bad| bad_selection(&bad))?;
    let narrowed = !args.selection.nodes.is_empty() || !args.selection.roles.is_empty();
    let progress = Progress::new(context.global.format, context.surroundings.stderr_is_terminal);

    progress.under_way(&format!("open {}", args.package));
    let scratch = context.scratch()?;
    let package = open_package(&args.package, &meant, scratch.path())?;
    progress.end();
    let owed = args.overwrite.then(|| Owed::of(&package)).transpose()?;
    // Neither -N nor -R: all instances that the package has a binary for.
    let selected: Vec<Instance> = if narrowed {
        meant
    } else {
        meant.into_iter().filter(|it| package.components.contains_key(&it.role)).collect()
    };

    if !args.plan {
        known.refuse_unfinished_runs()?;
    }
    let lock = if args.plan { None } else { Some(known.lock("patch")?) };
    let order = Order {
        what: "patch",
        with: args.package.as_str(),
        parcel: &package.parcel,
        targets: targets_of(&package),
        exceptions: BTreeMap::new(),
        purpose: Purpose::Hotfix,
        texts: &[],
        before: &[],
        selected: &selected,
        offline: args.offline,
        owed: owed.as_ref(),
        plan_only: args.plan,
        apply_plan: args.apply_plan.as_deref(),
        rollout: &args.rollout,
        asks: !context.global.yes,
    };
    let rolled = roll_out(&order, &known, context).await;
    drop(lock);
    match rolled? {
        Rolled::Shown => Ok(()),
        Rolled::NothingToDo { unmarked } => {
            known.mark_all(&unmarked)?;
            context.printer.talk("Nothing to do: every selected instance runs this build already");
            if let Some(owed) = &owed {
                known.keep_for_scale_out(owed)?;
                context.printer.talk(kept::SAID);
            }
            Ok(())
        }
        Rolled::Ran { report, plan, unmarked } => {
            if report.end == RunEnd::Done {
                known.mark_all(&unmarked)?;
            }
            let ended = run::end(&report, plan.kind, &known, context);
            for warning in &plan.warnings {
                if let Warning::Deferred { .. } = warning {
                    context.printer.talk(format_args!("note: {warning}"));
                }
            }
            ended
        }
    }
}

/// A package on its way to nodes that serve.
pub(crate) struct Order<'a> {
    /// The command, for messages.
    pub(crate) what: &'static str,
    /// What is put in, in the operator's words.
    pub(crate) with: &'a str,
    pub(crate) parcel: &'a Parcel,
    /// What it brings per role, and for single instances instead.
    pub(crate) targets: BTreeMap<Role, TargetBuild>,
    pub(crate) exceptions: BTreeMap<InstanceId, TargetBuild>,
    pub(crate) purpose: Purpose,
    /// Files that are written in windows, by the digests that `purpose` names.
    pub(crate) texts: &'a [Texts],
    /// Files that are written before the first turn, by host: of monitoring, which nothing depends on.
    pub(crate) before: &'a [(HostId, Vec<PutFile>)],
    pub(crate) selected: &'a [Instance],
    pub(crate) offline: bool,
    /// Instances to come get the package as well.
    pub(crate) owed: Option<&'a Owed>,
    pub(crate) plan_only: bool,
    pub(crate) apply_plan: Option<&'a Utf8Path>,
    pub(crate) rollout: &'a Rollout,
    pub(crate) asks: bool,
}

/// What became of it.
pub(crate) enum Rolled {
    /// The plan was printed.
    Shown,
    /// Every instance runs it.
    NothingToDo {
        unmarked: Unmarked,
    },
    Ran {
        report: Box<Report>,
        plan: Box<Plan>,
        unmarked: Unmarked,
    },
}

/// Looks, plans, asks, and carries out. Whoever calls has the lock.
pub(crate) async fn roll_out(
    order: &Order<'_>,
    known: &Known,
    context: &Context,
) -> Result<Rolled, Failure> {
    let Order { parcel, selected, rollout, .. } = order;
    let progress = Progress::new(context.global.format, context.surroundings.stderr_is_terminal);
    // Other instances count as well: quorum and spares are theirs, too.
    let all = known.meta.instances();
    let fleet = known.fleet(context, &all)?;
    let dm = known.dm(&all)?;
    let with_dm = !order.offline && selected.iter().any(|it| it.role.is_dm());
    let request = HotfixRequest {
        cluster: known.name.clone(),
        version: known.meta.version.clone(),
        instances: all.clone(),
        selected: selected.iter().map(|it| it.id.clone()).collect(),
        purpose: order.purpose.clone(),
        parcel: Some(ParcelSpec {
            path: parcel.path.clone(),
            digest: parcel.digest.clone(),
            compressed_bytes: parcel.compressed_bytes,
            unpacked_bytes: parcel.unpacked_bytes,
        }),
        parcels: Vec::new(),
        targets: order.targets.clone(),
        exceptions: order.exceptions.clone(),
        offline: order.offline,
        allow: Allowances { force_build: rollout.force_build, ..allowances_of(&rollout.rolling) },
        known_bad: known.bad_builds()?,
        ways_back: BTreeMap::new(),
    };
    let policy = Policy {
        guard_s: rollout.guard,
        ..policy_of(&rollout.rolling, rollout.on_failure, context)
    };
    let unmarked = RefCell::new(Unmarked::new());
    let decide = || async {
        progress.under_way("look at the cluster");
        let concurrency = context.concurrency();
        let inventory =
            dmup_exec::look(&all, &fleet, &dm, &context.clock, true, with_dm, concurrency).await;
        progress.end();
        let mut request = request.clone();
        let runs = known.runs()?;
        for instance in *selected {
            if let Some((_, before)) = Known::before(&runs, &instance.id, &inventory) {
                request.ways_back.insert(instance.id.clone(), before.recorded.build);
            }
        }
        unmarked.replace(known.unmarked(selected, &request.targets, &inventory)?);
        Ok(plan_hotfix(&request, &inventory, &policy))
    };
    let mut plan = if let Some(file) = order.apply_plan {
        progress.end();
        read_plan(file, known, order)?
    } else {
        let decision = match rollout.rolling.wait {
            Some(seconds) => {
                let patience = Duration::from_secs(seconds.into());
                run::decide_patiently(decide, Blocker::is_worth_waiting, patience, context).await?
            }
            None => decide().await?,
        };
        match decision {
            Decision::NothingToDo => {
                return Ok(Rolled::NothingToDo { unmarked: unmarked.take() });
            }
            Decision::Blocked(blockers) => return Err(run::blocked(order.what, known, &blockers)),
            Decision::Go(plan) => *plan,
        }
    };
    if order.apply_plan.is_none() {
        let unfinished = in_folder(&known.cluster.traces(), &all);
        plan.warnings
            .extend(unfinished.iter().map(|half| Warning::Unfinished { what: half.to_string() }));
    }
    run::refuse_without_sudo(&fleet, selected).await?;
    if order.plan_only {
        show(&plan, context);
        return Ok(Rolled::Shown);
    }
    agree(order, known, &plan, context)?;
    // The run must find the parcel again when it is resumed by another process.
    plan.parcel = Some(known.keep_parcel(parcel)?);

    let keeps = Keeps { texts: order.texts, owed: order.owed };
    let work = async {
        write(&fleet, order.before).await?;
        // What was agreed to was agreed to as the cluster was then.
        let report = match run::begin(&plan, &keeps, known, &fleet, &dm, context).await? {
            Begun::Ran(report) => report,
            Begun::NotYet(why) if order.before.is_empty() => return Err(why),
            Begun::NotYet(why) => {
                return Err(why.now("no node was touched; the files of monitoring are written"));
            }
        };
        if report.end == RunEnd::Done {
            run::clean_stores(&plan, &fleet).await;
        }
        Ok::<_, Failure>(report)
    };
    let report = context.with_lease(&known.name, order.what, &fleet, work).await?;
    let unmarked = unmarked.take();
    Ok(Rolled::Ran { report: Box::new(report), plan: Box::new(plan), unmarked })
}

fn targets_of(package: &Package) -> BTreeMap<Role, TargetBuild> {
    package.components.iter().map(|(role, part)| (*role, target_of(part))).collect()
}

pub(crate) fn target_of(part: &PackagedComponent) -> TargetBuild {
    TargetBuild { digest: part.binary.clone(), replace: part.replace.clone(), parcel: None }
}

/// Opens the package with what the selection needs of it.
fn open_package(
    path: &Utf8Path,
    meant: &[Instance],
    scratch: &Utf8Path,
) -> Result<Package, Failure> {
    let mut wanted = Wanted::new();
    for instance in meant {
        wanted.entry(instance.role).or_default().insert(instance.arch.clone());
    }
    open(path, &wanted, scratch).map_err(|error| {
        let failure = Failure::refused(chain(&error))
            .hint(format_args!("`dmup package show {path}` lists what is inside"));
        let Refusal::OtherArchitecture { arch, .. } = &error.refusal else { return failure };
        let (fit, strange): (Vec<_>, Vec<_>) = meant.iter().partition(|it| it.arch == *arch);
        let strange = strange.iter().map(|it| format!("{} runs on {}", it.id, it.arch));
        let failure = failure.because(strange);
        if fit.is_empty() {
            return failure;
        }
        let fit: Vec<&str> = fit.iter().map(|it| it.id.as_str()).collect();
        failure.hint(format_args!(
            "one package for each architecture: give this one to `-N {}`, and make another for the others",
            fit.join(",")
        ))
    })
}

/// A plan that was printed earlier: of this cluster and this package. Whether it still fits the cluster is looked at
/// before the first effect, as with every plan.
fn read_plan(file: &Utf8Path, known: &Known, order: &Order<'_>) -> Result<Plan, Failure> {
    const LONGEST: u64 = 64 << 20;
    let refused = |why: String| Failure::refused(format_args!("read the plan {file}: {why}"));
    let length = fs_err::metadata(file).map_err(|error| refused(error.to_string()))?.len();
    if length > LONGEST {
        return Err(refused(format!("it has {length} bytes, {LONGEST} are allowed")));
    }
    let text = fs_err::read(file).map_err(|error| refused(error.to_string()))?;
    let plan: Plan = serde_json::from_slice(&text).map_err(|error| refused(error.to_string()))?;
    if plan.format != Plan::FORMAT {
        return Err(refused(format!(
            "it has format {}, this dmup knows {}",
            plan.format,
            Plan::FORMAT
        )));
    }
    if plan.cluster != known.name {
        return Err(refused(format!("it is a plan for {}", plan.cluster)));
    }
    if plan.parcel.as_ref().map(|it| &it.digest) != Some(&order.parcel.digest) {
        return Err(refused(format!("it was made for another package than {}", order.with)));
    }
    Ok(plan)
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

fn agree(order: &Order<'_>, known: &Known, plan: &Plan, context: &Context) -> Result<(), Failure> {
    for warning in &plan.warnings {
        context.printer.talk(format_args!("note: {warning}"));
    }
    let question = format!(
        "Will {} {} node(s) of {} {}, one after the other",
        order.what,
        plan.turns.len(),
        known.name,
        match &plan.to_version {
            Some(to) => format!("from {} to {to}", plan.version),
            None => format!("with {}", order.with),
        }
    );
    run::agree(plan, &question, order.asks, context)
}
