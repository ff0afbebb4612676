//! The main job where hosts cannot be booted: a folder and a loopback address stand for each host, services are
//! plain processes.
//!
//! Everything but sshd, sudo and systemd is then still exercised with real processes and real etcd.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use camino::Utf8Path;
use lookalike::stamp::Stamp;

use crate::dm::DmCluster;
use crate::local_hosts::{self, LocalHost};
use crate::operator::Operator;
use crate::packages::{Component, Layout, Packer};
use crate::scene::{CLUSTER, Flow, SceneError, TASK, broken, good, program};
use crate::surroundings;

const HOSTS: u8 = 3;

/// Deploys three masters and three workers, lets rows flow, patches all, upgrades with a pause, takes that back, upgrades
/// again, reckons, destroys.
///
/// # Errors
///
/// It could not be set up, or a row was lost or doubled, or a process does not run the hotfix.
pub fn run(say: &mut dyn FnMut(&str)) -> Result<(), SceneError> {
    let folder = tempfile::tempdir().map_err(|error| broken("make a folder")(&error))?;
    let under = Utf8Path::from_path(folder.path())
        .ok_or_else(|| SceneError("the temporary folder is no UTF-8".to_owned()))?;
    let hosts =
        local_hosts::make(under, HOSTS).map_err(|error| broken("make local hosts")(&error))?;
    let operator = Operator::new(program(surroundings::dmup_binary(), surroundings::DMUP)?, under)
        .map_err(|error| broken("sit down")(&error))?
        .in_playground(&under.join("services"));
    let lookalike = program(surroundings::lookalike_binary(), surroundings::LOOKALIKE)?;
    let packing = |error: std::io::Error| broken("make packages")(&error);
    let official = Packer::new(&lookalike, &operator.packages()).map_err(packing)?;
    let (old, new) =
        (Stamp::new("v8.1.0", &"1".repeat(40)), Stamp::new("v8.1.0-hotfix", &"2".repeat(40)));
    let next = Stamp::new("v8.5.0", &"3".repeat(40));
    for component in [Component::DmMaster, Component::DmWorker] {
        official.package(component, &old).map_err(packing)?;
    }
    let hotfix = Packer::new(&lookalike, &under.join("packages"))
        .and_then(|packer| {
            let both = [Component::DmMaster, Component::DmWorker];
            packer.hotfix("dm-hotfix.tar.gz", &both, &new, Layout::TopFolder)
        })
        .map_err(packing)?;
    let topology = under.join("topology.yaml");
    fs_err::write(&topology, topology_text(&hosts))
        .map_err(|error| broken("write the topology")(&error))?;

    let mut typed = |words: &[&str]| -> Result<String, SceneError> {
        say(&format!("$ dmup {}", words.join(" ").replace(&format!("{under}/"), "")));
        let mut words = words.to_vec();
        words.extend(["--ssh", "none", "--yes"]);
        let said = operator.run(&words);
        for line in said.stdout.lines().chain(said.stderr.lines()) {
            say(line);
        }
        let text = said.stdout.clone();
        good(said).map(|()| text)
    };
    typed(&["deploy", CLUSTER, "v8.1.0", topology.as_str()])?;
    let outcome = (|| {
        typed(&["start", CLUSTER])?;
        let dm = DmCluster::new(
            hosts
                .iter()
                .zip(0..)
                .map(|(host, number)| format!("{}:{}", host.address, master_port(number))),
        );
        let flow = Flow::begin(&dm, IpAddr::V4(Ipv4Addr::LOCALHOST), HOSTS, 30)?;
        typed(&["patch", CLUSTER, hotfix.as_str()])?;
        typed(&["display", CLUSTER])?;
        for component in [Component::DmMaster, Component::DmWorker] {
            official.package(component, &next).map_err(packing)?;
        }
        let meta = operator.tiup_home().join("storage/dm/clusters").join(CLUSTER).join("meta.yaml");
        let script = hosts[1].folder.join("dm-worker/scripts/run_dm-worker.sh");
        let read = |path: &Utf8Path| {
            fs_err::read_to_string(path).map_err(|error| broken("read a file")(&error))
        };
        let rendered = read(&script)?;
        let by_hand = format!("{rendered}# by hand\n");
        fs_err::write(&script, &by_hand).map_err(|error| broken("change a script")(&error))?;
        // What is recorded, how many nodes are marked, and what lies on a host.
        let stands = |when: &str, version: &str, patched: usize, content: &str| {
            let (meta, there) = (read(&meta)?, read(&script)?);
            let marks = meta.matches("patched: true").count();
            if meta.contains(&format!("dm_version: {version}"))
                && marks == patched
                && there == content
            {
                return Ok(());
            }
            Err(SceneError(format!("{when}: the script is\n{there}\nand meta.yaml\n{meta}")))
        };
        let upgrade = ["upgrade", CLUSTER, "v8.5.0", "--soak", "0"];
        let plan = typed(&[&upgrade[..], &["--plan"]].concat())?;
        let heading = format!("Upgrade of {CLUSTER} from v8.1.0 to v8.5.0, 6 node(s)");
        if !plan.contains(&heading) || !plan.contains(&format!("differs: {script}")) {
            return Err(SceneError(format!("the plan says:\n{plan}")));
        }
        stands("after the plan", "v8.1.0", 6, &by_hand)?;
        typed(&[&upgrade[..], &["--pause-after", "4"]].concat())?;
        // All masters and one worker have it; which worker, DM decides.
        let between = read(&meta)?;
        if !between.contains("dm_version: v8.1.0") || between.matches("patched: true").count() != 2
        {
            return Err(SceneError(format!("half way meta.yaml says:\n{between}")));
        }
        typed(&["resume", CLUSTER])?;
        stands("after the upgrade", "v8.5.0", 0, &rendered)?;
        typed(&["rollback", CLUSTER, "--soak", "0"])?;
        stands("after the rollback", "v8.1.0", 6, &by_hand)?;
        typed(&upgrade)?;
        stands("after the second upgrade", "v8.5.0", 0, &rendered)?;
        typed(&upgrade)?;
        stands("after an upgrade to what is there", "v8.5.0", 0, &rendered)?;
        dm.wait_running(TASK, 2, Duration::from_secs(60))
            .map_err(|error| broken("replicate")(&error))?;
        let mut reckonings = Vec::new();
        for (source, seen) in flow.witness.settle(&flow.writer, Duration::from_secs(60)) {
            reckonings.push(format!("{source}: {seen}"));
            if !seen.is_whole() {
                return Err(SceneError(reckonings.join("; ")));
            }
        }
        Ok(reckonings)
    })();
    // Also after a failure: nothing may be left running.
    typed(&["destroy", CLUSTER, "--force"])?;
    for line in outcome? {
        say(&line);
    }
    Ok(())
}

/// Folders and ports of their own for every instance: all are on one file system, and DM listens on every address.
fn topology_text(hosts: &[LocalHost]) -> String {
    let user = rustix::process::getuid();
    let user = if user.is_root() { "root".to_owned() } else { user.as_raw().to_string() };
    let mut text = format!("global:\n  user: {user}\n  ssh_type: none\n");
    for (section, component) in [("master_servers", "dm-master"), ("worker_servers", "dm-worker")] {
        text.push_str(&format!("{section}:\n"));
        for (host, number) in hosts.iter().zip(0..) {
            text.push_str(&format!(
                "  - host: {}\n    deploy_dir: {}/{component}\n",
                host.address, host.folder
            ));
            if component == "dm-master" {
                text.push_str(&format!(
                    "    port: {}\n    peer_port: {}\n",
                    master_port(number),
                    master_port(number) + 5
                ));
            } else {
                text.push_str(&format!("    port: {}\n", master_port(number) + 1));
            }
        }
    }
    text
}

fn master_port(number: u16) -> u16 {
    18_260 + 10 * number
}
