//! Runs one program of the host with a fixed argument list, a time limit and bounded output.
//!
//! No shell, no inherited environment, no dependence on `PATH`: programs are looked
//! up in the usual folders, so that a login that lacks `/usr/sbin` finds `useradd`.

use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
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
    let text = |from: mpsc::Receiver<Vec<u8>>| {
        String::from_utf8_lossy(&from.recv_timeout(rest).unwrap_or_default()).into_owned()
    };
    Ok(Ran { status, stdout: text(stdout), stderr: text(stderr) })
}

fn collect(from: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (tell, told) = mpsc::channel();
    if let Some(mut from) = from {
        thread::spawn(move || {
            let (mut kept, mut piece) = (Vec::new(), vec![0; 8192]);
            while let Ok(read @ 1..) = from.read(&mut piece) {
                let room = KEPT - kept.len();
                kept.extend_from_slice(&piece[..read.min(room)]);
            }
            drop(tell.send(kept));
        });
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_hangs_is_ended_at_the_limit() {
        let mut sleep = command("sleep").unwrap();
        sleep.arg("600");
        assert!(matches!(run(sleep, Duration::from_millis(50)), Err(NotRun::TooSlow(_))));
    }

    #[test]
    fn output_and_status_are_kept() {
        let mut sh = command("sh").unwrap();
        sh.args(["-c", "echo out; echo err >&2; exit 3"]);
        let ran = run(sh, Duration::from_secs(20)).unwrap();
        assert_eq!((ran.status.code(), ran.stdout.as_str()), (Some(3), "out\n"));
        assert_eq!(ran.words(), "err (exit status 3)");
    }
}
