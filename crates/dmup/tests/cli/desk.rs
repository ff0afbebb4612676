//! A `TIUP_HOME` of its own, the real program, and packages of every kind.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;

use assert_cmd::Command;
use dmup_core::ids::ClusterName;
use dmup_state::Profile;

/// A recorded cluster of TiUP 1.16.5: three masters, three workers, a Prometheus.
pub(crate) const META: &str = include_str!("fixtures/meta.yaml");

/// A cluster whose ports nobody listens on, on an address that nobody else uses.
pub(crate) const SILENT: &str = "\
user: tidb
dm_version: v8.1.0
topology:
  global: {user: tidb, ssh_port: 9}
  master_servers:
    - {host: 127.0.0.77, port: 1, peer_port: 2, deploy_dir: /nowhere/m, data_dir: /nowhere/m/data, arch: amd64, os: linux}
  worker_servers:
    - {host: 127.0.0.77, port: 3, deploy_dir: /nowhere/w, patched: true, arch: amd64, os: linux}
  grafana_servers:
    - {host: 127.0.0.77, port: 4, deploy_dir: /nowhere/g, arch: amd64, os: linux}
";

pub(crate) struct Desk {
    folder: tempfile::TempDir,
}

impl Desk {
    /// A desk with the cluster `prod`.
    pub(crate) fn new() -> Self {
        Self::with_cluster("prod", META)
    }

    /// A desk with this cluster, its keys included.
    pub(crate) fn with_cluster(name: &str, meta: &str) -> Self {
        let desk = Self::empty();
        let cluster = desk.profile().cluster(&ClusterName::new(name).unwrap());
        cluster.ensure_keys().unwrap();
        std::fs::write(cluster.meta_path(), meta).unwrap();
        desk
    }

    /// A desk on which nothing was done yet.
    pub(crate) fn empty() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn profile(&self) -> Profile {
        Profile::at(self.path("tiup/storage/dm"))
    }

    pub(crate) fn path(&self, below: &str) -> String {
        self.folder.path().join(below).to_str().unwrap().to_owned()
    }

    pub(crate) fn put(&self, name: &str, content: &[u8]) -> String {
        let path = self.path(name);
        std::fs::create_dir_all(Path::new(&path).parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Runs the program with nothing on its standard input.
    pub(crate) fn dmup(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// The program, to be given more surroundings or an answer.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        self.with_surroundings(Command::cargo_bin("dmup").unwrap(), words)
    }

    /// The program by another name, as a link.
    pub(crate) fn called(&self, name: &str, words: &[&str]) -> Command {
        let link = self.path(&format!("bin/{name}"));
        if std::fs::symlink_metadata(&link).is_err() {
            std::fs::create_dir_all(self.path("bin")).unwrap();
            let program = Command::cargo_bin("dmup").unwrap();
            std::os::unix::fs::symlink(program.get_program(), &link).unwrap();
        }
        self.with_surroundings(Command::new(link), words)
    }

    fn with_surroundings(&self, mut command: Command, words: &[&str]) -> Command {
        command
            .args(words)
            .env_clear()
            .env("HOME", self.path("home"))
            .env("TIUP_HOME", self.path("tiup"))
            .env("PATH", "/usr/bin:/bin")
            .current_dir(self.folder.path());
        command
    }

    /// The command ends well; its standard output.
    #[track_caller]
    pub(crate) fn ok(&self, words: &[&str]) -> String {
        let output = self.dmup(words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}\n{stderr}");
        self.told(&output.stdout)
    }

    /// What was said, with the desk's own folder as `DESK`.
    pub(crate) fn told(&self, bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).replace(&self.path(""), "DESK/")
    }

    /// Everything below `TIUP_HOME` but the audit log, which records refusals as well, and our lock file.
    pub(crate) fn state(&self) -> BTreeMap<String, Vec<u8>> {
        let mut all = BTreeMap::new();
        let mut folders = vec![self.folder.path().join("tiup")];
        if !folders[0].exists() {
            return all;
        }
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.to_str().unwrap().to_owned();
                if name.contains("/audit") || name.ends_with("/dmup/lock") {
                    continue;
                }
                if path.is_dir() {
                    folders.push(path);
                } else {
                    all.insert(name, std::fs::read(&path).unwrap());
                }
            }
        }
        all
    }

    /// The command ends with this code, says all of these, and changes nothing.
    #[track_caller]
    pub(crate) fn refuses(&self, words: &[&str], code: i32, says: &[&str]) -> String {
        let before = self.state();
        let output = self.dmup(words);
        let text = self.told(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{words:?}\n{text}");
        for part in says {
            assert!(text.contains(part), "{words:?} does not say `{part}`\n{text}");
        }
        assert_eq!(self.state(), before, "{words:?}\n{text}");
        text
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An archive with one entry, made by hand so that it may be hostile.
pub(crate) fn archive(
    name: &str,
    kind: tar::EntryType,
    link: Option<&str>,
    content: &[u8],
    mode: u32,
) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
    if let Some(link) = link {
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
    }
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header, content).unwrap();
    gzip(&builder.into_inner().unwrap())
}

/// An archive of regular files: name, mode, content.
pub(crate) fn archive_of(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, mode, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    gzip(&builder.into_inner().unwrap())
}

/// A header that a loader for this machine (ELF's number) would take, and something after it.
pub(crate) fn elf(machine: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    bytes.extend(2_u16.to_le_bytes());
    bytes.extend(machine.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend([0; 28]);
    for size in [64_u16, 56, 0, 64, 0, 0] {
        bytes.extend(size.to_le_bytes());
    }
    bytes.extend(body);
    bytes
}

/// ELF's number and TiUP's word for the machine that runs this.
pub(crate) fn this_machine() -> (u16, &'static str) {
    if cfg!(target_arch = "aarch64") { (183, "arm64") } else { (62, "amd64") }
}

/// Who runs this: on a playground, the cluster's user is whoever is logged in.
pub(crate) fn me() -> String {
    let me = rustix::process::getuid();
    if me.is_root() { "root".to_owned() } else { me.as_raw().to_string() }
}
