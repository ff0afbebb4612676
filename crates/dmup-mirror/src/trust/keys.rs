//! Public keys, their ids, and signatures.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dmup_core::digest::Digest;
use rsa::RsaPublicKey;
use rsa::pkcs8::DecodePublicKey;
use rsa::pss::{Signature, VerifyingKey};
use rsa::sha2::Sha256;
use rsa::signature::Verifier;
use rsa::traits::PublicKeyParts;
use serde::{Deserialize, Serialize};

use super::document::SignatureEntry;
use super::refusal::ManifestRefusal;

/// Smaller keys are no longer safe; TiUP makes 2048.
const SMALLEST_BITS: usize = 2048;
/// Larger ones only cost time: a mirror could make us compute for minutes.
const LARGEST_BITS: usize = 4096;
/// Keys of one role.
const MOST_KEYS: usize = 64;

/// A key as manifests have it. The order of the fields is that of canonical JSON.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct KeyEntry {
    keytype: String,
    keyval: KeyValue,
    scheme: String,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct KeyValue {
    public: String,
}

/// Who may sign something, and how many must.
#[derive(Clone, Debug)]
pub(super) struct Signers {
    role: String,
    keys: BTreeMap<String, VerifyingKey<Sha256>>,
    threshold: usize,
}

impl Signers {
    pub(super) fn new(
        role: impl Into<String>,
        entries: &BTreeMap<String, KeyEntry>,
        threshold: u64,
    ) -> Result<Self, ManifestRefusal> {
        let role = role.into();
        let count = usize::try_from(threshold).unwrap_or(usize::MAX);
        if count == 0 || count > entries.len() || entries.len() > MOST_KEYS {
            return Err(ManifestRefusal::BadThreshold { role, threshold, keys: entries.len() });
        }
        let mut keys = BTreeMap::new();
        let mut moduli = BTreeSet::new();
        for (id, entry) in entries {
            let key = parse(id, entry)?;
            // One key under two ids would count twice.
            if !moduli.insert(key.n_bytes()) {
                let why = "the same key is there under another id".to_owned();
                return Err(ManifestRefusal::BadKey { key: short(id), why });
            }
            keys.insert(id.clone(), VerifyingKey::new_with_auto_salt_len(key));
        }
        Ok(Self { role, keys, threshold: count })
    }

    /// Signatures of unknown keys do not count, one bad signature of a known key spoils all (TiUP's rules).
    pub(super) fn check(
        &self,
        signed: &[u8],
        signatures: &[SignatureEntry],
    ) -> Result<(), ManifestRefusal> {
        let mut seen = BTreeSet::new();
        let mut good = 0;
        for SignatureEntry { keyid, sig } in signatures {
            if !seen.insert(keyid) {
                return Err(ManifestRefusal::SignedTwice(short(keyid)));
            }
            let Some(key) = self.keys.get(keyid) else { continue };
            let bad = || ManifestRefusal::BadSignature { key: short(keyid) };
            let bytes = STANDARD.decode(sig).map_err(|_| bad())?;
            let signature = Signature::try_from(bytes.as_slice()).map_err(|_| bad())?;
            key.verify(signed, &signature).map_err(|_| bad())?;
            good += 1;
        }
        if good < self.threshold {
            let needed = self.threshold;
            return Err(ManifestRefusal::TooFewSignatures {
                role: self.role.clone(),
                good,
                needed,
            });
        }
        Ok(())
    }
}

fn parse(id: &str, entry: &KeyEntry) -> Result<RsaPublicKey, ManifestRefusal> {
    if entry.keytype != "rsa" || entry.scheme != "rsassa-pss-sha256" {
        return Err(ManifestRefusal::UnknownAlgorithm {
            key: short(id),
            keytype: short(&entry.keytype),
            scheme: short(&entry.scheme),
        });
    }
    let bad = |why: String| ManifestRefusal::BadKey { key: short(id), why };
    let canonical = serde_json::to_vec(entry).map_err(|error| bad(error.to_string()))?;
    if Digest::of(&canonical).as_str() != id {
        return Err(bad("its id is not its hash".to_owned()));
    }
    let key = RsaPublicKey::from_public_key_pem(&entry.keyval.public)
        .map_err(|error| bad(error.to_string()))?;
    let bits = key.n().bit_width_vartime() as usize;
    if (SMALLEST_BITS..=LARGEST_BITS).contains(&bits) {
        Ok(key)
    } else {
        Err(bad(format!("it has {bits} bits, {SMALLEST_BITS} to {LARGEST_BITS} are accepted")))
    }
}

/// Foreign text, fit to be shown.
fn short(text: &str) -> String {
    text.chars().take(16).map(|c| if c.is_control() { '?' } else { c }).collect()
}
