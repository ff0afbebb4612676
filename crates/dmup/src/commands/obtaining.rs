//! Official packages: those at hand, else from the mirror; and what to say about it.

use std::collections::{BTreeMap, BTreeSet};

use camino::Utf8PathBuf;
use dmup_core::instance::Role;
use dmup_mirror::mirror::{MirrorError, Repository, SourceProblem, Version, Wanted};
use dmup_mirror::trust::{ComponentId, FileName, ManifestRefusal};

use crate::context::Context;
use crate::failure::chain;
use crate::progress::Progress;

/// Obtains packages one after the other.
pub(crate) struct Obtaining<'a> {
    pub(crate) context: &'a Context,
    /// Which one is taken where no version is named.
    newest: Version,
    repository: Repository,
    /// Files by what is to be said of them, for it is often the same.
    warnings: BTreeMap<String, Vec<String>>,
    /// What to do about what failed so far.
    pub(crate) hints: BTreeSet<String>,
    /// Something failed that a package at hand would help with: all but a mirror that says it has no such package.
    pub(crate) is_short_of_files: bool,
}

impl<'a> Obtaining<'a> {
    pub(crate) fn new(context: &'a Context) -> Self {
        let surroundings = &context.surroundings;
        let repository = Repository::new(
            surroundings.mirror.as_deref(),
            &surroundings.tiup_home,
            &context.profile.root().join("packages"),
            jiff::Timestamp::now(),
        );
        Self {
            context,
            newest: Version::Newest,
            repository,
            warnings: BTreeMap::new(),
            hints: BTreeSet::new(),
            is_short_of_files: false,
        }
    }

    /// For whoever wants what is new: the mirror is asked, whatever is at hand.
    pub(crate) fn latest(context: &'a Context) -> Self {
        Self { newest: Version::Latest, ..Self::new(context) }
    }

    /// Of Alertmanager the newest is taken unless there is one of that very version (TiUP's rule).
    ///
    /// The error says what was looked for and why it cannot be had.
    pub(crate) async fn package(
        &mut self,
        component: Role,
        version: Version,
        os: &str,
        arch: &str,
        progress: &Progress,
    ) -> Result<Utf8PathBuf, String> {
        let path_of =
            |word: &str| self.context.profile.package_path(component.as_str(), word, os, arch);
        let takes_newest = component == Role::Alertmanager;
        let version = match version {
            Version::Exact(exact) if !takes_newest || path_of(exact.as_str()).exists() => {
                Version::Exact(exact)
            }
            Version::Exact(_) | Version::Newest | Version::Latest => self.newest.clone(),
        };
        let looked_for = match &version {
            Version::Exact(exact) => path_of(exact.as_str()),
            Version::Newest | Version::Latest => path_of("<version>"),
        };
        let wanted = Wanted {
            component: ComponentId::new(component.as_str()).map_err(|error| error.to_string())?,
            version,
            os: os.to_owned(),
            arch: arch.to_owned(),
        };
        let mut shown = u64::MAX;
        let mut received = |file: &FileName, count: u64, all: u64| {
            let megabytes = count >> 20;
            if megabytes != shown {
                shown = megabytes;
                let of = if all == 0 { String::new() } else { format!(" of {}", all >> 20) };
                progress.under_way(&format!("download {file}: {megabytes}{of} MiB"));
            }
        };
        match self.repository.obtain(&wanted, &mut received).await {
            Ok(obtained) => {
                let name = obtained.path.file_name().unwrap_or_default().to_owned();
                if obtained.fetched_bytes > 0 {
                    let bytes = obtained.fetched_bytes;
                    progress.say(&format!("+ Downloaded {name} ({bytes} bytes)"));
                }
                for warning in obtained.warnings {
                    self.warnings.entry(warning).or_default().push(name.clone());
                }
                Ok(obtained.path)
            }
            Err(error) => {
                self.hints.extend(self.hint_of(&error));
                self.is_short_of_files |= !is_not_listed(&error);
                Err(format!("{component}: looked for {looked_for}: {}", chain(&*error)))
            }
        }
    }

    /// What the operator should know of packages that are used nevertheless.
    pub(crate) fn say_warnings(&mut self) {
        for (what, files) in std::mem::take(&mut self.warnings) {
            self.context.printer.talk(format_args!("warning: {}: {what}", files.join(", ")));
        }
    }

    fn hint_of(&self, error: &MirrorError) -> Option<String> {
        let home = &self.context.surroundings.tiup_home;
        match error {
            MirrorError::NoRoot { anchor, .. } => Some(format!(
                "to download, say whom to trust: `tiup mirror set ADDRESS`, or put a root.json that you trust at {anchor}"
            )),
            MirrorError::Source(error) if matches!(error.problem, SourceProblem::Untrusted) => {
                Some("trust its authority: `SSL_CERT_FILE=FILE`, or add it to the certificates of this machine".to_owned())
            }
            MirrorError::Source(_) => {
                Some("`TIUP_MIRRORS=ADDRESS_OR_FOLDER` names another mirror".to_owned())
            }
            MirrorError::Manifest { source, .. } => hint_of_refusal(&source.refusal, home.as_str()),
            MirrorError::Altered { path, source } => self.hint_of(source).or_else(|| {
                Some(format!("find out who changed {path}; once it is gone, it is fetched again"))
            }),
            MirrorError::BadRoot { .. }
            | MirrorError::Store { .. }
            | MirrorError::Settings { .. } => None,
        }
    }
}

/// The mirror was asked and believed; it only does not have it.
fn is_not_listed(error: &MirrorError) -> bool {
    matches!(
        error,
        MirrorError::Manifest { source, .. } if matches!(source.refusal, ManifestRefusal::NotListed(_))
    )
}

#[expect(clippy::wildcard_enum_match_arm, reason = "most refusals have only one cause: the mirror")]
fn hint_of_refusal(refusal: &ManifestRefusal, home: &str) -> Option<String> {
    match refusal {
        ManifestRefusal::TooFewSignatures { .. } | ManifestRefusal::BadSignature { .. } => {
            Some(format!(
                "if this is another mirror than before: `tiup mirror set ADDRESS`, or put its root.json, from somebody you trust, at {home}/bin/root.json and remove {home}/manifests"
            ))
        }
        ManifestRefusal::NotListed(_) => Some(
            "take a version that the mirror has; one of your own is used if it lies at the path that was looked for".to_owned(),
        ),
        ManifestRefusal::Expired(_) | ManifestRefusal::KeysExpired { .. } => Some(
            "if the clock of this machine is right, the mirror is no longer kept up".to_owned(),
        ),
        _ => None,
    }
}
