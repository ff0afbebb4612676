//! Journals that were written by released formats parse for ever, and mean the same.
#![allow(clippy::unwrap_used, reason = "the whole file is a test")]

use std::collections::BTreeMap;

use dmup_core::digest::Digest;
use dmup_core::ids::{ClusterName, InstanceId, SourceId, TaskName};
use dmup_core::journal::{
    Away, BadJournal, Entry, Folded, RunState, TurnEnd, WayBack, fold, parse,
};
use dmup_core::plan::Step;
use dmup_core::report::RunEnd;

fn read(text: &str) -> Folded {
    let lines = parse(text).unwrap();
    fold(lines.iter().map(|line| &line.entry)).unwrap()
}

#[test]
fn v1_and_v2_of_a_node_that_was_put_back() {
    for text in [
        include_str!("fixtures/journal-v1/rolled-back.jsonl"),
        include_str!("fixtures/journal-v2/rolled-back.jsonl"),
    ] {
        let folded = read(text);
        let RunState::Ended { end: RunEnd::RolledBackNode { instance, .. } } = &folded.state else {
            panic!("{:?}", folded.state)
        };
        assert_eq!(folded.ended[instance], TurnEnd::RolledBack);
        assert_eq!(folded.ended.values().filter(|end| **end == TurnEnd::Changed).count(), 3);
        assert!(folded.paused.is_empty() && folded.evicted.is_empty() && folded.open.is_empty());
    }
}

#[test]
fn v1_and_v2_of_a_run_that_was_killed_while_it_paused_a_task() {
    for text in [
        include_str!("fixtures/journal-v1/killed.jsonl"),
        include_str!("fixtures/journal-v2/killed.jsonl"),
    ] {
        let folded = read(text);
        let RunState::InDoubt { steps } = &folded.state else { panic!("{:?}", folded.state) };
        assert!(matches!(steps[..], [Step::PauseSubtask { .. }]));
        // It may have happened: what was begun is taken back or gone on with, never forgotten.
        let task = (TaskName::new("t1").unwrap(), SourceId::new("s1").unwrap());
        assert!(folded.paused.contains(&task));
        assert!(!folded.open.is_empty());
    }
}

#[test]
fn v2_of_a_run_that_the_operator_was_taking_back() {
    let folded = read(include_str!("fixtures/journal-v2/taken-back.jsonl"));
    assert_eq!((folded.way_back, folded.state), (Some(WayBack::Asked), RunState::Ready));
    let ended = |end| folded.ended.values().filter(|it| **it == end).count();
    assert_eq!((ended(TurnEnd::RolledBack), folded.open.len()), (1, 0));
    assert!(ended(TurnEnd::Changed) > 0);
}

#[test]
fn a_journal_of_a_later_dmup_is_refused() {
    let text = include_str!("fixtures/journal-v1/killed.jsonl").replacen("\"v\":1", "\"v\":3", 1);
    assert!(matches!(parse(&text), Err(BadJournal::TooNew { line: 1, found: 3 })));
}

#[test]
fn sequences_that_no_run_writes_are_refused_with_their_line() {
    let begins =
        Entry::RunBegins { cluster: ClusterName::new("prod").unwrap(), plan: Digest::of(b"plan") };
    let instance = InstanceId::new("h1:8261").unwrap();
    let step = Step::DisarmGuard { instance: instance.clone() };
    let done = Entry::Done { step: step.clone(), took_ms: 1, note: None, away: None };
    let ends = Entry::TurnEnds { instance, end: TurnEnd::Changed, failure: None };
    let over = Entry::RunEnds { end: RunEnd::Done };
    let interrupted = Entry::RunEnds { end: RunEnd::Interrupted };
    for (entries, line) in [
        (vec![done.clone()], 1),
        (vec![begins.clone(), begins.clone()], 2),
        (vec![begins.clone(), done], 2),
        (vec![begins.clone(), ends], 2),
        (vec![begins.clone(), over, Entry::RunResumed], 3),
    ] {
        assert_eq!(fold(&entries).unwrap_err().line, line, "{entries:?}");
    }
    assert!(fold(&[begins, interrupted, Entry::RunResumed]).is_ok());
}

#[test]
fn turns_that_overlap_are_open_together_and_each_ends_for_itself() {
    let id = |text: &str| InstanceId::new(text).unwrap();
    let begins = |instance: &str| Entry::TurnBegins {
        instance: id(instance),
        from: Digest::of(b"old"),
        to: Digest::of(b"new"),
        steps: Vec::new(),
        baseline: None,
        pid: None,
    };
    let window = |instance: &str| Step::Window {
        instance: id(instance),
        from: Digest::of(b"old"),
        to: Digest::of(b"new"),
        around: dmup_core::plan::Around::Restart,
        texts: None,
    };
    let done = |step: Step| Entry::Done { step, took_ms: 1, note: None, away: None };
    let mut entries = vec![
        Entry::RunBegins { cluster: ClusterName::new("prod").unwrap(), plan: Digest::of(b"plan") },
        begins("h1:8262"),
        Entry::Started { step: window("h1:8262") },
        done(window("h1:8262")),
        begins("h2:8262"),
        Entry::Started { step: window("h2:8262") },
    ];
    let ends = Entry::TurnEnds { instance: id("h1:8262"), end: TurnEnd::Changed, failure: None };
    entries.push(ends);
    let folded = fold(&entries).unwrap();
    // The end of one says nothing of what the other has begun.
    assert_eq!(folded.state, RunState::InDoubt { steps: vec![window("h2:8262")] });
    let open: Vec<&InstanceId> = folded.open.iter().map(|open| &open.instance).collect();
    assert_eq!(open, [&id("h2:8262")]);
    assert_eq!(folded.ended[&id("h1:8262")], TurnEnd::Changed);
    entries.push(done(window("h2:8262")));
    let folded = fold(&entries).unwrap();
    assert_eq!(folded.state, RunState::Ready);
    assert_eq!(folded.open[0].finished, [window("h2:8262")]);
    entries.push(begins("h2:8262"));
    assert_eq!(fold(&entries).unwrap_err().line, 9);
}

#[test]
fn how_long_nodes_were_away_is_kept() {
    let id = |text: &str| InstanceId::new(text).unwrap();
    let build = Digest::of(b"new");
    let window = |instance: &str| Step::Window {
        instance: id(instance),
        from: Digest::of(b"old"),
        to: build.clone(),
        around: dmup_core::plan::Around::Restart,
        texts: None,
    };
    let healthy = |instance: &str| Entry::Done {
        step: Step::AwaitHealthy { instance: id(instance), build: build.clone(), within_s: 9 },
        took_ms: 700,
        note: None,
        away: None,
    };
    let away = Away { stop_ms: 3, exchange_us: 4, start_ms: 5, down_ms: 8, killed: false };
    let step = window("h1:8262");
    let done = Entry::Done { step: step.clone(), took_ms: 9, note: None, away: Some(away) };
    let begins =
        Entry::RunBegins { cluster: ClusterName::new("prod").unwrap(), plan: Digest::of(b"plan") };
    let mut entries = vec![begins, Entry::Started { step }, done];
    let kept = |entries: &[Entry]| fold(entries).unwrap().away;
    assert_eq!(kept(&entries), BTreeMap::from([(id("h1:8262"), (away, 0))]));
    entries.extend([healthy("h1:8262"), healthy("h2:8262")]);
    assert_eq!(kept(&entries), BTreeMap::from([(id("h1:8262"), (away, 700))]));
    // Asked again, it had been exchanged before: what was measured is not forgotten.
    let step = window("h1:8262");
    let again = Entry::Done { step: step.clone(), took_ms: 9, note: None, away: None };
    entries.extend([Entry::Started { step }, again]);
    assert_eq!(kept(&entries), BTreeMap::from([(id("h1:8262"), (away, 700))]));
}
