//! What commands of TiUP leave when they do not come to their end, and what to do about each.
//!
//! TiUP keeps no journal: a `patch`, `scale-out` or `rotatessh` that was killed shows only in what it made first and
//! would have used or taken away last. In: what lies in the cluster's folder and on its hosts. Out: [`Unfinished`], each a
//! sentence with a hint. Facts: tiup pkg/cluster/manager/{patch,scale_out,rotate_ssh}.go, 1.16.5.

use camino::Utf8PathBuf;
use serde::Serialize;

use crate::ids::InstanceId;
use crate::instance::{Instance, Role};
use crate::inventory::{Inventory, LeftoverKind};

/// What lies in a cluster's folder, as far as it tells of commands that did not end.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Traces {
    /// `.scale-out.yaml`.
    pub scale_out: Option<Utf8PathBuf>,
    /// `patch/<component>-<hash>.tar.gz`.
    pub packages: Vec<Utf8PathBuf>,
    /// `patch/<component>.tar.gz`, and whether it leads to a file.
    pub links: Vec<(Utf8PathBuf, bool)>,
    /// `ssh/new`: a key that is on its way.
    pub next_key: Option<Utf8PathBuf>,
}

/// Half of something.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unfinished {
    /// TiUP's lock between the two stages of a scale-out.
    #[error(
        "{path} is there: a scale-out of TiUP has begun and not ended; `meta.yaml` may name nodes that were never started"
    )]
    ScaleOut {
        /// The lock.
        path: Utf8PathBuf,
    },
    /// Kept, but a scale-out does not find it.
    #[error(
        "{path} is kept, and no {role}.tar.gz leads to it: new instances of {role} get the official package"
    )]
    KeptWithoutLink {
        /// The package.
        path: Utf8PathBuf,
        /// For whom.
        role: Role,
    },
    /// A scale-out finds nothing there.
    #[error(
        "{path} leads to nothing: new instances get the official package, and TiUP says nothing of it"
    )]
    LinkWithoutPackage {
        /// The link.
        path: Utf8PathBuf,
    },
    /// Kept, and nobody has it.
    #[error(
        "{path} is kept for new instances of {role}, and none that is there is marked as patched: a hotfix that was taken back, or a `tiup dm patch --overwrite` that did not end"
    )]
    KeptForNobody {
        /// The link.
        path: Utf8PathBuf,
        /// For whom.
        role: Role,
    },
    /// Hosts may disagree on the key.
    #[error("{path} is there: a change of the login key has begun and not ended")]
    KeyOnItsWay {
        /// The new key.
        path: Utf8PathBuf,
    },
    /// Sent, and not taken away.
    #[error(
        "{instance} has a package in its bin, {path}: a `tiup dm patch` that was ended while it unpacked; other files there may be of either build"
    )]
    PackageInBin {
        /// Whose.
        instance: InstanceId,
        /// The package.
        path: Utf8PathBuf,
    },
}

impl Unfinished {
    /// A short name that does not change, for scripts.
    pub fn code(&self) -> &'static str {
        match self {
            Self::ScaleOut { .. } => "scale-out",
            Self::KeptWithoutLink { .. } => "kept-without-link",
            Self::LinkWithoutPackage { .. } => "link-without-package",
            Self::KeptForNobody { .. } => "kept-for-nobody",
            Self::KeyOnItsWay { .. } => "key-on-its-way",
            Self::PackageInBin { .. } => "package-in-bin",
        }
    }

    /// What can be done about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::ScaleOut { .. } => {
                "finish it with `tiup dm scale-out`, or remove the file and take off with `scale-in` what was never started"
            }
            Self::KeptWithoutLink { .. } | Self::LinkWithoutPackage { .. } => {
                "`patch --overwrite` with the hotfix that new instances shall have makes both anew; without one, remove the file"
            }
            Self::KeptForNobody { .. } => {
                "remove the link if new instances shall have the official package"
            }
            Self::KeyOnItsWay { .. } => "`rotatessh` goes on with it",
            Self::PackageInBin { .. } => {
                "`patch` with the package that shall be there, then remove the file"
            }
        }
    }
}

impl Serialize for Unfinished {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct as _;
        let mut object = serializer.serialize_struct("Unfinished", 3)?;
        object.serialize_field("code", self.code())?;
        object.serialize_field("text", &self.to_string())?;
        object.serialize_field("hint", self.hint())?;
        object.end()
    }
}

/// What the cluster's folder tells.
pub fn in_folder(traces: &Traces, instances: &[Instance]) -> Vec<Unfinished> {
    let mut found = Vec::new();
    found.extend(traces.scale_out.clone().map(|path| Unfinished::ScaleOut { path }));
    for role in Role::ALL {
        let link = format!("{role}.tar.gz");
        match traces.links.iter().find(|(path, _)| path.file_name() == Some(&link)) {
            Some((path, false)) => {
                found.push(Unfinished::LinkWithoutPackage { path: path.clone() });
            }
            Some((path, true)) => {
                let mut own = instances.iter().filter(|it| it.role == role).peekable();
                if own.peek().is_some() && !own.any(|it| it.patched) {
                    found.push(Unfinished::KeptForNobody { path: path.clone(), role });
                }
            }
            None => {
                let start = format!("{role}-");
                let kept = traces
                    .packages
                    .iter()
                    .find(|path| path.file_name().is_some_and(|name| name.starts_with(&start)));
                found.extend(kept.cloned().map(|path| Unfinished::KeptWithoutLink { path, role }));
            }
        }
    }
    found.extend(traces.next_key.clone().map(|path| Unfinished::KeyOnItsWay { path }));
    found
}

/// What the hosts tell. Builds that were half brought in are [`crate::builds`]'s.
pub fn on_hosts(inventory: &Inventory) -> Vec<Unfinished> {
    inventory
        .hosts
        .values()
        .flatten()
        .flat_map(|seen| &seen.leftovers)
        .filter(|it| it.kind == LeftoverKind::TiupUpload)
        .map(|it| Unfinished::PackageInBin { instance: it.instance.clone(), path: it.path.clone() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Topology;

    fn codes(traces: &Traces, patched: bool) -> Vec<&'static str> {
        let text = format!(
            "master_servers:\n  - host: h1\nworker_servers:\n  - host: h1\n    patched: {patched}\n"
        );
        let instances = Topology::parse(&text).unwrap().instances();
        in_folder(traces, &instances).iter().map(Unfinished::code).collect()
    }

    #[test]
    fn a_folder_without_halves_tells_nothing() {
        assert_eq!(codes(&Traces::default(), false), Vec::<&str>::new());
        let whole = Traces {
            packages: vec!["/c/patch/dm-worker-1234567.tar.gz".into()],
            links: vec![("/c/patch/dm-worker.tar.gz".into(), true)],
            ..Traces::default()
        };
        assert_eq!(codes(&whole, true), Vec::<&str>::new());
    }

    #[test]
    fn every_half_is_told_with_what_to_do() {
        let package = "/c/patch/dm-worker-1234567.tar.gz";
        let link = "/c/patch/dm-worker.tar.gz";
        let unlinked = Traces { packages: vec![package.into()], ..Traces::default() };
        assert_eq!(codes(&unlinked, true), ["kept-without-link"]);
        let dangling = Traces { links: vec![(link.into(), false)], ..Traces::default() };
        assert_eq!(codes(&dangling, true), ["link-without-package"]);
        let unmarked = Traces { links: vec![(link.into(), true)], ..unlinked };
        assert_eq!(codes(&unmarked, false), ["kept-for-nobody"]);
        let others = Traces {
            scale_out: Some("/c/.scale-out.yaml".into()),
            next_key: Some("/c/ssh/new".into()),
            ..Traces::default()
        };
        assert_eq!(codes(&others, false), ["scale-out", "key-on-its-way"]);
        // Of roles that the cluster does not have nobody will ever ask.
        let grafana =
            Traces { links: vec![("/c/patch/grafana.tar.gz".into(), true)], ..Traces::default() };
        assert_eq!(codes(&grafana, false), Vec::<&str>::new());
    }
}
