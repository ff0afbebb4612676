//! DM's numbered errors, as far as something follows from them.
//!
//! In: a text such as `[code=46019:class=scheduler:scope=internal:level=high],
//! Message: …`. Numbers: tiflow dm/errors.toml.

/// What a DM error number says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DmCode {
    /// 11108: there is no leader.
    NoLeader,
    /// 34017: the load began on another worker.
    LoadedElsewhere,
    /// 38043: this master does not lead and cannot reach the one that does.
    CannotForward,
    /// 38044: the order was taken, its effect was not seen in time.
    EffectNotSeen,
    /// 40070: this worker has no source.
    WorkerHasNoSource,
    /// 46001: the new leader has not read its metadata yet.
    SchedulerNotStarted,
    /// 46004: no worker of that name.
    NoSuchWorker,
    /// 46005: the worker still has its lease.
    WorkerOnline,
    /// 46006: the worker is not free.
    WorkerNotFree,
    /// 46019: a task of the source runs and must be paused first (or is not in its sync unit).
    TasksRunning,
    /// 46024: somebody else changes the same task; try again.
    LatchInUse,
    /// 46032: DM's own pause before a transfer failed; tasks may have stayed paused.
    AutoPauseFailed,
    /// Any other number.
    Other(u32),
}

impl DmCode {
    /// The first `[code=NNNNN:` of a text.
    pub fn of(text: &str) -> Option<Self> {
        let (_, rest) = text.split_once("[code=")?;
        let number = rest.split(':').next()?.parse().ok()?;
        Some(match number {
            11108 => Self::NoLeader,
            34017 => Self::LoadedElsewhere,
            38043 => Self::CannotForward,
            38044 => Self::EffectNotSeen,
            40070 => Self::WorkerHasNoSource,
            46001 => Self::SchedulerNotStarted,
            46004 => Self::NoSuchWorker,
            46005 => Self::WorkerOnline,
            46006 => Self::WorkerNotFree,
            46019 => Self::TasksRunning,
            46024 => Self::LatchInUse,
            46032 => Self::AutoPauseFailed,
            other => Self::Other(other),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_read_from_dms_own_words() {
        let refused = include_str!("../../tests/fixtures/dm-v5.3.0/transfer_running_refused.txt");
        assert_eq!(DmCode::of(refused), Some(DmCode::TasksRunning));
        let unknown = include_str!("../../tests/fixtures/dm-v8.1.0/transfer_unknown_worker.txt");
        assert_eq!(DmCode::of(unknown), Some(DmCode::NoSuchWorker));
        assert_eq!(DmCode::of("[code=1:"), Some(DmCode::Other(1)));
        for other in ["", "[code=", "[code=x:y]", "[code=99999999999:", "code=46019"] {
            assert_eq!(DmCode::of(other), None, "{other}");
        }
    }
}
