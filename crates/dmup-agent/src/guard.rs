//! The guard of a window: the host undoes an exchange by itself unless somebody confirms it.
//!
//! ```text
//! /var/lib/dmup/agent-<digest>             a copy of this program that outlives upgrades and homes
//! /var/lib/dmup/guards/<instance>.json     armed: what to do
//! /var/lib/dmup/guards/<instance>.fired    has acted, or is acting: what it did
//! /var/lib/dmup/guards/<instance>.lock     held by whoever arms, puts off, disarms or acts
//! /etc/systemd/system/dmup-guard-<unit>.timer          acts when the time is up
//! /etc/systemd/system/dmup-guard-<unit>.service        … by this
//! /etc/systemd/system/dmup-guard-<unit>-boot.service   acts at the next boot, before the unit starts
//! ```
//!
//! Where a user's systemd runs the services it is the same in that user's home, by that user: `~/.dmup` and
//! `~/.config/systemd/user`. The next boot is then the next start of that systemd, whether the machine booted or not.
//!
//! Who renames `.json` away has decided: disarming and firing cannot both happen. A guard that
//! is cut off while it acts is run again at the next boot, because its boot service goes last.
//!
//! One at a time, by the lock: a guard whose time is up right when another dmup arms it anew acts to its end first, or finds
//! itself put off and does nothing. (Side by side, the one took away units that the other had just written; and the rehearsal
//! below acted in earnest, inside the start of a unit that waits for it: a master was down for half a minute.)
//!
//! Two services, because a unit that is ordered before the DM unit must not wait for the DM
//! unit's start: at boot the guard only exchanges, and the boot starts the unit; later it does a whole window.
//!
//! Without systemd ([`crate::services::supervised`]) a detached process sleeps until the time is up; it does not survive a reboot.
//!
//! Putting a guard off ([`renew`]) is done every few seconds and is cheap: the timer starts over. Only another span
//! needs its file written anew and systemd told. What acts at the next boot is not touched by it.
//!
//! Arming rehearses: the boot service is run once with nothing to do, so a host where systemd
//! may not execute files under `/var/lib` (SELinux, noexec) refuses to arm instead of failing when it matters.

use std::fs::TryLockError;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::ids::{InstanceId, UnitName};
use dmup_core::inventory::UnitActive;
use dmup_wire::agent_arguments;
use dmup_wire::message::{
    Guard, Leftover, LeftoverKind, Outcome, ProbeInstance, Refusal, RefusalKind, UnitAction,
};
use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};

use crate::files::{check_absolute, check_relative, sync_folder, write_atomically};
use crate::hash::Hashes;
use crate::host::{Places, Runner, clock_ms};
use crate::refuse::{Reply, When, refuse};
use crate::services::systemd::Systemd;
use crate::services::{Services, supervised};
use crate::switch::{switch, undo};
use crate::trees;

/// A stop beyond systemd's own 90 s will not come any more.
const STOP_LIMIT: Duration = Duration::from_secs(180);

/// How often the guard tries before it gives up and says so.
const TRIES: u32 = 3;

/// How often a sleeping guard looks whether it was put off.
const GLANCE: Duration = Duration::from_millis(500);

/// There may be a password in the files that it writes back.
const CLOSED: u32 = 0o600;

/// How long arming waits for a guard that acts: a little less than whoever asks.
const ARM_PATIENCE: Duration = Duration::from_secs(45);

/// The same for putting off and disarming: what acts longer than that has decided.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 200 } else { 5000 });

/// A guard acts in the end, whoever hangs with its lock.
const FIRE_PATIENCE: Duration = Duration::from_secs(60);

/// Between two tries of the lock.
const KNOCK: Duration = Duration::from_millis(50);

/// Between two tries.
const PAUSE: Duration = Duration::from_secs(5);

/// `.json` and `.fired`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
struct Record {
    guard: Guard,
    /// When it was armed; tells a guard that was armed again from the one before.
    armed_ms: i64,
    /// When it was put off last.
    #[serde(default)]
    renewed_ms: Option<i64>,
    /// What it did; none while it has not acted to its end.
    did: Option<String>,
}

/// When a guard acts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Moment {
    /// Nobody has confirmed in time.
    TimeIsUp,
    /// systemd begins to start services, and waits with the unit for the guard.
    AtBoot,
}

impl Moment {
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::TimeIsUp => &[],
            Self::AtBoot => &[crate::AT_BOOT],
        }
    }
}

/// File names of one guard.
struct Files {
    armed: Utf8PathBuf,
    fired: Utf8PathBuf,
    lock: Utf8PathBuf,
}

impl Files {
    fn of(places: &Places, instance: &InstanceId) -> Self {
        let name = file_name(instance);
        Self {
            armed: places.guards.join(format!("{name}.json")),
            fired: places.guards.join(format!("{name}.fired")),
            lock: places.guards.join(format!("{name}.lock")),
        }
    }
}

/// The right to change a guard, or to be it; it ends with its value, and with its process.
#[derive(Debug)]
struct Turn {
    /// None where no lock can be had (a full disk): that keeps nobody from going back.
    _lock: Option<fs::File>,
}

impl Turn {
    /// None if somebody else still has it when the time is up.
    fn take(lock: &Utf8Path, patience: Duration) -> Option<Self> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(CLOSED);
        let Ok(file) = options.open(lock) else { return Some(Self { _lock: None }) };
        let began = Instant::now();
        loop {
            match file.file().try_lock() {
                Ok(()) => return Some(Self { _lock: Some(file) }),
                Err(TryLockError::Error(_)) => return Some(Self { _lock: None }),
                Err(TryLockError::WouldBlock) if began.elapsed() >= patience => return None,
                Err(TryLockError::WouldBlock) => thread::sleep(KNOCK),
            }
        }
    }
}

/// Somebody else had the turn all the time.
fn busy(files: &Files, attempted: String) -> Refusal {
    match read(&files.fired) {
        Some(Record { did: None, .. }) => not_armed(files, attempted),
        Some(_) | None => refuse(
            RefusalKind::TooSlow,
            attempted,
            "an earlier order about this guard is still under way",
        ),
    }
}

/// An instance as part of a file name and of a command line of a unit file: letters, digits, `.`, `-`, and `_XX` for others.
pub(crate) fn file_name(instance: &InstanceId) -> String {
    instance
        .as_str()
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' => char::from(byte).to_string(),
            other => format!("_{other:02X}"),
        })
        .collect()
}

fn stem(unit: &UnitName) -> &str {
    unit.as_str().strip_suffix(".service").unwrap_or(unit.as_str())
}

/// Unit files of a guard: timer, its service, and the service of the next boot.
fn unit_names(unit: &UnitName) -> [String; 3] {
    // `@` would make it an instance of a template that does not exist.
    let stem = stem(unit).replace('@', "_at_");
    [
        format!("dmup-guard-{stem}.timer"),
        format!("dmup-guard-{stem}.service"),
        format!("dmup-guard-{stem}-boot.service"),
    ]
}

/// Arms a guard; one that is armed already starts over. Needs whoever gives orders to the unit's systemd.
pub(crate) fn arm(places: &Places, guard: &Guard) -> Reply {
    let attempted = || format!("arm the guard of {}", guard.instance);
    for path in [&guard.live, &guard.staged] {
        check_absolute(path)?;
    }
    check_relative(&guard.binary)?;
    let files = Files::of(places, &guard.instance);
    fs::create_dir_all(&places.guards).when(attempted)?;
    let _turn = Turn::take(&files.lock, ARM_PATIENCE).ok_or_else(|| busy(&files, attempted()))?;
    let record = Record { guard: guard.clone(), armed_ms: clock_ms(), renewed_ms: None, did: None };
    fs::remove_file(&files.fired).ok();
    match &places.runner {
        Runner::Supervised(dir) => {
            write(&files.armed, &record).when(attempted)?;
            let own = own_executable().when(attempted)?;
            let mut command = Command::new(own);
            command.args([
                "agent",
                "--supervised",
                dir.as_str(),
                "--fire-guard",
                files.armed.as_str(),
            ]);
            supervised::detach(command, &places.guards.join("log")).when(attempted)?;
        }
        Runner::Systemd(systemd) => arm_systemd(systemd, places, &record, &files.armed)
            .inspect_err(|_| {
                fs::remove_file(&files.armed).ok();
                remove_units(places, &guard.unit, Ending::Disarmed).ok();
            })?,
    }
    Ok(Outcome::Done)
}

fn arm_systemd(
    systemd: &Systemd,
    places: &Places,
    record: &Record,
    armed: &Utf8Path,
) -> Result<(), Refusal> {
    let guard = &record.guard;
    let attempted = || format!("arm the guard of {}", guard.instance);
    // One that ends with a login is none.
    systemd.check_lasting()?;
    let agent = copy_agent(places).when(attempted)?;
    let names = unit_names(&guard.unit);
    let texts = unit_texts(places, guard, &agent, armed);
    for (name, text) in names.iter().zip(&texts) {
        write_atomically(&places.units.join(name), text.as_bytes(), 0o644, None).when(attempted)?;
    }
    let [timer, _, boot] = &names;
    // A timer of an earlier guard would go on with its old time.
    systemd.act_on_guard("stop", timer).ok();
    systemd.reload()?;
    if !armed.exists() {
        // Without a record it finds nothing to do. That systemd can run it at all (noexec,
        // SELinux) is better known now than when it should act.
        systemd.act_on_guard("start", boot).map_err(|refusal| unable(systemd, refusal, boot))?;
    }
    write(armed, record).when(attempted)?;
    systemd.act_on_guard("enable", boot)?;
    for folder in [places.units.clone(), places.wanted_at_boot()] {
        sync_folder(&folder).when(attempted)?;
    }
    systemd.act_on_guard("start", timer)
}

/// systemctl only points to the journal; the reason stands there.
fn unable(systemd: &Systemd, refusal: Refusal, boot: &str) -> Refusal {
    let said = UnitName::new(boot)
        .ok()
        .and_then(|boot| systemd.journal(&boot, 5).ok())
        .unwrap_or_default()
        .join("\n");
    refuse(
        refusal.kind,
        refusal.attempted,
        format!("systemd cannot run the guard: {}\n{said}", refusal.observed),
    )
}

/// Timer, service, boot service. Checked on systemd 252.
fn unit_texts(places: &Places, guard: &Guard, agent: &Utf8Path, armed: &Utf8Path) -> [String; 3] {
    let unit = &guard.unit;
    let about = about(unit);
    let run = |moment: Moment| {
        let words = [&["agent"], agent_arguments(places.mode), moment.arguments()].concat();
        format!("ExecStart={agent} {} --fire-guard {armed}\n", words.join(" "))
    };
    [
        timer_text(guard),
        format!("{about}\n[Service]\nType=simple\n{}", run(Moment::TimeIsUp)),
        format!(
            "{about}After=local-fs.target remote-fs.target\nBefore={unit}\n\n[Service]\nType=oneshot\nTimeoutStartSec=300\n{}\n[Install]\nWantedBy={}\n",
            run(Moment::AtBoot),
            places.mode.boot_target()
        ),
    ]
}

/// It names no program: whoever puts a guard off may be another dmup than the one that its units start.
fn timer_text(guard: &Guard) -> String {
    let [_, service, _] = unit_names(&guard.unit);
    let about = about(&guard.unit);
    format!("{about}\n[Timer]\nOnActiveSec={}s\nAccuracySec=100ms\nUnit={service}\n", guard.after_s)
}

/// It is put off by starting its timer anew, up to once a second; systemd would give it up after five times in ten
/// seconds, and nothing would go back any more.
fn about(unit: &UnitName) -> String {
    format!(
        "# Written by dmup; it removes itself.\n[Unit]\nDescription=dmup guard of {unit}\nStartLimitIntervalSec=0\n"
    )
}

fn own_executable() -> io::Result<std::path::PathBuf> {
    fs::read_link("/proc/self/exe")
}

/// Copies this program to a place that only whoever runs guards can write, named by content.
fn copy_agent(places: &Places) -> io::Result<Utf8PathBuf> {
    let own = fs::read(Path::new("/proc/self/exe"))?;
    let digest = dmup_core::digest::Digest::of(&own);
    let path = places.agents.join(format!("agent-{}", digest.as_str()));
    let there = Hashes::default().of_existing(&path)?;
    if there.is_none_or(|(seen, _)| seen != digest) {
        write_atomically(&path, &own, 0o755, None)?;
    }
    fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    remove_other_agents(places, &path);
    Ok(path)
}

/// Copies of earlier versions go once no guard is armed any more that may name them.
fn remove_other_agents(places: &Places, keep: &Utf8Path) {
    let armed = places.guards.read_dir_utf8().map_or(usize::MAX, |entries| {
        entries.filter_map(Result::ok).filter(|entry| entry.file_name().ends_with(".json")).count()
    });
    if armed > 1 {
        return; // besides the one that is being armed
    }
    let Ok(entries) = places.agents.read_dir_utf8() else { return };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_name().starts_with("agent-") && entry.path() != keep {
            fs::remove_file(entry.path()).ok();
        }
    }
}

/// Puts an armed guard off: it acts `after_s` from now. One that has fired, or that is not there, refuses.
pub(crate) fn renew(places: &Places, instance: &InstanceId, after_s: u32) -> Reply {
    let attempted = || format!("put the guard of {instance} off");
    let files = Files::of(places, instance);
    let _turn = Turn::take(&files.lock, PATIENCE).ok_or_else(|| busy(&files, attempted()))?;
    let Some(mut record) = read(&files.armed) else { return Err(not_armed(&files, attempted())) };
    let is_other_span = record.guard.after_s != after_s;
    record.guard.after_s = after_s;
    match &places.runner {
        Runner::Supervised(_) => {
            record.renewed_ms = Some(clock_ms());
            write_over(&files.armed, &record).when(attempted)?;
        }
        Runner::Systemd(systemd) => {
            let [timer, ..] = unit_names(&record.guard.unit);
            if is_other_span {
                let text = timer_text(&record.guard);
                write_atomically(&places.units.join(&timer), text.as_bytes(), 0o644, None)
                    .when(attempted)?;
                write_over(&files.armed, &record).when(attempted)?;
                systemd.reload()?;
            }
            systemd.act_on_guard("restart", &timer)?;
        }
    }
    // One that had no lock may have begun to act in between: then nothing was put off.
    if files.armed.exists() { Ok(Outcome::Done) } else { Err(not_armed(&files, attempted())) }
}

/// Writes into a file that is there, and never makes one: a guard that acts meanwhile has taken it away for good.
fn write_over(path: &Utf8Path, record: &Record) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(record)?;
    let next = path.with_extension("next");
    write_atomically(&next, &text, CLOSED, None)?;
    // An exchange fails if one of the two is gone; a plain rename would arm a guard that has fired.
    let exchanged = renameat_with(CWD, next.as_str(), CWD, path.as_str(), RenameFlags::EXCHANGE);
    fs::remove_file(&next)?;
    Ok(exchanged?)
}

fn not_armed(files: &Files, attempted: String) -> Refusal {
    let seen = match read(&files.fired) {
        Some(Record { did: Some(did), .. }) => format!("it has fired: {did}"),
        Some(_) => "it has fired and is acting right now".to_owned(),
        None => "none is armed".to_owned(),
    };
    refuse(RefusalKind::Precondition, attempted, seen)
}

/// The window is good: the guard must not fire any more.
pub(crate) fn disarm(places: &Places, instance: &InstanceId) -> Reply {
    let attempted = || format!("disarm the guard of {instance}");
    let files = Files::of(places, instance);
    let _turn = Turn::take(&files.lock, PATIENCE).ok_or_else(|| busy(&files, attempted()))?;
    let record = read(&files.armed);
    match fs::remove_file(&files.armed) {
        Ok(()) => {
            sync_folder(&places.guards).when(attempted)?;
            if let Some(record) = record {
                remove_units(places, &record.guard.unit, Ending::Disarmed)?;
            }
            Ok(Outcome::Done)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => match read(&files.fired) {
            Some(_) => Err(not_armed(&files, attempted())),
            None => Ok(Outcome::Done),
        },
        Err(error) => Err(error).when(attempted),
    }
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Ending {
    Disarmed,
    Fired,
}

fn remove_units(places: &Places, unit: &UnitName, ending: Ending) -> Result<(), Refusal> {
    let Runner::Systemd(systemd) = &places.runner else {
        return Ok(()); // the sleeper finds nothing to do and ends
    };
    let names = unit_names(unit);
    if ending == Ending::Disarmed {
        systemd.act_on_guard("stop", &names[0])?;
    }
    // The link first: what is enabled must exist.
    let link = places.wanted_at_boot().join(&names[2]);
    crate::files::remove(&link)?;
    for name in &names {
        crate::files::remove(&places.units.join(name))?;
    }
    match ending {
        Ending::Disarmed => systemd.reload(),
        // In the middle of a boot systemd has better things to do; it reads them anew at the next reload.
        Ending::Fired => Ok(()),
    }
}

/// Acts for a guard file whose time is up, or that is met at boot. Run by the guard's own services.
pub(crate) fn fire(
    places: &Places,
    services: &dyn Services,
    armed: &Utf8Path,
    moment: Moment,
) -> Result<(), Refusal> {
    let lock = armed.with_extension("lock");
    let _turn = match moment {
        // Whoever has the lock arms it, and rehearses by this very call; or has come in so soon after the boot.
        Moment::AtBoot => match Turn::take(&lock, Duration::ZERO) {
            Some(turn) => Some(turn),
            None => return Ok(()),
        },
        Moment::TimeIsUp => {
            let turn = Turn::take(&lock, FIRE_PATIENCE);
            if is_put_off(places, armed) {
                return Ok(());
            }
            turn
        }
    };
    act(places, services, armed, moment)
}

/// Whether somebody has started its timer anew since that let this process begin.
fn is_put_off(places: &Places, armed: &Utf8Path) -> bool {
    let (Runner::Systemd(systemd), Some(record)) = (&places.runner, read(armed)) else {
        return false;
    };
    let [timer, ..] = unit_names(&record.guard.unit);
    systemd.waits(&timer)
}

fn act(
    places: &Places,
    services: &dyn Services,
    armed: &Utf8Path,
    moment: Moment,
) -> Result<(), Refusal> {
    let attempted = || format!("fire the guard {armed}");
    let fired = armed.with_extension("fired");
    match fs::rename(armed, &fired) {
        Ok(()) => sync_folder(&places.guards).when(attempted)?,
        // Disarmed; or cut off in an earlier try, then the record says that it did not end.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).when(attempted),
    }
    let Some(mut record) = read(&fired).filter(|record| record.did.is_none()) else {
        return Ok(());
    };
    let did = undo_window(services, &record, moment);
    record.did = Some(did);
    write(&fired, &record).when(attempted)?;
    remove_units(places, &record.guard.unit, Ending::Fired)
}

/// Returns what was done, in words.
fn undo_window(services: &dyn Services, record: &Record, moment: Moment) -> String {
    let guard = &record.guard;
    let boots = moment == Moment::AtBoot;
    let down = services.look_at(&guard.unit).is_ok_and(|unit| unit.is_down());
    let hashes = Hashes::default();
    let mut last = String::new();
    for attempt in 0..TRIES {
        if attempt > 0 {
            thread::sleep(PAUSE);
        }
        let order = undo(guard, !(boots && down), STOP_LIMIT);
        match switch(services, &hashes, &order) {
            Ok(Outcome::Switched(done)) => {
                if !order.restart {
                    // Ordered before the unit: its start must not be waited for.
                    services.start_later(&guard.unit).ok();
                }
                let when = match moment {
                    Moment::AtBoot => "when systemd started again",
                    Moment::TimeIsUp => "nobody confirmed in time",
                };
                return if done.already {
                    format!("{when}: {} had build {} already", guard.instance, guard.from)
                } else {
                    format!("{when}: {} went back to build {}", guard.instance, guard.from)
                };
            }
            Ok(_) => last = "an answer that makes no sense".to_owned(),
            Err(refusal) => {
                last = refusal.to_string();
                if refusal.kind == RefusalKind::Precondition {
                    break; // trees do not change by waiting
                }
            }
        }
    }
    // Whatever lies there: a unit that runs beats one that does not.
    let running = services.look_at(&guard.unit).is_ok_and(|unit| unit.active == UnitActive::Active);
    if !running {
        let started = if boots && down {
            services.start_later(&guard.unit)
        } else {
            services.act(&guard.unit, UnitAction::Start, STOP_LIMIT)
        };
        if let Err(refusal) = started {
            return format!("could not go back: {last}; and the unit does not start: {refusal}");
        }
    }
    format!("could not go back: {last}")
}

/// Without systemd: waits until the time is up, then acts unless the guard was disarmed or armed anew meanwhile.
pub(crate) fn sleep_and_fire(
    places: &Places,
    services: &dyn Services,
    armed: &Utf8Path,
) -> Result<(), Refusal> {
    let Some(mut mine) = read(armed) else { return Ok(()) };
    let mut since = Instant::now();
    let mut late_ms = late(&mine);
    loop {
        let span = Duration::from_secs(mine.guard.after_s.into());
        // By the monotonic clock from when it was seen first: never longer than ordered, even if the clock was set back.
        let left = span.saturating_sub(since.elapsed()).saturating_sub(late_ms);
        if left.is_zero() {
            let _turn = Turn::take(&armed.with_extension("lock"), FIRE_PATIENCE);
            // Armed anew or put off while it waited for its turn: that is seen below.
            if read(armed).is_none_or(|now| now == mine) {
                return act(places, services, armed, Moment::TimeIsUp);
            }
        }
        thread::sleep(left.min(GLANCE));
        match read(armed) {
            Some(now) if now.armed_ms != mine.armed_ms => return Ok(()), // armed anew, with a process of its own
            Some(now) if now.renewed_ms != mine.renewed_ms || now.guard != mine.guard => {
                since = Instant::now();
                late_ms = late(&now);
                mine = now;
            }
            Some(_) => {}
            None => return Ok(()), // disarmed
        }
    }
}

/// How long ago a guard was armed or put off, by the wall clock.
fn late(record: &Record) -> Duration {
    let since = record.renewed_ms.unwrap_or(record.armed_ms);
    Duration::from_millis(u64::try_from(clock_ms().saturating_sub(since)).unwrap_or(0))
}

/// Guards of the given instances, and what TiUP left of its patches. With `hashes`, trees are told by their executable.
pub(crate) fn leftovers(
    places: &Places,
    instances: &[ProbeInstance],
    hashes: Option<&Hashes>,
) -> Vec<Leftover> {
    let mut found = Vec::new();
    for ProbeInstance { id, live, binary, .. } in instances {
        let mut add = |kind, path: Utf8PathBuf, build| {
            found.push(Leftover { instance: id.clone(), kind, path, build });
        };
        let files = Files::of(places, id);
        for (path, kind) in
            [(files.armed, LeftoverKind::ArmedGuard), (files.fired, LeftoverKind::FiredGuard)]
        {
            if path.exists() {
                add(kind, path, None);
            }
        }
        let staged = Utf8PathBuf::from(format!("{live}.dmup"));
        let ours = [staged.clone(), trees::kept(&staged)];
        let ours = ours.into_iter().filter(|tree| tree.is_dir());
        let saved = live.parent().map(|folder| entries(folder, |it| it.starts_with("bin.old.")));
        let saved = saved.unwrap_or_default();
        for (tree, kind) in (saved.into_iter().map(|it| (it, LeftoverKind::TiupBackup)))
            .chain(ours.map(|it| (it, LeftoverKind::Tree)))
        {
            // One that cannot be read is no reason to say nothing of the rest.
            let build = hashes.and_then(|hashes| {
                let below = binary.strip_prefix(live).ok()?;
                hashes.of_existing(&tree.join(below)).ok()??.0.into()
            });
            add(kind, tree, build);
        }
        // TiUP sends a package here, unpacks it, and takes it away (pkg/cluster/task/install_package.go).
        let is_package = |name: &str| name.ends_with(".tar.gz") || name.ends_with(".tgz");
        for package in entries(live, is_package).into_iter().filter(|path| path.is_file()) {
            add(LeftoverKind::TiupUpload, package, None);
        }
    }
    found
}

/// What of a folder has such a name, sorted; nothing of one that cannot be read.
fn entries(folder: &Utf8Path, fits: impl Fn(&str) -> bool) -> Vec<Utf8PathBuf> {
    let mut paths: Vec<Utf8PathBuf> = folder
        .read_dir_utf8()
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter(|entry| fits(entry.file_name()))
        .map(camino::Utf8DirEntry::into_path)
        .collect();
    paths.sort();
    paths
}

fn read(path: &Utf8Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn write(path: &Utf8Path, record: &Record) -> io::Result<()> {
    write_atomically(path, &serde_json::to_vec_pretty(record)?, CLOSED, None)
}

#[cfg(test)]
mod tests {
    use dmup_core::systemd::SystemdMode;
    use dmup_wire::message::{PutFile, Switch};

    use super::*;
    use crate::accounts::Account;
    use crate::switch::tests::{Fake, live, trees, with_file};

    fn places(dir: &Utf8Path) -> Places {
        Places::supervised(SystemdMode::System, &dir.join("playground"))
    }

    fn guard(order: &Switch) -> Guard {
        Guard {
            instance: order.instance.clone(),
            unit: order.unit.clone(),
            live: order.live.clone(),
            staged: order.staged.clone(),
            binary: order.binary.clone(),
            from: order.from.clone(),
            to: order.to.clone(),
            texts: Vec::new(),
            after_s: 3600,
        }
    }

    /// As armed, without the process that sleeps.
    fn armed(places: &Places, guard: &Guard) -> Utf8PathBuf {
        fs::create_dir_all(&places.guards).unwrap();
        let files = Files::of(places, &guard.instance);
        let record = Record { guard: guard.clone(), armed_ms: 1, renewed_ms: None, did: None };
        write(&files.armed, &record).unwrap();
        files.armed
    }

    fn kinds(places: &Places, order: &Switch) -> Vec<LeftoverKind> {
        let instance = ProbeInstance {
            id: order.instance.clone(),
            unit: order.unit.clone(),
            binary: order.live.join(&order.binary),
            live: order.live.clone(),
        };
        leftovers(places, &[instance], None).into_iter().map(|leftover| leftover.kind).collect()
    }

    #[test]
    fn an_unconfirmed_window_is_undone_and_the_guard_says_so() {
        let (_keep, order) = trees();
        let places = places(order.live.parent().unwrap());
        let services = Fake::default();
        switch(&services, &Hashes::default(), &order).unwrap();
        let armed = armed(&places, &guard(&order));
        assert_eq!(kinds(&places, &order), [LeftoverKind::ArmedGuard]);
        for _ in 0..2 {
            fire(&places, &services, &armed, Moment::TimeIsUp).unwrap();
            assert_eq!(live(&order), "old");
        }
        assert_eq!(kinds(&places, &order), [LeftoverKind::FiredGuard]);
        assert_eq!(services.orders().iter().filter(|order| *order == "stop").count(), 2);
        let refusal = disarm(&places, &order.instance).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::Precondition);
        assert!(refusal.observed.contains("went back to build"), "{refusal}");
    }

    #[test]
    fn a_disarmed_guard_never_fires_and_disarming_twice_is_fine() {
        let (_keep, order) = trees();
        let places = places(order.live.parent().unwrap());
        let services = Fake::default();
        switch(&services, &Hashes::default(), &order).unwrap();
        let armed = armed(&places, &guard(&order));
        for _ in 0..2 {
            assert_eq!(disarm(&places, &order.instance), Ok(Outcome::Done));
        }
        fire(&places, &services, &armed, Moment::TimeIsUp).unwrap();
        assert_eq!(live(&order), "new");
        assert!(kinds(&places, &order).is_empty());
    }

    #[test]
    fn after_a_reboot_the_trees_are_exchanged_before_the_unit_starts() {
        let (_keep, order) = trees();
        let places = places(order.live.parent().unwrap());
        crate::switch::exchange(&order.live, &order.staged).unwrap();
        let armed = armed(&places, &guard(&order));
        let services = Fake::default();
        fire(&places, &services, &armed, Moment::AtBoot).unwrap();
        assert_eq!(
            (live(&order).as_str(), services.orders()),
            ("old", vec!["start later".to_owned()])
        );
    }

    #[test]
    fn a_guard_that_was_cut_off_while_it_acted_acts_again() {
        let (_keep, order) = trees();
        let places = places(order.live.parent().unwrap());
        crate::switch::exchange(&order.live, &order.staged).unwrap();
        let armed = armed(&places, &guard(&order));
        fs::rename(&armed, armed.with_extension("fired")).unwrap();
        fire(&places, &Fake::default(), &armed, Moment::AtBoot).unwrap();
        assert_eq!(live(&order), "old");
    }

    #[test]
    fn trees_that_the_guard_does_not_know_are_left_but_the_unit_is_started() {
        let (_keep, order) = trees();
        let places = places(order.live.parent().unwrap());
        fs::write(order.live.join(&order.binary), "something else").unwrap();
        let armed = armed(&places, &guard(&order));
        let services = Fake::default();
        fire(&places, &services, &armed, Moment::TimeIsUp).unwrap();
        assert_eq!(services.orders(), ["start"]);
        let fired = read(&armed.with_extension("fired")).unwrap();
        assert!(fired.did.unwrap().starts_with("could not go back"));
    }

    #[test]
    fn a_guard_that_was_armed_anew_does_not_fire_at_the_old_time() {
        let (_keep, order) = trees();
        let places = places(order.live.parent().unwrap());
        let mut guard = guard(&order);
        guard.after_s = 0;
        switch(&Fake::default(), &Hashes::default(), &order).unwrap();
        let armed = armed(&places, &guard);
        sleep_and_fire(&places, &Fake::default(), &armed).unwrap();
        assert_eq!(live(&order), "old");
    }

    #[test]
    fn only_one_at_a_time_arms_puts_off_disarms_or_acts() {
        let (_keep, order) = trees();
        let places = places(order.live.parent().unwrap());
        let services = Fake::default();
        switch(&services, &Hashes::default(), &order).unwrap();
        let armed = armed(&places, &guard(&order));
        let files = Files::of(&places, &order.instance);
        let turn = Turn::take(&files.lock, Duration::ZERO).unwrap();
        assert!(Turn::take(&files.lock, Duration::ZERO).is_none());

        // A rehearsal, while somebody arms: it does nothing, though there is a record.
        fire(&places, &services, &armed, Moment::AtBoot).unwrap();
        assert_eq!(live(&order), "new");
        for refused in [disarm(&places, &order.instance), renew(&places, &order.instance, 30)] {
            let refusal = refused.unwrap_err();
            assert_eq!(refusal.kind, RefusalKind::TooSlow, "{refusal}");
        }
        // While it acts, it has decided.
        fs::rename(&armed, &files.fired).unwrap();
        let refusal = disarm(&places, &order.instance).unwrap_err();
        assert!(refusal.observed.contains("acting right now"), "{refusal}");
        fs::rename(&files.fired, &armed).unwrap();

        drop(turn);
        assert_eq!(disarm(&places, &order.instance), Ok(Outcome::Done));
    }

    #[test]
    fn a_guard_that_was_put_off_acts_later_and_one_that_has_fired_cannot_be_put_off() {
        let (_keep, order) = trees();
        let places = places(order.live.parent().unwrap());
        let none = renew(&places, &order.instance, 30).unwrap_err();
        assert!(none.observed.contains("none is armed"), "{none}");
        switch(&Fake::default(), &Hashes::default(), &order).unwrap();
        let armed = armed(&places, &guard(&order));
        assert_eq!(renew(&places, &order.instance, 20), Ok(Outcome::Done));
        let record = read(&armed).unwrap();
        assert_eq!((record.guard.after_s, record.armed_ms), (20, 1));
        assert!(record.renewed_ms.is_some_and(|at| at > 1));
        assert!(!armed.with_extension("next").exists());
        // Armed in 1970 for an hour, put off by 0 s just now: due.
        assert_eq!(renew(&places, &order.instance, 0), Ok(Outcome::Done));
        sleep_and_fire(&places, &Fake::default(), &armed).unwrap();
        assert_eq!(live(&order), "old");
        let fired = renew(&places, &order.instance, 30).unwrap_err();
        assert!(fired.observed.contains("went back to build"), "{fired}");
        assert!(!armed.exists());
    }

    #[test]
    fn a_guard_writes_the_files_from_before_with_the_build_from_before() {
        for moment in [Moment::TimeIsUp, Moment::AtBoot] {
            let (keep, order) = trees();
            let dir = Utf8Path::from_path(keep.path()).unwrap();
            let order = with_file(&order);
            switch(&Fake::default(), &Hashes::default(), &order).unwrap();
            let path = &order.texts[0].path;
            assert_eq!(
                (live(&order), fs::read_to_string(path).unwrap()),
                ("new".into(), "new".into())
            );
            let old = PutFile { content: "old".to_owned(), ..order.texts[0].clone() };
            let guard = Guard { texts: vec![old], ..guard(&order) };
            let places = places(dir);
            let armed = armed(&places, &guard);
            let mode = fs::metadata(&armed).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "there may be a password in the files");
            fire(&places, &Fake::default(), &armed, moment).unwrap();
            assert_eq!(
                (live(&order), fs::read_to_string(path).unwrap()),
                ("old".into(), "old".into())
            );
        }
    }

    #[test]
    fn names_of_instances_are_safe_in_paths_and_unit_files() {
        let name = |id: &str| file_name(&InstanceId::new(id).unwrap());
        assert_eq!(name("172.16.100.21:8262"), "172.16.100.21_3A8262");
        assert_eq!(name("[fe80::1%eth0]:8262"), "_5Bfe80_3A_3A1_25eth0_5D_3A8262");
    }

    #[test]
    fn what_happens_at_boot_is_ordered_before_the_unit_and_the_timer_runs_the_other_service() {
        let (_keep, order) = trees();
        for (mode, target, words) in [
            (SystemdMode::System, "multi-user.target", ""),
            (SystemdMode::User, "default.target", " --systemd-mode user"),
        ] {
            let me = Account { name: "tidb".into(), uid: 1000, gid: 1000, home: "/h".into() };
            let places = Places::of_systemd(mode, &me);
            let record = places.guards.join("h.json");
            let [timer, service, boot] =
                unit_texts(&places, &guard(&order), &places.agents.join("agent-1"), &record);
            assert!(
                timer.contains("StartLimitIntervalSec=0\n\n[Timer]\nOnActiveSec=3600s"),
                "{timer}"
            );
            assert!(timer.contains("Unit=dmup-guard-dm-worker-1.service"), "{timer}");
            assert!(boot.contains("Before=dm-worker-1.service"), "{boot}");
            assert!(boot.contains(&format!("WantedBy={target}")), "{boot}");
            let at_boot = format!("agent{words} --at-boot --fire-guard {record}\n");
            assert!(boot.contains(&at_boot), "{boot}");
            let later = format!("agent{words} --fire-guard {record}\n");
            assert!(!service.contains("Before=") && service.contains(&later), "{service}");
        }
    }
}
