//! What the masters and workers keep in etcd, read at one revision.
//!
//! Keys: tiflow dm/common/common.go and dm/pkg/ha (names hex-encoded). Values that only this program reads are
//! JSON where DM has TOML.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::etcd::{Etcd, EtcdError};
use crate::proto::Stage;

/// Everything lies under it.
pub(crate) const ROOT: &str = "/dm-";
pub(crate) const LEADER: &str = "/dm-master/leader/";
const REGISTERED: &str = "/dm-worker/r/";
const ALIVE: &str = "/dm-worker/a/";
const BOUND: &str = "/dm-master/bound-worker/";
const LAST_BOUND: &str = "/dm-master/last-bound-worker/";
const SOURCE: &str = "/dm-master/v2/upstream/config/";
const SUBTASK: &str = "/dm-master/upstream/subtask/";
const STAGE: &str = "/dm-master/stage/subtask/";

/// Value of a candidate's key.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Candidate {
    pub(crate) id: String,
    pub(crate) addr: String,
}

#[derive(Deserialize, Serialize)]
pub(crate) struct Registered {
    pub(crate) name: String,
    pub(crate) addr: String,
}

#[derive(Deserialize, Serialize)]
struct Bound {
    source: String,
    worker: String,
}

/// A source: where its log is.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Source {
    pub(crate) id: String,
    /// `host:port`.
    pub(crate) log: String,
}

/// One task on one source.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Subtask {
    pub(crate) task: String,
    pub(crate) source: String,
    /// `host:port` of the sink.
    pub(crate) sink: String,
    pub(crate) flush_interval_s: u64,
    /// `Dump` or `Load`: the subtask stays in that unit and writes nothing.
    pub(crate) stays_in: Option<String>,
}

#[derive(Deserialize, Serialize)]
struct Expected {
    expect: i32,
    source: String,
    task: String,
}

pub(crate) fn registered_key(worker: &str) -> String {
    format!("{REGISTERED}{}", hex::encode(worker))
}

pub(crate) fn alive_key(worker: &str) -> String {
    format!("{ALIVE}{}", hex::encode(worker))
}

pub(crate) fn bound_key(worker: &str) -> String {
    format!("{BOUND}{}", hex::encode(worker))
}

pub(crate) fn last_bound_key(worker: &str) -> String {
    format!("{LAST_BOUND}{}", hex::encode(worker))
}

pub(crate) fn bound_value(source: &str, worker: &str) -> String {
    to_json(&Bound { source: source.to_owned(), worker: worker.to_owned() })
}

pub(crate) fn source_key(source: &str) -> String {
    format!("{SOURCE}{}", hex::encode(source))
}

pub(crate) fn subtask_key(source: &str, task: &str) -> String {
    format!("{SUBTASK}{}/{}", hex::encode(source), hex::encode(task))
}

pub(crate) fn stage_key(source: &str, task: &str) -> String {
    format!("{STAGE}{}/{}", hex::encode(source), hex::encode(task))
}

pub(crate) fn stage_value(stage: Stage, source: &str, task: &str) -> String {
    to_json(&Expected { expect: stage as i32, source: source.to_owned(), task: task.to_owned() })
}

pub(crate) fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain data")
}

/// An expected stage and the revision that set it: setting it again is an order too.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) stage: Stage,
    pub(crate) revision: i64,
}

/// All of it at one revision.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) revision: i64,
    /// In the order in which they came; the first leads. With the key each holds.
    pub(crate) candidates: Vec<(String, Candidate)>,
    /// Name to address.
    pub(crate) workers: BTreeMap<String, String>,
    pub(crate) alive: Vec<String>,
    /// Worker to source.
    pub(crate) bound: BTreeMap<String, String>,
    /// Worker to source.
    pub(crate) last_bound: BTreeMap<String, String>,
    pub(crate) sources: BTreeMap<String, Source>,
    /// By source, then task.
    pub(crate) subtasks: BTreeMap<(String, String), Subtask>,
    pub(crate) wanted: BTreeMap<(String, String), Wanted>,
}

impl Snapshot {
    /// Reads it.
    pub(crate) async fn read(etcd: &Etcd) -> Result<Self, EtcdError> {
        let answer = etcd.range(ROOT).await?;
        let mut all =
            Self { revision: answer.header.map_or(0, |header| header.revision), ..Self::default() };
        let mut candidates = Vec::new();
        for kv in answer.kvs {
            let Ok(key) = String::from_utf8(kv.key) else { continue };
            let value = kv.value.as_slice();
            if key.starts_with(LEADER) {
                if let Ok(candidate) = serde_json::from_slice(value) {
                    candidates.push((kv.create_revision, (key, candidate)));
                }
            } else if key.starts_with(REGISTERED) {
                if let Ok(Registered { name, addr }) = serde_json::from_slice(value) {
                    all.workers.insert(name, addr);
                }
            } else if let Some(name) = key.strip_prefix(ALIVE) {
                all.alive
                    .extend(hex::decode(name).ok().and_then(|name| String::from_utf8(name).ok()));
            } else if key.starts_with(BOUND) {
                if let Ok(Bound { source, worker }) = serde_json::from_slice(value) {
                    all.bound.insert(worker, source);
                }
            } else if key.starts_with(LAST_BOUND) {
                if let Ok(Bound { source, worker }) = serde_json::from_slice(value) {
                    all.last_bound.insert(worker, source);
                }
            } else if key.starts_with(SOURCE) {
                if let Ok(source) = serde_json::from_slice::<Source>(value) {
                    all.sources.insert(source.id.clone(), source);
                }
            } else if key.starts_with(SUBTASK) {
                if let Ok(subtask) = serde_json::from_slice::<Subtask>(value) {
                    all.subtasks.insert((subtask.source.clone(), subtask.task.clone()), subtask);
                }
            } else if key.starts_with(STAGE)
                && let Ok(Expected { expect, source, task }) = serde_json::from_slice(value)
                && let Ok(stage) = Stage::try_from(expect)
            {
                all.wanted.insert((source, task), Wanted { stage, revision: kv.mod_revision });
            }
        }
        candidates.sort_by_key(|(revision, _)| *revision);
        all.candidates = candidates.into_iter().map(|(_, candidate)| candidate).collect();
        Ok(all)
    }

    pub(crate) fn leader(&self) -> Option<&(String, Candidate)> {
        self.candidates.first()
    }

    pub(crate) fn is_alive(&self, worker: &str) -> bool {
        self.alive.iter().any(|name| name == worker)
    }

    /// `offline`, `free` or `bound`.
    pub(crate) fn worker_stage(&self, worker: &str) -> &'static str {
        if !self.is_alive(worker) {
            "offline"
        } else if self.bound.contains_key(worker) {
            "bound"
        } else {
            "free"
        }
    }

    /// The worker that has the source.
    pub(crate) fn worker_of(&self, source: &str) -> Option<&str> {
        self.bound.iter().find(|(_, bound)| *bound == source).map(|(worker, _)| worker.as_str())
    }

    /// Tasks on a source, with their subtasks.
    pub(crate) fn subtasks_of<'a>(&'a self, source: &'a str) -> impl Iterator<Item = &'a Subtask> {
        self.subtasks.values().filter(move |subtask| subtask.source == source)
    }

    /// What a subtask is to do.
    pub(crate) fn wanted_stage(&self, source: &str, task: &str) -> Option<Wanted> {
        self.wanted.get(&(source.to_owned(), task.to_owned())).copied()
    }
}
