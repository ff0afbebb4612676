//! What a mirror signs, and when it is believed.
//!
//! ```text
//! root ──► timestamp ──(hash)──► snapshot ──(versions, lengths)──► index ──(owner's keys)──► component ──(hash)──► package
//!   │ old and new keys
//!   └► next root
//! ```
//!
//! In: bytes from a mirror or a cache, and what time it is. Out: a typed manifest, or a [`ManifestError`] that says
//! which file breaks which rule. Nothing is fetched, stored or decided here.
//!
//! Functions `known_…` read back what was accepted once: signatures count, dates do not. Functions `next_…` are for what a
//! mirror offers: also dates, hashes, promised versions, and never older than what is known.
//!
//! Signatures are RSA-PSS with SHA-256 over the bytes of `signed` as they stand in the file; the salt is as long as the
//! key allows (TiUP 1.16.5: 222 bytes), so any length is taken.
//! Sources: TiUP doc/design/manifest.md, pkg/repository/v1manifest; checked against the manifests in its test data.

mod chain;
mod component;
mod document;
mod every_manifest;
mod keys;
mod names;
mod refusal;

#[cfg(test)]
mod tests;

pub use chain::{Index, Root, Snapshot, TimestampManifest};
pub use component::{ComponentManifest, ListedPackage};
pub use document::limits;
#[doc(hidden)]
pub use every_manifest::read_as_every_manifest;
pub use names::{ComponentId, FileName};
pub use refusal::{ManifestError, ManifestRefusal};
