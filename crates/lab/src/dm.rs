//! DM as its users see it: makes sources and tasks, asks for stages and the leader.
//!
//! Independent of dmup's own client: tests must not check dmup with dmup. Facts:
//! DM's REST `v1alpha1`, the same on the stand-in and on a real DM.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

/// A DM cluster, by the addresses (`host:port`) of its masters.
#[derive(Clone, Debug)]
pub struct DmCluster {
    masters: Vec<String>,
    patience: Duration,
    /// The folder of the client's certificate, with TLS. Read when DM is first asked: it is made by `deploy`.
    certificates: Option<Utf8PathBuf>,
    agent: OnceLock<ureq::Agent>,
}

/// What DM did not do.
#[derive(Debug, thiserror::Error)]
#[error("{attempted}: {observed}")]
pub struct DmRefusal {
    /// Verb phrase.
    pub attempted: String,
    /// What was seen.
    pub observed: String,
}

impl DmCluster {
    /// A cluster with these masters.
    pub fn new(masters: impl IntoIterator<Item = String>) -> Self {
        Self {
            masters: masters.into_iter().collect(),
            patience: Duration::from_secs(20),
            certificates: None,
            agent: OnceLock::new(),
        }
    }

    /// The same over TLS, with `ca.crt`, `client.crt` and `client.pem` of this folder.
    #[must_use]
    pub fn over_tls(self, folder: Utf8PathBuf) -> Self {
        Self { certificates: Some(folder), ..self }
    }

    /// The same, asked with little patience: a master that is silent for 2 s is passed over.
    #[must_use]
    pub fn impatient(self) -> Self {
        Self { patience: Duration::from_secs(2), agent: OnceLock::new(), ..self }
    }

    /// Name of the leader by the first master that knows one.
    pub fn leader(&self) -> Option<String> {
        self.masters.iter().find_map(|master| {
            let answer: Value = self.get(master, "members?leader=true").ok()?;
            let name = answer.pointer("/members/0/leader/name")?.as_str()?;
            (!name.is_empty()).then(|| name.to_owned())
        })
    }

    /// Stage and source of every worker, by name.
    pub fn workers(&self) -> Vec<(String, String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        self.masters
            .iter()
            .find_map(|master| {
                let answer = self.get(master, "members?worker=true").ok()?;
                let workers = answer.pointer("/members/0/worker/workers")?.as_array()?.clone();
                Some(
                    workers
                        .iter()
                        .map(|it| (text(&it["name"]), text(&it["stage"]), text(&it["source"])))
                        .collect(),
                )
            })
            .unwrap_or_default()
    }

    /// Stage of every subtask of a task, by source.
    pub fn stages(&self, task: &str) -> Vec<(String, String)> {
        self.masters
            .iter()
            .find_map(|master| {
                let answer = self.get(master, &format!("status/{task}")).ok()?;
                let sources = answer.get("sources")?.as_array()?.clone();
                Some(
                    sources
                        .iter()
                        .flat_map(|it| {
                            let source = it["sourceStatus"]["source"]
                                .as_str()
                                .unwrap_or_default()
                                .to_owned();
                            let subtasks =
                                it["subTaskStatus"].as_array().cloned().unwrap_or_default();
                            subtasks.into_iter().map(move |sub| {
                                (
                                    source.clone(),
                                    sub["stage"].as_str().unwrap_or_default().to_owned(),
                                )
                            })
                        })
                        .collect(),
                )
            })
            .unwrap_or_default()
    }

    /// Adds a source whose log is served at `host:port`.
    pub fn add_source(&self, source: &str, host: &str, port: u16) -> Result<(), DmRefusal> {
        let config = format!(
            "source-id: {source}\nenable-gtid: false\nfrom:\n  host: {host}\n  port: {port}\n  user: root\n  password: \"\"\n"
        );
        self.add_configured_source(source, &config)
    }

    /// Adds a source with a configuration of its own (YAML).
    pub fn add_configured_source(&self, source: &str, config: &str) -> Result<(), DmRefusal> {
        self.send(
            "PUT",
            "sources",
            &json!({ "op": 1, "config": [config] }),
            &format!("add source {source}"),
        )
    }

    /// Starts a task on sources, into the sink at `host:port`.
    pub fn start_task(
        &self,
        task: &str,
        sources: &[&str],
        host: &str,
        port: u16,
    ) -> Result<(), DmRefusal> {
        let instances: String = sources
            .iter()
            .map(|source| format!("  - source-id: {source}\n    syncer-config-name: global\n"))
            .collect();
        let config = format!(
            "name: {task}\ntask-mode: incremental\ntarget-database:\n  host: {host}\n  port: {port}\n  user: root\n  password: \"\"\nmysql-instances:\n{instances}syncers:\n  global:\n    checkpoint-flush-interval: 2\n"
        );
        self.start_configured_task(task, &config)
    }

    /// Starts a task with a configuration of its own (YAML).
    pub fn start_configured_task(&self, task: &str, config: &str) -> Result<(), DmRefusal> {
        self.send("POST", "tasks", &json!({ "task": config }), &format!("start task {task}"))
    }

    /// Pauses a whole task, as a person would.
    pub fn pause_task(&self, task: &str) -> Result<(), DmRefusal> {
        self.send(
            "PUT",
            &format!("tasks/{task}"),
            &json!({ "op": 2 }),
            &format!("pause task {task}"),
        )
    }

    /// Resumes a whole task.
    pub fn resume_task(&self, task: &str) -> Result<(), DmRefusal> {
        self.send(
            "PUT",
            &format!("tasks/{task}"),
            &json!({ "op": 3 }),
            &format!("resume task {task}"),
        )
    }

    /// Waits until something holds.
    ///
    /// # Errors
    ///
    /// It did not within `bound`; the text has what was seen last.
    pub fn wait_until(
        &self,
        what: &str,
        bound: Duration,
        holds: impl Fn(&Self) -> Result<(), String>,
    ) -> Result<(), DmRefusal> {
        let began = Instant::now();
        loop {
            match holds(self) {
                Ok(()) => return Ok(()),
                Err(observed) if began.elapsed() > bound => {
                    return Err(DmRefusal { attempted: format!("wait until {what}"), observed });
                }
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Waits until every subtask of a task is `Running` on all of so many sources.
    pub fn wait_running(
        &self,
        task: &str,
        sources: usize,
        bound: Duration,
    ) -> Result<(), DmRefusal> {
        self.wait_until(&format!("task {task} runs on {sources} sources"), bound, |dm| {
            let stages = dm.stages(task);
            let running = stages.iter().filter(|(_, stage)| stage == "Running").count();
            if running == sources && stages.len() == sources {
                Ok(())
            } else {
                Err(format!("{stages:?}"))
            }
        })
    }

    fn url(&self, master: &str, path: &str) -> String {
        let scheme = if self.certificates.is_some() { "https" } else { "http" };
        format!("{scheme}://{master}/apis/v1alpha1/{path}")
    }

    fn agent(&self) -> Result<&ureq::Agent, String> {
        if let Some(agent) = self.agent.get() {
            return Ok(agent);
        }
        let tls = self.certificates.as_deref().map(tls_of).transpose()?;
        Ok(self.agent.get_or_init(|| agent(self.patience, tls)))
    }

    fn get(&self, master: &str, path: &str) -> Result<Value, String> {
        let url = self.url(master, path);
        let mut answer = self.agent()?.get(url).call().map_err(|error| error.to_string())?;
        answer.body_mut().read_json().map_err(|error| error.to_string())
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        body: &Value,
        attempted: &str,
    ) -> Result<(), DmRefusal> {
        let mut observed = "no master answered".to_owned();
        let agent = self
            .agent()
            .map_err(|observed| DmRefusal { attempted: attempted.to_owned(), observed })?;
        for master in &self.masters {
            let url = self.url(master, path);
            let request = if method == "POST" { agent.post(&url) } else { agent.put(&url) };
            match request.send_json(body) {
                Ok(mut answer) => {
                    let text = answer.body_mut().read_to_string().unwrap_or_default();
                    let value: Value = serde_json::from_str(&text).unwrap_or_default();
                    let refused = |it: &Value| it.get("result") == Some(&Value::Bool(false));
                    let parts = value["sources"].as_array().cloned().unwrap_or_default();
                    if value.get("result") == Some(&Value::Bool(true)) && !parts.iter().any(refused)
                    {
                        return Ok(());
                    }
                    observed = text;
                    // The leader has spoken: another master would only ask it again.
                    break;
                }
                Err(error) => observed = error.to_string(),
            }
        }
        Err(DmRefusal { attempted: attempted.to_owned(), observed })
    }
}

fn agent(patience: Duration, tls: Option<TlsConfig>) -> ureq::Agent {
    ureq::Agent::config_builder()
        .tls_config(tls.unwrap_or_default())
        .timeout_global(Some(patience))
        .http_status_as_error(false)
        .proxy(None)
        .build()
        .into()
}

fn tls_of(folder: &Utf8Path) -> Result<TlsConfig, String> {
    let file = |name: &str| fs_err::read(folder.join(name)).map_err(|error| error.to_string());
    let told = |error: ureq::Error| format!("use the certificates in {folder}: {error}");
    let authority = Certificate::from_pem(&file("ca.crt")?).map_err(told)?;
    let certificate = Certificate::from_pem(&file("client.crt")?).map_err(told)?;
    let key = PrivateKey::from_pem(&file("client.pem")?).map_err(told)?;
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&[authority]))
        .client_cert(Some(ClientCert::new_with_certs(&[certificate], key)))
        .build())
}
