//! DM that does not let a member go: `scale-in` and `prune`. DM is a stand-in that answers what a look asks for, and refuses
//! in the words of the real one; the hosts are this machine, as a playground.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::desk::{Desk, me};

/// DM v8.1.0 of a worker that has its lease still (tiflow dm/master/scheduler: RemoveWorker).
const STILL_ONLINE: &str = "[code=46005:class=scheduler:scope=internal:level=medium], Message: dm-worker with name w is still online, Workaround: Please shut it down first.";
/// etcd's own, which DM hands on (tiflow dm/master/server.go: deleteMasterByName).
const UNHEALTHY: &str = "etcdserver: unhealthy cluster";

#[derive(Default)]
struct Members {
    /// Name and `host:port`; the first leads.
    masters: Vec<(String, String)>,
    /// Name and `host:port`; none has a source.
    workers: Vec<(String, String, &'static str)>,
    /// Who is not let go, and in which words.
    refuses: Option<(String, &'static str)>,
    /// Orders that came.
    orders: Vec<String>,
}

impl Members {
    fn answer(&mut self, line: &str) -> Value {
        let (method, path) = line.split_once(' ').unwrap();
        let path = path.split(['?', ' ']).next().unwrap();
        if method != "GET" && path != "/apis/v1alpha1/sources" {
            self.orders.push(format!("{method} {path}"));
        }
        let rest = path.strip_prefix("/apis/v1alpha1/").unwrap_or(path);
        match (method, rest.split('/').collect::<Vec<_>>()[..].as_ref()) {
            ("GET", ["members"]) => self.listed(),
            ("GET", ["", "health"]) => json!({"health": "true"}),
            ("GET", ["status", _]) | ("PUT", ["sources"]) => json!({"result": true, "sources": []}),
            ("PUT", ["leader", op]) => {
                if *op == "1" {
                    self.masters.rotate_left(1);
                }
                json!({"result": true})
            }
            ("DELETE", ["members", _, name]) => match &self.refuses {
                Some((kept, words)) if kept == name => json!({"result": false, "msg": words}),
                _ => {
                    self.masters.retain(|(it, _)| it != name);
                    self.workers.retain(|(it, ..)| it != name);
                    json!({"result": true})
                }
            },
            _ => json!({}),
        }
    }

    fn listed(&self) -> Value {
        let (leader, at) = &self.masters[0];
        let masters = self.masters.iter().map(|(name, at)| {
            json!({"name": name, "alive": true, "clientURLs": [format!("http://{at}")]})
        });
        let workers = self
            .workers
            .iter()
            .map(|(name, at, stage)| json!({"name": name, "addr": at, "stage": stage}));
        json!({"result": true, "members": [
            {"leader": {"name": leader, "addr": at}},
            {"master": {"masters": masters.collect::<Vec<_>>()}},
            {"worker": {"workers": workers.collect::<Vec<_>>()}},
        ]})
    }
}

/// Masters that answer for as long as the test runs, and the desk of their cluster.
struct Scene {
    desk: Desk,
    dm: Arc<Mutex<Members>>,
    masters: Vec<String>,
}

const WORKER: &str = "127.0.0.77:3";

impl Scene {
    /// So many masters, a worker on port 3 and one on port 4, all recorded.
    fn with_masters(count: usize) -> Self {
        let dm = Arc::new(Mutex::new(Members::default()));
        let mut masters = Vec::new();
        for _ in 0..count {
            let listener = TcpListener::bind("127.0.0.77:0").unwrap();
            masters.push(listener.local_addr().unwrap().to_string());
            let dm = Arc::clone(&dm);
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let dm = Arc::clone(&dm);
                    std::thread::spawn(move || serve(stream.unwrap(), &dm));
                }
            });
        }
        let desk = Desk::empty();
        let mut text = format!(
            "user: {}\ndm_version: v8.1.0\ntopology:\n  global: {{ssh_type: none}}\n",
            me()
        );
        text.push_str("  master_servers:\n");
        for at in &masters {
            let port = port_of(at);
            text.push_str(&format!(
                "    - {{host: 127.0.0.77, port: {port}, peer_port: 1{}, deploy_dir: {dir}, data_dir: {dir}/data, arch: amd64, os: linux}}\n",
                port % 10_000,
                dir = desk.path(&format!("m{port}")),
            ));
        }
        text.push_str("  worker_servers:\n");
        for port in [3, 4] {
            let dir = desk.path(&format!("w{port}"));
            text.push_str(&format!(
                "    - {{host: 127.0.0.77, port: {port}, deploy_dir: {dir}, arch: amd64, os: linux}}\n"
            ));
            desk.put(&format!("w{port}/bin/dm-worker/dm-worker"), b"x");
        }
        desk.put("tiup/storage/dm/clusters/prod/meta.yaml", text.as_bytes());
        {
            let mut dm = dm.lock().unwrap();
            dm.masters = masters.iter().map(|at| (name_of(at), at.clone())).collect();
            dm.workers = [("127.0.0.77:3", "offline"), ("127.0.0.77:4", "free")]
                .map(|(at, stage)| (name_of(at), at.to_owned(), stage))
                .into();
        }
        Self { desk, dm, masters }
    }

    #[track_caller]
    fn dmup(&self, words: &[&str], code: i32) -> String {
        let words = [words, &["--ssh", "none", "--yes", "--wait-timeout", "1"]].concat();
        let mut command = self.desk.command(&words);
        let output = command.env("DMUP_SUPERVISED", self.desk.path("services")).output().unwrap();
        let said = self.desk.told(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{words:?}\n{said}");
        said
    }

    fn refuse(&self, member: &str, words: &'static str) {
        self.dm.lock().unwrap().refuses = Some((member.to_owned(), words));
    }

    fn let_go(&self) {
        self.dm.lock().unwrap().refuses = None;
    }

    fn has_member(&self, name: &str) -> bool {
        let dm = self.dm.lock().unwrap();
        dm.masters.iter().any(|(it, _)| it == name) || dm.workers.iter().any(|(it, ..)| it == name)
    }

    fn records(&self, port: u16) -> bool {
        let path = self.desk.path("tiup/storage/dm/clusters/prod/meta.yaml");
        std::fs::read_to_string(path).unwrap().contains(&format!("port: {port}\n"))
            || self
                .desk
                .ok(&["display", "prod", "--format", "json"])
                .contains(&format!(":{port}\""))
    }

    fn has_files(&self, of: &str) -> bool {
        std::fs::exists(self.desk.path(&format!("{of}/bin/dm-worker/dm-worker"))).unwrap()
    }
}

fn port_of(at: &str) -> u16 {
    at.rsplit_once(':').unwrap().1.parse().unwrap()
}

/// As a topology names a member that has no name of its own.
fn name_of(at: &str) -> String {
    format!("dm-{}", at.replace(':', "-"))
}

/// One request of HTTP/1.1; gRPC finds nobody, which a look does without.
fn serve(mut stream: TcpStream, dm: &Mutex<Members>) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while !request.windows(4).any(|it| it == b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(count @ 1..) => request.extend_from_slice(&buffer[..count]),
            _ => return,
        }
    }
    if request.starts_with(b"PRI ") {
        return;
    }
    let head = String::from_utf8_lossy(&request).into_owned();
    let body = dm.lock().unwrap().answer(head.lines().next().unwrap()).to_string();
    let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length:";
    drop(stream.write_all(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes()));
}

#[track_caller]
fn says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "no `{part}` in\n{said}");
    }
}

#[test]
fn a_worker_that_dm_does_not_let_go_stays_recorded_with_its_files_until_the_same_command_takes_it_off()
 {
    let scene = Scene::with_masters(1);
    scene.refuse(&name_of(WORKER), STILL_ONLINE);
    let words = ["scale-in", "prod", "-N", WORKER];
    for _ in 0..2 {
        let said = scene.dmup(&words, 1);
        says(
            &said,
            &[
                "error: take the worker off the member list",
                "still online",
                "now: 127.0.0.77:3 is stopped, does not start at boot, and is recorded; files of it are there; the instances before it are gone",
                "hint: give the same command again after the cause is gone",
                "or with --force",
            ],
        );
        assert!(scene.records(3) && scene.has_files("w3") && scene.has_member(&name_of(WORKER)));
        // It is recorded: this would find nobody to take off.
        says(&scene.dmup(&["prune", "prod"], 0), &["Nothing to do"]);
    }
    scene.let_go();
    says(&scene.dmup(&words, 0), &["Scaled cluster `prod` in successfully"]);
    assert!(!scene.records(3) && !scene.has_files("w3") && !scene.has_member(&name_of(WORKER)));
    assert!(scene.records(4) && scene.has_files("w4"));
}

#[test]
fn a_worker_that_is_forced_off_is_pruned_once_dm_lets_it_go() {
    let scene = Scene::with_masters(1);
    scene.refuse(&name_of(WORKER), STILL_ONLINE);
    let said = scene.dmup(&["scale-in", "prod", "-N", WORKER, "--force"], 0);
    says(
        &said,
        &["note: take the worker off the member list", "`dmup prune prod` takes it off later"],
    );
    assert!(!scene.records(3) && !scene.has_files("w3") && scene.has_member(&name_of(WORKER)));
    scene.let_go();
    says(&scene.dmup(&["prune", "prod"], 0), &["pruned dm-worker dm-127.0.0.77-3"]);
    assert!(!scene.has_member(&name_of(WORKER)));
}

#[test]
fn a_leader_that_etcd_does_not_let_go_may_lead_again_and_runs_on() {
    let scene = Scene::with_masters(2);
    let leader = scene.masters[0].clone();
    scene.refuse(&name_of(&leader), UNHEALTHY);
    let words = ["scale-in", "prod", "-N", &leader];
    let said = scene.dmup(&words, 1);
    let now = format!("now: {leader} runs, is a member as before, and is recorded; the instances");
    says(
        &said,
        &[
            "error: take the master off the member list",
            UNHEALTHY,
            &now,
            "hint: give the same command again after the cause is gone",
        ],
    );
    let orders = std::mem::take(&mut scene.dm.lock().unwrap().orders);
    assert_eq!(orders.first().map(String::as_str), Some("PUT /apis/v1alpha1/leader/1"));
    assert_eq!(orders.last().map(String::as_str), Some("PUT /apis/v1alpha1/leader/2"));
    assert!(scene.records(port_of(&leader)));
    scene.let_go();
    says(&scene.dmup(&words, 0), &["Scaled cluster `prod` in successfully"]);
    assert!(!scene.records(port_of(&leader)) && !scene.has_member(&name_of(&leader)));
}

#[test]
fn a_prune_that_comes_half_way_says_who_is_left_and_the_same_command_takes_them_off() {
    let scene = Scene::with_masters(1);
    for name in ["gone-1", "kept", "gone-2"] {
        let stray = (name.to_owned(), "127.0.0.78:9".to_owned(), "offline");
        scene.dm.lock().unwrap().workers.push(stray);
    }
    scene.refuse("kept", STILL_ONLINE);
    let said = scene.dmup(&["prune", "prod"], 1);
    says(
        &said,
        &[
            "pruned dm-worker gone-1",
            "pruned dm-worker gone-2",
            "why: take kept off the member list",
            "still online",
            "now: not taken off: kept; taken off: gone-1, gone-2",
            "hint: `dmup prune prod` again takes off what is left",
        ],
    );
    let said = scene.dmup(&["prune", "prod"], 1);
    says(&said, &["now: not taken off: kept; nothing has changed"]);
    scene.let_go();
    let said = scene.dmup(&["prune", "prod"], 0);
    says(&said, &["pruned dm-worker kept", "Pruned cluster `prod` successfully"]);
    says(&scene.dmup(&["prune", "prod"], 0), &["Nothing to do"]);
    assert!(scene.has_member(&name_of(WORKER)), "it is down, and recorded");
}
