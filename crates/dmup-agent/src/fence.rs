//! Orders that come late: whose conversation another has followed on the same instance, they are refused.
//!
//! A cut connection keeps what was written into it and delivers it when the cut is over, half a minute later if need
//! be. By then the controller has connected anew and gone on: the window that it once asked for, done now, would
//! put another build in than it believes, without a guard (seen on test hosts: the window of a hotfix came after that
//! of its rollback). So every conversation has an age, and an instance's windows, exchanges of `--offline`, and guards obey the
//! youngest that has worked on it.
//!
//! ```text
//! /var/lib/dmup/guards/<instance>.session    { boot_id, since_ms }: the youngest so far
//! ```

use camino::Utf8Path;
use dmup_core::ids::InstanceId;
use fs_err as fs;
use rustix::fs::{FlockOperation, flock};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::files::write_atomically;
use crate::host::boot_id;
use crate::refuse::refuse;
use dmup_wire::message::{Refusal, RefusalKind};

/// When a conversation began.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub(crate) struct Session {
    boot_id: String,
    /// Milliseconds since that boot: a clock that nobody sets back.
    since_ms: u64,
}

impl Session {
    /// One that begins now.
    pub(crate) fn now() -> Self {
        let now = clock_gettime(ClockId::Boottime);
        let ms = now.tv_sec.saturating_mul(1000).saturating_add(now.tv_nsec / 1_000_000);
        Self::since(u64::try_from(ms).unwrap_or(0))
    }

    /// One of this boot that began then.
    pub(crate) fn since(since_ms: u64) -> Self {
        Self { boot_id: boot_id(), since_ms }
    }

    /// Milliseconds since boot.
    pub(crate) fn since_ms(&self) -> u64 {
        self.since_ms
    }

    /// Lets an order of this conversation pass, and none of an older one after it.
    ///
    /// What cannot be read or written keeps nobody from working: a full disk must not keep a node from going back.
    pub(crate) fn pass(&self, guards: &Utf8Path, instance: &InstanceId) -> Result<(), Refusal> {
        let path = guards.join(format!("{}.session", crate::guard::file_name(instance)));
        fs::create_dir_all(guards).ok();
        let folder = fs::File::open(guards).ok();
        if let Some(folder) = &folder {
            flock(folder, FlockOperation::LockExclusive).ok();
        }
        let youngest: Option<Self> =
            fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        match youngest {
            Some(youngest) if youngest.boot_id == self.boot_id => {
                if youngest.since_ms > self.since_ms {
                    return Err(refuse(
                        RefusalKind::Precondition,
                        format!("take an order for {instance}"),
                        "it came late: a later connection works on this instance",
                    ));
                }
                if youngest.since_ms == self.since_ms {
                    return Ok(());
                }
            }
            Some(_) | None => {}
        }
        if let Ok(text) = serde_json::to_vec(self) {
            write_atomically(&path, &text, 0o644, None).ok();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_of_an_older_conversation_is_refused_on_that_instance_only() {
        let keep = tempfile::tempdir().unwrap();
        let guards = Utf8Path::from_path(keep.path()).unwrap().join("guards");
        let id = |text: &str| InstanceId::new(text).unwrap();
        let (old, young) = (Session::since(1000), Session::since(2000));
        assert_eq!(old.pass(&guards, &id("h:1")), Ok(()));
        assert_eq!(young.pass(&guards, &id("h:1")), Ok(()));
        let late = old.pass(&guards, &id("h:1")).unwrap_err();
        assert!(late.observed.contains("came late"), "{late}");
        assert_eq!(young.pass(&guards, &id("h:1")), Ok(()));
        assert_eq!(old.pass(&guards, &id("h:2")), Ok(()));
        // An earlier boot: its clock says nothing now.
        let before = Session { boot_id: "before".into(), since_ms: 9_000_000 };
        assert_eq!(before.pass(&guards, &id("h:1")), Ok(()));
        assert_eq!(old.pass(&guards, &id("h:1")), Ok(()));
    }
}
