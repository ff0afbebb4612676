//! The key pair that opens a cluster's hosts.
//!
//! TiUP makes RSA 4096 in `id_rsa` and `id_rsa.pub`. We read those, and make Ed25519 under the same
//! names in OpenSSH's format, which TiUP (Go's x/crypto/ssh) and `ssh -i` take by content, not by name.

use camino::Utf8Path;
use ssh_key::private::Ed25519Keypair;
use ssh_key::{LineEnding, PrivateKey};

use crate::StateError;
use crate::files::{make_dir, read_text, write_whole};

const KEY_BYTES: u64 = 64 << 10;

/// The two halves.
#[derive(Clone, Eq, PartialEq)]
pub struct KeyPair {
    /// Opens the hosts; a PEM text.
    pub private: String,
    /// What hosts must let in; one line without its break.
    pub public: String,
}

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyPair")
            .field("private", &"‹redacted›")
            .field("public", &self.public)
            .finish()
    }
}

pub(crate) fn ensure(
    private_path: &Utf8Path,
    public_path: &Utf8Path,
) -> Result<KeyPair, StateError> {
    match (read_text(private_path, KEY_BYTES)?, read_text(public_path, KEY_BYTES)?) {
        (Some(private), Some(public)) => {
            Ok(KeyPair { private, public: public.trim_end().to_owned() })
        }
        (None, Some(_)) => Err(StateError::BadFile {
            path: private_path.to_owned(),
            why: "is missing, but its public half is there".to_owned(),
        }),
        (Some(_), None) => Err(StateError::BadFile {
            path: public_path.to_owned(),
            why:
                "is missing, but its private half is there: `ssh-keygen -y` makes one of the other"
                    .to_owned(),
        }),
        (None, None) => {
            let pair = generate()
                .map_err(|why| StateError::BadFile { path: private_path.to_owned(), why })?;
            if let Some(dir) = private_path.parent() {
                make_dir(dir, 0o700)?;
            }
            // The private half last: a pair without it is refused above, not taken for whole.
            write_whole(public_path, format!("{}\n", pair.public).as_bytes(), 0o600)?;
            write_whole(private_path, pair.private.as_bytes(), 0o600)?;
            Ok(pair)
        }
    }
}

fn generate() -> Result<KeyPair, String> {
    let mut seed = [0_u8; 32];
    getrandom::fill(&mut seed).map_err(|error| format!("no randomness for a new key: {error}"))?;
    let key = PrivateKey::from(Ed25519Keypair::from_seed(&seed));
    let encoded = |error: ssh_key::Error| format!("encode a new key: {error}");
    Ok(KeyPair {
        private: key.to_openssh(LineEnding::LF).map_err(encoded)?.to_string(),
        public: key.public_key().to_openssh().map_err(encoded)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_pair_is_readable_and_its_halves_belong_together() {
        let pair = generate().unwrap();
        let private = PrivateKey::from_openssh(&pair.private).unwrap();
        assert_eq!(private.public_key().to_openssh().unwrap(), pair.public);
        assert!(pair.public.starts_with("ssh-ed25519 "));
        assert!(!format!("{pair:?}").contains("PRIVATE"));
    }
}
