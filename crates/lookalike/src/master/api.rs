//! dm-master's port: paths to procedures, and who carries them out.
//!
//! A follower forwards everything but leader operations to the leader, after the 100 ms that DM waits (dm/master/server.go).

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::Status;

use crate::etcd::{client_url, unary};
use crate::http::{
    Request, Response, Rpc, answer_grpc, body, gateway, gateway_error, is_grpc, not_found,
    percent_decoded, plain, unimplemented_grpc, with_cors,
};
use crate::proto::{
    GetSubTaskCfgRequest, ListMemberRequest, OfflineMemberRequest, OperateLeaderRequest,
    OperateSourceRequest, OperateTaskRequest, QueryStatusListRequest, RegisterWorkerRequest,
    ShowDdlLocksRequest, StartTaskRequest, TransferSourceRequest,
};
use crate::tls;

use super::Master;
use super::operations::{MasterRpc, dm_error};

const FORWARD_AFTER: Duration = Duration::from_millis(100);
const FORWARD_WITHIN: Duration = Duration::from_secs(120);

/// Answers one request.
pub(super) async fn answer(master: Arc<Master>, request: Request) -> Response {
    if is_grpc(&request) {
        return grpc(master, request).await;
    }
    let path = request.uri().path().to_owned();
    let response = match path.strip_prefix("/apis/v1alpha1/") {
        Some(rest) => match rest_api(&master, rest, request).await {
            Ok(response) => response,
            Err(status) => gateway_error(&status),
        },
        None => match path.as_str() {
            "/status" => plain(200, "text/plain", master.stamp.status_text()),
            "/metrics" => {
                plain(200, "text/plain; version=0.0.4; charset=utf-8", master.metrics().await)
            }
            "/health" => master.health().await,
            "/version" => master.etcd_answer("/version", "application/json").await,
            _ => not_found(),
        },
    };
    with_cors(response)
}

async fn grpc(master: Arc<Master>, request: Request) -> Response {
    async fn one<R: MasterRpc>(master: Arc<Master>, request: Request) -> Response {
        answer_grpc(request, move |message: R| master.invoke(message)).await
    }
    match request.uri().path() {
        ListMemberRequest::PATH => one::<ListMemberRequest>(master, request).await,
        OperateLeaderRequest::PATH => one::<OperateLeaderRequest>(master, request).await,
        RegisterWorkerRequest::PATH => one::<RegisterWorkerRequest>(master, request).await,
        OfflineMemberRequest::PATH => one::<OfflineMemberRequest>(master, request).await,
        TransferSourceRequest::PATH => one::<TransferSourceRequest>(master, request).await,
        StartTaskRequest::PATH => one::<StartTaskRequest>(master, request).await,
        OperateTaskRequest::PATH => one::<OperateTaskRequest>(master, request).await,
        OperateSourceRequest::PATH => one::<OperateSourceRequest>(master, request).await,
        ShowDdlLocksRequest::PATH => one::<ShowDdlLocksRequest>(master, request).await,
        GetSubTaskCfgRequest::PATH => one::<GetSubTaskCfgRequest>(master, request).await,
        QueryStatusListRequest::PATH => one::<QueryStatusListRequest>(master, request).await,
        _ => unimplemented_grpc(),
    }
}

/// The routes of dm/proto/dmmaster.proto.
async fn rest_api(master: &Arc<Master>, path: &str, request: Request) -> Result<Response, Status> {
    let segments: Vec<String> = path.split('/').map(percent_decoded).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let method = request.method().clone();
    match (&method, segments.as_slice()) {
        (&Method::GET, ["members"]) => show(master.clone().invoke(members_query(&query)?).await),
        (&Method::DELETE, ["members", kind, name]) => {
            let request =
                OfflineMemberRequest { r#type: (*kind).to_owned(), name: (*name).to_owned() };
            show(master.clone().invoke(request).await)
        }
        (&Method::PUT, ["leader", op]) => {
            let op = match *op {
                "1" | "EvictLeaderOp" => 1,
                "2" | "CancelEvictLeaderOp" => 2,
                other => {
                    let message =
                        format!("type mismatch, parameter: op, error: {other} is not valid");
                    return Err(Status::invalid_argument(message));
                }
            };
            show(master.clone().invoke(OperateLeaderRequest { op }).await)
        }
        (&Method::GET, ["status", name]) => {
            let sources = values_of(&query, "sources");
            let request = QueryStatusListRequest { name: (*name).to_owned(), sources };
            let answer = master.clone().invoke(request).await?;
            Ok(gateway(&answer.to_json(!master.stamp.at_least(6, 0, 0))))
        }
        (&Method::GET, ["subtasks", name]) => {
            let request = GetSubTaskCfgRequest { name: (*name).to_owned() };
            show(master.clone().invoke(request).await)
        }
        (&Method::POST, ["tasks"]) => {
            show(master.clone().invoke(json::<StartTaskRequest>(request).await?).await)
        }
        (&Method::PUT, ["tasks", name]) => {
            let operation = OperateTaskRequest { name: (*name).to_owned(), ..json(request).await? };
            show(master.clone().invoke(operation).await)
        }
        (&Method::PUT, ["sources"]) => {
            show(master.clone().invoke(json::<OperateSourceRequest>(request).await?).await)
        }
        _ => Err(Status::unimplemented("Not Implemented")),
    }
}

fn show<T: Serialize>(answer: Result<T, Status>) -> Result<Response, Status> {
    answer.map(|answer| gateway(&answer))
}

async fn json<T: DeserializeOwned>(request: Request) -> Result<T, Status> {
    let body = body(request).await?;
    serde_json::from_slice(&body).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn values_of(query: &str, wanted: &str) -> Vec<String> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .filter(|(key, _)| percent_decoded(key) == wanted)
        .map(|(_, value)| percent_decoded(value))
        .collect()
}

fn members_query(query: &str) -> Result<ListMemberRequest, Status> {
    let flag = |name: &str| match values_of(query, name).last().map(String::as_str) {
        None | Some("false" | "0" | "f" | "F" | "FALSE" | "False") => Ok(false),
        Some("true" | "1" | "t" | "T" | "TRUE" | "True") => Ok(true),
        Some(other) => Err(Status::invalid_argument(format!(
            "parsing field {name:?}: strconv.ParseBool: parsing {other:?}: invalid syntax"
        ))),
    };
    Ok(ListMemberRequest {
        leader: flag("leader")?,
        master: flag("master")?,
        worker: flag("worker")?,
        names: values_of(query, "names"),
    })
}

impl Master {
    /// Carries a request out here, or has the leader do it.
    async fn invoke<R: MasterRpc>(self: Arc<Self>, request: R) -> Result<R::Reply, Status> {
        if R::LOCAL {
            return request.run(self).await;
        }
        let mut view = self.view.borrow().clone();
        if view.own_key.is_some() && !view.started {
            let mut changes = self.view.subscribe();
            let started = changes.wait_for(|view| view.started || view.own_key.is_none());
            if let Ok(Ok(now)) = tokio::time::timeout(Duration::from_secs(1), started).await {
                view = now.clone();
            }
        }
        match view.leader {
            Some(_) if view.own_key.is_some() => request.run(self).await,
            Some(leader) => {
                tokio::time::sleep(FORWARD_AFTER).await;
                let endpoint = tls::endpoint(&leader.addr).map_err(|error| {
                    Status::unknown(format!("leader's address {:?}: {error}", leader.addr))
                })?;
                let channel = endpoint.connect_timeout(Duration::from_secs(3)).connect_lazy();
                // The code is lost on the way, as with DM's own forwarding.
                let answer = unary(channel, R::PATH, request, FORWARD_WITHIN).await;
                answer.map_err(|status| Status::unknown(status.message().to_owned()))
            }
            None => Err(Status::unknown(dm_error(
                38043,
                "dm-master",
                "high",
                "master is not leader, and can't forward request to leader",
            ))),
        }
    }

    /// etcd's own answer to a path.
    async fn ask_etcd(&self, path: &str) -> Option<(u16, String)> {
        let url = client_url(&self.advertise)?;
        let request = self.client.get(format!("{url}{path}")).timeout(Duration::from_secs(7));
        let answer = request.send().await.ok()?;
        let code = answer.status().as_u16();
        answer.text().await.ok().map(|text| (code, text))
    }

    async fn etcd_answer(&self, path: &str, kind: &'static str) -> Response {
        match self.ask_etcd(path).await {
            Some((code, text)) => {
                let mut response = plain(200, kind, text);
                *response.status_mut() = hyper::StatusCode::from_u16(code).unwrap_or_default();
                response
            }
            None => plain(503, "text/plain; charset=utf-8", "etcd does not answer\n"),
        }
    }

    /// `/health` of etcd 3.5, which names a reason; Debian's etcd is older.
    async fn health(&self) -> Response {
        let healthy = match self.ask_etcd("/health").await {
            Some((code, text)) => code == 200 && text.contains("\"health\":\"true\""),
            None => false,
        };
        let (code, reason) = if healthy { (200, "") } else { (503, "RAFT NO LEADER") };
        let body = format!("{{\"health\":\"{healthy}\",\"reason\":\"{reason}\"}}");
        plain(code, "text/plain; charset=utf-8", body)
    }

    async fn metrics(&self) -> String {
        let mut text = format!(
            "# TYPE dm_master_cpu_usage gauge\ndm_master_cpu_usage 0\n# TYPE dm_master_start_leader_counter counter\ndm_master_start_leader_counter {}\n",
            self.times_leader.load(Ordering::Relaxed)
        );
        let leads = self.view.borrow().own_key.is_some();
        if leads && let Ok(snapshot) = crate::keys::Snapshot::read(&self.etcd).await {
            text.push_str("# TYPE dm_master_worker_state gauge\n");
            for worker in snapshot.workers.keys() {
                let state = match snapshot.worker_stage(worker) {
                    "offline" => 0,
                    "free" => 1,
                    _ => 2,
                };
                writeln!(text, "dm_master_worker_state{{worker={worker:?}}} {state}")
                    .expect("writing to a string");
            }
        }
        text
    }
}
