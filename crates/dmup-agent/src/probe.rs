//! One look at the host: units, processes, hashes, disks, ports, paths, users, leftovers.

use camino::Utf8PathBuf;
use dmup_core::digest::Digest;
use dmup_core::ids::UnitName;
use dmup_core::inventory::ProcessSeen;
use dmup_wire::message::{Outcome, Probe, ProbeInstance, Probed, Refusal};

use crate::accounts::Account;
use crate::agent::Agent;
use crate::refuse::{Reply, When};
use crate::services::UnitSeen;
use crate::{guard, host, processes, stage};

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
        .map(|path| {
            Ok((
                path.clone(),
                stage::free_bytes(path).when(|| format!("ask {path} for free space"))?,
            ))
        })
        .collect::<Result<_, Refusal>>()?;
    let exists = |path: &&Utf8PathBuf| std::fs::symlink_metadata(agent.places.real(path)).is_ok();
    Ok(Outcome::Probed(Probed {
        clock_ms,
        processes,
        disks,
        listening: order.ports.iter().copied().filter(|port| listening.contains(port)).collect(),
        existing: order.paths.iter().filter(exists).cloned().collect(),
        users: order.users.iter().filter(|user| Account::named(user).is_some()).cloned().collect(),
        leftovers: guard::leftovers(
            &agent.places,
            &order.instances,
            order.hashes.then_some(&agent.hashes),
        ),
    }))
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
