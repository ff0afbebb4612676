//! Whole visits: mirrors in folders and behind HTTP, with and without what was kept before.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;

use camino::Utf8PathBuf;
use jiff::Timestamp;
use lab::mirror::{MadeMirror, serve};

use super::{MirrorError, Obtained, Repository, Source, SourceProblem, Version, Wanted, address};
use crate::trust::{ComponentId, FileName, ManifestRefusal, limits};

fn edition(edition: u64) -> MadeMirror {
    MadeMirror { edition, ..MadeMirror::default() }
        .with("dm-worker", "v8.1.0", "linux/amd64", b"the worker")
        .with("alertmanager", "v0.26.0", "linux/amd64", b"twenty-six")
        .with("alertmanager", "v0.9.0", "linux/amd64", b"nine")
}

/// A `TIUP_HOME` and a mirror in a folder.
struct Desk {
    _guard: tempfile::TempDir,
    home: Utf8PathBuf,
    mirror: Utf8PathBuf,
}

impl Desk {
    /// With the mirror's first edition, and its root as the anchor.
    fn new() -> Self {
        let guard = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(guard.path().to_owned()).unwrap();
        let desk = Self { _guard: guard, home: path.join("tiup"), mirror: path.join("mirror") };
        desk.publish(&edition(1));
        std::fs::create_dir_all(desk.home.join("bin")).unwrap();
        std::fs::copy(desk.mirror.join("root.json"), desk.home.join("bin/root.json")).unwrap();
        desk
    }

    fn publish(&self, mirror: &MadeMirror) {
        mirror.write_to(&self.mirror).unwrap();
    }

    /// As if its disk were not mounted.
    fn take_mirror_away(&self) {
        std::fs::remove_dir_all(&self.mirror).unwrap();
    }

    fn package(&self, name: &str) -> Utf8PathBuf {
        self.home.join("storage/dm/packages").join(name)
    }

    fn put(&self, name: &str, content: &[u8]) {
        let path = self.package(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    async fn obtain(&self, component: &str, version: &str) -> Result<Obtained, Arc<MirrorError>> {
        self.obtain_from(self.mirror.as_str(), component, version, "2026-01-01T00:00:00Z").await
    }

    async fn obtain_from(
        &self,
        mirror: &str,
        component: &str,
        version: &str,
        now: &str,
    ) -> Result<Obtained, Arc<MirrorError>> {
        let now: Timestamp = now.parse().unwrap();
        let packages = self.home.join("storage/dm/packages");
        let version = match version {
            "" => Version::Newest,
            "latest" => Version::Latest,
            exact => Version::Exact(exact.parse().unwrap()),
        };
        let wanted = Wanted {
            component: ComponentId::new(component).unwrap(),
            version,
            os: "linux".to_owned(),
            arch: "amd64".to_owned(),
        };
        Repository::new(Some(mirror), &self.home, &packages, now)
            .obtain(&wanted, &mut |_, _, _| {})
            .await
    }

    /// What lies in the folder of packages.
    fn packages(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.home.join("storage/dm/packages")) else {
            return Vec::new();
        };
        let mut names: Vec<String> =
            entries.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

const WORKER: &str = "dm-worker-v8.1.0-linux-amd64.tar.gz";

#[track_caller]
fn refusal(error: &MirrorError) -> &ManifestRefusal {
    let MirrorError::Manifest { source, .. } = error else { panic!("{error:?}") };
    &source.refusal
}

#[tokio::test]
async fn a_package_is_fetched_once_and_then_taken_without_the_mirror() {
    let desk = Desk::new();
    let first = desk.obtain("dm-worker", "v8.1.0").await.unwrap();
    assert_eq!(first.fetched_bytes, 10);
    assert_eq!(std::fs::read(&first.path).unwrap(), b"the worker");
    assert_eq!(first.path, desk.package(WORKER));
    desk.take_mirror_away();
    let second = desk.obtain("dm-worker", "v8.1.0").await.unwrap();
    assert_eq!((second.fetched_bytes, second.warnings), (0, vec![]));
}

#[tokio::test]
async fn it_works_over_http_as_well_and_says_how_far_it_is() {
    let desk = Desk::new();
    let url = serve(edition(1).files()).unwrap();
    let mut told = Vec::new();
    let wanted = Wanted {
        component: ComponentId::new("dm-worker").unwrap(),
        version: Version::Exact("v8.1.0".parse().unwrap()),
        os: "linux".to_owned(),
        arch: "amd64".to_owned(),
    };
    let packages = desk.home.join("packages");
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    let obtained = Repository::new(Some(&url), &desk.home, &packages, now)
        .obtain(&wanted, &mut |file, count, all| told.push((file.to_string(), count, all)))
        .await
        .unwrap();
    assert_eq!(std::fs::read(obtained.path).unwrap(), b"the worker");
    assert_eq!(told.last(), Some(&(WORKER.to_owned(), 10, 10)));
}

#[tokio::test]
async fn tiup_finds_what_was_believed_where_it_keeps_it() {
    let desk = Desk::new();
    desk.obtain("dm-worker", "v8.1.0").await.unwrap();
    for (kept, at_mirror) in [
        ("timestamp.json", "timestamp.json"),
        ("snapshot.json", "snapshot.json"),
        ("index.json", "1.index.json"),
        ("dm-worker.json", "1.dm-worker.json"),
    ] {
        let kept = std::fs::read(desk.home.join("manifests").join(kept)).unwrap();
        assert_eq!(kept, std::fs::read(desk.mirror.join(at_mirror)).unwrap(), "{at_mirror}");
    }
}

#[tokio::test]
async fn the_latest_is_the_mirrors_whatever_is_at_hand_unless_it_does_not_say() {
    let desk = Desk::new();
    desk.obtain("alertmanager", "").await.unwrap();
    desk.publish(&edition(2).with("alertmanager", "v0.27.0", "linux/amd64", b"twenty-seven"));
    let latest = desk.obtain("alertmanager", "latest").await.unwrap();
    assert_eq!(latest.path, desk.package("alertmanager-v0.27.0-linux-amd64.tar.gz"));
    // Somebody's own is newer.
    let own = "alertmanager-v0.28.0-linux-amd64.tar.gz";
    desk.put(own, b"twenty-eight");
    assert_eq!(desk.obtain("alertmanager", "latest").await.unwrap().path, desk.package(own));
    desk.take_mirror_away();
    let at_hand = desk.obtain("alertmanager", "latest").await.unwrap();
    assert_eq!(at_hand.path, desk.package(own));
    let told = at_hand.warnings.iter().any(|it| it.starts_with("is the newest at hand"));
    assert!(told, "{:?}", at_hand.warnings);
}

#[tokio::test]
async fn the_newest_is_the_newest_at_hand_and_else_the_mirrors() {
    let desk = Desk::new();
    let newest = desk.obtain("alertmanager", "").await.unwrap();
    assert_eq!(newest.path, desk.package("alertmanager-v0.26.0-linux-amd64.tar.gz"));
    desk.take_mirror_away();
    assert_eq!(desk.obtain("alertmanager", "").await.unwrap().path, newest.path);
}

#[tokio::test]
async fn without_a_root_nothing_is_believed() {
    let desk = Desk::new();
    std::fs::remove_file(desk.home.join("bin/root.json")).unwrap();
    let error = desk.obtain("dm-worker", "v8.1.0").await.unwrap_err();
    assert!(matches!(&*error, MirrorError::NoRoot { .. }), "{error}");
    assert!(!desk.home.join("manifests").exists());
    assert!(desk.packages().is_empty());
}

#[tokio::test]
async fn the_root_of_another_mirror_believes_nothing() {
    let desk = Desk::new();
    // As root it says the owner's key, which signs nothing of the kind.
    let other = lab::mirror::signed(&std::fs::read(desk.mirror.join("root.json")).unwrap());
    let mut other = other;
    other["roles"]["timestamp"]["keys"] = lab::mirror::public_keys(&[lab::mirror::Signer::Owner]);
    let by = [lab::mirror::Signer::Root1, lab::mirror::Signer::Root2];
    std::fs::write(desk.home.join("bin/root.json"), lab::mirror::sign(&other, &by)).unwrap();
    let error = desk.obtain("dm-worker", "v8.1.0").await.unwrap_err();
    assert!(matches!(refusal(&error), ManifestRefusal::TooFewSignatures { good: 0, .. }));
}

#[tokio::test]
async fn a_mirror_that_was_set_back_is_refused_and_what_is_known_stays() {
    let desk = Desk::new();
    desk.publish(&edition(2));
    desk.obtain("dm-worker", "v8.1.0").await.unwrap();
    let known = std::fs::read(desk.home.join("manifests/timestamp.json")).unwrap();
    desk.publish(&edition(1));
    let error = desk.obtain("alertmanager", "v0.9.0").await.unwrap_err();
    assert_eq!(*refusal(&error), ManifestRefusal::RolledBack { known: 2, offered: 1 });
    assert_eq!(std::fs::read(desk.home.join("manifests/timestamp.json")).unwrap(), known);
    assert_eq!(desk.packages(), [WORKER]);
}

#[tokio::test]
async fn keys_that_changed_twice_since_the_last_visit_are_followed() {
    let desk = Desk::new();
    desk.publish(&MadeMirror { roots: 3, ..edition(2) });
    desk.obtain("dm-worker", "v8.1.0").await.unwrap();
    let kept = |name: &str| std::fs::read(desk.home.join("manifests").join(name)).unwrap();
    assert_eq!(kept("root.json"), std::fs::read(desk.mirror.join("3.root.json")).unwrap());
    assert_eq!(kept("2.root.json"), std::fs::read(desk.mirror.join("2.root.json")).unwrap());
}

#[tokio::test]
async fn a_gap_in_the_roots_ends_at_the_gap() {
    let desk = Desk::new();
    desk.publish(&MadeMirror { roots: 3, ..edition(2) });
    // The second is the third under a false name.
    let third = std::fs::read(desk.mirror.join("3.root.json")).unwrap();
    std::fs::write(desk.mirror.join("2.root.json"), third).unwrap();
    let error = desk.obtain("dm-worker", "v8.1.0").await.unwrap_err();
    assert_eq!(*refusal(&error), ManifestRefusal::RootGap { wanted: 2, offered: 3 });
    assert!(!desk.home.join("manifests/root.json").exists());
}

#[tokio::test]
async fn a_package_that_is_not_what_was_signed_is_never_put_in_place() {
    let desk = Desk::new();
    for wrong in [&b"the w0rker"[..], b"the worke", b"the worker and more"] {
        std::fs::write(desk.mirror.join(WORKER), wrong).unwrap();
        let error = desk.obtain("dm-worker", "v8.1.0").await.unwrap_err();
        let said = format!("{error:?}");
        let is_refused = said.contains("OtherHash") || said.contains("TooLarge");
        assert!(is_refused, "{said}");
        assert!(desk.packages().is_empty(), "{:?}", desk.packages());
    }
}

#[tokio::test]
async fn a_package_at_hand_with_another_hash_is_fetched_again() {
    let desk = Desk::new();
    desk.put(WORKER, b"altered");
    let obtained = desk.obtain("dm-worker", "v8.1.0").await.unwrap();
    assert_eq!(std::fs::read(obtained.path).unwrap(), b"the worker");
    assert!(obtained.warnings[0].ends_with("not what the mirror signed, and was fetched again"));
}

#[tokio::test]
async fn a_package_at_hand_with_another_hash_is_refused_when_there_is_no_mirror() {
    let desk = Desk::new();
    desk.obtain("dm-worker", "v8.1.0").await.unwrap();
    desk.take_mirror_away();
    desk.put(WORKER, b"altered");
    let error = desk.obtain("dm-worker", "v8.1.0").await.unwrap_err();
    assert!(matches!(&*error, MirrorError::Altered { .. }), "{error}");
    assert_eq!(std::fs::read(desk.package(WORKER)).unwrap(), b"altered", "it stays for looking at");
}

#[tokio::test]
async fn a_package_at_hand_is_used_with_a_warning_when_nothing_can_be_compared() {
    for spoil in [
        // Unreachable.
        Box::new(|desk: &Desk| desk.take_mirror_away()) as Box<dyn Fn(&Desk)>,
        // Expired.
        Box::new(|desk: &Desk| {
            desk.publish(&MadeMirror { expires: "2025-01-01T00:00:00Z".to_owned(), ..edition(1) });
        }),
        // Not believed.
        Box::new(|desk: &Desk| std::fs::write(desk.mirror.join("timestamp.json"), "{}").unwrap()),
    ] {
        let desk = Desk::new();
        spoil(&desk);
        desk.put(WORKER, b"by hand");
        let obtained = desk.obtain("dm-worker", "v8.1.0").await.unwrap();
        assert_eq!(obtained.warnings.len(), 1);
        assert!(
            obtained.warnings[0].contains("used as it is, compared with nothing: "),
            "{:?}",
            obtained.warnings
        );
        desk.obtain("alertmanager", "v0.9.0").await.expect_err("this one is not at hand");
    }
}

#[tokio::test]
async fn a_version_that_the_mirror_does_not_list_is_used_if_it_is_at_hand() {
    let desk = Desk::new();
    desk.put("dm-worker-v8.1.0-hotfix-linux-amd64.tar.gz", b"our own");
    let obtained = desk.obtain("dm-worker", "v8.1.0-hotfix").await.unwrap();
    assert!(obtained.warnings[0].ends_with("the mirror does not list it"));
    let error = desk.obtain("dm-worker", "v8.1.1").await.unwrap_err();
    assert!(matches!(refusal(&error), ManifestRefusal::NotListed(_)), "{error}");
}

#[tokio::test]
async fn what_was_signed_once_counts_after_its_date_with_a_warning() {
    let desk = Desk::new();
    desk.obtain("dm-worker", "v8.1.0").await.unwrap();
    desk.take_mirror_away();
    let mirror = desk.mirror.as_str();
    let late = desk.obtain_from(mirror, "dm-worker", "v8.1.0", "2101-01-01T00:00:00Z");
    let obtained = late.await.unwrap();
    assert!(obtained.warnings[0].contains("a manifest that expired at 2100-01-01T00:00:00Z"));
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        // Until the client has had enough.
        while stream.write_all(&[b' '; 4096]).is_ok() {}
    });
    let source = Source::at(&url).unwrap();
    let file = FileName::new("timestamp.json").unwrap();
    let error = source.fetch(&file, limits::TIMESTAMP_BYTES).await.unwrap_err();
    assert!(matches!(error.problem, SourceProblem::TooLarge { .. }), "{error}");
    // The connection is closed by a task, so this one must not block.
    tokio::task::spawn_blocking(|| server.join().unwrap()).await.unwrap();
}

/// Answers one request after the other, each with its own answer, and each on a connection of its own.
fn serve_in_turn(answers: Vec<Vec<u8>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).unwrap();
            stream.write_all(&answer).unwrap();
        }
    });
    url
}

fn http(status: &str, announced: usize, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Length: {announced}\r\nConnection: close\r\n\r\n{body}")
        .into_bytes()
}

#[tokio::test]
async fn what_may_pass_is_tried_again_from_the_beginning() {
    let url = serve_in_turn(vec![
        http("503 Service Unavailable", 0, ""),
        http("200 OK", 10, "the w"),
        http("200 OK", 10, "the worker"),
    ]);
    let mut to = fs_err::File::from_parts(tempfile::tempfile().unwrap(), "package");
    let file = FileName::new(WORKER).unwrap();
    Source::at(&url).unwrap().download(&file, 10, &mut to, &mut |_| {}).await.unwrap();
    let mut whole = String::new();
    std::io::Seek::rewind(&mut to).unwrap();
    to.read_to_string(&mut whole).unwrap();
    assert_eq!(whole, "the worker");
}

#[tokio::test]
async fn what_does_not_pass_is_not_tried_again_or_given_up() {
    let file = FileName::new("timestamp.json").unwrap();
    let once = serve_in_turn(vec![http("403 Forbidden", 0, "")]);
    let error = Source::at(&once).unwrap().fetch(&file, 100).await.unwrap_err();
    assert!(matches!(error.problem, SourceProblem::Status(403)), "{error}");
    let thrice = serve_in_turn(vec![http("502 Bad Gateway", 0, ""); 3]);
    let error = Source::at(&thrice).unwrap().fetch(&file, 100).await.unwrap_err();
    assert!(matches!(error.problem, SourceProblem::Status(502)), "{error}");
    let long = serve_in_turn(vec![http("200 OK", 101, "")]);
    let error = Source::at(&long).unwrap().fetch(&file, 100).await.unwrap_err();
    assert!(matches!(error.problem, SourceProblem::TooLarge { limit: 100 }), "{error}");
}

#[test]
fn a_password_in_the_address_is_never_shown() {
    let source = Source::at("https://me:secret@mirror.example/dm?token=secret").unwrap();
    assert_eq!(source.to_string(), "https://mirror.example/dm");
    let error = Source::at("https://me:secret@:/x").unwrap_err();
    assert!(!error.to_string().contains("secret"), "{error}");
}

#[test]
fn the_address_is_tiups() {
    let desk = Desk::new();
    assert_eq!(address(None, &desk.home).unwrap(), "https://tiup-mirrors.pingcap.com");
    std::fs::write(desk.home.join("tiup.toml"), "mirror = \"/srv/mirror\"\n").unwrap();
    assert_eq!(address(None, &desk.home).unwrap(), "/srv/mirror");
    assert_eq!(address(Some("http://other"), &desk.home).unwrap(), "http://other");
    std::fs::write(desk.home.join("tiup.toml"), "mirror = [").unwrap();
    assert!(address(None, &desk.home).is_err());
}
