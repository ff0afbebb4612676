//! The form that all manifests share: signatures, and the bytes that they are about.

use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::keys::Signers;
use super::refusal::ManifestRefusal;

/// How long manifests may be at most, whatever a mirror promises.
pub mod limits {
    /// Of root manifests.
    pub const ROOT_BYTES: u64 = 1 << 20;
    /// Of the timestamp. TiUP takes 1 KiB; more signatures need more.
    pub const TIMESTAMP_BYTES: u64 = 16 << 10;
    /// Of snapshot, index and component manifests, if no less is promised.
    pub const MANIFEST_BYTES: u64 = 16 << 20;
}

/// A file as it is.
#[derive(Deserialize)]
pub(super) struct Document<'a> {
    pub(super) signatures: Vec<SignatureEntry>,
    #[serde(borrow)]
    signed: &'a RawValue,
}

#[derive(Deserialize)]
pub(super) struct SignatureEntry {
    pub(super) keyid: String,
    pub(super) sig: String,
}

/// What every `signed` begins with.
#[derive(Deserialize)]
struct Head {
    #[serde(rename = "_type")]
    kind: String,
    spec_version: String,
}

impl<'a> Document<'a> {
    pub(super) fn parse(bytes: &'a [u8], limit: u64) -> Result<Self, ManifestRefusal> {
        if bytes.len() as u64 > limit {
            return Err(ManifestRefusal::TooLarge { limit });
        }
        serde_json::from_slice(bytes).map_err(|error| not_one(&error))
    }

    /// The content, of which nothing is verified yet.
    pub(super) fn content<T: DeserializeOwned>(
        &self,
        wanted: &'static str,
    ) -> Result<T, ManifestRefusal> {
        let text = self.signed.get();
        let head: Head = serde_json::from_str(text).map_err(|error| not_one(&error))?;
        if head.kind != wanted {
            let found = head.kind.chars().filter(|c| !c.is_control()).take(40).collect();
            return Err(ManifestRefusal::WrongType { found, wanted });
        }
        if head.spec_version != "0.1.0" {
            let version = head.spec_version.chars().filter(|c| !c.is_control()).take(40).collect();
            return Err(ManifestRefusal::SpecVersion(version));
        }
        serde_json::from_str(text).map_err(|error| not_one(&error))
    }

    pub(super) fn check(&self, signers: &Signers) -> Result<(), ManifestRefusal> {
        signers.check(self.signed.get().as_bytes(), &self.signatures)
    }

    /// Signatures first: nothing of what nobody vouches for is looked at.
    pub(super) fn verified<T: DeserializeOwned>(
        bytes: &'a [u8],
        limit: u64,
        wanted: &'static str,
        signers: &Signers,
    ) -> Result<T, ManifestRefusal> {
        let document = Self::parse(bytes, limit)?;
        document.check(signers)?;
        document.content(wanted)
    }
}

fn not_one(error: &serde_json::Error) -> ManifestRefusal {
    // serde_json quotes what it found.
    let text = error.to_string().chars().filter(|c| !c.is_control()).take(200).collect();
    ManifestRefusal::NotAManifest(text)
}

/// `expires` of a manifest.
pub(super) fn date(text: &str) -> Result<Timestamp, ManifestRefusal> {
    text.parse().map_err(|_| ManifestRefusal::bad("date", text, "RFC 3339 is needed"))
}

/// Whether a manifest's own date is past.
pub(super) fn refuse_expired(expires: Timestamp, now: Timestamp) -> Result<(), ManifestRefusal> {
    if expires <= now { Err(ManifestRefusal::Expired(expires)) } else { Ok(()) }
}
