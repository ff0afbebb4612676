//! TiUP at work on the same cluster at the same time, as far as it shows on this machine.
//!
//! TiUP 1.16.5 locks nothing but a scale-out (`.scale-out.yaml`, which `Cluster::refuse_pending_scale_out` sees). What shows
//! otherwise is its process: `tiup dm …` runs `tiup-dm` with the same words. On hosts TiUP leaves no trace of
//! a command under way, so one that runs on another machine cannot be noticed.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use camino::Utf8Path;
use dmup_core::ids::ClusterName;

/// Commands of `tiup-dm` that change a cluster; the others may run beside us.
const CHANGING: [&str; 14] = [
    "start",
    "stop",
    "restart",
    "scale-in",
    "scale-out",
    "destroy",
    "prune",
    "upgrade",
    "patch",
    "reload",
    "enable",
    "disable",
    "edit-config",
    "replay",
];

/// TiUP's name for its component's folder, which we have as profile. Only `tiup` sets it, not who types `tiup-dm`.
const PROFILE: &str = "TIUP_COMPONENT_DATA_DIR=";

/// A process of TiUP that changes this cluster: its number and words.
pub(crate) fn at_work(cluster: &ClusterName, profile: &Utf8Path) -> Option<(u32, String)> {
    fs_err::read_dir("/proc").ok()?.find_map(|entry| {
        let folder = entry.ok()?.path();
        let pid: u32 = folder.file_name()?.to_str()?.parse().ok()?;
        // A process that ends meanwhile, or is somebody else's, has nothing to read.
        let words = words(&fs_err::read(folder.join("cmdline")).ok()?);
        if !changes(&words, cluster) || is_ourselves(&folder) {
            return None;
        }
        let around = self::words(&fs_err::read(folder.join("environ")).unwrap_or_default());
        is_of(&around, profile).then(|| (pid, words.join(" ")))
    })
}

/// dmup answers to TiUP's name as well; against another dmup there is the lock.
fn is_ourselves(process: &Path) -> bool {
    let file = |path: &Path| {
        let meta = fs_err::metadata(path).ok()?;
        Some((meta.dev(), meta.ino()))
    };
    file(&process.join("exe")).is_some_and(|it| Some(it) == file(Path::new("/proc/self/exe")))
}

fn words(bytes: &[u8]) -> Vec<String> {
    bytes
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

fn changes(words: &[String], cluster: &ClusterName) -> bool {
    let Some((program, words)) = words.split_first() else { return false };
    let is_tiup = Utf8Path::new(program).file_name() == Some("tiup-dm");
    let command = words.iter().position(|word| CHANGING.contains(&word.as_str()));
    is_tiup && command.is_some_and(|at| words[at + 1..].iter().any(|word| word == cluster.as_str()))
}

/// Whether it works with the same state as we do, by TiUP's own rule; not known counts as yes.
fn is_of(surroundings: &[String], profile: &Utf8Path) -> bool {
    let variable = |name| {
        let value = surroundings.iter().find_map(|line| line.strip_prefix(name));
        value.filter(|value| !value.is_empty()).map(Utf8Path::new)
    };
    let other = variable(PROFILE)
        .map(Utf8Path::to_owned)
        .or_else(|| variable("TIUP_HOME=").map(|home| home.join("storage/dm")))
        .or_else(|| variable("HOME=").map(|home| home.join(".tiup/storage/dm")));
    // What is relative is so to a folder of its own.
    other.is_none_or(|other| !other.is_absolute() || is_same_folder(&other, profile))
}

fn is_same_folder(one: &Utf8Path, other: &Utf8Path) -> bool {
    let target = |path: &Utf8Path| path.canonicalize_utf8().ok();
    one == other || target(one).is_some_and(|it| Some(it) == target(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_noticed(line: &str) -> bool {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        changes(&words, &ClusterName::new("prod").unwrap())
    }

    #[test]
    fn only_a_command_of_tiup_that_changes_this_cluster_is_noticed() {
        assert!(is_noticed("/root/.tiup/components/dm/v1.16.5/tiup-dm reload prod -R dm-worker"));
        assert!(is_noticed("tiup-dm --yes scale-in prod -N 10.0.1.1:8262"));
        assert!(!is_noticed("tiup-dm display prod"));
        assert!(!is_noticed("tiup-dm reload test"));
        assert!(!is_noticed("tiup-dm deploy"));
        assert!(!is_noticed("vi tiup-dm reload prod"));
    }

    #[test]
    fn tiup_with_another_home_works_on_another_cluster() {
        let around = [format!("{PROFILE}/root/.tiup/storage/dm"), "HOME=/root".to_owned()];
        assert!(is_of(&around, "/root/.tiup/storage/dm".into()));
        assert!(!is_of(&around, "/home/ada/.tiup/storage/dm".into()));
        assert!(is_of(&[], "/home/ada/.tiup/storage/dm".into()));
        // Started without `tiup`, so without its variable.
        let around = ["TIUP_HOME=/srv/tiup".to_owned(), "HOME=/root".to_owned()];
        assert!(is_of(&around, "/srv/tiup/storage/dm".into()));
        assert!(!is_of(&around, "/root/.tiup/storage/dm".into()));
        assert!(is_of(&around[1..], "/root/.tiup/storage/dm".into()));
        assert!(!is_of(&around[1..], "/srv/tiup/storage/dm".into()));
        assert!(is_of(&["TIUP_HOME=tiup".to_owned()], "/srv/tiup/storage/dm".into()));
    }

    #[test]
    fn a_home_that_is_a_link_to_ours_is_ours() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        fs_err::create_dir_all(folder.join("disk/storage/dm")).unwrap();
        std::os::unix::fs::symlink(folder.join("disk"), folder.join("tiup")).unwrap();
        let around = [format!("TIUP_HOME={folder}/tiup")];
        assert!(is_of(&around, &folder.join("disk/storage/dm")));
        assert!(!is_of(&around, &folder.join("other/storage/dm")));
    }
}
