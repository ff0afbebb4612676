//! One operator at a time: the lock here, the lease on hosts, and `unlock`. The host is this machine, as a playground.

use dmup_core::ids::ClusterName;

use crate::desk::{Desk, SILENT};

/// Where the host of [`SILENT`] has it.
const LEASE: &str = "playground/127.0.0.77/leases/prod.json";

/// What another desk's dmup left on the host.
const THEIRS: &str = r#"{"token": 4, "since_ms": 0, "until_ms": 9000000000000000,
    "holder": {"desk": "other", "run": "r", "who": "bob@other", "what": "patch"}}"#;

struct Run {
    code: i32,
    stdout: String,
    stderr: String,
}

fn dmup(desk: &Desk, words: &[&str]) -> Run {
    let mut all = words.to_vec();
    all.extend(["--ssh", "none"]);
    let output =
        desk.command(&all).env("DMUP_SUPERVISED", desk.path("playground")).output().unwrap();
    Run {
        code: output.status.code().unwrap(),
        stdout: desk.told(&output.stdout),
        stderr: desk.told(&output.stderr),
    }
}

#[test]
fn a_cluster_that_nobody_has_needs_no_unlocking() {
    let desk = Desk::with_cluster("prod", SILENT);
    let run = dmup(&desk, &["unlock", "prod"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stderr.contains("Nothing to unlock"), "{}", run.stderr);
}

#[test]
fn another_desks_lease_refuses_a_command_until_it_is_broken() {
    let desk = Desk::with_cluster("prod", SILENT);
    desk.put(LEASE, THEIRS.as_bytes());
    let refused = dmup(&desk, &["enable", "prod"]);
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    for part in ["somebody else is at work on prod", "`patch` of bob@other", "dmup unlock prod"] {
        assert!(refused.stderr.contains(part), "{part}: {}", refused.stderr);
    }
    // Nobody answers the question.
    let asked = dmup(&desk, &["unlock", "prod"]);
    assert_eq!(asked.code, 3, "{}", asked.stderr);
    assert!(asked.stderr.contains("`patch` of bob@other since 1970-01-01T00:00:00Z (lease 4"));

    let broken = dmup(&desk, &["unlock", "prod", "--yes", "--format", "json"]);
    assert_eq!(broken.code, 0, "{}", broken.stderr);
    let told: serde_json::Value = serde_json::from_str(&broken.stdout).unwrap();
    assert_eq!(told["broken"], true);
    assert_eq!(told["hosts"][0]["lease"]["holder"]["who"], "bob@other");
    let record = std::fs::read(desk.path(LEASE)).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    assert_eq!((&record["token"], &record["holder"]), (&5.into(), &serde_json::Value::Null));
    assert!(dmup(&desk, &["unlock", "prod"]).stderr.contains("Nothing to unlock"));
    // What this machine's own command takes, it gives back, however it ends.
    let own = dmup(&desk, &["enable", "prod"]);
    assert!(!own.stderr.contains("somebody else"), "{}", own.stderr);
    assert!(dmup(&desk, &["unlock", "prod"]).stderr.contains("Nothing to unlock"));
}

#[test]
fn the_lock_of_a_dmup_that_hangs_can_be_broken() {
    let desk = Desk::with_cluster("prod", SILENT);
    let cluster = desk.profile().cluster(&ClusterName::new("prod").unwrap());
    let _hangs = cluster.lock("`patch` since yesterday, process 77").unwrap();
    let refused = dmup(&desk, &["enable", "prod"]);
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    assert!(refused.stderr.contains("dmup unlock prod"), "{}", refused.stderr);
    let broken = dmup(&desk, &["unlock", "prod", "--yes"]);
    assert_eq!(broken.code, 0, "{}", broken.stderr);
    assert!(broken.stderr.contains("here: `patch` since yesterday, process 77"));
    cluster.lock("the next one").unwrap();
}
