//! `prune`: takes members off DM's list that the topology does not know, as a forced scale-in leaves them.
//!
//! Only members that are down: whoever still runs there was started by somebody,
//! and may have a source.

use dmup_core::ids::MemberName;
use dmup_core::instance::Role;
use dmup_core::inventory::{DmSeen, WorkerStage};
use dmup_exec::ports::{Dm, Hosts};

use crate::args::PruneArgs;
use crate::context::Context;
use crate::failure::Failure;

pub(crate) async fn run(args: &PruneArgs, context: &Context) -> Result<(), Failure> {
    let _lock = context.cluster(&args.cluster)?.lock("prune")?;
    let known = context.cluster(&args.cluster)?;
    known.refuse_unfinished_scale_out(false)?;
    let all = known.meta.instances();
    let dm = known.dm(context, &all).await?;
    let seen = dm.look(&[]).await.map_err(Failure::refused)?;
    let strays = strays(&seen);
    let alive: Vec<String> = strays
        .iter()
        .filter(|stray| stray.is_alive)
        .map(|stray| format!("{} {} is not in the topology, but runs", stray.role, stray.name))
        .collect();
    if !alive.is_empty() {
        return Err(Failure::refused(format_args!("cannot prune {} now", known.name))
            .because(alive)
            .hint("stop them where they run, then prune again"));
    }
    if strays.is_empty() {
        context.printer.talk("Nothing to do: the topology knows every member");
        return Ok(());
    }
    let fleet = known.fleet(context, &all).await?;
    let work = async {
        let (mut done, mut left, mut failed) = (Vec::new(), Vec::new(), Vec::new());
        for stray in strays {
            // DM knows nothing of leases.
            fleet.still_ours().await.map_err(Failure::failed)?;
            match dm.remove_named(stray.role, &stray.name, None).await {
                Ok(()) => {
                    context.printer.talk(format_args!("  pruned {} {}", stray.role, stray.name));
                    done.push(stray.name.to_string());
                }
                Err(error) => {
                    left.push(stray.name.to_string());
                    failed.push(error.to_string());
                }
            }
        }
        Ok::<_, Failure>((done, left, failed))
    };
    let (done, left, failed) = context.with_lease(&known.name, "prune", &fleet, work).await?;
    if failed.is_empty() {
        context.printer.talk(format_args!("Pruned cluster `{}` successfully", known.name));
        return Ok(());
    }
    Err(Failure::failed("not every member could be taken off")
        .because(failed)
        .now(if done.is_empty() {
            format!("not taken off: {}; nothing has changed", left.join(", "))
        } else {
            format!("not taken off: {}; taken off: {}", left.join(", "), done.join(", "))
        })
        .hint(format_args!("`dmup prune {}` again takes off what is left", known.name)))
}

/// A member that the topology does not know.
#[derive(Debug, Eq, PartialEq)]
struct Stray {
    role: Role,
    name: MemberName,
    is_alive: bool,
}

fn strays(dm: &DmSeen) -> Vec<Stray> {
    let masters = dm.masters.iter().filter(|it| it.instance.is_none()).map(|it| Stray {
        role: Role::DmMaster,
        name: it.name.clone(),
        is_alive: it.alive,
    });
    let workers = dm.workers.iter().filter(|it| it.instance.is_none()).map(|it| Stray {
        role: Role::DmWorker,
        name: it.name.clone(),
        is_alive: it.stage != WorkerStage::Offline,
    });
    masters.chain(workers).collect()
}

#[cfg(test)]
mod tests {
    use dmup_core::ids::InstanceId;
    use dmup_core::inventory::WorkerSeen;

    use super::*;

    #[test]
    fn only_members_that_the_topology_does_not_know_are_strays() {
        let worker = |name: &str, instance: Option<&str>, stage| WorkerSeen {
            name: MemberName::new(name).unwrap(),
            instance: instance.map(|id| InstanceId::new(id).unwrap()),
            stage,
            source: None,
        };
        let dm = DmSeen {
            workers: vec![
                worker("known", Some("10.0.1.1:8262"), WorkerStage::Offline),
                worker("gone", None, WorkerStage::Offline),
                worker("runs", None, WorkerStage::Free),
            ],
            ..DmSeen::default()
        };
        let found: Vec<(String, bool)> =
            strays(&dm).into_iter().map(|it| (it.name.to_string(), it.is_alive)).collect();
        assert_eq!(found, [("gone".to_owned(), false), ("runs".to_owned(), true)]);
    }
}
