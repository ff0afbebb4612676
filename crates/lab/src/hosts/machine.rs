//! One host's life: furnishing, starting, waiting until it serves, ending.
//!
//! Facts: `systemd-nspawn` 252. The overlay is mounted in a mount namespace of the host's own and goes when its last process goes;
//! nothing of it is to be seen, or left behind, on this machine.

use std::fmt::Write as _;
use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::names::Place;
use super::{LabError, cgroups, keys, processes};
use crate::command;
use crate::waiting::{wait_for, wait_until};

/// Joins the control groups, mounts the overlay, becomes `systemd-nspawn`. All that varies comes in as arguments.
const BEGIN: &str = r#"set -eu
options=$1 root=$2
shift 2
while [ "$1" != -- ]; do echo $$ >"$1"; shift; done
shift
mount -t overlay overlay -o "$options" "$root"
exec systemd-nspawn "$@""#;

/// How long a host may take to start. Seen: 2 to 5 s; the machine may be busy compiling.
const START_BOUND: Duration = Duration::from_secs(120);

/// Writes what makes this host itself: names, addresses, keys. Done once; kept when the host starts again.
pub(super) fn furnish(place: &Place, places: &[Place]) -> Result<(), LabError> {
    let done = place.folder().join("furnished");
    if done.exists() {
        return Ok(());
    }
    let files = |source| LabError::Files { doing: "furnishing a host", source };
    if place.folder().exists() {
        fs::remove_dir_all(place.folder()).map_err(files)?;
    }
    let upper = place.upper();
    // Folders that the common root has as well need the same mode here.
    for (folder, mode) in [
        (place.work(), 0o755),
        (place.root(), 0o755),
        (upper.join("etc/ssh"), 0o755),
        (upper.join("root"), 0o700),
        (upper.join("root/.ssh"), 0o700),
    ] {
        fs::create_dir_all(folder.parent().expect("below the set's folder")).map_err(files)?;
        std::fs::DirBuilder::new().mode(mode).create(&folder).map_err(files)?;
        fs::set_permissions(&folder, std::fs::Permissions::from_mode(mode)).map_err(files)?;
    }
    fs::write(upper.join("etc/hostname"), format!("{}\n", place.name())).map_err(files)?;
    fs::write(upper.join("etc/hosts"), names_file(places)).map_err(files)?;
    for kind in keys::KINDS {
        keys::ensure_pair(
            &upper.join("etc/ssh").join(keys::host_key_file(kind)),
            kind,
            &place.machine(),
        )?;
    }
    let login = keys::login_key(&place.set).with_extension("pub");
    fs::copy(login, upper.join("root/.ssh/authorized_keys")).map_err(files)?;
    fs::write(done, "").map_err(files)
}

/// /etc/hosts of every host of the set.
fn names_file(places: &[Place]) -> String {
    let mut text = "127.0.0.1 localhost\n".to_owned();
    for place in places {
        writeln!(text, "{} {}", place.address(), place.name()).expect("writing into a string");
    }
    text
}

/// Starts the host; it is not serving yet when this returns.
pub(super) fn start(place: &Place, image: &Utf8Path) -> Result<Child, LabError> {
    let files = |source| LabError::Files { doing: "starting a host", source };
    let (upper, work, root) = (place.upper(), place.work(), place.root());
    let joins = cgroups::ensure(&place.cgroup())?;
    let console = fs::File::create(place.console()).map_err(files)?;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation=slave", "--", "sh", "-c", BEGIN, "begin-host"])
        .arg(format!("lowerdir={image},upperdir={upper},workdir={work}"))
        .arg(&root)
        .args(&joins)
        .args(["--", "--quiet", "--boot", "--register=no", "--keep-unit"])
        .args(["--resolv-conf=off", "--timezone=off", "--link-journal=no"])
        .arg(place.directory_argument())
        .arg(format!("--machine={}", place.machine()))
        .arg(format!("--network-namespace-path={}", place.namespace()))
        .env_clear()
        .env("PATH", super::PATH)
        .stdin(Stdio::null())
        .stdout(console.file().try_clone().map_err(files)?)
        .stderr(console.into_parts().0)
        // Ctrl-C in the terminal is not for the hosts.
        .process_group(0);
    command.spawn().map_err(|source| {
        command::CommandFailed::Start { line: command::line_of(&command), source }.into()
    })
}

/// Returns once the host's sshd greets and its systemd has started everything.
pub(super) fn wait_until_serving(place: &Place) -> Result<(), LabError> {
    let mut dead = false;
    let greets = wait_until(START_BOUND, || {
        dead = processes::of(place).is_empty();
        dead || sshd_greets(place.address().into())
    });
    let settled = || {
        wait_until(START_BOUND, || {
            super::entered(place, &["systemctl", "is-system-running"]).is_ok_and(|output| {
                let state = String::from_utf8_lossy(&output.stdout);
                matches!(state.trim(), "running" | "degraded")
            })
        })
    };
    if greets && !dead && settled() {
        return Ok(());
    }
    let console = fs::read(place.console()).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    let start = console.char_indices().rev().nth(1500).map_or(0, |(at, _)| at);
    Err(LabError::NotServing { machine: place.machine(), console: console[start..].to_owned() })
}

/// Whether an sshd answers there with its greeting.
pub(super) fn sshd_greets(address: std::net::IpAddr) -> bool {
    let bound = Duration::from_secs(2);
    let Ok(mut stream) = TcpStream::connect_timeout(&SocketAddr::new(address, 22), bound) else {
        return false;
    };
    let mut greeting = [0; 4];
    stream.set_read_timeout(Some(bound)).is_ok()
        && stream.read_exact(&mut greeting).is_ok()
        && &greeting == b"SSH-"
}

/// The host's first process, once there is one.
pub(super) fn first_process(place: &Place) -> Result<rustix::process::Pid, LabError> {
    wait_for(Duration::from_secs(10), || processes::first(place))
        .ok_or_else(|| LabError::NotRunning { machine: place.machine() })
}

/// What `systemd-nspawn` keeps outside of the set's folder.
pub(super) fn remove_traces(place: &Place) {
    let propagate = Utf8PathBuf::from("/run/systemd/nspawn/propagate").join(place.machine());
    if propagate.exists() {
        let _gone_already = fs::remove_dir_all(propagate);
    }
}
