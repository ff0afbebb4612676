//! Who we are on a host, and how we prove it.
//!
//! Secrets stay in memory: they are never an argument of a program, never
//! printed ([`Secret`]'s `Debug` hides its content), never written.

use std::fmt;

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::ids::UserName;

/// A password or passphrase.
#[derive(Clone, Eq, PartialEq)]
pub struct Secret(String);

impl Secret {
    /// Wraps it.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one call that proves it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("‹redacted›")
    }
}

/// One way to prove who we are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AuthMethod {
    /// A private key on disk: ed25519, ECDSA or RSA (SHA-2 signatures), in OpenSSH, PEM or PKCS#8 form.
    KeyFile {
        /// Where it lies.
        path: Utf8PathBuf,
        /// Needed if it is encrypted ([`needs_passphrase`]).
        passphrase: Option<Secret>,
    },
    /// The keys of an ssh-agent.
    Agent {
        /// Its socket (`SSH_AUTH_SOCK`).
        socket: Utf8PathBuf,
    },
    /// A password, also given as the answer to a server that asks interactively for one.
    Password(Secret),
}

impl AuthMethod {
    /// A key file without a passphrase.
    pub fn key_file(path: impl Into<Utf8PathBuf>) -> Self {
        Self::KeyFile { path: path.into(), passphrase: None }
    }
}

/// Who logs in, and how. The methods are tried in the order given.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Login {
    /// On the host.
    pub user: UserName,
    /// At least one for `russh`; the system's ssh has its own as well; not used for `local`.
    pub auth: Vec<AuthMethod>,
}

/// Whether a private key can only be read with a passphrase.
///
/// # Errors
///
/// The file cannot be read, or is no private key; the text says which.
pub fn needs_passphrase(path: &Utf8Path) -> Result<bool, String> {
    match read_key(path, None) {
        Ok(_) => Ok(false),
        Err(russh::keys::Error::KeyIsEncrypted) => Ok(true),
        // Encrypted PEM and PKCS#8 keys are told by what their text says: the reader has several errors for them.
        Err(error) => match fs_err::read_to_string(path) {
            Ok(text) if text.contains("ENCRYPTED") => Ok(true),
            Ok(_) => Err(format!("{path} is no private key: {error}")),
            Err(unreadable) => Err(unreadable.to_string()),
        },
    }
}

/// Reads a private key.
pub(crate) fn read_key(
    path: &Utf8Path,
    passphrase: Option<&Secret>,
) -> Result<russh::keys::PrivateKey, russh::keys::Error> {
    // The caller names the file.
    let text = std::fs::read_to_string(path)?;
    russh::keys::decode_secret_key(&text, passphrase.map(Secret::reveal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_show_in_debug_output() {
        let login = Login {
            user: UserName::new("tidb").unwrap(),
            auth: vec![
                AuthMethod::Password(Secret::new("hunter2")),
                AuthMethod::KeyFile { path: "/k".into(), passphrase: Some(Secret::new("hunter2")) },
            ],
        };
        assert!(!format!("{login:?}").contains("hunter2"));
    }

    #[test]
    fn a_missing_key_and_text_that_is_no_key_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().join("id")).unwrap();
        assert!(needs_passphrase(&path).unwrap_err().contains("No such file"));
        fs_err::write(&path, "hello").unwrap();
        assert!(needs_passphrase(&path).unwrap_err().contains("no private key"));
    }
}
