//! The folder that TiUP keeps for DM: all clusters, packages, and the log of commands.

use std::io::ErrorKind;

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::ids::ClusterName;
use dmup_core::topology::Meta;
use fs_err as fs;

use crate::{AuditLog, Cluster, StateError};

/// `<TIUP_HOME>/storage/dm`. Where that is comes from the environment, so from the caller.
#[derive(Clone, Debug)]
pub struct Profile {
    root: Utf8PathBuf,
}

/// A cluster of this control machine; its record may be broken.
#[derive(Debug)]
pub struct ListedCluster {
    /// Which one.
    pub cluster: Cluster,
    /// Its record.
    pub meta: Result<Meta, StateError>,
}

impl Profile {
    /// The profile in this folder, which need not exist yet.
    pub fn at(root: impl Into<Utf8PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder.
    pub fn root(&self) -> &Utf8Path {
        &self.root
    }

    /// The cluster of this name, whether or not it exists.
    pub fn cluster(&self, name: &ClusterName) -> Cluster {
        Cluster::at(name.clone(), self.root.join("clusters").join(name.as_str()))
    }

    /// The cluster of this name and its record.
    ///
    /// # Errors
    ///
    /// [`StateError::NoCluster`] names all that there are.
    pub fn open(&self, name: &ClusterName) -> Result<(Cluster, Meta), StateError> {
        let cluster = self.cluster(name);
        match cluster.meta() {
            Ok(meta) => Ok((cluster, meta)),
            Err(StateError::NoCluster { name, .. }) => {
                let known = self.names()?.iter().map(ToString::to_string).collect();
                Err(StateError::NoCluster { name, known })
            }
            Err(error) => Err(error),
        }
    }

    /// Every cluster, by name.
    ///
    /// # Errors
    ///
    /// Only if the folder cannot be read; a broken record is in the answer.
    pub fn clusters(&self) -> Result<Vec<ListedCluster>, StateError> {
        let names = self.names()?;
        Ok(names
            .iter()
            .map(|name| {
                let cluster = self.cluster(name);
                ListedCluster { meta: cluster.meta(), cluster }
            })
            .collect())
    }

    fn names(&self) -> Result<Vec<ClusterName>, StateError> {
        let dir = self.root.join("clusters");
        let attempt = || StateError::system(format!("list clusters in {dir}"));
        let entries = match fs::read_dir(dir.as_std_path()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(attempt()(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(attempt())?;
            let name = entry.file_name().to_str().and_then(|name| ClusterName::new(name).ok());
            if let Some(name) = name
                && self.cluster(&name).exists()
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Where the package of a component lies once it was downloaded.
    pub fn package_path(
        &self,
        component: &str,
        version: &str,
        os: &str,
        arch: &str,
    ) -> Utf8PathBuf {
        self.root.join("packages").join(format!("{component}-{version}-{os}-{arch}.tar.gz"))
    }

    /// The log of commands.
    pub fn audit(&self) -> AuditLog {
        AuditLog::at(self.root.join("audit"))
    }
}
