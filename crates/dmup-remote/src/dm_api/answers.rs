//! The shapes of DM's JSON (grpc-gateway, v1alpha1).
//!
//! 64-bit numbers come as strings, enums as names, absent messages as `null`,
//! and older versions lack newer fields: everything is optional here, and
//! unknown fields are passed over.

use serde::{Deserialize, Deserializer};

/// `null` counts as absent.
fn or_default<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// A number, or the same in quotes; none if it is neither.
fn loose_number<'de, D: Deserializer<'de>>(from: D) -> Result<Option<i64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Loose {
        Number(i64),
        Text(String),
        Other(serde::de::IgnoredAny),
    }
    Ok(match Option::<Loose>::deserialize(from)? {
        Some(Loose::Number(number)) => Some(number),
        Some(Loose::Text(text)) => text.trim().parse().ok(),
        Some(Loose::Other(_)) | None => None,
    })
}

/// What every answer has.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub(super) struct Outcome {
    #[serde(deserialize_with = "or_default")]
    pub(super) result: bool,
    #[serde(deserialize_with = "or_default")]
    pub(super) msg: String,
}

/// `GET members`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub(super) struct Members {
    #[serde(deserialize_with = "or_default")]
    pub(super) result: bool,
    #[serde(deserialize_with = "or_default")]
    pub(super) msg: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) members: Vec<MemberKind>,
}

impl Members {
    pub(super) fn leader(&self) -> Option<&LeaderMember> {
        self.members.iter().find_map(|kind| kind.leader.as_ref())
    }

    pub(super) fn masters(&self) -> Option<&MasterMembers> {
        self.members.iter().find_map(|kind| kind.master.as_ref())
    }

    pub(super) fn workers(&self) -> Option<&WorkerMembers> {
        self.members.iter().find_map(|kind| kind.worker.as_ref())
    }
}

/// A protobuf oneof: one of the three is there.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub(super) struct MemberKind {
    pub(super) leader: Option<LeaderMember>,
    pub(super) master: Option<MasterMembers>,
    pub(super) worker: Option<WorkerMembers>,
}

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub(super) struct LeaderMember {
    /// Error 11108 while there is none.
    #[serde(deserialize_with = "or_default")]
    pub(super) msg: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) name: String,
}

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub(super) struct MasterMembers {
    #[serde(deserialize_with = "or_default")]
    pub(super) msg: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) masters: Vec<MasterMember>,
}

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub(super) struct MasterMember {
    #[serde(deserialize_with = "or_default")]
    pub(super) name: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) alive: bool,
    #[serde(rename = "clientURLs", deserialize_with = "or_default")]
    pub(super) client_urls: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub(super) struct WorkerMembers {
    /// `…the scheduler has not started` while a new leader comes up.
    #[serde(deserialize_with = "or_default")]
    pub(super) msg: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) workers: Vec<WorkerMember>,
}

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub(super) struct WorkerMember {
    #[serde(deserialize_with = "or_default")]
    pub(super) name: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) addr: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) stage: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) source: String,
}

/// `PUT sources` with op 4 (show), `PUT tasks/{name}`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub(super) struct PerSource {
    #[serde(deserialize_with = "or_default")]
    pub(super) result: bool,
    #[serde(deserialize_with = "or_default")]
    pub(super) msg: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) sources: Vec<SourceAnswer>,
}

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub(super) struct SourceAnswer {
    #[serde(deserialize_with = "or_default")]
    pub(super) result: bool,
    #[serde(deserialize_with = "or_default")]
    pub(super) msg: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) source: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) worker: String,
}

/// `GET status/{task}`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub(super) struct Status {
    #[serde(deserialize_with = "or_default")]
    pub(super) result: bool,
    #[serde(deserialize_with = "or_default")]
    pub(super) msg: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) sources: Vec<SourceReport>,
}

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub(super) struct SourceReport {
    #[serde(deserialize_with = "or_default")]
    pub(super) result: bool,
    #[serde(deserialize_with = "or_default")]
    pub(super) msg: String,
    #[serde(rename = "sourceStatus", deserialize_with = "or_default")]
    pub(super) source_status: SourceStatus,
    #[serde(rename = "subTaskStatus", deserialize_with = "or_default")]
    pub(super) subtasks: Vec<SubtaskStatus>,
}

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub(super) struct SourceStatus {
    #[serde(deserialize_with = "or_default")]
    pub(super) source: String,
    /// `source not bound` where it has none.
    #[serde(deserialize_with = "or_default")]
    pub(super) worker: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) result: ProcessResult,
    /// `null` without a relay log.
    #[serde(rename = "relayStatus")]
    pub(super) relay: Option<SideStatus>,
}

/// `relayStatus`, `validation`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub(super) struct SideStatus {
    #[serde(deserialize_with = "or_default")]
    pub(super) stage: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) result: ProcessResult,
}

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub(super) struct ProcessResult {
    #[serde(deserialize_with = "or_default")]
    pub(super) errors: Vec<ProcessError>,
}

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub(super) struct ProcessError {
    #[serde(rename = "ErrCode", deserialize_with = "loose_number")]
    pub(super) code: Option<i64>,
    #[serde(rename = "ErrClass", deserialize_with = "or_default")]
    pub(super) class: String,
    #[serde(rename = "ErrScope", deserialize_with = "or_default")]
    pub(super) scope: String,
    #[serde(rename = "ErrLevel", deserialize_with = "or_default")]
    pub(super) level: String,
    #[serde(rename = "Message", deserialize_with = "or_default")]
    pub(super) message: String,
    #[serde(rename = "RawCause", deserialize_with = "or_default")]
    pub(super) raw_cause: String,
    #[serde(rename = "Workaround", deserialize_with = "or_default")]
    pub(super) workaround: String,
}

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub(super) struct SubtaskStatus {
    #[serde(deserialize_with = "or_default")]
    pub(super) name: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) stage: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) unit: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) result: ProcessResult,
    #[serde(rename = "unresolvedDDLLockID", deserialize_with = "or_default")]
    pub(super) unresolved_lock: String,
    pub(super) sync: Option<SyncStatus>,
    /// Since v6.2; `null` without a validator.
    pub(super) validation: Option<SideStatus>,
}

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub(super) struct SyncStatus {
    #[serde(rename = "masterBinlog", deserialize_with = "or_default")]
    pub(super) master_binlog: String,
    #[serde(rename = "syncerBinlog", deserialize_with = "or_default")]
    pub(super) syncer_binlog: String,
    #[serde(rename = "blockingDDLs", deserialize_with = "or_default")]
    pub(super) blocking_ddls: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) synced: bool,
    /// Since v2.0.4.
    #[serde(rename = "secondsBehindMaster", deserialize_with = "loose_number")]
    pub(super) seconds_behind: Option<i64>,
}
