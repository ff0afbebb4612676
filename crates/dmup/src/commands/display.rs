//! `display`: the table of the manual.

use std::time::Duration;

use dmup_core::display::{Display, Header, Look, Row, is_shown, table_text};
use dmup_core::instance::Instance;
use dmup_exec::ports::{Clock, Dm};
use dmup_remote::dm_api::Timeouts;

use crate::args::{DisplayArgs, Format};
use crate::context::{Context, Known};
use crate::failure::{Failure, Kind};

pub(crate) async fn run(args: &DisplayArgs, context: &Context) -> Result<(), Failure> {
    let known = context.cluster(&args.cluster)?;
    if args.only_version {
        context.printer.data(known.meta.version.as_str());
        return Ok(());
    }
    let all = known.meta.instances();
    let shown: Vec<Instance> = all
        .iter()
        .filter(|it| is_shown(it, &args.selection.nodes, &args.selection.roles))
        .cloned()
        .collect();
    if args.verify {
        return verify(&known, &all, &shown, context).await;
    }
    let timeouts =
        Timeouts { display: Duration::from_secs(args.status_timeout), ..Timeouts::default() };
    let dm = known.dm_within(&all, timeouts)?;
    let statuses = dm.display_statuses(&shown).await;
    let mut up = std::collections::BTreeMap::new();
    if args.uptime && !shown.is_empty() {
        let fleet = known.fleet(context, &shown)?;
        let inventory = dmup_exec::look(
            &shown,
            &fleet,
            &dm,
            &context.clock,
            false,
            false,
            context.concurrency(),
        )
        .await;
        for (host, seen) in &inventory.hosts {
            if let Err(why) = seen {
                context.printer.talk(format_args!("note: since when is not known: {host}: {why}"));
            }
        }
        for (id, process) in inventory.processes {
            if let Some(since) = process.active_since_ms {
                let now = context.clock.now().as_millisecond();
                up.insert(id, u64::try_from((now - since) / 1000).unwrap_or(0));
            }
        }
    }
    let topology = &known.meta.topology;
    let rows = shown
        .iter()
        .map(|it| {
            let status = statuses.get(&it.id).cloned().unwrap_or_else(|| "N/A".to_owned());
            Row::of(topology, it, status, up.get(&it.id).copied())
        })
        .collect();
    let tls_dir = known.cluster.tls_dir();
    let display = Display { header: Header::of(&known.name, &known.meta, tls_dir.as_str()), rows };
    let text = match context.global.format {
        Format::Default => {
            display.text(Look { uptime: args.uptime, colour: context.surroundings.colour })
        }
        Format::Json => display.json(),
    };
    context.printer.data(text.trim_end_matches('\n'));
    Ok(())
}

/// What every node really runs, by the hash of its process and by its own word.
async fn verify(
    known: &Known,
    all: &[Instance],
    shown: &[Instance],
    context: &Context,
) -> Result<(), Failure> {
    let fleet = known.fleet(context, shown)?;
    let dm = known.dm(all)?;
    let inventory =
        dmup_exec::look(shown, &fleet, &dm, &context.clock, true, false, context.concurrency())
            .await;
    let mut rows = Vec::new();
    let mut values = Vec::new();
    let mut silent = Vec::new();
    for (host, seen) in &inventory.hosts {
        if let Err(why) = seen {
            silent.push(format!("{host}: {why}"));
        }
    }
    for instance in shown {
        let said = dm.build_of(instance).await.ok().unwrap_or_default();
        let process = inventory.processes.get(&instance.id);
        let running = process.and_then(|it| it.running.clone());
        let on_disk = process.and_then(|it| it.on_disk.clone());
        let verdict = match (&running, &on_disk) {
            (Some(running), Some(disk)) if running == disk => "runs what is on disk",
            (Some(_), Some(_)) => "runs another build than is on disk",
            (Some(_), None) => "runs; nothing on disk",
            (None, Some(_)) => "down",
            (None, None) => "unknown",
        };
        let short = |digest: &Option<dmup_core::digest::Digest>| {
            digest.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string)
        };
        rows.push(vec![
            instance.id.to_string(),
            role_text(instance),
            short(&running),
            short(&on_disk),
            if said.release.is_empty() { "-".to_owned() } else { said.release.clone() },
            if said.commit.is_empty() {
                "-".to_owned()
            } else {
                said.commit.chars().take(12).collect()
            },
            verdict.to_owned(),
        ]);
        values.push(serde_json::json!({
            "id": instance.id, "role": instance.role, "patched": instance.patched,
            "running": running, "on_disk": on_disk,
            "release": said.release, "commit": said.commit, "verdict": verdict,
        }));
    }
    match context.global.format {
        Format::Default => {
            let titles =
                ["ID", "Role", "Running", "On disk", "Says release", "Says commit", "Verdict"];
            context.printer.data(table_text(&titles, &rows).trim_end_matches('\n'));
        }
        Format::Json => context.printer.data(
            serde_json::to_string_pretty(&serde_json::json!({ "format": 1, "instances": values }))
                .expect("text and numbers"),
        ),
    }
    if silent.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(Kind::Unknown, format_args!("not every host of {} answered", known.name))
            .because(silent)
            .now("what the others run is known, see the table"))
    }
}

fn role_text(instance: &Instance) -> String {
    let suffix = if instance.patched { " (patched)" } else { "" };
    format!("{}{suffix}", instance.role)
}
