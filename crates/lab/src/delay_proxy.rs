//! A TCP proxy in front of a port that adds latency, for links that are far away.
//!
//! The test machines' kernel has no netem. Every connection gets two threads per direction: one reads and stamps, one waits until
//! the stamp is due and writes, so that throughput is not limited to one chunk per delay. Dropping the proxy ends its connections.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Bytes per chunk, and chunks under way per direction.
const CHUNK: usize = 64 * 1024;
const UNDER_WAY: usize = 64;

/// A listening proxy.
#[derive(Debug)]
pub struct DelayProxy {
    address: SocketAddr,
    ends: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    accepts: Option<JoinHandle<()>>,
}

impl DelayProxy {
    /// Listens on `listen` (port 0 picks one) and passes every connection on to `target`, `delay` later in each direction.
    ///
    /// # Errors
    ///
    /// What listening says.
    pub fn start(listen: SocketAddr, target: SocketAddr, delay: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind(listen)?;
        let address = listener.local_addr()?;
        let ends = Arc::new(AtomicBool::new(false));
        let streams = Arc::new(Mutex::new(Vec::new()));
        let accepts = thread::spawn({
            let (ends, streams) = (Arc::clone(&ends), Arc::clone(&streams));
            move || {
                for from in listener.incoming() {
                    if ends.load(Ordering::SeqCst) {
                        break;
                    }
                    let Ok(from) = from else { continue };
                    // A target that does not answer shows as a closed connection, as it would without the proxy.
                    let Ok(to) = TcpStream::connect_timeout(&target, Duration::from_secs(10))
                    else {
                        continue;
                    };
                    let _kept = pass(&from, &to, delay, &streams);
                }
            }
        });
        Ok(Self { address, ends, streams, accepts: Some(accepts) })
    }

    /// Where the proxy listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Breaks all connections that are open now; new ones are accepted.
    pub fn break_connections(&self) {
        for stream in self.streams.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _already_closed = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for DelayProxy {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        // The accepting thread looks at the flag when somebody connects.
        drop(TcpStream::connect(self.address));
        if let Some(accepts) = self.accepts.take() {
            let _panicked = accepts.join();
        }
        self.break_connections();
    }
}

fn pass(
    from: &TcpStream,
    to: &TcpStream,
    delay: Duration,
    streams: &Mutex<Vec<TcpStream>>,
) -> io::Result<()> {
    for (input, output) in [(from, to), (to, from)] {
        input.set_nodelay(true)?;
        streams.lock().unwrap_or_else(PoisonError::into_inner).push(input.try_clone()?);
        let (sends, receives) = sync_channel(UNDER_WAY);
        let (reader, writer) = (input.try_clone()?, output.try_clone()?);
        thread::spawn(move || read_chunks(reader, &sends, delay));
        thread::spawn(move || write_chunks(writer, &receives));
    }
    Ok(())
}

fn read_chunks(mut reader: TcpStream, sends: &SyncSender<(Instant, Vec<u8>)>, delay: Duration) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(length @ 1..) = reader.read(&mut buffer) {
        if sends.send((Instant::now() + delay, buffer[..length].to_vec())).is_err() {
            break;
        }
    }
}

fn write_chunks(mut writer: TcpStream, receives: &Receiver<(Instant, Vec<u8>)>) {
    for (due, chunk) in receives {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if writer.write_all(&chunk).is_err() {
            break;
        }
    }
    let _already_closed = writer.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out_later_and_a_broken_connection_ends() {
        let echo = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = echo.local_addr().unwrap();
        thread::spawn(move || {
            for stream in echo.incoming() {
                let mut stream = stream.unwrap();
                thread::spawn(move || io::copy(&mut stream.try_clone().unwrap(), &mut stream));
            }
        });
        let delay = Duration::from_millis(20);
        let proxy = DelayProxy::start("127.0.0.1:0".parse().unwrap(), target, delay).unwrap();

        let mut stream = TcpStream::connect(proxy.address()).unwrap();
        let begins = Instant::now();
        stream.write_all(b"rows").unwrap();
        let mut back = [0; 4];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"rows");
        assert!(begins.elapsed() >= 2 * delay);

        proxy.break_connections();
        assert_eq!(stream.read(&mut back).unwrap_or(0), 0);
    }
}
