//! A DM cluster on real hosts, deployed by `dmup` itself, with rows flowing through it.
//!
//! The beginning of most host tests and of the demo. What it says about instances
//! (which build runs, how many rows arrived) is read from outside, never from `dmup`.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use lookalike::stamp::Stamp;

use crate::dm::DmCluster;
use crate::hosts::HostSet;
use crate::operator::{Operator, Said};
use crate::packages::{Component, Layout, Packer};
use crate::real_dm::{RealDm, RealFlow};
use crate::witness::{Reckoning, Witness};
use crate::writer::RowWriter;
use crate::{Host, surroundings};

/// Name of the cluster in every scene.
pub const CLUSTER: &str = "prod";
/// Name of its task.
pub const TASK: &str = "rows";
/// Its sources.
pub const SOURCES: [&str; 2] = ["mysql-01", "mysql-02"];
/// Home of the deploy user whose own systemd runs a cluster ([`Shape::user_mode`]): not below `/home`, so that nobody guesses it.
pub const USER_MODE_HOME: &str = "/srv/people/tidb";

/// How a cluster is spread over hosts.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Version that is deployed.
    pub version: String,
    /// Hosts h1 … with one master each.
    pub masters: u8,
    /// Hosts h1 … with one worker each.
    pub workers: u8,
    /// The host with Prometheus, Grafana and Alertmanager; none: no monitoring.
    pub monitoring: Option<u8>,
    /// How fast the deployed workers apply rows; none: as fast as they can. Slow ones make a transaction last.
    pub rows_per_s: Option<u32>,
    /// `enable_tls`.
    pub tls: bool,
    /// `monitored`: exporters on every host.
    pub exporters: bool,
    /// `systemd_mode: user`, all of it below [`USER_MODE_HOME`].
    pub user_mode: bool,
}

impl Shape {
    /// Three masters and three workers on three hosts.
    pub fn three() -> Self {
        Self {
            version: "v8.1.0".to_owned(),
            masters: 3,
            workers: 3,
            monitoring: None,
            rows_per_s: None,
            tls: false,
            exporters: false,
            user_mode: false,
        }
    }

    /// As [`Shape::three`], with monitoring on a fourth host.
    pub fn with_monitoring() -> Self {
        Self { monitoring: Some(4), ..Self::three() }
    }

    /// The manual's own: everything once, on one host, DM v5.3.0.
    pub fn manual() -> Self {
        Self {
            version: "v5.3.0".to_owned(),
            masters: 1,
            workers: 1,
            monitoring: Some(1),
            rows_per_s: None,
            tls: false,
            exporters: false,
            user_mode: false,
        }
    }

    /// How many hosts it needs.
    pub fn hosts(&self) -> u8 {
        self.masters.max(self.workers).max(self.monitoring.unwrap_or(0))
    }

    fn components(&self) -> Vec<Component> {
        let mut all = vec![Component::DmMaster, Component::DmWorker];
        if self.monitoring.is_some() {
            all.extend([Component::Prometheus, Component::Grafana, Component::Alertmanager]);
        }
        if self.exporters {
            all.extend([Component::NodeExporter, Component::BlackboxExporter]);
        }
        all
    }
}

/// Something of the scene that could not be set up.
#[derive(Debug)]
pub struct SceneError(pub String);

impl fmt::Display for SceneError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SceneError {}

pub(crate) fn broken(attempted: &str) -> impl FnOnce(&dyn fmt::Display) -> SceneError + '_ {
    move |error| SceneError(format!("{attempted}: {error}"))
}

/// Rows going in and coming out.
pub struct Flow {
    /// Writes.
    pub writer: RowWriter,
    /// Counts.
    pub witness: Witness,
}

impl Flow {
    /// Begins to write rows into both sources (or the first, with one worker) and waits until they arrive. Log and sink
    /// are served on `address`, which DM must reach.
    ///
    /// # Errors
    ///
    /// What DM said.
    pub fn begin(
        dm: &DmCluster,
        address: IpAddr,
        workers: u8,
        rows_per_s: u32,
    ) -> Result<Self, SceneError> {
        let count = if workers > 1 { 2 } else { 1 };
        let sources = &SOURCES[..count];
        let rates: Vec<(&str, u32)> = sources.iter().map(|source| (*source, rows_per_s)).collect();
        let writer = RowWriter::start(SocketAddr::new(address, 0), &rates)
            .map_err(|error| broken("write rows")(&error))?;
        let witness = Witness::start(SocketAddr::new(address, 0))
            .map_err(|error| broken("count rows")(&error))?;
        let host = address.to_string();
        let patience = Duration::from_secs(60);
        dm.wait_until("all workers have joined", patience, |dm| {
            let seen = dm.workers();
            if seen.len() == usize::from(workers) { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .map_err(|error| broken("join")(&error))?;
        for source in sources {
            dm.add_source(source, &host, writer.address().port())
                .map_err(|error| broken("replicate")(&error))?;
        }
        dm.start_task(TASK, sources, &host, witness.address().port())
            .map_err(|error| broken("replicate")(&error))?;
        dm.wait_running(TASK, count, patience).map_err(|error| broken("replicate")(&error))?;
        for source in sources {
            witness
                .wait(&writer, source, patience, |it| it.arrived > 0)
                .map_err(|seen| SceneError(format!("rows of {source} do not arrive: {seen}")))?;
        }
        witness.mark();
        Ok(Self { writer, witness })
    }
}

/// Rows on their way, of whichever DM it is.
enum Rows {
    OfStandIn(Flow),
    OfRealDm(RealFlow),
}

/// A cluster and what is around it.
pub struct Scene {
    /// Rows, once [`Scene::replicate`] was called. First, so that it ends first.
    rows: Option<Rows>,
    /// The machines.
    pub hosts: HostSet,
    /// Somebody with `dmup`.
    pub operator: Operator,
    /// Makes packages into the operator's folder.
    pub packer: Packer,
    /// How the cluster is spread.
    pub shape: Shape,
    /// DM, from outside.
    pub dm: DmCluster,
    has_real_dm: bool,
    folder: tempfile::TempDir,
    /// Of executables that ran, by host and file.
    hashes: Mutex<HashMap<(String, String), String>>,
}

impl Scene {
    /// Boots hosts (taking down what an earlier run left), packs the official packages, writes the topology. Nothing is deployed.
    ///
    /// # Errors
    ///
    /// What could not be set up.
    pub fn set(name: &str, block: u8, shape: Shape) -> Result<Self, SceneError> {
        let hosts = HostSet::fresh(name, block, shape.hosts())
            .map_err(|error| broken("boot hosts")(&error))?;
        Self::on(hosts, shape)
    }

    /// The same on hosts that run already.
    ///
    /// # Errors
    ///
    /// What could not be set up.
    pub fn on(hosts: HostSet, mut shape: Shape) -> Result<Self, SceneError> {
        let dmup = program(surroundings::dmup_binary(), "LAB_DMUP")?;
        let lookalike = program(surroundings::lookalike_binary(), "LAB_LOOKALIKE")?;
        let folder = tempfile::tempdir().map_err(|error| broken("make a folder")(&error))?;
        let path = Utf8PathBuf::from_path_buf(folder.path().to_owned())
            .map_err(|path| SceneError(format!("{} is no UTF-8", path.display())))?;
        let operator = Operator::new(dmup, &path).map_err(|error| broken("sit down")(&error))?;
        let mut packer = Packer::new(&lookalike, &path.join("packages"))
            .map_err(|error| broken("make packages")(&error))?;
        let mut official = Packer::new(&lookalike, &operator.packages())
            .map_err(|error| broken("make packages")(&error))?;
        let packages = surroundings::dm_packages();
        let has_real_dm = packages.is_some();
        if let Some((package, hotfix)) = packages {
            let real = RealDm::unpack(&package, &path.join("real"))?;
            shape.version.clone_from(&real.version);
            official = official.with_real_dm(real);
            packer = packer.with_real_dm(RealDm::unpack(&hotfix, &path.join("real-hotfix"))?);
        }
        let mut stamp = Stamp::new(&shape.version, &"1".repeat(40));
        stamp.rules.rows_per_s = shape.rows_per_s;
        for component in shape.components() {
            official
                .package(component, &stamp)
                .map_err(|error| broken("make an official package")(&error))?;
        }
        let masters = hosts.hosts()[..usize::from(shape.masters)]
            .iter()
            .map(|host| format!("{}:8261", host.address))
            .collect::<Vec<_>>();
        let mut dm = DmCluster::new(masters);
        if shape.tls {
            dm = dm.over_tls(operator.certificates(CLUSTER));
        }
        let hashes = Mutex::default();
        let scene =
            Self { rows: None, has_real_dm, dm, hosts, operator, packer, shape, folder, hashes };
        fs_err::write(scene.topology(), scene.topology_text())
            .map_err(|error| broken("write the topology")(&error))?;
        Ok(scene)
    }

    /// Deploys and starts.
    ///
    /// # Errors
    ///
    /// What `dmup` said.
    pub fn deploy(&self) -> Result<(), SceneError> {
        good(self.deploy_as("root"))?;
        good(self.operator.run(&["start", CLUSTER]))
    }

    /// Deploys, logged in as that user.
    pub fn deploy_as(&self, user: &str) -> Said {
        let (key, topology) = (self.hosts.key_path(), self.topology());
        let words = ["deploy", CLUSTER, &self.shape.version, topology.as_str(), "-u", user, "-i"];
        let rest = [key.as_str(), "--accept-new-host-keys", "--yes"];
        self.operator.run(&[&words[..], &rest].concat())
    }

    /// The command line that asks whichever systemd runs the cluster's services on a host.
    pub fn systemctl<'w>(&self, words: &[&'w str]) -> Vec<&'w str> {
        // The first user that a host makes has this number.
        let of_user = ["runuser", "-u", "tidb", "--", "env", "XDG_RUNTIME_DIR=/run/user/1000"];
        match self.shape.user_mode {
            false => [&["systemctl"], words].concat(),
            true => [&of_user[..], &["systemctl", "--user"], words].concat(),
        }
    }

    /// Begins to write rows into both sources (or the first, with one worker) and waits until they arrive.
    ///
    /// # Errors
    ///
    /// What DM said.
    pub fn replicate(&mut self, rows_per_s: u32) -> Result<(), SceneError> {
        let address = self.hosts.gateway().into();
        if self.has_real_dm {
            let folder = Utf8Path::from_path(self.folder.path())
                .ok_or_else(|| SceneError("the folder of the scene is no UTF-8".to_owned()))?;
            let workers = self.shape.workers;
            let flow = RealFlow::begin(&self.dm, address, workers, rows_per_s, folder)?;
            self.rows = Some(Rows::OfRealDm(flow));
        } else {
            let flow = Flow::begin(&self.dm, address, self.shape.workers, rows_per_s)?;
            self.rows = Some(Rows::OfStandIn(flow));
        }
        Ok(())
    }

    /// The rows of the stand-in, which can be watched one by one; none with a real DM.
    pub fn flow(&self) -> Option<&Flow> {
        match &self.rows {
            Some(Rows::OfStandIn(flow)) => Some(flow),
            Some(Rows::OfRealDm(_)) | None => None,
        }
    }

    /// How many sources rows come from.
    pub fn source_count(&self) -> usize {
        match &self.rows {
            Some(Rows::OfStandIn(flow)) => flow.writer.sources().len(),
            Some(Rows::OfRealDm(flow)) => flow.source_count(),
            None => 0,
        }
    }

    /// Forgets gaps so far, to measure what comes now.
    pub fn mark_rows(&self) {
        match &self.rows {
            Some(Rows::OfStandIn(flow)) => flow.witness.mark(),
            Some(Rows::OfRealDm(flow)) => flow.mark(),
            None => {}
        }
    }

    /// Writes so many rows into a source as one transaction.
    ///
    /// # Errors
    ///
    /// A source that takes none.
    pub fn write_transaction(&self, source: &str, rows: u64) -> Result<(), SceneError> {
        match &self.rows {
            Some(Rows::OfStandIn(flow)) => {
                flow.writer.write_transaction(source, rows);
                Ok(())
            }
            Some(Rows::OfRealDm(flow)) => flow.write_transaction(source, rows),
            None => Ok(()),
        }
    }

    /// Stops writing, waits until everything has arrived, and goes on at that rate. A reckoning per source, whole or not.
    ///
    /// # Errors
    ///
    /// Databases that do not answer.
    pub fn settle_rows(
        &self,
        rows_per_s: u32,
        within: Duration,
    ) -> Result<BTreeMap<String, Reckoning>, SceneError> {
        let flow = match &self.rows {
            Some(Rows::OfStandIn(flow)) => flow,
            Some(Rows::OfRealDm(flow)) => return flow.settle(within),
            None => return Err(SceneError("no rows flow".to_owned())),
        };
        let seen = flow.witness.settle(&flow.writer, within);
        for source in flow.writer.sources() {
            flow.writer.set_rate(&source, rows_per_s);
        }
        Ok(seen)
    }

    /// As [`Scene::settle_rows`], all sources as one: counts added up, the longest gap of all.
    ///
    /// # Errors
    ///
    /// As [`Scene::settle_rows`].
    pub fn count_rows(&self, rows_per_s: u32, within: Duration) -> Result<Reckoning, SceneError> {
        let by_source = self.settle_rows(rows_per_s, within)?;
        Ok(by_source.values().fold(Reckoning::default(), |sum, it| Reckoning {
            written: sum.written + it.written,
            arrived: sum.arrived + it.arrived,
            lost: sum.lost + it.lost,
            doubled: sum.doubled + it.doubled,
            longest_gap: sum.longest_gap.max(it.longest_gap),
            writer_changes: sum.writer_changes + it.writer_changes,
        }))
    }

    /// Deployed, started, replicating.
    ///
    /// # Errors
    ///
    /// What could not be set up.
    pub fn running(
        name: &str,
        block: u8,
        shape: Shape,
        rows_per_s: u32,
    ) -> Result<Self, SceneError> {
        let mut scene = Self::set(name, block, shape)?;
        scene.deploy()?;
        scene.replicate(rows_per_s)?;
        Ok(scene)
    }

    /// Ends the rows; what is left are the hosts.
    pub fn into_hosts(self) -> HostSet {
        let Self { rows, hosts, .. } = self;
        drop(rows);
        hosts
    }

    /// A hotfix for masters and workers, made as in the manual.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn hotfix(&self, name: &str, stamp: &Stamp) -> Result<Utf8PathBuf, SceneError> {
        self.packer
            .hotfix(name, &[Component::DmMaster, Component::DmWorker], stamp, Layout::TopFolder)
            .map_err(|error| broken("make a hotfix")(&error))
    }

    /// A stamp of a hotfix of the deployed version.
    pub fn fixed(&self) -> Stamp {
        Stamp::new(&format!("{}-hotfix", self.shape.version), &"2".repeat(40))
    }

    /// Runs `dmup` on the cluster.
    pub fn dmup(&self, words: &[&str]) -> Said {
        self.operator.run(words)
    }

    /// SHA-256 of the executable that a service's process runs, read on the host; none without a process.
    pub fn running_hash(&self, host: &Host, unit: &str) -> Option<String> {
        let shown = self.systemctl(&["show", "-p", "MainPID", "--value", unit]);
        let pid = host.must_run(&shown).ok()?;
        let pid = pid.trim().to_owned();
        if pid == "0" {
            return None;
        }
        let exe = format!("/proc/{pid}/exe");
        // Tests ask many times, and hashing was a fifth of what they all cost. Which file it is, is told by what a change of it changes.
        let which = || host.must_run(&["stat", "-L", "-c", "%d %i %s %y %z", &exe]).ok();
        let file = (host.name.clone(), which()?);
        let hashes = || self.hashes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = hashes().get(&file) {
            return Some(known.clone());
        }
        let sum = host.must_run(&["sha256sum", &exe]).ok()?;
        let hash = sum.split_whitespace().next()?.to_owned();
        // A run script may have become DM in between, under the same number.
        if which().as_ref() == Some(&file.1) {
            hashes().insert(file, hash.clone());
        }
        Some(hash)
    }

    /// Hash of every DM process: `h1 dm-master-8261.service` → SHA-256 or `down`.
    pub fn running_hashes(&self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        for (unit, count) in [
            ("dm-master-8261.service", self.shape.masters),
            ("dm-worker-8262.service", self.shape.workers),
        ] {
            for host in &self.hosts.hosts()[..usize::from(count)] {
                let hash = self.running_hash(host, unit).unwrap_or_else(|| "down".to_owned());
                all.push((format!("{} {unit}", host.name), hash));
            }
        }
        all
    }

    /// Where the topology lies.
    pub fn topology(&self) -> Utf8PathBuf {
        self.operator.folder().join("topology.yaml")
    }

    fn topology_text(&self) -> String {
        let mut text = "global:\n  user: tidb\n  deploy_dir: /home/tidb/deploy\n".to_owned();
        if self.shape.version == "v5.3.0" {
            "global:\n  user: tidb\n  deploy_dir: /home/tidb/dm/deploy\n  data_dir: /home/tidb/dm/data\n"
                .clone_into(&mut text);
        }
        if self.shape.tls {
            text.push_str("  enable_tls: true\n");
        }
        if self.shape.user_mode {
            text = text.replace("/home/tidb", USER_MODE_HOME) + "  systemd_mode: user\n";
        }
        if self.shape.exporters {
            text.push_str("monitored:\n  node_exporter_port: 9100\n");
        }
        let mut section = |name: &str, hosts: &[Host]| {
            text.push_str(&format!("{name}:\n"));
            for host in hosts {
                text.push_str(&format!("  - host: {}\n", host.address));
            }
        };
        let hosts = self.hosts.hosts();
        section("master_servers", &hosts[..usize::from(self.shape.masters)]);
        section("worker_servers", &hosts[..usize::from(self.shape.workers)]);
        if let Some(number) = self.shape.monitoring {
            let host = &hosts[usize::from(number) - 1..usize::from(number)];
            section("monitoring_servers", host);
            section("grafana_servers", host);
            section("alertmanager_servers", host);
        }
        text
    }
}

pub(crate) fn program(
    path: Option<Utf8PathBuf>,
    variable: &str,
) -> Result<Utf8PathBuf, SceneError> {
    path.ok_or_else(|| {
        SceneError(format!("{variable} does not say where the program is; `cargo xtask` sets it"))
    })
}

pub(crate) fn good(said: Said) -> Result<(), SceneError> {
    if said.code == 0 { Ok(()) } else { Err(SceneError(said.to_string())) }
}
