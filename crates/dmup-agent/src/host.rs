//! What the host is, and where things lie on it.
//!
//! Every fact may be missing (an empty chroot has none of the files): then it is empty, never an error.

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::systemd::{OF_SYSTEM, OF_USER, SystemdMode};
use dmup_wire::PROTOCOL;
use dmup_wire::message::Hello;
use fs_err as fs;
use rustix::time::{ClockId, clock_gettime};

use crate::accounts::Account;
use crate::services::supervised::Supervised;
use crate::services::systemd::{self, Systemd};

/// What is ours in a home folder.
const OURS: &str = ".dmup";

/// Who runs units, and where they and our own things lie on a host.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// Who starts, stops, and wakes guards up.
    pub(crate) runner: Runner,
    /// What the controller takes for the folder of unit files.
    pub(crate) mode: SystemdMode,
    /// Unit files.
    pub(crate) units: Utf8PathBuf,
    /// Records of guards.
    pub(crate) guards: Utf8PathBuf,
    /// Copies of this program for guards.
    pub(crate) agents: Utf8PathBuf,
    /// Records of leases: with the deploy user, so that they need no root and outlive every program. None without a home.
    pub(crate) leases: Option<Utf8PathBuf>,
}

/// Who runs units.
#[derive(Clone, Debug)]
pub(crate) enum Runner {
    /// One of the host's instances of systemd.
    Systemd(Systemd),
    /// Nobody but us: plain processes below this folder, as on a playground.
    Supervised(Utf8PathBuf),
}

impl Places {
    /// Of a host with systemd, for an agent that runs as this user.
    pub(crate) fn of_systemd(mode: SystemdMode, me: &Account) -> Self {
        let home = (me.home.is_absolute() && me.home != "/").then_some(&me.home);
        let (units, agents) = match mode {
            SystemdMode::System => (OF_SYSTEM.into(), Utf8PathBuf::from("/var/lib/dmup")),
            SystemdMode::User => (me.home.join(OF_USER), me.home.join(OURS)),
        };
        Self {
            runner: Runner::Systemd(Systemd::of(mode, me)),
            mode,
            units,
            guards: agents.join("guards"),
            agents,
            leases: home.map(|home| home.join(OURS).join("leases")),
        }
    }

    /// Of a playground.
    pub(crate) fn supervised(mode: SystemdMode, dir: &Utf8Path) -> Self {
        Self {
            runner: Runner::Supervised(dir.to_owned()),
            mode,
            units: Supervised::units(dir),
            guards: dir.join("guards"),
            agents: dir.to_owned(),
            leases: Some(dir.join("leases")),
        }
    }

    /// Where a path really lies: unit files of a playground are not those of the machine, and not all homes are below `/home`.
    pub(crate) fn real(&self, path: &Utf8Path) -> Utf8PathBuf {
        match self.mode.below_unit_dir(path) {
            None => path.to_owned(),
            Some(below) if below == "" => self.units.clone(),
            Some(below) => self.units.join(below),
        }
    }

    /// The folder of links to what is started at boot.
    pub(crate) fn wanted_at_boot(&self) -> Utf8PathBuf {
        self.units.join(format!("{}.wants", self.mode.boot_target()))
    }
}

/// Now, in Unix milliseconds.
pub(crate) fn clock_ms() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec * 1000 + now.tv_nsec / 1_000_000
}

/// Changes with every boot.
pub(crate) fn boot_id() -> String {
    line_of("/proc/sys/kernel/random/boot_id")
}

fn line_of(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().chars().take(255).collect()
}

/// The first word to the controller.
pub(crate) fn hello(me: &Account, places: &Places) -> Hello {
    let uname = rustix::system::uname();
    let text = |of: &std::ffi::CStr| of.to_string_lossy().into_owned();
    Hello {
        protocol: PROTOCOL,
        dmup: env!("CARGO_PKG_VERSION").to_owned(),
        machine_id: line_of("/etc/machine-id"),
        boot_id: boot_id(),
        hostname: text(uname.nodename()),
        clock_ms: clock_ms(),
        arch: text(uname.machine()),
        os: text(uname.sysname()).to_lowercase(),
        systemd: match &places.runner {
            Runner::Supervised(_) => None,
            Runner::Systemd(_) => systemd::version(),
        },
        systemd_mode: places.mode,
        user: me.name.clone(),
        home: me.home.clone(),
    }
}
