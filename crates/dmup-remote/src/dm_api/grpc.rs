//! The gRPC calls of `pb.Master` that have no REST route, or whose route cannot
//! name sources safely.
//!
//! Messages are written by hand with the numbers of tiflow dm/proto/dmmaster.proto
//! and dmworker.proto; fields that nobody here reads are left out (protobuf
//! skips them). No build script, no protoc.

use std::io;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status as GrpcStatus};
use tonic_prost::ProstCodec;

use super::answers::{
    ProcessError, ProcessResult, SideStatus, SourceReport, SourceStatus, Status, SubtaskStatus,
    SyncStatus,
};
use super::code::DmCode;
use super::http::{BODY_LIMIT_BYTES, Http, Unanswered, beginning, root_cause};

/// `OperateTaskRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct OperateTaskRequest {
    #[prost(int32, tag = "1")]
    pub(super) op: i32,
    #[prost(string, tag = "2")]
    pub(super) name: String,
    #[prost(string, repeated, tag = "3")]
    pub(super) sources: Vec<String>,
}

/// `TaskOp.Pause`.
pub(super) const PAUSE: i32 = 2;
/// `TaskOp.Resume`.
pub(super) const RESUME: i32 = 3;

/// `OperateTaskResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct OperateTaskResponse {
    #[prost(bool, tag = "2")]
    pub(super) result: bool,
    #[prost(string, tag = "3")]
    pub(super) msg: String,
}

/// `TransferSourceRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct TransferSourceRequest {
    #[prost(string, tag = "1")]
    pub(super) source: String,
    #[prost(string, tag = "2")]
    pub(super) worker: String,
}

/// `TransferSourceResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct TransferSourceResponse {
    #[prost(bool, tag = "1")]
    pub(super) result: bool,
    #[prost(string, tag = "2")]
    pub(super) msg: String,
}

/// `ShowDDLLocksRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ShowDdlLocksRequest {
    #[prost(string, tag = "1")]
    pub(super) task: String,
    #[prost(string, repeated, tag = "2")]
    pub(super) sources: Vec<String>,
}

/// `ShowDDLLocksResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ShowDdlLocksResponse {
    #[prost(bool, tag = "1")]
    pub(super) result: bool,
    #[prost(string, tag = "2")]
    pub(super) msg: String,
    #[prost(message, repeated, tag = "3")]
    pub(super) locks: Vec<DdlLock>,
}

/// `DDLLock`: `synced` and `unsynced` hold source names, or ``source-`db`.`table` ``.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DdlLock {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(string, tag = "2")]
    pub(super) task: String,
    #[prost(string, repeated, tag = "6")]
    pub(super) synced: Vec<String>,
    #[prost(string, repeated, tag = "7")]
    pub(super) unsynced: Vec<String>,
}

/// `QueryStatusListRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct QueryStatusRequest {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, repeated, tag = "2")]
    pub(super) sources: Vec<String>,
}

/// `QueryStatusListResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct QueryStatusResponse {
    #[prost(bool, tag = "1")]
    pub(super) result: bool,
    #[prost(string, tag = "2")]
    pub(super) msg: String,
    #[prost(message, repeated, tag = "3")]
    pub(super) sources: Vec<SourceReportMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SourceReportMessage {
    #[prost(bool, tag = "1")]
    pub(super) result: bool,
    #[prost(string, tag = "2")]
    pub(super) msg: String,
    #[prost(message, optional, tag = "3")]
    pub(super) source_status: Option<SourceStatusMessage>,
    #[prost(message, repeated, tag = "4")]
    pub(super) subtasks: Vec<SubtaskMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SourceStatusMessage {
    #[prost(string, tag = "1")]
    pub(super) source: String,
    #[prost(string, tag = "2")]
    pub(super) worker: String,
    #[prost(message, optional, tag = "3")]
    pub(super) result: Option<ProcessResultMessage>,
    #[prost(message, optional, tag = "4")]
    pub(super) relay: Option<RelayMessage>,
}

/// `RelayStatus`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RelayMessage {
    #[prost(int32, tag = "7")]
    pub(super) stage: i32,
    #[prost(message, optional, tag = "8")]
    pub(super) result: Option<ProcessResultMessage>,
}

/// `ValidationStatus`: its stage is a word.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ValidationMessage {
    #[prost(string, tag = "4")]
    pub(super) stage: String,
    #[prost(message, optional, tag = "7")]
    pub(super) result: Option<ProcessResultMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ProcessResultMessage {
    #[prost(message, repeated, tag = "2")]
    pub(super) errors: Vec<ProcessErrorMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ProcessErrorMessage {
    #[prost(int32, tag = "1")]
    pub(super) code: i32,
    #[prost(string, tag = "2")]
    pub(super) class: String,
    #[prost(string, tag = "3")]
    pub(super) scope: String,
    #[prost(string, tag = "4")]
    pub(super) level: String,
    #[prost(string, tag = "5")]
    pub(super) message: String,
    #[prost(string, tag = "6")]
    pub(super) raw_cause: String,
    #[prost(string, tag = "7")]
    pub(super) workaround: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SubtaskMessage {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(int32, tag = "2")]
    pub(super) stage: i32,
    #[prost(int32, tag = "3")]
    pub(super) unit: i32,
    #[prost(message, optional, tag = "4")]
    pub(super) result: Option<ProcessResultMessage>,
    #[prost(string, tag = "5")]
    pub(super) unresolved_lock: String,
    #[prost(message, optional, tag = "10")]
    pub(super) sync: Option<SyncMessage>,
    #[prost(message, optional, tag = "11")]
    pub(super) validation: Option<ValidationMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SyncMessage {
    #[prost(string, tag = "4")]
    pub(super) master_binlog: String,
    #[prost(string, tag = "6")]
    pub(super) syncer_binlog: String,
    #[prost(string, repeated, tag = "8")]
    pub(super) blocking_ddls: Vec<String>,
    #[prost(bool, tag = "10")]
    pub(super) synced: bool,
    #[prost(int64, tag = "12")]
    pub(super) seconds_behind: i64,
}

/// Calls one method of `pb.Master` on one master, over a connection of its own.
pub(super) async fn call<Q, A>(
    http: &Http,
    endpoint: Endpoint,
    method: &'static str,
    request: Q,
    within: Duration,
) -> Result<A, Unanswered>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let way = http.clone();
    let connector = tower::service_fn(move |url| {
        let way = way.clone();
        async move { way.dial(&url).await.map(TokioIo::new).map_err(io::Error::other) }
    });
    let connecting = endpoint.connect_with_connector(connector);
    let channel = match tokio::time::timeout(http.connect, connecting).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => return Err(Unanswered::Connect(root_cause(&error))),
        Err(_) => {
            return Err(Unanswered::Connect(format!(
                "none within {}s",
                http.connect.as_secs_f32()
            )));
        }
    };
    match tokio::time::timeout(within, unary(channel, method, request)).await {
        Ok(answer) => answer.map_err(|status| told(&status, within)),
        Err(_) => Err(Unanswered::TimedOut(within)),
    }
}

async fn unary<Q, A>(channel: Channel, method: &'static str, request: Q) -> Result<A, GrpcStatus>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    // The default of 4 MiB is too little for big clusters (tiflow dm/ctl/common/util.go).
    let mut grpc = Grpc::new(channel).max_decoding_message_size(BODY_LIMIT_BYTES);
    grpc.ready().await.map_err(|error| GrpcStatus::unavailable(root_cause(&error)))?;
    let codec = ProstCodec::<Q, A>::default();
    let answer =
        grpc.unary(Request::new(request), PathAndQuery::from_static(method), codec).await?;
    Ok(answer.into_inner())
}

/// What a gRPC status says about the request.
fn told(status: &GrpcStatus, within: Duration) -> Unanswered {
    let said = beginning(status.message());
    match status.code() {
        Code::Unimplemented => Unanswered::Status { status: 501, body: said },
        // Go's plain errors come as Unknown. One that DM has numbered was raised before the effect;
        // any other may be a forward to the leader whose end was not seen.
        Code::Unknown if DmCode::of(status.message()).is_some() => Unanswered::Refused(said),
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::FailedPrecondition
        | Code::OutOfRange => Unanswered::Refused(said),
        Code::DeadlineExceeded => Unanswered::TimedOut(within),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => Unanswered::Broke(format!("{:?}: {said}", status.code())),
    }
}

impl From<QueryStatusResponse> for Status {
    fn from(from: QueryStatusResponse) -> Self {
        Self {
            result: from.result,
            msg: from.msg,
            sources: from.sources.into_iter().map(SourceReport::from).collect(),
        }
    }
}

impl From<SourceReportMessage> for SourceReport {
    fn from(from: SourceReportMessage) -> Self {
        let status = from.source_status.unwrap_or_default();
        Self {
            result: from.result,
            msg: from.msg,
            source_status: SourceStatus {
                source: status.source,
                worker: status.worker,
                result: status.result.map(ProcessResult::from).unwrap_or_default(),
                relay: status.relay.map(|relay| SideStatus {
                    stage: stage_word(relay.stage).to_owned(),
                    result: relay.result.map(ProcessResult::from).unwrap_or_default(),
                }),
            },
            subtasks: from.subtasks.into_iter().map(SubtaskStatus::from).collect(),
        }
    }
}

impl From<SubtaskMessage> for SubtaskStatus {
    fn from(from: SubtaskMessage) -> Self {
        Self {
            name: from.name,
            stage: stage_word(from.stage).to_owned(),
            unit: unit_word(from.unit).to_owned(),
            result: from.result.map(ProcessResult::from).unwrap_or_default(),
            unresolved_lock: from.unresolved_lock,
            sync: from.sync.map(|sync| SyncStatus {
                master_binlog: sync.master_binlog,
                syncer_binlog: sync.syncer_binlog,
                blocking_ddls: sync.blocking_ddls,
                synced: sync.synced,
                seconds_behind: Some(sync.seconds_behind),
            }),
            validation: from.validation.map(|it| SideStatus {
                stage: it.stage,
                result: it.result.map(ProcessResult::from).unwrap_or_default(),
            }),
        }
    }
}

impl From<ProcessResultMessage> for ProcessResult {
    fn from(from: ProcessResultMessage) -> Self {
        Self {
            errors: from
                .errors
                .into_iter()
                .map(|error| ProcessError {
                    code: Some(i64::from(error.code)),
                    class: error.class,
                    scope: error.scope,
                    level: error.level,
                    message: error.message,
                    raw_cause: error.raw_cause,
                    workaround: error.workaround,
                })
                .collect(),
        }
    }
}

/// The names that REST has for `pb.Stage`.
fn stage_word(number: i32) -> &'static str {
    match number {
        1 => "New",
        2 => "Running",
        3 => "Paused",
        4 => "Stopped",
        5 => "Finished",
        6 => "Pausing",
        7 => "Resuming",
        8 => "Stopping",
        _ => "InvalidStage",
    }
}

/// The names that REST has for `pb.UnitType`.
fn unit_word(number: i32) -> &'static str {
    match number {
        1 => "Check",
        2 => "Dump",
        3 => "Load",
        4 => "Sync",
        _ => "InvalidUnit",
    }
}
