//! Waits, each with a limit, and the gate that a node passes before the next one's turn.
//!
//! A limit counts from the last visible progress, not from the beginning: a worker that
//! replays a large transaction moves on and is left alone, one that hangs is not.

use std::collections::BTreeSet;
use std::time::Duration;

use dmup_core::digest::Digest;
use dmup_core::ids::{MemberName, SourceId, TaskName};
use dmup_core::instance::{Instance, Role};
use dmup_core::inventory::{DmSeen, ProcessSeen, UnitActive, WorkerSeen, WorkerStage};
use dmup_core::plan::{Expectation, Health, Step, busy, is_up, judge, leader_of, master_of};
use dmup_core::policy::OnBusy;
use futures::future::join_all;

use crate::events::Event;
use crate::execute::{Halt, Run, attempt_look};
use crate::turn::Stage;

/// Between two looks.
const POLL: Duration = Duration::from_millis(300);
/// However much progress there is, a gate is over after so many times its limit.
const LAST_LIMIT: u32 = 10;

/// What a gate asks for.
pub(crate) struct Gate<'s> {
    /// For messages.
    pub(crate) step: &'s Step,
    /// What the process must run.
    pub(crate) build: &'s Digest,
    /// The process that must be gone.
    pub(crate) pid_before: Option<u32>,
    /// Without progress.
    pub(crate) within: Duration,
    /// How long it must stay so.
    pub(crate) good_for: Duration,
}

impl Run<'_> {
    /// Waits until the node and the cluster are healthy, and stay so.
    pub(crate) async fn pass_gate(&self, stage: &mut Stage, gate: &Gate<'_>) -> Result<(), Halt> {
        let clock = self.reach.clock;
        let begun = clock.elapsed();
        let mut moved = begun;
        let mut progress = String::new();
        let mut said: Vec<String> = Vec::new();
        let mut good_since: Option<Duration> = None;
        let mut good_pid = None;
        let helps_itself = self.time_to_help_itself();
        let mut hashed: Option<(u32, Digest)> = None;
        let mut is_silent;
        // Nobody has said anything against it: no answer is not a bad one, though not a good one either.
        let mut is_unanswered;
        loop {
            self.keep_guard_waiting(stage).await;
            let health = match self.look_at_node(&stage.instance, gate.build, &mut hashed).await {
                Ok(process) => {
                    is_silent = false;
                    if process.pid != good_pid {
                        // Another process, whoever restarted it: its time begins anew.
                        good_pid = process.pid;
                        good_since = None;
                    }
                    if went_back(stage, gate, &process) {
                        return Err(Halt::Failed(format!(
                            "{} runs build {} again: its guard, or somebody, has put it back",
                            stage.instance.id, stage.from
                        )));
                    }
                    let health;
                    (health, is_unanswered) = self.judge_node(stage, gate, &process).await;
                    health
                }
                Err(Halt::Run(error)) => return Err(error.into()),
                Err(Halt::Failed(why) | Halt::Unknown(why)) => {
                    is_silent = true;
                    is_unanswered = true;
                    Health { missing: vec![why], ..Health::default() }
                }
            };
            if let Some(why) = health.hopeless {
                return Err(Halt::Failed(why));
            }
            let now = clock.elapsed();
            if health.missing.is_empty() {
                // What comes later has its whole time, however long it was well before.
                moved = now;
                let since = *good_since.get_or_insert(now);
                if now.saturating_sub(since) >= gate.good_for {
                    return Ok(());
                }
            } else {
                if !is_unanswered {
                    good_since = None;
                    if health.progress != progress || self.is_anothers_turn(stage) {
                        moved = now;
                    }
                }
                // A host that does not answer is about to help itself: it is not given up before it has.
                let within = if is_silent { gate.within.max(helps_itself) } else { gate.within };
                let is_late = now.saturating_sub(moved) > within
                    || now.saturating_sub(begun) > gate.good_for + gate.within * LAST_LIMIT
                        && !self.is_anothers_turn(stage);
                if is_late {
                    let waited = now.saturating_sub(begun).as_secs();
                    let why = format!("after {waited}s: {}", health.missing.join("; "));
                    return Err(if is_silent { Halt::Unknown(why) } else { Halt::Failed(why) });
                }
            }
            if !is_unanswered {
                progress = health.progress;
            }
            if said != health.missing {
                said.clone_from(&health.missing);
                if !said.is_empty() {
                    self.say_waiting(&stage.instance, gate.step, health.missing);
                }
            }
            clock.sleep(POLL).await;
        }
    }

    fn say_waiting(&self, instance: &Instance, step: &Step, missing: Vec<String>) {
        let (instance, step) = (instance.id.clone(), step.clone());
        self.recorder.say(Event::Waiting { instance, step, missing });
    }

    /// What is known of the node's health, and whether all that is missing is an answer.
    async fn judge_node(
        &self,
        stage: &Stage,
        gate: &Gate<'_>,
        process: &ProcessSeen,
    ) -> (Health, bool) {
        let dm = if stage.baseline.is_some() {
            // A node that is not up must not be polled: it may be stopping.
            let own = std::slice::from_ref(&stage.instance.id);
            let avoiding = if process.active == UnitActive::Active { &[] } else { own };
            self.reach.dm.look(avoiding).await.ok()
        } else {
            None
        };
        let judged = |stopped: &BTreeSet<_>| {
            let expected = Expectation {
                instance: &stage.instance,
                build: gate.build,
                pid_before: gate.pid_before,
                baseline: stage.baseline.as_ref(),
                paused_by_us: &self.paused.borrow(),
                stopped,
                was_broken: stage.was_broken,
            };
            judge(&expected, process, dm.as_ref())
        };
        let mut health = judged(&self.stopped.borrow());
        // Of a node that was not asked nobody else can answer for its subtasks.
        if process.active == UnitActive::Active {
            let mut is_any_stopped = false;
            for subtask in &health.unanswered {
                is_any_stopped |= self.is_stopped(subtask).await;
            }
            if is_any_stopped {
                health = judged(&self.stopped.borrow());
            }
        }
        for what in &health.paused_by_others {
            self.note_once(format!("{what} was paused by somebody meanwhile: it is left so"));
        }
        let mut is_silent = stage.baseline.is_some() && dm.is_none();
        if health.is_good() && stage.instance.role.is_dm() {
            is_silent = !self.compare_build(stage, gate, &mut health).await;
        }
        let is_unanswered = is_silent && health.missing.len() == 1 && health.hopeless.is_none();
        (health, is_unanswered)
    }

    /// Whether somebody has stopped a subtask meanwhile: the masters do not know it any more. One that they know, or that
    /// they do not answer about, may have been lost by the node.
    ///
    /// A leader knows no task until it has read all of them, and then it knows the sources, too: its word counts only if the
    /// same one leads before and after it, with the source at work.
    async fn is_stopped(&self, subtask: &(TaskName, SourceId)) -> bool {
        let (task, source) = subtask;
        let before = self.leader_that_knows(source).await;
        let is_unknown =
            self.reach.dm.sources_of(task).await.is_ok_and(|known| !known.contains(source));
        if !is_unknown || before.is_none() || before != self.leader_that_knows(source).await {
            return false;
        }
        self.stopped.borrow_mut().insert(subtask.clone());
        self.note_once(format!(
            "task {task} on source {source} was stopped by somebody meanwhile: nothing is asked of it any more"
        ));
        true
    }

    /// What was to be done to a subtask: nothing, if it failed because somebody has stopped that subtask. Then the note says so.
    pub(crate) async fn unless_stopped(
        &self,
        subtask: &(TaskName, SourceId),
        answer: Result<(), Halt>,
    ) -> Result<Option<String>, Halt> {
        match answer {
            Err(Halt::Failed(_)) if self.is_stopped(subtask).await => {
                self.paused.borrow_mut().remove(subtask);
                Ok(Some("somebody has stopped it".to_owned()))
            }
            answer => answer.map(|()| None),
        }
    }

    async fn leader_that_knows(&self, source: &SourceId) -> Option<MemberName> {
        let dm = self.reach.dm.look(&[]).await.ok()?;
        let is_bound = matches!(dm.sources.get(source), Some(Some(_)));
        leader_of(&dm).filter(|_| is_bound).map(|leader| leader.name.clone())
    }

    /// What it says of itself must be what its file said of itself when it was prepared. False if it says nothing.
    async fn compare_build(&self, stage: &Stage, gate: &Gate<'_>, health: &mut Health) -> bool {
        let id = &stage.instance.id;
        let said = match self.reach.dm.build_of(&stage.instance).await {
            Ok(said) => said,
            Err(error) => {
                health.missing.push(format!("{id} does not say which build it is: {error}"));
                return false;
            }
        };
        if *gate.build != stage.to || stage.is_return {
            return true; // a way back: its hash is what counts
        }
        let Some((release, commit)) =
            self.versions.get(id).and_then(|text| dmup_core::plan::reported_by_dash_v(text))
        else {
            return true;
        };
        let is_other_commit =
            !commit.is_empty() && !said.commit.is_empty() && commit != said.commit;
        if release != said.release || is_other_commit {
            health.hopeless = Some(format!(
                "{id} calls itself {} ({}), its file {release} ({commit})",
                said.release, said.commit
            ));
        }
        true
    }

    /// Looks at a node's process; hashes its executable once per process, not at every look. Only the wanted
    /// build is remembered: a process begins as the shell of its run script and becomes the executable later, under
    /// the same number.
    pub(crate) async fn look_at_node(
        &self,
        instance: &Instance,
        wanted: &Digest,
        hashed: &mut Option<(u32, Digest)>,
    ) -> Result<ProcessSeen, Halt> {
        let mut process = self.look_once(instance, false).await?;
        if let Some(pid) = process.pid
            && process.active == UnitActive::Active
        {
            match hashed {
                Some((known, digest)) if *known == pid => process.running = Some(digest.clone()),
                Some(_) | None => {
                    process = self.look_once(instance, true).await?;
                    if let (Some(pid), Some(running)) = (process.pid, &process.running)
                        && running == wanted
                    {
                        *hashed = Some((pid, running.clone()));
                    }
                }
            }
        }
        Ok(process)
    }

    async fn look_once(&self, instance: &Instance, hashes: bool) -> Result<ProcessSeen, Halt> {
        let only = std::slice::from_ref(instance);
        match self.reach.hosts.look(&instance.host, only, hashes).await {
            Ok((_, processes)) => process_of(instance, processes),
            Err(error) => Err(Halt::Unknown(error.to_string())),
        }
    }

    /// As [`Self::look_at_node`], with hashes, and patient while the host does not answer.
    pub(crate) async fn look_until_known(&self, instance: &Instance) -> Result<ProcessSeen, Halt> {
        let only = std::slice::from_ref(instance);
        let hosts = self.reach.hosts;
        let (_, processes) =
            attempt_look(self.reach.clock, || hosts.look(&instance.host, only, true)).await?;
        process_of(instance, processes)
    }

    /// How long a host may need until its guard has acted, or it has booted.
    fn time_to_help_itself(&self) -> Duration {
        let policy = &self.plan.policy;
        Duration::from_secs(u64::from(policy.guard_s) + u64::from(policy.stop_within_s))
    }

    /// As [`Self::look_until_known`], for as long as a host may need to help itself: until its guard has acted, or it has
    /// booted. What it has then is what counts.
    pub(crate) async fn look_while_it_helps_itself(
        &self,
        instance: &Instance,
    ) -> Result<ProcessSeen, Halt> {
        let clock = self.reach.clock;
        let until = clock.elapsed() + self.time_to_help_itself();
        loop {
            match self.look_until_known(instance).await {
                Err(Halt::Unknown(why)) => {
                    if clock.elapsed() >= until {
                        return Err(Halt::Unknown(why));
                    }
                    self.note(format!(
                        "{} does not answer; its guard takes it back by itself, so it is waited for",
                        instance.host
                    ));
                }
                known => return known,
            }
        }
    }

    /// Waits until DM is in a state in which a node may be taken down. Returns that state.
    pub(crate) async fn await_cluster(&self, instance: &Instance) -> Result<DmSeen, Halt> {
        let within = Duration::from_secs(self.plan.policy.settle_within_s.into());
        let begun = self.reach.clock.elapsed();
        loop {
            let problems = match self.reach.dm.look(&[]).await {
                Ok(dm) => {
                    let problems = self.problems_before_turn(instance, &dm);
                    if problems.is_empty() {
                        return Ok(dm);
                    }
                    problems
                }
                Err(error) => vec![error.to_string()],
            };
            if self.reach.clock.elapsed().saturating_sub(begun) > within {
                return Err(Halt::Failed(format!(
                    "{} cannot have its turn: {}",
                    instance.id,
                    problems.join("; ")
                )));
            }
            self.reach.clock.sleep(POLL).await;
        }
    }

    fn problems_before_turn(&self, instance: &Instance, dm: &DmSeen) -> Vec<String> {
        let mut problems = Vec::new();
        match leader_of(dm) {
            None => problems.push("the masters have not one leader".to_owned()),
            Some(leader) => {
                let disputed = dm
                    .masters
                    .iter()
                    .any(|m| m.calls_leader.as_ref().is_some_and(|name| *name != leader.name));
                if disputed {
                    problems.push("the masters do not agree on one leader".to_owned());
                }
            }
        }
        let own_is_alive = master_of(dm, &instance.id).is_some_and(|master| master.alive);
        if own_is_alive && dm.masters.len() >= 3 {
            let others = dm
                .masters
                .iter()
                .filter(|master| master.alive && master.instance.as_ref() != Some(&instance.id))
                .count();
            if others <= dm.masters.len() / 2 {
                problems
                    .push(format!("only {others} of {} masters would stay up", dm.masters.len()));
            }
        }
        let Some(baseline) = &self.plan.baseline else { return problems };
        let own_is_up = is_up(instance, None, Some(dm)).is_ok();
        for other in self.plan.instances.iter().filter(|other| other.role == instance.role) {
            if own_is_up
                && is_up(other, None, Some(baseline)).is_ok()
                && let Err(seen) = is_up(other, None, Some(dm))
            {
                problems.push(format!("{} went down meanwhile ({seen})", other.id));
            }
        }
        for (source, bound) in &baseline.sources {
            if bound.is_some() && dm.sources.get(source) == Some(&None) && own_is_up {
                problems.push(format!("source {source} is bound to no worker"));
            }
        }
        for subtask in &dm.subtasks {
            let before = baseline
                .subtasks
                .iter()
                .find(|then| then.task == subtask.task && then.source == subtask.source);
            let key = (subtask.task.clone(), subtask.source.clone());
            if let Some(error) = subtask.errors.first()
                && before.is_some_and(|then| then.errors.is_empty())
                && !self.paused.borrow().contains(&key)
            {
                let (task, source) = key;
                problems.push(format!("task {task} on source {source} has an error: {error}"));
            }
        }
        problems
    }

    /// Polls DM until it is as wanted.
    pub(crate) async fn await_dm(
        &self,
        stage: &mut Stage,
        step: &Step,
        within_s: u32,
        avoiding: &[dmup_core::ids::InstanceId],
        missing: impl Fn(&DmSeen) -> Option<String> + Send + Sync,
    ) -> Result<(), Halt> {
        let within = Duration::from_secs(within_s.into());
        let begun = self.reach.clock.elapsed();
        let mut said = None;
        loop {
            self.keep_guard_waiting(stage).await;
            if stage.is_exchanged {
                // A source cannot come back to a process that does not: do not wait for it.
                if let Ok(process) = self.look_once(&stage.instance, false).await
                    && (process.restarts > 0
                        || matches!(process.active, UnitActive::Failed | UnitActive::Inactive))
                {
                    return Err(Halt::Failed(format!(
                        "the unit of {} is {:?} ({}), restarted {} time(s)",
                        stage.instance.id, process.active, process.sub_state, process.restarts
                    )));
                }
            }
            let lacks = match self.reach.dm.look(avoiding).await {
                Ok(dm) => match missing(&dm) {
                    None => return Ok(()),
                    Some(lacks) => lacks,
                },
                Err(error) => error.to_string(),
            };
            if self.reach.clock.elapsed().saturating_sub(begun) > within {
                return Err(Halt::Failed(format!("{}: {lacks}", step.describe())));
            }
            if said.as_ref() != Some(&lacks) {
                self.say_waiting(&stage.instance, step, vec![lacks.clone()]);
                said = Some(lacks);
            }
            self.reach.clock.sleep(POLL).await;
        }
    }

    /// A worker's sources go to a free worker when it stops, and DM believes a dead one to be there until its lease is
    /// over: they would hang with it for seconds. So the workers themselves are asked, and whoever is not up is waited
    /// for, or for DM to notice it. Returns whether anything had to be waited for.
    pub(crate) async fn await_other_workers(
        &self,
        stage: &Stage,
        step: &Step,
    ) -> Result<bool, Halt> {
        let own = &stage.instance;
        if own.role != Role::DmWorker || stage.baseline.is_none() || stage.was_broken {
            return Ok(false);
        }
        let reach = self.reach;
        let within = Duration::from_secs(self.plan.policy.settle_within_s.into());
        let begun = reach.clock.elapsed();
        let mut waited = false;
        loop {
            if self.yields(stage) {
                return Err(Halt::Failed("another node of the batch is not healthy".to_owned()));
            }
            let dm = attempt_look(reach.clock, || reach.dm.look(&[])).await?;
            let others = dm
                .workers
                .iter()
                .filter(|worker| worker.stage != WorkerStage::Offline)
                .filter_map(|worker| self.plan.instance(worker.instance.as_ref()?))
                .filter(|other| other.id != own.id);
            let looks = others.map(|other| self.only_seems_alive(other));
            let missing: Vec<String> = join_all(looks).await.into_iter().flatten().collect();
            if missing.is_empty() {
                return Ok(waited);
            }
            if reach.clock.elapsed().saturating_sub(begun) > within {
                return Err(Halt::Failed(format!(
                    "{} cannot be stopped now: {}",
                    own.id,
                    missing.join("; ")
                )));
            }
            if !waited {
                self.say_waiting(own, step, missing);
            }
            waited = true;
            reach.clock.sleep(POLL).await;
        }
    }

    /// Why a worker that DM takes for alive is not; none: it is.
    async fn only_seems_alive(&self, worker: &Instance) -> Option<String> {
        let seen = match self.look_once(worker, false).await {
            Ok(process) if process.active == UnitActive::Active => return None,
            Ok(process) => format!("its unit is {:?} ({})", process.active, process.sub_state),
            // A host that cannot be reached may have a worker that is well.
            Err(_) => self.reach.dm.build_of(worker).await.err()?.to_string(),
        };
        Some(format!("DM takes worker {} for alive, but {seen}", worker.id))
    }

    /// Who takes a source whose tasks stand for it: the worker that is meant, or, if that has died meanwhile, any other one
    /// that is free and up. Only if there is none is it waited for.
    pub(crate) async fn await_taker(
        &self,
        stage: &Stage,
        step: &Step,
        source: &SourceId,
        meant: &MemberName,
    ) -> Result<MemberName, Halt> {
        let reach = self.reach;
        let within = Duration::from_secs(self.plan.policy.settle_within_s.into());
        let begun = reach.clock.elapsed();
        let mut waited = false;
        loop {
            let dm = attempt_look(reach.clock, || reach.dm.look(&[])).await?;
            // Whoever has it already was asked by an earlier process.
            let is_there = |worker: &&WorkerSeen| worker.source.as_ref() == Some(source);
            let is_free = |worker: &&WorkerSeen| worker.stage == WorkerStage::Free;
            let mut takers: Vec<&WorkerSeen> = dm
                .workers
                .iter()
                .filter(|worker| worker.instance.as_ref() != Some(&stage.instance.id))
                .filter(|worker| is_there(worker) || is_free(worker))
                .collect();
            takers.sort_by_key(|worker| (!is_there(worker), worker.name != *meant));
            let mut missing = Vec::new();
            for taker in takers {
                let instance = taker.instance.as_ref().and_then(|id| self.plan.instance(id));
                let Some(instance) = instance else { continue };
                match self.only_seems_alive(instance).await {
                    None => return Ok(taker.name.clone()),
                    Some(why) => missing.push(why),
                }
            }
            if missing.is_empty() {
                missing.push(format!("no worker is free to take source {source}"));
            }
            if reach.clock.elapsed().saturating_sub(begun) > within {
                return Err(Halt::Failed(missing.join("; ")));
            }
            if !waited {
                self.say_waiting(&stage.instance, step, missing);
            }
            waited = true;
            reach.clock.sleep(POLL).await;
        }
    }

    /// Waits for a quiet moment; if there is none, says what is in the way, and goes on if that is the policy.
    pub(crate) async fn await_quiet(
        &self,
        step: &Step,
        instance: &Instance,
        within_s: u32,
    ) -> Result<(), Halt> {
        let within = Duration::from_secs(within_s.into());
        let begun = self.reach.clock.elapsed();
        let mut has_said = false;
        loop {
            let missing = match self.reach.dm.look(&[]).await {
                Ok(dm) => busy(&dm, instance),
                Err(error) => vec![error.to_string()],
            };
            if missing.is_empty() {
                return Ok(());
            }
            if self.reach.clock.elapsed().saturating_sub(begun) >= within {
                let seen = format!(
                    "{} did not become quiet within {within_s}s: {}",
                    instance.id,
                    missing.join("; ")
                );
                return match self.plan.policy.on_busy {
                    OnBusy::Stop => Err(Halt::Failed(seen)),
                    OnBusy::GoOn => {
                        self.note(format!(
                            "{seen}; going on: what it is applying will be applied again from its start"
                        ));
                        Ok(())
                    }
                };
            }
            // Positions move all the time; that it waits is said once.
            if !has_said {
                self.say_waiting(instance, step, missing);
                has_said = true;
            }
            self.reach.clock.sleep(POLL).await;
        }
    }
}

/// Another process of the build from before: the host has lost us for too long and has helped itself, or somebody else has.
fn went_back(stage: &Stage, gate: &Gate<'_>, process: &ProcessSeen) -> bool {
    stage.is_exchange()
        && *gate.build == stage.to
        && process.running.as_ref() == Some(&stage.from)
        && process.pid.is_some()
        && process.pid != gate.pid_before
}

fn process_of(
    instance: &Instance,
    processes: Vec<(dmup_core::ids::InstanceId, ProcessSeen)>,
) -> Result<ProcessSeen, Halt> {
    processes
        .into_iter()
        .find(|(id, _)| *id == instance.id)
        .map(|(_, process)| process)
        .ok_or_else(|| Halt::Failed(format!("its host says nothing of {}", instance.id)))
}

/// What keeps a source from counting as bound.
pub(crate) fn unbound(dm: &DmSeen, source: &dmup_core::ids::SourceId) -> Option<String> {
    let Some(Some(name)) = dm.sources.get(source) else {
        return Some(format!("source {source} is bound to no worker"));
    };
    let is_online = dm.workers.iter().any(|w| w.name == *name && w.stage != WorkerStage::Offline);
    (!is_online).then(|| format!("source {source} is bound to {name}, which is offline"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_source_is_bound_if_its_own_worker_is_there() {
        let name = |text: &str| MemberName::new(text).expect("a name");
        let source = SourceId::new("s1").expect("a name");
        let worker =
            |it: &str, stage| WorkerSeen { name: name(it), instance: None, stage, source: None };
        let seen = |bound: Option<&str>, own: WorkerStage| {
            let dm = DmSeen {
                masters: Vec::new(),
                workers: vec![worker("w1", own), worker("w2", WorkerStage::Free)],
                sources: BTreeMap::from([(source.clone(), bound.map(name))]),
                subtasks: Vec::new(),
                relays: BTreeMap::new(),
            };
            unbound(&dm, &source)
        };
        assert_eq!(seen(Some("w1"), WorkerStage::Bound), None);
        let offline = "source s1 is bound to w1, which is offline";
        assert_eq!(seen(Some("w1"), WorkerStage::Offline).as_deref(), Some(offline));
        let nobody = "source s1 is bound to no worker";
        assert_eq!(seen(None, WorkerStage::Bound).as_deref(), Some(nobody));
    }
}
