//! One instance's turn: its steps, and the way back when one does not hold.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use dmup_core::digest::Digest;
use dmup_core::ids::{InstanceId, SourceId, TaskName};
use dmup_core::instance::Instance;
use dmup_core::inventory::{DmSeen, ProcessSeen, SubtaskStage, UnitActive};
use dmup_core::journal::{Away, Entry, OpenTurn, TurnEnd};
use dmup_core::plan::{Around, Step, Turn, TurnFacts, is_up, leader_of, turn_steps};
use dmup_core::policy::OnFailure;
use dmup_core::report::InstanceEnd;
use dmup_core::texts::{Texts, TextsChange};
use tokio::sync::OwnedMutexGuard;

use crate::error::RunError;
use crate::events::Event;
use crate::execute::{Halt, Run, TurnResult, attempt, attempt_dm, attempt_look, millis};
use crate::gate::{Gate, unbound};
use crate::ports::{self, Certainty, GuardOrder, Window, WindowOrder};

/// A turn under way.
pub(crate) struct Stage {
    pub(crate) instance: Instance,
    pub(crate) from: Digest,
    pub(crate) to: Digest,
    texts: Option<TextsChange>,
    around: Around,
    /// It takes an earlier turn of the same run back.
    pub(crate) is_return: bool,
    pub(crate) was_broken: bool,
    pub(crate) baseline: Option<DmSeen>,
    pid_before: Option<u32>,
    /// The window has begun: from here on there is something to take back.
    pub(crate) is_exchanged: bool,
    /// The window of the way back was carried out: build and files are those from before.
    is_put_back: bool,
    /// The health gates are passed and the guard is disarmed: the node stays as it is, whatever follows.
    is_kept: bool,
    /// When the guard was armed or put off last; none: it is not armed.
    armed_at: Option<Duration>,
    /// How long the window took it out of service, until that is written down.
    away: Option<Away>,
    /// When the window ended.
    window_ended: Option<Duration>,
    /// Until it is healthy, and again when it goes back; none: it is watched, and another one may have its turn.
    pub(crate) floor: Option<OwnedMutexGuard<()>>,
}

impl Stage {
    /// Its window exchanges builds: a guard can take it back, and what lies on the disk tells how far it came.
    pub(crate) fn is_exchange(&self) -> bool {
        self.from != self.to
    }
}

impl Run<'_> {
    /// Takes an instance from one build to the other.
    pub(crate) async fn take_turn(
        &self,
        turn: &Turn,
        floor: OwnedMutexGuard<()>,
    ) -> Result<TurnResult, RunError> {
        let id = &turn.instance;
        self.begun.borrow_mut().insert(id.clone());
        let number = self.plan.turns.iter().position(|t| t.instance == *id).map_or(0, |at| at + 1);
        let of = self.plan.turns.len();
        self.recorder.say(Event::TurnBegins { instance: id.clone(), number, of });
        let Some(instance) = self.plan.instance(id).cloned() else {
            return Ok(failed_untouched(format!("{id} is not part of the plan's cluster")));
        };
        let (mut stage, steps) = match self.begin_turn(turn, instance).await {
            Ok(begun) => begun,
            Err(Halt::Failed(why) | Halt::Unknown(why)) => {
                self.is_failing.set(true);
                let end = seen_from_the_run(TurnEnd::Untouched, self.is_return(turn));
                return Ok(TurnResult { end: Some(end), failure: Some(why) });
            }
            Err(Halt::Run(error)) => return Err(error),
        };
        self.recorder.write(&Entry::TurnBegins {
            instance: id.clone(),
            from: turn.from.clone(),
            to: turn.to.clone(),
            steps: steps.clone(),
            baseline: stage.baseline.clone(),
            pid: stage.pid_before,
        })?;
        stage.floor = Some(floor);
        self.take_steps(&mut stage, &steps).await
    }

    /// Goes on with a turn that an earlier process began.
    pub(crate) async fn continue_turn(
        &self,
        open: &OpenTurn,
        floor: OwnedMutexGuard<()>,
    ) -> Result<TurnResult, RunError> {
        let Some(instance) = self.plan.instance(&open.instance).cloned() else {
            return Ok(failed_untouched(format!("{} is not part of the plan", open.instance)));
        };
        let planned = self.plan.turns.iter().find(|turn| turn.instance == open.instance);
        let around = around_of(&open.steps);
        let is_return = self.is_returning(open);
        let texts = planned.and_then(|turn| turn.texts.as_ref());
        let has_passed = |step: Option<&Step>| step.is_some_and(|it| open.finished.contains(it));
        let mut stage = Stage {
            instance,
            from: open.from.clone(),
            to: open.to.clone(),
            texts: texts.map(|it| if is_return { it.reversed() } else { it.clone() }),
            around,
            is_return,
            was_broken: planned.is_some_and(|turn| turn.was_broken),
            baseline: open.baseline.clone(),
            pid_before: open.pid,
            is_exchanged: false,
            is_put_back: false,
            is_kept: has_passed(keeping_step(&open.steps)),
            armed_at: None,
            away: None,
            window_ended: None,
            floor: Some(floor),
        };
        let process = match self.look_while_it_helps_itself(&stage.instance).await {
            Ok(process) => process,
            Err(Halt::Failed(why) | Halt::Unknown(why)) => {
                return Ok(TurnResult { end: None, failure: Some(why) });
            }
            Err(Halt::Run(error)) => return Err(error),
        };
        // The host is believed: the guard may have acted while nobody was here.
        if stage.is_exchange() {
            let has_old = process.on_disk.as_ref() == Some(&stage.from);
            stage.is_exchanged = !has_old;
            if has_old {
                stage.is_kept = false;
            }
        } else {
            // No build tells. If its window was next, it may have begun.
            stage.is_exchanged = open
                .steps
                .iter()
                .take_while(|step| !matches!(step, Step::Window { .. }))
                .all(|step| open.finished.contains(step));
        }
        if let Some(why) = &open.going_back {
            stage.is_exchanged |= stage.is_exchange();
            return self.go_back(&mut stage, why.clone()).await;
        }
        let opening = |s: &Step| matches!(s, Step::ArmGuard { .. } | Step::Window { .. });
        let opening = open.steps.iter().position(opening);
        let steps: Vec<Step> = open
            .steps
            .iter()
            .enumerate()
            .filter(|(index, step)| {
                // From the guard on, everything is done again: each step is harmless twice, and looks.
                let again = !stage.is_kept && opening.is_some_and(|at| *index >= at);
                again || !open.finished.contains(step)
            })
            .map(|(_, step)| step.clone())
            .collect();
        self.take_steps(&mut stage, &steps).await
    }

    /// Whether a turn that an earlier process began takes one of this run back.
    pub(crate) fn is_returning(&self, open: &OpenTurn) -> bool {
        let planned = self.plan.turns.iter().find(|turn| turn.instance == open.instance);
        planned.is_some_and(|turn| window_of(&turn.steps) != window_of(&open.steps))
    }

    fn is_return(&self, turn: &Turn) -> bool {
        let planned = self.plan.turns.iter().find(|planned| planned.instance == turn.instance);
        planned.is_some_and(|planned| (&planned.to, &planned.texts) != (&turn.to, &turn.texts))
    }

    async fn begin_turn(
        &self,
        turn: &Turn,
        instance: Instance,
    ) -> Result<(Stage, Vec<Step>), Halt> {
        let around = around_of(&turn.steps);
        let process = self.look_until_known(&instance).await?;
        let is_expected =
            [&turn.from, &turn.to].into_iter().any(|build| process.on_disk.as_ref() == Some(build));
        if !is_expected {
            let found =
                process.on_disk.as_ref().map_or_else(|| "nothing".to_owned(), ToString::to_string);
            return Err(Halt::Failed(format!(
                "{found} lies on the disk of {}, neither {} nor {}: somebody else was there",
                instance.id, turn.from, turn.to
            )));
        }
        let with_dm =
            self.plan.baseline.is_some() && instance.role.is_dm() && around == Around::Restart;
        let baseline = if with_dm { Some(self.await_cluster(&instance).await?) } else { None };
        let is_broken = around == Around::Restart
            && is_up(&instance, Some(&process), baseline.as_ref()).is_err();
        let pending: BTreeSet<InstanceId> = self
            .plan
            .turns
            .iter()
            .map(|turn| &turn.instance)
            .filter(|id| {
                let parts = self.parts.borrow();
                parts.get(*id).is_some_and(|part| part.end == InstanceEnd::Untouched)
            })
            .filter(|id| !self.begun.borrow().contains(*id))
            .cloned()
            .collect();
        let steps = turn_steps(&TurnFacts {
            instance: &instance,
            from: &turn.from,
            to: &turn.to,
            texts: turn.texts.as_ref(),
            patched: turn.patched,
            around,
            is_broken,
            dm: baseline.as_ref(),
            version: &self.plan.version,
            policy: &self.plan.policy,
            soak_s: turn.soak_s.unwrap_or(self.plan.policy.soak_s),
            pending: &pending,
        });
        let planned = self.plan.turns.iter().find(|planned| planned.instance == turn.instance);
        if !self.is_return(turn) && planned.is_some_and(|planned| planned.steps != steps) {
            self.note(format!(
                "{} is taken differently than planned: leadership or its source has moved",
                instance.id
            ));
        }
        // Somebody was faster, perhaps from another desk: the window will find it exchanged and restart nothing.
        let is_exchange = turn.from != turn.to;
        let pid_before = process.pid.filter(|_| !is_exchange || !runs_only(&process, &turn.to));
        let stage = Stage {
            instance,
            from: turn.from.clone(),
            to: turn.to.clone(),
            texts: turn.texts.clone(),
            around,
            is_return: self.is_return(turn),
            was_broken: is_broken,
            baseline,
            pid_before,
            is_exchanged: false,
            is_put_back: false,
            is_kept: false,
            armed_at: None,
            away: None,
            window_ended: None,
            floor: None,
        };
        Ok((stage, steps))
    }

    async fn take_steps(&self, stage: &mut Stage, steps: &[Step]) -> Result<TurnResult, RunError> {
        let keeping = keeping_step(steps);
        for step in steps {
            if self.yields(stage) {
                return self.yield_turn(stage).await;
            }
            self.recorder.say(Event::StepBegins { step: step.clone() });
            let begun = self.reach.clock.elapsed();
            match self.take_step(stage, step).await {
                Ok(Taken::Done(note)) => {
                    let took = self.reach.clock.elapsed().saturating_sub(begun);
                    self.recorder.write(&Entry::Done {
                        step: step.clone(),
                        took_ms: millis(took),
                        note: note.clone(),
                        away: stage.away.take(),
                    })?;
                    self.recorder.say(Event::StepEnds { step: step.clone(), took, note });
                    if let Step::AwaitHealthy { .. } = step {
                        stage.floor = None;
                    }
                    stage.is_kept |= Some(step) == keeping;
                }
                Ok(Taken::Skipped(why)) => {
                    self.recorder
                        .write(&Entry::Skipped { step: step.clone(), why: why.clone() })?;
                    self.recorder.say(Event::StepSkipped { step: step.clone(), why });
                }
                Err(Halt::Run(error)) => return Err(error),
                Err(Halt::Failed(error)) => {
                    self.record_failure(step, &error, false)?;
                    if self.yields(stage) {
                        return self.yield_turn(stage).await;
                    }
                    self.stop_the_others(stage).await;
                    return self.give_up(stage, error).await;
                }
                Err(Halt::Unknown(error)) => {
                    self.record_failure(step, &error, true)?;
                    self.stop_the_others(stage).await;
                    // The host's guard takes the node back by itself; what DM was told can be taken back now.
                    let undone = self.undo(stage).await?;
                    let failure = join(error, undone);
                    return Ok(TurnResult { end: None, failure: Some(failure) });
                }
            }
        }
        self.end_turn(stage, TurnEnd::Changed, None)
    }

    /// Whether another node of the batch has failed before anything was done to this one.
    pub(crate) fn yields(&self, stage: &Stage) -> bool {
        self.is_failing.get() && !stage.is_exchanged && !stage.is_kept
    }

    async fn yield_turn(&self, stage: &mut Stage) -> Result<TurnResult, RunError> {
        self.note(format!(
            "{} gives its turn up: another node of its batch is not healthy",
            stage.instance.id
        ));
        let undone = self.undo(stage).await?;
        self.end_turn(stage, TurnEnd::Untouched, failure_of(undone))
    }

    /// From here on no other node gets the build. Takes the floor, so that not two are down: whoever has it and has not
    /// opened its window gives it up at once. While this waits nobody puts the guard off, and in the end the host helps itself.
    async fn stop_the_others(&self, stage: &mut Stage) {
        self.is_failing.set(true);
        if stage.floor.is_some() {
            return;
        }
        let at_most = Duration::from_secs(self.plan.policy.guard_s.into());
        tokio::select! {
            biased;
            floor = Arc::clone(&self.floor).lock_owned() => stage.floor = Some(floor),
            () = self.reach.clock.sleep(at_most) => {}
        }
    }

    /// Another one has its turn: what is missing now may be its doing.
    pub(crate) fn is_anothers_turn(&self, stage: &Stage) -> bool {
        stage.floor.is_none() && self.floor.try_lock().is_err()
    }

    fn record_failure(&self, step: &Step, error: &str, unknown: bool) -> Result<(), RunError> {
        self.recorder.write(&Entry::Failed {
            step: step.clone(),
            error: error.to_owned(),
            unknown,
        })?;
        self.recorder.say(Event::StepFails { step: step.clone(), error: error.to_owned() });
        Ok(())
    }

    fn end_turn(
        &self,
        stage: &Stage,
        end: TurnEnd,
        failure: Option<String>,
    ) -> Result<TurnResult, RunError> {
        let instance = stage.instance.id.clone();
        let end = seen_from_the_run(end, stage.is_return);
        self.recorder.write(&Entry::TurnEnds {
            instance: instance.clone(),
            end,
            failure: failure.clone(),
        })?;
        self.recorder.say(Event::TurnEnds { instance, end, kind: self.plan.kind });
        Ok(TurnResult { end: Some(end), failure })
    }

    /// One step, matched without a `_` arm.
    async fn take_step(&self, stage: &mut Stage, step: &Step) -> Result<Taken, Halt> {
        let reach = self.reach;
        match step {
            Step::Stage { .. } | Step::Prepare { .. } | Step::Check { .. } => {
                Err(Halt::Failed("everything is prepared before the first turn".to_owned()))
            }
            Step::EvictLeader { instance } => self.evict(stage, step, instance).await,
            Step::AwaitNewLeader { former, within_s } => {
                if !self.evicted.borrow().contains(former) {
                    return Ok(Taken::Skipped("it was not evicted".to_owned()));
                }
                // The former leader is about to be stopped: it is not polled any more (dm.md 12).
                let avoiding = [former.clone()];
                self.await_dm(stage, step, *within_s, &avoiding, |dm| no_new_leader(dm, former))
                    .await?;
                Ok(Taken::Done(None))
            }
            Step::AwaitQuiet { within_s, .. } => {
                let instance = stage.instance.clone();
                self.await_quiet(step, &instance, *within_s).await?;
                Ok(Taken::Done(None))
            }
            Step::PauseSubtask { task, source } => {
                self.await_other_workers(stage, step).await?;
                self.pause(step, task, source).await
            }
            Step::AwaitPaused { task, source, within_s } => {
                self.await_paused(stage, step, (task, source), *within_s).await
            }
            Step::Transfer { source, to, .. } => {
                let there = self.await_taker(stage, step, source, to).await?;
                self.recorder.write(&Entry::Started { step: step.clone() })?;
                attempt_dm(reach, || reach.dm.transfer(source, &there)).await?;
                let another = (there != *to).then(|| format!("to {there}, as {to} is not up"));
                Ok(Taken::Done(another))
            }
            Step::AwaitBound { source, within_s } => {
                self.await_dm(stage, step, *within_s, &[], |dm| unbound(dm, source)).await?;
                Ok(Taken::Done(None))
            }
            Step::ResumeSubtask { task, source } => {
                let key = (task.clone(), source.clone());
                if !self.paused.borrow().contains(&key) {
                    return Ok(Taken::Skipped("it was not us who paused it".to_owned()));
                }
                self.recorder.write(&Entry::Started { step: step.clone() })?;
                let mut answer = attempt_dm(reach, || reach.dm.resume(task, source)).await;
                if answer.is_ok() {
                    // Only now whoever finds it paused knows that it was somebody else.
                    let within_s = self.plan.policy.settle_within_s;
                    answer = self.await_dm(stage, step, within_s, &[], |dm| stands(dm, &key)).await;
                }
                let note = self.unless_stopped(&key, answer).await?;
                self.paused.borrow_mut().remove(&key);
                Ok(Taken::Done(note))
            }
            Step::ArmGuard { after_s, .. } => {
                self.recorder.write(&Entry::Started { step: step.clone() })?;
                self.arm(stage, *after_s).await?;
                Ok(Taken::Done(None))
            }
            Step::Window { .. } => self.open_window(stage, step).await,
            Step::AwaitHealthy { build, within_s, .. } => {
                let within = Duration::from_secs((*within_s).into());
                let pid_before = stage.pid_before;
                let gate = Gate { step, build, pid_before, within, good_for: Duration::ZERO };
                self.pass_gate(stage, &gate).await?;
                let now = reach.clock.elapsed();
                if let Some(ended) = stage.window_ended
                    && let Some(part) = self.parts.borrow_mut().get_mut(&stage.instance.id)
                {
                    part.healthy_after_ms = millis(now.saturating_sub(ended));
                }
                Ok(Taken::Done(None))
            }
            Step::Soak { build, soak_s, .. } => {
                let good_for = Duration::from_secs((*soak_s).into());
                let within = Duration::from_secs(self.plan.policy.healthy_within_s.into());
                let pid_before = stage.pid_before;
                self.pass_gate(stage, &Gate { step, build, pid_before, within, good_for }).await?;
                Ok(Taken::Done(None))
            }
            Step::DisarmGuard { .. } => {
                self.recorder.write(&Entry::Started { step: step.clone() })?;
                let instance = &stage.instance;
                attempt(reach.clock, || reach.hosts.disarm_guard(instance)).await?;
                stage.armed_at = None;
                Ok(Taken::Done(None))
            }
            Step::CancelEvict { instance } => {
                if !self.evicted.borrow().contains(instance) {
                    return Ok(Taken::Skipped("it was not evicted".to_owned()));
                }
                self.recorder.write(&Entry::Started { step: step.clone() })?;
                attempt_dm(reach, || reach.dm.cancel_evict(&stage.instance)).await?;
                self.evicted.borrow_mut().remove(instance);
                Ok(Taken::Done(None))
            }
            Step::MarkPatched { instance, build, patched } => {
                self.recorder.write(&Entry::Started { step: step.clone() })?;
                reach.records.mark(instance, build, *patched).map_err(|why| {
                    Halt::Failed(format!("record the build of {instance}: {why}"))
                })?;
                Ok(Taken::Done(None))
            }
        }
    }

    async fn evict(
        &self,
        stage: &Stage,
        step: &Step,
        instance: &InstanceId,
    ) -> Result<Taken, Halt> {
        let reach = self.reach;
        let dm = attempt_look(reach.clock, || reach.dm.look(&[])).await?;
        let leads = leader_of(&dm).is_some_and(|leader| leader.instance.as_ref() == Some(instance));
        if !leads && !self.evicted.borrow().contains(instance) {
            return Ok(Taken::Skipped("it does not lead any more".to_owned()));
        }
        self.recorder.write(&Entry::Started { step: step.clone() })?;
        self.evicted.borrow_mut().insert(instance.clone());
        attempt_dm(reach, || reach.dm.evict_leader(&stage.instance)).await?;
        Ok(Taken::Done(None))
    }

    async fn pause(&self, step: &Step, task: &TaskName, source: &SourceId) -> Result<Taken, Halt> {
        let reach = self.reach;
        let key = (task.clone(), source.clone());
        let dm = attempt_look(reach.clock, || reach.dm.look(&[])).await?;
        let stage = dm.subtasks.iter().find(|s| s.task == *task && s.source == *source);
        let runs = stage
            .is_some_and(|s| matches!(s.stage, SubtaskStage::Running | SubtaskStage::Resuming));
        if !runs && !self.paused.borrow().contains(&key) {
            return Ok(Taken::Skipped("it does not run: somebody else's doing".to_owned()));
        }
        self.recorder.write(&Entry::Started { step: step.clone() })?;
        self.paused.borrow_mut().insert(key.clone());
        if !runs {
            return Ok(Taken::Done(None));
        }
        let answer = attempt_dm(reach, || reach.dm.pause(task, source)).await;
        Ok(Taken::Done(self.unless_stopped(&key, answer).await?))
    }

    async fn await_paused(
        &self,
        stage: &mut Stage,
        step: &Step,
        (task, source): (&TaskName, &SourceId),
        within_s: u32,
    ) -> Result<Taken, Halt> {
        let key = (task.clone(), source.clone());
        if !self.paused.borrow().contains(&key) {
            return Ok(Taken::Skipped("it was not us who paused it".to_owned()));
        }
        let answer = self
            .await_dm(stage, step, within_s, &[], |dm| {
                let subtask = dm.subtasks.iter().find(|s| s.task == *task && s.source == *source);
                match subtask.map(|subtask| subtask.stage) {
                    Some(SubtaskStage::Paused | SubtaskStage::Stopped | SubtaskStage::Finished) => {
                        None
                    }
                    Some(other) => Some(format!("it is {other:?}")),
                    None => Some("nobody answers for it".to_owned()),
                }
            })
            .await;
        Ok(Taken::Done(self.unless_stopped(&key, answer).await?))
    }

    /// The window, asked for until its answer is known.
    async fn open_window(&self, stage: &mut Stage, step: &Step) -> Result<Taken, Halt> {
        if !stage.is_exchanged
            && self.await_other_workers(stage, step).await?
            && stage.armed_at.is_some()
        {
            // Some of its time has gone by.
            self.arm(stage, self.plan.policy.guard_s + self.plan.policy.stop_within_s).await?;
        }
        // Another one may have failed while this one looked: nothing is waited for between here and the window.
        if self.yields(stage) {
            return Err(Halt::Failed("another node of the batch is not healthy".to_owned()));
        }
        self.recorder.write(&Entry::Started { step: step.clone() })?;
        stage.is_exchanged = true;
        let window = self.exchange(stage, Direction::Forth).await?;
        stage.window_ended = Some(self.reach.clock.elapsed());
        if let Some(part) = self.parts.borrow_mut().get_mut(&stage.instance.id)
            && !window.already
            && !stage.is_return
        {
            part.away = Away {
                stop_ms: millis(window.stop),
                exchange_us: u64::try_from(window.exchange.as_micros()).unwrap_or(u64::MAX),
                start_ms: millis(window.start),
                down_ms: millis(window.total),
                killed: window.killed,
            };
            stage.away = Some(part.away);
        }
        if window.killed {
            self.note(format!(
                "{} did not stop by itself: systemd had to kill it after {} s",
                stage.instance.id,
                window.stop.as_secs()
            ));
        }
        Ok(Taken::Done(Some(if window.already {
            if stage.is_exchange() {
                "it had been exchanged before"
            } else {
                "it had been done before"
            }
            .to_owned()
        } else {
            let between = match window.exchange.as_micros() {
                0 => String::new(),
                micros => format!("exchange {micros} µs, "),
            };
            format!(
                "down {} ms: stop {} ms, {between}start {} ms",
                window.total.as_millis(),
                window.stop.as_millis(),
                window.start.as_millis()
            )
        })))
    }

    /// The files that a way leads to.
    fn texts(&self, stage: &Stage, direction: Direction) -> Result<Texts, Halt> {
        let digest = stage.texts.as_ref().map(|it| match direction {
            Direction::Forth => &it.after,
            Direction::Back => &it.before,
        });
        let texts = digest.map(|digest| self.reach.records.texts(digest)).transpose();
        Ok(texts.map_err(Halt::Failed)?.unwrap_or_default())
    }

    async fn exchange(&self, stage: &mut Stage, direction: Direction) -> Result<Window, Halt> {
        let reach = self.reach;
        let (from, to) = match direction {
            Direction::Forth => (&stage.from, &stage.to),
            Direction::Back => (&stage.to, &stage.from),
        };
        let texts = self.texts(stage, direction)?;
        let around = match stage.around {
            Around::Restart => ports::Around::Restart,
            Around::Offline => ports::Around::Offline,
            Around::OfflineEvenIfRunning => ports::Around::OfflineEvenIfRunning,
        };
        let stop_within = Duration::from_secs(self.plan.policy.stop_within_s.into());
        let guard = stage.armed_at.map(|_| Duration::from_secs(self.plan.policy.guard_s.into()));
        let instance = &stage.instance.clone();
        let order = WindowOrder {
            from: from.clone(),
            to: to.clone(),
            around,
            stop_within,
            guard,
            pid_before: stage.pid_before,
            texts,
        };
        let mut last = String::new();
        for _ in 0..4 {
            match reach.hosts.switch(instance, &order).await {
                Ok(window) => {
                    // The host has put it off.
                    stage.armed_at = guard.map(|_| reach.clock.elapsed());
                    return Ok(window);
                }
                Err(error) => match error.certainty {
                    Certainty::Refused => return Err(Halt::Failed(error.to_string())),
                    Certainty::Superseded => return Err(Halt::superseded(&error)),
                    Certainty::NotSent | Certainty::Unknown => last = error.to_string(),
                },
            }
            // Nobody knows: look, as long as it takes the host to answer, then ask again (it is harmless twice).
            let process = self.look_until_known(&stage.instance).await?;
            let has_old = process.on_disk.as_ref() == Some(&order.from);
            if has_old && stage.armed_at.is_some() {
                // The guard may have acted meanwhile; the next try has to have one as well.
                self.arm(stage, self.plan.policy.guard_s + self.plan.policy.stop_within_s).await?;
            }
        }
        Err(Halt::Unknown(last))
    }

    /// Arms the guard, or arms it anew: the host goes back to the build and the files from before.
    async fn arm(&self, stage: &mut Stage, after_s: u32) -> Result<(), Halt> {
        let reach = self.reach;
        let order = GuardOrder {
            from: stage.from.clone(),
            to: stage.to.clone(),
            texts: self.texts(stage, Direction::Back)?,
            after: Duration::from_secs(after_s.into()),
        };
        let instance = &stage.instance;
        attempt(reach.clock, || reach.hosts.arm_guard(instance, &order)).await?;
        stage.armed_at = Some(reach.clock.elapsed());
        Ok(())
    }

    /// Tells an armed guard that we are still here.
    pub(crate) async fn keep_guard_waiting(&self, stage: &mut Stage) {
        let Some(armed_at) = stage.armed_at else { return };
        let now = self.reach.clock.elapsed();
        let guard_s = self.plan.policy.guard_s;
        // Often: after a cut of the connection nearly all of its time is left to come back.
        let interval = Duration::from_secs(u64::from(guard_s)) / 10;
        let is_due = now.saturating_sub(armed_at) >= interval;
        if stage.window_ended.is_none() || !is_due {
            return;
        }
        let after = Duration::from_secs(guard_s.into());
        // If it cannot be put off, it acts, and the gate sees the old build: no reason to stop here.
        if self.reach.hosts.renew_guard(&stage.instance, after).await.is_ok() {
            stage.armed_at = Some(now);
        }
    }

    /// A step does not hold: evidence first, then the policy.
    async fn give_up(&self, stage: &mut Stage, why: String) -> Result<TurnResult, RunError> {
        if stage.is_kept {
            // Healthy on the new build; only what follows failed.
            let undone = self.undo(stage).await?;
            return self.end_turn(stage, TurnEnd::Changed, Some(join(why, undone)));
        }
        if !stage.is_exchanged {
            let undone = self.undo(stage).await?;
            return self.end_turn(stage, TurnEnd::Untouched, Some(join(why, undone)));
        }
        self.save_evidence(stage).await?;
        if stage.around != Around::Restart {
            let end = match self.look_until_known(&stage.instance).await {
                Ok(process) if process.on_disk.as_ref() == Some(&stage.from) => TurnEnd::Untouched,
                Ok(_) | Err(_) => TurnEnd::Left,
            };
            return self.end_turn(stage, end, Some(why));
        }
        if !stage.is_exchange()
            && (stage.texts.is_none() || self.plan.policy.on_failure == OnFailure::Stop)
        {
            // Another start would be no other node, and what the operator wants to see stays as it is.
            let undone = self.undo(stage).await?;
            return self.end_turn(stage, TurnEnd::Left, Some(join(why, undone)));
        }
        if self.plan.policy.on_failure == OnFailure::Stop {
            let reach = self.reach;
            let instance = &stage.instance;
            // It is to be left as it is, so the guard must not take it back.
            match attempt(reach.clock, || reach.hosts.disarm_guard(instance)).await {
                Ok(()) => {}
                Err(Halt::Run(error)) => return Err(error),
                Err(Halt::Failed(error) | Halt::Unknown(error)) => {
                    // Mostly since it has acted, or will: the host was away for longer than its guard waits.
                    match self.look_while_it_helps_itself(&stage.instance.clone()).await {
                        Ok(process) if runs_only(&process, &stage.from) => {
                            let undone = self.undo(stage).await?;
                            let why = Some(join(why, undone));
                            return self.end_turn(stage, TurnEnd::RolledBack, why);
                        }
                        Ok(_) => {}
                        Err(Halt::Run(error)) => return Err(error),
                        Err(Halt::Failed(unknown) | Halt::Unknown(unknown)) => {
                            let undone = self.undo(stage).await?;
                            let why =
                                format!("{why}; whether its guard acts is not known: {unknown}");
                            return Ok(TurnResult { end: None, failure: Some(join(why, undone)) });
                        }
                    }
                    self.note(format!(
                        "the guard of {} could not be disarmed: {error}",
                        stage.instance.id
                    ));
                }
            }
            let undone = self.undo(stage).await?;
            return self.end_turn(stage, TurnEnd::Left, Some(join(why, undone)));
        }
        self.go_back(stage, why).await
    }

    async fn save_evidence(&self, stage: &Stage) -> Result<(), RunError> {
        let lines = match self.reach.hosts.evidence(&stage.instance).await {
            Ok(lines) => lines,
            Err(error) => vec![format!("(no logs: {error})")],
        };
        let instance = stage.instance.id.clone();
        self.recorder
            .write(&Entry::Evidence { instance: instance.clone(), lines: lines.clone() })?;
        if let Some(part) = self.parts.borrow_mut().get_mut(&instance) {
            part.evidence.clone_from(&lines);
        }
        self.recorder.say(Event::Evidence { instance, lines });
        Ok(())
    }

    /// Puts the node back to the build from before: exchange back, the same gates, guard off, undo.
    async fn go_back(&self, stage: &mut Stage, why: String) -> Result<TurnResult, RunError> {
        let instance = stage.instance.id.clone();
        self.recorder.write(&Entry::GoingBack { instance: instance.clone(), why: why.clone() })?;
        self.recorder.say(Event::GoesBack { instance, why: why.clone() });
        match self.put_back(stage).await {
            Ok(()) => {
                let undone = self.undo(stage).await?;
                self.end_turn(stage, TurnEnd::RolledBack, Some(join(why, undone)))
            }
            Err(Halt::Run(error)) => Err(error),
            Err(Halt::Failed(error)) => {
                let old = self.old_build_for_good(stage).await;
                let undone = self.undo(stage).await?;
                let (end, words) = match old {
                    Some(Old::Runs) => {
                        (TurnEnd::RolledBack, "it runs the build from before again, but")
                    }
                    Some(Old::Lies) => {
                        (TurnEnd::Left, "the build from before lies there again, but does not run:")
                    }
                    None => (TurnEnd::Left, "and putting it back failed:"),
                };
                let why = join(format!("{why}; {words} {error}"), undone);
                self.end_turn(stage, end, Some(why))
            }
            Err(Halt::Unknown(error)) => {
                let undone = self.undo(stage).await?;
                let why = join(
                    format!("{why}; and how putting it back ended is not known: {error}"),
                    undone,
                );
                Ok(TurnResult { end: None, failure: Some(why) })
            }
        }
    }

    /// Whether the node has the old build although something is still missing: mostly in the cluster around it,
    /// or it cannot start for a reason of its host's (a full disk), where its own way back cannot mend it. Its guard has
    /// nothing left to do then: systemd goes on starting it.
    async fn old_build_for_good(&self, stage: &mut Stage) -> Option<Old> {
        // Its files lie there for certain only after our own window; before that its guard has something left to do.
        if !stage.is_exchange() || stage.texts.is_some() && !stage.is_put_back {
            return None;
        }
        let reach = self.reach;
        let old = match self.look_until_known(&stage.instance).await {
            Ok(process) if runs_only(&process, &stage.from) => Old::Runs,
            Ok(process) if lies_only(&process, &stage.from) => Old::Lies,
            Ok(_) | Err(_) => return None,
        };
        let instance = &stage.instance;
        match attempt(reach.clock, || reach.hosts.disarm_guard(instance)).await {
            Ok(()) | Err(Halt::Failed(_)) => stage.armed_at = None,
            Err(Halt::Unknown(_) | Halt::Run(_)) => {}
        }
        Some(old)
    }

    async fn put_back(&self, stage: &mut Stage) -> Result<(), Halt> {
        let reach = self.reach;
        let process = self.look_while_it_helps_itself(&stage.instance).await?;
        let is_back = if stage.is_exchange() {
            // Of its files the window will find out: with all of them in place it stops nothing.
            stage.texts.is_none() && runs_only(&process, &stage.from)
        } else {
            stage.texts.is_none() || !stage.is_exchanged
        };
        if !is_back {
            if stage.is_exchange() {
                // Our own exchange and the guard's must not meet. If the guard has acted, there is nothing to put off.
                match self.arm(stage, self.plan.policy.guard_s).await {
                    Ok(()) | Err(Halt::Failed(_)) => {}
                    Err(halt) => return Err(halt),
                }
            }
            let step = Step::Window {
                instance: stage.instance.id.clone(),
                from: stage.to.clone(),
                to: stage.from.clone(),
                around: stage.around,
                texts: stage.texts.as_ref().map(|texts| texts.before.clone()),
            };
            stage.pid_before = process.pid;
            self.recorder.write(&Entry::Started { step: step.clone() })?;
            self.recorder.say(Event::StepBegins { step: step.clone() });
            let begun = reach.clock.elapsed();
            self.exchange(stage, Direction::Back).await?;
            let took = reach.clock.elapsed().saturating_sub(begun);
            self.recorder.write(&Entry::Done {
                step: step.clone(),
                took_ms: millis(took),
                note: None,
                away: None,
            })?;
            self.recorder.say(Event::StepEnds { step, took, note: None });
        }
        stage.is_put_back = true;
        stage.window_ended = Some(reach.clock.elapsed());
        // Others of the batch may have to go back as well, and wait for each other to be healthy.
        stage.floor = None;
        if !stage.was_broken {
            let within = Duration::from_secs(self.plan.policy.healthy_within_s.into());
            let good_for = Duration::from_secs(self.plan.policy.soak_s.into());
            let build = stage.from.clone();
            let step = Step::AwaitHealthy {
                instance: stage.instance.id.clone(),
                build: build.clone(),
                within_s: self.plan.policy.healthy_within_s,
            };
            self.recorder.say(Event::StepBegins { step: step.clone() });
            let begun = reach.clock.elapsed();
            let gate = Gate { step: &step, build: &build, pid_before: None, within, good_for };
            self.pass_gate(stage, &gate).await?;
            let took = reach.clock.elapsed().saturating_sub(begun);
            self.recorder.say(Event::StepEnds { step, took, note: None });
        }
        if !stage.is_exchange() {
            return Ok(());
        }
        let instance = &stage.instance;
        match attempt(reach.clock, || reach.hosts.disarm_guard(instance)).await {
            // It has fired: then it did what we wanted as well.
            Ok(()) | Err(Halt::Failed(_)) => stage.armed_at = None,
            Err(halt) => return Err(halt),
        }
        Ok(())
    }

    /// Takes back what DM was told: tasks that we paused run, masters that we evicted may lead.
    /// Returns what could not be taken back.
    pub(crate) async fn undo(&self, stage: &mut Stage) -> Result<Vec<String>, RunError> {
        let reach = self.reach;
        let mut left = Vec::new();
        if stage.armed_at.is_some() && !stage.is_exchanged {
            let instance = &stage.instance;
            match attempt(reach.clock, || reach.hosts.disarm_guard(instance)).await {
                Ok(()) => {}
                Err(Halt::Run(error)) => return Err(error),
                Err(Halt::Failed(error) | Halt::Unknown(error)) => {
                    left.push(format!(
                        "the guard of {} is still armed: {error}",
                        stage.instance.id
                    ));
                }
            }
        }
        if stage.floor.is_none() {
            stage.floor = Arc::clone(&self.floor).try_lock_owned().ok();
        }
        if stage.floor.is_none() {
            return Ok(left); // what is paused or evicted belongs to whoever has it
        }
        let paused = self.paused.borrow().clone();
        for (task, source) in paused {
            let step = Step::ResumeSubtask { task: task.clone(), source: source.clone() };
            let bound = Step::AwaitBound {
                source: source.clone(),
                within_s: self.plan.policy.settle_within_s,
            };
            self.recorder.write(&Entry::Started { step: step.clone() })?;
            let begun = reach.clock.elapsed();
            let is_exchanged = std::mem::replace(&mut stage.is_exchanged, false);
            let within_s = self.plan.policy.settle_within_s;
            let waited =
                self.await_dm(stage, &bound, within_s, &[], |dm| unbound(dm, &source)).await;
            stage.is_exchanged = is_exchanged;
            if let Err(Halt::Run(error)) = waited {
                return Err(error);
            }
            let key = (task, source);
            let answer = attempt_dm(reach, || reach.dm.resume(&key.0, &key.1)).await;
            let note = self.unless_stopped(&key, answer).await;
            let (task, source) = &key;
            match note {
                Ok(note) => {
                    self.paused.borrow_mut().remove(&key);
                    let took = reach.clock.elapsed().saturating_sub(begun);
                    self.recorder.write(&Entry::Done {
                        step: step.clone(),
                        took_ms: millis(took),
                        note: note.clone(),
                        away: None,
                    })?;
                    self.recorder.say(Event::StepEnds { step, took, note });
                }
                Err(Halt::Run(error)) => return Err(error),
                Err(Halt::Failed(error) | Halt::Unknown(error)) => {
                    self.record_failure(&step, &error, false)?;
                    left.push(format!("task {task} on source {source} is still paused: {error}"));
                }
            }
        }
        let evicted = self.evicted.borrow().clone();
        for id in evicted {
            let Some(instance) = self.plan.instance(&id).cloned() else { continue };
            let step = Step::CancelEvict { instance: id.clone() };
            self.recorder.write(&Entry::Started { step: step.clone() })?;
            match attempt_dm(reach, || reach.dm.cancel_evict(&instance)).await {
                Ok(()) => {
                    self.evicted.borrow_mut().remove(&id);
                    self.recorder.write(&Entry::Done {
                        step,
                        took_ms: 0,
                        note: None,
                        away: None,
                    })?;
                }
                Err(Halt::Run(error)) => return Err(error),
                Err(Halt::Failed(error) | Halt::Unknown(error)) => {
                    self.record_failure(&step, &error, false)?;
                    left.push(format!("{id} may still be kept from leading: {error}"));
                }
            }
        }
        Ok(left)
    }
}

/// What came of a step that holds.
enum Taken {
    Done(Option<String>),
    Skipped(String),
}

/// Which way a window goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Direction {
    /// To what the turn is for.
    Forth,
    /// To what was before it.
    Back,
}

/// How a node has the build from before.
enum Old {
    Runs,
    /// In `bin`, and no process has another.
    Lies,
}

fn lies_only(process: &ProcessSeen, build: &Digest) -> bool {
    process.on_disk.as_ref() == Some(build)
        && process.running.as_ref().is_none_or(|running| running == build)
}

/// A build lies there, runs, and nothing else does.
fn runs_only(process: &ProcessSeen, build: &Digest) -> bool {
    process.on_disk.as_ref() == Some(build)
        && process.active == UnitActive::Active
        && process.running.as_ref() == Some(build)
}

/// What keeps a subtask from counting as resumed.
fn stands(dm: &DmSeen, (task, source): &(TaskName, SourceId)) -> Option<String> {
    let Some(subtask) = dm.subtasks.iter().find(|s| s.task == *task && s.source == *source) else {
        return Some("nobody answers for it".to_owned());
    };
    match (subtask.stage, subtask.errors.first()) {
        (SubtaskStage::Running | SubtaskStage::Finished, _) => None,
        (stage, None) => Some(format!("it is {stage:?}")),
        (stage, Some(error)) => Some(format!("it is {stage:?}: {error}")),
    }
}

fn failed_untouched(why: String) -> TurnResult {
    TurnResult { end: Some(TurnEnd::Untouched), failure: Some(why) }
}

/// A turn that takes an earlier one back ends the other way round.
fn seen_from_the_run(end: TurnEnd, is_return: bool) -> TurnEnd {
    match (end, is_return) {
        (TurnEnd::Changed, true) => TurnEnd::RolledBack,
        (TurnEnd::RolledBack | TurnEnd::Untouched, true) => TurnEnd::Changed,
        (end, _) => end,
    }
}

fn failure_of(undone: Vec<String>) -> Option<String> {
    (!undone.is_empty()).then(|| undone.join("; "))
}

fn join(why: String, undone: Vec<String>) -> String {
    if undone.is_empty() { why } else { format!("{why}; besides: {}", undone.join("; ")) }
}

fn around_of(steps: &[Step]) -> Around {
    steps
        .iter()
        .find_map(|step| if let Step::Window { around, .. } = step { Some(*around) } else { None })
        .unwrap_or(Around::Restart)
}

fn window_of(steps: &[Step]) -> Option<&Step> {
    steps.iter().find(|step| matches!(step, Step::Window { .. }))
}

/// After which step a node stays as it is, whatever follows: its guard is off, or without one it has been seen to be healthy.
fn keeping_step(steps: &[Step]) -> Option<&Step> {
    let disarms = |step: &&Step| matches!(step, Step::DisarmGuard { .. });
    let gate = |step: &&Step| matches!(step, Step::AwaitHealthy { .. } | Step::Soak { .. });
    let is_exchange = |step: &Step| matches!(step, Step::Window { from, to, .. } if from != to);
    let last_gate = || steps.iter().rfind(gate).filter(|_| !steps.iter().any(is_exchange));
    steps.iter().find(disarms).or_else(last_gate)
}

fn no_new_leader(dm: &DmSeen, former: &InstanceId) -> Option<String> {
    let Some(leader) = leader_of(dm) else {
        return Some("the masters have not one leader".to_owned());
    };
    if leader.instance.as_ref() == Some(former) {
        return Some(format!("{former} still leads"));
    }
    let behind = dm
        .masters
        .iter()
        .filter(|master| master.alive && master.instance.as_ref() != Some(former))
        .find(|master| master.calls_leader.as_ref() != Some(&leader.name));
    behind.map(|master| format!("{} does not follow {}", master.name, leader.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    #[test]
    fn which_build_a_node_has_is_told_by_what_lies_there_and_by_what_runs() {
        let seen = |active, on_disk: &str, running: Option<&str>| {
            let process = ProcessSeen {
                active,
                sub_state: "as it is".into(),
                enabled: true,
                pid: None,
                restarts: 0,
                active_since_ms: None,
                running: running.map(build),
                on_disk: Some(build(on_disk)),
            };
            (runs_only(&process, &build("old")), lies_only(&process, &build("old")))
        };
        let (up, down) = (UnitActive::Active, UnitActive::Failed);
        assert_eq!(seen(up, "old", Some("old")), (true, true));
        assert_eq!(seen(down, "old", Some("old")), (false, true));
        assert_eq!(seen(down, "old", None), (false, true));
        assert_eq!(seen(up, "old", Some("new")), (false, false));
        assert_eq!(seen(up, "new", Some("old")), (false, false));
        assert_eq!(seen(down, "new", None), (false, false));
    }

    #[test]
    fn a_node_is_kept_once_its_guard_is_off_and_without_an_exchange_once_it_was_watched() {
        let instance = InstanceId::new("h1:8262").expect("a name");
        let window = |from: &str, to: &str| Step::Window {
            instance: instance.clone(),
            from: build(from),
            to: build(to),
            around: Around::Restart,
            texts: None,
        };
        let healthy =
            Step::AwaitHealthy { instance: instance.clone(), build: build("old"), within_s: 1 };
        let soak = Step::Soak { instance: instance.clone(), build: build("old"), soak_s: 1 };
        let disarm = Step::DisarmGuard { instance: instance.clone() };
        let cancel = Step::CancelEvict { instance: instance.clone() };
        let restart = [window("old", "old"), healthy.clone(), soak.clone(), cancel.clone()];
        assert_eq!(keeping_step(&restart), Some(&soak));
        assert_eq!(keeping_step(&restart[..2]), Some(&healthy));
        let exchange = [window("old", "new"), healthy, soak, disarm.clone(), cancel];
        assert_eq!(keeping_step(&exchange), Some(&disarm));
        assert_eq!(keeping_step(&exchange[..3]), None);
    }

    #[test]
    fn what_could_not_be_taken_back_is_a_failure_and_said_besides_another() {
        let left = || vec!["one".to_owned(), "two".to_owned()];
        assert_eq!(failure_of(Vec::new()), None);
        assert_eq!(failure_of(left()), Some("one; two".to_owned()));
        assert_eq!(join("why".to_owned(), Vec::new()), "why");
        assert_eq!(join("why".to_owned(), left()), "why; besides: one; two");
    }
}
