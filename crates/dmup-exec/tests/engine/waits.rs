//! Waits: what ends them, how long at most, what is said meanwhile, and what guards do.

use std::time::Duration;

use dmup_core::ids::{SourceId, TaskName};
use dmup_core::instance::Role;
use dmup_core::inventory::SubtaskStage;
use dmup_core::journal::Entry;
use dmup_core::plan::{Decision, Plan, Step, plan_hotfix};
use dmup_core::policy::{BatchSize, OnFailure, Policy};
use dmup_core::report::{InstanceEnd, Report, RunEnd};
use dmup_exec::ports::Clock;
use dmup_exec::{Event, MemoryJournal, execute, look};
use tokio_util::sync::CancellationToken;

use crate::sim::{Behaviour, Happening, Shape, Sim, id, new, old};
use crate::{
    MANY, SMALL, all_new, all_old, decide, go, go_and, go_on, killed_in_the_last_soak, old_version,
    plan, reach,
};

const S: fn(u64) -> Duration = Duration::from_secs;

async fn planned(sim: &Sim, shape: &Shape, policy: &Policy) -> Plan {
    match decide(sim, shape, policy).await {
        Decision::Go(plan) => *plan,
        other => panic!("{other:?}"),
    }
}

async fn watched(plan: &Plan, sim: &Sim, mut watch: impl FnMut(&Event) + Send) -> Report {
    let (mut journal, cancel) = (MemoryJournal::default(), CancellationToken::new());
    execute(plan, reach(sim), &mut journal, &mut |event| watch(&event), &cancel).await.unwrap()
}

fn task(source: &str) -> (TaskName, SourceId) {
    (TaskName::new("t1").unwrap(), SourceId::new(source).unwrap())
}

fn why(report: &Report) -> &str {
    match &report.end {
        RunEnd::Failed { why } | RunEnd::Unknown { why } | RunEnd::RolledBackNode { why, .. } => {
            why
        }
        other => panic!("{other:?}"),
    }
}

/// Between the first beginning and the first end, or failure, of such a step.
#[derive(Default)]
struct Span(Option<Duration>, Option<Duration>);

impl Span {
    fn hear(&mut self, sim: &Sim, event: &Event, wanted: fn(&Step) -> bool) {
        match event {
            Event::StepBegins { step } if wanted(step) && self.0.is_none() => {
                self.0 = Some(Clock::elapsed(sim));
            }
            Event::StepEnds { step, .. } | Event::StepFails { step, .. }
                if wanted(step) && self.1.is_none() =>
            {
                self.1 = Some(Clock::elapsed(sim));
            }
            _ => {}
        }
    }

    fn length(&self) -> Duration {
        self.1.unwrap() - self.0.unwrap()
    }
}

fn is_gate(step: &Step) -> bool {
    matches!(step, Step::AwaitHealthy { .. })
}

fn is_soak(step: &Step) -> bool {
    matches!(step, Step::Soak { .. })
}

#[tokio::test]
async fn the_first_look_waits_for_nobody_who_answers_and_not_long_for_whoever_does_not() {
    let sim = Sim::new(&SMALL, 1);
    let begun = Clock::elapsed(&sim);
    look(&sim.instances(), &sim, &sim, &sim, true, true, 4).await;
    assert_eq!(Clock::elapsed(&sim), begun);
    sim.silence("h2", S(100));
    let inventory = look(&sim.instances(), &sim, &sim, &sim, true, true, 4).await;
    let silent = inventory.hosts.iter().filter(|(_, seen)| seen.is_err());
    assert_eq!(silent.map(|(host, _)| host.as_str()).collect::<Vec<_>>(), ["h2"]);
    let took = Clock::elapsed(&sim) - begun;
    assert!(took >= S(3) && took < S(4), "{took:?}");
}

#[tokio::test]
async fn a_node_that_does_not_move_on_is_given_up_at_its_limit() {
    let sim = Sim::new(&SMALL, 1);
    sim.state.lock().unwrap().behaviours.insert(new(Role::DmMaster), Behaviour::NeverJoins);
    let plan = planned(&sim, &SMALL, &Policy { healthy_within_s: 20, ..Policy::default() }).await;
    let mut span = Span::default();
    let report = watched(&plan, &sim, |event| span.hear(&sim, event, is_gate)).await;
    assert!(matches!(report.end, RunEnd::RolledBackNode { .. }), "{:?}", report.end);
    assert!(span.length() > S(20) && span.length() < S(22), "{:?}", span.length());
}

/// A task that is on its way back all the time: its position moves.
fn resumes_until(sim: &Sim, at: Option<Duration>) {
    let mut state = sim.state.lock().unwrap();
    state.subtasks.insert(task("s1"), SubtaskStage::Resuming);
    let end: Happening = |state| {
        state.subtasks.insert(task("s1"), SubtaskStage::Running);
    };
    state.later = at.map(|at| (at, end));
}

#[tokio::test]
async fn a_node_that_moves_on_has_its_limit_again_and_again_but_not_for_ever() {
    for recovers in [true, false] {
        let sim = Sim::new(&SMALL, 1);
        let plan =
            planned(&sim, &SMALL, &Policy { healthy_within_s: 5, ..Policy::default() }).await;
        let mut span = Span::default();
        let report = watched(&plan, &sim, |event| {
            let was_open = span.0.is_none();
            span.hear(&sim, event, is_gate);
            if was_open && span.0.is_some() {
                let until = Clock::elapsed(&sim) + S(30);
                resumes_until(&sim, recovers.then_some(until));
            }
        })
        .await;
        let limits = if recovers { S(30)..S(32) } else { S(50)..S(52) };
        assert!(limits.contains(&span.length()), "{:?}", span.length());
        assert_eq!(report.end == RunEnd::Done, recovers, "{:?}", report.end);
    }
}

/// A run in which the first node's host falls silent with such a step, and how long that step took.
async fn silent_from(
    plan: &Plan,
    sim: &Sim,
    wanted: fn(&Step) -> bool,
    how_long: Duration,
) -> (Report, Duration) {
    let host = plan.instance(&plan.turns[0].instance).unwrap().host.clone();
    let mut span = Span::default();
    let report = watched(plan, sim, |event| {
        let was_open = span.0.is_none();
        span.hear(sim, event, wanted);
        if was_open && span.0.is_some() {
            sim.silence(host.as_str(), how_long);
        }
    })
    .await;
    (report, span.length())
}

#[tokio::test]
async fn a_node_whose_host_does_not_answer_is_not_taken_for_a_healthy_one() {
    let sim = Sim::new(&SMALL, 1);
    let plan = plan(&sim, &SMALL).await;
    let (report, span) = silent_from(&plan, &sim, is_gate, S(15)).await;
    assert_eq!(report.end, RunEnd::Done);
    assert!(span >= S(15), "{span:?}");
}

#[tokio::test]
async fn a_host_that_does_not_come_back_is_given_up_once_its_guard_must_have_acted() {
    let sim = Sim::new(&SMALL, 1);
    let plan = plan(&sim, &SMALL).await;
    let (report, span) = silent_from(&plan, &sim, is_soak, S(100_000)).await;
    assert!(matches!(report.end, RunEnd::Unknown { .. }), "{:?}", report.end);
    // Its guard is what takes it back: nobody has tried to disarm that.
    assert!(!why(&report).contains("armed"), "{}", why(&report));
    let most = u64::from(plan.policy.guard_s + plan.policy.stop_within_s);
    assert!(span > S(most) && span < S(most + 2), "{span:?}");
    sim.pass(S(600));
    assert!(all_old(&sim));
}

#[tokio::test]
async fn what_says_nothing_against_a_node_does_not_begin_the_soak_anew() {
    let at: [Happening; 2] = [
        // An answer that is lost.
        |state| state.breaks_once = Some("the build of h2:8261".into()),
        // A task that somebody stops.
        |state| {
            state.subtasks.remove(&task("s1"));
        },
    ];
    for happens in at {
        let sim = Sim::new(&SMALL, 1);
        let plan = planned(&sim, &SMALL, &Policy { soak_s: 10, ..Policy::default() }).await;
        assert_eq!(plan.turns[0].instance, id("h2:8261"));
        let mut span = Span::default();
        let report = watched(&plan, &sim, |event| {
            let was_open = span.0.is_none();
            span.hear(&sim, event, is_soak);
            if was_open && span.0.is_some() {
                sim.state.lock().unwrap().later = Some((Clock::elapsed(&sim) + S(6), happens));
            }
        })
        .await;
        assert_eq!(report.end, RunEnd::Done);
        let state = sim.state.lock().unwrap();
        assert!(state.later.is_none() && state.breaks_once.is_none());
        assert!(span.length() < S(12), "{:?}", span.length());
    }
}

#[tokio::test]
async fn nothing_has_to_be_done_to_a_task_that_somebody_stops_while_it_is_ours() {
    let at: [fn(&Step) -> bool; 3] = [
        |step| matches!(step, Step::PauseSubtask { .. }),
        |step| matches!(step, Step::AwaitPaused { .. }),
        |step| matches!(step, Step::ResumeSubtask { .. }),
    ];
    for (index, meant) in at.into_iter().enumerate() {
        let shape = old_version();
        let sim = Sim::new(&shape, 1);
        let plan = plan(&sim, &shape).await;
        let mut has_stopped = false;
        let report = go_and(&plan, &sim, |step| {
            if meant(step) && !has_stopped {
                has_stopped = true;
                sim.person_stops("s1");
            }
        })
        .await;
        assert!(has_stopped);
        assert_eq!(report.end, RunEnd::Done, "{index}");
        assert!(all_new(&sim));
        assert_eq!(sim.is_settled(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_leader_that_has_read_nothing_yet_is_not_believed_that_a_task_was_stopped() {
    let sim = Sim::new(&SMALL, 1);
    let plan = planned(&sim, &SMALL, &Policy { healthy_within_s: 20, ..Policy::default() }).await;
    let report = go_and(&plan, &sim, |step| {
        if is_gate(step) {
            sim.lose_task("s1");
            let mut state = sim.state.lock().unwrap();
            let reads: Happening = |state| state.knows_nothing = false;
            state.knows_nothing = true;
            state.later = Some((state.elapsed() + S(5), reads));
        }
    })
    .await;
    let why = why(&report);
    assert!(why.contains("nobody answers for task t1 on source s1"), "{why}");
    assert!(report.notes.iter().all(|note| !note.contains("stopped")), "{:?}", report.notes);
}

#[tokio::test]
async fn a_node_that_another_desk_puts_back_while_it_is_watched_is_seen_to_run_the_build_from_before()
 {
    let sim = Sim::new(&SMALL, 1);
    let plan = planned(&sim, &SMALL, &Policy { soak_s: 30, ..Policy::default() }).await;
    assert_eq!(plan.turns[0].instance, id("h2:8261"));
    let report = go_and(&plan, &sim, |step| {
        if is_soak(step) {
            let back: Happening = |state| state.put_back(&id("h2:8261"));
            sim.state.lock().unwrap().later = Some((Clock::elapsed(&sim) + S(10), back));
        }
    })
    .await;
    let again =
        format!("h2:8261 runs build {} again: its guard, or somebody, has put it back", old());
    assert_eq!(why(&report), again);
    assert!(all_old(&sim));
}

#[tokio::test]
async fn an_executable_is_hashed_once_while_it_is_watched_and_its_guard_is_put_off_ten_times_in_its_time()
 {
    let sim = Sim::new(&SMALL, 1);
    let plan =
        planned(&sim, &SMALL, &Policy { soak_s: 30, guard_s: 30, ..Policy::default() }).await;
    let counts = || {
        let state = sim.state.lock().unwrap();
        (state.hashings, state.renewals)
    };
    let (mut before, mut after) = (None, None);
    watched(&plan, &sim, |event| match event {
        Event::StepBegins { step } if is_soak(step) && before.is_none() => before = Some(counts()),
        Event::StepEnds { step, .. } if is_soak(step) && after.is_none() => after = Some(counts()),
        _ => {}
    })
    .await;
    let ((hashed, put_off), (hashed_then, put_off_then)) = (before.unwrap(), after.unwrap());
    assert_eq!(hashed_then - hashed, 1);
    assert!((8..=10).contains(&(put_off_then - put_off)), "{}", put_off_then - put_off);
}

#[tokio::test]
async fn without_a_disturbance_no_step_is_skipped_and_every_guard_is_armed_once_for_stop_and_watch()
{
    for shape in [SMALL, old_version()] {
        let sim = Sim::new(&shape, 1);
        let plan = plan(&sim, &shape).await;
        let mut skipped = Vec::new();
        let report = watched(&plan, &sim, |event| {
            if let Event::StepSkipped { step, why } = event {
                skipped.push((step.clone(), why.clone()));
            }
        })
        .await;
        assert_eq!((report.end, skipped, report.notes), (RunEnd::Done, vec![], vec![]));
        let whole = S((plan.policy.guard_s + plan.policy.stop_within_s).into());
        let guarded = plan.turns.iter().map(|turn| (turn.instance.clone(), whole));
        assert_eq!(sim.state.lock().unwrap().arms, guarded.collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_window_whose_order_was_lost_has_its_guard_armed_anew_and_one_whose_answer_was_lost_has_not()
 {
    for (is_answer, times) in [(false, 2), (true, 1)] {
        let sim = Sim::new(&SMALL, 1);
        let plan = plan(&sim, &SMALL).await;
        let first = plan.turns[0].instance.clone();
        let mut is_lost = false;
        let report = go_and(&plan, &sim, |step| {
            if matches!(step, Step::Window { .. }) && !is_lost {
                is_lost = true;
                let mut state = sim.state.lock().unwrap();
                if is_answer {
                    state.answer_lost_of = Some(first.clone());
                } else {
                    state.breaks_once = Some(first.to_string());
                }
            }
        })
        .await;
        assert_eq!(report.end, RunEnd::Done);
        let whole = S((plan.policy.guard_s + plan.policy.stop_within_s).into());
        let arms = sim.state.lock().unwrap().arms.clone();
        let own: Vec<_> = arms.into_iter().filter(|(id, _)| *id == first).collect();
        assert_eq!(own, vec![(first, whole); times], "{is_answer}");
    }
}

#[tokio::test]
async fn a_leader_is_not_stopped_before_all_others_follow_the_new_one() {
    for hears_after in [Some(5), None] {
        let sim = Sim::new(&SMALL, 1);
        let plan = plan(&sim, &SMALL).await;
        let (mut span, mut waits) = (Span::default(), 0);
        let is_it = |step: &Step| matches!(step, Step::AwaitNewLeader { .. });
        let report = watched(&plan, &sim, |event| {
            let was_open = span.0.is_none();
            span.hear(&sim, event, is_it);
            if was_open && span.0.is_some() {
                let mut state = sim.state.lock().unwrap();
                let follows = [id("h2:8261"), id("h3:8261")];
                state.deaf = follows.into_iter().find(|it| state.leader.as_ref() != Some(it));
                let hears: Happening = |state| state.deaf = None;
                state.later = hears_after.map(|s| (state.elapsed() + S(s), hears));
            }
            if let Event::Waiting { step, .. } = event
                && is_it(step)
            {
                waits += 1;
            }
        })
        .await;
        assert_eq!(waits, 1);
        if let Some(s) = hears_after {
            assert_eq!(report.end, RunEnd::Done);
            assert!(span.length() >= S(s) && span.length() < S(s + 1), "{:?}", span.length());
        } else {
            assert!(why(&report).contains("does not follow"), "{}", why(&report));
            let within = S(plan.policy.settle_within_s.into());
            assert!(span.length() > within && span.length() < within + S(2));
            assert_eq!(sim.builds()[&id("h1:8261")], (old(), Some(old())));
            assert_eq!(sim.is_settled(), Vec::<String>::new());
        }
    }
}

#[tokio::test]
async fn a_master_that_does_not_lead_any_more_is_not_evicted() {
    let sim = Sim::new(&SMALL, 1);
    let plan = plan(&sim, &SMALL).await;
    let mut skipped = Vec::new();
    let report = watched(&plan, &sim, |event| match event {
        Event::StepBegins { step: Step::EvictLeader { .. } } => sim.move_leadership(),
        Event::StepSkipped { why, .. } => skipped.push(why.clone()),
        _ => {}
    })
    .await;
    assert_eq!(report.end, RunEnd::Done);
    assert_eq!(skipped, ["it does not lead any more", "it was not evicted", "it was not evicted"]);
    assert_eq!(sim.state.lock().unwrap().elections, 0);
}

#[tokio::test]
async fn a_task_counts_as_paused_once_it_stands_itself() {
    let shape = old_version();
    let sim = Sim::new(&shape, 1);
    let plan = plan(&sim, &shape).await;
    let (mut span, mut waits) = (Span::default(), 0);
    let is_it =
        |step: &Step| matches!(step, Step::AwaitPaused { source, .. } if source.as_str() == "s1");
    let report = watched(&plan, &sim, |event| {
        let was_open = span.0.is_none();
        span.hear(&sim, event, is_it);
        if was_open && span.0.is_some() {
            let mut state = sim.state.lock().unwrap();
            state.subtasks.insert(task("s1"), SubtaskStage::Pausing);
            let stands: Happening = |state| {
                state.subtasks.insert(task("s1"), SubtaskStage::Paused);
            };
            state.later = Some((state.elapsed() + S(5), stands));
        }
        waits += usize::from(matches!(event, Event::Waiting { step, .. } if is_it(step)));
    })
    .await;
    assert_eq!((report.end, waits), (RunEnd::Done, 1));
    assert!(span.length() >= S(5), "{:?}", span.length());
}

#[tokio::test]
async fn a_worker_that_does_not_come_back_is_not_waited_for_to_get_its_source() {
    let shape = Shape { workers: 2, ..old_version() };
    let ended = async |behaviour, seed| {
        let sim = Sim::new(&shape, seed);
        sim.state.lock().unwrap().behaviours.insert(new(Role::DmWorker), behaviour);
        let plan = plan(&sim, &shape).await;
        let report = go(&plan, &sim, &mut MemoryJournal::default()).await.unwrap();
        assert!(matches!(report.end, RunEnd::RolledBackNode { .. }), "{:?}", report.end);
        assert_eq!(sim.is_settled(), Vec::<String>::new());
        why(&report).to_owned()
    };
    let joins_not = ended(Behaviour::NeverJoins, 1).await;
    assert!(joins_not.contains("source s1 is bound to no worker"), "{joins_not}");
    // Sometimes the window itself sees it.
    let mut seen_later = 0;
    for seed in 0..10 {
        let exits = ended(Behaviour::ExitsAtStart, seed).await;
        let unit = "the unit of h1:8262 is Activating (auto-restart), restarted 1 time(s)";
        seen_later += usize::from(exits.contains(unit));
        assert!(exits.contains(unit) || exits.contains("the unit failed"), "{exits}");
    }
    assert!(seen_later > 0);
}

#[tokio::test]
async fn a_worker_is_not_stopped_while_the_spare_stays_dead_and_that_is_told_once() {
    for shape in [SMALL, old_version()] {
        let sim = Sim::new(&shape, 1);
        let plan = plan(&sim, &shape).await;
        // So that no look falls on the very limit.
        sim.state.lock().unwrap().looks_take = Duration::from_millis(70);
        let (mut is_killed, mut waits) = (false, 0);
        let report = watched(&plan, &sim, |event| match event {
            Event::StepBegins { step: Step::AwaitQuiet { .. } } => {
                is_killed = true;
                sim.kill_unnoticed(&id("h3:8262"), S(100_000));
            }
            Event::Waiting { missing, .. } if is_killed => {
                assert!(missing[0].starts_with("DM takes worker"), "{missing:?}");
                waits += 1;
            }
            _ => {}
        })
        .await;
        assert_eq!(waits, 1);
        assert!(why(&report).contains("h1:8262 cannot be stopped now: DM takes worker h3:8262"));
        assert_eq!(sim.builds()[&id("h1:8262")], (old(), Some(old())));
        let settled = sim.is_settled();
        assert!(settled.iter().all(|it| !it.contains("armed") && !it.contains("Paused")));
    }
}

#[tokio::test]
async fn a_guard_that_has_waited_for_the_spare_has_its_whole_time_at_the_window() {
    let sim = Sim::new(&SMALL, 1);
    let plan = plan(&sim, &SMALL).await;
    let meant = id("h1:8262");
    let mut is_killed = false;
    let report = go_and(&plan, &sim, |step| {
        if matches!(step, Step::ArmGuard { instance, .. } if *instance == meant) && !is_killed {
            is_killed = true;
            sim.kill_unnoticed(&id("h3:8262"), S(15));
        }
    })
    .await;
    assert_eq!(report.end, RunEnd::Done);
    let whole = S((plan.policy.guard_s + plan.policy.stop_within_s).into());
    let arms = sim.state.lock().unwrap().arms.clone();
    let own: Vec<_> = arms.into_iter().filter(|(id, _)| *id == meant).collect();
    assert_eq!(own, [(meant.clone(), whole), (meant, whole)]);
}

#[tokio::test]
async fn a_source_waits_for_a_spare_that_comes_back_but_not_for_ever_and_that_is_told_once() {
    for dead_s in [20, 100_000] {
        let shape = old_version();
        let sim = Sim::new(&shape, 1);
        let plan = plan(&sim, &shape).await;
        sim.state.lock().unwrap().looks_take = Duration::from_millis(70);
        let (mut is_killed, mut waits) = (false, 0);
        let report = watched(&plan, &sim, |event| match event {
            Event::StepBegins { step: Step::Transfer { .. } } if !is_killed => {
                is_killed = true;
                sim.kill_unnoticed(&id("h3:8262"), S(dead_s));
            }
            Event::Waiting { step: Step::Transfer { .. }, .. } => waits += 1,
            _ => {}
        })
        .await;
        assert_eq!(waits, 1, "{dead_s}: {:?}", report.end);
        if dead_s == 20 {
            assert_eq!(report.end, RunEnd::Done);
        } else {
            assert!(why(&report).contains("DM takes worker h3:8262 for alive"));
            assert_eq!(sim.builds()[&id("h1:8262")], (old(), Some(old())));
        }
    }
}

#[tokio::test]
async fn what_keeps_a_worker_from_being_quiet_is_told_once() {
    let sim = Sim::new(&SMALL, 1);
    let plan = planned(&sim, &SMALL, &Policy { quiet_within_s: 10, ..Policy::default() }).await;
    sim.state.lock().unwrap().lag_s = 500;
    let mut waits = 0;
    watched(&plan, &sim, |event| {
        waits += usize::from(matches!(event, Event::Waiting { step: Step::AwaitQuiet { .. }, .. }));
    })
    .await;
    assert_eq!(waits, 2, "one per worker with a source");
}

#[tokio::test]
async fn no_master_has_its_turn_if_too_few_others_would_stay_up() {
    let shape = Shape { masters: 5, ..SMALL };
    let sim = Sim::new(&shape, 1);
    let plan = plan(&sim, &shape).await;
    let mut has_begun = false;
    let report = go_and(&plan, &sim, |step| {
        if matches!(step, Step::DisarmGuard { .. }) && !has_begun {
            has_begun = true;
            sim.state.lock().unwrap().may_be_down = 2;
            sim.break_node(&id("h4:8261"));
            sim.break_node(&id("h5:8261"));
        }
    })
    .await;
    let why = why(&report);
    assert!(why.contains("only 2 of 5 masters would stay up"), "{why}");
    assert!(why.contains("h4:8261 went down meanwhile"), "{why}");
    assert_eq!(sim.state.lock().unwrap().windows, 1);
}

#[tokio::test]
async fn what_goes_down_meanwhile_is_in_the_way_of_its_own_kind_only() {
    let sim = Sim::new(&SMALL, 1);
    let plan = plan(&sim, &SMALL).await;
    let mut has_begun = false;
    let report = go_and(&plan, &sim, |step| {
        if matches!(step, Step::DisarmGuard { .. }) && !has_begun {
            has_begun = true;
            sim.break_node(&id("h3:8262"));
        }
    })
    .await;
    // It is broken, so its own turn is its cure; it comes first of the workers.
    assert_eq!(report.end, RunEnd::Done, "{:?}", report.end);

    let sim = Sim::new(&SMALL, 1);
    let report = go_and(&plan, &sim, |step| {
        if matches!(step, Step::DisarmGuard { instance } if *instance == id("h1:8261")) {
            sim.break_node(&id("h2:8262"));
        }
    })
    .await;
    let why = why(&report);
    assert!(why.contains("h2:8262 went down meanwhile"), "{why}");
    assert!(!why.contains("masters would stay up"), "{why}");
    assert_eq!(sim.state.lock().unwrap().windows, 3);
}

#[tokio::test]
async fn what_was_down_before_is_in_nobodys_way_if_that_is_wanted() {
    let sim = Sim::new(&SMALL, 1);
    sim.break_node(&id("h3:8262"));
    let inventory = look(&sim.instances(), &sim, &sim, &sim, true, true, 4).await;
    let mut request = sim.request(&SMALL);
    request.selected = [id("h1:8262")].into();
    request.allow.force = true;
    let Decision::Go(plan) = plan_hotfix(&request, &inventory, &Policy::default()) else {
        panic!()
    };
    let report = go(&plan, &sim, &mut MemoryJournal::default()).await.unwrap();
    assert_eq!(report.end, RunEnd::Done, "{:?}", report.end);
}

#[tokio::test]
async fn what_is_wrong_with_dm_before_a_turn_is_waited_for_but_not_for_ever() {
    for recovers in [true, false] {
        let sim = Sim::new(&SMALL, 1);
        let plan = plan(&sim, &SMALL).await;
        let mut begun = None;
        let mut has_failed = None;
        let (mut journal, cancel) = (MemoryJournal::default(), CancellationToken::new());
        let mut watch = |event: Event| match event {
            Event::StepBegins { step: Step::MarkPatched { .. } } if begun.is_none() => {
                let mut state = sim.state.lock().unwrap();
                begun = Some(state.elapsed());
                state.errors.insert(task("s1"), "Duplicate entry".into());
                let mended: Happening = |state| drop(state.errors.remove(&task("s1")));
                state.later = recovers.then(|| (state.elapsed() + S(20), mended));
            }
            Event::TurnBegins { number: 3, .. } => has_failed = Some(false),
            _ => {}
        };
        let report = execute(&plan, reach(&sim), &mut journal, &mut watch, &cancel).await.unwrap();
        if recovers {
            assert_eq!((report.end, has_failed), (RunEnd::Done, Some(false)));
        } else {
            assert!(why(&report).contains("cannot have its turn: task t1 on source s1 has an"));
            let took = Clock::elapsed(&sim) - begun.unwrap();
            let within = S(plan.policy.settle_within_s.into());
            assert!(took > within && took < within + S(2), "{took:?}");
            assert_eq!(has_failed, None);
        }
    }
}

#[tokio::test]
async fn the_turn_of_monitoring_asks_nothing_of_dm() {
    let sim = Sim::new(&SMALL, 1);
    let plan = plan(&sim, &SMALL).await;
    let report = go_and(&plan, &sim, |step| {
        if matches!(step, Step::AwaitHealthy { instance, .. } if *instance == id("h1:9090")) {
            sim.state.lock().unwrap().ill = Some(id("h2:8261"));
        }
    })
    .await;
    assert_eq!(report.end, RunEnd::Done);
}

#[tokio::test]
async fn what_is_missing_while_another_node_of_the_batch_has_its_turn_is_not_counted() {
    let sim = Sim::new(&MANY, 1);
    let policy = Policy {
        batches: vec![BatchSize::Percent(100)],
        soak_s: 90,
        healthy_within_s: 10,
        quiet_within_s: 30,
        ..Policy::default()
    };
    let plan = planned(&sim, &MANY, &policy).await;
    let mut was_ill = false;
    let report = watched(&plan, &sim, |event| match event {
        Event::StepBegins { step: Step::AwaitQuiet { .. } } if !was_ill => {
            was_ill = true;
            let mut state = sim.state.lock().unwrap();
            (state.lag_s, state.ill) = (500, Some(id("h2:8261")));
        }
        Event::StepEnds { step: Step::AwaitQuiet { .. }, .. } => {
            let mut state = sim.state.lock().unwrap();
            (state.lag_s, state.ill) = (0, None);
        }
        _ => {}
    })
    .await;
    assert!(was_ill);
    assert_eq!(report.end, RunEnd::Done);
    assert!(all_new(&sim));
}

#[tokio::test]
async fn a_pause_that_the_operator_wants_comes_within_a_batch_too() {
    let sim = Sim::new(&MANY, 1);
    let batches = vec![BatchSize::Percent(100)];
    let policy = Policy { batches, pause_after: Some(5), ..Policy::default() };
    let plan = planned(&sim, &MANY, &policy).await;
    let mut journal = MemoryJournal::default();
    let report = go(&plan, &sim, &mut journal).await.unwrap();
    assert_eq!(report.end, RunEnd::Paused);
    assert_eq!(sim.state.lock().unwrap().windows, 5);
    let report = go_on(&plan, &sim, &mut journal).await.unwrap();
    assert_eq!(report.end, RunEnd::Done);
    assert!(all_new(&sim));
}

#[tokio::test]
async fn a_run_that_was_killed_while_a_node_of_its_batch_was_going_back_opens_no_other_window() {
    let sim = Sim::new(&MANY, 1);
    {
        let mut state = sim.state.lock().unwrap();
        state.behaviours.insert(new(Role::DmWorker), Behaviour::ExitsAfter(10));
        // The one whose turn it is then waits for a quiet moment, for longer than the bad one waits for it.
        (state.may_be_down, state.lag_s) = (MANY.workers, 500);
    }
    let policy = Policy {
        batches: vec![BatchSize::Percent(100)],
        soak_s: 60,
        healthy_within_s: 20,
        quiet_within_s: 120,
        ..Policy::default()
    };
    let plan = planned(&sim, &MANY, &policy).await;
    let (mut journal, cancel) = (MemoryJournal::default(), CancellationToken::new());
    let mut watch = |event: Event| {
        if matches!(event, Event::GoesBack { .. }) {
            let mut state = sim.state.lock().unwrap();
            state.dies_at = Some((state.effects, crate::Side::Before));
        }
    };
    tokio::select! {
        () = sim.death() => {}
        ended = execute(&plan, reach(&sim), &mut journal, &mut watch, &cancel) => panic!("{ended:?}"),
    }
    sim.revive();
    sim.state.lock().unwrap().lag_s = 0;
    let before = journal.entries.len();
    let report = go_on(&plan, &sim, &mut journal).await.unwrap();
    assert!(matches!(report.end, RunEnd::RolledBackNode { .. }), "{:?}", report.end);
    let opens = |entry: &&Entry| matches!(entry, Entry::Started { step: Step::Window { to, .. } } if *to != old());
    assert_eq!(journal.entries[before..].iter().find(opens), None);
    assert_eq!(sim.is_settled(), Vec::<String>::new());
}

#[tokio::test]
async fn while_one_node_of_a_killed_batch_is_waited_for_the_guards_of_the_others_are_put_off() {
    let (sim, plan, mut journal) = killed_in_the_last_soak().await;
    let last = plan.turns.last().unwrap().instance.clone();
    // Whoever began last is continued first. Its guard takes it back meanwhile; the others' need not.
    let host = plan.instance(&last).unwrap().host.clone();
    sim.silence(host.as_str(), S(100));
    let report = go_on(&plan, &sim, &mut journal).await.unwrap();
    assert_eq!(report.end, RunEnd::Done);
    assert!(all_new(&sim));
    for (id, node) in &sim.state.lock().unwrap().nodes {
        // There, back by its guard, and there again.
        assert_eq!(node.starts, if *id == last { 3 } else { 1 }, "{id}");
    }
}

#[tokio::test]
async fn a_source_goes_to_a_worker_that_has_had_its_turn_although_another_one_is_free() {
    let shape = Shape { workers: 4, ..old_version() };
    let sim = Sim::new(&shape, 1);
    let plan = plan(&sim, &shape).await;
    let mut taken = None;
    let report = watched(&plan, &sim, |event| match event {
        // Somebody has moved the source of the second worker meanwhile: that is free, and its turn is to come.
        Event::TurnBegins { instance, .. } if *instance == id("h1:8262") => {
            let source = SourceId::new("s2").unwrap();
            sim.state.lock().unwrap().sources.insert(source, Some(id("h4:8262")));
        }
        Event::StepEnds { step: Step::Transfer { source, .. }, .. }
            if source.as_str() == "s1" && taken.is_none() =>
        {
            taken = sim.state.lock().unwrap().sources[source].clone();
        }
        _ => {}
    })
    .await;
    assert_eq!((report.end, taken), (RunEnd::Done, Some(id("h3:8262"))));
}

#[tokio::test]
async fn a_node_whose_build_cannot_be_recorded_keeps_it() {
    let sim = Sim::new(&SMALL, 1);
    let plan = plan(&sim, &SMALL).await;
    sim.state.lock().unwrap().has_no_records = true;
    let report = go(&plan, &sim, &mut MemoryJournal::default()).await.unwrap();
    let first = &plan.turns[0].instance;
    assert!(why(&report).contains("record the build of"), "{}", why(&report));
    assert!(matches!(report.end, RunEnd::Failed { .. }), "{:?}", report.end);
    assert_eq!(report.instances[0].1.end, InstanceEnd::Changed);
    assert_eq!(sim.builds()[first], (new(Role::DmMaster), Some(new(Role::DmMaster))));
    assert_eq!(sim.is_settled(), Vec::<String>::new());
}

#[tokio::test]
async fn a_node_that_is_to_be_left_is_told_apart_from_one_that_its_guard_has_put_back() {
    for (runs_again, end) in [(true, InstanceEnd::RolledBack), (false, InstanceEnd::Left)] {
        let sim = Sim::new(&SMALL, 1);
        let policy = Policy { on_failure: OnFailure::Stop, ..Policy::default() };
        let plan = planned(&sim, &SMALL, &policy).await;
        let first = plan.turns[0].instance.clone();
        let host = plan.instance(&first).unwrap().host.clone();
        if !runs_again {
            sim.state.lock().unwrap().behaviours.insert(old(), Behaviour::ExitsAtStart);
        }
        let report = go_and(&plan, &sim, |step| {
            if is_soak(step) {
                sim.silence(host.as_str(), S(100));
            }
        })
        .await;
        assert_eq!(report.instances[0].1.end, end, "{:?}", report.end);
        let says = report.notes.iter().any(|note| note.contains("could not be disarmed"));
        assert_eq!(says, !runs_again, "{:?}", report.notes);
    }
}

#[tokio::test]
async fn a_node_that_cannot_be_put_back_is_left_to_its_guard() {
    let at: [Happening; 3] = [
        |_| {},
        |state| {
            let node = state.nodes.get_mut(&id("h2:8261")).unwrap();
            (node.running, node.pid) = (None, None);
        },
        // Exchanged by hand, and not started.
        |state| {
            let node = state.nodes.get_mut(&id("h2:8261")).unwrap();
            node.staged = Some(std::mem::replace(&mut node.live, old()));
        },
    ];
    for bend in at {
        let sim = Sim::new(&SMALL, 1);
        sim.state.lock().unwrap().behaviours.insert(new(Role::DmMaster), Behaviour::NeverJoins);
        let plan = plan(&sim, &SMALL).await;
        let first = plan.turns[0].instance.clone();
        assert_eq!(first, id("h2:8261"));
        let report = watched(&plan, &sim, |event| {
            if matches!(event, Event::GoesBack { .. }) {
                let mut state = sim.state.lock().unwrap();
                state.stuck = Some(first.clone());
                bend(&mut state);
            }
        })
        .await;
        assert_eq!(report.instances[0].1.end, InstanceEnd::Left, "{:?}", report.end);
        assert!(why(&report).contains("and putting it back failed"), "{}", why(&report));
        sim.pass(S(600));
        assert!(all_old(&sim), "{:?}", sim.builds()[&first]);
    }
}
