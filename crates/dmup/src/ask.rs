//! Questions to the operator, on standard error, answered on standard input.

use std::io::{BufRead, Write};

use crate::failure::{Failure, Kind};

/// Asks for yes or no; only `y` and `yes` are yes, the end of input is no (TiUP's rule).
///
/// # Errors
///
/// [`Kind::Refused`] unless the answer is yes.
pub(crate) fn confirm(question: &str) -> Result<(), Failure> {
    let answer = read_line(&format!("{question}\nDo you want to continue? [y/N]: (default=N) "))?;
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::refused(format_args!(
            "aborted by the operator (answer `{}`)",
            answer.trim()
        ))),
    }
}

/// Asks for an exact line.
///
/// # Errors
///
/// [`Kind::Refused`] unless the answer is that line.
pub(crate) fn confirm_by_typing(question: &str, line: &str) -> Result<(), Failure> {
    let answer = read_line(&format!("{question}\n(Type \"{line}\" to continue)\n: "))?;
    if answer.trim() == line {
        Ok(())
    } else {
        Err(Failure::refused(format_args!("aborted by the operator (answer `{}`)", answer.trim())))
    }
}

/// Asks for a secret without showing it; from a pipe, the next line is it.
///
/// # Errors
///
/// [`Kind::Failed`] if there is nothing to read it from.
pub(crate) fn secret(question: &str) -> Result<String, Failure> {
    let quiet = Quiet::begin();
    let answer = read_line(question);
    drop(quiet);
    drop(writeln!(std::io::stderr()));
    Ok(answer?.trim_end_matches(['\r', '\n']).to_owned())
}

fn read_line(prompt: &str) -> Result<String, Failure> {
    let mut stderr = std::io::stderr().lock();
    drop(write!(stderr, "{prompt}"));
    drop(stderr.flush());
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|error| Failure::new(Kind::Failed, format_args!("read the answer: {error}")))?;
    Ok(answer)
}

/// No echo on the terminal for as long as it lives.
struct Quiet(Option<rustix::termios::Termios>);

impl Quiet {
    fn begin() -> Self {
        let stdin = rustix::stdio::stdin();
        let Ok(before) = rustix::termios::tcgetattr(stdin) else { return Self(None) };
        let mut silent = before.clone();
        silent.local_modes.remove(rustix::termios::LocalModes::ECHO);
        match rustix::termios::tcsetattr(stdin, rustix::termios::OptionalActions::Now, &silent) {
            Ok(()) => Self(Some(before)),
            Err(_) => Self(None),
        }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _restored = rustix::termios::tcsetattr(
                rustix::stdio::stdin(),
                rustix::termios::OptionalActions::Now,
                before,
            );
        }
    }
}
