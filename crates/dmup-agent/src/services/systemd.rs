//! systemd by way of `systemctl` and `journalctl`; every argument list of ours is in this file.
//!
//! Checked on systemd 252 (Debian 12). Properties and options used exist since 235 or
//! earlier (`NRestarts`), so RHEL 8 and later will do; on older ones `NRestarts` is missing and read as 0.
//! Unit names cannot begin with `-` (see [`UnitName`]), so nothing given can turn into an option.
//!
//! A user's systemd is spoken to over the socket in its runtime folder, whether or not the agent is part of a login
//! session and a D-Bus of the user runs: `/run/user/UID/systemd/private`. It runs while the user is logged in, and
//! always if the user may linger (`/var/lib/systemd/linger/NAME`).

use std::collections::HashMap;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::ids::UnitName;
use dmup_core::inventory::UnitActive;
use dmup_core::systemd::SystemdMode;
use dmup_wire::message::{Refusal, RefusalKind, UnitAction};
use rustix::time::{ClockId, clock_gettime};

use super::{Services, UnitSeen, verb};
use crate::accounts::Account;
use crate::refuse::{When, refuse, system};
use crate::run::{self, NotRun, Ran};

/// Questions and orders that wait for no process of a unit.
const QUICK: Duration = Duration::from_secs(30);

const SHOWN: &str = "LoadState,ActiveState,SubState,UnitFileState,MainPID,NRestarts,ActiveEnterTimestampMonotonic,Result,ExecMainCode,ExecMainStatus,NeedDaemonReload";

/// An instance of systemd.
#[derive(Clone, Debug)]
pub(crate) enum Systemd {
    /// The machine's own.
    System,
    /// That of the user that we are.
    User {
        /// Whose.
        name: String,
        /// `XDG_RUNTIME_DIR`: there it is found.
        runtime: Utf8PathBuf,
    },
}

/// The number that `systemctl --version` begins with.
pub(crate) fn version() -> Option<u32> {
    let mut command = run::command("systemctl").ok()?;
    command.arg("--version");
    let ran = run::run(command, Duration::from_secs(5)).ok()?;
    ran.stdout.split_whitespace().nth(1)?.parse().ok()
}

impl Systemd {
    /// The one that runs clusters of this mode, for an agent that runs as `me`.
    pub(crate) fn of(mode: SystemdMode, me: &Account) -> Self {
        match mode {
            SystemdMode::System => Self::System,
            SystemdMode::User => Self::User {
                name: me.name.clone(),
                runtime: format!("/run/user/{}", me.uid).into(),
            },
        }
    }

    /// Refuses if services would not run, or not go on when nobody is logged in.
    pub(crate) fn check_lasting(&self) -> Result<(), Refusal> {
        let Self::User { name, .. } = self else { return Ok(()) };
        self.check_running()?;
        if Utf8Path::new("/var/lib/systemd/linger").join(name).exists() {
            return Ok(());
        }
        Err(refuse(
            RefusalKind::Precondition,
            "start services that last",
            format!(
                "the systemd of {name} runs only while {name} is logged in: `loginctl enable-linger {name}`, by root, keeps it and its services running"
            ),
        ))
    }

    /// Refuses if there is nobody to take orders.
    fn check_running(&self) -> Result<(), Refusal> {
        let Self::User { name, runtime } = self else { return Ok(()) };
        if runtime.join("systemd/private").exists() {
            return Ok(());
        }
        Err(refuse(
            RefusalKind::Precondition,
            "give orders to systemd",
            format!(
                "the systemd of {name} does not run ({runtime}/systemd/private is not there): `loginctl enable-linger {name}`, by root, starts it and keeps it running"
            ),
        ))
    }

    /// Makes it read its unit files again.
    pub(crate) fn reload(&self) -> Result<(), Refusal> {
        self.systemctl(&["daemon-reload"], QUICK).map(drop)
    }

    /// Acts on a unit of ours that is no DM service: a guard's timer and its services.
    pub(crate) fn act_on_guard(&self, action: &str, unit: &str) -> Result<(), Refusal> {
        self.systemctl(&[action, unit], QUICK).map(drop)
    }

    /// Whether a timer runs and has not let its service begin since it was started (anew). One that cannot be asked does not.
    pub(crate) fn waits(&self, timer: &str) -> bool {
        let ran = self.systemctl(&["show", "--value", "-p", "SubState", timer], QUICK);
        ran.is_ok_and(|ran| ran.stdout.trim() == "waiting")
    }

    fn systemctl(&self, arguments: &[&str], within: Duration) -> Result<Ran, Refusal> {
        self.check_running()?;
        // Without a password prompt that nobody would answer, and without a pager.
        let quiet = match self {
            Self::System => &["--no-ask-password", "--no-pager"][..],
            Self::User { .. } => &["--user", "--no-ask-password", "--no-pager"],
        };
        let attempted = || format!("systemctl {}", arguments.join(" "));
        let ran = self.ran("systemctl", &[quiet, arguments].concat(), within).map_err(
            |mut refusal| {
                refusal.attempted = attempted();
                refusal
            },
        )?;
        if ran.status.success() {
            return Ok(ran);
        }
        let words = ran.words();
        let denied = ["Interactive authentication required", "Access denied", "Permission denied"]
            .iter()
            .any(|sign| words.contains(sign));
        let kind = if denied { RefusalKind::Permission } else { RefusalKind::System };
        Err(refuse(kind, attempted(), words))
    }

    fn ran(&self, program: &str, arguments: &[&str], within: Duration) -> Result<Ran, Refusal> {
        let attempted = || format!("{program} {}", arguments.join(" "));
        let mut command = run::command(program).when(attempted)?;
        command.args(arguments);
        if let Self::User { runtime, .. } = self {
            command.env("XDG_RUNTIME_DIR", runtime);
        }
        run::run(command, within).map_err(|error| match error {
            NotRun::Spawn(error) => system(attempted(), &error),
            NotRun::TooSlow(limit) => refuse(
                RefusalKind::TooSlow,
                attempted(),
                format!("not done after {:.1} s, and still under way", limit.as_secs_f64()),
            ),
        })
    }

    /// A reload costs a second on large hosts, so only when systemd itself says it is due.
    fn reload_if_needed(&self, unit: &UnitName) -> Result<(), Refusal> {
        let shown = self.show(std::slice::from_ref(unit))?;
        let due = shown.iter().any(|properties| {
            properties.get("NeedDaemonReload").is_some_and(|value| value == "yes")
                || properties.get("LoadState").is_none_or(|value| value != "loaded")
        });
        if due { self.reload() } else { Ok(()) }
    }

    fn show(&self, units: &[UnitName]) -> Result<Vec<HashMap<String, String>>, Refusal> {
        let mut arguments = vec!["show", "-p", SHOWN];
        arguments.extend(units.iter().map(UnitName::as_str));
        let ran = self.systemctl(&arguments, QUICK)?;
        let blocks = parse_blocks(&ran.stdout);
        if blocks.len() == units.len() {
            return Ok(blocks);
        }
        let seen = format!("{} units were asked for, {} answered", units.len(), blocks.len());
        Err(refuse(RefusalKind::System, "systemctl show", seen))
    }
}

impl Services for Systemd {
    fn look(&self, units: &[UnitName]) -> Result<Vec<UnitSeen>, Refusal> {
        if units.is_empty() {
            return Ok(Vec::new());
        }
        let shown = self.show(units)?;
        let (wall, up) = (clock_ms(ClockId::Realtime), clock_ms(ClockId::Monotonic));
        Ok(shown.iter().map(|properties| seen(properties, wall - up)).collect())
    }

    fn act(&self, unit: &UnitName, action: UnitAction, within: Duration) -> Result<(), Refusal> {
        let tears_down = match action {
            UnitAction::Stop | UnitAction::Disable => true,
            UnitAction::Start | UnitAction::Restart | UnitAction::Enable => {
                self.reload_if_needed(unit)?;
                false
            }
        };
        match self.systemctl(&[verb(action), unit.as_str()], within) {
            // A unit that systemd does not know is neither running nor enabled: as asked.
            Err(refusal)
                if tears_down
                    && ["not loaded", "does not exist"]
                        .iter()
                        .any(|sign| refusal.observed.contains(sign)) =>
            {
                Ok(())
            }
            other => other.map(drop),
        }
    }

    fn start_later(&self, unit: &UnitName) -> Result<(), Refusal> {
        self.systemctl(&["--no-block", "start", unit.as_str()], QUICK).map(drop)
    }

    fn forget_failures(&self, unit: &UnitName) {
        // Refused for a unit that is not loaded: it has no failures then.
        self.systemctl(&["reset-failed", unit.as_str()], QUICK).ok();
    }

    fn journal(&self, unit: &UnitName, lines: u32) -> Result<Vec<String>, Refusal> {
        let number = lines.to_string();
        let of = match self {
            Self::System => "--unit",
            Self::User { .. } => "--user-unit",
        };
        let ran = self.ran(
            "journalctl",
            &["-q", of, unit.as_str(), "-n", &number, "--no-pager", "-o", "short-iso"],
            QUICK,
        )?;
        if !ran.status.success() {
            return Err(refuse(
                RefusalKind::System,
                format!("read the journal of {unit}"),
                ran.words(),
            ));
        }
        Ok(ran.stdout.lines().map(str::to_owned).collect())
    }
}

/// What a text of `systemctl show` tells, for tests with hostile input.
pub(crate) fn read_shown(text: &str) -> Vec<UnitSeen> {
    parse_blocks(text).iter().map(|properties| seen(properties, 1_800_000_000_000)).collect()
}

/// `Name=value` lines; an empty line between units.
fn parse_blocks(text: &str) -> Vec<HashMap<String, String>> {
    text.split("\n\n")
        .map(|block| {
            block
                .lines()
                .filter_map(|line| line.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect::<HashMap<_, _>>()
        })
        .filter(|block| !block.is_empty())
        .collect()
}

fn seen(properties: &HashMap<String, String>, boot_ms: i64) -> UnitSeen {
    let text = |name: &str| properties.get(name).map_or("", String::as_str);
    let number = |name: &str| text(name).parse::<u64>().unwrap_or(0);
    let active = match (text("LoadState"), text("ActiveState")) {
        ("not-found", "inactive") => UnitActive::Missing,
        // `reloading`, `refreshing` and `maintenance` have a running process.
        (_, "active" | "reloading" | "refreshing" | "maintenance") => UnitActive::Active,
        (_, "activating") => UnitActive::Activating,
        (_, "deactivating") => UnitActive::Deactivating,
        (_, "failed") => UnitActive::Failed,
        (_, _) => UnitActive::Inactive,
    };
    let pid = u32::try_from(number("MainPID")).ok().filter(|pid| *pid != 0);
    let since = i64::try_from(number("ActiveEnterTimestampMonotonic") / 1000).unwrap_or(0);
    let status = number("ExecMainStatus");
    // man 2 waitid: CLD_EXITED 1, CLD_KILLED 2, CLD_DUMPED 3.
    let ended = match text("ExecMainCode") {
        "1" => Some(format!("exited, status={status}")),
        "2" => Some(format!("killed, signal={status}")),
        "3" => Some(format!("dumped core, signal={status}")),
        _ => None,
    };
    UnitSeen {
        active,
        sub_state: text("SubState").to_owned(),
        enabled: text("UnitFileState") == "enabled",
        pid,
        restarts: u32::try_from(number("NRestarts")).unwrap_or(u32::MAX),
        active_since_ms: (since > 0 && active == UnitActive::Active).then_some(boot_ms + since),
        killed: text("Result") == "timeout" || (text("ExecMainCode") == "2" && status == 9),
        ended: if pid.is_some() { None } else { ended },
    }
}

fn clock_ms(clock: ClockId) -> i64 {
    let now = clock_gettime(clock);
    now.tv_sec * 1000 + now.tv_nsec / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    /// systemd 252: `systemctl show -p … running.service failed.service no-such.service`.
    const RECORDED: &str = "\
MainPID=812
NRestarts=2
Result=success
ExecMainCode=0
ExecMainStatus=0
LoadState=loaded
ActiveState=active
SubState=running
UnitFileState=enabled
ActiveEnterTimestampMonotonic=5000000
NeedDaemonReload=no

MainPID=0
NRestarts=0
Result=timeout
ExecMainCode=2
ExecMainStatus=9
LoadState=loaded
ActiveState=failed
SubState=failed
UnitFileState=disabled
ActiveEnterTimestampMonotonic=4000000
NeedDaemonReload=no

MainPID=0
LoadState=not-found
ActiveState=inactive
SubState=dead
UnitFileState=
";

    #[test]
    fn a_users_systemd_that_does_not_run_or_will_not_go_on_is_told_with_what_to_type() {
        let keep = tempfile::tempdir().unwrap();
        let runtime = Utf8PathBuf::from_path_buf(keep.path().to_owned()).unwrap();
        let systemd = Systemd::User { name: "no-such-user".to_owned(), runtime: runtime.clone() };
        let unit = UnitName::new("dm-worker-1.service").unwrap();
        let refused = [systemd.look_at(&unit).unwrap_err(), systemd.check_lasting().unwrap_err()];
        for refusal in refused {
            assert!(
                refusal.observed.starts_with("the systemd of no-such-user does not run"),
                "{refusal}"
            );
            assert!(refusal.observed.contains("loginctl enable-linger no-such-user"), "{refusal}");
        }
        fs_err::create_dir(runtime.join("systemd")).unwrap();
        fs_err::write(runtime.join("systemd/private"), "").unwrap();
        let refusal = systemd.check_lasting().unwrap_err();
        assert!(
            refusal.observed.contains("runs only while no-such-user is logged in"),
            "{refusal}"
        );
        assert!(refusal.observed.contains("loginctl enable-linger no-such-user"), "{refusal}");
        assert_eq!(Systemd::System.check_lasting(), Ok(()));
    }

    #[test]
    fn a_running_a_killed_and_a_missing_unit_are_told_apart() {
        let seen: Vec<UnitSeen> =
            parse_blocks(RECORDED).iter().map(|block| seen(block, 1_000_000)).collect();
        let [runs, failed, missing] = &seen[..] else { panic!("{seen:?}") };
        assert_eq!((runs.active, runs.pid, runs.restarts), (UnitActive::Active, Some(812), 2));
        assert_eq!(runs.active_since_ms, Some(1_005_000));
        assert!(runs.enabled && !runs.killed && !runs.is_down());
        assert_eq!(failed.words(), "failed (failed), last process killed, signal=9");
        assert!(failed.killed && failed.is_down() && failed.active_since_ms.is_none());
        assert!(missing.active == UnitActive::Missing && missing.is_down());
    }
}
