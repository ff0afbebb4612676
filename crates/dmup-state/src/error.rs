//! What can be wrong with what we remember.

use std::io;

use camino::Utf8PathBuf;
use dmup_core::topology::TopologyError;

/// A file or folder of the control machine that is not as it must be.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// There is no cluster of that name.
    #[error("dm cluster `{name}` not exists{}", known_clusters(.known))]
    NoCluster {
        /// As asked for.
        name: String,
        /// All that there are.
        known: Vec<String>,
    },
    /// A cluster of that name exists, but must not.
    #[error("cluster name `{name}` is taken: {path} exists")]
    ClusterExists {
        /// As asked for.
        name: String,
        /// Its record.
        path: Utf8PathBuf,
    },
    /// `meta.yaml` is there but makes no sense.
    #[error("{path}: {error}")]
    BadMeta {
        /// Which file.
        path: Utf8PathBuf,
        /// Its text, to show the place.
        text: String,
        /// What is wrong with it.
        error: Box<TopologyError>,
    },
    /// A file is not what it should be.
    #[error("{path}: {why}")]
    BadFile {
        /// Which file.
        path: Utf8PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another process works on the cluster.
    #[error("cluster `{cluster}` is locked by another dmup: {holder}")]
    Locked {
        /// Which cluster.
        cluster: String,
        /// What the holder says of itself.
        holder: String,
    },
    /// TiUP is half-way through a scale-out.
    #[error("cluster `{cluster}` is locked by an unfinished scale-out of TiUP: {path} exists")]
    ScaleOutPending {
        /// Which cluster.
        cluster: String,
        /// TiUP's lock file.
        path: Utf8PathBuf,
    },
    /// The system refused; the text has the path.
    #[error("{attempted}")]
    System {
        /// A verb phrase.
        attempted: String,
        /// What the system said.
        source: io::Error,
    },
}

impl StateError {
    pub(crate) fn system(attempted: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let attempted = attempted.into();
        move |source| Self::System { attempted, source }
    }
}

fn known_clusters(known: &[String]) -> String {
    if known.is_empty() { String::new() } else { format!(" (there are: {})", known.join(", ")) }
}
