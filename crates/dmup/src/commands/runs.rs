//! `runs`: what was run on a cluster, how it ended, and whether it can go on.

use camino::Utf8PathBuf;
use dmup_core::display::table_text;
use dmup_core::journal::RunState;
use dmup_core::plan::Kind;
use dmup_core::report::RunEnd;
use dmup_exec::RunFolder;

use crate::args::{Format, RunsArgs};
use crate::context::{Context, PastRun};
use crate::failure::{Failure, chain};

/// In the place of a cluster's name: whichever has the run. A cluster that is really called so comes first.
const SHOW: &str = "show";

pub(crate) fn run(args: &RunsArgs, context: &Context) -> Result<(), Failure> {
    if let (SHOW, Some(id)) = (args.cluster.as_str(), &args.run)
        && context.cluster(SHOW).is_err()
    {
        return show(&folder_of(id, context)?, context);
    }
    let known = context.cluster(&args.cluster)?;
    match &args.run {
        Some(id) => show(&known.run_folder(id)?, context),
        None => {
            list(&known.runs()?, context);
            Ok(())
        }
    }
}

/// The folder of a run of any cluster.
fn folder_of(id: &str, context: &Context) -> Result<Utf8PathBuf, Failure> {
    let listed = context.profile.clusters().map_err(|error| Failure::failed(chain(&error)))?;
    let names: Vec<String> = listed.iter().map(|it| it.cluster.name().to_string()).collect();
    names
        .iter()
        .filter_map(|name| context.cluster(name).ok())
        .find_map(|known| known.run_folder(id).ok())
        .ok_or_else(|| {
            Failure::refused(format_args!("no cluster has a run {id}"))
                .because([format!("looked at: {}", names.join(", "))])
                .hint("`dmup runs CLUSTER` lists the runs of a cluster")
        })
}

fn list(runs: &[PastRun], context: &Context) {
    let rows: Vec<Vec<String>> = runs
        .iter()
        .map(|run| {
            let (kind, nodes) = match &run.content {
                Ok((plan, _)) => (kind_word(plan.kind), plan.turns.len().to_string()),
                Err(_) => ("?", "?".to_owned()),
            };
            vec![run.id.clone(), kind.to_owned(), nodes, state_words(run)]
        })
        .collect();
    match context.global.format {
        Format::Default => {
            context
                .printer
                .data(table_text(&["Run", "Kind", "Nodes", "State"], &rows).trim_end_matches('\n'));
        }
        Format::Json => {
            let runs: Vec<serde_json::Value> = rows
                .iter()
                .zip(runs)
                .map(|(row, run)| {
                    serde_json::json!({
                        "id": row[0], "kind": row[1], "nodes": row[2], "state": row[3],
                        "can_go_on": run.can_go_on(),
                    })
                })
                .collect();
            context.printer.data(serde_json::json!({ "format": 1, "runs": runs }));
        }
    }
}

fn show(folder: &camino::Utf8Path, context: &Context) -> Result<(), Failure> {
    let run = RunFolder::at(folder);
    let plan = run.plan().map_err(|error| Failure::failed(chain(&error)))?;
    let (_, lines) = run.journal().map_err(|error| Failure::failed(chain(&error)))?;
    match context.global.format {
        Format::Default => {
            context.printer.data(dmup_core::plan::render(&plan));
            context.printer.data("Journal:");
            for line in &lines {
                context.printer.data(serde_json::to_string(line).expect("text and numbers"));
            }
        }
        Format::Json => context.printer.data(serde_json::json!({
            "format": 1, "plan": plan, "journal": lines, "report": run.report(),
        })),
    }
    Ok(())
}

fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Hotfix => "hotfix",
        Kind::Upgrade => "upgrade",
        Kind::Rollback => "rollback",
        Kind::Restart => "restart",
        Kind::Reload => "reload",
    }
}

fn state_words(run: &PastRun) -> String {
    match &run.content {
        Err(why) => format!("unreadable: {why}"),
        Ok((_, folded)) => match &folded.state {
            RunState::Ready | RunState::InDoubt { .. } | RunState::Stopped { .. } => {
                let while_ = if folded.way_back.is_some() { " on its way back" } else { "" };
                format!("interrupted{while_}; can go on")
            }
            RunState::Ended { end } => match end {
                RunEnd::Done => "done".to_owned(),
                RunEnd::Failed { why } => format!("failed: {why}"),
                RunEnd::RolledBackNode { instance, .. } => format!("{instance} put back"),
                RunEnd::RolledBackAll { .. } => "all put back".to_owned(),
                RunEnd::TakenBack => "taken back".to_owned(),
                RunEnd::Interrupted => "stopped as asked; can go on".to_owned(),
                RunEnd::Paused => "paused; can go on".to_owned(),
                RunEnd::Unknown { .. } => "unknown; can go on".to_owned(),
            },
        },
    }
}
