//! What packages are of: the roles of a cluster, and the exporters that stand beside them.

use std::fmt;

use crate::instance::Role;

/// Which of the two exporters of a machine.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum ExporterKind {
    /// Tells of the machine itself.
    Node,
    /// Tries whether others answer.
    Blackbox,
}

impl ExporterKind {
    /// Both, in TiUP's order of starting.
    pub const ALL: [Self; 2] = [Self::Node, Self::Blackbox];

    /// TiUP's word: the component's name, and the first part of its unit's.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node_exporter",
            Self::Blackbox => "blackbox_exporter",
        }
    }
}

impl fmt::Display for ExporterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Something that a mirror has packages of.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Component {
    /// Of DM or its monitoring.
    Role(Role),
    /// Beside them on every machine; nothing of DM.
    Exporter(ExporterKind),
}

impl Component {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        let roles = Role::ALL.into_iter().map(Self::Role);
        roles.chain(ExporterKind::ALL.into_iter().map(Self::Exporter))
    }

    /// Its name on a mirror.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Role(role) => role.as_str(),
            Self::Exporter(kind) => kind.as_str(),
        }
    }

    /// Where its executable may be in its package, and below `bin`: the usual place first.
    pub fn binaries(self) -> Vec<&'static str> {
        match self {
            Self::Role(role) => vec![role.binary()],
            // Older packages have it at the top.
            Self::Exporter(ExporterKind::Node) => {
                vec!["node_exporter/node_exporter", "node_exporter"]
            }
            Self::Exporter(ExporterKind::Blackbox) => {
                vec!["blackbox_exporter/blackbox_exporter", "blackbox_exporter"]
            }
        }
    }
}

impl From<Role> for Component {
    fn from(role: Role) -> Self {
        Self::Role(role)
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
