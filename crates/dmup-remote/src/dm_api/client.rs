//! Orders, through whichever master can take them; and the port itself.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dmup_core::ids::{InstanceId, MemberName, SourceId, TaskName};
use dmup_core::instance::{Instance, Role};
use dmup_core::inventory::DmSeen;
use dmup_exec::ports::{Certainty, Dm, EffectError, ReportedBuild};
use hyper::Method;
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tonic::transport::{ClientTlsConfig, Endpoint};

use crate::ssh::Jump;

use super::answers::{Outcome, PerSource};
use super::code::DmCode;
use super::grpc;
use super::http::{Http, Unanswered, ask, authority, beginning, escaped, exchange};
use super::seen::build_in_status;

/// Between two tries of an order that DM could not take yet.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(300);

/// Longest wait for an order that DM takes at once: eviction, removal of a member.
const MEMBER_ORDER: Duration = Duration::from_secs(10);

/// How long to wait for what.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Timeouts {
    /// For a connection.
    pub connect: Duration,
    /// For what a master knows by itself. A leader query through another master took up to 4 s after an eviction.
    pub answer: Duration,
    /// For what the leader asks all workers; DM itself would wait 30 s for a worker that hangs.
    pub report: Duration,
    /// For an order. Pausing waits for the end of a transaction, a transfer up to 55 s for `Paused` (dm.md 4.8).
    pub order: Duration,
    /// How long an order is repeated that DM cannot take yet (no leader, its scheduler not started, task latched).
    pub not_yet: Duration,
    /// `--status-timeout` of `display`; below a second, TiUP's own defaults count (2 s, monitoring 10 s).
    pub display: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            answer: Duration::from_secs(3),
            report: Duration::from_secs(8),
            order: Duration::from_secs(75),
            not_yet: Duration::from_secs(15),
            display: Duration::from_secs(10),
        }
    }
}

/// Requests over TLS cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot prepare requests to DM: {0}")]
pub struct Unusable(String);

/// What a cluster with TLS asks of its clients, all PEM: `ca.crt`, `client.crt`, `client.pem` of its `tls` folder.
#[derive(Clone)]
pub struct Tls {
    /// The cluster's own authority; no other is trusted.
    pub authority: Vec<u8>,
    /// Our certificate.
    pub certificate: Vec<u8>,
    /// Its private key.
    pub key: Vec<u8>,
}

impl Tls {
    fn for_http(&self) -> Result<ClientConfig, Unusable> {
        let unusable = |what: &str, why: &dyn fmt::Display| Unusable(format!("{what}: {why}"));
        let certificates = |what: &str, pem: &[u8]| {
            let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
            let all = all.map_err(|error| unusable(what, &error))?;
            if all.is_empty() { Err(unusable(what, &"it holds none")) } else { Ok(all) }
        };
        let mut roots = RootCertStore::empty();
        for authority in certificates("the authority's certificate", &self.authority)? {
            let added = roots.add(authority);
            added.map_err(|error| unusable("the authority's certificate", &error))?;
        }
        let own = certificates("our certificate", &self.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|error| unusable("our private key", &error))?;
        ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|it| it.with_root_certificates(roots).with_client_auth_cert(own, key))
            .map_err(|error| unusable("our certificate and key", &error))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls(‹redacted›)")
    }
}

/// The client of one cluster's DM.
#[derive(Debug)]
pub struct DmClient {
    pub(super) instances: Vec<Instance>,
    pub(super) timeouts: Timeouts,
    /// With TLS, if the cluster has it; monitoring has none of TiUP's.
    pub(super) http: Http,
    tls: Option<ClientTlsConfig>,
    remembered: Mutex<Remembered>,
}

/// From the last look, for the order in which masters are asked.
#[derive(Clone, Debug, Default)]
pub(super) struct Remembered {
    pub(super) avoiding: Vec<InstanceId>,
    pub(super) leader: Option<InstanceId>,
}

impl DmClient {
    /// Takes all instances of the topology, monitoring too; nothing is sent yet.
    pub fn new(instances: &[Instance], timeouts: Timeouts) -> Self {
        let http = Http { jump: None, tls: None, connect: timeouts.connect };
        let instances = instances.to_vec();
        Self { instances, timeouts, http, tls: None, remembered: Mutex::default() }
    }

    /// As [`Self::new`], for a cluster with `enable_tls`.
    ///
    /// # Errors
    ///
    /// [`Unusable`] if a certificate or the key cannot be read.
    pub fn over_tls(
        instances: &[Instance],
        timeouts: Timeouts,
        tls: &Tls,
    ) -> Result<Self, Unusable> {
        let mut client = Self::new(instances, timeouts);
        client.http.tls = Some(Arc::new(tls.for_http()?));
        // Go's gRPC server behind DM's port does not always name h2 in its handshake.
        let for_grpc = ClientTlsConfig::new()
            .ca_certificate(tonic::transport::Certificate::from_pem(&tls.authority))
            .identity(tonic::transport::Identity::from_pem(&tls.certificate, &tls.key))
            .assume_http2(true);
        Ok(Self { tls: Some(for_grpc), ..client })
    }

    /// Reaches everything through the host in between, if there is one.
    #[must_use]
    pub fn through(mut self, jump: Option<Arc<Jump>>) -> Self {
        self.http.jump = jump;
        self
    }

    /// `http://host:port` of a master or worker, or https.
    pub(super) fn base(&self, instance: &Instance) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", authority(&instance.host, instance.port))
    }

    /// Where a master takes gRPC.
    pub(super) fn endpoint(&self, master: &Instance) -> Result<Endpoint, Unanswered> {
        let told = |error: tonic::transport::Error| Unanswered::Connect(error.to_string());
        let endpoint = Endpoint::from_shared(self.base(master))
            .map_err(told)?
            .connect_timeout(self.timeouts.connect);
        match &self.tls {
            Some(tls) => endpoint.tls_config(tls.clone()).map_err(told),
            None => Ok(endpoint),
        }
    }

    /// Takes a master or a worker that is gone for good off DM's member list; fine if it is not on it.
    ///
    /// # Errors
    ///
    /// Refused while a worker still has its lease (46005: try again), or if the instance is no part of DM.
    pub async fn remove_member(&self, instance: &Instance) -> Result<(), EffectError> {
        self.remove_named(instance.role, &instance.name, Some(&instance.id)).await
    }

    /// The same for a member that the topology may not know; `never` is a master that must not be asked.
    ///
    /// # Errors
    ///
    /// As [`Self::remove_member`].
    pub async fn remove_named(
        &self,
        role: Role,
        name: &MemberName,
        never: Option<&InstanceId>,
    ) -> Result<(), EffectError> {
        let kind = match role {
            Role::DmMaster => "master",
            Role::DmWorker => "worker",
            Role::Prometheus
            | Role::Grafana
            | Role::Alertmanager
            | Role::NodeExporter
            | Role::BlackboxExporter => {
                return Err(EffectError {
                    attempted: format!("take {name} off the member list"),
                    place: "DM".into(),
                    observed: format!("{role} is no member of DM"),
                    certainty: Certainty::Refused,
                });
            }
        };
        let path = format!("/apis/v1alpha1/members/{kind}/{}", escaped(name.as_str()));
        let attempted = format!("take {name} off the member list");
        self.order(&attempted, never, |master| {
            let url = format!("{}{path}", self.base(master));
            async move {
                let within = self.timeouts.order.min(MEMBER_ORDER);
                let outcome: Result<Outcome, Unanswered> =
                    ask(&self.http, Method::DELETE, &url, None, within).await;
                match outcome {
                    Ok(outcome) if outcome.result || outcome.msg.contains("not exists") => Ok(()),
                    Ok(outcome) => Err(Unanswered::Refused(beginning(&outcome.msg))),
                    Err(Unanswered::Status { status: 404, .. }) => Ok(()),
                    Err(Unanswered::Status { body, .. }) if body.contains("not exists") => Ok(()),
                    Err(other) => Err(other),
                }
            }
        })
        .await
    }

    pub(super) fn masters(&self) -> impl Iterator<Item = &Instance> {
        self.instances.iter().filter(|it| it.role == Role::DmMaster)
    }

    pub(super) fn remember(&self, change: impl FnOnce(&mut Remembered)) {
        change(&mut self.remembered.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn remembered(&self) -> Remembered {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Masters in the order in which they are asked: the leader, the others; never the avoided ones
    /// unless there are no others.
    fn candidates(&self, never: Option<&InstanceId>) -> Vec<&Instance> {
        let remembered = self.remembered();
        let mut all: Vec<&Instance> = self
            .masters()
            .filter(|it| !remembered.avoiding.contains(&it.id) && Some(&it.id) != never)
            .collect();
        if all.is_empty() {
            all = self.masters().filter(|it| Some(&it.id) != never).collect();
        }
        all.sort_by_key(|it| Some(&it.id) != remembered.leader.as_ref());
        all
    }

    /// Gives an order to the first master that can take it.
    ///
    /// A master that cannot be reached, or cannot reach the leader, has done nothing: the next is
    /// asked. One that may have done it ends the attempt: unknown.
    async fn order<'a, F, Fut>(
        &'a self,
        attempted: &str,
        never: Option<&InstanceId>,
        send: F,
    ) -> Result<(), EffectError>
    where
        F: Fn(&'a Instance) -> Fut,
        Fut: Future<Output = Result<(), Unanswered>>,
    {
        let until = Instant::now() + self.timeouts.not_yet;
        loop {
            let mut said = Vec::new();
            let mut not_yet = false;
            let mut passes = true;
            for master in self.candidates(never) {
                let error = match send(master).await {
                    Ok(()) => return Ok(()),
                    Err(error) => error,
                };
                if error.may_have_happened() {
                    return Err(failed(attempted, master, &error));
                }
                match &error {
                    Unanswered::Refused(words) if is_not_yet(words) => not_yet = true,
                    Unanswered::Refused(_) => return Err(failed(attempted, master, &error)),
                    Unanswered::Connect(_) => {}
                    Unanswered::Status { .. }
                    | Unanswered::TimedOut(_)
                    | Unanswered::Broke(_)
                    | Unanswered::Nonsense { .. } => passes = false,
                }
                said.push(format!("{}: {error}", master.id));
            }
            if !not_yet || Instant::now() >= until {
                return Err(EffectError {
                    attempted: attempted.to_owned(),
                    place: "every dm-master".into(),
                    observed: if said.is_empty() {
                        "there is none to ask".into()
                    } else {
                        said.join("; ")
                    },
                    // Each of them was not reached, or is not able to yet: a later try may find one.
                    certainty: if passes { Certainty::NotSent } else { Certainty::Refused },
                });
            }
            tokio::time::sleep(TRY_AGAIN_AFTER).await;
        }
    }

    /// By way of one master. Configurations have passwords in them: of what it answers no word is kept or told.
    async fn sources_by(
        &self,
        master: &Instance,
        task: &TaskName,
    ) -> Result<BTreeSet<SourceId>, Unanswered> {
        let url =
            format!("{}/apis/v1alpha1/subtasks/{}", self.base(master), escaped(task.as_str()));
        let (status, body) =
            exchange(&self.http, Method::GET, &url, None, self.timeouts.answer).await?;
        if !status.is_success() {
            return Err(Unanswered::Status { status: status.as_u16(), body: String::new() });
        }
        sources_in(&body).ok_or_else(|| Unanswered::Nonsense {
            why: "it is no list of configurations".into(),
            body: String::new(),
        })
    }

    async fn operate_task(
        &self,
        attempted: &str,
        op: i32,
        task: &TaskName,
        source: &SourceId,
    ) -> Result<(), EffectError> {
        let timeouts = &self.timeouts;
        self.order(attempted, None, |master| async move {
            let request = grpc::OperateTaskRequest {
                op,
                name: task.as_str().to_owned(),
                sources: vec![source.as_str().to_owned()],
            };
            let answer: Result<grpc::OperateTaskResponse, _> = grpc::call(
                &self.http,
                self.endpoint(master)?,
                "/pb.Master/OperateTask",
                request,
                timeouts.order,
            )
            .await;
            let (result, msg) = match answer {
                Ok(answer) => (answer.result, answer.msg),
                Err(Unanswered::Status { status: 501, .. }) => {
                    let url = format!(
                        "{}/apis/v1alpha1/tasks/{}",
                        self.base(master),
                        escaped(task.as_str())
                    );
                    let body = json!({"op": op, "sources": [source.as_str()]});
                    let answer: PerSource =
                        ask(&self.http, Method::PUT, &url, Some(&body), timeouts.order).await?;
                    (answer.result, answer.msg)
                }
                Err(error) => return Err(error),
            };
            // The answers per source say only how far it was when DM stopped waiting for it: the
            // order itself was stored before (tiflow dm/master/server.go: OperateTask).
            if result { Ok(()) } else { Err(Unanswered::Refused(beginning(&msg))) }
        })
        .await
    }

    /// Evicts (1) or takes the eviction back (2): acts on that master alone.
    async fn operate_leader(
        &self,
        attempted: String,
        master: &Instance,
        op: u8,
    ) -> Result<(), EffectError> {
        let url = format!("{}/apis/v1alpha1/leader/{op}", self.base(master));
        let within = self.timeouts.order.min(MEMBER_ORDER);
        let outcome: Result<Outcome, Unanswered> =
            ask(&self.http, Method::PUT, &url, None, within).await;
        match outcome {
            Ok(outcome) if outcome.result => Ok(()),
            Ok(outcome) => {
                Err(failed(&attempted, master, &Unanswered::Refused(beginning(&outcome.msg))))
            }
            Err(error) => Err(failed(&attempted, master, &error)),
        }
    }
}

/// `http://host:port` of a monitoring instance, reached like the host itself.
pub(super) fn page_base(instance: &Instance) -> String {
    format!("http://{}", authority(&instance.ssh_host, instance.port))
}

/// Answers of a master that will be right soon.
pub(super) fn is_not_yet(words: &str) -> bool {
    match DmCode::of(words) {
        Some(
            DmCode::NoLeader
            | DmCode::CannotForward
            | DmCode::SchedulerNotStarted
            | DmCode::LatchInUse,
        ) => true,
        Some(
            DmCode::LoadedElsewhere
            | DmCode::EffectNotSeen
            | DmCode::WorkerHasNoSource
            | DmCode::NoSuchWorker
            | DmCode::WorkerOnline
            | DmCode::WorkerNotFree
            | DmCode::TasksRunning
            | DmCode::AutoPauseFailed
            | DmCode::Other(_),
        )
        | None => false,
    }
}

pub(super) fn failed(attempted: &str, at: &Instance, error: &Unanswered) -> EffectError {
    EffectError {
        attempted: attempted.to_owned(),
        place: format!("{} {}", at.role, at.id),
        observed: error.to_string(),
        certainty: match error {
            _ if error.may_have_happened() => Certainty::Unknown,
            Unanswered::Connect(_) => Certainty::NotSent,
            Unanswered::Refused(_)
            | Unanswered::Status { .. }
            | Unanswered::TimedOut(_)
            | Unanswered::Broke(_)
            | Unanswered::Nonsense { .. } => Certainty::Refused,
        },
    }
}

#[async_trait]
impl Dm for DmClient {
    async fn look(&self, avoiding: &[InstanceId]) -> Result<DmSeen, EffectError> {
        self.look_around(avoiding).await
    }

    async fn build_of(&self, instance: &Instance) -> Result<ReportedBuild, EffectError> {
        let attempted = "ask for its build";
        let page = |path| format!("{}{path}", page_base(instance));
        let url = match instance.role {
            Role::DmMaster | Role::DmWorker => format!("{}/status", self.base(instance)),
            Role::Prometheus => page("/api/v1/status/buildinfo"),
            Role::Grafana => page("/api/health"),
            Role::Alertmanager => page("/api/v2/status"),
            Role::NodeExporter | Role::BlackboxExporter => {
                return Err(EffectError {
                    attempted: attempted.to_owned(),
                    place: instance.id.to_string(),
                    observed: format!("nobody asks a {} for it", instance.role),
                    certainty: Certainty::Refused,
                });
            }
        };
        let (status, body) = exchange(&self.http, Method::GET, &url, None, self.timeouts.answer)
            .await
            .map_err(|error| failed(attempted, instance, &error))?;
        if !status.is_success() {
            let error = Unanswered::Status { status: status.as_u16(), body: beginning(&body) };
            return Err(failed(attempted, instance, &error));
        }
        let build = match instance.role {
            Role::DmMaster | Role::DmWorker => build_in_status(&body),
            Role::Prometheus => build_in_json(&body, &["data"], "revision"),
            Role::Grafana => build_in_json(&body, &[], "commit"),
            Role::Alertmanager => build_in_json(&body, &["versionInfo"], "revision"),
            Role::NodeExporter | Role::BlackboxExporter => None,
        };
        build.ok_or_else(|| {
            let error =
                Unanswered::Nonsense { why: "it names no version".into(), body: beginning(&body) };
            failed(attempted, instance, &error)
        })
    }

    async fn sources_of(&self, task: &TaskName) -> Result<BTreeSet<SourceId>, EffectError> {
        let mut said = Vec::new();
        for master in self.candidates(None) {
            match self.sources_by(master, task).await {
                Ok(sources) => return Ok(sources),
                Err(error) => said.push(format!("{}: {error}", master.id)),
            }
        }
        Err(EffectError {
            attempted: format!("ask for the sources of task {task}"),
            place: "every dm-master".into(),
            observed: said.join("; "),
            certainty: Certainty::Refused,
        })
    }

    async fn evict_leader(&self, master: &Instance) -> Result<(), EffectError> {
        self.operate_leader(format!("evict {} as leader", master.name), master, 1).await
    }

    async fn cancel_evict(&self, master: &Instance) -> Result<(), EffectError> {
        self.operate_leader(format!("let {} be leader again", master.name), master, 2).await
    }

    async fn pause(&self, task: &TaskName, source: &SourceId) -> Result<(), EffectError> {
        self.operate_task(
            &format!("pause task {task} of source {source}"),
            grpc::PAUSE,
            task,
            source,
        )
        .await
    }

    async fn resume(&self, task: &TaskName, source: &SourceId) -> Result<(), EffectError> {
        self.operate_task(
            &format!("resume task {task} of source {source}"),
            grpc::RESUME,
            task,
            source,
        )
        .await
    }

    async fn transfer(&self, source: &SourceId, worker: &MemberName) -> Result<(), EffectError> {
        let timeouts = &self.timeouts;
        self.order(&format!("transfer source {source} to {worker}"), None, |master| async move {
            let request = grpc::TransferSourceRequest {
                source: source.as_str().to_owned(),
                worker: worker.as_str().to_owned(),
            };
            let answer: grpc::TransferSourceResponse = grpc::call(
                &self.http,
                self.endpoint(master)?,
                "/pb.Master/TransferSource",
                request,
                timeouts.order,
            )
            .await
            .map_err(|error| {
                if matches!(error, Unanswered::Status { status: 501, .. }) {
                    let words = "this DM cannot transfer sources (it came with v2.0.2)";
                    Unanswered::Refused(words.into())
                } else {
                    error
                }
            })?;
            if answer.result { Ok(()) } else { Err(Unanswered::Refused(beginning(&answer.msg))) }
        })
        .await
    }
}

/// The sources of a `GetSubTaskCfg` answer; none if it is not one. Of a task that no source has it says in words that it was not found
/// (tiflow dm/master/server.go: GetSubTaskCfg, the same since v2.0).
pub(super) fn sources_in(body: &str) -> Option<BTreeSet<SourceId>> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Answer {
        result: bool,
        msg: String,
        cfgs: Vec<String>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Config {
        source_id: SourceId,
    }
    let answer: Answer = serde_json::from_str(body).ok()?;
    if !answer.result {
        return (answer.msg == "task not found").then(BTreeSet::new);
    }
    answer
        .cfgs
        .iter()
        .map(|cfg| toml::from_str::<Config>(cfg).ok().map(|it| it.source_id))
        .collect()
}

/// Version and commit, below some keys.
fn build_in_json(body: &str, below: &[&str], commit: &str) -> Option<ReportedBuild> {
    let value: serde_json::Value = serde_json::from_str(body).ok()?;
    let value = below.iter().try_fold(&value, |at, key| at.get(key))?;
    let text = |key| value.get(key).and_then(serde_json::Value::as_str).map(beginning);
    Some(ReportedBuild { release: text("version")?, commit: text(commit).unwrap_or_default() })
}
