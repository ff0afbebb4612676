//! Which instances an operator means by `-N` and `-R`.
//!
//! Facts: the manual of `tiup dm patch` (both: their intersection; neither: all).
//! Unlike TiUP, an unknown node is an error that names the known ones: a typing
//! error must not silently shrink what is patched.

use std::collections::BTreeSet;

use crate::ids::InstanceId;
use crate::instance::{Instance, Role};

/// A selection that names something unknown, or nothing.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadSelection {
    /// `-N` has ids that no instance has.
    #[error("no such node: {}", .unknown.join(", "))]
    UnknownNodes {
        /// As given.
        unknown: Vec<String>,
        /// All that there are.
        known: Vec<InstanceId>,
    },
    /// `-R` has words that are no role.
    #[error("not valid role: {}, should be one of: [dm-master dm-worker prometheus grafana alertmanager]", .unknown.join(", "))]
    UnknownRoles {
        /// As given.
        unknown: Vec<String>,
    },
    /// Each is known, but nothing is both.
    #[error("no instance found on specified role([{}]) and nodes([{}])", .roles.join(" "), .nodes.join(" "))]
    Empty {
        /// As given.
        roles: Vec<String>,
        /// As given.
        nodes: Vec<String>,
    },
}

/// Picks instances, in the order of the topology.
///
/// # Errors
///
/// [`BadSelection`], before anything else is looked at.
pub fn select(
    instances: &[Instance],
    nodes: &[String],
    roles: &[String],
) -> Result<Vec<Instance>, BadSelection> {
    let (wanted_roles, unknown): (Vec<_>, Vec<_>) =
        roles.iter().map(|word| (word, word.parse::<Role>())).partition(|(_, role)| role.is_ok());
    if !unknown.is_empty() {
        let unknown = unknown.into_iter().map(|(word, _)| word.clone()).collect();
        return Err(BadSelection::UnknownRoles { unknown });
    }
    let wanted_roles: BTreeSet<Role> =
        wanted_roles.into_iter().filter_map(|(_, role)| role.ok()).collect();
    let known: BTreeSet<&str> = instances.iter().map(|instance| instance.id.as_str()).collect();
    let wanted_nodes: BTreeSet<&str> = nodes.iter().map(|node| node.trim()).collect();
    let unknown: Vec<String> =
        wanted_nodes.difference(&known).map(|node| (*node).to_owned()).collect();
    if !unknown.is_empty() {
        let known = instances.iter().map(|instance| instance.id.clone()).collect();
        return Err(BadSelection::UnknownNodes { unknown, known });
    }
    let picked: Vec<Instance> = instances
        .iter()
        .filter(|instance| wanted_roles.is_empty() || wanted_roles.contains(&instance.role))
        .filter(|instance| wanted_nodes.is_empty() || wanted_nodes.contains(instance.id.as_str()))
        .cloned()
        .collect();
    if picked.is_empty() {
        return Err(BadSelection::Empty { roles: roles.to_vec(), nodes: nodes.to_vec() });
    }
    Ok(picked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{HostId, MemberName, UnitName};

    fn instance(id: &str, role: Role) -> Instance {
        Instance {
            id: InstanceId::new(id).unwrap(),
            role,
            name: MemberName::new(id).unwrap(),
            host: HostId::new("h1").unwrap(),
            ssh_host: HostId::new("h1").unwrap(),
            ssh_port: 22,
            port: 1,
            ports: vec![1],
            deploy_dir: "/d/x".into(),
            data_dirs: Vec::new(),
            log_dir: "/d/x/log".into(),
            unit: UnitName::new("x-1.service").unwrap(),
            os: "linux".into(),
            arch: "amd64".into(),
            patched: false,
        }
    }

    fn picked(nodes: &[&str], roles: &[&str]) -> Result<Vec<String>, BadSelection> {
        let all = [
            instance("h1:8261", Role::DmMaster),
            instance("h1:8262", Role::DmWorker),
            instance("h2:8262", Role::DmWorker),
        ];
        let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        select(&all, &own(nodes), &own(roles))
            .map(|found| found.iter().map(|instance| instance.id.to_string()).collect())
    }

    #[test]
    fn neither_means_all_and_both_mean_the_intersection() {
        assert_eq!(picked(&[], &[]).unwrap().len(), 3);
        assert_eq!(picked(&["h2:8262", "h1:8261"], &["dm-worker"]).unwrap(), ["h2:8262"]);
        assert_eq!(picked(&[], &["dm-worker (patched)"]).unwrap(), ["h1:8262", "h2:8262"]);
    }

    #[test]
    fn unknown_words_and_an_empty_intersection_are_errors() {
        assert!(matches!(picked(&["h9:1"], &[]), Err(BadSelection::UnknownNodes { .. })));
        assert!(matches!(picked(&[], &["tikv"]), Err(BadSelection::UnknownRoles { .. })));
        assert!(matches!(picked(&["h1:8261"], &["dm-worker"]), Err(BadSelection::Empty { .. })));
    }
}
