//! dm-worker: joins through a master, keeps a lease, and replicates the source that it is bound to.
//!
//! Order of start and stop: tiflow dm/worker/server.go. Start: register (a leader is needed, or the process exits
//! with 2), open the port, keep alive, start the bound source's subtasks, answer. Stop, for versions that do it right:
//! units, port, lease; for those before 6.5.0 (6.1.3): lease first, while the units still write.

mod replicate;
mod subtask;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::RwLock;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::cli::{CANNOT_START, fail};
use crate::etcd::{Etcd, EtcdError, unary};
use crate::flags::{Flags, Known};
use crate::http::{self, Http2, Rpc as _};
use crate::keys::{ROOT, Snapshot, Source, alive_key};
use crate::log;
use crate::proto::{
    Outcome, ProcessError, ProcessResult, QueryStatusRequest, QueryStatusResponse,
    RegisterWorkerRequest, SourceStatus,
};
use crate::row_client;
use crate::stamp::{Fault, Stamp};
use crate::tls;

use self::subtask::{Stop, SubtaskRun};

const DIAL_WITHIN: Duration = Duration::from_secs(3);
const REGISTER_WITHIN: Duration = Duration::from_secs(6);
const REVOKE_WITHIN: Duration = Duration::from_secs(3);

pub(crate) const FLAGS: Known = Known {
    program: "worker",
    values: &[
        "L",
        "advertise-addr",
        "cert-allowed-cn",
        "config",
        "join",
        "keepalive-ttl",
        "log-file",
        "log-format",
        "name",
        "redact-info-log",
        "relay-keepalive-ttl",
        "ssl-ca",
        "ssl-cert",
        "ssl-key",
        "worker-addr",
    ],
    switches: &["V", "print-sample-config"],
    only_in_file: &["config-file", "log-level", "log-rotate", "relay-dir"],
};

struct Worker {
    name: String,
    advertise: String,
    join: Vec<String>,
    ttl: Duration,
    stamp: Stamp,
    etcd: Etcd,
    lease: std::sync::Mutex<Option<i64>>,
    /// Written while a source is taken or let go; whoever asks for the status then waits, as with DM.
    bound: RwLock<Option<SourceRun>>,
}

/// A source in this worker's hands.
struct SourceRun {
    source: Source,
    subtasks: BTreeMap<String, Arc<SubtaskRun>>,
}

/// Runs until `closed`.
pub(crate) async fn serve(flags: Flags, stamp: &Stamp, closed: CancellationToken) -> ExitCode {
    let (listen, worker) = match Worker::from_flags(&flags, stamp) {
        Ok(parts) => parts,
        Err(error) => return fail(CANNOT_START, &error),
    };
    let worker = Arc::new(worker);
    let joins = !stamp.faults.contains(&Fault::NeverJoin);
    if joins && let Err(error) = worker.register().await {
        log::info!("join the cluster meet error: {error}");
        return fail(CANNOT_START, &error);
    }
    let listener = match http::listen(&listen) {
        Ok(listener) => listener,
        Err(error) => return fail(1, &format!("start to listen on {listen}: {error}")),
    };
    if joins {
        let first = async {
            worker.take_lease().await?;
            worker.reconcile(&Snapshot::read(&worker.etcd).await?).await;
            Ok::<_, EtcdError>(())
        };
        if let Err(error) = first.await {
            return fail(1, &format!("start to keep alive: {error}"));
        }
    }
    let port_closed = CancellationToken::new();
    let answering = Arc::clone(&worker);
    let serving = tokio::spawn(http::serve(
        listener,
        Http2::GrpcAlone,
        port_closed.clone(),
        move |request| answer(Arc::clone(&answering), request),
    ));
    if joins {
        tokio::select! {
            () = closed.cancelled() => {}
            () = worker.keep_alive() => {}
            () = worker.follow_bindings() => {}
        }
        let units_first = worker.stamp.units_before_lease();
        if !units_first {
            // Two writers from here on, if another worker is free.
            worker.order_stop().await;
            worker.give_lease_back().await;
        }
        worker.let_go(Stop::Close).await;
        port_closed.cancel();
        if units_first {
            worker.give_lease_back().await;
        }
    } else {
        closed.cancelled().await;
        port_closed.cancel();
    }
    drop(serving.await);
    ExitCode::SUCCESS
}

impl Worker {
    fn from_flags(flags: &Flags, stamp: &Stamp) -> Result<(String, Self), String> {
        let bare = |text: &str| tls::bare(text).to_owned();
        let listen = flags.value("worker-addr").map(bare).ok_or("worker-addr is not set")?;
        let advertise = flags.value("advertise-addr").map_or_else(|| listen.clone(), bare);
        let join: Vec<String> =
            flags.value("join").unwrap_or_default().split(',').map(bare).collect();
        if join.iter().all(String::is_empty) {
            return Err("join is not set".to_owned());
        }
        let ttl_s = match flags.value("keepalive-ttl") {
            None => 60,
            Some(text) => {
                text.parse().map_err(|error| format!("keepalive-ttl {text:?}: {error}"))?
            }
        };
        let listen = if listen.starts_with(':') { format!("0.0.0.0{listen}") } else { listen };
        let worker = Self {
            name: flags.value("name").unwrap_or(&advertise).to_owned(),
            etcd: Etcd::of_masters(join.iter().map(String::as_str)),
            advertise,
            join,
            ttl: Duration::from_secs(ttl_s),
            stamp: stamp.clone(),
            lease: std::sync::Mutex::new(None),
            bound: RwLock::new(None),
        };
        Ok((listen, worker))
    }

    /// Makes the masters know this worker.
    async fn register(&self) -> Result<(), String> {
        let rounds = if self.stamp.at_least(8, 5, 0) { 5 } else { 1 };
        let mut last = String::new();
        for round in 0..rounds {
            if round > 0 {
                sleep(Duration::from_secs(1)).await;
            }
            for master in &self.join {
                let endpoint = match tls::endpoint(master) {
                    Ok(endpoint) => endpoint.connect_timeout(DIAL_WITHIN),
                    Err(error) => {
                        last = error.to_string();
                        continue;
                    }
                };
                let request = RegisterWorkerRequest {
                    name: self.name.clone(),
                    address: self.advertise.clone(),
                };
                let path = RegisterWorkerRequest::PATH;
                match unary::<_, Outcome>(endpoint.connect_lazy(), path, request, REGISTER_WITHIN)
                    .await
                {
                    Ok(Outcome { result: true, .. }) => {
                        log::info!("join the cluster through {master}");
                        return Ok(());
                    }
                    Ok(Outcome { msg, .. }) => last = msg,
                    Err(status) => last = status.message().to_owned(),
                }
                log::error!("fail to dial dm-master endpoint={master} error={last}");
            }
        }
        Err(format!(
            "[code=40077:class=dm-worker:scope=internal:level=high], Message: cannot join with master endpoints: {:?}, error: {last}, Workaround: Please check network connection of worker and check worker name is unique.",
            self.join
        ))
    }

    /// A new lease with this worker's key under it; a key of a former life moves over without being deleted.
    async fn take_lease(&self) -> Result<(), EtcdError> {
        let lease = self.etcd.grant(i64::try_from(self.ttl.as_secs()).unwrap_or(i64::MAX)).await?;
        let joined = jiff::Timestamp::now();
        let value =
            serde_json::json!({ "worker-name": self.name, "join-time": joined.to_string() });
        self.etcd.put(&alive_key(&self.name), &value.to_string(), lease).await?;
        *self.lease.lock().expect("no panic under this lock") = Some(lease);
        Ok(())
    }

    async fn give_lease_back(&self) {
        let lease = self.lease.lock().expect("no panic under this lock").take();
        let Some(lease) = lease else { return };
        match timeout(REVOKE_WITHIN, self.etcd.revoke(lease)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::warning!("give the lease back: {error}"),
            Err(_) => log::warning!("give the lease back: no answer in time"),
        }
    }

    /// Renews the lease for ever. When it is gone the subtasks are killed: another worker may have them by now.
    async fn keep_alive(&self) {
        let mut renewed = Instant::now();
        let mut pause = self.ttl / 3;
        loop {
            sleep(pause).await;
            pause = self.ttl / 3;
            let lease = *self.lease.lock().expect("no panic under this lock");
            let alive = match lease {
                Some(lease) => self.etcd.renew(lease).await,
                None => self.take_lease().await.map(|()| true),
            };
            match alive {
                Ok(true) => renewed = Instant::now(),
                Ok(false) => {
                    self.lose_lease().await;
                    pause = Duration::ZERO;
                }
                Err(error) => {
                    log::warning!("keep alive: {error}");
                    pause = Duration::from_secs(1);
                    if lease.is_some() && renewed.elapsed() > self.ttl {
                        self.lose_lease().await;
                    }
                }
            }
        }
    }

    async fn lose_lease(&self) {
        log::error!("the lease is gone: stop subtasks at once");
        *self.lease.lock().expect("no panic under this lock") = None;
        self.let_go(Stop::Kill).await;
    }

    /// Does what the masters want, with each change of it, for ever.
    async fn follow_bindings(&self) {
        loop {
            if let Err(error) = self.follow_keys().await {
                log::warning!("lost etcd: {error}");
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn follow_keys(&self) -> Result<(), EtcdError> {
        let mut snapshot = Snapshot::read(&self.etcd).await?;
        let mut events = self.etcd.watch(ROOT, snapshot.revision + 1).await?;
        loop {
            self.reconcile(&snapshot).await;
            loop {
                match events.message().await {
                    Ok(Some(response)) if !response.canceled => {
                        let kvs = response.events.iter().filter_map(|event| event.kv.as_ref());
                        if kvs.map(|kv| kv.mod_revision).max().unwrap_or(0) > snapshot.revision {
                            break;
                        }
                    }
                    Ok(_) | Err(_) => return Ok(()),
                }
            }
            snapshot = Snapshot::read(&self.etcd).await?;
        }
    }

    /// Takes or lets go of a source, and brings its subtasks to their expected stages.
    async fn reconcile(&self, snapshot: &Snapshot) {
        let wanted = snapshot.bound.get(&self.name).and_then(|source| snapshot.sources.get(source));
        let held = self.bound.read().await.as_ref().map(|run| run.source.clone());
        // Without a lease nothing may be replicated, whatever the key says.
        let wanted =
            wanted.filter(|_| self.lease.lock().expect("no panic under this lock").is_some());
        if held.as_ref() != wanted {
            if held.is_some() {
                self.let_go(Stop::Close).await;
            }
            if let Some(source) = wanted {
                log::info!("take source {}", source.id);
                *self.bound.write().await =
                    Some(SourceRun { source: source.clone(), subtasks: BTreeMap::new() });
            }
        }
        let Some(source) = wanted else { return };
        let mut gone = Vec::new();
        let mut present = Vec::new();
        if let Some(run) = self.bound.write().await.as_mut() {
            for subtask in snapshot.subtasks_of(&source.id) {
                let known = run.subtasks.entry(subtask.task.clone()).or_insert_with(|| {
                    Arc::new(SubtaskRun::new(
                        subtask.clone(),
                        source.log.clone(),
                        &self.name,
                        &self.stamp,
                    ))
                });
                if let Some(wanted) = snapshot.wanted_stage(&source.id, &subtask.task) {
                    present.push((Arc::clone(known), wanted));
                }
            }
            run.subtasks.retain(|task, subtask| {
                let stays = snapshot.subtasks.contains_key(&(source.id.clone(), task.clone()));
                if !stays {
                    gone.push(Arc::clone(subtask));
                }
                stays
            });
        }
        for subtask in gone {
            subtask.end(Stop::Pause).await;
        }
        for (subtask, wanted) in present {
            subtask.bring_to(wanted).await;
        }
    }

    /// Tells every subtask to close, and waits until each calls its checkpoint clean; rows past it may still be on their way.
    ///
    /// DM gives its lease away in the same moment, and on a real one the next worker was never seen to come before the
    /// checkpoint (dm.md 12.2). Here it would, on a busy machine, and then it would write safely.
    async fn order_stop(&self) {
        if let Some(run) = self.bound.read().await.as_ref() {
            for subtask in run.subtasks.values() {
                subtask.close_checkpoint().await;
            }
        }
    }

    /// Ends every subtask, one after the other, and forgets the source.
    async fn let_go(&self, how: Stop) {
        let mut bound = self.bound.write().await;
        if let Some(run) = bound.take() {
            for subtask in run.subtasks.values() {
                subtask.end(how).await;
            }
            log::info!("let go of source {}", run.source.id);
        }
    }

    async fn query_status(&self, task: &str) -> QueryStatusResponse {
        let bound = self.bound.read().await;
        let Some(run) = bound.as_ref() else {
            let msg = "[code=40070:class=dm-worker:scope=internal:level=high], Message: no mysql source is being handled in the worker";
            let status = SourceStatus { worker: self.name.clone(), ..SourceStatus::default() };
            return QueryStatusResponse {
                result: false,
                msg: msg.to_owned(),
                source_status: Some(status),
                subtask_status: Vec::new(),
            };
        };
        let source = run.source.clone();
        let subtasks: Vec<_> = run
            .subtasks
            .iter()
            .filter(|(name, _)| task.is_empty() || *name == task)
            .map(|(_, subtask)| Arc::clone(subtask))
            .collect();
        drop(bound);
        let end = row_client::end_of(&source.log, &source.id).await;
        let result = end.as_ref().err().map(|error| ProcessResult {
            is_canceled: false,
            errors: vec![ProcessError {
                err_code: 10001,
                err_class: "database".to_owned(),
                err_scope: "upstream".to_owned(),
                err_level: "high".to_owned(),
                message: "database driver error".to_owned(),
                raw_cause: error.to_string(),
                workaround: String::new(),
            }],
            detail: None,
        });
        QueryStatusResponse {
            result: true,
            msg: String::new(),
            source_status: Some(SourceStatus {
                source: source.id,
                worker: self.name.clone(),
                result,
                relay_status: None,
            }),
            subtask_status: subtasks
                .iter()
                .map(|subtask| subtask.status(end.as_ref().ok()))
                .collect(),
        }
    }

    async fn metrics(&self) -> String {
        let mut text = "# TYPE dm_worker_cpu_usage gauge\ndm_worker_cpu_usage 0\n".to_owned();
        if let Some(run) = self.bound.read().await.as_ref() {
            for subtask in run.subtasks.values() {
                write!(text, "{}", subtask.metrics()).expect("writing to a string");
            }
        }
        text
    }
}

async fn answer(worker: Arc<Worker>, request: http::Request) -> http::Response {
    if http::is_grpc(&request) {
        return match request.uri().path() {
            QueryStatusRequest::PATH => {
                http::answer_grpc(request, move |asked: QueryStatusRequest| async move {
                    Ok(worker.query_status(&asked.name).await)
                })
                .await
            }
            _ => http::unimplemented_grpc(),
        };
    }
    match request.uri().path() {
        "/status" => http::plain(200, "text/plain", worker.stamp.status_text()),
        "/metrics" => {
            http::plain(200, "text/plain; version=0.0.4; charset=utf-8", worker.metrics().await)
        }
        _ => http::not_found(),
    }
}
