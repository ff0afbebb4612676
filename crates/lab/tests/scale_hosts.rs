//! `scale-out`, `scale-in`, `prune`, `exec` and `rotatessh` on real hosts while rows flow.
//!
//! Three masters, three workers and monitoring on three hosts; a fourth that nobody knows yet (block 13).

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::os::unix::fs::PermissionsExt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lab::Host;
use lab::dm::DmCluster;
use lab::hosts::HostSet;
use lab::scene::{CLUSTER, Scene, Shape, TASK};

/// Both have the same hosts.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
const PATIENCE: Duration = Duration::from_secs(60);

fn rows_are_whole(scene: &Scene) {
    let flow = scene.flow().expect("rows flow");
    scene.dm.wait_running(TASK, 2, PATIENCE).unwrap();
    for source in flow.writer.sources() {
        let seen = flow
            .witness
            .wait(&flow.writer, &source, PATIENCE, |it| it.arrived + 100 > it.written)
            .unwrap_or_else(|seen| panic!("{source}: {seen}"));
        assert_eq!((seen.lost, seen.doubled), (0, 0), "{source}: {seen}");
    }
}

/// `dm-HOST-PORT` as `HOST:PORT`: how the topology names a member that has no name of its own.
fn id_of(member: &str) -> String {
    let (host, port) = member.trim_start_matches("dm-").rsplit_once('-').unwrap();
    format!("{host}:{port}")
}

/// Starts a worker that no unit of the cluster starts.
fn run_by_hand(scene: &Scene, host: &Host, unit: &str, name: &str, port: u16) {
    let program = "/home/tidb/deploy/dm-worker-8262/bin/dm-worker/dm-worker";
    let unit = format!("--unit={unit}");
    let name = format!("--name={name}");
    let listens = format!("--worker-addr=0.0.0.0:{port}");
    let advertise = format!("--advertise-addr={}:{port}", host.address);
    let join = format!("--join={}", id_of(&scene.dm.leader().unwrap()));
    let words = ["systemd-run", &unit, program, &name, &listens, &advertise, &join];
    host.must_run(&words).unwrap();
}

fn is_online(worker: &str, wanted: bool) -> impl Fn(&DmCluster) -> Result<(), String> {
    move |dm| {
        let seen = dm.workers();
        let there = seen.iter().any(|(name, stage, _)| name == worker && stage != "offline");
        if there == wanted { Ok(()) } else { Err(format!("{seen:?}")) }
    }
}

/// DM lets nobody go who has a lease, and gives no other reason: whoever started it must end it.
fn dm_keeps_a_worker_that_somebody_has_started(scene: &Scene) {
    let workers = scene.dm.workers();
    let (free, ..) = workers.iter().find(|(_, stage, _)| stage == "free").unwrap();
    let id = id_of(free);
    let host = scene.hosts.hosts().iter().find(|it| id.starts_with(&it.address.to_string()));
    let host = host.unwrap();
    host.must_run(&["systemctl", "stop", "dm-worker-8262.service"]).unwrap();
    scene.dm.wait_until("it is down", PATIENCE, is_online(free, false)).unwrap();
    run_by_hand(scene, host, "by-hand", free, 8262);
    scene.dm.wait_until("it is up by hand", PATIENCE, is_online(free, true)).unwrap();
    let words = ["scale-in", CLUSTER, "-N", &id, "--yes"];
    let said = scene.dmup(&[&words[..], &["--wait-timeout", "1"]].concat()).with_code(1);
    let now = format!("now: {id} is stopped, does not start at boot, and is recorded");
    for text in ["error: take the worker off the member list", "code=46005", &now] {
        assert!(said.stderr.contains(text), "{text}\n{said}");
    }
    assert_eq!(scene.dm.workers().len(), workers.len(), "{said}");
    host.must_run(&["systemctl", "stop", "by-hand"]).unwrap();
    let said = scene.dmup(&words).well();
    assert_eq!(scene.dm.workers().len(), workers.len() - 1, "{said}");
}

/// `rotatessh`, whole and cut off in the middle.
fn keys_are_changed(scene: &Scene) {
    let folder = scene.operator.tiup_home().join("storage/dm/clusters").join(CLUSTER);
    let read = |name: &str| fs_err::read_to_string(folder.join(name)).unwrap();
    let allowed = |key: &str| {
        let key = key.split_whitespace().nth(1).unwrap().to_owned();
        let texts = (1..=3).map(|number| {
            let file = "/home/tidb/.ssh/authorized_keys";
            scene.hosts.run_on(number, &["cat", file]).unwrap()
        });
        texts.filter(|text| text.contains(&key)).count()
    };
    let put = |name: &str, text: &str| {
        let path = folder.join(name);
        fs_err::write(&path, text).unwrap();
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    let rotate = || scene.dmup(&["rotatessh", CLUSTER, "--yes"]).well();
    let (old, old_private) = (read("ssh/id_rsa.pub"), read("ssh/id_rsa"));
    assert_eq!(allowed(&old), 3);
    let said = rotate();
    let (new, new_private) = (read("ssh/id_rsa.pub"), read("ssh/id_rsa"));
    assert!(new != old && (allowed(&old), allowed(&new)) == (0, 3), "{said}");
    assert!(!folder.join("ssh/new").exists(), "{said}");

    // As if dmup had died before the hosts forgot the old key.
    put("dmup/former_key.pub", &old);
    let line = format!("echo '{}' >> .ssh/authorized_keys", old.trim());
    scene.dmup(&["exec", CLUSTER, "--command", &line]).well();
    assert_eq!(allowed(&old), 3);
    let said = rotate();
    assert!(said.stderr.contains("in use already"), "{said}");
    assert_eq!((allowed(&old), allowed(&new)), (0, 3), "{said}");
    assert_eq!(read("ssh/id_rsa.pub"), new, "{said}");

    // As a rotation of TiUP's leaves it when it fails: hosts know the next key alone.
    for (name, text) in [
        ("ssh/new", &new_private),
        ("ssh/new.pub", &new),
        ("ssh/id_rsa", &old_private),
        ("ssh/id_rsa.pub", &old),
    ] {
        put(name, text);
    }
    let said = rotate();
    assert_eq!((read("ssh/id_rsa"), allowed(&new)), (new_private, 3), "{said}");
}

/// Below v6.5.0 two workers would write at once if DM moved a source by itself (reference: DM's scheduler).
#[test]
#[ignore = "needs root and systemd-nspawn"]
fn a_bound_worker_of_an_old_version_goes_after_its_source_was_transferred() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let shape = Shape { version: "v6.1.0".to_owned(), masters: 1, workers: 3, ..Shape::three() };
    let scene = Scene::running("scale", 13, shape, 50).unwrap();
    let workers = scene.dm.workers();
    let (bound, _, _) = workers.iter().find(|(_, stage, _)| stage == "bound").unwrap().clone();
    let said = scene.dmup(&["scale-in", CLUSTER, "-N", &id_of(&bound), "--yes"]).well();
    assert_eq!(scene.dm.workers().len(), 2, "{said}");
    rows_are_whole(&scene);

    // The operator's own command, as the cluster's user and as root.
    let said = scene.dmup(&["exec", CLUSTER, "-R", "dm-master", "--command", "whoami; pwd"]).well();
    assert!(said.stdout.contains("stdout:\ntidb\n/home/tidb\n"), "{said}");
    let said = scene.dmup(&["exec", CLUSTER, "--sudo", "--command", "id -u"]).well();
    assert_eq!(said.stdout.matches("stdout:\n0\n").count(), 3, "{said}");
    keys_are_changed(&scene);

    // A host that is gone for good: refused, and done with --force. The other worker has its source already.
    let (lost, _, _) = scene.dm.workers().pop().unwrap();
    let id = id_of(&lost);
    let host = scene.hosts.hosts().iter().find(|it| id.starts_with(&it.address.to_string()));
    host.unwrap().power_off().unwrap();
    let refused = scene.dmup(&["scale-in", CLUSTER, "-N", &id, "--yes"]).with_code(3);
    assert!(refused.stderr.contains("cannot be reached"), "{refused}");
    let said = scene.dmup(&["scale-in", CLUSTER, "-N", &id, "--yes", "--force"]).well();
    assert_eq!(scene.dm.workers().len(), 1, "{said}");
}

#[test]
#[ignore = "needs root and systemd-nspawn"]
fn instances_come_patched_and_go_without_losing_rows_or_the_quorum() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let hosts = HostSet::fresh("scale", 13, 4).unwrap();
    let shape = Shape { monitoring: Some(1), ..Shape::three() };
    let mut scene = Scene::on(hosts, shape).unwrap();
    scene.deploy().unwrap();
    scene.replicate(50).unwrap();
    let fourth = scene.hosts.host(4).unwrap();
    let fix = scene.hotfix("fix.tar.gz", &scene.fixed()).unwrap();
    let patch =
        ["patch", CLUSTER, fix.as_str(), "--overwrite", "--soak", "0", "-R", "dm-master,dm-worker"];
    scene.dmup(&[&patch[..], &["--yes"]].concat()).well();

    // Out: a master and a worker on a host that is new to the cluster.
    let more = scene.operator.folder().join("more.yaml");
    let text =
        format!("master_servers:\n  - host: {0}\nworker_servers:\n  - host: {0}\n", fourth.address);
    fs_err::write(&more, text).unwrap();
    let key = scene.hosts.key_path();
    let words = ["scale-out", CLUSTER, more.as_str(), "-u", "root", "-i", key.as_str()];
    let said = scene.dmup(&[&words[..], &["--accept-new-host-keys", "--yes"]].concat()).well();
    let (_, fixed) = scene.running_hashes().remove(0);
    for unit in ["dm-master-8261.service", "dm-worker-8262.service"] {
        let runs = scene.running_hash(fourth, unit);
        assert_eq!(runs.as_ref(), Some(&fixed), "{unit} must run the hotfix\n{said}");
    }
    assert_eq!(scene.dm.workers().len(), 4, "{said}");
    let display = scene.dmup(&["display", CLUSTER]).well();
    assert_eq!(display.stdout.matches("(patched)").count(), 8, "{display}");
    assert_eq!(display.stdout.matches("Healthy").count(), 4, "{display}");
    let scraped = scene.hosts.run_on(
        1,
        &[
            "grep",
            "-c",
            &fourth.address.to_string(),
            "/home/tidb/deploy/prometheus-9090/conf/prometheus.yml",
        ],
    );
    assert_ne!(scraped.unwrap().trim(), "0");
    // What is there already is refused, and nothing of it is touched.
    let again = scene.dmup(&[&words[..], &["--yes"]].concat()).with_code(3);
    assert!(again.stderr.contains("nothing was touched"), "{again}");
    rows_are_whole(&scene);

    // In: all workers but one is too much for two sources; one that is bound goes.
    let workers = scene.dm.workers();
    let all: Vec<String> = workers[1..].iter().map(|(name, _, _)| id_of(name)).collect();
    let too_many = scene.dmup(&["scale-in", CLUSTER, "-N", &all.join(","), "--yes"]).with_code(3);
    assert!(too_many.stderr.contains("no free worker"), "{too_many}");
    let (bound, _, _) = workers.iter().find(|(_, stage, _)| stage == "bound").unwrap().clone();
    let id = id_of(&bound);
    let said = scene.dmup(&["scale-in", CLUSTER, "-N", &id, "--yes"]).well();
    let left = scene.dm.workers();
    assert!(left.len() == 3 && left.iter().all(|(name, _, _)| *name != bound), "{left:?}\n{said}");
    let host = scene.hosts.hosts().iter().find(|it| id.starts_with(&it.address.to_string()));
    let there = host.unwrap().run(&["ls", "/home/tidb/deploy/dm-worker-8262"]).unwrap();
    assert!(!there.status.success(), "files of {id} are there still\n{said}");
    rows_are_whole(&scene);

    // In: the leader. Another leads, and all that are left are members.
    let leader = scene.dm.leader().unwrap();
    let said = scene.dmup(&["scale-in", CLUSTER, "-N", &id_of(&leader), "--yes"]).well();
    assert_ne!(scene.dm.leader().unwrap(), leader, "{said}");
    let display = scene.dmup(&["display", CLUSTER]).well();
    assert_eq!(display.stdout.matches("Healthy").count(), 3, "{display}");
    assert!(display.stdout.contains("Total nodes: 9"), "{display}");
    rows_are_whole(&scene);

    // A member that nobody knows: refused while it runs, pruned when it is down.
    let worker = scene.dm.workers().remove(0).0;
    let id = id_of(&worker);
    let host = scene.hosts.hosts().iter().find(|it| id.starts_with(&it.address.to_string()));
    let host = host.unwrap();
    run_by_hand(&scene, host, "stray", "stray", 9262);
    scene.dm.wait_until("the stray has joined", PATIENCE, is_online("stray", true)).unwrap();
    let refused = scene.dmup(&["prune", CLUSTER]).with_code(3);
    assert!(refused.stderr.contains("stray"), "{refused}");
    host.must_run(&["systemctl", "stop", "stray"]).unwrap();
    scene.dm.wait_until("the stray is gone", PATIENCE, is_online("stray", false)).unwrap();
    let pruned = scene.dmup(&["prune", CLUSTER]).well();
    assert!(scene.dm.workers().iter().all(|(name, _, _)| name != "stray"), "{pruned}");

    dm_keeps_a_worker_that_somebody_has_started(&scene);

    let flow = scene.flow().expect("rows flow");
    for (source, seen) in flow.witness.settle(&flow.writer, PATIENCE) {
        assert!(seen.is_whole(), "{source}: {seen}");
    }
}
