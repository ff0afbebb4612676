//! An operator at a keyboard: runs the real `dmup` with a `TIUP_HOME` of its own and reads what it prints.

use std::fmt;
use std::io::Write;
use std::process::{Child, Command, Stdio};

use camino::{Utf8Path, Utf8PathBuf};

/// A desk with dmup on it.
#[derive(Clone, Debug)]
pub struct Operator {
    dmup: Utf8PathBuf,
    home: Utf8PathBuf,
    playground: Option<Utf8PathBuf>,
}

/// What a command came to.
#[derive(Clone, Debug)]
pub struct Said {
    /// The command line, for messages.
    pub line: String,
    /// Exit code; 128 + n for a signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "$ {}\n{}{}[exit {}]", self.line, self.stdout, self.stderr, self.code)
    }
}

impl Said {
    /// The same, if the command ended with 0.
    ///
    /// # Panics
    ///
    /// It did not; the message has all that it said.
    pub fn well(self) -> Self {
        self.with_code(0)
    }

    /// The same, if the command ended with this code.
    ///
    /// # Panics
    ///
    /// It did not; the message has all that it said.
    pub fn with_code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self}");
        self
    }
}

impl Operator {
    /// Sits down: `folder` holds `TIUP_HOME`, `HOME` and files of the operator.
    pub fn new(dmup: impl Into<Utf8PathBuf>, folder: &Utf8Path) -> std::io::Result<Self> {
        let home = folder.to_owned();
        fs_err::create_dir_all(home.join("tiup/storage/dm/packages"))?;
        fs_err::create_dir_all(home.join(".ssh"))?;
        Ok(Self { dmup: dmup.into(), home, playground: None })
    }

    /// A second desk that knows what this one knows now: copies of `TIUP_HOME` and of the known host keys.
    ///
    /// # Errors
    /// What could not be copied.
    pub fn twin(&self, folder: &Utf8Path) -> std::io::Result<Self> {
        let twin = Self { home: folder.to_owned(), ..self.clone() };
        fs_err::create_dir_all(folder)?;
        let from = [self.tiup_home(), self.home.join(".ssh")];
        let copied = Command::new("cp").arg("-a").args(from).arg(folder).status()?;
        if copied.success() { Ok(twin) } else { Err(std::io::Error::other("cp failed")) }
    }

    /// The same desk, where dmup is called by another name.
    ///
    /// # Errors
    /// The link could not be made.
    pub fn calling_it(&self, name: &str) -> std::io::Result<Self> {
        let folder = self.home.join("bin");
        fs_err::create_dir_all(&folder)?;
        let link = folder.join(name);
        if !link.exists() {
            fs_err::os::unix::fs::symlink(&self.dmup, &link)?;
        }
        Ok(Self { dmup: link, ..self.clone() })
    }

    /// From now on, with `--ssh none`, services are plain processes kept below this folder (`DMUP_SUPERVISED`).
    #[must_use]
    pub fn in_playground(mut self, folder: &Utf8Path) -> Self {
        self.playground = Some(folder.to_owned());
        self
    }

    /// Where the operator's files lie; also `HOME`.
    pub fn folder(&self) -> &Utf8Path {
        &self.home
    }

    /// `TIUP_HOME`.
    pub fn tiup_home(&self) -> Utf8PathBuf {
        self.home.join("tiup")
    }

    /// Where `deploy` looks for official packages.
    pub fn packages(&self) -> Utf8PathBuf {
        self.tiup_home().join("storage/dm/packages")
    }

    /// Where dmup keeps the certificates of a cluster with TLS.
    pub fn certificates(&self, cluster: &str) -> Utf8PathBuf {
        self.tiup_home().join(format!("storage/dm/clusters/{cluster}/tls"))
    }

    /// Types a command and waits for its end.
    pub fn run(&self, words: &[&str]) -> Said {
        self.run_with_input(words, "")
    }

    /// The same, with answers to its questions.
    pub fn run_with_input(&self, words: &[&str], input: &str) -> Said {
        let name = self.dmup.file_name().unwrap_or("dmup");
        let line = format!("{name} {}", words.join(" "));
        let mut child = match self.command(words).spawn() {
            Ok(child) => child,
            Err(error) => {
                let stderr = format!("start {}: {error}", self.dmup);
                return Said { line, code: -1, stdout: String::new(), stderr };
            }
        };
        if let Some(mut stdin) = child.stdin.take() {
            // A command that asks nothing has closed its end.
            drop(stdin.write_all(input.as_bytes()));
        }
        match child.wait_with_output() {
            Ok(output) => Said {
                line,
                code: code_of(output.status),
                stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            },
            Err(error) => Said { line, code: -1, stdout: String::new(), stderr: error.to_string() },
        }
    }

    /// Types a command and leaves it running, to be killed or interrupted.
    pub fn begin(&self, words: &[&str]) -> std::io::Result<Child> {
        // A shell ignores Ctrl-C for what it runs in the background, and that is inherited; nobody at a keyboard has it so.
        let mut command = Command::new("/usr/bin/env");
        command.arg("--default-signal=HUP,INT,QUIT,TERM").arg(&self.dmup);
        self.at_the_desk(command, words).spawn()
    }

    fn command(&self, words: &[&str]) -> Command {
        self.at_the_desk(Command::new(&self.dmup), words)
    }

    fn at_the_desk(&self, mut command: Command, words: &[&str]) -> Command {
        command
            .args(words)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", &self.home)
            .env("USER", "root")
            .env("TIUP_HOME", self.tiup_home())
            .env("NO_COLOR", "1")
            .envs(self.playground.iter().map(|folder| ("DMUP_SUPERVISED", folder)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

/// Exit code as shells print it.
pub fn code_of(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}
