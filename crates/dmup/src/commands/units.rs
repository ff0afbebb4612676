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
use dmup_core::inventory::ProcessSeen;
use dmup_core::selection::select;
use dmup_exec::ports::Dm;
use dmup_remote::Fleet;
use dmup_remote::dm_api::DmClient;
use dmup_remote::hosts::probe_instance;
use dmup_remote::ssh::Reach as Way;
use dmup_wire::message::{Probe, UnitAction};
use futures::future::join_all;

use super::exporters;
use crate::args::SelectedArgs;
use crate::ask;
use crate::context::{Context, Known};
use crate::failure::{Failure, Kind};
use crate::progress::{Progress, span};

pub(crate) async fn start(args: &SelectedArgs, context: &Context) -> Result<(), Failure> {
    let (known, selected) = known_and_selected(args, context)?;
    known.refuse_unfinished_scale_out(false)?;
    let _lock = known.lock("start")?;
    let fleet = known.fleet(context, &known.meta.instances()).await?;
    let topology = &known.meta.topology;
    let dm = who_knows_the_leader(&known, &selected, context).await?;
    refuse_taken_ports(&fleet, &selected, &known, context).await?;
    let work = async {
        bring_up(&fleet, dm.as_ref(), &selected, context).await?;
        let beside = exporters::reached(topology, &selected, Reach::Any);
        exporters::bring_up(&fleet, &beside, context).await
    };
    let started = context.with_lease(&known.name, "start", &fleet, work).await;
    started.map_err(|failure| hint_if_begun(failure, &known))?;
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
    let fleet = known.fleet(context, &known.meta.instances()).await?;
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
    let fleet = known.fleet(context, &known.meta.instances()).await?;
    let dm = who_knows_the_leader(known, selected, context).await?;
    // What cannot be started again must not be stopped.
    super::run::refuse_without_rights(&fleet, selected).await?;
    refuse_taken_ports(&fleet, selected, known, context).await?;
    let topology = &known.meta.topology;
    let work = async {
        bring_down(&fleet, selected, context).await?;
        let beside = exporters::reached(topology, selected, Reach::Whole);
        exporters::bring_down(&fleet, &beside, context).await?;
        bring_up(&fleet, dm.as_ref(), selected, context).await?;
        let beside = exporters::reached(topology, selected, Reach::Any);
        exporters::bring_up(&fleet, &beside, context).await
    };
    let started = context.with_lease(&known.name, "restart", &fleet, work).await;
    started.map_err(|failure| hint_if_begun(failure, known))?;
    context.printer.talk(format_args!("Restarted cluster `{}` successfully", known.name));
    Ok(())
}

/// What to type when not everything could be started.
fn hint_if_begun(failure: Failure, known: &Known) -> Failure {
    match failure.kind {
        Kind::Failed => failure.hint(format_args!(
            "`dmup start {}` once the cause is gone: what is up by then is left alone",
            known.name
        )),
        Kind::Usage
        | Kind::Refused
        | Kind::RolledBack
        | Kind::Mixed
        | Kind::Unknown
        | Kind::Interrupted => failure,
    }
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
    let fleet = known.fleet(context, &known.meta.instances()).await?;
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

/// What is down cannot have its port while somebody else has it; and whoever has it would be taken for it. Hosts that do
/// not answer are told of when they are given the order.
async fn refuse_taken_ports(
    fleet: &Fleet,
    selected: &[Instance],
    known: &Known,
    context: &Context,
) -> Result<(), Failure> {
    // On a playground all hosts are one, and have each other's ports.
    let reach = context.reach(known.meta.topology.global.ssh_type.as_str());
    if matches!(reach, Way::Local { playground: Some(_) }) {
        return Ok(());
    }
    let mut by_host: BTreeMap<&HostId, Vec<&Instance>> = BTreeMap::new();
    for instance in selected {
        by_host.entry(&instance.host).or_default().push(instance);
    }
    let looks = by_host.into_iter().map(|(host, own)| async move {
        let probe = Probe {
            instances: own.iter().map(|it| probe_instance(it)).collect(),
            ports: own.iter().flat_map(|it| it.ports.clone()).collect(),
            ..Probe::default()
        };
        let Ok(seen) = fleet.probe(host, probe).await else { return Vec::new() };
        let is_down = |it: &&&Instance| {
            seen.processes.iter().any(|(id, process)| *id == it.id && process.pid.is_none())
        };
        let taken = own.iter().filter(is_down).flat_map(|it| {
            let ports = it.ports.iter().filter(|port| seen.listening.contains(port));
            ports.map(|port| {
                format!(
                    "{}: its unit is down, and somebody else listens on port {port} (`ss -ltnp` there names it)",
                    it.id
                )
            })
        });
        taken.collect()
    });
    let taken: Vec<String> = join_all(looks).await.into_iter().flatten().collect();
    if taken.is_empty() {
        return Ok(());
    }
    Err(Failure::refused("not every instance can have its port")
        .because(taken)
        .hint("stop who has the port, then give the same command again"))
}

/// A client of DM if workers are started after masters; for anything else no certificate of the cluster is needed.
async fn who_knows_the_leader(
    known: &Known,
    selected: &[Instance],
    context: &Context,
) -> Result<Option<DmClient>, Failure> {
    let has = |role: Role| selected.iter().any(|it| it.role == role);
    if has(Role::DmMaster) && has(Role::DmWorker) {
        known.dm(context, &known.meta.instances()).await.map(Some)
    } else {
        Ok(None)
    }
}

/// Starts role by role, each when the ones before answer on their ports; workers when `dm`, if it is given, knows a leader.
pub(crate) async fn bring_up(
    fleet: &Fleet,
    dm: Option<&DmClient>,
    selected: &[Instance],
    context: &Context,
) -> Result<(), Failure> {
    let progress = Progress::new(context.global.format, context.surroundings.stderr_is_terminal);
    let mut up: Vec<&Instance> = Vec::new();
    for role in Role::ALL {
        let of_role: Vec<&Instance> = selected.iter().filter(|it| it.role == role).collect();
        if of_role.is_empty() {
            continue;
        }
        let began = Instant::now();
        progress.under_way(&format!("start {role}"));
        order(fleet, &of_role, UnitAction::Start, context).await?;
        let limit = Duration::from_secs(context.global.wait_timeout);
        let seen = join_all(of_role.iter().map(|it| opens(fleet, it, limit))).await;
        let (closed, open): (Vec<_>, Vec<_>) =
            of_role.iter().zip(seen).partition(|(_, seen)| seen.is_err());
        if !closed.is_empty() {
            up.extend(open.into_iter().map(|(instance, _)| *instance));
            let down: Vec<&Instance> = closed.iter().map(|(instance, _)| **instance).collect();
            let later = |it: &&Instance| !up.contains(it) && !of_role.contains(it);
            let later: Vec<&Instance> = selected.iter().filter(later).collect();
            let whys = closed.into_iter().filter_map(|(it, seen)| Some((*it, seen.err()?)));
            let whys = join_all(whys.map(|(it, why)| why_closed(fleet, it, why))).await;
            return Err(Failure::failed(format_args!("start {role}"))
                .because(whys)
                .now(how_far(&up, &down, &later))
                .hint("the whole log of an instance is in its deploy folder, under log/"));
        }
        progress.say(&format!(
            "  started {role}: {} ({})",
            named_refs(&of_role),
            span(began.elapsed())
        ));
        up.extend(&of_role);
        if role == Role::DmMaster
            && let Some(dm) = dm
        {
            progress.under_way("wait until the masters have a leader");
            await_leader(dm, limit).await;
        }
    }
    Ok(())
}

/// Lines of each log that are told of a node that is not up.
const LAST_LINES: usize = 5;

/// What its unit and its logs say of a node whose port stays closed.
async fn why_closed(fleet: &Fleet, instance: &Instance, seen: String) -> String {
    let mut lines = vec![seen];
    let probe = Probe { instances: vec![probe_instance(instance)], ..Probe::default() };
    if let Ok(looked) = fleet.probe(&instance.host, probe).await {
        lines.extend(looked.processes.into_iter().map(|(_, process)| {
            let ProcessSeen { active, sub_state, restarts, .. } = process;
            let state = format!("{active:?} ({sub_state})").to_lowercase();
            let again = match restarts {
                0 => String::new(),
                times => format!(", started again {times} time(s)"),
            };
            format!("{} is {state}{again}", instance.unit)
        }));
    }
    match fleet.last_words(instance, LAST_LINES).await {
        Ok(words) => lines.extend(words),
        Err(error) => lines.push(error.to_string()),
    }
    lines.join("\n")
}

/// How things are when not everything that was to start has.
fn how_far(up: &[&Instance], down: &[&Instance], later: &[&Instance]) -> String {
    let parts = [("up", up), ("started, and not answering", down), ("not started yet", later)];
    let told = parts.into_iter().filter(|(_, instances)| !instances.is_empty());
    let told: Vec<String> =
        told.map(|(words, instances)| format!("{words}: {}", named_refs(instances))).collect();
    told.join("\n")
}

/// A worker that finds no leader exits, and systemd starts it again only 15 s later: wait for the leader first.
/// Without one in time the workers are started all the same; their ports will tell.
async fn await_leader(dm: &DmClient, limit: Duration) {
    let began = Instant::now();
    while began.elapsed() < limit {
        if dm.look(&[]).await.is_ok_and(|seen| seen.masters.iter().any(|master| master.leader)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
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
async fn opens(fleet: &Fleet, instance: &Instance, limit: Duration) -> Result<(), String> {
    let began = Instant::now();
    loop {
        let seen = fleet.opens(&instance.host, instance.port, Duration::from_secs(3)).await;
        let Err(error) = seen else { return Ok(()) };
        if began.elapsed() > limit {
            return Err(format!(
                "{}: port {} is not open after {}: {error}",
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
