//! What the process finds around itself, read once: environment, terminal, user.
//!
//! Nothing else in dmup reads the environment.

use std::io::IsTerminal;

use camino::Utf8PathBuf;

/// The environment as dmup uses it.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// `TIUP_HOME`, else `~/.tiup`.
    pub tiup_home: Utf8PathBuf,
    /// `TIUP_COMPONENT_DATA_DIR`, else `<TIUP_HOME>/storage/dm`.
    pub profile: Utf8PathBuf,
    /// `TIUP_MIRRORS`: another mirror than the one of `tiup.toml`.
    pub mirror: Option<String>,
    /// `HOME`.
    pub home: Utf8PathBuf,
    /// `USER` or `LOGNAME`; `root` when neither is set, as in a bare container.
    pub user: String,
    /// `SSH_AUTH_SOCK`.
    pub ssh_agent: Option<Utf8PathBuf>,
    /// `EDITOR`.
    pub editor: Option<String>,
    /// Standard output is a terminal and `NO_COLOR` is not set.
    pub colour: bool,
    /// Standard output is a terminal.
    pub stdout_is_terminal: bool,
    /// Standard error is a terminal.
    pub stderr_is_terminal: bool,
    /// Standard input is a terminal.
    pub stdin_is_terminal: bool,
    /// `DMUP_SUPERVISED`: with `--ssh none`, services are plain processes kept in this folder (playgrounds without systemd).
    pub supervised: Option<Utf8PathBuf>,
    /// `TIUP_NATIVE_SSH` is `true`, `1` or `enable`: hosts are reached with the system's ssh.
    pub native_ssh: bool,
    /// `TIUP_SSH_PATH`: the system's ssh; `ssh` when it is not set.
    pub ssh_program: Utf8PathBuf,
    /// `TIUP_LOG_PATH`, else `<TIUP_HOME>/logs`: debug logs of TiUP's manner.
    pub logs: Utf8PathBuf,
    /// `TIUP_AUDIT_ID`: ends the name of this command's entry in `audit`.
    pub audit_mark: Option<String>,
    /// Our own executable: sent to hosts as their agent.
    pub executable: Utf8PathBuf,
}

impl Surroundings {
    /// Reads the process's own environment.
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub fn from_process() -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let home = Utf8PathBuf::from(variable("HOME").unwrap_or_else(|| "/root".to_owned()));
        let tiup_home = variable("TIUP_HOME").map_or_else(|| home.join(".tiup"), Utf8PathBuf::from);
        let profile = variable("TIUP_COMPONENT_DATA_DIR")
            .map_or_else(|| tiup_home.join("storage/dm"), Utf8PathBuf::from);
        let executable = std::env::current_exe()
            .ok()
            .and_then(|path| Utf8PathBuf::from_path_buf(path).ok())
            .unwrap_or_else(|| Utf8PathBuf::from("/proc/self/exe"));
        let logs =
            variable("TIUP_LOG_PATH").map_or_else(|| tiup_home.join("logs"), Utf8PathBuf::from);
        let native_ssh = variable("TIUP_NATIVE_SSH")
            .is_some_and(|value| matches!(value.to_lowercase().as_str(), "true" | "1" | "enable"));
        Self {
            native_ssh,
            ssh_program: variable("TIUP_SSH_PATH").unwrap_or_else(|| "ssh".to_owned()).into(),
            logs,
            tiup_home,
            profile,
            mirror: variable("TIUP_MIRRORS"),
            audit_mark: variable("TIUP_AUDIT_ID"),
            home,
            user: variable("USER")
                .or_else(|| variable("LOGNAME"))
                .unwrap_or_else(|| "root".to_owned()),
            ssh_agent: variable("SSH_AUTH_SOCK").map(Utf8PathBuf::from),
            editor: variable("EDITOR"),
            colour: std::io::stdout().is_terminal() && variable("NO_COLOR").is_none(),
            stdout_is_terminal: std::io::stdout().is_terminal(),
            stderr_is_terminal: std::io::stderr().is_terminal(),
            stdin_is_terminal: std::io::stdin().is_terminal(),
            supervised: variable("DMUP_SUPERVISED").map(Utf8PathBuf::from),
            executable,
        }
    }
}
