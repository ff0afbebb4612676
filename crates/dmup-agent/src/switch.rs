//! The window: stop, exchange, write files, start.
//!
//! Binaries are hashed before the stop; between stop and start there is one rename and one
//! fsync. Asked again after a crash, it finishes what was begun: the hashes of the two trees
//! say how far it came.
//!
//! | live | staged | unit | what is done |
//! |---|---|---|---|
//! | `from` | `to` | any | stop, exchange, start |
//! | `from` | anything else, and `to` is kept | any | `to` is brought to its place first ([`crate::trees`]) |
//! | `from` = `to` | any | another process than before, files as ordered | nothing: `already` |
//! | `from` = `to` | any | anything else | stop, start |
//! | `to` | any | runs `to`, files as ordered | nothing: `already` |
//! | `to` | any | anything else | stop what runs, start |
//! | anything else | | | refused, nothing touched |

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::digest::Digest;
use dmup_core::ids::UnitName;
use dmup_wire::message::{Outcome, PutFile, Refusal, RefusalKind, Switch, Switched, UnitAction};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::files::{self, check_absolute, check_relative, sync_folder};
use crate::hash::{Hashes, Identity};
use crate::processes;
use crate::refuse::{Reply, When, bad, refuse, with_state};
use crate::services::{Services, UnitSeen};
use crate::trees;

/// How long systemd may take to call a started unit active. TiUP's units are `Type=simple`: at once.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How often a starting unit is looked at.
const GLANCE: Duration = Duration::from_millis(10);

/// Carries a window out.
pub(crate) fn switch(services: &dyn Services, hashes: &Hashes, order: &Switch) -> Reply {
    check(order)?;
    if order.from != order.to {
        trees::bring_forward(order, hashes)?;
    }
    let trees = Trees::look(hashes, order)?;
    let unit = services.look_at(&order.unit)?;
    let texts = Written::look(&order.texts)?;
    if !order.restart {
        return offline(&trees, &unit, order, &texts);
    }
    let exchange = match trees.standing(order)? {
        Standing::Exchanged
            if runs(hashes, &unit, &order.to)?
                && texts.lie_there()
                && (order.from != order.to || unit.pid != order.pid_before) =>
        {
            return Ok(Outcome::Switched(Switched {
                already: true,
                stop_ms: 0,
                exchange_us: 0,
                start_ms: 0,
                total_ms: 0,
                killed: false,
                old_pid: unit.pid,
                new_pid: unit.pid,
            }));
        }
        Standing::Exchanged => None,
        Standing::Before => Some(&trees),
    };
    window(services, order, &unit, exchange, &texts).map(Outcome::Switched)
}

fn check(order: &Switch) -> Result<(), Refusal> {
    check_absolute(&order.live)?;
    check_absolute(&order.staged)?;
    check_relative(&order.binary)?;
    if !order.restart && order.from == order.to && order.texts.is_empty() {
        let seen = "without a restart a window only exchanges and writes files";
        return Err(bad(attempt(order), seen));
    }
    if order.live == order.staged || order.live.parent() != order.staged.parent() {
        let seen = format!("{} is not beside {}", order.staged, order.live);
        return Err(bad(format!("exchange {}", order.live), seen));
    }
    Ok(())
}

/// The executables of both trees, as they were before the stop.
struct Trees {
    live: Option<(Digest, Identity)>,
    staged: Option<(Digest, Identity)>,
}

enum Standing {
    /// As ordered: `from` lives, `to` waits.
    Before,
    /// `to` lives already.
    Exchanged,
}

impl Trees {
    fn look(hashes: &Hashes, order: &Switch) -> Result<Self, Refusal> {
        let hash = |tree: &Utf8Path| {
            let path = tree.join(&order.binary);
            hashes.of_existing(&path).when(|| format!("hash {path}"))
        };
        Ok(Self { live: hash(&order.live)?, staged: hash(&order.staged)? })
    }

    fn standing(&self, order: &Switch) -> Result<Standing, Refusal> {
        let is = |tree: &Option<(Digest, Identity)>, digest: &Digest| {
            tree.as_ref().is_some_and(|(seen, _)| seen == digest)
        };
        if is(&self.live, &order.to) {
            return Ok(Standing::Exchanged);
        }
        if is(&self.live, &order.from) && is(&self.staged, &order.to) {
            return Ok(Standing::Before);
        }
        let word = |tree: &Option<(Digest, Identity)>| {
            tree.as_ref().map_or("no executable".to_owned(), |(seen, _)| seen.as_str().to_owned())
        };
        let seen = format!(
            "{} has {} and {} has {}; expected were {} and {}",
            order.live,
            word(&self.live),
            order.staged,
            word(&self.staged),
            order.from.as_str(),
            order.to.as_str()
        );
        Err(refuse(RefusalKind::Precondition, attempt(order), seen))
    }

    /// Whether both executables are still the files that were hashed: two calls of stat, no reading.
    fn unchanged(&self, order: &Switch) -> bool {
        [(&order.live, &self.live), (&order.staged, &self.staged)].into_iter().all(
            |(tree, hashed)| {
                let now = Identity::at(&tree.join(&order.binary)).ok();
                now.is_some() && now == hashed.as_ref().map(|(_, identity)| *identity)
            },
        )
    }
}

fn attempt(order: &Switch) -> String {
    if order.from == order.to {
        return format!("restart {}", order.instance);
    }
    format!("switch {} from {} to {}", order.instance, order.from, order.to)
}

/// The files of a window, with what lay there before the stop.
struct Written<'a>(Vec<(&'a PutFile, Option<String>)>);

impl<'a> Written<'a> {
    /// Reads what is there, and sees to it that each can be written as far as that can be known before.
    fn look(texts: &'a [PutFile]) -> Result<Self, Refusal> {
        let look = |text: &'a PutFile| {
            files::can_put(text)?;
            Ok((text, files::read_small(&text.path)?))
        };
        texts.iter().map(look).collect::<Result<_, _>>().map(Self)
    }

    fn lie_there(&self) -> bool {
        self.0.iter().all(|(text, before)| before.as_ref() == Some(&text.content))
    }

    /// Writes all of them, or puts those back that it has written.
    fn write(&self) -> Result<(), Refusal> {
        for (index, (text, _)) in self.0.iter().enumerate() {
            if let Err(refusal) = files::put(text) {
                let state = match self.put_back(index) {
                    Ok(()) => "the files are as they were".to_owned(),
                    Err(second) => format!("some files are new, and {second}"),
                };
                return Err(with_state(refusal, state));
            }
        }
        Ok(())
    }

    fn put_back(&self, written: usize) -> Result<(), Refusal> {
        for (text, before) in &self.0[..written] {
            match before {
                Some(content) => {
                    files::put(&PutFile { content: content.clone(), ..(*text).clone() })?;
                }
                None => files::remove(&text.path)?,
            }
        }
        Ok(())
    }
}

/// Whether the unit's main process runs a build, by the hash of what it executes.
fn runs(hashes: &Hashes, unit: &UnitSeen, build: &Digest) -> Result<bool, Refusal> {
    let Some(pid) = unit.pid else { return Ok(false) };
    let path = processes::executable(pid);
    let seen = hashes.of_existing(&path).when(|| format!("hash {path}"))?;
    Ok(seen.is_some_and(|(digest, _)| digest == *build))
}

/// Exchanges and writes, and starts nothing.
fn offline(trees: &Trees, unit: &UnitSeen, order: &Switch, texts: &Written<'_>) -> Reply {
    let standing = trees.standing(order)?;
    let mut done = Switched {
        already: true,
        stop_ms: 0,
        exchange_us: 0,
        start_ms: 0,
        total_ms: 0,
        killed: false,
        old_pid: unit.pid,
        new_pid: None,
    };
    let is_exchanged = match standing {
        Standing::Exchanged if texts.lie_there() => return Ok(Outcome::Switched(done)),
        Standing::Exchanged => true,
        Standing::Before => false,
    };
    if !unit.is_down() && !order.even_if_running {
        let seen = format!("{} is {}", order.unit, unit.words());
        return Err(refuse(RefusalKind::Precondition, attempt(order), seen));
    }
    let began = Instant::now();
    if !is_exchanged {
        exchange(&order.live, &order.staged).when(|| attempt(order))?;
        done.exchange_us = micros(began.elapsed());
    }
    if let Err(refusal) = texts.write() {
        // Neither runs: build and files of one kind lie there together, or it is said that they do not.
        let files = refusal.state.clone().unwrap_or_default();
        let back = if is_exchanged { Ok(()) } else { exchange(&order.live, &order.staged) };
        let state = match back {
            Ok(()) => format!("{files}, and the build is as it was"),
            Err(error) => {
                format!("{files}, and {} has {}: {error}", order.live, order.to)
            }
        };
        return Err(with_state(refusal, state));
    }
    done.already = false;
    done.total_ms = millis(began.elapsed());
    Ok(Outcome::Switched(done))
}

/// Stops, exchanges if there is something to exchange, starts.
fn window(
    services: &dyn Services,
    order: &Switch,
    before: &UnitSeen,
    trees: Option<&Trees>,
    texts: &Written<'_>,
) -> Result<Switched, Refusal> {
    let began = Instant::now();
    let within = Duration::from_millis(order.stop_within_ms);
    // Also for a unit that is down: in a restart loop it is down for a moment only, and the stop takes it out of the loop.
    if let Err(refusal) = services.act(&order.unit, UnitAction::Stop, within) {
        return Err(recover_slow_stop(services, order, refusal));
    }
    let stopped = services.look_at(&order.unit)?;
    if !stopped.is_down() {
        let refusal = refuse(
            RefusalKind::System,
            attempt(order),
            format!("after the stop {} is {}", order.unit, stopped.words()),
        );
        return Err(recover_slow_stop(services, order, refusal));
    }
    let down = began.elapsed();
    if let Some(trees) = trees {
        let exchanged = if trees.unchanged(order) {
            exchange(&order.live, &order.staged).when(|| attempt(order))
        } else {
            Err(refuse(
                RefusalKind::Precondition,
                attempt(order),
                "one of the executables was changed while the unit stopped",
            ))
        };
        if let Err(refusal) = exchanged {
            let state = match start(services, &order.unit, before) {
                Ok(_) => format!("nothing was exchanged, {} runs again", order.unit),
                Err(second) => format!(
                    "nothing was exchanged, and {} did not start again: {second}",
                    order.unit
                ),
            };
            return Err(with_state(refusal, state));
        }
    }
    let exchanged = began.elapsed();
    if let Err(refusal) = texts.write() {
        // With the build that lies there now: whoever ordered this sees it, and the guard goes back if there is one.
        let files = refusal.state.clone().unwrap_or_default();
        let state = match start(services, &order.unit, before) {
            Ok(_) => format!("{files}, {} runs again", order.unit),
            Err(second) => format!("{files}, and {} did not start again: {second}", order.unit),
        };
        return Err(with_state(refusal, state));
    }
    let new_pid = start(services, &order.unit, before).map_err(|refusal| {
        let live = trees.map_or("the build was there before", |_| "the trees are exchanged");
        let unit = services
            .look_at(&order.unit)
            .map_or_else(|error| error.to_string(), |seen| seen.words());
        with_state(
            refusal,
            format!("{live}: {} has {}, and {} is {unit}", order.live, order.to, order.unit),
        )
    })?;
    let total = began.elapsed();
    Ok(Switched {
        already: false,
        stop_ms: millis(down),
        exchange_us: if trees.is_some() { micros(exchanged.saturating_sub(down)) } else { 0 },
        start_ms: millis(total.saturating_sub(exchanged)),
        total_ms: millis(total),
        // A unit that was down before may have been killed long ago.
        killed: before.pid.is_some() && stopped.killed,
        old_pid: before.pid,
        new_pid: Some(new_pid),
    })
}

/// A stop that is under way cannot be taken back: the start is queued behind it.
fn recover_slow_stop(services: &dyn Services, order: &Switch, refusal: Refusal) -> Refusal {
    let state = match services.start_later(&order.unit) {
        Ok(()) => format!(
            "nothing was exchanged; {} is still stopping and starts again after that",
            order.unit
        ),
        Err(second) => format!(
            "nothing was exchanged; {} may be stopping, and cannot be told to start again: {second}",
            order.unit
        ),
    };
    with_state(refusal, state)
}

/// Starts a unit and waits until it is active with a main process.
fn start(services: &dyn Services, unit: &UnitName, before: &UnitSeen) -> Result<u32, Refusal> {
    if before.is_down() || before.restarts > 0 || before.pid.is_none() {
        // Its failures may have used up the start limit.
        services.forget_failures(unit);
    }
    let began = Instant::now();
    services.act(unit, UnitAction::Start, START_LIMIT)?;
    loop {
        let seen = services.look_at(unit)?;
        if let (dmup_core::inventory::UnitActive::Active, Some(pid)) = (seen.active, seen.pid) {
            return Ok(pid);
        }
        // A process that ends at once never looks active: with Restart=always it waits for its next try.
        if seen.is_down() || seen.sub_state == "auto-restart" || began.elapsed() > START_LIMIT {
            let words = format!("it is {}", seen.words());
            return Err(refuse(RefusalKind::System, format!("start {unit}"), words));
        }
        thread::sleep(GLANCE);
    }
}

/// Exchanges two folders in one step that survives a power cut.
pub(crate) fn exchange(live: &Utf8Path, staged: &Utf8Path) -> io::Result<()> {
    renameat_with(CWD, live.as_str(), CWD, staged.as_str(), RenameFlags::EXCHANGE)?;
    // Both lie in one folder: checked by the caller.
    live.parent().map_or(Ok(()), sync_folder)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// The folders that a window works on, for those that undo one.
pub(crate) fn undo(
    guard: &dmup_wire::message::Guard,
    restart: bool,
    stop_within: Duration,
) -> Switch {
    Switch {
        instance: guard.instance.clone(),
        unit: guard.unit.clone(),
        live: guard.live.clone(),
        staged: Utf8PathBuf::clone(&guard.staged),
        binary: guard.binary.clone(),
        from: guard.to.clone(),
        to: guard.from.clone(),
        pid_before: None,
        texts: guard.texts.clone(),
        restart,
        even_if_running: true,
        stop_within_ms: millis(stop_within),
        guard_s: None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use dmup_core::ids::InstanceId;
    use dmup_core::inventory::UnitActive;
    use fs_err as fs;

    use super::*;

    /// A unit that does what a test needs; every order is written down.
    #[derive(Default)]
    pub(crate) struct Fake {
        pub(crate) orders: Mutex<Vec<String>>,
        pub(crate) pid: Mutex<Option<u32>>,
        pub(crate) stop_is_slow: bool,
        pub(crate) start_fails: bool,
        pub(crate) during_stop: Option<Box<dyn Fn() + Send + Sync>>,
    }

    impl Fake {
        pub(crate) fn orders(&self) -> Vec<String> {
            self.orders.lock().unwrap().clone()
        }
    }

    impl Services for Fake {
        fn look(&self, units: &[UnitName]) -> Result<Vec<UnitSeen>, Refusal> {
            let pid = *self.pid.lock().unwrap();
            let seen = UnitSeen {
                active: if pid.is_some() { UnitActive::Active } else { UnitActive::Inactive },
                sub_state: "fake".into(),
                enabled: true,
                pid,
                restarts: 0,
                active_since_ms: None,
                killed: false,
                ended: None,
            };
            Ok(vec![seen; units.len()])
        }

        fn act(&self, unit: &UnitName, action: UnitAction, _: Duration) -> Result<(), Refusal> {
            self.orders.lock().unwrap().push(crate::services::verb(action).to_owned());
            let refused =
                |kind| Err(refuse(kind, format!("{action:?} {unit}"), "as the test wants"));
            match action {
                UnitAction::Stop if self.stop_is_slow => return refused(RefusalKind::TooSlow),
                UnitAction::Start if self.start_fails => return refused(RefusalKind::System),
                UnitAction::Stop => {
                    *self.pid.lock().unwrap() = None;
                    if let Some(during) = &self.during_stop {
                        during();
                    }
                }
                UnitAction::Start | UnitAction::Restart => {
                    *self.pid.lock().unwrap() = Some(std::process::id());
                }
                UnitAction::Enable | UnitAction::Disable => {}
            }
            Ok(())
        }

        fn start_later(&self, _: &UnitName) -> Result<(), Refusal> {
            self.orders.lock().unwrap().push("start later".into());
            Ok(())
        }

        fn forget_failures(&self, _: &UnitName) {
            self.orders.lock().unwrap().push("forget".into());
        }

        fn journal(&self, _: &UnitName, _: u32) -> Result<Vec<String>, Refusal> {
            Ok(vec!["a line".into()])
        }
    }

    /// Two trees: `old` lives, `new` waits.
    pub(crate) fn trees() -> (tempfile::TempDir, Switch) {
        let keep = tempfile::tempdir().unwrap();
        let dir = Utf8PathBuf::from_path_buf(keep.path().to_owned()).unwrap();
        for (tree, content) in [("bin", "old"), ("bin.next", "new")] {
            fs::create_dir_all(dir.join(tree).join("dm-worker")).unwrap();
            fs::write(dir.join(tree).join("dm-worker/dm-worker"), content).unwrap();
        }
        let order = Switch {
            instance: InstanceId::new("h:1").unwrap(),
            unit: UnitName::new("dm-worker-1.service").unwrap(),
            live: dir.join("bin"),
            staged: dir.join("bin.next"),
            binary: "dm-worker/dm-worker".into(),
            from: Digest::of(b"old"),
            to: Digest::of(b"new"),
            pid_before: None,
            texts: Vec::new(),
            restart: true,
            even_if_running: false,
            stop_within_ms: 1000,
            guard_s: None,
        };
        (keep, order)
    }

    pub(crate) fn live(order: &Switch) -> String {
        fs::read_to_string(order.live.join(&order.binary)).unwrap()
    }

    fn switched(reply: Reply) -> Switched {
        match reply {
            Ok(Outcome::Switched(switched)) => switched,
            other => panic!("{other:?}"),
        }
    }

    fn running() -> Fake {
        Fake { pid: Mutex::new(Some(1)), ..Fake::default() }
    }

    #[test]
    fn a_window_stops_exchanges_and_starts_and_can_be_undone_the_same_way() {
        let (_keep, order) = trees();
        let (services, hashes) = (running(), Hashes::default());
        let done = switched(switch(&services, &hashes, &order));
        assert_eq!(services.orders(), ["stop", "start"]);
        assert_eq!((live(&order).as_str(), done.already, done.old_pid), ("new", false, Some(1)));
        assert_eq!(done.new_pid, Some(std::process::id()));
        let back = Switch { from: order.to.clone(), to: order.from.clone(), ..order.clone() };
        switched(switch(&services, &hashes, &back));
        assert_eq!(live(&order), "old");
    }

    #[test]
    fn a_build_that_was_kept_is_brought_to_its_place_before_the_stop() {
        for failed in [true, false] {
            let (_keep, order) = trees();
            let kept = trees::kept(&order.staged);
            fs::rename(&order.staged, &kept).unwrap();
            if failed {
                fs::create_dir_all(order.staged.join("dm-worker")).unwrap();
                fs::write(order.staged.join(&order.binary), "failed").unwrap();
            }
            let (services, hashes) = (running(), Hashes::default());
            assert!(!switched(switch(&services, &hashes, &order)).already);
            assert_eq!(services.orders(), ["stop", "start"]);
            let of = |tree: &Utf8Path| fs::read_to_string(tree.join(&order.binary)).ok();
            let failed = failed.then(|| "failed".to_owned());
            assert_eq!((live(&order).as_str(), of(&kept)), ("new", failed));
            // Its way back lies where a guard looks for it.
            assert_eq!(of(&order.staged).as_deref(), Some("old"));
        }
    }

    /// A window without an exchange around this test's own program, which runs as `old_pid` did before.
    fn again(keep: &tempfile::TempDir, order: Switch) -> (Switch, Fake) {
        let own = std::env::current_exe().unwrap();
        fs::copy(own, order.live.join(&order.binary)).unwrap();
        let build = Hashes::default().of(&order.live.join(&order.binary)).unwrap().0;
        let path = Utf8PathBuf::from_path_buf(keep.path().join("run.sh")).unwrap();
        let text =
            PutFile { path, mode: 0o755, root: false, owner: None, content: "new".to_owned() };
        let pid = Some(std::process::id());
        let services = Fake { pid: Mutex::new(pid), ..Fake::default() };
        let order =
            Switch { from: build.clone(), to: build, pid_before: pid, texts: vec![text], ..order };
        (order, services)
    }

    fn text(order: &Switch) -> Option<String> {
        fs::read_to_string(&order.texts[0].path).ok()
    }

    #[test]
    fn a_window_without_an_exchange_writes_its_files_between_stop_and_start() {
        let (keep, order) = trees();
        let (order, mut services) = again(&keep, order);
        let path = order.texts[0].path.clone();
        fs::write(&path, "old").unwrap();
        services.during_stop = Some(Box::new(move || {
            assert_eq!(fs::read_to_string(&path).unwrap(), "old", "written before the stop");
        }));
        let done = switched(switch(&services, &Hashes::default(), &order));
        assert_eq!(services.orders(), ["stop", "start"]);
        assert_eq!((text(&order).as_deref(), done.exchange_us), (Some("new"), 0));
        assert!(!done.already);
        assert!(order.staged.join(&order.binary).exists(), "the other tree stays");
    }

    #[test]
    fn without_an_exchange_it_was_done_already_if_another_process_runs_with_these_files() {
        let (keep, order) = trees();
        let (order, services) = again(&keep, order);
        fs::write(&order.texts[0].path, "new").unwrap();
        let later = Switch { pid_before: Some(1), ..order.clone() };
        assert!(switched(switch(&services, &Hashes::default(), &later)).already);
        assert!(services.orders().is_empty());
        // The same process as before, or other files: not yet.
        assert!(!switched(switch(&services, &Hashes::default(), &order)).already);
        fs::write(&order.texts[0].path, "old").unwrap();
        assert!(!switched(switch(&services, &Hashes::default(), &later)).already);
        assert_eq!(services.orders(), ["stop", "start", "stop", "start"]);
        assert_eq!(text(&order).as_deref(), Some("new"));
    }

    /// A window that exchanges and brings a file; `old` lies there.
    pub(crate) fn with_file(order: &Switch) -> Switch {
        let path = order.live.with_file_name("run.sh");
        fs::write(&path, "old").unwrap();
        let content = "new".to_owned();
        let text = PutFile { path, mode: 0o755, root: false, owner: None, content };
        Switch { texts: vec![text], ..order.clone() }
    }

    /// The way back, with the file from before.
    fn back(order: &Switch) -> Switch {
        let old = PutFile { content: "old".to_owned(), ..order.texts[0].clone() };
        let (from, to) = (order.to.clone(), order.from.clone());
        Switch { from, to, texts: vec![old], ..order.clone() }
    }

    #[test]
    fn a_window_brings_build_and_files_together_and_takes_both_back() {
        let (_keep, order) = trees();
        for restart in [true, false] {
            let order = Switch { restart, even_if_running: true, ..with_file(&order) };
            let services = running();
            switched(switch(&services, &Hashes::default(), &order));
            assert_eq!((live(&order).as_str(), text(&order).as_deref()), ("new", Some("new")));
            switched(switch(&services, &Hashes::default(), &back(&order)));
            assert_eq!((live(&order).as_str(), text(&order).as_deref()), ("old", Some("old")));
            assert_eq!(services.orders().is_empty(), !restart);
        }
    }

    #[test]
    fn a_build_that_runs_without_its_files_is_no_window_that_was_done() {
        let (keep, order) = trees();
        // This test's own program is the build; only its file is not as ordered.
        let (same, services) = again(&keep, order.clone());
        fs::write(&same.texts[0].path, "old").unwrap();
        let order = Switch { from: order.from, ..same };
        assert!(!switched(switch(&services, &Hashes::default(), &order)).already);
        assert_eq!(
            (services.orders(), text(&order).as_deref()),
            (vec!["stop".into(), "start".into()], Some("new"))
        );
        assert!(switched(switch(&services, &Hashes::default(), &order)).already);
        let offline = Switch { restart: false, even_if_running: true, ..order.clone() };
        assert!(switched(switch(&services, &Hashes::default(), &offline)).already);
        fs::write(&order.texts[0].path, "old").unwrap();
        assert!(!switched(switch(&services, &Hashes::default(), &offline)).already);
        assert_eq!(text(&order).as_deref(), Some("new"));
    }

    #[test]
    fn files_that_fail_offline_take_the_build_back_with_them() {
        let (keep, order) = trees();
        let mut order = Switch { restart: false, ..with_file(&order) };
        let folder = Utf8PathBuf::from_path_buf(keep.path().join("folder")).unwrap();
        // One may be looked for under that name, but the draft beside it has a longer one.
        fs::create_dir(&folder).unwrap();
        order.texts.push(PutFile { path: folder.join("x".repeat(254)), ..order.texts[0].clone() });
        let refusal = switch(&Fake::default(), &Hashes::default(), &order).unwrap_err();
        assert_eq!(
            (live(&order).as_str(), text(&order).as_deref()),
            ("old", Some("old")),
            "{refusal}"
        );
        assert!(refusal.state.unwrap().contains("the build is as it was"));
    }

    #[test]
    fn files_that_cannot_be_written_are_refused_before_the_stop() {
        let (keep, order) = trees();
        let (mut order, services) = again(&keep, order);
        order.texts[0].path = "/nowhere/at/all".into();
        let refusal = switch(&services, &Hashes::default(), &order).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::Precondition, "{refusal}");
        let user = dmup_core::ids::UserName::new("nobody-of-that-name").unwrap();
        order.texts[0].path = Utf8PathBuf::from_path_buf(keep.path().join("run.sh")).unwrap();
        order.texts[0].owner = Some(user);
        switch(&services, &Hashes::default(), &order).unwrap_err();
        assert!(services.orders().is_empty());
    }

    #[test]
    fn files_that_fail_half_way_are_put_back_and_the_unit_starts_again() {
        let (keep, order) = trees();
        let (mut order, mut services) = again(&keep, order);
        let first = order.texts[0].path.clone();
        let second = PutFile {
            path: Utf8PathBuf::from_path_buf(keep.path().join("folder/conf.toml")).unwrap(),
            ..order.texts[0].clone()
        };
        let folder = second.path.parent().unwrap().to_owned();
        fs::create_dir(&folder).unwrap();
        fs::write(&first, "old").unwrap();
        order.texts.push(second);
        // The folder is gone by the time it is written to.
        services.during_stop = Some(Box::new(move || fs::remove_dir(&folder).unwrap()));
        let refusal = switch(&services, &Hashes::default(), &order).unwrap_err();
        let state = refusal.state.unwrap();
        assert!(state.starts_with("the files are as they were"), "{state}");
        assert!(state.ends_with("runs again"), "{state}");
        assert_eq!(text(&order).as_deref(), Some("old"));
        assert_eq!(services.orders(), ["stop", "start"]);
    }

    #[test]
    fn without_a_restart_only_an_exchange_or_files_make_sense() {
        let (keep, order) = trees();
        let (order, services) = again(&keep, order);
        let offline = Switch { restart: false, texts: Vec::new(), ..order };
        let refusal = switch(&services, &Hashes::default(), &offline).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::BadRequest);
        assert!(services.orders().is_empty());
    }

    #[test]
    fn what_runs_already_is_left_alone() {
        let (_keep, mut order) = trees();
        // The running program is this test: its own hash is the build that is wanted.
        let own = std::env::current_exe().unwrap();
        fs::copy(own, order.live.join(&order.binary)).unwrap();
        let hashes = Hashes::default();
        order.to = hashes.of(&order.live.join(&order.binary)).unwrap().0;
        let services = Fake { pid: Mutex::new(Some(std::process::id())), ..Fake::default() };
        assert!(switched(switch(&services, &hashes, &order)).already);
        assert!(services.orders().is_empty());
    }

    #[test]
    fn a_window_that_was_cut_off_after_the_exchange_is_finished() {
        let (_keep, order) = trees();
        exchange(&order.live, &order.staged).unwrap();
        let services = Fake::default();
        let done = switched(switch(&services, &Hashes::default(), &order));
        assert_eq!((live(&order).as_str(), done.already, done.exchange_us), ("new", false, 0));
        assert_eq!(services.orders(), ["stop", "forget", "start"]);
    }

    #[test]
    fn other_builds_than_expected_are_refused_before_the_stop() {
        let (_keep, order) = trees();
        for order in [
            Switch { from: Digest::of(b"?"), ..order.clone() },
            Switch { to: Digest::of(b"?"), ..order.clone() },
            Switch { binary: "missing".into(), ..order.clone() },
        ] {
            let services = running();
            let refusal = switch(&services, &Hashes::default(), &order).unwrap_err();
            assert_eq!(refusal.kind, RefusalKind::Precondition);
            assert!(services.orders().is_empty() && refusal.state.is_none());
        }
        assert_eq!(live(&order), "old");
    }

    #[test]
    fn a_stop_that_takes_too_long_exchanges_nothing_and_queues_the_start() {
        let (_keep, order) = trees();
        let services = Fake { stop_is_slow: true, ..running() };
        let refusal = switch(&services, &Hashes::default(), &order).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::TooSlow);
        assert_eq!(
            (services.orders(), live(&order)),
            (vec!["stop".into(), "start later".into()], "old".into())
        );
    }

    #[test]
    fn a_start_that_fails_says_that_the_new_build_lies_there() {
        let (_keep, order) = trees();
        let services = Fake { start_fails: true, ..running() };
        let refusal = switch(&services, &Hashes::default(), &order).unwrap_err();
        let state = refusal.state.unwrap();
        assert!(state.contains("the trees are exchanged"), "{state}");
        assert_eq!(live(&order), "new");
        // And the way back works from there.
        let back = Switch { from: order.to.clone(), to: order.from.clone(), ..order.clone() };
        switched(switch(&Fake::default(), &Hashes::default(), &back));
        assert_eq!(live(&order), "old");
    }

    #[test]
    fn an_executable_that_is_replaced_during_the_stop_is_not_put_in_place() {
        let (_keep, order) = trees();
        let path = order.staged.join(&order.binary);
        let services = Fake {
            during_stop: Some(Box::new(move || {
                fs::remove_file(&path).unwrap();
                fs::write(&path, "new").unwrap();
            })),
            ..running()
        };
        let refusal = switch(&services, &Hashes::default(), &order).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::Precondition);
        assert!(refusal.state.unwrap().contains("runs again"));
        assert_eq!(live(&order), "old");
    }

    #[test]
    fn offline_refuses_while_the_unit_runs_unless_forced_and_never_starts_anything() {
        let (_keep, order) = trees();
        let order = Switch { restart: false, ..order };
        let (services, hashes) = (running(), Hashes::default());
        let refusal = switch(&services, &hashes, &order).unwrap_err();
        assert_eq!((refusal.kind, live(&order).as_str()), (RefusalKind::Precondition, "old"));
        let forced = Switch { even_if_running: true, ..order.clone() };
        assert!(!switched(switch(&services, &hashes, &forced)).already);
        assert!(switched(switch(&services, &hashes, &forced)).already);
        assert_eq!(live(&order), "new");
        assert!(services.orders().is_empty());
    }
}
