//! What a dm-worker speaks with a source's log and with the sink: one JSON object per line, over TCP.
//!
//! **Log** (served by the test's row writer): the client sends one [`LogRequest`]; `Follow` is answered by one
//! [`Transaction`] per line, without end, as they are written; `End` by one [`Transaction`], the last one. Rows are
//! numbered from 1 per source and never skipped, so a transaction is a range of numbers.
//!
//! **Sink** (served by the witness): the client sends [`SinkRequest`]s one after the other and gets one
//! [`SinkAnswer`] for each. Rows are there as soon as they are answered for: as with DM, a source's transaction
//! reaches the target in batches. Each task's rows of a source are a table with the row's number as its key.
//!
//! Positions are row numbers; [`binlog`] and [`gtid`] turn them into what DM would print.

use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest line that either side takes: a batch of [`BATCH_ROWS`] numbers is far shorter.
pub const LONGEST_LINE_BYTES: usize = 64 * 1024;
/// Rows that a worker writes at once.
pub const BATCH_ROWS: u64 = 100;

/// First and only line from a reader of a log.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogRequest {
    /// Everything that follows a position.
    Follow {
        /// `source-id`.
        source: String,
        /// Last row of the last transaction that is not wanted any more.
        after: u64,
    },
    /// The last transaction written.
    End {
        /// `source-id`.
        source: String,
    },
}

/// A transaction of a source's log: rows `first..first + rows`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
pub struct Transaction {
    /// Counted from 1; 0 stands for "none yet".
    pub number: u64,
    /// Number of its first row.
    pub first: u64,
    /// How many rows.
    pub rows: u64,
    /// When it was committed, in Unix milliseconds.
    pub written_ms: i64,
}

impl Transaction {
    /// Its last row: the position after it.
    pub fn last(&self) -> u64 {
        (self.first + self.rows).saturating_sub(1)
    }
}

/// How rows are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WriteMode {
    /// A row that is there already is an error, and the batch ends before it.
    Insert,
    /// A row that is there already is replaced (DM's safe mode).
    Replace,
    /// As into a table without a key: twice is twice. No sound build does this.
    Append,
}

/// One line to the sink.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SinkRequest {
    /// Write rows.
    Write {
        /// Task.
        task: String,
        /// `source-id`.
        source: String,
        /// Name of the worker that writes.
        worker: String,
        /// How.
        mode: WriteMode,
        /// Their numbers.
        rows: Vec<u64>,
    },
    /// Keep a checkpoint.
    Flush {
        /// Task.
        task: String,
        /// `source-id`.
        source: String,
        /// The checkpoint.
        checkpoint: Checkpoint,
    },
    /// Answer with the checkpoint.
    Checkpoint {
        /// Task.
        task: String,
        /// `source-id`.
        source: String,
    },
}

/// One line from the sink.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SinkAnswer {
    /// Done.
    Done {},
    /// This row was there already.
    Duplicate {
        /// Its number.
        row: u64,
    },
    /// The checkpoint; the default one if none was kept.
    Kept {
        /// The checkpoint.
        checkpoint: Checkpoint,
    },
}

/// How far a subtask has come. Kept at the target, as DM's is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
pub struct Checkpoint {
    /// Last row of the last whole transaction.
    pub position: u64,
    /// Number of that transaction.
    pub transaction: u64,
    /// Nothing past `position` was written: no safe mode is needed.
    pub clean: bool,
}

/// A line of the protocol, with its end.
pub fn to_line(message: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("plain data");
    line.push(b'\n');
    line
}

/// A message from a line, with or without its end.
///
/// # Errors
/// If the line is too long or not such a message.
pub fn from_line<T: DeserializeOwned>(line: &[u8]) -> io::Result<T> {
    if line.len() > LONGEST_LINE_BYTES {
        return Err(io::Error::other(format!("a line of {} bytes", line.len())));
    }
    serde_json::from_slice(line).map_err(io::Error::other)
}

/// `(mysql-bin.000001, 1234)`: grows with the position, as DM prints it.
pub fn binlog(position: u64) -> String {
    format!("(mysql-bin.000001, {})", binlog_offset(position))
}

/// The offset in [`binlog`].
pub fn binlog_offset(position: u64) -> u64 {
    4 + 225 * position
}

/// `0-1-17`: MariaDB's form, domain, server, sequence.
pub fn gtid(transaction: u64) -> String {
    if transaction == 0 { String::new() } else { format!("0-1-{transaction}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_its_line() {
        let request = SinkRequest::Write {
            task: "t".to_owned(),
            source: "s".to_owned(),
            worker: "w".to_owned(),
            mode: WriteMode::Replace,
            rows: (1..=BATCH_ROWS).map(|row| row + u64::from(u32::MAX)).collect(),
        };
        let line = to_line(&request);
        assert!(line.len() < LONGEST_LINE_BYTES);
        assert_eq!(from_line::<SinkRequest>(&line).unwrap(), request);
        assert!(from_line::<SinkAnswer>(&vec![b' '; LONGEST_LINE_BYTES + 1]).is_err());
    }
}
