//! The sink of a test: keeps every row with the time of its arrival, and reckons what was lost, doubled or late.
//!
//! In: [`lookalike::rows`]' sink protocol. Out: a [`Reckoning`] per source. Rows of a task and source are a table
//! with the row's number as its key: a plain insert of a row that is there fails, a replacing one does not count as
//! double, one without key does. Threads of the standard library only; they end when the witness is dropped.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::{self, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lookalike::rows::{Checkpoint, SinkAnswer, SinkRequest, WriteMode, from_line, to_line};
use serde::{Deserialize, Serialize};

use crate::writer::{RowWriter, read_line, wake};

/// Rows of one task and source.
#[derive(Default)]
struct Table {
    /// Arrival of each row's first copy, by its number.
    rows: HashMap<u64, Instant>,
    /// The highest number among them.
    last: u64,
    doubled: u64,
    checkpoint: Checkpoint,
    /// When the last new row came.
    newest: Option<Instant>,
    gap: Duration,
    writer: String,
    writer_changes: u64,
}

impl Table {
    fn write(&mut self, worker: &str, mode: WriteMode, rows: &[u64]) -> SinkAnswer {
        if self.writer != worker {
            worker.clone_into(&mut self.writer);
            self.writer_changes += 1;
        }
        let now = Instant::now();
        for &row in rows {
            let is_new = !self.rows.contains_key(&row);
            match (mode, is_new) {
                (WriteMode::Insert, false) => return SinkAnswer::Duplicate { row },
                (WriteMode::Append, false) => self.doubled += 1,
                (WriteMode::Replace, false) => {}
                (WriteMode::Insert | WriteMode::Replace | WriteMode::Append, true) => {
                    self.rows.insert(row, now);
                    self.last = self.last.max(row);
                    if let Some(before) = self.newest.replace(now) {
                        self.gap = self.gap.max(now - before);
                    }
                }
            }
        }
        SinkAnswer::Done {}
    }
}

#[derive(Default)]
struct Shared {
    /// By source, then task.
    tables: Mutex<BTreeMap<(String, String), Table>>,
    ended: AtomicBool,
}

/// What became of the rows of one source.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
pub struct Reckoning {
    /// Rows that the writer had written when reckoned.
    pub written: u64,
    /// Of those, rows that are here, once or more.
    pub arrived: u64,
    /// Rows that are missing although later ones are here. A row that is only late is not lost.
    pub lost: u64,
    /// Copies too many.
    pub doubled: u64,
    /// Longest time between two new rows, from the first row (or the last [`Witness::mark`]) on, and since the newest
    /// one if more are written. To be read while rows are written at a steady rate.
    pub longest_gap: Duration,
    /// How often the rows began to come from another worker; the first counts. More than the handovers made: two
    /// workers wrote at once.
    pub writer_changes: u64,
}

impl Reckoning {
    /// Every row is here, once.
    pub fn is_whole(&self) -> bool {
        self.arrived == self.written && self.lost == 0 && self.doubled == 0
    }
}

impl fmt::Display for Reckoning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { written, arrived, lost, doubled, longest_gap, .. } = self;
        write!(
            f,
            "{written} rows written, {arrived} arrived, {lost} lost, {doubled} doubled, longest gap {:.2} s",
            longest_gap.as_secs_f64()
        )
    }
}

/// Takes rows until it is dropped.
pub struct Witness {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Witness {
    /// Listens on an address; port 0 takes any.
    ///
    /// # Errors
    /// If the address cannot be listened on.
    pub fn start(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let serving = Arc::clone(&shared);
        let thread = Some(thread::spawn(move || serve(&listener, &serving)));
        Ok(Self { address, shared, thread })
    }

    /// Where it listens: `target-database.host` and `.port` of the tasks.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Compares with what was written, per source of the writer. Several tasks of a source add up.
    pub fn reckon(&self, writer: &RowWriter) -> BTreeMap<String, Reckoning> {
        let tables = self.shared.tables.lock().expect("no panic under this lock");
        let now = Instant::now();
        let mut reckonings = BTreeMap::new();
        for source in writer.sources() {
            // Asked while no row can arrive: none is here that is not counted as written.
            let mut sum = Reckoning { written: writer.written(&source), ..Reckoning::default() };
            for ((of, _), table) in tables.iter() {
                if *of != source {
                    continue;
                }
                let arrived = table.rows.len() as u64;
                sum.arrived += arrived;
                sum.lost += table.last - arrived;
                sum.doubled += table.doubled;
                sum.longest_gap = sum.longest_gap.max(table.gap);
                // With every row here, nothing is waited for.
                if table.last < sum.written {
                    let since = table.newest.map_or(Duration::ZERO, |newest| now - newest);
                    sum.longest_gap = sum.longest_gap.max(since);
                }
                sum.writer_changes += table.writer_changes;
            }
            reckonings.insert(source, sum);
        }
        reckonings
    }

    /// Forgets the gaps and changes of writer so far, to measure what comes now.
    pub fn mark(&self) {
        let now = Instant::now();
        for table in self.shared.tables.lock().expect("no panic under this lock").values_mut() {
            table.gap = Duration::ZERO;
            table.writer_changes = 0;
            table.newest = table.newest.map(|_| now);
        }
    }

    /// Looks every 20 ms until a source's reckoning is as wanted; `Err` with the last one after `within`.
    ///
    /// # Errors
    /// If it does not come to that in time.
    pub fn wait(
        &self,
        writer: &RowWriter,
        source: &str,
        within: Duration,
        wanted: impl Fn(&Reckoning) -> bool,
    ) -> Result<Reckoning, Reckoning> {
        let until = Instant::now() + within;
        loop {
            let reckoning = self.reckon(writer).get(source).copied().unwrap_or_default();
            if wanted(&reckoning) {
                return Ok(reckoning);
            }
            if Instant::now() > until {
                return Err(reckoning);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Makes the writer quiet and waits until every source's rows are all here. The reckonings at the end, whole or not.
    pub fn settle(&self, writer: &RowWriter, within: Duration) -> BTreeMap<String, Reckoning> {
        writer.set_quiet();
        for source in writer.sources() {
            let whole = self
                .wait(writer, &source, within, |reckoning| reckoning.arrived == reckoning.written);
            if whole.is_err() {
                // What did not come in time shows in the reckoning; the other sources have had that time too.
                break;
            }
        }
        self.reckon(writer)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        wake(self.address);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so on stderr.
            drop(thread.join());
        }
    }
}

fn serve(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.ended.load(Ordering::Relaxed) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let shared = Arc::clone(shared);
        // Ends with the worker's connection, or with its next line after the witness.
        thread::spawn(move || {
            // A worker that goes away is the point of many a test.
            drop(serve_worker(&stream, &shared));
        });
    }
}

fn serve_worker(mut stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(line) = read_line(&mut reader)? {
        if shared.ended.load(Ordering::Relaxed) {
            return Ok(());
        }
        let answer = {
            let mut tables = shared.tables.lock().expect("no panic under this lock");
            match from_line(&line)? {
                SinkRequest::Write { task, source, worker, mode, rows } => {
                    tables.entry((source, task)).or_default().write(&worker, mode, &rows)
                }
                SinkRequest::Flush { task, source, checkpoint } => {
                    tables.entry((source, task)).or_default().checkpoint = checkpoint;
                    SinkAnswer::Done {}
                }
                SinkRequest::Checkpoint { task, source } => {
                    let checkpoint = tables.get(&(source, task)).map(|table| table.checkpoint);
                    SinkAnswer::Kept { checkpoint: checkpoint.unwrap_or_default() }
                }
            }
        };
        stream.write_all(&to_line(&answer))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_doubled_and_replaced_rows_are_told_apart() {
        let writer = RowWriter::start(([127, 0, 0, 1], 0).into(), &[("s", 0)]).unwrap();
        writer.write_transaction("s", 10);
        let witness = Witness::start(([127, 0, 0, 1], 0).into()).unwrap();
        let stream = TcpStream::connect(witness.address()).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut write = |worker: &str, mode, rows: &[u64]| {
            let request = SinkRequest::Write {
                task: "t".to_owned(),
                source: "s".to_owned(),
                worker: worker.to_owned(),
                mode,
                rows: rows.to_vec(),
            };
            (&stream).write_all(&to_line(&request)).unwrap();
            from_line::<SinkAnswer>(&read_line(&mut reader).unwrap().unwrap()).unwrap()
        };
        assert_eq!(write("w1", WriteMode::Insert, &[1, 2, 3, 5]), SinkAnswer::Done {});
        assert_eq!(write("w2", WriteMode::Replace, &[3, 5, 6]), SinkAnswer::Done {});
        assert_eq!(write("w1", WriteMode::Append, &[5]), SinkAnswer::Done {});
        assert_eq!(write("w1", WriteMode::Insert, &[8, 3, 9]), SinkAnswer::Duplicate { row: 3 });
        let reckoning = witness.reckon(&writer)["s"];
        assert_eq!((reckoning.written, reckoning.arrived), (10, 6));
        assert_eq!((reckoning.lost, reckoning.doubled, reckoning.writer_changes), (2, 1, 3));
        assert!(!reckoning.is_whole());
    }
}
