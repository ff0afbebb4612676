//! Which program this is, what its stamp says, and the faults that show at the start.
//!
//! The name is the file name of `argv[0]`, or, if that is none of ours, the first argument: `lookalike dm-master …`.
//! Environment: `LOOKALIKE_FAULTS`, a JSON list of faults on top of the stamp's; `LOOKALIKE_ETCD`, the etcd to run.

use std::ffi::OsString;
use std::future::Future;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::flags::Flags;
use crate::log;
use crate::stamp::{Fault, Stamp, read_stamp};
use crate::{grafana, master, tls, worker};

/// DM's exit code for everything that goes wrong before a service runs.
pub(crate) const CANNOT_START: u8 = 2;

/// What the process knows of its surroundings, read once.
pub(crate) struct Surroundings {
    pub(crate) stamp: Stamp,
    /// The etcd to run as a child.
    pub(crate) etcd: PathBuf,
}

/// Runs the program that `args` (with the program's name first) ask for.
pub fn run(mut args: Vec<String>) -> ExitCode {
    let mut name = program_name(args.first());
    if !matches!(name.as_str(), "dm-master" | "dm-worker" | "grafana-server" | master::ETCD_CHILD)
        && args.len() > 1
    {
        args.remove(0);
        name = program_name(args.first());
    }
    if !args.is_empty() {
        args.remove(0);
    }
    if name == master::ETCD_CHILD {
        return master::become_etcd(&args);
    }
    let surroundings = match surroundings() {
        Ok(surroundings) => surroundings,
        Err(error) => return fail(CANNOT_START, &error),
    };
    let stamp = &surroundings.stamp;
    match name.as_str() {
        "dm-master" => service(&master::FLAGS, &args, &surroundings, |flags, closed| {
            master::serve(flags, &surroundings, closed)
        }),
        "dm-worker" => service(&worker::FLAGS, &args, &surroundings, |flags, closed| {
            worker::serve(flags, stamp, closed)
        }),
        "grafana-server" => grafana::run(&args, stamp),
        _ => fail(
            CANNOT_START,
            &format!(
                "{name}: call this program dm-master, dm-worker or grafana-server, or give one of them as first argument"
            ),
        ),
    }
}

fn program_name(arg: Option<&String>) -> String {
    let name = arg.and_then(|arg| Path::new(arg).file_name());
    name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn surroundings() -> Result<Surroundings, String> {
    let exe = PathBuf::from("/proc/self/exe");
    let mut stamp =
        read_stamp(&exe).map_err(|error| format!("read the stamp of this program: {error}"))?;
    if let Some(faults) = std::env::var_os("LOOKALIKE_FAULTS") {
        let faults: Vec<Fault> = serde_json::from_str(&faults.to_string_lossy())
            .map_err(|error| format!("LOOKALIKE_FAULTS: want a JSON list of faults: {error}"))?;
        stamp.faults.extend(faults);
    }
    Ok(Surroundings { stamp, etcd: find_etcd(std::env::var_os("LOOKALIKE_ETCD")) })
}

/// The one named, the one that the package brought along, or the machine's.
fn find_etcd(named: Option<OsString>) -> PathBuf {
    if let Some(named) = named {
        return named.into();
    }
    let exe = std::env::current_exe().unwrap_or_default();
    let beside = exe.parent().map(|dir| dir.join("etcd")).filter(|path| path.is_file());
    beside.unwrap_or_else(|| PathBuf::from("/usr/bin/etcd"))
}

/// Prints to stderr, where DM's programs put what ends them.
pub(crate) fn fail(code: u8, message: &str) -> ExitCode {
    // Nobody is left to tell if stderr is gone.
    drop(writeln!(std::io::stderr(), "{message}"));
    ExitCode::from(code)
}

/// What both services of DM have in common, from the first flag to the exit code.
fn service<'a, F, Fut>(
    known: &crate::flags::Known,
    args: &[String],
    surroundings: &'a Surroundings,
    serve: F,
) -> ExitCode
where
    F: FnOnce(Flags, CancellationToken) -> Fut,
    Fut: Future<Output = ExitCode> + 'a,
{
    let flags = match known.parse(args) {
        Ok(flags) => flags,
        Err(error) => return fail(CANNOT_START, &error),
    };
    let stamp = &surroundings.stamp;
    if flags.is_on("V") {
        if stamp.faults.contains(&Fault::ExitAtVersion) {
            return fail(1, "cannot say the version: this build is bad");
        }
        return match writeln!(std::io::stdout(), "{}", stamp.version_text()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(1, &format!("print the version: {error}")),
        };
    }
    if let Err(error) = tls::open(&flags).and_then(|()| log::open(flags.value("log-file"))) {
        return fail(CANNOT_START, &error);
    }
    log::info!(
        "Welcome to dm-{} release-version={} git-hash={}",
        known.program,
        stamp.release_version,
        stamp.git_hash
    );
    if stamp.faults.contains(&Fault::ExitAtStart) {
        log::error!("fault: exit at start");
        return fail(1, "this build is bad: it exits at start");
    }
    // All on this thread: etcd's life hangs on the thread that started it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &format!("start the runtime: {error}")),
    };
    runtime.block_on(async {
        if stamp.faults.contains(&Fault::HangAtStart) {
            std::future::pending::<()>().await;
        }
        let closed = CancellationToken::new();
        if let Err(error) = close_on_signal(&closed) {
            return fail(1, &format!("listen for signals: {error}"));
        }
        let crash = async {
            let after = stamp.faults.iter().find_map(|fault| {
                if let Fault::CrashAfterS(seconds) = fault { Some(*seconds) } else { None }
            });
            match after {
                Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = crash => fail(1, "this build is bad: it crashes"),
            code = serve(flags, closed) => {
                for fault in &stamp.faults {
                    if let Fault::StopAfterS(seconds) = fault {
                        tokio::time::sleep(Duration::from_secs(*seconds)).await;
                    }
                }
                log::info!("exit");
                code
            }
        }
    })
}

/// The first of these signals closes; later ones do nothing (DM: cmd/dm-master/main.go).
fn close_on_signal(closed: &CancellationToken) -> std::io::Result<()> {
    for kind in
        [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup(), SignalKind::quit()]
    {
        let mut signals = signal(kind)?;
        let closed = closed.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                log::info!("got signal to exit");
                closed.cancel();
            }
        });
    }
    Ok(())
}
