//! Builds the workspace's programs with cargo and says where they are, from cargo's own messages.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use camino::Utf8PathBuf;
use serde::Deserialize;

/// A program or a test program that cargo built.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Built {
    /// The target's name: of a binary, or of a test file.
    pub name: String,
    /// Where the executable is.
    pub path: Utf8PathBuf,
}

/// Building failed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Cargo could not be run.
    #[error("cannot run `cargo {line}`")]
    Run {
        /// Cargo's arguments.
        line: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Cargo said no; it has told why on standard error.
    #[error("`cargo {line}` ended with {status}")]
    Failed {
        /// Cargo's arguments.
        line: String,
        /// Its exit status.
        status: std::process::ExitStatus,
    },
}

/// Builds all binaries of the workspace.
///
/// # Errors
///
/// [`BuildError`].
pub fn binaries() -> Result<Vec<Built>, BuildError> {
    // Always the whole workspace: with fewer packages cargo chooses other features for
    // dependencies and compiles them once more.
    build(&["build", "--workspace", "--bins"])
}

/// Builds all binaries and all integration tests of the workspace, with what `cargo test --workspace` has built: tests ask
/// other features of dependencies, and [`binaries`] would compile them, and all that stands on them, once more.
///
/// # Errors
///
/// [`BuildError`].
pub fn with_tests() -> Result<Vec<Built>, BuildError> {
    build(&["build", "--workspace", "--bins", "--tests"])
}

fn build(args: &[&str]) -> Result<Vec<Built>, BuildError> {
    let line = args.join(" ");
    let run_error = |source| BuildError::Run { line: line.clone(), source };
    let cargo = option_env!("CARGO").unwrap_or("cargo");
    let mut child = Command::new(cargo)
        .args(args)
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(run_error)?;
    let stdout = child.stdout.take().expect("piped above");
    let mut built = Vec::new();
    for message in BufReader::new(stdout).lines() {
        built.extend(artifact(&message.map_err(run_error)?));
    }
    let status = child.wait().map_err(run_error)?;
    if status.success() { Ok(built) } else { Err(BuildError::Failed { line, status }) }
}

/// The executable that a line of cargo's JSON messages tells of, if it does.
fn artifact(message: &str) -> Option<Built> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<Utf8PathBuf>,
        target: Option<Target>,
        profile: Option<Profile>,
    }
    #[derive(Deserialize)]
    struct Target {
        kind: Vec<String>,
        name: String,
    }
    #[derive(Deserialize)]
    struct Profile {
        test: bool,
    }
    let message: Message = serde_json::from_str(message).ok()?;
    let (target, path) = (message.target?, message.executable?);
    // A library or a program built to run its own unit tests has the name of the real one.
    let is_unit_test = message.profile?.test && !target.kind.iter().any(|kind| kind == "test");
    (!is_unit_test).then_some(Built { name: target.name, path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_integration_tests_are_told_from_everything_else() {
        let of = |kind: &str, name: &str, executable: &str, test: bool| {
            artifact(&format!(
                r#"{{"reason":"compiler-artifact","target":{{"kind":["{kind}"],"name":"{name}"}},"profile":{{"test":{test}}},"executable":{executable},"fresh":true}}"#,
            ))
        };
        let built = |name: &str| Some(Built { name: name.into(), path: "/t/x".into() });
        assert_eq!(of("bin", "dmup", r#""/t/x""#, false), built("dmup"));
        assert_eq!(of("test", "patch_hosts", r#""/t/x""#, true), built("patch_hosts"));
        assert_eq!(of("bin", "dmup", r#""/t/x""#, true), None);
        assert_eq!(of("lib", "lab", r#""/t/x""#, true), None);
        assert_eq!(of("lib", "serde", "null", false), None);
        assert_eq!(artifact(r#"{"reason":"build-finished","success":true}"#), None);
    }
}
