//! Where entries go: a file that survives us, or memory for tests.

use std::io::Write as _;

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::digest::Digest;
use dmup_core::journal::{Entry, Line, parse};
use fs_err as fs;
use jiff::Timestamp;

use crate::error::JournalError;

/// Takes entries, in order. When `append` returns, the entry survives a crash.
pub trait Journal: Send {
    /// Writes one entry down.
    ///
    /// # Errors
    ///
    /// If it is not certain to be there later; then the effect that it announces must not begin.
    fn append(&mut self, at: Timestamp, entry: &Entry) -> Result<(), JournalError>;
}

/// `journal.jsonl`: appended, fsynced, each line with the hash of the one before.
#[derive(Debug)]
pub struct FileJournal {
    path: Utf8PathBuf,
    file: fs::File,
    seq: u64,
    prev: Digest,
    /// As long as we left it.
    length: u64,
}

impl FileJournal {
    /// Begins a new journal; the file must not exist.
    ///
    /// # Errors
    ///
    /// [`JournalError::Disk`].
    pub fn create(path: &Utf8Path) -> Result<Self, JournalError> {
        let file = fs::OpenOptions::new()
            .append(true)
            .create_new(true)
            .open(path)
            .map_err(|source| disk("create", path, source))?;
        sync_folder_of(path)?;
        Ok(Self { path: path.to_owned(), file, seq: 0, prev: Digest::of(b""), length: 0 })
    }

    /// Opens a journal to go on with it, and says what it has. A torn last line is cut off.
    ///
    /// # Errors
    ///
    /// [`JournalError`].
    pub fn open(path: &Utf8Path) -> Result<(Self, Vec<Line>), JournalError> {
        let bytes = fs::read(path).map_err(|source| disk("read", path, source))?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let text = String::from_utf8_lossy(&bytes[..whole]);
        let lines = parse(&text)?;
        let prev =
            text.lines().last().map_or_else(|| Digest::of(b""), |last| Digest::of(last.as_bytes()));
        let file = fs::OpenOptions::new()
            .append(true)
            .open(path)
            .map_err(|source| disk("open", path, source))?;
        if whole < bytes.len() {
            file.set_len(whole as u64)
                .map_err(|source| disk("cut the torn line off", path, source))?;
        }
        let seq = lines.len() as u64;
        let length = whole as u64;
        Ok((Self { path: path.to_owned(), file, seq, prev, length }, lines))
    }

    /// Whether nothing is written down: then nothing has happened.
    pub fn is_empty(&self) -> bool {
        self.seq == 0
    }
}

impl Journal for FileJournal {
    fn append(&mut self, at: Timestamp, entry: &Entry) -> Result<(), JournalError> {
        let line = Line {
            v: Line::FORMAT,
            seq: self.seq,
            at,
            prev: self.prev.clone(),
            entry: entry.clone(),
        };
        let text = serde_json::to_string(&line).expect("entries are made of text and numbers");
        // A process that was frozen while another went on with the run must not write between its lines.
        let now = self.file.metadata().map_err(|source| disk("look at", &self.path, source))?.len();
        if now != self.length {
            return Err(JournalError::TakenOver { path: self.path.clone() });
        }
        // One write: a line is there wholly or torn at its end.
        self.file
            .write_all(format!("{text}\n").as_bytes())
            .and_then(|()| self.file.sync_data())
            .map_err(|source| disk("append to", &self.path, source))?;
        self.length += text.len() as u64 + 1;
        self.seq += 1;
        self.prev = Digest::of(text.as_bytes());
        Ok(())
    }
}

/// Entries in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryJournal {
    /// All so far.
    pub entries: Vec<Entry>,
    /// Refuses every entry once it has so many: the run ends there as if it had been killed.
    pub killed_at: Option<usize>,
}

impl Journal for MemoryJournal {
    fn append(&mut self, _at: Timestamp, entry: &Entry) -> Result<(), JournalError> {
        if self.killed_at.is_some_and(|limit| self.entries.len() >= limit) {
            return Err(JournalError::Killed);
        }
        self.entries.push(entry.clone());
        Ok(())
    }
}

pub(crate) fn disk(
    attempted: &'static str,
    path: &Utf8Path,
    source: std::io::Error,
) -> JournalError {
    JournalError::Disk { attempted, path: path.to_owned(), source }
}

/// A new name is only durable once its folder is.
pub(crate) fn sync_folder_of(path: &Utf8Path) -> Result<(), JournalError> {
    let Some(folder) = path.parent() else { return Ok(()) };
    fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|source| disk("sync the folder of", path, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmup_core::ids::ClusterName;

    fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(folder.path().join("journal.jsonl")).unwrap();
        (folder, path)
    }

    fn begins() -> Entry {
        Entry::RunBegins { cluster: ClusterName::new("prod").unwrap(), plan: Digest::of(b"plan") }
    }

    #[test]
    fn a_journal_cut_off_in_mid_line_reads_to_its_last_whole_line_and_goes_on() {
        let (_folder, path) = folder();
        let mut journal = FileJournal::create(&path).unwrap();
        journal.append(Timestamp::UNIX_EPOCH, &begins()).unwrap();
        journal.append(Timestamp::UNIX_EPOCH, &Entry::RunResumed).unwrap();
        drop(journal);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 5]).unwrap();

        let (mut journal, lines) = FileJournal::open(&path).unwrap();
        assert_eq!(lines.len(), 1);
        journal.append(Timestamp::UNIX_EPOCH, &Entry::RunResumed).unwrap();
        drop(journal);
        let (_journal, lines) = FileJournal::open(&path).unwrap();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1].entry, Entry::RunResumed);
    }

    #[test]
    fn a_process_that_was_frozen_writes_nothing_once_another_has_gone_on_with_the_run() {
        let (_folder, path) = folder();
        let mut frozen = FileJournal::create(&path).unwrap();
        frozen.append(Timestamp::UNIX_EPOCH, &begins()).unwrap();
        let (mut other, _) = FileJournal::open(&path).unwrap();
        other.append(Timestamp::UNIX_EPOCH, &Entry::RunResumed).unwrap();
        let refused = frozen.append(Timestamp::UNIX_EPOCH, &Entry::RunResumed).unwrap_err();
        assert!(matches!(refused, JournalError::TakenOver { .. }), "{refused}");
        other.append(Timestamp::UNIX_EPOCH, &Entry::RunResumed).unwrap();
        assert_eq!(FileJournal::open(&path).unwrap().1.len(), 3);
    }

    #[test]
    fn a_line_that_was_altered_or_removed_is_noticed() {
        let (_folder, path) = folder();
        let mut journal = FileJournal::create(&path).unwrap();
        journal.append(Timestamp::UNIX_EPOCH, &begins()).unwrap();
        journal.append(Timestamp::UNIX_EPOCH, &Entry::RunResumed).unwrap();
        journal.append(Timestamp::UNIX_EPOCH, &Entry::RunResumed).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replacen("prod", "demo", 1)).unwrap();
        assert!(FileJournal::open(&path).is_err());
        let without: Vec<&str> =
            text.lines().enumerate().filter(|(i, _)| *i != 1).map(|(_, l)| l).collect();
        fs::write(&path, without.join("\n") + "\n").unwrap();
        assert!(FileJournal::open(&path).is_err());
    }
}
