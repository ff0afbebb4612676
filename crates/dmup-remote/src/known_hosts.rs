//! Which host keys are known: a reader of OpenSSH's `known_hosts` files, and a writer of the cluster's own.
//!
//! Format: sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT". Understood: lists of names, `*`, `?`, `!`,
//! `[host]:port`, hashed names (`|1|salt|HMAC-SHA1`), `@revoked`. `@cert-authority` lines are
//! skipped: host certificates are not asked for. Lines that cannot be read are skipped, as
//! OpenSSH does. A key on *any* matching line makes the host known; a revoked key is refused
//! whatever the other lines say.
//!
//! Own matcher because russh's accepts revoked keys, and stops at the first line for a host.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Mutex;

use camino::{Utf8Path, Utf8PathBuf};
use hmac::{Hmac, KeyInit as _, Mac as _};
use russh::keys::ssh_key::known_hosts::HostPatterns;
use russh::keys::{Algorithm, HashAlg, PublicKey};

/// Larger files are not read: somebody put something else there.
const MAX_FILE: u64 = 16 << 20;

/// A line of a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Place {
    /// Which file.
    pub file: Utf8PathBuf,
    /// Counted from 1.
    pub line: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// What the files say of a key that a host shows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It is the host's.
    Known,
    /// The host is in none of the files.
    Unknown,
    /// The host is there, with other keys only.
    Changed {
        /// Fingerprint of one of these, of the same type if there is one.
        known: String,
        /// Where it lies.
        place: Place,
    },
    /// The key must not be used any more.
    Revoked {
        /// Where it says so.
        place: Place,
    },
}

/// Known-hosts files that cannot be read or written.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{attempted} {file}: {observed}")]
pub struct KnownHostsError {
    /// `read` or `write`.
    pub attempted: &'static str,
    /// Which.
    pub file: Utf8PathBuf,
    /// The system's words.
    pub observed: String,
}

/// The fingerprint as `ssh-keygen -l` prints it: `SHA256:…`.
pub fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

/// Looks a host's key up. Files that do not exist are empty.
///
/// # Errors
///
/// [`KnownHostsError`] if a file exists but cannot be read: what it would have said is not to be guessed.
pub fn check(
    files: &[Utf8PathBuf],
    host: &str,
    port: u16,
    key: &PublicKey,
) -> Result<Verdict, KnownHostsError> {
    let names = Names::of(host, port);
    let (mut known, mut other) = (false, None::<(PublicKey, Place)>);
    for file in files {
        for (number, line) in lines(&read(file)?) {
            let Some(fit) = line.fit(&names) else { continue };
            let place = Place { file: file.clone(), line: number };
            let same = line.key.key_data() == key.key_data();
            match (line.mark, same) {
                (Mark::Revoked, true) => return Ok(Verdict::Revoked { place }),
                (Mark::Revoked, false) => {}
                (Mark::None, true) => known = true,
                (Mark::None, false) if fit == Fit::WithPort => {
                    let better = other
                        .as_ref()
                        .is_none_or(|(seen, _)| !same_type(seen, key) && same_type(&line.key, key));
                    if better {
                        other = Some((line.key, place));
                    }
                }
                // A line without a port speaks of port 22; for another port it can only confirm (ssh: "found matching key w/out port").
                (Mark::None, false) => {}
            }
        }
    }
    Ok(match other {
        _ if known => Verdict::Known,
        Some((seen, place)) => Verdict::Changed { known: fingerprint(&seen), place },
        None => Verdict::Unknown,
    })
}

/// Types of keys that the files have for a host; offering these first makes the host show one that can be checked.
///
/// # Errors
///
/// As [`check`].
pub fn known_types(
    files: &[Utf8PathBuf],
    host: &str,
    port: u16,
) -> Result<Vec<Algorithm>, KnownHostsError> {
    let names = Names::of(host, port);
    let mut types = Vec::new();
    for file in files {
        for (_, line) in lines(&read(file)?) {
            let algorithm = line.key.algorithm();
            if line.mark == Mark::None && line.fit(&names).is_some() && !types.contains(&algorithm)
            {
                types.push(algorithm);
            }
        }
    }
    Ok(types)
}

/// Adds a host's key to a file, which is made with mode 0600 if it is missing. Whole or not at all.
///
/// # Errors
///
/// [`KnownHostsError`] if the file or its folder cannot be written.
pub fn remember(
    file: &Utf8Path,
    host: &str,
    port: u16,
    key: &PublicKey,
) -> Result<(), KnownHostsError> {
    /// Several hosts are met at once; each rewrites the file.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);

    let mut bare = key.clone();
    bare.set_comment("");
    let failed =
        |observed: String| KnownHostsError { attempted: "write", file: file.to_owned(), observed };
    let text = bare.to_openssh().map_err(|error| failed(error.to_string()))?;
    let mut content = read(file)?;
    if !content.is_empty() && !content.ends_with('\n') {
        content.push('\n');
    }
    content.push_str(&format!("{} {}\n", Names::of(host, port).with_port, text.trim_end()));

    let part = Utf8PathBuf::from(format!("{file}.part-{}", std::process::id()));
    let written = || -> std::io::Result<()> {
        if let Some(dir) = file.parent() {
            fs_err::create_dir_all(dir)?;
        }
        let mut out = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&part)?;
        out.write_all(content.as_bytes())?;
        out.sync_all()?;
        fs_err::rename(&part, file)
    };
    written().map_err(|error| failed(error.to_string()))
}

/// The two forms under which a host may be listed.
struct Names {
    /// `host` for port 22, else `[host]:port`.
    with_port: String,
    /// `host`, for other ports than 22.
    without_port: Option<String>,
}

impl Names {
    fn of(host: &str, port: u16) -> Self {
        let host = host.to_ascii_lowercase();
        if port == 22 {
            Self { with_port: host, without_port: None }
        } else {
            Self { with_port: format!("[{host}]:{port}"), without_port: Some(host) }
        }
    }
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Fit {
    WithPort,
    WithoutPort,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Mark {
    None,
    Revoked,
}

struct Line {
    mark: Mark,
    hosts: HostPatterns,
    key: PublicKey,
}

impl Line {
    fn fit(&self, names: &Names) -> Option<Fit> {
        if lists(&self.hosts, &names.with_port) {
            return Some(Fit::WithPort);
        }
        names
            .without_port
            .as_ref()
            .filter(|name| lists(&self.hosts, name))
            .map(|_| Fit::WithoutPort)
    }
}

fn read(file: &Utf8Path) -> Result<String, KnownHostsError> {
    let failed =
        |observed: String| KnownHostsError { attempted: "read", file: file.to_owned(), observed };
    match std::fs::metadata(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(failed(error.to_string())),
        Ok(meta) if meta.len() > MAX_FILE => {
            return Err(failed(format!("it has {} bytes, {MAX_FILE} are read", meta.len())));
        }
        Ok(_) => {}
    }
    match std::fs::read(file) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) => Err(failed(error.to_string())),
    }
}

fn lines(text: &str) -> impl Iterator<Item = (usize, Line)> {
    text.lines().enumerate().filter_map(|(index, line)| Some((index + 1, parse(line)?)))
}

fn parse(line: &str) -> Option<Line> {
    let mut words = line.split_ascii_whitespace();
    let mut word = words.next().filter(|word| !word.starts_with('#'))?;
    let mark = match word {
        "@revoked" => Mark::Revoked,
        _ if word.starts_with('@') => return None,
        _ => Mark::None,
    };
    if mark != Mark::None {
        word = words.next()?;
    }
    let hosts = word.parse().ok()?;
    let key = PublicKey::from_openssh(&format!("{} {}", words.next()?, words.next()?)).ok()?;
    Some(Line { mark, hosts, key })
}

fn lists(hosts: &HostPatterns, name: &str) -> bool {
    match hosts {
        HostPatterns::HashedName { salt, hash } => {
            let Ok(mut mac) = Hmac::<sha1::Sha1>::new_from_slice(salt) else { return false };
            mac.update(name.as_bytes());
            mac.verify_slice(hash).is_ok()
        }
        HostPatterns::Patterns(patterns) => {
            let fits =
                |pattern: &str| glob(pattern.to_ascii_lowercase().as_bytes(), name.as_bytes());
            let refused = patterns.iter().any(|p| p.strip_prefix('!').is_some_and(fits));
            !refused && patterns.iter().any(|p| !p.starts_with('!') && fits(p))
        }
    }
}

/// `*` is any run of characters, `?` any one; everything else is itself. Linear in memory, no recursion.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut retry) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, n));
                p += 1;
            }
            Some(&c) if c == b'?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match retry {
                Some((after_star, from)) => {
                    retry = Some((after_star, from + 1));
                    (p, n) = (after_star, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

fn same_type(a: &PublicKey, b: &PublicKey) -> bool {
    a.algorithm() == b.algorithm()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Keys made with ssh-keygen for these tests; nobody uses them.
    const ED: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIe4zVDU7JL+CZJhFepkNK8rp/iR4SFWuiTqSmwHs683";
    const ED2: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA57R9gov4qHLOxJTqaLTXnUH5G2phgX/2IZXxiYIZS8";
    const EC: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBFiTxZ8Ic86SgeZffDJuaQqoe4NnMxR4kl91YDVgERQ0OxGvwc/UUdkFSJqGGEFnCoAPVc5zKhqZDKwIp9llP+Q=";

    fn key(text: &str) -> PublicKey {
        PublicKey::from_openssh(text).unwrap()
    }

    struct Files {
        _dir: tempfile::TempDir,
        paths: Vec<Utf8PathBuf>,
    }

    fn files(contents: &[&str]) -> Files {
        let dir = tempfile::tempdir().unwrap();
        let paths = contents
            .iter()
            .enumerate()
            .map(|(n, content)| {
                let path = Utf8PathBuf::from_path_buf(dir.path().join(format!("kh{n}"))).unwrap();
                fs_err::write(&path, content).unwrap();
                path
            })
            .collect();
        Files { _dir: dir, paths }
    }

    fn verdict(content: &str, host: &str, port: u16, shown: &str) -> Verdict {
        check(&files(&[content]).paths, host, port, &key(shown)).unwrap()
    }

    #[test]
    fn plain_listed_tabbed_and_double_spaced_names_are_known() {
        for line in [
            format!("10.0.1.1 {ED}"),
            format!("a.example,10.0.1.1,b {ED} some comment"),
            format!("10.0.1.1\t{}", ED.replace(' ', "\t")),
            format!("10.0.1.1  {}", ED.replace(' ', "  ")),
            format!("# x\n\nnonsense\n10.0.1.1 ssh-what AAAA\n10.0.1.1 {ED}"),
            format!("10.0.1.* {ED}"),
            format!("10.0.?.1 {ED}"),
            format!("10.0.1.1 {ED2}\n10.0.1.1 {ED}"),
        ] {
            assert_eq!(verdict(&line, "10.0.1.1", 22, ED), Verdict::Known, "{line}");
        }
    }

    #[test]
    fn a_host_that_no_line_names_is_unknown() {
        for line in [
            String::new(),
            format!("10.0.1.2 {ED}"),
            format!("!10.0.1.1,10.0.1.* {ED}"),
            format!("@cert-authority 10.0.1.1 {ED}"),
            format!("#10.0.1.1 {ED}"),
            format!("[10.0.1.1]:2222 {ED}"),
        ] {
            assert_eq!(verdict(&line, "10.0.1.1", 22, ED), Verdict::Unknown, "{line}");
        }
    }

    #[test]
    fn another_port_is_another_host_but_a_line_without_port_may_confirm() {
        assert_eq!(verdict(&format!("[h]:2222 {ED}"), "h", 2222, ED), Verdict::Known);
        assert_eq!(verdict(&format!("[h]:2222 {ED}"), "h", 2223, ED), Verdict::Unknown);
        assert_eq!(verdict(&format!("h {ED}"), "h", 2222, ED), Verdict::Known);
        assert_eq!(verdict(&format!("h {ED2}"), "h", 2222, ED), Verdict::Unknown);
        assert_eq!(verdict(&format!("H {ED}"), "h", 22, ED), Verdict::Known);
    }

    #[test]
    fn hashed_names_are_known_with_and_without_port() {
        // ssh-keygen -H of a line for 10.0.1.1 and of one for [10.0.1.1]:2222.
        let line = format!(
            "|1|ZM1I1n5pww09JJ+CkRCBWzuQcW8=|4+jWAVP3OjQkjRv97VLYJgBHlOY= {ED}\n|1|inRgCcypz0OdBUtIkoCUAF9UaA4=|IfoOEVmFFWSu7sCA9+Qrih8Ra/8= {ED2}\n"
        );
        assert_eq!(verdict(&line, "10.0.1.1", 22, ED), Verdict::Known);
        assert_eq!(verdict(&line, "10.0.1.2", 22, ED), Verdict::Unknown);
        assert_eq!(verdict(&line, "10.0.1.1", 2222, ED2), Verdict::Known);
    }

    #[test]
    fn a_changed_key_names_file_line_and_the_known_key_of_the_same_type() {
        let files = files(&["", &format!("# one\nh {EC}\nh {ED2}\n")]);
        let Verdict::Changed { known, place } = check(&files.paths, "h", 22, &key(ED)).unwrap()
        else {
            panic!("the key differs");
        };
        assert_eq!(known, fingerprint(&key(ED2)));
        assert_eq!((place.file.file_name(), place.line), (Some("kh1"), 3));
    }

    #[test]
    fn a_host_known_by_another_type_of_key_only_has_changed() {
        let line = format!("h {EC}");
        assert!(matches!(verdict(&line, "h", 22, ED), Verdict::Changed { .. }));
        assert_eq!(known_types(&files(&[&line]).paths, "h", 22).unwrap(), [key(EC).algorithm()]);
    }

    #[test]
    fn a_revoked_key_is_refused_whatever_other_lines_and_files_say() {
        let files = files(&[&format!("h {ED}\n"), &format!("@revoked * {ED}\n")]);
        assert!(
            matches!(check(&files.paths, "h", 22, &key(ED)).unwrap(), Verdict::Revoked { place } if place.line == 1)
        );
        assert_eq!(
            check(&files.paths, "h", 22, &key(ED2)).unwrap(),
            Verdict::Changed {
                known: fingerprint(&key(ED)),
                place: Place { file: files.paths[0].clone(), line: 1 },
            }
        );
    }

    #[test]
    fn a_remembered_key_is_known_afterwards_and_the_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let file = Utf8PathBuf::from_path_buf(dir.path().join("ssh/known_hosts")).unwrap();
        remember(&file, "h", 22, &key(&format!("{ED} a comment"))).unwrap();
        remember(&file, "h", 2222, &key(ED2)).unwrap();
        let all = [file.clone()];
        assert_eq!(check(&all, "h", 22, &key(ED)).unwrap(), Verdict::Known);
        assert_eq!(check(&all, "h", 2222, &key(ED2)).unwrap(), Verdict::Known);
        assert_eq!(fs_err::read_to_string(&file).unwrap(), format!("h {ED}\n[h]:2222 {ED2}\n"));
        assert_eq!(fs_err::read_dir(dir.path().join("ssh")).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_an_error_not_an_empty_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
        assert!(check(&[path], "h", 22, &key(ED)).is_err());
    }
}
