//! One look at the host: units, processes, hashes, disks, ports, paths, users, leftovers.

use std::os::unix::fs::MetadataExt;

use camino::Utf8Path;
use dmup_core::digest::Digest;
use dmup_core::ids::UnitName;
use dmup_core::inventory::ProcessSeen;
use dmup_wire::message::{Outcome, PathKind, PathSeen, Probe, ProbeInstance, Probed, Refusal};

use crate::accounts::{Account, name_of};
use crate::agent::Agent;
use crate::refuse::{Reply, When};
use crate::services::UnitSeen;
use crate::{files, guard, host, processes, stage};

/// Looks.
pub(crate) fn probe(agent: &Agent, order: &Probe) -> Reply {
    let clock_ms = host::clock_ms();
    let units: Vec<UnitName> =
        order.instances.iter().map(|instance| instance.unit.clone()).collect();
    let seen = agent.services.look(&units)?;
    let processes = order
        .instances
        .iter()
        .zip(seen)
        .map(|(instance, unit)| {
            Ok((instance.id.clone(), process(agent, instance, unit, order.hashes)?))
        })
        .collect::<Result<_, Refusal>>()?;
    let listening = if order.ports.is_empty() { Vec::new() } else { processes::listening() };
    let disks = order
        .disks
        .iter()
        .map(|path| stage::disk(path).when(|| format!("ask {path} for free space")))
        .collect::<Result<_, Refusal>>()?;
    Ok(Outcome::Probed(Probed {
        clock_ms,
        processes,
        disks,
        listening: order.ports.iter().copied().filter(|port| listening.contains(port)).collect(),
        existing: order.paths.iter().filter_map(|path| path_seen(agent, path)).collect(),
        users: order.users.iter().filter(|user| Account::named(user).is_some()).cloned().collect(),
        leftovers: guard::leftovers(
            &agent.places,
            &order.instances,
            order.hashes.then_some(&agent.hashes),
        ),
    }))
}

/// What is at a path; none if nothing is. A link is taken for what it leads to, as `deploy` will.
fn path_seen(agent: &Agent, path: &Utf8Path) -> Option<PathSeen> {
    let real = agent.places.real(path);
    let meta = std::fs::metadata(&real).or_else(|_| std::fs::symlink_metadata(&real)).ok()?;
    let kind = match meta.is_dir() {
        true if files::is_empty_folder(&real) => PathKind::EmptyFolder,
        true => PathKind::Folder,
        false => PathKind::Other,
    };
    let owner = meta.uid();
    let is_shared = meta.mode() & 0o022 != 0;
    Some(PathSeen { path: path.to_owned(), kind, owner, owner_name: name_of(owner), is_shared })
}

fn process(
    agent: &Agent,
    instance: &ProbeInstance,
    unit: UnitSeen,
    hashes: bool,
) -> Result<ProcessSeen, Refusal> {
    let (mut running, mut on_disk) = (None, None);
    if hashes {
        let path = &instance.binary;
        on_disk = agent
            .hashes
            .of_existing(path)
            .when(|| format!("hash {path}"))?
            .map(|(digest, _)| digest);
        running = unit.pid.map_or(Ok(None), |pid| running_build(agent, pid))?;
    }
    Ok(ProcessSeen {
        active: unit.active,
        sub_state: unit.sub_state,
        enabled: unit.enabled,
        pid: unit.pid,
        restarts: unit.restarts,
        active_since_ms: unit.active_since_ms,
        running,
        on_disk,
    })
}

/// The hash of what a process executes; none if it ended meanwhile.
fn running_build(agent: &Agent, pid: u32) -> Result<Option<Digest>, Refusal> {
    let path = processes::executable(pid);
    // A permission error here goes to the privileged part: the whole look is asked for again there.
    Ok(agent.hashes.of_existing(&path).when(|| format!("hash {path}"))?.map(|(digest, _)| digest))
}
