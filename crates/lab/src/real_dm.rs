//! A real DM instead of the stand-in, when [`surroundings::DM_PACKAGE`](crate::surroundings) names a package with its programs.
//!
//! In: an archive with `dm-master` and `dm-worker` in it, however they are laid out. A hotfix of it is the same programs with a few
//! bytes behind their end, so that one package is enough: another hash, the same behaviour. Around it: MariaDB from Debian as two
//! sources and one target, rows written with its client, and tables compared by count and checksum.
//!
//! Facts: DM v8.1.0 (task and source configuration, `flavor: mariadb`; an incremental task needs `meta`), MariaDB 10.11 (`--init-file`,
//! the `seq_1_to_N` tables).

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use crate::command;
use crate::debian::{self, Package};
use crate::dm::DmCluster;
use crate::scene::{SOURCES, SceneError, TASK, broken};
use crate::waiting::wait_for;
use crate::witness::Reckoning;

/// What this needs from Debian, on top of everything else.
const NEEDED: &[Package] = &[
    Package { name: "mariadb-server", needed_for: "sources and target of a real DM" },
    Package { name: "mariadb-client", needed_for: "writing rows for a real DM" },
];
const PATIENCE: Duration = Duration::from_secs(90);
/// The witness looks that often; a gap is known only as well as that.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The programs of a real DM.
#[derive(Clone, Debug)]
pub struct RealDm {
    /// What it calls itself: `v8.1.0`.
    pub version: String,
    /// Path of `dm-master`.
    pub master: Utf8PathBuf,
    /// Path of `dm-worker`.
    pub worker: Utf8PathBuf,
}

impl RealDm {
    /// Unpacks a package below a folder, and asks its `dm-master` for its version.
    ///
    /// # Errors
    ///
    /// A package that `tar` does not read, or that lacks one of the programs.
    pub fn unpack(package: &Utf8Path, folder: &Utf8Path) -> Result<Self, SceneError> {
        fs::create_dir_all(folder).map_err(|error| broken("make a folder")(&error))?;
        command::run("tar", &["-xf", package.as_str(), "-C", folder.as_str()])
            .map_err(|error| broken("unpack the package of a real DM")(&error))?;
        let (master, worker) =
            (find(folder, "dm-master", package)?, find(folder, "dm-worker", package)?);
        let said = command::run(master.as_str(), &["-V"])
            .map_err(|error| broken("ask a real DM for its version")(&error))?;
        let version = said
            .lines()
            .find_map(|line| line.strip_prefix("Release Version:"))
            .map(|version| version.trim().to_owned())
            .ok_or_else(|| SceneError(format!("`{master} -V` names no release: {said}")))?;
        Ok(Self { version, master, worker })
    }
}

fn find(folder: &Utf8Path, name: &str, package: &Utf8Path) -> Result<Utf8PathBuf, SceneError> {
    let found = command::run("find", &[folder.as_str(), "-type", "f", "-name", name])
        .map_err(|error| broken("look into the package of a real DM")(&error))?;
    let first = found.lines().next().map(Utf8PathBuf::from);
    first.ok_or_else(|| SceneError(format!("{package} has no {name} in it")))
}

/// Rows of a real DM: written into two sources, compared with the target.
pub struct RealFlow {
    sources: BTreeMap<String, Arc<Source>>,
    target: Database,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// One source under way.
struct Source {
    database: Database,
    /// Name of its schema, here and in the target.
    schema: String,
    client: Mutex<Client>,
    rows_per_s: AtomicU32,
    /// The longest time without a new row in the target, in milliseconds; and the marks so far.
    gap_ms: AtomicU64,
    marks: AtomicU32,
}

impl RealFlow {
    /// Starts the databases on an address that DM reaches, makes sources and a task of them, begins to write, and waits until rows arrive.
    ///
    /// # Errors
    ///
    /// What a database or DM said.
    pub fn begin(
        dm: &DmCluster,
        address: IpAddr,
        workers: u8,
        rows_per_s: u32,
        folder: &Utf8Path,
    ) -> Result<Self, SceneError> {
        debian::install_missing(NEEDED, |_| ())
            .map_err(|error| broken("install MariaDB")(&error))?;
        let target = Database::start(&folder.join("target"), address, 1)?;
        dm.wait_until("all workers have joined", PATIENCE, |dm| {
            let seen = dm.workers();
            if seen.len() == usize::from(workers) { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .map_err(|error| broken("join")(&error))?;
        let count = if workers > 1 { 2 } else { 1 };
        let mut sources = BTreeMap::new();
        let mut instances = String::new();
        for (number, name) in (2..).zip(&SOURCES[..count]) {
            let database = Database::start(&folder.join(name), address, number)?;
            let schema = name.replace('-', "_");
            let position = database.ask("SHOW MASTER STATUS")?;
            let mut fields = position.split('\t');
            let (Some(file), Some(offset)) = (fields.next(), fields.next()) else {
                return Err(SceneError(format!("{name} has no log position: {position:?}")));
            };
            database.ask(&format!(
                "CREATE DATABASE {schema}; CREATE TABLE {schema}.t (id BIGINT PRIMARY KEY AUTO_INCREMENT, v VARCHAR(64) NOT NULL)"
            ))?;
            let (host, port) = (database.address.ip(), database.address.port());
            dm.add_configured_source(
                name,
                &format!(
                    "source-id: {name}\nflavor: mariadb\nenable-gtid: false\nfrom:\n  host: {host}\n  port: {port}\n  user: root\n  password: \"\"\n"
                ),
            )
            .map_err(|error| broken("replicate")(&error))?;
            instances.push_str(&format!(
                "  - source-id: {name}\n    meta:\n      binlog-name: {file}\n      binlog-pos: {offset}\n    syncer-config-name: global\n"
            ));
            let client = Mutex::new(Client::start(&database)?);
            let source = Source {
                database,
                schema,
                client,
                rows_per_s: AtomicU32::new(rows_per_s),
                gap_ms: AtomicU64::new(0),
                marks: AtomicU32::new(0),
            };
            sources.insert((*name).to_owned(), Arc::new(source));
        }
        let (host, port) = (target.address.ip(), target.address.port());
        let task = format!(
            "name: {TASK}\ntask-mode: incremental\nignore-checking-items: [\"all\"]\ntarget-database:\n  host: {host}\n  port: {port}\n  user: root\n  password: \"\"\nmysql-instances:\n{instances}syncers:\n  global:\n    worker-count: 4\n"
        );
        dm.start_configured_task(TASK, &task).map_err(|error| broken("replicate")(&error))?;
        dm.wait_running(TASK, count, PATIENCE).map_err(|error| broken("replicate")(&error))?;
        let ended = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for source in sources.values() {
            let (writing, until) = (Arc::clone(source), Arc::clone(&ended));
            threads.push(thread::spawn(move || writing.write_rows(&until)));
            let (watched, until) = (Arc::clone(source), Arc::clone(&ended));
            let target = target.address;
            threads.push(thread::spawn(move || watched.watch(target, &until)));
        }
        let flow = Self { sources, target, ended, threads };
        for (name, source) in &flow.sources {
            wait_for(PATIENCE, || flow.arrived(source).ok().filter(|it| it.0 > 0))
                .ok_or_else(|| SceneError(format!("rows of {name} do not arrive")))?;
        }
        flow.mark();
        Ok(flow)
    }

    /// How many sources there are.
    pub fn source_count(&self) -> usize {
        self.sources.len()
    }

    /// Forgets the gaps so far.
    pub fn mark(&self) {
        for source in self.sources.values() {
            source.gap_ms.store(0, Ordering::SeqCst);
            source.marks.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Writes so many rows into a source as one transaction.
    ///
    /// # Errors
    ///
    /// A client that has ended.
    pub fn write_transaction(&self, source: &str, rows: u64) -> Result<(), SceneError> {
        let source =
            self.sources.get(source).ok_or_else(|| SceneError(format!("no source {source}")))?;
        source.type_in(&format!(
            "USE {};\nINSERT INTO t (v) SELECT CONCAT('large ', seq) FROM seq_1_to_{rows};\n",
            source.schema
        ))
    }

    /// Stops writing, waits until each target table is as its source table, and goes on at the former rate. A row that differs counts as lost.
    ///
    /// # Errors
    ///
    /// A database that does not answer.
    pub fn settle(&self, within: Duration) -> Result<BTreeMap<String, Reckoning>, SceneError> {
        let mut all = BTreeMap::new();
        for (name, source) in &self.sources {
            let rate = source.rows_per_s.swap(0, Ordering::SeqCst);
            // What was typed before this has been carried out when this is answered by another client: wait for a row of our own.
            let mark = format!("settled {:?}", Instant::now());
            source.type_in(&format!("INSERT INTO {}.t (v) VALUES ('{mark}');\n", source.schema))?;
            let own = format!("SELECT COUNT(*) FROM {}.t WHERE v = '{mark}'", source.schema);
            wait_for(within, || source.database.ask(&own).ok().filter(|count| count == "1"))
                .ok_or_else(|| SceneError(format!("{name} does not take rows any more")))?;
            let written = source.database.table(&source.schema)?;
            wait_for(within, || self.arrived(source).ok().filter(|arrived| *arrived == written));
            let arrived = self.arrived(source)?;
            let differs = u64::from(arrived.0 == written.0 && arrived.1 != written.1);
            all.insert(
                name.clone(),
                Reckoning {
                    written: written.0,
                    arrived: arrived.0,
                    lost: written.0.saturating_sub(arrived.0).max(differs),
                    doubled: arrived.0.saturating_sub(written.0),
                    longest_gap: Duration::from_millis(source.gap_ms.load(Ordering::SeqCst)),
                    writer_changes: 0,
                },
            );
            source.rows_per_s.store(rate, Ordering::SeqCst);
        }
        Ok(all)
    }

    fn arrived(&self, source: &Source) -> Result<(u64, String), SceneError> {
        self.target.table(&source.schema)
    }
}

impl Drop for RealFlow {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so on stderr.
            drop(thread.join());
        }
    }
}

impl Source {
    fn type_in(&self, text: &str) -> Result<(), SceneError> {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        client.stdin.write_all(text.as_bytes()).map_err(|error| broken("write rows")(&error))
    }

    fn write_rows(&self, ended: &AtomicBool) {
        let mut number: u64 = 0;
        while !ended.load(Ordering::SeqCst) {
            let rate = self.rows_per_s.load(Ordering::SeqCst);
            if rate > 0 {
                number += 1;
                let text = format!("INSERT INTO {}.t (v) VALUES ('row {number}');\n", self.schema);
                // A client that has ended shows as rows that are not taken, when they are counted.
                drop(self.type_in(&text));
            }
            thread::sleep(Duration::from_secs(1) / rate.max(10));
        }
    }

    /// Measures how long no new row comes while rows are written.
    fn watch(&self, target: SocketAddr, ended: &AtomicBool) {
        let newest = format!("SELECT COALESCE(MAX(id), 0) FROM {}.t", self.schema);
        let (mut last, mut since, mut marks) = (String::new(), Instant::now(), 0);
        while !ended.load(Ordering::SeqCst) {
            let now = ask(target, &newest).unwrap_or_default();
            let is_marked = marks != self.marks.load(Ordering::SeqCst);
            if now != last || is_marked || self.rows_per_s.load(Ordering::SeqCst) == 0 {
                (last, since) = (now, Instant::now());
                marks = self.marks.load(Ordering::SeqCst);
            }
            let gap = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.gap_ms.fetch_max(gap, Ordering::SeqCst);
            thread::sleep(LOOK_EVERY);
        }
    }
}

/// A client that carries out what is written to it, statement by statement.
struct Client {
    stdin: ChildStdin,
    child: Child,
}

impl Client {
    fn start(database: &Database) -> Result<Self, SceneError> {
        let mut child = client(database.address)
            .arg("--force")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| broken("start `mariadb`")(&error))?;
        let stdin = child.stdin.take().expect("its standard input is a pipe");
        Ok(Self { stdin, child })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It has ended already if this says so.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A MariaDB server that ends with us.
struct Database {
    address: SocketAddr,
    server: Child,
}

impl Database {
    fn start(folder: &Utf8Path, address: IpAddr, server_id: u32) -> Result<Self, SceneError> {
        let attempted = |error: &dyn std::fmt::Display| broken("start MariaDB")(error);
        fs::create_dir_all(folder).map_err(|error| attempted(&error))?;
        let data = folder.join("data");
        command::run(
            "mariadb-install-db",
            &[
                "--no-defaults",
                "--user=root",
                "--skip-test-db",
                "--auth-root-authentication-method=normal",
                &format!("--datadir={data}"),
            ],
        )
        .map_err(|error| attempted(&error))?;
        let init = folder.join("init.sql");
        fs::write(
            &init,
            // One statement a line.
            "CREATE USER root@'%';\nGRANT ALL ON *.* TO root@'%' WITH GRANT OPTION;\n",
        )
        .map_err(|error| attempted(&error))?;
        // Free a moment ago: nobody else takes ports of this bridge.
        let address = TcpListener::bind((address, 0))
            .and_then(|listener| listener.local_addr())
            .map_err(|error| attempted(&error))?;
        let log = fs::File::create(folder.join("log")).map_err(|error| attempted(&error))?;
        // So that no server is left when we are killed.
        let server = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "mariadbd", "--no-defaults", "--user=root"])
            .arg(format!("--datadir={data}"))
            .arg(format!("--socket={folder}/socket"))
            .arg(format!("--bind-address={}", address.ip()))
            .arg(format!("--port={}", address.port()))
            .arg(format!("--server-id={server_id}"))
            .arg(format!("--init-file={init}"))
            .args(["--log-bin=log", "--binlog-format=ROW", "--skip-name-resolve"])
            .args(["--character-set-server=utf8mb4", "--collation-server=utf8mb4_bin"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.into_file())
            .spawn()
            .map_err(|error| attempted(&error))?;
        let database = Self { address, server };
        match wait_for(PATIENCE, || database.ask("SELECT 1").ok()) {
            Some(_) => Ok(database),
            None => Err(SceneError(format!(
                "MariaDB does not answer; the end of its log: {}",
                fs::read_to_string(folder.join("log"))
                    .unwrap_or_default()
                    .lines()
                    .rev()
                    .take(5)
                    .collect::<Vec<_>>()
                    .join(" | ")
            ))),
        }
    }

    /// Number of rows and sum of their checksums.
    fn table(&self, schema: &str) -> Result<(u64, String), SceneError> {
        let said = self.ask(&format!(
            "SELECT COUNT(*), COALESCE(SUM(CRC32(CONCAT(id, ' ', v))), 0) FROM {schema}.t"
        ))?;
        let (count, sum) = said.split_once('\t').unwrap_or((&said, ""));
        let count = count
            .parse()
            .map_err(|_| SceneError(format!("count the rows of {schema}: {said:?}")))?;
        Ok((count, sum.to_owned()))
    }

    fn ask(&self, statement: &str) -> Result<String, SceneError> {
        ask(self.address, statement)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // Its data is thrown away: it need not end in order. It has ended already if this says so.
        drop(self.server.kill());
        drop(self.server.wait());
    }
}

/// First line of the answer, fields parted by tabs.
fn ask(address: SocketAddr, statement: &str) -> Result<String, SceneError> {
    let said = command::finish(client(address).args(["--execute", statement]))
        .map_err(|error| SceneError(error.to_string()))?;
    Ok(said.lines().next().unwrap_or_default().to_owned())
}

fn client(address: SocketAddr) -> Command {
    let mut client = Command::new("mariadb");
    client
        .args(["--no-defaults", "--user=root", "--batch", "--skip-column-names", "--protocol=tcp"])
        .arg(format!("--host={}", address.ip()))
        .arg(format!("--port={}", address.port()));
    client
}
