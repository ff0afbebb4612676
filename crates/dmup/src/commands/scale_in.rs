//! `scale-in`: takes instances off a cluster, data included, without losing a row or the quorum.
//!
//! One instance after the other. A worker's sources are moved first: by DM itself
//! when it stops (from v6.5.0), else paused, transferred and resumed. A master
//! gives the leadership up, leaves the member group while it still runs, and is
//! stopped then: the group is never smaller than its quorum. `meta.yaml` is saved
//! after each instance, so that a run that broke off can be given again.

use std::time::{Duration, Instant};

use dmup_core::ids::{MemberName, SourceId};
use dmup_core::instance::{Instance, Role};
use dmup_core::inventory::{
    DmSeen, Inventory, SubtaskSeen, SubtaskStage, SubtaskUnit, WorkerStage,
};
use dmup_core::plan::{is_quiet, is_up, leader_of, master_of, worker_of};
use dmup_core::policy::Policy;
use dmup_core::selection::select;
use dmup_core::topology::Meta;
use dmup_exec::ports::{Dm, EffectError, Hosts};
use dmup_remote::Fleet;
use dmup_remote::dm_api::DmClient;
use dmup_wire::message::UnitAction;

use super::refreshing::{POLL, refresh};
use super::{destroy, exporters, units};
use crate::args::ScaleInArgs;
use crate::ask;
use crate::context::{Context, Known, bad_selection, unrecorded};
use crate::failure::Failure;
use crate::progress::Progress;

/// What was done already is seen, and not done twice.
const AGAIN: &str = "give the same command again after the cause is gone";

/// TiUP's sentence for `--force`.
const SENTENCE: &str = "Yes, I know my data might be lost.";

pub(crate) async fn run(args: &ScaleInArgs, context: &Context) -> Result<(), Failure> {
    let _lock = context.cluster(&args.cluster)?.lock("scale-in")?;
    let mut known = context.cluster(&args.cluster)?;
    known.refuse_unfinished_scale_out(false)?;
    known.refuse_unfinished_runs()?;
    let all = known.meta.instances();
    let leaving = select(&all, &args.nodes, &[]).map_err(|bad| bad_selection(&bad))?;
    let staying: Vec<Instance> =
        all.iter().filter(|it| !leaving.iter().any(|gone| gone.id == it.id)).cloned().collect();
    if !staying.iter().any(|it| it.role == Role::DmMaster) {
        return Err(Failure::refused("cannot delete all dm-master servers")
            .hint("`dmup destroy` takes the whole cluster off"));
    }

    let progress = Progress::new(context.global.format, context.surroundings.stderr_is_terminal);
    progress.under_way("look at the cluster");
    let fleet = known.fleet(context, &all).await?;
    let dm = known.dm(context, &all).await?;
    let with_dm = leaving.iter().any(|it| it.role.is_dm());
    let inventory =
        dmup_exec::look(&all, &fleet, &dm, &context.clock, false, with_dm, context.concurrency())
            .await;
    progress.end();
    let findings = in_the_way(&leaving, &staying, &inventory);
    if !args.force && !findings.is_empty() {
        return Err(Failure::refused(format_args!(
            "cannot scale {} in now: {} thing(s) in the way",
            known.name,
            findings.len()
        ))
        .because(findings)
        .hint("--force takes the nodes off all the same: rows may have to wait, data is lost"));
    }
    for finding in findings {
        context.printer.talk(format_args!("note: {finding}"));
    }
    let ids: Vec<&str> = leaving.iter().map(|it| it.id.as_str()).collect();
    if !context.global.yes {
        if args.force {
            ask::confirm_by_typing("What is on nodes that are forced off is lost.", SENTENCE)?;
        }
        ask::confirm(&format!(
            "This operation will delete the {} nodes in `{}` and all their data.",
            ids.join(","),
            known.name
        ))?;
    }

    let name = known.name.clone();
    let work = async {
        let mut rest = all.clone();
        for instance in in_order(&leaving, inventory.dm.as_ref().ok()) {
            progress.say(&format!("+ Take {} {} off", instance.role, instance.id));
            rest.retain(|it| it.id != instance.id);
            let (fleet, force) = (&fleet, args.force);
            let leave = Leave { instance, staying: &staying, rest: &rest, fleet, force };
            leave.carry_out(&known, &dm, &progress, context).await.map_err(|failure| {
                failure.hint(format_args!("`dmup display {}` shows every node", known.name))
            })?;
            // --force bears what fails on hosts, but not that they are somebody else's.
            ours(fleet).await?;
            let topology = known.meta.topology.without(&[instance.id.as_str()]);
            known.meta = Meta { topology, ..known.meta.clone() };
            known.cluster.save_meta(&known.meta, &jiff::Zoned::now()).map_err(|error| {
                unrecorded(error)
                    .now(format_args!("{} is gone, and recorded still", instance.id))
                    .hint(AGAIN)
            })?;
        }
        progress.say("+ Refresh the configuration of the others");
        for note in refresh(&staying, &known.name, &known.meta, &fleet, context).await {
            context.printer.talk(format_args!("note: {note}"));
        }
        Ok::<_, Failure>(())
    };
    context.with_lease(&name, "scale-in", &fleet, work).await?;
    progress.end();
    context.printer.talk(format_args!("Scaled cluster `{}` in successfully", known.name));
    Ok(())
}

/// What would lose the quorum, or leave a source without a worker.
fn in_the_way(leaving: &[Instance], staying: &[Instance], inventory: &Inventory) -> Vec<String> {
    let mut findings: Vec<String> = leaving
        .iter()
        .filter_map(|it| match inventory.hosts.get(&it.host) {
            Some(Err(why)) => Some(format!("{}: its host cannot be reached: {why}", it.id)),
            Some(Ok(_)) | None => None,
        })
        .collect();
    if !leaving.iter().any(|it| it.role.is_dm()) {
        return findings;
    }
    let dm = match &inventory.dm {
        Ok(dm) => dm,
        Err(why) => {
            findings.push(format!("DM does not answer: {why}"));
            return findings;
        }
    };
    if leader_of(dm).is_none() {
        findings.push("the masters have no leader".to_owned());
    }
    if leaving.iter().any(|it| it.role == Role::DmMaster) {
        for master in staying.iter().filter(|it| it.role == Role::DmMaster) {
            if let Err(why) = is_up(master, None, Some(dm)) {
                findings.push(format!(
                    "{}: {why}; a master can only leave while all that stay are up",
                    master.id
                ));
            }
        }
    }
    let mut spares = staying
        .iter()
        .filter_map(|it| worker_of(dm, &it.id))
        .filter(|worker| worker.stage == WorkerStage::Free)
        .count();
    for worker in leaving.iter().filter_map(|it| worker_of(dm, &it.id)) {
        for source in sources_of(dm, &worker.name) {
            match spares.checked_sub(1) {
                Some(left) => spares = left,
                None => findings.push(format!(
                    "source {source} of {} has no free worker to go to",
                    worker.name
                )),
            }
            for subtask in dm.subtasks.iter().filter(|it| it.source == source) {
                if matches!(subtask.unit, SubtaskUnit::Dump | SubtaskUnit::Load)
                    && subtask.stage == SubtaskStage::Running
                {
                    findings.push(format!(
                        "task {} dumps or loads source {source} on {}: its files would be lost",
                        subtask.task, worker.name
                    ));
                }
            }
        }
    }
    findings
}

/// The masters among `rest` have a leader and are all up. Those that `may_be_down` are not asked for.
fn is_one_group(rest: &[Instance], dm: &DmSeen, may_be_down: bool) -> Result<(), String> {
    if leader_of(dm).is_none() {
        return Err("the masters have no leader".to_owned());
    }
    if may_be_down {
        return Ok(());
    }
    for master in rest.iter().filter(|it| it.role == Role::DmMaster) {
        is_up(master, None, Some(dm)).map_err(|why| format!("{}: {why}", master.id))?;
        if master_of(dm, &master.id).is_some_and(|it| it.etcd_healthy == Some(false)) {
            return Err(format!("{}: its etcd is not healthy", master.id));
        }
    }
    Ok(())
}

fn sources_of(dm: &DmSeen, worker: &MemberName) -> Vec<SourceId> {
    let bound = dm.sources.iter().filter(|(_, by)| by.as_ref() == Some(worker));
    bound.map(|(source, _)| source.clone()).collect()
}

/// Monitoring, workers, masters that are down, masters that follow, the leader.
fn in_order<'a>(leaving: &'a [Instance], dm: Option<&DmSeen>) -> Vec<&'a Instance> {
    let mut ordered: Vec<&Instance> = leaving.iter().collect();
    ordered.sort_by_key(|it| match it.role {
        Role::Prometheus
        | Role::Grafana
        | Role::Alertmanager
        | Role::NodeExporter
        | Role::BlackboxExporter => 0,
        Role::DmWorker => 1,
        Role::DmMaster => match dm.and_then(|dm| master_of(dm, &it.id)) {
            Some(master) if master.leader => 4,
            Some(master) if master.alive => 3,
            Some(_) | None => 2,
        },
    });
    ordered
}

/// One instance on its way out.
struct Leave<'a> {
    instance: &'a Instance,
    /// Instances that are there when all is done.
    staying: &'a [Instance],
    /// Instances that are there when this one is gone.
    rest: &'a [Instance],
    fleet: &'a Fleet,
    force: bool,
}

impl Leave<'_> {
    async fn carry_out(
        &self,
        known: &Known,
        dm: &DmClient,
        progress: &Progress,
        context: &Context,
    ) -> Result<(), Failure> {
        let (instance, fleet) = (self.instance, self.fleet);
        ours(fleet).await?;
        let settle = u64::from(Policy::default().settle_within_s);
        let settle = Duration::from_secs(settle.min(context.global.wait_timeout));
        let mut moved = Vec::new();
        match instance.role {
            Role::DmMaster => {
                progress.under_way(&format!("take {} out of the member group", instance.name));
                self.bear(self.leave_group(dm, settle).await, context)?;
            }
            Role::DmWorker => {
                progress.under_way(&format!("move the sources of {}", instance.name));
                moved = self.bear(self.give_sources(known, dm, settle).await, context)?;
            }
            Role::Prometheus
            | Role::Grafana
            | Role::Alertmanager
            | Role::NodeExporter
            | Role::BlackboxExporter => {}
        }
        for action in [UnitAction::Stop, UnitAction::Disable] {
            self.bear(units::order(fleet, &[instance], action, context).await, context)?;
        }
        if instance.role == Role::DmMaster {
            progress.under_way("wait until the masters that stay are one group again");
            let group = self.await_group(dm, settle).await;
            self.bear(group.map_err(|it| self.is_stopped(it)), context)?;
        }
        if instance.role == Role::DmWorker {
            progress.under_way(&format!("wait until DM has let {} go", instance.name));
            // A worker that could not say good-bye has its lease for a minute more.
            let patience = settle * 2;
            let bound = self.await_bound_elsewhere(&moved, dm, patience).await;
            self.bear(bound.map_err(|it| self.is_stopped(it)), context)?;
            let off = wait("take the worker off the member list", patience, async || {
                self.remove_member(dm).await
            });
            let off = off.await.map_err(|failure| {
                let prune = format!("`dmup prune {}` takes it off", known.name);
                match self.force {
                    // Nobody knows it any more then.
                    true => failure.hint(format_args!("{prune} later")),
                    false => self.is_stopped(failure).hint(format_args!(
                        "or with --force, which goes on without that; {prune} afterwards"
                    )),
                }
            });
            self.bear(off, context)?;
        }
        let gone = [instance.clone()];
        let failed = destroy::remove(fleet, &gone, self.rest, known, |_| false).await;
        let removed = if failed.is_empty() {
            Ok(())
        } else {
            let failure = Failure::failed(format_args!("remove {}", instance.id)).because(failed);
            Err(self.is_stopped(failure))
        };
        self.bear(removed, context)?;
        if !self.rest.iter().any(|it| it.ssh_host == instance.ssh_host) {
            let mut pairs = known.meta.topology.exporters();
            pairs.retain(|pair| pair.are_beside(instance));
            let failed = exporters::take_off(fleet, &pairs, &[], context).await;
            let off = if failed.is_empty() {
                Ok(())
            } else {
                let what = format!("take the exporters of {} off", instance.host);
                Err(Failure::failed(what).because(failed))
            };
            self.bear(off, context)?;
        }
        if !self.rest.iter().any(|it| it.host == instance.host) {
            for note in destroy::lock_out(fleet, vec![instance.host.clone()], known).await {
                context.printer.talk(format_args!("note: {note}"));
            }
        }
        Ok(())
    }

    /// How things are after something failed once it was stopped.
    fn is_stopped(&self, failure: Failure) -> Failure {
        let id = &self.instance.id;
        failure
            .now(format_args!(
                "{id} is stopped, does not start at boot, and is recorded; files of it are there"
            ))
            .hint(AGAIN)
    }

    /// With `--force` a failure is a note.
    fn bear<T: Default>(
        &self,
        outcome: Result<T, Failure>,
        context: &Context,
    ) -> Result<T, Failure> {
        match outcome {
            Err(failure) if self.force => {
                let words: Vec<&str> = [&failure.causes, &failure.hints]
                    .into_iter()
                    .flatten()
                    .map(String::as_str)
                    .collect();
                context.printer.talk(format_args!("note: {}: {}", failure.error, words.join("; ")));
                Ok(T::default())
            }
            Err(failure) => {
                let now = failure.now.as_deref().map_or_else(
                    || format!("{} is still recorded", self.instance.id),
                    str::to_owned,
                );
                Err(failure.now(format_args!("{now}; the instances before it are gone")))
            }
            Ok(value) => Ok(value),
        }
    }

    async fn leave_group(&self, dm: &DmClient, settle: Duration) -> Result<(), Failure> {
        let id = &self.instance.id;
        let seen = dm.look(&[]).await.map_err(effect)?;
        let Some(master) = master_of(&seen, id) else { return Ok(()) };
        let off = async {
            if master.leader {
                self.give_leadership(dm, settle).await?;
            }
            // etcd refuses for some seconds after a member has come or gone.
            let off = wait("take the master off the member list", settle, async || {
                self.remove_member(dm).await
            });
            off.await
        };
        let Err(failure) = off.await else { return Ok(()) };
        let failure = failure.hint(AGAIN);
        let now = format!("{id} runs, is a member as before, and is recorded");
        // It stays: then it must be able to lead, too.
        let released = match master.leader && !self.force {
            true => self.let_lead_again(dm).await,
            false => Ok(()),
        };
        Err(match released {
            Ok(()) => failure.now(now),
            Err(why) => failure.now(format_args!("{now}; it may not lead: {why}")).hint(
                format_args!("`dmctl --master-addr {id} operate-leader cancel-evict` lets it"),
            ),
        })
    }

    async fn give_leadership(&self, dm: &DmClient, settle: Duration) -> Result<(), Failure> {
        let id = &self.instance.id;
        ours(self.fleet).await?;
        dm.evict_leader(self.instance).await.map_err(effect)?;
        let avoiding = [id.clone()];
        wait("wait for another leader", settle, async || {
            let seen = dm.look(&avoiding).await.map_err(|it| it.to_string())?;
            match leader_of(&seen) {
                Some(leader) if leader.instance.as_ref() != Some(id) => Ok(()),
                Some(leader) => Err(format!("{} still leads", leader.name)),
                None => Err("no master leads".to_owned()),
            }
        })
        .await
    }

    async fn let_lead_again(&self, dm: &DmClient) -> Result<(), String> {
        self.fleet.still_ours().await.map_err(|it| it.to_string())?;
        dm.cancel_evict(self.instance).await.map_err(|it| it.to_string())
    }

    async fn remove_member(&self, dm: &DmClient) -> Result<(), String> {
        self.fleet.still_ours().await.map_err(|it| it.to_string())?;
        dm.remove_member(self.instance).await.map_err(|it| it.to_string())
    }

    /// The member that went may have led etcd: until the others have elected, they do not answer
    /// `/health`, and DM lists them as not alive. The next to go would be refused meanwhile.
    async fn await_group(&self, dm: &DmClient, settle: Duration) -> Result<(), Failure> {
        let avoiding = [self.instance.id.clone()];
        wait("wait until the masters that stay are one group again", settle, async || {
            let seen = dm.look(&avoiding).await.map_err(|it| it.to_string())?;
            is_one_group(self.rest, &seen, self.force)
        })
        .await
    }

    /// Returns the sources that somebody else must have afterwards.
    async fn give_sources(
        &self,
        known: &Known,
        dm: &DmClient,
        settle: Duration,
    ) -> Result<Vec<SourceId>, Failure> {
        let seen = dm.look(&[]).await.map_err(effect)?;
        let Some(worker) = worker_of(&seen, &self.instance.id) else { return Ok(Vec::new()) };
        let sources = sources_of(&seen, &worker.name);
        if sources.is_empty() {
            return Ok(sources);
        }
        let quiet = Duration::from_secs(u64::from(Policy::default().quiet_within_s));
        // A large transaction under way only makes it slower: after the wait we go on.
        drop(
            wait("wait for a quiet moment", quiet, async || match dm.look(&[]).await {
                Ok(seen) if is_quiet(&seen, self.instance) => Ok(()),
                Ok(_) => Err("it lags behind".to_owned()),
                Err(error) => Err(error.to_string()),
            })
            .await,
        );
        if known.meta.version.stops_subtasks_before_lease() {
            return Ok(sources);
        }
        let mut spares: Vec<MemberName> = self
            .staying
            .iter()
            .filter_map(|it| worker_of(&seen, &it.id))
            .filter(|it| it.stage == WorkerStage::Free)
            .map(|it| it.name.clone())
            .collect();
        for source in &sources {
            let Some(spare) = spares.pop() else { continue };
            let running: Vec<&SubtaskSeen> = seen
                .subtasks
                .iter()
                .filter(|it| it.source == *source)
                .filter(|it| matches!(it.stage, SubtaskStage::Running | SubtaskStage::Resuming))
                .collect();
            ours(self.fleet).await?;
            let transferred = transfer(source, &spare, &running, dm, settle).await;
            // Whatever happened, what we paused must not stay paused.
            for subtask in &running {
                wait("resume the tasks", settle, async || {
                    dm.resume(&subtask.task, source).await.map_err(|it| it.to_string())
                })
                .await?;
            }
            transferred?;
        }
        Ok(sources)
    }

    /// After the stop: every source is bound again. With `--force` a source that has nowhere to go is left for DM.
    async fn await_bound_elsewhere(
        &self,
        sources: &[SourceId],
        dm: &DmClient,
        patience: Duration,
    ) -> Result<(), Failure> {
        wait("wait until other workers have its sources", patience, async || {
            let seen = dm.look(&[]).await.map_err(|it| it.to_string())?;
            let lost: Vec<&str> = sources
                .iter()
                .filter(|source| match seen.sources.get(*source) {
                    Some(Some(worker)) => *worker == self.instance.name,
                    Some(None) => true,
                    None => false,
                })
                .map(SourceId::as_str)
                .collect();
            let has_spare = seen.workers.iter().any(|it| it.stage == WorkerStage::Free);
            if lost.is_empty() || (self.force && !has_spare) {
                Ok(())
            } else {
                Err(format!("not bound: {}", lost.join(", ")))
            }
        })
        .await
    }
}

async fn transfer(
    source: &SourceId,
    spare: &MemberName,
    running: &[&SubtaskSeen],
    dm: &DmClient,
    settle: Duration,
) -> Result<(), Failure> {
    for subtask in running {
        dm.pause(&subtask.task, source).await.map_err(effect)?;
    }
    wait("wait until the tasks are paused", settle, async || {
        let seen = dm.look(&[]).await.map_err(|it| it.to_string())?;
        let late = seen.subtasks.iter().find(|it| {
            it.source == *source
                && it.stage != SubtaskStage::Paused
                && running.iter().any(|paused| paused.task == it.task)
        });
        late.map_or(Ok(()), |it| Err(format!("{} is {:?}", it.task, it.stage)))
    })
    .await?;
    dm.transfer(source, spare).await.map_err(effect)?;
    wait("wait until the source is bound", settle, async || {
        let seen = dm.look(&[]).await.map_err(|it| it.to_string())?;
        match seen.sources.get(source) {
            Some(Some(worker)) if worker == spare => Ok(()),
            other => Err(format!("it is bound to {other:?}")),
        }
    })
    .await
}

/// DM knows nothing of leases: who lost the cluster meanwhile must not tell it anything.
async fn ours(fleet: &Fleet) -> Result<(), Failure> {
    fleet.still_ours().await.map_err(effect)
}

fn effect(error: EffectError) -> Failure {
    Failure::failed(error)
}

/// Asks until it holds, or says what was seen last.
async fn wait(
    what: &str,
    limit: Duration,
    holds: impl AsyncFn() -> Result<(), String>,
) -> Result<(), Failure> {
    let began = Instant::now();
    loop {
        match holds().await {
            Ok(()) => return Ok(()),
            Err(seen) if began.elapsed() > limit => {
                return Err(Failure::failed(what).because([seen]));
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use dmup_core::inventory::{MasterSeen, WorkerSeen};
    use dmup_core::topology::Topology;

    use super::*;

    const TOPOLOGY: &str = "master_servers:\n  - host: 10.0.1.1\n  - host: 10.0.1.2\n  - host: 10.0.1.3\n\
         worker_servers:\n  - host: 10.0.1.1\n  - host: 10.0.1.2\n  - host: 10.0.1.3\n";

    /// Masters up, the first leads; of the workers the first has a source.
    fn cluster() -> (Vec<Instance>, Inventory) {
        let mut topology = Topology::parse(TOPOLOGY).unwrap();
        topology.expand_dirs();
        let all = topology.instances();
        let source = SourceId::new("mysql-01").unwrap();
        let dm = DmSeen {
            masters: all[..3]
                .iter()
                .enumerate()
                .map(|(number, it)| MasterSeen {
                    name: it.name.clone(),
                    instance: Some(it.id.clone()),
                    alive: true,
                    leader: number == 0,
                    calls_leader: None,
                    etcd_healthy: Some(true),
                    release: None,
                })
                .collect(),
            workers: all[3..]
                .iter()
                .enumerate()
                .map(|(number, it)| WorkerSeen {
                    name: it.name.clone(),
                    instance: Some(it.id.clone()),
                    stage: if number == 0 { WorkerStage::Bound } else { WorkerStage::Free },
                    source: (number == 0).then(|| source.clone()),
                })
                .collect(),
            sources: BTreeMap::from([(source, Some(all[3].name.clone()))]),
            subtasks: Vec::new(),
            relays: BTreeMap::new(),
        };
        let inventory = Inventory {
            at: jiff::Timestamp::UNIX_EPOCH,
            hosts: BTreeMap::new(),
            processes: BTreeMap::new(),
            dm: Ok(dm),
        };
        (all, inventory)
    }

    fn split(all: &[Instance], leaving: &[usize]) -> (Vec<Instance>, Vec<Instance>) {
        let (leaving, staying): (Vec<_>, Vec<_>) =
            all.iter().cloned().enumerate().partition(|(number, _)| leaving.contains(number));
        let bare = |part: Vec<(usize, Instance)>| part.into_iter().map(|(_, it)| it).collect();
        (bare(leaving), bare(staying))
    }

    #[test]
    fn a_bound_worker_goes_only_while_a_free_one_stays() {
        let (all, inventory) = cluster();
        let (leaving, staying) = split(&all, &[3, 4]);
        assert_eq!(in_the_way(&leaving, &staying, &inventory), Vec::<String>::new());
        let (leaving, staying) = split(&all, &[3, 4, 5]);
        let findings = in_the_way(&leaving, &staying, &inventory);
        assert!(findings.len() == 1 && findings[0].contains("no free worker"), "{findings:?}");
    }

    #[test]
    fn a_master_goes_only_while_all_that_stay_are_up() {
        let (all, mut inventory) = cluster();
        let (leaving, staying) = split(&all, &[0]);
        assert_eq!(in_the_way(&leaving, &staying, &inventory), Vec::<String>::new());
        inventory.dm.as_mut().unwrap().masters[2].alive = false;
        assert_eq!(in_the_way(&leaving, &staying, &inventory).len(), 1);
        // The one that is down may go itself.
        let (leaving, staying) = split(&all, &[2]);
        assert_eq!(in_the_way(&leaving, &staying, &inventory), Vec::<String>::new());
    }

    #[test]
    fn masters_are_one_group_when_they_have_a_leader_and_all_that_stay_are_up() {
        let (all, inventory) = cluster();
        let mut dm = inventory.dm.unwrap();
        assert_eq!(is_one_group(&all, &dm, false), Ok(()));
        dm.masters[1].alive = false;
        assert!(is_one_group(&all, &dm, false).unwrap_err().contains("10.0.1.2:8261"));
        assert_eq!(is_one_group(&all, &dm, true), Ok(()));
        dm.masters[1].alive = true;
        dm.masters[1].etcd_healthy = Some(false);
        assert!(is_one_group(&all, &dm, false).unwrap_err().contains("etcd"));
        for master in &mut dm.masters {
            master.leader = false;
        }
        assert!(is_one_group(&all, &dm, true).unwrap_err().contains("no leader"));
    }

    #[test]
    fn workers_go_before_masters_and_the_leader_last() {
        let (all, inventory) = cluster();
        let (leaving, _) = split(&all, &[0, 1, 3]);
        let ordered: Vec<&str> = in_order(&leaving, inventory.dm.as_ref().ok())
            .into_iter()
            .map(|it| it.id.as_str())
            .collect();
        assert_eq!(ordered, ["10.0.1.1:8262", "10.0.1.2:8261", "10.0.1.1:8261"]);
    }
}
