//! Where packages come from: TiUP's mirrors, what was believed of them before, and the folder of packages.
//!
//! ```text
//! Source ──bytes──► trust ──► TIUP_HOME/manifests     (what is believed is kept, for replays and for offline)
//!    │ package                     │ hash
//!    └────────► storage/dm/packages ◄┘
//! ```
//!
//! In: an address, `TIUP_HOME`, and what is wanted. Out: the path of a package whose hash a trusted key vouches for, or what could
//! not be compared and why. Files lie where TiUP keeps them, and either tool reads what the other wrote
//! (TiUP pkg/repository, pkg/cluster/operation/download.go). Asynchronous, as it may wait for a network.

mod address;
mod repository;
mod source;
mod store;

#[cfg(test)]
mod tests;

pub use address::address;
pub use repository::{Obtained, Repository, Version, Wanted};
pub use source::{Source, SourceError, SourceProblem};
pub use store::{ManifestStore, MirrorError};
