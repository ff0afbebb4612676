//! A `dmup` under way that somebody watches: its output, the journal of its run, its end; and signals to it.
//!
//! In: an [`Operator`] and a command line. Out: [`Said`] in the end, and on the way the entries that this
//! command has written into the journals of the cluster's runs, as plain JSON: tests must not read dmup with dmup.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::operator::{Operator, Said, code_of};
use crate::waiting::wait_until;

/// Exit code that stands for a command that had to be killed because it did not end.
pub const HUNG: i32 = -2;

/// A command that runs.
pub struct Attended {
    line: String,
    child: Child,
    stdout: Stream,
    stderr: Stream,
    own: Utf8PathBuf,
    /// Length of every journal when the command began, by its run.
    before: BTreeMap<String, usize>,
}

struct Stream {
    text: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
}

impl Attended {
    /// Types a command about a cluster.
    ///
    /// # Errors
    /// If it does not start.
    pub fn begin(operator: &Operator, cluster: &str, words: &[&str]) -> io::Result<Self> {
        let own = operator.tiup_home().join(format!("storage/dm/clusters/{cluster}/dmup"));
        let before = journals(&own).into_iter().map(|(run, text)| (run, text.len())).collect();
        let mut child = operator.begin(words)?;
        drop(child.stdin.take());
        let stdout = Stream::read(child.stdout.take().expect("piped by the operator"));
        let stderr = Stream::read(child.stderr.take().expect("piped by the operator"));
        Ok(Self { line: format!("dmup {}", words.join(" ")), child, stdout, stderr, own, before })
    }

    /// Bytes that it wrote into journals so far: cheap to ask often.
    pub fn written(&self) -> u64 {
        let Ok(runs) = self.own.join("runs").read_dir_utf8() else { return 0 };
        let now: u64 = runs
            .flatten()
            .filter_map(|run| run.path().join("journal.jsonl").metadata().ok())
            .map(|file| file.len())
            .sum();
        let before: usize = self.before.values().sum();
        now.saturating_sub(before as u64)
    }

    /// What it wrote into journals so far, without a torn last line.
    pub fn entries(&self) -> Vec<Value> {
        let mut all = Vec::new();
        for (run, text) in journals(&self.own) {
            let from = self.before.get(&run).copied().unwrap_or(0);
            let new = text.get(from..).unwrap_or_default();
            let whole = new.rfind('\n').map_or("", |end| &new[..end]);
            all.extend(
                whole
                    .lines()
                    .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                    .map(|line| line["entry"].clone()),
            );
        }
        all
    }

    /// Whether it holds the cluster's lock: it has opened the package and is about to look.
    pub fn has_lock(&self) -> bool {
        let holder = fs_err::read_to_string(self.own.join("lock")).unwrap_or_default();
        holder.trim_end().ends_with(&format!("process {}", self.child.id()))
    }

    /// What it said on standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.so_far()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal; fine if it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.has_ended() {
            return;
        }
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // Not reaped before `has_ended` says so: the number is still its own.
            let _ended_already = kill_process(pid, signal);
        }
    }

    /// Waits for its end; kills it when it has not ended `within` that time.
    pub fn end(mut self, within: Duration) -> Said {
        let in_time = wait_until(within, || self.has_ended());
        if !in_time {
            self.signal(Signal::KILL);
        }
        let status = self.child.wait();
        let code = match status {
            Ok(status) if in_time => code_of(status),
            Ok(_) | Err(_) => HUNG,
        };
        Said { line: self.line, code, stdout: self.stdout.whole(), stderr: self.stderr.whole() }
    }
}

impl Stream {
    fn read(mut from: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&text);
        let thread = thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut part) {
                shared.lock().expect("no panic under this lock").extend_from_slice(&part[..count]);
            }
        });
        Self { text, thread }
    }

    fn so_far(&self) -> String {
        let text = self.text.lock().expect("no panic under this lock");
        String::from_utf8_lossy(&text).into_owned()
    }

    fn whole(self) -> String {
        // A thread that panicked has said so; what it read counts all the same.
        drop(self.thread.join());
        String::from_utf8_lossy(&self.text.lock().expect("no panic under this lock")).into_owned()
    }
}

/// Journals by run, the oldest first.
fn journals(own: &Utf8Path) -> BTreeMap<String, String> {
    let Ok(runs) = own.join("runs").read_dir_utf8() else { return BTreeMap::new() };
    runs.flatten()
        .filter_map(|run| {
            let text = fs_err::read_to_string(run.path().join("journal.jsonl")).ok()?;
            Some((run.file_name().to_owned(), text))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operator(folder: &Utf8Path, script: &str) -> Operator {
        let program = folder.join("program");
        fs_err::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs_err::set_permissions(&program, mode).unwrap();
        Operator::new(program, &folder.join("desk")).unwrap()
    }

    #[test]
    fn only_whole_entries_that_the_command_wrote_itself_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let script = r#"cd "$TIUP_HOME/storage/dm/clusters/prod/dmup/runs"
echo '{"entry":{"entry":"run_resumed"}}' >> 1/journal.jsonl; mkdir 2
printf '{"entry":{"entry":"run_begins"}}\n{"entry":' > 2/journal.jsonl; echo said >&2; read -r x; exit 6"#;
        let operator = operator(folder, script);
        let run = operator.tiup_home().join("storage/dm/clusters/prod/dmup/runs/1");
        fs_err::create_dir_all(&run).unwrap();
        fs_err::write(run.join("journal.jsonl"), "{\"entry\":{\"entry\":\"run_begins\"}}\n")
            .unwrap();
        let attended = Attended::begin(&operator, "prod", &[]).unwrap();
        assert!(wait_until(Duration::from_secs(60), || attended.stderr() == "said\n"));
        let seen = attended.entries();
        let names: Vec<&str> = seen.iter().filter_map(|it| it["entry"].as_str()).collect();
        assert_eq!(names, ["run_resumed", "run_begins"]);
        assert_eq!(attended.end(Duration::from_secs(60)).code, 6);
    }

    #[test]
    fn a_command_that_does_not_end_is_killed_and_called_hung() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        // A command that hangs; it is killed at once, nothing waits for the sleep's own end.
        let operator = operator(folder, "exec sleep 600");
        let attended = Attended::begin(&operator, "prod", &[]).unwrap();
        assert_eq!(attended.end(Duration::ZERO).code, HUNG);
    }
}
