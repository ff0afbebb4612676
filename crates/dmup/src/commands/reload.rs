//! `reload`: units, run scripts and configurations as the topology has them, and a restart, node by node.
//!
//! What is rendered is compared with what lies on the hosts. Files are written in the node's own window, between
//! stop and start, and go back with it; those of exporters, too. A configuration that a program of the package can judge
//! is judged before anything is restarted.

use std::collections::BTreeMap;

use dmup_core::exporters::Reach;
use dmup_core::ids::InstanceId;
use dmup_core::instance::{Instance, Role};
use dmup_core::layout::Deployment;
use dmup_core::plan::{Kind as RunKind, RestartRequest, plan_restart};
use dmup_core::selection::select;
use dmup_core::texts::{Text, Texts, TextsChange};
use dmup_core::version::DmVersion;
use dmup_exec::ports::EffectError;
use dmup_mirror::mirror::Version;
use dmup_mirror::package::component_package;
use dmup_remote::Fleet;
use dmup_wire::message::PutFile;
use futures::future::join_all;

use super::laying_out::{self, Packages};
use super::obtaining::Obtaining;
use super::rolling::{self, RollOut};
use super::{exporters, restart};
use crate::args::ReloadArgs;
use crate::ask;
use crate::context::{Context, Known, bad_selection};
use crate::failure::{Failure, chain};
use crate::progress::Progress;

pub(crate) async fn run(args: &ReloadArgs, context: &Context) -> Result<(), Failure> {
    let known = context.cluster(&args.cluster)?;
    known.refuse_unfinished_scale_out(false)?;
    let mut all = known.meta.instances();
    let mut selected = select(&all, &args.selection.nodes, &args.selection.roles)
        .map_err(|bad| bad_selection(&bad))?;
    if !args.plan {
        known.refuse_unfinished_runs()?;
    }
    let _lock = if args.plan { None } else { Some(known.lock("reload")?) };
    let fleet = known.fleet(context, &all).await?;
    // As TiUP: exporters of every host that something of is reloaded.
    let pairs = exporters::reached(&known.meta.topology, &selected, Reach::Any);
    let beside = exporters::as_instances(&fleet, &pairs, context).await;
    all.extend(beside.clone());
    selected.extend(beside);
    let scratch = context.scratch()?;
    let packages = texts_of_dm(&known.meta.version, &selected, scratch.path(), context).await;
    let Compared { differing, silent } =
        compare_all(&known, &known.meta.version, &selected, &packages, &fleet, context).await?;
    if !silent.is_empty() {
        return Err(Failure::refused(format_args!("compare the files of {}", known.name))
            .because(silent.into_values())
            .hint("leave these nodes out with -N, or bring their hosts up"));
    }
    if args.skip_restart {
        return only_write(&known, &fleet, differing, context).await;
    }
    let (mut changes, mut texts) = (BTreeMap::new(), Vec::new());
    for it in differing {
        let (change, both) = it.change();
        changes.insert(it.instance.id, change);
        texts.extend(both);
    }
    let request = RestartRequest {
        cluster: known.name.clone(),
        version: known.meta.version.clone(),
        targets: selected.iter().map(|it| (it.id.clone(), changes.remove(&it.id))).collect(),
        instances: all.clone(),
        is_reload: true,
        allow: rolling::allowances_of(&args.rolling),
    };
    let policy = rolling::policy_of(&args.rolling, args.on_failure, context);
    let roll_out = RollOut {
        kind: RunKind::Reload,
        question: &|plan| restart::question("reload", plan, &known),
        all: &all,
        with_dm: selected.iter().any(|it| it.role.is_dm()),
        rolling: &args.rolling,
        parcels: &[],
        texts: &texts,
        owed: None,
        plan_only: args.plan,
        apply_plan: None,
    };
    let decide = |inventory: &_| Ok(plan_restart(&request, inventory, &policy));
    let rolled = roll_out.roll(decide, &known, &fleet, context).await?;
    restart::end(&rolled, &known, context)
}

/// Files of an instance that are not as they should be.
pub(crate) struct Differing {
    pub(crate) instance: Instance,
    /// As they lie there; those that are missing are not among them.
    before: Vec<PutFile>,
    /// As they should be.
    after: Vec<PutFile>,
}

impl Differing {
    /// As a plan names it, and what a run has to keep for it: before, after.
    pub(crate) fn change(&self) -> (TextsChange, [Texts; 2]) {
        let (before, after) = (texts_of(&self.before), texts_of(&self.after));
        let change = TextsChange {
            before: before.digest(),
            after: after.digest(),
            paths: after.0.iter().map(|text| text.path.clone()).collect(),
        };
        (change, [before, after])
    }
}

/// What came of a comparison.
pub(crate) struct Compared {
    /// Only those of which a file differs.
    pub(crate) differing: Vec<Differing>,
    /// Instances whose files could not be read, and why.
    pub(crate) silent: BTreeMap<InstanceId, String>,
}

/// What lies there for each selected instance, compared with what should. The packages are for alert rules and dashboards.
/// Changes nothing.
pub(crate) async fn compare_all(
    known: &Known,
    version: &DmVersion,
    selected: &[Instance],
    packages: &Packages,
    fleet: &Fleet,
    context: &Context,
) -> Result<Compared, Failure> {
    let progress = Progress::new(context.global.format, context.surroundings.stderr_is_terminal);
    let deployment = Deployment::new(&known.name, version, &known.meta.topology);
    let mut laid = laying_out::render(&deployment, selected, &[])?;
    laying_out::add_monitoring(&mut laid, packages, &known.name);
    progress.under_way("compare the files on the hosts");
    let of_instances = laid.iter().filter_map(|part| Some((part.instance()?, part.files())));
    let looks = join_all(of_instances.map(|(instance, files)| async {
        (instance.id.clone(), compare(fleet, instance, files).await)
    }))
    .await;
    progress.end();
    let mut compared = Compared { differing: Vec::new(), silent: BTreeMap::new() };
    for (id, look) in looks {
        match look {
            Ok(differing) if differing.after.is_empty() => {}
            Ok(differing) => compared.differing.push(differing),
            Err(why) => {
                compared.silent.insert(id, why);
            }
        }
    }
    Ok(compared)
}

/// DM's own package, which brings alert rules and dashboards, if one of these shows them. Without it they stay, which is told.
async fn texts_of_dm(
    version: &DmVersion,
    selected: &[Instance],
    scratch: &camino::Utf8Path,
    context: &Context,
) -> Packages {
    let shows = |it: &&Instance| matches!(it.role, Role::Prometheus | Role::Grafana);
    let Some(monitoring) = selected.iter().find(shows) else { return Packages::new() };
    let progress = Progress::new(context.global.format, context.surroundings.stderr_is_terminal);
    let (os, arch) = (monitoring.os.as_str(), monitoring.arch.as_str());
    let version = Version::Exact(version.clone());
    let obtained =
        Obtaining::new(context).package(Role::DmMaster, version, os, arch, &progress).await;
    let opened = obtained.and_then(|path| {
        progress.under_way(&format!("open {path}"));
        component_package(&path, Role::DmMaster, arch, scratch).map_err(|it| chain(&it))
    });
    progress.end();
    match opened {
        Ok(package) => Packages::from([((Role::DmMaster, arch.to_owned()), package)]),
        Err(why) => {
            context
                .printer
                .talk(format_args!("note: alert rules and dashboards stay as they are: {why}"));
            Packages::new()
        }
    }
}

/// Compares files of an instance with what lies there.
pub(crate) async fn compare(
    fleet: &Fleet,
    instance: &Instance,
    files: &[PutFile],
) -> Result<Differing, String> {
    let mut differing =
        Differing { instance: instance.clone(), before: Vec::new(), after: Vec::new() };
    for file in files {
        let there = fleet.get(&differing.instance.host, &file.path).await;
        match there.map_err(|error| error.to_string())? {
            Some(content) if content == file.content => continue,
            Some(content) => differing.before.push(PutFile { content, ..file.clone() }),
            None => {}
        }
        differing.after.push(file.clone());
    }
    Ok(differing)
}

/// The same, as a run keeps them.
pub(crate) fn texts_of(files: &[PutFile]) -> Texts {
    let text = |file: &PutFile| Text {
        path: file.path.clone(),
        mode: file.mode,
        root: file.root,
        content: file.content.clone(),
    };
    Texts(files.iter().map(text).collect())
}

/// `--skip-restart`.
async fn only_write(
    known: &Known,
    fleet: &Fleet,
    differing: Vec<Differing>,
    context: &Context,
) -> Result<(), Failure> {
    if differing.is_empty() {
        context.printer.talk("Nothing to do: every file is as the topology has it");
        return Ok(());
    }
    for Differing { instance, after, .. } in &differing {
        for file in after {
            context.printer.talk(format_args!("  {}: {}", instance.id, file.path));
        }
    }
    if !context.global.yes {
        ask::confirm(&format!("Will write these files of {} and restart nothing.", known.name))?;
    }
    let work = async {
        let puts = differing.into_iter().map(|it| async move {
            let paths: Vec<_> = it.after.iter().map(|file| file.path.clone()).collect();
            let texts = texts_of(&it.after);
            let note = laying_out::check_config(fleet, &it.instance, &paths, texts).await?;
            if let Some(note) = note {
                context.printer.talk(format_args!("note: {note}"));
            }
            fleet.put(&it.instance.host, it.after).await
        });
        let failed: Vec<String> = join_all(puts)
            .await
            .into_iter()
            .filter_map(|it| it.err().map(|error: EffectError| error.to_string()))
            .collect();
        if failed.is_empty() {
            return Ok(());
        }
        Err(Failure::failed("write the files")
            .because(failed)
            .now("nothing was restarted; some files may be new, and count from the next start on")
            .hint("give the same command again after the cause is gone"))
    };
    context.with_lease(&known.name, "reload", fleet, work).await?;
    context.printer.talk(format_args!(
        "Wrote the files of {}; they count from the next start on: `dmup restart {}`",
        known.name, known.name
    ));
    Ok(())
}
