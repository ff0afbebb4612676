//! After a change of the cluster's members: the others' configuration.
//!
//! Run scripts of masters and workers name the members that they join; they count
//! at the next start, so nothing is restarted for them. Prometheus and Grafana
//! are restarted if what they read has changed and they run.

use std::time::Duration;

use dmup_core::ids::ClusterName;
use dmup_core::instance::{Instance, Role};
use dmup_core::inventory::UnitActive;
use dmup_core::layout::{self, Deployment, PlacedFile};
use dmup_core::topology::{Meta, Topology};
use dmup_exec::ports::Hosts;
use dmup_remote::Fleet;
use dmup_wire::message::{PutFile, UnitAction};

use super::laying_out::check_config;
use super::reload::texts_of;
use super::units;
use crate::context::Context;
use crate::failure::chain;

/// How often DM is asked while something is waited for.
pub(crate) const POLL: Duration = Duration::from_millis(300);

/// Writes what has changed for these instances of the topology. Returns what could not be done, one sentence each.
pub(crate) async fn refresh(
    instances: &[Instance],
    name: &ClusterName,
    meta: &Meta,
    fleet: &Fleet,
    context: &Context,
) -> Vec<String> {
    let topology = &meta.topology;
    let deployment = Deployment::new(name, &meta.version, topology);
    let mut notes = Vec::new();
    for instance in instances {
        if has_own_config(topology, instance) {
            notes.push(format!("{}: has configuration of its own, left as it is", instance.id));
            continue;
        }
        match refresh_one(&deployment, instance, fleet, context).await {
            Ok(note) => notes.extend(note),
            Err(why) => {
                notes.push(format!("the configuration of {} is as before: {why}", instance.id));
            }
        }
    }
    notes
}

async fn refresh_one(
    deployment: &Deployment<'_>,
    instance: &Instance,
    fleet: &Fleet,
    context: &Context,
) -> Result<Option<String>, String> {
    let mut changed = Vec::new();
    for file in layout::files(deployment, instance).map_err(|bad| chain(&bad))? {
        if !depends_on_members(instance.role, &file) {
            continue;
        }
        let there = fleet.get(&instance.host, &file.path).await.map_err(|it| it.to_string())?;
        if there.as_deref() != Some(file.content.as_str()) {
            changed.push(PutFile {
                path: file.path,
                mode: file.mode,
                root: file.root,
                owner: None,
                content: file.content,
            });
        }
    }
    if changed.is_empty() {
        return Ok(None);
    }
    let paths: Vec<_> = changed.iter().map(|it| it.path.clone()).collect();
    let checked = check_config(fleet, instance, &paths, texts_of(&changed)).await;
    let note = checked.map_err(|it| it.to_string())?;
    fleet.put(&instance.host, changed).await.map_err(|it| it.to_string())?;
    if instance.role.is_dm() {
        return Ok(note);
    }
    let own = [instance.clone()];
    let (_, seen) =
        fleet.look(&instance.host, &own, false).await.map_err(|error| error.to_string())?;
    if seen.iter().any(|(_, process)| process.active == UnitActive::Active) {
        units::order(fleet, &[instance], UnitAction::Restart, context)
            .await
            .map_err(|failure| failure.to_string())?;
    }
    Ok(note)
}

/// Files that name other members of the cluster.
fn depends_on_members(role: Role, file: &PlacedFile) -> bool {
    match role {
        Role::DmMaster | Role::DmWorker => {
            file.path.parent().is_some_and(|folder| folder.ends_with("scripts"))
        }
        Role::Prometheus | Role::Grafana => {
            file.path.parent().is_some_and(|folder| !folder.ends_with("scripts")) && !file.root
        }
        Role::Alertmanager | Role::NodeExporter | Role::BlackboxExporter => false,
    }
}

/// Rules and dashboards of the operator's own: we do not know what else there is changed by hand.
fn has_own_config(topology: &Topology, instance: &Instance) -> bool {
    let is = |host: &str, port: u16| instance.host.as_str() == host && instance.port == port;
    topology
        .monitoring_servers
        .iter()
        .any(|spec| is(&spec.host, spec.port) && !spec.rule_dir.is_empty())
        || topology
            .grafana_servers
            .iter()
            .any(|spec| is(&spec.host, spec.port) && !spec.dashboard_dir.is_empty())
}

#[cfg(test)]
mod tests {
    use camino::Utf8PathBuf;

    use super::*;

    fn unit(name: &str) -> PlacedFile {
        PlacedFile {
            path: Utf8PathBuf::from(format!("/etc/systemd/system/{name}")),
            mode: 0o644,
            root: true,
            content: String::new(),
            cache_name: String::new(),
        }
    }

    #[test]
    fn units_are_never_refreshed_and_run_scripts_only_of_dm() {
        let script = PlacedFile {
            path: Utf8PathBuf::from("/home/tidb/deploy/x/scripts/run_x.sh"),
            root: false,
            ..unit("x.service")
        };
        for role in Role::ALL {
            assert!(!depends_on_members(role, &unit("x.service")), "{role}");
            assert_eq!(depends_on_members(role, &script), role.is_dm(), "{role}");
        }
    }
}
