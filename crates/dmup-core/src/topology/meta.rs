//! `meta.yaml`: the record of a deployed cluster, shared with TiUP.
//!
//! Keys in order: `user`, `dm_version`, `topology`. Unknown keys are ignored on reading and gone
//! after writing, as TiUP does it; so nothing of ours goes in there.

use crate::ids::UserName;
use crate::instance::Instance;
use crate::version::DmVersion;

use super::error::TopologyError;
use super::field::{Field, Unknown, entries_of};
use super::spec::Topology;
use super::yaml::{self, Value};

/// A deployed cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Meta {
    /// Deploy user.
    pub user: UserName,
    /// Release of DM that was deployed or upgraded to; a hotfix does not change it.
    pub version: DmVersion,
    /// What was deployed.
    pub topology: Topology,
}

impl Meta {
    /// Reads the text of a `meta.yaml`.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, with its place.
    pub fn parse(text: &str) -> Result<Self, TopologyError> {
        let root = yaml::parse(text)?;
        entries_of(&root, "meta.yaml", &[], Unknown::Ignore)?;
        let required = |key: &str| match root.entry(key) {
            Some(node) if !node.is_null() => Ok(node),
            _ => Err(TopologyError::new(format!("`{key}` is missing")).at(root.place)),
        };
        let (user, version, topology) =
            (required("user")?, required("dm_version")?, required("topology")?);
        let bad = |node: &yaml::Node| {
            let place = node.place;
            move |bad: crate::ids::BadName| TopologyError::new(bad.to_string()).at(place)
        };
        Ok(Self {
            user: UserName::new(user.text()).map_err(bad(user))?,
            version: version.text().parse().map_err(bad(version))?,
            topology: Topology::from_node(topology, Unknown::Ignore)?,
        })
    }

    /// The bytes that TiUP would write.
    pub fn render(&self) -> String {
        yaml::to_text(&Value::Map(vec![
            ("user".to_owned(), Value::Text(self.user.to_string())),
            ("dm_version".to_owned(), Value::Text(self.version.to_string())),
            ("topology".to_owned(), self.topology.write()),
        ]))
    }

    /// Every instance, in TiUP's order of starting.
    pub fn instances(&self) -> Vec<Instance> {
        self.topology.instances()
    }
}
