//! What the entries add up to.

use std::collections::{BTreeMap, BTreeSet};

use super::entry::{Away, Entry, TurnEnd};
use crate::digest::Digest;
use crate::ids::{InstanceId, SourceId, TaskName};
use crate::inventory::DmSeen;
use crate::plan::Step;
use crate::report::RunEnd;

/// Where a run stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RunState {
    /// Everything that was begun is known to hold; the next step has not begun.
    Ready,
    /// Begun, with no word of how it ended: ask the hosts before trusting either.
    InDoubt {
        /// All such steps (several hosts may have been staged at once).
        steps: Vec<Step>,
    },
    /// Stopped here with an error; safe to resume or roll back.
    Stopped {
        /// What failed.
        step: Step,
        /// What was seen.
        error: String,
    },
    /// Over.
    Ended {
        /// How.
        end: RunEnd,
    },
}

/// A turn that has begun and not ended.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenTurn {
    /// Whose.
    pub instance: InstanceId,
    /// The build before.
    pub from: Digest,
    /// The build after.
    pub to: Digest,
    /// Its steps.
    pub steps: Vec<Step>,
    /// DM when it began.
    pub baseline: Option<DmSeen>,
    /// Its process when it began.
    pub pid: Option<u32>,
    /// Steps that hold or were not necessary.
    pub finished: Vec<Step>,
    /// It is being undone, and why.
    pub going_back: Option<String>,
}

/// Why all turns of a run are being undone.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum WayBack {
    /// A node was not healthy, and the policy is to go back wholly.
    Failure {
        /// Which.
        instance: InstanceId,
        /// What was wrong with it.
        why: String,
    },
    /// The operator takes the run back.
    Asked,
}

/// All that a journal says.
#[derive(Clone, Debug, PartialEq)]
pub struct Folded {
    /// Where the run stands.
    pub state: RunState,
    /// The plan that it belongs to.
    pub plan: Option<Digest>,
    /// Preparing steps that hold, each with its note.
    pub prepared: Vec<(Step, Option<String>)>,
    /// Turns that are over; with a rollback of the whole run, the later turn counts.
    pub ended: BTreeMap<InstanceId, TurnEnd>,
    /// For how long windows took nodes out of service, and how many milliseconds later those were healthy.
    pub away: BTreeMap<InstanceId, (Away, u64)>,
    /// The turns under way, in the order in which they began: several, if nodes of a batch are watched together.
    pub open: Vec<OpenTurn>,
    /// The turns that went wrong, as they ended: how, and what was wrong. Several, if the run can do without some, or if
    /// nodes of a batch were watched together.
    pub failed: Vec<(InstanceId, TurnEnd, String)>,
    /// Preparing steps that failed, and why: what the run can do without has no turn then.
    pub unprepared: Vec<(Step, String)>,
    /// Subtasks that we may have paused and have not resumed.
    pub paused: BTreeSet<(TaskName, SourceId)>,
    /// Masters that we may have evicted and have not released.
    pub evicted: BTreeSet<InstanceId>,
    /// All turns are being undone.
    pub way_back: Option<WayBack>,
    /// It has paused where its plan says so.
    pub has_paused: bool,
}

/// A sequence that no run writes.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("journal line {line}: {what}")]
pub struct IllegalEntry {
    /// Counts from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

/// Adds the entries up.
///
/// # Errors
///
/// [`IllegalEntry`] for a sequence that no run writes.
pub fn fold<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Result<Folded, IllegalEntry> {
    let mut folded = Folded {
        state: RunState::Ready,
        plan: None,
        prepared: Vec::new(),
        ended: BTreeMap::new(),
        away: BTreeMap::new(),
        open: Vec::new(),
        failed: Vec::new(),
        unprepared: Vec::new(),
        paused: BTreeSet::new(),
        evicted: BTreeSet::new(),
        way_back: None,
        has_paused: false,
    };
    for (index, entry) in entries.into_iter().enumerate() {
        let line = index + 1;
        folded.take(entry).map_err(|what| IllegalEntry { line, what })?;
    }
    Ok(folded)
}

impl Folded {
    fn take(&mut self, entry: &Entry) -> Result<(), String> {
        if let RunState::Ended { end } = &self.state {
            if *entry != Entry::RunResumed || !end.can_go_on() {
                return Err("nothing can follow the end of a run".to_owned());
            }
            self.state = RunState::Ready;
        }
        if self.plan.is_none() && !matches!(entry, Entry::RunBegins { .. }) {
            return Err("a journal begins with the beginning of a run".to_owned());
        }
        match entry {
            Entry::RunBegins { plan, .. } => {
                if self.plan.is_some() {
                    return Err("a run cannot begin twice".to_owned());
                }
                self.plan = Some(plan.clone());
            }
            Entry::RunResumed | Entry::Evidence { .. } => {}
            Entry::TurnBegins { instance, from, to, steps, baseline, pid } => {
                if self.open.iter().any(|open| open.instance == *instance) {
                    return Err(format!("the turn of {instance} cannot begin before it has ended"));
                }
                self.open.push(OpenTurn {
                    instance: instance.clone(),
                    from: from.clone(),
                    to: to.clone(),
                    steps: steps.clone(),
                    baseline: baseline.clone(),
                    pid: *pid,
                    finished: Vec::new(),
                    going_back: None,
                });
            }
            Entry::Started { step } => {
                self.open_effect(step);
                self.begin(step);
            }
            Entry::Done { step, note, took_ms, away } => {
                if !self.finish(step) && !step.is_wait() {
                    return Err(format!("`{}` was never begun", step.describe()));
                }
                self.close_effect(step);
                self.measure(step, *took_ms, *away);
                self.hold(step, note.clone());
            }
            Entry::Skipped { step, .. } => {
                self.finish(step);
                self.hold(step, None);
            }
            Entry::Failed { step, error, unknown } => {
                if *unknown {
                    return Ok(()); // it stays in doubt
                }
                self.finish(step);
                if step.is_preparation() {
                    self.unprepared.push((step.clone(), error.clone()));
                }
                if self.state == RunState::Ready {
                    self.state = RunState::Stopped { step: step.clone(), error: error.clone() };
                }
            }
            Entry::GoingBack { instance, why } => {
                let open = self.open_turn(instance)?;
                open.going_back = Some(why.clone());
            }
            Entry::GoingBackWholly { instance, why } => {
                let (instance, why) = (instance.clone(), why.clone());
                self.way_back = Some(WayBack::Failure { instance, why });
            }
            Entry::TakingBack => self.way_back = Some(WayBack::Asked),
            Entry::TurnEnds { instance, end, failure } => {
                self.open_turn(instance)?;
                self.open.retain(|open| open.instance != *instance);
                self.forget_effects_of(instance);
                self.ended.insert(instance.clone(), *end);
                self.failed.extend(failure.iter().map(|why| (instance.clone(), *end, why.clone())));
            }
            Entry::RunEnds { end } => {
                self.has_paused |= *end == RunEnd::Paused;
                self.state = RunState::Ended { end: end.clone() };
            }
        }
        Ok(())
    }

    fn open_turn(&mut self, instance: &InstanceId) -> Result<&mut OpenTurn, String> {
        self.open
            .iter_mut()
            .find(|open| open.instance == *instance)
            .ok_or_else(|| format!("{instance} has no open turn"))
    }

    fn begin(&mut self, step: &Step) {
        match &mut self.state {
            RunState::InDoubt { steps } => {
                if !steps.contains(step) {
                    steps.push(step.clone());
                }
            }
            RunState::Ready | RunState::Stopped { .. } | RunState::Ended { .. } => {
                self.state = RunState::InDoubt { steps: vec![step.clone()] };
            }
        }
    }

    fn finish(&mut self, step: &Step) -> bool {
        let RunState::InDoubt { steps } = &mut self.state else { return false };
        let before = steps.len();
        steps.retain(|begun| begun != step);
        let found = steps.len() < before;
        if steps.is_empty() {
            self.state = RunState::Ready;
        }
        found
    }

    fn measure(&mut self, step: &Step, took_ms: u64, away: Option<Away>) {
        if let (Step::Window { instance, .. }, Some(away)) = (step, away) {
            self.away.insert(instance.clone(), (away, 0));
        }
        if let Step::AwaitHealthy { instance, .. } = step
            && let Some((_, healthy_after_ms)) = self.away.get_mut(instance)
        {
            *healthy_after_ms = took_ms;
        }
    }

    fn hold(&mut self, step: &Step, note: Option<String>) {
        if step.is_preparation() {
            self.unprepared.retain(|(failed, _)| failed != step);
            self.prepared.push((step.clone(), note));
            return;
        }
        // What is done to DM is done by whoever began last: the others are only watched.
        let open = match step.instance() {
            Some(instance) => self.open.iter_mut().find(|open| open.instance == *instance),
            None => self.open.last_mut(),
        };
        if let Some(open) = open {
            open.finished.push(step.clone());
        }
    }

    /// A turn is over: of its own effects none is in doubt any more.
    fn forget_effects_of(&mut self, instance: &InstanceId) {
        let is_another_open = !self.open.is_empty();
        if let RunState::InDoubt { steps } = &mut self.state {
            steps.retain(|step| is_another_open && step.instance() != Some(instance));
            if !steps.is_empty() {
                return;
            }
        }
        self.state = RunState::Ready;
    }

    fn open_effect(&mut self, step: &Step) {
        if let Step::PauseSubtask { task, source } = step {
            self.paused.insert((task.clone(), source.clone()));
        }
        if let Step::EvictLeader { instance } = step {
            self.evicted.insert(instance.clone());
        }
    }

    fn close_effect(&mut self, step: &Step) {
        if let Step::ResumeSubtask { task, source } = step {
            self.paused.remove(&(task.clone(), source.clone()));
        }
        if let Step::CancelEvict { instance } = step {
            self.evicted.remove(instance);
        }
    }
}
