//! A run of a plan: its folder, its events on the screen, Ctrl-C, its end. Shared by `patch`, `rollback` and `resume`.

use std::collections::BTreeSet;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::ids::{ClusterName, HostId, InstanceId};
use dmup_core::instance::Instance;
use dmup_core::journal::{Away, fold};
use dmup_core::plan::{Blocker, Decision, Kind as RunKind, ParcelSpec, Plan, Warning};
use dmup_core::report::{InstanceEnd, InstanceReport, Report, RunEnd};
use dmup_core::systemd::SystemdMode;
use dmup_core::texts::Texts;
use dmup_exec::ports::{Certainty, Clock, EffectError};
use dmup_exec::{
    Event, FileJournal, JournalError, Reach, RunError, RunFolder, execute, resume, take_back,
};
use dmup_remote::Fleet;
use dmup_remote::dm_api::DmClient;
use dmup_remote::hosts::store;
use futures::future::join_all;
use tokio_util::sync::CancellationToken;

use crate::args::Format;
use crate::ask;
use crate::context::{Context, Known};
use crate::failure::{Failure, Kind, chain};
use crate::kept::{self, Owed};
use crate::progress::{Progress, span};

/// Windows need root, or a systemd of the deploy user: a host that refuses it must be known before the first node is touched.
pub(crate) async fn refuse_without_rights(
    fleet: &Fleet,
    instances: impl IntoIterator<Item = &Instance>,
) -> Result<(), Failure> {
    let hosts: BTreeSet<&HostId> = instances.into_iter().map(|it| &it.host).collect();
    let answers = join_all(hosts.into_iter().map(|host| fleet.check_rights(host))).await;
    let refused: Vec<EffectError> = answers.into_iter().filter_map(Result::err).collect();
    if refused.is_empty() {
        return Ok(());
    }
    let failure = Failure::refused("not every host can be worked on")
        .because(refused.iter().map(ToString::to_string));
    // Of a user's systemd, what is missing differs from host to host, and was said for each.
    let lacks_sudo = fleet.systemd_mode() == SystemdMode::System
        && refused.iter().any(|error| error.certainty == Certainty::Refused);
    Err(if lacks_sudo {
        failure.hint("the deploy user needs `NOPASSWD` in /etc/sudoers.d, as `deploy` writes it")
    } else {
        failure
    })
}

/// After a good run its parcels are in every `bin`, and the way back lies beside it: the copy in the hosts' stores
/// is not needed any more. Best effort: what cannot be removed is only in nobody's way.
pub(crate) async fn clean_stores(plan: &Plan, fleet: &Fleet) {
    let parcels: Vec<&ParcelSpec> = plan.parcel.iter().chain(&plan.parcels).collect();
    if parcels.is_empty() {
        return;
    }
    let parcels = &parcels;
    let hosts: BTreeSet<&HostId> = plan
        .turns
        .iter()
        .filter_map(|turn| plan.instance(&turn.instance))
        .map(|instance| &instance.host)
        .collect();
    join_all(hosts.into_iter().map(|host| async move {
        if let Ok(hello) = fleet.hello(host).await {
            let paths = parcels.iter().flat_map(|parcel| {
                let folder = store(&hello.home).join(parcel.digest.as_str());
                [Utf8PathBuf::from(format!("{folder}.json")), folder]
            });
            drop(fleet.remove(host, paths.collect()).await);
        }
    }))
    .await;
}

/// What an attempt to begin a run came to.
pub(crate) enum Begun<T> {
    /// It ran to an end.
    Ran(T),
    /// The cluster is not as it was when the plan was made, or does not say how it is. Nothing was touched.
    NotYet(Failure),
}

/// What a run has in its folder beside plan and journal, for whoever resumes it.
#[derive(Default)]
pub(crate) struct Keeps<'a> {
    /// Files that windows write.
    pub(crate) texts: &'a [Texts],
    /// What it does after its last node.
    pub(crate) owed: Option<&'a Owed>,
}

/// Begins a new run and carries it to its end.
pub(crate) async fn begin(
    plan: &Plan,
    keeps: &Keeps<'_>,
    known: &Known,
    fleet: &Fleet,
    dm: &DmClient,
    context: &Context,
) -> Result<Begun<Report>, Failure> {
    let folder = known.new_run_folder(context)?;
    let (run, mut journal) = write_down(&folder, plan, keeps).map_err(|failure| {
        forget(&folder);
        failure.now("nothing was touched")
    })?;
    context.printer.talk(format_args!("run {}", id_of(&folder)));
    let records = known.records_of(&run);
    let reach = Reach { hosts: fleet, dm, clock: &context.clock, records: &records };
    let cancel = CancellationToken::new();
    let listener = listen(&cancel, known, &folder);
    let mut progress =
        Progress::new(context.global.format, context.surroundings.stderr_is_terminal);
    let mut print = |event: Event| progress.event(&event);
    let outcome = execute(plan, reach, &mut journal, &mut print, &cancel).await;
    listener.abort();
    drop(progress);
    if let Err(error) = &outcome
        && journal.is_empty()
    {
        forget(&folder);
        let failure = not_begun(error);
        return match error {
            RunError::Stale { .. } | RunError::Look { .. } => Ok(Begun::NotYet(failure)),
            RunError::Record(_)
            | RunError::NotResumable(_)
            | RunError::Superseded { .. }
            | RunError::AlreadyEnded => Err(failure.now("nothing was touched")),
        };
    }
    let report = finish(outcome, plan.kind, &run, known)?;
    note_bad_builds(&report, plan.kind, known)?;
    record_version(plan, &report, known, context)?;
    settle(&folder, &report.end, known, context)?;
    Ok(Begun::Ran(report))
}

/// The folder of a new run, with all that whoever resumes it needs.
fn write_down(
    folder: &Utf8Path,
    plan: &Plan,
    keeps: &Keeps<'_>,
) -> Result<(RunFolder, FileJournal), Failure> {
    let (run, journal) =
        RunFolder::create(folder, plan).map_err(|error| not_begun(&error.into()))?;
    for texts in keeps.texts {
        run.keep_texts(texts).map_err(|error| not_begun(&error.into()))?;
    }
    if let Some(owed) = keeps.owed {
        owed.keep(folder)?;
    }
    Ok((run, journal))
}

/// Nothing was done: the folder of such a run would only be in the way of the next one.
fn forget(folder: &Utf8Path) {
    drop(fs_err::remove_dir_all(folder));
}

/// After the last node: what `--overwrite` has promised.
pub(crate) fn settle(
    folder: &Utf8Path,
    end: &RunEnd,
    known: &Known,
    context: &Context,
) -> Result<(), Failure> {
    let is_done = known.settle(folder, end).map_err(|failure| {
        Failure { kind: Kind::Failed, ..failure }
            .now("every node of the run has its build; instances that are added later do not get it yet (--overwrite)")
            .hint(format_args!("`dmup resume {}` does what is left", known.name))
    })?;
    if is_done {
        context.printer.talk(kept::SAID);
    }
    Ok(())
}

/// The build of a node that had to be put back is known as bad; what a restart or a file did is not the build's fault.
fn note_bad_builds(report: &Report, kind: RunKind, known: &Known) -> Result<(), Failure> {
    match kind {
        RunKind::Hotfix | RunKind::Upgrade | RunKind::Rollback => known.note_bad_builds(report),
        RunKind::Restart | RunKind::Reload => Ok(()),
    }
}

/// What to do with a run that was interrupted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Onward {
    /// To its planned end.
    Forth,
    /// To the state before it.
    Back,
}

/// Goes on with a run that was interrupted, either way.
pub(crate) async fn go_on(
    folder: &Utf8Path,
    onward: Onward,
    known: &Known,
    fleet: &Fleet,
    dm: &DmClient,
    context: &Context,
) -> Result<(Report, Plan), Failure> {
    let run = RunFolder::at(folder);
    let plan = run.plan().map_err(|error| not_begun(&error.into()))?;
    let (mut journal, past) = run.journal().map_err(|error| not_begun(&error.into()))?;
    let is_going_back =
        fold(past.iter().map(|line| &line.entry)).is_ok_and(|folded| folded.way_back.is_some());
    let word = match onward {
        Onward::Forth if is_going_back => "resumed: it was on its way back",
        Onward::Forth => "resumed",
        Onward::Back => "taken back",
    };
    context.printer.talk(format_args!("run {}, {word}", id_of(folder)));
    let records = known.records_of(&run);
    let reach = Reach { hosts: fleet, dm, clock: &context.clock, records: &records };
    let cancel = CancellationToken::new();
    let listener = listen(&cancel, known, folder);
    let mut progress =
        Progress::new(context.global.format, context.surroundings.stderr_is_terminal);
    let mut print = |event: Event| progress.event(&event);
    let outcome = match onward {
        Onward::Forth => resume(&plan, &past, reach, &mut journal, &mut print, &cancel).await,
        Onward::Back => take_back(&plan, &past, reach, &mut journal, &mut print, &cancel).await,
    };
    listener.abort();
    drop(progress);
    let report = finish(outcome, plan.kind, &run, known)?;
    if onward == Onward::Forth {
        note_bad_builds(&report, plan.kind, known)?;
    }
    record_version(&plan, &report, known, context)?;
    settle(folder, &report.end, known, context)?;
    Ok((report, plan))
}

/// The version in `meta.yaml` changes once every node of DM has its build, and not before; it changes back when they
/// go back.
fn record_version(
    plan: &Plan,
    report: &Report,
    known: &Known,
    context: &Context,
) -> Result<(), Failure> {
    let Some(to) = &plan.to_version else { return Ok(()) };
    let is_left_out = |warning: &Warning| matches!(warning, Warning::Deferred { .. });
    let ends: Vec<InstanceEnd> = report
        .instances
        .iter()
        .filter(|(_, part)| part.role.is_dm())
        .map(|(_, part)| part.end)
        .collect();
    let is_done = ends.iter().all(|end| *end == InstanceEnd::Changed)
        && !plan.warnings.iter().any(is_left_out);
    let version = if is_done {
        to
    } else if ends.contains(&InstanceEnd::RolledBack) {
        &plan.version
    } else {
        return Ok(());
    };
    if known.record_version(version, is_done && plan.kind == RunKind::Upgrade)? {
        context.printer.talk(format_args!("{} is recorded as {version} now", known.name));
    }
    Ok(())
}

/// Ctrl-C, SIGTERM and a closed terminal: once, the node under way is finished; twice, we end at once.
fn listen(
    cancel: &CancellationToken,
    known: &Known,
    folder: &Utf8Path,
) -> tokio::task::JoinHandle<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let cancel = cancel.clone();
    let how_to_go_on = format!(
        "stopped at once; the run can go on: `dmup resume {} --run {}`",
        known.name,
        id_of(folder)
    );
    tokio::spawn(async move {
        let (Ok(mut int), Ok(mut term), Ok(mut hup)) = (
            signal(SignalKind::interrupt()),
            signal(SignalKind::terminate()),
            signal(SignalKind::hangup()),
        ) else {
            return;
        };
        let mut times = 0;
        loop {
            tokio::select! {
                _ = int.recv() => {}
                _ = term.recv() => {}
                _ = hup.recv() => {}
            }
            times += 1;
            let text = if times == 1 {
                "stopping after this node; once more stops at once".to_owned()
            } else {
                how_to_go_on.clone()
            };
            drop(std::io::Write::write_all(
                &mut std::io::stderr().lock(),
                format!("{text}\n").as_bytes(),
            ));
            if times > 1 {
                // The journal is on disk before every effect: ending here is like any crash, and resumable.
                #[expect(
                    clippy::disallowed_methods,
                    clippy::exit,
                    reason = "the operator asked to stop now, in the middle of an await"
                )]
                std::process::exit(i32::from(Kind::Interrupted.code()));
            }
            cancel.cancel();
        }
    })
}

fn finish(
    outcome: Result<Report, RunError>,
    kind: RunKind,
    run: &RunFolder,
    known: &Known,
) -> Result<Report, Failure> {
    match outcome {
        Ok(report) => {
            run.write_report(&report).map_err(|error| Failure::failed(chain(&error)))?;
            Ok(report)
        }
        Err(
            error
            @ (RunError::Superseded { .. } | RunError::Record(JournalError::TakenOver { .. })),
        ) => Err(not_begun(&error)
            .now("this dmup does nothing more; the run is open, for whoever has the cluster")
            .hint(format_args!(
                "`dmup runs {0}` shows how far it came, `dmup unlock {0}` who has it",
                known.name
            ))),
        Err(error @ RunError::Record(_)) => Err(not_begun(&error)
            .now("the run is open; a node whose turn it was goes back by itself if its guard is armed")
            .hint(how_to_go_on(kind, &known.name))),
        Err(error) => Err(not_begun(&error)),
    }
}

fn not_begun(error: &RunError) -> Failure {
    let kind = match error.exit_code() {
        3 => Kind::Refused,
        7 => Kind::Unknown,
        _ => Kind::Failed,
    };
    Failure::new(kind, chain(error))
}

/// What became of a node, if its turn came.
fn line_of(id: &InstanceId, part: &InstanceReport) -> Option<String> {
    let Away { stop_ms, exchange_us, start_ms, down_ms, killed } = part.away;
    if down_ms == 0 {
        // An `--offline` exchange, or a window whose answer was lost with the process that had ordered it.
        let end = match part.end {
            InstanceEnd::Untouched => return None,
            InstanceEnd::Changed => "changed",
            InstanceEnd::RolledBack => "back on the build from before",
            InstanceEnd::Left => "left as it is",
            InstanceEnd::Unknown => "nobody knows how it is",
        };
        return Some(format!("  {id}: {end}"));
    }
    // A restart or a reload exchanges nothing.
    let exchange = if part.from == part.to {
        String::new()
    } else {
        format!("exchange {:.1}, ", exchange_us as f64 / 1000.0)
    };
    let mut line = format!(
        "  {id}: down {down_ms} ms (stop {stop_ms}, {exchange}start {start_ms}), healthy after {} ms",
        part.healthy_after_ms
    );
    if killed {
        line.push_str(&format!("; systemd had to kill it after {} s", stop_ms / 1000));
    }
    Some(line)
}

/// Prints the report and turns it into the end of the command.
pub(crate) fn end(
    report: &Report,
    kind: RunKind,
    known: &Known,
    context: &Context,
) -> Result<(), Failure> {
    if kind == RunKind::Rollback {
        for note in known.let_go_of_kept()? {
            context.printer.talk(format_args!("note: {note}"));
        }
    }
    match context.global.format {
        Format::Json => {
            context.printer.data(serde_json::to_string(report).expect("text and numbers"));
        }
        Format::Default => {
            for (id, part) in &report.instances {
                if let Some(line) = line_of(id, part) {
                    context.printer.talk(line);
                }
            }
            let took = report.ended.duration_since(report.began);
            let took = std::time::Duration::try_from(took).unwrap_or_default();
            let sent: u64 = report.sent_bytes.values().sum();
            context.printer.talk(format_args!("  took {}, sent {sent} bytes", span(took)));
        }
    }
    let is_exchange = matches!(kind, RunKind::Hotfix | RunKind::Upgrade | RunKind::Rollback);
    let changed = of_end(report, InstanceEnd::Changed);
    let now = state(report, kind);
    let failure = |kind, error: String| Failure::new(kind, error).now(&now);
    match (&report.end, report.exit_code()) {
        (RunEnd::Done, _) => {
            let words = match kind {
                RunKind::Hotfix | RunKind::Upgrade => "changed",
                RunKind::Rollback => "back on their earlier builds",
                RunKind::Restart => "restarted",
                RunKind::Reload => "reloaded",
            };
            context
                .printer
                .talk(format_args!("Done: {} node(s) {words}, all healthy", changed.len()));
            Ok(())
        }
        (RunEnd::TakenBack, 0) => {
            context.printer.talk(match kind {
                RunKind::Hotfix | RunKind::Upgrade | RunKind::Rollback => {
                    "Done: every node of the run is back on the build from before"
                }
                RunKind::Reload => "Done: every node of the run has its files from before",
                RunKind::Restart => "Done: the run is given up; nothing stays paused or moved",
            });
            Ok(())
        }
        (RunEnd::Paused, _) => {
            context.printer.talk(format_args!(
                "Paused after {} node(s), all healthy\n{now}\n  {}",
                changed.len(),
                how_to_go_on(kind, &known.name)
            ));
            Ok(())
        }
        (RunEnd::Interrupted, _) => Err(failure(Kind::Interrupted, "stopped as asked".to_owned())
            .hint(how_to_go_on(kind, &known.name))),
        (end, code) => {
            let (error, why) = match end {
                RunEnd::RolledBackNode { instance, why } => {
                    (format!("{instance} was put back"), why.clone())
                }
                RunEnd::RolledBackAll { instance, why } => (
                    format!("all nodes of this run were put back, because of {instance}"),
                    why.clone(),
                ),
                RunEnd::Unknown { why } => {
                    ("it is not known how the cluster is".to_owned(), why.clone())
                }
                RunEnd::Failed { why } => ("the run failed".to_owned(), why.clone()),
                RunEnd::TakenBack => (
                    "not every node of the run could be put back".to_owned(),
                    "some were left as they are, before it was taken back".to_owned(),
                ),
                RunEnd::Done | RunEnd::Paused | RunEnd::Interrupted => {
                    (String::new(), String::new())
                }
            };
            let kind = match code {
                5 => Kind::RolledBack,
                6 => Kind::Mixed,
                7 => Kind::Unknown,
                _ => Kind::Failed,
            };
            let mut failure = failure(kind, error).because([why]);
            if kind == Kind::Mixed && is_exchange {
                failure = failure.hint(format_args!(
                    "`dmup rollback {}` puts the changed nodes back, too",
                    known.name
                ));
            }
            if kind == Kind::Failed {
                failure = failure.hint("once the cause is gone, give the same command again");
            }
            if kind == Kind::Unknown {
                failure = failure
                    .hint(format_args!(
                        "`dmup display {} --verify` looks at every node",
                        known.name
                    ))
                    .hint(format_args!("`dmup resume {}` looks and goes on", known.name));
            }
            Err(failure)
        }
    }
}

/// What to type about a run that has not ended.
pub(crate) fn how_to_go_on(kind: RunKind, cluster: &ClusterName) -> String {
    match kind {
        // Taking a way back back would bring the hotfix again, which nobody means by the word.
        RunKind::Rollback => format!("`dmup resume {cluster}` goes on with it"),
        RunKind::Hotfix | RunKind::Upgrade | RunKind::Restart | RunKind::Reload => format!(
            "`dmup resume {cluster}` goes on with it, `dmup rollback {cluster}` takes it back"
        ),
    }
}

fn of_end(report: &Report, end: InstanceEnd) -> Vec<String> {
    report
        .instances
        .iter()
        .filter(|(_, part)| part.end == end)
        .map(|(id, _)| id.to_string())
        .collect()
}

fn state(report: &Report, kind: RunKind) -> String {
    let (changed, returned) = match kind {
        RunKind::Hotfix | RunKind::Upgrade => ("on the new build", "back on the old build"),
        RunKind::Rollback => ("back on the earlier build", "on the hotfix again"),
        RunKind::Restart => ("restarted", "as they were"),
        RunKind::Reload => ("reloaded", "with their files from before"),
    };
    let parts: Vec<String> = [
        (InstanceEnd::Changed, changed),
        (InstanceEnd::RolledBack, returned),
        (InstanceEnd::Left, "left as they are, not healthy"),
        (InstanceEnd::Unknown, "not known"),
        (InstanceEnd::Untouched, "untouched"),
    ]
    .into_iter()
    .filter_map(|(end, words)| {
        let ids = of_end(report, end);
        (!ids.is_empty()).then(|| format!("{words}: {}", ids.join(", ")))
    })
    .collect();
    parts.join("\n")
}

/// How long a way back waits for what settles by itself.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks of a patient command.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Decides again and again while all that is in the way is of the kind that goes away by itself: right after a fault
/// a host is still booting, a leader being elected, a source unbound. Says what is waited for; bounded.
///
/// # Errors
///
/// Those of `decide`.
pub(crate) async fn decide_patiently<D, F>(
    mut decide: D,
    may_pass: fn(&Blocker) -> bool,
    patience: Duration,
    context: &Context,
) -> Result<Decision, Failure>
where
    D: FnMut() -> F,
    F: Future<Output = Result<Decision, Failure>>,
{
    let until = context.clock.elapsed() + patience;
    let mut said = Vec::new();
    loop {
        let decision = decide().await?;
        let Decision::Blocked(blockers) = &decision else { return Ok(decision) };
        if !blockers.iter().all(may_pass) || context.clock.elapsed() >= until {
            return Ok(decision);
        }
        let words: Vec<String> = blockers.iter().map(ToString::to_string).collect();
        if words != said {
            context.printer.talk(format_args!(
                "waiting (at most {} s): {}",
                patience.as_secs(),
                words.join("; ")
            ));
            said = words;
        }
        context.clock.sleep(LOOK_AGAIN).await;
    }
}

/// Looks, decides and begins again while the cluster goes on changing between the look and the first step: right after a fault,
/// leadership and sources move. Says so; bounded by [`PATIENCE`].
///
/// # Errors
///
/// Those of `attempt`, and why it has not begun.
pub(crate) async fn begin_patiently<T, F>(
    mut attempt: impl FnMut() -> F,
    clock: &dyn Clock,
    say: impl Fn(&Failure),
) -> Result<T, Failure>
where
    F: Future<Output = Result<Begun<T>, Failure>>,
{
    let until = clock.elapsed() + PATIENCE;
    loop {
        match attempt().await? {
            Begun::Ran(ended) => return Ok(ended),
            Begun::NotYet(failure) if clock.elapsed() >= until => return Err(failure),
            Begun::NotYet(failure) => say(&failure),
        }
        clock.sleep(LOOK_AGAIN).await;
    }
}

/// Tells what the operator has to know of the plan, and asks: the question, and the nodes in their order.
pub(crate) fn agree(
    plan: &Plan,
    question: &str,
    asks: bool,
    context: &Context,
) -> Result<(), Failure> {
    for consent in &plan.consents {
        context.printer.talk(format_args!("note: {consent}"));
    }
    if !asks {
        return Ok(());
    }
    let nodes: Vec<String> = plan.turns.iter().map(|turn| format!("  {}", turn.instance)).collect();
    ask::confirm(&format!("{question}:\n{}", nodes.join("\n")))
}

/// All obstacles at once.
pub(crate) fn blocked(kind: RunKind, known: &Known, blockers: &[Blocker]) -> Failure {
    let what = if kind == RunKind::Rollback { "roll back" } else { kind.command() };
    let mut failure = Failure::refused(format_args!(
        "cannot {what} {} now: {} thing(s) in the way",
        known.name,
        blockers.len()
    ));
    for blocker in blockers {
        let flag = blocker
            .overridden_by()
            .map(|needed| format!(" ({} goes on all the same)", needed.flag()))
            .unwrap_or_default();
        failure = failure.because([format!("{blocker}{flag}")]);
        if let Some(hint) = blocker.hint(kind)
            && !failure.hints.iter().any(|known| known == hint)
        {
            failure = failure.hint(hint);
        }
    }
    failure
}

/// The last part of a run's folder.
pub(crate) fn id_of(folder: &Utf8Path) -> &str {
    folder.file_name().unwrap_or("?")
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Mutex;

    use async_trait::async_trait;
    use dmup_core::digest::Digest;
    use dmup_core::instance::Role;

    use super::*;

    #[test]
    fn every_node_whose_turn_came_has_a_line() {
        let with_build = |to: &[u8], end, down_ms, killed| {
            let away = Away { stop_ms: 90_000, exchange_us: 400, start_ms: 7, down_ms, killed };
            let part = InstanceReport {
                role: Role::DmWorker,
                from: Digest::of(b"old"),
                to: Digest::of(to),
                end,
                away,
                healthy_after_ms: 600,
                evidence: Vec::new(),
            };
            line_of(&InstanceId::new("h1:8262").unwrap(), &part)
        };
        let line = |end, down_ms, killed| with_build(b"new", end, down_ms, killed);
        assert_eq!(line(InstanceEnd::Untouched, 0, false), None);
        let changed = "  h1:8262: changed".to_owned();
        assert_eq!(line(InstanceEnd::Changed, 0, false), Some(changed));
        let times =
            "  h1:8262: down 90009 ms (stop 90000, exchange 0.4, start 7), healthy after 600 ms";
        assert_eq!(line(InstanceEnd::Changed, 90_009, false), Some(times.to_owned()));
        let killed = format!("{times}; systemd had to kill it after 90 s");
        assert_eq!(line(InstanceEnd::RolledBack, 90_009, true), Some(killed));
        // Of a restart.
        let times = "  h1:8262: down 90007 ms (stop 90000, start 7), healthy after 600 ms";
        let restarted = with_build(b"old", InstanceEnd::Changed, 90_007, false);
        assert_eq!(restarted, Some(times.to_owned()));
    }

    /// Sleeping is all that takes time.
    #[derive(Default)]
    struct Hand(Mutex<Duration>);

    #[async_trait]
    impl Clock for Hand {
        fn now(&self) -> jiff::Timestamp {
            jiff::Timestamp::UNIX_EPOCH + self.elapsed()
        }

        fn elapsed(&self) -> Duration {
            *self.0.lock().unwrap()
        }

        async fn sleep(&self, span: Duration) {
            *self.0.lock().unwrap() += span;
        }
    }

    /// So many attempts find the cluster changed; then it stands still.
    async fn begun_after(changes: u32) -> (Result<u32, Failure>, u32, Duration) {
        let (clock, attempts, said) = (Hand::default(), Cell::new(0), Cell::new(0));
        let attempt = || async {
            attempts.set(attempts.get() + 1);
            Ok(if attempts.get() > changes {
                Begun::Ran(attempts.get())
            } else {
                Begun::NotYet(Failure::refused("leader: m1 then, m2 now"))
            })
        };
        let went = begin_patiently(attempt, &clock, |_| said.set(said.get() + 1)).await;
        (went, said.get(), clock.elapsed())
    }

    #[tokio::test]
    async fn a_way_back_begins_once_the_cluster_stands_still() {
        assert_eq!(begun_after(0).await, (Ok(1), 0, Duration::ZERO));
        assert_eq!(begun_after(3).await, (Ok(4), 3, 3 * LOOK_AGAIN));
    }

    #[tokio::test]
    async fn a_cluster_that_never_stands_still_is_left_alone_and_what_changed_is_said() {
        let (went, _, took) = begun_after(u32::MAX).await;
        assert_eq!(went, Err(Failure::refused("leader: m1 then, m2 now")));
        assert_eq!(took, PATIENCE);
    }
}
