//! What a run may do and how long it may take: "may".
//!
//! All spans are whole seconds: they come from flags and are printed in plans.

use serde::{Deserialize, Serialize};

/// Limits of a run. It is part of the plan, so that a resumed run keeps the limits that were agreed to.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Policy {
    /// How many hosts are staged at once.
    pub concurrency: usize,
    /// How long a node must stay healthy before the next one's turn.
    pub soak_s: u32,
    /// How long a node may take to become healthy without any visible progress.
    pub healthy_within_s: u32,
    /// How long a unit may take to stop. systemd's own default is 90 s; DM once needed it (measured).
    pub stop_within_s: u32,
    /// After how long without a word from the controller a host goes back by itself.
    pub guard_s: u32,
    /// How long to wait for a moment without a large transaction under way. After it the run goes on: it is slower, not unsafe.
    pub quiet_within_s: u32,
    /// How long DM may take to move a source, to pause, to elect.
    pub settle_within_s: u32,
    /// What to do when a node is not healthy on the new build.
    pub on_failure: OnFailure,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            concurrency: 5,
            soak_s: 5,
            healthy_within_s: 120,
            stop_within_s: 90,
            guard_s: 30,
            quiet_within_s: 30,
            settle_within_s: 60,
            on_failure: OnFailure::RollbackNode,
        }
    }
}

/// What to do when a node is not healthy on the new build.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// Put that node back, end the run there.
    RollbackNode,
    /// Put all nodes of this run back.
    RollbackAll,
    /// Leave that node as it is, end the run there.
    Stop,
}
