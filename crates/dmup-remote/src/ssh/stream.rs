//! A byte stream to a running program: its input, its output, its complaints, its end.
//!
//! Both halves must be driven at once: a program that ends early is only seen by the reader,
//! while a writer alone would wait for ever for room (measured with russh 0.65).

use std::any::Any;
use std::io;
use std::sync::Arc;

use russh::client::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::process::{Child, ChildStderr};

/// Read at once from a pipe.
const READ_SIZE: usize = 64 << 10;

/// Something that the program said, or its end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Piece {
    /// Its standard output.
    Out(Vec<u8>),
    /// Its standard error.
    Err(Vec<u8>),
    /// Nothing comes any more; how it ended, for people: `exit status 1`, `connection lost`.
    Ended(String),
}

/// Both directions.
pub struct ByteStream {
    /// What the program says.
    pub reader: StreamReader,
    /// What the program is told.
    pub writer: StreamWriter,
}

/// What the program says.
pub struct StreamReader {
    /// Read already, by whoever looked for the beginning; comes first.
    pushed_back: Vec<u8>,
    source: Source,
    /// Held as long as somebody may read: the connection below.
    _keep: Option<Arc<dyn Any + Send + Sync>>,
}

enum Source {
    Channel { half: ChannelReadHalf, status: Option<String> },
    Pipes(Box<Pipes>),
}

struct Pipes {
    out: Box<dyn AsyncRead + Send + Unpin>,
    err: Option<ChildStderr>,
    child: Option<Child>,
}

/// What the program is told.
pub struct StreamWriter(Sink);

enum Sink {
    Channel(ChannelWriteHalf<Msg>),
    Pipe(Option<Box<dyn AsyncWrite + Send + Unpin>>),
}

impl ByteStream {
    /// Over any pair of pipes (tests; a program in this process).
    pub fn over(
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        let source =
            Source::Pipes(Box::new(Pipes { out: Box::new(reader), err: None, child: None }));
        Self {
            reader: StreamReader { pushed_back: Vec::new(), source, _keep: None },
            writer: StreamWriter(Sink::Pipe(Some(Box::new(writer)))),
        }
    }

    pub(crate) fn of_channel(
        channel: russh::Channel<Msg>,
        keep: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        let (read, write) = channel.split();
        let source = Source::Channel { half: read, status: None };
        Self {
            reader: StreamReader { pushed_back: Vec::new(), source, _keep: Some(keep) },
            writer: StreamWriter(Sink::Channel(write)),
        }
    }

    /// Of a child with all three pipes; it is killed when the reader is dropped (spawn it with `kill_on_drop`).
    pub(crate) fn of_child(mut child: Child) -> Self {
        let out = child.stdout.take().expect("spawned with a pipe");
        let input = child.stdin.take().expect("spawned with a pipe");
        let err = child.stderr.take();
        let source = Source::Pipes(Box::new(Pipes { out: Box::new(out), err, child: Some(child) }));
        Self {
            reader: StreamReader { pushed_back: Vec::new(), source, _keep: None },
            writer: StreamWriter(Sink::Pipe(Some(Box::new(input)))),
        }
    }
}

impl StreamReader {
    /// Gives bytes back: they are read again first.
    pub(crate) fn push_back(&mut self, bytes: Vec<u8>) {
        self.pushed_back.extend(bytes);
    }

    /// The next piece. After [`Piece::Ended`] it must not be called again. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Piece {
        if !self.pushed_back.is_empty() {
            return Piece::Out(std::mem::take(&mut self.pushed_back));
        }
        match &mut self.source {
            Source::Channel { half, status } => next_of_channel(half, status).await,
            Source::Pipes(pipes) => next_of_pipes(pipes).await,
        }
    }
}

async fn next_of_channel(half: &mut ChannelReadHalf, status: &mut Option<String>) -> Piece {
    loop {
        match half.wait().await {
            Some(ChannelMsg::Data { data }) => return Piece::Out(data.to_vec()),
            Some(ChannelMsg::ExtendedData { data, .. }) => return Piece::Err(data.to_vec()),
            Some(ChannelMsg::ExitStatus { exit_status }) => {
                *status = Some(format!("exit status {exit_status}"));
            }
            Some(ChannelMsg::ExitSignal { signal_name, .. }) => {
                *status = Some(format!("ended by signal {signal_name:?}"));
            }
            Some(ChannelMsg::Failure) => {
                return Piece::Ended("the server refused to run the command".to_owned());
            }
            Some(ChannelMsg::OpenFailure(why)) => {
                return Piece::Ended(format!("the server refused the channel: {why:?}"));
            }
            Some(ChannelMsg::Close) => {
                return Piece::Ended(
                    status.take().unwrap_or_else(|| "channel closed without a status".to_owned()),
                );
            }
            None => {
                return Piece::Ended(
                    status.take().unwrap_or_else(|| "the connection was lost".to_owned()),
                );
            }
            // Success, Eof, window changes; the rest only a server sees.
            Some(_) => {}
        }
    }
}

async fn next_of_pipes(pipes: &mut Pipes) -> Piece {
    let Pipes { out, err, child } = pipes;
    let mut from_out = vec![0; READ_SIZE];
    let mut from_err = vec![0; 4096];
    loop {
        let complaint = async {
            match err {
                Some(pipe) => pipe.read(&mut from_err).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            read = complaint => match read {
                Ok(count) if count > 0 => {
                    from_err.truncate(count);
                    return Piece::Err(from_err);
                }
                Ok(_) | Err(_) => *err = None,
            },
            read = out.read(&mut from_out) => match read {
                Ok(0) => break,
                Ok(count) => {
                    from_out.truncate(count);
                    return Piece::Out(from_out);
                }
                Err(error) => return Piece::Ended(format!("read: {error}")),
            },
        }
    }
    // The last complaint may come after the end of the output.
    if let Some(pipe) = err {
        match pipe.read(&mut from_err).await {
            Ok(count) if count > 0 => {
                from_err.truncate(count);
                return Piece::Err(from_err);
            }
            Ok(_) | Err(_) => *err = None,
        }
    }
    match child {
        None => Piece::Ended("end of the stream".to_owned()),
        Some(child) => match child.wait().await {
            Ok(status) => Piece::Ended(status.to_string()),
            Err(error) => Piece::Ended(format!("wait: {error}")),
        },
    }
}

impl StreamWriter {
    /// Writes all of it; waits for room.
    ///
    /// # Errors
    ///
    /// The program or the connection is gone.
    pub async fn write(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        match &mut self.0 {
            Sink::Channel(half) => half.data_bytes(bytes).await.map_err(io::Error::other),
            Sink::Pipe(Some(pipe)) => {
                pipe.write_all(&bytes).await?;
                pipe.flush().await
            }
            Sink::Pipe(None) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Ends the program's input.
    ///
    /// # Errors
    ///
    /// The program or the connection is gone.
    pub async fn finish(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Sink::Channel(half) => half.eof().await.map_err(io::Error::other),
            Sink::Pipe(pipe) => match pipe.take() {
                Some(mut pipe) => pipe.shutdown().await,
                None => Ok(()),
            },
        }
    }
}
