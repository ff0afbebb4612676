//! Sets of real machines in `systemd-nspawn`: systemd, sshd and sudo, on addresses of their own.
//!
//! A [`HostSet`] is N hosts h1 … hN on one bridge, at 198.18.B.11 and up for address block B. Sets with different names and blocks
//! run side by side. Everything of a set is found again from its name alone, so `down` also removes what a killed `up` left:
//! processes, network namespaces, cables, the bridge, control groups and files; mounts only exist inside the hosts.
//!
//! A set that was made with [`HostSet::fresh`] or [`HostSet::up`] goes down when it is dropped, unless it is [left](HostSet::leave).
//! While somebody holds a set nobody else can change it.
//!
//! Needs root and what [`can_boot_hosts`] tries. Starting 4 hosts takes about 5 s once the [Debian root](crate::root_image) is there.

mod capability;
mod cgroups;
mod faults;
mod keys;
mod machine;
mod names;
mod network;
mod processes;

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use serde::{Deserialize, Serialize};

pub use capability::{Missing, can_boot_hosts};
pub use faults::UnitSignal;
pub use names::SetName;

use self::names::{MOST_BLOCK, MOST_HOSTS, Place};
use crate::command::{self, CommandFailed};
use crate::root_image::{self, RootImageError};
use crate::waiting::wait_until;

/// The search path of programs on hosts.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A set of hosts, or a fault on one, went wrong.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The set's name does not fit.
    #[error(
        "`{0}` is no name for a set of hosts: 1 to 20 lower-case letters, digits or hyphens, a letter first"
    )]
    BadName(String),
    /// The block or the number of hosts does not fit.
    #[error(
        "hosts: 1 to {MOST_HOSTS} are possible in blocks 0 to {MOST_BLOCK}, not {count} in block {block}"
    )]
    BadSize {
        /// Hosts asked for.
        count: u8,
        /// Block asked for.
        block: u8,
    },
    /// Somebody holds the set.
    #[error("set `{0}` is in use by another process")]
    InUse(SetName),
    /// The set is there, but another one.
    #[error("set `{set}` is there already with {count} hosts in block {block}; take it down first")]
    Different {
        /// The set.
        set: SetName,
        /// Hosts it has.
        count: u8,
        /// Block it is in.
        block: u8,
    },
    /// Another set has the block.
    #[error("address block {block} belongs to set `{by}`")]
    BlockTaken {
        /// The block.
        block: u8,
        /// Who has it.
        by: SetName,
    },
    /// There is no such set.
    #[error("there is no set `{0}`")]
    NoSuchSet(SetName),
    /// There is no such host in the set.
    #[error("set `{set}` has no h{number}")]
    NoSuchHost {
        /// The set.
        set: SetName,
        /// The host asked for.
        number: u8,
    },
    /// A host's processes do not go.
    #[error("processes of {machine} still run 30 s after they were killed")]
    StillRunning {
        /// Machine name.
        machine: String,
    },
    /// A host does not run.
    #[error("{machine} does not run")]
    NotRunning {
        /// Machine name.
        machine: String,
    },
    /// A host was started and does not serve.
    #[error("{machine} was started and does not serve; its console said: {console}")]
    NotServing {
        /// Machine name.
        machine: String,
        /// The end of what its console said.
        console: String,
    },
    /// A program failed.
    #[error(transparent)]
    Command(#[from] CommandFailed),
    /// A program on a host failed.
    #[error("`{line}` on {machine} ended with {status}: {said}")]
    OnHost {
        /// Machine name.
        machine: String,
        /// The program and its arguments.
        line: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// What it said.
        said: String,
    },
    /// A program said something that is not understood.
    #[error("{doing}: not understood: {said}")]
    Unexpected {
        /// What was tried.
        doing: &'static str,
        /// What it said.
        said: String,
    },
    /// Files of the set could not be read or written.
    #[error("{doing}")]
    Files {
        /// What was tried.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The Debian root could not be made.
    #[error(transparent)]
    Image(#[from] RootImageError),
}

impl LabError {
    fn files(doing: &'static str) -> impl Fn(std::io::Error) -> Self {
        move |source| Self::Files { doing, source }
    }
}

/// What is written down before anything of a set is made.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
struct Record {
    block: u8,
    count: u8,
    image: Utf8PathBuf,
}

impl Record {
    fn read(set: &SetName) -> Option<Self> {
        let text = fs::read_to_string(Self::path(set)).ok()?;
        let record: Self = serde_json::from_str(&text).ok()?;
        check_size(record.block, record.count).ok().map(|()| record)
    }

    fn write(&self, set: &SetName) -> Result<(), LabError> {
        let files = LabError::files("writing down what the set will be");
        fs::create_dir_all(set.folder()).map_err(&files)?;
        let text = serde_json::to_string(self).expect("numbers and a path");
        let partial = set.folder().join("set.json.partial");
        fs::write(&partial, text).map_err(&files)?;
        fs::rename(partial, Self::path(set)).map_err(files)
    }

    fn path(set: &SetName) -> Utf8PathBuf {
        set.folder().join("set.json")
    }

    fn places(&self, set: &SetName) -> Vec<Place> {
        (1..=self.count)
            .map(|number| Place { set: set.clone(), block: self.block, number })
            .collect()
    }
}

/// A running host.
#[derive(Debug)]
pub struct Host {
    /// h1, h2, …
    pub name: String,
    /// 198.18.B.11, …
    pub address: Ipv4Addr,
    place: Place,
    image: Utf8PathBuf,
    /// Its `systemd-nspawn`, if this process started it: to be waited for when it ends.
    child: Mutex<Option<Child>>,
}

impl Host {
    fn new(place: &Place, image: &Utf8Path) -> Self {
        Self {
            name: place.name(),
            address: place.address(),
            place: place.clone(),
            image: image.to_owned(),
            child: Mutex::new(None),
        }
    }

    /// Runs a program on the host as root, entering it without SSH, and returns what it said whatever its exit status.
    ///
    /// # Errors
    ///
    /// [`LabError::NotRunning`], or that it cannot be entered.
    pub fn run(&self, argv: &[&str]) -> Result<Output, LabError> {
        entered(&self.place, argv)
    }

    /// As [`Host::run`], with the exit status checked; returns standard output.
    ///
    /// # Errors
    ///
    /// As of [`Host::run`], and [`LabError::OnHost`].
    pub fn must_run(&self, argv: &[&str]) -> Result<String, LabError> {
        self.checked(argv, self.run(argv)?)
    }

    /// Writes a file on the host, with this mode (`0644`), owned by root.
    ///
    /// # Errors
    ///
    /// As of [`Host::must_run`].
    pub fn put(&self, path: &Utf8Path, content: &[u8], mode: &str) -> Result<(), LabError> {
        let argv = ["install", "-D", "-m", mode, "/dev/stdin", path.as_str()];
        let mut command = entering(&self.place, &argv)?;
        let start = |source| CommandFailed::Start { line: argv.join(" "), source };
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(start)?;
        let written = child.stdin.take().expect("piped above").write_all(content);
        let output = child.wait_with_output().map_err(start)?;
        self.checked(&argv, output)?;
        written.map_err(LabError::files("writing a file on a host"))
    }

    /// Logs in by SSH as root, with the set's key and known_hosts, and runs a program; its exit status is ssh's (255: no connection).
    ///
    /// # Errors
    ///
    /// That ssh cannot be run.
    pub fn ssh(&self, argv: &[&str]) -> Result<Output, LabError> {
        let set = &self.place.set;
        let mut command =
            ssh_command(&keys::login_key(set), &keys::known_hosts(set), "root", self.address);
        // ssh hands one line to a shell at the other end.
        let line: Vec<String> = argv.iter().map(|arg| quoted(arg)).collect();
        command.args(["-o", "BatchMode=yes", "--"]).arg(line.join(" "));
        Ok(command::output(&mut command)?)
    }

    /// What its console said since it was started last.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.place.console()).unwrap_or_default()).into_owned()
    }

    fn checked(&self, argv: &[&str], output: Output) -> Result<String, LabError> {
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(LabError::OnHost {
            machine: self.place.machine(),
            line: argv.join(" "),
            status: output.status,
            said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    fn keep(&self, child: Child) {
        *self.child.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
    }

    /// Waits for a killed `systemd-nspawn`, or it would stay as a zombie.
    fn reap(&self) {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut child) = child {
            let _status_of_a_killed_process = child.wait();
        }
    }
}

/// A set of running hosts; goes down when dropped.
#[derive(Debug)]
pub struct HostSet {
    name: SetName,
    block: u8,
    hosts: Vec<Host>,
    leave: bool,
    _held: SetLock,
}

impl HostSet {
    /// Makes the set, or what is missing of it, and waits until every host serves. Hosts that run already stay as they are.
    ///
    /// # Errors
    ///
    /// [`LabError`]; what was made up to then is taken down again.
    pub fn up(name: &str, block: u8, count: u8) -> Result<Self, LabError> {
        let name = SetName::new(name)?;
        let held = SetLock::take(&name)?;
        Self::up_held(name, block, count, held)
    }

    /// Takes down what may be there under this name and makes the set anew: for tests.
    ///
    /// # Errors
    ///
    /// As of [`HostSet::up`].
    pub fn fresh(name: &str, block: u8, count: u8) -> Result<Self, LabError> {
        let name = SetName::new(name)?;
        let held = SetLock::take(&name)?;
        down_held(&name)?;
        Self::up_held(name, block, count, held)
    }

    fn up_held(name: SetName, block: u8, count: u8, held: SetLock) -> Result<Self, LabError> {
        check_size(block, count)?;
        let record = match Record::read(&name) {
            Some(record) if (record.block, record.count) == (block, count) => record,
            Some(Record { block, count, image: _ }) => {
                return Err(LabError::Different { set: name, count, block });
            }
            None => Record { block, count, image: root_image::ensure(|_| ())? },
        };
        if let Some(other) = list()?.into_iter().find(|set| set.block == block && set.name != name)
        {
            return Err(LabError::BlockTaken { block, by: other.name });
        }
        record.write(&name)?;
        allow_many_watches();
        let places = record.places(&name);
        let hosts = places.iter().map(|place| Host::new(place, &record.image)).collect();
        // From here on a failure drops the set, and that takes it down.
        let set = Self { name, block, hosts, leave: false, _held: held };
        keys::ensure_pair(&keys::login_key(&set.name), "ed25519", "dmup test hosts")?;
        network::ensure_bridge(block)?;
        for (host, place) in set.hosts.iter().zip(&places) {
            machine::furnish(place, &places)?;
            if processes::of(place).is_empty() {
                network::connect(place)?;
                host.keep(machine::start(place, &record.image)?);
            }
        }
        keys::write_known_hosts(&places)?;
        for place in &places {
            machine::wait_until_serving(place)?;
        }
        Ok(set)
    }

    /// The hosts, h1 first.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Host hN by its number N.
    ///
    /// # Errors
    ///
    /// [`LabError::NoSuchHost`].
    pub fn host(&self, number: u8) -> Result<&Host, LabError> {
        self.hosts
            .iter()
            .find(|host| host.place.number == number)
            .ok_or_else(|| LabError::NoSuchHost { set: self.name.clone(), number })
    }

    /// Runs a program on host hN as root and checks its exit status; returns standard output.
    ///
    /// # Errors
    ///
    /// As of [`Host::must_run`] and [`HostSet::host`].
    pub fn run_on(&self, number: u8, argv: &[&str]) -> Result<String, LabError> {
        self.host(number)?.must_run(argv)
    }

    /// This machine's own address on the set's bridge: where hosts reach a program that runs here.
    pub fn gateway(&self) -> Ipv4Addr {
        names::gateway(self.block)
    }

    /// The private key that logs in as root on every host.
    pub fn key_path(&self) -> Utf8PathBuf {
        keys::login_key(&self.name)
    }

    /// The hosts' public keys, in ssh's format.
    pub fn known_hosts(&self) -> Utf8PathBuf {
        keys::known_hosts(&self.name)
    }

    /// Lets the set run on after this process ends.
    pub fn leave(mut self) {
        self.leave = true;
    }

    /// Takes the set down and says whether that worked, which dropping it does not.
    ///
    /// # Errors
    ///
    /// As of [`down`].
    pub fn down(mut self) -> Result<(), LabError> {
        self.leave = true;
        self.take_down()
    }

    fn take_down(&self) -> Result<(), LabError> {
        let result = down_held(&self.name);
        if result.is_ok() {
            self.hosts.iter().for_each(Host::reap);
        }
        result
    }
}

impl Drop for HostSet {
    fn drop(&mut self) {
        if self.leave {
            return;
        }
        if let Err(error) = self.take_down() {
            #[expect(clippy::print_stderr, reason = "a destructor has no other way to tell")]
            {
                eprintln!("set `{}` did not go down: {error}", self.name);
            }
        }
    }
}

/// Takes a set down, whatever is there of it; fine if nothing is.
///
/// # Errors
///
/// [`LabError::InUse`] while somebody holds it; others if a part does not go.
pub fn down(name: &str) -> Result<(), LabError> {
    let name = SetName::new(name)?;
    let _held = SetLock::take(&name)?;
    down_held(&name)
}

fn down_held(name: &SetName) -> Result<(), LabError> {
    if let Some(record) = Record::read(name) {
        let places = record.places(name);
        for place in &places {
            processes::kill_all(place)?;
        }
        for place in &places {
            network::disconnect(place)?;
            cgroups::remove(&place.cgroup());
            machine::remove_traces(place);
        }
        network::remove_bridge(record.block)?;
    }
    let folder = name.folder();
    for mount in mounts_under(&folder) {
        command::run("umount", &["--lazy", mount.as_str()])?;
    }
    if folder.exists() {
        // The record goes last: with it, another `down` can finish what this one could not.
        for entry in folder.read_dir_utf8().map_err(LabError::files("removing a set"))? {
            let entry = entry.map_err(LabError::files("removing a set"))?;
            if entry.file_name() != "set.json" {
                command::run("rm", &["-rf", "--one-file-system", entry.path().as_str()])?;
            }
        }
        fs::remove_dir_all(&folder).map_err(LabError::files("removing a set"))?;
    }
    Ok(())
}

/// A set as it is found on this machine.
#[derive(Clone, Debug)]
pub struct FoundSet {
    /// Its name.
    pub name: SetName,
    /// Its address block.
    pub block: u8,
    /// Its hosts.
    pub hosts: Vec<FoundHost>,
    /// Whether another process holds it.
    pub held: bool,
    /// The private key that logs in as root on every host.
    pub key_path: Utf8PathBuf,
    /// The hosts' public keys.
    pub known_hosts: Utf8PathBuf,
}

/// A host as it is found on this machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FoundHost {
    /// h1, h2, …
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Whether a process of it runs.
    pub running: bool,
}

/// The sets of this machine, by name.
///
/// # Errors
///
/// That the folder of sets cannot be read.
pub fn list() -> Result<Vec<FoundSet>, LabError> {
    let base = SetName::base();
    if !base.exists() {
        return Ok(Vec::new());
    }
    let mut sets = Vec::new();
    for entry in base.read_dir_utf8().map_err(LabError::files("listing the sets of hosts"))? {
        let entry = entry.map_err(LabError::files("listing the sets of hosts"))?;
        let Ok(name) = SetName::new(entry.file_name()) else { continue };
        let Some(record) = Record::read(&name) else { continue };
        let hosts = record
            .places(&name)
            .iter()
            .map(|place| FoundHost {
                name: place.name(),
                address: place.address(),
                running: faults::is_running(place),
            })
            .collect();
        sets.push(FoundSet {
            held: SetLock::take_now(&name).is_err(),
            block: record.block,
            hosts,
            key_path: keys::login_key(&name),
            known_hosts: keys::known_hosts(&name),
            name,
        });
    }
    sets.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(sets)
}

/// An ssh command that trusts only these hosts, offers only this key and reads nobody's configuration.
pub fn ssh_command(key: &Utf8Path, known_hosts: &Utf8Path, user: &str, host: Ipv4Addr) -> Command {
    let mut command = Command::new("ssh");
    command
        .args(["-F", "/dev/null", "-i", key.as_str()])
        .args(["-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=yes"])
        .args(["-o", "GlobalKnownHostsFile=/dev/null"])
        .args(["-o", &format!("UserKnownHostsFile={known_hosts}")])
        .args(["-o", "ConnectTimeout=10", "-o", "LogLevel=ERROR"])
        .args(["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=6"])
        .args(["-l", user, &host.to_string()]);
    command
}

/// Mount points below a folder, the deepest first.
pub(crate) fn mounts_under(folder: &Utf8Path) -> Vec<Utf8PathBuf> {
    let Ok(table) = fs::read_to_string("/proc/self/mountinfo") else { return Vec::new() };
    let mut mounts: Vec<Utf8PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(Utf8PathBuf::from)
        .filter(|point| point.starts_with(folder))
        .collect();
    mounts.reverse();
    mounts
}

/// A word as the shell at the other end of ssh must see it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn check_size(block: u8, count: u8) -> Result<(), LabError> {
    if block <= MOST_BLOCK && (1..=MOST_HOSTS).contains(&count) {
        Ok(())
    } else {
        Err(LabError::BadSize { count, block })
    }
}

/// Every systemd watches some files; with many hosts the kernel's default for one user (128) is used up and units fail.
fn allow_many_watches() {
    const FILE: &str = "/proc/sys/fs/inotify/max_user_instances";
    let now: Option<u32> = fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse().ok());
    if now.is_some_and(|now| now < 1024) {
        // Where that is not allowed, few hosts still work.
        let _refused = fs::write(FILE, "1024");
    }
}

/// A command that enters the host and runs a program there as root.
fn entering(place: &Place, argv: &[&str]) -> Result<Command, LabError> {
    let first = machine::first_process(place)?;
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--target={}", first.as_raw_nonzero()))
        .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd", "--"])
        .args(argv)
        .env_clear()
        .envs([("PATH", PATH), ("HOME", "/root"), ("LANG", "C.UTF-8"), ("TERM", "dumb")]);
    Ok(command)
}

fn entered(place: &Place, argv: &[&str]) -> Result<Output, LabError> {
    Ok(command::output(&mut entering(place, argv)?)?)
}

/// Waits for its turn at a lock file and holds it while the returned file lives.
fn lock_file(path: &Utf8Path) -> Result<fs::File, LabError> {
    let files = LabError::files("taking turns");
    let file = fs::File::create(path).map_err(&files)?;
    file.file().lock().map_err(files)?;
    Ok(file)
}

/// Held while a set is made, used or removed. The file goes with the holder.
#[derive(Debug)]
struct SetLock {
    path: Utf8PathBuf,
    _file: fs::File,
}

impl SetLock {
    /// Takes hold of the set; waits for those who only look at it or are about to end, not for those who use it.
    fn take(name: &SetName) -> Result<Self, LabError> {
        let mut result = Err(LabError::InUse(name.clone()));
        wait_until(Duration::from_secs(3), || {
            result = Self::take_now(name);
            !matches!(result, Err(LabError::InUse(_)))
        });
        result
    }

    fn take_now(name: &SetName) -> Result<Self, LabError> {
        let files = LabError::files("taking hold of a set of hosts");
        let path = name.lock();
        fs::create_dir_all(SetName::base()).map_err(&files)?;
        loop {
            let file = fs::File::create(&path).map_err(&files)?;
            match file.file().try_lock() {
                Ok(()) => {}
                Err(std::fs::TryLockError::WouldBlock) => {
                    return Err(LabError::InUse(name.clone()));
                }
                Err(std::fs::TryLockError::Error(error)) => return Err(files(error)),
            }
            // The former holder may have removed the file between the two steps; then the lock is on a file without a name.
            let ours = file.metadata().map_err(&files)?.ino();
            if path.metadata().is_ok_and(|metadata| metadata.ino() == ours) {
                return Ok(Self { path, _file: file });
            }
        }
    }
}

impl Drop for SetLock {
    fn drop(&mut self) {
        let _gone_already = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_other_shell_unchanged() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
    }

    #[test]
    fn sets_that_do_not_fit_are_refused_before_anything_is_made() {
        assert!(check_size(31, 32).is_ok());
        assert!(check_size(32, 1).is_err());
        assert!(check_size(0, 0).is_err());
        assert!(matches!(HostSet::up("../x", 0, 1), Err(LabError::BadName(_))));
    }
}
