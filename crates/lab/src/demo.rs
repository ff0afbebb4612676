//! The main job on real hosts, told from outside: deploy, replicate, hotfix every node while rows flow, reckon.
//!
//! What is printed is what was measured: rows by the witness, builds by the hash of
//! `/proc/PID/exe` read on the hosts, leadership by asking the masters all the while.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use crate::dm::DmCluster;
use crate::hosts::HostSet;
use crate::operator::Said;
use crate::packages::Component;
use crate::scene::{CLUSTER, Scene, SceneError, Shape, TASK};

const SET: &str = "demo";
const BLOCK: u8 = 1;
const ROWS_PER_S: u32 = 50;

/// Runs the demo; `say` gets every line. `keep` leaves hosts and cluster up and prints how to play with them.
///
/// # Errors
///
/// It could not be set up, or what must not happen did: a row lost or doubled, a process on another build, no quorum.
pub fn run(keep: bool, say: &mut dyn FnMut(&str)) -> Result<(), SceneError> {
    let began = Instant::now();
    let mut phases = Vec::new();
    let mut phase = |name: &'static str, since: Instant| phases.push((name, since.elapsed()));

    let since = Instant::now();
    say("Four hosts: three with a master and a worker each, one with the monitoring.");
    let shape = Shape::with_monitoring();
    let hosts = HostSet::fresh(SET, BLOCK, shape.hosts())
        .map_err(|error| SceneError(format!("boot hosts: {error}")))?;
    let mut scene = Scene::on(hosts, shape)?;
    phase("boot hosts, make packages", since);

    let since = Instant::now();
    let key = scene.hosts.key_path();
    let topology = scene.topology();
    let version = scene.shape.version.clone();
    typed(
        &scene,
        &[
            "deploy",
            CLUSTER,
            &version,
            topology.as_str(),
            "-u",
            "root",
            "-i",
            key.as_str(),
            "--accept-new-host-keys",
            "--yes",
        ],
        say,
    )?;
    phase("deploy", since);
    let since = Instant::now();
    typed(&scene, &["start", CLUSTER], say)?;
    phase("start", since);
    let since = Instant::now();
    scene.replicate(ROWS_PER_S)?;
    say(&format!("Two sources get {ROWS_PER_S} rows a second each; they arrive."));
    phase("rows arrive", since);

    typed(&scene, &["display", CLUSTER], say)?;
    let package = scene.hotfix("dm-hotfix-linux-amd64.tar.gz", &scene.fixed())?;
    let wanted = wanted_hashes(&scene)?;
    let before = scene.running_hashes();
    let watch = LeaderWatch::begin(&scene.dm);
    scene.mark_rows();
    let since = Instant::now();
    typed(&scene, &["patch", CLUSTER, package.as_str(), "--yes"], say)?;
    phase("patch", since);
    let leaders = watch.end();
    typed(&scene, &["display", CLUSTER], say)?;

    let mut wrong = Vec::new();
    say("");
    say("Which build runs, by the hash of /proc/PID/exe:");
    let after = scene.running_hashes();
    for ((place, old), (_, new)) in before.iter().zip(&after) {
        let short = |hash: &str| hash.get(..12).unwrap_or(hash).to_owned();
        say(&format!("  {place:<28} {} -> {}", short(old), short(new)));
        if !wanted.iter().any(|hash| hash == new) || old == new {
            wrong.push(format!("{place} does not run the hotfix"));
        }
    }
    say("Rows, counted by the target:");
    for (source, seen) in scene.settle_rows(ROWS_PER_S, Duration::from_secs(60))? {
        say(&format!("  {source}: {seen}"));
        if !seen.is_whole() {
            wrong.push(format!("rows of {source} are lost or doubled"));
        }
    }
    for (source, stage) in scene.dm.stages(TASK) {
        if stage != "Running" {
            wrong.push(format!("the subtask of {source} is {stage}"));
        }
    }
    say(&format!(
        "Leadership: {} change(s); longest time in which no master named a leader: {:.1} s",
        leaders.changes,
        leaders.longest_without.as_secs_f64()
    ));
    if leaders.longest_without > Duration::from_secs(10) {
        wrong.push("the masters had no leader for more than 10 s".to_owned());
    }
    say("Seconds per phase:");
    for (name, took) in &phases {
        say(&format!("  {name:<28} {:>6.1}", took.as_secs_f64()));
    }
    say(&format!("  {:<28} {:>6.1}", "all", began.elapsed().as_secs_f64()));
    if !wrong.is_empty() {
        return Err(SceneError(wrong.join("; ")));
    }
    if keep {
        leave(scene, say)?;
    } else {
        say("Taking the hosts down.");
        scene
            .into_hosts()
            .down()
            .map_err(|error| SceneError(format!("take the hosts down: {error}")))?;
    }
    Ok(())
}

/// The hosts and the cluster stay; rows stop, as their writer ends with us.
fn leave(scene: Scene, say: &mut dyn FnMut(&str)) -> Result<(), SceneError> {
    let home = scene.operator.tiup_home();
    let dmup = crate::surroundings::dmup_binary().unwrap_or_else(|| "dmup".into());
    let kept = crate::surroundings::cache_folder().join("demo");
    drop(fs_err::remove_dir_all(&kept));
    let copied = std::process::Command::new("cp")
        .args(["-a", home.parent().map_or(home.as_str(), |it| it.as_str()), kept.as_str()])
        .status();
    if !copied.is_ok_and(|status| status.success()) {
        return Err(SceneError(format!("keep the operator's files in {kept}")));
    }
    say("");
    say(
        "The cluster stays up. Both ends of its rows are gone now, so its tasks have errors and `patch` wants --force. To play with it:",
    );
    say(&format!("  export TIUP_HOME={kept}/tiup HOME={kept}"));
    say(&format!("  {dmup} display {CLUSTER}"));
    say(&format!("  {dmup} rollback {CLUSTER}"));
    say("  cargo xtask hosts list; cargo xtask hosts ssh --set demo h1");
    say("To end it: cargo xtask hosts down --set demo");
    scene.into_hosts().leave();
    Ok(())
}

/// Types a command, shows it and what it said.
fn typed(scene: &Scene, words: &[&str], say: &mut dyn FnMut(&str)) -> Result<(), SceneError> {
    let folder = format!("{}/", scene.operator.folder());
    say("");
    let key = scene.hosts.key_path();
    let line = words.join(" ").replace(&folder, "").replace(key.as_str(), "id_ed25519");
    say(&format!("$ dmup {line}"));
    let said: Said = scene.dmup(words);
    for line in said.stdout.lines().chain(said.stderr.lines()) {
        say(line);
    }
    if said.code == 0 {
        Ok(())
    } else {
        Err(SceneError(format!("`dmup {line}` ended with {}", said.code)))
    }
}

/// SHA-256 of the executables in the hotfix: made again the same way, not asked of `dmup`.
fn wanted_hashes(scene: &Scene) -> Result<Vec<String>, SceneError> {
    [Component::DmMaster, Component::DmWorker]
        .into_iter()
        .map(|component| scene.packer.program(component, &scene.fixed()))
        .map(|program| program.map(|bytes| hex::encode(Sha256::digest(bytes))))
        .collect::<Result<_, _>>()
        .map_err(|error| SceneError(format!("hash the hotfix: {error}")))
}

/// Asks for the leader ten times a second.
struct LeaderWatch {
    ended: Arc<AtomicBool>,
    seen: Arc<Mutex<Leaders>>,
    thread: thread::JoinHandle<()>,
}

/// What the watch saw.
#[derive(Clone, Debug, Default)]
struct Leaders {
    changes: u32,
    longest_without: Duration,
    looks: BTreeMap<String, u32>,
}

impl LeaderWatch {
    fn begin(dm: &DmCluster) -> Self {
        let (ended, seen) =
            (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Leaders::default())));
        let (dm, stop, shared) = (dm.clone(), Arc::clone(&ended), Arc::clone(&seen));
        let thread = thread::spawn(move || {
            let mut last: Option<String> = None;
            let mut without_since: Option<Instant> = None;
            while !stop.load(Ordering::Relaxed) {
                let leader = dm.leader();
                let mut seen = shared.lock().expect("no panic under this lock");
                if let Some(leader) = leader {
                    without_since = None;
                    *seen.looks.entry(leader.clone()).or_default() += 1;
                    if last.as_ref().is_some_and(|before| *before != leader) {
                        seen.changes += 1;
                    }
                    last = Some(leader);
                } else {
                    let since = *without_since.get_or_insert_with(Instant::now);
                    seen.longest_without = seen.longest_without.max(since.elapsed());
                }
                drop(seen);
                thread::sleep(Duration::from_millis(100));
            }
        });
        Self { ended, seen, thread }
    }

    fn end(self) -> Leaders {
        self.ended.store(true, Ordering::Relaxed);
        // A thread that panicked has said so; its last word counts all the same.
        drop(self.thread.join());
        self.seen.lock().expect("no panic under this lock").clone()
    }
}
