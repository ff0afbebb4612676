//! Exporters beside instances: started, stopped, enabled and taken off with them.
//!
//! The name of their units carries only a port, so a unit of that name may be another cluster's.
//! Each is read before it is acted on: what starts somebody else's script is told and left as it is.

use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::exporters::{Exporter, Exporters, Reach, UnitOwner};
use dmup_core::instance::Instance;
use dmup_core::topology::Topology;
use dmup_remote::Fleet;
use dmup_wire::message::{Probe, UnitAction};
use futures::future::join_all;

use crate::context::Context;
use crate::failure::Failure;
use crate::progress::{Progress, span};

/// How often a host is asked whether somebody listens yet.
const POLL: Duration = Duration::from_millis(200);

/// The exporters that an order to these instances of the cluster goes to, too.
pub(crate) fn reached(topology: &Topology, selected: &[Instance], reach: Reach) -> Vec<Exporters> {
    let all = topology.instances();
    let mut pairs = topology.exporters();
    pairs.retain(|pair| pair.are_reached(reach, &all, selected));
    pairs
}

/// Those of them that are ours, for a run that takes them along as any other instance. Of the others the operator is told.
pub(crate) async fn as_instances(
    fleet: &Fleet,
    pairs: &[Exporters],
    context: &Context,
) -> Vec<Instance> {
    let looks = pairs.iter().map(|pair| async move { (pair, ours(fleet, pair, context).await) });
    let mut instances = Vec::new();
    for (pair, look) in join_all(looks).await {
        match look {
            Ok(ours) => instances.extend(ours.into_iter().map(|it| it.instance.clone())),
            Err(why) => context
                .printer
                .talk(format_args!("note: the exporters on {} stay as they are: {why}", pair.host)),
        }
    }
    instances
}

/// Starts them and waits until somebody listens on their ports.
pub(crate) async fn bring_up(
    fleet: &Fleet,
    pairs: &[Exporters],
    context: &Context,
) -> Result<(), Failure> {
    if pairs.is_empty() {
        return Ok(());
    }
    let progress = Progress::new(context.global.format, context.surroundings.stderr_is_terminal);
    let began = Instant::now();
    progress.under_way("start the exporters");
    let started = order(fleet, pairs, UnitAction::Start, context).await?;
    let limit = Duration::from_secs(context.global.wait_timeout);
    let waits = started.iter().map(|(pair, ours)| listen(fleet, pair, ours, limit));
    let closed: Vec<String> = join_all(waits).await.into_iter().filter_map(Result::err).collect();
    if !closed.is_empty() {
        return Err(Failure::failed("start the exporters")
            .because(closed)
            .now("the instances run; the exporters were started")
            .hint("their logs are in `monitored.log_dir`"));
    }
    say_done("started", &started, began, &progress);
    Ok(())
}

/// Stops them.
pub(crate) async fn bring_down(
    fleet: &Fleet,
    pairs: &[Exporters],
    context: &Context,
) -> Result<(), Failure> {
    if pairs.is_empty() {
        return Ok(());
    }
    let progress = Progress::new(context.global.format, context.surroundings.stderr_is_terminal);
    let began = Instant::now();
    progress.under_way("stop the exporters");
    let stopped = order(fleet, pairs, UnitAction::Stop, context).await?;
    say_done("stopped", &stopped, began, &progress);
    Ok(())
}

/// One order to those of them that are ours, all hosts at once. Returns whom it went to.
pub(crate) async fn order<'a>(
    fleet: &Fleet,
    pairs: &'a [Exporters],
    action: UnitAction,
    context: &Context,
) -> Result<Vec<(&'a Exporters, Vec<&'a Exporter>)>, Failure> {
    let within = Duration::from_secs(context.global.wait_timeout);
    let answers = join_all(pairs.iter().map(|pair| async move {
        let ours = ours(fleet, pair, context).await?;
        let mut failed = Vec::new();
        if !ours.is_empty() {
            let units = ours.iter().map(|it| it.instance.unit.clone()).collect();
            let done = fleet.unit(&pair.host, units, action, within).await;
            for unit in done.map_err(|error| error.to_string())? {
                let told = unit.failed.map(|why| format!("{} on {}: {why}", unit.unit, pair.host));
                failed.extend(told);
            }
        }
        if failed.is_empty() { Ok((pair, ours)) } else { Err(failed.join("; ")) }
    }))
    .await;
    let (done, failed): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    if failed.is_empty() {
        return Ok(done.into_iter().flatten().filter(|(_, ours)| !ours.is_empty()).collect());
    }
    Err(Failure::failed(format!("{action:?} the exporters").to_lowercase())
        .because(failed.into_iter().filter_map(Result::err))
        .now("the instances took the order, and so did the other exporters"))
}

/// Stops them for good and removes units and folders, but folders that an instance of `rest` has something in. Answers
/// with what did not work.
pub(crate) async fn take_off(
    fleet: &Fleet,
    pairs: &[Exporters],
    rest: &[Instance],
    context: &Context,
) -> Vec<String> {
    let within = Duration::from_secs(context.global.wait_timeout);
    let work = pairs.iter().map(|pair| async move {
        let ours = ours(fleet, pair, context).await?;
        let units: Vec<_> = ours.iter().map(|it| it.instance.unit.clone()).collect();
        for action in [UnitAction::Stop, UnitAction::Disable] {
            if units.is_empty() {
                break;
            }
            let done = fleet.unit(&pair.host, units.clone(), action, within).await;
            let done = done.map_err(|error| error.to_string())?;
            if let Some(why) = done.into_iter().find_map(|it| it.failed) {
                return Err(format!("{}: {why}", pair.host));
            }
        }
        let mut paths: Vec<Utf8PathBuf> = ours.iter().map(|it| it.unit_file.clone()).collect();
        let beside: Vec<&Instance> = rest.iter().filter(|it| pair.are_beside(it)).collect();
        let folders = pair.data_dirs.iter().chain([&pair.log_dir, &pair.deploy_dir]);
        paths.extend(folders.filter(|it| !is_needed(it, &beside)).cloned());
        fleet.remove(&pair.host, paths).await.map_err(|error| error.to_string())
    });
    join_all(work).await.into_iter().filter_map(Result::err).collect()
}

fn is_needed(folder: &Utf8Path, by: &[&Instance]) -> bool {
    by.iter().any(|it| super::destroy::has_something_in(it, folder))
}

/// Those of a host whose units start our scripts; of the others the operator is told.
async fn ours<'a>(
    fleet: &Fleet,
    pair: &'a Exporters,
    context: &Context,
) -> Result<Vec<&'a Exporter>, String> {
    let mut ours = Vec::new();
    for exporter in &pair.both {
        let text =
            fleet.get(&pair.host, &exporter.unit_file).await.map_err(|error| error.to_string())?;
        let told = match exporter.owner_of(text.as_deref()) {
            UnitOwner::Ours => {
                ours.push(exporter);
                continue;
            }
            UnitOwner::Nobody => "there is none".to_owned(),
            UnitOwner::SomebodyElse(starts) => {
                format!("it is not of this cluster (it starts {starts}), and left as it is")
            }
        };
        context
            .printer
            .talk(format_args!("warning: {} on {}: {told}", exporter.instance.unit, pair.host));
    }
    Ok(ours)
}

/// Waits until the host says that somebody listens on their ports: nobody but Prometheus need reach them.
async fn listen(
    fleet: &Fleet,
    pair: &Exporters,
    ours: &[&Exporter],
    limit: Duration,
) -> Result<(), String> {
    let began = Instant::now();
    loop {
        let ports = ours.iter().map(|it| it.instance.port).collect();
        let probe = Probe { ports, ..Probe::default() };
        let seen = fleet.probe(&pair.host, probe).await.map_err(|error| error.to_string())?;
        let closed = ours.iter().find(|it| !seen.listening.contains(&it.instance.port));
        let Some(closed) = closed else { return Ok(()) };
        if began.elapsed() > limit {
            return Err(format!(
                "{} on {}: nobody listens on port {} after {}",
                closed.instance.unit,
                pair.host,
                closed.instance.port,
                span(limit)
            ));
        }
        tokio::time::sleep(POLL).await;
    }
}

fn say_done(
    word: &str,
    done: &[(&Exporters, Vec<&Exporter>)],
    began: Instant,
    progress: &Progress,
) {
    let hosts: Vec<&str> = done.iter().map(|(pair, _)| pair.host.as_str()).collect();
    if !hosts.is_empty() {
        let took = span(began.elapsed());
        progress.say(&format!("  {word} exporters: {} ({took})", hosts.join(", ")));
    }
}
