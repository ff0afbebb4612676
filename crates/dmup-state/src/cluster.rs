//! The folder of one cluster.

use std::io::ErrorKind;

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::ids::ClusterName;
use dmup_core::topology::Meta;
use dmup_core::unfinished::Traces;
use fs_err as fs;
use jiff::Zoned;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::files::{make_dir, read_text, sync_dir, write_whole};
use crate::keys::{Rotation, RotationFiles};
use crate::{Authority, ClusterLock, KeyPair, StateError, certificates, keys, patch};

/// Largest `meta.yaml` that is read; 10 000 instances take less.
const META_BYTES: u64 = 4 << 20;
/// Largest record of ours that is read.
const RECORD_BYTES: u64 = 16 << 20;

/// `<profile>/clusters/<name>`.
#[derive(Clone, Debug)]
pub struct Cluster {
    name: ClusterName,
    dir: Utf8PathBuf,
}

impl Cluster {
    pub(crate) fn at(name: ClusterName, dir: Utf8PathBuf) -> Self {
        Self { name, dir }
    }

    /// Its name.
    pub fn name(&self) -> &ClusterName {
        &self.name
    }

    /// Its folder.
    pub fn dir(&self) -> &Utf8Path {
        &self.dir
    }

    /// Its record.
    pub fn meta_path(&self) -> Utf8PathBuf {
        self.dir.join("meta.yaml")
    }

    /// Whether it has a record: that is what makes a cluster exist, for TiUP too.
    pub fn exists(&self) -> bool {
        self.meta_path().is_file()
    }

    /// Files of a cluster with TLS.
    pub fn tls_dir(&self) -> Utf8PathBuf {
        self.dir.join("tls")
    }

    /// Rendered files before they go to hosts; never read back.
    pub fn config_cache_dir(&self) -> Utf8PathBuf {
        self.dir.join("config-cache")
    }

    /// The key that opens its hosts.
    pub fn private_key_path(&self) -> Utf8PathBuf {
        self.dir.join("ssh").join("id_rsa")
    }

    /// What its hosts must let in.
    pub fn public_key_path(&self) -> Utf8PathBuf {
        self.dir.join("ssh").join("id_rsa.pub")
    }

    /// Our own folder, which TiUP ignores.
    pub fn own_dir(&self) -> Utf8PathBuf {
        self.dir.join("dmup")
    }

    /// One folder per run.
    pub fn runs_dir(&self) -> Utf8PathBuf {
        self.own_dir().join("runs")
    }

    /// Reads the record.
    ///
    /// # Errors
    ///
    /// [`StateError::NoCluster`], or [`StateError::BadMeta`] with the place.
    pub fn meta(&self) -> Result<Meta, StateError> {
        let path = self.meta_path();
        let Some(text) = read_text(&path, META_BYTES)? else {
            return Err(StateError::NoCluster { name: self.name.to_string(), known: Vec::new() });
        };
        Meta::parse(&text).map_err(|error| StateError::BadMeta {
            path,
            text,
            error: Box::new(error),
        })
    }

    /// Writes the record; the one before is kept in `backup`, under the name that TiUP gives it.
    ///
    /// # Errors
    ///
    /// The old record is untouched then.
    pub fn save_meta(&self, meta: &Meta, now: &Zoned) -> Result<(), StateError> {
        let path = self.meta_path();
        make_dir(&self.dir, 0o755)?;
        if let Some(before) = read_text(&path, META_BYTES)? {
            let backup = self.dir.join("backup");
            make_dir(&backup, 0o755)?;
            write_whole(
                &backup.join(format!("meta-{}.yaml", stamp(now))),
                before.as_bytes(),
                0o644,
            )?;
        }
        write_whole(&path, meta.render().as_bytes(), 0o644)
    }

    /// Refuses to go on when a record exists, as a new cluster must.
    ///
    /// # Errors
    ///
    /// [`StateError::ClusterExists`].
    pub fn refuse_existing(&self) -> Result<(), StateError> {
        if self.exists() {
            return Err(StateError::ClusterExists {
                name: self.name.to_string(),
                path: self.meta_path(),
            });
        }
        Ok(())
    }

    /// Refuses to go on while TiUP is half-way through a scale-out.
    ///
    /// # Errors
    ///
    /// [`StateError::ScaleOutPending`].
    pub fn refuse_pending_scale_out(&self) -> Result<(), StateError> {
        let path = self.dir.join(".scale-out.yaml");
        if path.exists() {
            return Err(StateError::ScaleOutPending { cluster: self.name.to_string(), path });
        }
        Ok(())
    }

    /// What commands that did not end have left here. Best effort: it is for notes.
    pub fn traces(&self) -> Traces {
        let there = |path: Utf8PathBuf| path.exists().then_some(path);
        let (links, packages) = patch::entries(&self.dir.join("patch"));
        Traces {
            scale_out: there(self.dir.join(".scale-out.yaml")),
            packages,
            links,
            next_key: there(self.next_private_key_path()),
        }
    }

    /// Makes the key pair that opens the hosts, or reads the one that is there.
    ///
    /// # Errors
    ///
    /// When the folder cannot be written, or half a pair lies there.
    pub fn ensure_keys(&self) -> Result<KeyPair, StateError> {
        keys::ensure(&self.private_key_path(), &self.public_key_path())
    }

    /// What its hosts let in, as one line; none if that was never made.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn public_key(&self) -> Result<Option<String>, StateError> {
        keys::public(&self.public_key_path())
    }

    /// The pair that a rotation is about to bring.
    pub fn next_private_key_path(&self) -> Utf8PathBuf {
        self.dir.join("ssh").join("new")
    }

    /// Begins to change the keys, or finds out how far a change that was begun has come.
    ///
    /// # Errors
    ///
    /// When the files cannot be read or written, or half a pair lies there.
    pub fn rotation(&self) -> Result<Rotation, StateError> {
        self.rotation_files().rotation()
    }

    /// Puts the next pair into use, which every host has let in. Returns the line that they must forget.
    ///
    /// # Errors
    ///
    /// When files cannot be written; [`Self::rotation`] says then how far it came.
    pub fn promote_keys(&self) -> Result<String, StateError> {
        self.rotation_files().promote()
    }

    /// Every host has forgotten the former key: the rotation is done.
    ///
    /// # Errors
    ///
    /// When our note of it cannot be removed.
    pub fn end_rotation(&self) -> Result<(), StateError> {
        self.rotation_files().end()
    }

    fn rotation_files(&self) -> RotationFiles {
        RotationFiles {
            private: self.private_key_path(),
            public: self.public_key_path(),
            next_private: self.next_private_key_path(),
            next_public: self.dir.join("ssh").join("new.pub"),
            former: self.own_dir().join("former_key.pub"),
        }
    }

    /// Makes what a cluster with TLS needs on this machine, or reads what is there: an authority, and the client's
    /// certificate signed by it, in [`tls_dir`](Self::tls_dir).
    ///
    /// # Errors
    ///
    /// When the folder cannot be written, or half a pair or something else lies there.
    pub fn ensure_authority(&self, now: &Zoned) -> Result<Authority, StateError> {
        certificates::ensure(&self.tls_dir(), self.name.as_str(), now)
    }

    /// Takes the cluster for this process; `holder` is what others are told.
    ///
    /// # Errors
    ///
    /// [`StateError::Locked`] with what the holder says of itself.
    pub fn lock(&self, holder: &str) -> Result<ClusterLock, StateError> {
        ClusterLock::take(&self.name, &self.own_dir(), holder)
    }

    /// What the dmup that has the local lock says of itself; none if nobody has it.
    ///
    /// # Errors
    ///
    /// When the lock file cannot be read.
    pub fn lock_holder(&self) -> Result<Option<String>, StateError> {
        ClusterLock::holder(&self.own_dir())
    }

    /// Takes the local lock from whoever has it. What that process still does on hosts only their leases stop.
    ///
    /// # Errors
    ///
    /// When the lock file cannot be removed.
    pub fn break_lock(&self) -> Result<(), StateError> {
        ClusterLock::break_it(&self.own_dir())
    }

    /// Makes the folder of a new run.
    ///
    /// # Errors
    ///
    /// When it exists already or cannot be made.
    pub fn new_run_dir(&self, run: &str) -> Result<Utf8PathBuf, StateError> {
        let runs = self.runs_dir();
        make_dir(&runs, 0o700)?;
        let dir = runs.join(run);
        fs::create_dir(dir.as_std_path())
            .map_err(StateError::system(format!("make folder {dir}")))?;
        sync_dir(&runs).map_err(StateError::system(format!("flush folder {runs}")))?;
        Ok(dir)
    }

    /// The names of all runs, oldest first as long as they begin with a time.
    ///
    /// # Errors
    ///
    /// When the folder cannot be read.
    pub fn runs(&self) -> Result<Vec<String>, StateError> {
        let dir = self.runs_dir();
        let attempt = || StateError::system(format!("list runs in {dir}"));
        let entries = match fs::read_dir(dir.as_std_path()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(attempt()(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(attempt())?;
            if entry.path().is_dir()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Reads a record of ours, `dmup/<name>.json`; none if there is none yet.
    ///
    /// # Errors
    ///
    /// [`StateError::BadFile`] if it does not have the form that is expected.
    pub fn read_record<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StateError> {
        let path = self.own_dir().join(format!("{name}.json"));
        let Some(text) = read_text(&path, RECORD_BYTES)? else { return Ok(None) };
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| StateError::BadFile { path, why: error.to_string() })
    }

    /// Writes a record of ours, `dmup/<name>.json`.
    ///
    /// # Errors
    ///
    /// The old one is untouched then.
    pub fn write_record<T: Serialize>(&self, name: &str, record: &T) -> Result<(), StateError> {
        let dir = self.own_dir();
        make_dir(&dir, 0o700)?;
        let path = dir.join(format!("{name}.json"));
        let mut text = serde_json::to_string_pretty(record)
            .map_err(|error| StateError::BadFile { path: path.clone(), why: error.to_string() })?;
        text.push('\n');
        write_whole(&path, text.as_bytes(), 0o600)
    }

    /// Keeps a copy of a rendered file, as TiUP does before it sends one. `name` is a file name of TiUP's.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn cache_config(&self, name: &str, content: &[u8]) -> Result<(), StateError> {
        let dir = self.config_cache_dir();
        make_dir(&dir, 0o755)?;
        write_whole(&dir.join(name), content, 0o600)
    }

    /// Keeps a hotfix package for instances of a component that are added later (`--overwrite`).
    /// It must be a gzip-compressed tar, as TiUP unpacks nothing else: whoever calls has looked. `digest` names the copy.
    ///
    /// # Errors
    ///
    /// When it cannot be copied, or the link to it not be made.
    pub fn keep_package(
        &self,
        component: &str,
        package: &Utf8Path,
        digest: &str,
    ) -> Result<Utf8PathBuf, StateError> {
        patch::keep(&self.dir.join("patch"), component, package, digest)
    }

    /// The package that was kept for a component, if there is one.
    pub fn kept_package(&self, component: &str) -> Option<Utf8PathBuf> {
        let path = self.dir.join("patch").join(format!("{component}.tar.gz"));
        path.is_file().then_some(path)
    }

    /// The file name of the package that is kept for a component, if its link is ours or TiUP's.
    pub fn kept_name(&self, component: &str) -> Option<String> {
        patch::leads_to(&self.dir.join("patch"), component)
    }

    /// Keeps another package of the folder for a component again, or none if that is not there any more; whether it is.
    /// The one that is kept now goes.
    ///
    /// # Errors
    ///
    /// When the link cannot be changed.
    pub fn keep_instead(&self, component: &str, name: Option<&str>) -> Result<bool, StateError> {
        patch::lead_back(&self.dir.join("patch"), component, name)
    }

    /// Forgets all kept packages, as an upgrade does.
    ///
    /// # Errors
    ///
    /// When the folder cannot be removed.
    pub fn forget_packages(&self) -> Result<(), StateError> {
        remove_tree(&self.dir.join("patch"))
    }

    /// Forgets the whole cluster: its record, keys, backups and runs.
    ///
    /// # Errors
    ///
    /// When the folder cannot be removed; then the record goes last, so that the cluster is still known.
    pub fn remove(&self) -> Result<(), StateError> {
        let attempt = || StateError::system(format!("remove {}", self.dir));
        let entries = match fs::read_dir(self.dir.as_std_path()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(attempt()(error)),
        };
        for entry in entries {
            let entry = entry.map_err(attempt())?;
            if entry.file_name() == "meta.yaml" {
                continue;
            }
            let is_dir = entry.file_type().map_err(attempt())?.is_dir();
            let removed = if is_dir {
                fs::remove_dir_all(entry.path())
            } else {
                fs::remove_file(entry.path())
            };
            removed.map_err(attempt())?;
        }
        remove_tree(&self.dir)
    }
}

fn remove_tree(dir: &Utf8Path) -> Result<(), StateError> {
    match fs::remove_dir_all(dir.as_std_path()) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(StateError::system(format!("remove {dir}"))(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Go's `RFC3339Nano`: no zeros at the end of the fraction, `Z` for UTC.
fn stamp(now: &Zoned) -> String {
    let zone =
        if now.offset().is_zero() { "Z".to_owned() } else { now.strftime("%:z").to_string() };
    format!("{}{zone}", now.strftime("%Y-%m-%dT%H:%M:%S%.f"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backups_are_named_as_go_writes_times() {
        let at = |text: &str| stamp(&text.parse::<Zoned>().unwrap());
        assert_eq!(
            at("2026-11-23T04:27:06.481997225+00:00[UTC]"),
            "2026-11-23T04:27:06.481997225Z"
        );
        assert_eq!(at("2026-04-10T09:08:07.1200+08:00[+08:00]"), "2026-04-10T09:08:07.12+08:00");
        assert_eq!(at("2026-04-10T09:08:07+08:00[+08:00]"), "2026-04-10T09:08:07+08:00");
    }
}
