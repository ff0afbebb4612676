//! A profile folder, used as TiUP and dmup use it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::PermissionsExt;

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::ids::ClusterName;
use dmup_state::{Profile, StateError};
use jiff::{Timestamp, Zoned};

const META: &str = include_str!("fixtures/meta.yaml");

struct Home {
    _dir: tempfile::TempDir,
    profile: Profile,
}

fn home() -> Home {
    let dir = tempfile::tempdir().unwrap();
    let profile = Profile::at(Utf8PathBuf::from_path_buf(dir.path().join("storage/dm")).unwrap());
    Home { _dir: dir, profile }
}

fn prod() -> ClusterName {
    "prod".parse().unwrap()
}

fn with_cluster() -> Home {
    let home = home();
    let cluster = home.profile.cluster(&prod());
    std::fs::create_dir_all(cluster.dir()).unwrap();
    std::fs::write(cluster.meta_path(), META).unwrap();
    home
}

fn now() -> Zoned {
    "2026-11-23T04:27:06.5+00:00[UTC]".parse().unwrap()
}

fn mode(path: &Utf8Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_cluster_of_tiup_is_opened_changed_and_saved_with_a_backup() {
    let home = with_cluster();
    let (cluster, mut meta) = home.profile.open(&prod()).unwrap();
    meta.topology.mark_patched(&["198.18.0.14:9090"], true);
    cluster.save_meta(&meta, &now()).unwrap();
    let backup = cluster.dir().join("backup/meta-2026-11-23T04:27:06.5Z.yaml");
    assert_eq!(std::fs::read_to_string(backup).unwrap(), META);
    assert_eq!(mode(&cluster.meta_path()), 0o644);
    let saved = std::fs::read_to_string(cluster.meta_path()).unwrap();
    assert_eq!(saved.len(), META.len() + "          patched: true\n".len());
    let names: Vec<_> =
        std::fs::read_dir(cluster.dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "nothing temporary stays: {names:?}");
}

#[test]
fn a_missing_cluster_is_told_with_those_that_exist() {
    let home = with_cluster();
    let error = home.profile.open(&"prdo".parse().unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "dm cluster `prdo` not exists (there are: prod)");
    std::fs::create_dir_all(home.profile.root().join("clusters/half-deployed/ssh")).unwrap();
    let names: Vec<String> = home
        .profile
        .clusters()
        .unwrap()
        .iter()
        .map(|listed| listed.cluster.name().to_string())
        .collect();
    assert_eq!(names, ["prod"]);
    assert!(matches!(
        home.profile.cluster(&prod()).refuse_existing(),
        Err(StateError::ClusterExists { .. })
    ));
}

#[test]
fn a_broken_record_is_listed_and_says_where() {
    let home = with_cluster();
    let cluster = home.profile.cluster(&prod());
    std::fs::write(cluster.meta_path(), META.replace("port: 8262", "port: x")).unwrap();
    let listed = home.profile.clusters().unwrap();
    let error = listed[0].meta.as_ref().unwrap_err().to_string();
    assert!(error.contains("meta.yaml: line 48, column 17: expected a port, found `x`"), "{error}");
    std::fs::write(cluster.meta_path(), "x".repeat(5 << 20)).unwrap();
    assert!(cluster.meta().unwrap_err().to_string().contains("larger than"));
}

#[test]
fn keys_are_made_once_and_are_for_the_owner_alone() {
    let home = home();
    let cluster = home.profile.cluster(&prod());
    let made = cluster.ensure_keys().unwrap();
    assert_eq!(cluster.ensure_keys().unwrap().public, made.public);
    assert_eq!(mode(&cluster.private_key_path()), 0o600);
    assert_eq!(mode(&cluster.public_key_path()), 0o600);
    assert_eq!(mode(cluster.private_key_path().parent().unwrap()), 0o700);
    std::fs::remove_file(cluster.private_key_path()).unwrap();
    assert!(matches!(cluster.ensure_keys(), Err(StateError::BadFile { .. })));
}

#[test]
fn openssh_reads_our_keys() {
    let home = home();
    let cluster = home.profile.cluster(&prod());
    let made = cluster.ensure_keys().unwrap();
    let path = cluster.private_key_path();
    let Ok(answer) =
        std::process::Command::new("ssh-keygen").args(["-y", "-f", path.as_str()]).output()
    else {
        return;
    };
    let public = String::from_utf8(answer.stdout).unwrap();
    assert_eq!(public.split_whitespace().take(2).collect::<Vec<_>>().join(" "), made.public);
}

#[test]
fn a_second_holder_is_told_who_the_first_is() {
    let home = with_cluster();
    let cluster = home.profile.cluster(&prod());
    let first = cluster.lock("alice, process 7, `dmup patch prod`").unwrap();
    let error = cluster.lock("bob").unwrap_err();
    assert_eq!(
        error.to_string(),
        "cluster `prod` is locked by another dmup: alice, process 7, `dmup patch prod`"
    );
    drop(first);
    drop(cluster.lock("bob").unwrap());
}

#[test]
fn an_unfinished_scale_out_of_tiup_is_seen() {
    let home = with_cluster();
    let cluster = home.profile.cluster(&prod());
    cluster.refuse_pending_scale_out().unwrap();
    std::fs::write(cluster.dir().join(".scale-out.yaml"), "").unwrap();
    assert!(matches!(cluster.refuse_pending_scale_out(), Err(StateError::ScaleOutPending { .. })));
}

#[test]
fn a_kept_package_is_found_through_a_relative_link_and_forgotten_by_an_upgrade() {
    let home = with_cluster();
    let cluster = home.profile.cluster(&prod());
    let package = home.profile.root().join("hotfix.tar.gz");
    std::fs::write(&package, [0x1f, 0x8b, 1, 2]).unwrap();
    assert_eq!(cluster.kept_package("dm-worker"), None);
    for digest in ["0123456789", "abcdefghij"] {
        cluster.keep_package("dm-worker", &package, digest).unwrap();
    }
    let link = cluster.kept_package("dm-worker").unwrap();
    assert_eq!(std::fs::read_link(&link).unwrap().to_str(), Some("dm-worker-abcdefg.tar.gz"));
    assert_eq!(std::fs::read(&link).unwrap(), [0x1f, 0x8b, 1, 2]);
    let traces = cluster.traces();
    assert_eq!(traces.links, [(link.clone(), true)]);
    assert_eq!(traces.packages.len(), 2);
    std::fs::remove_file(&traces.packages[1]).unwrap();
    assert_eq!(cluster.traces().links, [(link, false)]);
    cluster.forget_packages().unwrap();
    assert_eq!(cluster.kept_package("dm-worker"), None);
    assert_eq!(cluster.traces(), dmup_core::unfinished::Traces::default());
}

#[test]
fn our_records_and_runs_lie_beside_tiups_files() {
    let home = with_cluster();
    let cluster = home.profile.cluster(&prod());
    assert_eq!(cluster.read_record::<Vec<u8>>("builds").unwrap(), None);
    cluster.write_record("builds", &vec![1_u8, 2]).unwrap();
    assert_eq!(cluster.read_record::<Vec<u8>>("builds").unwrap(), Some(vec![1, 2]));
    assert!(matches!(cluster.read_record::<String>("builds"), Err(StateError::BadFile { .. })));
    let run = cluster.new_run_dir("20261123T042706Z-patch").unwrap();
    assert!(run.is_dir());
    assert!(cluster.new_run_dir("20261123T042706Z-patch").is_err());
    assert_eq!(cluster.runs().unwrap(), ["20261123T042706Z-patch"]);
    assert_eq!(mode(&cluster.own_dir()), 0o700);
    cluster.remove().unwrap();
    assert!(!cluster.dir().exists());
}

#[test]
fn commands_are_logged_as_tiup_logs_them() {
    let home = home();
    let log = home.profile.audit();
    assert_eq!(log.entries().unwrap(), []);
    let at: Timestamp = "2026-11-23T04:22:47.5Z".parse().unwrap();
    let arguments = ["dmup", "patch", "prod", "pk/a b.tar.gz"].map(str::to_owned);
    let first = log.record(at, None, &arguments, "what was said\n").unwrap();
    let second = log.record(at, None, &arguments, "").unwrap();
    assert_ne!(first, second);
    std::fs::write(log.dir().join("notes.txt"), "not ours").unwrap();
    let entries = log.entries().unwrap();
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[0].command, "dmup patch prod pk/a b.tar.gz");
    assert_eq!(entries[0].time_text(), "2026-11-23T04:22:47Z");
    assert_eq!(log.show(&first).unwrap().1, "dmup patch prod pk%2Fa+b.tar.gz\nwhat was said\n");
    assert!(log.show("../audit/x").is_err());
    let removed = log.remove_before("2026-11-24T00:00:00Z".parse().unwrap()).unwrap();
    assert_eq!(removed.len(), 2);
    assert_eq!(log.entries().unwrap(), []);
}

/// A tar.gz of one entry that may be hostile, beside a record.
fn backup_with(name: &str, kind: tar::EntryType, link: &str) -> Vec<u8> {
    let mut tar =
        tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    let mut add = |name: &str, kind, link: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, content).unwrap();
    };
    add("meta.yaml", tar::EntryType::Regular, "", META.as_bytes());
    add(name, kind, link, b"");
    tar.into_inner().unwrap().finish().unwrap()
}

#[test]
fn a_backup_brings_a_lost_cluster_back() {
    let home = with_cluster();
    let cluster = home.profile.cluster(&prod());
    cluster.ensure_keys().unwrap();
    let package = home.profile.root().join("hotfix.tar.gz");
    std::fs::write(&package, [0x1f, 0x8b, 1, 2]).unwrap();
    cluster.keep_package("dm-worker", &package, "abcdefghij").unwrap();
    cluster.write_record("builds", &vec![1_u8]).unwrap();
    std::fs::create_dir(cluster.own_dir().join("parcels")).unwrap();
    std::fs::write(cluster.own_dir().join("parcels/large"), "large").unwrap();
    let key = std::fs::read(cluster.private_key_path()).unwrap();

    let file = home.profile.root().join("backup.tar.gz");
    cluster.back_up(&file).unwrap();
    assert_eq!(mode(&file), 0o600, "it holds the private key");
    assert!(matches!(cluster.back_up(&file), Err(StateError::System { .. })), "it exists already");

    cluster.remove().unwrap();
    let scratch = home.profile.root().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let backup = dmup_state::Cluster::read_backup(&file, &scratch).unwrap();
    assert_eq!(backup.meta.render(), META);
    assert!(!cluster.exists(), "to read it changes nothing");
    cluster.restore(&backup, &scratch).unwrap();
    assert_eq!(std::fs::read_to_string(cluster.meta_path()).unwrap(), META);
    assert_eq!(std::fs::read(cluster.private_key_path()).unwrap(), key);
    assert_eq!(mode(&cluster.private_key_path()), 0o600);
    assert_eq!(mode(&cluster.own_dir()), 0o700);
    assert_eq!(cluster.read_record::<Vec<u8>>("builds").unwrap(), Some(vec![1]));
    assert!(cluster.kept_package("dm-worker").is_some());
    assert!(!cluster.own_dir().join("parcels").exists());
}

#[test]
fn a_backup_that_is_none_or_hostile_is_not_taken() {
    use tar::EntryType as Kind;
    let home = with_cluster();
    let cases = [
        (backup_with("../x", Kind::Regular, ""), "would leave"),
        (backup_with("/x", Kind::Regular, ""), "would leave"),
        (backup_with("x", Kind::Symlink, "/etc/passwd"), "link out of its folder"),
        (backup_with("x", Kind::Symlink, ".."), "link out of its folder"),
        (backup_with("x", Kind::Link, "meta.yaml"), "neither file, folder nor link"),
        (backup_with("x", Kind::Fifo, ""), "neither file, folder nor link"),
        (backup_with("meta.yaml/x", Kind::Regular, ""), "file and folder at once"),
        (b"hello".to_vec(), "is no backup"),
        (backup_with("x", Kind::Regular, "")[..40].to_vec(), "is no backup"),
    ];
    for (number, (bytes, why)) in cases.into_iter().enumerate() {
        let scratch = home.profile.root().join(number.to_string());
        std::fs::create_dir(&scratch).unwrap();
        let file = scratch.join("b.tar.gz");
        std::fs::write(&file, bytes).unwrap();
        let error = dmup_state::Cluster::read_backup(&file, &scratch).unwrap_err().to_string();
        assert!(error.contains(why), "{number}: {error}");
    }
}
