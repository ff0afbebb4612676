//! What an agent reads on its host, all of it at once, for tests with hostile input (`fuzz/`).
//!
//! A host's tools and files are not written by us, and records of ours may be cut, old, or somebody else's: an agent that
//! panics over one cannot answer for its host any more.

use std::time::Duration;

use camino::Utf8Path;
use dmup_core::digest::Digest;
use dmup_core::ids::{ClusterName, InstanceId};
use dmup_core::systemd::SystemdMode;
use dmup_wire::lease::{Holder, LeaseAsk, LeaseOrder};
use fs_err as fs;

use crate::accounts;
use crate::archive::{self, Expected};
use crate::fence::Session;
use crate::guard;
use crate::host::Places;
use crate::lease::Leases;
use crate::processes;
use crate::services::systemd;
use crate::stage;

/// Reads bytes as what `systemctl show`, `/proc`, the user database and sshd's configuration say. A panic is what is
/// looked for.
pub fn read_as_every_word(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    systemd::read_shown(&text);
    processes::parse_start_time(&text);
    processes::parse_listening(&text);
    accounts::read_words(&text);
}

/// Puts bytes in the place of each record that an agent keeps on its host, below `folder`, and asks for it in all ways. A
/// panic is what is looked for.
///
/// # Panics
///
/// Also if a lease that somebody takes from another has no higher token than before: the one before would not be out.
pub fn read_as_every_record(bytes: &[u8], folder: &Utf8Path) {
    read_as_lease(bytes, &folder.join("leases"));
    let places = Places::supervised(SystemdMode::System, folder);
    let instance = InstanceId::new("198.18.0.11:8261").expect("a good id");
    let name = guard::file_name(&instance);
    for ending in ["json", "fired", "session"] {
        put(&places.guards, &format!("{name}.{ending}"), bytes);
    }
    drop(Session::since(1).pass(&places.guards, &instance));
    drop(guard::renew(&places, &instance, 30));
    drop(guard::disarm(&places, &instance));
    drop(guard::disarm(&places, &instance));
    put(folder, "content.json", bytes);
    drop(stage::manifest(&folder.join("content")));
}

/// Unpacks bytes below `folder` as what a controller sends, and as the tar in it, as if their hash were the announced
/// one. A panic is what is looked for.
///
/// # Panics
///
/// Also if a file outside of `folder/tree` was made.
pub fn read_as_parcel(bytes: &[u8], folder: &Utf8Path) {
    // Nothing that is changed at random is a frame of zstd any more.
    let packed = zstd::encode_all(bytes, 1).expect("memory takes everything");
    for bytes in [bytes, &packed] {
        let expected = Expected {
            digest: &Digest::of(bytes),
            compressed_bytes: bytes.len() as u64,
            unpacked_bytes: 1 << 20,
        };
        let tree = folder.join("tree");
        fs::create_dir_all(&tree).expect("a place for temporary files");
        drop(archive::unpack(&mut &*bytes, expected, &tree, false));
        fs::remove_dir_all(&tree).expect("what was unpacked is ours");
        let left = folder.read_dir_utf8().expect("it is still there").count();
        assert_eq!(left, 0, "something was made outside of the tree");
    }
}

fn read_as_lease(bytes: &[u8], dir: &Utf8Path) {
    const NOW_MS: i64 = 1_800_000_000_000;
    let cluster = ClusterName::new("prod").expect("a good name");
    let ask = |leases: &Leases, ask: LeaseAsk| {
        leases.answer(&LeaseOrder { cluster: cluster.clone(), ask }, NOW_MS).ok()
    };
    let holder = |desk: &str| Holder {
        desk: desk.to_owned(),
        run: desk.to_owned(),
        who: "ada@desk".to_owned(),
        what: "patch".to_owned(),
    };
    let take = |desk: &str| LeaseAsk::Take { holder: holder(desk), ttl_s: 60, after: None };
    put(dir, "prod.json", bytes);
    let leases = Leases::patient(Some(dir.to_owned()), Duration::ZERO);
    drop(ask(&leases, LeaseAsk::Look));
    drop(ask(&leases, take("one")));
    drop(ask(&leases, LeaseAsk::Renew { ttl_s: 60 }));
    let before = leases.token(&cluster);
    let other = Leases::patient(Some(dir.to_owned()), Duration::ZERO);
    drop(ask(&other, LeaseAsk::Break { by: "bob@desk".to_owned() }));
    assert!(other.token(&cluster) > before, "the lease was broken and its token did not rise");
    drop(ask(&other, take("two")));
    drop(ask(&leases, LeaseAsk::GiveBack));
}

fn put(folder: &Utf8Path, name: &str, bytes: &[u8]) {
    let made = fs::create_dir_all(folder).and_then(|()| fs::write(folder.join(name), bytes));
    made.expect("a place for temporary files");
}
