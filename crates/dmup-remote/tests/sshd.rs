//! Everything between a controller and an agent, over a real sshd on this machine.
//!
//! `cargo test -p dmup-remote --test sshd -- --ignored`: needs OpenSSH's programs. The daemon listens on
//! the loopback interface only, with keys made for the run, and every folder is a temporary one. This very
//! program is what is sent as the agent; as such it answers a few verbs without touching anything.

#![allow(clippy::unwrap_used, reason = "a test program without harness")]

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::digest::Digest;
use dmup_core::ids::{HostId, UserName};
use dmup_core::instance::Instance;
use dmup_core::systemd::SystemdMode;
use dmup_core::topology::Topology;
use dmup_exec::ports::{Certainty, Dm as _, Hosts as _, Parcel};
use dmup_remote::dm_api::{DmClient, Timeouts};
use dmup_remote::ssh::{
    ConnectFailure, HostKeys, Jump, Reach, ReachError, ReachLimits, Target, UnknownHostKeys,
};
use dmup_remote::{AuthMethod, Fleet, FleetSettings, HostAddress, Login, Secret};
use dmup_wire::PROTOCOL;
use dmup_wire::frame::{Decoder, Frame, Kind};
use dmup_wire::message::{
    Answer, Hello, MakeDir, Outcome, Probe, Probed, PutFile, Refusal, RefusalKind, Request,
};

/// Set for the far end: be the real agent.
const REAL: &str = "DMUP_TEST_REAL_AGENT";

#[allow(clippy::print_stderr, reason = "a test program without harness")]
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "agent") {
        if std::env::var_os(REAL).is_some() {
            return dmup_agent::main_of_agent(std::env::args_os().skip(2));
        }
        act_as_agent();
        return ExitCode::SUCCESS;
    }
    if !arguments.iter().any(|argument| argument == "--ignored" || argument == "--include-ignored")
    {
        eprintln!("sshd: skipped, needs OpenSSH (run with -- --ignored)");
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let started = Instant::now();
    let say = |what: &str| eprintln!("{:6.2} s  ok: {what}", started.elapsed().as_secs_f64());
    runtime.block_on(scenarios(&say));
    runtime.block_on(the_real_agent(&say));
    runtime.block_on(a_host_in_between(&say));
    ExitCode::SUCCESS
}

async fn scenarios(say: &dyn Fn(&str)) {
    let place = Place::new();
    for (kind, bits) in [("ed25519", "256"), ("rsa", "3072"), ("ecdsa", "384")] {
        place.make_key(&format!("id_{kind}"), kind, bits, "");
    }
    place.make_key("id_locked", "ed25519", "256", "open sesame");
    place.make_key("id_stranger", "ed25519", "256", "");
    place.make_key("host_a", "ed25519", "256", "");
    place.make_key("host_b", "ed25519", "256", "");
    place.allow(&["id_ed25519", "id_rsa", "id_ecdsa", "id_locked"]);
    let mut sshd = Sshd::start(&place, "host_a", free_port());
    let host = HostId::new("127.0.0.1").unwrap();
    let with = |auth: Vec<AuthMethod>, unknown: UnknownHostKeys, port: u16| {
        place.fleet(Reach::Russh, auth, unknown, port)
    };
    let key = |name: &str| vec![AuthMethod::key_file(place.path(name))];

    let fleet = with(key("id_ed25519"), UnknownHostKeys::Refuse, sshd.port);
    let Err(ReachError::UnknownHostKey(new)) = fleet.hello(&host).await else { panic!() };
    assert!(new.fingerprint.starts_with("SHA256:"), "{new:?}");
    assert!(!place.path("cluster_known_hosts").exists());
    say("an unknown host key is refused");

    let asked = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = asked.clone();
    let ask = UnknownHostKeys::Ask(std::sync::Arc::new(move |key| {
        seen.lock().unwrap().push(key.fingerprint.clone());
        true
    }));
    let began = Instant::now();
    let fleet = with(key("id_ed25519"), ask, sshd.port);
    let hello = fleet.hello(&host).await.unwrap();
    assert_eq!(hello.hostname, "an agent of the test");
    assert_eq!(*asked.lock().unwrap(), [new.fingerprint]);
    say(&format!("asked about, remembered; agent sent and started in {:?}", began.elapsed()));

    let began = Instant::now();
    fleet.reconnect(&host).await.unwrap();
    say(&format!("started again where it lies, in {:?}", began.elapsed()));
    let began = Instant::now();
    for _ in 0..100 {
        fleet.check_rights(&host).await.unwrap();
    }
    say(&format!("100 requests in {:?}", began.elapsed()));

    for name in ["id_rsa", "id_ecdsa"] {
        let fleet = with(key(name), UnknownHostKeys::Refuse, sshd.port);
        fleet.hello(&host).await.unwrap();
        say(name);
    }
    let locked = |passphrase: Option<&str>| {
        vec![AuthMethod::KeyFile {
            path: place.path("id_locked"),
            passphrase: passphrase.map(Secret::new),
        }]
    };
    assert!(dmup_remote::login::needs_passphrase(&place.path("id_locked")).unwrap());
    assert!(!dmup_remote::login::needs_passphrase(&place.path("id_rsa")).unwrap());
    let fleet = with(locked(Some("open sesame")), UnknownHostKeys::Refuse, sshd.port);
    fleet.hello(&host).await.unwrap();
    for (passphrase, word) in [(None, "encrypted"), (Some("wrong"), "passphrase")] {
        let fleet = with(locked(passphrase), UnknownHostKeys::Refuse, sshd.port);
        let Err(ReachError::Auth { tried, .. }) = fleet.hello(&host).await else { panic!() };
        assert!(tried[0].contains(word), "{tried:?}");
    }
    say("an encrypted key, with, without and with the wrong passphrase");

    let several = vec![
        AuthMethod::key_file(place.path("missing")),
        AuthMethod::key_file(place.path("id_stranger")),
        AuthMethod::Agent { socket: place.path("no-agent") },
        AuthMethod::Password(Secret::new("hunter2")),
    ];
    let error = with(several, UnknownHostKeys::Refuse, sshd.port).hello(&host).await.unwrap_err();
    let text = error.to_string();
    for word in
        ["missing", "id_stranger: refused", "no-agent", "password", "the server takes publickey"]
    {
        assert!(text.contains(word), "{text}");
    }
    assert!(!text.contains("hunter2"));
    say(&format!("nothing accepted: {text}"));

    let agent = SshAgent::start(&place);
    agent.add("id_stranger");
    agent.add("id_rsa");
    let method = vec![AuthMethod::Agent { socket: agent.socket.clone() }];
    with(method, UnknownHostKeys::Refuse, sshd.port).hello(&host).await.unwrap();
    drop(agent);
    say("ssh-agent, second key, RSA");

    let fleet = with(key("id_ed25519"), UnknownHostKeys::Refuse, sshd.port);
    let parcel = place.parcel(40 << 20);
    let began = Instant::now();
    let sent = fleet.stage(&host, &parcel).await.unwrap();
    assert_eq!(sent, 40 << 20);
    say(&format!("40 MiB staged in {:?}", began.elapsed()));

    // The agent ends by itself in the middle of a request.
    let dying = fleet.remove(&host, vec!["/a/b".into()]).await.unwrap_err();
    assert_eq!(dying.certainty, Certainty::Unknown, "{dying}");
    assert!(dying.observed.contains("last words"), "{dying}");
    fleet.check_rights(&host).await.unwrap();
    say(&format!("an agent that dies leaves it unknown, the next request connects anew: {dying}"));

    // The cable: the whole connection is stopped, then the keepalive gives up.
    let session = sshd.newest_session();
    signal(session, "-STOP");
    let began = Instant::now();
    let cut = fleet.check_rights(&host).await.unwrap_err();
    assert_eq!(cut.certainty, Certainty::Unknown, "{cut}");
    assert!(began.elapsed() < Duration::from_secs(30));
    signal(session, "-KILL");
    say(&format!("a dead line is noticed after {:?}: {cut}", began.elapsed()));

    let system = Reach::SystemSsh { program: place.ssh_program(), given_keys_only: false };
    let fleet = place.fleet(system.clone(), key("id_ed25519"), UnknownHostKeys::Accept, sshd.port);
    let began = Instant::now();
    match fleet.hello(&host).await {
        Ok(hello) => assert_eq!(hello.protocol, PROTOCOL),
        Err(error) => panic!("{error}"),
    }
    say(&format!("the system's ssh, in {:?}", began.elapsed()));
    let fleet = place.fleet(system, key("id_stranger"), UnknownHostKeys::Accept, sshd.port);
    let Err(ReachError::SystemSsh { observed, .. }) = fleet.hello(&host).await else { panic!() };
    assert!(observed.contains("Permission denied"), "{observed}");
    say(&format!("the system's ssh says why: {observed}"));

    let fleet =
        place.fleet(Reach::Local { playground: None }, Vec::new(), UnknownHostKeys::Refuse, 1);
    fleet.check_rights(&host).await.unwrap();
    say("no ssh at all");

    let port = sshd.port;
    sshd.stop();
    let fleet = with(key("id_ed25519"), UnknownHostKeys::Accept, port);
    let error = fleet.hello(&host).await.unwrap_err();
    assert!(
        matches!(&error, ReachError::Connect { failure: ConnectFailure::Refused, .. }),
        "{error}"
    );
    say(&format!("nobody there: {error}"));

    let mut sshd = Sshd::start(&place, "host_b", port);
    let fleet = with(key("id_ed25519"), UnknownHostKeys::Accept, port);
    let Err(ReachError::ChangedHostKey(changed)) = fleet.hello(&host).await else { panic!() };
    assert_eq!((changed.place.line, changed.known != changed.shown), (1, true));
    say(&format!("even who accepts new keys does not accept a changed one: {changed}"));
    sshd.stop();
}

/// Both sides of the wire as they are: what one asks, the other does.
async fn the_real_agent(say: &dyn Fn(&str)) {
    let place = Place::new();
    place.make_key("id", "ed25519", "256", "");
    place.make_key("host", "ed25519", "256", "");
    place.allow(&["id"]);
    fs_err::write(place.path("real"), "").unwrap();
    let mut sshd = Sshd::start(&place, "host", free_port());
    let host = HostId::new("127.0.0.1").unwrap();
    let auth = vec![AuthMethod::key_file(place.path("id"))];
    let fleet = place.fleet(Reach::Russh, auth, UnknownHostKeys::Accept, sshd.port);
    let hello = fleet.hello(&host).await.unwrap();
    assert_eq!((hello.protocol, hello.user), (PROTOCOL, whoami()));
    say(&format!("the real agent greets: {} {}", hello.hostname, hello.home));

    let folder = place.path("work/conf");
    let dir = MakeDir { path: folder.clone(), mode: 0o750, owner: None };
    fleet.make_dirs(&host, vec![dir]).await.unwrap();
    let file = PutFile {
        path: folder.join("dm.toml"),
        mode: 0o640,
        root: false,
        owner: None,
        content: "name = \"ä\"\n".to_owned(),
    };
    fleet.put(&host, vec![file.clone()]).await.unwrap();
    assert_eq!(fleet.get(&host, &file.path).await.unwrap(), Some(file.content));
    assert_eq!(fleet.get(&host, &folder.join("none")).await.unwrap(), None);
    say("folders and files are made and read");

    let parcel = place.package();
    let into = place.path("work/deploy");
    let sent = fleet.unpack(&host, &parcel, &into, None).await.unwrap();
    assert_eq!(sent, parcel.compressed_bytes);
    let content = fs_err::read(into.join("dm-worker/dm-worker")).unwrap();
    assert_eq!(content.len(), 3 << 20);
    say("a package is unpacked");

    let cut = Parcel { compressed_bytes: parcel.compressed_bytes - 1, ..parcel };
    let refused = fleet.unpack(&host, &cut, &place.path("work/cut"), None).await.unwrap_err();
    assert_eq!(refused.certainty, Certainty::Refused, "{refused}");
    say(&format!("a package that is not what was said is refused: {refused}"));

    let probe = Probe {
        disks: vec![into.clone()],
        ports: vec![sshd.port, 1],
        paths: vec![into, place.path("none")],
        ..Probe::default()
    };
    let probed = fleet.probe(&host, probe).await.unwrap();
    assert!(probed.disks[0].free_bytes > 0);
    assert_eq!(probed.listening, [sshd.port]);
    let existing: Vec<_> = probed.existing.iter().map(|it| it.path.clone()).collect();
    assert_eq!(existing, [place.path("work/deploy")]);
    fleet.remove(&host, vec![place.path("work/deploy"), place.path("work/none")]).await.unwrap();
    assert!(!place.path("work/deploy").exists());
    say("the host is looked at, and cleaned up");

    fleet.reconnect(&host).await.unwrap();
    drop(fleet);
    sshd.wait_until_nobody_is_connected();
    say("both connections ended with the fleet");
    sshd.stop();
}

/// Everything goes through another host, and only through it.
async fn a_host_in_between(say: &dyn Fn(&str)) {
    let place = Place::new();
    for key in ["id", "id_jump", "host", "host_jump"] {
        place.make_key(key, "ed25519", "256", "");
    }
    place.allow(&["id"]);
    let mut sshd = Sshd::start(&place, "host", free_port());
    // Its own users, its own key: what opens one does not open the other.
    let between = Place::new();
    for name in ["id_jump", "id_jump.pub", "host_jump"] {
        fs_err::copy(place.path(name), between.path(name)).unwrap();
    }
    between.allow(&["id_jump"]);
    let mut gate = Sshd::start(&between, "host_jump", free_port());
    let host = HostId::new("127.0.0.1").unwrap();
    let jump = |key: &str, unknown: UnknownHostKeys, port: u16| {
        let login = Login {
            user: UserName::new(whoami()).unwrap(),
            auth: vec![AuthMethod::key_file(place.path(key))],
        };
        let target = Target { host: "127.0.0.1".to_owned(), port, login };
        let keys = HostKeys::new(None, place.path("cluster_known_hosts"), unknown);
        Some(std::sync::Arc::new(Jump::new(target, keys, ReachLimits::default())))
    };
    let through = |jump| {
        let auth = vec![AuthMethod::key_file(place.path("id"))];
        place.fleet_through(jump, Reach::Russh, auth, UnknownHostKeys::Accept, sshd.port)
    };

    let refused = through(jump("id_jump", UnknownHostKeys::Refuse, gate.port)).hello(&host).await;
    let Err(ReachError::Between { error, .. }) = refused else { panic!("{refused:?}") };
    assert!(matches!(*error, ReachError::UnknownHostKey(_)), "{error}");
    let refused = through(jump("id", UnknownHostKeys::Accept, gate.port)).hello(&host).await;
    let Err(ReachError::Between { error, .. }) = refused else { panic!("{refused:?}") };
    assert!(matches!(*error, ReachError::Auth { .. }), "{error}");
    say(&format!("it is nobody's to pass who is not known to it: {error}"));

    let by_gate = jump("id_jump", UnknownHostKeys::Accept, gate.port);
    let fleet = through(by_gate.clone());
    assert_eq!(fleet.hello(&host).await.unwrap().hostname, "an agent of the test");
    let known = fs_err::read_to_string(place.path("cluster_known_hosts")).unwrap();
    assert_eq!(known.lines().count(), 2, "both are remembered: {known}");
    say("an agent is started behind it");

    // A dm-master that knows one answer.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut asked = [0; 1024];
        let count = stream.read(&mut asked).unwrap();
        let body = r#"{"data":{"revision":"abc","version":"1.0"}}"#;
        let length = body.len();
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
        String::from_utf8_lossy(&asked[..count]).into_owned()
    });
    let node = prometheus(port);
    let dm = DmClient::new(std::slice::from_ref(&node), Timeouts::default()).through(by_gate);
    let build = dm.build_of(&node).await.unwrap();
    assert_eq!(build.commit, "abc", "{build:?}");
    let asked = serving.join().unwrap();
    assert!(asked.contains(&format!("host: 127.0.0.1:{port}")), "{asked}");
    let nobody = dm.build_of(&node).await.unwrap_err();
    assert_eq!(nobody.certainty, Certainty::NotSent, "{nobody}");
    say(&format!("requests to DM as well; nobody listens there: {nobody}"));

    // It breaks, and is there again: everything goes on. While it is away, nothing gets through.
    let gate_port = gate.port;
    signal(gate.newest_session(), "-KILL");
    fleet.reconnect(&host).await.unwrap();
    let session = gate.newest_session();
    gate.stop();
    signal(session, "-KILL");
    let away = fleet.reconnect(&host).await.unwrap_err();
    assert!(matches!(away, ReachError::Between { .. }), "{away}");
    say(&format!("without it nobody is reached: {away}"));
    let mut gate = Sshd::start_with(&between, "host_jump", gate_port, "AllowTcpForwarding no\n");
    let shut = fleet.reconnect(&host).await.unwrap_err();
    assert!(shut.to_string().contains("AllowTcpForwarding"), "{shut}");
    say(&format!("one that passes nobody on: {shut}"));
    gate.stop();

    // A server that hangs up before it has judged: nobody was refused.
    sshd.stop();
    let mut sshd = Sshd::start_with(&place, "host", sshd.port, "MaxAuthTries 1\n");
    let auth = vec![AuthMethod::key_file(place.path("id_jump"))];
    let fleet = place.fleet(Reach::Russh, auth, UnknownHostKeys::Accept, sshd.port);
    let hung_up = fleet.hello(&host).await.unwrap_err();
    assert!(
        matches!(&hung_up, ReachError::Connect { failure: ConnectFailure::Protocol, .. }),
        "{hung_up}"
    );
    say(&format!("a server that hangs up during the login: {hung_up}"));
    sshd.stop();
}

fn prometheus(port: u16) -> Instance {
    let text = format!("monitoring_servers:\n  - host: 127.0.0.1\n    port: {port}\n");
    Topology::parse(&text).unwrap().instances().remove(0)
}

/// A temporary folder for everything.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        fs_err::create_dir(place.path("home")).unwrap();
        place
    }

    fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8Path::from_path(self.dir.path()).unwrap().join(name)
    }

    fn make_key(&self, name: &str, kind: &str, bits: &str, passphrase: &str) {
        let done = Command::new("ssh-keygen")
            .args(["-q", "-t", kind, "-b", bits, "-N", passphrase, "-C", name, "-f"])
            .arg(self.path(name))
            .status()
            .unwrap();
        assert!(done.success());
    }

    fn allow(&self, names: &[&str]) {
        let lines: String = names
            .iter()
            .map(|name| fs_err::read_to_string(self.path(&format!("{name}.pub"))).unwrap())
            .collect();
        fs_err::write(self.path("authorized_keys"), lines).unwrap();
    }

    fn parcel(&self, bytes: usize) -> Parcel {
        let path = self.path("parcel");
        let content: Vec<u8> = (0..bytes).map(|n| (n * 7 % 253) as u8).collect();
        fs_err::write(&path, &content).unwrap();
        Parcel {
            path,
            digest: Digest::of(&content),
            compressed_bytes: bytes as u64,
            unpacked_bytes: bytes as u64,
        }
    }

    /// ssh that leaves the user's own files alone.
    fn ssh_program(&self) -> Utf8PathBuf {
        let path = self.path("ssh");
        let known = self.path("user_known_hosts");
        let text = format!("#!/bin/sh\nexec ssh -F none -o UserKnownHostsFile={known} \"$@\"\n");
        fs_err::write(&path, text).unwrap();
        assert!(Command::new("chmod").args(["700", path.as_str()]).status().unwrap().success());
        path
    }

    /// A real parcel: a zstd-compressed tar.
    fn package(&self) -> Parcel {
        let content: Vec<u8> =
            (0_u32..3 << 18).flat_map(|n| n.wrapping_mul(n).to_be_bytes()).collect();
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        tar.append_data(&mut header, "dm-worker/dm-worker", content.as_slice()).unwrap();
        let packed = zstd::encode_all(tar.into_inner().unwrap().as_slice(), 3).unwrap();
        let path = self.path("package");
        fs_err::write(&path, &packed).unwrap();
        Parcel {
            path,
            digest: Digest::of(&packed),
            compressed_bytes: packed.len() as u64,
            unpacked_bytes: content.len() as u64,
        }
    }

    fn fleet(
        &self,
        reach: Reach,
        auth: Vec<AuthMethod>,
        unknown: UnknownHostKeys,
        port: u16,
    ) -> Fleet {
        self.fleet_through(None, reach, auth, unknown, port)
    }

    fn fleet_through(
        &self,
        jump: Option<std::sync::Arc<Jump>>,
        reach: Reach,
        auth: Vec<AuthMethod>,
        unknown: UnknownHostKeys,
        port: u16,
    ) -> Fleet {
        let host = HostId::new("127.0.0.1").unwrap();
        let settings = FleetSettings {
            reach,
            jump,
            login: Login { user: UserName::new(whoami()).unwrap(), auth },
            host_keys: HostKeys::new(None, self.path("cluster_known_hosts"), unknown),
            limits: ReachLimits { keepalive: Duration::from_secs(1), ..ReachLimits::default() },
            concurrency: 5,
            agent: Utf8PathBuf::from_path_buf(std::env::current_exe().unwrap()).unwrap(),
            systemd: SystemdMode::System,
        };
        let address = HostAddress {
            id: host.clone(),
            ssh_host: host,
            ssh_port: port,
            login: None,
            places: Vec::new(),
        };
        Fleet::new(settings, [address])
    }
}

struct Sshd {
    child: Child,
    port: u16,
}

impl Sshd {
    fn start(place: &Place, host_key: &str, port: u16) -> Self {
        Self::start_with(place, host_key, port, "")
    }

    fn start_with(place: &Place, host_key: &str, port: u16, more: &str) -> Self {
        let config = place.path("sshd_config");
        let text = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {}\nPidFile none\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nPermitRootLogin yes\nAuthorizedKeysFile {}\nSetEnv HOME={}{}\n{more}",
            place.path(host_key),
            place.path("authorized_keys"),
            place.path("home"),
            if place.path("real").exists() { format!(" {REAL}=1") } else { String::new() },
        );
        fs_err::write(&config, text).unwrap();
        // Where root's privilege separation wants an empty folder.
        drop(fs_err::create_dir_all("/run/sshd"));
        let child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(&config)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "sshd does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { child, port }
    }

    /// The process that serves the connection made last.
    fn newest_session(&self) -> u32 {
        let out = Command::new("pgrep")
            .args(["-n", "-P", &self.child.id().to_string()])
            .output()
            .unwrap();
        let listener = String::from_utf8(out.stdout).unwrap();
        listener.trim().parse().expect("a session is open")
    }

    fn wait_until_nobody_is_connected(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let parent = self.child.id().to_string();
        while Command::new("pgrep").args(["-P", &parent]).output().unwrap().status.success() {
            assert!(Instant::now() < deadline, "a connection is still open");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn stop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.stop();
    }
}

struct SshAgent {
    child: Child,
    socket: Utf8PathBuf,
    place: Utf8PathBuf,
}

impl SshAgent {
    fn start(place: &Place) -> Self {
        let socket = place.path("agent.sock");
        let child = Command::new("ssh-agent")
            .args(["-D", "-a", socket.as_str()])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !socket.exists() {
            assert!(Instant::now() < deadline, "ssh-agent does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { child, socket, place: place.path("") }
    }

    fn add(&self, key: &str) {
        let done = Command::new("ssh-add")
            .arg("-q")
            .arg(self.place.join(key))
            .env("SSH_AUTH_SOCK", &self.socket)
            .status()
            .unwrap();
        assert!(done.success());
    }
}

impl Drop for SshAgent {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn signal(pid: u32, which: &str) {
    assert!(Command::new("kill").args([which, &pid.to_string()]).status().unwrap().success());
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn whoami() -> String {
    let out = Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

/// Says hello, takes streams, answers; at `Remove` it dies.
#[allow(clippy::print_stderr, reason = "an agent's last words go to standard error")]
fn act_as_agent() {
    const WINDOW: u32 = 512 << 10;
    let mut out = std::io::stdout().lock();
    let mut say = |kind, id, body| {
        out.write_all(&Frame { kind, id, body }.encode().unwrap()).unwrap();
        out.flush().unwrap();
    };
    let hello = Hello {
        protocol: PROTOCOL,
        dmup: "test".to_owned(),
        machine_id: String::new(),
        boot_id: String::new(),
        hostname: "an agent of the test".to_owned(),
        clock_ms: 0,
        arch: std::env::consts::ARCH.to_owned(),
        os: "linux".to_owned(),
        systemd: None,
        systemd_mode: SystemdMode::System,
        user: whoami(),
        home: "/home/test".into(),
    };
    say(Kind::Hello, 0, serde_json::to_vec(&hello).unwrap());
    let (mut decoder, mut input, mut buffer) =
        (Decoder::default(), std::io::stdin().lock(), vec![0; 256 << 10]);
    let mut content = Vec::new();
    loop {
        while let Some(frame) = decoder.next_frame().unwrap() {
            let answer = match frame.kind {
                Kind::Request => match serde_json::from_slice(&frame.body).unwrap() {
                    Request::Stage(_) => {
                        say(Kind::Credit, frame.id, WINDOW.to_be_bytes().to_vec());
                        continue;
                    }
                    Request::Probe(_) => {
                        Answer::Held { outcome: Outcome::Probed(Probed::default()) }
                    }
                    Request::CheckRights => Answer::Held { outcome: Outcome::Done },
                    Request::Remove { .. } => {
                        eprintln!("last words");
                        return;
                    }
                    Request::Unpack(_)
                    | Request::Prepare(_)
                    | Request::Check(_)
                    | Request::Switch(_)
                    | Request::Unit(_)
                    | Request::Put { .. }
                    | Request::Get { .. }
                    | Request::MakeDirs { .. }
                    | Request::EnsureUser(_)
                    | Request::ForgetKey(_)
                    | Request::Leave(_)
                    | Request::Shell(_)
                    | Request::JournalTail { .. }
                    | Request::ArmGuard(_)
                    | Request::RenewGuard { .. }
                    | Request::DisarmGuard { .. }
                    | Request::Lease(_) => Answer::Refused(Refusal {
                        attempted: "answer".to_owned(),
                        observed: "not in this test".to_owned(),
                        kind: RefusalKind::BadRequest,
                        state: None,
                    }),
                },
                Kind::Chunk => {
                    let taken = u32::try_from(frame.body.len()).unwrap();
                    content.extend(frame.body);
                    say(Kind::Credit, frame.id, taken.to_be_bytes().to_vec());
                    continue;
                }
                Kind::End => Answer::Held {
                    outcome: Outcome::Staged {
                        folder: format!("/store/{}", Digest::of(&content).as_str()).into(),
                        already: false,
                        files: Vec::new(),
                    },
                },
                Kind::Hello | Kind::Answer | Kind::Credit => panic!("not for an agent"),
            };
            say(Kind::Answer, frame.id, serde_json::to_vec(&answer).unwrap());
        }
        match input.read(&mut buffer).unwrap() {
            0 => return,
            count => decoder.feed(&buffer[..count]),
        }
    }
}
