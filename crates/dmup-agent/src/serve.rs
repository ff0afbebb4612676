//! The conversation: frames in, frames out, one thread per request.
//!
//! The reading thread never waits for anything but input: chunks go into the queue of
//! their request, which credit keeps short. At the end of input what is under way is finished
//! (a window is never cut in half because a cable was), then the conversation ends.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use dmup_wire::frame::{BadFrame, Decoder, Frame, Kind};
use dmup_wire::message::{Answer, RefusalKind, Request};

use crate::agent::Agent;
use crate::refuse::{Reply, bad, refuse, system};
use crate::{Mode, host};

/// Bytes of one request's stream under way at most.
const WINDOW: u32 = 1 << 20;

/// Credit is given again in pieces of at least this size.
const RENEWED: u32 = WINDOW / 4;

/// Requests under way at once.
const REQUESTS: usize = 64;

/// Why a conversation ended before its input did.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// What came is no frame.
    #[error("the input is not the protocol of dmup: {0}")]
    Frame(#[from] BadFrame),
    /// A frame that a controller does not send, or that belongs to nothing.
    #[error("a frame of kind {kind:?} for request {id} does not belong there")]
    Unexpected {
        /// Its kind.
        kind: Kind,
        /// As it says.
        id: u32,
    },
    /// The input ended inside a frame.
    #[error("the input ended in the middle of a frame")]
    Cut,
    /// Reading failed.
    #[error("the input cannot be read: {0}")]
    Read(io::Error),
}

/// Speaks with a controller until the input ends: `Hello`, then one answer per request.
///
/// # Errors
///
/// [`Broken`]: what came after cannot be trusted. What was under way has been finished all the same.
pub fn serve(input: impl Read, output: impl Write + Send, mode: &Mode) -> Result<(), Broken> {
    let agent = Agent::new(mode);
    let ended = converse(input, output, &agent);
    if let Some(sudo) = &agent.sudo {
        sudo.close();
    }
    ended
}

pub(crate) fn converse(
    mut input: impl Read,
    output: impl Write + Send,
    agent: &Agent,
) -> Result<(), Broken> {
    let output = Output { pipe: Mutex::new(output) };
    let hello = host::hello(&agent.me, &agent.places);
    output.send(Kind::Hello, 0, serde_json::to_vec(&hello).unwrap_or_default());
    let open: Mutex<HashMap<u32, Option<Feed>>> = Mutex::new(HashMap::new());
    thread::scope(|scope| {
        let ended = read_frames(&mut input, |frame| {
            take(
                frame,
                &open,
                |request, id, incoming| {
                    let (output, open) = (&output, &open);
                    scope.spawn(move || {
                        let mut incoming =
                            incoming.map(|(chunks, left)| Incoming::new(id, chunks, left, output));
                        let answer = answer(
                            agent,
                            request,
                            incoming.as_mut().map(|incoming| incoming as &mut dyn Read),
                        );
                        lock(open).remove(&id);
                        output.answer(id, answer);
                    });
                },
                &output,
            )
        });
        // No more chunks will come: whoever waits for one learns it.
        for feed in lock(&open).values_mut() {
            *feed = None;
        }
        ended
    })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read_frames(
    input: &mut impl Read,
    mut take: impl FnMut(Frame) -> Result<(), Broken>,
) -> Result<(), Broken> {
    let (mut decoder, mut piece) = (Decoder::default(), vec![0; 256 * 1024]);
    loop {
        match input.read(&mut piece) {
            Ok(0) if decoder.is_in_the_middle() => return Err(Broken::Cut),
            Ok(0) => return Ok(()),
            Ok(read) => decoder.feed(&piece[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Broken::Read(error)),
        }
        while let Some(frame) = decoder.next_frame()? {
            take(frame)?;
        }
    }
}

/// Where the chunks of a request go.
struct Feed {
    chunks: Sender<Piece>,
    /// Credited and not yet come.
    left: Arc<AtomicU64>,
}

enum Piece {
    Bytes(Vec<u8>),
    End,
    /// More than was credited.
    TooMuch,
}

type Chunks = (Receiver<Piece>, Arc<AtomicU64>);

fn take<W: Write>(
    frame: Frame,
    open: &Mutex<HashMap<u32, Option<Feed>>>,
    spawn: impl FnOnce(Request, u32, Option<Chunks>),
    output: &Output<W>,
) -> Result<(), Broken> {
    let id = frame.id;
    match frame.kind {
        Kind::Request => {
            let mut open = lock(open);
            if open.contains_key(&id) {
                return Err(Broken::Unexpected { kind: frame.kind, id });
            }
            let request: Request = match serde_json::from_slice(&frame.body) {
                Ok(request) => request,
                Err(error) => {
                    output.answer(id, Err(bad("understand the request", error.to_string())));
                    return Ok(());
                }
            };
            if open.len() >= REQUESTS {
                output.answer(
                    id,
                    Err(bad("take the request", format!("{REQUESTS} are under way already"))),
                );
                return Ok(());
            }
            let incoming = Agent::takes_stream(&request).then(|| {
                let (chunks, receiver) = mpsc::channel();
                let left = Arc::new(AtomicU64::new(0));
                (Feed { chunks, left: Arc::clone(&left) }, (receiver, left))
            });
            let (feed, incoming) = incoming.unzip();
            open.insert(id, feed);
            drop(open);
            spawn(request, id, incoming);
        }
        // Pieces that were under way when their request was refused belong to nobody any more.
        Kind::Chunk | Kind::End => {
            if let Some(Some(feed)) = lock(open).get(&id) {
                feed.take(frame);
            }
        }
        Kind::Hello | Kind::Answer | Kind::Credit => {
            return Err(Broken::Unexpected { kind: frame.kind, id });
        }
    }
    Ok(())
}

impl Feed {
    fn take(&self, frame: Frame) {
        let length = frame.body.len() as u64;
        let piece = if frame.kind == Kind::End {
            Piece::End
        } else if length == 0 {
            return;
        } else if length > self.left.load(Ordering::SeqCst) {
            Piece::TooMuch
        } else {
            self.left.fetch_sub(length, Ordering::SeqCst);
            Piece::Bytes(frame.body)
        };
        // Nobody listens once the request is done.
        self.chunks.send(piece).ok();
    }
}

/// The stream of one request; credit is given from the first read on.
struct Incoming<'a, W> {
    id: u32,
    chunks: Receiver<Piece>,
    left: Arc<AtomicU64>,
    output: &'a Output<W>,
    current: io::Cursor<Vec<u8>>,
    begun: bool,
    ended: bool,
    /// Read since the last credit.
    consumed: u32,
}

impl<'a, W: Write> Incoming<'a, W> {
    fn new(id: u32, chunks: Receiver<Piece>, left: Arc<AtomicU64>, output: &'a Output<W>) -> Self {
        Self {
            id,
            chunks,
            left,
            output,
            current: io::Cursor::default(),
            begun: false,
            ended: false,
            consumed: 0,
        }
    }

    fn credit(&self, bytes: u32) {
        self.left.fetch_add(bytes.into(), Ordering::SeqCst);
        self.output.send(Kind::Credit, self.id, bytes.to_be_bytes().to_vec());
    }
}

impl<W: Write> Read for Incoming<'_, W> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if !self.begun {
            self.begun = true;
            self.credit(WINDOW);
        }
        let aborted = |words: &str| Err(io::Error::new(io::ErrorKind::ConnectionAborted, words));
        loop {
            let read = self.current.read(into)?;
            if read > 0 || into.is_empty() || self.ended {
                self.consumed += u32::try_from(read).unwrap_or(0);
                if self.consumed >= RENEWED {
                    self.credit(self.consumed);
                    self.consumed = 0;
                }
                return Ok(read);
            }
            match self.chunks.recv() {
                Ok(Piece::Bytes(bytes)) => self.current = io::Cursor::new(bytes),
                Ok(Piece::End) => self.ended = true,
                Ok(Piece::TooMuch) => return aborted("more bytes came than were asked for"),
                Err(_) => return aborted("the connection ended before the stream did"),
            }
        }
    }
}

/// The way back, whole frames at a time.
struct Output<W> {
    pipe: Mutex<W>,
}

impl<W: Write> Output<W> {
    fn send(&self, kind: Kind, id: u32, body: Vec<u8>) {
        let Ok(bytes) = (Frame { kind, id, body }).encode() else { return };
        let mut pipe = lock(&self.pipe);
        // A controller that is gone hears nothing; what is under way is finished all the same.
        pipe.write_all(&bytes).and_then(|()| pipe.flush()).ok();
    }

    fn answer(&self, id: u32, reply: Reply) {
        let answer = match reply {
            Ok(outcome) => Answer::Held { outcome },
            Err(refusal) => Answer::Refused(refusal),
        };
        let body = match serde_json::to_vec(&answer) {
            Ok(body) if body.len() <= dmup_wire::frame::MAX_BODY => body,
            other => {
                let seen = other.map_or_else(
                    |error| error.to_string(),
                    |body| format!("it has {} bytes", body.len()),
                );
                let refusal = refuse(RefusalKind::System, "send the answer", seen);
                serde_json::to_vec(&Answer::Refused(refusal)).unwrap_or_default()
            }
        };
        self.send(Kind::Answer, id, body);
    }
}

/// A bug in one verb must not take the others along.
fn answer(agent: &Agent, request: Request, stream: Option<&mut dyn Read>) -> Reply {
    let mut nothing = io::empty();
    let stream = stream.unwrap_or(&mut nothing);
    catch_unwind(AssertUnwindSafe(|| agent.answer(request, stream))).unwrap_or_else(|_| {
        Err(system(
            "carry the request out",
            &io::Error::other("a bug in dmup's agent; its words are on stderr"),
        ))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::PipeWriter;

    use camino::Utf8PathBuf;
    use dmup_core::digest::Digest;
    use dmup_wire::message::{Hello, Outcome, Refusal, Stage};
    use proptest::prelude::*;

    use super::*;
    use crate::archive::tests::{Piece as Entry, parcel};

    fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
        (folder, path)
    }

    fn frame(kind: Kind, id: u32, body: impl Into<Vec<u8>>) -> Vec<u8> {
        Frame { kind, id, body: body.into() }.encode().unwrap()
    }

    fn request(id: u32, request: &Request) -> Vec<u8> {
        frame(Kind::Request, id, serde_json::to_vec(request).unwrap())
    }

    /// All frames that came out for an input.
    fn conversation(agent: &Agent, input: &[u8]) -> (Result<(), Broken>, Vec<Frame>) {
        let mut output = Vec::new();
        let ended = converse(input, &mut output, agent);
        let (mut decoder, mut frames) = (Decoder::default(), Vec::new());
        decoder.feed(&output);
        while let Some(frame) = decoder.next_frame().unwrap() {
            frames.push(frame);
        }
        (ended, frames)
    }

    fn answers(frames: &[Frame]) -> BTreeMap<u32, Answer> {
        let answers: Vec<&Frame> =
            frames.iter().filter(|frame| frame.kind == Kind::Answer).collect();
        let by_id: BTreeMap<u32, Answer> = answers
            .iter()
            .map(|frame| (frame.id, serde_json::from_slice(&frame.body).unwrap()))
            .collect();
        assert_eq!(by_id.len(), answers.len(), "one answer per request");
        by_id
    }

    fn refusal(answer: &Answer) -> &Refusal {
        match answer {
            Answer::Refused(refusal) => refusal,
            Answer::Held { outcome } => panic!("{outcome:?}"),
        }
    }

    #[test]
    fn the_first_word_is_hello_and_every_request_gets_one_answer() {
        let (_keep, dir) = folder();
        let agent = crate::agent::tests::agent(&dir);
        let mut input = Vec::new();
        for id in 1..=40 {
            input.extend(request(id, &Request::Get { path: dir.join("no"), max_bytes: 1 }));
        }
        input.extend(frame(Kind::Request, 41, r#"{"verb":"dance"}"#));
        input.extend(frame(Kind::Request, 42, "no JSON"));
        let (ended, frames) = conversation(&agent, &input);
        ended.unwrap();
        let hello: Hello = serde_json::from_slice(&frames[0].body).unwrap();
        assert_eq!((frames[0].kind, hello.protocol), (Kind::Hello, dmup_wire::PROTOCOL));
        let answers = answers(&frames);
        assert_eq!(answers.len(), 42);
        assert_eq!(answers[&1], Answer::Held { outcome: Outcome::Got { content: None } });
        for id in [41, 42] {
            assert_eq!(refusal(&answers[&id]).kind, RefusalKind::BadRequest);
        }
    }

    /// A controller that keeps to the rules of credit, at the other ends of two pipes.
    fn send_stream(
        agent: &Agent,
        order: &Stage,
        stream: &[u8],
        cut_at: Option<usize>,
    ) -> (Answer, Vec<u32>) {
        let (input, mut to_agent) = io::pipe().unwrap();
        let (mut from_agent, output) = io::pipe().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| converse(input, output, agent));
            to_agent.write_all(&request(7, &Request::Stage(order.clone()))).unwrap();
            let mut to_agent: Option<PipeWriter> = Some(to_agent);
            let (mut decoder, mut piece, mut credits) =
                (Decoder::default(), vec![0; 1 << 16], Vec::new());
            let (mut sent, mut credit) = (0, 0);
            loop {
                let read = from_agent.read(&mut piece).unwrap();
                assert!(read > 0, "the agent went without an answer");
                decoder.feed(&piece[..read]);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    match frame.kind {
                        Kind::Credit => {
                            let bytes = u32::from_be_bytes(frame.body.try_into().unwrap());
                            credits.push(bytes);
                            credit += bytes as usize;
                        }
                        Kind::Answer => {
                            return (serde_json::from_slice(&frame.body).unwrap(), credits);
                        }
                        Kind::Hello | Kind::Request | Kind::Chunk | Kind::End => {}
                    }
                }
                let Some(pipe) = &mut to_agent else { continue };
                while credit > 0 && sent < stream.len() {
                    let next = (stream.len() - sent).min(credit).min(1 << 16);
                    pipe.write_all(&frame(Kind::Chunk, 7, &stream[sent..sent + next])).unwrap();
                    (sent, credit) = (sent + next, credit - next);
                }
                if cut_at.is_some_and(|at| sent >= at) {
                    to_agent = None;
                } else if sent == stream.len() && credit > 0 {
                    pipe.write_all(&frame(Kind::End, 7, "")).unwrap();
                }
            }
        })
    }

    /// Incompressible, larger than several windows.
    fn large() -> Vec<u8> {
        let mut seed = 1_u64;
        (0..3 << 20)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                seed.to_be_bytes()[0]
            })
            .collect()
    }

    fn order(stream: &[u8], store: Utf8PathBuf) -> Stage {
        let (digest, compressed_bytes) = (Digest::of(stream), stream.len() as u64);
        Stage { digest, compressed_bytes, unpacked_bytes: 4 << 20, store }
    }

    #[test]
    fn a_stream_comes_in_windows_of_credit_and_a_known_one_gets_none() {
        let (_keep, dir) = folder();
        let agent = crate::agent::tests::agent(&dir);
        let stream = parcel(&[Entry::File("f", 0o644, &large())]);
        let order = order(&stream, dir.join("store"));
        let (answer, credits) = send_stream(&agent, &order, &stream, None);
        assert!(
            matches!(answer, Answer::Held { outcome: Outcome::Staged { already: false, .. } }),
            "{answer:?}"
        );
        assert_eq!(credits[0], WINDOW);
        assert!(credits.len() > 3, "{credits:?}");
        let (answer, credits) = send_stream(&agent, &order, &stream, None);
        assert!(matches!(answer, Answer::Held { outcome: Outcome::Staged { already: true, .. } }));
        assert!(credits.is_empty());
    }

    #[test]
    fn a_connection_that_ends_in_the_stream_leaves_nothing() {
        let (_keep, dir) = folder();
        let agent = crate::agent::tests::agent(&dir);
        let stream = parcel(&[Entry::File("f", 0o644, &large())]);
        let order = order(&stream, dir.join("store"));
        let (answer, _) = send_stream(&agent, &order, &stream, Some(1 << 20));
        assert!(refusal(&answer).observed.contains("connection ended"), "{answer:?}");
        assert_eq!(fs_err::read_dir(dir.join("store")).unwrap().count(), 0);
    }

    #[test]
    fn chunks_beyond_the_credit_are_refused() {
        let (_keep, dir) = folder();
        let agent = crate::agent::tests::agent(&dir);
        let stream = parcel(&[Entry::File("f", 0o644, &large())]);
        let mut input = request(7, &Request::Stage(order(&stream, dir.join("store"))));
        for piece in stream.chunks(1 << 20) {
            input.extend(frame(Kind::Chunk, 7, piece));
        }
        input.extend(frame(Kind::End, 7, ""));
        let (ended, frames) = conversation(&agent, &input);
        ended.unwrap();
        assert!(refusal(&answers(&frames)[&7]).observed.contains("more bytes"), "{frames:?}");
    }

    #[test]
    fn frames_that_do_not_belong_end_the_conversation() {
        let (_keep, dir) = folder();
        let agent = crate::agent::tests::agent(&dir);
        for (input, words) in [
            (b"Last login: today".to_vec(), "not the protocol"),
            (frame(Kind::Answer, 1, "{}"), "does not belong"),
            (frame(Kind::Hello, 0, "{}"), "does not belong"),
            (request(1, &Request::CheckRights)[..12].to_vec(), "middle of a frame"),
        ] {
            let broken = conversation(&agent, &input).0.unwrap_err();
            assert!(broken.to_string().contains(words), "{broken}");
        }
        // Chunks of nothing are late ones.
        conversation(&agent, &frame(Kind::Chunk, 9, "late")).0.unwrap();
    }

    proptest! {
        #[test]
        fn garbage_neither_panics_nor_hangs_and_hello_comes_first(bytes in prop::collection::vec(any::<u8>(), 0..300), framed in any::<bool>()) {
            let (_keep, dir) = folder();
            let agent = crate::agent::tests::agent(&dir);
            let input = if framed { frame(Kind::Request, 1, bytes) } else { bytes };
            let (_, frames) = conversation(&agent, &input);
            prop_assert_eq!(frames[0].kind, Kind::Hello);
            if framed {
                prop_assert_eq!(answers(&frames).len(), 1);
            }
        }
    }
}
