//! The hotfix that `patch --overwrite` keeps for instances to come, and that a rollback takes back with the rest.
//!
//! ```text
//! patch/<component>.tar.gz       leads to what new instances get (TiUP's, and TiUP reads it, too)
//! dmup/kept.json                 by component: what we made it lead to, its executable, and where it led before
//! ```

use std::collections::BTreeMap;

use camino::Utf8Path;
use dmup_core::digest::Digest;
use dmup_core::instance::Role;
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

impl Known {
    /// `--overwrite`: instances that are added later get this package.
    pub(crate) fn keep_for_scale_out(&self, package: &Package) -> Result<(), Failure> {
        for (role, component) in &package.components {
            self.keep_component(
                *role,
                &package.path,
                package.digest.as_str(),
                component.binary.clone(),
            )?;
        }
        Ok(())
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
