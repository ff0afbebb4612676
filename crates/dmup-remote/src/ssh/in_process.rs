//! SSH in this process, by russh 0.65 (settings and pitfalls were measured against OpenSSH 9.2).

use std::borrow::Cow;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use russh::client::{self, AuthResult, Handle, KeyboardInteractiveAuthResponse};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::{Algorithm, HashAlg, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{MethodKind, MethodSet, Preferred, cipher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::known_hosts::{self, Verdict, fingerprint};
use crate::login::{AuthMethod, Secret, read_key};

use super::connection::{ReachLimits, Target};
use super::error::{ChangedHostKey, ConnectFailure, ReachError};
use super::host_keys::NewHostKey;
use super::jump::Jump;
use super::stream::ByteStream;

/// A session that is logged in.
pub(crate) type Session = Handle<Watch>;

/// Both directions of a TCP connection, here or on the host in between.
pub(crate) type Stream = Box<dyn Duplex>;

/// What [`Stream`] is about.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Opens a TCP connection, through the host in between if there is one.
pub(crate) async fn dial(
    jump: Option<&Jump>,
    host: &str,
    port: u16,
    within: Duration,
) -> Result<Stream, ReachError> {
    match jump {
        Some(jump) => jump.dial(host, port, within).await,
        None => Ok(Box::new(dial_directly(host, port, within).await?)),
    }
}

/// Connects, checks the host's key, logs in.
pub(crate) async fn connect(
    target: &Target,
    jump: Option<&Jump>,
    files: &[Utf8PathBuf],
    limits: &ReachLimits,
) -> Result<Session, ReachError> {
    // A host in between logs in by this very function, with none before it.
    let socket = Box::pin(dial(jump, &target.host, target.port, limits.connect)).await?;
    let known = known_hosts::known_types(files, &target.host, target.port)?;
    let config = Arc::new(config(known, limits));
    let watch = Watch { host: target.host.clone(), port: target.port, files: files.to_vec() };
    let log_in = async {
        let mut session = client::connect_stream(config, socket, watch)
            .await
            .map_err(|error| error.into_reach(target))?;
        authenticate(&mut session, target).await?;
        Ok(session)
    };
    timeout(limits.login, log_in).await.unwrap_or_else(|_| {
        Err(ReachError::Connect {
            address: target.address(),
            failure: ConnectFailure::TimedOut,
            observed: format!("connected, but not logged in within {:?}", limits.login),
        })
    })
}

/// Opens a channel and runs a line in the login shell.
pub(crate) async fn run_line(
    session: &Arc<Session>,
    target: &Target,
    line: &str,
) -> Result<ByteStream, ReachError> {
    let failed = |error: russh::Error| ReachError::Channel {
        address: target.address(),
        observed: error.to_string(),
    };
    let channel = session.channel_open_session().await.map_err(failed)?;
    channel.exec(true, line).await.map_err(failed)?;
    Ok(ByteStream::of_channel(channel, session.clone()))
}

fn config(known: Vec<Algorithm>, limits: &ReachLimits) -> client::Config {
    client::Config {
        // Without it, 40 ms per command (Nagle against delayed acknowledgements).
        nodelay: true,
        keepalive_interval: Some(limits.keepalive),
        keepalive_max: 3,
        preferred: Preferred {
            // GCM is several times faster than the default where the processor helps, and 128 is not in russh's list at all.
            cipher: Cow::Borrowed(&[
                cipher::AES_128_GCM,
                cipher::AES_256_GCM,
                cipher::CHACHA20_POLY1305,
                cipher::AES_256_CTR,
                cipher::AES_192_CTR,
                cipher::AES_128_CTR,
            ]),
            key: Cow::Owned(offered_types(&known)),
            ..Preferred::DEFAULT
        },
        ..client::Config::default()
    }
}

/// Types that are on file first: the server shows the first one that it has, and only those can be checked.
fn offered_types(known: &[Algorithm]) -> Vec<Algorithm> {
    // A key on file is `ssh-rsa` whichever hash signs with it.
    let is_known = |offered: &Algorithm| {
        known.iter().any(|known| {
            known == offered
                || (matches!(known, Algorithm::Rsa { .. })
                    && matches!(offered, Algorithm::Rsa { hash: Some(_) }))
        })
    };
    let (mut first, rest): (Vec<_>, Vec<_>) = Preferred::DEFAULT
        .key
        .iter()
        .filter(|offered| !matches!(offered, Algorithm::Rsa { hash: None }))
        .cloned()
        .partition(is_known);
    first.extend(rest);
    first
}

async fn dial_directly(host: &str, port: u16, within: Duration) -> Result<TcpStream, ReachError> {
    let deadline = tokio::time::Instant::now() + within;
    let addresses = resolve(host, port, within).await?;
    let mut last = None;
    for address in addresses {
        // Worth saying only if it was looked up.
        let is_given = host.parse::<IpAddr>().is_ok();
        let at = if is_given { String::new() } else { format!("{address}: ") };
        last = Some(match tokio::time::timeout_at(deadline, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => {
                // Nothing is lost but speed if the system refuses.
                drop(socket.set_nodelay(true));
                return Ok(socket);
            }
            Ok(Err(error)) => (connect_failure(&error), format!("{at}{error}")),
            Err(_) => (ConnectFailure::TimedOut, format!("{at}no answer within {within:?}")),
        });
    }
    let (failure, observed) = last.expect("resolve gives at least one address");
    Err(ReachError::Connect { address: format!("{host}:{port}"), failure, observed })
}

async fn resolve(host: &str, port: u16, within: Duration) -> Result<Vec<SocketAddr>, ReachError> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let failed = |observed: String| ReachError::Resolve { host: host.to_owned(), observed };
    let found = timeout(within, tokio::net::lookup_host((host, port)))
        .await
        .map_err(|_| failed(format!("no answer within {within:?}")))?
        .map_err(|error| failed(error.to_string()))?;
    let addresses: Vec<_> = found.collect();
    if addresses.is_empty() { Err(failed("no address".to_owned())) } else { Ok(addresses) }
}

fn connect_failure(error: &io::Error) -> ConnectFailure {
    if error.kind() == io::ErrorKind::ConnectionRefused {
        ConnectFailure::Refused
    } else if error.kind() == io::ErrorKind::TimedOut {
        ConnectFailure::TimedOut
    } else {
        ConnectFailure::Unreachable
    }
}

/// Tries every method in turn.
///
/// A server that hangs up before it has judged any of them has not refused us: that is a lost connection.
async fn authenticate(session: &mut Session, target: &Target) -> Result<(), ReachError> {
    let mut tried = Vec::new();
    let (mut accepted, mut is_lost) = (None, false);
    for method in &target.login.auth {
        let refused = match method {
            AuthMethod::KeyFile { path, passphrase } => {
                with_key_file(session, target, path, passphrase.as_ref()).await
            }
            AuthMethod::Agent { socket } => with_agent(session, target, socket).await,
            AuthMethod::Password(secret) => with_password(session, target, secret).await,
        };
        match refused {
            Ok(()) => return Ok(()),
            Err(refused) => {
                tried.push(refused.text);
                accepted = refused.accepted.or(accepted);
                is_lost = refused.is_unjudged;
            }
        }
        is_lost |= session.is_closed();
        if is_lost {
            tried.push("then the server hung up".to_owned());
            break;
        }
    }
    if is_lost && accepted.is_none() {
        return Err(ReachError::Connect {
            address: target.address(),
            failure: ConnectFailure::Protocol,
            observed: format!("the server hung up during the login: {}", tried.join("; ")),
        });
    }
    if tried.is_empty() {
        tried.push("no key, no agent and no password is given".to_owned());
    }
    if let Some(methods) = accepted {
        tried.push(format!("the server takes {methods}"));
    }
    Err(ReachError::Auth {
        address: target.address(),
        user: target.login.user.as_str().to_owned(),
        tried,
    })
}

/// What became of one method.
struct Refused {
    text: String,
    /// The server's own list, if it sent one.
    accepted: Option<String>,
    /// It was sent, and nothing came back.
    is_unjudged: bool,
}

impl Refused {
    fn before(text: String) -> Self {
        Self { text, accepted: None, is_unjudged: false }
    }
}

fn judge(what: &str, result: AuthResult) -> Result<(), Refused> {
    match result {
        AuthResult::Success => Ok(()),
        AuthResult::Failure { remaining_methods, partial_success } => {
            let accepted = listed(&remaining_methods);
            // What russh says when the connection ends instead of an answer.
            let is_unjudged = accepted.is_none() && !partial_success;
            let text = if partial_success {
                format!("{what}: accepted, but the server wants another proof as well")
            } else if is_unjudged {
                format!("{what}: no answer")
            } else {
                format!("{what}: refused")
            };
            Err(Refused { text, accepted, is_unjudged })
        }
    }
}

fn listed(methods: &MethodSet) -> Option<String> {
    let names: Vec<String> = methods.iter().map(|m| <&str>::from(m).to_owned()).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

async fn with_key_file(
    session: &mut Session,
    target: &Target,
    path: &Utf8Path,
    passphrase: Option<&Secret>,
) -> Result<(), Refused> {
    let what = format!("key {path}");
    let unread = |text: String| Refused::before(format!("{what}: {text}"));
    let (file, secret) = (path.to_owned(), passphrase.cloned());
    // Opening an encrypted key is slow on purpose.
    let key = tokio::task::spawn_blocking(move || read_key(&file, secret.as_ref()))
        .await
        .map_err(|error| unread(error.to_string()))?
        .map_err(|error| {
            if matches!(error, russh::keys::Error::KeyIsEncrypted) {
                unread("it is encrypted and no passphrase is given".to_owned())
            } else if passphrase.is_some() {
                unread(format!("{error} (wrong passphrase?)"))
            } else {
                unread(error.to_string())
            }
        })?;
    let hash = rsa_hash(session, &key.algorithm()).await;
    let key = PrivateKeyWithHashAlg::new(Arc::new(key), hash);
    let user = target.login.user.as_str();
    match session.authenticate_publickey(user, key).await {
        Ok(result) => judge(&what, result),
        Err(error) => Err(unread(error.to_string())),
    }
}

/// An RSA key signs with what the server says it takes; without word from it, with SHA-1, as before SHA-2 was there.
async fn rsa_hash(session: &Session, algorithm: &Algorithm) -> Option<HashAlg> {
    if !matches!(algorithm, Algorithm::Rsa { .. }) {
        return None;
    }
    session.best_supported_rsa_hash().await.ok().flatten().flatten()
}

async fn with_agent(
    session: &mut Session,
    target: &Target,
    socket: &Utf8Path,
) -> Result<(), Refused> {
    let what = format!("agent {socket}");
    let unread = |text: String| Refused::before(format!("{what}: {text}"));
    let mut agent =
        AgentClient::connect_uds(socket).await.map_err(|error| unread(error.to_string()))?;
    let identities = agent.request_identities().await.map_err(|error| unread(error.to_string()))?;
    let mut last = unread("it holds no key".to_owned());
    for identity in identities {
        let AgentIdentity::PublicKey { key, .. } = identity else { continue };
        let shown = format!("{what}, key {}", fingerprint(&key));
        let hash = rsa_hash(session, &key.algorithm()).await;
        let user = target.login.user.as_str();
        let result = session.authenticate_publickey_with(user, key, hash, &mut agent).await;
        let refused = match result {
            Ok(result) => match judge(&shown, result) {
                Ok(()) => return Ok(()),
                Err(refused) => refused,
            },
            Err(error) => Refused::before(format!("{shown}: {error}")),
        };
        // After too many keys it hangs up: then it has judged all the same.
        last = Refused { accepted: refused.accepted.or(last.accepted), ..refused };
        if last.is_unjudged || session.is_closed() {
            break;
        }
    }
    Err(last)
}

async fn with_password(
    session: &mut Session,
    target: &Target,
    secret: &Secret,
) -> Result<(), Refused> {
    let user = target.login.user.as_str();
    let unread = |error: russh::Error| Refused::before(format!("password: {error}"));
    let refused =
        match session.authenticate_password(user, secret.reveal()).await.map_err(unread)? {
            AuthResult::Success => return Ok(()),
            AuthResult::Failure { remaining_methods, partial_success } => {
                let asks = remaining_methods.contains(&MethodKind::KeyboardInteractive);
                let refused =
                    judge("password", AuthResult::Failure { remaining_methods, partial_success });
                match refused {
                    Err(refused) if asks => refused,
                    other => return other,
                }
            }
        };
    answer_questions(session, user, secret).await.map_or(Err(refused), |()| Ok(()))
}

/// Some servers take a password only as the answer to a question; questions with a visible answer are not for it.
async fn answer_questions(session: &mut Session, user: &str, secret: &Secret) -> Option<()> {
    /// PAM asks once or twice; a server that never stops asking is given up.
    const ROUNDS: usize = 5;
    let mut reply = session.authenticate_keyboard_interactive_start(user, None).await.ok()?;
    for _ in 0..ROUNDS {
        reply = match reply {
            KeyboardInteractiveAuthResponse::Success => return Some(()),
            KeyboardInteractiveAuthResponse::Failure { .. } => return None,
            KeyboardInteractiveAuthResponse::InfoRequest { prompts, .. } => {
                let answers = prompts
                    .iter()
                    .map(
                        |prompt| {
                            if prompt.echo { String::new() } else { secret.reveal().to_owned() }
                        },
                    )
                    .collect();
                session.authenticate_keyboard_interactive_respond(answers).await.ok()?
            }
        };
    }
    None
}

/// Judges the host's key during the handshake.
pub(crate) struct Watch {
    host: String,
    port: u16,
    files: Vec<Utf8PathBuf>,
}

/// What ends a session from within.
#[derive(Debug)]
pub(crate) enum WatchError {
    Ssh(russh::Error),
    HostKey(ReachError),
}

impl From<russh::Error> for WatchError {
    fn from(error: russh::Error) -> Self {
        Self::Ssh(error)
    }
}

impl WatchError {
    fn into_reach(self, target: &Target) -> ReachError {
        match self {
            Self::HostKey(error) => error,
            Self::Ssh(error) => ReachError::Connect {
                address: target.address(),
                failure: ConnectFailure::Protocol,
                observed: error.to_string(),
            },
        }
    }
}

impl Watch {
    fn judge(&self, key: &PublicKey) -> Result<(), ReachError> {
        let address = format!("{}:{}", self.host, self.port);
        let algorithm = key.algorithm().as_str().to_owned();
        match known_hosts::check(&self.files, &self.host, self.port, key)? {
            Verdict::Known => Ok(()),
            Verdict::Unknown => Err(ReachError::UnknownHostKey(Box::new(NewHostKey {
                host: self.host.clone(),
                port: self.port,
                algorithm,
                fingerprint: fingerprint(key),
                key: key.to_openssh().unwrap_or_default(),
            }))),
            Verdict::Changed { known, place } => {
                Err(ReachError::ChangedHostKey(Box::new(ChangedHostKey {
                    address,
                    algorithm,
                    shown: fingerprint(key),
                    known,
                    place,
                })))
            }
            Verdict::Revoked { place } => {
                Err(ReachError::RevokedHostKey { address, shown: fingerprint(key), place })
            }
        }
    }
}

impl client::Handler for Watch {
    type Error = WatchError;

    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> Result<bool, WatchError> {
        match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => {
                self.judge(key).map(|()| true).map_err(WatchError::HostKey)
            }
            // None is offered, so a server that sends one breaks the protocol.
            PublicKeyOrCertificate::Certificate(_) => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_on_file_are_offered_first_and_sha1_never() {
        let rsa = offered_types(&[Algorithm::Rsa { hash: None }]);
        assert!(matches!(rsa[0], Algorithm::Rsa { hash: Some(_) }));
        assert!(matches!(rsa[1], Algorithm::Rsa { hash: Some(_) }));
        assert!(!rsa.contains(&Algorithm::Rsa { hash: None }));
        assert_eq!(offered_types(&[Algorithm::Ed25519])[0], Algorithm::Ed25519);
        assert_eq!(offered_types(&[]).len(), rsa.len());
    }

    #[tokio::test]
    async fn a_name_of_the_hosts_file_has_an_address_although_we_are_linked_statically() {
        let found = resolve("localhost", 22, Duration::from_secs(20)).await.unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback()), "{found:?}");
    }
}
