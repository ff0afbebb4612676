//! The lease of a cluster on this host: one record and one lock file per cluster in the deploy user's home.
//!
//! ```text
//!  NAME.json   token and holder; replaced as a whole, changed only under NAME.lock
//!  NAME.busy   held shared by every order under way, exclusively for a moment by whoever takes over
//! ```
//!
//! Whoever takes over writes the new token first, so that no further order of the one before is let in, and
//! then waits for those under way. When it has the lease, nothing of the one before will happen any more.

use std::fs::TryLockError;
use std::io::ErrorKind;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::ids::ClusterName;
use dmup_wire::lease::{Holder, LeaseAsk, LeaseOrder, LeaseSeen};
use dmup_wire::message::{Outcome, Refusal, RefusalKind, Request};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::files::{remove, write_atomically};
use crate::refuse::{Reply, When, bad, refuse};

/// systemd ends a stop after 90 s, so no window takes longer for long.
const PATIENCE: Duration = Duration::from_secs(100);

/// A higher token was never given out, and could not rise for ever: whatever wrote it, it was not us.
const HIGHEST: u64 = 1 << 53;

/// Between two tries of a lock.
const PAUSE: Duration = Duration::from_millis(20);

/// Where leases lie, and which one this conversation took.
pub(crate) struct Leases {
    /// None: the agent's user has no home.
    dir: Option<Utf8PathBuf>,
    taken: Mutex<Option<Taken>>,
    patience: Duration,
}

#[derive(Clone, Debug)]
struct Taken {
    cluster: ClusterName,
    run: String,
    token: u64,
}

/// What lies on the host.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Record {
    token: u64,
    holder: Option<Holder>,
    since_ms: i64,
    until_ms: i64,
    broken_by: Option<String>,
    /// Orders of the one before have ended. Not so when the agent that waited for them was killed.
    #[serde(default)]
    is_settled: bool,
}

/// An order under way: as long as it lives, nobody takes over.
#[derive(Debug)]
pub(crate) struct Admitted {
    _busy: Option<fs::File>,
}

impl Leases {
    pub(crate) fn at(dir: Option<Utf8PathBuf>) -> Self {
        Self { dir, taken: Mutex::default(), patience: PATIENCE }
    }

    /// The same, waiting so long for orders of the one before: for tests.
    pub(crate) fn patient(dir: Option<Utf8PathBuf>, patience: Duration) -> Self {
        Self { dir, taken: Mutex::default(), patience }
    }

    /// The latest token on the host; 0 if there is none.
    pub(crate) fn token(&self, cluster: &ClusterName) -> u64 {
        self.read(cluster, 0).map_or(0, |record| record.token)
    }

    /// Lets an order in, unless this conversation took a lease that somebody else has taken since.
    ///
    /// Conversations that took none are let in: looks, a deploy to a host that knows no cluster yet, our own privileged part.
    pub(crate) fn admit(&self, request: &Request) -> Result<Admitted, Refusal> {
        let free = Admitted { _busy: None };
        let waits = match request {
            Request::Probe(_)
            | Request::CheckRights
            | Request::Get { .. }
            | Request::JournalTail { .. }
            | Request::Lease(_) => return Ok(free),
            // They wait for the controller, who may be frozen: nobody should wait for them. What they bring is not live.
            Request::Stage(_) | Request::Unpack(_) => false,
            // The operator's own may take hours, and it is not about the cluster's files.
            Request::Shell(_) => false,
            Request::Prepare(_)
            | Request::Check(_)
            | Request::Switch(_)
            | Request::Unit(_)
            | Request::Put { .. }
            | Request::MakeDirs { .. }
            | Request::Remove { .. }
            | Request::EnsureUser(_)
            | Request::ForgetKey(_)
            | Request::Leave(_)
            | Request::ArmGuard(_)
            | Request::RenewGuard { .. }
            | Request::DisarmGuard { .. } => true,
        };
        let Some(taken) = self.taken() else { return Ok(free) };
        let busy = if waits { self.busy(&taken.cluster, Kind::Shared)? } else { None };
        let record = self.read(&taken.cluster, 0)?;
        if record.token > taken.token {
            return Err(superseded(&taken.cluster, taken.token, &record));
        }
        Ok(Admitted { _busy: busy })
    }

    /// Does what is asked; `now_ms` is the host's clock.
    pub(crate) fn answer(&self, order: &LeaseOrder, now_ms: i64) -> Reply {
        let cluster = &order.cluster;
        match &order.ask {
            LeaseAsk::Look => Ok(self.seen(cluster, &self.read(cluster, now_ms)?, now_ms)),
            LeaseAsk::Take { holder, ttl_s, after } => {
                check_ttl(*ttl_s)?;
                self.take(cluster, holder, *ttl_s, *after, now_ms)
            }
            LeaseAsk::Renew { ttl_s } => {
                check_ttl(*ttl_s)?;
                self.renew(cluster, *ttl_s, now_ms)
            }
            LeaseAsk::GiveBack => self.give_back(cluster, now_ms),
            LeaseAsk::Break { by } => self.break_it(cluster, by, now_ms),
        }
    }

    fn take(
        &self,
        cluster: &ClusterName,
        holder: &Holder,
        ttl_s: u32,
        after: Option<u64>,
        now_ms: i64,
    ) -> Reply {
        let _changing = self.changing(cluster)?;
        let mut record = self.read(cluster, now_ms)?;
        if let Some(had) = after
            && record.token > had
        {
            return Err(superseded(cluster, had, &record));
        }
        let is_same = record.holder.as_ref().is_some_and(|now| now.run == holder.run);
        if is_same {
            record.until_ms = until(now_ms, ttl_s);
        } else {
            let is_held = record
                .holder
                .as_ref()
                .is_some_and(|now| now.desk != holder.desk && now_ms < record.until_ms);
            if is_held {
                return Ok(self.seen(cluster, &record, now_ms));
            }
            // A record that went away (a home that was restored) must not bring an old token back.
            record = Record {
                token: record.token.max(after.unwrap_or(0)) + 1,
                holder: Some(holder.clone()),
                since_ms: now_ms,
                until_ms: until(now_ms, ttl_s),
                broken_by: None,
                is_settled: false,
            };
        }
        self.write(cluster, &record)?;
        if !record.is_settled {
            if let Err(refusal) = self.busy(cluster, Kind::Exclusive) {
                // The one before is out; the next try is a new holder, and waits again.
                record.holder = None;
                self.write(cluster, &record)?;
                return Err(refusal);
            }
            record.is_settled = true;
            self.write(cluster, &record)?;
        }
        let taken =
            Taken { cluster: cluster.clone(), run: holder.run.clone(), token: record.token };
        *self.taken.lock().unwrap_or_else(PoisonError::into_inner) = Some(taken);
        Ok(self.seen(cluster, &record, now_ms))
    }

    fn renew(&self, cluster: &ClusterName, ttl_s: u32, now_ms: i64) -> Reply {
        let taken = self.taken_of(cluster)?;
        let _changing = self.changing(cluster)?;
        let mut record = self.read(cluster, now_ms)?;
        if record.token > taken.token {
            return Err(superseded(cluster, taken.token, &record));
        }
        record.until_ms = until(now_ms, ttl_s);
        self.write(cluster, &record)?;
        Ok(self.seen(cluster, &record, now_ms))
    }

    fn give_back(&self, cluster: &ClusterName, now_ms: i64) -> Reply {
        let taken = self.taken_of(cluster)?;
        // `destroy` takes our whole folder away: there is nothing to give back then.
        if !self.dir.as_ref().is_some_and(|dir| dir.exists()) {
            return Ok(self.seen(cluster, &Record::default(), now_ms));
        }
        let _changing = self.changing(cluster)?;
        let mut record = self.read(cluster, now_ms)?;
        if record.token == taken.token && record.holder.is_some() {
            record.holder = None;
            self.write(cluster, &record)?;
        }
        Ok(self.seen(cluster, &record, now_ms))
    }

    fn break_it(&self, cluster: &ClusterName, by: &str, now_ms: i64) -> Reply {
        let _changing = self.changing(cluster)?;
        let record = self.read(cluster, now_ms)?;
        let broken = Record {
            token: record.token + 1,
            holder: None,
            since_ms: now_ms,
            until_ms: now_ms,
            broken_by: Some(by.to_owned()),
            is_settled: false,
        };
        self.write(cluster, &broken)?;
        Ok(self.seen(cluster, &broken, now_ms))
    }

    /// The cluster has nothing on this host any more: its record goes, and `folder` with all of ours, unless another cluster has a
    /// record. Such a cluster has instances here, or had them when dmup last changed it: its token must not be forgotten, and what it
    /// stages must not go from under it.
    pub(crate) fn leave(&self, cluster: &ClusterName, folder: &Utf8Path) -> Reply {
        if self.dir.is_some() {
            // Own records first: of two clusters that leave at the same time, the second sees that it is the last.
            for kind in ["json", "lock", "busy"] {
                remove(&self.path(cluster, kind)?)?;
            }
        }
        *self.taken.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if !self.has_records()? {
            remove(folder)?;
        }
        Ok(Outcome::Done)
    }

    fn has_records(&self) -> Result<bool, Refusal> {
        let Some(dir) = &self.dir else { return Ok(false) };
        let entries = match dir.read_dir_utf8() {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            other => other.when(|| format!("list the leases in {dir}"))?,
        };
        // What cannot be read may be a record.
        Ok(entries.into_iter().any(|entry| match entry {
            Ok(entry) => entry.path().extension() == Some("json"),
            Err(_) => true,
        }))
    }

    fn taken(&self) -> Option<Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn taken_of(&self, cluster: &ClusterName) -> Result<Taken, Refusal> {
        self.taken().filter(|taken| taken.cluster == *cluster).ok_or_else(|| {
            bad(
                format!("keep the lease of {cluster}"),
                "this conversation has not taken it".to_owned(),
            )
        })
    }

    fn seen(&self, cluster: &ClusterName, record: &Record, clock_ms: i64) -> Outcome {
        let mine = self.taken().is_some_and(|taken| {
            taken.cluster == *cluster
                && taken.token == record.token
                && record.holder.as_ref().is_some_and(|holder| holder.run == taken.run)
        });
        Outcome::Lease(LeaseSeen {
            mine,
            token: record.token,
            holder: record.holder.clone(),
            since_ms: record.since_ms,
            until_ms: record.until_ms,
            clock_ms,
            broken_by: record.broken_by.clone(),
        })
    }

    fn folder(&self, cluster: &ClusterName) -> Result<&Utf8PathBuf, Refusal> {
        self.dir.as_ref().ok_or_else(|| {
            refuse(
                RefusalKind::Precondition,
                format!("keep the lease of {cluster}"),
                "the deploy user has no home folder",
            )
        })
    }

    fn path(&self, cluster: &ClusterName, kind: &str) -> Result<Utf8PathBuf, Refusal> {
        Ok(self.folder(cluster)?.join(format!("{cluster}.{kind}")))
    }

    /// The record; nothing is a token of 0. One that cannot be understood counts as higher than any that was given out: a
    /// clock in milliseconds is, and so whoever holds one is out, and the lease can be taken anew.
    fn read(&self, cluster: &ClusterName, now_ms: i64) -> Result<Record, Refusal> {
        let path = self.path(cluster, "json")?;
        match fs::read(&path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)
                .ok()
                .filter(|record: &Record| record.token <= HIGHEST)
                .unwrap_or_else(|| Record {
                    token: u64::try_from(now_ms).unwrap_or(0).max(1 << 40),
                    ..Record::default()
                })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Record::default()),
            Err(error) => Err(error).when(|| format!("read the lease {path}")),
        }
    }

    fn write(&self, cluster: &ClusterName, record: &Record) -> Result<(), Refusal> {
        let path = self.path(cluster, "json")?;
        let attempted = || format!("write the lease {path}");
        let text = serde_json::to_vec(record)
            .map_err(|error| refuse(RefusalKind::System, attempted(), error.to_string()))?;
        write_atomically(&path, &text, 0o600, None).when(attempted)
    }

    /// The right to change the record.
    fn changing(&self, cluster: &ClusterName) -> Result<fs::File, Refusal> {
        let folder = self.folder(cluster)?;
        fs::create_dir_all(folder).when(|| format!("make {folder}"))?;
        self.lock(cluster, "lock", Kind::Exclusive, PATIENCE)
    }

    fn busy(&self, cluster: &ClusterName, kind: Kind) -> Result<Option<fs::File>, Refusal> {
        // Gone with our whole folder: then nobody took over.
        if !self.folder(cluster)?.exists() {
            return Ok(None);
        }
        self.lock(cluster, "busy", kind, self.patience).map(Some)
    }

    fn lock(
        &self,
        cluster: &ClusterName,
        which: &str,
        kind: Kind,
        patience: Duration,
    ) -> Result<fs::File, Refusal> {
        let path = self.path(cluster, which)?;
        let attempted = || format!("lock {path}");
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).when(attempted)?;
        let began = Instant::now();
        loop {
            let tried = match kind {
                Kind::Shared => file.file().try_lock_shared(),
                Kind::Exclusive => file.file().try_lock(),
            };
            match tried {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(error)) => {
                    return Err(error).when(attempted);
                }
                Err(TryLockError::WouldBlock) if began.elapsed() < patience => {
                    thread::sleep(PAUSE);
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(refuse(
                        RefusalKind::TooSlow,
                        attempted(),
                        format!(
                            "an earlier order is still under way after {} s",
                            began.elapsed().as_secs()
                        ),
                    ));
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Shared,
    Exclusive,
}

fn check_ttl(ttl_s: u32) -> Result<(), Refusal> {
    if (1..=3600).contains(&ttl_s) {
        return Ok(());
    }
    Err(bad("take a lease", format!("it may last 1 to 3600 s, not {ttl_s}")))
}

fn until(now_ms: i64, ttl_s: u32) -> i64 {
    now_ms.saturating_add(i64::from(ttl_s) * 1000)
}

fn superseded(cluster: &ClusterName, had: u64, record: &Record) -> Refusal {
    let by = match (&record.holder, &record.broken_by) {
        (Some(holder), _) => format!("`{}` of {} has it now", holder.what, holder.who),
        (None, Some(by)) => format!("it was broken by {by}"),
        (None, None) => "somebody had it in between".to_owned(),
    };
    refuse(
        RefusalKind::Superseded,
        format!("act for {cluster} with lease {had}"),
        format!("the lease is {}: {by}", record.token),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    struct Host {
        _keep: tempfile::TempDir,
        dir: Utf8PathBuf,
    }

    impl Host {
        fn new() -> Self {
            let keep = tempfile::tempdir().unwrap();
            let dir = Utf8PathBuf::from_path_buf(keep.path().join("leases")).unwrap();
            Self { _keep: keep, dir }
        }

        /// One more conversation. A process that another test starts has all our locks until it is another program: that
        /// must not pass for an order under way.
        fn talk(&self) -> Leases {
            Leases::patient(Some(self.dir.clone()), Duration::from_secs(2))
        }
    }

    fn holder(desk: &str, run: &str) -> Holder {
        let who = format!("ada@{desk}");
        Holder { desk: desk.to_owned(), run: run.to_owned(), who, what: "patch".to_owned() }
    }

    fn ask(leases: &Leases, ask: LeaseAsk, now_ms: i64) -> Result<LeaseSeen, Refusal> {
        let order = LeaseOrder { cluster: ClusterName::new("prod").unwrap(), ask };
        let Outcome::Lease(seen) = leases.answer(&order, now_ms)? else { panic!("no lease") };
        Ok(seen)
    }

    fn take(
        leases: &Leases,
        holder: Holder,
        after: Option<u64>,
        now_ms: i64,
    ) -> Result<LeaseSeen, Refusal> {
        ask(leases, LeaseAsk::Take { holder, ttl_s: 120, after }, now_ms)
    }

    fn order() -> Request {
        Request::Remove { paths: vec!["/tmp/a/b".into()] }
    }

    #[test]
    fn another_desk_gets_the_lease_only_when_it_has_expired_and_the_first_is_out_then() {
        let host = Host::new();
        let (first, second) = (host.talk(), host.talk());
        let taken = take(&first, holder("a", "1"), None, 0).unwrap();
        assert!(taken.mine && taken.token == 1, "{taken:?}");
        let refused = take(&second, holder("b", "2"), None, 119_999).unwrap();
        assert!(!refused.mine && refused.holder == Some(holder("a", "1")), "{refused:?}");
        // Nobody asked for more time.
        let taken = take(&second, holder("b", "2"), None, 120_000).unwrap();
        assert!(taken.mine && taken.token == 2, "{taken:?}");
        let kind = |reply: Result<LeaseSeen, Refusal>| reply.unwrap_err().kind;
        assert_eq!(first.admit(&order()).unwrap_err().kind, RefusalKind::Superseded);
        assert_eq!(
            kind(ask(&first, LeaseAsk::Renew { ttl_s: 120 }, 121_000)),
            RefusalKind::Superseded
        );
        // Not on a new conversation either, and not after the other has given it back.
        ask(&second, LeaseAsk::GiveBack, 122_000).unwrap();
        let again = host.talk();
        assert_eq!(kind(take(&again, holder("a", "1"), Some(1), HOUR_MS)), RefusalKind::Superseded);
        second.admit(&order()).unwrap();
    }

    #[test]
    fn who_asks_for_more_time_keeps_the_lease() {
        let host = Host::new();
        let (first, second) = (host.talk(), host.talk());
        take(&first, holder("a", "1"), None, 0).unwrap();
        ask(&first, LeaseAsk::Renew { ttl_s: 120 }, 100_000).unwrap();
        assert!(!take(&second, holder("b", "2"), None, 219_000).unwrap().mine);
        first.admit(&order()).unwrap();
    }

    #[test]
    fn the_same_run_takes_the_lease_again_with_its_token_and_the_same_desk_with_a_higher_one() {
        let host = Host::new();
        let (first, second) = (host.talk(), host.talk());
        take(&first, holder("a", "1"), None, 0).unwrap();
        // Another conversation of the same process: a connection that broke, or a second address of this host.
        assert_eq!(take(&second, holder("a", "1"), Some(1), 1).unwrap().token, 1);
        first.admit(&order()).unwrap();
        let third = host.talk();
        let taken = take(&third, holder("a", "3"), None, 2).unwrap();
        assert!(taken.mine && taken.token == 2);
        assert_eq!(first.admit(&order()).unwrap_err().kind, RefusalKind::Superseded);
        assert_eq!(second.admit(&order()).unwrap_err().kind, RefusalKind::Superseded);
    }

    #[test]
    fn a_broken_lease_is_out_at_once_and_its_holder_is_told_by_whom() {
        let host = Host::new();
        let (first, second) = (host.talk(), host.talk());
        take(&first, holder("a", "1"), None, 0).unwrap();
        let broken =
            ask(&second, LeaseAsk::Break { by: "bob@desk (unlock)".to_owned() }, 1).unwrap();
        assert_eq!((broken.token, broken.holder), (2, None));
        let refusal = first.admit(&order()).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::Superseded);
        assert!(refusal.observed.contains("bob@desk (unlock)"), "{refusal}");
        assert_eq!(take(&second, holder("b", "2"), None, 2).unwrap().token, 3);
    }

    #[test]
    fn whoever_takes_over_waits_for_orders_under_way() {
        let host = Host::new();
        let (first, second) = (host.talk(), host.talk());
        take(&first, holder("a", "1"), None, 0).unwrap();
        let under_way = first.admit(&order()).unwrap();
        // It does not get the lease, but the one before is out already.
        let refusal = take(&second, holder("b", "2"), None, HOUR_MS).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::TooSlow);
        assert_eq!(first.admit(&order()).unwrap_err().kind, RefusalKind::Superseded);
        drop(under_way);
        assert!(take(&second, holder("b", "2"), None, HOUR_MS).unwrap().mine);
    }

    #[test]
    fn a_take_over_whose_agent_died_while_it_waited_waits_again() {
        let host = Host::new();
        let (first, second) = (host.talk(), host.talk());
        take(&first, holder("a", "1"), None, 0).unwrap();
        let under_way = first.admit(&order()).unwrap();
        let record = Record {
            token: 2,
            holder: Some(holder("b", "2")),
            until_ms: HOUR_MS,
            ..Record::default()
        };
        second.write(&ClusterName::new("prod").unwrap(), &record).unwrap();
        let refusal = take(&second, holder("b", "2"), None, 1).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::TooSlow);
        drop(under_way);
        assert!(take(&second, holder("b", "2"), None, 2).unwrap().mine);
    }

    #[test]
    fn a_stream_of_a_frozen_controller_keeps_nobody_waiting() {
        let host = Host::new();
        let (first, second) = (host.talk(), host.talk());
        take(&first, holder("a", "1"), None, 0).unwrap();
        let stage = Request::Stage(dmup_wire::message::Stage {
            digest: dmup_core::digest::Digest::of(b""),
            compressed_bytes: 0,
            unpacked_bytes: 0,
            store: "/tmp/store".into(),
        });
        let _under_way = first.admit(&stage).unwrap();
        assert!(take(&second, holder("b", "2"), None, HOUR_MS).unwrap().mine);
        assert_eq!(first.admit(&stage).unwrap_err().kind, RefusalKind::Superseded);
    }

    #[test]
    fn a_record_that_is_rubbish_puts_everybody_out_and_can_be_taken_anew() {
        let host = Host::new();
        let first = host.talk();
        take(&first, holder("a", "1"), None, 0).unwrap();
        fs::write(host.dir.join("prod.json"), "{").unwrap();
        assert_eq!(first.admit(&order()).unwrap_err().kind, RefusalKind::Superseded);
        let second = host.talk();
        assert!(take(&second, holder("b", "2"), None, 1).unwrap().mine);
        assert_eq!(first.admit(&order()).unwrap_err().kind, RefusalKind::Superseded);
        second.admit(&order()).unwrap();
    }

    #[test]
    fn our_folder_goes_with_the_last_cluster_and_stays_for_another_one() {
        let host = Host::new();
        let name = |text: &str| ClusterName::new(text).unwrap();
        let folder = host.dir.parent().unwrap();
        let (mine, other) = (host.talk(), host.talk());
        take(&mine, holder("a", "1"), None, 1).unwrap();
        let asked = LeaseAsk::Take { holder: holder("a", "2"), ttl_s: 120, after: None };
        other.answer(&LeaseOrder { cluster: name("test"), ask: asked }, 1).unwrap();

        mine.leave(&name("prod"), folder).unwrap();
        let mut left: Vec<String> = fs::read_dir(&host.dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["test.busy", "test.json", "test.lock"]);
        // Nothing brings the record back, neither a renewal under way nor the end of the work.
        ask(&mine, LeaseAsk::Renew { ttl_s: 60 }, 2).unwrap_err();
        ask(&mine, LeaseAsk::GiveBack, 2).unwrap_err();
        assert_eq!((host.talk().token(&name("prod")), other.token(&name("test"))), (0, 1));

        other.leave(&name("test"), folder).unwrap();
        assert!(!folder.exists());
        // Asked twice, and on a host that knows no cluster.
        other.leave(&name("test"), folder).unwrap();
    }

    #[test]
    fn looks_and_conversations_without_a_lease_are_let_in_and_leave_nothing() {
        let host = Host::new();
        let leases = host.talk();
        leases.admit(&order()).unwrap();
        let seen = ask(&leases, LeaseAsk::Look, 5).unwrap();
        assert_eq!((seen.token, seen.holder, seen.mine), (0, None, false));
        assert!(!host.dir.exists());
        // Whatever becomes of our folder (`destroy` removes it), the one who has the lease may go on.
        take(&leases, holder("a", "1"), None, 5).unwrap();
        fs::remove_dir_all(&host.dir).unwrap();
        leases.admit(&order()).unwrap();
        ask(&leases, LeaseAsk::GiveBack, 6).unwrap();
        assert!(!host.dir.exists());
    }
}
