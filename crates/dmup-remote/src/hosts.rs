//! The port [`Hosts`] over a [`Fleet`], and where things of ours lie on hosts.

use std::time::Duration;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::config_check::ConfigTool;
use dmup_core::ids::{ClusterName, HostId, InstanceId};
use dmup_core::instance::{Instance, Role};
use dmup_core::inventory::{HostSeen, ProcessSeen};
use dmup_core::texts::Text;
use dmup_exec::ports::{
    Around, Build, Certainty, CheckOrder, Checked, EffectError, GuardOrder, Hosts, Parcel, Tree,
    Window, WindowOrder,
};
use dmup_wire::message::{
    Check, Guard, Leave, Outcome, Prepare, Probe, ProbeInstance, PutFile, Request, Stage, Switch,
};

use crate::fleet::{Fleet, certainty_of, time_to_send, unfitting};

/// Below a home folder, everything of ours: `agent/`, `store/`.
const OUR_FOLDER: &str = ".dmup";

/// `<deploy_dir>/bin.dmup`: the tree that a window exchanges for `bin`; after it, the tree to go back to.
/// Beside `bin`, so that both are on one file system and one flush of the folder covers both.
pub fn staged_tree(instance: &Instance) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("{}.dmup", instance.tree()))
}

/// The executable in such a tree.
fn in_tree(instance: &Instance) -> Utf8PathBuf {
    instance.in_tree(instance.role.binary().into()).to_owned()
}

/// `<home of the deploy user>/.dmup/store`: one folder per parcel, named by its digest.
pub fn store(home: &Utf8Path) -> Utf8PathBuf {
    home.join(OUR_FOLDER).join("store")
}

/// Arguments that make a role's executable print its version and end.
pub fn version_arguments(role: Role) -> Vec<String> {
    let argument = match role {
        Role::DmMaster | Role::DmWorker => "-V",
        Role::Prometheus | Role::Alertmanager | Role::NodeExporter | Role::BlackboxExporter => {
            "--version"
        }
        Role::Grafana => "-v",
    };
    vec![argument.to_owned()]
}

/// Copying a tree of some hundred megabytes, hashing it, running it once.
const PREPARING: Duration = Duration::from_secs(300);
/// The agent gives the program a minute.
const CHECKING: Duration = Duration::from_secs(120);
/// Hashing before the stop, systemd's own 90 s after it (dm.md 12: a stop of 90 s was seen), the start.
const AROUND_A_WINDOW: Duration = Duration::from_secs(300);
/// Writing a unit pair and reloading systemd.
const ARMING: Duration = Duration::from_secs(60);
/// Removing what staged packages are left.
const LEAVING: Duration = Duration::from_secs(60);
/// Lines of a unit's journal in evidence, and of each log file.
const EVIDENCE_LINES: usize = 60;

#[async_trait]
impl Hosts for Fleet {
    async fn still_ours(&self) -> Result<(), EffectError> {
        self.confirm_lease().await
    }

    async fn look(
        &self,
        host: &HostId,
        instances: &[Instance],
        hashes: bool,
    ) -> Result<(HostSeen, Vec<(InstanceId, ProcessSeen)>), EffectError> {
        let hello = self.hello(host).await.map_err(|error| EffectError {
            attempted: "look at the host".to_owned(),
            place: host.as_str().to_owned(),
            observed: error.to_string(),
            certainty: certainty_of(&error),
        })?;
        let mut disks: Vec<Utf8PathBuf> = instances.iter().map(|i| i.deploy_dir.clone()).collect();
        disks.dedup();
        let probe = Probe {
            instances: instances.iter().map(probe_instance).collect(),
            hashes,
            disks,
            ..Probe::default()
        };
        let asked_at_ms = now_ms();
        let probed = self.probe(host, probe).await?;
        let seen = HostSeen {
            machine_id: hello.machine_id,
            boot_id: hello.boot_id,
            // The probe says when it began: half a round trip after it was asked, which is what the number is good for.
            clock_skew_ms: probed.clock_ms - asked_at_ms,
            arch: hello.arch,
            free_bytes: probed.disks.into_iter().map(|it| (it.path, it.free_bytes)).collect(),
            leftovers: probed.leftovers,
        };
        Ok((seen, probed.processes))
    }

    async fn stage(&self, host: &HostId, parcel: &Parcel) -> Result<u64, EffectError> {
        let attempted = format!("stage the package {}", parcel.digest);
        let home = self.home(host, &attempted).await?;
        let request = Request::Stage(Stage {
            digest: parcel.digest.clone(),
            compressed_bytes: parcel.compressed_bytes,
            unpacked_bytes: parcel.unpacked_bytes,
            store: store(&home),
        });
        let within = time_to_send(parcel);
        let (outcome, sent) =
            self.request_with_parcel(host, &attempted, &request, &parcel.path, within).await?;
        let Outcome::Staged { .. } = outcome else { return Err(unfitting(&attempted, host)) };
        Ok(sent)
    }

    async fn prepare(
        &self,
        instance: &Instance,
        parcel: &Parcel,
        build: &Build,
    ) -> Result<Option<String>, EffectError> {
        let host = &instance.host;
        let attempted = format!("prepare the new tree of {}", instance.id);
        let home = self.home(host, &attempted).await?;
        let request = Request::Prepare(Prepare {
            instance: instance.id.clone(),
            live: instance.tree(),
            staged: staged_tree(instance),
            from: store(&home).join(parcel.digest.as_str()),
            replace: build.replace.clone(),
            binary: in_tree(instance),
            digest: build.digest.clone(),
            version_arguments: Some(version_arguments(instance.role)),
            keeps: build.keeps.clone(),
        });
        let outcome = self.request(host, &attempted, &request, PREPARING).await?;
        let Outcome::Prepared { version } = outcome else {
            return Err(unfitting(&attempted, host));
        };
        Ok(version)
    }

    async fn check(&self, instance: &Instance, order: &CheckOrder) -> Result<Checked, EffectError> {
        let CheckOrder { tool, tree, texts } = order;
        let host = &instance.host;
        let attempted = format!("check the new configuration of {}", instance.id);
        let bin = match tree {
            Tree::Live => instance.bin_dir(),
            Tree::Staged => staged_tree(instance),
        };
        let read = texts.0.iter().filter(|text| tool.reads(instance, &text.path));
        let request = Request::Check(Check {
            instance: instance.id.clone(),
            folder: ConfigTool::folder(instance),
            files: read.cloned().map(put_file).collect(),
            program: bin.join(tool.below_bin()),
            arguments: tool.arguments().iter().map(|&it| it.to_owned()).collect(),
        });
        let outcome = self.request(host, &attempted, &request, CHECKING).await?;
        let Outcome::Checked { judged } = outcome else { return Err(unfitting(&attempted, host)) };
        Ok(if judged { Checked::Fine } else { Checked::Unjudged })
    }

    async fn switch(
        &self,
        instance: &Instance,
        order: &WindowOrder,
    ) -> Result<Window, EffectError> {
        let WindowOrder { from, to, around, stop_within, guard, pid_before, texts } = order;
        let attempted = if from == to {
            format!("restart {}", instance.id)
        } else {
            format!("switch {} to {to}", instance.id)
        };
        let (restart, even_if_running) = match around {
            Around::Restart => (true, false),
            Around::Offline => (false, false),
            Around::OfflineEvenIfRunning => (false, true),
        };
        let request = Request::Switch(Switch {
            instance: instance.id.clone(),
            unit: instance.unit.clone(),
            live: instance.tree(),
            staged: staged_tree(instance),
            binary: in_tree(instance),
            from: from.clone(),
            to: to.clone(),
            pid_before: *pid_before,
            texts: texts.0.iter().cloned().map(put_file).collect(),
            restart,
            even_if_running,
            stop_within_ms: u64::try_from(stop_within.as_millis()).unwrap_or(u64::MAX),
            guard_s: guard.map(|span| u32::try_from(span.as_secs()).unwrap_or(u32::MAX)),
        });
        let within = *stop_within + AROUND_A_WINDOW;
        let outcome = self.request(&instance.host, &attempted, &request, within).await?;
        let Outcome::Switched(done) = outcome else {
            return Err(unfitting(&attempted, &instance.host));
        };
        Ok(Window {
            already: done.already,
            stop: Duration::from_millis(done.stop_ms),
            exchange: Duration::from_micros(done.exchange_us),
            start: Duration::from_millis(done.start_ms),
            total: Duration::from_millis(done.total_ms),
            killed: done.killed,
        })
    }

    async fn arm_guard(&self, instance: &Instance, order: &GuardOrder) -> Result<(), EffectError> {
        let GuardOrder { from, to, texts, after } = order;
        let attempted = format!("arm the guard of {}", instance.id);
        let request = Request::ArmGuard(Guard {
            instance: instance.id.clone(),
            unit: instance.unit.clone(),
            live: instance.tree(),
            staged: staged_tree(instance),
            binary: in_tree(instance),
            from: from.clone(),
            to: to.clone(),
            texts: texts.0.iter().cloned().map(put_file).collect(),
            after_s: u32::try_from(after.as_secs()).unwrap_or(u32::MAX),
        });
        self.done(&instance.host, &attempted, request, ARMING).await
    }

    async fn renew_guard(&self, instance: &Instance, after: Duration) -> Result<(), EffectError> {
        let attempted = format!("put the guard of {} off", instance.id);
        let request = Request::RenewGuard {
            instance: instance.id.clone(),
            after_s: u32::try_from(after.as_secs()).unwrap_or(u32::MAX),
        };
        self.done(&instance.host, &attempted, request, ARMING).await
    }

    async fn disarm_guard(&self, instance: &Instance) -> Result<(), EffectError> {
        let attempted = format!("disarm the guard of {}", instance.id);
        // The point of the guard: whoever confirms must have been able to come in after the window.
        self.reconnect(&instance.host).await.map_err(|error| EffectError {
            attempted: attempted.clone(),
            place: instance.host.as_str().to_owned(),
            observed: error.to_string(),
            certainty: certainty_of(&error),
        })?;
        let request = Request::DisarmGuard { instance: instance.id.clone() };
        self.done(&instance.host, &attempted, request, ARMING).await
    }

    async fn evidence(&self, instance: &Instance) -> Result<Vec<String>, EffectError> {
        self.last_words(instance, EVIDENCE_LINES).await
    }
}

impl Fleet {
    /// How the instance's process ended, and the last lines of its unit's journal and of each log file.
    ///
    /// # Errors
    ///
    /// [`EffectError`].
    pub async fn last_words(
        &self,
        instance: &Instance,
        most: usize,
    ) -> Result<Vec<String>, EffectError> {
        let attempted = format!("read the logs of {}", instance.id);
        let lines = u32::try_from(most).unwrap_or(u32::MAX);
        let request = Request::JournalTail { unit: instance.unit.clone(), lines };
        let mut evidence = Vec::new();
        let outcome = self.request(&instance.host, &attempted, &request, ARMING).await?;
        let Outcome::Journal { lines, ended } = outcome else {
            return Err(unfitting(&attempted, &instance.host));
        };
        evidence.extend(ended.map(|how| format!("{}: {how}", instance.unit)));
        evidence.extend(lines);
        for file in log_files(instance) {
            match self.get(&instance.host, &file).await {
                Ok(Some(text)) => evidence.extend(tail(&file, &text, most)),
                Ok(None) => {}
                // A log that cannot be read (mostly: too large) is no reason to lose the rest.
                Err(error) => evidence.push(format!("{file}: not read: {}", error.observed)),
            }
        }
        Ok(evidence)
    }

    /// Nothing of the cluster is left on the host: with it goes our folder in the deploy user's home, unless another cluster
    /// of that user needs it.
    ///
    /// # Errors
    ///
    /// [`EffectError`].
    pub async fn leave(&self, host: &HostId, cluster: &ClusterName) -> Result<(), EffectError> {
        let attempted = format!("forget the cluster {cluster}");
        let folder = self.home(host, &attempted).await?.join(OUR_FOLDER);
        let order = Leave { cluster: cluster.clone(), folder };
        self.request(host, &attempted, &Request::Leave(order), LEAVING).await.map(drop)
    }

    async fn home(&self, host: &HostId, attempted: &str) -> Result<Utf8PathBuf, EffectError> {
        let failed = |observed: String, certainty| EffectError {
            attempted: attempted.to_owned(),
            place: host.as_str().to_owned(),
            observed,
            certainty,
        };
        let hello = self
            .hello(host)
            .await
            .map_err(|error| failed(error.to_string(), certainty_of(&error)))?;
        if hello.home.is_absolute() && hello.home != "/" {
            Ok(hello.home)
        } else {
            let observed = format!("{} has no home folder to keep packages in", hello.user);
            Err(failed(observed, Certainty::Refused))
        }
    }
}

/// As the agent writes it: what is not root's belongs to the user that it runs as.
pub fn put_file(text: Text) -> PutFile {
    PutFile {
        path: text.path,
        mode: text.mode,
        root: text.root,
        owner: None,
        content: text.content,
    }
}

/// An instance as the agent looks at it.
pub fn probe_instance(instance: &Instance) -> ProbeInstance {
    ProbeInstance {
        id: instance.id.clone(),
        unit: instance.unit.clone(),
        binary: instance.binary(),
        live: instance.tree(),
    }
}

/// TiUP's names (`run_*.sh`): what a process writes to standard error, then its own log.
fn log_files(instance: &Instance) -> [Utf8PathBuf; 2] {
    let stem = instance.role.as_str();
    [
        instance.log_dir.join(format!("{stem}_stderr.log")),
        instance.log_dir.join(format!("{stem}.log")),
    ]
}

fn tail(file: &Utf8Path, text: &str, most: usize) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(most);
    let name = file.file_name().unwrap_or(file.as_str());
    lines[from..].iter().map(|line| format!("{name}: {line}")).collect()
}

fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
