//! What a build says of itself: version, commit, faults and rules, appended to the executable.
//!
//! In: an executable. Out: the same executable with a trailer `JSON, length (u64 little endian), magic`,
//! so that two packages made from one compilation differ in bytes, in `-V` and in `/status`. The loader
//! ignores what follows the ELF sections. Without a trailer the program is [`Stamp::default`].

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use fs_err as fs;
use serde::{Deserialize, Serialize};

const MAGIC: &[u8; 16] = b"LOOKALIKE-STAMP\n";
/// Far more than any stamp needs; a longer trailer is not one of ours.
const LONGEST_BYTES: u64 = 64 * 1024;

/// One way in which a build is bad. `-V` works all the same, unless it is [`Fault::ExitAtVersion`].
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// `-V` exits with 1.
    ExitAtVersion,
    /// The service exits with 1 at once.
    ExitAtStart,
    /// The service does nothing, opens nothing, and goes on.
    HangAtStart,
    /// Opens its port and answers `/status`, but never joins the cluster.
    NeverJoin,
    /// `/status` names this release instead.
    StatusVersion(String),
    /// Dies without any tidying after so many seconds.
    CrashAfterS(u64),
    /// Needs so many seconds more to end after a SIGTERM; ports are closed and leases given back by then.
    StopAfterS(u64),
    /// A worker that never writes each n-th row.
    LoseEvery(u64),
    /// A worker that writes each n-th row twice, as into a table without a key.
    DoubleEvery(u64),
}

/// How a worker of this build behaves where DM's versions differ. What is none follows from the version.
#[derive(Clone, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Rules {
    /// SIGTERM: stop replicating first, give the lease back afterwards (DM 6.5.0 and later, and 6.1.3 and later of 6.1).
    pub units_before_lease: Option<bool>,
    /// `transfer-source` pauses running tasks by itself (DM 5.4.0 and later) instead of refusing with 46019.
    pub automatic_transfer: Option<bool>,
    /// How fast a worker applies rows.
    pub rows_per_s: Option<u32>,
}

/// Everything that a package decides about the program in it.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct Stamp {
    /// `Release Version`, e.g. `v8.1.0`.
    pub release_version: String,
    /// `Git Commit Hash`.
    pub git_hash: String,
    /// `UTC Build Time`.
    pub build_ts: String,
    /// What is bad about it.
    #[serde(default)]
    pub faults: Vec<Fault>,
    /// Where it departs from its version.
    #[serde(default)]
    pub rules: Rules,
}

impl Default for Stamp {
    fn default() -> Self {
        Self {
            release_version: "v8.1.0".to_owned(),
            git_hash: "0000000000000000000000000000000000000000".to_owned(),
            build_ts: "2024-05-27 03:44:13".to_owned(),
            faults: Vec::new(),
            rules: Rules::default(),
        }
    }
}

impl Stamp {
    /// A faultless build of a version.
    pub fn new(release_version: &str, git_hash: &str) -> Self {
        Self {
            release_version: release_version.to_owned(),
            git_hash: git_hash.to_owned(),
            ..Self::default()
        }
    }

    /// The same with one more fault.
    #[must_use]
    pub fn with_fault(mut self, fault: Fault) -> Self {
        self.faults.push(fault);
        self
    }

    /// What `-V` prints and, but for the fault [`Fault::StatusVersion`], `/status` answers.
    ///
    /// Recorded from DM v8.1.0 and v5.3.0; the line on failpoints came in between.
    pub fn version_text(&self) -> String {
        let Self { release_version, git_hash, build_ts, .. } = self;
        let mut text = format!(
            "Release Version: {release_version}\nGit Commit Hash: {git_hash}\nGit Branch: heads/refs/tags/{release_version}\nUTC Build Time: {build_ts}\nGo Version: None\n"
        );
        if self.at_least(6, 0, 0) {
            text.push_str("Failpoint Build: false\n");
        }
        text
    }

    /// What `/status` answers.
    pub fn status_text(&self) -> String {
        for fault in &self.faults {
            if let Fault::StatusVersion(version) = fault {
                return Self { release_version: version.clone(), ..self.clone() }.version_text();
            }
        }
        self.version_text()
    }

    /// Whether SIGTERM ends the units before the lease.
    pub fn units_before_lease(&self) -> bool {
        self.rules.units_before_lease.unwrap_or_else(|| {
            self.at_least(6, 5, 0) || (self.at_least(6, 1, 3) && !self.at_least(6, 2, 0))
        })
    }

    /// Whether a transfer pauses and resumes by itself.
    pub fn automatic_transfer(&self) -> bool {
        self.rules.automatic_transfer.unwrap_or_else(|| self.at_least(5, 4, 0))
    }

    /// How fast rows are applied.
    pub fn rows_per_s(&self) -> u32 {
        self.rules.rows_per_s.unwrap_or(10_000).max(1)
    }

    /// Compares the numbers of the release, whatever follows them.
    pub(crate) fn at_least(&self, major: u64, minor: u64, patch: u64) -> bool {
        let numbers: Vec<u64> = self
            .release_version
            .trim_start_matches('v')
            .split(|c: char| !c.is_ascii_digit())
            .map_while(|part| part.parse().ok())
            .take(3)
            .collect();
        let part = |i: usize| numbers.get(i).copied().unwrap_or(0);
        (part(0), part(1), part(2)) >= (major, minor, patch)
    }
}

/// Copies `exe` to `out`, mode 0755, with `stamp` instead of whatever stamp it had.
///
/// # Errors
/// If either file cannot be read or written.
pub fn write_stamped(exe: &Path, out: &Path, stamp: &Stamp) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;

    let mut bytes = fs::read(exe)?;
    let bare = bytes.len() - trailer_bytes(&mut io::Cursor::new(&bytes))?.unwrap_or(0) as usize;
    bytes.truncate(bare);
    let json = serde_json::to_vec(stamp).expect("a stamp is plain data");
    bytes.extend_from_slice(&json);
    bytes.extend_from_slice(&(json.len() as u64).to_le_bytes());
    bytes.extend_from_slice(MAGIC);
    let mut file = fs::File::create(out)?;
    file.write_all(&bytes)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o755))
}

/// Reads the stamp of an executable; the default one if it has none.
///
/// # Errors
/// If the file cannot be read or its trailer is not a stamp.
pub fn read_stamp(exe: &Path) -> io::Result<Stamp> {
    let mut file = fs::File::open(exe)?;
    let Some(trailer) = trailer_bytes(&mut file)? else { return Ok(Stamp::default()) };
    let end = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(end - trailer))?;
    let mut json = vec![0; (trailer - 24) as usize];
    file.read_exact(&mut json)?;
    serde_json::from_slice(&json).map_err(io::Error::other)
}

/// Length of the whole trailer, if there is one.
fn trailer_bytes(file: &mut (impl Read + Seek)) -> io::Result<Option<u64>> {
    let end = file.seek(SeekFrom::End(0))?;
    if end < 24 {
        return Ok(None);
    }
    file.seek(SeekFrom::Start(end - 24))?;
    let mut foot = [0; 24];
    file.read_exact(&mut foot)?;
    let (length, magic) = foot.split_at(8);
    let length = u64::from_le_bytes(length.try_into().expect("split at 8"));
    let ours = magic == MAGIC && length <= LONGEST_BYTES && length + 24 <= end;
    Ok(ours.then_some(length + 24))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_back_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (exe, one, two) = (dir.path().join("exe"), dir.path().join("1"), dir.path().join("2"));
        fs::write(&exe, b"not quite an ELF file, but longer than a foot").unwrap();
        assert_eq!(read_stamp(&exe).unwrap(), Stamp::default());
        let first = Stamp::new("v8.1.0", "aaaa").with_fault(Fault::StopAfterS(90));
        write_stamped(&exe, &one, &first).unwrap();
        assert_eq!(read_stamp(&one).unwrap(), first);
        let second = Stamp::new("v8.1.0-hotfix", "b");
        write_stamped(&one, &two, &second).unwrap();
        assert_eq!(read_stamp(&two).unwrap(), second);
        assert!(fs::read(&two).unwrap().starts_with(&fs::read(&exe).unwrap()));
    }

    #[test]
    fn rules_follow_the_version() {
        for (version, safe, automatic) in [
            ("v5.3.0-20211230", false, false),
            ("v5.4.0", false, true),
            ("v6.1.2", false, true),
            ("v6.1.3", true, true),
            ("v6.4.0", false, true),
            ("v6.5.0", true, true),
            ("v8.1.0-hotfix1", true, true),
        ] {
            let stamp = Stamp::new(version, "x");
            assert_eq!(stamp.units_before_lease(), safe, "{version}");
            assert_eq!(stamp.automatic_transfer(), automatic, "{version}");
        }
    }

    #[test]
    fn version_text_has_the_lines_of_the_recordings() {
        let text = Stamp::new("v8.1.0", "abc").version_text();
        assert!(text.starts_with("Release Version: v8.1.0\nGit Commit Hash: abc\nGit Branch: "));
        assert!(text.ends_with("Failpoint Build: false\n"));
        assert!(!Stamp::new("v5.3.0", "abc").version_text().contains("Failpoint"));
    }
}
