//! What is tried: a fault, a phase of the hotfix, whose turn, which version of DM.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What goes wrong.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Fault {
    /// `kill -9` of dmup, then `dmup resume`.
    KillController,
    /// `kill -9` of dmup, then `dmup rollback`.
    KillControllerBack,
    /// `kill -9` of dmup, and nobody comes until the host has helped itself; then `dmup resume`.
    Abandon,
    /// SIGINT once.
    Interrupt,
    /// SIGINT twice.
    InterruptTwice,
    /// The network of the host whose turn it is, for 40 s.
    CutHost,
    /// The network of the leading master's host, for 40 s.
    CutLeader,
    /// sshd of the host is stopped for 20 s; sessions go on.
    StopSshd,
    /// All SSH sessions of the host are killed.
    DropSessions,
    /// Power of the host off and on.
    PowerCycle,
    /// `kill -9` of a free worker's process.
    KillSpare,
    /// `kill -9` of the process whose turn it is.
    KillNode,
    /// The host's deploy folder is full until the command has ended.
    FillDisk,
    /// The new build exits at once.
    Exits,
    /// The new build does nothing.
    Hangs,
    /// The new build dies after 2 s; in a batch later, when another node has its turn.
    Crashes,
    /// The new build never joins the cluster.
    NeverJoins,
    /// The new build says that it is another.
    WrongVersion,
    /// The build that is replaced needs 20 s more to stop.
    SlowStop,
    /// A transaction of 60 000 rows begins.
    LargeTransaction,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 20] = [
        Self::KillController,
        Self::KillControllerBack,
        Self::Abandon,
        Self::Interrupt,
        Self::InterruptTwice,
        Self::CutHost,
        Self::CutLeader,
        Self::StopSshd,
        Self::DropSessions,
        Self::PowerCycle,
        Self::KillSpare,
        Self::KillNode,
        Self::FillDisk,
        Self::Exits,
        Self::Hangs,
        Self::Crashes,
        Self::NeverJoins,
        Self::WrongVersion,
        Self::SlowStop,
        Self::LargeTransaction,
    ];

    /// Its name in cells.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KillController => "kill-controller",
            Self::KillControllerBack => "kill-controller-back",
            Self::Abandon => "abandon",
            Self::Interrupt => "interrupt",
            Self::InterruptTwice => "interrupt-twice",
            Self::CutHost => "cut-host",
            Self::CutLeader => "cut-leader",
            Self::StopSshd => "stop-sshd",
            Self::DropSessions => "drop-sessions",
            Self::PowerCycle => "power-cycle",
            Self::KillSpare => "kill-spare",
            Self::KillNode => "kill-node",
            Self::FillDisk => "fill-disk",
            Self::Exits => "exits",
            Self::Hangs => "hangs",
            Self::Crashes => "crashes",
            Self::NeverJoins => "never-joins",
            Self::WrongVersion => "wrong-version",
            Self::SlowStop => "slow-stop",
            Self::LargeTransaction => "large-transaction",
        }
    }

    /// Whether the fault is in the build, not in its surroundings.
    pub fn is_a_build(self) -> bool {
        matches!(
            self,
            Self::Exits | Self::Hangs | Self::Crashes | Self::NeverJoins | Self::WrongVersion
        )
    }

    /// Where in the run it makes a difference.
    fn phases(self) -> &'static [Phase] {
        match self {
            Self::KillController
            | Self::KillControllerBack
            | Self::Interrupt
            | Self::InterruptTwice
            | Self::CutHost
            | Self::StopSshd
            | Self::PowerCycle => &Phase::ALL,
            Self::DropSessions => &[
                Phase::Look,
                Phase::Stage,
                Phase::Offline,
                Phase::Window,
                Phase::Healthy,
                Phase::Confirm,
            ],
            Self::Abandon => &[Phase::Window, Phase::Start, Phase::Healthy, Phase::Soak],
            Self::CutLeader => &[
                Phase::Look,
                Phase::Stage,
                Phase::Offline,
                Phase::Window,
                Phase::Healthy,
                Phase::Soak,
                Phase::After,
            ],
            Self::KillSpare => &[Phase::Offline, Phase::Window, Phase::Healthy, Phase::Soak],
            Self::KillNode => &[Phase::Offline, Phase::Healthy, Phase::Soak, Phase::Confirm],
            Self::FillDisk => &[
                Phase::Open,
                Phase::Stage,
                Phase::Offline,
                Phase::Window,
                Phase::Healthy,
                Phase::Confirm,
            ],
            Self::Exits | Self::Hangs | Self::Crashes | Self::NeverJoins | Self::WrongVersion => {
                &[Phase::Start]
            }
            Self::SlowStop => &[Phase::Window],
            Self::LargeTransaction => &[Phase::Stage, Phase::Offline, Phase::Window],
        }
    }
}

/// Where a hotfix is. Each but the first four is a part of one node's turn.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Phase {
    /// It opens the package.
    Open,
    /// It looks at the cluster.
    Look,
    /// It sends and prepares.
    Stage,
    /// It is about to take the node off its work.
    Offline,
    /// It has asked for the window.
    Window,
    /// The new process is there.
    Start,
    /// It waits for health.
    Healthy,
    /// It watches that it stays so.
    Soak,
    /// It disarms the guard.
    Confirm,
    /// The turn is over.
    After,
}

impl Phase {
    /// In the order of a run.
    pub const ALL: [Self; 10] = [
        Self::Open,
        Self::Look,
        Self::Stage,
        Self::Offline,
        Self::Window,
        Self::Start,
        Self::Healthy,
        Self::Soak,
        Self::Confirm,
        Self::After,
    ];

    /// Its name in cells.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Look => "look",
            Self::Stage => "stage",
            Self::Offline => "offline",
            Self::Window => "window",
            Self::Start => "start",
            Self::Healthy => "healthy",
            Self::Soak => "soak",
            Self::Confirm => "confirm",
            Self::After => "after",
        }
    }
}

/// Whose turn it is when the fault comes.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Turn {
    /// The first worker with a source; only workers are patched.
    Bound,
    /// The leader; only masters are patched.
    Leader,
    /// As [`Turn::Bound`], with all workers in one batch: the free one, which was first, is still watched.
    Batch,
}

impl Turn {
    /// Its word in cells' names, if it has one.
    fn word(self) -> Option<&'static str> {
        match self {
            Self::Bound => None,
            Self::Leader => Some("leader"),
            Self::Batch => Some("batch"),
        }
    }
}

/// How DM behaves.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Rules {
    /// As v8.1.0: a stopping worker ends its work before it gives its lease back.
    V8,
    /// As v5.3.0: the other way round, and sources are moved by order.
    V5,
}

impl Rules {
    /// The version that is deployed.
    pub fn version(self) -> &'static str {
        match self {
            Self::V8 => "v8.1.0",
            Self::V5 => "v5.3.0",
        }
    }
}

/// One cell of the matrix. Written `fault:phase`, with `:leader`, `:batch` and `:v5` where they are meant.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Cell {
    /// How DM behaves.
    pub rules: Rules,
    /// What goes wrong.
    pub fault: Fault,
    /// When.
    pub phase: Phase,
    /// Whose turn it is.
    pub turn: Turn,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words().join(":"))
    }
}

impl Cell {
    fn words(self) -> Vec<&'static str> {
        let mut words = vec![self.fault.as_str(), self.phase.as_str()];
        words.extend(self.turn.word());
        if self.rules == Rules::V5 {
            words.push("v5");
        }
        words
    }

    /// The whole matrix, in an order that needs few fresh clusters.
    pub fn all() -> Vec<Self> {
        let bound = |fault: Fault, phase: &Phase| Self {
            rules: Rules::V8,
            fault,
            phase: *phase,
            turn: Turn::Bound,
        };
        let mut all: Vec<Self> = Fault::ALL
            .into_iter()
            .flat_map(|fault| fault.phases().iter().map(move |phase| bound(fault, phase)))
            .collect();
        let leader: [(Fault, &[Phase]); 7] = [
            (
                Fault::KillController,
                &[Phase::Offline, Phase::Window, Phase::Healthy, Phase::Confirm],
            ),
            (Fault::KillControllerBack, &[Phase::Offline, Phase::Healthy]),
            (Fault::InterruptTwice, &[Phase::Window]),
            (Fault::CutHost, &[Phase::Offline, Phase::Window, Phase::Healthy]),
            (Fault::PowerCycle, &[Phase::Window, Phase::Healthy]),
            (Fault::Exits, &[Phase::Start]),
            (Fault::NeverJoins, &[Phase::Start]),
        ];
        for (fault, phases) in leader {
            all.extend(phases.iter().map(|it| Self { turn: Turn::Leader, ..bound(fault, it) }));
        }
        let batch = [
            (Fault::KillController, Phase::Soak),
            (Fault::KillControllerBack, Phase::Soak),
            (Fault::Abandon, Phase::Soak),
            (Fault::Exits, Phase::Start),
            (Fault::Crashes, Phase::Soak),
        ];
        all.extend(batch.map(|(fault, it)| Self { turn: Turn::Batch, ..bound(fault, &it) }));
        let old_rules: [(Fault, &[Phase]); 8] = [
            (Fault::KillController, &[Phase::Offline, Phase::Window, Phase::Healthy]),
            (Fault::KillControllerBack, &[Phase::Offline, Phase::Healthy]),
            (Fault::Abandon, &[Phase::Window]),
            (Fault::InterruptTwice, &[Phase::Window]),
            (Fault::CutHost, &[Phase::Window]),
            (Fault::PowerCycle, &[Phase::Window]),
            (Fault::KillSpare, &[Phase::Offline]),
            (Fault::LargeTransaction, &[Phase::Offline]),
        ];
        for (fault, phases) in old_rules {
            all.extend(phases.iter().map(|it| Self { rules: Rules::V5, ..bound(fault, it) }));
        }
        all.sort_by_key(|cell| cell.ground());
        all
    }

    /// The cells that a list of filters (`fault`, `fault:phase`, `:v5`, …) selects: the one of that name if there is one, else all that have all its words.
    ///
    /// # Errors
    ///
    /// The filter that selects nothing.
    pub fn select(filters: &[String]) -> Result<Vec<Self>, String> {
        let all = Self::all();
        if filters.is_empty() {
            return Ok(all);
        }
        let mut wanted = Vec::new();
        for filter in filters {
            let exact: Vec<Self> =
                all.iter().filter(|cell| cell.to_string() == *filter).copied().collect();
            let words: Vec<&str> = filter.split(':').filter(|word| !word.is_empty()).collect();
            let found = if exact.is_empty() {
                all.iter()
                    .filter(|cell| words.iter().all(|word| cell.words().contains(word)))
                    .copied()
                    .collect()
            } else {
                exact
            };
            if found.is_empty() || words.is_empty() {
                return Err(filter.clone());
            }
            wanted.extend(found);
        }
        Ok(all.into_iter().filter(|cell| wanted.contains(cell)).collect())
    }

    /// Whether a command that was killed or interrupted can have ended with that code; all other faults leave it to end as it may.
    pub(super) fn has_met_its_fault(self, code: i32) -> bool {
        match self.fault {
            Fault::KillController | Fault::KillControllerBack | Fault::Abandon => code == 137,
            // After its second turn the third and last one may have begun, which is finished.
            Fault::Interrupt | Fault::InterruptTwice => {
                code == 130 || code == 0 && self.phase == Phase::After
            }
            Fault::CutHost
            | Fault::CutLeader
            | Fault::StopSshd
            | Fault::DropSessions
            | Fault::PowerCycle
            | Fault::KillSpare
            | Fault::KillNode
            | Fault::FillDisk
            | Fault::Exits
            | Fault::Hangs
            | Fault::Crashes
            | Fault::NeverJoins
            | Fault::WrongVersion
            | Fault::SlowStop
            | Fault::LargeTransaction => true,
        }
    }

    /// What it has to run on.
    pub(super) fn ground(self) -> Ground {
        Ground { rules: self.rules, has_small_disks: self.fault == Fault::FillDisk }
    }
}

/// What cells can share a cluster by.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Ground {
    /// How DM behaves.
    pub(super) rules: Rules,
    /// Its deploy folders lie on file systems that can be filled.
    pub(super) has_small_disks: bool,
}

impl From<Cell> for String {
    fn from(cell: Cell) -> Self {
        cell.to_string()
    }
}

impl TryFrom<String> for Cell {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let found = Self::all().into_iter().find(|cell| cell.to_string() == name);
        found.ok_or_else(|| format!("the matrix has no cell `{name}`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(filter: &str) -> Vec<String> {
        Cell::select(&[filter.to_owned()]).unwrap().iter().map(Cell::to_string).collect()
    }

    #[test]
    fn every_fault_and_every_phase_is_in_the_matrix_and_no_cell_is_there_twice() {
        let all = Cell::all();
        for fault in Fault::ALL {
            assert!(all.iter().any(|cell| cell.fault == fault), "{fault:?}");
        }
        for phase in Phase::ALL {
            assert!(all.iter().any(|cell| cell.phase == phase), "{phase:?}");
        }
        let names: std::collections::BTreeSet<String> = all.iter().map(Cell::to_string).collect();
        assert_eq!(names.len(), all.len());
    }

    #[test]
    fn a_command_that_ended_by_itself_has_met_no_kill_and_no_interruption() {
        let can_end =
            |name: &str, code| Cell::try_from(name.to_owned()).unwrap().has_met_its_fault(code);
        assert!(can_end("kill-controller:look", 137) && !can_end("kill-controller:look", 3));
        assert!(can_end("interrupt:look", 130) && !can_end("interrupt:look", 0));
        assert!(can_end("interrupt:after", 0) && !can_end("interrupt:after", 3));
        assert!(can_end("cut-host:open", 3));
    }

    #[test]
    fn a_filter_is_a_name_or_words_that_all_fit() {
        assert_eq!(selected("cut-host:window"), ["cut-host:window"]);
        assert_eq!(selected("kill-spare:v5"), ["kill-spare:offline:v5"]);
        let exits = ["exits:start", "exits:start:leader", "exits:start:batch"];
        assert_eq!(selected("exits"), exits);
        assert_eq!(selected("abandon").len(), 6);
        assert_eq!(Cell::select(&["no-such".to_owned()]), Err("no-such".to_owned()));
        assert_eq!(Cell::select(&[]).unwrap(), Cell::all());
    }
}
