//! `reload`: units, run scripts and configurations as the topology has them, and a restart, node by node.
//!
//! What is rendered is compared with what lies on the hosts. Files of DM are written in the node's own window, between
//! stop and start, and go back with it; those of monitoring, which nothing depends on, before the first turn.

use std::collections::BTreeMap;

use dmup_core::ids::InstanceId;
use dmup_core::instance::{Instance, Role};
use dmup_core::layout::Deployment;
use dmup_core::selection::select;
use dmup_core::texts::{Text, Texts, TextsChange};
use dmup_core::version::DmVersion;
use dmup_mirror::mirror::Version;
use dmup_mirror::package::component_package;
use dmup_remote::Fleet;
use dmup_wire::message::PutFile;
use futures::future::join_all;

use super::laying_out::{self, Packages};
use super::obtaining::Obtaining;
use super::patch;
use super::restart::{Again, write};
use crate::args::ReloadArgs;
use crate::ask;
use crate::context::{Context, Known, bad_selection};
use crate::failure::{Failure, chain};
use crate::progress::Progress;

pub(crate) async fn run(args: &ReloadArgs, context: &Context) -> Result<(), Failure> {
    let known = context.cluster(&args.cluster)?;
    known.refuse_unfinished_scale_out(false)?;
    let all = known.meta.instances();
    let selected = select(&all, &args.selection.nodes, &args.selection.roles)
        .map_err(|bad| bad_selection(&bad))?;
    if !args.plan {
        known.refuse_unfinished_runs()?;
    }
    let _lock = if args.plan { None } else { Some(known.lock("reload")?) };
    let scratch = context.scratch()?;
    let version = &known.meta.version;
    let Compared { differing, silent } =
        compare_all(&known, &selected, version, scratch.path(), context).await?;
    if !silent.is_empty() {
        return Err(Failure::refused(format_args!("compare the files of {}", known.name))
            .because(silent.into_values())
            .hint("leave these nodes out with -N, or bring their hosts up"));
    }
    if args.skip_restart {
        return only_write(&known, &all, differing, context).await;
    }
    let mut again = Again {
        is_reload: true,
        selected: &selected,
        changes: BTreeMap::new(),
        texts: Vec::new(),
        before: Vec::new(),
        plan_only: args.plan,
        policy: patch::policy_of(&args.rolling, args.on_failure, context),
        rolling: &args.rolling,
    };
    for it in differing {
        if it.instance.role.is_dm() {
            let (change, texts) = it.change();
            again.changes.insert(it.instance.id.clone(), change);
            again.texts.extend(texts);
        } else {
            it.say(context);
            again.before.push((it.instance.host, it.after));
        }
    }
    again.roll(&known, context).await
}

/// Files of an instance that are not as they should be.
pub(crate) struct Differing {
    pub(crate) instance: Instance,
    /// As they lie there; those that are missing are not among them.
    before: Vec<PutFile>,
    /// As they should be.
    pub(crate) after: Vec<PutFile>,
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

    pub(crate) fn say(&self, context: &Context) {
        for file in &self.after {
            context.printer.talk(format_args!("  {}: {} differs", self.instance.id, file.path));
        }
    }
}

/// What came of a comparison.
pub(crate) struct Compared {
    /// Only those of which a file differs.
    pub(crate) differing: Vec<Differing>,
    /// Instances whose files could not be read, and why.
    pub(crate) silent: BTreeMap<InstanceId, String>,
}

/// What lies there for each selected instance, compared with what should with this version. Changes nothing.
pub(crate) async fn compare_all(
    known: &Known,
    selected: &[Instance],
    version: &DmVersion,
    scratch: &camino::Utf8Path,
    context: &Context,
) -> Result<Compared, Failure> {
    let progress = Progress::new(context.global.format, context.surroundings.stderr_is_terminal);
    let deployment = Deployment::new(&known.name, &known.meta.topology);
    let mut laid = laying_out::render(&deployment, selected, &[])?;
    if let Some(monitoring) = selected.iter().find(|it| !it.role.is_dm()) {
        match texts_of_dm(version, monitoring, scratch, &progress, context).await {
            Ok(packages) => laying_out::add_monitoring(&mut laid, &packages, &known.name),
            Err(why) => context
                .printer
                .talk(format_args!("note: alert rules and dashboards stay as they are: {why}")),
        }
    }
    progress.under_way("compare the files on the hosts");
    let fleet = known.fleet(context, selected)?;
    let of_instances = laid.iter().filter_map(|part| Some((part.instance()?, part.files())));
    let looks = join_all(of_instances.map(|(instance, files)| async {
        (instance.id.clone(), compare(&fleet, instance, files).await)
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

/// DM's own package, which brings alert rules and dashboards.
async fn texts_of_dm(
    version: &DmVersion,
    monitoring: &Instance,
    scratch: &camino::Utf8Path,
    progress: &Progress,
    context: &Context,
) -> Result<Packages, String> {
    let mut obtaining = Obtaining::new(context);
    let (os, arch) = (monitoring.os.as_str(), monitoring.arch.as_str());
    let master = Role::DmMaster;
    let version = Version::Exact(version.clone());
    let path = obtaining.package(master, version, os, arch, progress).await?;
    progress.under_way(&format!("open {path}"));
    let package = component_package(&path, master, arch, scratch).map_err(|it| chain(&it))?;
    Ok(Packages::from([((master, arch.to_owned()), package)]))
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

fn texts_of(files: &[PutFile]) -> Texts {
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
    all: &[Instance],
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
    let fleet = known.fleet(context, all)?;
    let files: Vec<_> = differing.into_iter().map(|it| (it.instance.host, it.after)).collect();
    context.with_lease(&known.name, "reload", &fleet, write(&fleet, &files)).await?;
    context.printer.talk(format_args!(
        "Wrote the files of {}; they count from the next start on: `dmup restart {}`",
        known.name, known.name
    ));
    Ok(())
}
