//! One look at DM: all masters at once for their own view, one of them for the rest.
//!
//! Bounded: a master that hangs costs the time limit of an answer, a worker
//! that hangs the limit of a report and hides its own tasks only.

use std::time::Duration;

use dmup_core::ids::{InstanceId, MemberName, SourceId};
use dmup_core::instance::{Instance, Role};
use dmup_core::inventory::{DmSeen, MasterSeen};
use dmup_exec::ports::{Certainty, EffectError};
use futures::future::join_all;
use hyper::Method;
use serde_json::json;

use super::answers::{Members, PerSource, SourceReport, SourceStatus, Status};
use super::client::{DmClient, failed};
use super::grpc;
use super::http::{Unanswered, ask, beginning, escaped, exchange};
use super::seen::{Collected, OwnView, assemble, build_in_status, health_in};

/// `SourceOp.ShowSource`.
const SHOW_SOURCES: u8 = 4;

impl DmClient {
    pub(super) async fn look_around(&self, avoiding: &[InstanceId]) -> Result<DmSeen, EffectError> {
        self.remember(|it| it.avoiding = avoiding.to_vec());
        let nothing = |observed: String| EffectError {
            attempted: "look at DM".into(),
            place: "every dm-master".into(),
            observed,
            certainty: Certainty::Refused,
        };
        let (avoided, asked): (Vec<&Instance>, Vec<&Instance>) =
            self.masters().partition(|it| avoiding.contains(&it.id));
        let views = join_all(asked.iter().map(|it| self.view_of(it))).await;
        let mut collected = Collected::default();
        let mut said = Vec::new();
        let mut usable = Vec::new();
        for (master, (view, answered)) in asked.iter().copied().zip(views) {
            match answered {
                // The leader itself first: it need not forward.
                Ok(()) if view.calls_leader.as_ref() == Some(&master.name) => {
                    usable.insert(0, master);
                }
                Ok(()) => usable.push(master),
                Err(error) => said.push(format!("{}: {error}", master.id)),
            }
            collected.views.insert(master.id.clone(), view);
        }
        let mut through = None;
        for master in usable {
            match self.members_by(master, &avoided).await {
                Ok(members) => {
                    collected.members = members;
                    through = Some(master);
                    break;
                }
                Err(error) => said.push(format!("{}: {error}", master.id)),
            }
        }
        let Some(through) = through else {
            return Err(nothing(if said.is_empty() {
                "there is none that may be asked now".into()
            } else {
                said.join("; ")
            }));
        };

        // The leader asks the workers: leave those out that must not be asked.
        let avoided_workers: Vec<&Instance> = self
            .instances
            .iter()
            .filter(|it| it.role == Role::DmWorker && avoiding.contains(&it.id))
            .collect();
        let (mut bound, mut left_out) = (Vec::new(), false);
        for worker in collected.members.workers().map_or(&[][..], |known| &known.workers) {
            let Ok(source) = SourceId::new(&worker.source) else { continue };
            if avoided_workers
                .iter()
                .any(|it| it.name.as_str() == worker.name || it.id.as_str() == worker.addr)
            {
                left_out = true;
            } else {
                bound.push(source);
            }
        }
        let only = left_out.then_some(&bound[..]);
        let (reports, sources, locks) = tokio::join!(
            self.reports(through, only, &bound),
            async { if left_out { Vec::new() } else { self.known_sources(through).await } },
            self.locks(through),
        );
        collected.reports =
            reports.map_err(|error| failed("ask for the status of tasks", through, &error))?;
        collected.sources = sources;
        collected.locks = locks;
        let mut seen = assemble(&self.instances, &collected).map_err(|error| {
            failed("look at DM", through, &Unanswered::Refused(error.to_string()))
        })?;
        for master in avoided {
            if !seen.masters.iter().any(|it| it.name == master.name) {
                seen.masters.push(MasterSeen {
                    name: master.name.clone(),
                    instance: Some(master.id.clone()),
                    alive: false,
                    leader: collected
                        .members
                        .leader()
                        .is_some_and(|it| it.name == master.name.as_str()),
                    calls_leader: None,
                    etcd_healthy: None,
                    release: None,
                });
            }
        }
        let leader = seen.masters.iter().find(|it| it.leader).and_then(|it| it.instance.clone());
        self.remember(|it| it.leader = leader);
        Ok(seen)
    }

    /// A master's own view: whom it calls the leader, its etcd, its build.
    async fn view_of(&self, master: &Instance) -> (OwnView, Result<(), Unanswered>) {
        let base = self.base(master);
        let within = self.timeouts.answer;
        let leader_url = format!("{base}/apis/v1alpha1/members?leader=true");
        let health_url = format!("{base}/health");
        let status_url = format!("{base}/status");
        let (leader, health, status) = tokio::join!(
            ask::<Members>(&self.http, Method::GET, &leader_url, None, within),
            exchange(&self.http, Method::GET, &health_url, None, within),
            exchange(&self.http, Method::GET, &status_url, None, within),
        );
        let (calls_leader, answered) = match leader {
            Ok(members) if members.result => {
                let name = members.leader().map(|leader| leader.name.clone()).unwrap_or_default();
                (MemberName::new(name).ok(), Ok(()))
            }
            Ok(members) => (None, Err(Unanswered::Refused(beginning(&members.msg)))),
            Err(error) => (None, Err(error)),
        };
        let view = OwnView {
            calls_leader,
            etcd_healthy: health.ok().and_then(|(_, body)| health_in(&body)),
            release: status
                .ok()
                .filter(|(code, _)| code.is_success())
                .and_then(|(_, body)| build_in_status(&body))
                .map(|build| build.release),
        };
        (view, answered)
    }

    /// The member list by way of one master, without making anybody ask the avoided masters: the
    /// leader asks the health of each master that it is to list (tiflow dm/master/server.go: listMemberMaster).
    async fn members_by(
        &self,
        master: &Instance,
        avoided: &[&Instance],
    ) -> Result<Members, Unanswered> {
        let url = format!("{}/apis/v1alpha1/members", self.base(master));
        // A dead host among them costs the leader a second each.
        let count = u32::try_from(self.masters().count()).unwrap_or(u32::MAX);
        let within =
            self.timeouts.answer.saturating_add(Duration::from_secs(1).saturating_mul(count));
        let members: Members = if avoided.is_empty() {
            ask(&self.http, Method::GET, &url, None, within).await?
        } else {
            let names: Vec<String> = self
                .masters()
                .filter(|it| !avoided.iter().any(|other| other.id == it.id))
                .map(|it| format!("&names={}", escaped(it.name.as_str())))
                .collect();
            let masters_url = format!("{url}?master=true{}", names.concat());
            let others_url = format!("{url}?leader=true&worker=true");
            let (masters, others) = tokio::join!(
                ask::<Members>(&self.http, Method::GET, &masters_url, None, within),
                ask::<Members>(&self.http, Method::GET, &others_url, None, within),
            );
            let (masters, mut others) = (masters?, others?);
            if !masters.result {
                return Err(Unanswered::Refused(beginning(&masters.msg)));
            }
            others.members.extend(masters.members);
            others
        };
        let complaint = [
            (!members.result).then_some(members.msg.as_str()),
            members.masters().map(|it| it.msg.as_str()),
            members.workers().map(|it| it.msg.as_str()),
        ]
        .into_iter()
        .flatten()
        .find(|msg| !msg.is_empty());
        match complaint {
            Some(words) => Err(Unanswered::Refused(beginning(words))),
            None if !members.result => {
                Err(Unanswered::Refused("result: false, without a word".into()))
            }
            None => Ok(members),
        }
    }

    /// Task status of the given sources, or of all.
    async fn reports(
        &self,
        master: &Instance,
        sources: Option<&[SourceId]>,
        bound: &[SourceId],
    ) -> Result<Vec<SourceReport>, Unanswered> {
        if sources.is_some_and(<[_]>::is_empty) {
            return Ok(Vec::new());
        }
        let all_at_once =
            self.report(master, sources.unwrap_or_default(), self.timeouts.report).await;
        if !matches!(all_at_once, Err(Unanswered::TimedOut(_))) {
            return all_at_once;
        }
        // One worker that hangs holds up the answer for all: ask for each alone.
        let each = join_all(sources.unwrap_or(bound).iter().map(|source| async move {
            let one = std::slice::from_ref(source);
            match self.report(master, one, self.timeouts.answer).await {
                Ok(reports) => reports,
                Err(error) => vec![SourceReport {
                    result: false,
                    msg: error.to_string(),
                    source_status: SourceStatus {
                        source: source.as_str().to_owned(),
                        ..Default::default()
                    },
                    subtasks: Vec::new(),
                }],
            }
        }))
        .await;
        Ok(each.into_iter().flatten().collect())
    }

    async fn report(
        &self,
        master: &Instance,
        sources: &[SourceId],
        within: Duration,
    ) -> Result<Vec<SourceReport>, Unanswered> {
        let query: Vec<String> =
            sources.iter().map(|it| format!("sources={}", escaped(it.as_str()))).collect();
        let url = format!("{}/apis/v1alpha1/status/?{}", self.base(master), query.join("&"));
        let status = match ask::<Status>(&self.http, Method::GET, &url, None, within).await {
            // An empty task name is at the edge of what the gateway routes (measured good on v8.1.0).
            Err(Unanswered::Status { status: 400 | 404 | 405 | 501, .. }) => {
                let request = grpc::QueryStatusRequest {
                    name: String::new(),
                    sources: sources.iter().map(|it| it.as_str().to_owned()).collect(),
                };
                grpc::call::<_, grpc::QueryStatusResponse>(
                    &self.http,
                    self.endpoint(master)?,
                    "/pb.Master/QueryStatus",
                    request,
                    within,
                )
                .await?
                .into()
            }
            other => other?,
        };
        if status.result {
            Ok(status.sources)
        } else {
            Err(Unanswered::Refused(beginning(&status.msg)))
        }
    }

    /// All sources, also those that nobody runs; empty if DM does not say in time (it asks the workers for this).
    async fn known_sources(&self, master: &Instance) -> Vec<(String, String)> {
        let url = format!("{}/apis/v1alpha1/sources", self.base(master));
        let body = json!({"op": SHOW_SOURCES});
        match ask::<PerSource>(&self.http, Method::PUT, &url, Some(&body), self.timeouts.answer)
            .await
        {
            Ok(shown) if shown.result => shown
                .sources
                .into_iter()
                .filter(|it| !it.source.is_empty())
                .map(|it| (it.source, it.worker))
                .collect(),
            Ok(_) | Err(_) => Vec::new(),
        }
    }

    /// DDL locks; none if this DM does not say: a subtask that waits for one says so in its own status.
    async fn locks(&self, master: &Instance) -> Vec<grpc::DdlLock> {
        let Ok(endpoint) = self.endpoint(master) else { return Vec::new() };
        let answer: Result<grpc::ShowDdlLocksResponse, _> = grpc::call(
            &self.http,
            endpoint,
            "/pb.Master/ShowDDLLocks",
            grpc::ShowDdlLocksRequest::default(),
            self.timeouts.answer,
        )
        .await;
        answer.map(|it| it.locks).unwrap_or_default()
    }
}
