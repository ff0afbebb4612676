//! The port to whatever starts and stops units on this host.
//!
//! Two back ends: [`systemd::Systemd`] for real hosts, [`supervised::Supervised`] for
//! playgrounds without it. Orders return when they are carried out, not when they are taken.

pub(crate) mod supervised;
pub(crate) mod systemd;

use std::time::Duration;

use dmup_core::ids::UnitName;
use dmup_core::inventory::UnitActive;
use dmup_wire::message::{Refusal, UnitAction};

/// A unit at one moment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct UnitSeen {
    pub(crate) active: UnitActive,
    pub(crate) sub_state: String,
    pub(crate) enabled: bool,
    /// Main process.
    pub(crate) pid: Option<u32>,
    pub(crate) restarts: u32,
    /// Unix milliseconds.
    pub(crate) active_since_ms: Option<i64>,
    /// The last stop or run ended with SIGKILL, by systemd's time limit or otherwise.
    pub(crate) killed: bool,
    /// How the last main process ended; none while one runs or if there was none.
    pub(crate) ended: Option<String>,
}

impl UnitSeen {
    /// No process of it is left and none is on its way.
    pub(crate) fn is_down(&self) -> bool {
        let down = match self.active {
            UnitActive::Inactive | UnitActive::Failed | UnitActive::Missing => true,
            UnitActive::Active | UnitActive::Activating | UnitActive::Deactivating => false,
        };
        down && self.pid.is_none()
    }

    /// In systemd's words: `activating (auto-restart)`.
    pub(crate) fn words(&self) -> String {
        let active = match self.active {
            UnitActive::Active => "active",
            UnitActive::Activating => "activating",
            UnitActive::Deactivating => "deactivating",
            UnitActive::Inactive => "inactive",
            UnitActive::Failed => "failed",
            UnitActive::Missing => "missing",
        };
        let ended = self
            .ended
            .as_deref()
            .map(|ended| format!(", last process {ended}"))
            .unwrap_or_default();
        format!("{active} ({}){ended}", self.sub_state)
    }
}

/// What can be asked of units.
pub(crate) trait Services: Send + Sync {
    /// Looks at units, all in one go, in the order asked.
    fn look(&self, units: &[UnitName]) -> Result<Vec<UnitSeen>, Refusal>;

    /// Carries an order out, or refuses with `TooSlow` at the limit: then the order is still under way.
    fn act(&self, unit: &UnitName, action: UnitAction, within: Duration) -> Result<(), Refusal>;

    /// Orders a start without waiting: after a stop that goes on, or from a unit that is ordered before it.
    fn start_later(&self, unit: &UnitName) -> Result<(), Refusal>;

    /// Forgets failures, so that neither `failed` nor a start limit stands in the way.
    fn forget_failures(&self, unit: &UnitName);

    /// Last lines of the unit's journal, oldest first.
    fn journal(&self, unit: &UnitName, lines: u32) -> Result<Vec<String>, Refusal>;

    /// Looks at one unit.
    fn look_at(&self, unit: &UnitName) -> Result<UnitSeen, Refusal> {
        let mut seen = self.look(std::slice::from_ref(unit))?;
        seen.pop().ok_or_else(|| {
            crate::refuse::refuse(
                dmup_wire::message::RefusalKind::System,
                format!("look at {unit}"),
                "there was no answer for it",
            )
        })
    }
}

/// The verb of an order, as systemctl has it.
pub(crate) fn verb(action: UnitAction) -> &'static str {
    match action {
        UnitAction::Start => "start",
        UnitAction::Stop => "stop",
        UnitAction::Restart => "restart",
        UnitAction::Enable => "enable",
        UnitAction::Disable => "disable",
    }
}
