//! Upgrades: builds of another version and the files that go with them, forth and back together.

use std::collections::BTreeMap;
use std::time::Duration;

use dmup_core::digest::Digest;
use dmup_core::instance::Role;
use dmup_core::plan::{Decision, ParcelSpec, Plan, Purpose, Step, plan_hotfix};
use dmup_core::policy::{BatchSize, OnFailure, Policy};
use dmup_core::report::{InstanceEnd, RunEnd};
use dmup_exec::{Event, MemoryJournal, execute, look};
use tokio_util::sync::CancellationToken;

use crate::restarts::{change, quick, texts};
use crate::sim::{Behaviour, Shape, Side, Sim, digest, id, new, old};
use crate::{SMALL, back, dead_at, go, go_and, go_on, old_version, reach};

async fn planned(sim: &Sim, shape: &Shape, policy: &Policy) -> Plan {
    let change = change(sim);
    let mut request = sim.request(shape);
    let dm = || request.instances.iter().filter(|it| it.role.is_dm());
    request.purpose = Purpose::Upgrade {
        to: "v8.5.0".parse().unwrap(),
        texts: dm().map(|it| (it.id.clone(), change.clone())).collect(),
    };
    // A package of each component.
    let parcel = request.parcel.take().unwrap();
    for (role, target) in &mut request.targets {
        let digest = digest(role.as_str());
        target.parcel = Some(digest.clone());
        request.parcels.push(ParcelSpec { digest, ..parcel.clone() });
    }
    let inventory = look(&request.instances, sim, sim, sim, true, true, 4).await;
    match plan_hotfix(&request, &inventory, policy) {
        Decision::Go(plan) => *plan,
        other => panic!("{other:?}"),
    }
}

/// How many nodes of DM have build and files of the old version, and of the new one; any other pair is wrong. Of monitoring
/// no files are written.
fn kinds(sim: &Sim) -> Result<(usize, usize), String> {
    let state = sim.state.lock().unwrap();
    let (mut before, mut after) = (0, 0);
    for node in state.nodes.values() {
        let role = node.instance.role;
        let has = |digest: &Digest, content| {
            node.live == *digest
                && node.running.as_ref() == Some(digest)
                && node.texts == texts(content).digest()
        };
        match (has(&old(), "old"), has(&new(role), "new")) {
            _ if !role.is_dm() && node.texts == texts("old").digest() => {}
            (true, _) if role.is_dm() => before += 1,
            (_, true) if role.is_dm() => after += 1,
            _ => return Err(format!("{node:?}")),
        }
    }
    Ok((before, after))
}

fn dm(shape: &Shape) -> usize {
    shape.masters + shape.workers
}

#[tokio::test]
async fn every_node_gets_build_and_files_masters_first_and_no_mark() {
    for seed in 0..200 {
        let shape = Shape::any(seed);
        let sim = Sim::new(&shape, seed);
        let batches = if seed % 3 == 0 { vec![BatchSize::Percent(50)] } else { Vec::new() };
        let plan = planned(&sim, &shape, &Policy { batches, ..quick() }).await;
        let roles: Vec<Role> =
            plan.turns.iter().map(|turn| plan.instance(&turn.instance).unwrap().role).collect();
        assert!(roles.is_sorted(), "{seed}: {roles:?}");
        let report = go(&plan, &sim, &mut MemoryJournal::default()).await.unwrap();
        assert_eq!((&report.end, report.exit_code()), (&RunEnd::Done, 0), "{seed} {shape:?}");
        assert_eq!(kinds(&sim), Ok((0, dm(&shape))), "{seed}");
        assert_eq!(sim.is_settled(), Vec::<String>::new(), "{seed} {shape:?}");
        let state = sim.state.lock().unwrap();
        assert!(state.marks.values().all(|(_, patched)| !patched), "{seed}");
        for node in state.nodes.values().filter(|node| !node.instance.role.is_dm()) {
            let build = new(node.instance.role);
            assert_eq!((&node.live, node.running.as_ref()), (&build, Some(&build)), "{seed}");
        }
    }
}

#[tokio::test]
async fn killed_at_any_effect_it_is_resumed_or_taken_back_with_build_and_files_of_one_kind() {
    for shape in [SMALL, old_version()] {
        let whole = Sim::new(&shape, 1);
        let plan = planned(&whole, &shape, &quick()).await;
        go(&plan, &whole, &mut MemoryJournal::default()).await.unwrap();
        let effects = whole.state.lock().unwrap().effects;
        for effect in 1..effects {
            for side in [Side::Before, Side::After] {
                for is_forth in [true, false] {
                    let sim = Sim::new(&shape, 1);
                    change(&sim);
                    let mut journal = dead_at(&plan, &sim, effect, side).await;
                    let context = format!("{} {effect} {side:?} {is_forth}", shape.version);
                    // Long enough for a guard, or not.
                    sim.pass(Duration::from_secs(effect % 3 * 150));
                    if effect % 3 == 2 {
                        // The host has helped itself: its files have gone back with its build.
                        assert!(kinds(&sim).is_ok(), "{context}: {:?}", kinds(&sim));
                    }
                    let (report, end, has) = if is_forth {
                        let report = go_on(&plan, &sim, &mut journal).await.unwrap();
                        (report, RunEnd::Done, (0, dm(&shape)))
                    } else {
                        let report = back(&plan, &sim, &mut journal).await.unwrap();
                        (report, RunEnd::TakenBack, (dm(&shape), 0))
                    };
                    assert_eq!((&report.end, report.exit_code()), (&end, 0), "{context}");
                    assert_eq!(kinds(&sim), Ok(has), "{context}");
                    assert_eq!(sim.is_settled(), Vec::<String>::new(), "{context}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_version_with_which_a_node_does_not_start_goes_back_with_its_files() {
    for on_failure in [OnFailure::RollbackNode, OnFailure::RollbackAll] {
        for bad_files in [false, true] {
            let sim = Sim::new(&SMALL, 1);
            let plan = planned(&sim, &SMALL, &Policy { on_failure, ..quick() }).await;
            if bad_files {
                sim.state.lock().unwrap().bad_texts = Some(texts("new").digest());
            } else {
                let builds = BTreeMap::from([(new(Role::DmWorker), Behaviour::ExitsAtStart)]);
                sim.state.lock().unwrap().behaviours = builds;
            }
            let report = go(&plan, &sim, &mut MemoryJournal::default()).await.unwrap();
            let context = format!("{on_failure:?} {bad_files}: {:?}", report.end);
            let masters = match (on_failure, bad_files) {
                // The masters have the new version, healthy; the first worker does not take it.
                (OnFailure::RollbackNode, false) => SMALL.masters,
                _ => 0,
            };
            assert_eq!(kinds(&sim), Ok((dm(&SMALL) - masters, masters)), "{context}");
            assert_eq!(sim.is_settled(), Vec::<String>::new(), "{context}");
        }
    }
}

#[tokio::test]
async fn a_node_that_went_back_in_a_cluster_that_is_ill_all_the_same_is_back_with_its_files() {
    let sim = Sim::new(&SMALL, 1);
    let plan = planned(&sim, &SMALL, &quick()).await;
    let other = plan.turns[1].instance.clone();
    let report = go_and(&plan, &sim, |step| {
        if matches!(step, Step::AwaitHealthy { .. }) {
            sim.state.lock().unwrap().ill = Some(other.clone());
        }
    })
    .await;
    assert!(matches!(report.end, RunEnd::RolledBackNode { .. }), "{:?}", report.end);
    assert_eq!(report.exit_code(), 5);
    assert_eq!(kinds(&sim), Ok((dm(&SMALL), 0)));
    assert_eq!(sim.is_settled(), Vec::<String>::new());
}

#[tokio::test]
async fn a_node_with_the_build_from_before_and_perhaps_other_files_is_left_to_its_guard() {
    let sim = Sim::new(&SMALL, 1);
    let plan = planned(&sim, &SMALL, &quick()).await;
    let first = plan.turns[0].instance.clone();
    sim.state.lock().unwrap().behaviours.insert(new(Role::DmMaster), Behaviour::NeverJoins);
    let (mut journal, cancel) = (MemoryJournal::default(), CancellationToken::new());
    let mut watch = |event: Event| {
        if matches!(event, Event::GoesBack { .. }) {
            let mut state = sim.state.lock().unwrap();
            state.stuck = Some(first.clone());
            // Somebody has put its build back, and not its files.
            state.put_back(&first);
        }
    };
    let report = execute(&plan, reach(&sim), &mut journal, &mut watch, &cancel).await.unwrap();
    assert_eq!(report.instances[0].1.end, InstanceEnd::Left, "{:?}", report.end);
    assert!(kinds(&sim).is_err());
    sim.pass(Duration::from_secs(600));
    assert_eq!(kinds(&sim), Ok((dm(&SMALL), 0)));
}

#[tokio::test]
async fn answers_that_are_lost_and_orders_that_come_twice_leave_no_mixture() {
    for seed in 0..200 {
        let shape = Shape::any(seed);
        let sim = Sim::new(&shape, seed);
        let plan = planned(&sim, &shape, &quick()).await;
        {
            let mut state = sim.state.lock().unwrap();
            (state.lose_one_in, state.repeat_one_in) = (12, 3);
        }
        let mut journal = MemoryJournal::default();
        let mut report = match go(&plan, &sim, &mut journal).await {
            Ok(report) => report,
            // The look before the first step was lost; nothing was touched.
            Err(dmup_exec::RunError::Look { .. }) => continue,
            Err(error) => panic!("{seed}: {error}"),
        };
        if let RunEnd::Unknown { .. } = report.end {
            // One answer after the other was lost: nobody knows, until somebody looks again.
            sim.state.lock().unwrap().lose_one_in = 0;
            report = go_on(&plan, &sim, &mut journal).await.unwrap();
        }
        assert_eq!(report.end, RunEnd::Done, "{seed} {shape:?}");
        assert_eq!(kinds(&sim), Ok((0, dm(&shape))), "{seed}");
        assert_eq!(sim.is_settled(), Vec::<String>::new(), "{seed}");
    }
}

/// What of monitoring runs its new build: Prometheus, Grafana, Alertmanager.
fn monitoring(sim: &Sim) -> [bool; 3] {
    let state = sim.state.lock().unwrap();
    ["h1:9090", "h1:3000", "h1:9093"].map(|it| {
        let node = &state.nodes[&id(it)];
        node.running.as_ref() == Some(&new(node.instance.role))
    })
}

#[tokio::test]
async fn monitoring_that_does_not_take_a_version_is_told_and_keeps_nobody_from_it() {
    for on_failure in [OnFailure::RollbackNode, OnFailure::RollbackAll, OnFailure::Stop] {
        for is_unpacked in [true, false] {
            let sim = Sim::new(&SMALL, 1);
            let plan = planned(&sim, &SMALL, &Policy { on_failure, ..quick() }).await;
            {
                let mut state = sim.state.lock().unwrap();
                let build = new(Role::Prometheus);
                if is_unpacked {
                    state.behaviours = BTreeMap::from([(build, Behaviour::ExitsAtStart)]);
                } else {
                    state.bad_package = Some(build);
                }
            }
            let report = go(&plan, &sim, &mut MemoryJournal::default()).await.unwrap();
            let context = format!("{on_failure:?} {is_unpacked}: {:?}", report.end);
            assert_eq!(kinds(&sim), Ok((0, dm(&SMALL))), "{context}");
            assert_eq!(monitoring(&sim), [false, true, true], "{context}");
            assert_eq!(report.exit_code(), 6, "{context}");
            let of = |it: &str| report.instances.iter().find(|(of, _)| of.as_str() == it).unwrap();
            let end = match (is_unpacked, on_failure) {
                (false, _) => InstanceEnd::Untouched,
                (true, OnFailure::Stop) => InstanceEnd::Left,
                (true, _) => InstanceEnd::RolledBack,
            };
            assert_eq!(of("h1:9090").1.end, end, "{context}");
            assert_eq!(sim.is_settled(), Vec::<String>::new(), "{context}");
        }
    }
}

#[tokio::test]
async fn killed_at_any_effect_an_upgrade_whose_monitoring_fails_comes_to_the_same_end() {
    let bad = |sim: &Sim| {
        change(sim);
        let builds = BTreeMap::from([(new(Role::Prometheus), Behaviour::ExitsAtStart)]);
        sim.state.lock().unwrap().behaviours = builds;
    };
    let whole = Sim::new(&SMALL, 1);
    let plan = planned(&whole, &SMALL, &quick()).await;
    bad(&whole);
    go(&plan, &whole, &mut MemoryJournal::default()).await.unwrap();
    let effects = whole.state.lock().unwrap().effects;
    for effect in 1..effects {
        for side in [Side::Before, Side::After] {
            for is_forth in [true, false] {
                let sim = Sim::new(&SMALL, 1);
                bad(&sim);
                let mut journal = dead_at(&plan, &sim, effect, side).await;
                let context = format!("{effect} {side:?} {is_forth}");
                sim.pass(Duration::from_secs(effect % 3 * 150));
                if is_forth {
                    let report = go_on(&plan, &sim, &mut journal).await.unwrap();
                    let end = &report.end;
                    assert!(matches!(end, RunEnd::RolledBackNode { .. }), "{context}: {end:?}");
                    assert_eq!(kinds(&sim), Ok((0, dm(&SMALL))), "{context}");
                    assert_eq!(monitoring(&sim), [false, true, true], "{context}");
                } else {
                    back(&plan, &sim, &mut journal).await.unwrap();
                    assert_eq!(kinds(&sim), Ok((dm(&SMALL), 0)), "{context}");
                    assert_eq!(monitoring(&sim), [false; 3], "{context}");
                }
                assert_eq!(sim.is_settled(), Vec::<String>::new(), "{context}");
            }
        }
    }
}

#[tokio::test]
async fn killed_at_any_effect_all_that_went_wrong_with_monitoring_is_told_in_the_end() {
    let bad = |sim: &Sim| {
        change(sim);
        let mut state = sim.state.lock().unwrap();
        for role in [Role::Prometheus, Role::Alertmanager] {
            state.behaviours.insert(new(role), Behaviour::ExitsAtStart);
        }
        // As long as it is unpacked; once another process goes on, only the journal knows.
        state.bad_package = Some(new(Role::Grafana));
    };
    let whole = Sim::new(&SMALL, 1);
    let plan = planned(&whole, &SMALL, &quick()).await;
    bad(&whole);
    let told = |end: &RunEnd| {
        let RunEnd::Failed { why } = end else { panic!("{end:?}") };
        assert!(why.starts_with("h1:3000 stays as it is: "), "{why}");
        assert!(!why.contains("it was not prepared"), "{why}");
        for back in ["h1:9090", "h1:9093"] {
            assert_eq!(why.matches(&format!("{back} was put back: ")).count(), 1, "{back}: {why}");
        }
        why.clone()
    };
    let report = go(&plan, &whole, &mut MemoryJournal::default()).await.unwrap();
    told(&report.end);
    let effects = whole.state.lock().unwrap().effects;
    for effect in 1..effects {
        for side in [Side::Before, Side::After] {
            let sim = Sim::new(&SMALL, 1);
            bad(&sim);
            let mut journal = dead_at(&plan, &sim, effect, side).await;
            sim.pass(Duration::from_secs(effect % 3 * 150));
            let report = go_on(&plan, &sim, &mut journal).await.unwrap();
            told(&report.end);
            assert_eq!(kinds(&sim), Ok((0, dm(&SMALL))), "{effect} {side:?}");
            assert_eq!(monitoring(&sim), [false; 3], "{effect} {side:?}");
        }
    }
}
