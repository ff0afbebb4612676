//! One connection per host, whichever way it is reached.

use std::sync::Arc;
use std::time::Duration;

use camino::Utf8PathBuf;

use crate::login::Login;

use super::error::ReachError;
use super::host_keys::HostKeys;
use super::in_process::{self, Session};
use super::jump::Jump;
use super::spawned;
use super::stream::ByteStream;

/// How hosts are reached (`--ssh`).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Reach {
    /// `builtin`: SSH in this process.
    #[default]
    Russh,
    /// `system`: the ssh program, with the user's own configuration.
    SystemSsh {
        /// `ssh`, or a path.
        program: Utf8PathBuf,
        /// Offer the login's keys alone: none of an agent, none that ssh tries by itself.
        given_keys_only: bool,
    },
    /// `none`: every host is this machine. The agent is started directly, by `sudo -n -u` if the login user is somebody else.
    Local {
        /// Without systemd: services are plain processes, kept in a folder per host below this one.
        playground: Option<Utf8PathBuf>,
    },
}

/// Time limits of reaching a host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ReachLimits {
    /// For the TCP connection (`--ssh-timeout`; TiUP's default).
    pub connect: Duration,
    /// From connected to logged in.
    pub login: Duration,
    /// From logged in to the agent's `Hello`, except for sending it.
    pub bootstrap: Duration,
    /// For sending the agent.
    pub send: Duration,
    /// Silence after which the other side is asked for a sign of life; three unanswered ones are the end.
    pub keepalive: Duration,
}

impl Default for ReachLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            login: Duration::from_secs(30),
            bootstrap: Duration::from_secs(30),
            send: Duration::from_secs(300),
            keepalive: Duration::from_secs(5),
        }
    }
}

/// Whom to connect to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Target {
    /// Address or name.
    pub host: String,
    /// Of sshd.
    pub port: u16,
    /// Who logs in.
    pub login: Login,
}

impl Target {
    /// `host:port`, for messages.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// An open way to a host.
#[derive(Clone)]
pub struct Connection {
    target: Target,
    way: Way,
}

#[derive(Clone)]
enum Way {
    Session(Arc<Session>),
    SystemSsh { program: Utf8PathBuf, extent: spawned::Extent, limits: ReachLimits },
    Local { arguments: Vec<String> },
}

impl Connection {
    /// Connects and logs in, through the host in between if there is one; with the system's ssh, only when a program is run; with `local`, never.
    ///
    /// # Errors
    ///
    /// [`ReachError`] by phase. An unknown host key is an error here whatever [`HostKeys::unknown`] says, except for
    /// the system's ssh: [`crate::fleet::Fleet`] asks, remembers, and connects again.
    pub async fn open(
        reach: &Reach,
        jump: Option<&Arc<Jump>>,
        target: &Target,
        host_keys: &HostKeys,
        limits: &ReachLimits,
    ) -> Result<Self, ReachError> {
        let way = match reach {
            Reach::Russh => {
                let files = host_keys.all_files();
                let jump = jump.map(Arc::as_ref);
                let session = in_process::connect(target, jump, &files, limits).await?;
                Way::Session(Arc::new(session))
            }
            Reach::SystemSsh { program, given_keys_only } => Way::SystemSsh {
                program: program.clone(),
                extent: spawned::Extent {
                    given_keys_only: *given_keys_only,
                    accept_new: matches!(host_keys.unknown, super::UnknownHostKeys::Accept),
                    jump: jump.map(|jump| jump.for_ssh()),
                },
                limits: *limits,
            },
            Reach::Local { playground } => Way::Local {
                arguments: playground
                    .iter()
                    .map(|folder| folder.join(&target.host))
                    .flat_map(|folder| ["--supervised".to_owned(), folder.into_string()])
                    .collect(),
            },
        };
        Ok(Self { target: target.clone(), way })
    }

    /// Whether the host is this machine: nothing has to be sent.
    pub fn is_local(&self) -> bool {
        match &self.way {
            Way::Local { .. } => true,
            Way::Session(_) | Way::SystemSsh { .. } => false,
        }
    }

    /// `host:port`, for messages.
    pub fn address(&self) -> String {
        self.target.address()
    }

    /// Runs a line that the host's login shell will read.
    ///
    /// # Errors
    ///
    /// [`ReachError::Channel`], or [`ReachError::SystemSsh`] if there is no such program.
    pub(crate) async fn run_line(&self, line: &str) -> Result<ByteStream, ReachError> {
        match &self.way {
            Way::Session(session) => in_process::run_line(session, &self.target, line).await,
            Way::SystemSsh { program, extent, limits } => {
                spawned::ssh(program, &self.target, extent, limits, line)
            }
            Way::Local { .. } => Err(ReachError::Channel {
                address: self.address(),
                observed: "no shell line is run on this machine".to_owned(),
            }),
        }
    }

    /// Starts `program agent` on this machine.
    ///
    /// # Errors
    ///
    /// [`ReachError::Bootstrap`] if it cannot be started.
    pub(crate) fn run_agent_locally(
        &self,
        program: &camino::Utf8Path,
        arguments: &[&str],
    ) -> Result<ByteStream, ReachError> {
        match &self.way {
            Way::Local { arguments: own } => {
                let own = own.iter().map(String::as_str);
                let arguments: Vec<&str> = own.chain(arguments.iter().copied()).collect();
                spawned::local_agent(program, &arguments, &self.target)
            }
            Way::Session(_) | Way::SystemSsh { .. } => Err(ReachError::Bootstrap {
                address: self.address(),
                observed: "it is not this machine".to_owned(),
            }),
        }
    }

    /// Whether a message that the program never spoke is ssh's own.
    pub(crate) fn is_system_ssh(&self) -> bool {
        match &self.way {
            Way::SystemSsh { .. } => true,
            Way::Session(_) | Way::Local { .. } => false,
        }
    }
}
