//! Replication: transactions of a log become rows at the sink, with a checkpoint there.
//!
//! Facts: tiflow dm/syncer. At least once from the last checkpoint; exactly once by safe mode (replace instead of
//! insert) after every start whose checkpoint is not clean. A stop waits up to ten seconds for the open
//! transaction; if that is not enough the checkpoint stays before it and is not clean.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, interval_at, sleep};

use crate::keys::Subtask;
use crate::log;
use crate::proto::{ProcessError, Stage};
use crate::row_client::{Log, Sink};
use crate::rows::{
    BATCH_ROWS, Checkpoint, SinkAnswer, SinkRequest, Transaction, WriteMode, binlog, gtid,
};
use crate::stamp::{Fault, Stamp};

use super::subtask::{Progress, Stop};

/// How long a stop waits for the end of a transaction.
const TRANSACTION_WITHIN: Duration = Duration::from_secs(10);
/// DM looks every 5 s whether a task that broke can be resumed.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// Sleeping for less is not worth a timer.
const SHORTEST_SLEEP: Duration = Duration::from_millis(5);

/// One run of a subtask, from a start or resume to its end.
pub(super) struct Replication {
    pub(super) subtask: Subtask,
    pub(super) log: String,
    pub(super) worker: String,
    pub(super) stamp: Stamp,
    pub(super) progress: Arc<Mutex<Progress>>,
    pub(super) stop: watch::Receiver<Stop>,
}

/// Why a run ended by itself.
enum Failure {
    /// The log or the sink went away: tried again.
    Connection(io::Error),
    /// A person has to look.
    ForGood(ProcessError),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Connection(error)
    }
}

/// How the work on one transaction ended.
enum Applied {
    Whole,
    /// The stop came first, and the ten seconds were over.
    InPart,
}

impl Replication {
    /// Runs until told to stop, or until it fails for good.
    pub(super) async fn run(self) {
        let mut killed = self.stop.clone();
        tokio::select! {
            () = told(&mut killed, |stop| stop == Stop::Kill) => {}
            () = self.run_until_stopped() => {}
        }
        self.change(|progress| progress.open = None);
    }

    async fn run_until_stopped(&self) {
        let mut forced_safe_mode = false;
        loop {
            match self.replicate(forced_safe_mode).await {
                Ok(()) => return,
                Err(Failure::ForGood(error)) => {
                    log::error!(
                        "task {} paused: {}: {}",
                        self.subtask.task,
                        error.message,
                        error.raw_cause
                    );
                    self.change(|progress| {
                        progress.stage = Stage::Paused;
                        progress.error = Some(error);
                    });
                    return;
                }
                Err(Failure::Connection(error)) => {
                    log::warning!("task {}: {error}", self.subtask.task);
                    let error = process_error(10001, "database driver error", &error.to_string());
                    self.change(|progress| {
                        progress.stage = Stage::Paused;
                        progress.error = Some(error);
                    });
                    forced_safe_mode = true;
                    let mut stop = self.stop.clone();
                    tokio::select! {
                        () = told(&mut stop, |stop| stop != Stop::No) => return,
                        () = sleep(TRY_AGAIN_AFTER) => {}
                    }
                }
            }
        }
    }

    async fn replicate(&self, forced_safe_mode: bool) -> Result<(), Failure> {
        let mut sink = Sink::connect(&self.subtask.sink).await?;
        let mut checkpoint = self.load(&mut sink).await?;
        let safe_for = Duration::from_secs(2 * self.subtask.flush_interval_s);
        let safe_until = (forced_safe_mode || !checkpoint.clean).then(|| Instant::now() + safe_for);
        let mut log = Log::follow(&self.log, &self.subtask.source, checkpoint.position).await?;
        if checkpoint.clean {
            // Whoever comes after a crash of this run must not trust it.
            checkpoint.clean = false;
            self.flush(&mut sink, checkpoint).await?;
        }
        self.change(|progress| {
            progress.stage = Stage::Running;
            progress.error = None;
            progress.flushed = checkpoint;
            progress.written = checkpoint;
        });
        let mut stop = self.stop.clone();
        let flush_interval = Duration::from_secs(self.subtask.flush_interval_s);
        let mut flushes = interval_at(Instant::now() + flush_interval, flush_interval);
        let mut flushed = checkpoint;
        let mut debt = Duration::ZERO;
        loop {
            let transaction = tokio::select! {
                biased;
                () = told(&mut stop, |stop| stop != Stop::No) => break,
                _ = flushes.tick() => {
                    if flushed != checkpoint {
                        self.flush(&mut sink, checkpoint).await?;
                        flushed = checkpoint;
                    }
                    continue;
                }
                transaction = log.next() => transaction?,
            };
            let safe_mode = safe_until.is_some_and(|until| Instant::now() < until);
            self.change(|progress| progress.open = Some(transaction));
            match self.apply(&mut sink, transaction, safe_mode, checkpoint, &mut debt).await? {
                Applied::Whole => {
                    checkpoint = Checkpoint {
                        position: transaction.last(),
                        transaction: transaction.number,
                        clean: false,
                    };
                    self.change(|progress| {
                        progress.open = None;
                        progress.written = checkpoint;
                        progress.transactions += 1;
                    });
                }
                Applied::InPart => {
                    if self.stamp.units_before_lease() || *stop.borrow() == Stop::Pause {
                        self.flush(&mut sink, checkpoint).await?;
                    }
                    return Ok(());
                }
            }
        }
        self.flush(&mut sink, Checkpoint { clean: true, ..checkpoint }).await?;
        Ok(())
    }

    /// Writes a transaction in batches. `before` is the checkpoint that holds until it is whole.
    async fn apply(
        &self,
        sink: &mut Sink,
        transaction: Transaction,
        safe_mode: bool,
        before: Checkpoint,
        debt: &mut Duration,
    ) -> Result<Applied, Failure> {
        let mode = if safe_mode { WriteMode::Replace } else { WriteMode::Insert };
        let mut stop_by = None;
        let mut first = transaction.first;
        while first <= transaction.last() {
            let told = *self.stop.borrow();
            if told != Stop::No && stop_by.is_none() {
                stop_by = Some(Instant::now() + TRANSACTION_WITHIN);
                if told == Stop::Close && !self.stamp.units_before_lease() {
                    // Old versions: the checkpoint is called clean while rows past it are still being written, and
                    // the worker that has the source by now believes it.
                    self.flush(sink, Checkpoint { clean: true, ..before }).await?;
                }
            }
            if stop_by.is_some_and(|until| Instant::now() > until) {
                return Ok(Applied::InPart);
            }
            let last = transaction.last().min(first + BATCH_ROWS - 1);
            self.write(sink, mode, self.spoiled(first..=last), transaction).await?;
            let doubled = self.doubled(first..=last);
            if !doubled.is_empty() {
                self.write(sink, WriteMode::Append, doubled, transaction).await?;
            }
            let rows = last + 1 - first;
            self.change(|progress| progress.rows += rows);
            *debt += Duration::from_secs(rows) / self.stamp.rows_per_s();
            if *debt >= SHORTEST_SLEEP {
                sleep(std::mem::take(debt)).await;
            }
            first = last + 1;
        }
        Ok(Applied::Whole)
    }

    async fn write(
        &self,
        sink: &mut Sink,
        mode: WriteMode,
        rows: Vec<u64>,
        transaction: Transaction,
    ) -> Result<(), Failure> {
        let Subtask { task, source, .. } = &self.subtask;
        let (task, source, worker) = (task.clone(), source.clone(), self.worker.clone());
        let request = SinkRequest::Write { task, source, worker, mode, rows };
        match sink.ask(&request).await? {
            SinkAnswer::Done {} => Ok(()),
            SinkAnswer::Duplicate { row } => {
                let message = format!(
                    "startLocation: [position: (, 0), gtid-set: ], endLocation: [position: {}, gtid-set: {}]: execute statement failed: INSERT INTO `{}`.`rows` (`id`) VALUES (?)",
                    binlog(transaction.last()),
                    gtid(transaction.number),
                    self.subtask.source
                );
                let cause = format!("Error 1062: Duplicate entry '{row}' for key 'PRIMARY'");
                Err(Failure::ForGood(process_error(10006, &message, &cause)))
            }
            answer @ SinkAnswer::Kept { .. } => {
                Err(io::Error::other(format!("the sink answered {answer:?} to a write")).into())
            }
        }
    }

    async fn load(&self, sink: &mut Sink) -> io::Result<Checkpoint> {
        let Subtask { task, source, .. } = &self.subtask;
        let request = SinkRequest::Checkpoint { task: task.clone(), source: source.clone() };
        match sink.ask(&request).await? {
            SinkAnswer::Kept { checkpoint } => Ok(checkpoint),
            answer @ (SinkAnswer::Done {} | SinkAnswer::Duplicate { .. }) => Err(io::Error::other(
                format!("the sink answered {answer:?} when asked for a checkpoint"),
            )),
        }
    }

    async fn flush(&self, sink: &mut Sink, checkpoint: Checkpoint) -> io::Result<()> {
        let Subtask { task, source, .. } = &self.subtask;
        let request = SinkRequest::Flush { task: task.clone(), source: source.clone(), checkpoint };
        sink.ask(&request).await?;
        self.change(|progress| progress.flushed = checkpoint);
        Ok(())
    }

    /// The rows that this build writes of those that it should.
    fn spoiled(&self, rows: std::ops::RangeInclusive<u64>) -> Vec<u64> {
        let lost = |row: &u64| {
            self.stamp
                .faults
                .iter()
                .any(|fault| matches!(fault, Fault::LoseEvery(n) if row.is_multiple_of(*n)))
        };
        rows.filter(|row| !lost(row)).collect()
    }

    /// The rows that this build writes once more.
    fn doubled(&self, rows: std::ops::RangeInclusive<u64>) -> Vec<u64> {
        let doubled = |row: &u64| {
            self.stamp
                .faults
                .iter()
                .any(|fault| matches!(fault, Fault::DoubleEvery(n) if row.is_multiple_of(*n)))
        };
        rows.filter(doubled).collect()
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress.lock().expect("no panic under this lock"));
    }
}

/// Waits for an order; that nobody is left to give one counts as one.
async fn told(stop: &mut watch::Receiver<Stop>, wanted: impl Fn(Stop) -> bool) {
    drop(stop.wait_for(|stop| wanted(*stop)).await);
}

fn process_error(code: i32, message: &str, cause: &str) -> ProcessError {
    ProcessError {
        err_code: code,
        err_class: "database".to_owned(),
        err_scope: "not-set".to_owned(),
        err_level: "high".to_owned(),
        message: message.to_owned(),
        raw_cause: cause.to_owned(),
        workaround: String::new(),
    }
}
