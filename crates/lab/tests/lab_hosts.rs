//! The test hosts themselves: two sets side by side, every fault shows and goes away again, nothing is left behind.
//!
//! Blocks 6 and 7. Whatever is waited for is looked at again and again up to a generous bound; nothing is asserted right after a
//! change.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::process::{Command, Stdio};
use std::time::Duration;

use camino::Utf8Path;
use lab::hosts::{self, Host, HostSet, UnitSignal};
use lab::wait_until;

const BOUND: Duration = Duration::from_secs(60);

#[track_caller]
fn soon(what: &str, holds: impl FnMut() -> bool) {
    assert!(wait_until(BOUND, holds), "not within {BOUND:?}: {what}");
}

fn logs_in(host: &Host) -> bool {
    host.ssh(&["true"]).unwrap().status.success()
}

fn word(host: &Host, argv: &[&str]) -> String {
    String::from_utf8(host.run(argv).unwrap().stdout).unwrap().trim().to_owned()
}

fn boot_id(host: &Host) -> String {
    word(host, &["cat", "/proc/sys/kernel/random/boot_id"])
}

/// Names of what this machine has of a set: namespaces, interfaces, mounts, control groups.
fn traces(set: &str, block: u8) -> Vec<String> {
    let mut found = Vec::new();
    for folder in ["/run/netns", "/sys/class/net", "/run/systemd/nspawn/propagate"] {
        let Ok(entries) = Utf8Path::new(folder).read_dir_utf8() else { continue };
        for entry in entries {
            let name = entry.unwrap().file_name().to_owned();
            let ours = name.starts_with(&format!("dmup-{set}-"))
                || name == format!("dmup{block}")
                || name.starts_with(&format!("dmup{block}-"));
            if ours {
                found.push(format!("{folder}/{name}"));
            }
        }
    }
    let mounts = fs_err::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(
        mounts.lines().filter(|line| line.contains(&format!("dmup-{set}-"))).map(Into::into),
    );
    found.extend(
        mounts.lines().filter(|line| line.contains(&format!("/dmup-lab/{set}/"))).map(Into::into),
    );
    let groups = Command::new("find")
        .args(["/sys/fs/cgroup", "-path", &format!("*/dmup-{set}-h*")])
        .output()
        .unwrap();
    found.extend(String::from_utf8(groups.stdout).unwrap().lines().map(Into::into));
    for entry in Utf8Path::new("/proc").read_dir_utf8().unwrap() {
        let entry = entry.unwrap();
        let line = fs_err::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        if line.contains(&format!("/dmup-lab/{set}/")) {
            found.push(line);
        }
    }
    if Utf8Path::new("/var/lib/dmup-lab").join(set).exists() {
        found.push("folder".into());
    }
    found
}

#[test]
#[ignore = "needs root and systemd-nspawn"]
fn two_sets_live_side_by_side_and_leave_nothing_behind() {
    let one = HostSet::fresh("lab-one", 6, 2).unwrap();
    let other = HostSet::fresh("lab-other", 7, 2).unwrap();
    for set in [&one, &other] {
        for host in set.hosts() {
            assert!(logs_in(host), "{}", host.name);
            assert_eq!(word(host, &["hostname"]), host.name);
        }
        // Hosts know each other by name and reach each other and this machine.
        set.run_on(1, &["bash", "-c", "exec 3<>/dev/tcp/h2/22 && head -c 4 <&3"]).unwrap();
        let listener = std::net::TcpListener::bind((set.gateway(), 0)).unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        set.run_on(2, &["bash", "-c", "exec 3<>/dev/tcp/$0/$1", &set.gateway().to_string(), &port])
            .unwrap();
    }
    // Each host is a machine of its own.
    let ids: Vec<String> = one
        .hosts()
        .iter()
        .chain(other.hosts())
        .map(|host| word(host, &["cat", "/etc/machine-id"]))
        .collect();
    let unlike: std::collections::BTreeSet<&String> = ids.iter().collect();
    assert_eq!(unlike.len(), 4, "{ids:?}");
    // A unit of one host is not the unit of the other, though they have the same name.
    for host in one.hosts() {
        host.must_run(&["systemd-run", "--unit=dm-test", "sleep", "infinity"]).unwrap();
    }
    one.hosts()[0].must_run(&["systemctl", "stop", "dm-test"]).unwrap();
    soon("h2's unit is active", || {
        word(&one.hosts()[1], &["systemctl", "is-active", "dm-test"]) == "active"
    });

    assert!(matches!(hosts::down("lab-one"), Err(lab::LabError::InUse(_))));
    one.down().unwrap();
    assert_eq!(traces("lab-one", 6), [""; 0]);
    assert!(other.hosts().iter().all(logs_in));
    drop(other);
    assert_eq!(traces("lab-other", 7), [""; 0]);
}

#[test]
#[ignore = "needs root and systemd-nspawn"]
fn going_up_again_keeps_hosts_and_going_down_twice_is_fine() {
    let set = HostSet::fresh("lab-again", 6, 1).unwrap();
    let before = boot_id(&set.hosts()[0]);
    set.leave();
    let set = HostSet::up("lab-again", 6, 1).unwrap();
    assert_eq!(boot_id(&set.hosts()[0]), before);
    set.leave();
    assert!(matches!(HostSet::up("lab-again", 6, 2), Err(lab::LabError::Different { .. })));
    assert!(matches!(HostSet::up("lab-thief", 6, 1), Err(lab::LabError::BlockTaken { .. })));
    hosts::down("lab-again").unwrap();
    hosts::down("lab-again").unwrap();
    assert_eq!(traces("lab-again", 6), [""; 0]);
}

/// Not a test of its own: what `a_killed_up_is_cleaned_by_down` starts and kills.
#[test]
#[ignore = "started by another test"]
fn goes_up_to_be_killed() {
    if std::env::var_os("LAB_TO_BE_KILLED").is_some() {
        HostSet::fresh("lab-killed", 7, 2).unwrap().leave();
    }
}

#[test]
#[ignore = "needs root and systemd-nspawn"]
fn a_killed_up_is_cleaned_by_down() {
    // Killed at different points of its way: at its first trace, with the first namespace, with the first and with the second host running.
    let points: [&dyn Fn() -> bool; 4] = [
        &|| !traces("lab-killed", 7).is_empty(),
        &|| Utf8Path::new("/run/netns/dmup-lab-killed-h1").exists(),
        &|| running("h1"),
        &|| running("h2"),
    ];
    for point in points {
        hosts::down("lab-killed").unwrap();
        let mut up = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "goes_up_to_be_killed"])
            .env("LAB_TO_BE_KILLED", "1")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        soon("up has come so far", point);
        up.kill().unwrap();
        up.wait().unwrap();
        hosts::down("lab-killed").unwrap();
        assert_eq!(traces("lab-killed", 7), [""; 0]);
    }
}

fn running(host: &str) -> bool {
    hosts::list()
        .unwrap()
        .iter()
        .filter(|set| set.name.to_string() == "lab-killed")
        .flat_map(|set| &set.hosts)
        .any(|found| found.name == host && found.running)
}

#[test]
#[ignore = "needs root and systemd-nspawn"]
fn every_fault_shows_and_goes_away_again() {
    let set = HostSet::fresh("lab-faults", 7, 2).unwrap();
    let host = set.host(1).unwrap();
    soon("login at first", || logs_in(host));

    host.cut_network().unwrap();
    soon("no greeting without a cable", || !host.sshd_greets());
    assert_eq!(word(host, &["hostname"]), "h1", "a host without a cable can still be entered");
    host.restore_network().unwrap();
    soon("login with the cable back", || logs_in(host));

    host.stop_sshd().unwrap();
    soon("no greeting without sshd", || !host.sshd_greets());
    host.start_sshd().unwrap();
    soon("login with sshd back", || logs_in(host));

    let mut session = hosts::ssh_command(&set.key_path(), &set.known_hosts(), "root", host.address);
    let mut session =
        session.args(["echo ready; sleep infinity"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = [0; 5];
    std::io::Read::read_exact(session.stdout.as_mut().unwrap(), &mut ready).unwrap();
    host.drop_ssh_sessions().unwrap();
    soon("the session has ended", || session.try_wait().unwrap().is_some());
    soon("login after sshd was killed", || logs_in(host));

    host.must_run(&["install", "-d", "-m", "750", "-o", "daemon", "/srv/deploy"]).unwrap();
    host.put("/srv/deploy/kept".into(), b"kept", "0640").unwrap();
    let folder = Utf8Path::new("/srv/deploy");
    let fills =
        || host.run(&["dd", "if=/dev/zero", "of=/srv/deploy/big", "bs=64k", "count=32"]).unwrap();
    host.limit_disk(folder, 256).unwrap();
    assert!(String::from_utf8_lossy(&fills().stderr).contains("No space left"));
    assert_eq!(word(host, &["cat", "/srv/deploy/kept"]), "kept");
    assert_eq!(word(host, &["stat", "--format=%U %a", "/srv/deploy"]), "daemon 750");
    host.lift_disk_limit(folder).unwrap();
    assert!(fills().status.success());

    host.change_host_key().unwrap();
    soon("the greeting is back with other keys", || host.sshd_greets());
    soon("a changed key is refused", || {
        let said = host.ssh(&["true"]).unwrap();
        !said.status.success()
            && String::from_utf8_lossy(&said.stderr).contains("HOST IDENTIFICATION HAS CHANGED")
    });
    host.change_host_key().unwrap();
    host.restore_host_key().unwrap();
    soon("login with the former key", || logs_in(host));

    host.must_run(&["systemd-run", "--unit=dm-test", "sleep", "infinity"]).unwrap();
    let pid = word(host, &["systemctl", "show", "--property=MainPID", "--value", "dm-test"]);
    let state = || word(host, &["ps", "-o", "stat=", "-p", &pid]);
    host.signal_unit("dm-test", UnitSignal::Stop).unwrap();
    soon("stopped", || state().starts_with('T'));
    host.signal_unit("dm-test", UnitSignal::Continue).unwrap();
    soon("going on", || state().starts_with('S'));
    host.signal_unit("dm-test", UnitSignal::Kill).unwrap();
    soon("failed", || word(host, &["systemctl", "is-failed", "dm-test"]) == "failed");

    host.freeze().unwrap();
    soon("a frozen host does not greet", || !host.sshd_greets());
    host.thaw().unwrap();
    soon("login after thawing", || logs_in(host));

    let (before, machine) = (boot_id(host), word(host, &["cat", "/etc/machine-id"]));
    host.power_off().unwrap();
    assert!(!host.is_running() && !host.sshd_greets());
    host.power_on().unwrap();
    soon("login after the power came back", || logs_in(host));
    assert_ne!(boot_id(host), before);
    assert_eq!(word(host, &["cat", "/etc/machine-id"]), machine);
    assert_eq!(word(host, &["cat", "/srv/deploy/kept"]), "kept");
    assert!(logs_in(set.host(2).unwrap()));

    // A frozen host can be taken down as well.
    host.freeze().unwrap();
    set.down().unwrap();
    assert_eq!(traces("lab-faults", 7), [""; 0]);
}
