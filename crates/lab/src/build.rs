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

/// Builds the integration tests whose names match, where `*` stands for anything.
///
/// # Errors
///
/// [`BuildError`].
pub fn tests(pattern: &str) -> Result<Vec<Built>, BuildError> {
    build(&["test", "--no-run", "--workspace", "--test", pattern])
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
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }
    let message: Message = serde_json::from_str(message).ok()?;
    Some(Built { name: message.target?.name, path: message.executable? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_messages_with_an_executable_name_a_program() {
        let built = artifact(
            r#"{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"dmup"},"executable":"/t/debug/dmup","fresh":true}"#,
        );
        assert_eq!(built, Some(Built { name: "dmup".into(), path: "/t/debug/dmup".into() }));
        assert_eq!(
            artifact(
                r#"{"reason":"compiler-artifact","target":{"name":"serde"},"executable":null}"#
            ),
            None
        );
        assert_eq!(artifact(r#"{"reason":"build-finished","success":true}"#), None);
    }
}
