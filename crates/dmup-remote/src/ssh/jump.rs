//! A host in between (`--ssh-proxy-host`): SSH to hosts and requests to DM go through its sshd.
//!
//! One session for all of it, made when it is first needed and again when it broke. Nothing listens on this machine:
//! each connection is a channel of its own (`direct-tcpip`, what `ssh -W` uses).

use std::fmt;
use std::sync::Arc;

use russh::ChannelOpenFailure;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::connection::{ReachLimits, Target};
use super::error::{ConnectFailure, ReachError};
use super::host_keys::HostKeys;
use super::in_process::{self, Session, Stream};

/// The host in between.
pub struct Jump {
    target: Target,
    host_keys: HostKeys,
    limits: ReachLimits,
    session: Mutex<Option<Arc<Session>>>,
}

impl fmt::Debug for Jump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Jump({})", self.target.address())
    }
}

impl Jump {
    /// Knows the host, connects to nothing. The limit for a connection is for that host alone (`--ssh-proxy-timeout`).
    pub fn new(target: Target, host_keys: HostKeys, limits: ReachLimits) -> Self {
        Self { target, host_keys, limits, session: Mutex::new(None) }
    }

    /// As `ssh -J` takes it: `user@host:port`, IPv6 in brackets.
    pub(super) fn for_ssh(&self) -> String {
        let Target { host, port, login } = &self.target;
        let user = login.user.as_str();
        if host.contains(':') {
            format!("{user}@[{host}]:{port}")
        } else {
            format!("{user}@{host}:{port}")
        }
    }

    /// Has that host open a TCP connection; names are looked up there.
    ///
    /// # Errors
    ///
    /// [`ReachError::Between`] if the host in between is the problem, [`ReachError::Connect`] if it reaches nobody there.
    pub(crate) async fn dial(
        &self,
        host: &str,
        port: u16,
        within: std::time::Duration,
    ) -> Result<Stream, ReachError> {
        let session = self.session().await?;
        let failed = |failure, observed: String| ReachError::Connect {
            address: format!("{host}:{port}"),
            failure,
            observed: format!("{} (from {})", observed, self.target.address()),
        };
        // Where it came from is for the log of that sshd; it is nobody's address.
        let opening = session.channel_open_direct_tcpip(host, u32::from(port), "127.0.0.1", 0);
        match timeout(within, opening).await {
            Ok(Ok(channel)) => Ok(Box::new(channel.into_stream())),
            Ok(Err(russh::Error::ChannelOpenFailure(why))) => Err(match why {
                ChannelOpenFailure::AdministrativelyProhibited => failed(
                    ConnectFailure::Unreachable,
                    "its sshd forwards nothing there (AllowTcpForwarding, PermitOpen)".to_owned(),
                ),
                ChannelOpenFailure::ConnectFailed => {
                    failed(ConnectFailure::Refused, "nobody answers".to_owned())
                }
                ChannelOpenFailure::UnknownChannelType
                | ChannelOpenFailure::ResourceShortage
                | ChannelOpenFailure::Other { .. } => {
                    failed(ConnectFailure::Protocol, format!("its sshd opens nothing: {why:?}"))
                }
            }),
            Ok(Err(error)) => Err(failed(ConnectFailure::Protocol, error.to_string())),
            Err(_) => Err(failed(ConnectFailure::TimedOut, format!("no answer within {within:?}"))),
        }
    }

    /// Logs in, unless it is logged in already: whoever needs it hears at once that it is of no use.
    ///
    /// # Errors
    ///
    /// [`ReachError::Between`].
    pub async fn open(&self) -> Result<(), ReachError> {
        self.session().await.map(drop)
    }

    async fn session(&self) -> Result<Arc<Session>, ReachError> {
        self.logged_in().await.map_err(|error| ReachError::Between {
            address: self.target.address(),
            error: Box::new(error),
        })
    }

    async fn logged_in(&self) -> Result<Arc<Session>, ReachError> {
        let mut slot = self.session.lock().await;
        if let Some(session) = slot.as_ref().filter(|session| !session.is_closed()) {
            return Ok(session.clone());
        }
        let log_in = async || {
            in_process::connect(&self.target, None, &self.host_keys.all_files(), &self.limits).await
        };
        let session = match log_in().await {
            Err(ReachError::UnknownHostKey(key)) => {
                self.host_keys.meet(key).await?;
                log_in().await?
            }
            other => other?,
        };
        Ok(slot.insert(Arc::new(session)).clone())
    }
}
