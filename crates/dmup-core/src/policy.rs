//! What a run may do and how long it may take: "may".
//!
//! All spans are whole seconds: they come from flags and are printed in plans.

use std::fmt;
use std::str::FromStr;

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
    /// How long to wait for a moment without a large transaction under way.
    pub quiet_within_s: u32,
    /// What to do when there was none. To go on is slower, not unsafe.
    #[serde(skip_serializing_if = "is_usual_on_busy")]
    pub on_busy: OnBusy,
    /// Subtasks may be so many seconds behind when the run begins; none: any number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_lag_s: Option<u32>,
    /// How long DM may take to move a source, to pause, to elect.
    pub settle_within_s: u32,
    /// What to do when a node is not healthy on the new build.
    pub on_failure: OnFailure,
    /// Sizes of the first batches of nodes; the last batch is what remains. Workers of a batch are watched together (see
    /// [`crate::plan::Turn::overlaps`]); after the last node of a batch the cluster is watched for `batch_soak_s` instead of
    /// `soak_s`. Empty: one node after the other, each watched for `soak_s`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub batches: Vec<BatchSize>,
    /// How long the last node of a batch is watched before the next batch begins.
    #[serde(skip_serializing_if = "is_usual_batch_soak")]
    pub batch_soak_s: u32,
    /// After so many nodes the run ends, to be resumed by the operator. None: it goes through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_after: Option<u32>,
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
            on_busy: OnBusy::GoOn,
            max_lag_s: None,
            settle_within_s: 60,
            on_failure: OnFailure::RollbackNode,
            batches: Vec::new(),
            batch_soak_s: USUAL_BATCH_SOAK_S,
            pause_after: None,
        }
    }
}

/// [`Policy::batch_soak_s`] unless it is given.
const USUAL_BATCH_SOAK_S: u32 = 30;

// What is as usual is not written: plans of earlier versions keep their fingerprints, and their runs can be resumed.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_usual_batch_soak(seconds: &u32) -> bool {
    *seconds == USUAL_BATCH_SOAK_S
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_usual_on_busy(on_busy: &OnBusy) -> bool {
    *on_busy == OnBusy::GoOn
}

/// What to do when a worker's tasks do not catch up.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnBusy {
    /// Stop it all the same: what it is in the middle of is applied again from its start.
    GoOn,
    /// Leave it as it is, end the run there.
    Stop,
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

/// How many nodes a batch has.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchSize {
    /// So many; at least 1.
    Nodes(u32),
    /// So many hundredths of all that are to be changed, rounded up; 1 to 100.
    Percent(u32),
}

impl BatchSize {
    /// In nodes, when so many are to be changed; never 0.
    pub fn of(self, total: usize) -> usize {
        match self {
            Self::Nodes(nodes) => usize::try_from(nodes).unwrap_or(usize::MAX).max(1),
            Self::Percent(percent) => {
                let percent = usize::try_from(percent).unwrap_or(usize::MAX);
                total.saturating_mul(percent).div_ceil(100).max(1)
            }
        }
    }
}

impl fmt::Display for BatchSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nodes(nodes) => write!(f, "{nodes}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// Not a size of a batch.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{0}` is not a batch: a number of nodes (`2`), or a part of them (`10%`, 1 to 100)")]
pub struct BadBatch(String);

impl FromStr for BatchSize {
    type Err = BadBatch;

    fn from_str(text: &str) -> Result<Self, BadBatch> {
        let bad = || BadBatch(text.to_owned());
        let number = |digits: &str| digits.parse::<u32>().ok().filter(|number| *number > 0);
        match text.strip_suffix('%') {
            Some(digits) => {
                number(digits).filter(|it| *it <= 100).map(Self::Percent).ok_or_else(bad)
            }
            None => number(text).map(Self::Nodes).ok_or_else(bad),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_a_number_of_nodes_or_a_part_of_them() {
        let size = |text: &str| text.parse::<BatchSize>();
        assert_eq!(size("1"), Ok(BatchSize::Nodes(1)));
        assert_eq!(size("10%"), Ok(BatchSize::Percent(10)));
        assert_eq!(size("10%").map(|it| it.to_string()), Ok("10%".to_owned()));
        for bad in ["", "0", "0%", "101%", "-1", "%", "1.5", "ten", "99999999999", "1 %"] {
            assert_eq!(size(bad), Err(BadBatch(bad.to_owned())), "{bad}");
        }
    }

    #[test]
    fn a_part_is_rounded_up_and_never_nothing() {
        assert_eq!(BatchSize::Percent(10).of(6), 1);
        assert_eq!(BatchSize::Percent(50).of(5), 3);
        assert_eq!(BatchSize::Percent(100).of(7), 7);
        assert_eq!(BatchSize::Percent(1).of(0), 1);
        assert_eq!(BatchSize::Nodes(3).of(1), 3);
    }

    #[test]
    fn a_policy_of_an_older_plan_has_one_batch_and_no_pause() {
        let policy: Policy = serde_json::from_str(r#"{"soak_s": 9}"#).unwrap();
        assert_eq!(policy, Policy { soak_s: 9, ..Policy::default() });
    }
}
