//! Every recording is read; and a stand-in that answers like a dm-master, HTTP and gRPC on one port.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use dmup_core::ids::{HostId, InstanceId, MemberName, SourceId, TaskName, UnitName};
use dmup_core::instance::{Instance, Role};
use dmup_core::inventory::{DmSeen, SubtaskStage, SubtaskUnit, WorkerStage};
use dmup_exec::ports::{Certainty, Dm, ReportedBuild};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::answers::{Members, PerSource, Status};
use super::grpc;
use super::seen::{Collected, assemble, build_in_status, health_in};
use super::{DmClient, Timeouts, Tls};

macro_rules! recorded {
    ($name:literal) => {
        include_str!(concat!("../../tests/fixtures/", $name))
    };
}

/// The body of a recorded `curl -si`, or of a `dmctl` call.
fn body(recording: &str) -> &str {
    let recording = recording.trim_end_matches("[exit 0]\n").trim();
    if recording.starts_with("$ curl") {
        recording.split_once("\n\n").unwrap().1
    } else if recording.starts_with("$ ") {
        recording.split_once('\n').unwrap().1
    } else {
        recording
    }
}

fn instance(role: Role, id: &str, name: &str) -> Instance {
    let (host, port) = id.rsplit_once(':').unwrap();
    let port: u16 = port.parse().unwrap();
    Instance {
        id: InstanceId::new(id).unwrap(),
        role,
        name: MemberName::new(name).unwrap(),
        host: HostId::new(host).unwrap(),
        ssh_host: HostId::new(host).unwrap(),
        ssh_port: 22,
        port,
        ports: vec![port],
        deploy_dir: "/dm/x".into(),
        data_dirs: vec![],
        log_dir: "/dm/x/log".into(),
        unit: UnitName::new(format!("{role}-{port}.service")).unwrap(),
        os: "linux".into(),
        arch: "amd64".into(),
        patched: false,
    }
}

/// The recorded cluster: three masters, three workers.
fn recorded_cluster(first_host: u8) -> Vec<Instance> {
    let mut all = Vec::new();
    for (role, port) in [(Role::DmMaster, 8261), (Role::DmWorker, 8262)] {
        for host in first_host..first_host + 3 {
            let id = format!("198.18.0.{host}:{port}");
            all.push(instance(role, &id, &format!("dm-198.18.0.{host}-{port}")));
        }
    }
    all
}

fn seen(cluster: &[Instance], members: &str, status: &str) -> DmSeen {
    let members: Members = serde_json::from_str(body(members)).unwrap();
    let status: Status = serde_json::from_str(body(status)).unwrap();
    assert!(members.result && status.result);
    let collected = Collected { members, reports: status.sources, ..Collected::default() };
    assemble(cluster, &collected).unwrap()
}

#[test]
fn a_whole_cluster_is_read_from_what_v8_answered() {
    let seen = seen(
        &recorded_cluster(11),
        recorded!("dm-v8.1.0/members_all.http"),
        recorded!("dm-v8.1.0/task_status_all.http"),
    );
    let masters: Vec<_> = seen
        .masters
        .iter()
        .map(|it| (it.instance.as_ref().unwrap().as_str(), it.alive, it.leader))
        .collect();
    assert_eq!(
        masters,
        [
            ("198.18.0.11:8261", true, true),
            ("198.18.0.12:8261", true, false),
            ("198.18.0.13:8261", true, false)
        ]
    );
    let workers: Vec<_> = seen
        .workers
        .iter()
        .map(|it| {
            let source = it.source.as_ref().map(SourceId::as_str);
            (it.instance.as_ref().unwrap().as_str(), it.stage, source)
        })
        .collect();
    assert_eq!(
        workers,
        [
            ("198.18.0.11:8262", WorkerStage::Bound, Some("src2")),
            ("198.18.0.12:8262", WorkerStage::Free, None),
            ("198.18.0.13:8262", WorkerStage::Bound, Some("src1")),
        ]
    );
    assert_eq!(
        seen.sources[&SourceId::new("src1").unwrap()].as_ref().unwrap().as_str(),
        "dm-198.18.0.13-8262"
    );
    let [one, two] = &seen.subtasks[..] else { panic!("{:?}", seen.subtasks) };
    assert_eq!((one.task.as_str(), one.source.as_str()), ("t1", "src1"));
    assert_eq!((one.stage, one.unit, one.synced), (SubtaskStage::Running, SubtaskUnit::Sync, true));
    assert_eq!(one.worker.as_ref().unwrap().as_str(), "dm-198.18.0.13-8262");
    assert_eq!(one.position.as_deref(), Some("(mysql-bin.000001, 3876388)"));
    assert_eq!(one.position, one.source_position);
    assert_eq!((one.lag_s, one.blocked_ddls, one.errors.len()), (Some(0), 0, 0));
    assert_eq!(two.task.as_str(), "t2");
}

#[test]
fn v5_is_read_too_and_an_upstream_without_a_position_has_none() {
    let cluster = recorded_cluster(101);
    let seen = seen(
        &cluster,
        recorded!("dm-v5.3.0/members_all.http"),
        recorded!("dm-v5.3.0/task_status.http"),
    );
    assert_eq!(seen.workers.iter().filter(|it| it.stage == WorkerStage::Free).count(), 1);
    let [only] = &seen.subtasks[..] else { panic!("{:?}", seen.subtasks) };
    assert_eq!((only.stage, only.synced), (SubtaskStage::Running, false));
    assert_eq!(only.source_position, None);
    assert!(only.position.is_some());
}

#[test]
fn a_paused_task_keeps_dms_own_words_for_each_error() {
    let cluster = recorded_cluster(101);
    let seen = seen(
        &cluster,
        recorded!("dm-v5.3.0/members_all.http"),
        recorded!("dm-v5.3.0/query_status_paused_duplicate_key.json"),
    );
    let [only] = &seen.subtasks[..] else { panic!("{:?}", seen.subtasks) };
    assert_eq!((only.stage, only.lag_s), (SubtaskStage::Paused, Some(13)));
    assert_eq!(only.errors.len(), 3);
    assert!(only.errors[0].starts_with("[code=10006:class=database:scope=not-set:level=high]"));
    assert!(only.errors[0].ends_with("Duplicate entry '68743' for key 'PRIMARY'"));
}

#[test]
fn every_recording_is_read() {
    for text in [
        recorded!("dm-v8.1.0/members_all.http"),
        recorded!("dm-v8.1.0/members_leader.http"),
        recorded!("dm-v8.1.0/members_master.http"),
        recorded!("dm-v8.1.0/members_worker.http"),
        recorded!("dm-v8.1.0/members_follower_forwards.http"),
        recorded!("dm-v8.1.0/list_member.txt"),
        recorded!("dm-v5.3.0/members_all.http"),
        recorded!("dm-v5.3.0/list_member.txt"),
    ] {
        let members: Members = serde_json::from_str(body(text)).unwrap();
        assert!(members.result && !members.members.is_empty());
    }
    for text in [
        recorded!("dm-v8.1.0/task_status_all.http"),
        recorded!("dm-v8.1.0/task_status_one.http"),
        recorded!("dm-v8.1.0/task_status_paused.http"),
        recorded!("dm-v8.1.0/query_paused.txt"),
        recorded!("dm-v8.1.0/query_status_task.txt"),
        recorded!("dm-v5.3.0/task_status.http"),
        recorded!("dm-v5.3.0/query_status.txt"),
        recorded!("dm-v5.3.0/query_status_paused_duplicate_key.json"),
    ] {
        let status: Status = serde_json::from_str(body(text)).unwrap();
        assert!(status.result && status.sources.iter().all(|it| !it.subtasks.is_empty()));
    }
    for text in [
        recorded!("dm-v8.1.0/pause.txt"),
        recorded!("dm-v8.1.0/resume.txt"),
        recorded!("dm-v8.1.0/operate_source_show.txt"),
        recorded!("dm-v8.1.0/evict_leader.http"),
        recorded!("dm-v8.1.0/cancel_evict.http"),
        recorded!("dm-v8.1.0/transfer_bound_worker.txt"),
    ] {
        assert!(serde_json::from_str::<PerSource>(body(text)).unwrap().result);
    }
    assert_eq!(health_in(body(recorded!("dm-v8.1.0/etcd_health.http"))), Some(true));
    assert_eq!(health_in(r#"{"health":"false","reason":"ALARM NOSPACE"}"#), Some(false));
    assert_eq!(health_in(r#"{"health":true}"#), Some(true));
    assert_eq!(health_in("404 page not found"), None);
    for (text, release, commit) in [
        (recorded!("dm-v8.1.0/status_master.http"), "v8.1.0-hotfix1", "lab-v8.1.0-hotfix1"),
        (recorded!("dm-v8.1.0/status_worker.http"), "v8.1.0-hotfix1", "lab-v8.1.0-hotfix1"),
        (
            recorded!("dm-v5.3.0/status_master.http"),
            "v5.3.0",
            "20626babf21fc381d4364646c40dd84598533d66",
        ),
        (
            recorded!("dm-v5.3.0/status_worker.http"),
            "v5.3.0-20211230",
            "ca7070c45013c24d34bd9c1e936071253451d707",
        ),
    ] {
        let told = ReportedBuild { release: release.into(), commit: commit.into() };
        assert_eq!(build_in_status(body(text)), Some(told));
    }
    assert_eq!(build_in_status("404 page not found"), None);
}

#[test]
fn odd_but_possible_answers_are_read_with_care() {
    let cluster = recorded_cluster(11);
    let members = r#"{"result":true,"members":[
        {"leader":{"name":""}}, {"master":null},
        {"worker":{"workers":[
            {"name":"dm-198.18.0.11-8262","stage":"bound","source":"s1"},
            {"name":"w2","addr":"198.18.0.12:8262","stage":"relay","source":""},
            {"name":"gone","stage":"something new","source":null}]}}],"added later":1}"#;
    let status = r#"{"result":true,"sources":[
        {"result":true,"sourceStatus":{"source":"s1","worker":"relay-only"},"subTaskStatus":[
            {"name":"t","stage":"Stopped","unit":"Sync"}]},
        {"result":true,"sourceStatus":{"source":"s1","worker":"dm-198.18.0.11-8262",
            "result":{"errors":[{"ErrCode":"10001","Message":"no upstream"}]}},"subTaskStatus":[
            {"name":"t","stage":"Running","unit":"Load","load":{"finishedBytes":"1"}},
            {"name":"u","stage":"Gliding","unit":"Paint","unresolvedDDLLockID":"u-`d`.`t`",
             "sync":{"secondsBehindMaster":7,"blockingDDLs":null}}]},
        {"result":true,"sourceStatus":{"source":"s1","worker":"relay-only-2"},"subTaskStatus":[
            {"name":"t","stage":"New","unit":"Sync"}]},
        {"result":false,"msg":"","sourceStatus":{"source":"s2","worker":"source not bound"},
         "subTaskStatus":[{"name":"t","stage":"InvalidStage","unit":"InvalidUnit"}]},
        {"result":false,"msg":"[code=38008] rpc timeout","sourceStatus":{"source":"s3"}}]}"#;
    let seen = seen(&cluster, members, status);
    assert!(seen.masters.is_empty());
    let stages: Vec<_> = seen.workers.iter().map(|it| (it.stage, it.instance.is_some())).collect();
    assert_eq!(
        stages,
        [(WorkerStage::Bound, true), (WorkerStage::Relay, true), (WorkerStage::Offline, false)]
    );
    let bound: Vec<_> =
        seen.sources.iter().map(|(source, worker)| (source.as_str(), worker.is_some())).collect();
    assert_eq!(bound, [("s1", true), ("s2", false), ("s3", false)]);
    let subtasks: Vec<_> = seen
        .subtasks
        .iter()
        .map(|it| (it.task.as_str(), it.source.as_str(), it.stage, it.unit))
        .collect();
    assert_eq!(
        subtasks,
        [
            ("t", "s1", SubtaskStage::Running, SubtaskUnit::Load),
            ("t", "s2", SubtaskStage::Unknown, SubtaskUnit::Unknown),
            ("u", "s1", SubtaskStage::Unknown, SubtaskUnit::Unknown),
        ]
    );
    assert!(seen.subtasks[0].errors[0].contains("no upstream"));
    assert_eq!(seen.subtasks[1].worker, None);
    assert_eq!((seen.subtasks[2].lag_s, seen.subtasks[2].blocked_ddls), (Some(7), 1));
    assert!(serde_json::from_str::<Status>("7").is_err());
}

#[test]
fn a_bound_source_whose_worker_is_silent_does_not_look_idle() {
    let cluster = recorded_cluster(11);
    let status = r#"{"result":true,"sources":[
        {"result":false,"msg":"rpc timed out","sourceStatus":{"source":"src1"}},
        {"result":true,"msg":"no sub task started","sourceStatus":{"source":"src2","worker":"dm-198.18.0.11-8262"}}]}"#;
    let seen = seen(&cluster, recorded!("dm-v8.1.0/members_all.http"), status);
    let [only] = &seen.subtasks[..] else { panic!("{:?}", seen.subtasks) };
    assert_eq!((only.task.as_str(), only.source.as_str()), ("?", "src1"));
    assert_eq!((only.stage, only.errors[0].as_str()), (SubtaskStage::Unknown, "rpc timed out"));
}

// --- the stand-in ---------------------------------------------------------------------------------

#[derive(Clone)]
enum Reply {
    Json(u16, String),
    /// gRPC: status, message, encoded answer.
    Grpc(u16, &'static str, Vec<u8>),
    /// Reads the request and never answers.
    Hang,
    /// Reads the request and closes the connection.
    Close,
    /// More than anybody should read.
    Flood,
}

type Answering = dyn Fn(&str, &[u8]) -> Reply + Send + Sync;

struct StandIn {
    instance: Instance,
    asked: Arc<Mutex<Vec<String>>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl StandIn {
    async fn start(
        role: Role,
        name: &str,
        answering: impl Fn(&str, &[u8]) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let id = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, answering): (_, Arc<Answering>) = (asked.clone(), Arc::new(answering));
        let serving = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, log.clone(), answering.clone()));
            }
        });
        Self { instance: instance(role, &id, name), asked, serving }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve(mut stream: TcpStream, log: Arc<Mutex<Vec<String>>>, answering: Arc<Answering>) {
    let mut first = [0; 3];
    while stream.peek(&mut first).await.is_ok_and(|count| count > 0 && count < 3) {
        tokio::task::yield_now().await;
    }
    if &first == b"PRI" {
        serve_grpc(stream, log, answering).await;
        return;
    }
    let mut request = Vec::new();
    let head = loop {
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer).await {
            Ok(count) if count > 0 => request.extend_from_slice(&buffer[..count]),
            _ => return,
        }
        if let Some(at) = request.windows(4).position(|it| it == b"\r\n\r\n") {
            break String::from_utf8(request.drain(..at + 4).collect()).unwrap();
        }
    };
    let length = head
        .lines()
        .find_map(|line| line.to_lowercase().strip_prefix("content-length: ").map(str::to_owned))
        .map_or(0, |text| text.parse::<usize>().unwrap());
    while request.len() < length {
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).await.unwrap();
        request.extend_from_slice(&buffer[..count]);
    }
    let line = head.lines().next().unwrap().trim_end_matches(" HTTP/1.1").to_owned();
    log.lock().unwrap().push(line.clone());
    match answering(&line, &request) {
        Reply::Json(status, body) => {
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all(head.as_bytes()).await.ok();
            stream.write_all(body.as_bytes()).await.ok();
        }
        Reply::Flood => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok();
            while stream.write_all(&[b'x'; 65536]).await.is_ok() {}
        }
        Reply::Hang => std::future::pending().await,
        Reply::Close | Reply::Grpc(..) => {}
    }
}

async fn serve_grpc(stream: TcpStream, log: Arc<Mutex<Vec<String>>>, answering: Arc<Answering>) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let line = format!("GRPC {}", request.uri().path());
        let (log, answering) = (log.clone(), answering.clone());
        // On its own, for the connection must be driven on.
        tokio::spawn(async move {
            let mut message = request.into_body();
            let mut bytes = Vec::new();
            while let Some(Ok(chunk)) = message.data().await {
                message.flow_control().release_capacity(chunk.len()).unwrap();
                bytes.extend_from_slice(&chunk);
            }
            log.lock().unwrap().push(line.clone());
            let (status, told, answer) = match answering(&line, bytes.get(5..).unwrap_or_default())
            {
                Reply::Grpc(status, told, answer) => (status, told, answer),
                Reply::Hang => std::future::pending().await,
                Reply::Close => return,
                Reply::Json(..) | Reply::Flood => (12, "unknown method", Vec::new()),
            };
            let head = http::Response::builder()
                .header("content-type", "application/grpc")
                .body(())
                .unwrap();
            let mut send = respond.send_response(head, false).unwrap();
            if status == 0 {
                let length = u32::try_from(answer.len()).unwrap().to_be_bytes();
                let frame = [&[0], &length[..], &answer[..]].concat();
                send.send_data(Bytes::from(frame), false).unwrap();
            }
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", status.to_string().parse().unwrap());
            trailers.insert("grpc-message", told.replace(' ', "%20").parse().unwrap());
            send.send_trailers(trailers).unwrap();
        });
    }
}

fn quick() -> Timeouts {
    Timeouts {
        connect: Duration::from_millis(500),
        answer: Duration::from_millis(700),
        report: Duration::from_millis(900),
        order: Duration::from_millis(900),
        not_yet: Duration::from_millis(1500),
        display: Duration::from_secs(1),
    }
}

/// Answers as the recorded leader: the cluster of the recordings, with these masters and workers.
fn as_recorded(line: &str, _body: &[u8]) -> Reply {
    let json = |text: &str| Reply::Json(200, body(text).to_owned());
    match line {
        "GET /apis/v1alpha1/members?leader=true" => {
            json(recorded!("dm-v8.1.0/members_leader.http"))
        }
        "GET /apis/v1alpha1/members" => json(recorded!("dm-v8.1.0/members_all.http")),
        "GET /health" => json(recorded!("dm-v8.1.0/etcd_health.http")),
        "GET /status" => json(recorded!("dm-v8.1.0/status_master.http")),
        "GET /apis/v1alpha1/status/?" => json(recorded!("dm-v8.1.0/task_status_all.http")),
        "PUT /apis/v1alpha1/sources" => json(recorded!("dm-v8.1.0/operate_source_show.txt")),
        "PUT /apis/v1alpha1/leader/1" => json(recorded!("dm-v8.1.0/evict_leader.http")),
        "PUT /apis/v1alpha1/leader/2" => json(recorded!("dm-v8.1.0/cancel_evict.http")),
        "GRPC /pb.Master/ShowDDLLocks" => {
            let lock = grpc::DdlLock {
                id: "t1-`d`.`t`".into(),
                task: "t1".into(),
                synced: vec!["src1-`d`.`t`".into()],
                unsynced: vec!["src9".into()],
            };
            let answer = grpc::ShowDdlLocksResponse {
                result: true,
                locks: vec![lock],
                ..Default::default()
            };
            Reply::Grpc(0, "", answer.encode_to_vec())
        }
        _ => json(recorded!("dm-v8.1.0/not_found.http")),
    }
}

fn task() -> TaskName {
    TaskName::new("t 1").unwrap()
}

fn source() -> SourceId {
    SourceId::new("src1").unwrap()
}

fn worker() -> MemberName {
    MemberName::new("dm-198.18.0.12-8262").unwrap()
}

fn client(instances: &[&Instance]) -> DmClient {
    let instances: Vec<Instance> = instances.iter().copied().cloned().collect();
    DmClient::new(&instances, quick())
}

/// An address where nobody listens.
async fn nobody(name: &str) -> Instance {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    instance(Role::DmMaster, &listener.local_addr().unwrap().to_string(), name)
}

#[tokio::test]
async fn one_look_collects_everything_from_those_that_answer() {
    let leader = StandIn::start(Role::DmMaster, "dm-198.18.0.11-8261", as_recorded).await;
    let hanging = StandIn::start(Role::DmMaster, "dm-198.18.0.12-8261", |_, _| Reply::Hang).await;
    let down = nobody("dm-198.18.0.13-8261").await;
    let dm = client(&[&down, &hanging.instance, &leader.instance]);
    let seen = dm.look(&[]).await.unwrap();
    let masters: Vec<_> = seen
        .masters
        .iter()
        .map(|it| {
            let calls = it.calls_leader.as_ref().map(MemberName::as_str);
            (it.name.as_str(), it.leader, calls, it.etcd_healthy, it.release.as_deref())
        })
        .collect();
    let first = Some("dm-198.18.0.11-8261");
    assert_eq!(
        masters,
        [
            ("dm-198.18.0.11-8261", true, first, Some(true), Some("v8.1.0-hotfix1")),
            ("dm-198.18.0.12-8261", false, None, None, None),
            ("dm-198.18.0.13-8261", false, None, None, None),
        ]
    );
    assert_eq!(seen.masters[0].instance.as_ref(), Some(&leader.instance.id));
    assert_eq!(seen.subtasks.len(), 2);
    assert_eq!((seen.subtasks[0].blocked_ddls, seen.subtasks[1].blocked_ddls), (1, 0));
    // The list of sources is a moment older than the members here: the members count.
    let bound = seen.sources[&source()].as_ref().unwrap();
    assert_eq!(bound.as_str(), "dm-198.18.0.13-8262");
}

#[tokio::test]
async fn a_node_to_be_avoided_is_not_touched_and_nobody_is_made_to_touch_it() {
    let answering = |line: &str, bytes: &[u8]| match line {
        "GET /apis/v1alpha1/members?master=true&names=dm-198.18.0.11-8261" => Reply::Json(
            200,
            body(recorded!("dm-v8.1.0/members_master.http")).replace("dm-198.18.0.12-8261", "x"),
        ),
        "GET /apis/v1alpha1/members?leader=true&worker=true" => Reply::Json(
            200,
            body(recorded!("dm-v8.1.0/members_all.http")).replace("\"master\"", "\"_\""),
        ),
        "GET /apis/v1alpha1/status/?sources=src2" => Reply::Json(
            200,
            body(recorded!("dm-v8.1.0/task_status_all.http")).replace("src1", "src2"),
        ),
        line => as_recorded(line, bytes),
    };
    let asked = StandIn::start(Role::DmMaster, "dm-198.18.0.11-8261", answering).await;
    let avoided = StandIn::start(Role::DmMaster, "dm-198.18.0.12-8261", as_recorded).await;
    let bound = instance(Role::DmWorker, "198.18.0.13:8262", "dm-198.18.0.13-8262");
    let dm = client(&[&avoided.instance, &asked.instance, &bound]);
    let seen = dm.look(&[avoided.instance.id.clone(), bound.id.clone()]).await.unwrap();
    assert!(avoided.asked().is_empty(), "{:?}", avoided.asked());
    let asked = asked.asked();
    assert!(!asked.iter().any(|line| line.contains("sources=src1") || line.ends_with("status/?")));
    assert!(!asked.contains(&"PUT /apis/v1alpha1/sources".to_owned()), "it would ask the workers");
    let other = seen.masters.iter().find(|it| it.name == avoided.instance.name).unwrap();
    assert!(!other.alive && other.etcd_healthy.is_none());
    assert_eq!(seen.sources.len(), 2, "bindings are known all the same");
    assert!(seen.subtasks.iter().all(|it| it.source.as_str() == "src2"));
}

#[tokio::test]
async fn when_no_master_answers_each_ones_reason_is_told() {
    let refusing = StandIn::start(Role::DmMaster, "a", |_, _| {
        let words =
            "[code=38043:class=dm-master:scope=internal:level=high], Message: master is not leader";
        Reply::Json(500, format!(r#"{{"code":2,"message":"{words}","details":[]}}"#))
    })
    .await;
    let starting = StandIn::start(Role::DmMaster, "b", |line: &str, bytes: &[u8]| {
        if line == "GET /apis/v1alpha1/members" {
            let msg = "[code=46001:class=scheduler:scope=internal:level=high], Message: the scheduler has not started";
            Reply::Json(200, format!(r#"{{"result":true,"members":[{{"worker":{{"msg":"{msg}"}}}}]}}"#))
        } else {
            as_recorded(line, bytes)
        }
    })
    .await;
    let flooding = StandIn::start(Role::DmMaster, "c", |line: &str, _: &[u8]| {
        if line.contains("members") { Reply::Flood } else { Reply::Close }
    })
    .await;
    let closing = StandIn::start(Role::DmMaster, "d", |_, _| Reply::Close).await;
    let hanging = StandIn::start(Role::DmMaster, "e", |_, _| Reply::Hang).await;
    let down = nobody("f").await;
    let all = [
        &refusing.instance,
        &starting.instance,
        &flooding.instance,
        &closing.instance,
        &hanging.instance,
        &down,
    ];
    let mut slow = quick();
    slow.answer = Duration::from_secs(20);
    let instances: Vec<Instance> = all.iter().map(|it| (*it).clone()).collect();
    for (timeouts, hangs) in [(quick(), true), (slow, false)] {
        let asked: Vec<Instance> =
            instances.iter().filter(|it| hangs || it.id != hanging.instance.id).cloned().collect();
        let told = DmClient::new(&asked, timeouts).look(&[]).await.unwrap_err();
        assert_eq!((told.place.as_str(), told.certainty), ("every dm-master", Certainty::Refused));
        for it in &asked {
            assert!(told.observed.contains(&format!("{}: ", it.id)), "{told}");
        }
        for words in [
            "38043",
            "the scheduler has not started",
            "the connection broke",
            "no connection: Connection refused",
        ] {
            assert!(told.observed.contains(words), "{words}: {told}");
        }
        let words = if hangs { "no answer within 0.7s" } else { "longer than 16777216 bytes" };
        assert!(told.observed.contains(words), "{words}: {told}");
        assert!(told.observed.len() < 4000);
    }
}

#[tokio::test]
async fn a_worker_that_hangs_hides_its_own_tasks_only() {
    let master = StandIn::start(
        Role::DmMaster,
        "dm-198.18.0.11-8261",
        |line: &str, bytes: &[u8]| match line {
            "GET /apis/v1alpha1/status/?" | "GET /apis/v1alpha1/status/?sources=src1" => {
                Reply::Hang
            }
            "GET /apis/v1alpha1/status/?sources=src2" => {
                let all: serde_json::Value =
                    serde_json::from_str(body(recorded!("dm-v8.1.0/task_status_all.http")))
                        .unwrap();
                let second = &all["sources"][1];
                Reply::Json(
                    200,
                    serde_json::json!({"result": true, "sources": [second]}).to_string(),
                )
            }
            line => as_recorded(line, bytes),
        },
    )
    .await;
    let seen = client(&[&master.instance]).look(&[]).await.unwrap();
    let told: Vec<_> =
        seen.subtasks.iter().map(|it| (it.task.as_str(), it.source.as_str(), it.stage)).collect();
    assert_eq!(told, [("t2", "src2", SubtaskStage::Running), ("?", "src1", SubtaskStage::Unknown)]);
}

#[tokio::test]
async fn the_masters_say_for_which_sources_they_know_a_task_and_no_word_of_its_configuration_is_told()
 {
    let secret = "c2VjcmV0";
    let master = StandIn::start(Role::DmMaster, "a", move |line: &str, _: &[u8]| {
        let config = |source: &str| {
            format!("name = \"t1\"\nsource-id = \"{source}\"\n\n[to]\npassword = \"{secret}\"\n")
        };
        let json = |it: serde_json::Value| Reply::Json(200, it.to_string());
        match line {
            "GET /apis/v1alpha1/subtasks/t1" => json(serde_json::json!({
                "result": true, "msg": "", "cfgs": [config("src1"), config("src2")],
            })),
            "GET /apis/v1alpha1/subtasks/gone" => {
                json(serde_json::json!({"result": false, "msg": "task not found", "cfgs": []}))
            }
            "GET /apis/v1alpha1/subtasks/odd" => json(serde_json::json!({
                "result": true, "cfgs": [format!("source_id = {secret}")],
            })),
            "GET /apis/v1alpha1/subtasks/refused" => {
                json(serde_json::json!({"result": false, "msg": "[code=38043] not leader"}))
            }
            _ => Reply::Json(500, secret.to_owned()),
        }
    })
    .await;
    let down = nobody("b").await;
    let client = client(&[&down, &master.instance]);
    let sources = async |task: &str| client.sources_of(&TaskName::new(task).unwrap()).await;
    let known = sources("t1").await.unwrap();
    assert_eq!(known.iter().map(SourceId::as_str).collect::<Vec<_>>(), ["src1", "src2"]);
    assert!(sources("gone").await.unwrap().is_empty());
    // What is not understood does not count as "not known".
    for task in ["odd", "refused", "broken"] {
        let told = sources(task).await.unwrap_err().to_string();
        assert!(!told.contains(secret), "{told}");
    }
}

#[tokio::test]
async fn a_gateway_without_the_route_is_asked_by_grpc() {
    let master = StandIn::start(
        Role::DmMaster,
        "dm-198.18.0.11-8261",
        |line: &str, bytes: &[u8]| match line {
            "GET /apis/v1alpha1/status/?" => {
                Reply::Json(501, body(recorded!("dm-v8.1.0/not_found.http")).to_owned())
            }
            "GRPC /pb.Master/QueryStatus" => {
                let report = grpc::SourceReportMessage {
                    result: true,
                    source_status: Some(grpc::SourceStatusMessage {
                        source: "src1".into(),
                        worker: "dm-198.18.0.13-8262".into(),
                        result: None,
                        relay: Some(grpc::RelayMessage { stage: 2, result: None }),
                    }),
                    subtasks: vec![grpc::SubtaskMessage {
                        name: "t1".into(),
                        stage: 3,
                        unit: 4,
                        result: Some(grpc::ProcessResultMessage {
                            errors: vec![grpc::ProcessErrorMessage {
                                code: 10006,
                                message: "dup".into(),
                                ..Default::default()
                            }],
                        }),
                        unresolved_lock: String::new(),
                        sync: Some(grpc::SyncMessage {
                            syncer_binlog: "(b, 4)".into(),
                            seconds_behind: 3,
                            ..Default::default()
                        }),
                        validation: Some(grpc::ValidationMessage {
                            stage: "Running".into(),
                            result: None,
                        }),
                    }],
                    ..Default::default()
                };
                let answer = grpc::QueryStatusResponse {
                    result: true,
                    msg: String::new(),
                    sources: vec![report],
                };
                Reply::Grpc(0, "", answer.encode_to_vec())
            }
            line => as_recorded(line, bytes),
        },
    )
    .await;
    let seen = client(&[&master.instance]).look(&[]).await.unwrap();
    let [only] = &seen.subtasks[..] else { panic!("{:?}", seen.subtasks) };
    assert_eq!(
        (only.stage, only.unit, only.lag_s),
        (SubtaskStage::Paused, SubtaskUnit::Sync, Some(3))
    );
    assert_eq!(only.position.as_deref(), Some("(b, 4)"));
    assert!(only.errors[0].contains("10006") && only.errors[0].contains("dup"));
    assert_eq!(only.validator.as_ref().map(|it| it.stage), Some(SubtaskStage::Running));
}

#[tokio::test]
async fn orders_go_out_with_dms_own_field_numbers() {
    let got = Arc::new(Mutex::new(Vec::new()));
    let keep = got.clone();
    let master = StandIn::start(Role::DmMaster, "m", move |line: &str, bytes: &[u8]| {
        keep.lock().unwrap().push((line.to_owned(), bytes.to_vec()));
        match line {
            "GRPC /pb.Master/OperateTask" => {
                // An order that was taken and whose effect was not seen in time: top level true, source false.
                Reply::Grpc(0, "", b"\x08\x02\x10\x01\x22\x08\x12\x06[code=".to_vec())
            }
            "GRPC /pb.Master/TransferSource" => Reply::Grpc(0, "", b"\x08\x01".to_vec()),
            _ => Reply::Json(200, r#"{"result":true,"msg":""}"#.into()),
        }
    })
    .await;
    let dm = client(&[&master.instance]);
    dm.pause(&task(), &source()).await.unwrap();
    dm.resume(&task(), &source()).await.unwrap();
    dm.transfer(&source(), &worker()).await.unwrap();
    dm.evict_leader(&master.instance).await.unwrap();
    dm.cancel_evict(&master.instance).await.unwrap();
    let got = got.lock().unwrap().clone();
    assert_eq!(
        got[0],
        ("GRPC /pb.Master/OperateTask".into(), b"\x08\x02\x12\x03t 1\x1a\x04src1".to_vec())
    );
    assert_eq!(got[1].1, b"\x08\x03\x12\x03t 1\x1a\x04src1");
    assert_eq!(got[2].1, b"\x0a\x04src1\x12\x13dm-198.18.0.12-8262");
    assert_eq!(got[3].0, "PUT /apis/v1alpha1/leader/1");
    assert_eq!(got[4].0, "PUT /apis/v1alpha1/leader/2");
}

#[tokio::test]
async fn what_dm_refuses_is_refused_and_what_it_does_not_answer_is_unknown() {
    let words = "[code=46019:class=scheduler:scope=internal:level=high], Message: tasks [t1] on source src1 should not be running";
    let refusing = StandIn::start(Role::DmMaster, "m", move |_, _| {
        let answer = grpc::TransferSourceResponse { result: false, msg: words.into() };
        Reply::Grpc(0, "", answer.encode_to_vec())
    })
    .await;
    let told = client(&[&refusing.instance]).transfer(&source(), &worker()).await.unwrap_err();
    assert_eq!(told.certainty, Certainty::Refused);
    assert_eq!(super::DmCode::of(&told.observed), Some(super::DmCode::TasksRunning));
    assert_eq!(told.place, format!("dm-master {}", refusing.instance.id));

    for reply in [Reply::Hang, Reply::Close, Reply::Grpc(14, "leader went away", vec![])] {
        let answering = move |_: &str, _: &[u8]| reply.clone();
        let odd = StandIn::start(Role::DmMaster, "m", answering).await;
        let dm = client(&[&odd.instance]);
        let told = dm.pause(&task(), &source()).await.unwrap_err();
        assert_eq!(told.certainty, Certainty::Unknown, "{told}");
        let told = dm.evict_leader(&odd.instance).await.unwrap_err();
        assert_eq!(told.certainty, Certainty::Unknown, "{told}");
    }

    let down = nobody("m").await;
    let dm = client(&[&down]);
    assert_eq!(dm.pause(&task(), &source()).await.unwrap_err().certainty, Certainty::NotSent);
    assert_eq!(dm.evict_leader(&down).await.unwrap_err().certainty, Certainty::NotSent);

    let old =
        StandIn::start(Role::DmMaster, "m", |_, _| Reply::Grpc(12, "unknown method", vec![])).await;
    let told = client(&[&old.instance]).transfer(&source(), &worker()).await.unwrap_err();
    assert!(told.observed.contains("cannot transfer sources"), "{told}");
}

#[tokio::test]
async fn an_order_finds_the_master_that_can_take_it_and_waits_for_a_leader() {
    let down = nobody("a").await;
    let lost = StandIn::start(Role::DmMaster, "b", |_, _| {
        Reply::Grpc(
            2,
            "[code=38043:class=dm-master:scope=internal:level=high], Message: master is not leader",
            vec![],
        )
    })
    .await;
    let tries = Arc::new(Mutex::new(0));
    let starting = StandIn::start(Role::DmMaster, "c", move |_, _| {
        let mut tries = tries.lock().unwrap();
        *tries += 1;
        let msg = if *tries < 3 { "[code=46001:class=scheduler] not started" } else { "" };
        let answer = grpc::OperateTaskResponse { result: *tries >= 3, msg: msg.into() };
        Reply::Grpc(0, "", answer.encode_to_vec())
    })
    .await;
    let dm = client(&[&down, &lost.instance, &starting.instance]);
    dm.resume(&task(), &source()).await.unwrap();
    assert_eq!(starting.asked().len(), 3);
    let told = client(&[&down, &lost.instance]).resume(&task(), &source()).await.unwrap_err();
    assert_eq!(told.certainty, Certainty::NotSent);
    assert!(told.observed.contains("38043") && told.observed.contains("no connection"), "{told}");
}

#[tokio::test]
async fn a_master_without_the_grpc_call_is_ordered_by_rest() {
    let master = StandIn::start(Role::DmMaster, "m", |line: &str, bytes: &[u8]| {
        if line.starts_with("GRPC") {
            return Reply::Grpc(12, "unknown method", vec![]);
        }
        assert_eq!(line, "PUT /apis/v1alpha1/tasks/t%201");
        assert_eq!(bytes, br#"{"op":2,"sources":["src1"]}"#);
        Reply::Json(200, body(recorded!("dm-v8.1.0/pause.txt")).to_owned())
    })
    .await;
    client(&[&master.instance]).pause(&task(), &source()).await.unwrap();
}

#[tokio::test]
async fn builds_are_told_by_dm_and_by_monitoring() {
    for (role, line, text, told) in [
        (
            Role::DmWorker,
            "GET /status",
            body(recorded!("dm-v8.1.0/status_worker.http")),
            ("v8.1.0-hotfix1", "lab-v8.1.0-hotfix1"),
        ),
        (
            Role::Prometheus,
            "GET /api/v1/status/buildinfo",
            r#"{"status":"success","data":{"version":"2.49.1","revision":"43e1"}}"#,
            ("2.49.1", "43e1"),
        ),
        (
            Role::Grafana,
            "GET /api/health",
            r#"{"commit":"abc","database":"ok","version":"7.5.17"}"#,
            ("7.5.17", "abc"),
        ),
        (
            Role::Alertmanager,
            "GET /api/v2/status",
            r#"{"versionInfo":{"version":"0.26.0","revision":"d7b4"}}"#,
            ("0.26.0", "d7b4"),
        ),
    ] {
        let it = StandIn::start(role, "x", move |asked: &str, _: &[u8]| {
            assert_eq!(asked, line);
            Reply::Json(200, text.to_owned())
        })
        .await;
        let build = client(&[]).build_of(&it.instance).await.unwrap();
        assert_eq!((build.release.as_str(), build.commit.as_str()), told);
    }
    let odd = StandIn::start(Role::DmWorker, "x", |_, _| Reply::Json(200, "hello".into())).await;
    assert!(
        client(&[])
            .build_of(&odd.instance)
            .await
            .unwrap_err()
            .observed
            .contains("names no version")
    );
}

#[tokio::test]
async fn the_status_column_speaks_tiups_words() {
    let answering = |line: &str, bytes: &[u8]| match line.split_once("&names=") {
        Some(("GET /apis/v1alpha1/members?leader=true&master=true", _)) => {
            let text = body(recorded!("dm-v8.1.0/members_all.http"));
            // The third is a member that is not well.
            Reply::Json(
                200,
                text.replacen(
                    "15292742214512438084\",\n            \"alive\": true",
                    "1\", \"alive\": false",
                    1,
                ),
            )
        }
        _ if line == "GET /apis/v1alpha1/members?worker=true" => {
            Reply::Json(200, body(recorded!("dm-v8.1.0/members_worker.http")).to_owned())
        }
        _ => as_recorded(line, bytes),
    };
    let mut standing = Vec::new();
    for name in ["dm-198.18.0.11-8261", "dm-198.18.0.12-8261", "dm-198.18.0.13-8261", "stranger"] {
        standing.push(StandIn::start(Role::DmMaster, name, answering).await);
    }
    let down = nobody("dm-198.18.0.14-8261").await;
    let up = StandIn::start(Role::Prometheus, "p", |_, _| Reply::Json(200, "ready".into())).await;
    let login = StandIn::start(Role::Grafana, "g", |_, _| Reply::Json(302, String::new())).await;
    let failing =
        StandIn::start(Role::Alertmanager, "a", |_, _| Reply::Json(503, String::new())).await;
    let workers: Vec<Instance> =
        [("11", "dm-198.18.0.11-8262"), ("12", "dm-198.18.0.12-8262"), ("14", "unheard")]
            .map(|(host, name)| instance(Role::DmWorker, &format!("198.18.0.{host}:8262"), name))
            .to_vec();
    let mut all: Vec<Instance> = standing.iter().map(|it| it.instance.clone()).collect();
    all.push(down);
    all.extend([up.instance.clone(), login.instance.clone(), failing.instance.clone()]);
    all.extend(workers.clone());
    let dm = DmClient::new(&all, quick());
    let words = dm.display_statuses(&all).await;
    let words: Vec<&str> = all.iter().map(|it| words[&it.id].as_str()).collect();
    assert_eq!(
        words,
        [
            "Healthy|L",
            "Healthy",
            "Unhealthy",
            "N/A",
            "Down",
            "Up",
            "Up",
            "Down",
            "Bound",
            "Free",
            "N/A"
        ]
    );
    let only = dm.display_statuses(&workers[..1]).await;
    assert_eq!(only.into_values().collect::<Vec<_>>(), ["Bound"]);
    let orphaned = client(&[]).display_statuses(&workers[..1]).await;
    assert_eq!(orphaned.into_values().collect::<Vec<_>>(), ["N/A"]);
}

#[tokio::test]
async fn a_member_that_is_gone_is_taken_off_the_list_by_another() {
    let gone = StandIn::start(Role::DmMaster, "dm-9", as_recorded).await;
    let master = StandIn::start(Role::DmMaster, "m", |line: &str, _: &[u8]| {
        assert_eq!(line, "DELETE /apis/v1alpha1/members/master/dm-9");
        Reply::Json(200, r#"{"result":false,"msg":"dm-master with name dm-9 not exists"}"#.into())
    })
    .await;
    client(&[&gone.instance, &master.instance]).remove_member(&gone.instance).await.unwrap();
    assert!(gone.asked().is_empty());
    let online = StandIn::start(Role::DmMaster, "m", |_, _| {
        Reply::Json(
            200,
            r#"{"result":false,"msg":"[code=46005:class=scheduler] still online"}"#.into(),
        )
    })
    .await;
    let worker = instance(Role::DmWorker, "127.0.0.1:1", "w");
    let told = client(&[&online.instance]).remove_member(&worker).await.unwrap_err();
    assert!(told.observed.contains("46005"), "{told}");
}

/// Certificates as TiUP makes them: one authority, a server's and a client's certificate for an address.
struct Certificates {
    tls: Tls,
    acceptor: tokio_rustls::TlsAcceptor,
}

impl Certificates {
    fn make() -> Self {
        use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
        use tokio_rustls::rustls::server::WebPkiClientVerifier;
        use tokio_rustls::rustls::{RootCertStore, ServerConfig};
        let mut of_authority = rcgen::CertificateParams::new(vec![]).unwrap();
        of_authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let authority = of_authority.self_signed(&authority_key).unwrap();
        let issuer = rcgen::Issuer::new(of_authority, authority_key);
        let one = || {
            let key = rcgen::KeyPair::generate().unwrap();
            let params = rcgen::CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
            (params.signed_by(&key, &issuer).unwrap(), key)
        };
        let ((server, server_key), (client, client_key)) = (one(), one());
        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone()).unwrap();
        let config = ServerConfig::builder()
            .with_client_cert_verifier(
                WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap(),
            )
            .with_single_cert(
                vec![CertificateDer::from(server.der().to_vec())],
                PrivateKeyDer::try_from(server_key.serialize_der()).unwrap(),
            )
            .unwrap();
        let tls = Tls {
            authority: authority.pem().into_bytes(),
            certificate: client.pem().into_bytes(),
            key: client_key.serialize_pem().into_bytes(),
        };
        Self { tls, acceptor: Arc::new(config).into() }
    }
}

#[tokio::test]
async fn a_cluster_with_tls_is_asked_with_the_clusters_own_certificates() {
    let certificates = Certificates::make();
    let behind = StandIn::start(
        Role::DmMaster,
        "dm-198.18.0.11-8261",
        |line: &str, bytes: &[u8]| match line {
            "GRPC /pb.Master/TransferSource" => Reply::Grpc(0, "", b"\x08\x01".to_vec()),
            line => as_recorded(line, bytes),
        },
    )
    .await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (acceptor, port) = (certificates.acceptor.clone(), behind.instance.port);
    let front = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            connections.spawn(async move {
                let Ok(mut clear) = acceptor.accept(stream).await else { return };
                let mut inner = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                tokio::io::copy_bidirectional(&mut clear, &mut inner).await.ok();
            });
        }
    });
    let master = instance(Role::DmMaster, &address, "dm-198.18.0.11-8261");
    let all = std::slice::from_ref(&master);
    let dm = DmClient::over_tls(all, quick(), &certificates.tls).unwrap();
    assert_eq!(dm.look(&[]).await.unwrap().subtasks[0].blocked_ddls, 1, "REST and gRPC both");
    dm.transfer(&source(), &worker()).await.unwrap();
    assert_eq!(dm.display_statuses(all).await.len(), 1);

    assert!(client(&[&master]).look(&[]).await.is_err(), "without TLS");
    let stranger = Certificates::make();
    let told =
        DmClient::over_tls(all, quick(), &stranger.tls).unwrap().look(&[]).await.unwrap_err();
    assert!(told.observed.contains("no connection"), "{told}");
    assert_eq!(format!("{:?}", certificates.tls), "Tls(‹redacted›)");
    let broken = Tls { key: b"no key".to_vec(), ..certificates.tls };
    assert!(DmClient::over_tls(all, quick(), &broken).is_err());
    front.abort();
}

#[test]
fn relay_logs_and_validators_are_seen_as_their_own_worker_tells() {
    let members = r#"{"result":true,"msg":"","members":[
        {"leader":{"msg":"","name":"master1","addr":""}},
        {"worker":{"msg":"","workers":[
            {"name":"dm-198.18.0.11-8262","addr":"198.18.0.11:8262","stage":"bound","source":"mysql-01"},
            {"name":"dm-198.18.0.12-8262","addr":"198.18.0.12:8262","stage":"relay","source":"mysql-01"}]}}]}"#;
    let status = r#"{"result":true,"msg":"","sources":[
        {"result":true,"msg":"","sourceStatus":{"source":"mysql-01","worker":"dm-198.18.0.12-8262","result":null,
            "relayStatus":{"stage":"Paused","result":null}},"subTaskStatus":[]},
        {"result":true,"msg":"","sourceStatus":{"source":"mysql-01","worker":"dm-198.18.0.11-8262","result":null,
            "relayStatus":{"relayCatchUpMaster":true,"stage":"Running","result":{"isCanceled":false,"errors":[]}}},
         "subTaskStatus":[{"name":"t1","stage":"Running","unit":"Sync","result":null,
            "validation":{"task":"t1","source":"mysql-01","mode":"full","stage":"Stopped",
                "result":{"isCanceled":false,"errors":[{"ErrCode":38055,"Message":"no table"}]}}}]}]}"#;
    let now = seen(&recorded_cluster(11), members, status);
    let source = SourceId::new("mysql-01").unwrap();
    let relay = &now.relays[&source];
    assert_eq!((relay.stage, relay.errors.len()), (SubtaskStage::Running, 0));
    let validator = now.subtasks[0].validator.as_ref().unwrap();
    assert_eq!(validator.stage, SubtaskStage::Stopped);
    assert!(validator.errors[0].contains("no table"), "{:?}", validator.errors);
}
