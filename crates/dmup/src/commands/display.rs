//! `display`: the table of the manual.

use std::time::Duration;

use dmup_core::display::{Display, Header, Look, Row, is_shown};
use dmup_core::instance::Instance;
use dmup_core::unfinished::in_folder;
use dmup_exec::ports::Clock;
use dmup_remote::dm_api::Timeouts;

use super::versions;
use crate::args::{DisplayArgs, Format};
use crate::context::Context;
use crate::failure::Failure;

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
    let builds =
        if args.verify { Some(versions::look(&known, &all, &shown, context).await?) } else { None };
    let timeouts =
        Timeouts { display: Duration::from_secs(args.status_timeout), ..Timeouts::default() };
    let dm = known.dm_within(context, &all, timeouts).await?;
    let statuses = dm.display_statuses(&shown).await;
    let mut up = std::collections::BTreeMap::new();
    if args.uptime && !shown.is_empty() {
        let fleet = known.fleet(context, &shown).await?;
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
            let seen = builds.iter().flat_map(|builds| &builds.seen);
            let build = seen.into_iter().find(|seen| seen.id == it.id).cloned();
            Row { build, ..Row::of(topology, it, status, up.get(&it.id).copied()) }
        })
        .collect();
    let tls_dir = known.cluster.tls_dir();
    let display = Display { header: Header::of(&known.name, &known.meta, tls_dir.as_str()), rows };
    let text = match context.global.format {
        Format::Default => display.text(Look {
            uptime: args.uptime,
            builds: args.verify,
            colour: context.surroundings.colour,
        }),
        Format::Json => display.json(),
    };
    context.printer.data(text.trim_end_matches('\n'));
    match builds {
        Some(builds) => {
            versions::tell(&builds.unfinished, &known, context)?;
            versions::outcome(&builds.seen, &known)
        }
        None => versions::tell(&in_folder(&known.cluster.traces(), &all), &known, context),
    }
}
