//! One look at a whole cluster: all hosts at once, and DM.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dmup_core::ids::HostId;
use dmup_core::instance::Instance;
use dmup_core::inventory::Inventory;
use futures::{StreamExt as _, stream};

use crate::ports::{Certainty, Clock, Dm, Hosts};

/// How long a host may refuse connections, or break them, before that is what was seen.
const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(300);

/// Looks at every host of the instances given, and at DM if `with_dm`.
///
/// Whatever does not answer is part of the answer; this never fails.
pub async fn look(
    instances: &[Instance],
    hosts: &dyn Hosts,
    dm: &dyn Dm,
    clock: &dyn Clock,
    hashes: bool,
    with_dm: bool,
    concurrency: usize,
) -> Inventory {
    let at = clock.now();
    let names: BTreeSet<HostId> = instances.iter().map(|instance| instance.host.clone()).collect();
    let looks = stream::iter(names.into_iter().map(|host| async move {
        let own: Vec<Instance> =
            instances.iter().filter(|instance| instance.host == host).cloned().collect();
        let begun = clock.elapsed();
        loop {
            let seen = hosts.look(&host, &own, hashes).await;
            // The connection broke while we looked, or sshd is being restarted: that says little of the host.
            let may_pass = seen.as_ref().is_err_and(|error| match error.certainty {
                Certainty::Unknown | Certainty::NotSent => true,
                Certainty::Refused | Certainty::Superseded => false,
            });
            if !may_pass || clock.elapsed().saturating_sub(begun) >= PATIENCE {
                return (host, seen);
            }
            clock.sleep(PAUSE).await;
        }
    }))
    .buffer_unordered(concurrency.max(1))
    .collect::<Vec<_>>();
    let dm_look = async {
        if with_dm {
            dm.look(&[]).await.map_err(|error| error.to_string())
        } else {
            Err("DM was not asked".to_owned())
        }
    };
    let (looks, dm) = futures::join!(looks, dm_look);
    let mut inventory = Inventory { at, hosts: BTreeMap::new(), processes: BTreeMap::new(), dm };
    for (host, seen) in looks {
        match seen {
            Ok((host_seen, processes)) => {
                inventory.hosts.insert(host, Ok(host_seen));
                inventory.processes.extend(processes);
            }
            Err(error) => {
                inventory.hosts.insert(host, Err(error.to_string()));
            }
        }
    }
    inventory
}
