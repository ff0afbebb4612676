//! The lease of a cluster on one host: who may change things there.
//!
//! Each host has a record per cluster: a token that only ever rises, and the holder, if there is
//! one. Whoever takes the lease after somebody else makes the token rise, and from then on the agent
//! refuses every order of a conversation that took an earlier one, whenever it comes. So it does not
//! matter whether clocks are right: an expiry that comes too early lets somebody else in, and the
//! one before is out at that moment.

use dmup_core::ids::ClusterName;
use serde::{Deserialize, Serialize};

/// An order about a lease. Answer: [`LeaseSeen`] in [`crate::message::Outcome::Lease`].
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct LeaseOrder {
    /// Of which cluster.
    pub cluster: ClusterName,
    /// What to do.
    pub ask: LeaseAsk,
}

/// What can be asked of a lease.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum LeaseAsk {
    /// Says how it is.
    Look,
    /// Takes it for this conversation, and waits until orders of an earlier holder that are under way have ended.
    /// Not done (`mine` is false) while another desk has it; refused as superseded if `after` is not the latest token any more.
    Take {
        /// For whom.
        holder: Holder,
        /// It expires so long after the last word, 1 to 3600 s.
        ttl_s: u32,
        /// The token that this run had here on an earlier conversation.
        after: Option<u64>,
    },
    /// Puts the expiry off. Refused as superseded if it is not this conversation's any more.
    Renew {
        /// From now, 1 to 3600 s.
        ttl_s: u32,
    },
    /// Ends it. This conversation keeps its token: it goes on being refused once somebody else has taken the lease.
    GiveBack,
    /// Takes it from whoever has it: the token rises, and nobody is the holder.
    Break {
        /// Who does, for the one who finds out.
        by: String,
    },
}

/// Who has a lease, in words for people, and two names that are compared.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct Holder {
    /// The machine and `TIUP_HOME` that dmup runs from. One desk runs one command per cluster at a time (its local lock), so
    /// it may take the lease over from an earlier command of its own, which must be dead.
    pub desk: String,
    /// The process: the same one may take the lease again without the token rising.
    pub run: String,
    /// `user@machine`.
    pub who: String,
    /// The command: `patch`.
    pub what: String,
}

/// How a lease is.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct LeaseSeen {
    /// It is this conversation's.
    pub mine: bool,
    /// The latest; 0 if nobody ever took it.
    pub token: u64,
    /// Who has it; it may have expired.
    pub holder: Option<Holder>,
    /// Since when.
    pub since_ms: i64,
    /// Until when, unless renewed.
    pub until_ms: i64,
    /// The host's clock now.
    pub clock_ms: i64,
    /// Who broke it last, since it was last taken.
    pub broken_by: Option<String>,
}
