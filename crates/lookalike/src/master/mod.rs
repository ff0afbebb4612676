//! dm-master: a real etcd as its child, the campaign for leadership, and the port that answers.
//!
//! Start and stop follow DM's order (tiflow dm/master/server.go): etcd must be ready within 10 s or the process
//! exits with 2; on SIGTERM the candidate's key goes first, so that the next one leads at once.

mod api;
mod operations;
mod scheduler;

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fs_err as fs;
use tokio::process::Child;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::cli::{CANNOT_START, Surroundings, fail};
use crate::etcd::{Etcd, EtcdError, client_url};
use crate::flags::{Flags, Known};
use crate::http::{self, Http2};
use crate::keys::{Candidate, LEADER, ROOT, Snapshot, to_json};
use crate::log;
use crate::stamp::{Fault, Stamp};
use crate::tls;

/// Name under which this program becomes etcd.
pub(crate) const ETCD_CHILD: &str = "lookalike-etcd";

const ELECTION_TTL_S: i64 = 60;
/// A dm-master takes this long to stop, of which ours would need little (measured on v8.1.0).
const STOP_TAKES: Duration = Duration::from_secs(1);

pub(crate) const FLAGS: Known = Known {
    program: "master",
    values: &[
        "L",
        "advertise-addr",
        "advertise-peer-urls",
        "auto-compaction-mode",
        "auto-compaction-retention",
        "cert-allowed-cn",
        "config",
        "data-dir",
        "initial-cluster",
        "join",
        "log-file",
        "log-format",
        "master-addr",
        "max-request-bytes",
        "max-txn-ops",
        "name",
        "peer-urls",
        "quota-backend-bytes",
        "secret-key-path",
        "ssl-ca",
        "ssl-cert",
        "ssl-key",
        "v1-sources-path",
    ],
    switches: &["V", "openapi", "print-sample-config"],
    only_in_file: &[
        "config-file",
        "experimental",
        "initial-cluster-state",
        "log-level",
        "log-rotate",
        "rpc-rate-burst",
        "rpc-rate-limit",
        "rpc-timeout",
    ],
};

/// Who leads, as this master sees it.
#[derive(Clone, Debug, Default)]
struct View {
    leader: Option<Candidate>,
    /// The key that proves this master's own leadership.
    own_key: Option<String>,
    /// Bindings have been looked after since then.
    started: bool,
}

struct Master {
    name: String,
    advertise: String,
    stamp: Stamp,
    /// Its own member only: what that does not know, this master does not know.
    etcd: Etcd,
    /// The other members, for the one thing that must be done while the own one may have stopped already.
    others: Etcd,
    client: reqwest::Client,
    view: watch::Sender<View>,
    /// Look again: something changed that etcd does not tell.
    wake: Notify,
    evicted: AtomicBool,
    lease: Mutex<Option<i64>>,
    /// One change of bindings or tasks at a time.
    scheduling: tokio::sync::Mutex<()>,
    times_leader: AtomicU64,
}

/// Runs until `closed`.
pub(crate) async fn serve(
    flags: Flags,
    surroundings: &Surroundings,
    closed: CancellationToken,
) -> ExitCode {
    let (config, stamp) = match Config::from_flags(&flags) {
        Ok(config) => (config, surroundings.stamp.clone()),
        Err(error) => return fail(CANNOT_START, &error),
    };
    let joins = !stamp.faults.contains(&Fault::NeverJoin);
    let mut etcd_child = None;
    if joins {
        let cluster = tokio::select! {
            () = closed.cancelled() => return ExitCode::SUCCESS,
            cluster = config.initial_cluster() => cluster,
        };
        let started = cluster
            .and_then(|(cluster, state)| config.start_etcd(&surroundings.etcd, &cluster, state));
        match started {
            Ok(child) => etcd_child = Some(child),
            Err(error) => {
                log::error!("fail to start: {error}");
                return fail(CANNOT_START, &error);
            }
        }
    }
    let own = joins.then_some(config.advertise.as_str());
    let master = Arc::new(Master {
        name: config.name.clone(),
        advertise: config.advertise.clone(),
        etcd: Etcd::of_masters(own),
        others: Etcd::of_masters(None),
        client: tls::http_client(),
        view: watch::Sender::new(View::default()),
        wake: Notify::new(),
        evicted: AtomicBool::new(false),
        lease: Mutex::new(None),
        scheduling: tokio::sync::Mutex::new(()),
        times_leader: AtomicU64::new(0),
        stamp,
    });
    let listener = match http::listen(&config.listen) {
        Ok(listener) => listener,
        Err(error) => return fail(CANNOT_START, &format!("listen on {}: {error}", config.listen)),
    };
    let port_closed = CancellationToken::new();
    let answering = Arc::clone(&master);
    let serving = tokio::spawn(http::serve(
        listener,
        Http2::Everything,
        port_closed.clone(),
        move |request| api::answer(Arc::clone(&answering), request),
    ));
    let Some(mut etcd_child) = etcd_child else {
        closed.cancelled().await;
        return ExitCode::SUCCESS;
    };
    let code = tokio::select! {
        () = closed.cancelled() => ExitCode::SUCCESS,
        ended = etcd_child.wait() => {
            // systemd signals both at once; the news of the own signal may come second.
            if timeout(STOP_TAKES, closed.cancelled()).await.is_err() {
                log::error!("etcd ended by itself: {ended:?}");
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            }
        }
        code = master.lead_or_follow() => code,
    };
    let began = Instant::now();
    master.give_up_candidacy(true).await;
    port_closed.cancel();
    stop_etcd(&mut etcd_child).await;
    if closed.is_cancelled() {
        sleep(STOP_TAKES.saturating_sub(began.elapsed())).await;
    }
    drop(serving.await);
    code
}

impl Master {
    /// Waits for etcd, then campaigns, watches and, while leading, schedules. Returns only with what ends the process.
    async fn lead_or_follow(self: &Arc<Self>) -> ExitCode {
        let within = Duration::from_secs(if self.stamp.at_least(6, 0, 0) { 10 } else { 60 });
        let ready = async {
            while let Err(error) = Snapshot::read(&self.etcd).await {
                log::info!("etcd is not ready: {error}");
                sleep(Duration::from_millis(100)).await;
            }
        };
        if timeout(within, ready).await.is_err() {
            log::error!(
                "[code=38038:class=dm-master:scope=internal:level=high], Message: start embed etcd timeout {within:?}"
            );
            return ExitCode::from(CANNOT_START);
        }
        let renewing = Arc::clone(self);
        let renewal = tokio::spawn(async move { renewing.renew().await });
        loop {
            if let Err(error) = self.follow_keys().await {
                log::warning!("lost etcd: {error}");
                self.view.send_replace(View::default());
                sleep(Duration::from_millis(200)).await;
            }
            if renewal.is_finished() {
                return ExitCode::FAILURE;
            }
        }
    }

    /// Reads everything, acts on it, and does so again with each change, until the watch breaks.
    async fn follow_keys(self: &Arc<Self>) -> Result<(), EtcdError> {
        let mut snapshot = self.look_and_act().await?;
        self.learn_others().await?;
        let mut events = self.etcd.watch(ROOT, snapshot.revision + 1).await?;
        loop {
            let event = tokio::select! {
                event = events.message() => Some(event),
                () = self.wake.notified() => None,
            };
            match event {
                None => {}
                Some(Ok(Some(response))) if !response.canceled => {
                    let newest = response.events.iter().filter_map(|event| event.kv.as_ref());
                    let newest = newest.map(|kv| kv.mod_revision).max().unwrap_or(0);
                    if newest <= snapshot.revision {
                        continue;
                    }
                }
                Some(_) => return Ok(()),
            }
            snapshot = self.look_and_act().await?;
            // Members come and go seldom, but whoever campaigns is new here.
            self.learn_others().await?;
        }
    }

    async fn learn_others(&self) -> Result<(), EtcdError> {
        for member in self.etcd.members().await? {
            if member.name != self.name {
                member.client_urls.iter().for_each(|url| self.others.add_master(url));
            }
        }
        Ok(())
    }

    async fn look_and_act(self: &Arc<Self>) -> Result<Snapshot, EtcdError> {
        self.campaign().await?;
        let snapshot = Snapshot::read(&self.etcd).await?;
        let leader = snapshot.leader().cloned();
        // By name, as DM does: after a SIGKILL the key of its former life makes this master the leader.
        let own_key = leader
            .as_ref()
            .filter(|(_, candidate)| candidate.id == self.name)
            .map(|(key, _)| key.clone());
        let before = self.view.borrow().clone();
        let leads = own_key.is_some();
        let started = leads && before.started && before.own_key == own_key;
        if leads && before.own_key != own_key {
            self.times_leader.fetch_add(1, Ordering::Relaxed);
            log::info!("become leader");
        }
        let view = View { leader: leader.map(|(_, candidate)| candidate), own_key, started };
        self.view.send_replace(view);
        if leads {
            self.schedule().await?;
            self.view.send_if_modified(|view| {
                let changed = !view.started;
                view.started = true;
                changed
            });
        }
        Ok(snapshot)
    }

    /// Puts this master's key into the queue, if it is not there and may be.
    async fn campaign(&self) -> Result<(), EtcdError> {
        if self.evicted.load(Ordering::Relaxed) || self.current_lease().is_some() {
            return Ok(());
        }
        let lease = self.etcd.grant(ELECTION_TTL_S).await?;
        let candidate = Candidate { id: self.name.clone(), addr: self.advertise.clone() };
        self.etcd.put(&format!("{LEADER}{lease:x}"), &to_json(&candidate), lease).await?;
        *self.lease.lock().expect("no panic under this lock") = Some(lease);
        Ok(())
    }

    fn current_lease(&self) -> Option<i64> {
        *self.lease.lock().expect("no panic under this lock")
    }

    /// Takes this master's key out of the queue. While stopping, through the other members: systemd has told
    /// etcd to stop at the same moment.
    async fn give_up_candidacy(&self, stopping: bool) {
        let lease = self.lease.lock().expect("no panic under this lock").take();
        let Some(lease) = lease else { return };
        if stopping {
            let hand_over = async {
                let members = self.etcd.members().await?;
                // etcd would do so itself, but not before its clients' streams have ended.
                self.etcd.hand_raft_over(&members).await
            };
            if let Ok(Err(error)) = timeout(Duration::from_secs(1), hand_over).await {
                log::warning!("hand raft's leadership over: {error}");
            }
            match self.others.revoke(lease).await {
                Ok(()) => return,
                Err(error) => log::warning!("give the election lease back through others: {error}"),
            }
        }
        if let Err(error) = self.etcd.revoke(lease).await {
            log::warning!("give the election lease back: {error}");
        }
    }

    async fn renew(&self) {
        let mut pause = Duration::from_secs(ELECTION_TTL_S.cast_unsigned() / 3);
        loop {
            sleep(pause).await;
            pause = Duration::from_secs(ELECTION_TTL_S.cast_unsigned() / 3);
            let Some(lease) = self.current_lease() else { continue };
            match self.etcd.renew(lease).await {
                Ok(true) => {}
                Ok(false) => {
                    let mut current = self.lease.lock().expect("no panic under this lock");
                    if *current == Some(lease) {
                        *current = None;
                    }
                    self.wake.notify_one();
                }
                Err(error) => {
                    log::warning!("renew the election lease: {error}");
                    pause = Duration::from_secs(1);
                }
            }
        }
    }

    /// Steps down and stays out of the election until cancelled or restarted.
    async fn evict(&self) {
        self.evicted.store(true, Ordering::Relaxed);
        self.give_up_candidacy(false).await;
        self.wake.notify_one();
    }

    fn cancel_evict(&self) {
        self.evicted.store(false, Ordering::Relaxed);
        self.wake.notify_one();
    }
}

/// Where this master and its etcd live.
struct Config {
    name: String,
    listen: String,
    advertise: String,
    peer_urls: String,
    advertise_peer_urls: String,
    data_dir: String,
    initial_cluster: Option<String>,
    join: Option<String>,
}

impl Config {
    fn from_flags(flags: &Flags) -> Result<Self, String> {
        let owned = |name: &str| flags.value(name).map(str::to_owned);
        let listen =
            tls::bare(flags.value("master-addr").ok_or("master-addr is not set")?).to_owned();
        let advertise = owned("advertise-addr").unwrap_or_else(|| listen.clone());
        let advertise = tls::bare(&advertise).to_owned();
        if advertise.starts_with(':') || advertise.starts_with("0.0.0.0") {
            return Err(format!(
                "advertise-addr {advertise} must have a host that others can reach"
            ));
        }
        let listen = if listen.starts_with(':') { format!("0.0.0.0{listen}") } else { listen };
        let name = owned("name").unwrap_or_else(|| format!("dm-master-{advertise}"));
        let peer_urls =
            owned("peer-urls").unwrap_or_else(|| format!("{}://127.0.0.1:8291", tls::scheme()));
        Ok(Self {
            advertise_peer_urls: owned("advertise-peer-urls").unwrap_or_else(|| peer_urls.clone()),
            data_dir: owned("data-dir").unwrap_or_else(|| format!("default.{name}")),
            initial_cluster: owned("initial-cluster"),
            join: owned("join"),
            name,
            listen,
            advertise,
            peer_urls,
        })
    }

    /// etcd's `--initial-cluster` and its state. Joins through another master if this one is told to and is new.
    async fn initial_cluster(&self) -> Result<(String, &'static str), String> {
        let alone = || format!("{}={}", self.name, self.advertise_peer_urls);
        let Some(join) = &self.join else {
            return Ok((self.initial_cluster.clone().unwrap_or_else(alone), "new"));
        };
        let dir = Path::new(&self.data_dir);
        if dir.join("member/wal").exists() {
            return Ok((alone(), "existing"));
        }
        let note = dir.join("join");
        if let Ok(cluster) = fs::read_to_string(&note) {
            return Ok((cluster, "existing"));
        }
        let others = Etcd::of_masters(join.split(','));
        let mut attempts = 0;
        let cluster = loop {
            match self.join_through(&others).await {
                Ok(cluster) => break cluster,
                Err(Refusal::ForGood(why)) => return Err(why),
                Err(Refusal::ForNow(error)) => {
                    attempts += 1;
                    log::warning!("join through {join}: {error}");
                    if attempts == 10 {
                        return Err(format!("fail to join embed etcd through {join}: {error}"));
                    }
                    sleep(Duration::from_secs(1)).await;
                }
            }
        };
        fs::create_dir_all(dir)
            .and_then(|()| fs::write(&note, &cluster))
            .map_err(|error| error.to_string())?;
        Ok((cluster, "existing"))
    }

    async fn join_through(&self, others: &Etcd) -> Result<String, Refusal> {
        let members = others.members().await.map_err(Refusal::ForNow)?;
        let ours =
            |member: &crate::etcd::EtcdMember| member.peer_urls.contains(&self.advertise_peer_urls);
        if members.iter().any(|member| member.name == self.name) {
            return Err(Refusal::ForGood(format!(
                "missing data or joining a duplicate member {}",
                self.name
            )));
        }
        if let Some(half) = members.iter().find(|member| member.name.is_empty() && !ours(member)) {
            return Err(Refusal::ForGood(format!(
                "there is a member that has not joined successfully: {}",
                half.id
            )));
        }
        let members = if members.iter().any(ours) {
            members
        } else {
            others.add_member(&self.advertise_peer_urls).await.map_err(Refusal::ForNow)?
        };
        let mut parts = Vec::new();
        for member in &members {
            let name = if member.name.is_empty() { &self.name } else { &member.name };
            parts.extend(member.peer_urls.iter().map(|url| format!("{name}={url}")));
        }
        Ok(parts.join(","))
    }

    /// Starts this program as etcd's wrapper, which becomes etcd and ends when this process ends.
    fn start_etcd(&self, etcd: &Path, cluster: &str, state: &str) -> Result<Child, String> {
        let client = client_url(&self.listen)
            .ok_or_else(|| format!("master-addr {}: want host:port", self.listen))?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0(ETCD_CHILD).arg(etcd).stdin(Stdio::null());
        for (flag, value) in [
            ("name", self.name.as_str()),
            ("data-dir", &self.data_dir),
            ("listen-peer-urls", &self.peer_urls),
            ("initial-advertise-peer-urls", &self.advertise_peer_urls),
            ("listen-client-urls", &client),
            ("advertise-client-urls", &format!("{}://{}", tls::scheme(), self.advertise)),
            ("initial-cluster", cluster),
            ("initial-cluster-state", state),
            ("logger", "zap"),
            ("log-level", "warn"),
        ] {
            command.arg(format!("--{flag}={value}"));
        }
        command
            .args(tls::etcd_flags().into_iter().map(|(flag, value)| format!("--{flag}={value}")));
        tokio::process::Command::from(command)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("start {}: {error}", etcd.display()))
    }
}

/// Why a master cannot join.
enum Refusal {
    ForNow(EtcdError),
    ForGood(String),
}

/// Ends etcd, hard if it waits for its clients' streams longer than a dm-master takes to stop.
async fn stop_etcd(child: &mut Child) {
    let pid = child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed()));
    if let Some(pid) = pid
        && let Err(error) = rustix::process::kill_process(pid, rustix::process::Signal::TERM)
    {
        log::warning!("stop etcd: {error}");
    }
    if timeout(STOP_TAKES, child.wait()).await.is_err()
        && let Err(error) = child.kill().await
    {
        log::warning!("kill etcd: {error}");
    }
}

/// Becomes the etcd of the first argument; the kernel ends it with its parent, however that ends.
pub(crate) fn become_etcd(args: &[String]) -> ExitCode {
    let Some((etcd, args)) = args.split_first() else {
        return fail(CANNOT_START, "no etcd was named");
    };
    if let Err(error) =
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
    {
        return fail(CANNOT_START, &format!("tie etcd to its parent: {error}"));
    }
    let error = Command::new(etcd).args(args).exec();
    fail(CANNOT_START, &format!("run {etcd}: {error}"))
}
