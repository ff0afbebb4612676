//! A cluster in memory: hosts with units and guards, masters that elect, workers that take sources.
//!
//! After every effect it checks what must never happen; what it finds is in [`Sim::violations`].

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{self, Poll};
use std::time::Duration;

use async_trait::async_trait;
use dmup_core::digest::Digest;
use dmup_core::ids::{ClusterName, HostId, InstanceId, MemberName, SourceId, TaskName, UnitName};
use dmup_core::instance::{Instance, Role};
use dmup_core::inventory::{
    DmSeen, HostSeen, Leftover, LeftoverKind, MasterSeen, ProcessSeen, SubtaskSeen, SubtaskStage,
    SubtaskUnit, UnitActive, WorkerSeen, WorkerStage,
};
use dmup_core::plan::{Allowances, HotfixRequest, ParcelSpec, Purpose, TargetBuild};
use dmup_core::texts::Texts;
use dmup_exec::ports::{
    Around, Build, Certainty, CheckOrder, Checked, Clock, Dm, EffectError, GuardOrder, Hosts,
    Parcel, Records, ReportedBuild, Tree, Window, WindowOrder,
};

/// A small generator of numbers: same seed, same run.
#[derive(Clone, Debug)]
pub(crate) struct Dice(pub u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}

/// How a build behaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Behaviour {
    Good,
    ExitsAtStart,
    ExitsAfter(u64),
    NeverJoins,
    CallsItselfOther,
    /// Its release is right, its commit is another.
    HasOtherCommit,
    /// So many seconds its process is still the shell of its run script, under the same number.
    BeginsAsShell(u64),
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) instance: Instance,
    pub(crate) live: Digest,
    pub(crate) staged: Option<Digest>,
    pub(crate) running: Option<Digest>,
    /// Its files, by their digest.
    pub(crate) texts: Digest,
    /// How often it was started by order.
    pub(crate) starts: usize,
    pub(crate) pid: Option<u32>,
    pub(crate) restarts: u32,
    pub(crate) is_looping: bool,
    started: Duration,
    guard: Option<(Duration, GuardOrder)>,
    pub(crate) fired: bool,
    evicted: bool,
    broken_from_the_start: bool,
}

impl Node {
    fn is_up(&self) -> bool {
        self.running.is_some()
    }
}

/// Something that happens to a cluster.
pub(crate) type Happening = fn(&mut State);

pub(crate) struct State {
    pub(crate) nodes: BTreeMap<InstanceId, Node>,
    pub(crate) leader: Option<InstanceId>,
    pub(crate) sources: BTreeMap<SourceId, Option<InstanceId>>,
    pub(crate) subtasks: BTreeMap<(TaskName, SourceId), SubtaskStage>,
    /// What DM says of them, apart from their stages.
    pub(crate) errors: BTreeMap<(TaskName, SourceId), String>,
    /// What a person has paused; nobody else may resume it.
    by_person: BTreeSet<(TaskName, SourceId)>,
    /// Sources whose worker answers and runs nothing.
    lost: BTreeSet<SourceId>,
    /// Whether DM does what it is told when it is told to resume.
    pub(crate) resumes: bool,
    pub(crate) marks: BTreeMap<InstanceId, (Digest, bool)>,
    pub(crate) behaviours: BTreeMap<Digest, Behaviour>,
    /// Files kept for the run; a process that starts with bad ones ends at once.
    pub(crate) texts: BTreeMap<Digest, Texts>,
    pub(crate) bad_texts: Option<Digest>,
    /// The packages have no program that judges a configuration.
    pub(crate) has_no_judges: bool,
    /// Whose configuration was judged, and of which tree the program was.
    pub(crate) judged: Vec<(InstanceId, Tree)>,
    /// A build that no host can unpack.
    pub(crate) bad_package: Option<Digest>,
    pub(crate) stops_before_lease: bool,
    pub(crate) windows: usize,
    pub(crate) elections: usize,
    now: Duration,
    next_pid: u32,
    stored: BTreeSet<HostId>,
    dice: Dice,
    /// One answer in so many is lost.
    pub(crate) lose_one_in: u64,
    /// The next talk with this place breaks.
    pub(crate) breaks_once: Option<String>,
    /// One effect in so many is done twice, as when a message was delivered twice.
    pub(crate) repeat_one_in: u64,
    /// Effects so far.
    pub(crate) effects: u64,
    /// The controller dies at the effect of that number, before or after it.
    pub(crate) dies_at: Option<(u64, Side)>,
    /// After so many effects another controller has the lease.
    pub(crate) taken_over_at: Option<u64>,
    pub(crate) is_dead: bool,
    /// Rows of each source: written, arrived.
    pub(crate) rows: BTreeMap<SourceId, (u64, u64)>,
    pub(crate) violations: Vec<String>,
    /// Until when nobody gets in there.
    pub(crate) silent: BTreeMap<HostId, Duration>,
    /// How far all subtasks are behind.
    pub(crate) lag_s: u64,
    /// A master whose etcd is not healthy.
    pub(crate) ill: Option<InstanceId>,
    /// When a master becomes so.
    pub(crate) ill_at: Option<(Duration, InstanceId)>,
    /// Who was asked for its build, and whether its process was the shell of its run script then.
    pub(crate) asked: Vec<(InstanceId, bool)>,
    /// How long a stop takes, and whether systemd has to kill the process then.
    pub(crate) stop_takes: (Duration, bool),
    /// Dead workers that DM has not noticed yet: until when, and when they are started again.
    ghosts: BTreeMap<InstanceId, Duration>,
    /// Its host arms no guards.
    pub(crate) unguarded: Option<InstanceId>,
    /// Its host carries out no window.
    pub(crate) stuck: Option<InstanceId>,
    /// The answer to the next effect there is lost; the effect is not.
    pub(crate) answer_lost_of: Option<InstanceId>,
    /// A master that calls nobody leader.
    pub(crate) deaf: Option<InstanceId>,
    /// Its masters have a leader that has read nothing of tasks and sources yet.
    pub(crate) knows_nothing: bool,
    /// What happens then.
    pub(crate) later: Option<(Duration, Happening)>,
    /// Nothing can be written down about instances.
    pub(crate) has_no_records: bool,
    /// Which guards were armed, and for how long.
    pub(crate) arms: Vec<(InstanceId, Duration)>,
    /// How often a guard was put off.
    pub(crate) renewals: usize,
    /// How often executables were hashed.
    pub(crate) hashings: usize,
    /// When somebody restarts what.
    pub(crate) restart_at: Option<(Duration, InstanceId)>,
    /// How many DM processes may be down together.
    pub(crate) may_be_down: usize,
    /// How long an answer of hosts and of DM takes, if it is only a look.
    pub(crate) looks_take: Duration,
    /// Who sleeps until when, by number.
    sleepers: BTreeMap<u64, Duration>,
    next_sleeper: u64,
}

pub(crate) struct Sim {
    pub(crate) state: Mutex<State>,
    died: tokio::sync::Notify,
}

/// Of an effect.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Side {
    Before,
    After,
}

pub(crate) fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

pub(crate) fn old() -> Digest {
    digest("old")
}

pub(crate) fn new(role: Role) -> Digest {
    digest(&format!("new {role}"))
}

pub(crate) fn id(text: &str) -> InstanceId {
    InstanceId::new(text).unwrap()
}

fn instance(role: Role, number: usize) -> Instance {
    let (letter, port) = match role {
        Role::DmMaster => ("m", 8261),
        Role::DmWorker => ("w", 8262),
        Role::Prometheus => ("p", 9090),
        Role::Grafana => ("g", 3000),
        Role::Alertmanager => ("a", 9093),
        Role::NodeExporter => ("n", 9100),
        Role::BlackboxExporter => ("b", 9115),
    };
    let host = HostId::new(format!("h{number}")).unwrap();
    Instance {
        id: id(&format!("h{number}:{port}")),
        role,
        name: MemberName::new(format!("{letter}{number}")).unwrap(),
        host: host.clone(),
        ssh_host: host,
        ssh_port: 22,
        port,
        ports: vec![port],
        deploy_dir: format!("/dm/{role}-{port}").into(),
        data_dirs: Vec::new(),
        log_dir: "/dm/log".into(),
        unit: UnitName::new(format!("{role}-{port}.service")).unwrap(),
        os: "linux".into(),
        arch: "amd64".into(),
        patched: false,
    }
}

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) masters: usize,
    pub(crate) workers: usize,
    pub(crate) sources: usize,
    pub(crate) leader: usize,
    pub(crate) version: &'static str,
    pub(crate) has_monitoring: bool,
}

impl Shape {
    pub(crate) fn any(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let masters = [1, 3, 3, 5][dice.roll(4) as usize];
        let workers = 1 + dice.roll(5) as usize;
        Self {
            masters,
            workers,
            sources: dice.roll(workers as u64 + 1) as usize,
            leader: dice.roll(masters as u64) as usize,
            version: ["v5.3.0", "v6.5.0", "v8.1.0"][dice.roll(3) as usize],
            has_monitoring: dice.roll(2) == 0,
        }
    }
}

impl Sim {
    pub(crate) fn new(shape: &Shape, seed: u64) -> Self {
        let mut nodes = BTreeMap::new();
        let mut next_pid = 100;
        let mut roles: Vec<(Role, usize)> =
            (1..=shape.masters).map(|n| (Role::DmMaster, n)).collect();
        roles.extend((1..=shape.workers).map(|n| (Role::DmWorker, n)));
        if shape.has_monitoring {
            roles.extend([(Role::Prometheus, 1), (Role::Grafana, 1), (Role::Alertmanager, 1)]);
        }
        for (role, number) in roles {
            let instance = instance(role, number);
            next_pid += 1;
            nodes.insert(
                instance.id.clone(),
                Node {
                    instance,
                    live: old(),
                    staged: None,
                    running: Some(old()),
                    texts: Texts::default().digest(),
                    starts: 0,
                    pid: Some(next_pid),
                    restarts: 0,
                    is_looping: false,
                    started: Duration::ZERO,
                    guard: None,
                    fired: false,
                    evicted: false,
                    broken_from_the_start: false,
                },
            );
        }
        let mut sources = BTreeMap::new();
        let (mut subtasks, mut by_person) = (BTreeMap::new(), BTreeSet::new());
        for number in 1..=shape.sources {
            let source = SourceId::new(format!("s{number}")).unwrap();
            sources.insert(source.clone(), Some(id(&format!("h{number}:8262"))));
            subtasks.insert((TaskName::new("t1").unwrap(), source.clone()), SubtaskStage::Running);
            // Somebody has paused this one; it has to stay so.
            let key = (TaskName::new("t2").unwrap(), source);
            by_person.insert(key.clone());
            subtasks.insert(key, SubtaskStage::Paused);
        }
        let version: dmup_core::version::DmVersion = shape.version.parse().unwrap();
        let rows = sources.keys().map(|source| (source.clone(), (0, 0))).collect();
        Self {
            died: tokio::sync::Notify::new(),
            state: Mutex::new(State {
                nodes,
                leader: Some(id(&format!("h{}:8261", shape.leader + 1))),
                sources,
                subtasks,
                errors: BTreeMap::new(),
                by_person,
                lost: BTreeSet::new(),
                resumes: true,
                marks: BTreeMap::new(),
                behaviours: BTreeMap::new(),
                texts: BTreeMap::new(),
                bad_texts: None,
                has_no_judges: false,
                judged: Vec::new(),
                bad_package: None,
                stops_before_lease: version.stops_subtasks_before_lease(),
                windows: 0,
                elections: 0,
                now: Duration::from_secs(1),
                next_pid,
                stored: BTreeSet::new(),
                dice: Dice(seed ^ 0xabcd),
                lose_one_in: 0,
                breaks_once: None,
                repeat_one_in: 0,
                effects: 0,
                dies_at: None,
                taken_over_at: None,
                is_dead: false,
                rows,
                violations: Vec::new(),
                silent: BTreeMap::new(),
                lag_s: 0,
                ill: None,
                ill_at: None,
                asked: Vec::new(),
                stop_takes: (Duration::from_millis(700), false),
                ghosts: BTreeMap::new(),
                unguarded: None,
                stuck: None,
                answer_lost_of: None,
                deaf: None,
                knows_nothing: false,
                later: None,
                has_no_records: false,
                arms: Vec::new(),
                renewals: 0,
                hashings: 0,
                restart_at: None,
                may_be_down: 1,
                looks_take: Duration::ZERO,
                sleepers: BTreeMap::new(),
                next_sleeper: 0,
            }),
        }
    }

    pub(crate) fn instances(&self) -> Vec<Instance> {
        let state = self.state.lock().unwrap();
        let mut all: Vec<Instance> =
            state.nodes.values().map(|node| node.instance.clone()).collect();
        all.sort_by_key(|instance| (instance.role, instance.id.clone()));
        all
    }

    pub(crate) fn request(&self, shape: &Shape) -> HotfixRequest {
        let instances = self.instances();
        HotfixRequest {
            cluster: ClusterName::new("prod").unwrap(),
            version: shape.version.parse().unwrap(),
            selected: instances.iter().map(|instance| instance.id.clone()).collect(),
            instances,
            purpose: Purpose::Hotfix,
            parcel: Some(ParcelSpec {
                path: "/p".into(),
                digest: digest("parcel"),
                compressed_bytes: 10,
                unpacked_bytes: 20,
            }),
            parcels: Vec::new(),
            targets: Role::ALL
                .into_iter()
                .map(|role| {
                    (role, TargetBuild { digest: new(role), replace: Vec::new(), parcel: None })
                })
                .collect(),
            exceptions: BTreeMap::new(),
            offline: false,
            allow: Allowances::default(),
            known_bad: BTreeMap::new(),
            ways_back: BTreeMap::new(),
        }
    }

    /// The end state, without times and numbers of processes.
    pub(crate) fn builds(&self) -> BTreeMap<InstanceId, (Digest, Option<Digest>)> {
        let state = self.state.lock().unwrap();
        state
            .nodes
            .iter()
            .map(|(id, n)| (id.clone(), (n.live.clone(), n.running.clone())))
            .collect()
    }

    /// What must hold whenever nothing is under way.
    pub(crate) fn is_settled(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let mut wrong = state.violations.clone();
        for (key, stage) in &state.subtasks {
            let is_paused = state.by_person.contains(key);
            let expected = if is_paused { SubtaskStage::Paused } else { SubtaskStage::Running };
            if *stage != expected {
                wrong.push(format!("{} on {} is {stage:?}", key.0, key.1));
            }
        }
        for (source, worker) in &state.sources {
            if worker.is_none() {
                wrong.push(format!("{source} is unbound"));
            }
        }
        for node in state.nodes.values() {
            if node.evicted {
                wrong.push(format!("{} is still evicted", node.instance.id));
            }
            if node.guard.is_some() {
                wrong.push(format!("the guard of {} is still armed", node.instance.id));
            }
        }
        wrong
    }

    /// Nodes that run a new build and have a guard, or whose guard has acted.
    pub(crate) fn armed(&self) -> Vec<InstanceId> {
        let state = self.state.lock().unwrap();
        let is_watched = |node: &&Node| node.fired || (node.guard.is_some() && node.live != old());
        state.nodes.values().filter(is_watched).map(|node| node.instance.id.clone()).collect()
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.state.lock().unwrap().violations.clone()
    }

    pub(crate) fn break_node(&self, id: &InstanceId) {
        let mut state = self.state.lock().unwrap();
        let node = state.nodes.get_mut(id).unwrap();
        node.broken_from_the_start = true;
        node.running = None;
        node.pid = None;
        node.is_looping = true;
        node.restarts = 7;
        state.settle();
    }

    /// As another desk would.
    pub(crate) fn put_back(&self, id: &InstanceId) {
        self.state.lock().unwrap().put_back(id);
    }

    pub(crate) fn pid_of(&self, id: &InstanceId) -> Option<u32> {
        self.state.lock().unwrap().nodes[id].pid
    }

    /// From now on, for so long, nobody gets into that host.
    pub(crate) fn silence(&self, host: &str, span: Duration) {
        let mut state = self.state.lock().unwrap();
        let until = state.now + span;
        state.silent.insert(HostId::new(host).unwrap(), until);
    }

    /// A person pauses the task of a source, if it runs.
    pub(crate) fn person_pauses(&self, source: &str) -> bool {
        let mut state = self.state.lock().unwrap();
        let key = (TaskName::new("t1").unwrap(), SourceId::new(source).unwrap());
        let runs = state.subtasks.get(&key) == Some(&SubtaskStage::Running);
        if runs {
            state.subtasks.insert(key.clone(), SubtaskStage::Paused);
            state.by_person.insert(key);
        }
        runs
    }

    /// A person stops the task of a source for good: DM forgets it.
    pub(crate) fn person_stops(&self, source: &str) {
        let key = (TaskName::new("t1").unwrap(), SourceId::new(source).unwrap());
        self.state.lock().unwrap().subtasks.remove(&key);
    }

    /// The worker that has a source runs nothing of it any more, though DM knows its task.
    pub(crate) fn lose_task(&self, source: &str) {
        self.state.lock().unwrap().lost.insert(SourceId::new(source).unwrap());
    }

    /// Another master that may lead does so, if there is one.
    pub(crate) fn move_leadership(&self) {
        let mut state = self.state.lock().unwrap();
        let other = state.of(Role::DmMaster).into_iter().find(|id| {
            state.joins(id) && !state.nodes[id].evicted && state.leader.as_ref() != Some(id)
        });
        if state.leader.is_some() && other.is_some() {
            state.leader = other;
        }
    }

    /// Kills a worker; DM goes by its lease and notices nothing until systemd has started it again after that span.
    pub(crate) fn kill_unnoticed(&self, id: &InstanceId, span: Duration) {
        let mut state = self.state.lock().unwrap();
        let until = state.now + span;
        let node = state.nodes.get_mut(id).unwrap();
        (node.running, node.pid, node.is_looping) = (None, None, true);
        state.ghosts.insert(id.clone(), until);
    }

    async fn wait_for_the_answer(&self) {
        let span = self.state.lock().unwrap().looks_take;
        if !span.is_zero() {
            Clock::sleep(self, span).await;
        }
    }

    fn check_reachable(&self, host: &HostId) -> Result<(), EffectError> {
        let state = self.state.lock().unwrap();
        match state.silent.get(host) {
            Some(until) if state.now < *until => Err(EffectError {
                attempted: "connect".into(),
                place: host.to_string(),
                observed: "connection refused".into(),
                certainty: Certainty::NotSent,
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// The controller of before is gone, another one can begin.
    pub(crate) fn revive(&self) {
        let mut state = self.state.lock().unwrap();
        (state.is_dead, state.dies_at) = (false, None);
    }

    /// Ends when the controller dies. What it was doing has to be dropped then.
    pub(crate) async fn death(&self) {
        // The last process may have ended in the very moment of its death, and left this for the next one.
        loop {
            self.died.notified().await;
            if self.state.lock().unwrap().is_dead {
                return;
            }
        }
    }

    fn die_if_due(&self, side: Side) {
        let mut state = self.state.lock().unwrap();
        if !state.is_dead && state.dies_at == Some((state.effects, side)) {
            state.is_dead = true;
            self.died.notify_one();
        }
    }

    pub(crate) fn pass(&self, span: Duration) {
        let mut state = self.state.lock().unwrap();
        state.advance(span);
    }

    fn lose(&self, place: &str) -> Option<EffectError> {
        if let Some(lost) = self.lose_once(place) {
            return Some(lost);
        }
        let mut state = self.state.lock().unwrap();
        let sides = state.lose_one_in;
        (state.is_dead || sides > 0 && state.dice.roll(sides) == 0).then(|| broken(place))
    }

    fn lose_once(&self, place: &str) -> Option<EffectError> {
        let mut state = self.state.lock().unwrap();
        state.breaks_once.take_if(|it| it == place).map(|_| broken(place))
    }

    /// An effect whose answer, or which itself, may be lost on the way.
    fn effect<T>(
        &self,
        place: &str,
        mut act: impl FnMut(&mut State) -> Result<T, String>,
    ) -> Result<T, EffectError> {
        self.die_if_due(Side::Before);
        if let Some(lost) = self.lose(place) {
            return Err(lost);
        }
        let done = {
            let mut state = self.state.lock().unwrap();
            if state.is_taken_over() {
                // DM knows nothing of leases.
                if place != "DM" {
                    return Err(superseded(place));
                }
                state.violations.push("DM was told something by who lost the lease".into());
            }
            let mut done = act(&mut state);
            let sides = state.repeat_one_in;
            if sides > 0 && state.dice.roll(sides) == 0 {
                done = act(&mut state);
            }
            state.advance(Duration::from_millis(20));
            state.effects += 1;
            state.check_builds();
            done
        };
        self.die_if_due(Side::After);
        {
            let mut state = self.state.lock().unwrap();
            if state.answer_lost_of.take_if(|it| it.as_str() == place).is_some() {
                state.breaks_once = Some(place.to_owned());
            }
        }
        if let Some(lost) = self.lose(place) {
            return Err(lost);
        }
        done.map_err(|observed| EffectError {
            attempted: "do it".into(),
            place: place.into(),
            observed,
            certainty: Certainty::Refused,
        })
    }
}

fn broken(place: &str) -> EffectError {
    EffectError {
        attempted: "talk".into(),
        place: place.into(),
        observed: "the stream broke".into(),
        certainty: Certainty::Unknown,
    }
}

fn superseded(place: &str) -> EffectError {
    EffectError {
        attempted: "do it".into(),
        place: place.into(),
        observed: "another controller has the lease".into(),
        certainty: Certainty::Superseded,
    }
}

impl State {
    /// Its task that runs in the beginning.
    pub(crate) fn is_paused_by_person(&self, source: &SourceId) -> bool {
        self.by_person.contains(&(TaskName::new("t1").unwrap(), source.clone()))
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.now
    }

    pub(crate) fn put_back(&mut self, id: &InstanceId) {
        let live = self.nodes[id].live.clone();
        self.stop(id);
        self.exchange(id, &live, &old());
        self.start(id);
    }

    /// What its process is at the moment.
    fn executable_of(&self, node: &Node) -> Option<Digest> {
        let running = node.running.clone()?;
        match self.behaviours.get(&running) {
            Some(Behaviour::BeginsAsShell(s))
                if self.now < node.started + Duration::from_secs(*s) =>
            {
                Some(digest("sh"))
            }
            _ => Some(running),
        }
    }

    fn is_taken_over(&self) -> bool {
        self.taken_over_at.is_some_and(|limit| self.effects >= limit)
    }

    /// The host itself does so at the end of a window.
    fn put_guard_off(&mut self, id: &InstanceId, by: Option<Duration>) {
        let now = self.now;
        let node = self.nodes.get_mut(id).expect("it was just looked at");
        if let (Some((due, ..)), Some(by)) = (&mut node.guard, by) {
            *due = now + by;
        }
    }

    fn advance(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.now = (self.now + Duration::from_millis(500)).min(end);
            self.tick();
        }
    }

    fn tick(&mut self) {
        let now = self.now;
        let back: Vec<InstanceId> =
            self.ghosts.iter().filter(|(_, at)| **at <= now).map(|(id, _)| id.clone()).collect();
        for id in back {
            self.ghosts.remove(&id);
            self.start(&id);
        }
        if let Some((_, id)) = self.ill_at.take_if(|(at, _)| *at <= now) {
            self.ill = Some(id);
        }
        if let Some((_, happens)) = self.later.take_if(|(at, _)| *at <= now) {
            happens(self);
        }
        if let Some((_, id)) = self.restart_at.take_if(|(at, _)| *at <= now) {
            self.stop(&id);
            self.start(&id);
        }
        let due: Vec<InstanceId> = self
            .nodes
            .iter()
            .filter(|(_, n)| n.guard.as_ref().is_some_and(|(at, ..)| *at <= now))
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            let node = self.nodes.get_mut(&id).unwrap();
            let (_, GuardOrder { from, to, texts, .. }) = node.guard.take().unwrap();
            node.fired = true;
            let (live, running) = (node.live.clone(), node.running.clone());
            let mut are_there = true;
            if !texts.0.is_empty() {
                are_there = node.texts == texts.digest();
                node.texts = texts.digest();
            }
            if live == to {
                self.exchange(&id, &to, &from);
            }
            if running.as_ref() != Some(&from) || !are_there {
                self.stop(&id);
                self.start(&id);
            }
        }
        let crashed: Vec<InstanceId> = self
            .nodes
            .values()
            .filter(|n| {
                let build = n.running.as_ref();
                build.and_then(|b| self.behaviours.get(b)).is_some_and(|behaviour| {
                    matches!(behaviour, Behaviour::ExitsAfter(s) if n.started + Duration::from_secs(*s) <= now)
                })
            })
            .map(|n| n.instance.id.clone())
            .collect();
        for id in crashed {
            self.crash(&id);
        }
        self.settle();
        self.replicate();
    }

    fn crash(&mut self, id: &InstanceId) {
        let node = self.nodes.get_mut(id).unwrap();
        node.running = None;
        node.pid = None;
        node.is_looping = true;
        node.restarts += 1;
        self.settle();
    }

    /// Elections and bindings.
    fn settle(&mut self) {
        let joined = |state: &Self, id: &InstanceId| state.joins(id);
        let masters: Vec<InstanceId> = self.of(Role::DmMaster);
        let alive: Vec<InstanceId> =
            masters.iter().filter(|id| joined(self, id)).cloned().collect();
        let has_quorum = alive.len() > masters.len() / 2;
        let leader_is_good =
            self.leader.as_ref().is_some_and(|id| alive.contains(id) && !self.nodes[id].evicted);
        if !has_quorum {
            self.leader = None;
        } else if !leader_is_good {
            let candidates: Vec<&InstanceId> =
                alive.iter().filter(|id| !self.nodes[*id].evicted).collect();
            if candidates.is_empty() {
                self.leader = None;
            } else {
                let at = self.dice.roll(candidates.len() as u64) as usize;
                self.leader = Some(candidates[at].clone());
                self.elections += 1;
            }
        }
        for source in self.sources.keys().cloned().collect::<Vec<_>>() {
            let bound = self.sources[&source].clone();
            if bound.as_ref().is_some_and(|id| joined(self, id)) {
                continue;
            }
            self.sources.insert(source.clone(), None);
            if self.leader.is_none() {
                continue;
            }
            let free: Vec<InstanceId> = self
                .of(Role::DmWorker)
                .into_iter()
                .filter(|id| {
                    joined(self, id) && !self.sources.values().any(|b| b.as_ref() == Some(id))
                })
                .collect();
            if !free.is_empty() {
                let at = self.dice.roll(free.len() as u64) as usize;
                self.sources.insert(source, Some(free[at].clone()));
            }
        }
    }

    /// Whatever lies where, the build from before can be started from it.
    fn check_builds(&mut self) {
        for (id, node) in &self.nodes {
            if node.live != old() && node.staged.as_ref() != Some(&old()) {
                self.violations.push(format!("{id} has no build that is known to start"));
            }
        }
    }

    /// Rows go on being written; those of a source arrive while its subtask runs on a worker that is there.
    fn replicate(&mut self) {
        for (source, (written, arrived)) in &mut self.rows {
            *written += 1;
            let key = (TaskName::new("t1").unwrap(), source.clone());
            let worker = self.sources[source].as_ref();
            if worker.is_some_and(|id| self.nodes[id].is_up())
                && self.subtasks.get(&key) == Some(&SubtaskStage::Running)
            {
                *arrived = *written;
            }
        }
    }

    fn of(&self, role: Role) -> Vec<InstanceId> {
        self.nodes
            .values()
            .filter(|n| n.instance.role == role)
            .map(|n| n.instance.id.clone())
            .collect()
    }

    fn joins(&self, id: &InstanceId) -> bool {
        if self.ghosts.contains_key(id) {
            return true;
        }
        let node = &self.nodes[id];
        node.running
            .as_ref()
            .is_some_and(|build| self.behaviours.get(build) != Some(&Behaviour::NeverJoins))
    }

    fn stop(&mut self, id: &InstanceId) {
        let running_here = self.sources.iter().any(|(source, bound)| {
            bound.as_ref() == Some(id)
                && self
                    .subtasks
                    .iter()
                    .any(|((_, s), stage)| s == source && *stage == SubtaskStage::Running)
        });
        let others = self.of(Role::DmWorker).iter().any(|o| {
            o != id && self.joins(o) && !self.sources.values().any(|b| b.as_ref() == Some(o))
        });
        let is_bad = self.nodes[id].live != old();
        let carries = self.sources.values().any(|bound| bound.as_ref() == Some(id));
        if let Some((ghost, _)) = self.ghosts.iter().find(|(ghost, _)| *ghost != id && carries) {
            self.violations.push(format!("the sources of {id} may go to {ghost}, which is dead"));
        }
        if running_here && others && !self.stops_before_lease && !is_bad {
            self.violations.push(format!("{id} was stopped while it wrote: two writers"));
        }
        let node = self.nodes.get_mut(id).unwrap();
        node.running = None;
        node.pid = None;
        node.is_looping = false;
        node.restarts = 0;
        node.evicted = false;
        self.settle();
        self.check_availability(id);
    }

    fn check_availability(&mut self, stopped: &InstanceId) {
        let masters = self.of(Role::DmMaster);
        let alive = masters.iter().filter(|id| self.nodes[*id].is_up()).count();
        let is_master = self.nodes[stopped].instance.role == Role::DmMaster;
        if is_master && masters.len() >= 3 && alive <= masters.len() / 2 {
            self.violations.push(format!("{alive} of {} masters are up", masters.len()));
        }
        let down: Vec<String> = self
            .nodes
            .values()
            .filter(|n| n.instance.role.is_dm() && !n.is_up() && !n.broken_from_the_start)
            .map(|n| n.instance.id.to_string())
            .collect();
        if down.len() > self.may_be_down {
            self.violations.push(format!("down together: {}", down.join(", ")));
        }
    }

    fn start(&mut self, id: &InstanceId) {
        self.next_pid += 1;
        let pid = self.next_pid;
        let behaviour =
            self.behaviours.get(&self.nodes[id].live).copied().unwrap_or(Behaviour::Good);
        let now = self.now;
        let has_bad_texts = self.bad_texts.as_ref() == Some(&self.nodes[id].texts);
        let node = self.nodes.get_mut(id).unwrap();
        node.restarts = 0;
        node.starts += 1;
        node.is_looping = false;
        node.running = Some(node.live.clone());
        node.pid = Some(pid);
        node.started = now;
        if behaviour == Behaviour::ExitsAtStart || has_bad_texts {
            self.crash(id);
        } else {
            node.broken_from_the_start = false;
        }
        self.settle();
    }

    fn exchange(&mut self, id: &InstanceId, from: &Digest, to: &Digest) {
        let node = self.nodes.get_mut(id).unwrap();
        assert_eq!((&node.live, node.staged.as_ref()), (from, Some(to)));
        node.live = to.clone();
        node.staged = Some(from.clone());
    }
}

#[async_trait]
impl Hosts for Sim {
    async fn still_ours(&self) -> Result<(), EffectError> {
        if self.state.lock().unwrap().is_taken_over() {
            return Err(superseded("a host"));
        }
        Ok(())
    }

    async fn look(
        &self,
        host: &HostId,
        instances: &[Instance],
        hashes: bool,
    ) -> Result<(HostSeen, Vec<(InstanceId, ProcessSeen)>), EffectError> {
        self.wait_for_the_answer().await;
        self.check_reachable(host)?;
        if let Some(lost) = self.lose(host.as_str()) {
            return Err(lost);
        }
        let mut state = self.state.lock().unwrap();
        state.hashings += usize::from(hashes);
        let leftovers = instances
            .iter()
            .filter_map(|it| Some((it, state.nodes[&it.id].staged.clone()?)))
            .map(|(instance, build)| Leftover {
                instance: instance.id.clone(),
                kind: LeftoverKind::Tree,
                path: instance.deploy_dir.join("bin.dmup"),
                build: Some(build),
            })
            .collect();
        let seen = HostSeen {
            machine_id: host.to_string(),
            boot_id: "b".into(),
            clock_skew_ms: 0,
            arch: "x86_64".into(),
            free_bytes: BTreeMap::new(),
            leftovers,
        };
        let processes = instances
            .iter()
            .map(|instance| {
                let node = &state.nodes[&instance.id];
                let (active, sub) = match (node.is_up(), node.is_looping) {
                    (true, _) => (UnitActive::Active, "running"),
                    (false, true) => (UnitActive::Activating, "auto-restart"),
                    (false, false) => (UnitActive::Inactive, "dead"),
                };
                let process = ProcessSeen {
                    active,
                    sub_state: sub.into(),
                    enabled: true,
                    pid: node.pid,
                    restarts: node.restarts,
                    active_since_ms: None,
                    running: state.executable_of(node).filter(|_| hashes),
                    on_disk: Some(node.live.clone()).filter(|_| hashes),
                };
                (instance.id.clone(), process)
            })
            .collect();
        Ok((seen, processes))
    }

    async fn stage(&self, host: &HostId, parcel: &Parcel) -> Result<u64, EffectError> {
        self.check_reachable(host)?;
        self.effect(host.as_str(), |state| {
            Ok(if state.stored.insert(host.clone()) { parcel.compressed_bytes } else { 0 })
        })
    }

    async fn prepare(
        &self,
        instance: &Instance,
        _: &Parcel,
        build: &Build,
    ) -> Result<Option<String>, EffectError> {
        self.effect(instance.id.as_str(), |state| {
            if !state.stored.contains(&instance.host) {
                return Err("nothing is staged".into());
            }
            if state.bad_package.as_ref() == Some(&build.digest) {
                return Err("its -V prints nothing".into());
            }
            let node = state.nodes.get_mut(&instance.id).unwrap();
            if node.live != old() {
                state.violations.push(format!("the way back of {} was overwritten", instance.id));
                return Err("live is not old".into());
            }
            node.staged = Some(build.digest.clone());
            Ok(Some(version_text(&build.digest)))
        })
    }

    async fn check(&self, instance: &Instance, order: &CheckOrder) -> Result<Checked, EffectError> {
        self.check_reachable(&instance.host)?;
        self.effect(instance.id.as_str(), |state| {
            if state.nodes.values().any(|node| node.starts > 0) {
                state.violations.push(format!("{} was judged after a window", instance.id));
            }
            if order.tree == Tree::Staged && state.nodes[&instance.id].staged.is_none() {
                return Err("nothing is prepared".into());
            }
            if state.has_no_judges {
                return Ok(Checked::Unjudged);
            }
            state.judged.push((instance.id.clone(), order.tree));
            if state.bad_texts == Some(order.texts.digest()) {
                return Err(format!("{}: FAILED", order.tool));
            }
            Ok(Checked::Fine)
        })
    }

    async fn switch(
        &self,
        instance: &Instance,
        order: &WindowOrder,
    ) -> Result<Window, EffectError> {
        let id = &instance.id;
        let WindowOrder { from, to, around, stop_within, guard, pid_before, texts } = order.clone();
        let (from, to, within) = (&from, &to, stop_within);
        self.check_reachable(&instance.host)?;
        self.effect(id.as_str(), |state| {
            if state.stuck.as_ref() == Some(id) {
                return Err("no space left on device".into());
            }
            let node = &state.nodes[id];
            let are_there = texts.0.is_empty() || node.texts == texts.digest();
            if from == to {
                if node.live != *to {
                    return Err("another build lies there".into());
                }
                if are_there && node.pid.is_some() && node.pid != pid_before {
                    return Ok(Window { already: true, ..Window::default() });
                }
            } else if node.live == *to && node.staged.as_ref() == Some(from) {
                let runs = around != Around::Restart || node.running.as_ref() == Some(to);
                if runs && are_there {
                    return Ok(Window { already: true, ..Window::default() });
                }
            } else if node.live != *from || node.staged.as_ref() != Some(to) {
                return Err("another build lies there".into());
            }
            let has_old = node.live == *from;
            if around == Around::Restart {
                if has_old && from != to && *from == old() && node.guard.is_none() {
                    state.violations.push(format!("the window of {id} has no guard"));
                }
                let whole = guard.map(|span| span + within);
                state.put_guard_off(id, whole);
                state.stop(id);
                state.advance(state.stop_takes.0);
            } else if node.is_up() && around == Around::Offline {
                return Err("it runs".into());
            }
            if from != to && state.nodes[id].live == *from {
                state.exchange(id, from, to);
                state.windows += 1;
            }
            if !texts.0.is_empty() {
                state.nodes.get_mut(id).unwrap().texts = texts.digest();
            }
            if around == Around::Restart {
                state.start(id);
                state.put_guard_off(id, guard);
                if state.nodes[id].is_looping && state.dice.roll(2) == 0 {
                    return Err("the unit failed; the new build lies in bin".into());
                }
            }
            let (stop, killed) = state.stop_takes;
            Ok(Window {
                stop,
                killed,
                total: stop + Duration::from_millis(100),
                ..Window::default()
            })
        })
    }

    async fn arm_guard(&self, instance: &Instance, order: &GuardOrder) -> Result<(), EffectError> {
        self.check_reachable(&instance.host)?;
        self.effect(instance.id.as_str(), |state| {
            if state.unguarded.as_ref() == Some(&instance.id) {
                return Err("no timers here".into());
            }
            let deadline = state.now + order.after;
            state.arms.push((instance.id.clone(), order.after));
            let node = state.nodes.get_mut(&instance.id).unwrap();
            node.guard = Some((deadline, order.clone()));
            node.fired = false;
            Ok(())
        })
    }

    async fn renew_guard(&self, instance: &Instance, after: Duration) -> Result<(), EffectError> {
        self.check_reachable(&instance.host)?;
        self.effect(instance.id.as_str(), |state| {
            let deadline = state.now + after;
            state.renewals += 1;
            let node = state.nodes.get_mut(&instance.id).unwrap();
            match &mut node.guard {
                Some((due, ..)) => *due = deadline,
                None => return Err("no guard is armed".into()),
            }
            Ok(())
        })
    }

    async fn disarm_guard(&self, instance: &Instance) -> Result<(), EffectError> {
        self.check_reachable(&instance.host)?;
        self.effect(instance.id.as_str(), |state| {
            let node = state.nodes.get_mut(&instance.id).unwrap();
            node.guard = None;
            if node.fired { Err("the guard has acted".into()) } else { Ok(()) }
        })
    }

    async fn evidence(&self, instance: &Instance) -> Result<Vec<String>, EffectError> {
        Ok(vec![format!("last words of {}", instance.id)])
    }
}

pub(crate) fn version_text(build: &Digest) -> String {
    format!("Release Version: v{build}\nGit Commit Hash: {build}\n")
}

#[async_trait]
impl Dm for Sim {
    async fn look(&self, avoiding: &[InstanceId]) -> Result<DmSeen, EffectError> {
        self.wait_for_the_answer().await;
        if let Some(lost) = self.lose("DM") {
            return Err(lost);
        }
        let state = self.state.lock().unwrap();
        let Some(leader) = &state.leader else {
            return Err(EffectError {
                attempted: "ask the masters".into(),
                place: "DM".into(),
                observed: "no leader".into(),
                certainty: Certainty::Refused,
            });
        };
        let name = |id: &InstanceId| state.nodes[id].instance.name.clone();
        let masters = state
            .of(Role::DmMaster)
            .iter()
            .map(|id| {
                let alive = state.joins(id);
                let asked = alive && !avoiding.contains(id);
                MasterSeen {
                    name: name(id),
                    instance: Some(id.clone()),
                    alive,
                    leader: id == leader,
                    calls_leader: (asked && state.deaf.as_ref() != Some(id)).then(|| name(leader)),
                    etcd_healthy: asked.then_some(state.ill.as_ref() != Some(id)),
                    release: None,
                }
            })
            .collect();
        let workers = state
            .of(Role::DmWorker)
            .iter()
            .map(|id| {
                let source = state.sources.iter().find(|(_, b)| b.as_ref() == Some(id));
                let stage = match (state.joins(id), &source) {
                    (false, _) => WorkerStage::Offline,
                    (true, Some(_)) => WorkerStage::Bound,
                    (true, None) => WorkerStage::Free,
                };
                WorkerSeen {
                    name: name(id),
                    instance: Some(id.clone()),
                    stage,
                    source: source.map(|(s, _)| s.clone()),
                }
            })
            .collect();
        let subtasks = state
            .subtasks
            .iter()
            .filter(|((_, source), _)| !state.lost.contains(source))
            .map(|((task, source), stage)| {
                let worker = state.sources[source].as_ref();
                SubtaskSeen {
                    task: task.clone(),
                    source: source.clone(),
                    worker: worker.map(name),
                    stage: if worker.is_some() { *stage } else { SubtaskStage::Unknown },
                    unit: SubtaskUnit::Sync,
                    errors: state
                        .errors
                        .get(&(task.clone(), source.clone()))
                        .cloned()
                        .into_iter()
                        .collect(),
                    synced: false,
                    position: Some(format!("{:?}", state.now)),
                    source_position: Some("further".into()),
                    lag_s: Some(state.lag_s),
                    blocked_ddls: 0,
                    validator: None,
                }
            })
            .collect();
        Ok(DmSeen {
            masters,
            workers,
            sources: state
                .sources
                .iter()
                .map(|(s, b)| (s.clone(), b.as_ref().filter(|_| !state.knows_nothing).map(name)))
                .collect(),
            subtasks,
            relays: BTreeMap::new(),
        })
    }

    async fn build_of(&self, instance: &Instance) -> Result<ReportedBuild, EffectError> {
        if let Some(lost) = self.lose_once(&format!("the build of {}", instance.id)) {
            return Err(lost);
        }
        let mut state = self.state.lock().unwrap();
        let node = &state.nodes[&instance.id];
        let is_shell = state.executable_of(node) == Some(digest("sh"));
        state.asked.push((instance.id.clone(), is_shell));
        let Some(running) = state.nodes[&instance.id].running.clone() else {
            return Err(EffectError {
                attempted: "ask for its build".into(),
                place: instance.id.to_string(),
                observed: "connection refused".into(),
                certainty: Certainty::NotSent,
            });
        };
        let (release, commit) = match state.behaviours.get(&running) {
            Some(Behaviour::CallsItselfOther) => (old(), old()),
            Some(Behaviour::HasOtherCommit) => (running, old()),
            _ => (running.clone(), running),
        };
        Ok(ReportedBuild { release: format!("v{release}"), commit: commit.to_string() })
    }

    async fn evict_leader(&self, master: &Instance) -> Result<(), EffectError> {
        self.effect("DM", |state| {
            state.nodes.get_mut(&master.id).unwrap().evicted = true;
            state.settle();
            Ok(())
        })
    }

    async fn cancel_evict(&self, master: &Instance) -> Result<(), EffectError> {
        self.effect("DM", |state| {
            state.nodes.get_mut(&master.id).unwrap().evicted = false;
            state.settle();
            Ok(())
        })
    }

    async fn pause(&self, task: &TaskName, source: &SourceId) -> Result<(), EffectError> {
        self.effect("DM", |state| {
            state.subtasks.insert((task.clone(), source.clone()), SubtaskStage::Paused);
            Ok(())
        })
    }

    async fn sources_of(&self, task: &TaskName) -> Result<BTreeSet<SourceId>, EffectError> {
        if let Some(lost) = self.lose("DM") {
            return Err(lost);
        }
        let state = self.state.lock().unwrap();
        let of_task = |(known, _): &&(TaskName, SourceId)| known == task && !state.knows_nothing;
        Ok(state.subtasks.keys().filter(of_task).map(|(_, source)| source.clone()).collect())
    }

    async fn resume(&self, task: &TaskName, source: &SourceId) -> Result<(), EffectError> {
        self.effect("DM", |state| {
            if !state.subtasks.contains_key(&(task.clone(), source.clone())) {
                return Err("no such task".into());
            }
            if state.sources[source].is_none() {
                return Err("source is not bound".into());
            }
            let key = (task.clone(), source.clone());
            if state.by_person.contains(&key) {
                state.violations.push("a task that a person paused was resumed".into());
            }
            if state.resumes {
                state.subtasks.insert(key, SubtaskStage::Running);
            }
            Ok(())
        })
    }

    async fn transfer(&self, source: &SourceId, worker: &MemberName) -> Result<(), EffectError> {
        self.effect("DM", |state| {
            let to = state.nodes.values().find(|n| n.instance.name == *worker).unwrap();
            let to = to.instance.id.clone();
            let bound = state.sources[source].clone();
            if bound.as_ref() == Some(&to) {
                return Ok(());
            }
            if state.sources.values().any(|b| b.as_ref() == Some(&to)) {
                return Err("the worker is bound to another source".into());
            }
            state.sources.insert(source.clone(), Some(to));
            Ok(())
        })
    }
}

#[async_trait]
impl Clock for Sim {
    fn now(&self) -> jiff::Timestamp {
        let state = self.state.lock().unwrap();
        jiff::Timestamp::UNIX_EPOCH + state.now
    }

    fn elapsed(&self) -> Duration {
        self.state.lock().unwrap().now
    }

    async fn sleep(&self, span: Duration) {
        if self.state.lock().unwrap().is_dead {
            // Until whoever runs us drops us.
            std::future::pending::<()>().await;
        }
        Sleep { sim: self, span, number: None }.await;
    }
}

/// Time passes when everybody sleeps: then to the moment at which the first one wakes.
struct Sleep<'s> {
    sim: &'s Sim,
    span: Duration,
    number: Option<u64>,
}

impl Future for Sleep<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<()> {
        let mut state = self.sim.state.lock().unwrap();
        if let Some(number) = self.number {
            let until = state.sleepers[&number];
            let first = state.sleepers.iter().min_by_key(|(number, until)| (**until, **number));
            if first.map(|(number, _)| *number) == Some(number) {
                let span = until.saturating_sub(state.now);
                state.advance(span);
            }
            if state.now >= until {
                return Poll::Ready(());
            }
        } else {
            // Whoever is awake comes first.
            let number = state.next_sleeper;
            state.next_sleeper += 1;
            let until = state.now + self.span;
            state.sleepers.insert(number, until);
            drop(state);
            self.number = Some(number);
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Sleep<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.sim.state.lock().unwrap().sleepers.remove(&number);
        }
    }
}

impl Records for Sim {
    fn mark(&self, instance: &InstanceId, build: &Digest, patched: bool) -> Result<(), String> {
        let mut state = self.state.lock().unwrap();
        if state.has_no_records {
            return Err("no space left on device".into());
        }
        state.marks.insert(instance.clone(), (build.clone(), patched));
        Ok(())
    }

    fn texts(&self, digest: &Digest) -> Result<Texts, String> {
        let state = self.state.lock().unwrap();
        state.texts.get(digest).cloned().ok_or_else(|| format!("no files {digest}"))
    }
}
