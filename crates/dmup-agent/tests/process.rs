//! The agent as a program of its own: real pipes, real processes as units, a guard that acts, an empty root.
//!
//! Without the usual harness, because this binary is also the agent under test: called with
//! `agent …` it is one, called otherwise it runs the tests.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::digest::Digest;
use dmup_core::ids::{ClusterName, InstanceId, UnitName};
use dmup_wire::frame::{Decoder, Frame, Kind};
use dmup_wire::lease::{Holder, LeaseAsk, LeaseOrder, LeaseSeen};
use dmup_wire::message::{
    Answer, Guard, Hello, LeftoverKind, Outcome, Prepare, Probe, ProbeInstance, Probed, PutFile,
    RefusalKind, Request, Stage, Switch, UnitAction, UnitOrder,
};
use fs_err as fs;

type Test = (&'static str, fn());

const TESTS: [Test; 6] = [
    (
        "an_agent_whose_controller_was_superseded_stops_and_exchanges_nothing",
        an_agent_whose_controller_was_superseded_stops_and_exchanges_nothing,
    ),
    ("a_playground_goes_through_a_window_and_back", a_playground_goes_through_a_window_and_back),
    (
        "a_guard_that_nobody_disarms_brings_the_old_build_back",
        a_guard_that_nobody_disarms_brings_the_old_build_back,
    ),
    (
        "what_is_under_way_is_finished_when_the_controller_goes",
        what_is_under_way_is_finished_when_the_controller_goes,
    ),
    (
        "an_agent_in_an_empty_root_says_hello_and_answers",
        an_agent_in_an_empty_root_says_hello_and_answers,
    ),
    (
        "without_sudo_what_needs_root_is_refused_and_the_rest_is_done",
        without_sudo_what_needs_root_is_refused_and_the_rest_is_done,
    ),
];

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "agent") {
        return dmup_agent::main_of_agent(arguments.into_iter().skip(1));
    }
    let mut talk = std::io::stderr();
    let mut failed = 0;
    for (name, test) in TESTS {
        let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
        failed += u32::from(!passed);
        writeln!(talk, "test {name} ... {}", if passed { "ok" } else { "FAILED" }).ok();
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// An agent and the controller's ends of its pipes.
struct Talk {
    child: Child,
    decoder: Decoder,
    hello: Hello,
    next: u32,
}

impl Talk {
    fn with(mut command: Command) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut decoder = Decoder::default();
        let frame = next_frame(&mut child, &mut decoder).expect("hello");
        assert_eq!(frame.kind, Kind::Hello);
        let hello = serde_json::from_slice(&frame.body).expect("hello is JSON");
        Self { child, decoder, hello, next: 0 }
    }

    fn playground(dir: &Utf8Path) -> Self {
        let mut command = Command::new(own());
        command.args(["agent", "--supervised", dir.as_str()]);
        Self::with(command)
    }

    fn send(&mut self, kind: Kind, id: u32, body: Vec<u8>) {
        let bytes = Frame { kind, id, body }.encode().expect("small");
        self.child.stdin.as_mut().expect("piped").write_all(&bytes).expect("it reads");
    }

    fn begin(&mut self, request: &Request) -> u32 {
        self.next += 1;
        self.send(Kind::Request, self.next, serde_json::to_vec(request).expect("JSON"));
        self.next
    }

    fn ask(&mut self, request: &Request, stream: &[u8]) -> Answer {
        let id = self.begin(request);
        loop {
            let frame = next_frame(&mut self.child, &mut self.decoder).expect("an answer");
            if frame.kind == Kind::Credit && !stream.is_empty() {
                self.send(Kind::Chunk, id, stream.to_vec());
                self.send(Kind::End, id, Vec::new());
            } else if frame.kind == Kind::Answer {
                return serde_json::from_slice(&frame.body).expect("an answer is JSON");
            }
        }
    }

    fn done(&mut self, request: &Request) -> Outcome {
        match self.ask(request, &[]) {
            Answer::Held { outcome } => outcome,
            Answer::Refused(refusal) => panic!("{refusal}"),
        }
    }

    fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().expect("it ends").success());
    }
}

fn next_frame(child: &mut Child, decoder: &mut Decoder) -> Option<Frame> {
    let mut piece = vec![0; 1 << 16];
    loop {
        if let Some(frame) = decoder.next_frame().expect("frames") {
            return Some(frame);
        }
        match child.stdout.as_mut()?.read(&mut piece).ok()? {
            0 => return None,
            read => decoder.feed(&piece[..read]),
        }
    }
}

fn own() -> std::path::PathBuf {
    std::env::current_exe().expect("it has a path")
}

fn poll(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(60), "{what} did not come to pass");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A worker that is a copy of `sleep`-like programs in two builds, deployed, started, and prepared for a window.
struct Playground {
    _keep: tempfile::TempDir,
    dir: Utf8PathBuf,
    window: Switch,
}

/// A program that answers `-V` and else runs until told to stop: bash, with a build's name at its end.
fn program(build: &str) -> Vec<u8> {
    let mut bytes = fs::read(std::path::Path::new("/bin/bash")).expect("bash");
    bytes.extend_from_slice(build.as_bytes());
    bytes
}

fn parcel(content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o755);
    builder.append_data(&mut header, "dm-worker/dm-worker", content).expect("memory");
    zstd::encode_all(&*builder.into_inner().expect("memory"), 9).expect("memory")
}

fn playground() -> (Playground, Talk) {
    let keep = tempfile::tempdir().expect("a folder");
    let dir = Utf8PathBuf::from_path_buf(keep.path().to_owned()).expect("UTF-8");
    let deploy = dir.join("deploy");
    let (old, new) = (program("old"), program("new"));
    fs::create_dir_all(deploy.join("bin/dm-worker")).expect("a folder");
    fs::write(deploy.join("bin/dm-worker/dm-worker"), &old).expect("a file");
    fs::set_permissions(
        deploy.join("bin/dm-worker/dm-worker"),
        std::fs::Permissions::from_mode(0o755),
    )
    .expect("a mode");
    let mut talk = Talk::playground(&dir.join("playground"));
    let unit = UnitName::new("dm-worker-8262.service").expect("a name");
    let exec = format!("{deploy}/bin/dm-worker/dm-worker -c 'while :; do sleep 0.1; done'");
    let file = PutFile {
        path: format!("/etc/systemd/system/{unit}").into(),
        mode: 0o644,
        root: true,
        owner: None,
        content: format!("[Service]\nExecStart={exec}\n"),
    };
    talk.done(&Request::Put { files: vec![file] });
    talk.done(&order(&unit, UnitAction::Start));
    let stream = parcel(&new);
    let store = deploy.join(".dmup/store");
    let stage = Stage {
        digest: Digest::of(&stream),
        compressed_bytes: stream.len() as u64,
        unpacked_bytes: new.len() as u64,
        store: store.clone(),
    };
    let staged = talk.ask(&Request::Stage(stage), &stream);
    assert!(matches!(staged, Answer::Held { outcome: Outcome::Staged { .. } }), "{staged:?}");
    let instance = InstanceId::new("127.0.0.1:8262").expect("an id");
    let prepared = talk.done(&Request::Prepare(Prepare {
        instance: instance.clone(),
        live: deploy.join("bin"),
        staged: deploy.join("bin.next"),
        from: store.join(Digest::of(&stream).as_str()),
        replace: vec![("dm-worker/dm-worker".into(), "dm-worker/dm-worker".into())],
        binary: "dm-worker/dm-worker".into(),
        digest: Digest::of(&new),
        version_arguments: Some(vec!["--version".into()]),
        keeps: None,
    }));
    assert!(
        matches!(&prepared, Outcome::Prepared { version: Some(said) } if said.contains("bash")),
        "{prepared:?}"
    );
    let window = Switch {
        instance,
        unit,
        live: deploy.join("bin"),
        staged: deploy.join("bin.next"),
        binary: "dm-worker/dm-worker".into(),
        from: Digest::of(&old),
        to: Digest::of(&new),
        pid_before: None,
        texts: Vec::new(),
        restart: true,
        even_if_running: false,
        stop_within_ms: 60_000,
        guard_s: None,
    };
    (Playground { _keep: keep, dir, window }, talk)
}

fn order(unit: &UnitName, action: UnitAction) -> Request {
    Request::Unit(UnitOrder { units: vec![unit.clone()], action, within_ms: 60_000 })
}

impl Playground {
    fn probe(&self, talk: &mut Talk) -> Probed {
        let instance = ProbeInstance {
            id: self.window.instance.clone(),
            unit: self.window.unit.clone(),
            binary: self.window.live.join(&self.window.binary),
            live: self.dir.join("deploy/bin"),
        };
        let look = Probe { instances: vec![instance], hashes: true, ..Probe::default() };
        let Outcome::Probed(seen) = talk.done(&Request::Probe(look)) else { panic!("no probe") };
        seen
    }

    fn running(&self, talk: &mut Talk) -> Option<Digest> {
        self.probe(talk).processes.remove(0).1.running
    }

    fn clear(self, mut talk: Talk) {
        talk.done(&order(&self.window.unit, UnitAction::Stop));
        talk.end();
    }
}

fn a_playground_goes_through_a_window_and_back() {
    let (playground, mut talk) = playground();
    let window = playground.window.clone();
    poll("the old build", || playground.running(&mut talk) == Some(window.from.clone()));
    let Outcome::Switched(done) = talk.done(&Request::Switch(window.clone())) else { panic!() };
    assert!(!done.already && done.old_pid != done.new_pid, "{done:?}");
    poll("the new build", || playground.running(&mut talk) == Some(window.to.clone()));
    let Outcome::Switched(again) = talk.done(&Request::Switch(window.clone())) else { panic!() };
    assert!(again.already, "{again:?}");
    let back = Switch { from: window.to.clone(), to: window.from.clone(), ..window.clone() };
    talk.done(&Request::Switch(back));
    poll("the old build again", || playground.running(&mut talk) == Some(window.from.clone()));
    playground.clear(talk);
}

fn guard(window: &Switch, after_s: u32) -> Request {
    Request::ArmGuard(Guard {
        instance: window.instance.clone(),
        unit: window.unit.clone(),
        live: window.live.clone(),
        staged: window.staged.clone(),
        binary: window.binary.clone(),
        from: window.from.clone(),
        to: window.to.clone(),
        texts: Vec::new(),
        after_s,
    })
}

fn a_guard_that_nobody_disarms_brings_the_old_build_back() {
    let (playground, mut talk) = playground();
    let window = playground.window.clone();
    // Confirmed: never fires.
    talk.done(&guard(&window, 600));
    talk.done(&Request::Switch(window.clone()));
    let disarm = Request::DisarmGuard { instance: window.instance.clone() };
    talk.done(&disarm);
    assert!(playground.probe(&mut talk).leftovers.is_empty());
    let back = Switch { from: window.to.clone(), to: window.from.clone(), ..window.clone() };
    talk.done(&Request::Switch(back));
    // Not confirmed: the controller goes, the guard stays. From the end of the window it has the time that this names.
    talk.done(&guard(&window, 600));
    talk.done(&Request::Switch(Switch { guard_s: Some(2), ..window.clone() }));
    talk.end();
    let mut talk = Talk::playground(&playground.dir.join("playground"));
    poll("the guard", || {
        let seen = playground.probe(&mut talk);
        seen.processes[0].1.running.as_ref() == Some(&window.from)
            && seen.leftovers.iter().any(|left| left.kind == LeftoverKind::FiredGuard)
    });
    match talk.ask(&disarm, &[]) {
        Answer::Refused(refusal) => assert_eq!(refusal.kind, RefusalKind::Precondition),
        Answer::Held { outcome } => panic!("{outcome:?}"),
    }
    playground.clear(talk);
}

fn what_is_under_way_is_finished_when_the_controller_goes() {
    let (playground, mut talk) = playground();
    let window = playground.window.clone();
    talk.done(&guard(&window, 600));
    talk.begin(&Request::Switch(Switch { guard_s: Some(4), ..window.clone() }));
    // Both directions break at once, as with a cut cable.
    drop(talk.child.stdout.take());
    drop(talk.child.stdin.take());
    assert!(talk.child.wait().expect("it ends").success());
    let mut talk = Talk::playground(&playground.dir.join("playground"));
    poll("the new build", || playground.running(&mut talk) == Some(window.to.clone()));
    // So is what belongs to it: the guard acts so long after the window, not when it would have without one.
    poll("the guard", || playground.running(&mut talk) == Some(window.from.clone()));
    playground.clear(talk);
}

/// Needs root for `chroot`; without it there is nothing to see.
fn an_agent_in_an_empty_root_says_hello_and_answers() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let keep = tempfile::tempdir().expect("a folder");
    let root = Utf8PathBuf::from_path_buf(keep.path().to_owned()).expect("UTF-8");
    fs::copy(own(), root.join("dmup")).expect("a copy");
    let mut command = Command::new("chroot");
    command.args([root.as_str(), "/dmup", "agent"]);
    let mut talk = Talk::with(command);
    assert_eq!((talk.hello.machine_id.as_str(), talk.hello.systemd), ("", None));
    let asked = Request::Get { path: "/etc/passwd".into(), max_bytes: 10 };
    assert_eq!(talk.done(&asked), Outcome::Got { content: None });
    let unit = UnitName::new("a.service").expect("a name");
    for request in [
        Request::JournalTail { unit: unit.clone(), lines: 3 },
        Request::Probe(Probe {
            instances: vec![ProbeInstance {
                id: InstanceId::new("h:1").expect("an id"),
                unit,
                binary: "/b".into(),
                live: "/d/bin".into(),
            }],
            ..Probe::default()
        }),
    ] {
        match talk.ask(&request, &[]) {
            Answer::Refused(refusal) => {
                assert!(refusal.observed.contains("there is no systemctl"), "{refusal}");
            }
            Answer::Held { outcome } => panic!("{outcome:?}"),
        }
    }
    talk.end();
}

/// Needs root to become somebody else.
fn without_sudo_what_needs_root_is_refused_and_the_rest_is_done() {
    if !rustix::process::geteuid().is_root() || std::path::Path::new("/usr/bin/sudo").exists() {
        return;
    }
    let keep = tempfile::tempdir().expect("a folder");
    let dir = Utf8PathBuf::from_path_buf(keep.path().to_owned()).expect("UTF-8");
    fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).expect("a mode");
    fs::copy(own(), dir.join("dmup")).expect("a copy");
    fs::create_dir(dir.join("theirs")).expect("a folder");
    std::os::unix::fs::chown(dir.join("theirs"), Some(65534), Some(65534)).expect("an owner");
    let mut command = Command::new(dir.join("dmup"));
    command.arg("agent").uid(65534).gid(65534).stderr(Stdio::null());
    let mut talk = Talk::with(command);
    let file = |place: &str| PutFile {
        path: dir.join(place),
        mode: 0o600,
        root: false,
        owner: None,
        content: "x".into(),
    };
    assert_eq!(talk.done(&Request::Put { files: vec![file("theirs/f")] }), Outcome::Done);
    let foreign = PutFile { root: true, ..file("theirs/g") };
    for request in [
        Request::CheckRights,
        Request::Put { files: vec![file("f")] },
        Request::Put { files: vec![foreign] },
        Request::Remove { paths: vec![dir.join("dmup")] },
    ] {
        match talk.ask(&request, &[]) {
            Answer::Refused(refusal) => {
                assert_eq!(refusal.kind, RefusalKind::Permission, "{refusal}");
            }
            Answer::Held { outcome } => panic!("{request:?}: {outcome:?}"),
        }
    }
    talk.end();
}

fn take(talk: &mut Talk, desk: &str, ttl_s: u32) -> LeaseSeen {
    let holder = Holder {
        desk: desk.to_owned(),
        run: format!("{desk}-1"),
        who: format!("ada@{desk}"),
        what: "patch".to_owned(),
    };
    let cluster = ClusterName::new("prod").expect("a name");
    let ask = LeaseAsk::Take { holder, ttl_s, after: None };
    let outcome = talk.done(&Request::Lease(LeaseOrder { cluster, ask }));
    let Outcome::Lease(seen) = outcome else { panic!("{outcome:?}") };
    seen
}

fn an_agent_whose_controller_was_superseded_stops_and_exchanges_nothing() {
    let (playground, mut frozen) = playground();
    let window = playground.window.clone();
    poll("the old build", || playground.running(&mut frozen) == Some(window.from.clone()));
    assert!(take(&mut frozen, "first", 1).mine);
    let mut other = Talk::playground(&playground.dir.join("playground"));
    // Nobody renews it.
    poll("the end of the first lease", || take(&mut other, "second", 600).mine);
    let pid = playground.probe(&mut frozen).processes[0].1.pid;
    for late in [
        Request::Switch(window.clone()),
        guard(&window, 600),
        order(&window.unit, UnitAction::Stop),
        Request::Remove { paths: vec![window.staged.clone()] },
    ] {
        match frozen.ask(&late, &[]) {
            Answer::Refused(refusal) => {
                assert_eq!(refusal.kind, RefusalKind::Superseded, "{refusal}");
                assert!(refusal.observed.contains("`patch` of ada@second"), "{refusal}");
            }
            Answer::Held { outcome } => panic!("{late:?}: {outcome:?}"),
        }
    }
    let seen = playground.probe(&mut frozen);
    assert_eq!(seen.processes[0].1.pid, pid);
    assert!(window.staged.exists() && seen.leftovers.is_empty());
    // The one that has it may.
    let Outcome::Switched(done) = other.done(&Request::Switch(window)) else { panic!() };
    assert!(!done.already);
    frozen.end();
    playground.clear(other);
}
