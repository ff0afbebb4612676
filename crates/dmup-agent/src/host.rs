//! What the host is, and where things lie on it.
//!
//! Every fact may be missing (an empty chroot has none of the files): then it is empty, never an error.

use camino::{Utf8Path, Utf8PathBuf};
use dmup_wire::PROTOCOL;
use dmup_wire::message::Hello;
use fs_err as fs;
use rustix::time::{ClockId, clock_gettime};

use crate::accounts::Account;
use crate::services::supervised::Supervised;
use crate::services::systemd;

/// Where unit files of a real host lie, as TiUP puts them.
const UNITS: &str = "/etc/systemd/system";

/// Where our own things lie on a host.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// Unit files.
    pub(crate) units: Utf8PathBuf,
    /// Records of guards.
    pub(crate) guards: Utf8PathBuf,
    /// Copies of this program for guards.
    pub(crate) agents: Utf8PathBuf,
    /// The playground, if units are plain processes.
    pub(crate) supervised: Option<Utf8PathBuf>,
}

impl Places {
    /// Of a host with systemd.
    pub(crate) fn system() -> Self {
        Self {
            units: UNITS.into(),
            guards: "/var/lib/dmup/guards".into(),
            agents: "/var/lib/dmup".into(),
            supervised: None,
        }
    }

    /// Of a playground.
    pub(crate) fn supervised(dir: &Utf8Path) -> Self {
        Self {
            units: Supervised::units(dir),
            guards: dir.join("guards"),
            agents: dir.to_owned(),
            supervised: Some(dir.to_owned()),
        }
    }

    /// Where leases lie: with the deploy user, so that they need no root and outlive every program. None without a home.
    pub(crate) fn leases(&self, home: &Utf8Path) -> Option<Utf8PathBuf> {
        match &self.supervised {
            Some(dir) => Some(dir.join("leases")),
            None => (home.is_absolute() && home != "/").then(|| home.join(".dmup/leases")),
        }
    }

    /// Where a path really lies: unit files of a playground are not those of the machine.
    pub(crate) fn real(&self, path: &Utf8Path) -> Utf8PathBuf {
        match (&self.supervised, path.strip_prefix(UNITS)) {
            (Some(_), Ok(below)) => self.units.join(below),
            (_, _) => path.to_owned(),
        }
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
        systemd: if places.supervised.is_some() { None } else { systemd::version() },
        user: me.name.clone(),
        home: me.home.clone(),
    }
}
