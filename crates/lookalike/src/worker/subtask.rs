//! One task on one source: its stage, and the replication behind it.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::keys::{Subtask, Wanted};
use crate::log;
use crate::proto::{
    DumpStatus, LoadStatus, ProcessError, ProcessResult, Stage, SubTaskStatus, SyncStatus,
    UnitStatus, UnitType,
};
use crate::rows::{Checkpoint, Transaction, binlog, binlog_offset, gtid};
use crate::stamp::Stamp;

use super::replicate::Replication;

/// What a replication has been told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stop {
    /// Go on.
    No,
    /// Stop at the end of the transaction, or in it after ten seconds.
    Pause,
    /// The same, because the worker ends or loses the source.
    Close,
    /// Stop at once and keep no checkpoint.
    Kill,
}

/// What can be seen of a subtask.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    pub(super) stage: Stage,
    pub(super) error: Option<ProcessError>,
    /// The checkpoint at the sink.
    pub(super) flushed: Checkpoint,
    /// The last transaction that is wholly written.
    pub(super) written: Checkpoint,
    /// The transaction in work, if any.
    pub(super) open: Option<Transaction>,
    pub(super) rows: u64,
    pub(super) transactions: u64,
}

/// A subtask in this worker's hands.
pub(super) struct SubtaskRun {
    config: Subtask,
    log: String,
    worker: String,
    stamp: Stamp,
    progress: Arc<Mutex<Progress>>,
    current: Mutex<Option<Current>>,
    handled: Mutex<Option<i64>>,
}

/// A replication that has been started, and may have ended.
struct Current {
    stop: watch::Sender<Stop>,
    ended: CancellationToken,
}

impl SubtaskRun {
    pub(super) fn new(config: Subtask, log: String, worker: &str, stamp: &Stamp) -> Self {
        let progress = Progress {
            stage: Stage::New,
            error: None,
            flushed: Checkpoint::default(),
            written: Checkpoint::default(),
            open: None,
            rows: 0,
            transactions: 0,
        };
        Self {
            config,
            log,
            worker: worker.to_owned(),
            stamp: stamp.clone(),
            progress: Arc::new(Mutex::new(progress)),
            current: Mutex::new(None),
            handled: Mutex::new(None),
        }
    }

    /// Does what the expected stage says. The same order twice is done once; a new order for the same stage is done
    /// anew: so a task that an error has paused is resumed.
    pub(super) async fn bring_to(&self, wanted: Wanted) {
        let before =
            self.handled.lock().expect("no panic under this lock").replace(wanted.revision);
        if before == Some(wanted.revision) {
            return;
        }
        match wanted.stage {
            Stage::Running => self.start(),
            stage @ (Stage::Paused | Stage::Stopped) => {
                self.change(|progress| {
                    if progress.stage == Stage::Running {
                        progress.stage = Stage::Pausing;
                    }
                });
                self.end(Stop::Pause).await;
                self.change(|progress| progress.stage = stage);
            }
            Stage::InvalidStage
            | Stage::New
            | Stage::Finished
            | Stage::Pausing
            | Stage::Resuming
            | Stage::Stopping => log::warning!("cannot bring a subtask to {:?}", wanted.stage),
        }
    }

    fn start(&self) {
        let mut current = self.current.lock().expect("no panic under this lock");
        if current.as_ref().is_some_and(|current| !current.ended.is_cancelled())
            && self.progress.lock().expect("no panic under this lock").error.is_none()
        {
            return;
        }
        if let Some(old) = current.take() {
            // It waits to try again by itself; the order comes first.
            old.stop.send_replace(Stop::Kill);
        }
        self.change(|progress| progress.error = None);
        if self.config.stays_in.is_some() {
            self.change(|progress| progress.stage = Stage::Running);
            return;
        }
        let (stop, stopped) = watch::channel(Stop::No);
        let ended = CancellationToken::new();
        let replication = Replication {
            subtask: self.config.clone(),
            log: self.log.clone(),
            worker: self.worker.clone(),
            stamp: self.stamp.clone(),
            progress: Arc::clone(&self.progress),
            stop: stopped,
        };
        let guard = ended.clone().drop_guard();
        tokio::spawn(async move {
            replication.run().await;
            drop(guard);
        });
        *current = Some(Current { stop, ended });
    }

    /// Tells the replication, without waiting for it.
    pub(super) fn order(&self, how: Stop) -> Option<CancellationToken> {
        let current = self.current.lock().expect("no panic under this lock");
        current.as_ref().map(|current| {
            current.stop.send_replace(how);
            current.ended.clone()
        })
    }

    /// Tells the replication to close, and waits until its checkpoint is clean, or it has ended.
    pub(super) async fn close_checkpoint(&self) {
        let Some(ended) = self.order(Stop::Close) else { return };
        let is_clean = || self.progress.lock().expect("no panic under this lock").flushed.clean;
        while !ended.is_cancelled() && !is_clean() {
            // The replication looks for orders between two batches of rows: a matter of milliseconds.
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Ends the replication, if it runs.
    pub(super) async fn end(&self, how: Stop) {
        if let Some(ended) = self.order(how) {
            ended.cancelled().await;
        }
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress.lock().expect("no panic under this lock"));
    }

    fn unit(&self) -> UnitType {
        match self.config.stays_in.as_deref() {
            Some("Dump") => UnitType::Dump,
            Some("Load") => UnitType::Load,
            Some(_) | None => UnitType::Sync,
        }
    }

    /// What DM's `query-status` shows; `end` is the last transaction of the log, if it could be asked.
    pub(super) fn status(&self, end: Option<&Transaction>) -> SubTaskStatus {
        let progress = self.progress.lock().expect("no panic under this lock").clone();
        let unit = self.unit();
        let status = match unit {
            UnitType::Dump => {
                UnitStatus::Dump(DumpStatus { total_tables: 1, ..DumpStatus::default() })
            }
            UnitType::Load => UnitStatus::Load(LoadStatus {
                progress: "0.00 %".to_owned(),
                ..LoadStatus::default()
            }),
            UnitType::InvalidUnit | UnitType::Check | UnitType::Sync | UnitType::Relay => {
                UnitStatus::Sync(Box::new(sync_status(&progress, end)))
            }
        };
        SubTaskStatus {
            name: self.config.task.clone(),
            stage: progress.stage as i32,
            unit: unit as i32,
            result: progress.error.map(|error| ProcessResult {
                is_canceled: false,
                errors: vec![error],
                detail: None,
            }),
            unresolved_ddl_lock_id: String::new(),
            status: Some(status),
            validation: None,
        }
    }

    pub(super) fn metrics(&self) -> String {
        let progress = self.progress.lock().expect("no panic under this lock").clone();
        let Subtask { task, source, .. } = &self.config;
        let worker = &self.worker;
        let mut text = String::new();
        let mut line = |name: &str, labels: &str, value: u64| {
            writeln!(text, "{name}{{{labels}source_id={source:?},task={task:?}}} {value}")
                .expect("writing to a string");
        };
        let whose = format!("worker={worker:?},");
        line("dm_worker_task_state", &whose, u64::from((progress.stage as i32).unsigned_abs()));
        line("dm_syncer_binlog_file", "node=\"syncer\",", 1);
        line("dm_syncer_binlog_pos", "node=\"syncer\",", binlog_offset(progress.written.position));
        line("dm_syncer_finished_transaction_total", &whose, progress.transactions);
        line("dm_syncer_replication_lag_gauge", &whose, behind_s(&progress).unsigned_abs());
        text
    }
}

fn sync_status(progress: &Progress, end: Option<&Transaction>) -> SyncStatus {
    let rows = i64::try_from(progress.rows).unwrap_or(i64::MAX);
    SyncStatus {
        total_events: rows,
        master_binlog: end.map(|end| binlog(end.last())).unwrap_or_default(),
        master_binlog_gtid: end.map(|end| gtid(end.number)).unwrap_or_default(),
        syncer_binlog: binlog(progress.flushed.position),
        syncer_binlog_gtid: gtid(progress.flushed.transaction),
        synced: end.is_some_and(|end| end.last() == progress.flushed.position),
        binlog_type: "remote".to_owned(),
        seconds_behind_master: behind_s(progress),
        total_rows: Some(rows),
        total_rps: Some(0),
        recent_rps: Some(0),
        ..SyncStatus::default()
    }
}

/// Age of the transaction in work; 0 when idle, as DM has it.
fn behind_s(progress: &Progress) -> i64 {
    let now = jiff::Timestamp::now().as_millisecond();
    progress.open.map_or(0, |open| ((now - open.written_ms) / 1000).max(0))
}
