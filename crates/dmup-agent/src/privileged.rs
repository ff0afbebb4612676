//! The privileged part: the same program once more under `sudo -n`, spoken to with the same frames.
//!
//! Started when the first request needs it and kept until the conversation ends, so that
//! sudo is asked once: on hosts with slow name service each `sudo` costs seconds.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use dmup_wire::PROTOCOL;
use dmup_wire::frame::{Decoder, Frame, Kind};
use dmup_wire::message::{Answer, Hello, Refusal, RefusalKind, Request};

use crate::refuse::{Reply, refuse, system};
use crate::run;

/// sudo may wait for a directory server or for DNS.
const HELLO_LIMIT: Duration = Duration::from_secs(120);

/// How long it may take to end once its input has.
const END_LIMIT: Duration = Duration::from_secs(10);

/// What is kept of sudo's words.
const WORDS: usize = 4096;

/// A chunk to the privileged part.
const PIECE: usize = 64 * 1024;

/// The privileged part, running or not yet.
pub(crate) struct Privileged {
    program: Vec<OsString>,
    running: Mutex<Option<Arc<Running>>>,
}

struct Running {
    stdin: Mutex<Option<ChildStdin>>,
    heard: Arc<Mutex<Heard>>,
    child: Mutex<Child>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Default)]
struct Heard {
    next: u32,
    waiting: HashMap<u32, Sender<Event>>,
    words: Vec<u8>,
    ended: bool,
}

enum Event {
    Credit(u64),
    Answer(Answer),
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Privileged {
    /// By sudo, this very program; it is part of a conversation that began then.
    pub(crate) fn by_sudo(since_ms: u64) -> Self {
        let own = fs_err::read_link("/proc/self/exe").unwrap_or_default();
        let sudo = run::find("sudo").unwrap_or_else(|| "/usr/bin/sudo".into());
        Self::new(vec![
            sudo.into(),
            "-n".into(),
            "--".into(),
            own.into(),
            "agent".into(),
            "--privileged".into(),
            "--since".into(),
            since_ms.to_string().into(),
        ])
    }

    pub(crate) fn new(program: Vec<OsString>) -> Self {
        Self { program, running: Mutex::new(None) }
    }

    /// Asks it; `stream` is what the request takes, if it takes one.
    pub(crate) fn ask(&self, request: &Request, stream: &mut dyn Read) -> Reply {
        let running = self.running()?;
        let (tell, told) = mpsc::channel();
        let id = {
            let mut heard = lock(&running.heard);
            heard.next += 1;
            let id = heard.next;
            if !heard.ended {
                heard.waiting.insert(id, tell);
            }
            id
        };
        let body = serde_json::to_vec(request)
            .map_err(|error| system("ask the privileged part", &error.into()))?;
        let answer = running
            .send(Kind::Request, id, body)
            .ok()
            .and_then(|()| running.converse(id, &told, stream));
        match answer {
            Some(Answer::Held { outcome }) => Ok(outcome),
            Some(Answer::Refused(refusal)) => Err(refusal),
            None => {
                let words = running.words();
                *lock(&self.running) = None;
                let mut refusal = refuse(
                    RefusalKind::System,
                    "ask the privileged part",
                    format!("it ended: {words}"),
                );
                refusal.state = Some("it may have been done, wholly or in part".to_owned());
                Err(refusal)
            }
        }
    }

    fn running(&self) -> Result<Arc<Running>, Refusal> {
        let mut slot = lock(&self.running);
        if let Some(running) = &*slot
            && !lock(&running.heard).ended
        {
            return Ok(Arc::clone(running));
        }
        let running = Arc::new(self.start()?);
        *slot = Some(Arc::clone(&running));
        Ok(running)
    }

    fn start(&self) -> Result<Running, Refusal> {
        let shown =
            self.program.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let attempted = || format!("run {shown}");
        let [program, arguments @ ..] = &self.program[..] else {
            return Err(refuse(RefusalKind::System, attempted(), "there is no program"));
        };
        let mut child = Command::new(program)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| refuse(RefusalKind::Permission, attempted(), error.to_string()))?;
        let heard = Arc::new(Mutex::new(Heard::default()));
        let (greet, greeted) = mpsc::channel();
        let threads = [
            child.stdout.take().map(|stdout| {
                let heard = Arc::clone(&heard);
                thread::spawn(move || listen(stdout, &heard, &greet))
            }),
            child.stderr.take().map(|stderr| {
                let heard = Arc::clone(&heard);
                thread::spawn(move || collect(stderr, &heard))
            }),
        ];
        let running = Running {
            stdin: Mutex::new(child.stdin.take()),
            heard,
            child: Mutex::new(child),
            threads: Mutex::new(threads.into_iter().flatten().collect()),
        };
        match greeted.recv_timeout(HELLO_LIMIT) {
            Ok(hello) if hello.protocol == PROTOCOL => Ok(running),
            Ok(hello) => {
                let seen = format!("it speaks protocol {}, not {PROTOCOL}", hello.protocol);
                Err(refuse(RefusalKind::System, attempted(), seen))
            }
            Err(_) => Err(refuse(RefusalKind::Permission, attempted(), running.words())),
        }
    }

    /// Lets it finish what it does, and waits for that.
    pub(crate) fn close(&self) {
        if let Some(running) = lock(&self.running).take() {
            running.end();
        }
    }
}

impl Running {
    fn send(&self, kind: Kind, id: u32, body: Vec<u8>) -> std::io::Result<()> {
        let bytes = Frame { kind, id, body }.encode().map_err(std::io::Error::other)?;
        let mut stdin = lock(&self.stdin);
        let pipe = stdin.as_mut().ok_or(std::io::ErrorKind::BrokenPipe)?;
        pipe.write_all(&bytes)?;
        pipe.flush()
    }

    /// Feeds the stream as credited until the answer; none if the privileged part ends before it.
    fn converse(&self, id: u32, told: &Receiver<Event>, stream: &mut dyn Read) -> Option<Answer> {
        let (mut credit, mut complete) = (0_u64, false);
        let mut piece = vec![0; PIECE];
        loop {
            let event =
                if credit == 0 || complete { told.recv().ok() } else { told.try_recv().ok() };
            match event {
                Some(Event::Answer(answer)) => return Some(answer),
                Some(Event::Credit(more)) => credit = credit.saturating_add(more),
                None if credit == 0 || complete => return None,
                None => {
                    let most = usize::try_from(credit).unwrap_or(PIECE).min(PIECE);
                    match stream.read(&mut piece[..most]) {
                        Ok(0) => {
                            complete = true;
                            self.send(Kind::End, id, Vec::new()).ok()?;
                        }
                        Ok(read) => {
                            credit -= read as u64;
                            self.send(Kind::Chunk, id, piece[..read].to_vec()).ok()?;
                        }
                        Err(_) => {
                            // Too few bytes are told from all of them by their hash.
                            complete = true;
                            self.send(Kind::End, id, Vec::new()).ok()?;
                        }
                    }
                }
            }
        }
    }

    /// What it said to people, once it has ended.
    fn words(&self) -> String {
        self.end();
        let heard = lock(&self.heard);
        let said = String::from_utf8_lossy(&heard.words).trim().to_owned();
        if said.is_empty() { "it said nothing".to_owned() } else { said }
    }

    /// Closes its input and waits for it to end. Nothing is under way any more, so that takes no time;
    /// one that hangs (a sudo that waits for who knows what) is left behind.
    fn end(&self) {
        drop(lock(&self.stdin).take());
        let began = Instant::now();
        loop {
            let gone = lock(&self.child).try_wait().map_or(true, |status| status.is_some());
            if gone && lock(&self.threads).iter().all(JoinHandle::is_finished) {
                return;
            }
            if began.elapsed() > END_LIMIT {
                // Refused where sudo runs as root and we do not.
                lock(&self.child).kill().ok();
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn listen(mut stdout: impl Read, heard: &Mutex<Heard>, greet: &Sender<Hello>) {
    let (mut decoder, mut piece) = (Decoder::default(), vec![0; PIECE]);
    'stream: while let Ok(read @ 1..) = stdout.read(&mut piece) {
        decoder.feed(&piece[..read]);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => take(&frame, heard, greet),
                Ok(None) => break,
                Err(_) => break 'stream,
            }
        }
    }
    let mut heard = lock(heard);
    heard.ended = true;
    heard.waiting.clear(); // whoever waits learns it by the closed channel
}

fn take(frame: &Frame, heard: &Mutex<Heard>, greet: &Sender<Hello>) {
    let event = match frame.kind {
        Kind::Hello => {
            if let Ok(hello) = serde_json::from_slice(&frame.body) {
                greet.send(hello).ok();
            }
            return;
        }
        Kind::Credit => frame
            .body
            .as_slice()
            .try_into()
            .ok()
            .map(|bytes| Event::Credit(u32::from_be_bytes(bytes).into())),
        Kind::Answer => serde_json::from_slice(&frame.body).ok().map(Event::Answer),
        Kind::Request | Kind::Chunk | Kind::End => None,
    };
    let mut heard = lock(heard);
    match event {
        Some(event @ Event::Credit(_)) => {
            if let Some(teller) = heard.waiting.get(&frame.id) {
                teller.send(event).ok();
            }
        }
        Some(event @ Event::Answer(_)) => {
            if let Some(teller) = heard.waiting.remove(&frame.id) {
                teller.send(event).ok();
            }
        }
        // Not understood: the asker learns that there is no answer.
        None => drop(heard.waiting.remove(&frame.id)),
    }
}

fn collect(mut stderr: impl Read, heard: &Mutex<Heard>) {
    let mut piece = vec![0; 4096];
    while let Ok(read @ 1..) = stderr.read(&mut piece) {
        let words = &mut lock(heard).words;
        let room = WORDS - words.len();
        words.extend_from_slice(&piece[..read.min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(words: &[&str]) -> Privileged {
        Privileged::new(words.iter().map(Into::into).collect())
    }

    #[test]
    fn a_refusal_of_sudo_is_passed_on_in_its_own_words() {
        let part = part(&["/bin/sh", "-c", "echo 'sudo: a password is required' >&2; exit 1"]);
        for _ in 0..2 {
            let refusal = part.ask(&Request::CheckRights, &mut std::io::empty()).unwrap_err();
            assert_eq!(refusal.kind, RefusalKind::Permission);
            assert_eq!(refusal.observed, "sudo: a password is required");
        }
    }

    #[test]
    fn a_missing_sudo_and_one_that_prints_a_lecture_are_refusals_too() {
        for words in
            [&["/no/such/sudo"][..], &["/bin/echo", "We trust you have received the usual lecture"]]
        {
            let refusal =
                part(words).ask(&Request::CheckRights, &mut std::io::empty()).unwrap_err();
            assert_eq!(refusal.kind, RefusalKind::Permission, "{refusal}");
        }
    }
}
