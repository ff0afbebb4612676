//! A conversation with one agent: requests in, outcomes out, several under way at once.
//!
//! ```text
//! request() ─► writer task ─► stream ─► agent
//! request() ◄─ reader task ◄─ stream ◄─ agent      Answer, Credit by id
//! ```
//!
//! A request ends in one of three ways: its outcome, the agent's refusal, or [`SessionError::Unknown`]: the
//! stream broke, or the time was up, after it was sent. A fourth, [`SessionError::NotSent`], is certain too: the
//! stream was broken before. When the stream breaks, every pending request becomes unknown at once.
//!
//! Streams (parcels) never have more bytes under way than the agent credited, so a slow
//! disk on the host slows the reading of the file here, and other requests pass in between.

use std::collections::HashMap;
use std::io::Read as _;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use dmup_wire::PROTOCOL;
use dmup_wire::frame::{Decoder, Frame, Kind};
use dmup_wire::message::{Answer, Hello, Outcome, Refusal, Request};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use crate::ssh::{ByteStream, Piece, StreamReader, StreamWriter};

/// Bytes of a parcel in one frame.
const CHUNK: usize = 128 << 10;

/// Credit beyond this is not counted: an agent that gives more has no use of it.
const MAX_CREDIT: u64 = 16 << 20;

/// Of what the agent says on standard error, the last bytes are kept for messages.
const KEPT_COMPLAINTS: usize = 4 << 10;

/// A request that has no outcome.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SessionError {
    /// The agent did not do it, and says why.
    #[error(transparent)]
    Refused(Refusal),
    /// It did not leave this machine.
    #[error("not sent: {0}")]
    NotSent(String),
    /// It was sent, and nobody knows what became of it.
    #[error("{0}")]
    Unknown(String),
}

/// An agent that does not begin as one.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{observed}")]
pub struct NoHello {
    /// What was seen instead of a `Hello` of this protocol.
    pub observed: String,
}

/// A conversation. Dropping it ends it; requests under way become unknown.
pub struct AgentSession {
    hello: Hello,
    shared: Arc<Shared>,
    outbox: mpsc::Sender<Vec<u8>>,
    next_id: AtomicU32,
    _tasks: [AbortOnDropHandle<()>; 2],
}

/// What requests and the reader task both see.
struct Shared {
    state: Mutex<State>,
    /// Told once, when the stream breaks.
    broke: Notify,
}

#[derive(Default)]
struct State {
    pending: HashMap<u32, Pending>,
    broken: Option<String>,
}

struct Pending {
    answer: oneshot::Sender<Answer>,
    credit: Arc<Credit>,
}

#[derive(Default)]
struct Credit {
    bytes: AtomicU64,
    more: Notify,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every pending request learns of it by its closed channel.
    fn break_with(&self, why: String) {
        let mut state = self.state();
        state.broken.get_or_insert(why);
        state.pending.clear();
        drop(state);
        self.broke.notify_waiters();
    }

    fn why_broken(&self) -> Option<String> {
        self.state().broken.clone()
    }
}

/// Takes a request off the list however its future ends.
struct Registered<'a> {
    shared: &'a Shared,
    id: u32,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.shared.state().pending.remove(&self.id);
    }
}

impl AgentSession {
    /// Waits for the agent's `Hello` and starts the conversation.
    ///
    /// # Errors
    ///
    /// [`NoHello`]: the stream ended, something else speaks, the protocol is another one, or the time is up.
    pub async fn start(stream: ByteStream, within: Duration) -> Result<Self, NoHello> {
        let ByteStream { mut reader, writer } = stream;
        let mut decoder = Decoder::default();
        let mut complaints = Complaints::default();
        let hello =
            tokio::time::timeout(within, read_hello(&mut reader, &mut decoder, &mut complaints))
                .await
                .unwrap_or_else(|_| Err(format!("no greeting within {within:?}")))
                .map_err(|observed| NoHello { observed: complaints.after(&observed) })?;

        let shared = Arc::new(Shared { state: Mutex::default(), broke: Notify::new() });
        let (outbox, queue) = mpsc::channel(4);
        let writing = tokio::spawn(write_all(writer, queue, shared.clone()));
        let reading = tokio::spawn(read_all(reader, decoder, complaints, shared.clone()));
        Ok(Self {
            hello,
            shared,
            outbox,
            next_id: AtomicU32::new(1),
            _tasks: [AbortOnDropHandle::new(writing), AbortOnDropHandle::new(reading)],
        })
    }

    /// The agent's first word.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Why nothing can be asked any more, if so.
    pub fn why_broken(&self) -> Option<String> {
        self.shared.why_broken()
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    ///
    /// [`SessionError`].
    pub async fn request(
        &self,
        request: &Request,
        within: Duration,
    ) -> Result<Outcome, SessionError> {
        self.converse(request, None, within).await.map(|(outcome, _)| outcome)
    }

    /// Asks, and sends the file as far as the agent wants it. Returns the bytes sent: none if it had the content.
    ///
    /// # Errors
    ///
    /// [`SessionError`]; [`SessionError::Unknown`] also if the file cannot be read to its end.
    pub async fn request_with_stream(
        &self,
        request: &Request,
        parcel: &Utf8Path,
        within: Duration,
    ) -> Result<(Outcome, u64), SessionError> {
        self.converse(request, Some(parcel), within).await
    }

    async fn converse(
        &self,
        request: &Request,
        parcel: Option<&Utf8Path>,
        within: Duration,
    ) -> Result<(Outcome, u64), SessionError> {
        let body = serde_json::to_vec(request)
            .map_err(|error| SessionError::NotSent(error.to_string()))?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let bytes = Frame { kind: Kind::Request, id, body }
            .encode()
            .map_err(|error| SessionError::NotSent(error.to_string()))?;
        let (answer, answered) = oneshot::channel();
        let credit = Arc::new(Credit::default());
        {
            let mut state = self.shared.state();
            if let Some(why) = &state.broken {
                return Err(SessionError::NotSent(why.clone()));
            }
            state.pending.insert(id, Pending { answer, credit: credit.clone() });
        }
        let _registered = Registered { shared: &self.shared, id };
        let exchange = async {
            if self.outbox.send(bytes).await.is_err() {
                return Err(SessionError::NotSent(self.broken_words()));
            }
            let mut sent = 0;
            let feed = async {
                if let Some(path) = parcel {
                    self.feed(id, path, &credit, &mut sent).await?;
                }
                // Sent or not: only the answer ends the request.
                std::future::pending::<Result<(), SessionError>>().await
            };
            let answer = tokio::select! {
                biased;
                answer = answered => answer.map_err(|_| SessionError::Unknown(self.broken_words()))?,
                failed = feed => return Err(failed.err().unwrap_or_else(|| SessionError::Unknown(self.broken_words()))),
            };
            match answer {
                Answer::Held { outcome } => Ok((outcome, sent)),
                Answer::Refused(refusal) => Err(SessionError::Refused(refusal)),
            }
        };
        tokio::time::timeout(within, exchange)
            .await
            .unwrap_or_else(|_| Err(SessionError::Unknown(format!("no answer within {within:?}"))))
    }

    async fn feed(
        &self,
        id: u32,
        path: &Utf8Path,
        credit: &Credit,
        sent: &mut u64,
    ) -> Result<(), SessionError> {
        let (pieces, mut file) = mpsc::channel::<std::io::Result<Vec<u8>>>(2);
        let mut reading = None;
        let mut rest = Vec::new();
        loop {
            // Nothing is read before the agent wants it: it may have the content already.
            let allowed = credit.take(CHUNK as u64, &self.shared).await;
            if reading.is_none() {
                let (path, pieces) = (path.to_owned(), pieces.clone());
                reading = Some(tokio::task::spawn_blocking(move || read_file(&path, &pieces)));
            }
            if rest.is_empty() {
                rest = match file.recv().await {
                    Some(Ok(piece)) => piece,
                    Some(Err(error)) => return Err(SessionError::Unknown(error.to_string())),
                    None => return Err(SessionError::Unknown(format!("reading {path} stopped"))),
                };
            }
            if rest.is_empty() {
                return self.send(Frame { kind: Kind::End, id, body: Vec::new() }).await;
            }
            let now = rest.len().min(usize::try_from(allowed).unwrap_or(usize::MAX));
            let later = rest.split_off(now);
            credit.give_back(allowed - now as u64);
            self.send(Frame { kind: Kind::Chunk, id, body: rest }).await?;
            *sent += now as u64;
            rest = later;
        }
    }

    async fn send(&self, frame: Frame) -> Result<(), SessionError> {
        let bytes = frame.encode().map_err(|error| SessionError::Unknown(error.to_string()))?;
        self.outbox.send(bytes).await.map_err(|_| SessionError::Unknown(self.broken_words()))
    }

    fn broken_words(&self) -> String {
        self.why_broken().unwrap_or_else(|| "the conversation has ended".to_owned())
    }
}

impl Credit {
    fn add(&self, bytes: u32) {
        // The only writer that adds more than was taken is the reader task.
        let now = self.bytes.load(Ordering::Acquire);
        self.bytes
            .fetch_add(u64::from(bytes).min(MAX_CREDIT.saturating_sub(now)), Ordering::AcqRel);
        self.more.notify_one();
    }

    fn give_back(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Takes up to `wanted`, at least one; waits for it for ever if the session breaks (the request learns of that elsewhere).
    async fn take(&self, wanted: u64, shared: &Shared) -> u64 {
        loop {
            let mut now = self.bytes.load(Ordering::Acquire);
            while now > 0 {
                let taken = now.min(wanted);
                match self.bytes.compare_exchange(
                    now,
                    now - taken,
                    Ordering::AcqRel,
                    Ordering::Acquire,
                ) {
                    Ok(_) => return taken,
                    Err(changed) => now = changed,
                }
            }
            tokio::select! {
                () = self.more.notified() => {}
                () = shared.broke.notified() => std::future::pending().await,
            }
        }
    }
}

/// Reads a file in pieces; an empty one is its end.
fn read_file(path: &Utf8PathBuf, pieces: &mpsc::Sender<std::io::Result<Vec<u8>>>) {
    let mut file = match fs_err::File::open(path) {
        Ok(file) => file,
        Err(error) => {
            // Nobody waits for it any more if this fails.
            drop(pieces.blocking_send(Err(error)));
            return;
        }
    };
    loop {
        let mut piece = vec![0; CHUNK];
        let (last, message) = match file.read(&mut piece) {
            Ok(count) => {
                piece.truncate(count);
                (count == 0, Ok(piece))
            }
            Err(error) => (true, Err(error)),
        };
        if pieces.blocking_send(message).is_err() || last {
            return;
        }
    }
}

async fn write_all(
    mut writer: StreamWriter,
    mut queue: mpsc::Receiver<Vec<u8>>,
    shared: Arc<Shared>,
) {
    while let Some(bytes) = queue.recv().await {
        if let Err(error) = writer.write(bytes).await {
            // The reader usually knows better why, and is about to say so: it has the first word if it is quick.
            tokio::time::timeout(Duration::from_secs(1), shared.broke.notified()).await.ok();
            shared.break_with(format!("the connection broke while sending: {error}"));
            return;
        }
    }
    // All senders are gone: the session was dropped.
    drop(writer.finish().await);
}

async fn read_all(
    mut reader: StreamReader,
    mut decoder: Decoder,
    mut complaints: Complaints,
    shared: Arc<Shared>,
) {
    let why = loop {
        match decoder.next_frame() {
            Ok(Some(frame)) => {
                if let Err(why) = dispatch(frame, &shared) {
                    break why;
                }
                continue;
            }
            Ok(None) => {}
            Err(error) => break format!("the agent sent what is no frame: {error}"),
        }
        match reader.next().await {
            Piece::Out(bytes) => decoder.feed(&bytes),
            Piece::Err(bytes) => complaints.add(&bytes),
            Piece::Ended(how) => break format!("the agent ended: {how}"),
        }
    };
    shared.break_with(complaints.after(&why));
}

fn dispatch(frame: Frame, shared: &Shared) -> Result<(), String> {
    match frame.kind {
        Kind::Answer => {
            let answer = serde_json::from_slice(&frame.body)
                .map_err(|error| format!("the agent sent an answer that is none: {error}"))?;
            // Nobody waits for it any more: its time was up.
            if let Some(pending) = shared.state().pending.remove(&frame.id) {
                drop(pending.answer.send(answer));
            }
            Ok(())
        }
        Kind::Credit => {
            let bytes: [u8; 4] = frame
                .body
                .try_into()
                .map_err(|_| "the agent sent a credit that is none".to_owned())?;
            if let Some(pending) = shared.state().pending.get(&frame.id) {
                pending.credit.add(u32::from_be_bytes(bytes));
            }
            Ok(())
        }
        Kind::Hello | Kind::Request | Kind::Chunk | Kind::End => {
            Err(format!("the agent sent a {:?}, which is not for it to send", frame.kind))
        }
    }
}

async fn read_hello(
    reader: &mut StreamReader,
    decoder: &mut Decoder,
    complaints: &mut Complaints,
) -> Result<Hello, String> {
    loop {
        match decoder.next_frame() {
            Ok(Some(frame)) if frame.kind == Kind::Hello => {
                return understood(&frame.body);
            }
            Ok(Some(frame)) => return Err(format!("the agent began with a {:?}", frame.kind)),
            Ok(None) => {}
            Err(error) => return Err(format!("what answers is no agent: {error}")),
        }
        match reader.next().await {
            Piece::Out(bytes) => decoder.feed(&bytes),
            Piece::Err(bytes) => complaints.add(&bytes),
            Piece::Ended(how) => return Err(format!("the agent ended before it greeted: {how}")),
        }
    }
}

fn understood(body: &[u8]) -> Result<Hello, String> {
    /// Read first: the rest may differ between protocols.
    #[derive(serde::Deserialize)]
    struct Version {
        protocol: u32,
    }
    let unread = |error: serde_json::Error| format!("its greeting cannot be read: {error}");
    let Version { protocol } = serde_json::from_slice(body).map_err(unread)?;
    if protocol != PROTOCOL {
        return Err(format!("it speaks protocol {protocol}, this dmup speaks {PROTOCOL}"));
    }
    serde_json::from_slice(body).map_err(unread)
}

/// The end of what a program said on standard error.
#[derive(Default)]
pub(crate) struct Complaints(Vec<u8>);

impl Complaints {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        let excess = self.0.len().saturating_sub(KEPT_COMPLAINTS);
        self.0.drain(..excess);
    }

    /// The words, and after them the last lines of the complaints.
    pub(crate) fn after(&self, words: &str) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let lines: Vec<&str> =
            text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let last = &lines[lines.len().saturating_sub(5)..];
        if last.is_empty() {
            words.to_owned()
        } else {
            format!("{words}; it said: {}", last.join(" / "))
        }
    }
}

#[cfg(test)]
mod tests {
    use dmup_core::systemd::SystemdMode;
    use dmup_wire::message::RefusalKind;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    /// The other end, by hand.
    struct Peer {
        stream: DuplexStream,
        decoder: Decoder,
    }

    impl Peer {
        async fn next(&mut self) -> Option<Frame> {
            loop {
                if let Some(frame) = self.decoder.next_frame().unwrap() {
                    return Some(frame);
                }
                let mut bytes = [0; 4096];
                match self.stream.read(&mut bytes).await {
                    Ok(0) | Err(_) => return None,
                    Ok(count) => self.decoder.feed(&bytes[..count]),
                }
            }
        }

        async fn send(&mut self, kind: Kind, id: u32, body: Vec<u8>) {
            let bytes = Frame { kind, id, body }.encode().unwrap();
            self.stream.write_all(&bytes).await.unwrap();
        }

        async fn answer(&mut self, id: u32, outcome: Outcome) {
            let body = serde_json::to_vec(&Answer::Held { outcome }).unwrap();
            self.send(Kind::Answer, id, body).await;
        }
    }

    fn greeting(protocol: u32) -> Vec<u8> {
        serde_json::to_vec(&Hello {
            protocol,
            dmup: "0.1.0".to_owned(),
            machine_id: "m".to_owned(),
            boot_id: "b".to_owned(),
            hostname: "h".to_owned(),
            clock_ms: 0,
            arch: "x86_64".to_owned(),
            os: "linux".to_owned(),
            systemd: None,
            systemd_mode: SystemdMode::System,
            user: "tidb".to_owned(),
            home: "/home/tidb".into(),
        })
        .unwrap()
    }

    fn pair() -> (ByteStream, Peer) {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (read, write) = tokio::io::split(ours);
        (ByteStream::over(read, write), Peer { stream: theirs, decoder: Decoder::default() })
    }

    async fn session() -> (AgentSession, Peer) {
        let (stream, mut peer) = pair();
        peer.send(Kind::Hello, 0, greeting(PROTOCOL)).await;
        (AgentSession::start(stream, SOON).await.unwrap(), peer)
    }

    fn parcel(bytes: usize) -> (tempfile::TempDir, Utf8PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().join("parcel")).unwrap();
        fs_err::write(&path, (0..bytes).map(|n| (n % 251) as u8).collect::<Vec<_>>()).unwrap();
        (dir, path)
    }

    #[tokio::test]
    async fn answers_find_their_requests_in_any_order() {
        let (session, mut peer) = session().await;
        let other_end = tokio::spawn(async move {
            let first = peer.next().await.unwrap().id;
            let second = peer.next().await.unwrap().id;
            peer.answer(second, Outcome::Got { content: Some("second".to_owned()) }).await;
            peer.answer(first, Outcome::Got { content: Some("first".to_owned()) }).await;
            peer
        });
        let get = |path: &str| Request::Get { path: path.into(), max_bytes: 1 };
        let (one, two) = (get("/1"), get("/2"));
        let (one, two) = tokio::join!(session.request(&one, SOON), session.request(&two, SOON));
        assert_eq!(one.unwrap(), Outcome::Got { content: Some("first".to_owned()) });
        assert_eq!(two.unwrap(), Outcome::Got { content: Some("second".to_owned()) });
        drop(other_end.await.unwrap());
    }

    #[tokio::test]
    async fn a_refusal_comes_through_whole() {
        let (session, mut peer) = session().await;
        let refusal = Refusal {
            attempted: "sudo".to_owned(),
            observed: "no".to_owned(),
            kind: RefusalKind::Permission,
            state: None,
        };
        let body = serde_json::to_vec(&Answer::Refused(refusal.clone())).unwrap();
        let (result, ()) = tokio::join!(session.request(&Request::CheckRights, SOON), async {
            let id = peer.next().await.unwrap().id;
            peer.send(Kind::Answer, id, body).await;
        });
        assert_eq!(result, Err(SessionError::Refused(refusal)));
    }

    #[tokio::test]
    async fn a_broken_stream_makes_pending_requests_unknown_and_later_ones_not_sent() {
        let (session, mut peer) = session().await;
        let (one, two, ()) = tokio::join!(
            session.request(&Request::CheckRights, SOON),
            session.request(&Request::CheckRights, SOON),
            async {
                peer.next().await.unwrap();
                peer.next().await.unwrap();
                drop(peer);
            }
        );
        assert!(matches!(one, Err(SessionError::Unknown(_))), "{one:?}");
        assert!(matches!(two, Err(SessionError::Unknown(_))), "{two:?}");
        let later = session.request(&Request::CheckRights, SOON).await;
        assert!(matches!(later, Err(SessionError::NotSent(_))), "{later:?}");
        assert!(session.why_broken().is_some());
    }

    #[tokio::test]
    async fn garbage_in_mid_conversation_breaks_it() {
        let (session, mut peer) = session().await;
        let (result, ()) = tokio::join!(session.request(&Request::CheckRights, SOON), async {
            peer.next().await.unwrap();
            peer.stream.write_all(b"Segmentation fault\n").await.unwrap();
        });
        let Err(SessionError::Unknown(why)) = result else { panic!("{result:?}") };
        assert!(why.contains("no frame"), "{why}");
    }

    #[tokio::test]
    async fn never_more_than_the_credit_is_under_way() {
        const CREDIT: u32 = 100_000;
        let (_dir, path) = parcel(777_777);
        let (session, mut peer) = session().await;
        let agent = async {
            let id = peer.next().await.unwrap().id;
            let (mut got, mut open) = (Vec::new(), u64::from(CREDIT));
            peer.send(Kind::Credit, id, CREDIT.to_be_bytes().to_vec()).await;
            loop {
                let frame = peer.next().await.unwrap();
                assert_eq!(frame.id, id);
                if frame.kind == Kind::End {
                    break;
                }
                assert_eq!(frame.kind, Kind::Chunk);
                open = open.checked_sub(frame.body.len() as u64).expect("within the credit");
                got.extend(frame.body);
                if open < 1000 {
                    open += u64::from(CREDIT);
                    peer.send(Kind::Credit, id, CREDIT.to_be_bytes().to_vec()).await;
                }
            }
            peer.answer(id, Outcome::Done).await;
            got
        };
        let (result, got) =
            tokio::join!(session.request_with_stream(&Request::CheckRights, &path, SOON), agent);
        assert_eq!(result.unwrap(), (Outcome::Done, 777_777));
        assert!(got == fs_err::read(&path).unwrap());
    }

    #[tokio::test]
    async fn an_agent_that_has_the_content_is_sent_nothing() {
        let (session, mut peer) = session().await;
        let (result, ()) = tokio::join!(
            session.request_with_stream(&Request::CheckRights, "/does/not/exist".into(), SOON),
            async {
                let id = peer.next().await.unwrap().id;
                peer.answer(id, Outcome::Done).await;
            }
        );
        assert_eq!(result.unwrap(), (Outcome::Done, 0));
    }

    #[tokio::test]
    async fn an_answer_in_mid_stream_ends_the_sending() {
        let (_dir, path) = parcel(500_000);
        let (session, mut peer) = session().await;
        let (result, ()) =
            tokio::join!(session.request_with_stream(&Request::CheckRights, &path, SOON), async {
                let id = peer.next().await.unwrap().id;
                peer.send(Kind::Credit, id, 10_000_u32.to_be_bytes().to_vec()).await;
                peer.next().await.unwrap();
                peer.answer(id, Outcome::Done).await;
            });
        assert!(matches!(result, Ok((Outcome::Done, sent)) if sent <= 10_000), "{result:?}");
    }

    #[tokio::test]
    async fn a_stream_that_breaks_while_sending_is_unknown() {
        let (_dir, path) = parcel(500_000);
        let (session, mut peer) = session().await;
        let (result, ()) =
            tokio::join!(session.request_with_stream(&Request::CheckRights, &path, SOON), async {
                let id = peer.next().await.unwrap().id;
                peer.send(Kind::Credit, id, 10_000_u32.to_be_bytes().to_vec()).await;
                peer.next().await.unwrap();
                drop(peer);
            });
        assert!(matches!(result, Err(SessionError::Unknown(_))), "{result:?}");
    }

    #[tokio::test]
    async fn an_agent_that_does_not_answer_in_time_leaves_it_unknown_and_the_session_usable() {
        let (session, mut peer) = session().await;
        let late = session.request(&Request::CheckRights, Duration::from_millis(50)).await;
        assert!(matches!(late, Err(SessionError::Unknown(_))), "{late:?}");
        let late_id = peer.next().await.unwrap().id;
        let (result, ()) = tokio::join!(session.request(&Request::CheckRights, SOON), async {
            let id = peer.next().await.unwrap().id;
            peer.answer(late_id, Outcome::Got { content: None }).await;
            peer.answer(id, Outcome::Done).await;
        });
        assert_eq!(result.unwrap(), Outcome::Done);
    }

    #[tokio::test]
    async fn another_protocol_a_shell_and_silence_are_no_agents() {
        let (stream, mut peer) = pair();
        peer.send(Kind::Hello, 0, greeting(PROTOCOL + 1)).await;
        let why = AgentSession::start(stream, SOON).await.err().unwrap().observed;
        assert!(why.contains("protocol"), "{why}");

        let (stream, mut peer) = pair();
        peer.stream.write_all(b"Welcome to Debian\n").await.unwrap();
        let why = AgentSession::start(stream, SOON).await.err().unwrap().observed;
        assert!(why.contains("no agent"), "{why}");

        let (stream, peer) = pair();
        drop(peer);
        let why = AgentSession::start(stream, SOON).await.err().unwrap().observed;
        assert!(why.contains("before it greeted"), "{why}");
    }
}
