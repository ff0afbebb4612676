//! Why a run could not be carried on, apart from what happened to the cluster (that is in the report).

use camino::Utf8PathBuf;
use dmup_core::journal::{BadJournal, IllegalEntry};

/// A journal that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk said no.
    #[error("{attempted} {path}")]
    Disk {
        /// As a verb phrase.
        attempted: &'static str,
        /// Which file.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It was altered, or a later dmup wrote it.
    #[error(transparent)]
    Bad(#[from] BadJournal),
    /// The plan beside it cannot be read.
    #[error("read the plan {path}: {why}")]
    BadPlan {
        /// Which file.
        path: Utf8PathBuf,
        /// What the parser said.
        why: String,
    },
    /// Somebody else goes on with this run: it has more lines than we wrote.
    #[error("another dmup has gone on with this run: it writes {path}, too")]
    TakenOver {
        /// Which file.
        path: Utf8PathBuf,
    },
    /// Only tests: the run is to end here.
    #[error("the run was killed")]
    Killed,
}

/// A run that did not begin, or cannot go on. Where the cluster stands is told by the journal.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The cluster is not what the plan was based on. Nothing was touched.
    #[error("the cluster has changed since the plan was made: {}", .changes.join("; "))]
    Stale {
        /// One line per fact.
        changes: Vec<String>,
    },
    /// The look before the first effect failed. Nothing was touched.
    #[error("look at the cluster before the first step: {why}")]
    Look {
        /// What was seen.
        why: String,
    },
    /// Nothing may happen that is not written down.
    #[error("write down what happens")]
    Record(#[from] JournalError),
    /// The journal is of another plan, or no run writes it.
    #[error("go on with this run: {0}")]
    NotResumable(String),
    /// Somebody else has taken the cluster over. Nothing is written down any more: the run is theirs to go on with.
    #[error("somebody else has taken the cluster over: {why}")]
    Superseded {
        /// What a host said.
        why: String,
    },
    /// The run is over.
    #[error("this run has ended already")]
    AlreadyEnded,
}

impl From<IllegalEntry> for RunError {
    fn from(illegal: IllegalEntry) -> Self {
        Self::NotResumable(illegal.to_string())
    }
}

impl RunError {
    /// The exit code: 3 if nothing was touched, 1 if it can be resumed.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Stale { .. } | Self::Look { .. } | Self::AlreadyEnded => 3,
            Self::Superseded { .. } | Self::Record(JournalError::TakenOver { .. }) => 7,
            Self::Record(_) | Self::NotResumable(_) => 1,
        }
    }
}
