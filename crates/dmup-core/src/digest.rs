//! Builds, by content.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::ids::BadName;

/// The SHA-256 of a file or a stream: 64 lower-case hex characters.
///
/// A binary's digest is the identity of a build from the moment the package is opened.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// Checks and wraps 64 lower-case hex characters.
    ///
    /// # Errors
    ///
    /// [`BadName`] if they are not.
    pub fn new(hex: impl Into<String>) -> Result<Self, BadName> {
        let given = hex.into();
        let fits = given.len() == 64
            && given.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if fits {
            Ok(Self(given))
        } else {
            Err(BadName { given, what: "SHA-256", why: "it must be 64 lower-case hex digits" })
        }
    }

    /// Hashes bytes at hand.
    pub fn of(bytes: &[u8]) -> Self {
        Self(hex::encode(Sha256::digest(bytes)))
    }

    /// Takes the output of a hasher that was fed elsewhere.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(hex::encode(bytes))
    }

    /// All 64 characters, for comparing and for paths.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    /// Shows the first 12 characters; use [`Digest::as_str`] where identity matters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0[..12])
    }
}

impl TryFrom<String> for Digest {
    type Error = BadName;
    fn try_from(text: String) -> Result<Self, BadName> {
        Self::new(text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}
