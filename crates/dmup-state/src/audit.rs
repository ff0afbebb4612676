//! The log of commands that `audit` lists; one file per command, shared with TiUP.
//!
//! A file's name is its time in nanoseconds since 1970, in [`crate::base52`], perhaps with a suffix
//! after `_`. Its first line has the arguments, each query-escaped, with a blank between them; the
//! rest is free text. Facts: tiup pkg/cluster/audit/audit.go.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::str::FromStr;

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::ids::BadName;
use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt;
use jiff::Timestamp;

use crate::files::{make_dir, read_text};
use crate::{StateError, base52};

/// Longest first line that is read, and longest file that is shown.
const LINE_BYTES: u64 = 1 << 20;
const SHOWN_BYTES: u64 = 64 << 20;
/// Longest mark in an id: file names end at 255 bytes.
const MARK_BYTES: usize = 128;

/// `<profile>/audit`.
#[derive(Clone, Debug)]
pub struct AuditLog {
    dir: Utf8PathBuf,
}

/// One command that was given.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AuditEntry {
    /// Its name in the log.
    pub id: String,
    /// When it ended.
    pub at: Timestamp,
    /// Its arguments, with blanks between them.
    pub command: String,
    /// Size of its file.
    pub bytes: u64,
}

/// What ends the ids of entries that belong together (TiUP: `TIUP_AUDIT_ID`): at most 128 letters, digits, `-`, `_` and `.`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AuditMark(String);

impl FromStr for AuditMark {
    type Err = BadName;

    fn from_str(given: &str) -> Result<Self, BadName> {
        let bad =
            |why| BadName { given: given.to_owned(), what: "end of an audit entry's name", why };
        if given.is_empty() || given.len() > MARK_BYTES {
            return Err(bad("it must have 1 to 128 characters"));
        }
        if !is_mark(given) {
            return Err(bad("only letters, digits, `-`, `_` and `.` are allowed"));
        }
        Ok(Self(given.to_owned()))
    }
}

impl AuditEntry {
    /// The time as TiUP's table has it: to the second, in UTC.
    pub fn time_text(&self) -> String {
        self.at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }
}

impl AuditLog {
    pub(crate) fn at(dir: Utf8PathBuf) -> Self {
        Self { dir }
    }

    /// Writes an entry; `arguments` include the program's name and must hold no secret. `mark` ends its id, after `_`.
    ///
    /// # Errors
    ///
    /// When the folder cannot be written.
    pub fn record(
        &self,
        now: Timestamp,
        mark: Option<&AuditMark>,
        arguments: &[String],
        text: &str,
    ) -> Result<String, StateError> {
        let mark = mark.map(|mark| format!("_{}", mark.0)).unwrap_or_default();
        make_dir(&self.dir, 0o755)?;
        let attempt = || StateError::system(format!("write an entry in {}", self.dir));
        let first: Vec<String> = arguments.iter().map(|argument| query_escape(argument)).collect();
        let start = u64::try_from(now.as_nanosecond()).unwrap_or_default();
        // Two commands of one moment get the next free number; TiUP adds a random one.
        for nanos in start..start.saturating_add(1_000) {
            let id = format!("{}{mark}", base52::encode(nanos));
            let mut options = fs_err::OpenOptions::new();
            options.write(true).create_new(true);
            options.mode(0o600);
            match options.open(self.dir.join(&id).as_std_path()) {
                Ok(mut file) => {
                    let content = format!("{}\n{text}", first.join(" "));
                    file.write_all(content.as_bytes()).map_err(attempt())?;
                    return Ok(id);
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(attempt()(error)),
            }
        }
        let why = "has an entry for every nanosecond of now".to_owned();
        Err(StateError::BadFile { path: self.dir.clone(), why })
    }

    /// All entries, oldest first; files that are none are left out.
    ///
    /// # Errors
    ///
    /// When the folder or a file cannot be read.
    pub fn entries(&self) -> Result<Vec<AuditEntry>, StateError> {
        let attempt = || StateError::system(format!("list entries in {}", self.dir));
        let files = match fs::read_dir(self.dir.as_std_path()) {
            Ok(files) => files,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(attempt()(error)),
        };
        let mut entries = Vec::new();
        for file in files {
            let file = file.map_err(attempt())?;
            let Ok(id) = file.file_name().into_string() else { continue };
            let Some(at) = time_of(&id) else { continue };
            let bytes = file.metadata().map_err(attempt())?.len();
            let mut line = Vec::new();
            BufReader::new(fs::File::open(file.path()).map_err(attempt())?)
                .take(LINE_BYTES)
                .read_until(b'\n', &mut line)
                .map_err(attempt())?;
            let line = String::from_utf8_lossy(&line);
            let command =
                line.trim_end().split(' ').map(query_unescape).collect::<Vec<_>>().join(" ");
            entries.push(AuditEntry { id, at, command, bytes });
        }
        entries.sort_by(|a, b| a.at.cmp(&b.at).then_with(|| a.id.cmp(&b.id)));
        Ok(entries)
    }

    /// The words of one entry, the program's name first.
    ///
    /// # Errors
    ///
    /// When there is none of that id.
    pub fn words(&self, id: &str) -> Result<Vec<String>, StateError> {
        let (_, text) = self.show(id)?;
        Ok(text.lines().next().unwrap_or_default().split(' ').map(query_unescape).collect())
    }

    /// The time and the whole text of one entry.
    ///
    /// # Errors
    ///
    /// When there is none of that id.
    pub fn show(&self, id: &str) -> Result<(Timestamp, String), StateError> {
        let missing = || StateError::BadFile {
            path: self.path_shown(id),
            why: "there is no such entry".to_owned(),
        };
        let at = time_of(id).ok_or_else(missing)?;
        let text = read_text(&self.dir.join(id), SHOWN_BYTES)?.ok_or_else(missing)?;
        Ok((at, text))
    }

    /// Removes entries older than `before`; answers with those.
    ///
    /// # Errors
    ///
    /// When a file cannot be removed; earlier ones are gone then.
    pub fn remove_before(&self, before: Timestamp) -> Result<Vec<AuditEntry>, StateError> {
        let old: Vec<AuditEntry> =
            self.entries()?.into_iter().filter(|entry| entry.at < before).collect();
        for entry in &old {
            let path = self.dir.join(&entry.id);
            fs::remove_file(path.as_std_path())
                .map_err(StateError::system(format!("remove {path}")))?;
        }
        Ok(old)
    }

    /// Where its files lie.
    pub fn dir(&self) -> &Utf8Path {
        &self.dir
    }

    /// For messages: never joins an id that is none.
    fn path_shown(&self, id: &str) -> Utf8PathBuf {
        Utf8PathBuf::from(format!("{}: {id}", self.dir))
    }
}

/// The time in an id, if it is one. Old versions of TiUP counted seconds.
fn time_of(id: &str) -> Option<Timestamp> {
    let (number, suffix) = id.split_once('_').unwrap_or((id, ""));
    if !is_mark(suffix) {
        return None;
    }
    let number = base52::decode(number)?;
    if number >> 32 == 0 {
        Timestamp::from_second(i64::try_from(number).ok()?).ok()
    } else {
        Timestamp::from_nanosecond(i128::from(number)).ok()
    }
}

/// What may follow the number in an id: nothing that leads to another folder.
fn is_mark(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// Go's `url.QueryEscape`.
fn query_escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b' ' => escaped.push('+'),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte));
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// And back; what is no escape stays as it is.
fn query_unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = (bytes[at] == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (bytes[at], code) {
            (_, Some(byte)) => {
                plain.push(byte);
                at += 2;
            }
            (b'+', None) => plain.push(b' '),
            (byte, None) => plain.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_tiup_have_their_time() {
        // Recorded: tiup-dm audit 1.16.5.
        for (id, time) in
            [("h49vrV2nD7H", "2026-11-23T04:22:47Z"), ("h49wkF5WXHb", "2026-11-23T04:36:12Z")]
        {
            assert_eq!(time_of(id).unwrap().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(), time);
        }
        for bad in ["", "../meta.yaml", "a.b", "h49vrV2nD7H/x", "h49vrV2nD7H_/x"] {
            assert_eq!(time_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_entry_with_a_mark_has_it_in_its_id() {
        let folder = tempfile::tempdir().unwrap();
        let dir = Utf8PathBuf::from_path_buf(folder.path().join("audit")).unwrap();
        let log = AuditLog::at(dir);
        let now = Timestamp::from_second(1_795_000_000).unwrap();
        let words = ["tiup-dm".to_owned(), "list".to_owned()];
        let given: AuditMark = "job-7.a".parse().unwrap();
        for (mark, end) in [(Some(&given), "_job-7.a"), (None, "")] {
            let id = log.record(now, mark, &words, "").unwrap();
            assert!(id.ends_with(end) && id.contains('_') == mark.is_some(), "{id}");
            assert_eq!(log.show(&id).unwrap().0.as_second(), now.as_second());
        }
        assert_eq!(log.entries().unwrap().len(), 2);
        for bad in ["", "../x", "a b", &"x".repeat(MARK_BYTES + 1)] {
            assert!(bad.parse::<AuditMark>().is_err(), "{bad}");
        }
    }

    #[test]
    fn arguments_survive_the_escaping_of_go() {
        assert_eq!(query_escape("a b/ü+%"), "a+b%2F%C3%BC%2B%25");
        for text in ["", "a b/ü+%", "%", "%2", "100%"] {
            assert_eq!(query_unescape(&query_escape(text)), text);
        }
        assert_eq!(query_unescape("50%ü"), "50%ü");
    }
}
