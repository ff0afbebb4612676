//! The stand-in against recordings of a real DM (fixtures): status, headers, and every field of every answer.
//!
//! The recordings' hosts 198.18.0.11-13 (v8.1.0) and 198.18.0.101-103 (v5.3.0) are our 127.x.y.1-3. Values that say how
//! far a cluster has come are compared by their form only: digits stand for digits.

mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use harness::{Cluster, wait_until};
use lookalike::stamp::Stamp;
use serde_json::{Value, json};

/// Fields whose values are compared by form.
const BY_FORM: [&str; 15] = [
    "memberID",
    "totalEvents",
    "totalTps",
    "recentTps",
    "masterBinlog",
    "masterBinlogGtid",
    "syncerBinlog",
    "syncerBinlogGtid",
    "secondsBehindMaster",
    "totalRows",
    "totalRps",
    "recentRps",
    "etcdserver",
    "etcdcluster",
    // True when the position is that of the source, which the v5.3.0 cluster could not ask.
    "synced",
];

/// Headers that depend on the moment or on the transport.
const PASSING: [&str; 3] = ["date", "content-length", "transfer-encoding"];

struct Recording {
    command: String,
    text: String,
}

fn recording(name: &str, cluster: &Cluster) -> Recording {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut text = text.replace("\r\n", "\n");
    for i in 1..=3 {
        let ours = cluster.master(i).replace(":8261", "");
        for theirs in [format!("198.18.0.10{i}"), format!("198.18.0.1{i}")] {
            text = text.replace(&theirs, &ours);
        }
    }
    assert!(
        text.contains(&cluster.master(1).replace("1:8261", "")) || !text.contains("198.18."),
        "{name} is about other hosts"
    );
    let (command, rest) = text.split_once('\n').expect("a command line");
    match command.strip_prefix("$ ") {
        Some(command) => Recording { command: command.to_owned(), text: rest.to_owned() },
        None => Recording { command: String::new(), text },
    }
}

/// An HTTP answer: status, headers in lower case, body.
type Answer = (u16, BTreeMap<String, String>, String);

fn parse_answer(text: &str) -> Answer {
    let text = text.replace("\r\n", "\n");
    let (head, body) = text.split_once("\n\n").expect("a head");
    let mut lines = head.lines();
    let status = lines
        .next()
        .expect("a status line")
        .split(' ')
        .nth(1)
        .expect("a status")
        .parse()
        .expect("a number");
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(':').expect("a header");
        (name.to_ascii_lowercase(), value.trim().to_owned())
    });
    (
        status,
        headers.filter(|(name, _)| !PASSING.contains(&name.as_str())).collect(),
        body.to_owned(),
    )
}

fn ask(method: &str, url: &str) -> Answer {
    let rest = url.strip_prefix("http://").expect("http");
    let (address, path) = rest.split_once('/').expect("a path");
    let mut stream = TcpStream::connect(address).expect("connect");
    let request = format!(
        "{method} /{path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("send");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("receive");
    let (status, mut headers, body) = parse_answer(&text);
    headers.remove("connection");
    (status, headers, body)
}

/// Replays a `curl -si` and compares all that came.
fn replay(name: &str, cluster: &Cluster) {
    let recording = recording(name, cluster);
    let words: Vec<&str> = recording.command.split(' ').collect();
    let method = words.iter().position(|word| *word == "-X").map_or("GET", |i| words[i + 1]);
    let url = words.last().expect("a URL");
    let (status, headers, body) = parse_answer(&recording.text);
    let (our_status, our_headers, our_body) = ask(method, url);
    assert_eq!(our_status, status, "{name}: status; {our_body}");
    assert_eq!(our_headers, headers, "{name}: headers");
    match serde_json::from_str::<Value>(&body) {
        Ok(recorded) => compare(name, &serde_json::from_str(&our_body).expect("JSON"), &recorded),
        Err(_) if name.contains("/status_") => compare_version(name, &our_body, &body),
        Err(_) => assert_eq!(our_body.trim(), body.trim(), "{name}: body"),
    }
}

fn form(text: &str) -> String {
    let mut form = String::new();
    for c in text.chars() {
        match (c.is_ascii_digit(), form.ends_with('0')) {
            (true, true) => {}
            (true, false) => form.push('0'),
            (false, _) => form.push(c),
        }
    }
    form
}

fn compare(path: &str, ours: &Value, recorded: &Value) {
    let key = path.rsplit('.').next().unwrap_or_default();
    match (ours, recorded) {
        (Value::Object(ours), Value::Object(recorded)) => {
            let keys =
                |map: &serde_json::Map<String, Value>| map.keys().cloned().collect::<BTreeSet<_>>();
            assert_eq!(keys(ours), keys(recorded), "{path}: fields");
            for (name, value) in recorded {
                compare(&format!("{path}.{name}"), &ours[name], value);
            }
        }
        (Value::Array(ours), Value::Array(recorded)) => {
            // DM may name several statements that failed; one is enough here.
            if key != "errors" {
                assert_eq!(ours.len(), recorded.len(), "{path}: length");
            }
            for (i, (ours, recorded)) in ours.iter().zip(recorded).enumerate() {
                compare(&format!("{path}.{i}"), ours, recorded);
            }
        }
        (Value::String(ours), Value::String(recorded)) if BY_FORM.contains(&key) => {
            assert!(
                recorded.is_empty() || form(ours) == form(recorded),
                "{path}: {ours:?}, recorded {recorded:?}"
            );
        }
        (Value::Bool(_), Value::Bool(_)) if BY_FORM.contains(&key) => {}
        (Value::String(ours), Value::String(recorded)) if key == "Message" || key == "RawCause" => {
            // Up to the statement, which is about other tables.
            let until =
                |text: &str| form(text).split("INSERT").next().unwrap_or_default().to_owned();
            assert_eq!(until(ours), until(recorded), "{path}");
        }
        _ => assert_eq!(ours, recorded, "{path}"),
    }
}

/// Lines of `-V`: the same words before the colon, the same release and commit; the rest is the builder's.
fn compare_version(name: &str, ours: &str, recorded: &str) {
    let parse = |text: &str| -> Vec<(String, String)> {
        let lines = text.lines().take_while(|line| !line.is_empty());
        lines
            .filter_map(|line| line.split_once(": "))
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .collect()
    };
    let (ours, recorded) = (parse(ours), parse(recorded));
    let words =
        |lines: &[(String, String)]| lines.iter().map(|(word, _)| word.clone()).collect::<Vec<_>>();
    assert_eq!(words(&ours), words(&recorded), "{name}");
    assert_eq!(ours[..2], recorded[..2], "{name}");
}

/// The JSON that `dmctl` printed.
fn printed(name: &str, cluster: &Cluster) -> Value {
    let text = recording(name, cluster).text;
    let json = text.split("\n[exit").next().expect("something");
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Makes the first master the leader: the others step back for a moment.
fn lead_with_the_first(cluster: &Cluster) {
    for op in [1, 2] {
        for i in [2, 3] {
            cluster.put(&cluster.master(i), &format!("/apis/v1alpha1/leader/{op}"), &json!({}));
        }
        let first = cluster.master_name(1);
        wait_until("the first leads", || (cluster.leader_by(1)? == first).then_some(()));
    }
}

/// Binds sources as they were bound when recorded.
fn bind(cluster: &Cluster, wanted: [(&str, usize); 2]) {
    cluster.create_sources();
    // One of the three is free all the time: at most three moves.
    for _ in 0..3 {
        for (source, i) in wanted {
            let worker = cluster.worker_name(i);
            let free = cluster.workers_in("free").iter().any(|(name, _)| *name == worker);
            if cluster.worker_of(source).as_ref() != Some(&worker) {
                let target = if free { worker } else { cluster.workers_in("free").remove(0).0 };
                assert!(cluster.transfer(source, &target).0, "{source} to {target}");
            }
        }
    }
    for (source, i) in wanted {
        assert_eq!(cluster.worker_of(source), Some(cluster.worker_name(i)));
    }
}

fn wait_synced(cluster: &Cluster) {
    cluster.writer.set_quiet();
    for task in ["t1", "t2"] {
        wait_until("synced", || {
            cluster.subtask(task).filter(|subtask| subtask["sync"]["synced"] == true)
        });
    }
}

#[test]
fn it_answers_as_dm_v8_1_0_was_recorded() {
    let stamp = Stamp::new("v8.1.0-hotfix1", "lab-v8.1.0-hotfix1");
    let cluster = Cluster::start_named(20, 3, &stamp, true);
    lead_with_the_first(&cluster);
    bind(&cluster, [("src2", 1), ("src1", 3)]);
    cluster.create_tasks();
    cluster.wait_rows("src1");
    cluster.wait_rows("src2");
    wait_synced(&cluster);
    let replay = |name: &str| replay(&format!("dm-v8.1.0/{name}.http"), &cluster);
    let printed = |name: &str| printed(&format!("dm-v8.1.0/{name}.txt"), &cluster);
    let first = cluster.master(1);
    for name in [
        "members_all",
        "members_leader",
        "members_master",
        "members_worker",
        "members_follower_forwards",
        "task_status_all",
        "task_status_one",
        "etcd_health",
        "version_etcd",
        "status_master",
        "status_worker",
        "not_found",
        "sources",
        "openapi_disabled",
        "worker_members_path",
        "leader_op_invalid",
        "evict_on_follower",
        "cancel_evict_13",
    ] {
        replay(name);
    }
    let members = cluster.get(&first, "/apis/v1alpha1/members").expect("members");
    compare("list_member", &members, &printed("list_member"));
    let status = cluster.get(&first, "/apis/v1alpha1/status/t1").expect("a status");
    compare("query_status_task", &status, &printed("query_status_task"));
    for (name, worker) in
        [("metrics_master", cluster.master(1)), ("metrics_worker_bound", cluster.worker(1))]
    {
        let recorded = recording(&format!("dm-v8.1.0/{name}.prom"), &cluster);
        let recorded = series(&format!("{}\n{}", recorded.command, recorded.text));
        let ours = series(&cluster.text(&worker, "/metrics").expect("metrics"));
        assert!(
            !ours.is_empty() && ours.is_subset(&recorded),
            "{name}: {:?}",
            ours.difference(&recorded)
        );
    }

    // The transfer of a task that is paused, to the worker that was free.
    assert_eq!(cluster.operate("t1", "Pause")["result"], true);
    let transferred = cluster.transfer("src1", &cluster.worker_name(2));
    let recorded = printed("transfer_bound_worker");
    assert_eq!(
        transferred,
        (recorded["result"] == true, recorded["msg"].as_str().expect("text").to_owned())
    );
    let (done, msg) = cluster.transfer("src1", "nobody");
    compare(
        "transfer_unknown_worker",
        &json!({ "result": done, "msg": msg }),
        &printed("transfer_unknown_worker"),
    );
    wait_until("taken", || cluster.subtask("t1").filter(|subtask| subtask["stage"] == "Paused"));
    // Positions are those of the sink: without a run of its own the new worker knows none, as in DM.
    assert_eq!(cluster.operate("t1", "Resume")["result"], true);
    compare("pause", &cluster.operate("t1", "Pause"), &printed("pause"));
    replay("task_status_paused");
    let status = cluster.get(&first, "/apis/v1alpha1/status/t1").expect("a status");
    compare("query_paused", &status, &printed("query_paused"));
    let shown = cluster.put(&first, "/apis/v1alpha1/sources", &json!({ "op": 4 }));
    compare("operate_source_show", &shown, &printed("operate_source_show"));
    compare("resume", &cluster.operate("t1", "Resume"), &printed("resume"));

    replay("evict_leader");
    let second = wait_until("another leader", || {
        cluster.leader_by(2).filter(|name| *name != cluster.master_name(1))
    });
    replay("evict_again_on_former_leader");
    assert_eq!(cluster.leader_by(2), Some(second));
    replay("cancel_evict");
}

/// Names and label names of the series in a text of metrics.
fn series(text: &str) -> BTreeSet<String> {
    let of_line = |line: &str| {
        let (name, labels) = line.split_once(['{', ' '])?;
        let mut labels: Vec<&str> = labels
            .split_once('}')
            .map(|(labels, _)| {
                labels.split(',').filter_map(|label| label.split('=').next()).collect()
            })
            .unwrap_or_default();
        labels.sort_unstable();
        Some(format!("{name}{labels:?}"))
    };
    text.lines().filter(|line| !line.starts_with(['#', '$'])).filter_map(of_line).collect()
}

#[test]
fn it_answers_as_dm_v5_3_0_was_recorded() {
    let stamp = Stamp::new("v5.3.0", "20626babf21fc381d4364646c40dd84598533d66");
    let mut cluster = Cluster::start_named(21, 3, &stamp, true);
    lead_with_the_first(&cluster);
    bind(&cluster, [("src1", 1), ("src2", 2)]);
    cluster.create_tasks();
    cluster.wait_rows("src1");
    cluster.wait_rows("src2");
    wait_until("a checkpoint", || {
        cluster.subtask("t1").filter(|subtask| subtask["sync"]["syncerBinlogGtid"] != "")
    });
    for name in ["members_all", "task_status", "etcd_version", "status_master", "openapi_off"] {
        replay(&format!("dm-v5.3.0/{name}.http"), &cluster);
    }
    let members = cluster.get(&cluster.master(1), "/apis/v1alpha1/members").expect("members");
    compare("list_member", &members, &printed("dm-v5.3.0/list_member.txt", &cluster));
    let (done, msg) = cluster.transfer("src1", &cluster.worker_name(3));
    let recorded = printed("dm-v5.3.0/transfer_running_refused.txt", &cluster);
    compare("transfer_running_refused", &json!({ "result": done, "msg": msg }), &recorded);

    let before = cluster.witness.reckon(&cluster.writer)["src2"].arrived;
    cluster.writer.write_transaction("src2", 60_000);
    cluster
        .witness
        .wait(&cluster.writer, "src2", harness::WITHIN, |reckoning| {
            reckoning.arrived > before + 1000
        })
        .expect("the transaction is being written");
    let worker = cluster.workers[1].take().expect("it runs");
    worker.signal(rustix::process::Signal::TERM);
    cluster.wait_stage("t2", "Paused");
    let status = cluster.get(&cluster.master(1), "/apis/v1alpha1/status/t2").expect("a status");
    let recorded = printed("dm-v5.3.0/query_status_paused_duplicate_key.json", &cluster);
    compare("query_status_paused_duplicate_key", &status, &recorded);
    assert_eq!(worker.wait(), Some(0));
}

#[test]
fn the_programs_print_and_exit_as_dm_was_recorded() {
    let cluster = Cluster::start(22, 0, &Stamp::new("v8.1.0-hotfix1", "lab-v8.1.0-hotfix1"));
    let run = |stamp: &Stamp, program: &str, args: &[&str]| {
        let exe = cluster.build(program, "-printing", stamp);
        let output = Command::new(exe).args(args).output().expect("run it");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let recorded = |name: &str| recording(name, &cluster).text;
    let hotfix = Stamp::new("v8.1.0-hotfix1", "lab-v8.1.0-hotfix1");
    for (program, name) in [("dm-master", "version_master"), ("dm-worker", "version_worker")] {
        let (code, stdout, _) = run(&hotfix, program, &["-V"]);
        assert_eq!(code, Some(0));
        compare_version(name, &stdout, &recorded(&format!("dm-v8.1.0/{name}.txt")));
        assert!(stdout.ends_with("\n\n"), "an empty line at the end");
    }
    for (release, commit, name) in [
        ("v5.3.0", "20626babf21fc381d4364646c40dd84598533d66", "version"),
        ("v5.3.0-20211230", "ca7070c45013c24d34bd9c1e936071253451d707", "version_hotfix"),
    ] {
        let (_, stdout, _) = run(&Stamp::new(release, commit), "dm-master", &["-V"]);
        compare_version(name, &stdout, &recorded(&format!("dm-v5.3.0/{name}.txt")));
    }
    let (code, _, stderr) = run(&hotfix, "dm-worker", &["--nope"]);
    assert_eq!(code, Some(2));
    assert_eq!(
        stderr.lines().take(2).collect::<Vec<_>>(),
        recorded("dm-v8.1.0/unknown_flag.txt").lines().take(2).collect::<Vec<_>>()
    );
    let args = ["--name=x", "--worker-addr=127.77.22.8:8262", "--join=127.77.22.8:1"];
    let (code, _, stderr) = run(&hotfix, "dm-worker", &args);
    assert_eq!(code, Some(2));
    assert!(
        recorded("dm-v8.1.0/worker_no_join.txt")
            .contains("[code=40077:class=dm-worker:scope=internal:level=high]")
    );
    assert!(stderr.contains("[code=40077:class=dm-worker:scope=internal:level=high]"), "{stderr}");
}
