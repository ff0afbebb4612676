//! What a run did, as measured: what `dmup` prints at the end and writes as JSON.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::ids::{ClusterName, HostId, InstanceId};
use crate::instance::Role;
use crate::journal::Away;

/// How a run ended.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "end", rename_all = "snake_case")]
pub enum RunEnd {
    /// Everything planned holds.
    Done,
    /// It failed before any node was exchanged, or the failed node was left (`--on-failure stop`).
    Failed {
        /// What failed.
        why: String,
    },
    /// A node was not healthy and was put back.
    RolledBackNode {
        /// Which.
        instance: InstanceId,
        /// What was wrong with it.
        why: String,
    },
    /// A node was not healthy; all nodes of the run were put back.
    RolledBackAll {
        /// Which was not healthy.
        instance: InstanceId,
        /// What was wrong with it.
        why: String,
    },
    /// All nodes of the run were put back, as the operator asked.
    TakenBack,
    /// Stopped between two nodes, as the operator asked.
    Interrupted,
    /// Ended between two nodes where the plan says so (`--pause-after`): it waits for the operator.
    Paused,
    /// It is not known how things are.
    Unknown {
        /// What was tried and what was seen.
        why: String,
    },
}

/// What became of an instance.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceEnd {
    /// Its turn did not come.
    Untouched,
    /// It has the new build.
    Changed,
    /// It had the new build and has the old one again.
    RolledBack,
    /// It was left in the middle, not healthy.
    Left,
    /// Nobody knows.
    Unknown,
}

/// One instance's part of a run. Spans in milliseconds, as the host measured them.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct InstanceReport {
    /// Its role.
    pub role: Role,
    /// The build before.
    pub from: Digest,
    /// The build planned.
    pub to: Digest,
    /// What became of it.
    pub end: InstanceEnd,
    /// How long its window took it out of service; all 0 if it did not, or if nobody knows.
    #[serde(flatten)]
    pub away: Away,
    /// From the end of the window until it was healthy.
    pub healthy_after_ms: u64,
    /// Logs and exit status, saved when it was not healthy.
    pub evidence: Vec<String>,
}

/// A whole run.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Report {
    /// Format; 1: first.
    pub format: u32,
    /// Of which cluster.
    pub cluster: ClusterName,
    /// When this process began with it.
    pub began: Timestamp,
    /// When it ended.
    pub ended: Timestamp,
    /// How it ended.
    pub end: RunEnd,
    /// In the order of the turns.
    pub instances: Vec<(InstanceId, InstanceReport)>,
    /// Bytes sent per host; 0: it had the package.
    pub sent_bytes: BTreeMap<HostId, u64>,
    /// Milliseconds of staging and preparing.
    pub preparation_ms: u64,
    /// Remarks made on the way.
    pub notes: Vec<String>,
}

impl RunEnd {
    /// Whether a run that ended so can be resumed or taken back as a whole.
    pub fn can_go_on(&self) -> bool {
        match self {
            Self::Interrupted | Self::Paused => true,
            Self::Done
            | Self::Failed { .. }
            | Self::RolledBackNode { .. }
            | Self::RolledBackAll { .. }
            | Self::TakenBack
            | Self::Unknown { .. } => false,
        }
    }
}

impl Report {
    /// Format that this dmup writes.
    pub const FORMAT: u32 = 1;

    /// The exit code (architecture 6): 0 done as asked, 1 failed with nothing exchanged, 5 rolled back and all as before,
    /// 6 mixed builds, 7 unknown, 130 interrupted.
    pub fn exit_code(&self) -> u8 {
        let any = |wanted: InstanceEnd| self.instances.iter().any(|(_, part)| part.end == wanted);
        match &self.end {
            RunEnd::Done | RunEnd::Paused => 0,
            RunEnd::Interrupted => 130,
            RunEnd::Unknown { .. } => 7,
            _ if any(InstanceEnd::Unknown) => 7,
            // Whoever is called changed then was restarted, and there is nothing to put back.
            RunEnd::TakenBack => {
                if any(InstanceEnd::Left) {
                    6
                } else {
                    0
                }
            }
            _ if any(InstanceEnd::Changed) || any(InstanceEnd::Left) => 6,
            RunEnd::RolledBackNode { .. } | RunEnd::RolledBackAll { .. } => 5,
            RunEnd::Failed { .. } => 1,
        }
    }
}
