//! Getting the agent onto a host and started, with fixed lines of POSIX sh.
//!
//! The agent is dmup itself, kept on the host as `<place>/.dmup/agent/<SHA-256>`. Places are the login user's home,
//! then the folders given (deploy folders): the first that is ours and may execute (`noexec` homes happen). The
//! file's hash is checked before each use.
//!
//! ```text
//! look line ─► "run": the agent is there and starts on this very channel          one round trip
//!          └─► "send ARCH PLACE" ─► send line, the file as its input ─► look line again
//! ```
//!
//! Nothing from outside is in these lines but our own digests and, quoted, the folders. They contain no
//! `'`, `\`, `!` or newline, so that any login shell hands them on to `sh` unchanged. Whatever the
//! host prints before our mark (shell start-up files) is skipped, up to 64 KiB.

use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::digest::Digest;
use dmup_core::systemd::SystemdMode;
use dmup_wire::agent_arguments;

use crate::agent_session::Complaints;
use crate::quote::quote;
use crate::ssh::{ByteStream, Connection, Piece, ReachError, ReachLimits, StreamReader};

/// Begins the one line that is for us.
const MARK: &str = "dmup-bootstrap:";
/// What a host may print before it.
const MAX_NOISE: usize = 64 << 10;
/// Architectures that agents are looked for, in the words of `uname -m`.
const ARCHITECTURES: [&str; 2] = ["x86_64", "aarch64"];
/// Bytes of the agent sent at once.
const PIECE: usize = 256 << 10;

/// Runs as `sh -c … dmup PLACE…`; `@CASES@` maps `uname -m` to a digest, `@ARGUMENTS@` are the agent's.
/// `[ -O` (is it ours) is not in POSIX but in dash, bash, ksh and busybox; without it no place is found. An empty file with the x bit runs as an empty script
/// wherever files may be executed at all.
const LOOK: &str = r#"PATH=$PATH:/usr/local/bin:/usr/bin:/bin; export PATH; umask 077; m=$(uname -m); case $m in @CASES@ *) d=;; esac; if [ -z "$d" ]; then echo; echo "dmup-bootstrap: arch $m"; exit 0; fi; for b in "$HOME" "$@"; do f=$b/.dmup/agent/$d; if [ -f "$f" ] && [ -O "$f" ] && [ -x "$f" ]; then s=$(sha256sum < "$f"); case $s in "$d "*) echo; echo "dmup-bootstrap: run"; exec "$f" agent @ARGUMENTS@;; esac; rm -f "$f"; fi; done; for b in "$HOME" "$@"; do a=$b/.dmup/agent; t=$a/.try.$$; if [ -d "$b" ] && mkdir -p "$a" && [ -O "$a" ] && : > "$t" && chmod 700 "$t" && "$t"; then rm -f "$t"; echo; echo "dmup-bootstrap: send $m $a"; exit 0; fi; rm -f "$t"; done; echo; echo "dmup-bootstrap: noplace""#;

/// Runs as `sh -c … dmup PLACE DIGEST` with the file as input. Agents not brought within 30 days go.
const SEND: &str = r#"PATH=$PATH:/usr/local/bin:/usr/bin:/bin; export PATH; umask 077; t=$1/.part-$2.$$; if cat > "$t"; then s=$(sha256sum < "$t"); case $s in "$2 "*) if chmod 700 "$t" && mv -f "$t" "$1/$2"; then echo; echo "dmup-bootstrap: stored"; find "$1" -maxdepth 1 -type f -mtime +30 -exec rm -f {} + ; exit 0; fi;; *) echo; echo "dmup-bootstrap: damaged";; esac; fi; rm -f "$t"; exit 1"#;

/// The agents at hand: this very program, and `dmup-<arch>` beside it for other machines.
#[derive(Clone)]
pub struct Agents {
    program: Utf8PathBuf,
    of: Vec<Agent>,
}

#[derive(Clone)]
struct Agent {
    arch: &'static str,
    digest: Digest,
    content: Arc<Vec<u8>>,
}

impl Agents {
    /// Reads and hashes them. Blocks for some ten milliseconds.
    ///
    /// # Errors
    ///
    /// `program` cannot be read.
    pub fn load(program: &Utf8Path) -> std::io::Result<Self> {
        let mut of = Vec::new();
        for arch in ARCHITECTURES {
            let content = if arch == std::env::consts::ARCH {
                fs_err::read(program)?
            } else {
                match fs_err::read(other_program(program, arch)) {
                    Ok(content) => content,
                    // Only a host of that kind needs it, and then it is an error that says so.
                    Err(_) => continue,
                }
            };
            of.push(Agent { arch, digest: Digest::of(&content), content: Arc::new(content) });
        }
        Ok(Self { program: program.to_owned(), of })
    }

    fn for_arch(&self, arch: &str) -> Option<&Agent> {
        self.of.iter().find(|agent| agent.arch == arch)
    }

    fn look_line(&self, places: &[Utf8PathBuf], arguments: &[&str]) -> Result<String, String> {
        let cases: Vec<String> =
            self.of.iter().map(|a| format!("{}) d={};;", a.arch, a.digest.as_str())).collect();
        let script =
            LOOK.replace("@CASES@", &cases.join(" ")).replace("@ARGUMENTS@", &arguments.join(" "));
        line(&script, places.iter().map(|place| place.as_str()))
    }
}

fn other_program(program: &Utf8Path, arch: &str) -> Utf8PathBuf {
    program.with_file_name(format!("dmup-{arch}"))
}

fn line<'a>(script: &str, words: impl Iterator<Item = &'a str>) -> Result<String, String> {
    let mut line =
        format!("sh -c {} dmup", quote(script).expect("written so that it can be quoted"));
    for word in words {
        line.push(' ');
        line.push_str(&quote(word).map_err(|error| error.to_string())?);
    }
    Ok(line)
}

/// Starts the agent for clusters of that mode, sending it first if it is not there. The stream begins with its `Hello`.
///
/// # Errors
///
/// [`ReachError::Bootstrap`], or the connection's own.
pub async fn start_agent(
    connection: &Connection,
    agents: &Agents,
    systemd: SystemdMode,
    places: &[Utf8PathBuf],
    limits: &ReachLimits,
) -> Result<ByteStream, ReachError> {
    let arguments = agent_arguments(systemd);
    if connection.is_local() {
        return connection.run_agent_locally(&agents.program, arguments);
    }
    let failed = |observed: String| bootstrap_error(connection, observed);
    let look = agents.look_line(places, arguments).map_err(failed)?;
    for sent_before in [false, true] {
        let mut stream = connection.run_line(&look).await?;
        let said = within(limits.bootstrap, connection, read_mark(&mut stream.reader)).await?;
        let (verb, rest) = said.split_once(' ').unwrap_or((&said, ""));
        match verb {
            "run" => return Ok(stream),
            "send" if sent_before => {
                return Err(failed(format!("it was sent, but cannot be executed ({rest})")));
            }
            "send" => {
                let (arch, place) = rest.split_once(' ').unwrap_or((rest, ""));
                let agent = agents
                    .for_arch(arch)
                    .ok_or_else(|| failed(format!("it asks for an agent for {arch:?}")))?;
                within(limits.send, connection, send(connection, agent, place)).await?;
            }
            "arch" => {
                return Err(failed(format!(
                    "it is a {rest} machine, and there is no {} for it",
                    other_program(&agents.program, rest)
                )));
            }
            "noplace" => {
                let tried: Vec<_> = places.iter().map(|place| place.as_str()).collect();
                return Err(failed(format!(
                    "neither the home folder nor {} can hold a program and execute it (full, read-only, noexec, not ours?)",
                    if tried.is_empty() { "any other place".to_owned() } else { tried.join(", ") }
                )));
            }
            other => return Err(failed(format!("it answered {other:?}"))),
        }
    }
    Err(failed("it is not there although it was sent".to_owned()))
}

fn bootstrap_error(connection: &Connection, observed: String) -> ReachError {
    ReachError::Bootstrap { address: connection.address(), observed }
}

/// Turns a failed phase into an error of the right kind, and bounds it.
async fn within<T>(
    limit: std::time::Duration,
    connection: &Connection,
    phase: impl Future<Output = Result<T, Failed>>,
) -> Result<T, ReachError> {
    match tokio::time::timeout(limit, phase).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(Failed::Reach(error))) => Err(error),
        // ssh ended before the host said anything: what it printed is its own.
        Ok(Err(Failed::Ended { observed, silent: true })) if connection.is_system_ssh() => {
            Err(ReachError::SystemSsh { address: connection.address(), observed })
        }
        Ok(Err(Failed::Ended { observed, .. })) => Err(bootstrap_error(connection, observed)),
        Err(_) => Err(bootstrap_error(connection, format!("no answer within {limit:?}"))),
    }
}

enum Failed {
    Reach(ReachError),
    Ended {
        observed: String,
        /// It had printed nothing.
        silent: bool,
    },
}

/// Skips noise up to our mark and returns the rest of that line; what follows it stays in the reader.
async fn read_mark(reader: &mut StreamReader) -> Result<String, Failed> {
    let mut seen = Vec::new();
    let mut complaints = Complaints::default();
    loop {
        match reader.next().await {
            Piece::Out(bytes) => seen.extend(bytes),
            Piece::Err(bytes) => {
                complaints.add(&bytes);
                continue;
            }
            Piece::Ended(how) => {
                let noise = String::from_utf8_lossy(&seen[..seen.len().min(200)]).into_owned();
                let words = if seen.is_empty() {
                    how
                } else {
                    format!("{how}, after it printed {noise:?}")
                };
                return Err(Failed::Ended {
                    observed: complaints.after(&words),
                    silent: seen.is_empty(),
                });
            }
        }
        if let Some((said, rest)) = after_mark(&seen) {
            reader.push_back(rest);
            return Ok(said);
        }
        if seen.len() > MAX_NOISE {
            let noise = String::from_utf8_lossy(&seen[..200]).into_owned();
            return Err(Failed::Ended {
                observed: format!(
                    "its shell prints more than {MAX_NOISE} bytes before it runs a command, beginning with {noise:?}"
                ),
                silent: false,
            });
        }
    }
}

/// A whole line that begins with the mark: what it says, and what comes after it.
fn after_mark(seen: &[u8]) -> Option<(String, Vec<u8>)> {
    let mut start = 0;
    while let Some(length) = seen[start..].iter().position(|byte| *byte == b'\n') {
        let line = &seen[start..start + length];
        start += length + 1;
        if let Some(said) = line.strip_prefix(MARK.as_bytes()) {
            let said = String::from_utf8_lossy(said).trim().to_owned();
            return Some((said, seen[start..].to_vec()));
        }
    }
    None
}

async fn send(connection: &Connection, agent: &Agent, place: &str) -> Result<(), Failed> {
    let failed = |observed: String| Failed::Reach(bootstrap_error(connection, observed));
    let words = [place, agent.digest.as_str()];
    let line = line(SEND, words.into_iter()).map_err(failed)?;
    let ByteStream { mut reader, mut writer } =
        connection.run_line(&line).await.map_err(Failed::Reach)?;
    let writing = async {
        for piece in agent.content.chunks(PIECE) {
            writer.write(piece.to_vec()).await?;
        }
        writer.finish().await
    };
    let reading = read_mark(&mut reader);
    tokio::pin!(writing, reading);
    let mut written = false;
    // The reader decides: a full disk ends the program, while a writer alone would wait for ever.
    let said = loop {
        tokio::select! {
            biased;
            said = &mut reading => break said?,
            // A failed write has its reason on the other half.
            _ = &mut writing, if !written => written = true,
        }
    };
    if said == "stored" {
        Ok(())
    } else {
        Err(failed(format!("what arrived in {place} is not what was sent: {said}")))
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn agents(content: &str) -> Agents {
        let arch = ARCHITECTURES.into_iter().find(|a| *a == std::env::consts::ARCH).unwrap();
        let content = Arc::new(content.as_bytes().to_vec());
        let agent = Agent { arch, digest: Digest::of(&content), content };
        Agents { program: "/opt/dmup".into(), of: vec![agent] }
    }

    fn shell(line: &str, home: &Utf8Path, input: &[u8]) -> String {
        use std::io::Write as _;
        let mut child = Command::new("sh")
            .args(["-c", line])
            .env("HOME", home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A script that does not read may be gone already.
        drop(child.stdin.take().unwrap().write_all(input));
        let out = child.wait_with_output().unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    fn said(output: &str) -> (String, String) {
        let (said, rest) = after_mark(output.as_bytes()).expect(output);
        (said, String::from_utf8(rest).unwrap())
    }

    fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
        (dir, path)
    }

    #[test]
    fn the_lines_can_be_quoted_for_every_login_shell() {
        assert!(quote(LOOK).is_ok());
        assert!(quote(SEND).is_ok());
    }

    #[test]
    fn an_absent_agent_is_asked_for_stored_and_then_run() {
        let (_dir, home) = folder();
        let agents = agents("#!/bin/sh\necho greeting $1\n");
        let look = agents.look_line(&[], &[]).unwrap();
        let place = home.join(".dmup/agent");
        let (asked, _) = said(&shell(&look, &home, b""));
        assert_eq!(asked, format!("send {} {place}", std::env::consts::ARCH));

        let digest = agents.of[0].digest.as_str();
        let send = line(SEND, [place.as_str(), digest].into_iter()).unwrap();
        assert_eq!(said(&shell(&send, &home, &agents.of[0].content)).0, "stored");
        assert_eq!(
            said(&shell(&look, &home, b"")),
            ("run".to_owned(), "greeting agent\n".to_owned())
        );
        assert_eq!(fs_err::read_dir(&place).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn a_file_that_is_not_what_its_name_says_is_not_run() {
        let (_dir, home) = folder();
        let agents = agents("#!/bin/sh\necho good\n");
        let place = home.join(".dmup/agent");
        fs_err::create_dir_all(&place).unwrap();
        let bad = place.join(agents.of[0].digest.as_str());
        fs_err::write(&bad, "#!/bin/sh\necho evil\n").unwrap();
        std::process::Command::new("chmod").args(["700", bad.as_str()]).status().unwrap();
        let (asked, rest) = said(&shell(&agents.look_line(&[], &[]).unwrap(), &home, b""));
        assert!(asked.starts_with("send "), "{asked}");
        assert!(!rest.contains("evil"));
        assert!(!bad.exists());
    }

    #[test]
    fn what_arrives_damaged_is_not_stored() {
        let (_dir, home) = folder();
        let agents = agents("#!/bin/sh\n");
        let send = line(SEND, [home.as_str(), agents.of[0].digest.as_str()].into_iter()).unwrap();
        assert_eq!(said(&shell(&send, &home, b"half")).0, "damaged");
        assert_eq!(fs_err::read_dir(&home).unwrap().count(), 0);
    }

    #[test]
    fn the_deploy_folder_serves_where_the_home_folder_does_not() {
        let (_dir, root) = folder();
        let deploy = root.join("dm deploy $(touch x)");
        fs_err::create_dir(&deploy).unwrap();
        let agents = agents("#!/bin/sh\n");
        let look = agents.look_line(std::slice::from_ref(&deploy), &[]).unwrap();
        let (asked, _) = said(&shell(&look, "/dev/null".into(), b""));
        assert!(asked.ends_with(&format!(" {deploy}/.dmup/agent")), "{asked}");
        let (asked, _) =
            said(&shell(&agents.look_line(&[], &[]).unwrap(), "/dev/null".into(), b""));
        assert_eq!(asked, "noplace");
    }

    #[test]
    fn a_host_of_another_kind_says_so() {
        let (_dir, home) = folder();
        let none = Agents { program: "/opt/dmup".into(), of: Vec::new() };
        let (asked, _) = said(&shell(&none.look_line(&[], &[]).unwrap(), &home, b""));
        assert_eq!(asked, format!("arch {}", std::env::consts::ARCH));
    }

    #[test]
    fn noise_before_the_mark_is_skipped_even_without_a_newline() {
        let output = format!("Welcome!\nlast login \n{MARK} run\n\0\0binary");
        assert_eq!(said(&output), ("run".to_owned(), "\0\0binary".to_owned()));
        assert!(after_mark(format!("x {MARK} run\n").as_bytes()).is_none());
        assert!(after_mark(format!("{MARK} ru").as_bytes()).is_none());
    }
}
