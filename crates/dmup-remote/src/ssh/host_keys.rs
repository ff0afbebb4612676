//! What is done about host keys: strict, with one way to accept a first contact.

use std::fmt;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use tokio::sync::Mutex;

use crate::known_hosts;

use super::error::ReachError;

/// A key that a host shows at first contact.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NewHostKey {
    /// As the topology has it.
    pub host: String,
    /// Of its sshd.
    pub port: u16,
    /// `ssh-ed25519`, …
    pub algorithm: String,
    /// `SHA256:…`, as `ssh-keygen -l` prints it.
    pub fingerprint: String,
    /// The key itself, as in a `known_hosts` line, without the host.
    pub key: String,
}

impl NewHostKey {
    /// `host:port`.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// What to do at first contact.
#[derive(Clone)]
pub enum UnknownHostKeys {
    /// Nobody is there to ask.
    Refuse,
    /// `--accept-new-host-keys`: the key is written to the cluster's file.
    Accept,
    /// Somebody decides; on `true` the key is written to the cluster's file. Called for one host at a time, on a thread that may block.
    Ask(Arc<dyn Fn(&NewHostKey) -> bool + Send + Sync>),
}

impl fmt::Debug for UnknownHostKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refuse => "Refuse",
            Self::Accept => "Accept",
            Self::Ask(_) => "Ask",
        })
    }
}

/// Which host keys are trusted. The system's ssh has its own files and only takes [`UnknownHostKeys::Accept`] from here.
#[derive(Clone, Debug)]
pub struct HostKeys {
    /// Read, never written.
    pub files: Vec<Utf8PathBuf>,
    /// Read, and written when a new key is accepted.
    pub cluster_file: Utf8PathBuf,
    /// First contact.
    pub unknown: UnknownHostKeys,
    /// One question at a time.
    asking: Arc<Mutex<()>>,
}

impl HostKeys {
    /// The user's and the machine's own files, and the cluster's.
    pub fn new(
        user_home: Option<&Utf8Path>,
        cluster_file: impl Into<Utf8PathBuf>,
        unknown: UnknownHostKeys,
    ) -> Self {
        let of_user = user_home
            .into_iter()
            .flat_map(|home| [home.join(".ssh/known_hosts"), home.join(".ssh/known_hosts2")]);
        let files = of_user.chain(["/etc/ssh/ssh_known_hosts".into()]).collect();
        Self { files, cluster_file: cluster_file.into(), unknown, asking: Arc::default() }
    }

    /// First contact: whoever decides is asked, and a key that is accepted is written to the cluster's file.
    ///
    /// # Errors
    ///
    /// [`ReachError::UnknownHostKey`] if it is not accepted; the file cannot be written.
    pub(crate) async fn meet(&self, key: Box<NewHostKey>) -> Result<(), ReachError> {
        let is_accepted = match &self.unknown {
            UnknownHostKeys::Refuse => false,
            UnknownHostKeys::Accept => true,
            UnknownHostKeys::Ask(ask) => {
                let _turn = self.asking.lock().await;
                let (ask, key) = (ask.clone(), key.clone());
                tokio::task::spawn_blocking(move || ask(&key)).await.unwrap_or(false)
            }
        };
        if !is_accepted {
            return Err(ReachError::UnknownHostKey(key));
        }
        let line = russh::keys::PublicKey::from_openssh(&key.key).map_err(|error| {
            ReachError::Bootstrap { address: key.address(), observed: error.to_string() }
        })?;
        Ok(known_hosts::remember(&self.cluster_file, &key.host, key.port, &line)?)
    }

    /// All files, the cluster's last.
    pub(crate) fn all_files(&self) -> Vec<Utf8PathBuf> {
        self.files.iter().cloned().chain([self.cluster_file.clone()]).collect()
    }
}
