//! Asks and orders, through whichever master answers.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dmup_core::ids::{InstanceId, MemberName, SourceId, TaskName};
use dmup_core::instance::{Instance, Role};
use dmup_core::inventory::{DmSeen, MasterSeen};
use dmup_exec::ports::{Certainty, Dm, EffectError, ReportedBuild};
use futures::future::join_all;
use reqwest::Method;
use serde_json::json;
use tokio::time::Instant;

use super::answers::{Members, Outcome, PerSource, SourceReport, SourceStatus, Status};
use super::code::DmCode;
use super::grpc;
use super::http::{Unanswered, ask, authority, beginning, escaped, exchange};
use super::seen::{Collected, OwnView, assemble, build_in_status, health_in};

/// `SourceOp.ShowSource`.
const SHOW_SOURCES: u8 = 4;

/// Between two tries of an order that DM could not take yet.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(300);

/// How long to wait for what.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Timeouts {
    /// For a connection.
    pub connect: Duration,
    /// For what a master knows by itself. A leader query through another master took up to 4 s after an eviction.
    pub answer: Duration,
    /// For what the leader asks all workers; DM itself would wait 30 s for a worker that hangs.
    pub report: Duration,
    /// For an order. Pausing waits for the end of a transaction, a transfer up to 55 s for `Paused` (dm.md 4.8).
    pub order: Duration,
    /// How long an order is repeated that DM cannot take yet (no leader, its scheduler not started, task latched).
    pub not_yet: Duration,
    /// `--status-timeout` of `display`; below a second, TiUP's own defaults count (2 s, monitoring 10 s).
    pub display: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            answer: Duration::from_secs(3),
            report: Duration::from_secs(8),
            order: Duration::from_secs(75),
            not_yet: Duration::from_secs(15),
            display: Duration::from_secs(10),
        }
    }
}

/// The HTTP client cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot prepare HTTP requests to DM: {0}")]
pub struct Unusable(#[from] reqwest::Error);

/// The client of one cluster's DM.
#[derive(Debug)]
pub struct DmClient {
    pub(super) instances: Vec<Instance>,
    pub(super) timeouts: Timeouts,
    pub(super) http: reqwest::Client,
    remembered: Mutex<Remembered>,
}

/// From the last look, for the order in which masters are asked.
#[derive(Clone, Debug, Default)]
struct Remembered {
    avoiding: Vec<InstanceId>,
    leader: Option<InstanceId>,
}

impl DmClient {
    /// Takes all instances of the topology, monitoring too; nothing is sent yet.
    ///
    /// # Errors
    ///
    /// [`Unusable`] if the HTTP client cannot be made.
    pub fn new(instances: &[Instance], timeouts: Timeouts) -> Result<Self, Unusable> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(timeouts.connect)
            .pool_max_idle_per_host(0)
            .user_agent(concat!("dmup/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { instances: instances.to_vec(), timeouts, http, remembered: Mutex::default() })
    }

    /// Takes a master or a worker that is gone for good off DM's member list; fine if it is not on it.
    ///
    /// # Errors
    ///
    /// Refused while a worker still has its lease (46005: try again), or if the instance is no part of DM.
    pub async fn remove_member(&self, instance: &Instance) -> Result<(), EffectError> {
        let kind = match instance.role {
            Role::DmMaster => "master",
            Role::DmWorker => "worker",
            Role::Prometheus | Role::Grafana | Role::Alertmanager => {
                return Err(EffectError {
                    attempted: format!("take {} off the member list", instance.id),
                    place: "DM".into(),
                    observed: format!("{} is no member of DM", instance.role),
                    certainty: Certainty::Refused,
                });
            }
        };
        let path = format!("/apis/v1alpha1/members/{kind}/{}", escaped(instance.name.as_str()));
        let attempted = format!("take {} off the member list", instance.name);
        self.order(&attempted, Some(&instance.id), |master| {
            let url = format!("http://{}{path}", authority(&master.host, master.port));
            async move {
                let within = self.timeouts.answer.max(Duration::from_secs(10));
                let outcome: Result<Outcome, Unanswered> =
                    ask(&self.http, Method::DELETE, &url, None, within).await;
                match outcome {
                    Ok(outcome) if outcome.result || outcome.msg.contains("not exists") => Ok(()),
                    Ok(outcome) => Err(Unanswered::Refused(beginning(&outcome.msg))),
                    Err(Unanswered::Status { status: 404, .. }) => Ok(()),
                    Err(Unanswered::Status { body, .. }) if body.contains("not exists") => Ok(()),
                    Err(other) => Err(other),
                }
            }
        })
        .await
    }

    pub(super) fn masters(&self) -> impl Iterator<Item = &Instance> {
        self.instances.iter().filter(|it| it.role == Role::DmMaster)
    }

    fn remembered(&self) -> Remembered {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Masters in the order in which they are asked: the leader, the others; never the avoided ones
    /// unless there are no others.
    fn candidates(&self, never: Option<&InstanceId>) -> Vec<&Instance> {
        let remembered = self.remembered();
        let mut all: Vec<&Instance> = self
            .masters()
            .filter(|it| !remembered.avoiding.contains(&it.id) && Some(&it.id) != never)
            .collect();
        if all.is_empty() {
            all = self.masters().filter(|it| Some(&it.id) != never).collect();
        }
        all.sort_by_key(|it| Some(&it.id) != remembered.leader.as_ref());
        all
    }

    /// Gives an order to the first master that can take it.
    ///
    /// A master that cannot be reached, or cannot reach the leader, has done nothing: the next is
    /// asked. One that may have done it ends the attempt: unknown.
    async fn order<'a, F, Fut>(
        &'a self,
        attempted: &str,
        never: Option<&InstanceId>,
        send: F,
    ) -> Result<(), EffectError>
    where
        F: Fn(&'a Instance) -> Fut,
        Fut: Future<Output = Result<(), Unanswered>>,
    {
        let until = Instant::now() + self.timeouts.not_yet;
        loop {
            let mut said = Vec::new();
            let mut not_yet = false;
            for master in self.candidates(never) {
                let error = match send(master).await {
                    Ok(()) => return Ok(()),
                    Err(error) => error,
                };
                if error.may_have_happened() {
                    return Err(failed(attempted, master, &error));
                }
                match &error {
                    Unanswered::Refused(words) if is_not_yet(words) => not_yet = true,
                    Unanswered::Refused(_) => return Err(failed(attempted, master, &error)),
                    Unanswered::Connect(_)
                    | Unanswered::Status { .. }
                    | Unanswered::TimedOut(_)
                    | Unanswered::Broke(_)
                    | Unanswered::Nonsense { .. } => {}
                }
                said.push(format!("{}: {error}", master.id));
            }
            if !not_yet || Instant::now() >= until {
                return Err(EffectError {
                    attempted: attempted.to_owned(),
                    place: "every dm-master".into(),
                    observed: if said.is_empty() {
                        "there is none to ask".into()
                    } else {
                        said.join("; ")
                    },
                    certainty: Certainty::Refused,
                });
            }
            tokio::time::sleep(TRY_AGAIN_AFTER).await;
        }
    }

    async fn operate_task(
        &self,
        attempted: &str,
        op: i32,
        task: &TaskName,
        source: &SourceId,
    ) -> Result<(), EffectError> {
        let timeouts = &self.timeouts;
        self.order(attempted, None, |master| async move {
            let at = authority(&master.host, master.port);
            let request = grpc::OperateTaskRequest {
                op,
                name: task.as_str().to_owned(),
                sources: vec![source.as_str().to_owned()],
            };
            let answer: Result<grpc::OperateTaskResponse, _> = grpc::call(
                &at,
                "/pb.Master/OperateTask",
                request,
                timeouts.connect,
                timeouts.order,
            )
            .await;
            let (result, msg) = match answer {
                Ok(answer) => (answer.result, answer.msg),
                Err(Unanswered::Status { status: 501, .. }) => {
                    let url = format!("http://{at}/apis/v1alpha1/tasks/{}", escaped(task.as_str()));
                    let body = json!({"op": op, "sources": [source.as_str()]});
                    let answer: PerSource =
                        ask(&self.http, Method::PUT, &url, Some(&body), timeouts.order).await?;
                    (answer.result, answer.msg)
                }
                Err(error) => return Err(error),
            };
            // The answers per source say only how far it was when DM stopped waiting for it: the
            // order itself was stored before (tiflow dm/master/server.go: OperateTask).
            if result { Ok(()) } else { Err(Unanswered::Refused(beginning(&msg))) }
        })
        .await
    }

    /// Evicts (1) or takes the eviction back (2): acts on that master alone.
    async fn operate_leader(
        &self,
        attempted: String,
        master: &Instance,
        op: u8,
    ) -> Result<(), EffectError> {
        let url =
            format!("http://{}/apis/v1alpha1/leader/{op}", authority(&master.host, master.port));
        let within = self.timeouts.answer.max(Duration::from_secs(10));
        let outcome: Result<Outcome, Unanswered> =
            ask(&self.http, Method::PUT, &url, None, within).await;
        match outcome {
            Ok(outcome) if outcome.result => Ok(()),
            Ok(outcome) => {
                Err(failed(&attempted, master, &Unanswered::Refused(beginning(&outcome.msg))))
            }
            Err(error) => Err(failed(&attempted, master, &error)),
        }
    }

    /// A master's own view: whom it calls the leader, its etcd, its build.
    async fn view_of(&self, master: &Instance) -> (OwnView, Result<(), Unanswered>) {
        let base = format!("http://{}", authority(&master.host, master.port));
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
        let url = format!("http://{}/apis/v1alpha1/members", authority(&master.host, master.port));
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
        let at = authority(&master.host, master.port);
        let query: Vec<String> =
            sources.iter().map(|it| format!("sources={}", escaped(it.as_str()))).collect();
        let url = format!("http://{at}/apis/v1alpha1/status/?{}", query.join("&"));
        let status = match ask::<Status>(&self.http, Method::GET, &url, None, within).await {
            // An empty task name is at the edge of what the gateway routes (measured good on v8.1.0).
            Err(Unanswered::Status { status: 400 | 404 | 405 | 501, .. }) => {
                let request = grpc::QueryStatusRequest {
                    name: String::new(),
                    sources: sources.iter().map(|it| it.as_str().to_owned()).collect(),
                };
                grpc::call::<_, grpc::QueryStatusResponse>(
                    &at,
                    "/pb.Master/QueryStatus",
                    request,
                    self.timeouts.connect,
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
        let url = format!("http://{}/apis/v1alpha1/sources", authority(&master.host, master.port));
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
        let answer: Result<grpc::ShowDdlLocksResponse, _> = grpc::call(
            &authority(&master.host, master.port),
            "/pb.Master/ShowDDLLocks",
            grpc::ShowDdlLocksRequest::default(),
            self.timeouts.connect,
            self.timeouts.answer,
        )
        .await;
        answer.map(|it| it.locks).unwrap_or_default()
    }
}

/// Answers of a master that will be right soon.
fn is_not_yet(words: &str) -> bool {
    match DmCode::of(words) {
        Some(
            DmCode::NoLeader
            | DmCode::CannotForward
            | DmCode::SchedulerNotStarted
            | DmCode::LatchInUse,
        ) => true,
        Some(
            DmCode::LoadedElsewhere
            | DmCode::EffectNotSeen
            | DmCode::WorkerHasNoSource
            | DmCode::NoSuchWorker
            | DmCode::WorkerOnline
            | DmCode::WorkerNotFree
            | DmCode::TasksRunning
            | DmCode::AutoPauseFailed
            | DmCode::Other(_),
        )
        | None => false,
    }
}

fn failed(attempted: &str, at: &Instance, error: &Unanswered) -> EffectError {
    EffectError {
        attempted: attempted.to_owned(),
        place: format!("{} {}", at.role, at.id),
        observed: error.to_string(),
        certainty: if error.may_have_happened() { Certainty::Unknown } else { Certainty::Refused },
    }
}

#[async_trait]
impl Dm for DmClient {
    async fn look(&self, avoiding: &[InstanceId]) -> Result<DmSeen, EffectError> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner).avoiding = avoiding.to_vec();
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
                    usable.insert(0, master)
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
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner).leader =
            seen.masters.iter().find(|it| it.leader).and_then(|it| it.instance.clone());
        Ok(seen)
    }

    async fn build_of(&self, instance: &Instance) -> Result<ReportedBuild, EffectError> {
        let attempted = "ask for its build";
        let (host, path) = match instance.role {
            Role::DmMaster | Role::DmWorker => (&instance.host, "/status"),
            Role::Prometheus => (&instance.ssh_host, "/api/v1/status/buildinfo"),
            Role::Grafana => (&instance.ssh_host, "/api/health"),
            Role::Alertmanager => (&instance.ssh_host, "/api/v2/status"),
        };
        let url = format!("http://{}{path}", authority(host, instance.port));
        let (status, body) = exchange(&self.http, Method::GET, &url, None, self.timeouts.answer)
            .await
            .map_err(|error| failed(attempted, instance, &error))?;
        if !status.is_success() {
            let error = Unanswered::Status { status: status.as_u16(), body: beginning(&body) };
            return Err(failed(attempted, instance, &error));
        }
        let build = match instance.role {
            Role::DmMaster | Role::DmWorker => build_in_status(&body),
            Role::Prometheus => build_in_json(&body, &["data"], "revision"),
            Role::Grafana => build_in_json(&body, &[], "commit"),
            Role::Alertmanager => build_in_json(&body, &["versionInfo"], "revision"),
        };
        build.ok_or_else(|| {
            let error =
                Unanswered::Nonsense { why: "it names no version".into(), body: beginning(&body) };
            failed(attempted, instance, &error)
        })
    }

    async fn evict_leader(&self, master: &Instance) -> Result<(), EffectError> {
        self.operate_leader(format!("evict {} as leader", master.name), master, 1).await
    }

    async fn cancel_evict(&self, master: &Instance) -> Result<(), EffectError> {
        self.operate_leader(format!("let {} be leader again", master.name), master, 2).await
    }

    async fn pause(&self, task: &TaskName, source: &SourceId) -> Result<(), EffectError> {
        self.operate_task(
            &format!("pause task {task} of source {source}"),
            grpc::PAUSE,
            task,
            source,
        )
        .await
    }

    async fn resume(&self, task: &TaskName, source: &SourceId) -> Result<(), EffectError> {
        self.operate_task(
            &format!("resume task {task} of source {source}"),
            grpc::RESUME,
            task,
            source,
        )
        .await
    }

    async fn transfer(&self, source: &SourceId, worker: &MemberName) -> Result<(), EffectError> {
        let timeouts = &self.timeouts;
        self.order(&format!("transfer source {source} to {worker}"), None, |master| async move {
            let request = grpc::TransferSourceRequest {
                source: source.as_str().to_owned(),
                worker: worker.as_str().to_owned(),
            };
            let answer: grpc::TransferSourceResponse = grpc::call(
                &authority(&master.host, master.port),
                "/pb.Master/TransferSource",
                request,
                timeouts.connect,
                timeouts.order,
            )
            .await
            .map_err(|error| match error {
                Unanswered::Status { status: 501, .. } => Unanswered::Refused(
                    "this DM cannot transfer sources (it came with v2.0.2)".into(),
                ),
                other => other,
            })?;
            if answer.result { Ok(()) } else { Err(Unanswered::Refused(beginning(&answer.msg))) }
        })
        .await
    }
}

/// Version and commit, below some keys.
fn build_in_json(body: &str, below: &[&str], commit: &str) -> Option<ReportedBuild> {
    let value: serde_json::Value = serde_json::from_str(body).ok()?;
    let value = below.iter().try_fold(&value, |at, key| at.get(key))?;
    let text = |key| value.get(key).and_then(serde_json::Value::as_str).map(beginning);
    Some(ReportedBuild { release: text("version")?, commit: text(commit).unwrap_or_default() })
}
