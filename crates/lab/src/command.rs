//! Running other programs, with errors that say what was run and what it said.
//!
//! Programs get an argument list; no shell is involved.

use std::ffi::OsStr;
use std::io;
use std::process::{Command, Output, Stdio};

/// A program could not be started, or ended with an error.
#[derive(Debug, thiserror::Error)]
pub enum CommandFailed {
    /// It could not be started.
    #[error("cannot run `{line}`")]
    Start {
        /// The program and its arguments.
        line: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended with an error.
    #[error("`{line}` ended with {status}: {said}")]
    Ended {
        /// The program and its arguments.
        line: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The end of what it said.
        said: String,
    },
}

/// Runs a program to its end, with no standard input, and returns what it said.
///
/// # Errors
///
/// [`CommandFailed`] if it does not start or does not end with success.
pub fn run<A: AsRef<OsStr>>(program: &str, args: &[A]) -> Result<String, CommandFailed> {
    let mut command = Command::new(program);
    command.args(args);
    finish(&mut command)
}

/// As [`run`], for a command that is prepared already.
///
/// # Errors
///
/// As [`run`].
pub fn finish(command: &mut Command) -> Result<String, CommandFailed> {
    let output = output(command)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(CommandFailed::Ended { line: line_of(command), status: output.status, said: said(&output) })
}

/// Runs a program to its end, with no standard input, whatever its exit status.
///
/// # Errors
///
/// [`CommandFailed::Start`] if it does not start.
pub fn output(command: &mut Command) -> Result<Output, CommandFailed> {
    command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| CommandFailed::Start { line: line_of(command), source })
}

/// The program and its arguments as one line for people.
pub fn line_of(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}

/// The last 2000 characters of what a program said, errors first choice.
fn said(output: &Output) -> String {
    let stream = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    let text = String::from_utf8_lossy(stream);
    let text = text.trim();
    let start = text.char_indices().rev().nth(1999).map_or(0, |(at, _)| at);
    if text.is_empty() { "it said nothing".to_owned() } else { text[start..].to_owned() }
}

/// Whether a program of this name is on the `PATH` or among the system's own.
pub fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_program_is_named_with_what_it_said() {
        let error = run("ls", &["/no/such/folder"]).unwrap_err().to_string();
        assert!(error.contains("ls /no/such/folder"), "{error}");
        assert!(error.contains("No such file"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run::<&str>("no-such-program", &[]).unwrap_err().to_string();
        assert_eq!(error, "cannot run `no-such-program`");
        assert!(is_installed("sh") && !is_installed("no-such-program"));
    }
}
