//! Why a host cannot be reached: one variant per phase.

use crate::known_hosts::{KnownHostsError, Place};

use super::host_keys::NewHostKey;

/// Kinds of failed connects that callers tell apart.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ConnectFailure {
    /// Nobody listens there.
    Refused,
    /// No answer within the limit.
    TimedOut,
    /// No route, network down.
    Unreachable,
    /// Connected, but what answered is no sshd we can talk to, or it hung up.
    Protocol,
}

/// A host that shows another key than the one on file.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "the host key of {address} has changed: it shows {algorithm} {shown}, but {place} has {known}"
)]
pub struct ChangedHostKey {
    /// `host:port`.
    pub address: String,
    /// Of the key shown.
    pub algorithm: String,
    /// Fingerprint of the key shown.
    pub shown: String,
    /// Fingerprint of the key on file.
    pub known: String,
    /// Where that lies.
    pub place: Place,
}

/// A host that could not be reached, by the phase that failed. Nothing was done on it, except for [`ReachError::Bootstrap`],
/// which may have left a file in `.dmup/agent`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ReachError {
    /// The name has no address.
    #[error("look up the address of {host}: {observed}")]
    Resolve {
        /// As the topology has it.
        host: String,
        /// The resolver's words.
        observed: String,
    },
    /// No TCP connection, or no SSH on it.
    #[error("connect to {address}: {observed}")]
    Connect {
        /// `host:port`.
        address: String,
        /// Which kind.
        failure: ConnectFailure,
        /// The system's words.
        observed: String,
    },
    /// The host in between is the problem; the other was not even tried.
    #[error("go through {address}: {error}")]
    Between {
        /// `host:port` of the host in between.
        address: String,
        /// Why it does not do it.
        error: Box<Self>,
    },
    /// First contact, and nobody vouched for the key.
    #[error("the host key of {} is not known: {} {}; if that is the host's own, --accept-new-host-keys takes it", .0.address(), .0.algorithm, .0.fingerprint)]
    UnknownHostKey(Box<NewHostKey>),
    /// Known with another key: a new host, or somebody in between.
    #[error(transparent)]
    ChangedHostKey(Box<ChangedHostKey>),
    /// The key must not be used any more.
    #[error("the host key of {address}, {shown}, is revoked by {place}")]
    RevokedHostKey {
        /// `host:port`.
        address: String,
        /// Fingerprint of the key shown.
        shown: String,
        /// Where it says so.
        place: Place,
    },
    /// Without the files nobody can be recognised.
    #[error(transparent)]
    KnownHosts(#[from] KnownHostsError),
    /// No method was accepted.
    #[error("log in to {address} as {user}: {}", .tried.join("; "))]
    Auth {
        /// `host:port`.
        address: String,
        /// On the host.
        user: String,
        /// Each method and what became of it; never empty.
        tried: Vec<String>,
    },
    /// Logged in, but no program can be run; or the connection was lost.
    #[error("run a program on {address}: {observed}")]
    Channel {
        /// `host:port`.
        address: String,
        /// What was seen.
        observed: String,
    },
    /// The system's ssh ended before the program spoke.
    #[error("ssh to {address}: {observed}")]
    SystemSsh {
        /// `host:port`.
        address: String,
        /// ssh's own words.
        observed: String,
    },
    /// The host has an agent of ours, which lets us do nothing: somebody else has taken the cluster over.
    #[error("work on {address}: {observed}")]
    Superseded {
        /// As the topology has it.
        address: String,
        /// Who has it.
        observed: String,
    },
    /// The agent could not be sent or started, or it does not answer as one.
    #[error("start the agent on {address}: {observed}")]
    Bootstrap {
        /// `host:port`.
        address: String,
        /// What was seen.
        observed: String,
    },
}
