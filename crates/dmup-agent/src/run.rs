//! Runs one program of the host with a fixed argument list, a time limit and bounded output.
//!
//! No shell, no inherited environment, no dependence on `PATH`: programs are looked
//! up in the usual folders, so that a login that lacks `/usr/sbin` finds `useradd`.

use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// What `PATH` is for programs that we run, and where we look ourselves.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Kept of each output; the rest is read and dropped.
const KEPT: usize = 256 * 1024;

/// How a program ended in time.
#[derive(Debug)]
pub(crate) struct Ran {
    /// Its status.
    pub(crate) status: ExitStatus,
    /// Beginning of its standard output.
    pub(crate) stdout: String,
    /// Beginning of its standard error.
    pub(crate) stderr: String,
    /// Bytes of both that were not kept.
    pub(crate) dropped: u64,
}

impl Ran {
    /// What it said about its failure, or how it ended if it said nothing.
    pub(crate) fn words(&self) -> String {
        let said = [self.stderr.trim(), self.stdout.trim()]
            .into_iter()
            .find(|text| !text.is_empty())
            .unwrap_or("it said nothing");
        format!("{said} ({})", ended(self.status))
    }
}

/// Why there is no [`Ran`].
#[derive(Debug)]
pub(crate) enum NotRun {
    /// It could not be started.
    Spawn(io::Error),
    /// It took longer than allowed and was killed.
    TooSlow(Duration),
}

/// Looks a program up in the usual folders.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    PATH.split(':').map(|folder| PathBuf::from(folder).join(program)).find(|path| path.is_file())
}

/// A program of the host with nothing inherited but what is named here.
pub(crate) fn command(program: &str) -> io::Result<Command> {
    let path = find(program).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("there is no {program} in {PATH}"))
    })?;
    let mut command = Command::new(path);
    command.env_clear().env("PATH", PATH).env("LC_ALL", "C");
    Ok(command)
}

/// How a process ended, in words.
pub(crate) fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("ended by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// Runs it to its end, or kills it and its children at the limit.
pub(crate) fn run(mut command: Command, within: Duration) -> Result<Ran, NotRun> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(NotRun::Spawn)?;
    let deadline = Instant::now() + within;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let (tell, told) = mpsc::channel();
    // A thread that waits wakes us the moment the program ends; polling would lengthen the window.
    thread::spawn(move || {
        // The receiver is gone after the limit: the child is reaped all the same.
        drop(tell.send(child.wait()));
    });
    let status = match told.recv_timeout(within) {
        Ok(status) => status.map_err(NotRun::Spawn)?,
        Err(_) => {
            if let Some(pid) = pid {
                // Gone between the limit and now: just as good.
                rustix::process::kill_process_group(pid, Signal::KILL).ok();
            }
            return Err(NotRun::TooSlow(within));
        }
    };
    // Grandchildren may hold the pipes open; what was said by then is enough.
    let rest = deadline.saturating_duration_since(Instant::now()).min(Duration::from_secs(2));
    let ((stdout, more), (stderr, still_more)) = (stdout.by_then(rest), stderr.by_then(rest));
    Ok(Ran { status, stdout, stderr, dropped: more + still_more })
}

/// What a program says, while it does.
#[derive(Default)]
struct Said {
    kept: Vec<u8>,
    dropped: u64,
}

struct Listener {
    said: Arc<Mutex<Said>>,
    ended: mpsc::Receiver<()>,
}

impl Listener {
    /// Waits for the end of the output, but not longer than this.
    fn by_then(self, rest: Duration) -> (String, u64) {
        // At the end its sender is gone; either way, what was said is there.
        let _ended = self.ended.recv_timeout(rest);
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        (String::from_utf8_lossy(&said.kept).into_owned(), said.dropped)
    }
}

fn collect(from: Option<impl Read + Send + 'static>) -> Listener {
    let said = Arc::new(Mutex::new(Said::default()));
    let (end, ended) = mpsc::channel();
    if let Some(mut from) = from {
        let said = Arc::clone(&said);
        thread::spawn(move || {
            let _end: mpsc::Sender<()> = end;
            let mut piece = vec![0; 8192];
            while let Ok(read @ 1..) = from.read(&mut piece) {
                let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                let fits = read.min(KEPT - said.kept.len());
                said.kept.extend_from_slice(&piece[..fits]);
                said.dropped += (read - fits) as u64;
            }
        });
    }
    Listener { said, ended }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Not there, or a zombie that its new parent has not asked for yet.
    fn is_gone(pid: &str) -> bool {
        let stat = fs_err::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
    }

    #[test]
    fn a_program_that_hangs_is_ended_at_the_limit_with_what_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let told = folder.path().join("told");
        let mut limit = Duration::from_millis(100);
        // On a busy machine it may be killed before it has told its numbers: once more, with more time.
        let pids = loop {
            let mut sh = command("sh").unwrap();
            // Neither would end within the test; nothing waits for the sleep's own end.
            sh.args(["-c", "sleep 600 & echo $$ $! > \"$0\"; wait"]).arg(&told);
            assert!(matches!(run(sh, limit), Err(NotRun::TooSlow(_))));
            match fs_err::read_to_string(&told) {
                Ok(pids) if pids.ends_with('\n') => break pids,
                _ => limit *= 2,
            }
        };
        // Killed is not gone at once.
        let began = Instant::now();
        while !pids.split_whitespace().all(is_gone) {
            assert!(began.elapsed() < Duration::from_secs(60), "{pids} still run");
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn output_and_status_are_kept() {
        let mut sh = command("sh").unwrap();
        sh.args(["-c", "echo out; echo err >&2; exit 3"]);
        let ran = run(sh, Duration::from_secs(20)).unwrap();
        assert_eq!((ran.status.code(), ran.stdout.as_str()), (Some(3), "out\n"));
        assert_eq!(ran.words(), "err (exit status 3)");
    }

    #[test]
    fn what_was_said_is_kept_although_somebody_holds_the_pipes_open() {
        let mut sh = command("sh").unwrap();
        // The grandchild outlives its shell and has both pipes; nobody waits for the sleep's own end, it is killed below.
        sh.args(["-c", "echo out; sleep 600 & echo $! >&2"]);
        let ran = run(sh, Duration::from_secs(20)).unwrap();
        let sleeper = ran.stderr.trim().parse().ok().and_then(Pid::from_raw).unwrap();
        // First, so that none is left when the other assertion fails; that it is there is what the test is about.
        rustix::process::kill_process(sleeper, Signal::KILL).unwrap();
        assert_eq!(ran.stdout, "out\n");
    }

    #[test]
    fn output_beyond_what_is_kept_is_counted() {
        let mut head = command("head").unwrap();
        head.args(["-c", "300000", "/dev/zero"]);
        let ran = run(head, Duration::from_secs(20)).unwrap();
        assert_eq!((ran.stdout.len(), ran.dropped), (KEPT, 300_000 - KEPT as u64));
    }
}
