//! A worker's side of [`crate::rows`]: reading a source's log, writing to the sink.

use std::io;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::rows::{
    LONGEST_LINE_BYTES, LogRequest, SinkAnswer, SinkRequest, Transaction, from_line, to_line,
};

const CONNECT_WITHIN: Duration = Duration::from_secs(3);
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A connection that speaks lines.
struct Lines {
    stream: BufReader<TcpStream>,
    /// As much of the next line as has come.
    line: Vec<u8>,
}

impl Lines {
    async fn connect(address: &str) -> io::Result<Self> {
        let attempt = tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(address)).await;
        let stream =
            attempt.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(|error| {
                io::Error::new(error.kind(), format!("dial tcp {address}: {error}"))
            })?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream), line: Vec::new() })
    }

    async fn send(&mut self, line: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(line).await
    }

    /// The next message. May be dropped and called again: what has come of a line is kept.
    async fn receive<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        let room = (LONGEST_LINE_BYTES + 1).saturating_sub(self.line.len());
        let mut bounded = (&mut self.stream).take(room as u64);
        bounded.read_until(b'\n', &mut self.line).await?;
        if self.line.last() != Some(&b'\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        from_line(&std::mem::take(&mut self.line))
    }
}

/// A source's log, followed.
pub(crate) struct Log(Lines);

impl Log {
    pub(crate) async fn follow(address: &str, source: &str, after: u64) -> io::Result<Self> {
        let mut lines = Lines::connect(address).await?;
        lines.send(&to_line(&LogRequest::Follow { source: source.to_owned(), after })).await?;
        Ok(Self(lines))
    }

    /// The next transaction, whenever it is written.
    pub(crate) async fn next(&mut self) -> io::Result<Transaction> {
        self.0.receive().await
    }
}

/// The last transaction of a source.
pub(crate) async fn end_of(address: &str, source: &str) -> io::Result<Transaction> {
    let ask = async {
        let mut lines = Lines::connect(address).await?;
        lines.send(&to_line(&LogRequest::End { source: source.to_owned() })).await?;
        lines.receive().await
    };
    tokio::time::timeout(CONNECT_WITHIN, ask)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The target.
pub(crate) struct Sink(Lines);

impl Sink {
    pub(crate) async fn connect(address: &str) -> io::Result<Self> {
        Lines::connect(address).await.map(Self)
    }

    pub(crate) async fn ask(&mut self, request: &SinkRequest) -> io::Result<SinkAnswer> {
        let exchange = async {
            self.0.send(&to_line(request)).await?;
            self.0.receive().await
        };
        tokio::time::timeout(ANSWER_WITHIN, exchange)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}
