//! `versions`: which build every node really runs, by its process, its disk, its own word and our records.
//!
//! `display --verify` shows the same beside TiUP's table.

use std::fmt::Write as _;

use dmup_core::builds::{self, BuildSeen, Reason, Verdict};
use dmup_core::digest::Digest;
use dmup_core::display::table_text;
use dmup_core::instance::Instance;
use dmup_core::selection::select;
use dmup_core::unfinished::{self, Unfinished};
use dmup_exec::ports::Dm as _;
use futures::future::join_all;
use serde::Serialize;

use super::run::how_to_go_on;
use crate::args::{Format, VersionsArgs};
use crate::context::{Context, Known, bad_selection};
use crate::failure::{Failure, Kind};

/// What `--format json` prints.
#[derive(Serialize)]
struct Document<'a> {
    /// Of our own objects, docs/json.md.
    format: u32,
    cluster: &'a str,
    version: &'a str,
    instances: &'a [BuildSeen],
    unfinished: &'a [Unfinished],
}

/// One look at builds.
pub(crate) struct Builds {
    /// In the order of the topology.
    pub(crate) seen: Vec<BuildSeen>,
    /// What commands of TiUP left, here and on the hosts.
    pub(crate) unfinished: Vec<Unfinished>,
}

pub(crate) async fn run(args: &VersionsArgs, context: &Context) -> Result<(), Failure> {
    let known = context.cluster(&args.cluster)?;
    let all = known.meta.instances();
    let meant = select(&all, &args.selection.nodes, &args.selection.roles)
        .map_err(|bad| bad_selection(&bad))?;
    let builds = look(&known, &all, &meant, context).await?;
    match context.global.format {
        Format::Default => {
            let rows: Vec<Vec<String>> =
                builds.seen.iter().map(|it| row(it, known.meta.version.as_str())).collect();
            let titles = [
                "ID",
                "Role",
                "Running",
                "On Disk",
                "Says Release",
                "Says Commit",
                "Recorded",
                "Verdict",
            ];
            context.printer.data(table_text(&titles, &rows).trim_end_matches('\n'));
        }
        Format::Json => {
            let document = Document {
                format: 1,
                cluster: known.name.as_str(),
                version: known.meta.version.as_str(),
                instances: &builds.seen,
                unfinished: &builds.unfinished,
            };
            context
                .printer
                .data(serde_json::to_string_pretty(&document).expect("texts always serialise"));
        }
    }
    tell(&builds.unfinished, &known, context)?;
    outcome(&builds.seen, &known)
}

/// Asks the hosts and nodes of `shown` which build they have.
pub(crate) async fn look(
    known: &Known,
    all: &[Instance],
    shown: &[Instance],
    context: &Context,
) -> Result<Builds, Failure> {
    let fleet = known.fleet(context, shown).await?;
    let dm = known.dm(context, all).await?;
    let (inventory, said) = futures::join!(
        dmup_exec::look(shown, &fleet, &dm, &context.clock, true, false, context.concurrency()),
        join_all(shown.iter().map(|it| dm.build_of(it))),
    );
    let said: Vec<_> = said.into_iter().map(|it| it.map_err(|error| error.observed)).collect();
    let recorded = known.recorded_builds()?;
    let facts: Vec<builds::Known<'_>> = shown
        .iter()
        .zip(&said)
        .map(|(instance, said)| builds::Known {
            instance,
            version: &known.meta.version,
            recorded: recorded.get(&instance.id),
            said: said.as_ref().map_err(String::as_str),
        })
        .collect();
    let mut unfinished = unfinished::in_folder(&known.cluster.traces(), all);
    unfinished.extend(unfinished::on_hosts(&inventory));
    Ok(Builds { seen: builds::judge(&facts, &inventory), unfinished })
}

fn row(build: &BuildSeen, version: &str) -> Vec<String> {
    let short =
        |digest: &Option<Digest>| digest.as_ref().map_or_else(|| "-".to_owned(), Digest::to_string);
    let said = |text: &Option<String>, longest: usize| {
        text.as_ref().map_or_else(|| "-".to_owned(), |text| text.chars().take(longest).collect())
    };
    // Monitoring has versions of its own, which `meta.yaml` does not name.
    let mut recorded = if build.role.is_dm() { version.to_owned() } else { "-".to_owned() };
    if build.patched {
        recorded.push_str(" (patched)");
    }
    if let Some(digest) = &build.recorded {
        write!(recorded, " {digest}").expect("a text takes everything");
    }
    vec![
        build.id.to_string(),
        build.role.to_string(),
        short(&build.running),
        short(&build.on_disk),
        said(&build.release, 64),
        said(&build.commit, 12),
        recorded,
        build.verdict.as_str().to_owned(),
    ]
}

/// Says what is half done, with what to do about it. Beside the data, whoever calls: scripts read tables.
pub(crate) fn tell(
    unfinished: &[Unfinished],
    known: &Known,
    context: &Context,
) -> Result<(), Failure> {
    for half in unfinished {
        context.printer.aside(format_args!("note: {half}; {}", half.hint()));
    }
    // Of two builds in one role that is the usual reason.
    for run in known.runs()?.iter().filter(|run| run.can_go_on() && run.touched_a_node()) {
        let how = run.kind().map(|kind| how_to_go_on(kind, &known.name)).unwrap_or_default();
        context.printer.aside(format_args!("note: run {} has not ended; {how}", run.id));
    }
    Ok(())
}

/// Well only if every node is as recorded.
pub(crate) fn outcome(seen: &[BuildSeen], known: &Known) -> Result<(), Failure> {
    let odd = |verdict: Verdict| seen.iter().filter(move |it| it.verdict == verdict);
    let (drifted, unknown) = (odd(Verdict::Drifted).count(), odd(Verdict::Unknown).count());
    let causes = || {
        // What ails a host ails all of its nodes: said once.
        let mut said: Vec<(String, Vec<&str>)> = Vec::new();
        for node in odd(Verdict::Drifted).chain(odd(Verdict::Unknown)) {
            for reason in node.reasons.iter().map(Reason::to_string) {
                match said.iter_mut().find(|(before, _)| *before == reason) {
                    Some((_, nodes)) => nodes.push(node.id.as_str()),
                    None => said.push((reason, vec![node.id.as_str()])),
                }
            }
        }
        said.into_iter().map(|(reason, nodes)| format!("{}: {reason}", nodes.join(", ")))
    };
    let all = seen.len();
    if drifted > 0 {
        let failure = Failure::new(
            Kind::Mixed,
            format_args!(
                "{drifted} of {all} nodes of {} do not have the build that is recorded",
                known.name
            ),
        );
        let next_start = odd(Verdict::Drifted)
            .filter(|it| it.reasons.iter().any(|it| matches!(it, Reason::RunsOther { .. })))
            .map(|it| it.id.as_str())
            .collect::<Vec<_>>()
            .join(",");
        let failure = failure.because(causes()).now("nothing was touched").hint(format_args!(
            "`dmup patch {} PACKAGE -N …` puts a known build in, node by node, and records it",
            known.name
        ));
        return Err(if next_start.is_empty() {
            failure
        } else {
            failure.hint(format_args!(
                "what lies on the disk of {next_start} starts with the next restart, also one that nobody asked for"
            ))
        });
    }
    if unknown > 0 {
        return Err(Failure::new(
            Kind::Unknown,
            format_args!("what {unknown} of {all} nodes of {} run is not known", known.name),
        )
        .because(causes())
        .now("nothing was touched; what the others run is known, see the table")
        .hint(format_args!("`dmup display {}` shows which nodes are up", known.name)));
    }
    Ok(())
}
