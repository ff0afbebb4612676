//! What the leader does when asked: members, sources, tasks, status, transfer.
//!
//! Facts: dm.md of DM's interfaces as recorded and read (tiflow dm/master/server.go, dm/master/scheduler).
//! An operation that fails for a reason of the business answers `result: false`; an error is for what kept it from
//! being tried.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::{Instant, sleep};
use tonic::Status;

use crate::etcd::{EtcdError, Write, unary};
use crate::http::Rpc;
use crate::keys::{
    Registered, Snapshot, Source, Subtask, bound_key, registered_key, source_key, stage_key,
    stage_value, subtask_key, to_json,
};
use crate::log;
use crate::proto::{
    CommonWorkerResponse, GetSubTaskCfgRequest, GetSubTaskCfgResponse, ListLeaderMember,
    ListMasterMember, ListMemberRequest, ListMemberResponse, ListWorkerMember, MasterInfo, Member,
    Members, OfflineMemberRequest, OperateLeaderRequest, OperateSourceRequest,
    OperateSourceResponse, OperateTaskRequest, OperateTaskResponse, Outcome,
    QueryStatusListRequest, QueryStatusListResponse, QueryStatusRequest, QueryStatusResponse,
    RegisterWorkerRequest, ShowDdlLocksRequest, ShowDdlLocksResponse, SourceStatus, Stage,
    StartTaskRequest, StartTaskResponse, SubTaskStatus, TaskOp, TransferSourceRequest, UnitType,
};
use crate::row_client;
use crate::tls;

use super::Master;
use super::scheduler::bind;

const RPC_TIMEOUT: Duration = Duration::from_secs(30);
/// DM looks ten times, a second apart; a pause may take the ten seconds of a long transaction.
const STAGE_WITHIN: Duration = Duration::from_secs(12);

/// A procedure of `pb.Master`.
pub(super) trait MasterRpc: Rpc {
    /// Done by the master that is asked, not by the leader.
    const LOCAL: bool = false;

    fn run(self, master: Arc<Master>) -> impl Future<Output = Result<Self::Reply, Status>> + Send;
}

macro_rules! rpc {
    ($request:ty, $reply:ty, $path:literal) => {
        impl Rpc for $request {
            type Reply = $reply;
            const PATH: &'static str = $path;
        }
    };
}
rpc!(ListMemberRequest, ListMemberResponse, "/pb.Master/ListMember");
rpc!(OperateLeaderRequest, Outcome, "/pb.Master/OperateLeader");
rpc!(RegisterWorkerRequest, Outcome, "/pb.Master/RegisterWorker");
rpc!(OfflineMemberRequest, Outcome, "/pb.Master/OfflineMember");
rpc!(TransferSourceRequest, Outcome, "/pb.Master/TransferSource");
rpc!(StartTaskRequest, StartTaskResponse, "/pb.Master/StartTask");
rpc!(OperateTaskRequest, OperateTaskResponse, "/pb.Master/OperateTask");
rpc!(OperateSourceRequest, OperateSourceResponse, "/pb.Master/OperateSource");
rpc!(ShowDdlLocksRequest, ShowDdlLocksResponse, "/pb.Master/ShowDDLLocks");
rpc!(GetSubTaskCfgRequest, GetSubTaskCfgResponse, "/pb.Master/GetSubTaskCfg");
rpc!(QueryStatusListRequest, QueryStatusListResponse, "/pb.Master/QueryStatus");
rpc!(QueryStatusRequest, QueryStatusResponse, "/pb.Worker/QueryStatus");

/// An error as DM writes it.
pub(crate) fn dm_error(code: u32, class: &str, level: &str, message: &str) -> String {
    format!("[code={code}:class={class}:scope=internal:level={level}], Message: {message}")
}

fn scheduler_error(code: u32, message: &str) -> String {
    dm_error(code, "scheduler", "medium", message)
}

fn lost(error: EtcdError) -> Status {
    Status::unknown(error.to_string())
}

impl Master {
    async fn snapshot(&self) -> Result<Snapshot, Status> {
        Snapshot::read(&self.etcd).await.map_err(lost)
    }

    async fn write_or_fail(&self, writes: Vec<Write>) -> Result<(), Status> {
        match self.write_as_leader(writes).await.map_err(lost)? {
            true => Ok(()),
            false => Err(Status::unknown("this dm-master lost its leadership in between")),
        }
    }

    /// Waits until a worker says of a subtask what `holds` wants; `Err` with what it says instead.
    async fn wait_subtask(
        &self,
        source: &str,
        task: &str,
        holds: impl Fn(Option<&SubTaskStatus>) -> bool,
    ) -> Result<String, String> {
        let until = Instant::now() + STAGE_WITHIN;
        let mut pause = Duration::from_millis(20);
        loop {
            let seen = match self.snapshot().await {
                Err(status) => status.message().to_owned(),
                Ok(snapshot) => match snapshot.worker_of(source) {
                    None => {
                        return Err(format!("source {source} relevant worker-client not found"));
                    }
                    Some(worker) => {
                        let address = snapshot.workers.get(worker).cloned().unwrap_or_default();
                        match query_worker(&address, task).await {
                            Err(status) => status.message().to_owned(),
                            Ok(answer) => {
                                let subtask = answer
                                    .subtask_status
                                    .iter()
                                    .find(|subtask| subtask.name == task);
                                if holds(subtask) {
                                    return Ok(worker.to_owned());
                                }
                                format!(
                                    "stage of the subtask is {:?}",
                                    subtask.map(SubTaskStatus::known_stage)
                                )
                            }
                        }
                    }
                },
            };
            if Instant::now() > until {
                return Err(format!("fail to get expected result: {seen}"));
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(250));
        }
    }

    async fn is_reachable(&self, url: &str) -> bool {
        // Any answer counts, also 503: so it does in DM.
        let request = self.client.get(format!("{url}/health")).timeout(Duration::from_secs(1));
        request.send().await.is_ok()
    }
}

/// Asks a worker for its subtasks; an empty task means all.
async fn query_worker(address: &str, task: &str) -> Result<QueryStatusResponse, Status> {
    let endpoint = tls::endpoint(address)
        .map_err(|error| Status::unknown(format!("worker address {address:?}: {error}")))?;
    let channel = endpoint.connect_timeout(Duration::from_secs(3)).connect_lazy();
    let request = QueryStatusRequest { name: task.to_owned() };
    unary(channel, QueryStatusRequest::PATH, request, RPC_TIMEOUT).await
}

fn common(source: &str, outcome: Result<String, String>) -> CommonWorkerResponse {
    let source = source.to_owned();
    match outcome {
        Ok(worker) => CommonWorkerResponse { result: true, msg: String::new(), source, worker },
        Err(msg) => CommonWorkerResponse { result: false, msg, source, worker: String::new() },
    }
}

impl MasterRpc for ListMemberRequest {
    async fn run(self, master: Arc<Master>) -> Result<ListMemberResponse, Status> {
        let all = !self.leader && !self.master && !self.worker;
        let named =
            |name: &str| self.names.is_empty() || self.names.iter().any(|wanted| wanted == name);
        let mut members = Vec::new();
        if all || self.leader {
            let leader = master.view.borrow().leader.clone();
            members.push(Member::Leader(match leader {
                Some(leader) => {
                    ListLeaderMember { msg: String::new(), name: leader.id, addr: leader.addr }
                }
                None => ListLeaderMember {
                    msg: dm_error(11108, "functional", "medium", "no leader"),
                    ..ListLeaderMember::default()
                },
            }));
        }
        if all || self.master {
            let mut listed = master.etcd.members().await.map_err(lost)?;
            listed.retain(|member| named(&member.name));
            listed.sort_by(|a, b| a.name.cmp(&b.name));
            let mut checks = Vec::new();
            for member in &listed {
                let (master, url) = (Arc::clone(&master), member.client_urls.first().cloned());
                checks.push(tokio::spawn(async move {
                    match url {
                        Some(url) => master.is_reachable(&url).await,
                        None => false,
                    }
                }));
            }
            let mut masters = Vec::new();
            for (member, check) in listed.into_iter().zip(checks) {
                masters.push(MasterInfo {
                    name: member.name,
                    member_id: member.id,
                    alive: check.await.unwrap_or(false),
                    peer_urls: member.peer_urls,
                    client_urls: member.client_urls,
                });
            }
            members.push(Member::Master(ListMasterMember { msg: String::new(), masters }));
        }
        if all || self.worker {
            let snapshot = master.snapshot().await?;
            let workers = snapshot.workers.iter().filter(|(name, _)| named(name));
            let workers = workers.map(|(name, addr)| crate::proto::WorkerInfo {
                name: name.clone(),
                addr: addr.clone(),
                stage: snapshot.worker_stage(name).to_owned(),
                source: snapshot.bound.get(name).cloned().unwrap_or_default(),
            });
            members.push(Member::Worker(ListWorkerMember {
                msg: String::new(),
                workers: workers.collect(),
            }));
        }
        let members = members.into_iter().map(|member| Members { member: Some(member) }).collect();
        Ok(ListMemberResponse { result: true, msg: String::new(), members })
    }
}

impl MasterRpc for OperateLeaderRequest {
    const LOCAL: bool = true;

    async fn run(self, master: Arc<Master>) -> Result<Outcome, Status> {
        match self.op {
            1 => {
                // Accepted is answered; done is seen by looking.
                tokio::spawn(async move { master.evict().await });
                Ok(Outcome::done())
            }
            2 => {
                master.cancel_evict();
                Ok(Outcome::done())
            }
            _ => Ok(Outcome::refused(format!("invalid leader op {}", self.op))),
        }
    }
}

impl MasterRpc for RegisterWorkerRequest {
    async fn run(self, master: Arc<Master>) -> Result<Outcome, Status> {
        let _one_at_a_time = master.scheduling.lock().await;
        let snapshot = master.snapshot().await?;
        match snapshot.workers.get(&self.name) {
            Some(address) if *address != self.address => Ok(Outcome::refused(scheduler_error(
                46003,
                &format!("dm-worker with name {} already exists at {address}", self.name),
            ))),
            Some(_) => Ok(Outcome::done()),
            None => {
                let value = to_json(&Registered { name: self.name.clone(), addr: self.address });
                master.write_or_fail(vec![Write::Put(registered_key(&self.name), value)]).await?;
                Ok(Outcome::done())
            }
        }
    }
}

impl MasterRpc for OfflineMemberRequest {
    async fn run(self, master: Arc<Master>) -> Result<Outcome, Status> {
        let name = &self.name;
        match self.r#type.as_str() {
            "worker" => {
                let _one_at_a_time = master.scheduling.lock().await;
                let snapshot = master.snapshot().await?;
                if !snapshot.workers.contains_key(name) {
                    return Ok(Outcome::refused(scheduler_error(
                        46004,
                        &format!("dm-worker with name {name} not exists"),
                    )));
                }
                if snapshot.is_alive(name) {
                    return Ok(Outcome::refused(scheduler_error(
                        46005,
                        &format!("dm-worker with name {name} is still online"),
                    )));
                }
                let writes =
                    [registered_key(name), bound_key(name), crate::keys::last_bound_key(name)];
                master.write_or_fail(writes.into_iter().map(Write::Delete).collect()).await?;
                Ok(Outcome::done())
            }
            "master" => {
                let members = master.etcd.members().await.map_err(lost)?;
                match members.iter().find(|member| member.name == *name) {
                    None => Ok(Outcome::refused(format!("dm-master with name {name} not exists"))),
                    Some(member) => {
                        master.etcd.remove_member(member.id).await.map_err(lost)?;
                        Ok(Outcome::done())
                    }
                }
            }
            other => Ok(Outcome::refused(format!("invalid member type {other}"))),
        }
    }
}

impl MasterRpc for TransferSourceRequest {
    async fn run(self, master: Arc<Master>) -> Result<Outcome, Status> {
        let Self { source, worker: target } = self;
        let snapshot = master.snapshot().await?;
        let refuse = |code, text: &str| Ok(Outcome::refused(scheduler_error(code, text)));
        if !snapshot.sources.contains_key(&source) {
            return refuse(46008, &format!("source config with ID {source} not exists"));
        }
        if !snapshot.workers.contains_key(&target) {
            return refuse(46004, &format!("dm-worker with name {target} not exists"));
        }
        if snapshot.bound.get(&target) == Some(&source) {
            return Ok(Outcome::done());
        }
        let stage = snapshot.worker_stage(&target);
        if stage != "free" {
            return refuse(
                46006,
                &format!(
                    "invalid stage transformation for dm-worker {target}, from {stage} to bound"
                ),
            );
        }
        let running: Vec<String> = snapshot
            .subtasks_of(&source)
            .map(|subtask| subtask.task.clone())
            .filter(|task| {
                snapshot
                    .wanted_stage(&source, task)
                    .is_some_and(|wanted| wanted.stage == Stage::Running)
            })
            .collect();
        if snapshot.worker_of(&source).is_none() || running.is_empty() {
            return master.move_source(&source, &target).await;
        }
        if !master.stamp.automatic_transfer() {
            let tasks = running.join(" ");
            return Ok(Outcome::refused(dm_error(
                46019,
                "scheduler",
                "high",
                &format!(
                    "tasks [{tasks}] on source {source} should not be running, Workaround: Please use `pause-task [-s source ...] task` to pause them first."
                ),
            )));
        }
        master.pause_and_move(&source, &target, &running).await
    }
}

impl Master {
    /// Changes one binding in one transaction.
    async fn move_source(&self, source: &str, target: &str) -> Result<Outcome, Status> {
        let _one_at_a_time = self.scheduling.lock().await;
        let snapshot = self.snapshot().await?;
        if snapshot.worker_stage(target) != "free" {
            return Ok(Outcome::refused(scheduler_error(
                46006,
                &format!("dm-worker {target} is not free any more"),
            )));
        }
        let from = snapshot.worker_of(source).map(|worker| Write::Delete(bound_key(worker)));
        self.write_or_fail(from.into_iter().chain(bind(source, target)).collect()).await?;
        Ok(Outcome::done())
    }

    /// The transfer of running tasks: pause, wait ten seconds, look, move, and
    /// resume in the background, as DM does since v5.4.0.
    async fn pause_and_move(
        self: &Arc<Self>,
        source: &str,
        target: &str,
        running: &[String],
    ) -> Result<Outcome, Status> {
        let snapshot = self.snapshot().await?;
        let worker = snapshot.worker_of(source).unwrap_or_default().to_owned();
        let address = snapshot.workers.get(&worker).cloned().unwrap_or_default();
        let status = query_worker(&address, "").await?;
        let elsewhere: Vec<&str> = status
            .subtask_status
            .iter()
            .filter(|subtask| subtask.unit != UnitType::Sync as i32)
            .map(|subtask| subtask.name.as_str())
            .collect();
        if !elsewhere.is_empty() {
            let message =
                format!("running tasks {elsewhere:?} on source {source} should be in sync unit");
            return Ok(Outcome::refused(dm_error(46019, "scheduler", "high", &message)));
        }
        let put_all = |stage| {
            let puts = running
                .iter()
                .map(|task| Write::Put(stage_key(source, task), stage_value(stage, source, task)));
            puts.collect::<Vec<_>>()
        };
        self.write_or_fail(put_all(Stage::Paused)).await?;
        let mut paused = false;
        for wait_s in (1..=10).rev() {
            // DM looks before it sleeps, too, but so soon after its order that it sees the task running: every
            // transfer that was measured took the ten seconds.
            sleep(Duration::from_secs(wait_s)).await;
            let status = query_worker(&address, "").await?;
            paused =
                status.subtask_status.iter().all(|subtask| subtask.known_stage() == Stage::Paused);
            if paused {
                break;
            }
        }
        if !paused {
            let message = format!("failed to auto pause tasks {running:?} when transfer-source");
            return Ok(Outcome::refused(scheduler_error(46032, &message)));
        }
        let moved = self.move_source(source, target).await?;
        let (master, resume) = (Arc::clone(self), put_all(Stage::Running));
        tokio::spawn(async move {
            if let Err(status) = master.write_or_fail(resume).await {
                log::error!("resume tasks after a transfer: {}", status.message());
            }
        });
        Ok(moved)
    }
}

/// What is read of a source's YAML.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SourceYaml {
    source_id: String,
    from: HostPort,
}

#[derive(Deserialize)]
struct HostPort {
    host: String,
    port: u16,
}

impl HostPort {
    fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

impl MasterRpc for OperateSourceRequest {
    async fn run(self, master: Arc<Master>) -> Result<OperateSourceResponse, Status> {
        let refuse =
            |msg: String| Ok(OperateSourceResponse { result: false, msg, sources: Vec::new() });
        let mut named = self.source_id;
        let mut given = Vec::new();
        for text in &self.config {
            match serde_norway::from_str::<SourceYaml>(text) {
                Ok(yaml) => {
                    named.push(yaml.source_id.clone());
                    given.push(Source { id: yaml.source_id, log: yaml.from.address() });
                }
                Err(error) => return refuse(format!("decode source config: {error}")),
            }
        }
        match self.op {
            1 => {
                for source in &given {
                    if let Err(error) = row_client::end_of(&source.log, &source.id).await {
                        return refuse(format!("connect to source {}: {error}", source.id));
                    }
                }
                let snapshot = master.snapshot().await?;
                if let Some(source) =
                    given.iter().find(|source| snapshot.sources.contains_key(&source.id))
                {
                    return refuse(scheduler_error(
                        46007,
                        &format!("source config with ID {} already exists", source.id),
                    ));
                }
                let writes =
                    given.iter().map(|source| Write::Put(source_key(&source.id), to_json(source)));
                master.write_or_fail(writes.collect()).await?;
            }
            2 => {
                let writes =
                    given.iter().map(|source| Write::Put(source_key(&source.id), to_json(source)));
                master.write_or_fail(writes.collect()).await?;
            }
            3 => {
                let snapshot = master.snapshot().await?;
                let used =
                    named.iter().find(|source| snapshot.subtasks_of(source).next().is_some());
                if let Some(source) = used {
                    return refuse(format!("source {source} still has tasks: stop them first"));
                }
                let writes = named.iter().map(|source| Write::Delete(source_key(source)));
                master.write_or_fail(writes.collect()).await?;
            }
            4 => {}
            other => return refuse(format!("invalid source op {other}")),
        }
        if self.op != 4 {
            master.schedule().await.map_err(lost)?;
        }
        let snapshot = master.snapshot().await?;
        if named.is_empty() {
            named = snapshot.sources.keys().cloned().collect();
        }
        let sources = named.iter().map(|source| {
            let worker = snapshot.worker_of(source).unwrap_or_default().to_owned();
            let waits = worker.is_empty() && self.op != 3;
            let msg =
                if waits { "source is added but there is no free worker to bound" } else { "" };
            CommonWorkerResponse {
                result: true,
                msg: msg.to_owned(),
                source: source.clone(),
                worker,
            }
        });
        Ok(OperateSourceResponse { result: true, msg: String::new(), sources: sources.collect() })
    }
}

/// What is read of a task's YAML.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct TaskYaml {
    name: String,
    target_database: HostPort,
    mysql_instances: Vec<InstanceYaml>,
    #[serde(default)]
    syncers: BTreeMap<String, SyncerYaml>,
    /// Ours: the unit that the task stays in.
    lookalike_unit: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct InstanceYaml {
    source_id: String,
    syncer_config_name: Option<String>,
    syncer: Option<SyncerYaml>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct SyncerYaml {
    checkpoint_flush_interval: Option<u64>,
}

impl TaskYaml {
    fn subtask(&self, instance: &InstanceYaml) -> Subtask {
        let named = instance.syncer_config_name.as_ref().and_then(|name| self.syncers.get(name));
        let syncer = instance.syncer.as_ref().or(named).cloned().unwrap_or_default();
        Subtask {
            task: self.name.clone(),
            source: instance.source_id.clone(),
            sink: self.target_database.address(),
            flush_interval_s: syncer.checkpoint_flush_interval.unwrap_or(30).max(1),
            stays_in: self.lookalike_unit.clone(),
        }
    }
}

impl MasterRpc for StartTaskRequest {
    async fn run(self, master: Arc<Master>) -> Result<StartTaskResponse, Status> {
        let refuse = |msg: String| {
            Ok(StartTaskResponse {
                result: false,
                msg,
                sources: Vec::new(),
                check_result: String::new(),
            })
        };
        let yaml: TaskYaml = match serde_norway::from_str(&self.task) {
            Ok(yaml) => yaml,
            Err(error) => return refuse(format!("decode task config: {error}")),
        };
        let wanted = |source: &str| {
            self.sources.is_empty() || self.sources.iter().any(|name| name == source)
        };
        let subtasks: Vec<Subtask> = yaml
            .mysql_instances
            .iter()
            .filter(|instance| wanted(&instance.source_id))
            .map(|instance| yaml.subtask(instance))
            .collect();
        let snapshot = master.snapshot().await?;
        let unbound: BTreeSet<&str> = subtasks
            .iter()
            .map(|subtask| subtask.source.as_str())
            .filter(|source| snapshot.worker_of(source).is_none())
            .collect();
        if !unbound.is_empty() {
            return refuse(scheduler_error(46009, &format!("sources {unbound:?} have not bound")));
        }
        let exists = |subtask: &&Subtask| {
            snapshot.subtasks.contains_key(&(subtask.source.clone(), subtask.task.clone()))
        };
        if let Some(subtask) = subtasks.iter().find(exists) {
            let message = format!(
                "subtasks with name {} for sources {} already exist",
                subtask.task, subtask.source
            );
            return refuse(scheduler_error(46010, &message));
        }
        let mut writes = Vec::new();
        for subtask in &subtasks {
            let Subtask { task, source, .. } = subtask;
            writes.push(Write::Put(subtask_key(source, task), to_json(subtask)));
            writes.push(Write::Put(
                stage_key(source, task),
                stage_value(Stage::Running, source, task),
            ));
        }
        master.write_or_fail(writes).await?;
        let mut sources = Vec::new();
        for subtask in &subtasks {
            let started = |seen: Option<&SubTaskStatus>| {
                seen.is_some_and(|seen| {
                    matches!(seen.known_stage(), Stage::Running | Stage::Finished)
                })
            };
            let outcome = master.wait_subtask(&subtask.source, &subtask.task, started).await;
            sources.push(common(&subtask.source, outcome));
        }
        Ok(StartTaskResponse {
            result: true,
            msg: String::new(),
            sources,
            check_result: String::new(),
        })
    }
}

impl MasterRpc for OperateTaskRequest {
    async fn run(self, master: Arc<Master>) -> Result<OperateTaskResponse, Status> {
        let Self { op, name: task, sources: named } = self;
        let answer =
            |result, msg: String, sources| Ok(OperateTaskResponse { op, result, msg, sources });
        let stage = match TaskOp::try_from(op) {
            Ok(TaskOp::Pause) => Some(Stage::Paused),
            Ok(TaskOp::Resume) => Some(Stage::Running),
            Ok(TaskOp::Delete) => None,
            Ok(TaskOp::Stop) if !master.stamp.at_least(6, 0, 0) => None,
            Ok(
                TaskOp::InvalidOp
                | TaskOp::Stop
                | TaskOp::Start
                | TaskOp::Update
                | TaskOp::AutoResume,
            )
            | Err(_) => {
                return answer(false, format!("invalid operate {op} on task"), Vec::new());
            }
        };
        let snapshot = master.snapshot().await?;
        let known: Vec<String> = snapshot
            .subtasks
            .keys()
            .filter(|(source, known)| {
                *known == task && (named.is_empty() || named.contains(source))
            })
            .map(|(source, _)| source.clone())
            .collect();
        if known.is_empty() {
            let msg = format!(
                "task {task} has no source or not exist, please check the task name and status"
            );
            return answer(false, msg, Vec::new());
        }
        let mut writes = Vec::new();
        for source in &known {
            match stage {
                Some(stage) => writes
                    .push(Write::Put(stage_key(source, &task), stage_value(stage, source, &task))),
                None => {
                    writes.push(Write::Delete(subtask_key(source, &task)));
                    writes.push(Write::Delete(stage_key(source, &task)));
                }
            }
        }
        master.write_or_fail(writes).await?;
        let mut sources = Vec::new();
        for source in &known {
            let outcome = master
                .wait_subtask(source, &task, |seen| match stage {
                    Some(stage) => seen.is_some_and(|seen| seen.known_stage() == stage),
                    None => seen.is_none(),
                })
                .await;
            sources.push(common(source, outcome));
        }
        answer(true, String::new(), sources)
    }
}

impl MasterRpc for ShowDdlLocksRequest {
    async fn run(self, _: Arc<Master>) -> Result<ShowDdlLocksResponse, Status> {
        Ok(ShowDdlLocksResponse {
            result: true,
            msg: "no DDL lock exists".to_owned(),
            locks: Vec::new(),
        })
    }
}

/// Of the real configurations only the two names are there.
impl MasterRpc for GetSubTaskCfgRequest {
    async fn run(self, master: Arc<Master>) -> Result<GetSubTaskCfgResponse, Status> {
        let snapshot = master.snapshot().await?;
        let cfgs: Vec<String> = snapshot
            .subtasks
            .values()
            .filter(|subtask| subtask.task == self.name)
            .map(|it| format!("name = {:?}\nsource-id = {:?}\n", it.task, it.source))
            .collect();
        let msg = if cfgs.is_empty() { "task not found" } else { "" };
        Ok(GetSubTaskCfgResponse { result: !cfgs.is_empty(), msg: msg.to_owned(), cfgs })
    }
}

impl MasterRpc for QueryStatusListRequest {
    async fn run(self, master: Arc<Master>) -> Result<QueryStatusListResponse, Status> {
        let snapshot = master.snapshot().await?;
        let named = |source: &String| self.sources.is_empty() || self.sources.contains(source);
        let wanted: Vec<String> = if self.name.is_empty() {
            let with_work = |source: &&String| {
                snapshot.worker_of(source).is_some()
                    || snapshot.subtasks_of(source).next().is_some()
            };
            snapshot
                .sources
                .keys()
                .filter(|source| named(source))
                .filter(with_work)
                .cloned()
                .collect()
        } else {
            let of_task = snapshot.subtasks.keys().filter(|(_, task)| *task == self.name);
            of_task.map(|(source, _)| source).filter(|source| named(source)).cloned().collect()
        };
        if wanted.is_empty() && !self.name.is_empty() {
            let msg = format!("task {} has no source or not exist", self.name);
            return Ok(QueryStatusListResponse { result: false, msg, sources: Vec::new() });
        }
        let mut asked = Vec::new();
        for source in wanted {
            let worker = snapshot.worker_of(&source).map(str::to_owned);
            let address = worker.as_ref().and_then(|worker| snapshot.workers.get(worker)).cloned();
            let name = self.name.clone();
            let tasks: Vec<String> =
                snapshot.subtasks_of(&source).map(|subtask| subtask.task.clone()).collect();
            asked.push(tokio::spawn(async move {
                match (worker, address) {
                    (Some(worker), Some(address)) => match query_worker(&address, &name).await {
                        Ok(status) => status,
                        Err(status) => {
                            failed_status(source, worker, status.message().to_owned(), &[])
                        }
                    },
                    _ if name.is_empty() => {
                        failed_status(source, "source not bound".to_owned(), String::new(), &tasks)
                    }
                    _ => {
                        let msg = dm_error(
                            38018,
                            "dm-master",
                            "high",
                            &format!("source {source} relevant worker-client not found"),
                        );
                        failed_status(source, String::new(), msg, &[])
                    }
                }
            }));
        }
        let mut sources = Vec::new();
        for answer in asked {
            sources.push(answer.await.map_err(|error| Status::unknown(error.to_string()))?);
        }
        Ok(QueryStatusListResponse { result: true, msg: String::new(), sources })
    }
}

fn failed_status(
    source: String,
    worker: String,
    msg: String,
    tasks: &[String],
) -> QueryStatusResponse {
    QueryStatusResponse {
        result: false,
        msg,
        source_status: Some(SourceStatus { source, worker, result: None, relay_status: None }),
        subtask_status: tasks
            .iter()
            .map(|task| SubTaskStatus { name: task.clone(), ..SubTaskStatus::default() })
            .collect(),
    }
}
