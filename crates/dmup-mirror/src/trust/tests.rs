//! Mirrors made here: a good one, and every lie that a bad one could tell.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use jiff::Timestamp;
use lab::mirror::{MadeMirror, Signer, public_keys, sign, signed};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    ComponentId, ComponentManifest, FileName, Index, ManifestError, ManifestRefusal, Root,
    Snapshot, TimestampManifest, limits,
};

type Files = BTreeMap<String, Vec<u8>>;

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn mirror() -> MadeMirror {
    MadeMirror::default()
        .with("dm-master", "v8.1.0", "linux/amd64", b"eight")
        .with("dm-master", "v5.3.0", "linux/amd64", b"five")
        .with("dm-master", "v9.0.0-alpha", "linux/amd64", b"nine")
        .with("dm-master", "v8.1.0", "linux/arm64", b"eight for arm")
}

/// Its files, signed once for all tests.
fn first() -> Files {
    static FILES: LazyLock<Files> = LazyLock::new(|| mirror().files());
    FILES.clone()
}

fn master() -> ComponentId {
    ComponentId::new("dm-master").unwrap()
}

/// What a client knows after one visit.
struct Known {
    root: Root,
    timestamp: TimestampManifest,
    snapshot: Snapshot,
    index: Index,
    component: ComponentManifest,
}

/// One visit, from the root that is trusted to the component's manifest.
fn visit(trusted: &[u8], files: &Files, known: Option<&Known>) -> Result<Known, ManifestError> {
    let mut root = Root::known(trusted)?;
    while let Some(bytes) = files.get(root.next_file().as_str()) {
        root = root.next(bytes)?;
    }
    let timestamp =
        root.next_timestamp(&files["timestamp.json"], known.map(|it| &it.timestamp), now())?;
    let snapshot = root.next_snapshot(
        &files["snapshot.json"],
        &timestamp,
        known.map(|it| &it.snapshot),
        now(),
    )?;
    let (_, file, _) = snapshot.index_file()?;
    let index =
        root.next_index(&files[file.as_str()], &snapshot, known.map(|it| &it.index), now())?;
    let (_, file, _) = index.component_file(&master(), &snapshot)?;
    let component = index.next_component(
        &master(),
        &files[file.as_str()],
        &snapshot,
        known.map(|it| &it.component),
        now(),
    )?;
    Ok(Known { root, timestamp, snapshot, index, component })
}

fn refusal(files: &Files, known: Option<&Known>) -> ManifestError {
    let trusted = first()["root.json"].clone();
    visit(&trusted, files, known).err().expect("it must be refused")
}

/// Changes a manifest and signs it as its owner would.
fn change(files: &mut Files, name: &str, by: &[Signer], change: impl FnOnce(&mut Value)) {
    let mut content = signed(&files[name]);
    change(&mut content);
    files.insert(name.to_owned(), sign(&content, by));
}

/// A snapshot and a timestamp that fit whatever the component's manifest is now.
fn fit(files: &mut Files, mirror: &MadeMirror) {
    let lengths: Vec<(String, usize)> = ["index", "dm-master"]
        .iter()
        .map(|it| (format!("/{it}.json"), files[&format!("{}.{it}.json", mirror.edition)].len()))
        .collect();
    change(files, "snapshot.json", &[Signer::Snapshot], |it| {
        for (url, length) in lengths {
            it["meta"][url]["length"] = length.into();
        }
    });
    files.insert("timestamp.json".to_owned(), mirror.timestamp(&files["snapshot.json"]));
}

#[test]
fn a_good_mirror_is_believed_down_to_the_package() {
    let files = first();
    let known = visit(&files["root.json"], &files, None).unwrap();
    let package = known.component.package(&"v8.1.0".parse().unwrap(), "linux", "arm64").unwrap();
    assert_eq!(package.file.as_str(), "dm-master-v8.1.0-linux-arm64.tar.gz");
    assert_eq!(package.sha256, dmup_core::digest::Digest::of(b"eight for arm"));
    let newest = known.component.newest("linux", "amd64").unwrap();
    assert_eq!(newest.version.as_str(), "v8.1.0", "a prerelease is not the newest");
}

#[test]
fn a_platform_without_a_package_is_named_with_those_that_have_one() {
    let files = first();
    let component = visit(&files["root.json"], &files, None).unwrap().component;
    let error = component.package(&"v8.1.0".parse().unwrap(), "linux", "s390x").unwrap_err();
    assert_eq!(
        error.to_string(),
        "dm-master.json: does not list dm-master v8.1.0 for linux/s390x (but for linux/amd64, linux/arm64)"
    );
}

#[test]
fn a_version_that_is_not_listed_is_told_with_the_newest_that_is() {
    let files = first();
    let component = visit(&files["root.json"], &files, None).unwrap().component;
    let error = component.package(&"v9.9.9".parse().unwrap(), "linux", "amd64").unwrap_err();
    assert_eq!(
        error.to_string(),
        "dm-master.json: does not list dm-master v9.9.9 for linux/amd64 (the newest is v8.1.0)"
    );
}

#[test]
fn an_altered_byte_anywhere_is_noticed() {
    let good = first();
    for name in ["timestamp.json", "1.index.json", "1.dm-master.json"] {
        let mut files = good.clone();
        let text = String::from_utf8(files[name].clone()).unwrap();
        // In the signed part, and still well-formed.
        let altered = text.replace("\"expires\":\"2100", "\"expires\":\"2101");
        assert_ne!(text, altered);
        files.insert(name.to_owned(), altered.into_bytes());
        let error = refusal(&files, None);
        assert!(matches!(error.refusal, ManifestRefusal::BadSignature { .. }), "{name}: {error}");
    }
    let mut files = good;
    let mut snapshot = files["snapshot.json"].clone();
    snapshot.push(b' ');
    files.insert("snapshot.json".to_owned(), snapshot);
    let error = refusal(&files, None);
    assert!(matches!(error.refusal, ManifestRefusal::TooLarge { .. }), "{error}");
}

#[test]
fn a_key_that_is_not_of_the_role_does_not_count() {
    for (name, by) in [
        ("timestamp.json", Signer::Snapshot),
        ("1.index.json", Signer::Owner),
        ("1.dm-master.json", Signer::Index),
    ] {
        let mut files = first();
        change(&mut files, name, &[by], |_| {});
        let error = refusal(&files, None);
        assert!(
            matches!(error.refusal, ManifestRefusal::TooFewSignatures { good: 0, needed: 1, .. }),
            "{name}: {error}"
        );
        assert_eq!(error.file, name);
    }
}

#[test]
fn one_key_that_signs_twice_does_not_reach_a_threshold() {
    let files = first();
    let root = signed(&files["root.json"]);
    let twice = Root::known(&sign(&root, &[Signer::Root1, Signer::Root1])).unwrap_err();
    assert!(matches!(twice.refusal, ManifestRefusal::SignedTwice(_)), "{twice}");
    let once = Root::known(&sign(&root, &[Signer::Root1, Signer::Owner])).unwrap_err();
    assert!(
        matches!(once.refusal, ManifestRefusal::TooFewSignatures { good: 1, needed: 2, .. }),
        "{once}"
    );
    Root::known(&sign(&root, &[Signer::Root1, Signer::Root3])).unwrap();
}

#[test]
fn a_threshold_that_nobody_or_everybody_reaches_is_refused() {
    let files = first();
    for threshold in [0, 4] {
        let mut root = signed(&files["root.json"]);
        root["roles"]["root"]["threshold"] = threshold.into();
        let error = Root::known(&sign(&root, &[Signer::Root1, Signer::Root2])).unwrap_err();
        assert!(matches!(error.refusal, ManifestRefusal::BadThreshold { .. }), "{error}");
    }
    let mut files = first();
    change(&mut files, "1.index.json", &[Signer::Index], |it| {
        it["owners"]["lab"]["threshold"] = 0.into();
    });
    fit(&mut files, &mirror());
    let error = refusal(&files, None);
    assert!(matches!(error.refusal, ManifestRefusal::BadThreshold { .. }), "{error}");
}

#[test]
fn keys_of_other_kinds_are_refused_and_spoil_only_what_they_sign() {
    let files = first();
    for (field, value) in [("keytype", "ed25519"), ("scheme", "rsassa-pkcs1v15-sha1")] {
        let mut root = signed(&files["root.json"]);
        for key in root["roles"]["timestamp"]["keys"].as_object_mut().unwrap().values_mut() {
            key[field] = value.into();
        }
        let error = Root::known(&sign(&root, &[Signer::Root1, Signer::Root2])).unwrap_err();
        assert!(matches!(error.refusal, ManifestRefusal::UnknownAlgorithm { .. }), "{error}");
    }
    let mut files = files;
    change(&mut files, "1.index.json", &[Signer::Index], |it| {
        let key = json!({"keytype": "ed25519", "keyval": {"public": "x"}, "scheme": "ed25519"});
        it["owners"]["another"] = json!({"keys": {"k": key}, "name": "", "threshold": 1});
    });
    fit(&mut files, &mirror());
    visit(&files["root.json"], &files, None).expect("the owner of dm-master is another one");
}

#[test]
fn a_key_under_a_foreign_id_is_refused() {
    let mut root = signed(&first()["root.json"]);
    let key = public_keys(&[Signer::Owner]);
    let key = key.as_object().unwrap().values().next().unwrap();
    root["roles"]["timestamp"]["keys"] = json!({"0000": key});
    let error = Root::known(&sign(&root, &[Signer::Root1, Signer::Root2])).unwrap_err();
    assert!(matches!(error.refusal, ManifestRefusal::BadKey { .. }), "{error}");
}

#[test]
fn an_older_timestamp_is_a_replay() {
    let old = first();
    let new = MadeMirror { edition: 2, ..mirror() }.files();
    let known = visit(&old["root.json"], &new, None).unwrap();
    let error = refusal(&old, Some(&known));
    assert_eq!(error.refusal, ManifestRefusal::RolledBack { known: 2, offered: 1 });
    assert_eq!(error.file, "timestamp.json");
    visit(&old["root.json"], &new, Some(&known)).expect("the same again is fine");
}

#[test]
fn a_newer_snapshot_with_an_older_component_is_refused() {
    let trusted = first()["root.json"].clone();
    let second = MadeMirror { edition: 2, ..mirror() };
    let known = visit(&trusted, &second.files(), None).unwrap();
    let third = MadeMirror { edition: 3, ..mirror() };
    let mut files = third.files();
    change(&mut files, "snapshot.json", &[Signer::Snapshot], |it| {
        it["meta"]["/dm-master.json"]["version"] = 1.into();
    });
    files.insert("timestamp.json".to_owned(), third.timestamp(&files["snapshot.json"]));
    let error = refusal(&files, Some(&known));
    assert_eq!(error.refusal, ManifestRefusal::RolledBack { known: 2, offered: 1 });
}

#[test]
fn parts_of_two_editions_do_not_go_together() {
    let trusted = first()["root.json"].clone();
    let first = first();
    let second = MadeMirror { edition: 2, ..mirror() }.files();

    let mut files = second.clone();
    files.insert("snapshot.json".to_owned(), first["snapshot.json"].clone());
    let error = refusal(&files, None);
    assert!(matches!(error.refusal, ManifestRefusal::OtherHash { .. }), "{error}");

    for name in ["index", "dm-master"] {
        let mut files = second.clone();
        files.insert(format!("2.{name}.json"), first[&format!("1.{name}.json")].clone());
        let error = visit(&trusted, &files, None).err().unwrap();
        assert_eq!(error.refusal, ManifestRefusal::OtherVersion { promised: 2, found: 1 });
    }
}

#[test]
fn one_components_manifest_cannot_stand_in_for_another() {
    let both = mirror().with("dm-worker", "v8.1.0", "linux/amd64", b"worker");
    let mut files = both.files();
    files.insert("1.dm-master.json".to_owned(), files["1.dm-worker.json"].clone());
    let error = refusal(&files, None);
    assert!(matches!(error.refusal, ManifestRefusal::OtherComponent { .. }), "{error}");
}

#[test]
fn one_kind_of_manifest_cannot_stand_in_for_another() {
    let mut files = first();
    let snapshot = signed(&files["snapshot.json"]);
    files.insert("timestamp.json".to_owned(), sign(&snapshot, &[Signer::Timestamp]));
    let error = refusal(&files, None);
    assert!(matches!(error.refusal, ManifestRefusal::WrongType { .. }), "{error}");
}

#[test]
fn a_format_of_the_future_is_refused() {
    let mut files = first();
    change(&mut files, "timestamp.json", &[Signer::Timestamp], |it| {
        it["spec_version"] = "0.2.0".into();
    });
    let error = refusal(&files, None);
    assert_eq!(error.refusal, ManifestRefusal::SpecVersion("0.2.0".to_owned()));
}

#[test]
fn longer_than_promised_is_refused_before_it_is_read() {
    let mut files = first();
    let long = vec![b' '; usize::try_from(limits::TIMESTAMP_BYTES).unwrap() + 1];
    files.insert("timestamp.json".to_owned(), long);
    let error = refusal(&files, None);
    assert_eq!(error.refusal, ManifestRefusal::TooLarge { limit: limits::TIMESTAMP_BYTES });

    for name in ["1.index.json", "1.dm-master.json"] {
        let mut files = first();
        let promised = files[name].len() as u64;
        files.get_mut(name).unwrap().push(b'\n');
        let error = refusal(&files, None);
        assert_eq!(error.refusal, ManifestRefusal::TooLarge { limit: promised }, "{name}");
    }
}

#[test]
fn what_expired_is_refused_and_what_its_keys_signed_with_it() {
    let past = "2025-12-31T23:59:59Z";
    for (name, by) in [("timestamp.json", Signer::Timestamp), ("1.dm-master.json", Signer::Owner)] {
        let mut files = first();
        change(&mut files, name, &[by], |it| it["expires"] = past.into());
        let error = refusal(&files, None);
        assert_eq!(error.refusal, ManifestRefusal::Expired(past.parse().unwrap()), "{name}");
    }
    let mut root = signed(&first()["root.json"]);
    root["expires"] = past.into();
    let root = sign(&root, &[Signer::Root1, Signer::Root2]);
    let error = visit(&root, &first(), None).err().unwrap();
    assert_eq!(
        error.refusal,
        ManifestRefusal::KeysExpired { by: "root.json", since: past.parse().unwrap() }
    );
}

#[test]
fn what_was_accepted_once_can_be_read_back_after_it_expired() {
    let old = MadeMirror { expires: "2025-01-01T00:00:00Z".to_owned(), ..mirror() }.files();
    let root = Root::known(&old["root.json"]).unwrap();
    root.known_timestamp(&old["timestamp.json"]).unwrap();
    root.known_snapshot(&old["snapshot.json"]).unwrap();
    let index = root.known_index(&old["1.index.json"]).unwrap();
    let component = index.known_component(&master(), &old["1.dm-master.json"]).unwrap();
    component.package(&"v8.1.0".parse().unwrap(), "linux", "amd64").unwrap();
}

#[test]
fn a_new_root_counts_if_the_old_and_the_new_keys_signed_it() {
    let rotated = MadeMirror { roots: 3, ..mirror() }.files();
    let known = visit(&rotated["root.json"], &rotated, None).unwrap();
    assert_eq!(known.root.version(), 3);
}

#[test]
fn a_root_that_only_one_side_signed_is_refused() {
    let files = MadeMirror { roots: 2, ..mirror() }.files();
    let old = Root::known(&files["root.json"]).unwrap();
    let next = signed(&files["2.root.json"]);
    let without_old = old.next(&sign(&next, &[Signer::NewRoot, Signer::Root3])).unwrap_err();
    assert!(
        matches!(without_old.refusal, ManifestRefusal::TooFewSignatures { good: 1, .. }),
        "{without_old}"
    );
    let without_new = old.next(&sign(&next, &[Signer::Root1, Signer::Root2])).unwrap_err();
    assert!(
        matches!(without_new.refusal, ManifestRefusal::TooFewSignatures { good: 1, .. }),
        "{without_new}"
    );
    old.next(&sign(&next, &[Signer::Root2, Signer::Root3])).expect("both count on either side");
}

#[test]
fn no_root_can_be_skipped() {
    let files = MadeMirror { roots: 3, ..mirror() }.files();
    let old = Root::known(&files["root.json"]).unwrap();
    let error = old.next(&files["3.root.json"]).unwrap_err();
    assert_eq!(error.refusal, ManifestRefusal::RootGap { wanted: 2, offered: 3 });
    let error = old.next(&files["1.root.json"]).unwrap_err();
    assert_eq!(error.refusal, ManifestRefusal::RootGap { wanted: 2, offered: 1 });
}

#[test]
fn names_that_could_leave_their_folder_are_refused() {
    for bad in ["", ".", "..", "../x", "a/b", "/a", ".hidden", "-x", "a\0b", "a b", "ä"] {
        assert!(FileName::new(bad).is_err(), "{bad:?}");
        assert!(ComponentId::new(bad).is_err(), "{bad:?}");
    }
    assert!(ComponentId::new(&"x".repeat(65)).is_err());
    let mut files = first();
    change(&mut files, "1.dm-master.json", &[Signer::Owner], |it| {
        it["platforms"]["linux/amd64"]["v8.1.0"]["url"] = "/../../etc/passwd".into();
    });
    fit(&mut files, &mirror());
    let component = visit(&files["root.json"], &files, None).unwrap().component;
    let error = component.package(&"v8.1.0".parse().unwrap(), "linux", "amd64").unwrap_err();
    assert!(matches!(error.refusal, ManifestRefusal::BadField { .. }), "{error}");
}

#[test]
fn no_bytes_make_it_panic() {
    for bytes in [
        &b""[..],
        b"{}",
        b"[]",
        b"{\"signatures\":[],\"signed\":{}}",
        b"{\"signatures\":[{\"keyid\":\"\",\"sig\":\"\"}],\"signed\":null}",
        b"\xff\xfe",
        &[b'['; 100_000],
    ] {
        assert!(Root::known(bytes).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    /// Whatever happens to a file on its way: it is refused, or says what its owner signed.
    #[test]
    fn damage_is_refused_or_makes_no_difference(
        kind in 0_usize..5, at in any::<prop::sample::Index>(), cut in any::<bool>(), byte in any::<u8>(),
    ) {
        let files = first();
        let root = Root::known(&files["root.json"]).unwrap();
        let index = root.known_index(&files["1.index.json"]).unwrap();
        let name = ["root.json", "timestamp.json", "snapshot.json", "1.index.json", "1.dm-master.json"][kind];
        let whole = &files[name];
        let mut bytes = whole.clone();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] = byte }
        let is_believed = match kind {
            0 => Root::known(&bytes).is_ok(),
            1 => root.known_timestamp(&bytes).is_ok(),
            2 => root.known_snapshot(&bytes).is_ok(),
            3 => root.known_index(&bytes).is_ok(),
            _ => index.known_component(&master(), &bytes).is_ok(),
        };
        if is_believed {
            prop_assert_eq!(signed(&bytes), signed(whole));
        }
    }
}
