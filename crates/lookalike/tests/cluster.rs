//! Whole clusters of stand-ins, with real etcd: what a hotfix relies on, and what it must not break.

mod harness;

use std::thread::sleep;
use std::time::{Duration, Instant};

use harness::{Cluster, WITHIN, wait_until};
use lookalike::stamp::{Fault, Stamp};
use rustix::process::Signal;
use serde_json::json;

fn modern() -> Stamp {
    Stamp::new("v8.1.0", "aaaaaaaa")
}

fn old() -> Stamp {
    Stamp::new("v5.3.0", "20626babf21fc381d4364646c40dd84598533d66")
}

#[test]
fn a_bound_worker_that_is_stopped_hands_its_source_over_and_no_row_is_lost() {
    let mut cluster = Cluster::start(1, 3, &modern());
    cluster.start_tasks();
    cluster.wait_rows("src1");
    cluster.wait_rows("src2");
    let worker = cluster.worker_of("src1").expect("bound");
    let (spare, _) = cluster.workers_in("free").pop().expect("a spare");
    cluster.witness.mark();
    assert_eq!(cluster.take_worker(&worker).stop(), Some(0));
    wait_until("the spare has it", || (cluster.worker_of("src1")? == spare).then_some(()));
    cluster.wait_rows("src1");
    assert_eq!(cluster.workers_in("offline"), [(worker.clone(), String::new())]);
    for (source, reckoning) in cluster.witness.settle(&cluster.writer, WITHIN) {
        println!("{source}: {reckoning}");
        assert!(reckoning.is_whole(), "{source}: {reckoning}");
    }
    // The worker that was stopped comes back as the new spare.
    let i = worker.trim_start_matches('w').parse().expect("w1 and so on");
    let _again = cluster.start_worker(i, "");
    wait_until("it is free", || {
        cluster.workers_in("free").contains(&(worker.clone(), String::new())).then_some(())
    });
}

#[test]
fn an_evicted_leader_is_followed_by_one_other_and_sources_stay_bound() {
    let mut cluster = Cluster::start(2, 2, &modern());
    cluster.start_tasks();
    let bound = cluster.workers_in("bound");
    let leader = cluster.leader().expect("a leader");
    let i: usize = leader.trim_start_matches('m').parse().expect("m1 and so on");
    let other = if i == 1 { 2 } else { 1 };
    for _ in 0..2 {
        let answer = cluster.put(&cluster.master(i), "/apis/v1alpha1/leader/1", &json!({}));
        assert_eq!(answer, json!({ "result": true, "msg": "" }));
    }
    let next =
        wait_until("another leader", || cluster.leader_by(other).filter(|name| *name != leader));
    wait_until("the evicted one says so too", || (cluster.leader_by(i)? == next).then_some(()));
    assert_eq!(cluster.workers_in("bound"), bound);
    // Stopped, it leaves the leadership where it is.
    let process = cluster.masters[i - 1].take().expect("it runs");
    assert_eq!(process.stop(), Some(0));
    assert_eq!(cluster.leader_by(other), Some(next.clone()));
    let back = cluster.start_master(i);
    cluster.masters[i - 1] = Some(back);
    let healthy =
        || cluster.text(&cluster.master(i), "/health").filter(|text| text.contains("\"true\""));
    wait_until("its etcd is healthy", healthy);
    assert_eq!(wait_until("it follows", || cluster.leader_by(i)), next);
    // A leader that is stopped without eviction is followed as well.
    let i: usize = next.trim_start_matches('m').parse().expect("m1 and so on");
    assert_eq!(cluster.masters[i - 1].take().expect("it runs").stop(), Some(0));
    wait_until("a third leader", || cluster.leader().filter(|name| *name != next));
    assert_eq!(cluster.workers_in("bound"), bound);
    cluster.wait_rows("src1");
}

#[test]
fn one_master_of_three_does_nothing_and_a_fourth_can_join_three() {
    let mut cluster = Cluster::start(3, 1, &modern());
    let fourth = cluster.join_master(4);
    let listed = || {
        let answer =
            cluster.get(&cluster.master(4), "/apis/v1alpha1/members?master=true&names=m4")?;
        answer.pointer("/members/0/master/masters/0/alive")?.as_bool().filter(|alive| *alive)
    };
    wait_until("the fourth is a member", listed);
    assert_eq!(fourth.stop(), Some(0));
    for i in [1, 2] {
        cluster.masters[i].take().expect("it runs").kill();
    }
    let unhealthy =
        || cluster.text(&cluster.master(1), "/health").filter(|text| text.contains("\"false\""));
    wait_until("one alone is not healthy", unhealthy);
    // Its etcd ended with it: the port is free for the next one.
    cluster.masters[0].take().expect("it runs").kill();
    let one = cluster.start_master(1);
    assert_eq!(one.wait(), Some(2), "without quorum a master does not start");
}

#[test]
fn versions_before_6_5_break_a_busy_task_when_its_worker_is_stopped_and_resume_repairs_it() {
    let mut cluster = Cluster::start(4, 3, &old());
    cluster.start_tasks();
    cluster.wait_rows("src1");
    let worker = cluster.worker_of("src1").expect("bound");
    cluster.writer.write_transaction("src1", 60_000);
    cluster.wait_rows("src2");
    let before = cluster.witness.reckon(&cluster.writer)["src1"].arrived;
    cluster
        .witness
        .wait(&cluster.writer, "src1", WITHIN, |reckoning| reckoning.arrived > before + 1000)
        .expect("the transaction is being written");
    let process = cluster.take_worker(&worker);
    process.signal(Signal::TERM);
    wait_until("another worker has it", || (cluster.worker_of("src1")? != worker).then_some(()));
    let subtask = cluster.wait_stage("t1", "Paused");
    let error = &subtask["result"]["errors"][0];
    assert_eq!(error["ErrCode"], 10006, "{subtask}");
    assert!(
        error["RawCause"]
            .as_str()
            .is_some_and(|cause| cause.starts_with("Error 1062: Duplicate entry"))
    );
    assert_eq!(process.wait(), Some(0));
    assert_eq!(
        cluster.subtask("t1").expect("a status")["stage"],
        "Paused",
        "nobody resumes it by himself"
    );
    let answer = cluster.operate("t1", "Resume");
    assert_eq!(answer["sources"][0]["result"], true, "{answer}");
    for (source, reckoning) in cluster.witness.settle(&cluster.writer, WITHIN) {
        println!("{source}: {reckoning}");
        assert!(reckoning.is_whole(), "{source}: {reckoning}");
    }
}

#[test]
fn before_5_4_a_transfer_wants_a_pause_and_a_pause_waits_for_the_transaction() {
    let cluster = Cluster::start(5, 3, &old());
    cluster.start_tasks();
    cluster.wait_rows("src1");
    let (spare, _) = cluster.workers_in("free").pop().expect("a spare");
    let (done, msg) = cluster.transfer("src1", &spare);
    assert!(!done && msg.contains("code=46019"), "{msg}");
    assert_eq!(
        cluster.transfer("src1", "nobody").1,
        "[code=46004:class=scheduler:scope=internal:level=medium], Message: dm-worker with name nobody not exists"
    );
    cluster.writer.write_transaction("src1", 20_000);
    let answer = cluster.operate("t1", "Pause");
    assert_eq!(answer["sources"][0]["result"], true, "{answer}");
    assert_eq!(cluster.subtask("t1").expect("a status")["stage"], "Paused");
    assert_eq!(cluster.transfer("src1", &spare), (true, String::new()));
    assert_eq!(cluster.worker_of("src1"), Some(spare));
    let answer = cluster.operate("t1", "Resume");
    assert_eq!(answer["sources"][0]["result"], true, "{answer}");
    assert_eq!(cluster.wait_stage("t1", "Running")["result"], json!(null));
    for (source, reckoning) in cluster.witness.settle(&cluster.writer, WITHIN) {
        println!("{source}: {reckoning}");
        assert!(reckoning.is_whole(), "{source}: {reckoning}");
    }
}

#[test]
fn since_5_4_a_transfer_of_a_running_task_takes_ten_seconds_and_leaves_it_running() {
    let cluster = Cluster::start(6, 3, &modern());
    cluster.start_tasks();
    let (spare, _) = cluster.workers_in("free").pop().expect("a spare");
    let began = Instant::now();
    assert_eq!(cluster.transfer("src1", &spare), (true, String::new()));
    assert!(began.elapsed() >= Duration::from_secs(10));
    cluster.wait_stage("t1", "Running");
    assert_eq!(cluster.worker_of("src1"), Some(spare));
    for (source, reckoning) in cluster.witness.settle(&cluster.writer, WITHIN) {
        println!("{source}: {reckoning}");
        assert!(reckoning.is_whole(), "{source}: {reckoning}");
    }
}

#[test]
fn a_killed_worker_keeps_its_source_and_replays_without_doubling() {
    let mut cluster = Cluster::start(7, 3, &modern());
    cluster.start_tasks();
    cluster.wait_rows("src1");
    let worker = cluster.worker_of("src1").expect("bound");
    cluster.take_worker(&worker).kill();
    sleep(Duration::from_millis(500));
    assert_eq!(cluster.worker_of("src1").as_ref(), Some(&worker), "its lease still holds");
    let i = worker.trim_start_matches('w').parse().expect("w1 and so on");
    let _again = cluster.start_worker(i, "");
    cluster.wait_rows("src1");
    assert_eq!(cluster.worker_of("src1"), Some(worker));
    for (source, reckoning) in cluster.witness.settle(&cluster.writer, WITHIN) {
        println!("{source}: {reckoning}");
        assert!(reckoning.is_whole(), "{source}: {reckoning}");
    }
}

#[test]
fn builds_that_lose_or_double_rows_are_caught() {
    for (net, fault) in [(8, Fault::LoseEvery(7)), (9, Fault::DoubleEvery(7))] {
        let mut cluster = Cluster::start(net, 3, &modern());
        cluster.start_tasks();
        cluster.wait_rows("src1");
        let worker = cluster.worker_of("src1").expect("bound");
        let (spare, _) = cluster.workers_in("free").pop().expect("a spare");
        // The bad build becomes the spare, and then gets the source.
        cluster.build("dm-worker", "-bad", &modern().with_fault(fault.clone()));
        assert_eq!(cluster.take_worker(&spare).stop(), Some(0));
        let i = spare.trim_start_matches('w').parse().expect("w1 and so on");
        let _bad = cluster.start_worker(i, "-bad");
        wait_until("the bad one is free", || (cluster.workers_in("free").len() == 1).then_some(()));
        assert_eq!(cluster.take_worker(&worker).stop(), Some(0));
        wait_until("the bad one has it", || (cluster.worker_of("src1")? == spare).then_some(()));
        let loses = matches!(fault, Fault::LoseEvery(_));
        let caught = cluster.witness.wait(&cluster.writer, "src1", WITHIN, |reckoning| {
            if loses { reckoning.lost > 0 } else { reckoning.doubled > 0 }
        });
        caught.expect("the witness sees it");
        assert_eq!(cluster.subtask("t1").expect("a status")["stage"], "Running", "DM sees nothing");
    }
}

#[test]
fn bad_builds_are_bad_in_the_way_they_are_told_to_be() {
    let cluster = Cluster::start(10, 1, &modern());
    let start = |fault: Fault| {
        let exe = cluster.build("dm-worker", "-bad", &modern().with_fault(fault));
        let version = std::process::Command::new(&exe).arg("-V").output().expect("run it");
        assert!(version.status.success(), "-V works all the same");
        assert!(version.stdout.ends_with(b"Failpoint Build: false\n\n"));
        cluster.start_worker(2, "-bad")
    };
    assert_eq!(start(Fault::ExitAtStart).wait(), Some(1));
    assert_eq!(start(Fault::CrashAfterS(1)).wait(), Some(1));
    {
        let _lying = start(Fault::StatusVersion("v0.0.1".to_owned()));
        let status = wait_until("a status", || cluster.text(&cluster.worker(2), "/status"));
        assert!(status.starts_with("Release Version: v0.0.1\n"), "{status}");
    }
    {
        let joined = cluster.workers_in("free").len();
        let lonely = start(Fault::NeverJoin);
        wait_until("a status", || cluster.text(&cluster.worker(2), "/status"));
        assert!(cluster.workers_in("free").len() <= joined);
        assert_eq!(lonely.stop(), Some(0));
    }
    let began = Instant::now();
    let slow = start(Fault::StopAfterS(2));
    wait_until("a status", || cluster.text(&cluster.worker(2), "/status"));
    assert_eq!(slow.stop(), Some(0));
    assert!(began.elapsed() >= Duration::from_secs(2));
    {
        let hangs = start(Fault::HangAtStart);
        sleep(Duration::from_millis(300));
        assert_eq!(cluster.text(&cluster.worker(2), "/status"), None);
        hangs.kill();
    }
}

#[test]
fn a_task_in_load_is_not_transferred_and_a_deleted_task_is_gone() {
    let cluster = Cluster::start(11, 3, &modern());
    cluster.start_tasks();
    let sink = cluster.witness.address();
    let yaml = format!(
        "name: t3\ntarget-database:\n  host: {}\n  port: {}\nmysql-instances:\n- source-id: src1\nlookalike-unit: Load\n",
        sink.ip(),
        sink.port()
    );
    let answer = cluster.post(&cluster.any(), "/apis/v1alpha1/tasks", &json!({ "task": yaml }));
    assert_eq!(answer["sources"][0]["result"], true, "{answer}");
    assert_eq!(cluster.subtask("t3").expect("a status")["unit"], "Load");
    let (spare, _) = cluster.workers_in("free").pop().expect("a spare");
    let (done, msg) = cluster.transfer("src1", &spare);
    assert!(!done && msg.contains("code=46019"), "{msg}");
    let answer = cluster.operate("t3", "Delete");
    assert_eq!(answer["sources"][0]["result"], true, "{answer}");
    assert_eq!(cluster.subtask("t3"), None);
    cluster.wait_stage("t1", "Running");
}
