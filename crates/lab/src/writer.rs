//! The sources of a test: numbered rows, written at a steady rate, served as logs over TCP.
//!
//! In: an address, and rows per second for each source. Out: [`lookalike::rows`]' log protocol. Threads of the
//! standard library only; all of them end when the writer is dropped. The logs live in memory.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lookalike::rows::{LONGEST_LINE_BYTES, LogRequest, Transaction, from_line, to_line};

/// Rows come no more often than this.
const SHORTEST_TICK: Duration = Duration::from_millis(5);
/// How often threads look whether they are to end.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// One source's log.
#[derive(Default)]
struct Log {
    transactions: Vec<Transaction>,
    rows_per_s: u32,
    /// Rows owed for time that has passed, in part.
    owed: f64,
}

impl Log {
    fn end(&self) -> Transaction {
        self.transactions.last().copied().unwrap_or_default()
    }

    fn append(&mut self, rows: u64, now_ms: i64) {
        let end = self.end();
        self.transactions.push(Transaction {
            number: end.number + 1,
            first: end.last() + 1,
            rows,
            written_ms: now_ms,
        });
    }
}

#[derive(Default)]
struct Shared {
    logs: Mutex<BTreeMap<String, Log>>,
    grew: Condvar,
    ended: AtomicBool,
}

/// Writes rows until it is dropped.
pub struct RowWriter {
    address: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl RowWriter {
    /// Serves the logs of `sources` (name, rows per second) on an address; port 0 takes any.
    ///
    /// # Errors
    /// If the address cannot be listened on.
    pub fn start(address: SocketAddr, sources: &[(&str, u32)]) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        for &(source, rows_per_s) in sources {
            let log = Log { rows_per_s, ..Log::default() };
            shared.logs.lock().expect("no panic under this lock").insert(source.to_owned(), log);
        }
        let (writing, serving) = (Arc::clone(&shared), Arc::clone(&shared));
        let threads = vec![
            thread::spawn(move || write_rows(&writing)),
            thread::spawn(move || serve(&listener, &serving)),
        ];
        Ok(Self { address, shared, threads })
    }

    /// Where it listens: `from.host` and `from.port` of the sources.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Rows written to a source so far; they are numbered from 1 to this.
    pub fn written(&self, source: &str) -> u64 {
        self.shared
            .logs
            .lock()
            .expect("no panic under this lock")
            .get(source)
            .map_or(0, |log| log.end().last())
    }

    /// All sources.
    pub fn sources(&self) -> Vec<String> {
        self.shared.logs.lock().expect("no panic under this lock").keys().cloned().collect()
    }

    /// Writes so many rows as one transaction. Returns the number of its last row.
    pub fn write_transaction(&self, source: &str, rows: u64) -> u64 {
        let mut logs = self.shared.logs.lock().expect("no panic under this lock");
        let log = logs.entry(source.to_owned()).or_default();
        log.append(rows, now_ms());
        let last = log.end().last();
        self.shared.grew.notify_all();
        last
    }

    /// Changes a source's rate; 0 makes it quiet.
    pub fn set_rate(&self, source: &str, rows_per_s: u32) {
        let mut logs = self.shared.logs.lock().expect("no panic under this lock");
        logs.entry(source.to_owned()).or_default().rows_per_s = rows_per_s;
    }

    /// Makes all sources quiet.
    pub fn set_quiet(&self) {
        for log in self.shared.logs.lock().expect("no panic under this lock").values_mut() {
            log.rows_per_s = 0;
        }
    }
}

impl Drop for RowWriter {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.shared.grew.notify_all();
        wake(self.address);
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so on stderr.
            drop(thread.join());
        }
    }
}

/// Makes a listener look at its flag.
pub(crate) fn wake(address: SocketAddr) {
    drop(TcpStream::connect_timeout(&address, Duration::from_secs(1)));
}

pub(crate) fn now_ms() -> i64 {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// One line of bounded length; none at the end of the stream.
pub(crate) fn read_line(reader: &mut BufReader<TcpStream>) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let read = reader.take(LONGEST_LINE_BYTES as u64 + 1).read_until(b'\n', &mut line)?;
    Ok((read > 0).then_some(line))
}

fn write_rows(shared: &Shared) {
    let mut before = Instant::now();
    while !shared.ended.load(Ordering::Relaxed) {
        let now = Instant::now();
        let passed = (now - before).as_secs_f64();
        before = now;
        let mut fastest = 1;
        {
            let mut logs = shared.logs.lock().expect("no panic under this lock");
            for log in logs.values_mut() {
                fastest = fastest.max(log.rows_per_s);
                log.owed += passed * f64::from(log.rows_per_s);
                let rows = log.owed.floor();
                if rows >= 1.0 {
                    log.owed -= rows;
                    log.append(rows as u64, now_ms());
                }
            }
            shared.grew.notify_all();
        }
        thread::sleep((Duration::from_secs(1) / fastest).clamp(SHORTEST_TICK, LOOK_EVERY));
    }
}

fn serve(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.ended.load(Ordering::Relaxed) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let shared = Arc::clone(shared);
        // Ends by itself: with its reader, or soon after the writer.
        thread::spawn(move || {
            // A reader that goes away is no trouble of ours: it shows in what the witness has.
            drop(serve_reader(stream, &shared));
        });
    }
}

fn serve_reader(stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let Some(line) = read_line(&mut reader)? else { return Ok(()) };
    match from_line(&line)? {
        LogRequest::End { source } => {
            let end =
                shared.logs.lock().expect("no panic under this lock").get(&source).map(Log::end);
            let Some(end) = end else {
                return Err(io::Error::other(format!("no source {source}")));
            };
            (&stream).write_all(&to_line(&end))
        }
        LogRequest::Follow { source, after } => follow(&stream, shared, &source, after),
    }
}

fn follow(mut stream: &TcpStream, shared: &Shared, source: &str, after: u64) -> io::Result<()> {
    let mut next = {
        let logs = shared.logs.lock().expect("no panic under this lock");
        let Some(log) = logs.get(source) else {
            return Err(io::Error::other(format!("no source {source}")));
        };
        log.transactions.partition_point(|transaction| transaction.last() <= after)
    };
    while !shared.ended.load(Ordering::Relaxed) {
        let fresh: Vec<u8> = {
            let logs = shared.logs.lock().expect("no panic under this lock");
            let (logs, _) = shared
                .grew
                .wait_timeout_while(logs, LOOK_EVERY, |logs| {
                    logs.get(source).is_none_or(|log| log.transactions.len() <= next)
                })
                .expect("no panic under this lock");
            let fresh =
                logs.get(source).map(|log| &log.transactions[next.min(log.transactions.len())..]);
            // In pieces: a log of hours must not be held in one buffer.
            let fresh: Vec<Transaction> =
                fresh.unwrap_or_default().iter().take(1000).copied().collect();
            next += fresh.len();
            fresh.iter().flat_map(to_line).collect()
        };
        stream.write_all(&fresh)?;
        if is_closed(stream) {
            return Ok(());
        }
    }
    Ok(())
}

/// Whether the other side has closed; it never sends more than its one line.
fn is_closed(mut stream: &TcpStream) -> bool {
    if stream.set_nonblocking(true).is_err() {
        return true;
    }
    let closed = match stream.read(&mut [0]) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    };
    closed || stream.set_nonblocking(false).is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_gets_every_row_after_its_position_once() {
        let writer = RowWriter::start(([127, 0, 0, 1], 0).into(), &[("s", 200)]).unwrap();
        writer.write_transaction("s", 1000);
        let mut stream = TcpStream::connect(writer.address()).unwrap();
        stream
            .write_all(&to_line(&LogRequest::Follow { source: "s".to_owned(), after: 0 }))
            .unwrap();
        let mut reader = BufReader::new(stream);
        let mut next = 1;
        while next < 1100 {
            let line = read_line(&mut reader).unwrap().unwrap();
            let transaction: Transaction = from_line(&line).unwrap();
            assert_eq!(transaction.first, next);
            next = transaction.last() + 1;
        }
        assert!(writer.written("s") >= next - 1);
    }
}
