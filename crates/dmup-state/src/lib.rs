//! What the control machine remembers: the folders of `TIUP_HOME/storage/dm`, shared with TiUP.
//!
//! ```text
//! <profile>/clusters/<name>/meta.yaml            the record; its existence is the cluster's
//!                          /backup/              earlier records
//!                          /ssh/id_rsa{,.pub}    opens the hosts
//!                          /tls/ /config-cache/ /patch/
//!                          /dmup/                ours: lock, runs, records
//!          /packages/<component>-<version>-<os>-<arch>.tar.gz
//!          /audit/<id>                           one file per command
//! ```
//!
//! Files of TiUP keep its names, formats and bytes, so that either tool can go on where the other
//! stopped; files of ours lie where TiUP ignores them. Every write is to a new file that is flushed
//! and then renamed over the old one: a reader, or a machine that loses power, finds the old or the
//! new content. Everything read is bounded. No network; the clock is an argument.
//!
//! Facts: TiUP 1.16.5, pkg/cluster/spec/{`spec_manager`,profile}.go, pkg/cluster/audit.

mod audit;
mod backup;
mod base52;
mod certificates;
mod cluster;
mod error;
mod files;
mod keys;
mod lock;
mod patch;
mod profile;

pub use audit::{AuditEntry, AuditLog, AuditMark};
pub use backup::Backup;
pub use certificates::{Authority, Credentials};
pub use cluster::Cluster;
pub use error::StateError;
pub use keys::{KeyPair, Rotation};
pub use lock::ClusterLock;
pub use profile::{ListedCluster, Profile};
