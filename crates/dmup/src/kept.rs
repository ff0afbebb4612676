//! The hotfix that `patch --overwrite` keeps for instances to come, and that a rollback takes back with the rest.
//!
//! ```text
//! patch/<component>.tar.gz       leads to what new instances get (TiUP's, and TiUP reads it, too)
//! dmup/kept.json                 by component: what we made it lead to, its executable, and where it led before
//! dmup/runs/<id>/overwrite.*     until the run has ended: the package and what is in it, for whoever resumes the run
//! ```

use std::collections::BTreeMap;
use std::io::ErrorKind;

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::digest::Digest;
use dmup_core::instance::Role;
use dmup_core::journal::RunState;
use dmup_core::plan::Kind;
use dmup_core::report::RunEnd;
use dmup_mirror::package::Package;
use serde::{Deserialize, Serialize};

use crate::context::{Known, state_failure};
use crate::failure::Failure;

/// Our record of what `patch --overwrite` kept last, by component.
const KEPT: &str = "kept";

/// A hotfix that is kept for instances to come.
#[derive(Deserialize, Serialize)]
struct Kept {
    /// The file that the link led to when we had made it.
    package: String,
    /// Its executable.
    build: Digest,
    /// Where the link led before.
    before: Option<String>,
}

/// What is said when it is done.
pub(crate) const SAID: &str = "Instances that are added later get this build, too (--overwrite)";

/// What a `patch --overwrite` does after its last node.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Owed {
    /// The package as it was given.
    package: Utf8PathBuf,
    /// SHA-256 of the file.
    digest: Digest,
    /// The executables in it.
    builds: BTreeMap<Role, Digest>,
}

impl Owed {
    /// Refused if it is no package that a later `scale-out` can unpack, TiUP's as well.
    pub(crate) fn of(package: &Package) -> Result<Self, Failure> {
        let path = &package.path;
        if !package.is_tar_gz {
            return Err(Failure::refused(format_args!(
                "{path} cannot be kept for instances to come (--overwrite): TiUP unpacks only a tar.gz there"
            ))
            .hint("make one of it with `dmup package make` or `tar -czf`, or leave --overwrite out"));
        }
        let builds =
            package.components.iter().map(|(role, part)| (*role, part.binary.clone())).collect();
        Ok(Self { package: path.clone(), digest: package.digest.clone(), builds })
    }

    /// Keeps it in the folder of the run, with the package: what the operator gave may be gone when the run is resumed.
    pub(crate) fn keep(&self, run: &Utf8Path) -> Result<(), Failure> {
        let [package, record] = Self::files(run);
        let kept = Self { package: package.clone(), ..self.clone() };
        let text = serde_json::to_vec(&kept).expect("text");
        let copied = fs_err::copy(&self.package, &package)
            .and_then(|_| fs_err::File::open(&package)?.sync_all())
            .and_then(|()| fs_err::write(&record, text))
            .and_then(|()| fs_err::File::open(&record)?.sync_all());
        copied.map_err(|error| {
            Failure::refused(format_args!("keep the package for a resume (--overwrite): {error}"))
        })
    }

    fn of_run(run: &Utf8Path) -> Result<Option<Self>, Failure> {
        let [_, record] = Self::files(run);
        let broken = |why: String| Failure::refused(format_args!("read {record}: {why}"));
        match fs_err::read(&record) {
            Ok(text) => {
                serde_json::from_slice(&text).map(Some).map_err(|error| broken(error.to_string()))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(broken(error.to_string())),
        }
    }

    /// The package, and what is in it. The latter is written last.
    fn files(run: &Utf8Path) -> [Utf8PathBuf; 2] {
        [run.join("overwrite.tar.gz"), run.join("overwrite.json")]
    }
}

impl Known {
    /// `--overwrite`: instances that are added later get this package.
    pub(crate) fn keep_for_scale_out(&self, owed: &Owed) -> Result<(), Failure> {
        for (role, build) in &owed.builds {
            self.keep_component(*role, &owed.package, owed.digest.as_str(), build.clone())?;
        }
        Ok(())
    }

    /// A run that has ended well does what it owes, one that cannot go on any more owes nothing. Says whether it was done.
    pub(crate) fn settle(&self, run: &Utf8Path, end: &RunEnd) -> Result<bool, Failure> {
        if end.can_go_on() {
            return Ok(false);
        }
        let owed = if *end == RunEnd::Done { Owed::of_run(run)? } else { None };
        if let Some(owed) = &owed {
            self.keep_for_scale_out(owed)?;
        }
        for file in Owed::files(run).iter().rev() {
            match fs_err::remove_file(file) {
                // Of a run that owes nothing it is only in nobody's way.
                Err(error) if owed.is_some() && error.kind() != ErrorKind::NotFound => {
                    return Err(Failure::failed(error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(owed.is_some())
    }

    /// The last run that exchanged builds, if it has ended and was killed before it did what it owes.
    pub(crate) fn run_that_owes(&self) -> Result<Option<(Utf8PathBuf, RunEnd)>, Failure> {
        let runs = self.runs()?;
        let last = runs.iter().rev().find_map(|run| {
            let (plan, folded) = run.content.as_ref().ok()?;
            matches!(plan.kind, Kind::Hotfix | Kind::Upgrade | Kind::Rollback)
                .then_some((run, &folded.state))
        });
        let Some((run, RunState::Ended { end })) = last else { return Ok(None) };
        let owes = *end == RunEnd::Done && Owed::of_run(&run.path)?.is_some();
        Ok(owes.then(|| (run.path.clone(), end.clone())))
    }

    fn keep_component(
        &self,
        role: Role,
        package: &Utf8Path,
        digest: &str,
        build: Digest,
    ) -> Result<(), Failure> {
        let mut kept: BTreeMap<Role, Kept> =
            self.cluster.read_record(KEPT).map_err(state_failure)?.unwrap_or_default();
        let before = self.cluster.kept_name(role.as_str());
        let link =
            self.cluster.keep_package(role.as_str(), package, digest).map_err(state_failure)?;
        let Some(name) = self.cluster.kept_name(role.as_str()) else {
            return Err(Failure::failed(format_args!("{link} is gone again")));
        };
        // The same once more: what was there before that still counts.
        let before = match kept.remove(&role) {
            Some(same) if same.package == name => same.before,
            Some(_) | None => before.filter(|before| *before != name),
        };
        kept.insert(role, Kept { package: name, build, before });
        self.cluster.write_record(KEPT, &kept).map_err(state_failure)
    }

    /// After a rollback: a hotfix that `patch --overwrite` kept and that no node has any more must not come back with the next
    /// `scale-out`. Says what new instances get instead.
    pub(crate) fn let_go_of_kept(&self) -> Result<Vec<String>, Failure> {
        let Some(mut kept) =
            self.cluster.read_record::<BTreeMap<Role, Kept>>(KEPT).map_err(state_failure)?
        else {
            return Ok(Vec::new());
        };
        let recorded = self.recorded_builds()?;
        let instances = self.meta.instances();
        let mut said = Vec::new();
        for (role, it) in std::mem::take(&mut kept) {
            let somebody_has_it = instances.iter().filter(|one| one.role == role).any(|one| {
                // One that was added with it has no record.
                recorded.get(&one.id).map_or(one.patched, |record| record.build == it.build)
            });
            if self.cluster.kept_name(role.as_str()).as_ref() != Some(&it.package) {
                continue;
            }
            if somebody_has_it {
                kept.insert(role, it);
                continue;
            }
            let is_other = self
                .cluster
                .keep_instead(role.as_str(), it.before.as_deref())
                .map_err(state_failure)?;
            said.push(match it.before.filter(|_| is_other) {
                Some(before) => format!(
                    "new instances of {role} get {before} again, as before that hotfix (--overwrite)"
                ),
                None => format!("new instances of {role} get the official package again"),
            });
        }
        self.cluster.write_record(KEPT, &kept).map_err(state_failure)?;
        Ok(said)
    }
}

#[cfg(test)]
mod tests {
    use camino::Utf8PathBuf;
    use dmup_core::ids::ClusterName;
    use dmup_state::Profile;

    use super::*;

    const META: &str = "user: tidb\ndm_version: v8.1.0\ntopology:\n    master_servers:\n        - host: 10.0.1.1\n    worker_servers:\n        - host: 10.0.1.1\n";

    fn known(folder: &Utf8Path, meta: &str) -> Known {
        let name = ClusterName::new("prod").unwrap();
        let profile = Profile::at(folder.join("dm"));
        let cluster = profile.cluster(&name);
        fs_err::create_dir_all(cluster.meta_path().parent().unwrap()).unwrap();
        fs_err::write(cluster.meta_path(), meta).unwrap();
        let (cluster, meta) = profile.open(&name).unwrap();
        Known { name, cluster, meta }
    }

    /// Keeps a package for workers, as `patch --overwrite` does.
    fn keep(known: &Known, folder: &Utf8Path, letter: char) {
        let path: Utf8PathBuf = folder.join("fix.tar.gz");
        fs_err::write(&path, [0x1f, 0x8b, letter as u8]).unwrap();
        let digest = letter.to_string().repeat(64);
        let build = Digest::new(&digest).unwrap();
        known.keep_component(Role::DmWorker, &path, &digest, build).unwrap();
    }

    fn kept(known: &Known) -> Option<String> {
        known.cluster.kept_name("dm-worker")
    }

    #[test]
    fn after_a_rollback_new_instances_get_what_they_got_before_the_hotfix() {
        let keep_it = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(keep_it.path()).unwrap();
        let known = known(folder, META);
        assert_eq!(known.let_go_of_kept().unwrap(), Vec::<String>::new(), "nothing was kept");
        keep(&known, folder, 'a');
        keep(&known, folder, 'a');
        assert_eq!(kept(&known).as_deref(), Some("dm-worker-aaaaaaa.tar.gz"));
        assert_eq!(known.let_go_of_kept().unwrap().len(), 1);
        assert_eq!(kept(&known), None, "the official one");

        keep(&known, folder, 'a');
        keep(&known, folder, 'b');
        let said = known.let_go_of_kept().unwrap().remove(0);
        assert!(said.contains("dm-worker-aaaaaaa.tar.gz again"), "{said}");
        assert_eq!(kept(&known).as_deref(), Some("dm-worker-aaaaaaa.tar.gz"));
        assert_eq!(known.let_go_of_kept().unwrap(), Vec::<String>::new(), "once");
        assert!(!folder.join("dm/clusters/prod/patch/dm-worker-bbbbbbb.tar.gz").exists());
    }

    #[test]
    fn a_run_does_what_it_owes_when_it_ends_well_also_without_the_package_that_was_given() {
        let keep_it = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(keep_it.path()).unwrap();
        let known = known(folder, META);
        let run = folder.join("run");
        fs_err::create_dir(&run).unwrap();
        let why = || "x".to_owned();
        for (end, does_it, still_owes) in [
            (RunEnd::Interrupted, false, true),
            (RunEnd::Paused, false, true),
            (RunEnd::Failed { why: why() }, false, false),
            (RunEnd::TakenBack, false, false),
            (RunEnd::Done, true, false),
        ] {
            let package = folder.join("fix.tar.gz");
            fs_err::write(&package, [0x1f, 0x8b, 7]).unwrap();
            let digest = Digest::of(b"package");
            let builds = [(Role::DmWorker, Digest::of(b"build"))].into();
            Owed { package: package.clone(), digest, builds }.keep(&run).unwrap();
            fs_err::remove_file(&package).unwrap();
            assert_eq!(known.settle(&run, &end).unwrap(), does_it, "{end:?}");
            assert_eq!(kept(&known).is_some(), does_it, "{end:?}");
            assert_eq!(Owed::of_run(&run).unwrap().is_some(), still_owes, "{end:?}");
        }
        let link = folder.join("dm/clusters/prod/patch/dm-worker.tar.gz");
        assert_eq!(fs_err::read(link).unwrap(), [0x1f, 0x8b, 7]);
        assert_eq!(fs_err::read_dir(&run).unwrap().count(), 0, "its package is not kept twice");
        assert!(!known.settle(&run, &RunEnd::Done).unwrap(), "once");
    }

    #[test]
    fn what_somebody_else_keeps_and_what_a_node_still_runs_stays() {
        let keep_it = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(keep_it.path()).unwrap();
        // One that was added with the hotfix: marked, and in no journal.
        let added = META.replace(
            "worker_servers:\n        - host: 10.0.1.1\n",
            "worker_servers:\n        - host: 10.0.1.1\n          patched: true\n",
        );
        let patched = known(folder, &added);
        keep(&patched, folder, 'a');
        assert_eq!(patched.let_go_of_kept().unwrap(), Vec::<String>::new());
        assert_eq!(kept(&patched).as_deref(), Some("dm-worker-aaaaaaa.tar.gz"));

        // TiUP's `patch --overwrite` since.
        let unpatched = known(folder, META);
        let path = folder.join("fix.tar.gz");
        unpatched.cluster.keep_package("dm-worker", &path, "ccccccc").unwrap();
        assert_eq!(unpatched.let_go_of_kept().unwrap(), Vec::<String>::new());
        assert_eq!(kept(&unpatched).as_deref(), Some("dm-worker-ccccccc.tar.gz"));
    }
}
