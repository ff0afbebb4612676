//! Which verb is done by whom: by the deploy user, or by the privileged part.
//!
//! | verb | who |
//! |---|---|
//! | stage, prepare | the agent's user (prepare again by root if permission is denied) |
//! | check | the agent's user, always: what it starts is the service's own program |
//! | unit, switch, guards, users and their keys | root |
//! | shell | the agent's user; root where asked for |
//! | lease, leave | the agent's user, always |
//! | put, make, remove, get, probe, journal | the agent's user; root where asked for, for other owners, and where permission is denied |
//!
//! On a playground ([`crate::services::supervised`]), and if the agent is root anyway, it does everything itself. So does one
//! for clusters that their user's systemd runs ([`SystemdMode::User`]): nothing of theirs is root's, and only a shell that is to
//! be root's is.

use std::io::{Read, empty};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::ids::{InstanceId, UserName};
use dmup_core::systemd::SystemdMode;
use dmup_wire::message::{
    Guard, MakeDir, Outcome, PutFile, Refusal, RefusalKind, Request, Switch, UnitAction, UnitDone,
    UnitOrder, Unpack,
};

use crate::accounts::{Account, ensure_user, forget_key, owner_named};
use crate::config_check::check_config;
use crate::fence::Session;
use crate::files::{self, check_absolute};
use crate::hash::Hashes;
use crate::host::{Places, Runner, clock_ms};
use crate::lease::Leases;
use crate::prepare::prepare;
use crate::privileged::Privileged;
use crate::probe::probe;
use crate::refuse::{Reply, bad, refuse};
use crate::services::supervised::Supervised;
use crate::services::{Services, verb};
use crate::shell::shell;
use crate::switch::switch;
use crate::{Mode, guard, stage};

/// Longest line of a journal that is sent.
const LINE_BYTES: usize = 2048;

/// All lines of a journal together: they must fit into one frame, escaped.
const JOURNAL_BYTES: usize = 400 * 1024;

/// What the verbs of one conversation work with.
pub(crate) struct Agent {
    pub(crate) me: Account,
    pub(crate) places: Places,
    pub(crate) services: Box<dyn Services>,
    pub(crate) hashes: Hashes,
    session: Session,
    leases: Leases,
    /// None: this process is root, or takes its place on a playground.
    pub(crate) sudo: Option<Privileged>,
}

impl Agent {
    pub(crate) fn new(mode: &Mode) -> Self {
        let me = Account::own();
        let alone = mode.privileged || mode.supervised.is_some() || me.uid == 0;
        let places = match &mode.supervised {
            Some(dir) => {
                // Where unit files go; who cannot make it learns so at the first put.
                fs_err::create_dir_all(Supervised::units(dir)).ok();
                Places::supervised(mode.systemd, dir)
            }
            None => Places::of_systemd(mode.systemd, &me),
        };
        let services: Box<dyn Services> = match &places.runner {
            Runner::Systemd(systemd) => Box::new(systemd.clone()),
            Runner::Supervised(dir) => Box::new(Supervised::new(dir)),
        };
        let session = mode.since_ms.map_or_else(Session::now, Session::since);
        let sudo = (!alone).then(|| Privileged::by_sudo(session.since_ms()));
        let leases = Leases::at(places.leases.clone());
        Self { me, places, services, hashes: Hashes::default(), session, leases, sudo }
    }

    /// Whoever does what the agent's user may not; none if that is nobody else. A user's systemd takes orders from that
    /// user alone, and all files of such a cluster are that user's.
    fn root(&self) -> Option<&Privileged> {
        match self.places.mode {
            SystemdMode::System => self.sudo.as_ref(),
            SystemdMode::User => None,
        }
    }

    /// Does what is asked. `stream` is read only by requests that take one.
    pub(crate) fn answer(&self, request: Request, stream: &mut dyn Read) -> Reply {
        check(&request)?;
        // Held until the answer: whoever takes the lease over waits for what is under way.
        let _admitted = self.leases.admit(&request)?;
        match &request {
            Request::Probe(order) => self.or_root(&request, || probe(self, order)),
            Request::CheckRights => self.by_root(&request, || self.check_rights()),
            Request::Stage(order) => stage::stage(order, stream),
            Request::Unpack(order) => self.unpack(order, &request, stream),
            Request::Prepare(order) => self.or_root(&request, || prepare(order)),
            Request::Check(order) => check_config(order),
            Request::Switch(order) => {
                let order = &Switch { texts: self.with_owners(&order.texts), ..order.clone() };
                let request = Request::Switch(order.clone());
                self.by_root(&request, || {
                    self.in_turn(&order.instance)?;
                    // None armed, or one that has acted: fine, too.
                    let put_off = |by_s: u32| {
                        guard::renew(&self.places, &order.instance, by_s).ok();
                    };
                    let stop_s = u32::try_from(order.stop_within_ms / 1000).unwrap_or(u32::MAX);
                    if let Some(guard_s) = order.guard_s {
                        put_off(guard_s.saturating_add(stop_s));
                    }
                    let here = Switch { texts: self.here(&order.texts), ..order.clone() };
                    let done = switch(&*self.services, &self.hashes, &here);
                    // Also after a window that failed half-way.
                    order.guard_s.map(put_off);
                    done
                })
            }
            Request::Unit(order) => self.by_root(&request, || Ok(self.act_on(order))),
            Request::Put { files } => self.each(files, |file| self.put(file)),
            Request::Get { path, max_bytes } => {
                self.or_root(&request, || files::get(&self.places.real(path), *max_bytes))
            }
            Request::MakeDirs { dirs } => self.each(dirs, |dir| self.make_dir(dir)),
            Request::Remove { paths } => self.each(paths, |path| {
                let request = Request::Remove { paths: vec![path.clone()] };
                let path = self.places.real(path);
                let removed =
                    self.or_root(&request, || files::remove(&path).map(|()| Outcome::Done));
                match removed {
                    // Made by root for the deploy user, it is theirs to take away.
                    Err(refusal)
                        if refusal.kind == RefusalKind::Permission
                            && self.places.mode == SystemdMode::User
                            && files::is_empty_folder(&path) =>
                    {
                        Ok(Outcome::Done)
                    }
                    other => other,
                }
            }),
            Request::EnsureUser(order) => self.by_root(&request, || ensure_user(order)),
            Request::ForgetKey(order) => self.by_root(&request, || forget_key(order)),
            Request::Leave(order) => self.leases.leave(&order.cluster, &order.folder),
            Request::Shell(order) => match self.sudo.as_ref().filter(|_| order.root) {
                Some(root) => root.ask(&request, &mut empty()),
                None => shell(order, &self.me),
            },
            Request::JournalTail { unit, lines } => {
                let here = || {
                    let seen = self.services.look_at(unit)?;
                    // Without a journal that we may read, how it ended is still worth something.
                    let lines = self.services.journal(unit, *lines).unwrap_or_default();
                    Ok(Outcome::Journal { lines: fit(lines), ended: seen.ended })
                };
                // An ordinary user sees an empty journal and no error; without sudo that must do.
                match self.by_root(&request, here) {
                    Err(refusal) if refusal.kind == RefusalKind::Permission => here(),
                    other => other,
                }
            }
            Request::ArmGuard(order) => {
                let order = &Guard { texts: self.with_owners(&order.texts), ..order.clone() };
                let request = Request::ArmGuard(order.clone());
                self.by_root(&request, || {
                    self.in_turn(&order.instance)?;
                    let here = Guard { texts: self.here(&order.texts), ..order.clone() };
                    guard::arm(&self.places, &here)
                })
            }
            Request::RenewGuard { instance, after_s } => self.by_root(&request, || {
                self.in_turn(instance)?;
                guard::renew(&self.places, instance, *after_s)
            }),
            Request::DisarmGuard { instance } => self.by_root(&request, || {
                self.in_turn(instance)?;
                guard::disarm(&self.places, instance)
            }),
            Request::Lease(order) => self.leases.answer(order, clock_ms()),
        }
    }

    fn check_rights(&self) -> Reply {
        match &self.places.runner {
            Runner::Systemd(systemd) => systemd.check_lasting()?,
            Runner::Supervised(_) => {}
        }
        Ok(Outcome::Done)
    }

    /// What is started must not end with the login that we came by.
    fn check_that_it_lasts(&self, action: UnitAction) -> Result<(), Refusal> {
        match action {
            UnitAction::Start | UnitAction::Restart | UnitAction::Enable => {
                self.check_rights().map(drop)
            }
            UnitAction::Stop | UnitAction::Disable => Ok(()),
        }
    }

    /// Refuses an order for an instance's window or guard that has come late.
    fn in_turn(&self, instance: &InstanceId) -> Result<(), Refusal> {
        self.session.pass(&self.places.guards, instance)
    }

    /// Whether a request takes a stream.
    pub(crate) fn takes_stream(request: &Request) -> bool {
        match request {
            Request::Stage(_) | Request::Unpack(_) => true,
            Request::Probe(_)
            | Request::CheckRights
            | Request::Prepare(_)
            | Request::Check(_)
            | Request::Switch(_)
            | Request::Unit(_)
            | Request::Put { .. }
            | Request::Get { .. }
            | Request::MakeDirs { .. }
            | Request::Remove { .. }
            | Request::EnsureUser(_)
            | Request::ForgetKey(_)
            | Request::Leave(_)
            | Request::Shell(_)
            | Request::JournalTail { .. }
            | Request::ArmGuard(_)
            | Request::RenewGuard { .. }
            | Request::DisarmGuard { .. }
            | Request::Lease(_) => false,
        }
    }

    /// Lets the privileged part do it, if there is one.
    fn by_root(&self, request: &Request, here: impl FnOnce() -> Reply) -> Reply {
        match self.root() {
            Some(root) => root.ask(request, &mut empty()),
            None => here(),
        }
    }

    /// Tries it as the agent's user, and again by the privileged part if permission is denied.
    fn or_root(&self, request: &Request, here: impl FnOnce() -> Reply) -> Reply {
        match (here(), self.root()) {
            (Err(refusal), Some(root)) if refusal.kind == RefusalKind::Permission => {
                root.ask(request, &mut empty())
            }
            (reply, _) => reply,
        }
    }

    fn each<T>(&self, items: &[T], act: impl Fn(&T) -> Reply) -> Reply {
        for (number, item) in items.iter().enumerate() {
            act(item).map_err(|mut refusal| {
                let state =
                    refusal.state.take().map(|state| format!("; {state}")).unwrap_or_default();
                refusal.state = (number > 0 || !state.is_empty())
                    .then(|| format!("{number} of {} are done{state}", items.len()));
                refusal
            })?;
        }
        Ok(Outcome::Done)
    }

    /// Whether files for this owner need root.
    fn is_foreign(&self, owner: Option<&UserName>) -> bool {
        owner.is_some_and(|owner| owner.as_str() != self.me.name)
    }

    fn own_name(&self) -> Option<UserName> {
        UserName::new(self.me.name.clone()).ok()
    }

    fn put(&self, file: &PutFile) -> Reply {
        let path = self.places.real(&file.path);
        if self.root().is_some() && (file.root || self.is_foreign(file.owner.as_ref())) {
            return self.by_root(&Request::Put { files: vec![file.clone()] }, || Ok(Outcome::Done));
        }
        let owner = file.owner.clone().or_else(|| if file.root { None } else { self.own_name() });
        let request = Request::Put { files: vec![PutFile { owner, ..file.clone() }] };
        self.or_root(&request, || {
            files::put(&PutFile { path, ..file.clone() }).map(|()| Outcome::Done)
        })
    }

    /// Root carries a window or a guard out: what is to be ours must say so.
    fn with_owners(&self, texts: &[PutFile]) -> Vec<PutFile> {
        let mut texts = texts.to_vec();
        for text in texts.iter_mut().filter(|text| !text.root && text.owner.is_none()) {
            text.owner = self.own_name();
        }
        texts
    }

    /// Where they really lie.
    fn here(&self, texts: &[PutFile]) -> Vec<PutFile> {
        let real = |text: &PutFile| PutFile { path: self.places.real(&text.path), ..text.clone() };
        texts.iter().map(real).collect()
    }

    fn make_dir(&self, dir: &MakeDir) -> Reply {
        let owner = dir.owner.clone().or_else(|| self.own_name());
        let request = Request::MakeDirs { dirs: vec![MakeDir { owner, ..dir.clone() }] };
        if self.root().is_some() && self.is_foreign(dir.owner.as_ref()) {
            return self.by_root(&request, || Ok(Outcome::Done));
        }
        self.or_root(&request, || {
            files::make_dir(&MakeDir { path: self.places.real(&dir.path), ..dir.clone() })
                .map(|()| Outcome::Done)
        })
    }

    fn unpack(&self, order: &Unpack, request: &Request, stream: &mut dyn Read) -> Reply {
        match self.root() {
            Some(root) if self.is_foreign(order.owner.as_ref()) => root.ask(request, stream),
            _ => {
                let owner = order
                    .owner
                    .as_ref()
                    .filter(|_| self.is_foreign(order.owner.as_ref()))
                    .map(owner_named)
                    .transpose()?;
                stage::unpack_into(order, owner, stream)
            }
        }
    }

    fn act_on(&self, order: &UnitOrder) -> Outcome {
        let units = order
            .units
            .iter()
            .map(|unit| {
                let began = Instant::now();
                let within = Duration::from_millis(order.within_ms);
                let acted = self
                    .check_that_it_lasts(order.action)
                    .and_then(|()| self.services.act(unit, order.action, within));
                UnitDone {
                    unit: unit.clone(),
                    failed: acted.err().map(|refusal| {
                        let now = self
                            .services
                            .look_at(unit)
                            .map(|seen| format!("; it is {}", seen.words()));
                        format!(
                            "{} {unit}: {}{}",
                            verb(order.action),
                            refusal.observed,
                            now.unwrap_or_default()
                        )
                    }),
                    took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
                }
            })
            .collect();
        Outcome::Units { units }
    }
}

/// Cuts lines, and drops the oldest if all together would not fit.
fn fit(lines: Vec<String>) -> Vec<String> {
    let mut left = JOURNAL_BYTES;
    let mut kept: Vec<String> = lines
        .into_iter()
        .rev()
        .map(|line| {
            let end = (0..=line.len().min(LINE_BYTES)).rev().find(|at| line.is_char_boundary(*at));
            line[..end.unwrap_or(0)].to_owned()
        })
        .take_while(|line| {
            let fits = line.len() < left;
            left = left.saturating_sub(line.len() + 8);
            fits
        })
        .collect();
    kept.reverse();
    kept
}

fn check_files(files: &[PutFile], most: usize) -> Result<(), Refusal> {
    at_most("files", files.len(), most)?;
    files.iter().try_for_each(|file| {
        check_absolute(&file.path)?;
        check_mode(&file.path, file.mode)?;
        at_most(
            "bytes of a file",
            file.content.len(),
            usize::try_from(files::SMALL).unwrap_or(usize::MAX),
        )
    })
}

/// The limits of the wire, and paths that no verb may take.
fn check(request: &Request) -> Result<(), Refusal> {
    match request {
        Request::Probe(order) => {
            at_most("instances", order.instances.len(), 256)?;
            at_most("disks", order.disks.len(), 256)?;
            at_most("ports", order.ports.len(), 256)?;
            at_most("paths", order.paths.len(), 256)?;
            at_most("users", order.users.len(), 16)?;
            order.disks.iter().chain(&order.paths).try_for_each(|path| check_absolute(path))?;
            order.instances.iter().try_for_each(|instance| {
                check_absolute(&instance.binary)?;
                check_absolute(&instance.live)
            })
        }
        Request::Stage(order) => check_absolute(&order.store),
        Request::Unpack(order) => {
            check_absolute(&order.into).and_then(|()| deep_enough(&order.into))
        }
        Request::Prepare(order) => {
            at_most("replaced files", order.replace.len(), 4096)?;
            at_most("version arguments", order.version_arguments.as_ref().map_or(0, Vec::len), 16)
        }
        Request::Check(order) => {
            check_files(&order.files, 256)?;
            at_most("arguments", order.arguments.len(), 16)
        }
        Request::Switch(order) => {
            order.guard_s.map_or(Ok(()), check_guard_time)?;
            check_files(&order.texts, 64)?;
            within_a_day("the stop", order.stop_within_ms)
        }
        Request::Unit(order) => {
            at_most("units", order.units.len(), 64)?;
            within_a_day("the order", order.within_ms)
        }
        Request::Put { files } => check_files(files, 256),
        Request::Get { path, max_bytes } => {
            check_absolute(path)?;
            at_most(
                "bytes of a file",
                *max_bytes as usize,
                usize::try_from(files::SMALL).unwrap_or(usize::MAX),
            )
        }
        Request::MakeDirs { dirs } => {
            at_most("folders", dirs.len(), 256)?;
            dirs.iter().try_for_each(|dir| {
                check_absolute(&dir.path)?;
                check_mode(&dir.path, dir.mode)
            })
        }
        Request::Remove { paths } => {
            at_most("paths", paths.len(), 256)?;
            paths.iter().try_for_each(|path| {
                check_absolute(path)?;
                deep_enough(path)
            })
        }
        Request::Leave(order) => {
            check_absolute(&order.folder).and_then(|()| deep_enough(&order.folder))
        }
        Request::JournalTail { lines, .. } => at_most("lines", *lines as usize, 1000),
        Request::ArmGuard(Guard { after_s, texts, .. }) => {
            check_files(texts, 64)?;
            check_guard_time(*after_s)
        }
        Request::RenewGuard { after_s, .. } => check_guard_time(*after_s),
        Request::Shell(order) => within_a_day("the command", order.within_ms),
        Request::CheckRights
        | Request::EnsureUser(_)
        | Request::ForgetKey(_)
        | Request::DisarmGuard { .. }
        | Request::Lease(_) => Ok(()),
    }
}

fn at_most(what: &str, given: usize, most: usize) -> Result<(), Refusal> {
    if given <= most {
        return Ok(());
    }
    Err(bad("take the request", format!("{given} {what}, at most {most} are allowed")))
}

fn check_guard_time(after_s: u32) -> Result<(), Refusal> {
    if (1..=86_400).contains(&after_s) {
        return Ok(());
    }
    Err(bad("arm a guard", format!("it may act after 1 to 86400 s, not {after_s}")))
}

fn within_a_day(what: &str, ms: u64) -> Result<(), Refusal> {
    if ms <= 86_400_000 {
        return Ok(());
    }
    Err(bad("take the request", format!("{what} may take at most a day, not {ms} ms")))
}

fn check_mode(path: &Utf8Path, mode: u32) -> Result<(), Refusal> {
    if mode & !0o777 == 0 {
        return Ok(());
    }
    Err(bad(format!("take mode {mode:o} of {path}"), "only permission bits are allowed"))
}

fn deep_enough(path: &Utf8PathBuf) -> Result<(), Refusal> {
    // The root counts as one.
    if path.components().count() > 2 {
        return Ok(());
    }
    Err(refuse(RefusalKind::BadRequest, format!("touch {path}"), "it is less than two levels deep"))
}

#[cfg(test)]
pub(crate) mod tests {
    use dmup_core::ids::{InstanceId, UnitName};
    use dmup_wire::message::{PathKind, Probe, ProbeInstance, Shell, Switch};

    use super::*;
    use crate::switch::tests::{Fake, trees};

    /// An agent with a fake unit, on a playground of its own.
    pub(crate) fn agent(dir: &Utf8Path) -> Agent {
        Agent {
            me: Account::own(),
            places: Places::supervised(SystemdMode::System, &dir.join("playground")),
            services: Box::new(Fake::default()),
            hashes: Hashes::default(),
            session: Session::now(),
            leases: Leases::at(Some(dir.join("playground/leases"))),
            sudo: None,
        }
    }

    fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
        (folder, path)
    }

    fn ask(agent: &Agent, request: Request) -> Reply {
        agent.answer(request, &mut empty())
    }

    #[test]
    fn requests_beyond_the_limits_are_refused_before_anything_is_done() {
        let (_keep, dir) = folder();
        let agent = agent(&dir);
        let file = PutFile {
            path: dir.join("f"),
            mode: 0o644,
            root: false,
            owner: None,
            content: String::new(),
        };
        for request in [
            Request::Put { files: vec![file.clone(); 257] },
            Request::Put { files: vec![PutFile { mode: 0o4755, ..file.clone() }] },
            Request::Put {
                files: vec![PutFile { content: "x".repeat(512 * 1024 + 1), ..file.clone() }],
            },
            Request::Put { files: vec![PutFile { path: "relative".into(), ..file }] },
            Request::Remove { paths: vec!["/".into()] },
            Request::Remove { paths: vec!["/home".into()] },
            Request::Remove { paths: vec!["/home/../etc/x".into()] },
            Request::Get { path: "/etc/passwd".into(), max_bytes: 1 << 20 },
            Request::JournalTail { unit: UnitName::new("a.service").unwrap(), lines: 1001 },
            Request::Probe(Probe { ports: vec![1; 257], ..Probe::default() }),
        ] {
            assert_eq!(
                ask(&agent, request.clone()).unwrap_err().kind,
                RefusalKind::BadRequest,
                "{request:?}"
            );
        }
        assert_eq!(fs_err::read_dir(&dir).unwrap().count(), 0);
    }

    #[test]
    fn an_exchange_without_a_restart_that_comes_late_is_refused_as_any_window() {
        let (_keep, hotfix) = trees();
        let hotfix = Switch { restart: false, ..hotfix };
        let dir = hotfix.live.parent().unwrap();
        let back = Switch { from: hotfix.to.clone(), to: hotfix.from.clone(), ..hotfix.clone() };
        let live = || fs_err::read_to_string(hotfix.live.join(&hotfix.binary)).unwrap();
        let of_session = |since_ms| Agent { session: Session::since(since_ms), ..agent(dir) };
        let (older, younger) = (of_session(1000), of_session(2000));
        ask(&younger, Request::Switch(hotfix.clone())).unwrap();
        assert_eq!(live(), "new");
        ask(&younger, Request::Switch(back)).unwrap();
        // It would fit.
        let late = ask(&older, Request::Switch(hotfix.clone())).unwrap_err();
        assert!(late.observed.contains("came late"), "{late}");
        assert_eq!(live(), "old");
    }

    #[test]
    fn unit_files_of_a_playground_stay_inside_it() {
        for mode in [SystemdMode::System, SystemdMode::User] {
            let (_keep, dir) = folder();
            let places = Places::supervised(mode, &dir.join("playground"));
            let agent = Agent { places, ..agent(&dir) };
            let user = UserName::new("no-such-user").unwrap();
            let own = MakeDir { path: mode.unit_dir(&user), mode: 0o755, owner: None };
            ask(&agent, Request::MakeDirs { dirs: vec![own] }).unwrap();
            let path = mode.unit_path(&user, &UnitName::new("dm-worker-1.service").unwrap());
            let file = PutFile {
                path: path.clone(),
                mode: 0o644,
                root: mode == SystemdMode::System,
                owner: None,
                content: "x".into(),
            };
            ask(&agent, Request::Put { files: vec![file] }).unwrap();
            assert!(dir.join("playground/units/dm-worker-1.service").exists() && !path.exists());
            let got = ask(&agent, Request::Get { path: path.clone(), max_bytes: 10 }).unwrap();
            assert_eq!(got, Outcome::Got { content: Some("x".into()) });
            ask(&agent, Request::Remove { paths: vec![path] }).unwrap();
            assert!(!dir.join("playground/units/dm-worker-1.service").exists());
        }
    }

    #[test]
    fn for_the_systemd_of_a_user_nobody_is_asked_for_root_but_for_a_shell_of_root() {
        let (_keep, dir) = folder();
        let of = |mode| {
            let sudo = Some(Privileged::new(vec!["/no/such/sudo".into()]));
            let places = Places::supervised(mode, &dir.join("playground"));
            Agent { places, sudo, ..agent(&dir) }
        };
        let refused_without_sudo = |mode, request| match ask(&of(mode), request) {
            Ok(_) => false,
            Err(refusal) => {
                assert_eq!(refusal.kind, RefusalKind::Permission, "{refusal}");
                true
            }
        };
        let units = vec![UnitName::new("dm-worker-1.service").unwrap()];
        let order = UnitOrder { units, action: UnitAction::Start, within_ms: 1000 };
        let shell = Shell { command: "true".to_owned(), root: true, within_ms: 20_000 };
        for (request, by_user) in [
            (Request::CheckRights, false),
            (Request::Unit(order), false),
            (Request::Shell(shell), true),
        ] {
            assert_eq!(refused_without_sudo(SystemdMode::User, request.clone()), by_user);
            assert!(refused_without_sudo(SystemdMode::System, request));
        }
    }

    #[test]
    fn a_probe_sees_files_ports_disks_users_and_leftovers() {
        let (_keep, dir) = folder();
        let agent = agent(&dir);
        fs_err::create_dir_all(dir.join("deploy/bin.old.v1")).unwrap();
        fs_err::create_dir_all(dir.join("deploy/bin")).unwrap();
        fs_err::write(dir.join("deploy/bin.old.v1/binary"), "older").unwrap();
        fs_err::write(dir.join("deploy/bin/binary"), "old").unwrap();
        fs_err::write(dir.join("deploy/bin/fix.tar.gz"), "").unwrap();
        let bound = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = bound.local_addr().unwrap().port();
        let order = Probe {
            instances: vec![ProbeInstance {
                id: InstanceId::new("h:1").unwrap(),
                unit: UnitName::new("dm-worker-1.service").unwrap(),
                binary: dir.join("deploy/bin/binary"),
                live: dir.join("deploy/bin"),
            }],
            hashes: true,
            disks: vec![dir.join("not/there/yet"), "/proc/self".into()],
            ports: vec![port, 1],
            paths: vec![dir.join("deploy"), dir.join("no")],
            users: vec![UserName::new("root").unwrap(), UserName::new("no-such-user").unwrap()],
        };
        let Outcome::Probed(seen) = ask(&agent, Request::Probe(order)).unwrap() else { panic!() };
        assert_eq!(seen.processes[0].1.on_disk, Some(dmup_core::digest::Digest::of(b"old")));
        assert!(seen.disks[0].free_bytes > 0);
        assert_ne!(seen.disks[0].device, seen.disks[1].device);
        assert_eq!(seen.listening, [port]);
        let [folder] = &seen.existing[..] else { panic!("{:?}", seen.existing) };
        assert_eq!((&folder.path, folder.kind), (&dir.join("deploy"), PathKind::Folder));
        assert_eq!(folder.owner_name, agent.me.name);
        assert_eq!(seen.users, [UserName::new("root").unwrap()]);
        let saved = &seen.leftovers[0];
        assert_eq!(saved.path, dir.join("deploy/bin.old.v1"));
        assert_eq!(saved.build, Some(dmup_core::digest::Digest::of(b"older")));
        assert_eq!(seen.leftovers[1].path, dir.join("deploy/bin/fix.tar.gz"));
    }

    #[test]
    fn a_list_that_stops_in_the_middle_says_how_far_it_came() {
        let (_keep, dir) = folder();
        let agent = agent(&dir);
        let file = |name: &str| PutFile {
            path: dir.join(name),
            mode: 0o644,
            root: false,
            owner: None,
            content: String::new(),
        };
        let refusal = ask(&agent, Request::Put { files: vec![file("a"), file("no/b"), file("c")] })
            .unwrap_err();
        assert_eq!(refusal.state.as_deref(), Some("1 of 3 are done"));
    }

    #[test]
    fn a_journal_that_does_not_fit_keeps_its_newest_lines() {
        let lines: Vec<String> =
            (0..1000).map(|number| format!("{number} {}", "x".repeat(4000))).collect();
        let kept = fit(lines);
        assert!(kept.iter().map(String::len).sum::<usize>() <= JOURNAL_BYTES && kept.len() > 100);
        assert!(
            kept.last().unwrap().starts_with("999 ")
                && kept.iter().all(|line| line.len() <= LINE_BYTES)
        );
    }
}
