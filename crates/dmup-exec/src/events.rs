//! What the executor says while it works. Printing is somebody else's job.

use std::time::Duration;

use dmup_core::ids::InstanceId;
use dmup_core::journal::TurnEnd;
use dmup_core::plan::{Kind, Step};
use serde::Serialize;

/// Something happened. Sent in order; never relied on for state (that is the journal's).
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// An instance's turn begins.
    TurnBegins {
        /// Whose.
        instance: InstanceId,
        /// Counts from 1.
        number: usize,
        /// How many turns the plan has.
        of: usize,
    },
    /// A step begins.
    StepBegins {
        /// Which.
        step: Step,
    },
    /// A step holds.
    StepEnds {
        /// Which.
        step: Step,
        /// How long it took.
        took: Duration,
        /// What was measured or said.
        note: Option<String>,
    },
    /// A step is not necessary.
    StepSkipped {
        /// Which.
        step: Step,
        /// Why.
        why: String,
    },
    /// A step does not hold.
    StepFails {
        /// Which.
        step: Step,
        /// What was seen.
        error: String,
    },
    /// Still waiting: sent when what is missing changes.
    Waiting {
        /// Whose turn it is that waits: those of a batch overlap.
        instance: InstanceId,
        /// For what.
        step: Step,
        /// One sentence each.
        missing: Vec<String>,
    },
    /// Logs and exit status of a node that is not healthy.
    Evidence {
        /// Whose.
        instance: InstanceId,
        /// As they came.
        lines: Vec<String>,
    },
    /// A node goes back to its build from before.
    GoesBack {
        /// Whose.
        instance: InstanceId,
        /// Why.
        why: String,
    },
    /// A turn is over.
    TurnEnds {
        /// Whose.
        instance: InstanceId,
        /// How.
        end: TurnEnd,
        /// Whether the run puts new builds in or takes them back.
        kind: Kind,
    },
    /// Something worth knowing.
    Note {
        /// A sentence.
        text: String,
    },
}
