//! The status column of `display`, in TiUP's words.
//!
//! Each dm-master is asked about itself; a master that is healthy is asked for
//! all workers; monitoring is up if its page answers. All at once, in at most
//! twice the time limit. (tiup components/dm/spec/topology_dm.go, pkg/utils/http_client.go)

use std::collections::BTreeMap;
use std::time::Duration;

use dmup_core::ids::InstanceId;
use dmup_core::instance::{Instance, Role};
use futures::future::join_all;
use hyper::Method;

use super::answers::Members;
use super::client::{DmClient, page_base};
use super::http::{ask, escaped, exchange};

/// TiUP's limit for DM when `--status-timeout` says less than a second.
const DM_FALLBACK: Duration = Duration::from_secs(2);
/// The same for monitoring.
const MONITORING_FALLBACK: Duration = Duration::from_secs(10);

impl DmClient {
    /// The status word of each of the given instances: `Healthy|L`, `Healthy`, `Unhealthy`, `Bound`,
    /// `Free`, `Offline`, `Relay`, `Up`, `Down`, `N/A`.
    pub async fn display_statuses(&self, instances: &[Instance]) -> BTreeMap<InstanceId, String> {
        let (dm, monitoring) = tokio::join!(
            self.dm_statuses(instances),
            join_all(instances.iter().filter(|it| !it.role.is_dm()).map(|it| self.page_status(it))),
        );
        let mut all: BTreeMap<InstanceId, String> = dm;
        all.extend(monitoring);
        all.retain(|id, _| instances.iter().any(|it| it.id == *id));
        all
    }

    async fn dm_statuses(&self, instances: &[Instance]) -> BTreeMap<InstanceId, String> {
        if !instances.iter().any(|it| it.role.is_dm()) {
            return BTreeMap::new();
        }
        let masters: Vec<&Instance> = self.masters().collect();
        let words = join_all(masters.iter().map(|it| self.master_status(it))).await;
        let healthy: Vec<&Instance> = masters
            .iter()
            .zip(&words)
            .filter(|(_, word)| word.starts_with("Healthy"))
            .map(|(master, _)| *master)
            .collect();
        let mut all: BTreeMap<InstanceId, String> =
            masters.iter().map(|it| it.id.clone()).zip(words).collect();
        let workers: Vec<&Instance> =
            instances.iter().filter(|it| it.role == Role::DmWorker).collect();
        if !workers.is_empty() {
            all.extend(self.worker_statuses(&workers, &healthy).await);
        }
        all
    }

    async fn master_status(&self, master: &Instance) -> String {
        let url = format!(
            "{}/apis/v1alpha1/members?leader=true&master=true&names={}",
            self.base(master),
            escaped(master.name.as_str())
        );
        let within = self.display_limit(DM_FALLBACK);
        let members = match ask::<Members>(&self.http, Method::GET, &url, None, within).await {
            Ok(members) if members.result => members,
            Ok(_) | Err(_) => return "Down".into(),
        };
        let name = master.name.as_str();
        let listed =
            members.masters().and_then(|known| known.masters.iter().find(|it| it.name == name));
        let leads = members.leader().is_some_and(|leader| leader.name == name);
        match (listed, leads) {
            (None, false) => "N/A",
            (Some(member), true) if member.alive => "Healthy|L",
            (Some(member), false) if member.alive => "Healthy",
            (Some(_) | None, _) => "Unhealthy",
        }
        .into()
    }

    /// One question for all workers, to one healthy master after another until one answers.
    async fn worker_statuses(
        &self,
        workers: &[&Instance],
        healthy: &[&Instance],
    ) -> BTreeMap<InstanceId, String> {
        let all = |word: &str| workers.iter().map(|it| (it.id.clone(), word.to_owned())).collect();
        if healthy.is_empty() {
            return all("N/A");
        }
        let within = self.display_limit(DM_FALLBACK);
        for master in healthy {
            let url = format!("{}/apis/v1alpha1/members?worker=true", self.base(master));
            let Ok(members) = ask::<Members>(&self.http, Method::GET, &url, None, within).await
            else {
                continue;
            };
            let Some(known) = members.workers().filter(|_| members.result) else { continue };
            return workers
                .iter()
                .map(|it| {
                    let found = known.workers.iter().find(|w| w.name == it.name.as_str());
                    (it.id.clone(), found.map_or_else(|| "N/A".into(), |w| capitalised(&w.stage)))
                })
                .collect();
        }
        all("Down")
    }

    async fn page_status(&self, instance: &Instance) -> (InstanceId, String) {
        let path = if instance.role == Role::Grafana { "/login" } else { "/-/ready" };
        let url = format!("{}{path}", page_base(instance));
        let within = self.display_limit(MONITORING_FALLBACK);
        let up = exchange(&self.http, Method::GET, &url, None, within)
            .await
            .is_ok_and(|(status, _)| status.is_success() || status.is_redirection());
        (instance.id.clone(), if up { "Up" } else { "Down" }.into())
    }

    fn display_limit(&self, fallback: Duration) -> Duration {
        if self.timeouts.display < Duration::from_secs(1) {
            fallback
        } else {
            self.timeouts.display
        }
    }
}

/// `bound` → `Bound`; a stage is one word of DM's, so nothing else can come out.
fn capitalised(stage: &str) -> String {
    let word: String = stage.chars().filter(char::is_ascii_alphanumeric).take(32).collect();
    match word.split_at_checked(1) {
        Some((first, rest)) => format!("{}{rest}", first.to_ascii_uppercase()),
        None => "N/A".into(),
    }
}
