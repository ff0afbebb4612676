//! Packages as TiUP's mirror and the manual's hotfix have them, with the stand-in inside.
//!
//! In: the `lookalike` program and a stamp. Out: `tar.gz` files named and laid out as on TiUP's mirror
//! (`dm-master/dm-master`, `bin/grafana-server`, …), or hotfix packages in the layouts that people make by hand. The
//! dm-master's package brings an `etcd` along, so that hosts need nothing installed; Prometheus, Alertmanager and the
//! exporters are Debian's. A real DM's programs can stand where the stand-in does. Two calls with the same input make the same bytes.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use camino::{Utf8Path, Utf8PathBuf};
use flate2::Compression;
use flate2::write::GzEncoder;
use fs_err as fs;
pub use lookalike::stamp::{Fault, Rules, Stamp};

use crate::real_dm::RealDm;

/// What TiUP calls a component.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Component {
    /// `dm-master`.
    DmMaster,
    /// `dm-worker`.
    DmWorker,
    /// `grafana`: the stand-in again.
    Grafana,
    /// `prometheus`: Debian's.
    Prometheus,
    /// `alertmanager`: Debian's.
    Alertmanager,
    /// `node_exporter`: Debian's.
    NodeExporter,
    /// `blackbox_exporter`: Debian's.
    BlackboxExporter,
}

impl Component {
    /// TiUP's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DmMaster => "dm-master",
            Self::DmWorker => "dm-worker",
            Self::Grafana => "grafana",
            Self::Prometheus => "prometheus",
            Self::Alertmanager => "alertmanager",
            Self::NodeExporter => "node_exporter",
            Self::BlackboxExporter => "blackbox_exporter",
        }
    }

    /// Path of the program in the package: `entry` of the manifest.
    pub fn entry(self) -> &'static str {
        match self {
            Self::DmMaster => "dm-master/dm-master",
            Self::DmWorker => "dm-worker/dm-worker",
            Self::Grafana => "bin/grafana-server",
            Self::Prometheus => "prometheus/prometheus",
            Self::Alertmanager => "alertmanager/alertmanager",
            Self::NodeExporter => "node_exporter/node_exporter",
            Self::BlackboxExporter => "blackbox_exporter/blackbox_exporter",
        }
    }
}

/// How a hotfix package is laid out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Layout {
    /// `dm-worker/dm-worker`, as the manual makes it.
    TopFolder,
    /// `dm-worker` at the top.
    Flat,
    /// No archive: the program itself.
    Bare,
}

/// One file of a package.
struct Entry {
    path: String,
    mode: u32,
    bytes: Vec<u8>,
}

impl Entry {
    fn text(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), mode: 0o644, bytes: text.as_bytes().to_vec() }
    }

    fn program(path: &str, file: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), mode: 0o755, bytes: fs::read(file)? })
    }
}

/// Makes packages into a folder.
#[derive(Clone, Debug)]
pub struct Packer {
    lookalike: Utf8PathBuf,
    /// Instead of the stand-in for DM's own two components.
    real: Option<RealDm>,
    folder: Utf8PathBuf,
    /// Debug symbols triple the size of everything that is sent.
    etcd: PathBuf,
}

impl Packer {
    /// Packs that `lookalike` program, into that folder, which is made if it is missing.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn new(lookalike: &Utf8Path, folder: &Utf8Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        Ok(Self {
            lookalike: lookalike.to_owned(),
            real: None,
            folder: folder.to_owned(),
            etcd: "/usr/bin/etcd".into(),
        })
    }

    /// Packs these programs as dm-master and dm-worker. Two stamps make two hashes; nothing else of a stamp has an effect.
    #[must_use]
    pub fn with_real_dm(self, real: RealDm) -> Self {
        Self { real: Some(real), ..self }
    }

    /// The component's package as on TiUP's mirror: `<component>-<release>-linux-<arch>.tar.gz`. The stamp's release
    /// is the version in the name, also of monitoring.
    ///
    /// # Errors
    /// If a program is missing, or the package cannot be written.
    pub fn package(&self, component: Component, stamp: &Stamp) -> io::Result<Utf8PathBuf> {
        let name =
            format!("{}-{}-linux-{}.tar.gz", component.as_str(), stamp.release_version, arch());
        let path = self.folder.join(name);
        write_archive(&path, self.entries(component, stamp)?)?;
        Ok(path)
    }

    /// The same with that program in place of the component's own.
    ///
    /// # Errors
    /// If the program is missing, or the package cannot be written.
    pub fn package_with(
        &self,
        component: Component,
        release: &str,
        program: &Path,
    ) -> io::Result<Utf8PathBuf> {
        let name = format!("{}-{release}-linux-{}.tar.gz", component.as_str(), arch());
        let path = self.folder.join(name);
        write_archive(&path, vec![Entry::program(component.entry(), program)?])?;
        Ok(path)
    }

    /// A hotfix package of one or more components, called `name`.
    ///
    /// # Errors
    /// If the package cannot be written, or a bare program is asked for with any number of components but one.
    pub fn hotfix(
        &self,
        name: &str,
        components: &[Component],
        stamp: &Stamp,
        layout: Layout,
    ) -> io::Result<Utf8PathBuf> {
        let path = self.folder.join(name);
        let mut entries = Vec::new();
        for &component in components {
            match layout {
                Layout::TopFolder => entries.extend(self.entries(component, stamp)?),
                Layout::Flat => {
                    let program = component.entry().rsplit('/').next().unwrap_or_default();
                    entries.push(Entry {
                        path: program.to_owned(),
                        mode: 0o755,
                        bytes: self.program(component, stamp)?,
                    });
                }
                Layout::Bare => {
                    if components.len() != 1 {
                        return Err(io::Error::other("a bare program is one component"));
                    }
                    write_program(&path, &self.program(component, stamp)?)?;
                    return Ok(path);
                }
            }
        }
        write_archive(&path, entries)?;
        Ok(path)
    }

    /// The component's executable with that stamp.
    ///
    /// # Errors
    /// If a program is missing.
    pub fn program(&self, component: Component, stamp: &Stamp) -> io::Result<Vec<u8>> {
        let real = self.real.as_ref().and_then(|real| match component {
            Component::DmMaster => Some(&real.master),
            Component::DmWorker => Some(&real.worker),
            Component::Grafana
            | Component::Prometheus
            | Component::Alertmanager
            | Component::NodeExporter
            | Component::BlackboxExporter => None,
        });
        if let Some(real) = real {
            return marked(real.as_std_path(), stamp);
        }
        let file = tempfile::NamedTempFile::new_in(&self.folder)?;
        lookalike::stamp::write_stamped(self.lookalike.as_std_path(), file.path(), stamp)?;
        fs::read(file.path())
    }

    fn entries(&self, component: Component, stamp: &Stamp) -> io::Result<Vec<Entry>> {
        let debian = |name: &str| -> io::Result<Entry> {
            Ok(Entry {
                path: component.entry().to_owned(),
                mode: 0o755,
                bytes: marked(&Path::new("/usr/bin").join(name), stamp)?,
            })
        };
        let program = || -> io::Result<Entry> {
            Ok(Entry {
                path: component.entry().to_owned(),
                mode: 0o755,
                bytes: self.program(component, stamp)?,
            })
        };
        Ok(match component {
            Component::DmMaster => vec![
                program()?,
                Entry::program("dm-master/etcd", &self.etcd)?,
                Entry::text("dm-master/conf/dm_worker.rules.yml", RULES),
                Entry::text("dm-master/scripts/dm.json", DASHBOARD),
            ],
            Component::DmWorker => vec![program()?],
            Component::Grafana => vec![
                program()?,
                Entry::text("conf/defaults.ini", "[server]\nhttp_port = 3000\n"),
                Entry::text("public/index.html", "<!doctype html>\n"),
                Entry::text("overview.json", DASHBOARD),
            ],
            Component::Prometheus => vec![
                debian("prometheus")?,
                Entry::program("prometheus/promtool", Path::new("/usr/bin/promtool"))?,
                Entry::text("prometheus/tidb.rules.yml", "groups: []\n"),
            ],
            Component::Alertmanager => vec![
                debian("prometheus-alertmanager")?,
                Entry::program("alertmanager/amtool", Path::new("/usr/bin/amtool"))?,
            ],
            Component::NodeExporter | Component::BlackboxExporter => {
                let name = format!("prometheus-{}", component.as_str().replace('_', "-"));
                vec![debian(&name)?]
            }
        })
    }
}

/// A program with the stamp's hash behind its end, where nobody looks: two stamps make two hashes.
fn marked(program: &Path, stamp: &Stamp) -> io::Result<Vec<u8>> {
    let mut bytes = fs::read(program)?;
    bytes.extend_from_slice(stamp.git_hash.as_bytes());
    Ok(bytes)
}

/// TiUP's word for this machine's architecture.
pub fn arch() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

fn write_program(path: &Utf8Path, bytes: &[u8]) -> io::Result<()> {
    fs::write(path, bytes)?;
    let permissions: std::fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(path, permissions)
}

/// Writes a gzipped tar, folders before what is in them, under a temporary name until it is whole.
fn write_archive(path: &Utf8Path, entries: Vec<Entry>) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Utf8Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    let mut archive = tar::Builder::new(GzEncoder::new(&mut file, Compression::fast()));
    let mut folders = Vec::new();
    for entry in entries {
        for folder in Utf8Path::new(&entry.path)
            .ancestors()
            .skip(1)
            .filter(|folder| !folder.as_str().is_empty())
        {
            if !folders.contains(&folder.to_owned()) {
                folders.push(folder.to_owned());
                let mut header = header(0o755, 0);
                header.set_entry_type(tar::EntryType::Directory);
                archive.append_data(&mut header, format!("{folder}/"), io::empty())?;
            }
        }
        archive.append_data(
            &mut header(entry.mode, entry.bytes.len() as u64),
            &entry.path,
            entry.bytes.as_slice(),
        )?;
    }
    archive.into_inner()?.finish()?.flush()?;
    let permissions: std::fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(file.path(), permissions)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

fn header(mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(1_700_000_000);
    header
}

/// An alert in the shape of those that a dm-master's package brings, with TiUP's placeholder.
const RULES: &str = r#"groups:
  - name: alert.rules
    rules:
      - alert: DM_master_all_down
        expr: up{job="dm_master"} == 0
        labels:
          env: ENV_LABELS_ENV
          level: critical
          expr: up{job="dm_master"} == 0
        annotations:
          description: "cluster: ENV_LABELS_ENV, instance: {{ $labels.instance }}"
          summary: dm-master is down
"#;

/// A dashboard with the placeholders that TiUP replaces.
const DASHBOARD: &str = r#"{
  "__inputs": [{ "name": "DS_TEST-CLUSTER", "label": "test-cluster", "type": "datasource", "pluginId": "prometheus" }],
  "panels": [],
  "schemaVersion": 18,
  "title": "Test-Cluster-DM",
  "uid": "lookalike-dm",
  "version": 1
}
"#;

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(package: &Utf8Path) -> Vec<String> {
        let file = fs::File::open(package).unwrap();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
        archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect()
    }

    #[test]
    fn packages_are_laid_out_as_tiup_wants_them_and_differ_by_their_stamp() {
        let dir = tempfile::tempdir().unwrap();
        let dir = Utf8Path::from_path(dir.path()).unwrap();
        let exe = dir.join("lookalike");
        fs::write(&exe, "a program, for all that packing knows").unwrap();
        let packer = Packer::new(&exe, &dir.join("out")).unwrap();
        let packer = Packer { etcd: exe.clone().into(), ..packer };
        let old = Stamp::new("v8.1.0", "aaaa");
        let new = Stamp::new("v8.1.0", "bbbb");
        let package = packer.package(Component::DmMaster, &old).unwrap();
        assert_eq!(
            package.file_name(),
            Some(format!("dm-master-v8.1.0-linux-{}.tar.gz", arch()).as_str())
        );
        assert!(paths(&package).contains(&"dm-master/dm-master".to_owned()));
        assert!(paths(&package).contains(&"dm-master/conf/dm_worker.rules.yml".to_owned()));
        let both = [Component::DmMaster, Component::DmWorker];
        let top = packer.hotfix("top.tar.gz", &both, &new, Layout::TopFolder).unwrap();
        assert!(paths(&top).contains(&"dm-worker/dm-worker".to_owned()));
        let flat = packer.hotfix("flat.tar.gz", &both, &new, Layout::Flat).unwrap();
        assert_eq!(paths(&flat), ["dm-master", "dm-worker"]);
        let bare = packer.hotfix("dm-worker", &both[1..], &new, Layout::Bare).unwrap();
        assert_ne!(fs::read(&bare).unwrap(), fs::read(&exe).unwrap());
        let again = packer.hotfix("again", &both[1..], &old, Layout::Bare).unwrap();
        assert_ne!(fs::read(&bare).unwrap(), fs::read(&again).unwrap());
    }
}
