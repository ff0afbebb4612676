//! What is written down.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::ids::{ClusterName, InstanceId};
use crate::inventory::DmSeen;
use crate::plan::Step;
use crate::report::RunEnd;

/// One line of a journal.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Line {
    /// Format; see [`Line::FORMAT`].
    pub v: u32,
    /// Counts from 0.
    pub seq: u64,
    /// By the controller's clock.
    pub at: Timestamp,
    /// SHA-256 of the text of the line before, without its newline; of nothing for the first.
    pub prev: Digest,
    /// What happened.
    pub entry: Entry,
}

impl Line {
    /// Format that this dmup writes. 1: first. 2: [`Entry::TakingBack`] and [`RunEnd::TakenBack`].
    pub const FORMAT: u32 = 2;
}

/// A fact.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
pub enum Entry {
    /// First entry of every journal.
    RunBegins {
        /// Of which cluster.
        cluster: ClusterName,
        /// [`crate::plan::Plan::fingerprint`].
        plan: Digest,
    },
    /// Another process goes on with it.
    RunResumed,
    /// An instance's turn.
    TurnBegins {
        /// Whose.
        instance: InstanceId,
        /// The build before.
        from: Digest,
        /// The build after; with a rollback of the whole run, the earlier one.
        to: Digest,
        /// The steps, as decided from a fresh look.
        steps: Vec<Step>,
        /// DM at that moment.
        baseline: Option<DmSeen>,
        /// Its process at that moment.
        pid: Option<u32>,
    },
    /// Intent: on disk before the effect.
    Started {
        /// What is about to be done.
        step: Step,
    },
    /// It holds.
    Done {
        /// What was done.
        step: Step,
        /// How long it took.
        took_ms: u64,
        /// What was measured or said, if it matters later: the output of `-V`, bytes sent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        note: Option<String>,
        /// Of a window that took the node out of service: for how long.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        away: Option<Away>,
    },
    /// It was not necessary.
    Skipped {
        /// What was not done.
        step: Step,
        /// Why not.
        why: String,
    },
    /// It does not hold, or nobody knows.
    Failed {
        /// What was tried.
        step: Step,
        /// What was seen.
        error: String,
        /// It may have happened all the same.
        unknown: bool,
    },
    /// Logs and exit status of a node that was not healthy.
    Evidence {
        /// Whose.
        instance: InstanceId,
        /// As they came.
        lines: Vec<String>,
    },
    /// From here on the open turn is undone.
    GoingBack {
        /// Whose turn.
        instance: InstanceId,
        /// Why.
        why: String,
    },
    /// From here on all turns are undone, last first.
    GoingBackWholly {
        /// Which node was not healthy.
        instance: InstanceId,
        /// Why.
        why: String,
    },
    /// As [`Entry::GoingBackWholly`], since the operator wants it.
    TakingBack,
    /// The turn is over.
    TurnEnds {
        /// Whose.
        instance: InstanceId,
        /// How.
        end: TurnEnd,
        /// What went wrong, if something did: then no other turn follows.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        failure: Option<String>,
    },
    /// Last entry of a run that ended in an orderly way.
    RunEnds {
        /// How.
        end: RunEnd,
    },
}

/// How long a window took a node out of service, as its host measured it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
pub struct Away {
    /// From the order to stop until the unit was down.
    pub stop_ms: u64,
    /// From down to exchanged, in microseconds.
    pub exchange_us: u64,
    /// From the order to start until active.
    pub start_ms: u64,
    /// From the order to stop until active again.
    pub down_ms: u64,
    /// systemd had to kill the old process.
    pub killed: bool,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TurnEnd {
    /// It has the build it should have, healthy.
    Changed,
    /// It has the build from before, as healthy as before.
    RolledBack,
    /// It was left as it is, not healthy.
    Left,
    /// Nothing was done to it.
    Untouched,
}

/// A journal that is not what was written.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadJournal {
    /// Neither an entry nor a torn last line.
    #[error("journal line {line} cannot be read: {why}")]
    Unreadable {
        /// Counts from 1.
        line: usize,
        /// What the parser said.
        why: String,
    },
    /// Written by a later dmup.
    #[error("journal line {line} has format {found}; this dmup reads up to {}", Line::FORMAT)]
    TooNew {
        /// Counts from 1.
        line: usize,
        /// Its format.
        found: u32,
    },
    /// Changed, removed or added after it was written.
    #[error("journal line {line} does not follow the line before it: the journal was altered")]
    Broken {
        /// Counts from 1.
        line: usize,
    },
}

/// Reads a journal. A torn last line (no newline) is left out: its effect has not begun.
///
/// # Errors
///
/// [`BadJournal`] with the line.
pub fn parse(text: &str) -> Result<Vec<Line>, BadJournal> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut prev = Digest::of(b"");
    let mut lines = Vec::new();
    for (index, raw) in whole.lines().enumerate() {
        let number = index + 1;
        let line: Line = serde_json::from_str(raw)
            .map_err(|error| BadJournal::Unreadable { line: number, why: error.to_string() })?;
        if line.v > Line::FORMAT {
            return Err(BadJournal::TooNew { line: number, found: line.v });
        }
        if line.prev != prev || line.seq != index as u64 {
            return Err(BadJournal::Broken { line: number });
        }
        prev = Digest::of(raw.as_bytes());
        lines.push(line);
    }
    Ok(lines)
}
