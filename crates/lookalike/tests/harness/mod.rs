//! A whole cluster of stand-ins on loopback addresses of its own, with DM's usual ports.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::witness::Witness;
use lab::writer::RowWriter;
use lookalike::stamp::{Stamp, write_stamped};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Generous: what is waited for is done in well under a second on an idle machine.
pub(crate) const WITHIN: Duration = Duration::from_secs(60);

pub(crate) struct Process(Option<Child>);

impl Process {
    pub(crate) fn pid(&self) -> rustix::process::Pid {
        let child = self.0.as_ref().expect("not ended");
        rustix::process::Pid::from_child(child)
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).expect("signal a child");
    }

    fn has_ended(&mut self) -> bool {
        let child = self.0.as_mut().expect("not ended");
        child.try_wait().expect("wait").is_some()
    }

    /// Waits for its end; the exit code, or none after a signal.
    pub(crate) fn wait(mut self) -> Option<i32> {
        let mut child = self.0.take().expect("not ended");
        wait_until("a process ends", || child.try_wait().expect("wait").map(|status| status.code()))
    }

    pub(crate) fn stop(self) -> Option<i32> {
        self.signal(rustix::process::Signal::TERM);
        self.wait()
    }

    pub(crate) fn kill(self) {
        self.signal(rustix::process::Signal::KILL);
        self.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// Whether nothing is left of a run that was killed.
fn first_master_is_free(second: u8, net: u8) -> bool {
    std::net::TcpListener::bind(std::net::SocketAddr::from(([127, second, net, 1], 8261))).is_ok()
}

/// Polls until there is something.
pub(crate) fn wait_until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + WITHIN;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "waited {WITHIN:?}: {what}");
        sleep(Duration::from_millis(20));
    }
}

pub(crate) struct Cluster {
    /// `127.77.5.`: the first three parts of its addresses.
    net: String,
    /// Names as TiUP gives them (`dm-<address>-<port>`), not m1 and w1.
    real_names: bool,
    pub(crate) dir: TempDir,
    pub(crate) masters: Vec<Option<Process>>,
    pub(crate) workers: Vec<Option<Process>>,
    pub(crate) writer: RowWriter,
    pub(crate) witness: Witness,
    agent: ureq::Agent,
}

impl Cluster {
    /// Three masters and so many workers on 127.77.`net`.1 and up (or 127.78, … if another run of the tests is there), all of one build; two sources are written.
    pub(crate) fn start(net: u8, workers: usize, stamp: &Stamp) -> Self {
        Self::start_named(net, workers, stamp, false)
    }

    pub(crate) fn start_named(net: u8, workers: usize, stamp: &Stamp, real_names: bool) -> Self {
        let config = ureq::Agent::config_builder().http_status_as_error(false).proxy(None);
        let sources = [("src1", 50), ("src2", 50)];
        let (second, writer) = (77..=120)
            .filter(|second| first_master_is_free(*second, net))
            .find_map(|second| {
                let address = ([127, second, net, 9], 3306).into();
                RowWriter::start(address, &sources).ok().map(|writer| (second, writer))
            })
            .expect("a net that nobody uses");
        let mut cluster = Self {
            net: format!("127.{second}.{net}."),
            real_names,
            dir: tempfile::tempdir().expect("a folder"),
            masters: Vec::new(),
            workers: Vec::new(),
            writer,
            witness: Witness::start(([127, second, net, 9], 4000).into()).expect("witness"),
            agent: config.timeout_global(Some(Duration::from_secs(90))).build().into(),
        };
        cluster.build("dm-master", "", stamp);
        cluster.build("dm-worker", "", stamp);
        for i in 1..=3 {
            let process = cluster.start_master(i);
            cluster.masters.push(Some(process));
        }
        wait_until("a leader", || {
            cluster.restart_ended();
            cluster.leader()
        });
        for i in 1..=workers {
            let process = cluster.start_worker(i, "");
            cluster.workers.push(Some(process));
        }
        wait_until("all workers free", || {
            cluster.restart_ended();
            (cluster.workers_in("free").len() == workers).then_some(())
        });
        cluster
    }

    /// Starts again what has given up, as systemd would: on a slow disk etcd may need more than the ten seconds that a
    /// dm-master waits for it.
    fn restart_ended(&mut self) {
        for i in 1..=self.masters.len() {
            if self.masters[i - 1].as_mut().is_some_and(Process::has_ended) {
                self.masters[i - 1] = Some(self.start_master(i));
            }
        }
        for i in 1..=self.workers.len() {
            if self.workers[i - 1].as_mut().is_some_and(Process::has_ended) {
                self.workers[i - 1] = Some(self.start_worker(i, ""));
            }
        }
    }

    /// Makes a program `dir/<variant>/<name>`.
    pub(crate) fn build(&self, name: &str, variant: &str, stamp: &Stamp) -> PathBuf {
        let dir = self.dir.path().join(format!("bin{variant}"));
        std::fs::create_dir_all(&dir).expect("a folder");
        let exe = dir.join(name);
        // Written here it could not be run at once: another test that forks meanwhile holds our open
        // file until its child has become another program, and Linux runs nothing that is open for
        // writing (ETXTBSY). The file of a `cp` is open nowhere once that has ended.
        let written = dir.join(format!("{name}.written"));
        write_stamped(Path::new(env!("CARGO_BIN_EXE_lookalike")), &written, stamp)
            .expect("a program");
        let copied = Command::new("cp").arg(&written).arg(&exe).status().expect("cp runs");
        assert!(copied.success(), "cp {} {}: {copied}", written.display(), exe.display());
        exe
    }

    pub(crate) fn master(&self, i: usize) -> String {
        format!("{}{i}:8261", self.net)
    }

    pub(crate) fn worker(&self, i: usize) -> String {
        format!("{}{i}:8262", self.net)
    }

    pub(crate) fn master_name(&self, i: usize) -> String {
        if self.real_names { format!("dm-{}{i}-8261", self.net) } else { format!("m{i}") }
    }

    pub(crate) fn worker_name(&self, i: usize) -> String {
        if self.real_names { format!("dm-{}{i}-8262", self.net) } else { format!("w{i}") }
    }

    fn peer(&self, i: usize) -> String {
        format!("http://{}{i}:8291", self.net)
    }

    fn spawn(&self, exe: &Path, name: &str, args: &[String]) -> Process {
        let log = File::create(self.dir.path().join(format!("{name}.err"))).expect("a file");
        let mut command = Command::new(exe);
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null()).stderr(log);
        Process(Some(command.spawn().expect("start a program")))
    }

    fn master_args(&self, i: usize) -> Vec<String> {
        let dir = self.dir.path().display();
        vec![
            format!("--name={}", self.master_name(i)),
            format!("--master-addr={}", self.master(i)),
            format!("--advertise-addr={}", self.master(i)),
            format!("--peer-urls={}", self.peer(i)),
            format!("--advertise-peer-urls={}", self.peer(i)),
            format!("--log-file={dir}/m{i}.log"),
            format!("--data-dir={dir}/m{i}"),
        ]
    }

    pub(crate) fn start_master(&self, i: usize) -> Process {
        let mut args = self.master_args(i);
        let all: Vec<String> =
            (1..=3).map(|i| format!("{}={}", self.master_name(i), self.peer(i))).collect();
        args.push(format!("--initial-cluster={}", all.join(",")));
        self.spawn(&self.dir.path().join("bin/dm-master"), &format!("m{i}"), &args)
    }

    /// A master that joins the running ones.
    pub(crate) fn join_master(&self, i: usize) -> Process {
        let mut args = self.master_args(i);
        args.push(format!("--join={},{}", self.master(1), self.master(2)));
        self.spawn(&self.dir.path().join("bin/dm-master"), &format!("m{i}"), &args)
    }

    pub(crate) fn worker_args(&self, i: usize) -> Vec<String> {
        let dir = self.dir.path().display();
        let join: Vec<String> = (1..=3).map(|i| self.master(i)).collect();
        vec![
            format!("--name={}", self.worker_name(i)),
            format!("--worker-addr={}", self.worker(i)),
            format!("--advertise-addr={}", self.worker(i)),
            format!("--log-file={dir}/w{i}.log"),
            format!("--join={}", join.join(",")),
        ]
    }

    pub(crate) fn start_worker(&self, i: usize, variant: &str) -> Process {
        let exe = self.dir.path().join(format!("bin{variant}/dm-worker"));
        self.spawn(&exe, &format!("w{i}"), &self.worker_args(i))
    }

    /// Stops a worker by name and forgets the process.
    pub(crate) fn take_worker(&mut self, name: &str) -> Process {
        let i: usize = name.trim_start_matches('w').parse().expect("w1 and so on");
        self.workers[i - 1].take().expect("it runs")
    }

    pub(crate) fn get(&self, address: &str, path: &str) -> Option<Value> {
        let answer = self.agent.get(format!("http://{address}{path}")).call().ok()?;
        serde_json::from_str(&answer.into_body().read_to_string().ok()?).ok()
    }

    pub(crate) fn text(&self, address: &str, path: &str) -> Option<String> {
        self.agent
            .get(format!("http://{address}{path}"))
            .call()
            .ok()?
            .into_body()
            .read_to_string()
            .ok()
    }

    /// The first master that runs.
    pub(crate) fn any(&self) -> String {
        let i = self.masters.iter().position(Option::is_some).expect("a master runs");
        self.master(i + 1)
    }

    pub(crate) fn put(&self, address: &str, path: &str, body: &Value) -> Value {
        let request = self
            .agent
            .put(format!("http://{address}{path}"))
            .header("content-type", "application/json");
        let answer = request
            .send(body.to_string())
            .expect("an answer")
            .into_body()
            .read_to_string()
            .expect("text");
        serde_json::from_str(&answer).expect("JSON")
    }

    pub(crate) fn post(&self, address: &str, path: &str, body: &Value) -> Value {
        let request = self.agent.post(format!("http://{address}{path}"));
        let answer = request
            .send(body.to_string())
            .expect("an answer")
            .into_body()
            .read_to_string()
            .expect("text");
        serde_json::from_str(&answer).expect("JSON")
    }

    pub(crate) fn leader_by(&self, i: usize) -> Option<String> {
        let answer = self.get(&self.master(i), "/apis/v1alpha1/members?leader=true")?;
        let name = answer.pointer("/members/0/leader/name")?.as_str()?;
        (!name.is_empty()).then(|| name.to_owned())
    }

    pub(crate) fn leader(&self) -> Option<String> {
        (1..=self.masters.len())
            .filter(|i| self.masters[i - 1].is_some())
            .find_map(|i| self.leader_by(i))
    }

    /// (name, source) of the workers in a stage.
    pub(crate) fn workers_in(&self, stage: &str) -> Vec<(String, String)> {
        let answer = self.get(&self.any(), "/apis/v1alpha1/members?worker=true");
        let workers = answer
            .and_then(|answer| answer.pointer("/members/0/worker/workers")?.as_array().cloned());
        let text =
            |worker: &Value, field: &str| worker[field].as_str().unwrap_or_default().to_owned();
        let workers = workers.unwrap_or_default();
        workers
            .iter()
            .filter(|worker| worker["stage"] == stage)
            .map(|worker| (text(worker, "name"), text(worker, "source")))
            .collect()
    }

    pub(crate) fn worker_of(&self, source: &str) -> Option<String> {
        self.workers_in("bound")
            .into_iter()
            .find(|(_, bound)| bound == source)
            .map(|(worker, _)| worker)
    }

    /// Creates src1 and src2 and the tasks t1 and t2 on them.
    pub(crate) fn start_tasks(&self) {
        self.create_sources();
        self.create_tasks();
    }

    pub(crate) fn create_sources(&self) {
        let log = self.writer.address();
        for i in 1..=2 {
            let yaml = format!(
                "source-id: src{i}\nfrom:\n  host: {}\n  port: {}\n  user: dm\n",
                log.ip(),
                log.port()
            );
            let answer = self.put(
                &self.any(),
                "/apis/v1alpha1/sources",
                &json!({ "op": 1, "config": [yaml] }),
            );
            assert_eq!(answer["result"], true, "{answer}");
        }
    }

    pub(crate) fn create_tasks(&self) {
        let sink = self.witness.address();
        for i in 1..=2 {
            let yaml = format!(
                "name: t{i}\ntask-mode: incremental\ntarget-database:\n  host: {}\n  port: {}\nmysql-instances:\n- source-id: src{i}\n  syncer-config-name: global\nsyncers:\n  global:\n    checkpoint-flush-interval: 1\n",
                sink.ip(),
                sink.port()
            );
            let answer = self.post(&self.any(), "/apis/v1alpha1/tasks", &json!({ "task": yaml }));
            assert_eq!(answer["result"], true, "{answer}");
            assert_eq!(answer["sources"][0]["result"], true, "{answer}");
        }
    }

    /// The subtask of a task.
    pub(crate) fn subtask(&self, task: &str) -> Option<Value> {
        let answer = self.get(&self.any(), &format!("/apis/v1alpha1/status/{task}"))?;
        answer.pointer("/sources/0/subTaskStatus/0").cloned()
    }

    pub(crate) fn wait_stage(&self, task: &str, stage: &str) -> Value {
        wait_until(&format!("{task} is {stage}"), || {
            self.subtask(task).filter(|subtask| subtask["stage"] == stage)
        })
    }

    pub(crate) fn operate(&self, task: &str, op: &str) -> Value {
        self.put(&self.any(), &format!("/apis/v1alpha1/tasks/{task}"), &json!({ "op": op }))
    }

    /// Waits until a source's rows have come up to those written now.
    pub(crate) fn wait_rows(&self, source: &str) {
        let written = self.writer.written(source);
        self.witness
            .wait(&self.writer, source, WITHIN, |reckoning| {
                reckoning.arrived + reckoning.lost > written
            })
            .expect("rows flow");
    }

    /// `transfer-source`, which has no REST route.
    pub(crate) fn transfer(&self, source: &str, worker: &str) -> (bool, String) {
        #[derive(Clone, PartialEq, prost::Message)]
        struct Transfer {
            #[prost(string, tag = "1")]
            source: String,
            #[prost(string, tag = "2")]
            worker: String,
        }
        #[derive(Clone, PartialEq, prost::Message)]
        struct Answer {
            #[prost(bool, tag = "1")]
            result: bool,
            #[prost(string, tag = "2")]
            msg: String,
        }
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let request = Transfer { source: source.to_owned(), worker: worker.to_owned() };
        let url = format!("http://{}", self.any());
        runtime.block_on(async move {
            let channel = tonic::transport::Endpoint::from_shared(url)
                .expect("a URL")
                .connect()
                .await
                .expect("connect");
            let mut grpc = tonic::client::Grpc::new(channel);
            grpc.ready().await.expect("ready");
            let path =
                tonic::codegen::http::uri::PathAndQuery::from_static("/pb.Master/TransferSource");
            let codec = tonic_prost::ProstCodec::<Transfer, Answer>::default();
            let answer = grpc
                .unary(tonic::Request::new(request), path, codec)
                .await
                .expect("an answer")
                .into_inner();
            (answer.result, answer.msg)
        })
    }
}
