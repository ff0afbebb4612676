//! `start`, `stop`, `restart`, `enable`, `disable`: orders to systemd on many hosts.
//!
//! Role by role in TiUP's order (stop: the other way round), all hosts of a role at
//! once. Started means: the port is open, as with TiUP; `display` says more. Exporters come last: they
//! are started where something was, and stopped, enabled or disabled where everything was.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dmup_core::exporters::Reach;
use dmup_core::ids::{HostId, UnitName};
use dmup_core::instance::{Instance, Role};
use dmup_core::selection::select;
use dmup_exec::ports::Dm;
use dmup_remote::Fleet;
use dmup_wire::message::UnitAction;
use futures::future::join_all;

use super::exporters;
use crate::args::SelectedArgs;
use crate::ask;
use crate::context::{Context, Known};
use crate::failure::Failure;
use crate::progress::{Progress, span};

pub(crate) async fn start(args: &SelectedArgs, context: &Context) -> Result<(), Failure> {
    let (known, selected) = known_and_selected(args, context)?;
    known.refuse_unfinished_scale_out(false)?;
    let _lock = known.lock("start")?;
    let fleet = known.fleet(context, &known.meta.instances())?;
    let topology = &known.meta.topology;
    let work = async {
        bring_up(&fleet, &known, &selected, context).await?;
        let beside = exporters::reached(topology, &selected, Reach::Any);
        exporters::bring_up(&fleet, &beside, context).await
    };
    context.with_lease(&known.name, "start", &fleet, work).await?;
    context.printer.talk(format_args!("Started cluster `{}` successfully", known.name));
    Ok(())
}

pub(crate) async fn stop(args: &SelectedArgs, context: &Context) -> Result<(), Failure> {
    let (known, selected) = known_and_selected(args, context)?;
    known.refuse_unfinished_scale_out(false)?;
    if !context.global.yes {
        ask::confirm(&format!("Will stop the cluster {}: {}.", known.name, named(&selected)))?;
    }
    let _lock = known.lock("stop")?;
    let fleet = known.fleet(context, &known.meta.instances())?;
    let topology = &known.meta.topology;
    let work = async {
        bring_down(&fleet, &selected, context).await?;
        let beside = exporters::reached(topology, &selected, Reach::Whole);
        exporters::bring_down(&fleet, &beside, context).await
    };
    context.with_lease(&known.name, "stop", &fleet, work).await?;
    context.printer.talk(format_args!("Stopped cluster `{}` successfully", known.name));
    Ok(())
}

/// Stops all that is selected, then starts it: TiUP's way, in whatever state the cluster is.
pub(crate) async fn restart(
    known: &Known,
    selected: &[Instance],
    context: &Context,
) -> Result<(), Failure> {
    if !context.global.yes {
        ask::confirm(&format!(
            "Will restart the cluster {} (all that is selected at once): {}.\nIts sources stand still meanwhile.",
            known.name,
            named(selected)
        ))?;
    }
    let _lock = known.lock("restart")?;
    let fleet = known.fleet(context, &known.meta.instances())?;
    // What cannot be started again must not be stopped.
    super::run::refuse_without_rights(&fleet, selected).await?;
    let topology = &known.meta.topology;
    let work = async {
        bring_down(&fleet, selected, context).await?;
        let beside = exporters::reached(topology, selected, Reach::Whole);
        exporters::bring_down(&fleet, &beside, context).await?;
        bring_up(&fleet, known, selected, context).await?;
        let beside = exporters::reached(topology, selected, Reach::Any);
        exporters::bring_up(&fleet, &beside, context).await
    };
    context.with_lease(&known.name, "restart", &fleet, work).await?;
    context.printer.talk(format_args!("Restarted cluster `{}` successfully", known.name));
    Ok(())
}

pub(crate) async fn enable(args: &SelectedArgs, context: &Context) -> Result<(), Failure> {
    at_boot(args, context, UnitAction::Enable, "Enabled").await
}

pub(crate) async fn disable(args: &SelectedArgs, context: &Context) -> Result<(), Failure> {
    at_boot(args, context, UnitAction::Disable, "Disabled").await
}

async fn at_boot(
    args: &SelectedArgs,
    context: &Context,
    action: UnitAction,
    done: &str,
) -> Result<(), Failure> {
    let (known, selected) = known_and_selected(args, context)?;
    let _lock = known.lock(&done.to_lowercase())?;
    let fleet = known.fleet(context, &known.meta.instances())?;
    let all: Vec<&Instance> = selected.iter().collect();
    let beside = exporters::reached(&known.meta.topology, &selected, Reach::Whole);
    let work = async {
        order(&fleet, &all, action, context).await?;
        exporters::order(&fleet, &beside, action, context).await.map(drop)
    };
    context.with_lease(&known.name, &done.to_lowercase(), &fleet, work).await?;
    context.printer.talk(format_args!("{done} cluster `{}` successfully", known.name));
    Ok(())
}

fn known_and_selected(
    args: &SelectedArgs,
    context: &Context,
) -> Result<(Known, Vec<Instance>), Failure> {
    let known = context.cluster(&args.cluster)?;
    let instances = known.meta.instances();
    let selected = select(&instances, &args.selection.nodes, &args.selection.roles)
        .map_err(|bad| crate::context::bad_selection(&bad))?;
    Ok((known, selected))
}

/// Starts role by role, each when the ones before answer on their ports.
pub(crate) async fn bring_up(
    fleet: &Fleet,
    known: &Known,
    selected: &[Instance],
    context: &Context,
) -> Result<(), Failure> {
    let progress = Progress::new(context.global.format, context.surroundings.stderr_is_terminal);
    for role in Role::ALL {
        let of_role: Vec<&Instance> = selected.iter().filter(|it| it.role == role).collect();
        if of_role.is_empty() {
            continue;
        }
        let began = Instant::now();
        progress.under_way(&format!("start {role}"));
        order(fleet, &of_role, UnitAction::Start, context).await?;
        let limit = Duration::from_secs(context.global.wait_timeout);
        let closed: Vec<String> = join_all(of_role.iter().map(|it| opens(it, limit)))
            .await
            .into_iter()
            .filter_map(Result::err)
            .collect();
        if !closed.is_empty() {
            return Err(Failure::failed(format_args!("start {role}"))
                .because(closed)
                .now("the units were started; what came before them runs")
                .hint("the log of an instance is in its deploy folder, under log/"));
        }
        progress.say(&format!(
            "  started {role}: {} ({})",
            named_refs(&of_role),
            span(began.elapsed())
        ));
        if role == Role::DmMaster && selected.iter().any(|it| it.role == Role::DmWorker) {
            progress.under_way("wait until the masters have a leader");
            await_leader(known, context, limit).await?;
        }
    }
    Ok(())
}

/// A worker that finds no leader exits, and systemd starts it again only 15 s later: wait for the leader first.
/// Without one in time the workers are started all the same; their ports will tell.
async fn await_leader(known: &Known, context: &Context, limit: Duration) -> Result<(), Failure> {
    let dm = known.dm(context, &known.meta.instances()).await?;
    let began = Instant::now();
    while began.elapsed() < limit {
        if dm.look(&[]).await.is_ok_and(|seen| seen.masters.iter().any(|master| master.leader)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Stops role by role, the other way round.
pub(crate) async fn bring_down(
    fleet: &Fleet,
    selected: &[Instance],
    context: &Context,
) -> Result<(), Failure> {
    let progress = Progress::new(context.global.format, context.surroundings.stderr_is_terminal);
    for role in Role::ALL.into_iter().rev() {
        let of_role: Vec<&Instance> = selected.iter().filter(|it| it.role == role).collect();
        if of_role.is_empty() {
            continue;
        }
        let began = Instant::now();
        progress.under_way(&format!("stop {role}"));
        order(fleet, &of_role, UnitAction::Stop, context).await?;
        progress.say(&format!(
            "  stopped {role}: {} ({})",
            named_refs(&of_role),
            span(began.elapsed())
        ));
    }
    Ok(())
}

/// One order to all units given, all hosts at once.
pub(crate) async fn order(
    fleet: &Fleet,
    instances: &[&Instance],
    action: UnitAction,
    context: &Context,
) -> Result<(), Failure> {
    let mut by_host: BTreeMap<HostId, Vec<UnitName>> = BTreeMap::new();
    for instance in instances {
        by_host.entry(instance.host.clone()).or_default().push(instance.unit.clone());
    }
    let within = Duration::from_secs(context.global.wait_timeout);
    let answers = join_all(by_host.into_iter().map(|(host, units)| async move {
        let answer = fleet.unit(&host, units, action, within).await;
        (host, answer)
    }))
    .await;
    let mut failed = Vec::new();
    for (host, answer) in answers {
        match answer {
            Ok(units) => failed.extend(units.into_iter().filter_map(|unit| {
                unit.failed.map(|why| format!("{} on {host}: {why}", unit.unit))
            })),
            Err(error) => failed.push(error.to_string()),
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::failed(
        format_args!("{action:?} {}", named_refs(instances)).to_string().to_lowercase(),
    )
    .because(failed)
    .now("the other units took the order")
    .hint("`dmup display` shows every node"))
}

/// Waits until the instance's port is open.
async fn opens(instance: &Instance, limit: Duration) -> Result<(), String> {
    let began = Instant::now();
    let host = instance.host.as_str().trim_matches(['[', ']']).to_owned();
    loop {
        let connect = tokio::net::TcpStream::connect((host.as_str(), instance.port));
        let seen = match tokio::time::timeout(Duration::from_secs(3), connect).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        if began.elapsed() > limit {
            return Err(format!(
                "{}: port {} is not open after {}: {seen}",
                instance.id,
                instance.port,
                span(limit)
            ));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn named(instances: &[Instance]) -> String {
    named_refs(&instances.iter().collect::<Vec<_>>())
}

fn named_refs(instances: &[&Instance]) -> String {
    let ids: Vec<&str> = instances.iter().map(|it| it.id.as_str()).collect();
    ids.join(", ")
}
