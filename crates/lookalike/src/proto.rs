//! The messages of DM's gRPC services that are spoken here, and their JSON form.
//!
//! Field numbers: tiflow dm/proto/dmmaster.proto and dmworker.proto. The JSON is that of DM's gateway: field names
//! as in the proto, 64-bit integers as strings, enums by name, empty fields written. Fields that v5.3 did not have
//! are taken out by [`QueryStatusListResponse::to_json`].

use std::fmt::Display;

use prost::{Enumeration, Message, Oneof};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

fn as_text<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn as_optional_text<T: Display, S: Serializer>(
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

macro_rules! enum_names {
    ($($writer:ident: $kind:ty),*) => { $(
        fn $writer<S: Serializer>(value: &i32, serializer: S) -> Result<S::Ok, S::Error> {
            match <$kind>::try_from(*value) {
                Ok(known) => serializer.collect_str(&format_args!("{known:?}")),
                Err(_) => serializer.serialize_i32(*value),
            }
        }
    )* };
}
enum_names!(stage_name: Stage, unit_name: UnitType, task_op_name: TaskOp);

/// An operation by number or by name, as the gateway takes it.
fn any_op<'de, D: Deserializer<'de>>(
    deserializer: D,
    names: &[(&str, i32)],
) -> Result<i32, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Op {
        Number(i32),
        Name(String),
    }
    match Op::deserialize(deserializer)? {
        Op::Number(number) => Ok(number),
        Op::Name(name) => match names.iter().find(|(known, _)| *known == name) {
            Some((_, number)) => Ok(*number),
            None => Err(serde::de::Error::custom(format!("unknown value {name:?} for enum"))),
        },
    }
}

fn task_op<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
    any_op(
        deserializer,
        &[("Stop", 1), ("Pause", 2), ("Resume", 3), ("Start", 4), ("Update", 5), ("Delete", 7)],
    )
}

fn source_op<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
    any_op(
        deserializer,
        &[("StartSource", 1), ("UpdateSource", 2), ("StopSource", 3), ("ShowSource", 4)],
    )
}

#[derive(Clone, Copy, Debug, Enumeration, Eq, PartialEq)]
#[repr(i32)]
#[allow(clippy::enum_variant_names, reason = "DM's names; they are on the wire")]
pub(crate) enum Stage {
    InvalidStage = 0,
    New = 1,
    Running = 2,
    Paused = 3,
    Stopped = 4,
    Finished = 5,
    Pausing = 6,
    Resuming = 7,
    Stopping = 8,
}

#[derive(Clone, Copy, Debug, Enumeration, Eq, PartialEq)]
#[repr(i32)]
pub(crate) enum UnitType {
    InvalidUnit = 0,
    Check = 1,
    Dump = 2,
    Load = 3,
    Sync = 4,
    Relay = 100,
}

#[derive(Clone, Copy, Debug, Enumeration, Eq, PartialEq)]
#[repr(i32)]
pub(crate) enum TaskOp {
    InvalidOp = 0,
    Stop = 1,
    Pause = 2,
    Resume = 3,
    Start = 4,
    Update = 5,
    AutoResume = 6,
    Delete = 7,
}

#[derive(Clone, Message)]
pub(crate) struct ListMemberRequest {
    #[prost(bool, tag = "1")]
    pub(crate) leader: bool,
    #[prost(bool, tag = "2")]
    pub(crate) master: bool,
    #[prost(bool, tag = "3")]
    pub(crate) worker: bool,
    #[prost(string, repeated, tag = "4")]
    pub(crate) names: Vec<String>,
}

#[derive(Clone, Message, Serialize)]
pub(crate) struct ListMemberResponse {
    #[prost(bool, tag = "1")]
    pub(crate) result: bool,
    #[prost(string, tag = "2")]
    pub(crate) msg: String,
    #[prost(message, repeated, tag = "3")]
    pub(crate) members: Vec<Members>,
}

#[derive(Clone, Message, Serialize)]
#[serde(transparent)]
pub(crate) struct Members {
    #[prost(oneof = "Member", tags = "1, 2, 3")]
    pub(crate) member: Option<Member>,
}

#[derive(Clone, Oneof, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Member {
    #[prost(message, tag = "1")]
    Leader(ListLeaderMember),
    #[prost(message, tag = "2")]
    Master(ListMasterMember),
    #[prost(message, tag = "3")]
    Worker(ListWorkerMember),
}

#[derive(Clone, Message, Serialize)]
pub(crate) struct ListLeaderMember {
    #[prost(string, tag = "1")]
    pub(crate) msg: String,
    #[prost(string, tag = "2")]
    pub(crate) name: String,
    #[prost(string, tag = "3")]
    pub(crate) addr: String,
}

#[derive(Clone, Message, Serialize)]
pub(crate) struct ListMasterMember {
    #[prost(string, tag = "1")]
    pub(crate) msg: String,
    #[prost(message, repeated, tag = "2")]
    pub(crate) masters: Vec<MasterInfo>,
}

#[derive(Clone, Message, Serialize)]
pub(crate) struct MasterInfo {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(uint64, tag = "2")]
    #[serde(rename = "memberID", serialize_with = "as_text")]
    pub(crate) member_id: u64,
    #[prost(bool, tag = "3")]
    pub(crate) alive: bool,
    #[prost(string, repeated, tag = "4")]
    #[serde(rename = "peerURLs")]
    pub(crate) peer_urls: Vec<String>,
    #[prost(string, repeated, tag = "5")]
    #[serde(rename = "clientURLs")]
    pub(crate) client_urls: Vec<String>,
}

#[derive(Clone, Message, Serialize)]
pub(crate) struct ListWorkerMember {
    #[prost(string, tag = "1")]
    pub(crate) msg: String,
    #[prost(message, repeated, tag = "2")]
    pub(crate) workers: Vec<WorkerInfo>,
}

#[derive(Clone, Message, Serialize)]
pub(crate) struct WorkerInfo {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) addr: String,
    #[prost(string, tag = "3")]
    pub(crate) stage: String,
    #[prost(string, tag = "4")]
    pub(crate) source: String,
}

/// `{result, msg}`, the answer of most operations.
#[derive(Clone, Message, Serialize)]
pub(crate) struct Outcome {
    #[prost(bool, tag = "1")]
    pub(crate) result: bool,
    #[prost(string, tag = "2")]
    pub(crate) msg: String,
}

impl Outcome {
    pub(crate) fn done() -> Self {
        Self { result: true, msg: String::new() }
    }

    pub(crate) fn refused(msg: impl Into<String>) -> Self {
        Self { result: false, msg: msg.into() }
    }
}

#[derive(Clone, Message)]
pub(crate) struct RegisterWorkerRequest {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) address: String,
}

#[derive(Clone, Message)]
pub(crate) struct OfflineMemberRequest {
    #[prost(string, tag = "1")]
    pub(crate) r#type: String,
    #[prost(string, tag = "2")]
    pub(crate) name: String,
}

#[derive(Clone, Message)]
pub(crate) struct OperateLeaderRequest {
    /// 1 evict, 2 cancel.
    #[prost(int32, tag = "1")]
    pub(crate) op: i32,
}

#[derive(Clone, Message)]
pub(crate) struct TransferSourceRequest {
    #[prost(string, tag = "1")]
    pub(crate) source: String,
    #[prost(string, tag = "2")]
    pub(crate) worker: String,
}

#[derive(Clone, Deserialize, Message)]
#[serde(default)]
pub(crate) struct StartTaskRequest {
    #[prost(string, tag = "1")]
    pub(crate) task: String,
    #[prost(string, repeated, tag = "2")]
    pub(crate) sources: Vec<String>,
}

#[derive(Clone, Message, Serialize)]
pub(crate) struct StartTaskResponse {
    #[prost(bool, tag = "1")]
    pub(crate) result: bool,
    #[prost(string, tag = "2")]
    pub(crate) msg: String,
    #[prost(message, repeated, tag = "3")]
    pub(crate) sources: Vec<CommonWorkerResponse>,
    #[prost(string, tag = "4")]
    #[serde(rename = "checkResult")]
    pub(crate) check_result: String,
}

#[derive(Clone, Deserialize, Message)]
#[serde(default)]
pub(crate) struct OperateTaskRequest {
    #[prost(int32, tag = "1")]
    #[serde(deserialize_with = "task_op")]
    pub(crate) op: i32,
    #[prost(string, tag = "2")]
    pub(crate) name: String,
    #[prost(string, repeated, tag = "3")]
    pub(crate) sources: Vec<String>,
}

#[derive(Clone, Message, Serialize)]
pub(crate) struct OperateTaskResponse {
    #[prost(int32, tag = "1")]
    #[serde(serialize_with = "task_op_name")]
    pub(crate) op: i32,
    #[prost(bool, tag = "2")]
    pub(crate) result: bool,
    #[prost(string, tag = "3")]
    pub(crate) msg: String,
    #[prost(message, repeated, tag = "4")]
    pub(crate) sources: Vec<CommonWorkerResponse>,
}

#[derive(Clone, Message, Serialize)]
pub(crate) struct CommonWorkerResponse {
    #[prost(bool, tag = "1")]
    pub(crate) result: bool,
    #[prost(string, tag = "2")]
    pub(crate) msg: String,
    #[prost(string, tag = "3")]
    pub(crate) source: String,
    #[prost(string, tag = "4")]
    pub(crate) worker: String,
}

#[derive(Clone, Deserialize, Message)]
#[serde(default)]
pub(crate) struct OperateSourceRequest {
    #[prost(int32, tag = "1")]
    #[serde(deserialize_with = "source_op")]
    pub(crate) op: i32,
    #[prost(string, repeated, tag = "2")]
    pub(crate) config: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    #[serde(rename = "sourceID")]
    pub(crate) source_id: Vec<String>,
    #[prost(string, tag = "4")]
    #[serde(rename = "workerName")]
    pub(crate) worker_name: String,
}

#[derive(Clone, Message, Serialize)]
pub(crate) struct OperateSourceResponse {
    #[prost(bool, tag = "1")]
    pub(crate) result: bool,
    #[prost(string, tag = "2")]
    pub(crate) msg: String,
    #[prost(message, repeated, tag = "3")]
    pub(crate) sources: Vec<CommonWorkerResponse>,
}

#[derive(Clone, Message)]
pub(crate) struct ShowDdlLocksRequest {
    #[prost(string, tag = "1")]
    pub(crate) task: String,
    #[prost(string, repeated, tag = "2")]
    pub(crate) sources: Vec<String>,
}

/// Without locks: there never is one here.
#[derive(Clone, Message, Serialize)]
pub(crate) struct ShowDdlLocksResponse {
    #[prost(bool, tag = "1")]
    pub(crate) result: bool,
    #[prost(string, tag = "2")]
    pub(crate) msg: String,
    #[prost(message, repeated, tag = "3")]
    pub(crate) locks: Vec<Outcome>,
}

#[derive(Clone, Message)]
pub(crate) struct GetSubTaskCfgRequest {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
}

#[derive(Clone, Message, Serialize)]
pub(crate) struct GetSubTaskCfgResponse {
    #[prost(bool, tag = "1")]
    pub(crate) result: bool,
    #[prost(string, tag = "2")]
    pub(crate) msg: String,
    #[prost(string, repeated, tag = "3")]
    pub(crate) cfgs: Vec<String>,
}

#[derive(Clone, Message)]
pub(crate) struct QueryStatusListRequest {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, repeated, tag = "2")]
    pub(crate) sources: Vec<String>,
}

#[derive(Clone, Message, Serialize)]
pub(crate) struct QueryStatusListResponse {
    #[prost(bool, tag = "1")]
    pub(crate) result: bool,
    #[prost(string, tag = "2")]
    pub(crate) msg: String,
    #[prost(message, repeated, tag = "3")]
    pub(crate) sources: Vec<QueryStatusResponse>,
}

impl QueryStatusListResponse {
    /// The gateway's JSON; `old` leaves out what v5.3 did not know.
    pub(crate) fn to_json(&self, old: bool) -> serde_json::Value {
        let mut value = serde_json::to_value(self).expect("plain data");
        if old {
            strip_new_fields(&mut value);
        }
        value
    }
}

fn strip_new_fields(value: &mut serde_json::Value) {
    for source in value["sources"].as_array_mut().into_iter().flatten() {
        for subtask in source["subTaskStatus"].as_array_mut().into_iter().flatten() {
            if let Some(fields) = subtask.as_object_mut() {
                fields.remove("validation");
                if let Some(sync) =
                    fields.get_mut("sync").and_then(serde_json::Value::as_object_mut)
                {
                    for new in
                        ["blockDDLOwner", "conflictMsg", "totalRows", "totalRps", "recentRps"]
                    {
                        sync.remove(new);
                    }
                }
            }
        }
    }
}

#[derive(Clone, Message)]
pub(crate) struct QueryStatusRequest {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
}

#[derive(Clone, Message, Serialize)]
pub(crate) struct QueryStatusResponse {
    #[prost(bool, tag = "1")]
    pub(crate) result: bool,
    #[prost(string, tag = "2")]
    pub(crate) msg: String,
    #[prost(message, optional, tag = "3")]
    #[serde(rename = "sourceStatus")]
    pub(crate) source_status: Option<SourceStatus>,
    #[prost(message, repeated, tag = "4")]
    #[serde(rename = "subTaskStatus")]
    pub(crate) subtask_status: Vec<SubTaskStatus>,
}

#[derive(Clone, Message, Serialize)]
pub(crate) struct SourceStatus {
    #[prost(string, tag = "1")]
    pub(crate) source: String,
    #[prost(string, tag = "2")]
    pub(crate) worker: String,
    #[prost(message, optional, tag = "3")]
    pub(crate) result: Option<ProcessResult>,
    /// Always none: there is no relay here.
    #[prost(message, optional, tag = "4")]
    #[serde(rename = "relayStatus")]
    pub(crate) relay_status: Option<Outcome>,
}

#[derive(Clone, Message, Serialize)]
pub(crate) struct SubTaskStatus {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(int32, tag = "2")]
    #[serde(serialize_with = "stage_name")]
    pub(crate) stage: i32,
    #[prost(int32, tag = "3")]
    #[serde(serialize_with = "unit_name")]
    pub(crate) unit: i32,
    #[prost(message, optional, tag = "4")]
    pub(crate) result: Option<ProcessResult>,
    #[prost(string, tag = "5")]
    #[serde(rename = "unresolvedDDLLockID")]
    pub(crate) unresolved_ddl_lock_id: String,
    #[prost(oneof = "UnitStatus", tags = "8, 9, 10")]
    #[serde(flatten)]
    pub(crate) status: Option<UnitStatus>,
    /// Always none: there is no validator here.
    #[prost(message, optional, tag = "11")]
    pub(crate) validation: Option<Outcome>,
}

impl SubTaskStatus {
    /// The stage that the number stands for.
    pub(crate) fn known_stage(&self) -> Stage {
        Stage::try_from(self.stage).unwrap_or(Stage::InvalidStage)
    }
}

#[derive(Clone, Oneof, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum UnitStatus {
    #[prost(message, tag = "8")]
    Dump(DumpStatus),
    #[prost(message, tag = "9")]
    Load(LoadStatus),
    #[prost(message, boxed, tag = "10")]
    Sync(Box<SyncStatus>),
}

#[derive(Clone, Message, Serialize)]
pub(crate) struct DumpStatus {
    #[prost(int64, tag = "1")]
    #[serde(rename = "totalTables", serialize_with = "as_text")]
    pub(crate) total_tables: i64,
    #[prost(double, tag = "2")]
    #[serde(rename = "completedTables")]
    pub(crate) completed_tables: f64,
    #[prost(double, tag = "3")]
    #[serde(rename = "finishedBytes")]
    pub(crate) finished_bytes: f64,
    #[prost(double, tag = "4")]
    #[serde(rename = "finishedRows")]
    pub(crate) finished_rows: f64,
    #[prost(double, tag = "5")]
    #[serde(rename = "estimateTotalRows")]
    pub(crate) estimate_total_rows: f64,
}

#[derive(Clone, Message, Serialize)]
pub(crate) struct LoadStatus {
    #[prost(int64, tag = "1")]
    #[serde(rename = "finishedBytes", serialize_with = "as_text")]
    pub(crate) finished_bytes: i64,
    #[prost(int64, tag = "2")]
    #[serde(rename = "totalBytes", serialize_with = "as_text")]
    pub(crate) total_bytes: i64,
    #[prost(string, tag = "3")]
    pub(crate) progress: String,
    #[prost(string, tag = "4")]
    #[serde(rename = "metaBinlog")]
    pub(crate) meta_binlog: String,
    #[prost(string, tag = "5")]
    #[serde(rename = "metaBinlogGTID")]
    pub(crate) meta_binlog_gtid: String,
}

#[derive(Clone, Message, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SyncStatus {
    #[prost(int64, tag = "1")]
    #[serde(serialize_with = "as_text")]
    pub(crate) total_events: i64,
    #[prost(int64, tag = "2")]
    #[serde(serialize_with = "as_text")]
    pub(crate) total_tps: i64,
    #[prost(int64, tag = "3")]
    #[serde(serialize_with = "as_text")]
    pub(crate) recent_tps: i64,
    #[prost(string, tag = "4")]
    pub(crate) master_binlog: String,
    #[prost(string, tag = "5")]
    pub(crate) master_binlog_gtid: String,
    #[prost(string, tag = "6")]
    pub(crate) syncer_binlog: String,
    #[prost(string, tag = "7")]
    pub(crate) syncer_binlog_gtid: String,
    #[prost(string, repeated, tag = "8")]
    #[serde(rename = "blockingDDLs")]
    pub(crate) blocking_ddls: Vec<String>,
    #[prost(message, repeated, tag = "9")]
    pub(crate) unresolved_groups: Vec<Outcome>,
    #[prost(bool, tag = "10")]
    pub(crate) synced: bool,
    #[prost(string, tag = "11")]
    pub(crate) binlog_type: String,
    #[prost(int64, tag = "12")]
    #[serde(serialize_with = "as_text")]
    pub(crate) seconds_behind_master: i64,
    #[prost(string, tag = "13")]
    #[serde(rename = "blockDDLOwner")]
    pub(crate) block_ddl_owner: String,
    #[prost(string, tag = "14")]
    pub(crate) conflict_msg: String,
    #[prost(int64, optional, tag = "15")]
    #[serde(serialize_with = "as_optional_text")]
    pub(crate) total_rows: Option<i64>,
    #[prost(int64, optional, tag = "16")]
    #[serde(serialize_with = "as_optional_text")]
    pub(crate) total_rps: Option<i64>,
    #[prost(int64, optional, tag = "17")]
    #[serde(serialize_with = "as_optional_text")]
    pub(crate) recent_rps: Option<i64>,
}

#[derive(Clone, Message, Serialize)]
pub(crate) struct ProcessResult {
    #[prost(bool, tag = "1")]
    #[serde(rename = "isCanceled")]
    pub(crate) is_canceled: bool,
    #[prost(message, repeated, tag = "2")]
    pub(crate) errors: Vec<ProcessError>,
    /// Always none, and never sent.
    #[prost(message, optional, tag = "15")]
    pub(crate) detail: Option<Outcome>,
}

#[derive(Clone, Eq, Message, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ProcessError {
    #[prost(int32, tag = "1")]
    pub(crate) err_code: i32,
    #[prost(string, tag = "2")]
    pub(crate) err_class: String,
    #[prost(string, tag = "3")]
    pub(crate) err_scope: String,
    #[prost(string, tag = "4")]
    pub(crate) err_level: String,
    #[prost(string, tag = "5")]
    pub(crate) message: String,
    #[prost(string, tag = "6")]
    pub(crate) raw_cause: String,
    #[prost(string, tag = "7")]
    pub(crate) workaround: String,
}
