//! Units as plain processes, for playgrounds on machines without systemd.
//!
//! ```text
//! DIR/units/<unit>      unit files, where a real host has them in /etc/systemd/system
//! DIR/<unit>/process    the process as it was started: pid, start time
//! DIR/<unit>/ended      how the last one ended
//! DIR/<unit>/enabled    exists if enabled
//! DIR/<unit>/log        its output, if it does not write elsewhere
//! ```
//!
//! Read of a unit file: `ExecStart`, `WorkingDirectory`, `TimeoutStopSec`. Not imitated:
//! `User` (all runs as the caller), `Restart`, limits and other settings, starting at boot, dependencies,
//! `%` specifiers, environment variables in command lines. Stop is SIGTERM to the process group, then SIGKILL.

use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::ids::UnitName;
use dmup_core::inventory::UnitActive;
use dmup_wire::message::{Refusal, RefusalKind, UnitAction};
use fs_err as fs;
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use super::{Services, UnitSeen};
use crate::files::write_atomically;
use crate::processes;
use crate::refuse::{When, bad, refuse};
use crate::run;

/// systemd's own default.
const STOP_LIMIT: Duration = Duration::from_secs(90);

/// How often a process is looked at while we wait for its end.
const GLANCE: Duration = Duration::from_millis(5);

/// A folder of plain processes.
#[derive(Debug)]
pub(crate) struct Supervised {
    dir: Utf8PathBuf,
}

/// `DIR/<unit>/process`.
#[derive(Debug, Deserialize, Serialize)]
struct Started {
    pid: u32,
    /// From `/proc/PID/stat`: with it a number that was used again is not taken for ours.
    start_time: u64,
    at_ms: i64,
}

/// `DIR/<unit>/ended`.
#[derive(Debug, Deserialize, Serialize)]
struct Ended {
    words: String,
    killed: bool,
    failed: bool,
}

impl Supervised {
    pub(crate) fn new(dir: &Utf8Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Where unit files lie.
    pub(crate) fn units(dir: &Utf8Path) -> Utf8PathBuf {
        dir.join("units")
    }

    fn place(&self, unit: &UnitName, name: &str) -> Utf8PathBuf {
        self.dir.join(unit.as_str()).join(name)
    }

    fn unit_file(&self, unit: &UnitName) -> Option<String> {
        fs::read_to_string(Self::units(&self.dir).join(unit.as_str())).ok()
    }

    fn process(&self, unit: &UnitName) -> Option<Started> {
        serde_json::from_slice(&fs::read(self.place(unit, "process")).ok()?).ok()
    }

    fn alive(&self, unit: &UnitName) -> Option<Started> {
        self.process(unit)
            .filter(|process| processes::start_time(process.pid) == Some(process.start_time))
    }

    fn seen(&self, unit: &UnitName) -> UnitSeen {
        let ended: Option<Ended> = fs::read(self.place(unit, "ended"))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let alive = self.alive(unit);
        let (active, sub_state) = match (&alive, self.process(unit), &ended, self.unit_file(unit)) {
            (Some(_), _, _, _) => (UnitActive::Active, "running"),
            (None, _, _, None) => (UnitActive::Missing, "dead"),
            // It went without being stopped.
            (None, Some(_), Some(ended), _) if !ended.failed => (UnitActive::Inactive, "dead"),
            (None, Some(_), _, _) => (UnitActive::Failed, "failed"),
            (None, None, Some(ended), _) if ended.failed => (UnitActive::Failed, "failed"),
            (None, None, _, _) => (UnitActive::Inactive, "dead"),
        };
        UnitSeen {
            active,
            sub_state: sub_state.to_owned(),
            enabled: self.place(unit, "enabled").exists(),
            pid: alive.as_ref().map(|process| process.pid),
            restarts: 0,
            active_since_ms: alive.as_ref().map(|process| process.at_ms),
            killed: ended.as_ref().is_some_and(|ended| ended.killed),
            ended: ended.filter(|_| alive.is_none()).map(|ended| ended.words),
        }
    }

    fn start(&self, unit: &UnitName) -> Result<(), Refusal> {
        let attempted = || format!("start {unit}");
        if self.alive(unit).is_some() {
            return Ok(());
        }
        let text = self.unit_file(unit).ok_or_else(|| {
            refuse(
                RefusalKind::Precondition,
                attempted(),
                format!("there is no unit file in {}", Self::units(&self.dir)),
            )
        })?;
        let words = setting(&text, "ExecStart")
            .and_then(split_words)
            .filter(|words| !words.is_empty())
            .ok_or_else(|| bad(attempted(), "its unit file has no ExecStart that can be read"))?;
        fs::create_dir_all(self.dir.join(unit.as_str())).when(attempted)?;
        fs::remove_file(self.place(unit, "ended")).ok();
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.place(unit, "log"))
            .when(attempted)?
            .into_file();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_clear().env("PATH", run::PATH).env("LANG", "C.UTF-8");
        command.current_dir(setting(&text, "WorkingDirectory").unwrap_or("/"));
        command.stdin(Stdio::null()).stdout(log.try_clone().when(attempted)?).stderr(log);
        // A process group of its own takes it out of reach of the terminal's keys.
        command.process_group(0);
        let mut child = command.spawn().when(attempted)?;
        let pid = child.id();
        let process = Started {
            pid,
            start_time: processes::start_time(pid).unwrap_or(0),
            at_ms: crate::host::clock_ms(),
        };
        let ended = self.place(unit, "ended");
        self.record(unit, "process", &process)?;
        // Reaps it while we live; afterwards the system does, and how it ended stays unknown.
        thread::spawn(move || {
            if let Ok(status) = child.wait() {
                let ended_now = Ended {
                    words: match (status.code(), status.signal()) {
                        (Some(code), _) => format!("exited, status={code}"),
                        (None, signal) => format!("killed, signal={}", signal.unwrap_or(0)),
                    },
                    killed: status.signal() == Some(9),
                    // As systemd: SIGTERM and the like are a clean end of a service.
                    failed: !(status.success() || matches!(status.signal(), Some(1 | 2 | 13 | 15))),
                };
                if let Ok(bytes) = serde_json::to_vec(&ended_now) {
                    write_atomically(&ended, &bytes, 0o644, None).ok();
                }
            }
        });
        Ok(())
    }

    fn record(&self, unit: &UnitName, name: &str, what: &impl Serialize) -> Result<(), Refusal> {
        let attempted = || format!("write down {name} of {unit}");
        let bytes = serde_json::to_vec(what).map_err(std::io::Error::from).when(attempted)?;
        write_atomically(&self.place(unit, name), &bytes, 0o644, None).when(attempted)
    }

    fn stop(&self, unit: &UnitName, within: Duration) -> Result<(), Refusal> {
        let Some(process) = self.alive(unit) else {
            fs::remove_file(self.place(unit, "process")).ok();
            return Ok(());
        };
        let Some(group) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) else {
            return Ok(());
        };
        let text = self.unit_file(unit).unwrap_or_default();
        let patience = setting(&text, "TimeoutStopSec").and_then(seconds).unwrap_or(STOP_LIMIT);
        let began = Instant::now();
        rustix::process::kill_process_group(group, Signal::TERM).ok();
        let mut killed = false;
        while self.alive(unit).is_some() {
            if !killed && began.elapsed() >= patience {
                rustix::process::kill_process_group(group, Signal::KILL).ok();
                killed = true;
            }
            if began.elapsed() >= within {
                return Err(refuse(
                    RefusalKind::TooSlow,
                    format!("stop {unit}"),
                    format!(
                        "process {} still runs after {:.1} s",
                        process.pid,
                        within.as_secs_f64()
                    ),
                ));
            }
            thread::sleep(GLANCE);
        }
        fs::remove_file(self.place(unit, "process")).ok();
        let words = if killed { "killed, signal=9" } else { "ended when asked to" };
        self.record(unit, "ended", &Ended { words: words.to_owned(), killed, failed: killed })
    }
}

impl Services for Supervised {
    fn look(&self, units: &[UnitName]) -> Result<Vec<UnitSeen>, Refusal> {
        Ok(units.iter().map(|unit| self.seen(unit)).collect())
    }

    fn act(&self, unit: &UnitName, action: UnitAction, within: Duration) -> Result<(), Refusal> {
        match action {
            UnitAction::Start => self.start(unit),
            UnitAction::Stop => self.stop(unit, within),
            UnitAction::Restart => self.stop(unit, within).and_then(|()| self.start(unit)),
            UnitAction::Enable => {
                let attempted = || format!("enable {unit}");
                fs::create_dir_all(self.dir.join(unit.as_str())).when(attempted)?;
                fs::write(self.place(unit, "enabled"), "").when(attempted)
            }
            UnitAction::Disable => crate::files::remove(&self.place(unit, "enabled")),
        }
    }

    fn start_later(&self, unit: &UnitName) -> Result<(), Refusal> {
        // There is no queue here: a stop that goes on would take the new process along.
        match self.alive(unit) {
            Some(_) => Err(refuse(
                RefusalKind::Precondition,
                format!("start {unit}"),
                "it is still stopping",
            )),
            None => self.start(unit),
        }
    }

    fn forget_failures(&self, unit: &UnitName) {
        if self.alive(unit).is_none() {
            fs::remove_file(self.place(unit, "process")).ok();
            fs::remove_file(self.place(unit, "ended")).ok();
        }
    }

    fn journal(&self, unit: &UnitName, lines: u32) -> Result<Vec<String>, Refusal> {
        let Ok(mut file) = fs::File::open(self.place(unit, "log")) else { return Ok(Vec::new()) };
        let attempted = || format!("read the log of {unit}");
        let length = file.metadata().when(attempted)?.len();
        // Enough for the most that is asked for, without reading a log of days.
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(length.saturating_sub(1 << 20)))
            .when(attempted)?;
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut bytes).when(attempted)?;
        let text = String::from_utf8_lossy(&bytes);
        let all: Vec<&str> = text.lines().collect();
        let skipped = all.len().saturating_sub(lines as usize);
        Ok(all[skipped..].iter().map(|line| (*line).to_owned()).collect())
    }
}

/// Starts a process of our own that outlives us: a guard.
pub(crate) fn detach(mut command: Command, log: &Utf8Path) -> std::io::Result<u32> {
    let mut log = fs::OpenOptions::new().create(true).append(true).open(log)?.into_file();
    log.flush()?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    let mut child = command.spawn()?;
    let pid = child.id();
    thread::spawn(move || drop(child.wait()));
    Ok(pid)
}

/// The last value of a setting of a unit file.
fn setting<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.trim().split_once('='))
        .filter(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim())
        .rfind(|value| !value.is_empty())
}

/// Splits a command line as systemd does: blanks, single and double quotes, backslash in double quotes and outside.
fn split_words(line: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None::<char>);
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(open), letter) if letter == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (Some('"') | None, '\\') => word.get_or_insert_default().push(letters.next()?),
            (None, letter) if letter.is_whitespace() => words.extend(word.take()),
            (_, letter) => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

/// `90`, `90s`, `1min 30s`, `2min`: what TiUP and people write.
fn seconds(text: &str) -> Option<Duration> {
    let mut total = 0;
    for part in text.split_whitespace() {
        let digits = part.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
        let factor = match &part[digits.len()..] {
            "" | "s" | "sec" => 1,
            "m" | "min" => 60,
            "h" | "hr" => 3600,
            _ => return None,
        };
        total += digits.parse::<u64>().ok()?.checked_mul(factor)?;
    }
    (total > 0).then(|| Duration::from_secs(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn playground(exec: &str) -> (tempfile::TempDir, Supervised, UnitName) {
        let folder = tempfile::tempdir().unwrap();
        let dir = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
        let unit = UnitName::new("dm-worker-1.service").unwrap();
        fs::create_dir(Supervised::units(&dir)).unwrap();
        let text = format!("[Service]\nUser=tidb\nExecStart={exec}\nTimeoutStopSec=1s\n");
        fs::write(Supervised::units(&dir).join(unit.as_str()), text).unwrap();
        (folder, Supervised::new(&dir), unit)
    }

    fn poll(mut what: impl FnMut() -> bool) {
        let began = Instant::now();
        while !what() {
            assert!(began.elapsed() < LONG, "it did not come to pass");
            thread::sleep(GLANCE);
        }
    }

    #[test]
    fn a_unit_starts_once_and_stops_once() {
        // A service that runs until it is stopped; nothing waits for the sleep's own end.
        let (_keep, services, unit) = playground("/bin/sh -c 'echo hello; exec sleep 600'");
        assert_eq!(services.look_at(&unit).unwrap().active, UnitActive::Inactive);
        services.act(&unit, UnitAction::Start, LONG).unwrap();
        let first = services.look_at(&unit).unwrap();
        services.act(&unit, UnitAction::Start, LONG).unwrap();
        assert_eq!(services.look_at(&unit).unwrap().pid, first.pid);
        assert_eq!(first.active, UnitActive::Active);
        poll(|| services.journal(&unit, 10).unwrap() == ["hello"]);
        for _ in 0..2 {
            services.act(&unit, UnitAction::Stop, LONG).unwrap();
            let seen = services.look_at(&unit).unwrap();
            assert!(
                seen.active == UnitActive::Inactive && seen.is_down() && !seen.killed,
                "{seen:?}"
            );
        }
    }

    #[test]
    fn a_process_that_ignores_the_stop_is_killed_and_said_so() {
        // It goes on until it is killed; nothing waits for the sleep, which only keeps it from spinning.
        let (_keep, services, unit) =
            playground("/bin/sh -c \"trap '' TERM; echo up; while :; do sleep 1; done\"");
        services.act(&unit, UnitAction::Start, LONG).unwrap();
        poll(|| services.journal(&unit, 10).unwrap() == ["up"]);
        let refusal = services.act(&unit, UnitAction::Stop, Duration::from_millis(50)).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::TooSlow);
        services.act(&unit, UnitAction::Stop, LONG).unwrap();
        poll(|| services.look_at(&unit).unwrap().killed);
    }

    #[test]
    fn a_process_that_dies_by_itself_has_failed() {
        let (_keep, services, unit) = playground("/bin/sh -c 'exit 3'");
        services.act(&unit, UnitAction::Start, LONG).unwrap();
        poll(|| services.look_at(&unit).unwrap().ended.as_deref() == Some("exited, status=3"));
        assert_eq!(services.look_at(&unit).unwrap().active, UnitActive::Failed);
        services.forget_failures(&unit);
        assert_eq!(services.look_at(&unit).unwrap().active, UnitActive::Inactive);
    }

    #[test]
    fn enabled_is_a_mark_and_a_missing_unit_is_missing() {
        let (_keep, services, unit) = playground("/bin/true");
        services.act(&unit, UnitAction::Enable, LONG).unwrap();
        assert!(services.look_at(&unit).unwrap().enabled);
        services.act(&unit, UnitAction::Disable, LONG).unwrap();
        assert!(!services.look_at(&unit).unwrap().enabled);
        let other = UnitName::new("other.service").unwrap();
        assert_eq!(services.look_at(&other).unwrap().active, UnitActive::Missing);
        assert!(services.act(&other, UnitAction::Start, LONG).is_err());
    }

    #[test]
    fn command_lines_are_split_as_systemd_does() {
        let words = split_words(r#"/bin/bash -c '/d/scripts/run.sh' "a b" c\ d"#).unwrap();
        assert_eq!(words, ["/bin/bash", "-c", "/d/scripts/run.sh", "a b", "c d"]);
        assert_eq!(split_words("a 'b"), None);
        assert_eq!(seconds("1min 30s"), Some(Duration::from_secs(90)));
        assert_eq!(seconds("infinity"), None);
    }
}
