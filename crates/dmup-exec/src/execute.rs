//! A run from its first to its last step.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use dmup_core::config_check::ConfigTool;
use dmup_core::digest::Digest;
use dmup_core::ids::{HostId, InstanceId, SourceId, TaskName};
use dmup_core::instance::{Instance, Role};
use dmup_core::journal::{Away, Entry, Folded, Line, OpenTurn, RunState, TurnEnd, WayBack, fold};
use dmup_core::plan::{Plan, Step, Turn, basis_of, check, leader_of};
use dmup_core::policy::OnFailure;
use dmup_core::report::{InstanceEnd, InstanceReport, Report, RunEnd};
use dmup_core::texts::TextsChange;
use futures::future::try_join_all;
use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio_util::sync::CancellationToken;

use crate::error::RunError;
use crate::events::Event;
use crate::journal::Journal;
use crate::look::look;
use crate::ports::{
    Build, Certainty, CheckOrder, Checked, Clock, Dm, EffectError, Hosts, Parcel, Records, Tree,
};
use crate::recorder::Recorder;

/// The ports, together.
#[derive(Clone, Copy)]
pub struct Reach<'a> {
    /// Hosts.
    pub hosts: &'a dyn Hosts,
    /// DM.
    pub dm: &'a dyn Dm,
    /// Time.
    pub clock: &'a dyn Clock,
    /// State files.
    pub records: &'a dyn Records,
}

/// Carries out a new plan, from the check that it still fits to the report.
///
/// Cancelling once lets the node under way finish, then stops.
///
/// # Errors
///
/// [`RunError`] if it did not begin, or if nothing more can be written down. What
/// happened to the cluster is in the report, also when a node failed.
pub async fn execute(
    plan: &Plan,
    reach: Reach<'_>,
    journal: &mut dyn Journal,
    events: &mut (dyn FnMut(Event) + Send),
    cancel: &CancellationToken,
) -> Result<Report, RunError> {
    let broken = check(plan);
    if !broken.is_empty() {
        let text: Vec<String> = broken.iter().map(ToString::to_string).collect();
        return Err(RunError::NotResumable(text.join("; ")));
    }
    refuse_stale(plan, reach).await?;
    let run = Run::new(plan, reach, Recorder::new(journal, events, reach.clock), cancel);
    run.recorder
        .write(&Entry::RunBegins { cluster: plan.cluster.clone(), plan: plan.fingerprint() })?;
    let nothing = fold([]).expect("no entries are no contradiction");
    run.go(&nothing).await
}

/// Goes on with a run that was interrupted. Believes the hosts where they and the journal differ.
///
/// # Errors
///
/// As [`execute`], and [`RunError::AlreadyEnded`].
pub async fn resume(
    plan: &Plan,
    past: &[Line],
    reach: Reach<'_>,
    journal: &mut dyn Journal,
    events: &mut (dyn FnMut(Event) + Send),
    cancel: &CancellationToken,
) -> Result<Report, RunError> {
    let folded = fold(past.iter().map(|line| &line.entry))?;
    match &folded.plan {
        None => return execute(plan, reach, journal, events, cancel).await,
        Some(known) if *known != plan.fingerprint() => {
            return Err(RunError::NotResumable("its journal belongs to another plan".to_owned()));
        }
        Some(_) => {}
    }
    if let RunState::Ended { end } = &folded.state
        && !end.can_go_on()
    {
        return Err(RunError::AlreadyEnded);
    }
    let mut run = Run::new(plan, reach, Recorder::new(journal, events, reach.clock), cancel);
    run.recorder.write(&Entry::RunResumed)?;
    run.remember(&folded);
    run.go(&folded).await
}

/// Takes an unfinished run back: the turn under way first, then every turn that it made, last first.
/// Believes the hosts; what the run paused or evicted is undone with its turn.
///
/// A good end is [`RunEnd::TakenBack`]. Whoever resumes it after a crash goes on with the way back.
///
/// # Errors
///
/// As [`resume`].
pub async fn take_back(
    plan: &Plan,
    past: &[Line],
    reach: Reach<'_>,
    journal: &mut dyn Journal,
    events: &mut (dyn FnMut(Event) + Send),
    cancel: &CancellationToken,
) -> Result<Report, RunError> {
    let folded = fold(past.iter().map(|line| &line.entry))?;
    if folded.plan.as_ref().is_some_and(|known| *known != plan.fingerprint()) {
        return Err(RunError::NotResumable("its journal belongs to another plan".to_owned()));
    }
    if let RunState::Ended { end } = &folded.state
        && !end.can_go_on()
    {
        return Err(RunError::AlreadyEnded);
    }
    let mut run = Run::new(plan, reach, Recorder::new(journal, events, reach.clock), cancel);
    if folded.plan.is_none() {
        let (cluster, plan) = (plan.cluster.clone(), plan.fingerprint());
        run.recorder.write(&Entry::RunBegins { cluster, plan })?;
    } else {
        run.recorder.write(&Entry::RunResumed)?;
    }
    run.remember(&folded);
    let is_decided = folded.way_back == Some(WayBack::Asked);
    let end = run.go_back_wholly(&folded.open, &WayBack::Asked, is_decided).await?;
    run.close(end)
}

async fn refuse_stale(plan: &Plan, reach: Reach<'_>) -> Result<(), RunError> {
    let selected: Vec<Instance> = plan
        .instances
        .iter()
        .filter(|instance| plan.based_on.is_about(&instance.id))
        .cloned()
        .collect();
    let with_dm = plan.baseline.is_some();
    let concurrency = plan.policy.concurrency;
    let now = look(&selected, reach.hosts, reach.dm, reach.clock, true, with_dm, concurrency).await;
    let silent: Vec<String> = now
        .hosts
        .iter()
        .filter_map(|(host, seen)| seen.as_ref().err().map(|why| format!("{host}: {why}")))
        .chain(now.dm.as_ref().err().filter(|_| with_dm).cloned())
        .collect();
    if !silent.is_empty() {
        return Err(RunError::Look { why: silent.join("; ") });
    }
    let changes = plan.based_on.changes(&basis_of(&selected, &now, with_dm, &plan.policy));
    if changes.is_empty() { Ok(()) } else { Err(RunError::Stale { changes }) }
}

/// Why a step could not be finished.
pub(crate) enum Halt {
    /// It is known not to hold.
    Failed(String),
    /// Nobody knows.
    Unknown(String),
    /// The run itself cannot go on.
    Run(RunError),
}

impl Halt {
    pub(crate) fn superseded(error: &EffectError) -> Self {
        Self::Run(RunError::Superseded { why: error.to_string() })
    }
}

impl From<RunError> for Halt {
    fn from(error: RunError) -> Self {
        Self::Run(error)
    }
}

/// Tries an effect until its answer is known: every effect may be done twice.
pub(crate) async fn attempt<T, F>(
    clock: &dyn Clock,
    mut effect: impl FnMut() -> F,
) -> Result<T, Halt>
where
    F: Future<Output = Result<T, EffectError>>,
{
    let mut last = String::new();
    let mut may_hold = false;
    // Half a minute in all, and many tries within it: an armed guard does not wait longer either.
    for pause_s in [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 0] {
        match effect().await {
            Ok(value) => return Ok(value),
            Err(error) => match error.certainty {
                Certainty::Refused => return Err(Halt::Failed(error.to_string())),
                Certainty::Superseded => return Err(Halt::superseded(&error)),
                Certainty::NotSent => last = error.to_string(),
                Certainty::Unknown => {
                    last = error.to_string();
                    may_hold = true;
                }
            },
        }
        clock.sleep(Duration::from_secs(pause_s)).await;
    }
    Err(if may_hold { Halt::Unknown(last) } else { Halt::Failed(last) })
}

/// Tries an effect of DM's API, which knows nothing of leases, only while the cluster is ours.
pub(crate) async fn attempt_dm<T, F>(reach: Reach<'_>, effect: impl Fn() -> F) -> Result<T, Halt>
where
    F: Future<Output = Result<T, EffectError>>,
{
    attempt(reach.clock, || {
        let effect = &effect;
        async move {
            reach.hosts.still_ours().await?;
            effect().await
        }
    })
    .await
}

/// Looks until there is an answer: a look that failed says nothing, whatever the reason.
pub(crate) async fn attempt_look<T, F>(clock: &dyn Clock, look: impl Fn() -> F) -> Result<T, Halt>
where
    F: Future<Output = Result<T, EffectError>>,
{
    attempt(clock, || {
        let seen = look();
        async move {
            seen.await.map_err(|error| match error.certainty {
                Certainty::Superseded => error,
                Certainty::Refused | Certainty::NotSent | Certainty::Unknown => {
                    EffectError { certainty: Certainty::Unknown, ..error }
                }
            })
        }
    })
    .await
}

/// How a turn went.
pub(crate) struct TurnResult {
    /// How it ended; none: it is still open, because nobody knows.
    pub(crate) end: Option<TurnEnd>,
    /// What went wrong.
    pub(crate) failure: Option<String>,
}

/// A run under way.
///
/// The turns of a batch share it: while one is watched, the next one may have the floor. What they change
/// lies in cells, which are never held across a wait.
pub(crate) struct Run<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) reach: Reach<'a>,
    pub(crate) recorder: Recorder<'a>,
    cancel: &'a CancellationToken,
    /// Subtasks that we paused and have not resumed.
    pub(crate) paused: RefCell<BTreeSet<(TaskName, SourceId)>>,
    /// Subtasks that somebody has stopped since the baseline was taken.
    pub(crate) stopped: RefCell<BTreeSet<(TaskName, SourceId)>>,
    /// Masters that we evicted and have not released.
    pub(crate) evicted: RefCell<BTreeSet<InstanceId>>,
    /// What `-V` printed, per instance.
    pub(crate) versions: BTreeMap<InstanceId, String>,
    pub(crate) parts: RefCell<BTreeMap<InstanceId, InstanceReport>>,
    /// Whoever has it may take something down, pause, or move something. Nobody else may, so one DM process is down at a time.
    pub(crate) floor: Arc<Mutex<()>>,
    /// Instances whose turn has begun.
    pub(crate) begun: RefCell<BTreeSet<InstanceId>>,
    /// A node of this batch is not healthy: no other one gets the build.
    pub(crate) is_failing: Cell<bool>,
    /// What this run can do without and could not be prepared, and why.
    unprepared: BTreeMap<InstanceId, String>,
    /// How turns ended that the run can do without.
    beside: RefCell<Vec<RunEnd>>,
    sent_bytes: BTreeMap<HostId, u64>,
    notes: RefCell<Vec<String>>,
    began: Timestamp,
    preparation: Duration,
}

impl<'a> Run<'a> {
    fn new(
        plan: &'a Plan,
        reach: Reach<'a>,
        recorder: Recorder<'a>,
        cancel: &'a CancellationToken,
    ) -> Self {
        let untouched = |turn: &Turn| {
            let role = plan.instance(&turn.instance).map_or(Role::DmWorker, |found| found.role);
            InstanceReport {
                role,
                from: turn.from.clone(),
                to: turn.to.clone(),
                end: InstanceEnd::Untouched,
                away: Away::default(),
                healthy_after_ms: 0,
                evidence: Vec::new(),
            }
        };
        Self {
            plan,
            reach,
            recorder,
            cancel,
            paused: RefCell::default(),
            stopped: RefCell::default(),
            evicted: RefCell::default(),
            versions: BTreeMap::new(),
            parts: RefCell::new(
                plan.turns.iter().map(|t| (t.instance.clone(), untouched(t))).collect(),
            ),
            floor: Arc::default(),
            begun: RefCell::default(),
            is_failing: Cell::new(false),
            unprepared: BTreeMap::new(),
            beside: RefCell::default(),
            sent_bytes: BTreeMap::new(),
            notes: RefCell::default(),
            began: reach.clock.now(),
            preparation: Duration::ZERO,
        }
    }

    /// Takes over what an earlier process of this run left.
    fn remember(&mut self, folded: &Folded) {
        self.paused.get_mut().clone_from(&folded.paused);
        self.evicted.get_mut().clone_from(&folded.evicted);
        for (step, note) in &folded.prepared {
            if let (Step::Prepare { instance, .. }, Some(text)) = (step, note) {
                self.versions.insert(instance.clone(), text.clone());
            }
        }
        for (instance, (away, healthy_after_ms)) in &folded.away {
            if let Some(part) = self.parts.get_mut().get_mut(instance) {
                (part.away, part.healthy_after_ms) = (*away, *healthy_after_ms);
            }
        }
        for (instance, end) in &folded.ended {
            self.end_part(instance, *end);
        }
        if !folded.open.is_empty() || !folded.ended.is_empty() {
            // Nothing is prepared any more: what was not then has failed.
            let has = |step: &&Step| !folded.prepared.iter().any(|(held, _)| held == *step);
            for step in self.plan.preparation.iter().filter(has) {
                let failed = folded.unprepared.iter().rev().find(|(failed, _)| failed == step);
                let why = failed.map_or("it was not prepared", |(_, why)| why);
                self.give_up_beside(step, why);
            }
        }
    }

    async fn go(mut self, past: &Folded) -> Result<Report, RunError> {
        let end = self.go_to_an_end(past).await?;
        self.close(end)
    }

    fn close(self, end: RunEnd) -> Result<Report, RunError> {
        // What nobody knows stays open, so that it can be resumed.
        if !matches!(end, RunEnd::Unknown { .. }) {
            self.recorder.write(&Entry::RunEnds { end: end.clone() })?;
        }
        Ok(self.into_report(end))
    }

    async fn go_to_an_end(&mut self, past: &Folded) -> Result<RunEnd, RunError> {
        let has_turned = !past.open.is_empty() || !past.ended.is_empty();
        if !has_turned {
            match self.prepare_all(&past.prepared).await {
                Ok(()) => {}
                Err(Halt::Failed(why)) => return Ok(RunEnd::Failed { why }),
                Err(Halt::Unknown(why)) => {
                    let why = format!("{why} (nothing was exchanged yet)");
                    return Ok(RunEnd::Failed { why });
                }
                Err(Halt::Run(error)) => return Err(error),
            }
            if self.cancel.is_cancelled() {
                return Ok(RunEnd::Interrupted);
            }
        }
        if let Some(way) = &past.way_back {
            return self.go_back_wholly(&past.open, way, true).await;
        }
        // Killed while another node of the batch was failing: who has not opened its window does not open it now.
        let counts = |id: &InstanceId| !self.plan.tolerates(id);
        let has_failed = past.failed.iter().any(|(id, ..)| counts(id))
            || past.open.iter().any(|it| it.going_back.is_some() && counts(&it.instance));
        self.is_failing.set(has_failed);
        // Last first: who began last had the floor, and what it paused or moved is in the others' way.
        let turns = past.open.iter().rev().map(|open| async {
            let floor = self.floor_for(open).await;
            let result = self.continue_turn(open, floor).await?;
            Ok::<_, RunError>((open.instance.clone(), result))
        });
        let continued = try_join_all(turns).await?;
        // Killed after the end of a turn that went wrong: no other node gets its build. What the run can do without is told
        // in the end, with all others of that kind.
        let went_wrong = past.failed.iter().map(|(instance, end, why)| {
            let result = TurnResult { end: Some(*end), failure: Some(why.clone()) };
            (instance.clone(), result)
        });
        if let Some(end) = self.after_turns(went_wrong.chain(continued).collect()).await? {
            return Ok(end);
        }
        let mut queue: VecDeque<Turn> = self
            .plan
            .turns
            .iter()
            .filter(|turn| self.end_of(&turn.instance) == InstanceEnd::Untouched)
            .cloned()
            .collect();
        while !queue.is_empty() {
            if self.cancel.is_cancelled() {
                return Ok(RunEnd::Interrupted);
            }
            if !past.has_paused && self.is_time_to_pause() {
                return Ok(RunEnd::Paused);
            }
            let Some(turn) = self.next_turn(&mut queue).await else { break };
            if let Some(why) = self.why_not(&turn) {
                let why = format!("{} stays as it is: {why}", turn.instance);
                self.note(why.clone());
                self.beside.borrow_mut().push(RunEnd::Failed { why });
                continue;
            }
            let until_pause = if past.has_paused { None } else { self.nodes_until_pause() };
            let wave = self.wave_of(turn, &mut queue, until_pause.unwrap_or(usize::MAX));
            let results = self.take_wave(&wave).await?;
            let have_all_begun = results.len() == wave.len();
            if let Some(end) = self.after_turns(results).await? {
                return Ok(end);
            }
            if !have_all_begun {
                return Ok(RunEnd::Interrupted);
            }
        }
        Ok(worst(self.beside.take()).unwrap_or(RunEnd::Done))
    }

    /// Why something that the run can do without has no turn any more.
    fn why_not(&self, turn: &Turn) -> Option<String> {
        if !self.plan.tolerates(&turn.instance) {
            return None;
        }
        let another_failed = |(id, part): (&InstanceId, &InstanceReport)| {
            let went_wrong = matches!(part.end, InstanceEnd::RolledBack | InstanceEnd::Left);
            (went_wrong && part.to == turn.to && part.from != part.to)
                .then(|| format!("build {} did not hold on {id}", turn.to))
        };
        let unprepared = self.unprepared.get(&turn.instance).cloned();
        unprepared.or_else(|| self.parts.borrow().iter().find_map(another_failed))
    }

    /// The floor, for a turn that an earlier process began. Its guard may be armed: it is put off meanwhile, so that a node
    /// that is well is not put back while another one is continued.
    async fn floor_for(&self, open: &OpenTurn) -> OwnedMutexGuard<()> {
        let after = Duration::from_secs(self.plan.policy.guard_s.into());
        let mut pause = Duration::ZERO;
        let floor = Arc::clone(&self.floor).lock_owned();
        tokio::pin!(floor);
        loop {
            tokio::select! {
                biased;
                floor = &mut floor => return floor,
                () = self.reach.clock.sleep(pause) => {}
            }
            if let (Some(instance), None) = (self.plan.instance(&open.instance), &open.going_back) {
                // Not armed, or it has acted: the turn looks, and goes on from what it sees.
                drop(self.reach.hosts.renew_guard(instance, after).await);
            }
            pause = after / 10;
        }
    }

    /// A turn and those after it that begin while it is still watched.
    fn wave_of(&self, first: Turn, queue: &mut VecDeque<Turn>, most: usize) -> Vec<Turn> {
        let planned =
            |turn: &Turn| self.plan.turns.iter().position(|t| t.instance == turn.instance);
        let mut wave = vec![first];
        while let (Some(last), Some(next)) = (wave.last(), queue.front())
            && last.overlaps
            && planned(next) == planned(last).map(|at| at + 1)
            && wave.len() < most
        {
            wave.extend(queue.pop_front());
        }
        wave
    }

    /// Takes turns of one batch: each begins when the one before it is healthy, and all are watched to their end. Those that
    /// did not begin, since another one failed or the operator interrupts, are not among the results.
    async fn take_wave(&self, wave: &[Turn]) -> Result<Vec<(InstanceId, TurnResult)>, RunError> {
        let turns = wave.iter().map(|turn| async move {
            let floor = Arc::clone(&self.floor).lock_owned().await;
            let is_first = turn.instance == wave[0].instance;
            if !is_first && (self.is_failing.get() || self.cancel.is_cancelled()) {
                return Ok(None);
            }
            let result = self.take_turn(turn, floor).await?;
            Ok::<_, RunError>(Some((turn.instance.clone(), result)))
        });
        Ok(try_join_all(turns).await?.into_iter().flatten().collect())
    }

    /// Whether as many nodes have changed as the operator wants to see first.
    fn is_time_to_pause(&self) -> bool {
        self.nodes_until_pause() == Some(0)
    }

    /// How many more nodes change before that; none: the run does not pause.
    fn nodes_until_pause(&self) -> Option<usize> {
        let changed =
            self.parts.borrow().values().filter(|it| it.end == InstanceEnd::Changed).count();
        let nodes = usize::try_from(self.plan.policy.pause_after?).unwrap_or(usize::MAX);
        Some(nodes.saturating_sub(changed))
    }

    /// Decides whether the run ends after the turns of a batch, or one.
    async fn after_turns(
        &mut self,
        results: Vec<(InstanceId, TurnResult)>,
    ) -> Result<Option<RunEnd>, RunError> {
        let ends = results.into_iter().filter_map(|(id, result)| {
            let end = self.verdict(&id, result)?;
            if !self.plan.tolerates(&id) {
                return Some(end);
            }
            // It is told in the end; until then the run is for the others.
            self.is_failing.set(false);
            self.beside.borrow_mut().push(of_one(&id, end));
            None
        });
        match (worst(ends), self.plan.policy.on_failure) {
            (Some(RunEnd::RolledBackNode { instance, why }), OnFailure::RollbackAll) => {
                let way = WayBack::Failure { instance, why };
                self.go_back_wholly(&[], &way, false).await.map(Some)
            }
            (verdict, _) => Ok(verdict),
        }
    }

    /// What a turn means for the run; none: it goes on.
    fn verdict(&self, instance: &InstanceId, result: TurnResult) -> Option<RunEnd> {
        let TurnResult { end, failure } = result;
        match end {
            Some(end) => self.end_part(instance, end),
            None => {
                if let Some(part) = self.parts.borrow_mut().get_mut(instance) {
                    part.end = InstanceEnd::Unknown;
                }
            }
        }
        let why = failure?;
        Some(match end {
            None => RunEnd::Unknown { why },
            Some(TurnEnd::RolledBack) => RunEnd::RolledBackNode { instance: instance.clone(), why },
            Some(TurnEnd::Left | TurnEnd::Untouched | TurnEnd::Changed) => RunEnd::Failed { why },
        })
    }

    /// Takes every turn back that this run has made, last first: those under way, then those that have ended.
    async fn go_back_wholly(
        &mut self,
        open: &[OpenTurn],
        way: &WayBack,
        is_decided: bool,
    ) -> Result<RunEnd, RunError> {
        let why = match way {
            WayBack::Failure { why, .. } => why,
            WayBack::Asked => "the operator takes the run back",
        };
        if !is_decided {
            self.recorder.write(&match way {
                WayBack::Failure { instance, why } => {
                    Entry::GoingBackWholly { instance: instance.clone(), why: why.clone() }
                }
                WayBack::Asked => Entry::TakingBack,
            })?;
        }
        self.is_failing.set(false);
        let mut bad = Vec::new();
        for open in open.iter().rev() {
            // A turn of this way back goes on as it is; any other turns round.
            let mut open = open.clone();
            if open.going_back.is_none() && !self.is_returning(&open) {
                open.going_back = Some(why.to_owned());
            }
            let floor = Arc::clone(&self.floor).lock_owned().await;
            let result = self.continue_turn(&open, floor).await?;
            let is_back = result.end == Some(TurnEnd::RolledBack);
            let end = self.verdict(&open.instance, result).filter(|_| !is_back);
            if self.plan.tolerates(&open.instance) {
                self.beside.borrow_mut().extend(end.map(|end| of_one(&open.instance, end)));
            } else {
                bad.extend(end);
            }
        }
        if let Some(end) = worst(bad) {
            return Ok(end);
        }
        let mut queue: VecDeque<Turn> = self
            .plan
            .turns
            .iter()
            .rev()
            .filter(|turn| self.end_of(&turn.instance) == InstanceEnd::Changed)
            // A restart leaves nothing that could be taken back.
            .filter(|turn| turn.from != turn.to || turn.texts.is_some())
            .map(|turn| Turn {
                instance: turn.instance.clone(),
                from: turn.to.clone(),
                to: turn.from.clone(),
                texts: turn.texts.as_ref().map(TextsChange::reversed),
                patched: self.plan.instance(&turn.instance).is_some_and(|found| found.patched),
                was_broken: false,
                soak_s: None,
                overlaps: false,
                steps: turn.steps.clone(),
            })
            .collect();
        while let Some(turn) = self.next_turn(&mut queue).await {
            let floor = Arc::clone(&self.floor).lock_owned().await;
            let result = self.take_turn(&turn, floor).await?;
            if let Some(end) = self.verdict(&turn.instance, result) {
                if !self.plan.tolerates(&turn.instance) {
                    return Ok(end);
                }
                self.beside.borrow_mut().push(of_one(&turn.instance, end));
            }
        }
        Ok(worst(self.beside.take()).unwrap_or_else(|| match way.clone() {
            WayBack::Failure { instance, why } => RunEnd::RolledBackAll { instance, why },
            WayBack::Asked => RunEnd::TakenBack,
        }))
    }

    /// The front of the queue, unless it leads: then the masters that follow go first.
    async fn next_turn(&mut self, queue: &mut VecDeque<Turn>) -> Option<Turn> {
        let role = |plan: &Plan, turn: &Turn| plan.instance(&turn.instance).map(|found| found.role);
        let front = queue.front()?;
        let last_master =
            queue.iter().rposition(|turn| role(self.plan, turn) == Some(Role::DmMaster));
        if self.plan.baseline.is_some()
            && role(self.plan, front) == Some(Role::DmMaster)
            && !front.was_broken
            && let Some(last) = last_master
            && last > 0
            && let Ok(seen) = attempt_look(self.reach.clock, || self.reach.dm.look(&[])).await
            && leader_of(&seen).is_some_and(|m| m.instance.as_ref() == Some(&front.instance))
        {
            let leader = queue.pop_front()?;
            self.note(format!(
                "{} leads now: its turn comes after the other masters",
                leader.instance
            ));
            queue.insert(last, leader);
        }
        queue.pop_front()
    }

    /// Stages all hosts, then prepares all instances, then has new configurations judged; several at once.
    async fn prepare_all(&mut self, done: &[(Step, Option<String>)]) -> Result<(), Halt> {
        let begun = self.reach.clock.elapsed();
        let is_open = |step: &&Step| !done.iter().any(|(held, _)| held == *step);
        let (stages, others): (Vec<&Step>, Vec<&Step>) = self
            .plan
            .preparation
            .iter()
            .filter(is_open)
            .partition(|step| matches!(step, Step::Stage { .. }));
        let (prepares, checks) =
            others.into_iter().partition(|step| matches!(step, Step::Prepare { .. }));
        for wave in [stages, prepares, checks] {
            if self.cancel.is_cancelled() {
                return Ok(());
            }
            self.prepare_wave(&wave).await?;
        }
        self.preparation = self.reach.clock.elapsed().saturating_sub(begun);
        Ok(())
    }

    async fn prepare_wave(&mut self, steps: &[&Step]) -> Result<(), Halt> {
        // What was not sent cannot be unpacked, and what was not unpacked cannot judge.
        let is_hopeless = |step: &&Step| {
            step.instance().is_some_and(|instance| self.unprepared.contains_key(instance))
        };
        let steps: Vec<&Step> = steps.iter().copied().filter(|it| !is_hopeless(it)).collect();
        // All intents first: then any of them may be under way.
        for step in &steps {
            self.recorder.write(&Entry::Started { step: (*step).clone() })?;
            self.recorder.say(Event::StepBegins { step: (*step).clone() });
        }
        let (plan, reach) = (self.plan, self.reach);
        let mut under_way = stream::iter(steps.iter().map(|step| async move {
            let begun = reach.clock.elapsed();
            let answer = prepare_one(plan, reach, step).await;
            (*step, answer, reach.clock.elapsed().saturating_sub(begun))
        }))
        .buffer_unordered(plan.policy.concurrency.max(1));
        let mut failures = Vec::new();
        loop {
            let next = tokio::select! {
                biased;
                next = under_way.next() => next,
                // Half a stream leaves nothing behind, and staging again is cheap.
                () = self.cancel.cancelled() => return Ok(()),
            };
            let Some((step, answer, took)) = next else { break };
            match answer {
                Ok(prepared) => {
                    let note = prepared.note();
                    match prepared {
                        Prepared::Sent(host, bytes) => {
                            *self.sent_bytes.entry(host).or_default() += bytes;
                        }
                        Prepared::Said(instance, Some(text)) => {
                            self.versions.insert(instance, text);
                        }
                        Prepared::Said(_, None) | Prepared::Checked(_, Checked::Fine) => {}
                        Prepared::Checked(tool, Checked::Unjudged) => {
                            if let Some(instance) = step.instance() {
                                self.note(tool.is_missing_for(instance));
                            }
                        }
                    }
                    self.recorder.write(&Entry::Done {
                        step: step.clone(),
                        took_ms: millis(took),
                        note: note.clone(),
                        away: None,
                    })?;
                    self.recorder.say(Event::StepEnds { step: step.clone(), took, note });
                }
                Err(Halt::Failed(error) | Halt::Unknown(error)) => {
                    self.recorder.write(&Entry::Failed {
                        step: step.clone(),
                        error: error.clone(),
                        unknown: false,
                    })?;
                    self.recorder
                        .say(Event::StepFails { step: step.clone(), error: error.clone() });
                    if !self.give_up_beside(step, &error) {
                        failures.push(error);
                    }
                }
                Err(Halt::Run(error)) => return Err(error.into()),
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(Halt::Failed(failures.join("; "))) }
    }

    /// A preparing step that failed, if the run can do without all that it is for: those instances have no turn.
    fn give_up_beside(&mut self, step: &Step, why: &str) -> bool {
        let turns = self.plan.turns.iter().filter_map(|turn| self.plan.instance(&turn.instance));
        let is_for = |it: &&Instance| {
            if let Step::Stage { host, of } = step {
                it.host == *host && of.is_none_or(|role| role == it.role)
            } else {
                step.instance() == Some(&it.id)
            }
        };
        let those: Vec<InstanceId> = turns.filter(is_for).map(|it| it.id.clone()).collect();
        if !those.iter().all(|id| self.plan.tolerates(id)) {
            return false;
        }
        for id in those {
            // What could not be sent could not be unpacked either, for the same reason.
            self.unprepared.entry(id).or_insert_with(|| why.to_owned());
        }
        true
    }

    pub(crate) fn note(&self, text: String) {
        self.recorder.say(Event::Note { text: text.clone() });
        self.notes.borrow_mut().push(text);
    }

    /// As [`Self::note`], however often it is seen.
    pub(crate) fn note_once(&self, text: String) {
        if !self.notes.borrow().contains(&text) {
            self.note(text);
        }
    }

    fn end_of(&self, instance: &InstanceId) -> InstanceEnd {
        self.parts.borrow().get(instance).map_or(InstanceEnd::Untouched, |part| part.end)
    }

    fn end_part(&self, instance: &InstanceId, end: TurnEnd) {
        if let Some(part) = self.parts.borrow_mut().get_mut(instance) {
            part.end = match end {
                TurnEnd::Changed => InstanceEnd::Changed,
                TurnEnd::RolledBack => InstanceEnd::RolledBack,
                TurnEnd::Left => InstanceEnd::Left,
                TurnEnd::Untouched => InstanceEnd::Untouched,
            };
        }
    }

    fn into_report(self, end: RunEnd) -> Report {
        let mut parts = self.parts.into_inner();
        Report {
            format: Report::FORMAT,
            cluster: self.plan.cluster.clone(),
            began: self.began,
            ended: self.reach.clock.now(),
            end,
            instances: self
                .plan
                .turns
                .iter()
                .filter_map(|turn| parts.remove_entry(&turn.instance))
                .collect(),
            sent_bytes: self.sent_bytes,
            preparation_ms: millis(self.preparation),
            notes: self.notes.into_inner(),
        }
    }
}

/// An end that is told beside others says whose it is.
fn of_one(id: &InstanceId, end: RunEnd) -> RunEnd {
    match end {
        RunEnd::Failed { why } => RunEnd::Failed { why: format!("{id}: {why}") },
        RunEnd::Unknown { why } => RunEnd::Unknown { why: format!("{id}: {why}") },
        RunEnd::RolledBackNode { .. }
        | RunEnd::RolledBackAll { .. }
        | RunEnd::TakenBack
        | RunEnd::Done
        | RunEnd::Paused
        | RunEnd::Interrupted => end,
    }
}

/// What several failures mean together: what nobody knows counts most, then what is not as it was; all reasons are kept.
fn worst(ends: impl IntoIterator<Item = RunEnd>) -> Option<RunEnd> {
    let rank = |end: &RunEnd| match end {
        RunEnd::Unknown { .. } => 2,
        RunEnd::Failed { .. } => 1,
        RunEnd::RolledBackNode { .. }
        | RunEnd::RolledBackAll { .. }
        | RunEnd::TakenBack
        | RunEnd::Done
        | RunEnd::Paused
        | RunEnd::Interrupted => 0,
    };
    ends.into_iter().reduce(|one, other| {
        let (mut worse, milder) =
            if rank(&other) > rank(&one) { (other, one) } else { (one, other) };
        let besides = match milder {
            RunEnd::Unknown { why } | RunEnd::Failed { why } => Some(why),
            RunEnd::RolledBackNode { instance, why } | RunEnd::RolledBackAll { instance, why } => {
                Some(format!("{instance} was put back: {why}"))
            }
            RunEnd::TakenBack | RunEnd::Done | RunEnd::Paused | RunEnd::Interrupted => None,
        };
        if let (
            RunEnd::Unknown { why }
            | RunEnd::Failed { why }
            | RunEnd::RolledBackNode { why, .. }
            | RunEnd::RolledBackAll { why, .. },
            Some(besides),
        ) = (&mut worse, besides)
        {
            why.push_str("; besides: ");
            why.push_str(&besides);
        }
        worse
    })
}

/// What came of a preparing step.
enum Prepared {
    Sent(HostId, u64),
    Said(InstanceId, Option<String>),
    Checked(ConfigTool, Checked),
}

impl Prepared {
    fn note(&self) -> Option<String> {
        match self {
            Self::Sent(_, 0) => Some("it was there".to_owned()),
            Self::Sent(_, bytes) => Some(format!("{bytes} bytes sent")),
            Self::Said(_, text) => text.clone(),
            Self::Checked(_, Checked::Fine) => None,
            Self::Checked(_, Checked::Unjudged) => Some("nobody judged it".to_owned()),
        }
    }
}

async fn check_one(
    plan: &Plan,
    reach: Reach<'_>,
    id: &InstanceId,
    tool: ConfigTool,
    texts: &Digest,
) -> Result<Prepared, Halt> {
    let instance =
        plan.instance(id).ok_or_else(|| Halt::Failed(format!("{id} is not in the plan")))?;
    let texts = reach.records.texts(texts).map_err(Halt::Failed)?;
    // The build that will read it.
    let comes_with = |step: &Step| matches!(step, Step::Prepare { instance, .. } if instance == id);
    let tree = if plan.preparation.iter().any(comes_with) { Tree::Staged } else { Tree::Live };
    let order = CheckOrder { tool, tree, texts };
    let checked = attempt(reach.clock, || reach.hosts.check(instance, &order)).await?;
    Ok(Prepared::Checked(tool, checked))
}

async fn prepare_one(plan: &Plan, reach: Reach<'_>, step: &Step) -> Result<Prepared, Halt> {
    if let Step::Check { instance, tool, texts } = step {
        return check_one(plan, reach, instance, *tool, texts).await;
    }
    let parcel = parcel_of(plan, step)
        .ok_or_else(|| Halt::Failed(format!("the plan has nothing to {}", step.describe())))?;
    if let Step::Stage { host, .. } = step {
        let bytes = attempt(reach.clock, || reach.hosts.stage(host, &parcel)).await?;
        return Ok(Prepared::Sent(host.clone(), bytes));
    }
    let Step::Prepare { instance: id, to, keeps } = step else {
        return Err(Halt::Failed(format!("`{}` prepares nothing", step.describe())));
    };
    let instance =
        plan.instance(id).ok_or_else(|| Halt::Failed(format!("{id} is not in the plan")))?;
    let target = plan.target(instance);
    let replace = target.map(|target| target.replace.clone()).unwrap_or_default();
    let build = Build { digest: Digest::clone(to), replace, keeps: keeps.clone() };
    let said = attempt(reach.clock, || reach.hosts.prepare(instance, &parcel, &build)).await?;
    Ok(Prepared::Said(id.clone(), said))
}

/// What a preparing step sends or unpacks.
fn parcel_of(plan: &Plan, step: &Step) -> Option<Parcel> {
    let mut instances = plan.instances.iter();
    let spec = if let Step::Stage { host, of } = step {
        match of {
            None => plan.parcel.as_ref(),
            // All of a host have its architecture.
            Some(role) => instances
                .find(|it| it.host == *host && it.role == *role)
                .and_then(|it| plan.parcel_of(it)),
        }
    } else {
        plan.parcel_of(plan.instance(step.instance()?)?)
    }?;
    Some(Parcel {
        path: spec.path.clone(),
        digest: spec.digest.clone(),
        compressed_bytes: spec.compressed_bytes,
        unpacked_bytes: spec.unpacked_bytes,
    })
}

pub(crate) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_ends_the_worst_counts_and_all_reasons_are_kept() {
        let why = |text: &str| text.to_owned();
        let back = RunEnd::RolledBackNode {
            instance: InstanceId::new("h1:8262").expect("a name"),
            why: why("one"),
        };
        let failed = RunEnd::Failed { why: why("two") };
        let unknown = RunEnd::Unknown { why: why("three") };
        assert_eq!(worst([]), None);
        assert_eq!(worst([back.clone()]), Some(back.clone()));
        for ends in [[back.clone(), failed.clone()], [failed.clone(), back.clone()]] {
            let both = RunEnd::Failed { why: why("two; besides: h1:8262 was put back: one") };
            assert_eq!(worst(ends), Some(both));
        }
        let all =
            RunEnd::Unknown { why: why("three; besides: two; besides: h1:8262 was put back: one") };
        assert_eq!(worst([failed.clone(), unknown, back]), Some(all));
        // Of two that are as bad the first one names the node.
        let both = RunEnd::Failed { why: why("two; besides: four") };
        assert_eq!(worst([failed, RunEnd::Failed { why: why("four") }]), Some(both));
    }
}
