//! Why a manifest is not believed.

use jiff::Timestamp;

/// A manifest that is not believed.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {refusal}")]
pub struct ManifestError {
    /// Which, by its name on the mirror.
    pub file: String,
    /// The rule that it breaks.
    pub refusal: ManifestRefusal,
}

/// Each rule that a manifest can break.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum ManifestRefusal {
    /// Longer than it may be.
    #[error("longer than the {limit} bytes that it may have")]
    TooLarge {
        /// Bytes.
        limit: u64,
    },
    /// No signed manifest at all.
    #[error("not a signed manifest: {0}")]
    NotAManifest(String),
    /// Something else than what belongs under this name.
    #[error("a manifest of type `{found}`, where `{wanted}` belongs")]
    WrongType {
        /// What it says.
        found: String,
        /// What is needed.
        wanted: &'static str,
    },
    /// A format of the future.
    #[error("written to version `{0}` of the manifest format; this dmup knows 0.1.0")]
    SpecVersion(String),
    /// A key or signature of a kind that we do not know.
    #[error(
        "key {key} is of type `{keytype}` with scheme `{scheme}`; only rsa with rsassa-pss-sha256 is accepted"
    )]
    UnknownAlgorithm {
        /// Its id.
        key: String,
        /// What it says.
        keytype: String,
        /// What it says.
        scheme: String,
    },
    /// A key that cannot be used.
    #[error("key {key} cannot be used: {why}")]
    BadKey {
        /// Its id.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// A threshold that nobody, or everybody, reaches.
    #[error("the role {role} asks for {threshold} signatures of {keys} keys")]
    BadThreshold {
        /// Whose.
        role: String,
        /// Signatures needed.
        threshold: u64,
        /// Keys there are.
        keys: usize,
    },
    /// One key signs twice.
    #[error("key {0} signs more than once")]
    SignedTwice(String),
    /// A signature of a known key does not fit.
    #[error(
        "the signature of key {key} does not fit: altered on the way, or signed with another key"
    )]
    BadSignature {
        /// Its id.
        key: String,
    },
    /// Too few of the keys that count have signed.
    #[error("signed by {good} of the trusted keys of {role}, {needed} are needed")]
    TooFewSignatures {
        /// Whose keys count.
        role: String,
        /// Good ones.
        good: usize,
        /// The threshold.
        needed: usize,
    },
    /// Past its date.
    #[error("expired at {0}")]
    Expired(Timestamp),
    /// The manifest that names the keys is past its date.
    #[error("its keys are named by {by}, which expired at {since}")]
    KeysExpired {
        /// Which.
        by: &'static str,
        /// Since when.
        since: Timestamp,
    },
    /// An older one than what was seen before.
    #[error(
        "version {offered} is older than version {known}, which was seen before (a replay, or a mirror that was set back)"
    )]
    RolledBack {
        /// Seen before.
        known: u64,
        /// Now.
        offered: u64,
    },
    /// The next root must be the next one.
    #[error("root version {offered}, where {wanted} must follow")]
    RootGap {
        /// The one after ours.
        wanted: u64,
        /// What it says.
        offered: u64,
    },
    /// Roots without end.
    #[error("more than {0} new roots at once")]
    TooManyRoots(usize),
    /// Other bytes than those that were promised.
    #[error("its SHA-256 is {found}, {by} promises {promised}")]
    OtherHash {
        /// Who promises.
        by: &'static str,
        /// What.
        promised: String,
        /// What it is.
        found: String,
    },
    /// Another version than the one that was promised: parts of two editions of a mirror.
    #[error("version {found}, but the snapshot promises {promised} (parts of two editions?)")]
    OtherVersion {
        /// By the snapshot.
        promised: u64,
        /// In the file.
        found: u64,
    },
    /// Not what it should be about.
    #[error("about component `{found}`, not `{wanted}`")]
    OtherComponent {
        /// In the file.
        found: String,
        /// Asked for.
        wanted: String,
    },
    /// A name, date or hash that cannot be one.
    #[error("{what} `{given}` cannot be one: {why}")]
    BadField {
        /// Which.
        what: &'static str,
        /// As given, shortened.
        given: String,
        /// The rule.
        why: &'static str,
    },
    /// What is looked for is not listed.
    #[error("does not list {0}")]
    NotListed(String),
}

impl ManifestRefusal {
    pub(super) fn in_file(self, file: impl Into<String>) -> ManifestError {
        ManifestError { file: file.into(), refusal: self }
    }

    pub(super) fn bad(what: &'static str, given: &str, why: &'static str) -> Self {
        // Foreign text goes to a terminal.
        let given = given.chars().take(80).map(|c| if c.is_control() { '?' } else { c }).collect();
        Self::BadField { what, given, why }
    }
}
