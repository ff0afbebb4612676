//! Runs a program of a package on its host: with nothing inherited, for a bounded time, as whoever the service runs as.

use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use camino::Utf8Path;
use dmup_wire::message::{Refusal, RefusalKind};
use fs_err as fs;

use crate::refuse::{When, refuse, system};
use crate::run::{self, NotRun, Ran};

/// Runs it to its end in a folder; as the owner of `like` if we are root. Only that it could not be run is an error.
pub(crate) fn run_of_package(
    binary: &Utf8Path,
    arguments: &[String],
    folder: &Utf8Path,
    like: &std::fs::Metadata,
    within: Duration,
) -> Result<Ran, Refusal> {
    let attempted = || format!("run {binary} {}", arguments.join(" "));
    if let Some(words) = not_executable(binary).when(attempted)? {
        return Err(refuse(RefusalKind::Content, attempted(), words));
    }
    let began = Instant::now();
    let ran = loop {
        let mut command = Command::new(binary);
        command.args(arguments).env_clear().env("PATH", run::PATH).current_dir(folder);
        if rustix::process::geteuid().is_root() && like.uid() != 0 {
            command.uid(like.uid()).gid(like.gid());
        }
        match run::run(command, within) {
            // ETXTBSY: another request forked while our pen was on the file, and its child has not yet let go.
            Err(NotRun::Spawn(error))
                if error.raw_os_error() == Some(26) && began.elapsed() < within =>
            {
                thread::sleep(Duration::from_millis(5));
            }
            other => break other,
        }
    };
    match ran {
        Ok(ran) => Ok(ran),
        Err(NotRun::TooSlow(limit)) => {
            let words = format!("it did not end within {} s and was killed", limit.as_secs());
            Err(refuse(RefusalKind::Content, attempted(), words))
        }
        // A missing interpreter (dynamic loader) reads as a missing file.
        Err(NotRun::Spawn(error)) if error.kind() == io::ErrorKind::NotFound => Err(refuse(
            RefusalKind::Content,
            attempted(),
            format!("the file is there, but the loader that it names is not ({error})"),
        )),
        Err(NotRun::Spawn(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(refuse(
                RefusalKind::Content,
                attempted(),
                format!("not executable: {error} (its mode, or a file system mounted noexec)"),
            ))
        }
        Err(NotRun::Spawn(error)) => Err(system(attempted(), &error)),
    }
}

/// Why this host cannot execute a file, by its head; none if it can.
///
/// Not left to the kernel: the C library hands what the kernel does not know to a shell, which
/// would read 180 MB of another machine's code as a script.
fn not_executable(binary: &Utf8Path) -> io::Result<Option<String>> {
    let mut head = Vec::new();
    fs::File::open(binary)?.take(20).read_to_end(&mut head)?;
    if head.starts_with(b"#!") {
        return Ok(None);
    }
    // man 5 elf: e_ident, e_type, e_machine; little endian on everything that DM is built for.
    let (true, Some(machine)) = (head.starts_with(b"\x7fELF"), head.get(18..20)) else {
        return Ok(Some(
            "this host cannot execute it: it is neither an ELF program nor a script".to_owned(),
        ));
    };
    let uname = rustix::system::uname();
    let arch = uname.machine().to_string_lossy();
    let (own, machine) = (
        match &*arch {
            "x86_64" => Some(62),
            "aarch64" => Some(183),
            _ => None, // the kernel knows better than this table
        },
        u16::from_le_bytes([machine[0], machine[1]]),
    );
    let named = match machine {
        62 => "x86_64".to_owned(),
        183 => "aarch64".to_owned(),
        other => format!("ELF machine {other}"),
    };
    Ok(own.filter(|own| *own != machine).map(|_| {
        format!("this host cannot execute it: it is built for {named}, the host is {arch}")
    }))
}
