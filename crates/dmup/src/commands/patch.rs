//! `patch`: replaces the binaries of a running cluster with those of a package, online.

use std::cell::RefCell;
use std::collections::BTreeMap;

use camino::Utf8Path;
use dmup_core::instance::{Instance, Role};
use dmup_core::inventory::Inventory;
use dmup_core::plan::{
    Allowances, HotfixRequest, Kind as RunKind, ParcelSpec, Plan, Purpose, TargetBuild, plan_hotfix,
};
use dmup_core::policy::Policy;
use dmup_core::report::RunEnd;
use dmup_core::selection::select;
use dmup_mirror::package::{Package, PackagedComponent, Parcel, Refusal, Wanted, open};

use super::rolling::{self, RollOut, Rolled};
use crate::args::{PatchArgs, Rollout};
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
    let fleet = known.fleet(context, &all).await?;
    let request = HotfixRequest {
        cluster: known.name.clone(),
        version: known.meta.version.clone(),
        instances: all.clone(),
        selected: selected.iter().map(|it| it.id.clone()).collect(),
        purpose: Purpose::Hotfix,
        parcel: Some(spec_of(&package.parcel)),
        parcels: Vec::new(),
        targets: targets_of(&package),
        exceptions: BTreeMap::new(),
        offline: args.offline,
        allow: allowances_of(&args.rollout),
        known_bad: known.bad_builds()?,
        ways_back: BTreeMap::new(),
    };
    let policy = policy_of(&args.rollout, context);
    let unmarked = RefCell::new(Unmarked::new());
    let decide = |inventory: &Inventory| {
        let request =
            HotfixRequest { ways_back: known.ways_back(&selected, inventory)?, ..request.clone() };
        unmarked.replace(known.unmarked(&selected, &request.targets, inventory)?);
        Ok(plan_hotfix(&request, inventory, &policy))
    };
    let apply_plan = args.apply_plan.as_ref();
    let roll_out = RollOut {
        kind: RunKind::Hotfix,
        question: &|plan| {
            format!(
                "Will patch {} node(s) of {} with {}, one after the other",
                plan.turns.len(),
                known.name,
                args.package
            )
        },
        all: &all,
        with_dm: !args.offline && selected.iter().any(|it| it.role.is_dm()),
        rolling: &args.rollout.rolling,
        parcels: &[&package.parcel],
        texts: &[],
        owed: owed.as_ref(),
        plan_only: args.plan,
        apply_plan: apply_plan.map(|file| read_plan(file, &known, &package)).transpose()?,
    };
    let rolled = roll_out.roll(decide, &known, &fleet, context).await;
    drop(lock);
    match rolled? {
        Rolled::Shown => Ok(()),
        Rolled::NothingToDo => {
            known.mark_all(&unmarked.take())?;
            context.printer.talk("Nothing to do: every selected instance runs this build already");
            if let Some(owed) = &owed {
                known.keep_for_scale_out(owed)?;
                context.printer.talk(kept::SAID);
            }
            Ok(())
        }
        Rolled::Ran { report, plan } => {
            if report.end == RunEnd::Done {
                known.mark_all(&unmarked.take())?;
            }
            rolling::end(&report, &plan, &known, context)
        }
    }
}

/// What the flags of `patch` and `upgrade` allow.
pub(crate) fn allowances_of(args: &Rollout) -> Allowances {
    Allowances { force_build: args.force_build, ..rolling::allowances_of(&args.rolling) }
}

/// The limits that the flags of `patch` and `upgrade` set.
pub(crate) fn policy_of(args: &Rollout, context: &Context) -> Policy {
    let policy = rolling::policy_of(&args.rolling, args.on_failure, context);
    Policy { guard_s: args.guard, ..policy }
}

/// A parcel as a plan names it.
pub(crate) fn spec_of(parcel: &Parcel) -> ParcelSpec {
    ParcelSpec {
        path: parcel.path.clone(),
        digest: parcel.digest.clone(),
        compressed_bytes: parcel.compressed_bytes,
        unpacked_bytes: parcel.unpacked_bytes,
    }
}

fn targets_of(package: &Package) -> BTreeMap<Role, TargetBuild> {
    package.components.iter().map(|(role, part)| (*role, target_of(part))).collect()
}

fn target_of(part: &PackagedComponent) -> TargetBuild {
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
fn read_plan(file: &Utf8Path, known: &Known, package: &Package) -> Result<Plan, Failure> {
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
    if plan.parcel.as_ref().map(|it| &it.digest) != Some(&package.parcel.digest) {
        return Err(refused(format!("it was made for another package than {}", package.path)));
    }
    Ok(plan)
}
