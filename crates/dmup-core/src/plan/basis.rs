//! The facts that a plan was based on, so that a stale plan is refused with the fact that changed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::decision::Blocker;
use super::hotfix::too_far_behind;
use crate::ids::InstanceId;
use crate::instance::Instance;
use crate::inventory::{Inventory, LeftoverKind};
use crate::policy::Policy;

/// What was seen, as text: compared before the first effect, and only then (later, the
/// cluster differs by the run's own doing).
#[derive(Clone, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
pub struct Basis(BTreeMap<String, String>);

impl Basis {
    /// Whether the process of an instance is among the facts.
    pub fn is_about(&self, instance: &InstanceId) -> bool {
        self.0.contains_key(&format!("instance {instance}"))
    }

    /// One line per fact that is not as it was: `leader: m1 then, m2 now`.
    pub fn changes(&self, now: &Self) -> Vec<String> {
        let missing = "nothing".to_owned();
        let keys: std::collections::BTreeSet<&String> = self.0.keys().chain(now.0.keys()).collect();
        keys.into_iter()
            .filter_map(|key| {
                let then = self.0.get(key).unwrap_or(&missing);
                let now = now.0.get(key).unwrap_or(&missing);
                (then != now).then(|| format!("{key}: {then} then, {now} now"))
            })
            .collect()
    }
}

/// Collects the facts about the given instances, and about DM as a whole if it is asked for.
///
/// How far tasks are behind changes all the time: that is a fact only where there is a limit, and only as far as it keeps it.
pub fn basis_of(
    selected: &[Instance],
    inventory: &Inventory,
    with_dm: bool,
    policy: &Policy,
) -> Basis {
    let mut facts = BTreeMap::new();
    let short = |digest: &Option<crate::digest::Digest>| {
        digest.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string)
    };
    for instance in selected {
        let seen = inventory.processes.get(&instance.id).map_or_else(
            || "unknown".to_owned(),
            |process| {
                format!(
                    "{:?}, runs {}, has {}",
                    process.active,
                    short(&process.running),
                    short(&process.on_disk)
                )
            },
        );
        facts.insert(format!("instance {}", instance.id), seen);
    }
    for leftover in inventory.hosts.values().flatten().flat_map(|host| &host.leftovers) {
        if selected.iter().any(|instance| instance.id == leftover.instance) {
            let what = match leftover.kind {
                LeftoverKind::ArmedGuard => "an armed guard",
                LeftoverKind::FiredGuard => "a guard that has acted",
                LeftoverKind::TiupBackup => "a tree that TiUP saved",
                LeftoverKind::TiupUpload => "a package that TiUP sent",
                // A hotfix replaces it, and the window of a way back looks itself, before it stops anything.
                LeftoverKind::Tree => continue,
            };
            facts.insert(format!("{what} of {}", leftover.instance), leftover.path.to_string());
        }
    }
    if let (true, Ok(dm)) = (with_dm, &inventory.dm) {
        let leaders: Vec<&str> =
            dm.masters.iter().filter(|m| m.leader).map(|m| m.name.as_str()).collect();
        facts.insert("leader".to_owned(), leaders.join(" and "));
        for master in &dm.masters {
            let state = if master.alive { "alive" } else { "down" };
            facts.insert(format!("master {}", master.name), state.to_owned());
        }
        for worker in &dm.workers {
            facts.insert(format!("worker {}", worker.name), format!("{:?}", worker.stage));
        }
        for (source, worker) in &dm.sources {
            let worker = worker.as_ref().map_or("nobody", |name| name.as_str());
            facts.insert(format!("source {source}"), worker.to_owned());
        }
        for (source, relay) in &dm.relays {
            facts.insert(format!("relay log of {source}"), format!("{:?}", relay.stage));
        }
        for subtask in &dm.subtasks {
            facts.insert(
                format!("task {} on {}", subtask.task, subtask.source),
                format!("{:?}, {:?}", subtask.stage, subtask.unit),
            );
            if let Some(validator) = &subtask.validator {
                facts.insert(
                    format!("validator of {} on {}", subtask.task, subtask.source),
                    format!("{:?}", validator.stage),
                );
            }
            if let Some(max_s) = policy.max_lag_s {
                let lag = match too_far_behind(policy, subtask) {
                    None => format!("at most {max_s}s"),
                    Some(Blocker::LagUnknown { .. }) => "not known".to_owned(),
                    Some(_) => format!("more than {max_s}s"),
                };
                facts.insert(format!("lag of {} on {}", subtask.task, subtask.source), lag);
            }
        }
    }
    Basis(facts)
}
