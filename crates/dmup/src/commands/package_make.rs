//! `package make`: an official package with some files replaced, and a manifest of it beside it.
//!
//! Written only after every check: the executable is ELF, for the base's architecture, complete, of that component, and,
//! where this machine can run it, says its version.

use std::process::Stdio;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::digest::Digest;
use dmup_core::instance::Role;
use dmup_core::version::DmVersion;
use dmup_mirror::mirror::Version;
use dmup_mirror::package::{MakeError, Making};
use dmup_remote::hosts::version_arguments;
use serde::Serialize;
use tokio::io::AsyncReadExt as _;

use super::obtaining::Obtaining;
use crate::args::{Format, PackageMakeArgs};
use crate::context::Context;
use crate::failure::{Failure, Kind, chain};
use crate::progress::Progress;

/// An executable that takes longer to say its version is not what it should be.
const VERSION_WITHIN: Duration = Duration::from_secs(10);
/// Of what it says.
const VERSION_BYTES: u64 = 16 << 10;

/// What lies beside the package.
#[derive(Serialize)]
struct Manifest<'a> {
    format: u32,
    component: Role,
    arch: &'a str,
    package: Part<'a>,
    base: Part<'a>,
    replaced: Vec<ReplacedPart<'a>>,
    /// SHA-256 of the component's executable.
    build: &'a Digest,
    /// What it says of itself; null if this machine cannot run it.
    version: Option<&'a str>,
    made_by: String,
    made_at: String,
}

#[derive(Serialize)]
struct Part<'a> {
    name: &'a str,
    sha256: &'a Digest,
}

#[derive(Serialize)]
struct ReplacedPart<'a> {
    path: &'a Utf8Path,
    was: &'a Digest,
    is: &'a Digest,
}

pub(crate) async fn run(args: &PackageMakeArgs, context: &Context) -> Result<(), Failure> {
    let role: Role = args.component.parse().map_err(|bad| Failure::new(Kind::Usage, bad))?;
    let replacements = args
        .replace
        .iter()
        .map(|pair| match pair.split_once('=') {
            Some((path, file)) if !path.is_empty() && !file.is_empty() => {
                Ok((Utf8PathBuf::from(path), Utf8PathBuf::from(file)))
            }
            Some(_) | None => Err(Failure::new(
                Kind::Usage,
                format_args!("--replace {pair}: PATH=FILE is needed"),
            )),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let beside = Utf8PathBuf::from(format!("{}.json", args.output));
    for path in [&args.output, &beside] {
        if path.symlink_metadata().is_ok() {
            return Err(refused(&MakeError::Exists(path.clone())));
        }
    }
    let progress = Progress::new(context.global.format, context.surroundings.stderr_is_terminal);
    let (base, arch) = base(args, role, &progress, context).await?;
    progress.under_way("put the package together");
    let scratch = context.scratch()?;
    let making = Making::begin(&base, role, arch.as_deref(), &replacements, scratch.path())
        .map_err(|error| refused(&error))?;
    let version =
        if making.arch == this_arch() { Some(version_of(&making, role).await?) } else { None };
    progress.under_way("write the package");
    let made = making.write(&args.output).map_err(|error| refused(&error))?;
    let manifest = Manifest {
        format: 1,
        component: role,
        arch: &making.arch,
        package: Part { name: args.output.file_name().unwrap_or_default(), sha256: &made.digest },
        base: Part { name: base.file_name().unwrap_or_default(), sha256: &making.base },
        replaced: making
            .replaced
            .iter()
            .map(|it| ReplacedPart { path: &it.path, was: &it.was, is: &it.is })
            .collect(),
        build: &making.binary,
        version: version.as_deref(),
        made_by: context.who(),
        made_at: jiff::Timestamp::now().to_string(),
    };
    let text = serde_json::to_string_pretty(&manifest).expect("texts and numbers");
    if let Err(error) = write_new(&beside, &text) {
        drop(fs_err::remove_file(&args.output));
        return Err(Failure::refused(format_args!("write {beside}: {error}"))
            .hint("the package was taken away again; give the same command once there is room"));
    }
    progress.end();
    if version.is_none() {
        context.printer.talk(format_args!(
            "note: built for {}, so it could not be asked for its version here",
            making.arch
        ));
    }
    for same in making.replaced.iter().filter(|it| it.was == it.is) {
        let (path, file) = (&same.path, &same.file);
        context.printer.talk(format_args!("warning: {file} is what `{path}` was already"));
    }
    match context.global.format {
        Format::Json => context.printer.data(text),
        Format::Default => {
            context.printer.data(format_args!(
                "Package: {}\nSHA-256: {}\nBuild:   {}",
                args.output,
                made.digest.as_str(),
                making.binary.as_str(),
            ));
            for line in version.iter().flat_map(|it| it.lines()) {
                context.printer.data(format_args!("  {line}"));
            }
        }
    }
    Ok(())
}

/// The package to begin with, and the architecture that it must have.
async fn base(
    args: &PackageMakeArgs,
    role: Role,
    progress: &Progress,
    context: &Context,
) -> Result<(Utf8PathBuf, Option<String>), Failure> {
    let given = Utf8PathBuf::from(&args.base);
    let Ok(version) = args.base.parse::<DmVersion>() else {
        return Ok((given, args.arch.clone()));
    };
    let arch = args.arch.clone().unwrap_or_else(|| this_arch().to_owned());
    progress.under_way("get the base");
    let mut obtaining = Obtaining::new(context);
    let version = Version::Exact(version);
    let obtained = obtaining.package(role, version, "linux", &arch, progress).await;
    obtaining.say_warnings();
    match obtained {
        Ok(path) => Ok((path, Some(arch))),
        Err(why) => {
            let failure = Failure::refused("the base is not there").because([why]);
            let failure = obtaining.hints.into_iter().fold(failure, Failure::hint);
            Err(failure.hint("`--base` takes a package file as well"))
        }
    }
}

/// TiUP's word for this machine.
fn this_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// What the executable prints with `-V` or the like.
async fn version_of(making: &Making, role: Role) -> Result<String, Failure> {
    let arguments = version_arguments(role);
    let attempt = format!("run the executable with {}", arguments.join(" "));
    let failed = |why: String| {
        Failure::refused(format_args!("{attempt}: {why}")).hint(
            "nothing was written; a build that cannot say its version would fail on hosts, too",
        )
    };
    let mut child = tokio::process::Command::new(making.executable())
        .args(&arguments)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let mut stdout = child.stdout.take().expect("piped above").take(VERSION_BYTES);
    let mut stderr = child.stderr.take().expect("piped above").take(VERSION_BYTES);
    let (mut said, mut aside) = (Vec::new(), Vec::new());
    let ended = tokio::time::timeout(VERSION_WITHIN, async {
        // Both at once: one that is full would hold the program up.
        tokio::try_join!(stdout.read_to_end(&mut said), stderr.read_to_end(&mut aside))?;
        child.wait().await
    });
    let status = match ended.await {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => return Err(failed(error.to_string())),
        Err(_) => return Err(failed(format!("no end within {VERSION_WITHIN:?}"))),
    };
    if !status.success() {
        let why = plain(&aside);
        let why = why.lines().next().unwrap_or("it said nothing");
        return Err(failed(format!("{status}: {why}")));
    }
    let text = plain(&said);
    if text.is_empty() { Err(failed("it printed nothing".to_owned())) } else { Ok(text) }
}

/// What a program printed, with nothing in it that a terminal would obey.
fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim().chars().filter(|c| *c == '\n' || *c == '\t' || !c.is_control()).collect()
}

fn write_new(path: &Utf8Path, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    let mut file = fs_err::File::create_new(path)?;
    let written = writeln!(file, "{text}").and_then(|()| file.sync_all());
    written.inspect_err(|_| drop(fs_err::remove_file(path)))
}

fn refused(error: &MakeError) -> Failure {
    Failure::refused(chain(error))
}
